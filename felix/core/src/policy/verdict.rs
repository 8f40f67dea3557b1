//! `verdict(state, flow)`: what happens to the first packet of a flow on one node, and why. The sentences of the policy
//! model, in the order in which the kernel would meet them; the renderers are proved against it.
//!
//! Replies and later packets of an accepted flow pass by connection tracking and are not asked about here.

use std::{fmt, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    active::{
        Action, EndpointId, EndpointPolicy, EndpointTier, FROM_WORKLOADS, Failsafe, HostPolicy, Icmp,
        Interface, IpVersion, NEIGHBOUR_DISCOVERY, PolicyId, PortRange, Protocol, Rule, Side, TierAction,
        ToHostAction,
    },
    state::PolicyState,
};

/// The first packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: Protocol,
    /// 0 when the protocol has no ports.
    pub src_port: u16,
    pub dst_port: u16,
    /// Type and code, for ICMP and ICMPv6.
    pub icmp: Option<(u8, u8)>,
}

/// One end of a flow as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// A workload of this node.
    Workload(EndpointId),
    /// The node itself, through the interface of this host endpoint when there is one.
    Host(Option<EndpointId>),
    /// Anything else, through the interface of this host endpoint when there is one.
    Outside(Option<EndpointId>),
}

/// Which way a packet goes, seen from the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Ingress,
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Ingress { "ingress" } else { "egress" })
    }
}

/// What decided at one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// A rule of a policy; `rule` counts from 0 in the resource's own list.
    Rule { policy: PolicyId, rule: u32, annotations: Vec<(String, String)> },
    /// Policies of the tier apply, none of their rules matched.
    EndOfTier { tier: String },
    /// A rule of a profile.
    Profile { name: String, rule: u32 },
    /// Neither a policy nor a profile allowed it.
    NoProfile,
    /// The endpoint drops everything.
    Closed(String),
    /// This node does not know the endpoint (yet).
    UnknownEndpoint,
    /// A port that policy never closes.
    Failsafe,
    /// Neighbour discovery, without which nobody reaches such a port over IPv6.
    Discovery,
    /// Discovery and multicast listener reports of a workload, which its host always takes.
    ToRouter,
    /// `defaultEndpointToHostAction`.
    ToHost(ToHostAction),
    /// The node's own processes always reach its workloads.
    FromOwnHost,
    /// VXLAN or IPIP sent by a workload.
    Encapsulated,
    /// No policy for forwarded traffic decided.
    NoForwardPolicy,
    /// No host endpoint stands for the interface.
    NotPoliced,
}

/// What one endpoint said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// `None` = nothing polices this end.
    pub endpoint: Option<EndpointId>,
    pub direction: Direction,
    pub allowed: bool,
    pub reason: Reason,
}

/// The answer: every endpoint that was asked, in order; the last one decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub steps: Vec<Step>,
}

impl Verdict {
    /// Whether the packet arrives.
    pub fn allowed(&self) -> bool {
        self.steps.iter().all(|s| s.allowed)
    }
}

/// Where an address is for this node: a workload that has it, else outside.
pub fn place(state: &PolicyState, address: IpAddr) -> Place {
    state.workload_at(address).map_or(Place::Outside(None), |id| Place::Workload(id.clone()))
}

/// Decides about a packet on its way from one place to another.
pub fn verdict(state: &PolicyState, packet: &Packet, from: &Place, to: &Place) -> Verdict {
    verdict_translated(state, packet, packet, from, to)
}

/// Decides about a packet whose destination was translated (a service, a node port). `before`: as it was sent, which is what
/// untracked and pre-DNAT policy see; `packet`: as all others see it.
pub fn verdict_translated(
    state: &PolicyState,
    before: &Packet,
    packet: &Packet,
    from: &Place,
    to: &Place,
) -> Verdict {
    let mut asked = Asked { state, before, packet, steps: Vec::new() };
    asked.run(from, to);
    Verdict { steps: asked.steps }
}

/// How the list of tiers ended.
enum Outcome {
    Decided(bool, Reason),
    /// Passed by all tiers.
    Open,
}

struct Asked<'a> {
    state: &'a PolicyState,
    /// As it was sent.
    before: &'a Packet,
    /// As the policy that is asked sees it.
    packet: &'a Packet,
    steps: Vec<Step>,
}

