//! The example file, and one row per mistake.

use brindle_bgpd_core::{af::Family, speaker::PrefixAction};

use super::*;

const EXAMPLE: &str = include_str!("../../../deploy/brindle-bgpd.example.yaml");

fn parse(text: &str) -> Result<Settings, String> {
    Settings::parse(Path::new("t.yaml"), text).map_err(|e| e.to_string())
}

#[test]
fn the_example_shows_every_field_and_is_valid() {
    let s = parse(EXAMPLE).unwrap();
    let d = &s.desired;
    assert_eq!((d.peers.len(), d.routes.len(), d.listen.len()), (3, 2, 2));
    assert_eq!(d.speaker.as_ref().unwrap().asn, 64512);
    let full = &d.peers[2];
    assert_eq!(
        (full.hold_time, full.keepalive, full.ttl, full.local_asn),
        (90, Some(30), Some(1), Some(64700))
    );
    assert_eq!(full.families, Family::ALL);
    assert_eq!(full.import.rule(Family::Ipv4Unicast, 1).unwrap().to_string(), "no-defaults importV4[1]");
    assert!(!full.export.filters.is_empty() && d.peers[0].import.is_empty());
    assert!(d.peers[1].reflector_client && d.peers[1].passive);
    assert_eq!(d.routes[1].attributes.large_communities.as_slice(), [(64512, 1, 2)]);
    for field in [
        "asNumber",
        "routerID",
        "clusterID",
        "listen",
        "adminSocket",
        "log",
        "localPref",
        "multipath",
        "importRoutes",
        "protocol",
        "table",
        "defaultRoute",
        "filter",
        "maximumPaths",
        "ebgp",
        "ibgp",
        "sameASPath",
        "delayOpen",
        "peers",
        "filters",
        "importV4",
        "exportV6",
        "announce",
        "name",
        "address",
        "port",
        "localASNumber",
        "sourceAddress",
        "passive",
        "families",
        "holdTime",
        "keepalive",
        "connectRetry",
        "restartTime",
        "reflectorClient",
        "allowOwnAS",
        "enforceFirstAS",
        "maxPrefixes",
        "nextHop",
        "nextHopIPv6",
        "ttlSecurity",
        "passwordFile",
        "export",
        "prefix",
        "communities",
        "med",
        "origin",
        "deny",
        "allow",
        "acceptAll",
        "drainTime",
        "maxPaths",
        "noPrepend",
        "replaceAS",
        "interface",
        "shutdown",
        "farewell",
        "sendHoldTime",
        "restartLimit",
        "staleTime",
        "notificationRestart",
        "longLivedTime",
        "prefixLimits",
        "ipv4",
        "ipv6",
        "warnAt",
        "action",
        "restartAfter",
        "asOverride",
        "removePrivateAS",
        "honourGracefulShutdown",
        "defaultOriginate",
        "addPath",
        "multihop",
        "dynamic",
        "range",
        "max",
        "template",
    ] {
        assert!(EXAMPLE.contains(&format!("{field}:")), "{field} is not in the example");
    }
}

#[test]
fn what_is_said_of_a_peer_reaches_its_settings() {
    let s = parse(EXAMPLE).unwrap();
    let (d, speaker) = (&s.desired, s.desired.speaker.as_ref().unwrap());
    let [first, client, full] = &d.peers[..] else { panic!("{:?}", d.peers) };
    assert!(!first.attributes.require_policy && client.attributes.require_policy);
    let limits = full.session.prefixes;
    assert_eq!((limits.of(Family::Ipv6Unicast, 9), limits.warn_at), (50_000, 80));
    assert_eq!(limits.action, PrefixAction::Restart(300));
    assert_eq!(full.attributes.honour_shutdown, Some(true));
    assert!(full.session.notification_restart && full.session.send_hold == Some(480));
    let [rack] = &speaker.dynamic[..] else { panic!("{:?}", speaker.dynamic) };
    assert_eq!((rack.max, rack.template.asn, rack.template.reflector_client), (100, 64512, true));
    assert_eq!(s.drain_time, Duration::ZERO);
    let any = "asNumber: 1\nrouterID: 10.0.0.1\ndynamic:\n  - range: \"fd00::/8\"\n";
    let any = parse(any).unwrap().desired.speaker.unwrap().dynamic.remove(0);
    assert_eq!((any.template.asn, any.max, &any.template.families[..]), (0, 100, &[Family::Ipv6Unicast][..]));
}

