//! What lies in the API server, as Calico's programs look for it.

use std::collections::BTreeMap;

use brindle_config_core::{
    Key, Kind, ObjectMeta, Resource,
    ipam::{AffinityState, BlockAffinitySpec, IpamBlockSpec, IpamHandleSpec},
    names,
    store::{Change, Expect, Revision, Store, StoreError, StoreExt as _},
};
use http::Method;
use serde_json::{Value, json};

use super::target::{LONG, Target, definitions};

const V1: &str = "/apis/crd.projectcalico.org/v1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn address_management_lies_where_calico_looks() {
    let target = Target::start().await;
    let store = target.store();
    let cidr = "10.99.0.0/26".parse().unwrap();
    let name = names::affinity_name("node-a", &cidr);
    let affinity = BlockAffinitySpec {
        state: AffinityState::Pending,
        node: "node-a".into(),
        affinity_type: "host".into(),
        cidr,
        deleted: false,
        extra: BTreeMap::new(),
    };
    let mut resource = Resource::new(ObjectMeta::named(&name), affinity);
    let first = store.put_as(&resource, Expect::Absent).await.unwrap();
    resource.spec.state = AffinityState::Confirmed;
    let second = store.put_as(&resource, Expect::Revision(first)).await.unwrap();
    assert!(second > first);
    assert_eq!(
        store.put_as(&resource, Expect::Revision(first)).await,
        Err(StoreError::Conflict(Key::new(Kind::BlockAffinity, None, &name)))
    );
    // By label, as Calico from 3.31 on finds the affinities of a host.
    let hash = names::hostname_hash("node-a");
    let path = format!("{V1}/blockaffinities?labelSelector=projectcalico.org%2Fhostname-hash%3D{hash}");
    let found = target.call(Method::GET, &path, None).await.unwrap();
    let spec = &found["items"][0]["spec"];
    assert_eq!(
        *spec,
        json!({"cidr": "10.99.0.0/26", "deleted": "false", "node": "node-a", "state": "confirmed", "type": "host"})
    );

    let block: IpamBlockSpec = serde_json::from_value(json!({"cidr": "10.99.0.0/30", "affinity": "host:node-a",
        "allocations": [null, 0, null, null], "unallocated": [0, 2, 3], "strictAffinity": false, "deleted": false,
        "attributes": [{"handle_id": "k8s-pod-network.ABC", "secondary": {"node": "node-a", "pod": "p"}}],
        "sequenceNumber": 1_700_000_000_000_000_001_u64, "sequenceNumberForAllocation": {"1": 1_700_000_000_000_000_000_u64}}))
    .unwrap();
    let resource = Resource::new(ObjectMeta::named("10-99-0-0-30"), block.clone());
    store.put_as(&resource, Expect::Absent).await.unwrap();
    let back = store.get_as::<IpamBlockSpec>(None, "10-99-0-0-30").await.unwrap().resource.spec;
    assert_eq!(back, block, "nothing of a block is lost");

    let handle: IpamHandleSpec =
        serde_json::from_value(json!({"handleID": "k8s-pod-network.ABC", "block": {"10.99.0.0/30": 1}}))
            .unwrap();
    let resource = Resource::new(ObjectMeta::named("k8s-pod-network.abc"), handle);
    store.put_as(&resource, Expect::Absent).await.unwrap();
    let object =
        target.call(Method::GET, &format!("{V1}/ipamhandles/k8s-pod-network.abc"), None).await.unwrap();
    assert_eq!(object["spec"]["handleID"], "k8s-pod-network.ABC");
    assert_eq!(
        object["metadata"]["annotations"]["projectcalico.org/metadata"],
        r#"{"creationTimestamp":null}"#
    );

    let config = Key::new(Kind::IpamConfiguration, None, "default");
    let value = json!({"metadata": {"name": "default"}, "spec": {"strictAffinity": true, "autoAllocateBlocks": true}});
    store.put(&config, value, Expect::Any).await.unwrap();
    let object = target.call(Method::GET, &format!("{V1}/ipamconfigs/default"), None).await.unwrap();
    assert_eq!(
        (object["kind"].as_str(), &object["spec"]["strictAffinity"]),
        (Some("IPAMConfig"), &json!(true))
    );

    for (kind, name) in [
        (Kind::BlockAffinity, name.as_str()),
        (Kind::IpamBlock, "10-99-0-0-30"),
        (Kind::IpamHandle, "k8s-pod-network.abc"),
        (Kind::IpamConfiguration, "default"),
    ] {
        store.delete(&Key::new(kind, None, name), Expect::Any).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_of_before_and_after_3_32_are_one_resource_each() {
    let target = Target::start().await;
    target.namespace("names").await;
    let store = target.store();
    let folder = format!("{V1}/namespaces/names/networkpolicies");
    let old = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "default.web", "namespace": "names"}, "spec": {"selector": "all()", "order": 1}});
    target.create(&folder, old).await;
    let key = Key::new(Kind::NetworkPolicy, Some("names"), "web");
    let entry = store.get(&key).await.unwrap();
    assert_eq!(entry.value["spec"]["order"], 1);
    // Written where it lies; a second one of the name is refused.
    let mut value = (*entry.value).clone();
    value["spec"]["order"] = json!(2);
    store.put(&key, value.clone(), Expect::Revision(entry.revision)).await.unwrap();
    assert_eq!(
        target.call(Method::GET, &format!("{folder}/default.web"), None).await.unwrap()["spec"]["order"],
        2
    );
    assert_eq!(store.put(&key, value.clone(), Expect::Absent).await, Err(StoreError::Exists(key.clone())));

    // Calico's migration: the new object comes, then the old one goes. The resource never does.
    let listing = store.list(&[Kind::NetworkPolicy]).await.unwrap();
    let mut watch = store.watch(&[Kind::NetworkPolicy], listing.revision).await.unwrap();
    let new = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "names",
            "annotations": {"projectcalico.org/metadata": "{\"name\":\"web\",\"creationTimestamp\":null}"}},
        "spec": {"selector": "all()", "order": 3}});
    target.create(&folder, new).await;
    let both = store.list(&[Kind::NetworkPolicy]).await.unwrap().entries;
    let ours: Vec<&Value> = both.iter().filter(|e| e.key == key).map(|e| &e.value["spec"]["order"]).collect();
    assert_eq!(ours, [&json!(3)], "while there are two, the newer counts");
    target.call(Method::DELETE, &format!("{folder}/default.web"), None).await.unwrap();
    let end = Key::new(Kind::NetworkPolicy, Some("names"), "zend");
    store.put(&end, json!({"metadata": {"name": "zend"}, "spec": {}}), Expect::Absent).await.unwrap();
    'told: loop {
        for change in tokio::time::timeout(LONG, watch.next()).await.expect("changes come").unwrap() {
            match change {
                Change::Put(e) if e.key == end => break 'told,
                Change::Put(e) => assert_eq!(e.key, key),
                Change::Delete { key, .. } => panic!("{key} is still there"),
            }
        }
    }
    // New ones have their own name, unless a Calico of before 3.32 reads them.
    assert!(target.call(Method::GET, &format!("{folder}/zend"), None).await.is_ok());
    let info = Key::new(Kind::ClusterInformation, None, "default");
    let value = json!({"metadata": {"name": "default"}, "spec": {"calicoVersion": "v3.31.7"}});
    store.put(&info, value, Expect::Any).await.unwrap();
    let mixed = Key::new(Kind::NetworkPolicy, Some("names"), "mixed");
    store.put(&mixed, json!({"metadata": {"name": "mixed"}, "spec": {}}), Expect::Absent).await.unwrap();
    assert!(target.call(Method::GET, &format!("{folder}/default.mixed"), None).await.is_ok());
    store.get(&mixed).await.unwrap();
    for key in [key, end, mixed, info] {
        store.delete(&key, Expect::Any).await.unwrap();
        assert!(matches!(store.get(&key).await, Err(StoreError::NotFound(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_own_kinds_are_read_and_not_written() {
    let target = Target::start().await;
    target.namespace("own").await;
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "deny", "namespace": "own"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
    target.create("/apis/networking.k8s.io/v1/namespaces/own/networkpolicies", policy).await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "own"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    target.create("/api/v1/namespaces/own/services", service).await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "builder", "namespace": "own"}});
    target.create("/api/v1/namespaces/own/serviceaccounts", account).await;
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "own", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.5"]}], "ports": [{"port": 80}]});
    target.create("/apis/discovery.k8s.io/v1/namespaces/own/endpointslices", slice).await;

    let store = target.store();
    let kinds = [
        Kind::KubernetesNetworkPolicy,
        Kind::ClusterNetworkPolicy,
        Kind::AdminNetworkPolicy,
        Kind::BaselineAdminNetworkPolicy,
        Kind::Namespace,
        Kind::ServiceAccount,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Profile,
    ];
    let listing = store.list(&kinds).await.unwrap();
    for (kind, ns, name) in [
        (Kind::KubernetesNetworkPolicy, Some("own"), "deny"),
        (Kind::Namespace, None, "own"),
        (Kind::ServiceAccount, Some("own"), "builder"),
        (Kind::Service, Some("own"), "web"),
        (Kind::EndpointSlice, Some("own"), "web-1"),
    ] {
        let key = Key::new(kind, ns, name);
        let entry =
            listing.entries.iter().find(|e| e.key == key).unwrap_or_else(|| panic!("{key} is listed"));
        brindle_config_core::AnyResource::deserialize_kind(kind, &*entry.value)
            .unwrap_or_else(|e| panic!("{key}: {e}"));
        assert_eq!(entry.value["metadata"].get("managedFields"), None);
        // A Service's status is ours to write (load balancer addresses), and nothing else of it.
        if kind != Kind::Service {
            let e = store.put(&key, (*entry.value).clone(), Expect::Any).await.unwrap_err();
            assert!(matches!(e, StoreError::Refused { .. }) && e.to_string().contains("kubectl edit"), "{e}");
        }
        assert!(matches!(store.delete(&key, Expect::Any).await, Err(StoreError::Refused { .. })));
    }
    let profile = Key::new(Kind::Profile, None, "kns.own");
    assert!(matches!(store.get(&profile).await, Err(StoreError::NotFound(_))));
    let e = store.put(&profile, json!({}), Expect::Any).await.unwrap_err().to_string();
    assert!(e.contains("Namespaces and ServiceAccounts"), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_the_cluster_lacks_is_empty_until_it_appears() {
    let target = Target::ours().await;
    let store = target.store().looking_for_missing_every(std::time::Duration::from_millis(200));
    let kinds = [Kind::AdminNetworkPolicy, Kind::GlobalNetworkSet];
    let listing = store.list(&kinds).await.unwrap();
    assert_eq!(listing.entries, []);
    let mut watch = store.watch(&kinds, listing.revision).await.unwrap();
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "adminnetworkpolicies.policy.networking.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/network-policy-api/pull/30"}},
        "spec": {"group": "policy.networking.k8s.io", "scope": "Cluster",
            "names": {"kind": "AdminNetworkPolicy", "listKind": "AdminNetworkPolicyList", "plural": "adminnetworkpolicies",
                "singular": "adminnetworkpolicy"},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
                "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}]}});
    target.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    let folder = "/apis/policy.networking.k8s.io/v1alpha1/adminnetworkpolicies";
    target.eventually("it is served", async || target.call(Method::GET, folder, None).await.is_ok()).await;
    for name in ["first", "second"] {
        let policy = json!({"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "AdminNetworkPolicy",
            "metadata": {"name": name}, "spec": {"priority": 1, "subject": {"namespaces": {}}}});
        target.create(folder, policy).await;
        let batch = tokio::time::timeout(LONG, watch.next()).await.expect("it is told").unwrap();
        assert!(matches!(batch.as_slice(), [Change::Put(e)] if e.key.name == name), "{name}: {batch:?}");
    }
}

/// What a server would fill in or refuse is known before anything is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_is_asked_what_it_would_hold() {
    let target = Target::ours_bare().await;
    for mut definition in definitions() {
        // As Calico's own definition has it.
        let mode = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/assignmentMode";
        if definition["spec"]["names"]["plural"] == "ippools" {
            let mode = definition.pointer_mut(mode).expect("the pool's schema has it");
            mode["default"] = json!("Automatic");
            mode["enum"] = json!(["Automatic", "Manual"]);
        }
        target.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    }
    let store = target.store();
    let key = Key::new(Kind::IpPool, None, "asked");
    let pool = |more: Value| {
        let mut value = json!({"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "asked"},
            "spec": {"cidr": "10.7.0.0/16"}});
        value["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        value
    };
    let filled = store.would_hold(&key, pool(json!({})), Expect::Absent).await.unwrap();
    assert_eq!(filled, pool(json!({"assignmentMode": "Automatic"})), "filled in, and nothing made up");
    let wrong = pool(json!({"assignmentMode": "Sometimes"}));
    let refused = store.would_hold(&key, wrong.clone(), Expect::Absent).await.unwrap_err().to_string();
    assert!(refused.contains("spec.assignmentMode: Unsupported value"), "{refused}");
    assert_eq!(store.get(&key).await, Err(StoreError::NotFound(key.clone())), "nothing was written");

    let first = store.put(&key, pool(json!({})), Expect::Absent).await.unwrap();
    let stored = store.get(&key).await.unwrap();
    let same = store.would_hold(&key, pool(json!({})), Expect::Revision(first)).await.unwrap();
    assert_eq!(same["spec"], stored.value["spec"]);
    let full = (*stored.value).clone();
    assert_eq!(store.would_hold(&key, full.clone(), Expect::Any).await.unwrap(), full);
    assert!(store.would_hold(&key, wrong, Expect::Any).await.is_err());
    assert_eq!(store.get(&key).await.unwrap().revision, first);
    let stale = Expect::Revision(Revision(first.0 - 1));
    assert_eq!(store.would_hold(&key, full, stale).await, Err(StoreError::Conflict(key)));
    let profile = Key::new(Kind::Profile, None, "kns.x");
    assert!(matches!(
        store.would_hold(&profile, json!({}), Expect::Any).await,
        Err(StoreError::Refused { .. })
    ));
}

/// A server takes the path of an object without a name for its collection's, or refuses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_name_is_not_there_and_never_asked_for() {
    let target = Target::start().await;
    let store = target.store();
    for kind in [Kind::Node, Kind::IpPool] {
        let key = Key::new(kind, None, "");
        assert_eq!(store.get(&key).await, Err(StoreError::NotFound(key.clone())));
        assert!(matches!(store.delete(&key, Expect::Any).await, Err(StoreError::Refused { .. })));
        assert!(matches!(store.put(&key, json!({}), Expect::Any).await, Err(StoreError::Refused { .. })));
    }
    let said = target.call(Method::GET, "/api/v1/nodes/", None).await.unwrap_err();
    assert_eq!(said, "400 name must be provided");
}
