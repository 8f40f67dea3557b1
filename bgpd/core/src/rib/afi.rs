//! The RIB of one family: Adj-RIB-In and Loc-RIB (in [`Table`]), the decision, and what follows from a change: export
//! and forwarding.

use ipnet::IpNet;
use smallvec::SmallVec;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use super::{
    LOCAL,
    attrs::{Attrs, Interner},
    bandwidth::{Bandwidth, shares},
    bits::Bits,
    decision::{DecisionCx, decide},
    group::{Groups, OutCx},
    import::{Invalid, Screen, Screened, judge_next_hop},
    prefix::Prefix,
    rewrite::add,
    table::{Age, Dest, Path, PathFlags, Table},
};
use crate::{
    speaker::{FibChange, LLGR_STALE, Multipath, NO_LLGR, PeerId},
    wire::Nlri,
};

/// Adj-RIB-In of one peer: which destinations it has sent.
#[derive(Debug, Default)]
struct AdjIn {
    dests: Bits,
    /// Paths; more than `dests` with add-path.
    paths: usize,
    stale: usize,
}

/// What a change needs of the rest of the RIB.
#[derive(Debug)]
pub(super) struct ChangeCx<'a> {
    pub out: OutCx<'a>,
    pub multipath: Multipath,
    /// Selection is put off (RFC 4724 section 4.1): paths are only stored.
    pub deferred: bool,
    /// `None`: nobody wants to know of changes of forwarding.
    pub fib: Option<&'a mut Vec<FibChange>>,
}

/// A received or own route.
#[derive(Clone, Debug)]
pub(super) struct NewPath {
    pub peer: PeerId,
    pub attrs: Attrs,
    pub ebgp: bool,
    pub bad: Option<Invalid>,
    /// The attributes as they came, where the import policy changed them.
    pub raw: Option<Attrs>,
}

/// One family.
#[derive(Debug)]
pub(super) struct Afi<P> {
    pub table: Table<P>,
    pub groups: Groups,
    ins: Vec<AdjIn>,
    own: AdjIn,
    /// Received attributes of paths whose import policy changed them, so that another policy can start from them.
    raw: BTreeMap<(u32, PeerId, u32), Attrs>,
    /// Destinations without paths, and how many of them make a sweep worthwhile.
    empty: usize,
    sweep_at: usize,
}

/// Least number of empty destinations for a sweep.
const SWEEP_MIN: usize = 1_024;

/// What is compared to see whether a change is one for others. Attributes are named by their address: whoever takes a path
/// out keeps it until the comparison is over.
struct Before {
    best: Option<(usize, PeerId)>,
    hops: SmallVec<[IpAddr; 1]>,
}

/// Destinations looked up together, so that one does not wait for the memory of the other.
const TOGETHER: usize = 32;