#[test]
fn the_smallest_file_has_the_usual_settings() {
    let s = parse("asNumber: 1.10\nrouterID: 10.0.0.1\n").unwrap();
    assert_eq!(s.desired.speaker.as_ref().unwrap().asn, 65546);
    assert_eq!(s.desired.listen, everywhere());
    assert_eq!(s.admin_socket, Path::new(DEFAULT_ADMIN_SOCKET));
    assert_eq!(s.desired.speaker.unwrap().cluster_id, None);
}

#[test]
fn every_mistake_is_named_with_file_line_and_field() {
    let head = "asNumber: 64512\nrouterID: 10.0.0.1\n";
    for (body, line, words) in [
        ("peers:\n  - address: 10.0.0.2\n    asNumber: 70000000000\n", 5, "peers[0].asNumber"),
        ("peers:\n  - address: 10.0.0.300\n    asNumber: 1\n", 4, "peers[0].address"),
        ("peers:\n  - address: 10.0.0.2\n", 4, "asNumber"),
        ("peers:\n  - address: 10.0.0.2\n    asNumber: 1\n    colour: red\n", 6, "colour"),
        ("peers:\n  - address: 10.0.0.2\n    asNumber: 0\n", 5, "peers[0].asNumber: 0 is reserved"),
        (
            "peers:\n  - {address: 10.0.0.2, asNumber: 1}\n  - {address: 10.0.0.2, asNumber: 2}\n",
            5,
            "peers[1].address: 10.0.0.2 is the address of peers[0] already",
        ),
        (
            "peers:\n  - address: 10.0.0.2\n    asNumber: 1\n    holdTime: 2\n",
            6,
            "peers[0].holdTime: must be 0 or",
        ),
        (
            "peers:\n  - address: 10.0.0.2\n    asNumber: 1\n    restartTime: 5000\n",
            6,
            "peers[0].restartTime: at most",
        ),
        (
            "peers:\n  - address: 10.0.0.2\n    asNumber: 1\n    staleTime: 0\n",
            6,
            "peers[0].staleTime: expected 1 to 65535",
        ),
        (
            "peers:\n  - address: 10.0.0.2\n    asNumber: 1\n    sourceAddress: fd00::1\n",
            6,
            "sourceAddress: fd00::1",
        ),
        (
            "peers:\n  - address: 10.0.0.2\n    asNumber: 1\n    reflectorClient: true\n",
            6,
            "reflectorClient: AS 1",
        ),
        (
            "peers:\n  - address: 10.0.0.2\n    asNumber: 1\n    passwordFile: nowhere.key\n",
            6,
            "passwordFile: nowhere.key cannot be read",
        ),
        ("peers:\n  - address: 10.0.0.2\n    asNumber: 1\n    passive: yes please\n", 6, "peers[0].passive"),
        (
            "announce:\n  - prefix: 10.0.0.1/24\n",
            4,
            "announce[0].prefix: 10.0.0.1/24 has host bits set; write 10.0.0.0/24",
        ),
        (
            "announce:\n  - prefix: 10.0.0.0/24\n    nextHop: fd00::1\n",
            5,
            "announce[0].nextHop: fd00::1 is not of",
        ),
        ("announce:\n  - prefix: 10.0.0.0/24\n    communities: [\"1:2\", blue]\n", 5, "found \"blue\""),
        ("announce:\n  - prefix: 10.0.0.0/24\n    communities: [\"1:2\", \"+1:2\"]\n", 5, "found \"+1:2\""),
        ("announce:\n  - prefix: 10.0.0.0/24\n  - prefix: 10.0.0.0/24\n", 5, "announce[0] already"),
        (
            "peers:\n  - address: 10.0.0.2\n    asNumber: 1\n    multihop: 3\n    ttlSecurity: 1\n",
            6,
            "peers[0].multihop: ttlSecurity says",
        ),
        (
            "peers:\n  - address: 10.0.0.2\n    asNumber: 1\n    longLivedTime: 16777216\n",
            6,
            "longLivedTime: at most 16777215",
        ),
        (
            "peers:\n  - address: 10.0.0.2\n    asNumber: 1\n    prefixLimits: {warnAt: 101}\n",
            6,
            "warnAt: at most 100",
        ),
        (
            "peers:\n  - address: 10.0.0.2\n    asNumber: 1\n    noPrepend: false\n",
            6,
            "noPrepend: goes with localASNumber",
        ),
        ("peers:\n  - address: \"fe80::1\"\n    asNumber: 1\n", 4, "link-local; name its interface"),
        ("peers:\n  - asNumber: 1\n", 4, "address is missing"),
        ("dynamic:\n  - range: 10.0.0.1/8\n", 4, "dynamic[0].range: 10.0.0.1/8 has host bits"),
        ("dynamic:\n  - {range: 10.0.0.0/8}\n  - {range: 10.0.0.0/8}\n", 5, "dynamic[0] already"),
        ("dynamic:\n  - range: 10.0.0.0/8\n    max: 0\n", 5, "dynamic[0].max"),
        (
            "dynamic:\n  - range: 10.0.0.0/8\n    template:\n      address: 10.0.0.1\n",
            6,
            "dynamic[0].template.address",
        ),
        (
            "filters:\n  - name: f\n    importV4:\n      - {cidr: 10.0.0.0/8, action: Accept}\n",
            6,
            "filters[0].importV4[0].cidr: needs matchOperator",
        ),
        (
            "filters:\n  - name: f\n    exportV4:\n      - {action: Drop}\n",
            6,
            "filters[0].exportV4[0].action",
        ),
        (
            "filters:\n  - name: f\n    importV4:\n      - {action: Reject, colour: red}\n",
            6,
            "there is no such field",
        ),
        ("filters:\n  - name: f\n  - name: f\n", 5, "filters[1].name: f stands here twice"),
        (
            "peers:\n  - address: 10.0.0.2\n    asNumber: 1\n    filters: [g]\n",
            6,
            "peers[0].filters[0]: there is no filter g in filters",
        ),
        ("listen: [localhost]\n", 3, "listen[0]"),
        ("log:\n  level: loud\n", 4, "log.level: \"loud\": expected one of"),
        (
            "announce:\n  - prefix: 10.0.0.0/24\n    nextHop: 224.0.0.1\n",
            5,
            "nextHop: 224.0.0.1 is no unicast",
        ),
        (
            "filters:\n  - name: f\n    importV4:\n      - {cidr: \"fd00::/8\", matchOperator: In, action: Accept}\n",
            6,
            "filters[0].importV4[0].cidr: the list is for IPv4",
        ),
        (
            "filters:\n  - name: f\n    importV4:\n      - {prefixLength: {max: 24}, action: Accept}\n      - {action: \
             Reject}\n",
            6,
            "filters[0].importV4[0].prefixLength: needs cidr",
        ),
        (
            "filters:\n  - name: f\n    exportV6:\n      - cidr: \"fd00::/8\"\n        matchOperator: In\n        action: \
             Accept\n        prefixLength: {min: 24, max: 16}\n",
            9,
            "filters[0].exportV6[0].prefixLength: min is greater than max",
        ),
        (
            "filters:\n  - name: f\n    importV4:\n      - {interface: \"eth 0\", action: Accept}\n",
            6,
            "filters[0].importV4[0].interface: expected an interface name",
        ),
        (
            "filters:\n  - name: f\n    importV4:\n      - {priority: 0, action: Accept}\n",
            6,
            "filters[0].importV4[0].priority: expected 1 to",
        ),
        ("filters:\n  - name: \"a\\nb\"\n", 4, "filters[0].name: \"a\\nb\" has control characters"),
        ("peers:\n  - {address: 0.0.0.0, asNumber: 1}\n", 4, "peers[0].address: 0.0.0.0 is no unicast"),
        ("peers:\n  - {address: 255.255.255.255, asNumber: 1}\n", 4, "is no unicast"),
        ("peers:\n  - {address: \"ff02::1\", asNumber: 1}\n", 4, "is no unicast"),
        ("peers:\n  - {address: \"::ffff:10.0.0.2\", asNumber: 1}\n", 4, "write 10.0.0.2"),
        ("peers:\n  - {address: 10.0.0.2, asNumber: 1, port: 0}\n", 4, "peers[0].port: expected"),
        (
            "peers:\n  - {address: 10.0.0.2, asNumber: 1, interface: sixteen-letters-}\n",
            4,
            "peers[0].interface: \"sixteen-letters-\": a device's name",
        ),
        ("peers:\n  - {address: 10.0.0.2, asNumber: 1, name: all}\n", 4, "peers[0].name: commands"),
        ("peers:\n  - {address: 10.0.0.2, asNumber: 1, name: \"a\\tb\"}\n", 4, "has control characters"),
        (
            "peers:\n  - {address: 10.0.0.2, asNumber: 1, name: a}\n  - {address: 10.0.0.3, asNumber: 1, name: a}\n",
            5,
            "peers[1].name: a is the name of peers[0] already",
        ),
        (
            "peers:\n  - {address: 10.0.0.2, asNumber: 1, holdTime: 90, keepalive: 31}\n",
            4,
            "peers[0].keepalive: at most a third of holdTime, 30 s",
        ),
        ("peers:\n  - {address: 10.0.0.2, asNumber: 1, holdTime: 0, keepalive: 3}\n", 4, "there are none"),
        (
            "peers:\n  - {address: 10.0.0.2, asNumber: 1, holdTime: 90, sendHoldTime: 60}\n",
            4,
            "peers[0].sendHoldTime: must be more than holdTime, 90 s",
        ),
        ("peers:\n  - {address: 10.0.0.2, asNumber: 1, maxPrefixes: 0}\n", 4, "maxPrefixes: 0 lets no"),
        ("listenn: [0.0.0.0]\n", 3, "unknown field \"listenn\"; did you mean listen?"),
        ("vrf: red\n", 3, "unknown field \"vrf\"; there are asNumber, "),
        ("peers: [\n", 3, ""),
    ] {
        let error = parse(&format!("{head}{body}")).unwrap_err();
        assert!(error.starts_with(&format!("t.yaml:{line}:")), "{error} (line {line})");
        assert!(error.contains(words), "{error} ({words})");
    }
    assert!(parse("routerID: 10.0.0.1\n").unwrap_err().contains("asNumber"));
    assert!(
        parse("asNumber: 1\nrouterID: 0.0.0.0\n").unwrap_err().contains("routerID: 0.0.0.0 is not allowed")
    );
    let missing = Settings::read(Path::new("/nonexistent/x.yaml")).unwrap_err().to_string();
    assert!(missing.starts_with("/nonexistent/x.yaml: cannot be read"), "{missing}");
}

