//! Link bandwidth (draft-ietf-idr-link-bandwidth): how flows are shared among the paths of a multipath set when every
//! one of them tells the bandwidth of its link. Which paths are in the set is the decision process's to say.

use std::num::NonZeroU32;

use smallvec::SmallVec;

use crate::wire::AttrSet;

/// Sub-type of the extended community, of the two-octet-AS type (0x40 not transitive, as the draft has it; 0x00 too,
/// as some send it on external sessions).
const SUB_TYPE: u8 = 0x04;
/// A set of hops is told to the kernel by naming hops more than once; this is how long it may become.
const MOST: u32 = 64;

/// Octets per second, as the bits of a positive finite `f32`: in this form greater is greater.
pub(super) type Bandwidth = NonZeroU32;

/// The bandwidth a route tells; of several the least. What is no positive number tells nothing.
pub(super) fn of(set: &AttrSet) -> Option<Bandwidth> {
    let told = set.ext_communities.iter().filter_map(|c| {
        let [kind, sub_type, _, _, value @ ..] = c.to_be_bytes();
        let rate = f32::from_be_bytes(value);
        let sound = rate.is_finite() && rate > 0.0;
        (matches!(kind, 0x00 | 0x40) && sub_type == SUB_TYPE && sound).then(|| rate.to_bits())
    });
    told.min().and_then(NonZeroU32::new)
}

/// The share of each path, in whole numbers from 1: exact where one is a small multiple of the other, else as near as
/// `MOST` parts allow.
pub(super) fn shares(told: impl Iterator<Item = Bandwidth>) -> SmallVec<[u32; 4]> {
    let rates: SmallVec<[f64; 4]> = told.map(|b| f64::from(f32::from_bits(b.get()))).collect();
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let all: f64 = rates.iter().sum();
    // The least as 1, 2, ... until all are nearly whole.
    for unit in 1..=8u32 {
        let parts: SmallVec<[f64; 4]> = rates.iter().map(|r| r / least * f64::from(unit)).collect();
        let whole = parts.iter().all(|p| (p - p.round()).abs() <= p * 0.005);
        if whole && parts.iter().map(|p| p.round()).sum::<f64>() <= f64::from(MOST) {
            return parts.iter().map(|p| whole_number(*p)).collect();
        }
    }
    rates.iter().map(|r| whole_number(r / all * f64::from(MOST))).collect()
}

/// At least 1, since every path of the set is in use.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and MOST")]
fn whole_number(part: f64) -> u32 {
    part.round().clamp(1.0, f64::from(MOST)) as u32
}

/// What must not leave the AS (RFC 4360 section 6): communities that are not transitive.
pub(super) fn keep_transitive(set: &mut AttrSet) {
    set.ext_communities.retain(|c| {
        let [kind, ..] = c.to_be_bytes();
        kind & 0x40 == 0
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn community(kind: u8, sub_type: u8, rate: f32) -> u64 {
        let [a, b, c, d] = rate.to_be_bytes();
        u64::from_be_bytes([kind, sub_type, 0xfd, 0xe9, a, b, c, d])
    }

    fn set(list: &[u64]) -> AttrSet {
        AttrSet { ext_communities: list.iter().copied().collect(), ..AttrSet::default() }
    }

    fn parts(list: &[f32]) -> Vec<u32> {
        shares(list.iter().map(|r| of(&set(&[community(0x40, 4, *r)])).unwrap())).to_vec()
    }

    #[test]
    fn the_least_sound_bandwidth_is_taken() {
        assert_eq!(of(&set(&[])), None);
        let rate = |list: &[u64]| of(&set(list)).map(|b| f32::from_bits(b.get()));
        assert_eq!(rate(&[community(0x40, 4, 5e8), community(0x00, 4, 1.25e8)]), Some(1.25e8));
        for nothing in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(rate(&[community(0x40, 4, nothing)]), None, "{nothing}");
        }
        assert_eq!(rate(&[community(0x40, 2, 1.0), community(0x80, 4, 1.0)]), None);
    }

    #[test]
    fn shares_follow_the_bandwidths() {
        assert_eq!(parts(&[1.25e9, 1.25e8]), [10, 1]);
        assert_eq!(parts(&[1.0e9, 1.5e9]), [2, 3]);
        assert_eq!(parts(&[7.0, 7.0, 7.0]), [1, 1, 1]);
        assert_eq!(parts(&[1.25e10, 1.0]), [64, 1], "nobody is left out");
        assert_eq!(parts(&[5.0]), [1]);
    }

    #[test]
    fn what_is_not_transitive_stays_in_the_as() {
        let target = community(0x00, 2, 1.0);
        let mut s = set(&[target, community(0x40, 4, 1.0), community(0xc3, 4, 1.0)]);
        keep_transitive(&mut s);
        assert_eq!(s.ext_communities[..], [target]);
    }

    proptest! {
        #[test]
        fn shares_are_near_the_bandwidths(list in proptest::collection::vec(1.0f32..100.0, 1..16)) {
            let parts = parts(&list);
            prop_assert_eq!(parts.len(), list.len());
            let sum: u32 = parts.iter().sum();
            prop_assert!(sum <= MOST + 16);
            let all: f32 = list.iter().sum();
            for (rate, part) in list.iter().zip(&parts) {
                let (want, have) = (f64::from(rate / all), f64::from(*part) / f64::from(sum));
                // At least one part each takes from the others.
                prop_assert!((want - have).abs() < 0.12, "{list:?}: {parts:?}");
            }
        }
    }
}
