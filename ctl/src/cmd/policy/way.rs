//! Which host endpoints a packet may pass on a node: what the datastore tells of the interface by which it comes in or
//! leaves. Nothing is asked of the node itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use brindle_config_core::{
    Kind,
    node::NodeSpec,
    pool::{EncapMode, IpPoolSpec},
    store::{Entry, decode},
};
use brindle_felix_core::policy::{
    active::{EndpointId, EndpointPolicy, Interface},
    state::PolicyState,
};

use super::ends::End;

/// The device of IPIP.
const TUNNEL: &str = "tunl0";

/// What is looked at beside the resources of policy.
pub(super) const KINDS: [Kind; 3] = [Kind::Node, Kind::IpPool, Kind::Service];

/// An interface of a node, as far as policy knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Door {
    /// Its name, when it is known.
    pub(super) interface: Option<String>,
    /// Who stands for it.
    pub(super) endpoint: Option<EndpointId>,
    /// Nobody said so, and the packet may as well take another one.
    pub(super) guessed: bool,
    /// Whether the interface has an address of the endpoint, only the node knows.
    pub(super) maybe: bool,
}

/// Nodes and pools: who has which address, and between whom packets are tunnelled.
pub(super) struct Nodes {
    nodes: BTreeMap<String, NodeSpec>,
    pools: Vec<IpPoolSpec>,
}

impl Nodes {
    /// Resources that do not decode are left out; the agents name them.
    pub(super) fn new(entries: &[Entry]) -> Self {
        let of = |kind| entries.iter().filter(move |e| e.key.kind == kind);
        let node = |e: &Entry| Some((e.key.name.clone(), decode::<NodeSpec>(e).ok()?.resource.spec));
        let pool = |e: &Entry| Some(decode::<IpPoolSpec>(e).ok()?.resource.spec);
        Self {
            nodes: of(Kind::Node).filter_map(node).collect(),
            pools: of(Kind::IpPool).filter_map(pool).collect(),
        }
    }

    /// The node that has an address.
    pub(super) fn at(&self, address: IpAddr) -> Option<&str> {
        self.nodes.iter().find(|(_, n)| n.ips().any(|a| a == address)).map(|(name, _)| &**name)
    }

    /// A node's own addresses.
    pub(super) fn addresses(&self, node: &str) -> Vec<IpAddr> {
        self.nodes.get(node).map(|n| n.ips().collect()).unwrap_or_default()
    }

    /// The addresses of a node's devices, as far as the datastore tells: that of its tunnel.
    fn devices(&self, node: &str) -> BTreeMap<IpAddr, String> {
        let bgp = self.nodes.get(node).and_then(|n| n.bgp.as_ref());
        let address = bgp.and_then(|b| b.ipv4_ipip_tunnel_addr);
        address.map(|ip| (ip.into(), TUNNEL.to_owned())).into_iter().collect()
    }

    /// Whether packets from one node for a pod of another go through a tunnel.
    fn tunnelled(&self, from: &str, to: &str, pod: IpAddr) -> bool {
        let IpAddr::V4(_) = pod else { return false };
        let containing = self.pools.iter().filter(|p| p.cidr.contains(&pod));
        let mode = containing.max_by_key(|p| p.cidr.prefix_len()).map(|p| p.ipip_mode);
        let same_subnet = || {
            let own = self.nodes.get(from).and_then(|n| n.bgp.as_ref()?.ipv4_address);
            let hop = self.nodes.get(to).and_then(NodeSpec::ipv4);
            own.zip(hop).is_some_and(|(own, hop)| own.0.contains(&hop))
        };
        match mode {
            Some(EncapMode::Always) => true,
            Some(EncapMode::CrossSubnet) => !same_subnet(),
            Some(EncapMode::Never) | None => false,
        }
    }
}

/// What was said with `--through`.
#[derive(Debug)]
pub(super) struct Through {
    endpoints: BTreeSet<EndpointId>,
    /// The nodes they are on.
    nodes: BTreeSet<String>,
    interface: Option<String>,
}

