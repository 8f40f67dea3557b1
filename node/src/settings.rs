//! Settings of the agent: what was typed ([`RunArgs`]) becomes what it means ([`Settings`]). Environment names are
//! Calico's where it has them.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use brindle_config_core::bgp::AsNumber;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::{cluster::Cluster, state_files};

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
    /// Put the CNI plugins and the conflist where container runtimes look, once the agent is ready
    InstallCni(Box<crate::install_cni::InstallArgs>),
    /// Take Brindle off this node, on which no agent runs any more: conflist, plugins, rules, sets and the device of
    /// brindle-ipip. Pods keep their devices, addresses and routes, and no policy holds for them any more. Exit code 0 all
    /// is gone, 1 something is left, 2 nothing was removed
    Remove(Box<crate::remove::RemoveArgs>),
    /// Ask the agent of this node whether it lives or is ready; exit code 0 or 1, the reasons on standard output
    Probe(crate::probe::ProbeArgs),
    /// Move traffic away from this node and end its BGP sessions; a restart of the agent brings them back
    Drain(crate::probe::DrainArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Name of this node [default: what STATE/nodename says, else the host name, lower case]
    #[arg(long, env = "NODENAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Folder of the agent's own files: lock, sockets, journals
    #[arg(long, env = "BRINDLE_STATE_DIR", value_name = "DIR", default_value = "/var/lib/brindle")]
    state_dir: PathBuf,
    /// Datastore: sqlite:PATH, kubernetes: (in a pod, or with KUBECONFIG), kubernetes:KUBECONFIG, or etcd:http://HOST:2379
    /// (docs/design/datastore.md)
    #[arg(
        long,
        env = "BRINDLE_DATASTORE",
        value_name = "URL",
        default_value = "sqlite:/var/lib/brindle/brindle.db"
    )]
    datastore: String,
    /// IPv4 address of this node with the prefix length of its subnet, `autodetect`, or `none` [default: the one its Node
    /// resource has; without one, autodetect once]
    #[arg(long, env = "IP", value_name = "CIDR")]
    ip: Option<String>,
    /// IPv6 address of this node with the prefix length of its subnet, `autodetect`, or `none` [default: the one its Node
    /// resource has; without one, none]
    #[arg(long, env = "IP6", value_name = "CIDR")]
    ip6: Option<String>,
    /// AS number of this node, 64512 or 1.10, written into its Node resource [default: what stands there, else that of
    /// BGPConfiguration default, else 64512]
    #[arg(long = "as", env = "AS", value_name = "ASN")]
    as_number: Option<String>,
    /// BGP identifier of the speaker: an IPv4 address, or hash (of the node's name) [default: the node's IPv4 address,
    /// hash without one]
    #[arg(long, env = "CALICO_ROUTER_ID", value_name = "ADDR|hash")]
    router_id: Option<String>,
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
    /// Also answer brindlectl on other machines here, over TLS with the cluster's token; published in this node's
    /// resource (docs/adr/0004)
    #[arg(long, env = "BRINDLE_ADMIN_LISTEN", value_name = "ADDR:PORT", requires = "admin_token_file")]
    admin_listen: Option<std::net::SocketAddr>,
    /// File with the cluster's token, at least 32 characters, the same on every node
    #[arg(long, env = "BRINDLE_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    #[command(flatten)]
    leaks: crate::cni_server::LeakArgs,
    #[command(flatten)]
    cluster: crate::cluster::ClusterArgs,
    /// Answer Prometheus at http://ADDR:PORT/metrics (docs/metrics.md)
    #[arg(long, env = "BRINDLE_METRICS", value_name = "ADDR:PORT")]
    metrics: Option<std::net::SocketAddr>,
    /// Write every input of the speaker to this file, one JSON line each, for `brindle-bgpd replay`; no passwords are in
    /// it. A recording that is there is kept: this one goes to FILE.1, FILE.2, ...
    #[arg(long, env = "BRINDLE_RECORD", value_name = "FILE")]
    record: Option<PathBuf>,
    /// Largest size of the recordings; they end there
    #[arg(long, env = "BRINDLE_RECORD_LIMIT", value_name = "MIB", default_value_t = 1024)]
    record_limit: u64,
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// error, warn, info, debug, trace, or a filter such as info,brindle_bgpd=debug; the API server's client
    /// (kube_client) is silent unless it is named or everything is asked for
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
    /// What the Node resource has; without that, an IPv4 address is autodetected and there is none of IPv6.
    Stored,
    /// The node has no address of this family.
    None,
}

