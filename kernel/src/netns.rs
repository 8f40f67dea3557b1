//! Network namespaces: open, create (a bind mount under /run/netns, as `ip netns add` makes), delete, run code inside.
//!
//! A thread that enters a namespace never leaves it again here: code runs on a thread of its own, which ends. That
//! way no error path can strand a pooled thread in the wrong namespace.

use std::{
    fmt, fs,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

/// Where named namespaces live.
pub const DIR: &str = "/run/netns";

/// A failed operation on a namespace.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NetNsError {
    #[error("{what}: {}", .source)]
    Io { what: String, source: Arc<std::io::Error> },
    #[error("{what}: {} ({:?})", .errno.desc(), .errno)]
    System { what: String, errno: Errno },
    #[error("{0:?} is no name for a network namespace: 1 to 255 characters without `/`")]
    Name(String),
    #[error("code running in network namespace {0} panicked")]
    Panicked(String),
}

impl NetNsError {
    /// Positive errno, 0 if there is none behind this.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io { source, .. } => source.raw_os_error().unwrap_or(0),
            Self::System { errno, .. } => *errno as i32,
            Self::Name(_) | Self::Panicked(_) => 0,
        }
    }

    /// The namespace does not exist (any more).
    pub fn is_not_found(&self) -> bool {
        self.errno() == Errno::ENOENT as i32
    }

    /// A namespace of that name exists already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Errno::EEXIST as i32
    }
}

fn io(what: String) -> impl FnOnce(std::io::Error) -> NetNsError {
    |e| NetNsError::Io { what, source: Arc::new(e) }
}

fn system(what: String) -> impl FnOnce(Errno) -> NetNsError {
    |errno| NetNsError::System { what, errno }
}

/// Identity of a namespace: two descriptors with equal ids are the same namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetNsId {
    pub dev: u64,
    pub inode: u64,
}

/// An open network namespace. It lives as long as this (or a process, a mount, a socket in it) does.
#[derive(Debug)]
pub struct NetNs {
    file: fs::File,
    id: NetNsId,
    path: PathBuf,
}

impl NetNs {
    /// Opens `/run/netns/NAME`, `/proc/PID/ns/net`, …; refuses what is no namespace.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetNsError> {
        let path = path.as_ref();
        let what = || format!("open network namespace {}", path.display());
        let file = fs::File::open(path).map_err(io(what()))?;
        let meta = file.metadata().map_err(io(what()))?;
        // A name whose mount is gone is an ordinary empty file; setns would say EINVAL much later.
        let nsfs = nix::sys::statfs::fstatfs(&file).map_err(system(what()))?;
        if nsfs.filesystem_type() != nix::sys::statfs::NSFS_MAGIC {
            return Err(NetNsError::System {
                what: format!("{}: not a namespace (its mount is gone?)", what()),
                errno: Errno::ENOENT,
            });
        }
        Ok(Self { id: NetNsId { dev: meta.dev(), inode: meta.ino() }, file, path: path.to_owned() })
    }

    /// Opens a named namespace.
    pub fn named(name: &str) -> Result<Self, NetNsError> {
        Self::open(path_of(name)?)
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, NetNsError> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Creates a named namespace (lo is down in it). EEXIST if the name is taken.
    pub fn create(name: &str) -> Result<Self, NetNsError> {
        let path = path_of(name)?;
        let what = || format!("create network namespace {name}");
        prepare_dir()?;
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
            .map_err(io(what()))?;
        let target = path.clone();
        let made = on_thread(name, move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        match made {
            Ok(Ok(())) => Self::open(&path),
            Ok(Err(errno)) => {
                let _ = fs::remove_file(&path);
                Err(NetNsError::System { what: what(), errno })
            }
            Err(e) => {
                let _ = fs::remove_file(&path);
                Err(e)
            }
        }
    }

    /// Removes a name. The namespace itself goes when its last user does. ENOENT if there is no such name.
    pub fn delete(name: &str) -> Result<(), NetNsError> {
        let path = path_of(name)?;
        let what = || format!("delete network namespace {name}");
        match umount2(&path, MntFlags::MNT_DETACH) {
            // Not mounted: a left-over file.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(e) => return Err(NetNsError::System { what: what(), errno: e }),
        }
        fs::remove_file(&path).map_err(io(what()))
    }

    /// Names of all named namespaces, sorted.
    pub fn list() -> Result<Vec<String>, NetNsError> {
        let mut names = Vec::new();
        match fs::read_dir(DIR) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(io(format!("list {DIR}"))(e)),
            Ok(dir) => {
                for entry in dir {
                    let entry = entry.map_err(io(format!("list {DIR}")))?;
                    names.extend(entry.file_name().into_string().ok());
                }
            }
        }
        names.sort();
        Ok(names)
    }

    /// Device and inode: equal for the same namespace however it was opened.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `f` inside, on a thread of its own, and waits for it. Child processes started by `f` live inside too.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
        on_thread(&self.to_string(), || {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(system(format!("enter network namespace {self}")))?;
            Ok(f())
        })?
    }

    /// Puts the calling thread inside, for good. For threads that live there (see [`Self::run`] for visits).
    pub fn enter(&self) -> Result<(), NetNsError> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(system(format!("enter network namespace {self}")))
    }
}

