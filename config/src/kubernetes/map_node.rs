//! Calico's Node on the Kubernetes Node (Calico `lib/backend/k8s/resources/node.go`): addresses, AS number and tunnel
//! addresses are annotations, written through `nodes/status`. Node objects are made and deleted by Kubernetes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use brindle_config_core::{Key, Kind, meta::API_VERSION};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::object::{Mapped, Meta, or_default};

/// What is read of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeObject {
    pub(super) metadata: Meta,
    #[serde(deserialize_with = "or_default")]
    spec: Spec,
    #[serde(deserialize_with = "or_default")]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDRs", deserialize_with = "or_default")]
    pod_cidrs: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(deserialize_with = "or_default")]
    addresses: Vec<Address>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Address {
    address: String,
    #[serde(rename = "type")]
    kind: String,
}

/// What an annotation may hold; anything else is as if it were not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// An address, with or without prefix length.
    Net,
    Ip,
    Ip4,
    AsNumber,
    Text,
}

/// Annotation, place under `spec` (`status` for keys), form.
const FIELDS: [(&str, &[&str], Form); 13] = [
    ("projectcalico.org/IPv4Address", &["spec", "bgp", "ipv4Address"], Form::Net),
    ("projectcalico.org/IPv6Address", &["spec", "bgp", "ipv6Address"], Form::Net),
    ("projectcalico.org/ASNumber", &["spec", "bgp", "asNumber"], Form::AsNumber),
    ("projectcalico.org/RouteReflectorClusterID", &["spec", "bgp", "routeReflectorClusterID"], Form::Ip4),
    ("projectcalico.org/IPv4IPIPTunnelAddr", &["spec", "bgp", "ipv4IPIPTunnelAddr"], Form::Ip4),
    ("projectcalico.org/IPv4VXLANTunnelAddr", &["spec", "ipv4VXLANTunnelAddr"], Form::Ip4),
    ("projectcalico.org/VXLANTunnelMACAddr", &["spec", "vxlanTunnelMACAddr"], Form::Text),
    ("projectcalico.org/IPv6VXLANTunnelAddr", &["spec", "ipv6VXLANTunnelAddr"], Form::Ip),
    ("projectcalico.org/VXLANTunnelMACAddrV6", &["spec", "vxlanTunnelMACAddrV6"], Form::Text),
    (
        "projectcalico.org/IPv4WireguardInterfaceAddr",
        &["spec", "wireguard", "interfaceIPv4Address"],
        Form::Ip4,
    ),
    (
        "projectcalico.org/IPv6WireguardInterfaceAddr",
        &["spec", "wireguard", "interfaceIPv6Address"],
        Form::Ip,
    ),
    ("projectcalico.org/WireguardPublicKey", &["status", "wireguardPublicKey"], Form::Text),
    ("projectcalico.org/WireguardPublicKeyV6", &["status", "wireguardPublicKeyV6"], Form::Text),
];

const INTERFACES: &str = "projectcalico.org/Interfaces";
/// Labels and annotations of Calico's Node that the Kubernetes Node does not have.
const OWN_LABELS: &str = "projectcalico.org/labels";
const OWN_ANNOTATIONS: &str = "projectcalico.org/annotations";
/// Written by calicoctl into files: a copy of the Node's labels.
const KUBE_LABELS: &str = "projectcalico.org/kube-labels";

/// Fields of a Node that follow from the Kubernetes Node and are not written.
const DERIVED: [&str; 2] = ["addresses", "orchRefs"];

/// Annotations of other programs that belong to Calico's Node.
fn ours(annotation: &str) -> bool {
    annotation.contains("projectcalico.org/") || annotation.contains("brindle.dev/")
}

fn mapped(annotation: &str) -> bool {
    FIELDS.iter().any(|(a, ..)| *a == annotation)
        || [INTERFACES, OWN_LABELS, OWN_ANNOTATIONS, KUBE_LABELS].contains(&annotation)
}

/// The value of a field, if the annotation holds one.
fn value_of(form: Form, text: &str) -> Option<Value> {
    match form {
        Form::Net => (text.parse::<IpNet>().is_ok() || text.parse::<IpAddr>().is_ok()).then(|| json!(text)),
        Form::Ip => text.parse::<IpAddr>().is_ok().then(|| json!(text)),
        Form::Ip4 => text.parse::<Ipv4Addr>().is_ok().then(|| json!(text)),
        Form::AsNumber => match text.parse::<u32>() {
            Ok(n) => Some(json!(n)),
            Err(_) => {
                let (high, low) = text.split_once('.')?;
                (high.parse::<u16>().is_ok() && low.parse::<u16>().is_ok()).then(|| json!(text))
            }
        },
        Form::Text => (!text.is_empty()).then(|| json!(text)),
    }
}

