//! The SQLite store between processes: kill -9, other users, full disks, no inotify, idle cost.
//!
//! Each test runs this program again as a child that plays one role (see [`child`]); the parent talks to it over its
//! standard output and ends it by its id.

mod child;
mod crash;
mod faults;
mod feed;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use brindle_config_core::{Key, Kind};
use serde_json::{Value, json};

/// A folder that is removed at the end, readable for every user.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("brindle-store-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the temporary folder is writable");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A copy of this program that any user may run.
    fn program(&self) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let to = self.path("program");
        std::fs::copy(std::env::current_exe().expect("we are running"), &to).expect("copies");
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        to
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running child; killed when dropped.
struct Role {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Role {
    fn start(role: &str, db: &Path) -> Self {
        Self::spawn(&mut Command::new(std::env::current_exe().expect("we are running")), role, db)
    }

    fn spawn(command: &mut Command, role: &str, db: &Path) -> Self {
        let mut child = command
            .args(["--exact", "child::play_a_role", "--nocapture", "--test-threads=1"])
            .env(child::ROLE, role)
            .env(child::DB, db)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the child starts");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self { child, lines }
    }

    /// The next line the role says (the test harness's own lines are passed over).
    fn says(&mut self) -> Option<String> {
        self.lines.by_ref().map_while(Result::ok).find_map(|l| l.strip_prefix(child::MARK).map(str::to_owned))
    }

    /// SIGKILL.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.kill();
    }
}

fn key(name: &str) -> Key {
    Key::new(Kind::BgpPeer, None, name)
}

fn value(n: u64) -> Value {
    json!({"kind": "BGPPeer", "metadata": {"name": "x"}, "spec": {"asNumber": n}, "pad": "x".repeat(500)})
}

fn number(v: &Value) -> u64 {
    v["spec"]["asNumber"].as_u64().expect("a number was stored")
}
