//! Waiting for a lab to come together, and saying what is missing when it does not: agents that answer, sessions,
//! routes to every pod. What a person can do about it is part of the answer.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Duration,
};

use brindle_kernel::netlink::{Family, Route, RouteFilter, RouteKind, Rtnl};

use serde::Serialize;

use super::{
    agents::{self, View},
    build,
    plan::{LabPlan, NodePlan},
    state::{Break, LabDir, LabState},
    topology::RouterKind,
    wait::{parallel, until},
};

/// Threads that ask agents at the same time.
const WIDTH: usize = 8;

/// Something that is not as it should be: what and why, and what to type next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    pub(crate) what: String,
    pub(crate) next: Option<String>,
}

impl Problem {
    pub(crate) fn new(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), next: Some(next.into()) }
    }

    /// Nothing in particular can be typed against it.
    pub(crate) fn plain(what: impl Into<String>) -> Self {
        Self { what: what.into(), next: None }
    }
}

/// Something that is not there yet, or not any more, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) node: String,
    pub(crate) problem: Problem,
    /// Waiting will not bring it.
    pub(crate) hopeless: bool,
}

impl Missing {
    pub(crate) fn new(node: &str, problem: Problem) -> Self {
        Self { node: node.to_owned(), problem, hopeless: false }
    }
}

/// Asks many nodes at once.
pub(crate) fn views(state: &LabState, dir: &LabDir, nodes: &[&NodePlan]) -> Vec<View> {
    parallel(nodes, WIDTH, |node| agents::view(state, dir, node))
}

/// What to add to every command that names this lab.
pub(crate) fn name_flag(lab: &str) -> String {
    if lab == crate::meaning::DEFAULT_LAB { String::new() } else { format!(" --name {lab}") }
}

/// Why a node does not answer; `None` when it does.
pub(crate) fn silence(state: &LabState, dir: &LabDir, node: &NodePlan, view: &View) -> Option<Problem> {
    let heal = format!("brindlectl lab heal{}", name_flag(&state.plan.name));
    match view {
        View::Dead if state.breaks.contains(&Break::Kill(node.name.clone())) => {
            Some(Problem::new("the agent was killed on purpose", heal))
        }
        View::Dead => Some(Problem::new(
            format!("the agent is dead; its last words: {}", agents::last_words(dir, &node.name)),
            heal,
        )),
        View::Silent(why) => Some(Problem::new(
            format!("the agent does not answer: {why}"),
            format!("tail {}", dir.log(&node.name).display()),
        )),
        View::Brindle(_) | View::Bird(_) => None,
    }
}

/// Established sessions of a node, all it should have, and a line for each that is missing.
pub(crate) fn sessions(state: &LabState, node: &NodePlan, view: &View) -> (usize, usize, Vec<Problem>) {
    let expected = state.plan.peers_of(&node.name);
    let mut missing = Vec::new();
    for (address, name) in &expected {
        let (up, now) = match view {
            View::Brindle(status) => match status.bgp.peers.iter().find(|p| p.address == *address) {
                Some(p) if p.state == "Established" => (true, String::new()),
                Some(p) => {
                    let error = p.last_error.as_ref().map(|e| format!(" ({e})")).unwrap_or_default();
                    (false, format!("is {}{error}", p.state))
                }
                None => (false, "is not configured".to_owned()),
            },
            View::Bird(sessions) => {
                let wanted = if name == "router" {
                    "tor".to_owned()
                } else {
                    format!("mesh_{}", name.replace('-', "_"))
                };
                match sessions.iter().find(|(n, _)| *n == wanted) {
                    Some((_, true)) => (true, String::new()),
                    Some((_, false)) => (false, "is down".to_owned()),
                    None => (false, "is not configured".to_owned()),
                }
            }
            View::Dead | View::Silent(_) => (false, "cannot be asked for".to_owned()),
        };
        if !up {
            let (cause, mut next) = blame(state, node, name, *address);
            // Who answers with a NOTIFICATION can be reached: the settings of both are what to look at.
            if cause.is_none() && now.contains("NOTIFICATION") {
                let lab = &state.plan.name;
                next = format!("brindlectl bgp neighbor {address} --lab {lab} --node {}", node.name);
            }
            let cause = cause.map(|c| format!(": {c}")).unwrap_or_default();
            missing.push(Problem::new(format!("session with {name} ({address}) {now}{cause}"), next));
        }
    }
    (expected.len() - missing.len(), expected.len(), missing)
}

