//! Names of IPAM records as this package uses them; the rules themselves are in `config/core`.

pub(crate) use brindle_config_core::names::{affinity_labels, affinity_name, block_name};

/// The text in `IPAMBlock.spec.affinity` that makes a block a node's.
pub fn host_affinity(host: &str) -> String {
    format!("host:{host}")
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
