//! Our address as a next hop of the family the session's own address is not of.

use super::*;
use crate::af::PerFamily;

fn both_families(own6: Option<&str>) -> PeerConfig {
    let mut cfg = neighbor(2, 65_002);
    cfg.families = Family::ALL.into();
    cfg.attributes.own_next_hop = PerFamily([None, own6.map(|a| a.parse().unwrap())]);
    cfg
}

fn bench(own6: Option<&str>) -> Bench {
    let mut b = Bench::new(vec![both_families(own6)]);
    let route =
        |prefix: &str| LocalRoute { prefix: net(prefix), next_hop: None, attributes: AttrSet::default() };
    b.input(Input::SetLocalRoutes(vec![route("10.1.0.0/24"), route("fd01::/64")]));
    let mut open = open(2, 65_002);
    open.capabilities.push(Capability::MultiProtocol { afi: 2, safi: 1 });
    b.establish(2, open);
    b
}

fn next_hops(b: &mut Bench) -> Vec<NextHop> {
    let mut all: Vec<NextHop> = b.pull(2).iter().flat_map(|u| &u.reach).map(|r| r.next_hop).collect();
    all.sort_by_key(|h| format!("{h:?}"));
    all
}

#[test]
fn ipv6_routes_go_over_an_ipv4_session_with_the_address_that_is_given() {
    let four = NextHop::V4([10, 0, 0, 1].into());
    let six = |a: &str| NextHop::V6 { global: a.parse().unwrap(), link_local: None };
    let mut b = bench(None);
    assert_eq!(next_hops(&mut b), [four], "no address to say for IPv6");
    let mut b = bench(Some("fd00::1"));
    assert_eq!(next_hops(&mut b), [four, six("fd00::1")]);
    // Another one: said again, on the same session.
    b.out.clear();
    b.input(Input::SetPeers(vec![both_families(Some("fd00::9"))]));
    assert_eq!(b.state(2), StateKind::Established);
    assert_eq!(next_hops(&mut b), [six("fd00::9")]);
    assert!(b.notifications().is_empty());
}

#[test]
fn a_route_by_our_own_address_is_not_used_whichever_family_it_is_of() {
    let mut b = bench(Some("fd00::1"));
    let by = |global: &str| {
        Message::Update(Update {
            attributes: Some(via(&[65_002])),
            reach: vec![Reach {
                next_hop: NextHop::V6 { global: global.parse().unwrap(), link_local: None },
                prefixes: Prefixes::V6(vec![Nlri { prefix: "fd02::/64".parse().unwrap(), path_id: 0 }]),
            }],
            ..Update::default()
        })
    };
    b.message(2, by("fd00::2"));
    assert_eq!(b.why("fd02::/64"), ["best"]);
    b.message(2, by("fd00::1"));
    assert_ne!(b.why("fd02::/64"), ["best"]);
}

#[test]
fn a_next_hop_on_a_link_is_not_passed_on_to_who_may_be_on_another() {
    let mut inside = PeerConfig { families: Family::ALL.into(), ..neighbor(3, AS) };
    inside.attributes.own_next_hop = PerFamily([None, Some("fd00::1".parse().unwrap())]);
    let both = |n, asn| {
        let mut open = open(n, asn);
        open.capabilities.push(Capability::MultiProtocol { afi: 2, safi: 1 });
        open
    };
    for policy in [NextHopPolicy::Auto, NextHopPolicy::Keep] {
        let mut b = Bench::new(vec![both_families(None), PeerConfig { next_hop: policy, ..inside.clone() }]);
        b.establish(2, both(2, 65_002));
        b.establish(3, both(3, AS));
        let link = Some("fe80::2".parse().unwrap());
        for (global, link_local, told) in
            [("fd00::2", link, "fd00::2"), ("fe80::2", None, "fd00::1"), ("fe80::2", link, "fd00::1")]
        {
            b.message(
                2,
                Message::Update(Update {
                    attributes: Some(via(&[65_002])),
                    reach: vec![Reach {
                        next_hop: NextHop::V6 { global: global.parse().unwrap(), link_local },
                        prefixes: Prefixes::V6(vec![Nlri {
                            prefix: "fd02::/64".parse().unwrap(),
                            path_id: 0,
                        }]),
                    }],
                    ..Update::default()
                }),
            );
            let hops: Vec<NextHop> = b.pull(3).iter().flat_map(|u| &u.reach).map(|r| r.next_hop).collect();
            // It was said already where only what is not passed on differs.
            assert!(hops.len() <= 1, "{hops:?}");
            for hop in hops {
                assert_eq!(hop, NextHop::V6 { global: told.parse().unwrap(), link_local: None });
            }
        }
    }
}
