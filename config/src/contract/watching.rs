//! What a watch promises.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use brindle_config_core::{
    Key, Kind,
    store::{Change, Expect, Revision, Store, StoreError, Watch},
};
use serde_json::Value;

use super::{Seen, Subject, peer, pool, seen, value};

const KINDS: [Kind; 2] = [Kind::IpPool, Kind::BgpPeer];

/// Reads until `n` changes have come.
async fn read(watch: &mut Box<dyn Watch>, n: usize) -> Vec<Change> {
    let mut all = Vec::new();
    while all.len() < n {
        let batch = watch.next().await.expect("the watch goes on");
        assert!(!batch.is_empty(), "a batch is never empty");
        all.extend(batch);
    }
    all
}

fn revision(change: &Change) -> Revision {
    match change {
        Change::Put(e) => e.revision,
        Change::Delete { revision, .. } => *revision,
    }
}

/// Writes `n` changes over a few keys, deleting now and then, and returns what a watch must see.
async fn churn(store: &Arc<dyn Store>, n: u32) -> Vec<Seen> {
    let mut expected = Vec::new();
    for i in 0..n {
        let key = peer(&format!("p{}", i % 5));
        if i % 7 == 6 && store.delete(&key, Expect::Any).await.is_ok() {
            expected.push(Seen::Delete(key));
        } else {
            let v = value(&key, i);
            store.put(&key, v.clone(), Expect::Any).await.expect("writes");
            expected.push(Seen::Put(key, v["spec"].clone()));
        }
    }
    expected
}

pub(super) async fn a_watch_sees_every_change_once_and_in_order(s: Subject) {
    let (writer, watcher) = (s.store(), s.store());
    let from = watcher.list(&KINDS).await.expect("lists").revision;
    let mut watch = watcher.watch(&KINDS, from).await.expect("watches");
    let write = tokio::spawn(async move { churn(&writer, 200).await });
    let mut got = read(&mut watch, 200).await;
    let expected = write.await.expect("the writer ends well");
    // Anything beyond what was written would be a duplicate.
    let last = value(&peer("last"), 9);
    s.store().put(&peer("last"), last.clone(), Expect::Absent).await.expect("writes");
    got.extend(read(&mut watch, 1).await);
    let mut all: Vec<Seen> = got.iter().map(seen).collect();
    assert_eq!(all.pop(), Some(Seen::Put(peer("last"), last["spec"].clone())));
    assert_eq!(all, expected);
    assert!(got.iter().zip(got.iter().skip(1)).all(|(a, b)| revision(a) < revision(b)), "revisions grow");
}

pub(super) async fn a_watch_replays_from_an_old_revision(s: Subject) {
    let store = s.store();
    churn(&store, 10).await;
    let from = store.list(&KINDS).await.expect("lists").revision;
    let expected = churn(&store, 30).await;
    let mut watch = store.watch(&KINDS, from).await.expect("watches");
    let got = read(&mut watch, expected.len()).await;
    assert_eq!(got.iter().map(seen).collect::<Vec<_>>(), expected);
}

pub(super) async fn a_watch_keeps_to_its_kinds(s: Subject) {
    let store = s.store();
    let from = store.list(&[Kind::IpPool]).await.expect("lists").revision;
    let mut watch = store.watch(&[Kind::IpPool], from).await.expect("watches");
    churn(&store, 20).await;
    let key = pool("only");
    store.put(&key, value(&key, 1), Expect::Absent).await.expect("writes");
    let got = read(&mut watch, 1).await;
    assert_eq!(
        got.iter().map(seen).collect::<Vec<_>>(),
        [Seen::Put(key.clone(), value(&key, 1)["spec"].clone())]
    );
}

