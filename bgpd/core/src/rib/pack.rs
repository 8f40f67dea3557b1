//! From changes to UPDATE octets: withdrawals first, then each attribute set with all its prefixes, in the order the
//! sets came; behind them withdrawals of paths in whose place there are others under another identifier. Attributes are
//! put together once for each set. The memory is used again and again.

use bytes::BytesMut;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{
    attrs::Attrs,
    prefix::Prefix,
    ring::{To, Was},
    table::Table,
};
use crate::wire::{Nlri, WireCx};

/// What changes have in common: the attributes (`None`: withdrawn) and whom they are for.
#[derive(Debug)]
struct Bucket {
    attrs: Option<Attrs>,
    to: To,
    /// Withdrawn, and said behind everything that is announced.
    behind: bool,
}

impl Bucket {
    const fn rank(&self) -> u8 {
        match (&self.attrs, self.behind) {
            (None, false) => 0,
            (Some(_), _) => 1,
            (None, true) => 2,
        }
    }
}

/// A destination in a bucket.
#[derive(Clone, Copy, Debug)]
struct Entry {
    bucket: u32,
    dest: u32,
    path_id: u32,
    was: Option<crate::speaker::PeerId>,
}

/// Changes being collected.
#[derive(Debug)]
pub(super) struct Packer {
    buckets: Vec<Bucket>,
    by_key: HashMap<(usize, u64), u32, FixedState>,
    entries: Vec<Entry>,
    block: BytesMut,
    octets: BytesMut,
    dests: Vec<Was>,
    size: usize,
}

/// Octets of a message without attributes and prefixes, and some for NEXT_HOP or MP_REACH.
const OVERHEAD: usize = 40;
/// What is encoded for one neighbor alone goes into one bucket per attribute set.
const ALONE: To = To::Only(super::LOCAL);
/// Messages for the same members are kept together up to this many octets.
const CHUNK: usize = 16 * 1024;

impl Packer {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            buckets: Vec::new(),
            by_key: HashMap::with_hasher(FixedState::with_seed(seed)),
            entries: Vec::new(),
            block: BytesMut::new(),
            octets: BytesMut::new(),
            dests: Vec::new(),
            size: 0,
        }
    }

    /// About how many octets what was collected will take.
    pub(super) const fn size(&self) -> usize {
        self.size
    }

    /// Collects a change for a group.
    pub(super) fn share<P: Prefix>(
        &mut self,
        attrs: Option<&Attrs>,
        to: To,
        dest: u32,
        was: Option<crate::speaker::PeerId>,
    ) {
        let bucket = self.bucket::<P>(attrs, to, false);
        self.entries.push(Entry { bucket, dest, path_id: 0, was });
    }

    /// Collects a change for one neighbor. A path that is withdrawn goes `behind` what is announced where the destination
    /// has others in its place: before, the neighbor would be without any for a moment.
    pub(super) fn add<P: Prefix>(&mut self, attrs: Option<&Attrs>, dest: u32, path_id: u32, behind: bool) {
        let bucket = self.bucket::<P>(attrs, ALONE, behind);
        self.entries.push(Entry { bucket, dest, path_id, was: None });
    }

    fn bucket<P: Prefix>(&mut self, attrs: Option<&Attrs>, to: To, behind: bool) -> u32 {
        self.size += 1 + usize::from(P::BITS / 8);
        // Mostly it is the one before.
        if let Some(last) = self.entries.last()
            && let Some(b) = self.buckets.get(last.bucket as usize)
            && b.attrs.as_ref() == attrs
            && b.to == to
            && b.behind == behind
        {
            return last.bucket;
        }
        let to_key = match to {
            To::Except(p) => u64::from(p.0),
            To::Only(p) => u64::from(p.0) | 1 << 32,
        } | u64::from(behind) << 33;
        let next = u32::try_from(self.buckets.len()).unwrap_or(u32::MAX);
        let n = *self.by_key.entry((attrs.map_or(0, Attrs::address), to_key)).or_insert(next);
        if n == next {
            self.size += OVERHEAD + attrs.map_or(0, |a| a.len());
            self.buckets.push(Bucket { attrs: attrs.cloned(), to, behind });
        }
        n
    }

    /// Sorts what was collected by bucket, withdrawals in front or behind.
    fn sort(&mut self) {
        let rank = |b: u32| self.buckets.get(b as usize).map_or(1, Bucket::rank);
        let key = |e: &Entry| (rank(e.bucket), e.bucket);
        // Stable: prefixes stay in the order they came. Mostly they came in order; sorting would ask for memory first.
        if !self.entries.is_sorted_by_key(key) {
            self.entries.sort_by_key(key);
        }
    }

    fn clear(&mut self) {
        self.buckets.clear();
        self.by_key.clear();
        self.entries.clear();
        self.size = 0;
        // After a large table the next change is a small one.
        if self.entries.capacity() > 1 << 14 {
            self.entries = Vec::new();
            self.buckets = Vec::new();
            self.by_key.shrink_to_fit();
        }
    }

    /// Appends everything that was collected with [`add`](Self::add).
    pub(super) fn finish<P: Prefix>(&mut self, table: &Table<P>, cx: &WireCx, buf: &mut BytesMut) {
        self.sort();
        let Self { buckets, entries, block, .. } = self;
        for list in entries.chunk_by(|a, b| a.bucket == b.bucket) {
            let bucket = list.first().and_then(|e| buckets.get(e.bucket as usize));
            if let Some(bucket) = bucket {
                write(table, bucket.attrs.as_ref(), list, cx, block, buf);
            }
        }
        self.clear();
    }

    /// Hands over everything that was collected with [`share`](Self::share), in pieces for the same members.
    pub(super) fn finish_shared<P: Prefix>(
        &mut self,
        table: &Table<P>,
        cx: &WireCx,
        mut chunk: impl FnMut(To, &[u8], &[Was]),
    ) {
        self.sort();
        let Self { buckets, entries, block, octets, dests, .. } = self;
        let mut current: Option<To> = None;
        octets.clear();
        dests.clear();
        for list in entries.chunk_by(|a, b| a.bucket == b.bucket) {
            let Some(bucket) = list.first().and_then(|e| buckets.get(e.bucket as usize)) else { continue };
            if let Some(to) = current.filter(|to| *to != bucket.to || octets.len() >= CHUNK) {
                chunk(to, octets, dests);
                octets.clear();
                dests.clear();
            }
            current = Some(bucket.to);
            write(table, bucket.attrs.as_ref(), list, cx, block, octets);
            dests.extend(list.iter().map(|e| (e.dest, e.was)));
        }
        if let Some(to) = current {
            chunk(to, octets, dests);
        }
        octets.clear();
        dests.clear();
        self.clear();
    }
}