impl<P: Prefix> Afi<P> {
    /// An empty RIB.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            table: Table::new(seed),
            groups: Groups::new(seed),
            ins: Vec::new(),
            own: AdjIn::default(),
            raw: BTreeMap::new(),
            empty: 0,
            sweep_at: SWEEP_MIN,
        }
    }

    fn adj_in(&mut self, peer: PeerId) -> &mut AdjIn {
        if peer == LOCAL {
            return &mut self.own;
        }
        let n = peer.0 as usize;
        if n >= self.ins.len() {
            self.ins.resize_with(n + 1, AdjIn::default);
        }
        &mut self.ins[n]
    }

    fn adj_in_ref(&self, peer: PeerId) -> Option<&AdjIn> {
        if peer == LOCAL { Some(&self.own) } else { self.ins.get(peer.0 as usize) }
    }

    /// One more than the greatest number of a peer that has sent anything.
    pub(super) fn neighbors(&self) -> u32 {
        u32::try_from(self.ins.len()).unwrap_or(u32::MAX)
    }

    /// Destinations that have a path; those that only wait to be swept are none.
    pub(super) fn prefixes(&self) -> usize {
        self.table.len().saturating_sub(self.empty)
    }

    /// Paths a peer has sent.
    pub(super) fn received(&self, peer: PeerId) -> usize {
        self.adj_in_ref(peer).map_or(0, |i| i.paths)
    }

    /// Of these, those kept from before its restart.
    pub(super) fn stale(&self, peer: PeerId) -> usize {
        self.adj_in_ref(peer).map_or(0, |i| i.stale)
    }

    /// Routes to a destination arrive, one for each path identifier, replacing earlier ones of the same peer and
    /// identifier. They are decided about together. False if there are more than a peer may have: the others are left out.
    pub(super) fn announce(
        &mut self,
        prefix: P,
        ids: impl IntoIterator<Item = u32>,
        new: &NewPath,
        cx: &mut ChangeCx<'_>,
    ) -> bool {
        let (n, added) = self.table.get_or_add(prefix);
        let peer = new.peer;
        let mut before = None;
        // Kept until the comparison is over.
        let mut old: SmallVec<[Path; 1]> = SmallVec::new();
        let mut fits = true;
        for path_id in ids {
            let dest = self.table.dest_mut(n);
            let at = dest.find(peer, path_id);
            if at.is_err() && dest.is_full(peer) {
                fits = false;
                break;
            }
            if let Some(raw) = &new.raw {
                self.raw.insert((n, peer, path_id), raw.clone());
            } else if !self.raw.is_empty() {
                self.raw.remove(&(n, peer, path_id));
            }
            if let Ok(at) = at
                && let Some(old) = dest.paths.get_mut(at)
                && old.attrs == new.attrs
                && old.bad == new.bad
            {
                // Nothing new, except that it is confirmed.
                if std::mem::take(&mut old.flags.age) == Age::Stale {
                    self.adj_in(peer).stale -= 1;
                }
                continue;
            }
            before.get_or_insert_with(|| Before::of(dest, cx));
            let path = Path {
                attrs: new.attrs.clone(),
                peer,
                path_id,
                flags: PathFlags { ebgp: new.ebgp, age: Age::Fresh, multipath: false },
                bad: new.bad,
                lost: None,
            };
            // An empty destination that is found again is one less to sweep.
            let refilled = !added && dest.paths.is_empty();
            let replaced = match at {
                Ok(at) => dest.paths.get_mut(at).map(|old| std::mem::replace(old, path)),
                Err(at) => {
                    dest.paths.insert(at, path);
                    None
                }
            };
            self.empty -= usize::from(refilled);
            let adj = self.adj_in(peer);
            if at.is_err() {
                adj.dests.insert(n);
                adj.paths += 1;
            }
            adj.stale -= usize::from(replaced.as_ref().is_some_and(|o| o.flags.age == Age::Stale));
            old.extend(replaced);
        }
        if let Some(before) = before {
            self.after(n, before, cx);
        }
        fits
    }

    /// Routes of a peer are withdrawn.
    pub(super) fn withdraw(&mut self, list: &[Nlri<P>], peer: PeerId, cx: &mut ChangeCx<'_>) {
        let mut next = 0;
        for some in list.chunks(TOGETHER) {
            let mut numbers = [None; TOGETHER];
            for (n, nlri) in numbers.iter_mut().zip(some) {
                *n = self.table.get_near(nlri.prefix, next);
                next = n.map_or(next, |n| n.saturating_add(1));
            }
            // A number that is given up on the way has no paths, so nothing is removed from it.
            let mut rest = some;
            for same in numbers[..some.len()].chunk_by(PartialEq::eq) {
                let (these, others) = rest.split_at(same.len());
                rest = others;
                if let Some(Some(n)) = same.first() {
                    self.remove(*n, peer, |p| these.iter().any(|nlri| nlri.path_id == p.path_id), cx);
                }
            }
        }
    }

    /// Removes paths of a peer from a destination; returns how many.
    fn remove(
        &mut self,
        n: u32,
        peer: PeerId,
        which: impl Fn(&Path) -> bool,
        cx: &mut ChangeCx<'_>,
    ) -> usize {
        let dest = self.table.dest_mut(n);
        let goes = |p: &Path| p.peer == peer && which(p);
        if !dest.paths.iter().any(goes) {
            return 0;
        }
        let before = Before::of(dest, cx);
        // Mostly it is the only one.
        let gone: SmallVec<[Path; 1]> = match &dest.paths[..] {
            [_] => std::mem::take(&mut dest.paths),
            _ => {
                let gone = dest.paths.iter().filter(|p| goes(p)).cloned().collect();
                dest.paths.retain(|p| !goes(p));
                gone
            }
        };
        let left = dest.paths.iter().any(|p| p.peer == peer);
        let emptied = dest.paths.is_empty();
        if !self.raw.is_empty() {
            for p in &gone {
                self.raw.remove(&(n, peer, p.path_id));
            }
        }
        let adj = self.adj_in(peer);
        adj.paths -= gone.len();
        adj.stale -= gone.iter().filter(|p| p.flags.age == Age::Stale).count();
        if !left {
            adj.dests.remove(n);
        }
        self.empty += usize::from(emptied);
        self.after(n, before, cx);
        if self.empty >= self.sweep_at {
            self.sweep();
        }
        gone.len()
    }

    /// Decides about a destination whose paths have changed, and passes on what follows.
    fn after(&mut self, n: u32, before: Before, cx: &mut ChangeCx<'_>) {
        if cx.deferred {
            return;
        }
        let dest = self.table.dest_mut(n);
        let verdict = decide(
            &dest.paths,
            &DecisionCx { sources: cx.out.sources, next_hops: cx.out.next_hops, multipath: cx.multipath },
        );
        dest.settle(&verdict);
        let best = dest.best();
        let changed = before.best != best.map(|b| (b.attrs.address(), b.peer));
        if let Some(fib) = &mut cx.fib {
            let hops = next_hops(dest);
            if hops != before.hops {
                let from = best.map(|p| p.peer).filter(|p| *p != LOCAL);
                fib.push(FibChange { prefix: dest.prefix.net(), next_hops: hops, from });
            }
        }
        if changed {
            self.groups.propagate(&self.table, n, before.best.map(|(_, p)| p), &mut cx.out);
        }
        self.groups.paths_changed(n, &mut cx.out);
    }

    /// Removes what a peer has sent, all of it or only what is stale; returns how many paths.
    pub(super) fn drop_paths(&mut self, peer: PeerId, only_stale: bool, cx: &mut ChangeCx<'_>) -> usize {
        if only_stale && self.stale(peer) == 0 {
            return 0;
        }
        self.drop_where(peer, |p| !only_stale || p.flags.age == Age::Stale, cx)
    }

    fn drop_where(&mut self, peer: PeerId, which: impl Fn(&Path) -> bool, cx: &mut ChangeCx<'_>) -> usize {
        let dests: Vec<u32> = self.adj_in_ref(peer).map(|i| i.dests.iter().collect()).unwrap_or_default();
        dests.into_iter().map(|n| self.remove(n, peer, &which, cx)).sum()
    }

    /// The peer begins to send everything again (RFC 7313): what it does not repeat will go. What is kept from before
    /// its restart waits for End-of-RIB, not for this.
    pub(super) fn begin_refresh(&mut self, peer: PeerId) {
        let dests: Vec<u32> = self.adj_in_ref(peer).map(|i| i.dests.iter().collect()).unwrap_or_default();
        for n in dests {
            let paths = self.table.dest_mut(n).paths.iter_mut();
            for path in paths.filter(|p| p.peer == peer && p.flags.age == Age::Fresh) {
                path.flags.age = Age::Unconfirmed;
            }
        }
    }

    /// It has sent everything: what it did not repeat goes; returns how many paths.
    pub(super) fn end_refresh(&mut self, peer: PeerId, cx: &mut ChangeCx<'_>) -> usize {
        self.drop_where(peer, |p| p.flags.age == Age::Unconfirmed, cx)
    }

    /// Removes paths of a peer whose prefix does not satisfy `keep`.
    pub(super) fn retain(&mut self, peer: PeerId, keep: impl Fn(P) -> bool, cx: &mut ChangeCx<'_>) {
        let dests: Vec<u32> = self.adj_in_ref(peer).map(|i| i.dests.iter().collect()).unwrap_or_default();
        for n in dests {
            if !keep(self.table.dest(n).prefix) {
                self.remove(n, peer, |_| true, cx);
            }
        }
    }

    /// Marks what a peer has sent as kept from before its restart; returns how many paths.
    pub(super) fn mark_stale(&mut self, peer: PeerId) -> usize {
        let dests: Vec<u32> = self.adj_in_ref(peer).map(|i| i.dests.iter().collect()).unwrap_or_default();
        let mut marked = 0;
        for n in dests {
            for path in self.table.dest_mut(n).paths.iter_mut().filter(|p| p.peer == peer) {
                path.flags.age = Age::Stale;
                marked += 1;
            }
        }
        self.adj_in(peer).stale = marked;
        marked
    }

    /// Stale paths of a peer become long-lived stale ones; those that may not, go. Returns how many are left.
    pub(super) fn long_lived(&mut self, peer: PeerId, cx: &mut ChangeCx<'_>) -> usize {
        let dests: Vec<u32> = self.adj_in_ref(peer).map(|i| i.dests.iter().collect()).unwrap_or_default();
        for n in dests {
            self.remove(
                n,
                peer,
                |p| p.flags.age == Age::Stale && p.attrs.set().communities.contains(&NO_LLGR),
                cx,
            );
            let dest = self.table.dest_mut(n);
            let before = Before::of(dest, cx);
            let mut old: SmallVec<[Attrs; 1]> = SmallVec::new();
            for path in dest.paths.iter_mut().filter(|p| p.peer == peer && p.flags.age == Age::Stale) {
                // A set with no room for one community more stays as it is; it is dropped when the time is over.
                if let Some(attrs) = long_lived(&path.attrs, cx.out.interner) {
                    old.push(std::mem::replace(&mut path.attrs, attrs));
                }
                // Another import policy starts from here.
                if let Some(raw) = self.raw.get_mut(&(n, peer, path.path_id))
                    && let Some(attrs) = long_lived(raw, cx.out.interner)
                {
                    *raw = attrs;
                }
            }
            if !old.is_empty() {
                self.after(n, before, cx);
            }
        }
        self.stale(peer)
    }

    /// Decides about every destination: after selection was put off, or when next hops or sources have changed.
    pub(super) fn decide_all(&mut self, cx: &mut ChangeCx<'_>) {
        let all: Vec<u32> = self.table.iter().map(|(n, _)| n).collect();
        for n in all {
            let before = Before::of(self.table.dest(n), cx);
            self.after(n, before, cx);
        }
    }

    /// What is known of a source has changed: its routes are decided about and exported again.
    pub(super) fn source_changed(&mut self, peer: PeerId, cx: &mut ChangeCx<'_>) {
        self.groups.forget();
        let dests: Vec<u32> = self.adj_in_ref(peer).map(|i| i.dests.iter().collect()).unwrap_or_default();
        for n in dests {
            let before = Before::of(self.table.dest(n), cx);
            self.after(n, before, cx);
            if !cx.deferred {
                let best = self.table.dest(n).best().map(|p| p.peer);
                self.groups.propagate(&self.table, n, best, &mut cx.out);
            }
        }
    }

    /// Next hops are behind other devices: what is told to groups whose rules look at them is decided about again.
    pub(super) fn devices_changed(&mut self, cx: &mut ChangeCx<'_>) {
        if cx.deferred || !self.groups.read_interface() {
            return;
        }
        self.groups.forget();
        let all: Vec<u32> = self.table.iter().map(|(n, _)| n).collect();
        for n in all {
            let best = self.table.dest(n).best().map(|p| p.peer);
            self.groups.propagate(&self.table, n, best, &mut cx.out);
            self.groups.paths_changed(n, &mut cx.out);
        }
    }

    /// The interner was emptied, for what is computed of attributes is another now: every path gets its set from it
    /// again, is decided about and told again.
    pub(super) fn intern_again(&mut self, cx: &mut ChangeCx<'_>) {
        self.groups.forget();
        for raw in self.raw.values_mut() {
            if let Some(again) = cx.out.interner.intern(&raw.set(), raw.next_hop()) {
                *raw = again;
            }
        }
        let all: Vec<u32> = self.table.iter().map(|(n, _)| n).collect();
        for n in all {
            let dest = self.table.dest_mut(n);
            let before = Before::of(dest, cx);
            let mut old: SmallVec<[Attrs; 1]> = SmallVec::new();
            for path in &mut dest.paths {
                if let Some(again) = cx.out.interner.intern(&path.attrs.set(), path.attrs.next_hop()) {
                    old.push(std::mem::replace(&mut path.attrs, again));
                }
            }
            self.after(n, before, cx);
        }
    }

    /// The import policy of a peer has changed, or what is known of these next hops of its routes: they are judged again,
    /// from their attributes as they came.
    pub(super) fn screen(
        &mut self,
        peer: PeerId,
        screen: &mut Screen<'_>,
        hops: Option<&BTreeSet<IpAddr>>,
        cx: &mut ChangeCx<'_>,
    ) {
        let judge = |net, path: &Path, raw: &Attrs, cx: &mut ChangeCx<'_>| {
            let asked = matches!(path.bad, None | Some(Invalid::Filtered(_) | Invalid::NoDevice))
                && hops.is_none_or(|hops| path.attrs.next_hop().is_some_and(|h| hops.contains(&h.ip())));
            asked.then(|| screen.judge(net, raw, cx.out.interner, cx.out.next_hops))
        };
        self.judge_again(peer, judge, cx);
    }

    /// Our cluster is another: routes of an internal peer that had passed the old one may be used, those that have
    /// passed the new one may not (RFC 4456 section 8).
    pub(super) fn cluster_changed(
        &mut self,
        peer: PeerId,
        cluster: Ipv4Addr,
        screen: &mut Screen<'_>,
        cx: &mut ChangeCx<'_>,
    ) {
        let judge = |net, path: &Path, raw: &Attrs, cx: &mut ChangeCx<'_>| {
            let looped = path.bad == Some(Invalid::ClusterLoop);
            let loops = raw.set().cluster_list.contains(&cluster);
            if loops == looped || matches!(path.bad, Some(Invalid::AsLoop | Invalid::OriginatorLoop)) {
                return None;
            }
            let hop = raw.next_hop();
            let bad = match hop.filter(|_| !loops).map(|h| judge_next_hop(&h, cx.out.next_hops)) {
                _ if loops => Some(Invalid::ClusterLoop),
                Some(Some(bad)) => Some(bad),
                _ => return Some(screen.judge(net, raw, cx.out.interner, cx.out.next_hops)),
            };
            Some(Screened { attrs: raw.clone(), raw: None, bad })
        };
        self.judge_again(peer, judge, cx);
    }

    /// Asks again about what a peer has sent, as it came; `judge` says `None` where nothing changes.
    fn judge_again(
        &mut self,
        peer: PeerId,
        mut judge: impl FnMut(IpNet, &Path, &Attrs, &mut ChangeCx<'_>) -> Option<Screened>,
        cx: &mut ChangeCx<'_>,
    ) {
        let dests: Vec<u32> = self.adj_in_ref(peer).map(|i| i.dests.iter().collect()).unwrap_or_default();
        for n in dests {
            let dest = self.table.dest(n);
            let prefix = dest.prefix;
            let paths: SmallVec<[Path; 1]> = dest.paths.iter().filter(|p| p.peer == peer).cloned().collect();
            for path in paths {
                let raw = self.raw.get(&(n, peer, path.path_id)).unwrap_or(&path.attrs).clone();
                let Some(Screened { attrs, raw, bad }) = judge(prefix.net(), &path, &raw, cx) else {
                    continue;
                };
                let new = NewPath { peer, attrs, ebgp: path.flags.ebgp, bad, raw };
                self.announce(prefix, [path.path_id], &new, cx);
                // It was not confirmed by this.
                if path.flags.age != Age::Fresh
                    && let Ok(at) = self.table.dest(n).find(peer, path.path_id)
                    && let Some(p) = self.table.dest_mut(n).paths.get_mut(at)
                {
                    p.flags.age = path.flags.age;
                    self.adj_in(peer).stale += usize::from(path.flags.age == Age::Stale);
                }
            }
        }
    }

    /// A place for the default route of ours that somebody is told; it needs no path.
    pub(super) fn hold_default(&mut self) {
        let (_, added) = self.table.get_or_add(P::default());
        self.empty += usize::from(added);
    }

    /// Gives up destinations nobody refers to.
    fn sweep(&mut self) {
        self.groups.forget_undone();
        let mut used = self.groups.refers_to();
        if let Some(n) = self.table.get(P::default()).filter(|_| self.groups.originate()) {
            used.insert(n);
        }
        self.empty = self.table.release(|n| used.contains(n));
        self.sweep_at = SWEEP_MIN.max(self.empty * 2).max(self.table.len() / 2);
    }

    /// Destinations that match a prefix exactly, or all; sorted.
    pub(super) fn select(&self, prefix: Option<P>) -> Vec<&Dest<P>> {
        match prefix {
            Some(p) => self.table.get(p).map(|n| self.table.dest(n)).into_iter().collect(),
            None => {
                let mut all: Vec<&Dest<P>> =
                    self.table.iter().map(|(_, d)| d).filter(|d| !d.paths.is_empty()).collect();
                all.sort_unstable_by_key(|d| d.prefix);
                all
            }
        }
    }

    /// What a peer has been told, sorted by prefix.
    pub(super) fn advertised(&self, peer: PeerId) -> Vec<(IpNet, u32, Attrs)> {
        let all = self.groups.advertised(&self.table, peer);
        let mut all: Vec<(P, u32, Attrs)> =
            all.into_iter().map(|(n, id, a)| (self.table.dest(n).prefix, id, a)).collect();
        all.sort_unstable_by_key(|(p, id, _)| (*p, *id));
        all.into_iter().map(|(p, id, a)| (p.net(), id, a)).collect()
    }
}

