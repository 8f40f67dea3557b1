//! Adopting the carrier that runs, or starting one: what the agent does when it comes up, and
//! again whenever the carrier is gone.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use brindle_kernel::daemon::{self, PidFile, StartError};
use thiserror::Error;

use super::client::{Client, ClientError};
use super::wire::{Hello, VERSION};
use crate::keeper;

/// A carrier opens a device and two sockets; a busy machine may take its time over that.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// A keeper follows a dead carrier with another within this time.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);
/// What a carrier says first when it is up.
pub(crate) const READY: &str = "ready";

/// The carrier that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The program `brindle-ipip`.
    pub program: PathBuf,
    /// The device to provide.
    pub device: String,
    /// Outer source: this node's address.
    pub local: Ipv4Addr,
    /// The control socket, under 108 bytes long (STATE/carrier.sock).
    pub control: PathBuf,
    /// The pid file (STATE/carrier.pid).
    pub pid_file: PathBuf,
    /// Further arguments, such as `--log-format json`.
    pub extra: Vec<String>,
}

/// How a carrier was had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// It was running.
    Adopted,
    /// None was running.
    Started,
    /// The one running was ended first.
    Replaced {
        /// What was wrong with it.
        why: String,
    },
}

/// A carrier at work; it goes on when this value is dropped.
#[derive(Debug)]
pub struct Carrier {
    /// The connection to it.
    pub client: Client,
    /// What it said of itself.
    pub hello: Hello,
    /// Whether it was running before.
    pub how: How,
    /// Set when it is our child: to be waited for when it ends, or it stays a zombie.
    pub child: Option<Child>,
}

/// Why there is no carrier.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The program did not come up.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The program says why it cannot work.
    #[error("the carrier did not start: {0}")]
    Failed(String),
    /// It runs and cannot be talked to.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Adopts the running carrier if it is the one wanted; else replaces it (the device stays, when it
/// is the same) or starts one. Safe to call again at any time.
pub fn ensure(wanted: &Launch) -> Result<Carrier, LaunchError> {
    let how = match reach(wanted) {
        // No socket, or one that nobody listens on any more.
        Err(ClientError::Connect { .. }) => How::Started,
        Err(e) => return Err(e.into()),
        Ok(mut client) => match client.hello() {
            Err(e) if Client::is_hung(&e) => {
                client.kill()?;
                let how = How::Replaced { why: "it did not answer and was killed".to_owned() };
                if let Ok(mut client) = reach(wanted)
                    && let Ok(hello) = client.hello()
                    && mismatch(&hello, wanted).is_none()
                {
                    return Ok(Carrier { client, hello, how, child: None });
                }
                how
            }
            Err(e) => return Err(e.into()),
            Ok(hello) => match mismatch(&hello, wanted) {
                None => return Ok(Carrier { client, hello, how: How::Adopted, child: None }),
                Some(why) => {
                    client.shutdown(hello.device == wanted.device)?;
                    How::Replaced { why }
                }
            },
        },
    };
    // The keeper of one that was ended takes a moment to go, and would keep the next one out.
    let end = Instant::now() + KEEPER_TIMEOUT;
    while PidFile::is_held(&keeper::lock_file(&wanted.pid_file)) && Instant::now() < end {
        std::thread::sleep(PAUSE);
    }
    let mut args: Vec<String> = Vec::with_capacity(8);
    args.extend(["--device".to_owned(), wanted.device.clone()]);
    args.extend(["--local".to_owned(), wanted.local.to_string()]);
    args.extend(["--control".to_owned(), wanted.control.display().to_string()]);
    args.extend(["--pid-file".to_owned(), wanted.pid_file.display().to_string()]);
    args.extend(wanted.extra.iter().cloned());
    let (mut child, line) = daemon::start(&wanted.program, &args, START_TIMEOUT)?;
    if line != READY {
        // It has said why and is on its way out.
        drop(child.wait());
        return Err(LaunchError::Failed(line));
    }
    let mut client = Client::connect(&wanted.control)?;
    let hello = client.hello()?;
    Ok(Carrier { client, hello, how, child: Some(child) })
}

/// Connects; where a keeper lives its next carrier is waited for.
fn reach(wanted: &Launch) -> Result<Client, ClientError> {
    let end = Instant::now() + KEEPER_TIMEOUT;
    loop {
        let client = Client::connect(&wanted.control);
        let kept = || PidFile::is_held(&keeper::lock_file(&wanted.pid_file));
        match client {
            Err(ClientError::Connect { .. }) if Instant::now() < end && kept() => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
}

fn mismatch(hello: &Hello, wanted: &Launch) -> Option<String> {
    if hello.version != VERSION {
        return Some(format!("it speaks version {}, we speak {VERSION}", hello.version));
    }
    if hello.device != wanted.device {
        return Some(format!("its device is {}, not {}", hello.device, wanted.device));
    }
    (hello.local != wanted.local)
        .then(|| format!("its address is {}, the node's is {}", hello.local, wanted.local))
}
