//! The resources and best paths felix decides from. Output depends on this state only, never on how it came about:
//! equal upserts and unknown deletes change nothing, a resource that does not decode is left out and named.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use brindle_config_core::{
    AnyResource, Key, Kind, Spec,
    bgp::BgpConfigurationSpec,
    felix::FelixConfigurationSpec,
    ipam::IpamBlockSpec,
    node::NodeSpec,
    pool::IpPoolSpec,
    store::{Entry, SyncEvent, decode},
    unserved, validate,
    workload::{ALLOWED_SOURCES, WorkloadEndpointSpec, allowed_sources},
};
use ipnet::{IpNet, Ipv4Net};

/// The kinds felix follows.
pub const KINDS: [Kind; 6] = [
    Kind::IpPool,
    Kind::IpamBlock,
    Kind::Node,
    Kind::BgpConfiguration,
    Kind::FelixConfiguration,
    Kind::WorkloadEndpoint,
];

/// How far a change of inputs reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Impact {
    #[default]
    Nothing,
    /// Own pods and blocks: [`crate::desire::Desired::refresh_base`].
    Base,
    /// Also the way to every remote prefix.
    Everything,
}

/// What is kept of a block: whose it is. Its allocations, most of it, change with every pod of its node and lead to no
/// route here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub cidr: IpNet,
    /// The node that owns it.
    pub host: Option<String>,
}

/// Everything felix knows.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Name of this node.
    pub node: String,
    pub(crate) pools: BTreeMap<String, IpPoolSpec>,
    pub(crate) blocks: BTreeMap<String, Block>,
    pub(crate) nodes: BTreeMap<String, NodeSpec>,
    /// Endpoints of this node only.
    pub(crate) endpoints: BTreeMap<Key, WorkloadEndpointSpec>,
    /// Those of them that ask for foreign sources.
    pub(crate) spoofers: BTreeSet<Key>,
    pub(crate) felix: BTreeMap<String, FelixConfigurationSpec>,
    /// Ranges for services, of BGPConfiguration `default`.
    pub(crate) services: Vec<IpNet>,
    /// Best paths from bgpd: prefix → next hops, sorted.
    pub(crate) fib: BTreeMap<IpNet, Vec<IpAddr>>,
    /// Resources that do not decode, with the reason.
    pub(crate) bad: BTreeMap<Key, String>,
    /// Resources in force that no writer should have accepted, with the reason.
    pub(crate) doubtful: BTreeMap<Key, String>,
}

