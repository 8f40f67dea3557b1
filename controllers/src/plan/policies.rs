//! Policies of tier `default` under the names of Calico before 3.32, which stored them as `default.NAME`. Each gets its
//! name; where both are there with the same content the old one goes, and where they differ somebody has to choose.
//! Only to be switched on once nothing before 3.32 reads the datastore: it would not find the new names.

use std::collections::BTreeMap;

use brindle_config_core::{Key, store::Entry};
use serde_json::Value;

use super::{Action, Plan};
use crate::facts::{Facts, POLICY_KINDS};

const PREFIX: &str = "default.";

/// The name a policy should have, if it has an old one.
fn new_key(e: &Entry) -> Option<Key> {
    let tier = e.value.pointer("/spec/tier").and_then(Value::as_str).unwrap_or_default();
    let name = e.key.name.strip_prefix(PREFIX).filter(|n| !n.is_empty())?;
    matches!(tier, "" | "default").then(|| Key { name: name.to_owned(), ..e.key.clone() })
}

/// The policy without its tier when that is the default one: both spellings mean the same.
fn meaning(e: &Entry) -> Value {
    let mut spec = e.value.get("spec").cloned().unwrap_or_default();
    if let Some(members) = spec.as_object_mut()
        && members.get("tier").is_some_and(|t| t == "default" || t == "")
    {
        members.remove("tier");
    }
    spec
}

pub(super) fn plan(facts: &Facts, plan: &mut Plan) {
    let all: BTreeMap<&Key, &Entry> =
        POLICY_KINDS.into_iter().flat_map(|k| facts.of(k)).map(|e| (&e.key, e)).collect();
    for (key, e) in &all {
        let Some(to) = new_key(e) else { continue };
        let (from, revision) = ((*key).clone(), e.revision);
        match all.get(&to) {
            None => plan.add(Action::Rename { from, to, revision }, "the name of Calico before 3.32"),
            Some(there) if meaning(there) == meaning(e) => {
                plan.add(Action::DropCopy { key: from, revision }, format!("{} says the same", to.name));
            }
            Some(_) => plan.problems.push(format!(
                "{key} and {} differ, and are one policy for Calico from 3.32 on; delete one of the two",
                to.name
            )),
        }
    }
}

/// The value to store under the new name.
pub(crate) fn renamed(value: &Value, to: &Key) -> Value {
    let mut value = value.clone();
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert("name".into(), to.name.clone().into());
        for of_the_old in ["resourceVersion", "uid", "creationTimestamp"] {
            meta.remove(of_the_old);
        }
    }
    value
}
