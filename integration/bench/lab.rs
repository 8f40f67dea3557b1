//! The lab's figures: time of `lab up` to the finished proof, memory and idle CPU of the agents, and how long a
//! withdrawn route lives in the kernels. Needs root; works in namespaces of its own.
//!
//! `cargo run --release -p brindle-integration --bin bench-lab [-- NODES]` (NODES of the big lab, default 50)
#![allow(clippy::print_stdout, reason = "the table is the product")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use brindle_integration::{lab::Lab, netns};
use brindle_kernel::{
    netlink::{Event, Group, Monitor},
    netns::NetNs,
    process,
};
use ipnet::IpNet;

const DEFAULT_RUNS: usize = 5;
const WITHDRAWALS: usize = 10;
const IDLE: Duration = Duration::from_secs(10);

/// Goals of the project, for the last column.
const GOAL_DEFAULT_S: f64 = 5.0;
const GOAL_BIG_S: f64 = 60.0;
const GOAL_RSS_MIB: f64 = 20.0;
const GOAL_IDLE_PERCENT: f64 = 5.0;
const GOAL_WITHDRAW_MS: f64 = 100.0;

struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    goal: Option<f64>,
}

impl Row {
    fn print(&self) {
        let goal = self.goal.map_or_else(String::new, |g| {
            format!("goal {g} {}: {}", self.unit, if self.value <= g { "met" } else { "MISSED" })
        });
        println!("{:<52} {:>9.2} {:<4} {goal}", self.what, self.value, self.unit);
    }
}

fn row(what: impl Into<String>, value: f64, unit: &'static str, goal: Option<f64>) {
    Row { what: what.into(), value, unit, goal }.print();
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Builds a lab; seconds until `lab up` ended, with its answer.
fn build(tag: &str, args: &[&str]) -> Result<(Lab, f64)> {
    let lab = Lab::named(tag);
    let start = Instant::now();
    let up = lab.build(args);
    let took = start.elapsed().as_secs_f64();
    ensure!(up.code == 0, "lab up {args:?} ended with {}: {:#}", up.code, up.last());
    for stage in up.lines.iter().filter(|l| l["event"] == "stage") {
        let ms = stage["ms"].as_f64().unwrap_or(f64::NAN);
        println!("    {:<12} {:>9.0} ms", stage["stage"].as_str().unwrap_or_default(), ms);
    }
    Ok((lab, took))
}

/// Processes of a lab by program: pids.
fn processes(lab: &Lab) -> Result<BTreeMap<String, Vec<u32>>> {
    let names = netns::with_prefix(&format!("{}-", lab.name()));
    let ids = names.iter().filter_map(|n| NetNs::named(n).ok()).map(|ns| ns.id()).collect();
    let mut found: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for p in process::in_namespaces(&ids)? {
        found.entry(p.program).or_default().push(p.pid);
    }
    Ok(found)
}

/// User and system time of a process in clock ticks (1/100 s).
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rfind(')').map_or("", |i| stat.get(i + 1..).unwrap_or_default());
    let fields: Vec<u64> = after.split_ascii_whitespace().skip(11).take(2).flat_map(str::parse).collect();
    fields.iter().sum()
}

/// Memory and idle CPU of everything in a lab.
fn measure(lab: &Lab, label: &str, goals: bool) -> Result<()> {
    let programs = processes(lab)?;
    ensure!(programs.contains_key("brindle-node"), "no agent runs: {programs:?}");
    memory(&programs, label, "right after", goals);
    let all: Vec<u32> = programs.values().flatten().copied().collect();
    let sum = || all.iter().map(|p| cpu_ticks(*p)).sum::<u64>();
    let before = sum();
    std::thread::sleep(IDLE);
    let percent = (sum() - before) as f64 / IDLE.as_secs_f64();
    let goal = goals.then_some(GOAL_IDLE_PERCENT);
    row(format!("{label}: idle CPU of all {} processes, of one core", all.len()), percent, "%", goal);
    memory(&programs, label, "idle", goals);
    Ok(())
}

/// The most memory any process of a program has, and what of it is its own: the rest are pages of files, which all share.
fn memory(programs: &BTreeMap<String, Vec<u32>>, label: &str, when: &str, goals: bool) {
    for (program, pids) in programs {
        let most = |of: fn(u32) -> Option<u64>| {
            let all = pids.iter().filter_map(|p| of(*p)).map(|kib| kib as f64 / 1024.0);
            all.fold(0.0, f64::max)
        };
        let goal = (goals && program == "brindle-node").then_some(GOAL_RSS_MIB);
        let n = pids.len();
        row(format!("{label}, {when}: RSS of {n} {program}, most"), most(process::rss_kib), "MiB", goal);
        row(format!("{label}, {when}: of it its own, most"), most(process::own_kib), "MiB", None);
    }
}

