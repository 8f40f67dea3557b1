//! The loop against a store that counts how often the whole of it is listed.

use std::sync::atomic::{AtomicUsize, Ordering};

use brindle_config::MemoryStore;
use brindle_config_core::store::{Listing, Revision, StoreFuture, Watch};
use clap::Parser as _;
use serde_json::{Value, json};

use super::*;
use crate::cli::Cli;

#[derive(Default)]
struct Counting {
    inner: MemoryStore,
    whole: AtomicUsize,
}

impl Store for Counting {
    fn get<'a>(&'a self, key: &'a Key) -> StoreFuture<'a, Entry> {
        self.inner.get(key)
    }
    fn list<'a>(&'a self, kinds: &'a [Kind]) -> StoreFuture<'a, Listing> {
        if kinds.len() >= KINDS.len() {
            self.whole.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.list(kinds)
    }
    fn put<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Revision> {
        self.inner.put(key, value, expect)
    }
    fn delete<'a>(&'a self, key: &'a Key, expect: Expect) -> StoreFuture<'a, Revision> {
        self.inner.delete(key, expect)
    }
    fn watch<'a>(&'a self, kinds: &'a [Kind], from: Revision) -> StoreFuture<'a, Box<dyn Watch>> {
        self.inner.watch(kinds, from)
    }
}

async fn put(store: &dyn Store, kind: Kind, name: &str, spec: Value) {
    let key = Key::new(kind, kind.namespaced().then_some("shop"), name);
    let value = json!({"apiVersion": "projectcalico.org/v3", "kind": kind.as_str(),
        "metadata": {"name": name, "namespace": key.namespace}, "spec": spec});
    store.put(&key, value, Expect::Any).await.unwrap();
}

async fn pool(store: &dyn Store, name: &str, cidr: &str) {
    put(store, Kind::IpPool, name, json!({"cidr": cidr, "allowedUses": ["LoadBalancer"]})).await;
}

/// Pods come and go for so many seconds; how often everything was listed meanwhile.
async fn churn(store: &Counting, seconds: u64) -> usize {
    let before = store.whole.load(Ordering::Relaxed);
    for n in 0..seconds / 5 {
        put(store, Kind::WorkloadEndpoint, "pod", json!({"node": "n1", "pod": format!("p{n}")})).await;
        sleep(Duration::from_secs(5)).await;
    }
    store.whole.load(Ordering::Relaxed) - before
}

#[tokio::test(start_paused = true)]
async fn a_service_that_cannot_be_served_does_not_have_everything_listed_at_every_change() {
    let typed =
        ["brindle-controllers", "run", "--datastore", "sqlite:/not/opened.db", "--leader-elect=false"];
    let settings = Cli::try_parse_from(typed).unwrap().settings().unwrap();
    let store = Arc::new(Counting::default());
    put(&*store, Kind::Node, "n1", json!({})).await;
    pool(&*store, "one", "198.51.100.0/30").await;
    put(&*store, Kind::Service, "web", json!({"type": "LoadBalancer", "loadBalancerIP": "203.0.113.1"}))
        .await;
    let followed: Arc<dyn Store> = store.clone();
    let mut worker = Worker::new(&settings, Arc::clone(&followed), None, Tally::default());
    let story = async {
        sleep(Duration::from_secs(5)).await;
        // 10, 20, 40, 80, 160 s between two attempts.
        let listed = churn(&store, 600).await;
        assert!((3..=8).contains(&listed), "{listed} listings in ten minutes");

        // What it waits for is seen at once, however long it has rested.
        pool(&*store, "two", "203.0.113.0/30").await;
        sleep(Duration::from_secs(2)).await;
        let web = store.get(&Key::new(Kind::Service, Some("shop"), "web")).await.unwrap();
        let ip = web.value.pointer("/status/loadBalancer/ingress/0/ip").cloned();
        assert_eq!(ip, Some(json!("203.0.113.1")));
        assert_eq!(churn(&store, 60).await, 0, "nothing to do, nothing listed");
    };
    tokio::select! {
        ended = worker.keep() => panic!("it goes on until it is told: {ended:?}"),
        () = story => {}
    }
}

#[tokio::test]
async fn a_follower_that_ended_ends_the_process_too() {
    let (_, events) = mpsc::channel(1);
    let mut cache = Cache { events, entries: BTreeMap::new(), in_sync: false };
    let error = cache.wait(Instant::now() + DEBOUNCE).await.unwrap_err();
    assert!(error.to_string().contains("what follows the datastore"), "{error}");
}
