//! What callers see: requests, answers, the [`Allocator`] trait, and the allocator of blocks with its memory of the
//! host's own blocks. The steps of an assignment are in `assign`, of a release in `release`.
//!
//! One allocator per node, owned by one task: while nobody else writes the node's blocks an assignment is two store
//! writes and no read. The memory is only a guess: every write is conditional on the revision it was read at.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
};

use brindle_config_core::{
    Kind,
    ipam::{AffinityState, BlockAffinitySpec},
    pool::AllowedUse,
    store::{Entry, Store, Stored, decode},
};
use ipnet::IpNet;

use crate::{
    affinity::{Affinities, ReleaseGuard},
    block::{Owner, Release},
    error::IpamError,
    handle::Handles,
    names,
    pools::View,
    records::{Held, Records},
    refusal::Refusal,
    retry::Pause,
    time::Now,
};

/// Future of an allocator call.
pub type IpamFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, IpamError>> + Send + 'a>>;

/// How many addresses of one family, and from where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub count: usize,
    /// Pool names or CIDRs; empty = all pools whose selectors match.
    pub pools: Vec<String>,
}

impl Wanted {
    /// `count` addresses from whichever pool.
    pub const fn any(count: usize) -> Self {
        Self { count, pools: Vec::new() }
    }
}

/// A request for addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignRequest {
    pub owner: Owner,
    pub v4: Wanted,
    pub v6: Wanted,
    pub intended_use: AllowedUse,
    /// For pools with a namespace selector.
    pub namespace_labels: Option<BTreeMap<String, String>>,
    /// Blocks the host may own; 0 = as configured.
    pub max_blocks: u32,
}

/// A given address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    pub ip: IpAddr,
    pub block: IpNet,
    /// Name of the pool.
    pub pool: String,
    /// The host that owns the block, when it is not the asking one.
    pub borrowed_from: Option<String>,
}

/// What was given; fewer than asked for when the refusal of the family says why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    pub addresses: Vec<Assigned>,
    pub v4_refusal: Option<Refusal>,
    pub v6_refusal: Option<Refusal>,
}

impl Assignment {
    /// The first refusal, if any.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.v4_refusal.as_ref().or(self.v6_refusal.as_ref())
    }
}

/// Outcome of a release.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReleaseReport {
    pub released: Vec<IpAddr>,
    /// Free already.
    pub unallocated: Vec<IpAddr>,
}

/// A way to divide the address space among hosts. After an error the handle may hold addresses: release it.
pub trait Allocator: Send {
    /// Gives addresses to the owner, in addition to those it may have.
    fn assign<'a>(
        &'a mut self,
        request: &'a AssignRequest,
        view: &'a View,
        now: Now,
    ) -> IpamFuture<'a, Assignment>;
    /// Gives this very address.
    fn assign_ip<'a>(
        &'a mut self,
        ip: IpAddr,
        owner: &'a Owner,
        intended_use: AllowedUse,
        view: &'a View,
        now: Now,
    ) -> IpamFuture<'a, Assigned>;
    /// Takes back all addresses of the handle; none is fine.
    fn release_handle<'a>(
        &'a mut self,
        handle: &'a str,
        view: &'a View,
        now: Now,
    ) -> IpamFuture<'a, Vec<IpAddr>>;
    /// Takes back these addresses, if they still are what the caller thinks.
    fn release_ips<'a>(
        &'a mut self,
        releases: &'a [Release],
        view: &'a View,
        now: Now,
    ) -> IpamFuture<'a, ReleaseReport>;
    /// The addresses of the handle, as stored now.
    fn by_handle<'a>(&'a self, handle: &'a str) -> IpamFuture<'a, Vec<IpAddr>>;
}

/// The allocator of Calico-compatible blocks for one host.
pub struct BlockAllocator {
    pub(crate) host: String,
    pub(crate) records: Records,
    pub(crate) handles: Handles,
    pub(crate) affinities: Affinities,
    pub(crate) pause: Arc<dyn Pause>,
    /// The host's own blocks as last written or read.
    pub(crate) own: BTreeMap<IpNet, Held>,
    /// Where blocks are, as far as known: a new one is claimed without listing the cluster's.
    pub(crate) taken: Option<Taken>,
}

/// CIDRs of the cluster's blocks as last seen. A block that was given back meanwhile is only a chance missed, one that
/// was claimed meanwhile a claim lost. What it must not miss are blocks of another size, which overlap under another
/// name: they come with a change of the pools, so it counts for the pools it was read under.
pub(crate) struct Taken {
    pub(crate) pools: Vec<(IpNet, u8)>,
    pub(crate) blocks: BTreeSet<IpNet>,
}

