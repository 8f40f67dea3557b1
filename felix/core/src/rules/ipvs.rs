//! Beside kube-proxy in IPVS mode. IPVS takes a packet for a service in at INPUT, for the service's address is one of this
//! host, and sends it on through OUTPUT with the destination translated, where it looks like the host's own. So INPUT
//! marks what comes in and leaves alone what IPVS is known to send on, and OUTPUT judges what has the mark as FORWARD
//! would have done, by the true destination.
//!
//! ```text
//! filter INPUT   all is marked; what is for a service ─> brindle-ipvs-taken: forward policy of the host endpoint it came
//!                in by (it sees the service's address), nothing else of INPUT
//! filter OUTPUT  marked ─> brindle-ipvs-out: from workload, to workload, host endpoint it leaves by; mark cleared
//! ```
//! Which workload it came from is told by its source: the device is not known any more, and the reverse path (raw
//! PREROUTING) has vouched for it. A source of `allowedSourcePrefixes` is nobody's there, and denied, or is judged as the
//! workload that has it.
//!
//! A service that is not known yet, or leads to this host itself, where IPVS lets the packet go on past every table that
//! may drop, is judged at INPUT, too, with the service's address for a destination: that may deny what the true
//! destination would be allowed, never the other way round.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    ir::{Action, Chain, Family, Match, Rule, Table},
    layout::{
        FROM_HEP_FORWARD, Layout, Surroundings, TO_HEP_FORWARD, TO_WL, before, from_workloads, jump,
        to_workloads,
    },
    marks::Through,
    names,
    sets::{Member, SetKind, WantedSet, WantedSets, holdable},
};

/// Where IPVS takes packets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    pub address: IpAddr,
    /// 6, 17 or 132.
    pub protocol: u8,
    pub port: u16,
}

/// The set of them.
pub const SERVICES: &str = "ipvs-services";
/// The choice of the workload a packet comes from, by its source.
pub const FROM: &str = "brindle-ipvs-from";
const TAKEN: &str = "brindle-ipvs-taken";
const OUT: &str = "brindle-ipvs-out";
const DONE: &str = "brindle-ipvs-done";

/// The marks, where there is IPVS and the mask has bits for it.
pub(super) fn marks(s: &Surroundings) -> Option<Through> {
    s.marks.through.filter(|_| s.ipvs.is_some())
}

/// The set, where there is IPVS.
pub(super) fn set(family: Family, s: &Surroundings) -> WantedSets {
    if marks(s).is_none() {
        return BTreeMap::new();
    }
    let member = |s: &Service| Member::Port { ip: s.address, protocol: s.protocol, port: s.port };
    let members = holdable(s.ipvs.iter().flatten().map(member), family);
    let set = WantedSet { kind: SetKind::IpPort, members };
    BTreeMap::from([(names::set(family, SERVICES), Arc::new(set))])
}

/// The chains, and the way to them; nothing without IPVS. Behind [`super::layout::fixed`]'s own.
pub(super) fn put(family: Family, s: &Surroundings, out: &mut Layout) {
    let Some(through) = marks(s) else { return };
    let has = |bit| Match::Mark { value: bit, mask: bit };
    let set = |bit| Action::SetMark { value: bit, mask: bit };
    let clear = |mask| Rule::new(Vec::new(), Action::SetMark { value: 0, mask });
    let goto = |matches, to: &str| Rule::new(matches, Action::Goto(to.into()));

    let undecided = Match::Mark { value: 0, mask: s.marks.accept };
    let forward = Rule::new(vec![undecided], Action::Jump(FROM_HEP_FORWARD.into()));
    out.put(Table::Filter, Chain::new(TAKEN, vec![clear(s.marks.pass), forward]));

    let mut rules = vec![goto(vec![Match::Known], DONE)];
    rules.push(Rule::new(vec![has(through.workload)], Action::Jump(FROM.into())));
    rules.extend(to_workloads(s).map(|dev| Rule::new(vec![dev], Action::Jump(TO_WL.into()))));
    rules.push(jump(TO_HEP_FORWARD));
    rules.push(goto(Vec::new(), DONE));
    out.put(Table::Filter, Chain::new(OUT, rules));
    // A tunnel sends what it wraps through OUTPUT once more, with the marks it had.
    out.put(Table::Filter, Chain::new(DONE, vec![clear(through.both())]));

    let judged = Rule::new(vec![has(through.service)], Action::Return).because("judged on its way");
    before(out, Table::Raw, "brindle-OUTPUT", vec![judged]);
    let mut rules = vec![clear(through.both()), Rule::new(Vec::new(), set(through.service))];
    rules.extend(from_workloads(s).map(|dev| Rule::new(vec![dev], set(through.workload))));
    let service = Match::DstPortSet { set: names::set(family, SERVICES), not: false };
    rules.push(goto(vec![service], TAKEN).because("judged behind IPVS"));
    before(out, Table::Filter, "brindle-INPUT", rules);
    before(out, Table::Filter, "brindle-OUTPUT", vec![goto(vec![has(through.service)], OUT)]);
}

