//! `cluster diags`: a folder with the resources of the datastore and the answers of every agent, packed into one archive. A
//! node that does not answer is a row with its reason, and so is whatever else could not be had; the rest is there.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use brindle_config::yaml;
use brindle_config_core::{
    Kind,
    status::{
        AdminRequest, NodeStatus,
        bgp::{BgpRequest, End, RouteTable},
    },
    store::Store,
    suggest,
    time::Now,
};
use brindle_kernel::exec;
use serde_json::{Value, json};

use super::{DiagsArgs, secrets};
use crate::{
    Outcome,
    args::Format,
    cluster::{self, Agent, Cluster, LOCAL_SOCKET, Line, Silence, Source, Where},
    cmd::resource::block_on,
    lab::{state::LabDir, wait::parallel},
    out::{self, Table, put, say},
};

/// How long one program may take.
const PROGRAM: Duration = Duration::from_secs(60);

/// The folder being filled.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn write(&self, name: &str, text: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// What became of one node.
struct Told {
    node: String,
    status: Result<NodeStatus, Silence>,
    /// What of it could not be had, each with the reason.
    missing: Vec<String>,
}

/// Carries the command out.
pub(super) fn diags(args: &DiagsArgs, format: Format) -> Result<Outcome> {
    let cluster = cluster::all(&args.reach)?;
    focus_exists(&cluster, &args.focus_nodes)?;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let stamp: String =
        Now::from_secs(since_1970.as_secs()).rfc3339().chars().filter(char::is_ascii_digit).collect();
    let name = format!("brindle-diagnostics-{stamp}");
    let folder = Folder { path: args.output_dir.join(&name) };
    // What a cluster is made of is nobody else's business.
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&folder.path)
        .with_context(|| format!("cannot make {}", folder.path.display()))?;
    let made = collect(args, &cluster, &folder)
        .and_then(|(told, missing)| Ok((pack(&args.output_dir, &name)?, told, missing)));
    if !args.skip_temp_dir_cleanup {
        fs::remove_dir_all(&folder.path)
            .with_context(|| format!("cannot remove {}", folder.path.display()))?;
    }
    let (file, told, missing) = made?;
    let silent = told.iter().any(|t| t.status.is_err());
    match format {
        Format::Json => {
            let nodes: Vec<Value> = told.iter().map(in_json).collect();
            out::json(&json!({"file": file, "nodes": nodes, "missing": missing}));
        }
        Format::Table => {
            put!("{}", table(&told));
            say!("Diags saved to {}", file.display());
            missing.iter().for_each(|m| say!("not in it: {m}"));
        }
    }
    Ok(if silent || !missing.is_empty() { Outcome::Degraded } else { Outcome::Ok })
}

fn focus_exists(cluster: &Cluster, focus: &[String]) -> Result<()> {
    let names: Vec<&str> = cluster.agents.iter().map(|a| a.at.name.as_str()).collect();
    for wanted in focus {
        if !names.contains(&wanted.as_str()) {
            let meant = suggest::closest(wanted, names.iter().copied());
            let hint = meant.map(|m| format!("; did you mean {m}?")).unwrap_or_default();
            bail!("{} has no node {wanted:?}, only {}{hint}", cluster.source.name(), names.join(", "));
        }
    }
    Ok(())
}

/// Everything; what is missing besides what single nodes lack.
fn collect(args: &DiagsArgs, cluster: &Cluster, folder: &Folder) -> Result<(Vec<Told>, Vec<String>)> {
    let mut missing = Vec::new();
    match &cluster.store {
        None => missing.push("resources: no datastore was reached".to_owned()),
        Some(store) => block_on(resources(&**store, folder, &mut missing))?,
    }
    let focus: BTreeSet<&str> = args.focus_nodes.iter().map(String::as_str).collect();
    let asked = parallel(&cluster.agents, usize::from(args.max_parallelism), |agent| {
        let whole = focus.is_empty() || focus.contains(agent.at.name.as_str());
        node(agent, whole, args.reach.timeout, folder)
    });
    let mut told = asked.into_iter().collect::<Result<Vec<_>>>()?;
    logs(args, cluster, &focus, folder, &mut told)?;
    for t in &told {
        missing.extend(t.missing.iter().map(|m| format!("node {}: {m}", t.node)));
    }
    let nodes: Vec<Value> = told.iter().map(in_json).collect();
    let about = json!({"source": cluster.source.name(), "brindlectl": env!("CARGO_PKG_VERSION"), "nodes": nodes,
        "missing": missing});
    folder.write("cluster.json", format!("{about:#}\n").as_bytes())?;
    folder.write("nodes.txt", table(&told).as_bytes())?;
    Ok((told, missing))
}

