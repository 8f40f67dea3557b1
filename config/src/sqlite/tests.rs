//! The contract on SQLite, its bounded history, and following it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use brindle_config_core::{
    Key, Kind,
    store::{Expect, Revision, Store, StoreError, SyncEvent},
};
use serde_json::json;

use super::*;
use crate::{
    contract::{self, Subject},
    testing::TempDir,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_the_contract() {
    contract::run(|| {
        let dir = Arc::new(TempDir::new());
        let path = dir.path("store.db");
        let compactor = path.clone();
        Subject {
            handle: Box::new(move || {
                let _keep = &dir;
                Arc::new(SqliteStore::open(&path).expect("opens"))
            }),
            compact: Some(Box::new(move || {
                let store = SqliteStore::open(&compactor).expect("opens");
                Box::pin(async move { store.compact().await.expect("compacts") })
            })),
        }
    })
    .await;
}

fn key(name: &str) -> Key {
    Key::new(Kind::BgpPeer, None, name)
}

async fn put(store: &SqliteStore, name: &str, n: u64) -> Revision {
    store.put(&key(name), json!({ "n": n }), Expect::Any).await.expect("writes")
}

#[tokio::test]
async fn the_history_is_bounded_and_the_rest_is_kept() {
    let dir = TempDir::new();
    let store = SqliteStore::open(&dir.path("store.db")).expect("creates");
    let first = put(&store, "old", 1).await;
    let mut last = first;
    for n in 0..db::HISTORY + 100 {
        last = put(&store, &format!("p{}", n % 10), n).await;
    }
    let refused = store.watch(&[Kind::BgpPeer], first).await.err();
    assert_eq!(refused, Some(StoreError::Compacted(first)));
    let from = Revision(last.0 - db::HISTORY + 100);
    let mut watch = store.watch(&[Kind::BgpPeer], from).await.expect("recent history is kept");
    let mut seen = 0;
    while seen < last.0 - from.0 {
        seen += watch.next().await.expect("goes on").len() as u64;
    }
    assert_eq!(store.get(&key("old")).await.expect("entries are never trimmed").revision, first);
}

#[tokio::test]
async fn a_revision_the_store_never_had_must_list_again() {
    let dir = TempDir::new();
    let store = SqliteStore::open(&dir.path("store.db")).expect("creates");
    let last = put(&store, "a", 1).await;
    let ahead = Revision(last.0 + 1);
    assert_eq!(store.watch(&[Kind::BgpPeer], ahead).await.err(), Some(StoreError::Compacted(ahead)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_ends_at_the_right_state_through_writes_and_compactions() {
    let dir = TempDir::new();
    let path = dir.path("store.db");
    let store = Arc::new(SqliteStore::open(&path).expect("creates"));
    let mut stream = crate::sync::follow(store.clone(), [Kind::BgpPeer]);
    let writer = tokio::spawn(async move {
        let other = SqliteStore::open(&path).expect("opens");
        for n in 0..600 {
            put(&other, &format!("p{}", n % 30), n).await;
            if n % 4 == 0 {
                let _ = other.delete(&key(&format!("p{}", n % 7)), Expect::Any).await;
            }
            if n % 50 == 0 {
                other.compact().await.expect("compacts");
            }
        }
        put(&other, "end", 1).await;
    });
    let mut state = BTreeMap::new();
    let mut in_sync = 0;
    while !state.contains_key(&key("end")) {
        let events = tokio::time::timeout(Duration::from_secs(30), stream.recv()).await.expect("in time");
        for event in events.expect("the stream goes on") {
            match event {
                SyncEvent::Upsert(e) => drop(state.insert(e.key, e.value)),
                SyncEvent::Delete(k) => assert!(state.remove(&k).is_some(), "{k} was never told"),
                SyncEvent::InSync => in_sync += 1,
            }
        }
    }
    writer.await.expect("the writer ends well");
    let listed = store.list(&[Kind::BgpPeer]).await.expect("lists").entries;
    assert_eq!(state, listed.into_iter().map(|e| (e.key, e.value)).collect());
    assert_eq!(in_sync, 1);
}
