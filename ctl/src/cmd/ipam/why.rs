//! `ipam why IP`: what the records say about one address, and what the agent remembers of it.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use brindle_config_core::Kind;
use brindle_ipam::{Now, block::Block, names::LOAD_BALANCER, net, usage::allocated_to};
use serde_json::{Value, json};

use super::{
    args::WhyArgs,
    world::{World, now, service_of, workload},
};
use crate::{
    Outcome,
    args::Format,
    lab::progress::wrap,
    out::{self, WIDTH},
};

/// Events shown, the newest.
const EVENTS: usize = 20;

pub(super) fn why(world: &World, args: &WhyArgs, format: Format) -> Result<Outcome> {
    let ip = args.ip;
    let story = story(world, ip, now()?);
    let folders: Vec<PathBuf> = args.agent.all(&args.store)?.into_iter().map(|(_, folder)| folder).collect();
    let (history, unread) = history(&folders, ip);
    if format == Format::Json {
        let facts: serde_json::Map<String, Value> =
            story.facts.iter().map(|(k, v)| ((*k).to_owned(), Value::from(v.clone()))).collect();
        out::json(
            &json!({"ip": ip, "state": story.state, "summary": story.summary, "facts": facts, "history": history,
                "historyUnread": unread.iter().map(|(folder, why)| json!({"folder": folder, "why": why})).collect::<Vec<_>>()}),
        );
        return Ok(Outcome::Ok);
    }
    out::say!("{}", story.summary);
    for (what, fact) in &story.facts {
        line(what, fact);
    }
    let last = history.last().and_then(|e| e.get("event")?.as_str());
    if story.state != "in-use" && matches!(last, Some("given" | "kept")) {
        line("released", "by hand or by another agent: no history of this one tells of that");
    }
    if history.is_empty() {
        no_history(&folders, &unread, &story);
    }
    for (i, e) in history.iter().enumerate() {
        let text = |key: &str| e.get(key).and_then(Value::as_str).unwrap_or_default();
        let what = if i == 0 { "history" } else { "" };
        let whose =
            Some(text("allocatedTo")).filter(|w| !w.is_empty()).map_or(String::new(), |w| format!("{w}, "));
        line(what, &format!("{} {:<9} {whose}handle {}", text("time"), text("event"), text("handle")));
    }
    Ok(Outcome::Ok)
}

/// Why nothing is told, and where more may be known. Folders are not wrapped: they are copied.
fn no_history(folders: &[PathBuf], unread: &Unread, story: &Story) {
    let mut asked = None;
    if unread.len() < folders.len() {
        let who = match folders {
            [one] => {
                let node = std::fs::read_to_string(one.join("nodename")).unwrap_or_default();
                let whose = match node.trim() {
                    "" => "of this node".to_owned(),
                    node => format!("of node {node}"),
                };
                asked = Some(node.trim().to_owned()).filter(|n| !n.is_empty());
                format!("the agent {whose} remembers nothing of it ({})", one.display())
            }
            all => format!("none of the {} agents remembers anything of it", all.len()),
        };
        out::say!("  history   {who}");
    }
    for (folder, why) in unread {
        out::say!("  history   not known here, {}: {why}", folder.display());
    }
    let elsewhere = !unread.is_empty() || asked.is_some() && asked != story.node;
    if story.balancer {
        line(
            "see",
            "the log of brindle-controllers: it gives addresses to services, agents do not hear of it",
        );
    } else if let Some(node) = story.node.as_ref().filter(|_| elsewhere) {
        line(
            "see",
            &format!("what the agent of node {node} remembers: ask there, or name its folder (--state-dir)"),
        );
    }
}

/// One fact, within the width of the screen.
fn line(what: &str, fact: &str) {
    const INDENT: usize = 12;
    for (i, part) in wrap(fact, WIDTH - INDENT).iter().enumerate() {
        out::say!("  {:<10}{part}", if i == 0 { what } else { "" });
    }
}

