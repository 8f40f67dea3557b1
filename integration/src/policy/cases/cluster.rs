//! network-policy-api: ClusterNetworkPolicy (tiers Admin and Baseline) and its ancestors AdminNetworkPolicy and
//! BaselineAdminNetworkPolicy: the cases of its conformance profile.

use serde_json::{Value, json};

use super::{Case, Probe, one};
use crate::policy::world::{cluster, k8s};

const TCP80: Probe = Probe::Tcp(80);
const TCP81: Probe = Probe::Tcp(81);

fn named(ns: &str) -> Value {
    json!({"matchLabels": {"kubernetes.io/metadata.name": ns}})
}

fn subject() -> Value {
    json!({"namespaces": named("ns1")})
}

fn cnp(name: &str, tier: &str, priority: u32, ingress: Value, egress: Value) -> Value {
    cluster(
        "ClusterNetworkPolicy",
        name,
        json!({"tier": tier, "priority": priority, "subject": subject(), "ingress": ingress, "egress": egress}),
    )
}

fn port(protocol: &str, number: u16) -> Value {
    json!([{protocol: {"destinationPort": {"number": number}}}])
}

pub(super) fn all() -> Vec<Case> {
    [admin(), baseline(), together(), ancestors()].concat()
}

fn admin() -> Vec<Case> {
    let g = "CNP admin";
    let mut out = Vec::new();
    for (protocol, at, probe) in
        [("tcp", 80, TCP80), ("udp", 53, Probe::Udp(53)), ("sctp", 80, Probe::Sctp(80))]
    {
        for action in ["Accept", "Deny", "Pass"] {
            let other = if action == "Deny" { "Accept" } else { "Deny" };
            let rules = |field: &str| {
                json!([
                    {"action": action, field: [{"namespaces": named("ns2")}], "protocols": port(protocol, at)},
                    {"action": other, field: [{"namespaces": named("ns2")}]},
                ])
            };
            let ingress = cnp("p", "Admin", 10, rules("from"), json!([]));
            let first = action != "Deny";
            out.push(
                one(g, &format!("ingress {protocol}: {action} at a port, in order"), [ingress])
                    .says("ns2/p1", "ns1/p1", probe, first),
            );
            let egress = cnp("p", "Admin", 10, json!([]), rules("to"));
            out.push(
                one(g, &format!("egress {protocol}: {action} at a port, in order"), [egress])
                    .says("ns1/p1", "ns2/p1", probe, first),
            );
        }
    }
    let deny = |name: &str, priority| {
        cnp(name, "Admin", priority, json!([{"action": "Deny", "from": [{"namespaces": {}}]}]), json!([]))
    };
    let allow = |name: &str, priority| {
        cnp(
            name,
            "Admin",
            priority,
            json!([{"action": "Accept", "from": [{"namespaces": named("ns2")}]}]),
            json!([]),
        )
    };
    out.extend([
        one(g, "the lower number wins: accept", [deny("d", 20), allow("a", 10)])
            .says("ns2/p1", "ns1/p1", TCP80, true)
            .says("ns3/p1", "ns1/p1", TCP80, false),
        one(g, "the lower number wins: deny", [deny("d", 10), allow("a", 20)])
            .says("ns2/p1", "ns1/p1", TCP80, false),
        one(
            g,
            "egress to networks",
            [cnp(
                "n",
                "Admin",
                5,
                json!([]),
                json!([{"action": "Accept", "to": [{"networks": ["10.9.1.7/32", "fd00:2::/64"]}]},
                    {"action": "Deny", "to": [{"networks": ["10.9.0.0/16", "10.8.0.0/16", "fd00:2::/32"]}]}]),
            )],
        )
        .says("ns1/p1", "out1", TCP80, true)
        .says("ns1/p1", "out2", TCP80, false),
        one(
            g,
            "a range of ports",
            [cnp(
                "r",
                "Admin",
                5,
                json!([{"action": "Deny", "from": [{"namespaces": {}}],
                    "protocols": [{"tcp": {"destinationPort": {"range": {"start": 81, "end": 90}}}}]}]),
                json!([]),
            )],
        )
        .says("ns2/p1", "ns1/p1", TCP80, true)
        .says("ns2/p1", "ns1/p1", TCP81, false),
        one(
            g,
            "a named port",
            [cnp(
                "n",
                "Admin",
                5,
                json!([{"action": "Deny", "from": [{"namespaces": {}}],
                    "protocols": [{"destinationNamedPort": "http"}]}]),
                json!([]),
            )],
        )
        .says("ns2/p1", "ns1/p1", TCP80, false)
        .says("ns2/p1", "ns1/p3", TCP80, true),
        one(
            g,
            "pods as subject and peer",
            [cluster(
                "ClusterNetworkPolicy",
                "pods",
                json!({"tier": "Admin", "priority": 1,
                    "subject": {"pods": {"namespaceSelector": named("ns1"), "podSelector": {"matchLabels": {"app": "a"}}}},
                    "ingress": [{"action": "Deny", "from": [{"pods": {"namespaceSelector": {},
                        "podSelector": {"matchLabels": {"app": "b"}}}}]}]}),
            )],
        )
        .says("ns3/p2", "ns1/p1", TCP80, false)
        .says("ns3/p1", "ns1/p1", TCP80, true),
    ]);
    out
}

