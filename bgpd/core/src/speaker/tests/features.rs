//! Settings of a neighbor, one by one: shutdown and its text, prefix limits, dynamic ranges, draining, policy, AS numbers.

use super::*;

fn sent_notification(b: &Bench) -> Notification {
    let mut sent = b.out.iter().filter_map(|o| match o {
        Output::Send { message: Message::Notification(n), .. } => Some(n.clone()),
        _ => None,
    });
    sent.next_back().unwrap()
}

/// Externals 2 and 3 with their own ASes.
fn two(change: impl Fn(u8, &mut PeerConfig)) -> Bench {
    let peers = [2, 3].map(|n| {
        let mut c = neighbor(n, 65_000 + u32::from(n));
        change(n, &mut c);
        c
    });
    let mut b = Bench::new(peers.to_vec());
    b.establish(2, open(2, 65_002));
    b.establish(3, open(3, 65_003));
    b.pull(2);
    b.pull(3);
    b
}

fn paths(updates: &[Update]) -> Vec<AsPath> {
    updates.iter().filter_map(|u| u.attributes.as_ref()).map(|a| a.as_path.clone()).collect()
}

#[test]
fn a_neighbor_shut_down_by_its_settings_is_told_why_and_turned_away() {
    let mut b = two(|_, _| {});
    let mut list: Vec<PeerConfig> = [2, 3].map(|n| neighbor(n, 65_000 + u32::from(n))).to_vec();
    list[0].session.shutdown = Some("maintenance".into());
    b.input(Input::SetPeers(list.clone()));
    assert_eq!(sent_notification(&b).to_string(), "6/2 cease: administrative shutdown \"maintenance\"");
    assert_eq!((b.state(2), b.state(3)), (StateKind::Idle, StateKind::Established));
    b.out.clear();
    b.connect(2);
    assert_eq!(b.notifications(), [(6, 5)], "connection rejected");
    let id = b.s.peers().next().unwrap().id;
    b.input(Input::Clear { peer: id, how: Clear::Reset });
    assert_eq!(b.state(2), StateKind::Idle, "clear does not undo the settings");
    list[0].session.shutdown = None;
    b.input(Input::SetPeers(list));
    b.establish(2, open(2, 65_002));
}

#[test]
fn every_cease_subcode_is_sent_where_it_applies() {
    // 3 and 6: taken out of the settings, and settings that need another session.
    let mut b = two(|_, _| {});
    let changed = PeerConfig { hold_time: 30, ..neighbor(3, 65_003) };
    b.out.clear();
    b.input(Input::SetPeers(vec![changed]));
    assert_eq!(b.notifications(), [(6, 3), (6, 6)]);
    // 4, with the configured text.
    let mut b = two(|_, c| c.session.farewell = "see you".into());
    let id = b.s.peers().next().unwrap().id;
    b.input(Input::Clear { peer: id, how: Clear::Reset });
    assert_eq!(sent_notification(&b).to_string(), "6/4 cease: administrative reset \"see you\"");
    // 7: a second connection of an established neighbor.
    let mut b = two(|_, _| {});
    b.out.clear();
    let local = SocketAddr::new(ip(1), 179);
    b.input(Input::Accepted {
        conn: ConnId(99),
        local,
        remote: SocketAddr::new(ip(2), 40_001),
        interface: None,
    });
    assert_eq!(b.notifications(), [(6, 7)]);
    // 2: shutdown of the speaker.
    b.out.clear();
    b.input(Input::Shutdown);
    assert_eq!(b.notifications(), [(6, 2), (6, 2)]);
    // 8: more paths of all peers than we want to hold. (1: prefix limits below; 5: above.)
    let mut b = two(|_, _| {});
    b.s.cfg.max_paths = 1;
    b.message(2, announce(2, &["10.2.0.0/24"], via(&[65_002])));
    b.message(3, announce(3, &["10.3.0.0/24"], via(&[65_003])));
    assert_eq!(b.notifications().last(), Some(&(6, 8)));
    assert_eq!(b.state(2), StateKind::Established);
}

