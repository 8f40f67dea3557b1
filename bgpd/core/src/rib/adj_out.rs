//! What one neighbor was told and is still to be told, per family: two bits a destination, and a queue of what waits,
//! by attribute set.
//!
//! The truth about what it *should* know is the group's ([`Want`]); the queue only remembers where to look. So the
//! last change wins, a route that comes and goes before it could be sent is never sent, and a neighbor that does not
//! read costs memory in proportion to the table, not to history.

use std::collections::VecDeque;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{attrs::Attrs, bits::Bits};

/// What a neighbor should know of a destination at this moment.
pub(super) trait Want {
    /// Attributes to tell it with; `None`: it should not know it.
    fn want(&self, dest: u32) -> Option<&Attrs>;
}

/// Destinations that wait to be told with one attribute set, in the order they came.
#[derive(Debug)]
struct Bucket {
    attrs: Attrs,
    dests: VecDeque<u32>,
}

/// Adj-RIB-Out of one neighbor and family.
#[derive(Debug)]
pub(super) struct AdjOut {
    told: Bits,
    queued: Bits,
    withdraw: VecDeque<u32>,
    /// Oldest first; numbered from `first_bucket` on.
    buckets: VecDeque<Bucket>,
    first_bucket: u64,
    by_attrs: HashMap<usize, u64, FixedState>,
    /// Entries in `withdraw` and `buckets`, those no longer valid included.
    entries: usize,
    /// End-of-RIB is due when the queue is empty.
    eor: bool,
}

/// Entries that may be invalid before the queue is rebuilt.
const SLACK: usize = 64;

