//! Writing: settings and neighbours of pod devices, and the plan of routes. Nothing here decides what is wanted.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use brindle_felix_core::{
    desire::Endpoint,
    owner::is_birds,
    plan::{Held, Plan, PlanCx, Step},
    route::{PROTO_BIRD, Route, RouteKey, Target},
    sysctl::Setting,
};
use brindle_kernel::{
    netlink::{Addr, BatchReport, Mac, Neigh, NetlinkError, RouteChange, addr_flag, neigh_state, scope},
    sysctl::SysctlError,
};

use super::{Dirty, Engine, News, Part};
use crate::convert;

/// A pod device's unknown routes are somebody's work in progress for this long (Calico's route grace).
const GRACE: Duration = Duration::from_secs(10);

/// Up to so many routes written together have a line each in the log.
const NAMED: usize = 8;

/// What was set for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    settings: Vec<Setting>,
    neighbours: Vec<(IpAddr, Mac)>,
}

impl Set {
    fn of(e: &Endpoint) -> Self {
        // No address, no entry: the pod is asked by ARP like any other host.
        let mac: Option<Mac> = e.mac.parse().ok();
        let addresses = e.addresses.iter().map(|a| a.addr());
        Self {
            settings: e.settings.clone(),
            neighbours: mac.map(|m| addresses.map(|a| (a, m)).collect()).unwrap_or_default(),
        }
    }
}

/// An address of this host for the pod behind a device alone. Nothing else puts addresses of this form there, so whatever has
/// it is ours.
fn peering_address(link: u32, ip: IpAddr) -> Addr {
    let addr = Addr::new(link, ip.into());
    match ip {
        IpAddr::V4(_) => Addr { scope: scope::LINK, ..addr },
        IpAddr::V6(_) => Addr { flags: addr_flag::NODAD, ..addr },
    }
}

fn is_peering(addr: &Addr) -> bool {
    addr.net.prefix_len() == addr.net.max_prefix_len()
        && (addr.net.addr().is_ipv6() || addr.scope == scope::LINK)
}

impl Engine {
    /// Settings of the host and of pod devices, and the neighbour entries of pods.
    pub(super) fn apply_settings(&mut self, now: Instant) {
        if !self.host_set && !self.parts_failed.waits(&Part::Host, now) {
            match self.ensure(&self.wanted.host_settings.clone()) {
                Ok(()) => {
                    self.host_set = true;
                    self.parts_failed.done(&Part::Host);
                }
                Err(e) => self.failed(Part::Host, e.to_string(), now),
            }
        }
        let (mut todo, mut lacking) = (Vec::new(), BTreeSet::new());
        for e in self.wanted.endpoints.values() {
            // A device that is down forgets its neighbours.
            let Some(link) = self.view.link_named(&e.dev).filter(|l| l.up) else { continue };
            let want = Set::of(e);
            if self.set.get(&link.index) != Some(&want) {
                lacking.insert(e.dev.clone());
                if !self.parts_failed.waits(&Part::Device(e.dev.clone()), now) {
                    todo.push((link.index, e.dev.clone(), want));
                }
            }
        }
        // Whatever else failed has nothing to be tried for: its device is down or gone, or nobody has it any more.
        self.parts_failed.retain(|p| !matches!(p, Part::Device(d) if !lacking.contains(d)));
        let known = match todo.iter().any(|(_, _, s)| !s.neighbours.is_empty()) {
            true => self.kernel.neighs().unwrap_or_default(),
            false => Vec::new(),
        };
        for (index, dev, want) in todo {
            let done = self.ensure(&want.settings).map_err(|e| e.to_string()).and_then(|()| {
                for (addr, mac) in &want.neighbours {
                    let entry = Neigh::permanent(index, *addr, *mac);
                    let same = |n: &Neigh| {
                        (n.link, n.addr, n.mac) == (index, *addr, Some(*mac))
                            && n.state & neigh_state::PERMANENT != 0
                    };
                    if !known.iter().any(same) {
                        self.kernel.set_neigh(&entry).map_err(|e| e.to_string())?;
                    }
                }
                Ok(())
            });
            match done {
                Ok(()) => {
                    self.parts_failed.done(&Part::Device(dev));
                    self.set.insert(index, want);
                }
                Err(e) => self.failed(Part::Device(dev), e, now),
            }
        }
    }