#[test]
fn prefix_limits_warn_then_act_as_told() {
    for (action, state, back) in [
        (PrefixAction::Warn, StateKind::Established, None),
        (PrefixAction::Restart(0), StateKind::Idle, Some(1_500)),
        (PrefixAction::Restart(120), StateKind::Idle, Some(120_000)),
        (PrefixAction::StayDown, StateKind::Idle, None),
    ] {
        let mut b = two(|_, c| {
            c.session.prefixes.family[Family::Ipv4Unicast] = Some(4);
            c.session.prefixes.warn_at = 75;
            c.session.prefixes.action = action;
        });
        b.message(2, announce(2, &["10.2.0.0/24", "10.2.1.0/24"], via(&[65_002])));
        assert!(!b.events().iter().any(|e| e.contains("Warning")));
        b.message(2, announce(2, &["10.2.2.0/24"], via(&[65_002])));
        b.message(2, announce(2, &["10.2.3.0/24"], via(&[65_002])));
        let warned = b.events().iter().filter(|e| e.contains("3 prefixes, the limit is 4")).count();
        assert_eq!(warned, 1, "once, {:?}", b.events());
        b.out.clear();
        b.message(2, announce(2, &["10.2.4.0/24"], via(&[65_002])));
        assert_eq!(b.state(2), state, "{action:?}");
        if action == PrefixAction::Warn {
            continue;
        }
        let n = sent_notification(&b);
        assert_eq!((n.code, n.subcode, &n.data[..]), (6, 1, &[0, 1, 1, 0, 0, 0, 4][..]));
        assert_eq!(b.s.rib(None).count(), 0);
        b.wait(back.unwrap_or(10_000_000) - 1_000);
        assert_eq!(b.state(2), StateKind::Idle, "{action:?}");
        if back.is_some() {
            b.wait(1_000);
            assert_eq!(b.state(2), StateKind::Active, "{action:?}");
        } else {
            let id = b.s.peers().next().unwrap().id;
            b.input(Input::Clear { peer: id, how: Clear::Reset });
            b.establish(2, open(2, 65_002));
        }
    }
}

fn range(max: u32, asn: u32) -> DynamicPeers {
    DynamicPeers { name: "rack".into(), range: net("10.0.0.0/24"), template: neighbor(9, asn), max }
}

fn guests(b: &Bench) -> Vec<(String, u32)> {
    b.s.peers().filter(|p| p.kind == DYNAMIC).map(|p| (p.name, p.asn)).collect()
}

#[test]
fn whoever_connects_from_a_range_becomes_a_neighbor_and_is_forgotten_afterwards() {
    let mut b = Bench::new(vec![neighbor(2, AS)]);
    b.input(Input::SetDynamic(vec![range(2, 0)]));
    b.establish(5, open(5, 65_005));
    b.establish(6, open(6, 65_006));
    b.establish(2, open(2, AS));
    assert_eq!(guests(&b), [("rack-10.0.0.5".into(), 65_005), ("rack-10.0.0.6".into(), 65_006)]);
    b.message(5, announce(5, &["10.5.0.0/24"], via(&[65_005])));
    assert_eq!(b.told(6), [net("10.5.0.0/24")]);
    // The range is full.
    b.out.clear();
    b.connect(7);
    assert_eq!(b.notifications(), [(6, 5)]);
    // Settings of listed neighbors do not touch guests; theirs do.
    b.input(Input::SetPeers(vec![neighbor(2, AS), neighbor(3, AS)]));
    assert_eq!(b.state(5), StateKind::Established);
    b.input(Input::Disconnected { conn: conn(5), reason: DownReason::Closed("reset".into()) });
    assert_eq!(guests(&b).len(), 1);
    assert_eq!(b.s.rib(None).count(), 0);
    // Its place and its number are free again.
    let numbers = b.s.next_peer;
    for _ in 0..50 {
        b.establish(7, open(7, 65_007));
        b.input(Input::Disconnected { conn: conn(7), reason: DownReason::Closed("reset".into()) });
    }
    assert!(b.s.next_peer <= numbers + 1, "{}", b.s.next_peer);
    b.input(Input::SetDynamic(vec![]));
    assert_eq!(guests(&b), []);
    assert_eq!(b.state(2), StateKind::Established);
}

