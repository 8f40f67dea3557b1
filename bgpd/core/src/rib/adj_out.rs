//! What one neighbor was told and is still to be told, per family, while it does not follow its group's ring: two bits
//! a destination.
//!
//! The truth about what it *should* know is the group's; the bits only say where to look. So the last change wins, a
//! route that comes and goes before it could be sent is never sent, and a neighbor that does not read costs a quarter
//! of an octet a destination, whatever happens.

use super::bits::Bits;

/// Adj-RIB-Out of one neighbor and family.
#[derive(Debug, Default)]
pub(super) struct AdjOut {
    pub(super) told: Bits,
    /// Destinations to look at.
    pub(super) dirty: Bits,
    /// Where to look next: everybody's turn comes.
    at: u32,
}

impl AdjOut {
    /// A destination changed; `wanted`: the neighbor should know it.
    pub(super) fn change(&mut self, dest: u32, wanted: bool) {
        self.dirty.set(dest, wanted || self.told.contains(dest));
    }

    /// Takes the next destination to look at.
    pub(super) fn take(&mut self) -> Option<u32> {
        let dest = self.dirty.next_from(self.at).or_else(|| self.dirty.next_from(0))?;
        self.dirty.remove(dest);
        self.at = dest.saturating_add(1);
        Some(dest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_destination_has_its_turn_and_what_came_and_went_has_none() {
        let mut out = AdjOut::default();
        out.change(5, true);
        out.change(900, true);
        out.change(70, true);
        out.change(70, false);
        assert_eq!(out.take(), Some(5));
        out.change(1, true);
        assert_eq!((out.take(), out.take(), out.take()), (Some(900), Some(1), None));
        out.told.insert(7);
        out.change(7, false);
        assert_eq!(out.take(), Some(7));
    }
}
