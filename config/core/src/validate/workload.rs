//! WorkloadEndpoint.

use super::Errors;
use crate::workload::WorkloadEndpointSpec;

pub(super) fn check(w: &WorkloadEndpointSpec, errors: &mut Errors) {
    for (field, value) in
        [("spec.orchestrator", &w.orchestrator), ("spec.node", &w.node), ("spec.endpoint", &w.endpoint)]
    {
        if value.is_empty() {
            errors.add(field, value, "is required");
        }
    }
    errors.interface("spec.interfaceName", &w.interface_name, false);
    for (i, net) in w.ip_networks.iter().enumerate().filter(|(_, n)| n.prefix_len() != n.max_prefix_len()) {
        let reason = format!("a pod has single addresses; write {}/{}", net.addr(), net.max_prefix_len());
        errors.add(&format!("spec.ipNetworks[{i}]"), net, reason);
    }
    if !w.mac.is_empty() && !is_mac(&w.mac) {
        errors.add("spec.mac", &w.mac, "expected six octets, ee:ee:ee:ee:ee:ee");
    }
}

fn is_mac(s: &str) -> bool {
    let octet = |o: &str| o.len() == 2 && o.bytes().all(|b| b.is_ascii_hexdigit());
    s.split(':').count() == 6 && s.split(':').all(octet)
}
