//! The chains of workloads and what they jump to, kept between layouts: one changed endpoint costs its own chains, not
//! those of all.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    endpoint::{Direction, Shape, has_chain, list_chain, policies, policy_chain, profile_chain},
    ipvs,
    ir::{Action, Chain, Dispatch, Family, Match, Rule, Table, Way},
    layout::{self, Layout, Surroundings},
};
use crate::policy::active::{
    EndpointId, EndpointPolicy, EndpointTier, FROM_WORKLOADS, Interface, PolicyId, TierAction,
};

/// A shared chain that chains of endpoints jump to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PolicyOrProfile {
    Policy(PolicyId, bool),
    Profile(String, bool),
}

/// A shared chain in a table, by name.
#[derive(Debug)]
pub(super) struct Use {
    pub(super) table: Table,
    pub(super) name: String,
    pub(super) what: PolicyOrProfile,
}

/// Shared chains in use, each once.
#[derive(Debug, Default)]
pub(super) struct Used {
    seen: HashSet<*const Use>,
    pub(super) all: Vec<Arc<Use>>,
}

// The addresses are only compared, and `all` keeps them taken.
impl Used {
    fn add(&mut self, uses: &[Arc<Use>]) {
        for u in uses {
            if self.seen.insert(Arc::as_ptr(u)) {
                self.all.push(Arc::clone(u));
            }
        }
    }
}

/// Every [`Use`] once, so that the same chain is the same pointer.
#[derive(Clone, Debug, Default)]
struct Names(BTreeMap<(Table, PolicyOrProfile), Arc<Use>>);

impl Names {
    fn of(&mut self, table: Table, what: PolicyOrProfile) -> Arc<Use> {
        let key = (table, what);
        if let Some(known) = self.0.get(&key) {
            return Arc::clone(known);
        }
        let name = match &key.1 {
            PolicyOrProfile::Policy(id, inbound) => policy_chain(id, *inbound),
            PolicyOrProfile::Profile(name, inbound) => profile_chain(name, *inbound),
        };
        let new = Arc::new(Use { table, name, what: key.1.clone() });
        self.0.insert(key, Arc::clone(&new));
        new
    }
}

/// A tier's policies in one direction, as a chain that all workloads with the same list share.
#[derive(Debug)]
struct List {
    tier: String,
    default_action: TierAction,
    inbound: bool,
    policies: Vec<PolicyId>,
    chain: Arc<Chain>,
    uses: Vec<Arc<Use>>,
}

impl List {
    fn is(&self, tier: &EndpointTier, inbound: bool) -> bool {
        self.inbound == inbound
            && self.tier == tier.name
            && self.default_action == tier.default_action
            && self.policies == policies(tier, inbound)
    }
}

/// Every [`List`] once, by a digest of what it is made of.
#[derive(Clone, Debug, Default)]
struct Lists(HashMap<u64, Vec<Arc<List>>>);

impl Lists {
    fn of(&mut self, shape: &Shape, tier: &EndpointTier, inbound: bool, names: &mut Names) -> Arc<List> {
        let mut digest = DefaultHasher::new();
        (inbound, &tier.name, policies(tier, inbound)).hash(&mut digest);
        let alike = self.0.entry(digest.finish()).or_default();
        if let Some(known) = alike.iter().find(|l| l.is(tier, inbound)) {
            return Arc::clone(known);
        }
        let all = policies(tier, inbound);
        let uses = all.iter().map(|id| PolicyOrProfile::Policy(id.clone(), inbound));
        let new = Arc::new(List {
            tier: tier.name.clone(),
            default_action: tier.default_action,
            inbound,
            policies: all.to_vec(),
            chain: Arc::new(shape.list(&list_chain(tier, inbound), tier, inbound)),
            uses: uses.map(|what| names.of(Table::Filter, what)).collect(),
        });
        alike.push(Arc::clone(&new));
        new
    }

    /// Drops those nobody has.
    fn keep(&mut self) {
        for alike in self.0.values_mut() {
            alike.retain(|l| Arc::strong_count(l) > 1);
        }
        self.0.retain(|_, alike| !alike.is_empty());
    }
}

