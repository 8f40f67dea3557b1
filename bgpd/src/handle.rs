//! What the rest of a process holds of a running speaker: questions and orders in, routes out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, OnceLock},
};

use brindle_bgpd_core::speaker::{Clear, FibChange, LocalRoute, PeerConfig, PeerId, SpeakerConfig};
use brindle_bgpd_core::{speaker::Speaker, time::Mono};
use brindle_config_core::status::{BgpStatus, bgp::BgpEvent};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    fault,
    import::Imports,
    listeners::Listeners,
    mrt,
    peers::{Plan, leave::Coverage, services::Verdict},
    tally::Tally,
    view::{self, RibPath},
};

/// Why the speaker task does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// It is gone: shut down, or failed (its panic is in the log).
    #[error("the BGP speaker is not running")]
    Gone,
    /// It met a defect over this question or order, and goes on.
    #[error("the BGP speaker met a defect over this and has no answer; it goes on, and its log says more")]
    Defect,
}

/// What a speaker should be. Applied as a whole; what is the same as before is not disturbed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Desired {
    /// `None`: nothing to speak for; sessions are closed. Another AS or router id restarts all sessions.
    pub speaker: Option<SpeakerConfig>,
    pub listen: Vec<SocketAddr>,
    pub peers: Vec<PeerConfig>,
    pub routes: Vec<LocalRoute>,
    /// Peers that are reached through a gateway: their address, and the gateway. Reported to whoever programs routes.
    pub statics: Vec<(IpAddr, IpAddr)>,
    /// Routes of the kernel that are announced beside `routes`.
    pub imports: Imports,
    /// What becomes of the addresses of services, sorted: told to whoever asks, without effect of its own.
    #[serde(default, with = "shared")]
    pub services: Arc<[Verdict]>,
}

/// A shared list as a list.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::peers::services::Verdict;

    pub(super) fn serialize<S: Serializer>(all: &Arc<[Verdict]>, to: S) -> Result<S::Ok, S::Error> {
        all.as_ref().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<[Verdict]>, D::Error> {
        Vec::deserialize(from).map(Arc::from)
    }
}

impl From<Plan> for Desired {
    fn from(plan: Plan) -> Self {
        Self {
            speaker: plan.speaker,
            listen: plan.listen,
            peers: plan.peers,
            routes: plan.routes,
            statics: plan.statics,
            imports: plan.imports,
            services: plan.services,
        }
    }
}

/// A listening address that could not be had, with the system's words. It is tried again in the background.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot listen on {address}: {why}")]
pub struct ListenError {
    pub address: SocketAddr,
    pub why: String,
}

/// Changes of best paths, coalesced per prefix while the receiver is busy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FibBatch {
    /// The speaker was made anew (another AS or router id): what was learnt before is void unless a later batch
    /// says it again before `in_sync`.
    pub reset: bool,
    /// At most one per prefix, oldest change first.
    pub changes: Vec<FibChange>,
    /// Next hops of routes that may not be in use, whose devices are to be told ([`Handle::set_devices`]).
    pub locate: Vec<IpAddr>,
    /// With these changes the routes are complete: what an earlier run left and nobody confirmed may be swept.
    pub in_sync: bool,
}

/// Orders and questions to the speaker task. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) orders: mpsc::Sender<Order>,
    /// What happens, for those who watch.
    pub(crate) events: broadcast::Sender<BgpEvent>,
    pub(crate) kernel: KernelSide,
}

/// Answers what became of a prefix in the kernel: whether as intended, and a sentence.
pub type AskKernel =
    Box<dyn Fn(IpNet) -> Pin<Box<dyn Future<Output = Vec<(bool, String)>> + Send>> + Send + Sync>;

/// Whoever programs the routes, once it is known.
#[derive(Clone, Default)]
pub(crate) struct KernelSide(pub(crate) Arc<OnceLock<AskKernel>>);

impl fmt::Debug for KernelSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KernelSide").field(&self.0.get().is_some()).finish()
    }
}

/// The speaker task's state, for a question that only looks.
pub(crate) struct Seen<'a> {
    /// `None`: nothing to speak for yet.
    pub(crate) speaker: Option<&'a Speaker>,
    pub(crate) now: Mono,
    pub(crate) tally: &'a Tally,
    pub(crate) listeners: &'a Listeners,
    /// Connections of strangers.
    pub(crate) refused: u64,
    /// Sessions of clients that came up ([`crate::health::is_client`]).
    pub(crate) client_arrivals: u64,
    /// Panics that were outlived.
    pub(crate) defects: u64,
    pub(crate) services: &'a Arc<[Verdict]>,
    /// Somebody in this process programs routes.
    pub(crate) programs: bool,
    /// Whether the archive of updates is written, and how many records are missing in it.
    pub(crate) archive: Option<(bool, u64)>,
}

pub(crate) enum Order {
    Apply(Box<Desired>, oneshot::Sender<Vec<ListenError>>),
    SetPeers(Vec<PeerConfig>),
    SetLocalRoutes(Vec<LocalRoute>),
    NextHops(BTreeMap<IpAddr, Option<u32>>),
    Devices(BTreeMap<IpAddr, String>),
    Clear(PeerId, Clear, oneshot::Sender<bool>),
    Drain(oneshot::Sender<()>),
    /// How far the other sessions carry what is learnt over those with these addresses.
    Coverage(BTreeSet<IpAddr>, oneshot::Sender<Coverage>),
    /// Runs in the speaker task, so what it does must be little: a page of a table, not a table.
    Look(Box<dyn FnOnce(&Seen<'_>) + Send>),
    /// From now on, what peers send goes there.
    Archive(mrt::Archive),
    Shutdown(oneshot::Sender<()>),
}

impl Handle {
    /// Makes the speaker what it should be. The answer lists the addresses it could not listen on (yet).
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn apply(&self, desired: Desired) -> Result<Vec<ListenError>, Unanswered> {
        self.ask(|tx| Order::Apply(Box::new(desired), tx)).await
    }

    /// Replaces the set of peers; unchanged ones are not disturbed.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn set_peers(&self, peers: Vec<PeerConfig>) -> Result<(), Unanswered> {
        self.orders.send(Order::SetPeers(peers)).await.map_err(|_| Unanswered::Gone)
    }

    /// Replaces the set of own routes.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn set_local_routes(&self, routes: Vec<LocalRoute>) -> Result<(), Unanswered> {
        self.orders.send(Order::SetLocalRoutes(routes)).await.map_err(|_| Unanswered::Gone)
    }

