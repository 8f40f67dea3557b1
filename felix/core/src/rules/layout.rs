//! Where everything stands: hooks in the kernel's chains, the chains they lead to, dispatch to endpoints.
//!
//! ```text
//! raw     PREROUTING  marks cleared, reverse path of workloads, untracked policy of host endpoints
//! mangle  PREROUTING  policy before DNAT
//! mangle  POSTROUTING the host's own packets whose destination was translated: host endpoints, with the new one
//! nat     PREROUTING  floating addresses (and OUTPUT), where they are enabled
//! nat     POSTROUTING masquerade (after everybody else's)
//! filter  FORWARD     host endpoints, from workload, to workload, host endpoints; then: accepted is accepted
//! filter  INPUT       IPIP from nodes, workload to host, host endpoints
//! filter  OUTPUT      host endpoints; the host's own packets to local workloads are not policed
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv6Net};

use super::{
    endpoint::{FAILSAFE_IN, FAILSAFE_OUT, ND, ND_FROM_WORKLOADS},
    ipvs,
    ir::{Action, Chain, Dispatch, Family, Hook, Iface, Match, Place, Ports, Rule, Table},
    marks::Marks,
    names,
    policy::{ALLOW, PASS},
    sets::{Member, SetKind, WantedSet, WantedSets, holdable},
};
use crate::policy::active::{FROM_WORKLOADS, Failsafe, PolicySettings, ToHostAction};

/// Dispatch chains.
pub const FROM_WL: &str = "brindle-from-wl";
pub const TO_WL: &str = "brindle-to-wl";
pub const FROM_HEP: &str = "brindle-from-hep";
pub const TO_HEP: &str = "brindle-to-hep";
pub const FROM_HEP_FORWARD: &str = "brindle-fwd-from-hep";
pub const TO_HEP_FORWARD: &str = "brindle-fwd-to-hep";

/// Translation of floating addresses, and of pods that ask for their own.
pub const TO_FLOATING: &str = "brindle-fip-dnat";
pub const FROM_FLOATING: &str = "brindle-fip-snat";

/// Names of the sets that do not come from policy.
pub const POOLS: &str = "pools";
pub const MASQ: &str = "masq-pools";
pub const NODES: &str = "nodes";

/// What beside policy shapes the rules: FelixConfiguration, IPPools, Nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    pub marks: Marks,
    /// Devices of workloads begin with one of these (interfacePrefix).
    pub prefixes: Vec<String>,
    /// iptablesFilterDenyAction: Drop or Reject.
    pub deny: Action,
    /// Drop what connection tracking cannot place, unless disableConntrackInvalidCheck.
    pub drop_invalid: bool,
    pub log_prefix: String,
    /// Pools, and whether packets leaving them are masqueraded.
    pub pools: Vec<(IpNet, bool)>,
    /// Addresses of nodes; addresses and networks of externalNodesList.
    pub nodes: Vec<IpNet>,
    /// natOutgoingExclusions = IPPoolsAndHostIPs.
    pub exclude_nodes: bool,
    /// natPortRange.
    pub nat_ports: Option<Ports>,
    /// natOutgoingAddress.
    pub nat_address: Option<IpAddr>,
    /// iptablesNATOutgoingInterfaceFilter.
    pub nat_interface: Option<String>,
    /// Some pool asks for IPIP: packets of it are taken from nodes only.
    pub ipip: bool,
    /// Floating addresses and the pods' own they lead to; `None` unless floatingIPs is Enabled.
    pub floating: Option<BTreeMap<IpAddr, IpAddr>>,
    /// Where the hooks stand in the kernel's chains (chainInsertMode).
    pub place: Place,
    /// What IPVS sends on to others than this host; `None`: kube-proxy is not in IPVS mode.
    pub ipvs: Option<BTreeSet<ipvs::Service>>,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self {
            marks: Marks::default(),
            prefixes: vec!["cali".into()],
            deny: Action::Drop,
            drop_invalid: true,
            log_prefix: "calico-packet: ".into(),
            pools: Vec::new(),
            nodes: Vec::new(),
            exclude_nodes: false,
            nat_ports: None,
            nat_address: None,
            nat_interface: None,
            ipip: false,
            floating: None,
            place: Place::First,
            ipvs: None,
        }
    }
}

