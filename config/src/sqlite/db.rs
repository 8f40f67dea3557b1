//! One connection to a database file: schema, the five operations as transactions, and errors in words.
//! Synchronous; only [`super::worker`] calls it. No policy: values are opaque JSON.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use brindle_config_core::{
    Key, Kind,
    store::{Change, Entry, Expect, Listing, Revision, StoreError},
};
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use serde_json::Value;

use super::{
    fault::{corrupt, explain, io_error, is_busy},
    frozen,
    pair::{Identity, Opening, identity},
};

/// `PRAGMA application_id`: "Brnd".
const APPLICATION_ID: i64 = 0x4272_6e64;
/// `PRAGMA user_version` of the schema below.
const SCHEMA_VERSION: i64 = 1;
/// Changes kept for watches. A watch that falls further behind lists again.
pub(super) const HISTORY: u64 = 4096;
/// The log is trimmed once per so many writes.
const TRIM_EVERY: u64 = 64;
/// Changes read at once by a watch.
const PAGE: u32 = 1024;
/// How long a call waits for other processes' transactions.
pub(super) const BUSY: Duration = Duration::from_secs(10);
/// How long the end of a connection waits for others who read what is in the log.
const CLOSING: Duration = Duration::from_millis(500);
/// Files up to this size are checked when they are opened (a few ms); larger ones when SQLite meets the damage.
const CHECK_UP_TO: u64 = 4 << 20;

const SCHEMA: &str = "
CREATE TABLE state (
    id        INTEGER PRIMARY KEY CHECK (id = 0),
    revision  INTEGER NOT NULL,
    compacted INTEGER NOT NULL
);
INSERT INTO state VALUES (0, 0, 0);
CREATE TABLE entries (
    kind      TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    revision  INTEGER NOT NULL,
    value     TEXT NOT NULL,
    PRIMARY KEY (kind, namespace, name)
) WITHOUT ROWID;
CREATE TABLE changes (
    revision  INTEGER PRIMARY KEY,
    kind      TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    value     TEXT
);
";

/// An open database.
pub(super) struct Db {
    conn: Connection,
    path: PathBuf,
    /// The file that was opened.
    file: Identity,
    /// Counts how often the file was replaced under us; a watch of an older generation must list again.
    generation: u64,
}

/// Why an operation failed, before it is put into words.
#[derive(Debug)]
pub(super) enum Failure {
    Store(StoreError),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(e: rusqlite::Error) -> Self {
        Self::Sql(e)
    }
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

/// Where a watch stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    pub(super) revision: Revision,
    pub(super) generation: u64,
}

/// What happened after a position.
pub(super) struct Since {
    pub(super) changes: Vec<Change>,
    /// The position behind it.
    pub(super) now: Position,
    /// There was nothing more when it was read.
    pub(super) all: bool,
}

impl Db {
    /// Opens the file; an absent or empty one becomes a database when `create` is set. A small file is checked whole.
    pub(super) fn open(path: &Path, create: bool) -> Result<Self, StoreError> {
        let path = std::path::absolute(path).map_err(|e| io_error(path, &e))?;
        let create = inspect_file(&path, create)?;
        Self::connect(&path, create, true).or_else(|f| Self::look(&path, f)).map_err(|f| explain(&path, f))
    }

    /// Another connection to a file that was just opened.
    pub(super) fn open_again(path: &Path) -> Result<Self, StoreError> {
        Self::connect(path, false, false).or_else(|f| Self::look(path, f)).map_err(|f| explain(path, f))
    }

    /// Opens a file that nobody can write, after it could not be opened as usual.
    fn look(path: &Path, failure: Failure) -> Result<Self, Failure> {
        let conn = frozen::open(path, failure)?;
        check_header(&conn, path)?;
        state(&conn)?;
        let file = identity(path).map_err(|e| io_error(path, &e))?;
        Ok(Self { conn, path: path.to_owned(), file, generation: 0 })
    }

