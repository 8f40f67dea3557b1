//! From environment and standard input to standard output and exit code. One file per command.

mod add;
mod calico;
mod check;
mod del;
mod delegate;
mod ipam;
mod loopback;

use std::{
    io::{Read, Write},
    os::unix::fs::FileTypeExt,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use brindle_kernel::netns::NetNs;
use delegate::{Delegate, Given};
use serde::Serialize;
use serde_json::Value;

use crate::{
    aside,
    client::Agent,
    conf::{self, Conf, MAX_INPUT, Version},
    env::{self, Command, Lookup},
    error::{CniError, code},
    proto::{Attachment, Call, PodRef, Reply},
    result,
};

/// How long an ADD or CHECK may wait for the agent: longer than the agent itself takes before it gives up, shorter
/// than kubelet's two minutes.
const PATIENCE: Duration = Duration::from_secs(70);
/// A DEL rather goes into the journal than wait.
const DEL_PATIENCE: Duration = Duration::from_secs(20);

/// EINVAL.
const INVALID: i32 = 22;

/// Which of the programs this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `brindle`: interface and addresses.
    Interface,
    /// `brindle-ipam`: addresses alone.
    Ipam,
    /// `loopback`: the pod's `lo`, nothing else.
    Loopback,
    /// `calico`: what Calico attached is deleted, nothing is attached.
    Calico,
    /// `calico-ipam`: the same of addresses alone.
    CalicoIpam,
}

impl Program {
    /// Which one a path calls: `brindle` unless its name is another's.
    pub fn called(path: &Path) -> Self {
        let all = [Self::Ipam, Self::Loopback, Self::Calico, Self::CalicoIpam];
        all.into_iter().find(|p| path.file_name().is_some_and(|n| n == p.name())).unwrap_or(Self::Interface)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Interface => "brindle",
            Self::Ipam => "brindle-ipam",
            Self::Loopback => "loopback",
            Self::Calico => "calico",
            Self::CalicoIpam => "calico-ipam",
        }
    }
}

/// Runs the program with the process's own environment and streams.
pub fn main(program: Program) -> ExitCode {
    // A thread that visits the pod's namespace needs no memory of its own.
    brindle_kernel::memory::limit_arenas(1);
    if let Some(argument) = std::env::args().nth(1) {
        return about(program, &argument);
    }
    let mut input = Vec::new();
    let read = std::io::stdin().take(MAX_INPUT as u64 + 1).read_to_end(&mut input);
    let lookup = |name: &str| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned());
    let outcome = match read {
        Err(e) => Err(CniError::new(code::IO, format!("cannot read standard input: {e}"))),
        Ok(n) if n > MAX_INPUT => {
            Err(CniError::new(code::DECODE, format!("more than {MAX_INPUT} bytes on standard input")))
        }
        Ok(_) => run(program, &lookup, &input),
    };
    let (output, status) = match outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (value, ExitCode::SUCCESS),
        Err(e) => {
            aside::say(format_args!("{}: {e}", program.name()));
            (result::error(&conf::version_hint(&input), &e), ExitCode::FAILURE)
        }
    };
    // In one piece: a line at a time would wake whoever reads it for each.
    let text = format!("{output:#}\n");
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => status,
        Err(e) => {
            aside::say(format_args!("{}: cannot write to standard output: {e}", program.name()));
            ExitCode::FAILURE
        }
    }
}

/// A person at a terminal.
fn about(program: Program, argument: &str) -> ExitCode {
    let (name, version) = (program.name(), env!("CARGO_PKG_VERSION"));
    let (text, status) = match argument {
        "--version" | "-V" | "-v" => (format!("{name} {version}"), ExitCode::SUCCESS),
        "--help" | "-h" => (
            format!(
                "{name} {version}: a CNI plugin. Container runtimes start it with CNI_COMMAND and a network\n\
                 configuration on standard input; versions {}.",
                conf::VERSIONS.join(", ")
            ),
            ExitCode::SUCCESS,
        ),
        other => {
            aside::say(format_args!(
                "{name}: unknown argument {other:?}; it takes none but --version and --help"
            ));
            return ExitCode::from(2);
        }
    };
    let _ = writeln!(std::io::stdout(), "{text}");
    status
}

