//! What the translation looks at, kept small: the store's entries reduced to the facts that matter for BGP.
//!
//! An entry that does not decode keeps its last good value and becomes a problem; losing a session over a typo in
//! one resource would be worse than acting on yesterday's text.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use brindle_config_core::{
    bgp::{BgpConfigurationSpec, BgpFilterSpec, BgpPassword, BgpPeerSpec},
    ipam::{AffinityState, BlockAffinitySpec},
    key::{Key, Kind},
    meta::{Resource, Spec},
    node::NodeSpec,
    pool::IpPoolSpec,
    store::{Entry, StoreError, SyncEvent, decode},
    workload::WorkloadEndpointSpec,
};
use ipnet::IpNet;
use serde::Deserialize;

use super::services::ServiceFacts;

/// The kinds [`ClusterState::apply`] wants to see.
pub const KINDS: [Kind; 8] = [
    Kind::IpPool,
    Kind::IpamBlock,
    Kind::BlockAffinity,
    Kind::Node,
    Kind::BgpConfiguration,
    Kind::BgpPeer,
    Kind::BgpFilter,
    Kind::WorkloadEndpoint,
];

/// A node as its neighbors see it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NodeFacts {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) spec: NodeSpec,
}

/// A pool: where it is and whether its routes may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PoolFacts {
    pub(super) cidr: IpNet,
    pub(super) disable_bgp_export: bool,
}

/// An own claim on a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClaimFacts {
    pub(super) cidr: IpNet,
    pub(super) confirmed: bool,
}

/// What a block says about its owner; its allocations change with every pod and are not looked at.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct BlockFacts {
    pub(super) cidr: IpNet,
    #[serde(default)]
    pub(super) affinity: Option<String>,
    #[serde(default)]
    pub(super) deleted: bool,
}

/// Everything in the store that decides this node's sessions and announcements.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterState {
    pub(super) me: String,
    pub(super) nodes: BTreeMap<String, NodeFacts>,
    pub(super) configs: BTreeMap<String, BgpConfigurationSpec>,
    pub(super) peers: BTreeMap<String, BgpPeerSpec>,
    pub(super) filters: BTreeMap<String, BgpFilterSpec>,
    pub(super) pools: BTreeMap<String, PoolFacts>,
    pub(super) claims: BTreeMap<String, ClaimFacts>,
    pub(super) blocks: BTreeMap<String, BlockFacts>,
    /// Addresses of the pods on this node.
    pub(super) workloads: BTreeMap<Key, Vec<IpNet>>,
    pub(super) invalid: BTreeMap<Key, String>,
    /// Services by name; none unless somebody tells (a plain datastore has no Services).
    pub(super) services: BTreeMap<String, ServiceFacts>,
    secrets: BTreeMap<(String, String), String>,
}

impl ClusterState {
    /// An empty cluster as seen by the node called `me`.
    pub fn new(me: impl Into<String>) -> Self {
        Self { me: me.into(), ..Self::default() }
    }

    /// The node this is the view of.
    pub fn me(&self) -> &str {
        &self.me
    }

    /// Makes the value of a secret's key known. Peerings whose password is unknown are left out.
    /// Returns whether it is another than before.
    pub fn set_secret(&mut self, name: &str, key: &str, value: &str) -> bool {
        self.secrets.insert((name.into(), key.into()), value.into()).as_deref() != Some(value)
    }

    /// Forgets the value of a secret's key; whether it was known.
    pub fn forget_secret(&mut self, name: &str, key: &str) -> bool {
        self.secrets.remove(&(name.to_owned(), key.to_owned())).is_some()
    }

    /// Name and key of every secret the resources refer to.
    pub fn wanted_secrets(&self) -> BTreeSet<(String, String)> {
        let of = |p: &BgpPassword| (p.secret_key_ref.name.clone(), p.secret_key_ref.key.clone());
        let mesh = self.configs.get("default").and_then(|c| c.node_mesh_password.as_ref());
        mesh.into_iter().chain(self.peers.values().filter_map(|p| p.password.as_ref())).map(of).collect()
    }

    /// Makes the services known.
    pub fn set_services(&mut self, services: BTreeMap<String, ServiceFacts>) {
        self.services = services;
    }

    /// Whether some node has this address.
    pub fn is_node_address(&self, address: IpAddr) -> bool {
        self.nodes.values().any(|n| n.spec.ips().any(|ip| ip == address))
    }

    pub(super) fn secret(&self, name: &str, key: &str) -> Option<&str> {
        self.secrets.get(&(name.to_owned(), key.to_owned())).map(String::as_str)
    }

    /// Takes one event of the sync stream; `true` if the plan may have changed by it.
    pub fn apply(&mut self, event: &SyncEvent) -> bool {
        match event {
            SyncEvent::Upsert(entry) => self.upsert(entry),
            SyncEvent::Delete(key) => self.delete(key),
            SyncEvent::InSync => false,
        }
    }

    fn upsert(&mut self, entry: &Entry) -> bool {
        match self.read(entry) {
            Ok(changed) => self.invalid.remove(&entry.key).is_some() | changed,
            Err(error) => {
                let reason = match error {
                    StoreError::Invalid { reason, .. } => reason,
                    other => other.to_string(),
                };
                let what = format!("{reason}; the last valid version is used, correct it");
                self.invalid.insert(entry.key.clone(), what.clone()) != Some(what)
            }
        }
    }

