//! Host endpoints and translated destinations, under real packets with each back end: policy before DNAT sees what the
//! client asked for, policy of the host's own traffic sees where it really goes, what is forwarded is not the host's own,
//! and an endpoint for all interfaces leaves workloads alone; and failsafe ports of IPv6, which need neighbours. Needs root.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    process::Command,
    time::Duration,
};

use brindle_integration::{
    cni::sh,
    policy::{
        lab::{BackEnd, HOST, OUTSIDE, PolicyLab},
        probe::{Attempt, Probe},
        world::{calico, gnp, host, with},
    },
    wait::until_true,
};
use brindle_kernel::netns::NetNs;
use serde_json::{Value, json};

/// A service address that the host's own packets are translated from.
const SERVICE: &str = "10.255.0.1";
const LONG: Duration = Duration::from_secs(60);
const TCP80: Probe = Probe::Tcp(80);
/// Translated to a pod (from eth0) or to the host behind eth0 (from eth1).
const NODE_PORT: Probe = Probe::Tcp(8080);

struct Hosts(PolicyLab);

impl Hosts {
    fn new(back_end: BackEnd) -> Self {
        let lab = PolicyLab::new(back_end);
        // What a kube-proxy would write, in a table no back end of ours knows.
        let rules = format!(
            "nft add table ip others; \
             nft 'add chain ip others pre {{ type nat hook prerouting priority -100; }}'; \
             nft 'add chain ip others out {{ type nat hook output priority -100; }}'; \
             nft add rule ip others pre iifname eth0 tcp dport 8080 dnat to 10.0.0.1:80; \
             nft add rule ip others pre iifname eth1 tcp dport 8080 dnat to {}:80; \
             nft add rule ip others out ip daddr {SERVICE} dnat to {}; \
             ip route add {SERVICE}/32 dev eth0 src {}",
            OUTSIDE[0][0], OUTSIDE[0][0], HOST[0]
        );
        sh(lab.node.ns.ns(), &rules);
        Self(lab)
    }

    fn set<const N: usize>(&mut self, more: [Value; N]) {
        self.0.set(&with(more));
    }

    /// From a site to an address, one probe; tried again when something that must arrive does not.
    #[track_caller]
    fn expect(&mut self, from: &str, to: &str, probe: Probe, wanted: bool) {
        self.expect_of(0, from, to, probe, wanted);
    }

    /// The same of one family.
    #[track_caller]
    fn expect_of(&mut self, family: usize, from: &str, to: &str, probe: Probe, wanted: bool) {
        let lab = &mut self.0;
        let named = lab.sites.iter().position(|s| s.name == to);
        let dst = named.map_or_else(|| to.parse().expect("an address"), |i| lab.sites[i].addresses[family]);
        let from = lab.site(from);
        let a =
            Attempt { from, to: named.unwrap_or(from), src: lab.sites[from].addresses[family], dst, probe };
        let rounds = if wanted { 3 } else { 1 };
        let got =
            (0..rounds).any(|_| lab.prober.round(&[a], &[wanted]).expect("packets can be sent") == [true]);
        assert_eq!(got, wanted, "{:?}: {a:?}\n{}", lab.back_end, lab.dump());
    }
}

impl Hosts {
    /// Host and `out1` forget each other's IPv6 neighbours, which the lab otherwise makes permanent.
    fn forget_neighbours(&self) {
        sh(self.0.node.ns.ns(), "ip -6 neigh flush dev eth0 nud all");
        sh(self.0.outside(0), "ip -6 neigh flush dev eth0 nud all");
    }

    /// What `out1` knows of the host as its neighbour.
    fn neighbour(&self) -> String {
        let show = ["-6", "neigh", "show", HOST[1], "dev", "eth0"];
        let out = self.0.outside(0).run(|| Command::new("ip").args(show).output());
        let out = out.expect("the namespace is alive").expect("iproute2 is installed");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }
}

