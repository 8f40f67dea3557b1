//! Reading, writing, expectations, races.

use std::collections::BTreeSet;

use brindle_config_core::{
    Key, Kind,
    store::{Expect, Revision, StoreError},
};
use serde_json::json;

use super::{Subject, number, peer, pool, value};

pub(super) async fn what_does_not_exist_is_not_found(s: Subject) {
    let (store, key) = (s.store(), pool("absent"));
    let missing = || StoreError::NotFound(key.clone());
    assert_eq!(store.get(&key).await, Err(missing()));
    assert_eq!(store.delete(&key, Expect::Any).await, Err(missing()));
    assert_eq!(store.delete(&key, Expect::Revision(Revision(1))).await, Err(missing()));
    assert_eq!(store.put(&key, value(&key, 1), Expect::Revision(Revision(1))).await, Err(missing()));
    assert!(store.list(&[Kind::IpPool]).await.expect("lists").entries.is_empty());
}

pub(super) async fn creating_twice_is_refused(s: Subject) {
    let (store, key) = (s.store(), peer("twice"));
    let revision = store.put(&key, value(&key, 1), Expect::Absent).await.expect("creates");
    assert_eq!(store.put(&key, value(&key, 2), Expect::Absent).await, Err(StoreError::Exists(key.clone())));
    let entry = store.get(&key).await.expect("is there");
    assert_eq!((entry.revision, number(&entry)), (revision, 1));
}

pub(super) async fn a_write_needs_the_last_revision(s: Subject) {
    let (store, key) = (s.store(), peer("cas"));
    let first = store.put(&key, value(&key, 1), Expect::Absent).await.expect("creates");
    let second = store.put(&key, value(&key, 2), Expect::Revision(first)).await.expect("updates");
    assert!(second > first, "revisions grow");
    assert_eq!(
        store.put(&key, value(&key, 3), Expect::Revision(first)).await,
        Err(StoreError::Conflict(key.clone()))
    );
    let entry = store.get(&key).await.expect("is there");
    assert_eq!((entry.revision, number(&entry)), (second, 2), "a refused write changes nothing");
}

pub(super) async fn any_creates_and_overwrites(s: Subject) {
    let (store, key) = (s.store(), peer("any"));
    store.put(&key, value(&key, 1), Expect::Any).await.expect("creates");
    store.put(&key, value(&key, 2), Expect::Any).await.expect("overwrites");
    assert_eq!(number(&store.get(&key).await.expect("is there")), 2);
}

pub(super) async fn a_delete_keeps_to_its_expectation(s: Subject) {
    let (store, key) = (s.store(), peer("del"));
    let first = store.put(&key, value(&key, 1), Expect::Absent).await.expect("creates");
    let second = store.put(&key, value(&key, 2), Expect::Revision(first)).await.expect("updates");
    let conflict = Err(StoreError::Conflict(key.clone()));
    assert_eq!(store.delete(&key, Expect::Absent).await, conflict);
    assert_eq!(store.delete(&key, Expect::Revision(first)).await, conflict);
    store.get(&key).await.expect("is still there");
    store.delete(&key, Expect::Revision(second)).await.expect("deletes");
    assert_eq!(store.get(&key).await, Err(StoreError::NotFound(key.clone())));
}

pub(super) async fn a_recreated_key_has_a_newer_revision(s: Subject) {
    let (store, key) = (s.store(), peer("again"));
    let first = store.put(&key, value(&key, 1), Expect::Absent).await.expect("creates");
    store.delete(&key, Expect::Any).await.expect("deletes");
    let second = store.put(&key, value(&key, 2), Expect::Absent).await.expect("creates again");
    assert!(second > first);
    assert_eq!(
        store.put(&key, value(&key, 3), Expect::Revision(first)).await,
        Err(StoreError::Conflict(key.clone())),
        "the old incarnation's revision does not match the new one"
    );
}

