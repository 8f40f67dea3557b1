//! Pods as endpoints, both ways.

use brindle_config_core::{
    store::{Entry, decode},
    workload::WorkloadEndpointSpec,
};
use proptest::prelude::*;

use super::*;

fn pod(annotations: &Value, status: &Value) -> PodObject {
    serde_json::from_value(json!({
        "metadata": {"name": "web-0", "namespace": "default", "uid": "u", "resourceVersion": "40",
            "labels": {"app": "web", "pcns.team": "red", "pcsa.team": "red"},
            "annotations": annotations, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": "node-1", "serviceAccountName": "builder", "containers": [
            {"name": "c", "image": "i", "ports": [
                {"name": "http", "containerPort": 80}, {"containerPort": 81},
                {"containerPort": 82, "hostPort": 8082, "protocol": "UDP"}]}],
            "initContainers": [
                {"name": "proxy", "restartPolicy": "Always", "ports": [{"name": "admin", "containerPort": 15000}]},
                {"name": "setup", "ports": [{"name": "gone", "containerPort": 1}]}]},
        "status": status,
    }))
    .expect("parses")
}

fn entry(pod: &PodObject) -> Option<Entry> {
    match read(pod).expect("reads") {
        Mapped::Put(e) => Some(e),
        Mapped::Nothing { .. } => None,
    }
}

fn addresses(annotations: &Value, status: &Value) -> Vec<String> {
    let spec = entry(&pod(annotations, status)).map(|e| decode::<WorkloadEndpointSpec>(&e).expect("decodes"));
    spec.map(|s| s.resource.spec.ip_networks.iter().map(ToString::to_string).collect()).unwrap_or_default()
}

#[test]
fn a_pod_is_calicos_endpoint() {
    let e = entry(&pod(
        &json!({POD_IP: "10.0.0.5/32", POD_IPS: "10.0.0.5/32,fd00::5/128", CONTAINER: "c1", "other": "x",
            "cni.brindle.dev/netns": "4:5", MAC: "ee:ee:ee:ee:ee:ee"}),
        &json!({"phase": "Running"}),
    ))
    .expect("an endpoint");
    assert_eq!(e.key, Key::new(Kind::WorkloadEndpoint, Some("default"), "node--1-k8s-web--0-eth0"));
    assert_eq!(e.revision.0, 40);
    assert_eq!(
        *e.value,
        json!({"apiVersion": API_VERSION, "kind": "WorkloadEndpoint",
            "metadata": {"name": "node--1-k8s-web--0-eth0", "namespace": "default", "uid": "u",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"app": "web", "projectcalico.org/namespace": "default",
                    "projectcalico.org/orchestrator": "k8s", "projectcalico.org/serviceaccount": "builder"},
                "annotations": {CONTAINER: "c1", "cni.brindle.dev/netns": "4:5"}},
            "spec": {"orchestrator": "k8s", "node": "node-1", "pod": "web-0", "endpoint": "eth0",
                "containerID": "c1", "serviceAccountName": "builder", "mac": "ee:ee:ee:ee:ee:ee",
                "ipNetworks": ["10.0.0.5/32", "fd00::5/128"], "profiles": ["kns.default", "ksa.default.builder"],
                // SHA-1 of "default.web-0"
                "interfaceName": interface_name("default", "web-0"),
                "ports": [{"name": "http", "protocol": "TCP", "port": 80},
                    {"name": "", "protocol": "UDP", "port": 82, "hostPort": 8082},
                    {"name": "admin", "protocol": "TCP", "port": 15000}]}})
    );
    decode::<WorkloadEndpointSpec>(&e).expect("decodes");
}

