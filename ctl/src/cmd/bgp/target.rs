//! Whom a question goes to: the agent at a socket, or nodes of a cluster.

use std::time::Duration;

use anyhow::Result;
use brindle_config_core::status::{AdminRequest, bgp::BgpRequest};
use serde::de::DeserializeOwned;

use super::args::BgpArgs;
use crate::{
    cluster::{self, ClusterArgs, ReachArgs, Silence, Where},
    cmd::resource::args::StoreArgs,
};

/// A speaker to ask.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Its node, where several are asked.
    pub(super) node: Option<String>,
    place: Where,
    /// How long one step of an answer may take.
    limit: Duration,
}

/// Those the arguments name.
pub(super) fn targets(args: &BgpArgs) -> Result<Vec<Target>> {
    if args.node.is_none() && !args.everywhere() {
        let place = Where::Socket(args.socket.clone());
        return Ok(vec![Target { node: None, place, limit: args.timeout }]);
    }
    let reach = ReachArgs {
        store: StoreArgs {
            datastore: args.datastore.clone(),
            lab: args.lab.clone(),
            config: args.config.clone(),
            kubeconfig: args.kubeconfig.clone(),
            context: args.context.clone(),
        },
        timeout: args.timeout,
        admin_token_file: args.admin_token_file.clone(),
        agent: None,
    };
    let cluster = cluster::find(&ClusterArgs { reach, node: args.node.iter().cloned().collect() })?;
    let target = |a: cluster::Agent| Target {
        node: args.everywhere().then(|| a.at.name.clone()),
        place: a.place,
        limit: args.timeout,
    };
    Ok(cluster.agents.into_iter().map(target).collect())
}

impl Target {
    /// Asks; `each` is given the lines as they come. With `live`, waiting has no end.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        request: BgpRequest,
        live: bool,
        each: impl FnMut(T),
    ) -> Result<(), Silence> {
        self.place.many(&AdminRequest::Bgp(request), self.limit, live, each)
    }

    /// Asks for an answer of a bounded number of lines.
    pub(super) fn all<T: DeserializeOwned>(&self, request: BgpRequest) -> Result<Vec<T>, Silence> {
        let mut lines = Vec::new();
        self.ask(request, false, |line| lines.push(line))?;
        Ok(lines)
    }
}
