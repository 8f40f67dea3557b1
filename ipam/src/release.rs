//! Giving addresses back: by handle (a pod's end) or one by one with guards.
//!
//! A handle's count may be too high after a crash. Calico leaves such a handle for ever; here it goes, and safely: an
//! assigner counts the handle up *after* it read the block and before it writes it. So once we have written the block
//! after reading the handle, every write that could still be on its way has lost its comparison, and what the block
//! does not show can be forgotten.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::{
    affinity::ReleaseGuard,
    allocator::{BlockAllocator, ReleaseReport},
    block::{Release, same_handle},
    error::IpamError,
    net,
    pools::View,
    records::Held,
    retry::Retry,
    time::Now,
};

/// An address a handle holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldAddress {
    pub ip: IpAddr,
    pub sequence: u64,
    pub attributes: BTreeMap<String, String>,
}

impl BlockAllocator {
    pub(crate) async fn free_handle(
        &mut self,
        handle: &str,
        view: &View,
        now: Now,
    ) -> Result<Vec<IpAddr>, IpamError> {
        let mut freed = Vec::new();
        let mut retry = Retry::new(&self.pause);
        while let Some(record) = self.handles.get(handle).await? {
            let Some(text) = record.resource.spec.block.keys().next().cloned() else {
                // Nothing in it: only the record is left.
                if self.handles.forget(record, "").await? {
                    break;
                }
                retry.again(|| format!("handle {handle}")).await?;
                continue;
            };
            let Ok(cidr) = text.parse::<IpNet>() else {
                self.handles.forget(record, &text).await?;
                retry.again(|| format!("handle {handle}")).await?;
                continue;
            };
            let ips = self.free_in_block(handle, &cidr, view, now).await?;
            self.pause.passed("ipam.release.written");
            if !self.handles.forget(record, &text).await? {
                // Somebody counted up or down meanwhile; take away only what was given back here.
                self.handles.decrement(handle, &cidr, u32::try_from(ips.len()).unwrap_or(u32::MAX)).await?;
                retry.again(|| format!("handle {handle}")).await?;
            }
            self.pause.passed("ipam.release.forgotten");
            freed.extend(ips);
        }
        Ok(freed)
    }

    /// Deletes the record of a handle that holds nothing. `false`: it holds something, or somebody is about to give it
    /// something. An assignment under way has counted the handle up and not yet written its block; every block the
    /// record names is written here, so that such an assignment loses its comparison and begins again, with a record
    /// of its own.
    pub async fn forget_empty_handle(&mut self, handle: &str) -> Result<bool, IpamError> {
        let Some(record) = self.handles.get(handle).await? else { return Ok(true) };
        for text in record.resource.spec.block.keys() {
            let Ok(cidr) = text.parse::<IpNet>() else { continue };
            let Some(mut held) = self.records.block(&cidr).await? else { continue };
            if held.block.allocations().any(|a| a.handle().is_some_and(|h| same_handle(h, handle))) {
                return Ok(false);
            }
            self.own.remove(&cidr);
            if !self.records.swap_block(&mut held).await? {
                return Ok(false);
            }
        }
        self.handles.remove(record).await
    }

    /// Takes the handle's addresses out of one block, and writes the block even when there were none (see the top of
    /// this file).
    async fn free_in_block(
        &mut self,
        handle: &str,
        cidr: &IpNet,
        view: &View,
        now: Now,
    ) -> Result<Vec<IpAddr>, IpamError> {
        let mut retry = Retry::new(&self.pause);
        let mut remembered = self.own.remove(cidr);
        loop {
            let next = match remembered.take() {
                Some(held) => Some(held),
                None => self.records.block(cidr).await?,
            };
            let Some(mut held) = next else { return Ok(Vec::new()) };
            let ips = held.block.release_handle(handle, cooldown(cidr, view, now));
            if self.write_released(held, view, now).await? {
                return Ok(ips);
            }
            retry.again(|| format!("block {cidr}")).await?;
        }
    }

