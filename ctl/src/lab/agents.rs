//! Starting what runs on nodes and routers, and asking it how it is.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use brindle_config_core::status::{AdminRequest, NodeStatus};
use brindle_kernel::{
    exec,
    process::{self, spawn_session},
};

use super::{
    build,
    peers::{Program, bird, frr},
    plan::{LabPlan, NodePlan},
    state::{LabDir, LabState, Process},
    topology::{AgentKind, RouterKind},
};
use crate::cluster::{Silence, Where};

/// How long one question to an agent may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Port at which agents answer each other's machines, on every address of the node.
const ADMIN_PORT: u16 = 9180;

/// Where the programs are: `BRINDLE_BIN_DIR`, else beside this one.
pub(crate) fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("BRINDLE_BIN_DIR").filter(|d| !d.is_empty()) {
        return Ok(dir.into());
    }
    let exe = std::env::current_exe().context("cannot tell where this program is")?;
    Ok(exe.parent().unwrap_or_else(|| Path::new("/")).to_owned())
}

/// A program of ours, which must exist.
pub(crate) fn our_program(name: &str) -> Result<PathBuf> {
    let path = bin_dir()?.join(name);
    if !path.is_file() {
        bail!("{} is missing; build it: cargo build --release --workspace --bins", path.display());
    }
    Ok(path)
}

fn find(program: &Program) -> Result<PathBuf> {
    let on_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).collect::<Vec<_>>()
    };
    for candidate in program.candidates {
        if candidate.starts_with('/') {
            if Path::new(candidate).is_file() {
                return Ok(candidate.into());
            }
        } else if let Some(found) = on_path().into_iter().map(|d| d.join(candidate)).find(|p| p.is_file()) {
            return Ok(found);
        }
    }
    let name = program.candidates.last().copied().unwrap_or_default();
    bail!("{name} is not installed; apt install {}", program.package)
}

/// Checks that everything the plan will start is there, before anything is made.
pub(crate) fn check_programs(plan: &LabPlan, dir: &LabDir) -> Result<()> {
    for node in &plan.nodes {
        match node.agent {
            AgentKind::Brindle => {
                our_program("brindle-node")?;
                our_program("brindle")?;
            }
            AgentKind::Bird => drop(find(&bird::program(plan, node, &dir.node(&node.name)))?),
        }
    }
    if plan.router.kind == RouterKind::Frr {
        for program in frr::programs(plan, &dir.node("router")) {
            find(&program)?;
        }
    }
    Ok(())
}

/// Starts what belongs on a node.
pub(crate) fn start_node(plan: &LabPlan, dir: &LabDir, node: &NodePlan) -> Result<Process> {
    let place = node.name.as_str();
    match node.agent {
        AgentKind::Brindle => {
            let state = dir.node(place);
            fs::create_dir_all(&state).with_context(|| format!("cannot make {}", state.display()))?;
            let any = if plan.families.v4() { "0.0.0.0" } else { "[::]" };
            let mut command = Command::new(our_program("brindle-node")?);
            command
                .args(["run", "--node-name", place])
                .args([
                    "--ip",
                    &if plan.families.v4() { node.address.to_string() } else { "none".to_owned() },
                ])
                .args(["--ip6", &node.address6.map_or_else(|| "none".to_owned(), |a| a.to_string())])
                .args(["--state-dir".as_ref(), state.as_os_str()])
                .args(["--admin-listen", &format!("{any}:{ADMIN_PORT}"), "--admin-token-file"])
                .arg(dir.admin_token())
                .args(["--datastore", &dir.store_url(), "--ipip-carrier", node.ipip_carrier.as_str()]);
            spawn(dir, &node.namespace, place, "brindle-node", command)
        }
        AgentKind::Bird => {
            build::open(&node.namespace)?
                .run(|| brindle_kernel::sysctl::set("net/ipv4/ip_forward", "1"))??;
            start(dir, &node.namespace, place, &bird::program(plan, node, &dir.node(place)))
        }
    }
}

/// Starts what belongs on the router.
pub(crate) fn start_router(plan: &LabPlan, dir: &LabDir) -> Result<Vec<Process>> {
    if plan.router.kind == RouterKind::Plain {
        return Ok(Vec::new());
    }
    let mut started = Vec::new();
    for program in frr::programs(plan, &dir.node("router")) {
        started.push(start(dir, &plan.router.namespace, "router", &program)?);
    }
    Ok(started)
}

