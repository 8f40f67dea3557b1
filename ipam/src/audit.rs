//! Cross-checks all IPAM records of a store: the invariants of this package as a plain function of its state. The
//! tests run it after every history; operators see it as `brindlectl ipam check`.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use brindle_config_core::{
    Kind,
    ipam::{AffinityState, BlockAffinitySpec, IpamHandleSpec},
    store::{Entry, decode},
};
use ipnet::IpNet;

use crate::{names, records::Held};

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A record that does not decode or contradicts itself.
    Unreadable(String),
    /// Two blocks that share addresses.
    Overlap(IpNet, IpNet),
    /// An address in use whose handle does not list its block: nobody will find it to release it.
    Unlisted { ip: IpAddr, handle: String },
    /// A handle that counts more addresses in a block than there are. Harmless; its release repairs it.
    CountTooHigh { handle: String, block: String, counted: u32, found: u32 },
    /// A handle that counts fewer.
    CountTooLow { handle: String, block: String, counted: u32, found: u32 },
    /// A confirmed affinity without its block, or with a block of another host.
    AffinityWithoutBlock { host: String, block: IpNet },
    /// A block of a host without a confirmed affinity.
    BlockWithoutAffinity { host: String, block: IpNet },
    /// A claim or release that stopped halfway.
    HalfDone { host: String, block: IpNet, state: AffinityState },
}

impl Finding {
    /// Whether this can lead to an address given twice, or lost for good, rather than to mere untidiness.
    pub const fn serious(&self) -> bool {
        matches!(
            self,
            Self::Overlap(..) | Self::Unlisted { .. } | Self::CountTooLow { .. } | Self::Unreadable(_)
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(what) => write!(f, "{what}"),
            Self::Overlap(a, b) => write!(f, "blocks {a} and {b} overlap"),
            Self::Unlisted { ip, handle } => {
                write!(f, "{ip} is in use, but handle {handle} does not list it")
            }
            Self::CountTooHigh { handle, block, counted, found } => {
                write!(f, "handle {handle} counts {counted} addresses in {block}, which has {found}")
            }
            Self::CountTooLow { handle, block, counted, found } => {
                write!(f, "handle {handle} counts only {counted} of its {found} addresses in {block}")
            }
            Self::AffinityWithoutBlock { host, block } => {
                write!(f, "{host} has an affinity for {block}, but not the block")
            }
            Self::BlockWithoutAffinity { host, block } => {
                write!(f, "block {block} belongs to {host}, which has no confirmed affinity for it")
            }
            Self::HalfDone { host, block, state } => write!(f, "affinity of {host} for {block} is {state:?}"),
        }
    }
}

/// Checks the entries of a listing of IPAMBlock, BlockAffinity and IPAMHandle.
pub fn audit(entries: &[Entry]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut blocks: BTreeMap<IpNet, Held> = BTreeMap::new();
    let mut affinities: Vec<BlockAffinitySpec> = Vec::new();
    let mut handles: BTreeMap<String, IpamHandleSpec> = BTreeMap::new();
    for entry in entries {
        let read = match entry.key.kind {
            Kind::IpamBlock => Held::from_entry(entry).map(|held| {
                blocks.extend(held.map(|h| (h.block.cidr(), h)));
            }),
            Kind::BlockAffinity => decode::<BlockAffinitySpec>(entry).map_err(Into::into).map(|a| {
                affinities.push(a.resource.spec);
            }),
            Kind::IpamHandle => decode::<IpamHandleSpec>(entry).map_err(Into::into).map(|h| {
                handles.insert(entry.key.name.clone(), h.resource.spec);
            }),
            _ => Ok(()),
        };
        if let Err(e) = read {
            findings.push(Finding::Unreadable(e.to_string()));
        }
    }
    let cidrs: Vec<IpNet> = blocks.keys().copied().collect();
    for pair in cidrs.windows(2) {
        if let [a, b] = pair
            && a.contains(b)
        {
            findings.push(Finding::Overlap(*a, *b));
        }
    }
    check_handles(&blocks, &handles, &mut findings);
    check_affinities(&blocks, &affinities, &mut findings);
    findings
}

fn check_handles(
    blocks: &BTreeMap<IpNet, Held>,
    handles: &BTreeMap<String, IpamHandleSpec>,
    findings: &mut Vec<Finding>,
) {
    let mut found: BTreeMap<(String, String), (u32, IpAddr)> = BTreeMap::new();
    for (cidr, held) in blocks {
        for a in held.block.allocations() {
            let Some(handle) = a.handle() else { continue };
            let count = found.entry((names::handle_name(handle), cidr.to_string())).or_insert((0, a.ip));
            count.0 += 1;
        }
    }
    for ((handle, block), (n, ip)) in &found {
        match handles.get(handle).and_then(|h| h.block.get(block)) {
            None => findings.push(Finding::Unlisted { ip: *ip, handle: handle.clone() }),
            Some(counted) if counted < n => findings.push(Finding::CountTooLow {
                handle: handle.clone(),
                block: block.clone(),
                counted: *counted,
                found: *n,
            }),
            Some(_) => {}
        }
    }
    for (handle, spec) in handles {
        for (block, counted) in &spec.block {
            let n = found.get(&(handle.clone(), block.clone())).map_or(0, |f| f.0);
            if *counted > n {
                let (handle, block) = (handle.clone(), block.clone());
                findings.push(Finding::CountTooHigh { handle, block, counted: *counted, found: n });
            }
        }
    }
}

fn check_affinities(
    blocks: &BTreeMap<IpNet, Held>,
    affinities: &[BlockAffinitySpec],
    findings: &mut Vec<Finding>,
) {
    for a in affinities.iter().filter(|a| a.affinity_type == "host" && !a.deleted) {
        let ours = blocks.get(&a.cidr).is_some_and(|h| h.block.is_of(&a.node));
        if a.state != AffinityState::Confirmed {
            findings.push(Finding::HalfDone { host: a.node.clone(), block: a.cidr, state: a.state });
        } else if !ours {
            findings.push(Finding::AffinityWithoutBlock { host: a.node.clone(), block: a.cidr });
        }
    }
    for (cidr, held) in blocks {
        let Some(host) = held.block.host() else { continue };
        let confirmed = affinities
            .iter()
            .any(|a| a.node == host && a.cidr == *cidr && a.state == AffinityState::Confirmed && !a.deleted);
        if !confirmed {
            findings.push(Finding::BlockWithoutAffinity { host: host.to_owned(), block: *cidr });
        }
    }
}
