//! One connection: a method per state, every event named in each. RFC 4271 section 8.2.2, 6608, 9687.
//!
//! Deviations from the text, on purpose: a lost transport leads to Active (the peer may reconnect at once) and not
//! through Idle; retries of a refused dial start at half a second and grow to ConnectRetryTime; errors are damped by
//! IdleHoldTime, which doubles from one second to a minute.

use std::{mem, sync::Arc};

use super::{
    Action, Actions, Cause, Cease, Down, Endpoints, Env, Event, Jitter, Session, Side, StateKind, Timer,
    TimerTable,
    negotiate::{negotiate, our_open},
    notice,
};
use crate::{
    speaker::{ConnId, PeerConfig},
    time::Mono,
    wire::{Message, Notification, Open},
};

/// Time for the peer's OPEN (RFC 4271 section 8.2.2 suggests 4 minutes), milliseconds.
const OPEN_HOLD_MS: u64 = 240_000;
/// First and longest back-off after an error.
const BACKOFF_MIN_MS: u64 = 1_000;
const BACKOFF_MAX_MS: u64 = 60_000;
/// First retry of a dial that failed.
const RETRY_MIN_MS: u64 = 500;
/// A session that lived this long has earned a fresh start.
const STABLE_MS: u64 = 60_000;

/// States with what belongs to them: what is negotiated exists only where an OPEN has been accepted.
#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Connect,
    Active,
    /// Connect or Active with a transport, while DelayOpenTimer runs.
    Delayed(Endpoints),
    OpenSent(Endpoints),
    OpenConfirm(Arc<Session>),
    Established(Arc<Session>, Mono),
}

impl State {
    const fn kind(&self) -> StateKind {
        match self {
            Self::Idle => StateKind::Idle,
            Self::Connect | Self::Delayed(Endpoints { initiator: Side::Us, .. }) => StateKind::Connect,
            Self::Active | Self::Delayed(Endpoints { initiator: Side::Them, .. }) => StateKind::Active,
            Self::OpenSent(_) => StateKind::OpenSent,
            Self::OpenConfirm(_) => StateKind::OpenConfirm,
            Self::Established(..) => StateKind::Established,
        }
    }
}

/// One connection of a peer, or the wish for one.
#[derive(Debug)]
pub struct Conn {
    state: State,
    id: ConnId,
    timers: TimerTable,
    cfg: Arc<PeerConfig>,
    jitter: Jitter,
    /// Errors in a row; doubles the back-off.
    errors: u32,
    /// Dials that failed in a row.
    misses: u32,
    cause: Cause,
}

impl Conn {
    /// A connection in Idle.
    pub fn new(cfg: Arc<PeerConfig>, jitter: Jitter) -> Self {
        Self {
            state: State::Idle,
            id: ConnId(0),
            timers: TimerTable::default(),
            cfg,
            jitter,
            errors: 0,
            misses: 0,
            cause: Cause::Started,
        }
    }

    /// The state.
    pub const fn state(&self) -> StateKind {
        self.state.kind()
    }

    /// The transport connection, or the dial that is under way.
    pub const fn id(&self) -> Option<ConnId> {
        match self.state {
            State::Idle | State::Active => None,
            State::Connect
            | State::Delayed(_)
            | State::OpenSent(_)
            | State::OpenConfirm(_)
            | State::Established(..) => Some(self.id),
        }
    }

    /// What is agreed, from OpenConfirm on.
    pub const fn session(&self) -> Option<&Arc<Session>> {
        match &self.state {
            State::Idle | State::Connect | State::Active | State::Delayed(_) | State::OpenSent(_) => None,
            State::OpenConfirm(s) | State::Established(s, _) => Some(s),
        }
    }

    /// The ends of the transport, when there is one.
    pub fn ends(&self) -> Option<Endpoints> {
        match &self.state {
            State::Idle | State::Connect | State::Active => None,
            State::Delayed(e) | State::OpenSent(e) => Some(*e),
            State::OpenConfirm(s) | State::Established(s, _) => Some(s.ends),
        }
    }

