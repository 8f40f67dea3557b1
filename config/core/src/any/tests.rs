//! Every kind: the whole of its typed fields against the schema's names, and nothing lost on the way through the types.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::fields::{self, Known};

/// A spec with every field that has a type here.
fn full_spec(kind: Kind) -> Value {
    let rule = |cidr: &str| {
        json!({"action": "Accept", "cidr": cidr, "matchOperator": "In", "prefixLength": {"min": 1, "max": 32},
            "source": "RemotePeers", "interface": "eth0", "peerType": "eBGP", "communities": {"values": ["1:2"]},
            "asPathPrefix": [65001, 65002], "priority": 7, "operations": [{"setPriority": {"value": 5}}]})
    };
    let password = json!({"secretKeyRef": {"name": "s", "key": "k"}});
    match kind {
        Kind::IpPool => json!({"cidr": "10.0.0.0/16", "ipipMode": "CrossSubnet", "vxlanMode": "Never",
            "natOutgoing": true, "disabled": true, "disableBGPExport": true, "blockSize": 27,
            "nodeSelector": "has(a)", "namespaceSelector": "has(b)", "allowedUses": ["Workload", "Tunnel"],
            "assignmentMode": "Manual"}),
        Kind::IpReservation => json!({"reservedCIDRs": ["10.0.0.0/30"]}),
        Kind::IpamConfiguration => {
            json!({"strictAffinity": true, "maxBlocksPerHost": 3, "autoAllocateBlocks": true,
            "ipCooldownSeconds": 9})
        }
        Kind::IpamBlock => json!({"cidr": "10.0.0.0/30", "affinity": "host:a", "affinityClaimTime": "t",
            "allocations": [0, null, null, null], "unallocated": [1, 2, 3], "attributes": [{"handle_id": "h",
            "secondary": {"node": "a"}, "alternateOwnerAttrs": {"x": "y"}, "releasedAt": "t"}], "sequenceNumber": 8,
            "sequenceNumberForAllocation": {"0": 7}, "deleted": false, "strictAffinity": false}),
        Kind::IpamHandle => json!({"handleID": "h", "block": {"10.0.0.0/30": 1}, "deleted": true}),
        Kind::BlockAffinity => json!({"state": "pending", "node": "a", "type": "host", "cidr": "10.0.0.0/30",
            "deleted": true}),
        Kind::Node => {
            json!({"bgp": {"asNumber": 64512, "ipv4Address": "192.0.2.1/24", "ipv6Address": "2001:db8::1/64",
            "ipv4IPIPTunnelAddr": "10.0.0.1", "routeReflectorClusterID": "244.0.0.1"},
            "addresses": [{"address": "192.0.2.1/24", "type": "CalicoNodeIP"}], "ipv4VXLANTunnelAddr": "10.0.0.2",
            "vxlanTunnelMACAddr": "66:00:00:00:00:01"})
        }
        Kind::BgpConfiguration => {
            json!({"logSeverityScreen": "Info", "nodeToNodeMeshEnabled": true, "asNumber": 64512,
            "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}], "serviceExternalIPs": [{"cidr": "10.97.0.0/24"}],
            "serviceLoadBalancerIPs": [{"cidr": "10.98.0.0/24"}], "serviceLoadBalancerAggregation": "Enabled",
            "communities": [{"name": "c", "value": "1:2"}],
            "prefixAdvertisements": [{"cidr": "10.0.0.0/16", "communities": ["c"]}], "listenPort": 1790,
            "nodeMeshPassword": password, "nodeMeshMaxRestartTime": "120s", "bindMode": "NodeIP",
            "ignoredInterfaces": ["eth*"], "programClusterRoutes": "Enabled", "ipv4NormalRoutePriority": 1024,
            "ipv6NormalRoutePriority": 1024})
        }
        Kind::BgpPeer => {
            json!({"node": "a", "nodeSelector": "all()", "peerIP": "192.0.2.1", "peerSelector": "has(a)",
            "asNumber": 64512, "localASNumber": 64513, "keepOriginalNextHop": true, "nextHopMode": "Self",
            "password": password, "sourceAddress": "None", "maxRestartTime": "1m", "keepaliveTime": "10s",
            "numAllowedLocalASNumbers": 2, "ttlSecurity": 1, "reachableBy": "192.0.2.2", "filters": ["f"],
            "localWorkloadSelector": "has(b)", "reversePeering": "Manual"})
        }
        Kind::BgpFilter => json!({"exportV4": [rule("10.0.0.0/8")], "importV4": [rule("10.0.0.0/8")],
            "exportV6": [rule("fd00::/8")], "importV6": [rule("fd00::/8")]}),
        Kind::FelixConfiguration => json!({"ipipEnabled": true, "ipipMTU": 1480, "interfacePrefix": "cali",
            "routeRefreshInterval": "90s", "deviceRouteProtocol": 3, "removeExternalRoutes": true,
            "ipv4NormalRoutePriority": 1024, "externalNodesList": ["10.0.0.0/8"], "mtuIfacePattern": "^eth"}),
        Kind::ClusterInformation => {
            json!({"clusterGUID": "g", "clusterType": "k8s,bgp", "calicoVersion": "v3.33.0",
            "datastoreReady": true})
        }
        Kind::KubeControllersConfiguration => {
            json!({"logSeverityScreen": "Info", "healthChecks": "Enabled", "prometheusMetricsPort": 9094,
            "controllers": {"node": {"reconcilerPeriod": "5m", "leakGracePeriod": "15m", "hostEndpoint": {
                "autoCreate": "Enabled", "createDefaultHostEndpoint": "Enabled", "templates": [{"generateName": "t",
                    "nodeSelector": "all()", "interfaceCIDRs": ["10.0.0.0/8"], "interfacePattern": "eth.*",
                    "labels": {"a": "b"}, "annotations": {"c": "d"}}]}},
                "loadBalancer": {"assignIPs": "AllServices"}, "migration": {"policyNameMigrator": "Disabled"}}})
        }
        Kind::CalicoNodeStatus => json!({"node": "a", "classes": ["Agent"], "updatePeriodSeconds": 10}),
        Kind::WorkloadEndpoint => {
            json!({"orchestrator": "k8s", "workload": "w", "node": "a", "containerID": "c",
            "pod": "p", "endpoint": "eth0", "serviceAccountName": "s", "ipNetworks": ["10.0.0.1/32"],
            "ipv4Gateway": "169.254.1.1", "ipv6Gateway": "fe80::1", "profiles": ["kns.default"],
            "interfaceName": "cali0123456789a", "mac": "ee:ee:ee:ee:ee:ee",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "hostPort": 8080}]})
        }
        Kind::Tier => json!({"order": 5, "defaultAction": "Pass"}),
        Kind::GlobalNetworkPolicy => full_policy(true, false),
        Kind::NetworkPolicy => full_policy(false, false),
        Kind::StagedGlobalNetworkPolicy => full_policy(true, true),
        Kind::StagedNetworkPolicy => full_policy(false, true),
        Kind::StagedKubernetesNetworkPolicy => {
            let mut spec = full_kubernetes_policy();
            spec["stagedAction"] = "Set".into();
            spec
        }
        Kind::KubernetesNetworkPolicy => full_kubernetes_policy(),
        Kind::NetworkSet | Kind::GlobalNetworkSet => json!({"nets": ["10.0.0.0/8"]}),
        Kind::HostEndpoint => json!({"node": "a", "interfaceName": "eth0", "expectedIPs": ["10.0.0.1"],
            "profiles": ["p"], "ports": [{"name": "http", "protocol": "TCP", "port": 80}]}),
        Kind::Profile => json!({"ingress": [full_rule("source")], "egress": [full_rule("destination")],
            "labelsToApply": {"l": "v"}}),
        Kind::ClusterNetworkPolicy => json!({"tier": "Admin", "priority": 5, "subject": {"namespaces": {}}}),
        Kind::AdminNetworkPolicy => json!({"priority": 5, "subject": {"namespaces": {}}}),
        Kind::BaselineAdminNetworkPolicy => json!({"subject": {"namespaces": {}}}),
        Kind::Namespace | Kind::ServiceAccount | Kind::EndpointSlice => json!({}),
        Kind::Lease => {
            json!({"holderIdentity": "a", "leaseDurationSeconds": 15, "acquireTime": "t", "renewTime": "t",
            "leaseTransitions": 1})
        }
        Kind::Service => {
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "externalIPs": ["192.0.2.1"], "loadBalancerIP": "198.51.100.1", "loadBalancerClass": "a/b",
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "selector": {"app": "web"}, "ports": [{"name": "http",
            "protocol": "TCP", "port": 80, "targetPort": "web", "nodePort": 30080}]})
        }
    }
}