    fn connect(path: &Path, create: bool, check: bool) -> Result<Self, Failure> {
        let opening = Opening::begin(path)?;
        let before = identity(path).ok();
        let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
        let mut conn = Connection::open_with_flags(path, flags)?;
        let mut waiting = Waiting::default();
        conn.busy_handler(Some(move |n| waiting.again(n)))?;
        check_header(&conn, path)?;
        if create {
            // The log and the index that SQLite makes beside the file inherit this.
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|e| io_error(path, &e))?;
        }
        let size = fs::metadata(path).map(|m| m.len()).unwrap_or(0);
        if check && size > 0 && size <= CHECK_UP_TO {
            let verdict: String = conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
            if verdict != "ok" {
                return Err(StoreError::Broken(corrupt(path, &verdict)).into());
            }
        }
        switch_to_wal(&conn, path)?;
        conn.execute_batch(
            "PRAGMA synchronous = NORMAL; PRAGMA cache_size = -512; PRAGMA wal_autocheckpoint = 400;
             PRAGMA journal_size_limit = 4194304; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;",
        )?;
        create_schema(&mut conn, path)?;
        let file = identity(path).map_err(|e| io_error(path, &e))?;
        if before.is_some_and(|b| b != file) {
            let what = format!("{}: the file was replaced while it was opened", path.display());
            return Err(StoreError::Unavailable(what).into());
        }
        opening.done(file);
        Ok(Self { conn, path: path.to_owned(), file, generation: 0 })
    }

    /// Closes the connection. What it has written is in the file itself then, whoever else has it open: of two that close at
    /// once SQLite takes neither for the last one, which alone would see to it.
    pub(super) fn close(self) {
        let wrote = self.conn.query_row("SELECT total_changes()", [], |r| r.get::<_, i64>(0));
        // A file that was replaced has nothing to do with the log of this one.
        if wrote.is_ok_and(|n| n > 0)
            && identity(&self.path).is_ok_and(|file| file == self.file)
            && let Err(error) = self.take_log_in()
        {
            tracing::debug!(path = %self.path.display(), %error, "the log is not taken into the file");
        }
        if let Err((_, error)) = self.conn.close() {
            tracing::debug!(path = %self.path.display(), %error, "not closed");
        }
    }

    /// SQLite does not wait for another process that is at the same.
    fn take_log_in(&self) -> rusqlite::Result<()> {
        let begun = Instant::now();
        self.conn.busy_timeout(CLOSING)?;
        let busy = || self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get::<_, bool>(0));
        while busy()? && begun.elapsed() < CLOSING {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Words for what went wrong.
    pub(super) fn explain(&self, failure: Failure) -> StoreError {
        explain(&self.path, failure)
    }

    /// Notices that the file was removed or replaced while it was open; a replacement is opened in its place.
    pub(super) fn verify_file(&mut self) -> Result<(), StoreError> {
        match identity(&self.path) {
            Ok(file) if file == self.file => Ok(()),
            Ok(_) => {
                let generation = self.generation + 1;
                *self = Self { generation, ..Self::open(&self.path, false)? };
                tracing::warn!(path = %self.path.display(), "datastore file was replaced; the new one is open");
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StoreError::Broken(format!(
                "{}: the file was removed while it was in use; put it back, or restart to begin with an empty one",
                self.path.display()
            ))),
            Err(e) => Err(io_error(&self.path, &e)),
        }
    }

    pub(super) fn get(&mut self, key: &Key) -> Result<Entry, Failure> {
        let mut stmt = self.conn.prepare_cached(
            "SELECT revision, value FROM entries WHERE kind = ?1 AND namespace = ?2 AND name = ?3",
        )?;
        let row = stmt
            .query_row(params![key.kind.as_str(), key.namespace, key.name], |r| {
                Ok((number(r, 0)?, r.get::<_, String>(1)?))
            })
            .optional()?;
        let (revision, text) = row.ok_or_else(|| StoreError::NotFound(key.clone()))?;
        Ok(entry(key.clone(), revision, &text)?)
    }

    pub(super) fn list(&mut self, kinds: &[Kind]) -> Result<Listing, Failure> {
        let mut kinds = kinds.to_vec();
        kinds.sort_unstable();
        kinds.dedup();
        let tx = self.conn.transaction()?;
        let (revision, _) = state(&tx)?;
        let mut entries = Vec::new();
        {
            let mut stmt = tx.prepare_cached(
                "SELECT namespace, name, revision, value FROM entries WHERE kind = ?1 ORDER BY namespace, name",
            )?;
            for kind in kinds {
                let mut rows = stmt.query([kind.as_str()])?;
                while let Some(row) = rows.next()? {
                    let key = Key { kind, namespace: row.get(0)?, name: row.get(1)? };
                    let text = row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?;
                    entries.push(entry(key, number(row, 2)?, text)?);
                }
            }
        }
        tx.commit()?;
        Ok(Listing { entries, revision: Revision(revision) })
    }

    pub(super) fn put(&mut self, key: &Key, value: &str, expect: Expect) -> Result<Revision, Failure> {
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        match (expect, revision_of(&tx, key)?) {
            (Expect::Absent, Some(_)) => return Err(StoreError::Exists(key.clone()).into()),
            (Expect::Revision(_), None) => return Err(StoreError::NotFound(key.clone()).into()),
            (Expect::Revision(want), Some(have)) if want.0 != have => {
                return Err(StoreError::Conflict(key.clone()).into());
            }
            _ => {}
        }
        let revision = advance(&tx)?;
        tx.prepare_cached("INSERT OR REPLACE INTO entries VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
            key.kind.as_str(),
            key.namespace,
            key.name,
            sql(revision),
            value
        ])?;
        record(&tx, revision, key, Some(value))?;
        tx.commit()?;
        Ok(Revision(revision))
    }

    pub(super) fn delete(&mut self, key: &Key, expect: Expect) -> Result<Revision, Failure> {
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        match (expect, revision_of(&tx, key)?) {
            (Expect::Absent, _) => return Err(StoreError::Conflict(key.clone()).into()),
            (_, None) => return Err(StoreError::NotFound(key.clone()).into()),
            (Expect::Revision(want), Some(have)) if want.0 != have => {
                return Err(StoreError::Conflict(key.clone()).into());
            }
            _ => {}
        }
        let revision = advance(&tx)?;
        tx.prepare_cached("DELETE FROM entries WHERE kind = ?1 AND namespace = ?2 AND name = ?3")?
            .execute(params![key.kind.as_str(), key.namespace, key.name])?;
        record(&tx, revision, key, None)?;
        tx.commit()?;
        Ok(Revision(revision))
    }

    /// The position of a watch that wants everything after `from`.
    pub(super) fn position(&mut self, from: Revision) -> Result<Position, Failure> {
        let (revision, compacted) = state(&self.conn)?;
        in_history(from, revision, compacted)?;
        Ok(Position { revision: from, generation: self.generation })
    }

    /// Changes of `kinds` after `at` (at most one page is read), and the position behind them.
    pub(super) fn since(&mut self, kinds: &[Kind], at: Position) -> Result<Since, Failure> {
        if at.generation != self.generation {
            return Err(StoreError::Compacted(at.revision).into());
        }
        let tx = self.conn.transaction()?;
        let (revision, compacted) = state(&tx)?;
        in_history(at.revision, revision, compacted)?;
        let mut changes = Vec::new();
        let mut last = at.revision.0;
        if last < revision {
            let mut stmt = tx.prepare_cached(
                "SELECT revision, kind, namespace, name, value FROM changes WHERE revision > ?1
                 ORDER BY revision LIMIT ?2",
            )?;
            let mut rows = stmt.query(params![sql(at.revision.0), PAGE])?;
            while let Some(row) = rows.next()? {
                last = number(row, 0)?;
                let kind = row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?;
                // A kind this version does not know was written by a newer one; nobody here can have asked for it.
                let Some(kind) = Kind::parse(kind).filter(|k| kinds.contains(k)) else { continue };
                let key = Key { kind, namespace: row.get(2)?, name: row.get(3)? };
                let value = row.get_ref(4)?.as_str_or_null().map_err(rusqlite::Error::from)?;
                changes.push(match value {
                    Some(text) => Change::Put(entry(key, last, text)?),
                    None => Change::Delete { key, revision: Revision(last) },
                });
            }
        }
        tx.commit()?;
        let now = Position { revision: Revision(last), generation: at.generation };
        Ok(Since { changes, now, all: last == revision })
    }

    /// Forgets the history up to now.
    pub(super) fn compact(&mut self) -> Result<(), Failure> {
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch("DELETE FROM changes; UPDATE state SET compacted = revision;")?;
        tx.commit()?;
        Ok(())
    }
}

