//! Files that cannot be used, each with an error that names the file and what to do.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
};

use brindle_config::SqliteStore;
use brindle_config_core::{
    Kind,
    store::{Expect, Store, StoreError},
};

use super::{Role, TempDir, key, number, value};

/// A user without rights.
const NOBODY: u32 = 65534;

fn broken(db: &Path) -> String {
    match SqliteStore::open(db) {
        Ok(_) => panic!("{} was opened", db.display()),
        Err(StoreError::Broken(text)) => text,
        Err(e) => panic!("expected Broken, found {e:?}"),
    }
}

#[track_caller]
fn assert_says(text: &str, db: &Path, words: &[&str]) {
    assert!(text.contains(&db.display().to_string()), "{text:?} does not name {}", db.display());
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

/// A store with some entries, closed.
async fn filled(db: &Path, entries: u64) {
    let store = SqliteStore::open(db).expect("creates");
    for n in 0..entries {
        store.put(&key(&format!("p{n}")), value(n), Expect::Absent).await.expect("writes");
    }
}

/// The file without its log, as a backup would have it.
fn only_the_file(db: &Path) {
    let text = db.display();
    let begun = std::time::Instant::now();
    let busy = || {
        rusqlite::Connection::open(db)
            .and_then(|c| c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get::<_, bool>(0)))
            .unwrap_or_else(|e| panic!("{text}: {e}"))
    };
    // The threads of a store that was dropped may be at the same.
    while busy() {
        assert!(begun.elapsed().as_secs() < 60, "{text}: its log is not taken in");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(format!("{text}{suffix}"));
    }
}

#[test]
fn a_directory_is_refused() {
    let dir = TempDir::new();
    assert_says(&broken(&dir.0), &dir.0, &["is a directory", "brindle.db"]);
}

#[test]
fn a_missing_directory_is_named() {
    let dir = TempDir::new();
    let db = dir.path("no/such/store.db");
    assert_says(&broken(&db), &db, &["no/such does not exist", "create it"]);
    let db = dir.path("absent.db");
    let error = SqliteStore::open_existing(&db).err().expect("must exist").to_string();
    assert_says(&error, &db, &["no such datastore"]);
    assert!(!db.exists(), "nothing was created");
}

#[test]
fn other_files_are_refused_and_left_alone() {
    let dir = TempDir::new();
    for (name, content) in [("short", "hello\n".to_owned()), ("long", "not a database\n".repeat(1000))] {
        let db = dir.path(name);
        fs::write(&db, &content).expect("writes");
        assert_says(&broken(&db), &db, &["not a datastore file", "another path"]);
        assert_eq!(fs::read_to_string(&db).expect("reads"), content);
    }
    let db = dir.path("device");
    std::os::unix::fs::symlink("/dev/null", &db).expect("links");
    assert_says(&broken(&db), &db, &["not a regular file"]);
}

#[test]
fn the_database_of_another_program_is_refused() {
    let dir = TempDir::new();
    let db = dir.path("other.db");
    let other = rusqlite::Connection::open(&db).expect("creates");
    other.execute_batch("CREATE TABLE precious (x); INSERT INTO precious VALUES (1);").expect("fills");
    assert_says(&broken(&db), &db, &["another program"]);
    let mode: String = other.query_row("PRAGMA journal_mode", [], |r| r.get(0)).expect("reads");
    assert_eq!(mode, "delete", "nothing was changed");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    filled(&db, 400).await;
    rusqlite::Connection::open(&db).and_then(|c| c.pragma_update(None, "user_version", 7)).expect("changes");
    assert_says(&broken(&db), &db, &["schema version 7", "knows 1"]);
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    filled(&db, 400).await;
    only_the_file(&db);
    let good = fs::read(&db).expect("reads");
    let mut bad = good.clone();
    let middle = good.len() / 2;
    bad.iter_mut().skip(middle).take(20_000).for_each(|b| *b ^= 0x5a);
    fs::write(&db, &bad).expect("writes");
    assert_says(&broken(&db), &db, &["is damaged", "backup"]);
    fs::write(&db, &good).expect("writes");
    SqliteStore::open(&db).expect("the good file opens again");
}

