//! The agent's end of the control socket: blocking, one request at a time, bounded in time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use brindle_kernel::daemon::{self, Watched};
use thiserror::Error;

use super::wire::{Answer, Config, Configured, Hello, Request, Stats, VERSION};

/// The carrier answers from memory; longer than this means it hangs.
const TIMEOUT: Duration = Duration::from_secs(5);
/// No answer is longer.
const MAX_ANSWER: u64 = 64 * 1024;

/// Why the carrier could not be asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody there.
    #[error("cannot connect to the carrier at {path}")]
    Connect {
        /// The socket.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The connection broke or the time was up.
    #[error("lost the carrier while asking for {what}")]
    Io {
        /// The request.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The carrier closed the connection.
    #[error("the carrier hung up while asked for {0}")]
    HungUp(&'static str),
    /// The answer is not what was asked for.
    #[error("the carrier's answer to {what} is not understood: {answer}")]
    Answer {
        /// The request.
        what: &'static str,
        /// The beginning of the answer.
        answer: String,
    },
    /// The carrier refused.
    #[error("the carrier refused {what}: {message}")]
    Refused {
        /// The request.
        what: &'static str,
        /// Its reason.
        message: String,
    },
}

/// A connection to a carrier.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the control socket at `path`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let connect = |source| ClientError::Connect { path: path.display().to_string(), source };
        let stream = UnixStream::connect(path).map_err(connect)?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(connect)?;
        stream.set_write_timeout(Some(TIMEOUT)).map_err(connect)?;
        Ok(Client { reader: BufReader::new(stream) })
    }

    /// Whether an error means that the carrier is there and stands still.
    pub(super) fn is_hung(error: &ClientError) -> bool {
        matches!(error, ClientError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }

    /// Who is there? The versions may differ: compare [`Hello::version`] with [`VERSION`].
    pub fn hello(&mut self) -> Result<Hello, ClientError> {
        const WHAT: &str = "hello";
        match self.ask(WHAT, &Request::Hello { version: VERSION })? {
            Answer::Hello(hello) => Ok(hello),
            other => Err(unexpected(WHAT, &other)),
        }
    }

    /// Replaces the configuration as a whole. Setting the one in force again changes nothing.
    pub fn set_config(&mut self, config: &Config) -> Result<Configured, ClientError> {
        const WHAT: &str = "set-config";
        match self.ask(WHAT, &Request::SetConfig { config: config.clone() })? {
            Answer::Configured(done) => Ok(done),
            other => Err(unexpected(WHAT, &other)),
        }
    }

    /// Reads the counters.
    pub fn stats(&mut self) -> Result<Stats, ClientError> {
        const WHAT: &str = "get-stats";
        match self.ask(WHAT, &Request::GetStats)? {
            Answer::Stats(stats) => Ok(*stats),
            other => Err(unexpected(WHAT, &other)),
        }
    }

    /// Ends the carrier and waits until it is gone, so that its device and files are free for
    /// another. `keep_device` leaves the device and its routes in place.
    pub fn shutdown(mut self, keep_device: bool) -> Result<(), ClientError> {
        const WHAT: &str = "shutdown";
        let io = |source| ClientError::Io { what: WHAT, source };
        let process = daemon::peer_pid(self.socket()).map_err(io)?;
        let process = process.map(Watched::open).transpose().map_err(io)?;
        // An older or newer carrier may not say: then there is none to wait for.
        let keeper = self.hello().ok().and_then(|h| h.keeper).and_then(|p| i32::try_from(p).ok());
        let keeper = keeper.and_then(|p| Watched::open(p).ok());
        match self.ask(WHAT, &Request::Shutdown { keep_device })? {
            Answer::Bye => {}
            other => return Err(unexpected(WHAT, &other)),
        }
        for process in process.into_iter().chain(keeper) {
            if !process.wait_gone(TIMEOUT).map_err(io)? {
                return Err(io(io::ErrorKind::TimedOut.into()));
            }
        }
        Ok(())
    }

    /// Kills a carrier that does not answer, and waits until it is gone. Its device stays.
    pub fn kill(self) -> Result<(), ClientError> {
        const WHAT: &str = "its end";
        let io = |source| ClientError::Io { what: WHAT, source };
        let Some(pid) = daemon::peer_pid(self.socket()).map_err(io)? else {
            return Err(io(io::Error::other("it runs in another pid namespace")));
        };
        let process = Watched::open(pid).map_err(io)?;
        process.kill().map_err(io)?;
        if process.wait_gone(TIMEOUT).map_err(io)? { Ok(()) } else { Err(io(io::ErrorKind::TimedOut.into())) }
    }

    /// The socket, for a reader that wants to notice the carrier's end: it never speaks unasked,
    /// so the socket becoming readable between requests means that it is gone.
    pub fn socket(&self) -> &UnixStream {
        self.reader.get_ref()
    }

    fn ask(&mut self, what: &'static str, request: &Request) -> Result<Answer, ClientError> {
        let io = |source| ClientError::Io { what, source };
        let mut line = serde_json::to_vec(request).map_err(|e| io(e.into()))?;
        line.push(b'\n');
        match self.reader.get_mut().write_all(&line) {
            // It has hung up, having said why.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            written => written.map_err(io)?,
        }
        let mut answer = Vec::new();
        (&mut self.reader).take(MAX_ANSWER).read_until(b'\n', &mut answer).map_err(io)?;
        if answer.is_empty() {
            return Err(ClientError::HungUp(what));
        }
        match serde_json::from_slice(&answer) {
            Ok(Answer::Error { message }) => Err(ClientError::Refused { what, message }),
            Ok(answer) => Ok(answer),
            Err(_) => {
                let text = String::from_utf8_lossy(&answer).trim_end().chars().take(200).collect();
                Err(ClientError::Answer { what, answer: text })
            }
        }
    }
}

fn unexpected(what: &'static str, answer: &Answer) -> ClientError {
    ClientError::Answer { what, answer: format!("{answer:?}").chars().take(200).collect() }
}
