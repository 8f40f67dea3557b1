//! A node with nine pods (three namespaces of three) by the real plugin under the real agent, and two hosts outside: one
//! behind `eth0`, which host endpoints name, one behind `eth1`.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::IpAddr,
    os::unix::net::UnixStream,
    process::Command,
    time::Duration,
};

use brindle_config_core::{
    Key, Kind, ObjectMeta,
    pool::IpPoolSpec,
    status::{AdminRequest, NodeStatus, PolicyStatus},
};
use brindle_kernel::netns::NetNs;
use serde_json::{Value, json};

use super::{
    oracle::Spot,
    probe::{Attempt, Probe, Prober},
};
use crate::{
    cni::{CniNode, Container, Said, sh},
    netns::TestNs,
    wait::until,
};

/// How long the agent may take to enforce something on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Address of the node on its uplinks.
pub const HOST: [&str; 2] = ["192.168.0.1", "fd00:1::1"];
/// The hosts outside: behind eth0 and behind eth1.
pub const OUTSIDE: [[&str; 2]; 2] = [["10.9.1.7", "fd00:2::2"], ["10.8.0.9", "fd00:3::2"]];

/// What rules are written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackEnd {
    Legacy,
    Nft,
    Nftables,
}

impl BackEnd {
    pub const ALL: [Self; 3] = [Self::Legacy, Self::Nft, Self::Nftables];

    /// As the status calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Legacy => "iptables-legacy",
            Self::Nft => "iptables-nft",
            Self::Nftables => "nftables",
        }
    }

    /// Fields of FelixConfiguration.
    pub fn configuration(self) -> Value {
        match self {
            Self::Legacy => json!({"nftablesMode": "Disabled", "iptablesBackend": "Legacy"}),
            Self::Nft => json!({"nftablesMode": "Disabled", "iptablesBackend": "NFT"}),
            Self::Nftables => json!({"nftablesMode": "Enabled", "iptablesBackend": "Auto"}),
        }
    }
}

/// Somebody who sends and receives.
#[derive(Clone, Debug)]
pub struct Site {
    /// `ns1/p1`, `host`, `out1`, `out2`.
    pub name: String,
    /// IPv4 and IPv6.
    pub addresses: [IpAddr; 2],
    pub(crate) spot: Spot,
}