    /// Who initiated what `id` names.
    pub fn side(&self) -> Option<Side> {
        match self.state {
            State::Connect => Some(Side::Us),
            _ => self.ends().map(|e| e.initiator),
        }
    }

    /// Whether the transport is up and the peer's OPEN is still to come.
    pub const fn awaits_open(&self) -> bool {
        matches!(self.state, State::Delayed(_) | State::OpenSent(_))
    }

    /// Since when it is Established.
    pub const fn up_since(&self) -> Option<Mono> {
        match self.state {
            State::Established(_, at) => Some(at),
            State::Idle
            | State::Connect
            | State::Active
            | State::Delayed(_)
            | State::OpenSent(_)
            | State::OpenConfirm(_) => None,
        }
    }

    /// Why it is in its state.
    pub const fn cause(&self) -> &Cause {
        &self.cause
    }

    /// When `on_time` has something to do.
    pub fn deadline(&self) -> Option<Mono> {
        self.timers.deadline()
    }

    /// Takes over how often things went wrong from the connection this one replaces.
    pub const fn inherit(&mut self, other: &Self) {
        self.errors = other.errors;
        self.misses = other.misses;
    }

    /// Straight to Active: made for a connection that has just been accepted.
    pub fn listen(&mut self) {
        self.state = State::Active;
    }

    /// New settings that need no new session.
    pub fn set_config(&mut self, cfg: Arc<PeerConfig>) {
        self.cfg = cfg;
    }

    /// Every timer that is due.
    pub fn on_time(&mut self, env: &mut Env<'_>, out: &mut Actions) {
        while let Some(timer) = self.timers.pop_due(env.now) {
            let event = match timer {
                Timer::ConnectRetry => Event::ConnectRetryExpired,
                Timer::Hold => Event::HoldExpired,
                Timer::Keepalive => Event::KeepaliveExpired,
                Timer::IdleHold => Event::IdleHoldExpired,
                Timer::DelayOpen => Event::DelayOpenExpired,
            };
            self.handle(env, event, out);
        }
    }

    /// One event.
    pub fn handle(&mut self, env: &mut Env<'_>, event: Event, out: &mut Actions) {
        self.state = match mem::take(&mut self.state) {
            State::Idle => self.idle(env, event, out),
            State::Connect => self.connect(env, event, out),
            State::Active => self.active(env, event, out),
            State::Delayed(ends) => self.delayed(ends, env, event, out),
            State::OpenSent(ends) => self.open_sent(ends, env, event, out),
            State::OpenConfirm(session) => self.open_confirm(session, env, event, out),
            State::Established(session, at) => self.established((session, at), env, event, out),
        };
    }

    fn idle(&mut self, env: &mut Env<'_>, event: Event, out: &mut Actions) -> State {
        match event {
            Event::Start => self.begin(env, Cause::Started, out),
            Event::IdleHoldExpired => self.begin(env, Cause::BackOffOver, out),
            Event::Stop(stop) => {
                self.timers.stop_all();
                self.cause = Cause::Stopped(stop.why);
                State::Idle
            }
            // Nothing is open: only a late report of a connection already given up can arrive.
            Event::Collision
            | Event::ConnectRetryExpired
            | Event::HoldExpired
            | Event::KeepaliveExpired
            | Event::Heard
            | Event::DelayOpenExpired
            | Event::SendHoldExpired
            | Event::TransportUp(..)
            | Event::TransportDown(_)
            | Event::Open(_)
            | Event::Bad(..)
            | Event::Notification(_)
            | Event::Keepalive
            | Event::Update(_)
            | Event::RouteRefresh(_) => State::Idle,
        }
    }

