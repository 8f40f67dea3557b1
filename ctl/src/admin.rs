//! Questions to an agent over its admin socket: one JSON line each way (`brindle_config_core::status`).

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use brindle_config_core::status::{AdminRequest, NodeStatus};
use serde::de::DeserializeOwned;

/// Longest answer that is read, octets.
const MAX_ANSWER: u64 = 256 << 20;

/// Why an agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    #[error("no agent answers at {path}: {source}")]
    Absent { path: String, source: io::Error },
    #[error("the agent at {path} answers with something else: {reason}")]
    Nonsense { path: String, reason: String },
}

/// Asks the agent at `socket`, waiting at most `patience` for each step.
pub(crate) fn ask<T: DeserializeOwned>(
    socket: &Path,
    request: &AdminRequest,
    patience: Duration,
) -> Result<T, AdminError> {
    let path = socket.display().to_string();
    let line = talk(socket, request, patience)
        .map_err(|source| AdminError::Absent { path: path.clone(), source })?;
    let nonsense = |reason: String| AdminError::Nonsense { path: path.clone(), reason };
    let value: serde_json::Value = serde_json::from_str(&line).map_err(|e| nonsense(e.to_string()))?;
    if let Some(error) = value.get("error").and_then(|e| e.as_str()) {
        return Err(nonsense(error.to_owned()));
    }
    serde_json::from_value(value).map_err(|e| nonsense(e.to_string()))
}

fn talk(socket: &Path, request: &AdminRequest, patience: Duration) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut text = serde_json::to_string(request)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer"));
    }
    Ok(line)
}

/// [`AdminRequest::Status`].
pub(crate) fn status(socket: &Path, patience: Duration) -> Result<NodeStatus, AdminError> {
    ask(socket, &AdminRequest::Status, patience)
}
