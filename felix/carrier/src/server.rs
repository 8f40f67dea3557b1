//! The control socket: who may connect, one thread per connection, one request at a time.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use brindle_kernel::daemon;
use serde::Deserialize;
use tracing::{info, warn};

use crate::control::{Answer, Hello, Request, VERSION};
use crate::run::Event;
use crate::shared::Shared;

/// A configuration of 100,000 routes is under 8 MiB.
const MAX_REQUEST: u64 = 16 * 1024 * 1024;
/// The agent, brindlectl, and a few that hang.
const MAX_CONNECTIONS: usize = 16;
/// Somebody who does not read answers is let go.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Who this carrier is.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) device: String,
    pub(crate) start: Instant,
    /// Our parent when we started. A process whose parent dies gets another one.
    pub(crate) keeper: u32,
}

/// Answers requests for the life of the process.
pub(crate) struct Server {
    pub(crate) shared: Arc<Shared>,
    pub(crate) identity: Identity,
    pub(crate) events: Sender<Event>,
    pub(crate) connections: AtomicUsize,
}

/// Makes the socket, accessible to its owner alone. The caller holds the pid file's lock, so a
/// socket that is there already is a dead carrier's.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    // Bound under another name first: at no time is there a socket with wider permissions to be
    // found at the path.
    let mut hidden = path.as_os_str().to_owned();
    hidden.push("~");
    let hidden = Path::new(&hidden);
    drop(std::fs::remove_file(hidden));
    let listener = UnixListener::bind(hidden)?;
    std::fs::set_permissions(hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(hidden, path)?;
    Ok(listener)
}

impl Server {
    /// Accepts connections until the process ends.
    pub(crate) fn serve(self: &Arc<Self>, listener: &UnixListener) -> io::Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if is_fleeting(&e) => continue,
                Err(e) => return Err(e),
            };
            let server = Arc::clone(self);
            std::thread::Builder::new()
                .name("control".to_owned())
                .spawn(move || server.connection(stream))?;
        }
    }

    fn connection(&self, stream: UnixStream) {
        let others = self.connections.fetch_add(1, Ordering::Relaxed);
        let outcome = self.admit(&stream, others).and_then(|()| self.converse(stream));
        match outcome {
            // Who asked has died or does not want to know any more: every day's business.
            Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            Err(e) => warn!(error = %e, "control connection ended"),
            Ok(()) => {}
        }
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    fn admit(&self, mut stream: &UnixStream, others: usize) -> io::Result<()> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let Some(message) = refusal(daemon::peer_uid(stream)?, daemon::own_uid(), others) else {
            return Ok(());
        };
        write_answer(&mut stream, &Answer::Error { message: message.clone() })?;
        Err(io::Error::other(message))
    }

    fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut reader).take(MAX_REQUEST).read_until(b'\n', &mut line);
            match read {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(e) => return Err(e),
            }
            if line.last() != Some(&b'\n') {
                let message = format!("request without an end in {} bytes", line.len());
                return write_answer(reader.get_mut(), &Answer::Error { message });
            }
            let (answer, end) = self.answer(&line);
            let written = write_answer(reader.get_mut(), &answer);
            if let Some(event) = end {
                // The main thread ends the process; nobody there means that it is ending already.
                drop(self.events.send(event));
            }
            written?;
        }
    }

    fn answer(&self, line: &[u8]) -> (Answer, Option<Event>) {
        let request = match serde_json::from_slice(line) {
            Ok(request) => request,
            Err(e) => return (Answer::Error { message: not_understood(line, &e) }, None),
        };
        match request {
            Request::Hello { version: _ } => (Answer::Hello(self.hello()), None),
            Request::GetStats => (Answer::Stats(Box::new(self.shared.stats())), None),
            Request::SetConfig { config } => {
                let mtu = config.mtu;
                match self.shared.set_config(config) {
                    Ok(done) => {
                        if done.changed {
                            info!(
                                mtu,
                                routes = done.routes,
                                sources = done.sources,
                                "configuration replaced"
                            );
                        }
                        (Answer::Configured(done), None)
                    }
                    Err(e) => (Answer::Error { message: e.to_string() }, None),
                }
            }
            Request::Shutdown { keep_device } => (Answer::Bye, Some(Event::Shutdown { keep_device })),
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            version: VERSION,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            device: self.identity.device.clone(),
            local: self.shared.local,
            configured: self.shared.is_configured(),
            uptime_ms: u64::try_from(self.identity.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            keeper: Some(std::os::unix::process::parent_id()).filter(|p| *p == self.identity.keeper),
        }
    }
}

/// Why a connection is not served. The socket's mode keeps other users out already; a mode is
/// easily changed.
fn refusal(peer_uid: u32, own_uid: u32, others: usize) -> Option<String> {
    if peer_uid != 0 && peer_uid != own_uid {
        return Some(format!("user {peer_uid} may not control this carrier: be user {own_uid} or root"));
    }
    (others >= MAX_CONNECTIONS).then(|| format!("{others} connections are open already: close one"))
}

fn write_answer(stream: &mut impl Write, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn not_understood(line: &[u8], error: &serde_json::Error) -> String {
    #[derive(Deserialize)]
    struct Op {
        op: String,
    }
    match serde_json::from_slice::<Op>(line) {
        Ok(Op { op }) => format!("request {op:?} of protocol version {VERSION}: {error}"),
        Err(_) => format!("not a request of protocol version {VERSION}: {error}"),
    }
}

fn is_fleeting(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_own_user_are_served_and_not_too_many() {
        assert_eq!(refusal(0, 0, 0), None);
        assert_eq!(refusal(0, 500, MAX_CONNECTIONS - 1), None);
        assert_eq!(refusal(500, 500, 0), None);
        assert!(refusal(501, 500, 0).is_some_and(|m| m.contains("user 501")));
        assert!(refusal(1000, 0, 0).is_some());
        assert!(refusal(0, 0, MAX_CONNECTIONS).is_some());
    }
}
