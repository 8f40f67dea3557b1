//! Cases written by hand: each category of Kubernetes' own NetworkPolicy tests (test/e2e/network/netpol), of Cyclonus'
//! generator, of network-policy-api's conformance profile, and what Calico adds. What is expected comes from the oracle;
//! where a case has a point a person can state, `says` states it too, so that oracle and person check each other.

mod calico;
mod cluster;
mod hosts;
mod kubernetes;

use serde_json::Value;

use super::{
    probe::Probe,
    suite::Case,
    world::{World, with},
};

/// All of them, in the order of the table.
pub fn all() -> Vec<Case> {
    let mut all = kubernetes::all();
    all.extend(cluster::all());
    all.extend(calico::all());
    all.extend(hosts::all());
    all
}

/// One state: these resources beside the base.
fn one<const N: usize>(group: &'static str, name: &str, more: [Value; N]) -> Case {
    steps(group, name, vec![with(more)])
}

/// Several states.
fn steps(group: &'static str, name: &str, steps: Vec<World>) -> Case {
    Case { group, name: name.into(), steps, said: Vec::new() }
}

impl Case {
    fn says(mut self, from: &'static str, to: &'static str, probe: Probe, allowed: bool) -> Self {
        self.said.push((from, to, probe, allowed));
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let all = super::all();
        let names: BTreeSet<_> = all.iter().map(|c| (c.group, &c.name)).collect();
        assert_eq!(names.len(), all.len());
    }
}
