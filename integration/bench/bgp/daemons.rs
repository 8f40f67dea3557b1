//! Configurations of the daemons under test, equal in meaning: everything accepted, hold time 180 s, passive, out of the
//! box otherwise.

use std::{fmt::Write as _, net::Ipv4Addr, path::Path};

use super::scenario::{AS, Role, Scenario, TARGET, Then};

/// A daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Daemon {
    Brindle,
    Bird,
    Frr,
    OpenBgpd,
    GoBgp,
}

impl Daemon {
    pub(crate) const ALL: [Self; 5] = [Self::Brindle, Self::Bird, Self::Frr, Self::OpenBgpd, Self::GoBgp];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Brindle => "brindle",
            Self::Bird => "bird",
            Self::Frr => "frr",
            Self::OpenBgpd => "openbgpd",
            Self::GoBgp => "gobgpd",
        }
    }

    /// Where Debian has it; `None`: it is ours.
    pub(crate) const fn program(self) -> Option<&'static str> {
        match self {
            Self::Brindle => None,
            Self::Bird => Some("/usr/sbin/bird"),
            Self::Frr => Some("/usr/lib/frr/bgpd"),
            Self::OpenBgpd => Some("/usr/sbin/bgpd"),
            Self::GoBgp => Some("/usr/bin/gobgpd"),
        }
    }

    /// Whether it brings routes into the kernel by itself. Not FRR and GoBGP, which leave it to zebra; the portable OpenBGPD
    /// cannot.
    pub(crate) const fn has_kernel(self) -> bool {
        matches!(self, Self::Brindle | Self::Bird)
    }

    /// Name and text of its configuration file.
    pub(crate) fn config(self, s: &Scenario, dir: &Path) -> (&'static str, String) {
        let peers: Vec<(Ipv4Addr, u32)> = (0..s.sessions()).map(|n| (s.address(n), s.asn(n))).collect();
        let client = s.role == Role::Client;
        let dir = dir.display();
        let mut t = String::new();
        // Writing into a String cannot fail.
        let name = match self {
            Self::Brindle => {
                let _ = write!(
                    t,
                    "asNumber: {AS}\nrouterID: {TARGET}\nlisten: [\"{TARGET}:179\"]\nadminSocket: {dir}/admin\nlocalPref: 100\nclusterID: {TARGET}\nacceptAll: true\npeers:\n"
                );
                for (n, (a, asn)) in peers.iter().enumerate() {
                    let _ = writeln!(
                        t,
                        "  - {{name: p{n}, address: {a}, asNumber: {asn}, passive: true, holdTime: 180, reflectorClient: {client}}}"
                    );
                }
                "bgpd.yaml"
            }
            Self::Bird => {
                let _ = write!(
                    t,
                    "log \"{dir}/bird.log\" {{ warning, error, fatal, bug }};\nrouter id {TARGET};\nprotocol device {{ scan time 60; }}\nprotocol direct {{ ipv4; }}\n"
                );
                if s.then == Then::Kernel {
                    t.push_str("protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }\n");
                }
                let rr = if client { "rr client;" } else { "" };
                for (n, (a, asn)) in peers.iter().enumerate() {
                    let _ = writeln!(
                        t,
                        "protocol bgp p{n} {{ local {TARGET} as {AS}; neighbor {a} as {asn}; passive on; hold time 180; {rr} ipv4 {{ import all; export where source = RTS_BGP; }}; }}"
                    );
                }
                "bird.conf"
            }
            Self::Frr => {
                let _ = write!(
                    t,
                    "router bgp {AS}\n bgp router-id {TARGET}\n no bgp ebgp-requires-policy\n no bgp network import-check\n timers bgp 60 180\n"
                );
                for (a, asn) in &peers {
                    let _ = write!(t, " neighbor {a} remote-as {asn}\n neighbor {a} passive\n");
                }
                t.push_str(" address-family ipv4 unicast\n");
                for (a, _) in &peers {
                    let _ = writeln!(t, "  neighbor {a} activate");
                    if client {
                        let _ = writeln!(t, "  neighbor {a} route-reflector-client");
                    }
                }
                t.push_str(" exit-address-family\n");
                "frr.conf"
            }
            Self::OpenBgpd => {
                let _ = write!(
                    t,
                    "AS {AS}\nrouter-id {TARGET}\nlisten on {TARGET} port 179\nsocket \"{dir}/bgpd.sock\"\nfib-update no\nholdtime 180\n"
                );
                let rr = if client { "route-reflector" } else { "" };
                for (a, asn) in &peers {
                    let _ = writeln!(
                        t,
                        "neighbor {a} {{\n remote-as {asn}\n passive\n enforce neighbor-as no\n {rr}\n}}"
                    );
                }
                t.push_str("allow from any\nallow to any\n");
                "bgpd.conf"
            }
            Self::GoBgp => {
                let _ = write!(
                    t,
                    "[global.config]\nas = {AS}\nrouter-id = \"{TARGET}\"\nlocal-address-list = [\"{TARGET}\"]\n"
                );
                for (a, asn) in &peers {
                    let _ = write!(
                        t,
                        "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{a}\"\npeer-as = {asn}\n[neighbors.transport.config]\npassive-mode = true\nlocal-address = \"{TARGET}\"\n[neighbors.timers.config]\nhold-time = 180\n"
                    );
                    if client {
                        let _ = write!(
                            t,
                            "[neighbors.route-reflector.config]\nroute-reflector-client = true\nroute-reflector-cluster-id = \"{TARGET}\"\n"
                        );
                    }
                }
                "gobgpd.toml"
            }
        };
        (name, t)
    }

    /// Arguments; `file` is the configuration.
    pub(crate) fn args(self, file: &Path, dir: &Path) -> Vec<String> {
        let (f, d) = (file.display().to_string(), dir.display().to_string());
        let words: Vec<String> = match self {
            Self::Brindle => vec!["--config".into(), f],
            Self::Bird => {
                vec![
                    "-f".into(),
                    "-c".into(),
                    f,
                    "-s".into(),
                    format!("{d}/ctl"),
                    "-P".into(),
                    format!("{d}/pid"),
                ]
            }
            Self::Frr => {
                let text = format!(
                    "-Z -S -P 0 -f {f} -i {d}/pid --vty_socket {d} -z {d}/zserv -l {TARGET} -p 179 --log file:{d}/log --log-level err"
                );
                text.split(' ').map(str::to_owned).collect()
            }
            Self::OpenBgpd => vec!["-d".into(), "-f".into(), f],
            Self::GoBgp => ["-f", &f, "--pprof-disable", "--api-hosts", "127.0.0.1:50051", "-l", "error"]
                .map(str::to_owned)
                .to_vec(),
        };
        words
    }
}
