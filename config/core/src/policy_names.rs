//! Policies of tier `default` under the names of Calico before 3.32, which stored them as `default.NAME`: what is to be done
//! so that each has its name. Where both are there with the same content the old one goes; where they differ somebody has
//! to choose. Only for datastores that nothing before 3.32 reads any more: it would not find the new names.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    Key, Kind,
    store::{Entry, Revision},
};

/// What stands before the name there.
pub const PREFIX: &str = "default.";

/// The kinds whose names these are.
pub const KINDS: [Kind; 4] = [
    Kind::GlobalNetworkPolicy,
    Kind::NetworkPolicy,
    Kind::StagedGlobalNetworkPolicy,
    Kind::StagedNetworkPolicy,
];

/// One thing to do, by what was seen of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Store it under the new name, then delete the old one.
    Rename { from: Key, to: Key, revision: Revision },
    /// Delete it: it is there under its new name as well, and says the same.
    DropCopy { key: Key, to: Key, revision: Revision },
}

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

/// What to do, and what somebody has to decide. Entries of other kinds are not looked at.
pub fn plan<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> (Vec<Step>, Vec<String>) {
    let of_these = entries.into_iter().filter(|e| KINDS.contains(&e.key.kind));
    let all: BTreeMap<&Key, &Entry> = of_these.map(|e| (&e.key, e)).collect();
    let (mut steps, mut problems) = (Vec::new(), Vec::new());
    for (key, e) in &all {
        let Some(to) = new_key(e) else { continue };
        let (from, revision) = ((*key).clone(), e.revision);
        match all.get(&to) {
            None => steps.push(Step::Rename { from, to, revision }),
            Some(there) if meaning(there) == meaning(e) => {
                steps.push(Step::DropCopy { key: from, to, revision });
            }
            Some(_) => problems.push(format!(
                "{key} and {} differ, and are one policy for Calico from 3.32 on; delete one of the two",
                to.name
            )),
        }
    }
    (steps, problems)
}

/// The value to store under the new name.
pub fn renamed(value: &Value, to: &Key) -> Value {
    let mut value = value.clone();
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert("name".into(), to.name.clone().into());
        for of_the_old in ["resourceVersion", "uid", "creationTimestamp"] {
            meta.remove(of_the_old);
        }
    }
    value
}
