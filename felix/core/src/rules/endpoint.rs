//! The chains of one endpoint: what every packet to or from it meets, in order.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::{
    ir::{Action, Chain, Family, Match, Ports, Rule},
    marks::Marks,
    names,
};
use crate::policy::active::{self, EndpointPolicy, EndpointTier, PolicyId, TierAction};

/// Prefixes of chain names.
pub mod prefix {
    /// To and from a workload.
    pub const TO_POD: &str = "brindle-tw-";
    pub const FROM_POD: &str = "brindle-fw-";
    /// To and from a host endpoint: its own traffic (filter), untracked (raw), before DNAT (mangle).
    pub const TO_HOST: &str = "brindle-th-";
    pub const FROM_HOST: &str = "brindle-fh-";
    /// Forwarded through it.
    pub const TO_HOST_FORWARD: &str = "brindle-thf-";
    pub const FROM_HOST_FORWARD: &str = "brindle-fhf-";
    /// Policies and profiles, inbound and outbound.
    pub const POLICY_IN: &str = "brindle-pi-";
    pub const POLICY_OUT: &str = "brindle-po-";
    pub const PROFILE_IN: &str = "brindle-ri-";
    pub const PROFILE_OUT: &str = "brindle-ro-";
    /// Long lists of policies, inbound and outbound.
    pub const LIST_IN: &str = "brindle-gi-";
    pub const LIST_OUT: &str = "brindle-go-";
}

/// Failsafe chains; those of the raw table also take answers.
pub const FAILSAFE_IN: &str = "brindle-failsafe-in";
pub const FAILSAFE_OUT: &str = "brindle-failsafe-out";

/// So many policies of a tier stand side by side before a packet one of them accepted returns. Fewer rules for each
/// endpoint: iptables-legacy writes its whole table anew for every pod. More than one mark a packet does not mind.
const TOGETHER: usize = 8;

/// So many policies of a tier in one direction have a chain of their own, which every workload with the same list jumps to.
/// For fewer, two more rules for a packet and for each workload are not worth it.
const LIST: usize = 3;

/// Seen from the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Ingress: packets to the endpoint.
    To,
    /// Egress: packets from it.
    From,
}

impl Direction {
    /// Whether a workload's inbound policy judges these packets.
    pub(super) fn inbound(self) -> bool {
        self == Self::To
    }
}

/// Name of a policy's chain. A host endpoint's inbound rules judge packets that come *from* its network, so the
/// policy's direction is a matter of the endpoint, not of the chain's name.
pub fn policy_chain(id: &PolicyId, inbound: bool) -> String {
    // The tier is part of the identity.
    let id = format!("{}/{}", id.tier, id.chain_suffix());
    names::chain(if inbound { prefix::POLICY_IN } else { prefix::POLICY_OUT }, &id)
}

/// Name of a profile's chain.
pub fn profile_chain(name: &str, inbound: bool) -> String {
    names::chain(if inbound { prefix::PROFILE_IN } else { prefix::PROFILE_OUT }, name)
}

/// The policies of a tier in one direction.
pub(super) fn policies(tier: &EndpointTier, inbound: bool) -> &[PolicyId] {
    if inbound { &tier.ingress } else { &tier.egress }
}

/// Whether a tier's policies in one direction have a chain of their own.
pub(super) fn has_chain(tier: &EndpointTier, inbound: bool) -> bool {
    policies(tier, inbound).len() >= LIST
}

/// Its name: the same for the same policies in the same order. A list that changes is another chain, so that whoever has the
/// old one still keeps it.
pub(super) fn list_chain(tier: &EndpointTier, inbound: bool) -> String {
    let mut id = format!("{}/{:?}", tier.name, tier.default_action);
    for p in policies(tier, inbound) {
        // Writing to a String cannot fail. Names of resources have no line breaks.
        let _ = write!(id, "\n{}/{}", p.tier, p.chain_suffix());
    }
    names::chain(if inbound { prefix::LIST_IN } else { prefix::LIST_OUT }, &id)
}

