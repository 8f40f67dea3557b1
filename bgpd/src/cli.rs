//! Command line of `brindle-bgpd`: what was typed, and what is done about it.

use std::{
    fs::File,
    io::{BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use brindle_admin::aside;
use brindle_config_core::status::{
    AdminRequest, NodeStatus,
    bgp::{BgpRequest, Dumped},
    health::{Health, Probe},
};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::{
    admin,
    daemon::{Daemon, Source, run},
    log,
    mrt::MrtSettings,
    replay::Replay,
    settings::{DEFAULT_ADMIN_SOCKET, LogFormat, Settings},
    show,
    view::RibPath,
};

/// BGP speaker: route collector, route reflector, or the BGP half of a Brindle node. Programs no kernel routes.
#[derive(Debug, Parser)]
#[command(name = "brindle-bgpd", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
#[command(after_help = "Exit codes: 0 ok, 1 failure while running, 2 usage or configuration.\n\
    SIGHUP reads --config again without touching unchanged sessions; SIGTERM says goodbye to every peer (Cease).")]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Peers and sessions of a running brindle-bgpd
    Status(AskArgs),
    /// Whether a running brindle-bgpd lives or is ready; exit code 0 or 1, the reasons on standard output
    #[command(group = ArgGroup::new("what").required(true))]
    Probe {
        /// Whether it makes progress
        #[arg(long, group = "what")]
        live: bool,
        /// Whether it listens, has the routes of its peers, and the sessions it waits for after its start
        #[arg(long, group = "what")]
        ready: bool,
        /// Socket of the daemon [default: that of --config, else /run/brindle-bgpd.sock]
        #[arg(long, value_name = "PATH")]
        admin_socket: Option<PathBuf>,
        /// Configuration file of the daemon, to find its socket
        #[arg(long, short, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Routes of a running brindle-bgpd: every path, and why it won or lost
    Rib {
        /// Only this prefix
        prefix: Option<IpNet>,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// MRT files (RFC 6396) of a running brindle-bgpd
    Mrt {
        #[command(subcommand)]
        what: MrtCommand,
    },
    /// Run a recording (--record) again and show where it ends; the same file gives the same every time
    Replay {
        /// The recording
        file: PathBuf,
        /// Everything the speaker did, one JSON line each
        #[arg(long)]
        trace: bool,
    },
    /// Look for mistakes in a configuration file, without running it
    Check {
        /// The file
        #[arg(required_unless_present = "config")]
        file: Option<PathBuf>,
        /// The same, as the daemon is told
        #[arg(long, short, value_name = "FILE", conflicts_with = "file")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum MrtCommand {
    /// Write the table into FILE (TABLE_DUMP_V2), replacing it
    Dump {
        file: PathBuf,
        #[command(flatten)]
        ask: AskArgs,
    },
}

#[derive(Debug, Args)]
struct AskArgs {
    /// Socket of the daemon [default: that of --config, else /run/brindle-bgpd.sock]
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<PathBuf>,
    /// Configuration file of the daemon, to find its socket
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Run with the peers and routes of this file (see deploy/brindle-bgpd.example.yaml)
    #[arg(
        long,
        short,
        value_name = "FILE",
        conflicts_with = "datastore",
        required_unless_present = "datastore"
    )]
    config: Option<PathBuf>,
    /// Instead of the file's routerID (and clusterID, if that is the same): one file for many reflectors
    #[arg(long, env = "BRINDLE_ROUTER_ID", value_name = "ADDR|hash:NAME", conflicts_with = "datastore",
        value_parser = router_id)]
    router_id: Option<Ipv4Addr>,
    /// Only look for mistakes in the file, and exit (as `brindle-bgpd check`)
    #[arg(long, requires = "config")]
    check: bool,
    /// Run as the BGP half of a node: peers and routes come from this datastore, e.g. sqlite:/var/lib/brindle/brindle.db
    #[arg(long, value_name = "URL", requires = "node")]
    datastore: Option<String>,
    /// With --datastore: the node to speak for
    #[arg(long, value_name = "NAME", requires = "datastore")]
    node: Option<String>,
    /// With --datastore: folder of the secrets with TCP-MD5 passwords, DIR/NAME/KEY
    #[arg(long, value_name = "DIR", requires = "datastore", default_value = crate::DEFAULT_SECRETS)]
    secrets: PathBuf,
    /// With --datastore: how long peers may move traffic away before the sessions end at SIGTERM (RFC 8326); a file says
    /// drainTime
    #[arg(long, value_name = "SECONDS", requires = "datastore", default_value_t = 0)]
    drain: u16,
    /// With --datastore: keep MRT files there, updates in files of 15 minutes and the table every 2 hours, 96 of each; a
    /// file says mrt
    #[arg(long, value_name = "DIR", requires = "datastore")]
    mrt_dir: Option<PathBuf>,
    /// Where `brindle-bgpd status` asks [default: adminSocket of the file, else /run/brindle-bgpd.sock]
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<PathBuf>,
    /// Write every input of the speaker to this file, one JSON line each, for `brindle-bgpd replay`. A recording that is
    /// there is kept: this one goes to FILE.1, FILE.2, ...
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Largest size of the recordings; they end there
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    record_limit: u64,
    /// Answer Prometheus at http://ADDR:PORT/metrics (docs/metrics.md)
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,
    /// [default: that of the file, else text]
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// error, warn, info, debug, trace, or a filter such as info,brindle_bgpd=debug [default: that of the file, else info]
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
}

