//! What every follower in this process shares: one listing and one stream for each collection and selection of it, kept as
//! text, read by any number of subscribers at their own pace. Here live the cache and its readers; what fills the cache is
//! in `reflector.rs`.
//!
//! Each object stands once, at the number of its last change. A reader is a position: what lies behind it is the snapshot
//! or the changes it has not seen, each object at its latest state. So a slow reader costs nothing but the marks of what was
//! deleted since.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use brindle_config_core::{
    Key,
    store::{Entry, Revision, StoreError, StoreFuture, Subscription, SyncEvent},
};
use tokio::sync::watch;

use super::reflector::Reflector;

/// Most events told at once: as values of JSON they are many times what they are here.
const BATCH: usize = 64;

/// One object, or the mark that it is gone.
struct Item {
    key: Arc<Key>,
    revision: Revision,
    /// JSON; `None` when it was deleted.
    text: Option<Box<[u8]>>,
    /// The number at which the object came, for the last time: who had everything before that does not know this one.
    made: u64,
    /// The listing that showed it last.
    listing: u64,
}

/// The objects of one collection.
#[derive(Default)]
struct Objects {
    /// By the number of their last change.
    items: BTreeMap<u64, Item>,
    numbers: HashMap<Arc<Key>, u64>,
    /// When objects that were deleted and came again had been there before, from a number to below another, while a reader
    /// stands in between: it knows that one and will have to be told if the new one goes.
    before: HashMap<Arc<Key>, Vec<(u64, u64)>>,
    last: u64,
    listing: u64,
    /// Numbers of marks of deleted objects.
    marks: BTreeSet<u64>,
    readers: BTreeMap<u64, Stand>,
}

/// Where a reader stands.
#[derive(Clone, Copy, Default, PartialEq)]
struct Stand {
    /// The number read last.
    read: u64,
    /// The number up to which it was when it last had read everything: what was there then is what it knew.
    whole: u64,
}

impl Objects {
    /// Notes an object as it is now. `false`: that was known. An object of which only the revision is new counts as
    /// changed if `revisions` do.
    fn put(&mut self, key: Key, revision: Revision, text: Option<Vec<u8>>, revisions: bool) -> bool {
        let known = self.numbers.get(&key).copied();
        let listing = self.listing;
        let at = self.last + 1;
        let (key, made) = match known.and_then(|n| Some((n, self.items.get_mut(&n)?))) {
            Some((n, item)) => {
                let same = !revisions || text.is_none() || item.revision == revision;
                if same && item.text.as_deref() == text.as_deref() {
                    item.revision = revision;
                    item.listing = listing;
                    return false;
                }
                let (key, mut made) = (Arc::clone(&item.key), item.made);
                self.items.remove(&n);
                if self.marks.remove(&n) && text.is_some() {
                    self.before.entry(Arc::clone(&key)).or_default().push((made, n));
                    made = at;
                }
                (key, made)
            }
            None if text.is_none() => return false,
            None => (Arc::new(key), at),
        };
        self.last = at;
        self.numbers.insert(Arc::clone(&key), at);
        if text.is_none() {
            self.marks.insert(at);
        }
        let text = text.map(Vec::into_boxed_slice);
        self.items.insert(at, Item { key, revision, text, made, listing });
        self.sweep();
        true
    }

    /// Whether an object that is deleted now was there when the numbers had come so far.
    fn was_there(&self, mark: &Item, at: u64) -> bool {
        let lives = self.before.get(&mark.key).into_iter().flatten();
        mark.made <= at || lives.into_iter().any(|(from, below)| (*from..*below).contains(&at))
    }

    /// Forgets marks that every reader has read, and lives that none remembers.
    fn sweep(&mut self) {
        let readers = &self.readers;
        self.before.retain(|_, lives| {
            lives.retain(|(from, below)| readers.values().any(|r| (*from..*below).contains(&r.whole)));
            !lives.is_empty()
        });
        let read = self.readers.values().map(|r| r.read).min().unwrap_or(u64::MAX);
        while let Some(first) = self.marks.first().copied().filter(|n| *n <= read) {
            self.marks.remove(&first);
            if let Some(item) = self.items.remove(&first) {
                self.numbers.remove(&item.key);
            }
        }
    }
}

/// What readers wait for.
#[derive(Clone, Copy, Debug, Default)]
struct News {
    /// Counts up with every change, once the first listing is complete; 0 before.
    changes: u64,
    /// Nobody fills the cache any more.
    over: bool,
}

/// The cache of one collection.
#[derive(Default)]
pub(super) struct Shared {
    objects: Mutex<Objects>,
    news: watch::Sender<News>,
}

/// Held by whoever fills a cache: with it goes the hope of the readers, however it goes.
pub(super) struct Filling(pub(super) Arc<Shared>);