impl<'a> Asked<'a> {
    /// Notes a step; `false` ends the way.
    fn say(&mut self, id: Option<&EndpointId>, direction: Direction, allowed: bool, reason: Reason) -> bool {
        self.steps.push(Step { endpoint: id.cloned(), direction, allowed, reason });
        allowed
    }

    fn run(&mut self, from: &Place, to: &Place) {
        match (from, to) {
            (Place::Workload(w), Place::Host(_)) if self.to_its_router() => {
                self.say(Some(w), Direction::Egress, true, Reason::ToRouter);
            }
            (Place::Workload(w), _) => {
                if !self.workload(w, Direction::Egress) {
                    return;
                }
                match to {
                    Place::Workload(v) => drop(self.workload(v, Direction::Ingress)),
                    Place::Host(hep) => self.enter_own_host(w, hep.as_ref()),
                    Place::Outside(hep) => drop(self.forwarded(hep.as_ref(), Direction::Egress)),
                }
            }
            (Place::Host(_), Place::Workload(v)) => {
                self.say(Some(v), Direction::Ingress, true, Reason::FromOwnHost);
            }
            (Place::Host(_), Place::Host(_)) => {
                self.say(None, Direction::Ingress, true, Reason::NotPoliced);
            }
            (Place::Host(_), Place::Outside(hep)) => drop(self.host(hep.as_ref(), Direction::Egress)),
            (Place::Outside(_), Place::Host(hep)) => drop(self.host(hep.as_ref(), Direction::Ingress)),
            (Place::Outside(hep), Place::Workload(v)) => {
                if self.arriving(hep.as_ref()) {
                    self.workload(v, Direction::Ingress);
                }
            }
            (Place::Outside(a), Place::Outside(b)) => {
                if self.arriving(a.as_ref()) {
                    self.forwarded(b.as_ref(), Direction::Egress);
                }
            }
        }
    }

    fn workload(&mut self, id: &EndpointId, direction: Direction) -> bool {
        let Some(e) = self.state.endpoints.get(id) else {
            return self.say(Some(id), direction, false, Reason::UnknownEndpoint);
        };
        if let Some(reason) = &e.closed {
            return self.say(Some(id), direction, false, Reason::Closed(reason.clone()));
        }
        if direction == Direction::Egress && self.encapsulated() {
            return self.say(Some(id), direction, false, Reason::Encapsulated);
        }
        let (allowed, reason) = self.tiers_and_profiles(e, direction);
        self.say(Some(id), direction, allowed, reason)
    }

    /// Whether the packet is for the router and neighbour that the host is to its workloads.
    fn to_its_router(&self) -> bool {
        self.packet.protocol == Protocol::ICMPV6
            && self.packet.icmp.is_some_and(|(kind, _)| FROM_WORKLOADS.contains(&kind))
    }

    fn encapsulated(&self) -> bool {
        let (p, s) = (self.packet, &self.state.settings);
        p.protocol == Protocol::UDP && p.dst_port == s.vxlan_port && !s.allow_vxlan_from_workloads
            || p.protocol == Protocol::IPIP && !s.allow_ipip_from_workloads
    }

    /// After the egress policy of the workload accepted it.
    fn enter_own_host(&mut self, workload: &EndpointId, hep: Option<&EndpointId>) {
        let action = self.state.settings.to_host;
        let allowed = action != ToHostAction::Drop;
        self.say(Some(workload), Direction::Egress, allowed, Reason::ToHost(action));
        let Some(e) = hep.and_then(|id| self.state.endpoints.get(id)) else { return };
        // Named interfaces are not where the packet comes in, and policy before DNAT is not for workloads.
        if action == ToHostAction::Return && e.interface == Interface::Any {
            self.own(&Arc::clone(e), Direction::Ingress);
        }
    }

    /// Traffic of the node itself at a host endpoint.
    fn host(&mut self, hep: Option<&EndpointId>, direction: Direction) -> bool {
        let Some(e) = self.endpoint(hep) else {
            return self.say(None, direction, true, Reason::NotPoliced);
        };
        if let Some(decided) = self.early(&e, direction, true) {
            return decided;
        }
        self.own(&e, direction)
    }