    fn connect(&mut self, env: &mut Env<'_>, event: Event, out: &mut Actions) -> State {
        match event {
            Event::TransportUp(id, ends) => {
                self.cause = Cause::Dialled;
                self.arrived(env, id, ends, out)
            }
            Event::TransportDown(why) => self.wait(env, Cause::ConnectFailed(why)),
            Event::ConnectRetryExpired => {
                out.push_back((self.id, Action::Close));
                self.misses = self.misses.saturating_add(1);
                self.dial(env, Cause::ConnectFailed("no answer".into()), out)
            }
            Event::Stop(stop) => {
                out.push_back((self.id, Action::Close));
                self.halt(stop.why)
            }
            Event::Collision => {
                out.push_back((self.id, Action::Close));
                self.wait(env, Cause::Collision)
            }
            // Already started; timers that do not run here; messages without a transport.
            Event::Start
            | Event::HoldExpired
            | Event::KeepaliveExpired
            | Event::Heard
            | Event::IdleHoldExpired
            | Event::DelayOpenExpired
            | Event::SendHoldExpired
            | Event::Open(_)
            | Event::Bad(..)
            | Event::Notification(_)
            | Event::Keepalive
            | Event::Update(_)
            | Event::RouteRefresh(_) => State::Connect,
        }
    }

    fn active(&mut self, env: &mut Env<'_>, event: Event, out: &mut Actions) -> State {
        match event {
            Event::TransportUp(id, ends) => {
                self.cause = Cause::Accepted;
                self.arrived(env, id, ends, out)
            }
            Event::ConnectRetryExpired => self.dial(env, Cause::RetryDue, out),
            Event::Stop(stop) => self.halt(stop.why),
            // As in Connect; there is no transport that could collide or fail.
            Event::Start
            | Event::Collision
            | Event::HoldExpired
            | Event::KeepaliveExpired
            | Event::Heard
            | Event::IdleHoldExpired
            | Event::DelayOpenExpired
            | Event::SendHoldExpired
            | Event::TransportDown(_)
            | Event::Open(_)
            | Event::Bad(..)
            | Event::Notification(_)
            | Event::Keepalive
            | Event::Update(_)
            | Event::RouteRefresh(_) => State::Active,
        }
    }

    /// Connect or Active while DelayOpenTimer runs: the peer may speak first.
    fn delayed(&mut self, ends: Endpoints, env: &mut Env<'_>, event: Event, out: &mut Actions) -> State {
        match event {
            Event::DelayOpenExpired => self.opened(env, self.id, ends, out),
            Event::Open(open) => {
                // 20: ours goes out ahead of what we say to the peer's.
                self.opened(env, self.id, ends, out);
                self.judge(ends, env, &open, out)
            }
            Event::TransportDown(why) => self.wait(env, Cause::TransportLost(why)),
            Event::Stop(stop) => {
                out.push_back((self.id, Action::Close));
                self.halt(stop.why)
            }
            Event::Collision => {
                self.send_and_close(Cease::CollisionResolution.notification(), out);
                self.wait(env, Cause::Collision)
            }
            // SendNOTIFICATIONwithoutOPEN is always on: the peer's operator learns what was wrong.
            Event::Bad(n, what) => self.refuse(env, n.clone(), Cause::Sent(n, what), out),
            Event::Notification(n) => self.dismissed(env, n, out),
            Event::Keepalive | Event::Update(_) | Event::RouteRefresh(_) => {
                let n = notice::fsm_error(State::Delayed(ends).kind());
                self.refuse(env, n.clone(), Cause::Sent(n, String::new()), out)
            }
            // Already started; timers that do not run here; the transport is already up.
            Event::Start
            | Event::ConnectRetryExpired
            | Event::HoldExpired
            | Event::KeepaliveExpired
            | Event::Heard
            | Event::IdleHoldExpired
            | Event::SendHoldExpired
            | Event::TransportUp(..) => State::Delayed(ends),
        }
    }

