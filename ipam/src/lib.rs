//! Address management: which address a pod gets, and how many writers share one pool without ever giving an address
//! twice.
//!
//! The records are Calico's (IPAMBlock, BlockAffinity, IPAMHandle), and so are the three small compare-and-swap
//! protocols over them, so that both can serve one cluster:
//! - a block belongs to one host ([`allocator`], pending → confirmed → pendingDeletion);
//! - an address is given by one conditional write of its block ([`block`]);
//! - a handle names all addresses of one owner and is counted up *before* the block is written, so that a crash
//!   leaves a count that is too high, never an address nobody can find.
//!
//! Pure: every call to the outside goes through the [`Store`](brindle_config_core::store::Store) trait, time and
//! waiting are arguments ([`Now`], [`Pause`]). A second way of dividing the space (the ring) joins behind
//! [`Allocator`].

mod affinity;
pub mod allocator;
mod assign;
pub mod audit;
pub mod block;
pub mod error;
mod explicit;
mod handle;
pub mod idle;
pub mod leak;
pub mod names;
pub mod net;
pub mod pools;
mod records;
pub mod refusal;
mod release;
mod retry;
pub mod tunnel;
pub mod usage;

pub use allocator::{
    Allocator, AssignRequest, Assigned, Assignment, BlockAllocator, IpamFuture, ReleaseReport, Wanted,
};
pub use block::{Owner, Release};
pub use brindle_config_core::time::{self, Now};
pub use error::IpamError;
pub use pools::View;
pub use refusal::{Reason, Refusal};
pub use release::HeldAddress;
pub use retry::{NoPause, Pause, STEPS};
pub use tunnel::{TunnelKind, TunnelWish};
