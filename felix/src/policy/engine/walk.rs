//! A walk through the kernel's tracked flows: for whose sake ([`Work`]), what it looks for ([`Look`]) and what it brings
//! back ([`Heard`]). What becomes of the flows is `flows`'.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use brindle_felix_core::{
    policy::active::IpSetMember,
    rules::{ir::Family, model::Changed},
};
use brindle_kernel::netfilter::{Flow, Netfilter, NfError};
use ipnet::IpNet;

use crate::policy::driver::ip;

/// Whose flows are to be looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Work {
    /// Addresses that workloads had: their flows are deleted.
    pub(super) gone: BTreeSet<IpAddr>,
    /// What workloads have got, and sets have got or lost: flows of these are judged.
    pub(super) touched: BTreeSet<IpNet>,
    /// All flows are judged.
    pub(super) all: bool,
}

impl Work {
    /// What a change asks for.
    pub(super) fn of(changed: &Changed) -> Self {
        let of_sets =
            changed.members.iter().flat_map(|d| d.added.iter().chain(&d.removed)).map(|m| match m {
                IpSetMember::Net(net) => net.trunc(),
                IpSetMember::Ip(address) | IpSetMember::IpPort { address, .. } => (*address).into(),
            });
        let touched = changed.fresh.iter().map(|a| (*a).into()).chain(of_sets).collect();
        Self { gone: changed.gone.clone(), touched, all: changed.judge }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.all && self.gone.is_empty() && self.touched.is_empty()
    }

    pub(super) fn absorb(&mut self, other: Self) {
        self.gone.extend(other.gone);
        self.touched.extend(other.touched);
        self.all |= other.all;
    }

    /// Whether flows of a family are meant. `alive`: addresses of workloads; `quiet`: without any of those no flow of that
    /// family is policy's.
    fn means(&self, family: Family, alive: &BTreeSet<IpAddr>, quiet: bool) -> bool {
        let of_family = |a: &IpAddr| family.has(&(*a).into());
        self.gone.iter().any(of_family)
            || self.touched.iter().any(|n| family.has(n))
            || self.all && (!quiet || alive.iter().any(of_family))
    }
}

/// What a walk goes by.
pub(super) struct Look {
    families: Vec<Family>,
    gone: BTreeSet<IpAddr>,
    touched: BTreeSet<IpNet>,
    /// Lengths of `touched`, so that an address is looked for in few of its networks.
    lengths: BTreeSet<u8>,
    all: bool,
    alive: BTreeSet<IpAddr>,
    /// There are host endpoints: policy may speak of any flow.
    hosts: bool,
    pools: Vec<IpNet>,
    /// That of closed flows; 0 where none are closed.
    bit: u32,
}

/// What is known of a node when a walk begins.
pub(super) struct Around<'a> {
    pub(super) families: &'a [Family],
    /// Families in which no flow is closed.
    pub(super) open: &'a BTreeSet<Family>,
    pub(super) alive: BTreeSet<IpAddr>,
    pub(super) hosts: bool,
    pub(super) pools: Vec<IpNet>,
    pub(super) bit: u32,
}

/// What a walk brings back.
#[derive(Default)]
pub(super) struct Heard {
    /// Flows that are to be deleted or judged.
    pub(super) flows: Vec<Flow>,
    /// Of each family that was read, how many flows are closed.
    pub(super) closed: BTreeMap<Family, usize>,
    /// Addresses of pools that have flows and are none of `gone`.
    pub(super) seen: BTreeSet<IpAddr>,
}

impl Look {
    pub(super) fn new(work: &Work, around: Around<'_>) -> Self {
        let Around { families, open, alive, hosts, pools, bit } = around;
        let mut families = families.to_vec();
        families.retain(|f| work.means(*f, &alive, !hosts && open.contains(f)));
        let lengths = work.touched.iter().map(IpNet::prefix_len).collect();
        let (gone, touched, all) = (work.gone.clone(), work.touched.clone(), work.all);
        Self { families, gone, touched, lengths, all, alive, hosts, pools, bit }
    }

