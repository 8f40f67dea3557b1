//! What a cluster's manifest tells the agent, under Calico's names: how the address is found, default pools, health,
//! draining. Arguments ([`ClusterArgs`]) become what they mean ([`Cluster`]).

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use brindle_admin::arguments::boolean;
use brindle_config_core::{duration, pool::EncapMode};
use clap::{ArgAction, Args};
use ipnet::IpNet;

use crate::{addresses::POLL_INTERVAL, autodetect::Method, defaults, settings::Networking};

/// Port of Calico's health checks.
pub(crate) const HEALTH_PORT: u16 = 9099;
/// Port of Felix' metrics.
const METRICS_PORT: u16 = 9091;

#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// How an IPv4 address is found: first-found, kubernetes-internal-ip, can-reach=DESTINATION, interface=REGEX,..,
    /// skip-interface=REGEX,.. or cidr=CIDR,..
    #[arg(long, env = "IP_AUTODETECTION_METHOD", value_name = "METHOD", default_value = "first-found")]
    ip_autodetection_method: String,
    /// The same for IPv6
    #[arg(long, env = "IP6_AUTODETECTION_METHOD", value_name = "METHOD", default_value = "first-found")]
    ip6_autodetection_method: String,
    /// Pause between two looks at an autodetected address; 0 = only at the start [default: 60s]
    #[arg(long, env = "AUTODETECT_POLL_INTERVAL", value_name = "DURATION")]
    autodetect_poll_interval: Option<String>,
    /// Do not refuse an address that another node has too
    #[arg(long, env = "DISABLE_NODE_IP_CHECK", value_parser = boolean)]
    disable_node_ip_check: bool,
    /// Calico's name for --networking: bird (bgp) or none
    #[arg(long, env = "CALICO_NETWORKING_BACKEND", value_name = "NAME")]
    networking_backend: Option<String>,
    /// Make no IP pools, even if there is none
    #[arg(long, env = "NO_DEFAULT_POOLS", value_parser = boolean)]
    no_default_pools: bool,
    /// The first agent of a cluster makes this IPv4 pool if there is none [default on Kubernetes: 192.168.0.0/16, or
    /// one of 172.16.0.0/16 to 172.31.0.0/16 if a node is inside it; else no pool]
    #[arg(long, env = "CALICO_IPV4POOL_CIDR", value_name = "CIDR")]
    ipv4pool_cidr: Option<String>,
    /// IPIP of that pool: Always, CrossSubnet or Never
    #[arg(long, env = "CALICO_IPV4POOL_IPIP", value_name = "MODE", default_value = "Never")]
    ipv4pool_ipip: String,
    /// VXLAN of that pool: only Never
    #[arg(long, env = "CALICO_IPV4POOL_VXLAN", value_name = "MODE", default_value = "Never")]
    ipv4pool_vxlan: String,
    /// Prefix length of that pool's blocks
    #[arg(long, env = "CALICO_IPV4POOL_BLOCK_SIZE", value_name = "LEN", default_value_t = 26)]
    ipv4pool_block_size: u8,
    /// Which nodes use that pool
    #[arg(long, env = "CALICO_IPV4POOL_NODE_SELECTOR", value_name = "SELECTOR", default_value = "all()")]
    ipv4pool_node_selector: String,
    /// Whether packets that leave that pool take the node's address
    #[arg(long, env = "CALICO_IPV4POOL_NAT_OUTGOING", value_name = "BOOL", default_value = "true",
        value_parser = boolean, action = ArgAction::Set)]
    ipv4pool_nat_outgoing: bool,
    /// Keeps that pool out of BGP
    #[arg(long, env = "CALICO_IPV4POOL_DISABLE_BGP_EXPORT", value_parser = boolean)]
    ipv4pool_disable_bgp_export: bool,
    /// The same for IPv6; without it no IPv6 pool is made
    #[arg(long, env = "CALICO_IPV6POOL_CIDR", value_name = "CIDR")]
    ipv6pool_cidr: Option<String>,
    #[arg(long, env = "CALICO_IPV6POOL_BLOCK_SIZE", value_name = "LEN", default_value_t = 122)]
    ipv6pool_block_size: u8,
    #[arg(long, env = "CALICO_IPV6POOL_NODE_SELECTOR", value_name = "SELECTOR", default_value = "all()")]
    ipv6pool_node_selector: String,
    #[arg(long, env = "CALICO_IPV6POOL_NAT_OUTGOING", value_name = "BOOL", default_value = "false",
        value_parser = boolean, action = ArgAction::Set)]
    ipv6pool_nat_outgoing: bool,
    #[arg(long, env = "CALICO_IPV6POOL_DISABLE_BGP_EXPORT", value_parser = boolean)]
    ipv6pool_disable_bgp_export: bool,
    /// Words about the cluster for ClusterInformation, e.g. k8s,bgp
    #[arg(long, env = "CLUSTER_TYPE", value_name = "WORDS")]
    cluster_type: Option<String>,
    /// Name of this node in Kubernetes, where the datastore is another one; written into its Node resource, so that the
    /// controllers know when it is gone
    #[arg(long, env = "CALICO_K8S_NODE_REF", value_name = "NAME")]
    k8s_node_ref: Option<String>,
    /// Answer health checks at http://ADDR:PORT/livez and /readyz; FELIX_HEALTHENABLED=true is --health 127.0.0.1:9099
    #[arg(long, env = "BRINDLE_HEALTH", value_name = "ADDR:PORT")]
    health: Option<SocketAddr>,
    #[arg(long, env = "FELIX_HEALTHENABLED", hide = true, value_parser = boolean)]
    felix_healthenabled: bool,
    #[arg(long, env = "FELIX_HEALTHHOST", hide = true, default_value = "localhost")]
    felix_healthhost: String,
    #[arg(long, env = "FELIX_HEALTHPORT", hide = true, default_value_t = HEALTH_PORT)]
    felix_healthport: u16,
    #[arg(long, env = "FELIX_PROMETHEUSMETRICSENABLED", hide = true, value_parser = boolean)]
    felix_metricsenabled: bool,
    #[arg(long, env = "FELIX_PROMETHEUSMETRICSHOST", hide = true, default_value = "")]
    felix_metricshost: String,
    #[arg(long, env = "FELIX_PROMETHEUSMETRICSPORT", hide = true, default_value_t = METRICS_PORT)]
    felix_metricsport: u16,
    /// On SIGTERM: seconds for which peers are asked to move traffic away (RFC 8326) before the sessions end. 0 = the
    /// agent is about to be started again: peers keep its routes (graceful restart)
    #[arg(long, env = "BRINDLE_DRAIN", value_name = "SECONDS", default_value_t = 0)]
    drain: u16,
    /// Write the conflist once pods can be attached, as `brindle-node install-cni` does (its variables count too)
    #[arg(long, env = "BRINDLE_INSTALL_CNI", value_parser = boolean)]
    install_cni: bool,
}

