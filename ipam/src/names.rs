//! Names of IPAM records as this package uses them; the rules themselves are in `config/core`.

pub(crate) use brindle_config_core::names::{affinity_labels, affinity_name, block_name};

/// Who owns the blocks of load balancer addresses, in the place of a node (Calico's virtual owner). No node can be
/// called so: names of nodes have no colon.
pub const LOAD_BALANCER: &str = "virtual:load-balancer";

const VIRTUAL: &str = "virtual:";

/// The text in `IPAMBlock.spec.affinity` that makes a block a node's, or that of a virtual owner (`virtual:NAME`).
pub fn host_affinity(owner: &str) -> String {
    if owner.starts_with(VIRTUAL) { owner.to_owned() } else { format!("host:{owner}") }
}

/// The owner in the text of an affinity: the name of a node, or `virtual:NAME`.
pub fn owner_of(affinity: &str) -> Option<&str> {
    affinity.strip_prefix("host:").or_else(|| affinity.starts_with(VIRTUAL).then_some(affinity))
}

/// Type and name of an owner, as BlockAffinity has them.
pub fn owner_parts(owner: &str) -> (&'static str, &str) {
    owner.strip_prefix(VIRTUAL).map_or(("host", owner), |name| ("virtual", name))
}

/// Name of the record of a handle.
pub fn handle_name(handle: &str) -> String {
    brindle_config_core::names::handle_name(sanitized(handle))
}

/// Handles written by an old migration tool end in `\r` and more; everything from there on is no part of the id.
pub fn sanitized(handle: &str) -> &str {
    handle.split('\r').next().unwrap_or(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_ends_at_a_carriage_return() {
        assert_eq!(handle_name("k8s-pod-network.ABC\r\neth0"), "k8s-pod-network.abc");
    }
}
