//! Policy beside somebody else's network (`--networking none`), under real packets: the plugin with `host-local`
//! addresses and routes nobody of ours writes (as Canal does it with Flannel), and the reference `bridge` plugin, whose
//! pods share a bridge and have devices of that plugin's making. Needs root and Debian's containernetworking-plugins.

use std::{net::IpAddr, path::Path, process::Command, time::Duration};

use brindle_config_core::{
    Key, Kind, ObjectMeta,
    workload::{WorkloadEndpointSpec, endpoint_name},
};
use brindle_integration::{
    cni::{CniNode, Container, Said, sh},
    netns::TestNs,
    policy::{
        lab::{BackEnd, status},
        probe::{Attempt, Probe, Prober},
        world::{calico, gnp, k8s},
    },
    wait::until,
};
use brindle_kernel::netns::NetNs;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);
/// A whole handshake, a datagram, an echo request.
const PROBES: [Probe; 3] = [Probe::Tcp(80), Probe::Udp(80), Probe::Ping];

/// Who sends and receives, by position.
struct Sites {
    prober: Prober,
    addresses: Vec<Vec<IpAddr>>,
}

impl Sites {
    fn new(all: &[(&TestNs, Vec<IpAddr>)]) -> Self {
        for (ns, _) in all {
            // An IPv6 address is nobody's until the kernel has asked around.
            until("addresses can be used", LONG, || {
                let out =
                    ns.ns().run(|| Command::new("ip").args(["-6", "addr", "show", "tentative"]).output());
                let out = out.expect("the namespace is alive").expect("there is ip");
                if out.stdout.is_empty() {
                    Ok(())
                } else {
                    Err(String::from_utf8_lossy(&out.stdout).into_owned())
                }
            });
        }
        let namespaces = all.iter().map(|(ns, _)| NetNs::named(ns.name()).expect("it was made")).collect();
        let prober = Prober::new(namespaces).expect("servers can be opened");
        Self { prober, addresses: all.iter().map(|(_, a)| a.clone()).collect() }
    }

    /// Every probe between these in each family both have: all of it passes, or nothing does.
    #[track_caller]
    fn expect(&mut self, pairs: &[(usize, usize)], wanted: bool) {
        let mut attempts = Vec::new();
        for &(from, to) in pairs {
            for (src, dst) in self.addresses[from].iter().zip(&self.addresses[to]) {
                attempts.extend(PROBES.map(|probe| Attempt { from, to, src: *src, dst: *dst, probe }));
            }
        }
        self.try_all(&attempts, wanted);
    }

    /// The same, but of the first family and to a service's address, which leads to `to`.
    #[track_caller]
    fn expect_through(&mut self, service: &str, from: usize, to: usize, wanted: bool) {
        let (src, dst) = (self.addresses[from][0], service.parse().expect("an address"));
        self.try_all(&PROBES.map(|probe| Attempt { from, to, src, dst, probe }), wanted);
    }

    #[track_caller]
    fn try_all(&mut self, attempts: &[Attempt], wanted: bool) {
        let all = vec![wanted; attempts.len()];
        // Neighbours may have to be found first.
        let rounds = if wanted { 3 } else { 1 };
        let mut got = Vec::new();
        for _ in 0..rounds {
            got = self.prober.round(attempts, &all).expect("packets can be sent");
            if got == all {
                return;
            }
        }
        let wrong: Vec<_> = attempts.iter().zip(got).filter(|(_, g)| *g != wanted).map(|(a, _)| a).collect();
        panic!("must {}: {wrong:#?}", if wanted { "arrive" } else { "not arrive" });
    }
}

fn key_of(r: &Value) -> Key {
    let text = |at: &str| r.pointer(at).and_then(Value::as_str);
    let kind = Kind::parse_written(text("/apiVersion"), text("/kind").expect("a kind")).expect("known");
    Key::new(kind, text("/metadata/namespace"), text("/metadata/name").expect("a name"))
}

/// Writes resources and waits until all of these agents enforce them.
#[track_caller]
fn put(nodes: &[&CniNode], resources: &[Value]) {
    let Some(first) = nodes.first() else { return };
    let mut last = 0;
    for r in resources {
        last = first.put_value(&key_of(r), r);
    }
    reached(nodes, last);
}

