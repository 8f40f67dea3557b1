//! The engine: one thread that owns inputs, what is known of the kernel, and the tunnel. It waits for something to
//! happen, takes everything that has happened, decides once and writes once.
//!
//! `mod` is the loop, `view` what is known of the kernel, `apply` the writing, `retry` what failed and when to try it
//! again, `report` what is said about it.

mod apply;
mod fate;
mod report;
mod retry;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use brindle_config_core::{
    duration,
    status::{EncapPath, RouteStatus},
    store::SyncEvent,
};
use brindle_felix_core::{
    desire::{Desired, Tunnel, desire, ownership},
    host::Reach,
    inputs::{Impact, Inputs},
    ipip::table::Ends,
    owner::Ownership,
    path::reach,
    plan::Held,
    route::{Dev, RouteKey, Target},
};
use brindle_kernel::{
    api::{Events, Kernel, Linux},
    netlink::NetlinkError,
};
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};

use self::{
    retry::{Fights, Retries},
    view::{News, View},
};
use crate::{
    filter::Filter,
    handle::{FelixInput, Handle, Report},
    look::{Intent, longest},
    tunnel::{Carrier, TunnelManager},
};

/// Batches waiting for the engine; beyond that senders wait.
const QUEUE: usize = 256;
/// Batches decided on together at most.
const TOGETHER: usize = 1024;
/// Full read-back, FelixConfiguration.routeRefreshInterval's default.
const REFRESH: Duration = Duration::from_secs(90);
/// Up to so many devices are read one by one, more with everything else.
const SINGLY: usize = 4;
/// Up to so many learned prefixes the report's paths are always fresh, beyond that at most once a second.
const FRESH_PATHS: usize = 1000;

/// Next hops out of reach that are watched at most.
const WATCHED: usize = 10_000;

/// How packets across segments are encapsulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarrierPolicy {
    /// The kernel's ipip if it has it, else the process.
    Auto,
    Kernel,
    User,
}

/// What felix must be told to start.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node: String,
    pub state_dir: PathBuf,
    pub carrier: CarrierPolicy,
    /// Further arguments for the process, such as the form of its log.
    pub carrier_args: Vec<String>,
    /// What shows that a BIRD runs on this node, in words; with none of it, the routes a BIRD has left stay.
    pub bird: Option<fn() -> Option<String>>,
}

/// What is done by other programs.
pub(crate) struct Outside {
    pub(crate) carrier: Box<dyn Carrier>,
    pub(crate) filter: Box<dyn Filter>,
}

