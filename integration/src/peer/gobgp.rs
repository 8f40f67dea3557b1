//! GoBGP.

use std::fs;

use super::segment::{Daemon, Segment, eventually, installed};

/// A running gobgpd.
#[derive(Debug)]
pub struct Gobgp<'a> {
    segment: &'a Segment,
    host: u8,
    pub daemon: Daemon,
}

impl<'a> Gobgp<'a> {
    /// Starts it on a host with this TOML file.
    pub fn start(segment: &'a Segment, host: u8, config: &str) -> Self {
        Self::start_with(segment, host, config, &[])
    }

    /// As [`Gobgp::start`], with more arguments, e.g. `-r` (it restarts gracefully).
    pub fn start_with(segment: &'a Segment, host: u8, config: &str, more: &[&str]) -> Self {
        let program = installed(&["/usr/bin/gobgpd", "/usr/sbin/gobgpd"], "gobgpd");
        let file = segment.dir(host).join("gobgpd.toml");
        fs::write(&file, config).expect("the configuration can be written");
        let file = file.display().to_string();
        let args: Vec<&str> = ["-f", &file, "--api-hosts", "127.0.0.1:50051", "--pprof-disable"]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        let daemon = segment.start(host, "gobgpd", &program, &args);
        let mut this = Self { segment, host, daemon };
        eventually("GoBGP answers", || {
            this.daemon.assert_alive();
            this.gobgp("neighbor")
        });
        this
    }

    /// A gobgp command.
    pub fn gobgp(&self, command: &str) -> Result<String, String> {
        let program = installed(&["/usr/bin/gobgp"], "gobgpd");
        self.segment.ask(self.host, &program, &command.split(' ').collect::<Vec<_>>())
    }

    /// Waits for an established session.
    #[track_caller]
    pub fn established(&self, neighbor: &str) {
        eventually(&format!("GoBGP's neighbor {neighbor}"), || {
            let text = self.gobgp(&format!("neighbor {neighbor}"))?;
            if text.contains("BGP_FSM_ESTABLISHED") || text.contains("BGP state = ESTABLISHED") {
                Ok(())
            } else {
                Err(text)
            }
        });
    }

    /// Waits until the prefix is in the global table (or is not), and returns what GoBGP says about it.
    #[track_caller]
    pub fn route(&self, prefix: &str, there: bool) -> String {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        eventually(&format!("{prefix} in GoBGP: {there}"), || {
            let text = self.gobgp(&format!("global rib -a {family}"))?;
            if text.contains(prefix) == there { Ok(text) } else { Err(text) }
        })
    }
}