/// One family's rules, neutral.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    pub chains: BTreeMap<(Table, String), Arc<Chain>>,
    pub dispatches: Vec<(Table, Dispatch)>,
    pub hooks: Vec<(Table, Hook)>,
    pub sets: WantedSets,
    /// Those of them that do not come from the calculation and are compared each time.
    pub own_sets: BTreeSet<String>,
}

impl Layout {
    pub(super) fn put(&mut self, table: Table, chain: Chain) {
        self.put_shared(table, Arc::new(chain));
    }

    /// Only the filter table can reject; elsewhere a packet is dropped.
    pub(super) fn put_shared(&mut self, table: Table, chain: Arc<Chain>) {
        let rejects = |r: &Rule| r.action == Action::Reject;
        let chain = if table != Table::Filter && chain.rules.iter().any(rejects) {
            let mut quiet = Chain::clone(&chain);
            quiet.rules.iter_mut().filter(|r| rejects(r)).for_each(|r| r.action = Action::Drop);
            Arc::new(quiet)
        } else {
            chain
        };
        self.chains.insert((table, chain.name.clone()), chain);
    }
}

/// Sets that come from pools and nodes.
pub(super) fn sets(family: Family, s: &Surroundings) -> WantedSets {
    let of = |nets: &mut dyn Iterator<Item = IpNet>| WantedSet {
        kind: SetKind::Net,
        members: holdable(nets.map(Member::Net), family),
    };
    let mut out = BTreeMap::new();
    let mut put = |id: &str, set: WantedSet| out.insert(names::set(family, id), Arc::new(set));
    put(POOLS, of(&mut s.pools.iter().map(|(n, _)| *n)));
    put(MASQ, of(&mut s.pools.iter().filter(|(_, masq)| *masq).map(|(n, _)| *n)));
    put(NODES, of(&mut s.nodes.iter().copied()));
    out.extend(ipvs::set(family, s));
    out
}

pub(super) fn jump(to: &str) -> Rule {
    Rule::new(Vec::new(), Action::Jump(to.to_owned()))
}

pub(super) fn from_workloads(s: &Surroundings) -> impl Iterator<Item = Match> + '_ {
    s.prefixes.iter().map(|p| Match::In { iface: Iface::Prefix(p.clone()), not: false })
}

pub(super) fn to_workloads(s: &Surroundings) -> impl Iterator<Item = Match> + '_ {
    s.prefixes.iter().map(|p| Match::Out { iface: Iface::Prefix(p.clone()), not: false })
}

