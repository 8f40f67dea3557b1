//! `lab up`, `lab add node`, `lab heal`: the stages in order, and the proof at the end. The plan is on disk before
//! the first object is made.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use brindle_config::yaml::Origin;
use brindle_kernel::netns::NetNs;
use serde_json::json;

use super::{
    agents, breaks, build,
    converge::{self, Missing, Problem, name_flag},
    plan::{LabPlan, NodePlan, PlanError},
    pods,
    progress::Progress,
    proof::Proof,
    prover, render,
    state::{LabDir, LabState, Phase, PodState},
    store,
    topology::{AgentKind, Carrier, NodeTopology, RouterKind, Topology},
    wait::parallel,
};
use crate::{Outcome, args::Format};

/// How many things of the kernel or of processes are done at the same time.
const WIDTH: usize = 8;

/// How long the slowest thing may take: what a slow machine within a busy one needs, and more for many nodes on few cores.
fn patience(nodes: usize) -> Duration {
    Duration::from_secs(45) + Duration::from_millis(500) * u32::try_from(nodes).unwrap_or(1000)
}

/// `lab up`.
pub(crate) fn up(
    name: &str,
    topology: &Topology,
    origin: Option<&Origin>,
    format: Format,
) -> Result<Outcome> {
    let progress = Progress::new(format);
    let mut plan = LabPlan::new(name, topology).map_err(|e| located(e, origin))?;
    super::need_root()?;
    plan.fit_neighbours(build::neighbour_limit()).map_err(|e| located(e, origin))?;
    let dir = LabDir::of(name)?;
    agents::check_programs(&plan, &dir)?;
    if dir.exists() {
        let what = match dir.load() {
            Ok(Some(s)) if s.phase == Phase::Up => {
                format!("is there already, with {} nodes", s.plan.nodes.len())
            }
            _ => "is there, half-made".to_owned(),
        };
        bail!(
            "lab {name:?} {what}; remove it with `brindlectl lab down{}` or give another --name",
            name_flag(name)
        );
    }
    // Namespaces that are there now are not ours, and `lab down` would remove what is in the plan.
    let existing = NetNs::list()?;
    if let Some(taken) = plan.namespaces().into_iter().find(|n| existing.iter().any(|e| e == n)) {
        bail!(
            "network namespace {taken} exists already; give another --name, or, if it is a leftover, run \
             `brindlectl lab down{}`",
            name_flag(name)
        );
    }
    dir.create()?;
    let _lock = dir.lock()?.context("the lab was removed while it was made")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut state = LabState::new(plan, now);
    dir.save(&state)?;
    progress.say(&headline(&state.plan));
    let result = build_all(&mut state, &dir, &progress);
    finish(result, &mut state, &dir, &progress)
}

/// A refusal with the line of the file it is about, where there is a file.
fn located(e: PlanError, origin: Option<&Origin>) -> anyhow::Error {
    match origin {
        Some(origin) => origin.problem(&e.field, e.reason).into(),
        None => e.into(),
    }
}

