//! What the calls mean. Every call may be repeated: ADD gives the same addresses again, DEL of nothing is done. Calls
//! for one container wait for each other; different containers go side by side.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex as StdMutex, PoisonError, Weak, atomic::AtomicBool},
    time::{Duration, Instant},
};

use brindle_cni::{
    error::code,
    fail, journal,
    proto::{Attachment, Call, HostDevice, Reply, handle},
};
use brindle_config_core::{
    Key, Kind,
    felix::ClusterInformationSpec,
    store::{Store, StoreError, StoreExt},
};
use brindle_ipam::{BlockAllocator, View};
use ipnet::IpNet;
use serde_json::Value;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{
    CniServerSettings, Dataplane, Jitter,
    address::{Given, Wish},
    attached::{Attached, Kept},
    calls::Calls,
    claims::{Caller, Claims},
    device::Deletions,
    endpoint::{Announced, Checked, Made},
    ghosts::Ghosts,
    history::History,
    overlap::{Foreign, Overlaps},
    refused::Refused,
};

/// How long ADD waits for felix to know the MTU after the agent's start.
const MTU: Duration = Duration::from_secs(10);
/// How long a datastore counts as one that cannot be written after it refused a pod.
const UNWRITABLE: Duration = Duration::from_secs(30);
/// Prefix of host devices where none is configured.
const PREFIX: &str = "cali";

/// The handler of calls.
pub(super) struct Service {
    pub(super) node: String,
    pub(super) store: Arc<dyn Store>,
    pub(super) endpoints_are_pods: bool,
    pub(super) dataplane: Arc<dyn Dataplane>,
    pub(super) journal: PathBuf,
    pub(super) state_dir: PathBuf,
    pub(super) history: Arc<History>,
    pub(super) attached: Attached,
    /// Writes, one call at a time; it remembers the node's blocks.
    pub(super) allocator: Mutex<BlockAllocator>,
    /// Reads the records as they are stored, beside the writer.
    pub(super) reader: BlockAllocator,
    deletions: Deletions,
    /// Endpoints the dataplane was told of that are not in the store yet.
    pub(super) announced: Announced,
    /// The store was seen to give endpoints labels or profiles of its own (Kubernetes: those of the pod).
    pub(super) knows_more: AtomicBool,
    pub(super) claims: Claims,
    pub(super) overlaps: Overlaps,
    pub(super) calls: Arc<Calls>,
    /// One lock per container with calls under way.
    busy: StdMutex<BTreeMap<String, Weak<Mutex<()>>>>,
    ghosts: StdMutex<Ghosts>,
    /// What STATUS was refused with last; empty when it was not.
    status_said: StdMutex<String>,
    /// When a pod was last refused because the datastore could not be written, and why.
    unwritable: StdMutex<Option<(Instant, Refused)>>,
    /// When the blocks were last read because STATUS found no room in what is remembered.
    pub(super) read_for_status: StdMutex<Option<Instant>>,
}

impl Service {
    pub(super) fn new(settings: &CniServerSettings) -> Self {
        let allocator =
            || BlockAllocator::new(Arc::clone(&settings.store), &*settings.node, Arc::new(Jitter));
        Self {
            node: settings.node.clone(),
            store: Arc::clone(&settings.store),
            endpoints_are_pods: settings.endpoints_are_pods,
            dataplane: Arc::clone(&settings.dataplane),
            journal: settings.state_dir.join(journal::FOLDER),
            state_dir: settings.state_dir.clone(),
            history: Arc::new(History::new(&settings.state_dir)),
            overlaps: Overlaps::new(&settings.state_dir),
            attached: Attached::read(&settings.state_dir),
            allocator: Mutex::new(allocator()),
            reader: allocator(),
            deletions: Deletions::new(),
            announced: Announced::default(),
            knows_more: AtomicBool::new(false),
            claims: Claims::default(),
            calls: Arc::default(),
            busy: StdMutex::new(BTreeMap::new()),
            ghosts: StdMutex::default(),
            status_said: StdMutex::default(),
            unwritable: StdMutex::default(),
            read_for_status: StdMutex::default(),
        }
    }

