//! Typed access to the three kinds of IPAM records: read, create, compare-and-swap. A record that Calico marked
//! `deleted` is halfway gone (its API has no conditional delete); reading one completes the deletion.

use std::sync::Arc;

use brindle_config_core::{
    Key, ObjectMeta, Resource, Spec,
    ipam::{BlockAffinitySpec, IpamBlockSpec, IpamHandleSpec},
    store::{Entry, Expect, Revision, Store, StoreError, StoreExt, Stored, decode},
};
use ipnet::IpNet;

use crate::{block::Block, error::IpamError, names};

/// What lets a soft-deleted record be recognised.
pub(crate) trait SoftDelete: Spec {
    fn deleted(&self) -> bool;
}

impl SoftDelete for IpamBlockSpec {
    fn deleted(&self) -> bool {
        self.deleted
    }
}

impl SoftDelete for BlockAffinitySpec {
    fn deleted(&self) -> bool {
        self.deleted
    }
}

impl SoftDelete for IpamHandleSpec {
    fn deleted(&self) -> bool {
        self.deleted
    }
}

/// A block with what is needed to write it back unchanged but for its spec.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub revision: Revision,
    pub block: Block,
    envelope: Envelope,
}

#[derive(Clone, Debug)]
struct Envelope {
    metadata: ObjectMeta,
    extra: brindle_config_core::meta::Extra,
}

impl Held {
    fn from_stored(stored: Stored<IpamBlockSpec>) -> Result<Self, IpamError> {
        let Resource { metadata, spec, extra, .. } = stored.resource;
        Ok(Self {
            revision: stored.revision,
            block: Block::from_spec(spec)?,
            envelope: Envelope { metadata, extra },
        })
    }

    /// From an entry of a listing. `Ok(None)` for a soft-deleted block: whoever needs it reads it again.
    pub(crate) fn from_entry(entry: &Entry) -> Result<Option<Self>, IpamError> {
        let stored = decode::<IpamBlockSpec>(entry)?;
        if stored.resource.spec.deleted {
            return Ok(None);
        }
        Self::from_stored(stored).map(Some)
    }
}

/// The store, seen by this package.
#[derive(Clone)]
pub(crate) struct Records {
    pub store: Arc<dyn Store>,
}

/// Whether the write certainly did not happen.
pub(crate) fn lost_race(e: &StoreError) -> bool {
    matches!(e, StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_))
}

impl Records {
    /// Reads a record by name; `None` when absent.
    pub(crate) async fn get<S: SoftDelete>(&self, name: &str) -> Result<Option<Stored<S>>, IpamError> {
        let found = match self.store.get_as::<S>(None, name).await {
            Ok(found) => found,
            Err(StoreError::NotFound(_)) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        if found.resource.spec.deleted() {
            self.delete::<S>(name, found.revision).await?;
            return Ok(None);
        }
        Ok(Some(found))
    }

    /// Creates; `Ok(None)` when it exists.
    pub(crate) async fn create<S: Spec>(
        &self,
        resource: &Resource<S>,
    ) -> Result<Option<Revision>, IpamError> {
        match self.store.put_as(resource, Expect::Absent).await {
            Ok(revision) => Ok(Some(revision)),
            Err(e) if lost_race(&e) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Compare-and-swap; `Ok(None)` when somebody else wrote or deleted it.
    pub(crate) async fn swap<S: Spec>(
        &self,
        resource: &Resource<S>,
        revision: Revision,
    ) -> Result<Option<Revision>, IpamError> {
        match self.store.put_as(resource, Expect::Revision(revision)).await {
            Ok(revision) => Ok(Some(revision)),
            Err(e) if lost_race(&e) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Compare-and-delete; `false` when somebody else wrote it since. Gone already counts as done.
    pub(crate) async fn delete<S: Spec>(&self, name: &str, revision: Revision) -> Result<bool, IpamError> {
        let key = Key::new(S::KIND, None, name);
        match self.store.delete(&key, Expect::Revision(revision)).await {
            Ok(_) | Err(StoreError::NotFound(_)) => Ok(true),
            Err(e) if lost_race(&e) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Reads a block.
    pub(crate) async fn block(&self, cidr: &IpNet) -> Result<Option<Held>, IpamError> {
        let found = self.get::<IpamBlockSpec>(&names::block_name(cidr)).await?;
        found.map(Held::from_stored).transpose()
    }

    /// Creates a block; `None` when it exists.
    pub(crate) async fn create_block(&self, block: Block) -> Result<Option<Held>, IpamError> {
        let metadata = ObjectMeta::named(names::block_name(&block.cidr()));
        let resource = Resource::new(metadata.clone(), block.spec().clone());
        let Some(revision) = self.create(&resource).await? else { return Ok(None) };
        Ok(Some(Held { revision, block, envelope: Envelope { metadata, extra: resource.extra } }))
    }

    /// Writes the block if nobody else has since; on success `held` is what the store holds. The error says that the
    /// outcome is unknown.
    pub(crate) async fn swap_block(&self, held: &mut Held) -> Result<bool, IpamError> {
        let mut resource = Resource::new(held.envelope.metadata.clone(), held.block.to_write());
        resource.extra = held.envelope.extra.clone();
        let Some(revision) = self.swap(&resource, held.revision).await? else { return Ok(false) };
        held.revision = revision;
        held.block.written();
        Ok(true)
    }

    /// Deletes the block if nobody else wrote it since.
    pub(crate) async fn delete_block(&self, held: &Held) -> Result<bool, IpamError> {
        self.delete::<IpamBlockSpec>(&names::block_name(&held.block.cidr()), held.revision).await
    }
}
