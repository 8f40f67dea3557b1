//! AS_PATH: segments on the wire with 2 and 4-octet numbers, the merge with AS4_PATH (RFC 6793 section 4.2.3), and
//! the questions the decision process asks (RFC 4271 section 9.1.2.2, RFC 5065).
//!
//! In memory, neighbouring sequences are one: that a segment holds at most 255 numbers is a matter of the wire.

use std::fmt;

use bytes::{BufMut, BytesMut};
use smallvec::SmallVec;

use super::{
    cursor::Cursor,
    iana::AS_TRANS,
    types::{AsPath, Segment, SegmentKind},
};

/// Numbers in one segment on the wire.
const SEGMENT_MAX: usize = 255;

impl SegmentKind {
    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Set,
            2 => Self::Sequence,
            3 => Self::ConfedSequence,
            4 => Self::ConfedSet,
            _ => return None,
        })
    }

    const fn code(self) -> u8 {
        match self {
            Self::Set => 1,
            Self::Sequence => 2,
            Self::ConfedSequence => 3,
            Self::ConfedSet => 4,
        }
    }

    /// Inside our confederation (RFC 5065): not counted, not for others to see.
    pub const fn is_confed(self) -> bool {
        matches!(self, Self::ConfedSequence | Self::ConfedSet)
    }

    const fn is_sequence(self) -> bool {
        matches!(self, Self::Sequence | Self::ConfedSequence)
    }
}

impl AsPath {
    /// One sequence; empty for no numbers.
    pub fn sequence(asns: impl IntoIterator<Item = u32>) -> Self {
        let asns: SmallVec<[u32; 4]> = asns.into_iter().collect();
        let mut path = Self::default();
        if !asns.is_empty() {
            path.push(SegmentKind::Sequence, asns);
        }
        path
    }

    /// Length for the decision process: a set counts once, confederation segments do not count.
    pub fn hops(&self) -> usize {
        self.0.iter().map(Segment::hops).fold(0, usize::saturating_add)
    }

    /// Whether the number occurs anywhere, sets included: a loop if it is ours.
    pub fn contains(&self, asn: u32) -> bool {
        self.0.iter().any(|s| s.asns.contains(&asn))
    }

    /// The AS the route came from, if the path (without confederation segments) starts with a sequence: what MED is
    /// compared within.
    pub fn neighbor(&self) -> Option<u32> {
        let first = self.0.iter().find(|s| !s.kind.is_confed())?;
        (first.kind == SegmentKind::Sequence).then(|| first.asns.first().copied()).flatten()
    }

    /// The AS that originated the route, if the path ends with a sequence.
    pub fn origin(&self) -> Option<u32> {
        let last = self.0.last()?;
        (last.kind == SegmentKind::Sequence).then(|| last.asns.last().copied()).flatten()
    }

    /// Puts a number in front, `times` times (RFC 4271 section 5.1.2).
    pub fn prepend(&mut self, asn: u32, times: usize) {
        if times == 0 {
            return;
        }
        match self.0.first_mut() {
            Some(first) if first.kind == SegmentKind::Sequence => {
                first.asns.insert_many(0, std::iter::repeat_n(asn, times));
            }
            _ => {
                let asns = std::iter::repeat_n(asn, times).collect();
                self.0.insert(0, Segment { kind: SegmentKind::Sequence, asns });
            }
        }
    }

    /// Appends a segment; a sequence after one of the same kind continues it.
    pub(super) fn push(&mut self, kind: SegmentKind, asns: SmallVec<[u32; 4]>) {
        match self.0.last_mut() {
            Some(last) if last.kind == kind && kind.is_sequence() => last.asns.extend_from_slice(&asns),
            _ => self.0.push(Segment { kind, asns }),
        }
    }

    /// Whether a number needs four octets.
    pub(super) fn needs_four_octets(&self) -> bool {
        self.0.iter().any(|s| s.asns.iter().any(|n| *n > u32::from(u16::MAX)))
    }

    /// Without confederation segments, as AS4_PATH must be (RFC 6793 section 3).
    pub(super) fn without_confeds(&self) -> Self {
        let mut path = Self::default();
        for s in self.0.iter().filter(|s| !s.kind.is_confed()) {
            path.push(s.kind, s.asns.clone());
        }
        path
    }