/// A pool to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolWish {
    /// `None`: Calico's default, chosen when it is made.
    pub(crate) cidr: Option<IpNet>,
    pub(crate) ipip: EncapMode,
    pub(crate) block_size: u8,
    pub(crate) node_selector: String,
    pub(crate) nat_outgoing: bool,
    pub(crate) disable_bgp_export: bool,
}

/// What the arguments mean.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) method: Method,
    pub(crate) method6: Method,
    pub(crate) poll_interval: Duration,
    pub(crate) check_conflicts: bool,
    pub(crate) networking: Option<Networking>,
    pub(crate) pools: Vec<PoolWish>,
    pub(crate) cluster_type: Vec<String>,
    pub(crate) k8s_node_ref: Option<String>,
    pub(crate) health: Option<SocketAddr>,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) drain: Duration,
    pub(crate) install_cni: bool,
}

impl Cluster {
    /// Checks; the error names the flag. `on_kubernetes`: whether the datastore is a cluster's API server.
    pub(crate) fn from_args(a: ClusterArgs, on_kubernetes: bool) -> Result<Self, String> {
        let method = |flag: &str, text: &str| Method::parse(text).map_err(|e| format!("{flag} {e}"));
        let poll_interval = match a.autodetect_poll_interval.as_deref() {
            None | Some("") => POLL_INTERVAL,
            Some(text) => duration::parse(text)
                .map_err(|e| format!("--autodetect-poll-interval {text:?}: {e}; like 60s or 5m"))?,
        };
        let networking = match a.networking_backend.as_deref() {
            None | Some("") => None,
            Some("bird") => Some(Networking::Bgp),
            Some("none") => Some(Networking::None),
            Some(other) => {
                return Err(format!(
                    "--networking-backend {other:?}: expected bird or none (there is no VXLAN; IPIP is a setting of \
                     the pool)"
                ));
            }
        };
        // `Off` is what Calico's older manifests have.
        if !["never", "off", ""].contains(&a.ipv4pool_vxlan.to_ascii_lowercase().as_str()) {
            return Err(format!(
                "--ipv4pool-vxlan {:?}: there is no VXLAN; --ipv4pool-ipip Always or CrossSubnet tunnels by IPIP",
                a.ipv4pool_vxlan
            ));
        }
        let mut pools = Vec::new();
        if !a.no_default_pools {
            let cidr = pool_cidr("--ipv4pool-cidr", a.ipv4pool_cidr.as_deref(), false)?;
            if cidr.is_some() || on_kubernetes {
                let wish = PoolWish {
                    cidr,
                    ipip: encap("--ipv4pool-ipip", &a.ipv4pool_ipip)?,
                    block_size: block_size("--ipv4pool-block-size", a.ipv4pool_block_size, 20, 32)?,
                    node_selector: selector("--ipv4pool-node-selector", a.ipv4pool_node_selector)?,
                    nat_outgoing: a.ipv4pool_nat_outgoing,
                    disable_bgp_export: a.ipv4pool_disable_bgp_export,
                };
                pools.push(possible("--ipv4pool", wish)?);
            }
            let cidr = pool_cidr("--ipv6pool-cidr", a.ipv6pool_cidr.as_deref(), true)?;
            if cidr.is_some() {
                let wish = PoolWish {
                    cidr,
                    ipip: EncapMode::Never,
                    block_size: block_size("--ipv6pool-block-size", a.ipv6pool_block_size, 116, 128)?,
                    node_selector: selector("--ipv6pool-node-selector", a.ipv6pool_node_selector)?,
                    nat_outgoing: a.ipv6pool_nat_outgoing,
                    disable_bgp_export: a.ipv6pool_disable_bgp_export,
                };
                pools.push(possible("--ipv6pool", wish)?);
            }
        }
        let words = a.cluster_type.unwrap_or_default();
        let mut health = a.health;
        if health.is_none() && a.felix_healthenabled {
            health = Some(socket("FELIX_HEALTHHOST", &a.felix_healthhost, a.felix_healthport)?);
        }
        let mut metrics = None;
        if a.felix_metricsenabled {
            metrics = Some(socket("FELIX_PROMETHEUSMETRICSHOST", &a.felix_metricshost, a.felix_metricsport)?);
        }
        Ok(Self {
            method: method("--ip-autodetection-method", &a.ip_autodetection_method)?,
            method6: method("--ip6-autodetection-method", &a.ip6_autodetection_method)?,
            poll_interval,
            check_conflicts: !a.disable_node_ip_check,
            networking,
            pools,
            cluster_type: words.split(',').map(str::trim).filter(|w| !w.is_empty()).map(Into::into).collect(),
            k8s_node_ref: a.k8s_node_ref.filter(|n| !n.is_empty()),
            health,
            metrics,
            drain: Duration::from_secs(a.drain.into()),
            install_cni: a.install_cni,
        })
    }
}

