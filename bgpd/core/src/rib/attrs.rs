//! Interned route attributes: equal sets exist once and are compared by pointer. What the decision process asks of
//! them is computed once, when a set is interned; the set itself is kept as the octets it has on the wire, which are a
//! third of its size in memory and nearly what is sent.

use std::{
    hash::{BuildHasher, Hash, Hasher},
    net::{Ipv4Addr, Ipv6Addr},
    ops::Deref,
    sync::Arc,
};

use bytes::{BufMut, BytesMut};
use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::bandwidth::{self, Bandwidth};
use crate::{
    speaker::{LLGR_STALE, SpeakerConfig},
    wire::{AttrSet, EmitError, NextHop, Origin, SegmentKind, WireCx, decode_attrs, encode_attrs},
};

/// Below this a LOCAL_PREF is on the classic scale (100 is normal), above it on Calico's (2147483647 - metric).
const CLASSIC_SCALE_END: u32 = 1 << 30;

/// How sets are kept: nothing is left out, AS numbers have four octets.
const KEPT: WireCx = WireCx { four_octet_as: true, extended_message: true, add_path: [false; 2], ibgp: true };

/// Attributes and next hop of a route, interned: equality and hash are those of the pointer.
#[derive(Clone, Debug)]
pub struct Attrs(Arc<Entry>);

/// What [`Attrs`] points to.
#[derive(Debug)]
pub struct Entry {
    pub rank: Rank,
    /// Of its link, if it tells.
    pub(super) bandwidth: Option<Bandwidth>,
    /// One octet with the length of the next hop (0: none), the next hop, the attributes without it.
    octets: Box<[u8]>,
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
    /// Kept long after its peer went away (RFC 9494): the last resort.
    pub long_lived: bool,
}

impl Rank {
    /// The route priority LOCAL_PREF stands for (Calico: 2147483647 - LOCAL_PREF), both scales brought together.
    pub fn priority(&self) -> u32 {
        u32::try_from(2_147_483_647_i64.saturating_sub(self.pref).max(0)).unwrap_or(u32::MAX)
    }
}

impl Attrs {
    /// A number that identifies the set as long as it lives.
    pub fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

impl Entry {
    /// The attributes as a value. LOCAL_PREF is always present inside the RIB.
    pub fn set(&self) -> AttrSet {
        decode_attrs(self.attributes(), &KEPT).unwrap_or_default()
    }

    /// `None`: our own address towards each peer (own routes only).
    pub fn next_hop(&self) -> Option<NextHop> {
        let v6 = |octets: &[u8]| octets.first_chunk::<16>().map(|o| Ipv6Addr::from(*o));
        let hop = self.octets.get(1..=self.hop_len())?;
        match hop.len() {
            4 => hop.first_chunk::<4>().map(|o| NextHop::V4(Ipv4Addr::from(*o))),
            16 => Some(NextHop::V6 { global: v6(hop)?, link_local: None }),
            32 => Some(NextHop::V6 { global: v6(hop)?, link_local: Some(v6(hop.get(16..)?)?) }),
            _ => None,
        }
    }

    /// Octets of the attributes, for an estimate of what they take in a message.
    pub fn len(&self) -> usize {
        self.octets.len()
    }

    /// Whether there is neither next hop nor attribute.
    pub fn is_empty(&self) -> bool {
        self.octets.len() <= 1
    }

    fn hop_len(&self) -> usize {
        self.octets.first().copied().map_or(0, usize::from)
    }

    fn attributes(&self) -> &[u8] {
        self.octets.get(1 + self.hop_len()..).unwrap_or_default()
    }

    /// Appends the attributes as a session with `cx` has them; `classic` is NEXT_HOP, where it stands among them. What
    /// has no business on an external session is gone since export.
    ///
    /// # Errors
    /// As [`encode_attrs`].
    pub(super) fn emit(
        &self,
        classic: Option<Ipv4Addr>,
        cx: &WireCx,
        out: &mut BytesMut,
    ) -> Result<(), EmitError> {
        if !cx.four_octet_as {
            return encode_attrs(&self.set(), classic, cx, out);
        }
        let octets = self.attributes();
        let Some(hop) = classic else {
            out.put_slice(octets);
            return Ok(());
        };
        let (before, after) = octets.split_at(place_of_next_hop(octets));
        out.put_slice(before);
        out.put_slice(&[0x40, 3, 4]);
        out.put_slice(&hop.octets());
        out.put_slice(after);
        Ok(())
    }
}

/// Where NEXT_HOP (3) belongs among attributes ascending by code.
fn place_of_next_hop(octets: &[u8]) -> usize {
    let mut at = 0;
    while let Some([flags, code, len, rest @ ..]) = octets.get(at..)
        && *code < 3
    {
        at += match (flags & 0x10 != 0, rest.first()) {
            (true, Some(low)) => 4 + usize::from(u16::from_be_bytes([*len, *low])),
            _ => 3 + usize::from(*len),
        };
    }
    at.min(octets.len())
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

/// All sets that are in use. Those no longer used are swept when the table has grown by half.
#[derive(Debug)]
pub struct Interner {
    live: HashTable<Attrs>,
    sweep_at: usize,
    hasher: FixedState,
    normal: u32,
    classic: Option<u32>,
    scratch: BytesMut,
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
            scratch: BytesMut::new(),
        }
    }