/// Settings that shape endpoint chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub marks: Marks,
    pub deny: Action,
    pub drop_invalid: bool,
    pub vxlan_port: u16,
    pub allow_vxlan: bool,
    pub allow_ipip: bool,
}

impl Shape {
    fn clear(&self, mask: u32) -> Rule {
        Rule::new(Vec::new(), Action::SetMark { value: 0, mask })
    }

    fn marked(&self, bit: u32) -> Match {
        Match::Mark { value: bit, mask: bit }
    }

    fn unmarked(&self, bit: u32) -> Match {
        Match::Mark { value: 0, mask: bit }
    }

    fn deny(&self, matches: Vec<Match>, why: impl Into<String>) -> Rule {
        Rule::new(matches, self.deny.clone()).because(why)
    }

    fn known(&self) -> Vec<Rule> {
        let mut out = vec![Rule::new(vec![Match::Known], Action::Accept)];
        if self.drop_invalid {
            out.push(self.deny(vec![Match::Invalid], "fits no flow"));
        }
        out
    }

    /// Tiers, one after the other, all in this chain.
    fn tiers(&self, tiers: &[EndpointTier], inbound: bool, untracked: bool, out: &mut Vec<Rule>) {
        for tier in tiers {
            self.tier(tier, inbound, untracked, out);
        }
    }

    /// A tier: each policy in turn, as long as none has decided; who accepts returns with the accept mark. Neither mark is
    /// set where a tier begins: what is accepted has returned, and passing is forgotten.
    fn tier(&self, tier: &EndpointTier, inbound: bool, untracked: bool, out: &mut Vec<Rule>) {
        let policies = policies(tier, inbound);
        if policies.is_empty() {
            return;
        }
        out.push(self.clear(self.marks.pass).because(format!("tier {}", tier.name)));
        for (i, id) in policies.iter().enumerate() {
            let jump = Action::Jump(policy_chain(id, inbound));
            out.push(Rule::new(vec![self.unmarked(self.marks.both())], jump));
            if (i + 1) % TOGETHER != 0 && i + 1 != policies.len() {
                continue;
            }
            if untracked {
                out.push(Rule::new(vec![self.marked(self.marks.accept)], Action::NoTrack));
            }
            out.push(Rule::new(vec![self.marked(self.marks.accept)], Action::Return));
        }
        if tier.default_action == TierAction::Deny {
            let why = format!("end of tier {}: no rule allowed or passed it", tier.name);
            out.push(self.deny(vec![self.unmarked(self.marks.pass)], why));
        }
    }

    /// A tier in one direction as a chain of its own ([`list_chain`]): who returns from it with the accept mark has been
    /// accepted, others go on to the next tier.
    pub(super) fn list(&self, name: &str, tier: &EndpointTier, inbound: bool) -> Chain {
        let mut rules = Vec::new();
        self.tier(tier, inbound, false, &mut rules);
        Chain::new(name, rules)
    }

    fn profiles(&self, profiles: &[String], inbound: bool, out: &mut Vec<Rule>) {
        for p in profiles {
            out.push(Rule::new(Vec::new(), Action::Jump(profile_chain(p, inbound))));
            out.push(Rule::new(vec![self.marked(self.marks.accept)], Action::Return));
        }
        out.push(self.deny(Vec::new(), "no profile allowed it"));
    }

    /// Only packets whose source is the workload's go on.
    fn source(&self, family: Family, e: &EndpointPolicy, out: &mut Vec<Rule>) {
        let nets: Vec<IpNet> = e
            .addresses
            .iter()
            .chain(&e.allowed_sources)
            .filter(|n| family.has(n))
            .map(IpNet::trunc)
            .collect();
        let why = "source is not an address of this workload";
        match nets.as_slice() {
            [] => out.push(self.deny(Vec::new(), why)),
            [one] => out.push(self.deny(vec![Match::Src { net: *one, not: true }], why)),
            many => {
                out.push(self.clear(self.marks.accept));
                let accept = Action::SetMark { value: self.marks.accept, mask: self.marks.accept };
                out.extend(
                    many.iter().map(|n| Rule::new(vec![Match::Src { net: *n, not: false }], accept.clone())),
                );
                out.push(self.deny(vec![self.unmarked(self.marks.accept)], why));
            }
        }
    }

