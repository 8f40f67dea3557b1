//! What plans are made from: the resources of one listing, read into what the controllers look at. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use brindle_config_core::{
    Key, Kind,
    pool::{AllowedUse, AssignmentMode, IpPoolSpec},
    store::{Entry, Revision, decode},
    workload::WorkloadEndpointSpec,
};
use brindle_ipam::{leak::Evidence, usage::Blocks};
use ipnet::IpNet;

/// The kinds every controller but that of policy names looks at.
pub const KINDS: [Kind; 13] = [
    Kind::IpPool,
    Kind::IpamBlock,
    Kind::IpamHandle,
    Kind::BlockAffinity,
    Kind::Node,
    Kind::BgpConfiguration,
    Kind::BgpPeer,
    Kind::FelixConfiguration,
    Kind::ClusterInformation,
    Kind::KubeControllersConfiguration,
    Kind::WorkloadEndpoint,
    Kind::HostEndpoint,
    Kind::Service,
];

/// What the controller of policy names looks at as well.
pub const POLICY_KINDS: [Kind; 4] = brindle_config_core::policy_names::KINDS;

/// A pool for load balancer addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalancerPool {
    pub name: String,
    pub cidr: IpNet,
    /// Only for those that name it.
    pub manual: bool,
}

/// The facts of one moment.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub entries: Vec<Entry>,
    pub blocks: Blocks,
    pub nodes: BTreeSet<String>,
    /// The nodes of the Kubernetes cluster, where that is not the datastore and somebody asks it.
    pub kubernetes: Option<BTreeSet<String>>,
    /// Addresses of endpoints, and the handles of their containers as far as recorded.
    pub endpoints: BTreeMap<IpAddr, BTreeSet<String>>,
    /// Pods with an endpoint: node, namespace and name.
    pub pods: BTreeSet<(String, String, String)>,
    /// Endpoints of each node.
    pub by_node: BTreeMap<String, Vec<Key>>,
    pub balancer_pools: Vec<BalancerPool>,
    /// ClusterInformation says that nothing is to be changed.
    pub locked: bool,
    /// Of ClusterInformation; empty when there is none.
    pub calico_version: String,
    /// What could not be read, and so speaks neither for nor against anything.
    pub unreadable: Vec<String>,
}

impl Facts {
    /// Reads the entries of a listing.
    pub fn read(entries: Vec<Entry>) -> Self {
        let mut facts = Self { blocks: Blocks::read(&entries), ..Self::default() };
        facts.unreadable = facts.blocks.unreadable.clone();
        for e in &entries {
            match e.key.kind {
                Kind::Node => drop(facts.nodes.insert(e.key.name.clone())),
                Kind::WorkloadEndpoint => facts.endpoint(e),
                Kind::IpPool => facts.pool(e),
                Kind::ClusterInformation if e.key.name == "default" => {
                    // By itself: whatever else of it does not read, the lock counts.
                    facts.locked = e.value.pointer("/spec/datastoreReady").is_some_and(|r| r == false);
                    let version = e.value.pointer("/spec/calicoVersion").and_then(|v| v.as_str());
                    version.unwrap_or_default().clone_into(&mut facts.calico_version);
                }
                _ => {}
            }
        }
        facts.entries = entries;
        facts
    }

    fn endpoint(&mut self, e: &Entry) {
        match decode::<WorkloadEndpointSpec>(e) {
            Ok(found) => {
                let spec = found.resource.spec;
                for net in &spec.ip_networks {
                    // No handle: whatever handle holds the address, the endpoint speaks for it.
                    self.endpoints.entry(net.addr()).or_default();
                }
                if !spec.pod.is_empty() {
                    self.pods.insert((spec.node.clone(), e.key.namespace.clone(), spec.pod));
                }
                self.by_node.entry(spec.node).or_default().push(e.key.clone());
            }
            Err(error) => self.unreadable.push(error.to_string()),
        }
    }

    fn pool(&mut self, e: &Entry) {
        match decode::<IpPoolSpec>(e) {
            Ok(found) => {
                let spec = found.resource.spec;
                if spec.allowed_uses.contains(&AllowedUse::LoadBalancer) {
                    self.balancer_pools.push(BalancerPool {
                        name: e.key.name.clone(),
                        cidr: spec.cidr.trunc(),
                        manual: spec.assignment_mode == AssignmentMode::Manual,
                    });
                }
            }
            Err(error) => self.unreadable.push(error.to_string()),
        }
    }

    /// What decides whether an address can be given to a service: the pools, and the blocks of those for load balancers.
    pub fn balancer_stock(&self) -> Vec<(Key, Revision)> {
        let inside = |e: &&Entry| {
            let cidr = e.value.pointer("/spec/cidr").and_then(|c| c.as_str()?.parse::<IpNet>().ok());
            cidr.is_some_and(|c| self.balancer_pools.iter().any(|p| p.cidr.contains(&c)))
        };
        let blocks = self.of(Kind::IpamBlock).filter(inside);
        self.of(Kind::IpPool).chain(blocks).map(|e| (e.key.clone(), e.revision)).collect()
    }

    /// Entries of one kind.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |e| e.key.kind == kind)
    }

    /// The witnesses of the collector. An endpoint that cannot be read silences them: any address could be its.
    pub fn evidence(&self) -> Evidence {
        let readable = !self.unreadable.iter().any(|u| u.starts_with("WorkloadEndpoint("));
        Evidence {
            cluster: true,
            // A store without nodes is one that somebody else has not filled yet.
            nodes: (!self.nodes.is_empty()).then(|| self.nodes.clone()),
            endpoints: readable.then(|| self.endpoints.clone()),
            pods: self.pods.clone(),
            ..Evidence::default()
        }
    }
}
