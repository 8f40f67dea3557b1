//! What the translation looks at, kept small: the store's entries reduced to the facts that matter for BGP.
//!
//! An entry that does not decode keeps its last good value and becomes a problem; losing a session over a typo in
//! one resource would be worse than acting on yesterday's text. At a start there is no yesterday: a configuration that
//! was never read is not the same as none, and nothing is made of what it may say.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use brindle_config_core::{
    bgp::{BgpConfigurationSpec, BgpFilterSpec, BgpPassword, BgpPeerSpec},
    ipam::{AffinityState, BlockAffinitySpec},
    key::{Key, Kind},
    kube::EndpointSliceSpec,
    meta::{Resource, Spec},
    node::NodeSpec,
    pool::IpPoolSpec,
    service::ServiceSpec,
    store::{Entry, StoreError, SyncEvent, decode},
    workload::WorkloadEndpointSpec,
};
use ipnet::IpNet;
use serde::Deserialize;

use super::services::{self, ServiceTable};

/// The kinds [`ClusterState::apply`] wants to see, beside [`SERVICE_KINDS`].
pub const KINDS: [Kind; 9] = [
    Kind::FelixConfiguration,
    Kind::IpPool,
    Kind::IpamBlock,
    Kind::BlockAffinity,
    Kind::Node,
    Kind::BgpConfiguration,
    Kind::BgpPeer,
    Kind::BgpFilter,
    Kind::WorkloadEndpoint,
];

/// What else it wants to see as long as [`ClusterState::wants_services`]. There are many of them, and they change with
/// every pod behind a service.
pub const SERVICE_KINDS: [Kind; 2] = [Kind::EndpointSlice, Kind::Service];

/// Annotation of BGPConfiguration `default` or `node.NAME` (which replaces it): routes of the kernel that the node
/// announces, as [`ImportRule::parse`](crate::import::ImportRule::parse) reads them, with `;` between rules.
pub(super) const IMPORT_ANNOTATION: &str = "bgp.brindle.dev/import-routes";

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

/// A pod on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PodFacts {
    /// `NAMESPACE/NAME`, or the name of the endpoint.
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) addresses: Vec<IpNet>,
    /// Addresses that lead to it where they are enabled.
    pub(super) floating: Vec<IpNet>,
    /// Its device on the node.
    pub(super) device: String,
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
    /// The pods on this node.
    pub(super) workloads: BTreeMap<Key, PodFacts>,
    /// FelixConfiguration.floatingIPs where somebody set it, by name.
    pub(super) floating: BTreeMap<String, bool>,
    /// What the agent's environment says of it; it stands above every object.
    pub(super) floating_here: Option<bool>,
    /// What the agent's environment says instead of the node's address.
    pub(super) router_id: Option<Ipv4Addr>,
    pub(super) invalid: BTreeMap<Key, String>,
    /// BGPConfigurations that were there at the start and have not been read yet.
    unread: BTreeSet<Key>,
    /// The first snapshot is complete: what is not in it was not there.
    in_sync: bool,
    pub(super) services: ServiceTable,
    /// [`services::SELECTOR_ANNOTATION`] as somebody wrote it.
    pub(super) single_services: Option<String>,
    /// [`IMPORT_ANNOTATION`], by BGPConfiguration.
    pub(super) imports: BTreeMap<String, String>,
    secrets: BTreeMap<(String, String), String>,
}

impl ClusterState {
    /// An empty cluster as seen by the node called `me`.
    pub fn new(me: impl Into<String>) -> Self {
        Self { me: me.into(), ..Self::default() }
    }

    /// The view of an agent whose environment says whether pods have floating addresses (`FELIX_FLOATINGIPS`).
    #[must_use]
    pub fn with_floating(self, floating: Option<bool>) -> Self {
        Self { floating_here: floating, ..self }
    }