/// A workload's chains in one family.
#[derive(Clone, Debug)]
struct Pod {
    of: Arc<EndpointPolicy>,
    from: Arc<Chain>,
    to: Arc<Chain>,
    lists: Arc<[Arc<List>]>,
    /// What stands in these chains themselves.
    uses: Arc<[Arc<Use>]>,
}

/// What is kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Pods {
    shape: Option<Shape>,
    kept: BTreeMap<Family, BTreeMap<EndpointId, Pod>>,
    lists: Lists,
    names: Names,
}

impl Pods {
    /// Notes the shared chains that tiers and profiles lead to.
    pub(super) fn note(
        &mut self,
        table: Table,
        tiers: &[EndpointTier],
        profiles: &[String],
        inbound: bool,
        used: &mut Used,
    ) {
        used.add(&self.uses(table, tiers, profiles, inbound));
    }

    fn uses<'t>(
        &mut self,
        table: Table,
        tiers: impl IntoIterator<Item = &'t EndpointTier>,
        profiles: &[String],
        inbound: bool,
    ) -> Vec<Arc<Use>> {
        let policies = tiers.into_iter().flat_map(|t| policies(t, inbound));
        let policies = policies.map(|id| PolicyOrProfile::Policy(id.clone(), inbound));
        let profiles = profiles.iter().map(|p| PolicyOrProfile::Profile(p.clone(), inbound));
        policies.chain(profiles).map(|what| self.names.of(table, what)).collect()
    }

    fn render(&mut self, family: Family, shape: &Shape, dev: &str, e: &Arc<EndpointPolicy>) -> Pod {
        let (mut uses, mut lists) = (Vec::new(), Vec::new());
        let mut chain = |direction: Direction| {
            let inbound = direction.inbound();
            let mut own = vec![None; e.tiers.len()];
            if e.closed.is_none() {
                for (tier, own) in e.tiers.iter().zip(&mut own).filter(|(t, _)| has_chain(t, inbound)) {
                    *own = Some(self.lists.of(shape, tier, inbound, &mut self.names));
                }
                let rest = e.tiers.iter().filter(|t| !has_chain(t, inbound));
                uses.extend(self.uses(Table::Filter, rest, &e.profiles, inbound));
            }
            let names: Vec<Option<&str>> =
                own.iter().map(|l| l.as_ref().map(|l: &Arc<List>| l.chain.name.as_str())).collect();
            let chain = Arc::new(shape.pod(family, dev, e, &names, direction));
            lists.extend(own.into_iter().flatten());
            chain
        };
        let (from, to) = (chain(Direction::From), chain(Direction::To));
        Pod { of: Arc::clone(e), from, to, lists: lists.into(), uses: uses.into() }
    }

    /// Puts the chains of all workloads and the dispatch to them into a layout.
    pub(super) fn put(
        &mut self,
        family: Family,
        shape: &Shape,
        around: &Surroundings,
        endpoints: &BTreeMap<EndpointId, Arc<EndpointPolicy>>,
        out: &mut Layout,
        used: &mut Used,
    ) {
        if self.shape.as_ref() != Some(shape) {
            self.kept.clear();
            self.lists.0.clear();
            self.shape = Some(shape.clone());
        }
        let mut kept = self.kept.remove(&family).unwrap_or_default();
        let (mut from, mut to, mut unnamed) = (Vec::new(), Vec::new(), Vec::new());
        let mut new = false;
        let mut all = 0;
        // By address: none of them goes before all have been looked at.
        let mut seen = HashSet::new();
        for (id, e) in endpoints.iter().filter(|(_, e)| e.host.is_none()) {
            let Interface::Name(dev) = &e.interface else { continue };
            if !speaks(e, family) {
                continue;
            }
            let pod = match kept.get(id).filter(|p| Arc::ptr_eq(&p.of, e)) {
                Some(pod) => pod,
                None => {
                    new = true;
                    kept.insert(id.clone(), self.render(family, shape, dev, e));
                    let Some(pod) = kept.get(id) else { continue };
                    pod
                }
            };
            all += 1;
            if around.prefixes.iter().any(|p| dev.starts_with(p.as_str())) {
                from.push((dev.clone(), pod.from.name.clone()));
                to.push((dev.clone(), pod.to.name.clone()));
            } else {
                unnamed.push(Arc::clone(e));
            }
            out.put_shared(Table::Filter, Arc::clone(&pod.from));
            out.put_shared(Table::Filter, Arc::clone(&pod.to));
            used.add(&pod.uses);
            for list in &*pod.lists {
                if seen.insert(Arc::as_ptr(list)) {
                    out.put_shared(Table::Filter, Arc::clone(&list.chain));
                    used.add(&list.uses);
                }
            }
        }
        if new || kept.len() > all {
            kept.retain(|id, p| endpoints.get(id).is_some_and(|e| Arc::ptr_eq(e, &p.of)));
            self.lists.keep();
            self.names.0.retain(|_, u| Arc::strong_count(u) > 1);
        }
        ipvs::from(around, by_source(family, endpoints, &kept), out);
        let by_address = by_address(family, &unnamed, &kept);
        self.kept.insert(family, kept);
        let ways = [(layout::FROM_WL, Way::In, from), (layout::TO_WL, Way::Out, to)];
        for ((name, way, mut entries), mut otherwise) in ways.into_iter().zip(by_address) {
            // Two endpoints that name one device: the later one would hide; both get what both allow is not sayable, so
            // the first keeps it and the device's owner is named by the calculation.
            entries.sort();
            entries.dedup_by(|b, a| a.0 == b.0);
            let why = match otherwise.is_empty() {
                true => "no endpoint is known for this device",
                false => "no endpoint is known for this device or address",
            };
            otherwise.push(Rule::new(Vec::new(), around.deny.clone()).because(why));
            let stems = around.prefixes.clone();
            out.dispatches
                .push((Table::Filter, Dispatch { name: name.into(), way, stems, entries, otherwise }));
        }
    }
}

