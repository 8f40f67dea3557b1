//! `bench-policy [--pods N] [--policies N] [--cluster N] [--rounds N] [--packets N] [--back-end B]`: what network policy
//! costs. The start of a node with everything to write, beside what the kernel's tools take of it; one pod that appears
//! elsewhere and is a member of fifty sets, and one new pod here, each some times; and a packet's way through the rules
//! with ever more policies in the cluster. Needs root; everything happens in namespaces of its own, and each back end
//! starts in a process of its own, so that its memory is its own.
#![allow(clippy::print_stdout, reason = "the table is the product")]

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use brindle_config_core::{
    Key, Kind,
    store::{Entry, Revision, SyncEvent},
};
use brindle_felix::policy::{
    Calculation, PolicyHandle, PolicyInput, PolicyReport, PolicySetup, spawn_policy,
};
use brindle_felix_core::{
    calc::{Graph, Scope},
    policy::active::PolicyDelta,
};
use brindle_integration::{
    netns::TestNs,
    policy::{
        lab::{BackEnd, PolicyLab},
        world::{base, gnp},
    },
};
use brindle_kernel::{netfilter::Tools, netns::NetNs};
use serde_json::{Value, json};

/// Clock ticks of /proc per second.
const TICKS: u64 = 100;
/// Sets that the pod appearing elsewhere is a member of.
const SETS: usize = 50;

/// Events in one batch of the store's follower at most.
const BATCH: usize = 1024;

struct Args {
    pods: usize,
    policies: usize,
    cluster: usize,
    rounds: usize,
    packets: u32,
    /// Just the start, with one back end: what the process of each is told.
    start: bool,
    back_ends: Vec<BackEnd>,
}

fn args() -> Result<Args> {
    let mut a = Args {
        pods: 250,
        policies: 2000,
        cluster: 20_000,
        rounds: 10,
        packets: 100_000,
        start: false,
        back_ends: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        let number = || value.parse::<usize>().with_context(|| format!("{word}: expected a number"));
        match word.as_str() {
            "--pods" => a.pods = number()?,
            "--policies" => a.policies = number()?,
            "--cluster" => a.cluster = number()?,
            "--rounds" => a.rounds = number()?.max(1),
            "--start" => a.start = value == "yes",
            "--packets" => a.packets = u32::try_from(number()?)?,
            "--back-end" => {
                let b = BackEnd::ALL.into_iter().find(|b| b.name() == value);
                a.back_ends.push(b.with_context(|| format!("no back end {value:?}"))?);
            }
            _ => bail!("unknown argument {word}"),
        }
    }
    if a.back_ends.is_empty() {
        a.back_ends = BackEnd::ALL.into();
    }
    Ok(a)
}

fn main() -> Result<()> {
    // As the agent does.
    brindle_kernel::memory::limit_arenas(2);
    let args = args()?;
    if args.start {
        return args.back_ends.iter().try_for_each(|b| start(&args, *b));
    }
    println!("{} pods here, {} policies, {} pods in the cluster", args.pods, args.policies, args.cluster);
    println!("of {} rounds the middle one and the worst; memory in sync and after give_back\n", args.rounds);
    println!(
        "{:<16} {:>8} {:>8} {:>10} {:>6} {:>12} {:>20} {:>20} {:>28}",
        "",
        "in sync",
        "own CPU",
        "tools' CPU",
        "ratio",
        "RSS, MiB",
        "one of 50 sets, ms",
        "new pod here, ms",
        "3000, 20000 leave a set, ms"
    );
    for b in &args.back_ends {
        let numbers = [args.pods, args.policies, args.cluster, args.rounds].map(|n| n.to_string());
        let [pods, policies, cluster, rounds] = &numbers;
        let status = std::process::Command::new(std::env::current_exe()?)
            .args(["--start", "yes", "--back-end", b.name(), "--rounds", rounds])
            .args(["--pods", pods, "--policies", policies, "--cluster", cluster])
            .status()?;
        if !status.success() {
            bail!("{} did not start: {status}", b.name());
        }
    }
    if args.packets == 0 {
        return Ok(());
    }
    println!("\nµs per packet that policy judges, and of an established flow; 3 policies apply to the pod");
    println!(
        "{:<16} {:>10} {:>8} {:>8} {:>8} {:>22} {:>8} {:>6}",
        "", "no policy", "10", "100", "1000", "established, no policy", "1000", "ratio"
    );
    for b in &args.back_ends {
        packets(&args, *b)?;
    }
    Ok(())
}

