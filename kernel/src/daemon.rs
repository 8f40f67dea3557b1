//! Starting a long-lived program that outlives us, and what such a program does to itself: a
//! session of its own, a lock that says it runs, and a look at who talks to it over a unix socket.
#![expect(unsafe_code, reason = "pidfd_open and pidfd_send_signal have no safe wrapper")]

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::ptr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use thiserror::Error;

use crate::process::spawn_session;

/// Longest first line a started program may say.
const MAX_FIRST_LINE: u64 = 4096;

/// Why a program did not come up.
#[derive(Debug, Error)]
pub enum StartError {
    /// It could not be executed.
    #[error("cannot execute {program}")]
    Execute {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It said nothing in time; it was killed.
    #[error("{program} said nothing for {seconds} s after its start and was killed")]
    Silent {
        /// The program.
        program: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// It ended before saying anything.
    #[error("{program} ended at once: {status}")]
    Ended {
        /// The program.
        program: PathBuf,
        /// Its exit status.
        status: String,
    },
}

/// Starts `program` in the calling thread's network namespace and in a session of its own, and waits until it writes its first
/// line on standard output, which is returned. Its standard error is ours; its standard input is
/// empty.
pub fn start(program: &Path, args: &[String], timeout: Duration) -> Result<(Child, String), StartError> {
    let execute = |source| StartError::Execute { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = spawn_session(&mut command).map_err(execute)?;
    let Some(stdout) = child.stdout.take() else {
        return Err(execute(io::Error::other("its standard output is not a pipe")));
    };
    let (sender, receiver) = mpsc::sync_channel(1);
    // A read from a pipe has no time limit; the thread ends with the line, or with the program.
    thread::spawn(move || {
        let mut line = String::new();
        let mut limited = BufReader::new(stdout.take(MAX_FIRST_LINE));
        // A broken line is as good as none.
        let read = limited.read_line(&mut line).unwrap_or(0);
        let line = (read > 0).then(|| line.trim_end().to_owned());
        // Nobody listens any more when the time was up.
        drop(sender.send(line));
    });
    match receiver.recv_timeout(timeout) {
        Ok(Some(line)) => Ok((child, line)),
        Ok(None) => {
            let status = child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
            Err(StartError::Ended { program: program.to_owned(), status })
        }
        Err(_) => {
            // It may have ended in this very moment: then there is nothing to kill, only to reap.
            drop(child.kill());
            drop(child.wait());
            Err(StartError::Silent { program: program.to_owned(), seconds: timeout.as_secs() })
        }
    }
}

/// Puts the calling process into a session of its own, so that signals for its parent's terminal
/// or process group pass it by. Returns false where it leads a group already (started by a shell
/// with job control), which is as good.
pub fn own_session() -> bool {
    nix::unistd::setsid().is_ok()
}

/// A pid file held locked for the life of the process.
#[derive(Debug)]
pub struct PidFile {
    file: File,
    path: PathBuf,
}

/// Why a pid file could not be taken.
#[derive(Debug, Error)]
pub enum PidFileError {
    /// Another process holds it.
    #[error("another instance is running (pid {pid}): it holds {path}")]
    Held {
        /// What the file says, "unknown" when it says nothing.
        pid: String,
        /// The file.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error("cannot write pid file {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl PidFile {
    /// Locks `path` (made when missing, mode 0600) and writes our pid into it.
    pub fn take(path: &Path) -> Result<PidFile, PidFileError> {
        let io = |source| PidFileError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let read = (&file).take(32).read_to_string(&mut pid);
                let said = if read.is_ok() && !pid.trim().is_empty() { pid.trim() } else { "unknown" };
                return Err(PidFileError::Held { pid: said.to_owned(), path: path.to_owned() });
            }
            Err(TryLockError::Error(e)) => return Err(io(e)),
        }
        file.set_len(0).map_err(io)?;
        file.rewind().map_err(io)?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(io)?;
        Ok(PidFile { file, path: path.to_owned() })
    }

    /// Whether somebody holds the file at `path`.
    pub fn is_held(path: &Path) -> bool {
        File::open(path).is_ok_and(|f| matches!(f.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Removes the file; for an orderly end.
    pub fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)?;
        self.file.unlock()
    }
}

/// A process that is to be seen ending, whoever its parent is.
#[derive(Debug)]
pub struct Watched(OwnedFd);

impl Watched {
    /// Takes hold of the process with this id, as our pid namespace numbers it.
    pub fn open(pid: i32) -> io::Result<Watched> {
        // SAFETY: pidfd_open takes two integers and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us; nobody else has it.
        Ok(Watched(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Kills the process; done when it has ended already.
    pub fn kill(&self) -> io::Result<()> {
        // SAFETY: pidfd_send_signal with a null siginfo reads no memory.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                libc::SIGKILL,
                ptr::null::<u8>(),
                0,
            )
        };
        let error = io::Error::last_os_error();
        if rc == 0 || error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
    }

    /// Waits until the process has ended and its files are closed; false when the time was up.
    pub fn wait_gone(&self, timeout: Duration) -> io::Result<bool> {
        let limit = u16::try_from(timeout.as_millis()).unwrap_or(u16::MAX);
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut fds, PollTimeout::from(limit))? > 0)
    }
}

/// The process at the other end of a unix socket: who listened, or who connected. `None` when it
/// is outside our pid namespace.
pub fn peer_pid(stream: &UnixStream) -> io::Result<Option<i32>> {
    let pid = getsockopt(stream, sockopt::PeerCredentials)?.pid();
    Ok((pid > 0).then_some(pid))
}

/// The user id at the other end of a unix socket, as the kernel saw it when it was connected.
pub fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    Ok(getsockopt(stream, sockopt::PeerCredentials)?.uid())
}

/// Our own effective user id.
pub fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_program_is_waited_for() {
        let args = ["-c".to_owned(), "echo ready: 1; read x".to_owned()];
        let (mut child, line) = start(Path::new("/bin/sh"), &args, Duration::from_secs(10)).unwrap();
        assert_eq!(line, "ready: 1");
        child.wait().unwrap();
    }

