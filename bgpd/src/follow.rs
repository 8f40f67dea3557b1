//! From the datastore to the speaker: follows the store, translates, applies. Changes that come together are
//! translated together.

use std::{sync::Arc, time::Duration};

use brindle_config::sync;
use brindle_config_core::store::{Store, SyncEvent};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tracing::{debug, info, warn};

use crate::{
    handle::{Gone, Handle},
    peers::{ClusterState, KINDS, Problem, translate},
};

/// How long further changes are waited for after the first one.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Feeds a speaker from a store; ends when dropped.
#[derive(Debug)]
pub struct Follower {
    problems: watch::Receiver<Option<Vec<Problem>>>,
    task: JoinHandle<()>,
}

/// Starts feeding `handle` with what the store says about the node called `node`. Nothing is applied before the
/// store's snapshot is complete.
pub fn from_store(store: Arc<dyn Store>, node: &str, handle: Handle) -> Follower {
    let events = sync::follow(store, KINDS);
    let (tx, problems) = watch::channel(None);
    let state = ClusterState::new(node);
    let task = tokio::spawn(async move {
        // `Gone` means that the speaker was shut down: there is nobody left to feed.
        let _ = run(events, state, handle, tx).await;
    });
    Follower { problems, task }
}

impl Follower {
    /// What could not be done as the resources say; `None` before the first plan.
    pub fn problems(&self) -> Option<Vec<Problem>> {
        self.problems.borrow().clone()
    }

    /// The same, for whoever reports it while somebody else holds the follower.
    pub fn watch(&self) -> watch::Receiver<Option<Vec<Problem>>> {
        self.problems.clone()
    }

    /// Waits until the first plan was applied. `false`: the follower ended before.
    pub async fn applied(&mut self) -> bool {
        self.problems.wait_for(Option::is_some).await.is_ok()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    mut events: mpsc::Receiver<Vec<SyncEvent>>,
    mut state: ClusterState,
    handle: Handle,
    told: watch::Sender<Option<Vec<Problem>>>,
) -> Result<(), Gone> {
    let mut in_sync = false;
    let mut changed = false;
    while let Some(batch) = events.recv().await {
        take(&batch, &mut state, &mut in_sync, &mut changed);
        if !(in_sync && changed) {
            continue;
        }
        let until = Instant::now() + DEBOUNCE;
        while let Ok(Some(batch)) = timeout_at(until, events.recv()).await {
            take(&batch, &mut state, &mut in_sync, &mut changed);
        }
        changed = false;
        apply(&state, &handle, &told).await?;
    }
    Ok(())
}

fn take(batch: &[SyncEvent], state: &mut ClusterState, in_sync: &mut bool, changed: &mut bool) {
    for event in batch {
        // The snapshot's end makes a plan due even if the store is empty: that, too, is news.
        let first = *event == SyncEvent::InSync && !*in_sync;
        *in_sync |= first;
        *changed |= first | state.apply(event);
    }
}

async fn apply(
    state: &ClusterState,
    handle: &Handle,
    told: &watch::Sender<Option<Vec<Problem>>>,
) -> Result<(), Gone> {
    let mut plan = translate(state);
    let problems = std::mem::take(&mut plan.problems);
    report(told.borrow().as_deref().unwrap_or_default(), &problems);
    let (peers, routes) = (plan.peers.len(), plan.routes.len());
    if told.borrow().is_none() {
        info!(peers, routes, problems = problems.len(), "first BGP configuration from the datastore");
    } else {
        debug!(peers, routes, problems = problems.len(), "BGP configuration from the datastore");
    }
    for error in handle.apply(plan.into()).await? {
        warn!(%error, "trying again every few seconds");
    }
    told.send_replace(Some(problems));
    Ok(())
}

/// One line when a problem appears, one when it is gone.
fn report(old: &[Problem], new: &[Problem]) {
    for p in new.iter().filter(|p| !old.contains(p)) {
        warn!(resource = %p.about, problem = %p.what, "configuration problem");
    }
    for p in old.iter().filter(|p| !new.contains(p)) {
        info!(resource = %p.about, problem = %p.what, "configuration problem is gone");
    }
}

#[cfg(test)]
mod tests {
    use brindle_config::memory::MemoryStore;
    use brindle_config_core::{
        ObjectMeta, Resource,
        node::{NodeAddress, NodeBgpSpec, NodeSpec},
        store::{Expect, StoreExt},
    };

    use super::*;
    use crate::handle::Order;

    fn node(name: &str, ip: &str) -> Resource<NodeSpec> {
        let bgp =
            NodeBgpSpec { ipv4_address: Some(NodeAddress(ip.parse().unwrap())), ..NodeBgpSpec::default() };
        Resource::new(ObjectMeta::named(name), NodeSpec { bgp: Some(bgp), ..NodeSpec::default() })
    }

    #[tokio::test]
    async fn the_speaker_is_told_after_the_snapshot_and_after_every_change_that_matters() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        store.put_as(&node("a", "10.0.0.1/24"), Expect::Absent).await.unwrap();
        store.put_as(&node("b", "10.0.0.2/24"), Expect::Absent).await.unwrap();
        let (orders, mut taken) = mpsc::channel(4);
        let mut follower = from_store(Arc::clone(&store), "a", Handle { orders });
        let mut next = async || match taken.recv().await {
            Some(Order::Apply(desired, answer)) => {
                answer.send(vec![]).unwrap();
                *desired
            }
            _ => panic!("expected a plan"),
        };
        assert_eq!(next().await.peers.len(), 1);
        assert!(follower.applied().await);
        store.put_as(&node("c", "10.0.0.3/24"), Expect::Absent).await.unwrap();
        store.put_as(&node("d", "10.0.0.3/24"), Expect::Absent).await.unwrap();
        let plan = next().await;
        assert_eq!(plan.peers.len(), 2, "c and d have the same address: {plan:?}");
        while follower.problems().is_none_or(|p| p.is_empty()) {
            tokio::task::yield_now().await;
        }
    }
}
