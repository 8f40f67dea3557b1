//! Policies under the names of Calico before 3.32 ([`policy_names`]), as things to do.

use brindle_config_core::policy_names::{self, Step};

use super::{Action, Plan};
use crate::facts::Facts;

pub(super) fn plan(facts: &Facts, plan: &mut Plan) {
    let (steps, problems) = policy_names::plan(&facts.entries);
    for step in steps {
        match step {
            Step::Rename { from, to, revision } => {
                plan.add(Action::Rename { from, to, revision }, "the name of Calico before 3.32");
            }
            Step::DropCopy { key, to, revision } => {
                plan.add(Action::DropCopy { key, revision }, format!("{} says the same", to.name));
            }
        }
    }
    plan.problems.extend(problems);
}