/// The calculation graph, as the agent has it.
struct Calculated(Graph);

impl Calculation for Calculated {
    fn apply(&mut self, event: &SyncEvent) {
        self.0.handle(event);
    }

    fn flush(&mut self) -> Vec<PolicyDelta> {
        self.0.flush()
    }
}

fn event(value: Value) -> Result<SyncEvent> {
    let text = |at: &str| value.pointer(at).and_then(Value::as_str);
    let kind = Kind::parse_written(text("/apiVersion"), text("/kind").unwrap_or_default())
        .context("a known kind")?;
    let key = Key::new(kind, text("/metadata/namespace"), text("/metadata/name").unwrap_or_default());
    Ok(SyncEvent::Upsert(Entry { key, revision: Revision(1), value: value.into() }))
}

fn pod(i: usize, node: &str, labels: &Value) -> Value {
    let namespace = format!("ns-{}", i % 100);
    json!({"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
        "metadata": {"name": format!("pod-{i}"), "namespace": namespace, "labels": labels},
        "spec": {"orchestrator": "k8s", "node": node, "endpoint": "eth0",
            "interfaceName": format!("cali{i:011x}"), "profiles": [format!("kns.{namespace}")],
            "ipNetworks": [format!("10.{}.{}.{}/32", 10 + i / 65_536, i / 256 % 256, i % 256)]}})
}

/// Groups of forty for the policies' targets, five hundred applications for their peers. Made one by one, as they come
/// from a store.
fn events(args: &Args, b: BackEnd) -> impl Iterator<Item = Result<SyncEvent>> {
    let felix = event(json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
        "metadata": {"name": "default"}, "spec": b.configuration()}));
    let local = args.pods;
    let pods = (0..args.cluster.max(local)).map(move |i| {
        let node = if i < local { "n1".to_owned() } else { format!("far-{}", i % 99) };
        let labels = json!({"app": format!("app-{}", i % 500), "group": format!("g-{}", i % 40)});
        event(pod(i, &node, &labels))
    });
    let policies = (0..args.policies).map(|i| {
        let source = if i < SETS {
            format!("special == 'yes' && rank != '{i}'")
        } else {
            format!("app == 'app-{}'", i % 500)
        };
        event(gnp(
            &format!("policy-{i}"),
            json!({"selector": format!("group == 'g-{}'", i % 40), "types": ["Ingress"], "ingress": [
                {"action": "Allow", "protocol": "TCP", "source": {"selector": source},
                    "destination": {"ports": [8080 + i % 10]}}]}),
        ))
    });
    std::iter::once(felix).chain(pods).chain(policies).chain([Ok(SyncEvent::InSync)])
}

/// User and system time of this process and of the children it has waited for.
fn cpu() -> Result<(Duration, Duration)> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let (_, rest) = text.rsplit_once(')').context("/proc/self/stat")?;
    let fields: Vec<u64> = rest.split_whitespace().skip(11).take(4).filter_map(|f| f.parse().ok()).collect();
    let [user, system, children_user, children_system] = fields[..] else { bail!("/proc/self/stat") };
    let time = |ticks: u64| Duration::from_millis(ticks * 1000 / TICKS);
    Ok((time(user + system), time(children_user + children_system)))
}

/// Processor time of the calling thread, which plays the store.
fn store_cpu() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let first = text.split_whitespace().next().context("/proc/thread-self/schedstat")?;
    Ok(Duration::from_nanos(first.parse()?))
}

fn rss() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.split_whitespace().next().unwrap_or_default().parse::<u64>()? / 1024)
}

struct Running {
    runtime: tokio::runtime::Runtime,
    handle: PolicyHandle,
}

