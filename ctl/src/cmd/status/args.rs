//! `status` as it may be typed.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::cluster::{ClusterArgs, duration};

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Only the agent with this admin socket, in full.
    #[arg(long, alias = "socket", env = "BRINDLE_ADMIN_SOCKET", value_name = "PATH", conflicts_with_all = ["lab", "node", "agent"])]
    pub(crate) admin_socket: Option<PathBuf>,
    /// Show it again and again, every so often, until Ctrl-C.
    #[arg(
        long,
        value_name = "TIME",
        num_args = 0..=1,
        default_missing_value = "2s",
        value_parser = duration,
        conflicts_with = "wait"
    )]
    pub(crate) watch: Option<Duration>,
    /// Wait until all is well, at most so long, and then show it.
    #[arg(
        long,
        value_name = "TIME",
        num_args = 0..=1,
        default_missing_value = "60s",
        value_parser = duration
    )]
    pub(crate) wait: Option<Duration>,
}