    #[test]
    fn a_program_that_ends_or_stays_silent_is_an_error() {
        let sh = Path::new("/bin/sh");
        let run =
            |script: &str, ms| start(sh, &["-c".to_owned(), script.to_owned()], Duration::from_millis(ms));
        assert!(
            matches!(run("exit 3", 10_000), Err(StartError::Ended { status, .. }) if status.contains('3'))
        );
        assert!(matches!(run("exec sleep 60", 50), Err(StartError::Silent { .. })));
        let missing = start(Path::new("/nowhere/x"), &[], Duration::from_secs(1));
        assert!(matches!(missing, Err(StartError::Execute { .. })));
    }

    #[test]
    fn a_pid_file_is_held_by_one() {
        let path = std::env::temp_dir().join(format!("brindle-pidfile-{}", std::process::id()));
        let first = PidFile::take(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.trim(), std::process::id().to_string());
        assert!(matches!(PidFile::take(&path), Err(PidFileError::Held { pid, .. }) if pid == text.trim()));
        assert!(PidFile::is_held(&path));
        first.remove().unwrap();
        assert!(!PidFile::is_held(&path));
        assert!(!path.exists());
        PidFile::take(&path).unwrap().remove().unwrap();
    }

    #[test]
    fn a_process_is_seen_ending() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let watched = Watched::open(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(!watched.wait_gone(Duration::from_millis(1)).unwrap());
        drop(child.stdin.take());
        assert!(watched.wait_gone(Duration::from_secs(10)).unwrap());
        watched.kill().unwrap();
        child.wait().unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let watched = Watched::open(i32::try_from(child.id()).unwrap()).unwrap();
        watched.kill().unwrap();
        assert!(watched.wait_gone(Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn the_peer_of_a_socket_is_known() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert_eq!(peer_uid(&a).unwrap(), own_uid());
    }
}
