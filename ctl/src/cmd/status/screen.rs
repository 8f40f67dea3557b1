//! The cluster's screen: its stable JSON form, and the table in 80 columns.

use std::fmt::Write as _;

use serde::Serialize;

use super::gather::{PolicyCounts, PoolUse};
use crate::{
    Outcome,
    lab::progress::wrap,
    out::{Mood, Table, WIDTH, paint},
};

/// Longest name of a node that is shown whole.
const NAME: usize = 18;
/// Pairs of segments shown; more are counted.
const PAIRS: usize = 12;

/// How something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Health {
    #[default]
    Ok,
    Degraded,
    /// Does not answer.
    Silent,
    /// Runs something that is not asked.
    NotAsked,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    pub(super) node: String,
    pub(super) addresses: Vec<String>,
    /// `node`, `reflector`.
    pub(super) role: String,
    pub(super) version: String,
    pub(super) peers_up: usize,
    pub(super) peers: usize,
    pub(super) blocks: Vec<String>,
    /// Addresses in its blocks.
    pub(super) room: u64,
    /// Pods.
    pub(super) used: usize,
    /// `none`, `kernel`, `carrier`.
    pub(super) encap: String,
    pub(super) rss_kib: Option<u64>,
    pub(super) health: Health,
    /// The deadline it missed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) deadline_ms: Option<u64>,
}

/// Paths between two segments, or within one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Pair {
    pub(super) a: String,
    pub(super) b: String,
    pub(super) direct: usize,
    pub(super) ipip: usize,
    /// What carries ipip.
    pub(super) devices: Vec<String>,
}

/// Policy as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Policy {
    #[serde(flatten)]
    pub(super) counts: PolicyCounts,
    /// Whether the datastore could be asked for the counts.
    pub(super) known: bool,
    /// Nodes on which it is in force.
    pub(super) in_force: usize,
    pub(super) back_ends: Vec<String>,
}

/// Something that is wrong, and what to type next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    pub(super) node: Option<String>,
    pub(super) what: String,
    pub(super) next: String,
}

/// The screen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Screen {
    pub(super) cluster: String,
    pub(super) health: Health,
    /// Nodes that answered.
    pub(super) answered: usize,
    pub(super) pods: usize,
    pub(super) nodes: Vec<Row>,
    pub(super) segments: Vec<Pair>,
    pub(super) pools: Vec<PoolUse>,
    pub(super) policy: Policy,
    pub(super) problems: Vec<Problem>,
}

/// `one pool`, `3 pools`.
fn count(n: usize, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}

/// A name that leaves room for the rest.
fn short(name: &str) -> String {
    if name.chars().count() <= NAME {
        return name.to_owned();
    }
    name.chars().take(NAME - 1).chain(['…']).collect()
}

/// A command to copy: one too long for a line goes on in the next as a shell has it.
fn typable(command: &str) -> String {
    const LEFT: usize = "  next: ".len();
    if LEFT + command.chars().count() <= WIDTH {
        return command.to_owned();
    }
    wrap(command, WIDTH - LEFT - " \\".len()).join(&format!(" \\\n{:LEFT$}", ""))
}

impl Screen {
    pub(super) fn outcome(&self) -> Outcome {
        match self.health {
            Health::Ok => Outcome::Ok,
            Health::Degraded | Health::NotAsked => Outcome::Degraded,
            Health::Silent => Outcome::Code(2),
        }
    }

    /// The screen as text.
    pub(super) fn render(&self, colours: bool) -> String {
        let sum = |f: fn(&Row) -> usize| self.nodes.iter().map(f).sum::<usize>();
        let verdict = match self.health {
            Health::Ok => paint("ok", Mood::Good, colours),
            Health::Degraded | Health::NotAsked => paint("DEGRADED", Mood::Bad, colours),
            Health::Silent => paint("NO ANSWER", Mood::Bad, colours),
        };
        let mut text = format!(
            "{}\nnodes {}/{}, sessions {}/{}, pods {}: {verdict}\n\n",
            self.cluster,
            self.answered,
            self.nodes.len(),
            sum(|n| n.peers_up),
            sum(|n| n.peers),
            self.pods,
        );
        text += &self.nodes();
        text += &self.segments();
        text += &self.pools();
        text += &self.policy();
        for p in &self.problems {
            let place = p.node.as_deref().unwrap_or("cluster");
            text.push('\n');
            for (i, line) in wrap(&format!("{place}: {}", p.what), WIDTH - 4).into_iter().enumerate() {
                let _ = writeln!(text, "{}{line}", if i == 0 { "" } else { "    " });
            }
            let _ = writeln!(text, "  next: {}", typable(&p.next));
        }
        text
    }