    /// The policy of a host endpoint for the node's own traffic that nothing decided early.
    fn own(&mut self, e: &EndpointPolicy, direction: Direction) -> bool {
        let id = &e.id;
        if let Some(reason) = self.failsafe(direction, true) {
            return self.say(Some(id), direction, true, reason);
        }
        if let Some(reason) = self.state.closed(e) {
            return self.say(Some(id), direction, false, Reason::Closed(reason.clone()));
        }
        let (allowed, reason) = self.tiers_and_profiles(e, direction);
        self.say(Some(id), direction, allowed, reason)
    }

    /// Traffic that comes in at a host endpoint and goes on.
    fn arriving(&mut self, hep: Option<&EndpointId>) -> bool {
        if let Some(e) = self.endpoint(hep)
            && let Some(decided) = self.early(&e, Direction::Ingress, false)
        {
            return decided;
        }
        self.forwarded(hep, Direction::Ingress)
    }

    /// Untracked and pre-DNAT policy; what it allows no later host policy looks at. `own`: the host is an end of the
    /// flow, so that its failsafe ports are open for good; for what is forwarded to such a port these policies alone are
    /// left out, and the policy for forwarded traffic decides.
    fn early(&mut self, e: &EndpointPolicy, direction: Direction, own: bool) -> Option<bool> {
        let after = std::mem::replace(&mut self.packet, self.before);
        let decided = e.host.as_ref().and_then(|host| self.before_translation(e, host, direction, own));
        self.packet = after;
        decided
    }

    fn before_translation(
        &mut self,
        e: &EndpointPolicy,
        host: &HostPolicy,
        direction: Direction,
        own: bool,
    ) -> Option<bool> {
        let id = &e.id;
        let pre_dnat: &[EndpointTier] = if direction == Direction::Ingress { &host.pre_dnat } else { &[] };
        for (tiers, untracked) in [(host.untracked.as_slice(), true), (pre_dnat, false)] {
            if tiers.is_empty() || self.state.closed(e).is_some() {
                continue;
            }
            if let Some(reason) = self.failsafe(direction, own) {
                return own.then(|| self.say(Some(id), direction, true, reason));
            }
            if untracked && self.failsafe_answer(direction) {
                continue;
            }
            if let Outcome::Decided(allowed, reason) = self.tiers(tiers, direction) {
                return Some(self.say(Some(id), direction, allowed, reason));
            }
        }
        None
    }

    fn forwarded(&mut self, hep: Option<&EndpointId>, direction: Direction) -> bool {
        let Some(e) = self.endpoint(hep) else {
            return self.say(None, direction, true, Reason::NotPoliced);
        };
        if let Some(reason) = self.state.closed(&e).cloned() {
            return self.say(Some(&e.id), direction, false, Reason::Closed(reason));
        }
        let forward = e.host.as_ref().map_or(&[][..], |host| &host.forward);
        match self.tiers(forward, direction) {
            Outcome::Decided(allowed, reason) => self.say(Some(&e.id), direction, allowed, reason),
            Outcome::Open => self.say(Some(&e.id), direction, true, Reason::NoForwardPolicy),
        }
    }

    fn endpoint(&self, hep: Option<&EndpointId>) -> Option<Arc<EndpointPolicy>> {
        self.state.endpoints.get(hep?).cloned()
    }

    /// Why no policy of a host endpoint is asked.
    fn failsafe(&self, direction: Direction, own: bool) -> Option<Reason> {
        let settings = &self.state.settings;
        let open = match direction {
            Direction::Ingress => self.in_list(&settings.failsafe_inbound, direction, self.packet.dst_port),
            Direction::Egress => self.in_list(&settings.failsafe_outbound, direction, self.packet.dst_port),
        };
        // From a neighbour: the hop limit, of which a packet here knows nothing, is right.
        let discovery = own
            && self.packet.protocol == Protocol::ICMPV6
            && self.packet.icmp.is_some_and(|(kind, _)| NEIGHBOUR_DISCOVERY.contains(&kind))
            && self.state.settings.failsafe_v6();
        match (open, discovery) {
            (true, _) => Some(Reason::Failsafe),
            (false, true) => Some(Reason::Discovery),
            (false, false) => None,
        }
    }