/// Each address of a workload and the chain of what it sends. Of two with one address the first counts, as elsewhere.
fn by_source(
    family: Family,
    endpoints: &BTreeMap<EndpointId, Arc<EndpointPolicy>>,
    chains: &BTreeMap<EndpointId, Pod>,
) -> BTreeMap<IpNet, String> {
    let mut out = BTreeMap::new();
    for (id, e) in endpoints {
        let Some(pod) = chains.get(id).filter(|_| e.host.is_none()) else { continue };
        for net in e.addresses.iter().filter(|n| family.has(n)).map(IpNet::trunc) {
            out.entry(net).or_insert_with(|| pod.from.name.clone());
        }
    }
    out
}

/// Rules for workloads whose devices others made and named: what came through a workload's device, or leaves through one,
/// is told apart by its address, for many may share it (a bridge). From and to.
fn by_address(
    family: Family,
    unnamed: &[Arc<EndpointPolicy>],
    chains: &BTreeMap<EndpointId, Pod>,
) -> [Vec<Rule>; 2] {
    let (mut from, mut to) = (Vec::new(), Vec::new());
    if unnamed.is_empty() {
        return [from, to];
    }
    if family == Family::V6 {
        // On a bridge workloads find each other without the host, from addresses that are nobody's alone.
        for kind in FROM_WORKLOADS {
            let icmp =
                vec![Match::Proto { number: 58, not: false }, Match::Icmp { kind, code: None, not: false }];
            from.push(Rule::new(icmp, Action::Accept));
        }
    }
    // The choice is a walk through all of them: for first packets only.
    for rules in [&mut from, &mut to] {
        rules.push(Rule::new(vec![Match::Known], Action::Accept));
    }
    let mut seen = HashSet::new();
    for e in unnamed {
        let Some(pod) = chains.get(&e.id) else { continue };
        for net in e.addresses.iter().filter(|n| family.has(n)).map(IpNet::trunc) {
            // Of two with one address the first counts, as elsewhere.
            if seen.insert(net) {
                let goto = |chain: &Chain| Action::Goto(chain.name.clone());
                from.push(Rule::new(vec![Match::Src { net, not: false }], goto(&pod.from)));
                to.push(Rule::new(vec![Match::Dst { net, not: false }], goto(&pod.to)));
            }
        }
    }
    [from, to]
}

