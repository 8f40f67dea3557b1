//! Whom a question goes to, and how it is asked: one JSON line, answered by any number of lines and an end.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Result, bail};
use brindle_config_core::status::{
    AdminRequest,
    bgp::{BgpRequest, End},
};
use serde::de::DeserializeOwned;

use super::args::BgpArgs;
use crate::lab::{state, topology::AgentKind};

/// How long one step of an answer may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// Longest line of an answer, octets. A route with every attribute at its longest is far below.
const MAX_LINE: u64 = 16 << 20;

/// A speaker to ask.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Its node, where several are asked.
    pub(super) node: Option<String>,
    socket: PathBuf,
    /// Why it cannot be asked.
    cannot: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Silence {
    #[error(
        "nobody answers at {path}: {why}; is brindle-node or brindle-bgpd running? --socket names another"
    )]
    Absent { path: String, why: io::Error },
    #[error("no answer within {} s from {path}", DEADLINE.as_secs())]
    Deadline { path: String },
    #[error("{0}")]
    Refused(String),
    #[error("the answer of {path} is not understood: {why}; is it of another version?")]
    Nonsense { path: String, why: String },
}

/// Those the arguments name.
pub(super) fn targets(args: &BgpArgs) -> Result<Vec<Target>> {
    if args.node.is_none() && !args.all {
        return Ok(vec![Target { node: None, socket: args.socket.clone(), cannot: None }]);
    }
    let labs = state::all()?;
    let dir = match (&args.lab, labs.as_slice()) {
        (Some(name), _) => state::LabDir::of(name)?,
        (None, [only]) => only.clone(),
        (None, []) => bail!("there is no lab on this machine; --socket names the socket of a single agent"),
        (None, many) => {
            let names: Vec<&str> = many.iter().map(state::LabDir::name).collect();
            bail!("there are several labs: say --lab and one of {}", names.join(", "));
        }
    };
    let plan = dir.load_existing()?.plan;
    let wanted = |name: &str| args.node.as_deref().is_none_or(|n| n == name);
    let found: Vec<Target> = plan
        .nodes
        .iter()
        .filter(|n| wanted(&n.name))
        .map(|n| Target {
            node: args.all.then(|| n.name.clone()),
            socket: dir.admin_socket(&n.name),
            cannot: (n.agent != AgentKind::Brindle)
                .then(|| format!("{} runs BIRD: ask birdc, with `brindlectl lab exec`", n.name)),
        })
        .collect();
    if found.is_empty() {
        let names: Vec<&str> = plan.nodes.iter().map(|n| n.name.as_str()).collect();
        bail!("lab {:?} has no such node; there are {}", dir.name(), names.join(", "));
    }
    Ok(found)
}

impl Target {
    /// Asks; `each` is given the lines as they come. With `live`, waiting has no end.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        request: BgpRequest,
        live: bool,
        mut each: impl FnMut(T),
    ) -> Result<(), Silence> {
        if let Some(why) = &self.cannot {
            return Err(Silence::Refused(why.clone()));
        }
        let path = || self.socket.display().to_string();
        let silent = |why: io::Error| match why.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Silence::Deadline { path: path() },
            _ => Silence::Absent { path: path(), why },
        };
        let nonsense = |why: String| Silence::Nonsense { path: path(), why };
        let mut stream = UnixStream::connect(&self.socket).map_err(silent)?;
        stream.set_read_timeout((!live).then_some(DEADLINE)).map_err(silent)?;
        stream.set_write_timeout(Some(DEADLINE)).map_err(silent)?;
        let mut text =
            serde_json::to_string(&AdminRequest::Bgp(request)).map_err(|e| nonsense(e.to_string()))?;
        text.push('\n');
        stream.write_all(text.as_bytes()).map_err(silent)?;
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).map_err(silent)?;
            if line.is_empty() {
                return Err(nonsense("it ends in the middle".into()));
            }
            match serde_json::from_slice::<End>(&line) {
                Ok(End::End { .. }) => return Ok(()),
                Ok(End::Error(why)) => return Err(Silence::Refused(why)),
                Err(_) => each(serde_json::from_slice(&line).map_err(|e| nonsense(e.to_string()))?),
            }
        }
    }

    /// Asks for an answer of a bounded number of lines.
    pub(super) fn all<T: DeserializeOwned>(&self, request: BgpRequest) -> Result<Vec<T>, Silence> {
        let mut lines = Vec::new();
        self.ask(request, false, |line| lines.push(line))?;
        Ok(lines)
    }
}