fn failsafe_ports(back_end: BackEnd) {
    let mut h = Hosts::new(back_end);
    let deny = |flags: Value| {
        let mut spec = json!({"types": ["Ingress", "Egress"], "ingress": [{"action": "Deny"}],
            "egress": [{"action": "Deny"}]});
        for (k, v) in flags.as_object().into_iter().flatten() {
            spec[k] = v.clone();
        }
        on("deny", spec)
    };
    let untracked = || deny(json!({"doNotTrack": true, "applyOnForward": true}));
    for policy in [deny(json!({})), untracked()] {
        h.set([open(), policy]);
        // Either side asks first.
        h.forget_neighbours();
        h.expect_of(1, "out1", "host", Probe::Tcp(22), true);
        h.forget_neighbours();
        h.expect_of(1, "host", "out1", Probe::Udp(53), true);
        h.expect_of(1, "out1", "host", Probe::Ping, false);
        h.expect_of(1, "out1", "host", TCP80, false);
        assert!(h.neighbour().contains("lladdr"), "{back_end:?}: {}", h.neighbour());
    }
    // Nothing is to stay open: neighbours do not find the host either.
    let none = json!({"failsafeInboundHostPorts": [], "failsafeOutboundHostPorts": []});
    h.set([open(), deny(json!({})), calico("FelixConfiguration", "", "default", &none)]);
    h.forget_neighbours();
    h.expect_of(1, "out1", "host", Probe::Tcp(22), false);
    until_true("nobody answers who has the host's address", LONG, || h.neighbour().contains("FAILED"));
    h.set([open()]);
    h.expect_of(1, "out1", "host", TCP80, true);
    assert_eq!(h.0.policy().problems, Vec::<String>::new());
}

fn open() -> Value {
    host(json!({"profiles": ["projectcalico-default-allow"]}))
}

fn on(name: &str, more: Value) -> Value {
    let mut spec = json!({"selector": "role == 'host'", "order": 10});
    for (k, v) in more.as_object().into_iter().flatten() {
        spec[k] = v.clone();
    }
    gnp(name, spec)
}

/// A failsafe port is one of the host's own: what is forwarded to such a port passes the policy before DNAT and the
/// untracked one by it, but not the policy for forwarded traffic.
fn failsafe_ports_of_what_is_forwarded(back_end: BackEnd) {
    let mut h = Hosts::new(back_end);
    let ssh = Probe::Tcp(22);
    let early = |flag: &str| {
        let mut spec = json!({"applyOnForward": true, "types": ["Ingress"], "ingress": [{"action": "Deny"}]});
        spec[flag] = true.into();
        on("early", spec)
    };
    let forward =
        |rules: Value| on("forward", json!({"applyOnForward": true, "types": ["Ingress"], "ingress": rules}));
    for flag in ["preDNAT", "doNotTrack"] {
        for family in 0..2 {
            h.set([open(), early(flag)]);
            h.expect_of(family, "out1", "ns1/p1", ssh, true);
            h.expect_of(family, "out1", "ns1/p1", TCP80, false);
            h.set([open(), early(flag), forward(json!([{"action": "Deny"}]))]);
            h.expect_of(family, "out1", "ns1/p1", ssh, false);
            h.expect_of(family, "out1", "host", ssh, true);
            h.expect_of(family, "out2", "ns1/p1", ssh, true);
            h.set([open(), early(flag), forward(json!([{"action": "Allow"}]))]);
            h.expect_of(family, "out1", "ns1/p1", ssh, true);
            h.expect_of(family, "out1", "ns1/p1", TCP80, false);
        }
    }
    assert_eq!(h.0.policy().problems, Vec::<String>::new());
}

