//! Features of `brindle-bgpd` that take a second implementation to be believed: TCP-MD5, GTSM, dynamic neighbors both
//! ways, long-lived graceful restart both ways, graceful shutdown, shutdown texts, extended messages. Needs root, and the
//! Debian packages bird2, frr and gobgpd.

use std::fs;

use brindle_integration::peer::{Bird, Brindle, Frr, Gobgp, Segment, eventually};

const ANNOUNCE: &str = "announce:\n  - prefix: 10.1.0.0/26\n  - prefix: \"fd01::/64\"\n";

/// Host 1 with a session to host 2 in each family; `extra` is added to both, `top` to the file.
fn ours(asn: u32, extra: &str, top: &str) -> String {
    let one = |address: &str| {
        format!("  - {{address: \"{address}\", asNumber: {asn}, holdTime: 9, connectRetry: 1{extra}}}\n")
    };
    let peers = one("10.99.0.2") + &one("fd99::2");
    format!("asNumber: 64512\nrouterID: 10.99.0.1\nacceptAll: true\n{top}peers:\n{peers}{ANNOUNCE}")
}

/// Host 1 with nothing but a range of dynamic neighbors in each family.
fn ranges(template: &str) -> String {
    format!(
        "asNumber: 64512\nrouterID: 10.99.0.1\nacceptAll: true\ndynamic:\n  - {{range: 10.99.0.0/24, template: \
         {{holdTime: 9{template}}}}}\n  - {{range: \"fd99::/64\", template: {{holdTime: 9{template}}}}}\n{ANNOUNCE}"
    )
}

/// BIRD on host 2 with sessions `v4` and `v6` to host 1 and a route in each family.
fn bird(asn: u32, options: &str) -> String {
    let export = "import all; export where source = RTS_STATIC;";
    format!(
        "protocol static {{ ipv4; route 10.2.0.0/26 blackhole; }}
protocol static {{ ipv6; route fd02::/64 blackhole; }}
template bgp mesh {{ local as {asn}; hold time 9; connect delay time 1; connect retry time 1;
  error wait time 1, 2; {options} }}
protocol bgp v4 from mesh {{ neighbor 10.99.0.1 as 64512; ipv4 {{ {export} }}; }}
protocol bgp v6 from mesh {{ neighbor fd99::1 as 64512; ipv6 {{ {export} }}; }}
"
    )
}

fn key(segment: &Segment, text: &str) {
    fs::write(segment.dir(1).join("key"), text).unwrap();
}

/// Both sessions up, and routes there on both sides.
fn meet(us: &Brindle<'_>, them: &Bird<'_>) {
    for session in ["v4", "v6"] {
        them.established(session);
    }
    for prefix in ["10.1.0.0/26", "fd01::/64"] {
        them.route(prefix, true);
    }
    for prefix in ["10.2.0.0/26", "fd02::/64"] {
        us.route(prefix, true);
    }
}

#[test]
fn tcp_md5_with_bird_whoever_connects_and_never_with_another_key() {
    for (ours_extra, theirs_extra) in [(", passive: true", ""), ("", "passive on;")] {
        let segment = Segment::new(2);
        key(&segment, "secret\n");
        let us = Brindle::start(&segment, 1, &ours(64512, &format!(", passwordFile: key{ours_extra}"), ""));
        let them = Bird::start(&segment, 2, &bird(64512, &format!("password \"secret\"; {theirs_extra}")));
        meet(&us, &them);
        // Another key on our side: the session ends, and does not come back until the keys agree again.
        key(&segment, "other\n");
        us.reload(&ours(64512, &format!(", passwordFile: key{ours_extra}"), ""));
        us.route("10.2.0.0/26", false);
        assert_ne!(us.peer("10.99.0.2").unwrap().state, "Established");
        key(&segment, "secret\n");
        us.reload(&ours(64512, &format!(", passwordFile: key{ours_extra}"), ""));
        meet(&us, &them);
    }
}

#[test]
fn gtsm_and_multihop_with_bird() {
    let segment = Segment::new(2);
    let us = Brindle::start(&segment, 1, &ours(64513, ", ttlSecurity: 1", ""));
    let them = Bird::start(&segment, 2, &bird(64513, "direct; ttl security on;"));
    meet(&us, &them);
    drop((us, them));

    let segment = Segment::new(2);
    let us = Brindle::start(&segment, 1, &ours(64513, ", multihop: 3", ""));
    let them = Bird::start(&segment, 2, &bird(64513, "multihop 3;"));
    meet(&us, &them);
}