    /// Says how far next hops are, as the kernel knows it; `None`: out of reach. The whole set: one that is not in it
    /// counts as near.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn set_next_hops(&self, costs: BTreeMap<IpAddr, Option<u32>>) -> Result<(), Unanswered> {
        self.orders.send(Order::NextHops(costs)).await.map_err(|_| Unanswered::Gone)
    }

    /// Says by which devices next hops are reached, as the kernel knows it: the whole set. Rules of filters look at it.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn set_devices(&self, devices: BTreeMap<IpAddr, String>) -> Result<(), Unanswered> {
        self.orders.send(Order::Devices(devices)).await.map_err(|_| Unanswered::Gone)
    }

    /// Names whoever programs the routes, so that `explain` can say what became of a prefix. Only the first counts.
    pub fn ask_kernel_with(&self, ask: AskKernel) {
        // Set already: there is one owner of routes.
        let _ = self.kernel.0.set(ask);
    }

    /// An operator's `clear` of a peer; `false` if it is gone. Names and addresses may be those of several sessions.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn clear(&self, peer: PeerId, how: Clear) -> Result<bool, Unanswered> {
        self.ask(|tx| Order::Clear(peer, how, tx)).await
    }

    /// Tells every peer that we are about to leave (RFC 8326), so that traffic moves away before the sessions end.
    /// What follows after some time is [`Running::shutdown`] or [`Handle::shutdown`].
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn drain(&self) -> Result<(), Unanswered> {
        self.ask(Order::Drain).await
    }

    /// Ends every session with Cease / Administrative Shutdown, waits until the peers were told (bounded), and ends the
    /// speaker.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn shutdown(&self) -> Result<(), Unanswered> {
        self.ask(Order::Shutdown).await
    }

    /// Peers, sessions, counters.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn status(&self) -> Result<BgpStatus, Unanswered> {
        self.look(|s| {
            fault::point("bgp.status");
            s.speaker.map(|speaker| view::status(speaker, s.now, s.listeners.describe())).unwrap_or_default()
        })
        .await
    }

    /// How far the other sessions have come in replacing those with `leaving`.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub(crate) async fn coverage(&self, leaving: BTreeSet<IpAddr>) -> Result<Coverage, Unanswered> {
        self.ask(|tx| Order::Coverage(leaving, tx)).await
    }

    /// The Loc-RIB, or one prefix of it, with every path and the step of the decision that chose or rejected it.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn rib(&self, prefix: Option<IpNet>) -> Result<Vec<RibPath>, Unanswered> {
        self.look(move |s| s.speaker.map_or_else(Vec::new, |speaker| view::rib(speaker, prefix))).await
    }

    /// Looks at the speaker. `question` holds up everything else while it runs.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Seen<'_>) -> T + Send + 'static,
    ) -> Result<T, Unanswered> {
        self.ask(|tx| {
            Order::Look(Box::new(move |seen| {
                // The asker may have gone.
                let _ = tx.send(question(seen));
            }))
        })
        .await
    }

    pub(crate) async fn archive(&self, archive: mrt::Archive) -> Result<(), Unanswered> {
        self.orders.send(Order::Archive(archive)).await.map_err(|_| Unanswered::Gone)
    }

    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, Unanswered> {
        let (tx, rx) = oneshot::channel();
        self.orders.send(order(tx)).await.map_err(|_| Unanswered::Gone)?;
        let dropped = |_| if self.orders.is_closed() { Unanswered::Gone } else { Unanswered::Defect };
        rx.await.map_err(dropped)
    }
}

/// Best paths for whoever programs routes.
#[derive(Debug)]
pub struct FibStream {
    pub(crate) batches: mpsc::Receiver<FibBatch>,
}

impl FibStream {
    /// The next batch, never empty; `None` when the speaker is gone. Cancel safe.
    pub async fn next(&mut self) -> Option<FibBatch> {
        self.batches.recv().await
    }
}

/// A running speaker. Dropping it abandons the sessions without a word, so that peers with graceful restart keep our
/// routes; [`Running::shutdown`] says goodbye.
#[derive(Debug)]
pub struct Running {
    pub handle: Handle,
    pub(crate) task: JoinHandle<()>,
}

impl Running {
    /// Ends every session with Cease / Administrative Shutdown and waits until the peers were told (bounded).
    pub async fn shutdown(mut self) {
        let (tx, rx) = oneshot::channel();
        if self.handle.orders.send(Order::Shutdown(tx)).await.is_ok() {
            // Fails if the speaker ended by itself: then there is nobody to say goodbye to.
            let _ = rx.await;
        }
        let _ = (&mut self.task).await;
    }

    /// Drops every connection without a NOTIFICATION, for a graceful restart.
    pub fn abandon(self) {
        drop(self);
    }

    /// Waits until the speaker has ended by itself, which it does only by a panic (a defect, in the log).
    pub async fn ended(&mut self) {
        let _ = (&mut self.task).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}
