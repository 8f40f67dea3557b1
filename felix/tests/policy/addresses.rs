//! Host endpoints that are known by an address of this host: what becomes of them when it comes and goes. And what is said
//! when somebody else's devices keep packets from policy.

use brindle_felix_core::{policy::active::HostPolicy, rules::marks::Marks};
use socket2::{Domain, Socket, Type};

use super::*;

#[test]
fn a_host_endpoint_known_by_its_address_is_enforced_as_soon_as_the_address_is_there() {
    for back_end in ALL {
        let mut node = Node::new(2);
        let far = far(&node, "10.99.0.2/24");
        let server = node.ns.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
        server.set_nonblocking(true).unwrap();
        let host = EndpointPolicy {
            id: EndpointId::Host { name: "up".into() },
            interface: Interface::WithAddress,
            addresses: vec!["10.99.0.3/32".parse().unwrap()],
            closed: Some("a test".into()),
            host: Some(Default::default()),
            profiles: Vec::new(),
            ..node.endpoint(0, Vec::new())
        };
        node.start(back_end);
        let reached = |want: bool| {
            let deadline = Instant::now() + LONG;
            while far.run(|| tcp("10.99.0.1:80".parse().unwrap())) != want {
                assert!(Instant::now() < deadline, "{back_end:?}: wanted {want}\n{}", node.dump());
                // Whom nobody takes fills the queue, and then nobody gets through.
                while server.accept().is_ok() {}
            }
        };
        node.apply(and(node.everything(&[], &[]), host));
        ip(&node.ns, "addr add 10.99.0.1/24 dev up0");
        reached(true);
        ip(&node.ns, "addr add 10.99.0.3/24 dev up0");
        reached(false);
        // What a device is called may change; its addresses stay.
        for (old, new) in [("up0", "west0"), ("west0", "up0")] {
            ip(&node.ns, &format!("link set {old} down"));
            ip(&node.ns, &format!("link set {old} name {new}"));
            ip(&node.ns, &format!("link set {new} up"));
            reached(false);
        }
        ip(&node.ns, "addr del 10.99.0.3/24 dev up0");
        reached(true);
        let report = node.report();
        assert_eq!(report.counters.repairs, 0, "{back_end:?}: nobody has touched the rules");
    }
}

/// Rules of an agent, by the tool that shows them.
fn has_chains_for_ipvs(node: &Node) -> bool {
    node.dump().contains("brindle-ipvs-taken")
}

#[test]
fn beside_ipvs_what_it_does_not_send_on_is_judged_as_ever() {
    for back_end in ALL {
        let mut node = Node::new(2);
        node.start(back_end);
        // Pod 0 may send nowhere.
        let deny = policy("none", Vec::new(), vec![rule(Action::Deny)]);
        node.apply(node.everything(&[(0, tier(&[], &["none"]))], &[deny]));
        let server = node.ns.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
        server.set_nonblocking(true).unwrap();
        let reached = |pod: usize, want: bool| {
            let to: SocketAddr = "10.96.0.10:80".parse().unwrap();
            let deadline = Instant::now() + LONG;
            while node.pods[pod].ns.run(|| tcp(to)) != want {
                assert!(Instant::now() < deadline, "{back_end:?}: {pod}: wanted {want}\n{}", node.dump());
                while server.accept().is_ok() {}
            }
        };
        // As soon as the device is there. The kernel of this test has no IPVS, so nothing is a service.
        ip(&node.ns, "link add kube-ipvs0 type veth peer name other");
        ip(&node.ns, "addr add 10.96.0.10/32 dev kube-ipvs0");
        let deadline = Instant::now() + LONG;
        while !has_chains_for_ipvs(&node) {
            assert!(Instant::now() < deadline, "{back_end:?}: {}", node.dump());
        }
        reached(1, true);
        reached(0, false);
        let report = node.report();
        assert!(report.problems.is_empty(), "{report:?}");
        assert!(report.resources.iter().any(|l| l.contains("cannot be read: /proc/")), "{report:?}");
        ip(&node.ns, "link del kube-ipvs0");
        let deadline = Instant::now() + LONG;
        while has_chains_for_ipvs(&node) {
            assert!(Instant::now() < deadline, "{back_end:?}: {}", node.dump());
        }
        let report = node.report();
        assert!(report.resources.is_empty(), "{report:?}");
        assert_eq!(report.counters.repairs, 0, "{back_end:?}: nobody has touched the rules");
    }
}

/// What IPVS does with a packet it has translated: it goes through OUTPUT with a source that is not the host's and the marks
/// it got at INPUT.
fn sent_on(node: &Node, source: IpAddr, mark: u32, to: SocketAddr, server: &UdpSocket) -> bool {
    let socket: UdpSocket = node.ns.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_ip_transparent_v4(true).unwrap();
        socket.set_mark(mark).unwrap();
        socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
        socket.into()
    });
    arrives(&socket, to, server)
}

#[test]
fn what_ipvs_sends_on_is_judged_as_if_it_was_forwarded() {
    let through = Marks::default().through.unwrap();
    for back_end in ALL {
        let mut node = Node::new(2);
        ip(&node.ns, "link add kube-ipvs0 type veth peer name other");
        node.start(back_end);
        let deny = || policy("none", vec![rule(Action::Deny)], vec![rule(Action::Deny)]);
        let (a, b, stranger) = (node.pods[0].v4, node.pods[1].v4, IpAddr::from([192, 0, 2, 7]));
        let cases = [
            // Whose policy denies, then: from a pod, from outside, from nobody's address, the host's own.
            (None, [true, true, false, true]),
            (Some((1, tier(&["none"], &[]))), [false, false, false, true]),
            (Some((0, tier(&[], &["none"]))), [false, true, false, true]),
        ];
        for (tiers, wanted) in cases {
            let tiers: Vec<_> = tiers.into_iter().collect();
            node.apply(node.everything(&tiers, &[deny()]));
            let server = &node.pods[1].udp[0];
            let to = SocketAddr::new(b, 80);
            let got =
                [(a, through.both()), (stranger, through.service), (stranger, through.both()), (stranger, 0)];
            let got = got.map(|(source, mark)| sent_on(&node, source, mark, to, server));
            assert_eq!(got, wanted, "{back_end:?}: {tiers:?}\n{}", node.dump());
        }
    }
}

#[test]
fn what_does_not_hold_beside_ipvs_is_said() {
    let mut node = Node::new(2);
    ip(&node.ns, "link add kube-ipvs0 type veth peer name other");
    node.start(BackEnd::Nftables);
    let all = node.everything(&[], &[policy("none", Vec::new(), vec![rule(Action::Deny)])]);
    let host = EndpointPolicy {
        id: EndpointId::Host { name: "up".into() },
        interface: Interface::Name("other".into()),
        addresses: Vec::new(),
        host: Some(HostPolicy { forward: vec![tier(&[], &["none"])], ..HostPolicy::default() }),
        ..node.endpoint(0, Vec::new())
    };
    let report = node.apply(and(all, host));
    assert!(report.resources.iter().any(|l| l.contains("applyOnForward")), "{report:?}");
    assert!(report.problems.is_empty(), "{report:?}");
}
