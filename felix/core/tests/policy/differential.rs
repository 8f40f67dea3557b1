//! The differential proof of network policy: random resources and packets; what the calculation graph and `verdict`
//! say, and what the rules do as rendered, must be what an oracle says that reads the API documents literally. The oracle works on the JSON of the
//! resources alone and shares no code with the packages under test: no selectors, no conversion, no IP sets.
//!
//! `BRINDLE_ORACLE_PAIRS` sets how many (policy set, packet) pairs are tried (10,000 without it),
//! `BRINDLE_ORACLE_SEED` where the generator starts.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    oracle::{self, Flow, Spot, generate::Random},
    walk::Kernel,
};
use brindle_config_core::{Key, Kind};
use brindle_felix_core::{
    calc::{Graph, Scope},
    policy::{
        active::{EndpointId, Protocol},
        state::PolicyState,
        verdict::{Packet, Place, verdict},
    },
    rules::layout::Surroundings,
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

/// The node's own addresses: `eth0` is where host endpoint `h` is, `eth1` has none with a name.
fn addresses() -> BTreeMap<IpAddr, String> {
    [("192.168.0.1", "eth0"), ("fd00:1::1", "eth0")]
        .map(|(a, dev)| (a.parse().expect("an address"), dev.to_owned()))
        .into()
}

fn state(resources: &[Value]) -> (PolicyState, Kernel) {
    let mut graph = Graph::new(Scope::Node("n1".into()));
    for r in resources {
        graph.put(&key(r), r);
    }
    graph.set_in_sync();
    // What the generator does on purpose.
    let meant = |p: &String| p.contains("HostEndpoint") || p.starts_with("spec.doNotTrack: not enforced");
    let problems: Vec<String> = graph.problems().into_values().flatten().filter(|p| !meant(p)).collect();
    assert!(problems.is_empty(), "{problems:?}");
    let mut state = PolicyState::default();
    let deltas = graph.flush();
    for d in &deltas {
        state.apply(d).expect("deltas keep their contract");
    }
    state.look(&addresses());
    (state, Kernel::new(&deltas, &Surroundings::default(), &addresses()))
}

/// By which interface something is that is not a pod.
fn device(by: bool) -> &'static str {
    if by { "eth0" } else { "eth1" }
}

fn place(state: &PolicyState, spot: &Spot) -> Place {
    let at = |by: bool| state.host_endpoint_at(device(by), &addresses()).cloned();
    match spot {
        Spot::Pod(ns, name) => {
            Place::Workload(EndpointId::Workload { namespace: ns.clone(), name: name.clone() })
        }
        Spot::Host(by) => Place::Host(at(*by)),
        Spot::Outside(by) => Place::Outside(at(*by)),
    }
}

/// The device of a place, seen from the rules; `None` is the node itself.
fn of_kernel(spot: &Spot) -> Option<String> {
    match spot {
        Spot::Pod(ns, name) => {
            let digit = |t: &str| t.chars().last().and_then(|c| c.to_digit(10)).map_or(0, |d| d - 1);
            Some(format!("cali{}{}", digit(ns), digit(name)))
        }
        Spot::Host(_) => None,
        Spot::Outside(by) => Some(device(*by).to_owned()),
    }
}

fn agree(resources: &[Value], (state, kernel): &(PolicyState, Kernel), flow: &Flow) -> Result<(), String> {
    let packet = Packet {
        src: flow.src,
        dst: flow.dst,
        protocol: Protocol(flow.protocol),
        src_port: flow.src_port,
        dst_port: flow.dst_port,
        icmp: flow.icmp,
    };
    // Which interface the node's own packets take is a matter of the other end; towards a pod, of none with a name.
    let at = |own: &Spot, other: &Spot| match (own, other) {
        (Spot::Host(_), Spot::Outside(by)) => place(state, &Spot::Host(*by)),
        (Spot::Host(_), Spot::Pod(..)) => place(state, &Spot::Host(false)),
        _ => place(state, own),
    };
    let ours = verdict(state, &packet, &at(&flow.from, &flow.to), &at(&flow.to, &flow.from));
    let theirs = oracle::allowed(resources, flow);
    // The node to itself is met by no rule of ours.
    let own = matches!((&flow.from, &flow.to), (Spot::Host(_), Spot::Host(_)));
    let rules = if own { theirs } else { kernel.lets(&packet, of_kernel(&flow.from), of_kernel(&flow.to)) };
    if ours.allowed() == theirs && rules == theirs {
        return Ok(());
    }
    let policies: Vec<String> = resources.iter().map(|r| format!("{r}\n")).collect();
    Err(format!("{}\n{flow:?}\nverdict {ours:#?}\noracle {theirs}, rules {rules}", policies.concat()))
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