impl Through {
    /// Names of host endpoints, each for its own node, and the name of an interface for the others.
    pub(super) fn new(entries: &[Entry], typed: &[String]) -> anyhow::Result<Self> {
        let hep = |name: &str| entries.iter().any(|e| e.key.kind == Kind::HostEndpoint && e.key.name == name);
        let (endpoints, interfaces): (Vec<&String>, Vec<&String>) = typed.iter().partition(|t| hep(t));
        if interfaces.len() > 1 {
            anyhow::bail!(
                "--through {}: there is no such HostEndpoint, and one name of an interface is enough",
                interfaces.last().map_or("", |s| s.as_str())
            );
        }
        let node = |name: &&String| {
            let of = entries.iter().find(|e| e.key.kind == Kind::HostEndpoint && e.key.name == **name)?;
            Some(of.value.pointer("/spec/node")?.as_str()?.to_owned())
        };
        Ok(Self {
            nodes: endpoints.iter().filter_map(node).collect(),
            endpoints: endpoints.into_iter().map(|n| EndpointId::Host { name: n.clone() }).collect(),
            interface: interfaces.first().map(|s| (*s).clone()),
        })
    }
}

impl Through {
    /// Whether it says which interface of a node is meant.
    pub(super) fn says(&self, node: Option<&str>) -> bool {
        node.is_some_and(|n| self.interface.is_some() || self.nodes.contains(n))
    }
}

/// The interfaces by which a packet may pass between this node and what is beyond it: `far`, at its address. More than
/// one where nothing tells which; each of them has a host endpoint.
pub(super) fn doors(
    state: &PolicyState,
    nodes: &Nodes,
    through: &Through,
    (node, out): (&str, bool),
    (far, near_address, far_address): (&End, IpAddr, IpAddr),
) -> Vec<Door> {
    let all: Vec<&EndpointPolicy> =
        state.endpoints.values().map(|e| &**e).filter(|e| e.host.is_some()).collect();
    let any = all.iter().find(|e| e.interface == Interface::Any);
    let devices = nodes.devices(node);
    let door = |e: &EndpointPolicy, guessed| {
        let interface = match &e.interface {
            Interface::Name(n) => Some(n.clone()),
            Interface::WithAddress | Interface::Any => None,
        };
        Door { interface, endpoint: Some(e.id.clone()), guessed, maybe: false }
    };
    let named = |name: &str| {
        let at = |endpoint, maybe| Door { interface: Some(name.to_owned()), endpoint, guessed: false, maybe };
        let known = state.host_endpoint_at(name, &devices).cloned();
        let is_known = |e: &&&EndpointPolicy| known.as_ref() == Some(&e.id) && e.interface != Interface::Any;
        let mut found = Vec::new();
        if name != TUNNEL && !all.iter().any(|e| is_known(&e)) {
            // The node's other devices may have any address of its own.
            let unnamed = all.iter().filter(|e| e.interface == Interface::WithAddress);
            found.extend(unnamed.map(|e| at(Some(e.id.clone()), true)));
        }
        found.push(at(known, false));
        found
    };
    if let Some(e) = all.iter().find(|e| through.endpoints.contains(&e.id)) {
        return vec![door(e, false)];
    }
    if let Some(name) = &through.interface {
        return named(name);
    }
    // Both ends tell whether packets are tunnelled on their way: the sender does it, for the pod it sends to.
    let tunnel = far.node.as_ref().is_some_and(|other| match out {
        true => nodes.tunnelled(node, other, far_address),
        false => nodes.tunnelled(other, node, near_address),
    });
    if tunnel {
        return named(TUNNEL);
    }
    let guessed = any.is_none();
    let not_tunnel = |e: &&&EndpointPolicy| !matches!(&e.interface, Interface::Name(n) if n == TUNNEL);
    let mut found: Vec<Door> = all.iter().filter(not_tunnel).map(|e| door(e, guessed)).collect();
    if found.is_empty() {
        found.push(Door::default());
    }
    found
}

/// Host endpoints of the node without `interfaceName`, when there are several: where two have an address of one device,
/// everything but failsafe ports is dropped there, and which device has an address only the node knows.
pub(super) fn unnamed(state: &PolicyState) -> Vec<EndpointId> {
    let all = state.endpoints.values().filter(|e| e.host.is_some() && e.interface == Interface::WithAddress);
    let all: Vec<EndpointId> = all.map(|e| e.id.clone()).collect();
    if all.len() > 1 { all } else { Vec::new() }
}
