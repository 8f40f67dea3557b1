//! What one neighbor with add-path (RFC 7911) was told and is still to be told: several paths to a destination, each
//! under an identifier of ours.

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use slab::Slab;
use smallvec::SmallVec;

use super::{
    adj_out::AdjOut,
    attrs::Attrs,
    bits::Bits,
    decision::{DecisionCx, Step, decide},
    table::Path,
};
use crate::speaker::{AddPathSend, PeerId};

/// Our identifiers: one for each peer and identifier of its own that somebody was told, given back when nobody knows
/// it any more. So a path keeps its identifier while it matters, and a peer that invents new identifiers for ever
/// costs nothing: there are never more than were told.
#[derive(Debug)]
pub(super) struct PathIds {
    by_key: HashMap<(PeerId, u32), u32, FixedState>,
    /// By identifier less one: whose it is, and how many times it was told (by destination and neighbor).
    used: Slab<((PeerId, u32), usize)>,
}

impl PathIds {
    pub(super) fn new(seed: u64) -> Self {
        Self { by_key: HashMap::with_hasher(FixedState::with_seed(seed)), used: Slab::new() }
    }

    /// The identifier of a path, told once more.
    pub(super) fn hold(&mut self, key: (PeerId, u32)) -> u32 {
        let id = *self.by_key.entry(key).or_insert_with(|| {
            let n = self.used.insert((key, 0));
            u32::try_from(n + 1).expect("fewer than 2^32 paths fit into memory")
        });
        if let Some((_, times)) = self.used.get_mut(id as usize - 1) {
            *times += 1;
        }
        id
    }

    /// Somebody was told that an identifier is withdrawn, or went away.
    fn release(&mut self, id: u32) {
        let n = id as usize - 1;
        let Some((key, times)) = self.used.get_mut(n) else { return };
        *times -= 1;
        if *times == 0 {
            self.by_key.remove(key);
            self.used.remove(n);
        }
    }

    /// Whose path has an identifier of ours.
    pub(super) fn owner(&self, id: u32) -> Option<PeerId> {
        let n = usize::try_from(id).ok()?.checked_sub(1)?;
        self.used.get(n).map(|((peer, _), _)| *peer)
    }

    /// How many are in use.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.used.len()
    }
}

/// A path on its way out.
pub(super) type Told = SmallVec<[(u32, Attrs); 2]>;

/// Adj-RIB-Out of one neighbor and family with add-path.
#[derive(Debug)]
pub(super) struct PathsOut {
    /// Destinations to look at; those it was told something of.
    pub(super) bits: AdjOut,
    told: HashMap<u32, Told, FixedState>,
    /// Destinations it was told one path of, without an identifier of ours: before it was told several.
    single: Bits,
    count: usize,
}

impl PathsOut {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            bits: AdjOut::default(),
            told: HashMap::with_hasher(FixedState::with_seed(seed)),
            single: Bits::default(),
            count: 0,
        }
    }

    /// From now on it is told several paths; so far it was told one, under 0, of these destinations.
    pub(super) fn after_single(&mut self, old: &AdjOut) {
        self.bits.told.union(&old.told);
        self.single.union(&old.told);
    }

    /// How many paths it was told.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// What it was told of a destination.
    pub(super) fn told(&self, dest: u32) -> &[(u32, Attrs)] {
        self.told.get(&dest).map_or(&[], |t| t.as_slice())
    }

    /// From now on it is told `want`, whose identifiers are held for it; gives what must be said: new or changed paths, with
    /// `again` also those it knows already; then withdrawn identifiers, and whether they must come behind: where the
    /// destination has new paths, the neighbor is never to be without one.
    pub(super) fn replace(
        &mut self,
        dest: u32,
        want: Told,
        again: bool,
        ids: &mut PathIds,
        mut say: impl FnMut(u32, Option<&Attrs>, bool),
    ) {
        let old = self.told.remove(&dest).unwrap_or_default();
        let mut behind = false;
        for (id, attrs) in &want {
            if again || !old.iter().any(|(o, a)| o == id && a == attrs) {
                say(*id, Some(attrs), false);
                behind = true;
            }
        }
        if self.single.remove(dest) {
            say(0, None, behind);
        }
        self.count -= old.len();
        for (id, _) in old.iter().filter(|(id, _)| !want.iter().any(|(w, _)| w == id)) {
            say(*id, None, behind);
        }
        old.iter().for_each(|(id, _)| ids.release(*id));
        self.count += want.len();
        self.bits.told.set(dest, !want.is_empty());
        if !want.is_empty() {
            self.told.insert(dest, want);
        }
    }

    /// The neighbor is gone, or is told single paths from now on.
    pub(super) fn forget(self, ids: &mut PathIds) {
        self.told.values().flatten().for_each(|(id, _)| ids.release(*id));
    }

    /// Everything it was told of becomes a destination to look at.
    pub(super) fn look_at_all(&mut self) {
        let told: Bits = self.bits.told.clone();
        self.bits.dirty.union(&told);
    }
}

/// Which of the paths to a destination are worth telling: usable ones, all of them or the best so many.
pub(super) fn chosen<'a>(
    paths: &'a [Path],
    send: AddPathSend,
    cx: &DecisionCx<'_>,
) -> SmallVec<[&'a Path; 4]> {
    let usable = paths.iter().filter(|p| p.bad.is_none() && p.lost != Some(Step::Validity));
    let best = match send {
        AddPathSend::All => return usable.collect(),
        AddPathSend::Best(n) => usize::from(n.get()),
        AddPathSend::Single => 1,
    };
    // The best, then the best of the rest, and so on: LOCAL_PREF and MED of what is left decide each time.
    let mut rest: Vec<Path> = usable.cloned().collect();
    let mut out = SmallVec::new();
    while out.len() < best
        && let Some(at) = decide(&rest, cx).best
    {
        let taken = rest.remove(at as usize);
        if let Some(p) = paths.iter().find(|p| (p.peer, p.path_id) == (taken.peer, taken.path_id)) {
            out.push(p);
        }
    }
    out
}
