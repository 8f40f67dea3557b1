//! Defects of the program itself outside of a session, put in for the test (`BRINDLE_FAILPOINT`): what only answers or writes
//! for others fails alone, the sessions stay. Debug builds only.
#![cfg(debug_assertions)]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    process::Command,
};

use self::support::{
    Node, address, peer,
    program::{Daemon, Dir, PROGRAM, config, fails, listening, run},
};

/// The program with a defect at this point, and a neighbor whose session is up.
struct Faulty {
    dir: Dir,
    file: String,
    at: Ipv4Addr,
    daemon: Daemon,
    node: Node,
}

impl Faulty {
    async fn start(point: &str, more: &str) -> Self {
        let dir = Dir::new(point);
        let (at, of) = (address(), address());
        let file = config(&dir, at, &[of], &["10.1.0.0/26"]);
        let text = fs::read_to_string(&file).unwrap() + more;
        fs::write(&file, text.replace("DIR", &dir.path("mrt"))).unwrap();
        let mut program = Command::new(PROGRAM);
        program.args(["--config", &file, "--metrics", &format!("{at}:9180")]);
        let log = fs::File::create(dir.path("log")).unwrap();
        let daemon = Daemon(program.env("BRINDLE_FAILPOINT", point).stderr(log).spawn().unwrap());
        listening(at).await;
        let node = Node::start(of, 64512, vec![peer(of, at, 64512)], &["10.2.0.0/26"]).await;
        node.established(at).await;
        node.knows(&["10.1.0.0/26", "10.2.0.0/26"]).await;
        Self { dir, file, at, daemon, node }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path("log")).unwrap()
    }

    /// The session is the one it was, and routes still go over it.
    async fn lives(mut self, since: u64) {
        self.node.change(|d| d.routes.push(support::route("10.2.1.0/26"))).await;
        self.node
            .until("a further route over there", async || {
                let out = run(&["rib", "10.2.1.0/26", "-c", &self.file]);
                let text = String::from_utf8_lossy(&out.stdout).into_owned();
                if out.status.success() { Ok(()) } else { Err(format!("{text} {}", self.log())) }
            })
            .await;
        let p = self.node.peer(self.at).await;
        assert!(p.state == "Established" && p.since_ms >= since, "{p:?}\n{}", self.log());
        assert_eq!(self.daemon.term(), Some(0));
    }

    async fn since(&self) -> u64 {
        self.node.peer(self.at).await.since_ms
    }
}

#[tokio::test]
async fn a_question_that_meets_a_defect_has_no_answer_and_the_sessions_stay() {
    let f = Faulty::start("bgp.status", "").await;
    let since = f.since().await;
    for _ in 0..9 {
        fails(&["status", "-c", &f.file], 1, "met a defect over this and has no answer");
    }
    assert!(f.log().contains("a question to the speaker met a defect"), "{}", f.log());
    f.lives(since).await;

    let f = Faulty::start("bgp.health", "").await;
    let since = f.since().await;
    let live = run(&["probe", "--live", "-c", &f.file]);
    assert!(live.status.success(), "nothing to start again for: {live:?}");
    let ready = run(&["probe", "--ready", "-c", &f.file]);
    let text = String::from_utf8_lossy(&ready.stdout);
    assert!(!ready.status.success() && text.contains("[-] sessions: unknown: a defect of ours"), "{text}");
    f.lives(since).await;

    let f = Faulty::start("bgp.dump", "").await;
    let since = f.since().await;
    fails(&["mrt", "dump", &f.dir.path("x.mrt"), "-c", &f.file], 1, "met a defect over this");
    f.lives(since).await;
}

#[tokio::test]
async fn metrics_that_meet_a_defect_are_an_error_500_and_the_sessions_stay() {
    let f = Faulty::start("bgp.metrics", "").await;
    let since = f.since().await;
    for _ in 0..3 {
        let mut stream = TcpStream::connect((f.at, 9180)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(said.starts_with("HTTP/1.1 500 "), "{said}");
    }
    assert!(f.log().contains("an answer over HTTP met a defect"), "{}", f.log());
    f.lives(since).await;
}

#[tokio::test]
async fn an_archive_that_meets_a_defect_misses_messages_and_the_sessions_stay() {
    for (point, words) in [
        ("bgp.archive", "the MRT archive met a defect"),
        ("bgp.mrt", "a defect: messages are missing in the MRT archive"),
    ] {
        let f = Faulty::start(point, "mrt: {directory: DIR, updatesInterval: 900}\n").await;
        let since = f.since().await;
        let said = async || if f.log().contains(words) { Ok(()) } else { Err(f.log()) };
        f.node.until(words, said).await;
        f.lives(since).await;
    }
}

#[tokio::test]
async fn a_file_that_meets_a_defect_when_it_is_read_again_changes_nothing() {
    let f = Faulty::start("bgp.reload", "").await;
    let since = f.since().await;
    let pid = f.daemon.0.id().to_string();
    assert!(Command::new("kill").args(["-s", "HUP", &pid]).status().unwrap().success());
    let words = "SIGHUP: a defect; the configuration stays";
    let said = async || if f.log().contains(words) { Ok(()) } else { Err(f.log()) };
    f.node.until(words, said).await;
    f.lives(since).await;
}

#[tokio::test]
async fn another_identity_that_meets_a_defect_on_the_way_is_there_all_the_same() {
    let f = Faulty::start("bgp.restart", "").await;
    let text = fs::read_to_string(&f.file).unwrap();
    let text = text.replacen("asNumber: 64512", "asNumber: 64999", 1).replace(", reflectorClient: true", "");
    fs::write(&f.file, text).unwrap();
    let pid = f.daemon.0.id().to_string();
    assert!(Command::new("kill").args(["-s", "HUP", &pid]).status().unwrap().success());
    f.node
        .until("the new identity", async || {
            let out = run(&["status", "-c", &f.file]);
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            if text.contains("64999") { Ok(()) } else { Err(format!("{text} {}", f.log())) }
        })
        .await;
    assert!(f.log().contains("SIGHUP: the configuration met a defect"), "{}", f.log());
    assert_eq!(f.daemon.term(), Some(0));
}

#[tokio::test]
async fn a_defect_while_the_datastore_is_followed_is_told_and_tried_again() {
    let dir = Dir::new("follow");
    let log = fs::File::create(dir.path("log")).unwrap();
    let (url, sock) = (format!("sqlite:{}", dir.path("db")), dir.path("sock"));
    let mut program = Command::new(PROGRAM);
    program.args(["--datastore", &url, "--node", "n", "--admin-socket", &sock]);
    let daemon = Daemon(program.env("BRINDLE_FAILPOINT", "bgp.follow").stderr(log).spawn().unwrap());
    let start = tokio::time::Instant::now();
    loop {
        let log = fs::read_to_string(dir.path("log")).unwrap();
        if log.matches("a defect, met while the datastore was followed").count() > 1 {
            break;
        }
        assert!(start.elapsed() < support::PATIENCE, "{log}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(run(&["status", "--admin-socket", &sock]).status.success());
    assert_eq!(daemon.term(), Some(0));
}
