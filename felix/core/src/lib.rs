//! What should be in the kernel, and why.
//!
//! ```text
//! SyncEvents, FIB changes -> Inputs ── desire(&Inputs, &HostView) ──> Desired ── Plan::new(&actual, &desired) ──> Plan
//! ```
//! Everything here is a function of its arguments: the state of the resources, the best paths bgpd chose, and what was
//! read back from the kernel. The driver in `felix` reads, asks, applies and reports. No I/O, no clock.

pub mod calc;
pub mod conflicts;
pub mod desire;
pub mod differ;
pub mod floating;
pub mod host;
pub mod inputs;
pub mod ipip;
pub mod ipip_filter;
pub mod owner;
pub mod path;
pub mod plan;
pub mod policy;
pub mod route;
pub mod rules;
pub mod sysctl;