#[test]
fn bird_frr_and_gobgp_become_dynamic_neighbors_of_ours_and_are_forgotten() {
    let segment = Segment::new(4);
    key(&segment, "secret");
    let us = Brindle::start(&segment, 1, &ranges(", passwordFile: key"));
    let mut them = Bird::start(&segment, 2, &bird(64513, "password \"secret\"; graceful restart off;"));
    meet(&us, &them);
    let names: Vec<String> = us.status().unwrap().bgp.peers.into_iter().map(|p| p.kind).collect();
    assert_eq!(names, ["dynamic", "dynamic"]);
    them.daemon.kill();
    eventually("the dynamic neighbors are forgotten", || {
        let peers = us.status()?.bgp.peers;
        if peers.is_empty() { Ok(()) } else { Err(format!("{peers:?}")) }
    });

    // Without a key, and each from an AS of its own.
    us.reload(&ranges(""));
    let frr = Frr::start(
        &segment,
        3,
        "frr defaults traditional
router bgp 64514
 bgp router-id 10.99.0.3
 no bgp ebgp-requires-policy
 no bgp network import-check
 timers bgp 3 9
 neighbor 10.99.0.1 remote-as 64512
 neighbor 10.99.0.1 timers connect 1
 address-family ipv4 unicast
  network 10.3.0.0/26
 exit-address-family
",
    );
    let gobgp = Gobgp::start(
        &segment,
        4,
        "[global.config]
  as = 64515
  router-id = \"10.99.0.4\"
[[neighbors]]
  [neighbors.config]
    neighbor-address = \"10.99.0.1\"
    peer-as = 64512
  [neighbors.timers.config]
    hold-time = 9
    keepalive-interval = 3
    connect-retry = 1
",
    );
    frr.established("10.99.0.1");
    gobgp.established("10.99.0.1");
    gobgp.gobgp("global rib add 10.4.0.0/26 nexthop 10.99.0.4").unwrap();
    us.route("10.3.0.0/26", true);
    us.route("10.4.0.0/26", true);
    frr.route("10.4.0.0/26", true);
    assert_eq!(us.peer("10.99.0.3").unwrap().asn, 64514);
}

#[test]
fn we_are_a_dynamic_neighbor_of_bird_and_of_frr() {
    let segment = Segment::new(2);
    let us = Brindle::start(&segment, 1, &ours(64513, "", ""));
    let them = Bird::start(
        &segment,
        2,
        "protocol static { ipv4; route 10.2.0.0/26 blackhole; }
protocol bgp spoke { local as 64513; neighbor range 10.99.0.0/24 as 64512; dynamic name \"dyn\"; passive on; hold time 9;
  ipv4 { import all; export where source = RTS_STATIC; }; }
",
    );
    us.established("10.99.0.2");
    us.route("10.2.0.0/26", true);
    them.route("10.1.0.0/26", true);
    drop((us, them));

    let segment = Segment::new(2);
    let us = Brindle::start(&segment, 1, &ours(64513, "", ""));
    let them = Frr::start(
        &segment,
        2,
        "frr defaults traditional
router bgp 64513
 bgp router-id 10.99.0.2
 no bgp ebgp-requires-policy
 timers bgp 3 9
 neighbor SPOKES peer-group
 neighbor SPOKES remote-as 64512
 bgp listen range 10.99.0.0/24 peer-group SPOKES
",
    );
    us.established("10.99.0.2");
    them.route("10.1.0.0/26", true);
}

