//! A neighbor: up to two connections, their collision (RFC 4271 section 6.8), administrative start and stop.
//!
//! `primary` carries the wish for a session: it dials, waits, backs off. `second` exists only while somebody has
//! connected to us although the primary is busy; it takes the primary's place as soon as that has no transport.

use std::{net::Ipv4Addr, sync::Arc};

use super::{
    Action, Actions, Cause, Cease, Conn, Endpoints, Env, Event, Identity, Jitter, Session, Side, StateKind,
    Stop,
    negotiate::{local_asn, negotiate},
};
use crate::{
    speaker::{ConnId, DownReason, PeerConfig},
    time::Mono,
    wire::{Message, Notification, Open},
};

/// An established session younger than this is not given up for a newcomer: the peer merely dialled as well.
const FRESH_MS: u64 = 5_000;

/// What happens to a neighbor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerInput {
    Start,
    Stop(Stop),
    Connected(ConnId, Endpoints),
    Accepted(ConnId, Endpoints),
    Lost(ConnId, DownReason),
    Message(ConnId, Message),
    Bad(ConnId, Notification, String),
    SendStalled(ConnId),
    Heard(ConnId),
}

/// Whose connection survives a collision: that of the higher identifier (RFC 4271 section 6.8), or of the higher AS
/// where two ASes use the same identifier (RFC 6286 section 2.3).
pub fn survivor(our_id: Ipv4Addr, our_as: u32, their_id: Ipv4Addr, their_as: u32) -> Side {
    if (our_id, our_as) > (their_id, their_as) { Side::Us } else { Side::Them }
}

/// One neighbor.
#[derive(Debug)]
pub struct Peer {
    cfg: Arc<PeerConfig>,
    primary: Conn,
    second: Option<Conn>,
    jitter: Jitter,
    started: bool,
}

impl Peer {
    /// A neighbor that is not started yet.
    pub fn new(cfg: Arc<PeerConfig>, seed: u64) -> Self {
        let mut jitter = Jitter::new(seed);
        let primary = Conn::new(Arc::clone(&cfg), Jitter::new(jitter.next()));
        Self { cfg, primary, second: None, jitter, started: false }
    }

    /// Its settings.
    pub const fn config(&self) -> &Arc<PeerConfig> {
        &self.cfg
    }

    /// New settings that need no new session.
    pub fn set_config(&mut self, cfg: Arc<PeerConfig>) {
        self.primary.set_config(Arc::clone(&cfg));
        if let Some(c) = &mut self.second {
            c.set_config(Arc::clone(&cfg));
        }
        self.cfg = cfg;
    }

    /// The state of the connection that got furthest.
    pub fn state(&self) -> StateKind {
        self.foremost().state()
    }

    /// Why the neighbor is in its state.
    pub fn cause(&self) -> &Cause {
        self.foremost().cause()
    }

