//! The keeper: parent of the process that carries packets, so that somebody starts it again when it dies while no agent
//! is there to do it. It sleeps until its child ends and holds nothing else.
//!
//! The child leaves its configuration in a file and takes the file away when it ends as asked. So the file says what to
//! do: there, the end was not meant, and another child goes on with it; not there, the keeper ends too.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use brindle_kernel::daemon::{self, PidFile, PidFileError};
use tracing::{error, warn};

/// Argument that makes the program the child.
pub const WORKER: &str = "--worker";
/// Argument that makes the child take over the configuration it finds.
pub const RESUME: &str = "--resume";
/// Exit status: another instance is running, and it is the one that counts.
pub const HELD: u8 = 3;

/// Waits before a child that died young is followed by another.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A child that lived this long may be followed at once.
const GROWN_UP: Duration = Duration::from_secs(10);

/// The keeper's own pid file, beside the carrier's.
pub fn lock_file(pid_file: &Path) -> PathBuf {
    pid_file.with_extension("keeper")
}

/// Where the carrier leaves its configuration.
pub fn config_file(pid_file: &Path) -> PathBuf {
    pid_file.with_extension("config")
}

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Another keeper runs, or the folder is not writable.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// The left-over configuration of an earlier carrier cannot be removed.
    #[error("cannot remove {path}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The child cannot be started.
    #[error("cannot start the carrier process")]
    Start(#[source] io::Error),
}

/// Runs `args` as a carrier and follows it with another until one ends as asked; gives that one's status.
pub fn keep(pid_file: &Path, args: &[OsString]) -> Result<ExitStatus, KeepError> {
    daemon::own_session();
    let lock = PidFile::take(&lock_file(pid_file))?;
    let config = config_file(pid_file);
    match std::fs::remove_file(&config) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(source) => return Err(KeepError::Config { path: config, source }),
    }
    let mut status = follow(args, false).map_err(KeepError::Start)?;
    let mut pause = FIRST_PAUSE;
    let mut begun = Instant::now();
    while config.exists() && status.code() != Some(i32::from(HELD)) {
        if begun.elapsed() >= GROWN_UP {
            pause = FIRST_PAUSE;
        }
        warn!(old = "dead", new = "started", cause = %status, "carrier");
        begun = Instant::now();
        match follow(args, true) {
            Ok(next) => status = next,
            // Out of memory or processes: that may pass.
            Err(e) => error!(error = %e, "the carrier cannot be started again yet"),
        }
        if begun.elapsed() < GROWN_UP && config.exists() {
            std::thread::sleep(pause);
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    }
    drop(lock.remove());
    Ok(status)
}

/// Starts a child and waits for its end.
fn follow(args: &[OsString], resume: bool) -> io::Result<ExitStatus> {
    let mut command = Command::new(program());
    command.arg0("brindle-ipip").args(args).arg(WORKER);
    if resume {
        command.arg(RESUME);
    }
    command.status()
}

/// Our own executable; the file may have been replaced since, and then it is the one we came from that counts.
fn program() -> PathBuf {
    let found = std::env::current_exe().ok().filter(|p| p.exists());
    found.unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}