/// The node, what is in its store, and who can be asked.
pub struct PolicyLab {
    pub node: CniNode,
    pub back_end: BackEnd,
    pub sites: Vec<Site>,
    pub prober: Prober,
    pods: Vec<Container>,
    outside: Vec<TestNs>,
    /// Endpoints as the agent made them.
    endpoints: BTreeMap<(String, String), (Key, Value)>,
    stored: BTreeMap<Key, Value>,
    marker: u64,
    /// Repairs known so far.
    pub(crate) repairs: u64,
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

/// Who can be asked, with the addresses that are asked for: nine pods, the host, those outside.
pub fn sites() -> Vec<Site> {
    let pod = |i: usize, j: usize| {
        let (ns, name) = (format!("ns{}", i + 1), format!("p{}", j + 1));
        let addresses = [format!("10.0.{i}.{}", j + 1), format!("fd00::{i}:{}", j + 1)];
        Site { name: format!("{ns}/{name}"), addresses: addresses.map(|a| ip(&a)), spot: Spot::Pod(ns, name) }
    };
    let mut sites: Vec<Site> = (0..9).map(|n| pod(n / 3, n % 3)).collect();
    sites.push(Site { name: "host".into(), addresses: HOST.map(ip), spot: Spot::Host(false) });
    sites.extend(OUTSIDE.iter().enumerate().map(|(i, addresses)| Site {
        name: format!("out{}", i + 1),
        addresses: addresses.map(ip),
        spot: Spot::Outside(i == 0),
    }));
    sites
}

/// All pairs of sites with something of the node between them, both families, every probe.
pub fn attempts(sites: &[Site]) -> Vec<Attempt> {
    let mut out = Vec::new();
    for from in 0..sites.len() {
        for to in (0..sites.len()).filter(|to| *to != from) {
            for probe in Probe::ALL {
                for family in [0, 1] {
                    if probe == Probe::Timestamp && family == 1 {
                        continue;
                    }
                    let (src, dst) = (sites[from].addresses[family], sites[to].addresses[family]);
                    out.push(Attempt { from, to, src, dst, probe });
                }
            }
        }
    }
    out
}

impl PolicyLab {
    /// Builds everything; no policy yet.
    pub fn new(back_end: BackEnd) -> Self {
        let mut node = CniNode::without_agent("pol", "10.0.0.0/16");
        node.put(ObjectMeta::named("pool6"), IpPoolSpec::new("fd00::/112".parse().expect("a literal")));
        node.put(ObjectMeta::named("pool6b"), IpPoolSpec::new("fd00::1:0/112".parse().expect("a literal")));
        node.put(ObjectMeta::named("pool6c"), IpPoolSpec::new("fd00::2:0/112".parse().expect("a literal")));
        let outside = vec![uplink(&node, "eth0", 0), uplink(&node, "eth1", 1)];
        let mut stored = BTreeMap::new();
        put(&node, &mut stored, &configuration(back_end, &json!({})));
        node.start_agent();
        let (mut namespaces, mut pods) = (Vec::new(), Vec::new());
        let mut endpoints = BTreeMap::new();
        let sites = sites();
        for site in &sites {
            let Spot::Pod(ns, name) = &site.spot else { continue };
            let c = Container::new();
            let said = add(&node, &c, ns, name, &site.addresses.map(|a| a.to_string()));
            assert!(said.ok, "{said:?}\n{}", node.log());
            let key = Key::new(Kind::WorkloadEndpoint, Some(ns), &format!("n1-k8s-{name}-eth0"));
            let value = node.value(&key);
            endpoints.insert((ns.clone(), name.clone()), (key, value));
            namespaces.push(NetNs::named(c.ns.name()).expect("it was made"));
            pods.push(c);
        }
        namespaces.push(NetNs::named(node.ns.name()).expect("it was made"));
        for ns in &outside {
            namespaces.push(NetNs::named(ns.name()).expect("it was made"));
        }
        let prober =
            Prober::new(namespaces).expect("servers can be opened: is something else on their ports?");
        Self { node, back_end, sites, prober, pods, outside, endpoints, stored, marker: 0, repairs: 0 }
    }

    /// All pairs of sites.
    pub fn attempts(&self) -> Vec<Attempt> {
        attempts(&self.sites)
    }

    /// Makes the store say this and waits until it is in force. Workload endpoints among the resources lend labels,
    /// ports, profiles and accounts to the real ones; a FelixConfiguration keeps the back end.
    pub fn set(&mut self, resources: &[Value]) {
        self.store(resources);
        self.settle();
    }

    /// Makes the store say this, as [`Self::set`], whether or not there is an agent.
    pub fn store(&mut self, resources: &[Value]) {
        let mut wanted: BTreeMap<Key, Value> = BTreeMap::new();
        let mut settings = json!({});
        for r in resources {
            match r["kind"].as_str() {
                Some("WorkloadEndpoint") => {
                    let (key, value) = self.endpoint(r);
                    wanted.insert(key, value);
                }
                Some("FelixConfiguration") => settings = r["spec"].clone(),
                _ => {
                    wanted.insert(key_of(r), r.clone());
                }
            }
        }
        let felix = configuration(self.back_end, &settings);
        wanted.insert(key_of(&felix), felix);
        let gone: Vec<Key> = self.stored.keys().filter(|k| !wanted.contains_key(*k)).cloned().collect();
        for key in gone {
            // An endpoint nobody speaks of stays as it was made.
            if key.kind != Kind::WorkloadEndpoint {
                self.node.remove(&key);
                self.stored.remove(&key);
            }
        }
        for (key, value) in wanted {
            if self.stored.get(&key) != Some(&value) {
                self.node.put_value(&key, &value);
                self.stored.insert(key, value);
            }
        }
    }

