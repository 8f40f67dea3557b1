//! The follower against a memory store that misbehaves.

use std::{collections::BTreeMap, time::Duration};

use brindle_config_core::store::Expect;
use serde_json::json;

use super::*;
use crate::MemoryStore;

fn key(name: &str) -> Key {
    Key::new(Kind::BgpPeer, None, name)
}

async fn put(store: &MemoryStore, name: &str, n: u32) {
    store.put(&key(name), json!({ "n": n }), Expect::Any).await.expect("writes");
}

async fn next(stream: &mut mpsc::Receiver<Vec<SyncEvent>>) -> Vec<SyncEvent> {
    tokio::time::timeout(Duration::from_secs(20), stream.recv())
        .await
        .expect("an event comes in time")
        .expect("the stream goes on")
}

/// The events of a batch in short: `+a1`, `-a`, `in-sync`.
fn brief(events: &[SyncEvent]) -> Vec<String> {
    events
        .iter()
        .map(|e| match e {
            SyncEvent::Upsert(entry) => format!("+{}{}", entry.key.name, entry.value["n"]),
            SyncEvent::Delete(key) => format!("-{}", key.name),
            SyncEvent::InSync => "in-sync".into(),
        })
        .collect()
}

fn following(store: &MemoryStore) -> mpsc::Receiver<Vec<SyncEvent>> {
    follow(Arc::new(store.clone()), [Kind::BgpPeer])
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_comes_first_then_in_sync_once_then_deltas() {
    let store = MemoryStore::new();
    put(&store, "a", 1).await;
    put(&store, "b", 1).await;
    let mut stream = following(&store);
    assert_eq!(brief(&next(&mut stream).await), ["+a1", "+b1", "in-sync"]);
    put(&store, "a", 2).await;
    assert_eq!(brief(&next(&mut stream).await), ["+a2"]);
    store.delete(&key("b"), Expect::Any).await.expect("deletes");
    assert_eq!(brief(&next(&mut stream).await), ["-b"]);
}

#[tokio::test(start_paused = true)]
async fn an_empty_store_is_in_sync_at_once() {
    let mut stream = following(&MemoryStore::new());
    assert_eq!(brief(&next(&mut stream).await), ["in-sync"]);
}

#[tokio::test(start_paused = true)]
async fn after_a_compaction_only_differences_are_told() {
    let store = MemoryStore::new();
    for name in ["kept", "changed", "removed"] {
        put(&store, name, 1).await;
    }
    let mut stream = following(&store);
    next(&mut stream).await;
    store.hold_watches();
    put(&store, "changed", 2).await;
    put(&store, "new", 1).await;
    put(&store, "brief", 1).await;
    store.delete(&key("brief"), Expect::Any).await.expect("deletes");
    store.delete(&key("removed"), Expect::Any).await.expect("deletes");
    store.compact();
    store.release_watches();
    assert_eq!(brief(&next(&mut stream).await), ["+changed2", "+new1", "-removed"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_at_the_start_is_waited_for() {
    let store = MemoryStore::new();
    put(&store, "a", 1).await;
    for _ in 0..5 {
        store.inject_failure(StoreError::Unavailable("down".into()));
    }
    let mut stream = following(&store);
    assert_eq!(brief(&next(&mut stream).await), ["+a1", "in-sync"]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_receiver_ends_the_follower() {
    let store = Arc::new(MemoryStore::new());
    let weak = Arc::downgrade(&store);
    let stream = follow(store, [Kind::BgpPeer]);
    drop(stream);
    while weak.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_receiver_ends_at_the_right_state() {
    let store = MemoryStore::with_history(10);
    let mut stream = following(&store);
    let mut state = BTreeMap::new();
    for n in 0..500u32 {
        put(&store, &format!("p{}", n % 40), n).await;
        if n % 3 == 0 {
            let _ = store.delete(&key(&format!("p{}", n % 11)), Expect::Any).await;
        }
        if n % 10 == 0 {
            tokio::task::yield_now().await;
        }
    }
    put(&store, "end", 1).await;
    let mut in_sync = 0;
    while !state.contains_key(&key("end")) {
        for event in next(&mut stream).await {
            match event {
                SyncEvent::Upsert(e) => drop(state.insert(e.key, e.value)),
                SyncEvent::Delete(k) => assert!(state.remove(&k).is_some(), "{k} was never told"),
                SyncEvent::InSync => in_sync += 1,
            }
        }
    }
    let listed = store.list(&[Kind::BgpPeer]).await.expect("lists").entries;
    let listed: BTreeMap<_, _> = listed.into_iter().map(|e| (e.key, e.value)).collect();
    assert_eq!(state, listed);
    assert_eq!(in_sync, 1);
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_is_known_is_not_told_again() {
    let store = MemoryStore::new();
    for name in ["a", "b", "c"] {
        put(&store, name, 1).await;
    }
    let known = store.list(&[Kind::BgpPeer]).await.expect("lists");
    put(&store, "a", 2).await;
    let mut stream = follow_from(Arc::new(store.clone()), [Kind::BgpPeer], &known);
    assert_eq!(brief(&next(&mut stream).await), ["+a2"]);
    store.hold_watches();
    store.delete(&key("b"), Expect::Any).await.expect("deletes");
    store.compact();
    store.release_watches();
    assert_eq!(brief(&next(&mut stream).await), ["-b"], "after a relist, too");
}
