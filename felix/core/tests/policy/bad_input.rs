//! Resources that contradict each other or themselves: each is named with what follows, the rest is enforced, and what
//! is affected fails closed.

use std::net::IpAddr;

use brindle_config_core::{Key, Kind};
use brindle_felix_core::{
    calc::{Graph, Scope},
    policy::{
        active::{EndpointId, Interface, Protocol},
        state::PolicyState,
        verdict::{Packet, Place, Reason, Verdict, verdict},
    },
};
use serde_json::{Value, json};

struct Cluster {
    graph: Graph,
    state: PolicyState,
}

fn resource(kind: Kind, namespace: &str, name: &str, spec: Value) -> (Key, Value) {
    let (api, written) = kind.written();
    let mut meta = json!({ "name": name });
    if !namespace.is_empty() {
        meta["namespace"] = namespace.into();
    }
    let value = json!({"apiVersion": api, "kind": written, "metadata": meta, "spec": spec});
    (Key::new(kind, Some(namespace), name), value)
}

fn pod(namespace: &str, name: &str, address: &str) -> (Key, Value) {
    let spec = json!({"orchestrator": "k8s", "node": "n1", "endpoint": "eth0", "interfaceName": format!("cali{name}"),
        "ipNetworks": [format!("{address}/32")], "profiles": [format!("kns.{namespace}")]});
    resource(Kind::WorkloadEndpoint, namespace, name, spec)
}

impl Cluster {
    fn new(more: impl IntoIterator<Item = (Key, Value)>) -> Self {
        let mut graph = Graph::new(Scope::Node("n1".into()));
        for (k, v) in [pod("red", "a", "10.0.0.1"), pod("blue", "b", "10.0.0.2")].into_iter().chain(more) {
            graph.put(&k, &v);
        }
        graph.set_in_sync();
        let mut state = PolicyState::default();
        for d in graph.flush() {
            state.apply(&d).expect("deltas keep their contract");
        }
        Self { graph, state }
    }

    fn ask(&self, src: &str, dst: &str) -> Verdict {
        let ip = |s: &str| s.parse::<IpAddr>().expect(s);
        let packet = Packet {
            src: ip(src),
            dst: ip(dst),
            protocol: Protocol::TCP,
            src_port: 40_000,
            dst_port: 80,
            icmp: None,
        };
        let place = |a| brindle_felix_core::policy::verdict::place(&self.state, ip(a));
        verdict(&self.state, &packet, &place(src), &place(dst))
    }

    fn problems(&self) -> String {
        let all = self.graph.problems();
        all.iter().flat_map(|(k, lines)| lines.iter().map(move |l| format!("{k}: {l}\n"))).collect()
    }
}

#[test]
fn without_trouble_there_is_nothing_to_report() {
    let c = Cluster::new([]);
    assert_eq!(c.problems(), "");
    assert!(c.ask("10.0.0.1", "10.0.0.2").allowed());
}