/// What the arguments mean.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) node_name: String,
    pub(crate) state_dir: PathBuf,
    pub(crate) datastore: String,
    pub(crate) address: OwnAddress,
    pub(crate) address6: OwnAddress,
    /// For the Node resource; `None`: what stands there stays.
    pub(crate) as_number: Option<AsNumber>,
    pub(crate) router_id: Option<Ipv4Addr>,
    pub(crate) networking: Networking,
    pub(crate) carrier: Carrier,
    pub(crate) cni_socket: PathBuf,
    pub(crate) admin_socket: PathBuf,
    /// Where other machines are answered, and the token's file.
    pub(crate) admin_port: Option<(std::net::SocketAddr, PathBuf)>,
    pub(crate) leaks: crate::cni_server::LeakArgs,
    pub(crate) cluster: Cluster,
    pub(crate) metrics: Option<std::net::SocketAddr>,
    /// Where the speaker's inputs are written, and their largest size in octets.
    pub(crate) record: Option<(PathBuf, u64)>,
    log_format: LogFormat,
    log_filter: String,
}

impl Settings {
    /// Checks and completes the arguments; the error names the flag.
    pub(crate) fn from_args(a: RunArgs) -> Result<Self, String> {
        let node_name = match a.node_name.filter(|n| !n.is_empty()) {
            Some(n) => n,
            None => remembered_or_host_name(&a.state_dir)?,
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
        let address = parse_own_address("--ip", a.ip.as_deref().unwrap_or_default(), false)?;
        let address6 = parse_own_address("--ip6", a.ip6.as_deref().unwrap_or_default(), true)?;
        let as_number = parse_as_number(a.as_number.as_deref().unwrap_or_default())?;
        let router_id = parse_router_id(a.router_id.as_deref().unwrap_or_default(), &node_name)?;
        if address == OwnAddress::None && address6 == OwnAddress::None {
            return Err("--ip and --ip6 are both none: a node needs an address".into());
        }
        brindle_bgpd::log::filter(&a.log_level).map_err(|e| format!("--log-level {:?}: {e}", a.log_level))?;
        brindle_config::check_url(&a.datastore).map_err(|e| format!("--datastore: {e}"))?;
        let cluster = Cluster::from_args(a.cluster, on_kubernetes(&a.datastore))?;
        if let Some(node) = cluster.k8s_node_ref.as_ref().filter(|n| **n != node_name)
            && on_kubernetes(&a.datastore)
        {
            return Err(format!(
                "--k8s-node-ref {node:?} is not the --node-name {node_name:?}: with Kubernetes as datastore they are one"
            ));
        }
        let networking = cluster.networking.unwrap_or(a.networking);
        if let Some(file) = &a.record
            && networking == Networking::None
        {
            return Err(format!(
                "--record {}: this agent has no speaker to record (networking is none)",
                file.display()
            ));
        }
        Ok(Self {
            networking,
            record: a.record.map(|file| (file, a.record_limit.saturating_mul(1 << 20))),
            cni_socket: a.cni_socket.unwrap_or_else(|| a.state_dir.join("cni.sock")),
            admin_port: a.admin_listen.zip(a.admin_token_file),
            metrics: a.metrics.or(cluster.metrics),
            admin_socket: a.admin_socket.unwrap_or_else(|| a.state_dir.join("admin.sock")),
            node_name,
            state_dir: a.state_dir,
            datastore: a.datastore,
            address,
            address6,
            as_number,
            router_id,
            carrier: a.ipip_carrier,
            leaks: a.leaks,
            cluster,
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

    /// Starts logging to standard error, in whole until the guard is dropped.
    pub(crate) fn init_log(&self) -> Result<brindle_bgpd::log::Flush, String> {
        let filter = brindle_bgpd::log::filter(&self.log_filter).map_err(|e| format!("--log-level: {e}"))?;
        let format = match self.log_format {
            LogFormat::Text => brindle_bgpd::settings::LogFormat::Text,
            LogFormat::Json => brindle_bgpd::settings::LogFormat::Json,
        };
        brindle_bgpd::log::to_stderr(format, filter)
    }
}

fn parse_own_address(flag: &str, s: &str, v6: bool) -> Result<OwnAddress, String> {
    match s {
        "autodetect" => return Ok(OwnAddress::Autodetect),
        "none" => return Ok(OwnAddress::None),
        "" => return Ok(OwnAddress::Stored),
        _ => {}
    }
    let example = if v6 { "fd00::5/64" } else { "10.0.0.5/24" };
    let bad = || {
        format!("{flag} {s:?}: expected an address with prefix length such as {example}, autodetect, or none")
    };
    let (ip, len) = if s.contains('/') {
        let net: IpNet = s.parse().map_err(|_| bad())?;
        (net.addr(), Some(net.prefix_len()))
    } else {
        (s.parse::<IpAddr>().map_err(|_| bad())?, None)
    };
    if ip.is_ipv6() != v6 {
        return Err(format!(
            "{flag} {s:?}: is of the other family; that one is {}",
            if v6 { "--ip" } else { "--ip6" }
        ));
    }
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        return Err(format!("{flag} {s:?}: other nodes cannot reach this address"));
    }
    Ok(OwnAddress::Given(ip, len))
}

fn parse_as_number(text: &str) -> Result<Option<AsNumber>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        // RFC 7607.
        Ok(AsNumber(0)) => Err("--as 0: is no AS number (environment AS)".into()),
        Ok(n) => Ok(Some(n)),
        Err(_) => Err(format!(
            "--as {text:?}: expected an AS number, 1 to 4294967295 or x.y such as 1.10 (environment AS)"
        )),
    }
}

fn parse_router_id(text: &str, node: &str) -> Result<Option<Ipv4Addr>, String> {
    match text {
        "" => Ok(None),
        "hash" => Ok(Some(brindle_bgpd::peers::hashed_router_id(node))),
        other => match other.parse::<Ipv4Addr>() {
            Ok(id) if !id.is_unspecified() => Ok(Some(id)),
            Ok(_) | Err(_) => Err(format!(
                "--router-id {other:?}: expected an IPv4 address such as 10.0.0.5, or hash (environment \
                     CALICO_ROUTER_ID)"
            )),
        },
    }
}

/// Whether a datastore URL means the API server of a cluster.
pub(crate) fn on_kubernetes(datastore: &str) -> bool {
    datastore.starts_with("kubernetes:")
}

/// Calico's order: the file that an earlier agent wrote, `HOSTNAME`, the kernel's name.
fn remembered_or_host_name(state_dir: &std::path::Path) -> Result<String, String> {
    let file = state_files::node_name(state_dir).unwrap_or_default();
    let names = [file, std::env::var("HOSTNAME").unwrap_or_default()];
    match names.iter().map(|n| n.trim().to_ascii_lowercase()).find(|n| !n.is_empty()) {
        Some(name) => Ok(name),
        None => host_name(),
    }
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
        let Command::Run(a) = cli.command else { panic!() };
        Settings::from_args(*a)
    }

