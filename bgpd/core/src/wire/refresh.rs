//! ROUTE-REFRESH (RFC 2918) with the subtypes of RFC 7313.

use bytes::{BufMut, BytesMut};

use super::{
    cursor::Cursor,
    error::DecodeError,
    frame::{MAX_LEN, MsgType},
    iana::{error, refresh},
    types::RouteRefresh,
};
use crate::af::Family;

/// Everything is wanted again.
pub const REQUEST: u8 = 0;
/// Everything follows (RFC 7313).
pub const BEGIN: u8 = 1;
/// That was everything.
pub const END: u8 = 2;

impl RouteRefresh {
    /// About one family.
    pub fn of(family: Family, subtype: u8) -> Self {
        let (afi, safi) = family.code();
        Self { afi, safi, subtype }
    }

    /// Appends the whole message.
    pub(crate) fn append(self, out: &mut BytesMut) {
        out.put_bytes(0xff, 16);
        out.put_u16(23);
        out.put_u8(MsgType::RouteRefresh as u8);
        self.emit(out);
    }

    /// `frame` is the whole message, which RFC 7313 section 5 wants back when its length is wrong. Unknown subtypes
    /// and families are values: the session ignores them. A request (subtype 0) may carry filters we did not ask
    /// for (RFC 5291): it is answered in full.
    pub(super) fn parse(frame: &[u8], body: &[u8]) -> Result<Self, DecodeError> {
        let mut cur = Cursor::new(body);
        let (Some(afi), Some(subtype), Some(safi)) = (cur.u16(), cur.u8(), cur.u8()) else {
            return Err(bad_length(frame));
        };
        if matches!(subtype, 1 | 2) && !cur.is_empty() {
            return Err(bad_length(frame));
        }
        Ok(Self { afi, safi, subtype })
    }

    pub(super) fn emit(self, out: &mut BytesMut) {
        out.put_u16(self.afi);
        out.put_u8(self.subtype);
        out.put_u8(self.safi);
    }
}

fn bad_length(frame: &[u8]) -> DecodeError {
    // The NOTIFICATION that returns the message is 21 octets longer than its data.
    let data = frame.get(..MAX_LEN.saturating_sub(21)).unwrap_or(frame);
    let what = format!("ROUTE-REFRESH of {} octets, 23 expected", frame.len());
    DecodeError::new(error::ROUTE_REFRESH, refresh::INVALID_LENGTH, data, what)
}

#[cfg(test)]
mod tests {
    use super::super::{Message, WireCx};
    use super::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut v = vec![0xff; 16];
        v.extend_from_slice(&u16::try_from(19 + body.len()).unwrap().to_be_bytes());
        v.push(5);
        v.extend_from_slice(body);
        v
    }

    #[test]
    fn requests_markers_and_unknown_subtypes_are_values() {
        for (body, want) in [
            ([0, 1, 0, 1], RouteRefresh { afi: 1, safi: 1, subtype: 0 }),
            ([0, 2, 1, 1], RouteRefresh { afi: 2, safi: 1, subtype: 1 }),
            ([0, 2, 2, 1], RouteRefresh { afi: 2, safi: 1, subtype: 2 }),
            ([64, 4, 99, 71], RouteRefresh { afi: 16388, safi: 71, subtype: 99 }),
        ] {
            let got = Message::parse(&frame(&body), &WireCx::default()).unwrap();
            assert_eq!(got, Message::RouteRefresh(want));
            let mut out = BytesMut::new();
            got.emit(&WireCx::default(), &mut out).unwrap();
            assert_eq!(out, frame(&body));
        }
    }

    #[test]
    fn an_enhanced_marker_of_wrong_length_is_returned_whole() {
        let bad = frame(&[0, 1, 2, 1, 0]);
        let n = Message::parse(&bad, &WireCx::default()).unwrap_err().notification;
        assert_eq!((n.code, n.subcode, n.data), (7, 1, bad));
        assert!(
            Message::parse(&frame(&[0, 1, 0, 1, 1, 64, 0, 0]), &WireCx::default()).is_ok(),
            "with filters"
        );
    }
}
