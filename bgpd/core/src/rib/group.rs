//! Export groups of one family: neighbors that are told the same, in the same octets, and what they are told.
//!
//! A change of a best path is turned into attributes once for each group. Members that keep up read the group's
//! [`Ring`]: what changed since it was last asked is encoded once for all of them. A member that comes up, asks for
//! everything again or does not read has bits of its own ([`AdjOut`]) until it has caught up; one with add-path has
//! [`PathsOut`].

use std::collections::VecDeque;

use slab::Slab;

use super::{
    LOCAL,
    adj_out::AdjOut,
    attrs::{Attrs, Interner},
    bits::Bits,
    decision::DecisionCx,
    export::{Candidate, GroupKey, Memo},
    pack::Packer,
    paths_out::{PathIds, PathsOut, Told, chosen},
    peers::{NextHops, Sources},
    prefix::Prefix,
    ring::{Ring, To},
    table::{Dest, Table},
};
use crate::speaker::PeerId;
use bytes::BytesMut;

mod look;
mod pull;

/// Octets in the ring before its slowest readers leave it.
pub(super) const RING_MAX: usize = 1 << 20;
/// Destinations encoded at a time.
const FLUSH_MAX: usize = 4_096;

/// A destination that changed since the last flush, and what the members knew: attributes and whose path.
type Pending = (u32, Option<(Attrs, PeerId)>);

/// One group.
#[derive(Debug)]
struct Group {
    key: GroupKey,
    /// By destination: what its members should know, split horizon aside. Not kept with add-path.
    out: Vec<Option<Attrs>>,
    /// How many of these there are, and how many have a path of this neighbor.
    some: usize,
    owned: Vec<usize>,
    memo: Memo,
    /// Members that read the ring.
    followers: Vec<PeerId>,
    /// Members with bits of their own.
    others: Vec<PeerId>,
    /// What the followers do not know yet; empty without followers.
    pending: VecDeque<Pending>,
    is_pending: Bits,
    ring: Ring,
}

impl Group {
    fn new(key: GroupKey) -> Self {
        Self {
            key,
            out: Vec::new(),
            some: 0,
            owned: Vec::new(),
            memo: Memo::default(),
            followers: Vec::new(),
            others: Vec::new(),
            pending: VecDeque::new(),
            is_pending: Bits::default(),
            ring: Ring::default(),
        }
    }

    fn get(&self, dest: u32) -> Option<&Attrs> {
        self.out.get(dest as usize).and_then(Option::as_ref)
    }

    /// What one member should know.
    fn want<P: Prefix>(&self, table: &Table<P>, peer: PeerId, dest: u32) -> Option<&Attrs> {
        let attrs = self.get(dest)?;
        // Split horizon: not back to where it came from.
        (self.key.owner(table.dest(dest))? != peer).then_some(attrs)
    }

    /// What members should know; returns what it was.
    fn set(
        &mut self,
        dest: u32,
        was: Option<PeerId>,
        owner: Option<PeerId>,
        attrs: Option<Attrs>,
    ) -> Option<Attrs> {
        let n = dest as usize;
        if n >= self.out.len() {
            // Never known, and not to be.
            attrs.as_ref()?;
            self.out.resize(n + 1, None);
        }
        if self.out[n].is_some() {
            self.some -= 1;
            self.owned(was, |n| *n = n.saturating_sub(1));
        }
        if attrs.is_some() {
            self.some += 1;
            self.owned(owner, |n| *n += 1);
        }
        std::mem::replace(&mut self.out[n], attrs)
    }

    fn owned(&mut self, peer: Option<PeerId>, change: impl FnOnce(&mut usize)) {
        let Some(peer) = peer.filter(|p| *p != LOCAL) else { return };
        let n = peer.0 as usize;
        if n >= self.owned.len() {
            self.owned.resize(n + 1, 0);
        }
        change(&mut self.owned[n]);
    }

    /// What a reader of the ring at this position was told, and what it has still to look at.
    fn own_bits<P: Prefix>(&self, table: &Table<P>, peer: PeerId, at: u64) -> AdjOut {
        let mut bits = AdjOut::default();
        for (n, attrs) in (0u32..).zip(&self.out) {
            if attrs.is_some() && self.want(table, peer, n).is_some() {
                bits.told.insert(n);
            }
        }
        // Backwards in time: the oldest word on a destination is the last that counts.
        let pending = self.pending.iter().map(|(n, was)| (*n, was.as_ref().map(|(_, p)| *p)));
        for (n, was) in pending.chain(self.ring.unread(at, peer).copied()) {
            bits.told.set(n, was.is_some_and(|p| p != peer));
            bits.dirty.insert(n);
        }
        bits
    }

