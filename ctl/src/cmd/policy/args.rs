//! What may be typed after `policy`.

use clap::{Args, Subcommand};

use crate::cmd::resource::args::StoreArgs;

#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    pub(crate) command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Tell whether a packet from A reaches B, and which rule decides at each end; exit code 1 when it does not.
    Trace(TraceArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// NAMESPACE/POD, an address, or the name of a HostEndpoint.
    #[arg(value_name = "A")]
    pub(crate) from: String,
    /// The same with a port behind it: shop/db:5432, 192.0.2.1:443, [2001:db8::1]:443.
    #[arg(value_name = "B[:PORT]")]
    pub(crate) to: String,
    /// tcp, udp, sctp, icmp, icmpv6 or a number.
    #[arg(long, visible_alias = "protocol", default_value = "tcp", value_name = "PROTO")]
    pub(crate) proto: String,
    /// The source port of the packet.
    #[arg(long, default_value_t = 49152, value_name = "PORT")]
    pub(crate) source_port: u16,
    /// Type and code of the ICMP packet; an echo request (8/0, of ICMPv6 128/0) unless given.
    #[arg(long, value_name = "TYPE/CODE")]
    pub(crate) icmp: Option<String>,
    /// The interface by which the packet leaves or enters nodes, or the HostEndpoint that stands for it on its node (may
    /// be given for each node). Without it: the tunnel where the pool wants one, otherwise all that have a HostEndpoint.
    #[arg(long, value_name = "INTERFACE")]
    pub(crate) through: Vec<String>,
}