    /// The addresses pods peer with, on their devices: there or gone as wanted.
    pub(super) fn apply_peering(&mut self, dirty: &mut Dirty, now: Instant) {
        let Some(peering) = &self.peering else { return };
        let (mut todo, mut lacking) = (Vec::new(), BTreeSet::new());
        for e in self.wanted.endpoints.values() {
            let Some(link) = self.view.link_named(&e.dev).filter(|l| l.up) else { continue };
            if !self.owner.is_pod(&e.dev) {
                continue;
            }
            let want = peering.get(&*e.dev).map_or(&[][..], Vec::as_slice);
            let have: Vec<&Addr> = self.view.addrs_of(link.index).filter(|a| is_peering(a)).collect();
            let gone: Vec<Addr> =
                have.iter().filter(|a| !want.contains(&a.net.addr())).copied().cloned().collect();
            let lacks = want.iter().filter(|ip| have.iter().all(|a| a.net.addr() != **ip));
            let new: Vec<Addr> = lacks.map(|ip| peering_address(link.index, *ip)).collect();
            if !(gone.is_empty() && new.is_empty()) {
                lacking.insert(e.dev.clone());
                if !self.parts_failed.waits(&Part::Peering(e.dev.clone()), now) {
                    todo.push((link.index, e.dev.clone(), gone, new));
                }
            }
        }
        self.parts_failed.retain(|p| !matches!(p, Part::Peering(d) if !lacking.contains(d)));
        for (index, dev, gone, new) in todo {
            let done = self.write_peering(&gone, &new);
            // With its last address a device loses its IPv4 routes, and nobody is told.
            let mut news = News::default();
            if !gone.is_empty() {
                match self.view.read_device(&mut *self.kernel, index, &self.owner, &mut news) {
                    Ok(()) => dirty.keys.append(&mut news.keys),
                    Err(_) => self.dirty.read = true,
                }
            }
            let addresses =
                |all: &[Addr]| all.iter().map(|a| a.net.to_string()).collect::<Vec<_>>().join(" ");
            match done {
                Ok(()) => {
                    tracing::info!(device = %dev, old = %addresses(&gone), new = %addresses(&new),
                        cause = "localWorkloadPeering", "addresses pods peer with");
                    self.parts_failed.done(&Part::Peering(dev));
                }
                Err(e) => self.failed(Part::Peering(dev), e.to_string(), now),
            }
        }
    }

    /// New ones first: a device that has an address keeps its routes.
    fn write_peering(&mut self, gone: &[Addr], new: &[Addr]) -> Result<(), NetlinkError> {
        for addr in new {
            match self.kernel.add_addr(addr) {
                Err(e) if !e.is_exists() => return Err(e),
                _ => self.view.set_addr(addr, true),
            }
        }
        for addr in gone {
            match self.kernel.del_addr(addr.link, addr.net) {
                Err(e) if !e.is_not_found() => return Err(e),
                _ => self.view.set_addr(addr, false),
            }
        }
        Ok(())
    }

    fn ensure(&mut self, settings: &[Setting]) -> Result<(), SysctlError> {
        settings.iter().try_for_each(|s| match self.kernel.ensure_sysctl(&s.path, s.value) {
            Err(e) if s.optional && e.is_not_found() => Ok(()),
            done => done.map(drop),
        })
    }

