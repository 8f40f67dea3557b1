//! One table or one sentence per rule of the translation.

use std::net::IpAddr;

use brindle_bgpd_core::speaker::{NextHopPolicy, PeerConfig, PrefixTags};
use brindle_config_core::{
    key::{Key, Kind},
    store::{Entry, Revision, SyncEvent},
};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{ClusterState, Plan, translate};

/// A cluster described by resources, seen from one node.
pub(crate) struct Cluster(pub(crate) ClusterState);

impl Cluster {
    fn seen_from(me: &str) -> Self {
        Self(ClusterState::new(me))
    }

    pub(crate) fn with(mut self, kind: Kind, name: &str, spec: Value) -> Self {
        self.put(kind, name, json!({}), spec);
        self
    }

    fn put(&mut self, kind: Kind, name: &str, labels: Value, spec: Value) -> bool {
        let namespace = kind.namespaced().then_some("default");
        let value = json!({
            "apiVersion": "projectcalico.org/v3", "kind": kind.as_str(),
            "metadata": {"name": name, "labels": labels}, "spec": spec,
        });
        self.0.apply(&SyncEvent::Upsert(Entry {
            key: Key::new(kind, namespace, name),
            revision: Revision(1),
            value: value.into(),
        }))
    }

    fn node(self, name: &str, ipv4: &str) -> Self {
        self.with(Kind::Node, name, json!({"bgp": {"ipv4Address": format!("{ipv4}/24")}}))
    }

    fn labelled(mut self, name: &str, ipv4: &str, labels: Value, bgp: Value) -> Self {
        let mut spec = json!({"bgp": {"ipv4Address": format!("{ipv4}/24")}});
        spec["bgp"].as_object_mut().unwrap().extend(bgp.as_object().unwrap().clone());
        self.put(Kind::Node, name, labels, spec);
        self
    }

    pub(crate) fn peer(self, name: &str, spec: Value) -> Self {
        self.with(Kind::BgpPeer, name, spec)
    }

    fn defaults(self, spec: Value) -> Self {
        self.with(Kind::BgpConfiguration, "default", spec)
    }

    fn plan(&self) -> Plan {
        translate(&self.0)
    }
}

pub(crate) fn three() -> Cluster {
    Cluster::seen_from("a").node("a", "10.0.0.9").node("b", "10.0.0.10").node("c", "10.0.0.2")
}

fn find<'a>(plan: &'a Plan, address: &str) -> &'a PeerConfig {
    let address: IpAddr = address.parse().unwrap();
    plan.peers
        .iter()
        .find(|p| p.address == address)
        .unwrap_or_else(|| panic!("no peer {address} in {:#?}", plan.peers))
}

fn problems(plan: &Plan) -> String {
    plan.problems.iter().map(|p| format!("{p}\n")).collect()
}

fn summary(plan: &Plan) -> Vec<String> {
    plan.peers
        .iter()
        .map(|p| format!("{} {} {}:{} as {}", p.kind, p.name, p.address, p.port, p.asn))
        .collect()
}

fn prefixes(plan: &Plan) -> Vec<String> {
    plan.routes.iter().map(|r| r.prefix.to_string()).collect()
}

#[test]
fn without_a_node_resource_there_is_nothing_to_speak_for() {
    let plan = Cluster::seen_from("a").node("b", "10.0.0.2").plan();
    assert_eq!((plan.speaker, plan.peers), (None, vec![]));
    assert_eq!(plan.problems[0].to_string(), "Node(a): does not exist; register the node before it can peer");
    let plan = Cluster::seen_from("a").with(Kind::Node, "a", json!({})).plan();
    assert!(plan.speaker.is_none() && problems(&plan).contains("neither ipv4Address nor ipv6Address"));
}

#[test]
fn the_environment_may_say_what_the_router_id_is() {
    let id = Some("192.0.2.1".parse().unwrap());
    let plan = translate(&three().0.with_router_id(id));
    assert_eq!(Some(plan.speaker.unwrap().router_id), id);
}

#[test]
fn every_pair_of_nodes_peers_by_default() {
    let plan = three().plan();
    assert_eq!(summary(&plan), ["mesh c 10.0.0.2:179 as 64512", "mesh b 10.0.0.10:179 as 64512"]);
    let speaker = plan.speaker.unwrap();
    assert_eq!((speaker.asn, speaker.router_id.to_string()), (64512, "10.0.0.9".into()));
    assert_eq!(plan.problems, []);
    let p = &plan.peers[0];
    assert_eq!((p.hold_time, p.connect_retry, p.restart_time), (240, 5, 120));
    assert_eq!(p.local_address, Some("10.0.0.9".parse().unwrap()));
}

