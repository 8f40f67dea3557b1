//! Routes through a speaker: which are used, what forwarding is told, what neighbors are told.

use super::*;
use crate::wire::{RouteRefresh, Segment, SegmentKind};

fn strs(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

fn two() -> Bench {
    let mut b = Bench::new(vec![neighbor(2, AS), neighbor(3, AS), neighbor(4, 65_000)]);
    b.establish(2, open(2, AS));
    b.establish(3, open(3, AS));
    b.establish(4, open(4, 65_000));
    for n in 2..5 {
        b.pull(n);
    }
    b.out.clear();
    b
}

#[test]
fn announcements_replace_and_withdrawals_remove_and_repeats_do_nothing() {
    let mut b = two();
    b.message(2, announce(2, &["10.1.0.0/16"], ibgp()));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![ip(2)])]);
    b.message(2, announce(2, &["10.1.0.0/16"], ibgp()));
    assert_eq!(b.fib(), []);
    b.message(3, announce(3, &["10.1.0.0/16"], AttrSet { local_pref: Some(200), ..ibgp() }));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![ip(3)])]);
    b.message(3, announce(3, &["10.1.0.0/16"], AttrSet { local_pref: Some(50), ..ibgp() }));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![ip(2)])]);
    b.message(2, withdraw(&["10.1.0.0/16", "10.9.0.0/16"]));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![ip(3)])]);
    b.message(2, withdraw(&["10.1.0.0/16"]));
    assert_eq!(b.fib(), []);
    assert_eq!(b.s.prefixes(Family::Ipv4Unicast), 1);
    b.message(3, withdraw(&["10.1.0.0/16"]));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![])]);
    // Also while it waits to be swept; and it is one again when it comes back.
    assert_eq!(b.s.prefixes(Family::Ipv4Unicast), 0);
    b.message(3, announce(3, &["10.1.0.0/16", "10.2.0.0/16"], ibgp()));
    assert_eq!(b.s.prefixes(Family::Ipv4Unicast), 2);
    b.input(Input::Disconnected { conn: conn(3), reason: DownReason::Closed("gone".into()) });
    assert_eq!(b.s.prefixes(Family::Ipv4Unicast), b.s.rib.paths(None).count());
}

#[test]
fn many_are_withdrawn_in_any_order_and_with_strangers_among_them() {
    let mut b = two();
    let all: Vec<String> = (0..100).map(|n| format!("10.1.{n}.0/24")).collect();
    let strange: Vec<String> = (0..100).map(|n| format!("10.2.{n}.0/24")).collect();
    b.message(2, announce(2, &strs(&all), ibgp()));
    b.fib();
    let mixed: Vec<String> =
        all[..70].iter().rev().zip(&strange).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    b.message(2, withdraw(&strs(&mixed)));
    let gone = b.fib();
    assert_eq!(gone.len(), 70);
    assert!(gone.iter().all(|(p, hops)| hops.is_empty() && all[..70].contains(&p.to_string())));
    b.message(2, withdraw(&strs(&all)));
    assert_eq!(b.fib().len(), 30);
    assert_eq!(b.s.rib.paths(None).count(), 0);
}

#[test]
fn forwarding_is_not_told_where_nobody_wants_it_and_routes_are_the_same() {
    let mut b = two();
    b.s.tell_forwarding(false);
    b.message(2, announce(2, &["10.1.0.0/16", "10.2.0.0/16"], ibgp()));
    b.message(2, withdraw(&["10.2.0.0/16"]));
    assert_eq!(b.fib(), []);
    assert_eq!(b.pull(4).iter().flat_map(|u| &u.reach).count(), 1);
    // From now on, and only what changes.
    b.s.tell_forwarding(true);
    b.message(3, announce(3, &["10.1.0.0/16"], AttrSet { local_pref: Some(200), ..ibgp() }));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![ip(3)])]);
    b.message(3, withdraw(&["10.1.0.0/16"]));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![ip(2)])]);
}