    /// A workload's chain in the filter table. `lists`: for each of its tiers the chain of its own, if it has one.
    pub(super) fn pod(
        &self,
        family: Family,
        device: &str,
        e: &EndpointPolicy,
        lists: &[Option<&str>],
        direction: Direction,
    ) -> Chain {
        let inbound = direction.inbound();
        let pre = if inbound { prefix::TO_POD } else { prefix::FROM_POD };
        let name = names::chain(pre, device);
        if let Some(why) = &e.closed {
            return Chain::new(name, vec![self.deny(Vec::new(), format!("{}: {why}", e.id))]);
        }
        let mut rules = Vec::new();
        if direction == Direction::From {
            if family == Family::V6 {
                // Neighbour discovery from link-local addresses; the host answers or ignores it.
                for kind in ND_FROM_WORKLOADS {
                    rules.push(Rule::new(
                        vec![
                            Match::Proto { number: 58, not: false },
                            Match::Icmp { kind, code: None, not: false },
                            Match::DstLocal,
                        ],
                        Action::Accept,
                    ));
                }
            }
            self.source(family, e, &mut rules);
        }
        rules.extend(self.known());
        rules.push(self.clear(self.marks.both()));
        if direction == Direction::From {
            if !self.allow_vxlan {
                let port = Ports { first: self.vxlan_port, last: self.vxlan_port };
                let udp = Match::Proto { number: 17, not: false };
                let vxlan = vec![udp, Match::DstPorts { ports: vec![port], not: false }];
                rules.push(self.deny(vxlan, "VXLAN from a workload"));
            }
            if !self.allow_ipip {
                rules.push(self.deny(vec![Match::Proto { number: 4, not: false }], "IPIP from a workload"));
            }
        }
        for (i, tier) in e.tiers.iter().enumerate() {
            match lists.get(i).copied().flatten() {
                Some(list) => {
                    rules.push(Rule::new(Vec::new(), Action::Jump(list.to_owned())));
                    rules.push(Rule::new(vec![self.marked(self.marks.accept)], Action::Return));
                }
                None => self.tier(tier, inbound, false, &mut rules),
            }
        }
        self.profiles(&e.profiles, inbound, &mut rules);
        Chain::new(name, rules)
    }

    /// A host endpoint's chain for its own traffic.
    pub fn host(&self, device: &str, e: &EndpointPolicy, direction: Direction) -> Chain {
        let (pre, failsafe, inbound) = match direction {
            Direction::To => (prefix::TO_HOST, FAILSAFE_OUT, false),
            Direction::From => (prefix::FROM_HOST, FAILSAFE_IN, true),
        };
        let mut rules = self.known();
        rules.push(Rule::new(Vec::new(), Action::Jump(failsafe.into())));
        match &e.closed {
            Some(why) => rules.push(self.deny(Vec::new(), format!("{}: {why}", e.id))),
            None => {
                rules.push(self.clear(self.marks.both()));
                self.tiers(&e.tiers, inbound, false, &mut rules);
                self.profiles(&e.profiles, inbound, &mut rules);
            }
        }
        Chain::new(names::chain(pre, device), rules)
    }

    /// A host endpoint's chain for forwarded traffic; without tiers it is accepted.
    pub fn host_forward(&self, device: &str, e: &EndpointPolicy, direction: Direction) -> Chain {
        let (pre, inbound) = match direction {
            Direction::To => (prefix::TO_HOST_FORWARD, false),
            Direction::From => (prefix::FROM_HOST_FORWARD, true),
        };
        let name = names::chain(pre, device);
        let tiers = e.host.as_ref().map_or(&[][..], |h| &h.forward);
        let mut rules = self.known();
        match &e.closed {
            Some(why) => rules.push(self.deny(Vec::new(), format!("{}: {why}", e.id))),
            None => {
                rules.push(self.clear(self.marks.both()));
                self.tiers(tiers, inbound, false, &mut rules);
                let accept = Action::SetMark { value: self.marks.accept, mask: self.marks.accept };
                // A direction no tier speaks of is accepted as well.
                rules.push(Rule::new(Vec::new(), accept).because("forwarded and not denied"));
            }
        }
        Chain::new(name, rules)
    }

