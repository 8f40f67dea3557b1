//! A watch: one stream for each collection, merged. A stream that ends or breaks goes on behind the last version it was
//! told (objects and bookmarks), after a pause when the server is away; a version the server has forgotten ends the watch.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use brindle_config_core::{
    Kind,
    store::{Change, Entry, Revision, StoreError, StoreFuture, Watch},
};
use futures::{
    FutureExt, StreamExt,
    stream::{BoxStream, SelectAll},
};
use serde::de::IgnoredAny;

use super::{
    Inner,
    client::{Failure, Lines},
    cursors::Cursor,
    explain::{self, Verb},
    kinds::{Place, Shape},
    map_crd,
    object::{self, Event, Mapped, Status, Stub},
};
use crate::jitter;

/// A stream that is silent for so long is opened again: bookmarks come every minute, and a dead connection says nothing.
const SILENCE: Duration = Duration::from_secs(100);
/// How long a stream is kept, at least and how much longer at most: uneven, so that agents do not all come back together.
const STREAM_SECONDS: (u64, u64) = (300, 300);
/// How long a watch waits for its streams before it is given out.
const OPENING: Duration = Duration::from_secs(3);
/// Most changes told at once.
const BATCH: usize = 1024;

type Batch = Result<Vec<Change>, StoreError>;

/// A watch over several kinds.
pub(super) struct KubeWatch {
    streams: SelectAll<BoxStream<'static, Batch>>,
}

impl KubeWatch {
    /// Opens the streams at once, so that what the server forgets from now on does no harm. `from`: the revision the
    /// caller gave, for the error when it is gone.
    pub(super) async fn open(
        inner: &Arc<Inner>,
        places: Vec<Place>,
        cursor: &Cursor,
        from: Revision,
    ) -> Result<Self, StoreError> {
        let all = places.into_iter().map(|place| {
            let at = cursor.get(&place.kind).copied().flatten();
            Collection::new(inner, place, at, from)
        });
        Self::of(all.collect()).await
    }

    /// Goes on with a collection where reading it ended: with the stream itself, if it was one.
    pub(super) async fn go_on(
        inner: &Arc<Inner>,
        place: Place,
        at: Option<Revision>,
        lines: Option<Lines>,
    ) -> Result<Self, StoreError> {
        let mut one = Collection::new(inner, place, at, at.unwrap_or_default());
        one.lines = lines;
        Self::of(vec![one]).await
    }

    async fn of(mut all: Vec<Collection>) -> Result<Self, StoreError> {
        // A server that is slow or away is tried again while the watch waits.
        let opened = all.iter_mut().map(|one| tokio::time::timeout(OPENING, one.begin()));
        for result in futures::future::join_all(opened).await {
            if let Ok(Err(End::Final(e))) = result {
                return Err(e);
            }
        }
        let streams = all.into_iter().map(|one| {
            futures::stream::unfold(Some(one), |state| async move {
                let mut one = state?;
                match one.next().await {
                    Ok(batch) => Some((Ok(batch), Some(one))),
                    Err(e) => Some((Err(e), None)),
                }
            })
            .boxed()
        });
        Ok(Self { streams: streams.collect() })
    }
}

impl Watch for KubeWatch {
    fn next(&mut self) -> StoreFuture<'_, Vec<Change>> {
        Box::pin(async move {
            // The futures of the streams live in the streams: dropping this one loses nothing.
            let Some(first) = self.streams.next().await else {
                return std::future::pending().await;
            };
            let mut all = first?;
            while all.len() < BATCH
                && let Some(Some(more)) = self.streams.next().now_or_never()
            {
                match more {
                    Ok(more) => all.extend(more),
                    // Told first what came first; the stream has ended and would not say it again.
                    Err(e) => {
                        self.streams.push(futures::stream::iter([Err(e)]).boxed());
                        break;
                    }
                }
            }
            Ok(all)
        })
    }
}

/// The watch of one collection.
struct Collection {
    inner: Arc<Inner>,
    place: Place,
    /// Everything up to here was told; `None` while the cluster does not have the collection.
    at: Option<Revision>,
    from: Revision,
    lines: Option<Lines>,
    /// Hash of a key → hash of the value told last, for objects whose revision changes without their resource.
    seen: HashMap<u64, u64>,
    attempt: u32,
    /// The trouble there is.
    trouble: Option<String>,
}