    fn open_sent(&mut self, ends: Endpoints, env: &mut Env<'_>, event: Event, out: &mut Actions) -> State {
        match event {
            Event::Open(open) => self.judge(ends, env, &open, out),
            Event::Stop(stop) => {
                let why = stop.why;
                self.send_and_close(stop.notification(), out);
                self.halt(why)
            }
            Event::Collision => {
                self.send_and_close(Cease::CollisionResolution.notification(), out);
                self.wait(env, Cause::Collision)
            }
            Event::TransportDown(why) => self.wait(env, Cause::TransportLost(why)),
            Event::HoldExpired => self.refuse(env, notice::hold_expired(), Cause::HoldExpired, out),
            Event::SendHoldExpired => {
                self.refuse(env, notice::send_hold_expired(), Cause::SendHoldExpired, out)
            }
            Event::Bad(n, what) => self.refuse(env, n.clone(), Cause::Sent(n, what), out),
            Event::Notification(n) => self.dismissed(env, n, out),
            Event::Keepalive | Event::Update(_) | Event::RouteRefresh(_) => {
                let n = notice::fsm_error(StateKind::OpenSent);
                self.refuse(env, n.clone(), Cause::Sent(n, String::new()), out)
            }
            // Already started; timers that do not run here; the transport is already up.
            Event::Start
            | Event::ConnectRetryExpired
            | Event::KeepaliveExpired
            | Event::Heard
            | Event::IdleHoldExpired
            | Event::DelayOpenExpired
            | Event::TransportUp(..) => State::OpenSent(ends),
        }
    }

    fn open_confirm(&mut self, s: Arc<Session>, env: &mut Env<'_>, event: Event, out: &mut Actions) -> State {
        match event {
            Event::Keepalive => {
                self.cause = Cause::KeepaliveReceived;
                self.heard(env.now, &s);
                out.push_back((self.id, Action::Up(Arc::clone(&s))));
                State::Established(s, env.now)
            }
            Event::Heard => {
                self.heard(env.now, &s);
                State::OpenConfirm(s)
            }
            Event::KeepaliveExpired => {
                self.keepalive(env.now, &s, out);
                State::OpenConfirm(s)
            }
            Event::Stop(stop) => {
                let why = stop.why;
                self.send_and_close(stop.notification(), out);
                self.halt(why)
            }
            Event::Collision => {
                self.send_and_close(Cease::CollisionResolution.notification(), out);
                self.wait(env, Cause::Collision)
            }
            Event::TransportDown(why) => self.wait(env, Cause::TransportLost(why)),
            Event::HoldExpired => self.refuse(env, notice::hold_expired(), Cause::HoldExpired, out),
            Event::SendHoldExpired => {
                self.refuse(env, notice::send_hold_expired(), Cause::SendHoldExpired, out)
            }
            Event::Bad(n, what) => self.refuse(env, n.clone(), Cause::Sent(n, what), out),
            Event::Notification(n) => self.dismissed(env, n, out),
            Event::Open(_) | Event::Update(_) | Event::RouteRefresh(_) => {
                let n = notice::fsm_error(StateKind::OpenConfirm);
                self.refuse(env, n.clone(), Cause::Sent(n, String::new()), out)
            }
            Event::Start
            | Event::ConnectRetryExpired
            | Event::IdleHoldExpired
            | Event::DelayOpenExpired
            | Event::TransportUp(..) => State::OpenConfirm(s),
        }
    }

    fn established(
        &mut self,
        (s, at): (Arc<Session>, Mono),
        env: &mut Env<'_>,
        event: Event,
        out: &mut Actions,
    ) -> State {
        match event {
            Event::Update(update) => {
                self.heard(env.now, &s);
                out.push_back((self.id, Action::Deliver(update)));
                return State::Established(s, at);
            }
            Event::Keepalive | Event::Heard => {
                self.heard(env.now, &s);
                return State::Established(s, at);
            }
            Event::RouteRefresh(r) => {
                self.heard(env.now, &s);
                out.push_back((self.id, Action::Refresh(r)));
                return State::Established(s, at);
            }
            Event::KeepaliveExpired => {
                self.keepalive(env.now, &s, out);
                return State::Established(s, at);
            }
            Event::Start
            | Event::ConnectRetryExpired
            | Event::IdleHoldExpired
            | Event::DelayOpenExpired
            | Event::TransportUp(..) => return State::Established(s, at),
            Event::Stop(_)
            | Event::Collision
            | Event::HoldExpired
            | Event::SendHoldExpired
            | Event::TransportDown(_)
            | Event::Open(_)
            | Event::Bad(..)
            | Event::Notification(_) => {}
        }
        self.end_of_session((&s, at), env, event, out)
    }

