//! Golden lists of violations, and what must pass.

use serde_json::{Value, json};

use super::*;
use crate::{Kind, node::NodeSpec, pool::IpPoolSpec};

fn any(kind: Kind, name: &str, spec: Value) -> AnyResource {
    let value = json!({"apiVersion": "projectcalico.org/v3", "kind": kind.as_str(),
        "metadata": {"name": name}, "spec": spec});
    AnyResource::from_value(kind, &value).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn errors(kind: Kind, name: &str, spec: Value) -> String {
    match resource(&any(kind, name, spec)) {
        Ok(()) => format!("{kind} {name}: ok\n"),
        Err(e) => format!("{kind} {name}: {e}\n"),
    }
}

#[track_caller]
fn accepted(kind: Kind, name: &str, spec: Value) {
    if let Err(e) = resource(&any(kind, name, spec)) {
        panic!("{kind} {name}: {e}");
    }
}

#[test]
fn a_dot_in_a_name_stands_between_tier_and_policy() {
    let said = |kind: Kind, name: &str| {
        let read = any(kind, name, json!({}));
        assert_eq!(resource(&read), Ok(()), "agents take what is there");
        written(&read).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let long = "t".repeat(64);
    for name in ["a.b", long.as_str()] {
        assert!(said(Kind::Tier, name).contains("the name of a tier has no dots"), "{name}");
    }
    assert_eq!(said(Kind::Tier, &long[..63]), "");
    for kind in crate::policy_names::KINDS {
        assert_eq!(said(kind, "tier.name"), "");
        let two = said(kind, "tier.name.more");
        assert!(two.contains("metadata.name = 'tier.name.more'") && two.contains("at most one dot"), "{two}");
    }
    assert_eq!(said(Kind::GlobalNetworkSet, "a.b.c"), "");
}

#[test]
fn pools_that_calico_refuses_are_refused() {
    let mut shown = String::new();
    for (name, spec) in [
        ("unmasked", json!({"cidr": "10.0.0.1/16"})),
        ("link-local", json!({"cidr": "169.254.0.0/24"})),
        ("covers-link-local", json!({"cidr": "160.0.0.0/4"})),
        ("link-local-6", json!({"cidr": "fe80::/64"})),
        ("both", json!({"cidr": "10.0.0.0/16", "ipipMode": "Always", "vxlanMode": "CrossSubnet"})),
        ("ipip6", json!({"cidr": "fd00::/112", "ipipMode": "Always"})),
        ("huge-blocks", json!({"cidr": "10.0.0.0/8", "blockSize": 19})),
        ("tiny-blocks", json!({"cidr": "fd00::/64", "blockSize": 64})),
        ("small", json!({"cidr": "10.0.0.0/28"})),
        (
            "selector",
            json!({"cidr": "10.0.0.0/16", "nodeSelector": "rack = 'a'", "namespaceSelector": "global()"}),
        ),
        (
            "mixed",
            json!({"cidr": "10.0.0.0/16", "allowedUses": ["LoadBalancer", "Workload"], "ipipMode": "Always",
            "nodeSelector": "has(x)", "disableBGPExport": true}),
        ),
    ] {
        shown.push_str(&errors(Kind::IpPool, name, spec));
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn pools_of_addresses_no_pod_can_have_are_refused() {
    for (cidr, what) in [
        ("127.0.0.0/8", "loopback range 127.0.0.0/8"),
        ("127.1.0.0/16", "loopback range 127.0.0.0/8"),
        ("::1/128", "loopback range ::1/128"),
        ("224.0.0.0/4", "multicast range 224.0.0.0/4"),
        ("239.1.0.0/16", "multicast range 224.0.0.0/4"),
        ("ff00::/8", "multicast range ff00::/8"),
        ("169.254.0.0/16", "link-local range 169.254.0.0/16"),
        ("fe80::/10", "link-local range fe80::/10"),
    ] {
        let said = errors(Kind::IpPool, "unfit", json!({"cidr": cidr}));
        assert!(said.contains(&format!("overlaps the {what}")), "{said}");
    }
}

#[test]
fn pools_that_calico_accepts_are_accepted() {
    accepted(
        Kind::IpPool,
        "default-ipv4-ippool",
        json!({"cidr": "10.244.0.0/16", "ipipMode": "CrossSubnet",
        "natOutgoing": true, "blockSize": 26, "nodeSelector": "all()"}),
    );
    accepted(Kind::IpPool, "six", json!({"cidr": "fd00::/48", "vxlanMode": "Always"}));
    accepted(Kind::IpPool, "one", json!({"cidr": "10.0.0.1/32", "blockSize": 32}));
    for (cidr, default) in [("10.244.0.0/16", 26), ("fd00::/48", 122)] {
        let zero = json!({"cidr": cidr, "blockSize": 0});
        accepted(Kind::IpPool, "zero", zero.clone());
        let AnyResource::IpPool(pool) = any(Kind::IpPool, "zero", zero) else { panic!("it is a pool") };
        assert_eq!(pool.spec.block_size(), default, "what Go leaves where nobody wrote a number");
    }
    accepted(Kind::IpPool, "retired", json!({"cidr": "10.0.0.0/28", "disabled": true}));
    accepted(Kind::IpPool, "lb", json!({"cidr": "10.0.0.0/24", "allowedUses": ["LoadBalancer"]}));
}

#[test]
fn a_pool_is_compared_with_its_neighbours_and_its_past() {
    let spec = |cidr: &str, size: Option<u8>| IpPoolSpec {
        block_size_raw: size,
        ..IpPoolSpec::new(cidr.parse().expect(cidr))
    };
    let (new, other, far) =
        (spec("10.0.0.0/16", None), spec("10.0.128.0/20", None), spec("10.1.0.0/16", None));
    let block = "10.0.3.0/27".parse().expect("a prefix");
    let e = pool::against("new", &new, [("new", &new), ("other", &other), ("far", &far)], [&block])
        .expect_err("two");
    insta::assert_snapshot!(e);
    assert_eq!(pool::against("new", &new, [("far", &far)], []), Ok(()));
    assert_eq!(
        pool::update(&new, &spec("10.0.0.0/16", Some(26))),
        Ok(()),
        "the default spelt out is no change"
    );
    insta::assert_snapshot!(pool::update(&new, &spec("10.0.0.0/17", Some(27))).expect_err("immutable"));
}

#[test]
fn bgp_configurations_are_checked() {
    let mut shown = String::new();
    let password = json!({"secretKeyRef": {"name": "s", "key": "k"}});
    for (name, spec) in [
        ("other", json!({})),
        ("node.", json!({})),
        ("node.one", json!({"nodeToNodeMeshEnabled": false, "asNumber": 64512})),
        (
            "default",
            json!({"logSeverityScreen": "Informational", "serviceLoadBalancerAggregation": "On",
            "listenPort": 0, "bindMode": "nodeIP", "programClusterRoutes": "Yes", "ipv4NormalRoutePriority": 0,
            "ignoredInterfaces": ["*", "", "a-name-that-is-too-long", "eth*"]}),
        ),
        (
            "default",
            json!({"nodeToNodeMeshEnabled": false, "nodeMeshPassword": password,
            "nodeMeshMaxRestartTime": "2 minutes"}),
        ),
        ("default", json!({"communities": [{"name": "a", "value": "1:2"}]})),
        (
            "default",
            json!({"communities": [{"name": "a", "value": "1"}, {"name": "a", "value": "1:2:3"},
            {"name": "65000:1", "value": "1:1"}],
            "prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["a", "aa", "nowhere", "1:1"]}]}),
        ),
    ] {
        shown.push_str(&errors(Kind::BgpConfiguration, name, spec));
    }
    insta::assert_snapshot!(shown);
    accepted(
        Kind::BgpConfiguration,
        "default",
        json!({"logSeverityScreen": "info", "nodeToNodeMeshEnabled": true,
        "asNumber": 63400, "nodeMeshMaxRestartTime": "2m", "bindMode": "NodeIP",
        "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}],
        "communities": [{"name": "edge", "value": "65000:200"}],
        "prefixAdvertisements": [{"cidr": "172.16.0.0/26", "communities": ["edge", "63400:1:1"]}]}),
    );
    accepted(Kind::BgpConfiguration, "node.one", json!({"listenPort": 1790, "logSeverityScreen": "Debug"}));
}

#[test]
fn bgp_peers_are_checked() {
    let mut shown = String::new();
    for (name, spec) in [
        ("nobody", json!({"asNumber": 1})),
        (
            "exclusive",
            json!({"node": "a", "nodeSelector": "all()", "peerIP": "192.0.2.1", "peerSelector": "has(rr)",
            "asNumber": 64512, "keepOriginalNextHop": true, "nextHopMode": "Self"}),
        ),
        ("workloads", json!({"localWorkloadSelector": "app == 'bird'", "peerIP": "192.0.2.1"})),
        (
            "texts",
            json!({"peerIP": "tor.example.org", "reachableBy": "gateway", "sourceAddress": "UseNodeip",
            "reversePeering": "Never", "maxRestartTime": "10", "keepaliveTime": "-1s",
            "numAllowedLocalASNumbers": -1, "filters": ["Bad Name"]}),
        ),
        ("families", json!({"peerIP": "192.0.2.1", "reachableBy": "2001:db8::1"})),
        ("gateway-only", json!({"peerSelector": "has(rr)", "reachableBy": "192.0.2.1"})),
    ] {
        shown.push_str(&errors(Kind::BgpPeer, name, spec));
    }
    insta::assert_snapshot!(shown);
    accepted(
        Kind::BgpPeer,
        "tor",
        json!({"peerIP": "192.0.2.1:1790", "asNumber": "65000.1", "nodeSelector":
        "rack == 'a'", "filters": ["only-pods"], "ttlSecurity": 1, "reachableBy": "192.0.2.254", "maxRestartTime": "4m"}),
    );
    accepted(
        Kind::BgpPeer,
        "rr",
        json!({"nodeSelector": "all()", "peerSelector": "route-reflector == 'true'"}),
    );
    accepted(Kind::BgpPeer, "pods", json!({"localWorkloadSelector": "app == 'bird'", "asNumber": 65000}));
}

#[test]
fn bgp_filters_are_checked() {
    let shown = errors(
        Kind::BgpFilter,
        "many",
        json!({
            "exportV4": [
                {"action": "Accept", "cidr": "10.0.0.0/8"},
                {"action": "Accept", "matchOperator": "In"},
                {"action": "Accept", "cidr": "fd00::/8", "matchOperator": "In"},
                {"action": "Accept", "prefixLength": {"min": 8}},
                {"action": "Accept", "cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"min": 30, "max": 20}},
                {"action": "Accept", "cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"max": 33}},
            ],
            "importV6": [
                {"action": "Reject", "source": "Peers", "peerType": "ebgp", "interface": "a/b",
                 "communities": {"values": ["1:2", "x"]}, "priority": 2147483647u32,
                 "operations": [{"addCommunity": {"value": "1:2"}}]},
                {"action": "Accept", "operations": [{}, {"addCommunity": {"value": "x"}}, {"prependASPath": {"prefix": []}},
                 {"setPriority": {"value": 0}}, {"other": 1}, {"prependASPath": {"prefix": ["65000.1", 70000]}}]},
            ],
        }),
    );
    insta::assert_snapshot!(shown);
    accepted(
        Kind::BgpFilter,
        "good",
        json!({
            "exportV4": [{"action": "Accept", "cidr": "77.0.0.0/16", "matchOperator": "Equal", "source": "RemotePeers",
                "prefixLength": {"min": 16, "max": 32}, "interface": "*.calico", "operations": [{"setPriority": {"value": 5}}]},
                {"action": "Reject"}],
            "importV6": [{"action": "Reject", "cidr": "7000::/64", "matchOperator": "NotIn", "peerType": "iBGP",
                "communities": {"values": ["65000:1:1"]}, "asPathPrefix": [65000, 65001]}],
        }),
    );
}

#[test]
fn ipam_records_are_checked() {
    let mut shown = String::new();
    let block = |extra: Value| {
        let mut spec = json!({"cidr": "10.0.0.0/30", "affinity": "host:a", "allocations": [0, null, null, null],
            "unallocated": [1, 2, 3], "attributes": [{"handle_id": "h"}]});
        for (k, v) in extra.as_object().expect("an object") {
            spec[k] = v.clone();
        }
        spec
    };
    for (kind, name, spec) in [
        (
            Kind::IpamConfiguration,
            "default",
            json!({"maxBlocksPerHost": 4, "autoAllocateBlocks": false,
            "ipCooldownSeconds": 1201}),
        ),
        (Kind::IpamConfiguration, "other", json!({})),
        (Kind::IpReservation, "r", json!({"reservedCIDRs": ["10.0.0.0/24", "10.0.0.1/24", "10.0.0.7"]})),
        (Kind::IpamBlock, "10-0-0-0-30", block(json!({}))),
        (
            Kind::IpamBlock,
            "wrong",
            block(json!({"affinity": "a", "allocations": [0, 1, null],
            "unallocated": [0, 2, 2, 9]})),
        ),
        (Kind::IpamHandle, "Handle.A", json!({"handleID": "Handle.A"})),
        (Kind::IpamHandle, "h", json!({"handleID": ""})),
        (Kind::BlockAffinity, "a-10-0-0-0-30", json!({"node": "a", "cidr": "10.0.0.0/30", "state": ""})),
        (Kind::BlockAffinity, "x", json!({"node": "a", "cidr": "10.0.0.0/30", "type": "guest"})),
        (Kind::BlockAffinity, "y", json!({"node": "", "cidr": "10.0.0.0/30"})),
        (
            Kind::FelixConfiguration,
            "mine",
            json!({"interfacePrefix": "cali,", "ipipMTU": 20,
            "routeRefreshInterval": "1.5", "externalNodesList": ["10.0.0.0/8", "10.0.0.1", "host"]}),
        ),
        (Kind::FelixConfiguration, "node.a", json!({"ipipMTU": 0, "routeRefreshInterval": "90s"})),
        (Kind::FelixConfiguration, "some", json!({"nodeSelector": "all()"})),
        (Kind::ClusterInformation, "default", json!({"clusterGUID": "x"})),
        (Kind::CalicoNodeStatus, "s", json!({"node": "a", "classes": ["BGP"], "updatePeriodSeconds": 0})),
        (Kind::CalicoNodeStatus, "t", json!({"classes": ["bgp", "Routes"], "updatePeriodSeconds": 86401})),
        (
            Kind::KubeControllersConfiguration,
            "default",
            json!({"controllers": {"node": {"leakGracePeriod": "0", "hostEndpoint": {"autoCreate": "Enabled"}}}}),
        ),
        (
            Kind::KubeControllersConfiguration,
            "other",
            json!({"logSeverityScreen": "Warn", "healthChecks": "on", "prometheusMetricsPort": 70000,
            "etcdV3CompactionPeriod": "10", "controllers": {
                "node": {"reconcilerPeriod": "5", "leakGracePeriod": "-1s", "syncLabels": "No",
                    "hostEndpoint": {"autoCreate": "enabled", "createDefaultHostEndpoint": "x", "templates": [
                        {"generateName": "a", "interfaceCIDRs": ["10.0.0.0/33"], "nodeSelector": "a ="},
                        {"generateName": "a", "labels": {"a b": "c d"}, "annotations": {"e f": ""}},
                        {"generateName": "A", "interfacePattern": "eth.*"}]}},
                "policy": {"reconcilerPeriod": "soon"}, "loadBalancer": {"assignIPs": "All"},
                "migration": {"policyNameMigrator": "On"}}}),
        ),
        (
            Kind::WorkloadEndpoint,
            "w",
            json!({"orchestrator": "", "node": "", "endpoint": "", "interfaceName": "",
            "ipNetworks": ["10.0.0.1/24"], "mac": "ee:ee"}),
        ),
    ] {
        shown.push_str(&errors(kind, name, spec));
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn services_are_checked() {
    accepted(Kind::Service, "headless", json!({"clusterIP": "None", "clusterIPs": ["None"]}));
    accepted(Kind::Service, "name", json!({"type": "ExternalName", "externalName": "example.org"}));
    insta::assert_snapshot!(errors(
        Kind::Service,
        "web",
        json!({"type": "Loadbalancer", "clusterIP": "10.96.0", "clusterIPs": ["None", "x"], "externalIPs": ["None"],
        "loadBalancerIP": "198.51.100.0/24", "externalTrafficPolicy": "local", "internalTrafficPolicy": "Local"})
    ));
}

#[test]
fn nodes_need_addresses_of_their_own() {
    let node = |v4: &str| -> NodeSpec {
        serde_json::from_value(json!({"bgp": {"ipv4Address": v4, "ipv6Address": "2001:db8::7/64"}}))
            .expect("a node")
    };
    let (a, b) = (node("192.0.2.1/24"), node("192.0.2.1/32"));
    insta::assert_snapshot!(node::conflicts([("a", &a), ("b", &b)], "b", &b).expect_err("two"));
    assert_eq!(node::conflicts([("b", &b)], "b", &b), Ok(()), "a node does not conflict with itself");
    insta::assert_snapshot!(errors(
        Kind::Node,
        "a",
        json!({"bgp": {"ipv4Address": "0.0.0.0",
        "ipv4IPIPTunnelAddr": "224.0.0.1"}})
    ));
}

#[test]
fn names_and_labels_follow_kubernetes() {
    for (name, ok) in [
        ("a", true),
        ("node-1.example.org", true),
        ("0", true),
        ("", false),
        ("A", false),
        ("a_b", false),
        ("-a", false),
        ("a-", false),
        ("a..b", false),
        ("a.-b", false),
    ] {
        assert_eq!(names::subdomain(name).is_ok(), ok, "{name}");
    }
    assert!(names::subdomain(&"a".repeat(253)).is_ok() && names::subdomain(&"a".repeat(254)).is_err());
    assert!(names::label("a.b").is_err() && names::label(&"a".repeat(64)).is_err());
    for (key, ok) in [
        ("a", true),
        ("example.org/A_b.c", true),
        ("/a", false),
        ("a/", false),
        ("a/b/c", false),
        ("", false),
    ] {
        assert_eq!(names::qualified(key).is_ok(), ok, "{key}");
    }
    assert!(names::label_value("").is_ok() && names::label_value("A.b_c-1").is_ok());
    assert!(names::label_value("-").is_err() && names::label_value("a b").is_err());

    let mut pool = any(Kind::IpPool, "Big Pool", json!({"cidr": "10.0.0.0/16"}));
    let meta = pool.metadata_mut();
    meta.namespace = Some("kube-system".into());
    meta.labels.insert("ok".into(), "not ok!".into());
    meta.labels.insert("not ok".into(), "ok".into());
    meta.annotations.insert("a b".into(), String::new());
    insta::assert_snapshot!(resource(&pool).expect_err("much is wrong"));
}
