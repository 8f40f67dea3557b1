//! The connection state machine of RFC 4271 section 8, without sockets and without a clock.
//!
//! ```text
//!            Start / IdleHold expired                    OPEN ok            KEEPALIVE
//!   Idle ------------------------------> Connect ---> OpenSent ---> OpenConfirm ---> Established
//!    ^  (passive: Active)                 |   ^        |  ^              |               |
//!    |                        no answer   v   | retry  |  | accepted     |               |
//!    |                                   Active -------+--+              |               |
//!    |  errors, NOTIFICATION, hold timer: back-off     |                 |               |
//!    +-------------------------------------------------+-----------------+---------------+
//!       transport lost: to Active, so that the peer may come back at once
//! ```
//! [`Conn`] is one connection; [`Peer`] owns up to two and resolves their collision. Both take an event and push
//! [`Action`]s; time is part of [`Env`]. See docs/design/bgp-fsm.md.

mod conn;
pub mod negotiate;
pub mod notice;
mod peer;
mod timers;

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, fmt, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

pub(crate) use self::negotiate::our_open;
pub use self::{
    conn::Conn,
    negotiate::{Identity, LongLived, PeerRestart, Session},
    notice::{Cease, Stop},
    peer::{Peer, PeerInput, survivor},
    timers::{Jitter, Timer, TimerTable},
};
use crate::{
    speaker::ConnId,
    time::Mono,
    wire::{Message, Notification, Open, RouteRefresh, Update},
};

/// The six states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StateKind {
    #[default]
    Idle,
    Connect,
    Active,
    OpenSent,
    OpenConfirm,
    Established,
}

impl StateKind {
    /// All of them, in order.
    pub const ALL: [Self; 6] =
        [Self::Idle, Self::Connect, Self::Active, Self::OpenSent, Self::OpenConfirm, Self::Established];
}

impl fmt::Display for StateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Both ends of a transport connection, and who made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub initiator: Side,
}

/// Who initiated a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    Us,
    Them,
}

/// What happens to one connection. The numbers are those of RFC 4271 section 8.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// 1, 3 and (passive) 4, 5
    Start,
    /// 2, 8: stop, and tell the peer why.
    Stop(Stop),
    /// 23: another connection to the same peer is kept instead of this one.
    Collision,
    /// 9
    ConnectRetryExpired,
    /// 10
    HoldExpired,
    /// 11
    KeepaliveExpired,
    /// 12
    DelayOpenExpired,
    /// 13
    IdleHoldExpired,
    /// 29 (RFC 9687)
    SendHoldExpired,
    /// 16, 17
    TransportUp(ConnId, Endpoints),
    /// 18
    TransportDown(String),
    /// 19, and 20 while DelayOpenTimer runs
    Open(Open),
    /// 21, 22, 28: bytes that are no message; the NOTIFICATION to answer with, and what was wrong.
    Bad(Notification, String),
    /// 24, 25
    Notification(Notification),
    /// 26
    Keepalive,
    /// 27
    Update(Update),
    /// RFC 2918
    RouteRefresh(RouteRefresh),
    /// None of the RFC's: the peer has sent something that is still to be read, so it lives.
    Heard,
}

/// What the owner must do for a connection, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Dial,
    /// Send what is queued, then close.
    Close,
    Send(Message),
    /// OPENs are exchanged.
    Negotiated(Arc<Session>),
    /// Established.
    Up(Arc<Session>),
    /// No longer established; after each `Up` at most once.
    Down(Down),
    Deliver(Update),
    Refresh(RouteRefresh),
}

/// Actions with the connection they are for.
pub type Actions = VecDeque<(ConnId, Action)>;

/// The end of an established session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    pub cause: Cause,
    /// The transport failed and nobody said goodbye: a graceful restart of the peer may be under way (RFC 4724).
    pub transport_lost: bool,
    /// A NOTIFICATION ended it that was no goodbye for good: with the N bit on both sides, routes are kept as if the
    /// transport had failed (RFC 8538).
    pub soft: bool,
}

/// Why a state changed; its text is the `cause` of log lines and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    Started,
    BackOffOver,
    RetryDue,
    Dialled,
    Accepted,
    ConnectFailed(String),
    OpenReceived,
    KeepaliveReceived,
    Stopped(Cease),
    Collision,
    TransportLost(String),
    Replaced,
    HoldExpired,
    SendHoldExpired,
    /// We sent it; the text says what was wrong when the bytes were.
    Sent(Notification, String),
    Received(Notification),
}

impl Cause {
    /// Whether something went wrong, or was stopped, rather than on.
    pub const fn is_failure(&self) -> bool {
        match self {
            Self::Started
            | Self::BackOffOver
            | Self::RetryDue
            | Self::Dialled
            | Self::Accepted
            | Self::OpenReceived
            | Self::KeepaliveReceived => false,
            Self::ConnectFailed(_)
            | Self::Stopped(_)
            | Self::Collision
            | Self::TransportLost(_)
            | Self::Replaced
            | Self::HoldExpired
            | Self::SendHoldExpired
            | Self::Sent(..)
            | Self::Received(_) => true,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => f.write_str("started"),
            Self::BackOffOver => f.write_str("back-off over"),
            Self::RetryDue => f.write_str("connect retry timer"),
            Self::Dialled => f.write_str("connected"),
            Self::Accepted => f.write_str("peer connected"),
            Self::ConnectFailed(why) => write!(f, "connect failed: {why}"),
            Self::OpenReceived => f.write_str("OPEN received"),
            Self::KeepaliveReceived => f.write_str("KEEPALIVE received"),
            Self::Stopped(why) => write!(f, "stopped: {why}"),
            Self::Collision => f.write_str("connection collision"),
            Self::TransportLost(why) => write!(f, "connection lost: {why}"),
            Self::Replaced => f.write_str("peer restarted and opened a new connection"),
            Self::HoldExpired => f.write_str("hold timer expired"),
            Self::SendHoldExpired => f.write_str("peer reads nothing: send hold timer expired"),
            Self::Sent(n, what) if what.is_empty() => write!(f, "sent NOTIFICATION {n}"),
            Self::Sent(n, what) => write!(f, "sent NOTIFICATION {n}: {what}"),
            Self::Received(n) => write!(f, "received NOTIFICATION {n}"),
        }
    }
}

/// Numbers for outgoing connections: even, increasing.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnIds(u64);

impl ConnIds {
    /// A number never given before.
    pub const fn next(&mut self) -> ConnId {
        self.0 = self.0.wrapping_add(2);
        ConnId(self.0)
    }
}

/// The surroundings of one call.
#[derive(Debug)]
pub struct Env<'a> {
    pub now: Mono,
    pub me: Identity,
    pub ids: &'a mut ConnIds,
}
