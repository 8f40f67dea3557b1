//! Paths by prefix, one table per family. Destinations have small numbers that stay the same while anybody refers to
//! them, so that per-peer state can be bits and vectors instead of maps.

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use smallvec::SmallVec;
use std::hash::BuildHasher;

use super::{
    attrs::Attrs,
    decision::{Step, Verdict},
    import::Invalid,
    prefix::Prefix,
};
use crate::speaker::PeerId;

/// One path to a destination, as a peer announced it (Adj-RIB-In) or as an own route. 24 octets.
#[derive(Clone, Debug)]
pub struct Path {
    pub attrs: Attrs,
    /// [`LOCAL`](super::LOCAL) for own routes.
    pub peer: PeerId,
    /// RFC 7911; 0 without.
    pub path_id: u32,
    pub flags: PathFlags,
    /// Why it may not be used, found when it arrived.
    pub bad: Option<Invalid>,
    /// Where the decision process dropped it; `None` for the best.
    pub lost: Option<Step>,
}

/// Properties of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathFlags {
    /// From an external peer.
    pub ebgp: bool,
    pub age: Age,
    /// Equal to the best as far as forwarding is concerned; the best itself included.
    pub multipath: bool,
}

/// Whether the peer has said a path in this session, and since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Age {
    #[default]
    Fresh,
    /// Kept from before the peer's restart (RFC 4724).
    Stale,
    /// Said before the route refresh that is under way (RFC 7313).
    Unconfirmed,
}

/// A prefix with its paths, sorted by peer and path identifier.
#[derive(Debug)]
pub(super) struct Dest<P> {
    pub prefix: P,
    pub paths: SmallVec<[Path; 1]>,
    best: u32,
    live: bool,
}

/// No best path.
const NONE: u32 = u32::MAX;

/// Paths of one peer to one prefix (with add-path): what a decision costs grows with them, and nobody has so many ways to
/// one destination. Those kept from before its restart count for themselves.
pub const MAX_PATHS: usize = 256;

impl<P> Dest<P> {
    /// The best path.
    pub(super) fn best(&self) -> Option<&Path> {
        self.paths.get(self.best as usize)
    }

    /// Where a path is, or would be.
    pub(super) fn find(&self, peer: PeerId, path_id: u32) -> Result<usize, usize> {
        self.paths.binary_search_by_key(&(peer, path_id), |p| (p.peer, p.path_id))
    }

    /// Whether a peer has as many paths here as it may.
    pub(super) fn is_full(&self, peer: PeerId) -> bool {
        if self.paths.len() < MAX_PATHS {
            return false;
        }
        let of_peer = || self.paths.iter().filter(|p| p.peer == peer);
        // What several restarts in a row left behind does not add up either.
        of_peer().count() >= 2 * MAX_PATHS
            || of_peer().filter(|p| p.flags.age != Age::Stale).count() >= MAX_PATHS
    }

    /// Records what was decided about the present paths.
    pub(super) fn settle(&mut self, verdict: &Verdict) {
        self.best = verdict.best.unwrap_or(NONE);
        for (path, lost) in self.paths.iter_mut().zip(&verdict.lost) {
            path.lost = *lost;
            path.flags.multipath = false;
        }
        for n in &verdict.multipath {
            if let Some(path) = self.paths.get_mut(*n as usize) {
                path.flags.multipath = true;
            }
        }
    }
}

/// All destinations of a family.
#[derive(Debug)]
pub(super) struct Table<P> {
    index: HashTable<u32>,
    dests: Vec<Dest<P>>,
    free: Vec<u32>,
    hasher: FixedState,
}

impl<P: Prefix> Table<P> {
    /// An empty table.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            index: HashTable::new(),
            dests: Vec::new(),
            free: Vec::new(),
            hasher: FixedState::with_seed(seed),
        }
    }

    /// How many destinations, without those that only wait to be released.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// The number of a prefix.
    pub(super) fn get(&self, prefix: P) -> Option<u32> {
        let hash = self.hasher.hash_one(prefix.key());
        self.index.find(hash, |n| self.dests[*n as usize].prefix == prefix).copied()
    }

    /// The same, with a guess: prefixes often come again in the order they came first.
    pub(super) fn get_near(&self, prefix: P, guess: u32) -> Option<u32> {
        match self.dests.get(guess as usize) {
            Some(d) if d.live && d.prefix == prefix => Some(guess),
            _ => self.get(prefix),
        }
    }

    /// The number of a prefix, which is added if need be (then true).
    pub(super) fn get_or_add(&mut self, prefix: P) -> (u32, bool) {
        let hash = self.hasher.hash_one(prefix.key());
        if let Some(n) = self.index.find(hash, |n| self.dests[*n as usize].prefix == prefix) {
            return (*n, false);
        }
        let dest = Dest { prefix, paths: SmallVec::new(), best: NONE, live: true };
        let n = match self.free.pop() {
            Some(n) => {
                self.dests[n as usize] = dest;
                n
            }
            None => {
                let n = u32::try_from(self.dests.len()).expect("fewer than 2^32 prefixes fit into memory");
                self.dests.push(dest);
                n
            }
        };
        let (dests, hasher) = (&self.dests, &self.hasher);
        self.index.insert_unique(hash, n, |n| hasher.hash_one(dests[*n as usize].prefix.key()));
        (n, true)
    }

    /// A destination. The number comes from this table.
    pub(super) fn dest(&self, n: u32) -> &Dest<P> {
        &self.dests[n as usize]
    }

    /// The same, to change it.
    pub(super) fn dest_mut(&mut self, n: u32) -> &mut Dest<P> {
        &mut self.dests[n as usize]
    }

    /// All destinations, in the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Dest<P>)> {
        (0u32..).zip(&self.dests).filter(|(_, d)| d.live)
    }

    /// The same from a number on.
    pub(super) fn iter_from(&self, from: u32) -> impl Iterator<Item = (u32, &Dest<P>)> {
        let rest = self.dests.get(from as usize..).unwrap_or_default();
        (from..).zip(rest).filter(|(_, d)| d.live)
    }

    /// Gives up destinations without paths to which nobody refers; returns how many are left that are empty.
    pub(super) fn release(&mut self, in_use: impl Fn(u32) -> bool) -> usize {
        let mut left = 0;
        for (n, dest) in (0u32..).zip(&mut self.dests) {
            if !dest.live || !dest.paths.is_empty() {
                continue;
            }
            if in_use(n) {
                left += 1;
                continue;
            }
            let hash = self.hasher.hash_one(dest.prefix.key());
            if let Ok(entry) = self.index.find_entry(hash, |m| *m == n) {
                entry.remove();
            }
            dest.live = false;
            dest.paths = SmallVec::new();
            self.free.push(n);
        }
        left
    }
}
