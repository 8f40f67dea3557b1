//! WorkloadEndpoint.

use super::{Errors, names};
use crate::{workload::WorkloadEndpointSpec, workload_view::WorkloadView};

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

/// Whether [`super::resource`] finds nothing to say of the resource.
pub fn is_plain(w: &WorkloadView<'_>) -> bool {
    let (meta, spec) = (&w.metadata, &w.spec);
    let mut errors = Errors::default();
    errors.interface("spec.interfaceName", spec.interface_name, false);
    errors.done().is_ok()
        && names::subdomain(meta.name).is_ok()
        && meta.namespace.is_none_or(|ns| names::label(ns).is_ok())
        && meta.labels.iter().all(|(k, v)| names::qualified(k).is_ok() && names::label_value(v).is_ok())
        && meta.annotations.keys().all(|k| names::qualified(k).is_ok())
        && ![spec.orchestrator, spec.node, spec.endpoint].contains(&"")
        && spec.ip_networks.iter().all(|n| n.prefix_len() == n.max_prefix_len())
        && (spec.mac.is_empty() || is_mac(spec.mac))
}

fn is_mac(s: &str) -> bool {
    let octet = |o: &str| o.len() == 2 && o.bytes().all(|b| b.is_ascii_hexdigit());
    s.split(':').count() == 6 && s.split(':').all(octet)
}
