//! OPEN against OPEN: what we send, whether theirs is acceptable, and what both agreed on.
//!
//! RFC 4271 section 6.2, 5492 (capabilities), 4760 (families), 6793 (4-octet AS), 6286 (identifier), 8654 (extended
//! message), 4724 (graceful restart).

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::Endpoints;
use crate::{
    af::{Family, PerFamily},
    speaker::{AddPath, LONG_LIVED_MAX, PeerConfig},
    wire::{Capability, GrFamily, Notification, Open, WireCx},
};

/// F bit of a family in RFC 9494's capability.
const LONG_LIVED_FORWARDING: u8 = 0x80;

/// Who we are towards every peer at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub asn: u32,
    pub router_id: Ipv4Addr,
    /// RFC 4724 R bit: we have restarted and have not yet advertised everything.
    pub restarting: bool,
    /// RFC 4724 F bit: the forwarding state outlived the last session.
    pub preserved: bool,
}

/// What the peer said about its own restart (RFC 4724 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRestart {
    /// R bit.
    pub restarting: bool,
    /// Seconds for which we keep its routes.
    pub time: u16,
    /// F bit by family; `None`: the family is not restarted gracefully.
    pub preserved: PerFamily<Option<bool>>,
}

/// What a peer said about a family in RFC 9494's capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LongLived {
    /// F bit.
    pub preserved: bool,
    /// Seconds.
    pub time: u32,
}

/// An accepted OPEN: everything that is known about the session. Exists from OpenConfirm on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub ends: Endpoints,
    /// The AS we present.
    pub local_asn: u32,
    pub remote_asn: u32,
    pub remote_id: Ipv4Addr,
    pub ibgp: bool,
    /// Negotiated, seconds; 0: neither hold timer nor KEEPALIVEs.
    pub hold_time: u16,
    /// Seconds between KEEPALIVEs before jitter; 0: none.
    pub keepalive: u16,
    pub families: PerFamily<bool>,
    /// What the peer sends.
    pub read: WireCx,
    /// What we send.
    pub write: WireCx,
    pub route_refresh: bool,
    /// Refreshes have a beginning and an end (RFC 7313).
    #[serde(default)]
    pub enhanced_refresh: bool,
    /// Present when both sides announced graceful restart.
    pub restart: Option<PeerRestart>,
    /// Both sides keep routes over a NOTIFICATION (RFC 8538).
    pub notification_restart: bool,
    /// The peer announced long-lived graceful restart at all (RFC 9494 section 4.3).
    pub long_lived_peer: bool,
    /// By family: what the peer said about long-lived stale routes, if both sides want them.
    pub long_lived: PerFamily<Option<LongLived>>,
    /// Everything the peer announced.
    pub capabilities: Vec<Capability>,
}

/// Our AS towards this peer.
pub fn local_asn(cfg: &PeerConfig, me: &Identity) -> u32 {
    cfg.local_asn.unwrap_or(me.asn)
}

/// The OPEN we send.
pub fn our_open(cfg: &PeerConfig, me: &Identity) -> Open {
    let asn = local_asn(cfg, me);
    let mut capabilities = Vec::with_capacity(8);
    let families = || Family::ALL.into_iter().filter(|f| cfg.families.contains(f));
    for family in families() {
        let (afi, safi) = family.code();
        capabilities.push(Capability::MultiProtocol { afi, safi });
    }
    capabilities.push(Capability::RouteRefresh);
    capabilities.push(Capability::EnhancedRouteRefresh);
    capabilities.push(Capability::ExtendedMessage);
    if cfg.restart_time > 0 {
        capabilities.push(Capability::GracefulRestart {
            restarting: me.restarting,
            notification: cfg.session.notification_restart,
            restart_time: cfg.restart_time.min(4_095),
            families: families()
                .map(|f| GrFamily { afi: f.code().0, safi: f.code().1, forwarding_preserved: me.preserved })
                .collect(),
        });
        if cfg.session.long_lived > 0 {
            let flags = if me.preserved { LONG_LIVED_FORWARDING } else { 0 };
            let time = cfg.session.long_lived.min(LONG_LIVED_MAX);
            capabilities.push(Capability::LongLivedGracefulRestart(
                families().map(|f| (f.code().0, f.code().1, flags, time)).collect(),
            ));
        }
    }
    let add_path = u8::from(cfg.add_path.receive) | (u8::from(cfg.add_path.send.is_some()) << 1);
    if add_path > 0 {
        let all = families().map(|f| (f.code().0, f.code().1, add_path));
        capabilities.push(Capability::AddPath(all.collect()));
    }
    capabilities.push(Capability::FourOctetAs(asn));
    Open { asn, hold_time: cfg.hold_time, router_id: me.router_id, capabilities }
}

