//! A store in memory: deterministic, for tests and `memory:`. It can be told to refuse writes, to fail calls, to hold
//! watches back and to forget its history, so that callers meet in a test what a busy cluster does to them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use brindle_config_core::{
    Key, Kind,
    store::{Change, Entry, Expect, Listing, Revision, Store, StoreError, StoreFuture, Watch},
};
use serde_json::Value;
use tokio::sync::watch;

/// Changes kept for watches when nothing else is asked for.
const HISTORY: usize = 4096;

/// A deterministic store. Clones share their content.
#[derive(Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    tick: watch::Sender<u64>,
}

struct State {
    entries: Entries,
    history: VecDeque<Change>,
    /// Longest history kept.
    limit: usize,
    revision: u64,
    /// The newest revision that is no longer in `history`.
    compacted: u64,
    /// Compare-and-swap writes still to be refused although their revision is right.
    conflicts: u32,
    /// Calls still to fail, with what.
    failures: VecDeque<StoreError>,
    held: bool,
}

/// What is stored. A record is found by hash, so that it costs the same beside thirty others and thirty thousand; only making
/// and removing one touches the order of its kind.
#[derive(Default)]
struct Entries {
    found: HashMap<Arc<Key>, (Revision, Arc<Value>)>,
    order: BTreeMap<Kind, BTreeSet<Arc<Key>>>,
}

impl Entries {
    fn get(&self, key: &Key) -> Option<&(Revision, Arc<Value>)> {
        self.found.get(key)
    }

    fn insert(&mut self, key: &Key, revision: Revision, value: Arc<Value>) {
        if let Some(have) = self.found.get_mut(key) {
            *have = (revision, value);
            return;
        }
        let key = Arc::new(key.clone());
        self.order.entry(key.kind).or_default().insert(Arc::clone(&key));
        self.found.insert(key, (revision, value));
    }

    fn remove(&mut self, key: &Key) {
        if self.found.remove(key).is_some()
            && let Some(order) = self.order.get_mut(&key.kind)
        {
            order.remove(key);
        }
    }

    /// All of a kind, in the order of their keys.
    fn of(&self, kind: Kind) -> impl Iterator<Item = Entry> {
        let entry = |key: &Arc<Key>| {
            let (revision, value) = self.found.get(&**key)?;
            Some(Entry { key: Key::clone(key), revision: *revision, value: Arc::clone(value) })
        };
        self.order.get(&kind).into_iter().flatten().filter_map(entry)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::with_history(HISTORY)
    }

    /// An empty store that keeps at most `limit` changes for watches.
    pub fn with_history(limit: usize) -> Self {
        let state = State {
            entries: Entries::default(),
            history: VecDeque::new(),
            limit,
            revision: 0,
            compacted: 0,
            conflicts: 0,
            failures: VecDeque::new(),
            held: false,
        };
        Self { state: Arc::new(Mutex::new(state)), tick: watch::Sender::new(0) }
    }

    /// The next `n` writes that expect a revision are refused as conflicts, as if another writer had been faster.
    pub fn inject_conflicts(&self, n: u32) {
        self.lock().conflicts = n;
    }

    /// The next call (get, list, put, delete, opening a watch) fails with this; calls queue up.
    pub fn inject_failure(&self, error: StoreError) {
        self.lock().failures.push_back(error);
    }

    /// Watches see nothing until [`MemoryStore::release_watches`]; reads and writes go on.
    pub fn hold_watches(&self) {
        self.lock().held = true;
    }

    /// Ends [`MemoryStore::hold_watches`].
    pub fn release_watches(&self) {
        self.lock().held = false;
        self.tick.send_modify(|t| *t += 1);
    }

    /// Forgets all history: every watch that is not up to date must list again.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.history.clear();
        state.compacted = state.revision;
        drop(state);
        self.tick.send_modify(|t| *t += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the store's lock")
    }

    /// Runs a write and wakes the watches.
    fn write(
        &self,
        f: impl FnOnce(&mut State) -> Result<Revision, StoreError>,
    ) -> Result<Revision, StoreError> {
        let result = {
            let mut state = self.lock();
            state.injected()?;
            f(&mut state)
        };
        if result.is_ok() {
            self.tick.send_modify(|t| *t += 1);
        }
        result
    }
}

impl State {
    fn injected(&mut self) -> Result<(), StoreError> {
        self.failures.pop_front().map_or(Ok(()), Err)
    }

    fn check(&mut self, key: &Key, expect: Expect) -> Result<(), StoreError> {
        let current = self.entries.get(key).map(|(revision, _)| *revision);
        if matches!(expect, Expect::Revision(_)) && self.conflicts > 0 {
            self.conflicts -= 1;
            return Err(StoreError::Conflict(key.clone()));
        }
        match (expect, current) {
            (Expect::Absent, Some(_)) => Err(StoreError::Exists(key.clone())),
            (Expect::Revision(_), None) => Err(StoreError::NotFound(key.clone())),
            (Expect::Revision(want), Some(have)) if want != have => Err(StoreError::Conflict(key.clone())),
            _ => Ok(()),
        }
    }

    fn next_revision(&mut self) -> Revision {
        self.revision += 1;
        Revision(self.revision)
    }

    fn record(&mut self, change: Change) {
        self.history.push_back(change);
        while self.history.len() > self.limit {
            if let Some(gone) = self.history.pop_front() {
                self.compacted = revision_of(&gone).0;
            }
        }
    }

    /// What a watch at `from` has to deliver, and where it stands afterwards.
    fn since(&self, kinds: &BTreeSet<Kind>, from: Revision) -> Result<(Vec<Change>, Revision), StoreError> {
        if from.0 < self.compacted || from.0 > self.revision {
            return Err(StoreError::Compacted(from));
        }
        let changes = self
            .history
            .iter()
            .filter(|c| revision_of(c) > from && kinds.contains(&kind_of(c)))
            .cloned()
            .collect();
        Ok((changes, Revision(self.revision)))
    }
}