/// The most likely cause of a missing session, and what to type.
fn blame(state: &LabState, node: &NodePlan, peer: &str, address: IpAddr) -> (Option<String>, String) {
    let lab = name_flag(&state.plan.name);
    let cause = state.breaks.iter().find_map(|b| match b {
        Break::Kill(n) if n == peer => Some(format!("{n}'s agent was killed on purpose")),
        Break::Link(n) if n == peer || *n == node.name => Some(format!("{n}'s link was cut on purpose")),
        Break::Partition(s) => {
            let there = state.plan.node(peer).map(|n| n.segment.as_str());
            let crosses = (there == Some(s.as_str())) != (node.segment == *s);
            (crosses || peer == "router").then(|| format!("segment {s} was cut off on purpose"))
        }
        Break::Kill(_) | Break::Link(_) => None,
    });
    match cause {
        Some(cause) => (Some(cause), format!("brindlectl lab heal{lab}")),
        None => (None, format!("brindlectl lab exec{lab} {} -- ping -c1 {address}", node.name)),
    }
}

/// Waits until every node answers and has its sessions; returns what is missing then. `at` learns the progress.
pub(crate) fn wait_sessions(
    state: &LabState,
    dir: &LabDir,
    nodes: &[&NodePlan],
    limit: Duration,
    at: impl Fn(usize),
) -> Vec<Missing> {
    // Only who is not complete is asked again.
    let mut open: Vec<&NodePlan> = nodes.to_vec();
    let mut missing: BTreeMap<String, Vec<Missing>> = BTreeMap::new();
    let all: usize = nodes.iter().map(|n| state.plan.peers_of(&n.name).len()).sum();
    until(limit, || {
        let seen = views(state, dir, &open);
        let mut still = Vec::new();
        for (node, view) in open.iter().zip(&seen) {
            let lines = look(state, dir, node, view);
            if lines.is_empty() {
                missing.remove(&node.name);
            } else {
                missing.insert(node.name.clone(), lines);
                still.push(*node);
            }
        }
        open = still;
        at(all.saturating_sub(missing.values().map(Vec::len).sum()));
        open.is_empty() || missing.values().flatten().any(|m| m.hopeless)
    });
    missing.into_values().flatten().collect()
}

/// What a node lacks: an answer, or sessions.
fn look(state: &LabState, dir: &LabDir, node: &NodePlan, view: &View) -> Vec<Missing> {
    match silence(state, dir, node, view) {
        // A dead agent does not come back by waiting.
        Some(problem) => {
            vec![Missing { hopeless: matches!(view, View::Dead), ..Missing::new(&node.name, problem) }]
        }
        None => sessions(state, node, view).2.into_iter().map(|p| Missing::new(&node.name, p)).collect(),
    }
}

/// Waits until every node answers at all.
pub(crate) fn wait_agents(
    state: &LabState,
    dir: &LabDir,
    nodes: &[&NodePlan],
    limit: Duration,
    at: impl Fn(usize),
) -> Vec<Missing> {
    let mut open: Vec<&NodePlan> = nodes.to_vec();
    let mut missing = Vec::new();
    until(limit, || {
        let seen = views(state, dir, &open);
        missing = open
            .iter()
            .zip(&seen)
            .filter_map(|(node, view)| {
                let problem = silence(state, dir, node, view)?;
                Some(Missing { hopeless: matches!(view, View::Dead), ..Missing::new(&node.name, problem) })
            })
            .collect();
        open.retain(|n| missing.iter().any(|m| m.node == n.name));
        at(nodes.len() - open.len());
        open.is_empty() || missing.iter().any(|m| m.hopeless)
    });
    missing
}

/// Waits until every node has a route to every pod that leads out of the node (the default route does not count);
/// returns what is missing then. The kernels are asked, not the agents.
pub(crate) fn wait_routes(state: &LabState, limit: Duration, at: impl Fn(usize)) -> Vec<Missing> {
    let plan = &state.plan;
    let pods: Pods<'_> = plan
        .pods()
        .filter_map(|(node, pod)| {
            Some((pod.name.as_str(), (state.pods.get(&pod.name)?.addresses.as_slice(), node.name.as_str())))
        })
        .collect();
    let mut places = routed_places(plan);
    let total = places.len();
    let mut missing = Vec::new();
    until(limit, || {
        let found = parallel(&places, WIDTH, |(place, namespace)| unreached(place, namespace, &pods));
        let (done, open): (Vec<_>, Vec<_>) =
            places.iter().copied().zip(found).partition(|(_, pods)| pods.is_empty());
        drop(done);
        missing = open
            .iter()
            .map(|((place, _), lost)| {
                let first = lost.first().map_or("", |p| p.as_str());
                Missing::new(
                    place,
                    Problem::new(
                        format!("no route to {} of {} pods: {first}, ...", lost.len(), pods.len()),
                        format!("brindlectl lab exec{} {place} -- ip route", name_flag(&plan.name)),
                    ),
                )
            })
            .collect();
        places = open.into_iter().map(|(place, _)| place).collect();
        at(total - places.len());
        places.is_empty()
    });
    missing
}

