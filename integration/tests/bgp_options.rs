//! Options of sessions with FRR, GoBGP and BIRD that other tests do not have: several paths and reflection, a key, a hop
//! limit, more hops, and refreshes that they ask for. Needs root, and the Debian packages bird2, frr and gobgpd.

use std::{fs, process::Command};

use brindle_integration::{
    bins::bin,
    peer::{Bird, Brindle, Frr, Gobgp, Segment, eventually},
};
use serde_json::Value;

/// Host 1 with these sessions (YAML list items).
fn ours(peers: &str) -> String {
    format!(
        "asNumber: 64512\nrouterID: 10.99.0.1\nacceptAll: true\npeers:\n{peers}announce: [{{prefix: 10.1.0.0/26}}]\n"
    )
}

fn session(host: u8, asn: u32, extra: &str) -> String {
    format!("  - {{address: 10.99.0.{host}, asNumber: {asn}, holdTime: 9, connectRetry: 1{extra}}}\n")
}

fn frr(host: u8, asn: u32, options: &str, of_family: &str) -> String {
    format!(
        "frr defaults traditional
router bgp {asn}
 bgp router-id 10.99.0.{host}
 no bgp ebgp-requires-policy
 no bgp network import-check
 timers bgp 3 9
 neighbor 10.99.0.1 remote-as 64512
 neighbor 10.99.0.1 timers connect 1
{options}
 address-family ipv4 unicast
  network 10.{host}.0.0/26
{of_family}
 exit-address-family
"
    )
}

/// `of_neighbor`: keys of its `config`; `tables`: further tables of it.
fn gobgp(host: u8, asn: u32, of_neighbor: &str, tables: &str) -> String {
    format!(
        "[global.config]
  as = {asn}
  router-id = \"10.99.0.{host}\"
[[neighbors]]
  [neighbors.config]
    neighbor-address = \"10.99.0.1\"
    peer-as = 64512
{of_neighbor}
  [neighbors.timers.config]
    hold-time = 9
    keepalive-interval = 3
    connect-retry = 1
{tables}
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = \"ipv4-unicast\"
    [neighbors.afi-safis.add-paths.config]
      receive = true
      send-max = 4
"
    )
}

/// BIRD with a session `ours` over which several paths may go.
fn bird(routes: &str) -> String {
    format!(
        "{routes}
protocol bgp ours {{ local as 64512; neighbor 10.99.0.1 as 64512; hold time 9; connect delay time 1; connect retry time 1;
  ipv4 {{ import all; export where source = RTS_STATIC; add paths on; next hop keep; }}; }}
"
    )
}