fn pool_cidr(flag: &str, text: Option<&str>, v6: bool) -> Result<Option<IpNet>, String> {
    let Some(text) = text.filter(|t| !t.is_empty()) else { return Ok(None) };
    let example = if v6 { "fd00:10:244::/48" } else { "10.244.0.0/16" };
    let net: IpNet =
        text.parse().map_err(|_| format!("{flag} {text:?}: expected a network such as {example}"))?;
    if net.addr().is_ipv6() != v6 {
        return Err(format!("{flag} {text:?}: is of the other family; expected a network such as {example}"));
    }
    if net.trunc() != net {
        return Err(format!("{flag} {text:?}: has host bits set; the network is {}", net.trunc()));
    }
    Ok(Some(net))
}

fn encap(flag: &str, text: &str) -> Result<EncapMode, String> {
    // `Off` is what Calico's older manifests have.
    match text.to_ascii_lowercase().as_str() {
        "never" | "off" | "" => Ok(EncapMode::Never),
        "always" => Ok(EncapMode::Always),
        "crosssubnet" | "cross-subnet" => Ok(EncapMode::CrossSubnet),
        _ => Err(format!("{flag} {text:?}: expected Always, CrossSubnet or Never")),
    }
}

fn block_size(flag: &str, size: u8, least: u8, most: u8) -> Result<u8, String> {
    if (least..=most).contains(&size) {
        return Ok(size);
    }
    Err(format!("{flag} {size}: expected {least} to {most}"))
}

fn selector(flag: &str, text: String) -> Result<String, String> {
    match brindle_config_core::Selector::parse(&text) {
        Ok(_) => Ok(text),
        Err(e) => Err(format!("{flag} {text:?}: {e}")),
    }
}

/// A pool that the datastore would be given and nobody could use is refused before anything is written.
fn possible(flags: &str, wish: PoolWish) -> Result<PoolWish, String> {
    if let Some(cidr) = wish.cidr {
        defaults::check(&wish, cidr).map_err(|why| {
            format!("{flags}-cidr {cidr} with {flags}-block-size {}: {why}", wish.block_size)
        })?;
    }
    Ok(wish)
}

