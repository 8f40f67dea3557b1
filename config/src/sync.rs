//! Follows a store: the snapshot as upserts, `InSync` once, then every difference, for as long as the receiver lives.
//!
//! A watch that was compacted, or a store that cannot be reached, leads to a new listing after a jittered pause; only
//! what differs from what was already sent is sent then. Memory: the key and revision of each entry. A store whose followers
//! share what they follow (`Store::subscribe`) does all this itself.

use std::{collections::BTreeMap, sync::Arc};

use brindle_config_core::{
    Key, Kind,
    store::{Change, Entry, Listing, Revision, Store, StoreError, Subscription, SyncEvent, Watch},
};
use tokio::sync::mpsc;

use crate::jitter;

/// Batches that may wait for a slow receiver. A receiver that is slower still makes the watch fall behind, which ends
/// in a relist: memory stays bounded.
const BATCHES: usize = 16;
/// Most events in one batch.
const BATCH: usize = 1024;

/// Starts following `kinds` of `store` on the current tokio runtime. The stream ends when the receiver is dropped.
pub fn follow(store: Arc<dyn Store>, kinds: impl Into<Vec<Kind>>) -> mpsc::Receiver<Vec<SyncEvent>> {
    start(store, kinds.into(), None)
}

/// Follows on from a listing the caller has made, and knows: only what differs from it is sent, and no `InSync`.
pub fn follow_from(
    store: Arc<dyn Store>,
    kinds: impl Into<Vec<Kind>>,
    known: &Listing,
) -> mpsc::Receiver<Vec<SyncEvent>> {
    start(store, kinds.into(), Some(known))
}

fn start(store: Arc<dyn Store>, kinds: Vec<Kind>, known: Option<&Listing>) -> mpsc::Receiver<Vec<SyncEvent>> {
    let (out, receiver) = mpsc::channel(BATCHES);
    if known.is_none()
        && let Some(shared) = store.subscribe(&kinds)
    {
        tokio::spawn(pass_on(shared, out));
        return receiver;
    }
    let mut follower = Follower {
        store,
        kinds,
        sent: known.into_iter().flat_map(|l| &l.entries).map(|e| (e.key.clone(), e.revision)).collect(),
        from: known.map(|l| l.revision),
        in_sync: known.is_some(),
        out: out.clone(),
    };
    tokio::spawn(async move {
        tokio::select! {
            () = out.closed() => {}
            Gone = follower.run() => {}
        }
    });
    receiver
}

/// Passes on what the followers of a store share.
async fn pass_on(mut shared: Box<dyn Subscription>, out: mpsc::Sender<Vec<SyncEvent>>) {
    loop {
        // The place first: what is taken before there is one for it waits as a value, which is many times the size.
        let Ok(place) = out.reserve().await else { return };
        let batch = tokio::select! {
            () = out.closed() => return,
            batch = shared.next() => batch,
        };
        match batch {
            Ok(batch) => place.send(batch),
            Err(error) => return tracing::error!(%error, "the datastore is followed no more"),
        }
    }
}

/// The receiver was dropped.
struct Gone;

/// Why a pass over listing and watch ended.
enum End {
    Gone,
    Store(StoreError),
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl From<StoreError> for End {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

struct Follower {
    store: Arc<dyn Store>,
    kinds: Vec<Kind>,
    /// What the receiver has been told.
    sent: BTreeMap<Key, Revision>,
    /// Where a watch can begin without a listing; once.
    from: Option<Revision>,
    in_sync: bool,
    out: mpsc::Sender<Vec<SyncEvent>>,
}

impl Follower {
    async fn run(&mut self) -> Gone {
        let mut attempt = 0u32;
        let mut trouble: Option<StoreError> = None;
        loop {
            let error = match self.pass(&mut attempt, &mut trouble).await {
                Err(End::Gone) => return Gone,
                Err(End::Store(e)) => e,
                Ok(never) => match never {},
            };
            // A compacted watch is everyday life; the rest is told once, not at each attempt.
            if !matches!(error, StoreError::Compacted(_)) && trouble.as_ref() != Some(&error) {
                tracing::warn!(%error, "cannot follow the datastore; trying again until it answers");
            }
            if !matches!(error, StoreError::Compacted(_)) {
                trouble = Some(error);
            }
            tokio::time::sleep(jitter::back_off(attempt)).await;
            attempt = attempt.saturating_add(1);
        }
    }

    /// Lists, tells the differences, then watches until something fails.
    async fn pass(
        &mut self,
        attempt: &mut u32,
        trouble: &mut Option<StoreError>,
    ) -> Result<std::convert::Infallible, End> {
        let (from, listed) = match self.from.take() {
            Some(from) => (from, None),
            None => {
                let listing = self.store.list(&self.kinds).await?;
                (listing.revision, Some(listing.entries))
            }
        };
        let mut watch: Box<dyn Watch> = self.store.watch(&self.kinds, from).await?;
        if trouble.take().is_some() {
            tracing::info!("the datastore answers again");
        }
        if let Some(entries) = listed {
            self.tell_listing(entries).await?;
        }
        loop {
            let changes = watch.next().await?;
            *attempt = 0;
            let events = changes.into_iter().filter_map(|c| self.note(c)).collect();
            self.send(events).await?;
        }
    }

    async fn tell_listing(&mut self, entries: Vec<Entry>) -> Result<(), Gone> {
        let mut gone = std::mem::take(&mut self.sent);
        let mut events = Vec::new();
        for entry in entries {
            if gone.remove(&entry.key) != Some(entry.revision) {
                self.sent.insert(entry.key.clone(), entry.revision);
                events.push(SyncEvent::Upsert(entry));
            } else {
                self.sent.insert(entry.key, entry.revision);
            }
        }
        events.extend(gone.into_keys().map(SyncEvent::Delete));
        if !self.in_sync {
            self.in_sync = true;
            events.push(SyncEvent::InSync);
        }
        self.send(events).await
    }

    /// Notes a change; `None` when the receiver knows it already.
    fn note(&mut self, change: Change) -> Option<SyncEvent> {
        match change {
            Change::Put(entry) => (self.sent.insert(entry.key.clone(), entry.revision)
                != Some(entry.revision))
            .then_some(SyncEvent::Upsert(entry)),
            Change::Delete { key, .. } => self.sent.remove(&key).map(|_| SyncEvent::Delete(key)),
        }
    }

    async fn send(&mut self, mut events: Vec<SyncEvent>) -> Result<(), Gone> {
        while !events.is_empty() {
            let rest = if events.len() > BATCH { events.split_off(BATCH) } else { Vec::new() };
            self.out.send(events).await.map_err(|_| Gone)?;
            events = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