#[test]
fn several_paths_go_from_bird_through_us_as_a_reflector_to_bird_frr_and_gobgp() {
    let segment = Segment::new(5);
    let paths = ", reflectorClient: true, addPath: {receive: true, sendAll: true}";
    let peers: String = (2..=5).map(|h| session(h, 64512, paths)).collect();
    let us = Brindle::start(&segment, 1, &ours(&peers));
    // Two protocols of BIRD with a route each are two paths.
    let two = "protocol static one { ipv4; route 10.2.0.0/26 via 10.99.0.2 { bgp_med = 10; }; }
protocol static two { ipv4; route 10.2.0.0/26 via 10.99.0.2 { bgp_med = 20; }; }";
    let source = Bird::start(&segment, 2, &bird(two));
    let to_bird = Bird::start(&segment, 3, &bird(""));
    let tx = "  neighbor 10.99.0.1 addpath-tx-all-paths";
    let to_frr = Frr::start(&segment, 4, &frr(4, 64512, "", tx));
    let to_gobgp = Gobgp::start(&segment, 5, &gobgp(5, 64512, "", ""));
    source.established("ours");
    to_bird.established("ours");
    to_frr.established("10.99.0.1");
    to_gobgp.established("10.99.0.1");
    eventually("both paths are here", || {
        let rib = us.rib(Some("10.2.0.0/26"))?;
        if rib.as_array().is_some_and(|a| a.len() == 2) { Ok(()) } else { Err(rib.to_string()) }
    });
    let text = eventually("both paths are in BIRD", || {
        let text = to_bird.birdc("show route 10.2.0.0/26 all").unwrap_or_else(|words| words);
        if text.matches("BGP.originator_id: 10.99.0.2").count() == 2 { Ok(text) } else { Err(text) }
    });
    assert!(text.contains("BGP.med: 10") && text.contains("BGP.med: 20"), "{text}");
    assert!(text.contains("BGP.cluster_list: 10.99.0.1"), "{text}");
    let text = eventually("both paths are in FRR", || {
        let text = to_frr.vtysh("show bgp ipv4 unicast 10.2.0.0/26")?;
        if text.contains("Paths: (2 available") { Ok(text) } else { Err(text) }
    });
    assert!(text.contains("Originator: 10.99.0.2, Cluster list: 10.99.0.1"), "{text}");
    let text = eventually("both paths are in GoBGP", || {
        let text = to_gobgp.gobgp("global rib 10.2.0.0/26")?;
        if text.matches("10.99.0.2").count() >= 2 && text.contains("Med: 10") && text.contains("Med: 20") {
            Ok(text)
        } else {
            Err(text)
        }
    });
    assert!(text.contains("Originator: 10.99.0.2"), "{text}");
    // And from FRR and GoBGP to the others.
    to_gobgp.gobgp("global rib add 10.5.0.0/26 nexthop 10.99.0.5").unwrap();
    to_bird.route("10.4.0.0/26", true);
    to_bird.route("10.5.0.0/26", true);
    to_frr.route("10.5.0.0/26", true);
}

#[test]
fn frr_and_gobgp_with_a_password_with_gtsm_and_over_hops() {
    for (ours_extra, of_frr, of_neighbor, tables) in [
        (", passwordFile: key", " neighbor 10.99.0.1 password secret", "    auth-password = \"secret\"", ""),
        (
            ", ttlSecurity: 1",
            " neighbor 10.99.0.1 ttl-security hops 1",
            "",
            "  [neighbors.ttl-security.config]\n    enabled = true\n    ttl-min = 255",
        ),
        (
            ", multihop: 3",
            " neighbor 10.99.0.1 ebgp-multihop 3",
            "",
            "  [neighbors.ebgp-multihop.config]\n    enabled = true\n    multihop-ttl = 3",
        ),
    ] {
        let segment = Segment::new(3);
        fs::write(segment.dir(1).join("key"), "secret\n").unwrap();
        let peers = session(2, 64513, ours_extra) + &session(3, 64514, ours_extra);
        let us = Brindle::start(&segment, 1, &ours(&peers));
        let one = Frr::start(&segment, 2, &frr(2, 64513, of_frr, ""));
        let two = Gobgp::start(&segment, 3, &gobgp(3, 64514, of_neighbor, tables));
        one.established("10.99.0.1");
        two.established("10.99.0.1");
        us.route("10.2.0.0/26", true);
        one.route("10.1.0.0/26", true);
        two.route("10.1.0.0/26", true);
    }
}

#[test]
fn what_bird_and_frr_ask_for_again_is_sent_again() {
    let segment = Segment::new(3);
    let peers: String = (2..=3).map(|h| session(h, 64512, "")).collect();
    let us = Brindle::start(&segment, 1, &ours(&peers));
    let to_bird = Bird::start(&segment, 2, &bird(""));
    let to_frr = Frr::start(&segment, 3, &frr(3, 64512, "", ""));
    to_bird.route("10.1.0.0/26", true);
    to_frr.route("10.1.0.0/26", true);
    let socket = segment.dir(1).join("bgpd.sock");
    // How many refreshes were heard of a neighbor, and UPDATEs sent to it.
    let counts = |host: u8| -> Result<(u64, u64), String> {
        let mut c = Command::new(bin("brindlectl"));
        c.args(["bgp", "--socket"]).arg(&socket).args(["neighbor", &format!("10.99.0.{host}"), "-o", "json"]);
        let out = c.output().map_err(|e| e.to_string())?;
        let all: Value = serde_json::from_slice(&out.stdout).map_err(|e| e.to_string())?;
        let of = |field: &str, kind: &str| all[field][kind].as_u64().ok_or_else(|| all.to_string());
        Ok((of("messagesReceived", "routeRefresh")?, of("messagesSent", "update")?))
    };
    let asks = |host: u8, ask: &dyn Fn()| {
        let before = counts(host).unwrap();
        ask();
        eventually(&format!("host {host} is told again"), || {
            let now = counts(host)?;
            if now.0 > before.0 && now.1 > before.1 { Ok(()) } else { Err(format!("{before:?} {now:?}")) }
        });
    };
    asks(2, &|| drop(to_bird.birdc("reload in ours").unwrap()));
    asks(3, &|| drop(to_frr.vtysh("clear bgp ipv4 unicast 10.99.0.1 in").unwrap()));
    us.established("10.99.0.2");
}

