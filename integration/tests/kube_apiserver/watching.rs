//! WATCH: events, resume, bookmarks, initial events, 410, selections left.

use brindle_integration::kube::ApiServer;
use serde_json::{Value, json};

use super::raw::{Raw, config_map, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// (type, name) of the events; bookmarks by their type alone.
fn brief(events: &[Value]) -> Vec<(&str, &str)> {
    events
        .iter()
        .map(|e| (e["type"].as_str().unwrap(), e["object"]["metadata"]["name"].as_str().unwrap_or("")))
        .collect()
}

#[test]
fn changes_after_a_resource_version_arrive_in_order() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let a = c.post(MAPS, &config_map("a", "1")).ok();
    let rv = a["metadata"]["resourceVersion"].as_str().unwrap();
    c.post(MAPS, &config_map("b", "1")).ok();
    c.patch(&format!("{MAPS}/a"), "application/merge-patch+json", &json!({"data": {"k": "2"}})).ok();
    c.delete(&format!("{MAPS}/b"), &Value::Null).ok();
    let events = c.events(&format!("{MAPS}?watch=1&resourceVersion={rv}&timeoutSeconds=1"));
    assert_eq!(brief(&events), [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]);
    assert_eq!(events[1]["object"]["kind"], "ConfigMap");
    let version = |i: usize| {
        events[i]["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap()
    };
    assert!(version(0) < version(1) && version(1) < version(2), "a deletion has its own resource version");
    let events = c.events(&format!("{MAPS}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true"));
    assert_eq!(brief(&events), [("ADDED", "a"), ("ADDED", "kube-root-ca.crt"), ("BOOKMARK", "")]);
    assert_eq!(events[2]["object"]["metadata"]["resourceVersion"], s.resource_version().to_string());
}

#[test]
fn initial_events_end_with_an_annotated_bookmark() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let q = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let events = c.events(&format!("{MAPS}?{q}"));
    assert_eq!(brief(&events)[..2], [("ADDED", "kube-root-ca.crt"), ("BOOKMARK", "")]);
    assert_eq!(events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(events[1]["object"]["kind"], "ConfigMap");
    let r = c.get(&format!("{MAPS}?watch=1&sendInitialEvents=true"));
    assert_eq!(
        r.failure(),
        (
            422,
            "Invalid",
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        )
    );
    assert_eq!(c.get(&format!("{MAPS}?sendInitialEvents=true")).code, 422);
}

#[test]
fn too_old_a_version_is_410_in_the_stream() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let a = c.post(MAPS, &config_map("a", "1")).ok();
    let rv = a["metadata"]["resourceVersion"].as_str().unwrap();
    c.post(MAPS, &config_map("b", "1")).ok();
    s.compact();
    let events = c.events(&format!("{MAPS}?watch=1&resourceVersion={rv}&timeoutSeconds=1"));
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["type"], "ERROR");
    let status = &events[0]["object"];
    assert_eq!(
        (&status["kind"], &status["code"], &status["reason"]),
        (&json!("Status"), &json!(410), &json!("Expired"))
    );
    assert!(status["message"].as_str().unwrap().starts_with(&format!("too old resource version: {rv} (")));
}

#[test]
fn leaving_the_selection_is_a_deletion() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let pods = "/api/v1/namespaces/default/pods";
    let a = c.post(pods, &pod("a", "n1")).ok();
    let rv = a["metadata"]["resourceVersion"].as_str().unwrap();
    c.post(pods, &pod("b", "n2")).ok();
    let set = |v: Value| {
        c.patch(
            &format!("{pods}/a"),
            "application/merge-patch+json",
            &json!({"metadata": {"labels": {"app": v}}}),
        )
        .ok()
    };
    set("x".into());
    set("y".into());
    set("a".into());
    let events =
        c.events(&format!("{pods}?watch=1&resourceVersion={rv}&labelSelector=app%3Da&timeoutSeconds=1"));
    assert_eq!(brief(&events), [("DELETED", "a"), ("ADDED", "a")]);
    assert_eq!(events[0]["object"]["metadata"]["labels"]["app"], "a", "the state it had in the selection");
    let events = c.events(&format!(
        "/api/v1/pods?watch=1&resourceVersion={rv}&fieldSelector=spec.nodeName%3Dn2&timeoutSeconds=1"
    ));
    assert_eq!(brief(&events), [("ADDED", "b")]);
    assert_eq!(c.get("/api/v1/pods?watch=1&fieldSelector=spec.frob%3Dx").code, 400);
}
