//! Recorded runs: the inputs of one speaker of a network, line by line, and what it did. A report of a fault becomes a
//! folder here.
//!
//! `topologies/NAME/` holds `description.txt`, `config.json` ([`SpeakerConfig`]), `events.jsonl` ([`Recorded`]),
//! `output.jsonl` and `rib.txt`. After a wanted change of behaviour run with `BLESS=output`; `BLESS=record` also records
//! the inputs anew from the simulations below.
#![expect(
    clippy::disallowed_methods,
    reason = "reads and writes the recordings; the crate under test does neither"
)]

mod sim;

use std::{collections::VecDeque, fmt::Write as _, path::PathBuf};

use brindle_bgpd_core::{
    speaker::{ConnId, Input, Output, Recorded, Speaker, SpeakerConfig},
    time::Mono,
    wire::{Message, WireCx, next_frame},
};
use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use sim::{Net, address, block, own};

/// A line of `output.jsonl`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Line {
    Did {
        at: Mono,
        output: Output,
    },
    /// Pulled, in answer to `Pending`.
    Sent {
        at: Mono,
        conn: ConnId,
        message: Message,
    },
}

/// A speaker with sockets that always take everything.
struct Player {
    speaker: Speaker,
    write: std::collections::BTreeMap<ConnId, WireCx>,
    lines: Vec<Line>,
}

impl Player {
    fn until(&mut self, at: Mono) {
        while let Some(due) = self.speaker.deadline().filter(|d| *d < at) {
            let mut out = VecDeque::new();
            self.speaker.on_time(due, &mut out);
            self.take(due, out);
        }
    }

    fn input(&mut self, at: Mono, input: Input) {
        let mut out = VecDeque::new();
        self.speaker.handle(at, input, &mut out);
        self.take(at, out);
        // As the simulation does: timers after inputs of the same moment.
    }

    fn take(&mut self, at: Mono, out: VecDeque<Output>) {
        for output in out {
            if let Output::Negotiated { conn, write, .. } = &output {
                self.write.insert(*conn, *write);
            }
            let pending = match &output {
                Output::Pending { conn } => Some(*conn),
                _ => None,
            };
            self.lines.push(Line::Did { at, output });
            let Some(conn) = pending else { continue };
            let cx = self.write[&conn];
            let mut bytes = BytesMut::new();
            while self.speaker.next_update(conn, 65_536, &mut bytes) {}
            while let Ok(Some((_, len))) = next_frame(&bytes, cx.max_len()) {
                let message = Message::parse(&bytes.split_to(len), &cx).expect("our own encoding");
                self.lines.push(Line::Sent { at, conn, message });
            }
        }
    }
}

fn play(cfg: &SpeakerConfig, events: &[Recorded]) -> (String, String) {
    let mut p = Player { speaker: Speaker::new(cfg.clone()), write: Default::default(), lines: vec![] };
    for e in events {
        p.until(e.at);
        p.input(e.at, e.input.clone());
    }
    let mut output = String::new();
    for line in &p.lines {
        let _ = writeln!(output, "{}", serde_json::to_string(line).unwrap());
    }
    let mut rib = String::new();
    for path in p.speaker.rib(None) {
        let from = path.from.and_then(|id| p.speaker.peer(id)).map_or_else(|| "own".into(), |s| s.name);
        let hop = path.next_hop.map_or_else(|| "-".into(), |h| h.to_string());
        let marks = [(path.best, "best"), (path.multipath && !path.best, "multipath"), (path.stale, "stale")];
        let marks: Vec<&str> = marks.into_iter().filter(|m| m.0).map(|m| m.1).collect();
        let why = if path.best { String::new() } else { path.why() };
        let line =
            format!("{:<18} {from:<8} via {hop:<12} {:<10} {why}", path.prefix.to_string(), marks.join(","));
        let _ = writeln!(rib, "{}", line.trim_end());
    }
    (output, rib)
}

fn folder(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "topologies", name].iter().collect()
}

