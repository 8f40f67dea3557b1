//! Export groups of one family: neighbors that are told the same, what they are told, and their queues.
//!
//! A change of a best path is turned into attributes once for each group and then only queued for its members.

use slab::Slab;

use super::{
    adj_out::{AdjOut, Want},
    attrs::{Attrs, Interner},
    bits::Bits,
    export::{Candidate, ExportCx, GroupKey, Memo},
    peers::Sources,
    prefix::Prefix,
    table::{Dest, Table},
};
use crate::speaker::PeerId;

/// One group.
#[derive(Debug)]
struct Group {
    key: GroupKey,
    members: Vec<PeerId>,
    /// By destination: what its members should know, split horizon aside.
    out: Vec<Option<Attrs>>,
    memo: Memo,
}

impl Group {
    fn get(&self, dest: u32) -> Option<&Attrs> {
        self.out.get(dest as usize).and_then(Option::as_ref)
    }

    fn set(&mut self, dest: u32, attrs: Option<Attrs>) {
        let n = dest as usize;
        if n >= self.out.len() {
            if attrs.is_none() {
                return;
            }
            self.out.resize(n + 1, None);
        }
        self.out[n] = attrs;
    }
}

/// A neighbor in a group.
#[derive(Debug)]
struct Member {
    group: usize,
    out: AdjOut,
    /// The driver knows that there is something to pull.
    rung: bool,
}

/// Everything on the way out in one family.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: Slab<Group>,
    members: Vec<Option<Member>>,
}

/// The group's word on what one of its members should know.
#[derive(Clone, Copy)]
struct MemberWant<'a, P> {
    table: &'a Table<P>,
    group: &'a Group,
    peer: PeerId,
}

impl<P: Prefix> Want for MemberWant<'_, P> {
    fn want(&self, dest: u32) -> Option<&Attrs> {
        let attrs = self.group.get(dest)?;
        // Split horizon: not back to where it came from.
        (self.table.dest(dest).best()?.peer != self.peer).then_some(attrs)
    }
}

/// What export needs besides the table.
#[derive(Debug)]
pub(super) struct OutCx<'a> {
    pub sources: &'a Sources,
    pub interner: &'a mut Interner,
    pub export: ExportCx,
    /// Neighbors for which there is something to pull now and was not before.
    pub ring: &'a mut Vec<PeerId>,
}

impl Groups {
    fn member(&self, peer: PeerId) -> Option<&Member> {
        self.members.get(peer.0 as usize)?.as_ref()
    }

    /// Whether a neighbor takes part.
    pub(super) fn contains(&self, peer: PeerId) -> bool {
        self.member(peer).is_some()
    }

    /// How many routes a neighbor has been told.
    pub(super) fn told(&self, peer: PeerId) -> usize {
        self.member(peer).map_or(0, |m| m.out.told())
    }

    /// How many changes wait for a neighbor.
    pub(super) fn waiting(&self, peer: PeerId) -> usize {
        self.member(peer).map_or(0, |m| m.out.waiting())
    }

    /// The queue of a neighbor, for tests of its bound.
    #[cfg(test)]
    pub(super) fn queue(&self, peer: PeerId) -> Option<&AdjOut> {
        self.member(peer).map(|m| &m.out)
    }

    /// What a neighbor has been told about a destination.
    pub(super) fn advertised<P: Prefix>(&self, table: &Table<P>, peer: PeerId, dest: u32) -> Option<&Attrs> {
        let member = self.member(peer)?;
        let group = self.groups.get(member.group)?;
        if !member.out.was_told(dest) {
            return None;
        }
        let attrs = group.get(dest)?;
        (table.dest(dest).best()?.peer != peer).then_some(attrs)
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
        let known = self.known_to(peer);
        let old = self.leave(peer);
        let number = match self.groups.iter().find(|(_, g)| g.key == key) {
            Some((n, _)) => n,
            None => self.found(table, key, cx),
        };
        let out = old.map_or_else(|| AdjOut::new(u64::from(peer.0)), |m| m.out);
        let mut member = Member { group: number, out, rung: false };
        let group = &mut self.groups[number];
        group.members.push(peer);
        let want = MemberWant { table, group, peer };
        for (n, _) in table.iter() {
            match want.want(n) {
                Some(attrs) => {
                    let changed = known.get(n as usize).and_then(Option::as_ref) != Some(attrs);
                    member.out.announce(n, attrs, changed);
                }
                None => member.out.withdraw(n),
            }
        }
        if eor {
            member.out.end_of_rib();
        }
        let n = peer.0 as usize;
        if n >= self.members.len() {
            self.members.resize_with(n + 1, || None);
        }
        self.members[n] = Some(member);
        self.ring(peer, cx.ring);
    }

    /// What the group the neighbor was in told its members; nothing if it was in none.
    fn known_to(&self, peer: PeerId) -> Vec<Option<Attrs>> {
        self.member(peer).and_then(|m| self.groups.get(m.group)).map(|g| g.out.clone()).unwrap_or_default()
    }

