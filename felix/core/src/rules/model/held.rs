//! What the tools refuse is set aside: what that closes, and what is told of it.

use std::{collections::BTreeMap, sync::Arc};

use super::{Aside, Family, Model, PolicyOrProfile, names, policy_chain, profile_chain, resource};
use crate::{
    policy::active::{Action, ActivePolicy, ActiveProfile, IpSetId, PolicyId, Rule as Written, Side, Why},
    rules::aside::Fault,
};

/// Policies and profiles that deny meanwhile what they are not to deny.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldBack {
    pub policies: BTreeMap<PolicyId, Arc<ActivePolicy>>,
    pub profiles: BTreeMap<String, Arc<ActiveProfile>>,
}

impl Model {
    /// Whether what a refused line writes can be set aside: it belongs to a policy or profile, or is a member of a set.
    pub fn is_of_policy(&self, fault: &Fault) -> bool {
        match fault {
            Fault::Chain(name) => self.owner(name).is_some(),
            Fault::Member(..) => true,
        }
    }

    /// From now on this chain denies, or this member is left out, until it changes. `false`: it was set aside before.
    pub fn set_aside(&mut self, fault: Fault, why: String) -> bool {
        self.aside.add(fault, why)
    }

    /// Whatever was set aside is to be written as it should be.
    pub fn try_in_full(&mut self) {
        self.aside = Aside::default();
    }

    /// What is set aside: a line each, with the resource.
    pub fn aside(&self) -> Vec<String> {
        let chains = self.aside.chains().map(|(chain, why)| match self.owner(chain) {
            Some((resource, way)) => format!("{resource}: its {way} rules deny everything: {why}"),
            None => format!("chain {chain}: denies everything: {why}"),
        });
        let members = self.aside.members().map(|((set, member), why)| {
            let who = self.owner_of_set(set).unwrap_or_else(|| format!("set {set}"));
            format!("{who}: {member} is left out of a set it asks for: {why}")
        });
        let mut out: Vec<String> = chains.chain(members).collect();
        out.extend(self.weakened().into_iter().map(|(resource, way)| {
            format!("{resource}: its {way} rules deny everything: without that member they could let through what they are to deny")
        }));
        out
    }

    /// Whether a chain denies everything, since it or a member it cannot do without was refused.
    pub(super) fn is_closed(&self, chain: &str, what: &PolicyOrProfile) -> bool {
        let rules = || match what {
            PolicyOrProfile::Policy(id, inbound) => {
                self.policies.get(id).map(|p| if *inbound { &p.inbound } else { &p.outbound })
            }
            PolicyOrProfile::Profile(name, inbound) => {
                self.profiles.get(name).map(|p| if *inbound { &p.inbound } else { &p.outbound })
            }
        };
        self.aside.chain(chain).is_some() || rules().is_some_and(|rules| self.is_weak(chain, rules))
    }

    /// Whether a set these rules ask lacks a member without which they would let through more than they should.
    fn is_weak(&self, chain: &str, rules: &[Written]) -> bool {
        let is = |set: &str, ids: &[IpSetId]| {
            ids.iter().any(|id| Family::ALL.iter().any(|f| names::set(*f, &id.0) == set))
        };
        let brought = |set: &str| {
            let kept = |f: &Family| self.kept.get(&(*f, chain.to_owned()));
            Family::ALL.iter().filter_map(kept).any(|(_, sets)| sets.contains_key(set))
        };
        self.aside.members().any(|((set, _), _)| {
            let brought = brought(set);
            let weak = |r: &Written| {
                let asks = brought || r.ip_sets().any(|id| is(set, std::slice::from_ref(id)));
                let not = |s: &Side| {
                    is(set, &s.not_sets) || is(set, &s.not_named_ports) || brought && !s.not_nets.is_empty()
                };
                match r.action {
                    Action::Log => false,
                    Action::Allow => not(&r.src) || not(&r.dst),
                    Action::Deny | Action::Pass => asks,
                }
            };
            rules.iter().any(weak)
        })
    }

    /// Resources and directions that deny everything for a member's sake.
    fn weakened(&self) -> Vec<(String, &'static str)> {
        if !self.aside.has_members() {
            return Vec::new();
        }
        let mut out = Vec::new();
        for (inbound, way) in [(true, "ingress"), (false, "egress")] {
            let weak = |chain: String, rules: &[Written]| {
                self.aside.chain(&chain).is_none() && self.is_weak(&chain, rules)
            };
            for p in self.policies.values() {
                if weak(policy_chain(&p.id, inbound), if inbound { &p.inbound } else { &p.outbound }) {
                    out.push((resource(&p.id), way));
                }
            }
            for p in self.profiles.values() {
                if weak(profile_chain(&p.name, inbound), if inbound { &p.inbound } else { &p.outbound }) {
                    out.push((format!("Profile({})", p.name), way));
                }
            }
        }
        out
    }

    /// Policies and profiles of which something is set aside, as they hold meanwhile.
    pub fn held_back(&self) -> HeldBack {
        let mut out = HeldBack::default();
        if self.aside.is_empty() {
            return out;
        }
        let deny = || vec![Written::any(Action::Deny, Why::default())];
        for p in self.policies.values() {
            let closed = |inbound| {
                self.is_closed(&policy_chain(&p.id, inbound), &PolicyOrProfile::Policy(p.id.clone(), inbound))
            };
            let (inbound, outbound) = (closed(true), closed(false));
            if inbound || outbound {
                let mut held = ActivePolicy::clone(p);
                if inbound {
                    held.inbound = deny()
                }
                if outbound {
                    held.outbound = deny()
                }
                out.policies.insert(p.id.clone(), Arc::new(held));
            }
        }
        for p in self.profiles.values() {
            let closed = |inbound| {
                self.is_closed(
                    &profile_chain(&p.name, inbound),
                    &PolicyOrProfile::Profile(p.name.clone(), inbound),
                )
            };
            let (inbound, outbound) = (closed(true), closed(false));
            if inbound || outbound {
                let mut held = ActiveProfile::clone(p);
                if inbound {
                    held.inbound = deny()
                }
                if outbound {
                    held.outbound = deny()
                }
                out.profiles.insert(p.name.clone(), Arc::new(held));
            }
        }
        out
    }

    /// The resource whose rules of one direction are this chain.
    fn owner(&self, chain: &str) -> Option<(String, &'static str)> {
        for (inbound, way) in [(true, "ingress"), (false, "egress")] {
            if let Some(id) = self.policies.keys().find(|id| policy_chain(id, inbound) == chain) {
                return Some((resource(id), way));
            }
            if let Some(name) = self.profiles.keys().find(|name| profile_chain(name, inbound) == chain) {
                return Some((format!("Profile({name})"), way));
            }
        }
        None
    }

    /// The first resource that asks a set.
    fn owner_of_set(&self, set: &str) -> Option<String> {
        let is = |id: &IpSetId| Family::ALL.iter().any(|f| names::set(*f, &id.0) == set);
        let asks = |rules: &[Written]| rules.iter().flat_map(Written::ip_sets).any(is);
        let policy = self.policies.values().find(|p| asks(&p.inbound) || asks(&p.outbound));
        let profile = || self.profiles.values().find(|p| asks(&p.inbound) || asks(&p.outbound));
        let brought = || self.kept.iter().find(|(_, (_, sets))| sets.contains_key(set));
        policy
            .map(|p| resource(&p.id))
            .or_else(|| profile().map(|p| format!("Profile({})", p.name)))
            .or_else(|| self.owner(&brought()?.0.1).map(|(resource, _)| resource))
    }
}
