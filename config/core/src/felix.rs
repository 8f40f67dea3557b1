//! FelixConfiguration (the fields this version acts on; all others are kept in `extra`) and ClusterInformation.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

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

    /// Fields that are acted on and have a place in the model, sorted.
    pub const MODELLED: [&str; 9] = [
        "deviceRouteProtocol",
        "externalNodesList",
        "interfacePrefix",
        "ipipEnabled",
        "ipipMTU",
        "ipv4NormalRoutePriority",
        "mtuIfacePattern",
        "removeExternalRoutes",
        "routeRefreshInterval",
    ];

    /// Reads a stored spec field by field: one that holds nothing of its kind says nothing about the others, and keeps what
    /// it had in `old`. Also the names of those.
    pub fn field_by_field(spec: &Map<String, Value>, old: Option<&Self>) -> (Self, Vec<String>) {
        let old = old.and_then(|o| serde_json::to_value(o).ok()).unwrap_or_default();
        let mut unread = Vec::new();
        let mut good = Map::new();
        for (name, value) in spec.iter().filter(|(_, value)| !value.is_null()) {
            let value = if Self::deserialize(json!({name: value})).is_ok() {
                Some(value)
            } else {
                unread.push(name.clone());
                old.get(name)
            };
            good.extend(value.map(|v| (name.clone(), v.clone())));
        }
        (Self::deserialize(Value::Object(good)).unwrap_or_default(), unread)
    }

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

/// What a field that is acted on holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `true` or `false`.
    Flag,
    /// A whole number, from and to.
    Number(u32, u32),
    /// A text with a duration of Go's.
    Duration,
    /// One of a few words, in any case.
    Word(&'static [&'static str]),
    Text,
    /// A list of addresses and CIDRs.
    Nets,
    /// A list of protocol, port and net.
    Ports,
    /// A port, or the first and the last as text.
    PortRange,
}

/// What a field of FelixConfiguration holds; none for one that is not acted on.
pub fn form(field: &str) -> Option<Form> {
    Some(match field {
        "allowIPIPPacketsFromWorkloads"
        | "allowVXLANPacketsFromWorkloads"
        | "disableConntrackInvalidCheck"
        | "ipipEnabled"
        | "removeExternalRoutes" => Form::Flag,
        "chainInsertMode" => Form::Word(&["Insert", "Append"]),
        "defaultEndpointToHostAction" => Form::Word(&["Drop", "Accept", "Return"]),
        "deviceRouteProtocol" => Form::Number(0, 255),
        "externalNodesList" => Form::Nets,
        "failsafeInboundHostPorts" | "failsafeOutboundHostPorts" => Form::Ports,
        "floatingIPs" => Form::Word(&["Enabled", "Disabled"]),
        "interfacePrefix"
        | "iptablesNATOutgoingInterfaceFilter"
        | "logPrefix"
        | "mtuIfacePattern"
        | "natOutgoingAddress" => Form::Text,
        "ipipMTU" => Form::Number(0, 65_515),
        "iptablesBackend" => Form::Word(&["Auto", "Legacy", "NFT"]),
        "iptablesFilterDenyAction" | "nftablesFilterDenyAction" => Form::Word(&["Drop", "Reject"]),
        "iptablesMarkMask" | "nftablesMarkMask" => Form::Number(0, u32::MAX),
        "iptablesRefreshInterval" | "nftablesRefreshInterval" | "routeRefreshInterval" => Form::Duration,
        "ipv4NormalRoutePriority" => Form::Number(1, 2_147_483_646),
        "maxIpsetSize" => Form::Number(1, u32::MAX),
        "natOutgoingExclusions" => Form::Word(&["IPPoolsOnly", "IPPoolsAndHostIPs"]),
        "natPortRange" => Form::PortRange,
        "nftablesMode" => Form::Word(&["Auto", "Enabled", "Disabled"]),
        "vxlanPort" => Form::Number(1, 65_535),
        "workloadSourceSpoofing" => Form::Word(&["Any", "Disabled"]),
        _ => return None,
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields;

    #[test]
    fn exactly_what_is_acted_on_has_a_form() {
        let all = FelixConfigurationSpec::SETTINGS.into_iter().chain(FelixConfigurationSpec::MODELLED);
        let mut all: Vec<&str> = all.collect();
        let formed = fields::of(Kind::FelixConfiguration).filter(|f| form(f).is_some());
        let mut formed: Vec<&str> = formed.collect();
        all.sort_unstable();
        formed.sort_unstable();
        assert_eq!(formed, all);
    }

    #[test]
    fn a_field_that_cannot_be_read_takes_no_other_with_it() {
        let old = FelixConfigurationSpec { route_refresh_interval: Some("7s".into()), ..Default::default() };
        let spec = json!({"routeRefreshInterval": 60, "removeExternalRoutes": "no", "ipipMTU": 1400,
            "chainInsertMode": "Append", "externalNodesList": null});
        let (read, unread) =
            FelixConfigurationSpec::field_by_field(spec.as_object().expect("an object"), Some(&old));
        assert_eq!(unread, ["removeExternalRoutes", "routeRefreshInterval"]);
        assert_eq!((read.ipip_mtu, read.remove_external_routes), (Some(1400), None));
        assert_eq!(read.route_refresh_interval.as_deref(), Some("7s"), "as it was");
        assert_eq!(read.setting("chainInsertMode"), Some(&json!("Append")));
    }
}
