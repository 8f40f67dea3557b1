//! The decision process: which of the paths to a prefix is used, and why not the others.
//!
//! Pure: paths and what is known about their sources in, a verdict out. Successive filters over the whole set, never
//! pairwise comparison, because MED compares only inside one neighboring AS and is not transitive across ASes.
//!
//! | step | RFC | what remains |
//! |---|---|---|
//! | Validity | 4271 9.1.2 | no loop, next hop reachable and not ourselves |
//! | LongLived | 9494 4.3 | fresh routes before long-lived stale ones |
//! | Weight | (ours) | own routes before learned ones; Calico's elevated priority before own |
//! | LocalPref | 4271 9.1.1 | highest degree of preference |
//! | AsPathLen | 4271 9.1.2.2 a | shortest AS_PATH |
//! | Origin | b | IGP, EGP, INCOMPLETE |
//! | Med | c | in each neighboring AS the lowest |
//! | External | d | from eBGP if there is any |
//! | IgpCost | e | nearest next hop |
//! | RouterId | f, 4456 9 | lowest ORIGINATOR_ID or router identifier |
//! | ClusterLen | 4456 9 | shortest CLUSTER_LIST |
//! | PeerAddress | g | lowest address |
//! | PathId | 7911 | lowest identifier, to leave exactly one |
//!
//! What is left after IgpCost is equal for forwarding: the multipath set.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{
    LOCAL,
    peers::{NextHops, Sources},
    table::Path,
};
use crate::speaker::Multipath;

/// Where a path lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Step {
    Validity,
    LongLived,
    Weight,
    LocalPref,
    AsPathLen,
    Origin,
    Med,
    External,
    IgpCost,
    RouterId,
    ClusterLen,
    PeerAddress,
    PathId,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Validity => "not usable",
            Self::LongLived => "long-lived stale",
            Self::Weight => "an own route is preferred",
            Self::LocalPref => "lower LOCAL_PREF",
            Self::AsPathLen => "longer AS_PATH",
            Self::Origin => "worse ORIGIN",
            Self::Med => "higher MED from the same AS",
            Self::External => "an external path is preferred",
            Self::IgpCost => "next hop farther away",
            Self::RouterId => "higher router identifier",
            Self::ClusterLen => "longer CLUSTER_LIST",
            Self::PeerAddress => "higher peer address",
            Self::PathId => "higher path identifier",
        })
    }
}

/// What the decision is made with, besides the paths.
#[derive(Clone, Copy, Debug)]
pub struct DecisionCx<'a> {
    pub sources: &'a Sources,
    pub next_hops: &'a NextHops,
    /// Bounds of the multipath set.
    pub multipath: Multipath,
}

/// The outcome, by position in the slice that was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub best: Option<u32>,
    /// The best and its equals, ascending.
    pub multipath: SmallVec<[u32; 4]>,
    /// One entry for each path; `None` for the best.
    pub lost: SmallVec<[Option<Step>; 4]>,
}

/// Paths still in the race.
struct Race<'a> {
    paths: &'a [Path],
    alive: SmallVec<[u32; 8]>,
    lost: SmallVec<[Option<Step>; 4]>,
}

impl Race<'_> {
    const fn path(&self, n: u32) -> &Path {
        &self.paths[n as usize]
    }

    /// Drops what does not satisfy `keep`.
    fn retain(&mut self, step: Step, keep: impl Fn(&Path) -> bool) {
        let (paths, lost) = (self.paths, &mut self.lost);
        self.alive.retain(|n| {
            let stays = keep(&paths[*n as usize]);
            if !stays {
                lost[*n as usize] = Some(step);
            }
            stays
        });
    }

    /// Keeps those with the lowest key.
    fn lowest<K: Ord>(&mut self, step: Step, key: impl Fn(&Path) -> K) {
        if self.alive.len() > 1
            && let Some(best) = self.alive.iter().map(|n| key(self.path(*n))).min()
        {
            self.retain(step, |p| key(p) == best);
        }
    }

    /// In each neighboring AS, keeps those with the lowest MED.
    fn lowest_med_by_as(&mut self) {
        if self.alive.len() < 2 {
            return;
        }
        let mut meds: SmallVec<[(u32, u32); 8]> =
            self.alive.iter().map(|n| &self.path(*n).attrs.rank).map(|r| (r.neighbor_as, r.med)).collect();
        // The lowest of each AS.
        meds.sort_unstable();
        meds.dedup_by_key(|(asn, _)| *asn);
        self.retain(Step::Med, |p| {
            let r = &p.attrs.rank;
            meds.binary_search(&(r.neighbor_as, r.med)).is_ok()
        });
    }
}

