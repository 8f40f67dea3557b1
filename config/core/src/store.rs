//! The datastore contract: get, list, watch, put-if-revision, delete-if-revision.
//!
//! Four backends implement it (sqlite, memory, etcd, kubernetes) and one contract suite
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
    /// This datastore does not take the write, and would not the next time.
    #[error("{key}: {reason}")]
    Refused { key: Key, reason: String },
}

/// A stream of changes. Dropping it ends the watch.
pub trait Watch: Send {
    /// Waits for the next batch of changes (never empty). Cancel safe.
    fn next(&mut self) -> StoreFuture<'_, Vec<Change>>;
}

/// A snapshot in pieces, `InSync` once, then every difference. Dropping it ends it.
pub trait Subscription: Send {
    /// Waits for the next batch of events (never empty). It waits out whatever is wrong with the datastore. Cancel safe.
    fn next(&mut self) -> StoreFuture<'_, Vec<SyncEvent>>;
}

/// What is said of a node's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkWord {
    pub available: bool,
    /// One word, as conditions have it.
    pub reason: &'static str,
    pub message: &'static str,
    /// RFC 3339.
    pub at: String,
}

/// A datastore.
pub trait Store: Send + Sync {
    fn get<'a>(&'a self, key: &'a Key) -> StoreFuture<'a, Entry>;
    /// All resources of the given kinds, in key order, as of one revision.
    fn list<'a>(&'a self, kinds: &'a [Kind]) -> StoreFuture<'a, Listing>;
    /// Writes if the expectation holds. `Exists` for a failed `Absent`, `Conflict` for a failed `Revision`
    /// (`NotFound` when the key is gone altogether).
    fn put<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Revision>;
    /// What the datastore would hold after this [`put`](Self::put), or the reason for which it would refuse; nothing is
    /// written. Who writes many things asks for each before the first. A store that neither fills in nor refuses
    /// anything gives the value back.
    fn would_hold<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Value> {
        let _ = (key, expect);
        Box::pin(async { Ok(value) })
    }
    /// Deletes if the expectation holds (`Absent` is meaningless here and refused as `Conflict`).
    fn delete<'a>(&'a self, key: &'a Key, expect: Expect) -> StoreFuture<'a, Revision>;
    /// Says in the cluster's own record of a node whether its network is there, where there is such a record: Kubernetes'
    /// condition NetworkUnavailable. Whether something was written.
    fn say_network<'a>(&'a self, node: &'a str, word: &'a NetworkWord) -> StoreFuture<'a, bool> {
        let _ = (node, word);
        Box::pin(async { Ok(false) })
    }
    /// Whether policies lie here under the names they are written with, also those that Calico before 3.32 calls
    /// `default.NAME`: who writes one has to know which of the two is looked for.
    fn keeps_names_as_written(&self) -> bool {
        false
    }
    /// Changes of the given kinds after `from`, in order.
    fn watch<'a>(&'a self, kinds: &'a [Kind], from: Revision) -> StoreFuture<'a, Box<dyn Watch>>;
    /// The same datastore, of whose WorkloadEndpoints listings and watches hold those of one node only, where the server
    /// can leave out the others. `None`: it cannot; the reader has to look at nodes itself, as it must anyway.
    fn for_node(&self, node: &str) -> Option<Arc<dyn Store>> {
        let _ = node;
        None
    }
    /// Follows kinds by what all followers of this store and its clones share. `None`: nothing is shared; list and watch.
    /// Called on a runtime.
    fn subscribe(&self, kinds: &[Kind]) -> Option<Box<dyn Subscription>> {
        let _ = kinds;
        None
    }
    /// Whether somebody follows all of the kinds and they are known completely; `None`: nothing is shared.
    fn follows(&self, kinds: &[Kind]) -> Option<bool> {
        let _ = kinds;
        None
    }
    /// What is waited for where somebody follows kinds that are not known completely: a line for each, with the reason
    /// where there is one. Nothing, if the store shares nothing.
    fn waits_for(&self, kinds: &[Kind]) -> Vec<String> {
        let _ = kinds;
        Vec::new()
    }
    /// Gives every resource of the kinds to `each`, in no order, if the store [follows](Self::follows) them: as old
    /// as a watch may be. `false`: `each` was not called; list them.
    fn visit_followed(&self, kinds: &[Kind], each: &mut dyn FnMut(Entry)) -> bool {
        let _ = (kinds, each);
        false
    }
}