fn run(back_end: BackEnd) {
    let mut h = Hosts::new(back_end);
    h.set([open()]);
    h.expect("out1", "host", NODE_PORT, true);
    h.expect("out2", "host", NODE_PORT, true);
    h.expect("host", SERVICE, TCP80, true);

    // Before DNAT: the port the client asked for.
    let pre = |action: &str, port: u16| {
        on(
            "pre",
            json!({"preDNAT": true, "applyOnForward": true, "types": ["Ingress"], "ingress": [{"action": action,
                "protocol": "TCP", "destination": {"nets": [format!("{}/32", HOST[0])], "ports": [port]}}]}),
        )
    };
    h.set([open(), pre("Deny", 8080)]);
    h.expect("out1", "host", NODE_PORT, false);
    h.expect("out1", "ns1/p1", TCP80, true);
    h.set([open(), pre("Deny", 80)]);
    h.expect("out1", "host", NODE_PORT, true);
    h.expect("out1", "host", TCP80, false);
    // Forwarded policy sees what it was translated to.
    let forward = |net: &str| {
        on(
            "forward",
            json!({"applyOnForward": true, "types": ["Ingress"], "ingress": [
                {"action": "Deny", "destination": {"nets": [net]}}, {"action": "Allow"}]}),
        )
    };
    h.set([open(), forward("10.0.0.1/32")]);
    h.expect("out1", "host", NODE_PORT, false);
    h.set([open(), forward("192.168.0.1/32")]);
    h.expect("out1", "host", NODE_PORT, true);

    // The host's own packets: where they really go.
    let egress = |net: &str| {
        on(
            "egress",
            json!({"types": ["Egress"], "egress": [
                {"action": "Deny", "destination": {"nets": [net]}}, {"action": "Allow"}]}),
        )
    };
    h.set([open(), egress("10.9.1.7/32")]);
    h.expect("host", SERVICE, TCP80, false);
    h.expect("host", "out1", TCP80, false);
    // It is the endpoint's own traffic that is denied, not what the node translates for others.
    h.expect("out2", "host", NODE_PORT, true);
    h.set([open(), egress("10.255.0.1/32")]);
    h.expect("host", SERVICE, TCP80, true);
    h.expect("host", "out1", TCP80, true);

    // A denial that rejects, where only dropping is possible: everything is still written.
    let reject =
        || calico("FelixConfiguration", "", "default", &json!({"iptablesFilterDenyAction": "Reject"}));
    h.set([open(), pre("Deny", 8080), egress("10.9.1.7/32"), reject()]);
    h.expect("out1", "host", NODE_PORT, false);
    h.expect("host", SERVICE, TCP80, false);

    // One endpoint for all interfaces.
    let everywhere = || host(json!({"interfaceName": "*", "profiles": ["projectcalico-default-allow"]}));
    h.set([
        everywhere(),
        on("in", json!({"types": ["Ingress"], "ingress": [{"action": "Allow", "protocol": "UDP"}]})),
    ]);
    for from in ["out1", "out2"] {
        h.expect(from, "host", TCP80, false);
        h.expect(from, "host", Probe::Tcp(22), true);
        h.expect(from, "host", Probe::Udp(80), true);
        h.expect(from, "ns1/p1", TCP80, true);
    }
    h.expect("ns1/p1", "host", TCP80, true);
    h.expect("host", "ns1/p1", TCP80, true);
    h.expect("host", "out2", TCP80, true);
    h.set([everywhere(), on("out", json!({"types": ["Egress"]}))]);
    h.expect("host", "out1", TCP80, false);
    h.expect("host", "out2", TCP80, false);
    h.expect("host", SERVICE, TCP80, false);
    h.expect("host", "ns1/p1", TCP80, true);
    h.expect("ns1/p1", "out1", TCP80, true);
    assert_eq!(h.0.policy().problems, Vec::<String>::new());
}

/// Datagrams of one flow that is answered once, so that it is established.
struct Datagrams {
    server: UdpSocket,
    client: UdpSocket,
    to: SocketAddr,
}

impl Datagrams {
    fn new(from: &NetNs, at: &NetNs, address: IpAddr) -> Self {
        let bound = |ns: &NetNs, address: IpAddr, port: u16| {
            let socket = ns.run(|| UdpSocket::bind((address, port))).expect("the namespace is alive");
            let socket = socket.expect("nobody else is there");
            socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket option");
            socket
        };
        let server = bound(at, address, 0);
        let to = server.local_addr().expect("it is bound");
        let flow = Self { server, client: bound(from, IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), to };
        until_true("the flow is established", LONG, || flow.answered());
        flow
    }

    fn arrives(&self) -> bool {
        self.client.send_to(b"x", self.to).is_ok() && self.server.recv_from(&mut [0; 8]).is_ok()
    }

