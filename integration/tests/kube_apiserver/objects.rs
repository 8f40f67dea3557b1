//! Create, update, delete; who may; refusals.

use brindle_integration::kube::{Access, ApiServer, Options, Refusal, Rule};
use serde_json::{Value, json};

use super::raw::{Raw, config_map, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

#[test]
fn an_object_lives_from_create_to_delete() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let a = c.post(MAPS, &config_map("a", "1"));
    assert_eq!(a.code, 201);
    assert_eq!((&a.body["kind"], &a.body["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    let meta = &a.body["metadata"];
    assert_eq!(meta["namespace"], "default");
    assert!(
        meta["uid"].as_str().unwrap().len() == 36
            && meta["creationTimestamp"].as_str().unwrap().ends_with('Z')
    );
    let first: u64 = meta["resourceVersion"].as_str().unwrap().parse().unwrap();
    let again = c.post(MAPS, &config_map("a", "1"));
    assert_eq!(again.failure(), (409, "AlreadyExists", "configmaps \"a\" already exists"));
    assert_eq!(again.body["details"], json!({"name": "a", "kind": "configmaps"}));
    // A write of the same is no write.
    let same = c.put(&format!("{MAPS}/a"), &a.body).ok();
    assert_eq!(same["metadata"]["resourceVersion"], first.to_string());
    let mut new = a.body.clone();
    new["data"]["k"] = "2".into();
    let b = c.put(&format!("{MAPS}/a"), &new).ok();
    assert!(b["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > first);
    let stale = c.put(&format!("{MAPS}/a"), &new);
    assert_eq!(
        stale.failure(),
        (
            409,
            "Conflict",
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
        )
    );
    // Without a resource version a built-in object is overwritten.
    new["metadata"] = json!({"name": "a"});
    assert_eq!(c.put(&format!("{MAPS}/a"), &new).code, 200);
    let gone = c.delete(&format!("{MAPS}/a"), &Value::Null).ok();
    assert_eq!((&gone["status"], &gone["details"]["name"]), (&json!("Success"), &json!("a")));
    let missing = c.get(&format!("{MAPS}/a"));
    assert_eq!(missing.failure(), (404, "NotFound", "configmaps \"a\" not found"));
    assert_eq!(missing.body["details"], json!({"name": "a", "kind": "configmaps"}));
    assert_eq!(c.put(&format!("{MAPS}/a"), &config_map("a", "1")).code, 404);
}

#[test]
fn preconditions_of_deletion_hold() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let a = c.post(MAPS, &config_map("a", "1")).ok();
    let path = format!("{MAPS}/a");
    let (code, reason, text) = {
        let r = c.delete(&path, &json!({"preconditions": {"resourceVersion": "1"}}));
        let f = r.failure();
        (f.0, f.1.to_owned(), f.2.to_owned())
    };
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    assert!(
        text.contains(
            "the ResourceVersion in the precondition (1) does not match the ResourceVersion in record ("
        ),
        "{text}"
    );
    let r = c.delete(&path, &json!({"preconditions": {"uid": "x"}}));
    assert!(r.failure().2.contains("The object might have been deleted and then recreated"));
    let right = json!({"preconditions": {"resourceVersion": a["metadata"]["resourceVersion"], "uid": a["metadata"]["uid"]}});
    c.delete(&path, &right).ok();
}

#[test]
fn names_and_bodies_are_checked() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let a = c.post(MAPS, &config_map("Wrong_Name", "1"));
    let (code, reason, text) = a.failure();
    assert_eq!((code, reason), (422, "Invalid"));
    assert!(text.starts_with("ConfigMap \"Wrong_Name\" is invalid: metadata.name: Invalid value: \"Wrong_Name\": a lowercase RFC 1123 subdomain"), "{text}");
    assert_eq!(a.body["details"]["causes"][0]["field"], "metadata.name");
    assert_eq!(a.body["details"]["causes"][0]["reason"], "FieldValueInvalid");
    let generated = c.post(MAPS, &json!({"metadata": {"generateName": "x-"}})).ok();
    assert!(generated["metadata"]["name"].as_str().unwrap().starts_with("x-"));
    assert_eq!(
        c.post(MAPS, &json!({"metadata": {}})).failure().2,
        "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required"
    );
    let r = c.post("/api/v1/namespaces/none/configmaps", &config_map("a", "1"));
    assert_eq!(r.failure(), (404, "NotFound", "namespaces \"none\" not found"));
    let mut other = config_map("a", "1");
    other["metadata"]["namespace"] = "kube-system".into();
    assert_eq!(
        c.post(MAPS, &other).failure(),
        (
            400,
            "BadRequest",
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    );
    let mut wrong = config_map("a", "1");
    wrong["apiVersion"] = "v2".into();
    assert_eq!(
        c.post(MAPS, &wrong).failure().2,
        "the API version in the data (v2) does not match the expected API version (v1)"
    );
    assert_eq!(
        c.call("POST", MAPS, &[("content-type", "application/json")], b"{nonsense".to_vec()).code,
        400
    );
    let r = c.call("POST", MAPS, &[("content-type", "text/plain")], b"x".to_vec());
    assert_eq!((r.code, r.failure().1), (415, "UnsupportedMediaType"));
    let mut versioned = config_map("a", "1");
    versioned["metadata"]["resourceVersion"] = "1".into();
    assert_eq!(
        c.post(MAPS, &versioned).failure(),
        (500, "", "resourceVersion should not be set on objects to be created")
    );
    c.post(MAPS, &config_map("a", "1")).ok();
    assert_eq!(
        c.put(&format!("{MAPS}/a"), &config_map("b", "1")).failure().2,
        "the name of the object (b) does not match the name on the URL (a)"
    );
    assert_eq!(c.get("/api/v1/frobs").body, json!("404 page not found\n"));
    assert_eq!(c.get("/apis/none.org/v1/frobs").code, 404);
    assert_eq!(c.call("POST", "/version", &[], Vec::new()).failure().1, "MethodNotAllowed");
    // Unknown fields of built-in kinds fall away.
    let mut odd = config_map("odd", "1");
    odd["frob"] = 1.into();
    assert!(c.post(MAPS, &odd).ok().get("frob").is_none());
}

#[test]
fn large_objects_are_refused() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let r = c.post(MAPS, &config_map("a", &"x".repeat(1_600_000)));
    assert_eq!(r.failure(), (500, "", "etcdserver: request is too large"));
    let r = c.post(MAPS, &config_map("a", &"x".repeat(3_200_000)));
    assert_eq!(r.failure(), (413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728"));
}

#[test]
fn tokens_and_rules_decide() {
    let s = ApiServer::new();
    s.add_token("t", "x", Access::Rules(vec![Rule::new(&["get"], "", &["pods"])]));
    let c = Raw::with(&s, "t");
    let r = c.get("/api/v1/nodes");
    assert_eq!(
        r.failure(),
        (
            403,
            "Forbidden",
            r#"nodes is forbidden: User "x" cannot list resource "nodes" in API group "" at the cluster scope"#
        )
    );
    assert_eq!(r.body["details"], json!({"kind": "nodes"}));
    assert_eq!(c.get(&format!("{PODS}/a")).code, 404);
    assert_eq!(
        c.patch(&format!("{PODS}/a/status"), "application/merge-patch+json", &json!({})).failure().2,
        r#"pods "a" is forbidden: User "x" cannot patch resource "pods/status" in API group "" in the namespace "default""#
    );
    assert_eq!(
        Raw::with(&s, "unknown").get("/api/v1/nodes").failure(),
        (401, "Unauthorized", "Unauthorized")
    );
    let anonymous = Raw { server: &s, token: None };
    assert!(anonymous.get("/api/v1/nodes").failure().2.contains("User \"system:anonymous\""));
    assert_eq!(anonymous.get("/livez").body, json!("ok"));
    assert_eq!(
        anonymous.get("/api").failure().2,
        "forbidden: User \"system:anonymous\" cannot get path \"/api\""
    );
    assert_eq!(c.get("/api").code, 200);
    let strict = ApiServer::start(Options { anonymous: false, ..Options::default() });
    assert_eq!(Raw { server: &strict, token: None }.get("/version").code, 401);
    let calls: Vec<_> = s
        .calls()
        .into_keys()
        .filter(|r| r.user == "x")
        .map(|r| (r.verb, r.resource, r.namespaced, r.allowed))
        .collect();
    assert!(calls.contains(&("list".into(), "nodes".into(), false, false)));
    assert!(calls.contains(&("get".into(), "pods".into(), true, true)));
    assert!(calls.contains(&("patch".into(), "pods/status".into(), true, false)));
}

#[test]
fn stored_roles_count_for_service_accounts() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let token = c
        .post(
            "/api/v1/namespaces/kube-system/serviceaccounts/default/token",
            &json!({"spec": {"audiences": []}}),
        )
        .ok()["status"]["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let sa = Raw::with(&s, &token);
    assert!(
        sa.get("/api/v1/nodes")
            .failure()
            .2
            .contains("User \"system:serviceaccount:kube-system:default\" cannot list")
    );
    s.create(
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "r"},
        "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]}),
    )
    .unwrap();
    s.create(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "b"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "kube-system"}]})).unwrap();
    assert_eq!(sa.get("/api/v1/nodes").code, 200);
    s.revoke_token(&token);
    assert_eq!(sa.get("/api/v1/nodes").code, 401);
}