    /// Compares, plans and writes routes.
    pub(super) fn apply_routes(&mut self, dirty: &Dirty, now: Instant) {
        let plan = if dirty.compare {
            self.held.clear();
            let plan = self.plan(None, now);
            let old = std::mem::take(&mut self.outranked);
            self.name_outranked(old, &plan);
            plan
        } else {
            // A route of whatever metric bears on ours to the same destination.
            let same = |k: &RouteKey| self.wanted.routes.range((k.0, 0)..=(k.0, u32::MAX)).map(|(k, _)| *k);
            let keys: BTreeSet<RouteKey> =
                dirty.keys.iter().flat_map(same).chain(dirty.keys.iter().copied()).collect();
            self.held.retain(|k, _| !keys.contains(k));
            let plan = self.plan(Some(&keys), now);
            let (old, others) =
                std::mem::take(&mut self.outranked).into_iter().partition(|(k, _)| keys.contains(k));
            self.outranked = others;
            self.name_outranked(old, &plan);
            plan
        };
        self.held.extend(plan.held.into_iter().map(|h| (h.route.key(), h)));
        if plan.kept > 0 && self.fib_in_sync {
            self.recheck_at.get_or_insert(now + GRACE);
        }
        self.settle_failed(dirty, &plan.steps);
        let (wanted, beside) = (&self.wanted.routes, &self.view.beside);
        let freed: BTreeSet<RouteKey> = match beside.is_empty() {
            true => BTreeSet::new(),
            false => plan
                .steps
                .iter()
                .map(key)
                .filter(|k| wanted.contains_key(k) && beside.contains_key(k))
                .collect(),
        };
        tell_of_birds(&plan.steps);
        self.write(plan.steps, dirty.fresh, now);
        self.fill(&freed, now);
        if !plan.follow.is_empty() {
            let follow = self.plan(Some(&plan.follow.into_iter().collect()), now);
            tell_of_birds(&follow.steps);
            self.write(follow.steps, false, now);
        }
    }

    /// Compares everything, or these entries.
    fn plan(&self, keys: Option<&BTreeSet<RouteKey>>, now: Instant) -> Plan {
        let young = |dev: &str| {
            self.owner.is_pod(dev)
                && self.view.first_seen(dev).is_some_and(|t| now.saturating_duration_since(t) < GRACE)
        };
        let bird = OnceCell::new();
        // Asked only where there is such a route.
        let gone = || self.bird.is_some_and(|runs| bird.get_or_init(runs).is_none());
        let left = |r: &Route| self.fib_in_sync && is_birds(&self.inputs, r) && gone();
        let (owner, beside) = (&self.owner, &self.view.beside);
        let cx = PlanCx { owner, beside, fib_in_sync: self.fib_in_sync, grace: &young, left: &left };
        let (actual, wanted, host) = (&self.view.actual, &self.wanted.routes, &self.view.host);
        match keys {
            None => Plan::new(actual, wanted, host, &cx),
            Some(keys) => Plan::for_keys(keys.iter(), actual, wanted, host, &cx),
        }
    }

    /// Keeps which routes of ours are not used; each is said once. `old`: what was known of those that were compared.
    fn name_outranked(&mut self, old: BTreeMap<RouteKey, Held>, plan: &Plan) {
        for held in &plan.outranked {
            if old.get(&held.route.key()) != Some(held) {
                tracing::warn!("{held}");
            }
        }
        self.outranked.extend(plan.outranked.iter().map(|h| (h.route.key(), h.clone())));
    }

    /// Writes what is wanted in the place of several entries, once those of ours that were wrong are gone.
    fn fill(&mut self, freed: &BTreeSet<RouteKey>, now: Instant) {
        let (actual, wanted) = (&self.view.actual, &self.wanted.routes);
        let free = freed.iter().filter(|k| !actual.contains_key(k));
        let steps: Vec<Step> = free.filter_map(|k| wanted.get(k).cloned().map(Step::Add)).collect();
        if !steps.is_empty() {
            self.write(steps, false, now);
        }
    }

    /// Forgets the failures of entries that need no write any more: they are right, held (which is said in its place, and
    /// news of the device or of the other route brings them back), or nobody's.
    fn settle_failed(&mut self, dirty: &Dirty, steps: &[Step]) {
        if self.routes_failed.is_empty() {
            return;
        }
        let written: BTreeSet<RouteKey> = steps.iter().map(key).collect();
        self.routes_failed.retain(|k| written.contains(k) || !(dirty.compare || dirty.keys.contains(k)));
    }

