//! Prefixes on the wire, with and without path identifiers (RFC 4271 section 4.3, RFC 4760 section 5, RFC 7911).
//!
//! Syntax only (RFC 7606 section 5.3): what a prefix means is nobody's business here. Host bits a peer left set are
//! cleared, because RFC 4271 gives them no meaning.

use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::{BufMut, BytesMut};
use ipnet::{Ipv4Net, Ipv6Net};

use super::{
    cursor::Cursor,
    types::{Nlri, Prefixes},
};

mod sealed {
    pub trait Sealed {}
    impl Sealed for ipnet::Ipv4Net {}
    impl Sealed for ipnet::Ipv6Net {}
}

/// A prefix type that has a form on the wire.
pub trait WirePrefix: Copy + sealed::Sealed {
    /// Bits of an address.
    const BITS: u8;
    /// Reads the prefix of `len <= BITS` bits at the start of `bytes`, which may be longer; what is missing is zero.
    #[doc(hidden)]
    fn read(bytes: &[u8], len: u8) -> Self;
    /// The octets of the network, and zeros up to sixteen.
    #[doc(hidden)]
    fn network_octets(&self) -> [u8; 16];
    /// Bits of the prefix.
    #[doc(hidden)]
    fn bits(&self) -> u8;
    /// The prefixes as a value of either family.
    #[doc(hidden)]
    fn wrap(list: Vec<Nlri<Self>>) -> Prefixes;
}

impl WirePrefix for Ipv4Net {
    const BITS: u8 = 32;

    fn read(bytes: &[u8], len: u8) -> Self {
        let bits = match bytes.first_chunk() {
            Some(octets) => u32::from_be_bytes(*octets),
            None => u32::from_be_bytes(padded(bytes)),
        };
        let mask = u32::MAX.checked_shl(u32::from(Self::BITS.saturating_sub(len))).unwrap_or(0);
        Self::new(Ipv4Addr::from(bits & mask), len).unwrap_or_default()
    }

    #[inline]
    fn network_octets(&self) -> [u8; 16] {
        let [a, b, c, d] = self.network().octets();
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    #[inline]
    fn bits(&self) -> u8 {
        self.prefix_len()
    }

    fn wrap(list: Vec<Nlri<Self>>) -> Prefixes {
        Prefixes::V4(list)
    }
}

impl WirePrefix for Ipv6Net {
    const BITS: u8 = 128;

    fn read(bytes: &[u8], len: u8) -> Self {
        let bits = match bytes.first_chunk() {
            Some(octets) => u128::from_be_bytes(*octets),
            None => u128::from_be_bytes(padded(bytes)),
        };
        let mask = u128::MAX.checked_shl(u32::from(Self::BITS.saturating_sub(len))).unwrap_or(0);
        Self::new(Ipv6Addr::from(bits & mask), len).unwrap_or_default()
    }

    #[inline]
    fn network_octets(&self) -> [u8; 16] {
        self.network().octets()
    }

    #[inline]
    fn bits(&self) -> u8 {
        self.prefix_len()
    }

    fn wrap(list: Vec<Nlri<Self>>) -> Prefixes {
        Prefixes::V6(list)
    }
}

fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut octets = [0; N];
    for (to, from) in octets.iter_mut().zip(bytes) {
        *to = *from;
    }
    octets
}

/// Octets that hold so many bits.
const fn octets(bits: u8) -> usize {
    bits.div_ceil(8) as usize
}

/// Reads all prefixes of a field. Memory is claimed once, after the whole field was found sound.
///
/// # Errors
/// RFC 7606 section 5.3: a prefix longer than an address, or one that overruns the field; in words.
pub(super) fn parse<P: WirePrefix>(field: &[u8], add_path: bool) -> Result<Vec<Nlri<P>>, String> {
    let mut list = Vec::with_capacity(count::<P>(field, add_path)?);
    let mut cur = Cursor::new(field);
    while !cur.is_empty() {
        // `count` has seen every one of them.
        let path_id = if add_path { cur.u32().unwrap_or(0) } else { 0 };
        let len = cur.u8().unwrap_or(0).min(P::BITS);
        let prefix = P::read(cur.rest(), len);
        if cur.take(octets(len)).is_none() {
            break;
        }
        list.push(Nlri { prefix, path_id });
    }
    Ok(list)
}