#[test]
fn pods_end_with_grace_and_finalizers_hold() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    c.post(PODS, &pod("a", "n1")).ok();
    let ending = c.delete(&format!("{PODS}/a"), &Value::Null).ok();
    assert_eq!(ending["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(ending["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(c.get(&format!("{PODS}/a")).code, 200);
    c.delete(&format!("{PODS}/a"), &json!({"gracePeriodSeconds": 0})).ok();
    assert_eq!(c.get(&format!("{PODS}/a")).code, 404);
    // Never scheduled: gone at once.
    c.post(PODS, &pod("b", "")).ok();
    c.delete(&format!("{PODS}/b"), &Value::Null).ok();
    assert_eq!(c.get(&format!("{PODS}/b")).code, 404);
    let mut held = config_map("held", "1");
    held["metadata"]["finalizers"] = json!(["x.org/f"]);
    c.post(MAPS, &held).ok();
    let path = format!("{MAPS}/held");
    assert!(c.delete(&path, &Value::Null).ok()["metadata"]["deletionTimestamp"].is_string());
    let add = c.patch(
        &path,
        "application/merge-patch+json",
        &json!({"metadata": {"finalizers": ["x.org/f", "x.org/g"]}}),
    );
    assert!(
        add.failure().2.contains("no new finalizers can be added if the object is being deleted"),
        "{}",
        add.body
    );
    c.patch(&path, "application/merge-patch+json", &json!({"metadata": {"finalizers": null}})).ok();
    assert_eq!(c.get(&path).code, 404);
}

#[test]
fn what_an_object_owns_goes_with_it_and_so_does_a_namespace() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let owner = c.post(MAPS, &config_map("owner", "1")).ok();
    let mut owned = config_map("owned", "1");
    owned["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}]);
    c.post(MAPS, &owned).ok();
    c.delete(&format!("{MAPS}/owner"), &Value::Null).ok();
    assert_eq!(c.get(&format!("{MAPS}/owned")).code, 404);
    c.post("/api/v1/namespaces", &json!({"metadata": {"name": "team"}})).ok();
    assert_eq!(
        c.get("/api/v1/namespaces/team").ok()["metadata"]["labels"]["kubernetes.io/metadata.name"],
        "team"
    );
    assert_eq!(c.get("/api/v1/namespaces/team/serviceaccounts/default").code, 200);
    c.post("/api/v1/namespaces/team/pods", &pod("p", "n1")).ok();
    let ending = c.delete("/api/v1/namespaces/team", &Value::Null).ok();
    assert_eq!(ending["status"]["phase"], "Terminating");
    let r = c.post("/api/v1/namespaces/team/configmaps", &config_map("a", "1"));
    assert_eq!((r.code, r.failure().1), (403, "Forbidden"));
    assert_eq!(r.body["details"]["causes"][0]["reason"], "NamespaceTerminating");
    // The pod's kubelet ends it, and then the namespace is gone.
    c.delete("/api/v1/namespaces/team/pods/p", &json!({"gracePeriodSeconds": 0})).ok();
    assert_eq!(c.get("/api/v1/namespaces/team").code, 404);
}

#[test]
fn a_collection_is_deleted_by_selector() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    for (name, label) in [("a", "x"), ("b", "x"), ("c", "y")] {
        let mut m = config_map(name, "1");
        m["metadata"]["labels"] = json!({"l": label});
        c.post(MAPS, &m).ok();
    }
    let gone = c.call("DELETE", &format!("{MAPS}?labelSelector=l%3Dx"), &[], Vec::new()).ok();
    assert_eq!(gone["items"].as_array().unwrap().len(), 2);
    assert_eq!(c.get(&format!("{MAPS}/c")).code, 200);
    assert_eq!(c.get(&format!("{MAPS}/a")).code, 404);
}

