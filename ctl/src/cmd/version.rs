//! `brindlectl version`: this program's, and with `--all`, or for a cluster that is named, that of every node.

use std::{cmp::Ordering, collections::BTreeMap, time::Duration};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::{
    Outcome,
    args::Format,
    cluster::{self, ClusterArgs, ask_all},
    lab::progress::wrap,
    out::{self, Table, WIDTH, put, say},
};

#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// Ask every node of the cluster too; exit code 1 when one differs or does not answer. So it is also where --datastore,
    /// --lab, --config, --kubeconfig, --context, --agent or --node says which cluster.
    #[arg(long)]
    all: bool,
    /// Only this program's, whatever else is said.
    #[arg(long, conflicts_with = "all")]
    client: bool,
    /// Ask every node again and again, every so often, until Ctrl-C (`0`: only what the other flags say).
    #[arg(long, value_name = "TIME", value_parser = interval, conflicts_with = "client")]
    poll: Option<Duration>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl VersionArgs {
    /// Whether the command itself says of which cluster: then its nodes are what is asked about.
    const fn names_cluster(&self) -> bool {
        let reach = &self.cluster.reach;
        let store = &reach.store;
        store.datastore.is_some()
            || store.lab.is_some()
            || store.config.is_some()
            || store.kubeconfig.is_some()
            || store.context.is_some()
            || reach.agent.is_some()
            || !self.cluster.node.is_empty()
    }
}

/// This program's version.
const OURS: &str = env!("CARGO_PKG_VERSION");

/// Prints this program's version.
pub(crate) fn ours(format: Format) {
    match format {
        Format::Json => out::json(&json!({ "version": OURS })),
        Format::Table => say!("brindlectl {OURS}"),
    }
}

/// Which of two versions is the older one, if both are numbers with dots.
fn order(a: &str, b: &str) -> Option<Ordering> {
    let numbers = |v: &str| v.split('.').map(|n| n.parse::<u64>().ok()).collect::<Option<Vec<_>>>();
    Some(numbers(a)?.cmp(&numbers(b)?))
}

/// What to do about versions that differ.
fn advice(versions: &BTreeMap<String, Vec<String>>) -> String {
    let mut groups: Vec<(&String, usize)> = versions.iter().map(|(v, nodes)| (v, nodes.len())).collect();
    groups.sort_by(|(a, _), (b, _)| order(a, b).unwrap_or_else(|| a.cmp(b)));
    let list: Vec<String> = groups.iter().map(|(v, n)| format!("{v} on {n}")).collect();
    let text = match groups.as_slice() {
        [] => return String::new(),
        [(one, _)] if one.as_str() == OURS => return String::new(),
        [(one, _)] => format!("all nodes run {one}; next: use the brindlectl of that version"),
        _ => format!(
            "{} versions in this cluster: {}; next: bring every node to one version, one node after the other",
            groups.len(),
            list.join(", ")
        ),
    };
    format!("\n{}\n", wrap(&text, WIDTH - 2).join("\n  "))
}

/// `--poll`, where calicoctl has `0` for "once".
fn interval(text: &str) -> Result<Duration, String> {
    if text.trim_end_matches(['s', 'm', 'h']) == "0" { Ok(Duration::ZERO) } else { cluster::duration(text) }
}

/// Carries the command out.
pub(crate) fn run(args: &VersionArgs, format: Format) -> Result<Outcome> {
    let Some(every) = args.poll.filter(|p| !p.is_zero()) else {
        if args.all || (args.names_cluster() && !args.client) {
            return nodes(args, format);
        }
        ours(format);
        return Ok(Outcome::Ok);
    };
    loop {
        // What cannot be asked now may be asked in a moment.
        if let Err(e) = nodes(args, format) {
            out::error(format, &e);
        }
        if !out::open() {
            return Ok(Outcome::Ok);
        }
        std::thread::sleep(every);
        if format == Format::Table {
            put!("\n");
        }
    }
}

/// This program's version and that of every node.
fn nodes(args: &VersionArgs, format: Format) -> Result<Outcome> {
    let cluster = cluster::find(&args.cluster)?;
    let answers = ask_all(&cluster.agents, |a| a.status(args.cluster.reach.timeout));
    let mut outcome = Outcome::Ok;
    let mut table = Table::new(&["NODE", "VERSION", ""]);
    let mut all: Vec<Value> = Vec::new();
    let mut silent = String::new();
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (agent, answer) in cluster.agents.iter().zip(answers) {
        let node = &agent.at.name;
        match answer {
            Ok(status) => {
                let skew = status.version != OURS;
                if skew {
                    outcome = Outcome::Degraded;
                }
                all.push(json!({ "node": node, "version": status.version, "skew": skew }));
                let word = match order(&status.version, OURS) {
                    _ if !skew => String::new(),
                    Some(Ordering::Less) => format!("older than brindlectl {OURS}"),
                    Some(Ordering::Greater) => format!("newer than brindlectl {OURS}"),
                    _ => format!("differs from brindlectl {OURS}"),
                };
                versions.entry(status.version.clone()).or_default().push(node.clone());
                table.row([node.clone(), status.version, word]);
            }
            Err(silence) => {
                outcome = Outcome::Degraded;
                let deadline = silence.deadline().map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
                all.push(json!({ "node": node, "error": silence.to_string(), "deadlineMs": deadline }));
                table.row([node.clone(), "-".into(), "NO ANSWER".into()]);
                silent += &format!("\n{}\n", wrap(&format!("{node}: {silence}"), WIDTH - 4).join("\n    "));
            }
        }
    }
    match format {
        Format::Json => out::json(&json!({ "version": OURS, "nodes": all })),
        Format::Table => put!("brindlectl {OURS}\n\n{}{silent}{}", table.render(), advice(&versions)),
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(order("0.9.0", "0.10.0"), Some(Ordering::Less));
        assert_eq!(order("1.0.0", "0.10.0"), Some(Ordering::Greater));
        assert_eq!(order("0.1.0-dirty", "0.1.0"), None);
        assert_eq!(advice(&BTreeMap::from([(OURS.to_owned(), vec!["a".into()])])), "");
        let two = BTreeMap::from([("0.10.0".into(), vec!["a".into()]), ("0.9.0".into(), vec!["b".into()])]);
        assert!(
            advice(&two).contains("2 versions in this cluster: 0.9.0 on 1, 0.10.0 on 1"),
            "{}",
            advice(&two)
        );
    }
}