    /// Rules are to be written with another back end; everything else stays.
    pub fn change_back_end(&mut self, back_end: BackEnd) {
        self.back_end = back_end;
        put(&self.node, &mut self.stored, &configuration(back_end, &json!({})));
        self.settle();
    }

    /// Waits until all that was written so far is in force: a last resource, without any effect, tells.
    pub fn settle(&mut self) {
        self.marker += 1;
        let marker = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet",
            "metadata": {"name": "zz-marker", "annotations": {"n": self.marker.to_string()}},
            "spec": {"nets": []}});
        let revision = self.node.put_value(&key_of(&marker), &marker);
        until("policy is in force", LIMIT, || {
            let p = self.policy();
            if p.revision >= revision { Ok(()) } else { Err(format!("{p:?}\n{}", self.node.log())) }
        });
    }

    /// The agent's word on policy.
    pub fn policy(&self) -> PolicyStatus {
        status(&self.node).map(|s| s.policy).unwrap_or_default()
    }

    /// Position of a site.
    pub fn site(&self, name: &str) -> usize {
        let at = self.sites.iter().position(|s| s.name == name);
        at.unwrap_or_else(|| panic!("no site {name}"))
    }

    /// The namespaces of all sites, by position.
    pub(super) fn namespaces(&self) -> Vec<NetNs> {
        let pods = self.pods.iter().map(|c| c.ns.name());
        let all = pods.chain([self.node.ns.name()]).chain(self.outside.iter().map(TestNs::name));
        all.map(|n| NetNs::named(n).expect("it was made")).collect()
    }

    /// The namespace of a host outside: 0 behind eth0, 1 behind eth1.
    pub fn outside(&self, i: usize) -> &NetNs {
        self.outside[i].ns()
    }

    /// A pod's container.
    pub fn pod(&self, site: usize) -> &Container {
        &self.pods[site]
    }

    /// One more pod, which nobody is asked for.
    pub fn newcomer(&self, ns: &str, name: &str, addresses: &[String; 2]) -> Container {
        let c = Container::new();
        let said = add(&self.node, &c, ns, name, addresses);
        assert!(said.ok, "{said:?}\n{}", self.node.log());
        c
    }

    /// The rules of all back ends, for a report.
    pub fn dump(&self) -> String {
        let mut all = String::new();
        for line in [
            "iptables-legacy-save -c",
            "ip6tables-legacy-save -c",
            "iptables-nft-save -c",
            "ip6tables-nft-save -c",
            "ipset save",
            "nft list ruleset",
        ] {
            let out = self.node.ns.ns().run(|| Command::new("sh").args(["-c", line]).output());
            let out = out.expect("the namespace is alive").expect("there is a shell");
            all.push_str(&format!("== {line}\n{}", String::from_utf8_lossy(&out.stdout)));
        }
        all
    }

    fn endpoint(&self, wish: &Value) -> (Key, Value) {
        let of = |at: &str| wish.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        let id = (of("/metadata/namespace"), of("/metadata/name"));
        let (key, made) = self.endpoints.get(&id).unwrap_or_else(|| panic!("{id:?} is no pod of the lab"));
        let mut value = made.clone();
        if let Some(labels) = wish["metadata"]["labels"].as_object() {
            for (k, v) in labels {
                value["metadata"]["labels"][k] = v.clone();
            }
        }
        for field in ["ports", "profiles", "serviceAccountName"] {
            if let Some(v) = wish["spec"].get(field) {
                value["spec"][field] = v.clone();
            }
        }
        (key.clone(), value)
    }
}

fn key_of(r: &Value) -> Key {
    let text = |at: &str| r.pointer(at).and_then(Value::as_str);
    let kind =
        Kind::parse_written(text("/apiVersion"), text("/kind").expect("a kind")).expect("a known kind");
    Key::new(kind, text("/metadata/namespace"), text("/metadata/name").expect("a name"))
}

