//! IPPool, IPReservation. Fields and defaults: Calico `ippool.go`, `ipreservation.go`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    key::Kind,
    meta::{Extra, Spec},
};

/// `ipipMode`, `vxlanMode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncapMode {
    #[default]
    #[serde(alias = "")]
    Never,
    Always,
    CrossSubnet,
}

/// Who may take addresses from a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllowedUse {
    Workload,
    Tunnel,
    LoadBalancer,
}

/// Whether addresses are given without being asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AssignmentMode {
    #[default]
    #[serde(alias = "")]
    Automatic,
    Manual,
}

/// IPPool.spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpPoolSpec {
    pub cidr: IpNet,
    #[serde(default)]
    pub ipip_mode: EncapMode,
    #[serde(default)]
    pub vxlan_mode: EncapMode,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nat_outgoing: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
    #[serde(default, rename = "disableBGPExport", skip_serializing_if = "std::ops::Not::not")]
    pub disable_bgp_export: bool,
    /// Prefix length of the blocks; 26 (IPv4) or 122 (IPv6) when absent or 0. See [`IpPoolSpec::block_size`].
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "blockSize")]
    pub block_size_raw: Option<u8>,
    #[serde(default = "all", skip_serializing_if = "String::is_empty")]
    pub node_selector: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace_selector: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_uses: Vec<AllowedUse>,
    #[serde(default)]
    pub assignment_mode: AssignmentMode,
    #[serde(flatten)]
    pub extra: Extra,
}

fn all() -> String {
    "all()".into()
}

impl IpPoolSpec {
    /// A pool with all defaults.
    pub fn new(cidr: IpNet) -> Self {
        Self {
            cidr,
            ipip_mode: EncapMode::Never,
            vxlan_mode: EncapMode::Never,
            nat_outgoing: false,
            disabled: false,
            disable_bgp_export: false,
            block_size_raw: None,
            node_selector: all(),
            namespace_selector: String::new(),
            allowed_uses: Vec::new(),
            assignment_mode: AssignmentMode::Automatic,
            extra: Extra::new(),
        }
    }

    /// Effective block prefix length. Written as 0 it is the default, too: in Go that is the number nobody wrote.
    pub fn block_size(&self) -> u8 {
        self.block_size_raw.filter(|size| *size != 0).unwrap_or(match self.cidr {
            IpNet::V4(_) => 26,
            IpNet::V6(_) => 122,
        })
    }

    /// Whether the pool serves this use (an empty list means Workload and Tunnel).
    pub fn allows(&self, what: AllowedUse) -> bool {
        if self.allowed_uses.is_empty() {
            what != AllowedUse::LoadBalancer
        } else {
            self.allowed_uses.contains(&what)
        }
    }
}

impl Spec for IpPoolSpec {
    const KIND: Kind = Kind::IpPool;

    fn extras(&self) -> Vec<(String, &Extra)> {
        vec![(String::new(), &self.extra)]
    }
}

/// IPReservation.spec: addresses never assigned automatically.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IpReservationSpec {
    #[serde(rename = "reservedCIDRs", default, deserialize_with = "crate::meta::nets_or_ips")]
    pub reserved_cidrs: Vec<IpNet>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for IpReservationSpec {
    const KIND: Kind = Kind::IpReservation;

    fn extras(&self) -> Vec<(String, &Extra)> {
        vec![(String::new(), &self.extra)]
    }
}
