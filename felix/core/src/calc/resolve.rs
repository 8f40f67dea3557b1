//! One local endpoint: its policies in order, tier by tier, and whether its resources contradict each other.

use std::{cmp::Ordering, collections::BTreeMap};

use brindle_config_core::{Key, Kind};

use super::{
    compile::Compiled,
    graph::{Graph, Name, Place},
    inputs::{Endpoint, Input},
};
use crate::policy::active::{
    EndpointId, EndpointPolicy, EndpointTier, HostPolicy, Interface, PolicyId, TierAction,
};

/// `interfaceName` of a host endpoint for all of them.
const ALL_INTERFACES: &str = "*";

/// Numbers in order, then those without one.
fn by_order(a: Option<f64>, b: Option<f64>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        (a, b) => b.is_some().cmp(&a.is_some()),
    }
}

/// Order of policies within a tier: `order`, then name, namespace, kind.
fn in_tier(a: &Compiled, b: &Compiled) -> Ordering {
    fn rest(p: &Compiled) -> (&str, &str, &str) {
        (&p.id.name, &p.id.namespace, p.id.kind.as_str())
    }
    by_order(a.order, b.order).then_with(|| rest(a).cmp(&rest(b)))
}

impl Graph {
    /// What a policy of this tier falls back to; a tier that does not exist comes last and denies.
    fn tier(&self, name: &str) -> (bool, Option<f64>, TierAction) {
        match self.tiers.get(name) {
            Some((order, action)) => (true, *order, *action),
            None => (false, None, TierAction::Deny),
        }
    }

