//! The topology a person asks for: the YAML schema of `lab up --topology` and the default made from flags. Only
//! syntax and single values are checked here; what needs the whole picture (names, addresses, sizes) is `plan`.

use std::net::Ipv4Addr;

use brindle_config_core::pool::EncapMode;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// AS number of the nodes when none is given.
pub(crate) const DEFAULT_AS: u32 = 64512;
/// AS number of an FRR router when none is given.
pub(crate) const ROUTER_AS: u32 = 64999;

/// What a lab shall look like. docs/design/lab.md explains the fields to users.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Topology {
    #[serde(default)]
    pub(crate) name: Option<String>,
    #[serde(default = "default_as")]
    pub(crate) as_number: u32,
    /// MTU of the links between nodes.
    #[serde(default = "default_mtu")]
    pub(crate) mtu: u32,
    /// Families of nodes and pods.
    #[serde(default)]
    pub(crate) ip_families: IpFamilies,
    #[serde(default)]
    pub(crate) pool: PoolTopology,
    #[serde(default)]
    pub(crate) router: RouterTopology,
    pub(crate) segments: Vec<SegmentTopology>,
    pub(crate) nodes: Vec<NodeTopology>,
}

/// Which families nodes and pods have addresses of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum IpFamilies {
    #[default]
    Ipv4,
    Ipv6,
    Dual,
}

impl IpFamilies {
    pub(crate) const fn v4(self) -> bool {
        matches!(self, Self::Ipv4 | Self::Dual)
    }

    pub(crate) const fn v6(self) -> bool {
        matches!(self, Self::Ipv6 | Self::Dual)
    }

    /// For screens.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
            Self::Dual => "IPv4 and IPv6",
        }
    }
}

/// The pool of pod addresses.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct PoolTopology {
    pub(crate) cidr: Ipv4Net,
    /// `Always`, `CrossSubnet`, `Never`.
    pub(crate) ipip_mode: EncapMode,
    pub(crate) block_size: u8,
}

impl Default for PoolTopology {
    fn default() -> Self {
        Self {
            cidr: Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
            ipip_mode: EncapMode::CrossSubnet,
            block_size: 26,
        }
    }
}

/// The router between the segments.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct RouterTopology {
    pub(crate) kind: RouterKind,
    /// Only for `frr`; absent = 64999.
    pub(crate) as_number: Option<u32>,
}

/// What the router is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RouterKind {
    /// A Linux router that knows the segments and nothing of pods.
    #[default]
    Plain,
    /// FRR, peering with every node by eBGP, as a top-of-rack switch would.
    Frr,
}

/// One L2 segment.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SegmentTopology {
    pub(crate) name: String,
    /// Absent = 10.77.<number of the segment>.0/24.
    #[serde(default)]
    pub(crate) cidr: Option<Ipv4Net>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NodeTopology {
    pub(crate) name: String,
    pub(crate) segment: String,
    /// Absent = <segment>.<number of the node>.
    #[serde(default)]
    pub(crate) address: Option<Ipv4Addr>,
    #[serde(default)]
    pub(crate) agent: AgentKind,
    #[serde(default = "default_pods")]
    pub(crate) pods: u16,
    /// Only for `brindle`: who carries IPIP; absent = the agent decides.
    #[serde(default)]
    pub(crate) ipip_carrier: Carrier,
    /// Only for `bird`: the addresses of its pods; absent = 10.78.<number of the node>.0/26.
    #[serde(default)]
    pub(crate) block: Option<Ipv4Net>,
}

/// What runs on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AgentKind {
    /// `brindle-node run`.
    #[default]
    Brindle,
    /// BIRD 2 with its kernel protocol, configured as Calico configures it.
    Bird,
}

/// `--ipip-carrier` of the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Carrier {
    /// The kernel's ipip where there is one, else ours.
    #[default]
    Auto,
    Kernel,
    User,
}

impl Carrier {
    /// As the agent's flag spells it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::User => "user",
        }
    }
}

const fn default_as() -> u32 {
    DEFAULT_AS
}

const fn default_mtu() -> u32 {
    1500
}

const fn default_pods() -> u16 {
    2
}

impl Topology {
    /// `nodes` nodes spread evenly over `segments` segments, neighbours together.
    pub(crate) fn regular(nodes: u16, segments: u16, pods_per_node: u16) -> Self {
        let segments = segments.clamp(1, nodes.max(1));
        Self {
            name: None,
            as_number: DEFAULT_AS,
            mtu: default_mtu(),
            ip_families: IpFamilies::default(),
            pool: PoolTopology::default(),
            router: RouterTopology::default(),
            segments: (1..=segments)
                .map(|s| SegmentTopology { name: format!("seg{s}"), cidr: None })
                .collect(),
            nodes: (0..nodes)
                .map(|n| NodeTopology {
                    name: format!("node{}", n + 1),
                    segment: format!("seg{}", u32::from(n) * u32::from(segments) / u32::from(nodes) + 1),
                    address: None,
                    agent: AgentKind::Brindle,
                    pods: pods_per_node,
                    ipip_carrier: Carrier::Auto,
                    block: None,
                })
                .collect(),
        }
    }
}