    /// The view of an agent whose environment says what its router id is (`CALICO_ROUTER_ID`).
    #[must_use]
    pub fn with_router_id(self, router_id: Option<Ipv4Addr>) -> Self {
        Self { router_id, ..self }
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

    /// Whether [`SERVICE_KINDS`] matter: ranges for services are configured.
    pub fn wants_services(&self) -> bool {
        self.configs.get("default").is_some_and(services::has_ranges)
    }

    /// Forgets what [`SERVICE_KINDS`] said; `true` if the plan may have changed by it.
    pub fn forget_services(&mut self) -> bool {
        let invalid = self.invalid.len();
        self.invalid.retain(|key, _| !SERVICE_KINDS.contains(&key.kind));
        self.services.clear() | (self.invalid.len() != invalid)
    }

    /// Whether some node has this address.
    pub fn is_node_address(&self, address: IpAddr) -> bool {
        self.nodes.values().any(|n| n.spec.ips().any(|ip| ip == address))
    }

    /// Whether that node is a route reflector.
    pub fn is_reflector(&self, address: IpAddr) -> bool {
        let mut nodes = self.nodes.values().filter(|n| n.spec.ips().any(|ip| ip == address));
        nodes.any(|n| super::sessions::cluster_id(n).is_some())
    }

    pub(crate) fn secret(&self, name: &str, key: &str) -> Option<&str> {
        self.secrets.get(&(name.to_owned(), key.to_owned())).map(String::as_str)
    }

    /// Takes one event of the sync stream; `true` if the plan may have changed by it.
    pub fn apply(&mut self, event: &SyncEvent) -> bool {
        match event {
            SyncEvent::Upsert(entry) => self.upsert(entry),
            SyncEvent::Delete(key) => self.delete(key),
            SyncEvent::InSync => {
                self.in_sync = true;
                false
            }
        }
    }

    fn upsert(&mut self, entry: &Entry) -> bool {
        match self.read(entry) {
            Ok(changed) => {
                self.unread.remove(&entry.key);
                self.invalid.remove(&entry.key).is_some() | changed
            }
            Err(error) => {
                let reason = match error {
                    StoreError::Invalid { reason, .. } => reason,
                    other => other.to_string(),
                };
                let what = format!("{reason}; {}", self.instead(&entry.key));
                self.invalid.insert(entry.key.clone(), what.clone()) != Some(what)
            }
        }
    }

    /// What is done about an entry that cannot be read.
    fn instead(&mut self, key: &Key) -> &'static str {
        if self.has(key) {
            return "the last valid version is used, correct it";
        }
        if key.kind == Kind::BgpConfiguration && !self.in_sync {
            self.unread.insert(key.clone());
        }
        // Who ran without it goes on without it.
        "it is left out, correct it"
    }

    /// Whether something was read of a resource, and is still used.
    fn has(&self, key: &Key) -> bool {
        let name = &key.name;
        match key.kind {
            Kind::Node => self.nodes.contains_key(name),
            Kind::BgpConfiguration => self.configs.contains_key(name),
            Kind::BgpPeer => self.peers.contains_key(name),
            Kind::BgpFilter => self.filters.contains_key(name),
            Kind::IpPool => self.pools.contains_key(name),
            Kind::BlockAffinity => self.claims.contains_key(name),
            Kind::IpamBlock => self.blocks.contains_key(name),
            Kind::FelixConfiguration => self.floating.contains_key(name),
            Kind::WorkloadEndpoint => self.workloads.contains_key(key),
            _ => self.services.has(key),
        }
    }

    /// The BGPConfiguration this node must know before it speaks to anybody, and does not.
    pub(super) fn unread_configuration(&self) -> Option<&Key> {
        let own = format!("node.{}", self.me);
        self.unread.iter().find(|k| k.name == "default" || k.name == own)
    }

