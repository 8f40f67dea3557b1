//! A lease between machines whose clocks are years apart: what the record says of time is for people.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use brindle_config::{
    MemoryStore,
    lease::{Candidate, stand},
};
use brindle_config_core::{
    Key, Kind, ObjectMeta, Resource,
    lease::{LeaseSpec, Timing},
    store::{Entry, Expect, Listing, Revision, Store, StoreError, StoreExt as _, StoreFuture, Watch},
};
use serde_json::Value;
use tokio::time::Instant;

fn candidate(identity: &str) -> Candidate {
    Candidate {
        namespace: "kube-system".into(),
        name: "brindle-controllers".into(),
        identity: identity.into(),
        timing: Timing::default(),
    }
}

/// The record of a process whose clock says `time`.
fn record(time: &str) -> Resource<LeaseSpec> {
    let spec = LeaseSpec {
        holder_identity: Some("far".into()),
        lease_duration_seconds: Some(15),
        acquire_time: Some(time.into()),
        renew_time: Some(time.into()),
        lease_transitions: Some(3),
        extra: Default::default(),
    };
    let meta =
        ObjectMeta { namespace: Some("kube-system".into()), ..ObjectMeta::named("brindle-controllers") };
    Resource::new(meta, spec)
}

#[tokio::test(start_paused = true)]
async fn clocks_that_are_years_apart_neither_take_a_lease_nor_keep_it() {
    for time in ["2001-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z", "no time at all"] {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let mut revision = store.put_as(&record(time), Expect::Absent).await.unwrap();
        let mut ours = stand(Arc::clone(&store), candidate("ours"));
        // It renews, with a clock that stands still: nothing but the revision changes.
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert!(!ours.leads(), "{time}: renewed all the time");
            revision = store.put_as(&record(time), Expect::Revision(revision)).await.unwrap();
        }
        let died = Instant::now();
        ours.elected().await.expect("it stands for election");
        let after = died.elapsed();
        assert!(
            (Duration::from_secs(15)..Duration::from_secs(25)).contains(&after),
            "{time}: after 15 s of ours, not {after:?}"
        );
        let found = store.get_as::<LeaseSpec>(Some("kube-system"), "brindle-controllers").await.unwrap();
        assert_eq!(found.resource.spec.holder(), Some("ours"));
        assert_eq!(found.resource.spec.lease_transitions, Some(4));
    }
}

/// A datastore that says of one write that it failed and does it all the same, after the next reading.
#[derive(Default)]
struct Late {
    inner: MemoryStore,
    armed: AtomicBool,
    pending: Mutex<Option<(Key, Value, Expect)>>,
}

impl Store for Late {
    fn get<'a>(&'a self, key: &'a Key) -> StoreFuture<'a, Entry> {
        Box::pin(async move {
            let found = self.inner.get(key).await;
            let late = self.pending.lock().unwrap().take();
            if let Some((key, value, expect)) = late {
                self.inner.put(&key, value, expect).await?;
            }
            found
        })
    }

    fn list<'a>(&'a self, kinds: &'a [Kind]) -> StoreFuture<'a, Listing> {
        self.inner.list(kinds)
    }

    fn put<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Revision> {
        if self.armed.swap(false, Relaxed) {
            *self.pending.lock().unwrap() = Some((key.clone(), value, expect));
            return Box::pin(async { Err(StoreError::Unavailable("no answer".into())) });
        }
        self.inner.put(key, value, expect)
    }

    fn delete<'a>(&'a self, key: &'a Key, expect: Expect) -> StoreFuture<'a, Revision> {
        self.inner.delete(key, expect)
    }

    fn watch<'a>(&'a self, kinds: &'a [Kind], from: Revision) -> StoreFuture<'a, Box<dyn Watch>> {
        self.inner.watch(kinds, from)
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_comes_late_and_unanswered_does_not_end_the_lease() {
    let store = Arc::new(Late::default());
    let mut ours = stand(store.clone(), candidate("ours"));
    ours.elected().await.unwrap();
    store.armed.store(true, Relaxed);
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(ours.leads());
    }
    assert!(!store.armed.load(Relaxed) && store.pending.lock().unwrap().is_none(), "it happened");
    assert_eq!(ours.obstacle(), None);
}
