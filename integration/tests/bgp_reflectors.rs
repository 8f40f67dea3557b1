//! Reflectors from the datastore: several of them, with cluster ids of their own.

use std::time::Duration;

use brindle_config_core::{
    Key, Kind,
    store::{Expect, Store},
};
use brindle_integration::{
    peer::{Brindle, Segment},
    wait,
};
use serde_json::{Value, json};

/// A loaded machine is no failure.
const LIMIT: Duration = Duration::from_secs(60);

/// Writes a resource, whatever was there before.
async fn put(store: &dyn Store, kind: Kind, name: &str, labels: Value, spec: Value) {
    let value = json!({
        "apiVersion": "projectcalico.org/v3", "kind": kind.as_str(),
        "metadata": {"name": name, "labels": labels}, "spec": spec,
    });
    store.put(&Key::new(kind, None, name), value, Expect::Any).await.unwrap();
}

fn node(address: &str, cluster: &str) -> Value {
    json!({"bgp": {"ipv4Address": address, "routeReflectorClusterID": cluster}})
}

/// calico issue 2735: reflectors that are nodes themselves, meshed with each other, each with clients of its own. With
/// one cluster id for all, a route that passed two reflectors would be dropped; with one each, everybody has all.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reflectors_with_cluster_ids_of_their_own_pass_on_each_others_clients() {
    let segment = Segment::new(5);
    let url = format!("sqlite:{}", segment.dir(1).join("brindle.db").display());
    let store = brindle_config::open(&url).unwrap();
    let rack = |host: u8| if host.is_multiple_of(2) { "even" } else { "odd" };
    for host in 1..=5u8 {
        let mut bgp = json!({"ipv4Address": format!("10.99.0.{host}/24")});
        let role = if host <= 2 { "reflector" } else { "client" };
        if host <= 2 {
            bgp["routeReflectorClusterID"] = format!("244.0.0.{host}").into();
        }
        let labels = json!({"role": role, "rack": rack(host)});
        put(&*store, Kind::Node, &format!("host{host}"), labels, json!({"bgp": bgp})).await;
        let claim = json!({"state": "confirmed", "node": format!("host{host}"), "type": "host",
            "cidr": format!("192.168.{host}.0/26"), "deleted": "false"});
        put(&*store, Kind::BlockAffinity, &format!("host{host}-192-168-{host}-0-26"), json!({}), claim).await;
    }
    put(&*store, Kind::IpPool, "pool", json!({}), json!({"cidr": "192.168.0.0/16"})).await;
    put(&*store, Kind::BgpConfiguration, "default", json!({}), json!({"nodeToNodeMeshEnabled": false})).await;
    let role = |r: &str| format!("role == '{r}'");
    let mesh = json!({"nodeSelector": role("reflector"), "peerSelector": role("reflector")});
    put(&*store, Kind::BgpPeer, "reflectors", json!({}), mesh).await;
    for r in ["odd", "even"] {
        let clients = json!({"nodeSelector": format!("role == 'client' && rack == '{r}'"),
            "peerSelector": format!("role == 'reflector' && rack == '{r}'")});
        put(&*store, Kind::BgpPeer, r, json!({}), clients).await;
    }
    let all: Vec<Brindle<'_>> =
        (1..=5).map(|h| Brindle::of_store(&segment, h, &url, &format!("host{h}"))).collect();
    for (host, daemon) in (1..=5u8).zip(&all) {
        for other in (1..=5u8).filter(|o| *o != host) {
            let paths = daemon.route(&format!("192.168.{other}.0/26"), true);
            assert_eq!(paths[0]["nextHop"], format!("10.99.0.{other}"), "host{host}: {paths}");
        }
    }
    // A client more than a session with its reflector does not need.
    assert_eq!(all[4].status().unwrap().bgp.peers.len(), 1);

    // One cluster id for both: the trap. Clients of the other reflector are lost, and the reason is told.
    let bgp = |host: u8| node(&format!("10.99.0.{host}/24"), "244.0.0.1");
    put(&*store, Kind::Node, "host2", json!({"role": "reflector", "rack": "even"}), bgp(2)).await;
    all[4].route("192.168.4.0/26", false);
    wait::until("the loop is named", LIMIT, || {
        let rib = all[0].rib(None)?.to_string();
        let named = rib.contains("our cluster is in the CLUSTER_LIST") || !rib.contains("192.168.4.0/26");
        if named { Ok(()) } else { Err(rib) }
    });
}
