//! `brindle-bgpd` beside OpenBGPD and ExaBGP: what each of them has of the features of docs/interop.md. Needs root, and the
//! Debian packages openbgpd and exabgp.

use std::fs;

use brindle_integration::peer::{Brindle, ExaBgp, OpenBgpd, Segment, eventually};
use serde_json::Value;

const ANNOUNCE: &str = "announce:
  - prefix: 10.1.0.0/26
    communities: [\"64512:7\", \"64512:1:2\"]
  - prefix: \"fd01::/64\"
";

/// Host 1 with a session to `host` in each family; `extra` is added to both.
fn sessions(host: u8, asn: u32, extra: &str) -> String {
    let one = |address: String| {
        format!("  - {{address: \"{address}\", asNumber: {asn}, holdTime: 9, connectRetry: 1{extra}}}\n")
    };
    one(format!("10.99.0.{host}")) + &one(format!("fd99::{host}"))
}

fn ours(peers: &str, announce: &str) -> String {
    format!("asNumber: 64512\nrouterID: 10.99.0.1\nacceptAll: true\npeers:\n{peers}{announce}")
}

/// OpenBGPD with a session in each family to host 1 and a route in each; `extra` is added to both.
fn openbgpd(asn: u32, extra: &str) -> String {
    format!(
        "AS {asn}
network 10.2.0.0/26 set {{ community 64999:9 large-community 64999:3:4 }}
network fd02::/64
neighbor 10.99.0.1 {{
  remote-as 64512
{extra}
}}
neighbor fd99::1 {{
  remote-as 64512
  announce IPv6 unicast
  announce IPv4 none
{extra}
}}
allow from any
allow to any
"
    )
}

/// A session of ExaBGP on `host` with host 1 in each family, with the capabilities Debian's version knows.
fn exabgp(host: u8, extra: &str, v4: &str, v6: &str) -> String {
    let one = |us: String, them: &str, family: &str, routes: &str| {
        format!(
            "neighbor {them} {{ inherit common; local-address {us}; peer-as 64512; {extra}
  capability {{ asn4 enable; route-refresh enable; graceful-restart 60; add-path send/receive; extended-message enable; }}
  family {{ {family} unicast; }}
  static {{ {routes} }}
}}
"
        )
    };
    one(format!("10.99.0.{host}"), "10.99.0.1", "ipv4", v4)
        + &one(format!("fd99::{host}"), "fd99::1", "ipv6", v6)
}

const EXA_V4: &str = "route 10.3.0.0/26 next-hop self community [ 64999:9 ] large-community [ 64999:3:4 ];";
const EXA_V6: &str = "route fd03::/64 next-hop self;";

fn tagged(path: &Value) {
    assert_eq!(path["communities"][0], "64999:9", "{path}");
    assert_eq!(path["largeCommunities"][0], "64999:3:4", "{path}");
}

#[test]
fn openbgpd_exchanges_routes_whoever_connects_inside_and_between_ases() {
    for (asn, our_options, their_options) in
        [(64512, ", passive: true", ""), (64513, "", "  passive"), (64512, "", "")]
    {
        let segment = Segment::new(2);
        let options = format!("{our_options}, farewell: off to lunch");
        let mut us = Brindle::start(&segment, 1, &ours(&sessions(2, asn, &options), ANNOUNCE));
        let them = OpenBgpd::start(&segment, 2, &openbgpd(asn, their_options));
        let text = them.established("10.99.0.1");
        assert!(text.contains("4-byte AS numbers") && text.contains("Route Refresh"), "{text}");
        them.established("fd99::1");
        let route = them.route("10.1.0.0/26", true);
        assert!(route.contains("Communities: 64512:7"), "{route}");
        assert!(route.contains("Large Communities: 64512:1:2"), "{route}");
        assert!(route.contains("Nexthop 10.99.0.1"), "{route}");
        let route = them.route("fd01::/64", true);
        assert!(route.contains("Nexthop fd99::1"), "{route}");
        tagged(&us.route("10.2.0.0/26", true)[0]);
        us.route("fd02::/64", true);

        us.reload(&ours(&sessions(2, asn, &options), "announce:\n  - prefix: 10.1.9.0/26\n"));
        them.route("10.1.9.0/26", true);
        them.route("10.1.0.0/26", false);
        them.route("fd01::/64", false);
        them.bgpctl("network delete 10.2.0.0/26").unwrap();
        us.route("10.2.0.0/26", false);
        us.daemon.signal("TERM");
        assert_eq!(us.daemon.wait(), Some(0));
        eventually("OpenBGPD knows why", || {
            let text = them.bgpctl("show neighbor 10.99.0.1")?;
            if text.contains("off to lunch") { Ok(()) } else { Err(text) }
        });
    }
}

