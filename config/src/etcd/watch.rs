//! A watch: one stream over the smallest folder that holds the kinds. When the connection breaks, or its member loses the
//! others, it is opened again with the next member behind the last change it delivered, so that nothing is lost or told
//! twice; a compacted history ends it.

use std::collections::BTreeSet;

use brindle_config_core::{
    Kind,
    store::{Change, Revision, StoreError, StoreFuture, Watch},
};
use tonic::Status;

use super::{
    EtcdStore,
    client::{Watching, may_be_the_token},
    keys::end_of,
    number,
    pb::{ResponseHeader, WatchCreateRequest, WatchResponse},
    revision,
};

const DELETE: i32 = 1;

pub(super) struct EtcdWatch {
    store: EtcdStore,
    kinds: BTreeSet<Kind>,
    folder: String,
    /// Everything up to here was delivered, or was of no concern.
    seen: Revision,
    stream: Option<Watching>,
}

impl EtcdWatch {
    pub(super) async fn open(store: EtcdStore, kinds: &[Kind], from: Revision) -> Result<Self, StoreError> {
        let folder = store.layout.common(kinds);
        let mut watch =
            Self { store, kinds: kinds.iter().copied().collect(), folder, seen: from, stream: None };
        watch.connect().await?;
        Ok(watch)
    }

    async fn connect(&mut self) -> Result<(), StoreError> {
        let client = &self.store.client;
        let create = WatchCreateRequest {
            key: self.folder.clone().into_bytes(),
            range_end: end_of(&self.folder),
            start_revision: number(self.seen).saturating_add(1),
            progress_notify: true,
        };
        let mut watching = client.watch(create.clone()).await?;
        let first = &watching.first;
        if first.canceled && may_be_the_token(&first.cancel_reason) && client.forget_token() {
            watching = client.watch(create).await?;
        }
        self.check(&watching.first)?;
        let behind =
            |header: Option<ResponseHeader>| revision(header.unwrap_or_default().revision) < self.seen;
        // Another member may be a little behind the one before; all of them together are not, unless an older backup was
        // restored under us.
        if behind(watching.first.header.clone()) && behind(client.now().await?) {
            return Err(StoreError::Compacted(self.seen));
        }
        self.stream = Some(watching);
        Ok(())
    }

    fn check(&self, answer: &WatchResponse) -> Result<(), StoreError> {
        if !answer.canceled {
            return Ok(());
        }
        let name = self.store.client.name();
        match answer.compact_revision {
            0 if answer.cancel_reason.contains("permission") => {
                Err(StoreError::Broken(format!("{name}: {}", answer.cancel_reason)))
            }
            0 => Err(StoreError::Unavailable(format!("{name}: watch refused: {}", answer.cancel_reason))),
            _ => Err(StoreError::Compacted(self.seen)),
        }
    }

    /// What of an answer is ours.
    fn changes(&self, answer: WatchResponse) -> Vec<Change> {
        let mut changes = Vec::new();
        for event in answer.events {
            let Some(kv) = event.kv else { continue };
            let Some(place) = std::str::from_utf8(&kv.key).ok().and_then(|p| self.store.layout.place(p))
            else {
                continue;
            };
            if !self.kinds.contains(&place.key.kind) {
                continue;
            }
            if event.kind == DELETE {
                changes.push(Change::Delete { key: place.key, revision: revision(kv.mod_revision) });
                continue;
            }
            match self.store.entry(&kv) {
                Ok(Some(entry)) => changes.push(Change::Put(entry)),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "left out of a watch"),
            }
        }
        changes
    }
}

impl Watch for EtcdWatch {
    fn next(&mut self) -> StoreFuture<'_, Vec<Change>> {
        Box::pin(async move {
            let mut broken = false;
            loop {
                if self.stream.is_none() {
                    self.connect().await?;
                }
                let Some(watching) = self.stream.as_mut() else { continue };
                let answer = match watching.stream.message().await {
                    Ok(Some(answer)) => answer,
                    end => {
                        let status = end.err().unwrap_or_else(|| Status::unavailable("the watch ended"));
                        let error = self.store.client.broke(watching, &status);
                        self.stream = None;
                        // Once per call: a cluster that is gone is the caller's to wait for.
                        if std::mem::replace(&mut broken, true) {
                            return Err(error);
                        }
                        continue;
                    }
                };
                if let Err(e) = self.check(&answer) {
                    self.stream = None;
                    return Err(e);
                }
                let now = answer.header.as_ref().map_or(0, |h| h.revision);
                let last = answer.events.iter().filter_map(|e| e.kv.as_ref()).map(|kv| kv.mod_revision).max();
                let changes = self.changes(answer);
                // A progress notice says that everything up to its revision was sent; an answer with events says so of
                // the last of them alone.
                self.seen = self.seen.max(revision(last.unwrap_or(now)));
                if !changes.is_empty() {
                    return Ok(changes);
                }
            }
        })
    }
}
