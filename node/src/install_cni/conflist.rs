//! What the conflist says: the built-in one, or a given one that is held against what the plugin will make of it, so that
//! none is written whose every ADD is refused. Where it goes, and when, is `install_cni`'s.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context, Result, bail, ensure};
use brindle_cni::{
    conf::{self, Conf, STATE_DIR},
    env::Command,
    proto::Call,
};
use serde_json::{Value, json};

use super::{BINARIES, InstallArgs};

/// The conflist as it was given, and by what.
pub(super) fn given(args: &InstallArgs) -> Result<Option<(String, String)>> {
    if let Some(file) = args.conflist_file.as_ref().filter(|f| !f.is_empty()) {
        let what = format!("--conflist-file {file} (CNI_NETWORK_CONFIG_FILE)");
        let text = fs::read_to_string(file).with_context(|| format!("{what} cannot be read"))?;
        return Ok(Some((text, what)));
    }
    let text = args.conflist.clone().filter(|t| !t.is_empty());
    Ok(text.map(|t| (t, "--conflist (CNI_NETWORK_CONFIG)".to_owned())))
}

/// The first of the words that Calico's installer replaces in a conflist, like `__KUBECONFIG_FILEPATH__`.
fn placeholder(text: &str) -> Option<&str> {
    let from = text.find("__")?;
    let rest = &text[from + 2..];
    let word = rest.split("__").next().unwrap_or_default();
    let is_one = !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    if is_one && rest.len() > word.len() {
        return Some(&text[from..from + word.len() + 4]);
    }
    placeholder(rest)
}

fn mtu(text: &str) -> Result<u32> {
    match text.parse() {
        Ok(mtu) if mtu == 0 || (68..=65_535).contains(&mtu) => Ok(mtu),
        _ if text.is_empty() => Ok(0),
        _ => bail!("--mtu {text:?} (CNI_MTU): expected 68 to 65535, or 0 for what the agent finds out"),
    }
}

/// Of which families pods get addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Families {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

impl Default for Families {
    /// As the plugin has it where the conflist does not say.
    fn default() -> Self {
        Self { v4: true, v6: false }
    }
}

pub(super) fn conflist_text(args: &InstallArgs, families: Families) -> Result<String> {
    let mtu = mtu(&args.mtu)?;
    let value: Value = match given(args)? {
        Some((text, what)) => {
            let text = text.replace("__CNI_MTU__", &mtu.to_string());
            if let Some(word) = placeholder(&text) {
                bail!("{what} has {word}, which stands for nothing here; only __CNI_MTU__ is replaced");
            }
            serde_json::from_str(&text).with_context(|| format!("{what} is no JSON"))?
        }
        None => {
            let mut ipam = json!({"type": "brindle-ipam"});
            if families != Families::default() {
                // Texts, as Calico's have it.
                ipam["assign_ipv4"] = families.v4.to_string().into();
                ipam["assign_ipv6"] = families.v6.to_string().into();
            }
            let mut plugin = json!({"type": "brindle", "agent_socket": args.cni_socket,
                "ipam": ipam, "capabilities": {"io.kubernetes.cri.pod-annotations": true}});
            if mtu != 0 {
                plugin["mtu"] = mtu.into();
            }
            // Where the plugin notes what the agent cannot be told now.
            let state_dir = args.state_dir.as_deref().or(args.cni_socket.parent());
            if let Some(dir) = state_dir.filter(|dir| *dir != Path::new(STATE_DIR)) {
                plugin["state_dir"] = json!(dir);
            }
            let portmap = json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}});
            let mut plugins = vec![plugin, portmap];
            // As in Calico's list: pods with limits had them there. Who calls what is not there attaches no pod at all.
            if executable(&args.places.bin_dir.join("bandwidth")) {
                plugins.push(json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}));
            }
            json!({"cniVersion": "1.0.0", "name": args.network, "plugins": plugins})
        }
    };
    let list = value.get("plugins").and_then(Value::as_array).filter(|l| !l.is_empty());
    ensure!(list.is_some(), "the conflist has no plugins");
    ensure!(
        value.get("name").and_then(Value::as_str).is_some_and(|n| !n.is_empty()),
        "the conflist has no name"
    );
    if let Some(secret) = secret(&value) {
        bail!(
            "the conflist has a member {secret:?}; every user of the node can read it: the plugin needs no credentials"
        );
    }
    acceptable(&value)?;
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}

