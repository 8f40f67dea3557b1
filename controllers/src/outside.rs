//! What a process does whether it leads or not: its log and its port, as KubeControllersConfiguration says when it was not
//! told otherwise. Both change while it runs.

use std::{net::SocketAddr, sync::Arc};

use brindle_admin::http;
use brindle_config::sync;
use brindle_config_core::{
    Kind,
    controllers::KubeControllersConfigurationSpec,
    store::{Entry, Store, SyncEvent, decode},
};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    cli::{Log, Settings},
    config::{self, Given, Running},
    health::Pulse,
    metrics::{self, Tally},
};

/// The log and the port.
pub(crate) struct Outside {
    given: Given,
    log: Log,
    tally: Tally,
    pulse: Pulse,
    filter: String,
    server: Option<(SocketAddr, JoinHandle<()>)>,
}

impl Outside {
    pub(crate) fn new(settings: &Settings, tally: Tally, pulse: Pulse) -> Self {
        let filter = Running::of(&settings.given, None).log;
        Self { given: settings.given.clone(), log: settings.log.clone(), tally, pulse, filter, server: None }
    }

    /// Answers on a port from now on.
    pub(crate) fn listens(&mut self, address: SocketAddr, listener: TcpListener) {
        let server = tokio::spawn(metrics::serve(listener, self.tally.clone(), self.pulse.clone()));
        if let Some((_, old)) = self.server.replace((address, server)) {
            old.abort();
        }
    }

    /// Does as the object says, until the process ends.
    pub(crate) async fn follow(mut self, store: Arc<dyn Store>) {
        let mut events = sync::follow(store, [Kind::KubeControllersConfiguration]);
        while let Some(batch) = events.recv().await {
            for event in batch {
                match event {
                    SyncEvent::Upsert(e) if e.key.name == config::NAME => self.read(&e).await,
                    SyncEvent::Delete(key) if key.name == config::NAME => {
                        self.adopt(&Running::of(&self.given, None)).await;
                    }
                    SyncEvent::InSync => self.pulse.read(),
                    SyncEvent::Upsert(_) | SyncEvent::Delete(_) => {}
                }
            }
        }
    }

    async fn read(&mut self, e: &Entry) {
        // Whoever leads says what is wrong with one that cannot be read.
        if let Ok(found) = decode::<KubeControllersConfigurationSpec>(e) {
            self.adopt(&Running::of(&self.given, Some(&found.resource.spec))).await;
        }
    }

    async fn adopt(&mut self, running: &Running) {
        if running.log != self.filter {
            self.log.set(&running.log);
            self.filter.clone_from(&running.log);
        }
        self.tally.health(running.health);
        let now = self.server.as_ref().map(|(address, _)| *address);
        if running.metrics == now {
            return;
        }
        let Some(address) = running.metrics else {
            if let Some((_, server)) = self.server.take() {
                server.abort();
            }
            return;
        };
        let what = "prometheusMetricsPort of KubeControllersConfiguration(default)";
        let bound = match http::listen(what, address).await {
            // A host without IPv6.
            Err(_) if address.is_ipv6() => {
                http::listen(what, SocketAddr::from(([0, 0, 0, 0], address.port()))).await
            }
            bound => bound,
        };
        match bound {
            Ok(listener) => self.listens(address, listener),
            Err(error) => tracing::warn!("{error}; metrics stay where they were"),
        }
    }
}