#[test]
fn services_get_addresses_that_stay() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    let path = "/api/v1/namespaces/default/services";
    let a = c.post(path, &json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}})).ok();
    let ip = a["spec"]["clusterIP"].clone();
    assert!(ip.as_str().unwrap().starts_with("10.96."));
    assert_eq!(a["spec"]["ports"][0], json!({"port": 80, "protocol": "TCP", "targetPort": 80}));
    let kept = c
        .put(&format!("{path}/a"), &json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 81}]}}))
        .ok();
    assert_eq!(kept["spec"]["clusterIP"], ip);
    let r = c.patch(
        &format!("{path}/a"),
        "application/merge-patch+json",
        &json!({"spec": {"clusterIP": "10.96.9.9"}}),
    );
    assert!(r.failure().2.contains("may not change once set"));
}

#[test]
fn troubles_on_demand() {
    let s = ApiServer::new();
    let c = Raw::admin(&s);
    s.refuse(Refusal {
        verb: "list".into(),
        resource: "nodes".into(),
        code: 429,
        retry_after: Some(3),
        times: 1,
    });
    let r = c.get("/api/v1/nodes");
    assert_eq!(
        (r.code, r.failure().1, r.headers["retry-after"].to_str().unwrap()),
        (429, "TooManyRequests", "3")
    );
    assert_eq!(c.get("/api/v1/nodes").code, 200);
    s.read_only(true);
    assert_eq!(c.post(MAPS, &config_map("a", "1")).failure().2, "etcdserver: mvcc: database space exceeded");
    assert_eq!(c.get(MAPS).code, 200);
    s.read_only(false);
    c.post(MAPS, &config_map("a", "1")).ok();
    s.stop();
    assert!(std::net::TcpStream::connect(s.address()).is_err());
    s.resume();
    assert_eq!(c.get(&format!("{MAPS}/a")).ok()["data"]["k"], "1");
}