#[tokio::test]
async fn a_truncated_file_is_refused() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    filled(&db, 400).await;
    only_the_file(&db);
    let good = fs::read(&db).expect("reads");
    for keep in [good.len() / 2, 4096, 1000, 60] {
        fs::write(&db, good.iter().copied().take(keep).collect::<Vec<_>>()).expect("writes");
        let text = broken(&db);
        assert!(
            text.contains("is damaged") || text.contains("not a datastore file"),
            "{keep} bytes of {}: {text}",
            good.len()
        );
        assert_says(&text, &db, &[]);
    }
}

#[tokio::test]
async fn damage_that_happens_later_is_met_and_named() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    // More than the page cache holds.
    filled(&db, 3000).await;
    only_the_file(&db);
    let store = SqliteStore::open(&db).expect("opens");
    // In place, as a failing disk would; the file stays the same inode.
    let file = fs::OpenOptions::new().write(true).open(&db).expect("opens");
    let len = file.metadata().expect("has metadata").len();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xa5; (len - 8192) as usize], 8192)
        .expect("writes");
    match store.list(&[Kind::BgpPeer]).await {
        Err(StoreError::Broken(text)) => assert_says(&text, &db, &["is damaged"]),
        Err(e) => panic!("expected Broken, found {e:?}"),
        Ok(_) => panic!("damaged pages were read as good ones"),
    }
}

#[tokio::test]
async fn a_file_removed_while_open_is_noticed() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    let store = SqliteStore::open(&db).expect("creates");
    fs::remove_file(&db).expect("removes");
    match store.put(&key("lost"), value(1), Expect::Any).await {
        Err(StoreError::Broken(text)) => assert_says(&text, &db, &["removed", "put it back"]),
        other => panic!("a write went into a file that is gone: {other:?}"),
    }
}

#[tokio::test]
async fn a_file_replaced_while_open_is_taken_over() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    let backup = backup(&dir).await;
    let store = SqliteStore::open(&db).expect("creates");
    let from = store.put(&key("old"), value(1), Expect::Absent).await.expect("writes");
    let mut watch = store.watch(&[Kind::BgpPeer], from).await.expect("watches");
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", db.display()));
    }
    fs::rename(&backup, &db).expect("renames");
    store.get(&key("from-backup")).await.expect("the new file is in use");
    assert_eq!(watch.next().await, Err(StoreError::Compacted(from)), "watches list again");
}

/// A backup with one entry, as `sqlite3 .backup` makes it.
async fn backup(dir: &TempDir) -> std::path::PathBuf {
    let backup = dir.path("backup.db");
    {
        let store = SqliteStore::open(&backup).expect("creates");
        store.put(&key("from-backup"), value(7), Expect::Absent).await.expect("writes");
    }
    only_the_file(&backup);
    backup
}

/// What is in a store: exactly the backup.
async fn assert_restored(store: &SqliteStore, who: &str) {
    let entries = store.list(&[Kind::BgpPeer]).await.expect(who).entries;
    let names: Vec<&str> = entries.iter().map(|e| e.key.name.as_str()).collect();
    assert_eq!(names, ["from-backup"], "{who}");
}

#[tokio::test]
async fn a_backup_moved_over_the_file_is_not_mixed_with_the_log_of_the_old_one() {
    for new_first in [false, true] {
        let dir = TempDir::new();
        let db = dir.path("store.db");
        let backup = backup(&dir).await;
        let old = SqliteStore::open(&db).expect("creates");
        for n in 0..50 {
            old.put(&key(&format!("old{n}")), value(n), Expect::Absent).await.expect("writes");
        }
        let mut other = Role::start("follow", &db);
        assert!(other.says().is_some());
        fs::rename(&backup, &db).expect("renames");
        if new_first {
            assert_restored(&SqliteStore::open(&db).expect("opens"), "who opens it").await;
        }
        assert_restored(&old, "who had it open").await;
        assert_restored(&SqliteStore::open(&db).expect("opens"), "who opens it later").await;
        old.put(&key("next"), value(8), Expect::Absent).await.expect("writes into the new one");
        drop(other);
        drop(old);
        let text: String = rusqlite::Connection::open(&db)
            .and_then(|c| c.query_row("PRAGMA integrity_check", [], |r| r.get(0)))
            .expect("reads");
        assert_eq!(text, "ok");
        let again = SqliteStore::open(&db).expect("opens");
        let left = again.list(&[Kind::BgpPeer]).await.expect("reads").entries;
        assert_eq!(left.len(), 2, "the backup and what was written since");
        let kept = fs::metadata(dir.path("store.db-wal.replaced")).expect("the old log was kept");
        assert!(kept.len() > 0);
    }
}

