//! Sets with thousands of members, and sets that somebody else's rule asks.

use brindle_felix_core::rules::{ir::Family, names};

use super::*;

/// Networks that nobody here belongs to.
fn crowd(n: u32) -> Vec<IpSetMember> {
    let net = |i: u32| IpAddr::from((0x0b00_0000 + i * 256).to_be_bytes());
    (0..n).map(|i| IpSetMember::Net(ipnet::IpNet::new(net(i), 25).unwrap())).collect()
}

fn nets(texts: &[&str]) -> Vec<IpSetMember> {
    texts.iter().map(|t| IpSetMember::Net(t.parse().unwrap())).collect()
}

fn asks(action: Action, set: &str) -> Rule {
    let mut r = rule(action);
    r.src.sets = vec![IpSetId(set.into())];
    r
}

fn delta(id: &str, added: Vec<IpSetMember>, removed: Vec<IpSetMember>) -> PolicyDelta {
    PolicyDelta::IpSetDelta(IpSetDelta { id: IpSetId(id.into()), added, removed })
}

fn whole(id: &str, members: Vec<IpSetMember>) -> PolicyDelta {
    let members = members.into_iter().collect();
    PolicyDelta::IpSet(IpSet { id: IpSetId(id.into()), kind: IpSetKind::Net, members })
}

/// Sends from pod 0, which is denied, and from pod 2, which is allowed, and each time waits for what is allowed. Nothing
/// answers, so that every datagram meets the rules.
fn ask_on<T: Send>(node: &Node, meanwhile: impl FnOnce() -> T + Send) -> T {
    let to = SocketAddr::new(node.pods[1].v4, 80);
    let socket = |i: usize| {
        node.pods[i].ns.run(|| {
            let s = UdpSocket::bind("0.0.0.0:0").unwrap();
            s.connect(to).unwrap();
            s
        })
    };
    let (denied, allowed, server) = (socket(0), socket(2), node.pods[1].udp[0].try_clone().unwrap());
    server.set_read_timeout(Some(LONG)).unwrap();
    let round = || {
        // The kernel may tell of a rejection.
        let _ = denied.send(b"denied");
        allowed.send(b"allowed").unwrap();
        let mut buf = [0; 16];
        let n = server.recv(&mut buf).unwrap_or_else(|e| panic!("what is allowed does not arrive: {e}"));
        assert_eq!(std::str::from_utf8(&buf[..n]).unwrap(), "allowed");
    };
    round();
    std::thread::scope(|s| {
        let work = s.spawn(meanwhile);
        while !work.is_finished() {
            round();
        }
        round();
        work.join().unwrap()
    })
}

/// Members that cover those that go, others that stay; with rules beside them and without; and after a restart.
#[test]
fn thousands_of_members_leave_and_no_packet_meets_a_set_without_those_that_stay() {
    for back_end in ALL {
        let mut node = Node::new(3);
        node.start(back_end);
        let both = |ports: &[(u16, u16)]| {
            let rules = vec![
                asks(Action::Deny, "s:denied"),
                asks(Action::Allow, "s:allowed"),
                tcp_ports(Action::Allow, ports),
            ];
            policy("both", rules, vec![rule(Action::Allow)])
        };
        let with = |own: &str, n: u32| [nets(&[own]), crowd(n)].concat();
        let state = |node: &Node, denied, allowed, ports: &[(u16, u16)]| {
            let mut all = node_pods(node, both(ports));
            all.insert(0, whole("s:denied", denied));
            all.insert(0, whole("s:allowed", allowed));
            all
        };
        let (no, yes) = ("10.77.0.10/32", "10.77.0.12/32");
        let first = state(&node, with(no, 20_000), with(yes, 20_000), &[(80, 80)]);
        node.apply(first);
        let settled = |r: PolicyReport| assert!(r.settled && r.problems.is_empty(), "{back_end:?} {r:?}");
        let change = |rules: bool, added: &[&str], removed: Vec<IpSetMember>, other: Vec<IpSetMember>| {
            let mut deltas =
                vec![delta("s:denied", nets(added), removed.clone()), delta("s:allowed", other, removed)];
            if rules {
                deltas.push(PolicyDelta::Policy(both(&[(81, 81)])));
            }
            settled(node.apply(deltas));
        };
        let rest = || crowd(20_000).split_off(10);
        ask_on(&node, || {
            change(false, &[], rest(), vec![]);
            change(false, &[], vec![], rest());
            // What comes covers all that goes.
            let gone = nets(&[no]);
            settled(node.apply(vec![delta("s:denied", nets(&["10.77.0.8/30"]), gone)]));
            settled(node.apply(vec![delta("s:denied", rest(), vec![])]));
            change(true, &["12.0.0.0/8"], rest(), vec![]);
        });
        node.stop();
        node.start(back_end);
        let fewer = state(&node, nets(&[no, "0.0.0.0/5"]), with(yes, 20_000), &[(80, 80)]);
        ask_on(&node, || settled(node.apply(fewer)));
        node.stop();
        node.start(back_end);
        let last = state(&node, nets(&[no]), nets(&[yes]), &[(81, 81)]);
        ask_on(&node, || settled(node.apply(last)));
    }
}

