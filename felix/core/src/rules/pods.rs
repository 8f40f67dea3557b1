//! The chains of workloads and what they jump to, kept between layouts: one changed endpoint costs its own chains, not
//! those of all.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    endpoint::{Direction, MULTICAST, ND, Shape, policy_chain, profile_chain},
    ir::{Action, Chain, Dispatch, Family, Match, Rule, Table, Way},
    layout::{self, Layout, Surroundings},
};
use crate::policy::active::{EndpointId, EndpointPolicy, EndpointTier, Interface, PolicyId};

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

/// A workload's chains in one family.
#[derive(Clone, Debug)]
struct Pod {
    of: Arc<EndpointPolicy>,
    from: Arc<Chain>,
    to: Arc<Chain>,
    uses: Arc<[Arc<Use>]>,
}

/// What is kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Pods {
    shape: Option<Shape>,
    kept: BTreeMap<Family, BTreeMap<EndpointId, Pod>>,
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

    fn uses(
        &mut self,
        table: Table,
        tiers: &[EndpointTier],
        profiles: &[String],
        inbound: bool,
    ) -> Vec<Arc<Use>> {
        let policies = tiers.iter().flat_map(|t| if inbound { &t.ingress } else { &t.egress });
        let policies = policies.map(|id| PolicyOrProfile::Policy(id.clone(), inbound));
        let profiles = profiles.iter().map(|p| PolicyOrProfile::Profile(p.clone(), inbound));
        policies.chain(profiles).map(|what| self.names.of(table, what)).collect()
    }

    fn render(&mut self, family: Family, shape: &Shape, dev: &str, e: &Arc<EndpointPolicy>) -> Pod {
        let mut uses = Vec::new();
        if e.closed.is_none() {
            for inbound in [false, true] {
                uses.extend(self.uses(Table::Filter, &e.tiers, &e.profiles, inbound));
            }
        }
        Pod {
            of: Arc::clone(e),
            from: Arc::new(shape.pod(family, dev, e, Direction::From)),
            to: Arc::new(shape.pod(family, dev, e, Direction::To)),
            uses: uses.into(),
        }
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
            self.shape = Some(shape.clone());
        }
        let mut kept = self.kept.remove(&family).unwrap_or_default();
        let (mut from, mut to, mut unnamed) = (Vec::new(), Vec::new(), Vec::new());
        let mut new = false;
        let mut all = 0;
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
        }
        if new || kept.len() > all {
            kept.retain(|id, p| endpoints.get(id).is_some_and(|e| Arc::ptr_eq(e, &p.of)));
            self.names.0.retain(|_, u| Arc::strong_count(u) > 1);
        }
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
        for kind in MULTICAST.into_iter().chain(ND) {
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
