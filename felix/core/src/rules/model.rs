//! What the dataplane was told, and the rules that follow from it. Chains of policies are kept between calls: one
//! changed endpoint costs its own chains, not those of all policies.

mod held;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

pub use held::HeldBack;

use super::{
    aside::Aside,
    endpoint::{Direction, Shape, policy_chain, prefix, profile_chain},
    iptables::Text,
    ir::{Chain, Dispatch, Family, Rule, Table, Way},
    layout::{self, Layout, Surroundings},
    names,
    pods::{Pods, PolicyOrProfile, Use, Used},
    policy::{self, Anonymous, Style},
    sets::{Member, SetKind, WantedSet, holdable},
};
use crate::policy::{
    active::{
        ActivePolicy, ActiveProfile, EndpointId, EndpointPolicy, Interface, IpSetDelta, IpSetId, IpSetKind,
        IpSetMember, PolicyDelta, PolicyId, PolicySettings, Rule as Written,
    },
    state::{contested, devices_of},
};

/// A rendered chain and the sets it brought.
type Kept = (Arc<Chain>, Anonymous);

/// State of the dataplane as the calculation graph sees it.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub settings: PolicySettings,
    pub policies: BTreeMap<PolicyId, Arc<ActivePolicy>>,
    pub profiles: BTreeMap<String, Arc<ActiveProfile>>,
    pub endpoints: BTreeMap<EndpointId, Arc<EndpointPolicy>>,
    /// Per family, as the kernel holds them.
    sets: BTreeMap<IpSetId, [Arc<WantedSet>; 2]>,
    in_sync: bool,
    kept: BTreeMap<(Family, String), Kept>,
    pods: Pods,
    style: Option<Style>,
    /// What the tools refuse.
    aside: Aside,
    changed: Changed,
}

/// What changed since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Rules, or which sets exist.
    pub rules: bool,
    /// Sets that are new or were sent whole.
    pub whole: BTreeSet<IpSetId>,
    /// Members of sets that stay, in order.
    pub members: Vec<IpSetDelta>,
    /// Addresses that workloads have no longer.
    pub gone: BTreeSet<IpAddr>,
    /// Addresses that workloads have got. Nothing before the whole state is known, for then all flows are judged.
    pub fresh: BTreeSet<IpAddr>,
    /// Their devices.
    pub gone_devices: BTreeSet<String>,
    /// Flows that were tracked before may be denied now, or those that were denied may be allowed. Of endpoints nobody knew
    /// that is true for flows of their own addresses alone, `fresh`, and of sets for those of `members`.
    pub judge: bool,
}

impl Changed {
    /// Whether nothing did.
    pub fn is_empty(&self) -> bool {
        !self.rules && self.whole.is_empty() && self.members.is_empty()
    }

    /// What changed later, too.
    pub fn absorb(&mut self, later: Self) {
        let Self { rules, whole, members, gone, fresh, gone_devices, judge } = later;
        self.rules |= rules;
        self.whole.extend(whole);
        self.members.extend(members);
        self.gone.extend(gone);
        self.fresh.extend(fresh);
        self.gone_devices.extend(gone_devices);
        self.judge |= judge;
    }
}

fn member(m: &IpSetMember) -> Member {
    match m {
        IpSetMember::Net(n) => Member::Net(n.trunc()),
        IpSetMember::Ip(a) => Member::Net((*a).into()),
        IpSetMember::IpPort { address, protocol, port } => {
            Member::Port { ip: *address, protocol: protocol.0, port: *port }
        }
    }
}

fn kind(k: IpSetKind) -> SetKind {
    match k {
        IpSetKind::Net | IpSetKind::Ip => SetKind::Net,
        IpSetKind::IpPort => SetKind::IpPort,
    }
}

impl Model {
    /// Whether the whole desired state is known.
    pub fn in_sync(&self) -> bool {
        self.in_sync
    }

    /// Number of sets of the calculation.
    pub fn set_count(&self) -> usize {
        self.sets.len()
    }