/// Everything that does not depend on which policies and endpoints there are. `spoofing`: devices and the foreign
/// sources they may use, which the reverse path cannot vouch for.
pub(super) fn fixed(
    family: Family,
    s: &Surroundings,
    p: &PolicySettings,
    spoofing: &[(String, IpNet)],
    out: &mut Layout,
) {
    let m = s.marks;
    let accepted = || Match::Mark { value: m.accept, mask: m.accept };
    let undecided = || Match::Mark { value: 0, mask: m.accept };
    let clear = |mask| Rule::new(Vec::new(), Action::SetMark { value: 0, mask });
    let accept = |matches| Rule::new(matches, Action::Accept);
    let set = |bit| Rule::new(Vec::new(), Action::SetMark { value: bit, mask: bit });
    let v4 = family == Family::V4;

    for table in [Table::Raw, Table::Mangle, Table::Filter] {
        out.put(table, Chain::new(ALLOW, vec![set(m.accept)]));
        out.put(table, Chain::new(PASS, vec![set(m.pass)]));
        out.put(table, failsafe(family, FAILSAFE_IN, p, true, table == Table::Raw));
        out.put(table, failsafe(family, FAILSAFE_OUT, p, false, table == Table::Raw));
    }

    // raw
    // What came out of a tunnel has the marks of what it was wrapped in.
    let through = ipvs::marks(s).map_or(0, |t| t.both());
    let mut rules = vec![clear(m.both() | through)];
    let may_spoof = spoofing.iter().filter(|(_, n)| family.has(n)).map(|(dev, net)| {
        let dev = Match::In { iface: Iface::Exact(dev.clone()), not: false };
        Rule::new(vec![dev, Match::Src { net: *net, not: false }], Action::Return)
    });
    rules.extend(may_spoof);
    if !v4 {
        for kind in ND_FROM_WORKLOADS {
            let nd = Match::Icmp { kind, code: None, not: false };
            rules.extend(from_workloads(s).map(|dev| {
                let icmp = Match::Proto { number: 58, not: false };
                Rule::new(vec![dev, icmp, nd.clone()], Action::Return)
            }));
        }
    }
    rules.extend(from_workloads(s).map(|dev| {
        Rule::new(vec![dev, Match::ReverseFails], Action::Drop)
            .because("source is not reached through this device")
    }));
    rules.push(jump(FROM_HEP));
    rules.push(accept(vec![accepted()]));
    out.put(Table::Raw, Chain::new("brindle-PREROUTING", rules));
    out.put(
        Table::Raw,
        Chain::new("brindle-OUTPUT", vec![clear(m.both()), jump(TO_HEP), accept(vec![accepted()])]),
    );

    // mangle
    out.put(
        Table::Mangle,
        Chain::new(
            "brindle-PREROUTING",
            vec![
                accept(vec![Match::Known]),
                accept(vec![accepted()]),
                jump(FROM_HEP),
                accept(vec![accepted()]),
            ],
        ),
    );

    // The output chain of the filter table saw the destination before translation. A local source: the packet is the
    // host's own; what is forwarded was judged on its way.
    let own = vec![Match::Dnat, Match::SrcLocal];
    let to_hep = Rule::new(own, Action::Jump(TO_HEP.into()));
    out.put(Table::Mangle, Chain::new("brindle-POSTROUTING", vec![to_hep]));

    nat(family, s, out);

    // filter
    let mut rules = vec![clear(m.pass)];
    rules.push(Rule::new(vec![undecided()], Action::Jump(FROM_HEP_FORWARD.into())));
    rules.extend(from_workloads(s).map(|dev| Rule::new(vec![dev], Action::Jump(FROM_WL.into()))));
    rules.extend(to_workloads(s).map(|dev| Rule::new(vec![dev], Action::Jump(TO_WL.into()))));
    rules.push(jump(TO_HEP_FORWARD));
    out.put(Table::Filter, Chain::new("brindle-FORWARD", rules));

    let ipip = v4 && s.ipip;
    let proto4 = || Match::Proto { number: 4, not: false };
    let nodes = || names::set(family, NODES);
    let mut rules = Vec::new();
    if ipip {
        let known = Match::SrcSet { set: nodes(), not: false };
        rules.push(accept(vec![proto4(), known, Match::DstLocal]).because("IPIP from a node"));
        // Packets from others are dropped and counted by the filter of kernel ipip, or by the carrier.
    }
    rules
        .extend(from_workloads(s).map(|dev| Rule::new(vec![dev], Action::Goto("brindle-wl-to-host".into()))));
    rules.push(accept(vec![accepted()]));
    rules.push(clear(m.both()));
    rules.push(jump(FROM_HEP));
    rules.push(accept(vec![accepted()]));
    out.put(Table::Filter, Chain::new("brindle-INPUT", rules));

    let mut rules = Vec::new();
    if !v4 {
        // The host is the router and neighbour of its workloads: multicast listener reports and discovery.
        for kind in FROM_WORKLOADS {
            let icmp = Match::Icmp { kind, code: None, not: false };
            rules.push(accept(vec![Match::Proto { number: 58, not: false }, icmp]));
        }
    }
    rules.push(jump(FROM_WL));
    match p.to_host {
        ToHostAction::Accept => rules.push(accept(Vec::new()).because("defaultEndpointToHostAction")),
        ToHostAction::Drop => {
            rules.push(Rule::new(Vec::new(), s.deny.clone()).because("defaultEndpointToHostAction"));
        }
        // The mark would let it past the host's own policy.
        ToHostAction::Return => rules.extend([clear(m.both()), jump(FROM_HEP), accept(vec![accepted()])]),
    }
    out.put(Table::Filter, Chain::new("brindle-wl-to-host", rules));

    let mut rules = vec![accept(vec![accepted()])];
    rules.extend(to_workloads(s).map(|dev| Rule::new(vec![dev], Action::Return)));
    if ipip {
        let known = Match::DstSet { set: nodes(), not: false };
        rules.push(accept(vec![proto4(), known, Match::SrcLocal]).because("IPIP to a node"));
    }
    rules.push(clear(m.both()));
    // What was translated is judged behind the translation, in mangle POSTROUTING; what has no flow was not translated.
    rules.push(Rule::new(vec![Match::Dnat], Action::Return).because("judged behind the translation"));
    rules.push(jump(TO_HEP));
    rules.push(accept(vec![accepted()]));
    out.put(Table::Filter, Chain::new("brindle-OUTPUT", rules));

    ipvs::put(family, s, out);
    closed(s, out);
    hooks(s, out);
}