    fn read(&mut self, entry: &Entry) -> Result<bool, StoreError> {
        let name = &entry.key.name;
        Ok(match entry.key.kind {
            Kind::Node => {
                let node: Resource<NodeSpec> = decode(entry)?.resource;
                let facts = NodeFacts { labels: node.metadata.labels, spec: node.spec };
                put(&mut self.nodes, name, facts)
            }
            Kind::BgpConfiguration => put(&mut self.configs, name, spec(entry)?),
            Kind::BgpPeer => put(&mut self.peers, name, spec(entry)?),
            Kind::BgpFilter => put(&mut self.filters, name, spec(entry)?),
            Kind::IpPool => {
                let pool: IpPoolSpec = spec(entry)?;
                let facts =
                    PoolFacts { cidr: pool.cidr.trunc(), disable_bgp_export: pool.disable_bgp_export };
                put(&mut self.pools, name, facts)
            }
            Kind::BlockAffinity => {
                let claim: BlockAffinitySpec = spec(entry)?;
                if claim.node != self.me || claim.affinity_type != "host" {
                    return Ok(self.claims.remove(name).is_some());
                }
                let confirmed = claim.state == AffinityState::Confirmed && !claim.deleted;
                put(&mut self.claims, name, ClaimFacts { cidr: claim.cidr.trunc(), confirmed })
            }
            Kind::IpamBlock => {
                let mut facts = entry
                    .value
                    .get("spec")
                    .map_or_else(
                        || Err("spec is missing".to_owned()),
                        |s| BlockFacts::deserialize(s).map_err(|e| format!("spec: {e}")),
                    )
                    .map_err(|reason| StoreError::Invalid { key: entry.key.clone(), reason })?;
                facts.cidr = facts.cidr.trunc();
                put(&mut self.blocks, name, facts)
            }
            Kind::WorkloadEndpoint => {
                let pod: WorkloadEndpointSpec = spec(entry)?;
                if pod.node == self.me {
                    self.workloads.insert(entry.key.clone(), pod.ip_networks.clone()) != Some(pod.ip_networks)
                } else {
                    self.workloads.remove(&entry.key).is_some()
                }
            }
            Kind::IpReservation
            | Kind::IpamConfiguration
            | Kind::IpamHandle
            | Kind::FelixConfiguration
            | Kind::ClusterInformation
            | Kind::Tier
            | Kind::GlobalNetworkPolicy
            | Kind::NetworkPolicy
            | Kind::StagedGlobalNetworkPolicy
            | Kind::StagedNetworkPolicy
            | Kind::StagedKubernetesNetworkPolicy
            | Kind::NetworkSet
            | Kind::GlobalNetworkSet
            | Kind::HostEndpoint
            | Kind::Profile
            | Kind::KubernetesNetworkPolicy
            | Kind::ClusterNetworkPolicy
            | Kind::AdminNetworkPolicy
            | Kind::BaselineAdminNetworkPolicy
            | Kind::Namespace
            | Kind::ServiceAccount
            | Kind::EndpointSlice
            | Kind::Service => false,
        })
    }

    fn delete(&mut self, key: &Key) -> bool {
        let was_invalid = self.invalid.remove(key).is_some();
        was_invalid
            | match key.kind {
                Kind::Node => self.nodes.remove(&key.name).is_some(),
                Kind::BgpConfiguration => self.configs.remove(&key.name).is_some(),
                Kind::BgpPeer => self.peers.remove(&key.name).is_some(),
                Kind::BgpFilter => self.filters.remove(&key.name).is_some(),
                Kind::IpPool => self.pools.remove(&key.name).is_some(),
                Kind::BlockAffinity => self.claims.remove(&key.name).is_some(),
                Kind::IpamBlock => self.blocks.remove(&key.name).is_some(),
                Kind::WorkloadEndpoint => self.workloads.remove(key).is_some(),
                Kind::IpReservation
                | Kind::IpamConfiguration
                | Kind::IpamHandle
                | Kind::FelixConfiguration
                | Kind::ClusterInformation
                | Kind::Tier
                | Kind::GlobalNetworkPolicy
                | Kind::NetworkPolicy
                | Kind::StagedGlobalNetworkPolicy
                | Kind::StagedNetworkPolicy
                | Kind::StagedKubernetesNetworkPolicy
                | Kind::NetworkSet
                | Kind::GlobalNetworkSet
                | Kind::HostEndpoint
                | Kind::Profile
                | Kind::KubernetesNetworkPolicy
                | Kind::ClusterNetworkPolicy
                | Kind::AdminNetworkPolicy
                | Kind::BaselineAdminNetworkPolicy
                | Kind::Namespace
                | Kind::ServiceAccount
                | Kind::EndpointSlice
                | Kind::Service => false,
            }
    }
}

fn spec<S: Spec>(entry: &Entry) -> Result<S, StoreError> {
    Ok(decode::<S>(entry)?.resource.spec)
}

/// Whether the map changed.
fn put<V: PartialEq>(map: &mut BTreeMap<String, V>, name: &str, value: V) -> bool {
    if map.get(name) == Some(&value) {
        return false;
    }
    map.insert(name.to_owned(), value);
    true
}