    /// Reads the value of AS_PATH or AS4_PATH.
    ///
    /// # Errors
    /// RFC 7606 section 7.2 and RFC 7607, in words.
    pub(super) fn parse(value: &[u8], four_octets: bool) -> Result<Self, String> {
        let mut cur = Cursor::new(value);
        let mut path = Self::default();
        while !cur.is_empty() {
            let (Some(code), Some(count)) = (cur.u8(), cur.u8()) else {
                return Err("a single octet is left where a segment should start".into());
            };
            let Some(kind) = SegmentKind::from_code(code) else {
                return Err(format!("segment type {code} is unknown"));
            };
            if count == 0 {
                return Err("a segment is empty".into());
            }
            let width: usize = if four_octets { 4 } else { 2 };
            let left = cur.len();
            let Some(numbers) = cur.take(usize::from(count).saturating_mul(width)) else {
                return Err(format!("a segment of {count} numbers has only {left} octets"));
            };
            let asns: SmallVec<[u32; 4]> = if four_octets {
                numbers.as_chunks().0.iter().map(|n| u32::from_be_bytes(*n)).collect()
            } else {
                numbers.as_chunks().0.iter().map(|n| u32::from(u16::from_be_bytes(*n))).collect()
            };
            if asns.contains(&0) {
                return Err("AS 0 in the path (RFC 7607)".into());
            }
            path.push(kind, asns);
        }
        Ok(path)
    }

    /// Octets of the value on the wire.
    pub(super) fn wire_len(&self, four_octets: bool) -> usize {
        let width: usize = if four_octets { 4 } else { 2 };
        let segment = |s: &Segment| {
            let headers = s.asns.len().div_ceil(SEGMENT_MAX).saturating_mul(2);
            s.asns.len().saturating_mul(width).saturating_add(headers)
        };
        self.0.iter().map(segment).fold(0, usize::saturating_add)
    }

    /// Writes the value. A sequence too long for one segment becomes several, which mean the same.
    pub(super) fn emit(&self, four_octets: bool, out: &mut BytesMut) {
        for s in &self.0 {
            for chunk in s.asns.chunks(SEGMENT_MAX) {
                out.put_u8(s.kind.code());
                out.put_u8(u8::try_from(chunk.len()).unwrap_or(u8::MAX));
                for asn in chunk {
                    if four_octets {
                        out.put_u32(*asn);
                    } else {
                        out.put_u16(u16::try_from(*asn).unwrap_or(AS_TRANS));
                    }
                }
            }
        }
    }

    /// Rebuilds the real path from what a 2-octet peer sent (RFC 6793 section 4.2.3): the part of AS_PATH that
    /// AS4_PATH does not cover, then AS4_PATH. An AS4_PATH longer than AS_PATH is ignored.
    pub(super) fn merged(self, as4: Self) -> Self {
        let Some(mut missing) = self.hops().checked_sub(as4.hops()) else { return self };
        let mut path = Self::default();
        for s in self.0 {
            if s.kind.is_confed() {
                path.push(s.kind, s.asns);
                continue;
            }
            if missing == 0 {
                break;
            }
            if s.kind == SegmentKind::Set {
                missing = missing.saturating_sub(1);
                path.push(s.kind, s.asns);
            } else {
                let taken: SmallVec<[u32; 4]> = s.asns.iter().take(missing).copied().collect();
                let partly = taken.len() < s.asns.len();
                missing = missing.saturating_sub(taken.len());
                path.push(s.kind, taken);
                if partly {
                    break;
                }
            }
        }
        for s in as4.0 {
            path.push(s.kind, s.asns);
        }
        path
    }
}

impl Segment {
    fn hops(&self) -> usize {
        match self.kind {
            SegmentKind::Sequence => self.asns.len(),
            SegmentKind::Set => 1,
            SegmentKind::ConfedSequence | SegmentKind::ConfedSet => 0,
        }
    }
}

