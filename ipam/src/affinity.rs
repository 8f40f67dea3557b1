//! Which host a block belongs to. The create of the IPAMBlock is the arbiter between hosts; the BlockAffinity around
//! it says how far the claim or the release has come, so that whoever finds half of one can finish or undo it:
//!
//! ```text
//! claim:    affinity pending ── create block ──► affinity confirmed
//!                 └─ block is another's ──► affinity deleted
//! release:  affinity pendingDeletion ── block deleted, or disowned if in use ──► affinity deleted
//! ```

use std::sync::Arc;

use brindle_config_core::{
    ObjectMeta, Resource,
    ipam::{AffinityState, BlockAffinitySpec},
    store::Stored,
};
use ipnet::IpNet;

use crate::{
    block::Block,
    error::IpamError,
    names,
    records::{Held, Records},
    retry::{Pause, Retry},
    time::Now,
};

/// Outcome of a claim.
#[derive(Debug)]
pub(crate) enum Claim {
    Ours(Box<Held>),
    /// Somebody else has the block (or nobody: it only drains).
    Lost,
}

/// What must hold for a release to go through.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ReleaseGuard {
    pub empty: bool,
    /// The block has not been written since it was looked at.
    pub sequence: Option<u64>,
    /// The time, and how many seconds addresses cool down: those that have no longer count.
    pub rested: Option<(Now, u32)>,
}

/// The affinity records of a store.
#[derive(Clone)]
pub(crate) struct Affinities {
    pub records: Records,
    pub pause: Arc<dyn Pause>,
}

impl Affinities {
    /// Claims the block for the host.
    pub(crate) async fn claim(&self, host: &str, cidr: &IpNet, now: Now) -> Result<Claim, IpamError> {
        let mut retry = Retry::new(&self.pause);
        loop {
            if let Some(claim) = self.try_claim(host, cidr, now).await? {
                return Ok(claim);
            }
            retry.again(|| format!("the claim of block {cidr}")).await?;
        }
    }

    /// One pass; `None` when a conditional write lost and everything must be read again.
    async fn try_claim(&self, host: &str, cidr: &IpNet, now: Now) -> Result<Option<Claim>, IpamError> {
        let Some(affinity) = self.pending(host, cidr).await? else { return Ok(None) };
        self.pause.passed("ipam.claim.pending");
        let held = match self.records.create_block(Block::new(*cidr, host, now)?).await? {
            Some(held) => held,
            None => match self.records.block(cidr).await? {
                None => return Ok(None),
                Some(held) if held.block.is_of(host) => held,
                Some(_) => {
                    self.delete(&affinity).await?;
                    return Ok(Some(Claim::Lost));
                }
            },
        };
        self.pause.passed("ipam.claim.created");
        Ok(self.confirm(affinity).await?.then(|| Claim::Ours(Box::new(held))))
    }

    /// Our affinity, pending or confirmed.
    async fn pending(
        &self,
        host: &str,
        cidr: &IpNet,
    ) -> Result<Option<Stored<BlockAffinitySpec>>, IpamError> {
        let (kind, owner) = names::owner_parts(host);
        let name = names::affinity_name(owner, cidr);
        let metadata = ObjectMeta {
            labels: names::affinity_labels(owner, kind, cidr),
            ..ObjectMeta::named(name.clone())
        };
        let spec = BlockAffinitySpec {
            state: AffinityState::Pending,
            node: owner.to_owned(),
            affinity_type: kind.into(),
            cidr: *cidr,
            deleted: false,
            extra: Default::default(),
        };
        let resource = Resource::new(metadata, spec);
        if let Some(revision) = self.records.create(&resource).await? {
            return Ok(Some(Stored { revision, resource }));
        }
        let Some(found) = self.get(&name).await? else { return Ok(None) };
        if found.resource.spec.state == AffinityState::Confirmed {
            return Ok(Some(found));
        }
        self.set_state(found, AffinityState::Pending).await
    }

    /// Confirms; also fine when another process of this host was quicker.
    pub(crate) async fn confirm(&self, affinity: Stored<BlockAffinitySpec>) -> Result<bool, IpamError> {
        if affinity.resource.spec.state == AffinityState::Confirmed {
            return Ok(true);
        }
        let name = affinity.resource.metadata.name.clone();
        if self.set_state(affinity, AffinityState::Confirmed).await?.is_some() {
            return Ok(true);
        }
        let now = self.get(&name).await?;
        Ok(now.is_some_and(|a| a.resource.spec.state == AffinityState::Confirmed))
    }

    /// Releases the host's block. `false`: the guard did not hold, or somebody wrote the block meanwhile; it stays
    /// with the host.
    pub(crate) async fn release(
        &self,
        host: &str,
        cidr: &IpNet,
        guard: ReleaseGuard,
    ) -> Result<bool, IpamError> {
        let affinity = self.get(&names::affinity_name(names::owner_parts(host).1, cidr)).await?;
        let Some(mut held) = self.records.block(cidr).await? else {
            return self.delete_if_any(affinity.as_ref()).await;
        };
        if held.block.owner().is_some_and(|h| h != host) {
            self.delete_if_any(affinity.as_ref()).await?;
            return Ok(false);
        }
        if let Some((now, seconds)) = guard.rested {
            held.block.end_cooldown(now, seconds);
        }
        let empty = held.block.is_empty();
        let written = guard.sequence.is_some_and(|s| s != held.block.spec().sequence_number);
        if written || (guard.empty && !empty) {
            return Ok(false);
        }
        let affinity = match affinity {
            None => None,
            Some(a) => match self.set_state(a, AffinityState::PendingDeletion).await? {
                None => return Ok(false),
                marked => marked,
            },
        };
        let done = if empty {
            self.records.delete_block(&held).await?
        } else {
            held.block.disown();
            self.records.swap_block(&mut held).await?
        };
        if !done {
            // The host used the block in this very moment: it keeps it. Left as it is the affinity would read as
            // half released, and routes would be made for a block on its way out.
            if let Some(a) = affinity {
                self.set_state(a, AffinityState::Confirmed).await?;
            }
            return Ok(false);
        }
        self.delete_if_any(affinity.as_ref()).await?;
        Ok(true)
    }

    /// Deletes the record unless somebody wrote it since.
    pub(crate) async fn delete(&self, affinity: &Stored<BlockAffinitySpec>) -> Result<bool, IpamError> {
        self.records.delete::<BlockAffinitySpec>(&affinity.resource.metadata.name, affinity.revision).await
    }

    async fn delete_if_any(&self, affinity: Option<&Stored<BlockAffinitySpec>>) -> Result<bool, IpamError> {
        match affinity {
            Some(a) => self.delete(a).await,
            None => Ok(true),
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Stored<BlockAffinitySpec>>, IpamError> {
        self.records.get::<BlockAffinitySpec>(name).await
    }

    async fn set_state(
        &self,
        mut affinity: Stored<BlockAffinitySpec>,
        state: AffinityState,
    ) -> Result<Option<Stored<BlockAffinitySpec>>, IpamError> {
        affinity.resource.spec.state = state;
        Ok(self.records.swap(&affinity.resource, affinity.revision).await?.map(|revision| {
            affinity.revision = revision;
            affinity
        }))
    }
}
