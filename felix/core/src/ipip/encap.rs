//! Into the tunnel: the outer header of a packet (RFC 2003 section 3.1) and its ECN field
//! (RFC 6040 section 4.1, normal mode).

use std::net::Ipv4Addr;

use super::ipv4::{self, FLAG_DF, Header};
use super::{OUTER_TTL, PROTO_IPIP};

/// The outer TOS byte. The DSCP is not inherited (kernel ipip's default, and no stranger may
/// choose the underlay's class of service); the ECN field is copied, so that congestion marked in
/// the underlay reaches an ECN-capable receiver.
pub fn outer_tos(inner_tos: u8) -> u8 {
    inner_tos & 3
}

/// The outer header in front of `inner`. DF is always set, as kernel ipip does with path MTU
/// discovery on: a packet that does not fit is cut before it is wrapped, or its sender is told.
pub fn outer_header(local: Ipv4Addr, remote: Ipv4Addr, inner: &Header) -> [u8; ipv4::MIN_HEADER] {
    let payload = u16::try_from(inner.total_len).unwrap_or(u16::MAX);
    ipv4::build(local, remote, PROTO_IPIP, outer_tos(inner.tos), OUTER_TTL, FLAG_DF, payload)
}

/// Whether `inner` is one of our own outer packets coming back: the route to a node leads into
/// the tunnel. Wrapping it once more would go on until it fits no MTU.
pub fn is_loop(local: Ipv4Addr, inner: &Header) -> bool {
    inner.protocol == PROTO_IPIP && inner.src == local
}
