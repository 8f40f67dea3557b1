//! UPDATEs of a group as octets, each encoded once, and how far its members have read.
//!
//! A member's Adj-RIB-Out is then a position. What differs between members is split horizon alone: a message says
//! whom it is not for. The ring is short: a member that does not keep up leaves it (see `group`).

use std::collections::VecDeque;

use bytes::BytesMut;

use crate::speaker::PeerId;

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// Everybody but the neighbor the routes came from.
    Except(PeerId),
    Only(PeerId),
}

impl To {
    pub(super) fn includes(self, peer: PeerId) -> bool {
        match self {
            Self::Except(p) => p != peer,
            Self::Only(p) => p == peer,
        }
    }
}

/// A destination in a chunk, and whose path to it the members knew before; `None`: they did not know it.
pub(super) type Was = (u32, Option<PeerId>);

/// Messages for the same members.
#[derive(Debug)]
struct Chunk {
    to: To,
    octets: Box<[u8]>,
    dests: Box<[Was]>,
    /// Members that have not read it.
    left: usize,
}

/// See above. Positions only grow.
#[derive(Debug, Default)]
pub(super) struct Ring {
    chunks: VecDeque<Chunk>,
    /// Position of the first chunk.
    base: u64,
    octets: usize,
}

impl Ring {
    /// The position behind the last chunk.
    pub(super) fn end(&self) -> u64 {
        self.base + self.chunks.len() as u64
    }

    /// The position of the oldest chunk.
    pub(super) const fn start(&self) -> u64 {
        self.base
    }

    /// Octets held.
    pub(super) const fn octets(&self) -> usize {
        self.octets
    }

    fn index(&self, at: u64) -> usize {
        usize::try_from(at.saturating_sub(self.base)).unwrap_or(usize::MAX)
    }

    /// Adds messages for `readers` members.
    pub(super) fn push(&mut self, to: To, octets: &[u8], dests: &[Was], readers: usize) {
        if readers > 0 {
            self.octets += octets.len();
            self.chunks.push_back(Chunk { to, octets: octets.into(), dests: dests.into(), left: readers });
        }
    }

    /// Appends what is for `peer` from its position on, until `limit` octets were added or the end is reached.
    pub(super) fn read(&mut self, at: &mut u64, peer: PeerId, limit: usize, buf: &mut BytesMut) {
        let start = buf.len();
        let mut i = self.index(*at);
        while buf.len() - start < limit
            && let Some(chunk) = self.chunks.get_mut(i)
        {
            if chunk.to.includes(peer) {
                buf.extend_from_slice(&chunk.octets);
            }
            chunk.left -= 1;
            *at += 1;
            i += 1;
        }
        self.trim();
    }

    /// A reader at this position goes away.
    pub(super) fn leave(&mut self, at: u64) {
        let from = self.index(at);
        for chunk in self.chunks.iter_mut().skip(from) {
            chunk.left -= 1;
        }
        self.trim();
    }

    fn trim(&mut self) {
        while let Some(c) = self.chunks.front().filter(|c| c.left == 0) {
            self.octets -= c.octets.len();
            self.chunks.pop_front();
            self.base += 1;
        }
    }

    /// Destinations in what `peer` has not read and is for it, newest first.
    pub(super) fn unread(&self, at: u64, peer: PeerId) -> impl Iterator<Item = &Was> {
        let unread = self.chunks.iter().skip(self.index(at)).rev();
        unread.filter(move |c| c.to.includes(peer)).flat_map(|c| c.dests.iter().rev())
    }

    /// Every destination in here.
    pub(super) fn dests(&self) -> impl Iterator<Item = u32> {
        self.chunks.iter().flat_map(|c| c.dests.iter().map(|(n, _)| *n))
    }

    /// How many of them are for `peer`.
    pub(super) fn waiting(&self, at: u64, peer: PeerId) -> usize {
        let unread = self.chunks.iter().skip(self.index(at));
        unread.filter(|c| c.to.includes(peer)).map(|c| c.dests.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_read_what_is_for_them_and_nothing_is_kept_that_all_have_read() {
        let (a, b) = (PeerId(1), PeerId(2));
        let mut ring = Ring::default();
        ring.push(To::Except(a), b"not for a", &[(1, None)], 2);
        ring.push(To::Only(a), b"for a", &[(2, Some(a))], 2);
        let (mut at_a, mut at_b) = (0, 0);
        let mut buf = BytesMut::new();
        ring.read(&mut at_a, a, 100, &mut buf);
        assert_eq!((&buf[..], at_a, ring.end()), (&b"for a"[..], 2, 2));
        assert_eq!(ring.octets(), 14);
        assert_eq!((ring.waiting(0, b), ring.unread(0, b).count()), (1, 1));
        buf.clear();
        ring.read(&mut at_b, b, 1, &mut buf);
        assert_eq!((&buf[..], at_b, ring.start()), (&b"not for a"[..], 1, 1));
        ring.leave(at_b);
        assert_eq!((ring.octets(), ring.start(), ring.end()), (0, 2, 2));
    }
}
