//! What the rest of the agent holds of felix: a way in for inputs, and its latest report.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use brindle_config_core::{
    Key,
    status::{EncapStatus, RouteStatus},
    store::SyncEvent,
};
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};

use crate::look::{Fate, Intent};

/// Best paths from the speaker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FibUpdate {
    /// Forget all earlier paths first (the speaker was made anew).
    pub reset: bool,
    /// Prefix → next hops; empty withdraws.
    pub changes: Vec<(IpNet, Vec<IpAddr>)>,
    /// Next hops that no path may have (yet), to be reported like those of paths.
    pub locate: Vec<IpAddr>,
    /// The paths are complete now: learned routes nobody confirmed may be swept.
    pub in_sync: bool,
}

/// Everything felix is told.
#[derive(Debug)]
pub enum FelixInput {
    Store(Vec<SyncEvent>),
    Fib(FibUpdate),
    /// Addresses of this host that are to be on devices of pods, complete: these and no others.
    Peering(BTreeMap<String, Vec<IpAddr>>),
    /// From the netlink monitor.
    Kernel(Vec<brindle_kernel::netlink::Event>),
    /// The kernel dropped events, or the monitor failed: read everything again.
    Resync(String),
    /// Somebody wants the report with its counters as of now.
    Ask(oneshot::Sender<Report>),
    /// Somebody wants to know what should be there for an address.
    Intent(IpAddr, oneshot::Sender<Intent>),
    /// Somebody wants to know what became of a prefix.
    Fate(IpNet, oneshot::Sender<Vec<Fate>>),
}

/// What felix says about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    pub routes: RouteStatus,
    pub encap: EncapStatus,
    /// Endpoints whose device, settings and routes are in the kernel.
    pub ready: Arc<BTreeSet<Key>>,
    /// What the other endpoints of this node wait for.
    pub waiting: BTreeMap<Key, String>,
    pub own_blocks: Vec<IpNet>,
    /// MTU for new pods, octets; 0 until known.
    pub pod_mtu: u32,
    /// What cannot be done as asked, with what to do.
    pub problems: Vec<String>,
    /// How far the next hops of learned routes are; none out of reach.
    pub next_hops: Arc<BTreeMap<IpAddr, Option<u32>>>,
    /// The devices by which they are reached.
    pub devices: Arc<BTreeMap<IpAddr, String>>,
    /// Contradictions among the resources. What can be done is done.
    pub warnings: Vec<String>,
    /// Prefixes of pod devices' names, that of new ones first; empty until known.
    pub pod_prefixes: Vec<String>,
}

/// An endpoint did not become ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    #[error("{key} is not in the kernel after {after:?}{}", if problems.is_empty() { String::new() } else { format!(": {}", problems.join("; ")) })]
    Timeout { key: Key, after: Duration, problems: Vec<String> },
    #[error("felix is not running")]
    Gone,
}

/// A running felix. Dropping every handle ends it and leaves the kernel as it is.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) inputs: mpsc::Sender<FelixInput>,
    pub(crate) report: watch::Receiver<Report>,
}

impl Handle {
    /// Tells felix something; waits while it is busy. `false`: it is gone.
    pub async fn send(&self, input: FelixInput) -> bool {
        self.inputs.send(input).await.is_ok()
    }

    /// The latest report.
    pub fn report(&self) -> Report {
        self.report.borrow().clone()
    }

    /// The report with its counters as of now; the latest one if felix is busy for longer than a second.
    pub async fn fresh_report(&self) -> Report {
        let ask = async {
            let (tx, rx) = oneshot::channel();
            self.inputs.send(FelixInput::Ask(tx)).await.ok()?;
            rx.await.ok()
        };
        match tokio::time::timeout(Duration::from_secs(1), ask).await {
            Ok(Some(report)) => report,
            Ok(None) | Err(_) => self.report(),
        }
    }

    /// What should be there for an address; none when felix is gone or busy for longer than a second.
    pub async fn intent(&self, to: IpAddr) -> Option<Intent> {
        let (tx, rx) = oneshot::channel();
        let ask = async {
            self.inputs.send(FelixInput::Intent(to, tx)).await.ok()?;
            rx.await.ok()
        };
        tokio::time::timeout(Duration::from_secs(1), ask).await.ok().flatten()
    }

    /// What became of a prefix in the kernel; none when felix is gone or busy for longer than a second.
    pub async fn fate(&self, prefix: IpNet) -> Option<Vec<Fate>> {
        let (tx, rx) = oneshot::channel();
        let ask = async {
            self.inputs.send(FelixInput::Fate(prefix, tx)).await.ok()?;
            rx.await.ok()
        };
        tokio::time::timeout(Duration::from_secs(1), ask).await.ok().flatten()
    }

    /// Follows the report.
    pub fn watch(&self) -> watch::Receiver<Report> {
        self.report.clone()
    }

    /// Waits until an endpoint's device, settings and routes are in the kernel.
    pub async fn wait_ready(&self, key: &Key, limit: Duration) -> Result<(), WaitError> {
        let mut report = self.report.clone();
        let wait = report.wait_for(|r| r.ready.contains(key));
        match tokio::time::timeout(limit, wait).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(WaitError::Gone),
            Err(_) => {
                let report = self.report.borrow();
                let problems = match report.waiting.get(key) {
                    Some(why) => vec![why.clone()],
                    None => vec!["felix has not heard of it".into()],
                };
                Err(WaitError::Timeout { key: key.clone(), after: limit, problems })
            }
        }
    }

    /// Completes when felix has ended.
    pub async fn ended(&self) {
        self.inputs.closed().await;
    }
}
