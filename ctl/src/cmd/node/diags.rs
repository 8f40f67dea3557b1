//! `node diags`: one archive with everything a report of a fault needs. What a program or the agent does not tell is
//! named in the archive and costs nothing else. No passwords are in it: agents do not tell them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use brindle_config_core::status::{
    AdminRequest,
    bgp::{BgpRequest, RouteTable},
};
use brindle_kernel::exec;
use serde_json::{Value, json};

use super::LIMIT;
use crate::{
    Outcome,
    args::Format,
    cluster::{Line, Where},
    out::{self, say},
};

/// How long one program may take.
const PROGRAM: Duration = Duration::from_secs(20);

/// What is run, each into a file of its own.
const COMMANDS: [(&str, &str); 18] = [
    ("date", "date -u"),
    ("uname", "uname -a"),
    ("ip_link", "ip -details -statistics link"),
    ("ip_addr", "ip addr"),
    ("ip_route", "ip -4 route show table all"),
    ("ip6_route", "ip -6 route show table all"),
    ("ip_rule", "ip rule"),
    ("ip_neigh", "ip neigh"),
    ("iptables", "iptables-save -c"),
    ("ip6tables", "ip6tables-save -c"),
    ("ipset", "ipset list"),
    ("nft", "nft -a list ruleset"),
    ("conntrack_count", "cat /proc/sys/net/netfilter/nf_conntrack_count"),
    ("sysctl_net", "sysctl -a --pattern ^net\\.(ipv4|ipv6)\\.(ip_forward|conf)"),
    ("sockets", "ss -antup"),
    ("processes", "ps axo pid,ppid,rss,etime,args"),
    ("journal", "journalctl -u brindle-node -n 5000 --no-pager"),
    ("modules", "cat /proc/modules"),
];

/// Carries the command out.
pub(super) fn diags(place: &Where, logs: Option<&Path>, into: &Path, format: Format) -> Result<Outcome> {
    let stamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = format!("brindle-diags-{stamp}-{}", std::process::id());
    let dir = into.join(&name);
    fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let made = collect(place, logs, &dir).and_then(|missing| pack(into, &name).map(|file| (file, missing)));
    // The folder is only on the way to the archive.
    let removed = fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()));
    let (file, missing) = made?;
    removed?;
    match format {
        Format::Json => out::json(&json!({ "file": file, "missing": missing })),
        Format::Table => {
            say!("Diags saved to {}", file.display());
            if !missing.is_empty() {
                say!("not in it: {}", missing.join(", "));
            }
        }
    }
    Ok(Outcome::Ok)
}

/// Fills the folder; the names of what could not be had.
fn collect(place: &Where, logs: Option<&Path>, dir: &Path) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    let write = |name: &str, text: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    for (name, line) in COMMANDS {
        let mut words = line.split(' ');
        let program = words.next().unwrap_or_default();
        match exec::run(program, words, None, PROGRAM) {
            Ok(out) => {
                let said = [out.stdout.as_slice(), out.stderr.as_slice()].concat();
                write(name, &[format!("$ {line}\n").as_bytes(), &said].concat())?;
            }
            Err(e) => {
                missing.push(name.to_owned());
                write(name, format!("$ {line}\n{e}\n").as_bytes())?;
            }
        }
    }
    let status: Result<Value, _> = place.one(&AdminRequest::Status, LIMIT);
    match status {
        Ok(status) => write("agent_status.json", format!("{status:#}\n").as_bytes())?,
        Err(e) => {
            missing.push("agent_status.json".into());
            write("agent_status.json", format!("{e}\n").as_bytes())?;
        }
    }
    let rib = BgpRequest::Routes { table: RouteTable::Rib, peer: None, prefix: None };
    for (name, request) in [
        ("agent_bgp_speaker.jsonl", BgpRequest::Speaker),
        ("agent_bgp_neighbors.jsonl", BgpRequest::Neighbors { peer: None }),
        ("agent_bgp_rib.jsonl", rib),
        ("agent_metrics.jsonl", BgpRequest::Metrics),
    ] {
        let mut text = Vec::new();
        let asked = place.lines(&AdminRequest::Bgp(request), LIMIT, false, |line| {
            text.extend_from_slice(line);
            let end = serde_json::from_slice::<brindle_config_core::status::bgp::End>(line).is_ok();
            Ok(if end { Line::End } else { Line::One(()) })
        });
        if let Err(e) = asked {
            missing.push(name.to_owned());
            text.extend_from_slice(format!("{e}\n").as_bytes());
        }
        write(name, &text)?;
    }
    if let Some(logs) = logs {
        let to = dir.join("logs");
        fs::create_dir(&to).with_context(|| format!("cannot make {}", to.display()))?;
        for entry in fs::read_dir(logs).with_context(|| format!("cannot read {}", logs.display()))? {
            let from = entry.with_context(|| format!("cannot read {}", logs.display()))?.path();
            if let (true, Some(name)) = (from.is_file(), from.file_name())
                && let Err(e) = fs::copy(&from, to.join(name))
            {
                missing.push(format!("{}: {e}", from.display()));
            }
        }
    }
    Ok(missing)
}

/// Makes the archive of the folder beside it.
fn pack(into: &Path, name: &str) -> Result<PathBuf> {
    let file = into.join(format!("{name}.tar.gz"));
    let args = ["-C".as_ref(), into.as_os_str(), "-czf".as_ref(), file.as_os_str(), name.as_ref()];
    exec::run("tar", args, None, PROGRAM).and_then(exec::Output::success)?;
    Ok(file)
}