    /// A member goes, or changes how it is told.
    fn part(&mut self, peer: PeerId, out: &Out) {
        if let Out::Ring(at) = out {
            self.ring.leave(*at);
            self.followers.retain(|p| *p != peer);
            if self.followers.is_empty() {
                self.pending.clear();
                self.is_pending = Bits::default();
            }
        } else {
            self.others.retain(|p| *p != peer);
        }
    }
}

/// How a member is told.
#[derive(Debug)]
enum Out {
    /// It reads the ring, and has come so far.
    Ring(u64),
    Own(AdjOut),
    Paths(PathsOut),
}

/// How far the answer to a route refresh is (RFC 2918).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Answer {
    #[default]
    None,
    /// Everything is queued; its beginning is to be said first.
    Due,
    /// Its end is due when nothing else is.
    Begun,
}

/// What a member wants again.
#[derive(Clone, Copy, Debug, Default)]
struct Refresh {
    answer: Answer,
    /// Where the answer begins and ends is said (RFC 7313).
    marked: bool,
    /// It was asked for again before the answer was over: one more follows, however often that was.
    again: bool,
}

/// A neighbor in a group.
#[derive(Debug)]
struct Member {
    group: usize,
    out: Out,
    /// End-of-RIB is due when nothing else is.
    eor: bool,
    refresh: Refresh,
    /// Everything is to be said again, known or not.
    again: Bits,
    /// The driver knows that there is something to pull.
    rung: bool,
}

impl Member {
    fn ring(&mut self, peer: PeerId, ring: &mut Vec<PeerId>) {
        if !self.rung {
            self.rung = true;
            ring.push(peer);
        }
    }

    fn is_idle(&self) -> bool {
        let quiet = match &self.out {
            Out::Ring(_) => true,
            Out::Own(bits) => bits.dirty.is_empty(),
            Out::Paths(paths) => paths.bits.dirty.is_empty(),
        };
        quiet && !self.eor && self.refresh.answer == Answer::None
    }

    /// Whether it was never told anything.
    fn is_new(&self) -> bool {
        match &self.out {
            Out::Ring(_) => false,
            Out::Own(bits) | Out::Paths(PathsOut { bits, .. }) => bits.told.is_empty(),
        }
    }
}

/// Everything on the way out in one family.
#[derive(Debug)]
pub(super) struct Groups {
    groups: Slab<Group>,
    members: Vec<Option<Member>>,
    ids: PathIds,
    seed: u64,
    /// Members with add-path.
    with_paths: usize,
}

/// What export needs besides the table.
#[derive(Debug)]
pub(super) struct OutCx<'a> {
    pub sources: &'a Sources,
    pub next_hops: &'a mut NextHops,
    pub interner: &'a mut Interner,
    /// Neighbors for which there is something to pull now and was not before.
    pub ring: &'a mut Vec<PeerId>,
}

impl Groups {
    pub(super) fn new(seed: u64) -> Self {
        Self { groups: Slab::new(), members: Vec::new(), ids: PathIds::new(seed), seed, with_paths: 0 }
    }

    fn member(&self, peer: PeerId) -> Option<&Member> {
        self.members.get(peer.0 as usize)?.as_ref()
    }

    fn member_mut(&mut self, peer: PeerId) -> Option<&mut Member> {
        self.members.get_mut(peer.0 as usize)?.as_mut()
    }

    /// Whether a neighbor takes part.
    pub(super) fn contains(&self, peer: PeerId) -> bool {
        self.member(peer).is_some()
    }

    /// What came and went before anybody read it need not be told, and must not keep its number.
    pub(super) fn forget_undone(&mut self) {
        for (_, group) in &mut self.groups {
            let (out, bits) = (&group.out, &mut group.is_pending);
            group.pending.retain(|(n, was)| {
                let undone = was.is_none() && out.get(*n as usize).is_none_or(Option::is_none);
                if undone {
                    bits.remove(*n);
                }
                !undone
            });
        }
    }

    /// Path identifiers of ours that somebody was told.
    #[cfg(test)]
    pub(super) fn path_ids(&self) -> usize {
        self.ids.len()
    }

    /// Octets in the rings.
    #[cfg(test)]
    pub(super) fn octets(&self) -> usize {
        self.groups.iter().map(|(_, g)| g.ring.octets()).sum()
    }

