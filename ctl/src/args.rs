//! What may be typed: the command line as clap sees it. No meaning here: no file is read and no default is derived
//! from another argument; that is `meaning`.

use std::{net::Ipv4Addr, path::PathBuf};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::{
    cmd::{
        cluster::ClusterCommandArgs,
        datastore::DatastoreArgs,
        documents::{CompletionArgs, ManArgs},
        ipam::args::IpamArgs,
        node::NodeArgs,
        policy::args::PolicyArgs,
        resource::{
            args::{DeleteArgs, EditArgs, GetArgs, LabelArgs, PatchArgs, ValidateArgs, WriteArgs},
            form::Form,
        },
        route::args::RouteArgs,
        status::args::StatusArgs,
        version::VersionArgs,
    },
    early::EarlyArgs,
};

/// Exit codes, said in `--help`.
const EXIT: &str = "Exit codes: 0 all is well; 1 it works but something is degraded; 2 error.";

#[derive(Debug, Parser)]
#[command(name = "brindlectl", version, about = "Look at and operate Brindle, and build labs of it", after_help = EXIT)]
#[command(max_term_width = 80)]
pub(crate) struct Args {
    /// Form of the answer: table or json; with get also wide, yaml, name, custom-columns=.., jsonpath=..,
    /// go-template=.., go-template-file=FILE
    #[arg(short = 'o', long = "output", global = true, default_value = "table", value_name = "FORM", value_parser = Form::typed)]
    pub(crate) output: Form,
    /// calicoctl's; versions are compared by `status` and `version --all`, and never in the way.
    #[arg(long, global = true, hide = true)]
    allow_version_mismatch: bool,
    #[command(flatten)]
    _early: EarlyArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Form of the answer of most commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people, 80 columns.
    #[default]
    Table,
    /// For programs; one object per line where a command reports progress.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build, prove, break and remove a cluster of real agents on this machine.
    Lab(LabArgs),
    /// Show resources of the datastore.
    Get(GetArgs),
    /// Create or replace resources from files.
    Apply(WriteArgs),
    /// Create resources from files; they must not exist.
    Create(WriteArgs),
    /// Replace resources from files; they must exist.
    Replace(WriteArgs),
    /// Change members of a resource.
    Patch(PatchArgs),
    /// Delete resources.
    Delete(DeleteArgs),
    /// Set or remove a label of a resource.
    Label(LabelArgs),
    /// Edit a resource in $EDITOR.
    Edit(EditArgs),
    /// Show what apply would change; exit code 1 when anything would.
    Diff(WriteArgs),
    /// Check files of resources without a datastore.
    Validate(ValidateArgs),
    /// Look at addresses, check them, and change how they are given.
    Ipam(IpamArgs),
    /// Tell what network policy does with a packet, and why.
    Policy(PolicyArgs),
    /// The cluster on one screen: nodes, sessions, blocks, encapsulation, policy, and what is wrong.
    Status(StatusArgs),
    /// The way of a packet from one pod or address to another, and back: each hop, who taught it, and why.
    Route(RouteArgs),
    /// Sessions and routes: what the speaker of this node (or of all nodes) knows, and why.
    Bgp(crate::cmd::bgp::BgpArgs),
    /// This node: its sessions, a bundle for a report of a fault, what its kernel can do.
    Node(NodeArgs),
    /// The cluster as a whole: a bundle for a report of a fault.
    Cluster(ClusterCommandArgs),
    /// Datastore as a whole: lock it, move it to another.
    Datastore(DatastoreArgs),
    /// Print the script that completes brindlectl's words in a shell.
    Completion(CompletionArgs),
    /// Print a man page, or write all of them.
    Man(ManArgs),
    /// Print the reference of all commands.
    #[command(hide = true)]
    Reference,
    /// Print the version; with --all, that of every node.
    Version(VersionArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct LabArgs {
    /// Which lab (default: the one of the topology file, else `lab`).
    #[arg(long, alias = "lab", global = true, value_name = "LAB")]
    pub(crate) name: Option<String>,
    #[command(subcommand)]
    pub(crate) command: LabCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Build a lab and prove that every pod reaches every pod.
    Up(UpArgs),
    /// Show nodes, sessions, blocks, encapsulation and health.
    Status,
    /// Prove again: every pod to every pod, small and full-size packets.
    Ping(PingArgs),
    /// Run a command in the network namespace of a node, a pod, `router` or `fabric`.
    Exec(ExecArgs),
    /// Break something on purpose.
    Break(BreakArgs),
    /// Undo every break, start dead agents again, and prove.
    Heal,
    /// Add to a running lab.
    Add(AddArgs),
    /// List the labs of this machine.
    List,
    /// Remove a lab, finished or half-made, with everything in it.
    Down,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct UpArgs {
    /// Read the topology from this file.
    #[arg(long, value_name = "FILE.yaml", conflicts_with_all = ["nodes", "segments", "pods_per_node"])]
    pub(crate) topology: Option<PathBuf>,
    /// Nodes.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=200))]
    pub(crate) nodes: u16,
    /// L2 segments, with a router between them (default 2; 1 with IPv6, which IPIP does not carry).
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u16).range(1..=50))]
    pub(crate) segments: Option<u16>,
    /// Pods on each node.
    #[arg(long, default_value_t = 2, value_name = "P", value_parser = clap::value_parser!(u16).range(0..=50))]
    pub(crate) pods_per_node: u16,
    /// When to encapsulate in IPIP (default crosssubnet, or what the topology file says).
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) ipip: Option<Ipip>,
    /// Families of nodes and pods (default ipv4, or what the topology file says).
    #[arg(long, value_enum, value_name = "FAMILIES")]
    pub(crate) ip_families: Option<Families>,
}

/// `--ip-families`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Families {
    Ipv4,
    Ipv6,
    Dual,
}

/// `--ipip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ipip {
    Always,
    Crosssubnet,
    Never,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PingArgs {
    /// Only from this pod or node (its pods).
    #[arg(long, value_name = "POD|NODE")]
    pub(crate) from: Option<String>,
    /// Only to this pod or node (its pods).
    #[arg(long, value_name = "POD|NODE")]
    pub(crate) to: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExecArgs {
    /// A node, a pod, `router` or `fabric`.
    #[arg(value_name = "NODE|POD")]
    pub(crate) target: String,
    /// The command and its arguments, after `--`.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) argv: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BreakArgs {
    #[command(subcommand)]
    pub(crate) what: BreakCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BreakCommand {
    /// kill -9 the agent of a node.
    Kill { node: String },
    /// Pull the network cable of a node.
    Link { node: String },
    /// Cut a segment off the router.
    Partition { segment: String },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AddArgs {
    #[command(subcommand)]
    pub(crate) what: AddCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AddCommand {
    /// One more node, with pods.
    Node(AddNodeArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AddNodeArgs {
    /// Its name (default: the next number).
    pub(crate) node: Option<String>,
    /// Its segment (default: the one with the fewest nodes).
    #[arg(long)]
    pub(crate) segment: Option<String>,
    /// Its address (default: the next of the segment).
    #[arg(long)]
    pub(crate) address: Option<Ipv4Addr>,
    /// Its pods.
    #[arg(long, default_value_t = 2, value_name = "P", value_parser = clap::value_parser!(u16).range(0..=50))]
    pub(crate) pods: u16,
}
