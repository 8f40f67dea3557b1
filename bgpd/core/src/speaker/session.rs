//! What the speaker does while a session is established, and when it begins and ends.

use std::{collections::VecDeque, sync::Arc};

use ipnet::IpNet;

use super::{
    AddPathSend, Clear, ConnId, Event, ExportPolicy, Output, PeerConfig, PeerId, PrefixAction, Routing,
    Speaker, SpeakerConfig,
    neighbor::{Neighbor, Refreshing, Up},
};
use crate::{
    af::{Family, PerFamily},
    fsm::{Cease, Down, PeerInput, Session, Stop, notice},
    rib::{Inward, MAX_PATHS, Rewrite, RibPeer},
    time::Mono,
    wire::{AttrFault, Message, Notification, RouteRefresh, Update, refresh},
};

/// The neighbor as the RIB sees it.
pub(super) fn rib_peer(peer: &Neighbor, session: &Session, own: &SpeakerConfig, draining: bool) -> RibPeer {
    let cfg = peer.fsm.config();
    let options = &cfg.attributes;
    let external = !session.ibgp;
    let local_as = cfg.local_asn.filter(|asn| *asn != own.asn && external);
    let (closed_in, closed_out) = closed(cfg, session.ibgp);
    RibPeer {
        id: peer.id,
        ibgp: session.ibgp,
        client: cfg.reflector_client && session.ibgp,
        router_id: session.remote_id,
        address: cfg.address,
        local_address: session.ends.local.ip().to_canonical(),
        own_next_hop: options.own_next_hop,
        local_asn: session.local_asn,
        cluster_id: own.cluster_id.unwrap_or(own.router_id),
        allow_own_as: cfg.allow_own_as,
        next_hop: cfg.next_hop,
        policy: Arc::new(cfg.export.clone()),
        import: cfg.import.clone(),
        families: session.families,
        add_path: PerFamily::from_fn(|f| {
            cfg.add_path.send.filter(|send| session.write.add_path(f) && *send != AddPathSend::Single)
        }),
        write: session.write,
        rewrite: Rewrite {
            override_as: (options.as_override && external).then_some(session.remote_asn),
            remove_private: options.remove_private,
            show_as: local_as.filter(|_| options.local_as_show_own).map(|_| own.asn),
            long_lived: session.long_lived_peer,
            draining,
            default_route: options.default_route.then_some(own.local_pref),
            closed: closed_out,
        },
        inward: Inward {
            first_as: Some(session.remote_asn).filter(|_| options.enforce_first_as && external),
            prepend: local_as.filter(|_| options.local_as_prepend),
            honour_shutdown: options.honour_shutdown.unwrap_or(external),
            closed: closed_in,
        },
    }
}

/// Whether nothing is accepted from, and nothing sent to, a neighbor for want of a policy (RFC 8212).
fn closed(cfg: &PeerConfig, ibgp: bool) -> (bool, bool) {
    let required = cfg.attributes.require_policy && !ibgp;
    (required && cfg.import.is_empty(), required && cfg.export == ExportPolicy::default())
}

/// What to say of a session that carries nothing for want of a policy.
pub(super) fn without_policy(up: &Up) -> Option<String> {
    let what = match (up.rib.inward.closed, up.rib.rewrite.closed) {
        (true, true) => "accepted from it or sent to it",
        (true, false) => "accepted from it",
        (false, true) => "sent to it",
        (false, false) => return None,
    };
    // Somebody has asked for that one by name.
    let but = match up.rib.rewrite.default_route.filter(|_| up.rib.rewrite.closed) {
        Some(_) => " but the default route of defaultOriginate",
        None => "",
    };
    Some(format!("external peer without a policy: nothing is {what}{but} (RFC 8212)"))
}