fn in_history(from: Revision, revision: u64, compacted: u64) -> Result<(), StoreError> {
    // A position ahead of the store means that the file was set back (a restored backup).
    if from.0 < compacted || from.0 > revision { Err(StoreError::Compacted(from)) } else { Ok(()) }
}

/// Revision and compaction point.
fn state(conn: &Connection) -> rusqlite::Result<(u64, u64)> {
    conn.prepare_cached("SELECT revision, compacted FROM state")?
        .query_row([], |r| Ok((number(r, 0)?, number(r, 1)?)))
}

fn revision_of(conn: &Connection, key: &Key) -> rusqlite::Result<Option<u64>> {
    conn.prepare_cached("SELECT revision FROM entries WHERE kind = ?1 AND namespace = ?2 AND name = ?3")?
        .query_row(params![key.kind.as_str(), key.namespace, key.name], |r| number(r, 0))
        .optional()
}

/// Takes the next revision, trimming the history now and then.
fn advance(conn: &Connection) -> rusqlite::Result<u64> {
    let revision: u64 = conn
        .prepare_cached("UPDATE state SET revision = revision + 1 RETURNING revision")?
        .query_row([], |r| number(r, 0))?;
    if revision > HISTORY && revision.is_multiple_of(TRIM_EVERY) {
        let oldest = revision - HISTORY;
        conn.prepare_cached("DELETE FROM changes WHERE revision <= ?1")?.execute([sql(oldest)])?;
        conn.prepare_cached("UPDATE state SET compacted = max(compacted, ?1)")?.execute([sql(oldest)])?;
    }
    Ok(revision)
}

