//! A hostile neighbor beside a good one, on the real `brindle-bgpd`: floods of messages, a neighbor that never reads,
//! connections that say nothing, octets one by one, ten thousand connects, garbage. Through each of them BIRD keeps its
//! session, whose hold time is shorter than the attack, and its routes; new routes still travel; memory stays bounded.
//! Needs root and the Debian package bird2.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use brindle_integration::{
    mrt::{frame, put_attribute},
    peer::{Bird, Brindle, Segment, eventually},
    wait::until,
};
use brindle_kernel::netns::NetNs;

/// Of the session with BIRD, seconds. An attack goes on for longer than twice this.
const HOLD: u64 = 9;
const ATTACK: Duration = Duration::from_secs(2 * HOLD + 1);
/// What a debug build on a busy machine may take for a hundred thousand paths, or for what is left of a flood.
const SLOW: Duration = Duration::from_secs(240);
/// What an attack may add to the daemon's memory at most, MiB.
const ROOM: u64 = 48;
/// The hostile neighbor's AS.
const ASN: u16 = 64_999;

/// The daemon on host 1, BIRD on host 2; host 3 is ours to do evil from.
struct Scene<'a> {
    us: Brindle<'a>,
    good: Bird<'a>,
    evil: NetNs,
    hold: u64,
}

fn config(hold: u64, more: &str) -> String {
    format!(
        "asNumber: 64512\nrouterID: 10.99.0.1\nlisten: [\"10.99.0.1:179\"]\nacceptAll: true\nannounce:\n  - {{prefix: \
         10.1.0.0/26}}\n{more}peers:\n  - {{address: 10.99.0.2, asNumber: 64513, holdTime: {hold}, connectRetry: 1}}\n  - \
         {{address: 10.99.0.3, asNumber: {ASN}, holdTime: 90, passive: true, maxPrefixes: 1000000, addPath: {{receive: \
         true}}}}\n"
    )
}

impl<'a> Scene<'a> {
    fn new(segment: &'a Segment) -> Self {
        Self::with_hold(segment, HOLD)
    }

    fn with_hold(segment: &'a Segment, hold: u64) -> Self {
        let us = Brindle::start(segment, 1, &config(hold, ""));
        let good = Bird::start(
            segment,
            2,
            &format!(
                "protocol static {{ ipv4; route 10.2.0.0/26 blackhole; }}
protocol static late {{ disabled; ipv4; route 10.2.9.0/26 blackhole; }}
protocol bgp v4 {{ local as 64513; neighbor 10.99.0.1 as 64512; hold time {hold}; connect delay time 1;
  connect retry time 1; error wait time 1, 2; ipv4 {{ import all; export where source = RTS_STATIC; }}; }}
"
            ),
        );
        good.established("v4");
        us.established("10.99.0.2");
        us.route("10.2.0.0/26", true);
        good.route("10.1.0.0/26", true);
        let evil = NetNs::named(&segment.netns(3)).expect("the segment made it");
        Self { us, good, evil, hold }
    }

    /// A connection from host 3.
    fn connect(&self) -> TcpStream {
        let target: SocketAddr = "10.99.0.1:179".parse().expect("a literal");
        let stream = self.evil.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(20)));
        let stream = stream.expect("the namespace is alive").expect("the daemon accepts");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket option");
        stream.set_write_timeout(Some(SLOW)).expect("a socket option");
        stream
    }

    /// A session from host 3.
    fn session(&self) -> TcpStream {
        self.session_with(&open())
    }

    fn session_with(&self, open: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(&[open, &keepalive()].concat()).expect("the daemon listens");
        self.us.established("10.99.0.3");
        stream
    }

    /// The same when it may have to wait for the end of a back-off.
    fn session_again(&self, open: &[u8]) -> TcpStream {
        eventually("a session after all this", || {
            let mut stream = self.connect();
            stream.write_all(&[open, &keepalive()].concat()).map_err(|e| e.to_string())?;
            let peer = eventually("a decision about it", || {
                let p = self.us.peer("10.99.0.3")?;
                if p.state == "OpenSent" || p.state == "OpenConfirm" { Err(format!("{p:?}")) } else { Ok(p) }
            });
            if peer.state == "Established" { Ok(stream) } else { Err(format!("{peer:?}")) }
        })
    }

    fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.us.daemon.pid())).expect("it runs");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a line of memory");
        line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).expect("a number") / 1024
    }

    /// BIRD's session is the one it was, its routes are where they were, and new ones travel both ways.
    fn unharmed(mut self, before: u64) {
        let now = self.rss();
        assert!(now <= before + ROOM, "{before} MiB became {now}");
        self.us.daemon.assert_alive();
        self.us.reload(&config(self.hold, "  - {prefix: 10.1.9.0/26}\n"));
        self.good.birdc("enable late").expect("BIRD answers");
        for prefix in ["10.2.0.0/26", "10.2.9.0/26"] {
            self.us.route(prefix, true);
        }
        for prefix in ["10.1.0.0/26", "10.1.9.0/26"] {
            self.good.route(prefix, true);
        }
        // Told by the log, for ages are of the speaker's last turn, which may lie some time back.
        let peer = self.us.peer("10.99.0.2").expect("it is configured");
        let sessions = self.us.sessions("10.99.0.2");
        assert!(peer.state == "Established" && sessions == 1, "{sessions} sessions: {peer:?}");
    }
}