impl Running {
    /// Hands over what a store says, in batches of the size its follower makes.
    fn feed(&self, events: impl Iterator<Item = Result<SyncEvent>>) -> Result<()> {
        let mut events = events.peekable();
        while events.peek().is_some() {
            let batch = events.by_ref().take(BATCH).collect::<Result<Vec<_>>>()?;
            if !self.runtime.block_on(self.handle.send(PolicyInput::Store(batch))) {
                bail!("the policy thread is gone");
            }
        }
        Ok(())
    }

    /// From an event of the store until what follows is in the kernel. Flows that are denied now are cut after that.
    fn written(&self, event: SyncEvent) -> Result<Duration> {
        let begin = Instant::now();
        self.runtime.block_on(async {
            let (tx, rx) = tokio::sync::oneshot::channel();
            let sent = self.handle.send(PolicyInput::Store(vec![event])).await
                && self.handle.send(PolicyInput::Heard(tx)).await;
            if !sent {
                bail!("the policy thread is gone");
            }
            Ok(tokio::time::timeout(Duration::from_secs(300), rx).await??)
        })?;
        Ok(begin.elapsed())
    }

    /// Tells the thread and waits until it has done what follows.
    fn tell(&self, events: Vec<SyncEvent>) -> Result<PolicyReport> {
        self.runtime.block_on(async {
            let (tx, rx) = tokio::sync::oneshot::channel();
            let sent = self.handle.send(PolicyInput::Store(events)).await
                && self.handle.send(PolicyInput::Ask(tx)).await;
            if !sent {
                bail!("the policy thread is gone");
            }
            Ok(tokio::time::timeout(Duration::from_secs(300), rx).await??)
        })
    }
}

fn start(args: &Args, b: BackEnd) -> Result<()> {
    let ns = TestNs::new(&format!("bp{}", b.name()));
    let setup =
        PolicySetup { node: "n1".into(), families: Vec::new(), prefixes: Vec::new(), calico: || None };
    let calculation = Calculated(Graph::new(Scope::Node("n1".into())));
    let (own, tools) = cpu()?;
    let store = store_cpu()?;
    let begin = Instant::now();
    let handle =
        ns.ns().run(|| spawn_policy(&setup, Box::new(Tools::default()), Box::new(calculation)))??;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let running = Running { runtime, handle };
    running.feed(events(args, b))?;
    let report = running.tell(Vec::new())?;
    let whole = begin.elapsed();
    if !report.in_sync || report.ready.len() != args.pods {
        bail!("not in sync: {:?}, {} ready", report.problems, report.ready.len());
    }
    let store = store_cpu()?.saturating_sub(store);
    let own = cpu()?.0.saturating_sub(own).saturating_sub(store);
    let tools = cpu()?.1.saturating_sub(tools);
    let in_sync = rss()?;
    brindle_kernel::memory::give_back()?;
    let after = rss()?;

    let (mut member, mut here) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        let special = json!({"app": "app-1", "group": "none", "special": "yes"});
        let before = running.tell(Vec::new())?.counters;
        member.push(running.written(event(pod(args.cluster + 2 * round, "far-1", &special))?)?);
        let after = running.tell(Vec::new())?;
        let (x, y) = (before, after.counters);
        let writes = y.set_writes + y.nft_writes - x.set_writes - x.nft_writes;
        if writes != 1 || y.table_writes != x.table_writes {
            bail!("one batch was expected, not {x:?} and then {y:?}");
        }

        let labels = json!({"app": "app-7", "group": "g-7"});
        here.push(running.written(event(pod(args.cluster + 2 * round + 1, "n1", &labels))?)?);
        let last = running.tell(Vec::new())?;
        if last.ready.len() != args.pods + round + 1 {
            bail!("the new pod is not ready: {:?}", last.problems);
        }
    }
    let [few, many] = [3000, 20_000].map(|count| leave(&running, count));
    let (few, many) = (few?.as_secs_f64(), many?.as_secs_f64());
    let ratio = own.as_secs_f64() / tools.as_secs_f64().max(0.01);
    println!(
        "{:<16} {:>6.2} s {:>6.2} s {:>8.2} s {ratio:>6.2} {:>12} {:>20} {:>20} {:>28}",
        b.name(),
        whole.as_secs_f64(),
        own.as_secs_f64(),
        tools.as_secs_f64(),
        format!("{in_sync}, {after}"),
        middle_and_worst(member),
        middle_and_worst(here),
        format!("{:.1}, {:.1}", few * 1e3, many * 1e3)
    );
    Ok(())
}

