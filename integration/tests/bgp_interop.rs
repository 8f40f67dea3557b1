//! `brindle-bgpd` beside BIRD 2, FRR and GoBGP: sessions from both sides, both families, attributes, withdrawals,
//! restarts, reflection. Needs root, and the Debian packages bird2, frr and gobgpd.

use brindle_config_core::{
    Kind, ObjectMeta, Resource,
    ipam::{AffinityState, BlockAffinitySpec},
    meta::Extra,
    node::{NodeAddress, NodeBgpSpec, NodeSpec},
    pool::IpPoolSpec,
    store::{Expect, Store, StoreExt},
    workload::WorkloadEndpointSpec,
};
use brindle_integration::{
    peer::{Bird, Brindle, Frr, Gobgp, Segment, eventually},
    wait::until_true,
};

/// What our side announces in most tests, with communities on one route.
const ANNOUNCE: &str = r#"
announce:
  - prefix: 10.1.0.0/26
    communities: ["64512:7", "64512:1:2"]
  - prefix: 10.1.2.3/32
  - prefix: "fd01::/64"
"#;

/// The configuration of host 1 with these peers (YAML list items).
fn ours(asn: u32, peers: &str, announce: &str) -> String {
    format!("asNumber: {asn}\nrouterID: 10.99.0.1\nacceptAll: true\npeers:{peers}\n{announce}\n")
}

/// Peers on host 2 for both families; `extra` is added to each.
fn both_families(asn: u32, extra: &str) -> String {
    let one = |address: &str| {
        format!("\n  - {{address: \"{address}\", asNumber: {asn}, holdTime: 9, connectRetry: 1{extra}}}")
    };
    one("10.99.0.2") + &one("fd99::2")
}

const BIRD_ROUTES: &str = r#"
protocol static { ipv4; route 10.2.0.0/26 blackhole {
  bgp_community.add((64999, 9)); bgp_large_community.add((64999, 3, 4)); }; }
protocol static { ipv6; route fd02::/64 blackhole; }
"#;

/// BIRD on host 2 with sessions `v4` and `v6` to host 1.
fn bird(asn: u32, peer_asn: u32, options: &str) -> String {
    let export = "import all; export where source = RTS_STATIC;";
    format!(
        "{BIRD_ROUTES}
template bgp mesh {{ local as {asn}; hold time 9; connect delay time 1; connect retry time 1;
  error wait time 1, 2; {options} }}
protocol bgp v4 from mesh {{ neighbor 10.99.0.1 as {peer_asn}; ipv4 {{ {export} }}; }}
protocol bgp v6 from mesh {{ neighbor fd99::1 as {peer_asn}; ipv6 {{ {export} }}; }}
"
    )
}

#[test]
fn bird_exchanges_routes_whoever_connects_inside_and_between_ases() {
    for (asn, our_options, their_options) in [
        (64512, ", passive: true", ""),
        (64512, "", "passive on;"),
        (64513, ", passive: true", ""),
        (64513, "", ""),
    ] {
        let segment = Segment::new(2);
        let us = Brindle::start(&segment, 1, &ours(64512, &both_families(asn, our_options), ANNOUNCE));
        let them = Bird::start(&segment, 2, &bird(asn, 64512, their_options));
        for session in ["v4", "v6"] {
            them.established(session);
        }
        us.established("10.99.0.2");
        us.established("fd99::2");

        let route = them.route("10.1.0.0/26", true);
        assert!(route.contains("(64512,7)") && route.contains("(64512, 1, 2)"), "{route}");
        assert!(route.contains("BGP.next_hop: 10.99.0.1"), "{route}");
        let path = if asn == 64512 { "BGP.as_path: \n" } else { "BGP.as_path: 64512\n" };
        assert!(route.contains(path), "{route}");
        them.route("10.1.2.3/32", true);
        let route = them.route("fd01::/64", true);
        assert!(route.contains("BGP.next_hop: fd99::1"), "{route}");

        let ours = us.route("10.2.0.0/26", true);
        let path = &ours[0];
        assert_eq!(path["communities"][0], "64999:9", "{ours}");
        assert_eq!(path["largeCommunities"][0], "64999:3:4", "{ours}");
        assert_eq!(path["nextHop"], "10.99.0.2", "{ours}");
        us.route("fd02::/64", true);
    }
}

