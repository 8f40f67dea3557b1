//! `policy trace` over the real binary and a real SQLite store: what a person sees, to the letter.

use std::{path::PathBuf, process::Command};

use brindle_config_core::{Key, Kind, store::Expect};

/// A folder with a datastore that holds resources; removed at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        Self::with(name, RESOURCES)
    }

    fn with(name: &str, resources: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("brindlectl-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let place = Self(dir);
        std::fs::write(place.0.join("r.yaml"), resources).unwrap();
        let made = place.run("create -f r.yaml");
        assert!(made.ends_with("[0]\n"), "{made}");
        if resources.contains("{name: nowhere}") {
            place.take_tier_away();
        }
        place
    }

    /// Takes a tier from under its policy, which the command would not do.
    fn take_tier_away(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let store = brindle_config::open(&format!("sqlite:{}", self.0.join("t.db").display())).unwrap();
        runtime.block_on(store.delete(&Key::new(Kind::Tier, None, "nowhere"), Expect::Any)).unwrap();
    }

    fn run(&self, line: &str) -> String {
        let out = Command::new(env!("CARGO_BIN_EXE_brindlectl"))
            .args(line.split_whitespace())
            .current_dir(&self.0)
            .env("BRINDLE_DATASTORE", format!("sqlite:{}", self.0.join("t.db").display()))
            .output()
            .unwrap();
        format!(
            "$ brindlectl {line}\n{}{}[{}]\n",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
            out.status.code().unwrap_or(-1)
        )
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const RESOURCES: &str = r#"
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: node--1-k8s-web-eth0, namespace: shop, labels: {app: web}}
spec: {orchestrator: k8s, node: node-1, pod: web, endpoint: eth0, interfaceName: cali1, ipNetworks: [10.0.1.5/32], profiles: [kns.shop]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: node--2-k8s-db-eth0, namespace: shop, labels: {app: db}}
spec:
  orchestrator: k8s
  node: node-2
  pod: db
  endpoint: eth0
  interfaceName: cali2
  ipNetworks: [10.0.2.7/32]
  profiles: [kns.shop]
  ports: [{name: sql, protocol: TCP, port: 5432}]
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: node--2-k8s-spy-eth0, namespace: lab, labels: {app: spy}}
spec: {orchestrator: k8s, node: node-2, pod: spy, endpoint: eth0, interfaceName: cali3, ipNetworks: [10.0.2.9/32], profiles: [kns.lab]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-from-web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: sql}]
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: security}
spec: {order: 100}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: quarantine}
spec:
  tier: security
  selector: app == "spy"
  egress:
  - {action: Deny, destination: {nets: [192.0.2.0/24]}, metadata: {annotations: {ticket: SEC-7}}}
  - {action: Pass}
---
apiVersion: projectcalico.org/v3
kind: StagedNetworkPolicy
metadata: {name: nothing-in, namespace: lab}
spec: {ingress: [{action: Deny}]}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: node-2-eth0, labels: {host: "yes"}}
spec: {node: node-2, interfaceName: eth0, expectedIPs: [192.168.1.2]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: lost}
spec: {tier: nowhere, selector: app == "nobody", ingress: [{action: Allow}]}
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: nowhere}
"#;

#[test]
fn the_deciding_rule_is_named_at_each_end() {
    let p = Place::new("trace");
    let screens = [
        p.run("policy trace shop/web shop/db:5432"),
        p.run("policy trace shop/web shop/db:80"),
        p.run("policy trace lab/spy shop/db:5432"),
        p.run("policy trace lab/spy 192.0.2.7:443"),
        p.run("policy trace shop/web lab/spy --proto icmp"),
        p.run("policy trace 198.51.100.1 node-2-eth0:22"),
        p.run("policy trace 198.51.100.1 node-2-eth0:80 --proto udp"),
        p.run("policy trace lab/spy node-2-eth0:80"),
        p.run("policy trace node-2-eth0 10.0.2.7:5432"),
        p.run("policy trace 198.51.100.1 198.51.100.2:80"),
    ];
    insta::assert_snapshot!(screens.concat());
}

const SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00::a"]
  ports: [{name: sql, port: 80, protocol: TCP}, {name: other, port: 81, protocol: TCP}, {name: six, port: 86, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432, protocol: TCP}]
endpoints:
- {addresses: [10.0.2.7], conditions: {ready: true}}
- {addresses: [10.0.2.8], conditions: {ready: false}}
- {addresses: [10.0.2.9]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-2, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv6
ports: [{name: sql, port: 5432, protocol: TCP}, {name: six, port: 5436, protocol: TCP}]
endpoints:
- {addresses: ["fd00::7"]}
"#;

#[test]
fn who_traces_to_a_service_is_shown_the_pods_behind_it() {
    let p = Place::with("service", &format!("{RESOURCES}---{SERVICE}"));
    let screens = [
        p.run("policy trace shop/web 10.96.0.10:80"),
        p.run("policy trace shop/web 10.96.0.10:81"),
        p.run("policy trace shop/web 10.96.0.10:86"),
        p.run("policy trace fd00::99 [fd00::a]:86"),
        p.run("policy trace lab/spy 10.96.0.10:80 -o json"),
    ];
    insta::assert_snapshot!(screens.concat());
}

/// Four nodes with pods: without a host endpoint, with one, with two that differ, with one for everything and a tunnel.
const FORWARDED: &str = r#"
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: plain}
spec: {bgp: {ipv4Address: 192.168.1.1/24}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: edge}
spec: {bgp: {ipv4Address: 192.168.1.2/24}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: two}
spec: {bgp: {ipv4Address: 192.168.1.3/24}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: far}
spec: {bgp: {ipv4Address: 192.168.9.4/24}}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.0.0.0/16, ipipMode: CrossSubnet}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: plain-k8s-a-eth0, namespace: red}
spec: {orchestrator: k8s, node: plain, pod: a, endpoint: eth0, interfaceName: cali1, ipNetworks: [10.0.1.5/32], profiles: [kns.red]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: edge-k8s-b-eth0, namespace: red}
spec: {orchestrator: k8s, node: edge, pod: b, endpoint: eth0, interfaceName: cali2, ipNetworks: [10.0.2.5/32], profiles: [kns.red]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: two-k8s-c-eth0, namespace: red}
spec: {orchestrator: k8s, node: two, pod: c, endpoint: eth0, interfaceName: cali3, ipNetworks: [10.0.3.5/32], profiles: [kns.red]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: far-k8s-d-eth0, namespace: red}
spec: {orchestrator: k8s, node: far, pod: d, endpoint: eth0, interfaceName: cali4, ipNetworks: [10.0.4.5/32], profiles: [kns.red]}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: edge-eth0, labels: {role: edge}}
spec: {node: edge, interfaceName: eth0, profiles: [projectcalico-default-allow]}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: two-eth0, labels: {role: edge}}
spec: {node: two, interfaceName: eth0}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: two-eth1, labels: {role: inner}}
spec: {node: two, expectedIPs: [172.16.0.3]}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: far-all, labels: {role: all}}
spec: {node: far, interfaceName: "*"}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: edges}
spec:
  selector: role == "edge"
  applyOnForward: true
  types: [Ingress, Egress]
  ingress:
  - {action: Deny, source: {nets: [198.51.100.0/24]}, metadata: {annotations: {ticket: SEC-9}}}
  - {action: Allow}
  egress:
  - {action: Deny, destination: {nets: [203.0.113.0/24]}}
  - {action: Allow}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: early}
spec:
  selector: role == "edge"
  applyOnForward: true
  preDNAT: true
  types: [Ingress]
  ingress:
  - {action: Deny, protocol: TCP, destination: {ports: [22, 23]}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: own}
spec:
  selector: role == "all"
  applyOnForward: true
  types: [Ingress, Egress]
  ingress: [{action: Allow, source: {nets: [10.0.1.0/24]}}]
  egress: [{action: Allow, destination: {nets: [10.0.2.0/24]}}]
