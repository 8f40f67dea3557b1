//! `node checksystem`: kernel version, kernel features, programs. A feature counts as there when the running kernel has
//! it loaded, has it built in, or can load it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use brindle_kernel::exec;
use serde::Serialize;

use crate::{
    Outcome,
    args::Format,
    out::{self, put},
};

/// The oldest kernel the agent is meant for.
const OLDEST: (u32, u32) = (5, 4);

/// A feature of the kernel: its module, its option, and what is missing without it.
struct Feature {
    module: &'static str,
    option: &'static str,
    /// What for; and whether an agent cannot do without.
    needed: Need,
}

enum Need {
    Always,
    /// One of the two ways to enforce policy.
    Iptables,
    /// The other.
    Nftables,
    Optional(&'static str),
}

const fn always(module: &'static str, option: &'static str) -> Feature {
    Feature { module, option, needed: Need::Always }
}

const fn iptables(module: &'static str, option: &'static str) -> Feature {
    Feature { module, option, needed: Need::Iptables }
}

const FEATURES: [Feature; 16] = [
    always("veth", "CONFIG_VETH"),
    always("nf_conntrack", "CONFIG_NF_CONNTRACK"),
    always("nf_nat", "CONFIG_NF_NAT"),
    iptables("ip_tables", "CONFIG_IP_NF_IPTABLES"),
    iptables("ip_set", "CONFIG_IP_SET"),
    iptables("xt_set", "CONFIG_NETFILTER_XT_SET"),
    iptables("xt_mark", "CONFIG_NETFILTER_XT_MARK"),
    iptables("xt_conntrack", "CONFIG_NETFILTER_XT_MATCH_CONNTRACK"),
    iptables("xt_multiport", "CONFIG_NETFILTER_XT_MATCH_MULTIPORT"),
    iptables("xt_comment", "CONFIG_NETFILTER_XT_MATCH_COMMENT"),
    iptables("xt_addrtype", "CONFIG_NETFILTER_XT_MATCH_ADDRTYPE"),
    iptables("ipt_REJECT", "CONFIG_IP_NF_TARGET_REJECT"),
    Feature { module: "nf_tables", option: "CONFIG_NF_TABLES", needed: Need::Nftables },
    Feature {
        module: "ip6_tables",
        option: "CONFIG_IP6_NF_IPTABLES",
        needed: Need::Optional("policy of IPv6 by iptables"),
    },
    Feature {
        module: "ipip",
        option: "CONFIG_NET_IPIP",
        needed: Need::Optional("tunnels; without it brindle-ipip is used"),
    },
    Feature {
        module: "tun",
        option: "CONFIG_TUN",
        needed: Need::Optional("brindle-ipip, where the kernel has no ipip"),
    },
];

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Check {
    what: String,
    ok: bool,
    needed: bool,
    found: String,
}

/// What the kernel tells about itself.
struct Kernel {
    release: String,
    loaded: String,
    builtin: String,
    loadable: String,
    config: String,
    /// Modules that are loaded or built in, as far as they say so.
    present: Vec<String>,
}

impl Kernel {
    fn read(config: Option<&Path>) -> Result<Self> {
        let release =
            fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
        let release = release.trim().to_owned();
        let modules = PathBuf::from("/lib/modules").join(&release);
        let read = |p: PathBuf| fs::read_to_string(p).unwrap_or_default();
        let config = match config {
            Some(file) => {
                fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
            }
            None => match fs::read_to_string(format!("/boot/config-{release}")) {
                Ok(text) => text,
                Err(_) => exec::run("zcat", ["/proc/config.gz"], None, Duration::from_secs(5))
                    .and_then(exec::Output::success)
                    .map(|o| o.text())
                    .unwrap_or_default(),
            },
        };
        Ok(Self {
            loaded: read("/proc/modules".into()),
            builtin: read(modules.join("modules.builtin")),
            loadable: read(modules.join("modules.dep")),
            config,
            present: fs::read_dir("/sys/module")
                .into_iter()
                .flatten()
                .filter_map(|e| e.ok()?.file_name().into_string().ok())
                .collect(),
            release,
        })
    }