fn baseline() -> Vec<Case> {
    let g = "CNP baseline";
    let deny = || json!([{"action": "Deny", "from": [{"namespaces": {}}]}]);
    vec![
        one(g, "deny where nothing else speaks", [cnp("b", "Baseline", 1, deny(), json!([]))])
            .says("ns2/p1", "ns1/p1", TCP80, false)
            .says("out1", "ns1/p1", TCP80, true),
        one(
            g,
            "allow at a port, in order",
            [cnp(
                "b",
                "Baseline",
                1,
                json!([{"action": "Accept", "from": [{"namespaces": {}}], "protocols": port("udp", 53)},
                    {"action": "Deny", "from": [{"namespaces": {}}]}]),
                json!([]),
            )],
        )
        .says("ns2/p1", "ns1/p1", Probe::Udp(53), true)
        .says("ns2/p1", "ns1/p1", Probe::Udp(80), false),
        one(
            g,
            "egress",
            [cnp(
                "b",
                "Baseline",
                1,
                json!([]),
                json!([{"action": "Deny", "to": [{"namespaces": named("ns2")}]}]),
            )],
        ),
        one(
            g,
            "a NetworkPolicy speaks first",
            [
                cnp("b", "Baseline", 1, deny(), json!([])),
                k8s(
                    "ns1",
                    "p",
                    json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": named("ns2")}]}]}),
                ),
            ],
        )
        .says("ns2/p1", "ns1/p1", TCP80, true)
        .says("ns3/p1", "ns1/p1", TCP80, false),
    ]
}

fn together() -> Vec<Case> {
    let g = "CNP together";
    let np = || {
        k8s(
            "ns1",
            "p",
            json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": named("ns2")}]}]}),
        )
    };
    let rule = |action: &str, ns: &str| json!([{"action": action, "from": [{"namespaces": named(ns)}]}]);
    vec![
        one(
            g,
            "admin accepts what NetworkPolicy denies",
            [cnp("a", "Admin", 1, rule("Accept", "ns3"), json!([])), np()],
        )
        .says("ns3/p1", "ns1/p1", TCP80, true),
        one(
            g,
            "admin denies what NetworkPolicy accepts",
            [cnp("a", "Admin", 1, rule("Deny", "ns2"), json!([])), np()],
        )
        .says("ns2/p1", "ns1/p1", TCP80, false),
        one(
            g,
            "admin passes to NetworkPolicy",
            [
                cnp("a", "Admin", 1, rule("Pass", "ns2"), json!([])),
                cnp("z", "Admin", 2, rule("Deny", "ns2"), json!([])),
                np(),
            ],
        )
        .says("ns2/p1", "ns1/p1", TCP80, true),
        one(
            g,
            "admin passes to baseline",
            [
                cnp("a", "Admin", 1, rule("Pass", "ns2"), json!([])),
                cnp("b", "Baseline", 1, rule("Deny", "ns2"), json!([])),
            ],
        )
        .says("ns2/p1", "ns1/p1", TCP80, false),
        one(
            g,
            "admin, ingress and egress at once",
            [cnp(
                "a",
                "Admin",
                1,
                rule("Deny", "ns2"),
                json!([{"action": "Deny", "to": [{"namespaces": named("ns3")}]}]),
            )],
        ),
    ]
}

fn ancestors() -> Vec<Case> {
    let g = "ANP and BANP";
    let anp = |name: &str, priority: u32, ingress: Value, egress: Value| {
        cluster(
            "AdminNetworkPolicy",
            name,
            json!({"priority": priority, "subject": subject(), "ingress": ingress, "egress": egress}),
        )
    };
    let banp = |ingress: Value| {
        cluster("BaselineAdminNetworkPolicy", "default", json!({"subject": subject(), "ingress": ingress}))
    };
    let rule = |action: &str, ns: &str| json!([{"action": action, "from": [{"namespaces": named(ns)}]}]);
    vec![
        one(g, "deny", [anp("a", 1, rule("Deny", "ns2"), json!([]))]).says("ns2/p1", "ns1/p1", TCP80, false),
        one(
            g,
            "ports by number, range and name",
            [anp(
                "a",
                1,
                json!([{"action": "Allow", "from": [{"namespaces": {}}], "ports": [{"portNumber": {"protocol": "TCP", "port": 22}},
                    {"namedPort": "http"}, {"portRange": {"protocol": "UDP", "start": 50, "end": 60}}]},
                    {"action": "Deny", "from": [{"namespaces": {}}]}]),
                json!([]),
            )],
        )
        .says("ns2/p1", "ns1/p1", Probe::Udp(53), true)
        .says("ns2/p1", "ns1/p3", TCP80, false),
        one(g, "pass to baseline", [anp("a", 1, rule("Pass", "ns2"), json!([])), banp(rule("Deny", "ns2"))])
            .says("ns2/p1", "ns1/p1", TCP80, false),
        one(g, "baseline alone", [banp(rule("Deny", "ns3"))]).says("ns3/p1", "ns1/p1", TCP80, false),
        one(
            g,
            "egress to networks",
            [anp("a", 1, json!([]), json!([{"action": "Deny", "to": [{"networks": ["10.9.0.0/16"]}]}]))],
        )
        .says("ns1/p1", "out1", TCP80, false),
        one(g, "the lower number wins", [anp("a", 2, rule("Deny", "ns2"), json!([])), anp("z", 1, rule("Allow", "ns2"), json!([]))])
            .says("ns2/p1", "ns1/p1", TCP80, true),
    ]
}