    /// The policies that match an endpoint and are in force, in order.
    fn matching(&self, key: &Key) -> Vec<&Compiled> {
        let of = |k: &Place| match self.inputs.get(&k.0) {
            Some(Input::Policy(p)) => Some(&**p),
            _ => None,
        };
        let Some(place) = self.place(key) else { return Vec::new() };
        let with_tier = |p: &'_ Compiled| {
            let (known, order, _) = self.tier(&p.id.tier);
            (known, order)
        };
        let all = self.local.selectors(&place).filter_map(of);
        let mut all: Vec<((bool, Option<f64>), &Compiled)> = all.map(|p| (with_tier(p), p)).collect();
        all.sort_by(|((known_a, order_a), a), ((known_b, order_b), b)| {
            known_b
                .cmp(known_a)
                .then_with(|| by_order(*order_a, *order_b))
                .then_with(|| a.id.tier.cmp(&b.id.tier))
                .then_with(|| in_tier(a, b))
        });
        all.into_iter().map(|(_, p)| p).collect()
    }

    /// Staged policies that match an endpoint, in order.
    pub(crate) fn staged_of(&self, key: &Key) -> Vec<PolicyId> {
        let staged = self.matching(key).into_iter().filter(|p| p.id.kind.is_staged());
        staged.map(|p| p.id.clone()).collect()
    }

    fn tiers_of(
        &self,
        policies: &[&Compiled],
        wanted: impl Fn(&Compiled) -> bool,
        pass: bool,
    ) -> Vec<EndpointTier> {
        let mut out: Vec<EndpointTier> = Vec::new();
        for p in policies.iter().filter(|p| wanted(p) && (p.ingress || p.egress)) {
            if out.last().is_none_or(|t| t.name != p.id.tier) {
                let (_, _, action) = self.tier(&p.id.tier);
                out.push(EndpointTier {
                    name: p.id.tier.clone(),
                    default_action: if pass { TierAction::Pass } else { action },
                    ingress: Vec::new(),
                    egress: Vec::new(),
                });
            }
            if let Some(tier) = out.last_mut() {
                tier.ingress.extend(p.ingress.then(|| p.id.clone()));
                tier.egress.extend(p.egress.then(|| p.id.clone()));
            }
        }
        out
    }

    /// The whole policy of a local endpoint; `None` when it is not there or another one stands for its interface.
    pub(crate) fn resolve(&self, key: &Name) -> Option<EndpointPolicy> {
        let Some(Input::Endpoint(e)) = self.inputs.get(key).filter(|_| self.is_local(key)) else {
            return None;
        };
        let all = self.matching(key);
        let active: Vec<&Compiled> = all.into_iter().filter(|p| !p.id.kind.is_staged()).collect();
        let tracked = |p: &Compiled| !p.untracked && !p.pre_dnat;
        let host = matches!(e.id, EndpointId::Host { .. });
        let contested = if host { self.rivals(key, e)? } else { self.sharing(key, e) };
        let closed = e.broken.clone().or(contested);
        let interface = match e.interface.as_str() {
            "" => Interface::WithAddress,
            ALL_INTERFACES if host => Interface::Any,
            name => Interface::Name(name.to_owned()),
        };
        Some(EndpointPolicy {
            id: e.id.clone(),
            interface,
            addresses: e.labelled.nets.clone(),
            allowed_sources: if self.settings.source_spoofing {
                e.allowed_sources.clone()
            } else {
                Vec::new()
            },
            mac: e.mac.clone(),
            closed,
            tiers: self.tiers_of(&active, tracked, false),
            host: host.then(|| HostPolicy {
                // The dataplane has no untracked policy for all interfaces at once, as Calico has none.
                untracked: self.tiers_of(&active, |p| p.untracked && e.interface != ALL_INTERFACES, true),
                pre_dnat: self.tiers_of(&active, |p| p.pre_dnat, true),
                forward: self.tiers_of(&active, |p| tracked(p) && p.forward, false),
            }),
            profiles: e.labelled.parents.to_vec(),
        })
    }

    /// For a host endpoint: `None` = another one goes first; `Some(Some(reason))` = it goes first but is contested.
    fn rivals(&self, key: &Name, e: &Endpoint) -> Option<Option<String>> {
        let mut contested = Vec::new();
        for other in self.local_keys(Kind::HostEndpoint).filter(|k| *k != key) {
            let Some(Input::Endpoint(o)) = self.inputs.get(other) else { continue };
            let same_address = || o.labelled.nets.iter().any(|n| e.labelled.nets.contains(n));
            let both_without = e.interface.is_empty() && o.interface.is_empty();
            let same = if both_without { same_address() } else { e.interface == o.interface };
            if same && o.node == e.node {
                if other.name < key.name {
                    return None;
                }
                contested.push(other.name.as_str());
            }
        }
        Some((!contested.is_empty()).then(|| {
            format!("HostEndpoint {} stands for the same interface; delete one of them", contested.join(", "))
        }))
    }

    /// For a workload: whether another one of the same node has its device or one of its addresses.
    fn sharing(&self, key: &Name, e: &Endpoint) -> Option<String> {
        let advice = "delete the endpoint of the pod that is gone";
        if let Some(other) = self.same_device(key, e) {
            return Some(format!("{other} has the same interface {}; {advice}", e.interface));
        }
        e.labelled.nets.iter().find_map(|net| {
            let other = self.owners.get(net)?.iter().find(|k| {
                *k != key && matches!(self.inputs.get(*k), Some(Input::Endpoint(o)) if o.node == e.node)
            })?;
            Some(format!("{other} has the same address {net}; {advice}"))
        })
    }

    /// Another workload of the node whose device this one claims.
    fn same_device(&self, key: &Name, e: &Endpoint) -> Option<&Name> {
        if e.interface.is_empty() {
            return None;
        }
        self.devices.get(&(e.node.clone(), e.interface.clone()))?.iter().find(|k| *k != key)
    }

    /// What is wrong, by resource: each line names the field or the other resource, and what follows from it.
    pub fn problems(&self) -> BTreeMap<Key, Vec<String>> {
        let mut out = self.bad.clone();
        let mut add = |key: &Key, line: String| out.entry(key.clone()).or_default().push(line);
        for key in &self.policies {
            let Some(Input::Policy(p)) = self.inputs.get(key) else { continue };
            if !self.tiers.contains_key(&p.id.tier) {
                let tier = &p.id.tier;
                let what = match p.id.kind.is_staged() {
                    true => "once enforced it would be applied last, and then deny",
                    false => "applied last, and then denies",
                };
                add(key, format!("spec.tier: tier {tier} does not exist: {what}"));
            }
        }
        for net in &self.shared {
            let owners = self.owners.get(net).into_iter().flatten();
            for (key, other) in owners.clone().flat_map(|k| owners.clone().map(move |o| (k, o))) {
                if key != other {
                    add(key, format!("spec.ipNetworks: {other} has the same address {net}"));
                }
            }
        }
        for (device, users) in self.devices.iter().filter(|(_, users)| users.len() > 1) {
            for (key, other) in users.iter().flat_map(|k| users.iter().map(move |o| (k, o))) {
                if key != other {
                    let interface = &device.1;
                    let line = format!(
                        "spec.interfaceName: {other} has the same interface {interface}: both drop everything"
                    );
                    add(key, line);
                }
            }
        }
        for key in self.local_keys(Kind::HostEndpoint) {
            let Some(Input::Endpoint(e)) = self.inputs.get(key) else { continue };
            let untracked = self.matching(key).into_iter().filter(|p| p.untracked && !p.id.kind.is_staged());
            for p in untracked.filter(|_| e.interface == ALL_INTERFACES) {
                let line = format!(
                    "spec.doNotTrack: not enforced on {key}: there is no untracked policy for interfaceName \"*\""
                );
                add(&policy_key(&p.id), line);
            }
            match self.rivals(key, e) {
                None => add(key, "not used: a HostEndpoint of a lower name has the same interface".into()),
                Some(Some(reason)) => add(key, format!("drops everything: {reason}")),
                Some(None) => {}
            }
        }
        out
    }
}

/// The resource of a policy that may be untracked.
fn policy_key(id: &PolicyId) -> Key {
    Key::new(Kind::GlobalNetworkPolicy, None, &id.name)
}