#[test]
fn withdrawals_and_reloads_reach_bird_without_touching_the_session() {
    let segment = Segment::new(2);
    let peers = both_families(64512, "");
    let us = Brindle::start(&segment, 1, &ours(64512, &peers, ANNOUNCE));
    let them = Bird::start(&segment, 2, &bird(64512, 64512, ""));
    them.established("v4");
    them.route("10.1.0.0/26", true);
    us.established("10.99.0.2");

    us.reload(&ours(64512, &peers, "announce:\n  - prefix: 10.1.9.0/26\n"));
    them.route("10.1.9.0/26", true);
    them.route("10.1.0.0/26", false);
    us.reload("asNumber: nonsense\n");
    // Read before the next version replaces it.
    until_true("the mistake is named", std::time::Duration::from_secs(60), || {
        us.daemon.log().contains("bgpd.yaml:")
    });
    us.reload(&ours(
        64512,
        &(peers + "\n  - {address: 10.99.0.77, asNumber: 64999}"),
        "announce:\n  - prefix: 10.1.8.0/26\n",
    ));
    them.route("10.1.8.0/26", true);
    us.established("10.99.0.2");
    assert_eq!(us.sessions("10.99.0.2"), 1, "the session is the same one");

    us.route("10.2.0.0/26", true);
    them.birdc("disable static1").unwrap();
    us.route("10.2.0.0/26", false);
    us.route("fd02::/64", true);
}

#[test]
fn a_shutdown_says_goodbye_and_a_restarted_bird_is_taken_back() {
    let segment = Segment::new(2);
    let config = ours(64512, &both_families(64512, ""), ANNOUNCE);
    let mut us = Brindle::start(&segment, 1, &config);
    let mut them = Bird::start(&segment, 2, &bird(64512, 64512, "graceful restart off;"));
    us.established("10.99.0.2");
    us.route("10.2.0.0/26", true);
    them.daemon.kill();
    us.route("10.2.0.0/26", false);
    let them = Bird::start(&segment, 2, &bird(64512, 64512, "graceful restart off;"));
    us.route("10.2.0.0/26", true);
    them.route("10.1.0.0/26", true);

    us.daemon.signal("TERM");
    assert_eq!(us.daemon.wait(), Some(0));
    // In its log, for its protocol has another last error a second later.
    eventually("BIRD hears why", || {
        let log = them.daemon.log();
        if log.contains("v4: Received: Administrative shutdown") { Ok(()) } else { Err(log) }
    });
    let state = them.birdc("show protocols v4").unwrap();
    assert!(!state.contains("Established"), "{state}");
    them.route("10.1.0.0/26", false);
    us.restart(&config);
    them.route("10.1.0.0/26", true);
}

#[test]
fn bird_keeps_our_routes_while_we_are_killed_and_come_back() {
    let segment = Segment::new(2);
    let config = ours(64512, &both_families(64512, ""), ANNOUNCE);
    let mut us = Brindle::start(&segment, 1, &config);
    let them = Bird::start(&segment, 2, &bird(64512, 64512, "graceful restart on; debug { routes };"));
    them.established("v4");
    them.route("10.1.0.0/26", true);
    us.route("10.2.0.0/26", true);
    us.daemon.kill();
    eventually("BIRD notices", || {
        let text = them.birdc("show protocols v4")?;
        if text.contains("Established") { Err(text) } else { Ok(()) }
    });
    let kept = them.birdc("show route 10.1.0.0/26 all").unwrap();
    assert!(kept.contains("10.1.0.0/26"), "{kept}");
    us.restart(&config);
    them.established("v4");
    let kept = them.birdc("show route 10.1.0.0/26 all").unwrap();
    assert!(kept.contains("10.1.0.0/26"), "still there when the session is back: {kept}");
    us.route("10.2.0.0/26", true);
    us.established("fd99::2");
    let log = them.daemon.log();
    assert!(log.contains("added [best] 10.1.0.0/26"), "{log}");
    assert!(!log.contains("removed"), "no route of ours was ever gone: {log}");
}

