//! A change costs what it touches, counted in work done, not in time: 250 local pods, 2,000 policies, 20,000 pods.

use brindle_config_core::{Key, Kind};
use brindle_felix_core::{
    calc::{Graph, Scope},
    policy::active::PolicyDelta,
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