fn map_in(annotations: &BTreeMap<String, String>, name: &str) -> BTreeMap<String, String> {
    annotations.get(name).and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default()
}

/// Puts a value at a path of objects.
fn set(root: &mut Map<String, Value>, path: &[&str], value: Value) {
    match path {
        [] => {}
        [last] => drop(root.insert((*last).to_owned(), value)),
        [first, rest @ ..] => {
            let next = root.entry(*first).or_insert_with(|| json!({}));
            if let Some(next) = next.as_object_mut() {
                set(next, rest, value);
            }
        }
    }
}

/// Makes a resource of an object.
pub(super) fn read(node: &NodeObject) -> Result<Mapped, String> {
    let meta = &node.metadata;
    let at = meta.revision()?;
    let mut out = Map::new();
    set(&mut out, &["spec"], json!({}));
    for (annotation, path, form) in FIELDS {
        if let Some(text) = meta.annotations.get(annotation).filter(|t| !t.is_empty()) {
            match value_of(form, text) {
                Some(v) => set(&mut out, path, v),
                None => tracing::debug!(node = %meta.name, annotation, "is not what it should be; left out"),
            }
        }
    }
    if let Some(list) = meta.annotations.get(INTERFACES).and_then(|t| serde_json::from_str(t).ok())
        && let Value::Array(_) = list
    {
        set(&mut out, &["spec", "interfaces"], list);
    }
    let bgp = |field: &str| out.get("spec").and_then(|s| s.get("bgp")?.get(field)).and_then(Value::as_str);
    let calico = ["ipv4Address", "ipv6Address"].iter().filter_map(|f| bgp(f)).map(|a| (a, "CalicoNodeIP"));
    let kubernetes = node.status.addresses.iter().map(|a| (a.address.as_str(), a.kind.as_str()));
    let kubernetes = kubernetes.filter(|(_, kind)| matches!(*kind, "InternalIP" | "ExternalIP"));
    let addresses: Vec<Value> =
        calico.chain(kubernetes).map(|(a, kind)| json!({"address": a, "type": kind})).collect();
    if !addresses.is_empty() {
        set(&mut out, &["spec", "addresses"], json!(addresses));
    }
    set(&mut out, &["spec", "orchRefs"], json!([{"nodeName": meta.name, "orchestrator": "k8s"}]));
    if !node.spec.pod_cidrs.is_empty() {
        set(&mut out, &["status", "podCIDRs"], json!(node.spec.pod_cidrs));
    }

    let mut labels = meta.labels.clone();
    labels.extend(map_in(&meta.annotations, OWN_LABELS));
    let kept = meta.annotations.iter().filter(|(k, _)| ours(k) && !mapped(k));
    let mut annotations: BTreeMap<String, String> = kept.map(|(k, v)| (k.clone(), v.clone())).collect();
    annotations.extend(map_in(&meta.annotations, OWN_ANNOTATIONS));
    let mut metadata = json!({"name": meta.name});
    for (field, map) in [("labels", labels), ("annotations", annotations)] {
        if !map.is_empty() {
            metadata[field] = json!(map);
        }
    }
    for (field, text) in [("uid", Some(&meta.uid)), ("creationTimestamp", meta.creation_timestamp.as_ref())] {
        if let Some(text) = text.filter(|t| !t.is_empty()) {
            metadata[field] = json!(text);
        }
    }
    out.insert("metadata".into(), metadata);
    out.insert("apiVersion".into(), json!(API_VERSION));
    out.insert("kind".into(), json!("Node"));
    Ok(Mapped::put(Key::new(Kind::Node, None, &meta.name), at, Value::Object(out)))
}

