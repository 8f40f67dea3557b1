//! networking.k8s.io/v1: the cases of Kubernetes' end-to-end tests, then what Cyclonus generates beyond them.

use serde_json::{Value, json};

use super::{Case, Probe, one, steps};
use crate::policy::world::{base, k8s, namespace, pod, with};

const TCP80: Probe = Probe::Tcp(80);
const TCP81: Probe = Probe::Tcp(81);

pub(super) fn all() -> Vec<Case> {
    [defaults(), peers(), ports(), updates(), egress(), blocks(), protocols(), cyclonus(), conflicts()]
        .concat()
}

/// Ingress to the pods of ns1 that `pods` selects.
fn ingress(pods: &Value, rules: Value) -> Value {
    k8s("ns1", "policy", json!({"podSelector": pods, "policyTypes": ["Ingress"], "ingress": rules}))
}

fn outgoing(pods: &Value, rules: Value) -> Value {
    k8s("ns1", "policy", json!({"podSelector": pods, "policyTypes": ["Egress"], "egress": rules}))
}

fn app(value: &str) -> Value {
    json!({"matchLabels": {"app": value}})
}

fn team(value: &str) -> Value {
    json!({"matchLabels": {"team": value}})
}

fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    if values.is_empty() {
        return json!({"matchExpressions": [{"key": key, "operator": operator}]});
    }
    json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
}

fn defaults() -> Vec<Case> {
    let g = "default";
    vec![
        steps(g, "no policy", vec![base()]).says("ns2/p1", "ns1/p1", TCP80, true),
        one(g, "deny ingress", [ingress(&json!({}), json!([]))])
            .says("ns2/p1", "ns1/p1", TCP80, false)
            .says("ns1/p2", "ns1/p1", TCP80, false)
            .says("ns1/p1", "ns2/p1", TCP80, true)
            .says("host", "ns1/p1", TCP80, true),
        one(g, "deny egress", [outgoing(&json!({}), json!([]))])
            .says("ns1/p1", "ns2/p1", TCP80, false)
            .says("ns2/p1", "ns1/p1", TCP80, true),
        one(
            g,
            "deny ingress and egress",
            [k8s("ns1", "policy", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))],
        )
        .says("ns1/p1", "ns2/p1", TCP80, false)
        .says("ns2/p1", "ns1/p1", TCP80, false),
        one(g, "allow all ingress", [ingress(&json!({}), json!([{}]))]).says("out1", "ns1/p1", TCP80, true),
        one(g, "allow all egress", [outgoing(&json!({}), json!([{}]))]),
        one(g, "policyTypes left out: ingress", [k8s("ns1", "policy", json!({"podSelector": {}}))]),
        one(
            g,
            "policyTypes left out: egress rules add egress",
            [k8s("ns1", "policy", json!({"podSelector": {}, "egress": [{"to": [{"podSelector": {}}]}]}))],
        )
        .says("ns1/p1", "ns1/p2", TCP80, false)
        .says("ns1/p1", "ns2/p1", TCP80, false),
    ]
}