#[test]
fn addresses_come_from_the_attachment_then_from_the_status() {
    let status =
        json!({"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]});
    assert_eq!(addresses(&json!({}), &status), ["10.0.0.1/32", "fd00::1/128"]);
    assert_eq!(addresses(&json!({}), &json!({"podIP": "10.0.0.1"})), ["10.0.0.1/32"]);
    assert_eq!(addresses(&json!({AWS_IPS: "10.0.0.7"}), &json!({})), ["10.0.0.7/32"]);
    assert_eq!(addresses(&json!({POD_IP: "10.0.0.2/32"}), &status), ["10.0.0.2/32"]);
    // Given back, though the status does not know it yet.
    assert_eq!(addresses(&json!({POD_IP: "", POD_IPS: ""}), &status), Vec::<String>::new());
    assert_eq!(addresses(&json!({}), &json!({"phase": "Pending"})), Vec::<String>::new());
    for phase in ["Succeeded", "Failed"] {
        assert_eq!(
            addresses(&json!({POD_IP: "10.0.0.2/32"}), &json!({"phase": phase})),
            Vec::<String>::new()
        );
    }
}

#[test]
fn host_network_and_unscheduled_pods_are_no_endpoints() {
    let running = json!({"phase": "Running", "podIP": "192.0.2.1"});
    let mut p = pod(&json!({}), &running);
    p.spec.host_network = true;
    assert!(entry(&p).is_none());
    let mut p = pod(&json!({}), &running);
    p.spec.node_name.clear();
    assert!(entry(&p).is_none());
}

#[test]
fn an_attachment_written_is_read_again() {
    let before = pod(&json!({"keep": "me", "cni.brindle.dev/old": "x"}), &json!({"phase": "Pending"}));
    let value = json!({"metadata": {"annotations": {"cni.brindle.dev/network": "k8s-pod-network", CONTAINER: "c1"}},
        "spec": {"node": "node-1", "containerID": "c1", "ipNetworks": ["10.0.0.5/32", "fd00::5/128"],
            "interfaceName": interface_name("default", "web-0"), "mac": "02:00:00:00:00:01"}});
    let patch = patch(&before, &value, Some(40)).expect("fits");
    assert_eq!(
        patch,
        json!({"metadata": {"uid": "u", "resourceVersion": "40", "annotations": {POD_IP: "10.0.0.5/32",
            POD_IPS: "10.0.0.5/32,fd00::5/128", CONTAINER: "c1", MAC: "02:00:00:00:00:01",
            "cni.brindle.dev/network": "k8s-pod-network", "cni.brindle.dev/old": null}}})
    );
    let after = pod(
        &patch["metadata"]["annotations"]
            .as_object()
            .map(|a| {
                a.iter()
                    .filter(|(_, v)| !v.is_null())
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect::<Map<_, _>>()
            })
            .into(),
        &json!({"phase": "Pending"}),
    );
    let spec =
        decode::<WorkloadEndpointSpec>(&entry(&after).expect("an endpoint")).expect("decodes").resource.spec;
    assert_eq!(spec.ip_networks.len(), 2);
    assert_eq!((spec.container_id.as_str(), spec.mac.as_str()), ("c1", "02:00:00:00:00:01"));
    let released = release(&after, Some(41));
    assert_eq!(released["metadata"]["annotations"][POD_IP], "");
    assert_eq!(released["metadata"]["annotations"][MAC], Value::Null);
    assert_eq!(released["metadata"]["annotations"].get(CONTAINER), None, "Calico leaves the container's id");
}

#[test]
fn what_is_no_attachment_of_the_pod_is_refused() {
    let p = pod(&json!({}), &json!({}));
    for (spec, why) in [
        (json!({"node": "other", "ipNetworks": ["10.0.0.5/32"]}), "runs on node"),
        (json!({"node": "node-1"}), "is empty"),
        (json!({"node": "node-1", "ipNetworks": ["x"]}), "spec.ipNetworks"),
    ] {
        let e = patch(&p, &json!({"spec": spec}), None).expect_err(why);
        assert!(e.contains(why), "{e}");
    }
}

#[test]
fn names_that_are_no_pods_lead_nowhere() {
    for name in
        ["", "-", "a-b", "node-cni-abc-eth0", "node-k8s-pod-net1", "node-k8s--eth0", "a-k8s-b-c-eth0", "---"]
    {
        assert_eq!(pod_of(&Key::new(Kind::WorkloadEndpoint, Some("n"), name)), None, "{name}");
    }
}

proptest! {
    #[test]
    fn a_name_tells_its_pod(
        node in "[a-z0-9]{1,4}(-{1,2}[a-z0-9]{1,4}){0,3}(\\.[a-z0-9]{1,3})?",
        name in "[a-z0-9]{1,4}(-{1,3}[a-z0-9]{1,4}){0,3}",
    ) {
        let key = Key::new(Kind::WorkloadEndpoint, Some("n"), &endpoint_name(&node, "k8s", &name, "eth0"));
        prop_assert_eq!(pod_of(&key), Some(name));
    }

    #[test]
    fn no_pod_makes_it_panic(ip in ".{0,20}", ips in "[0-9a-f:.,/]{0,30}", phase in "[A-Z]?[a-z]{0,8}") {
        let _ = read(&pod(&json!({POD_IP: ip, POD_IPS: ips}), &json!({"phase": phase})));
    }
}

#[test]
fn floating_addresses_lead_to_the_pods_address_of_their_family() {
    let nats = |text: &str| {
        let pod = pod(&json!({POD_IP: "10.0.0.5/32", FLOATING: text}), &json!({"phase": "Running"}));
        entry(&pod).expect("an endpoint").value["spec"]["ipNATs"].clone()
    };
    let both = nats(r#"["192.0.2.8","fd00::8"]"#);
    assert_eq!(both, json!([{"internalIP": "10.0.0.5", "externalIP": "192.0.2.8"}]));
    for bad in ["192.0.2.8", "", r#"["ten"]"#, "{}"] {
        assert_eq!(nats(bad), Value::Null, "{bad}");
    }
}
