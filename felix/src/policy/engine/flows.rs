//! Tracked flows that are cut: those of workloads that went, and those policy would deny now. All others go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use brindle_felix_core::{
    policy::{
        active::{EndpointId, Protocol},
        state::PolicyState,
        verdict::{Packet, Place, Verdict, verdict},
    },
    rules::{ir::Family, model::Changed},
};
use brindle_kernel::{
    netfilter::{Flow, IpVersion, NfError},
    netlink::Rtnl,
};
use tokio::sync::oneshot;

use super::{Engine, addresses};

/// How long flows of workloads that have gone stay while other changes come, and at most: the kernel walks through all it
/// tracks, of every namespace, which takes some 10 ms for each family on a large machine.
const LINGER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Addresses of workloads that have gone, whose flows are still to be cut.
#[derive(Default)]
pub(super) struct Departed {
    gone: BTreeSet<IpAddr>,
    /// When that is done, and when at the latest.
    due: Option<(Instant, Instant)>,
    walk: Option<Walk>,
}

/// The kernel's walk through its flows on a thread of its own, so that nobody waits for it.
struct Walk {
    /// Whose flows are looked for.
    gone: BTreeSet<IpAddr>,
    answer: oneshot::Receiver<Result<Vec<Flow>, NfError>>,
}

impl Departed {
    /// When somebody has to look here again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.map(|(at, _)| at).filter(|_| self.walk.is_none())
    }

    /// The flows a walk has found; it never ends where there is none.
    pub(super) async fn walked(&mut self) -> Found {
        let Some(walk) = &mut self.walk else { return std::future::pending().await };
        let flows = (&mut walk.answer).await;
        let gone = self.walk.take().map(|w| w.gone).unwrap_or_default();
        Found { gone, flows: flows.unwrap_or(Ok(Vec::new())) }
    }

    fn all(&self) -> impl Iterator<Item = &IpAddr> {
        self.gone.iter().chain(self.walk.iter().flat_map(|w| &w.gone))
    }
}

/// What a walk has found.
pub(super) struct Found {
    gone: BTreeSet<IpAddr>,
    flows: Result<Vec<Flow>, NfError>,
}

fn ends(f: &Flow) -> [IpAddr; 4] {
    [f.original.src, f.original.dst, f.reply.src, f.reply.dst]
}

fn version(family: Family) -> IpVersion {
    match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    }
}

impl Engine {
    /// Flows that policy denies now, at once; those of workloads that went away when that is due. Where somebody else has
    /// an address of theirs, its old flows are judged at once.
    pub(super) fn cut_flows(&mut self, changed: &Changed, now: Instant) {
        if !changed.gone.is_empty() {
            let latest = self.departed.due.map_or(now + LINGER.1, |(_, latest)| latest);
            self.departed.due = Some(((now + LINGER.0).min(latest), latest));
            self.departed.gone.extend(&changed.gone);
        }
        if !changed.judge && self.departed.all().next().is_none() {
            return;
        }
        let alive = self.alive();
        if changed.judge || self.departed.all().any(|a| alive.contains(a)) {
            self.departed.due = None;
            let mut gone = std::mem::take(&mut self.departed.gone);
            gone.retain(|a| !alive.contains(a));
            self.judge_flows(&alive, &gone);
        } else if self.departed.due().is_some_and(|at| at <= now) {
            self.departed.due = None;
            let gone = std::mem::take(&mut self.departed.gone);
            if let Some(gone) = self.walk(gone) {
                self.judge_flows(&alive, &gone);
            }
        }
    }

    fn alive(&self) -> BTreeSet<IpAddr> {
        let workloads = self.model.endpoints.values().filter(|e| e.host.is_none());
        workloads.flat_map(|e| e.addresses.iter().map(ipnet::IpNet::addr)).collect()
    }

