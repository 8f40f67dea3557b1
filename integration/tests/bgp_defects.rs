//! A defect of the speaker itself, put in for the test: the peer that meets it pays, the others do not. Debug builds only.
//! Needs root, and Debian's bird2.

use std::process::Command;

use brindle_integration::{
    bins::bin,
    peer::{Bird, Brindle, Segment, eventually},
};

/// What makes the speaker panic when it is announced.
const BAD: &str = "203.0.113.0/24";

fn ours() -> String {
    let peer = |host: u8| {
        format!(
            "  - {{name: host{host}, address: 10.99.0.{host}, asNumber: 6451{host}, holdTime: 9, connectRetry: 1}}\n"
        )
    };
    format!(
        "asNumber: 64511\nrouterID: 10.99.0.1\nacceptAll: true\npeers:\n{}{}announce: [{{prefix: 10.1.0.0/26}}]\n",
        peer(2),
        peer(3)
    )
}

fn bird(host: u8) -> String {
    format!(
        "debug protocols {{ states, routes }};
protocol static good {{ ipv4; route 10.{host}.0.0/26 blackhole; }}
protocol static bad {{ disabled; ipv4; route {BAD} blackhole; }}
protocol bgp ours {{ local as 6451{host}; neighbor 10.99.0.1 as 64511; hold time 9; connect delay time 1;
  connect retry time 1; error wait time 1, 2; graceful restart on;
  ipv4 {{ import all; export where source = RTS_STATIC; }}; }}
"
    )
}

