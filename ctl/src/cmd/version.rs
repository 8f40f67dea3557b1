//! `brindlectl version`: this program's, and with `--all` that of every node.

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
    /// Ask every node of the cluster too; exit code 1 when one differs or does not answer.
    #[arg(long)]
    all: bool,
    /// Only this program's (which is also what is printed without --all).
    #[arg(long, conflicts_with = "all")]
    client: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
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

/// Carries the command out.
pub(crate) fn run(args: &VersionArgs, format: Format) -> Result<Outcome> {
    if !args.all {
        ours(format);
        return Ok(Outcome::Ok);
    }
    let cluster = cluster::find(&args.cluster)?;
    let answers = ask_all(&cluster.agents, |a| a.status(args.cluster.reach.timeout));
    let mut outcome = Outcome::Ok;
    let mut table = Table::new(&["NODE", "VERSION", ""]);
    let mut all: Vec<Value> = Vec::new();
    let mut silent = String::new();
    for (agent, answer) in cluster.agents.iter().zip(answers) {
        let node = &agent.at.name;
        match answer {
            Ok(status) => {
                let skew = status.version != OURS;
                if skew {
                    outcome = Outcome::Degraded;
                }
                all.push(json!({ "node": node, "version": status.version, "skew": skew }));
                let word = if skew { format!("differs from brindlectl {OURS}") } else { String::new() };
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
        Format::Table => put!("brindlectl {OURS}\n\n{}{silent}", table.render()),
    }
    Ok(outcome)
}
