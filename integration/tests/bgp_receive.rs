//! What `brindle-bgpd` takes from others: several paths over one session, routes it asks for again, and routes it keeps
//! while the peer restarts (RFC 7911, 2918, 4724, the receiving side). Needs root, and the Debian packages bird2, frr and
//! gobgpd.

use std::{collections::BTreeSet, process::Command};

use brindle_config_core::{
    Key, Kind,
    store::{Expect, Store},
};
use brindle_integration::{
    bins::bin,
    peer::{Bird, Brindle, Frr, Gobgp, Segment, eventually},
};
use serde_json::{Value, json};

/// Host 1 with a session to host 2.
fn ours(asn: u32, extra: &str) -> String {
    format!(
        "asNumber: 64512\nrouterID: 10.99.0.1\nacceptAll: true\npeers:\n  - {{address: 10.99.0.2, asNumber: {asn}, \
         holdTime: 9, connectRetry: 1{extra}}}\nannounce: [{{prefix: 10.1.0.0/26}}]\n"
    )
}

/// BIRD with one route and one internal session, to host 2.
fn behind(route: &str) -> String {
    format!(
        "protocol static one {{ ipv4; route {route} blackhole; }}
protocol bgp up {{ local as 64512; neighbor 10.99.0.2 as 64512; hold time 9; connect delay time 1; connect retry time 1;
  error wait time 1, 2; ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }}; }}
"
    )
}

/// FRR on host 2 with these neighbors.
fn frr(asn: u32, top: &str, neighbors: &[(&str, u32)], of_family: &str, routes: &[&str]) -> String {
    let sessions: String = neighbors
        .iter()
        .map(|(n, asn)| format!(" neighbor {n} remote-as {asn}\n neighbor {n} timers connect 1\n"))
        .collect();
    let routes: String = routes.iter().map(|r| format!("  network {r}\n")).collect();
    format!(
        "frr defaults traditional
router bgp {asn}
 bgp router-id 10.99.0.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 timers bgp 3 9
{top}
{sessions}
 address-family ipv4 unicast
{routes}{of_family}
 exit-address-family
"
    )
}

/// GoBGP on host 2 with these neighbors; `of_each`: further tables of each, `of_family`: of its family.
fn gobgp(asn: u32, neighbors: &[(&str, u32)], of_each: &str, of_family: &str) -> String {
    let sessions: String = neighbors
        .iter()
        .map(|(n, asn)| {
            format!(
                "[[neighbors]]
  [neighbors.config]
    neighbor-address = \"{n}\"
    peer-as = {asn}
  [neighbors.timers.config]
    hold-time = 9
    keepalive-interval = 3
    connect-retry = 1
{of_each}
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = \"ipv4-unicast\"
{of_family}
"
            )
        })
        .collect();
    format!("[global.config]\n  as = {asn}\n  router-id = \"10.99.0.2\"\n{sessions}")
}

/// Waits until the paths we have of a prefix have these next hops.
#[track_caller]
fn paths(us: &Brindle<'_>, prefix: &str, next_hops: &[&str]) -> Value {
    let wanted: BTreeSet<&str> = next_hops.iter().copied().collect();
    eventually(&format!("paths to {prefix} by {next_hops:?}"), || {
        let rib = us.rib(Some(prefix))?;
        let all = rib.as_array().cloned().unwrap_or_default();
        let found: BTreeSet<&str> = all.iter().filter_map(|p| p["nextHop"].as_str()).collect();
        if found == wanted && all.len() == wanted.len() { Ok(rib.clone()) } else { Err(rib.to_string()) }
    })
}