/// So many members leave a set that a policy asks, all but ten.
fn leave(running: &Running, count: usize) -> Result<Duration> {
    let set = |count: usize| {
        let nets: Vec<String> = (0..count).map(|i| format!("11.{}.{}.0/25", i / 256, i % 256)).collect();
        event(json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet",
            "metadata": {"name": "crowd", "labels": {"crowd": "yes"}}, "spec": {"nets": nets}}))
    };
    let deny = json!({"selector": "all()", "types": ["Ingress"],
        "ingress": [{"action": "Deny", "source": {"selector": "crowd == 'yes'"}}]});
    running.tell(vec![event(gnp("crowd", deny))?, set(count)?])?;
    running.written(set(10)?)
}

fn middle_and_worst(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let ms = |d: Option<&Duration>| d.map_or(0.0, |d| d.as_secs_f64() * 1e3);
    format!("{:.1}, {:.1}", ms(times.get(times.len() / 2)), ms(times.last()))
}

/// Policies of the cluster, three of which apply to ns1/p1; the last of them lets the packets in.
fn policies(count: usize) -> Vec<Value> {
    let mut all = base();
    for i in 0..count {
        let (selector, action) = match i {
            0 | 1 => ("app == 'a' && tier == 'x'".to_owned(), json!({"action": "Log", "protocol": "SCTP"})),
            2 => ("app == 'a' && tier == 'x'".to_owned(), json!({"action": "Allow"})),
            i => (format!("app == 'other-{i}'"), json!({"action": "Deny"})),
        };
        all.push(gnp(
            &format!("p{i}"),
            json!({"order": i, "selector": selector, "types": ["Ingress"], "ingress": [action]}),
        ));
    }
    all
}

fn packets(args: &Args, b: BackEnd) -> Result<()> {
    let mut lab = PolicyLab::new(b);
    let (from, to) = (lab.site("ns2/p1"), lab.site("ns1/p1"));
    let target = SocketAddr::new(lab.sites[to].addresses[0], 9000);
    let ns = |lab: &PolicyLab, site| NetNs::named(lab.pod(site).ns.name());
    let (client_ns, server_ns) = (ns(&lab, from)?, ns(&lab, to)?);
    let server = server_ns.run(|| UdpSocket::bind(target))??;
    let mut cells = Vec::new();
    let mut established = Vec::new();
    for count in [0, 10, 100, 1000] {
        lab.set(&policies(count));
        let client = client_ns.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        let mut best = f64::MAX;
        for _ in 0..5 {
            best = best.min(burst(&client, target, args.packets / 5)?);
        }
        cells.push(best);
        // Answered once, the flow is known and no policy is asked any more.
        server.set_read_timeout(Some(Duration::from_secs(5)))?;
        let peer = server.recv_from(&mut [0; 64])?.1;
        server.send_to(b"answer", peer)?;
        client.set_read_timeout(Some(Duration::from_secs(5)))?;
        client.recv_from(&mut [0; 64])?;
        // With the policies of both ends of the row: how much dearer an established flow is than without any policy.
        if count == 0 || count == 1000 {
            let mut best = f64::MAX;
            for _ in 0..5 {
                best = best.min(burst(&client, target, args.packets / 5)?);
            }
            established.push(best);
        }
        server.set_nonblocking(true)?;
        while server.recv_from(&mut [0; 64]).is_ok() {}
        server.set_nonblocking(false)?;
    }
    println!(
        "{:<16} {:>10.3} {:>8.3} {:>8.3} {:>8.3} {:>22.3} {:>8.3} {:>6.3}",
        b.name(),
        cells[0],
        cells[1],
        cells[2],
        cells[3],
        established[0],
        established[1],
        established[1] / established[0]
    );
    Ok(())
}

/// Microseconds per packet.
fn burst(client: &UdpSocket, target: SocketAddr, count: u32) -> Result<f64> {
    let begin = Instant::now();
    for _ in 0..count.max(1) {
        client.send_to(b"a packet of some octets", target)?;
    }
    Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(count.max(1)))
}
