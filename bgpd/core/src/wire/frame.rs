//! The message header and the cutting of a byte stream into messages (RFC 4271 section 4.1, RFC 8654).
//!
//! No message body is read here.

use super::{
    cursor::Cursor,
    error::DecodeError,
    iana::{error, header},
};

/// Octets of a header: marker, length, type.
pub const HEADER_LEN: usize = 19;
/// The marker: all ones.
pub const MARKER: [u8; 16] = [0xff; 16];
/// Largest message of a session without RFC 8654, and of OPEN and KEEPALIVE on any session.
pub const MAX_LEN: usize = 4_096;

/// Type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsgType {
    Open = 1,
    Update = 2,
    Notification = 3,
    Keepalive = 4,
    RouteRefresh = 5,
}

impl MsgType {
    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Open,
            2 => Self::Update,
            3 => Self::Notification,
            4 => Self::Keepalive,
            5 => Self::RouteRefresh,
            _ => return None,
        })
    }

    /// Lengths a message of this type may have on a session that allows `max` octets.
    const fn lengths(self, max: usize) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::Open => 29..=MAX_LEN,
            Self::Update => 23..=max,
            Self::Notification => 21..=max,
            Self::Keepalive => HEADER_LEN..=HEADER_LEN,
            // Longer ones (RFC 5291, RFC 7313) are judged where the subtype is known.
            Self::RouteRefresh => 23..=max,
        }
    }

    /// As RFC 4271 writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Update => "UPDATE",
            Self::Notification => "NOTIFICATION",
            Self::Keepalive => "KEEPALIVE",
            Self::RouteRefresh => "ROUTE-REFRESH",
        }
    }
}

/// A checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: MsgType,
    /// Octets of the whole message, header included; within the limits of its type.
    pub len: usize,
}

impl Header {
    /// Reads the header at the start of `buf`; `None` if more bytes are needed. A wrong marker is told from its
    /// first wrong octet: whoever speaks HTTP to us may never send 19 of them.
    ///
    /// # Errors
    /// RFC 4271 section 6.1: marker (1/1), length (1/2 with the length), type (1/3 with the type).
    pub fn parse(buf: &[u8], max_len: usize) -> Result<Option<Self>, DecodeError> {
        if let Some(at) = buf.iter().zip(&MARKER).position(|(got, want)| got != want) {
            return Err(DecodeError::new(
                error::HEADER,
                header::NOT_SYNCHRONIZED,
                &[],
                format!("marker is not all ones at octet {at}: not a BGP peer, or out of step"),
            ));
        }
        let mut cur = Cursor::new(buf);
        let (Some(_), Some(len), Some(kind)) = (cur.take(MARKER.len()), cur.u16(), cur.u8()) else {
            return Ok(None);
        };
        let bad_length = |what: &str| {
            let what = format!("length {len} is not allowed for {what}");
            DecodeError::new(error::HEADER, header::BAD_LENGTH, &len.to_be_bytes(), what)
        };
        let octets = usize::from(len);
        if !(HEADER_LEN..=max_len).contains(&octets) {
            return Err(bad_length("a message of this session"));
        }
        let Some(kind) = MsgType::from_code(kind) else {
            let what = format!("message type {kind} is unknown");
            return Err(DecodeError::new(error::HEADER, header::BAD_TYPE, &[kind], what));
        };
        if !kind.lengths(max_len).contains(&octets) {
            return Err(bad_length(kind.name()));
        }
        Ok(Some(Self { kind, len: octets }))
    }
}

/// Type and length of the message at the start of `buf`, once all of it is there; `None` if more bytes are needed.
/// `max_len` is [`super::WireCx::max_len`] of the reading direction.
///
/// # Errors
/// As [`Header::parse`], as early as the bytes allow.
pub fn next_frame(buf: &[u8], max_len: usize) -> Result<Option<(MsgType, usize)>, DecodeError> {
    let header = Header::parse(buf, max_len)?;
    Ok(header.filter(|h| h.len <= buf.len()).map(|h| (h.kind, h.len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(len: u16, kind: u8) -> Vec<u8> {
        let mut v = MARKER.to_vec();
        v.extend_from_slice(&len.to_be_bytes());
        v.push(kind);
        v
    }

    fn refusal(buf: &[u8], max: usize) -> (u8, u8, Vec<u8>) {
        let n = next_frame(buf, max).unwrap_err().notification;
        (n.code, n.subcode, n.data)
    }

    #[test]
    fn a_frame_is_cut_only_when_all_of_it_is_there() {
        let mut buf = header(19, 4);
        buf.extend_from_slice(&[0xff; 3]);
        assert_eq!(next_frame(&buf, 4096).unwrap(), Some((MsgType::Keepalive, 19)));
        for n in 0..19 {
            assert_eq!(next_frame(&buf[..n], 4096).unwrap(), None);
        }
        assert_eq!(next_frame(&header(23, 2), 4096).unwrap(), None);
    }

    #[test]
    fn a_wrong_marker_is_refused_at_its_first_wrong_octet() {
        assert_eq!(refusal(b"GET / HTTP/1.0\r\n\r\n", 4096), (1, 1, vec![]));
        let mut buf = header(19, 4);
        buf[15] = 0xfe;
        assert_eq!(refusal(&buf, 4096), (1, 1, vec![]));
        assert_eq!(refusal(&[0], 4096), (1, 1, vec![]));
    }

    #[test]
    fn lengths_outside_the_limits_of_session_and_type_are_refused_with_the_length() {
        for (len, kind) in
            [(0, 4), (18, 2), (4097, 2), (65535, 2), (20, 4), (22, 2), (28, 1), (20, 3), (22, 5), (18, 9)]
        {
            assert_eq!(refusal(&header(len, kind), 4096), (1, 2, len.to_be_bytes().to_vec()), "{len} {kind}");
        }
        assert_eq!(next_frame(&header(65_535, 2), 65_535).unwrap(), None);
        assert_eq!(refusal(&header(4_097, 1), 65_535), (1, 2, vec![0x10, 0x01]));
    }

    #[test]
    fn unknown_types_are_refused_with_the_type() {
        for kind in [0, 6, 7, 255] {
            assert_eq!(refusal(&header(19, kind), 4096), (1, 3, vec![kind]));
        }
    }
}
