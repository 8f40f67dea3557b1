//! brindlectl's figures: a cold `version`, and `get` of many endpoints on each kind of datastore: time to the last line
//! and peak memory. There is no peer to pair with; a start is shown beside that of the smallest program there is.
//!
//! `cargo run --release -p brindle-integration --bin bench-cli [-- ENDPOINTS]` (default 10,000)
#![allow(clippy::print_stdout, reason = "the table is the product")]

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use brindle_config_core::{
    Key, Kind,
    store::{Expect, Store},
};
use brindle_integration::{bins::bin, kube::ApiServer, transcript, wait};
use serde_json::json;

const ENDPOINTS: usize = 10_000;
/// Enough that hundredths of a second say something.
const STARTS: usize = 200;
const STARTS_F: f64 = STARTS as f64;
const GETS: usize = 5;

/// Goals of the project.
const GOAL_START_MS: f64 = 5.0;
const GOAL_GET_S: f64 = 1.0;
const GOAL_GET_MIB: f64 = 100.0;

fn row(what: &str, value: f64, unit: &str, goal: Option<f64>) {
    let goal = goal.map_or_else(String::new, |g| {
        format!("goal {g} {unit}: {}", if value <= g { "met" } else { "MISSED" })
    });
    println!("{what:<52} {value:>9.2} {unit:<4} {goal}");
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<()> {
    let count = match std::env::args().nth(1) {
        Some(text) => text.parse().with_context(|| format!("{text:?} is no number of endpoints"))?,
        None => ENDPOINTS,
    };
    starts()?;
    let dir = std::env::temp_dir().join(format!("brindle-bench-cli-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let result = stores(&dir, count);
    fs::remove_dir_all(&dir)?;
    result
}

/// A process that only says its version; beside the smallest program there is. On a busy machine the time is that of
/// waiting for a processor: what the start itself costs is its processor time and its page faults.
fn starts() -> Result<()> {
    let measure = |what: &str, program: &Path, args: &[&str], goal: Option<f64>| -> Result<()> {
        let run = || -> Result<f64> {
            let start = Instant::now();
            let out = Command::new(program).args(args).env_clear().output()?;
            ensure!(out.status.success(), "{} {args:?} failed", program.display());
            Ok(start.elapsed().as_secs_f64() * 1000.0)
        };
        // Its pages are in memory then.
        run()?;
        let before = Children::so_far()?;
        let mut times = (0..STARTS).map(|_| run()).collect::<Result<Vec<_>>>()?;
        let cost = Children::so_far()?;
        row(&format!("{what}, median"), median(&mut times), "ms", goal);
        row("  best", times.first().copied().unwrap_or(f64::NAN), "ms", None);
        row("  processor time", (cost.ticks - before.ticks) * 10.0 / STARTS_F, "ms", None);
        row("  page faults", (cost.faults - before.faults) / STARTS_F, "", None);
        Ok(())
    };
    measure("brindlectl version", &bin("brindlectl"), &["version"], Some(GOAL_START_MS))?;
    measure("for scale: /bin/true", Path::new("/bin/true"), &[], None)
}

/// What the children that have ended used: hundredths of a second (USER_HZ is 100 on every Linux), page faults.
struct Children {
    ticks: f64,
    faults: f64,
}

impl Children {
    fn so_far() -> Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let after = stat.rsplit_once(')').context("/proc/self/stat")?.1;
        let field = |n: usize| -> Result<f64> {
            Ok(after.split_whitespace().nth(n).context("/proc/self/stat is short")?.parse()?)
        };
        Ok(Self { ticks: field(13)? + field(14)?, faults: field(8)? })
    }
}

fn stores(dir: &Path, count: usize) -> Result<()> {
    let sqlite = format!("sqlite:{}", dir.join("bench.db").display());
    fill(&sqlite, count)?;
    gets("sqlite", &sqlite, count)?;
    let (url, server) = transcript::etcd(dir, None);
    wait::until("etcd answers", Duration::from_secs(60), || {
        let out = Command::new(bin("brindlectl")).args(["get", "nodes", "--datastore", &url]).output();
        match out {
            Ok(out) if out.status.success() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    fill(&url, count)?;
    gets("etcd", &url, count)?;
    drop(server);
    let (url, server) = kubernetes(dir, count)?;
    gets("kubernetes", &url, count)?;
    drop(server);
    Ok(())
}

/// The API server of the tests, in this process, with pods on a hundred nodes.
fn kubernetes(dir: &Path, count: usize) -> Result<(String, ApiServer)> {
    let server = ApiServer::new();
    let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    for entry in fs::read_dir(&crds).with_context(|| format!("cannot read {}", crds.display()))? {
        let file = entry?.path();
        if !file.ends_with("kustomization.yaml") {
            server.load(&file).map_err(anyhow::Error::msg)?;
        }
    }
    server.populate(100, count, 0);
    let config = dir.join("kubeconfig");
    server.write_kubeconfig(&config, server.admin_token());
    Ok((format!("kubernetes:{}", config.display()), server))
}

fn fill(url: &str, count: usize) -> Result<()> {
    let store = brindle_config::open(url)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for n in 0..count {
            put(&*store, n).await?;
        }
        Ok(())
    })
}

/// An endpoint as the CNI plugin writes it.
async fn put(store: &dyn Store, n: usize) -> Result<()> {
    let (node, name) = (n % 100, format!("node--{}-k8s-web--{n}-eth0", n % 100));
    let key = Key { kind: Kind::WorkloadEndpoint, namespace: format!("team-{}", n % 20), name: name.clone() };
    let value = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "WorkloadEndpoint",
        "metadata": {"name": name, "namespace": key.namespace, "labels": {
            "app": format!("web-{}", n % 50), "projectcalico.org/namespace": key.namespace,
            "projectcalico.org/orchestrator": "k8s", "projectcalico.org/serviceaccount": "default",
        }},
        "spec": {
            "orchestrator": "k8s", "node": format!("node-{node}"), "pod": format!("web-{n}"), "endpoint": "eth0",
            "containerID": format!("{n:064x}"), "interfaceName": format!("cali{n:011x}"),
            "mac": "ee:ee:ee:ee:ee:ee",
            "ipNetworks": [format!("10.{}.{}.{}/32", n >> 16 & 255, n >> 8 & 255, n & 255)],
            "profiles": [format!("kns.{}", key.namespace)],
        },
    });
    store.put(&key, value, Expect::Absent).await.with_context(|| format!("cannot write {key}"))?;
    Ok(())
}

fn gets(store: &str, url: &str, count: usize) -> Result<()> {
    let forms = [
        ("table", &[][..]),
        ("json", &["-o", "json"]),
        ("yaml", &["-o", "yaml"]),
        ("jsonpath", &["-o", r#"jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}"#]),
    ];
    for (form, args) in forms {
        let (mut times, mut peaks) = (Vec::new(), Vec::new());
        for _ in 0..GETS {
            let (seconds, mib, lines) = get(url, args)?;
            ensure!(lines >= count, "{store} {form}: only {lines} lines");
            times.push(seconds);
            peaks.push(mib);
        }
        let what = |unit: &str| format!("{store}: get weps -A, {count} endpoints, {form}, {unit}");
        row(&what("last line"), median(&mut times), "s", Some(GOAL_GET_S));
        row(&what("peak memory"), median(&mut peaks), "MiB", Some(GOAL_GET_MIB));
    }
    Ok(())
}

/// Seconds to the last line, peak resident MiB, lines. The peak is read while output is still waiting in the pipe.
fn get(url: &str, more: &[&str]) -> Result<(f64, f64, usize)> {
    let start = Instant::now();
    let mut child = Command::new(bin("brindlectl"))
        .args(["get", "weps", "-A", "--datastore", url])
        .args(more)
        .stdout(Stdio::piped())
        .spawn()?;
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut out = child.stdout.take().context("stdout is piped")?;
    let (mut buffer, mut lines, mut peak) = (vec![0; 32 * 1024], 0, 0.0);
    loop {
        let n = out.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        lines += buffer.iter().take(n).filter(|b| **b == b'\n').count();
        let text = fs::read_to_string(&status).unwrap_or_default();
        let kib = text
            .lines()
            .find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
        peak = kib.unwrap_or(0.0).max(peak);
    }
    let seconds = start.elapsed().as_secs_f64();
    ensure!(child.wait()?.success(), "get failed");
    Ok((seconds, peak / 1024.0, lines))
}
