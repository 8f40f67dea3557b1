//! `brindlectl bgp …` as it may be typed. No meaning here.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;

#[derive(Debug, Args)]
pub(crate) struct BgpArgs {
    /// Admin socket of a brindle-node or brindle-bgpd.
    #[arg(
        long,
        alias = "admin-socket",
        global = true,
        env = "BRINDLE_ADMIN_SOCKET",
        default_value = "/var/lib/brindle/admin.sock",
        value_name = "PATH"
    )]
    pub(super) socket: PathBuf,
    /// Instead: this node of the cluster.
    #[arg(long, global = true, value_name = "NODE", conflicts_with = "all")]
    pub(super) node: Option<String>,
    /// Instead: every node of the cluster, one after the other.
    #[arg(long, global = true)]
    pub(super) all: bool,
    /// The lab on this machine; without --node all its nodes are asked.
    #[arg(long, global = true, value_name = "LAB")]
    pub(super) lab: Option<String>,
    /// With --node or --all: the datastore that knows the nodes.
    #[arg(long, global = true, value_name = "URL")]
    pub(super) datastore: Option<String>,
    /// With --node or --all: calicoctl's configuration file that names the datastore.
    #[arg(short = 'c', long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// With --node or --all: the kubeconfig of the cluster.
    #[arg(long, global = true, value_name = "FILE", conflicts_with_all = ["datastore", "lab", "config"])]
    pub(super) kubeconfig: Option<PathBuf>,
    /// With --node or --all: this context of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) context: Option<String>,
    /// How long a node may take for each step of its answer.
    #[arg(long, global = true, value_name = "TIME", default_value = "5s", value_parser = crate::cluster::duration)]
    pub(super) timeout: std::time::Duration,
    /// File with the cluster's token, for agents on other machines.
    #[arg(
        long,
        global = true,
        env = "BRINDLE_ADMIN_TOKEN_FILE",
        value_name = "FILE",
        default_value = crate::cluster::TOKEN_FILE
    )]
    pub(super) admin_token_file: PathBuf,
    #[command(subcommand)]
    pub(super) command: BgpCommand,
}

impl BgpArgs {
    /// Whether every node is asked.
    pub(super) const fn everywhere(&self) -> bool {
        self.all || (self.node.is_none() && self.lab.is_some())
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum BgpCommand {
    /// One line per peer: state, since when, received, accepted, advertised, last error.
    Summary,
    /// One peer in full: session, timers, restarts, filters, limits, families, capabilities, messages.
    Neighbor {
        /// Name or address.
        peer: String,
    },
    /// Every path, and the step of the decision at which it won or lost.
    Rib {
        /// Only this prefix, in detail.
        #[arg(value_parser = prefix)]
        prefix: Option<IpNet>,
    },
    /// What a peer was told.
    Advertised {
        /// Name or address.
        peer: String,
    },
    /// What a peer has sent, also what was rejected, and why.
    Received {
        /// Name or address.
        peer: String,
    },
    /// Why a prefix is, or is not, received, chosen, installed, in the kernel and advertised.
    Explain {
        #[arg(value_parser = prefix)]
        prefix: IpNet,
        /// Only towards this peer.
        #[arg(value_name = "to PEER", num_args = 0..=2)]
        to: Vec<String>,
    },
    /// Ranges and addresses of services: which this node announces, and why the others not.
    Services,
    /// Sessions and routes as they change, until Ctrl-C.
    Monitor,
    /// End a session and start it again (hard), or have its routes sent again (soft).
    Clear {
        /// Name or address, or `all`.
        peer: String,
        how: How,
        /// Only with soft: ask for the peer's routes again, or send ours again (default: both).
        direction: Option<Way>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum How {
    Soft,
    Hard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Way {
    In,
    Out,
}

/// A prefix, or an address as the prefix of itself.
fn prefix(text: &str) -> Result<IpNet, String> {
    let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let net = parsed.ok_or("expected a prefix such as 10.0.0.0/26, or an address")?;
    if net == net.trunc() {
        Ok(net)
    } else {
        Err(format!("has host bits set; did you mean {} or {}?", net.trunc(), net.addr()))
    }
}
