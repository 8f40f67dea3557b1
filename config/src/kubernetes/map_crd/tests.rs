//! Objects of Calico's CRDs, both ways.

use brindle_config_core::{AnyResource, store::Entry};
use proptest::prelude::*;

use super::*;

fn place(kind: Kind, api: Api) -> Place {
    Place::of(kind, api).expect("stored")
}

fn entry(kind: Kind, api: Api, object: Value) -> Entry {
    match read(&place(kind, api), api, object).expect("reads") {
        Mapped::Put(e) => e,
        other => panic!("{other:?}"),
    }
}

fn pool(metadata: Value) -> Value {
    json!({"apiVersion": V3, "kind": "IPPool", "metadata": metadata, "spec": {"cidr": "10.0.0.0/16"}})
}

#[test]
fn uids_are_turned_byte_by_byte_but_for_version_and_variant() {
    let uid = "01020408-1020-4080-8123-0f0000000001";
    assert_eq!(turned(uid), "80402010-0804-4001-81c4-f00000000080");
    assert_eq!(turned(&turned(uid)), uid);
    for odd in ["", "x", "0102040810204080812300000000000", "é".repeat(18).as_str()] {
        assert_eq!(turned(odd), odd);
    }
}

#[test]
fn metadata_goes_into_the_annotation_and_calicos_own_stays_outside_too() {
    let key = Key::new(Kind::IpPool, None, "p");
    let value = pool(json!({"name": "p", "labels": {"a": "b", "projectcalico.org/x": "y"},
        "annotations": {"n": "t", "operator.tigera.io/z": "1"}, "uid": "u", "resourceVersion": "3"}));
    let object = write(&place(Kind::IpPool, Api::V1), Api::V1, &key, "p", &value, Some(9));
    assert_eq!(object["apiVersion"], V1);
    let meta = &object["metadata"];
    assert_eq!(meta["resourceVersion"], "9");
    assert_eq!(meta["labels"], json!({"projectcalico.org/x": "y"}));
    assert_eq!(meta["annotations"]["operator.tigera.io/z"], "1");
    assert!(meta.get("uid").is_none());
    let kept: Value =
        serde_json::from_str(meta["annotations"][METADATA].as_str().expect("text")).expect("JSON");
    assert_eq!(
        kept,
        json!({"creationTimestamp": null, "labels": {"a": "b", "projectcalico.org/x": "y"},
            "annotations": {"n": "t", "operator.tigera.io/z": "1"}})
    );
}