#[test]
fn we_keep_birds_routes_while_it_is_killed_and_comes_back() {
    let segment = Segment::new(2);
    let us = Brindle::start(&segment, 1, &ours(64512, &both_families(64512, ""), ANNOUNCE));
    // The kernel protocol with graceful restart is what makes BIRD say that it kept its forwarding.
    let config = bird(64512, 64512, "graceful restart on;")
        + "graceful restart wait 10;\nprotocol kernel { ipv4 { export all; }; persist; graceful restart; }\n";
    let mut them = Bird::start_with(&segment, 2, &config, &["-R"]);
    us.established("10.99.0.2");
    us.route("10.2.0.0/26", true);
    eventually("BIRD is done recovering", || {
        let text = them.birdc("show status")?;
        if text.contains("recovery") { Err(text) } else { Ok(()) }
    });
    them.daemon.kill();
    eventually("the route is stale", || {
        let rib = us.rib(Some("10.2.0.0/26"))?;
        if rib[0]["stale"] == true && rib[0]["best"] == true { Ok(()) } else { Err(rib.to_string()) }
    });
    let _them = Bird::start_with(&segment, 2, &config, &["-R"]);
    eventually("the route is confirmed and was never gone", || {
        let rib = us.rib(Some("10.2.0.0/26"))?;
        assert_eq!(rib[0]["best"], true, "{rib}");
        if rib[0]["stale"] == false { Ok(()) } else { Err(rib.to_string()) }
    });
}

#[test]
fn routes_are_reflected_between_bird_clients() {
    let segment = Segment::new(3);
    let client = |host: u8| {
        format!("\n  - {{address: 10.99.0.{host}, asNumber: 64512, reflectorClient: true, connectRetry: 1}}")
    };
    let us = Brindle::start(&segment, 1, &ours(64512, &(client(2) + &client(3)), ""));
    let config = |route: &str| {
        format!(
            "protocol static {{ ipv4; route {route} blackhole; }}
protocol bgp reflector {{ local as 64512; neighbor 10.99.0.1 as 64512; connect delay time 1; connect retry time 1;
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }}; }}
"
        )
    };
    let two = Bird::start(&segment, 2, &config("10.2.0.0/26"));
    let three = Bird::start(&segment, 3, &config("10.3.0.0/26"));
    us.established("10.99.0.2");
    us.established("10.99.0.3");
    let route = three.route("10.2.0.0/26", true);
    for words in ["BGP.next_hop: 10.99.0.2", "BGP.originator_id: 10.99.0.2", "BGP.cluster_list: 10.99.0.1"] {
        assert!(route.contains(words), "{words}: {route}");
    }
    two.route("10.3.0.0/26", true);
    assert!(
        !two.birdc("show route 10.2.0.0/26 all").unwrap().contains("from 10.99.0.1"),
        "not reflected back"
    );
}

#[test]
fn bird_with_a_password_and_ttl_security() {
    let segment = Segment::new(2);
    std::fs::write(segment.dir(1).join("key"), "s3cret\n").unwrap();
    let peers = both_families(64513, ", passwordFile: key, ttlSecurity: 1");
    let us = Brindle::start(&segment, 1, &ours(64512, &peers, ANNOUNCE));
    let them = Bird::start(&segment, 2, &bird(64513, 64512, "password \"s3cret\"; ttl security on; direct;"));
    them.established("v4");
    them.established("v6");
    us.route("10.2.0.0/26", true);
    them.route("fd01::/64", true);
}

fn frr(asn: u32, options: &str) -> String {
    format!(
        "frr defaults traditional
router bgp {asn}
 bgp router-id 10.99.0.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 no bgp default ipv4-unicast
 timers bgp 3 9
 neighbor 10.99.0.1 remote-as 64512
 neighbor 10.99.0.1 timers connect 1
 neighbor fd99::1 remote-as 64512
 neighbor fd99::1 timers connect 1
{options}
 address-family ipv4 unicast
  network 10.2.0.0/26 route-map TAG
  neighbor 10.99.0.1 activate
 exit-address-family
 address-family ipv6 unicast
  network fd02::/64
  neighbor fd99::1 activate
 exit-address-family
!
route-map TAG permit 10
 set community 64999:9
 set large-community 64999:3:4
!
"
    )
}

#[test]
fn frr_exchanges_routes_inside_and_between_ases() {
    for (asn, our_options, their_options) in
        [(64513, "", ""), (64512, ", passive: true", ""), (64513, "", " neighbor 10.99.0.1 passive")]
    {
        let segment = Segment::new(2);
        let peers = both_families(asn, our_options);
        let us = Brindle::start(&segment, 1, &ours(64512, &peers, ANNOUNCE));
        let them = Frr::start(&segment, 2, &frr(asn, their_options));
        them.established("10.99.0.1");
        them.established("fd99::1");
        let route = them.route("10.1.0.0/26", true);
        assert!(route.contains("Community: 64512:7"), "{route}");
        assert!(route.contains("Large Community: 64512:1:2"), "{route}");
        them.route("fd01::/64", true);
        let path = &us.route("10.2.0.0/26", true)[0];
        assert_eq!(path["communities"][0], "64999:9", "{path}");
        assert_eq!(path["largeCommunities"][0], "64999:3:4", "{path}");
        us.route("fd02::/64", true);

        us.reload(&ours(64512, &peers, "announce:\n  - prefix: 10.1.9.0/26\n"));
        them.route("10.1.9.0/26", true);
        them.route("10.1.0.0/26", false);
        them.route("fd01::/64", false);
    }
}

