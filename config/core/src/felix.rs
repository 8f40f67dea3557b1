//! FelixConfiguration (the fields this version acts on; all others are kept in `extra`) and ClusterInformation.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    key::Kind,
    meta::{Extra, Spec},
};

/// FelixConfiguration.spec; objects `default`, `node.<name>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FelixConfigurationSpec {
    /// Absent = derived from the pools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipip_enabled: Option<bool>,
    /// 0 or absent = host MTU − 20.
    #[serde(rename = "ipipMTU", skip_serializing_if = "Option::is_none")]
    pub ipip_mtu: Option<u32>,
    /// Absent = `cali`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface_prefix: Option<String>,
    /// Go duration, absent = `90s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_refresh_interval: Option<String>,
    /// Absent = 3 (boot).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_route_protocol: Option<u8>,
    /// Absent = true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove_external_routes: Option<bool>,
    /// Absent = 1024.
    #[serde(rename = "ipv4NormalRoutePriority", skip_serializing_if = "Option::is_none")]
    pub ipv4_normal_route_priority: Option<u32>,
    /// Extra sources from which IPIP is accepted.
    #[serde(rename = "externalNodesList", skip_serializing_if = "Vec::is_empty")]
    pub external_nodes_list: Vec<String>,
    #[serde(rename = "mtuIfacePattern", skip_serializing_if = "Option::is_none")]
    pub mtu_iface_pattern: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl FelixConfigurationSpec {
    /// Fields that are acted on though they stay among the others, sorted.
    pub const SETTINGS: [&str; 24] = [
        "allowIPIPPacketsFromWorkloads",
        "allowVXLANPacketsFromWorkloads",
        "chainInsertMode",
        "defaultEndpointToHostAction",
        "disableConntrackInvalidCheck",
        "failsafeInboundHostPorts",
        "failsafeOutboundHostPorts",
        "floatingIPs",
        "iptablesBackend",
        "iptablesFilterDenyAction",
        "iptablesMarkMask",
        "iptablesNATOutgoingInterfaceFilter",
        "iptablesRefreshInterval",
        "logPrefix",
        "maxIpsetSize",
        "natOutgoingAddress",
        "natOutgoingExclusions",
        "natPortRange",
        "nftablesFilterDenyAction",
        "nftablesMarkMask",
        "nftablesMode",
        "nftablesRefreshInterval",
        "vxlanPort",
        "workloadSourceSpoofing",
    ];

    /// One of [`Self::SETTINGS`], as it is written.
    pub fn setting(&self, name: &str) -> Option<&Value> {
        debug_assert!(Self::SETTINGS.contains(&name), "{name} is acted on: it belongs to SETTINGS");
        self.extra.get(name)
    }

    /// Whether pods that ask for it may send from addresses that are not theirs (`workloadSourceSpoofing`).
    pub fn source_spoofing(&self) -> bool {
        let text = self.setting("workloadSourceSpoofing").and_then(Value::as_str);
        text.is_some_and(|t| t.eq_ignore_ascii_case("Any"))
    }
}

impl Spec for FelixConfigurationSpec {
    const KIND: Kind = Kind::FelixConfiguration;

    fn extras(&self) -> Vec<(String, &Extra)> {
        vec![(String::new(), &self.extra)]
    }
}

/// ClusterInformation.spec, object `default`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterInformationSpec {
    #[serde(rename = "clusterGUID", skip_serializing_if = "String::is_empty")]
    pub cluster_guid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster_type: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub calico_version: String,
    /// `false` locks the cluster: CNI ADD and DEL refuse.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datastore_ready: Option<bool>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for ClusterInformationSpec {
    const KIND: Kind = Kind::ClusterInformation;

    fn extras(&self) -> Vec<(String, &Extra)> {
        vec![(String::new(), &self.extra)]
    }
}
