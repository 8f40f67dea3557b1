//! What the API server does to objects of built-in kinds: decoding into the type (unknown fields fall away, wrong types
//! are refused), defaults, validation, and what may change.

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        coordination::v1::Lease,
        core::v1::{ConfigMap, Endpoints, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
        scheduling::v1::PriorityClass,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::status::{Answer, Cause, Status};

/// Decodes into the Go-like type and back. The object is without apiVersion and kind.
pub(crate) fn typed(kind: &str, object: Value) -> Answer<Value> {
    match kind {
        "Namespace" => through::<Namespace>(kind, object),
        "Node" => through::<Node>(kind, object),
        "Pod" => through::<Pod>(kind, object),
        "ServiceAccount" => through::<ServiceAccount>(kind, object),
        "Service" => through::<Service>(kind, object),
        "Endpoints" => through::<Endpoints>(kind, object),
        "ConfigMap" => through::<ConfigMap>(kind, object),
        "Secret" => through::<Secret>(kind, object),
        "Event" => through::<Event>(kind, object),
        "EndpointSlice" => through::<EndpointSlice>(kind, object),
        "NetworkPolicy" => through::<NetworkPolicy>(kind, object),
        "Lease" => through::<Lease>(kind, object),
        "Deployment" => through::<Deployment>(kind, object),
        "DaemonSet" => through::<DaemonSet>(kind, object),
        "PodDisruptionBudget" => through::<PodDisruptionBudget>(kind, object),
        "ClusterRole" => through::<ClusterRole>(kind, object),
        "ClusterRoleBinding" => through::<ClusterRoleBinding>(kind, object),
        "Role" => through::<Role>(kind, object),
        "RoleBinding" => through::<RoleBinding>(kind, object),
        "PriorityClass" => through::<PriorityClass>(kind, object),
        "CustomResourceDefinition" => through::<CustomResourceDefinition>(kind, object),
        _ => Ok(object),
    }
}

fn through<T: Serialize + DeserializeOwned>(kind: &str, mut object: Value) -> Answer<Value> {
    if let Some(o) = object.as_object_mut() {
        o.remove("apiVersion");
        o.remove("kind");
    }
    quantities(&mut object);
    let refuse = |e: serde_json::Error| {
        Status::bad_request(format!(
            "{kind} in version \"v1\" cannot be handled as a {kind}: json: cannot unmarshal: {e}"
        ))
    };
    let typed: T = serde_json::from_value(object).map_err(refuse)?;
    let mut value = serde_json::to_value(&typed).map_err(refuse)?;
    if let Some(o) = value.as_object_mut() {
        o.remove("apiVersion");
        o.remove("kind");
        o.entry("metadata").or_insert_with(|| json!({}));
    }
    Ok(value)
}

/// `metadata` of an object of a custom kind, decoded as that of any other.
pub(crate) fn typed_meta(kind: &str, meta: Value) -> Answer<Value> {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    let refuse = |e: serde_json::Error| {
        Status::bad_request(format!("{kind} cannot be handled: metadata: json: cannot unmarshal: {e}"))
    };
    if meta.is_null() {
        return Ok(json!({}));
    }
    let meta: ObjectMeta = serde_json::from_value(meta).map_err(refuse)?;
    serde_json::to_value(&meta).map_err(refuse)
}

/// Quantities may be written as numbers.
fn quantities(v: &mut Value) {
    match v {
        Value::Object(o) => {
            for (k, v) in o {
                if matches!(k.as_str(), "requests" | "limits" | "capacity" | "allocatable") {
                    for q in v.as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
                        if q.is_number() {
                            *q = q.to_string().into();
                        }
                    }
                } else {
                    quantities(v);
                }
            }
        }
        Value::Array(a) => a.iter_mut().for_each(quantities),
        _ => {}
    }
}

/// Sets a field where it is missing.
fn default(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(o) = object.as_object_mut() {
        let entry = o.entry(field).or_insert(Value::Null);
        if entry.is_null() || *entry == "" {
            *entry = value.into();
        }
    }
}

/// An object below, made where it is missing.
fn below<'a>(object: &'a mut Value, field: &str) -> &'a mut Value {
    let o = object.as_object_mut().expect("objects of built-in kinds went through their types");
    o.entry(field).or_insert_with(|| json!({}))
}

fn each<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

