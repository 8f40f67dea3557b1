//! Which nodes Kubernetes has, where the datastore is another one: there nobody deletes the Node resource of a node that
//! was taken out of the cluster.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::Result;
use brindle_config::sync;
use brindle_config_core::{
    Kind,
    store::{Store, StoreError, SyncEvent},
};
use tokio::sync::watch;

/// The nodes of a cluster, followed.
pub(crate) struct KubeNodes {
    store: Arc<dyn Store>,
    names: watch::Receiver<Option<BTreeSet<String>>>,
}

impl KubeNodes {
    /// Whoever looks once lists them.
    pub(crate) fn of(store: Arc<dyn Store>) -> Self {
        Self { store, names: watch::channel(None).1 }
    }

    /// Follows the nodes in this store, which is an API server, until dropped.
    pub(crate) fn follow(store: Arc<dyn Store>) -> Self {
        let (told, names) = watch::channel(None);
        let mut events = sync::follow(Arc::clone(&store), [Kind::Node]);
        tokio::spawn(async move {
            let (mut all, mut in_sync) = (BTreeSet::new(), false);
            loop {
                let batch = tokio::select! {
                    batch = events.recv() => batch,
                    () = told.closed() => None,
                };
                let Some(batch) = batch else { return };
                for event in batch {
                    match event {
                        SyncEvent::Upsert(e) => drop(all.insert(e.key.name)),
                        SyncEvent::Delete(key) => drop(all.remove(&key.name)),
                        SyncEvent::InSync => in_sync = true,
                    }
                }
                // Nodes change all the time; which there are does not.
                let now = in_sync.then(|| all.clone());
                told.send_if_modified(|old| {
                    let changed = *old != now;
                    *old = now;
                    changed
                });
            }
        });
        Self { store, names }
    }

    /// As followed; none before they were read.
    pub(crate) fn known(&self) -> Option<BTreeSet<String>> {
        self.names.borrow().clone()
    }

    /// As they are now.
    pub(crate) async fn listed(&self) -> Result<BTreeSet<String>> {
        let listing = self.store.list(&[Kind::Node]).await.map_err(told)?;
        Ok(listing.entries.into_iter().map(|e| e.key.name).collect())
    }

    /// For whoever waits for a change.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<BTreeSet<String>>> {
        self.names.clone()
    }
}

/// In words that do not take the API server for the datastore, which is another one.
pub(crate) fn told(error: StoreError) -> anyhow::Error {
    match error {
        StoreError::Unavailable(why) | StoreError::Broken(why) => anyhow::Error::msg(why),
        other => other.into(),
    }
}

/// Completes with the next change; never where nobody is followed. `false`: the follower has ended.
pub(crate) async fn changed(names: &mut Option<watch::Receiver<Option<BTreeSet<String>>>>) -> bool {
    match names {
        Some(names) => names.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}
