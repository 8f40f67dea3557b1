//! The cluster of the cases written by hand, as JSON, and words for what they put into it.

use serde_json::{Value, json};

/// A step: everything in the store.
pub type World = Vec<Value>;

/// Three namespaces of three pods; what their labels, accounts and ports are.
pub fn base() -> World {
    let mut out = Vec::new();
    for (ns, labels) in
        [("ns1", json!({"team": "red"})), ("ns2", json!({"team": "blue"})), ("ns3", json!({}))]
    {
        out.push(namespace(ns, &labels));
    }
    out.push(account("ns1", "robot", &json!({"team": "red"})));
    out.push(account("ns2", "robot", &json!({"team": "blue"})));
    for (ns, name, labels, account) in [
        ("ns1", "p1", json!({"app": "a", "tier": "x"}), "robot"),
        ("ns1", "p2", json!({"app": "b", "tier": "x"}), ""),
        ("ns1", "p3", json!({"app": "c"}), ""),
        ("ns2", "p1", json!({"app": "a"}), "robot"),
        ("ns2", "p2", json!({"app": "b", "tier": "y"}), ""),
        ("ns2", "p3", json!({}), ""),
        ("ns3", "p1", json!({"app": "a", "tier": "x"}), ""),
        ("ns3", "p2", json!({"app": "b"}), "other"),
        ("ns3", "p3", json!({"app": "c", "tier": "y"}), ""),
    ] {
        out.push(pod(ns, name, &labels, account));
    }
    out
}

/// The base and more.
pub fn with(more: impl IntoIterator<Item = Value>) -> World {
    let mut all = base();
    for r in more {
        // One with the name of another takes its place.
        all.retain(|o| {
            ["/apiVersion", "/kind", "/metadata/name", "/metadata/namespace"]
                .iter()
                .any(|at| o.pointer(at) != r.pointer(at))
        });
        all.push(r);
    }
    all
}

pub fn namespace(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "spec": {},
        "metadata": {"name": name, "labels": labels}})
}

pub fn account(ns: &str, name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "spec": {},
        "metadata": {"namespace": ns, "name": name, "labels": labels}})
}

/// A pod's labels and account; `http` is TCP 80, with the third pod TCP 81.
pub fn pod(ns: &str, name: &str, labels: &Value, account: &str) -> Value {
    let digit = |s: &str| s[s.len() - 1..].parse::<u8>().expect("names end in a digit");
    let (i, j) = (digit(ns) - 1, digit(name));
    let http = if name == "p3" { 81 } else { 80 };
    let mut r = calico(
        "WorkloadEndpoint",
        ns,
        name,
        &json!({"orchestrator": "k8s", "node": "n1", "endpoint": "eth0", "interfaceName": format!("cali{i}{j}"),
            "profiles": [format!("kns.{ns}")],
            "ipNetworks": [format!("10.0.{i}.{j}/32"), format!("fd00::{i}:{j}/128")],
            "ports": [{"name": "http", "protocol": "TCP", "port": http},
                {"name": "dns", "protocol": "UDP", "port": 53},
                {"name": "tunnel", "protocol": "SCTP", "port": 80}]}),
    );
    r["metadata"]["labels"] = labels.clone();
    if !account.is_empty() {
        r["spec"]["serviceAccountName"] = account.into();
    }
    r
}

/// A resource of projectcalico.org/v3; `ns` empty for kinds of the cluster.
pub fn calico(kind: &str, ns: &str, name: &str, spec: &Value) -> Value {
    let mut meta = json!({ "name": name });
    if !ns.is_empty() {
        meta["namespace"] = ns.into();
    }
    json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": meta, "spec": spec})
}

/// Kubernetes' NetworkPolicy.
pub fn k8s(ns: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": ns, "name": name}, "spec": spec})
}

/// Calico's, in a namespace and global.
pub fn np(ns: &str, name: &str, spec: Value) -> Value {
    calico("NetworkPolicy", ns, name, &spec)
}

pub fn gnp(name: &str, spec: Value) -> Value {
    calico("GlobalNetworkPolicy", "", name, &spec)
}

pub fn tier(name: &str, order: f64, action: &str) -> Value {
    calico("Tier", "", name, &json!({"order": order, "defaultAction": action}))
}

/// ClusterNetworkPolicy and its ancestors.
pub fn cluster(kind: &str, name: &str, spec: Value) -> Value {
    let version = if kind == "ClusterNetworkPolicy" { "v1alpha2" } else { "v1alpha1" };
    json!({"apiVersion": format!("policy.networking.k8s.io/{version}"), "kind": kind,
        "metadata": {"name": name}, "spec": spec})
}

/// The host endpoint of eth0.
pub fn host(more: Value) -> Value {
    let mut spec = json!({"node": "n1", "interfaceName": "eth0", "expectedIPs": ["192.168.0.1"]});
    for (k, v) in more.as_object().into_iter().flatten() {
        spec[k] = v.clone();
    }
    let mut r = calico("HostEndpoint", "", "h", &spec);
    r["metadata"]["labels"] = json!({"role": "host"});
    r
}

/// A set of networks with a label.
pub fn set(ns: &str, name: &str, label: &str, nets: Value) -> Value {
    let kind = if ns.is_empty() { "GlobalNetworkSet" } else { "NetworkSet" };
    let mut r = calico(kind, ns, name, &json!({ "nets": nets }));
    r["metadata"]["labels"] = json!({ "role": label });
    r
}
