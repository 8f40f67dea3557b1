//! IPAMConfiguration, and the records IPAM itself writes: they are checked so that a file edited by hand cannot make
//! two owners of one address.

use std::collections::BTreeSet;

use super::Errors;
use crate::{
    ipam::{BlockAffinitySpec, IpamBlockSpec, IpamConfigSpec, IpamHandleSpec},
    names,
};

pub(super) fn check_config(c: &IpamConfigSpec, errors: &mut Errors) {
    const LONGEST_COOLDOWN: u32 = 1200;
    if c.max_blocks_per_host > 0 && !c.strict_affinity {
        let reason = "MaxBlocksPerHost requires StrictAffinity to be enabled";
        errors.add("spec.maxBlocksPerHost", c.max_blocks_per_host, reason);
    }
    if !c.auto_allocate_blocks && !c.strict_affinity {
        errors.add("spec.autoAllocateBlocks", "false", "needs strictAffinity: true");
    }
    if let Some(n) = c.ip_cooldown_seconds.filter(|n| *n > LONGEST_COOLDOWN) {
        errors.add("spec.ipCooldownSeconds", n, format!("expected 0 to {LONGEST_COOLDOWN}"));
    }
}

pub(super) fn check_block(name: &str, b: &IpamBlockSpec, errors: &mut Errors) {
    if b.cidr != b.cidr.trunc() {
        errors.add("spec.cidr", b.cidr, format!("bits behind the prefix are set; write {}", b.cidr.trunc()));
    }
    let want = names::block_name(&b.cidr);
    if name != want {
        errors.add("metadata.name", name, format!("the block {} is named {want}", b.cidr));
    }
    if b.affinity.as_deref().is_some_and(|a| !a.starts_with("host:") && !a.starts_with("virtual:")) {
        let affinity = b.affinity.as_deref().unwrap_or_default();
        errors.add("spec.affinity", affinity, "expected host:NODE or virtual:NAME");
    }
    let bits = b.cidr.max_prefix_len() - b.cidr.prefix_len();
    let size = 1usize.checked_shl(bits.into()).filter(|_| bits <= 12);
    if size != Some(b.allocations.len()) {
        let reason = "expected as many entries as the block has addresses (at most 4096)";
        errors.count("spec.allocations", &b.allocations, reason);
    }
    for (ordinal, index) in b.allocations.iter().enumerate() {
        if let Some(index) = index.filter(|i| *i >= b.attributes.len()) {
            let reason = format!("there are only {} attributes", b.attributes.len());
            errors.add(&format!("spec.allocations[{ordinal}]"), index, reason);
        }
    }
    let mut seen = BTreeSet::new();
    for (i, ordinal) in b.unallocated.iter().enumerate() {
        let field = format!("spec.unallocated[{i}]");
        match b.allocations.get(*ordinal) {
            None => errors.add(&field, ordinal, "the block has no such address"),
            Some(Some(_)) => errors.add(&field, ordinal, "the address is allocated as well"),
            Some(None) if !seen.insert(ordinal) => errors.add(&field, ordinal, "listed twice"),
            Some(None) => {}
        }
    }
}

pub(super) fn check_handle(name: &str, h: &IpamHandleSpec, errors: &mut Errors) {
    if h.handle_id.is_empty() {
        errors.add("spec.handleID", "", "a handle needs an id");
    } else if h.handle_id.to_lowercase() != h.handle_id && name == h.handle_id {
        errors.add("metadata.name", name, "a handle is named by its id in lower case");
    }
}

pub(super) fn check_affinity(name: &str, a: &BlockAffinitySpec, errors: &mut Errors) {
    if !matches!(a.affinity_type.as_str(), "host" | "virtual") {
        errors.add("spec.type", &a.affinity_type, "expected host or virtual");
    }
    if a.node.is_empty() {
        errors.add("spec.node", "", "an affinity needs a node");
    } else {
        let want = names::affinity_name(&a.node, &a.cidr);
        if name != want {
            errors.add(
                "metadata.name",
                name,
                format!("the affinity of {} to {} is named {want}", a.node, a.cidr),
            );
        }
    }
}
