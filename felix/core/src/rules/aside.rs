//! What the tools refuse of one policy is set aside, so that it does not hold back all others: its chain denies, its member
//! of a set is left out. Validation keeps away what is known to be refused; this is for what nobody has thought of.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    ir::Table,
    names, nft,
    sets::{Member, WantedSets},
};

/// What a refused line writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A rule of this chain.
    Chain(String),
    /// This member of this set.
    Member(String, Member),
}

/// Reads a refused line, or the beginning of one. `None`: it writes something else. Lines of nft that add members are not told
/// apart: each has many, and nft takes whatever a member can be.
pub fn fault(line: &str) -> Option<Fault> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["-A" | "-I", chain, ..] => Some(Fault::Chain((*chain).to_owned())),
        ["add", "rule", _, nft::TABLE, chain, ..] => {
            let (table, chain) = chain.split_once('-')?;
            Table::parse(table).map(|_| Fault::Chain(chain.to_owned()))
        }
        ["add", set, member, ..] => {
            let member = Member::parse(member)?;
            Some(Fault::Member(names::lasting(set).to_owned(), member))
        }
        _ => None,
    }
}

/// What is set aside, and what the tool said of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Aside {
    chains: BTreeMap<String, String>,
    members: BTreeMap<(String, Member), String>,
}

impl Aside {
    /// `false`: it is already.
    pub(super) fn add(&mut self, fault: Fault, why: String) -> bool {
        match fault {
            Fault::Chain(name) => self.chains.insert(name, why).is_none(),
            Fault::Member(set, member) => self.members.insert((set, member), why).is_none(),
        }
    }

    pub(super) fn chain(&self, name: &str) -> Option<&str> {
        self.chains.get(name).map(String::as_str)
    }

