//! Giving an address and taking it back, in memory: one block of 64 as an agent holds it, empty, half and fully in use.
//! Goal: a million pairs a second and more.
//! `bench-ipam` (integration) measures the same in processor time, and beside pools of different sizes.

use std::{collections::BTreeMap, hint::black_box};

use brindle_ipam::{Now, Owner, block::Block, net::Reservations};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const NOW: Now = Now(1_795_400_607_000_000_000);

fn owner(n: usize) -> Owner {
    let attribute = |k: &str, v: String| (k.to_owned(), v);
    Owner {
        handle: format!("k8s-pod-network.{n:064x}"),
        attributes: BTreeMap::from([
            attribute("namespace", "default".into()),
            attribute("node", "node-1".into()),
            attribute("pod", format!("web-{n}")),
            attribute("timestamp", NOW.attribute()),
        ]),
    }
}

fn pairs(c: &mut Criterion) {
    let mut group = c.benchmark_group("assign+release");
    group.throughput(Throughput::Elements(1));
    for in_use in [0, 32, 63] {
        let mut block = Block::new("10.0.0.0/26".parse().expect("a CIDR"), "node-1", NOW).expect("a block");
        for n in 0..in_use {
            block.auto_assign(1, &owner(n), &Reservations::default());
        }
        let (mine, reserved) = (owner(999), Reservations::default());
        group.bench_function(format!("{in_use} of 64 in use"), |b| {
            b.iter(|| {
                black_box(block.auto_assign(1, &mine, &reserved));
                black_box(block.release_handle(&mine.handle, None));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, pairs);
criterion_main!(benches);