/// The merge patch of `nodes/status` that makes `node` hold `value`; `at` is the revision that must be the last.
/// Refused: fields that have no annotation.
pub(super) fn patch(node: &NodeObject, value: &Value, at: Option<u64>) -> Result<Value, String> {
    let mut annotations: BTreeMap<String, Value> = BTreeMap::new();
    let mut left = value.get("spec").cloned().unwrap_or_else(|| json!({}));
    for (annotation, path, _) in FIELDS {
        let found = path.iter().try_fold(value, |v, step| v.get(step)).filter(|v| !v.is_null());
        let new = match found {
            None => Value::Null,
            Some(Value::String(s)) => json!(s),
            Some(other) => json!(other.to_string()),
        };
        annotations.insert(annotation.to_owned(), new);
        take(&mut left, path.get(1..).unwrap_or_default());
    }
    let interfaces = value.get("spec").and_then(|s| s.get("interfaces")).filter(|v| !v.is_null());
    annotations.insert(INTERFACES.into(), interfaces.map_or(Value::Null, |list| json!(list.to_string())));
    take(&mut left, &["interfaces"]);
    for derived in DERIVED {
        take(&mut left, &[derived]);
    }
    if let Some(path) = something(&left) {
        return Err(format!("spec{path} has no place on a Node of Kubernetes"));
    }

    let strings = |field: &str| -> BTreeMap<String, String> {
        let map = value.get("metadata").and_then(|m| m.get(field)).cloned().unwrap_or_default();
        serde_json::from_value(map).unwrap_or_default()
    };
    let mut labels = strings("labels");
    labels.retain(|k, v| node.metadata.labels.get(k) != Some(v));
    let labels = if labels.is_empty() { Value::Null } else { json!(json!(labels).to_string()) };
    annotations.insert(OWN_LABELS.into(), labels);
    let (mut own, mut foreign) = (BTreeMap::new(), BTreeMap::new());
    for (k, v) in strings("annotations").into_iter().filter(|(k, _)| !mapped(k)) {
        if ours(&k) {
            own.insert(k, v)
        } else {
            foreign.insert(k, v)
        };
    }
    foreign.retain(|k, v| node.metadata.annotations.get(k) != Some(v));
    let foreign = if foreign.is_empty() { Value::Null } else { json!(json!(foreign).to_string()) };
    annotations.insert(OWN_ANNOTATIONS.into(), foreign);
    for gone in node.metadata.annotations.keys().filter(|k| ours(k) && !mapped(k) && !own.contains_key(*k)) {
        annotations.insert(gone.clone(), Value::Null);
    }
    annotations.extend(own.into_iter().map(|(k, v)| (k, json!(v))));
    // Removing what is not there is no change; a patch says only what is one.
    annotations.retain(|k, v| match node.metadata.annotations.get(k) {
        None => !v.is_null(),
        Some(old) => v.as_str() != Some(old),
    });
    let mut metadata = json!({"annotations": annotations});
    if let Some(at) = at {
        metadata["resourceVersion"] = json!(at.to_string());
    }
    Ok(json!({"metadata": metadata}))
}

/// Removes what is at a path.
fn take(value: &mut Value, path: &[&str]) {
    match (path, value.as_object_mut()) {
        ([last], Some(object)) => drop(object.remove(*last)),
        ([first, rest @ ..], Some(object)) => {
            if let Some(next) = object.get_mut(*first) {
                take(next, rest);
            }
        }
        _ => {}
    }
}

