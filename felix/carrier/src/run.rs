//! Start and end of the carrier: what is taken in which order, and what is put back.

use std::net::Ipv4Addr;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{self, Sender};
use std::time::Instant;
use std::{io, thread};

use brindle_felix_core::ipip::{OUTER_TTL, PROTO_IPIP};
use brindle_kernel::daemon::{self, PidFile, PidFileError};
use brindle_kernel::rawip::RawIp;
use brindle_kernel::tun::{Tun, TunError};
use thiserror::Error;
use tracing::{info, warn};

use crate::keeper::config_file;
use crate::server::{Identity, Server, listen};
use crate::shared::Shared;
use crate::{inbound, outbound};

/// Room for bursts in the raw socket, each way. Memory is taken only by packets that wait.
const SOCKET_BUFFER: usize = 8 << 20;

/// What the carrier is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// The device it provides.
    pub device: String,
    /// The outer source address.
    pub local: Ipv4Addr,
    /// The control socket.
    pub control: PathBuf,
    /// The pid file.
    pub pid_file: PathBuf,
    /// Go on with the configuration of the carrier before.
    pub resume: bool,
}

/// Why the carrier does not start, or ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// Another carrier runs, or the state directory is not writable.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// No device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// No socket to the wire.
    #[error("cannot open a raw socket for IP protocol 4 at {local} (an address of this node? are we root?)")]
    Raw {
        /// The address.
        local: Ipv4Addr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No control socket.
    #[error("cannot listen at {path} (paths over 107 bytes do not fit a socket address)")]
    Listen {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started or failed.
    #[error("{what} failed")]
    Thread {
        /// Its work.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What ends the carrier.
#[derive(Debug)]
pub(crate) enum Event {
    /// It was asked to.
    Shutdown {
        /// The device stays.
        keep_device: bool,
    },
    /// A thread cannot go on. Better none at all than half a carrier: the agent starts a new one.
    Failed(RunError),
}

/// Runs the carrier; `ready` is called when it can be talked to. Returns when asked to end.
///
/// Order: the pid file's lock first (a second instance gets no further), then device and socket,
/// then the control socket. Packets move from the first configuration on; until then they wait in
/// the queues of the kernel.
pub fn run(options: &Options, ready: impl FnOnce()) -> Result<(), RunError> {
    let (start, keeper) = (Instant::now(), std::os::unix::process::parent_id());
    daemon::own_session();
    let pid_file = PidFile::take(&options.pid_file)?;
    let tun = Arc::new(Tun::attach(&options.device)?);
    let offloads = tun.enable_offloads()?;
    let raw = RawIp::open(PROTO_IPIP, options.local, OUTER_TTL, SOCKET_BUFFER)
        .map_err(|source| RunError::Raw { local: options.local, source })?;
    let raw = Arc::new(raw);
    let config = config_file(&options.pid_file);
    let shared = Arc::new(Shared::new(options.local, Some(config.clone())));
    if options.resume {
        match shared.resume() {
            Ok(done) => info!(routes = done.routes, sources = done.sources, "configuration taken over"),
            // It waits for an agent then.
            Err(e) => warn!(error = %e, "there is no configuration to take over"),
        }
    }
    let listen_error = |source| RunError::Listen { path: options.control.clone(), source };
    let listener = listen(&options.control).map_err(listen_error)?;
    // The device, its addresses and routes outlive this process: a new carrier finds them in place.
    tun.set_persistent(true)?;

    let (events, inbox) = mpsc::channel();
    let (s, t, r) = (Arc::clone(&shared), Arc::clone(&tun), Arc::clone(&raw));
    spawn("outbound", &events, move || outbound::run(&s, &t, &r))?;
    let (s, t) = (Arc::clone(&shared), Arc::clone(&tun));
    spawn("inbound", &events, move || inbound::run(&s, &t, &raw))?;
    let server = Arc::new(Server {
        shared,
        identity: Identity { device: options.device.clone(), start, keeper },
        events: events.clone(),
        connections: AtomicUsize::new(0),
    });
    spawn("control", &events, move || server.serve(&listener))?;
    info!(device = %options.device, local = %options.local, ?offloads, "carrier is up");
    ready();

    match inbox.recv() {
        Ok(Event::Shutdown { keep_device }) => {
            info!(keep_device, "carrier ends as asked");
            if !keep_device {
                tun.set_persistent(false)?;
            }
            // First: without it the keeper ends too.
            drop(std::fs::remove_file(&config));
            // Left-over files are harmless: the next start replaces them.
            drop(std::fs::remove_file(&options.control));
            drop(pid_file.remove());
            Ok(())
        }
        Ok(Event::Failed(error)) => Err(error),
        Err(_) => Ok(()),
    }
}

/// Starts a thread whose end, by return or by panic, is an event.
fn spawn(
    what: &'static str,
    events: &Sender<Event>,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), RunError> {
    let events = events.clone();
    thread::Builder::new()
        .name(what.to_owned())
        .spawn(move || {
            let outcome = panic::catch_unwind(AssertUnwindSafe(work));
            let source = match outcome {
                Ok(Err(e)) => e,
                Ok(Ok(())) => io::Error::other("it ended"),
                Err(_) => io::Error::other("it panicked; the message is in the log"),
            };
            // Nobody there means that the process is ending already.
            drop(events.send(Event::Failed(RunError::Thread { what, source })));
        })
        .map(drop)
        .map_err(|source| RunError::Thread { what, source })
}