fn count<P: WirePrefix>(field: &[u8], add_path: bool) -> Result<usize, String> {
    let mut cur = Cursor::new(field);
    let mut n: usize = 0;
    while !cur.is_empty() {
        if add_path && cur.u32().is_none() {
            return Err(format!("prefix {n} ends inside its path identifier"));
        }
        match cur.u8() {
            None => return Err(format!("prefix {n} has no length")),
            Some(len) if len > P::BITS => {
                return Err(format!("prefix {n} is of length {len}, at most {}", P::BITS));
            }
            Some(len) => {
                let left = cur.len();
                if cur.take(octets(len)).is_none() {
                    return Err(format!("prefix {n} of length {len} has only {left} octets"));
                }
            }
        }
        n = n.saturating_add(1);
    }
    Ok(n)
}

impl<P: WirePrefix> Nlri<P> {
    /// Octets on the wire.
    #[inline]
    pub fn wire_len(&self, add_path: bool) -> usize {
        octets(self.prefix.bits()).saturating_add(if add_path { 5 } else { 1 })
    }

    /// Writes to the start of a slot; returns how many of its octets are the prefix. Always all of them are written:
    /// copies of a known size are a few instructions, others a call.
    #[inline]
    pub(super) fn fill(&self, add_path: bool, slot: &mut [u8; SLOT]) -> usize {
        let bits = self.prefix.bits();
        let network = self.prefix.network_octets();
        if add_path {
            let [i, j, k, l, len, rest @ ..] = slot;
            [*i, *j, *k, *l] = self.path_id.to_be_bytes();
            *len = bits;
            *rest = network;
        } else {
            let [len, rest @ .., _, _, _, _] = slot;
            *len = bits;
            *rest = network;
        }
        self.wire_len(add_path)
    }

    pub(super) fn emit(&self, add_path: bool, out: &mut BytesMut) {
        let mut slot = [0; SLOT];
        let n = self.fill(add_path, &mut slot);
        out.put_slice(slot.get(..n).unwrap_or_default());
    }
}

/// Octets of the longest prefix: path identifier, length, address.
pub(super) const SLOT: usize = 21;

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(field: &[u8], add_path: bool) -> Result<Vec<String>, String> {
        Ok(parse::<Ipv4Net>(field, add_path)?.iter().map(|n| format!("{} {}", n.prefix, n.path_id)).collect())
    }

    #[test]
    fn prefixes_of_every_length_survive_the_wire() {
        for len in 0..=32 {
            let n = Nlri { prefix: Ipv4Net::new(Ipv4Addr::BROADCAST, len).unwrap().trunc(), path_id: 7 };
            for add_path in [false, true] {
                let mut out = BytesMut::new();
                n.emit(add_path, &mut out);
                assert_eq!(out.len(), n.wire_len(add_path));
                let back = parse::<Ipv4Net>(&out, add_path).unwrap();
                assert_eq!((back.len(), back[0].prefix), (1, n.prefix));
                assert_eq!(back[0].path_id, if add_path { 7 } else { 0 });
            }
        }
        for len in 0..=128 {
            let prefix = Ipv6Net::new(Ipv6Addr::from(u128::MAX), len).unwrap().trunc();
            let mut out = BytesMut::new();
            Nlri { prefix, path_id: 0 }.emit(false, &mut out);
            assert_eq!(parse::<Ipv6Net>(&out, false).unwrap()[0].prefix, prefix);
        }
    }

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(
            v4(&[9, 10, 0xff, 8, 192, 20, 1, 2, 0x3f], false).unwrap(),
            ["10.128.0.0/9 0", "192.0.0.0/8 0", "1.2.48.0/20 0"]
        );
    }

    #[test]
    fn what_overruns_is_an_error_and_names_the_prefix() {
        assert_eq!(
            v4(&[8, 10, 33, 1, 2, 3, 4, 5], false).unwrap_err(),
            "prefix 1 is of length 33, at most 32"
        );
        assert_eq!(v4(&[24, 1, 2], false).unwrap_err(), "prefix 0 of length 24 has only 2 octets");
        assert_eq!(v4(&[0, 0, 0], true).unwrap_err(), "prefix 0 ends inside its path identifier");
        assert_eq!(v4(&[0, 0, 0, 1], true).unwrap_err(), "prefix 0 has no length");
        assert!(parse::<Ipv6Net>(&[129; 30], false).is_err());
        assert_eq!(v4(&[], false).unwrap(), Vec::<String>::new());
        assert_eq!(v4(&[0, 0], false).unwrap(), ["0.0.0.0/0 0", "0.0.0.0/0 0"]);
    }
}