    fn read(&mut self, entry: &Entry) -> Result<bool, StoreError> {
        let name = &entry.key.name;
        Ok(match entry.key.kind {
            Kind::Node => {
                let node: Resource<NodeSpec> = decode(entry)?.resource;
                let facts = NodeFacts { labels: node.metadata.labels, spec: node.spec };
                put(&mut self.nodes, name, facts)
            }
            Kind::BgpConfiguration => {
                let config: Resource<BgpConfigurationSpec> = decode(entry)?.resource;
                let selector = config.metadata.annotations.get(services::SELECTOR_ANNOTATION).cloned();
                let other = name == "default" && self.single_services != selector;
                if other {
                    self.single_services = selector;
                }
                let imports = config.metadata.annotations.get(IMPORT_ANNOTATION).cloned();
                let others = self.imports.get(name) != imports.as_ref();
                match imports {
                    Some(text) => drop(self.imports.insert(name.clone(), text)),
                    None => drop(self.imports.remove(name)),
                }
                put(&mut self.configs, name, config.spec) | other | others
            }
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
                let Resource { metadata, spec: pod, .. }: Resource<WorkloadEndpointSpec> =
                    decode(entry)?.resource;
                if pod.node == self.me {
                    let floating = pod.floating().map(|n| n.external.into()).collect();
                    let namespace = metadata.namespace.unwrap_or_default();
                    let name = if pod.pod.is_empty() { metadata.name } else { pod.pod };
                    let name = if namespace.is_empty() { name } else { format!("{namespace}/{name}") };
                    let (labels, device) = (metadata.labels, pod.interface_name);
                    let facts = PodFacts { name, labels, addresses: pod.ip_networks, floating, device };
                    let same = self.workloads.get(&entry.key) == Some(&facts);
                    self.workloads.insert(entry.key.clone(), facts);
                    !same
                } else {
                    self.workloads.remove(&entry.key).is_some()
                }
            }
            Kind::FelixConfiguration => {
                // Felix names what cannot be read of it; one field says nothing about the others.
                let text = entry.value.pointer("/spec/floatingIPs").and_then(serde_json::Value::as_str);
                match text.map(|t| t.eq_ignore_ascii_case("enabled")) {
                    Some(on) => self.floating.insert(name.to_owned(), on) != Some(on),
                    None => self.floating.remove(name).is_some(),
                }
            }
            Kind::Service => {
                let service: Resource<ServiceSpec> = decode(entry)?.resource;
                let put = self.services.put_service(&entry.key, &service);
                put.map_err(|reason| invalid(entry, reason))?
            }
            Kind::EndpointSlice => {
                let slice: Resource<EndpointSliceSpec> = decode(entry)?.resource;
                let labels = &slice.metadata.labels;
                let put = self.services.put_slice(&entry.key, labels, &slice.extra, &self.me);
                put.map_err(|reason| invalid(entry, reason))?
            }
            // The follower asks for no other kinds.
            _ => false,
        })
    }

    fn delete(&mut self, key: &Key) -> bool {
        self.unread.remove(key);
        let was_invalid = self.invalid.remove(key).is_some();
        was_invalid
            | match key.kind {
                Kind::Node => self.nodes.remove(&key.name).is_some(),
                Kind::BgpConfiguration => {
                    if key.name == "default" {
                        self.single_services = None;
                    }
                    self.imports.remove(&key.name);
                    self.configs.remove(&key.name).is_some()
                }
                Kind::BgpPeer => self.peers.remove(&key.name).is_some(),
                Kind::BgpFilter => self.filters.remove(&key.name).is_some(),
                Kind::IpPool => self.pools.remove(&key.name).is_some(),
                Kind::BlockAffinity => self.claims.remove(&key.name).is_some(),
                Kind::IpamBlock => self.blocks.remove(&key.name).is_some(),
                Kind::FelixConfiguration => self.floating.remove(&key.name).is_some(),
                Kind::WorkloadEndpoint => self.workloads.remove(key).is_some(),
                Kind::Service => self.services.remove_service(key),
                Kind::EndpointSlice => self.services.remove_slice(key),
                _ => false,
            }
    }
}

fn invalid(entry: &Entry, reason: String) -> StoreError {
    StoreError::Invalid { key: entry.key.clone(), reason }
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