/// Carries out the command; what to print, if anything.
pub fn run(program: Program, lookup: Lookup<'_>, input: &[u8]) -> Result<Option<Value>, CniError> {
    let command = env::command(lookup)?;
    if command == Command::Version {
        return Ok(Some(result::versions(&conf::version_hint(input))));
    }
    let Some(program) = calico::instead(program, command)? else { return Ok(None) };
    let conf = Conf::parse(input, command)?;
    for warning in &conf.warnings {
        aside::say(format_args!("{}: {warning}", program.name()));
    }
    let needs = match command {
        Command::Check => Version::V0_4_0,
        Command::Status | Command::Gc => Version::V1_1_0,
        _ => Version::V0_3_1,
    };
    if conf.version < needs {
        let what = format!(
            "{command:?} needs cniVersion {} or later, not {}",
            needs.as_str(),
            conf.version.as_str()
        );
        return Err(CniError::new(code::VERSION, what));
    }
    match command {
        Command::Status | Command::Gc if program == Program::Loopback => return Ok(None),
        Command::Status => return status(&conf, input).map(|()| None),
        Command::Gc => return gc(&conf, input).map(|()| None),
        _ => {}
    }
    let runtime = env::Attachment::read(lookup, command)?;
    if program == Program::Loopback {
        return loopback::run(&conf, &runtime, command)?.map(json).transpose();
    }
    let delegate = delegate(&conf, input, command != Command::Del)?;
    let call = Invocation { attachment: attachment(&conf, &runtime), conf, runtime, delegate };
    match (program, command) {
        (Program::Interface, Command::Add) => add::add(&call).and_then(json).map(Some),
        (Program::Interface, Command::Del) => del::del(&call).map(|()| None),
        (Program::Interface, _) => check::check(&call).map(|()| None),
        (Program::Ipam, Command::Add) => ipam::add(&call).and_then(json).map(Some),
        (Program::Ipam, Command::Del) => ipam::del(&call).map(|()| None),
        (_, _) => ipam::check(&call).map(|()| None),
    }
}

/// The other IPAM plugin, with what the agent knows put into its configuration. `must`: without that it cannot be called;
/// otherwise any subnet will do, for it gives back by container.
fn delegate(conf: &Conf, input: &[u8], must: bool) -> Result<Option<Delegate>, CniError> {
    let Some(kind) = conf.delegate.as_deref() else { return Ok(None) };
    if !conf.pod_cidr {
        return Ok(Some(Delegate::new(kind, input)));
    }
    let ask = || -> Result<Vec<ipnet::IpNet>, CniError> {
        let mut agent = Agent::connect(&conf.sockets, DEL_PATIENCE).map_err(|e| e.error())?;
        match agent.call(Call::PodCidrs)? {
            Reply::PodCidrs { cidrs } => Ok(cidrs),
            other => Err(Agent::unexpected(&other)),
        }
    };
    let cidrs = match ask() {
        Err(e) if must => return Err(e),
        known => known.unwrap_or_default(),
    };
    let input = delegate::with_pod_cidrs(input, &cidrs, must)?;
    Ok(Some(Delegate::new(kind, &input)))
}

fn json(answer: impl Serialize) -> Result<Value, CniError> {
    serde_json::to_value(answer).map_err(|e| CniError::new(code::DECODE, e.to_string()))
}

/// One call about one attachment.
pub(crate) struct Invocation {
    pub conf: Conf,
    pub runtime: env::Attachment,
    pub attachment: Attachment,
    /// Where the addresses come from, when not from the agent.
    delegate: Option<Delegate>,
}

fn attachment(conf: &Conf, runtime: &env::Attachment) -> Attachment {
    let pod = runtime.args.pod_name.as_ref().map(|name| PodRef {
        namespace: runtime.args.pod_namespace.clone().unwrap_or_else(|| "default".to_owned()),
        name: name.clone(),
        uid: runtime.args.pod_uid.clone().unwrap_or_default(),
    });
    Attachment {
        container_id: runtime.container_id.clone(),
        ifname: runtime.ifname.clone(),
        netns: runtime.netns.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
        netns_id: String::new(),
        network: conf.name.clone(),
        pod,
    }
}

