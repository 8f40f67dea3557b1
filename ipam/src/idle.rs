//! Blocks nobody uses any more. One that has stood empty and unwritten for a grace period goes back, as with Calico; of each
//! pool a node keeps a block that has something to give, so that its next pod need not wait for a claim. When its pool is
//! gone a block goes with its last address. Memory and time are the caller's, as in [`crate::leak`].

use std::collections::BTreeMap;

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
                if now.secs_since(began) >= grace {
                    due.push((pool.map(|p| &*p.name), rested));
                    continue;
                }
            }
            *left.entry(pool.map(|p| &*p.name)).or_default() += rested.free_count(&view.reservations);
        }
        self.0 = since;
        due.retain(|(pool, block)| {
            let left = left.entry(*pool).or_default();
            // A pool that could not be read looks like none.
            let goes = if pool.is_none() { view.unreadable.is_empty() } else { *left > 0 };
            if !goes {
                *left += block.free_count(&view.reservations);
            }
            goes
        });
        due.into_iter()
            .map(|(_, b)| IdleBlock { cidr: b.cidr(), sequence: b.spec().sequence_number })
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
