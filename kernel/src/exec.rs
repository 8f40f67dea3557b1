//! Child processes: arguments, standard input, a deadline, everything they said.
#![expect(unsafe_code, reason = "pidfd_open has no safe wrapper")]

use std::{
    ffi::OsStr,
    io::{Read, Write},
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// Output beyond this is read and thrown away.
const MAX_OUTPUT: usize = 64 << 20;
/// How long the end of the output is awaited after the end of the child.
const AFTER_END: Duration = Duration::from_millis(250);

/// A child that could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("cannot start {program}: {source}; is it installed?")]
    Start { program: String, source: std::io::Error },
    #[error("{program} did not end within {after:?} and was killed")]
    Timeout { program: String, after: Duration },
    #[error("{program}: {source}")]
    Io { program: String, source: std::io::Error },
    /// From [`Output::success`].
    #[error("{program} failed ({status}): {stderr}")]
    Failed { program: String, status: ExitStatus, stderr: String },
}

/// What a child did.
#[derive(Clone, Debug)]
pub struct Output {
    pub program: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    /// Itself if the child ended with 0, else an error with its standard error.
    pub fn success(self) -> Result<Self, ExecError> {
        if self.status.success() {
            return Ok(self);
        }
        let stderr = String::from_utf8_lossy(&self.stderr).trim().to_owned();
        Err(ExecError::Failed { program: self.program, status: self.status, stderr })
    }

    /// Standard output as text, without another copy of it.
    pub fn into_text(self) -> String {
        String::from_utf8(self.stdout).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs a program to its end and collects what it wrote. After `timeout` its process group is killed.
pub fn run<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = A>,
    stdin: Option<&[u8]>,
    timeout: Duration,
) -> Result<Output, ExecError> {
    let mut command = Command::new(program);
    command.args(args);
    run_command(&mut command, stdin, timeout)
}

/// Like [`run`], with a prepared command (environment, directory).
pub fn run_command(
    command: &mut Command,
    stdin: Option<&[u8]>,
    timeout: Duration,
) -> Result<Output, ExecError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let fail = |source| ExecError::Io { program: program.clone(), source };
    let mut child = command
        .stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|source| ExecError::Start { program: program.clone(), source })?;
    let pid = child.id();
    let (mut input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // Threads, since a child that fills one pipe while we wait on another would never end.
    if let (Some(mut pipe), Some(bytes)) = (input.take(), stdin) {
        let bytes = bytes.to_vec();
        // A child that does not read its input closes the pipe: its exit status says what happened.
        std::thread::spawn(move || {
            let _ = pipe.write_all(&bytes);
        });
    }
    let (stdout, stderr) = (output.map(Drain::start), errors.map(Drain::start));
    let ended = wait(pid, timeout);
    if !matches!(ended, Ok(true)) {
        // Its children too. ESRCH: it ended this moment.
        let _ = killpg(pid_of(pid), Signal::SIGKILL);
    }
    let status = child.wait().map_err(fail)?;
    match ended {
        Ok(true) => {
            let collect = |d: Option<Drain>| d.map(Drain::finish).unwrap_or_default();
            Ok(Output { program: program.clone(), status, stdout: collect(stdout), stderr: collect(stderr) })
        }
        Ok(false) => Err(ExecError::Timeout { program: program.clone(), after: timeout }),
        Err(source) => Err(fail(source)),
    }
}

/// Reads a pipe to its end in the background.
struct Drain {
    kept: Arc<Mutex<Vec<u8>>>,
    ended: mpsc::Receiver<()>,
}

impl Drain {
    fn start(mut from: impl Read + Send + 'static) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let (done, ended) = mpsc::channel();
        let target = Arc::clone(&kept);
        std::thread::spawn(move || {
            let mut chunk = vec![0; 64 << 10];
            loop {
                match from.read(&mut chunk) {
                    Ok(0) => break,
                    Ok(n) => {
                        let mut kept = target.lock().unwrap_or_else(PoisonError::into_inner);
                        let room = MAX_OUTPUT.saturating_sub(kept.len()).min(n);
                        kept.extend_from_slice(chunk.get(..room).unwrap_or_default());
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            let _ = done.send(());
        });
        Self { kept, ended }
    }

    /// What was read. A daemon the child left behind may hold the pipe for ever; it is not waited for.
    fn finish(self) -> Vec<u8> {
        let _ = self.ended.recv_timeout(AFTER_END);
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))
}

/// Waits for the end of a child without reaping it; false when the time is over.
fn wait(pid: u32, timeout: Duration) -> std::io::Result<bool> {
    // SAFETY: pidfd_open takes a pid and flags, no memory; the pid is our unreaped child's, so it cannot be re-used.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let raw = i32::try_from(raw).unwrap_or(-1);
    if raw < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    let end = Instant::now().checked_add(timeout);
    loop {
        let left = match end {
            None => PollTimeout::NONE,
            Some(end) => match end.checked_duration_since(Instant::now()) {
                None => return Ok(false),
                Some(d) => PollTimeout::try_from(d.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX),
            },
        };
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e.into()),
        }
    }
}

/// "exit 3", "signal 9".
pub fn status_text(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(c), _) => format!("exit {c}"),
        (None, Some(s)) => format!("signal {s}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn input_goes_in_and_both_outputs_come_out() {
        let out = run("sh", ["-c", "cat; echo oops >&2; exit 3"], Some(b"hello"), LONG).unwrap();
        assert_eq!((out.stdout.as_slice(), out.stderr.as_slice()), (&b"hello"[..], &b"oops\n"[..]));
        assert_eq!(status_text(out.status), "exit 3");
        let e = out.success().unwrap_err().to_string();
        assert!(e.contains("sh failed") && e.contains("oops"), "{e}");
    }

    #[test]
    fn a_large_input_and_output_do_not_deadlock() {
        let big = vec![b'x'; 1 << 20];
        let out = run("cat", [] as [&str; 0], Some(&big), LONG).unwrap();
        assert_eq!(out.stdout.len(), big.len());
    }

    #[test]
    fn a_child_that_hangs_is_killed_with_its_children() {
        let start = Instant::now();
        let got = run("sh", ["-c", "sleep 1000 & sleep 1000"], None, Duration::from_millis(100));
        assert!(matches!(got, Err(ExecError::Timeout { .. })), "{got:?}");
        assert!(start.elapsed() < LONG);
    }

    #[test]
    fn a_grandchild_that_keeps_the_pipe_does_not_hold_us() {
        let start = Instant::now();
        let out = run("sh", ["-c", "sleep 30 & echo $!"], None, LONG).unwrap();
        let left: i32 = out.text().trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(left), Signal::SIGKILL).expect("the background child lives on");
        assert!(start.elapsed() < LONG);
    }

    #[test]
    fn a_missing_program_is_named() {
        let e = run("no-such-program-here", [] as [&str; 0], None, LONG).unwrap_err();
        assert!(e.to_string().contains("cannot start no-such-program-here"), "{e}");
    }

    #[test]
    fn a_child_that_ignores_its_input_is_no_error() {
        let out = run("true", [] as [&str; 0], Some(&vec![0; 1 << 20]), LONG).unwrap();
        assert!(out.status.success());
    }
}
