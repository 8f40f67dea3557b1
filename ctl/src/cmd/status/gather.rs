//! What the cluster's screen is made of: the agents' answers, and counts from the datastore.

use std::time::Duration;

use anyhow::Result;
use brindle_config_core::{
    Kind,
    status::{NodeAt, NodeStatus},
    store::Store,
};
use brindle_ipam::{View, usage::Blocks};
use serde::Serialize;

use crate::{
    cluster::{Cluster, Silence, ask_all},
    cmd::resource::block_on,
};

/// Everything that was seen.
pub(super) struct Seen {
    pub(super) nodes: Vec<(NodeAt, Result<NodeStatus, Silence>)>,
    pub(super) stored: Option<Stored>,
    /// Why the datastore could not be read, where there is one.
    pub(super) trouble: Option<String>,
}

/// From the datastore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) pools: Vec<PoolUse>,
    pub(super) policies: PolicyCounts,
}

/// How full a pool is. Counts are exact up to 2^53; IPv6 pools are larger, and then only `used` means something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PoolUse {
    pub(super) name: String,
    pub(super) cidr: String,
    pub(super) blocks: usize,
    pub(super) total: u128,
    pub(super) used: u128,
}

/// Resources of policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyCounts {
    pub(super) global: usize,
    pub(super) namespaced: usize,
    pub(super) kubernetes: usize,
    pub(super) staged: usize,
    pub(super) tiers: usize,
    pub(super) host_endpoints: usize,
}

/// Asks everybody.
pub(super) fn gather(cluster: &Cluster, limit: Duration) -> Result<Seen> {
    let answers = ask_all(&cluster.agents, |a| a.status(limit));
    let nodes = cluster.agents.iter().map(|a| a.at.clone()).zip(answers).collect();
    let (stored, trouble) = match &cluster.store {
        None => (None, None),
        Some(store) => match block_on(stored(&**store)) {
            Ok(stored) => (Some(stored), None),
            Err(e) => (None, Some(format!("{e:#}"))),
        },
    };
    Ok(Seen { nodes, stored, trouble })
}

async fn stored(store: &dyn Store) -> Result<Stored> {
    let kinds = [&[Kind::IpamBlock, Kind::Tier, Kind::HostEndpoint], Kind::POLICIES.as_slice()].concat();
    let view = View::load(store, "").await?;
    let entries = store.list(&kinds).await?.entries;
    let blocks = Blocks::read(&entries);
    let pools = blocks.by_pool(&view).into_iter().map(|p| PoolUse {
        name: p.name,
        cidr: p.cidr.to_string(),
        blocks: p.blocks.len(),
        total: p.count.total,
        used: p.count.in_use,
    });
    let count = |kinds: &[Kind]| entries.iter().filter(|e| kinds.contains(&e.key.kind)).count();
    let policies = PolicyCounts {
        global: count(&[
            Kind::GlobalNetworkPolicy,
            Kind::ClusterNetworkPolicy,
            Kind::AdminNetworkPolicy,
            Kind::BaselineAdminNetworkPolicy,
        ]),
        namespaced: count(&[Kind::NetworkPolicy]),
        kubernetes: count(&[Kind::KubernetesNetworkPolicy]),
        staged: count(&[
            Kind::StagedGlobalNetworkPolicy,
            Kind::StagedNetworkPolicy,
            Kind::StagedKubernetesNetworkPolicy,
        ]),
        tiers: count(&[Kind::Tier]),
        host_endpoints: count(&[Kind::HostEndpoint]),
    };
    Ok(Stored { pools: pools.collect(), policies })
}