#[test]
fn bad_policies_close_those_they_select_and_no_others() {
    let nets: Vec<String> = (0..5000).map(|i| format!("10.{}.{}.0/24", i / 256, i % 256)).collect();
    let long = "x".repeat(300);
    let mut shown = String::new();
    for (name, spec) in [
        ("action", json!({"ingress": [{"action": "Alow"}]})),
        (
            "ports",
            json!({"ingress": [{"action": "Allow", "protocol": "TCP", "destination": {"ports": ["90:80"]}}]}),
        ),
        ("selector", json!({"selector": "app = 'x'"})),
        ("nets", json!({"ingress": [{"action": "Allow", "source": {"nets": nets}}]})),
        (long.as_str(), json!({"ingress": [{"action": "Allow"}]})),
        ("types", json!({"ingress": "everything"})),
        ("tier", json!({"tier": "nowhere"})),
    ] {
        let c = Cluster::new([resource(Kind::NetworkPolicy, "blue", name, spec)]);
        assert!(!c.ask("10.0.0.1", "10.0.0.2").allowed(), "{name}");
        assert!(c.ask("10.0.0.2", "10.0.0.1").allowed() || name == "types", "{name}: red is not concerned");
        shown.push_str(&c.problems().replace(&long, "xxx…"));
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn a_policy_of_kubernetes_that_cannot_be_read_closes_its_namespace_or_is_reported() {
    let broken =
        |kind, namespace: &str| resource(kind, namespace, "k", json!({"podSelector": "all", "subject": 1}));
    let c = Cluster::new([broken(Kind::KubernetesNetworkPolicy, "blue")]);
    assert!(!c.ask("10.0.0.1", "10.0.0.2").allowed() && c.ask("10.0.0.1", "192.0.2.1").allowed());
    assert!(c.problems().contains("denies everything to those it selects"), "{}", c.problems());
    for kind in [Kind::ClusterNetworkPolicy, Kind::AdminNetworkPolicy, Kind::BaselineAdminNetworkPolicy] {
        let c = Cluster::new([broken(kind, "")]);
        assert!(c.ask("10.0.0.1", "10.0.0.2").allowed(), "{kind:?}");
        assert!(c.problems().contains("not enforced: whom it selects cannot be told"), "{}", c.problems());
    }
}

#[test]
fn of_a_staged_policy_it_is_said_what_it_would_do() {
    let staged = [
        (Kind::StagedNetworkPolicy, "blue", json!({"tier": "nowhere"})),
        (Kind::StagedGlobalNetworkPolicy, "", json!({"tier": "nowhere"})),
        (Kind::StagedNetworkPolicy, "blue", json!({"types": ["Foo"]})),
        (Kind::StagedKubernetesNetworkPolicy, "blue", json!({"podSelector": {}, "policyTypes": ["Foo"]})),
    ];
    for (kind, namespace, spec) in staged {
        let c = Cluster::new([resource(kind, namespace, "p", spec.clone())]);
        assert!(c.ask("10.0.0.1", "10.0.0.2").allowed(), "{kind} {spec}");
        let said = c.problems();
        assert!(said.contains("once enforced it would "), "{kind} {spec}: {said}");
        assert!(!said.contains("denies"), "{kind} {spec}: {said}");
    }
}

#[test]
fn a_cluster_wide_policy_of_kubernetes_closes_its_subject_when_the_rest_cannot_be_read() {
    let subject = json!({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "blue"}}});
    for (kind, action) in [
        (Kind::ClusterNetworkPolicy, "Accept"),
        (Kind::AdminNetworkPolicy, "Allow"),
        (Kind::BaselineAdminNetworkPolicy, "Allow"),
    ] {
        let ingress = json!([{"action": action, "from": [{"namespaces": {}}]}]);
        for (field, wrong) in [
            ("priority", json!("high")),
            ("priority", json!(5000)),
            ("tier", json!("Admn")),
            ("tier", json!(1)),
            ("ingress", json!({"action": action})),
            ("ingress", json!([{"action": 1}])),
        ] {
            let mut spec = json!({"tier": "Admin", "priority": 1, "subject": subject, "ingress": ingress});
            spec[field] = wrong.clone();
            let c = Cluster::new([resource(kind, "", "default", spec)]);
            let what = format!("{kind} {field} {wrong}: {}", c.problems());
            // These have no such field, or what they have of it means nothing.
            if kind != Kind::ClusterNetworkPolicy && field == "tier" && wrong.is_string()
                || kind == Kind::BaselineAdminNetworkPolicy && field == "priority" && wrong.is_number()
            {
                assert!(c.ask("10.0.0.1", "10.0.0.2").allowed(), "{what}");
                continue;
            }
            assert!(!c.ask("10.0.0.1", "10.0.0.2").allowed(), "{what}");
            assert!(c.ask("10.0.0.2", "10.0.0.1").allowed(), "{what}: it speaks of no other direction");
            assert!(c.problems().contains("denies everything to those it selects"), "{what}");
        }
    }
}

#[test]
fn a_type_nobody_knows_closes_both_ways() {
    for (kind, field) in [(Kind::KubernetesNetworkPolicy, "policyTypes"), (Kind::NetworkPolicy, "types")] {
        for types in [json!(["ingress"]), json!(["Foo"]), json!(["Ingress", "Egres"])] {
            let mut spec = json!({ field: types });
            if kind == Kind::KubernetesNetworkPolicy {
                spec["podSelector"] = json!({});
                (spec["ingress"], spec["egress"]) = (json!([{}]), json!([{}]));
            }
            let c = Cluster::new([resource(kind, "blue", "p", spec)]);
            assert!(!c.ask("10.0.0.1", "10.0.0.2").allowed(), "{kind} {types}");
            assert!(!c.ask("10.0.0.2", "192.0.2.1").allowed(), "{kind} {types}");
            assert!(c.ask("10.0.0.1", "192.0.2.1").allowed(), "{kind} {types}: others go on");
            assert!(c.problems().contains(&format!("spec.{field}[")), "{}", c.problems());
            assert!(c.problems().contains("denies everything to those it selects"), "{}", c.problems());
        }
    }
}