fn peers() -> Vec<Case> {
    let g = "peers";
    let from = |name: &str, peers: Value| one(g, name, [ingress(&app("a"), json!([{ "from": peers }]))]);
    vec![
        from("podSelector, own namespace", json!([{"podSelector": app("b")}]))
            .says("ns1/p2", "ns1/p1", TCP80, true)
            .says("ns2/p2", "ns1/p1", TCP80, false)
            .says("ns1/p3", "ns1/p1", TCP80, false),
        from("podSelector, matchExpressions", json!([{"podSelector": expression("app", "In", &["b"])}])),
        from("podSelector, NotIn", json!([{"podSelector": expression("app", "NotIn", &["b"])}])),
        from("podSelector, DoesNotExist", json!([{"podSelector": expression("tier", "DoesNotExist", &[])}])),
        from("all namespaces", json!([{"namespaceSelector": {}}]))
            .says("ns2/p3", "ns1/p1", TCP80, true)
            .says("out1", "ns1/p1", TCP80, false),
        from("namespaceSelector, matchLabels", json!([{"namespaceSelector": team("blue")}])),
        from(
            "namespaceSelector, matchExpressions",
            json!([{"namespaceSelector": expression("team", "In", &["blue"])}]),
        ),
        from(
            "namespaceSelector, DoesNotExist",
            json!([{"namespaceSelector": expression("team", "DoesNotExist", &[])}]),
        )
        .says("ns3/p1", "ns1/p1", TCP80, true),
        from(
            "podSelector or namespaceSelector",
            json!([{"podSelector": app("b")}, {"namespaceSelector": team("blue")}]),
        )
        .says("ns2/p1", "ns1/p1", TCP80, true)
        .says("ns3/p2", "ns1/p1", TCP80, false),
        from(
            "podSelector and namespaceSelector",
            json!([{"podSelector": app("b"), "namespaceSelector": team("blue")}]),
        )
        .says("ns2/p1", "ns1/p1", TCP80, false)
        .says("ns2/p2", "ns1/p1", TCP80, true),
        from(
            "several selectors, In and NotIn",
            json!([{"podSelector": expression("app", "NotIn", &["a"]),
                "namespaceSelector": expression("kubernetes.io/metadata.name", "In", &["ns2", "ns3"])}]),
        ),
        from("any of several podSelectors", json!([{"podSelector": app("b")}, {"podSelector": app("c")}])),
        from(
            "a pod in another namespace",
            json!([{"podSelector": app("c"),
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ns3"}}}]),
        )
        .says("ns3/p3", "ns1/p1", TCP80, true),
        from("a selector that matches nobody", json!([{"podSelector": app("nobody")}])),
        one(
            g,
            "the default label of a namespace, NotIn on egress",
            [outgoing(
                &json!({}),
                json!([{"to": [{"namespaceSelector":
                    expression("kubernetes.io/metadata.name", "NotIn", &["ns2"])}]}]),
            )],
        ),
        one(
            g,
            "the target by expressions",
            [ingress(&expression("app", "In", &["a", "c"]), json!([{"from": [{"podSelector": {}}]}]))],
        ),
    ]
}

fn ports() -> Vec<Case> {
    let g = "ports";
    let open = |name: &str, ports: Value| one(g, name, [ingress(&json!({}), json!([{ "ports": ports }]))]);
    vec![
        open("a number", json!([{"port": 81}]))
            .says("ns2/p1", "ns1/p1", TCP81, true)
            .says("ns2/p1", "ns1/p1", TCP80, false),
        one(
            g,
            "two policies, 81 and 80",
            [
                ingress(&json!({}), json!([{"ports": [{"port": 81}]}])),
                k8s("ns1", "second", json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]})),
            ],
        )
        .says("ns2/p1", "ns1/p1", TCP81, true)
        .says("ns2/p1", "ns1/p1", TCP80, true)
        .says("ns2/p1", "ns1/p1", Probe::Tcp(22), false),
        open("a name", json!([{"port": "http"}]))
            .says("ns2/p1", "ns1/p1", TCP80, true)
            .says("ns2/p1", "ns1/p3", TCP80, false)
            .says("ns2/p1", "ns1/p3", TCP81, true),
        one(
            g,
            "a name from one namespace",
            [ingress(
                &json!({}),
                json!([{"from": [{"namespaceSelector": team("blue")}], "ports": [{"port": "http"}]}]),
            )],
        ),
        one(
            g,
            "a name on egress",
            [outgoing(&json!({}), json!([{"to": [{"namespaceSelector": {}}], "ports": [{"port": "http"}]}]))],
        )
        .says("ns1/p1", "ns2/p3", TCP81, true)
        .says("ns1/p1", "ns2/p3", TCP80, false),
        open("a name of another protocol", json!([{"port": "dns", "protocol": "TCP"}])),
        open("a name nobody has", json!([{"port": "nobody"}])),
        open("a port nobody serves", json!([{"port": 7777}])),
        open("a protocol alone", json!([{"protocol": "TCP"}]))
            .says("ns2/p1", "ns1/p1", Probe::Tcp(22), true)
            .says("ns2/p1", "ns1/p1", Probe::Udp(53), false),
        open("endPort", json!([{"port": 79, "endPort": 80}]))
            .says("ns2/p1", "ns1/p1", TCP80, true)
            .says("ns2/p1", "ns1/p1", TCP81, false),
        open("endPort, UDP", json!([{"port": 53, "endPort": 79, "protocol": "UDP"}])),
        open("endPort, SCTP", json!([{"port": 53, "endPort": 84, "protocol": "SCTP"}])),
        open("two ports", json!([{"port": 80}, {"port": 53, "protocol": "UDP"}])),
        open(
            "more than a match takes",
            Value::Array((0..30).map(|i| json!({"port": 22 + 2 * i})).chain([json!({"port": 81})]).collect()),
        )
        .says("ns2/p1", "ns1/p1", TCP80, true)
        .says("ns2/p1", "ns1/p1", TCP81, true),
        open("protocol left out is TCP", json!([{"port": 53}])).says(
            "ns2/p1",
            "ns1/p1",
            Probe::Udp(53),
            false,
        ),
    ]
}

