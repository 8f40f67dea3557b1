//! The RBAC manifests against the calls that are made: nothing refused, and nothing granted that nobody needs. Needs root
//! for the agent.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use brindle_integration::{
    cni::Container,
    kube::{
        Access, ApiServer, Rule,
        audit::{self, Right},
    },
    kube_node::{AGENT, KubeNode},
    wait::until_true,
};
use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io/v1";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A server with the manifests as they are shipped.
fn cluster() -> ApiServer {
    let s = ApiServer::new();
    for part in ["deploy/crds", "deploy/base"] {
        let path = repository().join(part);
        let n = s.load(&path).unwrap_or_else(|e| panic!("{e}"));
        assert!(n > 0, "{} has objects", path.display());
    }
    s
}

/// The rules of a ClusterRole in the server.
fn rules(s: &ApiServer, role: &str) -> Vec<Rule> {
    let role = s.get((RBAC, "ClusterRole"), ("", role)).unwrap_or_else(|| panic!("no ClusterRole {role}"));
    Rule::of(&role)
}

fn texts(rights: &std::collections::BTreeSet<Right>) -> Vec<String> {
    rights.iter().map(Right::text).collect()
}

#[test]
fn the_manifests_apply_and_every_definition_is_established() {
    let s = cluster();
    let crds = s.list(("apiextensions.k8s.io/v1", "CustomResourceDefinition"));
    assert!(crds.len() >= 20, "{}", crds.len());
    for c in &crds {
        let conditions = c["status"]["conditions"].as_array().unwrap();
        assert!(
            conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True"),
            "{}",
            c["metadata"]["name"]
        );
    }
    // Applying once more changes nothing.
    let before = s.resource_version();
    s.load(&repository().join("deploy/base")).unwrap();
    assert_eq!(s.resource_version(), before);
}

#[test]
fn what_the_roles_name_exists_and_no_role_is_wild() {
    let s = cluster();
    for role in s.list((RBAC, "ClusterRole")).iter().filter(|r| r["metadata"]["name"] != "cluster-admin") {
        let name = role["metadata"]["name"].as_str().unwrap();
        for right in audit::granted(&Rule::of(role)) {
            assert!(
                ![&right.verb, &right.group, &right.resource].iter().any(|p| *p == "*"),
                "{name}: {}",
                right.text()
            );
        }
    }
    // Every subject and role of a binding is there.
    for b in s.list((RBAC, "ClusterRoleBinding")).iter().chain(&s.list((RBAC, "RoleBinding"))) {
        let (kind, role) = (b["roleRef"]["kind"].as_str().unwrap(), b["roleRef"]["name"].as_str().unwrap());
        let ns = if kind == "Role" { b["metadata"]["namespace"].as_str().unwrap() } else { "" };
        assert!(s.get((RBAC, kind), (ns, role)).is_some(), "{}: {kind} {role}", b["metadata"]["name"]);
        for subject in b["subjects"].as_array().unwrap().iter().filter(|s| s["kind"] == "ServiceAccount") {
            let place = (subject["namespace"].as_str().unwrap(), subject["name"].as_str().unwrap());
            assert!(s.get(("v1", "ServiceAccount"), place).is_some(), "{subject}");
        }
    }
}

