//! What an agent reports about itself over its admin socket; `brindlectl` and the lab read it.
//! One JSON object per line each way: `{"cmd":"status"}` is answered by a [`NodeStatus`]. The same lines go over the
//! authenticated port, where an agent has one ([`ADMIN_ADDRESS`]).

pub mod bgp;
pub mod health;
pub mod path;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Annotation of a Node: the address and port at which its agent answers other machines. Written by the agent.
pub const ADMIN_ADDRESS: &str = "admin.brindle.dev/address";

/// A question to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case")]
pub enum AdminRequest {
    Status,
    /// Loc-RIB with the deciding step per path.
    Rib {
        #[serde(default)]
        prefix: Option<IpNet>,
    },
    /// How the tunnel is used: one [`EncapStatus`].
    Routes,
    /// Where packets for an address go from here, and why: one [`path::PathAnswer`].
    Path {
        to: IpAddr,
    },
    /// Every node of the datastore and where its agent answers: a list of [`NodeAt`].
    Nodes,
    /// Whether the agent lives and is ready: one [`health::Health`].
    Health,
    /// Move traffic away and end the sessions; answered when that is done: one [`health::Drained`].
    Drain {
        /// How long peers have to find other ways, seconds.
        wait: u64,
    },
    /// About BGP; answered by several lines.
    Bgp(bgp::BgpRequest),
}

/// A node and where its agent answers; one element of the answer to [`AdminRequest::Nodes`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeAt {
    pub name: String,
    /// With the prefix length of the node's subnet.
    pub addresses: Vec<IpNet>,
    /// Whether it is a route reflector.
    pub reflector: bool,
    /// What [`ADMIN_ADDRESS`] says.
    pub admin: Option<String>,
}

impl NodeAt {
    /// What a Node resource says.
    pub fn of(node: &crate::Resource<crate::node::NodeSpec>) -> Self {
        let bgp = node.spec.bgp.clone().unwrap_or_default();
        let four = bgp.ipv4_address.map(|a| IpNet::V4(a.0));
        Self {
            name: node.metadata.name.clone(),
            addresses: four.into_iter().chain(bgp.ipv6_address.map(|a| IpNet::V6(a.0))).collect(),
            reflector: bgp.route_reflector_cluster_id.is_some(),
            admin: node.metadata.annotations.get(ADMIN_ADDRESS).cloned(),
        }
    }
}

/// Answer to [`AdminRequest::Status`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    pub node: String,
    pub version: String,
    pub pid: u32,
    /// Resident set, KiB.
    pub rss_kib: u64,
    pub uptime_ms: u64,
    pub ready: bool,
    /// What is not as it should be, each with the next thing to do. What is only configured wrongly (the rest works)
    /// stands here too, without making the node unready.
    pub reasons: Vec<String>,
    pub bgp: BgpStatus,
    pub routes: RouteStatus,
    pub encap: EncapStatus,
    pub policy: PolicyStatus,
    pub pods: Vec<PodStatus>,
    pub blocks: Vec<IpNet>,
}

/// The speaker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BgpStatus {
    pub asn: u32,
    pub router_id: String,
    pub listen: String,
    pub peers: Vec<PeerStatus>,
    /// Prefixes in the Loc-RIB.
    pub loc_rib: usize,
}

/// One neighbor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    pub address: IpAddr,
    /// Name of the node, or of the BGPPeer resource.
    pub name: String,
    /// `mesh`, `global`, `node`, `workload`, `static`.
    pub kind: String,
    pub asn: u32,
    /// `Idle`, `Connect`, `Active`, `OpenSent`, `OpenConfirm`, `Established`.
    pub state: String,
    /// Milliseconds in this state.
    pub since_ms: u64,
    pub received: usize,
    pub advertised: usize,
    pub last_error: Option<String>,
}

/// felix's route manager.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteStatus {
    pub in_sync: bool,
    pub desired: usize,
    /// Refused by the kernel, with its words.
    pub failed: Vec<String>,
    /// Netlink route writes since the agent started.
    pub writes: u64,
    pub repairs: u64,
}

/// Encapsulation in use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EncapStatus {
    /// `none`, `kernel` (ipip device) or `carrier` (brindle-ipip).
    pub device: String,
    /// Why that one.
    pub why: String,
    pub mtu: u32,
    pub paths: Vec<EncapPath>,
    /// Encapsulated packets refused because their outer source is no known node.
    pub refused: u64,
}

/// How one remote block or node is reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EncapPath {
    pub destination: IpNet,
    pub via: IpAddr,
    /// `direct` or `ipip`.
    pub mode: String,
    pub why: String,
}

/// Policy in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyStatus {
    /// The whole policy was written at least once.
    pub in_sync: bool,
    /// `iptables-legacy`, `iptables-nft`, `nftables`.
    pub back_end: String,
    /// Policies that apply to an endpoint of this node; sets of addresses they use.
    pub policies: usize,
    pub sets: usize,
    /// Whatever the datastore said up to this revision is in force.
    pub revision: u64,
    /// Calls of iptables-restore, ipset restore and nft that wrote since the agent started.
    pub table_writes: u64,
    pub set_writes: u64,
    pub nft_writes: u64,
    /// Changes by others that were undone; tracked flows that were cut.
    pub repairs: u64,
    pub flows_cut: u64,
    /// Why it is not in force as asked, with what to do.
    pub problems: Vec<String>,
    /// Resources that cannot be enforced as written; what follows from it is part of each line.
    pub resources: Vec<String>,
}

/// One local pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodStatus {
    pub namespace: String,
    pub name: String,
    pub container_id: String,
    pub addresses: Vec<IpNet>,
    pub interface: String,
    pub ready: bool,
}
