//! Cutting an inner packet that may be fragmented (RFC 791 section 3.2) before it is wrapped: the
//! outer packet then fits the path and nobody has to put outer fragments together.

use std::ops::Range;

use super::ipv4::{self, FLAG_MF, Header};

/// One fragment: a header of its own and the bytes of the packet that follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// The header's place in the buffer given to [`fragment`].
    pub head: Range<usize>,
    /// Bytes of the packet.
    pub body: Range<usize>,
}

/// Cuts `packet` (whose header is `header`) into fragments of at most `mtu` bytes; their headers
/// are appended to `heads`. Options that are not to be copied become no-operations in all but the
/// first. Empty when `mtu` has no room for eight bytes of payload or the packet may not be cut.
pub fn fragment(packet: &[u8], header: &Header, mtu: u16, heads: &mut Vec<u8>) -> Vec<Fragment> {
    let mut fragments = Vec::new();
    let room = usize::from(mtu).saturating_sub(header.header_len) & !7;
    let Some(original) = packet.get(..header.header_len) else { return fragments };
    if room == 0 || header.dont_fragment {
        return fragments;
    }
    let word = ipv4::flags_and_offset(original);
    let (base, last_flag) = (word & 0x1fff, word & FLAG_MF);
    let mut at = header.header_len;
    while at < header.total_len {
        let end = header.total_len.min(at.saturating_add(room));
        let start = heads.len();
        heads.extend_from_slice(original);
        let Some(head) = heads.get_mut(start..) else { return fragments };
        if at > header.header_len {
            blank_uncopied_options(head);
        }
        let more = if end < header.total_len { FLAG_MF } else { last_flag };
        let units = u16::try_from((at - header.header_len) / 8).unwrap_or(u16::MAX);
        let offset = base.saturating_add(units) & 0x1fff;
        let length = u16::try_from(header.header_len + (end - at)).unwrap_or(u16::MAX);
        ipv4::rewrite(head, length, header.id, more | offset);
        fragments.push(Fragment { head: start..heads.len(), body: at..end });
        at = end;
    }
    fragments
}

/// RFC 791 section 3.1: an option without the copied bit is in the first fragment only.
fn blank_uncopied_options(head: &mut [u8]) {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const COPIED: u8 = 0x80;
    let mut rest = head.get_mut(ipv4::MIN_HEADER..).unwrap_or_default();
    while let [kind, tail @ ..] = rest {
        let kind_now = *kind;
        let length = match kind_now {
            END => return,
            NOP => 1,
            _ => tail.first().map_or(0, |l| usize::from(*l)),
        };
        if length == 0 || length > rest.len() || (length == 1 && kind_now != NOP) {
            return;
        }
        let (option, next) = rest.split_at_mut(length);
        if kind_now & COPIED == 0 {
            option.fill(NOP);
        }
        rest = next;
    }
}
