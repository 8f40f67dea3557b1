//! Random clusters, policies and packets, as JSON: a function of the seed.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Flow, GROUPS, SELECTORS, Spot};

/// SplitMix64.
pub(crate) struct Random(u64);

const SPACES: [&str; 3] = ["ns1", "ns2", "ns3"];
const PODS: [&str; 3] = ["p1", "p2", "p3"];
const APPS: [&str; 3] = ["a", "b", "c"];

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).expect("small")
    }

    /// True once in `n` times.
    fn once(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    fn labels(&mut self, group: bool) -> Value {
        let mut out = json!({});
        if group {
            if !self.once(3) {
                out["team"] = self.pick(&["red", "blue"]).into();
            }
            return out;
        }
        if !self.once(4) {
            out["app"] = self.pick(&APPS).into();
        }
        if self.once(2) {
            out["tier"] = self.pick(&["x", "y"]).into();
        }
        out
    }

    /// Perhaps labels that look like those of another namespace or account.
    fn disguise(&mut self, resource: &mut Value) {
        if self.once(4) {
            let name = self.pick(&["pcns.team", "pcsa.team", "pcns.projectcalico.org/name"]);
            resource["metadata"]["labels"][name] = self.pick(&["red", "blue", "ns1"]).into();
        }
    }

    fn calico(kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
        let mut meta = json!({ "name": name });
        if !namespace.is_empty() {
            meta["namespace"] = namespace.into();
        }
        json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": meta, "spec": spec})
    }

    /// A whole cluster, seen from node `n1`, where all its pods are.
    pub(crate) fn resources(&mut self) -> Vec<Value> {
        let mut felix =
            json!({"defaultEndpointToHostAction": self.pick(&["Drop", "Drop", "Accept", "Return"])});
        if self.once(4) {
            felix["vxlanPort"] = 4790.into();
        }
        let mut out = vec![json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
            "metadata": {"name": "default"}, "spec": felix})];
        for (i, ns) in SPACES.iter().enumerate() {
            if !self.once(5) {
                let labels = self.labels(true);
                out.push(json!({"apiVersion": "v1", "kind": "Namespace", "spec": {},
                    "metadata": {"name": ns, "labels": labels}}));
            }
            if self.once(2) {
                let labels = self.labels(true);
                out.push(json!({"apiVersion": "v1", "kind": "ServiceAccount", "spec": {},
                    "metadata": {"name": "robot", "namespace": ns, "labels": labels}}));
            }
            for (j, pod) in PODS.iter().enumerate() {
                let http = self.pick(&[80, 81]);
                let mut spec = json!({"orchestrator": "k8s", "node": "n1", "endpoint": "eth0",
                    "interfaceName": format!("cali{i}{j}"), "profiles": [format!("kns.{ns}")],
                    "ipNetworks": [format!("10.0.{i}.{}/32", j + 1), format!("fd00::{i}:{}/128", j + 1)],
                    "ports": [{"name": "http", "protocol": "TCP", "port": http},
                        {"name": "dns", "protocol": "UDP", "port": 53}]});
                if self.once(2) {
                    spec["serviceAccountName"] = self.pick(&["robot", "other"]).into();
                }
                if self.once(8) {
                    spec["profiles"] = json!(["custom", format!("kns.{ns}")]);
                }
                let mut wep = Self::calico("WorkloadEndpoint", ns, pod, spec);
                wep["metadata"]["labels"] = self.labels(false);
                self.disguise(&mut wep);
                out.push(wep);
            }
        }
        let rules =
            |r: &mut Self, egress| (0..r.below(3)).map(|_| r.rule("", egress, false)).collect::<Vec<_>>();
        let (ingress, egress) = (rules(self, false), rules(self, true));
        out.push(Self::calico("Profile", "", "custom", json!({"ingress": ingress, "egress": egress})));
        for (kind, ns, net) in [("GlobalNetworkSet", "", "10.9.0.0/16"), ("NetworkSet", "ns1", "10.8.0.0/24")]
        {
            let more = self.pick(&["10.9.1.0/24", "0.0.0.0/0", "10.0.0.1/32"]);
            let mut set = Self::calico(kind, ns, "set", json!({"nets": [net, more]}));
            set["metadata"]["labels"] = self.labels(false);
            if !ns.is_empty() {
                self.disguise(&mut set);
            }
            out.push(set);
        }
        self.host_endpoints(&mut out);
        for name in ["first", "second"] {
            let mut spec = json!({"order": self.pick(&[10.0, 20.0, 2_000_000.0])});
            if self.once(2) {
                spec["defaultAction"] = "Pass".into();
            }
            out.push(Self::calico("Tier", "", name, spec));
        }
        let backends: Vec<String> =
            (0..2).map(|_| format!("10.0.{}.{}", self.below(3), self.below(3) + 1)).collect();
        out.push(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "spec": {},
            "addressType": "IPv4", "metadata": {"name": "web-x", "namespace": "ns1",
            "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": [{"addresses": backends}], "ports": [{"port": 80, "protocol": "TCP"}]}));
        for i in 0..1 + self.below(7) {
            let policy = self.policy(i);
            // There is one baseline of that name.
            if !out.iter().any(|r| r["kind"] == policy["kind"] && r["metadata"] == policy["metadata"]) {
                out.push(policy);
            }
        }
        out
    }

    /// One for `eth0`, by name or by its address, perhaps contested; perhaps one for all other interfaces.
    fn host_endpoints(&mut self, out: &mut Vec<Value>) {
        let mut put = |r: &mut Self, name: &str, spec: &Value| {
            let mut hep = Self::calico("HostEndpoint", "", name, spec.clone());
            hep["metadata"]["labels"] = r.labels(false);
            out.push(hep);
        };
        let ips = ["192.168.0.1", "fd00:1::1"];
        let own = self.pick(&[
            json!({"node": "n1", "interfaceName": "eth0", "expectedIPs": ips}),
            json!({"node": "n1", "expectedIPs": ips}),
        ]);
        put(self, "h", &own);
        if self.once(8) {
            // Known by one address it is another one of the same device, unless the first one names that.
            let other = self.pick(&[
                own,
                json!({"node": "n1", "expectedIPs": [ips[0]]}),
                json!({"node": "n1", "expectedIPs": [ips[1]]}),
            ]);
            put(self, "i", &other);
        }
        if self.once(3) {
            put(self, "x", &json!({"node": "n1", "interfaceName": "*"}));
        }
    }

    fn policy(&mut self, i: usize) -> Value {
        let name = format!("policy{i}");
        let ns = self.pick(&SPACES);
        match self.below(8) {
            7 => self.admin(&name),
            0 | 1 => {
                let spec = self.kubernetes();
                json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                    "metadata": {"name": name, "namespace": ns}, "spec": spec})
            }
            2 => {
                let spec = self.cluster();
                json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
                    "metadata": {"name": name}, "spec": spec})
            }
            3 | 4 => {
                let spec = self.spec(ns);
                Self::calico("NetworkPolicy", ns, &name, spec)
            }
            _ => {
                let mut spec = self.spec("");
                if self.once(4) {
                    spec["namespaceSelector"] = self.pick(&GROUPS).0.into();
                }
                if self.once(3) {
                    spec["applyOnForward"] = true.into();
                    match self.below(4) {
                        0 => spec["doNotTrack"] = true.into(),
                        1 => {
                            spec["preDNAT"] = true.into();
                            spec["egress"] = json!([]);
                            spec["types"] = json!(["Ingress"]);
                        }
                        _ => {}
                    }
                }
                Self::calico("GlobalNetworkPolicy", "", &name, spec)
            }
        }
    }

    fn spec(&mut self, ns: &str) -> Value {
        let ingress: Vec<Value> = (0..self.below(3)).map(|_| self.rule(ns, false, true)).collect();
        let egress: Vec<Value> = (0..self.below(3)).map(|_| self.rule(ns, true, true)).collect();
        let mut spec = json!({"selector": self.pick(&SELECTORS).0, "ingress": ingress, "egress": egress});
        if self.once(2) {
            spec["tier"] = self.pick(&["first", "second", "default"]).into();
        }
        if !self.once(4) {
            spec["order"] = self.pick(&[1.0, 1000.0, 1500.5]).into();
        }
        if self.once(3) {
            spec["types"] = self.pick(&[json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])]);
        }
        if self.once(6) {
            spec["serviceAccountSelector"] = self.pick(&GROUPS).0.into();
        }
        spec
    }

    fn rule(&mut self, ns: &str, egress: bool, pass: bool) -> Value {
        let actions: &[&str] =
            if pass { &["Allow", "Allow", "Deny", "Pass", "Log"] } else { &["Allow", "Deny", "Log"] };
        let mut r = json!({"action": self.pick(actions)});
        let protocol = self.pick(&["TCP", "TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "", "", ""]);
        if !protocol.is_empty() {
            r["protocol"] = protocol.into();
        }
        // Beside a protocol, too: the same, or another one.
        if self.once(if protocol.is_empty() { 6 } else { 12 }) {
            r["notProtocol"] = self.pick(&[json!("UDP"), json!(6)]);
        }
        if protocol.starts_with("ICMP") && self.once(2) {
            let field = self.pick(&["icmp", "notICMP"]);
            r[field] = self.pick(&[
                json!({"type": 8}),
                json!({"type": 8, "code": 0}),
                json!({"type": 3, "code": 1}),
            ]);
        }
        if self.once(8) && !protocol.starts_with("ICMP") {
            r["ipVersion"] = self.pick(&[4, 6]).into();
        }
        let ports = matches!(protocol, "TCP" | "UDP" | "SCTP");
        // All networks of a rule are of one family.
        let six = r["ipVersion"].as_u64().map_or_else(|| self.once(6), |v| v == 6);
        for (side, peer) in [("source", !egress), ("destination", egress)] {
            if self.once(2) {
                r[side] = self.entity(ns, peer, ports, protocol.is_empty(), six, side == "destination");
            }
        }
        r
    }

    fn entity(&mut self, ns: &str, peer: bool, ports: bool, any: bool, six: bool, dst: bool) -> Value {
        let mut e = json!({});
        if peer && !ports && self.once(6) {
            e["services"] = json!({"name": "web", "namespace": "ns1"});
            if ns == "ns1" && self.once(2) {
                e["services"] = json!({"name": "web"});
            }
            return e;
        }
        if six && self.once(3) {
            e[self.pick(&["nets", "notNets"])] =
                json!([self.pick(&["fd00::/112", "fd00:2::/64", "fd00::1:0/112"])]);
        } else if !six && self.once(4) {
            let nets = ["10.0.0.0/24", "10.0.1.2", "10.9.0.0/16", "192.168.0.0/16", "0.0.0.0/0"];
            e[self.pick(&["nets", "nets", "notNets"])] =
                json!([self.pick(&nets[..4]), self.pick(&nets[..3])]);
            if self.once(6) {
                e["nets"] = json!([nets[4]]);
            }
        }
        if self.once(3) {
            e["selector"] = self.pick(&SELECTORS).0.into();
        }
        if self.once(6) {
            e["notSelector"] = self.pick(&SELECTORS[2..]).0.into();
        }
        if self.once(4) {
            e["namespaceSelector"] = if self.once(4) { "global()" } else { self.pick(&GROUPS).0 }.into();
        }
        if self.once(8) {
            e["serviceAccounts"] = self.pick(&[
                json!({"names": ["robot"]}),
                json!({"selector": "has(team)"}),
                json!({"names": ["robot", "other"], "selector": "team == 'red'"}),
            ]);
        }
        if ports && self.once(2) {
            let field = self.pick(&["ports", "ports", "notPorts"]);
            e[field] =
                self.pick(&[json!([80]), json!(["80:90", 443]), json!(["http"]), json!([53, "dns", "http"])]);
        } else if any && dst && self.once(8) {
            e["ports"] = json!(["http"]);
        }
        e
    }

    fn selector(&mut self, group: bool) -> Value {
        let (key, values) = if group { ("team", ["red", "blue"]) } else { ("app", ["a", "b"]) };
        match self.below(6) {
            0 | 1 => json!({}),
            2 => json!({"matchLabels": {key: values[0]}}),
            3 => json!({"matchExpressions": [{"key": key, "operator": "NotIn", "values": [values[0]]}]}),
            4 => json!({"matchExpressions": [{"key": key, "operator": "In", "values": values}]}),
            _ => {
                json!({"matchExpressions": [{"key": key, "operator": self.pick(&["Exists", "DoesNotExist"])}]})
            }
        }
    }

    fn kubernetes(&mut self) -> Value {
        let rules = |r: &mut Self, field: &str| -> Vec<Value> {
            (0..r.below(3))
                .map(|_| {
                    let mut rule = json!({});
                    let peers: Vec<Value> = (0..r.below(3)).map(|_| r.peer()).collect();
                    if !peers.is_empty() {
                        rule[field] = peers.into();
                    }
                    if r.once(2) {
                        rule["ports"] = r.pick(&[
                            json!([{"port": 80}]),
                            json!([{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": "http"}]),
                            json!([{"protocol": "SCTP"}]),
                            json!([{"protocol": "TCP", "port": 79, "endPort": 85}, {"protocol": "TCP", "port": 86}]),
                        ]);
                    }
                    rule
                })
                .collect()
        };
        let (ingress, egress) = (rules(self, "from"), rules(self, "to"));
        let mut spec = json!({"podSelector": self.selector(false), "ingress": ingress, "egress": egress});
        if self.once(2) {
            spec["policyTypes"] =
                self.pick(&[json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])]);
        }
        spec
    }

    fn peer(&mut self) -> Value {
        match self.below(5) {
            0 => json!({"podSelector": self.selector(false)}),
            1 => json!({"namespaceSelector": self.selector(true)}),
            2 => json!({"namespaceSelector": self.selector(true), "podSelector": self.selector(false)}),
            3 => json!({"ipBlock": {"cidr": "10.0.0.0/16", "except": ["10.0.1.0/24"]}}),
            _ => json!({"ipBlock": {"cidr": self.pick(&["0.0.0.0/0", "10.9.0.0/16", "fd00::/16"])}}),
        }
    }

    fn cluster(&mut self) -> Value {
        let peer = |r: &mut Self| match r.once(2) {
            true => json!({"namespaces": r.selector(true)}),
            false => {
                json!({"pods": {"namespaceSelector": r.selector(true), "podSelector": r.selector(false)}})
            }
        };
        let rules = |r: &mut Self, field: &str| -> Vec<Value> {
            (0..r.below(3))
                .map(|_| {
                    let peers: Vec<Value> = (0..1 + r.below(2))
                        .map(|_| match field == "to" && r.once(3) {
                            true => json!({"networks": ["10.0.0.0/24", "fd00::/16"]}),
                            false => peer(r),
                        })
                        .collect();
                    let mut rule = json!({"action": r.pick(&["Accept", "Deny", "Pass"]), field: peers});
                    if r.once(2) {
                        rule["protocols"] = r.pick(&[
                            json!([{"tcp": {"destinationPort": {"number": 80}}}, {"udp": {}}]),
                            json!([{"destinationNamedPort": "http"}]),
                            json!([{"tcp": {"destinationPort": {"range": {"start": 80, "end": 82}}}}]),
                        ]);
                    }
                    rule
                })
                .collect()
        };
        let (ingress, egress) = (rules(self, "from"), rules(self, "to"));
        json!({"tier": self.pick(&["Admin", "Baseline"]), "priority": self.below(50), "subject": peer(self),
            "ingress": ingress, "egress": egress})
    }

    /// AdminNetworkPolicy or BaselineAdminNetworkPolicy.
    fn admin(&mut self, name: &str) -> Value {
        let baseline = self.once(3);
        let (kind, name) = match baseline {
            true => ("BaselineAdminNetworkPolicy", "default"),
            false => ("AdminNetworkPolicy", name),
        };
        let actions: &[&str] = if baseline { &["Allow", "Deny"] } else { &["Allow", "Deny", "Pass"] };
        let peer = |r: &mut Self| match r.once(2) {
            true => json!({"namespaces": r.selector(true)}),
            false => {
                json!({"pods": {"namespaceSelector": r.selector(true), "podSelector": r.selector(false)}})
            }
        };
        let rules = |r: &mut Self, field: &str| -> Vec<Value> {
            (0..r.below(3))
                .map(|_| {
                    let peers: Vec<Value> = (0..1 + r.below(2)).map(|_| peer(r)).collect();
                    let mut rule = json!({"action": r.pick(actions), field: peers});
                    if r.once(2) {
                        rule["ports"] = r.pick(&[
                            json!([{"portNumber": {"protocol": "TCP", "port": 80}}]),
                            json!([{"portRange": {"protocol": "UDP", "start": 50, "end": 60}}, {"namedPort": "http"}]),
                        ]);
                    }
                    rule
                })
                .collect()
        };
        let mut spec =
            json!({"subject": peer(self), "ingress": rules(self, "from"), "egress": rules(self, "to")});
        if !baseline {
            spec["priority"] = self.below(50).into();
        }
        json!({"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": kind, "metadata": {"name": name},
            "spec": spec})
    }

    fn spot(&mut self) -> (Spot, [IpAddr; 2]) {
        let v6 = |text: String| text.parse::<IpAddr>().expect("an address");
        match self.below(8) {
            0 => (Spot::Host(self.once(2)), [v6("192.168.0.1".into()), v6("fd00:1::1".into())]),
            1 => {
                let at = self.pick(&["10.9.1.7", "10.8.0.9", "8.8.8.8"]);
                (Spot::Outside(self.once(2)), [v6(at.into()), v6("fd00:2::2".into())])
            }
            _ => {
                let (i, j) = (self.below(3), self.below(3));
                let addresses = [v6(format!("10.0.{i}.{}", j + 1)), v6(format!("fd00::{i}:{}", j + 1))];
                (Spot::Pod(SPACES[i].into(), PODS[j].into()), addresses)
            }
        }
    }

    /// A packet between two places of the cluster.
    pub(crate) fn flow(&mut self, _: &[Value]) -> Flow {
        let (from, src) = self.spot();
        let (to, dst) = self.spot();
        let family = usize::from(self.once(5));
        let protocol = self.pick(&[6, 6, 6, 17, 17, 132, if family == 1 { 58 } else { 1 }, 47, 4]);
        let ported = matches!(protocol, 6 | 17 | 132);
        let port = self.pick(&[80, 80, 81, 53, 22, 443, 85, 86, 4789, 4790]);
        Flow {
            src: src[family],
            dst: dst[family],
            protocol,
            src_port: if ported { self.pick(&[80, 81, 40_000]) } else { 0 },
            dst_port: if ported { port } else { 0 },
            icmp: matches!(protocol, 1 | 58)
                .then(|| self.pick(&[(8, 0), (3, 1), (128, 0), (135, 0), (134, 0)])),
            from,
            to,
        }
    }
}
