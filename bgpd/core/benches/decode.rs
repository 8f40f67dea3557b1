//! Reading UPDATEs: nanoseconds per message and per prefix.
//!
//! `cargo bench -p brindle-bgpd-core --bench decode`
#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::{hint::black_box, net::Ipv4Addr};

use brindle_bgpd_core::wire::{AsPath, AttrSet, Message, NextHop, Nlri, Prefixes, Reach, Update, WireCx};
use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ipnet::{Ipv4Net, Ipv6Net};

const CX: WireCx = WireCx { four_octet_as: true, extended_message: false, add_path: [false; 2], ibgp: true };

/// Seven attributes, as a route of a data centre has them.
fn attrs() -> AttrSet {
    AttrSet {
        as_path: AsPath::sequence([65_001, 65_002, 65_003]),
        med: Some(10),
        local_pref: Some(100),
        communities: (0..4).map(|n| 0xfde9_0000 + n).collect(),
        large_communities: (0..2).map(|n| (65_001, 1, n)).collect(),
        ..AttrSet::default()
    }
}

fn v4(n: u32, len: u8) -> Prefixes {
    let net = |i: u32| Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + (i << (32 - len))), len).unwrap();
    Prefixes::V4((0..n).map(|i| Nlri { prefix: net(i), path_id: 0 }).collect())
}

fn v6(n: u128) -> Prefixes {
    let net = |i: u128| Ipv6Net::new(((0x2001_0db8 << 96) + (i << 64)).into(), 64).unwrap();
    Prefixes::V6((0..n).map(|i| Nlri { prefix: net(i), path_id: 0 }).collect())
}

fn frame(withdrawn: Vec<Prefixes>, reach: Vec<Reach>) -> BytesMut {
    let attributes = (!reach.is_empty()).then(attrs);
    let mut out = BytesMut::new();
    let update = Update { withdrawn, attributes, reach, ..Update::default() };
    Message::Update(update).emit(&CX, &mut out).unwrap();
    out
}

fn decode(c: &mut Criterion) {
    let hop4 = NextHop::V4(Ipv4Addr::new(10, 0, 0, 1));
    let hop6 = NextHop::V6 { global: "2001:db8::1".parse().unwrap(), link_local: None };
    let reach = |next_hop, prefixes| vec![Reach { next_hop, prefixes }];
    let cases = [
        ("one_26", 1, frame(vec![], reach(hop4, v4(1, 26)))),
        ("hundred_26", 100, frame(vec![], reach(hop4, v4(100, 26)))),
        ("full_of_32", 790, frame(vec![], reach(hop4, v4(790, 32)))),
        ("hundred_v6_64", 100, frame(vec![], reach(hop6, v6(100)))),
        ("withdraw_hundred_26", 100, frame(vec![v4(100, 26)], vec![])),
    ];
    let mut group = c.benchmark_group("decode");
    for (name, prefixes, frame) in &cases {
        group.throughput(Throughput::Elements(*prefixes));
        group.bench_function(*name, |b| b.iter(|| Message::parse(black_box(frame), &CX).unwrap()));
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
