//! `brindle-controllers run …` as it may be typed, and what it means; arguments in, exit code out: 0 ended as asked; 1
//! something could not be done (`--once`) or the run failed; 2 could not start as configured.

use std::{
    collections::BTreeMap, fmt, io::IsTerminal as _, net::SocketAddr, process::ExitCode, sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use brindle_admin::aside;
use brindle_config::lease::Candidate;
use brindle_config_core::{duration, lease::Timing};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::{
    config::Given,
    plan::{AssignIps, Controller},
};

/// What needs doing once for a whole cluster.
#[derive(Debug, Parser)]
#[command(name = "brindle-controllers", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The whole program: arguments and environment are the process's.
#[must_use]
pub fn main() -> ExitCode {
    let settings = match brindle_admin::arguments::parse::<Cli>().settings() {
        Ok(settings) => settings,
        Err(e) => {
            aside::say(format_args!("brindle-controllers: {e:#}"));
            return ExitCode::from(2);
        }
    };
    match crate::run::main(settings) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            tracing::error!("cannot start: {e:#}");
            ExitCode::from(2)
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look after the cluster until SIGTERM; of several such processes one acts
    Run(Box<RunArgs>),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Datastore, as for brindle-node (docs/design/datastore.md)
    #[arg(
        long,
        env = "BRINDLE_DATASTORE",
        value_name = "URL",
        default_value = "sqlite:/var/lib/brindle/brindle.db"
    )]
    datastore: String,
    /// Beside another datastore, the API server whose nodes count (kubernetes:, kubernetes:KUBECONFIG): a Node resource that
    /// says which of them it is (CALICO_K8S_NODE_REF of its agent) is deleted when that has been gone for --node-grace
    #[arg(long, env = "BRINDLE_KUBERNETES_NODES", value_name = "URL")]
    kubernetes_nodes: Option<String>,
    /// Act only while holding the lease; false for a single process that nobody else runs
    #[arg(
        long,
        env = "BRINDLE_LEADER_ELECT",
        action = ArgAction::Set,
        value_parser = brindle_admin::arguments::boolean,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value_t = true,
        value_name = "BOOL"
    )]
    leader_elect: bool,
    /// Namespace of the Lease
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE", default_value = "kube-system")]
    lease_namespace: String,
    /// Name of the Lease
    #[arg(long, value_name = "NAME", default_value = "brindle-controllers")]
    lease_name: String,
    /// This process among the candidates; the process id is added [default: POD_NAME, else the host's name]
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    identity: Option<String>,
    /// A lease that is not renewed for this long is taken over (whole seconds)
    #[arg(long, value_name = "DURATION", default_value = "15s")]
    lease_duration: String,
    /// Which controllers, with commas [default: those KubeControllersConfiguration names, else
    /// ipam,node,affinity,handle,load-balancer,host-endpoint]
    #[arg(long, env = "BRINDLE_CONTROLLERS", value_delimiter = ',', value_enum)]
    controllers: Option<Vec<Controller>>,
    /// How long an address or a handle must have been without an owner before it is collected [default:
    /// leakGracePeriod of KubeControllersConfiguration, else 15m]
    #[arg(long, env = "BRINDLE_LEAK_GRACE", value_name = "DURATION")]
    grace: Option<String>,
    /// How long a node must have been gone before what it left is cleaned up
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    node_grace: String,
    /// How long a claim on a block may stand halfway before it is finished or undone
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    repair_grace: String,
    /// Look at everything this often, beside whenever something changes [default: reconcilerPeriod of
    /// KubeControllersConfiguration, else 5m]
    #[arg(long, env = "BRINDLE_PERIOD", value_name = "DURATION")]
    period: Option<String>,
    /// Which LoadBalancer services get addresses: all without a class of somebody else's, or only those that ask for a
    /// pool or an address [default: assignIPs of KubeControllersConfiguration, else all]
    #[arg(long, env = "BRINDLE_ASSIGN_IPS", value_enum)]
    assign_ips: Option<AssignIps>,
    /// Answer Prometheus at http://ADDR:PORT/metrics (docs/metrics.md) [default: prometheusMetricsPort of
    /// KubeControllersConfiguration, else nowhere]
    #[arg(long, env = "BRINDLE_METRICS", value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,
    /// Answer health checks at http://ADDR:PORT/livez and /readyz, whatever healthChecks of KubeControllersConfiguration
    /// says of the port of the metrics
    #[arg(long, env = "BRINDLE_HEALTH", value_name = "ADDR:PORT")]
    health: Option<SocketAddr>,
    /// Say what would be done, do nothing; needs no lease
    #[arg(long)]
    dry_run: bool,
    /// One look, then end. Whatever has to wait for a grace period waits: add --grace 0s and the like
    #[arg(long)]
    once: bool,
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// error, warn, info, debug, trace, or a filter [default: logSeverityScreen of KubeControllersConfiguration, else
    /// info]
    #[arg(long, env = "BRINDLE_LOG", value_name = "FILTER")]
    log_level: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// What the arguments mean.
