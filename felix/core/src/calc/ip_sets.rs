//! Members of one IP set: counted, because two endpoints may share an address; without members that another member
//! covers, because interval sets cannot hold both; and with what the dataplane was told, so that a flush costs what
//! changed since the last one.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::policy::active::{IpSetKind, IpSetMember};

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// How often it was added.
    count: u32,
    /// Whether the dataplane has it.
    sent: bool,
}

/// The members of a set.
#[derive(Debug)]
pub(crate) struct Members {
    pub(crate) kind: IpSetKind,
    slots: BTreeMap<IpSetMember, Slot>,
    dirty: BTreeSet<IpSetMember>,
    /// How many prefixes of each family and length below full are there.
    wide: BTreeMap<(bool, u8), usize>,
}

/// What a prefix is stored as: `hash:net` cannot hold /0, so it becomes its two halves.
fn storable(net: IpNet) -> impl Iterator<Item = IpNet> {
    let halves = net.prefix_len() == 0;
    let split = halves.then(|| net.subnets(1).into_iter().flatten()).into_iter().flatten();
    split.chain((!halves).then_some(net.trunc()))
}

/// The first and the last prefix that could lie inside `net`, in the order of prefixes.
fn inside(net: &IpNet) -> Option<(IpSetMember, IpSetMember)> {
    let (first, last) = match net {
        IpNet::V4(n) => (IpNet::V4(*n), IpNet::V4(Ipv4Net::new(n.broadcast(), 32).ok()?)),
        IpNet::V6(n) => (IpNet::V6(*n), IpNet::V6(Ipv6Net::new(n.broadcast(), 128).ok()?)),
    };
    Some((IpSetMember::Net(first), IpSetMember::Net(last)))
}

impl Members {
    pub(crate) const fn new(kind: IpSetKind) -> Self {
        Self { kind, slots: BTreeMap::new(), dirty: BTreeSet::new(), wide: BTreeMap::new() }
    }

    /// Adds one occurrence.
    pub(crate) fn add(&mut self, m: IpSetMember) {
        match m {
            IpSetMember::Net(net) => storable(net).for_each(|n| self.add_one(IpSetMember::Net(n))),
            other => self.add_one(other),
        }
    }

    /// Takes one occurrence away; more than were added is no harm.
    pub(crate) fn remove(&mut self, m: IpSetMember) {
        match m {
            IpSetMember::Net(net) => storable(net).for_each(|n| self.remove_one(IpSetMember::Net(n))),
            other => self.remove_one(other),
        }
    }

    fn add_one(&mut self, m: IpSetMember) {
        let slot = self.slots.entry(m).or_default();
        slot.count += 1;
        if slot.count == 1 {
            self.dirty.insert(m);
            self.widen(m, true);
        }
    }

    fn remove_one(&mut self, m: IpSetMember) {
        let Some(slot) = self.slots.get_mut(&m) else { return };
        slot.count = slot.count.saturating_sub(1);
        if slot.count == 0 {
            self.dirty.insert(m);
            self.widen(m, false);
        }
    }

    /// Keeps count of wide prefixes; what lies inside one is to be looked at again.
    fn widen(&mut self, m: IpSetMember, more: bool) {
        let IpSetMember::Net(net) = m else { return };
        if net.prefix_len() == net.max_prefix_len() {
            return;
        }
        let key = (matches!(net, IpNet::V6(_)), net.prefix_len());
        let n = self.wide.entry(key).or_default();
        *n = if more { *n + 1 } else { n.saturating_sub(1) };
        if *n == 0 {
            self.wide.remove(&key);
        }
        if let Some((first, last)) = inside(&net) {
            self.dirty.extend(self.slots.range(first..=last).map(|(m, _)| *m));
        }
    }

    /// Whether a shorter member covers it.
    fn covered(&self, m: &IpSetMember) -> bool {
        let IpSetMember::Net(net) = m else { return false };
        let v6 = matches!(net, IpNet::V6(_));
        self.wide.range((v6, 0)..(v6, net.prefix_len())).any(|((_, len), _)| {
            let wider = IpNet::new(net.addr(), *len).map(|n| IpSetMember::Net(n.trunc()));
            wider.is_ok_and(|w| self.slots.get(&w).is_some_and(|s| s.count > 0))
        })
    }

    /// What changed since the last call, as added and removed members.
    pub(crate) fn flush(&mut self) -> (Vec<IpSetMember>, Vec<IpSetMember>) {
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for m in std::mem::take(&mut self.dirty) {
            let covered = self.covered(&m);
            let Some(slot) = self.slots.get_mut(&m) else { continue };
            let visible = slot.count > 0 && !covered;
            if visible != slot.sent {
                if visible {
                    added.push(m)
                } else {
                    removed.push(m)
                }
                slot.sent = visible;
            }
            if slot.count == 0 && !slot.sent {
                self.slots.remove(&m);
            }
        }
        (added, removed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(s: &str) -> IpSetMember {
        IpSetMember::Net(s.parse().expect(s))
    }

    #[test]
    fn covered_members_are_hidden_and_come_back() {
        let mut set = Members::new(IpSetKind::Net);
        set.add(member("10.0.0.1/32"));
        set.add(member("10.0.0.0/24"));
        assert_eq!(set.flush(), (vec![member("10.0.0.0/24")], vec![]));
        set.add(member("10.0.0.0/8"));
        assert_eq!(set.flush(), (vec![member("10.0.0.0/8")], vec![member("10.0.0.0/24")]));
        set.remove(member("10.0.0.0/8"));
        set.remove(member("10.0.0.0/24"));
        assert_eq!(set.flush(), (vec![member("10.0.0.1/32")], vec![member("10.0.0.0/8")]));
    }

    #[test]
    fn everything_is_two_halves() {
        let mut set = Members::new(IpSetKind::Net);
        set.add(member("0.0.0.0/0"));
        assert_eq!(set.flush().0, [member("0.0.0.0/1"), member("128.0.0.0/1")]);
        set.remove(member("0.0.0.0/0"));
        assert_eq!(set.flush().1.len(), 2);
    }

    proptest! {
        #[test]
        fn what_was_sent_is_what_no_other_member_covers(
            steps in proptest::collection::vec((any::<bool>(), 0u32..16, 26u8..=32, any::<bool>()), 1..60)
        ) {
            let mut set = Members::new(IpSetKind::Net);
            let mut raw: BTreeMap<IpNet, u32> = BTreeMap::new();
            let mut sent: BTreeSet<IpSetMember> = BTreeSet::new();
            for (add, low, len, flush) in steps {
                let ip = std::net::Ipv4Addr::from(0x0a00_0000 | low << 1);
                let net = IpNet::new(ip.into(), len).expect("in range").trunc();
                if add {
                    *raw.entry(net).or_default() += 1;
                    set.add(IpSetMember::Net(net));
                } else if let Some(n) = raw.get_mut(&net).filter(|n| **n > 0) {
                    *n -= 1;
                    set.remove(IpSetMember::Net(net));
                }
                if flush {
                    let (added, removed) = set.flush();
                    for m in added { prop_assert!(sent.insert(m)); }
                    for m in removed { prop_assert!(sent.remove(&m)); }
                    let live: Vec<IpNet> = raw.iter().filter(|(_, n)| **n > 0).map(|(n, _)| *n).collect();
                    let want: BTreeSet<IpSetMember> = live.iter()
                        .filter(|n| !live.iter().any(|w| w != *n && w.contains(*n)))
                        .map(|n| IpSetMember::Net(*n)).collect();
                    prop_assert_eq!(&sent, &want);
                }
            }
        }
    }
}