/// Felix could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot start felix: {0}")]
    Netlink(#[from] NetlinkError),
    #[error("cannot start felix's threads: {0}")]
    Thread(#[from] std::io::Error),
}

/// Starts felix in the network namespace of the calling thread.
pub fn spawn(settings: &Settings) -> Result<Handle, StartError> {
    let (kernel, monitor) = Linux::open()?;
    spawn_on(settings, Box::new(kernel), Box::new(monitor))
}

/// The same with what was opened before in that namespace; `events` is to hear all there is from before the start.
pub fn spawn_on(
    settings: &Settings,
    kernel: Box<dyn Kernel>,
    events: Box<dyn Events>,
) -> Result<Handle, StartError> {
    let inbox = crate::carrier::Inbox::default();
    let outside = Outside {
        carrier: Box::new(crate::carrier::Process::new(settings, Arc::clone(&inbox))),
        filter: Box::new(crate::filter::Tables::default()),
    };
    let handle = start(settings, kernel, events, outside)?;
    // Cannot be set already: it was made here.
    drop(inbox.set(handle.inputs.downgrade()));
    Ok(handle)
}

/// Starts the engine on any kernel.
pub(crate) fn start(
    settings: &Settings,
    kernel: Box<dyn Kernel>,
    events: Box<dyn Events>,
    outside: Outside,
) -> Result<Handle, StartError> {
    let (tx, rx) = mpsc::channel(QUEUE);
    let (report_tx, report) = watch::channel(Report::default());
    let engine = Engine::new(settings, kernel, outside, report_tx);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let waker = events.waker();
    listen(events, tx.downgrade())?;
    std::thread::Builder::new().name("felix".into()).spawn(move || {
        runtime.block_on(engine.run(rx));
        // The listener finds nobody to report to and ends.
        waker.wake();
    })?;
    Ok(Handle { inputs: tx, report })
}

/// A thread that turns netlink notifications into inputs until felix is gone.
fn listen(mut events: Box<dyn Events>, inputs: mpsc::WeakSender<FelixInput>) -> std::io::Result<()> {
    let run = move || {
        loop {
            let input = match events.next(None) {
                Ok(events) => FelixInput::Kernel(events),
                Err(e @ NetlinkError::Overrun { .. }) => FelixInput::Resync(e.to_string()),
                Err(e) => {
                    // Not expected to pass; do not spin on it.
                    std::thread::sleep(Duration::from_secs(1));
                    FelixInput::Resync(e.to_string())
                }
            };
            match inputs.upgrade() {
                Some(tx) if tx.blocking_send(input).is_ok() => {}
                Some(_) | None => return,
            }
        }
    };
    std::thread::Builder::new().name("felix-monitor".into()).spawn(run).map(drop)
}

/// What must be done again.
#[derive(Debug, Default)]
struct Dirty {
    /// Read everything back first.
    read: bool,
    /// Read the routes of these devices (by index) first.
    devices: BTreeSet<u32>,
    /// Decide everything anew (implies comparing everything).
    all: bool,
    /// Decide on pods and blocks anew.
    base: bool,
    /// Decide on these learned prefixes anew.
    prefixes: BTreeSet<IpNet>,
    /// Compare these entries.
    keys: BTreeSet<RouteKey>,
    /// Compare everything.
    compare: bool,
    /// Look at settings, the tunnel and the report again.
    rest: bool,
    /// Everything has just been read: what is known of the kernel does not depend on what became of earlier writes.
    fresh: bool,
}

impl Dirty {
    fn any(&self) -> bool {
        self.read
            || self.all
            || self.base
            || self.compare
            || self.rest
            || !self.devices.is_empty()
            || !self.prefixes.is_empty()
            || !self.keys.is_empty()
    }
}

/// Things other than routes that can fail.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Read,
    Tunnel,
    Host,
    Bulk,
    /// Settings of a device.
    Device(Dev),
    /// Addresses pods peer with, on a device.
    Peering(Dev),
}

pub(crate) struct Engine {
    kernel: Box<dyn Kernel>,
    tunnel: TunnelManager,
    report: watch::Sender<Report>,
    node: String,
    inputs: Inputs,
    store_in_sync: bool,
    fib_in_sync: bool,
    view: View,
    owner: Ownership,
    wanted: Desired,
    /// The tunnel device routes point to.
    device: Dev,
    /// How each next hop is reached: decides whether a change of the host bears on learned routes at all.
    reaches: BTreeMap<IpAddr, Reach>,
    /// Next hops that were out of reach when last looked at.
    lost: BTreeSet<IpAddr>,
    /// Next hops somebody wants to know about though no path has them.
    located: BTreeSet<IpAddr>,
    /// Addresses of this host on devices of pods; `None`: nobody has said, and what is there stays.
    peering: Option<BTreeMap<String, Vec<IpAddr>>>,
    /// Devices (by index) and what was set for them.
    set: BTreeMap<u32, apply::Set>,
    host_set: bool,
    held: BTreeMap<RouteKey, Held>,
    /// Routes of ours that somebody else's with a better metric keep from being used.
    outranked: BTreeMap<RouteKey, Held>,
    bird: Option<fn() -> Option<String>>,
    dirty: Dirty,
    routes_failed: Retries<RouteKey>,
    parts_failed: Retries<Part>,
    fights: Fights<RouteKey>,
    recheck_at: Option<Instant>,
    refresh_at: Option<Instant>,
    /// The report's paths: whether they are out of date, since when they are fresh, when to compute them.
    paths: Vec<EncapPath>,
    paths_stale: bool,
    paths_from: Option<Instant>,
    paths_at: Option<Instant>,
    asked: Vec<oneshot::Sender<Report>>,
    status: RouteStatus,
}

