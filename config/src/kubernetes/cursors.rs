//! Where a watch goes on after a listing of several kinds. Kubernetes gives each collection a resource version of its own
//! and promises nothing about versions of different collections; a listing of the store has one revision. So a listing
//! whose collections are not all at the same version gets a number of its own, far above all versions, and the versions
//! are remembered behind it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use brindle_config_core::{Kind, store::Revision};

/// Numbers from here on are listings; etcd would need centuries to count up to it.
const FIRST: u64 = 1 << 62;
/// Listings remembered: a watch begins right after its listing.
const MOST: usize = 256;

/// Where a kind was at a listing; `None` if the cluster did not have it.
pub(super) type Cursor = BTreeMap<Kind, Option<Revision>>;

/// The listings of one store.
#[derive(Default)]
pub(super) struct Cursors {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    next: u64,
    listings: VecDeque<(Revision, Cursor)>,
}

impl Cursors {
    /// The revision of a listing.
    pub(super) fn revision(&self, cursor: Cursor) -> Revision {
        let first = cursor.values().next().copied().flatten();
        if let Some(same) = first.filter(|_| cursor.values().all(|r| *r == first)) {
            return same;
        }
        if cursor.is_empty() {
            return Revision(0);
        }
        // Nothing under the lock can leave it half done.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = Revision(FIRST + kept.next);
        kept.next += 1;
        if kept.listings.len() == MOST {
            kept.listings.pop_front();
        }
        kept.listings.push_back((revision, cursor));
        revision
    }

    /// Where each of `kinds` goes on from a revision; `None` when the listing is no longer known.
    pub(super) fn from(&self, revision: Revision, kinds: impl IntoIterator<Item = Kind>) -> Option<Cursor> {
        if revision.0 < FIRST {
            return Some(kinds.into_iter().map(|k| (k, Some(revision))).collect());
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, listing) = kept.listings.iter().find(|(r, _)| *r == revision)?;
        kinds.into_iter().map(|k| Some((k, *listing.get(&k)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(of: &[(Kind, Option<u64>)]) -> Cursor {
        of.iter().map(|(k, r)| (*k, r.map(Revision))).collect()
    }

    #[test]
    fn collections_at_one_version_need_no_memory() {
        let c = Cursors::default();
        let all = cursor(&[(Kind::IpPool, Some(5)), (Kind::Node, Some(5))]);
        assert_eq!(c.revision(all.clone()), Revision(5));
        assert_eq!(c.from(Revision(5), [Kind::IpPool, Kind::Node]), Some(all));
        assert_eq!(c.revision(Cursor::new()), Revision(0));
    }

    #[test]
    fn different_versions_come_back_for_each_kind() {
        let c = Cursors::default();
        let one = cursor(&[(Kind::IpPool, Some(5)), (Kind::Node, Some(7))]);
        let two = cursor(&[(Kind::IpPool, Some(7)), (Kind::Node, None)]);
        let (a, b) = (c.revision(one.clone()), c.revision(two.clone()));
        assert!(a < b && a > Revision(1 << 60), "unlike every version, and growing");
        assert_eq!(c.from(a, [Kind::IpPool, Kind::Node]), Some(one));
        assert_eq!(c.from(b, [Kind::Node]), Some(cursor(&[(Kind::Node, None)])));
        assert_eq!(c.from(b, [Kind::BgpPeer]), None, "it was not listed");
    }

    #[test]
    fn old_listings_are_forgotten() {
        let c = Cursors::default();
        let some = cursor(&[(Kind::IpPool, Some(5)), (Kind::Node, Some(7))]);
        let first = c.revision(some.clone());
        let last = (0..MOST).map(|_| c.revision(some.clone())).last();
        assert_eq!(c.from(first, [Kind::Node]), None);
        assert!(last.is_some_and(|r| c.from(r, [Kind::Node]).is_some()));
    }
}