    /// Where a feature was found.
    fn has(&self, f: &Feature) -> Option<&'static str> {
        let loaded = |l: &str| l.split(' ').next() == Some(f.module);
        if self.loaded.lines().any(loaded) {
            return Some("loaded");
        }
        let file = format!("/{}.ko", f.module);
        if self.builtin.contains(&file) {
            return Some("built in");
        }
        if self.loadable.contains(&file) {
            return Some("can be loaded");
        }
        let option = |l: &str| l.split_once('=').filter(|(name, _)| *name == f.option).map(|(_, v)| v == "y");
        match self.config.lines().find_map(option) {
            Some(true) => Some("built in"),
            Some(false) => Some("a module by its configuration"),
            None => self.present.iter().any(|m| m == f.module).then_some("built in"),
        }
    }
}

/// Carries the command out.
pub(super) fn check(config: Option<&Path>, format: Format) -> Result<Outcome> {
    let kernel = Kernel::read(config)?;
    let checks = judge(&kernel, &|program| on_path(program));
    let good = checks.iter().all(|c| c.ok || !c.needed);
    match format {
        Format::Json => out::json(&serde_json::json!({ "ok": good, "checks": checks })),
        Format::Table => put!("{}", render(&checks, good)),
    }
    Ok(if good { Outcome::Ok } else { Outcome::Degraded })
}

fn judge(kernel: &Kernel, program: &dyn Fn(&str) -> bool) -> Vec<Check> {
    let mut parts = kernel.release.split(['.', '-']).map_while(|p| p.parse::<u32>().ok());
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let mut checks = vec![Check {
        what: "kernel".into(),
        ok: version >= OLDEST,
        needed: true,
        found: format!("{} (needs {}.{})", kernel.release, OLDEST.0, OLDEST.1),
    }];
    let legacy =
        FEATURES.iter().filter(|f| matches!(f.needed, Need::Iptables)).all(|f| kernel.has(f).is_some());
    let nft = FEATURES.iter().filter(|f| matches!(f.needed, Need::Nftables)).all(|f| kernel.has(f).is_some());
    for f in &FEATURES {
        let found = kernel.has(f);
        let (needed, else_) = match f.needed {
            Need::Always => (true, "missing"),
            Need::Iptables => (!nft, "missing; policy can be written by nftables"),
            Need::Nftables => (!legacy, "missing; policy can be written by iptables"),
            Need::Optional(what_for) => (false, what_for),
        };
        checks.push(Check {
            what: f.module.into(),
            ok: found.is_some(),
            needed,
            found: found
                .map_or_else(|| format!("missing: {}", else_.trim_start_matches("missing; ")), str::to_owned),
        });
    }
    let (iptables, nftables) = (program("iptables-restore") && program("ipset"), program("nft"));
    for (name, there, other) in [("iptables, ipset", iptables, nftables), ("nft", nftables, iptables)] {
        let found = if there { "installed" } else { "not installed" };
        checks.push(Check { what: name.into(), ok: there, needed: !other, found: found.into() });
    }
    checks
}

fn render(checks: &[Check], good: bool) -> String {
    let mut text = String::new();
    for c in checks {
        let word = match (c.ok, c.needed) {
            (true, _) => "OK",
            (false, true) => "MISSING",
            (false, false) => "WARNING",
        };
        text += &format!("  {:<18}{word:<9}{}\n", c.what, c.found);
    }
    text += if good {
        "System meets minimum system requirements to run Brindle!\n"
    } else {
        "System doesn't meet one or more minimum system requirements to run Brindle\n"
    };
    text
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).any(|d| d.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(release: &str, config: &str) -> Kernel {
        Kernel {
            release: release.into(),
            loaded: "nf_conntrack 1 2 - Live 0x0\n".into(),
            builtin: "kernel/net/netfilter/nf_nat.ko\n".into(),
            loadable: "kernel/drivers/net/veth.ko.xz: x\n".into(),
            config: config.into(),
            present: vec!["ipip".into()],
        }
    }

    #[test]
    fn one_way_to_enforce_policy_is_enough() {
        let k = kernel("6.1.0-13-amd64", "CONFIG_NF_TABLES=m\n");
        let checks = judge(&k, &|p| p == "nft");
        let text = render(&checks, checks.iter().all(|c| c.ok || !c.needed));
        insta::assert_snapshot!(text);
    }

    #[test]
    fn what_is_missing_is_named() {
        let checks = judge(&kernel("4.19.0", ""), &|_| false);
        let missing: Vec<&str> =
            checks.iter().filter(|c| !c.ok && c.needed).map(|c| c.what.as_str()).collect();
        assert!(missing.starts_with(&["kernel", "ip_tables"]), "{missing:?}");
        assert!(missing.contains(&"nf_tables") && missing.contains(&"nft"), "{missing:?}");
    }
}
