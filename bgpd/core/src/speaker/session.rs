//! What the speaker does while a session is established, and when it begins and ends.

use std::{collections::VecDeque, sync::Arc};

use super::{
    Clear, ConnId, Event, Output, PeerId, Speaker,
    neighbor::{Neighbor, Up},
};
use crate::{
    af::{Family, PerFamily},
    fsm::{Cease, Down, PeerInput, Session, notice},
    rib::RibPeer,
    time::Mono,
    wire::{Message, Notification, RouteRefresh, Update},
};

/// The neighbor as the RIB sees it.
pub(super) fn rib_peer(peer: &Neighbor, session: &Session) -> RibPeer {
    let cfg = peer.fsm.config();
    RibPeer {
        id: peer.id,
        ibgp: session.ibgp,
        client: cfg.reflector_client && session.ibgp,
        router_id: session.remote_id,
        address: cfg.address,
        local_address: session.ends.local.ip().to_canonical(),
        local_asn: session.local_asn,
        allow_own_as: cfg.allow_own_as,
        next_hop: cfg.next_hop,
        policy: Arc::new(cfg.export.clone()),
        families: session.families,
        add_path: PerFamily::from_fn(|f| cfg.add_path.send.filter(|_| session.write.add_path(f))),
        write: session.write,
    }
}

impl Speaker {
    /// A session is established.
    pub(super) fn up(
        &mut self,
        now: Mono,
        id: PeerId,
        conn: ConnId,
        session: Arc<Session>,
        out: &mut VecDeque<Output>,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.sessions = peer.sessions.saturating_add(1);
        let rib = rib_peer(peer, &session);
        peer.up = Some(Up { conn, since: now, session, rib: rib.clone(), eor: PerFamily::default() });
        self.resume(now, id, out);
        self.rib.peer_up(&rib);
        self.sync.touch();
    }

    /// A session has ended.
    pub(super) fn down(&mut self, now: Mono, id: PeerId, down: &Down, out: &mut VecDeque<Output>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(up) = peer.up.take() else { return };
        peer.last_error = Some(down.cause.to_string());
        let keep = self.keep(down, &up);
        let kept = self.rib.peer_down(&up.rib, keep);
        self.suspend(now, id, &up, kept, out);
        self.sync.touch();
    }

    /// An UPDATE; returns what to answer with if the neighbor has sent more than it may.
    pub(super) fn deliver(
        &mut self,
        id: PeerId,
        mut update: Update,
        out: &mut VecDeque<Output>,
    ) -> Option<(ConnId, Notification, String)> {
        let peer = self.peers.get_mut(&id)?;
        let up = peer.up.as_mut()?;
        peer.updates = peer.updates.saturating_add(1);
        for fault in std::mem::take(&mut update.faults) {
            let what = format!("attribute {}: {} ({:?})", fault.code, fault.what, fault.reaction);
            out.push_back(Output::Event(Event::Fault { peer: id, what }));
        }
        let end = update.end_of_rib;
        if let Some(family) = end {
            up.eor[family] = true;
        }
        let limit = peer.fsm.config().max_prefixes;
        let conn = up.conn;
        self.rib.update(&up.rib, update);
        if let Some(family) = end {
            self.end_of_rib(id, family, out);
        }
        let over = Family::ALL
            .into_iter()
            .find(|f| self.rib.received(id, *f) > usize::try_from(limit).unwrap_or(usize::MAX))?;
        let (afi, safi) = over.code();
        Some((conn, notice::maximum_prefixes(afi, safi, limit), format!("more than {limit} prefixes")))
    }

    /// The neighbor wants everything again (RFC 2918); the subtypes of RFC 7313 are not negotiated and ignored.
    pub(super) fn refresh(&mut self, id: PeerId, r: RouteRefresh) {
        if let (0, Some(family)) = (r.subtype, Family::from_code(r.afi, r.safi)) {
            self.rib.refresh(id, family);
        }
    }

    /// An operator's `clear`.
    pub(super) fn clear(&mut self, now: Mono, id: PeerId, how: Clear, out: &mut VecDeque<Output>) {
        match how {
            Clear::Reset => {
                self.drive(now, id, PeerInput::Stop(Cease::AdministrativeReset), out);
                if !self.stopped {
                    self.drive(now, id, PeerInput::Start, out);
                }
            }
            Clear::SoftOut => {
                for family in Family::ALL {
                    self.rib.refresh(id, family);
                }
            }
            Clear::SoftIn => {
                let Some(up) = self.peers.get(&id).and_then(|p| p.up.as_ref()) else { return };
                if !up.session.route_refresh {
                    return;
                }
                for family in Family::ALL.into_iter().filter(|f| up.session.families[*f]) {
                    let (afi, safi) = family.code();
                    let message = Message::RouteRefresh(RouteRefresh { afi, safi, subtype: 0 });
                    out.push_back(Output::Send { conn: up.conn, message });
                }
            }
        }
    }
}
