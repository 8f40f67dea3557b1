//! `cni-conformance --plugin PATH [--plugin PATH ..] [--markdown]`: what the CNI specification asks of a plugin, tried on
//! any plugin, one row per rule. Needs root; everything happens in namespaces of its own.
//!
//! A plugin called `brindle` gets an agent; for others the smallest configuration that works is known for Debian's, or
//! given with `--config FILE` (one for all plugins named). Exit code 1 when a plugin breaks a rule.
#![allow(clippy::print_stdout, reason = "the table is the product")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use brindle_integration::cni::{CniNode, Container, Said};
use serde_json::{Value, json};

/// What became of a rule.
enum Verdict {
    Kept,
    Broken(String),
    /// Of a version the plugin does not speak.
    TooOld,
}

type Rule = (&'static str, &'static str, fn(&Plugin<'_>) -> Result<()>);

/// A plugin and where it is tried.
struct Plugin<'a> {
    path: PathBuf,
    conf: Value,
    versions: Vec<String>,
    node: &'a CniNode,
}

impl Plugin<'_> {
    fn with(&self, verb: &str, c: &Container, conf: &Value, change: &[(&str, Option<&str>)]) -> Said {
        let mut command = self.node.command(&self.path, verb, &c.id, &c.netns());
        let own = self.path.parent().map(|d| d.display().to_string()).unwrap_or_default();
        command.env("CNI_PATH", format!("{own}:/usr/lib/cni"));
        for (name, value) in change {
            match value {
                Some(v) => command.env(name, v),
                None => command.env_remove(name),
            };
        }
        self.node.run(&mut command, conf)
    }

    fn call(&self, verb: &str, c: &Container) -> Said {
        self.with(verb, c, &self.conf, &[])
    }

    fn conf_in(&self, version: &str) -> Value {
        let mut conf = self.conf.clone();
        conf["cniVersion"] = json!(version);
        conf
    }

    fn attached(&self) -> Result<(Container, Said)> {
        let c = Container::new();
        let said = self.call("ADD", &c);
        ensure!(said.ok, "ADD: {}", short(&said));
        Ok((c, said))
    }

    fn detach(&self, c: &Container) -> Result<()> {
        let said = self.call("DEL", c);
        ensure!(said.ok, "DEL: {}", short(&said));
        Ok(())
    }

    fn check(&self, c: &Container, result: &Said) -> Said {
        let mut conf = self.conf.clone();
        conf["prevResult"] = result.json();
        self.with("CHECK", c, &conf, &[])
    }
}

fn short(said: &Said) -> String {
    let text = if said.out.trim().is_empty() { &said.err } else { &said.out };
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.chars().take(120).collect()
}

/// The error object, with one of these codes if any are named.
fn refused(said: &Said, codes: &[u64]) -> Result<()> {
    ensure!(!said.ok, "it succeeded");
    let value: Value = serde_json::from_str(&said.out)
        .with_context(|| format!("no error object on stdout: {}", short(said)))?;
    let code = value["code"].as_u64().context("the error has no code")?;
    ensure!(value["msg"].as_str().is_some_and(|m| !m.is_empty()), "the error has no msg");
    ensure!(codes.is_empty() || codes.contains(&code), "code {code}, expected {codes:?}");
    Ok(())
}

fn has(c: &Container, ifname: &str) -> bool {
    c.ns.rtnl().link_by_name(ifname).ok().flatten().is_some()
}