    /// The one copy of these attributes; `None` if one of them is longer than an attribute can be.
    pub fn intern(&mut self, set: &AttrSet, next_hop: Option<NextHop>) -> Option<Attrs> {
        let octets = &mut self.scratch;
        octets.clear();
        match next_hop {
            None => octets.put_u8(0),
            Some(NextHop::V4(a)) => {
                octets.put_u8(4);
                octets.put_slice(&a.octets());
            }
            Some(NextHop::V6 { global, link_local }) => {
                octets.put_u8(if link_local.is_some() { 32 } else { 16 });
                octets.put_slice(&global.octets());
                if let Some(a) = link_local {
                    octets.put_slice(&a.octets());
                }
            }
        }
        encode_attrs(set, None, &KEPT, octets).ok()?;
        let hash = self.hasher.hash_one(&octets[..]);
        if let Some(found) = self.live.find(hash, |a| *a.octets == octets[..]) {
            return Some(found.clone());
        }
        if self.live.len() >= self.sweep_at {
            self.live.retain(|a| Arc::strong_count(&a.0) > 1);
            self.sweep_at = Self::SWEEP_MIN.max(self.live.len() + self.live.len() / 2);
        }
        let octets: Box<[u8]> = self.scratch[..].into();
        let attrs = Attrs(Arc::new(Entry { rank: self.rank(set), bandwidth: bandwidth::of(set), octets }));
        let hasher = &self.hasher;
        self.live.insert_unique(hash, attrs.clone(), |a| hasher.hash_one(&a.octets[..]));
        Some(attrs)
    }

    /// Another LOCAL_PREF of normal routes. True if ranks depend on it: they do from here on, and every set in use must
    /// be interned again.
    pub fn set_normal(&mut self, normal: u32) -> bool {
        let old = std::mem::replace(&mut self.normal, normal);
        let other = old != normal && (self.classic.is_some() || old.max(normal) >= CLASSIC_SCALE_END);
        if other {
            self.live = HashTable::new();
            self.sweep_at = Self::SWEEP_MIN;
        }
        other
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
            // 0 is the least on either scale (RFC 8326).
            Some(_) if raw == 0 => 0,
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
            long_lived: set.communities.contains(&LLGR_STALE),
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
        let (a, b) = (i.intern(&set(1), Some(hop)).unwrap(), i.intern(&set(1), Some(hop)).unwrap());
        assert_eq!(a, b);
        assert_ne!(a, i.intern(&set(1), None).unwrap());
        assert_ne!(a, i.intern(&set(2), Some(hop)).unwrap());
        assert_eq!(i.len(), 3);
    }

    proptest::proptest! {
        /// Whatever was interned comes back, and is written with NEXT_HOP in its place as the codec writes it.
        #[test]
        fn what_is_kept_is_the_set(asns in proptest::collection::vec(1u32..u32::MAX, 0..70), med: Option<u32>, communities in proptest::collection::btree_set(0u32.., 0..80), v6: bool) {
            let hop = if v6 {
                NextHop::V6 { global: "fd00::1".parse().unwrap(), link_local: Some("fe80::1".parse().unwrap()) }
            } else {
                NextHop::V4(Ipv4Addr::new(10, 1, 2, 3))
            };
            let set = AttrSet {
                as_path: crate::wire::AsPath::sequence(asns),
                med,
                local_pref: Some(5),
                communities: communities.into_iter().collect(),
                ..AttrSet::default()
            };
            let attrs = Interner::new(&SpeakerConfig::new(1, Ipv4Addr::LOCALHOST)).intern(&set, Some(hop)).unwrap();
            proptest::prop_assert_eq!(attrs.set(), set.clone());
            proptest::prop_assert_eq!(attrs.next_hop(), Some(hop));
            let classic = Some(Ipv4Addr::new(10, 9, 9, 9));
            for cx in [KEPT, WireCx { four_octet_as: false, ..KEPT }] {
                let (mut ours, mut codec) = (BytesMut::new(), BytesMut::new());
                attrs.emit(classic, &cx, &mut ours).unwrap();
                encode_attrs(&set, classic, &cx, &mut codec).unwrap();
                proptest::prop_assert_eq!(ours, codec);
            }
        }
    }

    #[test]
    fn memory_follows_what_is_in_use_and_not_what_was() {
        let mut i = Interner::new(&SpeakerConfig::new(1, Ipv4Addr::LOCALHOST));
        let kept: Vec<Attrs> = (0..100).map(|n| i.intern(&set(n), None).unwrap()).collect();
        for n in 1_000..101_000 {
            drop(i.intern(&set(n), None));
        }
        assert!(i.len() <= 1_025, "{}", i.len());
        assert!(kept.iter().zip(0..).all(|(a, n)| *a == i.intern(&set(n), None).unwrap()));
    }

    #[test]
    fn both_scales_of_local_pref_meet_at_their_normal_value() {
        let mut i = Interner::new(&SpeakerConfig::new(1, Ipv4Addr::LOCALHOST));
        let mut pref = |p| {
            let r = i.intern(&AttrSet { local_pref: Some(p), ..AttrSet::default() }, None).unwrap().rank;
            (r.pref, r.elevated)
        };
        let normal = SpeakerConfig::NORMAL_LOCAL_PREF;
        assert_eq!(pref(100), pref(normal));
        assert!(pref(200).0 > pref(100).0 && pref(50).0 < pref(100).0);
        assert!(pref(normal + 512) > pref(normal));
        assert!(pref(normal + 512).1 && !pref(200).1 && !pref(normal).1);
    }
}
