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
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use brindle_felix_core::rules::{ir::Family, model::Changed};
use brindle_kernel::netfilter::Flow;
use ipnet::IpNet;
use tokio::sync::oneshot;

use super::{
    Engine, addresses,
    doors::Doors,
    host::ByAddress,
    walk::{Around, Heard, Look, Work, has_end},
};

/// How long flows of workloads that have come or gone, and of members of sets, are left alone while other changes come, and
/// at most: the kernel walks through all it tracks, of every namespace, which takes some 10 ms for each family on a large
/// machine.
const LINGER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Flows that could not be read or changed are looked at again.
const AGAIN: Duration = Duration::from_secs(10);

/// Whose flows are still to be looked at, and what was seen of them.
#[derive(Default)]
pub(super) struct Tracked {
    next: Work,
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
    work: Work,
    answer: oneshot::Receiver<Result<Heard, String>>,
}

/// What a walk has found.
pub(super) struct Found {
    work: Work,
    heard: Result<Heard, String>,
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
        let work = self.walk.take().map(|w| w.work).unwrap_or_default();
        Found { work, heard: heard.unwrap_or_else(|_| Err("the thread that read them has died".to_owned())) }
    }

    /// Work waits for others that come and go, but not for ever; what policy says of all flows does not wait.
    fn add(&mut self, work: Work, now: Instant) {
        if work.all {
            self.due = Some((now, now));
        } else if !work.is_empty() {
            let latest = self.due.map_or(now + LINGER.1, |(_, latest)| latest);
            self.due = Some(((now + LINGER.0).min(latest), latest));
        }
        self.next.absorb(work);
    }

    fn again(&mut self, work: Work) {
        self.next.absorb(work);
        let at = Instant::now() + AGAIN;
        self.due = Some(self.due.unwrap_or((at, at)));
    }

    /// Whether an address may have flows of whoever had it before.
    fn haunted(&self, a: &IpAddr) -> bool {
        self.next.gone.contains(a)
            || self.seen.contains(a)
            || self.walk.as_ref().is_some_and(|w| w.work.gone.contains(a))
    }

    /// Remembers who had flows in the families that were read.
    fn see(&mut self, heard: &mut Heard, alive: &BTreeSet<IpAddr>) {
        self.seen.retain(|a| !heard.closed.keys().any(|f| f.has(&(*a).into())));
        let seen = std::mem::take(&mut heard.seen);
        self.seen.extend(seen.into_iter().filter(|a| !alive.contains(a)));
    }

    fn failed(&mut self, why: String) {
        if self.problem.as_ref() != Some(&why) {
            tracing::warn!(
                "flows that policy denies now could not be cut, and are tried again every {} s: {why}",
                AGAIN.as_secs()
            );
        }
        self.problem = Some(why);
    }
}

/// What becomes of flows.
#[derive(Default)]
struct Decided {
    shut: Vec<Flow>,
    open: Vec<Flow>,
}