/// All pods; the second one has this policy.
fn node_pods(node: &Node, p: Arc<ActivePolicy>) -> Vec<PolicyDelta> {
    let name = p.id.name.clone();
    node.everything(&[(1, tier(&[&name], &[&name]))], &[p])
}

#[test]
fn a_set_that_somebody_elses_rule_asks_holds_nothing_back() {
    for (back_end, program) in [(BackEnd::Legacy, "iptables-legacy"), (BackEnd::Nft, "iptables-nft")] {
        let mut node = Node::new(3);
        let ns = node.ns.ns();
        let iptables = |args: &str| {
            let done = ns.run(|| Command::new(program).args(args.split(' ')).output().unwrap()).unwrap();
            assert!(done.status.success(), "{program} {args}: {done:?}");
        };
        let named = names::set(Family::V4, "s:asked");
        let asked = whole("s:asked", nets(&["10.77.0.10/32"]));
        let asking = policy("asking", vec![asks(Action::Allow, "s:asked")], vec![rule(Action::Allow)]);
        let open = policy("open", vec![rule(Action::Allow)], vec![rule(Action::Allow)]);
        let until = |node: &Node, what: &str, done: &dyn Fn(&PolicyReport) -> bool| {
            let deadline = Instant::now() + LONG;
            loop {
                node.tell(PolicyInput::Check);
                let r = node.report();
                if done(&r) {
                    return r;
                }
                assert!(Instant::now() < deadline, "{back_end:?} {what}: {r:?}\n{}", node.dump());
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let there = |node: &Node| node.dump().contains(&format!("create {named} "));
        node.start(back_end);
        let mut first = node_pods(&node, Arc::clone(&asking));
        first.insert(0, asked);
        node.apply(first);
        iptables("-N admin");
        iptables(&format!("-A admin -m set --match-set {named} src -j LOG"));
        // Nobody needs the set any more.
        let gone = vec![
            PolicyDelta::Policy(Arc::clone(&open)),
            PolicyDelta::Endpoint(Arc::new(node.endpoint(1, vec![tier(&["open"], &["open"])]))),
            PolicyDelta::PolicyRemove(asking.id.clone()),
            PolicyDelta::IpSetRemove(IpSetId("s:asked".into())),
        ];
        node.apply(gone);
        let says = |r: &PolicyReport| r.resources.iter().any(|l| l.contains(&named));
        let r = until(&node, "the set is told of", &says);
        assert!(r.settled && r.problems.is_empty() && there(&node), "{r:?}");
        let tier_of =
            |i: usize| PolicyDelta::Endpoint(Arc::new(node.endpoint(i, vec![tier(&["open"], &[])])));
        let r = node.apply(vec![tier_of(2)]);
        assert!(r.settled && r.counters.repairs == 0, "{r:?}");
        // The agent of another start finds it there.
        node.stop();
        node.start(back_end);
        let r = node.apply(node_pods(&node, open));
        assert!(r.settled, "{r:?}");
        until(&node, "the set is told of after a restart", &says);
        iptables("-F admin");
        let r = until(&node, "the set goes", &|r| !says(r));
        assert!(r.counters.repairs <= 1 && !there(&node), "{r:?}");
    }
}