fn pod_spec(spec: &mut Value) {
    for (field, value) in [
        ("restartPolicy", "Always"),
        ("dnsPolicy", "ClusterFirst"),
        ("schedulerName", "default-scheduler"),
        ("serviceAccountName", "default"),
    ] {
        default(spec, field, value);
    }
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "enableServiceLinks", true);
    default(spec, "securityContext", json!({}));
    for list in ["containers", "initContainers"] {
        for c in each(spec, list) {
            default(c, "terminationMessagePath", "/dev/termination-log");
            default(c, "terminationMessagePolicy", "File");
            default(c, "resources", json!({}));
            let latest = c["image"]
                .as_str()
                .is_some_and(|i| i.ends_with(":latest") || !i.rsplit('/').next().unwrap_or("").contains(':'));
            default(c, "imagePullPolicy", if latest { "Always" } else { "IfNotPresent" });
            each(c, "ports").for_each(|p| default(p, "protocol", "TCP"));
        }
    }
}

/// The defaults clients can see. `cluster_ip` hands out the next service address.
pub(crate) fn defaults(kind: &str, o: &mut Value, cluster_ip: &mut dyn FnMut() -> String) {
    match kind {
        "Namespace" => {
            let name = o["metadata"]["name"].clone();
            default(below(below(o, "metadata"), "labels"), "kubernetes.io/metadata.name", name);
            default(below(o, "spec"), "finalizers", json!(["kubernetes"]));
            default(below(o, "status"), "phase", "Active");
        }
        "Pod" => {
            pod_spec(below(o, "spec"));
            let status = below(o, "status");
            default(status, "phase", "Pending");
            default(status, "qosClass", "BestEffort");
        }
        "Deployment" | "DaemonSet" => {
            pod_spec(below(below(below(o, "spec"), "template"), "spec"));
            if kind == "Deployment" {
                default(below(o, "spec"), "replicas", 1);
            }
        }
        "Secret" => {
            default(o, "type", "Opaque");
            let plain = o.as_object_mut().and_then(|m| m.remove("stringData"));
            for (k, v) in plain.as_ref().and_then(Value::as_object).into_iter().flatten() {
                below(o, "data")[k] = base64(v.as_str().unwrap_or("").as_bytes()).into();
            }
        }
        "Service" => service(o, cluster_ip),
        "EndpointSlice" => {
            for p in each(o, "ports") {
                default(p, "protocol", "TCP");
                default(p, "name", "");
            }
        }
        "NetworkPolicy" => {
            let spec = below(o, "spec");
            default(spec, "podSelector", json!({}));
            let egress = spec["egress"].as_array().is_some_and(|e| !e.is_empty());
            default(
                spec,
                "policyTypes",
                if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) },
            );
            for direction in ["ingress", "egress"] {
                for rule in each(spec, direction) {
                    each(rule, "ports").for_each(|p| default(p, "protocol", "TCP"));
                }
            }
        }
        "PriorityClass" => default(o, "preemptionPolicy", "PreemptLowerPriority"),
        "CustomResourceDefinition" => {
            let spec = below(o, "spec");
            default(spec, "conversion", json!({"strategy": "None"}));
            let kind = spec["names"]["kind"].as_str().unwrap_or("").to_owned();
            let names = below(spec, "names");
            default(names, "listKind", format!("{kind}List"));
            default(names, "singular", kind.to_lowercase());
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            default(below(o, "roleRef"), "apiGroup", "rbac.authorization.k8s.io");
            for s in each(o, "subjects") {
                let group = if s["kind"] == "ServiceAccount" { "" } else { "rbac.authorization.k8s.io" };
                if !group.is_empty() {
                    default(s, "apiGroup", group);
                }
            }
        }
        _ => {}
    }
}

fn service(o: &mut Value, cluster_ip: &mut dyn FnMut() -> String) {
    let spec = below(o, "spec");
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    each(spec, "ports").for_each(|p| {
        default(p, "protocol", "TCP");
        let port = p["port"].clone();
        default(p, "targetPort", port);
    });
    if spec["type"] != "ExternalName" {
        default(spec, "internalTrafficPolicy", "Cluster");
        if spec["clusterIP"].as_str().unwrap_or("").is_empty() {
            spec["clusterIP"] = cluster_ip().into();
        }
        let ip = spec["clusterIP"].clone();
        default(spec, "clusterIPs", json!([ip]));
        default(
            spec,
            "ipFamilies",
            json!([if ip.as_str().unwrap_or("").contains(':') { "IPv6" } else { "IPv4" }]),
        );
        default(spec, "ipFamilyPolicy", "SingleStack");
    }
    if matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer")) {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if spec["type"] == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
    default(below(o, "status"), "loadBalancer", json!({}));
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0u32, |n, &b| n << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let six = usize::try_from((n >> (18 - 6 * i)) & 63).unwrap_or(0);
            out.push(if i <= chunk.len() { char::from(LETTERS[six]) } else { '=' });
        }
    }
    out
}