/// The choice by source: pairs of a workload's address and its chain.
pub(super) fn from(s: &Surroundings, workloads: impl IntoIterator<Item = (IpNet, String)>, out: &mut Layout) {
    if marks(s).is_none() {
        return;
    }
    let choose = |(net, chain)| Rule::new(vec![Match::Src { net, not: false }], Action::Goto(chain));
    let choices = workloads.into_iter().map(choose).collect();
    let nobody = Rule::new(Vec::new(), s.deny.clone()).because("no endpoint is known for this source");
    out.put(Table::Filter, Chain::choosing(FROM, choices, &[nobody]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{policy::active::PolicySettings, rules::layout};

    fn layout(around: &Surroundings) -> Layout {
        let mut out = Layout { sets: layout::sets(Family::V4, around), ..Layout::default() };
        layout::fixed(Family::V4, around, &PolicySettings::default(), &[], &mut out);
        from(around, [("10.65.0.2/32".parse().unwrap(), "brindle-fw-calia".into())], &mut out);
        out
    }

    fn around(services: &[(&str, u8, u16)]) -> Surroundings {
        let service = |(address, protocol, port): &(&str, u8, u16)| Service {
            address: address.parse().unwrap(),
            protocol: *protocol,
            port: *port,
        };
        Surroundings { ipvs: Some(services.iter().map(service).collect()), ..Surroundings::default() }
    }

    #[test]
    fn the_chains_as_iptables_has_them() {
        let out = layout(&around(&[("10.96.0.10", 6, 80), ("fd00::a", 17, 53)]));
        let mut text = String::new();
        let shown = [TAKEN, OUT, DONE, FROM, "brindle-INPUT", "brindle-OUTPUT"];
        let all = out.chains.iter().filter(|((t, n), _)| *t == Table::Filter && shown.contains(&&**n));
        for (_, chain) in all {
            for line in &crate::rules::iptables::chain(Family::V4, chain).lines {
                // Without the tags.
                let (_, rest) = line.split_once('"').unwrap();
                let (comment, rule) = rest.split_once('"').unwrap();
                let words = comment.split_once(' ').map_or("", |(_, words)| words);
                text += &format!(
                    "{:<18}{rule}{}{words}\n",
                    chain.name,
                    if words.is_empty() { "" } else { "  # " }
                );
            }
        }
        insta::assert_snapshot!(text);
        let members = &out.sets[&names::set(Family::V4, SERVICES)].members;
        assert_eq!(members.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.96.0.10,tcp:80"]);
    }

    #[test]
    fn without_ipvs_or_bits_for_it_nothing_is_different() {
        let plain = layout(&Surroundings::default());
        let mut few = around(&[("10.96.0.10", 6, 80)]);
        few.marks.through = None;
        let few = layout(&few);
        for out in [&plain, &few] {
            assert!(!out.chains.keys().any(|(_, n)| n.contains("ipvs")), "{:?}", out.chains.keys());
            assert!(!out.sets.keys().any(|n| n.contains("ipvs")));
        }
        assert_eq!(plain.chains, few.chains);
    }
}