#[test]
fn missing_and_idle_rights_are_told_apart() {
    let s = ApiServer::new();
    let role = json!({"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": "r"}, "rules": [
        {"apiGroups": [""], "resources": ["nodes", "nodes/status"], "verbs": ["list", "patch"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": ["l"], "verbs": ["get"]}]});
    s.create(role).unwrap();
    s.add_token("t", "x", Access::All);
    let call = |method: &str, path: &str| {
        let body = if method == "PATCH" { "{}" } else { "" };
        ureq(&s, "t", method, path, body)
    };
    assert_eq!(call("GET", "/api/v1/nodes").0, 200);
    assert_eq!(call("GET", "/api/v1/pods").0, 200);
    assert_eq!(call("PATCH", "/api/v1/nodes/n/status").0, 404);
    assert_eq!(call("GET", "/apis/coordination.k8s.io/v1/namespaces/default/leases/l").0, 404);
    assert_eq!(call("GET", "/version").0, 200);
    let (rules, calls) = (rules(&s, "r"), s.calls());
    assert_eq!(texts(&audit::missing(&rules, &calls, "x")), ["list pods"]);
    assert_eq!(texts(&audit::idle(&rules, &calls, "x")), ["list nodes/status", "patch nodes"]);
    assert_eq!(
        texts(&audit::used(&calls, "x")),
        ["get leases.coordination.k8s.io", "list nodes", "list pods", "patch nodes/status"]
    );
}

/// What the agent's role grants and a node with one pod does not ask for, each with the reason it is there.
const RESERVED: &[(&str, &str)] = &[
    ("get ", "single objects are read again after a conflict, whatever their kind"),
    ("list ", "collections of the native API group, or of parts that are not in use here"),
    ("watch ", "the same"),
    ("create ippools", "the default pool of a new cluster"),
    ("create tiers", "the built-in tiers of a new cluster"),
    ("create clusterinformations", "the identity of a new cluster"),
    ("update clusterinformations", "the identity of a new cluster"),
    ("patch nodes/status", "addresses that changed"),
    ("update caliconodestatuses", "asked for by CalicoNodeStatus"),
    ("create blockaffinities", "the native API group"),
    ("create ipamblocks", "the native API group"),
    ("create ipamhandles", "the native API group"),
    ("update blockaffinities", "a block that is claimed again; the native API group"),
    ("update ipamblocks", "the native API group"),
    ("update ipamhandles", "a handle of two addresses; the native API group"),
    ("delete blockaffinities", "a block that is given back"),
    ("delete ipamblocks", "a block that is given back"),
    ("delete ipamhandles", "the native API group"),
];

#[test]
fn an_agent_with_its_role_is_refused_nothing() {
    let mut node = KubeNode::new("rbac", "n1", "192.0.2.1/24");
    node.register();
    let pool = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "pool"},
        "spec": {"cidr": "10.91.0.0/24", "blockSize": 26, "nodeSelector": "all()"}});
    node.server.create(pool).unwrap();
    node.start_agent(&[]);
    node.wait_for_agent(Duration::from_secs(120));
    let c = Container::new();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i:1"}]}});
    node.server.create(pod).unwrap();
    let added = node.plugin("ADD", &c.id, &c.netns(), "p");
    assert!(added.ok, "{added:?}");
    let p = node.server.get(("v1", "Pod"), ("default", "p")).unwrap();
    assert_eq!(
        p["metadata"]["annotations"]["cni.projectcalico.org/podIP"],
        format!("{}/32", added.address())
    );
    let removed = node.plugin("DEL", &c.id, &c.netns(), "p");
    assert!(removed.ok, "{removed:?}");
    until_true("the address is given back", Duration::from_secs(60), || {
        node.server.list(("crd.projectcalico.org/v1", "IPAMHandle")).is_empty()
    });
    let calls = node.server.calls();
    let refused: Vec<_> = calls.keys().filter(|c| c.user == AGENT && !c.allowed).collect();
    assert!(refused.is_empty(), "add to the role: {refused:#?}");
    let role = rules(&node.server, "brindle-node");
    assert_eq!(texts(&audit::missing(&role, &calls, AGENT)), [""; 0]);
    let used = texts(&audit::used(&calls, AGENT));
    for right in [
        "patch pods/status",
        "watch pods",
        "watch networkpolicies.networking.k8s.io",
        "update ipamblocks.crd.projectcalico.org",
    ] {
        assert!(used.iter().any(|u| u == right), "{right} is not among {used:#?}");
    }
    let idle = texts(&audit::idle(&role, &calls, AGENT));
    let unexplained: Vec<_> =
        idle.iter().filter(|i| !RESERVED.iter().any(|(r, _)| i.starts_with(r))).collect();
    assert!(unexplained.is_empty(), "granted, and nobody asked: {unexplained:#?}");
}

/// One call over a connection of its own; code and body.
fn ureq(s: &ApiServer, token: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    use std::io::{Read, Write};
    let mut c = std::net::TcpStream::connect(s.address()).unwrap();
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    write!(
        c,
        "{method} {path} HTTP/1.0\r\nhost: t\r\nauthorization: Bearer {token}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut text = String::new();
    c.read_to_string(&mut text).unwrap();
    let code = text.split(' ').nth(1).and_then(|c| c.parse().ok()).unwrap();
    let body = text.split_once("\r\n\r\n").map_or("", |(_, b)| b);
    (code, serde_json::from_str(body).unwrap_or_default())
}
