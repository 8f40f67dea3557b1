//! The CNI plugin: what it asks of the agent ([`proto`]), and what it does in the namespaces of host and container.

pub mod journal;
pub mod proto;
pub mod veth;
