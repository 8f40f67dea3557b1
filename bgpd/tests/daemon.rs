//! The program `brindle-bgpd`: exit codes, words of its errors, recording and replay, life without descriptors.

mod support;

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
};

use brindle_bgpd_core::{
    speaker::{Input, Speaker, SpeakerConfig},
    time::Mono,
};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use self::support::{
    Hand, Node, PATIENCE, PORT, address, peer,
    program::{Daemon, Dir, PROGRAM, config, fails, listening, run},
    route,
};

#[tokio::test]
async fn mistakes_end_with_their_exit_code_and_one_clear_line() {
    let dir = Dir::new("mistakes");
    let bad =
        dir.file("bad.yaml", "asNumber: 1\nrouterID: 10.0.0.1\npeers:\n  - address: here\n    asNumber: 1\n");
    fails(&["--config", &bad], 2, "bad.yaml:4:");
    fails(&["--config", &bad], 2, "peers[0].address");
    fails(&["check", "--config", &bad], 2, "bad.yaml:4:");
    fails(&["check", &bad], 2, "bad.yaml:4:");
    fails(&["check"], 2, "FILE");
    fails(&["--config", "/nonexistent.yaml"], 2, "/nonexistent.yaml: cannot be read");
    fails(&[], 2, "--config");
    fails(&["--datastore", "redis:x", "--node", "n", "--admin-socket", &dir.path("x")], 2, "redis:x");
    let nowhere = "sqlite:/nonexistent/x";
    fails(&["--datastore", nowhere, "--node", "n", "--admin-socket", &dir.path("x")], 2, "/nonexistent");
    let utf16: Vec<u8> = "\u{feff}asNumber: 1\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(dir.path("utf16.yaml"), utf16).unwrap();
    fails(&["check", &dir.path("utf16.yaml")], 2, "the file is UTF-16, save it as UTF-8");
    fails(&["status", "--admin-socket", &dir.path("nobody")], 1, "is brindle-bgpd running");

    let at = address();
    let good = config(&dir, at, &[], &["10.1.0.0/26"]);
    assert!(run(&["check", "-c", &good]).status.success());
    assert!(run(&["check", &good]).status.success());
    fails(&["--config", &good, "--log-level", "=="], 2, "log level");
    fails(&["--config", &good, "--record", "/nonexistent/x"], 1, "/nonexistent/x");
    let taken = std::net::TcpListener::bind(SocketAddr::new(at.into(), PORT)).unwrap();
    fails(&["--config", &good], 1, &format!("cannot listen on {at}:{PORT}"));
    drop(taken);

    let first =
        Daemon(Command::new(PROGRAM).args(["--config", &good]).stderr(Stdio::null()).spawn().unwrap());
    listening(at).await;
    fails(&["--config", &good], 1, "another brindle-bgpd answers there");
    let out = run(&["status", "-c", &good]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("local AS 64512"), "{out:?}");
    let out = run(&["rib", "10.1.0.0/26", "-c", &good]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("*  10.1.0.0/26"), "{out:?}");
    assert_eq!(first.term(), Some(0));
    assert!(!Path::new(&dir.path("sock")).exists(), "the admin socket goes with the daemon");
}

#[derive(Deserialize)]
struct Line {
    speaker: Option<SpeakerConfig>,
    #[serde(default)]
    at: u64,
    input: Option<Input>,
}