fn in_json(t: &Told) -> Value {
    match &t.status {
        Ok(s) => json!({"node": t.node, "version": s.version, "ready": s.ready, "reasons": s.reasons}),
        Err(e) => json!({"node": t.node, "error": e.to_string()}),
    }
}

fn table(told: &[Told]) -> String {
    let mut table = Table::new(&["NODE", "VERSION", "STATE"]);
    for t in told {
        let (version, state) = match &t.status {
            Ok(s) => (s.version.clone(), if s.ready { "ready".into() } else { s.reasons.join("; ") }),
            Err(e) => ("-".into(), format!("NO ANSWER: {e}")),
        };
        table.row([t.node.clone(), version, state]);
    }
    table.render()
}

/// A file for each kind there is something of, without secrets.
async fn resources(store: &dyn Store, folder: &Folder, missing: &mut Vec<String>) -> Result<()> {
    for kind in Kind::ALL {
        let entries = match store.list(&[kind]).await {
            Ok(listing) => listing.entries,
            Err(e) => {
                missing.push(format!("{}: {e}", kind.plural()));
                continue;
            }
        };
        if entries.is_empty() {
            continue;
        }
        let values = entries.into_iter().map(|e| {
            let mut value = std::sync::Arc::unwrap_or_clone(e.value);
            secrets::blank(&mut value);
            value
        });
        let text = yaml::to_yaml_documents(&values.collect::<Vec<_>>());
        folder.write(&format!("resources/{}.yaml", kind.plural()), text.as_bytes())?;
    }
    Ok(())
}

/// The answers of one agent. `whole`: all of them.
fn node(agent: &Agent, whole: bool, limit: Duration, folder: &Folder) -> Result<Told> {
    let name = &agent.at.name;
    let mut told = Told { node: name.clone(), status: agent.status(limit), missing: Vec::new() };
    let status = match &told.status {
        Ok(status) => status,
        Err(silence) => {
            folder.write(&format!("nodes/{name}/no-answer.txt"), format!("{silence}\n").as_bytes())?;
            return Ok(told);
        }
    };
    let status = serde_json::to_value(status).context("a status is no JSON")?;
    folder.write(&format!("nodes/{name}/status.json"), format!("{status:#}\n").as_bytes())?;
    for (file, request) in
        [("health.json", AdminRequest::Health), ("encapsulation.json", AdminRequest::Routes)]
    {
        match agent.ask::<Value>(&request, limit) {
            Ok(answer) => {
                folder.write(&format!("nodes/{name}/{file}"), format!("{answer:#}\n").as_bytes())?
            }
            Err(e) => told.missing.push(format!("{file}: {e}")),
        }
    }
    if !whole {
        return Ok(told);
    }
    let rib = BgpRequest::Routes { table: RouteTable::Rib, peer: None, prefix: None };
    for (file, request) in [
        ("bgp-speaker.jsonl", BgpRequest::Speaker),
        ("bgp-neighbors.jsonl", BgpRequest::Neighbors { peer: None }),
        ("bgp-services.jsonl", BgpRequest::Services),
        ("bgp-rib.jsonl", rib),
        ("bgp-metrics.jsonl", BgpRequest::Metrics),
    ] {
        let mut text = Vec::new();
        let asked = agent.place.lines(&AdminRequest::Bgp(request), limit, false, |line| {
            text.extend_from_slice(line);
            let end = serde_json::from_slice::<End>(line).is_ok();
            Ok(if end { Line::End } else { Line::One(()) })
        });
        if let Err(e) = asked {
            told.missing.push(format!("{file}: {e}"));
        }
        folder.write(&format!("nodes/{name}/{file}"), &text)?;
    }
    Ok(told)
}

/// Where the log of an agent can be had from here.
enum Log {
    File(PathBuf),
    /// Of systemd on this machine.
    Journal,
    /// Of a pod; how kubectl reaches the cluster.
    Pod(Vec<String>),
    Nowhere,
}