#[test]
fn a_built_in_tier_stays_what_it_is_whatever_the_store_says() {
    // Baseline denies what nobody allows; moved before `default`, or made to deny, it would cut everything off.
    let tier = |name, spec| resource(Kind::Tier, "", name, spec);
    let baseline = resource(
        Kind::ClusterNetworkPolicy,
        "",
        "b",
        json!({"tier": "Baseline", "priority": 1, "subject": {"namespaces": {}},
            "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}]}),
    );
    let allow = resource(Kind::NetworkPolicy, "blue", "a", json!({"ingress": [{"action": "Allow"}]}));
    for moved in [
        tier("kube-baseline", json!({"order": 1, "defaultAction": "Deny"})),
        tier("kube-baseline", json!({"order": "first"})),
        tier("default", json!({"order": 99_999_999, "defaultAction": "Pass"})),
    ] {
        let c = Cluster::new([baseline.clone(), allow.clone(), moved.clone()]);
        assert!(c.ask("10.0.0.1", "10.0.0.2").allowed(), "{moved:?}");
        assert!(!c.problems().is_empty(), "{moved:?}");
        let c = Cluster::new([
            moved,
            resource(Kind::NetworkPolicy, "blue", "none", json!({"types": ["Ingress"]})),
        ]);
        assert!(!c.ask("10.0.0.1", "10.0.0.2").allowed(), "the end of tier default denies");
    }
}

#[test]
fn a_global_policy_that_selects_nobody_knows_whom_is_reported_only() {
    let spec = json!({"selector": "app ==", "ingress": [{"action": "Deny"}]});
    let c = Cluster::new([resource(Kind::GlobalNetworkPolicy, "", "g", spec)]);
    assert!(c.ask("10.0.0.1", "10.0.0.2").allowed());
    assert!(c.problems().contains("not enforced: whom it selects cannot be told"), "{}", c.problems());
}

#[test]
fn pods_that_share_an_address_are_closed() {
    let c = Cluster::new([pod("blue", "twin", "10.0.0.2")]);
    let v = c.ask("10.0.0.1", "10.0.0.2");
    assert!(matches!(&v.steps.last().expect("a step").reason, Reason::Closed(_)), "{v:?}");
    assert!(c.ask("10.0.0.1", "192.0.2.1").allowed(), "others go on");
    assert!(c.problems().contains("WorkloadEndpoint(blue/b): spec.ipNetworks: WorkloadEndpoint(blue/twin)"));
}

#[test]
fn pods_that_share_a_device_are_closed_until_one_of_them_goes() {
    let (key, mut value) = pod("blue", "twin", "10.0.0.9");
    value["spec"]["interfaceName"] = "calib".into();
    let mut c = Cluster::new([(key.clone(), value)]);
    for closed in ["10.0.0.2", "10.0.0.9"] {
        let v = c.ask("10.0.0.1", closed);
        assert!(matches!(&v.steps.last().expect("a step").reason, Reason::Closed(_)), "{closed}: {v:?}");
    }
    assert!(c.ask("10.0.0.1", "192.0.2.1").allowed(), "others go on");
    let said = c.problems();
    for name in ["b", "twin"] {
        assert!(said.contains(&format!("WorkloadEndpoint(blue/{name}): spec.interfaceName: ")), "{said}");
    }
    c.graph.delete(&key);
    for d in c.graph.flush() {
        c.state.apply(&d).expect("deltas keep their contract");
    }
    assert!(c.ask("10.0.0.1", "10.0.0.2").allowed(), "the other one has its device to itself");
    assert_eq!(c.problems(), "");
}

#[test]
fn a_device_the_kernel_cannot_have_closes_its_pod_and_reaches_no_rule() {
    for bad in [&*"x".repeat(300), "", "*", "cali+", "..", "cali\"b", "cali b", "cali/b", "cali\nb", "cälib"]
    {
        let (key, mut value) = pod("blue", "odd", "10.0.0.9");
        value["spec"]["interfaceName"] = bad.into();
        let c = Cluster::new([(key, value)]);
        let v = c.ask("10.0.0.1", "10.0.0.9");
        assert!(matches!(&v.steps.last().expect("a step").reason, Reason::Closed(_)), "{bad}: {v:?}");
        assert!(c.ask("10.0.0.1", "10.0.0.2").allowed(), "{bad}: others go on");
        let id = EndpointId::Workload { namespace: "blue".into(), name: "odd".into() };
        let interface = &c.state.endpoints.get(&id).expect("it is there").interface;
        assert!(!matches!(interface, Interface::Name(_)), "{bad}: {interface:?}");
        let said = c.problems();
        assert!(said.contains("WorkloadEndpoint(blue/odd): spec.interfaceName"), "{said}");
        assert!(said.contains("WorkloadEndpoint(blue/odd): drops everything"), "{said}");
    }
}

#[test]
fn a_host_endpoint_that_cannot_be_taken_as_written_closes_its_interface() {
    let allow = json!(["projectcalico-default-allow"]);
    let mut shown = String::new();
    for (what, spec) in [
        (
            "address",
            json!({"node": "n1", "interfaceName": "eth0", "expectedIPs": ["192.0.2.300"], "profiles": allow}),
        ),
        ("types", json!({"node": "n1", "interfaceName": "eth0", "profiles": "all"})),
        (
            "name",
            json!({"node": "n1", "interfaceName": "an interface", "expectedIPs": ["192.0.2.1"], "profiles": allow}),
        ),
        ("nowhere", json!({"node": "n1", "interfaceName": "an interface", "profiles": allow})),
        ("nothing", json!({"node": "n1"})),
    ] {
        let c = Cluster::new([resource(Kind::HostEndpoint, "", "one", spec)]);
        let at = Some(EndpointId::Host { name: "one".into() });
        let ask = |port| {
            let (src, dst) =
                ("192.0.2.9".parse().expect("an address"), "192.0.2.1".parse().expect("an address"));
            let packet =
                Packet { src, dst, protocol: Protocol::TCP, src_port: 1, dst_port: port, icmp: None };
            verdict(&c.state, &packet, &Place::Outside(at.clone()), &Place::Host(at.clone())).allowed()
        };
        let told = !matches!(what, "nowhere" | "nothing");
        assert_eq!(c.state.endpoints.contains_key(at.as_ref().expect("it is")), told, "{what}");
        if told {
            assert!(!ask(80) && ask(22), "{what}: closed but for failsafe ports");
        }
        assert!(c.ask("10.0.0.1", "10.0.0.2").allowed(), "{what}: others go on");
        shown.push_str(&c.problems());
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn ports_and_addresses_no_set_can_hold_are_left_out_and_close_nothing() {
    let hep = json!({"node": "n1", "interfaceName": "eth0", "expectedIPs": ["192.0.2.1", "0.0.0.0"],
        "profiles": ["projectcalico-default-allow"], "ports": [{"name": "echo", "protocol": "ICMP", "port": 8},
            {"name": "echo", "protocol": "TCP", "port": 80}, {"name": "echo", "protocol": "UDPLite", "port": 81}]});
    let echo = json!({"namespaceSelector": "global()", "ports": ["echo"]});
    let rules = json!([{"action": "Deny", "destination": echo}, {"action": "Allow"}]);
    let spec = json!({"selector": "all()", "types": ["Egress"], "egress": rules});
    let c = Cluster::new([
        resource(Kind::HostEndpoint, "", "one", hep),
        resource(Kind::GlobalNetworkPolicy, "", "g", spec),
    ]);
    let members = |start: &str| {
        let of = c.state.sets.iter().filter(|(id, _)| id.0.starts_with(start));
        of.flat_map(|(_, members)| members).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(members("n:"), ["192.0.2.1,tcp:80"]);
    assert!(!c.ask("10.0.0.1", "192.0.2.1").allowed() && c.ask("10.0.0.1", "192.0.2.2").allowed());
    let one = &c.state.endpoints[&EndpointId::Host { name: "one".into() }];
    assert_eq!(one.closed, None);
    for field in ["spec.ports[0].protocol = 'ICMP'", "spec.ports[2].protocol = 'UDPLite'"] {
        assert!(c.problems().contains(&format!("HostEndpoint(one): {field}")), "{}", c.problems());
    }
}

#[test]
fn host_endpoints_of_the_same_interface_close_it_but_for_failsafe_ports() {
    let hep = |name: &str| {
        let spec =
            json!({"node": "n1", "interfaceName": "eth0", "profiles": ["projectcalico-default-allow"]});
        resource(Kind::HostEndpoint, "", name, spec)
    };
    let one = Cluster::new([hep("one")]);
    let ask = |c: &Cluster, port| {
        let src = "192.0.2.9".parse().expect("an address");
        let dst = "192.0.2.1".parse().expect("an address");
        let packet = Packet { src, dst, protocol: Protocol::TCP, src_port: 1, dst_port: port, icmp: None };
        let at = Some(EndpointId::Host { name: "one".into() });
        verdict(&c.state, &packet, &Place::Outside(at.clone()), &Place::Host(at)).allowed()
    };
    assert!(ask(&one, 80));
    let two = Cluster::new([hep("one"), hep("two")]);
    assert!(!ask(&two, 80) && ask(&two, 22));
    insta::assert_snapshot!(two.problems());
}

#[test]
fn a_host_endpoint_that_denies_everything_leaves_neighbour_discovery_to_its_failsafe_ports() {
    let hep = |name: &str| {
        let spec = json!({"node": "n1", "interfaceName": "eth0"});
        let (key, mut value) = resource(Kind::HostEndpoint, "", name, spec);
        value["metadata"]["labels"] = json!({"role": "host"});
        (key, value)
    };
    let deny = |name: &str, flag: &str| {
        let rules = json!([{"action": "Deny"}]);
        let mut spec = json!({"selector": "role == 'host'", "types": ["Ingress", "Egress"], "applyOnForward": true,
            "ingress": rules, "egress": rules});
        if !flag.is_empty() {
            spec[flag] = true.into();
        }
        resource(Kind::GlobalNetworkPolicy, "", name, spec)
    };
    let lists = |inbound: Value, outbound: Value| {
        let spec = json!({"failsafeInboundHostPorts": inbound, "failsafeOutboundHostPorts": outbound});
        resource(Kind::FelixConfiguration, "", "default", spec)
    };
    let at = || Some(EndpointId::Host { name: "one".into() });
    let ways = [(Place::Outside(at()), Place::Host(at())), (Place::Host(at()), Place::Outside(at()))];
    let ask = |c: &Cluster, kind: u8, (from, to): &(Place, Place)| {
        let ip = |s: &str| s.parse::<IpAddr>().expect(s);
        let (src, dst) = (ip("fe80::1"), ip("ff02::1:ff00:2"));
        let packet =
            Packet { src, dst, protocol: Protocol::ICMPV6, src_port: 0, dst_port: 0, icmp: Some((kind, 0)) };
        verdict(&c.state, &packet, from, to)
    };
    let one = |more: Vec<(Key, Value)>| Cluster::new([hep("one"), deny("plain", "")].into_iter().chain(more));
    let port = |net: &str| json!([{"protocol": "TCP", "port": 22, "net": net}]);
    for (c, open) in [
        (one(vec![]), true),
        (one(vec![hep("two")]), true),
        (one(vec![deny("raw", "doNotTrack")]), true),
        (one(vec![lists(json!([]), json!([]))]), false),
        (one(vec![lists(json!([]), port("fd00::/8"))]), true),
        (one(vec![lists(port("10.0.0.0/8"), json!([]))]), false),
        (one(vec![lists(json!([]), json!([])), deny("raw", "doNotTrack")]), false),
    ] {
        for way in &ways {
            for kind in 133..=136 {
                let v = ask(&c, kind, way);
                assert_eq!(v.allowed(), open, "{kind}: {v:?}");
                assert_eq!(v.steps.last().expect("a step").reason == Reason::Discovery, open, "{v:?}");
            }
            for kind in [128, 132, 137] {
                assert!(!ask(&c, kind, way).allowed(), "{kind}");
            }
        }
        // What is forwarded is no neighbour's question to this host.
        let through = (Place::Outside(at()), Place::Outside(None));
        assert!(!ask(&c, 135, &through).allowed());
    }
}

#[test]
fn a_failsafe_port_of_what_is_forwarded_passes_early_policy_but_not_the_forward_policy() {
    let (key, mut hep) =
        resource(Kind::HostEndpoint, "", "one", json!({"node": "n1", "interfaceName": "eth0"}));
    hep["metadata"]["labels"] = json!({"role": "host"});
    let hep = (key, hep);
    let policy = |name: &str, flag: &str, action: &str| {
        let mut spec = json!({"selector": "role == 'host'", "types": ["Ingress"], "applyOnForward": true,
            "ingress": [{"action": action}]});
        if !flag.is_empty() {
            spec[flag] = true.into();
        }
        resource(Kind::GlobalNetworkPolicy, "", name, spec)
    };
    let at = || Some(EndpointId::Host { name: "one".into() });
    let ask = |c: &Cluster, to: &Place, src_port, dst_port| {
        let ip = |s: &str| s.parse::<IpAddr>().expect(s);
        let (src, dst) = (ip("192.0.2.9"), ip("10.0.0.1"));
        let packet = Packet { src, dst, protocol: Protocol::UDP, src_port, dst_port, icmp: None };
        let v = verdict(&c.state, &packet, &Place::Outside(at()), to);
        (v.allowed(), v.steps.last().expect("a step").reason.clone())
    };
    let through = Place::Outside(None);
    for flag in ["preDNAT", "doNotTrack"] {
        let with = |more: Vec<(Key, Value)>| {
            Cluster::new([hep.clone(), policy("early", flag, "Deny")].into_iter().chain(more))
        };
        let denied = with(vec![policy("forward", "", "Deny")]);
        let open = with(vec![]);
        // Port 68 is a failsafe port of UDP, port 80 is none.
        assert!(!ask(&denied, &through, 1, 68).0, "{flag}");
        assert!(
            matches!(&ask(&denied, &through, 1, 68).1, Reason::Rule { policy, .. } if policy.name == "forward")
        );
        assert!(ask(&open, &through, 1, 68).0 && !ask(&open, &through, 1, 80).0, "{flag}");
        assert_eq!(ask(&denied, &Place::Host(at()), 1, 68), (true, Reason::Failsafe), "{flag}");
        // Without tracking, an answer to an outbound failsafe port is told by its source port.
        let answer = ask(&open, &through, 53, 80);
        assert_eq!(answer.0, flag == "doNotTrack", "{answer:?}");
    }
}

#[test]
fn an_endpoint_nobody_knows_is_closed_and_a_missing_profile_denies() {
    let state = PolicyState::default();
    let ip = |s: &str| s.parse::<IpAddr>().expect(s);
    let packet = Packet {
        src: ip("192.0.2.1"),
        dst: ip("10.0.0.1"),
        protocol: Protocol::UDP,
        src_port: 1,
        dst_port: 2,
        icmp: None,
    };
    let w = EndpointId::Workload { namespace: "red".into(), name: "a".into() };
    let v = verdict(&state, &packet, &Place::Outside(None), &Place::Workload(w));
    assert_eq!(v.steps.last().map(|s| s.reason.clone()), Some(Reason::UnknownEndpoint));

    let (key, mut value) = pod("red", "c", "10.0.0.3");
    value["spec"]["profiles"] = json!(["missing"]);
    let c = Cluster::new([(key, value)]);
    assert!(!c.ask("10.0.0.1", "10.0.0.3").allowed());
}

#[test]
fn staged_policies_change_nothing_and_are_named() {
    let spec = json!({"ingress": [{"action": "Deny"}]});
    let c = Cluster::new([resource(Kind::StagedNetworkPolicy, "blue", "later", spec)]);
    assert!(c.ask("10.0.0.1", "10.0.0.2").allowed());
    let id = EndpointId::Workload { namespace: "blue".into(), name: "b".into() };
    let named: Vec<String> = c.graph.staged(&id).iter().map(ToString::to_string).collect();
    assert_eq!(named, ["StagedNetworkPolicy blue/later (tier default)"]);
}
