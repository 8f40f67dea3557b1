//! Bulk routes: the route batcher beside `ip -batch` in the same run; felix coming up empty, and again with everything
//! in place. Needs root; works in namespaces of its own.
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
use brindle_config_core::{
    ObjectMeta, Resource,
    node::{NodeAddress, NodeBgpSpec, NodeSpec},
    store::{Entry, Revision, SyncEvent},
};
use brindle_felix::{CarrierPolicy, FelixInput, FibUpdate, Report, Settings};
use brindle_kernel::{
    exec,
    netlink::{Addr, Family, Route, RouteBatcher, RouteChange, RouteFilter, Rtnl, Veth, VethPeer, scope},
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

/// Felix from start to everything written and reported, with `n` learned prefixes: its report and the time.
fn felix(b: &Bench, n: u32) -> Result<(Report, Duration)> {
    let bgp = NodeBgpSpec { ipv4_address: Some(NodeAddress("10.9.0.1/24".parse()?)), ..Default::default() };
    let node = Resource::new(ObjectMeta::named("n1"), NodeSpec { bgp: Some(bgp), ..Default::default() });
    let value = serde_json::to_value(&node)?.into();
    let entry = Entry { key: node.key(), revision: Revision(1), value };
    let hop: std::net::IpAddr = "10.9.0.2".parse()?;
    let prefix = |i| ipnet::IpNet::from(std::net::IpAddr::from(Ipv4Addr::from(0x0a40_0000 + i)));
    let changes = (0..n).map(|i| (prefix(i), vec![hop])).collect();
    let run = move || -> Result<(Report, Duration)> {
        let settings = Settings {
            node: "n1".into(),
            state_dir: "/nonexistent".into(),
            carrier: CarrierPolicy::Auto,
            carrier_args: Vec::new(),
            bird: None,
        };
        let start = Instant::now();
        let handle = brindle_felix::spawn(&settings)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(async {
            handle.send(FelixInput::Store(vec![SyncEvent::Upsert(entry), SyncEvent::InSync])).await;
            handle.send(FelixInput::Fib(FibUpdate { changes, in_sync: true, ..FibUpdate::default() })).await;
            let mut watch = handle.watch();
            let all = |r: &Report| r.routes.in_sync && r.routes.desired == n as usize;
            let report = tokio::time::timeout(LONG, watch.wait_for(all)).await??.clone();
            Ok((report, start.elapsed()))
        })
    };
    b.ns.run(run)?
}

/// Felix on an empty table, and once more on what it has written.
fn restart(n: u32) -> Result<(Duration, Duration)> {
    let b = Bench::new("fx")?;
    b.rtnl()?.add_addr(&Addr::new(b.dev, "10.9.0.1/24".parse()?))?;
    let (report, first) = felix(&b, n)?;
    ensure!(report.routes.writes == u64::from(n), "{} writes for {n} routes", report.routes.writes);
    let (report, again) = felix(&b, n)?;
    ensure!(report.routes.writes == 0, "a restart wrote {} routes", report.routes.writes);
    ensure!(b.count()? == n as usize, "routes are missing after the restart");
    Ok((first, again))
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
    let mut slowest = 0.0_f64;
    for run in 1..=runs {
        let (first, again) = restart(n)?;
        println!("run {run} felix from empty  {:>19.3}", first.as_secs_f64());
        println!("run {run} felix restarted, 0 writes {:>13.3}", again.as_secs_f64());
        slowest = slowest.max(again.as_secs_f64());
    }
    println!("worst ratio of add: {worst:.1}x (goal: at least 2.0x)");
    println!("slowest restart: {slowest:.2} s (goal: at most 1.5 s)");
    ensure!(worst >= 2.0, "adding routes took more than half the time of ip -batch");
    ensure!(n > 100_000 || slowest <= 1.5, "a restart took longer than 1.5 s");
    Ok(())
}
