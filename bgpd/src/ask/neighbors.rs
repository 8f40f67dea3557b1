//! Neighbors in full: state, counts, what was agreed on.

use std::collections::BTreeMap;

use brindle_bgpd_core::{
    af::{Family, PerFamily},
    policy::Policy,
    speaker::{AddPathSend, NextHopPolicy, PeerConfig, PeerId, PeerStatus, PrefixAction, RouteOptions},
    time::Mono,
};
use brindle_config_core::status::bgp::{FamilyState, LastReset, Neighbor, NeighborSettings, SessionFacts};

use super::{SCAN, capabilities};
use crate::handle::{Handle, Seen, Unanswered};

/// Paths that were received and may not be used.
pub(crate) type Unusable = PerFamily<BTreeMap<PeerId, usize>>;

/// Counts them, a piece at a time.
pub(crate) async fn unusable(handle: &Handle) -> Result<Unusable, Unanswered> {
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
    let config = s.speaker.and_then(|s| s.peer_config(p.id));
    let left = |until: Option<Mono>| until.map(|at| at.since_ms(s.now));
    let families: Vec<FamilyState> = Family::ALL
        .into_iter()
        .map(|f| {
            let (r, bad) = (p.routes[f], unusable[f].get(&p.id).copied().unwrap_or(0));
            let session = p.session.as_ref();
            FamilyState {
                family: name(f).into(),
                asked: config.is_some_and(|c| c.families.contains(&f)),
                negotiated: session.is_some_and(|s| s.families[f]),
                add_path_in: session.is_some_and(|s| s.add_path_in[f]),
                add_path_out: session.is_some_and(|s| s.add_path_out[f]),
                max_prefixes: config.map_or(0, |c| c.session.prefixes.of(f, c.max_prefixes)),
                forwarding_kept: session.and_then(|s| s.restart).and_then(|r| r.preserved[f]),
                long_lived_time: session.and_then(|s| s.long_lived[f]).map(|l| l.time),
                long_lived_for_ms: left(p.long_until[f]),
                received: r.received,
                // Counted in another turn: routes may have gone since.
                accepted: r.received.saturating_sub(bad),
                stale: r.stale,
                advertised: r.advertised,
                waiting: r.waiting,
                end_of_rib: session.is_some_and(|s| s.end_of_rib[f]),
            }
        })
        .collect();
    let sum = |of: fn(&FamilyState) -> usize| families.iter().map(of).sum();
    let ours = s.speaker.map(|s| s.announces(p.id)).unwrap_or_default();
    Neighbor {
        received: sum(|f| f.received),
        accepted: sum(|f| f.accepted),
        advertised: sum(|f| f.advertised),
        waiting: sum(|f| f.waiting),
        families,
        capabilities: capabilities::both(&ours, p.session.as_ref()),
        messages_received: traffic.received,
        messages_sent: traffic.sent,
        faulty_updates: p.faulty,
        settings: config.map(settings).unwrap_or_default(),
        last_reset: p.ended.map(|(at, why)| LastReset { ago_ms: s.now.since_ms(at), why }),
        held_down_ms: left(p.start_at),
        stale_for_ms: left(p.stale_until),
        session: p.session.map(|s| SessionFacts {
            local: s.local.to_string(),
            remote: s.remote.to_string(),
            remote_id: s.remote_id.to_string(),
            ibgp: s.ibgp,
            hold_time: s.hold_time,
            keepalive: s.keepalive,
            capabilities: s.capabilities.iter().map(capabilities::name).collect(),
            restart_time: s.restart.map(|r| r.time),
            restarting: s.restart.is_some_and(|r| r.restarting),
            notification_restart: s.notification_restart,
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

fn settings(c: &PeerConfig) -> NeighborSettings {
    let (session, limits) = (&c.session, c.session.prefixes);
    let names = |policy: &Policy| policy.names().map(str::to_owned).collect();
    NeighborSettings {
        local_asn: c.local_asn,
        local_address: c.local_address,
        interface: session.interface.clone(),
        multihop: session.hops,
        passive: c.passive,
        hold_time: c.hold_time,
        keepalive: c.keepalive,
        connect_retry: c.connect_retry,
        delay_open: session.delay_open,
        send_hold: session.send_hold,
        restart_time: c.restart_time,
        restart_limit: session.restart_limit,
        stale_time: session.stale_time,
        long_lived_time: session.long_lived,
        notification_restart: session.notification_restart,
        max_prefixes: c.max_prefixes,
        prefix_warning: limits.warn_at,
        prefix_action: match limits.action {
            PrefixAction::Warn => "warn".into(),
            PrefixAction::Restart(0) => "restart".into(),
            PrefixAction::Restart(seconds) => format!("restart after {seconds} s"),
            PrefixAction::StayDown => "stay down".into(),
        },
        add_path_receive: c.add_path.receive,
        add_path_send: c.add_path.send.map(|send| match send {
            AddPathSend::All => "all".into(),
            AddPathSend::Best(n) => format!("best {n}"),
            AddPathSend::Single => "one".into(),
        }),
        import_filters: names(&c.import),
        export_filters: names(&c.export.filters),
        allow_own_as: c.allow_own_as,
        route_options: route_options(&c.attributes),
        shutdown: session.shutdown.clone(),
        reflector_client: c.reflector_client,
        next_hop: match c.next_hop {
            NextHopPolicy::Auto => "auto",
            NextHopPolicy::SelfAddress => "self",
            NextHopPolicy::Keep => "keep",
        }
        .into(),
        ttl_security: c.ttl,
        password: c.password.is_some(),
    }
}

/// What is done to attributes, as it is called in configuration files.
fn route_options(o: &RouteOptions) -> Vec<String> {
    // Named one by one, so that a new option is not forgotten.
    let RouteOptions {
        as_override,
        remove_private,
        local_as_prepend,
        local_as_show_own,
        honour_shutdown,
        default_route,
        enforce_first_as,
        require_policy,
        own_next_hop,
    } = *o;
    let all = [
        (as_override, "asOverride"),
        (remove_private, "removePrivateAS"),
        (local_as_prepend, "localASPrepend"),
        (local_as_show_own, "localASShowOwn"),
        (honour_shutdown == Some(true), "honourGracefulShutdown"),
        (honour_shutdown == Some(false), "honourGracefulShutdown: false"),
        (default_route, "defaultOriginate"),
        (enforce_first_as, "enforceFirstAS"),
        (require_policy, "needs a policy"),
    ];
    let named = all.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_owned());
    let ours = |f: Family| own_next_hop[f].map(|a| format!("next hop of {} routes {a}", name(f)));
    named.chain(Family::ALL.into_iter().filter_map(ours)).collect()
}

/// As it stands in configuration files.
pub(crate) const fn name(family: Family) -> &'static str {
    match family {
        Family::Ipv4Unicast => "ipv4",
        Family::Ipv6Unicast => "ipv6",
    }
}
