//! `brindle-node probe` and `brindle-node drain`: questions to the agent of this node over its admin socket, for the
//! hooks of a pod and for people. Exit codes: 0 yes, 1 no, 2 usage.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use brindle_config_core::status::{
    AdminRequest,
    health::{Drained, Health, Probe},
};
use clap::{ArgGroup, Args};
use serde::de::DeserializeOwned;
use serde_json::Value;

#[derive(Debug, Args)]
pub(crate) struct SocketArgs {
    /// Folder of the agent's own files
    #[arg(long, env = "BRINDLE_STATE_DIR", value_name = "DIR", default_value = "/var/lib/brindle")]
    state_dir: PathBuf,
    /// Socket of the agent [default: STATE/admin.sock]
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true))]
pub(crate) struct ProbeArgs {
    /// Whether the agent makes progress
    #[arg(long, group = "what")]
    live: bool,
    /// Whether the node does what it is told: datastore read, routes and policy in the kernel, BGP tried
    #[arg(long, group = "what")]
    ready: bool,
    /// Seconds to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 8)]
    timeout: u64,
    #[command(flatten)]
    socket: SocketArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// Seconds that peers have to move traffic away, at most 600
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    wait: u64,
    #[command(flatten)]
    socket: SocketArgs,
}

/// The verdict, and what to print.
pub(crate) fn probe(args: &ProbeArgs) -> (bool, String) {
    let probe = if args.live { Probe::Live } else { Probe::Ready };
    match ask::<Health>(&args.socket, &AdminRequest::Health, Duration::from_secs(args.timeout.max(1))) {
        Ok(health) => (health.ok(probe), health.text(probe)),
        Err(e) => (false, format!("[-] agent: {e:#}\n")),
    }
}

/// Drains; what was done.
pub(crate) fn drain(args: &DrainArgs) -> Result<String> {
    let wait = args.wait.min(crate::drain::LONGEST.as_secs());
    let patience = Duration::from_secs(wait + 30);
    let done: Drained = ask(&args.socket, &AdminRequest::Drain { wait }, patience)?;
    Ok(format!("drained: {} peers were told and had {} s; the sessions are ended", done.peers, done.waited))
}

fn ask<T: DeserializeOwned>(socket: &SocketArgs, request: &AdminRequest, patience: Duration) -> Result<T> {
    let path = socket.admin_socket.clone().unwrap_or_else(|| socket.state_dir.join("admin.sock"));
    let line =
        talk(&path, request, patience).with_context(|| format!("no agent answers at {}", path.display()))?;
    let value: Value = serde_json::from_str(&line).context("the answer is not understood")?;
    if let Some(error) = value.get("error").and_then(Value::as_str) {
        bail!("{error}");
    }
    serde_json::from_value(value).context("the answer is not understood; is the agent of another version?")
}

fn talk(path: &Path, request: &AdminRequest, patience: Duration) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all((serde_json::to_string(request)? + "\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer"));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_agent_is_neither_live_nor_ready_and_the_socket_is_named() {
        let socket = || SocketArgs { state_dir: "/nonexistent/brindle".into(), admin_socket: None };
        for live in [true, false] {
            let (ok, text) = probe(&ProbeArgs { live, ready: !live, timeout: 1, socket: socket() });
            assert!(!ok && text.contains("/nonexistent/brindle/admin.sock"), "{text}");
        }
        let e = drain(&DrainArgs { wait: 1, socket: socket() }).unwrap_err();
        assert!(e.to_string().contains("no agent answers"), "{e}");
    }
}
