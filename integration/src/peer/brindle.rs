//! `brindle-bgpd` with a YAML file.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
};

use brindle_config_core::status::{NodeStatus, PeerStatus, bgp::MetricsText};
use serde_json::Value;

use crate::bins::bin;

use super::segment::{Daemon, Segment, eventually};

/// A running `brindle-bgpd`.
#[derive(Debug)]
pub struct Brindle<'a> {
    segment: &'a Segment,
    host: u8,
    pub daemon: Daemon,
}

impl<'a> Brindle<'a> {
    /// Starts it on a host with this configuration, to which socket and log settings are added.
    pub fn start(segment: &'a Segment, host: u8, config: &str) -> Self {
        let daemon = Self::spawn(segment, host, config);
        let mut this = Self { segment, host, daemon };
        eventually("brindle-bgpd answers", || {
            this.daemon.assert_alive();
            this.status()
        });
        this
    }

    /// As [`Brindle::start`], with a defect put in (`BRINDLE_FAILPOINT`).
    pub fn start_at_fault(segment: &'a Segment, host: u8, config: &str, point: &str) -> Self {
        let file = Self::write(segment, host, config);
        let fault = format!("BRINDLE_FAILPOINT={point}");
        let program = bin("brindle-bgpd").display().to_string();
        let args: [&str; 6] = [&fault, &program, "--config", &file, "--log-level", "debug"];
        let daemon = segment.start(host, "brindle-bgpd", Path::new("env"), &args);
        let mut this = Self { segment, host, daemon };
        eventually("brindle-bgpd answers", || {
            this.daemon.assert_alive();
            this.status()
        });
        this
    }

    /// What Prometheus would be told, by the admin socket.
    pub fn metrics(&self) -> String {
        let socket = self.segment.dir(self.host).join("bgpd.sock");
        let said = UnixStream::connect(socket).and_then(|mut s| {
            s.write_all(b"{\"cmd\":\"bgp\",\"ask\":\"metrics\"}\n")?;
            let mut text = String::new();
            BufReader::new(s).read_line(&mut text)?;
            Ok(text)
        });
        let said = said.expect("the admin socket answers");
        let text: MetricsText = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
        text.text
    }

    /// Starts it as the BGP half of a node of this datastore.
    pub fn of_store(segment: &'a Segment, host: u8, url: &str, node: &str) -> Self {
        Self::of_store_with(segment, host, url, node, &[])
    }

    /// As [`Brindle::of_store`], with more arguments.
    pub fn of_store_with(segment: &'a Segment, host: u8, url: &str, node: &str, more: &[&str]) -> Self {
        let socket = segment.dir(host).join("bgpd.sock").display().to_string();
        let args = ["--datastore", url, "--node", node, "--admin-socket", &socket, "--log-level", "debug"];
        let args: Vec<&str> = args.into_iter().chain(more.iter().copied()).collect();
        let daemon = segment.start(host, "brindle-bgpd", &bin("brindle-bgpd"), &args);
        let mut this = Self { segment, host, daemon };
        eventually("brindle-bgpd answers", || {
            this.daemon.assert_alive();
            this.status()
        });
        this
    }

    fn spawn(segment: &Segment, host: u8, config: &str) -> Daemon {
        let file = Self::write(segment, host, config);
        segment.start(
            host,
            "brindle-bgpd",
            &bin("brindle-bgpd"),
            &["--config", &file, "--log-level", "debug"],
        )
    }

    fn write(segment: &Segment, host: u8, config: &str) -> String {
        let dir = segment.dir(host);
        let file = dir.join("bgpd.yaml");
        let text = format!("adminSocket: {}\n{config}", dir.join("bgpd.sock").display());
        fs::write(&file, text).expect("the configuration can be written");
        file.display().to_string()
    }

    /// Another configuration, by SIGHUP.
    pub fn reload(&self, config: &str) {
        Self::write(self.segment, self.host, config);
        self.daemon.signal("HUP");
    }

    /// Starts again after the process ended.
    pub fn restart(&mut self, config: &str) {
        self.daemon = Self::spawn(self.segment, self.host, config);
        eventually("brindle-bgpd answers", || self.status());
    }

    fn ask(&self, args: &[&str]) -> Result<String, String> {
        let socket = self.segment.dir(self.host).join("bgpd.sock").display().to_string();
        let program = bin("brindle-bgpd");
        let args: Vec<&str> = args.iter().copied().chain(["--admin-socket", &socket, "-o", "json"]).collect();
        self.segment.ask(self.host, &program, &args)
    }

    /// `brindle-bgpd status`.
    pub fn status(&self) -> Result<NodeStatus, String> {
        serde_json::from_str(&self.ask(&["status"])?).map_err(|e| e.to_string())
    }

    /// The peer with this address.
    pub fn peer(&self, address: impl ToString) -> Result<PeerStatus, String> {
        let address = address.to_string();
        let status = self.status()?;
        let found = status.bgp.peers.iter().find(|p| p.address.to_string() == address).cloned();
        found.ok_or_else(|| format!("no peer {address} in {status:?}"))
    }

    /// How many sessions with this address this process ever had, by its log.
    #[track_caller]
    pub fn sessions(&self, address: impl ToString) -> usize {
        let name = format!("peer={} ", self.peer(address).expect("it is configured").name);
        self.daemon.log().lines().filter(|l| l.contains(&name) && l.contains("new=Established")).count()
    }

    /// Waits for an established session.
    #[track_caller]
    pub fn established(&self, address: impl ToString) -> PeerStatus {
        let address = address.to_string();
        eventually(&format!("session of brindle-bgpd with {address}"), || {
            let p = self.peer(&address)?;
            if p.state == "Established" { Ok(p) } else { Err(format!("{p:?}")) }
        })
    }

    /// `brindle-bgpd rib [PREFIX]`; a prefix without a route has an empty list.
    pub fn rib(&self, prefix: Option<&str>) -> Result<Value, String> {
        let args: Vec<&str> = ["rib"].into_iter().chain(prefix).collect();
        match self.ask(&args) {
            Err(e) if e.contains("there is no such route") => Ok(Value::Array(Vec::new())),
            said => serde_json::from_str(&said?).map_err(|e| e.to_string()),
        }
    }

    /// Waits until the prefix is there (or gone).
    #[track_caller]
    pub fn route(&self, prefix: &str, there: bool) -> Value {
        eventually(&format!("{prefix} in the RIB of brindle-bgpd: {there}"), || {
            let rib = self.rib(Some(prefix))?;
            let found = rib.to_string().contains(prefix);
            if found == there { Ok(rib) } else { Err(rib.to_string()) }
        })
    }
}
