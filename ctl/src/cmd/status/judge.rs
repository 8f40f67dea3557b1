//! What is wrong with a cluster, why, and what to type next. Pure: answers in, a screen out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use brindle_config_core::status::{NodeAt, NodeStatus, PeerStatus};
use ipnet::IpNet;

use super::{
    gather::Seen,
    screen::{Health, Pair, Policy, Problem, Row, Screen},
};
use crate::cluster::{Silence, Source};

/// Percent of a pool in use from which it is worth a line.
const NEARLY_FULL: u128 = 90;

/// Judges what was seen. `ours`: this program's version.
pub(super) fn judge(seen: &Seen, source: &Source, ours: &str) -> Screen {
    let j = Judge { seen, flag: source.flag(), lab: matches!(source, Source::Lab(_)), source };
    let rows: Vec<Row> = seen.nodes.iter().map(|(at, answer)| j.row(at, answer)).collect();
    let mut problems: Vec<Problem> = seen.nodes.iter().flat_map(|(at, answer)| j.node(at, answer)).collect();
    problems.extend(j.cluster(ours));
    let answered: Vec<&NodeStatus> = seen.nodes.iter().filter_map(|(_, a)| a.as_ref().ok()).collect();
    let asked = rows.iter().filter(|r| r.health != Health::NotAsked).count();
    let health = match (answered.is_empty() && asked > 0, problems.is_empty()) {
        (true, _) => Health::Silent,
        (false, true) => Health::Ok,
        (false, false) => Health::Degraded,
    };
    let stored = seen.stored.clone().unwrap_or_default();
    let back_ends: BTreeSet<String> =
        answered.iter().map(|s| s.policy.back_end.clone()).filter(|b| !b.is_empty()).collect();
    Screen {
        cluster: source.name(),
        health,
        answered: answered.len(),
        pods: answered.iter().map(|s| s.pods.len()).sum(),
        segments: pairs(seen),
        pools: stored.pools,
        policy: Policy {
            counts: stored.policies,
            known: seen.stored.is_some(),
            in_force: answered.iter().filter(|s| s.policy.in_sync).count(),
            back_ends: back_ends.into_iter().collect(),
        },
        nodes: rows,
        problems,
    }
}

fn established(p: &PeerStatus) -> bool {
    p.state == "Established"
}

/// The subnet of a node, by which nodes are on one segment.
fn segment(at: &NodeAt) -> Option<IpNet> {
    at.addresses.first().map(IpNet::trunc)
}

/// Paths in use between each two segments.
fn pairs(seen: &Seen) -> Vec<Pair> {
    let of_address: BTreeMap<IpAddr, IpNet> =
        (seen.nodes.iter()).flat_map(|(at, _)| at.addresses.iter().map(|a| (a.addr(), a.trunc()))).collect();
    let mut all: BTreeMap<(String, String), Pair> = BTreeMap::new();
    for (at, answer) in &seen.nodes {
        let Ok(status) = answer else { continue };
        for path in &status.encap.paths {
            let here = at.addresses.iter().find(|a| a.addr().is_ipv4() == path.via.is_ipv4());
            let Some(here) = here.map(IpNet::trunc).or_else(|| segment(at)) else { continue };
            let there = of_address.get(&path.via).map_or_else(|| "elsewhere".to_owned(), ToString::to_string);
            let mut ends = [here.to_string(), there];
            ends.sort();
            let [a, b] = ends;
            let pair = all.entry((a.clone(), b.clone())).or_insert_with(|| Pair { a, b, ..Pair::default() });
            if path.mode == "ipip" {
                pair.ipip += 1;
                if !pair.devices.contains(&status.encap.device) {
                    pair.devices.push(status.encap.device.clone());
                }
            } else {
                pair.direct += 1;
            }
        }
    }
    all.into_values().collect()
}

struct Judge<'a> {
    seen: &'a Seen,
    /// Added to commands about the same cluster.
    flag: String,
    lab: bool,
    source: &'a Source,
}