#[tokio::test]
async fn a_recorded_run_replays_to_the_same_routes() {
    let dir = Dir::new("replay");
    let (a, b) = (address(), address());
    let file = config(&dir, a, &[b], &["10.1.0.0/26"]);
    let record = dir.path("inputs.jsonl");
    let daemon = Daemon(
        Command::new(PROGRAM)
            .args(["--config", &file, "--record", &record])
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let mut node = Node::start(b, 64512, vec![peer(b, a, 64512)], &["10.2.0.0/26", "10.2.1.0/26"]).await;
    node.established(a).await;
    node.knows(&["10.1.0.0/26", "10.2.0.0/26", "10.2.1.0/26"]).await;
    node.change(|d| d.routes = vec![route("10.2.1.0/26"), route("10.2.2.0/26")]).await;
    let expected = ["10.1.0.0/26", "10.2.1.0/26", "10.2.2.0/26"].map(String::from);
    let start = Instant::now();
    loop {
        let out = run(&["rib", "-o", "json", "-c", &file]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if expected.iter().all(|p| text.contains(p)) && !text.contains("10.2.0.0/26") {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{text}");
    }
    drop(daemon);

    let mut speaker = None;
    let mut out = VecDeque::new();
    for line in fs::read_to_string(&record).unwrap().lines() {
        let line: Line = serde_json::from_str(line).unwrap();
        match (line.speaker, line.input, &mut speaker) {
            (Some(config), _, _) => speaker = Some(Speaker::new(config)),
            (None, Some(input), Some(s)) => s.handle(Mono(line.at), input, &mut out),
            (None, None, Some(s)) => s.on_time(Mono(line.at), &mut out),
            (None, _, None) => panic!("an input before the speaker"),
        }
    }
    let speaker = speaker.unwrap();
    let best: BTreeSet<String> = speaker.rib(None).filter(|p| p.best).map(|p| p.prefix.to_string()).collect();
    assert_eq!(best, BTreeSet::from(expected));
}

#[tokio::test]
async fn a_log_nobody_reads_holds_up_no_session() {
    use std::os::unix::fs::OpenOptionsExt;
    const O_NONBLOCK: i32 = 0o4000;
    let dir = Dir::new("unread");
    let (us, a) = (address(), address());
    let file = config(&dir, us, &[a], &["10.1.0.0/26"]);
    let fifo = dir.path("log");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // Whoever opens both ends waits for nobody.
    let mut ours = fs::File::options().read(true).write(true).custom_flags(O_NONBLOCK).open(&fifo).unwrap();
    while ours.write(&[b'x'; 4096]).is_ok() {}
    while ours.write(b"x").is_ok() {}
    let stderr = fs::File::options().read(true).write(true).open(&fifo).unwrap();
    let daemon = Daemon(Command::new(PROGRAM).args(["--config", &file]).stderr(stderr).spawn().unwrap());
    listening(us).await;
    let mut node = Node::start(a, 64512, vec![peer(a, us, 64512)], &["10.2.0.0/26"]).await;
    node.established(us).await;
    node.knows(&["10.1.0.0/26", "10.2.0.0/26"]).await;
    // It goes on: each of these is a line in its log, too.
    for _ in 0..3 {
        node.change(|d| d.peers.clear()).await;
        node.change(|d| d.peers = vec![peer(a, us, 64512)]).await;
        node.established(us).await;
    }
    let (mut log, mut buf) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&log).contains("brindle-bgpd runs") {
        match ours.read(&mut buf) {
            Ok(n) => log.extend_from_slice(&buf[..n]),
            Err(_) => sleep(std::time::Duration::from_millis(10)).await,
        }
    }
    assert_eq!(daemon.term(), Some(0));
    while let Ok(n @ 1..) = ours.read(&mut buf) {
        log.extend_from_slice(&buf[..n]);
    }
    let log = String::from_utf8_lossy(&log);
    assert!(log.contains("new=Established") && log.contains("BGP shuts down"), "{log}");
    assert!(!log.contains("left out"), "{log}");
}

#[tokio::test]
async fn without_descriptors_existing_sessions_live_and_new_ones_wait() {
    let dir = Dir::new("descriptors");
    let (us, a, b) = (address(), address(), address());
    let hands: Vec<Ipv4Addr> = (0..24).map(|_| address()).collect();
    let all: Vec<Ipv4Addr> = [a, b].into_iter().chain(hands.iter().copied()).collect();
    let file = config(&dir, us, &all, &[]);
    let text = fs::read_to_string(&file).unwrap();
    // The hands are waited for: each of them shall cost a descriptor only when it comes.
    let text: String = text
        .lines()
        .map(|l| {
            let is_hand = hands.iter().any(|h| l.contains(&format!("address: {h},")));
            if is_hand { l.replace("holdTime: 9", "passive: true") + "\n" } else { format!("{l}\n") }
        })
        .collect();
    fs::write(&file, text).unwrap();
    let log = fs::File::create(dir.path("log")).unwrap();
    let _daemon = Daemon(
        Command::new("sh")
            .args(["-c", "ulimit -n 30; exec \"$0\" \"$@\"", PROGRAM, "--config", &file])
            .stderr(log)
            .spawn()
            .unwrap(),
    );
    listening(us).await;
    let mut left = Node::start(a, 64512, vec![peer(a, us, 64512)], &["10.1.0.0/26"]).await;
    let right = Node::start(b, 64512, vec![peer(b, us, 64512)], &[]).await;
    right.knows(&["10.1.0.0/26"]).await;

    let mut held = Vec::new();
    for hand in &hands {
        held.push(Hand::connect(*hand, us).await);
    }
    right
        .until("refusal for want of descriptors", async || {
            let log = fs::read_to_string(dir.path("log")).unwrap();
            log.contains("cannot accept BGP connections").then_some(()).ok_or(log)
        })
        .await;
    left.change(|d| d.routes.push(route("10.1.1.0/26"))).await;
    right.knows(&["10.1.0.0/26", "10.1.1.0/26"]).await;

    drop(held);
    right
        .until("recovery", async || {
            let log = fs::read_to_string(dir.path("log")).unwrap();
            log.contains("accepting BGP connections again").then_some(()).ok_or(log)
        })
        .await;
    left.established(us).await;
}