fn record(conn: &Connection, revision: u64, key: &Key, value: Option<&str>) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT INTO changes VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![sql(revision), key.kind.as_str(), key.namespace, key.name, value])
        .map(drop)
}

/// Revisions are unsigned here and signed in SQLite; the counter never comes near the difference.
fn sql(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn number(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let n: i64 = row.get(column)?;
    u64::try_from(n).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, n))
}

fn entry(key: Key, revision: u64, text: &str) -> Result<Entry, StoreError> {
    match serde_json::from_str::<Value>(text) {
        Ok(value) => Ok(Entry { key, revision: Revision(revision), value: Arc::new(value) }),
        Err(e) => Err(StoreError::Invalid { key, reason: format!("stored text is not JSON: {e}") }),
    }
}

/// Waits between attempts on a locked database: short and uneven, so that many writers do not march in step.
#[derive(Default)]
struct Waiting {
    since: Option<Instant>,
}

impl Waiting {
    fn again(&mut self, attempt: i32) -> bool {
        let now = Instant::now();
        if attempt == 0 {
            self.since = Some(now);
        }
        if self.since.is_some_and(|s| now.duration_since(s) > BUSY) {
            return false;
        }
        let base = 200 * u64::try_from(attempt).unwrap_or(0).clamp(1, 20);
        std::thread::sleep(Duration::from_micros(base / 2 + crate::jitter::below(base)));
        true
    }
}

/// Names what cannot be a database; true when the file has to be created.
///
/// Nothing but SQLite ever opens the file in this process: closing such a descriptor would drop the locks SQLite holds
/// (POSIX locks belong to the process and go with any descriptor of the file).
fn inspect_file(path: &Path, create: bool) -> Result<bool, StoreError> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(StoreError::Broken(format!(
            "{}: is a directory; give the path of the database file, for example {}",
            path.display(),
            path.join("brindle.db").display()
        ))),
        Ok(meta) if !meta.is_file() => Err(StoreError::Broken(format!(
            "{}: is not a regular file; give the path of a database file",
            path.display()
        ))),
        Ok(_) => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::NotFound && create => {
            match path.parent() {
                Some(dir) if !dir.is_dir() => {
                    return Err(StoreError::Broken(format!(
                        "{}: the directory {} does not exist; create it first",
                        path.display(),
                        dir.display()
                    )));
                }
                _ => {}
            }
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(StoreError::Broken(format!("{}: no such datastore; check the path", path.display())))
        }
        Err(e) => Err(io_error(path, &e)),
    }
}

/// Refuses files of other programs and of newer versions before anything is written to them.
fn check_header(conn: &Connection, path: &Path) -> Result<(), Failure> {
    // As of one moment: another process may be making a database of it.
    let moment = conn.unchecked_transaction()?;
    let version: i64 = moment.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    let application: i64 = moment.query_row("PRAGMA application_id", [], |r| r.get(0))?;
    let tables: i64 = moment.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
    drop(moment);
    if application == APPLICATION_ID && version == SCHEMA_VERSION
        || (application, version, tables) == (0, 0, 0)
    {
        return Ok(());
    }
    let path = path.display();
    Err(StoreError::Broken(if application == APPLICATION_ID {
        format!(
            "{path}: has schema version {version}, this program knows {SCHEMA_VERSION}; \
             use the version that wrote it, or another file"
        )
    } else {
        format!("{path}: is the SQLite database of another program; choose another file")
    })
    .into())
}

/// Entering WAL mode needs the file for itself for a moment, and SQLite does not wait for that on its own.
fn switch_to_wal(conn: &Connection, path: &Path) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        match conn.query_row("PRAGMA journal_mode = WAL", [], |r| r.get::<_, String>(0)) {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                return Err(StoreError::Broken(format!(
                    "{}: cannot be shared between processes (journal mode stays {mode:?}); \
                     put it on a local file system that is writable",
                    path.display()
                ))
                .into());
            }
            Err(e) if is_busy(&e) && begun.elapsed() < BUSY => {
                std::thread::sleep(Duration::from_micros(500 + crate::jitter::below(2000)));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn create_schema(conn: &mut Connection, path: &Path) -> Result<(), Failure> {
    let application = |c: &Connection| c.query_row("PRAGMA application_id", [], |r| r.get::<_, i64>(0));
    if application(conn)? == APPLICATION_ID {
        state(conn)?;
        return Ok(());
    }
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been faster.
    if application(&tx)? != APPLICATION_ID {
        tx.execute_batch(SCHEMA)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        tracing::info!(path = %path.display(), "created the datastore");
    }
    tx.commit()?;
    Ok(())
}
