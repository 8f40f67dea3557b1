//! The NOTIFICATIONs the state machine sends. RFC 4271 section 6, 4486, 6608, 9687.

use std::fmt;

use crate::wire::{Notification, iana};

use super::StateKind;

/// Subcodes of Cease (RFC 4486).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cease {
    MaximumPrefixes,
    AdministrativeShutdown,
    PeerDeconfigured,
    AdministrativeReset,
    ConnectionRejected,
    ConfigurationChange,
    CollisionResolution,
    OutOfResources,
}

impl Cease {
    /// The NOTIFICATION without data.
    pub const fn notification(self) -> Notification {
        let subcode = match self {
            Self::MaximumPrefixes => 1,
            Self::AdministrativeShutdown => 2,
            Self::PeerDeconfigured => 3,
            Self::AdministrativeReset => 4,
            Self::ConnectionRejected => 5,
            Self::ConfigurationChange => 6,
            Self::CollisionResolution => 7,
            Self::OutOfResources => 8,
        };
        Notification { code: 6, subcode, data: Vec::new() }
    }
}

/// The wish to end a session: why, and the data of the NOTIFICATION that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    pub why: Cease,
    pub data: Vec<u8>,
}

impl Stop {
    /// With a text for the other operator, where the reason has room for one (RFC 9003).
    pub fn with_text(why: Cease, text: &str) -> Self {
        let data = match why {
            Cease::AdministrativeShutdown | Cease::AdministrativeReset => {
                Notification::cease_with_text(why.notification().subcode, text).data
            }
            Cease::MaximumPrefixes
            | Cease::PeerDeconfigured
            | Cease::ConnectionRejected
            | Cease::ConfigurationChange
            | Cease::CollisionResolution
            | Cease::OutOfResources => Vec::new(),
        };
        Self { why, data }
    }

    /// What to send.
    pub fn notification(self) -> Notification {
        Notification { data: self.data, ..self.why.notification() }
    }
}

impl From<Cease> for Stop {
    fn from(why: Cease) -> Self {
        Self { why, data: Vec::new() }
    }
}

/// Whether the routes of a session are to go although graceful restart after a NOTIFICATION was agreed on: the
/// classification of RFC 8538 section 4 with its suggestions; an administrative reset is hard.
pub const fn is_final(n: &Notification) -> bool {
    n.code == iana::error::CEASE
        && matches!(
            n.subcode,
            iana::cease::MAX_PREFIXES
                | iana::cease::ADMIN_SHUTDOWN
                | iana::cease::PEER_DECONFIGURED
                | iana::cease::ADMIN_RESET
        )
}

/// The NOTIFICATION inside a Hard Reset (RFC 8538 section 3.1).
pub fn hard_reset(inner: Notification) -> Notification {
    let mut data = vec![inner.code, inner.subcode];
    data.extend_from_slice(&inner.data);
    Notification { code: iana::error::CEASE, subcode: iana::cease::HARD_RESET, data }
}

/// Code and subcode of what a NOTIFICATION means, also inside a Hard Reset.
pub fn inner(n: &Notification) -> (u8, u8) {
    match n.data[..] {
        [code, subcode, ..] if is_hard(n) => (code, subcode),
        _ => (n.code, n.subcode),
    }
}

/// Whether it is a Hard Reset.
pub const fn is_hard(n: &Notification) -> bool {
    n.code == iana::error::CEASE && n.subcode == iana::cease::HARD_RESET
}

impl fmt::Display for Cease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MaximumPrefixes => "maximum number of prefixes reached",
            Self::AdministrativeShutdown => "administrative shutdown",
            Self::PeerDeconfigured => "peer de-configured",
            Self::AdministrativeReset => "administrative reset",
            Self::ConnectionRejected => "connection rejected",
            Self::ConfigurationChange => "other configuration change",
            Self::CollisionResolution => "connection collision resolution",
            Self::OutOfResources => "out of resources",
        })
    }
}

/// Hold Timer Expired.
pub const fn hold_expired() -> Notification {
    Notification { code: 4, subcode: 0, data: Vec::new() }
}

/// Send Hold Timer Expired (RFC 9687).
pub const fn send_hold_expired() -> Notification {
    Notification { code: 8, subcode: 0, data: Vec::new() }
}

/// Finite State Machine Error, with the subcode of the state (RFC 6608).
pub const fn fsm_error(state: StateKind) -> Notification {
    let subcode = match state {
        StateKind::Idle | StateKind::Connect | StateKind::Active => 0,
        StateKind::OpenSent => 1,
        StateKind::OpenConfirm => 2,
        StateKind::Established => 3,
    };
    Notification { code: 5, subcode, data: Vec::new() }
}

/// Too many prefixes of a family: AFI, SAFI and the limit as data (RFC 4486 section 4).
pub fn maximum_prefixes(afi: u16, safi: u8, limit: u32) -> Notification {
    let mut data = Vec::with_capacity(7);
    data.extend_from_slice(&afi.to_be_bytes());
    data.push(safi);
    data.extend_from_slice(&limit.to_be_bytes());
    Notification { data, ..Cease::MaximumPrefixes.notification() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maximum_prefixes_names_family_and_limit() {
        assert_eq!(maximum_prefixes(2, 1, 258).data, [0, 2, 1, 0, 0, 1, 2]);
    }

    #[test]
    fn a_hard_reset_carries_the_notification_it_stands_for() {
        let n = Stop::with_text(Cease::AdministrativeShutdown, "bye").notification();
        assert!(is_final(&n) && !is_hard(&n));
        let hard = hard_reset(n);
        assert!(is_hard(&hard));
        assert_eq!((hard.subcode, &hard.data[..]), (9, &[6, 2, 3, b'b', b'y', b'e'][..]));
        assert!(!is_final(&hold_expired()) && !is_final(&Cease::OutOfResources.notification()));
    }
}
