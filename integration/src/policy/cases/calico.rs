//! projectcalico.org/v3 on workloads: tiers, order, actions, all fields of rules, sets, accounts, services, profiles.

use serde_json::{Value, json};

use super::{Case, Probe, one, steps};
use crate::policy::world::{calico, gnp, np, set, tier, with};

const TCP80: Probe = Probe::Tcp(80);
const TCP81: Probe = Probe::Tcp(81);

pub(super) fn all() -> Vec<Case> {
    [tiers(), actions(), sides(), matches(), names(), sets(), others()].concat()
}

fn rules(list: Value) -> Value {
    np("ns1", "policy", json!({"ingress": list}))
}

fn outgoing(list: Value) -> Value {
    np("ns1", "policy", json!({"types": ["Egress"], "egress": list}))
}

fn tiers() -> Vec<Case> {
    let g = "tiers";
    let first = |action: &str| tier("first", 10.0, action);
    let p = |name: &str, tier: &str, order: f64, rules: Value| {
        gnp(
            name,
            json!({"tier": tier, "order": order, "namespaceSelector": "team == 'red'", "types": ["Ingress"], "ingress": rules}),
        )
    };
    let from_b = |action: &str| json!({"action": action, "source": {"selector": "app == 'b'"}});
    vec![
        one(g, "an earlier tier denies what a later one allows", [
            first("Deny"),
            p("first.deny", "first", 1.0, json!([{"action": "Deny"}])),
            p("allow", "default", 1.0, json!([{"action": "Allow"}])),
        ])
        .says("ns2/p1", "ns1/p1", TCP80, false),
        one(g, "Pass goes to the next tier", [
            first("Deny"),
            p("first.pass", "first", 1.0, json!([from_b("Pass")])),
            p("allow", "default", 1.0, json!([{"action": "Allow", "protocol": "TCP"}])),
        ])
        .says("ns1/p2", "ns1/p1", TCP80, true)
        .says("ns2/p1", "ns1/p1", TCP80, false),
        one(g, "Pass out of the last tier reaches the profile", [
            p("pass", "default", 1.0, json!([from_b("Pass")])),
        ])
        .says("ns1/p2", "ns1/p1", TCP80, true)
        .says("ns2/p1", "ns1/p1", TCP80, false),
        one(g, "end of a tier denies", [first("Deny"), p("first.b", "first", 1.0, json!([from_b("Allow")]))])
            .says("ns1/p3", "ns1/p1", TCP80, false),
        one(g, "a tier whose default is Pass", [
            first("Pass"),
            p("first.b", "first", 1.0, json!([from_b("Deny")])),
            p("c", "default", 1.0, json!([{"action": "Allow", "source": {"selector": "app == 'c'"}}])),
        ])
        .says("ns1/p2", "ns1/p1", TCP80, false)
        .says("ns1/p3", "ns1/p1", TCP80, true),
        one(g, "order within a tier", [
            p("late", "default", 20.0, json!([{"action": "Deny"}])),
            p("early", "default", 10.0, json!([from_b("Allow")])),
        ])
        .says("ns1/p2", "ns1/p1", TCP80, true),
        one(g, "no order is last", [
            gnp("a", json!({"namespaceSelector": "team == 'red'", "types": ["Ingress"], "ingress": [{"action": "Allow"}]})),
            p("z", "default", 5.0, json!([{"action": "Deny", "source": {"selector": "app == 'b'"}}])),
        ])
        .says("ns1/p2", "ns1/p1", TCP80, false),
        one(g, "equal order goes by name", [
            p("b-allow", "default", 5.0, json!([{"action": "Allow"}])),
            p("a-deny", "default", 5.0, json!([from_b("Deny")])),
        ])
        .says("ns1/p2", "ns1/p1", TCP80, false),
        one(g, "three tiers, passed twice", [
            first("Deny"),
            tier("second", 20.0, "Deny"),
            p("first.p", "first", 1.0, json!([{"action": "Pass"}])),
            p("second.p", "second", 1.0, json!([from_b("Pass"), {"action": "Deny"}])),
            p("end", "default", 1.0, json!([{"action": "Allow", "protocol": "UDP"}])),
        ])
        .says("ns1/p2", "ns1/p1", Probe::Udp(53), true)
        .says("ns1/p2", "ns1/p1", TCP80, false),
        steps(g, "the order of tiers changes", vec![
            with([first("Deny"), p("first.d", "first", 1.0, json!([{"action": "Deny"}])), p("a", "default", 1.0, json!([{"action": "Allow"}]))]),
            with([tier("first", 2_000_000.0, "Deny"), p("first.d", "first", 1.0, json!([{"action": "Deny"}])), p("a", "default", 1.0, json!([{"action": "Allow"}]))]),
        ])
        .says("ns2/p1", "ns1/p1", TCP80, true),
    ]
}

