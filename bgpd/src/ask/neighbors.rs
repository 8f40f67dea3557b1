//! Neighbors in full: state, counts, what was agreed on.

use std::collections::BTreeMap;

use brindle_bgpd_core::{
    af::{Family, PerFamily},
    speaker::{NextHopPolicy, PeerId, PeerStatus},
    wire::Capability,
};
use brindle_config_core::status::bgp::{FamilyState, Neighbor, NeighborSettings, SessionFacts};

use super::SCAN;
use crate::handle::{Gone, Handle, Seen};

/// Paths that were received and may not be used.
pub(crate) type Unusable = PerFamily<BTreeMap<PeerId, usize>>;

/// Counts them, a piece at a time.
pub(crate) async fn unusable(handle: &Handle) -> Result<Unusable, Gone> {
    let mut counts = Unusable::default();
    for family in Family::ALL {
        let mut from = Some(0);
        while let Some(at) = from {
            let (next, piece) = handle
                .look(move |s| {
                    let mut piece = BTreeMap::new();
                    let next = s.speaker.and_then(|s| s.scan_unusable(family, at, SCAN, &mut piece));
                    (next, piece)
                })
                .await?;
            for (peer, n) in piece {
                *counts[family].entry(peer).or_default() += n;
            }
            from = next;
        }
    }
    Ok(counts)
}

/// Whether a neighbor has this name or address.
pub(super) fn is_called(n: &Neighbor, name: &str) -> bool {
    n.name == name || n.address.is_some_and(|a| a.to_string() == name)
}

/// All of them, in the order they were configured.
pub(crate) fn neighbors(s: &Seen<'_>, unusable: &Unusable) -> Vec<Neighbor> {
    let Some(speaker) = s.speaker else { return Vec::new() };
    speaker.peers().map(|p| neighbor(s, p, unusable)).collect()
}

fn neighbor(s: &Seen<'_>, p: PeerStatus, unusable: &Unusable) -> Neighbor {
    let traffic = s.tally.traffic(p.id);
    let families: Vec<FamilyState> = Family::ALL
        .into_iter()
        .map(|f| {
            let (r, bad) = (p.routes[f], unusable[f].get(&p.id).copied().unwrap_or(0));
            FamilyState {
                family: name(f).into(),
                negotiated: p.session.as_ref().is_some_and(|s| s.families[f]),
                received: r.received,
                // Counted in another turn: routes may have gone since.
                accepted: r.received.saturating_sub(bad),
                stale: r.stale,
                advertised: r.advertised,
                waiting: r.waiting,
                end_of_rib: p.session.as_ref().is_some_and(|s| s.end_of_rib[f]),
            }
        })
        .collect();
    let sum = |of: fn(&FamilyState) -> usize| families.iter().map(of).sum();
    let settings = s.speaker.and_then(|s| s.peer_config(p.id)).map(|c| NeighborSettings {
        local_asn: c.local_asn,
        passive: c.passive,
        hold_time: c.hold_time,
        restart_time: c.restart_time,
        max_prefixes: c.max_prefixes,
        reflector_client: c.reflector_client,
        next_hop: match c.next_hop {
            NextHopPolicy::Auto => "auto",
            NextHopPolicy::SelfAddress => "self",
            NextHopPolicy::Keep => "keep",
        }
        .into(),
        ttl_security: c.ttl,
        password: c.password.is_some(),
    });
    Neighbor {
        received: sum(|f| f.received),
        accepted: sum(|f| f.accepted),
        advertised: sum(|f| f.advertised),
        waiting: sum(|f| f.waiting),
        families,
        messages_received: traffic.received,
        messages_sent: traffic.sent,
        settings: settings.unwrap_or_default(),
        session: p.session.map(|s| SessionFacts {
            local: s.local.to_string(),
            remote: s.remote.to_string(),
            remote_id: s.remote_id.to_string(),
            ibgp: s.ibgp,
            hold_time: s.hold_time,
            keepalive: s.keepalive,
            capabilities: s.capabilities.iter().map(capability).collect(),
            restart_time: s.restart.map(|r| r.time),
        }),
        last_error: p.last_error,
        note: p.note,
        address: Some(p.address),
        port: p.port,
        name: p.name,
        kind: p.kind,
        asn: p.asn,
        state: p.state.to_string(),
        since_ms: s.now.since_ms(p.since),
        cause: p.cause,
        sessions: p.sessions,
    }
}

/// As it stands in configuration files.
pub(crate) const fn name(family: Family) -> &'static str {
    match family {
        Family::Ipv4Unicast => "ipv4",
        Family::Ipv6Unicast => "ipv6",
    }
}

fn capability(c: &Capability) -> String {
    match c {
        Capability::MultiProtocol { afi: 1, safi: 1 } => "IPv4 unicast".into(),
        Capability::MultiProtocol { afi: 2, safi: 1 } => "IPv6 unicast".into(),
        Capability::MultiProtocol { afi, safi } => format!("AFI {afi} SAFI {safi}"),
        Capability::RouteRefresh => "route refresh".into(),
        Capability::ExtendedMessage => "extended message".into(),
        Capability::GracefulRestart { .. } => "graceful restart".into(),
        Capability::FourOctetAs(_) => "4-octet AS".into(),
        Capability::AddPath(_) => "add-path".into(),
        Capability::EnhancedRouteRefresh => "enhanced route refresh".into(),
        Capability::LongLivedGracefulRestart(_) => "long-lived graceful restart".into(),
        Capability::Fqdn { .. } => "host name".into(),
        other => format!("code {}", other.code()),
    }
}