    /// `fresh`: the kernel has just been read.
    fn write(&mut self, mut steps: Vec<Step>, fresh: bool, now: Instant) {
        steps.retain(|s| !self.routes_failed.waits(&key(s), now));
        // Local pods first: somebody waits for them.
        steps.sort_by_key(|s| match s {
            Step::Add(r) | Step::Replace { new: r, .. } => u8::from(!matches!(r.target, Target::Device(_))),
            Step::Delete(_) => 2,
        });
        let mut changes = Vec::with_capacity(steps.len());
        let mut sent = Vec::with_capacity(steps.len());
        for step in steps {
            let change = match &step {
                // Refused if somebody else was quicker: then everything is read again.
                Step::Add(r) => convert::to_kernel(r, &self.view.names).map(RouteChange::Add),
                Step::Replace { new, .. } => {
                    convert::to_kernel(new, &self.view.names).map(RouteChange::Replace)
                }
                Step::Delete(r) => convert::to_kernel(r, &self.view.names).map(RouteChange::Delete),
            };
            match change {
                Ok(c) => {
                    changes.push(c);
                    sent.push(step);
                }
                Err(e) => drop(self.routes_failed.failed(key(&step), e, now)),
            }
        }
        if changes.is_empty() {
            // Whatever became of a bulk without an answer has been read back.
            if fresh {
                self.parts_failed.done(&Part::Bulk);
            }
            return;
        }
        let report = self.kernel.write_routes(&changes);
        self.account(&sent, &report, fresh, now);
    }

    /// Believes what the kernel said about each write.
    fn account(&mut self, sent: &[Step], report: &BatchReport, fresh: bool, now: Instant) {
        let mut refused = BTreeSet::new();
        for r in &report.refused {
            let Some(step) = sent.get(r.index) else { continue };
            // A delete of what is gone is done.
            if matches!(step, Step::Delete(_)) && r.error.is_not_found() {
                continue;
            }
            refused.insert(r.index);
            let error = r.error.to_string();
            if self.routes_failed.failed(key(step), error.clone(), now) {
                tracing::warn!("{error}");
            }
        }
        let (mut added, mut replaced, mut deleted) = (0, 0, 0);
        let mut own = News::default();
        // Of a bulk that broke nothing is known: it is read back.
        let known = if report.broken.is_some() { 0 } else { report.sent_to };
        for (i, step) in sent.iter().take(known).enumerate() {
            if refused.contains(&i) {
                continue;
            }
            self.routes_failed.done(&key(step));
            match step {
                Step::Add(r) => {
                    added += 1;
                    self.view.set_route(r.clone(), &self.owner, &mut own);
                }
                Step::Replace { new, .. } => {
                    replaced += 1;
                    self.view.set_route(new.clone(), &self.owner, &mut own);
                }
                Step::Delete(r) => {
                    deleted += 1;
                    self.view.remove_route(r, &self.owner, &mut own);
                }
            }
        }
        self.status.writes += u64::try_from(report.done).unwrap_or(u64::MAX);
        // A handful is named, a bulk is counted.
        if known <= NAMED {
            for (_, step) in sent.iter().take(known).enumerate().filter(|(i, _)| !refused.contains(i)) {
                tracing::info!(change = %step, "route written");
            }
        } else {
            tracing::info!(added, replaced, deleted, refused = refused.len(), "routes written");
        }
        match &report.broken {
            // An earlier one is still to be read back, unless it has been.
            None if fresh => drop(self.parts_failed.done(&Part::Bulk)),
            None => {}
            Some(e) => self.failed(Part::Bulk, e.to_string(), now),
        }
    }
}

/// Says how many routes of a BIRD's go.
fn tell_of_birds(steps: &[Step]) {
    let birds = |s: &&Step| match s {
        Step::Replace { old: r, .. } | Step::Delete(r) => r.protocol == PROTO_BIRD,
        Step::Add(_) => false,
    };
    let routes = steps.iter().filter(birds).count();
    if routes > 0 {
        tracing::info!(
            routes,
            cause = "no BIRD runs on this node",
            "removing routes of pools that a BIRD has left"
        );
    }
}

fn key(step: &Step) -> RouteKey {
    match step {
        Step::Add(r) | Step::Replace { new: r, .. } | Step::Delete(r) => r.key(),
    }
}
