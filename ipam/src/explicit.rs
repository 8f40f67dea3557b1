//! Assignment of one given address (a pod that asks for its address or comes back for it, a take-over).

use std::net::IpAddr;

use brindle_config_core::pool::AllowedUse;
use ipnet::IpNet;

use crate::{
    affinity::Claim,
    allocator::{Assigned, BlockAllocator},
    assign::overlaps,
    block::{Allocation, Owner, Release, same_handle},
    error::IpamError,
    net,
    pools::{Pool, View},
    records::Held,
    refusal::{Reason, Refusal},
    retry::Retry,
    time::Now,
};

impl BlockAllocator {
    pub(crate) async fn assign_explicit(
        &mut self,
        ip: IpAddr,
        owner: &Owner,
        intended_use: AllowedUse,
        view: &View,
        now: Now,
    ) -> Result<Assigned, IpamError> {
        let refused = |reason: Reason| IpamError::Refused(Refusal::from(reason));
        let pool = view.pool_of(ip).ok_or_else(|| refused(Reason::OutsidePools))?;
        if !pool.spec.allows(intended_use) {
            return Err(refused(Reason::UseNotAllowed { pool: pool.name.clone(), wanted: intended_use }));
        }
        self.assign_in(pool, ip, owner, view, now).await
    }

    async fn assign_in(
        &mut self,
        pool: &Pool,
        ip: IpAddr,
        owner: &Owner,
        view: &View,
        now: Now,
    ) -> Result<Assigned, IpamError> {
        let refused = |reason: Reason| IpamError::Refused(Refusal::from(reason));
        let cidr = net::block_of(ip, pool.spec.block_size()).ok_or_else(|| {
            refused(Reason::BadBlockSize { pool: pool.name.clone(), block_size: pool.spec.block_size() })
        })?;
        let mut retry = Retry::new(&self.pause);
        loop {
            let mut held = self.block_for(ip, &cidr, view, now).await?;
            let block = held.block.cidr();
            let lender =
                (!held.block.is_of(&self.host)).then(|| held.block.owner().unwrap_or("nobody").to_owned());
            if let Some(host) = &lender
                && (view.config.strict_affinity || held.block.spec().strict_affinity)
            {
                return Err(refused(Reason::ForeignBlock { block, host: host.clone() }));
            }
            let cooldown = view.config.ip_cooldown_seconds.unwrap_or(0);
            held.block.end_cooldown(now, cooldown);
            if let Some(seconds) = held.block.cooling_for(ip, now, cooldown) {
                return Err(IpamError::Cooling { ip, seconds });
            }
            held.block.assign(ip, owner)?;
            if self.write_assigned(&mut held, &owner.handle, 1).await? {
                if lender.is_none() {
                    self.own.insert(block, held);
                }
                return Ok(assigned(ip, block, pool, lender));
            }
            retry.again(|| format!("block {block}")).await?;
        }
    }

    /// Makes the records say that the owner has this address: they do already, or it is free or cools down, or `former` has it, which is
    /// the same workload's handle of before. Refuses an address of anybody else. The workload has it already, so that what
    /// became of its pool since does not matter: a disabled one gives no new addresses, and this is none.
    pub async fn keep(
        &mut self,
        ip: IpAddr,
        former: &str,
        owner: &Owner,
        view: &View,
        now: Now,
    ) -> Result<(), IpamError> {
        let pool = view.pools.iter().find(|p| p.spec.cidr.contains(&ip));
        let guess = pool.and_then(|p| net::block_of(ip, p.spec.block_size()));
        let mut retry = Retry::new(&self.pause);
        while let Some(mut held) = self.stored_block(ip, guess, view).await? {
            let cidr = held.block.cidr();
            self.own.remove(&cidr);
            let there = held.block.allocation(ip);
            let cools = there.as_ref().is_some_and(Allocation::cooling);
            let holder = there.and_then(|a| a.handle().map(str::to_owned));
            match holder {
                Some(h) if same_handle(&h, &owner.handle) => return Ok(()),
                Some(h) if same_handle(&h, former) => {}
                None if cools => {}
                _ => break,
            }
            // One write of the block: at no time is the address anybody's to take.
            if cools {
                held.block.stop_cooling(ip);
            } else {
                held.block
                    .release(&[Release { ip, handle: Some(former.to_owned()), sequence: None }], None)?;
            }
            held.block.assign(ip, owner)?;
            if self.write_assigned(&mut held, &owner.handle, 1).await? {
                if !cools {
                    self.handles.decrement(former, &cidr, 1).await?;
                }
                if held.block.is_of(&self.host) {
                    self.own.insert(cidr, held);
                }
                return Ok(());
            }
            retry.again(|| format!("block {cidr}")).await?;
        }
        let pool = pool.ok_or_else(|| IpamError::Refused(Reason::OutsidePools.into()))?;
        self.assign_in(pool, ip, owner, view, now).await.map(drop)
    }

    /// The stored block that holds the address, if any; `guess` is where it is unless the pools were changed.
    async fn stored_block(
        &mut self,
        ip: IpAddr,
        guess: Option<IpNet>,
        view: &View,
    ) -> Result<Option<Held>, IpamError> {
        if let Some(cidr) = guess
            && let Some(held) = self.records.block(&cidr).await?
        {
            return Ok(Some(held));
        }
        match self.read_all(view).await?.into_iter().find(|(c, _)| c.contains(&ip)) {
            Some((_, None)) => Err(unreadable(ip)),
            found => Ok(found.and_then(|(_, held)| held)),
        }
    }

    /// The stored block that holds the address; claimed when there is none.
    async fn block_for(
        &mut self,
        ip: IpAddr,
        cidr: &IpNet,
        view: &View,
        now: Now,
    ) -> Result<Held, IpamError> {
        let mut retry = Retry::new(&self.pause);
        loop {
            self.own.remove(cidr);
            if let Some(held) = self.records.block(cidr).await? {
                return Ok(held);
            }
            let all = self.read_all(view).await?;
            if overlaps(&all, cidr) {
                // A block of another size, from before the pool's was changed.
                let other = all.into_iter().find(|(c, _)| c.contains(&ip));
                if let Some((_, Some(held))) = other {
                    return Ok(held);
                }
                return Err(unreadable(ip));
            }
            if let Claim::Ours(held) = self.affinities.claim(&self.host, cidr, now).await? {
                return Ok(*held);
            }
            retry.again(|| format!("the claim of block {cidr}")).await?;
        }
    }
}

fn unreadable(ip: IpAddr) -> IpamError {
    IpamError::Refused(Reason::Unreadable(format!("the block that holds {ip}")).into())
}

fn assigned(ip: IpAddr, block: IpNet, pool: &Pool, borrowed_from: Option<String>) -> Assigned {
    Assigned { ip, block, pool: pool.name.clone(), borrowed_from }
}