/// The path of something that is neither null nor an empty object.
fn something(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Object(o) => o.iter().find_map(|(k, v)| something(v).map(|rest| format!(".{k}{rest}"))),
        Value::Array(a) if a.is_empty() => None,
        _ => Some(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use brindle_config_core::{
        node::NodeSpec,
        store::{Entry, decode},
    };

    use super::*;

    fn object(annotations: Value) -> NodeObject {
        serde_json::from_value(json!({"metadata": {"name": "n1", "resourceVersion": "12", "uid": "u",
            "labels": {"kubernetes.io/os": "linux"}, "annotations": annotations},
            "spec": {"podCIDRs": ["10.0.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"}],
                "images": [{"names": ["x"], "sizeBytes": 1}]}}))
        .expect("parses")
    }

    fn entry(node: &NodeObject) -> Entry {
        match read(node).expect("reads") {
            Mapped::Put(e) => e,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn annotations_are_fields() {
        let e = entry(&object(
            json!({"projectcalico.org/IPv4Address": "192.0.2.1/24", "projectcalico.org/ASNumber": "64512",
            "projectcalico.org/RouteReflectorClusterID": "1.2.3.4", "projectcalico.org/IPv4IPIPTunnelAddr": "10.0.1.1",
            "projectcalico.org/labels": "{\"rack\":\"a\"}", "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            "projectcalico.org/IPv6Address": "nonsense", "projectcalico.org/Interfaces": "[{\"name\":\"eth0\"}]"}),
        ));
        assert_eq!((e.key.clone(), e.revision.0), (Key::new(Kind::Node, None, "n1"), 12));
        assert_eq!(
            *e.value,
            json!({"apiVersion": API_VERSION, "kind": "Node",
                "metadata": {"name": "n1", "uid": "u", "labels": {"kubernetes.io/os": "linux", "rack": "a"}},
                "spec": {"bgp": {"ipv4Address": "192.0.2.1/24", "asNumber": 64512, "routeReflectorClusterID": "1.2.3.4",
                    "ipv4IPIPTunnelAddr": "10.0.1.1"}, "interfaces": [{"name": "eth0"}],
                    "addresses": [{"address": "192.0.2.1/24", "type": "CalicoNodeIP"},
                        {"address": "192.0.2.1", "type": "InternalIP"}],
                    "orchRefs": [{"nodeName": "n1", "orchestrator": "k8s"}]},
                "status": {"podCIDRs": ["10.0.1.0/24"]}})
        );
        let spec = decode::<NodeSpec>(&e).expect("decodes").resource.spec;
        assert_eq!(spec.ipv4(), Some(Ipv4Addr::new(192, 0, 2, 1)));
    }

    #[test]
    fn a_node_without_annotations_is_a_node_without_bgp() {
        let spec = decode::<NodeSpec>(&entry(&object(json!({})))).expect("decodes").resource.spec;
        assert_eq!(spec.bgp, None);
    }

    #[test]
    fn a_patch_says_what_changes_and_nothing_else() {
        let node = object(
            json!({"projectcalico.org/IPv4Address": "192.0.2.1/24", "projectcalico.org/ASNumber": "64512",
            "foreign.example.org/x": "y", "projectcalico.org/odd": "z"}),
        );
        let mut value = (*entry(&node).value).clone();
        assert_eq!(
            patch(&node, &value, Some(12)),
            Ok(json!({"metadata": {"annotations": {}, "resourceVersion": "12"}}))
        );
        value["spec"]["bgp"] = json!({"ipv4Address": "192.0.2.9/24", "ipv4IPIPTunnelAddr": "10.0.1.1"});
        value["metadata"]["labels"]["rack"] = json!("b");
        value["metadata"]["annotations"] = json!({"note": "n"});
        assert_eq!(
            patch(&node, &value, None),
            Ok(json!({"metadata": {"annotations": {
                "projectcalico.org/IPv4Address": "192.0.2.9/24",
                "projectcalico.org/ASNumber": null,
                "projectcalico.org/IPv4IPIPTunnelAddr": "10.0.1.1",
                "projectcalico.org/labels": "{\"rack\":\"b\"}",
                "projectcalico.org/annotations": "{\"note\":\"n\"}",
                "projectcalico.org/odd": null,
            }}}))
        );
    }

    #[test]
    fn what_has_no_annotation_is_refused_not_lost() {
        let node = object(json!({}));
        let value = json!({"spec": {"bgp": {"ipv4Address": "192.0.2.1/24", "flavour": "x"}}});
        assert_eq!(
            patch(&node, &value, None),
            Err("spec.bgp.flavour has no place on a Node of Kubernetes".into())
        );
        patch(&node, &json!({"spec": {"bgp": {}, "extra": null}}), None).expect("nothing is lost");
    }

    #[test]
    fn a_patch_applied_reads_back_as_the_value() {
        let node = object(json!({"projectcalico.org/IPv4Address": "192.0.2.1/24"}));
        let mut value = (*entry(&node).value).clone();
        value["spec"]["bgp"]["routeReflectorClusterID"] = json!("1.1.1.1");
        value["spec"]["ipv4VXLANTunnelAddr"] = json!("10.9.9.9");
        value["spec"]["wireguard"] = json!({"interfaceIPv4Address": "10.8.8.8"});
        value["metadata"]["labels"]["own"] = json!("l");
        let patch = patch(&node, &value, None).expect("fits");
        let mut after = node.clone();
        for (k, v) in patch["metadata"]["annotations"].as_object().expect("a map") {
            match v.as_str() {
                Some(v) => after.metadata.annotations.insert(k.clone(), v.to_owned()),
                None => after.metadata.annotations.remove(k),
            };
        }
        assert_eq!(*entry(&after).value, value);
    }
}
