//! The four patches over HTTP.

use brindle_integration::kube::ApiServer;
use serde_json::json;

use super::{
    custom::{POOLS, definition, pool},
    raw::{Raw, config_map},
};

const MAP: &str = "/api/v1/namespaces/default/configmaps/a";
const APPLY: &str = "application/apply-patch+yaml";

#[test]
fn json_merge_and_strategic_patches() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let a = c.post("/api/v1/namespaces/default/configmaps", &config_map("a", "1")).ok();
    let test = json!([{"op": "test", "path": "/data/k", "value": "1"}, {"op": "replace", "path": "/data/k", "value": "2"}]);
    assert_eq!(c.patch(MAP, "application/json-patch+json", &test).ok()["data"]["k"], "2");
    let r = c.patch(MAP, "application/json-patch+json", &test);
    assert_eq!(
        r.failure(),
        (422, "Invalid", "the server rejected our request due to an error in our request")
    );
    let stale =
        json!({"metadata": {"resourceVersion": a["metadata"]["resourceVersion"]}, "data": {"k": "3"}});
    assert_eq!(c.patch(MAP, "application/merge-patch+json", &stale).failure().1, "Conflict");
    assert_eq!(
        c.patch(MAP, "application/merge-patch+json", &json!({"data": {"k": null, "l": "1"}})).ok()["data"],
        json!({"l": "1"})
    );
    assert_eq!(c.patch(&format!("{MAP}x"), "application/merge-patch+json", &json!({})).code, 404);
    assert_eq!(c.patch(MAP, "text/plain", &json!({})).code, 415);
    s.create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}})).unwrap();
    let patch = json!({"status": {"conditions": [{"type": "NetworkUnavailable", "status": "False", "reason": "RouteCreated"}]}});
    let n = c.patch("/api/v1/nodes/n/status", "application/strategic-merge-patch+json", &patch).ok();
    assert_eq!(n["status"]["conditions"].as_array().unwrap().len(), 2);
    let patch = json!({"metadata": {"annotations": {"projectcalico.org/IPv4Address": "10.0.0.1/24"}}});
    let n = c.patch("/api/v1/nodes/n/status", "application/strategic-merge-patch+json", &patch).ok();
    assert_eq!(n["metadata"]["annotations"]["projectcalico.org/IPv4Address"], "10.0.0.1/24");
}

#[test]
fn apply_creates_merges_and_removes_what_is_no_longer_applied() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let body = |data: serde_json::Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
    let r = c.patch(MAP, APPLY, &body(json!({})));
    assert_eq!(
        r.failure(),
        (
            422,
            "Invalid",
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
        )
    );
    let by = |m: &str| format!("{MAP}?fieldManager={m}");
    assert_eq!(c.patch(&by("one"), APPLY, &body(json!({"a": "1", "b": "1"}))).code, 201);
    let two = c.patch(&by("two"), APPLY, &body(json!({"c": "2"}))).ok();
    assert_eq!(two["data"], json!({"a": "1", "b": "1", "c": "2"}));
    let r = c.patch(&by("two"), APPLY, &body(json!({"a": "2", "c": "2"})));
    assert_eq!(
        r.failure(),
        (409, "Conflict", "Apply failed with 1 conflict: conflict with \"one\": .data.a")
    );
    assert_eq!(
        r.body["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".data.a"}])
    );
    let forced =
        c.patch(&format!("{}&force=true", by("two")), APPLY, &body(json!({"a": "2", "c": "2"}))).ok();
    assert_eq!(forced["data"], json!({"a": "2", "b": "1", "c": "2"}));
    // One no longer applies b, and no longer owns a.
    let less = c.patch(&by("one"), APPLY, &body(json!({}))).ok();
    assert_eq!(less["data"], json!({"a": "2", "c": "2"}));
    // An update by somebody takes the field over.
    c.patch(
        &format!("{MAP}?fieldManager=three"),
        "application/merge-patch+json",
        &json!({"data": {"c": "3"}}),
    )
    .ok();
    let r = c.patch(&by("two"), APPLY, &body(json!({"a": "2", "c": "2"})));
    assert!(
        r.failure().2.starts_with("Apply failed with 1 conflict: conflict with \"three\" using v1 at "),
        "{}",
        r.body
    );
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  c: \"3\"\n";
    let y = c.call("PATCH", &by("two"), &[("content-type", APPLY)], yaml.as_bytes().to_vec()).ok();
    assert_eq!(y["data"], json!({"c": "3"}));
}

#[test]
fn applied_lists_merge_by_their_keys_in_custom_resources() {
    let s = ApiServer::new();
    s.create(definition()).unwrap();
    let c = Raw::admin(&s);
    let path = |m: &str| format!("{POOLS}/a?fieldManager={m}");
    let mut p = pool("a");
    p["spec"]["list"] = json!([{"name": "x", "n": 1}]);
    c.patch(&path("one"), APPLY, &p).ok();
    let other = json!({"apiVersion": "test.example.org/v1", "kind": "Pool", "metadata": {"name": "a"}, "spec": {"cidr": "10.0.0.0/8", "list": [{"name": "y", "n": 2}]}});
    let both = c.patch(&path("two"), APPLY, &other).ok();
    assert_eq!(both["spec"]["list"], json!([{"name": "x", "n": 1}, {"name": "y", "n": 2}]));
    p["spec"]["list"] = json!([]);
    let less = c.patch(&path("one"), APPLY, &p).ok();
    assert_eq!(less["spec"]["list"], json!([{"name": "y", "n": 2}]));
    let status = json!({"apiVersion": "test.example.org/v1", "kind": "Pool", "metadata": {"name": "a"}, "status": {"phase": "x"}});
    let st = c.patch(&format!("{POOLS}/a/status?fieldManager=three"), APPLY, &status).ok();
    assert_eq!((&st["status"]["phase"], &st["spec"]["cidr"]), (&json!("x"), &json!("10.0.0.0/8")));
}
