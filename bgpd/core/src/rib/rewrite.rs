//! What a neighbor's settings do to attributes, beyond what the protocol asks for: on the way out ([`Rewrite`]) and on
//! the way in ([`Inward`]). RFC 8326 (graceful shutdown), 9494 (long-lived stale routes), 8212 (no policy, no routes),
//! 6996 (private AS numbers).

use crate::{
    speaker::{GRACEFUL_SHUTDOWN, LLGR_STALE},
    wire::{AttrSet, Segment, SegmentKind},
};

/// RFC 1997.
const NO_EXPORT: u32 = 0xFFFF_FF01;

/// Treatment of routes towards a neighbor; part of what makes a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rewrite {
    /// The AS whose place ours takes in AS_PATH.
    pub override_as: Option<u32>,
    /// Private AS numbers go.
    pub remove_private: bool,
    /// Our other AS, to be seen behind the one we present.
    pub show_as: Option<u32>,
    /// The neighbor knows long-lived stale routes.
    pub long_lived: bool,
    /// We are leaving.
    pub draining: bool,
    /// LOCAL_PREF of the default route that is originated; none of the RIB is sent then.
    pub default_route: Option<u32>,
    /// There is no policy, so nothing is sent.
    pub closed: bool,
}

/// Treatment of routes of a neighbor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Inward {
    /// Its AS, if AS_PATH must begin with it.
    pub first_as: Option<u32>,
    /// Put in front of AS_PATH.
    pub prepend: Option<u32>,
    /// GRACEFUL_SHUTDOWN means LOCAL_PREF 0.
    pub honour_shutdown: bool,
    /// There is no policy, so nothing is accepted.
    pub closed: bool,
}

impl Rewrite {
    /// Whether a route with these attributes may be sent at all.
    pub(super) fn permits(&self, set: &AttrSet, ibgp: bool) -> bool {
        !self.closed && (ibgp || self.long_lived || !set.communities.contains(&LLGR_STALE))
    }

    /// AS_PATH as an external neighbor may see it, before our own AS is put in front.
    pub(super) fn path(&self, set: &mut AttrSet, ours: u32) {
        if self.override_as.is_none() && !self.remove_private && self.show_as.is_none() {
            return;
        }
        for segment in &mut set.as_path.0 {
            if self.remove_private {
                segment.asns.retain(|asn| !is_private(*asn));
            }
            for asn in segment.asns.iter_mut().filter(|asn| Some(**asn) == self.override_as) {
                *asn = ours;
            }
        }
        set.as_path.0.retain(|s| !s.asns.is_empty());
        if let Some(own) = self.show_as {
            prepend(set, own);
        }
    }

    /// What is said about the route itself.
    pub(crate) fn preference(&self, set: &mut AttrSet, ibgp: bool) {
        if self.draining {
            add(set, GRACEFUL_SHUTDOWN);
        }
        // RFC 9494 section 4.6: a neighbor that does not know them must neither prefer nor pass them on.
        let unknown = ibgp && !self.long_lived && set.communities.contains(&LLGR_STALE);
        if unknown {
            add(set, NO_EXPORT);
        }
        if ibgp && (self.draining || unknown) {
            set.local_pref = Some(0);
        }
    }
}

impl Inward {
    /// Changes what came in. LOCAL_PREF is set by then.
    pub(super) fn apply(&self, set: &mut AttrSet) {
        if self.honour_shutdown && set.communities.contains(&GRACEFUL_SHUTDOWN) {
            set.local_pref = Some(0);
        }
        if let Some(asn) = self.prepend {
            prepend(set, asn);
        }
    }
}

/// RFC 6996.
const fn is_private(asn: u32) -> bool {
    matches!(asn, 64_512..=65_534 | 4_200_000_000..=4_294_967_294)
}

/// Adds a community, keeping them sorted and unique.
pub(super) fn add(set: &mut AttrSet, community: u32) {
    if let Err(at) = set.communities.binary_search(&community) {
        set.communities.insert(at, community);
    }
}

