//! Out of the tunnel: the verdict on a received packet of protocol 4. The outer header must be
//! right and come from a known node, the inner packet must be whole IPv4, and the two ECN fields
//! must go together (RFC 6040 section 4.2, figure 4).

use std::net::Ipv4Addr;
use std::ops::Range;

use super::ipv4::{Flaw, Header};
use super::{PROTO_IPIP, table::Table};

/// What to do with a received packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Hand in the inner packet.
    Deliver(Delivery),
    /// The outer source is no known node.
    UnknownSource(Ipv4Addr),
    /// The outer packet is not what a tunnel end sends.
    Outer(OuterFlaw),
    /// The inner packet is no IPv4 packet.
    Inner(Flaw),
    /// Congestion was marked on a packet whose ends do not speak ECN: it must be dropped.
    EcnDrop,
}

/// Where the inner packet is and what must be written into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Bytes of the received packet, padding cut off.
    pub inner: Range<usize>,
    /// The inner header.
    pub header: Header,
    /// The ECN field to set in it, when it changes.
    pub set_ecn: Option<u8>,
}

/// What is wrong with an outer header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OuterFlaw {
    /// Not a whole IPv4 packet.
    Header(Flaw),
    /// Another protocol than 4.
    Protocol(u8),
    /// A fragment: the kernel puts fragments together before a raw socket sees them.
    Fragment,
}

/// Judges a packet as it came from a raw socket, outer header first. The kernel has checked the
/// outer checksum.
pub fn decapsulate(packet: &[u8], table: &Table) -> Verdict {
    let outer = match Header::parse(packet) {
        Ok(outer) => outer,
        Err(flaw) => return Verdict::Outer(OuterFlaw::Header(flaw)),
    };
    if outer.protocol != PROTO_IPIP {
        return Verdict::Outer(OuterFlaw::Protocol(outer.protocol));
    }
    if outer.is_fragment() {
        return Verdict::Outer(OuterFlaw::Fragment);
    }
    if !table.accepts(outer.src) {
        return Verdict::UnknownSource(outer.src);
    }
    let payload = packet.get(outer.header_len..outer.total_len).unwrap_or_default();
    let header = match Header::parse_checked(payload) {
        Ok(header) => header,
        Err(flaw) => return Verdict::Inner(flaw),
    };
    let Some(ecn) = merge_ecn(outer.tos & 3, header.tos & 3) else { return Verdict::EcnDrop };
    let inner = outer.header_len..outer.header_len.saturating_add(header.total_len);
    let set_ecn = (ecn != header.tos & 3).then_some(ecn);
    Verdict::Deliver(Delivery { inner, header, set_ecn })
}

const NOT_ECT: u8 = 0;
const ECT1: u8 = 1;
const ECT0: u8 = 2;
const CE: u8 = 3;

/// The inner ECN field after decapsulation; `None` for "drop".
pub fn merge_ecn(outer: u8, inner: u8) -> Option<u8> {
    match (inner & 3, outer & 3) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (ECT0, ECT1) => Some(ECT1),
        (inner, _) => Some(inner),
    }
}