    fn answered(&self) -> bool {
        if self.client.send_to(b"x", self.to).is_err() {
            return false;
        }
        let Ok((_, from)) = self.server.recv_from(&mut [0; 8]) else { return false };
        self.server.send_to(b"y", from).is_ok() && self.client.recv_from(&mut [0; 8]).is_ok()
    }
}

#[test]
fn flows_a_host_endpoint_denies_now_are_cut_and_no_others() {
    let mut h = Hosts::new(BackEnd::Nftables);
    h.set([open()]);
    let lab = &h.0;
    let ns = |name: &str| NetNs::named(lab.pod(lab.site(name)).ns.name()).expect("the pod is there");
    let address = |name: &str| lab.sites[lab.site(name)].addresses[0];
    let (pod, node) = (ns("ns1/p1"), lab.node.ns.ns());
    let to_pod = Datagrams::new(lab.outside(0), &pod, address("ns1/p1"));
    let to_host = Datagrams::new(lab.outside(0), node, address("host"));
    let from_host = Datagrams::new(node, lab.outside(0), address("out1"));
    let from_pod = Datagrams::new(&pod, lab.outside(0), address("out1"));
    let beside = Datagrams::new(lab.outside(1), node, address("host"));
    let beside_pod = Datagrams::new(lab.outside(1), &pod, address("ns1/p1"));
    let all = [&to_pod, &to_host, &from_host, &from_pod, &beside, &beside_pod];
    let mut expect = |set: &[Value], flows: [bool; 6]| {
        let before = h.0.policy().flows_cut;
        h.0.set(&with(set.iter().cloned()));
        for (i, (flow, open)) in all.iter().zip(flows).enumerate() {
            until_true(&format!("flow {i} goes on: {open}"), LONG, || flow.arrives() == open);
        }
        (h.0.policy().flows_cut - before, flows.iter().filter(|open| !**open).count())
    };
    let deny = |way: &str, forward: bool| {
        let mut spec = json!({"types": [way], "applyOnForward": forward});
        spec[way.to_ascii_lowercase()] = json!([{"action": "Deny", "protocol": "UDP"}, {"action": "Allow"}]);
        on("deny", spec)
    };
    // The host's own traffic alone; then what is forwarded, too.
    let (cut, closed) = expect(&[open(), deny("Ingress", false)], [true, false, true, true, true, true]);
    assert_eq!((cut, closed), (1, 1), "to the host");
    expect(&[open()], [true; 6]);
    let (cut, closed) = expect(&[open(), deny("Egress", true)], [true, true, false, false, true, true]);
    assert!(cut >= 2 && closed == 2, "{cut}");
    expect(&[open()], [true; 6]);
    expect(&[open(), deny("Ingress", true)], [false, false, true, true, true, true]);
}

#[test]
fn failsafe_ports_find_their_neighbours_with_iptables_legacy() {
    failsafe_ports(BackEnd::Legacy);
}

#[test]
fn failsafe_ports_find_their_neighbours_with_iptables_nft() {
    failsafe_ports(BackEnd::Nft);
}

#[test]
fn failsafe_ports_find_their_neighbours_with_nftables() {
    failsafe_ports(BackEnd::Nftables);
}

#[test]
fn forwarded_policy_of_failsafe_ports_with_iptables_legacy() {
    failsafe_ports_of_what_is_forwarded(BackEnd::Legacy);
}

#[test]
fn forwarded_policy_of_failsafe_ports_with_iptables_nft() {
    failsafe_ports_of_what_is_forwarded(BackEnd::Nft);
}

#[test]
fn forwarded_policy_of_failsafe_ports_with_nftables() {
    failsafe_ports_of_what_is_forwarded(BackEnd::Nftables);
}

#[test]
fn translated_destinations_with_iptables_legacy() {
    run(BackEnd::Legacy);
}

#[test]
fn translated_destinations_with_iptables_nft() {
    run(BackEnd::Nft);
}

#[test]
fn translated_destinations_with_nftables() {
    run(BackEnd::Nftables);
}