"#;

#[test]
fn host_endpoints_speak_about_what_is_forwarded() {
    let p = Place::with("trace-forward", FORWARDED);
    let screens = [
        // Out of the pod's node, and in.
        p.run("policy trace red/b 203.0.113.9:443"),
        p.run("policy trace red/b 192.0.2.1:443"),
        p.run("policy trace 198.51.100.1 red/b:443"),
        p.run("policy trace 192.0.2.1 red/b:443"),
        // Before translation; a failsafe port of what is forwarded is left to the policy for that.
        p.run("policy trace 192.0.2.1 red/b:23"),
        p.run("policy trace 192.0.2.1 red/b:22"),
        p.run("policy trace 198.51.100.1 red/b:22"),
        // Another interface has no host endpoint.
        p.run("policy trace 198.51.100.1 red/b:443 --through eth7"),
        // Between pods: no host endpoint at the sender, one at the receiver; the way back.
        p.run("policy trace red/a red/b:80"),
        p.run("policy trace red/b red/a:80"),
        // Two host endpoints that differ, and do not.
        p.run("policy trace red/c 203.0.113.9:443"),
        p.run("policy trace red/c 203.0.113.9:443 --through two-eth1"),
        p.run("policy trace red/c 203.0.113.9:443 --through eth0"),
        p.run("policy trace 198.51.100.1 red/c:443"),
        p.run("policy trace red/c 192.0.2.1:443"),
        // In a tunnel, both ways.
        p.run("policy trace red/a red/d:80"),
        p.run("policy trace red/c red/d:80"),
        p.run("policy trace red/d red/b:80"),
        p.run("policy trace red/d red/a:80"),
        // The node itself, by its address.
        p.run("policy trace 198.51.100.1 192.168.1.2:443"),
        p.run("policy trace 192.168.1.2 203.0.113.9:443"),
        p.run("policy trace red/b 192.168.1.2:443"),
        p.run("policy trace 192.168.1.2 red/b:443"),
        p.run("policy trace red/d 192.168.1.2:443"),
        p.run("policy trace red/c 203.0.113.9:443 --through eth0 --through eth1"),
        // "*" stands for every interface but the loopback.
        p.run("policy trace red/d 203.0.113.9:443 --through eth9"),
        p.run("policy trace red/d 203.0.113.9:443 --through lo"),
    ];
    insta::assert_snapshot!(screens.concat());
}

#[test]
fn json_says_which_interface_and_that_it_depends_on_it() {
    let p = Place::with("trace-forward-json", FORWARDED);
    insta::assert_snapshot!(p.run("policy trace red/c 203.0.113.9:443 -o json"));
}

#[test]
fn json_says_the_same() {
    let p = Place::new("trace-json");
    insta::assert_snapshot!(p.run("policy trace lab/spy 192.0.2.7:443 -o json"));
}

#[test]
fn what_cannot_be_traced_is_told_with_what_to_do() {
    let p = Place::new("trace-bad");
    let screens = [
        p.run("policy trace shop/web shop/bd:80"),
        p.run("policy trace nowhere/web shop/db:80"),
        p.run("policy trace shop/web shop/db"),
        p.run("policy trace shop/web shop/db:80 --proto icmp"),
        p.run("policy trace shop/web shop/db:80 --proto tpc"),
        p.run("policy trace shop/web shop/db:99999"),
        p.run("policy trace shop/web node-9:80"),
        p.run("policy trace shop/web [fd00::1]:80"),
        p.run("policy trace shop/web shop/db --proto icmp --icmp x"),
    ];
    insta::assert_snapshot!(screens.concat());
}