pub(super) async fn a_listing_is_in_key_order_and_of_the_asked_kinds(s: Subject) {
    let store = s.store();
    let keys = [peer("b"), pool("zz"), peer("a"), pool("a"), pool("a-b"), peer("a.c")];
    for (n, key) in (1..).zip(&keys) {
        store.put(key, value(key, n), Expect::Absent).await.expect("creates");
    }
    let listed = async |kinds: &[Kind]| -> Vec<Key> {
        store.list(kinds).await.expect("lists").entries.into_iter().map(|e| e.key).collect()
    };
    let mut all = keys.to_vec();
    all.sort();
    assert_eq!(listed(&[Kind::BgpPeer, Kind::IpPool]).await, all);
    assert_eq!(
        listed(&[Kind::IpPool, Kind::BgpPeer, Kind::IpPool]).await,
        all,
        "a kind named twice counts once"
    );
    let pools: Vec<Key> = all.into_iter().filter(|k| k.kind == Kind::IpPool).collect();
    assert_eq!(listed(&[Kind::IpPool]).await, pools);
    assert_eq!(listed(&[]).await, []);
}

pub(super) async fn namespaces_keep_names_apart(s: Subject) {
    let store = s.store();
    let key = |ns: &str| Key::new(Kind::NetworkSet, Some(ns), "set");
    for (n, ns) in [(1, "two"), (2, "one")] {
        let key = key(ns);
        store.put(&key, value(&key, n), Expect::Absent).await.expect("creates");
    }
    store.delete(&key("two"), Expect::Any).await.expect("deletes");
    let left = store.list(&[Kind::NetworkSet]).await.expect("lists").entries;
    assert_eq!(left.iter().map(|e| e.key.clone()).collect::<Vec<_>>(), [key("one")]);
}

pub(super) async fn another_handle_sees_a_write_at_once(s: Subject) {
    let (a, b) = (s.store(), s.store());
    let key = peer("shared");
    for n in 0..50 {
        let revision = a.put(&key, value(&key, n), Expect::Any).await.expect("writes");
        let entry = b.get(&key).await.expect("is there");
        assert_eq!((number(&entry), entry.revision), (n, revision));
    }
}

pub(super) async fn concurrent_increments_lose_nothing(s: Subject) {
    const WRITERS: u32 = 6;
    const EACH: u32 = 25;
    let key = peer("counter");
    s.store().put(&key, value(&key, 0), Expect::Absent).await.expect("creates");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let (store, key) = (s.store(), key.clone());
        tasks.spawn(async move {
            for _ in 0..EACH {
                loop {
                    let entry = store.get(&key).await.expect("is there");
                    let next = value(&key, number(&entry) + 1);
                    match store.put(&key, next, Expect::Revision(entry.revision)).await {
                        Ok(_) => break,
                        Err(StoreError::Conflict(_)) => {}
                        Err(e) => panic!("increment: {e}"),
                    }
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a writer ends well");
    }
    assert_eq!(number(&s.store().get(&key).await.expect("is there")), WRITERS * EACH);
}

pub(super) async fn one_of_many_creators_wins(s: Subject) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let store = s.store();
        tasks.spawn(async move {
            let key = peer("prize");
            (n, store.put(&key, value(&key, n), Expect::Absent).await)
        });
    }
    let mut winners = BTreeSet::new();
    while let Some(done) = tasks.join_next().await {
        match done.expect("a writer ends well") {
            (n, Ok(_)) => drop(winners.insert(n)),
            (_, Err(e)) => assert_eq!(e, StoreError::Exists(peer("prize"))),
        }
    }
    let entry = s.store().get(&peer("prize")).await.expect("is there");
    assert_eq!(winners, BTreeSet::from([number(&entry)]));
}

pub(super) async fn values_come_back_as_they_went(s: Subject) {
    let (store, key) = (s.store(), peer("text"));
    let mut v = value(&key, 1);
    v["metadata"]["annotations"] =
        json!({"example.org/text": "a \"quoted\" \\ line\nand ünïcödé \u{1F980} \u{0}"});
    store.put(&key, v.clone(), Expect::Absent).await.expect("creates");
    let got = store.get(&key).await.expect("is there");
    assert_eq!(got.value["metadata"]["annotations"], v["metadata"]["annotations"]);
    assert_eq!(got.value["spec"], v["spec"]);
}