    /// A new group, with everything its members should know.
    fn found<P: Prefix>(&mut self, table: &Table<P>, key: GroupKey, cx: &mut OutCx<'_>) -> usize {
        let mut group = Group { key, members: Vec::new(), out: Vec::new(), memo: Memo::default() };
        for (n, dest) in table.iter() {
            let attrs = answer(&mut group, dest, cx);
            group.set(n, attrs);
        }
        self.groups.insert(group)
    }

    /// A neighbor went down, or leaves for another group.
    fn leave(&mut self, peer: PeerId) -> Option<Member> {
        let member = self.members.get_mut(peer.0 as usize)?.take()?;
        if let Some(group) = self.groups.get_mut(member.group) {
            group.members.retain(|m| *m != peer);
            if group.members.is_empty() {
                self.groups.remove(member.group);
            }
        }
        Some(member)
    }

    /// A neighbor went down.
    pub(super) fn remove(&mut self, peer: PeerId) {
        drop(self.leave(peer));
    }

    /// The best path of a destination changed.
    pub(super) fn propagate<P: Prefix>(&mut self, table: &Table<P>, n: u32, cx: &mut OutCx<'_>) {
        let dest = table.dest(n);
        let from = dest.best().map(|p| p.peer);
        for (_, group) in &mut self.groups {
            let new = answer(group, dest, cx);
            let changed = group.get(n) != new.as_ref();
            if new.is_none() && !changed {
                continue;
            }
            group.set(n, new);
            let group = &*group;
            for peer in &group.members {
                let Some(member) = self.members.get_mut(peer.0 as usize).and_then(Option::as_mut) else {
                    continue;
                };
                match group.get(n) {
                    Some(attrs) if from != Some(*peer) => member.out.announce(n, attrs, changed),
                    Some(_) | None => member.out.withdraw(n),
                }
                member.out.tidy(&MemberWant { table, group, peer: *peer });
                if !member.rung && !member.out.is_idle() {
                    member.rung = true;
                    cx.ring.push(*peer);
                }
            }
        }
    }

    /// What is known of a source has changed: earlier answers are no longer good.
    pub(super) fn forget(&mut self) {
        for (_, group) in &mut self.groups {
            group.memo = Memo::default();
        }
    }

    /// Queues everything again (RFC 2918).
    pub(super) fn refresh<P: Prefix>(&mut self, table: &Table<P>, peer: PeerId, ring: &mut Vec<PeerId>) {
        let Some(member) = self.members.get_mut(peer.0 as usize).and_then(Option::as_mut) else { return };
        let Some(group) = self.groups.get(member.group) else { return };
        let want = MemberWant { table, group, peer };
        for (n, _) in table.iter() {
            if let Some(attrs) = want.want(n) {
                member.out.announce(n, attrs, true);
            }
        }
        self.ring(peer, ring);
    }

    /// End-of-RIB for everybody, after what is queued.
    pub(super) fn end_of_rib(&mut self, ring: &mut Vec<PeerId>) {
        for (n, member) in (0u32..).zip(&mut self.members) {
            if let Some(m) = member {
                m.out.end_of_rib();
                if !m.rung {
                    m.rung = true;
                    ring.push(PeerId(n));
                }
            }
        }
    }

    fn ring(&mut self, peer: PeerId, ring: &mut Vec<PeerId>) {
        if let Some(m) = self.members.get_mut(peer.0 as usize).and_then(Option::as_mut)
            && !m.rung
            && !m.out.is_idle()
        {
            m.rung = true;
            ring.push(peer);
        }
    }

    /// Nothing more to pull: the next change rings again.
    pub(super) fn drained(&mut self, peer: PeerId) {
        if let Some(m) = self.members.get_mut(peer.0 as usize).and_then(Option::as_mut) {
            m.rung = false;
        }
    }

    /// Every destination somebody out there was told of or is about to be.
    pub(super) fn refers_to(&self) -> Bits {
        let mut all = Bits::default();
        for member in self.members.iter().flatten() {
            member.out.refers_to(&mut all);
        }
        all
    }

    /// The queue of a neighbor and what it should hold, for the packer.
    pub(super) fn pull<'a, P: Prefix>(
        &'a mut self,
        table: &'a Table<P>,
        peer: PeerId,
    ) -> Option<(&'a mut AdjOut, impl Want + use<'a, P>)> {
        let member = self.members.get_mut(peer.0 as usize)?.as_mut()?;
        let group = self.groups.get(member.group)?;
        Some((&mut member.out, MemberWant { table, group, peer }))
    }
}

/// What a group is told about the best path of a destination.
fn answer<P: Prefix>(group: &mut Group, dest: &Dest<P>, cx: &mut OutCx<'_>) -> Option<Attrs> {
    let best = dest.best()?;
    let candidate = Candidate { attrs: &best.attrs, peer: best.peer, source: cx.sources.get(best.peer) };
    group.key.export(dest.prefix, &candidate, cx.export, cx.interner, &mut group.memo)
}
