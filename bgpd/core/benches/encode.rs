//! Writing UPDATEs: attributes once, prefixes into as many messages as they need.
//!
//! `cargo bench -p brindle-bgpd-core --bench encode`
#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::{hint::black_box, net::Ipv4Addr};

use brindle_bgpd_core::wire::{
    AsPath, AttrSet, NextHop, Nlri, Prefixes, WireCx, announce, encode_attrs, withdraw,
};
use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ipnet::{Ipv4Net, Ipv6Net};

const CX: WireCx = WireCx { four_octet_as: true, extended_message: false, add_path: [false; 2], ibgp: true };

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

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    let hop = Ipv4Addr::new(10, 0, 0, 1);
    let mut out = BytesMut::with_capacity(1 << 20);
    group.bench_function("attributes", |b| {
        let set = attrs();
        b.iter(|| {
            out.clear();
            encode_attrs(black_box(&set), Some(hop), &CX, &mut out).unwrap();
        });
    });

    let mut block = BytesMut::new();
    encode_attrs(&attrs(), Some(hop), &CX, &mut block).unwrap();
    let net = |i: u32| Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + (i << 6)), 26).unwrap();
    for n in [100u32, 100_000] {
        let list = Prefixes::V4((0..n).map(|i| Nlri { prefix: net(i), path_id: 0 }).collect());
        group.throughput(Throughput::Elements(n.into()));
        group.bench_function(format!("announce_26_x{n}"), |b| {
            b.iter(|| {
                out.clear();
                announce(&CX, &NextHop::V4(hop), black_box(&list), &block, &mut out).unwrap()
            });
        });
        group.bench_function(format!("withdraw_26_x{n}"), |b| {
            b.iter(|| {
                out.clear();
                withdraw(&CX, black_box(&list), &mut out)
            });
        });
    }

    let hop = NextHop::V6 { global: "2001:db8::1".parse().unwrap(), link_local: None };
    let net = |i: u128| Ipv6Net::new(((0x2001_0db8 << 96) + (i << 64)).into(), 64).unwrap();
    let list = Prefixes::V6((0..10_000).map(|i| Nlri { prefix: net(i), path_id: 0 }).collect());
    let mut block = BytesMut::new();
    encode_attrs(&attrs(), None, &CX, &mut block).unwrap();
    group.throughput(Throughput::Elements(10_000));
    group.bench_function("announce_v6_64_x10000", |b| {
        b.iter(|| {
            out.clear();
            announce(&CX, &hop, black_box(&list), &block, &mut out).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);