    #[test]
    fn sockets_default_into_the_state_folder() {
        let s = parse(&["--node-name", "n1", "--state-dir", "/x"]).unwrap();
        assert_eq!(s.cni_socket, PathBuf::from("/x/cni.sock"));
        assert_eq!(s.admin_socket, PathBuf::from("/x/admin.sock"));
        assert_eq!((s.address, s.address6), (OwnAddress::Stored, OwnAddress::Stored));
    }

    #[test]
    fn as_number_and_router_id_are_calicos() {
        let s = parse(&["--node-name", "n1"]).unwrap();
        assert_eq!((s.as_number, s.router_id), (None, None));
        let s = parse(&["--node-name", "n1", "--as", "", "--router-id", "", "--ip", ""]).unwrap();
        assert_eq!((s.as_number, s.router_id, s.address), (None, None, OwnAddress::Stored));
        let s = parse(&["--node-name", "n1", "--as", "1.10", "--router-id", "192.0.2.1"]).unwrap();
        assert_eq!((s.as_number, s.router_id), (Some(AsNumber(65546)), "192.0.2.1".parse().ok()));
        let s = parse(&["--node-name", "n1", "--router-id", "hash"]).unwrap();
        assert_eq!(s.router_id, Some(brindle_bgpd::peers::hashed_router_id("n1")));
    }

    #[test]
    fn bad_values_name_their_flag() {
        let none = parse(&["--node-name", "n", "--networking", "none", "--record", "x"]).unwrap_err();
        assert!(none.contains("--record x"), "{none}");
        let none = parse(&["--node-name", "n", "--ip", "none", "--ip6", "none"]).unwrap_err();
        assert!(none.contains("both none"), "{none}");
        for (args, flag) in [
            (["--ip", "fd00::1/64"], "--ip6"),
            (["--ip6", "10.0.0.1/24"], "--ip6"),
            (["--ip6", "::1/128"], "--ip6"),
            (["--node-name", "N_1"], "--node-name"),
            (["--ip", "10.0.0.300"], "--ip"),
            (["--ip", "127.0.0.1/8"], "--ip"),
            (["--datastore", "etcd:x"], "--datastore"),
            (["--as", "as"], "--as"),
            (["--as", "0"], "--as"),
            (["--router-id", "0.0.0.0"], "--router-id"),
            (["--router-id", "fd00::1"], "--router-id"),
            (["--log-level", "brindle=loud"], "--log-level"),
            (["--log-level", "warning"], "--log-level"),
        ] {
            let e = parse(&args).unwrap_err();
            assert!(e.contains(flag), "{args:?}: {e}");
        }
        // As calico-node has them: who wrote the variable has not written the flag.
        let e = parse(&["--node-name", "n", "--router-id", "x"]).unwrap_err();
        assert!(e.contains("CALICO_ROUTER_ID"), "{e}");
        let e = parse(&["--node-name", "n", "--as", "abc"]).unwrap_err();
        assert!(
            e.contains("\"abc\"") && e.contains("1 to 4294967295") && e.contains("environment AS"),
            "{e}"
        );
    }