#[test]
fn several_paths_come_from_frr_and_from_gobgp_and_go_one_by_one() {
    const INTERNAL: [(&str, u32); 3] = [("10.99.0.1", 64512), ("10.99.0.3", 64512), ("10.99.0.4", 64512)];
    const PREFIX: &str = "10.9.0.0/26";
    for frr_reflects in [true, false] {
        let segment = Segment::new(4);
        let us = Brindle::start(&segment, 1, &ours(64512, ", addPath: {receive: true}"));
        let (_frr, _gobgp);
        if frr_reflects {
            let clients: String =
                INTERNAL.iter().map(|(n, _)| format!("  neighbor {n} route-reflector-client\n")).collect();
            let of_family = clients + "  neighbor 10.99.0.1 addpath-tx-all-paths";
            _frr = Frr::start(&segment, 2, &frr(64512, "", &INTERNAL, &of_family, &[]));
        } else {
            let client = "  [neighbors.route-reflector.config]\n    route-reflector-client = true\n    \
                          route-reflector-cluster-id = \"10.99.0.2\"";
            let paths = "    [neighbors.afi-safis.add-paths.config]\n      send-max = 8";
            _gobgp = Gobgp::start(&segment, 2, &gobgp(64512, &INTERNAL, client, paths));
        }
        us.established("10.99.0.2");
        let three = Bird::start(&segment, 3, &behind(PREFIX));
        let four = Bird::start(&segment, 4, &behind(PREFIX));
        let both = paths(&us, PREFIX, &["10.99.0.3", "10.99.0.4"]);
        // Equals, told apart by their identifiers only: used both.
        assert_eq!(both.to_string().matches("\"best\":true").count(), 1, "{both}");
        // One goes, the other stays; and comes back.
        three.birdc("disable one").unwrap();
        paths(&us, PREFIX, &["10.99.0.4"]);
        three.birdc("enable one").unwrap();
        paths(&us, PREFIX, &["10.99.0.3", "10.99.0.4"]);
        four.birdc("disable up").unwrap();
        paths(&us, PREFIX, &["10.99.0.3"]);
        us.established("10.99.0.2");
    }
}

async fn put(store: &dyn Store, kind: Kind, name: &str, labels: Value, spec: Value) {
    let value = json!({"apiVersion": "projectcalico.org/v3", "kind": kind.as_str(),
        "metadata": {"name": name, "labels": labels}, "spec": spec});
    store.put(&Key::new(kind, None, name), value, Expect::Any).await.unwrap();
}

/// The template Calico's confd renders, in BIRD 2's words, with these neighbors.
fn calico(routes: &str, neighbors: &[u8], of_each: &str) -> String {
    let sessions: String = neighbors
        .iter()
        .map(|n| {
            format!(
                "protocol bgp Node_10_99_0_{n} from bgp_template {{ neighbor 10.99.0.{n} as 64512; {of_each} }}\n"
            )
        })
        .collect();
    format!(
        "protocol static own {{ ipv4; {routes} }}
filter calico_export {{ if net ~ 192.168.0.0/16 then accept; reject; }}
template bgp bgp_template {{ local as 64512; multihop; graceful restart; connect delay time 2; connect retry time 5;
  error wait time 5, 30;
  ipv4 {{ import all; export filter calico_export; add paths on; gateway recursive; }}; }}
{sessions}"
    )
}

/// Nodes host1 (ours) and host2 to host4, no mesh; `reflector` has a cluster id and everybody else peers with it. Their
/// hosts, and the datastore's address.
async fn cluster(reflector: u8) -> (Segment, String) {
    let segment = Segment::new(4);
    let url = format!("sqlite:{}", segment.dir(1).join("brindle.db").display());
    let store = &*brindle_config::open(&url).unwrap();
    for host in 1..=4u8 {
        let mut bgp = json!({"ipv4Address": format!("10.99.0.{host}/24")});
        if host == reflector {
            bgp["routeReflectorClusterID"] = "244.0.0.1".into();
        }
        let role = if host == reflector { "reflector" } else { "client" };
        put(store, Kind::Node, &format!("host{host}"), json!({"role": role}), json!({"bgp": bgp})).await;
    }
    put(store, Kind::IpPool, "pool", json!({}), json!({"cidr": "192.168.0.0/16"})).await;
    put(store, Kind::BgpConfiguration, "default", json!({}), json!({"nodeToNodeMeshEnabled": false})).await;
    let peer = json!({"nodeSelector": "role == 'client'", "peerSelector": "role == 'reflector'"});
    put(store, Kind::BgpPeer, "reflectors", json!({}), peer).await;
    (segment, url)
}

const SHARED: &str = "192.168.77.7/32";

