//! Where one node sends packets for an address, as its agent tells it: the entry of the kernel's table, what should be
//! there, who taught it, and what the two differ in. `brindlectl route` puts the answers of several nodes together.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{EncapPath, bgp::BgpPath};

/// Answer to [`super::AdminRequest::Path`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathAnswer {
    pub node: String,
    /// `pod NAMESPACE/NAME`, `endpoint NAME` or `this node`, if the address is one of this node.
    pub here: Option<String>,
    /// The entry of the kernel's table that packets follow; none: it has none.
    pub kernel: Option<KernelRoute>,
    /// The entry that should be there, as `ip route` writes it; none: the agent has nothing to say about this address.
    pub wanted: Option<String>,
    /// What the kernel and the intent differ in, with what to do; none: they agree.
    pub difference: Option<String>,
    /// How the prefix of the wanted route is reached, and why.
    pub ways: Vec<EncapPath>,
    /// What the speaker has for that prefix, with the deciding step.
    pub paths: Vec<BgpPath>,
    /// `none`, `kernel`, `carrier`, with the reason in parentheses.
    pub tunnel: String,
}

/// One entry of the kernel's table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelRoute {
    pub destination: IpNet,
    /// As `ip route` writes it.
    pub text: String,
    /// `unicast`, `local`, `blackhole`, ...
    pub kind: String,
    /// Who put it there (`/etc/iproute2/rt_protos`); 80: the agent.
    pub protocol: u8,
    pub hops: Vec<KernelHop>,
}

/// One way out of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelHop {
    pub via: Option<IpAddr>,
    pub dev: String,
    /// Octets; the route's own, where it has one.
    pub mtu: u32,
    pub up: bool,
}
