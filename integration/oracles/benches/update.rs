//! An UPDATE with 100 prefixes, read and written by our codec and by rustbgpd-wire, the fastest of the correct ones.
//!
//! `cargo bench --manifest-path integration/oracles/Cargo.toml`. Reading is up to values with the reactions of RFC 7606;
//! writing with known attributes is what a group does: attributes were put together before, prefixes follow.

use std::hint::black_box;

use brindle_bgpd_core::wire::{Message, NextHop, announce, encode_attrs};
use brindle_oracles::sample::{NEXT_HOP, SESSION, attributes, frame, prefixes};
use bytes::{Bytes, BytesMut};
use criterion::{Criterion, criterion_group, criterion_main};
use rustbgpd_wire::{
    message::{Message as Theirs, decode_message},
    update::{Ipv4UnicastMode, UpdateMessage},
};

const PREFIXES: u32 = 100;

fn read(c: &mut Criterion) {
    let octets = frame(PREFIXES, 10);
    let shared = Bytes::copy_from_slice(&octets);
    let mut group = c.benchmark_group("read 100 prefixes");
    group.bench_function("brindle", |b| b.iter(|| Message::parse(black_box(&octets), &SESSION)));
    group.bench_function("rustbgpd-wire", |b| {
        b.iter(|| {
            // A reference to the octets, no copy: as its own daemon reads from its buffer.
            let message = decode_message(&mut black_box(&shared).clone(), 4_096).expect("an UPDATE");
            let Theirs::Update(update) = message else { panic!("an UPDATE") };
            update.parse_revised(true, true, false, &[]).expect("nothing wrong")
        });
    });
    group.finish();
}

fn write(c: &mut Criterion) {
    let octets = frame(PREFIXES, 10);
    let message = decode_message(&mut Bytes::copy_from_slice(&octets), 4_096).expect("an UPDATE");
    let Theirs::Update(update) = message else { panic!("an UPDATE") };
    let theirs = update.parse_revised(true, true, false, &[]).expect("nothing wrong").update;

    let (set, list) = (attributes(10), prefixes(PREFIXES));
    let mut block = BytesMut::new();
    encode_attrs(&set, Some(NEXT_HOP), &SESSION, &mut block).expect("short attributes");
    let mut out = BytesMut::with_capacity(1 << 16);
    let mut group = c.benchmark_group("write 100 prefixes");
    group.bench_function("brindle, attributes known", |b| {
        b.iter(|| {
            out.clear();
            announce(&SESSION, &NextHop::V4(NEXT_HOP), black_box(&list), black_box(&block), &mut out)
        });
    });
    group.bench_function("brindle, from values", |b| {
        b.iter(|| {
            out.clear();
            block.clear();
            encode_attrs(black_box(&set), Some(NEXT_HOP), &SESSION, &mut block).expect("short attributes");
            announce(&SESSION, &NextHop::V4(NEXT_HOP), black_box(&list), &block, &mut out)
        });
    });
    group.bench_function("rustbgpd-wire, from values", |b| {
        b.iter(|| {
            out.clear();
            let (announced, attributes) = (black_box(&theirs.announced), black_box(&theirs.attributes));
            let mode = Ipv4UnicastMode::Body;
            let message = UpdateMessage::try_build(announced, &[], attributes, true, false, mode);
            message.expect("sound").encode_with_limit(&mut out, 4_096)
        });
    });
    group.finish();
}

criterion_group!(benches, read, write);
criterion_main!(benches);
