//! The agent in a whole cluster: from its start to in sync, memory, what it asks the API server for, and processor time
//! while pods come and go. The server is the one of this package, in this process; the agent is a process of its own in a
//! namespace, with the service account and roles of the manifests. Needs root.
//!
//! `cargo run --release -p brindle-integration --bin bench-kube-agent [-- NODES PODS POLICIES SECONDS]`
#![allow(clippy::print_stdout, reason = "the table is the product")]

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use brindle_integration::{
    kube::{ApiServer, Traffic},
    kube_node::{AGENT, KubeNode},
    wait::until,
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(600);
/// Pod events a second while pods come and go.
const EVENTS: u32 = 50;
const POD: (&str, &str) = ("v1", "Pod");

fn main() -> Result<()> {
    let args: Vec<usize> = std::env::args()
        .skip(1)
        .map(|a| a.parse().with_context(|| format!("{a} is not a number")))
        .collect::<Result<_>>()?;
    let size = |i: usize, usual: usize| args.get(i).copied().unwrap_or(usual);
    let (nodes, pods, policies, seconds) = (size(0, 1_000), size(1, 20_000), size(2, 2_000), size(3, 30));
    ensure!(nodes > 0 && pods > 0 && seconds > 0, "nodes, pods and seconds must not be 0");
    let mut node = KubeNode::new("bkube", "node-0000", "10.0.0.1/16");
    node.server.populate(nodes, pods, policies);
    addressing(&node.server, nodes);
    println!("{nodes} nodes, {pods} pods, {policies} policies, {nodes} blocks of addresses");

    let start = Instant::now();
    node.start_agent(&[]);
    until("the agent is in sync", LIMIT, || match node.status() {
        Some(s) if in_sync(&s) => Ok(()),
        said => Err(format!("{said:?}\n{}", node.log())),
    });
    println!("start to in sync: {:.2} s", start.elapsed().as_secs_f64());
    node.stop_agent();

    // Once more without questions to the agent, which would count among its own.
    node.server.clear_calls();
    node.start_agent(&[]);
    node.wait_for_agent(LIMIT);
    let calls = quiet(&node);
    print_calls(&calls);
    println!("memory in sync: {}", memory(node.pid())?);

    let before = node.server.calls();
    let (since, used) = (Instant::now(), cpu(node.pid())?);
    churn(&node.server, pods, u32::try_from(seconds)? * EVENTS)?;
    let took = since.elapsed().as_secs_f64();
    let used = cpu(node.pid())? - used;
    println!(
        "{EVENTS} pod events a second for {took:.0} s: {:.1} % of a core, its children included; memory {}",
        100.0 * used / took,
        memory(node.pid())?
    );
    let sent: u64 = total(&node.server.calls()) - total(&before);
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let rate = sent as f64 / took / 1024.0;
    println!("sent to the agent meanwhile: {rate:.1} KiB/s");
    Ok(())
}

fn in_sync(status: &Value) -> bool {
    let starting = status["reasons"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|r| r.as_str().is_some_and(|r| r.starts_with("starting")));
    status["policy"]["in_sync"] == true && !starting
}

/// The pool and the blocks of a cluster in which every node has one.
fn addressing(server: &ApiServer, nodes: usize) {
    let create = |o: Value| {
        server.create(o).unwrap_or_else(|s| panic!("{}", s.message));
    };
    create(json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "pool"},
        "spec": {"cidr": "10.128.0.0/10", "blockSize": 26, "nodeSelector": "all()"}}));
    for n in 0..nodes {
        let cidr = format!("10.{}.{}.{}/26", 160 + n / 1024, n / 4 % 256, n % 4 * 64);
        let free: Vec<_> = (20..64).collect();
        let used: Vec<_> = (0..64).map(|i| if i < 20 { json!(i) } else { Value::Null }).collect();
        let owner = |i: usize| {
            json!({"handle_id": format!("k8s-pod-network.{n:032x}{i:032x}"),
            "secondary": {"namespace": format!("ns-{:04}", i), "node": format!("node-{n:04}"), "pod": format!("app-{i:02}-{n:06}")}})
        };
        create(json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMBlock",
            "metadata": {"name": cidr.replace(['.', '/'], "-")},
            "spec": {"cidr": cidr, "affinity": format!("host:node-{n:04}"), "allocations": used, "unallocated": free,
                "attributes": (0..20).map(owner).collect::<Vec<_>>(), "strictAffinity": false, "deleted": false}}));
    }
}