#[test]
fn openbgpd_with_a_password_with_gtsm_and_over_hops() {
    for (asn, ours_extra, theirs_extra) in [
        (64512, ", passwordFile: key, passive: true", "  tcp md5sig password secret"),
        (64512, ", passwordFile: key", "  tcp md5sig password secret\n  passive"),
        (64513, ", ttlSecurity: 1", "  ttl-security yes"),
        (64513, ", multihop: 3", "  multihop 3"),
    ] {
        let segment = Segment::new(2);
        fs::write(segment.dir(1).join("key"), "secret\n").unwrap();
        let us = Brindle::start(&segment, 1, &ours(&sessions(2, asn, ours_extra), ANNOUNCE));
        let them = OpenBgpd::start(&segment, 2, &openbgpd(asn, theirs_extra));
        them.established("10.99.0.1");
        them.established("fd99::1");
        us.route("10.2.0.0/26", true);
        them.route("fd01::/64", true);
    }
}

#[test]
fn openbgpd_keeps_our_routes_over_a_restart_and_asks_for_them_again() {
    let segment = Segment::new(2);
    let config = ours(&sessions(2, 64512, ""), ANNOUNCE);
    let mut us = Brindle::start(&segment, 1, &config);
    let them = OpenBgpd::start(&segment, 2, &openbgpd(64512, "  announce restart yes"));
    let text = them.established("10.99.0.1");
    assert!(text.contains("Graceful Restart: Timeout: 120"), "{text}");
    them.route("10.1.0.0/26", true);

    let updates = |text: &str| {
        let line = text.lines().find(|l| l.trim_start().starts_with("Updates")).expect("a count of updates");
        line.split_whitespace().nth(2).and_then(|n| n.parse::<u32>().ok()).expect("a number")
    };
    let before = updates(&them.established("10.99.0.1"));
    them.bgpctl("neighbor 10.99.0.1 refresh").unwrap();
    eventually("our routes are sent again", || {
        let text = them.bgpctl("show neighbor 10.99.0.1")?;
        if updates(&text) > before { Ok(()) } else { Err(text) }
    });

    us.daemon.kill();
    eventually("OpenBGPD holds the route as stale", || {
        let text = them.bgpctl("show rib detail 10.1.0.0/26")?;
        assert!(text.contains("10.1.0.0/26"), "the route is gone: {text}");
        if text.contains("stale") { Ok(()) } else { Err(text) }
    });
    us.restart(&config);
    eventually("the route is fresh again", || {
        let text = them.bgpctl("show rib detail 10.1.0.0/26")?;
        assert!(text.contains("10.1.0.0/26"), "the route is gone: {text}");
        if text.contains("stale") { Err(text) } else { Ok(()) }
    });
    us.route("10.2.0.0/26", true);
}

#[test]
fn openbgpd_as_a_dynamic_neighbor_and_we_as_one_of_its() {
    let segment = Segment::new(2);
    let range = "asNumber: 64512\nrouterID: 10.99.0.1\nacceptAll: true\ndynamic:\n  - {range: 10.99.0.0/24, \
                 template: {holdTime: 9}}\n  - {range: \"fd99::/64\", template: {holdTime: 9}}\n";
    let us = Brindle::start(&segment, 1, &format!("{range}{ANNOUNCE}"));
    let them = OpenBgpd::start(&segment, 2, &openbgpd(64513, ""));
    them.established("10.99.0.1");
    them.established("fd99::1");
    us.route("10.2.0.0/26", true);
    us.route("fd02::/64", true);
    let kinds: Vec<String> = us.status().unwrap().bgp.peers.into_iter().map(|p| p.kind).collect();
    assert_eq!(kinds, ["dynamic", "dynamic"]);
    drop((us, them));

    let segment = Segment::new(2);
    let us = Brindle::start(&segment, 1, &ours(&sessions(2, 64513, ""), ANNOUNCE));
    let template = "AS 64513
network 10.2.0.0/26
neighbor 10.99.0.0/24 {
  remote-as 64512
  passive
}
allow from any
allow to any
";
    let them = OpenBgpd::start(&segment, 2, template);
    us.established("10.99.0.2");
    us.route("10.2.0.0/26", true);
    them.route("10.1.0.0/26", true);
}