    /// The session, from OpenConfirm on.
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.foremost().session()
    }

    /// The established connection.
    pub fn established(&self) -> Option<ConnId> {
        self.conns().find(|c| c.state() == StateKind::Established).and_then(Conn::id)
    }

    /// Whether it is administratively up.
    pub const fn started(&self) -> bool {
        self.started
    }

    /// Every transport connection and dial of this neighbor.
    pub fn ids(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.conns().filter_map(Conn::id)
    }

    /// When `on_time` has something to do.
    pub fn deadline(&self) -> Option<Mono> {
        self.conns().filter_map(Conn::deadline).min()
    }

    pub(super) fn conns(&self) -> impl Iterator<Item = &Conn> {
        std::iter::once(&self.primary).chain(&self.second)
    }

    fn foremost(&self) -> &Conn {
        match &self.second {
            Some(s) if s.state() > self.primary.state() => s,
            Some(_) | None => &self.primary,
        }
    }

    fn by_id(&mut self, id: ConnId) -> Option<(&mut Conn, Option<&mut Conn>)> {
        if self.primary.id() == Some(id) {
            return Some((&mut self.primary, self.second.as_mut()));
        }
        match &mut self.second {
            Some(s) if s.id() == Some(id) => Some((s, Some(&mut self.primary))),
            Some(_) | None => None,
        }
    }

    /// Every timer that is due.
    pub fn on_time(&mut self, env: &mut Env<'_>, out: &mut Actions) {
        self.primary.on_time(env, out);
        if let Some(s) = &mut self.second {
            s.on_time(env, out);
        }
        self.tidy(env, out);
    }

    /// One input. Returns false when it names a connection that is not (or no longer) this neighbor's.
    pub fn handle(&mut self, env: &mut Env<'_>, input: PeerInput, out: &mut Actions) -> bool {
        let known = match input {
            PeerInput::Start => {
                self.started = true;
                self.primary.handle(env, Event::Start, out);
                true
            }
            PeerInput::Stop(why) => {
                self.started = false;
                self.primary.handle(env, Event::Stop(why.clone()), out);
                if let Some(s) = &mut self.second {
                    s.handle(env, Event::Stop(why), out);
                }
                true
            }
            PeerInput::Accepted(id, ends) => {
                self.accept(env, id, ends, out);
                true
            }
            PeerInput::Connected(id, ends) => self.connected(env, id, ends, out),
            PeerInput::Lost(id, why) => {
                let (DownReason::ConnectFailed(text) | DownReason::Closed(text)) = why;
                self.pass(env, id, Event::TransportDown(text), out)
            }
            PeerInput::Message(id, Message::Open(open)) => self.opened(env, id, open, out),
            PeerInput::Message(id, message) => {
                let event = match message {
                    Message::Open(open) => Event::Open(open),
                    Message::Update(u) => Event::Update(u),
                    Message::Notification(n) => Event::Notification(n),
                    Message::Keepalive => Event::Keepalive,
                    Message::RouteRefresh(r) => Event::RouteRefresh(r),
                };
                self.pass(env, id, event, out)
            }
            PeerInput::Bad(id, n, what) => self.pass(env, id, Event::Bad(n, what), out),
            PeerInput::SendStalled(id) => self.pass(env, id, Event::SendHoldExpired, out),
            PeerInput::Heard(id) => self.pass(env, id, Event::Heard, out),
        };
        self.tidy(env, out);
        known
    }

    fn pass(&mut self, env: &mut Env<'_>, id: ConnId, event: Event, out: &mut Actions) -> bool {
        let Some((conn, _)) = self.by_id(id) else { return false };
        conn.handle(env, event, out);
        true
    }

    /// Our dial succeeded.
    fn connected(&mut self, env: &mut Env<'_>, id: ConnId, ends: Endpoints, out: &mut Actions) -> bool {
        let Some((conn, other)) = self.by_id(id) else { return false };
        if conn.state() != StateKind::Connect {
            return true;
        }
        if other.is_some_and(|o| o.state() == StateKind::Established) {
            conn.handle(env, Event::Collision, out);
        } else {
            conn.handle(env, Event::TransportUp(id, ends), out);
        }
        true
    }

    /// Somebody at the peer's address connected.
    fn accept(&mut self, env: &mut Env<'_>, id: ConnId, ends: Endpoints, out: &mut Actions) {
        match self.primary.state() {
            // Stopped, or backing off after an error (RFC 4486 section 4).
            StateKind::Idle => reject(id, Cease::ConnectionRejected, out),
            StateKind::Active if self.primary.id().is_none() => {
                self.primary.handle(env, Event::TransportUp(id, ends), out);
            }
            StateKind::Established if !self.may_be_replaced(env.now) => {
                reject(id, Cease::CollisionResolution, out);
            }
            StateKind::Connect
            | StateKind::Active
            | StateKind::OpenSent
            | StateKind::OpenConfirm
            | StateKind::Established => {
                // A peer that connects again has given up its earlier attempt.
                if let Some(old) = &mut self.second {
                    old.handle(env, Event::Collision, out);
                }
                let mut conn = Conn::new(Arc::clone(&self.cfg), Jitter::new(self.jitter.next()));
                conn.inherit(&self.primary);
                conn.listen();
                conn.handle(env, Event::TransportUp(id, ends), out);
                self.second = Some(conn);
            }
        }
    }

    /// An established session yields to a newcomer only if the peer can restart gracefully (RFC 4724 section 4.2: its new
    /// connection is the end of the old one) and it is not brand-new.
    fn may_be_replaced(&self, now: Mono) -> bool {
        self.primary.up_since().is_some_and(|at| now.since_ms(at) >= FRESH_MS)
            && self.primary.session().is_some_and(|s| s.restart.is_some())
    }

    /// An OPEN arrived: the identifier of the peer is known now, so a collision is decided before it is answered.
    fn opened(&mut self, env: &mut Env<'_>, id: ConnId, open: Open, out: &mut Actions) -> bool {
        let cfg = Arc::clone(&self.cfg);
        let replace = self.may_be_replaced(env.now);
        let Some((conn, other)) = self.by_id(id) else { return false };
        let acceptable = conn.awaits_open()
            && conn.ends().is_some_and(|ends| negotiate(&cfg, &env.me, ends, &open).is_ok());
        if let (true, Some(other)) = (acceptable, other) {
            let keep = survivor_of(&cfg, &env.me, &open);
            match other.state() {
                // A dial that has not connected: it is given up only if it could not win.
                StateKind::Connect if !other.awaits_open() => {
                    if keep == Side::Them {
                        other.handle(env, Event::Collision, out);
                    }
                }
                StateKind::Active if !other.awaits_open() => {}
                StateKind::Idle => {}
                StateKind::Connect | StateKind::Active | StateKind::OpenSent | StateKind::OpenConfirm => {
                    if conn.side() == Some(keep) {
                        other.handle(env, Event::Collision, out);
                    } else {
                        conn.handle(env, Event::Collision, out);
                        return true;
                    }
                }
                StateKind::Established => {
                    // Another identifier is another speaker at this address, unless it says that it has restarted.
                    let same = other.session().is_some_and(|s| s.remote_id == open.router_id);
                    if replace && (same || restarts(&open)) {
                        other.handle(env, Event::Collision, out);
                    } else {
                        conn.handle(env, Event::Collision, out);
                        return true;
                    }
                }
            }
        }
        conn.handle(env, Event::Open(open), out);
        true
    }

    /// Keeps `primary` the connection that matters and drops a second one that has ended.
    fn tidy(&mut self, env: &mut Env<'_>, out: &mut Actions) {
        let Some(mut second) = self.second.take() else { return };
        // Freshly established: what else was under way has lost. A newcomer to an older session waits for its OPEN.
        if self.primary.up_since().is_some_and(|at| env.now.since_ms(at) < FRESH_MS) {
            second.handle(env, Event::Collision, out);
        }
        if second.id().is_none() {
            // What went wrong on the accepted connection counts for the neighbor.
            if self.primary.id().is_none() || self.primary.state() == StateKind::Connect {
                self.primary.inherit(&second);
            }
            return;
        }
        if second.state() == StateKind::Established && self.primary.id().is_some() {
            self.primary.handle(env, Event::Collision, out);
        }
        if self.primary.id().is_none() {
            self.primary = second;
        } else {
            self.second = Some(second);
        }
    }
}

/// Turns a connection away with the reason.
fn reject(id: ConnId, why: Cease, out: &mut Actions) {
    out.push_back((id, Action::Send(Message::Notification(why.notification()))));
    out.push_back((id, Action::Close));
}

fn survivor_of(cfg: &PeerConfig, me: &Identity, open: &Open) -> Side {
    survivor(me.router_id, local_asn(cfg, me), open.router_id, open.asn)
}

/// R bit (RFC 4724 section 3).
fn restarts(open: &Open) -> bool {
    open.capabilities
        .iter()
        .any(|c| matches!(c, crate::wire::Capability::GracefulRestart { restarting: true, .. }))
}