#[tokio::test]
async fn a_backup_moved_over_the_file_of_a_dead_process_is_not_mixed_either() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    let backup = backup(&dir).await;
    let mut role = Role::start("count", &db);
    for _ in 0..20 {
        role.says().expect("it counts");
    }
    role.kill();
    assert!(fs::metadata(dir.path("store.db-wal")).expect("it was killed").len() > 0);
    // The same file: its log is taken in.
    SqliteStore::open(&db).expect("opens").get(&key("counter")).await.expect("nothing is lost");
    let mut role = Role::start("count", &db);
    role.says().expect("it counts");
    role.kill();
    fs::rename(&backup, &db).expect("renames");
    assert_restored(&SqliteStore::open(&db).expect("opens"), "after a crash").await;
}

#[tokio::test]
async fn files_copied_with_their_log_stay_together() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    let mut role = Role::start("count", &db);
    for _ in 0..20 {
        role.says().expect("it counts");
    }
    role.kill();
    let copy = dir.path("copy.db");
    for end in ["", "-wal", ".lock"] {
        fs::copy(format!("{}{end}", db.display()), format!("{}{end}", copy.display())).expect("copies");
    }
    let counted = |e: brindle_config_core::store::Entry| number(&e.value);
    let there = SqliteStore::open(&db).expect("opens").get(&key("counter")).await.map(counted);
    let here = SqliteStore::open(&copy).expect("opens").get(&key("counter")).await.map(counted);
    assert_eq!((there.is_ok(), &here), (true, &there), "the log was taken in");
}

#[tokio::test]
async fn a_user_without_rights_is_told_so() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    filled(&db, 400).await;
    only_the_file(&db);
    let program = dir.program();
    let as_nobody = |role: &str| {
        let mut command = Command::new(&program);
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        Role::spawn(&mut command, role, &db).says().expect("an answer")
    };
    // 0600: unreadable.
    assert_says(&as_nobody("open"), &db, &["permission denied", "root"]);
    // Readable, but neither the file nor its folder can be written.
    fs::set_permissions(&db, fs::Permissions::from_mode(0o644)).expect("it is ours");
    assert_says(&as_nobody("put"), &db, &["writable"]);
}

#[test]
fn a_full_disk_is_named_and_reading_goes_on() {
    let dir = TempDir::new();
    let disk = dir.path("disk");
    fs::create_dir(&disk).expect("creates");
    let db = disk.join("store.db");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", r#"mount -t tmpfs -o size=1m full "$0" && exec "$@""#]);
    command.arg(&disk).arg(std::env::current_exe().expect("we are running"));
    let mut role = Role::spawn(&mut command, "fill", &db);
    assert_says(&role.says().expect("it fails"), &db, &["the disk is full", "free some space"]);
    assert_eq!(role.says().as_deref(), Some("some entries"));
}

#[test]
fn unknown_urls_say_what_is_known() {
    for url in ["", "zookeeper:http://x", "sqlite:", "/var/lib/x.db", "memory:x"] {
        let error = brindle_config::open(url).err().expect(url).to_string();
        assert!(error.contains("sqlite:PATH"), "{error}");
    }
    brindle_config::open("memory:").expect("opens");
    let error = brindle_config::open("etcd:x").err().expect("no address").to_string();
    assert!(error.contains("expected etcd:http://HOST:2379"), "{error}");
}

#[tokio::test]
async fn only_the_owner_can_read_any_of_the_files() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    let store = SqliteStore::open(&db).expect("creates");
    store.put(&key("a"), value(1), Expect::Any).await.expect("writes");
    for suffix in ["", "-wal", "-shm", ".feed"] {
        let mode = fs::metadata(format!("{}{suffix}", db.display())).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{suffix}");
    }
}