/// What a new object loses before it is stored: status is not the creator's business, except a node's.
pub(crate) fn prepare_create(kind: &str, o: &mut Value) {
    if matches!(
        kind,
        "Namespace"
            | "Pod"
            | "Service"
            | "Deployment"
            | "DaemonSet"
            | "PodDisruptionBudget"
            | "CustomResourceDefinition"
    ) && let Some(m) = o.as_object_mut()
    {
        m.remove("status");
    }
}

/// Takes from the old object what the endpoint may not change. `sub` is "" or "status".
pub(crate) fn prepare_update(kind: &str, has_status: bool, sub: &str, new: &mut Value, old: &Value) {
    let keep = |new: &mut Value, field: &str| {
        let Some(m) = new.as_object_mut() else { return };
        match old.get(field) {
            Some(v) => m.insert(field.to_owned(), v.clone()),
            None => m.remove(field),
        };
    };
    match sub {
        "status" => {
            for field in old.as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect::<Vec<_>>() {
                if !matches!(field.as_str(), "metadata" | "status") {
                    keep(new, &field);
                }
            }
            if kind == "Pod" {
                keep_meta(new, old, "ownerReferences");
            }
            if matches!(kind, "Deployment" | "DaemonSet" | "CustomResourceDefinition") {
                keep_meta(new, old, "labels");
            }
        }
        _ if has_status => keep(new, "status"),
        _ => {}
    }
}

fn keep_meta(new: &mut Value, old: &Value, field: &str) {
    let Some(m) = new.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    match old["metadata"].get(field) {
        Some(v) => m.insert(field.to_owned(), v.clone()),
        None => m.remove(field),
    };
}

/// Findings about a new or changed object.
pub(crate) fn validate(kind: &str, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut out = Vec::new();
    let spec = &new["spec"];
    match kind {
        "Pod" => pod(new, old, &mut out),
        "Service" => {
            if spec["type"] != "ExternalName"
                && spec["clusterIP"] != "None"
                && spec["ports"].as_array().is_none_or(Vec::is_empty)
            {
                out.push(Cause::required("spec.ports", ""));
            }
            for (i, p) in spec["ports"].as_array().into_iter().flatten().enumerate() {
                if !(1..=65_535).contains(&p["port"].as_i64().unwrap_or(0)) {
                    out.push(Cause::invalid(
                        format!("spec.ports[{i}].port"),
                        &p["port"],
                        "must be between 1 and 65535, inclusive",
                    ));
                }
            }
            if let Some(old) = old
                && spec["type"] != "ExternalName"
                && old["spec"]["type"] != "ExternalName"
                && spec["clusterIP"] != old["spec"]["clusterIP"]
            {
                let was = json!([spec["clusterIP"]]);
                out.push(Cause::invalid("spec.clusterIPs[0]", &was, "may not change once set"));
            }
        }
        "Node" => {
            if let Some(old) = old {
                for f in ["podCIDR", "podCIDRs", "providerID"] {
                    let was = &old["spec"][f];
                    if !was.is_null() && was != "" && *was != spec[f] {
                        let detail = format!("node updates may not change {f} except from \"\" to valid");
                        out.push(Cause::forbidden(format!("spec.{f}"), &detail));
                    }
                }
            }
        }
        "EndpointSlice" => {
            let types = ["IPv4", "IPv6", "FQDN"].map(str::to_owned);
            match new["addressType"].as_str() {
                Some("") | None => out.push(Cause::required("addressType", "")),
                Some(t) if !types.iter().any(|x| x == t) => {
                    out.push(Cause::unsupported("addressType", &new["addressType"], &types));
                }
                _ => {}
            }
            if old.is_some_and(|o| o["addressType"] != new["addressType"]) {
                out.push(Cause::invalid("addressType", &new["addressType"], "field is immutable"));
            }
            for (i, e) in new["endpoints"].as_array().into_iter().flatten().enumerate() {
                if e["addresses"].as_array().is_none_or(Vec::is_empty) {
                    out.push(Cause::required(
                        format!("endpoints[{i}].addresses"),
                        "must contain at least 1 address",
                    ));
                }
            }
        }
        "Secret" if old.is_some_and(|o| o["type"] != new["type"]) => {
            out.push(Cause::invalid("type", &new["type"], "field is immutable"));
        }
        "ClusterRoleBinding" | "RoleBinding" if old.is_some_and(|o| o["roleRef"] != new["roleRef"]) => {
            out.push(Cause::invalid("roleRef", &new["roleRef"], "cannot change roleRef"));
        }
        "Lease" if spec["leaseDurationSeconds"].as_i64().is_some_and(|s| s <= 0) => {
            out.push(Cause::invalid(
                "spec.leaseDurationSeconds",
                &spec["leaseDurationSeconds"],
                "must be greater than 0",
            ));
        }
        "Deployment" | "DaemonSet" => {
            if old.is_some_and(|o| o["spec"]["selector"] != spec["selector"]) {
                out.push(Cause::invalid("spec.selector", &spec["selector"], "field is immutable"));
            }
            let labels = &spec["template"]["metadata"]["labels"];
            for (k, v) in spec["selector"]["matchLabels"].as_object().into_iter().flatten() {
                if labels[k] != *v {
                    out.push(Cause::invalid(
                        "spec.template.metadata.labels",
                        labels,
                        "`selector` does not match template `labels`",
                    ));
                }
            }
        }
        _ => {}
    }
    out
}

