//! The decision process alone: `cargo bench -p brindle-bgpd-core --bench decision`.

use std::{hint::black_box, net::Ipv4Addr};

use brindle_bgpd_core::{
    rib::{DecisionCx, Interner, NextHops, Path, PathFlags, Source, Sources, decide},
    speaker::{Multipath, PeerId, SpeakerConfig},
    wire::{AsPath, AttrSet, NextHop},
};
use criterion::{Criterion, criterion_group, criterion_main};

/// `n` paths that are equal up to the last step, or differ in the length of the AS_PATH.
fn paths(n: u32, equal: bool) -> (Vec<Path>, Sources) {
    let mut interner = Interner::new(&SpeakerConfig::new(64_512, Ipv4Addr::LOCALHOST));
    let mut sources = Sources::new(Ipv4Addr::LOCALHOST);
    let paths = (0..n)
        .map(|i| {
            let address = Ipv4Addr::from_bits(0x0A00_0001 + i);
            let source = Source {
                ibgp: false,
                client: false,
                router_id: Ipv4Addr::LOCALHOST,
                address: address.into(),
            };
            sources.set(PeerId(i), source);
            let hops = if equal { 3 } else { 3 + i };
            let set = AttrSet {
                as_path: AsPath::sequence((0..hops).map(|h| 65_000 + i + h)),
                local_pref: Some(100),
                ..AttrSet::default()
            };
            Path {
                attrs: interner.intern(&set, Some(NextHop::V4(address))).expect("short attributes"),
                peer: PeerId(i),
                path_id: 0,
                flags: PathFlags { ebgp: true, ..PathFlags::default() },
                bad: None,
                lost: None,
            }
        })
        .collect();
    (paths, sources)
}

fn decision(c: &mut Criterion) {
    let next_hops = NextHops::default();
    for (n, equal) in [(1, true), (2, false), (2, true), (10, false), (10, true)] {
        let (paths, sources) = paths(n, equal);
        let cx = DecisionCx { sources: &sources, next_hops: &next_hops, multipath: Multipath::up_to(16) };
        let how = if equal { "to the last step" } else { "by AS_PATH length" };
        c.bench_function(&format!("decide {n} paths {how}"), |b| b.iter(|| decide(black_box(&paths), &cx)));
    }
}

criterion_group!(benches, decision);
criterion_main!(benches);