    /// A host endpoint's untracked policy (raw) or policy before DNAT (mangle): who is accepted here is accepted; what
    /// nobody decides goes on.
    pub fn host_early(
        &self,
        device: &str,
        tiers: &[EndpointTier],
        direction: Direction,
        untracked: bool,
    ) -> Chain {
        let (pre, failsafe, inbound) = match direction {
            Direction::To => (prefix::TO_HOST, FAILSAFE_OUT, false),
            Direction::From => (prefix::FROM_HOST, FAILSAFE_IN, true),
        };
        let mut rules =
            vec![Rule::new(Vec::new(), Action::Jump(failsafe.into())), self.clear(self.marks.both())];
        self.tiers(tiers, inbound, untracked, &mut rules);
        Chain::new(names::chain(pre, device), rules)
    }
}

/// Neighbour discovery: router and neighbour solicitations and advertisements.
pub(super) const ND: [u8; 4] = active::NEIGHBOUR_DISCOVERY;
/// What of it workloads may send: they are nobody's routers.
pub(super) const ND_FROM_WORKLOADS: [u8; 3] = [133, 135, 136];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::active::{EndpointId, Interface, PolicyKind};

    fn id(n: usize) -> PolicyId {
        PolicyId {
            tier: "default".into(),
            kind: PolicyKind::NetworkPolicy,
            namespace: "red".into(),
            name: format!("p{n}"),
        }
    }

    fn tier(
        name: &str,
        default_action: TierAction,
        ingress: impl IntoIterator<Item = usize>,
    ) -> EndpointTier {
        let ingress = ingress.into_iter().map(id).collect();
        EndpointTier { name: name.into(), default_action, ingress, egress: Vec::new() }
    }

    fn shape() -> Shape {
        Shape {
            marks: Marks::default(),
            deny: Action::Drop,
            drop_invalid: true,
            vxlan_port: 4789,
            allow_vxlan: false,
            allow_ipip: false,
        }
    }

    #[test]
    fn fifty_policies_of_a_tier_return_seven_times() {
        let mut rules = Vec::new();
        shape().tiers(&[tier("default", TierAction::Deny, 0..50)], true, false, &mut rules);
        let count = |wanted: fn(&Action) -> bool| rules.iter().filter(|r| wanted(&r.action)).count();
        assert_eq!((count(|a| matches!(a, Action::Jump(_))), count(|a| *a == Action::Return)), (50, 7));
        // What is accepted has returned before the end of the tier is reached.
        let last: Vec<&Action> = rules.iter().rev().take(2).map(|r| &r.action).collect();
        assert_eq!(last, [&Action::Drop, &Action::Return]);
    }

    #[test]
    fn a_list_is_named_by_its_policies_in_their_order_and_what_follows_them() {
        let of = |t: &EndpointTier| list_chain(t, true);
        let three = tier("default", TierAction::Deny, [1, 2, 3]);
        assert_eq!(of(&three), of(&three.clone()));
        assert!(of(&three).starts_with(prefix::LIST_IN) && of(&three).len() <= names::MAX_CHAIN);
        let both = EndpointTier { egress: three.ingress.clone(), ..three.clone() };
        assert!(list_chain(&both, false).starts_with(prefix::LIST_OUT));
        assert_eq!(of(&both), of(&three), "the other direction does not count");
        for other in [
            tier("default", TierAction::Deny, [2, 1, 3]),
            tier("default", TierAction::Deny, [1, 2]),
            tier("default", TierAction::Pass, [1, 2, 3]),
            tier("late", TierAction::Deny, [1, 2, 3]),
        ] {
            assert_ne!(of(&other), of(&three), "{other:?}");
        }
    }

    /// What a policy's chain does with a packet.
    #[derive(Clone, Copy, Debug)]
    enum Says {
        Nothing,
        Allow,
        Pass,
        Deny,
    }

    /// Walks a chain as the kernel does. `Some`: dropped, and by which rule's words.
    fn walk(
        chains: &BTreeMap<String, Vec<Rule>>,
        says: &BTreeMap<String, Says>,
        chain: &str,
        mark: &mut u32,
    ) -> Option<Option<String>> {
        let marks = Marks::default();
        if let Some(says) = says.get(chain) {
            match says {
                Says::Nothing => {}
                Says::Allow => *mark |= marks.accept,
                Says::Pass => *mark |= marks.pass,
                Says::Deny => return Some(Some(chain.to_owned())),
            }
            return None;
        }
        for rule in &chains[chain] {
            let holds = rule.matches.iter().all(|m| match m {
                Match::Mark { value, mask } => *mark & mask == *value,
                Match::Known | Match::Invalid => false,
                other => panic!("{other:?} is no matter of these chains"),
            });
            if !holds {
                continue;
            }
            match &rule.action {
                Action::Return => return None,
                Action::Drop => return Some(rule.comment.clone()),
                Action::SetMark { value, mask } => *mark = *mark & !mask | value,
                Action::Jump(to) => {
                    if let Some(dropped) = walk(chains, says, to, mark) {
                        return Some(dropped);
                    }
                }
                other => panic!("{other:?} is no matter of these chains"),
            }
        }
        None
    }

    proptest! {
        /// A list as a chain of its own decides as the same list in the endpoint's chain, and the same rule does.
        #[test]
        fn a_list_of_its_own_changes_nothing(
            tiers in proptest::collection::vec((proptest::collection::vec(0u8..4, 0..12), any::<bool>()), 0..4),
            profile in 0u8..4,
        ) {
            let said = |n: u8| match n {
                0 => Says::Allow,
                1 => Says::Pass,
                2 => Says::Deny,
                _ => Says::Nothing,
            };
            let mut says = BTreeMap::from([(profile_chain("own", true), said(profile))]);
            let mut e = EndpointPolicy {
                id: EndpointId::Workload { namespace: "red".into(), name: "a".into() },
                interface: Interface::Name("cali0".into()),
                addresses: Vec::new(),
                allowed_sources: Vec::new(),
                mac: None,
                closed: None,
                tiers: Vec::new(),
                host: None,
                profiles: vec!["own".into()],
            };
            let mut next = 0;
            for (i, (policies, deny)) in tiers.iter().enumerate() {
                let first = next;
                for n in policies {
                    // More often than not a policy says nothing.
                    says.insert(policy_chain(&id(next), true), if next % 3 == 0 { said(*n) } else { Says::Nothing });
                    next += 1;
                }
                let action = if *deny { TierAction::Deny } else { TierAction::Pass };
                e.tiers.push(tier(&format!("t{i}"), action, first..next));
            }
            let shape = shape();
            let names: Vec<Option<String>> =
                e.tiers.iter().map(|t| has_chain(t, true).then(|| list_chain(t, true))).collect();
            let lists: Vec<Option<&str>> = names.iter().map(Option::as_deref).collect();
            let outcome = |lists: &[Option<&str>]| {
                let pod = shape.pod(Family::V4, "cali0", &e, lists, Direction::To);
                let name = pod.name.clone();
                let of_lists = e.tiers.iter().zip(lists).filter_map(|(tier, list)| {
                    let chain = shape.list((*list)?, tier, true);
                    Some((chain.name, chain.rules))
                });
                let chains = of_lists.chain([(pod.name, pod.rules)]).collect();
                let mut mark = 0;
                let dropped = walk(&chains, &says, &name, &mut mark);
                (dropped, mark)
            };
            prop_assert_eq!(outcome(&lists), outcome(&vec![None; lists.len()]));
        }
    }
}
