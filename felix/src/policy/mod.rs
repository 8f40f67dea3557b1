//! Policy in the kernel: one thread owns the calculation, the model of what is wanted and the driver. It takes all that
//! has happened, decides once and writes once.
//!
//! ```text
//! store events ─> calculation ─ PolicyDelta ─> Model ─ Layout ─> Driver ─> iptables + ipset | nft
//!        └──────> Inputs ─────── Surroundings ──┘                  └─< read back: start, failures, slow checks
//! ```
//! The slow checks, and whoever asks for the kernel's own word, have it read on a thread of its own: whoever has something
//! to say meanwhile is served at once, and a reading that a write has overtaken is thrown away. Nothing is written before
//! the store is in sync: until then the rules of the last run are in force, and devices no rule knows are denied by their
//! dispatch. See docs/design/policy-dataplane.md.

mod bridge;
mod driver;
mod engine;
mod handle;
mod ipvs;
mod leftover;
mod named;
mod readback;

pub use driver::Counters;
pub(crate) use driver::ip;
pub use engine::{Calculation, spawn_policy};
pub use handle::{PolicyHandle, PolicyInput, PolicyReport, PolicySetup, Verified};
