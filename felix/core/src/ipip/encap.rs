//! Into the tunnel: what of the outer header depends on the packet, which is its ECN field (RFC 6040 section 4.1, normal
//! mode; the kernel writes the rest of it, RFC 2003 section 3.1), and what must not be wrapped.

use std::net::Ipv4Addr;

use super::PROTO_IPIP;
use super::ipv4::Header;

/// The outer TOS byte. The DSCP is not inherited (kernel ipip's default, and no stranger may
/// choose the underlay's class of service); the ECN field is copied, so that congestion marked in
/// the underlay reaches an ECN-capable receiver.
pub fn outer_tos(inner_tos: u8) -> u8 {
    inner_tos & 3
}

/// Whether `inner` is one of our own outer packets coming back: the route to a node leads into
/// the tunnel. Wrapping it once more would go on until it fits no MTU.
pub fn is_loop(local: Ipv4Addr, inner: &Header) -> bool {
    inner.protocol == PROTO_IPIP && inner.src == local
}
