//! Tracked flows of host endpoints that are not to whom they were sent: node ports, and what a whole subnet hears. Needs root.

use brindle_felix_core::policy::active::HostPolicy;

use super::{
    flows::sh,
    support::{far, ip},
    *,
};

/// A machine beside the node, on a network of its own.
fn neighbour(node: &Node) -> Ns {
    let far = far(node, "10.99.0.2/24 brd +");
    ip(&node.ns, "addr add 10.99.0.1/24 brd + dev up0");
    far
}

fn uplink(node: &Node, tiers: Vec<EndpointTier>, host: HostPolicy) -> PolicyDelta {
    PolicyDelta::Endpoint(Arc::new(EndpointPolicy {
        id: EndpointId::Host { name: "up".into() },
        interface: Interface::Name("up0".into()),
        addresses: Vec::new(),
        host: Some(host),
        profiles: Vec::new(),
        ..node.endpoint(0, tiers)
    }))
}

fn deny(port: u16) -> Rule {
    tcp_ports(Action::Deny, &[(port, port)])
}

/// Policy before DNAT sees the node's port, policy of the pod its own port; a flow is judged as both would see it.
#[test]
fn a_flow_through_a_node_port_is_judged_as_each_policy_sees_it() {
    for back_end in ALL {
        let mut node = Node::new(2);
        let far = neighbour(&node);
        let pod = node.pods[1].v4;
        let make = if back_end == BackEnd::Legacy { "legacy" } else { "nft" };
        sh(
            &node.ns,
            &format!(
                "iptables-{make} -t nat -A PREROUTING -i up0 -p tcp --dport 8080 -j DNAT --to-destination {pod}:80"
            ),
        );
        ip(&far, &format!("route add {pod}/32 via 10.99.0.1"));
        node.start(back_end);
        let before = |rules| {
            let host = HostPolicy { pre_dnat: vec![open_tier("before")], ..HostPolicy::default() };
            // Its own policy lets nobody in; what is forwarded does not meet it.
            vec![
                PolicyDelta::Policy(policy("before", rules, Vec::new())),
                PolicyDelta::Policy(policy("closed", Vec::new(), Vec::new())),
                uplink(&node, vec![tier(&["closed"], &[])], host),
            ]
        };
        let mut all = node.everything(&[], &[]);
        let end = all.len() - 1;
        all.splice(end..end, before(vec![deny(80)]));
        node.apply(all);
        let mut near = far.run(|| {
            TcpStream::connect_timeout(&SocketAddr::new(IpAddr::from([10, 99, 0, 1]), 8080), LONG).unwrap()
        });
        let (mut server, _) = node.pods[1]._servers[0].accept().unwrap();
        let mut passes = || {
            near.write_all(b"x").unwrap();
            server.set_read_timeout(Some(SHORT)).unwrap();
            matches!(server.read(&mut [0; 64]), Ok(n) if n > 0)
        };
        assert!(passes(), "{back_end:?}");
        // Something else changes, so that all flows are judged.
        node.apply(before(vec![deny(80), deny(81)]));
        assert!(passes(), "{back_end:?}: its port was never 80 for policy before DNAT\n{}", node.dump());
        node.apply(before(vec![deny(8080)]));
        assert!(!passes(), "{back_end:?}: denied before DNAT\n{}", node.dump());
        node.stop();
    }
}

fn open_tier(name: &str) -> EndpointTier {
    EndpointTier { default_action: TierAction::Pass, ..tier(&[name], &[]) }
}

/// The host hears what is sent to a subnet or a group; nobody forwards it.
#[test]
fn what_many_hear_is_judged_as_the_hosts_own() {
    for back_end in ALL {
        let mut node = Node::new(2);
        let far = neighbour(&node);
        node.start(back_end);
        let mut heartbeat = rule(Action::Allow);
        heartbeat.protocol = Some(Protocol::UDP);
        heartbeat.dst.ports = vec![PortRange { first: 5405, last: 5405 }];
        let own = |rules| PolicyDelta::Policy(policy("heartbeat", rules, Vec::new()));
        let forward = policy("forward", vec![tcp_ports(Action::Allow, &[(80, 80)])], Vec::new());
        let host = HostPolicy { forward: vec![tier(&["forward"], &[])], ..HostPolicy::default() };
        let mut all = node.everything(&[], &[]);
        let end = all.len() - 1;
        all.splice(
            end..end,
            [
                own(vec![heartbeat.clone()]),
                PolicyDelta::Policy(forward),
                uplink(&node, vec![tier(&["heartbeat"], &[])], host),
            ],
        );
        node.apply(all);
        let server = node.ns.run(|| UdpSocket::bind("0.0.0.0:5405").unwrap());
        let group = std::net::Ipv4Addr::new(239, 1, 2, 3);
        server.join_multicast_v4(&group, &[10, 99, 0, 1].into()).unwrap();
        ip(&far, "route add 239.0.0.0/8 dev up0");
        let client = far.run(|| UdpSocket::bind("10.99.0.2:5405").unwrap());
        client.set_broadcast(true).unwrap();
        let all: Vec<SocketAddr> = ["10.99.0.255:5405", "255.255.255.255:5405", "239.1.2.3:5405"]
            .iter()
            .map(|a| a.parse().unwrap())
            .collect();
        for to in &all {
            assert!(arrives(&client, *to, &server), "{back_end:?}: {to}\n{}", node.dump());
        }
        // Nothing is said about them, but all flows are judged.
        node.apply(vec![own(vec![heartbeat.clone(), deny(81)])]);
        for to in &all {
            assert!(arrives(&client, *to, &server), "{back_end:?}: {to} goes on\n{}", node.dump());
        }
        node.apply(vec![own(vec![deny(81)])]);
        for to in &all {
            assert!(!arrives(&client, *to, &server), "{back_end:?}: {to} is denied\n{}", node.dump());
        }
        node.stop();
    }
}