#[test]
fn a_guest_of_the_wrong_as_is_refused_and_kept_only_for_its_back_off() {
    let mut b = Bench::new(vec![]);
    b.input(Input::SetDynamic(vec![range(10, 65_005)]));
    b.connect(6);
    b.message(6, Message::Open(open(6, 65_006)));
    assert_eq!(b.notifications(), [(2, 2)]);
    assert_eq!(b.state(6), StateKind::Idle);
    b.wait(1_000);
    assert_eq!(guests(&b), []);
    b.establish(5, open(5, 65_005));
}

#[test]
fn guests_of_a_range_within_a_range_do_not_count_in_the_other() {
    let mut b = Bench::new(vec![]);
    let inner = DynamicPeers { name: "inner".into(), range: net("10.0.0.0/29"), ..range(2, AS) };
    b.input(Input::SetDynamic(vec![range(1, AS), inner]));
    for n in [5, 6, 9] {
        b.establish(n, open(n, AS));
    }
    assert_eq!(guests(&b).len(), 3);
    for n in [7, 10] {
        b.out.clear();
        b.connect(n);
        assert_eq!(b.notifications(), [(6, 5)], "{n}: its range is full");
    }
}

#[test]
fn a_limit_that_becomes_lower_than_what_is_there_acts_at_once() {
    for (action, state) in [
        (PrefixAction::Warn, StateKind::Established),
        (PrefixAction::Restart(120), StateKind::Idle),
        (PrefixAction::StayDown, StateKind::Idle),
    ] {
        let peers = |limit| {
            [2, 3].map(|n| {
                let mut cfg = neighbor(n, 65_000 + u32::from(n));
                cfg.max_prefixes = limit;
                cfg.session.prefixes.action = action;
                cfg
            })
        };
        let mut b = Bench::new(peers(9).to_vec());
        b.establish(2, open(2, 65_002));
        b.establish(3, open(3, 65_003));
        b.message(2, announce(2, &["10.2.0.0/24", "10.2.1.0/24"], via(&[65_002])));
        b.message(3, announce(3, &["10.3.0.0/24"], via(&[65_003])));
        b.out.clear();
        b.input(Input::SetPeers(peers(1).to_vec()));
        assert_eq!((b.state(2), b.state(3)), (state, StateKind::Established), "{action:?}");
        if action == PrefixAction::Warn {
            assert!(b.events().iter().any(|e| e.contains("2 prefixes, the limit is 1")), "{:?}", b.events());
        } else {
            assert_eq!(b.notifications(), [(6, 1)]);
        }
    }
}

#[test]
fn a_neighbor_with_too_many_paths_to_one_prefix_is_dismissed_whatever_its_limits_say() {
    let mut cfg = neighbor(2, AS);
    cfg.add_path.receive = true;
    cfg.session.prefixes.action = PrefixAction::Warn;
    let mut b = Bench::new(vec![cfg, neighbor(3, AS)]);
    let mut with = open(2, AS);
    with.capabilities.push(Capability::AddPath(vec![(1, 1, 2)]));
    b.establish(2, with);
    b.establish(3, open(3, AS));
    let most = u32::try_from(crate::rib::MAX_PATHS).unwrap();
    let under = |ids: std::ops::RangeInclusive<u32>| {
        let prefix = "10.2.0.0/24".parse().unwrap();
        let list = ids.map(|path_id| Nlri { prefix, path_id }).collect();
        Message::Update(Update {
            attributes: Some(ibgp()),
            reach: vec![Reach { next_hop: NextHop::V4([10, 0, 0, 2].into()), prefixes: Prefixes::V4(list) }],
            ..Update::default()
        })
    };
    b.message(2, under(1..=most));
    assert_eq!(b.notifications(), []);
    b.message(2, under(1..=most + 1));
    assert_eq!(b.notifications(), [(6, 1)]);
    let error = b.s.peers().find(|p| p.address == ip(2)).unwrap().last_error.unwrap();
    assert!(error.contains("more than 256 paths to 10.2.0.0/24"), "{error}");
    assert_eq!((b.s.rib(None).count(), b.state(3)), (0, StateKind::Established));
}

