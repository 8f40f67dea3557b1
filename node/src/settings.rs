//! Settings of the agent: what was typed ([`RunArgs`]) becomes what it means ([`Settings`]). Environment names are
//! Calico's where it has them.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use tracing_subscriber::EnvFilter;

/// The agent of one Brindle node.
#[derive(Debug, Parser)]
#[command(name = "brindle-node", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the agent in this network namespace until SIGTERM; kernel routes stay in place when it ends
    Run(Box<RunArgs>),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Name of this node [default: the host name, lower case]
    #[arg(long, env = "NODENAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Folder of the agent's own files: lock, sockets, journals
    #[arg(long, env = "BRINDLE_STATE_DIR", value_name = "DIR", default_value = "/var/lib/brindle")]
    state_dir: PathBuf,
    /// Datastore: sqlite:PATH
    #[arg(
        long,
        env = "BRINDLE_DATASTORE",
        value_name = "URL",
        default_value = "sqlite:/var/lib/brindle/brindle.db"
    )]
    datastore: String,
    /// Address of this node with the prefix length of its subnet, or `autodetect`
    #[arg(long, env = "IP", value_name = "CIDR", default_value = "autodetect")]
    ip: String,
    /// bgp: routes to other nodes through BGP; none: only the pods of this node
    #[arg(long, env = "BRINDLE_NETWORKING", value_enum, default_value_t = Networking::Bgp)]
    networking: Networking,
    /// How packets are encapsulated: the kernel's ipip device, or the brindle-ipip process
    #[arg(long, env = "BRINDLE_IPIP_CARRIER", value_enum, default_value_t = Carrier::Auto)]
    ipip_carrier: Carrier,
    /// Socket for the CNI plugin [default: STATE/cni.sock]
    #[arg(long, value_name = "PATH")]
    cni_socket: Option<PathBuf>,
    /// Socket for brindlectl [default: STATE/admin.sock]
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<PathBuf>,
    #[command(flatten)]
    leaks: crate::cni_server::LeakArgs,
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// error, warn, info, debug, trace, or a filter such as info,brindle_bgpd=debug
    #[arg(long, env = "BRINDLE_LOG", value_name = "FILTER", default_value = "info")]
    log_level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Networking {
    Bgp,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Carrier {
    /// kernel when it has ipip, else user
    Auto,
    Kernel,
    User,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Where the node's own address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnAddress {
    /// Typed; without a prefix length it is completed from the interface that carries it.
    Given(IpAddr, Option<u8>),
    Autodetect,
}

/// What the arguments mean.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) node_name: String,
    pub(crate) state_dir: PathBuf,
    pub(crate) datastore: String,
    pub(crate) address: OwnAddress,
    pub(crate) networking: Networking,
    pub(crate) carrier: Carrier,
    pub(crate) cni_socket: PathBuf,
    pub(crate) admin_socket: PathBuf,
    pub(crate) leaks: crate::cni_server::LeakArgs,
    log_format: LogFormat,
    log_filter: String,
}

impl Settings {
    /// Checks and completes the arguments; the error names the flag.
    pub(crate) fn from_args(a: RunArgs) -> Result<Self, String> {
        let node_name = match a.node_name.filter(|n| !n.is_empty()) {
            Some(n) => n,
            None => host_name()?,
        };
        if node_name.len() > 253
            || !node_name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
            || !node_name.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !node_name.ends_with(|c: char| c.is_ascii_alphanumeric())
        {
            return Err(format!(
                "--node-name {node_name:?}: must be a DNS name (lower-case letters, digits, '-' and '.')"
            ));
        }
        let address = parse_own_address(&a.ip)?;
        EnvFilter::try_new(&a.log_level).map_err(|e| format!("--log-level {:?}: {e}", a.log_level))?;
        if !a.datastore.starts_with("sqlite:") {
            return Err(format!("--datastore {:?}: expected sqlite:PATH", a.datastore));
        }
        Ok(Self {
            cni_socket: a.cni_socket.unwrap_or_else(|| a.state_dir.join("cni.sock")),
            admin_socket: a.admin_socket.unwrap_or_else(|| a.state_dir.join("admin.sock")),
            node_name,
            state_dir: a.state_dir,
            datastore: a.datastore,
            address,
            networking: a.networking,
            carrier: a.ipip_carrier,
            leaks: a.leaks,
            log_format: a.log_format,
            log_filter: a.log_level,
        })
    }

    /// The log's form and level as a child's arguments: its lines stand among ours.
    pub(crate) fn log_args(&self) -> Vec<String> {
        let format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        ["--log-format", format, "--log-level", &self.log_filter].map(str::to_owned).into()
    }

    /// Starts logging to standard error.
    pub(crate) fn init_log(&self) -> Result<(), String> {
        let filter = EnvFilter::try_new(&self.log_filter).map_err(|e| format!("--log-level: {e}"))?;
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => builder.with_ansi(false).try_init(),
            LogFormat::Json => builder.json().flatten_event(true).try_init(),
        }
        .map_err(|e| format!("cannot start logging: {e}"))
    }
}

fn parse_own_address(s: &str) -> Result<OwnAddress, String> {
    if s.is_empty() || s == "autodetect" {
        return Ok(OwnAddress::Autodetect);
    }
    let bad =
        || format!("--ip {s:?}: expected an address with prefix length such as 10.0.0.5/24, or autodetect");
    let (ip, len) = if s.contains('/') {
        let net: IpNet = s.parse().map_err(|_| bad())?;
        (net.addr(), Some(net.prefix_len()))
    } else {
        (s.parse::<IpAddr>().map_err(|_| bad())?, None)
    };
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        return Err(format!("--ip {s:?}: other nodes cannot reach this address"));
    }
    Ok(OwnAddress::Given(ip, len))
}

fn host_name() -> Result<String, String> {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|s| s.trim().to_ascii_lowercase())
        .map_err(|e| format!("no --node-name, and the host name cannot be read: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Settings, String> {
        let cli =
            Cli::try_parse_from(["brindle-node", "run"].iter().chain(args)).map_err(|e| e.to_string())?;
        let Command::Run(a) = cli.command;
        Settings::from_args(*a)
    }

    #[test]
    fn sockets_default_into_the_state_folder() {
        let s = parse(&["--node-name", "n1", "--state-dir", "/x"]).unwrap();
        assert_eq!(s.cni_socket, PathBuf::from("/x/cni.sock"));
        assert_eq!(s.admin_socket, PathBuf::from("/x/admin.sock"));
        assert_eq!(s.address, OwnAddress::Autodetect);
    }

    #[test]
    fn bad_values_name_their_flag() {
        for (args, flag) in [
            (["--node-name", "N_1"], "--node-name"),
            (["--ip", "10.0.0.300"], "--ip"),
            (["--ip", "127.0.0.1/8"], "--ip"),
            (["--datastore", "etcd:x"], "--datastore"),
            (["--log-level", "brindle=loud"], "--log-level"),
        ] {
            let e = parse(&args).unwrap_err();
            assert!(e.contains(flag), "{args:?}: {e}");
        }
    }

    #[test]
    fn an_address_keeps_its_prefix_length() {
        let s = parse(&["--node-name", "n", "--ip", "10.0.0.5/24"]).unwrap();
        assert_eq!(s.address, OwnAddress::Given("10.0.0.5".parse().unwrap(), Some(24)));
    }
}
