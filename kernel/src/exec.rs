//! Child processes: arguments, standard input, a deadline, everything they said.
#![expect(unsafe_code, reason = "pidfd_open has no safe wrapper")]

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{ChildStdin, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// Output beyond this is read and thrown away.
const MAX_OUTPUT: usize = 64 << 20;
/// Octets read at a time, and how often before others have their turn; more than a pipe holds.
const CHUNK: usize = 64 << 10;
const AT_ONCE: usize = 32;

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
    let mut input = child.stdin.take().zip(stdin).map(|(to, left)| Input { to, left });
    let ended = Stream::of(child.stdout.take()).and_then(|stdout| {
        let mut outputs = [stdout, Stream::of(child.stderr.take())?];
        if let Some(input) = &input {
            unblock(&input.to)?;
        }
        Ok(converse(pid, &mut input, &mut outputs, timeout)?.then_some(outputs))
    });
    if !matches!(ended, Ok(Some(_))) {
        // Its children too. ESRCH: it ended this moment.
        let _ = killpg(pid_of(pid), Signal::SIGKILL);
    }
    // A child that still reads is told that there is no more.
    drop(input);
    let status = child.wait().map_err(fail)?;
    match ended {
        Ok(Some([stdout, stderr])) => {
            Ok(Output { program: program.clone(), status, stdout: stdout.kept, stderr: stderr.kept })
        }
        Ok(None) => Err(ExecError::Timeout { program: program.clone(), after: timeout }),
        Err(source) => Err(fail(source)),
    }
}

/// What the child is told.
struct Input<'a> {
    to: ChildStdin,
    left: &'a [u8],
}

impl Input<'_> {
    /// Writes what there is room for; `false` when it is over. A child that does not read its input closes the pipe: its
    /// exit status says what happened.
    fn write(&mut self) -> bool {
        while !self.left.is_empty() {
            match self.to.write(self.left) {
                Ok(n) => self.left = self.left.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return e.kind() == ErrorKind::WouldBlock,
            }
        }
        false
    }
}

/// One of the child's outputs.
struct Stream {
    /// None at its end.
    from: Option<File>,
    kept: Vec<u8>,
}

impl Stream {
    fn of(from: Option<impl Into<OwnedFd>>) -> io::Result<Self> {
        let from = from.map(|f| File::from(f.into()));
        from.as_ref().map_or(Ok(()), unblock)?;
        Ok(Self { from, kept: Vec::new() })
    }

    /// Reads what is there, up to [`AT_ONCE`] chunks.
    fn read(&mut self) {
        let Some(from) = &mut self.from else { return };
        let mut chunk = vec![0; CHUNK];
        for _ in 0..AT_ONCE {
            match from.read(&mut chunk) {
                Ok(n) if n > 0 => {
                    let room = MAX_OUTPUT.saturating_sub(self.kept.len()).min(n);
                    self.kept.extend_from_slice(chunk.get(..room).unwrap_or_default());
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => {
                    self.from = None;
                    return;
                }
            }
        }
    }
}

fn unblock(pipe: &impl AsFd) -> io::Result<()> {
    // Of this end alone: the child's is a description of its own.
    fcntl(pipe.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))
}

/// Hands over the input and takes in the outputs until the child ends, without reaping it; false when the time is over.
/// What it wrote before its end is in the pipes by then and is read; whoever it left behind may hold them for ever, and is
/// not waited for.
fn converse(
    pid: u32,
    input: &mut Option<Input<'_>>,
    outputs: &mut [Stream; 2],
    timeout: Duration,
) -> io::Result<bool> {
    // SAFETY: pidfd_open takes a pid and flags, no memory; the pid is our unreaped child's, so it cannot be re-used.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let raw = i32::try_from(raw).unwrap_or(-1);
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor and nobody else knows it.
    let child = unsafe { OwnedFd::from_raw_fd(raw) };
    let end = Instant::now().checked_add(timeout);
    loop {
        let left = match end {
            None => PollTimeout::NONE,
            Some(end) => match end.checked_duration_since(Instant::now()) {
                None => return Ok(false),
                Some(d) => PollTimeout::try_from(d.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX),
            },
        };
        let mut fds = vec![PollFd::new(child.as_fd(), PollFlags::POLLIN)];
        fds.extend(input.iter().map(|i| PollFd::new(i.to.as_fd(), PollFlags::POLLOUT)));
        let open = outputs.iter().filter_map(|o| o.from.as_ref());
        fds.extend(open.map(|f| PollFd::new(f.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, left) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        let ended = fds.first().and_then(PollFd::any).unwrap_or(false);
        drop(fds);
        if input.as_mut().is_some_and(|i| !i.write()) {
            *input = None;
        }
        outputs.iter_mut().for_each(Stream::read);
        if ended {
            return Ok(true);
        }
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
        assert_eq!(out.status.code(), Some(3));
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
    fn what_a_child_wrote_last_is_not_lost_however_busy_the_machine_is() {
        std::thread::scope(|s| {
            for _ in 0..16 {
                s.spawn(|| {
                    for _ in 0..8 {
                        let out =
                            run("sh", ["-c", "printf %065000d 1; printf %09000d 2 >&2"], None, LONG).unwrap();
                        assert_eq!((out.stdout.len(), out.stderr.len()), (65_000, 9_000));
                    }
                });
            }
        });
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