fn open() -> Vec<u8> {
    let [a, b] = ASN.to_be_bytes();
    // Version 4, the AS, hold time 90, an identifier, the capability of IPv4 routes.
    let body = [4, a, b, 0, 90, 10, 99, 0, 3, 8, 2, 6, 1, 4, 0, 1, 0, 1];
    frame(1, &body).expect("it is short")
}

/// The same with the capabilities of RFC 2918 and 7313.
fn open_for_refreshes() -> Vec<u8> {
    let [a, b] = ASN.to_be_bytes();
    let body = [4, a, b, 0, 90, 10, 99, 0, 3, 12, 2, 10, 1, 4, 0, 1, 0, 1, 2, 0, 70, 0];
    frame(1, &body).expect("it is short")
}

/// The same with several paths to a prefix from us (RFC 7911).
fn open_for_paths() -> Vec<u8> {
    let [a, b] = ASN.to_be_bytes();
    let body = [4, a, b, 0, 90, 10, 99, 0, 3, 14, 2, 12, 1, 4, 0, 1, 0, 1, 69, 4, 0, 1, 1, 2];
    frame(1, &body).expect("it is short")
}

/// Announces these prefixes of /24 under these identifiers: at most 500 in all.
fn paths(prefixes: Range<u32>, ids: Range<u32>, med: u32) -> Vec<u8> {
    let each = prefixes.flat_map(|n| ids.clone().map(move |id| (n, id)));
    let nlri = each.flat_map(|(n, id)| {
        let [_, x, y, z] = n.to_be_bytes();
        id.to_be_bytes().into_iter().chain([24, 100 + x, y, z])
    });
    announcement(&[0], med, nlri)
}

/// An UPDATE with this ORIGIN.
fn announcement(origin: &[u8], med: u32, nlri: impl Iterator<Item = u8>) -> Vec<u8> {
    let [a, b] = ASN.to_be_bytes();
    let mut attributes = vec![];
    for (flags, code, value) in [
        (0x40, 1, origin),
        (0x40, 2, &[2, 1, a, b]),
        (0x40, 3, &[10, 99, 0, 3]),
        (0x80, 4, &med.to_be_bytes()),
    ] {
        put_attribute(&mut attributes, flags, code, value).expect("it is short");
    }
    let len = u16::try_from(attributes.len()).expect("it is short").to_be_bytes();
    let mut body = [&[0, 0], &len[..], &attributes].concat();
    body.extend(nlri);
    frame(2, &body).expect("it fits")
}

fn keepalive() -> Vec<u8> {
    frame(4, &[]).expect("it is short")
}

/// Announces 200 prefixes of /24 from the `n`th on.
fn update(n: u32, med: u32) -> Vec<u8> {
    let nlri = (n..n + 200).flat_map(|i| {
        let [_, x, y, z] = i.to_be_bytes();
        [24, 100 + x, y, z]
    });
    announcement(&[0], med, nlri)
}

/// 2,000 prefixes.
fn table(med: u32) -> Vec<u8> {
    (0..10).flat_map(|i| update(i * 200, med)).collect()
}

#[test]
fn a_flood_of_updates_keepalives_and_refreshes_delays_nobody_elses_timers() {
    let segment = Segment::new(3);
    let scene = Scene::new(&segment);
    let mut stream = scene.session();
    let mut answers = stream.try_clone().expect("a descriptor");
    let reader = thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
    stream.write_all(&table(0)).expect("the session is up");
    scene.us.route("100.0.0.0/24", true);
    let before = scene.rss();
    let refresh = frame(5, &[0, 1, 0, 1]).expect("it is short");
    let start = Instant::now();
    let mut rounds = 0;
    while start.elapsed() < ATTACK {
        rounds += 1;
        let flood = [table(rounds), keepalive().repeat(2_000), refresh.repeat(4)].concat();
        stream.write_all(&flood).expect("a flood is no reason to end a session");
    }
    assert!(rounds > 2, "{rounds} rounds");
    // The last word counts, for the flooding neighbor as for others.
    scene.good.route("100.7.207.0/24", true);
    until("the last word is heard", SLOW, || {
        let rib = scene.us.rib(Some("100.7.207.0/24"))?;
        if rib[0]["med"] == rounds { Ok(()) } else { Err(rib.to_string()) }
    });
    assert_eq!(scene.us.peer("10.99.0.3").expect("it is configured").received, 2_000);
    scene.unharmed(before);
    // The daemon is gone, and with it what the reader read from.
    let _ = reader.join().expect("it only reads");
}

