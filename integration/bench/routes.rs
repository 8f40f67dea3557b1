//! Bulk routes: the route batcher beside `ip -batch` in the same run. Needs root; works in namespaces of its own.
//!
//! `cargo run --release -p brindle-integration --bin bench-routes [-- ROUTES [RUNS]]`
#![allow(clippy::print_stdout, reason = "the table is the product")]

use std::{
    fmt::Write as _,
    io::Write as _,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use brindle_kernel::{
    exec,
    netlink::{Family, Route, RouteBatcher, RouteChange, RouteFilter, Rtnl, Veth, VethPeer, scope},
    netns::NetNs,
};

const LONG: Duration = Duration::from_secs(300);

/// A fresh namespace with a device `v0` that is up; removed with everything in it when dropped.
struct Bench {
    ns: NetNs,
    name: String,
    dev: u32,
}

impl Bench {
    fn new(tag: &str) -> Result<Self> {
        let name = format!("bt-{}-{tag}", std::process::id());
        let ns = NetNs::create(&name)?;
        let mut bench = Self { ns, name, dev: 0 };
        let mut nl = bench.rtnl()?;
        nl.set_up("lo")?;
        let peer = VethPeer { name: "v1", ..Default::default() };
        nl.add_veth(&Veth { name: "v0", up: true, peer, ..Default::default() })?;
        nl.set_up("v1")?;
        bench.dev = nl.link_by_name("v0")?.context("v0 is gone")?.index;
        Ok(bench)
    }

    fn rtnl(&self) -> Result<Rtnl> {
        Ok(Rtnl::open_in(&self.ns)?)
    }

    fn count(&self) -> Result<usize> {
        let filter = RouteFilter { protocol: Some(80), family: Some(Family::V4), ..RouteFilter::main() };
        Ok(self.rtnl()?.routes(&filter)?.len())
    }

    fn route(&self, i: u32) -> Route {
        let host = Ipv4Addr::from(0x0a40_0000 + i);
        Route::new(ipnet::IpNet::from(std::net::IpAddr::from(host)))
            .dev(self.dev)
            .with_protocol(80)
            .with_scope(scope::LINK)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.name);
    }
}

fn ip_batch(b: &Bench, verb: &str, n: u32) -> Result<Duration> {
    let mut text = String::new();
    for i in 0..n {
        writeln!(text, "route {verb} {}/32 dev v0 scope link proto 80", Ipv4Addr::from(0x0a40_0000 + i))?;
    }
    let path = std::env::temp_dir().join(format!("{}-{verb}.batch", b.name));
    std::fs::File::create(&path)?.write_all(text.as_bytes())?;
    let start = Instant::now();
    let out = exec::run("ip", ["-n", &b.name, "-batch", &path.to_string_lossy()], None, LONG);
    let took = start.elapsed();
    std::fs::remove_file(&path)?;
    out?.success()?;
    Ok(took)
}

fn ours(b: &Bench, change: fn(Route) -> RouteChange, n: u32) -> Result<Duration> {
    let start = Instant::now();
    let mut batcher = RouteBatcher::open_in(&b.ns)?;
    let changes: Vec<_> = (0..n).map(|i| change(b.route(i))).collect();
    let report = batcher.apply(&changes);
    let took = start.elapsed();
    if let Some(e) = report.broken {
        bail!("the bulk broke: {e}");
    }
    ensure!(report.refused.is_empty(), "refused: {}", report.refused[0].error);
    Ok(took)
}

fn dump(b: &Bench, n: u32) -> Result<Duration> {
    let start = Instant::now();
    ensure!(b.count()? == n as usize, "the kernel holds another number of routes");
    Ok(start.elapsed())
}

fn machine() -> String {
    let read = |p: &str| std::fs::read_to_string(p).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map_or("?", |l| l.trim_start_matches([' ', '\t', ':']));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!("Linux {}, {cpus} x {model}", read("/proc/sys/kernel/osrelease").trim())
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u32>());
    let n = args.next().transpose()?.unwrap_or(100_000);
    let runs = args.next().transpose()?.unwrap_or(3);
    println!("machine: {}", machine());
    println!("{n} routes /32 `dev v0 scope link proto 80`; seconds; ratio = ip -batch / brindle");
    println!("{:<22} {:>9} {:>9} {:>7}", "", "ip -batch", "brindle", "ratio");
    let mut worst = f64::INFINITY;
    for run in 1..=runs {
        let theirs = Bench::new("ip")?;
        let mine = Bench::new("br")?;
        let rows = [
            ("add", ip_batch(&theirs, "add", n)?, ours(&mine, RouteChange::Add, n)?),
            ("replace, unchanged", ip_batch(&theirs, "replace", n)?, ours(&mine, RouteChange::Replace, n)?),
            ("read back", dump(&theirs, n)?, dump(&mine, n)?),
            ("delete", ip_batch(&theirs, "del", n)?, ours(&mine, RouteChange::Delete, n)?),
        ];
        ensure!(mine.count()? == 0 && theirs.count()? == 0, "routes are left over");
        for (what, ip, br) in rows {
            let (ip, br) = (ip.as_secs_f64(), br.as_secs_f64());
            if what == "read back" {
                println!("run {run} {what:<16} {:>9} {br:>9.3}", "");
                continue;
            }
            println!("run {run} {what:<16} {ip:>9.3} {br:>9.3} {:>6.1}x", ip / br);
            if what == "add" {
                worst = worst.min(ip / br);
            }
        }
    }
    println!("worst ratio of add: {worst:.1}x (goal: at least 2.0x)");
    ensure!(worst >= 2.0, "adding routes took more than half the time of ip -batch");
    Ok(())
}