/// What the division of the space depends on.
pub(crate) fn division(view: &View) -> Vec<(IpNet, u8)> {
    view.pools.iter().map(|p| (p.spec.cidr, p.spec.block_size())).collect()
}

/// Every block in the store; `None` for one that cannot be used but takes its place.
pub(crate) type AllBlocks = BTreeMap<IpNet, Option<Held>>;

impl BlockAllocator {
    /// An allocator that knows nothing yet; it reads on first need.
    pub fn new(store: Arc<dyn Store>, host: impl Into<String>, pause: Arc<dyn Pause>) -> Self {
        let records = Records { store };
        Self {
            host: host.into(),
            handles: Handles { records: records.clone(), pause: Arc::clone(&pause) },
            affinities: Affinities { records: records.clone(), pause: Arc::clone(&pause) },
            records,
            pause,
            own: BTreeMap::new(),
            taken: None,
        }
    }

    /// CIDRs of the host's own blocks, as far as known.
    pub fn own_blocks(&self) -> impl Iterator<Item = IpNet> {
        self.own.keys().copied()
    }

    /// Reads all blocks and the host's affinities, finishes what a crash left half done, gives back empty blocks
    /// whose pool no longer serves the node.
    pub async fn reload(&mut self, view: &View) -> Result<(), IpamError> {
        self.read_all(view).await.map(drop)
    }

    pub(crate) async fn read_all(&mut self, view: &View) -> Result<AllBlocks, IpamError> {
        let listing = self.records.store.list(&[Kind::IpamBlock, Kind::BlockAffinity]).await?;
        let mut blocks = AllBlocks::new();
        let mut affinities = Vec::new();
        for entry in &listing.entries {
            if entry.key.kind == Kind::BlockAffinity {
                // One that does not decode is not ours to use; its block decides anyway.
                if let Ok(a) = decode::<BlockAffinitySpec>(entry)
                    && (a.resource.spec.affinity_type.as_str(), a.resource.spec.node.as_str())
                        == names::owner_parts(&self.host)
                {
                    affinities.push(a);
                }
                continue;
            }
            match Held::from_entry(entry) {
                Ok(Some(held)) => {
                    blocks.insert(held.block.cidr(), Some(held));
                }
                Ok(None) => {
                    if let Some(cidr) = cidr_of(entry)
                        && let Some(block) = self.half_deleted(&cidr).await
                    {
                        blocks.insert(cidr, block);
                    }
                }
                Err(_) => {
                    // A block we cannot read may be in use: it keeps its place.
                    blocks.extend(cidr_of(entry).map(|cidr| (cidr, None)));
                }
            }
        }
        self.own.clear();
        let mut named = BTreeSet::new();
        for affinity in affinities {
            named.insert(affinity.resource.spec.cidr);
            self.settle(affinity, &mut blocks, view).await?;
        }
        // A block of ours without an affinity record: its claim or release stopped in the middle.
        let orphans: Vec<IpNet> = blocks
            .iter()
            .filter(|(c, b)| !named.contains(c) && b.as_ref().is_some_and(|b| b.block.is_of(&self.host)))
            .map(|(c, _)| *c)
            .collect();
        for cidr in orphans {
            self.readopt(&cidr, &mut blocks).await?;
        }
        self.taken = Some(Taken { pools: division(view), blocks: blocks.keys().copied().collect() });
        Ok(blocks)
    }

    /// Completes the deletion of a block that its deleter marked and left there: until then nobody else can have it. `None`:
    /// it is gone; otherwise the block that took its place, as [`AllBlocks`] has it.
    async fn half_deleted(&self, cidr: &IpNet) -> Option<Option<Held>> {
        match self.records.block(cidr).await {
            Ok(None) => None,
            Ok(Some(held)) => Some(Some(held)),
            // It is as it was; that the others can be used matters more.
            Err(_) => Some(None),
        }
    }