    /// Takes one step.
    pub fn apply(&mut self, delta: PolicyDelta) {
        match delta {
            PolicyDelta::IpSet(set) => {
                let members: Vec<Member> = set.members.iter().map(member).collect();
                let of = |family| {
                    let members = holdable(members.iter().copied(), family);
                    Arc::new(WantedSet { kind: kind(set.kind), members })
                };
                self.forget_set(&set.id);
                self.changed.whole.insert(set.id.clone());
                self.changed.judge |= self.sets.insert(set.id, Family::ALL.map(of)).is_some();
            }
            PolicyDelta::IpSetDelta(d) => {
                if let Some(sets) = self.sets.get_mut(&d.id) {
                    for (family, set) in Family::ALL.into_iter().zip(sets) {
                        let set = Arc::make_mut(set);
                        for m in holdable(d.removed.iter().map(member), family) {
                            set.members.remove(&m);
                        }
                        set.members.extend(holdable(d.added.iter().map(member), family));
                    }
                    self.forget_members(&d);
                    self.changed.members.push(d);
                }
                return;
            }
            PolicyDelta::Settings(s) => {
                self.settings = s;
                self.changed.judge = true;
            }
            PolicyDelta::Policy(p) => {
                self.forget(&policy_chain(&p.id, true), &policy_chain(&p.id, false));
                self.changed.judge |= self.policies.insert(p.id.clone(), p).is_some();
            }
            PolicyDelta::Profile(p) => {
                self.forget(&profile_chain(&p.name, true), &profile_chain(&p.name, false));
                self.changed.judge |= self.profiles.insert(p.name.clone(), p).is_some();
            }
            PolicyDelta::Endpoint(e) => {
                let (host, new) = (e.host.is_some(), Arc::clone(&e));
                let old = self.endpoints.insert(e.id.clone(), e);
                // No rule speaks of the address of a card.
                if old
                    .as_ref()
                    .is_some_and(|o| EndpointPolicy { mac: new.mac.clone(), ..(**o).clone() } == *new)
                {
                    return;
                }
                self.changed.judge |= old.is_some() || host;
                self.moved(old.as_deref().filter(|e| e.host.is_none()), (!host).then_some(&*new));
            }
            PolicyDelta::EndpointRemove(id) => {
                let old = self.endpoints.remove(&id);
                self.changed.judge |= old.as_ref().is_some_and(|e| e.host.is_some());
                let old = old.filter(|e| e.host.is_none());
                self.moved(old.as_deref(), None);
                if let Some(Interface::Name(device)) = old.map(|e| e.interface.clone()) {
                    self.changed.gone_devices.insert(device);
                }
            }
            PolicyDelta::ProfileRemove(name) => {
                self.forget(&profile_chain(&name, true), &profile_chain(&name, false));
                self.profiles.remove(&name);
            }
            PolicyDelta::PolicyRemove(id) => {
                self.forget(&policy_chain(&id, true), &policy_chain(&id, false));
                self.policies.remove(&id);
            }
            PolicyDelta::IpSetRemove(id) => {
                self.forget_set(&id);
                self.sets.remove(&id);
            }
            PolicyDelta::InSync => {
                self.in_sync = true;
                self.changed.judge = true;
            }
        }
        self.changed.rules = true;
    }

    /// Notes which addresses a workload has no longer, and which it has got.
    fn moved(&mut self, old: Option<&EndpointPolicy>, new: Option<&EndpointPolicy>) {
        let of = |e: Option<&EndpointPolicy>| -> BTreeSet<IpAddr> {
            e.iter().flat_map(|e| &e.addresses).map(IpNet::addr).collect()
        };
        let (old, new) = (of(old), of(new));
        self.changed.gone.extend(old.difference(&new));
        if self.in_sync {
            self.changed.fresh.extend(new.difference(&old));
        }
    }

    fn forget(&mut self, a: &str, b: &str) {
        for f in Family::ALL {
            self.kept.remove(&(f, a.to_owned()));
            self.kept.remove(&(f, b.to_owned()));
        }
        self.aside.forget_chain(a);
        self.aside.forget_chain(b);
    }

    /// The set is another one.
    fn forget_set(&mut self, id: &IpSetId) {
        if self.aside.has_members() {
            let names = Family::ALL.map(|f| names::set(f, &id.0));
            self.aside.forget_members(|set, _| names.iter().any(|n| n == set));
        }
    }

    fn forget_members(&mut self, d: &IpSetDelta) {
        if self.aside.has_members() {
            let names = Family::ALL.map(|f| names::set(f, &d.id.0));
            let told: BTreeSet<Member> = d.added.iter().chain(&d.removed).map(member).collect();
            self.aside.forget_members(|set, m| names.iter().any(|n| n == set) && told.contains(m));
        }
    }

    /// What changed since the last call.
    pub fn take_changed(&mut self) -> Changed {
        std::mem::take(&mut self.changed)
    }