#[test]
fn the_mesh_side_with_the_lower_address_as_text_waits_for_the_other() {
    let passive = |me: &str, them: &str| {
        let plan = Cluster::seen_from("me").node("me", me).node("them", them).plan();
        find(&plan, them).passive
    };
    for (low, high) in [("10.0.0.10", "10.0.0.9"), ("10.0.0.1", "10.0.0.2"), ("192.168.1.1", "9.0.0.1")] {
        assert!(passive(low, high), "{low} must wait for {high}");
        assert!(!passive(high, low), "{high} must connect to {low}");
    }
}

#[test]
fn the_mesh_can_be_switched_off_and_leaves_reflectors_out() {
    assert_eq!(three().defaults(json!({"nodeToNodeMeshEnabled": false})).plan().peers, []);
    let rr = json!({"routeReflectorClusterID": "244.0.0.1"});
    let plan = three().labelled("c", "10.0.0.2", json!({}), rr.clone()).plan();
    assert_eq!(summary(&plan), ["mesh b 10.0.0.10:179 as 64512"]);
    let plan = three().labelled("a", "10.0.0.9", json!({}), rr).plan();
    assert_eq!(plan.peers, []);
    assert_eq!(plan.speaker.unwrap().cluster_id, Some("244.0.0.1".parse().unwrap()));
}

#[test]
fn the_as_comes_from_the_node_then_the_default_configuration() {
    let plan = three()
        .labelled("b", "10.0.0.10", json!({}), json!({"asNumber": "1.10"}))
        .defaults(json!({"asNumber": 65001}))
        .plan();
    assert_eq!(plan.speaker.as_ref().unwrap().asn, 65001);
    assert_eq!(find(&plan, "10.0.0.10").asn, 65546);
    assert_eq!(find(&plan, "10.0.0.2").asn, 65001);
}

#[test]
fn listen_port_and_bind_mode_are_honoured_for_oneself_and_the_others() {
    let plan = three()
        .defaults(json!({"listenPort": 1790, "bindMode": "NodeIP"}))
        .with(Kind::BgpConfiguration, "node.b", json!({"listenPort": 1791}))
        .plan();
    assert_eq!(plan.listen, ["10.0.0.9:1790".parse().unwrap()]);
    assert_eq!((find(&plan, "10.0.0.10").port, find(&plan, "10.0.0.2").port), (1791, 1790));
    let plan = three().plan();
    assert_eq!(plan.listen, ["0.0.0.0:179".parse().unwrap(), "[::]:179".parse().unwrap()]);
}

/// The shipped reflectors: `brindle-bgpd` in the network of some nodes, at another port than their agents.
#[test]
fn a_speaker_beside_a_nodes_agent_is_another_peer_than_the_agent() {
    let reflectors = |c: Cluster| {
        c.with(Kind::BgpPeer, "rr-a", json!({"peerIP": "10.0.0.9:1790", "asNumber": 64512})).with(
            Kind::BgpPeer,
            "rr-b",
            json!({"peerIP": "10.0.0.10:1790", "asNumber": 64512}),
        )
    };
    let plan = reflectors(three()).plan();
    assert_eq!(
        summary(&plan),
        [
            "mesh c 10.0.0.2:179 as 64512",
            "global rr-a 10.0.0.9:1790 as 64512",
            "mesh b 10.0.0.10:179 as 64512",
            "global rr-b 10.0.0.10:1790 as 64512",
        ],
        "{}",
        problems(&plan)
    );
    assert!(plan.peers.iter().filter(|p| p.port == 1790).all(|p| !p.passive), "reflectors wait for nodes");
    let plan = reflectors(three().defaults(json!({"nodeToNodeMeshEnabled": false}))).plan();
    assert_eq!(summary(&plan).len(), 2);
    // A node that listens there itself is meant.
    let plan = reflectors(three().defaults(json!({"listenPort": 1790}))).plan();
    assert_eq!(summary(&plan).len(), 2, "{:?}", summary(&plan));
}