    /// Begins to look for flows of addresses; gives them back where there is no thread to be had.
    fn walk(&mut self, gone: BTreeSet<IpAddr>) -> Option<BTreeSet<IpAddr>> {
        let mut nf = self.driver.netfilter().again();
        let mut versions: Vec<(Family, IpVersion)> =
            self.driver.families().iter().map(|f| (*f, version(*f))).collect();
        versions.retain(|(family, _)| gone.iter().any(|a| family.has(&(*a).into())));
        let (tx, answer) = oneshot::channel();
        let wanted = gone.clone();
        let work = move || {
            let flows = versions.into_iter().try_fold(Vec::new(), |mut all, (_, version)| {
                let flows = nf.flows(version)?;
                all.extend(flows.into_iter().filter(|f| ends(f).iter().any(|a| wanted.contains(a))));
                Ok(all)
            });
            // Whoever asked may have ended.
            let _ = tx.send(flows);
        };
        match std::thread::Builder::new().name("policy-flows".into()).spawn(work) {
            Ok(_) => {
                self.departed.walk = Some(Walk { gone, answer });
                None
            }
            Err(_) => Some(gone),
        }
    }

    /// Cuts what a walk has found, but for flows of an address that somebody has meanwhile: those were judged then.
    pub(super) fn found(&mut self, found: Found) {
        let alive = self.alive();
        let result = found.flows.and_then(|mut flows| {
            flows.retain(|f| ends(f).iter().any(|a| found.gone.contains(a) && !alive.contains(a)));
            if flows.is_empty() { Ok(0) } else { self.driver.netfilter().forget(&flows) }
        });
        self.count(result);
    }

    fn count(&mut self, cut: Result<usize, NfError>) {
        match cut {
            Ok(n) => self.driver.counters.flows_cut += n as u64,
            Err(e) => tracing::warn!("flows could not be cut: {e}"),
        }
    }

    /// Cuts flows of `gone`, and those that policy denies now.
    fn judge_flows(&mut self, alive: &BTreeSet<IpAddr>, gone: &BTreeSet<IpAddr>) {
        // What is the host's own is told by its addresses; without knowing them nothing is judged.
        let host = addresses().unwrap_or_else(|e| {
            tracing::warn!("flows are not judged: addresses of this host cannot be read: {e}");
            BTreeMap::new()
        });
        self.state.look(&host);
        let mut doors = Doors::new(&self.state, &host);
        let mut results = Vec::new();
        for family in self.driver.families().to_vec() {
            // The kernel walks through all it tracks, of every namespace.
            if !doors.any() && !alive.iter().chain(gone).any(|a| family.has(&(*a).into())) {
                continue;
            }
            let nf = self.driver.netfilter();
            results.push(nf.flows(version(family)).and_then(|flows| {
                let (mut cut, rest): (Vec<Flow>, Vec<Flow>) =
                    flows.into_iter().partition(|f| ends(f).iter().any(|a| gone.contains(a)));
                let concerned = |f: &Flow| doors.any() || ends(f).iter().any(|a| alive.contains(a));
                let local: Vec<Flow> = rest.into_iter().filter(concerned).collect();
                if !host.is_empty() {
                    cut.extend(local.into_iter().filter(|f| doors.denied(f)));
                }
                if cut.is_empty() { Ok(0) } else { nf.forget(&cut) }
            }));
        }
        results.into_iter().for_each(|r| self.count(r));
    }
}

/// Judges flows. By which interface a flow came in is not known any more: it is taken to be the one that leads there.
struct Doors<'a> {
    state: &'a PolicyState,
    /// Addresses of this host, and their devices.
    host: &'a BTreeMap<IpAddr, String>,
    /// Whether there are host endpoints at all.
    any: bool,
    kernel: Option<(Rtnl, BTreeMap<u32, String>)>,
    /// The host endpoints on the way to an address, one for each device that leads there.
    known: BTreeMap<IpAddr, Vec<Option<EndpointId>>>,
}