/// Usage or configuration, not a failure while running.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
struct Usage(anyhow::Error);

/// Parses the arguments of this process and does what they say.
pub fn main() -> ExitCode {
    let cli: Cli = brindle_admin::arguments::parse();
    let done = match cli.command {
        None => match &cli.run.config {
            Some(config) if cli.run.check => check(config),
            _ => daemon(cli.run),
        },
        Some(Command::Status(ask)) => status(&ask),
        Some(Command::Probe { live, ready: _, admin_socket, config }) => {
            let ask = AskArgs { admin_socket, config, output: Format::Table };
            match probe(if live { Probe::Live } else { Probe::Ready }, &ask) {
                Ok(true) => Ok(()),
                Ok(false) => return ExitCode::from(1),
                Err(e) => Err(e),
            }
        }
        Some(Command::Rib { prefix, ask }) => rib(prefix, &ask),
        Some(Command::Mrt { what: MrtCommand::Dump { file, ask } }) => mrt_dump(&file, &ask),
        Some(Command::Replay { file, trace }) => replay(&file, trace),
        // One of the two is there: clap asks for it.
        Some(Command::Check { file, config }) => check(&file.or(config).unwrap_or_default()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            aside::say(format_args!("brindle-bgpd: {e:#}"));
            ExitCode::from(if e.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// Marks an error as one of usage or configuration.
pub(crate) fn usage(e: impl Into<anyhow::Error>) -> anyhow::Error {
    Usage(e.into()).into()
}

fn daemon(args: RunArgs) -> Result<()> {
    // Loading the program, reading arguments and reading files take megabytes each: not all at the same time.
    give_back();
    let (source, settings) = match (args.config, args.datastore, args.node) {
        (Some(file), _, _) => {
            let mut settings = Settings::read(&file).map_err(usage)?;
            if let Some(id) = args.router_id {
                settings.set_router_id(id).map_err(|e| usage(anyhow::anyhow!("--router-id: {e}")))?;
            }
            (Source::File(file), Some(settings))
        }
        (None, Some(url), Some(node)) => (Source::Datastore { url, node, secrets: args.secrets }, None),
        _ => return Err(usage(anyhow::anyhow!("give --config FILE, or --datastore URL with --node NAME"))),
    };
    give_back();
    let log = settings.as_ref().map(|s| s.log.clone()).unwrap_or_default();
    let level = args.log_level.or(log.level).unwrap_or_else(|| "info".into());
    let _flush = init_log(args.log_format.unwrap_or(log.format), &level)?;
    let of_file = settings.as_ref().map(|s| s.admin_socket.clone());
    let admin_socket = args.admin_socket.or(of_file).unwrap_or_else(|| DEFAULT_ADMIN_SOCKET.into());
    // One thread: all routes are one task's, and what the others do is little and made of system calls.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let done = runtime.block_on(run(Daemon {
        source,
        admin_socket,
        record: args.record,
        record_limit: args.record_limit.saturating_mul(1 << 20),
        metrics: args.metrics,
        router_id: args.router_id,
        drain_time: settings.as_ref().map_or(Duration::from_secs(args.drain.into()), |s| s.drain_time),
        mrt: settings.as_ref().map_or_else(|| args.mrt_dir.map(MrtSettings::usual), |s| s.mrt.clone()),
        settings,
    }));
    drop(runtime);
    brindle_config::SqliteStore::close_all();
    done
}

/// Memory nobody needs any more; where that is not possible it is kept.
pub(crate) fn give_back() {
    if let Err(e) = brindle_kernel::memory::give_back() {
        tracing::debug!(error = %e, "memory of the start is kept");
    }
}

fn init_log(format: LogFormat, level: &str) -> Result<log::Flush> {
    let filter = log::filter(level).map_err(|e| usage(anyhow::anyhow!("log level {level:?}: {e}")))?;
    log::to_stderr(format, filter).map_err(anyhow::Error::msg)
}

fn socket(ask: &AskArgs) -> Result<PathBuf> {
    match (&ask.admin_socket, &ask.config) {
        (Some(path), _) => Ok(path.clone()),
        (None, Some(file)) => Ok(Settings::read(file).map_err(usage)?.admin_socket),
        (None, None) => Ok(DEFAULT_ADMIN_SOCKET.into()),
    }
}

fn status(args: &AskArgs) -> Result<()> {
    let reply = admin::ask(&socket(args)?, &AdminRequest::Status)?;
    match args.output {
        Format::Json => print(&format!("{reply:#}\n")),
        Format::Table => {
            let status: NodeStatus = serde_json::from_value(reply).context("the answer is not understood")?;
            print(&show::status(&status))
        }
    }
}

/// The verdict; what led to it is printed.
fn probe(probe: Probe, args: &AskArgs) -> Result<bool> {
    let path = socket(args)?;
    let health = admin::ask(&path, &AdminRequest::Health);
    let health: Health = match health {
        Ok(reply) => serde_json::from_value(reply).context("the answer is not understood")?,
        Err(e) => {
            print(&format!("[-] bgpd: {e}\n"))?;
            return Ok(false);
        }
    };
    print(&health.text(probe))?;
    Ok(health.ok(probe))
}

fn rib(prefix: Option<IpNet>, args: &AskArgs) -> Result<()> {
    let reply = admin::ask(&socket(args)?, &AdminRequest::Rib { prefix })?;
    let none = reply.as_array().is_some_and(Vec::is_empty);
    match args.output {
        Format::Table if none && prefix.is_some() => {}
        Format::Json => print(&format!("{reply:#}\n"))?,
        Format::Table => {
            let paths: Vec<RibPath> =
                serde_json::from_value(reply).context("the answer is not understood")?;
            print(&show::rib(&paths))?;
        }
    }
    match prefix.filter(|_| none) {
        Some(prefix) => anyhow::bail!("{prefix}: there is no such route"),
        None => Ok(()),
    }
}

fn mrt_dump(file: &Path, args: &AskArgs) -> Result<()> {
    // The daemon writes it, and its working directory is not ours.
    let absolute = std::path::absolute(file).with_context(|| format!("{}", file.display())).map_err(usage)?;
    let request = BgpRequest::MrtDump { file: absolute.display().to_string() };
    let done: Vec<Dumped> = admin::ask_bgp(&socket(args)?, request)?;
    done.iter().try_for_each(|d| match args.output {
        Format::Json => print(&format!("{}\n", serde_json::to_string(d)?)),
        Format::Table => print(&format!("{}: {} prefixes, {} paths\n", d.file, d.prefixes, d.paths)),
    })
}

fn replay(file: &Path, trace: bool) -> Result<()> {
    let name = || file.display().to_string();
    let input = File::open(file).with_context(name).map_err(usage)?;
    let mut replay = Replay::default();
    let mut out = std::io::BufWriter::new(std::io::stdout());
    replay
        .run(BufReader::new(input), |did| {
            if trace {
                // A reader that has seen enough is no failure.
                let _ = serde_json::to_writer(&mut out, did).map(|()| out.write_all(b"\n"));
            }
        })
        .with_context(name)?;
    out.flush().or_else(closed_pipe)?;
    if trace {
        if let Some(line) = replay.torn {
            aside::say(format_args!("{}: line {line} is cut off; all before it was run", file.display()));
        }
        return Ok(());
    }
    let mut text = Vec::new();
    replay.report(&mut text)?;
    print(&String::from_utf8_lossy(&text))
}

fn closed_pipe(e: std::io::Error) -> std::io::Result<()> {
    if e.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(e) }
}

