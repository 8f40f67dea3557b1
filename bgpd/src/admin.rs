//! The admin socket of `brindle-bgpd`: one JSON line in, one JSON line out (`config_core::status`), both ends.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream as BlockingStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use brindle_admin::defect::{outlived, words};
use brindle_config_core::status::{
    AdminRequest, NodeStatus,
    bgp::{BgpRequest, End},
    health::Probe,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, error, warn};

use crate::{ask, handle::Handle, health};

/// Longest request, octets.
const MAX_REQUEST: u64 = 64 * 1024;
/// Questions answered at the same time; more wait.
const MAX_CLIENTS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("{}: another brindle-bgpd answers there; stop it, or choose another admin socket", .0.display())]
    Taken(PathBuf),
    #[error("{}: there is a file that is no socket, which is left alone; choose another admin socket", .0.display())]
    NoSocket(PathBuf),
    #[error("{}: cannot listen: {why}", path.display())]
    Bind { path: PathBuf, why: io::Error },
    /// It answered.
    #[error("{0}")]
    Refused(String),
    #[error("{}: no answer: {why}; is brindle-bgpd running, and is this its admin socket?", path.display())]
    Ask { path: PathBuf, why: io::Error },
}

/// The bound socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct AdminSocket {
    path: PathBuf,
    listener: UnixListener,
    started: Instant,
    replaced: bool,
}

impl AdminSocket {
    /// Binds, mode 0600. A socket nobody answers on is replaced; anything else that is there is not ours.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn bind(path: &Path) -> Result<Self, AdminError> {
        let fail = |why| AdminError::Bind { path: path.into(), why };
        if BlockingStream::connect(path).is_ok() {
            return Err(AdminError::Taken(path.into()));
        }
        let replaced = match std::fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => {
                std::fs::remove_file(path).map_err(fail)?;
                true
            }
            Ok(_) => return Err(AdminError::NoSocket(path.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(fail(e)),
        };
        let listener = UnixListener::bind(path).map_err(fail)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        Ok(Self { path: path.into(), listener, started: Instant::now(), replaced })
    }

    /// Whether an earlier daemon left its socket behind, which it does only if it could not say goodbye.
    pub const fn replaced(&self) -> bool {
        self.replaced
    }

