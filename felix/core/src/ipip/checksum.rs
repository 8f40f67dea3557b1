//! The Internet checksum (RFC 1071): whole, of a pseudo header, and updated in place (RFC 1624).
//! Sums are kept in 64 bits and folded once.

use std::net::Ipv4Addr;

/// A running one's complement sum. Every slice added but the last must have an even length.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of the TCP/UDP pseudo header (RFC 9293 section 3.1). `length` counts transport
    /// header and payload.
    pub fn pseudo(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, length: u16) -> Sum {
        let mut sum = Sum::default();
        sum.add(&src.octets());
        sum.add(&dst.octets());
        sum.add(&[0, protocol]);
        sum.add(&length.to_be_bytes());
        sum
    }

    /// Adds bytes in network order.
    pub fn add(&mut self, bytes: &[u8]) {
        // One's complement addition does not care for byte order: sum in the machine's own, in
        // wide words and independent lanes, and swap once at the end.
        let (mut a, mut b, mut c, mut d) = (0u64, 0u64, 0u64, 0u64);
        let mut blocks = bytes.chunks_exact(16);
        for block in blocks.by_ref() {
            let (words, _) = block.as_chunks::<4>();
            if let [w0, w1, w2, w3] = words {
                a += u64::from(u32::from_ne_bytes(*w0));
                b += u64::from(u32::from_ne_bytes(*w1));
                c += u64::from(u32::from_ne_bytes(*w2));
                d += u64::from(u32::from_ne_bytes(*w3));
            }
        }
        let (pairs, odd) = blocks.remainder().as_chunks::<2>();
        for pair in pairs {
            a += u64::from(u16::from_ne_bytes(*pair));
        }
        if let [last] = odd {
            a += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        self.0 = fold_once(self.0) + fold_once(a) + fold_once(b) + fold_once(c) + fold_once(d);
    }

    /// The folded sum, not complemented, in network order terms.
    pub fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // Cannot be over 16 bits here; the mask says so to the type system.
        u16::from_be((sum & 0xffff) as u16)
    }

    /// The checksum: the complement of the folded sum.
    pub fn finish(self) -> u16 {
        !self.fold()
    }
}

fn fold_once(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// The checksum of `bytes`; 0 when they hold their own valid checksum.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = Sum::default();
    sum.add(bytes);
    sum.finish()
}

/// `check` after one 16-bit word it covers changed from `old` to `new` (RFC 1624, equation 3).
pub fn update(check: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!check) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) as u16)
}