/// Places that must have routes to pods, and their namespaces: nodes, and an FRR router.
pub(crate) fn routed_places(plan: &LabPlan) -> Vec<(&str, &str)> {
    let router = (plan.router.kind == RouterKind::Frr).then_some(("router", plan.router.namespace.as_str()));
    plan.nodes.iter().map(|n| (n.name.as_str(), n.namespace.as_str())).chain(router).collect()
}

/// Addresses and node of each pod.
type Pods<'s> = HashMap<&'s str, (&'s [IpAddr], &'s str)>;

/// The pods a place has no route to.
fn unreached(place: &str, namespace: &str, pods: &Pods<'_>) -> Vec<String> {
    let six = pods.values().any(|(all, _)| all.iter().any(IpAddr::is_ipv6));
    let filter = RouteFilter { family: (!six).then_some(Family::V4), ..RouteFilter::main() };
    let routes = build::open(namespace)
        .ok()
        .and_then(|ns| Rtnl::open_in(&ns).ok())
        .and_then(|mut rtnl| rtnl.routes(&filter).ok())
        .unwrap_or_default();
    let mut lost: Vec<_> = pods
        .iter()
        .filter(|(_, (_, node))| *node != place)
        .filter_map(|(pod, (all, _))| {
            all.iter().find(|a| !covered(&routes, **a)).map(|address| format!("{pod} {address}"))
        })
        .collect();
    lost.sort();
    lost
}

/// Whether the longest match is a unicast route other than the default.
fn covered(routes: &[Route], address: IpAddr) -> bool {
    routes
        .iter()
        .filter(|r| r.dst.prefix_len() > 0 && r.dst.contains(&address))
        .max_by_key(|r| r.dst.prefix_len())
        .is_some_and(|r| r.kind == RouteKind::Unicast)
}

/// Which pairs of nodes talk through a tunnel and which directly, and why: a line for the `encap` stage.
pub(crate) fn encapsulation(plan: &LabPlan, views: &[View]) -> String {
    let mut devices: BTreeMap<String, usize> = BTreeMap::new();
    let (mut direct, mut tunnelled, mut reasons) = (0, 0, BTreeMap::<(String, String), usize>::new());
    for view in views {
        let View::Brindle(status) = view else { continue };
        *devices.entry(device(&status.encap.device, &status.encap.why)).or_default() += 1;
        for path in &status.encap.paths {
            if path.mode == "ipip" {
                tunnelled += 1
            } else {
                direct += 1
            }
            *reasons.entry((path.mode.clone(), path.why.clone())).or_default() += 1;
        }
    }
    let list = |m: &BTreeMap<String, usize>| m.keys().cloned().collect::<Vec<_>>().join("; ");
    let mode = if plan.families.v4() { mode_name(plan) } else { "IPv6 is not encapsulated" };
    let mut text = format!("{mode}: {direct} paths direct, {tunnelled} by ipip");
    if !devices.is_empty() {
        text += &format!("; device: {}", list(&devices));
    }
    text
}

fn device(device: &str, why: &str) -> String {
    if why.is_empty() { device.to_owned() } else { format!("{device} ({why})") }
}

/// The pool's mode as the command line spells it.
pub(crate) fn mode_name(plan: &LabPlan) -> &'static str {
    use brindle_config_core::pool::EncapMode;
    match plan.pool.ipip {
        EncapMode::Always => "always",
        EncapMode::CrossSubnet => "crosssubnet",
        EncapMode::Never => "never",
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;

    #[test]
    fn a_blackhole_and_the_default_route_lead_nowhere() {
        let net = |s: &str| s.parse::<IpNet>().unwrap();
        let pod = "192.168.5.3".parse().unwrap();
        let default = Route::new(net("0.0.0.0/0")).via("10.0.0.1".parse().unwrap(), Some(2), false);
        assert!(!covered(std::slice::from_ref(&default), pod));
        let block = Route::new(net("192.168.5.0/26")).via("10.0.0.2".parse().unwrap(), Some(2), false);
        assert!(covered(&[default.clone(), block.clone()], pod));
        let hole = Route::blackhole(net("192.168.5.0/28"));
        assert!(!covered(&[default, block, hole], pod));
    }
}
