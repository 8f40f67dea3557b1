//! A lease between machines whose clocks are years apart: what the record says of time is for people.

use std::{sync::Arc, time::Duration};

use brindle_config::{
    MemoryStore,
    lease::{Candidate, stand},
};
use brindle_config_core::{
    ObjectMeta, Resource,
    lease::{LeaseSpec, Timing},
    store::{Expect, Store, StoreExt as _},
};
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
