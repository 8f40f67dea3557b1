//! Filters, service ranges, gateways: from resources to what the speaker is told.

use std::net::IpAddr;

use brindle_bgpd_core::policy::{Decision, Facts};
use brindle_bgpd_core::wire::AttrSet;
use brindle_config_core::{
    key::{Key, Kind},
    store::{Entry, Revision, SyncEvent},
};
use serde_json::{Value, json};

use super::{ClusterState, Plan, translate};

fn cluster(resources: &[(Kind, &str, Value)]) -> Plan {
    let mut state = ClusterState::new("a");
    let own = (Kind::Node, "a", json!({"bgp": {"ipv4Address": "10.0.0.1/24"}}));
    for &(kind, name, ref spec) in [own].iter().chain(resources) {
        let value = json!({
            "apiVersion": "projectcalico.org/v3", "kind": kind.as_str(), "metadata": {"name": name}, "spec": spec,
        });
        let key = Key::new(kind, None, name);
        state.apply(&SyncEvent::Upsert(Entry { key, revision: Revision(1), value: value.into() }));
    }
    translate(&state)
}

fn with_filter(filter: Value) -> Plan {
    let peer = json!({"peerIP": "192.0.2.1", "asNumber": 65000, "filters": ["f"]});
    cluster(&[(Kind::BgpFilter, "f", filter), (Kind::BgpPeer, "p", peer)])
}

#[test]
fn a_filter_with_every_field_reaches_the_speaker() {
    let plan = with_filter(json!({
        "importV4": [{"cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"min": 16, "max": 24},
                      "source": "RemotePeers", "interface": "*", "peerType": "eBGP",
                      "communities": {"values": ["65000:1"]}, "asPathPrefix": [65000], "priority": 1024,
                      "action": "Accept",
                      "operations": [{"addCommunity": {"value": "1:2:3"}}, {"prependASPath": {"prefix": [65000]}},
                                     {"setPriority": {"value": 512}}]},
                     {"action": "Reject"}],
        "exportV6": [{"action": "Reject"}],
    }));
    assert_eq!(plan.problems, []);
    let [peer] = &plan.peers[..] else { panic!("{plan:?}") };
    let mut set = AttrSet {
        as_path: brindle_bgpd_core::wire::AsPath::sequence([65000]),
        communities: [65000 << 16 | 1].into_iter().collect(),
        ..AttrSet::default()
    };
    let prefix = "10.1.0.0/16".parse().unwrap();
    let facts =
        Facts { prefix, attributes: &set, priority: 1024, ibgp: false, learnt: true, interface: None };
    assert_eq!(peer.import.decide(&facts), Decision::Accept(0));
    assert!(!peer.import.reads_interface(), "`*` asks for nothing");
    assert_eq!(peer.import.decide(&Facts { priority: 512, ..facts }), Decision::Reject(1));
    assert_eq!(peer.export.filters.decide(&facts), Decision::Default);
    let v6 = Facts { prefix: "fd00::/64".parse().unwrap(), ..facts };
    assert_eq!(peer.export.filters.decide(&v6), Decision::Reject(0));
    peer.import.apply(brindle_bgpd_core::af::Family::Ipv4Unicast, 0, &mut set);
    assert_eq!((set.local_pref, &set.large_communities[..]), (Some(2_147_483_647 - 512), &[(1, 2, 3)][..]));
}

