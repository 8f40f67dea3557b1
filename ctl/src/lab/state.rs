//! What a lab leaves on disk: `/run/brindle-lab/<LAB>/lab.json` (the plan first, before anything is made, then what
//! became of it), the store, and a directory per node. Written by replacing the file, so that a killed writer leaves
//! the old one or the new one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use brindle_kernel::files;
use serde::{Deserialize, Serialize};

use super::plan::{LabPlan, check_lab_name};

/// Where all labs of a machine live.
pub(crate) const ROOT: &str = "/run/brindle-lab";
/// How long a command waits for another one that is changing the same lab.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// How far a lab has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Planned; anything of the plan may exist.
    Building,
    /// `lab up` came to its end.
    Up,
}

/// A process of the lab. The start time tells it from a later process with the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Node, or `router`.
    pub(crate) place: String,
    /// Name of the program.
    pub(crate) program: String,
    pub(crate) pid: u32,
    /// Clock ticks after boot (`/proc/PID/stat`, field 22).
    pub(crate) start_time: u64,
}

/// What CNI answered for a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodState {
    /// One of each family the lab has, IPv4 first.
    pub(crate) addresses: Vec<IpAddr>,
    /// Milliseconds that ADD took.
    pub(crate) add_ms: u64,
}

/// Something broken on purpose, until `heal`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", content = "target", rename_all = "lowercase")]
pub(crate) enum Break {
    Kill(String),
    Link(String),
    Partition(String),
}

/// The file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LabState {
    /// Of this format.
    pub(crate) version: u32,
    pub(crate) phase: Phase,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) plan: LabPlan,
    #[serde(default)]
    pub(crate) processes: Vec<Process>,
    #[serde(default)]
    pub(crate) pods: BTreeMap<String, PodState>,
    #[serde(default)]
    pub(crate) breaks: Vec<Break>,
}

impl LabState {
    /// A lab that is about to be built.
    pub(crate) fn new(plan: LabPlan, created: u64) -> Self {
        Self {
            version: 1,
            phase: Phase::Building,
            created,
            plan,
            processes: Vec::new(),
            pods: BTreeMap::new(),
            breaks: Vec::new(),
        }
    }
}

/// The directory of one lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LabDir {
    path: PathBuf,
}

impl LabDir {
    /// The directory of lab `name`, which need not exist.
    pub(crate) fn of(name: &str) -> Result<Self> {
        check_lab_name(name)?;
        Ok(Self { path: Path::new(ROOT).join(name) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn name(&self) -> &str {
        self.path.file_name().and_then(|n| n.to_str()).unwrap_or_default()
    }

    pub(crate) fn exists(&self) -> bool {
        self.path.exists()
    }

    pub(crate) fn state_file(&self) -> PathBuf {
        self.path.join("lab.json")
    }

    /// The datastore that all nodes share.
    pub(crate) fn store(&self) -> PathBuf {
        self.path.join("brindle.db")
    }

    /// As `--datastore` takes it.
    pub(crate) fn store_url(&self) -> String {
        format!("sqlite:{}", self.store().display())
    }

    /// State directory of a node (or of `router`).
    pub(crate) fn node(&self, node: &str) -> PathBuf {
        self.path.join("nodes").join(node)
    }

    pub(crate) fn admin_socket(&self, node: &str) -> PathBuf {
        self.node(node).join("admin.sock")
    }

    /// The token with which its agents answer each other's machines.
    pub(crate) fn admin_token(&self) -> PathBuf {
        self.path.join("admin-token")
    }

    pub(crate) fn cni_socket(&self, node: &str) -> PathBuf {
        self.node(node).join("cni.sock")
    }

    /// What the processes of a node wrote to stdout and stderr.
    pub(crate) fn log(&self, node: &str) -> PathBuf {
        self.node(node).join("agent.log")
    }

    /// Reads the state. `None`: there is no such lab; an unreadable file is an error that names it.
    pub(crate) fn load(&self) -> Result<Option<LabState>> {
        let file = self.state_file();
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
        };
        let state: LabState = serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is not a lab's state; `brindlectl lab down --name {}` removes it",
                file.display(),
                self.name()
            )
        })?;
        if state.version != 1 {
            bail!("{} has format {}; this brindlectl reads format 1", file.display(), state.version);
        }
        Ok(Some(state))
    }

    /// Reads the state of a lab that must exist.
    pub(crate) fn load_existing(&self) -> Result<LabState> {
        match self.load()? {
            Some(state) => Ok(state),
            None => bail!(
                "there is no lab {:?}; build it with `brindlectl lab up{}`",
                self.name(),
                if self.name() == "lab" { String::new() } else { format!(" --name {}", self.name()) }
            ),
        }
    }

    /// Writes the state: a new file, synced, renamed over the old one.
    pub(crate) fn save(&self, state: &LabState) -> Result<()> {
        let file = self.state_file();
        let mut text = serde_json::to_vec_pretty(state)?;
        text.push(b'\n');
        files::replace(&file, &text, 0o644, true).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Creates the directory. Fails when it is there.
    pub(crate) fn create(&self) -> Result<()> {
        // The `down` of another lab, the last one, may remove the root between the two.
        const ATTEMPTS: usize = 20;
        let mut made = Ok(());
        for _ in 0..ATTEMPTS {
            fs::create_dir_all(ROOT).with_context(|| format!("cannot make {ROOT}"))?;
            made = fs::create_dir(&self.path);
            if !matches!(&made, Err(e) if e.kind() == io::ErrorKind::NotFound) {
                break;
            }
        }
        made.with_context(|| format!("cannot make {}", self.path.display()))
    }

    /// Locks the lab against other commands that change it; the lock ends with the returned file, or the process.
    /// `None` when the directory is gone.
    pub(crate) fn lock(&self) -> Result<Option<File>> {
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            let dir = match File::open(&self.path) {
                Ok(dir) => dir,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e).with_context(|| format!("cannot open {}", self.path.display())),
            };
            match dir.try_lock() {
                Ok(()) if self.same_as(&dir) => return Ok(Some(dir)),
                // Removed, or removed and made again, between open and lock.
                Ok(()) => continue,
                Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(fs::TryLockError::WouldBlock) => {
                    bail!("another brindlectl is changing lab {:?}; wait for it, or end it", self.name())
                }
                Err(fs::TryLockError::Error(e)) => {
                    return Err(e).with_context(|| format!("cannot lock {}", self.path.display()));
                }
            }
        }
    }

    fn same_as(&self, dir: &File) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        match (fs::metadata(&self.path), dir.metadata()) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        }
    }
}

/// Names of all labs with a directory, sorted.
pub(crate) fn all() -> Result<Vec<LabDir>> {
    let entries = match fs::read_dir(ROOT) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("cannot read {ROOT}")),
    };
    let mut labs: Vec<_> = entries.filter_map(|e| LabDir::of(e.ok()?.file_name().to_str()?).ok()).collect();
    labs.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(labs)
}
