//! Beside kube-proxy in IPVS mode. IPVS takes a packet for a service in at INPUT, for the service's address is one of this
//! host, and sends it on through OUTPUT with the destination translated, where it looks like the host's own. So INPUT
//! marks what may be such a packet and leaves it alone, and OUTPUT judges what has the mark as FORWARD would have done,
//! by the true destination.
//!
//! ```text
//! filter INPUT   brindle-ipvs-in:   to an address or a node port of services ─> marked; forward policy of the host
//!                                   endpoint it came in by (it sees the service's address)
//! filter OUTPUT  brindle-ipvs-out:  marked ─> from workload, to workload, host endpoint it leaves by; mark cleared
//! ```
//! Which workload it came from is told by its source: the device is not known any more, and the reverse path (raw
//! PREROUTING) has vouched for it. Sources of `allowedSourcePrefixes` are nobody's there, and denied.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    ir::{Action, Chain, Family, Match, Rule, Table},
    layout::{
        FROM_HEP_FORWARD, Layout, Surroundings, TO_HEP_FORWARD, TO_WL, from_workloads, jump, to_workloads,
    },
    marks::Through,
    names,
};

/// Addresses of this host that are not a service's.
pub const HOST: &str = "this-host";
/// The choice of the workload a packet comes from, by its source.
pub const FROM: &str = "brindle-ipvs-from";
const IN: &str = "brindle-ipvs-in";
const TAKEN: &str = "brindle-ipvs-taken";
const OUT: &str = "brindle-ipvs-out";
const DONE: &str = "brindle-ipvs-done";
/// Protocols a service may have.
const PROTOCOLS: [u8; 3] = [6, 17, 132];
/// Ranges in one rule: multiport has 15 places.
const RANGES: usize = 7;

/// The marks, where there is IPVS and the mask has bits for it.
pub(super) fn marks(s: &Surroundings) -> Option<Through> {
    s.marks.through.filter(|_| s.ipvs.is_some())
}