impl Engine {
    fn new(
        settings: &Settings,
        kernel: Box<dyn Kernel>,
        outside: Outside,
        report: watch::Sender<Report>,
    ) -> Self {
        let inputs = Inputs::new(settings.node.clone());
        Self {
            tunnel: TunnelManager::new(settings, outside.carrier, outside.filter),
            owner: ownership(&inputs),
            inputs,
            kernel,
            report,
            node: settings.node.clone(),
            store_in_sync: false,
            fib_in_sync: false,
            view: View::default(),
            wanted: Desired::default(),
            device: "tunl0".into(),
            reaches: BTreeMap::new(),
            lost: BTreeSet::new(),
            located: BTreeSet::new(),
            peering: None,
            set: BTreeMap::new(),
            host_set: false,
            held: BTreeMap::new(),
            outranked: BTreeMap::new(),
            bird: settings.bird,
            dirty: Dirty { read: true, all: true, ..Dirty::default() },
            routes_failed: Retries::default(),
            parts_failed: Retries::default(),
            fights: Fights::default(),
            recheck_at: None,
            refresh_at: None,
            paths: Vec::new(),
            paths_stale: true,
            paths_from: None,
            paths_at: None,
            asked: Vec::new(),
            status: RouteStatus::default(),
        }
    }