/// Why a stream has to be opened anew.
enum End {
    /// In the normal course of things.
    Over,
    Trouble(StoreError),
    /// The watch is of no use any more.
    Final(StoreError),
}

impl Collection {
    fn new(inner: &Arc<Inner>, place: Place, at: Option<Revision>, from: Revision) -> Self {
        Self {
            inner: Arc::clone(inner),
            at,
            place,
            from,
            lines: None,
            seen: HashMap::new(),
            attempt: 0,
            trouble: None,
        }
    }

    /// The first try at its stream.
    async fn begin(&mut self) -> Result<(), End> {
        if let Some(at) = self.at.filter(|_| self.lines.is_none()) {
            self.lines = Some(self.open(at).await?);
        }
        Ok(())
    }

    /// The next changes, for as long as it takes.
    async fn next(&mut self) -> Batch {
        loop {
            let end = match self.pass().await {
                Ok(batch) if batch.is_empty() => continue,
                Ok(batch) => return Ok(batch),
                Err(end) => end,
            };
            self.lines = None;
            match end {
                End::Final(e) => return Err(e),
                End::Over => {
                    // A server that ends streams at once must not be asked in a circle.
                    tokio::time::sleep(jitter::back_off(self.attempt.min(3))).await;
                }
                End::Trouble(error) => {
                    self.inner.reflectors.meet(self.inner.whose, &mut self.trouble, &error);
                    tokio::time::sleep(self.inner.client.pause(self.attempt)).await;
                }
            }
            self.attempt = self.attempt.saturating_add(1);
        }
    }

    /// Reads what there is; may be nothing of interest.
    async fn pass(&mut self) -> Result<Vec<Change>, End> {
        let Some(at) = self.at else { return self.appear().await };
        let mut lines = match self.lines.take() {
            Some(lines) => lines,
            None => self.open(at).await?,
        };
        let mut changes = Vec::new();
        loop {
            let line = match tokio::time::timeout(SILENCE, lines.next()).await {
                Err(_) | Ok(Ok(None)) => return self.rather(changes, End::Over),
                Ok(Err(why)) => {
                    let error = StoreError::Unavailable(format!("{}: {why}", self.inner.client.name()));
                    return self.rather(changes, End::Trouble(error));
                }
                Ok(Ok(Some(line))) => line,
            };
            match self.event(&line).await {
                Ok(change) => changes.extend(change),
                Err(end) => return self.rather(changes, end),
            }
            if changes.len() >= BATCH || !lines.ready() {
                self.lines = Some(lines);
                return Ok(changes);
            }
        }
    }

    /// What was read before the end goes first; the end will come again.
    fn rather(&mut self, changes: Vec<Change>, end: End) -> Result<Vec<Change>, End> {
        self.lines = None;
        if changes.is_empty() { Err(end) } else { Ok(changes) }
    }