#[derive(Clone, Debug)]
pub struct Settings {
    pub datastore: String,
    /// Whose nodes count, beside another datastore.
    pub kubernetes_nodes: Option<String>,
    /// `None`: act without asking anybody.
    pub candidate: Option<Candidate>,
    /// What wins over KubeControllersConfiguration.
    pub given: Given,
    /// How long a node must have been gone.
    pub node_grace: Duration,
    /// How long a claim may stand halfway.
    pub repair_grace: Duration,
    pub log: Log,
    /// Where probes are answered.
    pub health: Option<SocketAddr>,
    pub dry_run: bool,
    pub once: bool,
}

/// The filter of the log, which can be changed while the process runs.
#[derive(Clone)]
pub struct Log(Arc<dyn Fn(EnvFilter) -> bool + Send + Sync>);

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log")
    }
}

impl Log {
    /// Lets through what a filter says; a filter that cannot be read changes nothing.
    pub fn set(&self, filter: &str) {
        match read_filter(filter).map(|f| (self.0)(f)) {
            Ok(true) => {}
            Ok(false) => tracing::warn!(filter, "the log cannot be changed; it goes on as it was"),
            Err(why) => tracing::warn!(filter, "the log goes on as it was: {why}"),
        }
    }
}

impl Cli {
    /// Checks what was typed and starts the log.
    ///
    /// # Errors
    /// The first thing that cannot be meant, with what would be right.
    pub fn settings(self) -> Result<Settings> {
        let Command::Run(args) = self.command;
        let args = *args;
        let log = start_log(args.log_format, args.log_level.as_deref().unwrap_or("info"))?;
        brindle_config::check_url(&args.datastore)?;
        let kubernetes_nodes = args.kubernetes_nodes.filter(|url| !url.is_empty());
        if let Some(url) = &kubernetes_nodes {
            if !url.starts_with("kubernetes:") {
                bail!("--kubernetes-nodes {url:?}: expected kubernetes: or kubernetes:KUBECONFIG");
            }
            if args.datastore.starts_with("kubernetes:") {
                bail!("--kubernetes-nodes {url:?}: the --datastore has the nodes of Kubernetes itself");
            }
            brindle_config::check_url(url).context("--kubernetes-nodes")?;
        }
        let time = |flag: &str, text: &str| {
            let parsed = duration::parse(text);
            parsed.map_err(|e| anyhow::anyhow!("{flag} {text:?}: {}", e.expected()))
        };
        let lease = time("--lease-duration", &args.lease_duration)?;
        if lease < Duration::from_secs(3) || lease.subsec_nanos() != 0 {
            bail!("--lease-duration {}: expected whole seconds, 3s or more", args.lease_duration);
        }
        let texts = [
            ("BRINDLE_CONTROLLERS", args.controllers.as_ref().map(|c| list(c))),
            ("BRINDLE_LEAK_GRACE", args.grace.clone()),
            ("BRINDLE_PERIOD", args.period.clone()),
            ("BRINDLE_ASSIGN_IPS", args.assign_ips.and_then(word)),
            ("BRINDLE_METRICS", args.metrics.map(|m| m.to_string())),
            ("BRINDLE_LOG", args.log_level.clone()),
        ];
        let texts: BTreeMap<String, String> =
            texts.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))).collect();
        let given = Given {
            controllers: args.controllers.map(|c| c.into_iter().collect()),
            leak: args.grace.as_deref().map(|t| time("--grace", t)).transpose()?,
            period: args.period.as_deref().map(|t| time("--period", t)).transpose()?,
            assign_ips: args.assign_ips,
            metrics: args.metrics,
            log: args.log_level,
            texts,
        };
        let name = match args.identity.filter(|i| !i.is_empty()) {
            Some(name) => name,
            None => host_name().context("--identity: the host has no name; give one")?,
        };
        let candidate = Candidate {
            namespace: args.lease_namespace,
            name: args.lease_name,
            identity: format!("{name}_{}", std::process::id()),
            // In the proportions of client-go: 15, 10, 2 s.
            timing: Timing { duration: lease, renew_within: lease * 2 / 3, retry: lease * 2 / 15 },
        };
        // Saying what would be done disturbs nobody.
        let needs_lease = args.leader_elect && !args.dry_run;
        Ok(Settings {
            datastore: args.datastore,
            kubernetes_nodes,
            candidate: needs_lease.then_some(candidate),
            given,
            node_grace: time("--node-grace", &args.node_grace)?,
            repair_grace: time("--repair-grace", &args.repair_grace)?,
            log,
            health: args.health,
            dry_run: args.dry_run,
            once: args.once,
        })
    }
}