#[test]
fn several_paths_go_from_exabgp_through_us_to_openbgpd_and_back() {
    let segment = Segment::new(3);
    let paths = ", reflectorClient: true, addPath: {receive: true, sendAll: true}";
    let config = ours(&(sessions(2, 64512, paths) + &sessions(3, 64512, paths)), "");
    let _us = Brindle::start(&segment, 1, &config);
    let add_path = "  announce add-path recv yes\n  announce add-path send all\n  route-reflector";
    let them = OpenBgpd::start(&segment, 2, &openbgpd(64512, add_path));
    let two = "route 10.3.0.0/26 next-hop 10.99.0.3 path-information 0.0.0.7 med 10;
    route 10.3.0.0/26 next-hop 10.99.0.3 path-information 0.0.0.8 med 20;";
    let mut exa = ExaBgp::start(&segment, 3, 64512, &exabgp(3, "", two, EXA_V6));
    let text = them.established("10.99.0.1");
    assert!(text.contains("Add-path: IPv4 unicast bidir"), "{text}");
    let both = |n: usize| {
        eventually(&format!("{n} paths in OpenBGPD"), || {
            let text = them.bgpctl("show rib detail 10.3.0.0/26")?;
            if text.matches("entry for 10.3.0.0/26").count() == n { Ok(text) } else { Err(text) }
        })
    };
    let text = both(2);
    // Reflected: who sent it first, and through whom (RFC 4456).
    for words in ["Originator Id: 10.99.0.3", "Cluster Id List:", "metric 10", "metric 20"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    exa.tell("neighbor 10.99.0.1 withdraw route 10.3.0.0/26 next-hop 10.99.0.3 path-information 0.0.0.7");
    let text = both(1);
    assert!(text.contains("metric 20"), "{text}");
    // And the other way: OpenBGPD's route comes to ExaBGP with an identifier of ours.
    let update = exa.announced("10.2.0.0/26");
    assert!(update.to_string().contains("path-information"), "{update}");
    let attribute = &update["attribute"];
    assert_eq!(attribute["originator-id"], "10.99.0.2", "{update}");
    assert_eq!(attribute["cluster-list"][0], "10.99.0.1", "{update}");
}

#[test]
fn exabgp_exchanges_routes_inside_and_between_ases_with_a_password_and_gtsm() {
    for (asn, our_options, their_options) in [
        (64512, "", ""),
        (64513, ", passwordFile: key", "md5-password \"secret\";"),
        (64513, ", ttlSecurity: 1", "outgoing-ttl 255; incoming-ttl 255;"),
    ] {
        let segment = Segment::new(2);
        fs::write(segment.dir(1).join("key"), "secret\n").unwrap();
        let us = Brindle::start(&segment, 1, &ours(&sessions(2, asn, our_options), ANNOUNCE));
        let mut them = ExaBgp::start(&segment, 2, asn, &exabgp(2, their_options, EXA_V4, EXA_V6));
        us.established("10.99.0.2");
        us.established("fd99::2");
        tagged(&us.route("10.3.0.0/26", true)[0]);
        us.route("fd03::/64", true);
        let update = them.announced("10.1.0.0/26");
        assert_eq!(update["attribute"]["community"].to_string(), "[[64512,7]]", "{update}");
        assert_eq!(update["attribute"]["large-community"].to_string(), "[[64512,1,2]]", "{update}");
        them.announced("fd01::/64");

        them.tell("withdraw route 10.3.0.0/26 next-hop 10.99.0.2");
        us.route("10.3.0.0/26", false);
        us.reload(&ours(&sessions(2, asn, our_options), "announce:\n  - prefix: 10.1.9.0/26\n"));
        them.announced("10.1.9.0/26");
        them.withdrawn("10.1.0.0/26");
        them.withdrawn("fd01::/64");
    }
}

#[test]
fn exabgp_gets_extended_messages_and_what_it_asks_for_again() {
    let segment = Segment::new(2);
    let many: String =
        (0..2_000).map(|n| format!("  - prefix: 10.{}.{}.0/24\n", 32 + n / 256, n % 256)).collect();
    let config = ours(&sessions(2, 64512, ""), &format!("announce:\n{many}"));
    let _us = Brindle::start(&segment, 1, &config);
    let mut them = ExaBgp::start(&segment, 2, 64512, &exabgp(2, "", EXA_V4, EXA_V6));
    let prefixes = |v: &Value| {
        let list = &v["neighbor"]["message"]["update"]["announce"]["ipv4 unicast"];
        list.as_object().map_or(0, |o| o.values().filter_map(Value::as_array).map(Vec::len).sum::<usize>())
    };
    // 2,000 prefixes of 4 octets are no message of 4,096.
    let largest = them.hears("one message with all", |v| Some(prefixes(v)).filter(|n| *n == 2_000));
    assert_eq!(largest, 2_000);
    let heard = |them: &ExaBgp<'_>| them.heard().iter().filter(|v| prefixes(v) > 0).count();
    let before = heard(&them);
    them.tell("neighbor 10.99.0.1 announce route-refresh ipv4 unicast");
    eventually("everything comes again", || {
        let now = heard(&them);
        if now > before { Ok(()) } else { Err(format!("{now} updates, {before} before")) }
    });
}

#[test]
fn we_keep_the_routes_of_a_restarting_exabgp() {
    let segment = Segment::new(2);
    let us = Brindle::start(&segment, 1, &ours(&sessions(2, 64512, ""), ANNOUNCE));
    let config = exabgp(2, "", EXA_V4, EXA_V6);
    let mut them = ExaBgp::start(&segment, 2, 64512, &config);
    us.route("10.3.0.0/26", true);
    them.daemon.kill();
    eventually("the route is stale", || {
        let rib = us.rib(Some("10.3.0.0/26"))?;
        assert_eq!(rib[0]["best"], true, "{rib}");
        if rib[0]["stale"] == true { Ok(()) } else { Err(rib.to_string()) }
    });
    let _them = ExaBgp::start(&segment, 2, 64512, &config);
    eventually("the route is fresh again", || {
        let rib = us.rib(Some("10.3.0.0/26"))?;
        if rib[0]["stale"] == false { Ok(()) } else { Err(rib.to_string()) }
    });
}
