//! Who a pod is outside: natOutgoing of its pool, and what is excluded from it, under real packets with each back end and
//! both families. Needs root.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use brindle_config_core::{Key, Kind};
use brindle_integration::{
    policy::{
        lab::{BackEnd, OUTSIDE, PolicyLab},
        world::{calico, with},
    },
    wait::until,
};
use brindle_kernel::netns::NetNs;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

struct Nat {
    lab: PolicyLab,
    /// Addresses of the node.
    own: Vec<IpAddr>,
}

/// As whom the pod ns1/p1 is to appear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum As {
    Itself,
    Node,
}

impl Nat {
    fn new(back_end: BackEnd) -> Self {
        let lab = PolicyLab::new(back_end);
        let all = lab.node.ns.rtnl().addrs(None).expect("addresses can be read");
        let own = all.into_iter().map(|a| a.net.addr()).collect();
        Self { lab, own }
    }

    fn pool(&self, name: &str, nat: bool) {
        self.lab.node.edit(&Key::new(Kind::IpPool, None, name), |v| v["spec"]["natOutgoing"] = nat.into());
    }

    fn felix(&mut self, settings: Value) {
        self.lab.set(&with([calico("FelixConfiguration", "", "default", &settings)]));
    }

    /// From where a new flow of the pod arrives at an address of this namespace.
    fn seen(&self, at: &NetNs, address: IpAddr) -> Option<SocketAddr> {
        let bound = |ns: &NetNs, address: IpAddr| {
            let socket = ns.run(|| UdpSocket::bind((address, 0))).expect("the namespace is alive");
            socket.expect("a port is free")
        };
        let from = self.lab.site("ns1/p1");
        let pod = NetNs::named(self.lab.pod(from).ns.name()).expect("the pod is there");
        let server = bound(at, address);
        server.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket option");
        let family = usize::from(address.is_ipv6());
        let client = bound(&pod, self.lab.sites[from].addresses[family]);
        client.send_to(b"x", server.local_addr().expect("it is bound")).ok()?;
        server.recv_from(&mut [0; 8]).ok().map(|(_, from)| from)
    }

    /// Outside, behind `eth0` (0) or `eth1` (1).
    #[track_caller]
    fn outside(&self, i: usize, family: usize, wanted: As) -> SocketAddr {
        let to: IpAddr = OUTSIDE[i][family].parse().expect("a literal");
        self.expect(self.lab.outside(i), to, wanted)
    }

    #[track_caller]
    fn expect(&self, at: &NetNs, to: IpAddr, wanted: As) -> SocketAddr {
        let own = self.lab.sites[self.lab.site("ns1/p1")].addresses;
        until(&format!("{:?}: at {to} the pod is {wanted:?}", self.lab.back_end), LONG, || {
            let seen = self.seen(at, to);
            let right = |from: &SocketAddr| match wanted {
                As::Itself => own.contains(&from.ip()),
                As::Node => self.own.contains(&from.ip()),
            };
            seen.filter(right).ok_or_else(|| format!("{seen:?}\n{}", self.lab.dump()))
        })
    }
}

fn run(back_end: BackEnd) {
    let mut n = Nat::new(back_end);
    let put = |n: &Nat, kind: Kind, name: &str, spec: &Value| {
        n.lab.node.put_value(&Key::new(kind, None, name), &calico(kind.as_str(), "", name, spec));
    };
    // Pools do not ask for it; then one does, and the other family's pools do not.
    n.outside(0, 0, As::Itself);
    n.pool("pool", true);
    n.outside(0, 0, As::Node);
    n.outside(1, 0, As::Node);
    n.outside(0, 1, As::Itself);
    n.pool("pool6", true);
    n.outside(0, 1, As::Node);
    // Among pods, and to the node, nobody is somebody else.
    for name in ["ns1/p2", "ns2/p1"] {
        let site = n.lab.site(name);
        let ns = NetNs::named(n.lab.pod(site).ns.name()).expect("the pod is there");
        for address in n.lab.sites[site].addresses {
            n.expect(&ns, address, As::Itself);
        }
    }
    n.expect(n.lab.node.ns.ns(), "192.168.0.1".parse().expect("a literal"), As::Itself);
    // What lies in a pool is inside, disabled or not.
    put(&n, Kind::IpPool, "inside", &json!({"cidr": "10.9.0.0/16", "disabled": true}));
    n.outside(0, 0, As::Itself);
    n.outside(1, 0, As::Node);
    n.lab.node.remove(&Key::new(Kind::IpPool, None, "inside"));
    n.outside(0, 0, As::Node);
    // Addresses of nodes are outside unless they are excluded as well.
    put(&n, Kind::Node, "far", &json!({"bgp": {"ipv4Address": format!("{}/32", OUTSIDE[0][0])}}));
    n.outside(0, 0, As::Node);
    n.felix(json!({"natOutgoingExclusions": "IPPoolsAndHostIPs"}));
    n.outside(0, 0, As::Itself);
    n.outside(1, 0, As::Node);
    n.felix(json!({"iptablesNATOutgoingInterfaceFilter": "eth0"}));
    n.outside(0, 0, As::Node);
    n.outside(1, 0, As::Itself);
    // As which address, from which port.
    n.felix(json!({"natOutgoingAddress": "192.0.2.1", "natPortRange": "41000:41999"}));
    until("the address and the ports asked for", LONG, || {
        let from = n.outside(1, 0, As::Node);
        let right = from.ip().to_string() == "192.0.2.1" && (41000..42000).contains(&from.port());
        if right { Ok(()) } else { Err(from.to_string()) }
    });
    n.felix(json!({}));
    n.pool("pool", false);
    n.outside(0, 0, As::Itself);
}

#[test]
fn pods_are_the_node_outside_their_pools_with_iptables_legacy() {
    run(BackEnd::Legacy);
}

#[test]
fn pods_are_the_node_outside_their_pools_with_iptables_nft() {
    run(BackEnd::Nft);
}

#[test]
fn pods_are_the_node_outside_their_pools_with_nftables() {
    run(BackEnd::Nftables);
}
