//! The speaker inside the agent: started with the tasks that carry its best paths to felix and felix's word on next hops
//! back, then fed by the datastore; while that is away, by what it said last ([`brindle_bgpd::recall`]).

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use brindle_config_core::store::Store;
use brindle_felix::{FelixInput, FibUpdate};
use brindle_felix_core::route::PROTO_CLUSTER;
use brindle_kernel::netlink::{RouteFilter, Rtnl};

use crate::{
    drain::Drain,
    settings::{Networking, Settings},
    tasks::Tasks,
};

/// The file below the state folder with what the datastore said last.
const MEMORY: &str = "bgp.json";

/// A running speaker and what feeds it.
pub(crate) struct Speaker {
    pub(crate) running: brindle_bgpd::Running,
    pub(crate) follower: brindle_bgpd::Follower,
}

/// Starts the speaker of an agent whose datastore is away, if an earlier agent left word what it is to say.
pub(crate) async fn without_datastore(
    settings: &Settings,
    felix: &brindle_felix::Handle,
    tasks: &mut Tasks,
) -> anyhow::Result<Option<brindle_bgpd::Running>> {
    if settings.networking == Networking::None {
        return Ok(None);
    }
    let path = memory(settings);
    let desired = match brindle_bgpd::recall(&path, &settings.node_name, &secrets(settings)) {
        Ok(Some(desired)) => desired,
        Ok(None) => {
            tracing::warn!("no BGP until the datastore answers: there is no {} yet", path.display());
            return Ok(None);
        }
        Err(why) => {
            tracing::warn!("no BGP until the datastore answers: {}: {why}", path.display());
            return Ok(None);
        }
    };
    let running = start(settings, felix, tasks).await?;
    let (peers, routes) = (desired.peers.len(), desired.routes.len());
    match running.handle.apply(desired).await {
        Ok(errors) => {
            errors.into_iter().for_each(|error| tracing::warn!(%error, "trying again every few seconds"))
        }
        // Pods are served all the same, and the datastore's word comes after it.
        Err(e @ brindle_bgpd::Unanswered::Defect) => {
            tracing::error!(error = %e, "the BGP configuration kept from before may be in force in part only");
        }
        Err(e @ brindle_bgpd::Unanswered::Gone) => return Err(e.into()),
    }
    tracing::info!(peers, routes, "BGP as the datastore had it last");
    Ok(Some(running))
}

fn memory(settings: &Settings) -> PathBuf {
    settings.state_dir.join(MEMORY)
}

fn secrets(settings: &Settings) -> PathBuf {
    settings.state_dir.join("secrets")
}

/// Starts the speaker, unless it runs already, and what feeds it.
pub(crate) async fn speak(
    settings: &Settings,
    store: &Arc<dyn Store>,
    floating: Option<bool>,
    felix: &brindle_felix::Handle,
    running: Option<brindle_bgpd::Running>,
    tasks: &mut Tasks,
) -> anyhow::Result<Speaker> {
    let running = match running {
        Some(running) => running,
        None => start(settings, felix, tasks).await?,
    };
    let follower = brindle_bgpd::from_store(
        store.clone(),
        &settings.node_name,
        &secrets(settings),
        brindle_bgpd::Environment { floating, router_id: settings.router_id, memory: Some(memory(settings)) },
        running.handle.clone(),
    );
    tasks.spawn_beside("what tells felix of peers in pods", tell_peering(follower.peering(), felix.clone()));
    Ok(Speaker { running, follower })
}

/// Completes when the speaker has ended by itself; its end after a drain was wished for. Cancel safe.
pub(crate) async fn ended(running: &mut brindle_bgpd::Running, drain: &Drain) {
    if !drain.is_done() {
        running.ended().await;
    }
    if drain.is_done() {
        std::future::pending().await
    }
}

/// Starts a speaker that has nothing to say yet.
async fn start(
    settings: &Settings,
    felix: &brindle_felix::Handle,
    tasks: &mut Tasks,
) -> anyhow::Result<brindle_bgpd::Running> {
    let restarting = forwards_already()?;
    if restarting {
        tracing::info!(cause = "learned routes found in the kernel", "announcing a graceful restart");
    }
    let (running, mut fib) = match &settings.record {
        Some((file, most)) => brindle_bgpd::spawn_recorded(restarting, file, *most)
            .with_context(|| format!("--record: cannot write {}", file.display()))?,
        None => brindle_bgpd::spawn(restarting),
    };
    // Before the first route: rules that look at devices wait for felix's word instead of finding none.
    running.handle.set_devices(std::collections::BTreeMap::new()).await?;
    tasks.spawn_beside(
        "what tells the speaker of next hops",
        tell_next_hops(felix.watch(), running.handle.clone()),
    );
    let programs = felix.clone();
    running.handle.ask_kernel_with(Box::new(move |prefix| {
        let felix = programs.clone();
        Box::pin(async move {
            match felix.fate(prefix).await {
                Some(facts) => facts.into_iter().map(|f| (f.good, f.what)).collect(),
                None => vec![(false, "felix does not answer; it is busy or ends".into())],
            }
        })
    }));
    let felix = felix.clone();
    tasks.spawn_beside("what tells felix of best paths", async move {
        while let Some(batch) = fib.next().await {
            let update = FibUpdate {
                reset: batch.reset,
                changes: batch.changes.into_iter().map(|c| (c.prefix, c.next_hops.to_vec())).collect(),
                locate: batch.locate,
                in_sync: batch.in_sync,
            };
            if !felix.send(FelixInput::Fib(update)).await {
                return;
            }
        }
    });
    Ok(running)
}

/// Whether an earlier agent left routes it had learned: then peers keep ours, and theirs are kept here.
fn forwards_already() -> anyhow::Result<bool> {
    let ours = RouteFilter { protocol: Some(PROTO_CLUSTER), ..RouteFilter::main() };
    Ok(Rtnl::open()?.routes(&ours)?.iter().any(|r| r.hops.iter().any(|h| h.gateway.is_some())))
}

/// Tells the speaker how far its next hops are by the host's routes, whenever that changes.
async fn tell_next_hops(
    mut report: tokio::sync::watch::Receiver<brindle_felix::Report>,
    bgp: brindle_bgpd::Handle,
) {
    let (mut told, mut told_devices) = (Arc::default(), Arc::default());
    loop {
        let (now, devices) = {
            let r = report.borrow_and_update();
            (Arc::clone(&r.next_hops), Arc::clone(&r.devices))
        };
        if devices != told_devices {
            if bgp.set_devices((*devices).clone()).await.is_err() {
                return;
            }
            told_devices = devices;
        }
        if now != told {
            if bgp.set_next_hops((*now).clone()).await.is_err() {
                return;
            }
            told = now;
        }
        if report.changed().await.is_err() {
            return;
        }
    }
}

/// Tells felix which addresses pods peer with, whenever that changes.
async fn tell_peering(
    mut peering: tokio::sync::watch::Receiver<Option<brindle_bgpd::peers::Peering>>,
    felix: brindle_felix::Handle,
) {
    loop {
        let wanted = peering.borrow_and_update().clone();
        if let Some(wanted) = wanted
            && !felix.send(FelixInput::Peering(wanted)).await
        {
            return;
        }
        if peering.changed().await.is_err() {
            return;
        }
    }
}
