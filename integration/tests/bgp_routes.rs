//! Routes beyond what peers say, and how sessions begin: routes of the kernel that are announced, equal-cost paths with
//! limits, pods as peers, an OPEN that waits. Each against BIRD (package bird2) and the real kernel. Needs root.

use std::path::Path;

use brindle_config_core::{
    Key, Kind,
    store::{Expect, Store},
};
use brindle_integration::peer::{Bird, Brindle, Segment, eventually};
use serde_json::{Value, json};

/// ip(8) on a host.
#[track_caller]
fn ip(segment: &Segment, host: u8, args: &str) {
    let args: Vec<&str> = args.split(' ').collect();
    segment.ask(host, Path::new("ip"), &args).unwrap_or_else(|e| panic!("ip {args:?}: {e}"));
}

/// Host 1 with a session to host 2 in each family.
fn ours(peer: &str, more: &str) -> String {
    let one = |address: &str| {
        format!("  - {{address: \"{address}\", asNumber: 64513, holdTime: 9, connectRetry: 1{peer}}}\n")
    };
    let peers = one("10.99.0.2") + &one("fd99::2");
    format!("asNumber: 64512\nrouterID: 10.99.0.1\nacceptAll: true\npeers:\n{peers}{more}")
}

/// BIRD in AS `asn` with sessions `v4` and `v6` to host 1, and a route in each family.
fn bird(asn: u32, options: &str) -> String {
    let export = "import all; export where source = RTS_STATIC;";
    format!(
        "protocol static {{ ipv4; route 10.2.0.0/26 blackhole; }}
protocol static {{ ipv6; route fd02::/64 blackhole; }}
template bgp ours {{ local as {asn}; hold time 9; connect delay time 1; connect retry time 1; error wait time 1, 2;
  {options} }}
protocol bgp v4 from ours {{ neighbor 10.99.0.1 as 64512; ipv4 {{ {export} }}; }}
protocol bgp v6 from ours {{ neighbor fd99::1 as 64512; ipv6 {{ {export} }}; }}
"
    )
}