fn headline(plan: &LabPlan) -> String {
    format!(
        "brindle lab {:?}: {} on {}, {}, pool {}{}",
        plan.name,
        counted(plan.nodes.len(), "node"),
        counted(plan.segments.len(), "segment"),
        counted(plan.pods().count(), "pod"),
        pools(plan),
        if plan.families.v4() { format!(", ipip {}", converge::mode_name(plan)) } else { String::new() },
    )
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn pools(plan: &LabPlan) -> String {
    let v4 = plan.families.v4().then(|| plan.pool.cidr.to_string());
    let v6 = plan.families.v6().then(|| super::plan::pool6().to_string());
    v4.into_iter().chain(v6).collect::<Vec<_>>().join(" and ")
}

fn build_all(state: &mut LabState, dir: &LabDir, progress: &Progress) -> Result<bool> {
    let stage = progress.stage("namespaces", 0);
    let made = build::namespaces(state.plan.namespaces())?;
    stage.done(true, &format!("{made}: {}", places(&state.plan)));

    let stage = progress.stage("links", 0);
    build::links(&state.plan)?;
    stage.done(true, &links_text(&state.plan));

    let stage = progress.stage("store", 0);
    let resources = store::resources(&state.plan)?;
    let written = resources.len();
    store::write(dir, resources)?;
    store::write_token(dir)?;
    stage.done(true, &format!("{written} resources in {}", dir.store().display()));

    let routers = agents::start_router(&state.plan, dir)?;
    state.processes.extend(routers);
    let nodes = state.plan.nodes.clone();
    bring_up(state, dir, &nodes, progress)
}

fn places(plan: &LabPlan) -> String {
    format!("fabric, router, {} nodes, {} pods", plan.nodes.len(), plan.pods().count())
}

fn links_text(plan: &LabPlan) -> String {
    let per_segment: Vec<_> = plan
        .segments
        .iter()
        .map(|s| {
            let n = plan.nodes.iter().filter(|n| n.segment == s.name).count();
            let v4 = plan.families.v4().then(|| s.subnet.to_string());
            let v6 = s.gateway6.map(|g| g.trunc().to_string());
            let subnets: Vec<_> = v4.into_iter().chain(v6).collect();
            format!("{} {} ({n} nodes)", s.name, subnets.join(" "))
        })
        .collect();
    let router = match plan.router.kind {
        RouterKind::Plain => "router",
        RouterKind::Frr => "FRR router",
    };
    let mut text = if per_segment.len() > 4 {
        format!("{} segments, {} nodes, {router} between", plan.segments.len(), plan.nodes.len())
    } else {
        format!("{}; {router} between", per_segment.join(", "))
    };
    if plan.static_neighbours {
        text += "; static ARP entries, as resolved ones would overflow the kernel's table";
    }
    text
}

/// Agents, sessions, pods, routes of `nodes`, whose namespaces and links exist. `Ok(false)`: something is missing,
/// and was said.
fn bring_up(state: &mut LabState, dir: &LabDir, nodes: &[NodePlan], progress: &Progress) -> Result<bool> {
    let limit = patience(state.plan.nodes.len());
    let refs: Vec<&NodePlan> = nodes.iter().collect();

    let stage = progress.stage("agents", nodes.len());
    let plan = state.plan.clone();
    for started in parallel(&refs, WIDTH, |node| agents::start_node(&plan, dir, node)) {
        state.processes.push(started?);
    }
    dir.save(state)?;
    let missing = converge::wait_agents(state, dir, &refs, limit, |n| stage.at(n));
    if !missing.is_empty() {
        stage.done(false, &format!("{} of {} answer", nodes.len() - missing.len(), nodes.len()));
        return Ok(told(progress, &missing));
    }
    stage.done(true, &agents_text(state, nodes));

    // Sessions come up while pods are attached.
    let sessions: usize = plan.nodes.iter().map(|n| plan.peers_of(&n.name).len()).sum();
    let all: Vec<&NodePlan> = plan.nodes.iter().collect();
    let stage = progress.stage("sessions", sessions);
    let (missing, attached) = std::thread::scope(|scope| {
        let adding = scope.spawn(|| {
            let start = Instant::now();
            (attach_pods(&plan, dir, nodes), start.elapsed())
        });
        let missing = converge::wait_sessions(state, dir, &all, limit, |n| stage.at(n));
        (missing, adding.join())
    });
    stage.done(missing.is_empty(), &sessions_text(&plan, sessions, missing.len()));
    let mut good = missing.is_empty();
    told(progress, &missing);

    let stage = progress.stage("pods", 0);
    let ((attached, failed), took) =
        attached.map_err(|_| anyhow::anyhow!("attaching pods failed unexpectedly"))?;
    let text = pods_text(&attached, failed.len());
    state.pods.extend(attached);
    dir.save(state)?;
    stage.done_in(took, failed.is_empty(), &text);
    told(progress, &failed);
    good &= failed.is_empty();

    let stage = progress.stage("routes", converge::routed_places(&state.plan).len());
    let missing = converge::wait_routes(state, limit.min(Duration::from_secs(15)), |n| stage.at(n));
    stage.done(
        missing.is_empty(),
        &format!("every node has a route to every one of {} pods", state.pods.len()),
    );
    told(progress, &missing);
    good &= missing.is_empty();

    let stage = progress.stage("encap", 0);
    let text = converge::encapsulation(&state.plan, &converge::views(state, dir, &all));
    stage.done(true, &text);
    Ok(good)
}

fn agents_text(state: &LabState, nodes: &[NodePlan]) -> String {
    let count = |kind: AgentKind| nodes.iter().filter(|n| n.agent == kind).count();
    let mut parts = Vec::new();
    for (n, program) in [(count(AgentKind::Brindle), "brindle-node"), (count(AgentKind::Bird), "bird")] {
        if n > 0 {
            parts.push(format!("{n} {program}"));
        }
    }
    if state.processes.iter().any(|p| p.place == "router") {
        parts.push("router frr".to_owned());
    }
    let mut text = parts.join(", ");
    let rss = state
        .processes
        .iter()
        .filter(|p| p.program == "brindle-node")
        .filter_map(|p| brindle_kernel::process::rss_kib(p.pid))
        .max();
    if let Some(kib) = rss {
        text += &format!(", at most {} resident", render::mib(kib));
    }
    text
}

fn sessions_text(plan: &LabPlan, ends: usize, missing: usize) -> String {
    let kind = if plan.router.kind == RouterKind::Frr { "full mesh and router" } else { "full mesh" };
    if missing == 0 {
        format!("{ends} session ends established ({kind}, AS {})", plan.as_number)
    } else {
        format!("{} of {ends} session ends established", ends - missing.min(ends))
    }
}

fn attach_pods(
    plan: &LabPlan,
    dir: &LabDir,
    nodes: &[NodePlan],
) -> (BTreeMap<String, PodState>, Vec<Missing>) {
    let results = parallel(nodes, WIDTH, |node| {
        let prepared = if node.agent == AgentKind::Brindle && !node.pods.is_empty() {
            pods::write_conflist(plan, dir, node)
        } else {
            Ok(())
        };
        if let Err(e) = prepared {
            return vec![Err(Missing::new(&node.name, Problem::plain(format!("{e:#}"))))];
        }
        node.pods
            .iter()
            .map(|pod| {
                pods::attach(plan, dir, node, pod).map(|state| (pod.name.clone(), state)).map_err(|e| {
                    let log = format!("tail {}", dir.log(&node.name).display());
                    Missing::new(&node.name, Problem::new(format!("{e:#}"), log))
                })
            })
            .collect()
    });
    let mut attached = BTreeMap::new();
    let mut failed = Vec::new();
    for result in results.into_iter().flatten() {
        match result {
            Ok((pod, state)) => drop(attached.insert(pod, state)),
            Err(missing) => failed.push(missing),
        }
    }
    (attached, failed)
}

fn pods_text(attached: &BTreeMap<String, PodState>, failed: usize) -> String {
    let mut times: Vec<_> = attached.values().map(|p| p.add_ms).collect();
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or(0);
    let mut text = format!("{} attached, median {median} ms", attached.len());
    if failed > 0 {
        text += &format!("; {failed} failed");
    }
    let some: Vec<_> = attached.iter().take(3).map(|(n, p)| format!("{n} {}", pods::words(p))).collect();
    if !some.is_empty() {
        text += &format!(": {}{}", some.join(", "), if attached.len() > 3 { ", ..." } else { "" });
    }
    text
}

/// Prints what is missing; always `false`, for `return`.
fn told(progress: &Progress, missing: &[Missing]) -> bool {
    const LISTED: usize = 12;
    for m in missing {
        progress.event(
            &json!({ "event": "missing", "node": m.node, "what": m.problem.what, "next": m.problem.next }),
        );
    }
    for m in missing.iter().take(LISTED) {
        progress.say(render::problem(&m.node, &m.problem).trim_end());
    }
    if missing.len() > LISTED {
        progress.say(&format!("  ... and {} more; all of them with -o json", missing.len() - LISTED));
    }
    false
}

/// The proof, as a stage with its matrix.
pub(crate) fn prove(state: &LabState, progress: &Progress) -> Result<Proof> {
    let stage = progress.stage("proof", 0);
    let proof = prover::run(state, None, None)?;
    let s = proof.summary();
    stage.done(
        s.ok,
        &format!(
            "{} pairs, small and full-size packets with DF, both ways{}",
            s.pairs,
            family_words(&state.plan)
        ),
    );
    Ok(proof)
}

/// What to add where the lab is not plain IPv4.
fn family_words(plan: &LabPlan) -> String {
    if plan.families.v6() { format!(", {}", plan.families.words()) } else { String::new() }
}

/// Ends `up`, `add node` and `heal`: proof, state, last words.
fn finish(result: Result<bool>, state: &mut LabState, dir: &LabDir, progress: &Progress) -> Result<Outcome> {
    let lab = name_flag(&state.plan.name);
    let good = result.with_context(|| {
        format!("lab {:?} is half-made; remove it with `brindlectl lab down{lab}`", state.plan.name)
    })?;
    let proof = prove(state, progress)?;
    state.phase = Phase::Up;
    dir.save(state)?;
    let summary = proof.summary();
    let ok = good && summary.ok;
    progress.say(&format!("\n{}", render::matrix(&proof, progress.colours()).trim_end()));
    if !summary.ok
        && let Some(hint) = hint(state)
    {
        progress.say(&hint);
    }
    progress.say(&format!(
        "\n{} in {:.1} s",
        if ok { "done" } else { "DEGRADED" },
        progress.elapsed().as_secs_f64()
    ));
    if ok {
        progress.say(&next_commands(state));
    } else {
        progress.say(&format!("Next:  brindlectl lab status{lab}"));
    }
    progress.event(&json!({
        "event": "result",
        "lab": state.plan.name,
        "ok": ok,
        "ms": u64::try_from(progress.elapsed().as_millis()).unwrap_or(u64::MAX),
        "proof": summary,
    }));
    Ok(if ok { Outcome::Ok } else { Outcome::Degraded })
}

/// A cause that the plan itself explains.
fn hint(state: &LabState) -> Option<String> {
    let plan = &state.plan;
    let never = plan.pool.ipip == brindle_config_core::pool::EncapMode::Never;
    (never && plan.segments.len() > 1 && plan.router.kind == RouterKind::Plain).then(|| {
        "without ipip the router between the segments must know the pods, and this one does not:\n\
         use --segments 1, or a topology with `router: {kind: frr}`"
            .to_owned()
    })
}

fn next_commands(state: &LabState) -> String {
    let lab = name_flag(&state.plan.name);
    let victim = state.plan.nodes.get(1).or(state.plan.nodes.first()).map_or("node1", |n| n.name.as_str());
    format!(
        "Next:  brindlectl lab status{lab}\n\
         \x20      brindlectl lab break{lab} kill {victim} && brindlectl lab ping{lab}\n\
         \x20      brindlectl lab down{lab}"
    )
}

/// `lab heal`.
pub(crate) fn heal(name: &str, format: Format) -> Result<Outcome> {
    let progress = Progress::new(format);
    super::need_root()?;
    let dir = LabDir::of(name)?;
    let _lock = dir.lock()?;
    let mut state = dir.load_existing()?;
    let stage = progress.stage("heal", 0);
    let undone = breaks::undo(&mut state, &dir)?;
    stage.done(true, &undone);
    let result = settle(&state, &dir, &progress);
    finish(Ok(result), &mut state, &dir, &progress)
}

/// Waits for sessions and routes of a lab whose processes run.
fn settle(state: &LabState, dir: &LabDir, progress: &Progress) -> bool {
    let limit = patience(state.plan.nodes.len());
    let all: Vec<&NodePlan> = state.plan.nodes.iter().collect();
    let sessions: usize = all.iter().map(|n| state.plan.peers_of(&n.name).len()).sum();
    let stage = progress.stage("sessions", sessions);
    let missing = converge::wait_sessions(state, dir, &all, limit, |n| stage.at(n));
    stage.done(missing.is_empty(), &sessions_text(&state.plan, sessions, missing.len()));
    told(progress, &missing);
    let stage = progress.stage("routes", converge::routed_places(&state.plan).len());
    let routes = converge::wait_routes(state, Duration::from_secs(15), |n| stage.at(n));
    stage.done(
        routes.is_empty(),
        &format!("every node has a route to every one of {} pods", state.pods.len()),
    );
    told(progress, &routes);
    missing.is_empty() && routes.is_empty()
}

/// What `lab add node` was told.
pub(crate) struct NewNode {
    pub(crate) name: Option<String>,
    pub(crate) segment: Option<String>,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) pods: u16,
}