#[test]
fn frr_keeps_our_routes_over_a_restart_and_we_take_a_restarted_frr_back() {
    let segment = Segment::new(2);
    let config = ours(64512, &both_families(64513, ""), ANNOUNCE);
    let mut us = Brindle::start(&segment, 1, &config);
    let mut them = Frr::start(&segment, 2, &frr(64513, " bgp graceful-restart"));
    them.established("10.99.0.1");
    them.route("10.1.0.0/26", true);
    us.daemon.kill();
    eventually("FRR holds the routes as stale", || {
        let text = them.vtysh("show bgp ipv4 unicast 10.1.0.0/26")?;
        assert!(text.contains("Paths:"), "the route is gone: {text}");
        if text.contains("stale") { Ok(()) } else { Err(text) }
    });
    us.restart(&config);
    eventually("FRR's routes are fresh again", || {
        let text = them.vtysh("show bgp ipv4 unicast 10.1.0.0/26")?;
        assert!(text.contains("Paths:"), "the route is gone: {text}");
        if text.contains("stale") { Err(text) } else { Ok(()) }
    });
    them.daemon.kill();
    let them = Frr::start(&segment, 2, &frr(64513, ""));
    them.route("10.1.0.0/26", true);
    us.route("10.2.0.0/26", true);
}

fn gobgp(asn: u32, passive: bool) -> String {
    let neighbor = |address: &str, family: &str| {
        format!(
            "[[neighbors]]
  [neighbors.config]
    neighbor-address = \"{address}\"
    peer-as = 64512
  [neighbors.timers.config]
    hold-time = 9
    keepalive-interval = 3
    connect-retry = 1
  [neighbors.transport.config]
    passive-mode = {passive}
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = \"{family}\"
"
        )
    };
    format!(
        "[global.config]\n  as = {asn}\n  router-id = \"10.99.0.2\"\n{}{}",
        neighbor("10.99.0.1", "ipv4-unicast"),
        neighbor("fd99::1", "ipv6-unicast")
    )
}

#[test]
fn gobgp_exchanges_routes_inside_and_between_ases() {
    for (asn, our_options, passive) in [(64512, ", passive: true", false), (64513, "", true)] {
        let segment = Segment::new(2);
        let peers = both_families(asn, our_options);
        let us = Brindle::start(&segment, 1, &ours(64512, &peers, ANNOUNCE));
        let them = Gobgp::start(&segment, 2, &gobgp(asn, passive));
        them.established("10.99.0.1");
        them.established("fd99::1");
        them.gobgp(
            "global rib add 10.2.0.0/26 nexthop 10.99.0.2 community 64999:9 large-community 64999:3:4",
        )
        .unwrap();
        them.gobgp("global rib add -a ipv6 fd02::/64 nexthop fd99::2").unwrap();
        let path = &us.route("10.2.0.0/26", true)[0];
        assert_eq!(path["communities"][0], "64999:9", "{path}");
        assert_eq!(path["largeCommunities"][0], "64999:3:4", "{path}");
        us.route("fd02::/64", true);
        let table = them.route("10.1.0.0/26", true);
        assert!(table.contains("64512:7") && table.contains("64512:1:2"), "{table}");
        them.route("fd01::/64", true);
        them.gobgp("global rib del 10.2.0.0/26").unwrap();
        us.route("10.2.0.0/26", false);
        us.reload(&ours(64512, &peers, "announce:\n  - prefix: 10.1.9.0/26\n"));
        them.route("10.1.0.0/26", false);
    }
}

#[test]
fn a_peer_that_vanishes_silently_is_noticed_by_the_hold_timer() {
    let segment = Segment::new(2);
    let us = Brindle::start(&segment, 1, &ours(64512, &both_families(64512, ", restartTime: 0"), ANNOUNCE));
    let them = Bird::start(&segment, 2, &bird(64512, 64512, "graceful restart off;"));
    them.established("v4");
    us.route("10.2.0.0/26", true);
    segment.connect(2, false);
    us.route("10.2.0.0/26", false);
    let error = us.peer("10.99.0.2").unwrap().last_error.unwrap();
    assert!(error.to_lowercase().contains("hold timer"), "{error}");
    segment.connect(2, true);
    us.route("10.2.0.0/26", true);
    them.route("10.1.0.0/26", true);
}

