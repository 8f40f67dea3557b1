//! Host endpoints that are known by an address of this host: what becomes of them when it comes and goes. And what is said
//! when somebody else's devices keep packets from policy.

use super::*;

fn ip(ns: &Ns, line: &str) {
    let ok = ns.run(|| Command::new("ip").args(line.split(' ')).status().unwrap().success());
    assert!(ok, "ip {line}");
}

#[test]
fn a_host_endpoint_known_by_its_address_is_enforced_as_soon_as_the_address_is_there() {
    for back_end in ALL {
        let mut node = Node::new(2);
        let far = Ns::new("far");
        let target = far.ns();
        node.ns.run(|| {
            let peer = VethPeer { name: "up0", mac: None, netns: Some(&target) };
            let veth = Veth { name: "up0", mac: None, mtu: None, up: true, peer };
            Rtnl::open().unwrap().add_veth(&veth).unwrap();
        });
        ip(&far, "link set up0 up");
        ip(&far, "addr add 10.99.0.2/24 dev up0");
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
        let mut all = node.everything(&[], &[]);
        all.insert(all.len() - 1, PolicyDelta::Endpoint(Arc::new(host)));
        node.apply(all);
        ip(&node.ns, "addr add 10.99.0.1/24 dev up0");
        reached(true);
        ip(&node.ns, "addr add 10.99.0.3/24 dev up0");
        reached(false);
        ip(&node.ns, "addr del 10.99.0.3/24 dev up0");
        reached(true);
        let report = node.report();
        assert_eq!(report.counters.repairs, 0, "{back_end:?}: nobody has touched the rules");
    }
}

#[test]
fn that_kube_proxy_in_ipvs_mode_passes_policy_by_is_said() {
    let mut node = Node::new(2);
    ip(&node.ns, "link add kube-ipvs0 type veth peer name other");
    node.start(BackEnd::Nftables);
    let report = node.apply(node.everything(&[], &[]));
    assert!(report.resources.iter().any(|l| l.starts_with("kube-proxy is in IPVS mode")), "{report:?}");
    assert!(report.problems.is_empty(), "{report:?}");
}