/// `lab add node`.
pub(crate) fn add_node(name: &str, new: NewNode, format: Format) -> Result<Outcome> {
    let progress = Progress::new(format);
    super::need_root()?;
    let dir = LabDir::of(name)?;
    let _lock = dir.lock()?;
    let mut state = dir.load_existing()?;
    if state.phase != Phase::Up {
        bail!("lab {name:?} is half-made; remove it with `brindlectl lab down{}`", name_flag(name));
    }
    let plan = &state.plan;
    let number = plan.nodes.iter().map(|n| n.number).max().unwrap_or(0) + 1;
    let population = |s: &str| plan.nodes.iter().filter(|n| n.segment == s).count();
    let emptiest = plan.segments.iter().min_by_key(|s| population(&s.name)).map(|s| s.name.clone());
    let node = NodeTopology {
        name: new.name.unwrap_or_else(|| format!("node{number}")),
        segment: new.segment.or(emptiest).unwrap_or_default(),
        address: new.address,
        agent: AgentKind::Brindle,
        pods: new.pods,
        ipip_carrier: Carrier::Auto,
        block: None,
    };
    let node = state.plan.push_node(&node, "node")?.clone();
    dir.save(&state)?;
    let stage = progress.stage("namespaces", 0);
    let names = [node.namespace.as_str()].into_iter().chain(node.pods.iter().map(|p| p.namespace.as_str()));
    let made = build::namespaces(names)?;
    build::link_one(&state.plan, &node)?;
    stage.done(true, &{
        let addresses: Vec<_> = state.plan.addresses(&node).iter().map(ToString::to_string).collect();
        format!("{made}; {} {} on {}", node.name, addresses.join(" "), node.segment)
    });
    store::write(&dir, store::node_resources(&state.plan, &node)?)?;
    agents::reconfigure_birds(&state.plan, &dir)?;
    let result = bring_up(&mut state, &dir, &[node], &progress);
    finish(result, &mut state, &dir, &progress)
}