/// What is delivered here and nowhere else: this host's addresses, loopback and link-local ones.
pub(super) fn host(s: &Surroundings) -> Option<Vec<IpNet>> {
    marks(s)?;
    let always = [
        IpNet::from(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        IpNet::from(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
        IpNet::from(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)),
    ];
    let known = s.ipvs.iter().flatten().copied().map(IpNet::from);
    Some(known.filter(|n| !always.iter().any(|a| a.contains(n))).chain(always).collect())
}

/// The chains, and the way to them; nothing without IPVS. Behind [`super::layout::fixed`]'s own.
pub(super) fn put(family: Family, s: &Surroundings, out: &mut Layout) {
    let Some(through) = marks(s) else { return };
    let host = || Match::DstSet { set: names::set(family, HOST), not: false };
    let has = |bit| Match::Mark { value: bit, mask: bit };
    let set = |bit| Action::SetMark { value: bit, mask: bit };
    let clear = |mask| Rule::new(Vec::new(), Action::SetMark { value: 0, mask });
    let goto = |matches, to: &str| Rule::new(matches, Action::Goto(to.into()));

    let mut rules = vec![clear(through.both())];
    for ports in s.node_ports.chunks(RANGES) {
        for number in PROTOCOLS {
            let ports = Match::DstPorts { ports: ports.to_vec(), not: false };
            let matches = vec![Match::Proto { number, not: false }, host(), ports];
            rules.push(goto(matches, TAKEN).because("node ports"));
        }
    }
    rules.push(Rule::new(vec![host()], Action::Return));
    // Neither broadcast nor multicast.
    rules.push(goto(vec![Match::DstLocal], TAKEN).because("addresses of services"));
    out.put(Table::Filter, Chain::new(IN, rules));

    let mut rules = vec![Rule::new(Vec::new(), set(through.service))];
    rules.extend(from_workloads(s).map(|dev| Rule::new(vec![dev], set(through.workload))));
    rules.push(clear(s.marks.pass));
    let undecided = Match::Mark { value: 0, mask: s.marks.accept };
    rules.push(Rule::new(vec![undecided], Action::Jump(FROM_HEP_FORWARD.into())));
    out.put(Table::Filter, Chain::new(TAKEN, rules));

    let mut rules = vec![goto(vec![Match::Known], DONE)];
    rules.push(Rule::new(vec![has(through.workload)], Action::Jump(FROM.into())));
    rules.extend(to_workloads(s).map(|dev| Rule::new(vec![dev], Action::Jump(TO_WL.into()))));
    rules.push(jump(TO_HEP_FORWARD));
    rules.push(goto(Vec::new(), DONE));
    out.put(Table::Filter, Chain::new(OUT, rules));
    // A tunnel sends what it wraps through OUTPUT once more, with the marks it had.
    out.put(Table::Filter, Chain::new(DONE, vec![clear(through.both())]));

    let taken = Rule::new(vec![has(through.service)], Action::Return);
    before(out, Table::Raw, "brindle-OUTPUT", &[taken.clone().because("judged on its way")]);
    before(out, Table::Filter, "brindle-INPUT", &[jump(IN), taken.because("judged behind IPVS")]);
    before(out, Table::Filter, "brindle-OUTPUT", &[goto(vec![has(through.service)], OUT)]);
}

fn before(out: &mut Layout, table: Table, name: &str, rules: &[Rule]) {
    if let Some(chain) = out.chains.get(&(table, name.to_owned())) {
        let all = rules.iter().chain(&chain.rules).cloned().collect();
        out.put(table, Chain::new(name, all));
    }
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
    use std::{collections::BTreeSet, net::IpAddr};

    use super::*;
    use crate::{policy::active::PolicySettings, rules::layout};

    fn layout(around: &Surroundings) -> Layout {
        let mut out = Layout { sets: layout::sets(Family::V4, around), ..Layout::default() };
        layout::fixed(Family::V4, around, &PolicySettings::default(), &[], &mut out);
        from(around, [("10.65.0.2/32".parse().unwrap(), "brindle-fw-calia".into())], &mut out);
        out
    }

    fn around(host: &[&str]) -> Surroundings {
        let host: BTreeSet<IpAddr> = host.iter().map(|a| a.parse().unwrap()).collect();
        Surroundings { ipvs: Some(host), ..Surroundings::default() }
    }

    #[test]
    fn the_chains_as_iptables_has_them() {
        let out = layout(&around(&["192.0.2.1", "127.0.0.1"]));
        let mut text = String::new();
        let shown = [IN, TAKEN, OUT, DONE, FROM, "brindle-INPUT", "brindle-OUTPUT"];
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
        let host = &out.sets[&names::set(Family::V4, HOST)].members;
        assert_eq!(host.len(), 2, "127.0.0.0/8 holds the other one: {host:?}");
    }

    #[test]
    fn without_ipvs_or_bits_for_it_nothing_is_different() {
        let plain = layout(&Surroundings::default());
        let mut few = around(&["192.0.2.1"]);
        few.marks.through = None;
        let few = layout(&few);
        for out in [&plain, &few] {
            assert!(!out.chains.keys().any(|(_, n)| n.contains("ipvs")), "{:?}", out.chains.keys());
            assert!(!out.sets.contains_key(&names::set(Family::V4, HOST)));
        }
        assert_eq!(plain.chains, few.chains);
    }

    #[test]
    fn ports_of_nodes_are_as_many_rules_as_multiport_needs() {
        let mut around = around(&[]);
        around.node_ports =
            (0..9).map(|i| super::super::ir::Ports { first: 100 * i + 1, last: 100 * i + 9 }).collect();
        let out = layout(&around);
        let rules = &out.chains[&(Table::Filter, IN.to_owned())].rules;
        assert_eq!(rules.len(), 1 + 2 * PROTOCOLS.len() + 2);
        around.node_ports.clear();
        let out = layout(&around);
        assert_eq!(out.chains[&(Table::Filter, IN.to_owned())].rules.len(), 3);
    }
}