/// A typed entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<S> {
    pub revision: Revision,
    pub resource: Resource<S>,
}

/// Decodes an entry; the error names key and field.
pub fn decode<S: Spec>(entry: &Entry) -> Result<Stored<S>, StoreError> {
    // Keeping account of the path costs more than reading: only for what does not read.
    if let Ok(resource) = Resource::<S>::deserialize(&*entry.value) {
        return Ok(Stored { revision: entry.revision, resource });
    }
    let resource = serde_path_to_error::deserialize(&*entry.value).or_else(|e| {
        serde_json::from_value(without_nulls(&entry.value)).map_err(|_| StoreError::Invalid {
            key: entry.key.clone(),
            reason: format!("{}: {}", e.path(), e.inner()),
        })
    })?;
    Ok(Stored { revision: entry.revision, resource })
}

/// The value without members that are `null`; elements of lists stay. Writers in Go leave `null` where a list or a map is
/// empty; for them that is the same as leaving it out.
pub(crate) fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.iter().filter(|(_, v)| !v.is_null());
            Value::Object(kept.map(|(k, v)| (k.clone(), without_nulls(v))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
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

    /// What is followed of the kinds if it can be had, otherwise listed: for readers to whom it does not matter that they
    /// see what happened a moment ago.
    fn followed_or_listed<'a>(&'a self, kinds: &'a [Kind]) -> StoreFuture<'a, Vec<Entry>> {
        Box::pin(async move {
            let mut entries = Vec::new();
            if self.visit_followed(kinds, &mut |e| entries.push(e)) {
                entries.sort_by(|a, b| a.key.cmp(&b.key));
                return Ok(entries);
            }
            Ok(self.list(kinds).await?.entries)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{AnyResource, ipam::IpamBlockSpec, pool::IpPoolSpec};

    fn entry(kind: Kind, spec: Value) -> Entry {
        let value = json!({"apiVersion": "projectcalico.org/v3", "kind": kind.as_str(),
            "metadata": {"name": "x", "creationTimestamp": null}, "spec": spec});
        Entry { key: Key::new(kind, None, "x"), revision: Revision(1), value: Arc::new(value) }
    }

    #[test]
    fn an_entry_that_does_not_decode_names_key_and_field() {
        let e = decode::<IpPoolSpec>(&entry(Kind::IpPool, json!({"cidr": "10.0.0.0"}))).expect_err("no CIDR");
        assert_eq!(
            e.to_string(),
            "IPPool(x): stored value is not valid: spec.cidr: invalid IP address syntax"
        );
    }

    #[test]
    fn null_stands_for_an_absent_list_or_map() {
        let spec = json!({"cidr": "10.0.0.0/30", "allocations": [null, null, 0, null], "unallocated": [0, 1, 3],
            "attributes": [{"handle_id": "h", "secondary": null}], "affinity": null});
        let block = decode::<IpamBlockSpec>(&entry(Kind::IpamBlock, spec)).expect("decodes").resource.spec;
        assert_eq!(block.allocations, [None, None, Some(0), None], "null in a list stays");
        assert!(block.attributes.iter().all(|a| a.secondary.is_empty()));
        let pool = json!({"cidr": "10.0.0.0/16", "allowedUses": null, "nodeSelector": null});
        let pool = decode::<IpPoolSpec>(&entry(Kind::IpPool, pool)).expect("decodes").resource.spec;
        assert_eq!(pool.node_selector, "all()");
        let pool = entry(Kind::IpPool, json!({"cidr": "10.0.0.0/16", "allowedUses": null, "ipipMode": null}));
        let any = AnyResource::from_value(Kind::IpPool, &pool.value).expect("what agents read, tools read");
        assert_eq!(any, decode::<IpPoolSpec>(&pool).expect("decodes").resource.into());
        let wrong = AnyResource::from_value(Kind::IpPool, &json!({"spec": {"cidr": null}}));
        assert!(wrong.is_err(), "a null where something is needed");
    }
}