#[test]
fn the_shortest_and_longest_prefixes_and_overlaps_are_prefixes_like_others() {
    let mut b = two();
    let all = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.0.1/32", "128.0.0.0/1"];
    b.message(2, announce(2, &all, ibgp()));
    assert_eq!(b.fib().len(), 5);
    b.message(2, withdraw(&["10.0.0.0/8"]));
    assert_eq!(b.fib(), [(net("10.0.0.0/8"), vec![])]);
}

#[test]
fn prefixes_of_no_unicast_network_are_prefixes_like_others() {
    let mut b = two();
    let all = ["224.0.0.0/4", "127.0.0.0/8", "255.255.255.255/32", "10.1.0.0/16"];
    b.message(2, announce(2, &all, ibgp()));
    assert_eq!(b.fib().len(), 4);
    assert_eq!(b.state(2), StateKind::Established);
}

#[test]
fn a_prefix_withdrawn_and_announced_in_one_update_is_announced() {
    let mut b = two();
    let Message::Update(mut u) = announce(2, &["10.1.0.0/16"], ibgp()) else { unreachable!() };
    let Message::Update(w) = withdraw(&["10.1.0.0/16"]) else { unreachable!() };
    u.withdrawn = w.withdrawn;
    b.message(2, Message::Update(u));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![ip(2)])]);
}

#[test]
fn loops_are_kept_out_and_named() {
    let mut b = two();
    b.message(4, announce(4, &["10.1.0.0/16"], via(&[65_000, AS])));
    let mut in_set = via(&[65_000]);
    in_set.as_path.0.push(Segment { kind: SegmentKind::Set, asns: smallvec::smallvec![7, AS] });
    b.message(4, announce(4, &["10.2.0.0/16"], in_set));
    let own = AttrSet { originator_id: Some([10, 0, 0, 1].into()), ..ibgp() };
    b.message(2, announce(2, &["10.3.0.0/16"], own));
    let cluster = AttrSet {
        originator_id: Some([10, 0, 0, 9].into()),
        cluster_list: smallvec::smallvec![[10, 0, 0, 1].into()],
        ..ibgp()
    };
    b.message(2, announce(2, &["10.4.0.0/16"], cluster.clone()));
    b.message(2, announce(1, &["10.5.0.0/16"], ibgp()));
    assert_eq!(b.fib(), []);
    assert_eq!(b.why("10.1.0.0/16"), ["our AS is in the AS_PATH"]);
    assert_eq!(b.why("10.2.0.0/16"), ["our AS is in the AS_PATH"]);
    assert_eq!(b.why("10.3.0.0/16"), ["the ORIGINATOR_ID is ours"]);
    assert_eq!(b.why("10.4.0.0/16"), ["our cluster is in the CLUSTER_LIST"]);
    assert_eq!(b.why("10.5.0.0/16"), ["the next hop is our own address"]);
    assert!((2..5).all(|n| b.told(n).is_empty()));
    // From outside these attributes mean nothing, even if they are ours.
    b.message(4, announce(4, &["10.6.0.0/16"], AttrSet { as_path: AsPath::sequence([65_000]), ..cluster }));
    assert_eq!(b.fib().len(), 1);
    // A usable route that becomes a loop is gone.
    b.message(4, announce(4, &["10.6.0.0/16"], via(&[65_000, AS])));
    assert_eq!(b.fib(), [(net("10.6.0.0/16"), vec![])]);
}

#[test]
fn our_as_may_occur_as_often_as_is_allowed() {
    let mut cfg = neighbor(2, 65_000);
    cfg.allow_own_as = 1;
    let mut b = Bench::new(vec![cfg]);
    b.establish(2, open(2, 65_000));
    b.message(2, announce(2, &["10.1.0.0/16"], via(&[65_000, AS])));
    b.message(2, announce(2, &["10.2.0.0/16"], via(&[65_000, AS, AS])));
    assert_eq!(b.why("10.1.0.0/16"), ["best"]);
    assert_eq!(b.why("10.2.0.0/16"), ["our AS is in the AS_PATH"]);
}