    /// One family's part of a set: its name and members.
    pub fn set(&self, family: Family, id: &IpSetId) -> Option<(String, Arc<WantedSet>)> {
        let [v4, v6] = self.sets.get(id)?;
        let set = if family == Family::V4 { v4 } else { v6 };
        Some((names::set(family, &id.0), Arc::clone(set)))
    }

    /// One family's part of a change of members: the set's name, what is added, what is removed.
    pub fn delta(family: Family, d: &IpSetDelta) -> (String, BTreeSet<Member>, BTreeSet<Member>) {
        let of = |m: &[IpSetMember]| holdable(m.iter().map(member), family);
        (names::set(family, &d.id.0), of(&d.added), of(&d.removed))
    }

    /// A policy's or profile's chain, rendered once.
    fn shared(&mut self, family: Family, name: String, make: impl FnOnce(&mut Anonymous) -> Chain) -> Kept {
        self.kept
            .entry((family, name))
            .or_insert_with(|| {
                let mut sets = Anonymous::new();
                let chain = make(&mut sets);
                (Arc::new(chain), sets)
            })
            .clone()
    }

    /// Host endpoints for whose device another one stands, which only addresses tell: a line each.
    pub fn rivals(&self, address_of: &BTreeMap<IpAddr, String>) -> Vec<String> {
        let hosts: Vec<_> = self.endpoints.values().filter(|e| e.host.is_some()).cloned().collect();
        let (_, without) = by_device(&hosts, address_of);
        let name = |e: &EndpointPolicy| match &e.id {
            EndpointId::Host { name } | EndpointId::Workload { name, .. } => format!("HostEndpoint({name})"),
        };
        let line = |(e, device, first): &(&EndpointPolicy, String, &EndpointPolicy)| {
            let why = match first.interface {
                Interface::Name(_) => "names it",
                _ => "has an address of it and a lower name",
            };
            format!("{}: not used on {device}: {} {why}; delete one of them", name(e), name(first))
        };
        let closed = contested(self.endpoints.values(), address_of).into_iter();
        let closed =
            closed.map(|(id, why)| format!("{}: drops everything: {why}", name(&self.endpoints[&id])));
        let mut out: Vec<String> = closed.chain(without.iter().map(line)).collect();
        for e in hosts.iter().filter(|e| e.interface == Interface::WithAddress) {
            let used: BTreeSet<&String> = devices_of(e, address_of).collect();
            for address in e.addresses.iter().map(IpNet::addr) {
                let Some(device) = address_of.get(&address).filter(|d| !used.contains(d)) else { continue };
                out.push(format!(
                    "{}: not used for {address}: {}; set interfaceName to the interface that packets come by",
                    name(e),
                    match device.as_str() {
                        "lo" => "its address is on lo, which no packet from outside comes by".to_owned(),
                        other => format!("the name of its device, {other:?}, cannot stand in a rule"),
                    }
                ));
            }
        }
        out
    }

    /// What holds while the resources are not known: flows of workloads go on, new ones are denied.
    pub fn waiting(family: Family, around: &Surroundings, style: &Style) -> Layout {
        let mut out = Self::default().layout(family, around, style, &BTreeMap::new());
        for (_, d) in &mut out.dispatches {
            if d.name == layout::FROM_WL || d.name == layout::TO_WL {
                d.otherwise.insert(0, Rule::new(vec![super::ir::Match::Known], super::ir::Action::Accept));
            }
        }
        out
    }

