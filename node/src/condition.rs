//! The condition NetworkUnavailable of the own Node of Kubernetes. Clouds set it, and with it a taint that keeps pods away
//! until somebody says that the network is there: the agent, when it is ready the first time, and again for a Node that was
//! registered anew. It stays over a restart, for traffic goes on; a drain takes the word back (Calico: `CalicoIsUp`, and
//! `CalicoIsDown` by its preStop hook). Where somebody else routes between nodes (`--networking none`) the word is theirs: a
//! cloud's `NoRouteCreated` stays until its route is there. Such an agent has nothing to drain either.

use std::{sync::Arc, time::Duration};

use brindle_config_core::{
    Key, Kind,
    status::health::Probe,
    store::{NetworkWord, Store, SyncEvent},
};
use tokio::time::timeout;

use crate::{cni_server::now, health};

/// How often it is looked whether the agent is ready.
const LOOK: Duration = Duration::from_secs(1);
/// What could not be written is tried again after this.
const AGAIN: Duration = Duration::from_secs(10);
/// How long a drain may take longer because of it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Runs as long as the agent.
pub(crate) async fn keep(store: Arc<dyn Store>, sources: health::Sources) {
    let key = Key::new(Kind::Node, None, &sources.node);
    let mut events = brindle_config::sync::follow(Arc::clone(&store), vec![Kind::Node]);
    while let Some(batch) = events.recv().await {
        // One that was registered anew has lost its annotations, so it is heard of.
        if !batch.iter().any(|e| matches!(e, SyncEvent::Upsert(entry) if entry.key == key)) {
            continue;
        }
        while !sources.health().await.ok(Probe::Ready) {
            tokio::time::sleep(LOOK).await;
        }
        let mut complained = false;
        loop {
            match store.say_network(&key.name, &up()).await {
                Ok(true) => tracing::info!(cause = "the agent is ready", "Node: NetworkUnavailable is False"),
                Ok(false) => {}
                // Whoever registers it anew is heard of.
                Err(brindle_config_core::store::StoreError::NotFound(_)) => {}
                Err(e) => {
                    if !std::mem::replace(&mut complained, true) {
                        tracing::warn!(
                            "cannot write the Node's condition NetworkUnavailable: {e}; trying again"
                        );
                    }
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
            break;
        }
    }
}

/// The node is drained.
pub(crate) async fn down(store: &dyn Store, node: &str) {
    let word = NetworkWord {
        available: false,
        reason: "BrindleIsDown",
        message: "Brindle was drained on this node",
        at: now().rfc3339(),
    };
    match timeout(PATIENCE, store.say_network(node, &word)).await {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => tracing::warn!("cannot write the Node's condition NetworkUnavailable: {e}"),
        Err(_) => tracing::warn!("cannot write the Node's condition NetworkUnavailable: no answer"),
    }
}

fn up() -> NetworkWord {
    NetworkWord {
        available: true,
        reason: "BrindleIsUp",
        message: "Brindle is running on this node",
        at: now().rfc3339(),
    }
}