fn updates() -> Vec<Case> {
    let g = "updates";
    let allow = || ingress(&app("a"), json!([{"from": [{"podSelector": app("b")}]}]));
    let blue = || ingress(&app("a"), json!([{"from": [{"namespaceSelector": team("blue")}]}]));
    vec![
        steps(
            g,
            "from allow to deny",
            vec![with([ingress(&json!({}), json!([{}]))]), with([ingress(&json!({}), json!([]))])],
        )
        .says("ns2/p1", "ns1/p1", TCP80, false),
        steps(
            g,
            "from deny to allow",
            vec![with([ingress(&json!({}), json!([]))]), with([ingress(&json!({}), json!([{}]))])],
        )
        .says("ns2/p1", "ns1/p1", TCP80, true),
        steps(
            g,
            "labels of a namespace change",
            vec![
                with([blue()]),
                with([
                    blue(),
                    namespace("ns2", &json!({"team": "red"})),
                    namespace("ns3", &json!({"team": "blue"})),
                ]),
                with([blue()]),
            ],
        )
        .says("ns2/p1", "ns1/p1", TCP80, true),
        steps(
            g,
            "labels of a peer change",
            vec![
                with([allow()]),
                with([allow(), pod("ns1", "p3", &json!({"app": "b"}), ""), pod("ns1", "p2", &json!({}), "")]),
            ],
        )
        .says("ns1/p3", "ns1/p1", TCP80, true)
        .says("ns1/p2", "ns1/p1", TCP80, false),
        steps(
            g,
            "labels of the target change",
            vec![with([allow()]), with([allow(), pod("ns1", "p3", &json!({"app": "a"}), "")])],
        )
        .says("ns2/p1", "ns1/p3", TCP80, false),
        steps(g, "from own namespace to another", vec![with([allow()]), with([blue()])]),
        steps(g, "deleted: open again", vec![with([ingress(&json!({}), json!([]))]), base()])
            .says("ns2/p1", "ns1/p1", TCP80, true),
        steps(
            g,
            "one of two deleted",
            vec![
                with([allow(), k8s("ns1", "second", json!({"podSelector": {}, "ingress": [{}]}))]),
                with([allow()]),
            ],
        ),
        steps(
            g,
            "the number of a named port changes",
            vec![
                with([ingress(&json!({}), json!([{"ports": [{"port": "http"}]}]))]),
                with([ingress(&json!({}), json!([{"ports": [{"port": "http"}]}])), {
                    let mut p = pod("ns1", "p1", &json!({"app": "a", "tier": "x"}), "robot");
                    p["spec"]["ports"][0]["port"] = 81.into();
                    p
                }]),
            ],
        )
        .says("ns2/p1", "ns1/p1", TCP81, true),
    ]
}

