//! The program `brindle-bgpd` as a child of a test.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use tokio::time::{Instant, sleep};

use super::{PATIENCE, PORT};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_brindle-bgpd");

/// A directory of this test's own, removed with it.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bt-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // Left behind only if somebody else holds it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running daemon, killed when dropped.
pub(crate) struct Daemon(pub(crate) Child);

impl Daemon {
    pub(crate) fn term(mut self) -> Option<i32> {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn fails(args: &[&str], code: i32, words: &str) {
    let out = run(args);
    let error = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {error}");
    assert!(error.contains(words), "{args:?}: {words:?} is not in: {error}");
}

/// A configuration at an address, with peers and routes of our own choosing.
pub(crate) fn config(dir: &Dir, at: Ipv4Addr, peers: &[Ipv4Addr], announce: &[&str]) -> String {
    let peers: String = peers
        .iter()
        .map(|p| {
            format!(
                "  - {{address: {p}, port: {PORT}, asNumber: 64512, sourceAddress: {at}, connectRetry: 1, \
                 holdTime: 9, reflectorClient: true}}\n"
            )
        })
        .collect();
    let announce: String = announce.iter().map(|r| format!("  - prefix: {r}\n")).collect();
    let text = format!(
        "asNumber: 64512\nrouterID: {at}\nlisten: [\"{at}:{PORT}\"]\nadminSocket: {}\npeers:\n{peers}announce:\n{announce}",
        dir.path("sock")
    );
    dir.file("bgpd.yaml", &text)
}

pub(crate) async fn listening(at: Ipv4Addr) {
    let start = Instant::now();
    while tokio::net::TcpStream::connect(SocketAddr::new(at.into(), PORT)).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "brindle-bgpd does not listen on {at}");
        sleep(std::time::Duration::from_millis(20)).await;
    }
}
