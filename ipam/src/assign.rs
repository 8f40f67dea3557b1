//! Auto-assignment, cheapest step first: own blocks as remembered; own blocks as stored; a new block; an empty block
//! of another host; an address borrowed from another host's block. Each step that fails leaves its reason.
//!
//! Two points where Calico does otherwise, on purpose: a host at its limit of blocks still borrows; and a candidate
//! block is refused if it overlaps *any* stored block, also one of another size, so that a changed block size never
//! lets two blocks give the same address.

use std::{collections::BTreeSet, net::IpAddr};

use brindle_config_core::pool::AllowedUse;
use ipnet::IpNet;

use crate::{
    affinity::{Claim, ReleaseGuard},
    allocator::{AllBlocks, AssignRequest, Assigned, Assignment, BlockAllocator, Wanted, division},
    block::Owner,
    error::IpamError,
    net::{self, BlockWalk},
    pools::{Family, Pool, View},
    records::Held,
    refusal::{Reason, Refusal},
    retry::Retry,
    time::Now,
};

/// The addresses of the pools that cool down, if there are any.
fn resting(job: &Job<'_>, all: &AllBlocks) -> Option<Reason> {
    let cooldown = job.view.config.ip_cooldown_seconds.filter(|s| *s > 0)?;
    let of_pools = all.values().flatten().filter(|h| job.pool_of(&h.block.cidr()).is_some());
    let left = of_pools.flat_map(|h| {
        h.block.allocations().filter_map(|a| h.block.cooling_for(a.ip, job.now, cooldown)).collect::<Vec<_>>()
    });
    let left: Vec<u64> = left.collect();
    Some(Reason::Resting { addresses: left.len(), seconds: left.into_iter().min()? })
}

/// Limit of blocks per host when none is configured (Calico's).
const DEFAULT_MAX_BLOCKS: u32 = 20;
/// A block claimed less than this ago is not taken from its host though it is empty: the host is about to use it.
const RECLAIM_AGE_SECS: u64 = 60;
/// Claims from memory in one assignment; each one lost says that the memory is old.
const MAX_STALE_CLAIMS: usize = 8;

/// What every step of one assignment needs.
struct Job<'a> {
    owner: &'a Owner,
    view: &'a View,
    pools: Vec<&'a Pool>,
    count: usize,
    now: Now,
    got: Vec<Assigned>,
    refusal: Refusal,
}

impl Job<'_> {
    fn missing(&self) -> usize {
        self.count.saturating_sub(self.got.len())
    }

    fn pool_of(&self, block: &IpNet) -> Option<&Pool> {
        self.pools.iter().find(|p| p.spec.cidr.contains(block)).copied()
    }

    fn take_up(&mut self, ips: Vec<IpAddr>, block: IpNet, borrowed_from: Option<&str>) {
        let pool = self.pool_of(&block).map(|p| p.name.clone()).unwrap_or_default();
        self.got.extend(ips.into_iter().map(|ip| Assigned {
            ip,
            block,
            pool: pool.clone(),
            borrowed_from: borrowed_from.map(str::to_owned),
        }));
    }
}

impl BlockAllocator {
    pub(crate) async fn assign_both(
        &mut self,
        request: &AssignRequest,
        view: &View,
        now: Now,
    ) -> Result<Assignment, IpamError> {
        let (mut addresses, v4_refusal) =
            self.assign_family(Family::V4, &request.v4, request, view, now).await?;
        let (v6, v6_refusal) = self.assign_family(Family::V6, &request.v6, request, view, now).await?;
        addresses.extend(v6);
        Ok(Assignment { addresses, v4_refusal, v6_refusal })
    }

