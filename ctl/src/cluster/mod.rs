//! The agents of a cluster: who they are, where each answers, and asking many of them at once with a deadline for
//! each. A node that does not answer is a named result like any other, never a hang.
//!
//! Who there is comes from the datastore, or from an agent where the datastore is out of reach; a lab's nodes from its
//! state. Agents answer over their unix socket on this machine, over TLS elsewhere (docs/adr/0004).

mod channel;
mod find;

use std::time::Duration;

use brindle_config_core::status::{AdminRequest, NodeAt, NodeStatus};
use clap::Args;
use serde::de::DeserializeOwned;

pub(crate) use self::{
    channel::{Line, Silence, Where},
    find::{Cluster, Source, all, find},
};
use crate::cmd::resource::args::StoreArgs;

/// Agents asked at the same time.
const WIDTH: usize = 16;

/// Which cluster, and which of its nodes.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClusterArgs {
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    /// Only this node (several with commas).
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    pub(crate) node: Vec<String>,
}

/// Which cluster, and how long its nodes are waited for.
#[derive(Clone, Debug, Args)]
pub(crate) struct ReachArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// How long a node may take to answer, such as 3s or 500ms.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// File with the cluster's token, for agents on other machines.
    #[arg(
        long,
        env = "BRINDLE_ADMIN_TOKEN_FILE",
        value_name = "FILE",
        default_value = TOKEN_FILE
    )]
    pub(crate) admin_token_file: std::path::PathBuf,
    /// Learn who there is from the agent at this address, instead of from the datastore.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) agent: Option<std::net::SocketAddr>,
}

/// Where the cluster's token is unless told.
pub(crate) const TOKEN_FILE: &str = "/etc/brindle/admin-token";
/// Socket of the agent of this machine.
pub(crate) const LOCAL_SOCKET: &str = "/var/lib/brindle/admin.sock";

/// `3s`, `500ms`, `2m`, or a number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?}: expected a time such as 3s, 500ms or 2m");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let seconds = match unit {
        "" | "s" => number,
        "ms" => number / 1000.0,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(bad()),
    };
    if seconds <= 0.0 {
        return Err(format!("{text:?}: must be more than nothing"));
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| bad())
}

/// A time as a person writes it.
pub(crate) fn spell(time: Duration) -> String {
    match time.as_millis() {
        ms if ms % 1000 == 0 => format!("{} s", time.as_secs()),
        ms => format!("{ms} ms"),
    }
}

/// One node and how its agent is reached.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    pub(crate) at: NodeAt,
    pub(crate) place: Where,
}

impl Agent {
    /// Asks for one line.
    pub(crate) fn ask<T: DeserializeOwned>(
        &self,
        request: &AdminRequest,
        limit: Duration,
    ) -> Result<T, Silence> {
        self.place.one(request, limit)
    }

    /// Asks how it is.
    pub(crate) fn status(&self, limit: Duration) -> Result<NodeStatus, Silence> {
        self.ask(&AdminRequest::Status, limit)
    }
}

/// Asks all of them, several at a time; answers in their order.
pub(crate) fn ask_all<R: Send>(agents: &[Agent], work: impl Fn(&Agent) -> R + Sync) -> Vec<R> {
    crate::lab::wait::parallel(agents, WIDTH, work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        assert_eq!(duration("3s").unwrap(), Duration::from_secs(3));
        assert_eq!(duration("2").unwrap(), Duration::from_secs(2));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("1.5m").unwrap(), Duration::from_secs(90));
        for bad in ["", "s", "-1s", "0s", "1d", "1e400s", "nan"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(spell(Duration::from_millis(1500)), "1500 ms");
        assert_eq!(spell(Duration::from_secs(3)), "3 s");
    }
}
