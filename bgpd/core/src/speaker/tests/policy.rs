//! Import and export policy through a speaker: applied, named, and changed without touching the session.

use super::*;
use crate::policy::{
    Action, Community, Compare, Direction, Filter, Operation, Policy, PrefixMatch, Rule,
    priority_to_local_pref,
};

fn inside(prefix: &str, action: Action) -> Rule {
    let prefix = Some(PrefixMatch { net: net(prefix), compare: Compare::In, min: None, max: None });
    Rule { prefix, ..Rule::new(action) }
}

fn policy(direction: Direction, v4: Vec<Rule>) -> Policy {
    Policy::from(vec![Filter { name: "f".into(), direction, v4, v6: vec![] }])
}

fn configured(n: u8, import: Vec<Rule>, export: Vec<Rule>) -> PeerConfig {
    let mut cfg = neighbor(n, 65_000 + u32::from(n));
    cfg.import = policy(Direction::Import, import);
    cfg.export.filters = policy(Direction::Export, export);
    cfg
}

fn up(peers: Vec<PeerConfig>) -> Bench {
    let mut b = Bench::new(peers.clone());
    for p in peers {
        let IpAddr::V4(a) = p.address else { unreachable!() };
        let n = a.octets()[3];
        b.establish(n, open(n, p.asn));
        b.pull(n);
    }
    b.out.clear();
    b
}

#[test]
fn what_an_import_rule_rejects_is_kept_with_the_rules_name() {
    let rules = vec![inside("10.1.0.0/16", Action::Accept), inside("10.0.0.0/8", Action::Reject)];
    let mut b = up(vec![configured(2, rules, vec![])]);
    b.message(2, announce(2, &["10.1.1.0/24", "10.2.0.0/16", "192.168.0.0/16"], via(&[65_002])));
    assert_eq!(b.fib(), [(net("10.1.1.0/24"), vec![ip(2)]), (net("192.168.0.0/16"), vec![ip(2)])]);
    assert_eq!(b.why("10.2.0.0/16"), ["rejected by filter f importV4[1]"]);
    assert_eq!(b.s.peers().next().unwrap().routes.0[0].received, 3);
}

#[test]
fn another_import_policy_holds_for_what_is_kept_while_the_neighbor_restarts() {
    let all = |rules: Vec<Rule>| vec![configured(2, rules, vec![]), configured(3, vec![], vec![])];
    let restartable = || {
        let mut o = open(2, 65_002);
        o.capabilities.push(Capability::GracefulRestart {
            restarting: false,
            notification: false,
            restart_time: 60,
            families: vec![crate::wire::GrFamily { afi: 1, safi: 1, forwarding_preserved: true }],
        });
        o
    };
    let kept = |peers: Vec<PeerConfig>| {
        let mut b = Bench::new(peers);
        b.establish(2, restartable());
        b.establish(3, open(3, 65_003));
        b.message(2, announce(2, &["10.1.0.0/16", "10.2.0.0/16"], via(&[65_002])));
        b.input(Input::Disconnected { conn: conn(2), reason: DownReason::Closed("reset".into()) });
        assert_eq!((b.fib().len(), b.told(3).len()), (2, 2));
        b
    };
    let mut b = kept(all(vec![]));
    b.input(Input::SetPeers(all(vec![inside("10.1.0.0/16", Action::Reject)])));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![])]);
    assert_eq!(b.why("10.1.0.0/16"), ["rejected by filter f importV4[0]"]);
    // It can be taken back, and what is kept is still only kept.
    b.input(Input::SetPeers(all(vec![])));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![ip(2)])]);
    b.wait(60_000);
    assert_eq!(b.s.rib(None).count(), 0);
    // Closed for want of a policy (RFC 8212): nobody can be asked again.
    let closed = |rules: Vec<Rule>| {
        let none = rules.is_empty();
        let mut all = all(rules);
        all[0].attributes.require_policy = true;
        if none {
            all[0].import = Policy::default();
        }
        all
    };
    let mut b = kept(closed(vec![inside("10.0.0.0/8", Action::Accept)]));
    b.input(Input::SetPeers(closed(vec![])));
    assert_eq!((b.fib().len(), b.s.rib(None).count()), (2, 0));
    b.establish(2, restartable());
}