    async fn assign_family(
        &mut self,
        family: Family,
        wanted: &Wanted,
        request: &AssignRequest,
        view: &View,
        now: Now,
    ) -> Result<(Vec<Assigned>, Option<Refusal>), IpamError> {
        if wanted.count == 0 {
            return Ok((Vec::new(), None));
        }
        let namespace = request.namespace_labels.as_ref();
        let pools = match view.choose(&self.host, family, &wanted.pools, request.intended_use, namespace) {
            Ok(pools) => pools,
            Err(refusal) => return Ok((Vec::new(), Some(refusal))),
        };
        let mut job = Job {
            owner: &request.owner,
            view,
            pools,
            count: wanted.count,
            now,
            got: Vec::new(),
            refusal: Refusal::default(),
        };
        let max_blocks = limit(request.max_blocks, view.config.max_blocks_per_host);
        self.use_own(&mut job).await?;
        self.use_remembered(&mut job, max_blocks).await?;
        if job.missing() > 0 {
            let mut all = self.read_rested(view, now).await?;
            self.use_own(&mut job).await?;
            self.use_new(&mut job, &mut all, max_blocks).await?;
            let resting = resting(&job, &all);
            self.use_others(&mut job, all).await?;
            resting.into_iter().for_each(|reason| job.refusal.push(reason));
        }
        let refusal = (job.missing() > 0).then_some(job.refusal);
        Ok((job.got, refusal))
    }

    /// All blocks, with their cooldowns ended as far as they are over: whether a block has something to give, or is empty,
    /// is decided by what is free now. The records say so when they are written next.
    async fn read_rested(&mut self, view: &View, now: Now) -> Result<AllBlocks, IpamError> {
        let mut all = self.read_all(view).await?;
        for held in all.values_mut().flatten() {
            held.block.end_cooldown(now, view.config.ip_cooldown_seconds.unwrap_or(0));
        }
        Ok(all)
    }

    /// The addresses [`crate::Allocator::assign`] is about to give of blocks the host owns, as remembered, in the order it
    /// gives them; none where that is not enough. Another host may be given one first: only what is recorded counts. Changes
    /// nothing and asks no store.
    pub fn foresee(&self, request: &AssignRequest, view: &View, now: Now) -> Vec<IpAddr> {
        let mut all = Vec::new();
        for (family, wanted) in [(Family::V4, &request.v4), (Family::V6, &request.v6)] {
            let namespace = request.namespace_labels.as_ref();
            let until = all.len() + wanted.count;
            if wanted.count == 0 {
                continue;
            }
            let Ok(pools) = view.choose(&self.host, family, &wanted.pools, request.intended_use, namespace)
            else {
                return Vec::new();
            };
            for (cidr, held) in &self.own {
                if all.len() < until && pools.iter().any(|p| p.spec.cidr.contains(cidr)) {
                    let mut block = held.block.clone();
                    block.end_cooldown(now, view.config.ip_cooldown_seconds.unwrap_or(0));
                    all.extend(block.auto_assign(until - all.len(), &request.owner, &view.reservations));
                }
            }
            if all.len() < until {
                return Vec::new();
            }
        }
        all
    }

    /// From blocks the host owns.
    async fn use_own(&mut self, job: &mut Job<'_>) -> Result<(), IpamError> {
        let candidates: Vec<IpNet> = self.own.keys().filter(|c| job.pool_of(c).is_some()).copied().collect();
        for cidr in candidates {
            if job.missing() == 0 {
                break;
            }
            // Taken out while it is being changed: whatever interrupts this, no half-made copy remains.
            let Some(mut held) = self.own.remove(&cidr) else { continue };
            held.block.end_cooldown(job.now, job.view.config.ip_cooldown_seconds.unwrap_or(0));
            if held.block.free_count(&job.view.reservations) == 0 {
                self.own.insert(cidr, held);
                continue;
            }
            let (ips, held) = self.take(held, job, true).await?;
            job.take_up(ips, cidr, None);
            if let Some(held) = held {
                self.own.insert(cidr, held);
            }
        }
        Ok(())
    }

