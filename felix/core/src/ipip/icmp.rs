//! ICMP errors to the sender of an inner packet (RFC 792, RFC 1191, RFC 1122 section 3.2.2,
//! RFC 1812 section 4.3.2): which packets deserve one, and its bytes.

use std::net::Ipv4Addr;

use super::checksum;
use super::ipv4::{self, FLAG_DF, Header, MIN_HEADER};

const PROTO_ICMP: u8 = 1;
const ICMP_HEADER: usize = 8;
const UNREACHABLE: u8 = 3;
/// Precedence 6, internetwork control (RFC 1812 section 4.3.2.5).
const TOS_CONTROL: u8 = 0xc0;
const TTL: u8 = 64;
/// An error quotes as much as fits into 576 bytes (RFC 1812 section 4.3.2.3).
const MAX_ERROR: usize = 576;

/// What the sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// The packet has DF set and is longer than this many bytes (RFC 1191 next-hop MTU).
    FragmentationNeeded {
        /// The largest inner packet that fits.
        mtu: u16,
    },
    /// No node carries the destination.
    HostUnreachable,
}

/// The error about `packet` (whose header is `header`), a whole IPv4 packet, or `None` where no
/// error may be sent.
///
/// Its source is the packet's own destination, as Linux's tunnels do: the receiver's reverse path
/// check passes because that address is routed into the tunnel, and an address of this host would
/// be refused as martian on the way in.
pub fn error(packet: &[u8], header: &Header, what: Error) -> Option<Vec<u8>> {
    if header.fragment_offset != 0 || !answerable(header.src) || !answerable(header.dst) {
        return None;
    }
    if header.protocol == PROTO_ICMP {
        // Only requests and replies: an error about an error could go on for ever. An unreadable
        // one is left alone too.
        let kind = packet.get(header.header_len..header.total_len).and_then(<[u8]>::first)?;
        if !matches!(kind, 0 | 8 | 13 | 14) {
            return None;
        }
    }
    let whole = packet.get(..header.total_len)?;
    let quote = whole.get(..whole.len().min(MAX_ERROR - MIN_HEADER - ICMP_HEADER))?;
    let (code, [m0, m1]) = match what {
        Error::FragmentationNeeded { mtu } => (4, mtu.to_be_bytes()),
        Error::HostUnreachable => (1, [0, 0]),
    };
    let mut icmp = Vec::with_capacity(MAX_ERROR);
    icmp.extend_from_slice(&[UNREACHABLE, code, 0, 0, 0, 0, m0, m1]);
    icmp.extend_from_slice(quote);
    let [c0, c1] = checksum::checksum(&icmp).to_be_bytes();
    let length = u16::try_from(icmp.len()).ok()?;
    let ip = ipv4::build(header.dst, header.src, PROTO_ICMP, TOS_CONTROL, TTL, FLAG_DF, length);
    if let [_, _, s0, s1, ..] = icmp.as_mut_slice() {
        [*s0, *s1] = [c0, c1];
    }
    icmp.splice(0..0, ip);
    Some(icmp)
}

/// Whether an address stands for one host elsewhere.
fn answerable(address: Ipv4Addr) -> bool {
    let class_e = address.octets()[0] >= 240;
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || class_e)
}

/// Bounds the errors sent: a token bucket on milliseconds of any monotonic clock.
#[derive(Debug, Clone)]
pub struct Limiter {
    per_second: u32,
    tokens: u32,
    refilled_ms: u64,
}

impl Limiter {
    /// At most `per_second` errors a second, in a burst too.
    pub fn new(per_second: u32, now_ms: u64) -> Limiter {
        Limiter { per_second, tokens: per_second, refilled_ms: now_ms }
    }

    /// Takes a token if there is one.
    pub fn allow(&mut self, now_ms: u64) -> bool {
        let elapsed = now_ms.saturating_sub(self.refilled_ms);
        let fresh = elapsed.saturating_mul(u64::from(self.per_second)) / 1000;
        if fresh > 0 {
            let full = u64::from(self.per_second);
            let tokens = u64::from(self.tokens).saturating_add(fresh).min(full);
            self.tokens = u32::try_from(tokens).unwrap_or(self.per_second);
            self.refilled_ms = now_ms;
        }
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }
}