#[test]
fn routes_of_the_kernel_are_announced_while_they_are_there_and_never_what_felix_wrote() {
    let segment = Segment::new(2);
    ip(&segment, 1, "link add d0 type veth peer name d1");
    ip(&segment, 1, "link set d1 up");
    ip(&segment, 1, "link set d0 up");
    ip(&segment, 1, "address add 10.50.0.1/24 dev d0");
    ip(&segment, 1, "-6 address add fd50::1/64 dev d0 nodad");
    ip(&segment, 1, "route add 10.51.0.0/24 via 10.50.0.9 proto static");
    ip(&segment, 1, "route add 10.52.0.0/24 via 10.50.0.9 proto 80");
    ip(&segment, 1, "route add 10.53.0.0/24 via 10.50.0.9 proto static table 100");
    ip(&segment, 1, "route add 10.54.0.0/24 via 10.50.0.9 proto 188 metric 7");
    ip(&segment, 1, "route add default via 10.50.0.9 proto static");
    let rules = "filters:
  - name: marked
    importV4:
      - {cidr: 10.55.0.0/16, matchOperator: In, action: Reject}
      - {action: Accept, operations: [{addCommunity: {value: \"64512:5\"}}]}
importRoutes:
  - {protocol: connected, interface: \"d*\"}
  - {protocol: static, filter: marked, med: 20}
  - {protocol: static, table: 100}
  - {protocol: 188}
";
    let us = Brindle::start(&segment, 1, &ours("", rules));
    let them = Bird::start(&segment, 2, &bird(64513, ""));
    for prefix in ["10.50.0.0/24", "10.51.0.0/24", "10.53.0.0/24", "10.54.0.0/24", "fd50::/64"] {
        them.route(prefix, true);
    }
    let route = them.route("10.51.0.0/24", true);
    for words in ["BGP.next_hop: 10.99.0.1", "BGP.med: 20", "(64512,5)", "BGP.origin: Incomplete"] {
        assert!(route.contains(words), "{words}: {route}");
    }
    // The segment's own subnet is by another device, the default route by no rule, protocol 80 is felix's.
    for absent in ["10.99.0.0/24", "0.0.0.0/0", "10.52.0.0/24"] {
        assert_eq!(us.rib(Some(absent)).unwrap(), json!([]), "{absent}");
    }

    // What comes later, goes, changes its protocol, or is rejected.
    ip(&segment, 1, "route add 10.55.1.0/24 via 10.50.0.9 proto static");
    ip(&segment, 1, "route add 10.56.0.0/24 via 10.50.0.9 proto static");
    them.route("10.56.0.0/24", true);
    assert_eq!(us.rib(Some("10.55.1.0/24")).unwrap(), json!([]), "rejected by the filter");
    ip(&segment, 1, "route del 10.56.0.0/24");
    them.route("10.56.0.0/24", false);
    ip(&segment, 1, "route replace 10.51.0.0/24 via 10.50.0.9 proto 80");
    them.route("10.51.0.0/24", false);

    // A device that goes down takes its routes along; of IPv4 the kernel says nothing of each.
    ip(&segment, 1, "link set d0 down");
    for prefix in ["10.50.0.0/24", "10.53.0.0/24", "10.54.0.0/24", "fd50::/64"] {
        them.route(prefix, false);
    }
    ip(&segment, 1, "link set d0 up");
    them.route("10.50.0.0/24", true);

    // Other rules by reload: the session stays.
    us.established("10.99.0.2");
    let sessions = us.sessions("10.99.0.2");
    us.reload(&ours("", "importRoutes: [{protocol: kernel}]\n"));
    them.route("10.50.0.0/24", false);
    ip(&segment, 1, "route add 10.57.0.0/24 dev d0");
    them.route("10.57.0.0/24", true);
    us.reload(&ours("", ""));
    them.route("10.57.0.0/24", false);
    us.established("10.99.0.2");
    assert_eq!(us.sessions("10.99.0.2"), sessions, "the session is the same one");
}

async fn put(store: &dyn Store, kind: Kind, namespace: Option<&str>, name: &str, meta: Value, spec: Value) {
    let mut metadata = json!({"name": name});
    metadata.as_object_mut().unwrap().extend(meta.as_object().unwrap().clone());
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    let value = json!({
        "apiVersion": "projectcalico.org/v3", "kind": kind.as_str(), "metadata": metadata, "spec": spec,
    });
    store.put(&Key::new(kind, namespace, name), value, Expect::Any).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_node_peers_with_chosen_pods_and_announces_chosen_routes_of_its_kernel() {
    let segment = Segment::new(3);
    let url = format!("sqlite:{}", segment.dir(1).join("brindle.db").display());
    let store = brindle_config::open(&url).unwrap();
    let none = || json!({});
    let node = json!({"bgp": {"ipv4Address": "10.99.0.1/24"}});
    put(&*store, Kind::Node, None, "host1", none(), node).await;
    put(&*store, Kind::IpPool, None, "pool", none(), json!({"cidr": "10.99.0.0/16"})).await;
    let notes =
        json!({"annotations": {"bgp.brindle.dev/import-routes": "static interface=eth*; ospf; nonsense"}});
    let off = json!({"nodeToNodeMeshEnabled": false});
    put(&*store, Kind::BgpConfiguration, None, "default", notes, off).await;
    // Two pods, of which one is to be a peer.
    for (host, app) in [(2, "bird"), (3, "web")] {
        let labels = json!({"labels": {"app": app}});
        let pod = json!({"orchestrator": "k8s", "node": "host1", "pod": app, "endpoint": "eth0",
            "interfaceName": format!("cali{host}"), "ipNetworks": [format!("10.99.0.{host}/32")]});
        let name = format!("host1-k8s-{app}-eth0");
        put(&*store, Kind::WorkloadEndpoint, Some("default"), &name, labels, pod).await;
    }
    let peer = json!({"localWorkloadSelector": "app == 'bird'", "asNumber": 65010});
    put(&*store, Kind::BgpPeer, None, "pods", none(), peer).await;
    ip(&segment, 1, "route add 10.60.0.0/24 via 10.99.0.9 proto static");
    ip(&segment, 1, "route add 10.61.0.0/24 via 10.99.0.9 proto boot");

    let us = Brindle::of_store(&segment, 1, &url, "host1");
    let config = |asn| {
        format!(
            "protocol static {{ ipv4; route 10.2.0.0/26 blackhole; }}
protocol bgp node {{ local as {asn}; neighbor 10.99.0.1 as 64512; multihop; connect delay time 1; connect retry time 1;
  error wait time 1, 2; ipv4 {{ import all; export where source = RTS_STATIC; }}; }}"
        )
    };
    let pod = Bird::start(&segment, 2, &config(65010));
    let stranger = Bird::start(&segment, 3, &config(65010));
    pod.established("node");
    let path = us.route("10.2.0.0/26", true)[0].clone();
    assert_eq!(path["peer"], "default/bird", "{path}");
    let told = us.established("10.99.0.2");
    assert_eq!((told.kind.as_str(), told.name.as_str()), ("workload", "default/bird"));
    assert_eq!(us.status().unwrap().bgp.peers.len(), 1, "the other pod is no peer");
    assert!(!stranger.birdc("show protocols node").unwrap().contains("Established"));
    pod.route("10.60.0.0/24", true);
    pod.route("10.61.0.0/24", false);
    ip(&segment, 1, "route del 10.60.0.0/24");
    pod.route("10.60.0.0/24", false);

    // A pod that is no longer chosen is no peer any more.
    let peer = json!({"localWorkloadSelector": "app == 'web'", "asNumber": 65010});
    put(&*store, Kind::BgpPeer, None, "pods", none(), peer).await;
    stranger.established("node");
    eventually("the first pod is no peer", || match us.peer("10.99.0.2") {
        Ok(p) => Err(format!("{p:?}")),
        Err(_) => Ok(()),
    });
}

#[test]
fn equal_paths_are_used_up_to_the_limit_of_their_kind() {
    for external in [true, false] {
        let segment = Segment::new(4);
        let asn = |host: u8| if external { 64512 + u32::from(host) } else { 64512 };
        let peer = |host: u8| {
            format!(
                "  - {{address: 10.99.0.{host}, asNumber: {}, holdTime: 9, connectRetry: 1}}\n",
                asn(host)
            )
        };
        let config = |top: &str| {
            let peers: String = (2..=4).map(peer).collect();
            format!("asNumber: 64512\nrouterID: 10.99.0.1\nacceptAll: true\n{top}peers:\n{peers}")
        };
        let us = Brindle::start(&segment, 1, &config(""));
        let their = |host: u8| {
            format!(
                "protocol static {{ ipv4; route 10.2.0.0/26 blackhole; }}
protocol bgp ours {{ local as {}; neighbor 10.99.0.1 as 64512; hold time 9; connect delay time 1;
  error wait time 1, 2; ipv4 {{ import all; export where source = RTS_STATIC; }}; }}",
                asn(host)
            )
        };
        let them: Vec<Bird<'_>> = (2..=4).map(|h| Bird::start(&segment, h, &their(h))).collect();
        them.iter().for_each(|b| b.established("ours"));
        let used = |want: usize| {
            eventually(&format!("{want} paths are used"), || {
                let rib = us.rib(Some("10.2.0.0/26"))?;
                let paths = rib.as_array().cloned().unwrap_or_default();
                let used = paths.iter().filter(|p| p["multipath"] == true).count();
                if (paths.len(), used) == (3, want) { Ok(()) } else { Err(rib.to_string()) }
            });
        };
        used(3);
        us.established("10.99.0.2");
        let sessions = us.sessions("10.99.0.2");
        us.reload(&config("maximumPaths: {ebgp: 2, ibgp: 1}\n"));
        used(if external { 2 } else { 1 });
        us.reload(&config("multipath: 2\nmaximumPaths: {ebgp: 1}\n"));
        used(if external { 1 } else { 2 });
        // External AS paths are as long as each other, and not the same.
        us.reload(&config("maximumPaths: {sameASPath: true}\n"));
        used(if external { 1 } else { 3 });
        us.established("10.99.0.2");
        assert_eq!(us.sessions("10.99.0.2"), sessions, "the session is the same one");
    }
}

#[test]
fn an_open_that_waits_for_the_peers_is_understood_by_bird_and_by_ourselves() {
    // BIRD speaks first wherever it can; whoever connects.
    for (ours_extra, theirs) in [(", delayOpen: 60", "passive on;"), (", delayOpen: 60, passive: true", "")] {
        let segment = Segment::new(2);
        let us = Brindle::start(&segment, 1, &ours(ours_extra, "announce: [{prefix: 10.1.0.0/26}]\n"));
        let them = Bird::start(&segment, 2, &bird(64513, theirs));
        them.established("v4");
        them.established("v6");
        them.route("10.1.0.0/26", true);
        us.route("10.2.0.0/26", true);
    }
    // Both wait: the shorter time ends it.
    let segment = Segment::new(2);
    let peer = |host: u8, delay: u8| {
        format!(
            "  - {{address: 10.99.0.{host}, asNumber: 64512, holdTime: 9, connectRetry: 1, delayOpen: {delay}}}\n"
        )
    };
    let side = |me: u8, other: u8, delay| {
        format!("asNumber: 64512\nrouterID: 10.99.0.{me}\npeers:\n{}", peer(other, delay))
    };
    let one = Brindle::start(&segment, 1, &side(1, 2, 2));
    let two = Brindle::start(&segment, 2, &side(2, 1, 60));
    one.established("10.99.0.2");
    two.established("10.99.0.1");
}
