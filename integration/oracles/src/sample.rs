//! One UPDATE as a data centre has them, for what is measured: seven attributes and prefixes of /26.

use std::net::Ipv4Addr;

use brindle_bgpd_core::wire::{AsPath, AttrSet, NextHop, Nlri, Prefixes, WireCx, announce, encode_attrs};
use bytes::BytesMut;
use ipnet::Ipv4Net;

/// An internal session with AS numbers of four octets.
pub const SESSION: WireCx =
    WireCx { four_octet_as: true, extended_message: false, add_path: [false; 2], ibgp: true };

/// The next hop of every route.
pub const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// The attributes.
pub fn attributes(med: u32) -> AttrSet {
    AttrSet {
        as_path: AsPath::sequence([65_001, 65_002, 65_003]),
        med: Some(med),
        local_pref: Some(100),
        communities: (0..4).map(|n| 0xfde9_0000 + n).collect(),
        large_communities: (0..2).map(|n| (65_001, 1, n)).collect(),
        ..AttrSet::default()
    }
}

/// `count` prefixes.
///
/// # Panics
/// Never: 26 bits fit.
pub fn prefixes(count: u32) -> Prefixes {
    let net = |i: u32| Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 + (i << 6)), 26).expect("26 bits");
    Prefixes::V4((0..count).map(|i| Nlri { prefix: net(i), path_id: 0 }).collect())
}

/// A message that announces them.
///
/// # Panics
/// With more prefixes than fit into one message.
pub fn frame(count: u32, med: u32) -> BytesMut {
    let (mut block, mut out) = (BytesMut::new(), BytesMut::new());
    encode_attrs(&attributes(med), Some(NEXT_HOP), &SESSION, &mut block).expect("short attributes");
    let messages = announce(&SESSION, &NextHop::V4(NEXT_HOP), &prefixes(count), &block, &mut out);
    assert_eq!(messages.expect("they fit"), 1);
    out
}