#[test]
fn next_hops_the_kernel_cannot_reach_are_not_used_until_it_can() {
    let mut b = two();
    b.message(2, announce(2, &["10.1.0.0/16"], AttrSet { local_pref: Some(200), ..ibgp() }));
    b.message(3, announce(3, &["10.1.0.0/16"], ibgp()));
    b.fib();
    b.input(Input::NextHop { address: ip(2), cost: None });
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![ip(3)])]);
    assert_eq!(b.why("10.1.0.0/16"), ["the next hop is unreachable", "best"]);
    b.input(Input::NextHop { address: ip(3), cost: None });
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![])]);
    b.input(Input::NextHop { address: ip(2), cost: Some(7) });
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![ip(2)])]);
}

#[test]
fn own_routes_hide_learned_ones_from_forwarding() {
    let mut b = two();
    b.message(2, announce(2, &["10.1.0.0/16"], ibgp()));
    b.fib();
    let own = LocalRoute { prefix: net("10.1.0.0/16"), next_hop: None, attributes: AttrSet::default() };
    b.input(Input::SetLocalRoutes(vec![own]));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![])]);
    assert_eq!(b.why("10.1.0.0/16"), ["an own route is preferred", "best"]);
    b.input(Input::SetLocalRoutes(vec![]));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![ip(2)])]);
}

#[test]
fn an_own_route_is_told_with_our_address_and_calicos_preference() {
    let mut b = two();
    let own = LocalRoute { prefix: net("10.1.0.0/26"), next_hop: None, attributes: AttrSet::default() };
    b.input(Input::SetLocalRoutes(vec![own]));
    let pending = b.out.iter().filter(|o| matches!(o, Output::Pending { .. })).count();
    assert_eq!(pending, 3);
    let [u] = &b.pull(2)[..] else { panic!() };
    assert_eq!(u.reach[0].next_hop.ip(), ip(1));
    assert_eq!(u.attributes.as_ref().unwrap().local_pref, Some(2_147_482_623));
    let [u] = &b.pull(4)[..] else { panic!() };
    assert_eq!(u.attributes.as_ref().unwrap().local_pref, None);
    assert_eq!(u.attributes.as_ref().unwrap().as_path, AsPath::sequence([AS]));
}

#[test]
fn learned_routes_go_where_they_may() {
    let mut b = two();
    b.message(2, announce(2, &["10.1.0.0/16"], ibgp()));
    assert_eq!(b.told(2), [], "not back");
    assert_eq!(b.told(3), [], "not from iBGP to iBGP");
    assert_eq!(b.told(4), [net("10.1.0.0/16")]);
    b.message(4, announce(4, &["10.2.0.0/16"], via(&[65_000])));
    assert_eq!(b.told(2), [net("10.2.0.0/16")]);
    assert_eq!(b.told(3), [net("10.2.0.0/16")]);
    assert_eq!(b.told(4), []);
    // Split horizon moves with the best path: 3 becomes the source, is told no longer, and 2 is told now.
    let better = AttrSet { local_pref: Some(300), ..ibgp() };
    b.message(3, announce(3, &["10.1.0.0/16"], better));
    let told = b.pull(4);
    assert_eq!(
        told.iter().map(|u| u.reach.len()).sum::<usize>(),
        0,
        "the same as before for an external peer"
    );
}

#[test]
fn a_route_refresh_is_answered_in_full() {
    let mut b = two();
    b.message(4, announce(4, &["10.1.0.0/16", "10.2.0.0/16"], via(&[65_000])));
    assert_eq!(b.told(2).len(), 2);
    b.message(2, Message::RouteRefresh(RouteRefresh { afi: 1, safi: 1, subtype: 0 }));
    assert_eq!(b.told(2).len(), 2);
    for (afi, safi, subtype) in [(2, 1, 0), (1, 1, 1), (1, 1, 2), (77, 9, 0)] {
        b.message(2, Message::RouteRefresh(RouteRefresh { afi, safi, subtype }));
        assert_eq!(b.told(2), []);
    }
    assert_eq!(b.state(2), StateKind::Established);
}

