//! What can be asked of a speaker. Nothing here changes anything.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::session::without_policy;
use super::{ConnId, PeerConfig, PeerId, Speaker, SpeakerConfig, identity, neighbor::Neighbor};
use crate::{
    af::PerFamily,
    fsm::{LongLived, PeerRestart, StateKind, our_open},
    rib::{PathView, PeerRoutes},
    time::Mono,
    wire::{AttrSet, Capability},
};

/// A neighbor at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    pub id: PeerId,
    pub name: String,
    pub kind: String,
    pub address: IpAddr,
    pub port: u16,
    pub asn: u32,
    pub state: StateKind,
    /// Since when it is in this state.
    pub since: Mono,
    /// What brought it into this state.
    pub cause: String,
    /// What ended the last session, or the last attempt.
    pub last_error: Option<String>,
    /// What an operator should know of a session that is up: that it carries nothing for want of a policy (RFC 8212).
    pub note: Option<String>,
    /// When the last session ended, and by what.
    pub ended: Option<(Mono, String)>,
    /// Until when it stays down before it may start by itself.
    pub start_at: Option<Mono>,
    /// Until when routes of the last session are kept (RFC 4724).
    pub stale_until: Option<Mono>,
    /// The same of those that are long-lived stale (RFC 9494).
    pub long_until: PerFamily<Option<Mono>>,
    /// Sessions that were established since the start.
    pub sessions: u32,
    /// UPDATEs received since the start.
    pub updates: u64,
    /// Of these, those with faults (RFC 7606).
    #[serde(default)]
    pub faulty: u64,
    /// Counts by family; families that are not negotiated have none (nor routes, unless stale).
    pub routes: PerFamily<PeerRoutes>,
    /// The rest exists from OpenConfirm on.
    pub session: Option<SessionStatus>,
}

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub remote_id: Ipv4Addr,
    pub ibgp: bool,
    /// Seconds.
    pub hold_time: u16,
    /// Seconds.
    pub keepalive: u16,
    pub families: PerFamily<bool>,
    /// Several paths come (RFC 7911).
    pub add_path_in: PerFamily<bool>,
    /// Several paths go.
    pub add_path_out: PerFamily<bool>,
    pub enhanced_refresh: bool,
    pub restart: Option<PeerRestart>,
    /// Also over a NOTIFICATION (RFC 8538).
    pub notification_restart: bool,
    pub long_lived: PerFamily<Option<LongLived>>,
    /// End-of-RIB received.
    pub end_of_rib: PerFamily<bool>,
    /// Everything the peer announced.
    pub capabilities: Vec<Capability>,
}

impl Speaker {
    /// The speaker's own settings.
    pub const fn config(&self) -> &SpeakerConfig {
        &self.cfg
    }

    /// All neighbors, in the order they were configured.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus> {
        self.peers.values().map(|p| self.status_of(p))
    }

    /// One neighbor.
    pub fn peer(&self, id: PeerId) -> Option<PeerStatus> {
        self.peers.get(&id).map(|p| self.status_of(p))
    }

    /// The settings of a neighbor.
    pub fn peer_config(&self, id: PeerId) -> Option<&PeerConfig> {
        self.peers.get(&id).map(|p| &**p.fsm.config())
    }

    /// What our OPEN announces to a neighbor.
    pub fn announces(&self, id: PeerId) -> Vec<Capability> {
        let cfg = self.peer_config(id);
        cfg.map_or_else(Vec::new, |c| our_open(c, &identity(&self.cfg, &self.sync)).capabilities)
    }

    /// The neighbor a connection belongs to.
    pub fn owner(&self, conn: ConnId) -> Option<PeerId> {
        self.conns.get(&conn).copied()
    }

    /// Paths to a prefix (exactly this one), or all, sorted, each with what decided about it.
    pub fn rib(&self, prefix: Option<IpNet>) -> impl Iterator<Item = PathView> {
        self.rib.paths(prefix)
    }

    /// Where packets to a prefix go, in the form of [`FibChange::next_hops`](super::FibChange::next_hops).
    pub fn next_hops_to(&self, prefix: IpNet) -> SmallVec<[IpAddr; 1]> {
        self.rib.next_hops_to(prefix)
    }

    /// What a neighbor has been told: prefix, path identifier (0 without add-path), attributes, next hop.
    pub fn advertised(&self, id: PeerId) -> impl Iterator<Item = (IpNet, u32, AttrSet, Option<IpAddr>)> {
        self.rib.advertised(id)
    }

    fn status_of(&self, p: &Neighbor) -> PeerStatus {
        let cfg = p.fsm.config();
        PeerStatus {
            id: p.id,
            name: cfg.name.clone(),
            kind: cfg.kind.clone(),
            address: cfg.address,
            port: cfg.port,
            asn: match (cfg.asn, p.fsm.session()) {
                (0, Some(s)) => s.remote_asn,
                (asn, _) => asn,
            },
            state: p.fsm.state(),
            since: p.since,
            cause: p.fsm.cause().to_string(),
            last_error: p.last_error.clone(),
            note: p.up.as_ref().and_then(without_policy),
            ended: p.ended.clone(),
            start_at: p.start_at,
            stale_until: p.stale_until,
            long_until: p.long_until,
            sessions: p.sessions,
            updates: p.updates,
            faulty: p.faulty,
            routes: PerFamily::from_fn(|f| self.rib.counts(p.id, f)),
            session: p.fsm.session().map(|s| SessionStatus {
                local: s.ends.local,
                remote: s.ends.remote,
                remote_id: s.remote_id,
                ibgp: s.ibgp,
                hold_time: s.hold_time,
                keepalive: s.keepalive,
                families: s.families,
                add_path_in: PerFamily::from_fn(|f| s.read.add_path(f)),
                add_path_out: PerFamily::from_fn(|f| s.write.add_path(f)),
                enhanced_refresh: s.enhanced_refresh,
                notification_restart: s.notification_restart,
                long_lived: s.long_lived,
                restart: s.restart,
                end_of_rib: p.up.as_ref().map(|u| u.eor).unwrap_or_default(),
                capabilities: s.capabilities.clone(),
            }),
        }
    }
}