impl AdjOut {
    /// Nothing told, nothing to tell.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            told: Bits::default(),
            queued: Bits::default(),
            withdraw: VecDeque::new(),
            buckets: VecDeque::new(),
            first_bucket: 0,
            by_attrs: HashMap::with_hasher(FixedState::with_seed(seed)),
            entries: 0,
            eor: false,
        }
    }

    /// How many routes the neighbor has been told.
    pub(super) const fn told(&self) -> usize {
        self.told.len()
    }

    /// Whether it has been told this one.
    pub(super) fn was_told(&self, dest: u32) -> bool {
        self.told.contains(dest)
    }

    /// How many changes wait.
    pub(super) const fn waiting(&self) -> usize {
        self.queued.len()
    }

    /// Whether there is anything to send.
    pub(super) const fn is_idle(&self) -> bool {
        self.queued.is_empty() && !self.eor
    }

    /// Entries held for the queue, for tests of its bound.
    #[cfg(test)]
    pub(super) const fn entries(&self) -> usize {
        self.entries
    }

    /// Destinations referred to here.
    pub(super) fn refers_to(&self, all: &mut Bits) {
        all.union(&self.told);
        all.union(&self.queued);
    }

    /// End-of-RIB when everything queued so far is sent.
    pub(super) const fn end_of_rib(&mut self) {
        self.eor = true;
    }

    /// The neighbor should now know `dest` with these attributes; `changed`: with others than before.
    pub(super) fn announce(&mut self, dest: u32, attrs: &Attrs, changed: bool) {
        if changed || !self.told.contains(dest) || self.queued.contains(dest) {
            self.queued.insert(dest);
            self.push(dest, attrs);
        }
    }

    /// The neighbor should no longer know `dest`.
    pub(super) fn withdraw(&mut self, dest: u32) {
        if self.told.contains(dest) {
            self.queued.insert(dest);
            self.withdraw.push_back(dest);
            self.entries += 1;
        } else {
            self.queued.remove(dest);
        }
    }

    fn push(&mut self, dest: u32, attrs: &Attrs) {
        self.entries += 1;
        if let Some(last) = self.buckets.back_mut()
            && last.attrs == *attrs
        {
            last.dests.push_back(dest);
            return;
        }
        if let Some(number) = self.by_attrs.get(&attrs.address())
            && let Some(bucket) = number
                .checked_sub(self.first_bucket)
                .and_then(|n| self.buckets.get_mut(usize::try_from(n).ok()?))
        {
            bucket.dests.push_back(dest);
            return;
        }
        self.by_attrs.insert(attrs.address(), self.first_bucket + self.buckets.len() as u64);
        self.buckets.push_back(Bucket { attrs: attrs.clone(), dests: VecDeque::from([dest]) });
    }

    /// Rebuilds the queue when most of it is out of date.
    pub(super) fn tidy(&mut self, want: &impl Want) {
        if self.entries <= 2 * self.queued.len() + SLACK {
            return;
        }
        let withdraw = std::mem::take(&mut self.withdraw);
        let buckets = std::mem::take(&mut self.buckets);
        self.by_attrs.clear();
        self.first_bucket = 0;
        self.entries = 0;
        let mut left = std::mem::take(&mut self.queued);
        for dest in withdraw {
            if want.want(dest).is_none() && left.remove(dest) {
                self.withdraw.push_back(dest);
                self.entries += 1;
                self.queued.insert(dest);
            }
        }
        for bucket in buckets {
            for dest in bucket.dests {
                if want.want(dest) == Some(&bucket.attrs) && left.remove(dest) {
                    self.push(dest, &bucket.attrs);
                    self.queued.insert(dest);
                }
            }
        }
        debug_assert!(left.is_empty(), "each queued destination has a valid entry");
    }

    /// The next destination to withdraw.
    pub(super) fn next_withdrawal(&mut self, want: &impl Want) -> Option<u32> {
        while let Some(dest) = self.withdraw.front().copied() {
            if self.queued.contains(dest) && self.told.contains(dest) && want.want(dest).is_none() {
                return Some(dest);
            }
            self.withdraw.pop_front();
            self.entries -= 1;
        }
        None
    }

    /// What `next_withdrawal` gave is in a message.
    pub(super) fn withdrawn(&mut self) {
        if let Some(dest) = self.withdraw.pop_front() {
            self.entries -= 1;
            self.queued.remove(dest);
            self.told.remove(dest);
        }
    }

    /// The attributes to announce with next.
    pub(super) fn next_attrs(&mut self, want: &impl Want) -> Option<Attrs> {
        while let Some(front) = self.buckets.front() {
            let attrs = front.attrs.clone();
            if self.next_announcement(&attrs, want).is_some() {
                return Some(attrs);
            }
            self.by_attrs.remove(&attrs.address());
            self.buckets.pop_front();
            self.first_bucket += 1;
        }
        None
    }

    /// The next destination to announce with `attrs`, which are those of [`next_attrs`](Self::next_attrs).
    pub(super) fn next_announcement(&mut self, attrs: &Attrs, want: &impl Want) -> Option<u32> {
        let front = self.buckets.front_mut().filter(|b| b.attrs == *attrs)?;
        while let Some(dest) = front.dests.front().copied() {
            if self.queued.contains(dest) && want.want(dest) == Some(attrs) {
                return Some(dest);
            }
            front.dests.pop_front();
            self.entries -= 1;
        }
        None
    }

    /// What `next_announcement` gave is in a message; or it can never be (`sent` = false), because its attributes
    /// leave no room for a prefix. Returns whether the neighbor still knows an earlier form that must be withdrawn.
    pub(super) fn announced(&mut self, sent: bool) -> bool {
        let Some(dest) = self.buckets.front_mut().and_then(|b| b.dests.pop_front()) else { return false };
        self.entries -= 1;
        self.queued.remove(dest);
        if sent {
            self.told.insert(dest);
            return false;
        }
        self.told.remove(dest)
    }

    /// End-of-RIB, once, when the queue is empty.
    pub(super) const fn take_end_of_rib(&mut self) -> bool {
        let due = self.eor && self.queued.is_empty();
        if due {
            self.eor = false;
        }
        due
    }
}
