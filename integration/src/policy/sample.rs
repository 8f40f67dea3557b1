//! A sample of the (policy set, packet) pairs of the differential test: what the kernel does with the packet must be what
//! the oracle says, which is what `verdict` says (felix/core/tests/policy/differential.rs, the same seeds).

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use brindle_kernel::netfilter::{Conntrack, IpVersion};
use brindle_kernel::netns::NetNs;

use super::{
    lab::{BackEnd, OUTSIDE, PolicyLab},
    oracle::{self, Flow, Spot, generate::Random},
    packet::{Packet, Receivers},
};

/// Packets tried with one policy set, as in the differential test.
const PACKETS: usize = 30;
/// What has to arrive may get lost while neighbours are looked up.
const ROUNDS: usize = 3;

/// What became of a sample with one back end.
#[derive(Debug, Default)]
pub struct Sampled {
    pub pairs: usize,
    pub sets: usize,
    pub allowed: usize,
    /// What went otherwise.
    pub wrong: Vec<String>,
    pub took: Duration,
}

/// Where in the lab a packet goes from or to; `None`: there is nobody like that.
fn site(lab: &PolicyLab, spot: &Spot, other: &Spot, address: IpAddr) -> Option<usize> {
    let far = |i: usize| OUTSIDE[i].iter().any(|a| a.parse() == Ok(address));
    let name = match spot {
        Spot::Pod(ns, name) => format!("{ns}/{name}"),
        // By which interface is a matter of who is at the other end.
        Spot::Host(by) => (*by == matches!(other, Spot::Outside(true))).then(|| "host".to_owned())?,
        Spot::Outside(true) if far(0) => "out1".into(),
        Spot::Outside(false) if far(1) => "out2".into(),
        Spot::Outside(_) => return None,
    };
    lab.sites.iter().position(|s| s.name == name)
}

/// The packet, if it can be sent in the lab and starts a flow: errors of ICMP and types nobody knows belong to no flow,
/// and are dropped as such before any policy.
fn packet(lab: &PolicyLab, flow: &Flow) -> Option<Packet> {
    let from = site(lab, &flow.from, &flow.to, flow.src)?;
    let to = site(lab, &flow.to, &flow.from, flow.dst)?;
    let request = match flow.protocol {
        1 => flow.icmp == Some((8, 0)),
        58 => flow.icmp == Some((128, 0)),
        _ => true,
    };
    let Flow { src, dst, protocol, src_port, dst_port, .. } = *flow;
    (from != to && request).then_some(Packet { from, to, src, dst, protocol, src_port, dst_port })
}

/// The same flow, whoever began it: connection tracking would take the second for an answer to the first.
fn tuple(f: &Flow) -> (u8, [(IpAddr, u16); 2]) {
    let mut ends = [(f.src, f.src_port), (f.dst, f.dst_port)];
    ends.sort_unstable();
    (f.protocol, ends)
}

fn forget_flows(node: &NetNs) {
    let forget = || {
        let mut tracked = Conntrack::open()?;
        for version in [IpVersion::V4, IpVersion::V6] {
            let flows = tracked.list(version)?;
            tracked.forget(&flows)?;
        }
        Ok::<_, brindle_kernel::netlink::NetlinkError>(())
    };
    node.run(forget).expect("the node is alive").expect("tracked flows can be deleted");
}

/// Tries so many pairs from the beginning of the generator's.
pub fn run(back_end: BackEnd, seed: u64, pairs: usize) -> Sampled {
    let start = Instant::now();
    let mut lab = PolicyLab::new(back_end);
    let mut receivers = Receivers::new(lab.namespaces()).expect("raw sockets can be opened");
    let mut out = Sampled::default();
    for set in 0.. {
        if out.pairs >= pairs {
            break;
        }
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(set));
        let resources = random.resources();
        let mut seen = BTreeSet::new();
        let flows = (0..PACKETS).map(|_| random.flow(&resources)).filter(|f| seen.insert(tuple(f)));
        let both = flows.filter_map(|f| Some((packet(&lab, &f)?, f))).take(pairs - out.pairs);
        let (packets, flows): (Vec<Packet>, Vec<Flow>) = both.unzip();
        let wanted: Vec<bool> = flows.iter().map(|f| oracle::allowed(&resources, f)).collect();
        lab.set(&resources);
        let mut arrived = vec![false; packets.len()];
        for _ in 0..ROUNDS {
            forget_flows(lab.node.ns.ns());
            let got = receivers.round(&packets, &wanted).expect("packets can be sent");
            arrived.iter_mut().zip(got).for_each(|(a, g)| *a |= g);
            if wanted.iter().zip(&arrived).all(|(w, a)| *a || !*w) {
                break;
            }
        }
        out.pairs += packets.len();
        out.sets += 1;
        out.allowed += wanted.iter().filter(|w| **w).count();
        let other = wanted.iter().zip(&arrived).zip(&flows).filter(|((w, a), _)| w != a);
        out.wrong.extend(other.map(|((w, _), f)| {
            let must = if *w { "must arrive and does not" } else { "arrives and must not" };
            format!("seed {seed}, policy set {set}: {f:?} {must}")
        }));
    }
    out.took = start.elapsed();
    out
}
