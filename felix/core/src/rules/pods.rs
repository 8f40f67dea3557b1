//! The chains of workloads and what they jump to, kept between layouts: one changed endpoint costs its own chains, not
//! those of all.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use super::{
    endpoint::{Direction, Shape, policy_chain, profile_chain},
    ir::{Chain, Dispatch, Family, Rule, Table, Way},
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
        let (mut from, mut to) = (Vec::new(), Vec::new());
        let mut new = false;
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
            from.push((dev.clone(), pod.from.name.clone()));
            to.push((dev.clone(), pod.to.name.clone()));
            out.put_shared(Table::Filter, Arc::clone(&pod.from));
            out.put_shared(Table::Filter, Arc::clone(&pod.to));
            used.add(&pod.uses);
        }
        if new || kept.len() > from.len() {
            kept.retain(|id, p| endpoints.get(id).is_some_and(|e| Arc::ptr_eq(e, &p.of)));
            self.names.0.retain(|_, u| Arc::strong_count(u) > 1);
        }
        self.kept.insert(family, kept);
        for (name, way, mut entries) in [(layout::FROM_WL, Way::In, from), (layout::TO_WL, Way::Out, to)] {
            // Two endpoints that name one device: the later one would hide; both get what both allow is not sayable, so
            // the first keeps it and the device's owner is named by the calculation.
            entries.sort();
            entries.dedup_by(|b, a| a.0 == b.0);
            let otherwise = vec![
                Rule::new(Vec::new(), around.deny.clone()).because("no endpoint is known for this device"),
            ];
            let stems = around.prefixes.clone();
            out.dispatches
                .push((Table::Filter, Dispatch { name: name.into(), way, stems, entries, otherwise }));
        }
    }
}

/// Whether a workload needs rules of a family. One that has addresses, and none of this family, may not send or receive
/// in it: its device is then one no rule knows.
fn speaks(e: &EndpointPolicy, family: Family) -> bool {
    let mut nets = e.addresses.iter().chain(&e.allowed_sources).peekable();
    nets.peek().is_none() || nets.any(|n| family.has(n))
}
