//! The datastore contract: get, list, watch, put-if-revision, delete-if-revision.
//!
//! Four backends implement it (sqlite, memory, later kubernetes and etcd) and one contract suite
//! (`brindle_config::contract`) runs on all. Futures are boxed so that the trait is object safe and this package
//! needs no runtime.

use std::{future::Future, pin::Pin, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    key::{Key, Kind},
    meta::{Resource, Spec},
};

/// A boxed future of a store call.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Position in a store's history. Only equality and order within one store have a meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision(pub u64);

/// A stored value with the revision of its last write.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: Key,
    pub revision: Revision,
    /// The whole resource as JSON.
    pub value: Arc<Value>,
}

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key must not exist (create).
    Absent,
    /// The key's last write must be this one (compare-and-swap).
    Revision(Revision),
    /// Create or overwrite.
    Any,
}

/// One change seen by a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Put(Entry),
    Delete { key: Key, revision: Revision },
}

/// A consistent listing and the revision from which a watch continues it without a gap.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing {
    pub entries: Vec<Entry>,
    pub revision: Revision,
}

/// Why a store call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("resource does not exist: {0}")]
    NotFound(Key),
    #[error("resource already exists: {0}")]
    Exists(Key),
    #[error("update conflict: {0}")]
    Conflict(Key),
    /// The watch fell behind the kept history; list again.
    #[error("revision {0:?} is no longer in the history; list again")]
    Compacted(Revision),
    /// Temporary: try again.
    #[error("datastore unavailable: {0}")]
    Unavailable(String),
    /// Permanent until somebody acts: corrupt, unreadable, refused. Names the file or endpoint.
    #[error("datastore failure: {0}")]
    Broken(String),
    #[error("{key}: stored value is not valid: {reason}")]
    Invalid { key: Key, reason: String },
}

/// A stream of changes. Dropping it ends the watch.
pub trait Watch: Send {
    /// Waits for the next batch of changes (never empty). Cancel safe.
    fn next(&mut self) -> StoreFuture<'_, Vec<Change>>;
}

/// A datastore.
pub trait Store: Send + Sync {
    fn get<'a>(&'a self, key: &'a Key) -> StoreFuture<'a, Entry>;
    /// All resources of the given kinds, in key order, as of one revision.
    fn list<'a>(&'a self, kinds: &'a [Kind]) -> StoreFuture<'a, Listing>;
    /// Writes if the expectation holds. `Exists` for a failed `Absent`, `Conflict` for a failed `Revision`
    /// (`NotFound` when the key is gone altogether).
    fn put<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Revision>;
    /// Deletes if the expectation holds (`Absent` is meaningless here and refused as `Conflict`).
    fn delete<'a>(&'a self, key: &'a Key, expect: Expect) -> StoreFuture<'a, Revision>;
    /// Changes of the given kinds after `from`, in order.
    fn watch<'a>(&'a self, kinds: &'a [Kind], from: Revision) -> StoreFuture<'a, Box<dyn Watch>>;
}

/// A typed entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<S> {
    pub revision: Revision,
    pub resource: Resource<S>,
}

/// Decodes an entry; the error names key and field.
pub fn decode<S: Spec>(entry: &Entry) -> Result<Stored<S>, StoreError> {
    let resource = serde_path_to_error::deserialize(&*entry.value).map_err(|e| StoreError::Invalid {
        key: entry.key.clone(),
        reason: format!("{}: {}", e.path(), e.inner()),
    })?;
    Ok(Stored { revision: entry.revision, resource })
}

/// Typed conveniences over any [`Store`].
pub trait StoreExt: Store {
    /// Gets one typed resource.
    fn get_as<'a, S: Spec>(
        &'a self,
        namespace: Option<&'a str>,
        name: &'a str,
    ) -> StoreFuture<'a, Stored<S>> {
        Box::pin(async move {
            let key = Key::new(S::KIND, namespace, name);
            decode(&self.get(&key).await?)
        })
    }

    /// Lists one kind, typed. An entry that does not decode fails the call.
    fn list_as<'a, S: Spec>(&'a self) -> StoreFuture<'a, (Vec<Stored<S>>, Revision)> {
        Box::pin(async move {
            let listing = self.list(&[S::KIND]).await?;
            let all = listing.entries.iter().map(decode).collect::<Result<_, _>>()?;
            Ok((all, listing.revision))
        })
    }

    /// Writes one typed resource.
    fn put_as<'a, S: Spec>(&'a self, resource: &'a Resource<S>, expect: Expect) -> StoreFuture<'a, Revision> {
        Box::pin(async move {
            let key = resource.key();
            let value = serde_json::to_value(resource)
                .map_err(|e| StoreError::Invalid { key: key.clone(), reason: e.to_string() })?;
            self.put(&key, value, expect).await
        })
    }
}

impl<T: Store + ?Sized> StoreExt for T {}

/// What a follower of the store receives: the snapshot as upserts, then `InSync` once, then deltas. After a relist
/// only the differences are sent, and no second `InSync`.
#[derive(Clone, Debug, PartialEq)]
pub enum SyncEvent {
    Upsert(Entry),
    Delete(Key),
    InSync,
}
