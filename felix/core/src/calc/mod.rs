//! The calculation graph of network policy: resources of the whole cluster in, [`PolicyDelta`]s for this node out.
//!
//! ```text
//! SyncEvent -> inputs (read, check, convert, compile) -> local index: policies x local endpoints
//!                                                     -> set index: selectors of active rules x all endpoints, sets
//!                                -> dirty keys -> flush: one delta per key, in dependency order
//! ```
//! The contract of every part: the output is a function of the current state of the resources, not of how it came
//! about; equal updates and unknown deletes change nothing; what was taken is given back with the same key.
//! [`Graph::flush`] is the only exit: it compares with what was sent, so updates that cancel out send nothing.
//!
//! What cannot be read fails closed: a policy denies those it selects, an endpoint with contradictory resources drops
//! everything, a missing profile denies; [`Graph::problems`] names each resource.
//!
//! [`PolicyDelta`]: crate::policy::active::PolicyDelta

mod compile;
mod graph;
mod inputs;
mod ip_sets;
mod labels;
mod resolve;

pub use graph::{Graph, KINDS, Scope, Work};