#[test]
fn both_families_peer_separately_and_a_node_without_ipv4_has_a_stable_router_id() {
    let both = |ip4: &str, ip6: &str| json!({"bgp": {"ipv4Address": ip4, "ipv6Address": ip6}});
    let cluster = Cluster::seen_from("a")
        .with(Kind::Node, "a", both("10.0.0.1/24", "fd00::1/64"))
        .with(Kind::Node, "b", both("10.0.0.2/24", "fd00::2/64"))
        .with(Kind::Node, "c", json!({"bgp": {"ipv6Address": "fd00::3/64"}}));
    assert_eq!(
        summary(&cluster.plan()),
        ["mesh b 10.0.0.2:179 as 64512", "mesh b fd00::2:179 as 64512", "mesh c fd00::3:179 as 64512"]
    );
    let only6 = Cluster::seen_from("node-x").with(
        Kind::Node,
        "node-x",
        json!({"bgp": {"ipv6Address": "fd00::1/64"}}),
    );
    let id = only6.plan().speaker.unwrap().router_id;
    assert_eq!(Some(id), only6.plan().speaker.map(|s| s.router_id));
    assert!(id.octets()[0] < 224);
}

#[test]
fn two_nodes_with_one_address_are_named_and_do_not_make_two_sessions() {
    let plan = three().node("d", "10.0.0.10").plan();
    assert_eq!(plan.peers.len(), 2);
    assert!(problems(&plan).contains("Node(d): has the address 10.0.0.10 of node b"), "{}", problems(&plan));
    let plan = three().node("0", "10.0.0.9").plan();
    assert_eq!(plan.peers.len(), 2);
    assert!(problems(&plan).contains("Node(0): has the address 10.0.0.9 of node a"), "{}", problems(&plan));
}

#[test]
fn bgp_peers_concern_all_nodes_one_node_or_the_selected_ones() {
    let tor = |extra: Value| {
        let mut spec = json!({"peerIP": "10.0.0.254", "asNumber": 65100});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        spec
    };
    let off = json!({"nodeToNodeMeshEnabled": false});
    for (spec, expected) in [
        (tor(json!({})), Some("global")),
        (tor(json!({"node": "a"})), Some("node")),
        (tor(json!({"node": "b"})), None),
        (tor(json!({"nodeSelector": "rack == '1'"})), Some("node")),
        (tor(json!({"nodeSelector": "rack == '2'"})), None),
        (tor(json!({"nodeSelector": "all()"})), Some("node")),
    ] {
        let plan = three()
            .defaults(off.clone())
            .labelled("a", "10.0.0.9", json!({"rack": "1"}), json!({}))
            .peer("tor", spec.clone())
            .plan();
        let kinds: Vec<&str> = plan.peers.iter().map(|p| p.kind.as_str()).collect();
        assert_eq!(kinds, expected.into_iter().collect::<Vec<_>>(), "{spec}: {}", problems(&plan));
    }
}

