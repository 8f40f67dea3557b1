//! One row for each step of the decision process, in every order of arrival; and laws for arbitrary paths.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use crate::{
    rib::{
        Attrs, DecisionCx, Interner, Invalid, LOCAL, NextHops, Path, PathFlags, Source, Sources, Step, decide,
    },
    speaker::{Multipath, PeerId, SpeakerConfig},
    wire::{AsPath, AttrSet, NextHop, Origin, Segment, SegmentKind},
};

/// A path in words; the rest is equal for all.
#[derive(Clone, Debug)]
struct P {
    peer: u32,
    router_id: u8,
    address: u8,
    ibgp: bool,
    bad: bool,
    pref: u32,
    as_path: Vec<u32>,
    as_set: Vec<u32>,
    origin: Origin,
    med: Option<u32>,
    hop: u8,
    originator: Option<u8>,
    clusters: u8,
    path_id: u32,
}

impl Default for P {
    fn default() -> Self {
        Self {
            peer: 0,
            router_id: 1,
            address: 1,
            ibgp: true,
            bad: false,
            pref: 100,
            as_path: vec![65_001],
            as_set: vec![],
            origin: Origin::Igp,
            med: None,
            hop: 1,
            originator: None,
            clusters: 0,
            path_id: 0,
        }
    }
}

/// The cost of next hop 10.1.0.n is n; that of 10.1.0.250 and above is infinite.
fn next_hops() -> NextHops {
    let mut h = NextHops::default();
    for n in 1..=255 {
        h.set(Ipv4Addr::new(10, 1, 0, n).into(), (n < 250).then_some(u32::from(n)));
    }
    h
}

fn build(ps: &[P]) -> (Vec<Path>, Sources) {
    let mut interner = Interner::new(&SpeakerConfig::new(64_512, Ipv4Addr::LOCALHOST));
    let mut sources = Sources::new(Ipv4Addr::LOCALHOST);
    let ip = |n| Ipv4Addr::new(10, 0, 0, n);
    let paths = ps
        .iter()
        .map(|p| {
            let peer = if p.peer == LOCAL.0 { LOCAL } else { PeerId(p.peer) };
            if peer != LOCAL {
                let address = IpAddr::V4(ip(p.address));
                sources
                    .set(peer, Source { ibgp: p.ibgp, client: false, router_id: ip(p.router_id), address });
            }
            let mut as_path = AsPath::sequence(p.as_path.iter().copied());
            if !p.as_set.is_empty() {
                as_path.0.push(Segment { kind: SegmentKind::Set, asns: p.as_set.iter().copied().collect() });
            }
            let set = AttrSet {
                origin: p.origin,
                as_path,
                med: p.med,
                local_pref: Some(p.pref),
                originator_id: p.originator.map(ip),
                cluster_list: (0..p.clusters).map(ip).collect(),
                ..AttrSet::default()
            };
            let hop = NextHop::V4(Ipv4Addr::new(10, 1, 0, p.hop));
            let attrs: Attrs = interner.intern(&set, Some(hop)).unwrap();
            Path {
                attrs,
                peer,
                path_id: p.path_id,
                flags: PathFlags { ebgp: !p.ibgp, ..PathFlags::default() },
                bad: p.bad.then_some(Invalid::AsLoop),
                lost: None,
            }
        })
        .collect();
    (paths, sources)
}

/// Decides; winners and losers by their place in `ps`, whatever the order they were given in.
fn outcome(ps: &[P], order: &[usize]) -> (Option<usize>, Vec<usize>, Vec<Option<Step>>) {
    let (paths, sources) = build(ps);
    let hops = next_hops();
    let cx = DecisionCx { sources: &sources, next_hops: &hops, multipath: Multipath::up_to(16) };
    let given: Vec<Path> = order.iter().map(|i| paths[*i].clone()).collect();
    let v = decide(&given, &cx);
    let mut lost = vec![None; ps.len()];
    for (at, l) in v.lost.iter().enumerate() {
        lost[order[at]] = *l;
    }
    let mut multipath: Vec<usize> = v.multipath.iter().map(|n| order[*n as usize]).collect();
    multipath.sort_unstable();
    (v.best.map(|n| order[n as usize]), multipath, lost)
}

/// The first is best; each other loses at the step named. In the order given, reversed and rotated.
#[track_caller]
fn row(ps: &[P], steps: &[Step]) {
    let straight: Vec<usize> = (0..ps.len()).collect();
    let mut orders = vec![straight.clone(), straight.iter().rev().copied().collect()];
    for n in 1..ps.len() {
        let mut o = straight.clone();
        o.rotate_left(n);
        orders.push(o);
    }
    for order in orders {
        let (best, _, lost) = outcome(ps, &order);
        assert_eq!(best, Some(0), "order {order:?}");
        assert_eq!(lost[0], None);
        let lost: Vec<Step> = lost[1..].iter().map(|l| l.expect("a loser has a reason")).collect();
        assert_eq!(lost, steps, "order {order:?}");
    }
}

fn p(peer: u32) -> P {
    P { peer, router_id: peer as u8 + 1, address: peer as u8 + 1, ..P::default() }
}

