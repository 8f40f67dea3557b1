//! Child processes of a test: ended when the test ends, also by a panic; and looking for those that should be gone.

use std::{
    fs,
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use brindle_kernel::netns::NetNs;

/// A running child, killed on drop.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts a command.
    pub fn start(command: &mut Command) -> Self {
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        Self { child }
    }

    /// Starts a command in a namespace.
    pub fn start_in(ns: &NetNs, command: &mut Command) -> Self {
        ns.run(|| Self::start(command)).expect("the namespace is alive")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// SIGKILL, and waits.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the end by itself; panics after `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "process {} did not end within {limit:?}", self.pid());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Processes whose command line or environment names `word`, other than this one: pid and command line.
pub fn naming(word: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    let own = std::process::id();
    for entry in fs::read_dir("/proc").expect("/proc can be listed").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if pid != own && line.contains(word) {
            found.push((pid, line));
        }
    }
    found
}