#[test]
fn a_range_that_is_shut_down_lets_nobody_in() {
    let mut b = Bench::new(vec![]);
    let mut shut = range(10, AS);
    shut.template.session.shutdown = Some("maintenance".into());
    b.input(Input::SetDynamic(vec![shut.clone()]));
    b.connect(5);
    assert_eq!(b.notifications(), [(6, 5)], "as one that is listed and shut down");
    assert!(b.events().iter().any(|e| e.contains("the range is shut down")), "{:?}", b.events());
    assert_eq!(guests(&b), []);
    // Who is in already is told why, and stays out.
    b.input(Input::SetDynamic(vec![range(10, AS)]));
    b.establish(5, open(5, AS));
    b.out.clear();
    b.input(Input::SetDynamic(vec![shut]));
    assert_eq!(sent_notification(&b).to_string(), "6/2 cease: administrative shutdown \"maintenance\"");
    assert_eq!(guests(&b), []);
    b.out.clear();
    b.connect(5);
    assert_eq!(b.notifications(), [(6, 5)]);
}

#[test]
fn a_guest_with_too_many_prefixes_stays_down_until_it_is_cleared() {
    let mut b = Bench::new(vec![]);
    let limited = |limit| {
        let mut range = range(2, AS);
        range.template.session.prefixes.family[Family::Ipv4Unicast] = Some(limit);
        range.template.session.prefixes.action = PrefixAction::StayDown;
        range
    };
    b.input(Input::SetDynamic(vec![limited(1)]));
    let too_much = |b: &mut Bench, n| {
        b.establish(n, open(n, AS));
        b.message(n, announce(n, &["10.5.0.0/24", "10.5.1.0/24"], ibgp()));
        assert_eq!((b.state(n), guests(b).len()), (StateKind::Idle, 1));
    };
    too_much(&mut b, 5);
    for _ in 0..3 {
        b.wait(600_000);
        b.out.clear();
        b.connect(5);
        assert_eq!(b.notifications(), [(6, 5)]);
    }
    // It takes up one place of the range, and the others can be had.
    b.establish(6, open(6, AS));
    b.input(Input::Disconnected { conn: conn(6), reason: DownReason::Closed("reset".into()) });
    // What is said again changes nothing.
    b.input(Input::SetDynamic(vec![limited(1)]));
    assert_eq!((b.state(5), guests(&b).len()), (StateKind::Idle, 1));
    let id = b.s.peers().next().unwrap().id;
    b.input(Input::Clear { peer: id, how: Clear::Reset });
    assert_eq!(guests(&b), [], "it is forgotten until it comes back");
    too_much(&mut b, 5);
    b.input(Input::SetDynamic(vec![limited(9)]));
    b.establish(5, open(5, AS));
    b.input(Input::SetDynamic(vec![]));
    assert_eq!(guests(&b), []);
}

#[test]
fn a_guest_that_restarts_gracefully_keeps_its_place_and_routes() {
    let mut b = Bench::new(vec![]);
    b.input(Input::SetDynamic(vec![range(10, AS)]));
    let mut o = open(5, AS);
    o.capabilities.push(Capability::GracefulRestart {
        restarting: false,
        notification: false,
        restart_time: 60,
        families: vec![crate::wire::GrFamily { afi: 1, safi: 1, forwarding_preserved: true }],
    });
    b.establish(5, o.clone());
    b.message(5, announce(5, &["10.5.0.0/24"], ibgp()));
    b.input(Input::Disconnected { conn: conn(5), reason: DownReason::Closed("reset".into()) });
    assert_eq!((guests(&b).len(), b.s.rib(None).count()), (1, 1));
    b.establish(5, o);
    assert_eq!(b.s.rib(None).count(), 1);
    b.input(Input::Disconnected { conn: conn(5), reason: DownReason::Closed("reset".into()) });
    b.wait(60_000);
    assert_eq!((guests(&b).len(), b.s.rib(None).count()), (0, 0));
}