#[test]
fn more_prefixes_than_allowed_end_the_session_and_name_the_limit() {
    let mut cfg = neighbor(2, AS);
    cfg.max_prefixes = 2;
    let mut b = Bench::new(vec![cfg]);
    b.establish(2, open(2, AS));
    b.message(2, announce(2, &["10.1.0.0/16", "10.2.0.0/16"], ibgp()));
    assert_eq!(b.state(2), StateKind::Established);
    b.message(2, announce(2, &["10.3.0.0/16"], ibgp()));
    assert_eq!(b.notifications(), [(6, 1)]);
    assert_eq!(b.s.rib(None).count(), 0);
}

#[test]
fn a_family_that_was_not_agreed_on_is_ignored() {
    let mut b = two();
    let prefix = "fd00::/64".parse().unwrap();
    b.message(
        2,
        Message::Update(Update {
            attributes: Some(ibgp()),
            reach: vec![Reach {
                next_hop: NextHop::V6 { global: "fd00::2".parse().unwrap(), link_local: None },
                prefixes: Prefixes::V6(vec![Nlri { prefix, path_id: 0 }]),
            }],
            ..Update::default()
        }),
    );
    assert_eq!(b.s.rib(None).count(), 0);
    assert_eq!(b.state(2), StateKind::Established);
}

#[test]
fn ipv6_sessions_carry_ipv6_routes() {
    let six = |n: u8| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]);
    let mut cfg = PeerConfig::new("six", six(2), AS);
    cfg.passive = true;
    let mut b = Bench::new(vec![cfg]);
    let own = LocalRoute { prefix: net("fd01::/122"), next_hop: None, attributes: AttrSet::default() };
    b.input(Input::SetLocalRoutes(vec![own]));
    let (local, remote) = (SocketAddr::new(six(1), 179), SocketAddr::new(six(2), 40_000));
    b.input(Input::Accepted { conn: conn(2), local, remote, interface: None });
    let o = Open { capabilities: vec![Capability::MultiProtocol { afi: 2, safi: 1 }], ..open(2, AS) };
    // Without the capability a 2-octet AS; ours fits.
    b.message(2, Message::Open(o));
    b.message(2, Message::Keepalive);
    let told = b.pull(2);
    assert_eq!(told[0].reach[0].next_hop.ip(), six(1));
    assert_eq!(told[1].end_of_rib, Some(Family::Ipv6Unicast));
    b.message(
        2,
        Message::Update(Update {
            attributes: Some(ibgp()),
            reach: vec![Reach {
                next_hop: NextHop::V6 { global: "fd00::2".parse().unwrap(), link_local: None },
                prefixes: Prefixes::V6(vec![Nlri { prefix: "fd02::/122".parse().unwrap(), path_id: 0 }]),
            }],
            ..Update::default()
        }),
    );
    assert_eq!(b.fib(), [(net("fd02::/122"), vec![six(2)])]);
}

#[test]
fn in_sync_comes_once_after_the_first_routes_and_without_peers_at_once() {
    let count = |b: &Bench| b.out.iter().filter(|o| **o == Output::FibInSync).count();
    let b = Bench::new(vec![]);
    assert_eq!(count(&b), 1);
    assert!(b.s.converged());

    let mut b = Bench::new(vec![neighbor(2, AS)]);
    b.establish(2, open(2, AS));
    b.message(2, announce(2, &["10.1.0.0/16"], ibgp()));
    // It has no graceful restart and need not say when it is done: it is given three seconds.
    assert_eq!(count(&b), 0);
    b.wait(2_999);
    assert_eq!(count(&b), 0);
    b.wait(1);
    assert_eq!(count(&b), 1);
    let fib = b.out.iter().position(|o| matches!(o, Output::Fib(_)));
    assert!(fib < b.out.iter().position(|o| *o == Output::FibInSync));

    let mut b = Bench::new(vec![neighbor(2, AS)]);
    b.wait(9_999);
    assert_eq!(count(&b), 0);
    b.wait(1);
    assert_eq!(count(&b), 1, "nobody came within the settling time");
}