impl Judge<'_> {
    fn row(&self, at: &NodeAt, answer: &Result<NodeStatus, Silence>) -> Row {
        let mut row = Row {
            node: at.name.clone(),
            addresses: at.addresses.iter().map(ToString::to_string).collect(),
            role: if at.reflector { "reflector" } else { "node" }.into(),
            ..Row::default()
        };
        match answer {
            Ok(s) => {
                row.version.clone_from(&s.version);
                row.peers = s.bgp.peers.len();
                row.peers_up = s.bgp.peers.iter().filter(|p| established(p)).count();
                row.blocks = s.blocks.iter().map(ToString::to_string).collect();
                row.room = s.blocks.iter().map(room).sum();
                row.used = s.pods.len();
                row.encap.clone_from(&s.encap.device);
                row.rss_kib = Some(s.rss_kib);
                row.health = if self.node(at, answer).is_empty() { Health::Ok } else { Health::Degraded };
            }
            Err(silence) => {
                row.health = if self.lab && matches!(silence, Silence::Unreachable(..)) {
                    Health::NotAsked
                } else {
                    Health::Silent
                };
                row.deadline_ms =
                    silence.deadline().map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
            }
        }
        row
    }

    /// Everything wrong with one node.
    fn node(&self, at: &NodeAt, answer: &Result<NodeStatus, Silence>) -> Vec<Problem> {
        let tell = |what: String, next: String| Problem { node: Some(at.name.clone()), what, next };
        let s = match answer {
            Ok(s) => s,
            // A node of a lab that runs something else is no problem.
            Err(Silence::Unreachable(..)) if self.lab => return Vec::new(),
            Err(silence) => return vec![tell(self.silence(at, silence), self.revive(at, silence))],
        };
        let flag = &self.flag;
        let whole = format!("brindlectl status{flag} --node {}", at.name);
        let mut all = Vec::new();
        for p in s.bgp.peers.iter().filter(|p| !established(p)) {
            // The cause is told once, at the node that does not answer.
            if self.silent(&p.name) {
                continue;
            }
            let error = p.last_error.as_ref().map(|e| format!(" ({e})")).unwrap_or_default();
            all.push(tell(
                format!(
                    "session with {} ({}) is {} for {}{error}",
                    p.name,
                    p.address,
                    p.state,
                    super::one::age(p.since_ms)
                ),
                format!("brindlectl bgp neighbor {}{flag} --node {}", p.name, at.name),
            ));
        }
        for failed in &s.routes.failed {
            all.push(tell(format!("route refused: {failed}"), whole.clone()));
        }
        if s.encap.refused > 0 {
            let what =
                format!("{} tunnelled packets refused: their source is no known node", s.encap.refused);
            all.push(tell(what, format!("brindlectl get nodes{flag} -o wide")));
        }
        let told: BTreeSet<&String> = s.routes.failed.iter().chain(&s.policy.problems).collect();
        // What readiness says of sessions that are down was told of each, or at the node that does not answer.
        let down = !s.bgp.peers.iter().all(established);
        let of_sessions = |r: &String| down && r.starts_with("bgp: ");
        for reason in s.reasons.iter().filter(|r| !told.contains(r) && !of_sessions(r)) {
            all.push(tell(reason.clone(), whole.clone()));
        }
        for problem in &s.policy.problems {
            all.push(tell(format!("policy: {problem}"), whole.clone()));
        }
        for pod in s.pods.iter().filter(|p| !p.ready) {
            let name = format!("{}/{}", pod.namespace, pod.name);
            let what = format!("pod {name} is not ready: its routes or policy are not in the kernel yet");
            all.push(tell(what, format!("brindlectl route{flag} {} {name}", at.name)));
        }
        if !s.ready && all.is_empty() && !down {
            all.push(tell("not ready, and does not say why".into(), whole));
        }
        all
    }

    /// Whether a node of this name does not answer.
    fn silent(&self, name: &str) -> bool {
        self.seen.nodes.iter().any(|(at, a)| {
            at.name == name && a.as_ref().is_err_and(|e| !(self.lab && matches!(e, Silence::Unreachable(..))))
        })
    }

    fn silence(&self, at: &NodeAt, silence: &Silence) -> String {
        let why = match silence {
            Silence::Absent { at, why } => format!("nobody answers at {at}: {why}"),
            other => other.to_string(),
        };
        let down = (self.seen.nodes.iter())
            .filter_map(|(_, a)| a.as_ref().ok())
            .filter(|s| s.bgp.peers.iter().any(|p| p.name == at.name && !established(p)))
            .count();
        match down {
            0 => why,
            1 => format!("{why}; one session with it is down"),
            n => format!("{why}; {n} sessions with it are down"),
        }
    }

    /// What to type when a node says nothing.
    fn revive(&self, at: &NodeAt, silence: &Silence) -> String {
        match silence {
            Silence::Unreachable(_, Some(next)) => next.clone(),
            _ if self.lab => format!("brindlectl lab status{}", self.flag.replace("--lab", "--name")),
            Silence::Token { .. } => "compare the token files of both machines (--admin-token-file)".into(),
            // Agents are the pods of a DaemonSet there, and kubectl takes a node for pods alone.
            _ if self.source.kubernetes() => format!(
                "kubectl -n kube-system logs --tail 20 $(kubectl -n kube-system get pod -o name \
                 -l k8s-app=brindle-node --field-selector spec.nodeName={})",
                at.name
            ),
            _ => format!("on {}: journalctl -u brindle-node -n 20", at.name),
        }
    }

    /// What concerns no node alone.
    fn cluster(&self, ours: &str) -> Vec<Problem> {
        let flag = &self.flag;
        let mut all = Vec::new();
        if let Some(trouble) = &self.seen.trouble {
            let next = format!("brindlectl get nodes{flag}");
            all.push(Problem { node: None, what: format!("the datastore cannot be read: {trouble}"), next });
        }
        let answered: Vec<&NodeStatus> =
            self.seen.nodes.iter().filter_map(|(_, a)| a.as_ref().ok()).collect();
        let versions: BTreeSet<&str> = answered.iter().map(|s| s.version.as_str()).chain([ours]).collect();
        if versions.len() > 1 {
            let list: Vec<&str> = versions.into_iter().collect();
            all.push(Problem {
                node: None,
                what: format!("versions differ: {} (brindlectl is {ours})", list.join(", ")),
                next: format!("brindlectl version --all{flag}"),
            });
        }
        for line in answered.iter().flat_map(|s| &s.policy.resources).collect::<BTreeSet<_>>() {
            let resource = line.split(':').next().unwrap_or_default();
            let (kind, rest) = resource.split_once('(').unwrap_or(("", ""));
            let name = rest.trim_end_matches(')');
            let next = match (kind, name.split_once('/')) {
                ("", _) => format!("brindlectl get gnp{flag} -o wide"),
                (kind, Some((ns, name))) => {
                    format!("brindlectl edit{flag} -n {ns} {} {name}", kind.to_lowercase())
                }
                (kind, None) => format!("brindlectl edit{flag} {} {name}", kind.to_lowercase()),
            };
            all.push(Problem { node: None, what: line.clone(), next });
        }
        for p in self.seen.stored.iter().flat_map(|s| &s.pools) {
            if p.total > 0 && p.used * 100 / p.total >= NEARLY_FULL {
                all.push(Problem {
                    node: None,
                    what: format!(
                        "pool {} {} is nearly full: {} of {} in use",
                        p.name, p.cidr, p.used, p.total
                    ),
                    next: format!("brindlectl ipam show{flag} --show-blocks"),
                });
            }
        }
        all
    }
}

/// Addresses of a block; very large ones are "many".
fn room(block: &IpNet) -> u64 {
    let bits = block.max_prefix_len() - block.prefix_len();
    1u64.checked_shl(u32::from(bits)).unwrap_or(u64::MAX >> 8)
}

#[cfg(test)]
mod tests;
