//! CNI ADD and DEL: brindle with its agent beside Debian's reference `ptp` + `host-local`, turn by turn in the same run,
//! started the same way. Needs root and `apt-get install containernetworking-plugins`.
//!
//! `cargo run --release -p brindle-integration --bin bench-cni [-- ROUNDS]`
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
    let rounds: usize =
        std::env::args().nth(1).map_or(Ok(40), |a| a.parse()).context("ROUNDS is not a number")?;
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
        Contestant { name: "brindle", program: bin("brindle"), conf: node.conf(), times: Times::default() },
        Contestant { name: "ptp + host-local", program: ptp, conf: reference, times: Times::default() },
    ];
    for round in 0..rounds + WARM_UP {
        for c in &mut all {
            run(&node, c, round >= WARM_UP)?;
        }
    }
    report(&all, rounds)
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
