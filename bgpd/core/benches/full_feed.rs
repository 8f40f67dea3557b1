//! A speaker under load: many routes in, through the decision, and out to a neighbor that takes them all.
//!
//! `cargo bench -p brindle-bgpd-core --bench full_feed`. "elem" is a received route; the time for one is the inverse
//! of the throughput.

use std::{collections::VecDeque, hint::black_box, net::Ipv4Addr, time::Duration};

use brindle_bgpd_core::{
    fsm::negotiate::our_open,
    speaker::{ConnId, Input, Output, PeerConfig, Speaker, SpeakerConfig},
    time::Mono,
    wire::{
        AsPath, AttrSet, Capability, Message, NextHop, Nlri, Open, Prefixes, WireCx, announce, encode_attrs,
        next_frame,
    },
};
use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::Ipv4Net;

const SENDERS: u32 = 10;
const CX: WireCx = WireCx { four_octet_as: true, extended_message: true, add_path: [false; 2], ibgp: false };

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0A00_0001 + n)
}

fn asn(n: u32) -> u32 {
    65_000 + n
}

/// A speaker with `SENDERS` external neighbors and one more that receives, all established.
fn established() -> Speaker {
    let mut s = Speaker::new(SpeakerConfig::new(64_512, Ipv4Addr::new(9, 9, 9, 9)));
    let peers: Vec<PeerConfig> = (0..=SENDERS)
        .map(|n| {
            let mut cfg = PeerConfig::new(format!("peer{n}"), address(n).into(), asn(n));
            cfg.passive = true;
            cfg.max_prefixes = u32::MAX;
            cfg
        })
        .collect();
    let mut out = VecDeque::new();
    s.handle(Mono(0), Input::SetPeers(peers), &mut out);
    s.handle(Mono(0), Input::SetLocalRoutes(vec![]), &mut out);
    for n in 0..=SENDERS {
        let conn = conn(n);
        let local = "10.255.0.1:179".parse().expect("an address");
        s.handle(
            Mono(0),
            Input::Accepted { conn, local, remote: (address(n), 40_000).into(), interface: None },
            &mut out,
        );
        let cfg = PeerConfig::new("", address(0).into(), 64_512);
        let me = brindle_bgpd_core::fsm::Identity {
            asn: asn(n),
            router_id: address(n),
            restarting: false,
            preserved: false,
        };
        let open = Open { ..our_open(&cfg, &me) };
        assert!(open.capabilities.contains(&Capability::ExtendedMessage));
        s.handle(Mono(0), Input::Message { conn, message: Message::Open(open) }, &mut out);
        s.handle(Mono(0), Input::Message { conn, message: Message::Keepalive }, &mut out);
    }
    let ups = out.iter().filter(|o| matches!(o, Output::Negotiated { .. })).count();
    assert_eq!(ups, SENDERS as usize + 1);
    s
}

fn conn(n: u32) -> ConnId {
    ConnId(u64::from(n) * 2 + 1)
}

/// UPDATEs as octets: `routes` prefixes from `first` on, `per_set` of them with equal attributes.
fn feed(n: u32, first: u32, routes: u32, per_set: u32) -> BytesMut {
    let mut out = BytesMut::new();
    let mut at = 0;
    while at < routes {
        let count = per_set.min(routes - at);
        let set = AttrSet {
            as_path: AsPath::sequence([asn(n), 3_356, 1_000 + at / per_set, 174]),
            communities: [1, 2, at / per_set].into_iter().collect(),
            ..AttrSet::default()
        };
        let mut block = BytesMut::new();
        encode_attrs(&set, Some(address(n)), &CX, &mut block).expect("short attributes");
        let list = (at..at + count)
            .map(|i| Ipv4Addr::from_bits(0x1400_0000 + ((first + i) << 8)))
            .map(|a| Nlri { prefix: Ipv4Net::new(a, 24).expect("24 bits"), path_id: 0 })
            .collect();
        announce(&CX, &NextHop::V4(address(n)), &Prefixes::V4(list), &block, &mut out).expect("it fits");
        at += count;
    }
    out
}

/// Decodes and handles everything; then everything the receiver is owed is encoded. Returns octets out.
fn run(s: &mut Speaker, feeds: &[BytesMut]) -> usize {
    let mut out = VecDeque::new();
    let mut buf = BytesMut::with_capacity(1 << 17);
    let mut octets = 0;
    for (n, feed) in (0..).zip(feeds) {
        let mut rest: &[u8] = feed;
        while let Ok(Some((_, len))) = next_frame(rest, CX.max_len()) {
            let (frame, more) = rest.split_at(len);
            rest = more;
            let message = Message::parse(frame, &CX).expect("our own encoding");
            s.handle(Mono(1), Input::Message { conn: conn(n), message }, &mut out);
            out.clear();
        }
    }
    for n in 0..=SENDERS {
        while s.next_update(conn(n), 65_536, &mut buf) {
            octets += buf.len();
            buf.clear();
        }
    }
    octets
}

fn full_feed(c: &mut Criterion) {
    let mut group = c.benchmark_group("full_feed");
    group.sample_size(10).measurement_time(Duration::from_secs(8));
    for (name, per_set) in [("5 routes a set", 5), ("200 routes a set", 200)] {
        // 10 senders with 10,000 routes each, all different.
        let apart: Vec<BytesMut> = (0..SENDERS).map(|n| feed(n, n * 10_000, 10_000, per_set)).collect();
        group.throughput(Throughput::Elements(100_000));
        group.bench_function(format!("10 x 10,000 different, {name}"), |b| {
            b.iter_batched_ref(established, |s| black_box(run(s, &apart)), BatchSize::PerIteration);
        });
        // 10 senders with the same 100,000 routes: ten paths to each.
        let same: Vec<BytesMut> = (0..SENDERS).map(|n| feed(n, 0, 100_000, per_set)).collect();
        group.throughput(Throughput::Elements(1_000_000));
        group.bench_function(format!("10 x 100,000 the same, {name}"), |b| {
            b.iter_batched_ref(established, |s| black_box(run(s, &same)), BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, full_feed);
criterion_main!(benches);