fn executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Whether an ADD would take it. Runtimes give each plugin its own entry, with the list's name and version.
fn acceptable(list: &Value) -> Result<()> {
    let plugins = || list.get("plugins").and_then(Value::as_array).into_iter().flatten();
    let of = |plugin: &Value, at: &str, name: &str| plugin.pointer(at).is_some_and(|t| t == name);
    let gives = |p: &Value| of(p, "/type", BINARIES[0]) || of(p, "/ipam/type", BINARIES[1]);
    ensure!(
        plugins().any(gives),
        "the conflist calls neither {} nor, for addresses, {}: this agent would serve nobody",
        BINARIES[0],
        BINARIES[1]
    );
    for plugin in plugins().filter(|p| of(p, "/type", BINARIES[0])) {
        let mut plugin = plugin.clone();
        for member in ["name", "cniVersion"] {
            if let Some(value) = list.get(member) {
                plugin[member] = value.clone();
            }
        }
        Conf::parse(plugin.to_string().as_bytes(), Command::Add)
            .map_err(|e| anyhow::anyhow!("the conflist: every ADD would be refused: {}", e.message))?;
    }
    Ok(())
}

/// Of another node's agent than the one that answers.
pub(super) fn of_another_node(conflist: &str, node: &str) -> Option<String> {
    let ours = ours(conflist);
    let named = ours.get("nodename").and_then(Value::as_str).filter(|n| !n.is_empty() && *n != node)?;
    Some(format!("the conflist has the nodename {named:?}, and the agent that answers is of node {node:?}"))
}

/// A member that by its name holds a credential.
fn secret(value: &Value) -> Option<String> {
    const WORDS: [&str; 5] = ["token", "password", "secret", "private_key", "client-key"];
    match value {
        Value::Object(members) => members.iter().find_map(|(name, v)| {
            let lower = name.to_ascii_lowercase();
            if WORDS.iter().any(|w| lower.contains(w)) { Some(name.clone()) } else { secret(v) }
        }),
        Value::Array(items) => items.iter().find_map(secret),
        _ => None,
    }
}

/// What is asked of the agent: where the conflist has another IPAM plugin, pools do not matter.
pub(super) fn question(conflist: &str) -> Call {
    let ipam = ours(conflist).get("ipam").cloned().unwrap_or_default();
    let given = ipam.get("type").and_then(Value::as_str).is_some_and(conf::is_delegate);
    let says = |word: &str, unsaid: bool| match ipam.get(word) {
        Some(Value::Bool(b)) => *b,
        Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
        _ => unsaid,
    };
    let (v4, v6) = (says("assign_ipv4", true), says("assign_ipv6", false));
    let pools = |member: &str| -> Vec<String> {
        let all = ipam.get(member).and_then(Value::as_array).into_iter().flatten();
        all.filter_map(|p| p.as_str().map(str::to_owned)).collect()
    };
    let (pools4, pools6) = (pools("ipv4_pools"), pools("ipv6_pools"));
    Call::Status { given, pools4, pools6, num4: v4.into(), num6: v6.into() }
}

/// The configuration of our plugin in a conflist.
pub(super) fn ours(conflist: &str) -> Value {
    let value: Value = serde_json::from_str(conflist).unwrap_or_default();
    let mut plugins = value.get("plugins").and_then(Value::as_array).into_iter().flatten();
    plugins.find(|p| p.get("type").is_some_and(|t| t == BINARIES[0])).cloned().unwrap_or_default()
}

/// The plugins that a conflist calls, those for addresses among them.
pub(super) fn called(conflist: &str) -> BTreeSet<String> {
    let value: Value = serde_json::from_str(conflist).unwrap_or_default();
    let plugins = value.get("plugins").and_then(Value::as_array).into_iter().flatten();
    let names = plugins.flat_map(|p| [p.get("type"), p.pointer("/ipam/type")]);
    names.filter_map(|n| n?.as_str().map(str::to_owned)).collect()
}
