//! `cargo xtask bench bgp`: brindle-bgpd and each installed peer in turn, same neighbors, same routes, one CPU for the
//! daemon and one for the neighbors, in namespaces made for it.
//!
//! `bench-bgp [--mrt FILE] [--runs N] [SCENARIO..] [DAEMON..]`; without names all of them. Convergence is from the first
//! established session to the last prefix at the last receiver. A run in which anything is missing, too much or wrong is
//! marked. S4 ends in the kernel: there our daemon is brindle-node, since brindle-bgpd programs no routes.
#![allow(clippy::print_stdout, reason = "the table is the product")]

mod daemons;
mod generator;
mod kernel;
mod scenario;
mod wire;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use brindle_kernel::netns::NetNs;

use self::{
    daemons::Daemon,
    generator::Step,
    kernel::Watch,
    scenario::{Scenario, TARGET, Then, replay},
};

/// The steps of a run, each with seconds, seconds of processor time, and MiB at the peak.
type Run = Vec<(Step, [f64; 3])>;

fn main() -> Result<()> {
    let (mut scenarios, mut peers, mut mrt, mut runs) = (vec![], vec![], None, 3usize);
    let mut args = std::env::args().skip(1);
    let known = scenario::all();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "generate" => {
                let name = args.next().context("a scenario")?;
                let file = args.next().map(PathBuf::from);
                let found = known.iter().find(|s| s.name == name).cloned();
                return generator::run(found.unwrap_or_else(replay), file);
            }
            "--mrt" => mrt = Some(PathBuf::from(args.next().context("--mrt takes a file")?)),
            "--runs" => runs = args.next().context("--runs takes a number")?.parse()?,
            word => {
                if let Some(s) = known.iter().find(|s| s.name == word) {
                    scenarios.push(s.clone());
                } else if let Some(d) = Daemon::ALL.into_iter().find(|d| d.name() == word) {
                    peers.push(d);
                } else {
                    bail!("{word:?} is neither a scenario nor a daemon");
                }
            }
        }
    }
    if mrt.is_some() {
        scenarios.push(replay());
    } else if scenarios.is_empty() {
        scenarios.extend(known);
    }
    if peers.is_empty() {
        peers.extend(Daemon::ALL);
    }
    let rig = Rig::new()?;
    println!("{}; daemon on CPU 0, neighbors on CPU 1; median of {runs} runs", machine());
    for s in &scenarios {
        println!("\n{} {}", s.name, s.title);
        println!(
            "{:<10} {:<10} {:>10} {:>7} {:>10} {:>7} {:>9} {:>7}",
            "daemon", "step", "seconds", "ratio", "CPU s", "ratio", "peak MiB", "ratio"
        );
        let mut base: BTreeMap<String, [f64; 3]> = BTreeMap::new();
        for d in &peers {
            if d.program().is_some_and(|p| !Path::new(p).exists()) {
                println!("{:<10} not installed", d.name());
                continue;
            }
            if s.then == Then::Kernel && !d.has_kernel() {
                println!("{:<10} not alone: it takes another process", d.name());
                continue;
            }
            let run = || {
                let kernel = s.then == Then::Kernel;
                if kernel {
                    rig.direct(true)?;
                }
                let run = rig.run(*d, s, mrt.as_deref());
                if kernel {
                    rig.direct(false)?;
                }
                run
            };
            let outcome: Result<Vec<Run>> = (0..runs).map(|_| run()).collect();
            match outcome {
                Ok(outcome) => report(*d, outcome, &mut base),
                Err(e) => println!("{:<10} {e:#}", d.name()),
            }
        }
    }
    println!("\nratio: of this daemon to the first one of the table");
    Ok(())
}

/// What our agent is started with: a datastore with the neighbors in it, nothing else.
fn agent_args(s: &Scenario, dir: &Path) -> Result<Vec<String>> {
    let peers: Vec<_> = (0..s.sessions()).map(|n| (s.address(n), s.asn(n))).collect();
    let url = kernel::datastore(dir, &peers)?;
    let state = dir.join("state").display().to_string();
    let ip = format!("{TARGET}/8");
    let words = ["run", "--node-name", "n1", "--ip", &ip, "--datastore", &url, "--state-dir", &state];
    Ok(words.map(str::to_owned).to_vec())
}

fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("?");
    format!("{cpus} x {}, Linux {}", model.trim_start_matches([' ', '\t', ':']), kernel.trim())
}

/// One line for each kind of step: medians over all runs and repetitions, and the ratio to the first daemon.
fn report(d: Daemon, runs: Vec<Run>, base: &mut BTreeMap<String, [f64; 3]>) {
    let mut order: Vec<String> = vec![];
    let mut all: BTreeMap<String, (Vec<[f64; 3]>, String)> = BTreeMap::new();
    for (step, cost) in runs.into_iter().flatten() {
        if !order.contains(&step.name) {
            order.push(step.name.clone());
        }
        let (costs, wrong) = all.entry(step.name).or_default();
        costs.push(cost);
        if wrong.is_empty() {
            *wrong = step.wrong;
        }
    }
    for name in order {
        let Some((costs, wrong)) = all.remove(&name) else { continue };
        let median = [0, 1, 2].map(|i| {
            let mut v: Vec<f64> = costs.iter().map(|c| c[i]).collect();
            v.sort_by(f64::total_cmp);
            v[v.len() / 2]
        });
        let first = *base.entry(name.clone()).or_insert(median);
        let ratio = |i: usize| if first[i] > 0.0 { median[i] / first[i] } else { 0.0 };
        println!(
            "{:<10} {name:<10} {:>10.4} {:>6.1}x {:>10.4} {:>6.1}x {:>9.1} {:>6.1}x{}{wrong}",
            d.name(),
            median[0],
            ratio(0),
            median[1],
            ratio(1),
            median[2],
            ratio(2),
            if wrong.is_empty() { "" } else { "  NOT EXACT: " }
        );
    }
}

/// Two namespaces with a cable between them.
struct Rig {
    names: [String; 2],
    spaces: [NetNs; 2],
    dir: PathBuf,
}

