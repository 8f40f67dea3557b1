//! The kernel programmer of one node: the only owner of its routes.
//!
//! ```text
//! store events ─┐                                    ┌─> routes, settings, tunnel
//! FIB batches ──┼─> engine thread: Inputs ─ desire ─ Plan ─ Kernel
//! netlink ──────┘        │                           └─< read back: dump at start, events, slow resync
//!                        └─> watch: Report (status, ready endpoints)
//! ```
//! One thread owns everything and may block in netlink; the async side only sends to it and watches its report.
//! Decisions are felix-core's. Nothing is written before the store is in sync; when the thread ends, the kernel state
//! stays. See docs/design/dataplane.md.

mod carrier;
mod convert;
mod engine;
mod filter;
mod handle;
mod look;
pub mod policy;
mod remove;
mod tunnel;

pub use engine::{CarrierPolicy, Settings, StartError, spawn, spawn_on};
pub use handle::{FelixInput, FibUpdate, Handle, Report, WaitError};
pub use look::{Fate, Intent, Looked, compare, look};
pub use remove::{Removal, Removed};