fn actions() -> Vec<Case> {
    let g = "actions";
    vec![
        one(
            g,
            "Deny, then Allow",
            [rules(json!([{"action": "Deny", "source": {"selector": "app == 'b'"}}, {"action": "Allow"}]))],
        )
        .says("ns1/p2", "ns1/p1", TCP80, false),
        one(
            g,
            "Log decides nothing",
            [rules(json!([{"action": "Log"}, {"action": "Allow", "protocol": "TCP"}]))],
        )
        .says("ns2/p1", "ns1/p1", TCP80, true),
        one(g, "Log alone denies", [rules(json!([{"action": "Log"}]))])
            .says("ns2/p1", "ns1/p1", TCP80, false),
        one(
            g,
            "types Ingress and Egress without rules",
            [np("ns1", "policy", json!({"types": ["Ingress", "Egress"]}))],
        )
        .says("ns1/p1", "ns2/p1", TCP80, false),
        one(
            g,
            "egress rules make a policy of egress",
            [np("ns1", "policy", json!({"egress": [{"action": "Allow", "protocol": "UDP"}]}))],
        )
        .says("ns1/p1", "ns2/p1", TCP80, false)
        .says("ns2/p1", "ns1/p1", TCP80, true),
        one(
            g,
            "a global policy for the cluster",
            [gnp(
                "all",
                json!({"selector": "has(app)", "types": ["Ingress"],
            "ingress": [{"action": "Allow", "source": {"selector": "tier == 'x'"}}]}),
            )],
        ),
        one(
            g,
            "staged: nothing happens",
            [calico("StagedNetworkPolicy", "ns1", "later", &json!({"ingress": [{"action": "Deny"}]}))],
        )
        .says("ns2/p1", "ns1/p1", TCP80, true),
        one(
            g,
            "staged global: nothing happens",
            [calico(
                "StagedGlobalNetworkPolicy",
                "",
                "later",
                &json!({"selector": "all()", "ingress": [{"action": "Deny"}]}),
            )],
        ),
    ]
}