fn socket(name: &str, host: &str, port: u16) -> Result<SocketAddr, String> {
    let ip: IpAddr = match host {
        "localhost" => Ipv4Addr::LOCALHOST.into(),
        "" => Ipv4Addr::UNSPECIFIED.into(),
        other => other.parse().map_err(|_| format!("{name} {other:?}: expected an address, or localhost"))?,
    };
    Ok(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: ClusterArgs,
    }

    fn parse(args: &[&str], on_kubernetes: bool) -> Result<Cluster, String> {
        let cli = Cli::try_parse_from(["x"].iter().chain(args)).map_err(|e| e.to_string())?;
        Cluster::from_args(cli.args, on_kubernetes)
    }

    #[test]
    fn pools_are_only_made_unasked_on_kubernetes() {
        assert!(parse(&[], false).unwrap().pools.is_empty());
        let pools = parse(&[], true).unwrap().pools;
        assert_eq!((pools.len(), pools[0].cidr, pools[0].nat_outgoing), (1, None, true));
        assert!(parse(&["--no-default-pools"], true).unwrap().pools.is_empty());
        let both = ["--ipv4pool-cidr", "10.244.0.0/16", "--ipv6pool-cidr", "fd00:10:244::/48"];
        let pools = parse(&both, false).unwrap().pools;
        assert_eq!((pools[0].block_size, pools[1].block_size, pools[1].nat_outgoing), (26, 122, false));
        let ipip = ["--ipv4pool-cidr", "10.244.0.0/16", "--ipv4pool-ipip", "CrossSubnet"];
        assert_eq!(parse(&ipip, false).unwrap().pools[0].ipip, EncapMode::CrossSubnet);
    }

    #[test]
    fn no_vxlan_may_be_said_as_calico_says_it() {
        for off in ["Never", "never", "Off", ""] {
            assert_eq!(parse(&["--ipv4pool-vxlan", off], true).unwrap().pools.len(), 1, "{off:?}");
        }
    }

    #[test]
    fn a_switch_is_on_off_or_refused_wherever_it_stands() {
        let command = Cli::command();
        let switches = command.get_arguments().filter(|a| matches!(a.get_action(), ArgAction::SetTrue));
        let names: Vec<_> = switches.filter(|a| a.get_env().is_some()).map(|a| a.get_id().clone()).collect();
        assert_eq!(names.len(), 7, "{names:?}");
        for name in names {
            // The only variable every test has.
            let command = command.clone().mut_arg(&name, |a| a.env("PATH"));
            let e = command.try_get_matches_from(["x"]).unwrap_err().to_string();
            assert!(e.contains("expected true or false"), "{name}: {e}");
        }
    }

    #[test]
    fn pools_nobody_could_use_are_refused() {
        for (pool, more) in [
            (["--ipv4pool-cidr", "10.0.0.0/28"], None),
            (["--ipv4pool-cidr", "10.0.0.0/24"], Some(["--ipv4pool-block-size", "20"])),
            (["--ipv4pool-cidr", "127.0.0.0/16"], None),
            (["--ipv6pool-cidr", "fd00::/125"], None),
        ] {
            let args = [&pool[..], more.as_ref().map_or(&[], |m| &m[..])].concat();
            let e = parse(&args, false).unwrap_err();
            assert!(e.contains(pool[0]) && e.contains(pool[1]), "{args:?}: {e}");
        }
        let just = ["--ipv4pool-cidr", "10.0.0.0/28", "--ipv4pool-block-size", "28"];
        assert_eq!(parse(&just, false).unwrap().pools.len(), 1);
    }

    #[test]
    fn felix_switches_for_health_and_metrics_count() {
        assert_eq!(parse(&[], true).unwrap().health, None);
        let c = parse(&["--felix-healthenabled", "--felix-metricsenabled"], true).unwrap();
        assert_eq!(c.health, Some("127.0.0.1:9099".parse().unwrap()));
        assert_eq!(c.metrics, Some("0.0.0.0:9091".parse().unwrap()));
        let c = parse(&["--health", "127.0.0.1:1"], true).unwrap();
        assert_eq!(c.health, Some("127.0.0.1:1".parse().unwrap()));
    }

    #[test]
    fn bad_values_name_their_flag() {
        for (flag, value) in [
            ("--ipv4pool-cidr", "10.244.0.0"),
            ("--ipv4pool-cidr", "10.244.0.1/16"),
            ("--ipv4pool-cidr", "fd00::/48"),
            ("--ipv6pool-cidr", "10.0.0.0/8"),
            ("--networking-backend", "vxlan"),
            ("--autodetect-poll-interval", "soon"),
            ("--ip-autodetection-method", "magic"),
        ] {
            let e = parse(&[flag, value], false).unwrap_err();
            assert!(e.contains(flag), "{flag} {value}: {e}");
        }
        for (flag, value) in [
            ("--ipv4pool-ipip", "sometimes"),
            ("--ipv4pool-vxlan", "Always"),
            ("--ipv4pool-block-size", "8"),
            ("--ipv4pool-node-selector", "all("),
            ("--ipv4pool-nat-outgoing", "perhaps"),
        ] {
            let e = parse(&[flag, value], true).unwrap_err();
            assert!(e.contains(flag), "{flag} {value}: {e}");
        }
    }
}