    fn nodes(&self) -> String {
        let mut table =
            Table::new(&["NODE", "ADDRESS", "ROLE", "PEERS", "BLOCKS", "USED", "ENCAP", "HEALTH"]);
        for n in &self.nodes {
            let address = n.addresses.first().map_or("-", String::as_str);
            let (peers, blocks, used, encap, health) = match n.health {
                Health::Ok | Health::Degraded => (
                    format!("{}/{}", n.peers_up, n.peers),
                    match n.blocks.as_slice() {
                        [] => "-".to_owned(),
                        [one] => one.clone(),
                        [first, rest @ ..] => format!("{first} +{}", rest.len()),
                    },
                    if n.blocks.is_empty() { n.used.to_string() } else { format!("{}/{}", n.used, n.room) },
                    n.encap.clone(),
                    if n.health == Health::Ok { "ok" } else { "DEGRADED" },
                ),
                Health::Silent => ("-".into(), "-".into(), "-".into(), "-".into(), "NO ANSWER"),
                Health::NotAsked => ("-".into(), "-".into(), "-".into(), "-".into(), "not asked"),
            };
            // The prefix length is the segment's, below.
            let address = address.split('/').next().unwrap_or(address).to_owned();
            let role = if n.role == "reflector" { "rr" } else { "node" };
            table.row([short(&n.node), address, role.into(), peers, blocks, used, encap, health.into()]);
        }
        table.render()
    }

    fn segments(&self) -> String {
        if self.segments.is_empty() {
            return String::new();
        }
        let mut table = Table::new(&["SEGMENT", "TO", "PATHS", "WAY"]);
        for p in self.segments.iter().take(PAIRS) {
            let way = match (p.direct, p.ipip) {
                (_, 0) => "direct".to_owned(),
                (0, _) => format!("ipip ({})", p.devices.join(", ")),
                (direct, ipip) => format!("{direct} direct, {ipip} ipip ({})", p.devices.join(", ")),
            };
            let to = if p.a == p.b { "itself".to_owned() } else { p.b.clone() };
            table.row([p.a.clone(), to, (p.direct + p.ipip).to_string(), way]);
        }
        let mut text = format!("\n{}", table.render());
        if self.segments.len() > PAIRS {
            let _ = writeln!(text, "... and {} more; all with -o json", self.segments.len() - PAIRS);
        }
        text
    }

    fn pools(&self) -> String {
        if self.pools.is_empty() {
            return String::new();
        }
        let mut table = Table::new(&["POOL", "CIDR", "BLOCKS", "USED"]);
        for p in &self.pools {
            let share = (p.used * 100).checked_div(p.total).unwrap_or(0);
            let used = if p.total > 1 << 53 {
                p.used.to_string()
            } else {
                format!("{}/{} ({share}%)", p.used, p.total)
            };
            table.row([p.name.clone(), p.cidr.clone(), p.blocks.to_string(), used]);
        }
        format!("\n{}", table.render())
    }

    fn policy(&self) -> String {
        let p = &self.policy;
        if !p.known && p.back_ends.is_empty() {
            return String::new();
        }
        let c = &p.counts;
        let mut parts = vec![
            format!("{} global", c.global),
            format!("{} in namespaces", c.namespaced),
            format!("{} of Kubernetes", c.kubernetes),
        ];
        if c.staged > 0 {
            parts.push(format!("{} staged", c.staged));
        }
        parts.push(count(c.tiers, "tier", "tiers"));
        if c.host_endpoints > 0 {
            parts.push(count(c.host_endpoints, "host endpoint", "host endpoints"));
        }
        let counts = if p.known { format!("{}; ", parts.join(", ")) } else { String::new() };
        let by =
            if p.back_ends.is_empty() { String::new() } else { format!(" by {}", p.back_ends.join(", ")) };
        let line = format!(
            "policy: {counts}in force on {} of {}{by}",
            p.in_force,
            count(self.answered, "node", "nodes")
        );
        format!("\n{}\n", wrap(&line, WIDTH).join("\n    "))
    }
}