#[test]
fn paths_without_end_to_one_prefix_end_the_session_that_sends_them() {
    let segment = Segment::new(3);
    let scene = Scene::with_hold(&segment, 3);
    let before = scene.rss();
    let flood: Vec<u8> = (0..125).flat_map(|i| paths(7..8, i * 400..(i + 1) * 400, 0)).collect();
    // Longer than the back-off between two of its sessions.
    for _ in 0..3 {
        let mut stream = scene.session_again(&open_for_paths());
        // It is closed on the way.
        let _ = stream.write_all(&flood);
        let mut said = vec![];
        let _ = stream.read_to_end(&mut said);
        eventually("the end of the session", || {
            let peer = scene.us.peer("10.99.0.3")?;
            let why = peer.last_error.clone().unwrap_or_default();
            if peer.state != "Established" && why.contains("more than 256 paths to 100.0.7.0/24") {
                Ok(())
            } else {
                Err(format!("{peer:?}"))
            }
        });
        scene.us.route("100.0.7.0/24", false);
    }
    scene.unharmed(before);
}

#[test]
fn as_many_paths_as_a_neighbor_may_have_and_changed_all_the_time_delay_nobody_elses_timers() {
    let segment = Segment::new(3);
    let scene = Scene::new(&segment);
    let mut stream = scene.session_with(&open_for_paths());
    let mut answers = stream.try_clone().expect("a descriptor");
    let reader = thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
    for n in 0..400 {
        stream.write_all(&paths(n..n + 1, 0..250, 0)).expect("the session is up");
    }
    until("all paths", SLOW, || match scene.us.peer("10.99.0.3")?.received {
        100_000 => Ok(()),
        n => Err(format!("{n} paths")),
    });
    let before = scene.rss();
    let start = Instant::now();
    let mut round = 0;
    while start.elapsed() < ATTACK {
        // Of each prefix one path, so that each message makes as many decisions as it can.
        round += 1;
        let flood: Vec<u8> = (0..50).flat_map(|id| paths(0..400, id..id + 1, round)).collect();
        stream
            .write_all(&[&flood[..], &keepalive()].concat())
            .expect("a flood is no reason to end a session");
    }
    // Whatever of the flood is still in the sockets, the others need not wait for it.
    scene.unharmed(before);
    let _ = reader.join().expect("it only reads");
}

#[test]
fn ten_thousand_faulty_updates_are_counted_and_fill_no_log() {
    const MANY: usize = 10_000;
    let segment = Segment::new(3);
    let scene = Scene::new(&segment);
    let mut stream = scene.session();
    let before = scene.rss();
    // There is no ORIGIN 9: treated as a withdrawal, with the session going on.
    let faulty = announcement(&[9], 0, [24, 100, 0, 9].into_iter());
    let began = Instant::now();
    stream.write_all(&faulty.repeat(MANY)).expect("a fault is no reason to end a session");
    stream.write_all(&update(0, 1)).expect("a fault is no reason to end a session");
    scene.us.route("100.0.0.0/24", true);
    let metrics = scene.us.metrics();
    let counted = "brindle_bgp_peer_faulty_updates_total{peer=\"10.99.0.3\",address=\"10.99.0.3\"} 10000";
    assert!(metrics.lines().any(|l| l == counted), "{metrics}");
    let log = scene.us.daemon.log();
    let lines: Vec<&str> = log.lines().filter(|l| l.contains("faulty UPDATE")).collect();
    let most = 20.max(began.elapsed().as_secs() + 2);
    assert!(u64::try_from(lines.len()).expect("few") < most, "{} lines", lines.len());
    let first = lines.first().copied().unwrap_or_default();
    assert!(first.contains("100.0.9.0/24") && first.contains("attribute 1"), "{first}");
    scene.unharmed(before);
}

#[test]
fn a_flood_of_refreshes_by_a_neighbor_that_reads_nothing_stops_nobody() {
    let segment = Segment::new(3);
    let scene = Scene::new(&segment);
    let mut stream = scene.session_with(&open_for_refreshes());
    // Enough that going over all of it for each request would take longer than the others wait.
    for n in 0..500 {
        stream.write_all(&update(n * 200, 0)).expect("the session is up");
    }
    scene.good.route("101.134.128.0/24", true);
    let before = scene.rss();
    let say = |subtype| frame(5, &[0, 1, subtype, 1]).expect("it is short");
    let (request, begin) = (say(0), say(1));
    let flood = [request.repeat(10_000), begin.repeat(10_000), keepalive()].concat();
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < ATTACK {
        stream.write_all(&flood).expect("a flood is no reason to end a session");
        sent += 1;
    }
    assert!(sent > 5, "{sent} times 20,000 messages: each costs too much");
    scene.unharmed(before);
}

