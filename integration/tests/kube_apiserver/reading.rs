//! LIST: pages, selectors, resource versions; discovery; media types.

use brindle_integration::kube::ApiServer;
use serde_json::{Value, json};

use super::raw::{Raw, config_map, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect()
}

#[test]
fn pages_are_of_one_resource_version() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    for n in 0..5 {
        c.post(MAPS, &config_map(&format!("m{n}"), "1")).ok();
    }
    let first = c.get(&format!("{MAPS}?limit=3")).ok();
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"]),
        (vec!["kube-root-ca.crt", "m0", "m1"], &json!(3))
    );
    assert_eq!(first["kind"], "ConfigMapList");
    assert!(first["items"][0].get("kind").is_none(), "items of built-in lists carry no kind");
    c.delete(&format!("{MAPS}/m3"), &Value::Null).ok();
    c.post(MAPS, &config_map("m9", "1")).ok();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = c.get(&format!("{MAPS}?limit=3&continue={token}")).ok();
    assert_eq!(names(&second), ["m2", "m3", "m4"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert!(second["metadata"].get("continue").is_none());
    s.compact();
    let expired = c.get(&format!("{MAPS}?limit=3&continue={token}"));
    assert_eq!((expired.code, expired.failure().1), (410, "Expired"));
    assert!(expired.failure().2.starts_with("The provided continue parameter is too old"));
    let rest = expired.body["metadata"]["continue"].as_str().unwrap();
    assert_eq!(names(&c.get(&format!("{MAPS}?limit=3&continue={rest}")).ok()), ["m2", "m4", "m9"]);
    assert_eq!(c.get(&format!("{MAPS}?continue=zz")).code, 400);
}

#[test]
fn selectors_select() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    for (name, node) in [("a", "n1"), ("b", "n2"), ("d", "n1")] {
        c.post("/api/v1/namespaces/default/pods", &pod(name, node)).ok();
    }
    let list = |q: &str| c.get(&format!("/api/v1/pods?{q}"));
    assert_eq!(names(&list("fieldSelector=spec.nodeName%3Dn1").ok()), ["a", "d"]);
    assert_eq!(names(&list("fieldSelector=spec.nodeName%3Dn1,metadata.name!%3Da").ok()), ["d"]);
    assert_eq!(names(&list("labelSelector=app+in+(a,b)").ok()), ["a", "b"]);
    assert_eq!(
        names(&list("fieldSelector=status.phase%3DPending&labelSelector=app+notin+(a)").ok()),
        ["b", "d"]
    );
    assert_eq!(
        list("fieldSelector=spec.frob%3Dn1").failure(),
        (400, "BadRequest", "field label not supported: spec.frob")
    );
    assert_eq!(
        c.get(&format!("{MAPS}?fieldSelector=data.k%3Dx")).failure(),
        (
            400,
            "BadRequest",
            "\"data.k\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        )
    );
    assert_eq!(list("labelSelector=app+in+a").failure().1, "BadRequest");
    assert_eq!(names(&c.get("/api/v1/namespaces?fieldSelector=metadata.name%3Ddefault").ok()), ["default"]);
}

#[test]
fn resource_versions_of_lists() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let a = c.post(MAPS, &config_map("a", "1")).ok();
    let rv = a["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    c.post(MAPS, &config_map("b", "1")).ok();
    assert_eq!(
        names(&c.get(&format!("{MAPS}?resourceVersion={rv}&resourceVersionMatch=Exact")).ok()),
        ["a", "kube-root-ca.crt"]
    );
    assert_eq!(
        names(&c.get(&format!("{MAPS}?resourceVersion={rv}&resourceVersionMatch=NotOlderThan")).ok()).len(),
        3
    );
    assert_eq!(names(&c.get(&format!("{MAPS}?resourceVersion=0")).ok()).len(), 3);
    let r = c.get(&format!("{MAPS}?resourceVersion=99999999"));
    assert_eq!((r.code, r.failure().1), (504, "Timeout"));
    assert_eq!(r.body["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    let r = c.get(&format!("{MAPS}?resourceVersionMatch=Exact"));
    assert_eq!(
        r.failure().2,
        "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
    );
    assert_eq!(c.get(&format!("{MAPS}?resourceVersion=x")).code, 400);
    s.compact();
    assert_eq!(c.get(&format!("{MAPS}?resourceVersion={rv}&resourceVersionMatch=Exact")).code, 410);
}

#[test]
fn discovery_and_metadata_only() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    assert_eq!(c.get("/version").ok()["minor"], "36");
    assert_eq!(c.get("/api").ok()["versions"], json!(["v1"]));
    let groups = c.get("/apis").ok();
    let groups: Vec<_> =
        groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap().to_owned()).collect();
    assert!(groups.contains(&"networking.k8s.io".to_owned()), "{groups:?}");
    let accept = [("accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")];
    let list = c.call("GET", "/api/v1/namespaces", &accept, Vec::new()).ok();
    assert_eq!(
        (&list["kind"], &list["items"][0]["kind"]),
        (&json!("PartialObjectMetadataList"), &json!("PartialObjectMetadata"))
    );
    assert!(list["items"][0].get("spec").is_none());
    assert_eq!(c.call("GET", "/api/v1/namespaces", &[("accept", "text/html")], Vec::new()).code, 406);
}

#[test]
fn a_populated_cluster_lists_whole() {
    let s = ApiServer::new();
    s.populate(10, 500, 50);
    let c = Raw::admin(&s);
    assert_eq!(c.get("/api/v1/nodes").ok()["items"].as_array().unwrap().len(), 10);
    assert_eq!(
        c.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-0003").ok()["items"].as_array().unwrap().len(),
        50
    );
    assert_eq!(
        c.get("/apis/networking.k8s.io/v1/networkpolicies").ok()["items"].as_array().unwrap().len(),
        50
    );
    let (ns, name) = ApiServer::populated_pod(7, 500);
    let pod = c.get(&format!("/api/v1/namespaces/{ns}/pods/{name}")).ok();
    assert_eq!(pod["spec"]["nodeName"], "node-0007");
    // What the generator makes the server's own decoder leaves as it is.
    let again = c.put(&format!("/api/v1/namespaces/{ns}/pods/{name}"), &pod).ok();
    assert_eq!(again["spec"]["containers"][0]["image"], pod["spec"]["containers"][0]["image"]);
}
