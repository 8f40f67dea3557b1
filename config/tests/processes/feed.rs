//! The change feed between processes: it arrives, soon, without polling.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use brindle_config::SqliteStore;
use brindle_config_core::store::{Expect, Store};

use super::{Role, TempDir, key, value};

/// Voluntary and other context switches of all threads of a process.
fn wake_ups(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let status = tasks.filter_map(|t| fs::read_to_string(t.ok()?.path().join("status")).ok());
    status
        .flat_map(|s| s.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|l| l.split_once("ctxt_switches:").and_then(|(_, n)| n.trim().parse::<u64>().ok()))
        .sum()
}

async fn put(store: &SqliteStore, name: &str, n: u64) {
    store.put(&key(name), value(n), Expect::Any).await.expect("writes");
}

#[tokio::test]
async fn changes_reach_other_processes_soon() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    let store = SqliteStore::open(&db).expect("creates");
    put(&store, "a", 1).await;
    let mut follower = Role::start("follow", &db);
    assert_eq!(follower.says().as_deref(), Some("+a 1"));
    assert_eq!(follower.says().as_deref(), Some("in-sync"));
    let mut delays = Vec::new();
    for n in 2..42 {
        let begun = Instant::now();
        put(&store, "a", n).await;
        assert_eq!(follower.says(), Some(format!("+a {n}")));
        delays.push(begun.elapsed());
    }
    store.delete(&key("a"), Expect::Any).await.expect("deletes");
    assert_eq!(follower.says().as_deref(), Some("-a"));
    delays.sort();
    let median = delays.get(delays.len() / 2).copied().expect("there are some");
    // The slow look takes 10 s: anything below a second came by the feed.
    assert!(median < Duration::from_secs(1), "median {median:?}");
}

#[tokio::test]
async fn a_burst_is_seen_whole() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    let store = SqliteStore::open(&db).expect("creates");
    let mut follower = Role::start("follow", &db);
    assert_eq!(follower.says().as_deref(), Some("in-sync"));
    for n in 0..500 {
        put(&store, "a", n).await;
    }
    let begun = Instant::now();
    for n in 0..500 {
        assert_eq!(follower.says(), Some(format!("+a {n}")));
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_idle_follower_sleeps() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    let mut follower = Role::start("follow", &db);
    assert_eq!(follower.says().as_deref(), Some("in-sync"));
    let pid = follower.child.id();
    let window = Duration::from_secs(3);
    // The first look after the start may still be under way.
    let mut best = u64::MAX;
    for _ in 0..2 {
        let before = wake_ups(pid);
        std::thread::sleep(window); // a measurement, not a wait for something
        best = best.min(wake_ups(pid) - before);
    }
    assert!(best <= 6, "{best} context switches in {window:?} while nothing happened");
}

#[tokio::test]
async fn a_removed_feed_file_is_made_again() {
    let dir = TempDir::new();
    let db = dir.path("store.db");
    let store = SqliteStore::open(&db).expect("creates");
    let mut follower = Role::start("follow", &db);
    assert_eq!(follower.says().as_deref(), Some("in-sync"));
    for n in 0..5 {
        let feed = dir.path("store.db.feed");
        wait_for(&feed);
        fs::remove_file(&feed).expect("removes");
        let begun = Instant::now();
        wait_for(&feed);
        put(&store, "a", n).await;
        assert_eq!(follower.says(), Some(format!("+a {n}")));
        assert!(begun.elapsed() < Duration::from_secs(5), "not by the slow look");
    }
}

#[tokio::test]
async fn nothing_comes_back_into_the_folder_of_a_removed_store() {
    let dir = TempDir::new();
    let folder = dir.path("lab");
    fs::create_dir(&folder).expect("creates");
    let db = folder.join("store.db");
    let mut follower = Role::start("follow", &db);
    assert_eq!(follower.says().as_deref(), Some("in-sync"));
    fs::remove_dir_all(&folder).expect("removes");
    // Long enough for a follower that would make the file again.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        assert!(!folder.exists());
        std::thread::yield_now();
    }
}

fn wait_for(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{} did not come back", path.display());
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn without_inotify_changes_are_still_seen() {
    let dir = TempDir::new();
    let program = dir.program();
    // Inotify instances are counted per user: a user of its own is starved here, nobody else.
    let user = 60_000 + std::process::id() % 4_000;
    let folder = dir.path("mine");
    fs::create_dir(&folder).expect("creates");
    std::os::unix::fs::chown(&folder, Some(user), Some(user)).expect("we are root");
    let db = folder.join("store.db");
    let mut command = Command::new(&program);
    command.uid(user).gid(user).current_dir("/");
    let mut follower = Role::spawn(&mut command, "follow-without-inotify", &db);
    let took = follower.says().expect("an answer");
    assert_eq!(took.strip_prefix("took ").map(|n| n != "0"), Some(true));
    assert_eq!(follower.says().as_deref(), Some("in-sync"));
    let store = SqliteStore::open(&db).expect("opens");
    let begun = Instant::now();
    put(&store, "a", 1).await;
    assert_eq!(follower.says().as_deref(), Some("+a 1"));
    assert!(begun.elapsed() < Duration::from_secs(5));
}
