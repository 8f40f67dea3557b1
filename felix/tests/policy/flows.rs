//! Which tracked flows end, and when: those of workloads that went, those policy denies now, those of whoever had an address
//! before; no others. Packets tell. Needs root.

use std::sync::atomic::AtomicBool;

use brindle_felix_core::rules::marks::Marks;
use brindle_kernel::netfilter::{Conntrack, Flow, IpVersion};

use super::*;

/// Bit of the mark of closed flows.
fn closed() -> u32 {
    Marks::default().closed.unwrap()
}

fn tracked(node: &Node) -> Vec<Flow> {
    node.ns.run(|| {
        let mut c = Conntrack::open().unwrap();
        [IpVersion::V4, IpVersion::V6].iter().flat_map(|v| c.list(*v).unwrap()).collect()
    })
}

pub(super) fn sh(ns: &Ns, line: &str) {
    assert!(ns.run(|| Command::new("sh").args(["-ec", line]).status().unwrap()).success(), "{line}");
}

#[test]
fn flows_of_a_pod_that_goes_are_cut_and_no_others() {
    let mut node = Node::new(3);
    node.start(BackEnd::Nft);
    node.apply(node.everything(&[], &[]));
    node.udp(0, 1, true);
    node.udp(0, 2, true);
    let flows = || {
        let all = tracked(&node);
        all.iter().filter(|f| f.mark & closed() == 0).map(|f| f.original.dst).collect::<BTreeSet<_>>()
    };
    assert!(flows().is_superset(&[node.pods[1].v4, node.pods[2].v4].into()), "{:?}", flows());
    // Denied now: this flow is cut, the other one is not.
    let deny = policy("deny", vec![], vec![]);
    let closed = PolicyDelta::Endpoint(Arc::new(node.endpoint(1, vec![tier(&["deny"], &[])])));
    let r = node.apply(vec![PolicyDelta::Policy(deny), closed]);
    assert!(r.counters.flows_cut >= 1, "{r:?}");
    let left = flows();
    assert!(left.contains(&node.pods[2].v4) && !left.contains(&node.pods[1].v4), "{left:?}");
    node.apply(vec![PolicyDelta::Endpoint(Arc::new(node.endpoint(1, vec![])))]);
    node.udp(0, 1, true);
    let cut = node.apply(vec![]).counters.flows_cut;
    node.apply(vec![PolicyDelta::EndpointRemove(node.endpoint(2, vec![]).id)]);
    // One look at all flows is for many that go.
    let deadline = Instant::now() + LONG;
    while node.report().counters.flows_cut == cut {
        assert!(Instant::now() < deadline, "{:?}", flows());
        std::thread::sleep(Duration::from_millis(20));
    }
    let left = flows();
    assert!(left.contains(&node.pods[1].v4) && !left.contains(&node.pods[2].v4), "{left:?}");
    // Its address has a new owner, whose policy denies what the former one's allowed: that cannot wait.
    let mut next = node.endpoint(1, vec![tier(&["deny"], &[])]);
    next.id = EndpointId::Workload { namespace: "default".into(), name: "n1-k8s-next-eth0".into() };
    let gone = PolicyDelta::EndpointRemove(node.endpoint(1, vec![]).id);
    let cut = node.report().counters.flows_cut;
    let r = node.apply(vec![gone, PolicyDelta::Endpoint(Arc::new(next))]);
    assert!(r.counters.flows_cut > cut, "{r:?}");
    assert!(!flows().contains(&node.pods[1].v4), "{:?}", flows());
}

/// A connection between two pods, and whether something arrives in one direction.
struct Tcp(TcpStream, TcpStream);

impl Tcp {
    fn open(node: &Node, ip: IpAddr, port: u16) -> Self {
        let to = SocketAddr::new(ip, port);
        let near = node.pods[0].ns.run(|| TcpStream::connect_timeout(&to, LONG).unwrap());
        let listener = &node.pods[1]._servers[usize::from(port - 80)];
        loop {
            let (far, from) = listener.accept().unwrap();
            if from.port() == near.local_addr().unwrap().port() {
                return Self(near, far);
            }
        }
    }

    /// From the client to the server, or the other way round.
    fn passes(&mut self, there: bool) -> bool {
        let (from, to) = if there { (&mut self.0, &mut self.1) } else { (&mut self.1, &mut self.0) };
        from.write_all(b"x").unwrap();
        to.set_read_timeout(Some(SHORT)).unwrap();
        matches!(to.read(&mut [0; 64]), Ok(n) if n > 0)
    }
}