impl Invocation {
    /// Connects, and refuses an agent of another node than the configuration names.
    fn agent(&self) -> Result<Agent, CniError> {
        let mut agent = Agent::connect(&self.conf.sockets, PATIENCE).map_err(|e| e.error())?;
        right_node(&self.conf, &mut agent)?;
        Ok(agent)
    }

    /// Whether the addresses are none of Brindle's pools.
    fn foreign(&self) -> bool {
        self.delegate.is_some() || !self.conf.unmanaged.is_empty()
    }

    /// What comes from elsewhere.
    fn given(&self) -> Result<Given, CniError> {
        match &self.delegate {
            Some(delegate) => delegate.add(),
            None => {
                let addresses = self.conf.unmanaged.iter().map(|ip| (*ip).into()).collect();
                Ok(Given { addresses, ..Given::default() })
            }
        }
    }

    /// The request for addresses.
    fn wish(&self) -> (Vec<String>, Vec<String>, u8, u8, Vec<std::net::IpAddr>) {
        let mut ips = self.conf.ips.clone();
        // Meta-plugins say the same at both places.
        ips.extend(self.runtime.args.ips.iter().filter(|ip| !self.conf.ips.contains(ip)));
        (
            self.conf.ipv4_pools.clone(),
            self.conf.ipv6_pools.clone(),
            u8::from(self.conf.ipv4),
            u8::from(self.conf.ipv6),
            ips,
        )
    }

    /// Opens the pod's namespace.
    fn pod(&self) -> Result<NetNs, CniError> {
        let path = self.runtime.netns.as_deref().ok_or_else(|| CniError::env("CNI_NETNS is missing"))?;
        open_netns(path)
    }
}

/// As [`open_pod`], and refuses a namespace of another kind before anything is done: one thread's visit shows it.
fn open_netns(path: &Path) -> Result<NetNs, CniError> {
    let pod = open_pod(path)?;
    match pod.run(|| ()) {
        Err(e) if e.errno() == INVALID => Err(CniError::env(format!(
            "CNI_NETNS {} is a namespace of another kind, not a network namespace",
            path.display()
        ))
        .hint("give the network namespace, like /run/netns/NAME or /proc/PID/ns/net")),
        // What else is wrong is said by what comes next.
        _ => Ok(pod),
    }
}

/// `/proc/PID/ns/net` or `/proc/PID/task/TID/ns/net`, the kernel's own links (what kind they are is seen when they are entered). Others below /proc lead anywhere
/// (`/proc/self/root`).
fn is_of_process(path: &Path) -> bool {
    let parts: Vec<&str> = path.to_str().unwrap_or_default().split('/').collect();
    matches!(&parts[..], ["", "proc", _, "ns", _] | ["", "proc", _, "task", _, "ns", _])
}

/// Opens a pod's namespace; the host's own is refused, and so is a path that leads elsewhere.
fn open_pod(path: &Path) -> Result<NetNs, CniError> {
    let shown = path.display();
    let kind = std::fs::symlink_metadata(path).map(|m| m.file_type());
    if kind.as_ref().is_ok_and(|k| k.is_symlink()) && !is_of_process(path) {
        return Err(CniError::env(format!("CNI_NETNS {shown} is a symbolic link"))
            .hint("give the namespace itself, like /run/netns/NAME or /proc/PID/ns/net"));
    }
    if kind.is_ok_and(|k| k.is_fifo() || k.is_socket() || k.is_char_device() || k.is_block_device()) {
        return Err(CniError::env(format!("CNI_NETNS {shown} is not a network namespace")));
    }
    let pod = NetNs::open(path).map_err(|e| {
        let (code, hint) = if e.is_not_found() {
            (code::CONTAINER, "the sandbox is gone; DEL it and make it anew")
        } else {
            (code::ENVIRONMENT, "CNI_NETNS must name a network namespace this process may open")
        };
        CniError::new(code, format!("CNI_NETNS: {e}")).hint(hint)
    })?;
    let own = NetNs::current().map_err(|e| CniError::new(code::IO, e.to_string()))?;
    if own == pod {
        return Err(CniError::env(format!("CNI_NETNS {shown} is the network namespace of the host itself"))
            .hint("pods with hostNetwork get no interface"));
    }
    Ok(pod)
}

