//! Kinds and keys. The order of keys is the order of listing: kind, namespace, name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Every kind of resource the model knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    #[serde(rename = "IPPool")]
    IpPool,
    #[serde(rename = "IPReservation")]
    IpReservation,
    #[serde(rename = "IPAMConfiguration")]
    IpamConfiguration,
    #[serde(rename = "IPAMBlock")]
    IpamBlock,
    #[serde(rename = "IPAMHandle")]
    IpamHandle,
    BlockAffinity,
    Node,
    #[serde(rename = "BGPConfiguration")]
    BgpConfiguration,
    #[serde(rename = "BGPPeer")]
    BgpPeer,
    #[serde(rename = "BGPFilter")]
    BgpFilter,
    FelixConfiguration,
    ClusterInformation,
    WorkloadEndpoint,
}

impl Kind {
    /// All kinds, in key order.
    pub const ALL: [Self; 13] = [
        Self::IpPool,
        Self::IpReservation,
        Self::IpamConfiguration,
        Self::IpamBlock,
        Self::IpamHandle,
        Self::BlockAffinity,
        Self::Node,
        Self::BgpConfiguration,
        Self::BgpPeer,
        Self::BgpFilter,
        Self::FelixConfiguration,
        Self::ClusterInformation,
        Self::WorkloadEndpoint,
    ];

    /// The name in `kind:`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IpPool => "IPPool",
            Self::IpReservation => "IPReservation",
            Self::IpamConfiguration => "IPAMConfiguration",
            Self::IpamBlock => "IPAMBlock",
            Self::IpamHandle => "IPAMHandle",
            Self::BlockAffinity => "BlockAffinity",
            Self::Node => "Node",
            Self::BgpConfiguration => "BGPConfiguration",
            Self::BgpPeer => "BGPPeer",
            Self::BgpFilter => "BGPFilter",
            Self::FelixConfiguration => "FelixConfiguration",
            Self::ClusterInformation => "ClusterInformation",
            Self::WorkloadEndpoint => "WorkloadEndpoint",
        }
    }

    /// The kind named by a `kind:` field, exact spelling (`IPAMConfig` is accepted for `IPAMConfiguration`).
    pub fn parse(s: &str) -> Option<Self> {
        if s == "IPAMConfig" {
            return Some(Self::IpamConfiguration);
        }
        Self::ALL.into_iter().find(|k| k.as_str() == s)
    }

    /// Whether resources of this kind live in a namespace.
    pub const fn namespaced(self) -> bool {
        matches!(self, Self::WorkloadEndpoint)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Identity of a resource in a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub kind: Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    pub name: String,
}

impl Key {
    /// A key; `namespace` is ignored for cluster-scoped kinds.
    pub fn new(kind: Kind, namespace: Option<&str>, name: &str) -> Self {
        let namespace =
            if kind.namespaced() { namespace.unwrap_or("default").to_owned() } else { String::new() };
        Self { kind, namespace, name: name.to_owned() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}({})", self.kind, self.name)
        } else {
            write!(f, "{}({}/{})", self.kind, self.namespace, self.name)
        }
    }
}
