//! Routes: what peers sent, which is best, what each neighbor is told. Deterministic and without I/O.
//!
//! ```text
//! UPDATE -> import (loops, preference) -> Table (Adj-RIB-In + Loc-RIB) -> decide -> groups -> queues -> pack -> bytes
//!                                                        |
//!                                                        +-> FibChange
//! ```
//! Attributes are interned ([`Attrs`]); destinations are numbers, so that per-peer state is bits. See
//! docs/design/rib.md.

mod adj_out;
mod afi;
mod attrs;
mod bandwidth;
mod base;
mod bits;
mod decision;
mod export;
mod group;
mod import;
mod look;
mod pack;
mod paths_out;
mod peers;
mod prefix;
mod rewrite;
mod ring;
mod table;

#[cfg(test)]
mod tests;

pub use self::{
    attrs::{Attrs, Entry, Interner, Rank},
    base::{PathView, PeerRoutes, Rib, RibPeer},
    decision::{DecisionCx, Step, Verdict, decide},
    import::Invalid,
    look::{Export, Scan, Withheld},
    peers::{LOCAL, NextHops, Source, Sources},
    rewrite::{Inward, Rewrite},
    table::{Age, MAX_PATHS, Path, PathFlags},
};
