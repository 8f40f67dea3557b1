//! Starts policy: the store's events go to the calculation, what it says to the kernel.

use std::sync::Arc;

use brindle_cni::fail;
use brindle_config_core::{
    Kind,
    store::{Store, SyncEvent},
};
use brindle_felix::policy::{Calculation, PolicyHandle, PolicyInput, PolicySetup, spawn_policy};
use brindle_felix_core::{
    calc::{self, Graph, Scope},
    policy::active::PolicyDelta,
    rules::around,
};
use brindle_kernel::netfilter::Tools;

use crate::{calico, felix_env::FelixEnv, settings::Settings, tasks::Tasks};

/// The calculation graph of this node.
struct Calculated(Graph);

impl Calculation for Calculated {
    fn apply(&mut self, event: &SyncEvent) {
        self.0.handle(event);
    }

    fn flush(&mut self) -> Vec<PolicyDelta> {
        self.0.flush()
    }

    fn problems(&self) -> Vec<String> {
        let all = self.0.problems().into_iter();
        all.flat_map(|(key, lines)| lines.into_iter().map(move |l| format!("{key}: {l}"))).collect()
    }
}

/// The kinds that policy follows: those that say what is allowed, and those that say in what surroundings. Blocks are not
/// among them: they change with every pod, and whatever comes makes the thread write what could wait.
pub(crate) fn kinds() -> Vec<Kind> {
    let mut kinds = calc::KINDS.to_vec();
    kinds.extend(around::KINDS.into_iter().filter(|k| !calc::KINDS.contains(k)));
    kinds
}

/// Starts the thread and the tasks that feed and watch it.
pub(crate) fn start(
    settings: &Settings,
    store: &Arc<dyn Store>,
    env: &FelixEnv,
    tasks: &mut Tasks,
) -> anyhow::Result<PolicyHandle> {
    let setup = PolicySetup {
        node: settings.node_name.clone(),
        families: Vec::new(),
        prefixes: env.pod_prefixes(),
        calico: calico::running,
    };
    let graph = Graph::new(Scope::Node(settings.node_name.clone()));
    let handle = spawn_policy(&setup, Box::new(Tools::default()), Box::new(Calculated(graph)))?;
    let mut events = brindle_config::sync::follow(Arc::clone(store), kinds());
    let to = handle.clone();
    let (env, node) = (env.clone(), settings.node_name.clone());
    tasks.spawn("the follower of the datastore for policy", async move {
        let mut seen = false;
        while let Some(mut batch) = events.recv().await {
            let met = |e: &SyncEvent| matches!(e, SyncEvent::Upsert(e) if e.key.kind == Kind::NetworkPolicy);
            assert!(
                !(fail::refuses("agent.policy.feed") && batch.iter().any(met)),
                "a defect that a test put in"
            );
            env.apply(&mut batch, &node, &mut seen);
            if !to.send(PolicyInput::Store(batch)).await {
                // Policy has ended, and is told of.
                return std::future::pending().await;
            }
        }
    });
    let policy = handle.clone();
    tasks.spawn("policy", async move { policy.ended().await });
    Ok(handle)
}
