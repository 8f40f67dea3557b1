//! What one neighbor with add-path (RFC 7911) was told and is still to be told: several paths to a destination, each
//! under an identifier of ours.

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::{
    adj_out::AdjOut,
    attrs::Attrs,
    bits::Bits,
    decision::{DecisionCx, Step, decide},
    table::Path,
};
use crate::speaker::{AddPathSend, PeerId};

/// Our identifiers: one for each peer and identifier of its own, given out in the order they turn up and kept, so that
/// a path that comes back is the same path.
#[derive(Debug)]
pub(super) struct PathIds(HashMap<(PeerId, u32), u32, FixedState>);

impl PathIds {
    pub(super) fn new(seed: u64) -> Self {
        Self(HashMap::with_hasher(FixedState::with_seed(seed)))
    }

    fn of(&mut self, path: &Path) -> u32 {
        let next = u32::try_from(self.0.len() + 1).unwrap_or(u32::MAX);
        *self.0.entry((path.peer, path.path_id)).or_insert(next)
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
    count: usize,
}

impl PathsOut {
    pub(super) fn new(seed: u64) -> Self {
        Self { bits: AdjOut::default(), told: HashMap::with_hasher(FixedState::with_seed(seed)), count: 0 }
    }

    /// How many paths it was told.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// What it was told of a destination.
    pub(super) fn told(&self, dest: u32) -> &[(u32, Attrs)] {
        self.told.get(&dest).map_or(&[], |t| t.as_slice())
    }

    /// From now on it is told `want`; gives what must be said: withdrawn identifiers, and new or changed paths. With
    /// `again`, also those it knows already.
    pub(super) fn replace(
        &mut self,
        dest: u32,
        want: Told,
        again: bool,
        mut say: impl FnMut(u32, Option<&Attrs>),
    ) {
        let old = self.told.remove(&dest).unwrap_or_default();
        self.count -= old.len();
        for (id, _) in old.iter().filter(|(id, _)| !want.iter().any(|(w, _)| w == id)) {
            say(*id, None);
        }
        for (id, attrs) in &want {
            if again || !old.iter().any(|(o, a)| o == id && a == attrs) {
                say(*id, Some(attrs));
            }
        }
        self.count += want.len();
        self.bits.told.set(dest, !want.is_empty());
        if !want.is_empty() {
            self.told.insert(dest, want);
        }
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
    ids: &mut PathIds,
    cx: &DecisionCx<'_>,
) -> SmallVec<[(u32, &'a Path); 4]> {
    let usable = paths.iter().filter(|p| p.bad.is_none() && p.lost != Some(Step::Validity));
    let best = match send {
        AddPathSend::All => return usable.map(|p| (ids.of(p), p)).collect(),
        AddPathSend::Best(n) => usize::from(n.get()),
    };
    // The best, then the best of the rest, and so on: LOCAL_PREF and MED of what is left decide each time.
    let mut rest: Vec<Path> = usable.cloned().collect();
    let mut out = SmallVec::new();
    while out.len() < best
        && let Some(at) = decide(&rest, cx).best
    {
        let taken = rest.remove(at as usize);
        if let Some(p) = paths.iter().find(|p| (p.peer, p.path_id) == (taken.peer, taken.path_id)) {
            out.push((ids.of(p), p));
        }
    }
    out
}