    /// The events that end an established session; `Down` is pushed here and nowhere else.
    fn end_of_session(
        &mut self,
        (s, at): (&Session, Mono),
        env: &mut Env<'_>,
        event: Event,
        out: &mut Actions,
    ) -> State {
        if env.now.since_ms(at) >= STABLE_MS {
            self.errors = 0;
        }
        self.misses = 0;
        let id = self.id;
        let mut transport_lost = false;
        // RFC 8538: what is no goodbye for good leaves the routes in place; a goodbye goes inside a Hard Reset.
        let mut soft = s.notification_restart;
        let mut last_words = |n: Notification| {
            if s.notification_restart && notice::is_final(&n) {
                soft = false;
                notice::hard_reset(n)
            } else {
                n
            }
        };
        let state = match event {
            Event::Stop(stop) => {
                let why = stop.why;
                let n = last_words(stop.notification());
                self.send_and_close(n, out);
                // Whatever the peer does with our routes, we want none of its own.
                soft = false;
                self.halt(why)
            }
            // Only when the peer restarted: its new connection takes over (RFC 4724 section 5).
            Event::Collision => {
                transport_lost = true;
                out.push_back((id, Action::Close));
                self.wait(env, Cause::Replaced)
            }
            Event::TransportDown(why) => {
                transport_lost = true;
                self.wait(env, Cause::TransportLost(why))
            }
            Event::HoldExpired => self.refuse(env, notice::hold_expired(), Cause::HoldExpired, out),
            Event::SendHoldExpired => {
                self.refuse(env, notice::send_hold_expired(), Cause::SendHoldExpired, out)
            }
            Event::Bad(n, what) => {
                let words = last_words(n.clone());
                self.refuse(env, words, Cause::Sent(n, what), out)
            }
            Event::Notification(n) => {
                soft &= !notice::is_hard(&n);
                self.dismissed(env, n, out)
            }
            Event::Open(_)
            | Event::Start
            | Event::ConnectRetryExpired
            | Event::Heard
            | Event::IdleHoldExpired
            | Event::DelayOpenExpired
            | Event::KeepaliveExpired
            | Event::TransportUp(..)
            | Event::Keepalive
            | Event::Update(_)
            | Event::RouteRefresh(_) => {
                let n = notice::fsm_error(StateKind::Established);
                self.refuse(env, n.clone(), Cause::Sent(n, String::new()), out)
            }
        };
        out.push_back((id, Action::Down(Down { cause: self.cause.clone(), transport_lost, soft })));
        state
    }

    /// Leaves Idle: listens or dials.
    fn begin(&mut self, env: &mut Env<'_>, cause: Cause, out: &mut Actions) -> State {
        self.timers.stop_all();
        if self.cfg.passive {
            self.cause = cause;
            State::Active
        } else {
            self.dial(env, cause, out)
        }
    }

    fn dial(&mut self, env: &mut Env<'_>, cause: Cause, out: &mut Actions) -> State {
        self.cause = cause;
        self.id = env.ids.next();
        self.timers.stop_all();
        self.timers
            .set(Timer::ConnectRetry, env.now.plus_ms(u64::from(self.cfg.connect_retry.max(1)) * 1_000));
        out.push_back((self.id, Action::Dial));
        State::Connect
    }

    /// To Active: the peer may come, and unless passive we dial again after a while.
    fn wait(&mut self, env: &mut Env<'_>, cause: Cause) -> State {
        self.cause = cause;
        self.timers.stop_all();
        if !self.cfg.passive {
            let longest = u64::from(self.cfg.connect_retry.max(1)) * 1_000;
            let ms = RETRY_MIN_MS.saturating_mul(1 << self.misses.min(10)).min(longest);
            self.misses = self.misses.saturating_add(1);
            self.timers.set(Timer::ConnectRetry, env.now.plus_ms(self.jitter.of(ms)));
        }
        State::Active
    }