/// A value as it is typed.
fn word(value: impl ValueEnum) -> Option<String> {
    Some(value.to_possible_value()?.get_name().to_owned())
}

fn list(controllers: &[Controller]) -> String {
    controllers.iter().map(|c| c.name()).collect::<Vec<_>>().join(",")
}

fn host_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(text.trim().to_lowercase()).filter(|n| !n.is_empty())
}

fn read_filter(wish: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(brindle_admin::log::filter(wish)?).map_err(|e| e.to_string())
}

fn start_log(format: LogFormat, filter: &str) -> Result<Log> {
    let filter = read_filter(filter).map_err(|why| anyhow!("--log-level {filter:?}: {why}"))?;
    let colours = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    // A log that cannot be written is no reason to end.
    let log = log.log_internal_errors(false);
    Ok(match format {
        LogFormat::Text => {
            let log = log.with_target(false).with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            Log(Arc::new(move |filter| handle.reload(filter).is_ok()))
        }
        LogFormat::Json => {
            let log = log.json().with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            Log(Arc::new(move |filter| handle.reload(filter).is_ok()))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(args: &[&str]) -> Cli {
        Cli::try_parse_from(["brindle-controllers", "run"].iter().chain(args)).expect("it can be typed")
    }

    #[test]
    fn leader_election_is_on_unless_switched_off() {
        for (args, on) in [
            (&[][..], true),
            (&["--leader-elect"], true),
            (&["--leader-elect=true"], true),
            (&["--leader-elect=false"], false),
        ] {
            let Command::Run(args) = typed(args).command;
            assert_eq!(args.leader_elect, on, "{args:?}");
        }
    }

    #[test]
    fn controllers_are_named_with_commas() {
        let Command::Run(args) = typed(&["--controllers", "ipam,policy-names"]).command;
        assert_eq!(args.controllers, Some(vec![Controller::Ipam, Controller::PolicyNames]));
        assert!(Cli::try_parse_from(["x", "run", "--controllers", "ipam,other"]).is_err());
    }
}