/// The messages of one bucket.
fn write<P: Prefix>(
    table: &Table<P>,
    attrs: Option<&Attrs>,
    list: &[Entry],
    cx: &WireCx,
    block: &mut BytesMut,
    buf: &mut BytesMut,
) {
    let hop = attrs.and_then(|a| a.next_hop());
    block.clear();
    if let Some(a) = attrs
        && a.emit(hop.as_ref().and_then(P::classic), cx, block).is_err()
    {
        // `leaves_room` has seen that it can be written.
        debug_assert!(false, "attributes are checked on export");
        return;
    }
    let mut rest = list;
    while !rest.is_empty() {
        let mut message = match (attrs, hop) {
            (None, _) => P::withdraw(cx, buf),
            (Some(_), Some(hop)) => match P::announce(cx, &hop, block, buf) {
                Ok(m) => m,
                Err(_) => return,
            },
            (Some(_), None) => return,
        };
        let mut taken = 0;
        for e in rest {
            if !message.push(&Nlri { prefix: table.dest(e.dest).prefix, path_id: e.path_id }) {
                break;
            }
            taken += 1;
        }
        message.finish();
        if taken == 0 {
            debug_assert!(false, "attributes leave room for a prefix, that is checked on export");
            return;
        }
        rest = rest.get(taken..).unwrap_or_default();
    }
}

/// Whether a message of such a session has room for these attributes and a prefix of any length.
pub(super) fn leaves_room<P: Prefix>(attrs: &Attrs, cx: &WireCx, scratch: &mut BytesMut) -> bool {
    let Some(hop) = attrs.next_hop() else { return false };
    // The usual case needs no encoding: 2-octet AS numbers add an AS4_PATH, which is no longer than AS_PATH.
    let longest = 2 * attrs.len() + OVERHEAD + 5 + usize::from(P::BITS / 8);
    if longest + 60 < cx.max_len() {
        return true;
    }
    scratch.clear();
    if attrs.emit(P::classic(&hop), cx, scratch).is_err() {
        return false;
    }
    let mut octets = BytesMut::new();
    let Ok(mut message) = P::announce(cx, &hop, scratch, &mut octets) else { return false };
    let fits = message.push(&Nlri { prefix: P::read(&[0xff; 16], P::BITS), path_id: u32::MAX });
    message.finish();
    fits
}