#[test]
fn another_import_policy_makes_nothing_fresh_of_a_long_lived_stale_route() {
    let tag = |value| {
        let operations = vec![Operation::AddCommunity(Community::Standard(value))];
        let mut two = configured(2, vec![Rule { operations, ..Rule::new(Action::Accept) }], vec![]);
        two.session.long_lived = 600;
        vec![two, neighbor(3, 65_003), neighbor(4, AS)]
    };
    let mut b = Bench::new(tag(20));
    let mut leaves = open(2, 65_002);
    leaves.capabilities.push(Capability::GracefulRestart {
        restarting: false,
        notification: false,
        restart_time: 1,
        families: vec![crate::wire::GrFamily { afi: 1, safi: 1, forwarding_preserved: true }],
    });
    leaves.capabilities.push(Capability::LongLivedGracefulRestart(vec![(1, 1, 0x80, 600)]));
    b.establish(2, leaves);
    b.establish(3, open(3, 65_003));
    b.establish(4, open(4, AS));
    b.message(2, announce(2, &["10.1.0.0/16"], via(&[65_002])));
    assert_eq!((b.told(3).len(), b.told(4).len()), (1, 1));
    b.input(Input::Disconnected { conn: conn(2), reason: DownReason::Closed("reset".into()) });
    b.wait(1_000);
    assert_eq!(b.pull(3)[0].withdrawn.len(), 1, "it does not know such routes");
    assert_eq!(b.pull(4)[0].attributes.as_ref().unwrap().local_pref, Some(0));
    for value in [30, 40] {
        b.input(Input::SetPeers(tag(value)));
        assert!(b.pull(3).is_empty());
        let sent = b.pull(4);
        let set = sent[0].attributes.as_ref().unwrap();
        assert_eq!((set.local_pref, set.communities.contains(&value)), (Some(0), true));
        let set = b.s.rib(None).next().unwrap().attributes;
        assert_eq!(set.communities[..], [value, LLGR_STALE]);
    }
    // The last resort still.
    b.message(4, announce(4, &["10.1.0.0/16"], AttrSet { local_pref: Some(1), ..via(&[1, 2, 3]) }));
    assert_eq!(b.why("10.1.0.0/16"), ["long-lived stale", "best"]);
}

#[test]
fn another_import_policy_judges_what_was_received_again_from_what_was_received() {
    let prefer = |priority| {
        let operations = vec![
            Operation::SetPriority(priority),
            Operation::AddCommunity(Community::Standard(priority)),
            Operation::PrependAsPath(vec![65_002]),
        ];
        vec![Rule { operations, ..inside("10.1.0.0/16", Action::Accept) }]
    };
    let mut b = up(vec![configured(2, prefer(900), vec![]), configured(3, vec![], vec![])]);
    let received = ["10.1.0.0/16", "10.2.0.0/16"];
    b.message(2, announce(2, &received, via(&[65_002])));
    assert_eq!(b.fib().len(), 2);
    let at = |b: &Bench, p: &str| b.s.rib(Some(net(p))).next().unwrap().attributes;
    let set = at(&b, "10.1.0.0/16");
    assert_eq!(set.local_pref, Some(priority_to_local_pref(900)));
    assert_eq!((set.communities[..].to_vec(), set.as_path), (vec![900], AsPath::sequence([65_002, 65_002])));
    assert!(at(&b, "10.2.0.0/16").communities.is_empty());
    b.pull(3);
    // Operations do not pile up: they start from what the peer sent.
    b.input(Input::SetPeers(vec![configured(2, prefer(800), vec![]), configured(3, vec![], vec![])]));
    let set = at(&b, "10.1.0.0/16");
    assert_eq!((set.communities[..].to_vec(), set.as_path), (vec![800], AsPath::sequence([65_002, 65_002])));
    assert_eq!(b.pull(3).len(), 1, "only what changed is told");
    let reject = vec![inside("10.1.0.0/16", Action::Reject)];
    b.input(Input::SetPeers(vec![configured(2, reject, vec![]), configured(3, vec![], vec![])]));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![])]);
    assert_eq!(b.why("10.1.0.0/16"), ["rejected by filter f importV4[0]"]);
    b.input(Input::SetPeers(vec![neighbor(2, 65_002), configured(3, vec![], vec![])]));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![ip(2)])]);
    let set = at(&b, "10.1.0.0/16");
    assert_eq!(
        (set.local_pref, set.communities.len(), set.as_path),
        (Some(100), 0, AsPath::sequence([65_002]))
    );
    assert_eq!((b.state(2), b.notifications()), (StateKind::Established, vec![]));
}

#[test]
fn withdrawn_routes_leave_nothing_of_their_policy_behind() {
    let add = vec![Rule {
        operations: vec![Operation::AddCommunity(Community::Standard(1))],
        ..Rule::new(Action::Accept)
    }];
    let mut b = up(vec![configured(2, add, vec![])]);
    b.message(2, announce(2, &["10.1.0.0/16"], via(&[65_002])));
    b.message(2, withdraw(&["10.1.0.0/16"]));
    b.input(Input::SetPeers(vec![neighbor(2, 65_002)]));
    b.fib();
    b.message(2, announce(2, &["10.1.0.0/16"], via(&[65_002, 7])));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![ip(2)])]);
    let set = b.s.rib(None).next().unwrap().attributes;
    assert_eq!((set.communities.len(), set.as_path), (0, AsPath::sequence([65_002, 7])));
}

