//! What happened to the addresses of this node, for `brindlectl ipam why`: one JSON line per event, appended; when the
//! file has its full size it becomes the old one, so two files bound it. Losing it costs an explanation, nothing else:
//! no call waits for the disk, and none fails by it.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde_json::json;

use super::now;

/// Name below the state folder; the older half ends in `.old`.
pub(super) const FILE: &str = "ipam-history.jsonl";
/// Octets of one file: some five thousand events.
const FULL: u64 = 1 << 20;

/// What happened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    Given,
    /// Handed on from the pod's former sandbox.
    Kept,
    Returned,
    Collected,
}

impl Event {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Kept => "kept",
            Self::Returned => "returned",
            Self::Collected => "collected",
        }
    }
}

/// The file.
pub(crate) struct History {
    path: PathBuf,
    open: Mutex<Option<(File, u64)>>,
}

impl History {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(FILE), open: Mutex::new(None) }
    }

    /// Appends one line per address.
    pub(crate) fn note(&self, event: Event, ips: &[IpAddr], handle: &str, whose: &str, node: &str) {
        if ips.is_empty() {
            return;
        }
        let time = now().rfc3339();
        let lines: String = ips
            .iter()
            .map(|ip| {
                let line = json!({"time": time, "event": event.as_str(), "ip": ip, "handle": handle,
                    "allocatedTo": whose, "node": node});
                format!("{line}\n")
            })
            .collect();
        // Poisoned only if writing panicked; the file is opened anew then.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = append(&mut open, &self.path, lines.as_bytes()) {
            *open = None;
            tracing::debug!("{}: {e}; the history of addresses has a gap", self.path.display());
        }
    }
}

fn append(open: &mut Option<(File, u64)>, path: &Path, lines: &[u8]) -> io::Result<()> {
    if open.as_ref().is_some_and(|(_, size)| *size >= FULL) {
        *open = None;
        fs::rename(path, path.with_extension("jsonl.old"))?;
    }
    let (file, size) = match open {
        Some(open) => open,
        None => {
            let file = File::options().create(true).append(true).mode(0o600).open(path)?;
            let size = file.metadata()?.len();
            open.insert((file, size))
        }
    };
    file.write_all(lines)?;
    *size = size.saturating_add(lines.len() as u64);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_bound_it() {
        let dir = std::env::temp_dir().join(format!("bt-{}-history", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let history = History::new(&dir);
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let handle = "h".repeat(60_000);
        for _ in 0..60 {
            history.note(Event::Given, &[ip], &handle, "default/web", "n1");
        }
        let size = |name: &str| fs::metadata(dir.join(name)).unwrap().len();
        assert!(size("ipam-history.jsonl.old") >= FULL);
        assert!(size("ipam-history.jsonl.old") < FULL + 70_000 && size(FILE) < FULL + 70_000);
        let text = fs::read_to_string(dir.join(FILE)).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!((&line["event"], &line["ip"]), (&json!("given"), &json!("10.0.0.1")));
        fs::remove_dir_all(&dir).unwrap();
    }
}
