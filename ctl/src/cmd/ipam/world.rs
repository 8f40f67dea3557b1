//! What the `ipam` commands look at: one consistent listing of all that has to do with addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use brindle_config_core::{
    Key, Kind,
    felix::ClusterInformationSpec,
    names::{handle_name, load_balancer_handle},
    pool::AllowedUse,
    store::{Entry, Revision, Store, StoreError, StoreExt as _, Stored, decode},
    workload::WorkloadEndpointSpec,
};
use brindle_ipam::{
    Now, View,
    block::Allocation,
    leak::FOREIGN,
    usage::{Blocks, allocated_to},
};
use serde_json::Value;

/// The records.
pub(super) struct World {
    pub(super) view: View,
    pub(super) entries: Vec<Entry>,
    pub(super) blocks: Blocks,
    pub(super) endpoints: Vec<Stored<WorkloadEndpointSpec>>,
    /// Why they could not be read, where they could not: not everybody may.
    pub(super) services: Result<Vec<Entry>, StoreError>,
    pub(super) cluster: ClusterInformationSpec,
    pub(super) cluster_revision: Revision,
}

/// What handles of LoadBalancer services begin with.
const BALANCER: &str = "lb-";

const KINDS: [Kind; 5] =
    [Kind::IpamBlock, Kind::BlockAffinity, Kind::IpamHandle, Kind::WorkloadEndpoint, Kind::Node];

impl World {
    /// Reads everything.
    pub(super) async fn read(store: &dyn Store) -> Result<Self> {
        // No node is meant: pools are looked at, not chosen.
        let view = View::load(store, "").await?;
        let entries = store.list(&KINDS).await?.entries;
        let services = store.list(&[Kind::Service]).await.map(|listing| listing.entries);
        let endpoints = entries
            .iter()
            .filter(|e| e.key.kind == Kind::WorkloadEndpoint)
            .filter_map(|e| decode(e).ok())
            .collect();
        let (cluster, cluster_revision) = match store.get_as::<ClusterInformationSpec>(None, "default").await
        {
            Ok(c) => (c.resource.spec, c.revision),
            Err(StoreError::NotFound(_)) => Default::default(),
            Err(e) => return Err(e.into()),
        };
        let blocks = Blocks::read(&entries);
        Ok(Self { view, blocks, entries, endpoints, services, cluster, cluster_revision })
    }

    /// Whether somebody locked the datastore.
    pub(super) fn locked(&self) -> bool {
        self.cluster.datastore_ready == Some(false)
    }

    /// Refuses to go on while pods may come and go.
    pub(super) fn must_be_locked(&self, force: bool) -> Result<()> {
        if self.locked() || force {
            return Ok(());
        }
        bail!(
            "the datastore is not locked: pods could be given addresses meanwhile; lock it first (brindlectl datastore \
             migrate lock), or use --force"
        )
    }

    /// Addresses of pods, each with its users, and how many there are.
    pub(super) fn workloads(&self) -> BTreeMap<IpAddr, Vec<String>> {
        let mut users: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        for e in &self.endpoints {
            let whose = workload(e);
            for net in &e.resource.spec.ip_networks {
                users.entry(net.addr()).or_default().push(whose.clone());
            }
        }
        users
    }

    /// Tunnel addresses the Nodes name: of IPIP, VXLAN and WireGuard, both families.
    pub(super) fn tunnels(&self) -> BTreeMap<IpAddr, Vec<String>> {
        const FIELDS: [&str; 5] = [
            "/spec/bgp/ipv4IPIPTunnelAddr",
            "/spec/ipv4VXLANTunnelAddr",
            "/spec/ipv6VXLANTunnelAddr",
            "/spec/wireguard/interfaceIPv4Address",
            "/spec/wireguard/interfaceIPv6Address",
        ];
        let mut users: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        // By its fields: what else is wrong with a Node makes its addresses no less used.
        for entry in self.entries.iter().filter(|e| e.key.kind == Kind::Node) {
            let text = |field: &&str| entry.value.pointer(field).and_then(Value::as_str);
            for ip in FIELDS.iter().filter_map(text).filter_map(|t| t.parse().ok()) {
                let whose = format!("tunnel of node {}", entry.key.name);
                let by = users.entry(ip).or_default();
                if !by.contains(&whose) {
                    by.push(whose);
                }
            }
        }
        users
    }
}

impl World {
    /// Addresses of LoadBalancer services: what their handles hold, and what they show of pools for load balancers (other
    /// load balancers have addresses of their own).
    pub(super) fn balancers(&self) -> BTreeMap<IpAddr, Vec<String>> {
        let mut held: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
        for (_, a) in self.blocks.allocations() {
            if let Some(handle) = a.handle().filter(|h| h.starts_with(BALANCER)) {
                held.entry(handle_name(handle)).or_default().insert(a.ip);
            }
        }
        let ours = |ip: &IpAddr| {
            let mut pools = self.view.pools.iter().filter(|p| p.spec.allows(AllowedUse::LoadBalancer));
            pools.any(|p| p.spec.cidr.contains(ip))
        };
        let mut users: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        for entry in self.services.iter().flatten() {
            let text = |path: &str| entry.value.pointer(path).and_then(Value::as_str).unwrap_or_default();
            if text("/spec/type") != "LoadBalancer" {
                continue;
            }
            let Key { namespace, name, .. } = &entry.key;
            let handle = load_balancer_handle(name, namespace, text("/metadata/uid"));
            let mut ips = held.remove(&handle_name(&handle)).unwrap_or_default();
            let shown = entry.value.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
            let shown = shown.into_iter().flatten().filter_map(|i| i.get("ip")?.as_str()?.parse().ok());
            ips.extend(shown.filter(ours));
            for ip in ips {
                users.entry(ip).or_default().push(format!("service {namespace}/{name}"));
            }
        }
        users
    }

    /// Every address something uses, and what.
    pub(super) fn users(&self) -> BTreeMap<IpAddr, Vec<String>> {
        let mut users = self.workloads();
        for (ip, by) in self.tunnels().into_iter().chain(self.balancers()) {
            users.entry(ip).or_default().extend(by);
        }
        users
    }

    /// Whom an address on another plugin's interface was given to: nothing here tells whether that is still there.
    pub(super) fn foreign(&self, ip: IpAddr) -> Option<String> {
        let a = self.blocks.of(ip)?.allocation(ip).filter(|a| !a.cooling())?;
        a.attribute.secondary.contains_key(FOREIGN).then(|| allocated_to(&a))
    }
}

/// The LoadBalancer service an address was given to, `namespace/name`.
pub(super) fn service_of(a: &Allocation<'_>) -> Option<String> {
    let attribute = |key: &str| a.attribute.secondary.get(key);
    a.handle().filter(|h| h.starts_with(BALANCER))?;
    Some(format!("{}/{}", attribute("namespace")?, attribute("service")?))
}

/// `namespace/pod`, else the container.
pub(super) fn workload(e: &Stored<WorkloadEndpointSpec>) -> String {
    let spec = &e.resource.spec;
    let name = [&spec.pod, &spec.workload, &spec.container_id].into_iter().find(|n| !n.is_empty());
    let namespace = e.resource.metadata.namespace.as_deref().unwrap_or("default");
    format!("{namespace}/{}", name.map_or("?", String::as_str))
}

/// The wall clock.
pub(super) fn now() -> Result<Now> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(Now(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)))
}
