//! Tracked flows that end: those of workloads that went are deleted, those that policy denies now are closed, and opened
//! again when it allows them. All others go on.
//!
//! A flow is closed by a bit of its connection mark, which rules in front of all others look at. Were its entry deleted,
//! the next packet of its other end would be the first of a new flow in the other direction, which policy may well allow,
//! and all that follows an answer to it. Where the mask of marks has no bit for that, it is deleted all the same.
//!
//! An address a workload gets may have flows of whoever had it before. The kernel's walk through its flows takes longer
//! than a pod should wait, so: where such flows are known of (the address has just been given up, or the last walk saw
//! some) they are judged before the rules of the newcomer are written, until when its device passes nothing; of all other
//! addresses soon after, together with others.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use brindle_felix_core::rules::{ir::Family, model::Changed};
use brindle_kernel::netfilter::{Flow, NfError};
use ipnet::IpNet;
use tokio::sync::oneshot;

use super::{Engine, addresses, doors::Doors, host::ByAddress};
use crate::policy::driver::ip;

/// How long flows of workloads that have come or gone are left alone while other changes come, and at most: the kernel walks
/// through all it tracks, of every namespace, which takes some 10 ms for each family on a large machine.
const LINGER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Flows that could not be read or changed are looked at again.
const AGAIN: Duration = Duration::from_secs(10);

/// Whose flows are still to be looked at, and what was seen of them.
#[derive(Default)]
pub(super) struct Tracked {
    /// Addresses that workloads had, whose flows are deleted, and have got, whose flows are judged.
    gone: BTreeSet<IpAddr>,
    fresh: BTreeSet<IpAddr>,
    /// All flows are to be judged, and could not be.
    all: bool,
    /// When that is done, and when at the latest.
    due: Option<(Instant, Instant)>,
    walk: Option<Walk>,
    /// Addresses of pools that had flows and belonged to no workload here when flows were last read.
    seen: BTreeSet<IpAddr>,
    /// Families in which no flow is closed. What a former agent closed is not known before flows are read.
    open: BTreeSet<Family>,
    problem: Option<String>,
    /// It was said that flows are deleted.
    told: bool,
}

/// The kernel's walk through its flows on a thread of its own, so that nobody waits for it.
struct Walk {
    /// Whose flows are looked for.
    gone: BTreeSet<IpAddr>,
    fresh: BTreeSet<IpAddr>,
    answer: oneshot::Receiver<Result<Heard, NfError>>,
}

/// What a walk brings back.
#[derive(Default)]
struct Heard {
    flows: Vec<Flow>,
    families: Vec<Family>,
    seen: BTreeSet<IpAddr>,
}

/// What a walk has found.
pub(super) struct Found {
    gone: BTreeSet<IpAddr>,
    fresh: BTreeSet<IpAddr>,
    heard: Result<Heard, NfError>,
}

impl Tracked {
    /// When somebody has to look here again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.map(|(at, _)| at).filter(|_| self.walk.is_none())
    }

    /// The flows a walk has found; it never ends where there is none.
    pub(super) async fn walked(&mut self) -> Found {
        let Some(walk) = &mut self.walk else { return std::future::pending().await };
        let heard = (&mut walk.answer).await;
        let (gone, fresh) = self.walk.take().map(|w| (w.gone, w.fresh)).unwrap_or_default();
        Found { gone, fresh, heard: heard.unwrap_or_else(|_| Ok(Heard::default())) }
    }

    /// Waits for others that come and go, but not for ever.
    fn later(&mut self, now: Instant) {
        let latest = self.due.map_or(now + LINGER.1, |(_, latest)| latest);
        self.due = Some(((now + LINGER.0).min(latest), latest));
    }

    fn again(&mut self) {
        let at = Instant::now() + AGAIN;
        self.due = Some(self.due.unwrap_or((at, at)));
    }

    /// Whether an address may have flows of whoever had it before.
    fn haunted(&self, a: &IpAddr) -> bool {
        self.gone.contains(a)
            || self.seen.contains(a)
            || self.walk.as_ref().is_some_and(|w| w.gone.contains(a))
    }

    /// Remembers who had flows in these families.
    fn see(&mut self, families: &[Family], seen: BTreeSet<IpAddr>, alive: &BTreeSet<IpAddr>) {
        self.seen.retain(|a| !families.iter().any(|f| f.has(&(*a).into())));
        self.seen.extend(seen.into_iter().filter(|a| !alive.contains(a)));
    }

    fn failed(&mut self, why: &NfError) {
        let why = why.to_string();
        if self.problem.as_ref() != Some(&why) {
            tracing::warn!("flows could not be cut: {why}");
        }
        self.problem = Some(why);
    }
}

fn ends(f: &Flow) -> [IpAddr; 4] {
    [f.original.src, f.original.dst, f.reply.src, f.reply.dst]
}

fn has_end(f: &Flow, of: &BTreeSet<IpAddr>) -> bool {
    ends(f).iter().any(|a| of.contains(a))
}