#[test]
fn a_filter_that_cannot_be_honoured_leaves_the_peer_out_and_names_the_field() {
    for (rule, text) in [
        (json!({"cidr": "10.0.0.0/8", "action": "Accept"}), "f: importV4[0].cidr: needs matchOperator"),
        (json!({"peerType": "both", "action": "Accept"}), "f: importV4[0].peerType: expected one of eBGP"),
        (json!({"source": "Me", "action": "Accept"}), "f: importV4[0].source: expected one of RemotePeers"),
        (json!({"communities": {"values": ["x"]}, "action": "Accept"}), "communities.values[0]: expected"),
        (
            json!({"communities": {"values": []}, "action": "Accept"}),
            "communities.values: expected exactly one",
        ),
        (json!({"operations": [{"setMED": 1}], "action": "Accept"}), "importV4[0].operations[0]: "),
        (json!({"operations": [{"setPriority": {"value": 0}}], "action": "Accept"}), "setPriority takes"),
        (
            json!({"operations": [{"setPriority": {"value": 1}}], "action": "Reject"}),
            "operations: only a rule",
        ),
        (json!({"prefixLength": {"max": 24}, "action": "Accept"}), "importV4[0].prefixLength: needs cidr"),
        (
            json!({"cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"max": 33}, "action": "Accept"}),
            "importV4[0].prefixLength: expected 0 to 32",
        ),
        (
            json!({"cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"min": 24, "max": 16}, "action": "Accept"}),
            "prefixLength: min is greater than max",
        ),
        (
            json!({"cidr": "fd00::/8", "matchOperator": "In", "action": "Accept"}),
            "importV4[0].cidr: the list is for IPv4",
        ),
        (
            json!({"operations": [{"prependASPath": {"prefix": [0]}}], "action": "Accept"}),
            "operations[0]: AS 0 is reserved",
        ),
    ] {
        let plan = with_filter(json!({"importV4": [rule]}));
        let all: String = plan.problems.iter().map(|p| format!("{p}\n")).collect();
        assert!(plan.peers.is_empty() && all.contains(text), "{rule}: {all}");
    }
}

#[test]
fn service_ranges_are_announced_and_reflectors_pass_them_on() {
    let ranges = json!({"serviceClusterIPs": [{"cidr": "10.96.0.0/16"}],
                        "serviceLoadBalancerIPs": [{"cidr": "198.51.100.0/24"}]});
    let plan = cluster(&[(Kind::BgpConfiguration, "default", ranges.clone())]);
    let prefixes: Vec<String> = plan.routes.iter().map(|r| r.prefix.to_string()).collect();
    assert_eq!((prefixes, plan.problems), (vec!["10.96.0.0/16".into(), "198.51.100.0/24".into()], vec![]));
    let rr = json!({"bgp": {"ipv4Address": "10.0.0.1/24", "routeReflectorClusterID": "244.0.0.1"}});
    let peer = json!({"peerIP": "10.0.0.2", "asNumber": 64512});
    let plan = cluster(&[
        (Kind::BgpConfiguration, "default", ranges),
        (Kind::Node, "a", rr),
        (Kind::BgpPeer, "p", peer),
    ]);
    let allow: Vec<String> = plan.peers[0].export.allow.iter().flatten().map(ToString::to_string).collect();
    assert_eq!(allow, ["10.96.0.0/16", "198.51.100.0/24"]);
}

#[test]
fn a_gateway_to_a_peer_becomes_a_static_route() {
    let peer = json!({"peerIP": "192.0.2.1", "asNumber": 65000, "reachableBy": "10.0.0.254"});
    let plan = cluster(&[(Kind::BgpPeer, "p", peer)]);
    assert_eq!(plan.statics, [("192.0.2.1".parse().unwrap(), "10.0.0.254".parse().unwrap())]);
    assert_eq!(plan.problems, []);
}

#[test]
fn settings_without_effect_are_named() {
    let plan = cluster(&[
        (
            Kind::BgpConfiguration,
            "default",
            json!({"logSeverityScreen": "Debug", "programClusterRoutes": "Disabled", "ignoredInterfaces": ["eth1"]}),
        ),
        (Kind::BgpConfiguration, "node.a", json!({"bindMode": "NodeIP", "listenPort": 1790})),
    ]);
    let all: String = plan.problems.iter().map(|p| format!("{p}\n")).collect();
    for text in [
        "BGPConfiguration(default): spec.logSeverityScreen has no effect",
        "BGPConfiguration(default): spec.programClusterRoutes has no effect",
        "BGPConfiguration(default): spec.ignoredInterfaces has no effect",
        "BGPConfiguration(node.a): spec.bindMode is only read in BGPConfiguration default",
    ] {
        assert!(all.contains(text), "{all}");
    }
    assert!(plan.listen.iter().all(|l| l.port() == 1790));
}

/// A plan of node `a` with these resources as they are, metadata included.
fn of_whole(resources: &[Value]) -> Plan {
    let mut state = ClusterState::new("a");
    let node =
        json!({"kind": "Node", "metadata": {"name": "a"}, "spec": {"bgp": {"ipv4Address": "10.0.0.1/24"}}});
    for value in [node].iter().chain(resources) {
        let mut value = value.clone();
        value["apiVersion"] = "projectcalico.org/v3".into();
        let kind = Kind::parse(value["kind"].as_str().unwrap()).unwrap();
        let meta = &value["metadata"];
        let key = Key::new(kind, meta["namespace"].as_str(), meta["name"].as_str().unwrap());
        state.apply(&SyncEvent::Upsert(Entry { key, revision: Revision(1), value: value.into() }));
    }
    translate(&state)
}

#[test]
fn pods_of_this_node_that_are_selected_become_passive_peers() {
    let pod = |node: &str, name: &str, app: &str, address: &str| {
        json!({"kind": "WorkloadEndpoint",
            "metadata": {"namespace": "default", "name": format!("{node}-k8s-{name}-eth0"), "labels": {"app": app}},
            "spec": {"orchestrator": "k8s", "node": node, "pod": name, "endpoint": "eth0",
                "interfaceName": format!("cali{name}"), "ipNetworks": [address, "fd00::7/128"]}})
    };
    let peer = |selector: &str| {
        json!({"kind": "BGPPeer", "metadata": {"name": "pods"}, "spec": {"localWorkloadSelector": selector,
            "asNumber": 65010, "numAllowedLocalASNumbers": 2}})
    };
    let pods = [
        pod("a", "p", "bird", "10.1.0.5/32"),
        pod("a", "q", "web", "10.1.0.6/32"),
        pod("b", "r", "bird", "10.1.0.7/32"),
    ];
    let with = |selector: &str| of_whole(&[&pods[..], &[peer(selector)]].concat());
    let plan = with("app == 'bird'");
    let found: Vec<_> = plan.peers.iter().map(|p| (p.address.to_string(), p.passive, p.asn)).collect();
    assert_eq!(found, [("10.1.0.5".to_owned(), true, 65010), ("fd00::7".to_owned(), true, 65010)]);
    let first = &plan.peers[0];
    assert_eq!((first.name.as_str(), first.kind.as_str(), first.allow_own_as), ("default/p", "workload", 2));
    assert_eq!(first.local_address, None);
    assert!(with("app == 'none'").peers.is_empty());
    assert!(plan.peering.is_empty());

    // The address they peer with, on the devices of those that do.
    let config = |name: &str, spec: Value| json!({"kind": "BGPConfiguration", "metadata": {"name": name}, "spec": spec});
    let both = json!({"localWorkloadPeeringIPV4": "169.254.1.2", "localWorkloadPeeringIPV6": "fd00:1::2",
        "bindMode": "NodeIP"});
    let own = json!({"localWorkloadPeeringIPV4": "169.254.1.3"});
    let all = [&pods[..], &[peer("app == 'bird'"), config("default", both), config("node.a", own)]].concat();
    let plan = of_whole(&all);
    assert!(plan.problems.iter().all(|p| p.about.kind == Kind::WorkloadEndpoint), "{:?}", plan.problems);
    let addresses: Vec<IpAddr> = ["169.254.1.3", "fd00:1::2"].map(|a| a.parse().unwrap()).into();
    assert_eq!(plan.peering, [("calip".to_owned(), addresses)].into());
    let listen: Vec<String> = plan.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["10.0.0.1:179", "169.254.1.3:179", "[fd00:1::2]:179"]);
    let bad = config("default", json!({"localWorkloadPeeringIPV4": "fd00::1"}));
    let plan = of_whole(&[&pods[..], &[peer("app == 'bird'"), bad]].concat());
    assert!(plan.peering.is_empty());
    assert!(
        plan.problems.iter().any(|p| p.what.starts_with("spec.localWorkloadPeeringIPV4: expected")),
        "{:?}",
        plan.problems
    );

    let wrong = with("app ==");
    assert!(wrong.problems[0].what.starts_with("spec.localWorkloadSelector: "), "{:?}", wrong.problems);
}

#[test]
fn routes_of_the_kernel_are_chosen_by_an_annotation_of_which_the_nodes_own_comes_first() {
    let config = |name: &str, text: &str| {
        json!({"kind": "BGPConfiguration", "metadata": {"name": name,
            "annotations": {"bgp.brindle.dev/import-routes": text}}, "spec": {}})
    };
    let filter =
        json!({"kind": "BGPFilter", "metadata": {"name": "f"}, "spec": {"importV4": [{"action": "Reject"}]}});
    let plan =
        of_whole(&[config("default", "static; connected interface=eth1 filter=f med=7; bgp2"), filter]);
    let rules = &plan.imports.rules;
    assert_eq!(rules.len(), 2);
    assert_eq!((rules[1].interface.as_deref(), rules[1].med), (Some("eth1"), Some(7)));
    assert!(!rules[1].policy.is_empty());
    assert!(plan.imports.exclude.iter().any(|d| d == "cali"));
    let what = &plan.problems[0].what;
    assert!(what.contains("import-routes: \"bgp2\": expected connected"), "{what}");
    let plan =
        of_whole(&[config("default", "static"), config("node.a", "188"), config("node.b", "ospf; ra")]);
    assert_eq!(plan.imports.rules.len(), 1);
    assert_eq!(plan.imports.rules[0].source.to_string(), "ospf");
    let missing = of_whole(&[config("default", "static filter=g")]);
    assert!(
        missing.imports.rules.is_empty() && missing.problems[0].what.contains("BGPFilter g does not exist")
    );
    // What the missing filter would have rejected must not fit the next rule.
    let missing = of_whole(&[config("default", "ospf; static filter=g; static")]);
    assert_eq!(missing.imports.rules.len(), 1);
    assert!(missing.problems[0].what.ends_with("this rule and those after it are left out"));
    assert!(of_whole(&[]).imports.rules.is_empty());
}