#[test]
fn draining_tells_everybody_and_internal_peers_with_local_pref_0() {
    let mut b = Bench::new(vec![neighbor(2, AS), neighbor(3, 65_003)]);
    b.input(Input::SetLocalRoutes(vec![LocalRoute {
        prefix: net("10.1.0.0/24"),
        next_hop: None,
        attributes: AttrSet::default(),
    }]));
    b.establish(2, open(2, AS));
    b.establish(3, open(3, 65_003));
    b.pull(2);
    b.pull(3);
    b.input(Input::Drain);
    for (n, pref) in [(2, Some(0)), (3, None)] {
        let sent = b.pull(n);
        let set = sent[0].attributes.as_ref().unwrap();
        assert_eq!((&set.communities[..], set.local_pref), (&[GRACEFUL_SHUTDOWN][..], pref));
        assert_eq!(b.state(n), StateKind::Established);
    }
}

#[test]
fn a_route_of_somebody_who_leaves_is_the_last_choice() {
    for (honour, best) in [(None, "via 3"), (Some(false), "via 2")] {
        let mut b = two(|_, c| c.attributes.honour_shutdown = honour);
        let leaving = AttrSet { communities: smallvec::smallvec![GRACEFUL_SHUTDOWN], ..via(&[65_002]) };
        b.message(2, announce(2, &["10.9.0.0/24"], leaving));
        b.message(3, announce(3, &["10.9.0.0/24"], via(&[65_003, 1, 2, 3])));
        let by = b.s.rib(None).position(|p| p.best).unwrap();
        assert_eq!(["via 2", "via 3"][by], best);
    }
    // Not from inside the AS, unless asked for: there LOCAL_PREF says it.
    let mut b = Bench::new(vec![neighbor(2, AS)]);
    b.establish(2, open(2, AS));
    let set = AttrSet { communities: smallvec::smallvec![GRACEFUL_SHUTDOWN], ..ibgp() };
    b.message(2, announce(2, &["10.9.0.0/24"], set));
    assert_eq!(b.s.rib(None).next().unwrap().attributes.local_pref, Some(100));
}

#[test]
fn external_peers_without_policy_give_and_get_nothing_where_rfc_8212_is_on() {
    let mut b = two(|n, c| c.attributes.require_policy = n == 3);
    assert!(b.events().iter().any(|e| e.contains("RFC 8212")), "said aloud");
    b.message(2, announce(2, &["10.2.0.0/24"], via(&[65_002])));
    b.message(3, announce(3, &["10.3.0.0/24"], via(&[65_003])));
    assert!(b.told(3).is_empty() && b.told(2).is_empty());
    assert_eq!(b.why("10.3.0.0/24"), ["there is no policy for this external peer (RFC 8212)"]);
    let why = |b: &Bench| match b.s.export(PeerId(1), net("10.2.0.0/24")) {
        Some(crate::rib::Export::Withheld(why)) => why.to_string(),
        other => format!("{other:?}"),
    };
    assert!(why(&b).starts_with("no policy for this external peer (RFC 8212)"), "{}", why(&b));
    // Nor of what is kept only because its peer is long gone.
    let mut b = two(|_, _| {});
    let stale = AttrSet { communities: [LLGR_STALE].into_iter().collect(), ..via(&[65_002]) };
    b.message(2, announce(2, &["10.2.0.0/24"], stale));
    assert!(why(&b).contains("RFC 9494"), "{}", why(&b));
    // Internal peers need none.
    let mut inside = neighbor(2, AS);
    inside.attributes.require_policy = true;
    let mut b = Bench::new(vec![inside]);
    b.establish(2, open(2, AS));
    b.message(2, announce(2, &["10.2.0.0/24"], ibgp()));
    assert_eq!(b.why("10.2.0.0/24"), ["best"]);
}

