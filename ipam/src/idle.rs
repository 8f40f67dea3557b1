//! Blocks nobody uses any more. One that has stood empty and unwritten for a grace period goes back, as with Calico; of each
//! pool that serves it a node keeps a block that has something to give, so that its next pod need not wait for a claim. When its
//! pool is gone a block goes with its last address. Memory and time are the caller's, as in [`crate::leak`].

use std::collections::BTreeMap;

use brindle_config_core::Kind;
use ipnet::IpNet;

use crate::{
    affinity::ReleaseGuard, allocator::BlockAllocator, error::IpamError, pools::View, time::Now,
    usage::Blocks,
};

/// A block to give back, if it has not been written since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleBlock {
    pub cidr: IpNet,
    pub sequence: u64,
}

/// Remembers since when a block has been empty.
#[derive(Clone, Debug, Default)]
pub struct Idle(BTreeMap<IpNet, (u64, Now)>);

impl Idle {
    /// Looks at the blocks of one owner. `grace` in seconds.
    pub fn look(
        &mut self,
        owner: &str,
        blocks: &Blocks,
        view: &View,
        grace: u64,
        now: Now,
    ) -> Vec<IdleBlock> {
        let cooldown = view.config.ip_cooldown_seconds.unwrap_or(0);
        let mut since = BTreeMap::new();
        let mut due = Vec::new();
        // By pool: the blocks that stay have so much to give.
        let mut left: BTreeMap<Option<&str>, usize> = BTreeMap::new();
        for block in blocks.iter().filter(|b| b.is_of(owner)) {
            let (cidr, sequence) = (block.cidr(), block.spec().sequence_number);
            let mut rested = block.clone();
            rested.end_cooldown(now, cooldown);
            let pool = view.pool_around(&cidr);
            if rested.is_empty() {
                let began = self.0.get(&cidr).filter(|(seen, _)| *seen == sequence).map_or(now, |(_, t)| *t);
                since.insert(cidr, (sequence, began));
                let gone = pool.is_none() && view.unreadable.is_empty();
                if gone || now.secs_since(began) >= grace {
                    // Nothing of it is given to this node any more.
                    let idle = pool.is_some_and(|p| p.spec.disabled) || !view.still_selected(&cidr, owner);
                    due.push((pool.map(|p| &*p.name), idle, rested));
                    continue;
                }
            }
            *left.entry(pool.map(|p| &*p.name)).or_default() += rested.free_count(&view.reservations);
        }
        self.0 = since;
        due.retain(|(pool, idle, block)| {
            let left = left.entry(*pool).or_default();
            // A pool that could not be read looks like none.
            let goes = if pool.is_none() { view.unreadable.is_empty() } else { *idle || *left > 0 };
            if !goes {
                *left += block.free_count(&view.reservations);
            }
            goes
        });
        due.into_iter()
            .map(|(.., b)| IdleBlock { cidr: b.cidr(), sequence: b.spec().sequence_number })
            .collect()
    }
}

impl BlockAllocator {
    /// Gives back an empty block of the host. `false`: somebody wrote it meanwhile, and it stays.
    pub async fn give_back(&mut self, idle: IdleBlock, view: &View, now: Now) -> Result<bool, IpamError> {
        let cooldown = view.config.ip_cooldown_seconds.unwrap_or(0);
        let guard =
            ReleaseGuard { empty: true, sequence: Some(idle.sequence), rested: Some((now, cooldown)) };
        let host = self.host.clone();
        self.give_back_of(&host, &idle.cidr, guard).await
    }

    /// Gives back the blocks of a pool that is gone, whoever has them, as far as they are empty and nobody writes them
    /// meanwhile. The others go with their last address.
    pub async fn give_back_within(&mut self, pool: &IpNet, now: Now) -> Result<Vec<IpNet>, IpamError> {
        let blocks = Blocks::read(&self.records.store.list(&[Kind::IpamBlock]).await?.entries);
        let mut given = Vec::new();
        for block in blocks.iter().filter(|b| pool.contains(&b.cidr())) {
            let guard = ReleaseGuard {
                empty: true,
                sequence: Some(block.spec().sequence_number),
                rested: Some((now, 0)),
            };
            let (owner, cidr) = (block.owner().unwrap_or_default().to_owned(), block.cidr());
            if self.give_back_of(&owner, &cidr, guard).await? {
                given.push(cidr);
            }
        }
        Ok(given)
    }

    pub(crate) async fn give_back_of(
        &mut self,
        owner: &str,
        cidr: &IpNet,
        guard: ReleaseGuard,
    ) -> Result<bool, IpamError> {
        let gone = self.affinities.release(owner, cidr, guard).await?;
        if gone {
            self.own.remove(cidr);
            if let Some(taken) = &mut self.taken {
                taken.blocks.remove(cidr);
            }
        }
        Ok(gone)
    }
}