    pub(crate) async fn free_addresses(
        &mut self,
        releases: &[Release],
        view: &View,
        now: Now,
    ) -> Result<ReleaseReport, IpamError> {
        let mut report = ReleaseReport::default();
        for (block, group) in self.group_by_block(releases, view, &mut report).await? {
            let mut retry = Retry::new(&self.pause);
            let mut remembered = self.own.remove(&block);
            loop {
                let fresh = match remembered.take() {
                    Some(held) => Some(held),
                    None => self.records.block(&block).await?,
                };
                let Some(mut held) = fresh else {
                    report.unallocated.extend(group.iter().map(|r| r.ip));
                    break;
                };
                let done = match held.block.release(&group, cooldown(&block, view, now)) {
                    Ok(done) => done,
                    Err(e) => return Err(e.into()),
                };
                if !done.addresses.is_empty() && !self.write_released(held, view, now).await? {
                    retry.again(|| format!("block {block}")).await?;
                    continue;
                }
                self.pause.passed("ipam.release.written");
                for (handle, n) in &done.by_handle {
                    self.handles.decrement(handle, &block, *n).await?;
                }
                self.pause.passed("ipam.release.forgotten");
                report.released.extend(done.addresses);
                report.unallocated.extend(done.unallocated);
                break;
            }
        }
        Ok(report)
    }

    /// Which stored block each address is in. The pools say where to look first; a block from before a change of
    /// pools is found by listing all.
    async fn group_by_block(
        &mut self,
        releases: &[Release],
        view: &View,
        report: &mut ReleaseReport,
    ) -> Result<BTreeMap<IpNet, Vec<Release>>, IpamError> {
        let mut groups: BTreeMap<IpNet, Vec<Release>> = BTreeMap::new();
        let mut all: Option<Vec<IpNet>> = None;
        for release in releases {
            let guess = view
                .pools
                .iter()
                .find(|p| p.spec.cidr.contains(&release.ip))
                .and_then(|p| net::block_of(release.ip, p.spec.block_size()));
            let mut home = None;
            if let Some(cidr) = guess
                && (self.own.contains_key(&cidr)
                    || groups.contains_key(&cidr)
                    || self.records.block(&cidr).await?.is_some())
            {
                home = Some(cidr);
            }
            if home.is_none() {
                if all.is_none() {
                    all = Some(self.read_all(view).await?.into_keys().collect());
                }
                home = all.iter().flatten().find(|c| c.contains(&release.ip)).copied();
            }
            match home {
                Some(cidr) => groups.entry(cidr).or_default().push(release.clone()),
                None => report.unallocated.push(release.ip),
            }
        }
        Ok(groups)
    }

    /// Writes a block after a release; one that is empty and nobody's, or of no pool, goes.
    async fn write_released(&mut self, mut held: Held, view: &View, now: Now) -> Result<bool, IpamError> {
        let orphan = view.without_pool(&held.block.cidr());
        if orphan {
            held.block.end_cooldown(now, 0);
        }
        if held.block.owner().is_none() && held.block.is_empty() {
            return self.records.delete_block(&held).await;
        }
        if !self.records.swap_block(&mut held).await? {
            return Ok(false);
        }
        let cidr = held.block.cidr();
        let sequence = Some(held.block.spec().sequence_number);
        let last = (orphan && held.block.is_empty()).then(|| held.block.owner().map(str::to_owned)).flatten();
        if held.block.is_of(&self.host) {
            self.own.insert(cidr, held);
        }
        if let Some(owner) = last {
            // One that is written just now stays, and goes with the address it was written for.
            let guard = ReleaseGuard { empty: true, sequence, rested: None };
            self.give_back_of(&owner, &cidr, guard).await?;
        }
        Ok(true)
    }

    pub(crate) async fn addresses_of(&self, handle: &str) -> Result<Vec<IpAddr>, IpamError> {
        Ok(self.held_by(handle).await?.into_iter().map(|h| h.ip).collect())
    }

    /// The addresses of the handle as stored now, with what is recorded of them.
    pub async fn held_by(&self, handle: &str) -> Result<Vec<HeldAddress>, IpamError> {
        let mut found = Vec::new();
        let Some(record) = self.handles.get(handle).await? else { return Ok(found) };
        for text in record.resource.spec.block.keys() {
            let Ok(cidr) = text.parse::<IpNet>() else { continue };
            let Some(held) = self.records.block(&cidr).await? else { continue };
            let of_handle =
                held.block.allocations().filter(|a| a.handle().is_some_and(|h| same_handle(h, handle)));
            found.extend(of_handle.map(|a| HeldAddress {
                ip: a.ip,
                sequence: a.sequence,
                attributes: a.attribute.secondary.clone(),
            }));
        }
        Ok(found)
    }
}

/// Where nobody is given an address any more none has to cool down.
fn cooldown(block: &IpNet, view: &View, now: Now) -> Option<Now> {
    if view.without_pool(block) {
        return None;
    }
    view.config.ip_cooldown_seconds.filter(|s| *s > 0).map(|_| now)
}
