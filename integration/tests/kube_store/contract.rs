//! The promises of every store, and those of the kubernetes one about listings of several kinds.

use std::sync::Arc;

use brindle_config::contract::{self, Forget, Subject};
use brindle_config_core::{
    Key, Kind,
    store::{Change, Expect, Store, StoreError},
};
use http::Method;
use serde_json::{Value, json};

use super::target::{Target, definitions};

const USED: [&str; 4] = ["ippools", "bgppeers", "namespaces/one/networksets", "namespaces/two/networksets"];

/// The suite, on a server whose CRDs are at `api`.
async fn suite(target: Arc<Target>, api: &'static str) {
    for ns in ["one", "two"] {
        target.namespace(ns).await;
    }
    for path in USED {
        let there = target.call(Method::GET, &format!("/apis/{api}/{path}"), None).await.unwrap();
        let items = there["items"].as_array().unwrap();
        assert!(
            items.is_empty(),
            "this cluster is in use ({path}: {}); the suite needs an empty one",
            items.len()
        );
    }
    let runtime = tokio::runtime::Handle::current();
    contract::run(|| {
        let emptied = Arc::clone(&target);
        tokio::task::block_in_place(|| {
            runtime.block_on(async {
                for path in USED {
                    emptied.call(Method::DELETE, &format!("/apis/{api}/{path}"), None).await.unwrap();
                }
            });
        });
        let forgetting = Arc::clone(&target);
        let forget: Forget = Box::new(move || {
            forgetting.server().compact();
            Box::pin(async {})
        });
        Subject {
            handle: Box::new(move || Arc::new(emptied.store())),
            compact: target.is_ours().then_some(forget),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_keeps_the_contract() {
    let target = Arc::new(Target::start().await);
    suite(target, "crd.projectcalico.org/v1").await;
}

/// Calico's native definitions, made of the others: group and version, and what differs between them.
fn native() -> Vec<Value> {
    definitions()
        .into_iter()
        .map(|mut d| {
            let names = &mut d["spec"]["names"];
            if names["plural"] == "ipamconfigs" {
                *names = json!({"kind": "IPAMConfiguration", "listKind": "IPAMConfigurationList",
                    "plural": "ipamconfigurations", "singular": "ipamconfiguration"});
            }
            let plural = names["plural"].as_str().unwrap().to_owned();
            d["metadata"] = json!({"name": format!("{plural}.projectcalico.org")});
            d["spec"]["group"] = json!("projectcalico.org");
            d["spec"]["versions"][0]["name"] = json!("v3");
            if plural == "blockaffinities" {
                let schema = &mut d["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
                schema["properties"]["spec"]["properties"]["deleted"] = json!({"type": "boolean"});
            }
            d
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_v3_definitions_are_used_where_there_are_no_others() {
    let target = Arc::new(Target::ours_bare().await);
    for definition in native() {
        target.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    }
    suite(Arc::clone(&target), "projectcalico.org/v3").await;
    let key = Key::new(Kind::BlockAffinity, None, "n-10-0-0-0-26");
    let value = json!({"metadata": {"name": key.name}, "spec": {"cidr": "10.0.0.0/26", "node": "n",
        "state": "confirmed", "type": "host", "deleted": false}});
    target.store().put(&key, value, Expect::Absent).await.unwrap();
    let object = target
        .call(Method::GET, "/apis/projectcalico.org/v3/blockaffinities/n-10-0-0-0-26", None)
        .await
        .unwrap();
    assert_eq!(object["spec"]["deleted"], false);
    assert!(object["metadata"].get("annotations").is_none(), "{object}");
}

/// Brindle's definitions applied to a cluster that lives on native ones are no reason to begin anew without its pools.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_beside_native_ones_that_are_in_use_are_refused() {
    const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let target = Target::ours_bare().await;
    for definition in native() {
        target.create(DEFINITIONS, definition).await;
    }
    let pool = |api: &str| {
        json!({"apiVersion": api, "kind": "IPPool", "metadata": {"name": "pods"},
        "spec": {"cidr": "10.244.0.0/16"}})
    };
    target.create("/apis/projectcalico.org/v3/ippools", pool("projectcalico.org/v3")).await;
    assert_eq!(target.store().list(&[Kind::IpPool]).await.unwrap().entries.len(), 1);
    for definition in definitions() {
        target.create(DEFINITIONS, definition).await;
    }
    let e = target.store().list(&[Kind::IpPool]).await.unwrap_err();
    let told = e.to_string();
    assert!(matches!(e, StoreError::Broken(_)) && told.contains("deploy/overlays/native"), "{told}");

    // Somebody says that it is meant.
    target.create("/apis/crd.projectcalico.org/v1/ippools", pool("crd.projectcalico.org/v1")).await;
    assert_eq!(target.store().list(&[Kind::IpPool]).await.unwrap().entries.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_of_many_kinds_goes_on_without_gap_or_repetition() {
    let target = Arc::new(Target::start().await);
    target.namespace("one").await;
    let store = target.store();
    let kinds = [
        Kind::GlobalNetworkSet,
        Kind::BgpPeer,
        Kind::NetworkSet,
        Kind::Namespace,
        Kind::ClusterNetworkPolicy,
    ];
    let global = |n: u32| Key::new(Kind::GlobalNetworkSet, None, &format!("many-{n}"));
    let set = |n: u32| Key::new(Kind::NetworkSet, Some("one"), &format!("many-{n}"));
    let write = async |key: Key, n: u32| {
        let spec = json!({"nets": [format!("10.77.{n}.0/24")]});
        let value = json!({"apiVersion": "projectcalico.org/v3", "kind": key.kind.as_str(),
            "metadata": {"name": key.name}, "spec": spec});
        target.store().put(&key, value, Expect::Any).await.unwrap();
    };
    // While the kinds are listed one after the other, both are written to.
    for round in 0..10 {
        let writing = async {
            for n in 0..6 {
                write(global(n), round).await;
                write(set(n), round).await;
            }
        };
        let (listing, ()) = tokio::join!(store.list(&kinds), writing);
        let listing = listing.unwrap();
        let mut state: std::collections::BTreeMap<Key, Value> =
            listing.entries.into_iter().map(|e| (e.key, e.value["spec"].clone())).collect();
        let mut watch = store.watch(&kinds, listing.revision).await.unwrap();
        let end = Key::new(Kind::BgpPeer, None, &format!("end-{round}"));
        let value =
            json!({"metadata": {"name": end.name}, "spec": {"peerIP": "192.0.2.1", "asNumber": 64512}});
        store.put(&end, value, Expect::Absent).await.unwrap();
        write(global(9), 200 + round).await;
        write(set(9), 200 + round).await;
        let done = |s: &std::collections::BTreeMap<Key, Value>| {
            let net = format!("10.77.{}.0/24", 200 + round);
            s.contains_key(&end)
                && [global(9), set(9)].iter().all(|k| s.get(k).is_some_and(|v| v["nets"] == json!([net])))
        };
        while !done(&state) {
            let batch =
                tokio::time::timeout(super::target::LONG, watch.next()).await.expect("changes come").unwrap();
            for change in batch {
                match change {
                    Change::Put(e) if e.key.kind == Kind::Namespace => {}
                    Change::Put(e) => {
                        let new = e.value["spec"].clone();
                        let old = state.insert(e.key.clone(), new.clone());
                        assert_ne!(old, Some(new), "{} was told again", e.key);
                    }
                    Change::Delete { key, .. } => drop(state.remove(&key)),
                }
            }
        }
        let now = store.list(&kinds).await.unwrap();
        let now: std::collections::BTreeMap<Key, Value> =
            now.entries.into_iter().map(|e| (e.key, e.value["spec"].clone())).collect();
        assert_eq!(state, now, "round {round}");
    }
    // A listing of long ago is not known any more, and says so.
    let unknown = brindle_config_core::store::Revision((1 << 62) + 1_000_000);
    assert_eq!(store.watch(&kinds, unknown).await.err(), Some(StoreError::Compacted(unknown)));
    for key in (0..10).flat_map(|n| [global(n), set(n), Key::new(Kind::BgpPeer, None, &format!("end-{n}"))]) {
        let _ = store.delete(&key, Expect::Any).await;
    }
}
