//! What the kernel does with a packet that meets the rules as rendered: a walk through their neutral form, table by
//! table. It knows hooks, chains, marks and sets, and nothing of policy.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use brindle_felix_core::{
    policy::active::PolicyDelta,
    policy::verdict::Packet,
    rules::{
        ir::{Action, Family, Iface, Match, Place, Ports, Rule, Table, Way},
        layout::{Layout, Surroundings},
        model::Model,
        policy::Style,
        sets::Member,
    },
};
use ipnet::IpNet;

/// A device by which a packet comes in or leaves; `None` = a process of the node.
pub(crate) type Device = Option<String>;

/// The rules of a node in both families.
pub(crate) struct Kernel {
    layouts: BTreeMap<bool, Layout>,
    local: BTreeSet<IpAddr>,
}

/// A packet under way.
struct Walk<'a> {
    layout: &'a Layout,
    local: &'a BTreeSet<IpAddr>,
    packet: &'a Packet,
    ways: (Device, Device),
    mark: u32,
}

impl Kernel {
    /// What a node with these addresses, each on a device, writes after it was told this.
    pub(crate) fn new(
        deltas: &[PolicyDelta],
        around: &Surroundings,
        addresses: &BTreeMap<IpAddr, String>,
    ) -> Self {
        let mut model = Model::default();
        deltas.iter().cloned().for_each(|d| model.apply(d));
        let mut of = |f| (f == Family::V4, model.layout(f, around, &Style::iptables(), addresses));
        let layouts = Family::ALL.map(&mut of).into();
        Self { layouts, local: addresses.keys().copied().collect() }
    }

    /// Whether the packet gets through.
    pub(crate) fn lets(&self, packet: &Packet, from: Device, to: Device) -> bool {
        let Some(layout) = self.layouts.get(&packet.src.is_ipv4()) else { return false };
        let hooks: &[(Table, &str)] = match (&from, &to) {
            (Some(_), Some(_)) => {
                &[(Table::Raw, "PREROUTING"), (Table::Mangle, "PREROUTING"), (Table::Filter, "FORWARD")]
            }
            (Some(_), None) => {
                &[(Table::Raw, "PREROUTING"), (Table::Mangle, "PREROUTING"), (Table::Filter, "INPUT")]
            }
            (None, _) => &[(Table::Raw, "OUTPUT"), (Table::Filter, "OUTPUT")],
        };
        let mut walk = Walk { layout, local: &self.local, packet, ways: (from, to), mark: 0 };
        hooks.iter().all(|(table, chain)| walk.hook(*table, chain))
    }
}

impl Walk<'_> {
    fn hook(&mut self, table: Table, chain: &str) -> bool {
        let mut hooks: Vec<_> =
            self.layout.hooks.iter().filter(|(t, h)| *t == table && h.chain == chain).collect();
        hooks.sort_by_key(|(_, h)| h.place == Place::Last);
        hooks.iter().find_map(|(_, h)| self.rules(table, &h.rules)).unwrap_or(true)
    }

    fn chain(&mut self, table: Table, name: &str) -> Option<bool> {
        if let Some((_, d)) = self.layout.dispatches.iter().find(|(t, d)| *t == table && d.name == name) {
            let device = if d.way == Way::In { &self.ways.0 } else { &self.ways.1 };
            return match d.entries.iter().find(|(dev, _)| Some(dev) == device.as_ref()) {
                Some((_, chain)) => self.chain(table, chain),
                None => self.rules(table, &d.otherwise),
            };
        }
        let chain = self.layout.chains.get(&(table, name.to_owned()));
        self.rules(table, &chain.unwrap_or_else(|| panic!("{table} has no chain {name}")).rules)
    }

    /// `None`: the end was reached, or it returned.
    fn rules(&mut self, table: Table, rules: &[Rule]) -> Option<bool> {
        for r in rules {
            if !r.matches.iter().all(|m| self.matches(m)) {
                continue;
            }
            match &r.action {
                Action::Accept => return Some(true),
                Action::Drop | Action::Reject => return Some(false),
                Action::Return => return None,
                Action::Jump(to) => {
                    if let Some(end) = self.chain(table, to) {
                        return Some(end);
                    }
                }
                Action::Goto(to) => return self.chain(table, to),
                Action::SetMark { value, mask } => self.mark = self.mark & !mask | value,
                Action::Log { .. } | Action::NoTrack => {}
                Action::Masquerade { .. } | Action::Dnat { .. } | Action::Snat { .. } => {
                    panic!("nothing is translated in {table}")
                }
            }
        }
        None
    }

    fn set(&self, name: &str, holds: impl Fn(&Member) -> bool) -> bool {
        self.layout.sets.get(name).expect("the set is there").members.iter().any(holds)
    }

    fn matches(&self, m: &Match) -> bool {
        let p = self.packet;
        let device = |have: &Device, want: &Iface| {
            have.as_ref().is_some_and(|have| match want {
                Iface::Exact(name) => have == name,
                Iface::Prefix(prefix) => have.starts_with(prefix),
            })
        };
        let among = |ports: &[Ports], port: u16| {
            p.protocol.has_ports() && ports.iter().any(|r| (r.first..=r.last).contains(&port))
        };
        let in_nets =
            |name: &str, a: IpAddr| self.set(name, |m| matches!(m, Member::Net(n) if n.contains(&a)));
        let in_ports = |name: &str, a: IpAddr, port: u16| {
            let wanted = Member::Port { ip: a, protocol: p.protocol.0, port };
            p.protocol.has_ports() && self.set(name, |m| *m == wanted)
        };
        let inside = |net: &IpNet, a: IpAddr| net.contains(&a);
        match m {
            Match::In { iface, not } => device(&self.ways.0, iface) != *not,
            Match::Out { iface, not } => device(&self.ways.1, iface) != *not,
            Match::Proto { number, not } => (p.protocol.0 == *number) != *not,
            Match::Src { net, not } => inside(net, p.src) != *not,
            Match::Dst { net, not } => inside(net, p.dst) != *not,
            Match::SrcSet { set, not } => in_nets(set, p.src) != *not,
            Match::DstSet { set, not } => in_nets(set, p.dst) != *not,
            Match::SrcPortSet { set, not } => in_ports(set, p.src, p.src_port) != *not,
            Match::DstPortSet { set, not } => in_ports(set, p.dst, p.dst_port) != *not,
            Match::SrcPorts { ports, not } => among(ports, p.src_port) != *not,
            Match::DstPorts { ports, not } => among(ports, p.dst_port) != *not,
            Match::Icmp { kind, code, not } => {
                let same = p.icmp.is_some_and(|(k, c)| k == *kind && code.is_none_or(|code| code == c));
                same != *not
            }
            Match::Mark { value, mask } => self.mark & mask == *value,
            Match::Known | Match::Related | Match::Invalid | Match::Dnat | Match::FlowMark { .. } => false,
            Match::ReverseFails | Match::SrcOfOtherDevice => false,
            Match::SrcLocal => self.local.contains(&p.src),
            Match::DstLocal => self.local.contains(&p.dst),
            // Nobody sends more than the rate, and neighbours are near.
            Match::OnLink | Match::Rate { .. } => true,
        }
    }
}