const BOTH_FAMILIES: &str = r#"
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n-k8s-a-eth0, namespace: red}
spec: {orchestrator: k8s, node: n, pod: a, endpoint: eth0, interfaceName: cali1, ipNetworks: [10.0.0.1/32, "fd00::1/128"], profiles: [kns.red]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n-k8s-b-eth0, namespace: red}
spec: {orchestrator: k8s, node: n, pod: b, endpoint: eth0, interfaceName: cali2, ipNetworks: [10.0.0.2/32, "fd00::2/128"], profiles: [kns.red]}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: by-address}
spec: {node: n, expectedIPs: [192.0.2.1]}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: named}
spec: {node: n, interfaceName: eth1, expectedIPs: [192.0.2.1], profiles: [projectcalico-default-allow]}
"#;

#[test]
fn each_end_is_what_was_meant() {
    let p = Place::with("trace-both", BOTH_FAMILIES);
    let of = |line: &str, parts: &[&str]| {
        let screen = p.run(line);
        for part in parts {
            assert!(screen.contains(part), "{part:?} is missing:\n{screen}");
        }
    };
    of("policy trace red/a red/b --proto icmpv6", &["fd00::1", "fd00::2", "allowed"]);
    of("policy trace red/a red/b --proto icmp", &["10.0.0.1", "10.0.0.2", "allowed"]);
    of("policy trace red/a fd00::2", &["write [fd00::2]:PORT"]);
    of("policy trace red/a red/a:80", &["The packet never leaves the pod", "allowed", "[0]"]);
    // A name of an interface goes before an address, and --through before both.
    of("policy trace 198.51.100.1 192.0.2.1:80", &["HostEndpoint named", "allowed"]);
    of("policy trace 198.51.100.1 192.0.2.1:80 --through by-address", &["HostEndpoint by-address", "denied"]);
    of("policy trace 198.51.100.1 192.0.2.1:80 --through named", &["HostEndpoint named", "allowed"]);
}

/// Two host endpoints known by addresses, which may be of one device, on the nodes of a tunnel.
const UNNAMED: &str = r#"
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n}
spec: {bgp: {ipv4Address: 192.0.2.1/24, ipv4IPIPTunnelAddr: 10.0.9.1}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: m}
spec: {bgp: {ipv4Address: 198.51.100.2/24}}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.0.0.0/16, ipipMode: Always}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n-k8s-a-eth0, namespace: red}
spec: {orchestrator: k8s, node: n, pod: a, endpoint: eth0, interfaceName: cali1, ipNetworks: [10.0.0.1/32], profiles: [kns.red]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: m-k8s-b-eth0, namespace: red}
spec: {orchestrator: k8s, node: m, pod: b, endpoint: eth0, interfaceName: cali2, ipNetworks: [10.0.1.1/32], profiles: [kns.red]}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: n-v4, labels: {of: v4}}
spec: {node: n, expectedIPs: [192.0.2.1], profiles: [projectcalico-default-allow]}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: n-v6}
spec: {node: n, expectedIPs: ["2001:db8::1"], profiles: [projectcalico-default-allow]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: no-dns}
spec:
  selector: of == "v4"
  applyOnForward: true
  types: [Ingress, Egress]
  ingress: [{action: Deny, protocol: UDP, destination: {ports: [53]}}, {action: Allow}]
  egress: [{action: Allow}]
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: node.n}
spec: {defaultEndpointToHostAction: Drop}
"#;