/// Hosts 3 and 4, both with the shared route, which peer with this host.
fn owners(segment: &Segment, with: u8) -> [Bird<'_>; 2] {
    let own = format!("route {SHARED} blackhole;");
    [3, 4].map(|host| Bird::start(segment, host, &calico(&own, &[with], "")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn several_paths_come_from_a_bird_that_reflects_as_calico_has_it() {
    let (segment, url) = cluster(2).await;
    let us = Brindle::of_store(&segment, 1, &url, "host1");
    let client = "rr client; rr cluster id 244.0.0.1;";
    let reflector = Bird::start(&segment, 2, &calico("", &[1, 3, 4], client));
    let [_three, four] = owners(&segment, 2);
    us.established("10.99.0.2");
    let both = paths(&us, SHARED, &["10.99.0.3", "10.99.0.4"]);
    for path in both.as_array().unwrap() {
        assert_eq!(path["peer"], "host2", "{both}");
    }
    let shown = reflector.birdc("show protocols all Node_10_99_0_1").unwrap();
    assert!(shown.matches("ADD-PATH").count() >= 2 || shown.matches("Add-path").count() >= 2, "{shown}");
    four.birdc("disable own").unwrap();
    paths(&us, SHARED, &["10.99.0.3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn several_paths_go_to_a_bird_that_is_a_client_as_calico_has_it() {
    let (segment, url) = cluster(1).await;
    let us = Brindle::of_store(&segment, 1, &url, "host1");
    let two = Bird::start(&segment, 2, &calico("", &[1], ""));
    let [_three, four] = owners(&segment, 1);
    us.established("10.99.0.2");
    paths(&us, SHARED, &["10.99.0.3", "10.99.0.4"]);
    let next_hops = |n: usize| {
        eventually(&format!("{n} paths in Calico's BIRD"), || {
            let text = two.birdc(&format!("show route {SHARED} all")).unwrap_or_else(|words| words);
            if text.matches("BGP.next_hop: 10.99.0.").count() == n { Ok(text) } else { Err(text) }
        })
    };
    let text = next_hops(2);
    assert!(text.contains("BGP.cluster_list: 244.0.0.1"), "{text}");
    four.birdc("disable own").unwrap();
    let text = next_hops(1);
    assert!(text.contains("BGP.next_hop: 10.99.0.3"), "{text}");
}

/// What `brindlectl bgp` says, as JSON lines or text.
fn ctl(segment: &Segment, args: &[&str]) -> Result<String, String> {
    let mut c = Command::new(bin("brindlectl"));
    c.args(["bgp", "--socket"]).arg(segment.dir(1).join("bgpd.sock")).args(args);
    let out = c.output().map_err(|e| e.to_string())?;
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

#[test]
fn what_we_ask_frr_gobgp_and_bird_for_again_is_sent_again() {
    let segment = Segment::new(4);
    let session = |host: u8| {
        format!("  - {{address: 10.99.0.{host}, asNumber: 64512, holdTime: 9, connectRetry: 1}}\n")
    };
    let peers: String = (2..=4).map(session).collect();
    let config = format!("asNumber: 64512\nrouterID: 10.99.0.1\nacceptAll: true\npeers:\n{peers}");
    let us = Brindle::start(&segment, 1, &config);
    let one = Frr::start(&segment, 2, &frr(64512, "", &[("10.99.0.1", 64512)], "", &["10.2.0.0/26"]));
    let two = Gobgp::start(
        &segment,
        3,
        &gobgp(64512, &[("10.99.0.1", 64512)], "", "")
            .replace("router-id = \"10.99.0.2\"", "router-id = \"10.99.0.3\""),
    );
    two.established("10.99.0.1");
    two.gobgp("global rib add 10.3.0.0/26 nexthop 10.99.0.3").unwrap();
    let bird = behind("10.4.0.0/26").replace("10.99.0.2", "10.99.0.1");
    let three = Bird::start(&segment, 4, &bird);
    for prefix in ["10.2.0.0/26", "10.3.0.0/26", "10.4.0.0/26"] {
        us.route(prefix, true);
    }
    // UPDATEs heard of a neighbor, refreshes sent to it.
    let counts = |host: u8| -> Result<(u64, u64), String> {
        let text = ctl(&segment, &["neighbor", &format!("10.99.0.{host}"), "-o", "json"])?;
        let all: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let of = |field: &str, kind: &str| all[field][kind].as_u64().ok_or_else(|| all.to_string());
        Ok((of("messagesReceived", "update")?, of("messagesSent", "routeRefresh")?))
    };
    for host in 2..=4 {
        us.established(format!("10.99.0.{host}"));
        let sessions = us.sessions(format!("10.99.0.{host}"));
        let before = counts(host).unwrap();
        ctl(&segment, &["clear", &format!("10.99.0.{host}"), "soft", "in"]).unwrap();
        eventually(&format!("host {host} sends again"), || {
            let now = counts(host)?;
            if now.0 > before.0 && now.1 > before.1 { Ok(()) } else { Err(format!("{before:?} {now:?}")) }
        });
        us.route(&format!("10.{host}.0.0/26"), true);
        us.established(format!("10.99.0.{host}"));
        assert_eq!(us.sessions(format!("10.99.0.{host}")), sessions, "the session is the same one");
    }
    // And they count it, too.
    let heard = one.vtysh("show bgp neighbors 10.99.0.1 json").unwrap();
    let heard: Value = serde_json::from_str(&heard).unwrap();
    assert_eq!(heard["10.99.0.1"]["messageStats"]["routeRefreshRecv"], 1, "{heard}");
    let heard = two.gobgp("neighbor 10.99.0.1 -j").unwrap();
    let heard: Value = serde_json::from_str(&heard).unwrap();
    assert_eq!(heard["state"]["messages"]["received"]["refresh"], 1, "{heard}");
    drop(three);
}

/// Waits until the route is stale, or fresh; it must never be gone.
#[track_caller]
fn stale(us: &Brindle<'_>, prefix: &str, stale: bool) {
    eventually(&format!("{prefix} stale: {stale}"), || {
        let rib = us.rib(Some(prefix))?;
        assert_eq!(rib[0]["best"], true, "it must not be gone: {rib}");
        if rib[0]["stale"] == stale { Ok(()) } else { Err(rib.to_string()) }
    });
}

/// Both routes of the peer are kept while it is away.
#[track_caller]
fn kept(us: &Brindle<'_>) {
    stale(us, "10.2.0.0/26", true);
    stale(us, "10.2.1.0/26", true);
}

/// The first is back. End-of-RIB: what was not said again is gone, long before the restart time is over.
#[track_caller]
fn swept(us: &Brindle<'_>) {
    stale(us, "10.2.0.0/26", false);
    us.route("10.2.1.0/26", false);
    stale(us, "10.2.0.0/26", false);
    let log = us.daemon.log();
    assert!(log.contains("routes kept for") && log.contains("restart complete"), "{log}");
}

#[test]
fn we_keep_the_routes_of_a_restarting_frr_and_sweep_what_does_not_come_back() {
    for asn in [64512, 64513] {
        let segment = Segment::new(2);
        let us = Brindle::start(&segment, 1, &ours(asn, ""));
        let top = " bgp graceful-restart\n bgp graceful-restart preserve-fw-state";
        let config = |routes: &[&str]| frr(asn, top, &[("10.99.0.1", 64512)], "", routes);
        let mut them = Frr::start(&segment, 2, &config(&["10.2.0.0/26", "10.2.1.0/26"]));
        us.route("10.2.0.0/26", true);
        us.route("10.2.1.0/26", true);
        us.established("10.99.0.2");
        them.daemon.kill();
        kept(&us);
        let them = Frr::start(&segment, 2, &config(&["10.2.0.0/26"]));
        swept(&us);
        them.route("10.1.0.0/26", true);
    }
}

#[test]
fn we_keep_the_routes_of_a_restarting_gobgp_and_sweep_what_does_not_come_back() {
    for asn in [64512, 64513] {
        let segment = Segment::new(2);
        let us = Brindle::start(&segment, 1, &ours(asn, ""));
        let restart = "  [neighbors.graceful-restart.config]\n    enabled = true\n    restart-time = 120";
        let of_family = "    [neighbors.afi-safis.mp-graceful-restart.config]\n      enabled = true";
        let config = gobgp(asn, &[("10.99.0.1", 64512)], restart, of_family);
        let mut them = Gobgp::start(&segment, 2, &config);
        them.established("10.99.0.1");
        for prefix in ["10.2.0.0/26", "10.2.1.0/26"] {
            them.gobgp(&format!("global rib add {prefix} nexthop 10.99.0.2")).unwrap();
            us.route(prefix, true);
        }
        them.daemon.kill();
        kept(&us);
        // It has its routes from a client, which must be there before we are.
        segment.connect(2, false);
        let them = Gobgp::start_with(&segment, 2, &config, &["-r"]);
        them.gobgp("global rib add 10.2.0.0/26 nexthop 10.99.0.2").unwrap();
        stale(&us, "10.2.0.0/26", true);
        segment.connect(2, true);
        swept(&us);
        them.route("10.1.0.0/26", true);
    }
}
