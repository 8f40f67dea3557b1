//! `node checksystem`: kernel version, kernel features, programs. A feature counts as there when it was tried and works
//! (`attempt`). Where nothing can be tried, or a kernel's configuration is given, the kernel's lists decide: loaded, built
//! in, or can be loaded.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use brindle_kernel::exec;
use serde::Serialize;

use super::attempt::{self, Attempts, Tried};
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
    /// What the kernel or the tool said when it was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<String>,
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
    let attempts = match config {
        Some(file) => Attempts::none(format!("only read, in {}", file.display())),
        None => attempt::all(),
    };
    let checks = judge(&kernel, &attempts, &|program| find(program).is_absolute());
    let good = checks.iter().all(|c| c.ok || !c.needed);
    match format {
        Format::Json => out::json(&serde_json::json!({ "ok": good, "checks": checks })),
        Format::Table => put!("{}", render(&checks, attempts.none.as_deref(), good)),
    }
    Ok(if good { Outcome::Ok } else { Outcome::Degraded })
}

/// Whether a feature is there, and what to say about it.
fn look(kernel: &Kernel, attempts: &Attempts, f: &Feature) -> (bool, String, Option<String>) {
    let listed = kernel.has(f);
    match (attempts.of(f.module), listed) {
        (Tried::Works, Some(place)) => (true, format!("works, {place}"), None),
        (Tried::Works, None) => (true, "works".into(), None),
        // A module can be listed and its files be gone, or of another version.
        (Tried::Fails(said), Some(place)) => (false, format!("{place}, but does not work"), Some(said)),
        (Tried::Fails(said), None) => (false, "missing".into(), Some(said)),
        (Tried::Not(why), Some(place)) => (true, place.into(), Some(why).filter(|w| !w.is_empty())),
        (Tried::Not(why), None) => (false, "missing".into(), Some(why).filter(|w| !w.is_empty())),
    }
}

fn judge(kernel: &Kernel, attempts: &Attempts, program: &dyn Fn(&str) -> bool) -> Vec<Check> {
    let mut parts = kernel.release.split(['.', '-']).map_while(|p| p.parse::<u32>().ok());
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let mut checks = vec![Check {
        what: "kernel".into(),
        ok: version >= OLDEST,
        needed: true,
        found: format!("{} (needs {}.{})", kernel.release, OLDEST.0, OLDEST.1),
        said: None,
    }];
    let every = |of: fn(&Need) -> bool| {
        FEATURES.iter().filter(|f| of(&f.needed)).all(|f| look(kernel, attempts, f).0)
    };
    let (iptables, nftables) = (program("iptables-restore") && program("ipset"), program("nft"));
    let legacy = every(|n| matches!(n, Need::Iptables)) && iptables;
    let nft = every(|n| matches!(n, Need::Nftables)) && nftables;
    for f in &FEATURES {
        let (ok, mut found, said) = look(kernel, attempts, f);
        let (needed, otherwise) = match f.needed {
            Need::Always => (true, ""),
            Need::Iptables => (!nft, if nft { "policy can be written by nftables" } else { "" }),
            Need::Nftables => (!legacy, if legacy { "policy can be written by iptables" } else { "" }),
            Need::Optional(what_for) => (false, what_for),
        };
        if !ok {
            found += &match otherwise {
                "" => format!(": modprobe {}, or a kernel with {}", f.module, f.option),
                other => format!(": {other}"),
            };
        }
        checks.push(Check { what: f.module.into(), ok, needed, found, said });
    }
    for (name, there, other, packages) in
        [("iptables, ipset", iptables, nftables, "iptables ipset"), ("nft", nftables, iptables, "nftables")]
    {
        let found =
            if there { "installed".into() } else { format!("not installed: apt-get install {packages}") };
        checks.push(Check { what: name.into(), ok: there, needed: !other, found, said: None });
    }
    checks
}

fn render(checks: &[Check], untried: Option<&str>, good: bool) -> String {
    let mut text = String::new();
    for c in checks {
        let word = match (c.ok, c.needed) {
            (true, _) => "OK",
            (false, true) => "MISSING",
            (false, false) => "WARNING",
        };
        text += &format!("  {:<18}{word:<9}{}\n", c.what, c.found);
        // Nothing to see to, nothing to read.
        if let Some(said) = c.said.as_deref().filter(|s| !c.ok && Some(*s) != untried) {
            text += &format!("{:29}{said}\n", "");
        }
    }
    if let Some(why) = untried {
        text += &format!("Features were {why}\n");
    }
    text += if good {
        "System meets minimum system requirements to run Brindle!\n"
    } else {
        "System doesn't meet one or more minimum system requirements to run Brindle\n"
    };
    text
}

/// Where a program is; its bare name if it is nowhere.
pub(super) fn find(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut all = std::env::split_paths(&path).chain(usual).map(|d| d.join(program));
    all.find(|p| p.is_file()).unwrap_or_else(|| program.into())
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
        let checks = judge(&k, &Attempts::none("only read"), &|p| p == "nft");
        let text = render(&checks, Some("only read"), checks.iter().all(|c| c.ok || !c.needed));
        insta::assert_snapshot!(text);
    }

    #[test]
    fn what_is_missing_is_named() {
        let checks = judge(&kernel("4.19.0", ""), &Attempts::none("only read"), &|_| false);
        let missing: Vec<&str> =
            checks.iter().filter(|c| !c.ok && c.needed).map(|c| c.what.as_str()).collect();
        assert!(missing.starts_with(&["kernel", "ip_tables"]), "{missing:?}");
        assert!(missing.contains(&"nf_tables") && missing.contains(&"nft"), "{missing:?}");
    }

    #[test]
    fn what_works_counts_whatever_the_lists_say() {
        let k = kernel("6.1.0", "");
        let mut attempts = Attempts::none("");
        attempts.set("nf_tables", Tried::Works);
        attempts.set("veth", Tried::Fails("Operation not supported".into()));
        let checks = judge(&k, &attempts, &|_| true);
        let of = |what: &str| checks.iter().find(|c| c.what == what).unwrap();
        assert_eq!((of("nf_tables").ok, of("nf_tables").found.as_str()), (true, "works"));
        let veth = of("veth");
        assert!(
            !veth.ok && veth.found.starts_with("can be loaded, but does not work: modprobe veth"),
            "{veth:?}"
        );
        assert!(render(&checks, None, false).contains("Operation not supported"));
    }

    #[test]
    fn the_kernel_is_asked_and_nothing_is_left() {
        let before = brindle_kernel::netns::NetNs::list().unwrap();
        let attempts = attempt::all();
        if let Some(why) = &attempts.none {
            assert!(why.contains("needs root"), "{why}");
            return;
        }
        assert_eq!(attempts.of("veth"), Tried::Works);
        assert!(!matches!(attempts.of("tun"), Tried::Not(_)));
        let mine = format!("brindle-check-{}", std::process::id());
        let left = brindle_kernel::netns::NetNs::list().unwrap();
        assert!(!left.contains(&mine), "{before:?} {left:?}");
    }
}
