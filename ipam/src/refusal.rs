//! Why no address was given: collected where each decision is made, printed as one line.

use std::fmt;

use brindle_config_core::pool::AllowedUse;
use ipnet::IpNet;

use crate::pools::Family;

/// One step that led nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No pool exists at all, or none of this family.
    NoPools(Option<Family>),
    /// The request names a pool that does not exist.
    NoSuchPool(String),
    /// The request names a pool that gives no new addresses.
    PoolDisabled(String),
    PoolTerminating(String),
    /// The pool's node selector does not match the node's labels.
    NodeNotSelected {
        pool: String,
        selector: String,
        node: String,
    },
    NamespaceNotSelected {
        pool: String,
        selector: String,
    },
    /// A selector that does not parse.
    BadSelector {
        pool: String,
        error: String,
    },
    UseNotAllowed {
        pool: String,
        wanted: AllowedUse,
    },
    /// `assignmentMode: Manual` and not asked for.
    ManualPool(String),
    /// Block size and pool prefix do not fit.
    BadBlockSize {
        pool: String,
        block_size: u8,
    },
    /// A stored resource does not decode.
    Unreadable(String),
    /// Every block of the host in the allowed pools is full.
    OwnBlocksFull(usize),
    /// So many addresses were given back a moment ago; the first of them is free again in so many seconds.
    Resting {
        addresses: usize,
        seconds: u64,
    },
    /// No block of the pool is unclaimed. Of its addresses so many are reserved.
    NoFreeBlock {
        pool: String,
        blocks: u128,
        reserved: u128,
    },
    /// Every address of the pool is reserved (IPReservation).
    PoolReserved(String),
    /// The host has as many blocks as it may have.
    BlockLimit(u32),
    AutoAllocateOff,
    /// Addresses of other hosts' blocks may not be borrowed.
    StrictAffinity,
    /// No block of another host has a free address either.
    NothingToBorrow,
    /// Asked for an address outside every pool.
    OutsidePools,
    /// The block of the wanted address belongs to another host.
    ForeignBlock {
        block: IpNet,
        host: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPools(None) => f.write_str("no IP pool is configured"),
            Self::NoPools(Some(Family::V4)) => f.write_str("no IPv4 pool is configured"),
            Self::NoPools(Some(Family::V6)) => f.write_str("no IPv6 pool is configured"),
            Self::NoSuchPool(p) => write!(f, "the given pool ({p}) does not exist, or is not enabled"),
            Self::PoolDisabled(p) => write!(f, "pool {p} is disabled"),
            Self::PoolTerminating(p) => write!(f, "pool {p} is being deleted"),
            Self::NodeNotSelected { pool, selector, node } => {
                write!(f, "pool {pool} does not select node {node} (nodeSelector {selector:?})")
            }
            Self::NamespaceNotSelected { pool, selector } => {
                write!(f, "pool {pool} does not select the namespace (namespaceSelector {selector:?})")
            }
            Self::BadSelector { pool, error } => write!(f, "pool {pool} has an invalid selector: {error}"),
            Self::UseNotAllowed { pool, wanted } => write!(f, "pool {pool} is not for {wanted:?} addresses"),
            Self::ManualPool(p) => write!(f, "pool {p} is given on request only (assignmentMode Manual)"),
            Self::BadBlockSize { pool, block_size } => {
                write!(f, "pool {pool} cannot be divided into blocks of /{block_size}")
            }
            Self::Unreadable(what) => write!(f, "not readable: {what}"),
            Self::OwnBlocksFull(n) => write!(f, "the node's {n} blocks are full"),
            Self::Resting { addresses, seconds } => {
                write!(
                    f,
                    "{addresses} addresses were given back a moment ago and cool down (ipCooldownSeconds), the first for {seconds} s more"
                )
            }
            Self::NoFreeBlock { pool, blocks, reserved: 0 } => {
                write!(f, "no free block in pool {pool} ({blocks} in all)")
            }
            Self::NoFreeBlock { pool, blocks, reserved } => {
                write!(
                    f,
                    "no free block in pool {pool} ({blocks} in all; IPReservations keep {reserved} of its addresses)"
                )
            }
            Self::PoolReserved(p) => {
                write!(
                    f,
                    "pool {p} is reserved as a whole (IPReservation): its addresses are given on request only"
                )
            }
            Self::BlockLimit(n) => {
                write!(f, "the node has reached its limit of {n} blocks (maxBlocksPerHost)")
            }
            Self::AutoAllocateOff => f.write_str("blocks are not claimed automatically (autoAllocateBlocks)"),
            Self::StrictAffinity => {
                f.write_str("addresses are not borrowed from other nodes (strictAffinity)")
            }
            Self::NothingToBorrow => f.write_str("no other node's block has a free address"),
            Self::OutsidePools => f.write_str("the provided IP address is not in a configured pool"),
            Self::ForeignBlock { block, host } => write!(f, "block {block} belongs to node {host}"),
        }
    }
}

/// Why no address (or not enough) was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    pub reasons: Vec<Reason>,
}

impl Refusal {
    /// Adds a reason unless it is known.
    pub fn push(&mut self, reason: Reason) {
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }

    /// Whether reservations have a part in it.
    pub fn reserved(&self) -> bool {
        let by_reservation = |r: &Reason| {
            matches!(r, Reason::PoolReserved(_))
                || matches!(r, Reason::NoFreeBlock { reserved, .. } if *reserved > 0)
        };
        self.reasons.iter().any(by_reservation)
    }

    /// Whether addresses are about to be free again.
    pub fn resting(&self) -> bool {
        self.reasons.iter().any(|r| matches!(r, Reason::Resting { .. }))
    }

    /// Whether addresses ran out, as opposed to a request or configuration that can never be served.
    pub fn exhausted(&self) -> bool {
        self.reasons.iter().any(|r| {
            matches!(
                r,
                Reason::OwnBlocksFull(_)
                    | Reason::NoFreeBlock { .. }
                    | Reason::PoolReserved(_)
                    | Reason::BlockLimit(_)
                    | Reason::NothingToBorrow
                    | Reason::StrictAffinity
            )
        })
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reasons: vec![reason] }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, reason) in self.reasons.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            reason.fmt(f)?;
        }
        Ok(())
    }
}
