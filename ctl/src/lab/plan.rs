//! Topology in, complete plan out: every name, address and port of a lab, decided before anything is made, so that
//! the plan can be written down first and `lab down` finds whatever was made of it. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use brindle_config_core::pool::EncapMode;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::topology::{AgentKind, Carrier, IpFamilies, NodeTopology, ROUTER_AS, RouterKind, Topology};

/// Longest name of a lab, a segment or a node: unix socket paths and namespace names stay short enough with it.
const NAME_MAX: usize = 24;
/// Most pods of a lab: the proof asks every one from every other.
const PODS_MAX: usize = 800;
/// Device of a node towards its segment, and of a pod.
pub(crate) const UPLINK: &str = "eth0";

/// Everything about a lab that is known before it exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LabPlan {
    pub(crate) name: String,
    pub(crate) as_number: u32,
    pub(crate) mtu: u32,
    /// Neighbours on a segment are static entries instead of resolved ones, because the kernel's table, which all
    /// namespaces share, would overflow. See [`LabPlan::fit_neighbours`].
    #[serde(default)]
    pub(crate) static_neighbours: bool,
    #[serde(default)]
    pub(crate) families: IpFamilies,
    pub(crate) pool: PoolPlan,
    /// Namespace that holds the bridges.
    pub(crate) fabric: String,
    pub(crate) router: RouterPlan,
    pub(crate) segments: Vec<SegmentPlan>,
    pub(crate) nodes: Vec<NodePlan>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PoolPlan {
    pub(crate) cidr: Ipv4Net,
    pub(crate) ipip: EncapMode,
    pub(crate) block_size: u8,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RouterPlan {
    pub(crate) namespace: String,
    pub(crate) kind: RouterKind,
    pub(crate) as_number: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SegmentPlan {
    pub(crate) name: String,
    pub(crate) subnet: Ipv4Net,
    /// The router's address.
    pub(crate) gateway: Ipv4Net,
    /// The same for IPv6, where the lab has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway6: Option<Ipv6Net>,
    /// Bridge, in the fabric.
    pub(crate) bridge: String,
    /// The bridge's port towards the router, in the fabric.
    pub(crate) router_port: String,
    /// The router's device, in the router.
    pub(crate) router_device: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NodePlan {
    pub(crate) name: String,
    pub(crate) number: u16,
    pub(crate) namespace: String,
    pub(crate) segment: String,
    /// The lab's, or, where an FRR router is, one per segment: what a node hands on of another segment's routes is
    /// then a longer path than the owner's own, and the router chooses the owner.
    pub(crate) as_number: u32,
    /// With the prefix length of its segment.
    pub(crate) address: Ipv4Net,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) address6: Option<Ipv6Net>,
    pub(crate) agent: AgentKind,
    #[serde(default)]
    pub(crate) ipip_carrier: Carrier,
    /// The bridge's port towards the node, in the fabric.
    pub(crate) port: String,
    /// Pod addresses of a BIRD node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) block: Option<Ipv4Net>,
    pub(crate) pods: Vec<PodPlan>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodPlan {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) container_id: String,
    /// Known beforehand only on a BIRD node, where the lab gives the addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<Ipv4Addr>,
}

/// What is wrong with a topology, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub(crate) struct PlanError {
    /// Path of the field as in the YAML file, `nodes[2].segment`.
    pub(crate) field: String,
    pub(crate) reason: String,
}

fn wrong<T>(field: impl Into<String>, reason: impl Into<String>) -> Result<T, PlanError> {
    Err(PlanError { field: field.into(), reason: reason.into() })
}

/// Checks a name: lower-case letters, digits and `-`, beginning with a letter.
fn check_name(field: &str, name: &str) -> Result<(), PlanError> {
    let good = name.len() <= NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !name.ends_with('-');
    if good {
        Ok(())
    } else {
        wrong(
            field,
            format!(
                "{name:?} is no good name: at most {NAME_MAX} lower-case letters, digits and '-', \
                 beginning with a letter"
            ),
        )
    }
}

/// Checks the name of a lab, alone.
pub(crate) fn check_lab_name(name: &str) -> Result<(), PlanError> {
    check_name("name", name)
}

impl LabPlan {
    /// Plans a lab called `name`.
    pub(crate) fn new(name: &str, topology: &Topology) -> Result<Self, PlanError> {
        check_lab_name(name)?;
        if topology.segments.is_empty() {
            return wrong("segments", "a lab needs at least one");
        }
        if topology.nodes.is_empty() {
            return wrong("nodes", "a lab needs at least one");
        }
        if !(1280..=9000).contains(&topology.mtu) {
            return wrong("mtu", format!("{} is outside 1280..9000", topology.mtu));
        }
        let pool = &topology.pool;
        if !(20..=32).contains(&pool.block_size) || pool.block_size < pool.cidr.prefix_len() {
            return wrong(
                "pool.blockSize",
                format!("{} is not a prefix length from 20 to 32 inside {}", pool.block_size, pool.cidr),
            );
        }
        let mut plan = Self {
            name: name.to_owned(),
            as_number: topology.as_number,
            mtu: topology.mtu,
            static_neighbours: false,
            families: topology.ip_families,
            pool: PoolPlan { cidr: pool.cidr.trunc(), ipip: pool.ipip_mode, block_size: pool.block_size },
            fabric: format!("{name}-fabric"),
            router: RouterPlan {
                namespace: format!("{name}-router"),
                kind: topology.router.kind,
                as_number: topology.router.as_number.unwrap_or(ROUTER_AS),
            },
            segments: plan_segments(topology)?,
            nodes: Vec::new(),
        };
        plan.check_ranges()?;
        plan.check_families(topology)?;
        for (i, node) in topology.nodes.iter().enumerate() {
            plan.push_node(node, &format!("nodes[{i}]"))?;
        }
        let pods = plan.pods().count();
        if pods > PODS_MAX {
            return wrong("nodes", format!("{pods} pods are more than the {PODS_MAX} that a lab can prove"));
        }
        Ok(plan)
    }

    /// Plans one more node; errors name fields below `field`.
    pub(crate) fn push_node(&mut self, node: &NodeTopology, field: &str) -> Result<&NodePlan, PlanError> {
        check_name(&format!("{field}.name"), &node.name)?;
        if ["router", "fabric"].contains(&node.name.as_str()) {
            return wrong(format!("{field}.name"), format!("{:?} is taken by the lab itself", node.name));
        }
        if self.node(&node.name).is_some() {
            return wrong(format!("{field}.name"), format!("{:?} is already there", node.name));
        }
        let Some(segment) = self.segment(&node.segment) else {
            let known: Vec<_> = self.segments.iter().map(|s| s.name.as_str()).collect();
            return wrong(
                format!("{field}.segment"),
                format!("there is no segment {:?}; there are: {}", node.segment, known.join(" ")),
            );
        };
        let number = self.nodes.iter().map(|n| n.number).max().unwrap_or(0) + 1;
        let address = node.address.unwrap_or_else(|| {
            Ipv4Addr::from(u32::from(segment.subnet.network()).saturating_add(u32::from(number)))
        });
        if !segment.subnet.contains(&address)
            || [segment.subnet.network(), segment.subnet.broadcast()].contains(&address)
        {
            return wrong(
                format!("{field}.address"),
                format!("{address} is no host address of segment {} ({})", segment.name, segment.subnet),
            );
        }
        if address == segment.gateway.addr() {
            return wrong(format!("{field}.address"), format!("{address} is the router's"));
        }
        if let Some(other) = self.nodes.iter().find(|n| n.address.addr() == address) {
            return wrong(format!("{field}.address"), format!("{address} is already {}'s", other.name));
        }
        let block = plan_block(node, number, field)?;
        if let Some(block) = block {
            self.check_apart(&format!("{field}.block"), block)?;
        }
        let plan = NodePlan {
            name: node.name.clone(),
            number,
            namespace: format!("{}-{}", self.name, node.name),
            segment: segment.name.clone(),
            as_number: match self.router.kind {
                RouterKind::Plain => self.as_number,
                RouterKind::Frr => {
                    let position = self.segments.iter().position(|s| s.name == segment.name).unwrap_or(0);
                    self.as_number.saturating_add(u32::try_from(position).unwrap_or(0))
                }
            },
            address: Ipv4Net::new_assert(address, segment.subnet.prefix_len()),
            address6: segment.gateway6.map(|g| host6(g, number)),
            agent: node.agent,
            ipip_carrier: node.ipip_carrier,
            port: format!("n{number}"),
            block,
            pods: (1..=node.pods).map(|k| self.plan_pod(number, k, block)).collect(),
        };
        if let Some(pod) = plan.pods.iter().find(|p| self.node(&p.name).is_some() || p.name == plan.name) {
            return wrong(format!("{field}.pods"), format!("pod {} has the name of a node", pod.name));
        }
        self.nodes.push(plan);
        Ok(self.nodes.last().expect("just pushed"))
    }

    fn plan_pod(&self, node: u16, k: u16, block: Option<Ipv4Net>) -> PodPlan {
        let name = format!("p{node}-{k}");
        PodPlan {
            namespace: format!("{}-{name}", self.name),
            container_id: format!("{}-{name}", self.name),
            address: block.map(|b| Ipv4Addr::from(u32::from(b.network()).saturating_add(u32::from(k)))),
            name,
        }
    }

    /// IPv6 goes by the underlay alone, and by agents of ours alone.
    fn check_families(&self, topology: &Topology) -> Result<(), PlanError> {
        if !self.families.v6() {
            return Ok(());
        }
        if self.segments.len() > 1 || self.router.kind == RouterKind::Frr {
            return wrong(
                "ipFamilies",
                "a lab with IPv6 has one segment and a plain router: IPIP carries no IPv6, and the router knows no pods; \
                 use --segments 1",
            );
        }
        match topology.nodes.iter().position(|n| n.agent == AgentKind::Bird) {
            Some(i) => wrong(format!("nodes[{i}].agent"), "a lab with IPv6 has brindle nodes only"),
            None => Ok(()),
        }
    }

    /// Subnets, pool and blocks must not overlap.
    fn check_ranges(&self) -> Result<(), PlanError> {
        for (i, s) in self.segments.iter().enumerate() {
            if overlap(s.subnet, self.pool.cidr) {
                return wrong(
                    format!("segments[{i}].cidr"),
                    format!("{} overlaps the pool {}", s.subnet, self.pool.cidr),
                );
            }
            if let Some(o) = self.segments.iter().take(i).find(|o| overlap(o.subnet, s.subnet)) {
                return wrong(
                    format!("segments[{i}].cidr"),
                    format!("{} overlaps segment {} ({})", s.subnet, o.name, o.subnet),
                );
            }
        }
        Ok(())
    }

    fn check_apart(&self, field: &str, block: Ipv4Net) -> Result<(), PlanError> {
        let others = self
            .segments
            .iter()
            .map(|s| (s.subnet, format!("segment {}", s.name)))
            .chain([(self.pool.cidr, "the pool".to_owned())])
            .chain(self.nodes.iter().filter_map(|n| Some((n.block?, format!("the block of {}", n.name)))));
        for (net, what) in others {
            if overlap(net, block) {
                return wrong(field, format!("{block} overlaps {what} ({net})"));
            }
        }
        Ok(())
    }

    pub(crate) fn node(&self, name: &str) -> Option<&NodePlan> {
        self.nodes.iter().find(|n| n.name == name)
    }

    pub(crate) fn segment(&self, name: &str) -> Option<&SegmentPlan> {
        self.segments.iter().find(|s| s.name == name)
    }

    /// Every pod with its node, in order.
    pub(crate) fn pods(&self) -> impl Iterator<Item = (&NodePlan, &PodPlan)> {
        self.nodes.iter().flat_map(|n| n.pods.iter().map(move |p| (n, p)))
    }

    /// Every namespace of the lab: fabric, router, nodes, pods.
    pub(crate) fn namespaces(&self) -> Vec<&str> {
        [self.fabric.as_str(), self.router.namespace.as_str()]
            .into_iter()
            .chain(self.nodes.iter().map(|n| n.namespace.as_str()))
            .chain(self.pods().map(|(_, p)| p.namespace.as_str()))
            .collect()
    }

    /// The namespace of a node, a pod, `router` or `fabric`.
    pub(crate) fn namespace_of(&self, name: &str) -> Option<&str> {
        match name {
            "fabric" => return Some(&self.fabric),
            "router" => return Some(&self.router.namespace),
            _ => {}
        }
        self.node(name)
            .map(|n| n.namespace.as_str())
            .or_else(|| self.pods().find(|(_, p)| p.name == name).map(|(_, p)| p.namespace.as_str()))
    }

    /// Decides whether the lab fits a neighbour table of `limit` entries: every node knows the others of its segment
    /// and the router (and the other way round), which can be static and then does not count; every pod knows its
    /// gateway and is known by its node, which is the product's business and counts.
    pub(crate) fn fit_neighbours(&mut self, limit: usize) -> Result<(), PlanError> {
        let pods = 2 * self.pods().count();
        let on = |s: &SegmentPlan| self.nodes.iter().filter(|n| n.segment == s.name).count();
        let nodes: usize = self.segments.iter().map(on).map(|n| n * (n + 1)).sum();
        // Others on this machine use the table, too.
        let share = limit / 2;
        if pods > limit - limit / 8 {
            return wrong(
                "nodes",
                format!(
                    "{} pods need {pods} entries of the kernel's neighbour table, which has {limit}; \
                     make it larger: sysctl -w net.ipv4.neigh.default.gc_thresh3={}",
                    pods / 2,
                    (pods * 2).next_power_of_two()
                ),
            );
        }
        self.static_neighbours = pods + nodes > share;
        Ok(())
    }

    /// MTU of the pods: what an IPIP header leaves, when there may be one.
    pub(crate) fn pod_mtu(&self) -> u32 {
        if self.pool.ipip == EncapMode::Never || !self.families.v4() { self.mtu } else { self.mtu - 20 }
    }

    /// Addresses of a node, of the families the lab has.
    pub(crate) fn addresses(&self, node: &NodePlan) -> Vec<IpAddr> {
        let v4 = self.families.v4().then_some(IpAddr::V4(node.address.addr()));
        v4.into_iter().chain(node.address6.map(|a| IpAddr::V6(a.addr()))).collect()
    }

    /// The addresses from which BGP sessions of node `name` come and go: all other nodes, and an FRR router.
    pub(crate) fn peers_of(&self, name: &str) -> BTreeMap<IpAddr, String> {
        let mut peers: BTreeMap<IpAddr, String> = self
            .nodes
            .iter()
            .filter(|n| n.name != name)
            .flat_map(|n| self.addresses(n).into_iter().map(|a| (a, n.name.clone())))
            .collect();
        if self.router.kind == RouterKind::Frr
            && let Some(segment) = self.node(name).and_then(|n| self.segment(&n.segment))
        {
            peers.insert(IpAddr::V4(segment.gateway.addr()), "router".to_owned());
        }
        peers
    }
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The IPv6 pool of a lab.
pub(crate) fn pool6() -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 0), 48)
}

