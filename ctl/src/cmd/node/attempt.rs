//! What the kernel can do, found out by doing it: devices, sets and rules as the agent makes them, in a network namespace
//! that is gone afterwards. Making them loads the modules that they need, as the agent's own would.

use std::{collections::BTreeMap, time::Duration};

use brindle_kernel::{
    exec::{self, ExecError},
    netlink::{NetlinkError, Rtnl, Veth, VethPeer},
    netns::NetNs,
    tun::Tun,
};

/// How long one of the tools may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Name of everything that is made.
const NAME: &str = "brindle-check";

/// How an attempt went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    Works,
    /// The kernel's or the tool's words.
    Fails(String),
    /// Nobody could try, and why.
    Not(String),
}

/// Attempts by the module that they need.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    of: BTreeMap<&'static str, Tried>,
    /// Why nothing was tried.
    pub(super) none: Option<String>,
}

impl Attempts {
    pub(super) fn of(&self, module: &str) -> Tried {
        let none = || Tried::Not(self.none.clone().unwrap_or_default());
        self.of.get(module).cloned().unwrap_or_else(none)
    }

    #[cfg(test)]
    pub(super) fn set(&mut self, module: &'static str, tried: Tried) {
        self.of.insert(module, tried);
    }

    /// Nothing tried.
    pub(super) fn none(why: impl Into<String>) -> Self {
        Self { of: BTreeMap::new(), none: Some(why.into()) }
    }
}

/// A namespace for the attempts.
struct Scratch(String);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.0);
    }
}

/// Tries everything.
pub(super) fn all() -> Attempts {
    let name = format!("{NAME}-{}", std::process::id());
    let ns = match NetNs::create(&name) {
        Ok(ns) => ns,
        Err(e) => return Attempts::none(format!("only read, not tried, which needs root on the node: {e}")),
    };
    let scratch = Scratch(name);
    let of = ns.run(inside).unwrap_or_else(|e| {
        let why = Tried::Not(e.to_string());
        MODULES.iter().map(|m| (*m, why.clone())).collect()
    });
    drop(scratch);
    Attempts { of, none: None }
}

/// Modules that are tried.
const MODULES: [&str; 16] = [
    "veth",
    "nf_conntrack",
    "nf_nat",
    "ip_tables",
    "ip_set",
    "xt_set",
    "xt_mark",
    "xt_conntrack",
    "xt_multiport",
    "xt_comment",
    "xt_addrtype",
    "ipt_REJECT",
    "nf_tables",
    "ip6_tables",
    "ipip",
    "tun",
];

fn inside() -> BTreeMap<&'static str, Tried> {
    // In this order: a rule about a set needs the set.
    MODULES.iter().map(|module| (*module, attempt(module))).collect()
}

fn attempt(module: &str) -> Tried {
    let rule = |words: &str| iptables("iptables-restore", &format!("-A {NAME} {words}\n"));
    match module {
        "veth" => netlink(|rtnl| {
            rtnl.add_veth(&Veth {
                name: "check0",
                peer: VethPeer { name: "check1", ..VethPeer::default() },
                ..Veth::default()
            })
        }),
        "ipip" => netlink(|rtnl| rtnl.add_link_generic("check2", "ipip", None)),
        "tun" => match Tun::attach("check3") {
            Ok(_) => Tried::Works,
            Err(e) => Tried::Fails(e.to_string()),
        },
        "ip_set" => tool("ipset", &["create", NAME, "hash:net"], None),
        "nf_tables" => nft(""),
        "nf_conntrack" => {
            either(nft("chain c { type filter hook input priority 0; ct state established accept; }"), || {
                rule("-m conntrack --ctstate ESTABLISHED -j ACCEPT")
            })
        }
        "nf_nat" => either(nft("chain c { type nat hook postrouting priority 100; masquerade; }"), || {
            let nat = format!("*nat\n:{NAME} - [0:0]\n-A {NAME} -j MASQUERADE\nCOMMIT\n");
            tool("iptables-restore", &["--noflush"], Some(&nat))
        }),
        "ip_tables" => iptables("iptables-restore", ""),
        "ip6_tables" => iptables("ip6tables-restore", ""),
        "xt_set" => rule(&format!("-m set --match-set {NAME} src")),
        "xt_mark" => rule("-m mark --mark 0x1/0x1 -j MARK --set-xmark 0x2/0x2"),
        "xt_conntrack" => rule("-m conntrack --ctstate ESTABLISHED"),
        "xt_multiport" => rule("-p tcp -m multiport --dports 1,2"),
        "xt_comment" => rule("-m comment --comment x"),
        "xt_addrtype" => rule("-m addrtype --dst-type LOCAL"),
        "ipt_REJECT" => rule("-j REJECT"),
        other => Tried::Not(format!("{other} cannot be tried")),
    }
}

/// The second way only where the first one cannot be gone.
fn either(first: Tried, second: impl FnOnce() -> Tried) -> Tried {
    match first {
        Tried::Works => Tried::Works,
        Tried::Fails(_) | Tried::Not(_) => second(),
    }
}

fn netlink(work: impl FnOnce(&mut Rtnl) -> Result<(), NetlinkError>) -> Tried {
    match Rtnl::open().and_then(|mut rtnl| work(&mut rtnl)) {
        Ok(()) => Tried::Works,
        Err(e) => Tried::Fails(e.to_string()),
    }
}

/// A chain with some rules in the filter table.
fn iptables(restore: &str, rules: &str) -> Tried {
    let text = format!("*filter\n:{NAME} - [0:0]\n{rules}COMMIT\n");
    tool(restore, &["--noflush"], Some(&text))
}

/// A table with a chain.
fn nft(chain: &str) -> Tried {
    let text = format!("table ip {NAME}\ndelete table ip {NAME}\ntable ip {NAME} {{\n{chain}\n}}\n");
    tool("nft", &["-f", "-"], Some(&text))
}

fn tool(program: &str, args: &[&str], input: Option<&str>) -> Tried {
    let ended = exec::run(super::checksystem::find(program), args, input.map(str::as_bytes), PATIENCE);
    match ended.and_then(exec::Output::success) {
        Ok(_) => Tried::Works,
        Err(ExecError::Start { .. }) => Tried::Not(format!("{program} is not installed")),
        Err(ExecError::Failed { stderr, .. }) => {
            Tried::Fails(stderr.lines().next().unwrap_or("no reason given").trim().to_owned())
        }
        Err(e) => Tried::Fails(e.to_string()),
    }
}