#[test]
fn validity() {
    row(
        &[P { pref: 1, ..p(0) }, P { bad: true, ..p(1) }, P { hop: 250, ..p(2) }],
        &[Step::Validity, Step::Validity],
    );
    let (best, multipath, lost) = outcome(&[P { bad: true, ..p(0) }], &[0]);
    assert_eq!((best, multipath, lost), (None, vec![], vec![Some(Step::Validity)]));
    let (best, _, _) = outcome(&[P { bad: true, ..p(0) }, P { hop: 255, ..p(1) }], &[0, 1]);
    assert_eq!(best, None);
}

#[test]
fn own_routes_win_except_against_elevated_priority() {
    let normal = SpeakerConfig::NORMAL_LOCAL_PREF;
    let own = P { as_path: vec![], pref: normal, ..p(LOCAL.0 - 1) };
    let own = P { peer: LOCAL.0, ..own };
    row(&[own.clone(), P { pref: 200, ..p(0) }, P { pref: normal, ..p(1) }], &[Step::Weight, Step::Weight]);
    row(&[P { pref: normal + 512, ..p(0) }, own.clone()], &[Step::Weight]);
    row(&[P { pref: normal + 600, ..own }, P { pref: normal + 512, ..p(0) }], &[Step::LocalPref]);
}

#[test]
fn local_pref() {
    row(
        &[P { pref: 101, as_path: vec![1, 2, 3], ..p(5) }, p(0), P { pref: 50, ..p(1) }],
        &[Step::LocalPref; 2],
    );
    // Both scales mean the same by "normal".
    row(&[p(0), P { pref: SpeakerConfig::NORMAL_LOCAL_PREF, ..p(1) }], &[Step::RouterId]);
}

#[test]
fn as_path_length_counts_a_set_once() {
    row(
        &[
            P { as_path: vec![1], as_set: vec![7, 8, 9], origin: Origin::Incomplete, ..p(5) },
            P { as_path: vec![1, 2, 3], ..p(0) },
        ],
        &[Step::AsPathLen],
    );
}

#[test]
fn origin() {
    row(
        &[
            P { med: Some(9), ..p(5) },
            P { origin: Origin::Egp, ..p(0) },
            P { origin: Origin::Incomplete, ..p(1) },
        ],
        &[Step::Origin, Step::Origin],
    );
}

#[test]
fn med_counts_inside_one_as_only_and_missing_is_zero() {
    row(&[P { ibgp: true, ..p(5) }, P { med: Some(1), ibgp: false, ..p(0) }], &[Step::Med]);
    row(&[P { med: Some(9), as_path: vec![1], ..p(0) }, P { as_path: vec![2], ..p(1) }], &[Step::RouterId]);
    // The classic trap of pairwise comparison: a beats b by MED, b beats c, c beats a.
    let a = P { as_path: vec![1], med: Some(10), router_id: 3, ..p(0) };
    let b = P { as_path: vec![1], med: Some(20), router_id: 1, ..p(1) };
    let c = P { as_path: vec![2], med: Some(99), router_id: 2, ..p(2) };
    row(&[c, a, b], &[Step::RouterId, Step::Med]);
}

#[test]
fn external_before_internal() {
    row(&[P { ibgp: false, hop: 9, ..p(5) }, p(0)], &[Step::External]);
}

#[test]
fn nearer_next_hop() {
    row(&[P { hop: 3, ..p(5) }, P { hop: 4, ..p(0) }], &[Step::IgpCost]);
}

#[test]
fn router_identifier_or_that_of_the_originator() {
    row(&[P { address: 9, ..p(0) }, p(1)], &[Step::RouterId]);
    row(&[P { originator: Some(1), clusters: 3, ..p(5) }, p(1)], &[Step::RouterId]);
}

#[test]
fn shorter_cluster_list() {
    row(
        &[P { originator: Some(7), clusters: 1, ..p(5) }, P { originator: Some(7), clusters: 2, ..p(0) }],
        &[Step::ClusterLen],
    );
}

#[test]
fn peer_address_and_at_last_path_identifier() {
    row(
        &[P { router_id: 7, address: 1, ..p(5) }, P { router_id: 7, address: 2, ..p(0) }],
        &[Step::PeerAddress],
    );
    row(&[P { path_id: 1, ..p(0) }, P { path_id: 2, ..p(0) }], &[Step::PathId]);
}

#[test]
fn what_is_equal_up_to_the_next_hop_is_used_together() {
    let ps = [p(0), p(1), P { hop: 2, ..p(2) }, P { originator: Some(200), ..p(3) }];
    let (best, multipath, lost) = outcome(&ps, &[0, 1, 2, 3]);
    assert_eq!(best, Some(0));
    assert_eq!(multipath, [0, 1, 3]);
    assert_eq!(lost, [None, Some(Step::RouterId), Some(Step::IgpCost), Some(Step::RouterId)]);
}