fn sides() -> Vec<Case> {
    let g = "nets and selectors";
    let from =
        |name: &str, source: Value| one(g, name, [rules(json!([{"action": "Allow", "source": source}]))]);
    vec![
        from("nets", json!({"nets": ["10.0.1.0/24", "10.9.0.0/16"]})).says("out1", "ns1/p1", TCP80, true),
        from("nets, IPv6", json!({"nets": ["fd00::1:0/112"]})).says("ns2/p1", "ns1/p1", TCP80, false),
        from("notNets", json!({"notNets": ["10.0.1.0/24"]}))
            .says("ns2/p1", "ns1/p1", TCP80, false)
            .says("ns3/p1", "ns1/p1", TCP80, true),
        from("nets and notNets", json!({"nets": ["10.0.0.0/16"], "notNets": ["10.0.1.2/32", "10.0.2.0/24"]})),
        from("selector, own namespace", json!({"selector": "app == 'b'"}))
            .says("ns2/p2", "ns1/p1", TCP80, false),
        from(
            "selector and namespaceSelector",
            json!({"selector": "app == 'b'", "namespaceSelector": "team == 'blue'"}),
        )
        .says("ns2/p2", "ns1/p1", TCP80, true),
        from("namespaceSelector alone", json!({"namespaceSelector": "has(team)"})),
        from("namespaceSelector global()", json!({"namespaceSelector": "global()"})),
        from("notSelector", json!({"notSelector": "app == 'b'", "namespaceSelector": "all()"})),
        from("selector and notSelector", json!({"selector": "has(app)", "notSelector": "tier == 'x'"})),
        from(
            "selector of strings",
            json!({"selector": "app starts with 'a' || app ends with 'c'", "namespaceSelector": "all()"}),
        ),
        from(
            "negated selector",
            json!({"selector": "!(app == 'a' && tier == 'x')", "namespaceSelector": "all()"}),
        ),
        from("selector !=", json!({"selector": "app != 'a'", "namespaceSelector": "all()"}))
            .says("ns2/p3", "ns1/p1", TCP80, true),
        one(
            g,
            "notSelector of a global policy lets the outside in",
            [gnp(
                "g",
                json!({"namespaceSelector": "team == 'red'",
            "types": ["Ingress"], "ingress": [{"action": "Allow", "source": {"notSelector": "app == 'b'"}}]}),
            )],
        )
        .says("out1", "ns1/p1", TCP80, true)
        .says("ns2/p2", "ns1/p1", TCP80, false),
        one(
            g,
            "destination of ingress",
            [rules(json!([{"action": "Allow", "destination": {"nets": ["10.0.0.1/32"]}}]))],
        )
        .says("ns2/p1", "ns1/p1", TCP80, true)
        .says("ns2/p1", "ns1/p2", TCP80, false),
        one(
            g,
            "source of egress",
            [outgoing(
                json!([{"action": "Allow", "source": {"selector": "app == 'a'"}, "destination": {"namespaceSelector": "all()"}}]),
            )],
        ),
        one(
            g,
            "egress by nets",
            [outgoing(json!([{"action": "Allow", "destination": {"notNets": ["10.0.0.0/16"]}}]))],
        )
        .says("ns1/p1", "out1", TCP80, true)
        .says("ns1/p1", "ns2/p1", TCP80, false),
        one(
            g,
            "a list of nets becomes a set",
            [rules(json!([{"action": "Allow", "source": {"nets":
            (1..200).map(|i| json!(format!("10.0.1.{i}/32"))).collect::<Vec<_>>()}}]))],
        ),
        one(g, "whole families", [rules(json!([{"action": "Allow", "source": {"nets": ["0.0.0.0/0"]}}]))]),
    ]
}

fn matches() -> Vec<Case> {
    let g = "protocols and ports";
    let rule = |name: &str, r: Value| one(g, name, [rules(json!([r]))]);
    vec![
        rule("protocol by number", json!({"action": "Allow", "protocol": 17})),
        rule("notProtocol", json!({"action": "Allow", "notProtocol": "TCP"}))
            .says("ns2/p1", "ns1/p1", TCP80, false),
        rule(
            "ports, ranges and names",
            json!({"action": "Allow", "protocol": "TCP", "destination": {"ports": ["20:30", 81, "http"]}}),
        ),
        rule("notPorts", json!({"action": "Allow", "protocol": "TCP", "destination": {"notPorts": [80]}}))
            .says("ns2/p1", "ns1/p1", TCP81, true)
            .says("ns2/p1", "ns1/p1", TCP80, false),
        rule(
            "notPorts with a name",
            json!({"action": "Allow", "protocol": "TCP", "destination": {"notPorts": ["http"]}}),
        ),
        rule(
            "source ports",
            json!({"action": "Allow", "protocol": "UDP", "source": {"ports": ["9999:30000"]}}),
        )
        .says("ns2/p1", "ns1/p1", Probe::Udp(53), true),
        rule(
            "source notPorts",
            json!({"action": "Allow", "protocol": "UDP", "source": {"notPorts": ["9999:30000"]}}),
        )
        .says("ns2/p1", "ns1/p1", Probe::Udp(53), false),
        rule("a name without a protocol", json!({"action": "Allow", "destination": {"ports": ["dns"]}})),
        rule("ICMP type", json!({"action": "Allow", "protocol": "ICMP", "icmp": {"type": 8}}))
            .says("ns2/p1", "ns1/p1", Probe::Ping, true)
            .says("ns2/p1", "ns1/p1", Probe::Timestamp, false),
        rule(
            "ICMP type and code",
            json!({"action": "Allow", "protocol": "ICMP", "icmp": {"type": 8, "code": 0}}),
        ),
        rule(
            "ICMP code that differs",
            json!({"action": "Allow", "protocol": "ICMP", "icmp": {"type": 8, "code": 1}}),
        )
        .says("ns2/p1", "ns1/p1", Probe::Ping, false),
        rule("notICMP", json!({"action": "Allow", "protocol": "ICMP", "notICMP": {"type": 8}}))
            .says("ns2/p1", "ns1/p1", Probe::Ping, false)
            .says("ns2/p1", "ns1/p1", Probe::Timestamp, true),
        rule(
            "notICMP type and code",
            json!({"action": "Allow", "protocol": "ICMP", "notICMP": {"type": 13, "code": 0}}),
        ),
        rule("ICMPv6 type", json!({"action": "Allow", "protocol": "ICMPv6", "icmp": {"type": 128}})),
        rule("ipVersion", json!({"action": "Allow", "ipVersion": 6})),
        rule("SCTP", json!({"action": "Allow", "protocol": "SCTP", "destination": {"ports": [80]}})).says(
            "ns2/p1",
            "ns1/p1",
            Probe::Sctp(80),
            true,
        ),
    ]
}

