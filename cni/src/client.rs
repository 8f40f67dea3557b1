//! The plugin's side of the socket. Every wait is bounded: a runtime that waits for a plugin waits with it.

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    error::{CniError, code},
    proto::{self, Call, FrameError, Reply},
};

/// How long a busy agent may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the agent.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    path: PathBuf,
}

/// No agent to talk to.
#[derive(Debug)]
pub struct Unreachable {
    tried: Vec<(PathBuf, io::Error)>,
}

impl Unreachable {
    /// As the runtime will read it.
    pub fn error(&self) -> CniError {
        let tried: Vec<String> = self.tried.iter().map(|(p, e)| format!("{}: {e}", p.display())).collect();
        let what = format!("the node agent does not answer: {}", tried.join("; "));
        if self.tried.iter().any(|(_, e)| e.kind() == io::ErrorKind::PermissionDenied) {
            return CniError::new(code::IO, what).hint("run as root: only root may talk to the agent");
        }
        CniError::new(code::TRY_AGAIN, what)
            .hint("start brindle-node, or set agent_socket to where it listens")
    }
}

/// A call that brought no reply, or a refusal.
#[derive(Debug)]
pub enum CallError {
    /// The agent said no.
    Refused(CniError),
    /// Connection lost, timed out, or nonsense received: what became of the call is unknown.
    Lost(CniError),
}

impl From<CallError> for CniError {
    fn from(e: CallError) -> Self {
        match e {
            CallError::Refused(e) | CallError::Lost(e) => e,
        }
    }
}

impl Agent {
    /// Connects to the first socket that answers. `patience` bounds each later wait for a reply.
    pub fn connect(sockets: &[PathBuf], patience: Duration) -> Result<Self, Unreachable> {
        let mut tried = Vec::new();
        for path in sockets {
            match open(path, patience) {
                Ok(stream) => return Ok(Self { stream, path: path.clone() }),
                Err(e) => tried.push((path.clone(), e)),
            }
        }
        Err(Unreachable { tried })
    }

    /// Asks and waits for the reply; a [`Reply::Error`] is a refusal.
    pub fn call(&mut self, call: Call) -> Result<Reply, CallError> {
        match proto::ask(&mut self.stream, call) {
            Ok(Reply::Error { code, msg, details }) => {
                Err(CallError::Refused(CniError::new(code, msg).hint(details)))
            }
            Ok(reply) => Ok(reply),
            Err(e) => Err(CallError::Lost(self.lost(&e))),
        }
    }

    fn lost(&self, e: &FrameError) -> CniError {
        let late = matches!(e, FrameError::Io(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut));
        let what = if late { "no reply in time".to_owned() } else { e.to_string() };
        let code = if matches!(e, FrameError::Io(_)) { code::TRY_AGAIN } else { code::PROTOCOL };
        CniError::new(code, format!("node agent at {}: {what}", self.path.display()))
            .hint("see the agent's log; it may be stopping or of another version")
    }

    /// A reply of the wrong kind.
    pub fn unexpected(reply: &Reply) -> CniError {
        CniError::new(code::PROTOCOL, format!("the node agent answered something else: {reply:?}"))
            .hint("install plugin and agent of one version")
    }
}

fn open(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
    // Also bounds the wait for a place in the listener's queue.
    socket.set_write_timeout(Some(CONNECT_TIMEOUT))?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.set_read_timeout(Some(patience))?;
    Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
}
