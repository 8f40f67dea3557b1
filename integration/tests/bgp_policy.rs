//! Policy between `brindle-bgpd` of a datastore and a BIRD as Calico renders it: filters both ways, changed while the
//! session stands, communities of prefixAdvertisements, a password from a secret, reflection.

use brindle_config_core::{
    Key, Kind,
    store::{Expect, Store},
};
use brindle_integration::peer::{Bird, Brindle, Segment, eventually};
use serde_json::{Value, json};

async fn put(store: &dyn Store, kind: Kind, name: &str, spec: Value) {
    let value = json!({
        "apiVersion": "projectcalico.org/v3", "kind": kind.as_str(), "metadata": {"name": name}, "spec": spec,
    });
    store.put(&Key::new(kind, None, name), value, Expect::Any).await.unwrap();
}

/// Node `host1` with a block; no mesh.
async fn host1(store: &dyn Store, bgp: Value, configuration: Value) {
    let mut spec = json!({"bgp": {"ipv4Address": "10.99.0.1/24"}});
    spec["bgp"].as_object_mut().unwrap().extend(bgp.as_object().unwrap().clone());
    put(store, Kind::Node, "host1", spec).await;
    let claim = json!({"state": "confirmed", "node": "host1", "type": "host", "cidr": "192.168.1.0/26",
        "deleted": "false"});
    put(store, Kind::BlockAffinity, "host1-192-168-1-0-26", claim).await;
    put(store, Kind::IpPool, "pool", json!({"cidr": "192.168.0.0/16"})).await;
    put(store, Kind::BgpConfiguration, "default", configuration).await;
}

