//! Namespaces joined by a bridge, and processes inside them.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::wait::until;

/// How long anything in these tests may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `what` yields a value; panics with its last excuse after [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, attempt: impl FnMut() -> Result<T, String>) -> T {
    until(what, PATIENCE, attempt)
}

/// One L2 segment with hosts 1..=n: addresses 10.99.0.N/24 and fd99::N/64 on `eth0` of each.
#[derive(Debug)]
pub struct Segment {
    prefix: String,
    hosts: u8,
    dir: PathBuf,
}

impl Segment {
    /// Builds it. Needs root.
    pub fn new(hosts: u8) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("bt-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&prefix);
        fs::create_dir_all(&dir).expect("a directory for this test's files");
        let segment = Self { prefix, hosts, dir };
        let hub = segment.hub();
        ip(&["netns", "add", &hub]);
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &hub, "link", "set", "br0", "up"]);
        for host in 1..=hosts {
            let ns = segment.netns(host);
            ip(&["netns", "add", &ns]);
            let port = format!("p{host}");
            ip(&["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &ns]);
            ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"]);
            ip(&["-n", &ns, "link", "set", "lo", "up"]);
            ip(&["-n", &ns, "address", "add", &format!("10.99.0.{host}/24"), "dev", "eth0"]);
            ip(&["-n", &ns, "address", "add", &format!("fd99::{host}/64"), "dev", "eth0", "nodad"]);
            ip(&["-n", &ns, "link", "set", "eth0", "up"]);
        }
        segment
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    /// Name of a host's namespace.
    pub fn netns(&self, host: u8) -> String {
        format!("{}-h{host}", self.prefix)
    }

    /// IPv4 address of a host.
    pub fn v4(host: u8) -> IpAddr {
        IpAddr::from([10, 99, 0, host])
    }

    /// IPv6 address of a host.
    pub fn v6(host: u8) -> IpAddr {
        IpAddr::from([0xfd99, 0, 0, 0, 0, 0, 0, u16::from(host)])
    }

    /// A host's directory for configuration, sockets and logs.
    pub fn dir(&self, host: u8) -> PathBuf {
        let dir = self.dir.join(format!("h{host}"));
        fs::create_dir_all(&dir).expect("a directory for this host's files");
        dir
    }

    /// Cuts a host off, or joins it again.
    pub fn connect(&self, host: u8, up: bool) {
        let state = if up { "up" } else { "down" };
        ip(&["-n", &self.hub(), "link", "set", &format!("p{host}"), state]);
    }

    /// Starts a program in a host's namespace; its output goes to `LABEL.log` in the host's directory.
    pub fn start(&self, host: u8, label: &str, program: &Path, args: &[&str]) -> Daemon {
        let log = self.dir(host).join(format!("{label}.log"));
        let out = fs::File::options().create(true).append(true).open(&log).expect("a log file");
        let err = out.try_clone().expect("a second handle of the log file");
        // `ip netns exec` becomes the program, so the child's id is the program's.
        let child = Command::new("ip")
            .args(["netns", "exec", &self.netns(host)])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .expect("ip(8) can be run");
        Daemon { label: format!("{label} on host {host}"), child, log }
    }

    /// Runs a client in a host's namespace and returns what it printed.
    pub fn ask(&self, host: u8, program: &Path, args: &[&str]) -> Result<String, String> {
        let out = Command::new("ip")
            .args(["netns", "exec", &self.netns(host)])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| e.to_string())?;
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr) + &text(&out.stdout)) }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        for name in (1..=self.hosts).map(|h| self.netns(h)).chain([self.hub()]) {
            // Best effort: what is not there need not be removed.
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A running process; killed when dropped. If the test is failing, the end of its log is printed.
#[derive(Debug)]
pub struct Daemon {
    label: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name (`TERM`, `HUP`, `KILL`).
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let done = Command::new("kill").args(["-s", name, &pid]).status().expect("kill(1) can be run");
        assert!(done.success(), "{}: cannot send SIG{name}", self.label);
    }

    /// Waits for the end of the process and returns its exit code, `None` if it was killed by a signal.
    pub fn wait(&mut self) -> Option<i32> {
        eventually(&format!("end of {}", self.label), || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status.code()),
            Ok(None) => Err("still running".into()),
            Err(e) => Err(e.to_string()),
        })
    }

    /// Kills it and waits.
    pub fn kill(&mut self) {
        // Fails if it is dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Everything it printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Panics if the process has ended.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("{} ended: {status}\n{}", self.label, self.log());
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let skip = log.lines().count().saturating_sub(40);
            let tail: Vec<&str> = log.lines().skip(skip).collect();
            eprintln!("--- {} said last:\n{}\n---", self.label, tail.join("\n"));
        }
    }
}

/// The first of `candidates` that exists.
#[track_caller]
pub(super) fn installed(candidates: &[&str], package: &str) -> PathBuf {
    candidates
        .iter()
        .map(PathBuf::from)
        .find(|p| p.exists())
        .unwrap_or_else(|| panic!("{} is not installed: apt-get install {package}", candidates.join(" or ")))
}

/// Runs ip(8).
#[track_caller]
fn ip(args: &[&str]) {
    let out = Command::new("ip").args(args).output().expect("ip(8) is installed: apt-get install iproute2");
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "ip {}: {error} (these tests need root)", args.join(" "));
}
