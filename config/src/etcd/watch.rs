//! A watch: one stream over the smallest folder that holds the kinds. When the connection breaks it is opened again
//! behind the last change it delivered, so that nothing is lost or told twice; a compacted history ends it.

use std::collections::BTreeSet;

use brindle_config_core::{
    Kind,
    store::{Change, Revision, StoreError, StoreFuture, Watch},
};
use tonic::Streaming;

use super::{
    EtcdStore,
    client::may_be_the_token,
    keys::end_of,
    number,
    pb::{WatchCreateRequest, WatchResponse},
    revision,
};

const DELETE: i32 = 1;

pub(super) struct EtcdWatch {
    store: EtcdStore,
    kinds: BTreeSet<Kind>,
    folder: String,
    /// Everything up to here was delivered, or was of no concern.
    seen: Revision,
    stream: Option<Streaming<WatchResponse>>,
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
        let (mut stream, mut first) = self.begin().await?;
        if first.canceled && may_be_the_token(&first.cancel_reason) && self.store.client.forget_token() {
            (stream, first) = self.begin().await?;
        }
        self.check(&first)?;
        if revision(first.header.unwrap_or_default().revision) < self.seen {
            // An older backup was restored under us.
            return Err(StoreError::Compacted(self.seen));
        }
        self.stream = Some(stream);
        Ok(())
    }

    /// A new stream and its first answer.
    async fn begin(&self) -> Result<(Streaming<WatchResponse>, WatchResponse), StoreError> {
        let create = WatchCreateRequest {
            key: self.folder.clone().into_bytes(),
            range_end: end_of(&self.folder),
            start_revision: number(self.seen).saturating_add(1),
            progress_notify: true,
        };
        let client = &self.store.client;
        let mut stream = client.watch(create).await?;
        match stream.message().await.map_err(|s| client.error(&s))? {
            Some(first) => Ok((stream, first)),
            None => Err(StoreError::Unavailable(format!("{}: the watch ended at once", client.name()))),
        }
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
                let Some(stream) = self.stream.as_mut() else { continue };
                let answer = match stream.message().await {
                    Ok(Some(answer)) => answer,
                    Ok(None) | Err(_) if !broken => {
                        // Once per call: a server that is gone is the caller's to wait for.
                        broken = true;
                        self.stream = None;
                        continue;
                    }
                    Ok(None) => {
                        self.stream = None;
                        let name = self.store.client.name();
                        return Err(StoreError::Unavailable(format!("{name}: the watch ended")));
                    }
                    Err(status) => {
                        self.stream = None;
                        return Err(self.store.client.error(&status));
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