    /// To Idle, until somebody says Start.
    fn halt(&mut self, why: Cease) -> State {
        self.cause = Cause::Stopped(why);
        self.timers.stop_all();
        self.errors = 0;
        self.misses = 0;
        State::Idle
    }

    /// To Idle with back-off.
    fn back_off(&mut self, env: &mut Env<'_>, cause: Cause) -> State {
        self.cause = cause;
        self.timers.stop_all();
        let ms = BACKOFF_MIN_MS.saturating_mul(1 << self.errors.min(10)).min(BACKOFF_MAX_MS);
        self.errors = self.errors.saturating_add(1);
        self.timers.set(Timer::IdleHold, env.now.plus_ms(self.jitter.of(ms)));
        State::Idle
    }

    /// We found an error: NOTIFICATION, close, back off.
    fn refuse(&mut self, env: &mut Env<'_>, n: Notification, cause: Cause, out: &mut Actions) -> State {
        self.send_and_close(n, out);
        self.back_off(env, cause)
    }

    /// The peer found an error, or says goodbye. Where the reason is no fault of the session, there is no back-off.
    fn dismissed(&mut self, env: &mut Env<'_>, n: Notification, out: &mut Actions) -> State {
        out.push_back((self.id, Action::Close));
        // Administrative reset, rejection (the peer backs off itself), configuration change, collision (RFC 4486).
        if matches!(notice::inner(&n), (6, 4..=7)) {
            self.wait(env, Cause::Received(n))
        } else {
            self.back_off(env, Cause::Received(n))
        }
    }

    fn send_and_close(&mut self, n: Notification, out: &mut Actions) {
        out.push_back((self.id, Action::Send(Message::Notification(n))));
        out.push_back((self.id, Action::Close));
    }

    /// The transport is up: our OPEN goes out, or waits for DelayOpenTimer.
    fn arrived(&mut self, env: &mut Env<'_>, id: ConnId, ends: Endpoints, out: &mut Actions) -> State {
        let delay = self.cfg.session.delay_open;
        if delay == 0 {
            return self.opened(env, id, ends, out);
        }
        self.id = id;
        self.timers.stop_all();
        self.timers.set(Timer::DelayOpen, env.now.plus_ms(u64::from(delay) * 1_000));
        State::Delayed(ends)
    }

    /// OPEN, and a long hold timer for the answer.
    fn opened(&mut self, env: &mut Env<'_>, id: ConnId, ends: Endpoints, out: &mut Actions) -> State {
        self.id = id;
        self.timers.stop_all();
        self.timers.set(Timer::Hold, env.now.plus_ms(OPEN_HOLD_MS));
        out.push_back((id, Action::Send(Message::Open(our_open(&self.cfg, &env.me)))));
        State::OpenSent(ends)
    }

    fn judge(&mut self, ends: Endpoints, env: &mut Env<'_>, open: &Open, out: &mut Actions) -> State {
        match negotiate(&self.cfg, &env.me, ends, open) {
            Ok(session) => {
                let session = Arc::new(session);
                self.cause = Cause::OpenReceived;
                self.misses = 0;
                self.timers.stop_all();
                out.push_back((self.id, Action::Negotiated(Arc::clone(&session))));
                self.heard(env.now, &session);
                self.keepalive(env.now, &session, out);
                State::OpenConfirm(session)
            }
            Err((n, what)) => self.refuse(env, n.clone(), Cause::Sent(n, what), out),
        }
    }

    /// The peer lives.
    fn heard(&mut self, now: Mono, s: &Session) {
        if s.hold_time > 0 {
            self.timers.set(Timer::Hold, now.plus_ms(u64::from(s.hold_time) * 1_000));
        }
    }

    /// We live.
    fn keepalive(&mut self, now: Mono, s: &Session, out: &mut Actions) {
        out.push_back((self.id, Action::Send(Message::Keepalive)));
        if s.keepalive > 0 {
            self.timers.set(Timer::Keepalive, self.jitter.together(now, u64::from(s.keepalive) * 1_000));
        }
    }
}