/// `brindlectl bgp` with these words.
fn ctl(segment: &Segment, args: &[&str]) -> String {
    let mut c = Command::new(bin("brindlectl"));
    c.args(["bgp", "--socket"]).arg(segment.dir(1).join("bgpd.sock")).args(args);
    let out = c.output().expect("brindlectl can be run");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Waits until the peer that met the defect is put aside, and says so.
#[track_caller]
fn put_aside(segment: &Segment, seconds: u32, us: &mut Brindle<'_>) {
    eventually("the peer is put aside", || {
        let text = ctl(segment, &["neighbor", "host3"]);
        let said = text.contains("state      Idle")
            && text.contains("a defect of ours ended it: a defect that a test put in")
            && text.contains("held down");
        if said { Ok(()) } else { Err(text) }
    });
    us.daemon.assert_alive();
    let log = us.daemon.log();
    assert!(log.contains("a defect of the speaker, met by this session"), "{log}");
    assert!(log.contains(&format!("down_for={seconds}")), "{log}");
    let metrics = us.metrics();
    assert!(!metrics.contains("brindle_bgp_defects_total 0"), "{metrics}");
}

#[test]
fn a_defect_in_the_state_machine_of_a_peer_costs_nobody_else_anything() {
    let segment = Segment::new(3);
    let mut us = Brindle::start_at_fault(&segment, 1, &ours(), "bgp.machine");
    let good = Bird::start(&segment, 2, &bird(2));
    let bad = Bird::start(&segment, 3, &bird(3));
    us.route("10.2.0.0/26", true);
    us.route("10.3.0.0/26", true);
    good.route("10.3.0.0/26", true);
    let sessions = |host: &str| -> u64 {
        let text = ctl(&segment, &["neighbor", host, "-o", "json"]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["sessions"].as_u64().unwrap()
    };
    let before = us.established("10.99.0.2").since_ms;
    bad.birdc("enable bad").unwrap();
    put_aside(&segment, 60, &mut us);
    // Its routes are gone, also at the others; the others are as they were.
    us.route("10.3.0.0/26", false);
    good.route("10.3.0.0/26", false);
    us.route("10.2.0.0/26", true);
    good.route("10.1.0.0/26", true);
    assert!(us.established("10.99.0.2").since_ms >= before);
    assert_eq!(sessions("host2"), 1, "the same session");
    // BIRD hears why.
    eventually("BIRD is told", || {
        let log = bad.daemon.log();
        if log.contains("internal error; back in 60 s") { Ok(()) } else { Err(log) }
    });
    // It does the same again as soon as it may: longer this time.
    ctl(&segment, &["clear", "host3", "hard"]);
    eventually("the second time", || {
        let log = us.daemon.log();
        if log.contains("down_for=120") { Ok(()) } else { Err(log) }
    });
    put_aside(&segment, 120, &mut us);
    // Mended, it comes back when an operator says so.
    bad.birdc("disable bad").unwrap();
    ctl(&segment, &["clear", "host3", "hard"]);
    us.route("10.3.0.0/26", true);
    good.route("10.3.0.0/26", true);
    assert_eq!(sessions("host2"), 1, "the same session");
}

#[test]
fn a_defect_in_the_tables_begins_them_anew_and_the_others_keep_our_routes() {
    let segment = Segment::new(3);
    let mut us = Brindle::start_at_fault(&segment, 1, &ours(), "bgp.tables");
    let good = Bird::start(&segment, 2, &bird(2));
    let bad = Bird::start(&segment, 3, &bird(3));
    us.route("10.3.0.0/26", true);
    good.route("10.1.0.0/26", true);
    good.route("10.3.0.0/26", true);
    us.established("10.99.0.2");
    let pid = us.daemon.pid();
    bad.birdc("enable bad").unwrap();
    put_aside(&segment, 60, &mut us);
    us.established("10.99.0.2");
    us.route("10.2.0.0/26", true);
    us.route("10.3.0.0/26", false);
    us.route(BAD, false);
    good.established("ours");
    good.route("10.3.0.0/26", false);
    good.route("10.1.0.0/26", true);
    let log = good.daemon.log();
    assert!(log.contains("added [best] 10.1.0.0/26"), "{log}");
    let removed = |l: &str| l.contains("removed") && l.contains("10.1.0.0/26");
    assert!(!log.lines().any(removed), "our route was never gone: {log}");
    assert_eq!(us.status().unwrap().pid, pid, "the same process");
    // And back when it is mended.
    bad.birdc("disable bad").unwrap();
    ctl(&segment, &["clear", "host3", "hard"]);
    us.route("10.3.0.0/26", true);
    good.route("10.3.0.0/26", true);
}

/// Neither a peer nor the tables: the program around them.
#[test]
fn a_defect_around_the_speaker_begins_it_anew_and_the_others_keep_our_routes() {
    let segment = Segment::new(3);
    let mut us = Brindle::start_at_fault(&segment, 1, &ours(), "bgp.driver");
    let good = Bird::start(&segment, 2, &bird(2));
    let other = Bird::start(&segment, 3, &bird(3));
    for bird in [&good, &other] {
        bird.route("10.1.0.0/26", true);
    }
    us.route("10.2.0.0/26", true);
    us.route("10.3.0.0/26", true);
    good.route("10.3.0.0/26", true);
    let pid = us.daemon.pid();
    // The defect is in clearing anybody.
    let out = Command::new(bin("brindlectl"))
        .args(["bgp", "clear", "host3", "soft", "--socket"])
        .arg(segment.dir(1).join("bgpd.sock"))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && error.contains("met a defect over this"), "{error}");
    eventually("everything begins again", || {
        us.daemon.assert_alive();
        let log = us.daemon.log();
        if log.contains("a defect that no session is to blame for") { Ok(()) } else { Err(log) }
    });
    us.route("10.2.0.0/26", true);
    us.route("10.3.0.0/26", true);
    us.established("10.99.0.2");
    us.established("10.99.0.3");
    good.route("10.3.0.0/26", true);
    let removed = |l: &str| l.contains("removed") && l.contains("10.1.0.0/26");
    for bird in [&good, &other] {
        bird.route("10.1.0.0/26", true);
        let log = bird.daemon.log();
        assert!(!log.lines().any(removed), "our route was never gone: {log}");
    }
    assert_eq!(us.status().unwrap().pid, pid, "the same process");
}
