//! What several of these tests begin with.

use super::*;

/// Runs `ip`.
pub(crate) fn ip(ns: &Ns, line: &str) {
    let ok = ns.run(|| Command::new("ip").args(line.split(' ')).status().unwrap().success());
    assert!(ok, "ip {line}");
}

/// Somewhere else, with this address, behind the node's `up0`.
pub(crate) fn far(node: &Node, address: &str) -> Ns {
    let far = Ns::new("far");
    let target = far.ns();
    node.ns.run(|| {
        let peer = VethPeer { name: "up0", mac: None, netns: Some(&target) };
        let veth = Veth { name: "up0", mac: None, mtu: None, up: true, peer };
        Rtnl::open().unwrap().add_veth(&veth).unwrap();
    });
    ip(&far, "link set up0 up");
    ip(&far, &format!("addr add {address} dev up0"));
    far
}

/// With one endpoint more.
pub(crate) fn and(mut all: Vec<PolicyDelta>, endpoint: EndpointPolicy) -> Vec<PolicyDelta> {
    all.insert(all.len() - 1, PolicyDelta::Endpoint(Arc::new(endpoint)));
    all
}
