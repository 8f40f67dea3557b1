//! The agent's side of the CNI protocol ([`brindle_cni::proto`]): a unix socket only root may use ([`socket`]), one
//! session per plugin ([`session`]; [`claims`] tells whose an unfinished ADD is), and behind them the [`service`] that
//! gives addresses ([`address`]), records endpoints ([`endpoint`]), deletes devices ([`device`], [`names`]) and carries out what the
//! journal says ([`replay`]); [`calls`] counts them. What it gave it remembers ([`attached`]), for the time when the datastore is away
//! ([`remembered`]) or has lost it ([`lost`]).
//!
//! Nothing here decides who gets which address (`brindle-ipam`) or programs a route (felix).

mod address;
mod attached;
mod calls;
mod claims;
mod collect;
mod dataplane;
mod device;
mod endpoint;
mod ghosts;
mod history;
mod idle;
mod leaks;
mod lost;
mod names;
mod overlap;
mod pause;
mod refused;
mod remembered;
mod replay;
mod room;
mod service;
mod session;
mod socket;
mod unfinished;

use std::{path::PathBuf, sync::Arc};

pub(crate) use attached::pods_here;
use brindle_config_core::store::Store;
use brindle_ipam::View;
pub(crate) use calls::Calls;
pub(crate) use dataplane::Dataplane;
pub(crate) use history::{Event, History};
pub(crate) use leaks::LeakArgs;
pub(crate) use pause::{Jitter, now};
pub(crate) use socket::Server;

/// What the server is made of.
pub(crate) struct CniServerSettings {
    pub(crate) node: String,
    pub(crate) socket: PathBuf,
    /// Holds the journal.
    pub(crate) state_dir: PathBuf,
    pub(crate) store: Arc<dyn Store>,
    /// The datastore is Kubernetes: an endpoint is its Pod, with that one's uid.
    pub(crate) endpoints_are_pods: bool,
    pub(crate) dataplane: Arc<dyn Dataplane>,
    pub(crate) leaks: LeakArgs,
}

/// Carries out the journal, then listens.
pub(crate) async fn spawn(settings: CniServerSettings) -> anyhow::Result<Server> {
    socket::spawn(settings).await
}

/// [`spawn`] with the agent's settings and parts.
pub(crate) async fn start(
    settings: &crate::settings::Settings,
    store: &Arc<dyn Store>,
    felix: &brindle_felix::Handle,
    policy: &brindle_felix::policy::PolicyHandle,
) -> anyhow::Result<Server> {
    tokio::spawn(follow_pools(Arc::clone(store)));
    spawn(CniServerSettings {
        node: settings.node_name.clone(),
        socket: settings.cni_socket.clone(),
        state_dir: settings.state_dir.clone(),
        store: Arc::clone(store),
        endpoints_are_pods: crate::settings::on_kubernetes(&settings.datastore),
        dataplane: Arc::new(dataplane::Both {
            felix: felix.clone(),
            policy: policy.clone(),
            store: Arc::clone(store),
            datastore: brindle_config::shown_url(&settings.datastore),
        }),
        leaks: settings.leaks.clone(),
    })
    .await
}

/// Keeps what addresses are given by among what the agent follows, so that ADD need not ask for it, where followed
/// resources are kept at all.
async fn follow_pools(store: Arc<dyn Store>) {
    let Some(mut followed) = store.subscribe(&View::KINDS) else { return };
    while followed.next().await.is_ok() {}
}

#[cfg(test)]
mod tests;
