//! WorkloadEndpoints on Pods (Calico `lib/backend/k8s/conversion/workload_endpoint_default.go`): an endpoint is a pod with
//! a node and an address, which its annotations or its status tell. Attaching a pod writes annotations through
//! `pods/status`; detaching empties them. Pods in the host's network and finished pods are no endpoints.

use std::{collections::BTreeMap, net::IpAddr};

use brindle_config_core::{
    Key, Kind, convert,
    meta::API_VERSION,
    workload::{WorkloadEndpointSpec, endpoint_name},
};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha1::{Digest, Sha1};

use super::object::{Mapped, Meta, or_default};

/// Addresses that lead to the pod.
const FLOATING: &str = "cni.projectcalico.org/floatingIPs";
const POD_IP: &str = "cni.projectcalico.org/podIP";
const POD_IPS: &str = "cni.projectcalico.org/podIPs";
const CONTAINER: &str = "cni.projectcalico.org/containerID";
const AWS_IPS: &str = "vpc.amazonaws.com/pod-ips";
/// Before annotations of ours: what an endpoint holds beyond what Calico writes.
const OWN: &str = "cni.brindle.dev/";
/// The uid by which kubelet knows a pod of a file; the Pod that mirrors it has one of its own.
const STATIC_UID: &str = "kubernetes.io/config.hash";
const MAC: &str = "cni.brindle.dev/mac";
const INTERFACE: &str = "cni.brindle.dev/interface";

const ORCHESTRATOR: &str = "k8s";
/// The one interface of a pod that Kubernetes knows.
const ENDPOINT: &str = "eth0";

/// What is read of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PodObject {
    pub(super) metadata: Meta,
    #[serde(deserialize_with = "or_default")]
    spec: Spec,
    #[serde(deserialize_with = "or_default")]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
    service_account_name: String,
    host_network: bool,
    #[serde(deserialize_with = "or_default")]
    containers: Vec<Container>,
    #[serde(deserialize_with = "or_default")]
    init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    /// Of an init container: Always makes it run as long as the pod.
    #[serde(rename = "restartPolicy")]
    restart_policy: String,
    #[serde(deserialize_with = "or_default")]
    ports: Vec<Port>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    name: String,
    protocol: String,
    container_port: u16,
    host_port: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pod_ips: Vec<PodIp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

impl PodObject {
    fn finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.get(name).map(String::as_str)
    }

    /// The addresses of the pod. What was written when it was attached comes first: a status may still tell those of an
    /// earlier sandbox, and an emptied annotation that the address was given back.
    fn addresses(&self) -> Vec<IpNet> {
        if self.finished() {
            return Vec::new();
        }
        let list = |text: &str| text.split(',').filter_map(|t| net(t.trim())).collect::<Vec<_>>();
        match (self.annotation(POD_IPS), self.annotation(POD_IP)) {
            (Some(ips), _) if !ips.is_empty() => return list(ips),
            (_, Some(ip)) => return list(ip),
            (Some(_), None) => return Vec::new(),
            (None, None) => {}
        }
        let status = self.status.pod_ips.iter().filter_map(|p| net(&p.ip)).collect::<Vec<_>>();
        if !status.is_empty() {
            return status;
        }
        net(&self.status.pod_ip).map_or_else(|| list(self.annotation(AWS_IPS).unwrap_or("")), |ip| vec![ip])
    }

    /// The endpoint's name.
    fn name(&self) -> String {
        endpoint_name(&self.spec.node_name, ORCHESTRATOR, &self.metadata.name, ENDPOINT)
    }
}

/// An address alone or with its length.
fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Name of the host's device of a pod: 11 digits of SHA-1 of `namespace.pod` behind Calico's prefix.
fn interface_name(namespace: &str, pod: &str) -> String {
    let digest = Sha1::digest(format!("{namespace}.{pod}").as_bytes());
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    format!("cali{}", hex.get(..11).unwrap_or(&hex))
}

/// Annotations of a pod that its endpoint carries.
fn carried(annotation: &str) -> bool {
    (annotation.contains("projectcalico.org/") || annotation.starts_with(OWN) || annotation == STATIC_UID)
        && ![POD_IP, POD_IPS, MAC, INTERFACE].contains(&annotation)
}

