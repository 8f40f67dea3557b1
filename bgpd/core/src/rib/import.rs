//! What happens to attributes when a route comes in: loop checks, the degree of preference, next hops that cannot be.
//!
//! A route that may not be used is kept with its reason (so that it can be shown and replaced), never silently
//! dropped. RFC 4271 section 9.1.2 and 5.1.3, RFC 4456 section 8.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use serde::{Deserialize, Serialize};

use super::{
    attrs::{Attrs, Interner},
    peers::{NextHops, Unknown},
    rewrite::Inward,
};
use crate::{
    policy::{Decision, Facts, Policy},
    speaker::SpeakerConfig,
    wire::{AttrSet, NextHop, SegmentKind},
};

/// Why a received route is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Invalid {
    AsLoop,
    /// An external peer must be in the path (RFC 4271 section 5.1.2).
    EmptyPath,
    /// The path begins with another AS than the peer's.
    FirstAs,
    OriginatorLoop,
    ClusterLoop,
    OwnNextHop,
    NextHop,
    NoPolicy,
    /// A rule of the peer's import policy asks for the device towards the next hop, which is not known (yet).
    NoDevice,
    /// A rule of the peer's import policy, by its number in the compiled policy of the family.
    Filtered(u16),
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filtered(_) => "rejected by an import filter",
            Self::EmptyPath => "the AS_PATH of an external peer is empty",
            Self::FirstAs => "the AS_PATH does not begin with the peer's AS (enforceFirstAS)",
            Self::AsLoop => "our AS is in the AS_PATH",
            Self::OriginatorLoop => "the ORIGINATOR_ID is ours",
            Self::ClusterLoop => "our cluster is in the CLUSTER_LIST",
            Self::OwnNextHop => "the next hop is our own address",
            Self::NextHop => "the next hop is no unicast address",
            Self::NoDevice => {
                "the device towards the next hop, which an import filter asks for, is not known"
            }
            Self::NoPolicy => "there is no policy for this external peer (RFC 8212)",
        })
    }
}

/// What the session a route came over adds to the judgement.
#[derive(Clone, Copy, Debug)]
pub(super) struct ImportCx<'a> {
    pub speaker: &'a SpeakerConfig,
    pub ibgp: bool,
    /// The AS we present to this peer.
    pub local_asn: u32,
    pub allow_own_as: u8,
    pub inward: Inward,
}

impl ImportCx<'_> {
    /// The cluster identifier we reflect with; the router identifier unless configured (RFC 4456 section 7).
    fn cluster_id(&self) -> Ipv4Addr {
        self.speaker.cluster_id.unwrap_or(self.speaker.router_id)
    }

    /// Checks and normalises the attributes of an UPDATE, once for all its prefixes.
    pub(super) fn judge(&self, set: &mut AttrSet) -> Option<Invalid> {
        if !self.ibgp {
            // They have no meaning from outside; the codec has removed them already when it knew.
            set.local_pref = Some(self.speaker.ebgp_local_pref);
            set.originator_id = None;
            set.cluster_list.clear();
        } else if set.local_pref.is_none() {
            set.local_pref = Some(self.speaker.classic_local_pref.unwrap_or(self.speaker.local_pref));
        }
        let bad = self.loops(set);
        self.inward.apply(set);
        bad.or(self.inward.closed.then_some(Invalid::NoPolicy))
    }

    fn loops(&self, set: &AttrSet) -> Option<Invalid> {
        if !self.ibgp {
            let first = set.as_path.0.first();
            let Some(first) = first else { return Some(Invalid::EmptyPath) };
            let named = first.kind == SegmentKind::Sequence;
            if self.inward.first_as.is_some_and(|asn| !named || first.asns.first() != Some(&asn)) {
                return Some(Invalid::FirstAs);
            }
        }
        let own = set
            .as_path
            .0
            .iter()
            .flat_map(|s| s.asns.iter())
            .filter(|a| **a == self.local_asn || **a == self.speaker.asn)
            .count();
        if own > usize::from(self.allow_own_as) {
            return Some(Invalid::AsLoop);
        }
        if set.originator_id == Some(self.speaker.router_id) {
            return Some(Invalid::OriginatorLoop);
        }
        if set.cluster_list.contains(&self.cluster_id()) {
            return Some(Invalid::ClusterLoop);
        }
        None
    }
}

/// The import policy of a peer, at work on the routes of one UPDATE (or on all that was received, when it changed).
#[derive(Debug)]
pub(super) struct Screen<'a> {
    pub policy: &'a Policy,
    pub ibgp: bool,
    /// The last change of attributes and its outcome, which mostly is the next one too.
    pub memo: Option<(Attrs, u16, Attrs)>,
    pub read: Reading,
    /// The last next hop and the device towards it, which mostly is the next one too.
    device: Option<(IpAddr, String)>,
}