    /// Untracked policy does not see answers to what failsafe ports of the other direction were asked, and nothing but
    /// the source port tells them.
    fn failsafe_answer(&self, direction: Direction) -> bool {
        let settings = &self.state.settings;
        match direction {
            Direction::Ingress => self.in_list(&settings.failsafe_outbound, direction, self.packet.src_port),
            Direction::Egress => self.in_list(&settings.failsafe_inbound, direction, self.packet.src_port),
        }
    }

    fn in_list(&self, list: &[Failsafe], direction: Direction, port: u16) -> bool {
        let peer = if direction == Direction::Ingress { self.packet.src } else { self.packet.dst };
        list.iter().any(|f| {
            f.protocol == self.packet.protocol && f.port == port && f.net.is_none_or(|n| n.contains(&peer))
        })
    }

    fn tiers_and_profiles(&self, e: &EndpointPolicy, direction: Direction) -> (bool, Reason) {
        if let Outcome::Decided(allowed, reason) = self.tiers(&e.tiers, direction) {
            return (allowed, reason);
        }
        for name in &e.profiles {
            let Some(p) = self.state.profiles.get(name) else { continue };
            let rules = if direction == Direction::Ingress { &p.inbound } else { &p.outbound };
            for r in rules.iter().filter(|r| self.matches(r)) {
                let reason = || Reason::Profile { name: name.clone(), rule: r.why.index };
                match r.action {
                    Action::Allow => return (true, reason()),
                    Action::Deny => return (false, reason()),
                    Action::Pass => break,
                    Action::Log => {}
                }
            }
        }
        (false, Reason::NoProfile)
    }

    fn tiers(&self, tiers: &[EndpointTier], direction: Direction) -> Outcome {
        'tiers: for tier in tiers {
            let policies = if direction == Direction::Ingress { &tier.ingress } else { &tier.egress };
            if policies.is_empty() {
                continue;
            }
            for id in policies {
                let Some(p) = self.state.policies.get(id) else {
                    return Outcome::Decided(false, Reason::UnknownEndpoint);
                };
                let rules = if direction == Direction::Ingress { &p.inbound } else { &p.outbound };
                for r in rules.iter().filter(|r| self.matches(r)) {
                    let allowed = match r.action {
                        Action::Allow => true,
                        Action::Deny => false,
                        Action::Pass => continue 'tiers,
                        Action::Log => continue,
                    };
                    let annotations = r.why.annotations.clone();
                    return Outcome::Decided(
                        allowed,
                        Reason::Rule { policy: id.clone(), rule: r.why.index, annotations },
                    );
                }
            }
            if tier.default_action == TierAction::Deny {
                return Outcome::Decided(false, Reason::EndOfTier { tier: tier.name.clone() });
            }
        }
        Outcome::Open
    }

    fn matches(&self, r: &Rule) -> bool {
        let p = self.packet;
        let icmp = |want: &Icmp| {
            p.icmp.is_some_and(|(kind, code)| kind == want.kind && want.code.is_none_or(|c| c == code))
        };
        r.applies_to(IpVersion::of(p.src))
            && r.protocol.is_none_or(|want| want == p.protocol)
            && r.not_protocol.is_none_or(|not| not != p.protocol)
            && r.icmp.as_ref().is_none_or(icmp)
            && r.not_icmp.as_ref().is_none_or(|not| !icmp(not))
            && self.side(&r.src, p.src, p.src_port)
            && self.side(&r.dst, p.dst, p.dst_port)
    }

    fn side(&self, s: &Side, address: IpAddr, port: u16) -> bool {
        let protocol = self.packet.protocol;
        let ported = protocol.has_ports();
        let in_range = |list: &[PortRange]| ported && list.iter().any(|r| r.contains(port));
        let named = |id: &super::active::IpSetId| ported && self.state.has_port(id, address, protocol, port);
        let any_port = s.ports.is_empty() && s.named_ports.is_empty();
        (s.nets.is_empty() || s.nets.iter().any(|n| n.contains(&address)))
            && !s.not_nets.iter().any(|n| n.contains(&address))
            && s.sets.iter().all(|id| self.state.covers(id, address))
            && !s.not_sets.iter().any(|id| self.state.covers(id, address))
            && s.ip_port_sets.iter().all(named)
            && (any_port || in_range(&s.ports) || s.named_ports.iter().any(named))
            && !in_range(&s.not_ports)
            && !s.not_named_ports.iter().any(named)
    }
}