#[test]
fn an_export_policy_has_the_last_word_and_changes_without_the_session() {
    let tag = |n| vec![Operation::AddCommunity(Community::Standard(n))];
    let rules = |n| {
        vec![
            inside("10.9.0.0/16", Action::Reject),
            Rule { operations: tag(n), learnt: true, ..inside("10.0.0.0/8", Action::Accept) },
        ]
    };
    let with = |n| {
        let mut cfg = configured(3, vec![], rules(n));
        // Without a rule nothing learnt would go out.
        cfg.export.allow = Some(vec![]);
        vec![configured(2, vec![], vec![]), cfg]
    };
    let mut b = up(with(1));
    b.message(2, announce(2, &["10.1.0.0/16", "10.9.1.0/24", "192.168.0.0/16"], via(&[65_002])));
    let told = b.pull(3);
    let [u] = &told[..] else { panic!("{told:?}") };
    assert_eq!(u.attributes.as_ref().unwrap().communities[..], [1]);
    assert_eq!(u.attributes.as_ref().unwrap().as_path, AsPath::sequence([AS, 65_002]));
    b.input(Input::SetPeers(with(2)));
    let told = b.pull(3);
    let [u] = &told[..] else { panic!("{told:?}") };
    assert_eq!(u.attributes.as_ref().unwrap().communities[..], [2]);
    let mut closed = with(2);
    closed[1].export.filters = policy(Direction::Export, vec![Rule::new(Action::Reject)]);
    b.input(Input::SetPeers(closed));
    let told = b.pull(3);
    assert_eq!(told.iter().map(|u| u.withdrawn.len()).sum::<usize>(), 1, "{told:?}");
    assert_eq!((b.state(3), b.notifications()), (StateKind::Established, vec![]));
}

#[test]
fn rules_for_export_look_at_the_device_and_follow_it_without_the_session() {
    let by_device = Rule { interface: Some("eth*".into()), ..Rule::new(Action::Accept) };
    let export = vec![by_device, Rule::new(Action::Reject)];
    let mut b = up(vec![configured(2, vec![], vec![]), configured(3, vec![], export)]);
    b.message(2, announce(2, &["10.1.0.0/16"], via(&[65_002])));
    assert_eq!(b.pull(3).len(), 0, "not known: no device");
    let device = |name: &str| Input::SetDevices([(ip(2), name.to_owned())].into());
    b.input(device("eth1"));
    let told = b.pull(3);
    assert_eq!(told.iter().map(|u| u.reach.len()).sum::<usize>(), 1, "{told:?}");
    b.input(device("eth7"));
    assert_eq!(b.pull(3).len(), 0, "the same answer is not told again");
    b.input(device("tun0"));
    let told = b.pull(3);
    assert_eq!(told.iter().map(|u| u.withdrawn.len()).sum::<usize>(), 1, "{told:?}");
    assert_eq!((b.state(3), b.notifications()), (StateKind::Established, vec![]));
}

#[test]
fn rules_for_import_wait_for_the_device_and_follow_it_without_the_session() {
    let by_device = Rule { interface: Some("eth*".into()), ..Rule::new(Action::Accept) };
    let import = || vec![by_device.clone(), Rule::new(Action::Reject)];
    let mut b = up(vec![configured(2, import(), vec![]), configured(3, vec![], vec![])]);
    let devices = |all: &[(u8, &str)]| {
        Input::SetDevices(all.iter().map(|(n, name)| (ip(*n), (*name).to_owned())).collect())
    };
    // A speaker whose driver knows of no devices: the rule matches nothing.
    b.message(2, announce(2, &["10.1.0.0/16"], via(&[65_002])));
    assert!(!b.out.iter().any(|o| matches!(o, Output::Locate(_) | Output::Fib(_))), "{:?}", b.out);
    assert_eq!(b.why("10.1.0.0/16"), ["rejected by filter f importV4[1]"]);

    let mut b = Bench::new(vec![configured(2, import(), vec![]), configured(3, vec![], vec![])]);
    b.input(devices(&[]));
    for n in [2, 3] {
        b.establish(n, open(n, 65_000 + u32::from(n)));
        b.pull(n);
    }
    b.out.clear();
    b.message(2, announce(2, &["10.1.0.0/16", "10.2.0.0/16"], via(&[65_002])));
    let asked: Vec<_> = b.out.iter().filter(|o| matches!(o, Output::Locate(_) | Output::Fib(_))).collect();
    assert_eq!(asked, [&Output::Locate(ip(2))], "once for all routes, which are neither used nor refused");
    assert!(b.why("10.1.0.0/16")[0].contains("is not known"), "{:?}", b.why("10.1.0.0/16"));
    b.input(devices(&[(2, "eth1")]));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![ip(2)]), (net("10.2.0.0/16"), vec![ip(2)])]);
    assert_eq!(b.pull(3).iter().map(|u| u.reach.len()).sum::<usize>(), 1);
    // What is said of other next hops changes nothing.
    b.input(devices(&[(2, "eth1"), (3, "tun0")]));
    assert_eq!(b.fib(), []);
    b.input(devices(&[(2, "tun0")]));
    assert_eq!(b.fib(), [(net("10.1.0.0/16"), vec![]), (net("10.2.0.0/16"), vec![])]);
    assert_eq!(b.why("10.1.0.0/16"), ["rejected by filter f importV4[1]"]);
    b.message(2, announce(2, &["10.3.0.0/16"], via(&[65_002])));
    assert_eq!(b.why("10.3.0.0/16"), ["rejected by filter f importV4[1]"]);
    // Behind no device any more: nobody knows; and back.
    b.input(devices(&[]));
    assert!(b.why("10.3.0.0/16")[0].contains("is not known"), "{:?}", b.why("10.3.0.0/16"));
    b.input(devices(&[(2, "eth7")]));
    assert!(!b.out.contains(&Output::Locate(ip(2))), "the driver watches it");
    assert_eq!(b.fib().len(), 3);
    assert_eq!((b.state(2), b.notifications()), (StateKind::Established, vec![]));
}

