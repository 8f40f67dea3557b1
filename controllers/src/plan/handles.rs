//! Records of handles that hold nothing (Calico leaves them for ever). A record is written before the address it
//! counts, so one that holds nothing may only be early: it must have stood unchanged for the grace period.

use std::collections::BTreeMap;

use brindle_config_core::{Kind, names::handle_name};
use brindle_ipam::usage::handles_without_addresses;

use super::{Action, Controller, Graces, Plan, Suspicions};
use crate::facts::Facts;

pub(super) fn plan(facts: &Facts, graces: &Graces, suspicions: &mut Suspicions<'_>, plan: &mut Plan) {
    // A block that cannot be read could hold anything.
    if !facts.blocks.unreadable.is_empty() {
        return;
    }
    let revisions: BTreeMap<&str, u64> =
        facts.of(Kind::IpamHandle).map(|e| (e.key.name.as_str(), e.revision.0)).collect();
    for handle in handles_without_addresses(&facts.entries, &facts.blocks) {
        let revision = revisions.get(handle_name(&handle).as_str()).copied().unwrap_or_default();
        let what = format!("handle {handle} holds nothing (revision {revision})");
        if suspicions.ripe(Controller::Handle, what, graces.leak, plan) {
            plan.add(Action::DropHandle { handle }, "no block has an address of it");
        }
    }
}