/// Replays a recording and compares; `record` makes the inputs when they are wanted anew.
fn check(name: &str, description: &str, record: impl FnOnce() -> (SpeakerConfig, Vec<Recorded>)) {
    let dir = folder(name);
    let bless = std::env::var("BLESS").unwrap_or_default();
    let put = |file: &str, text: &str| std::fs::write(dir.join(file), text).unwrap();
    let get = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    if bless == "record" {
        let (cfg, events) = record();
        std::fs::create_dir_all(&dir).unwrap();
        put("description.txt", &format!("{description}\n"));
        put("config.json", &format!("{}\n", serde_json::to_string_pretty(&cfg).unwrap()));
        let lines: Vec<String> = events.iter().map(|e| serde_json::to_string(e).unwrap() + "\n").collect();
        put("events.jsonl", &lines.concat());
    }
    let cfg: SpeakerConfig = serde_json::from_str(&get("config.json")).unwrap();
    let events: Vec<Recorded> =
        get("events.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let (output, rib) = play(&cfg, &events);
    if bless == "record" || bless == "output" {
        put("output.jsonl", &output);
        put("rib.txt", &rib);
        return;
    }
    for (n, (was, is)) in get("output.jsonl").lines().zip(output.lines()).enumerate() {
        assert_eq!(was, is, "{name}/output.jsonl, line {}", n + 1);
    }
    assert_eq!(get("output.jsonl").lines().count(), output.lines().count(), "{name}/output.jsonl");
    assert_eq!(get("rib.txt"), rib, "{name}/rib.txt");
}

/// Runs a network while node `n` is recorded.
fn record(mut net: Net, n: usize, run: impl FnOnce(&mut Net)) -> (SpeakerConfig, Vec<Recorded>) {
    net.nodes[n].recording = Some(vec![]);
    run(&mut net);
    (net.nodes[n].cfg.clone(), net.nodes[n].recording.take().unwrap())
}

#[test]
fn mesh_of_four_with_a_node_killed() {
    check(
        "mesh4",
        "Node 0 of a full mesh of four. Node 2 withdraws and announces again, node 3 is killed and stays away.",
        || {
            record(Net::mesh(4), 0, |net| {
                net.start_all();
                net.run_ms(2_000);
                net.set_routes(2, vec![]);
                net.run_ms(1_000);
                net.set_routes(2, vec![own(block(2)), own("10.96.0.0/16".parse().unwrap())]);
                net.run_ms(1_000);
                net.kill(3);
                net.run_ms(150_000);
            })
        },
    );
}

#[test]
fn reflector_with_clients() {
    check(
        "reflector",
        "Node 0, one of two reflectors, with three clients; an external router at node 2. Client 4 goes.",
        || {
            let mut net = Net::new(6);
            net.nodes[0].cfg.cluster_id = Some(address(0));
            net.nodes[1].cfg.cluster_id = Some(address(1));
            net.nodes[5].cfg.asn = 65_000;
            net.nodes[5].routes = vec![own("0.0.0.0/0".parse().unwrap())];
            net.link(0, 1, |_, _| {});
            for client in 2..5 {
                for rr in 0..2 {
                    net.link(rr, client, |of, cfg| cfg.reflector_client = of == rr);
                }
            }
            net.link(2, 5, |_, _| {});
            record(net, 0, |net| {
                net.start_all();
                net.run_ms(3_000);
                net.input(4, Input::Shutdown);
                net.run_ms(1_000);
            })
        },
    );
}

#[test]
fn graceful_restart() {
    check(
        "restart",
        "Node 1 of a mesh of three comes back after it was killed: selection is put off until the others have spoken.",
        || {
            let mut net = Net::mesh(3);
            net.start_all();
            net.run_ms(20_000);
            net.kill(1);
            net.run_ms(1_000);
            net.nodes[1].cfg.restarting = true;
            record(net, 1, |net| {
                net.start(1);
                net.run_ms(30_000);
            })
        },
    );
}
