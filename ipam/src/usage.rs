//! How full the pools are, which addresses are borrowed, and who holds one address: reports over a listing. Nothing is
//! decided here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use brindle_config_core::{
    Kind,
    ipam::{BlockAffinitySpec, IpamHandleSpec},
    store::{Entry, decode},
};
use ipnet::IpNet;

use crate::{
    block::{Allocation, Block},
    names, net,
    pools::View,
    records::Held,
};

/// Counts of one network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Count {
    /// Addresses in all, saturating.
    pub total: u128,
    /// Held by somebody, cooling ones included.
    pub in_use: u128,
    /// Kept out by reservations and free.
    pub reserved: u128,
}

impl Count {
    /// What may still be given.
    pub const fn free(&self) -> u128 {
        self.total.saturating_sub(self.in_use).saturating_sub(self.reserved)
    }
}

/// A pool and its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    pub name: String,
    pub cidr: IpNet,
    pub count: Count,
    pub blocks: Vec<BlockUsage>,
}

/// A block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockUsage {
    pub cidr: IpNet,
    /// The node, if any.
    pub owner: Option<String>,
    pub count: Count,
}

/// An address held by another node than its block's.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Borrowed {
    pub ip: IpAddr,
    pub node: String,
    pub block: IpNet,
    pub owner: String,
    /// `pod`, or the `type` attribute of the allocation.
    pub kind: String,
    pub allocated_to: String,
}

/// All blocks of a store by their place.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    blocks: BTreeMap<IpNet, Block>,
    /// Records that do not read.
    pub unreadable: Vec<String>,
}

impl Blocks {
    /// Reads the blocks among the entries of a listing.
    pub fn read(entries: &[Entry]) -> Self {
        let mut all = Self::default();
        entries.iter().for_each(|entry| all.add(entry));
        all
    }

    /// Takes one more block, if the entry is one.
    pub fn add(&mut self, entry: &Entry) {
        if entry.key.kind != Kind::IpamBlock {
            return;
        }
        match Held::from_entry(entry) {
            Ok(Some(held)) => {
                self.blocks.insert(held.block.cidr(), held.block);
            }
            Ok(None) => {}
            Err(e) => self.unreadable.push(e.to_string()),
        }
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &Block> {
        self.blocks.values()
    }

    /// Every address somebody holds.
    pub fn allocations(&self) -> impl Iterator<Item = (&Block, Allocation<'_>)> {
        self.iter().flat_map(|b| b.allocations().map(move |a| (b, a)))
    }

    /// The block that holds the address.
    pub fn of(&self, ip: IpAddr) -> Option<&Block> {
        self.iter().find(|b| b.cidr().contains(&ip))
    }

    /// The pools in order of their networks, each with its blocks.
    pub fn by_pool(&self, view: &View) -> Vec<PoolUsage> {
        let mut pools: Vec<PoolUsage> = view
            .pools
            .iter()
            .map(|p| {
                let blocks: Vec<BlockUsage> = self
                    .iter()
                    .filter(|b| p.spec.cidr.contains(&b.cidr()))
                    .map(|b| BlockUsage {
                        cidr: b.cidr(),
                        owner: b.host().map(str::to_owned),
                        count: count(b, view),
                    })
                    .collect();
                let in_use: u128 = blocks.iter().map(|b| b.count.in_use).sum();
                // Reserved addresses in use count as used.
                let outside = view.reservations.within(&p.spec.cidr).saturating_sub(
                    self.allocations()
                        .filter(|(_, a)| p.spec.cidr.contains(&a.ip) && view.reservations.contains(a.ip))
                        .count() as u128,
                );
                PoolUsage {
                    name: p.name.clone(),
                    cidr: p.spec.cidr,
                    count: Count { total: net::size(&p.spec.cidr), in_use, reserved: outside },
                    blocks,
                }
            })
            .collect();
        pools.sort_by_key(|p| p.cidr);
        pools
    }

    /// Blocks outside every pool: their addresses are still in use, but no new ones are given.
    pub fn outside(&self, view: &View) -> Vec<BlockUsage> {
        self.iter()
            .filter(|b| !view.pools.iter().any(|p| p.spec.cidr.contains(&b.cidr())))
            .map(|b| BlockUsage { cidr: b.cidr(), owner: b.host().map(str::to_owned), count: count(b, view) })
            .collect()
    }

    /// Addresses that live on another node than their block.
    pub fn borrowed(&self) -> Vec<Borrowed> {
        self.allocations()
            .filter_map(|(b, a)| {
                let node = a.attribute.secondary.get("node")?;
                let owner = b.host().unwrap_or_default();
                (node != owner).then(|| Borrowed {
                    ip: a.ip,
                    node: node.clone(),
                    block: b.cidr(),
                    owner: if owner.is_empty() { "<none>".into() } else { owner.to_owned() },
                    kind: a.attribute.secondary.get("type").cloned().unwrap_or_else(|| "pod".into()),
                    allocated_to: allocated_to(&a),
                })
            })
            .collect()
    }
}

/// Whom an address is for, in a few words: `namespace/pod`, else the handle.
pub fn allocated_to(a: &Allocation<'_>) -> String {
    let attribute = |key: &str| a.attribute.secondary.get(key);
    match (attribute("namespace"), attribute("pod")) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
        _ => a.handle().unwrap_or_default().to_owned(),
    }
}

fn count(block: &Block, view: &View) -> Count {
    let total = net::size(&block.cidr());
    let in_use = block.allocations().count() as u128;
    let free = block.free_count(&view.reservations) as u128;
    Count { total, in_use, reserved: total.saturating_sub(in_use).saturating_sub(free) }
}

/// Handles that hold nothing: no block shows an address of theirs.
pub fn handles_without_addresses(entries: &[Entry], blocks: &Blocks) -> Vec<String> {
    let used: BTreeSet<String> =
        blocks.allocations().filter_map(|(_, a)| a.handle().map(names::handle_name)).collect();
    entries
        .iter()
        .filter(|e| e.key.kind == Kind::IpamHandle && !used.contains(&e.key.name))
        .filter_map(|e| decode::<IpamHandleSpec>(e).ok())
        .map(|h| h.resource.spec.handle_id)
        .collect()
}

/// How many blocks each node has claimed.
pub fn affinities_by_node(entries: &[Entry]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for entry in entries.iter().filter(|e| e.key.kind == Kind::BlockAffinity) {
        if let Ok(a) = decode::<BlockAffinitySpec>(entry) {
            *counts.entry(a.resource.spec.node).or_default() += 1;
        }
    }
    counts
}
