//! IPAMHandle: how many addresses one owner holds in each block. Counted up before the block is written and down
//! after it, so the count may be too high after a crash, never too low: from the handle every address can be found.

use std::{collections::BTreeMap, sync::Arc};

use brindle_config_core::{ObjectMeta, Resource, ipam::IpamHandleSpec, store::Stored};
use ipnet::IpNet;

use crate::{
    error::IpamError,
    names,
    records::Records,
    retry::{Pause, Retry},
};

/// The handle records of a store.
#[derive(Clone)]
pub(crate) struct Handles {
    pub records: Records,
    pub pause: Arc<dyn Pause>,
}

impl Handles {
    /// The record of a handle.
    pub(crate) async fn get(&self, handle: &str) -> Result<Option<Stored<IpamHandleSpec>>, IpamError> {
        self.records.get::<IpamHandleSpec>(&names::handle_name(handle)).await
    }

    /// Counts up by `n` in this block. Most handles hold one address, so creation is tried first.
    pub(crate) async fn increment(&self, handle: &str, cidr: &IpNet, n: u32) -> Result<(), IpamError> {
        let mut retry = Retry::new(&self.pause);
        loop {
            let fresh = IpamHandleSpec {
                handle_id: handle.to_owned(),
                block: BTreeMap::from([(cidr.to_string(), n)]),
                ..IpamHandleSpec::default()
            };
            let fresh = Resource::new(ObjectMeta::named(names::handle_name(handle)), fresh);
            if self.records.create(&fresh).await?.is_some() {
                return Ok(());
            }
            if let Some(mut found) = self.get(handle).await? {
                let count = found.resource.spec.block.entry(cidr.to_string()).or_default();
                *count = count.saturating_add(n);
                if self.records.swap(&found.resource, found.revision).await?.is_some() {
                    return Ok(());
                }
            }
            retry.again(|| format!("handle {handle}")).await?;
        }
    }

    /// Counts down by `n` in this block; the record goes with the last address. A missing record is fine.
    pub(crate) async fn decrement(&self, handle: &str, cidr: &IpNet, n: u32) -> Result<(), IpamError> {
        let mut retry = Retry::new(&self.pause);
        while let Some(mut found) = self.get(handle).await? {
            let block = cidr.to_string();
            let left = found.resource.spec.block.get(&block).copied().unwrap_or(0).saturating_sub(n);
            if left == 0 {
                found.resource.spec.block.remove(&block);
            } else {
                found.resource.spec.block.insert(block, left);
            }
            if self.store(&found).await? {
                return Ok(());
            }
            retry.again(|| format!("handle {handle}")).await?;
        }
        Ok(())
    }

    /// Forgets the block altogether, but only if the record is still the one given: whoever counted up since keeps
    /// their count.
    pub(crate) async fn forget(
        &self,
        mut found: Stored<IpamHandleSpec>,
        block: &str,
    ) -> Result<bool, IpamError> {
        found.resource.spec.block.remove(block);
        self.store(&found).await
    }

    /// Deletes the record if it is still the one given.
    pub(crate) async fn remove(&self, found: Stored<IpamHandleSpec>) -> Result<bool, IpamError> {
        self.records.delete::<IpamHandleSpec>(&found.resource.metadata.name, found.revision).await
    }

    async fn store(&self, found: &Stored<IpamHandleSpec>) -> Result<bool, IpamError> {
        if found.resource.spec.block.is_empty() {
            return self
                .records
                .delete::<IpamHandleSpec>(&found.resource.metadata.name, found.revision)
                .await;
        }
        Ok(self.records.swap(&found.resource, found.revision).await?.is_some())
    }
}
