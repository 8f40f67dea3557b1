//! Node: usable addresses, and no two nodes with the same one.

use std::net::IpAddr;

use super::{Errors, Invalid};
use crate::node::NodeSpec;

pub(super) fn check(n: &NodeSpec, errors: &mut Errors) {
    let fields = [
        ("spec.bgp.ipv4Address", n.ipv4().map(IpAddr::V4)),
        ("spec.bgp.ipv6Address", n.ipv6().map(IpAddr::V6)),
        ("spec.bgp.ipv4IPIPTunnelAddr", n.bgp.as_ref().and_then(|b| b.ipv4_ipip_tunnel_addr).map(IpAddr::V4)),
        ("spec.ipv4VXLANTunnelAddr", n.ipv4_vxlan_tunnel_addr.map(IpAddr::V4)),
    ];
    for (field, ip) in fields.into_iter().filter_map(|(f, ip)| Some((f, ip?))) {
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
            errors.add(field, ip, "is no address other nodes can reach");
        }
    }
}

/// Checks that no other node has one of the addresses of `new`. A node may keep its own.
pub fn conflicts<'a>(
    nodes: impl IntoIterator<Item = (&'a str, &'a NodeSpec)>,
    name: &str,
    new: &NodeSpec,
) -> Result<(), Invalid> {
    let mut errors = Errors::default();
    for (other, spec) in nodes.into_iter().filter(|(other, _)| *other != name) {
        for ip in new.ips().filter(|ip| spec.ips().any(|theirs| theirs == *ip)) {
            let field = if ip.is_ipv4() { "spec.bgp.ipv4Address" } else { "spec.bgp.ipv6Address" };
            errors.add(
                field,
                ip,
                format!("the node {other} already has this address; each node needs its own"),
            );
        }
    }
    errors.done()
}
