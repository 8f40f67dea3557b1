//! Frames the kernel hands out unfinished: a checksum still to be made, or one frame that stands
//! for many TCP segments or UDP datagrams. On the wire every packet must be whole.

use std::ops::Range;

use super::checksum::{Sum, checksum};
use super::fragment::Fragment;
use super::ipv4::{self, Header};

const PROTO_TCP: u8 = 6;
const PROTO_UDP: u8 = 17;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// No sender cuts finer; a smaller size would turn one frame into tens of thousands.
const MIN_SIZE: u16 = 8;

/// Why a frame cannot be finished. The kernel makes no such frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The headers the frame needs are not there.
    #[error("transport header missing or of another protocol")]
    Header,
    /// The segment size is absurd.
    #[error("segment size {0}")]
    Size(u16),
    /// The checksum's place is outside the packet.
    #[error("checksum outside the packet")]
    Checksum,
}

/// The transport of a frame to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP segments.
    Tcp,
    /// UDP datagrams of equal length (the last may be shorter).
    Udp,
}

/// Makes the checksum over the bytes from `start` to the end and puts it at `start + offset`. The
/// field holds the pseudo header's sum until then.
pub fn complete_checksum(packet: &mut [u8], start: u16, offset: u16) -> Result<(), SegmentError> {
    let covered = packet.get_mut(usize::from(start)..).ok_or(SegmentError::Checksum)?;
    let value = checksum(covered);
    let offset = usize::from(offset);
    let field = covered.get_mut(offset..offset + 2).ok_or(SegmentError::Checksum)?;
    field.copy_from_slice(&never_zero(value).to_be_bytes());
    Ok(())
}

/// Zero means "no checksum" in UDP; its other form is equal in one's complement, for TCP too.
fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// The length of the headers `packet` starts with, IPv4 and transport, for a frame of `kind`.
pub fn headers_len(packet: &[u8], header: &Header, kind: Kind) -> Result<usize, SegmentError> {
    let transport = packet.get(header.header_len..header.total_len).ok_or(SegmentError::Header)?;
    let length = match kind {
        Kind::Tcp if header.protocol == PROTO_TCP => {
            let fixed = transport.first_chunk::<TCP_HEADER>().ok_or(SegmentError::Header)?;
            usize::from(fixed[12] >> 4) * 4
        }
        Kind::Udp if header.protocol == PROTO_UDP => UDP_HEADER,
        Kind::Tcp | Kind::Udp => return Err(SegmentError::Header),
    };
    let least = if kind == Kind::Tcp { TCP_HEADER } else { UDP_HEADER };
    if length < least || length > transport.len() || header.is_fragment() {
        return Err(SegmentError::Header);
    }
    Ok(header.header_len + length)
}

/// Cuts `packet` into packets of at most `size` payload bytes. The headers are appended to
/// `heads`, one [`Fragment`] per packet to `out`; every checksum is complete.
pub fn segment(
    packet: &[u8],
    header: &Header,
    kind: Kind,
    size: u16,
    heads: &mut Vec<u8>,
    out: &mut Vec<Fragment>,
) -> Result<(), SegmentError> {
    if size < MIN_SIZE {
        return Err(SegmentError::Size(size));
    }
    let head_len = headers_len(packet, header, kind)?;
    let head = packet.get(..head_len).ok_or(SegmentError::Header)?;
    let word = ipv4::flags_and_offset(head);
    let mut at = head_len;
    let mut count = 0u16;
    loop {
        let end = header.total_len.min(at.saturating_add(usize::from(size)));
        let body = packet.get(at..end).unwrap_or_default();
        let (first, last) = (at == head_len, end == header.total_len);
        let start = heads.len();
        heads.extend_from_slice(head);
        let new = heads.get_mut(start..).unwrap_or_default();
        let (ip, transport) = new.split_at_mut_checked(header.header_len).ok_or(SegmentError::Header)?;
        let length = u16::try_from(head_len + body.len()).map_err(|_| SegmentError::Header)?;
        ipv4::rewrite(ip, length, header.id.wrapping_add(count), word);
        let transport_len = length.saturating_sub(u16::try_from(header.header_len).unwrap_or(0));
        let field = match kind {
            Kind::Tcp => {
                edit_tcp(transport, at - head_len, first, last);
                16
            }
            Kind::Udp => {
                if let Some(l) = transport.get_mut(4..6) {
                    l.copy_from_slice(&transport_len.to_be_bytes());
                }
                6
            }
        };
        put(transport, field, 0);
        let mut sum = Sum::pseudo(header.src, header.dst, header.protocol, transport_len);
        sum.add(transport);
        sum.add(body);
        put(transport, field, never_zero(sum.finish()));
        out.push(Fragment { head: start..heads.len(), body: at..end });
        if last {
            return Ok(());
        }
        at = end;
        count = count.wrapping_add(1);
    }
}

/// Sequence number and flags of the segment `at` bytes into the stream of the frame: CWR belongs
/// to the first, FIN and PSH to the last (RFC 3168 section 6.1.2, RFC 9293 section 3.9.1.2).
fn edit_tcp(tcp: &mut [u8], at: usize, first: bool, last: bool) {
    let Some(fixed) = tcp.first_chunk_mut::<TCP_HEADER>() else { return };
    let seq = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
    let seq = seq.wrapping_add(u32::try_from(at).unwrap_or(0));
    [fixed[4], fixed[5], fixed[6], fixed[7]] = seq.to_be_bytes();
    if !first {
        fixed[FLAGS] &= !CWR;
    }
    if !last {
        fixed[FLAGS] &= !(FIN | PSH);
    }
}

fn put(transport: &mut [u8], at: usize, value: u16) {
    if let Some(field) = transport.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// The state of the transport checksum of a packet from the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// Nothing to do: complete, or not for us to judge.
    AsIs,
    /// The field holds the pseudo header's sum only: the sender is on this very machine (a veth
    /// away), or the network card put segments together. The kernel must finish it.
    Partial {
        /// Where the covered bytes begin, from the start of the packet.
        start: u16,
        /// The field, from `start`.
        offset: u16,
        /// The transport.
        kind: Kind,
    },
}

/// Finds an unfinished checksum. A raw socket does not say that a packet's checksum was left to
/// hardware; the field then holds exactly the pseudo header's sum, and the whole does not add up.
pub fn transport_state(packet: &[u8], header: &Header) -> Transport {
    let (kind, offset) = match header.protocol {
        PROTO_TCP => (Kind::Tcp, 16u16),
        PROTO_UDP => (Kind::Udp, 6u16),
        _ => return Transport::AsIs,
    };
    let range: Range<usize> = header.header_len..header.total_len;
    let (Some(transport), Ok(start)) = (packet.get(range), u16::try_from(header.header_len)) else {
        return Transport::AsIs;
    };
    let at = usize::from(offset);
    let (Some(&[a, b]), Ok(length), false) =
        (transport.get(at..at + 2), u16::try_from(transport.len()), header.is_fragment())
    else {
        return Transport::AsIs;
    };
    let mut sum = Sum::pseudo(header.src, header.dst, header.protocol, length);
    if u16::from_be_bytes([a, b]) != sum.fold() {
        return Transport::AsIs;
    }
    sum.add(transport);
    if sum.finish() == 0 { Transport::AsIs } else { Transport::Partial { start, offset, kind } }
}