/// A configuration meant for another node would have this one's endpoints looked for there. One that names no node costs no
/// question.
fn right_node(conf: &Conf, agent: &mut Agent) -> Result<(), CniError> {
    let Some(named) = &conf.nodename else { return Ok(()) };
    match agent.call(Call::Ping)? {
        Reply::Pong { node, .. } if node == *named => Ok(()),
        Reply::Pong { node, .. } => Err(CniError::config(format!(
            "nodename: the configuration is for node {named:?}, the agent here is that of {node:?}"
        ))
        .hint("correct nodename in the network configuration, or leave it out: the agent knows its name")),
        other => Err(Agent::unexpected(&other)),
    }
}

fn status(conf: &Conf, input: &[u8]) -> Result<(), CniError> {
    let down = |e: CniError| {
        let code = if e.code == code::LIMITED { code::LIMITED } else { code::NOT_AVAILABLE };
        CniError { code, ..e }
    };
    let mut agent = Agent::connect(&conf.sockets, Duration::from_secs(5)).map_err(|e| down(e.error()))?;
    right_node(conf, &mut agent).map_err(down)?;
    let asked = Call::Status {
        given: conf.delegate.is_some(),
        pools4: conf.ipv4_pools.clone(),
        pools6: conf.ipv6_pools.clone(),
        num4: conf.ipv4.into(),
        num6: conf.ipv6.into(),
    };
    match agent.call(asked).map_err(|e| down(e.into()))? {
        // As an ADD has it: without a pod CIDR that its configuration takes it would be refused.
        Reply::Pong { .. } => {
            delegate(conf, input, true).map_err(down)?.map_or(Ok(()), |other| other.forward("STATUS"))
        }
        other => Err(Agent::unexpected(&other)),
    }
}

/// What is amiss with the pod CIDRs of a node for an ADD of this plugin's configuration; none where it takes no more than these.
pub fn lacks_pod_cidr(plugin: &Value, cidrs: &[ipnet::IpNet]) -> Option<String> {
    plugin.pointer("/ipam/type").and_then(Value::as_str).filter(|kind| conf::is_delegate(kind))?;
    delegate::with_pod_cidrs(plugin.to_string().as_bytes(), cidrs, true).err().map(|e| e.message)
}

fn gc(conf: &Conf, input: &[u8]) -> Result<(), CniError> {
    let Some(valid) = conf.valid_attachments.clone() else {
        return Err(CniError::config("cni.dev/valid-attachments: is missing"));
    };
    let nothing_valid = valid.is_empty();
    let (mut right, collected) = (conf.nodename.is_none(), Agent::connect(&conf.sockets, PATIENCE));
    let collected = collected.map_err(|e| e.error()).and_then(|mut agent| {
        // Another node's list of what is valid would have this one's pods collected.
        right_node(conf, &mut agent)?;
        right = true;
        match agent.call(Call::Gc { network: conf.name.clone(), valid, dry_run: conf.gc_dry_run })? {
            Reply::Deleted => Ok(()),
            other => Err(Agent::unexpected(&other)),
        }
    });
    // The other plugin's GC is not to wait for what failed here. But an empty list is believed by nobody before the agent has
    // compared it with the kernel.
    if conf.gc_dry_run || !right || (nothing_valid && collected.is_err()) {
        return collected;
    }
    let other = delegate(conf, input, false);
    let forwarded = other.and_then(|other| other.map_or(Ok(()), |o| o.forward("GC")));
    if let (Err(_), Err(e)) = (&collected, &forwarded) {
        aside::say(format_args!("brindle: {e}"));
    }
    collected.and(forwarded)
}