#[test]
fn the_number_of_paths_used_together_is_limited_and_the_best_is_among_them() {
    let ps: Vec<P> = (0..9).rev().map(p).collect();
    let (paths, sources) = build(&ps);
    let hops = next_hops();
    let v =
        decide(&paths, &DecisionCx { sources: &sources, next_hops: &hops, multipath: Multipath::up_to(3) });
    assert_eq!(v.best, Some(8));
    assert_eq!(v.multipath[..], [0, 1, 8]);
}

#[test]
fn external_and_internal_paths_have_limits_of_their_own_and_may_have_to_take_the_same_way() {
    let hops = next_hops();
    let of = |ps: &[P], multipath| {
        let (paths, sources) = build(ps);
        decide(&paths, &DecisionCx { sources: &sources, next_hops: &hops, multipath }).multipath.to_vec()
    };
    let inside: Vec<P> = (0..4).map(p).collect();
    let outside: Vec<P> = inside.iter().map(|p| P { ibgp: false, ..p.clone() }).collect();
    let limits = Multipath { ebgp: 3, ibgp: 2, same_as_path: false };
    assert_eq!((of(&inside, limits), of(&outside, limits)), (vec![0, 1], vec![0, 1, 2]));
    // 0 is no way to have no route at all.
    assert_eq!(of(&inside, Multipath::up_to(0)), [0]);

    let mut ways = outside;
    ways[1].as_path = vec![65_002];
    assert_eq!(of(&ways, Multipath::up_to(9)), [0, 1, 2, 3]);
    assert_eq!(of(&ways, Multipath { same_as_path: true, ..Multipath::up_to(9) }), [0, 2, 3]);
}

fn any_p() -> impl Strategy<Value = P> {
    let origin = prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)];
    (
        (0u8..3, 0u8..3, any::<bool>(), proptest::bool::weighted(0.1)),
        (
            prop_oneof![Just(100u32), Just(200), Just(SpeakerConfig::NORMAL_LOCAL_PREF)],
            1u32..3,
            0usize..3,
            origin,
        ),
        (proptest::option::of(0u32..3), 1u8..3, proptest::option::of(0u8..3), 0u8..3),
    )
        .prop_map(
            |(
                (router_id, address, ibgp, bad),
                (pref, asn, more, origin),
                (med, hop, originator, clusters),
            )| {
                let mut as_path = vec![asn];
                as_path.extend(std::iter::repeat_n(9, more));
                P {
                    router_id,
                    address,
                    ibgp,
                    bad,
                    pref,
                    as_path,
                    origin,
                    med,
                    hop,
                    originator,
                    clusters,
                    ..P::default()
                }
            },
        )
}

proptest! {
    #[test]
    fn the_order_of_arrival_does_not_matter(
        mut ps in proptest::collection::vec(any_p(), 1..9),
        shuffle in any::<proptest::sample::Index>(),
        reverse: bool,
    ) {
        for (n, p) in ps.iter_mut().enumerate() {
            p.peer = n as u32;
        }
        let straight: Vec<usize> = (0..ps.len()).collect();
        let mut other = straight.clone();
        other.rotate_left(shuffle.index(ps.len()));
        if reverse {
            other.reverse();
        }
        prop_assert_eq!(outcome(&ps, &straight), outcome(&ps, &other));
    }

    #[test]
    fn there_is_one_best_and_everybody_else_has_a_reason(mut ps in proptest::collection::vec(any_p(), 1..9)) {
        for (n, p) in ps.iter_mut().enumerate() {
            p.peer = n as u32;
        }
        let order: Vec<usize> = (0..ps.len()).collect();
        let (best, multipath, lost) = outcome(&ps, &order);
        prop_assert_eq!(best.is_none(), ps.iter().all(|p| p.bad));
        prop_assert_eq!(lost.iter().filter(|l| l.is_none()).count(), usize::from(best.is_some()));
        if let Some(best) = best {
            prop_assert_eq!(lost[best], None);
            prop_assert!(multipath.contains(&best));
            let beaten_early = |n: &usize| lost[*n].is_some_and(|s| s <= Step::IgpCost);
            prop_assert!(!multipath.iter().any(beaten_early));
        }
    }

    /// Taking away a path that lost never changes the best one, unless it lost to nobody but by MED, which is known
    /// not to be independent of irrelevant alternatives; so MEDs are left out.
    #[test]
    fn the_best_stays_best_when_a_loser_leaves(mut ps in proptest::collection::vec(any_p(), 2..9), which in any::<proptest::sample::Index>()) {
        for (n, p) in ps.iter_mut().enumerate() {
            p.peer = n as u32;
            p.med = None;
        }
        let order: Vec<usize> = (0..ps.len()).collect();
        let (best, _, _) = outcome(&ps, &order);
        let gone = which.index(ps.len());
        if Some(gone) != best {
            let left: Vec<usize> = order.into_iter().filter(|n| *n != gone).collect();
            let (paths, sources) = build(&ps);
            let hops = next_hops();
            let given: Vec<Path> = left.iter().map(|n| paths[*n].clone()).collect();
            let v = decide(&given, &DecisionCx { sources: &sources, next_hops: &hops, multipath: Multipath::up_to(16) });
            prop_assert_eq!(v.best.map(|n| left[n as usize]), best);
        }
    }
}