const RULES: [Rule; 30] = [
    ("VERSION", "answers with cniVersion and supportedVersions, without anything but CNI_COMMAND", |p| {
        ensure!(p.versions.len() > 1, "{:?}", p.versions);
        Ok(())
    }),
    ("ADD", "prints one result in the version of the configuration, for each it supports", |p| {
        for version in p.versions.iter().filter(|v| v.as_str() >= "0.3.1") {
            let c = Container::new();
            let conf = p.conf_in(version);
            let said = p.with("ADD", &c, &conf, &[]);
            ensure!(said.ok, "{version}: {}", short(&said));
            let result: Value = serde_json::from_str(&said.out).context("stdout is no JSON")?;
            ensure!(result["cniVersion"] == **version, "{version}: the result is {}", result["cniVersion"]);
            let del = p.with("DEL", &c, &conf, &[]);
            ensure!(del.ok, "{version}: DEL: {}", short(&del));
        }
        Ok(())
    }),
    ("ADD", "the result names the interface in its sandbox, and the addresses refer to it", |p| {
        let (c, said) = p.attached()?;
        let result = said.json();
        let list = result["interfaces"].as_array().context("no interfaces")?;
        let at = list.iter().position(|i| i["name"] == "eth0" && i["sandbox"] == c.netns());
        let at = at.context("no interface eth0 with this sandbox")?;
        let ips = result["ips"].as_array().context("no ips")?;
        ensure!(ips.iter().any(|i| i["interface"] == at), "no address refers to interface {at}");
        p.detach(&c)
    }),
    ("ADD", "the interface is there, up, with the addresses of the result", |p| {
        let (c, said) = p.attached()?;
        let link = c.ns.rtnl().link_by_name("eth0")?.context("no eth0")?;
        ensure!(link.up, "eth0 is down");
        let have: Vec<String> = c.ns.rtnl().addrs(None)?.iter().map(|a| a.net.addr().to_string()).collect();
        ensure!(have.contains(&said.address()), "{} is not among {have:?}", said.address());
        p.detach(&c)
    }),
    ("ADD", "CNI_IFNAME names the interface", |p| {
        let c = Container::new();
        let change = [("CNI_IFNAME", Some("net7"))];
        let said = p.with("ADD", &c, &p.conf, &change);
        ensure!(said.ok, "{}", short(&said));
        ensure!(has(&c, "net7") && !has(&c, "eth0"), "no net7");
        ensure!(p.with("DEL", &c, &p.conf, &change).ok, "DEL");
        Ok(())
    }),
    ("ADD", "containers get addresses of their own", |p| {
        let all = [p.attached()?, p.attached()?, p.attached()?];
        let ips: BTreeSet<String> = all.iter().map(|(_, s)| s.address()).collect();
        ensure!(ips.len() == 3, "{ips:?}");
        all.iter().try_for_each(|(c, _)| p.detach(c))
    }),
    ("ADD", "eight at once get addresses of their own", |p| {
        let pods: Vec<Container> = (0..8).map(|_| Container::new()).collect();
        let input = serde_json::to_vec(&p.conf)?;
        let said: Vec<std::process::Output> = thread::scope(|s| {
            let own = p.path.parent().map(|d| d.display().to_string()).unwrap_or_default();
            let run = |c: &Container| {
                let mut command = p.node.command(&p.path, "ADD", &c.id, &c.netns());
                command.env("CNI_PATH", format!("{own}:/usr/lib/cni"));
                let (ns, input) = (p.node.ns.ns(), &input);
                s.spawn(move || {
                    ns.run(|| {
                        let mut child = command.spawn()?;
                        if let Some(stdin) = child.stdin.take() {
                            let _ = std::io::Write::write_all(&mut { stdin }, input);
                        }
                        child.wait_with_output()
                    })
                })
            };
            let threads: Vec<_> = pods.iter().map(run).collect();
            threads.into_iter().filter_map(|t| t.join().ok()?.ok()?.ok()).collect()
        });
        let mut ips = BTreeSet::new();
        for out in &said {
            ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
            let result: Value = serde_json::from_slice(&out.stdout)?;
            ips.insert(result["ips"][0]["address"].to_string());
        }
        ensure!(ips.len() == 8, "{ips:?}");
        pods.iter().try_for_each(|c| p.detach(c))
    }),
    ("ADD", "a foreign interface of that name is an error and stays", |p| {
        let c = Container::new();
        c.ns.rtnl().add_bridge("eth0", None)?;
        let said = p.call("ADD", &c);
        refused(&said, &[])?;
        ensure!(has(&c, "eth0"), "the foreign interface is gone");
        c.ns.rtnl().del_link("eth0")?;
        p.detach(&c)
    }),
    ("ADD", "one that failed leaves no device on the host", |p| {
        let before = p.node.ns.rtnl().links()?.len();
        let c = Container::new();
        c.ns.rtnl().add_bridge("eth0", None)?;
        refused(&p.call("ADD", &c), &[])?;
        let after = p.node.ns.rtnl().links()?.len();
        p.detach(&c)?;
        ensure!(before == after, "{before} devices before, {after} after");
        Ok(())
    }),
    ("ADD", "unknown fields of the configuration are ignored", |p| {
        let mut conf = p.conf.clone();
        conf["example.org/extra"] = json!({"a": [1]});
        let c = Container::new();
        let said = p.with("ADD", &c, &conf, &[]);
        ensure!(said.ok, "{}", short(&said));
        p.detach(&c)
    }),
    ("CHECK", "succeeds silently on what ADD made", |p| {
        let (c, result) = p.attached()?;
        let said = p.check(&c, &result);
        ensure!(said.ok, "{}", short(&said));
        ensure!(said.out.trim().is_empty(), "it prints {}", short(&said));
        p.detach(&c)
    }),
    ("CHECK", "notices that the interface is gone", |p| {
        let (c, result) = p.attached()?;
        c.ns.rtnl().del_link("eth0")?;
        let said = p.check(&c, &result);
        p.detach(&c)?;
        refused(&said, &[])
    }),
    ("CHECK", "notices that an address is gone", |p| {
        let (c, result) = p.attached()?;
        let out =
            c.ns.ns()
                .run(|| std::process::Command::new("ip").args(["addr", "flush", "dev", "eth0"]).status());
        ensure!(out??.success(), "ip addr flush");
        let said = p.check(&c, &result);
        p.detach(&c)?;
        refused(&said, &[])
    }),
    ("CHECK", "notices that a route is gone", |p| {
        let (c, result) = p.attached()?;
        let out =
            c.ns.ns()
                .run(|| std::process::Command::new("ip").args(["route", "flush", "table", "main"]).status());
        ensure!(out??.success(), "ip route flush");
        let said = p.check(&c, &result);
        p.detach(&c)?;
        refused(&said, &[])
    }),
    ("CHECK", "without prevResult is an error", |p| {
        let (c, _) = p.attached()?;
        let said = p.call("CHECK", &c);
        p.detach(&c)?;
        refused(&said, &[])
    }),
    ("DEL", "removes the interface and prints nothing", |p| {
        let (c, _) = p.attached()?;
        let said = p.call("DEL", &c);
        ensure!(said.ok && said.out.trim().is_empty(), "{}", short(&said));
        ensure!(!has(&c, "eth0"), "eth0 is still there");
        Ok(())
    }),
    ("DEL", "may be repeated", |p| {
        let (c, _) = p.attached()?;
        p.detach(&c)?;
        p.detach(&c)
    }),
    ("DEL", "of what was never added succeeds", |p| p.detach(&Container::new())),
    ("DEL", "succeeds when the namespace is gone", |p| {
        let (c, _) = p.attached()?;
        let (id, netns) = (c.id.clone(), c.netns());
        drop(c);
        let other = Container { id, ..Container::new() };
        let said = p.with("DEL", &other, &p.conf, &[("CNI_NETNS", Some(&netns))]);
        ensure!(said.ok, "{}", short(&said));
        Ok(())
    }),
    ("DEL", "succeeds without CNI_NETNS", |p| {
        let (c, _) = p.attached()?;
        let said = p.with("DEL", &c, &p.conf, &[("CNI_NETNS", None)]);
        p.detach(&c)?;
        ensure!(said.ok, "{}", short(&said));
        Ok(())
    }),
    ("errors", "a missing CNI_CONTAINERID is code 4", |p| {
        refused(&p.with("ADD", &Container::new(), &p.conf, &[("CNI_CONTAINERID", None)]), &[4])
    }),
    ("errors", "a container id with a path in it is code 4", |p| {
        refused(&p.with("ADD", &Container::new(), &p.conf, &[("CNI_CONTAINERID", Some("../x"))]), &[4])
    }),
    ("errors", "an impossible CNI_IFNAME is code 4", |p| {
        for name in ["a/b", "sixteen-letters-", "a b", ".."] {
            refused(&p.with("ADD", &Container::new(), &p.conf, &[("CNI_IFNAME", Some(name))]), &[4])
                .with_context(|| name.to_owned())?;
        }
        Ok(())
    }),
    ("errors", "a missing CNI_NETNS is code 4", |p| {
        refused(&p.with("ADD", &Container::new(), &p.conf, &[("CNI_NETNS", None)]), &[4])
    }),
    ("errors", "a namespace that does not exist is an error object", |p| {
        refused(&p.with("ADD", &Container::new(), &p.conf, &[("CNI_NETNS", Some("/run/netns/none"))]), &[])
    }),
    ("errors", "a version it does not speak is code 1", |p| {
        refused(&p.with("ADD", &Container::new(), &p.conf_in("9.9.9"), &[]), &[1])
    }),
    ("errors", "a configuration that is no object is code 6 or 7", |p| {
        refused(&p.with("ADD", &Container::new(), &json!("text"), &[]), &[6, 7])
    }),
    ("errors", "a network without a name, or with a path in it, is code 7", |p| {
        for name in ["", "a/b"] {
            let mut conf = p.conf.clone();
            conf["name"] = json!(name);
            refused(&p.with("ADD", &Container::new(), &conf, &[]), &[7])
                .with_context(|| format!("{name:?}"))?;
        }
        Ok(())
    }),
    ("STATUS", "succeeds silently when ADD would (1.1.0)", |p| {
        let said = p.with("STATUS", &Container::new(), &p.conf_in("1.1.0"), &[]);
        ensure!(said.ok && said.out.trim().is_empty(), "{}", short(&said));
        Ok(())
    }),
    ("GC", "removes what is not valid and spares what is (1.1.0)", |p| {
        let (keep, gone) = (p.attached()?, p.attached()?);
        let mut conf = p.conf_in("1.1.0");
        conf["cni.dev/valid-attachments"] = json!([{"containerID": keep.0.id, "ifname": "eth0"}]);
        let said = p.with("GC", &Container::new(), &conf, &[]);
        ensure!(said.ok, "{}", short(&said));
        let check = p.check(&keep.0, &keep.1);
        ensure!(check.ok, "the valid one: {}", short(&check));
        // Its address is free again: CHECK of the collected attachment fails in the plugin or its IPAM.
        let check = p.check(&gone.0, &gone.1);
        ensure!(!check.ok, "the other is as it was");
        p.detach(&keep.0)?;
        p.detach(&gone.0)
    }),
];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("cni-conformance: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let mut args = std::env::args().skip(1);
    let (mut plugins, mut config, mut markdown) = (Vec::new(), None, false);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--plugin" => plugins.push(PathBuf::from(value()?)),
            "--config" => {
                let path = value()?;
                let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
                config = Some(serde_json::from_str::<Value>(&text).with_context(|| path)?);
            }
            "--markdown" => markdown = true,
            other => bail!(
                "unknown argument {other:?}; usage: cni-conformance --plugin PATH.. [--config FILE] [--markdown]"
            ),
        }
    }
    ensure!(!plugins.is_empty(), "usage: cni-conformance --plugin PATH.. [--config FILE] [--markdown]");
    let mut columns = Vec::new();
    for path in plugins {
        columns.push(try_plugin(path, config.as_ref())?);
    }
    Ok(print(&columns, markdown))
}