impl Rig {
    fn new() -> Result<Self> {
        let names = ["d", "g"].map(|n| format!("bt-{}-{n}", std::process::id()));
        let [d, g] = &names;
        let spaces = [NetNs::create(d)?, NetNs::create(g)?];
        let dir = std::env::temp_dir().join(format!("bench-bgp-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let rig = Self { names: names.clone(), spaces, dir };
        for line in [
            format!("-n {d} link set lo up"),
            format!("-n {g} link set lo up"),
            format!("-n {d} link add v0 type veth peer name v1 netns {g}"),
            format!("-n {d} address add {TARGET}/8 dev v0"),
            format!("-n {d} link set v0 up"),
            format!("-n {g} link set v1 up"),
            format!("-n {g} address add 10.0.0.2/8 dev v1"),
            // Every neighbor's address is local in one stroke.
            format!("-n {g} route add local 10.1.0.0/16 dev v1"),
            // And found without a question for each.
            format!("-n {d} route add 10.1.0.0/16 via 10.0.0.2"),
        ] {
            ip(&line)?;
        }
        Ok(rig)
    }

    /// For routes into the kernel the neighbors are on the wire, so that they can be next hops; and nothing is left of an
    /// earlier run. False: as it was made.
    fn direct(&self, on: bool) -> Result<()> {
        let [d, _] = &self.names;
        let change = if on { "del" } else { "add" };
        ip(&format!("-n {d} route {change} 10.1.0.0/16 via 10.0.0.2"))?;
        ["172.16.0.0/12", "20.0.0.0/8"].iter().try_for_each(|p| ip(&format!("-n {d} route flush root {p}")))
    }

    fn run(&self, d: Daemon, s: &Scenario, mrt: Option<&Path>) -> Result<Run> {
        let dir = self.dir.join(d.name());
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        open_to_all(&self.dir)?;
        open_to_all(&dir)?;
        let (name, text) = d.config(s, &dir);
        let file = dir.join(name);
        fs::write(&file, text)?;
        let agent = d == Daemon::Brindle && s.then == Then::Kernel;
        let ours = if agent { "brindle-node" } else { "brindle-bgpd" };
        let program = d.program().map_or_else(|| brindle_integration::bins::bin(ours), PathBuf::from);
        let args = if agent { agent_args(s, &dir)? } else { d.args(&file, &dir) };
        let log = fs::File::create(dir.join("out"))?;
        let mut command = pinned(&program, "0");
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let [space, others] = &self.spaces;
        if d == Daemon::OpenBgpd {
            // Its processes shut themselves in there; the service manager would make it.
            fs::create_dir_all("/run/openbgpd")?;
        }
        let mut daemon = Ended(space.run(|| command.spawn())??);
        self.listens(&mut daemon.0, &dir)?;

        let mut command = pinned(&std::env::current_exe()?, "1");
        command.arg("generate").arg(s.name).args(mrt).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut neighbors = Ended(others.run(|| command.spawn())??);
        let mut lines = BufReader::new(neighbors.0.stdout.take().context("a pipe")?);
        let mut input = neighbors.0.stdin.take().context("a pipe")?;
        ensure!(line(&mut lines)?.as_deref() == Some("ready"), "the neighbors did not start");
        let mut steps = Vec::new();
        let mut watch = (s.then == Then::Kernel).then(|| Watch::start(space, s)).transpose()?;
        let mut before = cpu(daemon.0.id());
        input.write_all(b"\n")?;
        while let Some(text) = line(&mut lines)? {
            let mut step: Step = serde_json::from_str(&text).with_context(|| text.clone())?;
            if let Some(watch) = watch.take() {
                step.seconds = watch.since(step.seconds)?;
            }
            if daemon.0.try_wait()?.is_some() {
                bail!("the daemon ended: {}", last_words(&dir));
            }
            let now = cpu(daemon.0.id());
            let cost = [step.seconds, now - before, peak(daemon.0.id())];
            steps.push((step, cost));
            before = cpu(daemon.0.id());
            input.write_all(b"\n")?;
        }
        ensure!(!steps.is_empty(), "the neighbors said nothing");
        Ok(steps)
    }

    /// Waits for the listening socket.
    fn listens(&self, daemon: &mut Child, dir: &Path) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let [name, _] = &self.names;
        while Instant::now() < deadline {
            if let Some(status) = daemon.try_wait()? {
                bail!("ended at once ({status}): {}", last_words(dir));
            }
            let ss =
                Command::new("ip").args(["netns", "exec", name, "ss", "-Hltn", "sport = :179"]).output()?;
            if !ss.stdout.is_empty() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("does not listen")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(e) = NetNs::delete(name) {
                eprintln!("{name}: {e}");
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A child with everything it started, ended with it.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let family = family(self.0.id());
        for signal in ["-TERM", "-KILL"] {
            for pid in &family {
                let _ = Command::new("kill").args([signal, &pid.to_string()]).stderr(Stdio::null()).status();
            }
            let deadline = Instant::now() + Duration::from_secs(3);
            while Instant::now() < deadline && family.iter().any(|p| alive(*p)) {
                let _ = self.0.try_wait();
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = self.0.wait();
    }
}

fn ip(line: &str) -> Result<()> {
    let done = Command::new("ip").args(line.split(' ')).status().context("cannot run ip")?;
    ensure!(done.success(), "ip {line} failed");
    Ok(())
}

fn pinned(program: &Path, cpu: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cpu]).arg(program);
    command
}

fn line(from: &mut BufReader<ChildStdout>) -> Result<Option<String>> {
    let mut text = String::new();
    Ok((from.read_line(&mut text)? > 0).then(|| text.trim().to_owned()))
}

fn open_to_all(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?)
}

fn last_words(dir: &Path) -> String {
    let text = fs::read_to_string(dir.join("out")).unwrap_or_default();
    text.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
}

fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|s| !s.is_empty() && !s.trim_start().starts_with('Z'))
}

/// A process and all below it.
fn family(root: u32) -> Vec<u32> {
    let mut all = vec![root];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|p| p.parse::<u32>().ok()));
        }
        at += 1;
    }
    all
}

/// Seconds of processor time of a process, its threads and children.
fn cpu(root: u32) -> f64 {
    let mut ns = 0u64;
    for pid in family(root) {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let stat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            ns += stat.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(ns).as_secs_f64()
}

/// MiB of memory at the peak, summed over a process and its children.
fn peak(root: u32) -> f64 {
    let of = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:").map(str::to_owned));
        line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<f64>().ok()).unwrap_or(0.0)
    };
    family(root).into_iter().map(of).sum::<f64>() / 1024.0
}
