//! What the arguments ask for, with every default decided and every file read: the second stage after `args`.

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result, bail};
use brindle_config::yaml::{Origin, read_one_with_origin};
use brindle_config_core::pool::EncapMode;

use crate::{
    args::{AddCommand, Args, BreakCommand, Command, Families, Format, Ipip, LabCommand},
    cmd::{
        ipam::args::{IpamArgs, IpamCommand},
        resource::{self, Verb, form::Form},
    },
    lab::{
        state::Break,
        topology::{IpFamilies, Topology},
    },
};

/// Name of the lab when nobody gives one.
pub(crate) const DEFAULT_LAB: &str = "lab";

/// A request, ready to be carried out.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) output: Format,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    Version(crate::cmd::version::VersionArgs),
    Status(Box<crate::cmd::status::args::StatusArgs>),
    Route(Box<crate::cmd::route::args::RouteArgs>),
    Datastore(Box<crate::cmd::datastore::DatastoreArgs>),
    Completion(crate::cmd::documents::CompletionArgs),
    Man(crate::cmd::documents::ManArgs),
    Reference,
    Node(Box<crate::cmd::node::NodeArgs>),
    Cluster(Box<crate::cmd::cluster::ClusterCommandArgs>),
    Bgp(crate::cmd::bgp::BgpArgs),
    LabList,
    Resource(Box<resource::Request>),
    Ipam(crate::cmd::ipam::args::IpamArgs),
    Policy(crate::cmd::policy::args::PolicyArgs),
    Lab { name: String, what: LabWhat },
}

#[derive(Debug)]
pub(crate) enum LabWhat {
    Up {
        topology: Topology,
        /// The file it was read from.
        origin: Option<Origin>,
    },
    Status,
    Ping {
        from: Option<String>,
        to: Option<String>,
    },
    Exec {
        target: String,
        argv: Vec<String>,
    },
    Break(Break),
    Heal,
    AddNode {
        name: Option<String>,
        segment: Option<String>,
        address: Option<Ipv4Addr>,
        pods: u16,
    },
    Down,
}

/// Reads meaning into arguments.
pub(crate) fn understand(mut args: Args) -> Result<Request> {
    let get = matches!(args.command, Command::Get(_));
    let output = match (&args.output, &mut args.command) {
        // calicoctl's `ipam check -o FILE`.
        (Form::Other(file, _), Command::Ipam(IpamArgs { command: IpamCommand::Check(check) }))
            if check.report.is_none() =>
        {
            check.report = Some(file.into());
            Format::Table
        }
        (Form::Other(_, why), _) => bail!("{why}"),
        (Form::Json, _) => Format::Json,
        (Form::Table, _) => Format::Table,
        _ if get => Format::Table,
        _ => bail!("this command answers with -o table or -o json; the other forms are those of get"),
    };
    let resource = |request| What::Resource(Box::new(request));
    let what = match args.command {
        Command::Ipam(a) => What::Ipam(a),
        Command::Policy(a) => What::Policy(a),
        Command::Get(a) => resource(resource::Request::Get(a, args.output)),
        Command::Apply(a) => resource(resource::Request::Write(Verb::Apply, a)),
        Command::Create(a) => resource(resource::Request::Write(Verb::Create, a)),
        Command::Replace(a) => resource(resource::Request::Write(Verb::Replace, a)),
        Command::Patch(a) => resource(resource::Request::Patch(a)),
        Command::Delete(a) => resource(resource::Request::Delete(a)),
        Command::Label(a) => resource(resource::Request::Label(a)),
        Command::Edit(a) => resource(resource::Request::Edit(a)),
        Command::Diff(a) => resource(resource::Request::Diff(a)),
        Command::Validate(a) => resource(resource::Request::Validate(a)),
        Command::Version(a) => What::Version(a),
        Command::Status(a) => What::Status(Box::new(a)),
        Command::Route(a) => What::Route(Box::new(a)),
        Command::Datastore(a) => What::Datastore(Box::new(a)),
        Command::Completion(a) => What::Completion(a),
        Command::Man(a) => What::Man(a),
        Command::Reference => What::Reference,
        Command::Node(a) => What::Node(Box::new(a)),
        Command::Cluster(a) => What::Cluster(Box::new(a)),
        Command::Bgp(bgp) => What::Bgp(bgp),
        Command::Lab(lab) => match lab.command {
            LabCommand::List => What::LabList,
            LabCommand::Up(up) => {
                let (mut topology, origin) = match up.topology {
                    Some(file) => read_topology(&file).map(|(topology, origin)| (topology, Some(origin)))?,
                    None => {
                        let six = matches!(up.ip_families, Some(Families::Ipv6 | Families::Dual));
                        let segments = up.segments.unwrap_or(if six { 1 } else { 2 });
                        (Topology::regular(up.nodes, segments, up.pods_per_node), None)
                    }
                };
                if let Some(families) = up.ip_families {
                    topology.ip_families = match families {
                        Families::Ipv4 => IpFamilies::Ipv4,
                        Families::Ipv6 => IpFamilies::Ipv6,
                        Families::Dual => IpFamilies::Dual,
                    };
                }
                if let Some(ipip) = up.ipip {
                    topology.pool.ipip_mode = match ipip {
                        Ipip::Always => EncapMode::Always,
                        Ipip::Crosssubnet => EncapMode::CrossSubnet,
                        Ipip::Never => EncapMode::Never,
                    };
                }
                let name =
                    lab.name.or_else(|| topology.name.clone()).unwrap_or_else(|| DEFAULT_LAB.to_owned());
                What::Lab { name, what: LabWhat::Up { topology, origin } }
            }
            other => {
                What::Lab { name: lab.name.unwrap_or_else(|| DEFAULT_LAB.to_owned()), what: lab_what(other) }
            }
        },
    };
    Ok(Request { output, what })
}

fn lab_what(command: LabCommand) -> LabWhat {
    match command {
        LabCommand::Up(_) | LabCommand::List => unreachable!("understood by the caller"),
        LabCommand::Status => LabWhat::Status,
        LabCommand::Ping(p) => LabWhat::Ping { from: p.from, to: p.to },
        LabCommand::Exec(e) => LabWhat::Exec { target: e.target, argv: e.argv },
        LabCommand::Break(b) => LabWhat::Break(match b.what {
            BreakCommand::Kill { node } => Break::Kill(node),
            BreakCommand::Link { node } => Break::Link(node),
            BreakCommand::Partition { segment } => Break::Partition(segment),
        }),
        LabCommand::Heal => LabWhat::Heal,
        LabCommand::Add(a) => match a.what {
            AddCommand::Node(n) => {
                LabWhat::AddNode { name: n.node, segment: n.segment, address: n.address, pods: n.pods }
            }
        },
        LabCommand::Down => LabWhat::Down,
    }
}

/// Reads a topology file; errors name file, line and field.
fn read_topology(file: &Path) -> Result<(Topology, Origin)> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    Ok(read_one_with_origin(&name, &text)?)
}