    /// From blocks that nobody had when all were last listed. Leaves without a reason when it cannot help: the steps
    /// after it look themselves.
    async fn use_remembered(&mut self, job: &mut Job<'_>, limit: u32) -> Result<(), IpamError> {
        if !job.view.config.auto_allocate_blocks {
            return Ok(());
        }
        let Some(mut taken) = self.taken.take() else { return Ok(()) };
        if taken.pools != division(job.view) {
            return Ok(());
        }
        for _ in 0..MAX_STALE_CLAIMS {
            let owned = self.own.keys().filter(|c| job.pool_of(c).is_some()).count();
            if job.missing() == 0 || owned >= limit as usize {
                break;
            }
            let Some(cidr) = self.unclaimed(&job.pools, job.view, job.now, &taken.blocks) else { break };
            taken.blocks.insert(cidr);
            if let Claim::Ours(held) = self.affinities.claim(&self.host, &cidr, job.now).await? {
                let (ips, held) = self.take(*held, job, true).await?;
                job.take_up(ips, cidr, None);
                self.own.extend(held.map(|held| (cidr, held)));
            }
        }
        self.taken = Some(taken);
        Ok(())
    }

    /// From blocks nobody owns yet, or that others own but do not use.
    async fn use_new(&mut self, job: &mut Job<'_>, all: &mut AllBlocks, limit: u32) -> Result<(), IpamError> {
        let mut retry = Retry::new(&self.pause);
        while job.missing() > 0 {
            let owned = self.own.keys().filter(|c| job.pool_of(c).is_some()).count();
            if owned > 0 {
                job.refusal.push(Reason::OwnBlocksFull(owned));
            }
            if owned >= limit as usize {
                job.refusal.push(Reason::BlockLimit(limit));
                return Ok(());
            }
            if !job.view.config.auto_allocate_blocks {
                job.refusal.push(Reason::AutoAllocateOff);
                return Ok(());
            }
            let cidr = match self.unclaimed(&job.pools, job.view, job.now, all) {
                Some(cidr) => cidr,
                None => match self.reclaim(job, all).await? {
                    Some(cidr) => cidr,
                    None => {
                        for pool in &job.pools {
                            job.refusal.push(job.view.without_free_block(pool));
                        }
                        return Ok(());
                    }
                },
            };
            match self.affinities.claim(&self.host, &cidr, job.now).await? {
                Claim::Ours(held) => {
                    all.insert(cidr, Some((*held).clone()));
                    let (ips, held) = self.take(*held, job, true).await?;
                    job.take_up(ips, cidr, None);
                    match held {
                        Some(held) => self.own.insert(cidr, held),
                        None => self.own.remove(&cidr),
                    };
                }
                Claim::Lost => {
                    // Others are claiming too: what they took since the listing must be seen, or a host would
                    // collide with each of them in turn.
                    retry.again(|| "the claim of a block".to_owned()).await?;
                    *all = self.read_rested(job.view, job.now).await?;
                }
            }
        }
        Ok(())
    }

    /// The first block of the allowed pools that overlaps no stored one, from the host's own starting point.
    fn unclaimed(&self, pools: &[&Pool], view: &View, now: Now, all: &impl Occupied) -> Option<IpNet> {
        for pool in pools {
            let size = pool.spec.block_size();
            let single = matches!((&pool.spec.cidr, size), (IpNet::V4(_), 32) | (IpNet::V6(_), 128));
            // For blocks of one address a steady start would make every claim walk over all earlier ones.
            let seed = if single { now.0 } else { net::host_seed(&self.host) };
            let mut walk = BlockWalk::new(pool.spec.cidr, size, seed);
            while let Some(block) = walk.next() {
                if let Some(reserved) = view.reservations.covering(&block) {
                    walk.pass_over(reserved);
                } else if !overlaps(all, &block) {
                    return Some(block);
                }
            }
        }
        None
    }

