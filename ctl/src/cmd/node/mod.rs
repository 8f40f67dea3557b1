//! `brindlectl node`: calicoctl's commands about the node they are typed on.

mod attempt;
mod checksystem;
mod diags;
mod status;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::{Outcome, args::Format, cluster::Where};

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// The agent's admin socket.
    #[arg(
        long,
        alias = "socket",
        global = true,
        env = "BRINDLE_ADMIN_SOCKET",
        default_value = crate::cluster::LOCAL_SOCKET,
        value_name = "PATH"
    )]
    admin_socket: PathBuf,
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Sessions of this node's agent, in calicoctl's tables.
    Status,
    /// Collect what a report of a fault needs: the agent's answers, routes, rules and logs, in one archive.
    Diags {
        /// Folder of the agent's logs, to be put in; without it, those of systemd.
        #[arg(long, value_name = "DIR")]
        log_dir: Option<PathBuf>,
        /// Where the archive is written.
        #[arg(long, value_name = "DIR", default_value = "/tmp")]
        output_dir: PathBuf,
    },
    /// Try whether this machine's kernel and programs can do what an agent needs, in a namespace that is gone afterwards.
    Checksystem {
        /// Try nothing: judge by this configuration of a kernel, and by what is loaded.
        #[arg(short = 'f', long, value_name = "FILE")]
        kernel_config: Option<PathBuf>,
    },
}

/// How long an agent may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Carries the command out.
pub(crate) fn run(args: &NodeArgs, format: Format) -> Result<Outcome> {
    let place = Where::Socket(args.admin_socket.clone());
    match &args.command {
        NodeCommand::Status => status::status(&place, format),
        NodeCommand::Diags { log_dir, output_dir } => {
            diags::diags(&place, log_dir.as_deref(), output_dir, format)
        }
        NodeCommand::Checksystem { kernel_config } => checksystem::check(kernel_config.as_deref(), format),
    }
}
