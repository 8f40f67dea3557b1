//! Claims on blocks that stopped halfway: an affinity without its block, a block without its affinity, `pending` and
//! `pendingDeletion` that nobody goes on with. Nodes that exist only; what others left is given up (`nodes`). The repair
//! is the allocator's own, the one an agent does for itself when it starts.

use std::collections::{BTreeMap, BTreeSet};

use brindle_config_core::{Kind, store::Revision};
use brindle_ipam::audit::{Finding, audit};

use super::{Action, Controller, Graces, Plan, Suspicions};
use crate::facts::Facts;

pub(super) fn plan(facts: &Facts, graces: &Graces, suspicions: &mut Suspicions<'_>, plan: &mut Plan) {
    let revisions: BTreeMap<&str, Revision> =
        facts.of(Kind::BlockAffinity).map(|e| (e.key.name.as_str(), e.revision)).collect();
    let mut repaired = BTreeSet::new();
    for finding in audit(&facts.entries) {
        let (owner, block) = match &finding {
            Finding::AffinityWithoutBlock { host, block }
            | Finding::BlockWithoutAffinity { host, block }
            | Finding::HalfDone { host, block, .. } => (host.clone(), *block),
            _ => continue,
        };
        if !facts.nodes.contains(&owner) {
            continue;
        }
        // A claim that is being worked on is written again and again: then it is another case each time.
        let name = brindle_config_core::names::affinity_name(&owner, &block);
        let revision = revisions.get(name.as_str()).map_or(0, |r| r.0);
        let what = format!("{finding} (revision {revision})");
        if suspicions.ripe(Controller::Affinity, what, graces.repair, plan) && repaired.insert(owner.clone())
        {
            plan.add(Action::Repair { owner }, finding.to_string());
        }
    }
}
