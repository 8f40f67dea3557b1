//! `ipam check`: the records against each other and against what pods and nodes say they use. Sections and the report
//! are calicoctl's; behind them come the cross-checks of the allocator itself and what the agent's collector found.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use brindle_config_core::Kind;
use brindle_ipam::{
    audit::{Finding, audit},
    usage::{affinities_by_node, allocated_to, handles_without_addresses},
};
use serde_json::{Value, json};

use super::{
    args::CheckArgs,
    world::{World, service_of},
};
use crate::{
    Outcome,
    args::Format,
    lab::progress::wrap,
    out::{self, WIDTH},
};

/// What was found.
#[derive(Default)]
struct Checked {
    text: String,
    allocated_unused: Vec<(IpAddr, String)>,
    used_twice: Vec<(IpAddr, Vec<String>)>,
    outside_pools: Vec<(IpAddr, Vec<String>)>,
    not_allocated: Vec<(IpAddr, Vec<String>)>,
    idle_handles: Vec<String>,
    findings: Vec<Finding>,
    /// Of nodes that do not exist.
    orphans: Vec<String>,
    /// Of other IPAM plugins, inside pools.
    ranges: Vec<Value>,
}

pub(super) fn check(world: &World, args: &CheckArgs, format: Format) -> Result<Outcome> {
    let mut c = look(world, args);
    let folders = args.agent.all(&args.store)?;
    ranges(world, &folders, &mut c);
    let problems = c.allocated_unused.len()
        + c.used_twice.len()
        + c.outside_pools.len()
        + c.not_allocated.len()
        + c.idle_handles.len()
        + c.findings.len()
        + c.orphans.len()
        + c.ranges.len();
    let collectors: Vec<(Option<String>, Value)> =
        folders.into_iter().filter_map(|(node, folder)| Some((node, collector(&folder)?))).collect();
    for (node, found) in &collectors {
        let count = |what: &str| found.get(what).and_then(Value::as_array).map_or(0, Vec::len);
        // By handle, who could not be heard about it.
        let unjudged = found.get("unknown").and_then(Value::as_object).filter(|u| !u.is_empty());
        let unjudged = unjudged.map_or_else(String::new, |unknown| {
            let silent: BTreeSet<&str> = unknown.values().filter_map(Value::as_str).collect();
            let silent = silent.into_iter().collect::<Vec<_>>().join(", ");
            format!(" Of {} it cannot say, for want of an answer of: {silent}.", unknown.len())
        });
        let line = format!(
            "{} ({}, looked at {}): {} leaked handles, {} waiting for the grace period of {} s.{unjudged}",
            node.as_ref().map_or("The agent's collector".to_owned(), |n| format!("The collector of {n}")),
            found["mode"].as_str().unwrap_or("?"),
            found["time"].as_str().unwrap_or("?"),
            count("leaks"),
            count("waiting"),
            found["graceSeconds"]
        );
        let _ = writeln!(c.text, "\n{}", wrap(&line, WIDTH - 2).join("\n  "));
    }
    let report = report(world, &c);
    if let Some(path) = &args.report {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    match format {
        Format::Json => {
            let list = |l: &[(IpAddr, Vec<String>)]| {
                l.iter().map(|(ip, by)| json!({"ip": ip, "by": by})).collect::<Vec<_>>()
            };
            out::json(&json!({
                "problems": problems,
                "allocatedNotInUse": c.allocated_unused.iter().map(|(ip, h)| json!({"ip": ip, "handle": h})).collect::<Vec<_>>(),
                "usedTwice": list(&c.used_twice),
                "usedOutsidePools": list(&c.outside_pools),
                "usedNotAllocated": list(&c.not_allocated),
                "handlesWithoutIPs": c.idle_handles,
                "records": c.findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "endpointsWithoutNode": c.orphans,
                "foreignRanges": c.ranges,
                "collector": collectors.iter().find(|(node, _)| node.is_none()).map(|(_, found)| found),
                "collectors": collectors.iter().filter_map(|(node, found)| Some((node.clone()?, found.clone())))
                    .collect::<serde_json::Map<String, Value>>(),
            }));
        }
        Format::Table => {
            out::put!("{}", c.text);
            out::say!("Check complete; found {problems} problems.");
        }
    }
    Ok(if problems == 0 { Outcome::Ok } else { Outcome::Degraded })
}

fn look(world: &World, args: &CheckArgs) -> Checked {
    let mut c = Checked::default();
    let mut t = "Checking IPAM for inconsistencies...\n\nLoading all IPAM blocks...\n".to_owned();
    let _ = writeln!(t, "Found {} IPAM blocks.", world.blocks.iter().count());
    for b in world.blocks.iter() {
        let affinity = b.spec().affinity.as_deref().unwrap_or("<none>");
        let _ = writeln!(t, " IPAM block {} affinity={affinity}:", b.cidr());
    }
    let mut by_node: BTreeMap<String, usize> =
        affinities_by_node(&world.entries).into_keys().map(|n| (n, 0)).collect();
    let mut allocated: BTreeMap<IpAddr, Vec<(String, String)>> = BTreeMap::new();
    for (_, a) in world.blocks.allocations().filter(|(_, a)| !a.cooling()) {
        if let Some(node) = a.attribute.secondary.get("node") {
            *by_node.entry(node.clone()).or_default() += 1;
        }
        let handle = a.handle().unwrap_or_default().to_owned();
        allocated.entry(a.ip).or_default().push((handle, allocated_to(&a)));
    }
    let total: usize = allocated.values().map(Vec::len).sum();
    let _ = writeln!(t, "IPAM blocks record {total} allocations.\n\nLoading all IPAM pools...");
    for p in world.view.pools.iter().filter(|p| !p.spec.disabled) {
        let _ = writeln!(t, "  {}", p.spec.cidr);
    }
    let active = world.view.pools.iter().filter(|p| !p.spec.disabled).count();
    let used = world.users();
    let _ = writeln!(t, "Found {active} active IP pools.\n\nLoading all nodes.");
    let _ = writeln!(t, "Found {} node tunnel IPs.\n", world.tunnels().len());
    let _ = writeln!(t, "Loading all service load balancer IPs.");
    let _ = match &world.services {
        Ok(_) => writeln!(t, "Found {} service load balancer IPs.\n", world.balancers().len()),
        Err(why) => writeln!(t, "Services cannot be read, so their IPs are not checked: {why}\n"),
    };
    let _ = writeln!(t, "Loading all workload endpoints.\nFound {} workload IPs.", world.workloads().len());
    let _ = writeln!(t, "Workloads and nodes are using {} IPs.\n", used.len());
    if args.show_all_ips {
        for (ip, owners) in &allocated {
            for (handle, whose) in owners {
                let _ = writeln!(t, "  {ip} allocated to {whose} (handle {handle})");
            }
        }
    }
    let _ = writeln!(t, "Looking for top (up to 20) nodes by allocations...");
    let mut top: Vec<(&String, &usize)> = by_node.iter().collect();
    top.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    for (node, n) in top.iter().take(20) {
        let _ = writeln!(t, "  {node} has {n} allocations");
    }
    if let Some((_, most)) = top.first() {
        let median = top.get(top.len() / 2).map_or(0, |(_, n)| **n);
        let _ = writeln!(t, "Node with most allocations has {most}; median is {median}");
    }
    unused(world, args, &allocated, &used, &mut c, &mut t);
    not_allocated(world, args, &allocated, &used, &mut c, &mut t);
    handles(world, &mut c, &mut t);
    orphans(world, &mut c, &mut t);
    c.text = t;
    c
}

fn unused(
    world: &World,
    args: &CheckArgs,
    allocated: &BTreeMap<IpAddr, Vec<(String, String)>>,
    used: &BTreeMap<IpAddr, Vec<String>>,
    c: &mut Checked,
    t: &mut String,
) {
    let _ = writeln!(t, "\nScanning for IPs that are allocated but not actually in use...");
    for (ip, owners) in allocated {
        for (handle, whose) in owners {
            if used.contains_key(ip) || !judged(world, *ip) {
                continue;
            }
            if args.show_problem_ips {
                let _ = writeln!(t, "  {ip} leaked; owner {whose} (handle {handle})");
            }
            c.allocated_unused.push((*ip, handle.clone()));
        }
    }
    let n = c.allocated_unused.len();
    let _ = writeln!(t, "Found {n} IPs that are allocated in IPAM but not actually in use.");
}

/// Addresses without a pod may be in use by what no endpoint shows: `brindle-ipam` under another plugin, an operator. One of
/// a service is judged where services can be read.
fn judged(world: &World, ip: IpAddr) -> bool {
    let allocation = world.blocks.of(ip).and_then(|b| b.allocation(ip));
    allocation.is_some_and(|a| {
        (a.attribute.secondary.contains_key("pod") && world.foreign(ip).is_none())
            || a.attribute.secondary.get("type").is_some_and(|t| t.ends_with("TunnelAddress"))
            || (world.services.is_ok() && service_of(&a).is_some())
    })
}

fn not_allocated(
    world: &World,
    args: &CheckArgs,
    allocated: &BTreeMap<IpAddr, Vec<(String, String)>>,
    used: &BTreeMap<IpAddr, Vec<String>>,
    c: &mut Checked,
    t: &mut String,
) {
    let _ =
        writeln!(t, "Scanning for IPs that are in use by a workload or node but not allocated in IPAM...");
    for (ip, by) in used {
        if by.len() > 1 {
            c.used_twice.push((*ip, by.clone()));
        }
        // One that is allocated is well, though its pool has been disabled since: that is how a pool is drained.
        let list = match world.view.pool_of(*ip) {
            _ if allocated.contains_key(ip) => continue,
            None => &mut c.outside_pools,
            Some(_) => &mut c.not_allocated,
        };
        if args.show_problem_ips {
            let _ = writeln!(t, "  {ip} in use by {}", by.join(", "));
        }
        list.push((*ip, by.clone()));
    }
    for (ip, by) in &c.used_twice {
        let _ = writeln!(t, "  {ip} has more than one owner: {}", by.join(", "));
    }
    let _ = writeln!(t, "Found {} in-use IPs with multiple owners.", c.used_twice.len());
    let _ = writeln!(t, "Found {} in-use IPs that are not in active IP pools.", c.outside_pools.len());
    let _ = writeln!(
        t,
        "Found {} in-use IPs that are in active IP pools but have no corresponding IPAM allocation.",
        c.not_allocated.len()
    );
}

/// Endpoints of nodes that are gone keep their addresses until somebody takes them away. Where no Node can be seen none is
/// missed.
fn orphans(world: &World, c: &mut Checked, t: &mut String) {
    let nodes: BTreeSet<&str> =
        world.entries.iter().filter(|e| e.key.kind == Kind::Node).map(|e| &*e.key.name).collect();
    if nodes.is_empty() {
        return;
    }
    let of_none = world.endpoints.iter().filter(|e| !nodes.contains(&*e.resource.spec.node));
    c.orphans = of_none.map(|e| e.resource.key().to_string()).collect();
    if !c.orphans.is_empty() {
        let _ = writeln!(
            t,
            "\nFound {} endpoints of nodes that do not exist; brindle-controllers collects them:",
            c.orphans.len()
        );
        for endpoint in &c.orphans {
            let _ = writeln!(t, "  {endpoint}");
        }
    }
}

fn handles(world: &World, c: &mut Checked, t: &mut String) {
    c.idle_handles = handles_without_addresses(&world.entries, &world.blocks);
    let total = world.entries.iter().filter(|e| e.key.kind == Kind::IpamHandle).count();
    let _ = writeln!(
        t,
        "\nScanning for IPAM handles with no matching IPs...\n\
         Found {} handles with no matching IPs (and {} handles with matches).",
        c.idle_handles.len(),
        total.saturating_sub(c.idle_handles.len())
    );
    for handle in &c.idle_handles {
        let _ = writeln!(t, "  {handle}");
    }
    let idle: BTreeSet<String> = c.idle_handles.iter().map(|h| brindle_ipam::names::handle_name(h)).collect();
    let (missing, others): (Vec<Finding>, Vec<Finding>) =
        audit(&world.entries).into_iter().partition(|f| matches!(f, Finding::Unlisted { .. }));
    let _ = writeln!(
        t,
        "Scanning for IPs with missing handle...\n\
         Found {} handles mentioned in blocks with no matching handle resource.",
        missing.len()
    );
    let others: Vec<Finding> = others
        .into_iter()
        // Said above already.
        .filter(|f| !matches!(f, Finding::CountTooHigh { handle, .. } if idle.contains(handle)))
        .collect();
    let _ = writeln!(
        t,
        "Cross-checking blocks, affinities and handles...\nFound {} contradictions.",
        others.len()
    );
    for f in missing.iter().chain(&others) {
        let _ = writeln!(t, "  {f}");
    }
    c.findings = missing.into_iter().chain(others).collect();
}

/// Ranges of other IPAM plugins inside pools, as agents met them: whether they still are is held against the pools of now.
fn ranges(world: &World, folders: &[(Option<String>, PathBuf)], c: &mut Checked) {
    for (node, folder) in folders {
        let text = std::fs::read_to_string(folder.join("ipam-foreign.json")).unwrap_or_default();
        let told: Value = serde_json::from_str(&text).unwrap_or_default();
        for range in told["ranges"].as_array().into_iter().flatten() {
            let ip = |key: &str| range[key].as_str().and_then(|t| t.parse::<IpAddr>().ok());
            let Some((first, last)) = ip("first").zip(ip("last")) else { continue };
            let network = range["network"].as_str().unwrap_or("?");
            let seen = range["seen"].as_str().unwrap_or("?").to_owned();
            for pool in world.view.giving_of(first, last) {
                let at = node.as_ref().map_or(String::new(), |n| format!(" on {n}"));
                let of = if first == last { first.to_string() } else { format!("{first} to {last}") };
                let line = format!(
                    "Another IPAM plugin gives addresses of {of} to pods of network {network}{at} (seen {seen}), and pool {} {} gives \
                     them too: reserve them (ipam reserve), disable the pool, or change the plugin's configuration.",
                    pool.name, pool.spec.cidr
                );
                let _ = writeln!(c.text, "\n{}", wrap(&line, WIDTH - 2).join("\n  "));
                c.ranges.push(json!({"first": first, "last": last, "network": network, "pool": pool.name,
                    "cidr": pool.spec.cidr, "node": node, "seen": seen}));
            }
        }
    }
}

/// What the agent of this node found at its last look, if there is one.
fn collector(state_dir: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(state_dir.join("ipam-leaks.json")).ok()?;
    serde_json::from_str(&text).ok()
}

/// calicoctl's report.
fn report(world: &World, c: &Checked) -> Value {
    let used = world.users();
    let leaked: BTreeSet<IpAddr> = c.allocated_unused.iter().map(|(ip, _)| *ip).collect();
    let mut allocations: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (b, a) in world.blocks.allocations() {
        let attribute = |k: &str| a.attribute.secondary.get(k).cloned().unwrap_or_default();
        let node = attribute("node");
        allocations.entry(a.ip.to_string()).or_default().push(json!({
            "ip": a.ip, "handle": a.handle().unwrap_or_default(), "sequenceNumber": a.sequence,
            "pod": attribute("pod"), "namespace": attribute("namespace"), "node": node,
            "type": attribute("type"), "creationTimestamp": attribute("timestamp"),
            "inUse": !leaked.contains(&a.ip), "borrowed": !node.is_empty() && b.host() != Some(&*node),
            "coolingDown": a.cooling(), "owners": used.get(&a.ip).cloned().unwrap_or_default(),
        }));
    }
    let leaked_handles: Vec<Value> = world
        .entries
        .iter()
        .filter(|e| e.key.kind == Kind::IpamHandle)
        .filter(|e| c.idle_handles.iter().any(|h| brindle_ipam::names::handle_name(h) == e.key.name))
        .map(|e| json!({"ID": e.key.name, "UID": "", "Revision": e.revision.0.to_string()}))
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "clusterGUID": world.cluster.cluster_guid,
        "datastoreLocked": world.locked(),
        "clusterInformationRevision": world.cluster_revision.0.to_string(),
        "clusterType": world.cluster.cluster_type,
        "allocations": allocations,
        "leakedHandles": leaked_handles,
    })
}
