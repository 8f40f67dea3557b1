//! `Message::parse` and `Message::emit`: one frame, one value. Bodies are read and written by the module of their
//! type.

use bytes::{BufMut, BytesMut};

use super::{
    cursor::patch,
    error::{DecodeError, EmitError},
    frame::{HEADER_LEN, Header, MARKER, MAX_LEN, MsgType},
    iana::{error, header},
    types::{Message, Notification, Open, RouteRefresh, Update, WireCx},
};

impl Message {
    /// Reads exactly one message, header included.
    ///
    /// # Errors
    /// What RFC 4271 section 6, RFC 7606 and RFC 7313 let end a session.
    pub fn parse(frame: &[u8], cx: &WireCx) -> Result<Self, DecodeError> {
        let header = Header::parse(frame, cx.max_len())?.filter(|h| h.len == frame.len());
        let (Some(header), Some(body)) = (header, frame.get(HEADER_LEN..)) else {
            let len = u16::try_from(frame.len()).unwrap_or(u16::MAX).to_be_bytes();
            let what = format!("{} octets are not one message", frame.len());
            return Err(DecodeError::new(error::HEADER, header::BAD_LENGTH, &len, what));
        };
        Ok(match header.kind {
            MsgType::Open => Self::Open(Open::parse(body)?),
            MsgType::Update => Self::Update(Update::parse(body, cx)?),
            MsgType::Notification => Self::Notification(Notification::parse(body)),
            MsgType::Keepalive => Self::Keepalive,
            MsgType::RouteRefresh => Self::RouteRefresh(RouteRefresh::parse(frame, body)?),
        })
    }

    /// Appends the message, header included. Nothing is appended on error.
    ///
    /// # Errors
    /// [`EmitError`]: the value does not fit into one message of this session.
    pub fn emit(&self, cx: &WireCx, out: &mut BytesMut) -> Result<(), EmitError> {
        let (kind, max) = match self {
            Self::Open(_) => (MsgType::Open, MAX_LEN),
            Self::Update(_) => (MsgType::Update, cx.max_len()),
            Self::Notification(_) => (MsgType::Notification, cx.max_len()),
            Self::Keepalive => (MsgType::Keepalive, MAX_LEN),
            Self::RouteRefresh(_) => (MsgType::RouteRefresh, MAX_LEN),
        };
        let start = begin(kind, out);
        let body = match self {
            Self::Open(open) => open.emit(out),
            Self::Update(update) => update.emit(cx, out),
            Self::Notification(n) => {
                n.emit(out);
                Ok(())
            }
            Self::Keepalive => Ok(()),
            Self::RouteRefresh(r) => {
                r.emit(out);
                Ok(())
            }
        };
        body.and_then(|()| finish(start, kind, max, out)).inspect_err(|_| out.truncate(start))
    }
}

/// Writes a header without its length; returns where it starts, for [`finish`].
pub(super) fn begin(kind: MsgType, out: &mut BytesMut) -> usize {
    let start = out.len();
    out.put_slice(&MARKER);
    out.put_u16(0);
    out.put_u8(kind as u8);
    start
}

/// Fills in the length of the message that began at `start`.
pub(super) fn finish(start: usize, kind: MsgType, max: usize, out: &mut BytesMut) -> Result<(), EmitError> {
    let len = out.len().saturating_sub(start);
    match u16::try_from(len) {
        Ok(field) if len <= max => {
            patch(out, start.saturating_add(MARKER.len()), field.to_be_bytes());
            Ok(())
        }
        _ => Err(EmitError::TooLong { what: kind.name(), len, max }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_must_be_exactly_one_message() {
        let cx = WireCx::default();
        let mut buf = BytesMut::new();
        Message::Keepalive.emit(&cx, &mut buf).unwrap();
        assert_eq!(Message::parse(&buf, &cx).unwrap(), Message::Keepalive);
        for bad in [&buf[..18], &[&buf[..], &[0]].concat(), &[][..]] {
            let n = Message::parse(bad, &cx).unwrap_err().notification;
            assert_eq!((n.code, n.subcode), (1, 2));
        }
    }

    #[test]
    fn what_does_not_fit_leaves_the_buffer_as_it_was() {
        let cx = WireCx::default();
        let mut buf = BytesMut::from(&b"before"[..]);
        let big = Message::Notification(Notification { code: 6, subcode: 2, data: vec![0; 4_076] });
        assert!(matches!(big.emit(&cx, &mut buf), Err(EmitError::TooLong { len: 4_097, max: 4_096, .. })));
        assert_eq!(&buf[..], b"before");
        big.emit(&WireCx { extended_message: true, ..cx }, &mut buf).unwrap();
        assert_eq!(buf.len(), 6 + 4_097);
    }
}