#[test]
fn a_neighbor_that_never_reads_costs_bounded_memory() {
    let segment = Segment::new(3);
    let scene = Scene::new(&segment);
    // Everything BIRD says is for the neighbor on host 3, which answers keepalives with keepalives and reads nothing.
    let mut stream = scene.session();
    let before = scene.rss();
    let file = segment.dir(2).join("bird.conf");
    let first = fs::read_to_string(&file).expect("it was started with it");
    let routes: String =
        (0..5_000).map(|i| format!("route 10.{}.{}.0/24 blackhole;\n", 100 + i / 250, i % 250)).collect();
    let generate = |round: u32| {
        let told = format!(
            "filter told {{ if source != RTS_STATIC then reject; bgp_path.prepend({}); accept; }}\nprotocol static many \
             {{ ipv4;\n{routes}}}\n",
            65_000 + round
        );
        let text = first.replacen("protocol static {", &format!("{told}protocol static {{"), 1);
        let text = text.replace("export where source = RTS_STATIC", "export filter told");
        fs::write(&file, text).expect("the folder is ours");
        scene.good.birdc("configure").expect("BIRD takes it");
    };
    let start = Instant::now();
    let mut round = 0;
    while start.elapsed() < ATTACK || round < 10 {
        round += 1;
        generate(round);
        let path = (65_000 + round).to_string();
        eventually(&format!("round {round} in the RIB"), || {
            let rib = scene.us.rib(Some("10.119.249.0/24"))?.to_string();
            if rib.contains(&path) { Ok(()) } else { Err(rib) }
        });
        stream.write_all(&keepalive()).expect("the session is up");
    }
    assert_eq!(scene.us.peer("10.99.0.3").expect("it is configured").state, "Established");
    scene.unharmed(before);
}

#[test]
fn silent_connections_octets_one_by_one_and_garbage_end_alone() {
    let segment = Segment::new(3);
    let scene = Scene::new(&segment);
    let before = scene.rss();
    let start = Instant::now();
    // Connections that say nothing, all at once: of the neighbor's address only the last ones are kept.
    let silent: Vec<TcpStream> = (0..500).map(|_| scene.connect()).collect();
    eventually("all but the last ones are closed", || {
        let n = fs::read_dir(format!("/proc/{}/fd", scene.us.daemon.pid())).expect("it runs").count();
        if n < 100 { Ok(()) } else { Err(format!("{n} descriptors")) }
    });
    drop(silent);
    // A session made of single octets, and a route in it.
    let mut stream = scene.connect();
    stream.set_nodelay(true).expect("a socket option");
    for octet in [open(), keepalive(), update(0, 1)].concat() {
        stream.write_all(&[octet]).expect("slow is not wrong");
    }
    scene.us.established("10.99.0.3");
    scene.us.route("100.0.0.0/24", true);
    scene.good.route("100.0.199.0/24", true);
    // Garbage in an established session: it ends with its routes, and says why.
    let garbage: Vec<u8> =
        (0..200_000_u32).map(|i| u8::try_from((i * 167 + 13) % 251).unwrap_or(0)).collect();
    // It may hang up in the middle, and should.
    let _ = stream.write_all(&garbage);
    scene.us.route("100.0.0.0/24", false);
    scene.good.route("100.0.199.0/24", false);
    let why = scene.us.peer("10.99.0.3").expect("it is configured").last_error.unwrap_or_default();
    assert!(why.to_lowercase().contains("marker") || why.contains("not synchronized"), "{why}");
    // Garbage in place of a session, until the hold time of the good one has passed twice.
    let mut tries = 0_usize;
    while start.elapsed() < ATTACK {
        let mut stream = scene.connect();
        let at = tries * 97 % garbage.len();
        let _ = stream.write_all(garbage.get(at..).unwrap_or_default());
        let _ = stream.read_to_end(&mut vec![]);
        tries += 1;
    }
    assert!(tries > 0);
    scene.unharmed(before);
}

#[test]
fn ten_thousand_connects_cost_no_memory_and_no_session() {
    let segment = Segment::new(3);
    let scene = Scene::new(&segment);
    let before = scene.rss();
    let start = Instant::now();
    let mut count = 0_u32;
    while count < 10_000 || start.elapsed() < ATTACK {
        let mut stream = scene.connect();
        match count % 3 {
            0 => {}
            1 => stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap_or(()),
            _ => stream.write_all(&open()).unwrap_or(()),
        }
        count += 1;
    }
    // The address is not barred for it.
    drop(scene.session_again(&open()));
    scene.unharmed(before);
}
