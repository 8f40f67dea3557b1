//! Interned route attributes: equal sets exist once and are compared by pointer. What the decision process asks of
//! them is computed once, when a set is interned.

use std::{
    hash::{BuildHasher, Hash, Hasher},
    net::Ipv4Addr,
    ops::Deref,
    sync::{Arc, Weak},
};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::{
    speaker::SpeakerConfig,
    wire::{AttrSet, NextHop, Origin, SegmentKind},
};

/// Below this a LOCAL_PREF is on the classic scale (100 is normal), above it on Calico's (2147483647 - metric).
const CLASSIC_SCALE_END: u32 = 1 << 30;

/// Attributes and next hop of a route, interned: equality and hash are those of the pointer.
#[derive(Clone, Debug)]
pub struct Attrs(Arc<Entry>);

/// What [`Attrs`] points to.
#[derive(Debug)]
pub struct Entry {
    /// LOCAL_PREF is always present inside the RIB.
    pub set: AttrSet,
    /// `None`: our own address towards each peer (own routes only).
    pub next_hop: Option<NextHop>,
    pub rank: Rank,
}

/// What the decision process compares (RFC 4271 section 9.1.2.2, RFC 4456 section 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Above the normal priority of Calico's scale: even an own route yields (live migration).
    pub elevated: bool,
    /// LOCAL_PREF with both scales brought together.
    pub pref: i64,
    /// AS_PATH length: a set counts 1, confederation segments nothing.
    pub path_len: u32,
    pub origin: Origin,
    /// Missing counts as 0.
    pub med: u32,
    /// The neighboring AS the route came from, 0 for our own.
    pub neighbor_as: u32,
    pub originator: Option<Ipv4Addr>,
    pub cluster_len: u32,
}

impl Attrs {
    /// What it points to.
    pub fn entry(&self) -> &Entry {
        &self.0
    }

    /// A number that identifies the set as long as it lives.
    pub fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

impl Deref for Attrs {
    type Target = Entry;
    fn deref(&self) -> &Entry {
        &self.0
    }
}

impl PartialEq for Attrs {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Attrs {}

impl Hash for Attrs {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address().hash(state);
    }
}

/// All sets that are in use. Those no longer used are dropped with their last user; their slots are swept when the
/// table has doubled.
#[derive(Debug)]
pub struct Interner {
    live: HashTable<(u64, Weak<Entry>)>,
    sweep_at: usize,
    hasher: FixedState,
    normal: u32,
    classic: Option<u32>,
}

impl Interner {
    const SWEEP_MIN: usize = 1_024;

    /// An empty table.
    pub fn new(cfg: &SpeakerConfig) -> Self {
        Self {
            live: HashTable::new(),
            sweep_at: Self::SWEEP_MIN,
            hasher: FixedState::with_seed(cfg.seed),
            normal: cfg.local_pref,
            classic: cfg.classic_local_pref,
        }
    }

    /// The one copy of these attributes.
    pub fn intern(&mut self, set: AttrSet, next_hop: Option<NextHop>) -> Attrs {
        let hash = self.hasher.hash_one((&set, &next_hop));
        let mut found = None;
        // The candidate is kept alive by `found` from the comparison on.
        self.live.find(hash, |(h, weak)| {
            *h == hash
                && weak.upgrade().is_some_and(|e| {
                    let same = e.next_hop == next_hop && e.set == set;
                    if same {
                        found = Some(e);
                    }
                    same
                })
        });
        if let Some(entry) = found {
            return Attrs(entry);
        }
        if self.live.len() >= self.sweep_at {
            self.live.retain(|(_, weak)| weak.strong_count() > 0);
            self.sweep_at = Self::SWEEP_MIN.max(self.live.len() * 2);
        }
        let rank = self.rank(&set);
        let entry = Arc::new(Entry { set, next_hop, rank });
        self.live.insert_unique(hash, (hash, Arc::downgrade(&entry)), |(h, _)| *h);
        Attrs(entry)
    }

    /// Slots in the table, dead ones included.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether nothing was ever interned.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    fn rank(&self, set: &AttrSet) -> Rank {
        let raw = set.local_pref.unwrap_or(self.normal);
        let pref = match self.classic {
            Some(base) if raw < CLASSIC_SCALE_END && self.normal >= CLASSIC_SCALE_END => {
                i64::from(self.normal) + i64::from(raw) - i64::from(base)
            }
            Some(_) | None => i64::from(raw),
        };
        let mut path_len: u32 = 0;
        let mut neighbor_as = None;
        for segment in &set.as_path.0 {
            match segment.kind {
                SegmentKind::Sequence => {
                    path_len = path_len.saturating_add(u32::try_from(segment.asns.len()).unwrap_or(u32::MAX));
                    neighbor_as = neighbor_as.or(segment.asns.first().copied());
                }
                SegmentKind::Set => {
                    path_len = path_len.saturating_add(1);
                    // Aggregated: it has no one neighbor. RFC 4271 section 9.1.2.2 c takes it as ours.
                    neighbor_as = neighbor_as.or(Some(0));
                }
                SegmentKind::ConfedSequence | SegmentKind::ConfedSet => {}
            }
        }
        Rank {
            elevated: raw > self.normal && self.normal >= CLASSIC_SCALE_END,
            pref,
            path_len,
            origin: set.origin,
            med: set.med.unwrap_or(0),
            neighbor_as: neighbor_as.unwrap_or(0),
            originator: set.originator_id,
            cluster_len: u32::try_from(set.cluster_list.len()).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(med: u32) -> AttrSet {
        AttrSet { med: Some(med), local_pref: Some(100), ..AttrSet::default() }
    }

    #[test]
    fn equal_sets_are_one_and_different_ones_are_not() {
        let mut i = Interner::new(&SpeakerConfig::new(1, Ipv4Addr::LOCALHOST));
        let hop = NextHop::V4(Ipv4Addr::LOCALHOST);
        let (a, b) = (i.intern(set(1), Some(hop)), i.intern(set(1), Some(hop)));
        assert_eq!(a, b);
        assert_ne!(a, i.intern(set(1), None));
        assert_ne!(a, i.intern(set(2), Some(hop)));
        assert_eq!(i.len(), 3);
    }

    #[test]
    fn memory_follows_what_is_in_use_and_not_what_was() {
        let mut i = Interner::new(&SpeakerConfig::new(1, Ipv4Addr::LOCALHOST));
        let kept: Vec<Attrs> = (0..100).map(|n| i.intern(set(n), None)).collect();
        for n in 1_000..101_000 {
            drop(i.intern(set(n), None));
        }
        assert!(i.len() <= 1_025, "{}", i.len());
        assert!(kept.iter().zip(0..).all(|(a, n)| *a == i.intern(set(n), None)));
    }

    #[test]
    fn both_scales_of_local_pref_meet_at_their_normal_value() {
        let mut i = Interner::new(&SpeakerConfig::new(1, Ipv4Addr::LOCALHOST));
        let mut pref = |p| {
            let r = i.intern(AttrSet { local_pref: Some(p), ..AttrSet::default() }, None).rank;
            (r.pref, r.elevated)
        };
        let normal = SpeakerConfig::NORMAL_LOCAL_PREF;
        assert_eq!(pref(100), pref(normal));
        assert!(pref(200).0 > pref(100).0 && pref(50).0 < pref(100).0);
        assert!(pref(normal + 512) > pref(normal));
        assert!(pref(normal + 512).1 && !pref(200).1 && !pref(normal).1);
    }
}
