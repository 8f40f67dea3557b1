//! One agent per node: an exclusive lock on STATE/agent.lock, and a name in the abstract socket space, which belongs to
//! the network namespace, so that two agents with different state folders cannot fight over one kernel's routes. Both
//! are held as long as the process lives (the kernel drops them with it, so a killed agent never blocks the next).

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The held lock.
#[derive(Debug)]
pub(crate) struct AgentLock {
    _file: File,
    _name: Option<UnixListener>,
}

/// Bound once per network namespace.
const NAME: &str = "brindle-node";

/// Marks the namespace. Whoever holds the name must be root to count: others may bind it too, and must not be able to
/// keep the agent from starting. Needs a tokio context.
fn take_name(name: &str) -> Result<Option<UnixListener>> {
    let address = SocketAddr::from_abstract_name(name).context("cannot form a socket name")?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(Some(listener)),
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            let holder = UnixStream::connect_addr(&address).and_then(|s| {
                s.set_nonblocking(true)?;
                tokio::net::UnixStream::from_std(s)?.peer_cred()
            });
            match holder {
                Ok(h) if h.uid() == 0 => bail!(
                    "another agent (pid {}) already runs in this network namespace; stop it first",
                    h.pid().unwrap_or_default()
                ),
                Ok(h) => {
                    tracing::warn!(
                        uid = h.uid(),
                        pid = h.pid(),
                        "@{name} is held by a process that is not root; going on"
                    );
                    Ok(None)
                }
                Err(e) => Err(e).context("another agent is starting or ending in this network namespace"),
            }
        }
        Err(e) => Err(e).context("cannot mark this network namespace as taken"),
    }
}

/// How long the remains of an agent that was killed may keep the lock: a child it was just starting holds what the
/// agent held until it runs a program of its own.
const REMAINS: Duration = Duration::from_secs(3);

/// Takes the lock, or says who holds it. Waits for what is left of a dead agent, never for a living one.
pub(crate) fn take(state_dir: &Path) -> Result<AgentLock> {
    let deadline = Instant::now() + REMAINS;
    loop {
        match take_as(state_dir, NAME) {
            Err(_) if !holder_lives(state_dir) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// Whether the process that wrote its id into the lock file runs; a zombie does not. True when nobody can tell.
fn holder_lives(state_dir: &Path) -> bool {
    let text = std::fs::read_to_string(state_dir.join("agent.lock")).unwrap_or_default();
    let Ok(pid) = text.trim().parse::<u32>() else { return true };
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X'])),
        Err(e) => e.kind() != ErrorKind::NotFound,
    }
}

fn take_as(state_dir: &Path, name: &str) -> Result<AgentLock> {
    std::fs::create_dir_all(state_dir)
        .with_context(|| format!("cannot make the state folder {}", state_dir.display()))?;
    let path = state_dir.join("agent.lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            bail!(
                "another agent (pid {}) already runs with {}; stop it first, or give this one its own --state-dir \
                 and network namespace",
                holder.trim(),
                state_dir.display()
            );
        }
        Err(TryLockError::Error(e)) => {
            return Err(e).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    let name = take_name(name)?;
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())?;
    Ok(AgentLock { _file: file, _name: name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_told_from_the_living() {
        let dir = std::env::temp_dir().join(format!("brindle-lives-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert!(holder_lives(&dir), "nobody can tell");
        std::fs::write(dir.join("agent.lock"), format!("{}\n", std::process::id())).unwrap();
        assert!(holder_lives(&dir));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        std::fs::write(dir.join("agent.lock"), format!("{}\n", child.id())).unwrap();
        assert!(!holder_lives(&dir));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn a_second_agent_is_refused_with_the_pid_of_the_first() {
        let name = format!("brindle-lock-{}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        let other = std::env::temp_dir().join(format!("{name}-other"));
        let first = take_as(&dir, &name).unwrap();
        let e = take_as(&dir, &name).unwrap_err().to_string();
        assert!(e.contains(&format!("pid {}", std::process::id())), "{e}");
        let e = take_as(&other, &name).unwrap_err().to_string();
        assert!(e.contains("network namespace"), "{e}");
        drop(first);
        take_as(&other, &name).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        std::fs::remove_dir_all(&other).unwrap();
    }
}