/// What belongs to a closed flow ends here, in both directions: in front of all that lets a known flow go on.
fn closed(s: &Surroundings, out: &mut Layout) {
    let Some(bit) = s.marks.closed else { return };
    let of_closed = || Match::FlowMark { value: bit, mask: bit };
    for chain in ["brindle-INPUT", "brindle-FORWARD", "brindle-OUTPUT"] {
        let deny = Rule::new(vec![of_closed()], s.deny.clone()).because("policy denies this flow now");
        // A rejection is about the flow it rejects.
        let answers = s.deny == Action::Reject && chain == "brindle-OUTPUT";
        let rejection = Rule::new(vec![of_closed(), Match::Related], Action::Return);
        let rules = answers.then_some(rejection).into_iter().chain([deny]).collect();
        before(out, Table::Filter, chain, rules);
    }
}

/// Puts rules in front of a chain.
pub(super) fn before(out: &mut Layout, table: Table, name: &str, mut rules: Vec<Rule>) {
    if let Some(chain) = out.chains.get(&(table, name.to_owned())) {
        rules.extend_from_slice(&chain.rules);
        out.put(table, Chain::new(name, rules));
    }
}

fn hooks(s: &Surroundings, out: &mut Layout) {
    let places = [
        (Table::Raw, "PREROUTING"),
        (Table::Raw, "OUTPUT"),
        (Table::Mangle, "PREROUTING"),
        (Table::Mangle, "POSTROUTING"),
        (Table::Filter, "INPUT"),
        (Table::Filter, "FORWARD"),
        (Table::Filter, "OUTPUT"),
    ];
    for (table, chain) in places {
        let rules = vec![jump(&format!("brindle-{chain}"))];
        out.hooks.push((table, Hook { chain, place: s.place, rules }));
    }
    for chain in ["PREROUTING", "OUTPUT"] {
        if s.floating.is_some() {
            out.hooks.push((Table::Nat, Hook { chain, place: s.place, rules: vec![jump(TO_FLOATING)] }));
        }
    }
    // After kube-proxy's masquerade.
    let rules = vec![jump("brindle-POSTROUTING")];
    out.hooks.push((Table::Nat, Hook { chain: "POSTROUTING", place: Place::Last, rules }));
    // Others have had their say; what policy accepted needs no further permission.
    let m = s.marks.accept;
    let rules = vec![
        Rule::new(vec![Match::Mark { value: m, mask: m }], Action::Accept).because("accepted by policy"),
    ];
    out.hooks.push((Table::Filter, Hook { chain: "FORWARD", place: Place::Last, rules }));
}