    /// Whether there is nothing to give from these pools, as far as is remembered: own blocks have no address left, no block
    /// is unclaimed, and there is none to borrow from. What is not known counts as room. No store is asked.
    pub fn seems_full(&self, pools: &[IpNet], view: &View, now: Now) -> bool {
        let Some(taken) = self.taken.as_ref().filter(|t| t.pools == division(view)) else { return false };
        let pools: Vec<&Pool> = view.pools.iter().filter(|p| pools.contains(&p.spec.cidr)).collect();
        let within = |c: &IpNet| pools.iter().any(|p| p.spec.cidr.contains(c));
        let cooldown = view.config.ip_cooldown_seconds.unwrap_or(0);
        let has_room = |held: &Held| {
            let mut rested = held.block.clone();
            rested.end_cooldown(now, cooldown);
            rested.free_count(&view.reservations) > 0
        };
        let own: Vec<&Held> = self.own.iter().filter(|(c, _)| within(c)).map(|(_, h)| h).collect();
        if own.iter().any(|h| has_room(h)) {
            return false;
        }
        let lenders = taken.blocks.iter().any(|c| within(c) && !self.own.contains_key(c));
        if lenders && !view.config.strict_affinity {
            return false;
        }
        let may_claim = view.config.auto_allocate_blocks
            && own.len() < limit(0, view.config.max_blocks_per_host) as usize;
        !may_claim || self.unclaimed(&pools, view, now, &taken.blocks).is_none()
    }

    /// Frees an unused block of another host and returns it for a claim.
    async fn reclaim(&self, job: &Job<'_>, all: &mut AllBlocks) -> Result<Option<IpNet>, IpamError> {
        let unused: Vec<(IpNet, Option<String>, u64)> = all
            .iter()
            .filter_map(|(cidr, held)| Some((cidr, &held.as_ref()?.block)))
            .filter(|(cidr, block)| {
                let pool = job.pool_of(cidr);
                pool.is_some_and(|p| p.spec.block_size() == cidr.prefix_len())
                    && !block.is_of(&self.host)
                    && block.is_empty()
                    && block.free_count(&job.view.reservations) > 0
                    && block.claimed().is_none_or(|t| job.now.secs_since(t) >= RECLAIM_AGE_SECS)
            })
            .map(|(cidr, block)| (*cidr, block.owner().map(str::to_owned), block.spec().sequence_number))
            .collect();
        for (cidr, host, sequence) in unused {
            let cooldown = job.view.config.ip_cooldown_seconds.unwrap_or(0);
            let guard =
                ReleaseGuard { empty: true, sequence: Some(sequence), rested: Some((job.now, cooldown)) };
            // Nobody's block has no affinity to go through; the empty name finds none.
            if self.affinities.release(host.as_deref().unwrap_or(""), &cidr, guard).await? {
                all.remove(&cidr);
                return Ok(Some(cidr));
            }
            all.insert(cidr, None);
        }
        Ok(None)
    }

    /// From blocks of other hosts, which keep them.
    async fn use_others(&mut self, job: &mut Job<'_>, all: AllBlocks) -> Result<(), IpamError> {
        if job.missing() == 0 {
            return Ok(());
        }
        if job.view.config.strict_affinity {
            job.refusal.push(Reason::StrictAffinity);
            return Ok(());
        }
        let mut lenders: Vec<Held> = all
            .into_values()
            .flatten()
            .filter(|h| {
                !h.block.is_of(&self.host)
                    && !h.block.spec().strict_affinity
                    && job.pool_of(&h.block.cidr()).is_some()
                    && h.block.free_count(&job.view.reservations) > 0
            })
            .collect();
        // Each host starts elsewhere, so that borrowers do not queue at one block; what nobody owns goes last, for
        // it is there to be emptied.
        let start = usize::try_from(net::host_seed(&self.host) >> 1).unwrap_or(0);
        let at = start.checked_rem(lenders.len()).unwrap_or(0);
        lenders.rotate_left(at);
        lenders.sort_by_key(|h| h.block.owner().is_none());
        for held in lenders {
            if job.missing() == 0 {
                return Ok(());
            }
            let (cidr, owner) = (held.block.cidr(), held.block.owner().map(str::to_owned));
            let (ips, _) = self.take(held, job, false).await?;
            job.take_up(ips, cidr, Some(owner.as_deref().unwrap_or("nobody")));
        }
        if job.missing() > 0 {
            job.refusal.push(Reason::NothingToBorrow);
        }
        Ok(())
    }

