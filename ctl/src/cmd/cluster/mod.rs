//! `brindlectl cluster`: the cluster as a whole, for a report of a fault.

mod diags;
mod secrets;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::{Outcome, args::Format, cluster::ReachArgs};

#[derive(Debug, Args)]
pub(crate) struct ClusterCommandArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Collect what a report of a fault needs from the datastore and from every agent that answers, in one archive.
    Diags(DiagsArgs),
}

/// `cluster diags`.
#[derive(Debug, Args)]
struct DiagsArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// Of logs only what is newer than this, such as 90s, 30m or 2h.
    #[arg(long, value_name = "TIME", value_parser = crate::cluster::duration)]
    since: Option<Duration>,
    /// Logs of at most so many nodes, those of --focus-nodes first.
    #[arg(long, value_name = "N", default_value_t = 5)]
    max_logs: usize,
    /// Nodes asked at the same time.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    max_parallelism: u16,
    /// Everything of these nodes, with commas, and of the others their state alone.
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    focus_nodes: Vec<String>,
    /// Leave the folder from which the archive is made.
    #[arg(long)]
    skip_temp_dir_cleanup: bool,
    /// Where the archive is written.
    #[arg(long, value_name = "DIR", default_value = ".")]
    output_dir: PathBuf,
}

/// Carries the command out.
pub(crate) fn run(args: &ClusterCommandArgs, format: Format) -> Result<Outcome> {
    let ClusterCommand::Diags(diags) = &args.command;
    diags::diags(diags, format)
}