#[test]
fn long_lived_graceful_restart_both_ways_with_bird() {
    let segment = Segment::new(2);
    let options = "graceful restart on; graceful restart time 1; long lived graceful restart on;
  long lived stale time 3000;";
    let mut us = Brindle::start(&segment, 1, &ours(64512, ", restartTime: 1, longLivedTime: 3000", ""));
    let mut them = Bird::start(&segment, 2, &bird(64512, options));
    meet(&us, &them);
    let text = them.birdc("show protocols all v4").unwrap();
    assert!(text.contains("Long-lived graceful restart"), "{text}");

    us.daemon.kill();
    let stale = eventually("BIRD keeps our route as long-lived stale", || {
        let text = them.birdc("show route 10.1.0.0/26 all")?;
        if text.contains("(65535,6)") || text.contains("(65535, 6)") { Ok(text) } else { Err(text) }
    });
    assert!(stale.contains("10.1.0.0/26"), "{stale}");
    us.restart(&ours(64512, ", restartTime: 1, longLivedTime: 3000", ""));
    eventually("BIRD has it fresh again", || {
        let text = them.birdc("show route 10.1.0.0/26 all")?;
        if text.contains("10.1.0.0/26") && !text.contains("65535") { Ok(()) } else { Err(text) }
    });
    meet(&us, &them);

    them.daemon.kill();
    eventually("we keep BIRD's route as long-lived stale", || {
        let rib = us.rib(Some("10.2.0.0/26"))?;
        let path = &rib[0];
        let marked = path["communities"].to_string().contains("65535:6");
        if path["stale"] == true && marked && path["best"] == true { Ok(()) } else { Err(rib.to_string()) }
    });
}

#[test]
fn leaving_with_a_drain_time_is_told_to_bird_before_the_session_ends() {
    let segment = Segment::new(2);
    let mut us = Brindle::start(&segment, 1, &ours(64512, ", farewell: off to lunch", "drainTime: 600\n"));
    let them = Bird::start(&segment, 2, &bird(64512, ""));
    meet(&us, &them);
    us.daemon.signal("TERM");
    eventually("BIRD sees GRACEFUL_SHUTDOWN and LOCAL_PREF 0", || {
        let text = them.birdc("show route 10.1.0.0/26 all")?;
        let said = text.contains("(65535,0)") || text.contains("(65535, 0)");
        if said && text.contains("BGP.local_pref: 0") { Ok(()) } else { Err(text) }
    });
    them.established("v4");
    // A second signal ends the wait.
    us.daemon.signal("TERM");
    assert_eq!(us.daemon.wait(), Some(0));
    them.route("10.1.0.0/26", false);
    eventually("BIRD logs the text", || {
        let log = them.daemon.log();
        if log.contains("off to lunch") { Ok(()) } else { Err(log) }
    });
}

#[test]
fn extended_messages_are_agreed_on_with_bird() {
    let segment = Segment::new(2);
    let us = Brindle::start(&segment, 1, &ours(64512, "", ""));
    let them = Bird::start(&segment, 2, &bird(64512, "enable extended messages on;"));
    meet(&us, &them);
    let text = them.birdc("show protocols all v4").unwrap();
    assert!(text.matches("Extended message").count() >= 2, "{text}");
}

#[test]
fn a_notification_of_gobgp_keeps_routes_with_the_n_bit() {
    let segment = Segment::new(2);
    let us = Brindle::start(&segment, 1, &ours(64513, ", restartTime: 600", ""));
    let mut them = Gobgp::start(
        &segment,
        2,
        "[global.config]
  as = 64513
  router-id = \"10.99.0.2\"
[[neighbors]]
  [neighbors.config]
    neighbor-address = \"10.99.0.1\"
    peer-as = 64512
  [neighbors.timers.config]
    hold-time = 9
    keepalive-interval = 3
    connect-retry = 1
  [neighbors.graceful-restart.config]
    enabled = true
    restart-time = 600
    notification-enabled = true
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = \"ipv4-unicast\"
    [neighbors.afi-safis.mp-graceful-restart.config]
      enabled = true
",
    );
    them.established("10.99.0.1");
    them.gobgp("global rib add 10.2.0.0/26 nexthop 10.99.0.2").unwrap();
    us.route("10.2.0.0/26", true);
    // Frozen, so that its hold timer is ours to expire: with the N bit on both sides its routes stay (RFC 8538).
    them.daemon.signal("STOP");
    eventually("our hold timer expires and the route stays as stale", || {
        let peer = us.peer("10.99.0.2")?;
        let rib = us.rib(Some("10.2.0.0/26"))?;
        if peer.state != "Established" && rib[0]["stale"] == true {
            Ok(())
        } else {
            Err(format!("{peer:?} {rib}"))
        }
    });
    them.daemon.signal("CONT");
    them.daemon.kill();
}