    /// What is shipped for service managers starts this program, and ends it alone: the carrier goes on.
    #[test]
    fn the_unit_for_systemd_starts_an_agent() {
        let unit = include_str!("../../deploy/systemd/brindle-node.service");
        let value = |key: &str| unit.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('=')).unwrap();
        let typed: Vec<&str> = value("ExecStart").split_whitespace().collect();
        let cli = <Cli as clap::Parser>::try_parse_from(&typed).unwrap();
        assert!(matches!(cli.command, Command::Run(_)), "{typed:?}");
        assert_eq!((value("KillMode"), value("Restart")), ("process", "always"));
    }

    #[test]
    fn a_recording_is_as_large_as_that_of_the_speaker_alone() {
        let s = parse(&["--node-name", "n", "--record", "/x/r"]).unwrap();
        assert_eq!(s.record, Some((PathBuf::from("/x/r"), 1 << 30)));
        let s = parse(&["--node-name", "n", "--record", "r", "--record-limit", "2"]).unwrap();
        assert_eq!(s.record, Some((PathBuf::from("r"), 2 << 20)));
    }

    #[test]
    fn an_address_keeps_its_prefix_length() {
        let s = parse(&["--node-name", "n", "--ip", "10.0.0.5/24"]).unwrap();
        assert_eq!(s.address, OwnAddress::Given("10.0.0.5".parse().unwrap(), Some(24)));
    }

    /// Variables of the manifests that nothing reads would be settings that do nothing.
    #[test]
    fn every_variable_of_the_manifests_is_read() {
        use clap::CommandFactory as _;
        let command = Cli::command();
        let mut read: Vec<String> = command
            .get_subcommands()
            .flat_map(clap::Command::get_arguments)
            .filter_map(|a| a.get_env()?.to_str().map(str::to_owned))
            .collect();
        // By the kernel package, and by the etcd store.
        read.extend(["BRINDLE_SYSCTL_DIR", "ETCD_ENDPOINTS"].map(str::to_owned));
        read.extend(["CA_CERT", "CERT", "KEY"].map(|n| format!("ETCD_{n}_FILE")));
        let deploy = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let mut met = 0;
        for file in [
            "base/node/config.yaml",
            "base/node/daemonset.yaml",
            "overlays/etcd/config.yaml",
            "overlays/policy-only/config.yaml",
        ] {
            let text = std::fs::read_to_string(deploy.join(file)).unwrap();
            for line in text.lines().map(str::trim) {
                let name = match line.strip_prefix("- name: ") {
                    Some(name) => name,
                    None => line.split_once(": ").map_or("", |l| l.0),
                };
                if name.len() < 2
                    || !name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
                {
                    continue;
                }
                met += 1;
                let felix = name.strip_prefix("FELIX_").is_some_and(|f| {
                    brindle_config_core::fields::of(brindle_config_core::Kind::FelixConfiguration)
                        .any(|known| known.eq_ignore_ascii_case(f))
                });
                assert!(felix || read.iter().any(|r| r == name), "{file}: nothing reads {name}");
            }
        }
        assert!(met > 12, "{met}");

        // And those the page says are not read are not.
        let page = std::fs::read_to_string(deploy.join("../docs/kubernetes.md")).unwrap();
        let (_, list) = page.split_once("### Variables of calico-node that are not read\n").unwrap();
        let list = list.split("\n#").next().unwrap_or_default();
        let rows = list.lines().filter_map(|l| l.strip_prefix("| `")?.split(" | ").next());
        let names: Vec<&str> =
            rows.flat_map(|r| r.split('`')).filter(|n| n.len() > 4 && !n.contains(' ')).collect();
        assert!(names.len() > 15, "{names:?}");
        for name in names {
            assert!(!read.iter().any(|r| r == name), "{name} is read");
        }
    }
}