#[test]
fn communities_by_prefix_go_onto_everything_that_no_rule_let_out() {
    let tags = |communities: &[u32]| {
        let all = PrefixTags { prefix: net("10.0.0.0/8"), communities: vec![9], ..PrefixTags::default() };
        let some = PrefixTags {
            prefix: net("10.1.0.0/16"),
            communities: communities.to_vec(),
            large_communities: vec![(1, 2, 3)],
        };
        Tags::from(vec![all, some])
    };
    let no_export = 0xFFFF_FF01;
    let peers = |communities: &[u32]| {
        let operations = vec![Operation::AddCommunity(Community::Standard(5))];
        let accept = Rule { operations, ..inside("10.1.7.0/24", Action::Accept) };
        let mut to = configured(3, vec![], vec![accept]);
        to.export.tags = tags(communities);
        vec![configured(2, vec![], vec![]), to]
    };
    let mut b = up(peers(&[7, 8]));
    b.input(Input::SetLocalRoutes(vec![LocalRoute {
        prefix: net("10.1.1.0/24"),
        next_hop: None,
        attributes: AttrSet::default(),
    }]));
    // Those with the same attributes and other prefixes one after the other: an answer is for its prefix.
    let had = AttrSet { communities: [8].into_iter().collect(), ..via(&[65_002]) };
    b.message(
        2,
        announce(2, &["10.1.2.0/24", "10.2.0.0/24", "10.1.7.0/24", "192.0.2.0/24", "10.1.3.0/24"], had),
    );
    let told = |b: &mut Bench| -> BTreeMap<IpNet, (Vec<u32>, usize)> {
        let updates = b.pull(3);
        let each = updates.iter().filter_map(|u| Some((u, u.attributes.as_ref()?)));
        each.flat_map(|(u, a)| {
            let nets = u.reach.iter().flat_map(|r| match &r.prefixes {
                Prefixes::V4(l) => l.iter().map(|n| IpNet::V4(n.prefix)).collect::<Vec<_>>(),
                Prefixes::V6(_) => vec![],
            });
            nets.map(|n| (n, (a.communities.to_vec(), a.large_communities.len()))).collect::<Vec<_>>()
        })
        .collect()
    };
    let want = |list: &[(&str, &[u32], usize)]| -> BTreeMap<IpNet, (Vec<u32>, usize)> {
        list.iter().map(|(p, c, large)| (net(p), (c.to_vec(), *large))).collect()
    };
    let out = told(&mut b);
    assert_eq!(
        out,
        want(&[
            ("10.1.1.0/24", &[7, 8, 9], 1),
            ("10.1.2.0/24", &[7, 8, 9], 1),
            ("10.1.3.0/24", &[7, 8, 9], 1),
            ("10.1.7.0/24", &[5, 8], 0),
            ("10.2.0.0/24", &[8, 9], 0),
            ("192.0.2.0/24", &[8], 0),
        ])
    );
    // Others: said again where they differ. What is added is for the neighbor to obey, not for us.
    b.out.clear();
    b.input(Input::SetPeers(peers(&[no_export])));
    assert_eq!(b.notifications(), []);
    assert_eq!(
        told(&mut b),
        want(&[
            ("10.1.1.0/24", &[9, no_export], 1),
            ("10.1.2.0/24", &[8, 9, no_export], 1),
            ("10.1.3.0/24", &[8, 9, no_export], 1),
        ])
    );
}