pub(super) async fn listing_and_watch_leave_no_gap(s: Subject) {
    let (writer, watcher) = (s.store(), s.store());
    let write = tokio::spawn(async move {
        churn(&writer, 150).await;
        for end in [pool("end"), peer("end")] {
            writer.put(&end, value(&end, 1), Expect::Absent).await.expect("writes");
        }
    });
    // Listings taken at any moment, each continued by a watch, must end at the same state.
    for _ in 0..5 {
        let listing = watcher.list(&KINDS).await.expect("lists");
        let mut state: BTreeMap<Key, Value> =
            listing.entries.into_iter().map(|e| (e.key, e.value["spec"].clone())).collect();
        let mut watch = watcher.watch(&KINDS, listing.revision).await.expect("watches");
        // Of each kind: not every store tells changes of different kinds in one order.
        while ![pool("end"), peer("end")].iter().all(|end| state.contains_key(end)) {
            for change in watch.next().await.expect("the watch goes on") {
                match seen(&change) {
                    Seen::Put(key, spec) => drop(state.insert(key, spec)),
                    Seen::Delete(key) => {
                        assert!(state.remove(&key).is_some(), "{key} was deleted without having been there");
                    }
                }
            }
        }
        let now = watcher.list(&KINDS).await.expect("lists");
        let now: BTreeMap<Key, Value> =
            now.entries.into_iter().map(|e| (e.key, e.value["spec"].clone())).collect();
        assert_eq!(state, now);
    }
    write.await.expect("the writer ends well");
}

pub(super) async fn a_dropped_wait_loses_nothing(s: Subject) {
    let (writer, watcher) = (s.store(), s.store());
    let from = watcher.list(&KINDS).await.expect("lists").revision;
    let mut watch = watcher.watch(&KINDS, from).await.expect("watches");
    let write = tokio::spawn(async move { churn(&writer, 100).await });
    let mut got = Vec::new();
    let mut patience = 0;
    while got.len() < 100 {
        // Waits of 0, 50, … 950 µs: cut off at many different points.
        patience = (patience + 50) % 1000;
        match tokio::time::timeout(Duration::from_micros(patience), watch.next()).await {
            Ok(batch) => got.extend(batch.expect("the watch goes on")),
            Err(_) => tokio::task::yield_now().await,
        }
        if patience == 0 && got.len() < 100 {
            got.extend(watch.next().await.expect("the watch goes on"));
        }
    }
    let expected = write.await.expect("the writer ends well");
    assert_eq!(got.iter().map(seen).collect::<Vec<_>>(), expected);
}

pub(super) async fn a_compacted_revision_is_refused(s: Subject) {
    let store = s.store();
    let from = store.list(&KINDS).await.expect("lists").revision;
    churn(&store, 20).await;
    let Some(forget) = &s.compact else {
        eprintln!(
            "contract: NOT CHECKED, this server cannot be told to forget: a compacted revision is refused"
        );
        return;
    };
    forget().await;
    // A store may refuse the watch or its first wait.
    let error = match store.watch(&KINDS, from).await {
        Ok(mut watch) => watch.next().await.expect_err("the history is gone"),
        Err(e) => e,
    };
    assert_eq!(error, StoreError::Compacted(from));
    let now = store.list(&KINDS).await.expect("lists").revision;
    let mut watch = store.watch(&KINDS, now).await.expect("a fresh listing can be watched");
    let expected = churn(&store, 3).await;
    assert_eq!(read(&mut watch, 3).await.iter().map(seen).collect::<Vec<_>>(), expected);
}

pub(super) async fn an_up_to_date_watch_survives_compaction(s: Subject) {
    let store = s.store();
    let from = store.list(&KINDS).await.expect("lists").revision;
    let mut watch = store.watch(&KINDS, from).await.expect("watches");
    let expected = churn(&store, 10).await;
    read(&mut watch, expected.len()).await;
    match &s.compact {
        Some(forget) => forget().await,
        None => eprintln!(
            "contract: NOT CHECKED, this server cannot be told to forget: a watch survives compaction"
        ),
    }
    let expected = churn(&store, 10).await;
    assert_eq!(read(&mut watch, expected.len()).await.iter().map(seen).collect::<Vec<_>>(), expected);
}

pub(super) async fn two_watches_are_independent(s: Subject) {
    let store = s.store();
    let from = store.list(&KINDS).await.expect("lists").revision;
    let mut one = store.watch(&KINDS, from).await.expect("watches");
    let mut two = store.watch(&KINDS, from).await.expect("watches");
    let expected = churn(&store, 10).await;
    assert_eq!(read(&mut one, 10).await.iter().map(seen).collect::<Vec<_>>(), expected);
    drop(one);
    assert_eq!(read(&mut two, 10).await.iter().map(seen).collect::<Vec<_>>(), expected);
}