/// The link-local address of a host, which has no other any more.
fn link_local_only(segment: &Segment, host: u8) -> String {
    let ip = std::path::Path::new("ip");
    for family in ["-4", "-6"] {
        segment
            .ask(host, ip, &[family, "address", "flush", "dev", "eth0", "scope", "global"])
            .expect("flushed");
    }
    eventually(&format!("host {host} has a link-local address, tried out"), || {
        let text = segment.ask(host, ip, &["-6", "-o", "address", "show", "dev", "eth0", "scope", "link"])?;
        let address = text.split_whitespace().skip_while(|w| *w != "inet6").nth(1);
        match address.and_then(|a| a.split_once('/')) {
            Some((address, _)) if !text.contains("tentative") => Ok(address.to_owned()),
            _ => Err(text),
        }
    })
}

#[test]
fn sessions_between_link_local_addresses_carry_ipv6_both_ways() {
    let segment = Segment::new(3);
    let at: Vec<String> = (1..=3).map(|host| link_local_only(&segment, host)).collect();
    let peer = |host: usize| {
        format!(
            "  - {{address: \"{}\", interface: eth0, asNumber: {}, holdTime: 9, connectRetry: 1}}\n",
            at[host - 1],
            64510 + host
        )
    };
    let config = |host: usize, peers: &[usize]| {
        let peers: String = peers.iter().map(|p| peer(*p)).collect();
        format!(
            "asNumber: {}\nrouterID: 10.99.0.{host}\nacceptAll: true\npeers:\n{peers}announce: [{{prefix: \"fd0{host}::/64\"}}]\n",
            64510 + host
        )
    };
    let us = Brindle::start(&segment, 1, &config(1, &[2, 3]));
    let other = Brindle::start(&segment, 2, &config(2, &[1]));
    let bird = Bird::start(
        &segment,
        3,
        &format!(
            "protocol static {{ ipv6; route fd03::/64 blackhole; }}
protocol kernel {{ ipv6 {{ export where source = RTS_BGP; }}; }}
protocol bgp ours {{ local {} as 64513; neighbor {}%eth0 as 64511; hold time 9; connect delay time 1;
  connect retry time 1; error wait time 1, 2; ipv6 {{ import all; export where source = RTS_STATIC; }}; }}",
            at[2], at[0]
        ),
    );
    other.established(&at[0]);
    bird.established("ours");
    // What is behind each, by its link-local address.
    for host in 2..=3 {
        let path = us.route(&format!("fd0{host}::/64"), true)[0].clone();
        assert_eq!(
            (&path["nextHop"], &path["best"]),
            (&at[host - 1].as_str().into(), &true.into()),
            "{path}"
        );
    }
    for prefix in ["fd01::/64", "fd03::/64"] {
        let path = other.route(prefix, true)[0].clone();
        assert_eq!(path["nextHop"], at[0].as_str(), "{path}");
    }
    // In the kernel: by the neighbor's address and the device that gives it its meaning.
    for prefix in ["fd01::/64", "fd02::/64"] {
        eventually(&format!("{prefix} in the kernel of BIRD's host"), || {
            let text = segment.ask(3, std::path::Path::new("ip"), &["-6", "route", "show", prefix])?;
            if text.contains(&format!("via {} dev eth0", at[0])) { Ok(()) } else { Err(text) }
        });
    }
    // What goes, goes everywhere.
    us.reload(&config(1, &[3]));
    bird.route("fd02::/64", false);
}