fn revision_of(change: &Change) -> Revision {
    match change {
        Change::Put(entry) => entry.revision,
        Change::Delete { revision, .. } => *revision,
    }
}

fn kind_of(change: &Change) -> Kind {
    match change {
        Change::Put(entry) => entry.key.kind,
        Change::Delete { key, .. } => key.kind,
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a Key) -> StoreFuture<'a, Entry> {
        Box::pin(async move {
            let mut state = self.lock();
            state.injected()?;
            let (revision, value) =
                state.entries.get(key).ok_or_else(|| StoreError::NotFound(key.clone()))?.clone();
            Ok(Entry { key: key.clone(), revision, value })
        })
    }

    fn list<'a>(&'a self, kinds: &'a [Kind]) -> StoreFuture<'a, Listing> {
        Box::pin(async move {
            let mut state = self.lock();
            state.injected()?;
            let kinds: BTreeSet<Kind> = kinds.iter().copied().collect();
            let entries = kinds.into_iter().flat_map(|kind| state.entries.of(kind)).collect();
            Ok(Listing { entries, revision: Revision(state.revision) })
        })
    }

    fn put<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Revision> {
        Box::pin(async move {
            self.write(|state| {
                state.check(key, expect)?;
                let revision = state.next_revision();
                let value = Arc::new(value);
                state.entries.insert(key, revision, value.clone());
                state.record(Change::Put(Entry { key: key.clone(), revision, value }));
                Ok(revision)
            })
        })
    }

    fn delete<'a>(&'a self, key: &'a Key, expect: Expect) -> StoreFuture<'a, Revision> {
        Box::pin(async move {
            self.write(|state| {
                if expect == Expect::Absent {
                    return Err(StoreError::Conflict(key.clone()));
                }
                if state.entries.get(key).is_none() {
                    return Err(StoreError::NotFound(key.clone()));
                }
                state.check(key, expect)?;
                state.entries.remove(key);
                let revision = state.next_revision();
                state.record(Change::Delete { key: key.clone(), revision });
                Ok(revision)
            })
        })
    }

    fn watch<'a>(&'a self, kinds: &'a [Kind], from: Revision) -> StoreFuture<'a, Box<dyn Watch>> {
        Box::pin(async move {
            let kinds = kinds.iter().copied().collect();
            let mut state = self.lock();
            state.injected()?;
            state.since(&kinds, from)?;
            let tick = self.tick.subscribe();
            Ok(Box::new(MemoryWatch { store: self.clone(), kinds, at: from, tick }) as Box<dyn Watch>)
        })
    }
}

struct MemoryWatch {
    store: MemoryStore,
    kinds: BTreeSet<Kind>,
    at: Revision,
    tick: watch::Receiver<u64>,
}

impl Watch for MemoryWatch {
    fn next(&mut self) -> StoreFuture<'_, Vec<Change>> {
        Box::pin(async move {
            loop {
                self.tick.mark_unchanged();
                {
                    let state = self.store.lock();
                    if !state.held {
                        let (changes, at) = state.since(&self.kinds, self.at)?;
                        self.at = at;
                        if !changes.is_empty() {
                            return Ok(changes);
                        }
                    }
                }
                self.tick
                    .changed()
                    .await
                    .map_err(|_| StoreError::Unavailable("the store was closed".into()))?;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{self, Subject};

    #[tokio::test]
    async fn memory_keeps_the_contract() {
        contract::run(|| {
            let store = MemoryStore::new();
            let same = store.clone();
            Subject {
                handle: Box::new(move || Arc::new(same.clone())),
                compact: Some(Box::new(move || {
                    store.compact();
                    Box::pin(async {})
                })),
            }
        })
        .await;
    }

    #[tokio::test]
    async fn injected_faults_hit_once_and_in_order() {
        let store = MemoryStore::new();
        let key = Key::new(Kind::IpPool, None, "p");
        let first = store.put(&key, Value::Null, Expect::Absent).await.expect("creates");
        store.inject_conflicts(1);
        let write = || store.put(&key, Value::Null, Expect::Revision(first));
        assert_eq!(write().await, Err(StoreError::Conflict(key.clone())));
        store.inject_failure(StoreError::Unavailable("one".into()));
        store.inject_failure(StoreError::Unavailable("two".into()));
        assert_eq!(store.get(&key).await, Err(StoreError::Unavailable("one".into())));
        assert_eq!(write().await, Err(StoreError::Unavailable("two".into())));
        write().await.expect("goes through");
    }

    #[tokio::test]
    async fn a_held_watch_delivers_when_it_is_released() {
        let store = MemoryStore::new();
        let key = Key::new(Kind::IpPool, None, "p");
        let mut watch = store.watch(&[Kind::IpPool], Revision(0)).await.expect("watches");
        store.hold_watches();
        store.put(&key, Value::Null, Expect::Absent).await.expect("creates");
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), watch.next()).await;
        assert!(early.is_err());
        store.release_watches();
        assert_eq!(watch.next().await.expect("delivers").len(), 1);
    }

    #[tokio::test]
    async fn a_short_history_forces_slow_watches_to_list() {
        let store = MemoryStore::with_history(3);
        let key = Key::new(Kind::IpPool, None, "p");
        let mut watch = store.watch(&[Kind::IpPool], Revision(0)).await.expect("watches");
        for _ in 0..4 {
            store.put(&key, Value::Null, Expect::Any).await.expect("writes");
        }
        assert_eq!(watch.next().await, Err(StoreError::Compacted(Revision(0))));
    }
}
