//! Roles held against the calls that were made: what is missing from a role, and what it grants that nobody asked for.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    rbac::{Call, Rule},
    server::{Recorded, Traffic},
};

/// One thing a rule grants, or one kind of call: verb, group, resource with its sub-resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    pub verb: String,
    pub group: String,
    pub resource: String,
}

impl Right {
    pub fn new(verb: &str, group: &str, resource: &str) -> Self {
        Self { verb: verb.into(), group: group.into(), resource: resource.into() }
    }

    /// As `kubectl auth can-i` names it: `list ippools.crd.projectcalico.org`.
    pub fn text(&self) -> String {
        let Self { verb, group, resource } = self;
        if group.is_empty() {
            return format!("{verb} {resource}");
        }
        match resource.split_once('/') {
            Some((plural, sub)) => format!("{verb} {plural}.{group}/{sub}"),
            None => format!("{verb} {resource}.{group}"),
        }
    }
}

/// The calls of one user on resources, as rights.
pub fn used(calls: &BTreeMap<Recorded, Traffic>, user: &str) -> BTreeSet<Right> {
    calls
        .keys()
        .filter(|c| c.user == user && !c.resource.starts_with('/'))
        .map(|c| Right::new(&c.verb, &c.group, &c.resource))
        .collect()
}

/// Calls of the user that the rules do not grant. Rules for single names count as grants.
pub fn missing(rules: &[Rule], calls: &BTreeMap<Recorded, Traffic>, user: &str) -> BTreeSet<Right> {
    let granted = |r: &Right| {
        rules.iter().any(|rule| {
            let call = Call {
                verb: r.verb.clone(),
                group: r.group.clone(),
                resource: r.resource.clone(),
                name: rule.names.first().cloned().unwrap_or_default(),
                ..Call::default()
            };
            rule.grants(&call)
        })
    };
    used(calls, user).into_iter().filter(|r| !granted(r)).collect()
}

/// What the rules grant: one right for each verb, group and resource they name.
pub fn granted(rules: &[Rule]) -> BTreeSet<Right> {
    let mut out = BTreeSet::new();
    for rule in rules {
        for resource in &rule.resources {
            for group in &rule.groups {
                out.extend(rule.verbs.iter().map(|verb| Right::new(verb, group, resource)));
            }
        }
    }
    out
}

/// Rights that the rules grant and none of the calls used. Wildcards count as unused unless literally asked for: a role
/// for an agent has none.
pub fn idle(rules: &[Rule], calls: &BTreeMap<Recorded, Traffic>, user: &str) -> BTreeSet<Right> {
    granted(rules).difference(&used(calls, user)).cloned().collect()
}