/// A session that carries more than it may.
pub(super) struct Excess {
    pub(super) conn: ConnId,
    pub(super) notification: Notification,
    pub(super) what: String,
    pub(super) action: PrefixAction,
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
        peer.warned = PerFamily::default();
        let rib = rib_peer(peer, &session, &self.cfg, self.draining);
        peer.up = Some(Up {
            conn,
            since: now,
            session,
            rib: rib.clone(),
            eor: PerFamily::default(),
            refreshing: PerFamily::default(),
        });
        if let Some(what) = peer.up.as_ref().and_then(without_policy) {
            let event = warning(peer, what);
            out.push_back(event);
        }
        self.resume(now, id, out);
        self.rib.peer_up(&rib);
        self.sync.touch();
    }

    /// A session has ended.
    pub(super) fn down(&mut self, now: Mono, id: PeerId, down: &Down, out: &mut VecDeque<Output>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(up) = peer.up.take() else { return };
        let cause = down.cause.to_string();
        peer.ended = Some((now, cause.clone()));
        peer.last_error = Some(cause);
        let keep = self.keep(down, &up);
        let again = PerFamily::from_fn(|f| up.session.long_lived[f].is_some_and(|l| l.time > 0));
        let kept = self.rib.peer_down(&up.rib, keep, again);
        self.suspend(now, id, &up, kept, out);
        self.sync.touch();
    }

    /// We are about to leave ([`Input::Drain`](super::Input::Drain)).
    pub(super) fn drain(&mut self) {
        self.draining = true;
        let all: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in all {
            self.treat_anew(id);
        }
    }

    /// Another cluster, LOCAL_PREF or limit of paths: routes are treated anew, sessions go on.
    pub(super) fn set_routing(&mut self, routing: Routing) {
        let old = self.cfg.routing();
        // The limit of paths counts from the next UPDATE on.
        self.cfg.set_routing(routing);
        self.rib.set_routing(routing);
        let all: Vec<PeerId> = self.peers.keys().copied().collect();
        if (routing.cluster_id, routing.local_pref) != (old.cluster_id, old.local_pref) {
            for id in all {
                self.treat_anew(id);
            }
        }
    }

    /// Settings that need no new session have changed.
    pub(super) fn treat_anew(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(mut up) = peer.up.take() else {
            // What is kept while the neighbor restarts is used by the same rules.
            if peer.keeps() {
                self.rib.set_import(id, &peer.fsm.config().import);
            }
            return;
        };
        let mut rib = rib_peer(peer, &up.session, &self.cfg, self.draining);
        // Who was told several paths is told several as long as the session lasts.
        for family in Family::ALL {
            rib.add_path[family] = rib.add_path[family].or(up.rib.add_path[family]);
        }
        self.rib.peer_changed(&up.rib, &rib);
        up.rib = rib;
        peer.up = Some(up);
    }

    /// An UPDATE; returns what to do if the neighbor has sent more than it may.
    pub(super) fn deliver(
        &mut self,
        id: PeerId,
        mut update: Update,
        out: &mut VecDeque<Output>,
    ) -> Option<Excess> {
        let peer = self.peers.get_mut(&id)?;
        let up = peer.up.as_mut()?;
        peer.updates = peer.updates.saturating_add(1);
        let faults = std::mem::take(&mut update.faults);
        if !faults.is_empty() {
            peer.faulty = peer.faulty.saturating_add(1);
            let what = faulty(&faults, update.first_prefix());
            out.push_back(Output::Event(Event::Fault { peer: id, what }));
        }
        let end = update.end_of_rib;
        if let Some(family) = end {
            up.eor[family] = true;
        }
        if !update.reach.is_empty() {
            up.refreshing.0.iter_mut().flatten().for_each(|r| r.came = true);
        }
        let conn = up.conn;
        #[cfg(debug_assertions)]
        let seen = self.fault.map(|_| update.clone());
        let crowded = self.rib.update(&up.rib, update);
        #[cfg(debug_assertions)]
        if let Some(seen) = seen {
            self.strike(true, &seen);
        }
        if let Some(family) = end {
            self.end_of_rib(id, family, out);
        }
        match crowded {
            Some(prefix) => self.crowded(id, conn, prefix),
            None => self.too_many(id, conn, out).or_else(|| self.no_room(conn)),
        }
    }

    /// More paths to one prefix than a neighbor may have: they would be left out, so a warning is not enough.
    fn crowded(&self, id: PeerId, conn: ConnId, prefix: IpNet) -> Option<Excess> {
        let action = self.peers.get(&id)?.fsm.config().session.prefixes.action;
        let what = format!("more than {MAX_PATHS} paths to {prefix}");
        Some(Excess { conn, notification: Cease::MaximumPrefixes.notification(), what, action })
    }

    /// More prefixes than a neighbor may have.
    pub(super) fn too_many(
        &mut self,
        id: PeerId,
        conn: ConnId,
        out: &mut VecDeque<Output>,
    ) -> Option<Excess> {
        let peer = self.peers.get_mut(&id)?;
        let cfg = Arc::clone(peer.fsm.config());
        let limits = cfg.session.prefixes;
        for family in Family::ALL {
            let limit = limits.of(family, cfg.max_prefixes);
            let most = usize::try_from(limit).unwrap_or(usize::MAX);
            // Until End-of-RIB what is kept from before its restart stands beside what takes its place. It may be as much
            // again, and not more, however often the neighbor restarts.
            let count = self.rib.received(id, family) - self.rib.stale(id, family).min(most);
            let over = count > most;
            let warn_from = u64::from(limit) * u64::from(limits.warn_at) / 100;
            let high = limits.warn_at > 0 && u64::try_from(count).unwrap_or(u64::MAX) >= warn_from;
            let only_warn = limits.action == PrefixAction::Warn;
            if over && !only_warn {
                let (afi, safi) = family.code();
                let notification = notice::maximum_prefixes(afi, safi, limit);
                let what = format!("more than {limit} prefixes");
                return Some(Excess { conn, notification, what, action: limits.action });
            }
            if !high && !over {
                peer.warned[family] = false;
            } else if !std::mem::replace(&mut peer.warned[family], true) {
                let event = warning(peer, format!("{count} prefixes, the limit is {limit} ({family:?})"));
                out.push_back(event);
            }
        }
        None
    }

    /// More paths of all neighbors together than there may be.
    fn no_room(&self, conn: ConnId) -> Option<Excess> {
        if self.cfg.max_paths > 0 {
            // What is kept from before a restart and what takes its place count once.
            let count = |p: PeerId, f| {
                let (all, stale) = (self.rib.received(p, f), self.rib.stale(p, f));
                stale.max(all - stale)
            };
            let counts = self.peers.keys().flat_map(|p| Family::ALL.map(|f| count(*p, f)));
            if counts.sum::<usize>() > self.cfg.max_paths {
                return Some(Excess {
                    conn,
                    notification: Cease::OutOfResources.notification(),
                    what: format!("more than {} paths of all peers", self.cfg.max_paths),
                    action: PrefixAction::Restart(0),
                });
            }
        }
        None
    }

    /// Ends a session that carries too much, as its settings say.
    pub(super) fn put_down(&mut self, now: Mono, id: PeerId, e: Excess, out: &mut VecDeque<Output>) {
        let start_at = match e.action {
            PrefixAction::Warn | PrefixAction::Restart(0) => {
                self.drive(now, id, PeerInput::Bad(e.conn, e.notification, e.what), out);
                return;
            }
            PrefixAction::Restart(seconds) => Some(now.plus_ms(u64::from(seconds) * 1_000)),
            PrefixAction::StayDown => None,
        };
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.start_at = start_at;
            peer.held = start_at.is_none();
            let then = start_at.map_or("until it is cleared", |_| "until the restart timer is over");
            out.push_back(warning(peer, format!("{}: down {then}", e.what)));
        }
        let stop = Stop { why: Cease::MaximumPrefixes, data: e.notification.data };
        self.drive(now, id, PeerInput::Stop(stop), out);
    }

    /// The time a neighbor had to stay down may be over.
    pub(super) fn start_time(&mut self, now: Mono, id: PeerId, out: &mut VecDeque<Output>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.start_at.is_some_and(|at| at <= now) {
            peer.start_at = None;
            if !self.stopped {
                self.drive(now, id, PeerInput::Start, out);
            }
        }
    }

    /// Ends a session with a reason, and starts it again.
    pub(super) fn reset(&mut self, now: Mono, id: PeerId, stop: Stop, out: &mut VecDeque<Output>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.may_start();
        let down = peer.fsm.config().session.shutdown.is_some();
        self.drive(now, id, PeerInput::Stop(stop), out);
        if !self.stopped && !down {
            self.drive(now, id, PeerInput::Start, out);
        }
    }

    /// Asks the neighbor to send everything again; false if it cannot be asked.
    pub(super) fn ask_again(&self, id: PeerId, out: &mut VecDeque<Output>) -> bool {
        let Some(up) = self.peers.get(&id).and_then(|p| p.up.as_ref()) else { return true };
        if !up.session.route_refresh {
            return false;
        }
        for family in Family::ALL.into_iter().filter(|f| up.session.families[*f]) {
            let message = Message::RouteRefresh(RouteRefresh::of(family, refresh::REQUEST));
            out.push_back(Output::Send { conn: up.conn, message });
        }
        true
    }

    /// ROUTE-REFRESH: the neighbor wants everything again (RFC 2918), or says where its answer begins and ends (RFC 7313).
    /// Families and subtypes that were not agreed on are ignored.
    pub(super) fn refresh(&mut self, now: Mono, id: PeerId, r: RouteRefresh, out: &mut VecDeque<Output>) {
        let Some(family) = Family::from_code(r.afi, r.safi) else { return };
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let wait = u64::from(peer.fsm.config().session.stale_time) * 1_000;
        let Some(up) = peer.up.as_mut().filter(|up| up.session.families[family]) else { return };
        let enhanced = up.session.enhanced_refresh;
        match r.subtype {
            refresh::REQUEST => self.rib.refresh(id, family, enhanced),
            // Before End-of-RIB of a restarted neighbor its routes are complete in another way (RFC 7313 section 4.2).
            refresh::BEGIN if enhanced && (up.eor[family] || up.session.restart.is_none()) => {
                let anew = Refreshing::begin(&mut up.refreshing[family], now.plus_ms(wait));
                if anew {
                    self.rib.begin_refresh(id, family);
                }
            }
            refresh::END if enhanced && up.refreshing[family].is_some() => {
                self.end_refresh(id, family, "a route refresh has ended", out);
            }
            _ => {}
        }
    }

    /// The time for the end of a refresh may be over.
    pub(super) fn refresh_time(&mut self, now: Mono, id: PeerId, out: &mut VecDeque<Output>) {
        for family in Family::ALL {
            let up = self.peers.get(&id).and_then(|p| p.up.as_ref());
            if up.is_some_and(|up| up.refreshing[family].is_some_and(|r| r.until <= now)) {
                self.end_refresh(id, family, "the end of a route refresh did not come in time", out);
            }
        }
    }

    fn end_refresh(&mut self, id: PeerId, family: Family, what: &str, out: &mut VecDeque<Output>) {
        let gone = self.rib.end_refresh(id, family);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if let Some(up) = &mut peer.up {
            up.refreshing[family] = None;
        }
        if gone > 0 {
            out.push_back(warning(peer, format!("{what}: {gone} routes it did not repeat are dropped")));
        }
    }

    /// An operator's `clear`.
    pub(super) fn clear(&mut self, now: Mono, id: PeerId, how: Clear, out: &mut VecDeque<Output>) {
        match how {
            Clear::Reset => {
                let text = self.farewell(id);
                self.reset(now, id, Stop::with_text(Cease::AdministrativeReset, &text), out);
            }
            Clear::SoftOut => {
                let up = self.peers.get(&id).and_then(|p| p.up.as_ref());
                let enhanced = up.is_some_and(|up| up.session.enhanced_refresh);
                for family in Family::ALL {
                    self.rib.refresh(id, family, enhanced);
                }
            }
            Clear::SoftIn => {
                self.ask_again(id, out);
            }
        }
    }

    /// The text for goodbyes to a neighbor.
    pub(super) fn farewell(&self, id: PeerId) -> String {
        self.peers.get(&id).map(|p| p.fsm.config().session.farewell.clone()).unwrap_or_default()
    }
}

/// What is wrong with an UPDATE, in one line.
fn faulty(faults: &[AttrFault], prefix: Option<IpNet>) -> String {
    const NAMED: usize = 3;
    let mut named: Vec<String> = faults
        .iter()
        .take(NAMED)
        .map(|f| format!("attribute {}: {} ({:?})", f.code, f.what, f.reaction))
        .collect();
    if faults.len() > NAMED {
        named.push(format!("{} more", faults.len() - NAMED));
    }
    let of = prefix.map(|p| format!("; its first prefix is {p}")).unwrap_or_default();
    named.join("; ") + &of
}

fn warning(peer: &Neighbor, what: String) -> Output {
    Output::Event(Event::Warning { peer: peer.id, name: peer.fsm.config().name.clone(), what })
}
