//! The differential proof of network policy: random resources and packets; what the calculation graph and `verdict`
//! say must be what an oracle says that reads the API documents literally. The oracle works on the JSON of the
//! resources alone and shares no code with the packages under test: no selectors, no conversion, no IP sets.
//!
//! `BRINDLE_ORACLE_PAIRS` sets how many (policy set, packet) pairs are tried (10,000 without it),
//! `BRINDLE_ORACLE_SEED` where the generator starts.

use super::oracle::{self, Flow, Spot, generate::Random};
use brindle_config_core::{Key, Kind};
use brindle_felix_core::{
    calc::{Graph, Scope},
    policy::{
        active::{EndpointId, Protocol},
        state::PolicyState,
        verdict::{Packet, Place, verdict},
    },
};
use serde_json::Value;

fn number(name: &str, default: u64) -> u64 {
    #[allow(clippy::disallowed_methods, reason = "a test's setting")]
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn key(resource: &Value) -> Key {
    let text = |at: &str| resource.pointer(at).and_then(Value::as_str);
    let kind = Kind::parse_written(text("/apiVersion"), text("/kind").expect("a kind")).expect("known");
    Key::new(kind, text("/metadata/namespace"), text("/metadata/name").expect("a name"))
}

fn state(resources: &[Value]) -> PolicyState {
    let mut graph = Graph::new(Scope::Node("n1".into()));
    for r in resources {
        graph.put(&key(r), r);
    }
    graph.set_in_sync();
    assert!(graph.problems().is_empty(), "{:?}", graph.problems());
    let mut state = PolicyState::default();
    for d in graph.flush() {
        state.apply(&d).expect("deltas keep their contract");
    }
    state
}

fn place(spot: &Spot) -> Place {
    let hep = || EndpointId::Host { name: "h".into() };
    match spot {
        Spot::Pod(ns, name) => {
            Place::Workload(EndpointId::Workload { namespace: ns.clone(), name: name.clone() })
        }
        Spot::Host(by) => Place::Host(by.then(hep)),
        Spot::Outside(by) => Place::Outside(by.then(hep)),
    }
}

fn agree(resources: &[Value], state: &PolicyState, flow: &Flow) -> Result<(), String> {
    let packet = Packet {
        src: flow.src,
        dst: flow.dst,
        protocol: Protocol(flow.protocol),
        src_port: flow.src_port,
        dst_port: flow.dst_port,
        icmp: flow.icmp,
    };
    let ours = verdict(state, &packet, &place(&flow.from), &place(&flow.to));
    let theirs = oracle::allowed(resources, flow);
    if ours.allowed() == theirs {
        return Ok(());
    }
    let policies: Vec<String> = resources.iter().map(|r| format!("{r}\n")).collect();
    Err(format!("{}\n{flow:?}\nverdict {ours:#?}\noracle {theirs}", policies.concat()))
}

#[test]
fn verdict_is_what_the_api_documents_say() {
    const PACKETS: u64 = 30;
    let pairs = number("BRINDLE_ORACLE_PAIRS", 10_000);
    let seed = number("BRINDLE_ORACLE_SEED", 1);
    let (mut yes, mut no) = (0u64, 0u64);
    for set in 0..pairs.div_ceil(PACKETS) {
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(set));
        let resources = random.resources();
        let state = state(&resources);
        for _ in 0..PACKETS {
            let flow = random.flow(&resources);
            if let Err(e) = agree(&resources, &state, &flow) {
                panic!("seed {seed}, policy set {set}:\n{e}");
            }
            if oracle::allowed(&resources, &flow) { yes += 1 } else { no += 1 }
        }
    }
    // A generator that only ever allows or denies proves nothing.
    assert!(yes * 10 > pairs && no * 10 > pairs, "{yes} allowed, {no} denied");
}