    /// Answers questions until dropped.
    pub async fn serve(self, handle: Handle) {
        let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (handle, started) = (handle.clone(), self.started);
                    tokio::spawn(async move {
                        let _slot = slot;
                        if let Err(e) = client(stream, &handle, started).await {
                            debug!(error = %e, "admin client");
                        }
                    });
                }
                Err(e) => {
                    warn!(error = %e, "cannot accept on the admin socket; trying again");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // If somebody removed it already, that is what we want, too.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn client(stream: UnixStream, handle: &Handle, started: Instant) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = tokio::io::BufReader::new(read.take(MAX_REQUEST)).lines();
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    // Each step has its time; how many there are, and how long `monitor` lasts, is the asker's business.
    while let Some(line) = timeout(PATIENCE, lines.next_line()).await.map_err(late)?? {
        let reply = match serde_json::from_str(&line) {
            Ok(AdminRequest::Bgp(request)) => {
                // Nothing more is expected: whatever comes, an end or not, the asker is done.
                let gone = async { drop(lines.next_line().await) };
                ask::answer(handle, request, &mut write, gone).await?;
                continue;
            }
            Ok(request) => match outlived(answer(&request, handle, started)).await {
                Ok(reply) => reply,
                Err(panic) => {
                    error!(what = words(&panic), "an answer met a defect; please report it");
                    json!({"error": "a defect of ours: there is no answer; the log says more"})
                }
            },
            Err(e) => json!({"error": format!("not a request brindle-bgpd knows: {e}")}),
        };
        let text = format!("{reply}\n");
        timeout(PATIENCE, write.write_all(text.as_bytes())).await.map_err(late)??;
    }
    Ok(())
}

async fn answer(request: &AdminRequest, handle: &Handle, started: Instant) -> Value {
    let answer = match request {
        AdminRequest::Status => {
            // The same judgement as that of `probe`.
            let health = health::health(handle, started.elapsed()).await;
            let failing = health.checks.iter().filter(|c| !c.ok);
            let reasons = failing.map(|c| format!("{}: {}", c.name, c.reason)).collect();
            handle.status().await.map(|bgp| {
                json!(NodeStatus {
                    version: env!("CARGO_PKG_VERSION").into(),
                    pid: std::process::id(),
                    rss_kib: rss_kib(),
                    uptime_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                    ready: health.ok(Probe::Ready),
                    reasons,
                    bgp,
                    ..NodeStatus::default()
                })
            })
        }
        AdminRequest::Rib { prefix } => handle.rib(*prefix).await.map(|paths| json!(paths)),
        AdminRequest::Bgp(_) => return json!({"error": "answered by several lines"}),
        AdminRequest::Health => return json!(health::health(handle, started.elapsed()).await),
        AdminRequest::Drain { .. } => {
            return json!({"error": "this is brindle-bgpd alone: SIGTERM drains it (drainTime)"});
        }
        AdminRequest::Nodes => {
            return json!({"error": "brindle-bgpd knows only its peers: brindlectl bgp summary"});
        }
        AdminRequest::Routes | AdminRequest::Path { .. } => {
            return json!({"error": "brindle-bgpd programs no kernel routes; ask brindle-node"});
        }
    };
    answer.unwrap_or_else(|e| json!({"error": e.to_string()}))
}

/// Resident set of this process; 0 if /proc is not there.
fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Asks a running daemon one question.
///
/// # Errors
/// [`AdminError::Ask`] when nobody answers, [`AdminError::Refused`] when what answers is an error.
pub fn ask(path: &Path, request: &AdminRequest) -> Result<Value, AdminError> {
    let fail = |why| AdminError::Ask { path: path.into(), why };
    let mut stream = BlockingStream::connect(path).map_err(fail)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
    let line = serde_json::to_string(request).expect("a request has a form in JSON");
    stream.write_all(format!("{line}\n").as_bytes()).map_err(fail)?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply).map_err(fail)?;
    let reply: Value = serde_json::from_str(&reply).map_err(|e| fail(io::Error::other(e)))?;
    match reply.get("error").and_then(Value::as_str) {
        Some(e) => Err(AdminError::Refused(e.to_owned())),
        None => Ok(reply),
    }
}

/// Asks a running daemon about BGP; the lines of its answer.
///
/// # Errors
/// [`AdminError::Ask`] when nobody answers, [`AdminError::Refused`] when what answers is an error.
pub fn ask_bgp<T: serde::de::DeserializeOwned>(
    path: &Path,
    request: BgpRequest,
) -> Result<Vec<T>, AdminError> {
    let fail = |why| AdminError::Ask { path: path.into(), why };
    let mut stream = BlockingStream::connect(path).map_err(fail)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
    let line = serde_json::to_string(&AdminRequest::Bgp(request)).expect("a request has a form in JSON");
    stream.write_all(format!("{line}\n").as_bytes()).map_err(fail)?;
    let mut answers = Vec::new();
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(fail)?;
        match serde_json::from_str(&line) {
            Ok(End::End { .. }) => return Ok(answers),
            Ok(End::Error(e)) => return Err(AdminError::Refused(e)),
            Err(_) => answers.push(serde_json::from_str(&line).map_err(|e| fail(e.into()))?),
        }
    }
    Err(fail(io::ErrorKind::UnexpectedEof.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_socket_of_before_is_replaced() {
        let dir = std::env::temp_dir().join(format!("bt-{}-admin", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("sock");
        std::fs::write(&path, "notes").unwrap();
        let e = AdminSocket::bind(&path).unwrap_err().to_string();
        assert!(e.starts_with(&path.display().to_string()) && e.contains("is no socket"), "{e}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "notes");
        std::fs::remove_file(&path).unwrap();

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let left = AdminSocket::bind(&path).unwrap();
        assert!(left.replaced());
        drop(left);
        assert!(!AdminSocket::bind(&path).unwrap().replaced());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
