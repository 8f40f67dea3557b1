//! A checked view of an IPv4 header (RFC 791), and in-place edits that keep its checksum right.

use std::net::Ipv4Addr;

use super::checksum;

/// Length of a header without options.
pub const MIN_HEADER: usize = 20;
const DF: u16 = 0x4000;
const MF: u16 = 0x2000;

/// What makes bytes no IPv4 packet. Counted by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Flaw {
    /// Fewer bytes than a header has.
    #[error("shorter than an IPv4 header")]
    Short,
    /// The version field is not 4.
    #[error("IP version is not 4")]
    Version,
    /// The header length is under 20 or beyond the packet.
    #[error("header length out of bounds")]
    HeaderLength,
    /// The total length is under the header's or beyond the bytes there are.
    #[error("total length out of bounds")]
    TotalLength,
    /// The header checksum is wrong.
    #[error("header checksum is wrong")]
    Checksum,
}

/// The fields of an IPv4 header whose lengths were checked against the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Header bytes, options included: 20 to 60.
    pub header_len: usize,
    /// Bytes of the packet, header included. Never more than were given.
    pub total_len: usize,
    /// DSCP and ECN.
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Don't fragment.
    pub dont_fragment: bool,
    /// More fragments follow.
    pub more_fragments: bool,
    /// Offset of this fragment's payload, in bytes.
    pub fragment_offset: u32,
    /// Time to live.
    pub ttl: u8,
    /// Protocol number of the payload.
    pub protocol: u8,
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
}

impl Header {
    /// Reads the header at the start of `packet`. The checksum is looked at by
    /// [`parse_checked`](Self::parse_checked) only: the kernel made what comes out of a TUN device.
    pub fn parse(packet: &[u8]) -> Result<Header, Flaw> {
        let Some((h, _)) = packet.split_first_chunk::<MIN_HEADER>() else { return Err(Flaw::Short) };
        let [vi, tos, l0, l1, i0, i1, f0, f1, ttl, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *h;
        if vi >> 4 != 4 {
            return Err(Flaw::Version);
        }
        let header_len = usize::from(vi & 15) * 4;
        if header_len < MIN_HEADER || header_len > packet.len() {
            return Err(Flaw::HeaderLength);
        }
        let total_len = usize::from(u16::from_be_bytes([l0, l1]));
        if total_len < header_len || total_len > packet.len() {
            return Err(Flaw::TotalLength);
        }
        let frag = u16::from_be_bytes([f0, f1]);
        Ok(Header {
            header_len,
            total_len,
            tos,
            id: u16::from_be_bytes([i0, i1]),
            dont_fragment: frag & DF != 0,
            more_fragments: frag & MF != 0,
            fragment_offset: u32::from(frag & 0x1fff) * 8,
            ttl,
            protocol,
            src: Ipv4Addr::new(s0, s1, s2, s3),
            dst: Ipv4Addr::new(d0, d1, d2, d3),
        })
    }

    /// [`parse`](Self::parse), and the header checksum must be right.
    pub fn parse_checked(packet: &[u8]) -> Result<Header, Flaw> {
        let header = Header::parse(packet)?;
        let bytes = packet.get(..header.header_len).ok_or(Flaw::HeaderLength)?;
        if checksum::checksum(bytes) != 0 { Err(Flaw::Checksum) } else { Ok(header) }
    }

    /// Whether this is one fragment of several.
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }
}

/// Writes total length, identification and flags/offset word into a header and makes its checksum
/// anew. Does nothing to fewer than 20 bytes.
pub fn rewrite(header: &mut [u8], total_len: u16, id: u16, flags_and_offset: u16) {
    let Some(fixed) = header.first_chunk_mut::<MIN_HEADER>() else { return };
    [fixed[2], fixed[3]] = total_len.to_be_bytes();
    [fixed[4], fixed[5]] = id.to_be_bytes();
    [fixed[6], fixed[7]] = flags_and_offset.to_be_bytes();
    [fixed[10], fixed[11]] = [0, 0];
    let check = checksum::checksum(header);
    if let Some(fixed) = header.first_chunk_mut::<MIN_HEADER>() {
        [fixed[10], fixed[11]] = check.to_be_bytes();
    }
}

/// The flags and offset word of a header (DF, MF, fragment offset in units of 8 bytes).
pub fn flags_and_offset(header: &[u8]) -> u16 {
    header.first_chunk::<MIN_HEADER>().map_or(0, |h| u16::from_be_bytes([h[6], h[7]]))
}

/// Sets the ECN field of the header at the start of `packet` and updates its checksum.
pub fn set_ecn(packet: &mut [u8], ecn: u8) {
    let Some(h) = packet.first_chunk_mut::<MIN_HEADER>() else { return };
    let old = u16::from_be_bytes([h[0], h[1]]);
    h[1] = (h[1] & !3) | (ecn & 3);
    let new = u16::from_be_bytes([h[0], h[1]]);
    let check = checksum::update(u16::from_be_bytes([h[10], h[11]]), old, new);
    [h[10], h[11]] = check.to_be_bytes();
}

/// A header of 20 bytes, checksum included.
pub fn build(
    src: Ipv4Addr,
    dst: Ipv4Addr,
    protocol: u8,
    tos: u8,
    ttl: u8,
    flags_and_offset: u16,
    payload_len: u16,
) -> [u8; MIN_HEADER] {
    let mut h = [0u8; MIN_HEADER];
    h[0] = 0x45;
    h[1] = tos;
    h[8] = ttl;
    h[9] = protocol;
    h[12..16].copy_from_slice(&src.octets());
    h[16..20].copy_from_slice(&dst.octets());
    rewrite(&mut h, payload_len.saturating_add(20), 0, flags_and_offset);
    h
}

/// The don't-fragment bit in the flags and offset word.
pub const FLAG_DF: u16 = DF;
/// The more-fragments bit in the flags and offset word.
pub const FLAG_MF: u16 = MF;