/// Makes a resource of an object.
pub(super) fn read(pod: &PodObject) -> Result<Mapped, String> {
    let meta = &pod.metadata;
    let revision = meta.revision()?;
    let key = Key::new(Kind::WorkloadEndpoint, Some(&meta.namespace), &pod.name());
    let addresses = pod.addresses();
    if pod.spec.host_network || pod.spec.node_name.is_empty() || addresses.is_empty() {
        return Ok(Mapped::Nothing { key, revision });
    }
    let account = &pod.spec.service_account_name;
    let mut labels = meta.labels.clone();
    // What a pod's namespace and account are is not for its labels to say.
    labels.retain(|name, _| !convert::is_inherited(name) && name != convert::LABEL_SERVICE_ACCOUNT);
    labels.insert(convert::LABEL_NAMESPACE.into(), meta.namespace.clone());
    labels.insert(convert::LABEL_ORCHESTRATOR.into(), ORCHESTRATOR.into());
    let mut profiles = vec![convert::namespace_profile_name(&meta.namespace)];
    if !account.is_empty() {
        profiles.push(convert::service_account_profile_name(&meta.namespace, account));
        if account.len() < 63 {
            labels.insert(convert::LABEL_SERVICE_ACCOUNT.into(), account.clone());
        }
    }
    let annotations: BTreeMap<&String, &String> =
        meta.annotations.iter().filter(|(k, _)| carried(k)).collect();

    let mut metadata = Map::new();
    metadata.insert("name".into(), json!(key.name));
    metadata.insert("namespace".into(), json!(meta.namespace));
    metadata.insert("labels".into(), json!(labels));
    if !annotations.is_empty() {
        metadata.insert("annotations".into(), json!(annotations));
    }
    if let Some(created) = &meta.creation_timestamp {
        metadata.insert("creationTimestamp".into(), json!(created));
    }
    if !meta.uid.is_empty() {
        metadata.insert("uid".into(), json!(meta.uid));
    }

    let default_interface = || interface_name(&meta.namespace, &meta.name);
    let mut spec = Map::new();
    spec.insert("orchestrator".into(), json!(ORCHESTRATOR));
    spec.insert("node".into(), json!(pod.spec.node_name));
    spec.insert("pod".into(), json!(meta.name));
    spec.insert("endpoint".into(), json!(ENDPOINT));
    spec.insert("ipNetworks".into(), json!(addresses));
    // What is no list of addresses was refused when the pod was attached.
    let floating = pod.annotation(FLOATING).and_then(|t| serde_json::from_str::<Vec<IpAddr>>(t).ok());
    let floating = floating.unwrap_or_default();
    let nats: Vec<_> = floating
        .iter()
        .filter_map(|ip| WorkloadEndpointSpec::nats(&addresses, std::slice::from_ref(ip)).ok())
        .flatten()
        .collect();
    if !nats.is_empty() {
        spec.insert("ipNATs".into(), json!(nats));
    }
    spec.insert("profiles".into(), json!(profiles));
    let interface = pod.annotation(INTERFACE).map_or_else(default_interface, str::to_owned);
    spec.insert("interfaceName".into(), json!(interface));
    let optional = [
        ("containerID", pod.annotation(CONTAINER).unwrap_or("")),
        ("serviceAccountName", account),
        ("mac", pod.annotation(MAC).unwrap_or("")),
    ];
    for (field, text) in optional {
        if !text.is_empty() {
            spec.insert(field.into(), json!(text));
        }
    }
    // Other init containers have ended before anybody asks the pod.
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
    let ports = pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
    let ports: Vec<Value> = ports.filter(|p| !p.name.is_empty() || p.host_port != 0).map(port).collect();
    if !ports.is_empty() {
        spec.insert("ports".into(), json!(ports));
    }
    let value =
        json!({"apiVersion": API_VERSION, "kind": "WorkloadEndpoint", "metadata": metadata, "spec": spec});
    Ok(Mapped::put(key, revision, value))
}

fn port(p: &Port) -> Value {
    let protocol = if p.protocol.is_empty() { "TCP" } else { &p.protocol };
    let mut out = json!({"name": p.name, "protocol": protocol, "port": p.container_port});
    if p.host_port != 0 {
        out["hostPort"] = json!(p.host_port);
    }
    out
}