#[test]
fn peer_ip_may_carry_a_port_and_inherits_a_nodes_listen_port() {
    let off = json!({"nodeToNodeMeshEnabled": false, "listenPort": 1790});
    for (ip, expected) in [
        ("192.0.2.1", "192.0.2.1:179"),
        ("192.0.2.1:1180", "192.0.2.1:1180"),
        ("10.0.0.10", "10.0.0.10:1790"),
        ("10.0.0.10:180", "10.0.0.10:180"),
    ] {
        let plan = three().defaults(off.clone()).peer("p", json!({"peerIP": ip, "asNumber": 64512})).plan();
        let p = &plan.peers[0];
        assert_eq!(format!("{}:{}", p.address, p.port), expected);
    }
    for bad in ["10.0.0", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:70000", "[fd00::1", "host.example"] {
        let plan = three().defaults(off.clone()).peer("p", json!({"peerIP": bad, "asNumber": 64512})).plan();
        assert_eq!(plan.peers, []);
        assert!(problems(&plan).contains(&format!(
            "BGPPeer(p): spec.peerIP: expected an address, ip:port or [ipv6]:port, found {bad:?}"
        )));
    }
}

#[test]
fn a_node_never_peers_with_itself() {
    let plan = three()
        .defaults(json!({"nodeToNodeMeshEnabled": false}))
        .peer("me", json!({"peerIP": "10.0.0.9", "asNumber": 64512}))
        .plan();
    assert!(plan.peers.iter().all(|p| p.address != "10.0.0.9".parse::<IpAddr>().unwrap()));
}

#[test]
fn global_peers_that_are_nodes_follow_the_passive_rule_and_specific_ones_connect_from_both_sides() {
    let off = json!({"nodeToNodeMeshEnabled": false});
    let global = |me: &str| {
        let mut c =
            three().defaults(off.clone()).peer("p", json!({"peerIP": "10.0.0.10", "asNumber": 64512}));
        c.0.me = me.into();
        c.plan()
    };
    // "10.0.0.10" < "10.0.0.9" as text, "10.0.0.10" < "10.0.0.2" too: both must connect to b.
    assert!(!find(&global("a"), "10.0.0.10").passive);
    let plan =
        three().defaults(off.clone()).peer("p", json!({"peerIP": "10.0.0.2", "asNumber": 64512})).plan();
    assert!(!find(&plan, "10.0.0.2").passive);
    let mut c = three().defaults(off.clone()).peer("p", json!({"peerIP": "10.0.0.2", "asNumber": 64512}));
    c.0.me = "b".into();
    assert!(find(&c.plan(), "10.0.0.2").passive);
    let mut c =
        three().defaults(off).peer("p", json!({"node": "b", "peerIP": "10.0.0.2", "asNumber": 64512}));
    c.0.me = "b".into();
    assert!(!find(&c.plan(), "10.0.0.2").passive);
}

fn reflected(me: &str) -> Cluster {
    let rr = json!({"routeReflectorClusterID": "244.0.0.1"});
    let mark = json!({"route-reflector": "true"});
    Cluster::seen_from(me)
        .labelled("rr1", "10.0.0.1", mark.clone(), rr.clone())
        .labelled("rr2", "10.0.0.2", mark, rr)
        .node("n3", "10.0.0.3")
        .node("n4", "10.0.0.4")
        .defaults(json!({"nodeToNodeMeshEnabled": false}))
        .peer("reflectors", json!({"nodeSelector": "all()", "peerSelector": "route-reflector == 'true'"}))
}

#[test]
fn reflectors_get_reverse_peerings_and_treat_nodes_as_clients_but_not_each_other() {
    let plan = reflected("n3").plan();
    assert_eq!(summary(&plan), ["node rr1 10.0.0.1:179 as 64512", "node rr2 10.0.0.2:179 as 64512"]);
    assert!(plan.peers.iter().all(|p| !p.reflector_client && !p.passive));

    let plan = reflected("rr1").plan();
    let clients: Vec<(&str, bool)> =
        plan.peers.iter().map(|p| (p.name.as_str(), p.reflector_client)).collect();
    assert_eq!(clients, [("rr2", false), ("n3", true), ("n4", true)]);
    assert_eq!(plan.problems, []);

    let manual = reflected("rr1").peer(
        "reflectors",
        json!({"nodeSelector": "all()", "peerSelector": "route-reflector == 'true'", "reversePeering": "Manual"}),
    );
    assert_eq!(summary(&manual.plan()), ["node rr2 10.0.0.2:179 as 64512"]);
}

#[test]
fn reflector_clients_have_our_as_and_not_our_cluster() {
    for (asn, cluster, expected) in [
        (64512, None, true),
        (64512, Some("244.0.0.2"), true),
        (64512, Some("244.0.0.1"), false),
        (65000, None, false),
    ] {
        let mut bgp = json!({"asNumber": asn});
        if let Some(c) = cluster {
            bgp["routeReflectorClusterID"] = json!(c);
        }
        let plan = Cluster::seen_from("rr")
            .labelled("rr", "10.0.0.1", json!({}), json!({"routeReflectorClusterID": "244.0.0.1"}))
            .labelled("n", "10.0.0.2", json!({}), bgp)
            .peer("p", json!({"peerIP": "10.0.0.2", "asNumber": asn}))
            .plan();
        assert_eq!(find(&plan, "10.0.0.2").reflector_client, expected, "as {asn} cluster {cluster:?}");
    }
}

#[test]
fn a_peer_ip_that_is_a_node_gets_the_session_back_only_if_as_and_port_agree() {
    for (spec, back) in [
        (json!({"node": "b", "peerIP": "10.0.0.9", "asNumber": 64512}), true),
        (json!({"node": "b", "peerIP": "10.0.0.9:179", "asNumber": 64512}), true),
        (json!({"node": "b", "peerIP": "10.0.0.9:180", "asNumber": 64512}), false),
        (json!({"node": "b", "peerIP": "10.0.0.9", "asNumber": 65000}), false),
        (json!({"node": "b", "peerIP": "10.0.0.9", "asNumber": 64512, "reversePeering": "Manual"}), false),
    ] {
        let plan = three().defaults(json!({"nodeToNodeMeshEnabled": false})).peer("p", spec.clone()).plan();
        assert_eq!(plan.peers.len(), usize::from(back), "{spec}");
        if back {
            assert_eq!(summary(&plan), ["node b 10.0.0.10:179 as 64512"]);
        }
    }
}

#[test]
fn global_beats_node_beats_mesh_and_contradictions_name_both_resources() {
    let plan = three()
        .peer("a-node", json!({"node": "a", "peerIP": "10.0.0.10", "asNumber": 64512, "ttlSecurity": 1}))
        .peer("z-global", json!({"peerIP": "10.0.0.10", "asNumber": 64512}))
        .plan();
    let p = find(&plan, "10.0.0.10");
    assert_eq!((p.kind.as_str(), p.ttl), ("global", None));
    assert!(
        problems(&plan).contains("BGPPeer(a-node): peer 10.0.0.10: BGPPeer(z-global) already asks"),
        "{}",
        problems(&plan)
    );
    assert_eq!(plan.peers.len(), 2, "the mesh session with b gave way");
}

#[test]
fn next_hop_modes_translate_and_keep_original_is_for_ebgp_only() {
    for (spec, asn, expected) in [
        (json!({}), 65000, NextHopPolicy::Auto),
        (json!({"nextHopMode": "Self"}), 64512, NextHopPolicy::SelfAddress),
        (json!({"nextHopMode": "Keep"}), 64512, NextHopPolicy::Keep),
        (json!({"keepOriginalNextHop": true}), 65000, NextHopPolicy::Keep),
        (json!({"keepOriginalNextHop": true}), 64512, NextHopPolicy::Auto),
    ] {
        let mut spec = spec;
        spec["peerIP"] = json!("192.0.2.1");
        spec["asNumber"] = json!(asn);
        let plan = three().peer("p", spec.clone()).plan();
        assert_eq!(find(&plan, "192.0.2.1").next_hop, expected, "{spec}");
    }
}

#[test]
fn settings_of_a_peer_are_carried_over() {
    let plan = three()
        .peer(
            "p",
            json!({"peerIP": "192.0.2.1", "asNumber": 65000, "localASNumber": 65001, "ttlSecurity": 2,
                   "sourceAddress": "None", "maxRestartTime": "1m30s", "keepaliveTime": "20s",
                   "numAllowedLocalASNumbers": 2}),
        )
        .plan();
    let p = find(&plan, "192.0.2.1");
    assert_eq!((p.local_asn, p.ttl, p.local_address, p.restart_time), (Some(65001), Some(2), None, 90));
    assert_eq!((p.keepalive, p.allow_own_as), (Some(20), 2));
    let plan = three().defaults(json!({"nodeMeshMaxRestartTime": "10s"})).plan();
    assert!(plan.peers.iter().all(|p| p.restart_time == 10));
}

#[test]
fn passwords_come_from_secrets_and_a_missing_one_leaves_the_session_out() {
    let secret = json!({"secretKeyRef": {"name": "bgp", "key": "tor"}});
    let mut c = three().peer("p", json!({"peerIP": "192.0.2.1", "asNumber": 65000, "password": secret}));
    let plan = c.plan();
    assert_eq!(plan.peers.len(), 2);
    assert!(
        problems(&plan).contains("BGPPeer(p): spec.password: secret \"bgp\" key \"tor\" is not available")
    );
    c.0.set_secret("bgp", "tor", "s3cret");
    assert_eq!(find(&c.plan(), "192.0.2.1").password.as_deref(), Some("s3cret"));
}

#[test]
fn what_cannot_be_honoured_is_a_problem_that_names_resource_and_field() {
    for (extra, peered, text) in [
        (json!({"filters": ["f"]}), false, "spec.filters: BGPFilter f does not exist"),
        (json!({"localWorkloadSelector": "all()"}), false, "spec.localWorkloadSelector"),
        (json!({"node": "a", "nodeSelector": "all()"}), false, "spec.node and spec.nodeSelector exclude"),
        (json!({"peerSelector": "all()"}), false, "spec.peerIP and spec.peerSelector exclude"),
        (json!({"asNumber": 0}), false, "AS number 0 is reserved"),
        (json!({"asNumber": null}), false, "spec.asNumber is required"),
        (json!({"peerIP": ""}), false, "needs spec.peerIP, spec.peerSelector or spec.localWorkloadSelector"),
        (json!({"peerIP": "fd00::1"}), false, "has no IPv6 address"),
        (json!({"nodeSelector": "rack ="}), false, "spec.nodeSelector: "),
        (json!({"keepaliveTime": "10"}), true, "spec.keepaliveTime: expected a duration"),
        (json!({"reachableBy": "fd00::1"}), true, "spec.reachableBy is of another address family"),
        (json!({"numAllowedLocalASNumbers": 256}), true, "spec.numAllowedLocalASNumbers: expected 0..255"),
        (json!({"maxRestartTime": "2h"}), true, "spec.maxRestartTime: 7200 s is more than"),
        (json!({"maxRestartTime": "soon"}), true, "spec.maxRestartTime: expected a duration"),
        (json!({"sourceAddress": "eth0"}), true, "spec.sourceAddress: expected UseNodeIP or None"),
    ] {
        let mut spec = json!({"peerIP": "192.0.2.1", "asNumber": 65000});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let plan = three().defaults(json!({"nodeToNodeMeshEnabled": false})).peer("p", spec).plan();
        assert_eq!(plan.peers.len(), usize::from(peered), "{extra}");
        let text_found = plan.problems.iter().any(|p| p.about.name == "p" && p.what.contains(text));
        assert!(text_found, "{extra}: {}", problems(&plan));
    }
}

#[test]
fn an_entry_that_does_not_decode_keeps_its_last_good_value() {
    let mut c = three();
    c.put(Kind::Node, "b", json!({}), json!({"bgp": {"ipv4Address": "nonsense"}}));
    let plan = c.plan();
    assert_eq!(plan.peers.len(), 2, "b is still a peer");
    assert!(problems(&plan).contains("Node(b): spec.bgp.ipv4Address"), "{}", problems(&plan));
    assert!(c.put(Kind::Node, "b", json!({}), json!({"bgp": {"ipv4Address": "10.0.0.10/24"}})));
    assert_eq!(c.plan().problems, []);
}

#[test]
fn a_configuration_that_was_never_read_makes_no_peers() {
    let wrong = json!({"asNumber": "many"});
    let config = |name: &str| Key::new(Kind::BgpConfiguration, None, name);
    for name in ["default", "node.a"] {
        let mut c = three().with(Kind::BgpConfiguration, name, wrong.clone());
        for _ in 0..2 {
            let plan = c.plan();
            assert_eq!((plan.speaker, plan.peers, plan.mesh), (None, vec![], false), "{name}");
            let said = plan.problems.iter().map(|p| format!("{p}\n")).collect::<String>();
            assert!(said.contains(&format!("{}: spec.asNumber: ", config(name))), "{said}");
            assert!(said.contains("no peers until it is corrected"), "{said}");
            assert!(!said.contains("last valid version"), "{said}");
            c.0.apply(&SyncEvent::InSync);
        }
        let mut gone = Cluster(c.0.clone());
        assert!(gone.0.apply(&SyncEvent::Delete(config(name))));
        assert_eq!(gone.plan().peers.len(), 2, "{name}: deleted, so the defaults hold");
        assert!(c.put(Kind::BgpConfiguration, name, json!({}), json!({"listenPort": 1179})));
        let plan = c.plan();
        assert_eq!((plan.peers.len(), plan.problems.len()), (2, 0), "{name}: corrected");
        c.put(Kind::BgpConfiguration, name, json!({}), wrong.clone());
        assert_eq!(c.plan().peers, plan.peers, "{name}: the last valid version is used");
        assert!(problems(&c.plan()).contains("the last valid version is used"));
    }
    let of_another = three().with(Kind::BgpConfiguration, "node.b", wrong.clone()).plan();
    assert_eq!(of_another.peers.len(), 2);
    // What comes while sessions run without it does not end them.
    let mut c = three();
    c.0.apply(&SyncEvent::InSync);
    c.put(Kind::BgpConfiguration, "default", json!({}), wrong);
    assert_eq!(c.plan().peers.len(), 2);
    assert!(problems(&c.plan()).contains("it is left out, correct it"), "{}", problems(&c.plan()));
}

#[test]
fn prefixes_may_be_addresses() {
    let config = json!({"prefixAdvertisements": [{"cidr": "192.168.7.7", "communities": ["65000:1"]}]});
    let filter = json!({"exportV4": [{"cidr": "10.0.0.1", "matchOperator": "Equal", "action": "Reject"}]});
    let plan = three().defaults(config).with(Kind::BgpFilter, "f", filter).plan();
    assert_eq!((plan.problems, plan.peers.len()), (vec![], 2));
}

fn with_blocks() -> Cluster {
    let claim = |cidr: &str, node: &str, state: &str| json!({"cidr": cidr, "node": node, "state": state});
    let block = |cidr: &str, owner: Value| json!({"cidr": cidr, "affinity": owner, "allocations": [], "unallocated": [], "attributes": []});
    Cluster::seen_from("a")
        .node("a", "10.0.0.1")
        .with(Kind::IpPool, "p", json!({"cidr": "192.168.0.0/16"}))
        .with(Kind::IpPool, "hidden", json!({"cidr": "172.16.0.0/16", "disableBGPExport": true}))
        .with(Kind::BlockAffinity, "own", claim("192.168.1.0/26", "a", "confirmed"))
        .with(Kind::BlockAffinity, "old", claim("192.168.2.0/26", "a", ""))
        .with(Kind::BlockAffinity, "new", claim("192.168.3.0/26", "a", "pending"))
        .with(Kind::BlockAffinity, "going", claim("192.168.4.0/26", "a", "pendingDeletion"))
        .with(Kind::BlockAffinity, "theirs", claim("192.168.5.0/26", "b", "confirmed"))
        .with(Kind::BlockAffinity, "quiet", claim("172.16.0.0/26", "a", "confirmed"))
        .with(Kind::BlockAffinity, "one", claim("192.168.6.7/32", "a", "confirmed"))
        .with(Kind::IpamBlock, "own", block("192.168.1.0/26", json!("host:a")))
}

fn pod(cluster: Cluster, name: &str, node: &str, address: &str) -> Cluster {
    cluster.with(Kind::WorkloadEndpoint, name, json!({"node": node, "ipNetworks": [address]}))
}

#[test]
fn confirmed_own_blocks_are_announced_exactly() {
    assert_eq!(prefixes(&with_blocks().plan()), ["192.168.1.0/26", "192.168.2.0/26"]);
}

#[test]
fn single_addresses_are_announced_only_where_no_own_block_covers_them() {
    for (address, announced) in [
        ("192.168.1.5/32", false),
        ("192.168.5.5/32", true),
        ("192.168.3.5/32", true),
        ("192.168.4.5/32", true),
        ("192.168.6.7/32", true),
        ("172.16.9.9/32", false),
        ("10.9.9.9/32", false),
    ] {
        let plan = pod(with_blocks(), "w", "a", address).plan();
        let is = plan.routes.iter().any(|r| r.prefix == address.parse::<IpNet>().unwrap());
        assert_eq!(is, announced, "{address}");
        assert_eq!(problems(&plan).contains("in no IPPool"), address.starts_with("10."), "{address}");
        let elsewhere = pod(with_blocks(), "w", "b", address).plan();
        assert_eq!(elsewhere.routes.len(), 2, "{address} on another node is not ours to announce");
    }
}

#[test]
fn floating_addresses_are_announced_where_they_are_enabled_and_in_a_pool() {
    let said =
        |env: Option<bool>, configurations: &[(&str, &str)], node: &str, internal: &str, external: &str| {
            let nat = json!([{"internalIP": internal, "externalIP": external}]);
            let endpoint = json!({"node": node, "ipNetworks": ["192.168.1.5/32"], "ipNATs": nat});
            let mut cluster = with_blocks().with(Kind::WorkloadEndpoint, "w", endpoint);
            for (name, text) in configurations {
                cluster = cluster.with(Kind::FelixConfiguration, name, json!({"floatingIPs": text}));
            }
            let plan = translate(&cluster.0.with_floating(env));
            let is = plan.routes.iter().any(|r| r.prefix.addr().to_string() == external);
            (is, problems(&plan).contains("in no IPPool"))
        };
    let with = |configurations: &[(&str, &str)], node: &str, internal: &str, external: &str| {
        said(None, configurations, node, internal, external)
    };
    let (on, off) = (("default", "Enabled"), ("default", "Disabled"));
    let (own, floating) = ("192.168.1.5", "192.168.9.9");
    assert_eq!(with(&[on], "a", own, floating), (true, false));
    assert_eq!(with(&[on], "a", own, "10.9.9.9"), (false, true));
    assert_eq!(with(&[on], "a", own, "192.168.1.9"), (false, false), "its block covers it");
    assert_eq!(with(&[on], "a", "192.168.1.6", floating), (false, false), "leads to no address of the pod");
    assert_eq!(with(&[on], "b", own, floating), (false, false), "not ours to announce");
    assert_eq!(with(&[], "a", own, floating), (false, false));
    assert_eq!(with(&[off], "a", own, floating), (false, false));
    assert_eq!(with(&[on, ("node.a", "Disabled")], "a", own, floating), (false, false));
    assert_eq!(with(&[off, ("node.a", "Enabled")], "a", own, floating), (true, false));
    assert_eq!(with(&[on, ("node.b", "Disabled")], "a", own, floating), (true, false));
    // The agent's environment stands above both.
    assert_eq!(said(Some(true), &[off], "a", own, floating), (true, false));
    assert_eq!(said(Some(false), &[on, ("node.a", "Enabled")], "a", own, floating), (false, false));
}

#[test]
fn the_tunnel_address_counts_as_local_and_pools_without_export_are_denied() {
    let plan = with_blocks()
        .labelled("a", "10.0.0.1", json!({}), json!({"ipv4IPIPTunnelAddr": "192.168.5.9"}))
        .node("b", "10.0.0.2")
        .plan();
    assert!(prefixes(&plan).contains(&"192.168.5.9/32".into()));
    let export = &find(&plan, "10.0.0.2").export;
    assert!(!export.permits(&"172.16.0.0/26".parse().unwrap(), true));
    assert!(export.permits(&"192.168.9.0/26".parse().unwrap(), false));
    assert!(!export.permits(&"0.0.0.0/0".parse().unwrap(), false), "only pools are re-advertised");
}

#[test]
fn a_block_that_belongs_to_somebody_else_is_not_announced() {
    let plan = with_blocks()
        .with(
            Kind::IpamBlock,
            "old",
            json!({"cidr": "192.168.2.0/26", "affinity": "host:b", "allocations": [], "unallocated": [], "attributes": []}),
        )
        .plan();
    assert_eq!(prefixes(&plan), ["192.168.1.0/26"]);
    assert!(problems(&plan).contains(
        "BlockAffinity(old): claims 192.168.2.0/26 for this node, but the block belongs to host:b"
    ));
}

#[test]
fn routes_carry_the_priority_as_local_pref_and_what_goes_out_the_communities_of_its_prefix() {
    let config = json!({
        "communities": [{"name": "blue", "value": "65000:7"}],
        "prefixAdvertisements": [
            {"cidr": "192.168.1.0/24", "communities": ["blue", "65000:1", "1:2:3", "blue"]},
            {"cidr": "192.168.0.0/16", "communities": ["red"]},
        ],
    });
    let plan = with_blocks().node("b", "10.0.0.2").defaults(config).plan();
    let a = &plan.routes[0].attributes;
    assert_eq!((a.local_pref, plan.speaker.as_ref().unwrap().local_pref), (None, 2_147_482_623));
    assert!(a.communities.is_empty(), "they are the export's matter, of whatever route");
    assert!(!plan.peers.is_empty());
    for peer in &plan.peers {
        let tags: Vec<PrefixTags> = peer.export.tags.clone().into();
        let [tag, red] = &tags[..] else { panic!("{tags:?}") };
        assert_eq!(tag.prefix, "192.168.1.0/24".parse().unwrap());
        assert_eq!(tag.communities, [65000 << 16 | 1, 65000 << 16 | 7]);
        assert_eq!(tag.large_communities, [(1, 2, 3)]);
        assert!(red.communities.is_empty() && red.large_communities.is_empty());
    }
    assert!(problems(&plan).contains("\"red\" is neither a named community"));
}

#[test]
fn only_changes_that_matter_ask_for_a_new_plan() {
    let mut c = with_blocks();
    let block = |n: u32| {
        json!({"cidr": "192.168.1.0/26", "affinity": "host:a", "allocations": [null, 0], "unallocated": [n],
               "attributes": [{"handle_id": "x"}]})
    };
    assert!(!c.put(Kind::IpamBlock, "own", json!({}), block(3)), "an allocation is no BGP matter");
    assert!(!c.put(
        Kind::WorkloadEndpoint,
        "w",
        json!({}),
        json!({"node": "b", "ipNetworks": ["192.168.5.5/32"]})
    ));
    assert!(c.put(
        Kind::WorkloadEndpoint,
        "w",
        json!({}),
        json!({"node": "a", "ipNetworks": ["192.168.5.5/32"]})
    ));
    let key = Key::new(Kind::WorkloadEndpoint, Some("default"), "w");
    assert!(c.0.apply(&SyncEvent::Delete(key.clone())));
    assert!(!c.0.apply(&SyncEvent::Delete(key)));
}