impl<'a> Doors<'a> {
    fn new(state: &'a PolicyState, host: &'a BTreeMap<IpAddr, String>) -> Self {
        let any = state.endpoints.values().any(|e| e.host.is_some());
        Self { state, host, any, kernel: None, known: BTreeMap::new() }
    }

    fn any(&self) -> bool {
        self.any
    }

    fn devices(&mut self, to: IpAddr) -> Option<Vec<String>> {
        if self.kernel.is_none() {
            let mut rtnl = Rtnl::open().ok()?;
            let names = rtnl.links().ok()?.into_iter().map(|l| (l.index, l.name)).collect();
            self.kernel = Some((rtnl, names));
        }
        let (rtnl, names) = self.kernel.as_mut()?;
        let route = rtnl.route_to(to).ok()??;
        route.hops.iter().map(|h| names.get(&h.dev?).cloned()).collect()
    }

    fn to(&mut self, peer: IpAddr) -> Vec<Option<EndpointId>> {
        if !self.any {
            return vec![None];
        }
        if let Some(known) = self.known.get(&peer) {
            return known.clone();
        }
        let devices = self.devices(peer).unwrap_or_default();
        let mut found: Vec<_> =
            devices.iter().map(|d| self.state.host_endpoint_at(d, self.host).cloned()).collect();
        if found.is_empty() {
            // Not known: nothing is denied there.
            found.push(None);
        }
        self.known.insert(peer, found.clone());
        found
    }

    /// Whether policy would refuse the first packet of a flow now, with the destination it had after translation.
    fn denied(&mut self, flow: &Flow) -> bool {
        let packet = Packet {
            src: flow.original.src,
            dst: flow.reply.src,
            protocol: Protocol(flow.protocol),
            src_port: flow.original.sport,
            dst_port: flow.reply.sport,
            icmp: flow.original.icmp,
        };
        let asked = Packet { dst: flow.original.dst, dst_port: flow.original.dport, ..packet };
        // A host endpoint may have allowed or denied what was asked for before translation; a workload never saw that.
        self.refused(&packet, |v| {
            matches!(v.steps.last().and_then(|s| s.endpoint.as_ref()), Some(EndpointId::Workload { .. }))
        }) || self.refused(&packet, |_| true) && (asked == packet || self.refused(&asked, |_| true))
    }

    /// Whether a packet is denied by whichever interface it comes and goes, by verdicts that count.
    fn refused(&mut self, packet: &Packet, counts: impl Fn(&Verdict) -> bool) -> bool {
        let own = |a: &IpAddr| self.host.contains_key(a);
        let (from_host, to_host) = (own(&packet.src), own(&packet.dst));
        let workload = |a| self.state.workload_at(a).map(|id| Place::Workload(id.clone()));
        let (from, to) = match (from_host, to_host) {
            (true, true) => return false,
            (true, false) => (None, workload(packet.dst)),
            (false, true) => (workload(packet.src), None),
            (false, false) => (workload(packet.src), workload(packet.dst)),
        };
        // Tunnels between nodes are the host's own affair.
        if (from_host || to_host) && packet.protocol == Protocol::IPIP {
            return false;
        }
        let none = || vec![None];
        let arrives = if from.is_some() || from_host { none() } else { self.to(packet.src) };
        let leaves = if to.is_some() || to_host { none() } else { self.to(packet.dst) };
        arrives.iter().all(|a| {
            leaves.iter().all(|b| {
                let from = from.clone().unwrap_or_else(|| match from_host {
                    true => Place::Host(b.clone()),
                    false => Place::Outside(a.clone()),
                });
                let to = to.clone().unwrap_or_else(|| match to_host {
                    true => Place::Host(a.clone()),
                    false => Place::Outside(b.clone()),
                });
                let said = verdict(self.state, packet, &from, &to);
                !said.allowed() && counts(&said)
            })
        })
    }
}
