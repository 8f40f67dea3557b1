//! FelixConfiguration: the fields this version acts on.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Errors;
use crate::felix::FelixConfigurationSpec;

pub(super) fn check(name: &str, f: &FelixConfigurationSpec, errors: &mut Errors) {
    let per_node = name.strip_prefix("node.").is_some_and(|n| !n.is_empty());
    if name != "default" && !per_node && !f.extra.contains_key("nodeSelector") {
        let reason = "expected default, node.NAME, or any name with a nodeSelector";
        errors.add("metadata.name", name, reason);
    }
    if let Some(prefixes) = &f.interface_prefix {
        for prefix in prefixes.split(',') {
            errors.interface("spec.interfacePrefix", prefix, false);
        }
    }
    if let Some(mtu) = f.ipip_mtu.filter(|m| *m != 0 && !(68..=65_515).contains(m)) {
        errors.add("spec.ipipMTU", mtu, "expected 0 (automatic) or 68 to 65515");
    }
    errors.duration("spec.routeRefreshInterval", f.route_refresh_interval.as_ref());
    errors.route_priority("spec.ipv4NormalRoutePriority", f.ipv4_normal_route_priority);
    for (i, node) in f.external_nodes_list.iter().enumerate() {
        if node.parse::<IpAddr>().is_err() && node.parse::<IpNet>().is_err() {
            errors.add(&format!("spec.externalNodesList[{i}]"), node, "expected an IP address or a CIDR");
        }
    }
}