fn put(node: &CniNode, stored: &mut BTreeMap<Key, Value>, r: &Value) {
    node.put_value(&key_of(r), r);
    stored.insert(key_of(r), r.clone());
}

fn configuration(back_end: BackEnd, more: &Value) -> Value {
    let mut spec = back_end.configuration();
    for (k, v) in more.as_object().into_iter().flatten() {
        spec[k] = v.clone();
    }
    json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
        "metadata": {"name": "default"}, "spec": spec})
}

/// What the agent of a node says about itself; `None` while there is none.
pub fn status(node: &CniNode) -> Option<NodeStatus> {
    let mut s = UnixStream::connect(node.dir.join("admin.sock")).ok()?;
    s.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut line = serde_json::to_string(&AdminRequest::Status).ok()?;
    line.push('\n');
    s.write_all(line.as_bytes()).ok()?;
    let mut answer = String::new();
    BufReader::new(s).read_line(&mut answer).ok()?;
    serde_json::from_str(&answer).ok()
}

/// A pod with these addresses.
fn add(node: &CniNode, c: &Container, ns: &str, name: &str, addresses: &[String; 2]) -> Said {
    let mut conf = node.conf();
    conf["runtimeConfig"] = json!({ "ips": addresses });
    conf["capabilities"] = json!({"ips": true});
    let mut command = node.command(&crate::bins::bin("brindle"), "ADD", &c.id, &c.netns());
    command.env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={ns};K8S_POD_NAME={name}"));
    node.run(&mut command, &conf)
}

/// A host outside, behind a device of the node; `eth0` is there already, as a bridge.
fn uplink(node: &CniNode, device: &str, i: usize) -> TestNs {
    let ns = TestNs::new(&format!("out{i}-{}", node.ns.name().rsplit('-').next().unwrap_or_default()));
    let [v4, v6] = OUTSIDE[i];
    let inside = node.ns.ns();
    if device == "eth0" {
        sh(
            inside,
            &format!("ip addr add {}/32 dev eth0; ip addr add {}/128 dev eth0 nodad", HOST[0], HOST[1]),
        );
    } else {
        // Without an address of its own: a host endpoint known by the node's addresses means eth0 alone.
        sh(inside, &format!("ip link add {device} type bridge; ip link set {device} up"));
    }
    sh(
        inside,
        &format!(
            "ip link add up{i} type veth peer name eth0 netns {}; ip link set up{i} master {device} up",
            ns.name()
        ),
    );
    sh(
        ns.ns(),
        &format!(
            "ip link set eth0 up; ip addr add {v4}/32 dev eth0; ip addr add {v6}/128 dev eth0 nodad; \
             ip route add {0}/32 dev eth0; ip route add default via {0}; \
             ip route add {1}/128 dev eth0; ip route add default via {1}",
            HOST[0], HOST[1]
        ),
    );
    sh(
        inside,
        &format!(
            "ip route add {v4}/32 dev {device} src {}; ip route add {v6}/128 dev {device}; \
             echo 0 > /proc/sys/net/ipv4/conf/{device}/rp_filter",
            HOST[0]
        ),
    );
    // Policy of the host may deny neighbour discovery, and a packet that finds no neighbour says nothing about policy.
    let mac = |ns: &TestNs, device: &str| {
        let link = ns.rtnl().link_by_name(device).expect("links can be listed").expect("it was made");
        link.mac.expect("an Ethernet device").to_string()
    };
    let (near, far) = (mac(&node.ns, device), mac(&ns, "eth0"));
    for (at, link, mac, addresses) in [(ns.ns(), "eth0", &near, HOST), (inside, device, &far, OUTSIDE[i])] {
        for a in addresses {
            sh(at, &format!("ip neigh replace {a} lladdr {mac} dev {link} nud permanent"));
        }
    }
    ns
}