/// The same over UDP: the server answers whom it heard first.
struct Udp<'a> {
    near: UdpSocket,
    far: &'a UdpSocket,
    to: SocketAddr,
}

impl<'a> Udp<'a> {
    fn open(node: &'a Node, to: SocketAddr) -> Self {
        let pod = &node.pods[0];
        let ip = if to.is_ipv4() { pod.v4 } else { pod.v6 };
        let near = pod.ns.run(|| UdpSocket::bind((ip, 0)).unwrap());
        let far = &node.pods[1].udp[usize::from(to.is_ipv6())];
        Self { near, far, to }
    }

    fn passes(&self, there: bool) -> bool {
        match there {
            true => arrives(&self.near, self.to, self.far),
            false => arrives(self.far, self.near.local_addr().unwrap(), &self.near),
        }
    }
}

#[test]
fn a_flow_that_policy_denies_ends_in_both_directions_until_it_is_allowed_again() {
    for back_end in ALL {
        let mut node = Node::new(2);
        node.start(back_end);
        node.apply(node.everything(&[], &[]));
        for ip in [node.pods[1].v4, node.pods[1].v6] {
            let mut denied = Tcp::open(&node, ip, 81);
            let mut allowed = Tcp::open(&node, ip, 80);
            let udp = Udp::open(&node, SocketAddr::new(ip, 80));
            for there in [true, false, true] {
                assert!(denied.passes(there) && allowed.passes(there) && udp.passes(there), "{back_end:?}");
            }
            // What is allowed is asked for anew, as everything the other end might begin.
            let only = policy("only", vec![tcp_ports(Action::Allow, &[(80, 80)])], vec![]);
            let pod = |tiers| PolicyDelta::Endpoint(Arc::new(node.endpoint(1, tiers)));
            let cut = node.report().counters.flows_cut;
            let r = node.apply(vec![PolicyDelta::Policy(only), pod(vec![tier(&["only"], &[])])]);
            assert!(r.counters.flows_cut >= cut + 2, "{back_end:?}: {r:?}");
            // The server goes on by itself: its packets must not begin what the client's then belong to.
            for there in [false, true, false, true] {
                assert!(!denied.passes(there), "{back_end:?} {ip}: TCP, {there}\n{}", node.dump());
                assert!(!udp.passes(there), "{back_end:?} {ip}: UDP, {there}\n{}", node.dump());
                assert!(allowed.passes(there), "{back_end:?} {ip}: another flow, {there}\n{}", node.dump());
            }
            node.apply(vec![pod(vec![])]);
            assert!(udp.passes(true) && udp.passes(false), "{back_end:?} {ip}: open again\n{}", node.dump());
            let mut next = Tcp::open(&node, ip, 81);
            assert!(next.passes(true) && next.passes(false) && allowed.passes(true), "{back_end:?} {ip}");
            assert!(tracked(&node).iter().all(|f| f.mark & closed() == 0), "{back_end:?}: none stays closed");
        }
    }
}

#[test]
fn rejections_of_a_closed_flow_reach_whoever_sends() {
    for back_end in ALL {
        let mut node = Node::new(2);
        node.start(back_end);
        let mut spec = configuration(back_end);
        spec.extra.insert("iptablesFilterDenyAction".into(), json!("Reject"));
        node.tell(PolicyInput::Store(vec![upsert("default", spec)]));
        node.apply(node.everything(&[], &[]));
        let udp = Udp::open(&node, SocketAddr::new(node.pods[1].v4, 80));
        udp.near.connect(udp.to).unwrap();
        udp.near.send(b"here").unwrap();
        udp.far.set_read_timeout(Some(LONG)).unwrap();
        udp.far.recv_from(&mut [0; 16]).unwrap();
        let deny = policy("deny", vec![], vec![]);
        let pod = PolicyDelta::Endpoint(Arc::new(node.endpoint(1, vec![tier(&["deny"], &[])])));
        node.apply(vec![PolicyDelta::Policy(deny), pod]);
        udp.near.send(b"here").unwrap();
        udp.near.set_read_timeout(Some(LONG)).unwrap();
        let said = udp.near.recv(&mut [0; 16]).unwrap_err().kind();
        assert_eq!(said, ErrorKind::ConnectionRefused, "{back_end:?}\n{}", node.dump());
    }
}

