//! OpenBGPD, the portable one.

use std::{fs, path::PathBuf};

use super::segment::{Daemon, Segment, eventually, installed};

/// A running bgpd of OpenBGPD.
#[derive(Debug)]
pub struct OpenBgpd<'a> {
    segment: &'a Segment,
    host: u8,
    pub daemon: Daemon,
}

impl<'a> OpenBgpd<'a> {
    /// Starts it on a host; identifier, listening addresses, a hold time of 9 s and control socket stand before the configuration.
    pub fn start(segment: &'a Segment, host: u8, config: &str) -> Self {
        let program = installed(&["/usr/sbin/bgpd"], "openbgpd");
        // Its processes shut themselves in there; the service manager would make it.
        fs::create_dir_all("/run/openbgpd").expect("root can make /run/openbgpd");
        let file = segment.dir(host).join("openbgpd.conf");
        let (v4, v6) = (Segment::v4(host), Segment::v6(host));
        let globals = format!(
            "router-id {v4}\nlisten on {v4}\nlisten on {v6}\nsocket \"{}\"\nfib-update no\nholdtime 9\n",
            Self::socket(segment, host)
        );
        fs::write(&file, globals + config).expect("the configuration can be written");
        let daemon = segment.start(host, "openbgpd", &program, &["-d", "-f", &file.display().to_string()]);
        let mut this = Self { segment, host, daemon };
        eventually("OpenBGPD answers", || {
            this.daemon.assert_alive();
            this.bgpctl("show summary")
        });
        this
    }

    fn socket(segment: &Segment, host: u8) -> String {
        segment.dir(host).join("bgpd.ctl").display().to_string()
    }

    /// A bgpctl command.
    pub fn bgpctl(&self, command: &str) -> Result<String, String> {
        let program: PathBuf = installed(&["/usr/sbin/bgpctl"], "openbgpd");
        let socket = Self::socket(self.segment, self.host);
        let words: Vec<&str> = ["-s", &socket].into_iter().chain(command.split(' ')).collect();
        self.segment.ask(self.host, &program, &words)
    }

    /// Waits for an established session and returns what OpenBGPD says about it.
    #[track_caller]
    pub fn established(&self, neighbor: &str) -> String {
        eventually(&format!("OpenBGPD's neighbor {neighbor}"), || {
            let text = self.bgpctl(&format!("show neighbor {neighbor}"))?;
            if text.contains("BGP state = Established") { Ok(text) } else { Err(text) }
        })
    }

    /// Waits until the prefix is in the table (or is not), and returns what OpenBGPD says about it.
    #[track_caller]
    pub fn route(&self, prefix: &str, there: bool) -> String {
        eventually(&format!("{prefix} in OpenBGPD: {there}"), || {
            let text = self.bgpctl(&format!("show rib detail {prefix}"))?;
            if text.contains(&format!("entry for {prefix}")) == there { Ok(text) } else { Err(text) }
        })
    }
}