struct Column {
    name: String,
    versions: String,
    verdicts: Vec<Verdict>,
}

fn try_plugin(path: PathBuf, config: Option<&Value>) -> Result<Column> {
    let path = path.canonicalize().with_context(|| path.display().to_string())?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut node = CniNode::without_agent("conf", "10.130.0.0/16");
    if name == "brindle" {
        node.start_agent();
    }
    let conf = match config {
        Some(c) => c.clone(),
        None if name == "brindle" => node.conf(),
        None => known(&name, &node.dir),
    };
    let versions = versions(&node, &path, &conf)?;
    let plugin = Plugin { path, conf, versions, node: &node };
    let verdicts = RULES.iter().map(|(_, what, rule)| {
        if what.ends_with("(1.1.0)") && !plugin.versions.iter().any(|v| v == "1.1.0") {
            return Verdict::TooOld;
        }
        match rule(&plugin) {
            Ok(()) => Verdict::Kept,
            Err(e) => Verdict::Broken(format!("{e:#}")),
        }
    });
    let verdicts = verdicts.collect();
    Ok(Column { name, versions: plugin.versions.join(", "), verdicts })
}

fn versions(node: &CniNode, path: &Path, conf: &Value) -> Result<Vec<String>> {
    let mut command = node.command(path, "VERSION", "", "");
    command.env_remove("CNI_CONTAINERID").env_remove("CNI_NETNS").env_remove("CNI_IFNAME");
    let said = node.run(&mut command, &json!({ "cniVersion": conf["cniVersion"] }));
    ensure!(said.ok, "{}: VERSION: {}", path.display(), short(&said));
    let list = said.json()["supportedVersions"].as_array().cloned().unwrap_or_default();
    Ok(list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect())
}