/// Nodes `host1` and `host2` with a block each, one pool, all of it as Calico stores it.
async fn two_nodes(store: &dyn Store) {
    for host in [1, 2] {
        let bgp = NodeBgpSpec {
            ipv4_address: Some(NodeAddress(format!("10.99.0.{host}/24").parse().unwrap())),
            ..NodeBgpSpec::default()
        };
        let spec = NodeSpec { bgp: Some(bgp), ..NodeSpec::default() };
        let node = Resource::new(ObjectMeta::named(format!("host{host}")), spec);
        store.put_as(&node, Expect::Absent).await.unwrap();
        let claim = BlockAffinitySpec {
            state: AffinityState::Confirmed,
            node: format!("host{host}"),
            affinity_type: "host".into(),
            cidr: format!("192.168.{host}.0/26").parse().unwrap(),
            deleted: false,
            extra: Extra::new(),
        };
        let name = format!("host{host}-192-168-{host}-0-26");
        store.put_as(&Resource::new(ObjectMeta::named(name), claim), Expect::Absent).await.unwrap();
    }
    let pool = IpPoolSpec::new("192.168.0.0/16".parse().unwrap());
    store.put_as(&Resource::new(ObjectMeta::named("pool"), pool), Expect::Absent).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_bird_configured_as_calico_does_is_a_member_of_the_mesh() {
    let segment = Segment::new(2);
    let url = format!("sqlite:{}", segment.dir(1).join("brindle.db").display());
    let store = brindle_config::open(&url).unwrap();
    two_nodes(&*store).await;
    let us = Brindle::of_store(&segment, 1, &url, "host1");
    // What Calico's confd renders for a node of a mesh, in BIRD 2's words. Its address is the greater one as
    // text, so it connects and we wait.
    let them = Bird::start(
        &segment,
        2,
        "protocol static own { ipv4; route 192.168.2.0/26 blackhole; }
filter calico_aggr { if net = 192.168.2.0/26 then accept; if net ~ 192.168.2.0/26 then reject;
  if net ~ 192.168.0.0/16 then accept; reject; }
template bgp bgp_template { local as 64512; multihop; graceful restart; connect delay time 2; connect retry time 5;
  error wait time 5, 30; ipv4 { import all; export filter calico_aggr; add paths on; gateway recursive; }; }
protocol bgp Mesh_10_99_0_1 from bgp_template { neighbor 10.99.0.1 as 64512; source address 10.99.0.2; }
",
    );
    them.established("Mesh_10_99_0_1");
    let peer = us.established("10.99.0.2");
    assert_eq!((peer.kind.as_str(), peer.name.as_str()), ("mesh", "host2"));
    let route = them.route("192.168.1.0/26", true);
    assert!(
        route.contains("BGP.local_pref: 2147482623") && route.contains("BGP.next_hop: 10.99.0.1"),
        "{route}"
    );
    assert_eq!(us.route("192.168.2.0/26", true)[0]["nextHop"], "10.99.0.2");

    // A pod here with an address of the other node's block, and one of ours.
    let pod = |name: &str, address: &str| {
        let spec = WorkloadEndpointSpec {
            node: "host1".into(),
            ip_networks: vec![address.parse().unwrap()],
            ..WorkloadEndpointSpec::default()
        };
        let meta = ObjectMeta { namespace: Some("default".into()), ..ObjectMeta::named(name) };
        Resource::new(meta, spec)
    };
    // The latter first: whoever has read the other has read it too.
    store.put_as(&pod("own", "192.168.1.9/32"), Expect::Absent).await.unwrap();
    let borrowed = pod("borrowed", "192.168.2.9/32");
    store.put_as(&borrowed, Expect::Absent).await.unwrap();
    them.route("192.168.2.9/32", true);
    assert!(!them.birdc("show route 192.168.1.9/32 all").unwrap_or_default().contains("192.168.1.9/32"));
    store.delete(&borrowed.key(), Expect::Any).await.unwrap();
    them.route("192.168.2.9/32", false);

    let key = brindle_config_core::Key::new(Kind::Node, None, "host2");
    store.delete(&key, Expect::Any).await.unwrap();
    us.route("192.168.2.0/26", false);
    eventually("the peer is gone", || {
        let peers = us.status()?.bgp.peers;
        if peers.is_empty() { Ok(()) } else { Err(format!("{peers:?}")) }
    });
}