struct Story {
    /// `in-use`, `cooling`, `reserved`, `free`, `outside`, `disabled`; `conflict` when the record says that nobody has it and something
    /// uses it.
    state: &'static str,
    summary: String,
    facts: Vec<(&'static str, String)>,
    /// Of a LoadBalancer service, or of a block for them.
    balancer: bool,
    /// The node whose agent gave it, or would.
    node: Option<String>,
}

fn story(world: &World, ip: IpAddr, now: Now) -> Story {
    let mut facts = Vec::new();
    let pool = world.view.pools.iter().find(|p| p.spec.cidr.contains(&ip));
    if let Some(p) = pool {
        let off = if p.spec.disabled { ", disabled: no new addresses" } else { "" };
        facts.push(("pool", format!("{} {}{off}", p.name, p.spec.cidr)));
    }
    let block = world.blocks.of(ip);
    if let Some(b) = block {
        let owner = match (b.host(), b.owner()) {
            (Some(node), _) => format!("of node {node}"),
            (None, Some(LOAD_BALANCER)) => "of LoadBalancer services, no node's".to_owned(),
            (None, Some(other)) => format!("of {other}, no node's"),
            (None, None) => "of nobody, it only drains".to_owned(),
        };
        let since = b.claimed().map_or_else(String::new, |c| format!(", claimed {}", c.rfc3339()));
        facts.push(("block", format!("{} {owner}{since}", b.cidr())));
    }
    let endpoint =
        world.endpoints.iter().find(|e| e.resource.spec.ip_networks.iter().any(|n| n.addr() == ip));
    if let Some(e) = endpoint {
        let spec = &e.resource.spec;
        facts.push((
            "endpoint",
            format!(
                "{} on {}, device {}, container {}",
                workload(e),
                spec.node,
                spec.interface_name,
                spec.container_id
            ),
        ));
    }
    for (what, by) in [("tunnel", world.tunnels()), ("service", world.balancers())] {
        if let Some(by) = by.get(&ip) {
            let names = by.iter().map(|b| b.split_once(' ').map_or(b.as_str(), |(_, name)| name));
            facts.push((what, names.collect::<Vec<_>>().join(", ")));
        }
    }
    let (state, summary) = match (block, pool) {
        (Some(b), _) => in_block(world, ip, b, endpoint.is_some(), now, &mut facts),
        (None, Some(_)) if world.view.reservations.contains(ip) => {
            ("reserved", format!("{ip} is reserved: it is given only to who asks for it"))
        }
        (None, _) => never_given(world, ip)
            .unwrap_or_else(|| ("free", format!("{ip} is free: no node has claimed its block yet"))),
    };
    let users = world.users().remove(&ip).unwrap_or_default().join(", ");
    let (state, summary) = match state {
        _ if users.is_empty() || state == "in-use" => (state, summary),
        "outside" => (state, format!("{summary}; {users} uses it")),
        _ => {
            facts.push(("see", "`brindlectl ipam check`".to_owned()));
            ("conflict", format!("{summary}, yet {users} uses it: record and use contradict"))
        }
    };
    let allocation = block.and_then(|b| b.allocation(ip));
    let balancer = block.is_some_and(|b| b.owner() == Some(LOAD_BALANCER))
        || allocation.as_ref().is_some_and(|a| service_of(a).is_some());
    let given_by = allocation.and_then(|a| a.attribute.secondary.get("node").cloned());
    let node = given_by.or_else(|| block?.host().map(str::to_owned));
    Story { state, summary, facts, balancer, node }
}

/// Why nobody gets an address that nobody has.
fn never_given(world: &World, ip: IpAddr) -> Option<(&'static str, String)> {
    match world.view.pools.iter().find(|p| p.spec.cidr.contains(&ip)) {
        None => Some(("outside", format!("{ip} is in no IP pool: it is never given"))),
        Some(p) if p.spec.disabled => {
            Some(("disabled", format!("{ip} is not given: its pool {} is disabled", p.name)))
        }
        Some(_) => None,
    }
}

fn in_block(
    world: &World,
    ip: IpAddr,
    block: &Block,
    endpoint: bool,
    now: Now,
    facts: &mut Vec<(&'static str, String)>,
) -> (&'static str, String) {
    let Some(a) = block.allocation(ip) else {
        if world.view.reservations.contains(ip) {
            return ("reserved", format!("{ip} is reserved: it is given only to who asks for it"));
        }
        if let Some(never) = never_given(world, ip) {
            return never;
        }
        let at = net::ordinal(&block.cidr(), ip)
            .and_then(|o| block.spec().unallocated.iter().position(|u| *u as u128 == o));
        if let Some(at) = at {
            let all = block.spec().unallocated.len();
            facts.push(("queue", format!("number {} of {all} free addresses of its block", at + 1)));
        }
        return ("free", format!("{ip} is free"));
    };
    if a.cooling() {
        let rest = u64::from(world.view.config.ip_cooldown_seconds.unwrap_or(0));
        let released = a.attribute.released_at.clone().unwrap_or_default();
        let over = Now::parse_rfc3339(&released).map(|r| rest.saturating_sub(now.secs_since(r)));
        facts.push((
            "released",
            format!("{released}, {} s of ipCooldownSeconds {rest} left", over.unwrap_or(0)),
        ));
        return ("cooling", format!("{ip} rests after its release; nobody has it"));
    }
    if let Some(handle) = a.handle() {
        let name = brindle_ipam::names::handle_name(handle);
        let record = world.entries.iter().find(|e| e.key.kind == Kind::IpamHandle && e.key.name == name);
        let counts = record
            .and_then(|e| e.value.pointer("/spec/block")?.get(block.cidr().to_string())?.as_u64())
            .map_or_else(
                || "whose record does not list this block".to_owned(),
                |n| format!("counts {n} in this block"),
            );
        facts.push(("handle", format!("{handle}, {counts}")));
    }
    let attribute = |key: &str| a.attribute.secondary.get(key).map(String::as_str);
    if let Some(given) = attribute("timestamp") {
        facts.push(("given", given.to_owned()));
        facts.push(("sequence", format!("{} of {}", a.sequence, block.spec().sequence_number)));
    }
    if let Some(node) = attribute("node") {
        let lent = block.host().is_some_and(|h| h != node);
        facts
            .push(("node", format!("{node}{}", if lent { ", borrowed from the block's owner" } else { "" })));
    }
    let service = service_of(&a);
    let gone = service.is_some() && world.services.is_ok() && !world.balancers().contains_key(&ip);
    let unused = attribute("pod").is_some() && !endpoint && world.foreign(ip).is_none();
    let whose = service.map_or_else(|| allocated_to(&a), |s| format!("service {s}"));
    let doubt = match (unused, gone) {
        (true, _) => ", but no endpoint has it: `brindlectl ipam check`",
        (_, true) => ", but there is no such service: `brindlectl ipam check`",
        _ => "",
    };
    ("in-use", format!("{ip} belongs to {whose}{doubt}"))
}

/// What an agent wrote down, both halves: nothing yet is fine, a folder that is not there or may not be read is told.
fn remembered(folder: &Path) -> io::Result<String> {
    if !folder.is_dir() {
        let why = "there is no such folder";
        return Err(io::Error::other(why));
    }
    let mut all = String::new();
    for file in ["ipam-history.jsonl.old", "ipam-history.jsonl"] {
        match std::fs::read_to_string(folder.join(file)) {
            Ok(text) => all += &text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// Folders that could not be read, and why.
type Unread = Vec<(PathBuf, String)>;

/// What agents remember of the address, oldest first: each of what it did itself.
fn history(folders: &[PathBuf], ip: IpAddr) -> (Vec<Value>, Unread) {
    let mut unread = Vec::new();
    let texts = folders.iter().filter_map(|folder| {
        remembered(folder).map_err(|e| unread.push((folder.clone(), e.to_string()))).ok()
    });
    let mut events: Vec<Value> = texts
        .flat_map(|text| text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect::<Vec<Value>>())
        .filter(|e| e.get("ip").and_then(Value::as_str).and_then(|t| t.parse().ok()) == Some(ip))
        .collect();
    // Times are written in one form, so their order is that of the text; what one agent wrote stays in its order.
    if folders.len() > 1 {
        events.sort_by(|a, b| a["time"].as_str().cmp(&b["time"].as_str()));
    }
    let skip = events.len().saturating_sub(EVENTS);
    events.drain(..skip);
    (events, unread)
}