    async fn run(mut self, mut rx: mpsc::Receiver<FelixInput>) {
        loop {
            let sleep = async {
                match self.deadline() {
                    Some(t) => tokio::time::sleep_until(t.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                input = rx.recv() => match input {
                    Some(input) => self.take(input, Instant::now()),
                    None => return,
                },
                () = sleep => {}
            }
            // Whatever else has happened meanwhile is decided on together.
            for _ in 0..TOGETHER {
                match rx.try_recv() {
                    Ok(input) => self.take(input, Instant::now()),
                    Err(_) => break,
                }
            }
            self.step(Instant::now());
        }
    }

    /// Does what is to be done by now. The one place from which anything is written, and its condition.
    fn step(&mut self, now: Instant) {
        if self.store_in_sync {
            self.on_time(now);
            if self.dirty.any() && !self.parts_failed.waits(&Part::Read, now) {
                self.reconcile(now);
            }
        }
        self.answer(now);
    }

    /// Answers those who asked, with counters as of now.
    fn answer(&mut self, now: Instant) {
        if self.asked.is_empty() {
            return;
        }
        self.publish(now);
        for who in self.asked.drain(..) {
            // Who has gone away needs no answer.
            drop(who.send(self.report.borrow().clone()));
        }
    }

    /// When something is to be done unasked. Before the store is in sync: never.
    fn deadline(&self) -> Option<Instant> {
        // Nothing is decided until the kernel can be read: whatever else is due waits for that.
        if let Some(t) = self.parts_failed.at(&Part::Read) {
            return Some(t).filter(|_| self.store_in_sync);
        }
        let times = [
            self.routes_failed.next(),
            self.parts_failed.next(),
            self.recheck_at,
            self.refresh_at,
            self.paths_at,
        ];
        times.into_iter().flatten().min().filter(|_| self.store_in_sync)
    }

    fn on_time(&mut self, now: Instant) {
        let due = |t: Option<Instant>| t.is_some_and(|t| t <= now);
        let routes: Vec<RouteKey> = self.routes_failed.due(now).copied().collect();
        // A write that was refused means that something is not as we believe.
        self.dirty.read |= !routes.is_empty();
        self.dirty.keys.extend(routes);
        for part in self.parts_failed.due(now) {
            self.dirty.rest = true;
            self.dirty.read |= matches!(part, Part::Read | Part::Bulk);
        }
        if due(self.recheck_at) {
            self.recheck_at = None;
            self.dirty.compare = true;
        }
        if due(self.paths_at) {
            self.paths_at = None;
            self.dirty.rest = true;
        }
        if due(self.refresh_at) {
            self.refresh_at = None;
            self.tunnel.recheck();
            self.set.clear();
            self.host_set = false;
            self.dirty.read = true;
        }
        if self.refresh_at.is_none() {
            self.refresh_at = self.refresh_interval().map(|d| now + d);
        }
    }

    /// routeRefreshInterval plus up to a tenth, by node, since the nodes of a cluster tend to start together.
    fn refresh_interval(&self) -> Option<Duration> {
        let text = self.inputs.felix().route_refresh_interval;
        let interval = text.as_deref().and_then(|t| duration::parse(t).ok()).unwrap_or(REFRESH);
        let mut hasher = std::hash::DefaultHasher::new();
        self.node.hash(&mut hasher);
        let jitter = interval.mul_f64(0.1 * f64::from(hasher.finish() as u16) / f64::from(u16::MAX));
        (!interval.is_zero()).then(|| interval + jitter)
    }

    fn take(&mut self, input: FelixInput, now: Instant) {
        match input {
            FelixInput::Store(events) => {
                for e in &events {
                    if matches!(e, SyncEvent::InSync) && !self.store_in_sync {
                        self.store_in_sync = true;
                        tracing::info!(
                            old = "waiting",
                            new = "in sync",
                            cause = "snapshot complete",
                            "felix"
                        );
                    }
                    match self.inputs.apply(e) {
                        Impact::Nothing => {}
                        Impact::Base => self.dirty.base = true,
                        Impact::Everything => self.dirty.all = true,
                    }
                }
            }
            FelixInput::Fib(update) => {
                if update.reset {
                    self.dirty.prefixes.extend(self.inputs.clear_fib());
                    self.fib_in_sync = false;
                    self.located.clear();
                }
                for next_hop in update.locate {
                    if self.located.len() < WATCHED && self.located.insert(next_hop) {
                        self.reaches.insert(next_hop, reach(&self.inputs, &self.view.host, next_hop));
                        // The report is made anew.
                        self.dirty.rest = true;
                    }
                }
                for (prefix, next_hops) in update.changes {
                    let prefix = prefix.trunc();
                    if self.inputs.set_fib(prefix, next_hops) {
                        self.dirty.prefixes.insert(prefix);
                    }
                }
                if update.in_sync && !self.fib_in_sync {
                    self.fib_in_sync = true;
                    self.dirty.compare = true;
                }
            }
            FelixInput::Peering(wanted) => {
                self.dirty.rest |= self.peering.as_ref() != Some(&wanted);
                self.peering = Some(wanted);
            }
            FelixInput::Kernel(events) => self.heard(&events, now),
            FelixInput::Resync(why) => {
                tracing::warn!(cause = %why, "reading the kernel again");
                self.tunnel.recheck();
                self.dirty.read = true;
            }
            FelixInput::Ask(who) => self.asked.push(who),
            // As with the other questions, who has gone away needs no answer.
            FelixInput::Fate(prefix, who) => drop(who.send(self.fate(prefix))),
            FelixInput::Intent(to, who) => {
                let wanted = longest(&self.wanted.routes, to).cloned();
                // Who has gone away needs no answer.
                drop(who.send(Intent { wanted, owner: self.owner.clone() }));
            }
        }
    }

    /// News from the kernel.
    fn heard(&mut self, events: &[brindle_kernel::netlink::Event], now: Instant) {
        // Until the first reading there is nothing the news could refer to; it will see all of it.
        if self.dirty.read && self.view.links.is_empty() {
            return;
        }
        let mut news = News::default();
        for e in events {
            self.view.take(e, &self.owner, now, &mut news);
        }
        self.learn(&mut news, now);
    }

    /// Draws the conclusions.
    fn learn(&mut self, news: &mut News, now: Instant) {
        self.dirty.read |= news.resync;
        self.dirty.devices.append(&mut news.bounced);
        for key in news.by_others.intersection(&news.keys) {
            self.undone(*key, now);
        }
        self.dirty.keys.append(&mut news.keys);
        for dev in std::mem::take(&mut news.devices) {
            self.dirty.rest = true;
            if let Some(index) = self.view.names.index(&dev) {
                self.set.remove(&index);
            }
            self.parts_failed.hasten(&Part::Device(Dev::clone(&dev)), now);
            if self.owner.is_pod(&dev) {
                // What the pod announces waits for its device as well.
                let waiting = self.held.iter().filter(|(_, h)| h.route.devices().any(|d| *d == *dev));
                self.dirty.keys.extend(waiting.map(|(k, _)| *k));
                let of_dev = self.wanted.endpoints.values().filter(|e| e.dev == dev);
                for net in of_dev.flat_map(|e| &e.addresses).map(IpNet::trunc) {
                    let keys = self.wanted.routes.range((net, 0)..=(net, u32::MAX)).map(|(k, _)| *k);
                    for k in keys {
                        self.routes_failed.hasten(&k, now);
                        self.dirty.keys.insert(k);
                    }
                }
            } else {
                self.dirty.compare = true;
            }
        }
        if news.host {
            self.host_changed();
        }
    }

    /// Somebody changed an entry: if it is one of ours that is wanted, it is repaired, and a fight is noticed.
    fn undone(&mut self, key: RouteKey, now: Instant) {
        let Some(want) = self.wanted.routes.get(&key) else { return };
        if self.view.actual.get(&key) == Some(want) || !self.view.all_up(want) {
            return;
        }
        self.status.repairs += 1;
        match self.fights.undone(&key, now) {
            None => tracing::info!(route = %want, cause = "somebody else changed it", "repairing a route"),
            Some(pause) => {
                let error = format!("{want}: somebody keeps changing it; find out who (ip monitor route)");
                if self.routes_failed.postpone(key, error.clone(), now + pause) {
                    tracing::warn!("{error}");
                }
            }
        }
    }

    /// Devices, addresses or foreign routes changed: does any next hop lie elsewhere now?
    fn host_changed(&mut self) {
        let old = std::mem::take(&mut self.reaches);
        self.read_reaches();
        self.dirty.all |= old != self.reaches;
        self.dirty.base = true;
    }

    fn read_reaches(&mut self) {
        let mut all = self.inputs.next_hops();
        // A next hop out of reach has no routes any more; it is watched until it is back.
        let lost = self.lost.iter().filter(|n| !all.contains(*n)).copied().collect::<Vec<_>>();
        all.extend(lost);
        all.extend(&self.located);
        self.reaches = all.into_iter().map(|n| (n, reach(&self.inputs, &self.view.host, n))).collect();
        self.lost = self
            .reaches
            .iter()
            .filter(|(_, r)| **r == Reach::Nowhere)
            .map(|(n, _)| *n)
            .take(WATCHED)
            .collect();
    }

    /// Decides and writes what is dirty.
    fn reconcile(&mut self, now: Instant) {
        if let Err(e) = self.read(now) {
            // Nothing is decided, and so nothing written, on what may no longer be true.
            self.dirty.read = true;
            self.failed(Part::Read, format!("cannot read the kernel: {e}"), now);
            self.publish(now);
            return;
        }
        self.parts_failed.done(&Part::Read);
        let mut dirty = std::mem::take(&mut self.dirty);
        self.paths_stale |= dirty.all || !dirty.prefixes.is_empty();
        self.decide(&mut dirty, now);
        self.apply_settings(now);
        self.apply_peering(&mut dirty, now);
        self.apply_routes(&dirty, now);
        self.end_tunnel(now);
        self.tunnel.guard(self.wanted.tunnel.as_ref(), &self.view.links);
        // What was due has had its turn.
        self.routes_failed.rearm(now);
        self.parts_failed.rearm(now);
        self.publish(now);
    }

    /// Reads back what has to be.
    fn read(&mut self, now: Instant) -> Result<(), NetlinkError> {
        let owner = ownership(&self.inputs);
        if owner != self.owner {
            // Who owns what decides which routes count as the host's.
            self.owner = owner;
            self.dirty.read = true;
        }
        if self.dirty.read || self.dirty.devices.len() > SINGLY {
            self.view.read(&mut *self.kernel, &self.owner, now)?;
            self.set.retain(|i, _| self.view.links.contains_key(i));
            let prefixes = std::mem::take(&mut self.dirty.prefixes);
            self.dirty = Dirty { all: true, fresh: true, prefixes, ..Dirty::default() };
            return Ok(());
        }
        let mut news = News::default();
        for index in &self.dirty.devices {
            self.view.read_device(&mut *self.kernel, *index, &self.owner, &mut news)?;
        }
        self.dirty.devices.clear();
        self.learn(&mut news, now);
        Ok(())
    }

    /// Brings what is wanted up to date, and the tunnel device, which must be there before routes point to it.
    fn decide(&mut self, dirty: &mut Dirty, now: Instant) {
        // Each round that changes the device changes what is decided on; two rounds settle it.
        for _ in 0..4 {
            let device = self.tunnel.device(&self.view.links);
            if *device != *self.device {
                self.device = device.into();
                dirty.all = true;
            }
            if std::mem::take(&mut dirty.all) {
                self.wanted = desire(&self.inputs, &self.view.host, &self.device);
                self.read_reaches();
                dirty.compare = true;
            } else {
                if std::mem::take(&mut dirty.base) {
                    dirty.keys.extend(self.wanted.refresh_base(&self.inputs, &self.view.host, &self.device));
                }
                let prefixes = std::mem::take(&mut dirty.prefixes);
                for nh in prefixes.iter().flat_map(|p| self.inputs.next_hops_of(p)) {
                    let reach =
                        self.reaches.entry(*nh).or_insert_with(|| reach(&self.inputs, &self.view.host, *nh));
                    if *reach == Reach::Nowhere && self.lost.len() < WATCHED {
                        self.lost.insert(*nh);
                    }
                }
                let touched = self.wanted.refresh_fib(&self.inputs, &self.view.host, &self.device, prefixes);
                dirty.keys.extend(touched);
            }
            if self.parts_failed.waits(&Part::Tunnel, now) {
                return;
            }
            // One that is not wanted any more goes when no route needs it.
            let Some(want) = self.wanted.tunnel.clone().map(|t| self.keep_carried(t)) else { return };
            match self.tunnel.reconcile(Ok(&want), &mut *self.kernel, &self.view.links, &self.view.addrs) {
                Ok(changed) => {
                    self.parts_failed.done(&Part::Tunnel);
                    if !changed {
                        return;
                    }
                    if let Err(e) = self.view.read_links(&mut *self.kernel, now) {
                        self.failed(Part::Read, format!("cannot read devices: {e}"), now);
                        self.dirty.read = true;
                        return;
                    }
                    dirty.all = true;
                }
                Err(e) => return self.failed(Part::Tunnel, format!("tunnel: {e}"), now),
            }
        }
    }

    /// Ends the tunnel if none is wanted: after the routes were written, so that packets have another way before theirs goes.
    /// That its device is gone is heard as any other news.
    fn end_tunnel(&mut self, now: Instant) {
        if self.wanted.tunnel.is_some() || self.parts_failed.waits(&Part::Tunnel, now) {
            return;
        }
        let why = self.inputs.why_no_ipip();
        match self.tunnel.reconcile(Err(&why), &mut *self.kernel, &self.view.links, &self.view.addrs) {
            Ok(_) => drop(self.parts_failed.done(&Part::Tunnel)),
            Err(e) => self.failed(Part::Tunnel, format!("tunnel: {e}"), now),
        }
    }

    /// Until the speaker is in sync a carrier is also told the routes found in the kernel: what a restarted agent has
    /// not learnt again yet is still forwarded.
    fn keep_carried(&self, mut tunnel: Tunnel) -> Tunnel {
        if self.fib_in_sync {
            return tunnel;
        }
        for route in self.view.actual.values() {
            let (IpNet::V4(dst), Target::Via(hops)) = (route.dst, &route.target) else { continue };
            let through = hops.iter().filter(|h| h.dev == self.device);
            let ends: Ends = through
                .filter_map(|h| match h.via {
                    IpAddr::V4(via) if via != tunnel.local => {
                        Some(std::iter::repeat_n(via, usize::from(h.weight)))
                    }
                    IpAddr::V4(_) | IpAddr::V6(_) => None,
                })
                .flatten()
                .collect();
            if !ends.is_empty() && !tunnel.routes.contains_key(&dst) {
                Arc::make_mut(&mut tunnel.routes).insert(dst, ends);
            }
        }
        tunnel
    }

    fn failed(&mut self, part: Part, error: String, now: Instant) {
        if self.parts_failed.failed(part, error.clone(), now) {
            tracing::warn!("{error}");
        }
    }
}

#[cfg(test)]
mod tests;
