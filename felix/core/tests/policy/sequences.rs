//! The graph's contract: whatever the order of updates, however split or squashed by flushes, what the dataplane holds
//! is what a graph says that saw only the final state; every delta keeps the contract of the hand-over; and without
//! resources nothing is left.

use std::collections::BTreeMap;

use super::oracle::generate::Random;
use brindle_config_core::{Key, Kind};
use brindle_felix_core::{
    calc::{Graph, Scope},
    policy::{active::PolicyDelta, state::PolicyState},
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn key(r: &Value) -> Key {
    let text = |at: &str| r.pointer(at).and_then(Value::as_str);
    let kind = Kind::parse_written(text("/apiVersion"), text("/kind").expect("a kind")).expect("known");
    Key::new(kind, text("/metadata/namespace"), text("/metadata/name").expect("a name"))
}

/// Two random clusters share most keys: going from one to the other changes, adds and removes.
fn clusters(seed: u64) -> Vec<BTreeMap<Key, Value>> {
    let mut random = Random::new(seed);
    let all = (0..3).map(|_| random.resources().into_iter().map(|r| (key(&r), r)).collect());
    let mut all: Vec<BTreeMap<Key, Value>> = all.collect();
    // Some contradictions and some that cannot be read.
    let hep = json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint", "metadata": {"name": "i"},
        "spec": {"node": "n1", "interfaceName": "eth0"}});
    let missing = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "stray"}, "spec": {"tier": "nowhere", "selector": "has(app)"}});
    let bad = json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
        "metadata": {"name": "bad", "namespace": "ns1"}, "spec": {"ingress": [{"action": "Alow"}]}});
    let remote = json!({"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
        "metadata": {"name": "far", "namespace": "ns1", "labels": {"app": "a"}},
        "spec": {"orchestrator": "k8s", "node": "n2", "endpoint": "eth0", "interfaceName": "cali9",
            "ipNetworks": ["10.0.0.1/32"], "profiles": ["kns.ns1"]}});
    let twin = json!({"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
        "metadata": {"name": "twin", "namespace": "ns1"},
        "spec": {"orchestrator": "k8s", "node": "n1", "endpoint": "eth0", "interfaceName": "cali8",
            "ipNetworks": ["10.0.0.2/32"], "profiles": ["missing"]}});
    if let [first, second, ..] = all.as_mut_slice() {
        for r in [hep, missing, remote.clone()] {
            first.insert(key(&r), r);
        }
        for r in [bad, remote, twin] {
            second.insert(key(&r), r);
        }
    }
    all.push(BTreeMap::new());
    all
}

fn take(state: &mut PolicyState, deltas: &[PolicyDelta]) {
    let rank = |d: &PolicyDelta| match d {
        PolicyDelta::Settings(_) => 0,
        PolicyDelta::IpSet(_) => 1,
        PolicyDelta::IpSetDelta(_) => 2,
        PolicyDelta::Policy(_) => 3,
        PolicyDelta::Profile(_) => 4,
        PolicyDelta::Endpoint(_) => 5,
        PolicyDelta::EndpointRemove(_) => 6,
        PolicyDelta::ProfileRemove(_) => 7,
        PolicyDelta::PolicyRemove(_) => 8,
        PolicyDelta::IpSetRemove(_) => 9,
        PolicyDelta::InSync => 10,
    };
    assert!(deltas.windows(2).all(|w| rank(&w[0]) <= rank(&w[1])), "out of order");
    for d in deltas {
        state.apply(d).unwrap_or_else(|e| panic!("{e} after {d:?}"));
    }
}

fn from_scratch(resources: &BTreeMap<Key, Value>) -> PolicyState {
    let mut graph = Graph::new(Scope::Node("n1".into()));
    resources.iter().for_each(|(k, v)| graph.put(k, v));
    graph.set_in_sync();
    let mut state = PolicyState::default();
    take(&mut state, &graph.flush());
    state
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]
    #[test]
    fn the_output_depends_on_the_final_state_alone(
        seed in any::<u64>(),
        shuffle in proptest::collection::vec(any::<u32>(), 160),
        flush_every in 1usize..40,
        sync_first in any::<bool>(),
    ) {
        let mut graph = Graph::new(Scope::Node("n1".into()));
        let mut state = PolicyState::default();
        let mut now: BTreeMap<Key, Value> = BTreeMap::new();
        if sync_first {
            graph.set_in_sync();
            take(&mut state, &graph.flush());
        }
        for target in clusters(seed) {
            let gone = now.keys().filter(|k| !target.contains_key(*k)).cloned();
            let mut steps: Vec<(Key, Option<Value>)> =
                target.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).chain(gone.map(|k| (k, None))).collect();
            // Some are told twice, some deletes are spurious.
            let again: Vec<_> = steps.iter().step_by(5).cloned().collect();
            steps.extend(again);
            let mut order: Vec<usize> = (0..steps.len()).collect();
            order.sort_by_key(|i| shuffle.get(*i % shuffle.len()).map(|s| s.rotate_left(u32::try_from(*i).unwrap_or(0) % 31)));
            for (n, i) in order.into_iter().enumerate() {
                let (key, value) = &steps[i];
                match value {
                    Some(v) => graph.put(key, v),
                    None => graph.delete(key),
                }
                if n % flush_every == 0 {
                    take(&mut state, &graph.flush());
                }
            }
            now = target;
            graph.set_in_sync();
            take(&mut state, &graph.flush());
            prop_assert_eq!(&state, &from_scratch(&now));
            prop_assert!(graph.flush().is_empty(), "nothing changed, nothing is said");
        }
        prop_assert!(state.endpoints.is_empty() && state.policies.is_empty());
        prop_assert!(state.sets.is_empty() && state.profiles.is_empty(), "teardown leaves nothing");
        prop_assert_eq!(graph.work().sets, 0);
    }
}