/// Ends of flows that workloads may have, but for those of `gone`, whose flows are deleted.
fn seen(flows: &[Flow], pools: &[IpNet], gone: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let pooled = |a: &IpAddr| pools.is_empty() || pools.iter().any(|p| p.contains(a));
    flows.iter().flat_map(ends).filter(|a| pooled(a) && !gone.contains(a)).collect()
}

/// What becomes of flows.
#[derive(Default)]
struct Decided {
    shut: Vec<Flow>,
    open: Vec<Flow>,
}

/// `bit`: that of closed flows.
fn decide(doors: &mut Doors<'_>, flows: Vec<Flow>, bit: u32) -> Decided {
    let mut out = Decided::default();
    for flow in flows {
        match (doors.denied(&flow), flow.mark & bit != 0) {
            (true, false) => out.shut.push(flow),
            (false, true) => out.open.push(flow),
            _ => {}
        }
    }
    out
}

impl Engine {
    /// Before the rules of newcomers: flows of their addresses that are known of.
    pub(super) fn judge_old_flows(&mut self) {
        let gone = &self.pending.gone;
        let old = |a: &&IpAddr| gone.contains(*a) || self.tracked.haunted(a);
        let haunted: BTreeSet<IpAddr> = self.pending.fresh.iter().filter(old).copied().collect();
        if haunted.is_empty() {
            return;
        }
        let alive = self.alive();
        if self.judge_flows(&alive, &BTreeSet::new(), Some(&haunted)) {
            self.pending.fresh.retain(|a| !haunted.contains(a));
            self.pending.gone.retain(|a| !haunted.contains(a));
            self.tracked.gone.retain(|a| !haunted.contains(a));
        }
    }

    /// Flows that policy denies or allows now, at once; those of workloads that came or went when that is due.
    pub(super) fn cut_flows(&mut self, changed: &Changed, now: Instant) {
        if !changed.gone.is_empty() || !changed.fresh.is_empty() {
            self.tracked.later(now);
            self.tracked.gone.extend(&changed.gone);
            self.tracked.fresh.extend(&changed.fresh);
        }
        let due = self.tracked.due().is_some_and(|at| at <= now);
        if !changed.judge && !due {
            return;
        }
        self.tracked.due = None;
        let mut fresh = std::mem::take(&mut self.tracked.fresh);
        let alive = self.alive();
        // Whoever else has an address of theirs has its flows.
        let (kept, gone): (BTreeSet<_>, BTreeSet<_>) =
            std::mem::take(&mut self.tracked.gone).into_iter().partition(|a| alive.contains(a));
        fresh.extend(kept);
        let all = std::mem::take(&mut self.tracked.all) || changed.judge;
        if all {
            self.tracked.all = !self.judge_flows(&alive, &gone, None);
            if self.tracked.all {
                self.tracked.gone = gone;
                self.tracked.again();
            }
        } else if let Some((gone, fresh)) = self.walk(gone, fresh) {
            let both = fresh.union(&gone).copied().collect();
            self.judge_flows(&alive, &gone, Some(&both));
        }
    }

    fn alive(&self) -> BTreeSet<IpAddr> {
        let workloads = self.model.endpoints.values().filter(|e| e.host.is_none());
        workloads.flat_map(|e| e.addresses.iter().map(IpNet::addr)).collect()
    }

    fn pools(&self) -> Vec<IpNet> {
        self.settings.around.pools.iter().map(|(net, _)| *net).collect()
    }

    /// Begins to look for flows of addresses; gives them back where there is no thread to be had.
    fn walk(
        &mut self,
        gone: BTreeSet<IpAddr>,
        fresh: BTreeSet<IpAddr>,
    ) -> Option<(BTreeSet<IpAddr>, BTreeSet<IpAddr>)> {
        let mut nf = self.driver.netfilter().again();
        let wanted: BTreeSet<IpAddr> = gone.union(&fresh).copied().collect();
        let mut families = self.driver.families().to_vec();
        families.retain(|family| wanted.iter().any(|a| family.has(&(*a).into())));
        let (tx, answer) = oneshot::channel();
        let (pools, left) = (self.pools(), gone.clone());
        let work = move || {
            let mut heard = Heard::default();
            let read = families.into_iter().try_for_each(|family| {
                let mut flows = nf.flows(ip(family))?;
                heard.seen.extend(seen(&flows, &pools, &left));
                heard.families.push(family);
                flows.retain(|f| has_end(f, &wanted));
                heard.flows.extend(flows);
                Ok(())
            });
            // Whoever asked may have ended.
            let _ = tx.send(read.map(|()| heard));
        };
        match std::thread::Builder::new().name("policy-flows".into()).spawn(work) {
            Ok(_) => {
                self.tracked.walk = Some(Walk { gone, fresh, answer });
                None
            }
            Err(_) => Some((gone, fresh)),
        }
    }