/// An AS in front (RFC 4271 section 5.1.2); what is inside a confederation is not for others (RFC 5065).
pub(super) fn prepend(set: &mut AttrSet, asn: u32) {
    let path = &mut set.as_path.0;
    path.retain(|s| matches!(s.kind, SegmentKind::Sequence | SegmentKind::Set));
    match path.first_mut() {
        // A segment holds at most 255 numbers on the wire.
        Some(first) if first.kind == SegmentKind::Sequence && first.asns.len() < 255 => {
            first.asns.insert(0, asn);
        }
        Some(_) | None => {
            path.insert(0, Segment { kind: SegmentKind::Sequence, asns: smallvec::smallvec![asn] });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::AsPath;

    fn set(path: &[u32], communities: &[u32]) -> AttrSet {
        AttrSet {
            as_path: AsPath::sequence(path.iter().copied()),
            communities: communities.iter().copied().collect(),
            local_pref: Some(100),
            ..AttrSet::default()
        }
    }

    #[test]
    fn as_override_replaces_the_neighbors_as_everywhere() {
        let r = Rewrite { override_as: Some(7), ..Rewrite::default() };
        let mut s = set(&[7, 8, 7], &[]);
        r.path(&mut s, 1);
        assert_eq!(s.as_path, AsPath::sequence([1, 8, 1]));
    }

    #[test]
    fn private_numbers_go_of_both_lengths_and_segments_left_empty_too() {
        let r = Rewrite { remove_private: true, ..Rewrite::default() };
        let mut s = set(&[64_511, 64_512, 65_534, 65_535, 4_200_000_000, 4_294_967_294, 4_294_967_295], &[]);
        r.path(&mut s, 1);
        assert_eq!(s.as_path, AsPath::sequence([64_511, 65_535, 4_294_967_295]));
        let mut s = set(&[65_000], &[]);
        r.path(&mut s, 1);
        assert!(s.as_path.0.is_empty());
    }

    #[test]
    fn a_local_as_can_be_seen_in_front_of_our_own() {
        let r = Rewrite { show_as: Some(64_512), ..Rewrite::default() };
        let mut s = set(&[9], &[]);
        r.path(&mut s, 1);
        prepend(&mut s, 1);
        assert_eq!(s.as_path, AsPath::sequence([1, 64_512, 9]));
    }

    #[test]
    fn leaving_is_said_to_everybody_and_with_local_pref_inside() {
        let r = Rewrite { draining: true, ..Rewrite::default() };
        for (ibgp, pref) in [(true, Some(0)), (false, Some(100))] {
            let mut s = set(&[9], &[5, 0xFFFF_FF02]);
            r.preference(&mut s, ibgp);
            assert_eq!(s.communities[..], [5, GRACEFUL_SHUTDOWN, 0xFFFF_FF02]);
            assert_eq!(s.local_pref, pref);
        }
    }

    #[test]
    fn long_lived_stale_routes_go_only_where_they_are_known_or_stay_inside() {
        let known = Rewrite { long_lived: true, ..Rewrite::default() };
        let stale = set(&[9], &[LLGR_STALE]);
        assert!(known.permits(&stale, false) && known.permits(&stale, true));
        assert!(!Rewrite::default().permits(&stale, false) && Rewrite::default().permits(&stale, true));
        let mut s = stale.clone();
        known.preference(&mut s, true);
        assert_eq!(s, stale);
        Rewrite::default().preference(&mut s, true);
        assert_eq!((s.local_pref, &s.communities[..]), (Some(0), &[LLGR_STALE, NO_EXPORT][..]));
    }

    #[test]
    fn graceful_shutdown_is_honoured_where_it_is_to_be() {
        for (honour_shutdown, pref) in [(true, 0), (false, 100)] {
            let mut s = set(&[9], &[GRACEFUL_SHUTDOWN]);
            Inward { honour_shutdown, prepend: Some(3), ..Inward::default() }.apply(&mut s);
            assert_eq!((s.local_pref, s.as_path), (Some(pref), AsPath::sequence([3, 9])));
        }
    }
}
