//! `brindlectl route A B`: the way of a packet there and back, as the kernels of the nodes have it now, held against
//! what their agents intend. `ends` finds out what A and B are, `walk` follows the packet, `screen` shows it.

pub(crate) mod args;
mod ends;
mod screen;
mod walk;

use std::net::IpAddr;

use anyhow::{Result, bail};
use brindle_config_core::status::{AdminRequest, path::PathAnswer};
use serde_json::json;

use self::{
    args::RouteArgs,
    ends::{Names, Pod, same_family},
    walk::walk,
};
use crate::{
    Outcome,
    args::Format,
    cluster::{self, Cluster, Silence, ask_all},
    cmd::resource::block_on,
    out::{self, put},
};

/// Carries the command out.
pub(crate) fn run(args: &RouteArgs, format: Format) -> Result<Outcome> {
    let cluster = cluster::all(&args.reach)?;
    let names = names(&cluster, args)?;
    let (a, b) = (names.resolve(&args.from)?, names.resolve(&args.to)?);
    if a.node.is_none() && b.node.is_none() {
        bail!(
            "neither {} nor {} is a pod or node of this cluster; see: brindlectl get weps -A",
            args.from,
            args.to
        );
    }
    let (from, to) = same_family(&a, &b)?;
    let ask = |node: &str, to: IpAddr| -> Result<PathAnswer, Silence> {
        match cluster.agents.iter().find(|x| x.at.name == node) {
            Some(agent) => agent.ask(&AdminRequest::Path { to }, args.reach.timeout),
            None => Err(Silence::Refused(format!("there is no Node resource {node}"))),
        }
    };
    let node_at = |ip: IpAddr| names.node_at(ip).map(str::to_owned);
    let there = walk(&a, &b, (from, to), &ask, &node_at);
    let back = walk(&b, &a, (to, from), &ask, &node_at);
    let good = there.good() && back.good();
    match format {
        Format::Json => out::json(&json!({ "ok": good, "there": there, "back": back })),
        Format::Table => {
            let (flag, colours) = (cluster.source.flag(), out::colours());
            put!("{}\n{}", screen::render(&there, &flag, colours), screen::render(&back, &flag, colours));
        }
    }
    Ok(if good { Outcome::Ok } else { Outcome::Degraded })
}

/// From the datastore, or from the agents where it is out of reach.
fn names(cluster: &Cluster, args: &RouteArgs) -> Result<Names> {
    let nodes: Vec<_> = cluster.agents.iter().map(|a| a.at.clone()).collect();
    if let Some(store) = &cluster.store {
        return block_on(Names::read(&**store, nodes));
    }
    let mut pods = Vec::new();
    for (agent, answer) in
        cluster.agents.iter().zip(ask_all(&cluster.agents, |a| a.status(args.reach.timeout)))
    {
        for p in answer.into_iter().flat_map(|s| s.pods) {
            pods.push(Pod {
                namespace: p.namespace,
                name: p.name,
                node: agent.at.name.clone(),
                device: p.interface,
                addresses: p.addresses.iter().map(ipnet::IpNet::addr).collect(),
            });
        }
    }
    Ok(Names { nodes, pods })
}