fn full_rule(end: &str) -> Value {
    json!({"action": "Allow", "ipVersion": 4, "protocol": "TCP", "notProtocol": 17,
        "icmp": {"type": 8, "code": 0}, "notICMP": {"type": 8, "code": 0}, 
        end: {"nets": ["10.0.0.0/8"], "notNets": ["10.0.0.0/9"], "selector": "has(a)", "notSelector": "has(b)",
            "namespaceSelector": "has(c)", "ports": [80, "81:82", "http"], "notPorts": [81],
            "serviceAccounts": {"names": ["s"], "selector": "has(d)"},
            "services": {"name": "s", "namespace": "n"}}})
}

fn full_policy(global: bool, staged: bool) -> Value {
    let mut spec = json!({"tier": "t", "order": 5, "selector": "has(a)", "serviceAccountSelector": "has(c)",
        "types": ["Ingress", "Egress"], "ingress": [full_rule("source")], "egress": [full_rule("destination")]});
    if !staged {
        spec["performanceHints"] = json!(["AssumeNeededOnEveryNode"]);
    }
    if global {
        spec["namespaceSelector"] = "has(b)".into();
        for flag in ["doNotTrack", "preDNAT", "applyOnForward"] {
            spec[flag] = true.into();
        }
    }
    if staged {
        spec["stagedAction"] = "Set".into();
    }
    spec
}