/// Three agents and a BIRD that withdraws its block, again and again: milliseconds until the last kernel has let
/// go of the route, from the moment BIRD is told.
fn withdrawals() -> Result<()> {
    let file = std::env::temp_dir().join(format!("bt-{}-bench.yaml", std::process::id()));
    fs::write(
        &file,
        "segments: [{name: seg1}]\n\
         nodes:\n\
         - {name: node1, segment: seg1}\n\
         - {name: node2, segment: seg1}\n\
         - {name: node3, segment: seg1}\n\
         - {name: bird1, segment: seg1, agent: bird}\n",
    )?;
    let (lab, _) = build("wd", &["--topology", &file.to_string_lossy()])?;
    fs::remove_file(&file)?;
    let block: IpNet = "10.78.4.0/26".parse()?;
    let mut monitors = ["node1", "node2", "node3"]
        .map(|n| Monitor::open_in(&lab.ns(n), &[Group::RoutesV4]))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let mut bird = Bird::connect(&lab)?;
    let mut times = Vec::new();
    for _ in 0..WITHDRAWALS {
        let start = Instant::now();
        bird.tell("disable own_blocks")?;
        let last = wait_all(&mut monitors, start, |e| matches!(e, Event::RouteGone(r) if r.dst == block))?;
        times.push(last.as_secs_f64() * 1e3);
        let start = Instant::now();
        bird.tell("enable own_blocks")?;
        wait_all(&mut monitors, start, |e| matches!(e, Event::Route(r) if r.dst == block))?;
    }
    let worst = times.iter().copied().fold(0.0, f64::max);
    row("withdrawn at BIRD, gone from 3 kernels, median", median(&mut times), "ms", None);
    row("withdrawn at BIRD, gone from 3 kernels, worst", worst, "ms", Some(GOAL_WITHDRAW_MS));
    lab.down();
    Ok(())
}

/// The time until the last monitor has seen the event.
fn wait_all(monitors: &mut [Monitor], start: Instant, wanted: impl Fn(&Event) -> bool) -> Result<Duration> {
    let limit = Duration::from_secs(10);
    for m in monitors {
        loop {
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                bail!("a kernel did not follow within {limit:?}");
            }
            if m.next(Some(left))?.iter().any(&wanted) {
                break;
            }
        }
    }
    Ok(start.elapsed())
}

/// BIRD's control socket.
struct Bird {
    answers: BufReader<UnixStream>,
}

impl Bird {
    fn connect(lab: &Lab) -> Result<Self> {
        let path = lab.dir().join("nodes/bird1/bird.ctl");
        let socket = UnixStream::connect(&path).with_context(|| path.display().to_string())?;
        let mut bird = Self { answers: BufReader::new(socket) };
        bird.answer()?;
        Ok(bird)
    }

    fn tell(&mut self, words: &str) -> Result<()> {
        writeln!(self.answers.get_mut(), "{words}")?;
        self.answer()
    }

    /// Reads up to the line that ends an answer: four digits and a space.
    fn answer(&mut self) -> Result<()> {
        loop {
            let mut line = String::new();
            ensure!(self.answers.read_line(&mut line)? > 0, "BIRD hung up");
            if line.get(4..5) == Some(" ") && line.get(..4).is_some_and(|c| c.parse::<u16>().is_ok()) {
                ensure!(!line.starts_with(['8', '9']), "BIRD says {line}");
                return Ok(());
            }
        }
    }
}

fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cpus} cpus, kernel {}", kernel.trim())
}

fn main() -> Result<()> {
    let nodes: u16 = std::env::args().nth(1).map_or(Ok(50), |n| n.parse()).context("NODES is a number")?;
    println!("machine: {}", machine());
    let mut times = Vec::new();
    for run in 1..=DEFAULT_RUNS {
        println!("  default lab, run {run}:");
        let (lab, took) = build("def", &[])?;
        times.push(took);
        if run == DEFAULT_RUNS {
            measure(&lab, "default lab", false)?;
        }
        lab.down();
    }
    row(
        format!("lab up, 4 nodes x 2 pods, median of {DEFAULT_RUNS}"),
        median(&mut times),
        "s",
        Some(GOAL_DEFAULT_S),
    );
    withdrawals()?;
    println!("  lab of {nodes} nodes:");
    let (lab, took) = build("big", &["--nodes", &nodes.to_string()])?;
    row(format!("lab up, {nodes} nodes x 2 pods, full mesh"), took, "s", Some(GOAL_BIG_S));
    measure(&lab, &format!("{nodes} nodes"), true)?;
    let start = Instant::now();
    lab.down();
    row(format!("lab down, {nodes} nodes"), start.elapsed().as_secs_f64(), "s", None);
    Ok(())
}