/// Translation of floating addresses: for everybody who asks for one. The pod itself comes back under its floating
/// address, else its answers would not pass the node; whatever else it sends keeps its own.
fn floating(family: Family, leads: &BTreeMap<IpAddr, IpAddr>, out: &mut Layout) {
    let pairs =
        || leads.iter().map(|(e, i)| (IpNet::from(*e), IpNet::from(*i))).filter(|(e, _)| family.has(e));
    let to = pairs().map(|(external, own)| {
        let rule = Rule::new(vec![Match::Dst { net: external, not: false }], Action::Dnat { to: own.addr() });
        rule.because("floating address")
    });
    // Of several floating addresses of one pod it has the first.
    let mut seen = BTreeSet::new();
    let back = pairs().filter(|(_, own)| seen.insert(*own)).map(|(external, own)| {
        let both = vec![Match::Dst { net: own, not: false }, Match::Src { net: own, not: false }];
        Rule::new(both, Action::Snat { to: external.addr(), ports: None })
            .because("a pod to its floating address")
    });
    let (to, back) = (to.collect(), back.collect());
    out.put(Table::Nat, Chain::new(TO_FLOATING, to));
    out.put(Table::Nat, Chain::new(FROM_FLOATING, back));
}

fn nat(family: Family, s: &Surroundings, out: &mut Layout) {
    let mut rules = Vec::new();
    if let Some(leads) = &s.floating {
        floating(family, leads, out);
        rules.push(jump(FROM_FLOATING));
    }
    if s.pools.iter().any(|(n, masq)| *masq && family.has(n)) {
        let mut matches = vec![
            Match::SrcSet { set: names::set(family, MASQ), not: false },
            Match::DstSet { set: names::set(family, POOLS), not: true },
        ];
        if s.exclude_nodes {
            matches.push(Match::DstSet { set: names::set(family, NODES), not: true });
        }
        if let Some(dev) = &s.nat_interface {
            matches.insert(0, Match::Out { iface: Iface::Exact(dev.clone()), not: false });
        }
        let to = s.nat_address.filter(|a| family.has(&IpNet::from(*a)));
        let action = |ports| match to {
            Some(to) => Action::Snat { to, ports },
            None => Action::Masquerade { ports },
        };
        if s.nat_ports.is_some() {
            for number in [6, 17] {
                let proto = std::iter::once(Match::Proto { number, not: false });
                rules.push(Rule::new(proto.chain(matches.clone()).collect(), action(s.nat_ports)));
            }
        }
        rules.push(Rule::new(matches, action(None)).because("natOutgoing"));
    }
    if family == Family::V4 && s.ipip {
        let tunnel = Match::Out { iface: Iface::Exact("tunl0".into()), not: false };
        let rule = Rule::new(vec![tunnel, Match::SrcOfOtherDevice], Action::Masquerade { ports: None });
        rules.push(rule.because("the host through its tunnel with another address"));
    }
    out.put(Table::Nat, Chain::new("brindle-POSTROUTING", rules));
}