    /// Takes what is missing from one block. Returns the addresses and the block as it is now stored; no block when
    /// it is gone or (with `ours`) no longer the host's.
    async fn take(
        &self,
        mut held: Held,
        job: &Job<'_>,
        ours: bool,
    ) -> Result<(Vec<IpAddr>, Option<Held>), IpamError> {
        let cidr = held.block.cidr();
        let mut retry = Retry::new(&self.pause);
        loop {
            if ours && !held.block.is_of(&self.host) {
                return Ok((Vec::new(), None));
            }
            held.block.end_cooldown(job.now, job.view.config.ip_cooldown_seconds.unwrap_or(0));
            let ips = held.block.auto_assign(job.missing(), job.owner, &job.view.reservations);
            if ips.is_empty() {
                return Ok((ips, Some(held)));
            }
            if self.write_assigned(&mut held, &job.owner.handle, ips.len()).await? {
                return Ok((ips, Some(held)));
            }
            retry.again(|| format!("block {cidr}")).await?;
            match self.records.block(&cidr).await? {
                Some(fresh) => held = fresh,
                None => return Ok((Vec::new(), None)),
            }
        }
    }

    /// Counts the handle up, writes the block, and counts down again if the write lost. When the outcome is unknown
    /// the count stays: a handle that claims too much is repaired by its release, an address without one is lost.
    pub(crate) async fn write_assigned(
        &self,
        held: &mut Held,
        handle: &str,
        n: usize,
    ) -> Result<bool, IpamError> {
        let cidr = held.block.cidr();
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        self.handles.increment(handle, &cidr, n).await?;
        self.pause.passed("ipam.assign.counted");
        if self.records.swap_block(held).await? {
            self.pause.passed("ipam.assign.written");
            return Ok(true);
        }
        self.handles.decrement(handle, &cidr, n).await?;
        Ok(false)
    }
}

/// The smaller of two limits, where 0 means none.
fn limit(request: u32, configured: u32) -> u32 {
    [request, configured].into_iter().filter(|l| *l > 0).min().unwrap_or(DEFAULT_MAX_BLOCKS)
}

/// A set of blocks in order.
pub(crate) trait Occupied {
    fn has(&self, block: &IpNet) -> bool;
    fn first_from(&self, block: &IpNet) -> Option<IpNet>;
}

impl Occupied for AllBlocks {
    fn has(&self, block: &IpNet) -> bool {
        self.contains_key(block)
    }

    fn first_from(&self, block: &IpNet) -> Option<IpNet> {
        self.range(*block..).next().map(|(c, _)| *c)
    }
}

impl Occupied for BTreeSet<IpNet> {
    fn has(&self, block: &IpNet) -> bool {
        self.contains(block)
    }

    fn first_from(&self, block: &IpNet) -> Option<IpNet> {
        self.range(*block..).next().copied()
    }
}

/// Whether any stored block shares an address with this one.
pub(crate) fn overlaps(all: &impl Occupied, block: &IpNet) -> bool {
    if all.has(block) {
        return true;
    }
    let around = (0..block.prefix_len())
        .filter_map(|len| IpNet::new(block.addr(), len).ok())
        .any(|net| all.has(&net.trunc()));
    around || all.first_from(block).is_some_and(|c| block.contains(&c.network()))
}

impl AssignRequest {
    /// A request for a pod.
    pub fn for_workload(owner: Owner, v4: Wanted, v6: Wanted) -> Self {
        Self { owner, v4, v6, intended_use: AllowedUse::Workload, namespace_labels: None, max_blocks: 0 }
    }
}
