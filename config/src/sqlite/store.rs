//! The `Store` trait over two connections: one reads, one writes, so that a reader never waits for a writer's queue.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use brindle_config_core::{
    Key, Kind,
    store::{Change, Entry, Expect, Listing, Revision, Store, StoreError, StoreFuture, Watch},
};
use serde_json::Value;
use tokio::sync::watch;

use super::{
    db::{Db, Position},
    feed::{Bell, Ear, Heard},
    worker::Worker,
};

/// How long the end of a process waits for its connections to be closed.
const CLOSE: Duration = Duration::from_secs(3);

/// A datastore in one SQLite file. Watches need a tokio runtime with time; the other calls need none.
pub struct SqliteStore {
    path: PathBuf,
    reader: Worker,
    writer: Worker,
    bell: Arc<Bell>,
    /// Made by the first watch: a command that only reads or writes needs no inotify instance.
    ear: OnceLock<Arc<Ear>>,
}

impl SqliteStore {
    /// Opens the file, creating it (not its directory) if it is missing.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::with(path, true)
    }

    /// Opens a file that must exist.
    pub fn open_existing(path: &Path) -> Result<Self, StoreError> {
        Self::with(path, false)
    }

    fn with(path: &Path, create: bool) -> Result<Self, StoreError> {
        let path =
            std::path::absolute(path).map_err(|e| StoreError::Broken(format!("{}: {e}", path.display())))?;
        let writer = Worker::start("store-write", &path, Db::open(&path, create)?)?;
        let reader = Worker::start("store-read", &path, Db::open_again(&path)?)?;
        let bell = Arc::new(Bell::new(&path));
        Ok(Self { path, reader, writer, bell, ear: OnceLock::new() })
    }

    /// Closes every such datastore of this process, for its end: then the file alone has everything that this process wrote.
    /// Without it the log beside the file does. A disk that is slow is not waited for.
    pub fn close_all() {
        super::worker::close_all(CLOSE);
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Forgets the history that watches resume from: those that are not up to date list again.
    pub async fn compact(&self) -> Result<(), StoreError> {
        self.writer.run(Db::compact).await
    }
}

impl Store for SqliteStore {
    fn get<'a>(&'a self, key: &'a Key) -> StoreFuture<'a, Entry> {
        let key = key.clone();
        Box::pin(async move { self.reader.run(move |db| db.get(&key)).await })
    }

    fn list<'a>(&'a self, kinds: &'a [Kind]) -> StoreFuture<'a, Listing> {
        let kinds = kinds.to_vec();
        Box::pin(async move { self.reader.run(move |db| db.list(&kinds)).await })
    }

    fn put<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Revision> {
        let (kind, key, bell) = (key.kind, key.clone(), self.bell.clone());
        Box::pin(async move {
            let revision = self
                .writer
                .run(move |db| {
                    let revision = db.put(&key, &value.to_string(), expect)?;
                    bell.ring(revision);
                    Ok(revision)
                })
                .await?;
            if let Some(ear) = self.ear.get() {
                ear.wake(kind);
            }
            Ok(revision)
        })
    }

    fn delete<'a>(&'a self, key: &'a Key, expect: Expect) -> StoreFuture<'a, Revision> {
        let (kind, key, bell) = (key.kind, key.clone(), self.bell.clone());
        Box::pin(async move {
            let revision = self
                .writer
                .run(move |db| {
                    let revision = db.delete(&key, expect)?;
                    bell.ring(revision);
                    Ok(revision)
                })
                .await?;
            if let Some(ear) = self.ear.get() {
                ear.wake(kind);
            }
            Ok(revision)
        })
    }

    fn watch<'a>(&'a self, kinds: &'a [Kind], from: Revision) -> StoreFuture<'a, Box<dyn Watch>> {
        Box::pin(async move {
            let ear = self.ear.get_or_init(|| Arc::new(Ear::new(&self.path))).clone();
            let tick = ear.subscribe();
            let at = self.reader.run(move |db| db.position(from)).await?;
            let patience = ear.patience();
            Ok(Box::new(SqliteWatch {
                reader: self.reader.clone(),
                kinds: kinds.into(),
                at,
                read_all: false,
                heard: 0,
                tick,
                patience,
                _ear: ear,
            }) as Box<dyn Watch>)
        })
    }
}

struct SqliteWatch {
    reader: Worker,
    kinds: Arc<[Kind]>,
    at: Position,
    /// There was nothing more at the last reading, and what was heard before that.
    read_all: bool,
    heard: u64,
    tick: watch::Receiver<Heard>,
    patience: Duration,
    /// Keeps the feed alive.
    _ear: Arc<Ear>,
}

impl Watch for SqliteWatch {
    fn next(&mut self) -> StoreFuture<'_, Vec<Change>> {
        Box::pin(async move {
            loop {
                if self.read_all {
                    let (kinds, heard) = (self.kinds.clone(), self.heard);
                    let signal = async { self.tick.wait_for(|t| t.of(&kinds) != heard).await.map(drop) };
                    // Err: no signal for long. Ok(Err): the feed has ended; then only time is left.
                    if let Ok(Err(_)) = tokio::time::timeout(self.patience, signal).await {
                        tokio::time::sleep(self.patience).await;
                    }
                }
                // Before the read: a signal that comes during it must not be lost. Nor may a reading that nobody waits for.
                self.read_all = false;
                self.heard = self.tick.borrow().of(&self.kinds);
                let (kinds, at) = (self.kinds.clone(), self.at);
                let since = self.reader.run(move |db| db.since(&kinds, at)).await?;
                (self.at, self.read_all) = (since.now, since.all);
                if !since.changes.is_empty() {
                    return Ok(since.changes);
                }
            }
        })
    }
}
