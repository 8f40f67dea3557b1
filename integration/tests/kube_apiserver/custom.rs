//! Custom resources: definitions, pruning, defaults, validation, status, versions.

use brindle_integration::kube::ApiServer;
use serde_json::{Value, json};

use super::raw::Raw;

pub(crate) fn definition() -> Value {
    let text = r#"{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "pools.test.example.org"},
        "spec": {"group": "test.example.org", "scope": "Cluster",
            "names": {"plural": "pools", "singular": "pool", "kind": "Pool", "listKind": "PoolList", "shortNames": ["pl"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "selectableFields": [{"jsonPath": ".spec.node"}],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
                    "spec": {"type": "object", "required": ["cidr"], "properties": {
                        "cidr": {"type": "string"}, "node": {"type": "string"},
                        "mode": {"type": "string", "enum": ["Always", "Never"], "default": "Never"},
                        "size": {"type": "integer", "minimum": 20, "maximum": 32},
                        "port": {"x-kubernetes-int-or-string": true},
                        "list": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}},
                            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}}},
                    "status": {"type": "object", "properties": {"phase": {"type": "string"}}}}}}},
                {"name": "v1beta1", "served": true, "storage": false,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}}"#;
    serde_json::from_str(text).unwrap()
}

pub(crate) fn pool(name: &str) -> Value {
    json!({"apiVersion": "test.example.org/v1", "kind": "Pool", "metadata": {"name": name}, "spec": {"cidr": "10.0.0.0/8"}})
}

pub(crate) const POOLS: &str = "/apis/test.example.org/v1/pools";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

#[test]
fn a_definition_makes_a_resource_and_its_removal_ends_it() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    assert_eq!(c.get(POOLS).code, 404);
    c.post(CRDS, &definition()).ok();
    let crd = c.get(&format!("{CRDS}/pools.test.example.org")).ok();
    let kinds: Vec<_> = crd["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["type"].clone(), c["status"].clone()))
        .collect();
    assert_eq!(kinds, [(json!("NamesAccepted"), json!("True")), (json!("Established"), json!("True"))]);
    assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
    let resources = c.get("/apis/test.example.org/v1").ok();
    assert_eq!(resources["resources"][0]["name"], "pools");
    assert_eq!(resources["resources"][1]["name"], "pools/status");
    assert_eq!(c.get("/apis/test.example.org").ok()["preferredVersion"]["version"], "v1");
    let p = c.post(POOLS, &pool("a")).ok();
    assert_eq!((&p["spec"]["mode"], &p["metadata"]["generation"]), (&json!("Never"), &json!(1)));
    c.delete(&format!("{CRDS}/pools.test.example.org"), &Value::Null).ok();
    assert_eq!(c.get(POOLS).body, json!("404 page not found\n"));
    assert_eq!(c.get("/apis/test.example.org").code, 404);
}

#[test]
fn wrong_definitions_are_refused() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let mut d = definition();
    d["metadata"]["name"] = "pools.other.org".into();
    let r = c.post(CRDS, &d);
    assert_eq!((r.code, r.failure().1), (422, "Invalid"));
    assert!(r.failure().2.contains("must be spec.names.plural+\".\"+spec.group"));
    let mut d = definition();
    d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["cidr"] =
        json!({});
    assert!(c.post(CRDS, &d).failure().2.contains("must not be empty for specified object fields"));
    let mut d = definition();
    d["spec"]["versions"][1]["storage"] = true.into();
    assert!(c.post(CRDS, &d).failure().2.contains("must have exactly one version marked as storage version"));
}