impl Before {
    fn of<P>(dest: &Dest<P>, cx: &ChangeCx<'_>) -> Self {
        if cx.deferred {
            return Self { best: None, hops: SmallVec::new() };
        }
        let hops = if cx.fib.is_some() { next_hops(dest) } else { SmallVec::new() };
        Self { best: dest.best().map(|p| (p.attrs.address(), p.peer)), hops }
    }
}

/// The attributes of a path that is long-lived stale now.
fn long_lived(attrs: &Attrs, interner: &mut Interner) -> Option<Attrs> {
    let mut set = attrs.set();
    add(&mut set, LLGR_STALE);
    interner.intern(&set, attrs.next_hop())
}

/// Where packets to a destination go: the next hops of its multipath set, sorted; none for own routes. One stands there
/// once for each part of the flows it is to have.
pub(super) fn next_hops<P>(dest: &Dest<P>) -> SmallVec<[IpAddr; 1]> {
    let used = || dest.paths.iter().filter(|p| p.flags.multipath && p.peer != LOCAL);
    let mut hops: SmallVec<[IpAddr; 1]> = used().filter_map(|p| p.attrs.next_hop().map(|h| h.ip())).collect();
    if hops.len() < 2 {
        return hops;
    }
    if used().all(|p| p.attrs.bandwidth.is_some()) {
        let told = used().filter_map(|p| Some((p.attrs.next_hop()?.ip(), p.attrs.bandwidth?)));
        let mut told: SmallVec<[(IpAddr, Bandwidth); 4]> = told.collect();
        // Of one next hop taught twice the greater counts: the lesser may be older news of the same link.
        told.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        told.dedup_by_key(|(hop, _)| *hop);
        let parts = told.iter().zip(shares(told.iter().map(|(_, rate)| *rate)));
        return parts.flat_map(|((hop, _), n)| std::iter::repeat_n(*hop, n as usize)).collect();
    }
    hops.sort_unstable();
    hops.dedup();
    hops
}
