//! `brindlectl bgp`: every screen as a person sees it, of a real speaker with a real peer. What differs from run to run
//! (ages, ports, counts of KEEPALIVEs) is masked, and columns are drawn together. Needs root, and Debian's bird2.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use brindle_integration::{
    bins::bin,
    peer::{Bird, Brindle, Segment},
    process::Running,
    wait::until,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

fn ours(more: &str) -> String {
    format!(
        "asNumber: 64512
routerID: 10.99.0.1
filters:
  - name: no-guests
    importV4: [{{action: Reject, matchOperator: In, cidr: 10.66.0.0/16}}, {{action: Accept}}]
peers:
  - {{name: rack, address: 10.99.0.2, asNumber: 64513, holdTime: 9, connectRetry: 1, acceptAll: true, filters: [no-guests]}}
  - {{name: rack6, address: \"fd99::2\", asNumber: 64513, holdTime: 9, connectRetry: 1, acceptAll: true}}
  - {{name: absent, address: 10.99.0.9, asNumber: 64512, passive: true}}
announce:
  - {{prefix: 10.1.0.0/26, communities: [\"64512:7\"]}}
  - {{prefix: \"fd01::/64\"}}
{more}"
    )
}

const BIRD: &str = "
protocol static { ipv4; route 10.2.0.0/26 blackhole { bgp_community.add((64999, 9)); }; route 10.66.0.0/24 blackhole; }
protocol static { ipv6; route fd02::/64 blackhole; }
template bgp rack { local as 64513; hold time 9; connect delay time 1; connect retry time 1; error wait time 1, 2; passive on; }
protocol bgp v4 from rack { neighbor 10.99.0.1 as 64512; ipv4 { import all; export where source = RTS_STATIC; }; }
protocol bgp v6 from rack { neighbor fd99::1 as 64512; ipv6 { import all; export where source = RTS_STATIC; }; }
";

struct Screen {
    socket: PathBuf,
}

impl Screen {
    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(bin("brindlectl"));
        c.args(["bgp", "--socket"]).arg(&self.socket).args(args).env("NO_COLOR", "1").stdin(Stdio::null());
        c
    }

    /// What is printed; the exit code must be this one.
    #[track_caller]
    fn raw(&self, args: &[&str], code: i32) -> String {
        let out = self.command(args).output().expect("brindlectl can be started");
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
        text
    }

    #[track_caller]
    fn text(&self, args: &[&str]) -> String {
        // A session is down, and that is what 1 says.
        let degraded = args == ["summary"] || args == ["neighbor", "absent"];
        masked(&self.raw(args, i32::from(degraded)))
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let text = self.raw(&[args, &["-o", "json"]].concat(), i32::from(args == ["summary"]));
        let all: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        if let [one] = &all[..] { one.clone() } else { Value::Array(all) }
    }
}

/// Ages become `Ns`, ephemeral ports `PORT`, rows of message counts `N`; runs of blanks become two.
fn masked(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let counts = ["  received ", "  sent "].iter().any(|l| line.starts_with(l));
        let indent = line.len() - line.trim_start().len();
        let words: Vec<String> = line
            .split("  ")
            .map(str::trim)
            .filter(|w| !w.is_empty())
            .map(|column| column.split(' ').map(|w| word(w, counts)).collect::<Vec<_>>().join(" "))
            .collect();
        out += &(" ".repeat(indent) + &words.join("  ") + "\n");
    }
    out
}

fn word(w: &str, counts: bool) -> String {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let (bare, comma) = w.strip_suffix(',').map_or((w, ""), |b| (b, ","));
    // 7s, 1m02s
    let age = bare.strip_suffix('s').is_some_and(|n| digits(&n.replace('m', "")));
    let port =
        bare.rsplit_once(':').filter(|(host, p)| digits(p) && p.len() == 5 && host.contains(['.', ']']));
    match port {
        _ if age => format!("Ns{comma}"),
        Some((host, _)) => format!("{host}:PORT{comma}"),
        None if counts && digits(bare) => "N".into(),
        None => w.to_owned(),
    }
}

fn snapshot(name: &str, text: &str) {
    insta::with_settings!({prepend_module_to_snapshot => false}, { insta::assert_snapshot!(name, text) });
}

#[test]
fn every_screen_of_brindlectl_bgp_shows_a_real_session() {
    let segment = Segment::new(2);
    // BIRD waits and we connect, so that the screen does not depend on who was faster.
    let them = Bird::start(&segment, 2, BIRD);
    let us = Brindle::start(&segment, 1, &ours(""));
    us.established("10.99.0.2");
    us.established("fd99::2");
    them.route("10.1.0.0/26", true);
    them.route("fd01::/64", true);
    us.route("10.66.0.0/24", true);
    us.route("fd02::/64", true);
    let s = Screen { socket: segment.dir(1).join("bgpd.sock") };
    // The markers at the end of the tables come after the routes, and are the last column.
    for peer in ["rack", "rack6"] {
        until("the first exchange is over", LIMIT, || {
            let text = s.text(&["neighbor", peer]);
            let over = |l: &str| l.starts_with("  ipv") && l.ends_with("  0  yes");
            if text.lines().any(over) { Ok(()) } else { Err(text) }
        });
    }

    snapshot("bgp_summary", &s.text(&["summary"]));
    snapshot("bgp_neighbor", &s.text(&["neighbor", "rack"]));
    snapshot("bgp_neighbor_down", &s.text(&["neighbor", "absent"]));
    snapshot("bgp_rib", &s.text(&["rib"]));
    snapshot("bgp_rib_prefix", &s.text(&["rib", "10.2.0.0/26"]));
    snapshot("bgp_advertised", &s.text(&["advertised", "rack"]));
    snapshot("bgp_received", &s.text(&["received", "rack"]));
    snapshot("bgp_explain", &s.text(&["explain", "10.2.0.0/26", "to", "rack"]));
    snapshot("bgp_explain_filtered", &s.text(&["explain", "10.66.0.0/24"]));
    snapshot("bgp_explain_own", &s.text(&["explain", "10.1.0.0/26", "to", "absent"]));
    snapshot("bgp_explain_inside", &s.text(&["explain", "10.1.0.5"]));
    snapshot("bgp_clear", &s.text(&["clear", "rack", "soft"]));
    snapshot("bgp_clear_in", &s.text(&["clear", "rack", "soft", "in"]));

    // The same for programs.
    let summary = s.json(&["summary"]);
    let text = summary.to_string();
    assert!(["rack", "rack6", "absent"].iter().all(|n| text.contains(&format!("\"{n}\""))), "{text}");
    let route = s.json(&["rib", "10.2.0.0/26"]).to_string();
    assert!(route.contains("64999:9") && route.contains("\"10.99.0.2\""), "{route}");
    let found = s.json(&["explain", "10.66.0.0/24"]).to_string();
    assert!(found.contains("no-guests"), "{found}");

    // What cannot be answered is one line and a code.
    let wrong = s.raw(&["neighbor", "nobody"], 2);
    assert!(wrong.contains("\"nobody\"") && wrong.lines().count() == 1, "{wrong}");
    let wrong = s.raw(&["explain", "10.1.0.1/26"], 2);
    assert!(wrong.contains("host bits"), "{wrong}");
    let nobody = Screen { socket: Path::new("/nonexistent/bgpd.sock").into() };
    let wrong = nobody.raw(&["summary"], 2);
    assert!(wrong.contains("/nonexistent/bgpd.sock") && wrong.lines().count() == 1, "{wrong}");
}

#[test]
fn monitor_tells_of_a_session_that_ends_and_comes_back() {
    let segment = Segment::new(2);
    let us = Brindle::start(&segment, 1, &ours(""));
    let _them = Bird::start(&segment, 2, BIRD);
    us.established("10.99.0.2");
    let s = Screen { socket: segment.dir(1).join("bgpd.sock") };
    let mut command = s.command(&["monitor"]);
    command.stdout(Stdio::piped());
    let mut watching = Running::start(&mut command);
    let (to, lines) = std::sync::mpsc::channel();
    let stdout = watching.child().stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if to.send(line).is_err() {
                return;
            }
        }
    });
    let mut seen: Vec<String> = vec![];
    // Until the watcher is there it sees nothing; so the session is ended until it is told of.
    until("the end of the session is told", LIMIT, || {
        let said = s.text(&["clear", "rack", "hard"]);
        while let Ok(line) = lines.recv_timeout(Duration::from_secs(1)) {
            seen.push(line);
        }
        let ended =
            |l: &String| l.contains(" rack ") && l.contains("Established") && !l.contains("-> Established");
        if seen.iter().any(ended) { Ok(()) } else { Err(said) }
    });
    until("the new session is told", LIMIT, || {
        seen.extend(lines.try_iter());
        let back = |l: &String| l.contains(" rack ") && l.contains("-> Established");
        if seen.iter().any(back) { Ok(()) } else { Err(seen.join("\n")) }
    });
    us.established("10.99.0.2");
}

#[test]
fn of_two_speakers_at_one_address_each_is_asked_and_cleared_by_its_name() {
    let segment = Segment::new(2);
    let bird = "protocol static { ipv4; route 10.2.0.0/26 blackhole; }
protocol bgp a { local as 64513; neighbor 10.99.0.1 as 64512; hold time 9; passive on; connect delay time 1;
  error wait time 1, 2; ipv4 { import all; export where source = RTS_STATIC; }; }
";
    let _a = Bird::start(&segment, 2, bird);
    let other = "asNumber: 64513\nrouterID: 10.99.0.22\nlisten: [\"10.99.0.2:1790\"]\nacceptAll: true\nannounce:\n  - \
                 {prefix: 10.2.0.0/26}\npeers:\n  - {address: 10.99.0.1, asNumber: 64512, passive: true, holdTime: 9}\n";
    let _b = Brindle::start(&segment, 2, other);
    let peer = |more: &str| {
        format!("  - {{{more}, address: 10.99.0.2, asNumber: 64513, holdTime: 9, connectRetry: 1}}\n")
    };
    let peers = [peer("name: a"), peer("port: 1790")].concat();
    let us = format!("asNumber: 64512\nrouterID: 10.99.0.1\nacceptAll: true\npeers:\n{peers}");
    let _us = Brindle::start(&segment, 1, &us);
    let s = Screen { socket: segment.dir(1).join("bgpd.sock") };
    // Sessions that were established, of each.
    let sessions = |wanted: [u64; 2]| {
        until(&format!("{wanted:?} sessions"), LIMIT, || {
            let out = s.command(&["summary", "-o", "json"]).output().expect("brindlectl can be started");
            let all: Value = serde_json::from_slice(&out.stdout).map_err(|e| e.to_string())?;
            let of = |n: usize| all["neighbors"][n]["sessions"].as_u64().unwrap_or_default();
            let up = |n: usize| all["neighbors"][n]["state"] == "Established";
            let ready = [of(0), of(1)] == wanted && up(0) && up(1);
            if ready { Ok(()) } else { Err(all.to_string()) }
        });
    };
    sessions([1, 1]);
    let cleared = s.raw(&["clear", "10.99.0.2:1790", "hard"], 0);
    assert!(cleared.contains("10.99.0.2:1790") && cleared.lines().count() == 1, "{cleared}");
    sessions([1, 2]);
    let cleared = s.raw(&["clear", "a", "hard"], 0);
    assert!(cleared.starts_with("a ") && cleared.lines().count() == 1, "{cleared}");
    sessions([2, 2]);
    // Both are at the address.
    until("the routes of both", LIMIT, || {
        let all = s.raw(&["received", "10.99.0.2"], 0);
        if all.contains("2 paths") { Ok(()) } else { Err(all) }
    });
    let cleared = s.raw(&["clear", "10.99.0.2", "hard"], 0);
    assert_eq!(cleared.lines().count(), 2, "{cleared}");
    sessions([3, 3]);
}
