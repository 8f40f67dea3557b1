//! The NOTIFICATIONs the state machine sends, and words for those it receives. RFC 4271 section 6, 4486, 6608, 8203,
//! 9003, 9687.

use std::fmt::{self, Write as _};

use crate::wire::{Notification, WireCx};

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

/// What a NOTIFICATION means, for logs and status. The peer's own text (RFC 9003) is cut and cleaned.
pub fn describe(n: &Notification) -> String {
    let name = match (n.code, n.subcode) {
        (1, 1) => "connection not synchronized",
        (1, 2) => "bad message length",
        (1, 3) => "bad message type",
        (1, _) => "message header error",
        (2, 1) => "unsupported version number",
        (2, 2) => "bad peer AS",
        (2, 3) => "bad BGP identifier",
        (2, 4) => "unsupported optional parameter",
        (2, 6) => "unacceptable hold time",
        (2, 7) => "unsupported capability",
        (2, 11) => "role mismatch",
        (2, _) => "OPEN message error",
        (3, 1) => "malformed attribute list",
        (3, 2) => "unrecognized well-known attribute",
        (3, 3) => "missing well-known attribute",
        (3, 4) => "attribute flags error",
        (3, 5) => "attribute length error",
        (3, 6) => "invalid ORIGIN",
        (3, 8) => "invalid NEXT_HOP",
        (3, 9) => "optional attribute error",
        (3, 10) => "invalid network field",
        (3, 11) => "malformed AS_PATH",
        (3, _) => "UPDATE message error",
        (4, _) => "hold timer expired",
        (5, 1) => "unexpected message in OpenSent",
        (5, 2) => "unexpected message in OpenConfirm",
        (5, 3) => "unexpected message in Established",
        (5, _) => "state machine error",
        (6, 1) => "maximum number of prefixes reached",
        (6, 2) => "administrative shutdown",
        (6, 3) => "peer de-configured",
        (6, 4) => "administrative reset",
        (6, 5) => "connection rejected",
        (6, 6) => "other configuration change",
        (6, 7) => "connection collision resolution",
        (6, 8) => "out of resources",
        (6, 9) => "hard reset",
        (6, 10) => "BFD down",
        (6, _) => "cease",
        (7, 1) => "invalid ROUTE-REFRESH length",
        (7, _) => "ROUTE-REFRESH message error",
        (8, _) => "send hold timer expired",
        _ => "unknown error",
    };
    let mut s = String::new();
    // Writing to a String cannot fail.
    let _ = write!(s, "{name} ({}/{})", n.code, n.subcode);
    if n.code == 6
        && matches!(n.subcode, 2 | 4)
        && let Some(text) = shutdown_text(&n.data)
    {
        let _ = write!(s, ": {text}");
    }
    s
}

/// The shutdown communication (RFC 9003), bounded, without control characters; `None` when there is none.
fn shutdown_text(data: &[u8]) -> Option<String> {
    let (len, rest) = data.split_first()?;
    let text = rest.get(..usize::from(*len)).unwrap_or(rest);
    let text: String = String::from_utf8_lossy(text)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(255)
        .collect();
    (!text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// Reading and writing before anything is agreed.
pub const fn wire_before_open() -> WireCx {
    WireCx { four_octet_as: false, extended_message: false, add_path: [false; 2], ibgp: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shutdown_text_with_a_lying_length_and_control_characters_is_cleaned() {
        let n = Notification { code: 6, subcode: 2, data: b"\xffnew\nkernel \xff".to_vec() };
        assert_eq!(describe(&n), "administrative shutdown (6/2): new kernel \u{fffd}");
        let n = Notification { code: 6, subcode: 2, data: vec![] };
        assert_eq!(describe(&n), "administrative shutdown (6/2)");
        let n = Notification { code: 99, subcode: 1, data: vec![1; 4000] };
        assert_eq!(describe(&n), "unknown error (99/1)");
    }

    #[test]
    fn maximum_prefixes_names_family_and_limit() {
        assert_eq!(maximum_prefixes(2, 1, 258).data, [0, 2, 1, 0, 0, 1, 2]);
    }
}
