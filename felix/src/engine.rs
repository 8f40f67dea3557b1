//! The engine: one thread that owns inputs, what is known of the kernel, and the tunnel. It waits for something to
//! happen, takes everything that has happened, decides once and writes once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use brindle_config_core::{
    Key,
    status::{EncapStatus, RouteStatus},
    store::SyncEvent,
};
use brindle_felix_core::{
    desire::{Desired, Tunnel, desire, ownership},
    host::{HostView, Link as HostLink},
    inputs::Inputs,
    plan::{Plan, PlanCx, Step},
    route::{Route, RouteKey, Target},
};
use brindle_kernel::netlink::{Addr, Event, Group, Link, Monitor, NetlinkError, RouteChange};
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};

use crate::{
    convert::{self, Names},
    handle::{FelixInput, Handle, Report},
    platform::{Linux, Platform, PlatformError},
    tunnel::{Carrier, TunnelManager},
};

/// Batches waiting for the engine; beyond that senders wait.
const QUEUE: usize = 256;
/// A pod device's unknown routes are somebody's work in progress for this long (Calico's route grace).
const GRACE: Duration = Duration::from_secs(10);
/// Full read-back, FelixConfiguration.routeRefreshInterval's default.
const REFRESH: Duration = Duration::from_secs(90);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Refusals shown in the report.
const SHOWN: usize = 20;

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
}

/// Starts felix in the network namespace of the calling thread.
pub fn spawn(settings: &Settings) -> Result<Handle, PlatformError> {
    let platform = Linux::open()?;
    let monitor =
        Monitor::open(&[Group::Links, Group::AddrsV4, Group::AddrsV6, Group::RoutesV4, Group::RoutesV6])?;
    let inbox = crate::carrier::Inbox::default();
    let carrier = Box::new(crate::carrier::Process::new(&settings.state_dir, Arc::clone(&inbox)));
    let handle = start(settings, Box::new(platform), carrier)?;
    // Cannot be set already: it was made here.
    drop(inbox.set(handle.inputs.downgrade()));
    watch_kernel(monitor, handle.inputs.downgrade())?;
    Ok(handle)
}

/// Starts the engine on any platform.
pub(crate) fn start(
    settings: &Settings,
    platform: Box<dyn Platform>,
    carrier: Box<dyn Carrier>,
) -> Result<Handle, PlatformError> {
    let (tx, rx) = mpsc::channel(QUEUE);
    let (report_tx, report) = watch::channel(Report::default());
    let engine = Engine::new(settings, platform, carrier, report_tx);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|e| PlatformError(format!("cannot start felix: {e}")))?;
    std::thread::Builder::new()
        .name("felix".into())
        .spawn(move || runtime.block_on(engine.run(rx)))
        .map_err(|e| PlatformError(format!("cannot start felix's thread: {e}")))?;
    Ok(Handle { inputs: tx, report })
}