/// An OPEN error with its data, and what an operator has to know to mend it.
const fn open_error(subcode: u8, data: Vec<u8>, what: String) -> (Notification, String) {
    (Notification { code: 2, subcode, data }, what)
}

/// Checks the peer's OPEN and computes what holds for the session, or the NOTIFICATION to answer with and what was
/// wrong, in words.
pub fn negotiate(
    cfg: &PeerConfig,
    me: &Identity,
    ends: Endpoints,
    open: &Open,
) -> Result<Session, (Notification, String)> {
    let local_asn = local_asn(cfg, me);
    // AS 0 in the settings: any, which only dynamic neighbors may have.
    if open.asn == 0 || (cfg.asn != 0 && open.asn != cfg.asn) {
        let what = format!("it says AS {}, configured is {}", open.asn, cfg.asn);
        return Err(open_error(2, Vec::new(), what));
    }
    let ibgp = open.asn == local_asn;
    // RFC 6286: non-zero, and unique inside the AS; another AS may use the same number.
    if open.router_id.is_unspecified() || (ibgp && open.router_id == me.router_id) {
        let what = if open.router_id.is_unspecified() {
            "its identifier is 0.0.0.0".to_owned()
        } else {
            format!("its identifier {} is ours, in the same AS", open.router_id)
        };
        return Err(open_error(3, Vec::new(), what));
    }
    if matches!(open.hold_time, 1 | 2) {
        let what = format!("it wants a hold time of {} s; 0, or 3 and more, are allowed", open.hold_time);
        return Err(open_error(6, Vec::new(), what));
    }
    let families = common_families(cfg, open)?;
    let restart = if cfg.restart_time > 0 { peer_restart(open, &families) } else { None };

    let has = |c: &Capability| open.capabilities.contains(c);
    let hold_time = open.hold_time.min(cfg.hold_time);
    let keepalive = match hold_time {
        0 => 0,
        h => cfg.keepalive.unwrap_or(h / 3).min(h / 3).max(1),
    };
    let four_octet_as = open.capabilities.iter().any(|c| matches!(c, Capability::FourOctetAs(_)));
    let wire = WireCx {
        four_octet_as,
        extended_message: has(&Capability::ExtendedMessage),
        add_path: [false; 2],
        ibgp,
    };
    let AddPath { receive, send } = cfg.add_path;
    let directions = PerFamily::from_fn(|f| if families[f] { peer_add_path(open, f) } else { 0 });
    Ok(Session {
        ends,
        local_asn,
        remote_asn: open.asn,
        remote_id: open.router_id,
        ibgp,
        hold_time,
        keepalive,
        families,
        // RFC 7911 section 4: one side sends (2), the other receives (1).
        read: WireCx { add_path: directions.0.map(|d| receive && d & 2 != 0), ..wire },
        write: WireCx { add_path: directions.0.map(|d| send.is_some() && d & 1 != 0), ..wire },
        route_refresh: has(&Capability::RouteRefresh),
        enhanced_refresh: has(&Capability::EnhancedRouteRefresh),
        notification_restart: restart.is_some()
            && cfg.session.notification_restart
            && open
                .capabilities
                .iter()
                .any(|c| matches!(c, Capability::GracefulRestart { notification: true, .. })),
        long_lived_peer: open
            .capabilities
            .iter()
            .any(|c| matches!(c, Capability::LongLivedGracefulRestart(_))),
        long_lived: PerFamily::from_fn(|f| {
            // Without the other capability it says nothing (RFC 9494 section 4.1).
            (restart.is_some() && cfg.session.long_lived > 0 && families[f])
                .then(|| long_lived(open, f))
                .flatten()
        }),
        restart,
        capabilities: open.capabilities.clone(),
    })
}

