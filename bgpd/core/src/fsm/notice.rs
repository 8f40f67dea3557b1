//! The NOTIFICATIONs the state machine sends. RFC 4271 section 6, 4486, 6608, 9687.

use std::fmt;

use crate::wire::Notification;

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
}