impl Drop for Filling {
    fn drop(&mut self) {
        self.0.news.send_modify(|n| n.over = true);
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Objects> {
        // Every change under the lock is a few calls that do not panic.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A listing begins: what it does not show is gone when it has ended.
    pub(super) fn begin_listing(&self) {
        self.held().listing += 1;
    }

    /// One object of a listing. Of two objects of one resource the newer is the one to be.
    pub(super) fn listed(&self, entry: Entry, revisions: bool) {
        let text = text(&entry);
        let mut objects = self.held();
        let known = objects.numbers.get(&entry.key).and_then(|n| objects.items.get(n));
        let twice = known
            .is_some_and(|i| i.text.is_some() && i.listing == objects.listing && i.revision > entry.revision);
        if !twice {
            objects.put(entry.key, entry.revision, text, revisions);
        }
    }

    /// The listing is complete.
    pub(super) fn end_listing(&self, at: Revision) {
        let mut objects = self.held();
        let listing = objects.listing;
        let gone = objects.items.values().filter(|i| i.text.is_some() && i.listing != listing);
        let gone: Vec<Key> = gone.map(|i| (*i.key).clone()).collect();
        for key in gone {
            objects.put(key, at, None, false);
        }
        drop(objects);
        self.tell();
    }

    /// An object was written.
    pub(super) fn written(&self, entry: Entry, revisions: bool) {
        let text = text(&entry);
        if self.held().put(entry.key, entry.revision, text, revisions) {
            self.tell();
        }
    }

    /// An object was deleted.
    pub(super) fn deleted(&self, key: Key, at: Revision) {
        if self.held().put(key, at, None, false) {
            self.tell();
        }
    }

    fn tell(&self) {
        self.news.send_modify(|n| n.changes += 1);
    }

    /// Whether the first listing is complete.
    pub(super) fn in_sync(&self) -> bool {
        self.news.borrow().changes > 0
    }

    /// Gives every object that is there to `each`, in the order in which they changed.
    pub(super) fn visit(&self, each: &mut dyn FnMut(Entry)) {
        let mut from = 0;
        let mut seen = HashSet::new();
        loop {
            let batch: Vec<(u64, Option<Entry>)> = {
                let objects = self.held();
                objects.items.range(from + 1..).take(BATCH).map(|(n, i)| (*n, i.entry())).collect()
            };
            let Some((last, _)) = batch.last() else { return };
            from = *last;
            // One that changes meanwhile comes again further on.
            for entry in batch.into_iter().filter_map(|(_, e)| e) {
                if seen.insert(entry.key.clone()) {
                    each(entry);
                }
            }
        }
    }
}

/// The text that is kept of a value. Written from JSON, it is JSON.
fn text(entry: &Entry) -> Option<Vec<u8>> {
    serde_json::to_vec(&*entry.value).ok()
}

impl Item {
    fn entry(&self) -> Option<Entry> {
        let value = serde_json::from_slice(self.text.as_deref()?).ok()?;
        Some(Entry { key: (*self.key).clone(), revision: self.revision, value: Arc::new(value) })
    }
}

/// A position in a cache.
struct Reader {
    reflector: Arc<Reflector>,
    id: u64,
    news: watch::Receiver<News>,
    /// What it was told since it last had read everything: that an object is there, or is not. What lies behind its
    /// position may have moved on before it came by.
    since: HashMap<Arc<Key>, bool>,
}

impl Reader {
    fn new(reflector: Arc<Reflector>) -> Self {
        let news = reflector.shared().news.subscribe();
        let mut objects = reflector.shared().held();
        let id = objects.readers.keys().next_back().map_or(0, |last| last + 1);
        objects.readers.insert(id, Stand::default());
        drop(objects);
        Self { reflector, id, news, since: HashMap::new() }
    }

    /// Appends what comes next, up to a full batch.
    fn read(&mut self, batch: &mut Vec<SyncEvent>) {
        let mut objects = self.reflector.shared().held();
        let old = objects.readers.get(&self.id).copied().unwrap_or_default();
        let mut new = Stand { whole: objects.last, ..old };
        for (number, item) in objects.items.range(old.read + 1..) {
            if batch.len() >= BATCH {
                new.whole = old.whole;
                break;
            }
            new.read = *number;
            if let Some(entry) = item.entry() {
                batch.push(SyncEvent::Upsert(entry));
                self.since.insert(Arc::clone(&item.key), true);
            } else if self.since.get(&item.key).copied().unwrap_or_else(|| objects.was_there(item, old.whole))
            {
                batch.push(SyncEvent::Delete((*item.key).clone()));
                self.since.insert(Arc::clone(&item.key), false);
            }
        }
        if new.whole != old.whole {
            self.since = HashMap::new();
        }
        if new != old {
            objects.readers.insert(self.id, new);
            objects.sweep();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut objects = self.reflector.shared().held();
        objects.readers.remove(&self.id);
        objects.sweep();
    }
}

/// Several collections, followed together.
pub(super) struct Readers {
    readers: Vec<Reader>,
    told: bool,
}

impl Readers {
    pub(super) fn new(reflectors: Vec<Arc<Reflector>>) -> Self {
        Self { readers: reflectors.into_iter().map(Reader::new).collect(), told: false }
    }
}

impl Subscription for Readers {
    fn next(&mut self) -> StoreFuture<'_, Vec<SyncEvent>> {
        Box::pin(async move {
            for reader in self.readers.iter_mut().filter(|_| !self.told) {
                // The sender lives in the reflector, which the reader holds.
                let _ = reader.news.wait_for(|n| n.over || n.changes > 0).await;
            }
            loop {
                let mut batch = Vec::new();
                for reader in &mut self.readers {
                    // What comes from now on is news again, also if it is read below already.
                    if reader.news.borrow_and_update().over {
                        let why = "a follower of the API server ended with a defect, which the log tells";
                        return Err(StoreError::Broken(why.into()));
                    }
                    reader.read(&mut batch);
                }
                if batch.len() < BATCH && !std::mem::replace(&mut self.told, true) {
                    batch.push(SyncEvent::InSync);
                }
                if !batch.is_empty() {
                    return Ok(batch);
                }
                if self.readers.is_empty() {
                    return std::future::pending().await;
                }
                let news = self.readers.iter_mut().map(|r| Box::pin(r.news.changed()));
                drop(futures::future::select_all(news).await);
            }
        })
    }
}

#[cfg(test)]
mod tests;