fn full_kubernetes_policy() -> Value {
    let selector = json!({"matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]});
    let peers = json!([{"podSelector": selector, "namespaceSelector": selector},
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/9"]}}]);
    let ports = json!([{"protocol": "TCP", "port": 80, "endPort": 90}]);
    json!({"podSelector": selector, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": peers, "ports": ports}], "egress": [{"to": peers, "ports": ports}]})
}

fn full(kind: Kind) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": kind.as_str(), "metadata": {"name": "x", "namespace": "n",
        "labels": {"a": "b"}, "annotations": {"c": "d"}, "resourceVersion": "7", "uid": "u",
        "creationTimestamp": "2024-01-01T00:00:00Z"}, "spec": full_spec(kind)})
}

fn read(kind: Kind, value: &Value) -> AnyResource {
    AnyResource::from_value(kind, value).unwrap_or_else(|e| panic!("{kind}: {e}"))
}

/// All paths of members: `a`, `a.b`, `a[0].c`. Free-form maps and what is kept as JSON count as leaves.
fn paths(at: &str, value: &Value, out: &mut Vec<String>) {
    const FREE_FORM: [&str; 9] = [
        "selector",
        "labelsToApply",
        "secondary",
        "alternateOwnerAttrs",
        "sequenceNumberForAllocation",
        "block",
        "operations",
        "labels",
        "annotations",
    ];
    match value {
        Value::Object(members) => {
            for (key, v) in members {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                if !FREE_FORM.contains(&key.as_str()) {
                    paths(&path, v, out);
                }
                out.push(path);
            }
        }
        Value::Array(items) => {
            for (i, v) in items.iter().enumerate() {
                paths(&format!("{at}[{i}]"), v, out);
            }
        }
        _ => {}
    }
}

#[test]
fn every_typed_field_has_the_schemas_name() {
    for kind in Kind::ALL {
        let mut all = Vec::new();
        paths("spec", &full_spec(kind), &mut all);
        for path in all {
            assert_eq!(fields::lookup(kind, &path), Known::Yes, "{kind} {path}");
        }
    }
}

#[test]
fn typed_fields_are_really_typed_and_written_back() {
    for kind in Kind::ALL {
        let resource = read(kind, &full(kind));
        assert_eq!(resource.extras(), [], "{kind}: these have no type");
        assert_eq!(resource.to_value(), full(kind), "{kind}");
    }
}

/// Schema fields that are only kept. When one gets a type, the list gets shorter.
#[test]
fn schema_fields_without_effect_are_known() {
    let mut shown = String::new();
    for kind in Kind::ALL.into_iter().filter(|k| *k != Kind::FelixConfiguration) {
        let mut typed = Vec::new();
        paths("", &full_spec(kind), &mut typed);
        let typed: Vec<String> = typed.iter().map(|p| p.replace("[0]", "[]")).collect();
        let operations = |f: &str| f.contains(".operations[]");
        let kept: Vec<&str> =
            fields::of(kind).filter(|f| !typed.contains(&(*f).to_owned()) && !operations(f)).collect();
        shown.push_str(&format!("{kind}: {}\n", kept.join(" ")));
    }
    insta::assert_snapshot!(shown);
}

/// Puts `extra` into the object number `n` (counted over all objects that are not free-form) of a value.
fn plant(value: &mut Value, n: &mut usize, extra: &Map<String, Value>) {
    match value {
        Value::Object(members) => {
            for (key, v) in members.iter_mut() {
                if !matches!(
                    key.as_str(),
                    "secondary"
                        | "alternateOwnerAttrs"
                        | "sequenceNumberForAllocation"
                        | "block"
                        | "operations"
                        | "labels"
                        | "selector"
                        | "labelsToApply"
                        | "annotations"
                ) {
                    plant(v, n, extra);
                }
            }
            if *n == 0 {
                members.extend(extra.clone());
            }
            *n = n.wrapping_sub(1);
        }
        Value::Array(items) => items.iter_mut().for_each(|v| plant(v, n, extra)),
        _ => {}
    }
}

/// Drops members by the bits of `mask`, but none that a kind requires.
fn thin(value: &mut Value, mask: &mut u64) {
    const REQUIRED: [&str; 16] = [
        "apiVersion",
        "kind",
        "metadata",
        "spec",
        "name",
        "cidr",
        "node",
        "handleID",
        "allocations",
        "unallocated",
        "attributes",
        "action",
        "address",
        "key",
        "value",
        "secretKeyRef",
    ];
    if let Value::Object(members) = value {
        members.retain(|key, _| {
            *mask = mask.rotate_left(1);
            *mask & 1 == 0 || REQUIRED.contains(&key.as_str()) || key == "port"
        });
        members.values_mut().for_each(|v| thin(v, mask));
    } else if let Value::Array(items) = value {
        items.iter_mut().for_each(|v| thin(v, mask));
    }
}

/// Whether everything in `small` is in `large`; an empty map or list may be left out.
fn contains(large: &Value, small: &Value) -> bool {
    let empty =
        |v: &Value| v.as_object().is_some_and(Map::is_empty) || v.as_array().is_some_and(Vec::is_empty);
    match (large, small) {
        (Value::Object(l), Value::Object(s)) => {
            s.iter().all(|(k, v)| l.get(k).map_or(empty(v), |l| contains(l, v)))
        }
        (Value::Array(l), Value::Array(s)) => {
            l.len() == s.len() && l.iter().zip(s).all(|(l, s)| contains(l, s))
        }
        (l, s) => l == s,
    }
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no infinities", |f| f.is_finite()).prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,6}", inner, 0..3)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_is_lost_through_the_types(
        kind in prop::sample::select(Kind::ALL.to_vec()),
        mut mask in any::<u64>(),
        place in 0usize..24,
        extra in prop::collection::btree_map("x[a-z]{5}", anything(), 1..3),
    ) {
        let mut value = full(kind);
        thin(&mut value, &mut mask);
        let extra = extra.into_iter().collect();
        plant(&mut value, &mut { place }, &extra);
        let resource = read(kind, &value);
        let written = resource.to_value();
        prop_assert!(contains(&written, &value), "{}\n{}", value, written);
        prop_assert_eq!(read(kind, &written), resource);
    }

    #[test]
    fn no_value_makes_reading_panic(kind in prop::sample::select(Kind::ALL.to_vec()), spec in anything()) {
        let value = json!({"apiVersion": "", "kind": "", "metadata": {"name": "x"}, "spec": spec});
        let _ = AnyResource::from_value(kind, &value).map(|r| crate::validate::resource(&r));
    }
}