#[test]
fn what_only_the_node_knows_is_told() {
    let p = Place::with("trace-unnamed", UNNAMED);
    let screens = [
        // Allowed by either, unless they are of one device; a failsafe port is open whatever they are.
        p.run("policy trace 203.0.113.1 n-v4:80"),
        p.run("policy trace 203.0.113.1 192.0.2.1:80"),
        p.run("policy trace 203.0.113.1 n-v4:22"),
        p.run("policy trace 203.0.113.1 red/a:80"),
        p.run("policy trace 203.0.113.1 n-v4:53 --proto udp"),
        // An interface may have either address, or none.
        p.run("policy trace 203.0.113.1 red/a:53 --proto udp --through eth0"),
        p.run("policy trace 203.0.113.1 red/a:80 --through eth0"),
        // The tunnel's address is known, and neither has it.
        p.run("policy trace red/b red/a:80"),
        // What the agent was started with is not in the datastore.
        p.run("policy trace red/a 192.0.2.1:80"),
        p.run("policy trace red/a 203.0.113.1 --proto 4"),
        p.run("policy trace red/a 203.0.113.1:4789 --proto udp"),
    ];
    insta::assert_snapshot!(screens.concat());
    let json = p.run("policy trace 203.0.113.1 n-v4:80 -o json");
    assert!(json.contains(r#""allowed":false"#) || json.contains(r#""allowed": false"#), "{json}");
    assert!(json.contains("contested") && json.contains("HostEndpoint n-v6"), "{json}");
}

/// A pod in a pool with natOutgoing, and the host of another node that takes nothing from pods.
const NAT: &str = r#"
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n1}
spec: {bgp: {ipv4Address: 192.168.9.1/24}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n2}
spec: {bgp: {ipv4Address: 192.168.9.2/24}}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.65.0.0/16, natOutgoing: true}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n1-k8s-a-eth0, namespace: red}
spec: {orchestrator: k8s, node: n1, pod: a, endpoint: eth0, interfaceName: cali1, ipNetworks: [10.65.0.1/32], profiles: [kns.red]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n3-k8s-c-eth0, namespace: red}
spec: {orchestrator: k8s, node: n3, pod: c, endpoint: eth0, interfaceName: cali1, ipNetworks: [10.65.3.1/32], profiles: [kns.red]}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: n2-eth0, labels: {role: far}}
spec: {node: n2, interfaceName: eth0, expectedIPs: [192.168.9.2]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: far}
spec:
  selector: role == "far"
  types: [Ingress]
  ingress: [{action: Deny, source: {nets: [10.65.0.0/16]}}, {action: Allow}]
"#;

#[test]
fn beyond_its_node_a_pod_of_a_pool_with_nat_has_another_source() {
    let felix = |spec: &str| {
        let resource =
            "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}";
        format!("{NAT}---\n{resource}\nspec: {{{spec}}}\n")
    };
    let plain = Place::with("trace-nat", NAT);
    let hosts = Place::with("trace-nat-hosts", &felix("natOutgoingExclusions: IPPoolsAndHostIPs"));
    let address = Place::with(
        "trace-nat-address",
        &felix("natOutgoingAddress: 10.65.255.1, iptablesNATOutgoingInterfaceFilter: eth0"),
    );
    let of = |p: &Place, line: &str, parts: &[&str]| {
        let screen = p.run(line);
        for part in parts {
            assert!(screen.contains(part), "{part:?} is missing:\n{screen}");
        }
        screen
    };
    let nat = "n1 sends it on with the source 192.168.9.1 (natOutgoing)\n";
    of(&plain, "policy trace red/a n2-eth0:8000", &[nat, "far (tier default), ingress rule 2", "[0]"]);
    let json = r#""translated":{"interface":null,"node":"n1","source":"192.168.9.1"}"#;
    of(&plain, "policy trace red/a n2-eth0:8000 -o json", &[json, r#""allowed":true"#]);
    of(&plain, "policy trace red/a 192.0.2.1:80", &[nat, "[0]"]);
    let between = of(&plain, "policy trace red/a red/c:80", &["[0]"]);
    assert!(!between.contains("natOutgoing"), "between pods:\n{between}");
    // Its node tells no address.
    of(&plain, "policy trace red/c n2-eth0:8000", &["which Node n3 does not tell", "ingress rule 1", "[1]"]);
    let to_node = of(&hosts, "policy trace red/a n2-eth0:8000", &["ingress rule 1", "[1]"]);
    assert!(!to_node.contains("natOutgoing"), "to a node:\n{to_node}");
    of(&hosts, "policy trace red/a 192.0.2.1:80", &[nat, "[0]"]);
    let given =
        "n1 sends it on by eth0 (by others it keeps its own) with the source 10.65.255.1 (natOutgoing)\n";
    of(&address, "policy trace red/a n2-eth0:8000", &[given, "ingress rule 1", "[1]"]);
}
