//! A change costs what it touches, counted in work done, not in time: 250 local pods, 2,000 policies, 20,000 pods.

use std::collections::BTreeMap;

use brindle_config_core::{Key, Kind};
use brindle_felix_core::{
    calc::{Graph, Scope},
    policy::active::PolicyDelta,
    rules::{
        ir::Family,
        layout::Surroundings,
        model::{Model, TextCache},
        policy::Style,
    },
};
use serde_json::{Value, json};

fn pod(i: usize, labels: &Value) -> (Key, Value) {
    let name = format!("pod-{i}");
    let namespace = format!("ns-{}", i % 100);
    let node = if i < 250 { "n1".to_owned() } else { format!("far-{}", i % 99) };
    let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"orchestrator": "k8s", "node": node, "endpoint": "eth0", "interfaceName": format!("cali{i}"),
            "ipNetworks": [format!("10.{}.{}.{}/32", i / 65536, i / 256 % 256, i % 256)],
            "profiles": [format!("kns.{namespace}")]}});
    (Key::new(Kind::WorkloadEndpoint, Some(&namespace), &name), value)
}

#[test]
fn one_pod_in_fifty_sets_is_one_batch_of_fifty_deltas() {
    let mut graph = Graph::new(Scope::Node("n1".into()));
    for i in 0..20_000 {
        let (key, value) =
            pod(i, &json!({"app": format!("app-{}", i % 500), "group": format!("g-{}", i % 40)}));
        graph.put(&key, &value);
    }
    for i in 0..2000 {
        // Fifty of them ask for the label that one pod will get.
        let source = if i < 50 {
            format!("special == 'yes' && rank != '{i}'")
        } else {
            format!("app == 'app-{}'", i % 500)
        };
        let name = format!("policy-{i}");
        let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
            "metadata": {"name": name}, "spec": {"selector": format!("group == 'g-{}'", i % 40),
            "ingress": [{"action": "Allow", "source": {"selector": source}}]}});
        graph.put(&Key::new(Kind::GlobalNetworkPolicy, None, &name), &value);
    }
    graph.set_in_sync();
    let first = graph.flush();
    assert_eq!(first.iter().filter(|d| matches!(d, PolicyDelta::Policy(_))).count(), 2000);
    assert_eq!(first.iter().filter(|d| matches!(d, PolicyDelta::Endpoint(_))).count(), 250);

    let before = graph.work().evaluations;
    let (key, value) = pod(19_999, &json!({"app": "app-499", "group": "g-39", "special": "yes"}));
    graph.put(&key, &value);
    let deltas = graph.flush();
    assert_eq!(deltas.len(), 50);
    assert!(
        deltas
            .iter()
            .all(|d| matches!(d, PolicyDelta::IpSetDelta(d) if d.added.len() == 1 && d.removed.is_empty()))
    );
    // Fifty sets and the one of its `app`; not the two thousand policies.
    let tried = graph.work().evaluations - before;
    assert!(tried <= 60, "{tried} selectors tried");
}

/// What a packet meets does not depend on policies for others: they reach no rule of this node.
#[test]
fn policies_that_apply_to_nobody_here_reach_no_rule() {
    let rules = |others: usize| {
        let mut graph = Graph::new(Scope::Node("n1".into()));
        for i in 200..300 {
            let (key, value) = pod(i, &json!({"here": if i < 250 { "yes" } else { "no" }}));
            graph.put(&key, &value);
        }
        for i in 0..others + 3 {
            let name = format!("policy-{i}");
            let selector =
                if i < 3 { "here == 'yes'".to_owned() } else { format!("here == 'no' && !has(x{i})") };
            let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
                "metadata": {"name": name}, "spec": {"selector": selector,
                "ingress": [{"action": "Allow", "source": {"selector": format!("rank != '{i}'")}}]}});
            graph.put(&Key::new(Kind::GlobalNetworkPolicy, None, &name), &value);
        }
        graph.set_in_sync();
        let mut model = Model::default();
        graph.flush().into_iter().for_each(|d| model.apply(d));
        let (around, style) = (Surroundings::default(), Style::iptables());
        let layout = model.layout(Family::V4, &around, &style, &BTreeMap::new());
        let mut cache = TextCache::default();
        (format!("{:?}", layout.iptables(Family::V4, &mut cache)), layout.sets)
    };
    let few = rules(7);
    assert!(few.0.contains("brindle-tw-cali249"), "the pods of this node have their chains");
    for more in [97, 997] {
        assert!(few == rules(more), "{more} more policies changed a rule");
    }
}
