//! `brindlectl version`: this program's, and with `--all` that of every node.

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::{
    Outcome,
    args::Format,
    cluster::{self, ClusterArgs, ask_all},
    out::{self, Table, put, say},
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

/// Carries the command out.
pub(crate) fn run(args: &VersionArgs, format: Format) -> Result<Outcome> {
    let ours = env!("CARGO_PKG_VERSION");
    if !args.all {
        match format {
            Format::Json => out::json(&json!({ "version": ours })),
            Format::Table => say!("brindlectl {ours}"),
        }
        return Ok(Outcome::Ok);
    }
    let cluster = cluster::find(&args.cluster)?;
    let answers = ask_all(&cluster.agents, |a| a.status(args.cluster.reach.timeout));
    let mut outcome = Outcome::Ok;
    let mut table = Table::new(&["NODE", "VERSION", ""]);
    let mut all: Vec<Value> = Vec::new();
    for (agent, answer) in cluster.agents.iter().zip(answers) {
        let node = &agent.at.name;
        match answer {
            Ok(status) => {
                let skew = status.version != ours;
                if skew {
                    outcome = Outcome::Degraded;
                }
                all.push(json!({ "node": node, "version": status.version, "skew": skew }));
                let word = if skew { format!("differs from brindlectl {ours}") } else { String::new() };
                table.row([node.clone(), status.version, word]);
            }
            Err(silence) => {
                outcome = Outcome::Degraded;
                all.push(json!({ "node": node, "error": silence.to_string() }));
                table.row([node.clone(), "-".into(), format!("NO ANSWER: {silence}")]);
            }
        }
    }
    match format {
        Format::Json => out::json(&json!({ "version": ours, "nodes": all })),
        Format::Table => put!("brindlectl {ours}\n\n{}", table.render()),
    }
    Ok(outcome)
}
