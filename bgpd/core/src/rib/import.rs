//! What happens to attributes when a route comes in: loop checks, the degree of preference, next hops that cannot be.
//!
//! A route that may not be used is kept with its reason (so that it can be shown and replaced), never silently
//! dropped. RFC 4271 section 9.1.2 and 5.1.3, RFC 4456 section 8.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use serde::{Deserialize, Serialize};

use super::{peers::NextHops, rewrite::Inward};
use crate::{
    speaker::SpeakerConfig,
    wire::{AttrSet, NextHop},
};

/// Why a received route is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Invalid {
    AsLoop,
    OriginatorLoop,
    ClusterLoop,
    OwnNextHop,
    NextHop,
    NoPolicy,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AsLoop => "our AS is in the AS_PATH",
            Self::OriginatorLoop => "the ORIGINATOR_ID is ours",
            Self::ClusterLoop => "our cluster is in the CLUSTER_LIST",
            Self::OwnNextHop => "the next hop is our own address",
            Self::NextHop => "the next hop is no unicast address",
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
        self.inward.apply(set);
        self.inward.closed.then_some(Invalid::NoPolicy)
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
        IpAddr::V6(a) => !(a.is_unspecified() || a.is_multicast()),
    };
    (!unicast).then_some(Invalid::NextHop)
}
