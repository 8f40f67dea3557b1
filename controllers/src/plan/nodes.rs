//! What nodes left that are gone: their Node is not in the store, their name is in records of addresses. Their blocks
//! are given up (addresses in use stay until the collector has them), configuration under their name goes. Endpoints
//! come first: while one is left, the node may only have lost its Node resource, and nothing but a warning happens. In a
//! store of our own the endpoints go after the grace period of addresses, for nobody else would delete them there.
//!
//! A BGPPeer with `node: NAME` stays: somebody wrote it by hand, perhaps for a node that comes back.

use std::collections::BTreeSet;

use brindle_config_core::{
    Kind,
    bgp::BgpPeerSpec,
    ipam::BlockAffinitySpec,
    store::{Entry, decode},
};

use super::{Action, Controller, Plan, Rules, Suspicions};
use crate::facts::Facts;

/// Nodes that records of addresses name and that do not exist, with whether they own blocks.
fn gone(facts: &Facts) -> (BTreeSet<String>, BTreeSet<String>) {
    let missing = |n: &&str| !n.is_empty() && !facts.nodes.contains(*n);
    let affinities = facts.of(Kind::BlockAffinity).filter_map(|e| decode::<BlockAffinitySpec>(e).ok());
    let affinities = affinities.map(|a| a.resource.spec).filter(|a| a.affinity_type == "host");
    let mut owners: BTreeSet<String> = affinities.map(|a| a.node).filter(|n| missing(&n.as_str())).collect();
    owners.extend(facts.blocks.iter().filter_map(|b| b.host()).filter(missing).map(str::to_owned));
    let mut all = owners.clone();
    let used = facts.blocks.allocations().filter_map(|(_, a)| a.attribute.secondary.get("node").cloned());
    all.extend(used.filter(|n| missing(&n.as_str())));
    (all, owners)
}

/// The node of Kubernetes a Node resource says it is.
fn kubernetes_name(e: &Entry) -> Option<&str> {
    let all = e.value.pointer("/spec/orchRefs")?.as_array()?;
    all.iter().find(|r| r["orchestrator"] == "k8s")?["nodeName"].as_str()
}

/// Nodes that Kubernetes has no more, where it is not the datastore. A cluster without any node is one that was not read
/// right.
fn taken_out(facts: &Facts, rules: &Rules, suspicions: &mut Suspicions<'_>, plan: &mut Plan) {
    let Some(there) = facts.kubernetes.as_ref().filter(|k| !k.is_empty()) else { return };
    for e in facts.of(Kind::Node) {
        let Some(name) = kubernetes_name(e).filter(|n| !there.contains(*n)) else { continue };
        let what = format!("{}, node {name} of Kubernetes, which is gone", e.key);
        if suspicions.ripe(Controller::Node, what, rules.graces.node, plan) {
            let action = Action::DropNode { key: e.key.clone(), revision: e.revision };
            plan.add(action, format!("Kubernetes has no node {name} any more"));
        }
    }
}

pub(super) fn plan(facts: &Facts, rules: &Rules, suspicions: &mut Suspicions<'_>, plan: &mut Plan) {
    let graces = &rules.graces;
    taken_out(facts, rules, suspicions, plan);
    let (all, owners) = gone(facts);
    for node in all {
        let why = format!("node {node} is gone");
        if !suspicions.ripe(Controller::Node, why.clone(), graces.node, plan) {
            continue;
        }
        let endpoints = facts.by_node.get(&node).map(Vec::as_slice).unwrap_or_default();
        if !endpoints.is_empty() {
            plan.problems.push(format!(
                "node {node} has no Node resource, but {} endpoints: what it left stays until they are gone",
                endpoints.len(),
            ));
            if !rules.drop_endpoints {
                continue;
            }
            for key in endpoints {
                let what = format!("{key} of node {node}, which is gone");
                let entry = facts.of(Kind::WorkloadEndpoint).find(|e| e.key == *key);
                if suspicions.ripe(Controller::Node, what, graces.leak, plan)
                    && let Some(e) = entry
                {
                    let (key, revision) = (key.clone(), e.revision);
                    plan.add(Action::DropEndpoint { key, revision, node: node.clone() }, why.clone());
                }
            }
            continue;
        }
        // Before the blocks: they are what shows that the node ever was.
        for kind in [Kind::BgpConfiguration, Kind::FelixConfiguration] {
            for e in facts.of(kind).filter(|e| e.key.name.strip_prefix("node.") == Some(&node)) {
                plan.add(Action::DropConfiguration { key: e.key.clone(), revision: e.revision }, why.clone());
            }
        }
        for e in facts.of(Kind::BgpPeer) {
            if decode::<BgpPeerSpec>(e).is_ok_and(|p| p.resource.spec.node == node) {
                plan.problems
                    .push(format!("{}: names node {node}, which is gone; delete it if it stays away", e.key));
            }
        }
        if owners.contains(&node) {
            plan.add(Action::GiveUp { node }, why);
        }
    }
}