    /// Reads the flows. The kernel walks through all it tracks, of every namespace.
    pub(super) fn hear(&self, nf: &mut dyn Netfilter) -> Result<Heard, NfError> {
        let mut heard = Heard::default();
        for family in &self.families {
            let mut flows = nf.flows(ip(*family))?;
            let pooled = |a: &IpAddr| self.pools.is_empty() || self.pools.iter().any(|p| p.contains(a));
            let seen = flows.iter().flat_map(ends).filter(|a| !self.gone.contains(a) && pooled(a));
            heard.seen.extend(seen);
            heard.closed.insert(*family, flows.iter().filter(|f| self.is_closed(f)).count());
            flows.retain(|f| self.concerns(f));
            heard.flows.extend(flows);
        }
        Ok(heard)
    }

    fn is_closed(&self, f: &Flow) -> bool {
        f.mark & self.bit != 0
    }

    fn concerns(&self, f: &Flow) -> bool {
        let policed = || self.hosts || self.is_closed(f) || has_end(f, &self.alive);
        has_end(f, &self.gone) || (self.all || self.touches(f)) && policed()
    }

    fn touches(&self, f: &Flow) -> bool {
        let of = |a: IpAddr| {
            let net = |len: &u8| IpNet::new(a, *len).is_ok_and(|n| self.touched.contains(&n.trunc()));
            self.lengths.iter().any(net)
        };
        !self.touched.is_empty() && ends(f).into_iter().any(of)
    }
}

fn ends(f: &Flow) -> [IpAddr; 4] {
    [f.original.src, f.original.dst, f.reply.src, f.reply.dst]
}

pub(super) fn has_end(f: &Flow, of: &BTreeSet<IpAddr>) -> bool {
    !of.is_empty() && ends(f).iter().any(|a| of.contains(a))
}

#[cfg(test)]
mod tests {
    use brindle_felix_core::policy::active::{IpSetDelta, IpSetId};
    use brindle_kernel::netfilter::{IpVersion, Tuple};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn flow(src: &str, dst: &str) -> Flow {
        let tuple = |src, dst| Tuple { src: ip(src), dst: ip(dst), sport: 1000, dport: 80, icmp: None };
        let (there, back) = (tuple(src, dst), tuple(dst, src));
        Flow::invented(IpVersion::V4, 6, there, back)
    }

    fn look(work: &Work, hosts: bool) -> Look {
        let alive = ["10.0.0.1", "10.0.0.2"].map(ip).into();
        let open = BTreeSet::from([Family::V4, Family::V6]);
        Look::new(
            work,
            Around { families: &Family::ALL, open: &open, alive, hosts, pools: Vec::new(), bit: 8 },
        )
    }

    #[test]
    fn a_member_of_a_set_concerns_its_own_flows_with_workloads() {
        let member = |net: &str| IpSetMember::Net(net.parse().unwrap());
        let delta = IpSetDelta {
            id: IpSetId("s:x".into()),
            added: vec![member("10.9.0.0/24")],
            removed: vec![member("192.0.2.7/32")],
        };
        let work = Work::of(&Changed { members: vec![delta], ..Changed::default() });
        let l = look(&work, false);
        assert_eq!(l.families, [Family::V4], "nothing was said of IPv6");
        for (src, dst, concerns) in [
            ("10.9.0.5", "10.0.0.1", true),
            ("10.0.0.2", "192.0.2.7", true),
            ("10.0.0.2", "192.0.2.8", false),
            ("10.9.0.5", "198.51.100.1", false),
        ] {
            assert_eq!(l.concerns(&flow(src, dst)), concerns, "{src} {dst}");
        }
        assert!(look(&work, true).concerns(&flow("10.9.0.5", "198.51.100.1")), "a host endpoint may see it");
    }

    #[test]
    fn all_flows_are_those_that_policy_may_speak_of() {
        let work = Work { all: true, ..Work::default() };
        let l = look(&work, false);
        assert_eq!(
            l.families,
            [Family::V4],
            "no workload has an IPv6 address, and no flow of IPv6 is closed"
        );
        assert!(l.concerns(&flow("10.0.0.2", "192.0.2.8")));
        assert!(!l.concerns(&flow("192.0.2.8", "192.0.2.9")));
        let mut closed = flow("192.0.2.8", "192.0.2.9");
        closed.mark = 8;
        assert!(l.concerns(&closed), "it may be allowed now");
        assert_eq!(look(&work, true).families, Family::ALL);
    }
}
