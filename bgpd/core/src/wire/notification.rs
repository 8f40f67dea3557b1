//! NOTIFICATION: reading, writing, the words for a log line, and the text an operator may attach to a shutdown
//! (RFC 4271 section 4.5, RFC 4486, RFC 9003 which replaces RFC 8203).

use std::fmt;

use bytes::{BufMut, BytesMut};

use super::{
    cursor::Cursor,
    iana::{cease, error, error_name, subcode_name},
    types::Notification,
};

/// Longest shutdown text, octets (RFC 9003 section 2).
const TEXT_MAX: usize = 255;

impl Notification {
    /// Without data.
    pub const fn new(code: u8, subcode: u8) -> Self {
        Self { code, subcode, data: Vec::new() }
    }

    /// Cease with a subcode of [`cease`].
    pub const fn cease(subcode: u8) -> Self {
        Self::new(error::CEASE, subcode)
    }

    /// Cease with a text for the other side's operator; for [`cease::ADMIN_SHUTDOWN`] and [`cease::ADMIN_RESET`].
    /// The text is cut at 255 octets, between characters. An empty one is sent as no data at all, as before
    /// RFC 8203.
    pub fn cease_with_text(subcode: u8, text: &str) -> Self {
        let mut end = text.len().min(TEXT_MAX);
        while !text.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        let text = text.as_bytes().get(..end).unwrap_or_default();
        let mut data = Vec::new();
        if let Some(len) = u8::try_from(text.len()).ok().filter(|n| *n > 0) {
            data.push(len);
            data.extend_from_slice(text);
        }
        Self { code: error::CEASE, subcode, data }
    }

    /// The operator's text in a received shutdown or reset, safe to print: at most 255 octets of it, invalid UTF-8
    /// replaced, control characters escaped. A length field that lies is ignored: what is there is shown.
    pub fn text(&self) -> Option<String> {
        if self.code != error::CEASE || !matches!(self.subcode, cease::ADMIN_SHUTDOWN | cease::ADMIN_RESET) {
            return None;
        }
        let (len, text) = self.data.split_first()?;
        let text = text.get(..usize::from(*len)).or_else(|| text.get(..TEXT_MAX)).unwrap_or(text);
        if text.is_empty() {
            return None;
        }
        let mut shown = String::with_capacity(text.len());
        for c in String::from_utf8_lossy(text).chars() {
            // Bidirectional and invisible controls could turn a log line into another one.
            if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            {
                shown.extend(c.escape_default());
            } else {
                shown.push(c);
            }
        }
        Some(shown)
    }

    pub(super) fn parse(body: &[u8]) -> Self {
        let mut cur = Cursor::new(body);
        // The header guarantees both.
        let (code, subcode) = (cur.u8().unwrap_or(0), cur.u8().unwrap_or(0));
        Self { code, subcode, data: cur.rest().to_vec() }
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        out.put_u8(self.code);
        out.put_u8(self.subcode);
        out.put_slice(&self.data);
    }
}

/// `6/2 cease: administrative shutdown "reboot at noon"`.
impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {}", self.code, self.subcode, error_name(self.code))?;
        if let Some(name) = subcode_name(self.code, self.subcode) {
            write!(f, ": {name}")?;
        }
        if let Some(text) = self.text() {
            write!(f, " \"{text}\"")?;
        }
        // RFC 8538: what it stands for. One level is enough; a peer could nest them as deep as a message is long.
        if (self.code, self.subcode) == (error::CEASE, cease::HARD_RESET)
            && let [code, subcode, data @ ..] = &self.data[..]
            && (*code, *subcode) != (error::CEASE, cease::HARD_RESET)
        {
            let inner = Self { code: *code, subcode: *subcode, data: data.to_vec() };
            write!(f, " of {inner}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shutdown_text_arrives_as_sent() {
        let n = Notification::cease_with_text(cease::ADMIN_SHUTDOWN, "reboot at noon");
        assert_eq!(n.data[0], 14);
        assert_eq!(n.to_string(), "6/2 cease: administrative shutdown \"reboot at noon\"");
        assert_eq!(Notification::cease_with_text(cease::ADMIN_RESET, "").data, Vec::<u8>::new());
    }

    #[test]
    fn a_hard_reset_shows_what_it_stands_for_and_no_more() {
        let n =
            Notification { data: vec![6, 2, 3, b'b', b'y', b'e'], ..Notification::cease(cease::HARD_RESET) };
        assert_eq!(n.to_string(), "6/9 cease: hard reset of 6/2 cease: administrative shutdown \"bye\"");
        let nested = Notification { data: vec![6, 9, 6, 9, 6, 9], ..Notification::cease(cease::HARD_RESET) };
        assert_eq!(nested.to_string(), "6/9 cease: hard reset");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let n = Notification::cease_with_text(cease::ADMIN_RESET, &"é".repeat(200));
        assert_eq!((n.data[0], n.data.len()), (254, 255));
        assert_eq!(n.text().unwrap(), "é".repeat(127));
    }

    #[test]
    fn a_received_text_cannot_lie_or_forge_log_lines() {
        let shutdown = |data: &[u8]| Notification { code: 6, subcode: 2, data: data.to_vec() }.text();
        assert_eq!(shutdown(b"\xffabc").as_deref(), Some("abc"));
        assert_eq!(shutdown(b"\x05ab\ncd").as_deref(), Some("ab\\ncd"));
        assert_eq!(shutdown(b"\x03a\xffb").as_deref(), Some("a\u{fffd}b"));
        assert_eq!(shutdown(b"\x03\xe2\x80\xae").as_deref(), Some("\\u{202e}"));
        assert_eq!(shutdown(b"\x02abcd").as_deref(), Some("ab"));
        assert_eq!(shutdown(b""), None);
        assert_eq!(shutdown(b"\x00"), None);
        assert_eq!(shutdown(&[255; 4_000]).unwrap().chars().count(), 255);
        assert_eq!(Notification { code: 6, subcode: 7, data: b"\x01a".to_vec() }.text(), None);
    }

    #[test]
    fn every_registered_subcode_has_a_name() {
        for (code, last) in [(1, 3), (2, 4), (5, 3), (6, 10), (7, 1)] {
            for subcode in 1..=last {
                assert!(subcode_name(code, subcode).is_some(), "{code}/{subcode}");
            }
        }
        assert_eq!(Notification::new(4, 0).to_string(), "4/0 hold timer expired");
        assert_eq!(Notification::new(99, 1).to_string(), "99/1 unknown error");
    }
}
