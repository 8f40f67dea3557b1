//! FRR's bgpd without zebra.

use std::fs;

use super::segment::{Daemon, Segment, eventually, installed};

/// A running bgpd of FRR.
#[derive(Debug)]
pub struct Frr<'a> {
    segment: &'a Segment,
    host: u8,
    pub daemon: Daemon,
}

impl<'a> Frr<'a> {
    /// Starts it on a host with this frr.conf.
    pub fn start(segment: &'a Segment, host: u8, config: &str) -> Self {
        let program = installed(&["/usr/lib/frr/bgpd"], "frr");
        let dir = segment.dir(host);
        fs::write(dir.join("bgpd.conf"), config).expect("the configuration can be written");
        let path = |name: &str| dir.join(name).display().to_string();
        let (conf, pid, all) = (path("bgpd.conf"), path("bgpd.pid"), dir.display().to_string());
        // -Z: no zebra, -S: stay root, -P 0: no telnet port.
        let args = ["-Z", "-S", "-P", "0", "-f", &conf, "-i", &pid, "--vty_socket", &all, "--log", "stdout"];
        let daemon = segment.start(host, "frr-bgpd", &program, &args);
        let mut this = Self { segment, host, daemon };
        eventually("FRR answers", || {
            this.daemon.assert_alive();
            this.vtysh("show bgp summary")
        });
        this
    }

    /// A vtysh command.
    pub fn vtysh(&self, command: &str) -> Result<String, String> {
        let program = installed(&["/usr/bin/vtysh"], "frr");
        let dir = self.segment.dir(self.host).display().to_string();
        self.segment.ask(self.host, &program, &["--vty_socket", &dir, "-d", "bgpd", "-c", command])
    }

    /// Waits for an established session.
    #[track_caller]
    pub fn established(&self, neighbor: &str) {
        eventually(&format!("FRR's neighbor {neighbor}"), || {
            let text = self.vtysh(&format!("show bgp neighbors {neighbor}"))?;
            if text.contains("BGP state = Established") { Ok(()) } else { Err(text) }
        });
    }

    /// Waits until the prefix is in the table (or is not), and returns what FRR says about it.
    #[track_caller]
    pub fn route(&self, prefix: &str, there: bool) -> String {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        eventually(&format!("{prefix} in FRR: {there}"), || {
            let text = self.vtysh(&format!("show bgp {family} unicast {prefix}"))?;
            if text.contains("Paths:") == there { Ok(text) } else { Err(text) }
        })
    }
}