    /// How many routes a neighbor has been told; of a reader of the ring: is told when it has read it.
    pub(super) fn told(&self, peer: PeerId) -> usize {
        let Some((m, group)) = self.member(peer).and_then(|m| Some((m, self.groups.get(m.group)?))) else {
            return 0;
        };
        match &m.out {
            Out::Ring(_) => group.some.saturating_sub(group.owned.get(peer.0 as usize).copied().unwrap_or(0)),
            Out::Own(bits) => bits.told.len(),
            Out::Paths(paths) => paths.count(),
        }
    }

    /// How many changes wait for a neighbor.
    pub(super) fn waiting(&self, peer: PeerId) -> usize {
        let Some((m, group)) = self.member(peer).and_then(|m| Some((m, self.groups.get(m.group)?))) else {
            return 0;
        };
        match &m.out {
            Out::Ring(at) => group.ring.waiting(*at, peer) + group.pending.len(),
            Out::Own(bits) => bits.dirty.len(),
            Out::Paths(paths) => paths.bits.dirty.len(),
        }
    }

    /// What a neighbor has been told: destination, path identifier (0 without add-path), attributes. What it knows in
    /// a form that is out of date is left out.
    pub(super) fn advertised<P: Prefix>(&self, table: &Table<P>, peer: PeerId) -> Vec<(u32, u32, Attrs)> {
        let Some((m, group)) = self.member(peer).and_then(|m| Some((m, self.groups.get(m.group)?))) else {
            return Vec::new();
        };
        let current = |bits: &AdjOut| {
            let told = bits.told.iter();
            told.filter_map(|n| Some((n, 0, group.want(table, peer, n)?.clone()))).collect()
        };
        match &m.out {
            Out::Ring(at) => current(&group.own_bits(table, peer, *at)),
            Out::Own(bits) => current(bits),
            Out::Paths(p) => {
                let told = p.bits.told.iter();
                told.flat_map(|n| p.told(n).iter().map(move |(id, a)| (n, *id, a.clone()))).collect()
            }
        }
    }

    /// A neighbor comes up or changes its treatment: from now on it is told what `key` says. Everything that differs
    /// from what it has been told is queued; with `eor`, so is an End-of-RIB.
    pub(super) fn join<P: Prefix>(
        &mut self,
        table: &Table<P>,
        peer: PeerId,
        key: GroupKey,
        eor: bool,
        cx: &mut OutCx<'_>,
    ) {
        let (known, old) = self.depart(table, peer);
        let with_paths = key.add_path.is_some();
        let number = match self.groups.iter().find(|(_, g)| g.key == key) {
            Some((n, _)) => n,
            None => self.found(table, key, cx),
        };
        // What was due is due still.
        let eor = eor || old.as_ref().is_some_and(|m| m.eor);
        let refresh = old.as_ref().map(|m| m.refresh).unwrap_or_default();
        let mut member =
            Member { group: number, out: Out::Ring(0), eor, refresh, again: Bits::default(), rung: false };
        if with_paths {
            let mut paths = match old {
                Some(Member { out: Out::Paths(p), again, .. }) => {
                    // So is what a refresh has not repeated yet: the end of its answer is.
                    member.again = again;
                    p
                }
                old => {
                    let mut paths = PathsOut::new(self.seed ^ u64::from(peer.0));
                    if let Some(Member { out: Out::Own(bits), .. }) = &old {
                        paths.after_single(bits);
                    }
                    paths
                }
            };
            let key = &self.groups[number].key;
            for (n, dest) in table.iter() {
                if !dest.paths.is_empty() || key.originates(dest.prefix).is_some() {
                    paths.bits.dirty.insert(n);
                }
            }
            paths.look_at_all();
            member.out = Out::Paths(paths);
            self.with_paths += 1;
        } else {
            let mut bits = match old.map(|m| m.out) {
                Some(Out::Own(bits)) => bits,
                Some(Out::Paths(paths)) => {
                    paths.forget(&mut self.ids);
                    AdjOut::default()
                }
                Some(Out::Ring(_)) | None => AdjOut::default(),
            };
            let group = &self.groups[number];
            for (n, _) in table.iter() {
                let want = group.want(table, peer, n);
                let same = bits.told.contains(n)
                    && !bits.dirty.contains(n)
                    && want.is_some()
                    && known.get(n as usize).and_then(Option::as_ref) == want;
                if !same {
                    bits.change(n, want.is_some());
                }
            }
            member.out = Out::Own(bits);
        }
        self.groups[number].others.push(peer);
        if !member.is_idle() {
            member.ring(peer, cx.ring);
        }
        let n = peer.0 as usize;
        if n >= self.members.len() {
            self.members.resize_with(n + 1, || None);
        }
        self.members[n] = Some(member);
    }