/// In the raw table nothing is tracked yet: answers to connections of the other direction are told by their source port.
fn failsafe(family: Family, name: &str, p: &PolicySettings, inbound: bool, raw: bool) -> Chain {
    let (own, other) = if inbound {
        (&p.failsafe_inbound, &p.failsafe_outbound)
    } else {
        (&p.failsafe_outbound, &p.failsafe_inbound)
    };
    let rule = |f: &Failsafe, answer: bool| {
        let ports = vec![Ports { first: f.port, last: f.port }];
        let mut matches = vec![Match::Proto { number: f.protocol.0, not: false }];
        if let Some(net) = f.net {
            matches.push(if inbound {
                Match::Src { net, not: false }
            } else {
                Match::Dst { net, not: false }
            });
        }
        matches.push(match answer {
            false => Match::DstPorts { ports, not: false },
            true => Match::SrcPorts { ports, not: false },
        });
        Rule::new(matches, Action::Accept)
    };
    let of = |f: &&Failsafe| f.net.is_none_or(|n| family.has(&n));
    let mut rules: Vec<Rule> = own.iter().filter(of).map(|f| rule(f, false)).collect();
    if raw {
        rules.extend(other.iter().filter(of).map(|f| rule(f, true)));
    }
    if family == Family::V6 && p.failsafe_v6() {
        rules.extend(discovery(inbound));
    }
    Chain::new(name, rules)
}

/// Neighbour discovery of the host itself. What comes in may be on its way to somebody else: only what has this host as
/// its destination, or a group no router passes on.
fn discovery(inbound: bool) -> Vec<Rule> {
    let groups = Ipv6Net::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 16);
    let to = match inbound {
        true => vec![vec![Match::Dst { net: groups.into(), not: false }], vec![Match::DstLocal]],
        false => vec![Vec::new()],
    };
    let mut rules = Vec::new();
    for kind in ND {
        let icmp = [Match::Proto { number: 58, not: false }, Match::Icmp { kind, code: None, not: false }];
        for to in &to {
            let matches = icmp.iter().chain(to).cloned().chain([Match::OnLink]).collect();
            rules.push(Rule::new(matches, Action::Accept).because("neighbour discovery"));
        }
    }
    rules
}

impl Layout {
    /// For iptables: the dispatches as trees of chains, everything by table.
    pub fn iptables(
        &self,
        family: Family,
        cache: &mut super::model::TextCache,
    ) -> BTreeMap<Table, super::table_plan::Wanted> {
        let mut out: BTreeMap<Table, super::table_plan::Wanted> =
            Table::ALL.into_iter().map(|t| (t, super::table_plan::Wanted::default())).collect();
        let mut put = |table: Table, text: Arc<super::iptables::Text>| {
            out.entry(table).or_default().chains.insert(text.name.clone(), text);
        };
        for ((table, _), chain) in &self.chains {
            put(*table, cache.get(*table, chain, |c| super::iptables::chain(family, c)));
        }
        for (table, d) in &self.dispatches {
            for chain in super::iptables::dispatch(d) {
                put(*table, Arc::new(super::iptables::chain(family, &chain)));
            }
        }
        for (table, hook) in &self.hooks {
            let text = super::iptables::hook(family, hook);
            out.entry(*table).or_default().hooks.push(super::table_plan::HookText {
                chain: hook.chain.to_owned(),
                place: hook.place,
                text,
            });
        }
        out
    }

    /// For nftables.
    pub fn nft(&self, family: Family, cache: &mut super::model::TextCache) -> super::nft_plan::Wanted {
        let mut out = super::nft_plan::Wanted::default();
        for ((table, _), chain) in &self.chains {
            let text = cache.get(*table, chain, |c| super::nft::chain(family, *table, c));
            out.chains.insert(text.name.clone(), text);
        }
        for (table, d) in &self.dispatches {
            let (map, text) = super::nft::dispatch(family, *table, d);
            out.maps.insert(map.name.clone(), map);
            out.chains.insert(text.name.clone(), Arc::new(text));
        }
        let mut at: BTreeMap<(Table, &str), Vec<&Hook>> = BTreeMap::new();
        for (table, hook) in &self.hooks {
            at.entry((*table, hook.chain)).or_default().push(hook);
        }
        for ((table, chain), hooks) in at {
            let text = super::nft::hooks(family, table, chain, &hooks);
            out.bases.insert(text.name.clone(), super::nft::base(table, chain));
            out.chains.insert(text.name.clone(), Arc::new(text));
        }
        out
    }
}
