//! One question to one agent: a JSON line there, JSON lines back, over a unix socket or TLS. Connecting, asking and the
//! first line of the answer have the deadline together, each further line has it anew.

use std::{
    cell::Cell,
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use brindle_admin::rustls::{ClientConfig, ClientConnection, Error as TlsError, StreamOwned};
use brindle_config_core::status::{AdminRequest, bgp::End};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::spell;
use crate::lab::state::ROOT;

/// Longest line of an answer, octets.
const MAX_LINE: u64 = 256 << 20;

/// Where an agent answers.
#[derive(Clone)]
pub(crate) enum Where {
    Socket(PathBuf),
    Port(SocketAddr, Arc<ClientConfig>),
    /// It cannot be asked: why, and what to type.
    Nowhere(String, Option<String>),
}

impl std::fmt::Debug for Where {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Silence {
    #[error("nobody answers at {at}: {why}; is brindle-node or brindle-bgpd running?{}", another(at))]
    Absent { at: String, why: io::Error },
    #[error("no answer within {} from {at}", spell(*limit))]
    Deadline { at: String, limit: Duration },
    #[error("{at} does not accept our token, or is no agent ({why})")]
    Token { at: String, why: String },
    #[error("{0}")]
    Refused(String),
    #[error("the answer of {at} is not understood: {why}; is it of another version?")]
    Nonsense { at: String, why: String },
    /// Not asked at all: why, and what to type.
    #[error("{0}")]
    Unreachable(String, Option<String>),
}

/// What to type. A port is not typed but found, and so is the socket of a lab.
fn another(at: &str) -> String {
    let lab = Path::new(at).strip_prefix(ROOT).ok().and_then(|p| p.components().next());
    match lab {
        Some(lab) => format!(" brindlectl lab heal --name {} starts it", lab.as_os_str().display()),
        None if at.parse::<SocketAddr>().is_err() => " --socket names another".to_owned(),
        None => String::new(),
    }
}

impl Silence {
    /// How long it was waited for, where that is why.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Deadline { limit, .. } => Some(*limit),
            _ => None,
        }
    }
}

/// What comes back.
#[derive(Debug)]
pub(crate) enum Line<T> {
    One(T),
    End,
}

/// When waiting ends; none: never. Moved on while lines come.
type Until = Rc<Cell<Option<Instant>>>;

/// A stream whose every step ends at the deadline.
enum Stream {
    Unix(UnixStream, Until),
    Tcp(TcpStream, Until),
}

fn left(until: &Until) -> io::Result<Option<Duration>> {
    match until.get() {
        None => Ok(None),
        Some(t) => match t.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            time => Ok(Some(time)),
        },
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s, until) => {
                s.set_read_timeout(left(until)?)?;
                s.read(buf)
            }
            Self::Tcp(s, until) => {
                s.set_read_timeout(left(until)?)?;
                s.read(buf)
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s, until) => {
                s.set_write_timeout(left(until)?)?;
                s.write(buf)
            }
            Self::Tcp(s, until) => {
                s.set_write_timeout(left(until)?)?;
                s.write(buf)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(s, _) => s.flush(),
            Self::Tcp(s, _) => s.flush(),
        }
    }
}

/// What can be read and written.
trait Duplex: Read + Write {}
impl<T: Read + Write> Duplex for T {}