#[test]
fn after_a_restart_closed_flows_that_are_allowed_now_are_opened() {
    for back_end in [BackEnd::Nft, BackEnd::Nftables] {
        let mut node = Node::new(2);
        node.start(back_end);
        node.apply(node.everything(&[], &[]));
        let to = SocketAddr::new(node.pods[1].v4, 80);
        let near = node.pods[0].ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        assert!(arrives(&near, to, &node.pods[1].udp[0]));
        let deny = || policy("deny", vec![], vec![]);
        node.apply(node.everything(&[(1, tier(&["deny"], &[]))], &[deny()]));
        assert!(!arrives(&near, to, &node.pods[1].udp[0]), "{back_end:?}");
        node.stop();
        node.start(back_end);
        node.apply(node.everything(&[], &[]));
        assert!(arrives(&near, to, &node.pods[1].udp[0]), "{back_end:?}\n{}", node.dump());
    }
}

/// Sends the same datagram again and again.
fn keep_sending<T>(from: &Ns, socket: &UdpSocket, to: SocketAddr, meanwhile: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            from.run(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = socket.send_to(b"old", to);
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
        });
        let out = meanwhile();
        stop.store(true, Ordering::Relaxed);
        out
    })
}

/// A flow to a pod whose address another one gets, whose policy denies it: while the agent runs, and while it does not.
#[test]
fn a_flow_of_a_former_address_does_not_reach_its_next_owner() {
    for back_end in ALL {
        for restart in [false, true] {
            let mut node = Node::new(3);
            node.start(back_end);
            let without = |node: &Node, pods: &[usize]| {
                let mut all = node.everything(&[], &[policy("deny", vec![], vec![])]);
                let ids: Vec<_> = pods.iter().map(|p| node.endpoint(*p, vec![]).id).collect();
                all.retain(|d| !matches!(d, PolicyDelta::Endpoint(e) if ids.contains(&e.id)));
                all
            };
            node.apply(without(&node, &[2]));
            let (address, to) = (node.pods[1].v4, SocketAddr::new(node.pods[1].v4, 80));
            let near = node.pods[0].ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            assert!(arrives(&near, to, &node.pods[1].udp[0]), "{back_end:?}");
            if restart {
                node.stop();
            }
            sh(&node.pods[2].ns, &format!("ip addr add {address}/32 dev eth0"));
            sh(&node.ns, &format!("ip route replace {address}/32 dev {}", node.pods[2].device));
            let server = node.pods[2].ns.run(|| UdpSocket::bind(to).unwrap());
            let next = EndpointPolicy {
                addresses: vec![address.into()],
                ..node.endpoint(2, vec![tier(&["deny"], &[])])
            };
            if restart {
                node.start(back_end);
            }
            keep_sending(&node.pods[0].ns, &near, to, || {
                if restart {
                    node.apply(without(&node, &[1, 2]));
                } else {
                    let moved = vec!["10.77.0.99/32".parse().unwrap()];
                    let moved = EndpointPolicy { addresses: moved, ..node.endpoint(1, vec![]) };
                    node.apply(vec![PolicyDelta::Endpoint(Arc::new(moved))]);
                }
                node.apply(vec![PolicyDelta::Endpoint(Arc::new(next))]);
                server.set_read_timeout(Some(SHORT)).unwrap();
                let got = server.recv_from(&mut [0; 16]);
                assert!(got.is_err(), "{back_end:?}, restart: {restart}: {got:?}\n{}", node.dump());
            });
        }
    }
}

#[test]
fn a_flow_nobody_knew_of_to_the_address_of_a_new_pod_is_judged_soon() {
    let mut node = Node::new(3);
    node.start(BackEnd::Nftables);
    let mut all = node.everything(&[], &[policy("deny", vec![], vec![])]);
    let next = node.endpoint(2, vec![tier(&["deny"], &[])]);
    all.retain(|d| !matches!(d, PolicyDelta::Endpoint(e) if e.id == next.id));
    node.apply(all);
    // Until now the address is somewhere else.
    let (address, to) = (node.pods[2].v4, SocketAddr::new(node.pods[2].v4, 80));
    let far = far(&node, &format!("{address}/32"));
    sh(&node.ns, &format!("ip route replace {address}/32 dev up0"));
    let near = node.pods[0].ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let server = far.run(|| UdpSocket::bind(to).unwrap());
    assert!(arrives(&near, to, &server));
    sh(&node.ns, &format!("ip route replace {address}/32 dev {}", node.pods[2].device));
    node.apply(vec![PolicyDelta::Endpoint(Arc::new(next))]);
    let deadline = Instant::now() + LONG;
    while tracked(&node).iter().any(|f| f.original.dst == address && f.mark & closed() == 0) {
        assert!(Instant::now() < deadline, "{:?}", tracked(&node));
        std::thread::sleep(Duration::from_millis(20));
    }
    while arrives(&near, to, &node.pods[2].udp[0]) {
        assert!(Instant::now() < deadline, "{}", node.dump());
    }
}