fn egress() -> Vec<Case> {
    let g = "egress";
    vec![
        one(g, "deny from one pod", [outgoing(&app("a"), json!([]))])
            .says("ns1/p1", "ns2/p1", TCP80, false)
            .says("ns1/p2", "ns2/p1", TCP80, true),
        one(
            g,
            "to a pod of another namespace",
            [outgoing(
                &app("a"),
                json!([{"to": [{"namespaceSelector": team("blue"), "podSelector": app("b")}]}]),
            )],
        )
        .says("ns1/p1", "ns2/p2", TCP80, true)
        .says("ns1/p1", "ns2/p1", TCP80, false),
        one(
            g,
            "both ends must allow",
            [
                outgoing(&app("a"), json!([{"to": [{"namespaceSelector": {}}]}])),
                k8s("ns2", "closed", json!({"podSelector": app("b"), "ingress": []})),
            ],
        )
        .says("ns1/p1", "ns2/p2", TCP80, false)
        .says("ns1/p1", "ns2/p1", TCP80, true),
        one(
            g,
            "several policies, allow all wins, both directions",
            [
                k8s("ns1", "one", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
                k8s(
                    "ns1",
                    "two",
                    json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": [{}]}),
                ),
            ],
        )
        .says("ns2/p1", "ns1/p1", TCP80, true),
        one(
            g,
            "ingress and egress of one pod are apart",
            [
                k8s("ns1", "in", json!({"podSelector": app("a"), "ingress": [{"from": [{"podSelector": {}}]}]})),
                outgoing(&app("a"), json!([{"to": [{"podSelector": app("c")}]}])),
            ],
        )
        .says("ns1/p2", "ns1/p1", TCP80, true)
        .says("ns1/p1", "ns1/p2", TCP80, false),
        one(
            g,
            "a port of another namespace",
            [outgoing(
                &json!({}),
                json!([{"to": [{"namespaceSelector": team("blue")}], "ports": [{"port": 81}]}]),
            )],
        ),
        one(
            g,
            "DNS only",
            [outgoing(&json!({}), json!([{"ports": [{"port": 53, "protocol": "UDP"}]}]))],
        )
        .says("ns1/p1", "out1", Probe::Udp(53), true)
        .says("ns1/p1", "out1", TCP80, false),
    ]
}

fn blocks() -> Vec<Case> {
    let g = "ipBlock";
    let from = |block: Value| ingress(&app("a"), json!([{"from": [{ "ipBlock": block }]}]));
    let to = |block: Value| outgoing(&app("a"), json!([{"to": [{ "ipBlock": block }]}]));
    vec![
        one(g, "one address", [to(json!({"cidr": "10.0.1.2/32"}))])
            .says("ns1/p1", "ns2/p2", TCP80, true)
            .says("ns1/p1", "ns2/p1", TCP80, false),
        one(g, "except", [from(json!({"cidr": "10.0.0.0/16", "except": ["10.0.1.0/24"]}))])
            .says("ns3/p1", "ns1/p1", TCP80, true)
            .says("ns2/p1", "ns1/p1", TCP80, false),
        one(
            g,
            "two exceptions",
            [to(json!({"cidr": "10.0.0.0/16", "except": ["10.0.1.0/24", "10.0.2.1/32"]}))],
        ),
        one(g, "IPv6 with exception", [from(json!({"cidr": "fd00::/64", "except": ["fd00::1:0/112"]}))]),
        steps(
            g,
            "an update allows the exception again",
            vec![
                with([to(json!({"cidr": "10.0.1.0/24", "except": ["10.0.1.2/32"]}))]),
                with([outgoing(
                    &app("a"),
                    json!([{"to": [{"ipBlock": {"cidr": "10.0.1.0/24", "except": ["10.0.1.2/32"]}},
                        {"ipBlock": {"cidr": "10.0.1.2/32"}}]}]),
                )]),
            ],
        )
        .says("ns1/p1", "ns2/p2", TCP80, true),
        one(g, "the world", [from(json!({"cidr": "0.0.0.0/0"}))]).says("out1", "ns1/p1", TCP80, true),
        one(g, "outside the cluster", [from(json!({"cidr": "10.9.0.0/16"}))])
            .says("out1", "ns1/p1", TCP80, true)
            .says("out2", "ns1/p1", TCP80, false)
            .says("ns1/p2", "ns1/p1", TCP80, false),
        one(
            g,
            "a block or a pod",
            [ingress(
                &app("a"),
                json!([{"from": [{"ipBlock": {"cidr": "10.8.0.0/24"}}, {"podSelector": app("b")}]}]),
            )],
        ),
    ]
}

fn protocols() -> Vec<Case> {
    let g = "protocols";
    let open = |name: &str, port: Value| one(g, name, [ingress(&json!({}), json!([{"ports": [port]}]))]);
    let (udp, sctp) = (Probe::Udp(80), Probe::Sctp(80));
    vec![
        open("SCTP does not open TCP of the same port", json!({"protocol": "SCTP", "port": 80}))
            .says("ns2/p1", "ns1/p1", sctp, true)
            .says("ns2/p1", "ns1/p1", TCP80, false),
        open("SCTP alone isolates", json!({"protocol": "SCTP", "port": 7777}))
            .says("ns2/p1", "ns1/p1", TCP80, false)
            .says("ns2/p1", "ns1/p1", sctp, false),
        open("UDP does not open TCP of the same port", json!({"protocol": "UDP", "port": 80}))
            .says("ns2/p1", "ns1/p1", udp, true)
            .says("ns2/p1", "ns1/p1", TCP80, false),
        open("TCP does not open UDP of the same port", json!({"protocol": "TCP", "port": 80})),
        open("SCTP by name", json!({"protocol": "SCTP", "port": "tunnel"}))
            .says("ns2/p1", "ns1/p1", sctp, true),
        open("UDP by name", json!({"protocol": "UDP", "port": "dns"})),
        one(
            g,
            "UDP by namespace and pod",
            [ingress(
                &json!({}),
                json!([{"from": [{"namespaceSelector": team("blue"), "podSelector": app("b")}],
                    "ports": [{"protocol": "UDP", "port": 53}]}]),
            )],
        ),
        one(
            g,
            "SCTP by namespace and pod",
            [ingress(
                &json!({}),
                json!([{"from": [{"namespaceSelector": team("blue"), "podSelector": app("b")}],
                    "ports": [{"protocol": "SCTP", "port": 80}]}]),
            )],
        ),
        one(g, "UDP egress", [outgoing(&json!({}), json!([{"ports": [{"protocol": "UDP"}]}]))]),
        one(g, "SCTP egress", [outgoing(&json!({}), json!([{"ports": [{"protocol": "SCTP"}]}]))]),
        open("a rule of ports does not open ICMP", json!({"protocol": "TCP"})).says(
            "ns2/p1",
            "ns1/p1",
            Probe::Ping,
            false,
        ),
    ]
}

/// Single peers in eight combinations of selectors and in pairs, in both directions.
fn cyclonus() -> Vec<Case> {
    let g = "cyclonus";
    let selectors = [("none", None), ("empty", Some(json!({}))), ("label", Some(app("b")))];
    let mut out = Vec::new();
    for (direction, field) in [("ingress", "from"), ("egress", "to")] {
        let rule = |peers: Value| -> Value {
            if direction == "ingress" {
                ingress(&app("a"), json!([{ field: peers }]))
            } else {
                outgoing(&app("a"), json!([{ field: peers }]))
            }
        };
        for (pods, p) in &selectors {
            for (spaces, n) in [("none", None), ("empty", Some(json!({}))), ("label", Some(team("blue")))] {
                let mut peer = json!({});
                if let Some(p) = p {
                    peer["podSelector"] = p.clone();
                }
                if let Some(n) = &n {
                    peer["namespaceSelector"] = n.clone();
                }
                if peer != json!({}) {
                    let name = format!("{direction}: pods {pods}, namespaces {spaces}");
                    out.push(one(g, &name, [rule(json!([peer]))]));
                }
            }
        }
        let pairs = [
            ("pod and block", json!([{"podSelector": app("c")}, {"ipBlock": {"cidr": "10.0.1.0/24"}}])),
            (
                "two namespaces",
                json!([{"namespaceSelector": team("blue")}, {"namespaceSelector": team("red")}]),
            ),
            (
                "overlapping blocks",
                json!([{"ipBlock": {"cidr": "10.0.0.0/16", "except": ["10.0.1.0/28"]}},
                {"ipBlock": {"cidr": "10.0.1.2/32"}}]),
            ),
        ];
        for (what, peers) in pairs {
            out.push(one(g, &format!("{direction}: {what}"), [rule(peers)]));
        }
        let several = json!([{field: [{"podSelector": app("b")}], "ports": [{"port": 80}]},
            {field: [{"namespaceSelector": team("blue")}], "ports": [{"port": 81}, {"protocol": "UDP", "port": 53}]}]);
        let policy =
            if direction == "ingress" { ingress(&app("a"), several) } else { outgoing(&app("a"), several) };
        out.push(one(g, &format!("{direction}: several rules with peers and ports"), [policy]));
    }
    out
}

fn conflicts() -> Vec<Case> {
    let g = "conflicts";
    let deny =
        |name: &str, kind: &str| k8s("ns1", name, json!({"podSelector": app("a"), "policyTypes": [kind]}));
    let allow = |name: &str, kind: &str| {
        let field = if kind == "Ingress" { "ingress" } else { "egress" };
        k8s("ns1", name, json!({"podSelector": app("a"), "policyTypes": [kind], field: [{}]}))
    };
    vec![
        one(g, "deny egress, allow ingress", [deny("d", "Egress"), allow("a", "Ingress")]),
        one(g, "deny ingress, allow egress", [deny("d", "Ingress"), allow("a", "Egress")]),
        one(g, "deny and allow ingress", [deny("d", "Ingress"), allow("a", "Ingress")])
            .says("ns2/p1", "ns1/p1", TCP80, true),
        one(g, "deny and allow egress", [deny("d", "Egress"), allow("a", "Egress")]),
        one(
            g,
            "by address against an impossible pod",
            [
                ingress(&app("a"), json!([{"from": [{"podSelector": app("nobody")}]}])),
                k8s(
                    "ns1",
                    "second",
                    json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.1.0/31"}}]}]}),
                ),
            ],
        ),
    ]
}