    /// Deletes what a walk has found of workloads that went, but for flows of an address that somebody has meanwhile, and
    /// judges what it has found of newcomers.
    pub(super) fn found(&mut self, found: Found) {
        let heard = match found.heard {
            Ok(heard) => heard,
            Err(e) => {
                self.tracked.failed(&e);
                self.tracked.gone.extend(found.gone);
                self.tracked.fresh.extend(found.fresh);
                self.tracked.again();
                return;
            }
        };
        let alive = self.alive();
        self.tracked.see(&heard.families, heard.seen, &alive);
        let left: BTreeSet<IpAddr> = found.gone.difference(&alive).copied().collect();
        let (cut, rest): (Vec<Flow>, Vec<Flow>) = heard.flows.into_iter().partition(|f| has_end(f, &left));
        let theirs: Vec<Flow> = rest.into_iter().filter(|f| has_end(f, &alive)).collect();
        let bit = self.closed_bit();
        let host = if theirs.is_empty() { None } else { self.own_addresses() };
        let decided = match host {
            Some(host) => decide(&mut Doors::new(&self.state, &host), theirs, bit.unwrap_or(0)),
            None => Decided::default(),
        };
        self.carry_out(cut, decided, bit);
    }

    /// Addresses by which the host's own flows are told; without them nothing is judged.
    fn own_addresses(&mut self) -> Option<ByAddress> {
        match addresses() {
            Ok(host) => {
                self.state.look(&host);
                Some(host).filter(|h| !h.is_empty())
            }
            Err(e) => {
                tracing::warn!("flows are not judged: addresses of this host cannot be read: {e}");
                self.tracked.all = true;
                self.tracked.again();
                None
            }
        }
    }

    /// Deletes, closes and opens. `false`: the kernel refused some of it.
    fn carry_out(&mut self, mut cut: Vec<Flow>, decided: Decided, bit: Option<u32>) -> bool {
        let Decided { shut, open } = decided;
        let nf = self.driver.netfilter();
        let mut ended = 0;
        let closed = match bit {
            _ if shut.is_empty() => Ok(0),
            Some(bit) => {
                nf.mark(&shut, bit, true).map_err(|e| format!("they cannot be marked as closed: {e}"))
            }
            None if self.closing.possible() => Err(
                "iptablesMarkMask has no bit left to mark them as closed; widen it, for example 0xffff0000"
                    .into(),
            ),
            None => Err("the kernel takes no rules about marks of flows (xt_connmark)".into()),
        };
        match closed {
            Ok(n) => ended += n,
            Err(why) => {
                if !std::mem::replace(&mut self.tracked.told, true) {
                    tracing::warn!(
                        "flows that policy denies are deleted, and may begin anew from their other end: {why}"
                    );
                }
                cut.extend(shut);
            }
        }
        let deleted = if cut.is_empty() { Ok(0) } else { nf.forget(&cut) };
        let opened = match bit.filter(|_| !open.is_empty()) {
            Some(bit) => nf.mark(&open, bit, false),
            None => Ok(0),
        };
        let done = deleted.map(|n| ended += n).and(opened);
        self.driver.counters.flows_cut += ended as u64;
        match done {
            Ok(_) => {
                self.tracked.problem = None;
                true
            }
            Err(e) => {
                self.tracked.failed(&e);
                false
            }
        }
    }

    /// Deletes flows of `gone`, and judges all others, or those of `only`. `false`: it is to be done again.
    fn judge_flows(
        &mut self,
        alive: &BTreeSet<IpAddr>,
        gone: &BTreeSet<IpAddr>,
        only: Option<&BTreeSet<IpAddr>>,
    ) -> bool {
        let hosts = self.model.endpoints.values().any(|e| e.host.is_some());
        let closed_bit = self.closed_bit();
        let bit = closed_bit.unwrap_or(0);
        let pools = self.pools();
        let host = self.own_addresses();
        let mut well = host.is_some();
        for family in self.driver.families().to_vec() {
            let of_family = |a: &IpAddr| family.has(&(*a).into());
            let nobody = match only {
                Some(only) => !only.iter().any(of_family),
                None => {
                    let quiet = !hosts && self.tracked.open.contains(&family);
                    quiet && !alive.iter().chain(gone).any(of_family)
                }
            };
            // The kernel walks through all it tracks, of every namespace.
            if nobody {
                continue;
            }
            let flows = match self.driver.netfilter().flows(ip(family)) {
                Ok(flows) => flows,
                Err(e) => {
                    self.tracked.failed(&e);
                    well = false;
                    continue;
                }
            };
            self.tracked.see(&[family], seen(&flows, &pools, gone), alive);
            let (cut, rest): (Vec<Flow>, Vec<Flow>) = flows.into_iter().partition(|f| has_end(f, gone));
            let concerned = |f: &Flow| match only {
                Some(only) => has_end(f, only),
                None => hosts || f.mark & bit != 0 || has_end(f, alive),
            };
            let closed = rest.iter().filter(|f| f.mark & bit != 0).count();
            let concerned = rest.into_iter().filter(concerned).collect();
            let decided = match &host {
                Some(host) => decide(&mut Doors::new(&self.state, host), concerned, bit),
                None => Decided::default(),
            };
            if closed + decided.shut.len() == decided.open.len() {
                self.tracked.open.insert(family);
            } else {
                self.tracked.open.remove(&family);
            }
            well &= self.carry_out(cut, decided, closed_bit);
        }
        well
    }
}