    /// Reads the node's blocks, so that the first pod need not wait for it. What cannot be read now is read then.
    pub(super) async fn warm(&self) {
        let read = async {
            let view = View::load(&*self.store, &self.node).await?;
            self.allocator.lock().await.reload(&view).await
        };
        if let Err(e) = read.await {
            tracing::warn!("cannot read the address blocks of this node yet: {e}");
        }
    }

    /// Carries out a call.
    pub(super) async fn call(&self, call: Call, caller: Caller) -> Reply {
        let asked = matches!(call, Call::Status { .. });
        let writes = matches!(call, Call::Add { .. } | Call::IpamAdd { .. } | Call::Register { .. });
        let done = self.carry_out(call, caller).await;
        // Any other refusal says nothing of the disk, and an ADD may be answered without a write: see `wrote`.
        if let Some(why) = done.as_ref().err().filter(|r| writes && r.broken) {
            // Replaced whole.
            *self.unwritable.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((Instant::now(), why.clone()));
        }
        // Runtimes and the conflist's writer ask again and again; the answer is news when it is another one.
        let news = !asked || {
            let said = done.as_ref().err().map(|r| r.msg.clone()).unwrap_or_default();
            let mut last = self.status_said.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *last, said.clone()) != said
        };
        done.unwrap_or_else(|refused| {
            if news {
                tracing::info!(code = refused.code, "refused: {}", refused.msg);
            }
            refused.into()
        })
    }

    /// Something of a pod was written to the datastore.
    pub(super) fn wrote(&self) {
        *self.unwritable.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn carry_out(&self, call: Call, caller: Caller) -> Result<Reply, Refused> {
        match call {
            Call::Ping => Ok(self.pong()),
            Call::Status { given, pools4, pools6, num4, num6 } => {
                let wish = Wish { pools4, pools6, num4, num6, ..Wish::default() };
                self.status((!given).then_some(&wish)).await
            }
            Call::Families => self.families().await,
            Call::PodCidrs => Ok(Reply::PodCidrs { cidrs: self.pod_cidrs().await? }),
            Call::Add { attachment, pools4, pools6, num4, num6, ips, given, ranges, pools_of_pod } => {
                let _turn = self.turn(&attachment).await;
                let wish = Wish { pools4, pools6, num4, num6, ips, pools_of_pod, foreign: false };
                let foreign = Foreign { given, ranges };
                let _attempt = self.claims.attempt(&attachment);
                let added = match self.add(&attachment, wish, &foreign).await {
                    Err(why) if why.is_away() => self.add_remembered(&attachment, false, why).await,
                    done => done,
                }?;
                self.claims.give(&attachment, caller.connection);
                Ok(added)
            }
            Call::IpamAdd { attachment, pools4, pools6, num4, num6, ips, pools_of_pod } => {
                let _turn = self.turn(&attachment).await;
                let wish = Wish { pools4, pools6, num4, num6, ips, pools_of_pod, foreign: true };
                match self.ipam_add(&attachment, wish).await {
                    Err(why) if why.is_away() => self.add_remembered(&attachment, true, why).await,
                    done => done,
                }
            }
            Call::Register { attachment, host_ifname, mac, addresses, floating } => {
                let _turn = self.turn(&attachment).await;
                self.claims.still(&attachment, caller)?;
                self.still_given(&attachment, &addresses, caller)?;
                let made = Made { device: host_ifname, mac, addresses, floating };
                match self.register(&attachment, &made).await {
                    Err(why) if why.is_away() => self.register_remembered(&attachment, &made, why).await,
                    done => done,
                }?;
                self.attached.registered(&attachment, &made.mac, &made.floating).await;
                Ok(Reply::Registered)
            }
            Call::Del { attachment, device } => {
                let _turn = self.turn(&attachment).await;
                self.del(&attachment, device, false).await
            }
            Call::IpamDel { attachment } => {
                let _turn = self.turn(&attachment).await;
                self.del(&attachment, None, true).await
            }
            Call::Check { attachment, addresses, foreign } => {
                let what = if foreign { Checked::Endpoint } else { Checked::Both };
                self.check(&attachment, &addresses, what).await.map(|()| Reply::Checked)
            }
            Call::IpamCheck { attachment, addresses } => {
                self.check(&attachment, &addresses, Checked::Addresses).await.map(|()| Reply::Checked)
            }
            Call::Gc { network, valid, dry_run } => {
                self.collect(&network, &valid, dry_run).await.map(|()| Reply::Deleted)
            }
        }
    }

    /// What the cluster set aside for pods of this node (Node status.podCIDRs).
    async fn pod_cidrs(&self) -> Result<Vec<IpNet>, Refused> {
        match self.store.get(&Key::new(Kind::Node, None, &self.node)).await {
            Ok(node) => {
                let all = node.value.pointer("/status/podCIDRs").and_then(Value::as_array);
                let texts = all.into_iter().flatten().filter_map(Value::as_str);
                Ok(texts.filter_map(|t| t.parse().ok()).collect())
            }
            Err(StoreError::NotFound(_)) => Ok(Vec::new()),
            Err(e) => Err(e.into()),
        }
    }

    fn pong(&self) -> Reply {
        Reply::Pong { node: self.node.clone(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// Whether an ADD could be served. No wish: another plugin gives the addresses.
    async fn status(&self, wish: Option<&Wish>) -> Result<Reply, Refused> {
        // Without its datastore the agent keeps what is there, but hears of nothing new: pods that run may not reach
        // those made since. A lock is no such thing.
        let not_now = |r: Refused| {
            let limited = r.datastore && !r.locked;
            Refused { code: if limited { code::LIMITED } else { code::NOT_AVAILABLE }, ..r }
        };
        self.unlocked().await.map_err(not_now)?;
        // It can be read. Whether it can be written only a pod shows; the next one may have more luck.
        let last = self.unwritable.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, why)) = last.filter(|(when, _)| when.elapsed() < UNWRITABLE) {
            return Err(Refused {
                code: code::NOT_AVAILABLE,
                msg: format!("the last pod could not be recorded: {}", why.msg),
                ..why
            });
        }
        if let Some(wish) = wish {
            self.has_room(wish).await.map_err(not_now)?;
        }
        let mtu = self.dataplane.mtu(Duration::ZERO).await;
        mtu.map_err(|e| Refused::new(code::NOT_AVAILABLE, e, "see the agent's log"))?;
        if let Some(why) = self.dataplane.stuck() {
            let msg = format!("a new pod's policy could not be written: {why}");
            return Err(Refused::new(code::NOT_AVAILABLE, msg, "see the agent's log"));
        }
        Ok(self.pong())
    }

    async fn add(&self, a: &Attachment, wish: Wish, other: &Foreign) -> Result<Reply, Refused> {
        // What does not depend on each other is asked for at once.
        let (unlocked, promised) = tokio::join!(self.unlocked(), self.promised(a));
        unlocked?;
        self.settle(promised).await?;
        fail::point("agent.add.settled");
        let (known, mtu) = tokio::join!(self.not_elsewhere(a), self.dataplane.mtu(MTU));
        let known = known?;
        let mtu = mtu.map_err(|e| {
            Refused::new(code::TRY_AGAIN, e, "try again; if it stays so, see the agent's log")
        })?;
        let host_ifname = self.host_ifname(a).await?;
        self.not_anothers(a, &host_ifname).await?;
        let foreign = !other.given.is_empty();
        let given = if foreign {
            let addresses: Vec<IpNet> = other.given.iter().map(|n| IpNet::from(n.addr())).collect();
            // Reserved before endpoints are looked at: of two ADDs for one address either the second finds this, or the
            // first has been registered and its endpoint is found.
            self.reserve(a, &addresses, true)?;
            self.nobody_elses(a, &addresses).await?;
            self.tell_overlaps(a, other).await;
            Given { addresses, again: false, announced: false }
        } else {
            // An endpoint of the pod's former sandbox stays in force until it is replaced.
            let given = self.assign_unheld(a, wish, !known).await?;
            self.not_foreign(a, &given).await?;
            given
        };
        fail::point("agent.add.assigned");
        let Given { addresses, again, announced } = given;
        if !(known || again || announced) {
            self.announce(a, host_ifname.clone(), addresses.clone()).await;
        }
        self.remember(a, &addresses, foreign, mtu).await;
        Ok(Reply::Added { addresses, host_ifname, mtu, again })
    }

    /// Refuses a registration with addresses that were taken back since this connection was given them. What the agent
    /// remembers says it: each release of a handle ends the memory of it.
    fn still_given(&self, a: &Attachment, addresses: &[IpNet], caller: Caller) -> Result<(), Refused> {
        if !caller.was_given {
            return Ok(());
        }
        let kept = self.attached.of(a);
        let has = |n: &IpNet| kept.as_ref().is_some_and(|k| k.addresses.iter().any(|h| h.addr() == n.addr()));
        match addresses.iter().find(|n| !has(n)) {
            None => Ok(()),
            Some(lost) => Err(Refused::new(
                code::TRY_AGAIN,
                format!(
                    "{} was taken back from container {} before this ADD was done",
                    lost.addr(),
                    a.container_id
                ),
                "nothing is left of this ADD; it is tried again",
            )),
        }
    }

    async fn ipam_add(&self, a: &Attachment, wish: Wish) -> Result<Reply, Refused> {
        let (unlocked, promised) = tokio::join!(self.unlocked(), self.promised(a));
        unlocked?;
        self.settle(promised).await?;
        let Given { addresses, again, .. } = self.assign_unheld(a, wish, false).await?;
        self.remember(a, &addresses, false, 0).await;
        Ok(Reply::Added { addresses, host_ifname: String::new(), mtu: 0, again })
    }

    /// What the names of new pod devices begin with.
    pub(super) fn pod_prefix(&self) -> String {
        self.dataplane.pod_prefixes().into_iter().next().unwrap_or_else(|| PREFIX.to_owned())
    }

    /// What the names of pod devices may begin with: the setting of today, and the default, under which one may have been
    /// made.
    pub(super) fn known_prefixes(&self) -> Vec<String> {
        let mut all = self.dataplane.pod_prefixes();
        if !all.iter().any(|p| p == PREFIX) {
            all.push(PREFIX.to_owned());
        }
        all
    }

    /// Whether a plugin may have a device deleted: its name says that it is a pod's.
    fn is_pods(&self, device: &HostDevice) -> bool {
        let pods = self.known_prefixes().iter().any(|p| device.name.starts_with(p));
        if !pods {
            tracing::warn!(device = %device.name, "asked to delete a device that is no pod's; left alone");
        }
        pods
    }

    /// Takes everything of the attachment back. With no datastore to write to, this is promised on disk: pods must be
    /// able to go while it is away.
    async fn del(
        &self,
        a: &Attachment,
        device: Option<HostDevice>,
        addresses_only: bool,
    ) -> Result<Reply, Refused> {
        let forgotten = async {
            // Whatever becomes of the rest.
            let begin = async {
                if let Some(device) = device.as_ref().filter(|d| self.is_pods(d)) {
                    self.deletions.start(device.clone()).await;
                }
            };
            let ((), unlocked) = tokio::join!(begin, self.unlocked());
            fail::point("agent.del.device");
            unlocked?;
            self.forget(a, addresses_only, device.as_ref()).await
        };
        match forgotten.await {
            Ok(()) => {
                self.unnote(a).await;
                Ok(Reply::Deleted)
            }
            Err(refused) if refused.datastore => {
                self.note(a, addresses_only, &refused).await?;
                if !addresses_only {
                    // Promised is as good as done: a registration on its way is too late.
                    self.claims.end(a);
                }
                Ok(Reply::Deleted)
            }
            Err(refused) => Err(refused),
        }
    }

    /// Endpoint, device and addresses go, in this order: an address is given back when nobody can send from it.
    /// `going` is a device whose deletion has begun.
    pub(super) async fn forget(
        &self,
        a: &Attachment,
        addresses_only: bool,
        going: Option<&HostDevice>,
    ) -> Result<(), Refused> {
        if !addresses_only {
            self.claims.end(a);
        }
        if !addresses_only {
            let device = match self.remove_endpoint(a).await? {
                Some(device) => Some(device),
                None => self.remove_endpoint_of_former_name(a).await?,
            };
            if let Some(device) = device.filter(|d| going != Some(d)) {
                self.deletions.start(device).await;
            }
        }
        fail::point("agent.del.endpoint");
        // The pod's next sandbox was promised these addresses while the datastore was away.
        if let Some(next) = self.attached.promised(&a.handle()) {
            self.record(&next).await?;
        }
        let borrowed = self.attached.of(a).filter(Kept::is_borrowed);
        self.release(a).await?;
        if let Some(Kept { handle, former, .. }) = borrowed {
            // Nobody came to hand these over: they are this one's still.
            if !addresses_only {
                self.remove_endpoint(&Attachment { container_id: former, ..a.clone() }).await?;
            }
            self.release_handle(&handle, "").await?;
        }
        self.attached.forget(a).await;
        fail::point("agent.del.released");
        Ok(())
    }

    /// Takes back an ADD that was never finished: the plugin of this connection is gone. Who added or deleted the
    /// container since has seen to it.
    pub(super) async fn undo(&self, a: &Attachment, connection: u64) {
        let _turn = self.turn(a).await;
        if !self.claims.take(a, connection) {
            return;
        }
        tracing::info!(container = %a.container_id, cause = "its plugin ended before it was done", "ADD taken back");
        if let Err(refused) = self.forget(a, false, None).await
            && let Err(worse) = self.note(a, false, &refused).await
        {
            tracing::warn!(container = %a.container_id, "its addresses stay until its DEL: {}", worse.msg);
        }
    }

    pub(super) fn ghosts(&self) -> std::sync::MutexGuard<'_, Ghosts> {
        // Replaced whole, so a panic leaves it usable.
        self.ghosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other call works on this container.
    pub(super) async fn turn(&self, a: &Attachment) -> OwnedMutexGuard<()> {
        self.turn_of(&handle::part(&a.container_id)).await
    }

    /// The turns of whoever this handle may be of: one, but for a handle of an earlier agent that can be read in more ways.
    /// In order, so that two who wait for the same do not wait for each other.
    pub(super) async fn turns_of_handle(&self, handle: &str) -> Vec<OwnedMutexGuard<()>> {
        let mut containers: BTreeSet<String> =
            self.attached.owners(handle).iter().map(|a| handle::part(&a.container_id).into_owned()).collect();
        match handle::parts(handle) {
            Some((_, container)) => drop(containers.insert(container.to_owned())),
            None => {
                containers.extend(handle.split('.').skip(1).map(|p| handle::part(p).into_owned()));
                containers.extend(handle.split_once('.').map(|(_, rest)| handle::part(rest).into_owned()));
            }
        }
        let mut turns = Vec::new();
        for container in containers {
            turns.push(self.turn_of(&container).await);
        }
        turns
    }

    /// [`Self::turn`], unless another call works on this container.
    pub(super) fn turn_now(&self, a: &Attachment) -> Option<OwnedMutexGuard<()>> {
        self.lock_of(&handle::part(&a.container_id)).try_lock_owned().ok()
    }

    /// `container`: as it stands in handles.
    async fn turn_of(&self, container: &str) -> OwnedMutexGuard<()> {
        self.lock_of(container).lock_owned().await
    }

    fn lock_of(&self, container: &str) -> Arc<Mutex<()>> {
        // Poisoned only if inserting into the map panicked, which leaves the map usable.
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.retain(|_, l| l.strong_count() > 0);
        let slot = busy.entry(container.to_owned()).or_default();
        slot.upgrade().unwrap_or_else(|| {
            let lock = Arc::new(Mutex::new(()));
            *slot = Arc::downgrade(&lock);
            lock
        })
    }

    /// Refuses while the cluster is locked.
    pub(super) async fn unlocked(&self) -> Result<(), Refused> {
        match self.store.get_as::<ClusterInformationSpec>(None, "default").await {
            Ok(c) if c.resource.spec.datastore_ready == Some(false) => Err(Refused::locked()),
            Ok(_) | Err(StoreError::NotFound(_)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}