/// The pod of an endpoint, from its name: `NODE-k8s-POD-eth0` with every `-` inside a part doubled. `None` for endpoints
/// that are no pods of Kubernetes.
pub(super) fn pod_of(key: &Key) -> Option<String> {
    let mut parts = vec![String::new()];
    let mut chars = key.name.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '-' if chars.peek() == Some(&'-') => {
                chars.next();
                parts.last_mut()?.push('-');
            }
            '-' => parts.push(String::new()),
            c => parts.last_mut()?.push(c),
        }
    }
    match parts.as_slice() {
        [node, orchestrator, pod, endpoint]
            if orchestrator == ORCHESTRATOR
                && endpoint == ENDPOINT
                && !pod.is_empty()
                && endpoint_name(node, orchestrator, pod, endpoint) == key.name =>
        {
            Some(pod.clone())
        }
        _ => None,
    }
}

/// The merge patch of `pods/status` that records an endpoint on its pod. Refused: what a pod cannot hold.
pub(super) fn patch(pod: &PodObject, value: &Value, at: Option<u64>) -> Result<Value, String> {
    let spec = |field: &str| value.get("spec").and_then(|s| s.get(field));
    let text = |field: &str| spec(field).and_then(Value::as_str).unwrap_or("");
    if text("node") != pod.spec.node_name {
        return Err(format!("the pod runs on node {:?}, not on {:?}", pod.spec.node_name, text("node")));
    }
    if pod.spec.host_network {
        return Err("the pod is in the host's network".into());
    }
    let addresses: Vec<IpNet> = spec("ipNetworks")
        .map(|v| serde_json::from_value(v.clone()))
        .transpose()
        .map_err(|e| format!("spec.ipNetworks: {e}"))?
        .unwrap_or_default();
    let Some(first) = addresses.first() else {
        return Err("spec.ipNetworks is empty: a pod is an endpoint by its address".into());
    };
    let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let mut annotations = Map::new();
    annotations.insert(POD_IP.into(), json!(first.to_string()));
    annotations.insert(POD_IPS.into(), json!(all.join(",")));
    annotations.insert(CONTAINER.into(), json!(text("containerID")));
    let meta = value.get("metadata");
    let given = meta.and_then(|m| m.get("annotations")).and_then(Value::as_object);
    for (k, v) in given.into_iter().flatten().filter(|(k, _)| k.starts_with(OWN)) {
        annotations.insert(k.clone(), v.clone());
    }
    if !text("mac").is_empty() {
        annotations.insert(MAC.into(), json!(text("mac")));
    }
    let interface = text("interfaceName");
    if !interface.is_empty() && interface != interface_name(&pod.metadata.namespace, &pod.metadata.name) {
        annotations.insert(INTERFACE.into(), json!(interface));
    }
    for gone in pod.metadata.annotations.keys().filter(|k| k.starts_with(OWN)) {
        annotations.entry(gone.clone()).or_insert(Value::Null);
    }
    Ok(with_meta(pod, annotations, at))
}

/// The patch that gives the addresses of a pod back: both annotations empty, as Calico leaves them.
pub(super) fn release(pod: &PodObject, at: Option<u64>) -> Value {
    let mut annotations = Map::new();
    annotations.insert(POD_IP.into(), json!(""));
    annotations.insert(POD_IPS.into(), json!(""));
    for own in pod.metadata.annotations.keys().filter(|k| k.starts_with(OWN)) {
        annotations.insert(own.clone(), Value::Null);
    }
    with_meta(pod, annotations, at)
}

/// A patch for this very pod, not for another of its name.
fn with_meta(pod: &PodObject, annotations: Map<String, Value>, at: Option<u64>) -> Value {
    let mut metadata = json!({"annotations": annotations});
    if !pod.metadata.uid.is_empty() {
        metadata["uid"] = json!(pod.metadata.uid);
    }
    if let Some(at) = at {
        metadata["resourceVersion"] = json!(at.to_string());
    }
    json!({"metadata": metadata})
}

#[cfg(test)]
mod tests;