/// Own routes before learned ones, but a learned route of elevated priority before an own one of normal priority.
fn weight(path: &Path) -> u8 {
    match (path.attrs.rank.elevated, path.peer == LOCAL) {
        (true, _) => 2,
        (false, true) => 1,
        (false, false) => 0,
    }
}

/// How far the next hop is; `None`: out of reach. Own routes lead nowhere but here.
fn cost(path: &Path, next_hops: &NextHops) -> Option<u32> {
    if path.peer == LOCAL || next_hops.is_empty() {
        return Some(0);
    }
    path.attrs.next_hop().map_or(Some(0), |hop| next_hops.cost(hop.ip()))
}

/// Decides among the paths to one prefix. The order of the slice does not matter for what wins.
pub fn decide(paths: &[Path], cx: &DecisionCx<'_>) -> Verdict {
    match paths {
        [] => return Verdict::default(),
        [only] => return alone(only, cx),
        _ => {}
    }
    let mut race = Race {
        paths,
        alive: (0u32..).take(paths.len()).collect(),
        lost: SmallVec::from_elem(None, paths.len()),
    };
    race.retain(Step::Validity, |p| p.bad.is_none() && cost(p, cx.next_hops).is_some());
    race.lowest(Step::LongLived, |p| p.attrs.rank.long_lived);
    race.lowest(Step::Weight, |p| std::cmp::Reverse(weight(p)));
    race.lowest(Step::LocalPref, |p| std::cmp::Reverse(p.attrs.rank.pref));
    race.lowest(Step::AsPathLen, |p| p.attrs.rank.path_len);
    race.lowest(Step::Origin, |p| p.attrs.rank.origin);
    race.lowest_med_by_as();
    race.lowest(Step::External, |p| !p.flags.ebgp);
    race.lowest(Step::IgpCost, |p| cost(p, cx.next_hops));
    let equal = race.alive.clone();
    race.lowest(Step::RouterId, |p| p.attrs.rank.originator.unwrap_or(cx.sources.get(p.peer).router_id));
    race.lowest(Step::ClusterLen, |p| p.attrs.rank.cluster_len);
    race.lowest(Step::PeerAddress, |p| address_key(cx.sources.get(p.peer).address));
    race.lowest(Step::PathId, |p| (p.path_id, p.peer));
    let best = race.alive.first().copied();
    Verdict { best, multipath: multipath(paths, best, &equal, &cx.multipath), lost: race.lost }
}

/// The common case: nothing to compare with.
fn alone(only: &Path, cx: &DecisionCx<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    if only.bad.is_none() && cost(only, cx.next_hops).is_some() {
        verdict.best = Some(0);
        verdict.multipath.push(0);
        verdict.lost.push(None);
    } else {
        verdict.lost.push(Some(Step::Validity));
    }
    verdict
}

/// The best and as many of its equals as are wanted; an own route has no equals.
fn multipath(paths: &[Path], best: Option<u32>, equal: &[u32], wanted: &Multipath) -> SmallVec<[u32; 4]> {
    let Some(best) = best else { return SmallVec::new() };
    let Some(first) = paths.get(best as usize).filter(|p| p.peer != LOCAL) else {
        return SmallVec::from_slice(&[best]);
    };
    let others = wanted.limit(first.flags.ebgp).saturating_sub(1);
    if others == 0 || equal.len() < 2 {
        return SmallVec::from_slice(&[best]);
    }
    let as_path = wanted.same_as_path.then(|| first.attrs.set().as_path);
    let fits = |n: &u32| {
        *n != best
            && as_path
                .as_ref()
                .is_none_or(|a| paths.get(*n as usize).is_some_and(|p| p.attrs.set().as_path == *a))
    };
    let others = equal.iter().copied().filter(fits).take(others);
    let mut set: SmallVec<[u32; 4]> = std::iter::once(best).chain(others).collect();
    set.sort_unstable();
    set
}

/// IPv4 before IPv6, then by value.
const fn address_key(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(a) => (false, a.to_bits() as u128),
        IpAddr::V6(a) => (true, a.to_bits()),
    }
}