impl PartialEq for NetNs {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for NetNs {}

impl AsRawFd for NetNs {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl fmt::Display for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.strip_prefix(DIR) {
            Ok(name) => write!(f, "{}", name.display()),
            Err(_) => write!(f, "{}", self.path.display()),
        }
    }
}

fn path_of(name: &str) -> Result<PathBuf, NetNsError> {
    if name.is_empty() || name.len() > 255 || name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err(NetNsError::Name(name.to_owned()));
    }
    Ok(Path::new(DIR).join(name))
}

/// /run/netns must be a shared mount of its own, so that names added in one mount namespace show in the others and
/// can be removed again (iproute2 does the same).
fn prepare_dir() -> Result<(), NetNsError> {
    let what = || format!("prepare {DIR}");
    fs::create_dir_all(DIR).map_err(io(what()))?;
    let shared =
        || mount(None::<&str>, DIR, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match shared() {
        Ok(()) => Ok(()),
        Err(Errno::EINVAL) => {
            mount(Some(DIR), DIR, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
                .map_err(system(what()))?;
            shared().map_err(system(what()))
        }
        Err(e) => Err(NetNsError::System { what: what(), errno: e }),
    }
}

fn on_thread<T: Send>(name: &str, f: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
    std::thread::scope(|s| {
        let handle = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(s, f)
            .map_err(io(format!("start a thread for network namespace {name}")))?;
        handle.join().map_err(|_| NetNsError::Panicked(name.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Guard(String);

    impl Drop for Guard {
        fn drop(&mut self) {
            let _ = NetNs::delete(&self.0);
        }
    }

    fn unique(tag: &str) -> Guard {
        Guard(format!("bt-{}-{tag}", std::process::id()))
    }

    #[test]
    fn a_created_namespace_is_another_one_and_goes_when_deleted() {
        let name = unique("ns1");
        let ns = NetNs::create(&name.0).unwrap();
        let here = NetNs::current().unwrap();
        assert_ne!(ns, here);
        let inside = ns.run(|| NetNs::current().unwrap().id()).unwrap();
        assert_eq!(inside, ns.id());
        assert_eq!(NetNs::current().unwrap(), here, "the calling thread stays where it was");
        assert!(NetNs::list().unwrap().contains(&name.0));
        assert!(NetNs::create(&name.0).unwrap_err().is_exists());
        NetNs::delete(&name.0).unwrap();
        assert!(NetNs::named(&name.0).unwrap_err().is_not_found());
        assert!(NetNs::delete(&name.0).unwrap_err().is_not_found());
    }

    #[test]
    fn iproute2_sees_and_deletes_what_we_create() {
        let name = unique("ns2");
        NetNs::create(&name.0).unwrap();
        let out = std::process::Command::new("ip").args(["netns", "del", &name.0]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(NetNs::named(&name.0).unwrap_err().is_not_found());
    }

    #[test]
    fn a_name_without_its_mount_is_not_found_and_can_be_deleted() {
        let name = unique("ns3");
        fs::create_dir_all(DIR).unwrap();
        fs::write(Path::new(DIR).join(&name.0), b"").unwrap();
        assert!(NetNs::named(&name.0).unwrap_err().is_not_found());
        NetNs::delete(&name.0).unwrap();
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for bad in ["", "a/b", "..", ".", &"x".repeat(256)] {
            assert!(matches!(NetNs::create(bad), Err(NetNsError::Name(_))), "{bad}");
        }
    }

    #[test]
    fn a_panic_inside_is_an_error_outside() {
        let ns = NetNs::current().unwrap();
        assert!(matches!(ns.run(|| panic!("boom")), Err(NetNsError::Panicked(_))));
    }
}