/// The router's address on segment N, `fd77:0:0:N::ffff/64`.
fn segment6(number: usize) -> Ipv6Net {
    let n = u16::try_from(number).unwrap_or(u16::MAX);
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd77, 0, 0, n, 0, 0, 0, 0xffff), 64)
}

/// Node N's address beside that gateway.
fn host6(gateway: Ipv6Net, number: u16) -> Ipv6Net {
    let network = u128::from(gateway.network());
    Ipv6Net::new_assert(Ipv6Addr::from(network | u128::from(number)), gateway.prefix_len())
}

fn plan_segments(topology: &Topology) -> Result<Vec<SegmentPlan>, PlanError> {
    let mut segments: Vec<SegmentPlan> = Vec::new();
    for (i, s) in topology.segments.iter().enumerate() {
        check_name(&format!("segments[{i}].name"), &s.name)?;
        if segments.iter().any(|o| o.name == s.name) {
            return wrong(format!("segments[{i}].name"), format!("{:?} is already there", s.name));
        }
        let number = i + 1;
        let subnet = match (s.cidr, u8::try_from(number)) {
            (Some(cidr), _) => cidr.trunc(),
            (None, Ok(n)) => Ipv4Net::new_assert(Ipv4Addr::new(10, 77, n, 0), 24),
            (None, Err(_)) => return wrong("segments", "more than 255 need a cidr each"),
        };
        if !(8..=29).contains(&subnet.prefix_len()) {
            return wrong(
                format!("segments[{i}].cidr"),
                format!("{subnet}: the prefix length must be from 8 to 29"),
            );
        }
        let last = Ipv4Addr::from(u32::from(subnet.broadcast()) - 1);
        segments.push(SegmentPlan {
            name: s.name.clone(),
            subnet,
            gateway: Ipv4Net::new_assert(last, subnet.prefix_len()),
            gateway6: topology.ip_families.v6().then(|| segment6(number)),
            bridge: format!("br{number}"),
            router_port: format!("r{number}"),
            router_device: format!("eth{number}"),
        });
    }
    Ok(segments)
}

fn plan_block(node: &NodeTopology, number: u16, field: &str) -> Result<Option<Ipv4Net>, PlanError> {
    match (node.agent, node.block) {
        (AgentKind::Brindle, None) => Ok(None),
        (AgentKind::Brindle, Some(_)) => wrong(
            format!("{field}.block"),
            "only a bird node has a fixed block; the others take theirs by IPAM",
        ),
        (AgentKind::Bird, block) => {
            let third = u8::try_from(number).unwrap_or(u8::MAX);
            let block =
                block.map_or_else(|| Ipv4Net::new_assert(Ipv4Addr::new(10, 78, third, 0), 26), |b| b.trunc());
            let room = 1u64 << (32 - u32::from(block.prefix_len()));
            if u64::from(node.pods) + 2 > room {
                return wrong(
                    format!("{field}.block"),
                    format!("{block} has no room for {} pods", node.pods),
                );
            }
            Ok(Some(block))
        }
    }
}

#[cfg(test)]
mod tests;