#[track_caller]
fn reached(nodes: &[&CniNode], revision: u64) {
    for node in nodes {
        until("it is in force", LONG, || {
            let at = status(node).map(|s| s.policy.revision).unwrap_or_default();
            if at >= revision { Ok(()) } else { Err(format!("{at} of {revision}\n{}", node.log())) }
        });
    }
}

fn addresses(said: &Said) -> Vec<IpAddr> {
    let ips = said.json()["ips"].as_array().cloned().unwrap_or_default();
    let text = |i: &Value| i["address"].as_str().unwrap_or_default().to_owned();
    ips.iter().map(|i| text(i).split('/').next().unwrap_or_default().parse().expect("an address")).collect()
}

fn pod_name(c: &Container) -> String {
    format!("pod-{}", c.id)
}

fn endpoint_key(node: &CniNode, c: &Container) -> Key {
    let name = endpoint_name(&node.name, "k8s", &pod_name(c), "eth0");
    Key::new(Kind::WorkloadEndpoint, Some("default"), &name)
}

#[test]
fn pods_with_host_local_addresses_are_policed_while_others_route() {
    let mut one = CniNode::without_agent("only", "10.244.0.0/16");
    let mut two = one.neighbour("only");
    // What Flannel's host-gw writes.
    sh(one.ns.ns(), "ip route add 10.244.2.0/24 via 192.0.2.2 dev eth0 proto static");
    sh(two.ns.ns(), "ip route add 10.244.1.0/24 via 192.0.2.1 dev eth0 proto static");
    one.start_agent();
    two.start_agent();
    let conf = |node: &CniNode, third: u8| {
        let mut conf = node.conf();
        conf["ipam"] = json!({"type": "host-local", "dataDir": node.dir.join("host-local"),
            "ranges": [[{"subnet": format!("10.244.{third}.0/24")}]]});
        conf
    };
    let conf = [conf(&one, 1), conf(&two, 2)];
    let pods = [Container::new(), Container::new(), Container::new()];
    let mut said = Vec::new();
    for (c, at) in pods.iter().zip([0, 0, 1]) {
        let answer = [&one, &two][at].call("ADD", c, &conf[at]);
        assert!(answer.ok, "{answer:?}");
        said.push(answer);
    }
    let all: Vec<_> = pods.iter().zip(&said).map(|(c, s)| (&c.ns, addresses(s))).collect();
    let mut sites = Sites::new(&all);
    let (a, b, c) = (0, 1, 2);
    let everyone = [(a, b), (b, a), (a, c), (c, a), (b, c), (c, b)];
    sites.expect(&everyone, true);

    // b takes from c alone, on the other node; c takes from nobody but a.
    let label = |node: &CniNode, pod: &Container, value: &str| {
        node.edit(&endpoint_key(node, pod), |e| e["metadata"]["labels"]["app"] = json!(value));
    };
    label(&one, &pods[0], "a");
    label(&one, &pods[1], "b");
    label(&two, &pods[2], "c");
    let only = |to: &str, from: &str| {
        k8s(
            "default",
            to,
            json!({"podSelector": {"matchLabels": {"app": to}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": from}}}]}]}),
        )
    };
    put(&[&one, &two], &[only("b", "c"), only("c", "a")]);
    let allowed = [(c, b), (a, c), (b, a), (c, a)];
    let denied = [(a, b), (b, c)];
    sites.expect(&allowed, true);
    sites.expect(&denied, false);

    // A service on the one node whose pod is on the other: that pod judges who asked.
    let to_c = format!(
        "nft add table ip others; nft 'add chain ip others pre {{ type nat hook prerouting priority -100; }}'; \
         nft add rule ip others pre ip daddr 10.96.0.10 dnat to {}",
        all[c].1[0]
    );
    sh(one.ns.ns(), &to_c);
    sites.expect_through("10.96.0.10", a, c, true);
    sites.expect_through("10.96.0.10", b, c, false);

    // The agent dies and comes back: the same all the time, and nothing is written again.
    one.kill_agent();
    sites.expect(&allowed, true);
    sites.expect(&denied, false);
    one.start_agent();
    put(&[&one], &[gnp("nobody", json!({"selector": "app == 'nobody'"}))]);
    let p = status(&one).expect("it answers").policy;
    assert_eq!((p.table_writes, p.set_writes, p.nft_writes, p.repairs), (0, 0, 0, 0), "{p:?}");
    sites.expect(&allowed, true);
    sites.expect(&denied, false);

    // A pod that comes later is denied what the others are from its first packet on.
    let late = Container::new();
    let answer = one.call("ADD", &late, &conf[0]);
    assert!(answer.ok, "{answer:?}");
    let more: Vec<_> = all.iter().cloned().chain([(&late.ns, addresses(&answer))]).collect();
    let mut sites = {
        drop(sites);
        Sites::new(&more)
    };
    sites.expect(&[(3, b), (3, c)], false);
    sites.expect(&[(3, a)], true);

    // Routes of others stay as they are, also when our pods have gone.
    for (c, node, at) in [(&pods[0], &one, 0), (&pods[1], &one, 0), (&late, &one, 0), (&pods[2], &two, 1)] {
        let answer = node.call("DEL", c, &conf[at]);
        assert!(answer.ok, "{answer:?}");
    }
    one.settled(&[]);
    for (node, net) in [(&one, "10.244.2.0/24"), (&two, "10.244.1.0/24")] {
        sh(node.ns.ns(), &format!("ip route show {net} proto static | grep -q via"));
    }
}

/// A pod by the reference plugin.
fn bridged(node: &CniNode, c: &Container) -> Said {
    let conf = json!({"cniVersion": "1.0.0", "name": "br", "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": {"type": "host-local", "dataDir": node.dir.join("host-local"),
            "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:244:1::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}});
    let said = node.run(&mut node.command(Path::new("/usr/lib/cni/bridge"), "ADD", &c.id, &c.netns()), &conf);
    assert!(said.ok, "apt-get install containernetworking-plugins: {said:?}");
    said
}

/// What the datastore of Kubernetes makes of such a pod: nobody says which device it has, so it has the name Calico's
/// plugin would have given it.
fn announce(node: &CniNode, c: &Container, n: usize, addresses: &[IpAddr], app: &str) {
    let spec = WorkloadEndpointSpec {
        orchestrator: "k8s".into(),
        node: node.name.clone(),
        pod: pod_name(c),
        endpoint: "eth0".into(),
        ip_networks: addresses.iter().map(|a| (*a).into()).collect(),
        profiles: vec!["kns.default".into()],
        interface_name: format!("cali{n:011x}"),
        ..WorkloadEndpointSpec::default()
    };
    let key = endpoint_key(node, c);
    let mut meta = ObjectMeta { namespace: Some(key.namespace.clone()), ..ObjectMeta::named(&key.name) };
    meta.labels.insert("app".into(), app.into());
    meta.labels.insert("projectcalico.org/namespace".into(), "default".into());
    meta.labels.insert("projectcalico.org/orchestrator".into(), "k8s".into());
    node.put(meta, spec);
}

fn on_a_bridge(back_end: BackEnd) {
    let mut node = CniNode::without_agent("bridge", "10.244.0.0/16");
    node.vars.push(("FELIX_INTERFACEPREFIX".into(), "cni0".into()));
    let felix = calico("FelixConfiguration", "", "default", &back_end.configuration());
    node.put_value(&key_of(&felix), &felix);
    node.start_agent();
    // A host outside, reached by routing.
    let outside = TestNs::new(&format!("brout{}", node.ns.name().rsplit('-').next().unwrap_or_default()));
    sh(
        node.ns.ns(),
        &format!(
            "ip link add wire type veth peer name eth0 netns {}; ip link set wire master eth0 up; \
             ip addr add fd00:2::1/64 dev eth0 nodad; sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv4.ip_forward=1",
            outside.name()
        ),
    );
    sh(
        outside.ns(),
        "ip link set eth0 up; ip addr add 192.0.2.7/24 dev eth0; ip addr add fd00:2::7/64 dev eth0 nodad; \
         ip route add default via 192.0.2.1; ip route add default via fd00:2::1",
    );
    let ip = |text: &str| text.parse::<IpAddr>().expect("a literal");
    let pods = [Container::new(), Container::new(), Container::new()];
    let mut all: Vec<_> = pods.iter().map(|c| (&c.ns, addresses(&bridged(&node, c)))).collect();
    all.push((&outside, vec![ip("192.0.2.7"), ip("fd00:2::7")]));
    let gateway = vec![ip("10.244.1.1"), ip("fd00:244:1::1")];
    all.push((&node.ns, gateway));
    let mut sites = Sites::new(&all);
    let (a, b, c, out, host) = (0, 1, 2, 3, 4);

    // Nobody knows these pods yet: they are not open, on their bridge or beyond.
    put(&[&node], &[gnp("nobody", json!({"selector": "app == 'nobody'"}))]);
    sites.expect(&[(a, b), (b, c), (a, out), (out, a)], false);
    for (n, (pod, app)) in pods.iter().zip(["a", "b", "c"]).enumerate() {
        announce(&node, pod, n, &all[n].1, app);
    }
    put(&[&node], &[gnp("nobody", json!({"selector": "app == 'nobody'", "order": 1}))]);
    let among = [(a, b), (b, a), (a, c), (c, a), (b, c), (c, b)];
    let beyond = [(a, out), (out, a), (host, a), (b, host)];
    sites.expect(&among, true);
    sites.expect(&beyond, true);

    // b takes from c alone; a sends to c alone.
    let (only, to) = (
        k8s(
            "default",
            "b",
            json!({"podSelector": {"matchLabels": {"app": "b"}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "c"}}}]}]}),
        ),
        k8s(
            "default",
            "a",
            json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"],
                "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "c"}}}]}]}),
        ),
    );
    put(&[&node], &[only, to]);
    let allowed = [(c, b), (a, c), (b, a), (c, a), (out, a), (b, out), (host, a), (host, b)];
    let denied = [(a, b), (a, out), (a, host), (out, b)];
    sites.expect(&allowed, true);
    sites.expect(&denied, false);

    node.kill_agent();
    sites.expect(&allowed, true);
    sites.expect(&denied, false);
    node.start_agent();
    put(&[&node], &[gnp("nobody", json!({"selector": "app == 'nobody'", "order": 2}))]);
    let s = status(&node).expect("it answers");
    let p = &s.policy;
    assert_eq!((p.table_writes, p.set_writes, p.nft_writes, p.repairs), (0, 0, 0, 0), "{p:?}");
    assert_eq!((&*p.back_end, &p.problems), (back_end.name(), &Vec::new()), "{p:?}");
    sites.expect(&allowed, true);
    sites.expect(&denied, false);

    // Packets that never leave the bridge reach the rules only because the kernel is told to show them.
    sh(node.ns.ns(), "sysctl -qw net.bridge.bridge-nf-call-iptables=0");
    put(&[&node], &[gnp("nobody", json!({"selector": "app == 'nobody'", "order": 3}))]);
    node.remove(&endpoint_key(&node, &pods[c]));
    until("it is named", LONG, || {
        let p = status(&node).map(|s| s.policy).unwrap_or_default();
        let named = |l: &String| l.contains("cni0") && l.contains("bridge-nf-call-iptables is not 1");
        if p.problems.iter().any(named) { Ok(()) } else { Err(format!("{p:?}\n{}", node.log())) }
    });
    sh(node.ns.ns(), "sysctl -qw net.bridge.bridge-nf-call-iptables=1");
    // A pod that has gone from the datastore is nobody's again.
    sites.expect(&[(c, b), (c, a), (out, c)], false);
}

#[test]
fn pods_on_a_bridge_are_policed_by_their_addresses_with_iptables_legacy() {
    on_a_bridge(BackEnd::Legacy);
}

#[test]
fn pods_on_a_bridge_are_policed_by_their_addresses_with_iptables_nft() {
    on_a_bridge(BackEnd::Nft);
}

#[test]
fn pods_on_a_bridge_are_policed_by_their_addresses_with_nftables() {
    on_a_bridge(BackEnd::Nftables);
}
