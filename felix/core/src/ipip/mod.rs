//! The packet rules of IP in IP (RFC 2003, RFC 6040): what goes into the tunnel and how, what may
//! come out of it, and what is told to the sender of a packet that does not fit. Bytes in,
//! verdicts out: no sockets here, no counters, no clock. Any bytes give a verdict, none a panic.
//!
//! - [`checksum`], [`ipv4`]: the Internet checksum and a checked view of an IPv4 header.
//! - [`table`]: which node carries which destination, and who may send to us.
//! - [`encap`], [`decap`]: the outer header on the way out, the verdict on the way in.
//! - [`icmp`], [`fragment`]: packets that do not fit the path.
//! - [`segment`], [`coalesce`]: frames that stand for many packets, cut on the way out and put
//!   together on the way in.

pub mod checksum;
pub mod coalesce;
pub mod decap;
pub mod encap;
pub mod flow;
pub mod fragment;
pub mod icmp;
pub mod ipv4;
pub mod segment;
pub mod table;

/// IP protocol number of IP in IP (RFC 2003 section 3.1).
pub const PROTO_IPIP: u8 = 4;
/// Bytes the outer header adds to every packet.
pub const OVERHEAD: u16 = 20;
/// TTL of outer headers (RFC 2003 section 3.1: enough to reach the other end, whatever the inner one).
pub const OUTER_TTL: u8 = 64;
/// The smallest MTU an IPv4 link may have (RFC 791), and the least we believe a path to have.
pub const MIN_MTU: u16 = 68;

#[cfg(test)]
mod tests;
