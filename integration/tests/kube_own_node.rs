//! The agent and the Node object of its own node: what it wrote there comes back when the object is made anew, and while it
//! is away the agent says that it is not ready. Needs root.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

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

/// A cloud that makes routes says when they are there.
#[test]
fn where_somebody_else_routes_the_condition_is_theirs() {
    let mut node = node("ktheirs");
    register_in_a_cloud(&node);
    node.start_agent(&["--networking", "none"]);
    ready(&node);
    let theirs = Some(["True", "NoRouteCreated"].map(str::to_owned));
    // A ready agent is seen within a second, and what it says is written at once.
    let end = Instant::now() + Duration::from_secs(4);
    until("the time is over", LONG, || {
        assert_eq!(unavailable(&node), theirs, "{}", node.log());
        if Instant::now() > end { Ok(()) } else { Err(String::new()) }
    });
    let mut drain = Command::new(bin("brindle-node"));
    let out = drain.args(["drain", "--wait", "0", "--state-dir"]).arg(&node.dir).output();
    let said = out.expect("the program starts");
    assert!(format!("{said:?}").contains("--networking none"), "{said:?}");
    node.stop_agent();
    assert_eq!(unavailable(&node), theirs);
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

fn pool(node: &KubeNode, name: &str, change: &Value) {
    let kind = ("crd.projectcalico.org/v1", "IPPool");
    node.server
        .patch(kind, ("", name), "", &json!({"spec": change}))
        .unwrap_or_else(|s| panic!("{}", s.message));
}

/// Waits until the Node, the device and the records all name one tunnel address, and it is of this network.
fn tunnel_moves_to(node: &KubeNode, network: &str) -> String {
    let mut found = None;
    until(&format!("the tunnel address is in {network}"), LONG, || {
        let named = annotations(node)[1].clone().unwrap_or_default();
        let all = node.ns.rtnl().addrs(None).map_err(|e| e.to_string())?;
        let on_devices: Vec<String> =
            all.iter().map(|a| a.net.addr().to_string()).filter(|a| a.starts_with("10.12")).collect();
        let handle =
            node.server.get(("crd.projectcalico.org/v1", "IPAMHandle"), ("", "ipip-tunnel-addr-node-a"));
        let blocks = handle.map(|h| h["spec"]["block"].clone()).unwrap_or_default();
        let held: Vec<&str> = blocks.as_object().into_iter().flatten().map(|(b, _)| b.as_str()).collect();
        if named.starts_with(network)
            && on_devices == [named.clone()]
            && held.len() == 1
            && held[0].starts_with(network)
        {
            found = Some(named);
            return Ok(());
        }
        Err(format!("{named}, devices {on_devices:?}, held of {blocks}\n{}", node.log()))
    });
    found.expect("it was found")
}

#[test]
fn the_tunnel_address_follows_the_uses_and_nodes_of_pools() {
    let mut node = node("kuses");
    node.start_agent(&[]);
    ready(&node);
    let first = tunnel_moves_to(&node, "10.128.");

    // There is no other pool yet: what the device has stays taken.
    pool(&node, "pool", &json!({"allowedUses": ["Workload"]}));
    until_true("the agent says why it keeps it", LONG, || {
        node.log().contains(&format!("{first} stays in use: pool pool is not for Tunnel addresses"))
    });
    assert_eq!(tunnel_moves_to(&node, "10.128."), first);

    let two = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "two"},
        "spec": {"cidr": "10.129.0.0/16", "blockSize": 26, "ipipMode": "Always", "allowedUses": ["Tunnel"],
            "nodeSelector": "!has(away)"}});
    node.server.create(two).unwrap_or_else(|s| panic!("{}", s.message));
    tunnel_moves_to(&node, "10.129.");

    pool(&node, "pool", &json!({"allowedUses": ["Workload", "Tunnel"]}));
    let label = json!({"metadata": {"labels": {"away": "1"}}});
    node.server.patch(NODE, ("", "node-a"), "", &label).unwrap_or_else(|s| panic!("{}", s.message));
    tunnel_moves_to(&node, "10.128.");

    // Without IPIP there is none, though the kernel's device cannot be removed.
    for name in ["pool", "two"] {
        pool(&node, name, &json!({"ipipMode": "Never"}));
    }
    until("no tunnel address is left", LONG, || {
        let all = node.ns.rtnl().addrs(None).map_err(|e| e.to_string())?;
        let left = all.iter().any(|a| a.net.addr().to_string().starts_with("10.12"));
        let held =
            node.server.get(("crd.projectcalico.org/v1", "IPAMHandle"), ("", "ipip-tunnel-addr-node-a"));
        if annotations(&node)[1].is_none() && !left && held.is_none() {
            return Ok(());
        }
        Err(format!("{:?} {left} {held:?}\n{}", annotations(&node), node.log()))
    });
}
