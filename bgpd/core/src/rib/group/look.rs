//! What one neighbor knows of one destination, without going over all of them.

use super::{Dest, Groups, Out, Prefix, Table};
use crate::{
    rib::{bits::Bits, paths_out::Told},
    speaker::PeerId,
};

impl Groups {
    /// Whose path somebody was told under an identifier of ours.
    pub(in super::super) fn owner(&self, id: u32) -> Option<PeerId> {
        self.ids.owner(id)
    }

    /// Whose path to a destination a neighbor is told, without add-path.
    pub(in super::super) fn owner_for<P: Prefix>(&self, peer: PeerId, dest: &Dest<P>) -> Option<PeerId> {
        self.groups.get(self.member(peer)?.group)?.key.owner(dest)
    }

    /// Destinations a neighbor has not been told the latest of.
    pub(in super::super) fn late(&self, peer: PeerId) -> Bits {
        let mut late = Bits::default();
        let Some((m, group)) = self.member(peer).and_then(|m| Some((m, self.groups.get(m.group)?))) else {
            return late;
        };
        match &m.out {
            Out::Ring(at) => {
                for n in
                    group.pending.iter().map(|(n, _)| *n).chain(group.ring.unread(*at, peer).map(|w| w.0))
                {
                    late.insert(n);
                }
                late
            }
            Out::Own(bits) => bits.dirty.clone(),
            Out::Paths(paths) => paths.bits.dirty.clone(),
        }
    }

    /// Whether a neighbor knows a destination in the form it should; `late` are those of [`late`](Self::late).
    pub(in super::super) fn knows<P: Prefix>(
        &self,
        table: &Table<P>,
        peer: PeerId,
        dest: u32,
        late: &Bits,
    ) -> bool {
        let Some((m, group)) = self.member(peer).and_then(|m| Some((m, self.groups.get(m.group)?))) else {
            return false;
        };
        match &m.out {
            Out::Ring(_) => !late.contains(dest) && group.want(table, peer, dest).is_some(),
            Out::Own(bits) => {
                bits.told.contains(dest) && !late.contains(dest) && group.want(table, peer, dest).is_some()
            }
            Out::Paths(paths) => !paths.told(dest).is_empty(),
        }
    }

    /// What a neighbor was told about a destination: identifiers (0 without add-path) and attributes. What it knows in
    /// a form that is out of date is left out.
    pub(in super::super) fn told_of<P: Prefix>(&self, table: &Table<P>, peer: PeerId, dest: u32) -> Told {
        let Some((m, group)) = self.member(peer).and_then(|m| Some((m, self.groups.get(m.group)?))) else {
            return Told::new();
        };
        let current = match &m.out {
            Out::Ring(at) => {
                !group.is_pending.contains(dest) && !group.ring.unread(*at, peer).any(|w| w.0 == dest)
            }
            Out::Own(bits) => bits.told.contains(dest) && !bits.dirty.contains(dest),
            Out::Paths(paths) => return paths.told(dest).into(),
        };
        if !current {
            return Told::new();
        }
        group.want(table, peer, dest).map(|a| (0, a.clone())).into_iter().collect()
    }
}