impl Decided {
    /// Of each family, whether no flow is closed once this is carried out.
    fn leaves_open(&self, closed: &BTreeMap<Family, usize>) -> BTreeMap<Family, bool> {
        let of = |list: &[Flow], family: Family| {
            list.iter().filter(|f| family.has(&f.original.src.into())).count()
        };
        closed.iter().map(|(f, n)| (*f, n + of(&self.shut, *f) == of(&self.open, *f))).collect()
    }
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
        let touched = haunted.iter().map(|a| IpNet::from(*a)).collect();
        if self.settle(Work { touched, ..Work::default() }, None) {
            self.pending.fresh.retain(|a| !haunted.contains(a));
            self.pending.gone.retain(|a| !haunted.contains(a));
            self.tracked.next.gone.retain(|a| !haunted.contains(a));
        }
    }

    /// Flows that policy denies or allows now, at once; those of workloads that came or went, and of members of sets, when
    /// that is due, by a walk.
    pub(super) fn cut_flows(&mut self, changed: &Changed, now: Instant) {
        self.tracked.add(Work::of(changed), now);
        if self.tracked.due().is_none_or(|at| at > now) {
            return;
        }
        self.tracked.due = None;
        let work = std::mem::take(&mut self.tracked.next);
        if work.all {
            // Whoever asks whether a policy is in force is told once this is done.
            self.settle(work, None);
            return;
        }
        let look = self.look_for(&work);
        let mut nf = self.driver.netfilter().again();
        let (tx, answer) = oneshot::channel();
        // Whoever asked may have ended.
        let walk = move || drop(tx.send(look.hear(&mut *nf).map_err(|e| e.to_string())));
        match std::thread::Builder::new().name("policy-flows".into()).spawn(walk) {
            Ok(_) => self.tracked.walk = Some(Walk { work, answer }),
            Err(_) => drop(self.settle(work, None)),
        }
    }

    pub(super) fn found(&mut self, found: Found) {
        self.settle(found.work, Some(found.heard));
    }

    /// Deletes flows of workloads that went, but for those of an address that somebody has meanwhile, and judges all others.
    /// Without what a walk has heard the flows are read here. `false`: it is to be done again.
    fn settle(&mut self, work: Work, heard: Option<Result<Heard, String>>) -> bool {
        let heard = match heard {
            Some(heard) => heard,
            None => {
                let look = self.look_for(&work);
                look.hear(self.driver.netfilter()).map_err(|e| e.to_string())
            }
        };
        let mut heard = match heard {
            Ok(heard) => heard,
            Err(why) => {
                self.tracked.failed(why);
                self.tracked.again(work);
                return false;
            }
        };
        let alive = self.alive();
        self.tracked.see(&mut heard, &alive);
        let left: BTreeSet<IpAddr> = work.gone.difference(&alive).copied().collect();
        let (cut, rest): (Vec<Flow>, Vec<Flow>) = heard.flows.into_iter().partition(|f| has_end(f, &left));
        let bit = self.closed_bit();
        let decided = match self.own_addresses() {
            Some(host) => Some(decide(&mut Doors::new(&self.state, &host), rest, bit.unwrap_or(0))),
            None => None,
        };
        let judged = decided.is_some();
        let decided = decided.unwrap_or_default();
        let open = decided.leaves_open(&heard.closed);
        let well = self.carry_out(cut, decided, bit) && judged;
        for (family, open) in open {
            if well && open {
                self.tracked.open.insert(family);
            } else {
                self.tracked.open.remove(&family);
            }
        }
        if !well {
            self.tracked.again(work);
        }
        well
    }

    fn look_for(&self, work: &Work) -> Look {
        let around = Around {
            families: self.driver.families(),
            open: &self.tracked.open,
            alive: self.alive(),
            hosts: self.model.endpoints.values().any(|e| e.host.is_some()),
            pools: self.settings.around.pools.iter().map(|(net, _)| *net).collect(),
            bit: self.closed_bit().unwrap_or(0),
        };
        Look::new(work, around)
    }

    fn alive(&self) -> BTreeSet<IpAddr> {
        let workloads = self.model.endpoints.values().filter(|e| e.host.is_none());
        workloads.flat_map(|e| e.addresses.iter().map(IpNet::addr)).collect()
    }

    /// Addresses by which the host's own flows are told; without them nothing is judged.
    fn own_addresses(&mut self) -> Option<ByAddress> {
        match addresses() {
            Ok(host) => {
                self.state.look(&host);
                Some(host).filter(|h| !h.is_empty())
            }
            Err(e) => {
                tracing::warn!(
                    "flows are not judged before the next look in {} s: addresses of this host cannot be read: {e}",
                    AGAIN.as_secs()
                );
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
                self.tracked.failed(e.to_string());
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_walk_whose_thread_died_is_no_walk_that_found_nothing() {
        let (tx, answer) = oneshot::channel();
        let work = Work { gone: [IpAddr::from([10, 0, 0, 1])].into(), ..Work::default() };
        let mut tracked = Tracked { walk: Some(Walk { work, answer }), ..Tracked::default() };
        drop(tx);
        let found = tracked.walked().await;
        assert!(found.heard.is_err() && !found.work.gone.is_empty());
        assert!(tracked.walk.is_none());
    }
}