/// BIRD on a host with the template Calico's confd renders, in BIRD 2's words.
fn calico(routes: &[&str], asn: u32, more: &str) -> String {
    let routes: String =
        routes.iter().map(|r| format!("route {r} blackhole {{ bgp_community.add((65010,7)); }}; ")).collect();
    format!(
        "protocol static own {{ ipv4; {routes} }}
template bgp bgp_template {{ local as {asn}; multihop; graceful restart; connect delay time 1; connect retry time 1;
  error wait time 1, 2; {more}
  ipv4 {{ import all; export where source = RTS_STATIC; add paths on; gateway recursive; }}; }}
protocol bgp Node_10_99_0_1 from bgp_template {{ neighbor 10.99.0.1 as 64512; }}
"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn filters_are_applied_both_ways_and_change_without_the_session() {
    let segment = Segment::new(2);
    let url = format!("sqlite:{}", segment.dir(1).join("brindle.db").display());
    let store = brindle_config::open(&url).unwrap();
    let adverts = json!({
        "nodeToNodeMeshEnabled": false,
        "communities": [{"name": "pods", "value": "64512:11"}],
        "prefixAdvertisements": [{"cidr": "192.168.0.0/16", "communities": ["pods", "64512:1:2"]}],
        "serviceClusterIPs": [{"cidr": "10.96.0.0/16"}],
    });
    host1(&*store, json!({}), adverts).await;
    let export = |operations: Value| {
        json!({
            "importV4": [
                {"cidr": "10.2.0.0/16", "matchOperator": "In", "prefixLength": {"max": 24}, "action": "Accept",
                 "operations": [{"addCommunity": {"value": "64512:99"}}, {"setPriority": {"value": 512}}]},
                {"communities": {"values": ["65010:7"]}, "peerType": "eBGP", "action": "Reject"},
            ],
            "exportV4": [
                {"cidr": "10.96.0.0/16", "matchOperator": "Equal", "action": "Reject"},
                {"cidr": "192.168.0.0/16", "matchOperator": "In", "action": "Accept", "operations": operations},
            ],
        })
    };
    put(&*store, Kind::BgpFilter, "edge", export(json!([{"prependASPath": {"prefix": [64512]}}]))).await;
    let peer = json!({"peerIP": "10.99.0.2", "asNumber": 65010, "filters": ["edge"],
        "password": {"secretKeyRef": {"name": "bgp", "key": "edge"}}});
    put(&*store, Kind::BgpPeer, "edge", peer).await;
    let secrets = segment.dir(1).join("secrets");
    let us =
        Brindle::of_store_with(&segment, 1, &url, "host1", &["--secrets", &secrets.display().to_string()]);
    eventually("the password is missed", || {
        let log = us.daemon.log();
        if log.contains("secret \"bgp\" key \"edge\" is not available") { Ok(()) } else { Err(log) }
    });
    assert!(us.status().unwrap().bgp.peers.is_empty(), "not without the password");
    std::fs::create_dir_all(secrets.join("bgp")).unwrap();
    std::fs::write(secrets.join("bgp/edge"), "s3cret\n").unwrap();

    let them = Bird::start(
        &segment,
        2,
        &calico(&["10.2.1.0/24", "10.2.2.128/25", "172.16.0.0/16"], 65010, "password \"s3cret\";"),
    );
    them.established("Node_10_99_0_1");
    us.established("10.99.0.2");
    let path = us.route("10.2.1.0/24", true)[0].clone();
    assert_eq!(path["localPref"], 2_147_483_647 - 512, "{path}");
    assert_eq!(path["communities"], json!(["64512:99", "65010:7"]), "{path}");
    let why = |prefix: &str| us.route(prefix, true)[0]["why"].clone();
    assert_eq!(why("10.2.2.128/25"), "rejected by filter edge importV4[1]");
    assert_eq!(why("172.16.0.0/16"), "rejected by filter edge importV4[1]");

    let route = them.route("192.168.1.0/26", true);
    assert!(route.contains("BGP.as_path: 64512 64512"), "{route}");
    assert!(!route.contains("(64512,11)"), "a rule let it out, and Calico's filters end there: {route}");
    them.route("10.96.0.0/16", false);

    // Other rules: the same session, other routes.
    let mut open = export(json!([{"addCommunity": {"value": "64512:5"}}]));
    open["importV4"] = json!([]);
    open["exportV4"].as_array_mut().unwrap().remove(0);
    put(&*store, Kind::BgpFilter, "edge", open).await;
    them.route("10.96.0.0/16", true);
    let route = eventually("the other community", || {
        let text = them.route("192.168.1.0/26", true);
        if text.contains("(64512,5)") { Ok(text) } else { Err(text) }
    });
    assert!(route.contains("BGP.as_path: 64512\n"), "{route}");
    eventually("nothing is filtered", || {
        let rib = us.rib(None)?;
        let fresh = !rib.to_string().contains("rejected") && !rib.to_string().contains("64512:99");
        if fresh { Ok(()) } else { Err(rib.to_string()) }
    });
    us.established("10.99.0.2");
    assert_eq!(us.sessions("10.99.0.2"), 1, "the session is the same one");

    // What no rule lets out goes out as usual: with the communities of its prefix.
    put(&*store, Kind::BgpFilter, "edge", json!({"importV4": [], "exportV4": []})).await;
    eventually("the communities of the prefix", || {
        let text = them.route("192.168.1.0/26", true);
        let there = text.contains("(64512,11)") && text.contains("(64512, 1, 2)");
        if there && !text.contains("(64512,5)") { Ok(()) } else { Err(text) }
    });

    // A filter that is gone is not "no filter".
    store.delete(&Key::new(Kind::BgpFilter, None, "edge"), Expect::Any).await.unwrap();
    them.route("192.168.1.0/26", false);
    eventually("the session is left out", || match us.peer("10.99.0.2") {
        Ok(p) => Err(format!("{p:?}")),
        Err(_) => Ok(()),
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn calicos_birds_are_clients_of_a_reflector_from_the_datastore() {
    let segment = Segment::new(3);
    let url = format!("sqlite:{}", segment.dir(1).join("brindle.db").display());
    let store = brindle_config::open(&url).unwrap();
    let rr = json!({"routeReflectorClusterID": "244.0.0.1"});
    let tagged = json!({"nodeToNodeMeshEnabled": false, "communities": [{"name": "pods", "value": "64512:11"}],
        "prefixAdvertisements": [{"cidr": "192.168.2.0/24", "communities": ["pods"]}]});
    host1(&*store, rr, tagged).await;
    for host in [2, 3] {
        let spec = json!({"bgp": {"ipv4Address": format!("10.99.0.{host}/24")}});
        put(&*store, Kind::Node, &format!("host{host}"), spec).await;
    }
    let peer = json!({"nodeSelector": "all()", "peerIP": "10.99.0.1", "asNumber": 64512});
    put(&*store, Kind::BgpPeer, "rr", peer).await;
    let us = Brindle::of_store(&segment, 1, &url, "host1");
    let two = Bird::start(&segment, 2, &calico(&["192.168.2.0/26"], 64512, ""));
    let three = Bird::start(&segment, 3, &calico(&["192.168.3.0/26"], 64512, ""));
    us.established("10.99.0.2");
    us.established("10.99.0.3");
    let route = three.route("192.168.2.0/26", true);
    for words in ["BGP.next_hop: 10.99.0.2", "BGP.originator_id: 10.99.0.2", "BGP.cluster_list: 244.0.0.1"] {
        assert!(route.contains(words), "{words}: {route}");
    }
    // What is passed on gets the communities of its prefix, like what is our own.
    assert!(route.contains("(64512,11)"), "{route}");
    let route = two.route("192.168.3.0/26", true);
    assert!(!route.contains("(64512,11)"), "{route}");
    let own = two.route("192.168.1.0/26", true);
    assert!(own.contains("BGP.local_pref: 2147482623") && !own.contains("originator_id"), "{own}");
}