    async fn open(&mut self, at: Revision) -> Result<Lines, End> {
        let seconds = seconds();
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={seconds}{}",
            self.place.collection(None),
            at.0,
            self.inner.selection(&self.place)
        );
        match self.inner.client.lines(&path).await {
            Ok(lines) => {
                self.inner.reflectors.over(self.inner.whose, &mut self.trouble);
                Ok(lines)
            }
            Err(Failure::Api(status)) if explain::gone(&status) => Err(self.compacted()),
            // It was there: listing again tells what went with it.
            Err(Failure::Api(status)) if explain::unknown_collection(&status) => Err(self.compacted()),
            Err(failure) => {
                let name = self.inner.client.name();
                Err(End::Trouble(explain::explain(&name, Verb::Watch, &self.place, None, failure)))
            }
        }
    }

    const fn compacted(&self) -> End {
        End::Final(StoreError::Compacted(self.from))
    }

    /// Waits until the cluster has the collection, and tells what is in it.
    async fn appear(&mut self) -> Result<Vec<Change>, End> {
        tokio::time::sleep(self.inner.missing + jitter::of(self.inner.missing / 2)).await;
        match self.inner.list(&self.place).await {
            Ok(None) => Ok(Vec::new()),
            Ok(Some((entries, at))) => {
                tracing::info!(resource = %self.place.resource(), "the cluster has it now");
                self.at = Some(at);
                Ok(entries.into_iter().map(Change::Put).collect())
            }
            Err(e) => Err(End::Trouble(e)),
        }
    }

    /// What a line tells.
    async fn event(&mut self, line: &[u8]) -> Result<Option<Change>, End> {
        let trouble = |why: String| {
            let name = self.inner.client.name();
            End::Trouble(StoreError::Unavailable(format!(
                "{name}: a watch of {}: {why}",
                self.place.resource()
            )))
        };
        let event: Event<IgnoredAny> =
            serde_json::from_slice(line).map_err(|e| trouble(format!("no event: {e}")))?;
        match event.kind.as_str() {
            "BOOKMARK" => {
                let stub: Event<Stub> = serde_json::from_slice(line).map_err(|e| trouble(e.to_string()))?;
                self.reached(stub.object.metadata.revision().map_err(trouble)?);
                Ok(None)
            }
            "ERROR" => {
                let status: Event<Status> =
                    serde_json::from_slice(line).map_err(|e| trouble(e.to_string()))?;
                if explain::gone(&status.object) {
                    return Err(self.compacted());
                }
                Err(trouble(format!("{} {}", status.object.code, status.object.message)))
            }
            "ADDED" | "MODIFIED" | "DELETED" => {
                let mapped = match object::read_event(&self.place, line) {
                    Ok(mapped) => mapped,
                    Err(why) => {
                        tracing::warn!(resource = %self.place.resource(), "left out of a watch: {why}");
                        let stub: Event<Stub> =
                            serde_json::from_slice(line).map_err(|e| trouble(e.to_string()))?;
                        self.reached(stub.object.metadata.revision().map_err(trouble)?);
                        return Ok(None);
                    }
                };
                let at = mapped.revision();
                let change = match event.kind.as_str() {
                    "DELETED" => self.deleted(line, mapped).await?,
                    kind => self.put(kind == "ADDED", mapped),
                };
                self.reached(at);
                Ok(change)
            }
            other => {
                tracing::debug!(kind = other, "an event of an unknown type");
                Ok(None)
            }
        }
    }

    fn reached(&mut self, at: Revision) {
        self.attempt = 0;
        self.at = Some(at);
    }

    /// Whether objects of this collection change in ways that no resource shows.
    const fn noisy(&self) -> bool {
        !matches!(self.place.shape, Shape::Calico(_))
    }

    fn put(&mut self, added: bool, mapped: Mapped) -> Option<Change> {
        match mapped {
            Mapped::Put(entry) => {
                if self.noisy() {
                    let value = hash(&*entry.value);
                    if self.seen.insert(hash(&entry.key), value) == Some(value) {
                        return None;
                    }
                }
                Some(Change::Put(entry))
            }
            Mapped::Nothing { key, revision } => {
                // 0: known to be no resource.
                let before = self.seen.insert(hash(&key), 0);
                (before != Some(0) && !(added && before.is_none()))
                    .then_some(Change::Delete { key, revision })
            }
        }
    }

    async fn deleted(&mut self, line: &[u8], mapped: Mapped) -> Result<Option<Change>, End> {
        let (key, revision) = (mapped.key().clone(), mapped.revision());
        if self.noisy() {
            let before = self.seen.remove(&hash(&key));
            return Ok((before != Some(0)).then_some(Change::Delete { key, revision }));
        }
        // Calico's migration makes a policy under its new name and then deletes the old object: the resource is there.
        if map_crd::is_policy(key.kind) {
            let stub: Option<Event<Stub>> = serde_json::from_slice(line).ok();
            if stub.is_some_and(|s| s.object.metadata.name != key.name) {
                match self.inner.get(&key).await {
                    Ok(Entry { value, revision, .. }) => {
                        return Ok(Some(Change::Put(Entry { key, revision, value })));
                    }
                    Err(StoreError::NotFound(_)) => {}
                    Err(e) => return Err(End::Trouble(e)),
                }
            }
        }
        Ok(Some(Change::Delete { key, revision }))
    }
}

/// How long the server is asked to keep a stream.
pub(super) fn seconds() -> u64 {
    STREAM_SECONDS.0 + jitter::below(STREAM_SECONDS.1)
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The kinds a watch is of, each once, without those that are stored nowhere.
pub(super) fn places(kinds: &[Kind], api: super::kinds::Api) -> Vec<Place> {
    let kinds: std::collections::BTreeSet<Kind> = kinds.iter().copied().collect();
    kinds.into_iter().filter_map(|k| Place::of(k, api)).collect()
}
