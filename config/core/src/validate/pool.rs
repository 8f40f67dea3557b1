//! IPPool and IPReservation.

use ipnet::IpNet;

use super::{Errors, Invalid};
use crate::pool::{AllowedUse, EncapMode, IpPoolSpec, IpReservationSpec};

/// Addresses no pod can have: those that never leave a link or a host, and those of groups. No pool may touch them.
const UNFIT: [(&str, &str); 6] = [
    ("link-local", "169.254.0.0/16"),
    ("link-local", "fe80::/10"),
    ("loopback", "127.0.0.0/8"),
    ("loopback", "::1/128"),
    ("multicast", "224.0.0.0/4"),
    ("multicast", "ff00::/8"),
];

/// Whether two prefixes share an address.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

pub(super) fn check(p: &IpPoolSpec, errors: &mut Errors) {
    let cidr = p.cidr;
    if cidr != cidr.trunc() {
        errors.add("spec.cidr", cidr, format!("bits behind the prefix are set; write {}", cidr.trunc()));
    }
    let unfit = UNFIT.iter().filter_map(|(what, s)| Some((what, s.parse::<IpNet>().ok()?)));
    if let Some((what, range)) = unfit.into_iter().find(|(_, r)| overlap(r, &cidr)) {
        errors.add("spec.cidr", cidr, format!("overlaps the {what} range {range}"));
    }
    let encapsulated = p.ipip_mode != EncapMode::Never || p.vxlan_mode != EncapMode::Never;
    if p.ipip_mode != EncapMode::Never && p.vxlan_mode != EncapMode::Never {
        errors.add(
            "spec.vxlanMode",
            format!("{:?}", p.vxlan_mode),
            "ipipMode and vxlanMode exclude each other",
        );
    }
    if p.ipip_mode != EncapMode::Never && matches!(cidr, IpNet::V6(_)) {
        errors.add("spec.ipipMode", format!("{:?}", p.ipip_mode), "IPIP does not carry IPv6; set Never");
    }
    block_size(p, errors);
    errors.selector("spec.nodeSelector", &p.node_selector);
    errors.selector("spec.namespaceSelector", &p.namespace_selector);
    if p.allowed_uses.contains(&AllowedUse::LoadBalancer) {
        let mut refuse = |field: &str, value: &str, reason: &str| errors.add(field, value, reason);
        if p.allowed_uses.iter().any(|u| *u != AllowedUse::LoadBalancer) {
            refuse(
                "spec.allowedUses",
                &format!("{:?}", p.allowed_uses),
                "LoadBalancer excludes all other uses",
            );
        }
        if encapsulated {
            refuse("spec.allowedUses", "LoadBalancer", "a LoadBalancer pool is not encapsulated");
        }
        if !matches!(p.node_selector.as_str(), "" | "all()") {
            refuse(
                "spec.nodeSelector",
                &p.node_selector,
                "a LoadBalancer pool is for all(): remove the selector",
            );
        }
        if p.disable_bgp_export {
            refuse("spec.disableBGPExport", "true", "a LoadBalancer pool must be advertised");
        }
    }
}

fn block_size(p: &IpPoolSpec, errors: &mut Errors) {
    let (smallest, largest) = match p.cidr {
        IpNet::V4(_) => (20, 32),
        IpNet::V6(_) => (116, 128),
    };
    let size = p.block_size();
    if !(smallest..=largest).contains(&size) {
        errors.add("spec.blockSize", size, format!("expected {smallest} to {largest}"));
    } else if p.cidr.prefix_len() > size && !p.disabled {
        errors.add(
            "spec.cidr",
            p.cidr,
            format!("the pool is smaller than one block of /{size}; use a larger pool, or set blockSize"),
        );
    }
}

pub(super) fn check_reservation(r: &IpReservationSpec, errors: &mut Errors) {
    for (i, cidr) in r.reserved_cidrs.iter().enumerate().filter(|(_, c)| **c != c.trunc()) {
        let field = format!("spec.reservedCIDRs[{i}]");
        errors.add(&field, cidr, format!("bits behind the prefix are set; write {}", cidr.trunc()));
    }
}

/// Checks a new pool against the other pools and the blocks that exist. `blocks` are CIDRs of IPAMBlocks.
pub fn against<'a>(
    name: &str,
    new: &IpPoolSpec,
    others: impl IntoIterator<Item = (&'a str, &'a IpPoolSpec)>,
    blocks: impl IntoIterator<Item = &'a IpNet>,
) -> Result<(), Invalid> {
    let mut errors = Errors::default();
    for (other, spec) in others {
        if other != name && overlap(&new.cidr, &spec.cidr) {
            errors.add("spec.cidr", new.cidr, format!("overlaps the IPPool {other} ({})", spec.cidr));
        }
    }
    let foreign = |b: &&IpNet| new.cidr.contains(*b) && b.prefix_len() != new.block_size();
    if let Some(block) = blocks.into_iter().find(foreign) {
        errors.add(
            "spec.blockSize",
            new.block_size(),
            format!(
                "the block {block} exists inside the pool with another size; its node gives it back a few minutes after its \
                 last address (see brindlectl ipam show --show-blocks)"
            ),
        );
    }
    errors.done()
}

/// Checks what may not change in a pool that exists.
pub fn update(old: &IpPoolSpec, new: &IpPoolSpec) -> Result<(), Invalid> {
    let mut errors = Errors::default();
    if old.cidr != new.cidr {
        errors.add(
            "spec.cidr",
            new.cidr,
            format!("cannot be changed (it is {}); create another pool", old.cidr),
        );
    }
    if old.block_size() != new.block_size() {
        let reason = format!("cannot be changed (it is {}); create another pool", old.block_size());
        errors.add("spec.blockSize", new.block_size(), reason);
    }
    errors.done()
}
