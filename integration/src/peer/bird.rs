//! BIRD 2.

use std::{fs, path::PathBuf};

use super::segment::{Daemon, Segment, eventually, installed};

/// A running BIRD.
#[derive(Debug)]
pub struct Bird<'a> {
    segment: &'a Segment,
    host: u8,
    pub daemon: Daemon,
}

impl<'a> Bird<'a> {
    /// Starts it on a host; router id, log and the device protocol are added to the configuration.
    pub fn start(segment: &'a Segment, host: u8, config: &str) -> Self {
        Self::start_with(segment, host, config, &[])
    }

    /// As [`Bird::start`], with more arguments, e.g. `-R` (recover from a restart).
    pub fn start_with(segment: &'a Segment, host: u8, config: &str, more: &[&str]) -> Self {
        let file = segment.dir(host).join("bird.conf");
        let text = format!(
            "log stderr all;\nrouter id {};\nprotocol device {{ }}\nprotocol direct {{ ipv4; ipv6; }}\n{config}",
            Segment::v4(host)
        );
        fs::write(&file, text).expect("the configuration can be written");
        let program = installed(&["/usr/sbin/bird", "/usr/bin/bird"], "bird2");
        let dir = segment.dir(host);
        let path = |name: &str| dir.join(name).display().to_string();
        let (conf, ctl, pid) = (path("bird.conf"), path("bird.ctl"), path("bird.pid"));
        let args: Vec<&str> =
            ["-f", "-c", &conf, "-s", &ctl, "-P", &pid].into_iter().chain(more.iter().copied()).collect();
        let daemon = segment.start(host, "bird", &program, &args);
        let mut this = Self { segment, host, daemon };
        eventually("BIRD answers", || {
            this.daemon.assert_alive();
            this.birdc("show status")
        });
        this
    }

    /// A birdc command.
    pub fn birdc(&self, command: &str) -> Result<String, String> {
        let program: PathBuf = installed(&["/usr/sbin/birdc", "/usr/bin/birdc"], "bird2");
        let socket = self.segment.dir(self.host).join("bird.ctl").display().to_string();
        let words = ["-s", &socket].into_iter().chain(command.split(' ')).collect::<Vec<_>>();
        self.segment.ask(self.host, &program, &words)
    }

    /// Waits for an established protocol.
    #[track_caller]
    pub fn established(&self, protocol: &str) {
        eventually(&format!("BIRD's protocol {protocol}"), || {
            let text = self.birdc(&format!("show protocols {protocol}"))?;
            if text.contains("Established") { Ok(()) } else { Err(text) }
        });
    }

    /// Waits until the prefix is in a table (or is not), and returns what BIRD says about it.
    #[track_caller]
    pub fn route(&self, prefix: &str, there: bool) -> String {
        eventually(&format!("{prefix} in BIRD: {there}"), || {
            // birdc fails for a network it does not know; its words are in either case the answer.
            let text = self.birdc(&format!("show route {prefix} all")).unwrap_or_else(|words| words);
            if text.contains(prefix) == there { Ok(text) } else { Err(text) }
        })
    }
}