#[test]
fn a_goodbye_has_an_end_and_one_address_may_have_two_speakers() {
    let text = |n: usize, port: u16| {
        let farewell = "x".repeat(n);
        format!(
            "asNumber: 64512\nrouterID: 10.0.0.1\npeers:\n  - {{address: 10.0.0.2, asNumber: 1, farewell: {farewell}}}\n  \
             - {{address: 10.0.0.2, asNumber: 1, port: {port}}}\n"
        )
    };
    assert_eq!(parse(&text(255, 1179)).unwrap().desired.peers.len(), 2);
    assert!(parse(&text(256, 1179)).unwrap_err().contains("farewell: has 256 octets"));
    assert!(parse(&text(1, 179)).unwrap_err().contains("already, with the same port"));
}

#[test]
fn who_is_only_waited_for_and_needs_another_key_than_the_kernel_asks_for_is_refused_with_both_names() {
    let dir = std::env::temp_dir().join(format!("bt-{}-keys", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for key in ["one", "two"] {
        std::fs::write(dir.join(key), key).unwrap();
    }
    let parse = |body: &str| {
        let text = format!("asNumber: 64512\nrouterID: 10.0.0.1\n{body}");
        Settings::parse(&dir.join("t.yaml"), &text).map_err(|e| e.to_string())
    };
    let two = |second: &str| {
        parse(&format!(
            "peers:\n  - {{name: a, address: 10.0.0.2, asNumber: 1, passive: true, passwordFile: one}}\n  \
             - {{name: b, address: 10.0.0.2, asNumber: 1, port: 1179, {second}}}\n"
        ))
    };
    let e = two("passive: true, passwordFile: two").unwrap_err();
    assert!(e.contains("peers[1].passive: connections from 10.0.0.2 cannot be told apart"), "{e}");
    assert!(e.contains("all given to peers[0]"), "{e}");
    // The first has only what comes to one address of ours; the other way round it would have all.
    let places = |first: &str, second: &str| {
        parse(&format!(
            "peers:\n  - {{name: a, address: 10.0.0.2, asNumber: 1, passive: true{first}}}\n  \
             - {{name: b, address: 10.0.0.2, asNumber: 1, port: 1179, passive: true{second}}}\n"
        ))
    };
    let [x, y] = ["10.0.0.10", "10.0.0.11"].map(|a| format!(", sourceAddress: {a}"));
    places(&x, "").unwrap();
    places(&x, &y).unwrap();
    for (first, second) in [("", &x), (&x, &x)] {
        let e = places(first, second).unwrap_err();
        assert!(e.contains("all given to peers[0]"), "{e}");
    }
    let dialled = two("passwordFile: two").unwrap();
    let warnings = dialled.warnings().join("\n");
    assert!(
        warnings.contains("need the TCP-MD5 key of peer a") && warnings.contains("peer b has"),
        "{warnings}"
    );
    assert!(two("passwordFile: one").unwrap().warnings().is_empty());

    let in_range = |peer: &str| {
        parse(&format!(
            "peers:\n  - {{name: a, address: 10.0.0.2, asNumber: 1{peer}}}\n\
             dynamic:\n  - {{name: lab, range: 10.0.0.0/8, template: {{passwordFile: one}}}}\n"
        ))
    };
    let e = in_range(", passive: true").unwrap_err();
    assert!(e.contains("peers[0].passive") && e.contains("range lab") && e.contains("peer a has"), "{e}");
    assert!(in_range("").unwrap().warnings()[0].contains("comes up only if it takes our connection"));
    assert!(in_range(", passive: true, passwordFile: two").unwrap().warnings().is_empty());
    let e = parse(
        "dynamic:\n  - {name: wide, range: 10.0.0.0/8, template: {passwordFile: one}}\n  \
         - {name: in, range: 10.1.0.0/16}\n",
    )
    .unwrap_err();
    assert!(e.contains("dynamic[1].range") && e.contains("range wide") && e.contains("range in has"), "{e}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_value_that_is_missing_is_told_in_the_words_of_the_file() {
    let text = |more: &str| format!("asNumber: 64512\nrouterID: 10.0.0.1\n{more}\n");
    for (text, what) in [
        (
            "asNumber: 64512\nrouterID:\n".into(),
            "routerID: expected an address such as 10.0.0.1, found nothing",
        ),
        ("asNumber:\nrouterID: 10.0.0.1\n".into(), "asNumber: expected an AS number"),
        (text("listen: [~]"), "listen[0]: expected an address with a port such as"),
        (text("drainTime:"), "drainTime: expected a number from 0 to 65535, found nothing"),
        (text("peers: [~]"), "peers[0]: address is missing"),
        (
            text("peers: [{address: 10.0.0.2, asNumber: 1, addPath: {sendBest: }}]"),
            "addPath.sendBest: expected a number",
        ),
        (
            text("peers: [{address: 10.0.0.2, asNumber: 1, prefixLimits: {action: }}]"),
            "expected one of warn, restart, down, found nothing",
        ),
        (
            text("peers: [{address: 10.0.0.2, asNumber: 1, families: [~]}]"),
            "families[0]: expected one of ipv4, ipv6, found nothing",
        ),
        (
            text("announce: [{prefix: }]"),
            "announce[0].prefix: expected a CIDR such as 10.0.0.0/16 or fd00::/48, found nothing",
        ),
        (text("dynamic: [{range: }]"), "dynamic[0].range: expected a CIDR"),
        (text("mrt: {dir: }"), "mrt"),
    ] {
        let e = parse(&text).unwrap_err();
        assert!(e.contains(what), "{text}: {e}");
        for word in ["struct", "unit", "null", "invalid", "visitor", "\"\""] {
            assert!(!e.contains(word), "{word}: {e}");
        }
    }
}

#[test]
fn one_link_local_address_may_stand_on_several_links() {
    let text = |second: &str| {
        format!(
            "asNumber: 64512\nrouterID: 10.0.0.1\npeers:\n  - {{address: \"fe80::1\", interface: eth0, asNumber: 1}}\n  \
             - {{address: \"fe80::1\", interface: {second}, asNumber: 1}}\n"
        )
    };
    let names: Vec<String> =
        parse(&text("eth1")).unwrap().desired.peers.into_iter().map(|p| p.name).collect();
    assert_eq!(names, ["fe80::1%eth0", "fe80::1%eth1"]);
    assert!(parse(&text("eth0")).unwrap_err().contains("fe80::1%eth0 is the address of peers[0] already"));
}

#[test]
fn peers_without_names_at_one_address_are_called_by_their_ports() {
    let text = "asNumber: 64512
routerID: 10.0.0.1
peers:
  - {address: 10.0.0.2, asNumber: 1}
  - {address: 10.0.0.2, port: 1179, asNumber: 1}
  - {name: b, address: \"fd00::2\", asNumber: 1}
  - {address: \"fd00::2\", port: 1179, asNumber: 1}
";
    let names: Vec<String> = parse(text).unwrap().desired.peers.into_iter().map(|p| p.name).collect();
    assert_eq!(names, ["10.0.0.2", "10.0.0.2:1179", "b", "[fd00::2]:1179"]);
}

#[test]
fn routes_that_no_next_hop_can_be_said_for_are_warned_about() {
    let warned = |peer: &str, more: &str| {
        let text = format!(
            "asNumber: 64512\nrouterID: 10.0.0.1\npeers:\n  - {{address: 10.0.0.2, {peer}}}\n\
             announce:\n  - {{prefix: \"fd00::/64\"{more}}}\n"
        );
        parse(&text).unwrap().warnings().join("\n")
    };
    let both = "families: [ipv4, ipv6]";
    assert_eq!(warned("asNumber: 64512", ""), "", "it carries no IPv6");
    assert!(warned(&format!("asNumber: 64512, {both}"), "").contains("set nextHopIPv6"));
    assert_eq!(warned(&format!("asNumber: 64512, {both}, nextHopIPv6: \"fd00::1\""), ""), "");
    assert_eq!(warned(&format!("asNumber: 64512, {both}"), ", nextHop: \"fd00::1\""), "");
    assert!(warned(&format!("asNumber: 1, {both}"), "").contains("set nextHopIPv6"));
}

#[test]
fn our_address_as_a_next_hop_is_one_of_a_family_the_session_carries() {
    let text = |more: &str| {
        format!(
            "asNumber: 64512\nrouterID: 10.0.0.1\npeers:\n  - {{address: 10.0.0.2, asNumber: 1, {more}}}\n"
        )
    };
    let peer =
        parse(&text("families: [ipv4, ipv6], nextHopIPv6: \"fd00::1\"")).unwrap().desired.peers.remove(0);
    assert_eq!(peer.attributes.own_next_hop.0, [None, Some("fd00::1".parse().unwrap())]);
    for (more, what) in [
        ("nextHopIPv6: \"fd00::1\"", "nextHopIPv6: the session carries no"),
        ("families: [ipv4, ipv6], nextHopIPv6: \"fe80::1\"", "nextHopIPv6: fe80::1 is link-local"),
        ("nextHopIPv4: 224.0.0.1", "nextHopIPv4: 224.0.0.1 is no unicast address"),
        ("nextHopIPv4: \"fd00::1\"", "nextHopIPv4: expected"),
    ] {
        let e = parse(&text(more)).unwrap_err();
        assert!(e.contains(what), "{e}");
    }
}

#[test]
fn another_router_id_takes_the_cluster_id_along_only_if_they_were_one() {
    let file = Path::new("x.yaml");
    let id: std::net::Ipv4Addr = "192.0.2.77".parse().unwrap();
    let ids = |text: &str| {
        let mut s = Settings::parse(file, text).unwrap();
        s.set_router_id(id).unwrap();
        let speaker = s.desired.speaker.unwrap();
        (speaker.router_id, speaker.cluster_id)
    };
    let common = "asNumber: 64512\nrouterID: 192.0.2.1\ndynamic: [{name: n, range: 10.0.0.0/8, template: {asNumber: 64512, reflectorClient: true}}]\n";
    assert_eq!(ids(common), (id, Some(id)));
    let own = format!("{common}clusterID: 192.0.2.9\n");
    assert_eq!(ids(&own), (id, Some("192.0.2.9".parse().unwrap())));
    let mut s = Settings::parse(file, common).unwrap();
    assert!(s.set_router_id(std::net::Ipv4Addr::UNSPECIFIED).is_err());
}

#[test]
fn the_reflectors_of_the_manifests_have_a_configuration_without_mistakes() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/reflectors/config.yaml");
    let map = std::fs::read_to_string(&file).unwrap();
    let inner = map.split_once("  brindle-bgpd.yaml: |\n").expect("the file in the ConfigMap").1;
    let text: String = inner.lines().map(|l| format!("{}\n", l.strip_prefix("    ").unwrap_or(l))).collect();
    // The Secret is mounted in the pod.
    let key = std::env::temp_dir().join(format!("bt-{}-reflectors", std::process::id()));
    std::fs::write(&key, "a password").unwrap();
    let text = text.replace("/etc/brindle-secret/reflectors", &key.display().to_string());
    let s = Settings::parse(&file, &text);
    std::fs::remove_file(&key).unwrap();
    let s = s.unwrap_or_else(|e| panic!("{e}"));
    let ranges = &s.desired.speaker.as_ref().unwrap().dynamic;
    assert!(ranges.iter().all(|d| d.template.password.as_deref() == Some("a password")));
    // Clients of both families.
    assert_eq!(s.desired.speaker.unwrap().dynamic.len(), 2);
    assert!(!s.drain_time.is_zero());
}
