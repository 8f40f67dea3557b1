//! Errors of the codec: a decode error carries the NOTIFICATION it deserves (RFC 4271 section 6).
//!
//! What RFC 7606 lets a session survive is no error: see `Update::faults`.

use thiserror::Error;

use super::types::Notification;

/// The bytes ended the session: send `notification`, then close.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{what}")]
pub struct DecodeError {
    /// What the peer gets to read.
    pub notification: Notification,
    /// What was wrong, for the log: a lower-case fragment.
    pub what: String,
}

impl DecodeError {
    pub(super) fn new(code: u8, subcode: u8, data: &[u8], what: impl Into<String>) -> Self {
        Self { notification: Notification { code, subcode, data: data.to_vec() }, what: what.into() }
    }
}

/// A value that has no form on the wire. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EmitError {
    /// A field or the message exceeds what its length field or the session allows. A route whose attributes do
    /// not fit must be withdrawn from that peer.
    #[error("{what} of {len} octets does not fit into {max}")]
    TooLong { what: &'static str, len: usize, max: usize },
    /// The next hop is of another family than the prefixes (RFC 8950 is not negotiated).
    #[error("next hop and prefixes are of different families")]
    NextHopFamily,
    /// Two announcements of one family with different next hops, or an End-of-RIB beside routes.
    #[error("the update needs more than one message")]
    NotOneMessage,
    /// Nothing to say; the empty UPDATE means End-of-RIB and must be asked for.
    #[error("the update is empty")]
    Empty,
    /// Prefixes are announced without attributes.
    #[error("prefixes are announced without attributes")]
    NoAttributes,
}
