//! The CNI plugin and how it talks to the node agent.
//!
//! Two programs share this library: `brindle` (the interface) and `brindle-ipam` (addresses only, for other plugins).
//! Both are small, synchronous, and hold no credentials: what needs the datastore is asked of the agent over a unix
//! socket ([`proto`]). [`proto`] and [`journal`] are used by the agent too.
#![deny(clippy::print_stderr, reason = "it ends the program where nobody reads; aside::say does not")]

pub mod annotations;
mod aside;
pub mod client;
pub mod conf;
pub mod env;
pub mod error;
pub mod fail;
pub mod journal;
pub mod names;
pub mod plugin;
pub mod proto;
pub mod result;
mod undo;
mod veth;

pub use error::CniError;
