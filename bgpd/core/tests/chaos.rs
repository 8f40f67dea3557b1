//! Random misfortune in a small cluster. Afterwards, when everything is back, every kernel has exactly the routes it
//! should have; and all along no speaker panics, repeats itself, or arms a deadline in the past (see `sim`).

mod sim;

use std::collections::{BTreeMap, BTreeSet};

use brindle_bgpd_core::speaker::{Clear, Input, LocalRoute, PeerId};
use ipnet::IpNet;
use proptest::prelude::*;
use sim::{Net, address, block, own};

const NODES: usize = 5;

#[derive(Clone, Debug)]
enum Op {
    Run(u64),
    Kill(usize),
    Start(usize, bool),
    Silence(usize),
    Heal(usize),
    Routes(usize, Vec<u8>),
    Hold(usize, usize, u16),
    Deny(usize, usize, bool),
    Client(usize, usize, bool),
    Clear(usize, u32, u8),
    Latency(u64),
    NextHop(usize, usize, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let n = || 0..NODES;
    prop_oneof![
        6 => (0u64..5_000).prop_map(Op::Run),
        1 => (5_000u64..200_000).prop_map(Op::Run),
        2 => n().prop_map(Op::Kill),
        3 => (n(), any::<bool>()).prop_map(|(n, r)| Op::Start(n, r)),
        1 => n().prop_map(Op::Silence),
        1 => n().prop_map(Op::Heal),
        3 => (n(), proptest::collection::vec(0u8..8, 0..5)).prop_map(|(n, r)| Op::Routes(n, r)),
        1 => (n(), 0..NODES - 1, 3u16..240).prop_map(|(n, p, h)| Op::Hold(n, p, h)),
        1 => (n(), 0..NODES - 1, any::<bool>()).prop_map(|(n, p, b)| Op::Deny(n, p, b)),
        1 => (n(), 0..NODES - 1, any::<bool>()).prop_map(|(n, p, b)| Op::Client(n, p, b)),
        1 => (n(), 0u32..6, 0u8..3).prop_map(|(n, p, h)| Op::Clear(n, p, h)),
        1 => (0u64..300).prop_map(Op::Latency),
        1 => (n(), n(), any::<bool>()).prop_map(|(n, h, up)| Op::NextHop(n, h, up)),
    ]
}

/// A route many may have.
fn shared(n: u8) -> IpNet {
    format!("10.96.0.{n}/32").parse().unwrap()
}

fn routes(n: usize, extra: &[u8]) -> Vec<LocalRoute> {
    let mut all: Vec<LocalRoute> = extra.iter().map(|e| own(shared(*e))).collect();
    all.push(own(block(n)));
    all
}

/// Every route of every other node, by all nodes that have it; none for prefixes of our own.
fn expected(net: &Net, n: usize) -> BTreeMap<IpNet, Vec<std::net::IpAddr>> {
    let mut all: BTreeMap<IpNet, BTreeSet<std::net::IpAddr>> = BTreeMap::new();
    for (i, node) in net.nodes.iter().enumerate() {
        for r in &node.routes {
            all.entry(r.prefix).or_default().insert(address(i).into());
        }
    }
    let mine: BTreeSet<IpNet> = net.nodes[n].routes.iter().map(|r| r.prefix).collect();
    all.retain(|p, _| !mine.contains(p));
    all.into_iter().map(|(p, hops)| (p, hops.into_iter().collect())).collect()
}

fn apply(net: &mut Net, op: Op) {
    let reconfigure = |net: &mut Net, n: usize| {
        let peers = net.nodes[n].peers.clone();
        net.input(n, Input::SetPeers(peers));
    };
    match op {
        Op::Run(ms) => net.run_ms(ms),
        Op::Kill(n) => net.kill(n),
        Op::Start(n, restarting) if net.nodes[n].speaker.is_none() => {
            net.heal(n);
            if !restarting {
                net.nodes[n].fib.clear();
            }
            net.nodes[n].cfg.restarting = restarting;
            net.start(n);
        }
        Op::Start(..) => {}
        Op::Silence(n) => net.silence(n),
        Op::Heal(n) => net.heal(n),
        Op::Routes(n, extra) => net.set_routes(n, routes(n, &extra)),
        Op::Hold(n, p, hold) => {
            net.nodes[n].peers[p].hold_time = hold;
            reconfigure(net, n);
        }
        Op::Deny(n, p, deny) => {
            net.nodes[n].peers[p].export.deny = if deny { vec![block(n), shared(1)] } else { vec![] };
            reconfigure(net, n);
        }
        Op::Client(n, p, client) => {
            net.nodes[n].peers[p].reflector_client = client;
            reconfigure(net, n);
        }
        Op::Clear(n, p, how) => {
            let how = [Clear::Reset, Clear::SoftIn, Clear::SoftOut][usize::from(how)];
            net.input(n, Input::Clear { peer: PeerId(p), how });
        }
        Op::Latency(ms) => net.latency = ms,
        Op::NextHop(n, hop, up) => {
            let cost = up.then_some(0);
            net.input(n, Input::NextHop { address: address(hop).into(), cost });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_everybody_ends_up_with_the_right_routes(ops in proptest::collection::vec(op(), 0..40)) {
        let mut net = Net::mesh(NODES);
        net.start_all();
        for op in ops {
            apply(&mut net, op);
        }
        net.latency = 2;
        for n in 0..NODES {
            net.heal(n);
            for p in &mut net.nodes[n].peers {
                p.export.deny.clear();
                p.reflector_client = false;
            }
            if net.nodes[n].speaker.is_none() {
                net.start(n);
            } else {
                let peers = net.nodes[n].peers.clone();
                net.input(n, Input::SetPeers(peers));
            }
            for hop in 0..NODES {
                net.input(n, Input::NextHop { address: address(hop).into(), cost: Some(0) });
            }
        }
        // A hold timer, an OPEN hold timer, a back-off of a minute, each followed by the other.
        net.run_ms(900_000);
        for n in 0..NODES {
            prop_assert_eq!(net.established(n), NODES - 1, "node {}", n);
            prop_assert!(net.speaker(n).converged());
            prop_assert_eq!(&net.nodes[n].fib, &expected(&net, n), "node {}", n);
        }
        // And everything is known from everybody exactly once.
        for n in 0..NODES {
            let stale = net.speaker(n).rib(None).filter(|p| p.stale).count();
            prop_assert_eq!(stale, 0);
        }
    }
}
