//! Policy of host endpoints over packets no flow is tracked for. Needs root.

use brindle_felix_core::policy::active::HostPolicy;

use super::*;

#[test]
fn what_the_host_sends_untracked_meets_its_egress_policy() {
    for back_end in ALL {
        let mut node = Node::new(2);
        let far = far(&node, "10.99.0.2/24");
        ip(&node.ns, "addr add 10.99.0.1/24 dev up0");
        let (open, closed) = (9000, 9001);
        let notrack = format!("-t raw -A OUTPUT -p udp -d 10.99.0.2 --dport {open}:{closed} -j NOTRACK");
        let make = if back_end == BackEnd::Legacy { "legacy" } else { "nft" };
        let line = format!("iptables-{make} {notrack}");
        assert!(node.ns.run(|| Command::new("sh").args(["-ec", &line]).status().unwrap()).success());
        let mut one_port = rule(Action::Allow);
        one_port.protocol = Some(Protocol::UDP);
        one_port.dst.ports = vec![PortRange { first: open, last: open }];
        let host = EndpointPolicy {
            id: EndpointId::Host { name: "up".into() },
            interface: Interface::Name("up0".into()),
            addresses: Vec::new(),
            host: Some(HostPolicy::default()),
            profiles: Vec::new(),
            ..node.endpoint(0, vec![tier(&[], &["out"])])
        };
        node.start(back_end);
        node.apply(and(node.everything(&[], &[policy("out", Vec::new(), vec![one_port])]), host));
        let reaches = |port: u16| {
            let server = far.run(|| UdpSocket::bind(("10.99.0.2", port)).unwrap());
            udp(&node.ns, SocketAddr::new(IpAddr::from([10, 99, 0, 2]), port), &server)
        };
        assert!(reaches(open), "{back_end:?}\n{}", node.dump());
        assert!(!reaches(closed), "{back_end:?}: denied and untracked\n{}", node.dump());
    }
}