impl Inputs {
    /// Nothing known yet.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            pools: BTreeMap::new(),
            blocks: BTreeMap::new(),
            nodes: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            spoofers: BTreeSet::new(),
            felix: BTreeMap::new(),
            services: Vec::new(),
            fib: BTreeMap::new(),
            bad: BTreeMap::new(),
            doubtful: BTreeMap::new(),
        }
    }

    /// Takes one event; says what has to be computed again.
    pub fn apply(&mut self, event: &SyncEvent) -> Impact {
        let (changed, kind) = match event {
            SyncEvent::Upsert(e) => (self.upsert(e), e.key.kind),
            SyncEvent::Delete(key) => (self.delete(key), key.kind),
            SyncEvent::InSync => return Impact::Nothing,
        };
        match (changed, kind) {
            (false, _) => Impact::Nothing,
            (true, Kind::WorkloadEndpoint | Kind::IpamBlock) => Impact::Base,
            (true, _) => Impact::Everything,
        }
    }

    /// Takes a change of best path; empty next hops withdraw it. One that stands n times gets n parts of the flows.
    pub fn set_fib(&mut self, prefix: IpNet, mut next_hops: Vec<IpAddr>) -> bool {
        next_hops.sort_unstable();
        if next_hops.is_empty() {
            self.fib.remove(&prefix).is_some()
        } else {
            self.fib.insert(prefix, next_hops.clone()).is_none_or(|old| old != next_hops)
        }
    }

    /// Forgets all best paths (the speaker was made anew). Returns their prefixes.
    pub fn clear_fib(&mut self) -> BTreeSet<IpNet> {
        std::mem::take(&mut self.fib).into_keys().collect()
    }

    /// The next hops of all learned prefixes, each once.
    pub fn next_hops(&self) -> BTreeSet<IpAddr> {
        let mut all = BTreeSet::new();
        let mut last = &[][..];
        for hops in self.fib.values() {
            // Neighbouring prefixes mostly share their next hops.
            if hops.as_slice() != last {
                all.extend(hops);
                last = hops;
            }
        }
        all
    }

    /// The next hops of a learned prefix, sorted, each once for every part of the flows it is to have.
    pub fn next_hops_of(&self, prefix: &IpNet) -> &[IpAddr] {
        self.fib.get(prefix).map_or(&[], Vec::as_slice)
    }

    /// Number of learned prefixes.
    pub fn fib_len(&self) -> usize {
        self.fib.len()
    }

    /// The local endpoint behind a key.
    pub fn endpoint(&self, key: &Key) -> Option<&WorkloadEndpointSpec> {
        self.endpoints.get(key)
    }

    /// The device of the local pod that has this address.
    pub fn pod_device(&self, ip: IpAddr) -> Option<&str> {
        let has = |w: &&WorkloadEndpointSpec| w.ip_networks.iter().any(|n| n.addr() == ip);
        self.endpoints.values().find(has).map(|w| w.interface_name.as_str()).filter(|d| !d.is_empty())
    }

    /// Effective configuration: `node.<name>` over `default`, field by field.
    pub fn felix(&self) -> FelixConfigurationSpec {
        let default = self.felix.get("default").cloned().unwrap_or_default();
        let Some(own) = self.felix.get(&format!("node.{}", self.node)) else { return default };
        FelixConfigurationSpec {
            ipip_enabled: own.ipip_enabled.or(default.ipip_enabled),
            ipip_mtu: own.ipip_mtu.or(default.ipip_mtu),
            interface_prefix: own.interface_prefix.clone().or(default.interface_prefix),
            route_refresh_interval: own.route_refresh_interval.clone().or(default.route_refresh_interval),
            device_route_protocol: own.device_route_protocol.or(default.device_route_protocol),
            remove_external_routes: own.remove_external_routes.or(default.remove_external_routes),
            ipv4_normal_route_priority: own.ipv4_normal_route_priority.or(default.ipv4_normal_route_priority),
            external_nodes_list: if own.external_nodes_list.is_empty() {
                default.external_nodes_list
            } else {
                own.external_nodes_list.clone()
            },
            mtu_iface_pattern: own.mtu_iface_pattern.clone().or(default.mtu_iface_pattern),
            extra: {
                let mut extra = default.extra;
                extra.extend(own.extra.clone());
                extra
            },
        }
    }

    /// Whether any pool asks for IPIP.
    pub fn ipip_wanted(&self) -> bool {
        self.felix().ipip_enabled.unwrap_or_else(|| {
            self.pools.values().any(|p| {
                p.ipip_mode != brindle_config_core::pool::EncapMode::Never && p.cidr.addr().is_ipv4()
            })
        })
    }

    /// Outer sources from which encapsulated packets are accepted: every node but this one, and externalNodesList
    /// (addresses and CIDRs, as Calico takes them).
    pub fn known_sources(&self) -> BTreeSet<Ipv4Net> {
        let nodes = self.nodes.iter().filter(|(n, _)| **n != self.node).filter_map(|(_, s)| s.ipv4());
        let external = self.felix().external_nodes_list;
        let external = external.iter().filter_map(|s| {
            s.parse::<Ipv4Net>().map(|n| n.trunc()).or_else(|_| s.parse::<Ipv4Addr>().map(Ipv4Net::from)).ok()
        });
        nodes.map(Ipv4Net::from).chain(external).collect()
    }

    /// Why there is no tunnel device, when there is none to be.
    pub fn why_no_ipip(&self) -> String {
        let me = self.nodes.get(&self.node);
        if self.felix().ipip_enabled == Some(false) {
            "ipipEnabled is false in the FelixConfiguration".into()
        } else if !self.ipip_wanted() {
            "no pool asks for IPIP".into()
        } else if me.and_then(NodeSpec::ipv4).is_none() {
            format!("Node({}) has no IPv4 address", self.node)
        } else {
            "not set up yet".into()
        }
    }

    /// Own blocks.
    pub fn own_blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.values().filter(|b| b.host.as_ref() == Some(&self.node))
    }

    /// The pool that covers a prefix, the most specific one, with its name.
    pub fn pool_of(&self, prefix: &IpNet) -> Option<(&str, &IpPoolSpec)> {
        let all = self.pools.iter().map(|(name, p)| (name.as_str(), p));
        all.filter(|(_, p)| p.cidr.contains(prefix)).max_by_key(|(_, p)| p.cidr.prefix_len())
    }

    /// What FelixConfiguration, or the environment that stands above it, asks this node for in vain.
    pub fn unserved(&self) -> Vec<String> {
        let felix = self.felix();
        let said = unserved::felix(&felix).map(|(field, why)| {
            format!(
                "FelixConfiguration: {field} is true, and {why}; set it to false where that will do, in `default`, for this \
                 node alone in `node.{}`, or as FELIX_{} if the agent's environment says it",
                self.node,
                field.to_ascii_uppercase()
            )
        });
        said.collect()
    }

    fn upsert(&mut self, e: &Entry) -> bool {
        self.take(e) | self.doubt(e)
    }

    /// Holds a resource in force against the rules for writers.
    fn doubt(&mut self, e: &Entry) -> bool {
        fn with<S: Spec>(
            e: &Entry,
            any: impl Fn(brindle_config_core::Resource<S>) -> AnyResource,
        ) -> Option<String> {
            let stored = decode::<S>(e).ok()?;
            validate::resource(&any(stored.resource)).err().map(|why| {
                // Several violations come in a line each.
                format!("{}: {}", e.key, why.to_string().replace('\n', " "))
            })
        }
        let why = match e.key.kind {
            Kind::IpPool => with(e, AnyResource::IpPool),
            Kind::Node => with(e, AnyResource::Node),
            Kind::FelixConfiguration => with(e, AnyResource::FelixConfiguration),
            _ => return false,
        };
        match why {
            Some(why) => self.doubtful.insert(e.key.clone(), why.clone()) != Some(why),
            None => self.doubtful.remove(&e.key).is_some(),
        }
    }

    fn take(&mut self, e: &Entry) -> bool {
        match e.key.kind {
            Kind::IpPool => put(&mut self.pools, &mut self.bad, e, |k| k.name.clone(), Some),
            Kind::IpamBlock => put(
                &mut self.blocks,
                &mut self.bad,
                e,
                |k| k.name.clone(),
                |b: IpamBlockSpec| {
                    let host = b.host().map(str::to_owned);
                    (!b.deleted).then_some(Block { cidr: b.cidr, host })
                },
            ),
            Kind::Node => put(&mut self.nodes, &mut self.bad, e, |k| k.name.clone(), Some),
            Kind::FelixConfiguration => self
                .field_by_field(e)
                .unwrap_or_else(|| put(&mut self.felix, &mut self.bad, e, |k| k.name.clone(), Some)),
            Kind::BgpConfiguration if e.key.name == "default" => {
                // What does not decode keeps its last good value; the speaker names it.
                let Ok(c) = decode::<BgpConfigurationSpec>(e).map(|s| s.resource.spec) else { return false };
                let outside = c.service_external_ips.iter().chain(&c.service_load_balancer_ips);
                let ranges = c.service_cluster_ips.iter().chain(outside).map(|b| b.cidr.trunc()).collect();
                let old = std::mem::replace(&mut self.services, ranges);
                old != self.services
            }
            Kind::WorkloadEndpoint => {
                let node = self.node.clone();
                let changed =
                    put(&mut self.endpoints, &mut self.bad, e, Key::clone, |mut w: WorkloadEndpointSpec| {
                        // No route and no setting for what is no device; the calculation of policy names it.
                        if !validate::device_name(&w.interface_name) {
                            w.interface_name.clear();
                        }
                        (w.node == node).then_some(w)
                    });
                changed | self.spoofs(e)
            }
            // The kinds of policy are for `calc`.
            _ => false,
        }
    }

    /// A FelixConfiguration some of whose fields do not decode; `None`: it is not one.
    fn field_by_field(&mut self, e: &Entry) -> Option<bool> {
        let why = decode::<FelixConfigurationSpec>(e).err()?;
        let spec = e.value.get("spec")?.as_object()?;
        let old = self.felix.get(&e.key.name);
        let (read, unread) = FelixConfigurationSpec::field_by_field(spec, old);
        let why = match &*unread {
            [] => return None,
            [_] => format!("{why}; its other fields hold"),
            // The error names the first.
            all => format!("{why}; cannot be read: {}; its other fields hold", all.join(", ")),
        };
        let changed = old != Some(&read);
        self.felix.insert(e.key.name.clone(), read);
        Some((self.bad.insert(e.key.clone(), why.clone()) != Some(why)) | changed)
    }

    /// Takes in whether an endpoint of this node asks for sources that are not its own.
    fn spoofs(&mut self, e: &Entry) -> bool {
        let annotations = e.value.get("metadata").and_then(|m| m.get("annotations"));
        let asked = annotations.and_then(|a| a.get(ALLOWED_SOURCES)).and_then(|a| a.as_str());
        let asks =
            asked.is_some_and(|a| !allowed_sources(a).is_empty()) && self.endpoints.contains_key(&e.key);
        if asks { self.spoofers.insert(e.key.clone()) } else { self.spoofers.remove(&e.key) }
    }

    fn delete(&mut self, key: &Key) -> bool {
        self.spoofers.remove(key);
        let was_bad = self.bad.remove(key).is_some() | self.doubtful.remove(key).is_some();
        let had = match key.kind {
            Kind::IpPool => self.pools.remove(&key.name).is_some(),
            Kind::IpamBlock => self.blocks.remove(&key.name).is_some(),
            Kind::Node => self.nodes.remove(&key.name).is_some(),
            Kind::FelixConfiguration => self.felix.remove(&key.name).is_some(),
            Kind::BgpConfiguration if key.name == "default" => !std::mem::take(&mut self.services).is_empty(),
            Kind::WorkloadEndpoint => self.endpoints.remove(key).is_some(),
            _ => false,
        };
        had || was_bad
    }
}

/// Stores what is to be kept of a decoded spec under its name; nothing: as if it were not there. What does not decode keeps
/// its last good value and is named in `bad`: running traffic is not cut because of a typing mistake.
fn put<K: Ord, S: Spec, T: PartialEq>(
    map: &mut BTreeMap<K, T>,
    bad: &mut BTreeMap<Key, String>,
    entry: &Entry,
    name: impl Fn(&Key) -> K,
    keep: impl FnOnce(S) -> Option<T>,
) -> bool {
    match decode::<S>(entry) {
        Ok(stored) => {
            let was_bad = bad.remove(&entry.key).is_some();
            let key = name(&entry.key);
            let Some(new) = keep(stored.resource.spec) else {
                return map.remove(&key).is_some() || was_bad;
            };
            let same = map.get(&key) == Some(&new);
            if !same {
                map.insert(key, new);
            }
            !same || was_bad
        }
        Err(e) => bad.insert(entry.key.clone(), e.to_string()).is_none(),
    }
}