fn pod(new: &Value, old: Option<&Value>, out: &mut Vec<Cause>) {
    let spec = &new["spec"];
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        out.push(Cause::required("spec.containers", ""));
    }
    for (i, c) in spec["containers"].as_array().into_iter().flatten().enumerate() {
        for f in ["name", "image"] {
            if c[f].as_str().unwrap_or("").is_empty() {
                out.push(Cause::required(format!("spec.containers[{i}].{f}"), ""));
            }
        }
    }
    let Some(old) = old else { return };
    let fixed = |o: &Value| {
        let mut s = o["spec"].clone();
        if let Some(m) = s.as_object_mut() {
            for f in
                ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "schedulingGates"]
            {
                m.remove(f);
            }
        }
        for list in ["containers", "initContainers"] {
            each(&mut s, list).for_each(|c| {
                c.as_object_mut().map(|c| c.remove("image"));
            });
        }
        s
    };
    if fixed(new) != fixed(old) {
        out.push(Cause::forbidden("spec", "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_fall_away_and_wrong_types_are_refused() {
        let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i", "frob": 1,
            "resources": {"requests": {"cpu": 1}}}]}, "nonsense": true});
        let v = typed("Pod", pod).unwrap();
        assert!(v.get("nonsense").is_none() && v["spec"]["containers"][0].get("frob").is_none());
        assert_eq!(v["spec"]["containers"][0]["resources"]["requests"]["cpu"], "1");
        let e = typed("Pod", json!({"metadata": {"name": 1}})).unwrap_err();
        assert_eq!((e.code, e.reason.as_str()), (400, "BadRequest"));
        assert!(e.message.starts_with("Pod in version \"v1\" cannot be handled as a Pod: "), "{}", e.message);
    }

    #[test]
    fn the_status_endpoint_of_a_pod_changes_annotations_but_not_the_spec() {
        let old =
            json!({"metadata": {"name": "a", "ownerReferences": [{"uid": "1"}]}, "spec": {"nodeName": "n"}});
        let mut new = json!({"metadata": {"name": "a", "annotations": {"k": "v"}}, "spec": {}, "status": {"podIP": "1"}});
        prepare_update("Pod", true, "status", &mut new, &old);
        assert_eq!(new["metadata"]["annotations"]["k"], "v");
        assert_eq!((&new["spec"]["nodeName"], &new["status"]["podIP"]), (&json!("n"), &json!("1")));
        assert_eq!(new["metadata"]["ownerReferences"][0]["uid"], "1");
    }

    #[test]
    fn secrets_are_encoded() {
        assert_eq!(
            [base64(b""), base64(b"a"), base64(b"ab"), base64(b"abc"), base64(b"abcd")],
            ["", "YQ==", "YWI=", "YWJj", "YWJjZA=="]
        );
    }
}