#[test]
fn custom_resources_are_pruned_validated_and_versioned() {
    let s = ApiServer::new();
    s.create(definition()).unwrap();
    let c = Raw::admin(&s);
    let mut p = pool("a");
    p["spec"]["nonsense"] = 1.into();
    p["status"] = json!({"phase": "early"});
    let a = c.post(POOLS, &p).ok();
    assert!(a["spec"].get("nonsense").is_none() && a.get("status").is_none(), "{a}");
    let mut p = pool("b");
    p["spec"] = json!({"mode": "Some", "size": "x", "list": [{"name": "q"}, {"name": "q"}]});
    let r = c.post(POOLS, &p);
    assert_eq!((r.code, r.failure().1), (422, "Invalid"));
    assert_eq!(
        r.failure().2,
        "Pool.test.example.org \"b\" is invalid: [spec.cidr: Required value, spec.list[1]: Duplicate value: {\"name\":\"q\"}, spec.mode: Unsupported value: \"Some\": supported values: \"Always\", \"Never\", spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\"]"
    );
    assert_eq!(r.body["details"]["kind"], "Pool");
    assert_eq!(r.body["details"]["group"], "test.example.org");
    // PUT wants a resource version.
    let r = c.put(&format!("{POOLS}/a"), &pool("a"));
    assert_eq!(
        r.failure(),
        (
            422,
            "Invalid",
            "pools.test.example.org \"a\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update"
        )
    );
    // The same object in the other version; nothing else is converted.
    let other = c.get("/apis/test.example.org/v1beta1/pools/a").ok();
    assert_eq!((&other["apiVersion"], &other["spec"]), (&json!("test.example.org/v1beta1"), &a["spec"]));
    let no_kind = json!({"metadata": {"name": "x"}});
    assert!(c.post(POOLS, &no_kind).failure().2.starts_with("Object 'Kind' is missing in"));
    let r = c.patch(&format!("{POOLS}/a"), "application/strategic-merge-patch+json", &json!({}));
    assert_eq!(
        r.failure(),
        (
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
        )
    );
}

#[test]
fn status_is_a_world_of_its_own() {
    let s = ApiServer::new();
    s.create(definition()).unwrap();
    let c = Raw::admin(&s);
    let a = c.post(POOLS, &pool("a")).ok();
    let mut new = a.clone();
    new["status"] = json!({"phase": "x"});
    new["spec"]["cidr"] = "11.0.0.0/8".into();
    new["metadata"]["labels"] = json!({"l": "1"});
    let b = c.put(&format!("{POOLS}/a/status"), &new).ok();
    assert_eq!((&b["status"]["phase"], &b["spec"]["cidr"]), (&json!("x"), &json!("10.0.0.0/8")));
    assert!(b["metadata"].get("labels").is_none());
    assert_eq!(b["metadata"]["generation"], 1);
    new["metadata"]["resourceVersion"] = b["metadata"]["resourceVersion"].clone();
    new["status"] = json!({"phase": "y"});
    let d = c.put(&format!("{POOLS}/a"), &new).ok();
    assert_eq!((&d["status"]["phase"], &d["spec"]["cidr"]), (&json!("x"), &json!("11.0.0.0/8")));
    assert_eq!(d["metadata"]["generation"], 2);
    assert_eq!(d["metadata"]["labels"]["l"], "1");
    let pods = "/api/v1/namespaces/default/pods";
    c.post(pods, &super::raw::pod("p", "n")).ok();
    let patch = json!({"metadata": {"annotations": {"cni.projectcalico.org/podIP": "10.0.0.1/32"}}, "spec": {"nodeName": "other"}, "status": {"podIP": "10.0.0.1"}});
    let p = c.patch(&format!("{pods}/p/status"), "application/strategic-merge-patch+json", &patch).ok();
    assert_eq!(p["metadata"]["annotations"]["cni.projectcalico.org/podIP"], "10.0.0.1/32");
    assert_eq!((&p["spec"]["nodeName"], &p["status"]["podIP"]), (&json!("n"), &json!("10.0.0.1")));
    let p = c
        .patch(&format!("{pods}/p"), "application/merge-patch+json", &json!({"status": {"phase": "Failed"}}))
        .ok();
    assert_eq!(p["status"]["phase"], "Pending");
    let r =
        c.patch(&format!("{pods}/p"), "application/merge-patch+json", &json!({"spec": {"nodeName": "m"}}));
    assert!(
        r.failure().2.starts_with(
            "Pod \"p\" is invalid: spec: Forbidden: pod updates may not change fields other than"
        )
    );
}

#[test]
fn selectable_fields_select() {
    let s = ApiServer::new();
    s.create(definition()).unwrap();
    let c = Raw::admin(&s);
    for (name, node) in [("a", "n1"), ("b", "n2")] {
        let mut p = pool(name);
        p["spec"]["node"] = node.into();
        c.post(POOLS, &p).ok();
    }
    let found = c.get(&format!("{POOLS}?fieldSelector=spec.node%3Dn2")).ok();
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
    assert_eq!((&found["kind"], &found["items"][0]["kind"]), (&json!("PoolList"), &json!("Pool")));
    assert_eq!(
        c.get(&format!("{POOLS}?fieldSelector=spec.cidr%3Dx")).failure(),
        (400, "BadRequest", "field label not supported: spec.cidr")
    );
}