fn check(file: &Path) -> Result<()> {
    let settings = Settings::read(file).map_err(usage)?;
    for warning in settings.warnings() {
        aside::say(format_args!("{}: warning: {warning}", file.display()));
    }
    let d = &settings.desired;
    print(&format!(
        "{}: ok: {} peers, {} dynamic ranges, {} routes to announce\n",
        file.display(),
        d.peers.len(),
        d.speaker.as_ref().map_or(0, |s| s.dynamic.len()),
        d.routes.len()
    ))
}

/// To standard output; a reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e).context("cannot write"),
        _ => Ok(()),
    }
}

/// An address, or `hash:` and a name: beside the agent of a node, which has the node's address for it (RFC 6286: no two of one
/// AS may have the same).
fn router_id(text: &str) -> Result<Ipv4Addr, String> {
    match text.strip_prefix("hash:") {
        Some("") => Err("a name must follow hash:".into()),
        Some(name) => Ok(crate::peers::hashed_router_id(name)),
        None => text.parse().map_err(|_| "expected an IPv4 address, or hash:NAME".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        for bad in
            [&["brindle-bgpd"][..], &["brindle-bgpd", "--datastore", "x"], &["brindle-bgpd", "--node", "x"]]
        {
            assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
        }
        for good in [
            &["brindle-bgpd", "--config", "x.yaml"][..],
            &["brindle-bgpd", "--datastore", "sqlite:x", "--node", "n"],
            &["brindle-bgpd", "--datastore", "x", "--node", "n", "--drain", "5", "--mrt-dir", "/x"],
            &["brindle-bgpd", "status"],
            &["brindle-bgpd", "probe", "--ready", "--admin-socket", "s"],
            &["brindle-bgpd", "probe", "--live", "-c", "x.yaml"],
            &["brindle-bgpd", "rib", "10.0.0.0/24", "-o", "json"],
            &["brindle-bgpd", "check", "-c", "x.yaml"],
            &["brindle-bgpd", "--check", "--config", "x.yaml"],
            &["brindle-bgpd", "mrt", "dump", "x.mrt", "--admin-socket", "s"],
            &["brindle-bgpd", "replay", "x.jsonl", "--trace"],
            &["brindle-bgpd", "--config", "x.yaml", "--metrics", "127.0.0.1:9180", "--record-limit", "10"],
        ] {
            Cli::try_parse_from(good).unwrap();
        }
    }
}