/// The smallest configuration that works.
fn known(name: &str, dir: &Path) -> Value {
    let ipam = json!({
        "type": "host-local", "dataDir": dir.join("host-local"),
        "ranges": [[{ "subnet": "10.131.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }],
    });
    let mut conf = json!({"cniVersion": "1.0.0", "name": "conformance", "type": name, "ipam": ipam});
    if name == "bridge" {
        conf["bridge"] = json!("cnibr0");
        conf["isGateway"] = json!(true);
    }
    if name == "macvlan" || name == "ipvlan" {
        conf["master"] = json!("eth0");
    }
    conf
}

fn print(columns: &[Column], markdown: bool) -> bool {
    let (mut good, mut notes) = (true, Vec::new());
    let names: Vec<&str> = columns.iter().map(|c| &*c.name).collect();
    if markdown {
        println!("| command | rule | {} |\n| --- | --- |{}", names.join(" | "), " --- |".repeat(names.len()));
    } else {
        println!("{:<8} {:<82} {}", "", "", names.join("  "));
    }
    for (i, (verb, what, _)) in RULES.iter().enumerate() {
        let mut cells = Vec::new();
        for c in columns {
            let cell = match c.verdicts.get(i) {
                Some(Verdict::Kept) => "yes",
                Some(Verdict::Broken(why)) => {
                    good = false;
                    notes.push(format!("{}: {verb} {what}: {why}", c.name));
                    "NO"
                }
                Some(Verdict::TooOld) | None => "-",
            };
            cells.push(cell);
        }
        if markdown {
            println!("| {verb} | {what} | {} |", cells.join(" | "));
        } else {
            let padded: Vec<String> =
                cells.iter().zip(&names).map(|(c, n)| format!("{c:<w$}", w = n.len())).collect();
            println!("{verb:<8} {what:<82} {}", padded.join("  ").trim_end());
        }
    }
    println!();
    let bullet = if markdown { "- " } else { "" };
    columns.iter().for_each(|c| println!("{bullet}{} supports {}", c.name, c.versions));
    notes.iter().for_each(|n| println!("{bullet}{n}"));
    good
}