#[test]
fn an_object_without_metadata_carries_an_empty_creation_time() {
    let key = Key::new(Kind::IpPool, None, "p");
    let object = write(&place(Kind::IpPool, Api::V1), Api::V1, &key, "p", &pool(json!({"name": "p"})), None);
    assert_eq!(object["metadata"]["annotations"][METADATA], r#"{"creationTimestamp":null}"#);
}

#[test]
fn an_object_by_kubectl_is_read_as_it_is_and_the_annotation_wins() {
    let object = json!({"metadata": {"name": "p", "resourceVersion": "5", "generation": 2,
        "creationTimestamp": "2026-01-01T00:00:00Z", "uid": "80402010-0804-4001-81c4-f00000000080",
        "labels": {"l": "object", "m": "1"}}, "spec": {"cidr": "10.0.0.0/16"}});
    let e = entry(Kind::IpPool, Api::V1, object.clone());
    assert_eq!((e.key.name.as_str(), e.revision.0), ("p", 5));
    assert_eq!(
        e.value["metadata"],
        json!({"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"l": "object", "m": "1"},
            "uid": "01020408-1020-4080-8123-0f0000000001"})
    );
    let mut object = object;
    object["metadata"]["annotations"] =
        json!({METADATA: r#"{"labels":{"l":"annotation"},"creationTimestamp":null}"#, "other": "x"});
    let e = entry(Kind::IpPool, Api::V1, object);
    assert_eq!(e.value["metadata"]["labels"], json!({"l": "annotation", "m": "1"}));
    assert_eq!(e.value["metadata"]["annotations"], json!({"other": "x"}));
    assert_eq!(e.value["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
}

#[test]
fn policies_have_their_names_of_before_and_after_3_32() {
    let read = |name: &str, annotation: Option<&str>, tier: Option<&str>| {
        let mut object =
            json!({"metadata": {"name": name, "namespace": "n", "resourceVersion": "1"}, "spec": {}});
        if let Some(a) = annotation {
            object["metadata"]["annotations"] = json!({METADATA: a});
        }
        if let Some(t) = tier {
            object["spec"]["tier"] = json!(t);
        }
        entry(Kind::NetworkPolicy, Api::V1, object).key.name
    };
    assert_eq!(read("default.p", None, None), "p");
    assert_eq!(read("default.p", Some(r#"{"creationTimestamp":null}"#), Some("default")), "p");
    assert_eq!(read("security.p", None, Some("security")), "security.p");
    assert_eq!(read("p", Some(r#"{"name":"p"}"#), None), "p");
    // A name that begins so by the user's choice.
    assert_eq!(read("default.p", Some(r#"{"name":"default.p"}"#), None), "default.p");
    // Whatever the annotation says, another object's name is not taken.
    assert_eq!(read("p", Some(r#"{"name":"q"}"#), None), "p");
    let key = Key::new(Kind::NetworkPolicy, Some("n"), "p");
    assert_eq!(names_of(&key, Api::V1), ["p", "default.p"]);
    assert_eq!(names_of(&key, Api::V3), ["p"]);
    let object = write(
        &place(Kind::NetworkPolicy, Api::V1),
        Api::V1,
        &key,
        "p",
        &json!({"metadata": {"name": "p"}, "spec": {}}),
        None,
    );
    assert_eq!(object["metadata"]["annotations"][METADATA], r#"{"creationTimestamp":null,"name":"p"}"#);
    assert_eq!(object["metadata"]["namespace"], "n");
}

#[test]
fn affinities_write_deleted_as_text_and_are_labelled() {
    let key = Key::new(Kind::BlockAffinity, None, "node-a-10-0-0-0-26");
    let value = json!({"metadata": {"name": key.name}, "spec": {"cidr": "10.0.0.0/26", "node": "node-a",
        "state": "confirmed", "type": "host", "deleted": false}});
    let v1 = write(&place(Kind::BlockAffinity, Api::V1), Api::V1, &key, &key.name, &value, Some(1));
    assert_eq!(v1["spec"]["deleted"], "false");
    assert_eq!(
        v1["metadata"]["labels"],
        json!({"projectcalico.org/affinity-type": "host", "projectcalico.org/ip-version": "4",
            "projectcalico.org/hostname-hash": "PY3TQE2E3XMTETLM2MJO3UITKPFB27YUJ4T4E5XGPEJON3SM4QAA"})
    );
    assert_eq!(entry(Kind::BlockAffinity, Api::V1, v1).value["spec"], value["spec"]);
    let v3 = write(&place(Kind::BlockAffinity, Api::V3), Api::V3, &key, &key.name, &value, Some(1));
    assert_eq!(v3["spec"]["deleted"], false);
    assert!(v3["metadata"]["labels"].is_object() && v3["metadata"].get("annotations").is_none());
}

#[test]
fn blocks_and_handles_have_what_the_schemas_require_and_no_null() {
    let key = Key::new(Kind::IpamBlock, None, "10-0-0-0-30");
    let value = json!({"metadata": {"name": key.name}, "spec": {"cidr": "10.0.0.0/30", "affinity": null,
        "allocations": [null, 0, null, null], "unallocated": [2, 3, 0],
        "attributes": [{"handle_id": "h", "secondary": null}]}});
    let object = write(&place(Kind::IpamBlock, Api::V1), Api::V1, &key, &key.name, &value, None);
    assert_eq!(
        object["spec"],
        json!({"cidr": "10.0.0.0/30", "allocations": [null, 0, null, null], "unallocated": [2, 3, 0],
            "attributes": [{"handle_id": "h"}], "strictAffinity": false})
    );
    let key = Key::new(Kind::IpamConfiguration, None, "default");
    let value = json!({"metadata": {"name": "default"}, "spec": {"strictAffinity": true}});
    for (api, kind) in [(Api::V1, "IPAMConfig"), (Api::V3, "IPAMConfiguration")] {
        assert_eq!(write(&place(key.kind, api), api, &key, "default", &value, None)["kind"], kind);
    }
    let key = Key::new(Kind::IpamHandle, None, "k8s-pod-network.AB");
    assert_eq!(names_of(&key, Api::V1), ["k8s-pod-network.ab"]);
}

#[test]
fn owners_and_finalizers_come_back() {
    let object = json!({"metadata": {"name": "p", "resourceVersion": "1", "finalizers": ["a/b"],
        "ownerReferences": [{"apiVersion": V1, "kind": "IPPool", "name": "q", "uid": "80402010-0804-4001-81c4-f00000000080"}]},
        "spec": {"cidr": "10.0.0.0/16"}});
    let e = entry(Kind::IpPool, Api::V1, object.clone());
    assert_eq!(e.value["metadata"]["ownerReferences"][0]["apiVersion"], V3);
    let back = write(&place(Kind::IpPool, Api::V1), Api::V1, &e.key, "p", &e.value, None);
    assert_eq!(back["metadata"]["ownerReferences"], object["metadata"]["ownerReferences"]);
    assert_eq!(back["metadata"]["finalizers"], object["metadata"]["finalizers"]);
}

#[test]
fn a_broken_annotation_hides_nothing() {
    for broken in ["", "{", "[]", "null", "\"x\""] {
        let object = json!({"metadata": {"name": "p", "resourceVersion": "1", "annotations": {METADATA: broken}},
            "spec": {"cidr": "10.0.0.0/16"}});
        assert_eq!(entry(Kind::IpPool, Api::V1, object).key.name, "p", "{broken}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(
        labels in prop::collection::btree_map("[a-z]{1,4}(\\.projectcalico\\.org/[a-z]{1,3})?", ".{0,8}", 0..4),
        annotations in prop::collection::btree_map("[a-z./]{1,8}", ".{0,20}", 0..4),
        policy in any::<bool>(),
        v3 in any::<bool>(),
        legacy in any::<bool>(),
    ) {
        let api = if v3 { Api::V3 } else { Api::V1 };
        let kind = if policy { Kind::NetworkPolicy } else { Kind::NetworkSet };
        let key = Key::new(kind, Some("ns"), "some.name");
        let mut meta = json!({"name": "some.name", "namespace": "ns"});
        if !labels.is_empty() { meta["labels"] = json!(labels); }
        if !annotations.is_empty() { meta["annotations"] = json!(annotations); }
        // Directions that are left out are filled in.
        let spec = if policy { json!({"types": ["Egress"]}) } else { json!({}) };
        let value = json!({"apiVersion": V3, "kind": kind.as_str(), "metadata": meta, "spec": spec});
        let all = names_of(&key, api);
        let name = if legacy { all.last() } else { all.first() }.expect("a name");
        let mut object = write(&place(kind, api), api, &key, name, &value, None);
        object["metadata"]["resourceVersion"] = json!("77");
        let e = entry(kind, api, object);
        prop_assert_eq!(e.key, key);
        prop_assert_eq!(&*e.value, &value);
        AnyResource::deserialize_kind(kind, &*e.value).expect("decodes");
    }

    #[test]
    fn no_object_makes_it_panic(text in "[\\[\\]{}\":,a-z0-9]{0,60}") {
        let object: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        for kind in [Kind::IpPool, Kind::BlockAffinity, Kind::NetworkPolicy] {
            let _ = read(&place(kind, Api::V1), Api::V1, object.clone());
            let mut wrapped = json!({"metadata": {"name": "x", "resourceVersion": "1"}, "spec": object.clone()});
            let _ = read(&place(kind, Api::V1), Api::V1, wrapped.clone());
            wrapped["metadata"]["annotations"] = object.clone();
            let _ = read(&place(kind, Api::V1), Api::V1, wrapped);
        }
    }
}