fn names() -> Vec<Case> {
    let g = "accounts and services";
    let slice = || {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "spec": {}, "addressType": "IPv4",
            "metadata": {"name": "web-x", "namespace": "ns2", "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": [{"addresses": ["10.0.1.1"]}, {"addresses": ["10.0.1.3"], "conditions": {"ready": false}}],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]})
    };
    vec![
        one(g, "serviceAccounts by name", [rules(json!([{"action": "Allow", "source": {"serviceAccounts": {"names": ["robot"]}}}]))]),
        one(g, "serviceAccounts by selector, any namespace", [rules(json!([{"action": "Allow",
            "source": {"serviceAccounts": {"selector": "team == 'blue'"}, "namespaceSelector": "all()"}}]))])
        .says("ns2/p1", "ns1/p2", TCP80, true)
        .says("ns2/p2", "ns1/p2", TCP80, false),
        one(g, "serviceAccountSelector of a policy", [gnp("g", json!({"serviceAccountSelector": "has(team)", "types": ["Ingress"]}))])
            .says("ns3/p1", "ns1/p1", TCP80, false)
            .says("ns3/p1", "ns1/p2", TCP80, true),
        one(g, "egress to a service", [
            slice(),
            outgoing(json!([{"action": "Allow", "destination": {"services": {"name": "web", "namespace": "ns2"}}}])),
        ])
        .says("ns1/p1", "ns2/p1", TCP80, true)
        .says("ns1/p1", "ns2/p3", TCP80, true)
        .says("ns1/p1", "ns2/p1", TCP81, false)
        .says("ns1/p1", "ns2/p2", TCP80, false),
        one(g, "ingress from a service", [
            slice(),
            rules(json!([{"action": "Allow", "source": {"services": {"name": "web", "namespace": "ns2"}}}])),
        ])
        .says("ns2/p1", "ns1/p1", TCP81, true)
        .says("ns2/p2", "ns1/p1", TCP81, false),
        steps(g, "the members of a service change", vec![
            with([slice(), outgoing(json!([{"action": "Allow", "destination": {"services": {"name": "web", "namespace": "ns2"}}}]))]),
            with([{
                let mut s = slice();
                s["endpoints"] = json!([{"addresses": ["10.0.1.2"]}]);
                s
            }, outgoing(json!([{"action": "Allow", "destination": {"services": {"name": "web", "namespace": "ns2"}}}]))]),
        ])
        .says("ns1/p1", "ns2/p2", TCP80, true)
        .says("ns1/p1", "ns2/p1", TCP80, false),
        one(g, "egress to a service that does not exist", [
            outgoing(json!([{"action": "Allow", "destination": {"services": {"name": "nobody", "namespace": "ns2"}}}])),
        ]),
    ]
}

