//! `lab break` and its undoing. What is broken is written down before it is broken, so that `heal` always knows.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use brindle_kernel::process::{self, Tell};
use serde_json::json;

use super::{
    agents, build,
    converge::name_flag,
    plan::LabPlan,
    state::{Break, LabDir, LabState},
    wait::until,
};
use crate::{Outcome, args::Format, out};

/// How long a killed process may take to go.
const PATIENCE: Duration = Duration::from_secs(10);

impl Break {
    /// `kill node2`.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Kill(n) => format!("kill {n}"),
            Self::Link(n) => format!("link {n}"),
            Self::Partition(s) => format!("partition {s}"),
        }
    }
}

fn check(plan: &LabPlan, what: &Break) -> Result<()> {
    let nodes = || plan.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(" ");
    match what {
        Break::Kill(n) | Break::Link(n) if plan.node(n).is_none() => {
            bail!("there is no node {n:?} in lab {:?}; there are: {}", plan.name, nodes())
        }
        Break::Partition(s) if plan.segment(s).is_none() => {
            let segments: Vec<_> = plan.segments.iter().map(|s| s.name.as_str()).collect();
            bail!("there is no segment {s:?} in lab {:?}; there are: {}", plan.name, segments.join(" "))
        }
        _ => Ok(()),
    }
}

/// The fabric's port that a break takes down.
fn port<'a>(plan: &'a LabPlan, what: &Break) -> Option<&'a str> {
    match what {
        Break::Kill(_) => None,
        Break::Link(n) => plan.node(n).map(|n| n.port.as_str()),
        Break::Partition(s) => plan.segment(s).map(|s| s.router_port.as_str()),
    }
}

/// `lab break`.
pub(crate) fn break_it(name: &str, what: Break, format: Format) -> Result<Outcome> {
    super::need_root()?;
    let dir = LabDir::of(name)?;
    let _lock = dir.lock()?;
    let mut state = dir.load_existing()?;
    check(&state.plan, &what)?;
    if !state.breaks.contains(&what) {
        state.breaks.push(what.clone());
    }
    dir.save(&state)?;
    let done = match &what {
        Break::Kill(node) => {
            let mut killed = Vec::new();
            for p in state.processes.iter().filter(|p| p.place == *node) {
                if process::tell(p.pid, p.start_time, Tell::Kill)
                    .with_context(|| format!("cannot kill {} ({})", p.program, p.pid))?
                {
                    killed.push(format!("{} (pid {})", p.program, p.pid));
                }
            }
            // A process with open files takes a moment to go, and `heal` must not take it for alive.
            let dead = || !state.processes.iter().any(|p| p.place == *node && agents::alive(p));
            if !until(PATIENCE, dead) {
                bail!(
                    "what was killed on {node} does not end; see: brindlectl lab status{}",
                    name_flag(name)
                );
            }
            if killed.is_empty() {
                bail!("nothing lives on {node} that could be killed; brindlectl lab heal{}", name_flag(name));
            }
            format!("killed {} on {node} with SIGKILL; what it put into the kernel stays", killed.join(", "))
        }
        other => {
            let port = port(&state.plan, other).context("checked above")?;
            build::set_ports(&state.plan, &[port], false)?;
            match other {
                Break::Partition(s) => format!("cut segment {s} off the router"),
                _ => format!("cut the link of {}", other.words().trim_start_matches("link ")),
            }
        }
    };
    let lab = name_flag(name);
    match format {
        Format::Json => out::json(&json!({ "lab": name, "broken": what, "text": done })),
        Format::Table => {
            out::sentence(&done);
            out::say!(
                "Next:  brindlectl lab ping{lab}\n       brindlectl lab status{lab}\n       brindlectl lab heal{lab}"
            );
        }
    }
    Ok(Outcome::Ok)
}

/// Undoes every break and starts what is dead; says what it did.
pub(crate) fn undo(state: &mut LabState, dir: &LabDir) -> Result<String> {
    let mut done: Vec<String> = state.breaks.iter().map(Break::words).collect();
    let plan = state.plan.clone();
    let ports: Vec<_> = plan
        .nodes
        .iter()
        .map(|n| n.port.as_str())
        .chain(plan.segments.iter().map(|s| s.router_port.as_str()))
        .collect();
    build::set_ports(&plan, &ports, true)?;
    for node in &plan.nodes {
        if !state.processes.iter().any(|p| p.place == node.name && agents::alive(p)) {
            state.processes.retain(|p| p.place != node.name);
            state.processes.push(agents::start_node(&plan, dir, node)?);
            done.push(format!("started {}", node.name));
        }
    }
    if state.processes.iter().any(|p| p.place == "router" && !agents::alive(p)) {
        // zebra and bgpd belong together: what is left of them is ended, and both start again.
        for p in state.processes.iter().filter(|p| p.place == "router") {
            process::tell(p.pid, p.start_time, Tell::Kill)
                .with_context(|| format!("cannot kill {}", p.program))?;
        }
        until(PATIENCE, || !state.processes.iter().any(|p| p.place == "router" && agents::alive(p)));
        state.processes.retain(|p| p.place != "router");
        state.processes.extend(agents::start_router(&plan, dir)?);
        done.push("started the router".to_owned());
    }
    state.breaks.clear();
    dir.save(state)?;
    Ok(if done.is_empty() { "nothing was broken".to_owned() } else { done.join(", ") })
}

/// What is broken on purpose, as lines under a screen.
pub(crate) fn hints(state: &LabState) -> Vec<String> {
    if state.breaks.is_empty() {
        return Vec::new();
    }
    let words: Vec<_> = state.breaks.iter().map(Break::words).collect();
    vec![format!(
        "broken on purpose: {}; undo: brindlectl lab heal{}",
        words.join(", "),
        name_flag(&state.plan.name)
    )]
}
