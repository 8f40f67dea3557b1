//! The agent and the Node object of its own node: what it wrote there comes back when the object is made anew, and while it
//! is away the agent says that it is not ready. Needs root.

use std::{fs, process::Command, time::Duration};

use brindle_integration::{
    bins::bin,
    kube_node::KubeNode,
    wait::{until, until_true},
};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(90);
const NODE: (&str, &str) = ("v1", "Node");
const ADDRESS: &str = "projectcalico.org/IPv4Address";
const TUNNEL: &str = "projectcalico.org/IPv4IPIPTunnelAddr";

fn node(tag: &str) -> KubeNode {
    let node = KubeNode::new(tag, "node-a", "10.0.0.1/16");
    node.register();
    let pool = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "pool"},
        "spec": {"cidr": "10.128.0.0/16", "blockSize": 26, "ipipMode": "Always", "nodeSelector": "all()"}});
    node.server.create(pool).unwrap_or_else(|s| panic!("{}", s.message));
    node
}

fn ready(node: &KubeNode) {
    until("the agent is ready", LONG, || match node.probe("--ready") {
        (true, _) => Ok(()),
        (false, text) => Err(format!("{text}\n{}", node.log())),
    });
}

/// Whether somebody in the node's namespace listens for BGP.
fn listens(node: &KubeNode) -> bool {
    let table = fs::read_to_string(format!("/proc/{}/net/tcp", node.pid())).unwrap_or_default();
    table.lines().any(|l| l.contains(":00B3 ") && l.contains(" 0A "))
}

fn annotations(node: &KubeNode) -> [Option<String>; 2] {
    let object = node.server.get(NODE, ("", "node-a")).unwrap_or(Value::Null);
    [ADDRESS, TUNNEL].map(|name| object["metadata"]["annotations"][name].as_str().map(str::to_owned))
}

fn written(node: &KubeNode, before: &[Option<String>; 2]) {
    until("the Node says everything again", LONG, || {
        let now = annotations(node);
        if now == *before { Ok(()) } else { Err(format!("{now:?}\n{}", node.log())) }
    });
}

/// The condition NetworkUnavailable: status and reason.
fn unavailable(node: &KubeNode) -> Option<[String; 2]> {
    let object = node.server.get(NODE, ("", "node-a"))?;
    let all = object["status"]["conditions"].as_array()?;
    let c = all.iter().find(|c| c["type"] == "NetworkUnavailable")?;
    Some(["status", "reason"].map(|f| c[f].as_str().unwrap_or_default().to_owned()))
}

/// A new Node of a cloud: its network is not there until somebody says so.
fn register_in_a_cloud(node: &KubeNode) {
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}, "status": {
        "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"},
            {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}]}});
    node.server.apply(object).unwrap_or_else(|s| panic!("{}", s.message));
}

fn says(node: &KubeNode, status: &str, reason: &str) {
    until(reason, LONG, || match unavailable(node) {
        Some([s, r]) if s == status && r == reason => Ok(()),
        other => Err(format!("{other:?}\n{}", node.log())),
    });
}

#[test]
fn the_cluster_is_told_that_the_nodes_network_is_there() {
    let mut node = node("kthere");
    register_in_a_cloud(&node);
    node.start_agent(&[]);
    says(&node, "False", "BrindleIsUp");
    let conditions =
        node.server.get(NODE, ("", "node-a")).expect("it is there")["status"]["conditions"].clone();
    assert!(
        conditions.as_array().is_some_and(|all| all.iter().any(|c| c["reason"] == "KubeletReady")),
        "{conditions}"
    );
    ready(&node);

    // A new object: whoever made it says so again.
    node.server.delete(NODE, ("", "node-a")).unwrap_or_else(|s| panic!("{}", s.message));
    register_in_a_cloud(&node);
    says(&node, "False", "BrindleIsUp");

    let mut drain = Command::new(bin("brindle-node"));
    let out = drain.args(["drain", "--wait", "0", "--state-dir"]).arg(&node.dir).output();
    assert!(out.expect("the program starts").status.success());
    says(&node, "True", "BrindleIsDown");
    node.stop_agent();
    node.start_agent(&[]);
    says(&node, "False", "BrindleIsUp");
}

#[test]
fn what_the_own_node_loses_is_written_again() {
    let mut node = node("kagain");
    node.start_agent(&[]);
    node.wait_for_agent(LONG);
    ready(&node);
    until_true("the tunnel address is there", LONG, || annotations(&node).iter().all(Option::is_some));
    let before = annotations(&node);
    assert_eq!(before[0].as_deref(), Some("10.0.0.1/16"));
    assert!(listens(&node));

    node.server.delete(NODE, ("", "node-a")).unwrap_or_else(|s| panic!("{}", s.message));
    until("without its Node it is not ready", LONG, || match node.probe("--ready") {
        (false, text) if text.contains("[-] bgp: Node(node-a)") => Ok(()),
        (_, text) => Err(text),
    });
    let (live, text) = node.probe("--live");
    assert!(live, "{text}");
    until_true("nobody is spoken for", LONG, || !listens(&node));

    // As a kubelet registers: a bare one.
    node.register();
    written(&node, &before);
    ready(&node);
    until_true("the speaker listens again", LONG, || listens(&node));

    let bare: Value = [ADDRESS, TUNNEL].into_iter().map(|name| (name.to_owned(), Value::Null)).collect();
    let patch = json!({"metadata": {"annotations": bare}});
    node.server.patch(NODE, ("", "node-a"), "", &patch).unwrap_or_else(|s| panic!("{}", s.message));
    written(&node, &before);
    ready(&node);
}