fn log_of(cluster: &Cluster, agent: &Agent) -> Log {
    let own = matches!(&agent.place, Where::Socket(path) if path == Path::new(LOCAL_SOCKET));
    match &cluster.source {
        Source::Lab(lab) => match LabDir::of(lab) {
            Ok(dir) => Log::File(dir.log(&agent.at.name)),
            Err(_) => Log::Nowhere,
        },
        Source::Store(url) if cluster.source.kubernetes() => {
            let place = url.trim_start_matches("kubernetes:");
            let (file, context) = place.split_once("?context=").unwrap_or((place, ""));
            let mut flags = vec!["-n".to_owned(), "kube-system".to_owned()];
            if file.contains("://") {
                flags.push(format!("--server={file}"));
            } else if !file.is_empty() {
                flags.push(format!("--kubeconfig={file}"));
            }
            if !context.is_empty() {
                flags.push(format!("--context={context}"));
            }
            Log::Pod(flags)
        }
        _ if own => Log::Journal,
        _ => Log::Nowhere,
    }
}

const LINES: usize = 50_000;

fn journal(since: Option<Duration>) -> Result<Vec<u8>, String> {
    let mut args = vec!["-u".to_owned(), "brindle-node".into(), "--no-pager".into(), format!("-n{LINES}")];
    args.extend(since.map(|s| format!("--since=-{}s", s.as_secs().max(1))));
    run("journalctl", &args)
}

/// The pod is asked for by name: kubectl takes a node for pods alone, not for logs.
fn of_pod(flags: &[String], node: &str, since: Option<Duration>) -> Result<Vec<u8>, String> {
    let mut find = flags.to_vec();
    find.extend(["get", "pod", "-o", "name", "-l", "k8s-app=brindle-node"].map(str::to_owned));
    find.push(format!("--field-selector=spec.nodeName={node}"));
    let found = String::from_utf8_lossy(&run("kubectl", &find)?).trim().to_owned();
    if found.is_empty() {
        return Err("no pod k8s-app=brindle-node in kube-system is on that node".into());
    }
    let mut logs = flags.to_vec();
    logs.extend(["logs".to_owned(), "--all-containers".into(), format!("--tail={LINES}")]);
    logs.extend(since.map(|s| format!("--since={}s", s.as_secs().max(1))));
    logs.extend(found.lines().take(1).map(str::to_owned));
    run("kubectl", &logs)
}

fn run(program: &str, args: &[String]) -> Result<Vec<u8>, String> {
    let out = exec::run(program, args, None, PROGRAM).and_then(exec::Output::success);
    out.map(|o| o.stdout).map_err(|e| e.to_string())
}

/// Logs of as many nodes as asked for.
fn logs(
    args: &DiagsArgs,
    cluster: &Cluster,
    focus: &BTreeSet<&str>,
    folder: &Folder,
    told: &mut [Told],
) -> Result<()> {
    let mut order: Vec<(&Agent, &mut Told)> = cluster.agents.iter().zip(told).collect();
    order.sort_by_key(|(agent, _)| !focus.contains(agent.at.name.as_str()));
    for (agent, told) in order.into_iter().take(args.max_logs) {
        let name = &agent.at.name;
        let text = match log_of(cluster, agent) {
            Log::Nowhere => Err("it is on that node: brindlectl node diags there".to_owned()),
            Log::File(path) => fs::read(&path).map_err(|e| format!("{}: {e}", path.display())),
            Log::Journal => journal(args.since),
            Log::Pod(flags) => of_pod(&flags, name, args.since),
        };
        match text {
            Ok(text) => folder.write(&format!("nodes/{name}/agent.log"), &text)?,
            Err(e) => told.missing.push(format!("agent.log: {e}")),
        }
    }
    Ok(())
}

/// Makes the archive of the folder beside it; for its owner's eyes.
fn pack(into: &Path, name: &str) -> Result<PathBuf> {
    let file = into.join(format!("{name}.tar.gz"));
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&file)
        .with_context(|| format!("cannot write {}", file.display()))?;
    let args = ["-C".as_ref(), into.as_os_str(), "-czf".as_ref(), file.as_os_str(), name.as_ref()];
    exec::run("tar", args, None, PROGRAM).and_then(exec::Output::success)?;
    Ok(file)
}
