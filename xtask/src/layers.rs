//! The dependency rules of ARCHITECTURE.md, checked against what cargo resolves, dependencies that nobody uses, and the
//! proof that the clippy bans of the pure packages bite.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::unused::{self, Package};

/// Which of our packages each of our packages may depend on (normal dependencies only).
const ALLOWED: [(&str, &[&str]); 15] = [
    ("brindle-admin", &[]),
    ("brindle-config-core", &[]),
    ("brindle-config", &["brindle-config-core"]),
    ("brindle-ipam", &["brindle-config-core"]),
    ("brindle-bgpd-core", &[]),
    ("brindle-felix-core", &["brindle-config-core"]),
    ("brindle-kernel", &[]),
    (
        "brindle-bgpd",
        &["brindle-admin", "brindle-bgpd-core", "brindle-kernel", "brindle-config", "brindle-config-core"],
    ),
    ("brindle-felix", &["brindle-felix-core", "brindle-kernel", "brindle-config-core", "brindle-carrier"]),
    ("brindle-carrier", &["brindle-felix-core", "brindle-kernel"]),
    ("brindle-cni", &["brindle-ipam", "brindle-kernel"]),
    ("brindle-controllers", &["brindle-admin", "brindle-ipam", "brindle-config", "brindle-config-core"]),
    (
        "brindle-node",
        &[
            "brindle-admin",
            "brindle-bgpd",
            "brindle-felix",
            "brindle-felix-core",
            "brindle-cni",
            "brindle-ipam",
            "brindle-kernel",
            "brindle-config",
            "brindle-config-core",
        ],
    ),
    ("brindle-all", &["brindle-node", "brindle-bgpd", "brindle-controllers", "brindle-ctl"]),
    (
        "brindle-ctl",
        &[
            "brindle-admin",
            "brindle-config",
            "brindle-config-core",
            "brindle-ipam",
            "brindle-felix-core",
            "brindle-kernel",
        ],
    ),
];

/// Packages that decide and never act, with their folders.
const PURE: [(&str, &str); 4] = [
    ("brindle-config-core", "config/core"),
    ("brindle-ipam", "ipam"),
    ("brindle-bgpd-core", "bgpd/core"),
    ("brindle-felix-core", "felix/core"),
];

/// What a pure package may not reach, even through others.
const IMPURE: [&str; 14] = [
    "tokio",
    "nix",
    "socket2",
    "mio",
    "netlink-sys",
    "netlink-packet-route",
    "rtnetlink",
    "kube",
    "rusqlite",
    "inotify",
    "reqwest",
    "hyper",
    "rand",
    "brindle-kernel",
];

/// Libraries that only one package may name, and that package.
const ONLY: [(&str, &str); 5] = [
    ("rusqlite", "brindle-config"),
    ("serde-saphyr", "brindle-config"),
    ("netlink-sys", "brindle-kernel"),
    ("netlink-packet-route", "brindle-kernel"),
    ("nix", "brindle-kernel"),
];

struct Graph {
    /// Package → its direct normal dependencies, names.
    deps: BTreeMap<String, BTreeSet<String>>,
    ours: BTreeSet<String>,
    /// Our packages as their Cargo.toml have them.
    listed: Vec<Package>,
}

fn graph() -> Result<Graph> {
    let out = Command::new("cargo").args(["metadata", "--format-version", "1", "--locked"]).output()?;
    if !out.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    }
    let meta: Value = serde_json::from_slice(&out.stdout).context("cargo metadata")?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let packages = list(&meta["packages"]);
    let names: BTreeMap<String, String> =
        packages.iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let ours: BTreeSet<String> =
        list(&meta["workspace_members"]).iter().filter_map(|id| names.get(&text(id)).cloned()).collect();
    let listed = packages.iter().filter(|p| ours.contains(&text(&p["name"]))).map(|p| Package {
        name: text(&p["name"]),
        folder: Path::new(&text(&p["manifest_path"])).parent().map(Path::to_owned).unwrap_or_default(),
        dependencies: list(&p["dependencies"])
            .iter()
            .map(|d| text(if d["rename"].is_null() { &d["name"] } else { &d["rename"] }))
            .collect(),
    });
    let listed = listed.collect();
    let mut deps: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in list(&meta["resolve"]["nodes"]) {
        let entry = deps.entry(names.get(&text(&node["id"])).cloned().unwrap_or_default()).or_default();
        for d in list(&node["deps"]) {
            if list(&d["dep_kinds"]).iter().any(|k| k["kind"].is_null())
                && let Some(n) = names.get(&text(&d["pkg"]))
            {
                entry.insert(n.clone());
            }
        }
    }
    Ok(Graph { deps, ours, listed })
}

fn reaches(g: &Graph, from: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut todo = vec![from.to_owned()];
    while let Some(p) = todo.pop() {
        for d in g.deps.get(&p).into_iter().flatten() {
            if seen.insert(d.clone()) {
                todo.push(d.clone());
            }
        }
    }
    seen
}

/// Checks everything; the error lists every breach.
pub(crate) fn check() -> Result<()> {
    let g = graph()?;
    let mut wrong = Vec::new();
    for (package, allowed) in ALLOWED {
        let Some(deps) = g.deps.get(package) else {
            wrong.push(format!("{package}: no such package; mend the table in xtask/src/layers.rs"));
            continue;
        };
        for d in deps.iter().filter(|d| g.ours.contains(*d) && !allowed.contains(&d.as_str())) {
            wrong.push(format!("{package} may not depend on {d}: arrows point downward only"));
        }
    }
    for (package, _) in PURE {
        for d in reaches(&g, package).iter().filter(|d| IMPURE.contains(&d.as_str())) {
            wrong.push(format!("{package} is pure, yet reaches {d}"));
        }
    }
    for (library, owner) in ONLY {
        for p in g.ours.iter().filter(|p| *p != owner && *p != "brindle-integration") {
            if g.deps.get(p).is_some_and(|d| d.contains(library)) {
                wrong.push(format!("{p} may not use {library}: only {owner} does"));
            }
        }
    }
    for package in &g.listed {
        wrong.append(&mut unused::faults(package)?);
    }
    if !wrong.is_empty() {
        bail!("layer rules broken:\n  {}", wrong.join("\n  "));
    }
    println!("layers: {} packages keep the rules", ALLOWED.len());
    for (package, folder) in PURE {
        let (found, wanted) = bans_bite(package, folder)?;
        println!("bans: {package}: {found} of {wanted} banned calls are refused");
        if found != wanted {
            bail!("{folder}/clippy.toml does not bite: {found} findings for {wanted} bans");
        }
    }
    Ok(())
}

/// Lints the probe with the package's own clippy.toml and counts the findings.
fn bans_bite(package: &str, folder: &str) -> Result<(usize, usize)> {
    let wanted = std::fs::read_to_string(format!("{folder}/clippy.toml"))?.matches("{ path =").count();
    let out = Command::new("cargo")
        .args(["clippy", "--quiet", "--locked", "-p", package, "--example", "banned", "--features", "banned"])
        .args(["--message-format", "json"])
        .output()?;
    let mut found = BTreeSet::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let Ok(v) = serde_json::from_str::<Value>(line) else { continue };
        let code = v["message"]["code"]["code"].as_str().unwrap_or_default();
        if code == "clippy::disallowed_methods" || code == "clippy::disallowed_types" {
            found.insert(v["message"]["spans"][0]["line_start"].as_u64().unwrap_or_default());
        }
    }
    if found.is_empty() {
        bail!("clippy on the ban probe of {package}: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok((found.len(), wanted))
}