    /// Takes a neighbor out of its group, with bits of its own: what its group told its members, and the member.
    fn depart<P: Prefix>(&mut self, table: &Table<P>, peer: PeerId) -> (Vec<Option<Attrs>>, Option<Member>) {
        let known = self.member(peer).and_then(|m| self.groups.get(m.group));
        let known = known.map(|g| g.out.clone()).unwrap_or_default();
        let own = self.member(peer).and_then(|m| match m.out {
            Out::Ring(at) => Some(self.groups.get(m.group)?.own_bits(table, peer, at)),
            Out::Own(_) | Out::Paths(_) => None,
        });
        let old = self.leave(peer).map(|mut m| {
            if let Some(bits) = own {
                m.out = Out::Own(bits);
            }
            m
        });
        (known, old)
    }

    /// A new group, with everything its members should know.
    fn found<P: Prefix>(&mut self, table: &Table<P>, key: GroupKey, cx: &mut OutCx<'_>) -> usize {
        let mut group = Group::new(key);
        if group.key.add_path.is_none() {
            for (n, dest) in table.iter() {
                let attrs = answer(&mut group, dest, cx);
                let owner = group.key.owner(dest);
                group.set(n, None, owner, attrs);
            }
        }
        self.groups.insert(group)
    }

    /// A neighbor went down, or leaves for another group.
    fn leave(&mut self, peer: PeerId) -> Option<Member> {
        let member = self.members.get_mut(peer.0 as usize)?.take()?;
        if let Some(group) = self.groups.get_mut(member.group) {
            group.part(peer, &member.out);
            if group.followers.is_empty() && group.others.is_empty() {
                self.groups.remove(member.group);
            }
        }
        if let Out::Paths(_) = member.out {
            self.with_paths -= 1;
        }
        Some(member)
    }

    /// A neighbor went down.
    pub(super) fn remove(&mut self, peer: PeerId) {
        if let Some(Member { out: Out::Paths(paths), .. }) = self.leave(peer) {
            paths.forget(&mut self.ids);
        }
    }

    /// The best path of a destination changed; it was one of `was`.
    pub(super) fn propagate<P: Prefix>(
        &mut self,
        table: &Table<P>,
        n: u32,
        was: Option<PeerId>,
        cx: &mut OutCx<'_>,
    ) {
        let dest = table.dest(n);
        let best = dest.best().map(|p| p.peer);
        for (_, group) in &mut self.groups {
            if group.key.add_path.is_some() {
                continue;
            }
            // What we originate ourselves was ours before, too.
            let (was, owner) = match group.key.originates(dest.prefix) {
                Some(_) => (Some(LOCAL), Some(LOCAL)),
                None => (was, best),
            };
            let new = answer(group, dest, cx);
            let old = group.get(n);
            if old == new.as_ref() && (new.is_none() || was == owner) {
                continue;
            }
            let wanted = new.is_some();
            let old = group.set(n, was, owner, new);
            if !group.followers.is_empty() && group.is_pending.insert(n) {
                if group.pending.is_empty() {
                    for peer in &group.followers {
                        if let Some(Some(m)) = self.members.get_mut(peer.0 as usize) {
                            m.ring(*peer, cx.ring);
                        }
                    }
                }
                group.pending.push_back((n, old.zip(was)));
            }
            for peer in &group.others {
                let Some(Some(member)) = self.members.get_mut(peer.0 as usize) else { continue };
                if let Out::Own(bits) = &mut member.out {
                    bits.change(n, wanted && owner != Some(*peer));
                }
                if !member.is_idle() {
                    member.ring(*peer, cx.ring);
                }
            }
        }
    }

    /// Some path of a destination changed, whether or not the best.
    pub(super) fn paths_changed(&mut self, n: u32, cx: &mut OutCx<'_>) {
        if self.with_paths == 0 {
            return;
        }
        for (_, group) in &mut self.groups {
            for peer in &group.others {
                if let Some(Some(m)) = self.members.get_mut(peer.0 as usize)
                    && let Out::Paths(paths) = &mut m.out
                {
                    paths.bits.dirty.insert(n);
                    m.ring(*peer, cx.ring);
                }
            }
        }
    }

