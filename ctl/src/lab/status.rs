//! `lab status` and `lab list`.

use anyhow::Result;
use serde_json::json;

use super::{
    agents::{self, View},
    converge::{Problem, name_flag, sessions, silence, views},
    plan::NodePlan,
    render::{NodeRow, StatusScreen},
    state::{self, Break, LabDir, LabState, Phase},
    topology::AgentKind,
};
use crate::{
    Outcome,
    args::Format,
    out::{self, Table},
};

/// `lab status`.
pub(crate) fn status(name: &str, format: Format) -> Result<Outcome> {
    super::need_root()?;
    let dir = LabDir::of(name)?;
    let state = dir.load_existing()?;
    let screen = screen(&state, &dir);
    match format {
        Format::Json => out::json(&screen),
        Format::Table => crate::out::put!("{}", screen.render(out::colours())),
    }
    Ok(if screen.ok { Outcome::Ok } else { Outcome::Degraded })
}

fn screen(state: &LabState, dir: &LabDir) -> StatusScreen {
    let nodes: Vec<&NodePlan> = state.plan.nodes.iter().collect();
    let rows: Vec<_> = nodes
        .iter()
        .zip(views(state, dir, &nodes))
        .map(|(node, view)| row(state, dir, node, &view))
        .collect();
    let lab = name_flag(&state.plan.name);
    let mut problems = Vec::new();
    if state.phase == Phase::Building {
        problems.push(Problem::new("it is half-made", format!("brindlectl lab down{lab}")));
    }
    for p in state.processes.iter().filter(|p| p.place == "router" && !agents::alive(p)) {
        problems.push(Problem::new(
            format!("the router's {} is dead: {}", p.program, agents::last_words(dir, "router")),
            format!("brindlectl lab heal{lab}"),
        ));
    }
    let ok = problems.is_empty() && state.breaks.is_empty() && rows.iter().all(|r| r.problems.is_empty());
    StatusScreen {
        lab: state.plan.name.clone(),
        ok,
        nodes: rows,
        breaks: state.breaks.iter().map(Break::words).collect(),
        problems,
        undo: format!("brindlectl lab heal{lab}"),
    }
}

fn row(state: &LabState, dir: &LabDir, node: &NodePlan, view: &View) -> NodeRow {
    let (peers_up, peers, missing) = sessions(state, node, view);
    let mut row = NodeRow {
        node: node.name.clone(),
        segment: node.segment.clone(),
        address: state.plan.addresses(node).first().map(ToString::to_string).unwrap_or_default(),
        agent: match node.agent {
            AgentKind::Brindle => "brindle".to_owned(),
            AgentKind::Bird => "bird".to_owned(),
        },
        peers_up,
        peers,
        blocks: node.block.iter().map(ToString::to_string).collect(),
        used: node.pods.iter().filter(|p| state.pods.contains_key(&p.name)).count(),
        encap: "-".to_owned(),
        rss_kib: state
            .processes
            .iter()
            .find(|p| p.place == node.name && agents::alive(p))
            .and_then(|p| brindle_kernel::process::rss_kib(p.pid)),
        routes: 0,
        problems: Vec::new(),
    };
    match silence(state, dir, node, view) {
        Some(why) => row.problems.push(why),
        None => row.problems.extend(missing),
    }
    for pod in node.pods.iter().filter(|p| !state.pods.contains_key(&p.name)) {
        row.problems.push(Problem::plain(format!("pod {} was never attached", pod.name)));
    }
    if let View::Brindle(status) = view {
        row.blocks = status.blocks.iter().map(ToString::to_string).collect();
        row.encap.clone_from(&status.encap.device);
        row.routes = status.routes.desired;
        row.problems
            .extend(status.routes.failed.iter().map(|f| Problem::plain(format!("route refused: {f}"))));
        // A ready agent may have reasons too, such as a datastore that is not there any more.
        let told = |r: &&String| !status.routes.failed.contains(r);
        row.problems.extend(status.reasons.iter().filter(told).map(Problem::plain));
        if status.encap.refused > 0 {
            row.problems.push(Problem::plain(format!(
                "{} encapsulated packets refused: their outer source is no known node",
                status.encap.refused
            )));
        }
    }
    row
}

/// `lab list`.
pub(crate) fn list(format: Format) -> Result<Outcome> {
    let mut labs = Vec::new();
    let mut table = Table::new(&["LAB", "STATE", "NODES", "PODS", "BROKEN"]);
    let mut outcome = Outcome::Ok;
    for dir in state::all()? {
        let (phase, nodes, pods, broken) = match dir.load() {
            Ok(Some(s)) => {
                let phase = if s.phase == Phase::Up { "up" } else { "half-made" };
                (phase, s.plan.nodes.len(), s.pods.len(), s.breaks.len())
            }
            Ok(None) => ("half-made", 0, 0, 0),
            Err(_) => ("unreadable", 0, 0, 0),
        };
        if phase != "up" {
            outcome = Outcome::Degraded;
        }
        labs.push(
            json!({ "lab": dir.name(), "state": phase, "nodes": nodes, "pods": pods, "broken": broken }),
        );
        table.row([
            dir.name().to_owned(),
            phase.into(),
            nodes.to_string(),
            pods.to_string(),
            broken.to_string(),
        ]);
    }
    match format {
        Format::Json => out::json(&labs),
        Format::Table if labs.is_empty() => crate::out::say!("no labs; build one: brindlectl lab up"),
        Format::Table => crate::out::put!("{}", table.render()),
    }
    Ok(outcome)
}