    /// Everything one family should have. `address_of`: which device has an address (host endpoints known by
    /// address only).
    pub fn layout(
        &mut self,
        family: Family,
        around: &Surroundings,
        style: &Style,
        address_of: &BTreeMap<IpAddr, String>,
    ) -> Layout {
        if self.style.as_ref() != Some(style) {
            self.kept.clear();
            self.try_in_full();
            self.style = Some(style.clone());
        }
        // What is a pod's own address is nobody's floating address, whoever asks for it.
        let mut free = around.clone();
        if let Some(leads) = free.floating.as_mut().filter(|l| !l.is_empty()) {
            let pods = self.endpoints.values().filter(|e| e.host.is_none());
            for net in pods.flat_map(|e| &e.addresses) {
                leads.remove(&net.addr());
            }
        }
        let around = &free;
        let mut out = Layout { sets: layout::sets(family, around), ..Layout::default() };
        let shape = Shape {
            marks: around.marks,
            deny: around.deny.clone(),
            drop_invalid: around.drop_invalid,
            vxlan_port: self.settings.vxlan_port,
            allow_vxlan: self.settings.allow_vxlan_from_workloads,
            allow_ipip: self.settings.allow_ipip_from_workloads,
        };
        let endpoints: Vec<Arc<EndpointPolicy>> =
            self.endpoints.values().filter(|e| e.host.is_some()).cloned().collect();
        let spoofing: Vec<_> = self
            .endpoints
            .values()
            .filter_map(|e| match (&e.interface, &e.host) {
                (Interface::Name(dev), None) => Some(e.allowed_sources.iter().map(|n| (dev.clone(), *n))),
                _ => None,
            })
            .flatten()
            .collect();
        layout::fixed(family, around, &self.settings, &spoofing, &mut out);
        // Chains of policies that endpoint chains in this table jump to.
        let mut used = Used::default();
        self.pods.put(family, &shape, around, &self.endpoints, &mut out, &mut used);
        hosts(&shape, around, &endpoints, address_of, &mut out, &mut self.pods, &mut used);
        for u in used.all {
            let Use { table, name, what } = &*u;
            if self.is_closed(name, what) {
                let deny = Rule::new(Vec::new(), style.deny.clone()).because("refused as it was written");
                out.put_shared(*table, Arc::new(Chain::new(name, vec![deny])));
                continue;
            }
            let kept = match what {
                PolicyOrProfile::Policy(id, inbound) => {
                    let p = self.policies.get(id).cloned();
                    self.shared(family, name.clone(), |sets| {
                        let rules = p.as_ref().map(|p| if *inbound { &p.inbound } else { &p.outbound });
                        let style = style.naming(&id.tier, id.kind.short(), &id.namespace, &id.name);
                        shared_chain(family, &style, name, &id.to_string(), *inbound, rules, sets)
                    })
                }
                PolicyOrProfile::Profile(profile, inbound) => {
                    let p = self.profiles.get(profile).cloned();
                    self.shared(family, name.clone(), |sets| {
                        let rules = p.as_ref().map(|p| if *inbound { &p.inbound } else { &p.outbound });
                        let style = style.naming("", "profile", "", profile);
                        shared_chain(
                            family,
                            &style,
                            name,
                            &format!("Profile {profile}"),
                            *inbound,
                            rules,
                            sets,
                        )
                    })
                }
            };
            out.put_shared(*table, kept.0);
            out.sets.extend(kept.1);
        }
        out.own_sets = out.sets.keys().cloned().collect();
        for id in self.sets.keys() {
            if let Some((name, set)) = self.set(family, id) {
                out.sets.insert(name, set);
            }
        }
        self.aside.strip(&mut out.sets);
        out
    }
}

/// `KIND(NAMESPACE/NAME)`.
fn resource(id: &PolicyId) -> String {
    let slash = if id.namespace.is_empty() { "" } else { "/" };
    format!("{}({}{slash}{})", id.kind.as_str(), id.namespace, id.name)
}

/// A missing policy or profile denies: silence would allow.
fn shared_chain(
    family: Family,
    style: &Style,
    name: &str,
    what: &str,
    inbound: bool,
    rules: Option<&Vec<Written>>,
    sets: &mut Anonymous,
) -> Chain {
    let way = if inbound { "ingress" } else { "egress" };
    match rules {
        Some(rules) => policy::chain(family, style, name, &format!("{what} {way}"), rules, sets),
        None => Chain::new(
            name,
            vec![Rule::new(Vec::new(), style.deny.clone()).because(format!("{what} is not known"))],
        ),
    }
}

/// A host endpoint without a device of its own, the device, and whom it belongs to.
type Passed<'a> = (&'a EndpointPolicy, String, &'a EndpointPolicy);

/// Device → host endpoint; a device named explicitly beats one found by address, the lowest name wins. And those that go
/// without, each with the device and who has it.
fn by_device<'a>(
    endpoints: &'a [Arc<EndpointPolicy>],
    address_of: &BTreeMap<IpAddr, String>,
) -> (BTreeMap<String, &'a EndpointPolicy>, Vec<Passed<'a>>) {
    let mut taken: BTreeMap<String, &EndpointPolicy> = BTreeMap::new();
    let mut without = Vec::new();
    for e in endpoints {
        if let Interface::Name(dev) = &e.interface {
            taken.entry(dev.clone()).or_insert(e);
        }
    }
    for e in endpoints.iter().filter(|e| e.interface == Interface::WithAddress) {
        let devices: BTreeSet<&String> = devices_of(e, address_of).collect();
        for dev in devices {
            match taken.get(dev) {
                None => drop(taken.insert(dev.clone(), e)),
                Some(first) => without.push((&**e, dev.clone(), *first)),
            }
        }
    }
    (taken, without)
}

