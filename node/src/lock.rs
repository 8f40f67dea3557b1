//! One agent per node: an exclusive lock on STATE/agent.lock, held as long as the process lives (the kernel drops it
//! with the process, so a killed agent never blocks the next).

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::{Context, Result, bail};

/// The held lock.
#[derive(Debug)]
pub(crate) struct AgentLock {
    _file: File,
}

/// Takes the lock, or says who holds it.
pub(crate) fn take(state_dir: &Path) -> Result<AgentLock> {
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
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())?;
    Ok(AgentLock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_refused_with_the_pid_of_the_first() {
        let dir = std::env::temp_dir().join(format!("brindle-lock-{}", std::process::id()));
        let first = take(&dir).unwrap();
        let e = take(&dir).unwrap_err().to_string();
        assert!(e.contains(&format!("pid {}", std::process::id())), "{e}");
        drop(first);
        take(&dir).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
