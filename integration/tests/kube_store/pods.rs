//! Nodes and Pods as resources: what agents read and write of them.

use brindle_config_core::{
    Key, Kind,
    node::NodeSpec,
    store::{Change, Entry, Expect, Store, StoreError, StoreExt as _, Watch},
    workload::{WorkloadEndpointSpec, endpoint_name},
};
use http::Method;
use serde_json::{Value, json};

use super::target::{LONG, Target};

fn key(namespace: &str, node: &str, pod: &str) -> Key {
    Key::new(Kind::WorkloadEndpoint, Some(namespace), &endpoint_name(node, "k8s", pod, "eth0"))
}

fn attachment(key: &Key, node: &str, address: &str) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
        "metadata": {"name": key.name, "namespace": key.namespace,
            "annotations": {"cni.brindle.dev/network": "net", "cni.brindle.dev/netns": "4:5"}},
        "spec": {"orchestrator": "k8s", "node": node, "endpoint": "eth0", "containerID": "c1",
            "ipNetworks": [address], "mac": "02:00:00:00:00:01"}})
}

/// The next changes of what this test made: on a cluster in use there are others.
async fn told(watch: &mut Box<dyn Watch>) -> Vec<Change> {
    let ours = |c: &Change| match c {
        Change::Put(Entry { key, .. }) | Change::Delete { key, .. } => {
            key.namespace == "pods" || key.name == "kube-n1"
        }
    };
    loop {
        let batch = tokio::time::timeout(LONG, watch.next()).await.expect("a change is told").unwrap();
        let batch: Vec<Change> = batch.into_iter().filter(ours).collect();
        if !batch.is_empty() {
            return batch;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nodes_addresses_are_annotations() {
    let target = Target::start().await;
    target.node("kube-n1").await;
    let store = target.store();
    let key = Key::new(Kind::Node, None, "kube-n1");
    let stored = store.get_as::<NodeSpec>(None, "kube-n1").await.unwrap();
    let mut resource = stored.resource;
    assert_eq!(resource.metadata.labels.get("rack").map(String::as_str), Some("a"));
    let bgp = resource.spec.bgp.get_or_insert_default();
    bgp.ipv4_address = serde_json::from_value(json!("192.0.2.1/24")).unwrap();
    bgp.ipv4_ipip_tunnel_addr = Some("10.0.0.1".parse().unwrap());
    let at = store.put_as(&resource, Expect::Revision(stored.revision)).await.unwrap();
    let object = target.call(Method::GET, "/api/v1/nodes/kube-n1", None).await.unwrap();
    let annotations = &object["metadata"]["annotations"];
    assert_eq!(annotations["projectcalico.org/IPv4Address"], "192.0.2.1/24");
    assert_eq!(annotations["projectcalico.org/IPv4IPIPTunnelAddr"], "10.0.0.1");
    assert_eq!(
        store.put_as(&resource, Expect::Revision(stored.revision)).await,
        Err(StoreError::Conflict(key.clone()))
    );
    let again = store.get_as::<NodeSpec>(None, "kube-n1").await.unwrap();
    assert_eq!((again.revision, again.resource.spec.bgp.clone()), (at, resource.spec.bgp.clone()));

    // A heartbeat is no change; taking an address away is one.
    let listing = store.list(&[Kind::Node]).await.unwrap();
    let mut watch = store.watch(&[Kind::Node], listing.revision).await.unwrap();
    let beat = |n: u32| {
        json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": format!("beat{n}"),
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z", "message": ""}]}})
    };
    for n in 0..5 {
        target.merge("/api/v1/nodes/kube-n1/status", beat(n)).await;
    }
    let mut resource = again.resource;
    resource.spec.bgp.get_or_insert_default().ipv4_ipip_tunnel_addr = None;
    store.put_as(&resource, Expect::Any).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(told(&mut watch).await);
    }
    // The first heartbeat may be told: what was listed is not remembered by a watch.
    assert_eq!(seen.len(), 2, "{seen:?}");
    match seen.last() {
        Some(Change::Put(e)) => assert!(e.value["spec"]["bgp"].get("ipv4IPIPTunnelAddr").is_none()),
        other => panic!("{other:?}"),
    }

    // Nodes are Kubernetes'.
    let e = store.delete(&key, Expect::Any).await.unwrap_err().to_string();
    assert!(e.contains("kubectl delete node kube-n1"), "{e}");
    let mut other = resource.clone();
    other.metadata.name = "nobody".into();
    let e = store.put_as(&other, Expect::Absent).await.unwrap_err().to_string();
    assert!(e.contains("Node(nobody)") && e.contains("is the node's name right"), "{e}");
    assert_eq!(store.put_as(&resource, Expect::Absent).await, Err(StoreError::Exists(key)));
    target.call(Method::DELETE, "/api/v1/nodes/kube-n1", None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_an_endpoint_from_its_attachment_to_its_end() {
    let target = Target::start().await;
    target.namespace("pods").await;
    for (pod, node) in [("web-0", "node-a"), ("web-1", "node-b")] {
        target.pod("pods", pod, node).await;
    }
    let store = target.store();
    let (mine, other) = (key("pods", "node-a", "web-0"), key("pods", "node-b", "web-1"));
    let kinds = [Kind::WorkloadEndpoint];
    let listing = store.list(&kinds).await.unwrap();
    assert!(listing.entries.iter().all(|e| e.key.namespace != "pods"), "no address, no endpoint");
    assert_eq!(store.get(&mine).await, Err(StoreError::NotFound(mine.clone())));
    let mut all = store.watch(&kinds, listing.revision).await.unwrap();
    let own = store.for_node("node-a").unwrap();
    let scoped = own.list(&kinds).await.unwrap();
    let mut own_watch = own.watch(&kinds, scoped.revision).await.unwrap();

    // ADD: Calico's annotations appear on the pod.
    store.put(&other, attachment(&other, "node-b", "10.0.0.6/32"), Expect::Absent).await.unwrap();
    let at = store.put(&mine, attachment(&mine, "node-a", "10.0.0.5/32"), Expect::Absent).await.unwrap();
    assert_eq!(
        store.put(&mine, attachment(&mine, "node-a", "10.0.0.5/32"), Expect::Absent).await,
        Err(StoreError::Exists(mine.clone()))
    );
    let object = target.call(Method::GET, "/api/v1/namespaces/pods/pods/web-0", None).await.unwrap();
    let annotations = &object["metadata"]["annotations"];
    assert_eq!(annotations["cni.projectcalico.org/podIP"], "10.0.0.5/32");
    assert_eq!(annotations["cni.projectcalico.org/podIPs"], "10.0.0.5/32");
    assert_eq!(annotations["cni.projectcalico.org/containerID"], "c1");
    let stored = store.get_as::<WorkloadEndpointSpec>(Some("pods"), &mine.name).await.unwrap();
    assert_eq!(stored.revision, at);
    let (meta, spec) = (stored.resource.metadata, stored.resource.spec);
    assert_eq!((spec.pod.as_str(), spec.mac.as_str(), spec.ports.len()), ("web-0", "02:00:00:00:00:01", 1));
    assert_eq!(meta.annotations.get("cni.brindle.dev/netns").map(String::as_str), Some("4:5"));
    assert_eq!(meta.labels.get("app").map(String::as_str), Some("web"));
    assert!(spec.profiles.contains(&"kns.pods".to_owned()));

    // Everybody hears of both, an agent that asked for its own of one.
    let mut keys = Vec::new();
    while keys.len() < 2 {
        keys.extend(told(&mut all).await.into_iter().map(|c| match c {
            Change::Put(e) => e.key,
            Change::Delete { key, .. } => panic!("{key} was never there"),
        }));
    }
    assert_eq!(keys, [other.clone(), mine.clone()]);
    let first = told(&mut own_watch).await;
    assert!(matches!(first.as_slice(), [Change::Put(e)] if e.key == mine), "{first:?}");

    // The pod finishes: it is gone, though its object stays.
    target
        .merge("/api/v1/namespaces/pods/pods/web-0/status", json!({"status": {"phase": "Succeeded"}}))
        .await;
    for watch in [&mut all, &mut own_watch] {
        let change = told(watch).await;
        assert!(matches!(change.as_slice(), [Change::Delete { key, .. }] if *key == mine), "{change:?}");
    }
    assert_eq!(store.get(&mine).await, Err(StoreError::NotFound(mine.clone())));

    // DEL of the other: its addresses are given back, the object stays.
    let at = store.get(&other).await.unwrap().revision;
    store.delete(&other, Expect::Revision(at)).await.unwrap();
    let change = told(&mut all).await;
    assert!(matches!(change.as_slice(), [Change::Delete { key, .. }] if *key == other), "{change:?}");
    let object = target.call(Method::GET, "/api/v1/namespaces/pods/pods/web-1", None).await.unwrap();
    let annotations = &object["metadata"]["annotations"];
    assert_eq!(
        (&annotations["cni.projectcalico.org/podIP"], &annotations["cni.brindle.dev/netns"]),
        (&json!(""), &Value::Null)
    );
    assert_eq!(store.delete(&other, Expect::Any).await, Err(StoreError::NotFound(other.clone())));

    // What is no pod cannot be attached.
    let none = key("pods", "node-a", "nobody");
    let e = store.put(&none, attachment(&none, "node-a", "10.0.0.9/32"), Expect::Absent).await.unwrap_err();
    assert_eq!(e.to_string(), format!("{none}: there is no Pod pods/nobody in Kubernetes"));
    let container = Key::new(Kind::WorkloadEndpoint, Some("pods"), "node--a-cni-c9-eth0");
    let e = store.put(&container, attachment(&container, "node-a", "10.0.0.9/32"), Expect::Absent).await;
    assert!(e.unwrap_err().to_string().contains("eth0 of a Pod"));
    for pod in ["web-0", "web-1"] {
        let path = format!("/api/v1/namespaces/pods/pods/{pod}?gracePeriodSeconds=0");
        target.call(Method::DELETE, &path, None).await.unwrap();
    }
}

/// Servers before 1.28 select no pods by `spec.hostNetwork`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_server_is_asked_without_the_field_it_does_not_know() {
    let target = Target::ours().await;
    target.server().does_not_select_by("spec.hostNetwork");
    target.namespace("pods").await;
    target.pod("pods", "web-0", "node-a").await;
    let mut host = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "host-0", "namespace": "pods"},
        "spec": {"nodeName": "node-a", "hostNetwork": true, "containers": [{"name": "c", "image": "example.org/web:1"}]}});
    target.create("/api/v1/namespaces/pods/pods", host.take()).await;
    let store = target.store().for_node("node-a").unwrap();
    let mine = key("pods", "node-a", "web-0");
    store.put(&mine, attachment(&mine, "node-a", "10.0.0.5/32"), Expect::Absent).await.unwrap();
    target
        .merge("/api/v1/namespaces/pods/pods/host-0/status", json!({"status": {"podIP": "192.0.2.1"}}))
        .await;

    let kinds = [Kind::WorkloadEndpoint];
    let listing = store.list(&kinds).await.unwrap();
    assert_eq!(listing.entries.iter().map(|e| &e.key).collect::<Vec<_>>(), [&mine]);
    let mut watch = store.watch(&kinds, listing.revision).await.unwrap();
    let other = key("pods", "node-a", "web-1");
    target.pod("pods", "web-1", "node-a").await;
    store.put(&other, attachment(&other, "node-a", "10.0.0.6/32"), Expect::Absent).await.unwrap();
    assert!(matches!(told(&mut watch).await.first(), Some(Change::Put(e)) if e.key == other));
}
