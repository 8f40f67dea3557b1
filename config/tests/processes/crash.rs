//! kill -9 of a writer.

use brindle_config::SqliteStore;
use brindle_config_core::{
    Kind,
    store::{Change, Expect, Revision, Store},
};

use super::{Role, TempDir, key, number, value};

#[tokio::test]
async fn a_writer_killed_at_any_time_leaves_a_consistent_file() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    let mut acknowledged = 0;
    for round in 0..12u64 {
        let mut writer = Role::start("count", &db);
        // Each round kills at another point of the loop.
        for _ in 0..=round * 7 {
            acknowledged = writer.says().expect("the writer writes").parse().expect("it says numbers");
        }
        writer.kill();
        // What it said while it was being killed counts, too; a torn last line does not.
        while let Some(Ok(n)) = writer.says().map(|line| line.parse()) {
            acknowledged = n;
        }
        let store = SqliteStore::open(&db).expect("opens after a crash (and has checked itself)");
        let counter = store.get(&key("counter")).await.expect("the counter is there");
        let n = number(&counter.value);
        assert!(
            (acknowledged..=acknowledged + 1).contains(&n),
            "{acknowledged} were acknowledged, {n} are stored"
        );
        let revision = store.put(&key("after"), value(round), Expect::Any).await.expect("can be written");
        let listing = store.list(&[Kind::BgpPeer]).await.expect("lists");
        assert!(listing.entries.iter().all(|e| e.revision <= revision));
        // The log has every revision exactly once.
        let mut watch = store.watch(&[Kind::BgpPeer], Revision(0)).await.expect("nothing was compacted yet");
        let mut seen = Vec::new();
        while seen.last() != Some(&revision.0) {
            seen.extend(watch.next().await.expect("goes on").iter().map(|c| match c {
                Change::Put(e) => e.revision.0,
                Change::Delete { revision, .. } => revision.0,
            }));
        }
        assert_eq!(seen, (1..=revision.0).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_killed_writer_does_not_block_the_others() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    let mut writers: Vec<Role> = (0..3).map(|_| Role::start("open", &db)).collect();
    for w in &mut writers {
        assert_eq!(w.says().as_deref(), Some("0 entries"), "many processes may create the file together");
    }
    let mut victim = Role::start("count", &db);
    victim.says().expect("it writes");
    let store = SqliteStore::open(&db).expect("opens");
    store.put(&key("mine"), value(1), Expect::Absent).await.expect("writes beside it");
    victim.kill();
    store.put(&key("mine"), value(2), Expect::Any).await.expect("writes after it");
}

#[tokio::test]
async fn a_process_that_closes_leaves_one_file_with_everything_also_beside_others() {
    let dir = TempDir::new();
    let (db, copy) = (dir.path("store.db"), dir.path("copy.db"));
    for beside in [false, true] {
        let other = beside.then(|| SqliteStore::open(&db).expect("opens"));
        if let Some(other) = &other {
            other.delete(&key("from-child"), Expect::Any).await.expect("deletes");
        }
        let mut child = Role::start("put-and-close", &db);
        assert_eq!(child.says().as_deref(), Some("closed"));
        let log = dir.path("store.db-wal");
        assert_eq!(log.exists(), beside, "whoever still has it open keeps the log, which is empty");
        assert_eq!(std::fs::metadata(&log).map_or(0, |m| m.len()), 0);
        std::fs::copy(&db, &copy).expect("copies the one file");
        let copied = SqliteStore::open(&copy).expect("opens");
        assert_eq!(number(&copied.get(&key("from-child")).await.expect("is in the file").value), 1);
        if let Some(other) = &other {
            other.get(&key("from-child")).await.expect("reads on");
            other.put(&key("more"), value(2), Expect::Any).await.expect("writes on");
        }
        drop(copied);
        // Its connections close when their threads are done.
        for name in ["copy.db", "copy.db-wal", "copy.db-shm", "copy.db.lock"] {
            let _ = std::fs::remove_file(dir.path(name));
        }
    }
}