/// The attributes a policy looks at, as a value: read only if its rules ask for them, and once for a run of routes.
#[derive(Debug, Default)]
pub(super) struct Reading {
    last: Option<(Attrs, AttrSet)>,
    nothing: AttrSet,
}

impl Reading {
    pub(super) fn of(&mut self, attrs: &Attrs, policy: &Policy) -> &AttrSet {
        if !policy.reads_attributes() {
            return &self.nothing;
        }
        if self.last.as_ref().is_none_or(|(a, _)| a != attrs) {
            self.last = Some((attrs.clone(), attrs.set()));
        }
        self.last.as_ref().map_or(&self.nothing, |(_, set)| set)
    }
}

/// What the import policy makes of a route.
#[derive(Debug)]
pub(super) struct Screened {
    pub attrs: Attrs,
    /// The attributes as they came, where the policy changed them.
    pub raw: Option<Attrs>,
    pub bad: Option<Invalid>,
}

impl<'a> Screen<'a> {
    pub(super) fn new(policy: &'a Policy, ibgp: bool) -> Self {
        Self { policy, ibgp, memo: None, read: Reading::default(), device: None }
    }
}

impl Screen<'_> {
    /// Judges one route; `attrs` as they came.
    pub(super) fn judge(
        &mut self,
        prefix: ipnet::IpNet,
        attrs: &Attrs,
        interner: &mut Interner,
        next_hops: &mut NextHops,
    ) -> Screened {
        let as_is = |bad| Screened { attrs: attrs.clone(), raw: None, bad };
        if self.look(attrs, next_hops).is_err() {
            // Neither used nor refused before it is known.
            return as_is(Some(Invalid::NoDevice));
        }
        let facts = Facts {
            prefix,
            attributes: self.read.of(attrs, self.policy),
            priority: attrs.rank.priority(),
            ibgp: self.ibgp,
            learnt: true,
            interface: self.device.as_ref().map(|(_, device)| device.as_str()),
        };
        match self.policy.decide(&facts) {
            Decision::Default => as_is(None),
            Decision::Reject(rule) => as_is(Some(Invalid::Filtered(rule))),
            Decision::Accept(rule) => {
                if let Some((from, by, to)) = &self.memo
                    && from == attrs
                    && *by == rule
                {
                    return Screened { attrs: to.clone(), raw: Some(from.clone()), bad: None };
                }
                let family = crate::af::Family::of(&prefix);
                if self.policy.operations(family, rule).is_empty() {
                    return as_is(None);
                }
                let mut set = attrs.set();
                self.policy.apply(family, rule, &mut set);
                let Some(new) = interner.intern(&set, attrs.next_hop()) else {
                    // It got longer than an attribute can be: not to be used as the rule wants, so not to be used.
                    return as_is(Some(Invalid::Filtered(rule)));
                };
                self.memo = Some((attrs.clone(), rule, new.clone()));
                Screened { attrs: new, raw: Some(attrs.clone()), bad: None }
            }
        }
    }
}

impl Screen<'_> {
    /// Finds out by which device a route would leave, if rules ask for it.
    fn look(&mut self, attrs: &Attrs, next_hops: &mut NextHops) -> Result<(), Unknown> {
        let hop = attrs.next_hop().map(|h| h.ip()).filter(|_| self.policy.reads_interface());
        let same = |(known, _): &(IpAddr, String)| hop == Some(*known);
        if self.device.as_ref().is_some_and(same) {
            return Ok(());
        }
        self.device = None;
        let Some(hop) = hop else { return Ok(()) };
        self.device = next_hops.device_for_import(hop)?.map(|device| (hop, device));
        Ok(())
    }
}

/// Checks a next hop (RFC 4271 section 6.3): a unicast address that is not ours.
pub(super) fn judge_next_hop(hop: &NextHop, next_hops: &NextHops) -> Option<Invalid> {
    let ip = hop.ip();
    if next_hops.is_own(ip) {
        return Some(Invalid::OwnNextHop);
    }
    let unicast = match ip {
        IpAddr::V4(a) => {
            !(a.is_unspecified() || a.is_multicast() || a.is_broadcast() || a.octets().first() == Some(&0))
        }
        // An IPv4 address is written as one, or it belongs to nobody (RFC 4291 section 2.5.5.2).
        IpAddr::V6(a) => !(a.is_unspecified() || a.is_multicast() || a.to_ipv4_mapped().is_some()),
    };
    (!unicast).then_some(Invalid::NextHop)
}