    /// Whether any group is told a default route of ours.
    pub(super) fn originate(&self) -> bool {
        self.groups.iter().any(|(_, g)| g.key.rewrite.default_route.is_some())
    }

    /// Whether the rules of any group look at the device of a route.
    pub(super) fn read_interface(&self) -> bool {
        self.groups.iter().any(|(_, g)| g.key.policy.filters.reads_interface())
    }

    /// What is known of a source has changed: earlier answers are no longer good.
    pub(super) fn forget(&mut self) {
        for (_, group) in &mut self.groups {
            group.memo = Memo::default();
        }
    }

    /// Queues everything again (RFC 2918), with its beginning and end `marked` or not (RFC 7313). Who has not been told
    /// anything yet is about to be told all of it, so that is the answer; while End-of-RIB or an earlier answer is due,
    /// one more follows later: requests cost nothing as long as the answers are not read.
    pub(super) fn refresh<P: Prefix>(
        &mut self,
        table: &Table<P>,
        peer: PeerId,
        marked: bool,
        ring: &mut Vec<PeerId>,
    ) {
        let Some(member) = self.member_mut(peer) else { return };
        if member.eor && member.is_new() {
            return;
        }
        member.refresh.marked = marked;
        if member.eor || member.refresh.answer != Answer::None {
            member.refresh.again = true;
            return;
        }
        self.queue_again(table, peer);
        if let Some(member) = self.member_mut(peer) {
            member.ring(peer, ring);
        }
    }

    /// Everything a member should know is to be said to it, known or not.
    fn queue_again<P: Prefix>(&mut self, table: &Table<P>, peer: PeerId) {
        self.own(table, peer);
        let Some(Some(member)) = self.members.get_mut(peer.0 as usize) else { return };
        let Some(group) = self.groups.get(member.group) else { return };
        member.refresh.answer = Answer::Due;
        match &mut member.out {
            Out::Ring(_) => {}
            Out::Own(bits) => {
                for (n, _) in table.iter() {
                    if group.want(table, peer, n).is_some() {
                        bits.dirty.insert(n);
                    }
                }
            }
            Out::Paths(paths) => {
                paths.look_at_all();
                member.again.union(&paths.bits.told);
            }
        }
    }

    /// End-of-RIB for everybody, after what is queued.
    pub(super) fn end_of_rib(&mut self, ring: &mut Vec<PeerId>) {
        for (n, member) in (0u32..).zip(&mut self.members) {
            if let Some(m) = member {
                m.eor = true;
                m.ring(PeerId(n), ring);
            }
        }
    }

    /// Nothing more to pull: the next change rings again.
    pub(super) fn drained(&mut self, peer: PeerId) {
        if let Some(m) = self.member_mut(peer) {
            m.rung = false;
        }
    }

    /// Every destination somebody out there was told of or is about to be.
    pub(super) fn refers_to(&self) -> Bits {
        let mut all = Bits::default();
        for (_, group) in &self.groups {
            all.union(&group.is_pending);
            group.ring.dests().for_each(|n| {
                all.insert(n);
            });
        }
        for member in self.members.iter().flatten() {
            match &member.out {
                Out::Ring(_) => {}
                Out::Own(bits) | Out::Paths(PathsOut { bits, .. }) => {
                    all.union(&bits.told);
                    all.union(&bits.dirty);
                }
            }
        }
        all
    }

    /// A reader of the ring leaves it, with bits of its own.
    fn own<P: Prefix>(&mut self, table: &Table<P>, peer: PeerId) {
        let Some(Some(member)) = self.members.get_mut(peer.0 as usize) else { return };
        let (Out::Ring(at), Some(group)) = (&member.out, self.groups.get_mut(member.group)) else { return };
        let bits = group.own_bits(table, peer, *at);
        group.part(peer, &member.out);
        group.others.push(peer);
        member.out = Out::Own(bits);
    }
}

/// What a group is told about the best path of a destination.
fn answer<P: Prefix>(group: &mut Group, dest: &Dest<P>, cx: &mut OutCx<'_>) -> Option<Attrs> {
    if let Some(local_pref) = group.key.originates(dest.prefix) {
        return group.key.originated::<P>(local_pref, cx.interner);
    }
    let best = dest.best()?;
    let candidate = Candidate {
        attrs: &best.attrs,
        peer: best.peer,
        source: cx.sources.get(best.peer),
        next_hops: cx.next_hops,
    };
    group.key.export(dest.prefix, &candidate, cx.interner, &mut group.memo)
}
