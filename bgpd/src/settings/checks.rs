//! Values that YAML lets through and that would not work, or do something else than they seem to.

use std::net::IpAddr;

use brindle_bgpd_core::{
    af::Family,
    speaker::{NextHopPolicy, PeerConfig},
};

use super::Settings;
use crate::keys::Wanted;

/// IFNAMSIZ less the end.
const INTERFACE_MAX: usize = 15;
/// RFC 9003 section 2.
const TEXT_MAX: usize = 255;
/// What commands mean by something else than a peer.
const RESERVED: [&str; 2] = ["all", "own"];

type Bad = Option<String>;

/// A peer's address, or a next hop.
pub(super) fn unicast(address: IpAddr) -> Bad {
    let bad = match address {
        IpAddr::V4(a) => a.is_unspecified() || a.is_multicast() || a.is_broadcast() || a.octets()[0] == 0,
        IpAddr::V6(a) => {
            if let Some(v4) = a.to_ipv4_mapped() {
                return Some(format!("{a} is an IPv4 address; write {v4}"));
            }
            a.is_unspecified() || a.is_multicast()
        }
    };
    bad.then(|| format!("{address} is no unicast address"))
}

/// The name of a peer, a range or a filter: it stands in log lines.
pub(super) fn name(name: &str) -> Bad {
    if name.is_empty() {
        Some("is empty".into())
    } else if name.chars().any(char::is_control) {
        Some(format!("{name:?} has control characters in it"))
    } else {
        None
    }
}

/// The name of a peer, which commands take, too.
pub(super) fn peer_name(text: &str) -> Bad {
    let reserved = RESERVED.contains(&text);
    name(text).or_else(|| reserved.then(|| format!("commands mean something else by {text}")))
}

/// Whether two peers both only wait for connections that nothing tells apart: the place of the first, and what is wrong.
pub(super) fn waited_for(before: &[PeerConfig], peer: &PeerConfig) -> Option<(usize, String)> {
    let same = |p: &PeerConfig| {
        let link_local = matches!(p.address, IpAddr::V6(a) if a.is_unicast_link_local());
        // Connections go to the first that fits: one with an address of ours leaves those to others to the second.
        let local = |p: &PeerConfig| p.local_address.map(|a| a.to_canonical());
        let apart = local(p).is_some() && local(p) != local(peer);
        let other_link = link_local && p.session.interface != peer.session.interface;
        p.passive && p.address.to_canonical() == peer.address.to_canonical() && !apart && !other_link
    };
    let first = before.iter().position(same).filter(|_| peer.passive)?;
    let what = format!(
        "connections from {} cannot be told apart by the port of who makes them; they are all given to",
        peer.address
    );
    Some((first, what))
}

/// As the kernel has it.
pub(super) fn interface(name: &str) -> Bad {
    if name.is_empty() || name.len() > INTERFACE_MAX {
        Some(format!("{name:?}: a device's name has 1 to {INTERFACE_MAX} octets"))
    } else if name.contains('/') || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        Some(format!("{name:?} cannot be the name of a device"))
    } else {
        None
    }
}

/// A goodbye.
pub(super) fn text(text: &str) -> Bad {
    (text.len() > TEXT_MAX)
        .then(|| format!("has {} octets, the message takes {TEXT_MAX} (RFC 9003)", text.len()))
}

/// Seconds that must fit each other: the field that does not, and why.
pub(super) fn times(
    hold: u16,
    keepalive: Option<u16>,
    send_hold: Option<u16>,
) -> Option<(&'static str, String)> {
    match (keepalive.filter(|k| *k != 0), send_hold.filter(|s| *s != 0)) {
        (Some(_), _) if hold == 0 => {
            Some(("keepalive", "with holdTime 0 there are none (RFC 4271 section 4.4)".into()))
        }
        (Some(k), _) if k > hold / 3 => {
            Some(("keepalive", format!("at most a third of holdTime, {} s (RFC 4271 section 4.4)", hold / 3)))
        }
        (_, Some(s)) if s <= hold => {
            Some(("sendHoldTime", format!("must be more than holdTime, {hold} s (RFC 9687 section 3.2)")))
        }
        _ => None,
    }
}

impl Settings {
    /// What works, and probably not as it is meant.
    pub fn warnings(&self) -> Vec<String> {
        let asn = self.desired.speaker.as_ref().map_or(0, |s| s.asn);
        let ranges = self.desired.speaker.iter().flat_map(|s| &s.dynamic);
        let clashes = Wanted::new(&self.desired.peers, ranges).clashes(&self.desired.listen);
        let keys = clashes.iter().filter(|c| !c.hopeless).map(ToString::to_string);
        self.desired.peers.iter().flat_map(|p| self.of_the_other_family(p, asn)).chain(keys).collect()
    }

    /// A session has one address of ours, so it is the next hop of one family only, unless another is given.
    fn of_the_other_family(&self, peer: &PeerConfig, asn: u32) -> Option<String> {
        let (own, other) = match peer.address {
            IpAddr::V4(_) => ("IPv4", Family::Ipv6Unicast),
            IpAddr::V6(_) => ("IPv6", Family::Ipv4Unicast),
        };
        if peer.attributes.own_next_hop[other].is_some() {
            return None;
        }
        let external = peer.asn != peer.local_asn.unwrap_or(asn);
        let ours = self.desired.routes.iter().any(|r| Family::of(&r.prefix) == other && r.next_hop.is_none());
        let changed = match peer.next_hop {
            NextHopPolicy::SelfAddress => true,
            NextHopPolicy::Auto => external,
            NextHopPolicy::Keep => false,
        };
        let field = match other {
            Family::Ipv4Unicast => "nextHopIPv4",
            Family::Ipv6Unicast => "nextHopIPv6",
        };
        (peer.families.contains(&other) && (ours || changed)).then(|| {
            let words = format!("set {field} to our address, or list the peer a second time at its other address");
            format!(
                "peer {}: {other} routes whose next hop would be ours are not sent over a session between {own} \
                 addresses; {words}",
                peer.name
            )
        })
    }
}