fn start(dir: &LabDir, namespace: &str, place: &str, program: &Program) -> Result<Process> {
    let path = find(program)?;
    for (file, text) in &program.files {
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        if let Some(owner) = program.owner {
            hand_over(file, owner)?;
        }
    }
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    let mut command = Command::new(&path);
    command.args(&program.args);
    spawn(dir, namespace, place, &name, command)
}

/// Gives a file and its directory to a user of the machine.
fn hand_over(file: &Path, owner: &str) -> Result<()> {
    let passwd = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let ids = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next() == Some(owner);
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        found.then_some((uid, gid))
    });
    let Some((uid, gid)) = ids else { bail!("there is no user {owner}; apt install {owner}") };
    for path in [Some(file), file.parent()].into_iter().flatten() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))
            .with_context(|| format!("cannot give {} to {owner}", path.display()))?;
    }
    Ok(())
}

/// Starts a program for good in a namespace, with its words in the place's log.
fn spawn(dir: &LabDir, namespace: &str, place: &str, name: &str, mut command: Command) -> Result<Process> {
    let log = dir.log(place);
    let file = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    let errors = file.try_clone().context("cannot share the log")?;
    // A lab must not depend on what happens to be set where it is started.
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(file).stderr(errors);
    for (key, value) in std::env::vars_os() {
        let known = key
            .to_str()
            .is_some_and(|k| matches!(k, "PATH" | "HOME" | "LANG" | "RUST_LOG" | "RUST_BACKTRACE"));
        if known {
            command.env(key, value);
        }
    }
    let child = build::open(namespace)?
        .run(move || spawn_session(&mut command))?
        .with_context(|| format!("cannot start {name} on {place}"))?;
    let pid = child.id();
    let Some(start_time) = process::start_time(pid) else {
        bail!("{name} on {place} ended at once; its words are in {}", log.display());
    };
    Ok(Process { place: place.to_owned(), program: name.to_owned(), pid, start_time })
}

/// Whether a process of the lab lives.
pub(crate) fn alive(p: &Process) -> bool {
    process::start_time(p.pid) == Some(p.start_time)
}

/// What a node says of itself.
#[derive(Clone, Debug)]
pub(crate) enum View {
    /// No process.
    Dead,
    /// A process that does not answer, with the reason.
    Silent(String),
    Brindle(Box<NodeStatus>),
    /// Sessions of BIRD: name of the peer, established.
    Bird(Vec<(String, bool)>),
}

/// Asks one node.
pub(crate) fn view(state: &LabState, dir: &LabDir, node: &NodePlan) -> View {
    if !state.processes.iter().any(|p| p.place == node.name && alive(p)) {
        return View::Dead;
    }
    match node.agent {
        AgentKind::Brindle => match status(dir, &node.name) {
            Ok(status) => View::Brindle(Box::new(status)),
            Err(e) => View::Silent(e.to_string()),
        },
        AgentKind::Bird => bird_sessions(dir, node),
    }
}

fn status(dir: &LabDir, node: &str) -> Result<NodeStatus, Silence> {
    Where::Socket(dir.admin_socket(node)).one(&AdminRequest::Status, PATIENCE)
}

/// Tells the BIRD nodes of a lab that has grown who their neighbors are now.
pub(crate) fn reconfigure_birds(plan: &LabPlan, dir: &LabDir) -> Result<()> {
    for node in plan.nodes.iter().filter(|n| n.agent == AgentKind::Bird) {
        let place = dir.node(&node.name);
        for (file, text) in bird::program(plan, node, &place).files {
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        // A dead BIRD reads its file when it is started again.
        if place.join("bird.ctl").exists() {
            birdc(&place, false, "configure").with_context(|| format!("BIRD on {}", node.name))?;
        }
    }
    Ok(())
}

/// Asks BIRD; without `-r` it may be told things.
fn birdc(place: &Path, read_only: bool, words: &str) -> Result<String> {
    let mut command = Command::new("birdc");
    command.args(read_only.then_some("-r")).arg("-s").arg(place.join("bird.ctl")).args(words.split(' '));
    command.env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin");
    let out = exec::run_command(&mut command, None, PATIENCE).and_then(exec::Output::success)?;
    Ok(out.text())
}

fn bird_sessions(dir: &LabDir, node: &NodePlan) -> View {
    match birdc(&dir.node(&node.name), true, "show protocols") {
        Ok(text) => View::Bird(bird::sessions(&text)),
        Err(e) => View::Silent(format!("{e:#}")),
    }
}

/// The last lines of a place's log, for error messages.
pub(crate) fn last_words(dir: &LabDir, place: &str) -> String {
    let text = fs::read_to_string(dir.log(place)).unwrap_or_default();
    text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("(its log is empty)").trim().to_owned()
}
