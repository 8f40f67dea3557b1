//! The socket: who may connect, and how many at a time.

use std::sync::Arc;

use anyhow::Result;
use tokio::task::JoinHandle;

use super::{CniServerSettings, calls::Calls, history::History, service::Service, session};
use crate::local_socket;

/// Sessions at a time; more wait in the socket's queue. kubelet starts pods in bursts.
const MAX_SESSIONS: usize = 256;

/// A running server. Dropping it ends it.
pub(crate) struct Server {
    tasks: [JoinHandle<()>; 4],
    calls: Arc<Calls>,
    history: Arc<History>,
}

impl Server {
    /// What was asked so far, as it goes on.
    pub(crate) fn calls(&self) -> Arc<Calls> {
        Arc::clone(&self.calls)
    }

    /// Where this node's addresses are written about.
    pub(crate) fn history(&self) -> Arc<History> {
        Arc::clone(&self.history)
    }

    /// Completes when the server has ended, which it does only by a defect.
    pub(crate) async fn ended(&mut self) {
        let [serve, replay, collect, recorded] = &mut self.tasks;
        tokio::select! {
            _ = serve => {}
            _ = replay => {}
            _ = collect => {}
            _ = recorded => {}
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

pub(super) async fn spawn(settings: CniServerSettings) -> Result<Server> {
    let service = Arc::new(Service::new(&settings));
    // Before anybody can ask: a container that comes back must not meet its own old DEL.
    service.replay().await;
    service.warm().await;
    let listener = local_socket::bind(&settings.socket)?;
    let (calls, history) = (Arc::clone(&service.calls), Arc::clone(&service.history));
    let replay = tokio::spawn(Arc::clone(&service).keep_replaying());
    let collect = tokio::spawn(Arc::clone(&service).keep_collecting(settings.leaks));
    let recorded = tokio::spawn(Arc::clone(&service).keep_recorded());
    let serve = tokio::spawn(local_socket::serve(listener, MAX_SESSIONS, move |stream| {
        let service = Arc::clone(&service);
        async move { session::serve(stream, service).await }
    }));
    Ok(Server { tasks: [serve, replay, collect, recorded], calls, history })
}
