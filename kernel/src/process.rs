//! Long-lived processes: starting one in a session of its own, finding those that live in a network namespace, and
//! ending exactly one. Short children with a result are in `exec`.
#![expect(unsafe_code, reason = "setsid must run between fork and exec")]

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    process::{Child, Command},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::netns::NetNsId;

/// What to tell a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    Terminate,
    Kill,
    Stop,
    Continue,
}

/// A process found by [`in_namespaces`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub pid: u32,
    /// Name of the program, as the kernel keeps it (15 bytes).
    pub program: String,
    pub namespace: NetNsId,
}

/// Starts `command` in a session of its own, so that it outlives the terminal, in the network namespace of the
/// calling thread.
pub fn spawn_session(command: &mut Command) -> io::Result<Child> {
    // SAFETY: setsid is async-signal-safe and touches no memory of the process.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
    }
    command.spawn()
}

/// Start time of a process in clock ticks after boot; `None` when it is gone or dead but not yet waited for.
/// Together with the pid it names one process for ever.
pub fn start_time(pid: u32) -> Option<u64> {
    let (state, start) = parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    (!matches!(state, 'Z' | 'X')).then_some(start)
}

/// State and start time out of `/proc/PID/stat`. The program's name may hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // Field 22 of the whole line; the state is field 3.
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn namespace_of(pid: u32) -> io::Result<NetNsId> {
    fs::metadata(format!("/proc/{pid}/ns/net")).map(|m| NetNsId { dev: m.dev(), inode: m.ino() })
}

/// Every living process in one of the network namespaces.
pub fn in_namespaces(namespaces: &BTreeSet<NetNsId>) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry.ok().and_then(|e| e.file_name().to_str()?.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end at any moment while it is looked at.
        let Ok(namespace) = namespace_of(pid) else { continue };
        if !namespaces.contains(&namespace) || start_time(pid).is_none() {
            continue;
        }
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        found.push(Found { pid, program: program.trim_end().to_owned(), namespace });
    }
    found.sort_by_key(|f| f.pid);
    Ok(found)
}

/// Signals one process; `Ok(false)` when it is gone. `start` must be what [`start_time`] said when it was started,
/// so that a later process with the same pid is safe.
pub fn tell(pid: u32, start: u64, what: Tell) -> io::Result<bool> {
    if start_time(pid) != Some(start) {
        return Ok(false);
    }
    let signal = match what {
        Tell::Terminate => Signal::SIGTERM,
        Tell::Kill => Signal::SIGKILL,
        Tell::Stop => Signal::SIGSTOP,
        Tell::Continue => Signal::SIGCONT,
    };
    let Ok(raw) = i32::try_from(pid) else { return Ok(false) };
    match kill(Pid::from_raw(raw), signal) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Resident set of a process in KiB.
pub fn rss_kib(pid: u32) -> Option<u64> {
    status_kib(pid, "VmRSS:")
}

/// What of it is no page of a file, in KiB: the process's own.
pub fn own_kib(pid: u32) -> Option<u64> {
    status_kib(pid, "RssAnon:")
}

fn status_kib(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(field))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 1 1";
        assert_eq!(parse_stat(stat), Some(('S', 777)));
        assert_eq!(parse_stat("garbage"), None);
    }

    #[test]
    fn a_child_is_found_by_its_namespace_told_and_gone() {
        let mut child = spawn_session(Command::new("sleep").arg("60")).unwrap();
        let pid = child.id();
        let start = start_time(pid).unwrap();
        let ours = namespace_of(std::process::id()).unwrap();
        let all = in_namespaces(&BTreeSet::from([ours])).unwrap();
        assert!(all.iter().any(|f| f.pid == pid));
        assert!(!tell(pid, start + 1, Tell::Kill).unwrap(), "another start time is another process");
        assert!(tell(pid, start, Tell::Kill).unwrap());
        child.wait().unwrap();
        assert_eq!(start_time(pid), None);
    }
}