fn sets() -> Vec<Case> {
    let g = "network sets";
    let external = |nets: Value| set("", "ext", "external", nets);
    let from = || {
        gnp(
            "g",
            json!({"namespaceSelector": "team == 'red'", "types": ["Ingress"],
        "ingress": [{"action": "Allow", "source": {"selector": "role == 'external'"}}]}),
        )
    };
    vec![
        one(g, "global, by selector of a global policy", [external(json!(["10.9.0.0/16", "fd00:2::/64"])), from()])
            .says("out1", "ns1/p1", TCP80, true)
            .says("out2", "ns1/p1", TCP80, false),
        one(g, "global, by namespaceSelector global()", [
            external(json!(["10.9.0.0/16"])),
            rules(json!([{"action": "Allow", "source": {"selector": "role == 'external'", "namespaceSelector": "global()"}}])),
        ])
        .says("out1", "ns1/p1", TCP80, true),
        one(g, "in a namespace", [
            set("ns1", "mine", "external", json!(["10.8.0.0/24"])),
            rules(json!([{"action": "Allow", "source": {"selector": "role == 'external'"}}])),
        ])
        .says("out2", "ns1/p1", TCP80, true),
        one(g, "in another namespace: not meant", [
            set("ns2", "theirs", "external", json!(["10.8.0.0/24"])),
            rules(json!([{"action": "Allow", "source": {"selector": "role == 'external'"}}])),
        ])
        .says("out2", "ns1/p1", TCP80, false),
        steps(g, "members change", vec![
            with([external(json!(["10.9.0.0/16"])), from()]),
            with([external(json!(["10.8.0.9/32"])), from()]),
        ])
        .says("out1", "ns1/p1", TCP80, false)
        .says("out2", "ns1/p1", TCP80, true),
        one(g, "overlapping members", [external(json!(["10.9.0.0/16", "10.9.1.7/32", "10.9.1.0/24"])), from()]),
        steps(g, "an overlapping member goes", vec![
            with([external(json!(["10.9.0.0/16", "10.9.1.7/32"])), from()]),
            with([external(json!(["10.9.1.7/32"])), from()]),
        ])
        .says("out1", "ns1/p1", TCP80, true),
        one(g, "everything", [external(json!(["0.0.0.0/0", "::/0"])), from()]).says("out2", "ns1/p1", TCP80, true),
    ]
}

fn others() -> Vec<Case> {
    let g = "profiles and settings";
    let felix = |spec: Value| calico("FelixConfiguration", "", "default", &spec);
    let profiled = |profiles: Value| {
        let mut p = crate::policy::world::pod("ns1", "p1", &json!({"app": "a", "tier": "x"}), "robot");
        p["spec"]["profiles"] = profiles;
        p
    };
    vec![
        one(g, "a profile's own rules", [
            profiled(json!(["custom"])),
            calico("Profile", "", "custom", &json!({"ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}],
                "egress": [{"action": "Allow"}]})),
        ])
        .says("ns2/p1", "ns1/p1", TCP80, true)
        .says("ns2/p1", "ns1/p1", TCP81, false),
        one(g, "two profiles, the first denies", [
            profiled(json!(["custom", "kns.ns1"])),
            calico("Profile", "", "custom", &json!({"ingress": [{"action": "Deny", "protocol": "UDP"}]})),
        ])
        .says("ns2/p1", "ns1/p1", TCP80, true)
        .says("ns2/p1", "ns1/p1", Probe::Udp(53), false),
        one(g, "a profile that does not exist", [profiled(json!(["nobody"]))]).says("ns2/p1", "ns1/p1", TCP80, false),
        one(g, "no profile", [profiled(json!([]))]).says("ns1/p1", "ns2/p1", TCP80, false),
        one(g, "workload to host: Accept", [felix(json!({"defaultEndpointToHostAction": "Accept"}))])
            .says("ns1/p1", "host", TCP80, true),
        one(g, "workload to host: Drop", [felix(json!({"defaultEndpointToHostAction": "Drop"}))])
            .says("ns1/p1", "host", TCP80, false)
            .says("host", "ns1/p1", TCP80, true),
        one(g, "workload to host: egress policy comes first", [outgoing(json!([{"action": "Allow", "protocol": "UDP"}]))])
            .says("ns1/p1", "host", TCP80, false)
            .says("ns1/p1", "host", Probe::Udp(53), true),
        one(g, "workload to host: Return", [felix(json!({"defaultEndpointToHostAction": "Return"}))])
            .says("ns1/p1", "host", TCP80, true),
    ]
}