/// A thread that turns netlink notifications into inputs until felix is gone.
fn watch_kernel(mut monitor: Monitor, inputs: mpsc::WeakSender<FelixInput>) -> Result<(), PlatformError> {
    std::thread::Builder::new()
        .name("felix-monitor".into())
        .spawn(move || {
            loop {
                let input = match monitor.next(None) {
                    Ok(events) if events.is_empty() => continue,
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
        })
        .map(drop)
        .map_err(|e| PlatformError(format!("cannot start felix's monitor thread: {e}")))
}

/// What must be looked at again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Dirty {
    /// Decide and compare again.
    plan: bool,
    /// Read devices and addresses first.
    links: bool,
    /// Read the whole table first.
    routes: bool,
}

struct Engine {
    platform: Box<dyn Platform>,
    tunnel: TunnelManager,
    report: watch::Sender<Report>,
    inputs: Inputs,
    store_in_sync: bool,
    fib_in_sync: bool,
    links: Vec<Link>,
    addrs: Vec<Addr>,
    names: Names,
    /// The main table as last read and as changed since.
    actual: BTreeMap<RouteKey, Route>,
    /// When a pod device was first seen, by index.
    seen: BTreeMap<u32, Instant>,
    /// Devices (by index) whose settings were written for these endpoints.
    set: BTreeSet<u32>,
    host_set: bool,
    dirty: Dirty,
    retry_after: Duration,
    retry_at: Option<Instant>,
    recheck_at: Option<Instant>,
    refresh_at: Instant,
    status: RouteStatus,
}

impl Engine {
    fn new(
        settings: &Settings,
        platform: Box<dyn Platform>,
        carrier: Box<dyn Carrier>,
        report: watch::Sender<Report>,
    ) -> Self {
        Self {
            tunnel: TunnelManager::new(settings, carrier),
            inputs: Inputs::new(settings.node.clone()),
            platform,
            report,
            store_in_sync: false,
            fib_in_sync: false,
            links: Vec::new(),
            addrs: Vec::new(),
            names: Names::default(),
            actual: BTreeMap::new(),
            seen: BTreeMap::new(),
            set: BTreeSet::new(),
            host_set: false,
            dirty: Dirty { plan: true, links: true, routes: true },
            retry_after: RETRY_FIRST,
            retry_at: None,
            recheck_at: None,
            refresh_at: Instant::now() + REFRESH,
            status: RouteStatus::default(),
        }
    }

    async fn run(mut self, mut rx: mpsc::Receiver<FelixInput>) {
        loop {
            let deadline =
                [self.retry_at, self.recheck_at, Some(self.refresh_at)].into_iter().flatten().min();
            let sleep = async {
                match deadline {
                    Some(t) => tokio::time::sleep_until(t.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                input = rx.recv() => match input {
                    Some(input) => self.take(input),
                    None => return,
                },
                () = sleep => self.on_time(Instant::now()),
            }
            // Whatever else has happened meanwhile is decided on together.
            while let Ok(input) = rx.try_recv() {
                self.take(input);
            }
            if self.store_in_sync && self.dirty != Dirty::default() {
                self.reconcile();
                self.publish();
            }
        }
    }

    fn on_time(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|t| t <= now) {
            self.retry_at = None;
            self.dirty = Dirty { plan: true, links: true, routes: true };
        }
        if self.recheck_at.is_some_and(|t| t <= now) {
            self.recheck_at = None;
            self.dirty.plan = true;
        }
        if self.refresh_at <= now {
            // Spread over the nodes of a cluster, which tend to start together.
            let jitter = Duration::from_millis(u64::from(std::process::id() % 9000));
            self.refresh_at = now + REFRESH + jitter;
            self.tunnel.recheck();
            self.set.clear();
            self.host_set = false;
            self.dirty = Dirty { plan: true, links: true, routes: true };
        }
    }

    fn take(&mut self, input: FelixInput) {
        match input {
            FelixInput::Store(events) => {
                for e in &events {
                    if matches!(e, SyncEvent::InSync) && !self.store_in_sync {
                        self.store_in_sync = true;
                        tracing::info!(
                            old = "waiting",
                            new = "in sync",
                            cause = "datastore snapshot complete",
                            "felix"
                        );
                        self.dirty.plan = true;
                    }
                    self.dirty.plan |= self.inputs.apply(e);
                }
            }
            FelixInput::Fib(update) => {
                if update.reset {
                    self.inputs.clear_fib();
                    self.fib_in_sync = false;
                    self.dirty.plan = true;
                }
                for (prefix, next_hops) in update.changes {
                    self.dirty.plan |= self.inputs.set_fib(prefix, next_hops);
                }
                if update.in_sync && !self.fib_in_sync {
                    self.fib_in_sync = true;
                    self.dirty.plan = true;
                }
            }
            FelixInput::Kernel(events) => events.iter().for_each(|e| self.seen_in_kernel(e)),
            FelixInput::Resync(why) => {
                tracing::warn!(cause = %why, "reading the kernel again");
                self.dirty = Dirty { plan: true, links: true, routes: true };
            }
        }
    }

    fn seen_in_kernel(&mut self, event: &Event) {
        match event {
            Event::Link(_) | Event::LinkGone(_) | Event::Addr(_) | Event::AddrGone(_) => {
                // A device that goes takes its routes with it, and the kernel does not say so for IPv4.
                if let Event::LinkGone(l) | Event::Link(l @ Link { up: false, .. }) = event {
                    self.actual.retain(|_, r| !r.devices().any(|d| d == l.name));
                }
                self.dirty.links = true;
                self.dirty.plan = true;
            }
            Event::Route(r) | Event::RouteGone(r) => {
                let Some(route) = convert::from_kernel(r, &self.names) else { return };
                let key = route.key();
                let gone = matches!(event, Event::RouteGone(_));
                let changed = if gone {
                    // A replaced route's end may be told after the news of its successor.
                    let same = self.actual.get(&key).is_some_and(|a| a.target == route.target);
                    same && self.actual.remove(&key).is_some()
                } else {
                    self.actual.insert(key, route.clone()) != Some(route)
                };
                self.dirty.plan |= changed;
            }
        }
    }

    fn read(&mut self) -> Result<(), PlatformError> {
        if self.dirty.links || self.dirty.routes {
            self.links = self.platform.links()?;
            self.addrs = self.platform.addrs()?;
            self.names = Names::new(self.links.iter().map(|l| (l.index, l.name.clone())));
            let now = Instant::now();
            let links = &self.links;
            self.seen.retain(|i, _| links.iter().any(|l| l.index == *i));
            self.set.retain(|i| links.iter().any(|l| l.index == *i));
            for l in links {
                self.seen.entry(l.index).or_insert(now);
            }
        }
        if self.dirty.routes {
            let routes = self.platform.routes()?;
            self.actual = routes
                .iter()
                .filter_map(|r| convert::from_kernel(r, &self.names))
                .map(|r| (r.key(), r))
                .collect();
        }
        self.dirty = Dirty::default();
        Ok(())
    }

    fn host(&self) -> HostView {
        let owner = ownership(&self.inputs);
        let links = self.links.iter().map(|l| {
            let addresses = self.addrs.iter().filter(|a| a.link == l.index).map(|a| a.net).collect();
            (l.name.clone(), HostLink { up: l.up, mtu: l.mtu, addresses })
        });
        HostView::new(links.collect(), self.actual.values().filter(|r| !owner.owns(r)).cloned())
    }

    fn reconcile(&mut self) {
        let mut problems = Vec::new();
        let mut failed = Vec::new();
        // The tunnel device must exist before routes point to it: bounded rounds, as making it changes the links.
        let (mut host, mut wanted) = (HostView::default(), Desired::default());
        for _ in 0..3 {
            if let Err(e) = self.read() {
                self.dirty = Dirty { plan: true, links: true, routes: true };
                self.later(&[format!("cannot read the kernel: {e}")]);
                return;
            }
            host = self.host();
            let device = self.tunnel.device(&self.links);
            wanted = desire(&self.inputs, &host, device);
            if let Some(tunnel) = &mut wanted.tunnel {
                self.keep_carried(device, tunnel);
            }
            match self.tunnel.reconcile(wanted.tunnel.as_ref(), &mut *self.platform, &self.links, &self.addrs)
            {
                Ok(false) => break,
                Ok(true) => self.dirty.links = true,
                Err(e) => {
                    failed.push(format!("tunnel: {e}"));
                    break;
                }
            }
        }
        self.dirty = Dirty::default();
        self.apply_settings(&wanted, &mut failed);
        self.apply_routes(&host, &wanted, &mut failed);
        problems.append(&mut wanted.problems);
        let ready = self.ready(&wanted);
        let (device, why) = self.tunnel.describe();
        let encap = EncapStatus {
            device: device.into(),
            why,
            mtu: wanted.tunnel.as_ref().map_or(0, |t| t.mtu),
            paths: std::mem::take(&mut wanted.paths),
            refused: self.tunnel.refused(),
        };
        self.status.in_sync = self.fib_in_sync && failed.is_empty();
        self.status.desired = wanted.routes.len();
        self.status.failed = failed.iter().take(SHOWN).cloned().collect();
        if failed.is_empty() {
            self.retry_after = RETRY_FIRST;
            self.retry_at = None;
        } else {
            self.later(&failed);
        }
        self.report.send_modify(|r| {
            r.encap = encap;
            r.ready = Arc::new(ready);
            r.own_blocks = wanted.own_blocks;
            r.pod_mtu = wanted.pod_mtu;
            r.problems = problems;
            r.problems.extend(failed);
        });
    }

    /// A carrier knows every route the kernel has through its device, not only those wanted now: what a restarted
    /// agent has not learnt again yet is still forwarded. What the kernel does not send it, it ignores.
    fn keep_carried(&self, device: &str, tunnel: &mut Tunnel) {
        for route in self.actual.values() {
            let (IpNet::V4(dst), Target::Via(hops)) = (route.dst, &route.target) else { continue };
            if let Some(IpAddr::V4(via)) = hops.iter().find(|h| h.dev == device).map(|h| h.via)
                && via != tunnel.local
            {
                tunnel.routes.entry(dst).or_insert(via);
            }
        }
    }

    fn publish(&self) {
        self.report.send_modify(|r| r.routes = self.status.clone());
    }

    /// Tries again later, each time waiting longer; says so once per wait.
    fn later(&mut self, failed: &[String]) {
        tracing::warn!(
            failed = failed.len(),
            first = failed.first().map(String::as_str).unwrap_or_default(),
            retry_ms = u64::try_from(self.retry_after.as_millis()).unwrap_or(u64::MAX),
            "not everything could be written"
        );
        self.retry_at = Some(Instant::now() + self.retry_after);
        self.retry_after = (self.retry_after * 2).min(RETRY_MAX);
    }

    fn apply_settings(&mut self, wanted: &Desired, failed: &mut Vec<String>) {
        if !self.host_set {
            let all = wanted.host_settings.iter().map(|s| self.platform.ensure(&s.path, s.value));
            let errors: Vec<String> = all.filter_map(Result::err).map(|e| e.to_string()).collect();
            self.host_set = errors.is_empty();
            failed.extend(errors);
        }
        for e in wanted.endpoints.values() {
            let Some(index) = self.names.index(&e.dev).filter(|i| !self.set.contains(i)) else { continue };
            let all = e.settings.iter().map(|s| self.platform.ensure(&s.path, s.value));
            let errors: Vec<String> = all.filter_map(Result::err).map(|e| e.to_string()).collect();
            if errors.is_empty() {
                self.set.insert(index);
            }
            failed.extend(errors);
        }
    }

    fn apply_routes(&mut self, host: &HostView, wanted: &Desired, failed: &mut Vec<String>) {
        let owner = ownership(&self.inputs);
        let now = Instant::now();
        let young = |dev: &str| {
            dev.starts_with(&owner.interface_prefix)
                && self.names.index(dev).and_then(|i| self.seen.get(&i)).is_some_and(|t| now - *t < GRACE)
        };
        let cx = PlanCx { owner: &owner, fib_in_sync: self.fib_in_sync, grace: &young };
        let plan = Plan::new(&self.actual, &wanted.routes, host, &cx);
        if plan.kept > 0 && self.fib_in_sync {
            self.recheck_at.get_or_insert(now + GRACE);
        }
        let foreign = plan.held.iter().filter(|h| h.why.starts_with("somebody"));
        failed.extend(foreign.map(|h| format!("{}: {}", h.route, h.why)));
        if plan.is_empty() {
            return;
        }
        tracing::debug!(steps = plan.steps.len(), "\n{plan}");
        let mut changes = Vec::with_capacity(plan.steps.len());
        let mut steps = Vec::with_capacity(plan.steps.len());
        for step in plan.steps {
            let change = match &step {
                // Refused if somebody else was quicker: then everything is read again.
                Step::Add(r) => convert::to_kernel(r, &self.names).map(RouteChange::Add),
                Step::Replace { new, .. } => convert::to_kernel(new, &self.names).map(RouteChange::Replace),
                Step::Delete(r) => convert::to_kernel(r, &self.names).map(RouteChange::Delete),
            };
            match change {
                Ok(c) => {
                    changes.push(c);
                    steps.push(step);
                }
                Err(e) => failed.push(e),
            }
        }
        let report = self.platform.change_routes(&changes);
        self.status.writes += u64::try_from(report.done).unwrap_or(u64::MAX);
        let mut refused = BTreeSet::new();
        for r in report.refused {
            // A delete of what is gone is done.
            let gone = matches!(steps.get(r.index), Some(Step::Delete(_))) && r.error.is_not_found();
            if !gone {
                refused.insert(r.index);
                failed.push(r.error.to_string());
            }
        }
        for (i, step) in steps.iter().take(report.sent_to).enumerate() {
            if refused.contains(&i) {
                continue;
            }
            match step {
                Step::Add(r) | Step::Replace { new: r, .. } => drop(self.actual.insert(r.key(), r.clone())),
                Step::Delete(r) => drop(self.actual.remove(&r.key())),
            }
        }
        if let Some(e) = report.broken {
            failed.push(e.to_string());
        }
    }

    fn ready(&self, wanted: &Desired) -> BTreeSet<Key> {
        let complete = |e: &brindle_felix_core::desire::Endpoint| {
            let index = self.names.index(&e.dev);
            index.is_some_and(|i| self.set.contains(&i) && self.links.iter().any(|l| l.index == i && l.up))
                && e.addresses.iter().all(|a| {
                    let mut entries = wanted.routes.range((a.trunc(), 0)..=(a.trunc(), u32::MAX));
                    entries.any(|(k, r)| r.devices().any(|d| d == e.dev) && self.actual.get(k) == Some(r))
                })
        };
        wanted.endpoints.iter().filter(|(_, e)| complete(e)).map(|(k, _)| k.clone()).collect()
    }
}