/// Families both sides want. An OPEN without any multiprotocol capability means IPv4 unicast (RFC 4760 section 8).
fn common_families(cfg: &PeerConfig, open: &Open) -> Result<PerFamily<bool>, (Notification, String)> {
    let announced = || {
        open.capabilities.iter().filter_map(|c| match c {
            Capability::MultiProtocol { afi, safi } => Some((*afi, *safi)),
            _ => None,
        })
    };
    let families = if announced().next().is_none() {
        PerFamily::from_fn(|f| f == Family::Ipv4Unicast && cfg.families.contains(&f))
    } else {
        PerFamily::from_fn(|f| cfg.families.contains(&f) && announced().any(|a| a == f.code()))
    };
    if families.0.contains(&true) {
        return Ok(families);
    }
    // RFC 5492 section 5: name the capability that is missing.
    let mut data = Vec::new();
    for family in Family::ALL.into_iter().filter(|f| cfg.families.contains(f)) {
        let (afi, safi) = family.code();
        data.extend_from_slice(&[1, 4]);
        data.extend_from_slice(&afi.to_be_bytes());
        data.extend_from_slice(&[0, safi]);
    }
    let ours: Vec<_> = Family::ALL.into_iter().filter(|f| cfg.families.contains(f)).collect();
    let ours: Vec<_> = ours.iter().map(ToString::to_string).collect();
    Err(open_error(7, data, format!("it announced no address family of ours ({})", ours.join(", "))))
}

/// What the peer's add-path capability says of a family: 1 it receives, 2 it sends, 3 both. Other values mean nothing,
/// and the first entry of a family counts.
fn peer_add_path(open: &Open, family: Family) -> u8 {
    let entries = open.capabilities.iter().filter_map(|c| match c {
        Capability::AddPath(list) => Some(list),
        _ => None,
    });
    let mut entries =
        entries.flatten().filter(|(afi, safi, d)| (*afi, *safi) == family.code() && (1..=3).contains(d));
    entries.next().map_or(0, |(_, _, d)| *d)
}

/// The peer's graceful restart capability, as far as it concerns negotiated families. The last one counts when it is
/// sent more than once.
fn peer_restart(open: &Open, negotiated: &PerFamily<bool>) -> Option<PeerRestart> {
    open.capabilities.iter().rev().find_map(|c| match c {
        Capability::GracefulRestart { restarting, restart_time, families, .. } => Some(PeerRestart {
            restarting: *restarting,
            time: *restart_time,
            preserved: PerFamily::from_fn(|f| {
                negotiated[f]
                    .then(|| families.iter().find(|g| (g.afi, g.safi) == f.code()))
                    .flatten()
                    .map(|g| g.forwarding_preserved)
            }),
        }),
        _ => None,
    })
}

/// What the peer's long-lived graceful restart capability says about a family. The last one counts.
fn long_lived(open: &Open, family: Family) -> Option<LongLived> {
    open.capabilities
        .iter()
        .rev()
        .find_map(|c| match c {
            Capability::LongLivedGracefulRestart(list) => Some(list),
            _ => None,
        })?
        .iter()
        .find(|(afi, safi, ..)| (*afi, *safi) == family.code())
        .map(|(_, _, flags, time)| LongLived { preserved: flags & LONG_LIVED_FORWARDING != 0, time: *time })
}