/// `65001 65002 {65010 65011}`; confederation segments in `( )` and `[ ]`.
impl fmt::Display for AsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, s) in self.0.iter().enumerate() {
            let (open, close) = match s.kind {
                SegmentKind::Sequence => ("", ""),
                SegmentKind::Set => ("{", "}"),
                SegmentKind::ConfedSequence => ("(", ")"),
                SegmentKind::ConfedSet => ("[", "]"),
            };
            if i > 0 {
                f.write_str(" ")?;
            }
            f.write_str(open)?;
            for (j, asn) in s.asns.iter().enumerate() {
                if j > 0 {
                    f.write_str(" ")?;
                }
                write!(f, "{asn}")?;
            }
            f.write_str(close)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(segments: &[(SegmentKind, &[u32])]) -> AsPath {
        let mut p = AsPath::default();
        for (kind, asns) in segments {
            p.push(*kind, SmallVec::from_slice(asns));
        }
        p
    }
    use SegmentKind::{ConfedSequence, Sequence, Set};

    #[test]
    fn a_set_counts_once_and_a_confederation_not_at_all() {
        let p = path(&[(ConfedSequence, &[65_100, 65_101]), (Sequence, &[1, 2, 3]), (Set, &[4, 5])]);
        assert_eq!((p.hops(), p.neighbor(), p.origin()), (4, Some(1), None));
        assert!(p.contains(5) && p.contains(65_100) && !p.contains(6));
        assert_eq!(p.to_string(), "(65100 65101) 1 2 3 {4 5}");
        assert_eq!(AsPath::default().neighbor(), None);
        assert_eq!(path(&[(Set, &[1])]).neighbor(), None);
        assert_eq!(AsPath::sequence([7, 8]).origin(), Some(8));
    }

    #[test]
    fn prepending_extends_a_sequence_and_precedes_anything_else() {
        let mut p = AsPath::default();
        p.prepend(1, 2);
        p.prepend(2, 0);
        p.prepend(3, 1);
        assert_eq!(p, AsPath::sequence([3, 1, 1]));
        let mut p = path(&[(Set, &[9])]);
        p.prepend(1, 1);
        assert_eq!(p.to_string(), "1 {9}");
    }

    #[test]
    fn a_long_sequence_is_split_on_the_wire_only() {
        let p = AsPath::sequence(1..=600);
        for four in [false, true] {
            let mut out = BytesMut::new();
            p.emit(four, &mut out);
            assert_eq!(out.len(), p.wire_len(four));
            assert_eq!(AsPath::parse(&out, four).unwrap(), p);
        }
    }

    #[test]
    fn malformed_paths_are_refused() {
        for bad in [
            &[2][..],
            &[2, 1, 0, 0, 0],
            &[0, 1, 0, 0, 0, 1],
            &[5, 1, 0, 0, 0, 1],
            &[255, 1, 0, 0, 0, 1],
            &[2, 0],
            &[2, 5, 0, 0, 0, 1],
            &[2, 1, 0, 0, 0, 1, 2],
            &[2, 1, 0, 0, 0, 0],
        ] {
            assert!(AsPath::parse(bad, true).is_err(), "{bad:?}");
        }
        assert_eq!(AsPath::parse(&[], true).unwrap(), AsPath::default());
    }

    #[test]
    fn as4_path_replaces_the_tail_it_covers() {
        let t = u32::from(AS_TRANS);
        let old = path(&[(Sequence, &[10, t, t, 20])]);
        let new = path(&[(Sequence, &[70_000, 80_000, 20])]);
        assert_eq!(old.clone().merged(new).to_string(), "10 70000 80000 20");
        // Longer than the path it should refine: not believed.
        assert_eq!(old.clone().merged(AsPath::sequence([1, 2, 3, 4, 5])), old);
        // Sets count once on both sides.
        let old = path(&[(ConfedSequence, &[65_100]), (Sequence, &[10, t]), (Set, &[t, 30])]);
        let new = path(&[(Sequence, &[70_000]), (Set, &[80_000, 30])]);
        assert_eq!(old.merged(new).to_string(), "(65100) 10 70000 {80000 30}");
        // Nothing is missing: the confederation in front stays.
        let old = path(&[(ConfedSequence, &[65_100]), (Sequence, &[t])]);
        assert_eq!(old.merged(AsPath::sequence([70_000])).to_string(), "(65100) 70000");
    }
}