    pub(super) fn chains(&self) -> impl Iterator<Item = (&String, &String)> {
        self.chains.iter()
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (&(String, Member), &String)> {
        self.members.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.members.is_empty()
    }

    pub(super) fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    /// The chain changed: it is tried again.
    pub(super) fn forget_chain(&mut self, name: &str) {
        self.chains.remove(name);
    }

    /// The members `gone` tells of changed.
    pub(super) fn forget_members(&mut self, gone: impl Fn(&str, &Member) -> bool) {
        self.members.retain(|(set, member), _| !gone(set, member));
    }

    /// Takes out what the tools refuse.
    pub(super) fn strip(&self, sets: &mut WantedSets) {
        for (set, member) in self.members.keys() {
            if let Some(set) = sets.get_mut(set).filter(|s| s.members.contains(member)) {
                Arc::make_mut(set).members.remove(member);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::active::{
            self, ActivePolicy, EndpointId, EndpointPolicy, EndpointTier, Interface, IpSet, IpSetDelta,
            IpSetId, IpSetKind, IpSetMember, PolicyDelta, PolicyId, PolicyKind, TierAction, Why,
        },
        rules::{
            endpoint::policy_chain,
            ir::{Action, Family},
            layout::Surroundings,
            model::{HeldBack, Model},
            policy::Style,
        },
    };

    /// A pod with a policy that asks a set of two members.
    fn model() -> (Model, PolicyDelta, PolicyId) {
        let id = PolicyId {
            tier: "default".into(),
            kind: PolicyKind::NetworkPolicy,
            namespace: "red".into(),
            name: "p".into(),
        };
        let mut rule = active::Rule::any(active::Action::Allow, Why::default());
        rule.src.sets = vec![IpSetId("s:a".into())];
        let policy = ActivePolicy { id: id.clone(), inbound: vec![rule], outbound: vec![] };
        let policy = PolicyDelta::Policy(Arc::new(policy));
        let members = ["10.0.0.1/32", "10.0.0.2/32"].map(|m| IpSetMember::Net(m.parse().unwrap())).into();
        let set = IpSet { id: IpSetId("s:a".into()), kind: IpSetKind::Net, members };
        let tier = EndpointTier {
            name: "default".into(),
            default_action: TierAction::Deny,
            ingress: vec![id.clone()],
            egress: Vec::new(),
        };
        let endpoint = EndpointPolicy {
            id: EndpointId::Workload { namespace: "red".into(), name: "a".into() },
            interface: Interface::Name("cali1".into()),
            addresses: vec!["10.0.0.9/32".parse().unwrap()],
            allowed_sources: Vec::new(),
            mac: None,
            closed: None,
            tiers: vec![tier],
            host: None,
            profiles: Vec::new(),
        };
        let mut model = Model::default();
        let endpoint = PolicyDelta::Endpoint(Arc::new(endpoint));
        [PolicyDelta::IpSet(set), policy.clone(), endpoint].into_iter().for_each(|d| model.apply(d));
        (model, policy, id)
    }

    #[test]
    fn a_chain_denies_until_its_policy_changes_or_all_is_tried_again() {
        let (mut model, policy, id) = model();
        let name = policy_chain(&id, true);
        let denies = |model: &mut Model| {
            let layout =
                model.layout(Family::V4, &Surroundings::default(), &Style::iptables(), &BTreeMap::new());
            let chain = &layout.chains[&(Table::Filter, name.clone())];
            matches!(chain.rules.as_slice(), [only] if only.action == Action::Drop && only.matches.is_empty())
        };
        assert!(!denies(&mut model));
        for again in [
            |m: &mut Model, p: &PolicyDelta| m.apply(p.clone()),
            |m: &mut Model, _: &PolicyDelta| m.try_in_full(),
        ] {
            let fault = Fault::Chain(name.clone());
            assert!(model.is_of_policy(&fault) && model.set_aside(fault.clone(), "why".into()));
            assert!(denies(&mut model) && !model.set_aside(fault, "why".into()));
            assert_eq!(model.aside(), ["NetworkPolicy(red/p): its ingress rules deny everything: why"]);
            again(&mut model, &policy);
            assert!(!denies(&mut model) && model.aside().is_empty());
        }
        assert!(!model.is_of_policy(&Fault::Chain("brindle-FORWARD".into())), "that is everybody's");
    }

    #[test]
    fn a_member_is_left_out_until_it_changes() {
        let (mut model, ..) = model();
        let set = names::set(Family::V4, "s:a");
        let members = |model: &mut Model| {
            let layout =
                model.layout(Family::V4, &Surroundings::default(), &Style::iptables(), &BTreeMap::new());
            layout.sets[&set].members.len()
        };
        assert_eq!(members(&mut model), 2);
        let bad = Member::parse("10.0.0.1").unwrap();
        assert!(model.set_aside(Fault::Member(set.clone(), bad), "why".into()));
        assert_eq!(members(&mut model), 1);
        assert_eq!(model.aside(), ["NetworkPolicy(red/p): 10.0.0.1 is left out of a set it asks for: why"]);
        assert_eq!(model.held_back(), HeldBack::default(), "who is not allowed is denied");
        let change = |m: &str| {
            let (added, removed) = (vec![IpSetMember::Net(m.parse().unwrap())], Vec::new());
            PolicyDelta::IpSetDelta(IpSetDelta { id: IpSetId("s:a".into()), added, removed })
        };
        model.apply(change("10.0.0.3/32"));
        assert_eq!(members(&mut model), 2, "another one is no reason");
        model.apply(change("10.0.0.1/32"));
        assert!(members(&mut model) == 3 && model.aside().is_empty());
    }

    /// A rule that denies members of a set, or allows all others, would let through one that the set lacks.
    #[test]
    fn rules_that_cannot_do_without_a_member_deny_meanwhile() {
        let set = names::set(Family::V4, "s:a");
        let bad = || Fault::Member(set.clone(), Member::parse("10.0.0.1").unwrap());
        for (action, not) in
            [(active::Action::Deny, false), (active::Action::Pass, false), (active::Action::Allow, true)]
        {
            let (mut model, _, id) = model();
            let mut rule = active::Rule::any(action, Why::default());
            let sets = vec![IpSetId("s:a".into())];
            if not {
                rule.src.not_sets = sets
            } else {
                rule.src.sets = sets
            }
            let all = active::Rule::any(active::Action::Allow, Why::default());
            let policy =
                ActivePolicy { id: id.clone(), inbound: vec![rule, all.clone()], outbound: vec![all] };
            model.apply(PolicyDelta::Policy(Arc::new(policy)));
            let chain = |model: &mut Model, inbound| {
                let layout =
                    model.layout(Family::V4, &Surroundings::default(), &Style::iptables(), &BTreeMap::new());
                layout.chains.get(&(Table::Filter, policy_chain(&id, inbound))).map(|c| c.rules.len())
            };
            let before = chain(&mut model, true);
            assert!(before.is_some_and(|n| n > 1), "{before:?}");
            assert!(model.set_aside(bad(), "why".into()));
            assert_eq!(chain(&mut model, true), Some(1), "{action:?}");
            let said = model.aside();
            assert!(
                said.len() == 2 && said[1].starts_with("NetworkPolicy(red/p): its ingress rules deny"),
                "{said:?}"
            );
            let held = model.held_back();
            let held = &held.policies[&id];
            assert!(held.inbound.iter().all(|r| r.action == active::Action::Deny) && held.inbound.len() == 1);
            assert_eq!(held.outbound[0].action, active::Action::Allow);
            model.try_in_full();
            assert_eq!((chain(&mut model, true), model.held_back()), (before, HeldBack::default()));
        }
    }

    #[test]
    fn refused_lines_are_read() {
        let chain = |name: &str| Some(Fault::Chain(name.into()));
        let member = |text: &str| Some(Fault::Member("brindle4-a".into(), Member::parse(text).unwrap()));
        for (line, wanted) in [
            (
                "-A brindle-pi-_abc -m comment --comment \"bri:0\" -p tcp ! -p udp -g brindle-allow",
                chain("brindle-pi-_abc"),
            ),
            (
                "add rule ip brindle filter-brindle-po-x log prefix \"$\" comment \"bri:0\"",
                chain("brindle-po-x"),
            ),
            ("add brindle4-a 10.0.0.1,1:8", member("10.0.0.1,1:8")),
            ("add brindle4-a-t 10.0.0.0/8 -exist", member("10.0.0.0/8")),
            ("add rule ip others filter-x drop", None),
            ("add element ip brindle brindle4-a { 10.0.0.1 }", None),
            ("create brindle4-a hash:net family inet maxelem 4", None),
            ("destroy brindle4-a", None),
            ("COMMIT", None),
            ("", None),
        ] {
            assert_eq!(fault(line), wanted, "{line}");
        }
    }
}