impl Where {
    /// As it is named in errors.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Socket(path) => path.display().to_string(),
            Self::Port(address, _) => address.to_string(),
            Self::Nowhere(why, _) => why.clone(),
        }
    }

    fn connect(&self, limit: Duration, until: &Until) -> Result<Box<dyn Duplex>, Silence> {
        match self {
            Self::Nowhere(why, next) => Err(Silence::Unreachable(why.clone(), next.clone())),
            Self::Socket(path) => {
                let stream = UnixStream::connect(path).map_err(|e| self.silence(e, limit))?;
                Ok(Box::new(Stream::Unix(stream, Rc::clone(until))))
            }
            Self::Port(address, config) => {
                let silence = |e| self.silence(e, limit);
                let tcp = TcpStream::connect_timeout(address, limit).map_err(silence)?;
                // A line is written at once and waited for.
                tcp.set_nodelay(true).map_err(silence)?;
                let tls = ClientConnection::new(Arc::clone(config), brindle_admin::server_name())
                    .map_err(|e| Silence::Nonsense { at: self.name(), why: e.to_string() })?;
                let mut stream = StreamOwned::new(tls, Stream::Tcp(tcp, Rc::clone(until)));
                while stream.conn.is_handshaking() {
                    stream.conn.complete_io(&mut stream.sock).map_err(silence)?;
                }
                Ok(Box::new(stream))
            }
        }
    }

    fn silence(&self, why: io::Error, limit: Duration) -> Silence {
        let at = self.name();
        let tls = why.get_ref().and_then(|e| e.downcast_ref::<TlsError>()).map(ToString::to_string);
        match (why.kind(), tls) {
            (_, Some(why)) => Silence::Token { at, why },
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, None) => Silence::Deadline { at, limit },
            (io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof, None)
                if matches!(self, Self::Port(..)) =>
            {
                Silence::Token { at, why: why.to_string() }
            }
            _ => Silence::Absent { at, why },
        }
    }

    /// Asks; `each` is given the lines as they come. With `live`, waiting has no end.
    pub(crate) fn lines(
        &self,
        request: &AdminRequest,
        limit: Duration,
        live: bool,
        mut each: impl FnMut(&[u8]) -> Result<Line<()>, Silence>,
    ) -> Result<(), Silence> {
        let silent = |e| self.silence(e, limit);
        let until = Until::new(Cell::new(Instant::now().checked_add(limit)));
        let mut stream = self.connect(limit, &until)?;
        let mut text = serde_json::to_string(request)
            .map_err(|e| Silence::Nonsense { at: self.name(), why: e.to_string() })?;
        text.push('\n');
        stream.write_all(text.as_bytes()).and_then(|()| stream.flush()).map_err(silent)?;
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        if live {
            until.set(None);
        }
        loop {
            line.clear();
            (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).map_err(silent)?;
            if line.is_empty() {
                return Err(Silence::Nonsense { at: self.name(), why: "it ends in the middle".into() });
            }
            if let Line::End = each(&line)? {
                return Ok(());
            }
            if !live {
                until.set(Instant::now().checked_add(limit));
            }
        }
    }

    /// Asks about BGP: any number of lines and an end.
    pub(crate) fn many<T: DeserializeOwned>(
        &self,
        request: &AdminRequest,
        limit: Duration,
        live: bool,
        mut each: impl FnMut(T),
    ) -> Result<(), Silence> {
        let nonsense = |why: serde_json::Error| Silence::Nonsense { at: self.name(), why: why.to_string() };
        self.lines(request, limit, live, |line| match serde_json::from_slice::<End>(line) {
            Ok(End::End { .. }) => Ok(Line::End),
            Ok(End::Error(why)) => Err(Silence::Refused(why)),
            Err(_) => {
                each(serde_json::from_slice(line).map_err(nonsense)?);
                Ok(Line::One(()))
            }
        })
    }

    /// Asks for one line.
    pub(crate) fn one<T: DeserializeOwned>(
        &self,
        request: &AdminRequest,
        limit: Duration,
    ) -> Result<T, Silence> {
        let nonsense = |why: serde_json::Error| Silence::Nonsense { at: self.name(), why: why.to_string() };
        let mut answer = None;
        self.lines(request, limit, false, |line| {
            let value: Value = serde_json::from_slice(line).map_err(nonsense)?;
            if let Some(error) = value.get("error").and_then(Value::as_str) {
                return Err(Silence::Refused(error.to_owned()));
            }
            answer = Some(serde_json::from_value(value).map_err(nonsense)?);
            Ok(Line::End)
        })?;
        answer.ok_or_else(|| Silence::Nonsense { at: self.name(), why: "it says nothing".into() })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_agent_that_says_nothing_is_given_up_at_the_deadline() {
        let path = std::env::temp_dir().join(format!("brindlectl-mute-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let place = Where::Socket(path.clone());
        let limit = Duration::from_millis(100);
        let answer = place.one::<Value>(&AdminRequest::Status, limit);
        assert!(matches!(answer, Err(Silence::Deadline { .. })), "{answer:?}");
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        let answer = place.one::<Value>(&AdminRequest::Status, limit);
        assert!(matches!(answer, Err(Silence::Absent { .. })), "{answer:?}");
    }

    #[test]
    fn the_next_step_fits_where_nobody_answers() {
        assert_eq!(another("none.sock"), " --socket names another");
        assert_eq!(another("[fd00::1]:9180"), "");
        let lab = format!("{ROOT}/tour/nodes/node2/admin.sock");
        assert_eq!(another(&lab), " brindlectl lab heal --name tour starts it");
    }

    #[test]
    fn errors_and_endings_in_the_middle_are_told() {
        let path = std::env::temp_dir().join(format!("brindlectl-odd-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let replies: [&[u8]; 3] = [b"{\"error\":\"busy\"}\n", b"", b"no json\n"];
        let server = std::thread::spawn(move || {
            for reply in replies {
                let (mut s, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(s.try_clone().unwrap()).read_line(&mut line).unwrap();
                s.write_all(reply).unwrap();
            }
        });
        let place = Where::Socket(path.clone());
        let ask =
            || place.one::<Value>(&AdminRequest::Status, Duration::from_secs(5)).unwrap_err().to_string();
        assert_eq!(ask(), "busy");
        assert!(ask().contains("ends in the middle"));
        assert!(ask().contains("not understood"));
        server.join().unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