    /// Gives up every block, for a node that is gone: empty ones are deleted, those with addresses in use become nobody's
    /// and drain. Returns what was given up.
    pub async fn give_up(&mut self) -> Result<Vec<IpNet>, IpamError> {
        let (kind, owner) = names::owner_parts(&self.host);
        let listing = self.records.store.list(&[Kind::IpamBlock, Kind::BlockAffinity]).await?;
        let mut all = BTreeSet::new();
        for entry in &listing.entries {
            if entry.key.kind == Kind::BlockAffinity {
                let spec = decode::<BlockAffinitySpec>(entry).map(|a| a.resource.spec);
                all.extend(
                    spec.ok().filter(|a| a.affinity_type == kind && a.node == owner).map(|a| a.cidr.trunc()),
                );
            } else if let Ok(Some(held)) = Held::from_entry(entry)
                && held.block.is_of(&self.host)
            {
                all.insert(held.block.cidr());
            }
        }
        self.own.clear();
        let mut given = Vec::new();
        for cidr in all {
            if self.affinities.release(&self.host, &cidr, ReleaseGuard::default()).await? {
                given.push(cidr);
            }
        }
        Ok(given)
    }

    /// Brings one affinity of ours to an end state and remembers its block if it is ours to use.
    async fn settle(
        &mut self,
        affinity: Stored<BlockAffinitySpec>,
        blocks: &mut AllBlocks,
        view: &View,
    ) -> Result<(), IpamError> {
        let spec = &affinity.resource.spec;
        let (cidr, state) = (spec.cidr, spec.state);
        if spec.deleted {
            self.affinities.delete(&affinity).await?;
            return Ok(());
        }
        let known = blocks.get(&cidr);
        let Some(held) = known.and_then(Option::as_ref).filter(|b| b.block.is_of(&self.host)) else {
            if known.is_none_or(Option::is_some) {
                // No block, or another's: the claim never came to be, or is long over.
                self.affinities.delete(&affinity).await?;
            }
            return Ok(());
        };
        let wanted = view.still_selected(&cidr, &self.host);
        let empty = held.block.is_empty();
        let guard = match state {
            // Whoever began the release wanted the block gone; addresses still in use argue for keeping it.
            AffinityState::PendingDeletion if empty || !wanted => Some(ReleaseGuard::default()),
            _ if empty && !wanted => Some(ReleaseGuard {
                empty: true,
                sequence: Some(held.block.spec().sequence_number),
                rested: None,
            }),
            _ => None,
        };
        if let Some(guard) = guard
            && self.affinities.release(&self.host, &cidr, guard).await?
        {
            match self.records.block(&cidr).await? {
                Some(drained) => blocks.insert(cidr, Some(drained)),
                None => blocks.remove(&cidr),
            };
            return Ok(());
        }
        let confirmed = state == AffinityState::Confirmed || self.affinities.confirm(affinity).await?;
        if confirmed {
            self.own.insert(cidr, held.clone());
        }
        Ok(())
    }

    /// Makes the missing affinity of a block that says it is ours.
    async fn readopt(&mut self, cidr: &IpNet, blocks: &mut AllBlocks) -> Result<(), IpamError> {
        // The time matters only for a block that is created, and this one exists.
        match self.affinities.claim(&self.host, cidr, Now(0)).await? {
            crate::affinity::Claim::Ours(held) => {
                blocks.insert(*cidr, Some((*held).clone()));
                self.own.insert(*cidr, *held);
            }
            crate::affinity::Claim::Lost => {
                blocks.insert(*cidr, None);
            }
        }
        Ok(())
    }
}

fn cidr_of(block: &Entry) -> Option<IpNet> {
    let text = block.value.pointer("/spec/cidr").and_then(|c| c.as_str());
    text.and_then(|c| c.parse::<IpNet>().ok()).map(|c| c.trunc())
}

impl Allocator for BlockAllocator {
    fn assign<'a>(
        &'a mut self,
        request: &'a AssignRequest,
        view: &'a View,
        now: Now,
    ) -> IpamFuture<'a, Assignment> {
        Box::pin(self.assign_both(request, view, now))
    }

    fn assign_ip<'a>(
        &'a mut self,
        ip: IpAddr,
        owner: &'a Owner,
        intended_use: AllowedUse,
        view: &'a View,
        now: Now,
    ) -> IpamFuture<'a, Assigned> {
        Box::pin(self.assign_explicit(ip, owner, intended_use, view, now))
    }

    fn release_handle<'a>(
        &'a mut self,
        handle: &'a str,
        view: &'a View,
        now: Now,
    ) -> IpamFuture<'a, Vec<IpAddr>> {
        Box::pin(self.free_handle(handle, view, now))
    }

    fn release_ips<'a>(
        &'a mut self,
        releases: &'a [Release],
        view: &'a View,
        now: Now,
    ) -> IpamFuture<'a, ReleaseReport> {
        Box::pin(self.free_addresses(releases, view, now))
    }

    fn by_handle<'a>(&'a self, handle: &'a str) -> IpamFuture<'a, Vec<IpAddr>> {
        Box::pin(self.addresses_of(handle))
    }
}
