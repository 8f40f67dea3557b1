//! CNI ADD and DEL: brindle with its agent beside Debian's reference `ptp` + `host-local`, turn by turn in the same run,
//! started the same way. Needs root and `apt-get install containernetworking-plugins`.
//!
//! `cargo xtask bench cni [-- ROUNDS]`, which hands over the plugin as the image has it (linked statically);
//! `bench-cni [ROUNDS] [--plugin FILE]` takes the one beside itself.
#![allow(clippy::print_stdout, reason = "the table is the product")]

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use brindle_integration::{
    bins::bin,
    cni::{CniNode, Container},
};
use serde_json::{Value, json};

/// Rounds that are not counted: caches fill.
const WARM_UP: usize = 3;
const REFERENCE: &str = "/usr/lib/cni";

#[derive(Default)]
struct Times {
    add: Vec<Duration>,
    check: Vec<Duration>,
    del: Vec<Duration>,
    version: Vec<Duration>,
}

struct Contestant {
    name: &'static str,
    program: PathBuf,
    conf: Value,
    times: Times,
}

fn main() -> Result<()> {
    let (mut rounds, mut plugin) = (40, bin("brindle"));
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--plugin" => plugin = words.next().context("--plugin needs a file")?.into(),
            number => rounds = number.parse().context("ROUNDS is not a number")?,
        }
    }
    let ptp = Path::new(REFERENCE).join("ptp");
    ensure!(ptp.exists(), "{} is missing: apt-get install containernetworking-plugins", ptp.display());
    let node = CniNode::new("bench", "10.90.0.0/16");
    let reference = json!({
        "cniVersion": "1.0.0", "name": "reference", "type": "ptp",
        "ipam": {
            "type": "host-local", "dataDir": node.dir.join("host-local"),
            "ranges": [[{ "subnet": "10.91.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }],
        },
    });
    let mut all = [
        Contestant { name: "brindle", program: plugin.clone(), conf: node.conf(), times: Times::default() },
        Contestant { name: "ptp + host-local", program: ptp, conf: reference, times: Times::default() },
    ];
    println!("{}", size(&plugin)?);
    for round in 0..rounds + WARM_UP {
        for c in &mut all {
            run(&node, c, round >= WARM_UP)?;
        }
    }
    report(&all, rounds)?;
    bursts(&node, &all)
}

/// Octets of the plugin, which must start.
fn size(plugin: &Path) -> Result<String> {
    let octets = std::fs::metadata(plugin).with_context(|| plugin.display().to_string())?.len();
    let out = std::process::Command::new("/usr/bin/env").arg(plugin).arg("--version").output()?;
    ensure!(out.status.success(), "{} does not start", plugin.display());
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mib = octets as f64 / f64::from(1 << 20);
    Ok(format!("plugin binary: {mib:.2} MiB (goal: at most 1.5)\n"))
}

/// Calls at a time in a burst.
const AT_ONCE: usize = 32;
/// Bursts of each contestant.
const BURSTS: usize = 15;

/// 32 at a time, turn by turn; then 250 pods of ours on one node.
fn bursts(node: &CniNode, all: &[Contestant; 2]) -> Result<()> {
    let mut times: [[Vec<Duration>; 2]; 2] = Default::default();
    for _ in 0..BURSTS {
        for (c, times) in all.iter().zip(&mut times) {
            let pods: Vec<Container> = (0..AT_ONCE).map(|_| Container::new()).collect();
            for (verb, times) in ["ADD", "DEL"].iter().zip(times) {
                times.push(burst(node, c, verb, &pods)?);
            }
        }
    }
    println!("\n{AT_ONCE} at a time, milliseconds for all, median (min..max) of {BURSTS}\n");
    for (i, verb) in ["ADD", "DEL"].iter().enumerate() {
        let [a, b] = [&times[0][i], &times[1][i]].map(|t| millis(t));
        let cell = |(median, min, max): (f64, f64, f64)| format!("{median:.0} ({min:.0}..{max:.0})");
        println!("{verb:9} {:>24} {:>24} {:>7.2}", cell(a), cell(b), a.0 / b.0);
    }
    let pods: Vec<Container> = (0..250).map(|_| Container::new()).collect();
    let start = Instant::now();
    for some in pods.chunks(AT_ONCE) {
        burst(node, &all[0], "ADD", some)?;
    }
    println!(
        "\n250 pods, {AT_ONCE} at a time, all ready: {:.2} s (goal: at most 10)",
        start.elapsed().as_secs_f64()
    );
    for some in pods.chunks(AT_ONCE) {
        burst(node, &all[0], "DEL", some)?;
    }
    Ok(())
}

fn burst(node: &CniNode, c: &Contestant, verb: &str, pods: &[Container]) -> Result<Duration> {
    let input = serde_json::to_vec(&c.conf)?;
    let start = Instant::now();
    let said: Vec<Result<std::process::Output>> = std::thread::scope(|s| {
        let threads: Vec<_> = pods
            .iter()
            .map(|pod| {
                let mut command = node.command(&c.program, verb, &pod.id, &pod.netns());
                let (ns, input) = (node.ns.ns(), &input);
                s.spawn(move || -> Result<std::process::Output> {
                    Ok(ns.run(|| {
                        let mut child = command.spawn()?;
                        if let Some(mut stdin) = child.stdin.take() {
                            std::io::Write::write_all(&mut stdin, input)?;
                        }
                        child.wait_with_output()
                    })??)
                })
            })
            .collect();
        threads.into_iter().filter_map(|t| t.join().ok()).collect()
    });
    let took = start.elapsed();
    ensure!(said.len() == pods.len(), "a thread of the burst failed");
    for out in said {
        let out = out?;
        ensure!(out.status.success(), "{} {verb}: {}", c.name, String::from_utf8_lossy(&out.stdout));
    }
    Ok(took)
}

/// One life of one container.
fn run(node: &CniNode, c: &mut Contestant, count: bool) -> Result<()> {
    let pod = Container::new();
    let call = |verb: &str, conf: &Value| -> Result<(Duration, String)> {
        let mut command = node.command(&c.program, verb, &pod.id, &pod.netns());
        let start = Instant::now();
        let said = node.run(&mut command, conf);
        let took = start.elapsed();
        ensure!(said.ok, "{} {verb}: {} {}", c.name, said.out, said.err);
        Ok((took, said.out))
    };
    let (add, result) = call("ADD", &c.conf)?;
    let mut check_conf = c.conf.clone();
    check_conf["prevResult"] = serde_json::from_str(&result)?;
    let (check, _) = call("CHECK", &check_conf)?;
    let (del, _) = call("DEL", &c.conf)?;
    let (version, _) = call("VERSION", &c.conf)?;
    if count {
        c.times.add.push(add);
        c.times.check.push(check);
        c.times.del.push(del);
        c.times.version.push(version);
    }
    Ok(())
}

fn millis(times: &[Duration]) -> (f64, f64, f64) {
    let mut ms: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e3).collect();
    ms.sort_by(f64::total_cmp);
    let at = |i: usize| ms.get(i).copied().unwrap_or(f64::NAN);
    (at(ms.len() / 2), at(0), at(ms.len().saturating_sub(1)))
}

fn report(all: &[Contestant; 2], rounds: usize) -> Result<()> {
    let [ours, theirs] = all;
    let sum = |t: &Times| t.add.iter().zip(&t.del).map(|(a, d)| *a + *d).collect::<Vec<_>>();
    println!("CNI calls, milliseconds, median (min..max) of {rounds}; process start included\n");
    println!("{:9} {:>24} {:>24} {:>7}", "", ours.name, theirs.name, "ratio");
    let rows = [
        ("ADD", ours.times.add.clone(), theirs.times.add.clone()),
        ("DEL", ours.times.del.clone(), theirs.times.del.clone()),
        ("ADD + DEL", sum(&ours.times), sum(&theirs.times)),
        ("CHECK", ours.times.check.clone(), theirs.times.check.clone()),
        ("VERSION", ours.times.version.clone(), theirs.times.version.clone()),
    ];
    let mut slower = false;
    for (what, a, b) in rows {
        let (a, b) = (millis(&a), millis(&b));
        let cell = |(median, min, max): (f64, f64, f64)| format!("{median:.1} ({min:.1}..{max:.1})");
        println!("{what:9} {:>24} {:>24} {:>7.2}", cell(a), cell(b), a.0 / b.0);
        slower |= what == "ADD + DEL" && a.0 > b.0;
    }
    ensure!(!slower, "ADD + DEL is slower than the reference");
    Ok(())
}
