//! `brindle-ipip`: the IPIP carrier as a program. Standard output carries one line for who started
//! it: "ready", or why not.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use brindle_carrier::keeper::{HELD, KeepError, keep};
use brindle_carrier::run::{Options, RunError, run};
use brindle_kernel::daemon::PidFileError;
use clap::{Parser, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Carries IP in IP (protocol 4) in user space, on a kernel without ipip. The agent starts it and
/// configures it over the control socket; it goes on when the agent ends, and a keeper process starts it again when it
/// dies.
#[derive(Parser)]
#[command(name = "brindle-ipip", version)]
struct Args {
    /// TUN device to provide; taken over when a carrier before left it.
    #[arg(long, default_value = "tunl0")]
    device: String,
    /// Outer source address: an address of this node.
    #[arg(long)]
    local: Ipv4Addr,
    /// Control socket to listen at.
    #[arg(long)]
    control: PathBuf,
    /// Pid file, locked as long as the carrier runs.
    #[arg(long)]
    pid_file: PathBuf,
    /// Form of the log on standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// error, warn, info, debug or trace, or a filter per module.
    #[arg(long, default_value = "info")]
    log_level: String,
    /// Carry packets; without it, be the keeper that starts such a process, again when it dies.
    #[arg(long, hide = true)]
    worker: bool,
    /// Go on with the configuration of the one before.
    #[arg(long, hide = true, requires = "worker")]
    resume: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = match EnvFilter::try_new(&args.log_level) {
        Ok(filter) => filter,
        Err(e) => {
            say(&format!("--log-level {:?}: {e}", args.log_level));
            return ExitCode::from(2);
        }
    };
    // The agent may die and take the other end of our standard error along: losing the log must
    // not disturb the traffic.
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(filter)
        .with_ansi(false)
        .log_internal_errors(false);
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    if !args.worker {
        let own: Vec<_> = std::env::args_os().skip(1).collect();
        return match keep(&args.pid_file, &own) {
            Ok(status) => ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1)),
            Err(e) => {
                let held = matches!(e, KeepError::PidFile(PidFileError::Held { .. }));
                failed(e.into(), held)
            }
        };
    }
    let options = Options {
        device: args.device,
        local: args.local,
        control: args.control,
        pid_file: args.pid_file,
        resume: args.resume,
    };
    match run(&options, || say("ready")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let held = matches!(e, RunError::PidFile(PidFileError::Held { .. }));
            failed(e.into(), held)
        }
    }
}

fn failed(e: anyhow::Error, held: bool) -> ExitCode {
    tracing::error!(error = format!("{e:#}"), "carrier ends");
    say(&format!("{e:#}"));
    if held { ExitCode::from(HELD) } else { ExitCode::FAILURE }
}

/// Nobody need be listening.
fn say(line: &str) {
    drop(writeln!(io::stdout(), "{line}"));
}