#[test]
fn one_link_local_address_is_two_peers_on_two_links() {
    let segment = Segment::new(3);
    let ip = |line: &str| {
        let out = Command::new("ip").args(line.split(' ')).output().expect("ip is installed");
        assert!(out.status.success(), "ip {line}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let [one, two, three] = [1, 2, 3].map(|h| segment.netns(h));
    // A second link of host 1, to host 3.
    ip(&format!("-n {one} link add eth1 type veth peer name eth1 netns {three}"));
    for (ns, device, address) in [
        (&one, "eth0", "fe80::a"),
        (&two, "eth0", "fe80::1"),
        (&one, "eth1", "fe80::b"),
        (&three, "eth1", "fe80::1"),
    ] {
        ip(&format!("-n {ns} link set {device} addrgenmode none"));
        ip(&format!("-n {ns} -6 address flush dev {device}"));
        ip(&format!("-n {ns} address add {address}/64 dev {device} nodad"));
        ip(&format!("-n {ns} link set {device} up"));
    }
    let config = |host: u8, peers: &[(&str, &str, u32)]| {
        let peers: String = peers
            .iter()
            .map(|(a, device, asn)| {
                format!(
                    "  - {{address: \"{a}\", interface: {device}, asNumber: {asn}, holdTime: 9, connectRetry: 1}}\n"
                )
            })
            .collect();
        format!(
            "asNumber: {}\nrouterID: 10.99.0.{host}\nacceptAll: true\npeers:\n{peers}announce: [{{prefix: \"fd0{host}::/64\"}}]\n",
            64510 + u32::from(host)
        )
    };
    let us =
        Brindle::start(&segment, 1, &config(1, &[("fe80::1", "eth0", 64512), ("fe80::1", "eth1", 64513)]));
    let other = Brindle::start(&segment, 2, &config(2, &[("fe80::a", "eth0", 64511)]));
    let third = Brindle::start(&segment, 3, &config(3, &[("fe80::b", "eth1", 64511)]));
    for (prefix, name) in [("fd02::/64", "fe80::1%eth0"), ("fd03::/64", "fe80::1%eth1")] {
        let path = us.route(prefix, true)[0].clone();
        assert_eq!((&path["peer"], &path["best"]), (&name.into(), &true.into()), "{path}");
    }
    other.route("fd01::/64", true);
    other.route("fd03::/64", true);
    third.route("fd02::/64", true);
    // One of them goes; the other one's session is another.
    us.reload(&config(1, &[("fe80::1", "eth1", 64513)]));
    us.route("fd02::/64", false);
    us.route("fd03::/64", true);
    let names: Vec<String> = us.status().unwrap().bgp.peers.into_iter().map(|p| p.name).collect();
    assert_eq!(names, ["fe80::1%eth1"]);
}

#[test]
fn ipv6_routes_go_over_an_ipv4_session_by_the_address_that_is_given() {
    let segment = Segment::new(2);
    let peer = |more: &str| {
        ours(&session(2, 64513, &format!(", families: [ipv4, ipv6]{more}")))
            .replace("announce: [", "announce: [{prefix: \"fd01::/64\"}, ")
    };
    let us = Brindle::start(&segment, 1, &peer(", nextHopIPv6: \"fd99::1\""));
    let them = Bird::start(
        &segment,
        2,
        "protocol bgp ours { local as 64513; neighbor 10.99.0.1 as 64512; hold time 9; connect delay time 1;
  connect retry time 1; error wait time 1, 2; ipv4 { import all; export none; }; ipv6 { import all; export none; }; }",
    );
    us.established("10.99.0.2");
    let route = them.route("fd01::/64", true);
    assert!(route.contains("BGP.next_hop: fd99::1"), "{route}");
    them.route("10.1.0.0/26", true);
    // Without it there is nothing to say, and the IPv4 routes stay.
    us.reload(&peer(""));
    them.route("fd01::/64", false);
    them.route("10.1.0.0/26", true);
}
