//! A growing set of small numbers, one bit each: which destinations a peer has sent, was told, or is to be told.
//! Iteration is in ascending order, so that what is derived from it is deterministic.

/// A set of `u32`.
#[derive(Clone, Debug, Default)]
pub(super) struct Bits {
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    const fn place(n: u32) -> (usize, u64) {
        ((n / 64) as usize, 1 << (n % 64))
    }

    /// Adds; whether it was new.
    pub(super) fn insert(&mut self, n: u32) -> bool {
        let (word, bit) = Self::place(n);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let w = &mut self.words[word];
        let new = *w & bit == 0;
        *w |= bit;
        self.len += usize::from(new);
        new
    }

    /// Removes; whether it was there.
    pub(super) fn remove(&mut self, n: u32) -> bool {
        let (word, bit) = Self::place(n);
        let Some(w) = self.words.get_mut(word) else { return false };
        let there = *w & bit != 0;
        *w &= !bit;
        self.len -= usize::from(there);
        there
    }

    /// Whether it is there.
    pub(super) fn contains(&self, n: u32) -> bool {
        let (word, bit) = Self::place(n);
        self.words.get(word).is_some_and(|w| w & bit != 0)
    }

    /// The first at or after `n`.
    pub(super) fn next_from(&self, n: u32) -> Option<u32> {
        let (word, bit) = Self::place(n);
        let first = self.words.get(word)? & !(bit - 1);
        let rest = self.words.iter().copied().enumerate().skip(word + 1);
        let (at, w) = std::iter::once((word, first)).chain(rest).find(|(_, w)| *w != 0)?;
        u32::try_from(at * 64).ok()?.checked_add(w.trailing_zeros())
    }

    /// Makes it be there or not.
    pub(super) fn set(&mut self, n: u32, there: bool) {
        if there {
            self.insert(n);
        } else {
            self.remove(n);
        }
    }

    /// How many.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds everything of another set.
    pub(super) fn union(&mut self, other: &Self) {
        if other.words.len() > self.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a |= b;
        }
        self.len = self.words.iter().map(|w| w.count_ones() as usize).sum();
    }

    /// Ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().zip(0u32..).flat_map(|(w, i)| {
            let mut rest = *w;
            std::iter::from_fn(move || {
                if rest == 0 {
                    return None;
                }
                let bit = rest.trailing_zeros();
                rest &= rest - 1;
                Some(i * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(ops in proptest::collection::vec((0u32..300, any::<bool>()), 0..200)) {
            let (mut bits, mut set) = (Bits::default(), BTreeSet::new());
            for (n, add) in ops {
                if add {
                    prop_assert_eq!(bits.insert(n), set.insert(n));
                } else {
                    prop_assert_eq!(bits.remove(n), set.remove(&n));
                }
            }
            prop_assert_eq!(bits.len(), set.len());
            prop_assert!(bits.iter().eq(set.iter().copied()));
            prop_assert!((0..300).all(|n| bits.contains(n) == set.contains(&n)));
            for n in 0..300 {
                prop_assert_eq!(bits.next_from(n), set.range(n..).next().copied());
            }
            let mut all = Bits::default();
            all.insert(299);
            all.union(&bits);
            set.insert(299);
            prop_assert!(all.iter().eq(set.into_iter()));
        }
    }
}