type Calls = BTreeMap<(String, String), Traffic>;

/// The agent's calls by verb and resource.
fn of_agent(node: &KubeNode) -> Calls {
    let mut out = Calls::new();
    for (c, t) in node.server.calls().into_iter().filter(|(c, _)| c.user == AGENT) {
        let name = if c.group.is_empty() { c.resource } else { format!("{}.{}", c.resource, c.group) };
        let sum = out.entry((name, c.verb)).or_default();
        sum.requests += t.requests;
        sum.bytes += t.bytes;
        sum.objects += t.objects;
    }
    out
}

fn total(calls: &BTreeMap<brindle_integration::kube::Recorded, Traffic>) -> u64 {
    calls.iter().filter(|(c, _)| c.user == AGENT).map(|(_, t)| t.bytes).sum()
}

/// Waits until the agent asks for nothing more; what it asked for until then.
fn quiet(node: &KubeNode) -> Calls {
    let mut last = of_agent(node);
    let mut since = Instant::now();
    until("the agent has read everything", LIMIT, || {
        let now = of_agent(node);
        if now != last {
            last = now;
            since = Instant::now();
        }
        if since.elapsed() > Duration::from_secs(3) { Ok(()) } else { Err("still reading".into()) }
    });
    last
}

fn print_calls(calls: &Calls) {
    println!("\n| resource | verb | requests | objects | bytes |\n|---|---|---|---|---|");
    let mut sum = Traffic::default();
    for ((resource, verb), t) in calls {
        println!("| {resource} | {verb} | {} | {} | {} |", t.requests, t.objects, t.bytes);
        sum.requests += t.requests;
        sum.objects += t.objects;
        sum.bytes += t.bytes;
    }
    println!("| all | | {} | {} | {} |\n", sum.requests, sum.objects, sum.bytes);
}

/// Resident now and at most.
fn memory(pid: u32) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("the agent has ended")?;
    let field = |name: &str| -> Result<f64> {
        let line = text.lines().find_map(|l| l.strip_prefix(name)).context("no such line")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
    };
    Ok(format!("{:.1} MiB resident, {:.1} MiB at most", field("VmRSS:")?, field("VmHWM:")?))
}

/// Seconds of processor time, with those of children that ended.
fn cpu(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("the agent has ended")?;
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: f64 = (11..15).map(|i| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0)).sum();
    // USER_HZ is 100 on every architecture Linux has had for long.
    Ok(ticks / 100.0)
}

/// Makes `events` pod events at an even pace. Of ten, four are a kubelet's news that mean nothing to policy, two change
/// labels, and two pods end and come again.
fn churn(server: &ApiServer, pods: usize, events: u32) -> Result<()> {
    let start = Instant::now();
    let mut gone: Vec<Value> = Vec::new();
    for n in 0..events {
        // A stride that meets all pods before it meets one twice.
        let (ns, name) = ApiServer::populated_pod(n as usize * 7_919 % pods, pods);
        let at = (ns.as_str(), name.as_str());
        let said = match n % 10 {
            0..=3 => {
                let time = format!("2026-01-02T{:02}:{:02}:{:02}Z", n / 3600 % 24, n / 60 % 60, n % 60);
                server.patch(POD, at, "status", &json!({"status": {"startTime": time}})).map(|_| ())
            }
            4 | 5 => server
                .patch(POD, at, "", &json!({"metadata": {"labels": {"tier": format!("tier-{n}")}}}))
                .map(|_| ()),
            6 | 7 => {
                gone.extend(server.get(POD, at));
                server.delete(POD, at)
            }
            _ => match gone.pop() {
                Some(mut pod) => {
                    if let Some(m) = pod["metadata"].as_object_mut() {
                        for f in ["uid", "resourceVersion", "creationTimestamp", "generation"] {
                            m.remove(f);
                        }
                    }
                    let status = json!({"status": pod["status"]});
                    let name = pod["metadata"]["name"].as_str().unwrap_or("").to_owned();
                    let ns = pod["metadata"]["namespace"].as_str().unwrap_or("").to_owned();
                    server
                        .create(pod)
                        .and_then(|_| server.patch(POD, (&ns, &name), "status", &status))
                        .map(|_| ())
                }
                None => Ok(()),
            },
        };
        // A pod that was taken away by an earlier turn is no error.
        if let Err(s) = said {
            ensure!(s.code == 404, "{}", s.message);
        }
        let due = start + Duration::from_secs(1) * (n + 1) / EVENTS;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}