/// Whether a workload needs rules of a family. One that has addresses, and none of this family, may not send or receive
/// in it: its device is then one no rule knows.
fn speaks(e: &EndpointPolicy, family: Family) -> bool {
    let mut nets = e.addresses.iter().chain(&e.allowed_sources).peekable();
    nets.peek().is_none() || nets.any(|n| family.has(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::active::PolicyKind,
        rules::{ir::Action, marks::Marks},
    };

    fn pod(name: &str, policies: &[&str]) -> (EndpointId, Arc<EndpointPolicy>) {
        let id = |p: &&str| PolicyId {
            tier: "default".into(),
            kind: PolicyKind::NetworkPolicy,
            namespace: "red".into(),
            name: (*p).to_owned(),
        };
        let tier = EndpointTier {
            name: "default".into(),
            default_action: TierAction::Deny,
            ingress: policies.iter().map(id).collect(),
            egress: Vec::new(),
        };
        let e = EndpointPolicy {
            id: EndpointId::Workload { namespace: "red".into(), name: name.into() },
            interface: Interface::Name(format!("cali{name}")),
            addresses: Vec::new(),
            allowed_sources: Vec::new(),
            mac: None,
            closed: None,
            tiers: vec![tier],
            host: None,
            profiles: vec!["kns.red".into()],
        };
        (e.id.clone(), Arc::new(e))
    }

    /// Names of all chains but the policies', and of the policies and profiles in use.
    fn put(pods: &mut Pods, all: &[(EndpointId, Arc<EndpointPolicy>)]) -> (Vec<String>, Vec<String>) {
        let (mut out, mut used) = (Layout::default(), Used::default());
        let shape = Shape {
            marks: Marks::default(),
            deny: Action::Drop,
            drop_invalid: true,
            vxlan_port: 4789,
            allow_vxlan: false,
            allow_ipip: false,
        };
        let endpoints = all.iter().cloned().collect();
        pods.put(Family::V4, &shape, &Surroundings::default(), &endpoints, &mut out, &mut used);
        let mut uses: Vec<String> = used.all.iter().map(|u| u.name.clone()).collect();
        uses.sort();
        (out.chains.into_keys().map(|(_, name)| name).collect(), uses)
    }

    #[test]
    fn those_with_the_same_list_share_a_chain_and_the_last_one_takes_it_along() {
        let mut pods = Pods::default();
        let (a, b) = (pod("a", &["x", "y", "z"]), pod("b", &["x", "y", "z"]));
        let other = pod("c", &["y", "x", "z"]);
        let short = pod("d", &["x", "y"]);
        let lists = |chains: &[String]| chains.iter().filter(|c| c.starts_with("brindle-gi-")).count();
        let all = [a.clone(), b.clone(), other, short.clone()];
        let (chains, uses) = put(&mut pods, &all);
        assert_eq!((chains.len(), lists(&chains)), (2 * all.len() + 2, 2), "{chains:?}");
        assert_eq!(uses.len(), 5, "three policies and a profile both ways: {uses:?}");
        // Who comes and goes changes nothing for others.
        let before = put(&mut pods, &[a.clone(), b.clone()]);
        let one = put(&mut pods, std::slice::from_ref(&a));
        assert_eq!((lists(&before.0), lists(&one.0)), (1, 1));
        assert!(one.0.iter().all(|c| before.0.contains(c)));
        assert_eq!(one.1.len(), 5);
        let (chains, uses) = put(&mut pods, &[short]);
        assert_eq!((lists(&chains), uses.len()), (0, 4), "{uses:?}");
        assert!(pods.lists.0.is_empty());
        assert_eq!(pods.names.0.len(), 4);
        assert_eq!(put(&mut pods, &[b]), put(&mut Pods::default(), &[pod("b", &["x", "y", "z"])]));
    }
}
