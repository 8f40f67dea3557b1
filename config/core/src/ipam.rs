//! IPAM records, the same as Calico's so that both can share one cluster: IPAMBlock, BlockAffinity, IPAMHandle,
//! IPAMConfiguration. The algebra over them is in the `ipam` package.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    key::Kind,
    meta::{Extra, Spec},
};

/// One owner of addresses in a block; `allocations` refer to it by index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AllocationAttribute {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handle_id: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secondary: BTreeMap<String, String>,
    #[serde(rename = "alternateOwnerAttrs", skip_serializing_if = "BTreeMap::is_empty")]
    pub alternate_owner_attrs: BTreeMap<String, String>,
    #[serde(rename = "releasedAt", skip_serializing_if = "Option::is_none")]
    pub released_at: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// IPAMBlock.spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamBlockSpec {
    pub cidr: IpNet,
    /// `host:<node>` or `virtual:<name>`; none = no owner, the block only drains.
    #[serde(default)]
    pub affinity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_claim_time: Option<String>,
    /// Ordinal → index into `attributes`; none = free. Length = size of the block.
    pub allocations: Vec<Option<usize>>,
    /// Free ordinals, first in first out.
    #[serde(default)]
    pub unallocated: Vec<usize>,
    #[serde(default)]
    pub attributes: Vec<AllocationAttribute>,
    #[serde(default)]
    pub sequence_number: u64,
    /// Ordinal (decimal) → sequence number at the time it was given.
    #[serde(default)]
    pub sequence_number_for_allocation: BTreeMap<String, u64>,
    #[serde(default)]
    pub deleted: bool,
    #[serde(default)]
    pub strict_affinity: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

impl IpamBlockSpec {
    /// The node that owns the block, if it is a host affinity.
    pub fn host(&self) -> Option<&str> {
        self.affinity.as_deref()?.strip_prefix("host:")
    }
}

impl Spec for IpamBlockSpec {
    const KIND: Kind = Kind::IpamBlock;

    fn extras(&self) -> Vec<(String, &Extra)> {
        let attributes = self.attributes.iter().enumerate();
        std::iter::once((String::new(), &self.extra))
            .chain(attributes.map(|(i, a)| (format!("attributes[{i}]"), &a.extra)))
            .collect()
    }
}

/// State of a claim on a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AffinityState {
    Pending,
    /// Also what an empty string on the wire means.
    #[default]
    #[serde(alias = "")]
    Confirmed,
    PendingDeletion,
}

/// BlockAffinity.spec. `deleted` is a string in the v1 CRD and a bool in v3; both are read, the bool is written
/// here and the kubernetes store translates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockAffinitySpec {
    #[serde(default)]
    pub state: AffinityState,
    pub node: String,
    /// `host` (also when missing) or `virtual`.
    #[serde(rename = "type", default = "host")]
    pub affinity_type: String,
    pub cidr: IpNet,
    #[serde(default, deserialize_with = "bool_or_string")]
    pub deleted: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

fn host() -> String {
    "host".into()
}

fn bool_or_string<'de, D: serde::Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Bool(bool),
        Text(String),
    }
    match Either::deserialize(d)? {
        Either::Bool(b) => Ok(b),
        Either::Text(s) if s == "true" => Ok(true),
        Either::Text(s) if s == "false" || s.is_empty() => Ok(false),
        Either::Text(s) => Err(serde::de::Error::custom(format!("expected true or false, found {s:?}"))),
    }
}

impl Spec for BlockAffinitySpec {
    const KIND: Kind = Kind::BlockAffinity;

    fn extras(&self) -> Vec<(String, &Extra)> {
        vec![(String::new(), &self.extra)]
    }
}

/// IPAMHandle.spec: how many addresses a handle holds in each block.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IpamHandleSpec {
    #[serde(rename = "handleID")]
    pub handle_id: String,
    #[serde(default)]
    pub block: BTreeMap<String, u32>,
    #[serde(default)]
    pub deleted: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for IpamHandleSpec {
    const KIND: Kind = Kind::IpamHandle;

    fn extras(&self) -> Vec<(String, &Extra)> {
        vec![(String::new(), &self.extra)]
    }
}

/// IPAMConfiguration.spec (only the object named `default`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamConfigSpec {
    #[serde(default)]
    pub strict_affinity: bool,
    /// 0 = the built-in 20.
    #[serde(default)]
    pub max_blocks_per_host: u32,
    #[serde(default = "yes")]
    pub auto_allocate_blocks: bool,
    /// 0–1200: delay between release and re-use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_cooldown_seconds: Option<u32>,
    #[serde(flatten)]
    pub extra: Extra,
}

const fn yes() -> bool {
    true
}

impl Default for IpamConfigSpec {
    fn default() -> Self {
        Self {
            strict_affinity: false,
            max_blocks_per_host: 0,
            auto_allocate_blocks: true,
            ip_cooldown_seconds: None,
            extra: Extra::new(),
        }
    }
}

impl Spec for IpamConfigSpec {
    const KIND: Kind = Kind::IpamConfiguration;

    fn extras(&self) -> Vec<(String, &Extra)> {
        vec![(String::new(), &self.extra)]
    }
}
