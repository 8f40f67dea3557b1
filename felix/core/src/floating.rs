//! Floating addresses (`spec.ipNATs`): which of them lead to which address of a local pod, and what is said of the others.
//! Rules translate them (`rules/layout.rs`), a route of one address leads them to the pod's device (`desire.rs`).

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
};

use brindle_config_core::Key;
use serde_json::Value;

use crate::inputs::Inputs;

/// FelixConfiguration.floatingIPs; off unless somebody says Enabled, since with it pods take addresses by annotation.
pub fn enabled(inputs: &Inputs) -> bool {
    inputs
        .felix()
        .setting("floatingIPs")
        .and_then(Value::as_str)
        .is_some_and(|t| t.eq_ignore_ascii_case("enabled"))
}

/// Floating address → the endpoint it leads to and that one's own address. Of several that ask for one address the first
/// by namespace and name has it, and what is a pod's own address is nobody's floating address.
pub fn leads(inputs: &Inputs) -> BTreeMap<IpAddr, (&Key, IpAddr)> {
    if enabled(inputs) { claims(inputs, &mut Vec::new()) } else { BTreeMap::new() }
}

fn claims<'a>(inputs: &'a Inputs, problems: &mut Vec<String>) -> BTreeMap<IpAddr, (&'a Key, IpAddr)> {
    let mut out: BTreeMap<IpAddr, (&Key, IpAddr)> = BTreeMap::new();
    for (key, endpoint) in &inputs.endpoints {
        for nat in endpoint.floating() {
            let own = |w: &&brindle_config_core::workload::WorkloadEndpointSpec| {
                w.ip_networks.iter().any(|n| n.addr() == nat.external)
            };
            if inputs.endpoints.values().any(|w| own(&w)) {
                problems.push(format!(
                    "{key}: {} is a pod's own address, and so does not float; choose another for the annotation floatingIPs",
                    nat.external
                ));
                continue;
            }
            match out.entry(nat.external) {
                Entry::Vacant(free) => drop(free.insert((key, nat.internal))),
                Entry::Occupied(taken) => problems.push(format!(
                    "{key}: its floating address {} leads to {}, which asks for it too; each address is for one pod",
                    nat.external,
                    taken.get().0
                )),
            }
        }
    }
    out
}

/// What does not lead where somebody wanted it, in a line each.
pub(crate) fn warnings(inputs: &Inputs) -> Vec<String> {
    let mut all = Vec::new();
    if enabled(inputs) {
        claims(inputs, &mut all);
        return all;
    }
    for (key, endpoint) in &inputs.endpoints {
        all.extend(endpoint.floating().map(|nat| {
            format!(
                "{key}: its floating address {} leads nowhere; set floatingIPs of the FelixConfiguration to Enabled",
                nat.external
            )
        }));
    }
    all
}