fn hosts(
    shape: &Shape,
    around: &Surroundings,
    endpoints: &[Arc<EndpointPolicy>],
    address_of: &BTreeMap<IpAddr, String>,
    out: &mut Layout,
    pods: &mut Pods,
    used: &mut Used,
) {
    let contested = contested(endpoints.iter(), address_of);
    let close = |e: &Arc<EndpointPolicy>| match contested.get(&e.id) {
        Some(why) if e.closed.is_none() => {
            Arc::new(EndpointPolicy { closed: Some(why.clone()), ..EndpointPolicy::clone(e) })
        }
        _ => Arc::clone(e),
    };
    let endpoints: Vec<_> = endpoints.iter().map(close).collect();
    let (by_device, _) = by_device(&endpoints, address_of);
    let any = endpoints.iter().find(|e| e.interface == Interface::Any);
    type Parts = (Vec<(String, String)>, Vec<Rule>);
    let mut dispatches: BTreeMap<(Table, &'static str, Way), Parts> = BTreeMap::new();
    for (table, name, way) in [
        (Table::Raw, layout::FROM_HEP, Way::In),
        (Table::Raw, layout::TO_HEP, Way::Out),
        (Table::Mangle, layout::FROM_HEP, Way::In),
        (Table::Mangle, layout::TO_HEP, Way::Out),
        (Table::Filter, layout::FROM_HEP, Way::In),
        (Table::Filter, layout::TO_HEP, Way::Out),
        (Table::Filter, layout::FROM_HEP_FORWARD, Way::In),
        (Table::Filter, layout::TO_HEP_FORWARD, Way::Out),
    ] {
        dispatches.insert((table, name, way), Default::default());
    }
    // Whether devices without policy before DNAT of their own must be kept from that of the one for all others.
    let any_early = any.is_some_and(|e: &Arc<EndpointPolicy>| {
        e.closed.is_none() && e.host.as_ref().is_some_and(|h| !h.pre_dnat.is_empty())
    });
    let named = by_device.iter().map(|(d, e)| (Some(d.clone()), *e));
    for (device, e) in named.chain(any.map(|e| (None, &**e))) {
        let Some(host) = &e.host else { continue };
        // Longer than the name of a device can be.
        let label = device.clone().unwrap_or_else(|| "any-other-device".into());
        let mut put = |table, name, way, chain: Chain| {
            let Some((entries, otherwise)) = dispatches.get_mut(&(table, name, way)) else { return };
            match &device {
                Some(d) => entries.push((d.clone(), chain.name.clone())),
                None => {
                    // Never the traffic of local workloads, but for what they send to the host when
                    // defaultEndpointToHostAction leaves that to the host's own policy: nothing else of theirs comes
                    // here.
                    let to_host = table == Table::Filter && name == layout::FROM_HEP;
                    for p in around.prefixes.iter().filter(|_| !to_host) {
                        let iface = super::ir::Iface::Prefix(p.clone());
                        let m = match way {
                            Way::In => super::ir::Match::In { iface, not: false },
                            Way::Out => super::ir::Match::Out { iface, not: false },
                        };
                        otherwise.push(Rule::new(vec![m], super::ir::Action::Return));
                    }
                    let iface = super::ir::Iface::Exact("lo".into());
                    let m = match way {
                        Way::In => super::ir::Match::In { iface, not: false },
                        Way::Out => super::ir::Match::Out { iface, not: false },
                    };
                    otherwise.push(Rule::new(vec![m], super::ir::Action::Return));
                    otherwise.push(Rule::new(Vec::new(), super::ir::Action::Goto(chain.name.clone())));
                }
            }
            out.put(table, chain);
        };
        let (f, t) = (Direction::From, Direction::To);
        put(Table::Filter, layout::FROM_HEP, Way::In, shape.host(&label, e, f));
        put(Table::Filter, layout::TO_HEP, Way::Out, shape.host(&label, e, t));
        put(Table::Mangle, layout::TO_HEP, Way::Out, shape.host(&label, e, t));
        put(Table::Filter, layout::FROM_HEP_FORWARD, Way::In, shape.host_forward(&label, e, f));
        put(Table::Filter, layout::TO_HEP_FORWARD, Way::Out, shape.host_forward(&label, e, t));
        if e.closed.is_none() {
            pods.note(Table::Filter, &e.tiers, &e.profiles, true, used);
            pods.note(Table::Filter, &e.tiers, &e.profiles, false, used);
            pods.note(Table::Mangle, &e.tiers, &e.profiles, false, used);
            pods.note(Table::Filter, &host.forward, &[], true, used);
            pods.note(Table::Filter, &host.forward, &[], false, used);
        }
        if e.closed.is_some() {
            // Nothing is allowed early here, not even by whoever stands for all other interfaces: what has not been
            // accepted before meets the closed chains of the filter table.
            if device.is_some() && any_early {
                put(Table::Mangle, layout::FROM_HEP, Way::In, shape.host_early(&label, &[], f, false));
            }
            continue;
        }
        if !host.untracked.is_empty() {
            put(Table::Raw, layout::FROM_HEP, Way::In, shape.host_early(&label, &host.untracked, f, true));
            put(Table::Raw, layout::TO_HEP, Way::Out, shape.host_early(&label, &host.untracked, t, true));
            pods.note(Table::Raw, &host.untracked, &[], true, used);
            pods.note(Table::Raw, &host.untracked, &[], false, used);
        }
        if !host.pre_dnat.is_empty() || device.is_some() && any_early {
            put(Table::Mangle, layout::FROM_HEP, Way::In, shape.host_early(&label, &host.pre_dnat, f, false));
            pods.note(Table::Mangle, &host.pre_dnat, &[], true, used);
        }
    }
    for ((table, name, way), (mut entries, otherwise)) in dispatches {
        entries.sort();
        out.dispatches
            .push((table, Dispatch { name: name.into(), way, stems: Vec::new(), entries, otherwise }));
    }
    debug_assert!(prefix::FROM_HOST.len() < names::MAX_CHAIN, "a device's name fits behind it");
}

/// Texts of chains that did not change.
#[derive(Debug, Default)]
pub struct TextCache(BTreeMap<(Table, String), (Arc<Chain>, Arc<Text>)>);

impl TextCache {
    /// The text of a chain; made anew unless it is the same chain as last time.
    pub fn get(&mut self, table: Table, chain: &Arc<Chain>, make: impl FnOnce(&Chain) -> Text) -> Arc<Text> {
        let key = (table, chain.name.clone());
        if let Some((old, text)) = self.0.get(&key)
            && (Arc::ptr_eq(old, chain) || old == chain)
        {
            return Arc::clone(text);
        }
        let text = Arc::new(make(chain));
        self.0.insert(key, (Arc::clone(chain), Arc::clone(&text)));
        text
    }

    /// Drops what is not in use.
    pub fn keep(&mut self, layout: &Layout) {
        // All of the layout's are here.
        if self.0.len() == layout.chains.len() {
            return;
        }
        self.0.retain(|key, _| layout.chains.contains_key(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, address: &str) -> PolicyDelta {
        PolicyDelta::Endpoint(Arc::new(EndpointPolicy {
            id: EndpointId::Workload { namespace: "red".into(), name: name.into() },
            interface: Interface::Name(format!("cali{name}")),
            addresses: vec![address.parse().unwrap()],
            allowed_sources: Vec::new(),
            mac: None,
            closed: None,
            tiers: Vec::new(),
            host: None,
            profiles: Vec::new(),
        }))
    }

    #[test]
    fn addresses_that_workloads_give_up_and_get_are_told() {
        let mut model = Model::default();
        let mut tell = |deltas: Vec<PolicyDelta>| {
            deltas.into_iter().for_each(|d| model.apply(d));
            let c = model.take_changed();
            let text =
                |all: BTreeSet<IpAddr>| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            (text(c.gone), text(c.fresh), c.judge)
        };
        let (one, two, three) = ("10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32");
        let said = |gone: &str, fresh: &str, judge| (gone.to_owned(), fresh.to_owned(), judge);
        // All flows are judged once everything is known.
        assert_eq!(tell(vec![pod("b", two), PolicyDelta::InSync]), said("", "", true));
        assert_eq!(tell(vec![pod("a", one)]), said("", "10.0.0.1", false));
        assert_eq!(tell(vec![pod("b", three)]), said("10.0.0.2", "10.0.0.3", true));
        let gone = EndpointId::Workload { namespace: "red".into(), name: "a".into() };
        let both = vec![PolicyDelta::EndpointRemove(gone), pod("c", one)];
        assert_eq!(tell(both), said("10.0.0.1", "10.0.0.1", false));
    }
}