#[test]
fn import_options_are_applied_by_asking_again_and_not_by_a_reset() {
    let mut b = two(|n, c| c.attributes.require_policy = n == 2);
    b.message(2, announce(2, &["10.2.0.0/24"], via(&[65_002])));
    assert_eq!(b.told(3), []);
    b.out.clear();
    b.input(Input::SetPeers([2, 3].map(|n| neighbor(n, 65_000 + u32::from(n))).to_vec()));
    assert_eq!(b.notifications(), []);
    let asked = b
        .out
        .iter()
        .any(|o| matches!(o, Output::Send { conn: c, message: Message::RouteRefresh(_) } if *c == conn(2)));
    assert!(asked);
    b.message(2, announce(2, &["10.2.0.0/24"], via(&[65_002])));
    assert_eq!(b.told(3), [net("10.2.0.0/24")]);
}

#[test]
fn an_external_path_begins_with_the_peers_as_where_that_is_asked_for_and_is_never_empty() {
    for (enforce, other) in
        [(true, "the AS_PATH does not begin with the peer's AS (enforceFirstAS)"), (false, "best")]
    {
        let mut b = two(|_, c| c.attributes.enforce_first_as = enforce);
        let known = ["10.2.0.0/24"];
        b.message(2, announce(2, &known, via(&[65_002, 7])));
        assert_eq!(b.told(3), [net("10.2.0.0/24")]);
        let mut usable = true;
        for (path, why) in [
            (&[7, 65_002][..], other),
            (&[], "the AS_PATH of an external peer is empty"),
            (&[65_002], "best"),
        ] {
            b.message(2, announce(2, &known, via(path)));
            assert_eq!(b.why("10.2.0.0/24"), [why], "{path:?}");
            let withdrawn = b.pull(3).iter().any(|u| !u.withdrawn.is_empty());
            let was = std::mem::replace(&mut usable, why == "best");
            assert_eq!(withdrawn, was && !usable, "{path:?}");
        }
    }
    // Inside the AS a path is empty where the route begins.
    let mut inside = neighbor(2, AS);
    inside.attributes.enforce_first_as = true;
    let mut b = Bench::new(vec![inside]);
    b.establish(2, open(2, AS));
    b.message(2, announce(2, &["10.2.0.0/24"], ibgp()));
    assert_eq!(b.why("10.2.0.0/24"), ["best"]);
}

#[test]
fn as_override_private_numbers_and_local_as() {
    let mut b = two(|n, c| c.attributes.as_override = n == 3);
    b.message(2, announce(2, &["10.2.0.0/24"], via(&[65_002, 65_003, 7])));
    assert_eq!(paths(&b.pull(3)), [AsPath::sequence([AS, 65_002, AS, 7])]);

    let mut b = two(|n, c| c.attributes.remove_private = n == 3);
    b.message(2, announce(2, &["10.2.0.0/24"], via(&[65_002, 64_600, 7])));
    assert_eq!(paths(&b.pull(3)), [AsPath::sequence([AS, 7])]);

    // The AS we present to 3 stands alone, or with our own behind it; what 3 sends may carry it, too.
    for (show, prepend) in [(false, false), (true, true)] {
        let mut b = two(|n, c| {
            if n == 3 {
                c.local_asn = Some(64_999);
                c.attributes.local_as_show_own = show;
                c.attributes.local_as_prepend = prepend;
            }
        });
        b.message(2, announce(2, &["10.2.0.0/24"], via(&[65_002])));
        let out: &[u32] = if show { &[64_999, AS, 65_002] } else { &[64_999, 65_002] };
        assert_eq!(paths(&b.pull(3)), [AsPath::sequence(out.iter().copied())]);
        b.message(3, announce(3, &["10.3.0.0/24"], via(&[65_003])));
        let back: &[u32] = if prepend { &[AS, 64_999, 65_003] } else { &[AS, 65_003] };
        assert_eq!(paths(&b.pull(2)), [AsPath::sequence(back.iter().copied())]);
    }
}

#[test]
fn a_link_local_neighbor_needs_an_interface() {
    let mut cfg = PeerConfig::new("ll", "fe80::2".parse().unwrap(), AS);
    let mut b = Bench::new(vec![cfg.clone()]);
    assert!(b.events().iter().any(|e| e.contains("needs an interface")));
    cfg.session.interface = Some("eth0".into());
    b.input(Input::SetPeers(vec![cfg]));
    assert!(b.out.iter().any(|o| matches!(o, Output::Dial { interface: Some(i), .. } if i == "eth0")));
}
