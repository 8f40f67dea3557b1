//! What may be typed after `ipam`.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::cmd::resource::{args::StoreArgs, place::place};

/// An address, with an example where it is none.
fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "expected an address such as 10.0.0.7 or fd00::7".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct IpamArgs {
    #[command(subcommand)]
    pub(crate) command: IpamCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IpamCommand {
    /// Show how full the pools are, their blocks, borrowed addresses, or one address.
    Show(ShowArgs),
    /// Check all records against each other and against what is in use; exit code 1 when there are problems.
    Check(CheckArgs),
    /// Tell everything about one address: who has it, why it may not be given, what happened to it (as agents remember: what
    /// `ipam release` and brindle-controllers did is not among it).
    Why(WhyArgs),
    /// Give back an address that nothing uses any more, or all that a report of `check` names.
    Release(ReleaseArgs),
    /// Change the IPAM configuration.
    Configure(ConfigureArgs),
    /// Split an IP pool into smaller pools.
    Split(SplitArgs),
    /// Keep addresses from being given unasked.
    Reserve(ReserveArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Only this address.
    #[arg(long, value_name = "IP", value_parser = address, conflicts_with_all = ["show_blocks", "show_borrowed", "show_configuration"])]
    pub(crate) ip: Option<IpAddr>,
    /// Each pool's blocks, too.
    #[arg(long)]
    pub(crate) show_blocks: bool,
    /// Addresses used on another node than their block's.
    #[arg(long)]
    pub(crate) show_borrowed: bool,
    /// The IPAM configuration.
    #[arg(long)]
    pub(crate) show_configuration: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// List every address.
    #[arg(long)]
    pub(crate) show_all_ips: bool,
    /// List the addresses with problems.
    #[arg(long)]
    pub(crate) show_problem_ips: bool,
    /// Write a report for `ipam release --from-report`; also `-o FILE`, as calicoctl has it.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) agent: AgentFolder,
}

/// Where agents keep what they remember.
#[derive(Debug, Args)]
pub(crate) struct AgentFolder {
    /// The agent's folder: what happened to addresses, and what its collector found last (default: those of the lab's
    /// nodes, or /var/lib/brindle).
    #[arg(long, env = "BRINDLE_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl AgentFolder {
    /// The folders to look into; of the lab that is meant, each node's with its name.
    pub(crate) fn all(&self, store: &StoreArgs) -> anyhow::Result<Vec<(Option<String>, PathBuf)>> {
        if let Some(given) = &self.state_dir {
            return Ok(vec![(None, given.clone())]);
        }
        match place(store)?.lab {
            None => Ok(vec![(None, PathBuf::from("/var/lib/brindle"))]),
            Some(dir) => {
                let state = dir.load_existing()?;
                Ok(state.plan.nodes.iter().map(|n| (Some(n.name.clone()), dir.node(&n.name))).collect())
            }
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[arg(value_parser = address)]
    pub(crate) ip: IpAddr,
    #[command(flatten)]
    pub(crate) agent: AgentFolder,
}

#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// The address.
    #[arg(long, value_name = "IP", required_unless_present = "from_report", value_parser = address)]
    pub(crate) ip: Option<IpAddr>,
    /// A report of `ipam check`; of several, only what all name.
    #[arg(long, value_name = "FILE", conflicts_with = "ip")]
    pub(crate) from_report: Vec<PathBuf>,
    /// Although the datastore is not locked, or an endpoint, a node's tunnel, a service or another plugin's interface may
    /// still have the address.
    #[arg(long)]
    pub(crate) force: bool,
}

/// `--kubevirt-ip-persistence`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Persistence {
    #[value(name = "Enabled")]
    Enabled,
    #[value(name = "Disabled")]
    Disabled,
}

#[derive(Debug, Args)]
#[group(id = "setting", required = true, multiple = true, args = ["strictaffinity", "max_blocks_per_host", "auto_allocate_blocks", "kubevirt_ip_persistence", "ip_cooldown_seconds"])]
pub(crate) struct ConfigureArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Whether nodes use addresses of their own blocks only.
    #[arg(long, value_name = "true|false", action = clap::ArgAction::Set)]
    pub(crate) strictaffinity: Option<bool>,
    /// Blocks a node may own; 0: the built-in 20.
    #[arg(long, value_name = "N")]
    pub(crate) max_blocks_per_host: Option<u32>,
    /// Whether nodes claim blocks on their own.
    #[arg(long, value_name = "true|false", action = clap::ArgAction::Set)]
    pub(crate) auto_allocate_blocks: Option<bool>,
    /// Whether virtual machines keep their address when they move.
    #[arg(long, value_enum)]
    pub(crate) kubevirt_ip_persistence: Option<Persistence>,
    /// Seconds an address rests after its release.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1200))]
    pub(crate) ip_cooldown_seconds: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct SplitArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Into how many: a power of two.
    pub(crate) number: u32,
    /// The pool with this network.
    #[arg(long, value_name = "CIDR", required_unless_present = "name")]
    pub(crate) cidr: Option<IpNet>,
    /// The pool of this name.
    #[arg(long, value_name = "POOL", conflicts_with = "cidr")]
    pub(crate) name: Option<String>,
    /// Although the datastore is not locked.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReserveArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Addresses or networks.
    #[arg(value_name = "CIDR", required = true)]
    pub(crate) cidrs: Vec<String>,
    /// Name of the IPReservation.
    #[arg(long, default_value = "reserved", value_name = "NAME")]
    pub(crate) name: String,
    /// Take them out of the reservation again.
    #[arg(long)]
    pub(crate) remove: bool,
}
