//! BGPConfiguration, BGPPeer, BGPFilter with Calico's exact fields (`bgpconfig.go`, `bgppeer.go`, `bgpfilter.go`).

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    key::Kind,
    meta::{Extra, Spec},
};

/// Calico's default AS number.
pub const DEFAULT_AS: AsNumber = AsNumber(64512);

/// An AS number; read as a number, `"64512"` or dotted `"x.y"`, written as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct AsNumber(pub u32);

impl fmt::Display for AsNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for AsNumber {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("expected an AS number (0..4294967295 or x.y), found {s:?}");
        match s.split_once('.') {
            None => s.parse().map(Self).map_err(|_| bad()),
            Some((hi, lo)) => {
                let hi: u16 = hi.parse().map_err(|_| bad())?;
                let lo: u16 = lo.parse().map_err(|_| bad())?;
                Ok(Self(u32::from(hi) << 16 | u32::from(lo)))
            }
        }
    }
}

impl<'de> Deserialize<'de> for AsNumber {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> serde::de::Visitor<'de> for V {
            type Value = AsNumber;
            // The name tells a reader of text that 64512.10 is no decimal fraction.
            fn visit_newtype_struct<D: serde::Deserializer<'de>>(self, d: D) -> Result<AsNumber, D::Error> {
                d.deserialize_any(self)
            }
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an AS number (0..4294967295 or x.y)")
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<AsNumber, E> {
                u32::try_from(v)
                    .map(AsNumber)
                    .map_err(|_| E::custom(format!("AS number {v} is out of range")))
            }
            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<AsNumber, E> {
                u32::try_from(v)
                    .map(AsNumber)
                    .map_err(|_| E::custom(format!("AS number {v} is out of range")))
            }
            fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<AsNumber, E> {
                v.to_string().parse().map_err(E::custom)
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<AsNumber, E> {
                v.parse().map_err(E::custom)
            }
        }
        d.deserialize_newtype_struct("AsNumber", V)
    }
}

/// Reference to a key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    pub name: String,
    pub key: String,
    #[serde(flatten)]
    pub extra: Extra,
}

/// A password kept in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPassword {
    pub secret_key_ref: SecretKeyRef,
    #[serde(flatten)]
    pub extra: Extra,
}

impl BgpPassword {
    fn extras(&self, at: &str) -> [(String, &Extra); 2] {
        [(at.to_owned(), &self.extra), (format!("{at}.secretKeyRef"), &self.secret_key_ref.extra)]
    }
}

/// A named community.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Community {
    pub name: String,
    /// `aa:nn` or `aa:nn:mm`.
    pub value: String,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Communities to put on what is advertised inside a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixAdvertisement {
    #[serde(deserialize_with = "crate::meta::net_or_ip")]
    pub cidr: IpNet,
    #[serde(default)]
    pub communities: Vec<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// A service range to advertise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceBlock {
    #[serde(deserialize_with = "crate::meta::net_or_ip")]
    pub cidr: IpNet,
    #[serde(flatten)]
    pub extra: Extra,
}

/// BGPConfiguration.spec; objects `default` and `node.<name>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpConfigurationSpec {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log_severity_screen: String,
    /// Absent = true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_to_node_mesh_enabled: Option<bool>,
    /// Absent = 64512.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_number: Option<AsNumber>,
    #[serde(rename = "serviceClusterIPs", skip_serializing_if = "Vec::is_empty")]
    pub service_cluster_ips: Vec<ServiceBlock>,
    #[serde(rename = "serviceExternalIPs", skip_serializing_if = "Vec::is_empty")]
    pub service_external_ips: Vec<ServiceBlock>,
    #[serde(rename = "serviceLoadBalancerIPs", skip_serializing_if = "Vec::is_empty")]
    pub service_load_balancer_ips: Vec<ServiceBlock>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_load_balancer_aggregation: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub communities: Vec<Community>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefix_advertisements: Vec<PrefixAdvertisement>,
    /// Absent = 179.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_mesh_password: Option<BgpPassword>,
    /// A Go duration, `120s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_mesh_max_restart_time: Option<String>,
    /// `None` (default) or `NodeIP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_mode: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignored_interfaces: Vec<String>,
    /// The node's address towards pods it peers with.
    #[serde(rename = "localWorkloadPeeringIPV4", skip_serializing_if = "Option::is_none")]
    pub local_workload_peering_ipv4: Option<String>,
    #[serde(rename = "localWorkloadPeeringIPV6", skip_serializing_if = "Option::is_none")]
    pub local_workload_peering_ipv6: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program_cluster_routes: Option<String>,
    #[serde(rename = "ipv4NormalRoutePriority", skip_serializing_if = "Option::is_none")]
    pub ipv4_normal_route_priority: Option<u32>,
    #[serde(rename = "ipv6NormalRoutePriority", skip_serializing_if = "Option::is_none")]
    pub ipv6_normal_route_priority: Option<u32>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for BgpConfigurationSpec {
    const KIND: Kind = Kind::BgpConfiguration;

    fn extras(&self) -> Vec<(String, &Extra)> {
        let mut all = vec![(String::new(), &self.extra)];
        for (i, c) in self.communities.iter().enumerate() {
            all.push((format!("communities[{i}]"), &c.extra));
        }
        for (i, a) in self.prefix_advertisements.iter().enumerate() {
            all.push((format!("prefixAdvertisements[{i}]"), &a.extra));
        }
        for (name, blocks) in [
            ("serviceClusterIPs", &self.service_cluster_ips),
            ("serviceExternalIPs", &self.service_external_ips),
            ("serviceLoadBalancerIPs", &self.service_load_balancer_ips),
        ] {
            all.extend(blocks.iter().enumerate().map(|(i, b)| (format!("{name}[{i}]"), &b.extra)));
        }
        all.extend(self.node_mesh_password.iter().flat_map(|p| p.extras("nodeMeshPassword")));
        all
    }
}

/// How the next hop of advertised routes is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NextHopMode {
    #[default]
    #[serde(alias = "")]
    Auto,
    #[serde(rename = "Self")]
    SelfAddress,
    Keep,
}

/// BGPPeer.spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpPeerSpec {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_selector: String,
    /// `ip`, `ip:port` or `[v6]:port`.
    #[serde(rename = "peerIP", skip_serializing_if = "String::is_empty")]
    pub peer_ip: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer_selector: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_number: Option<AsNumber>,
    #[serde(rename = "localASNumber", skip_serializing_if = "Option::is_none")]
    pub local_as_number: Option<AsNumber>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep_original_next_hop: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_hop_mode: Option<NextHopMode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<BgpPassword>,
    /// `UseNodeIP` (default) or `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_restart_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive_time: Option<String>,
    #[serde(rename = "numAllowedLocalASNumbers", skip_serializing_if = "Option::is_none")]
    pub num_allowed_local_as_numbers: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_security: Option<u8>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reachable_by: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub local_workload_selector: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reverse_peering: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for BgpPeerSpec {
    const KIND: Kind = Kind::BgpPeer;

    fn extras(&self) -> Vec<(String, &Extra)> {
        let mut all = vec![(String::new(), &self.extra)];
        all.extend(self.password.iter().flat_map(|p| p.extras("password")));
        all
    }
}

/// How a filter rule compares a prefix with its `cidr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MatchOperator {
    Equal,
    NotEqual,
    In,
    NotIn,
}

/// What a filter rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilterAction {
    Accept,
    Reject,
}

/// Bounds on a prefix length, inclusive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefixLengthRange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u8>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Communities a route must carry (exactly one value is allowed by Calico).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommunityMatch {
    #[serde(default)]
    pub values: Vec<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// One rule of a filter; all given matches must hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpFilterRule {
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::meta::net_or_ip_if_any"
    )]
    pub cidr: Option<IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_operator: Option<MatchOperator>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_length: Option<PrefixLengthRange>,
    /// Only `RemotePeers`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// `eBGP` or `iBGP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub communities: Option<CommunityMatch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_path_prefix: Option<Vec<AsNumber>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    pub action: FilterAction,
    /// Attribute operations, kept as written until bgpd compiles them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<serde_json::Value>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// BGPFilter.spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BgpFilterSpec {
    #[serde(rename = "exportV4", skip_serializing_if = "Vec::is_empty")]
    pub export_v4: Vec<BgpFilterRule>,
    #[serde(rename = "importV4", skip_serializing_if = "Vec::is_empty")]
    pub import_v4: Vec<BgpFilterRule>,
    #[serde(rename = "exportV6", skip_serializing_if = "Vec::is_empty")]
    pub export_v6: Vec<BgpFilterRule>,
    #[serde(rename = "importV6", skip_serializing_if = "Vec::is_empty")]
    pub import_v6: Vec<BgpFilterRule>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for BgpFilterSpec {
    const KIND: Kind = Kind::BgpFilter;

    fn extras(&self) -> Vec<(String, &Extra)> {
        let mut all = vec![(String::new(), &self.extra)];
        for (list, rules) in self.lists() {
            for (i, rule) in rules.iter().enumerate() {
                all.push((format!("{list}[{i}]"), &rule.extra));
                let range = rule.prefix_length.as_ref();
                all.extend(range.map(|r| (format!("{list}[{i}].prefixLength"), &r.extra)));
                let communities = rule.communities.as_ref();
                all.extend(communities.map(|c| (format!("{list}[{i}].communities"), &c.extra)));
            }
        }
        all
    }
}

impl BgpFilterSpec {
    /// The four lists with their field names.
    pub fn lists(&self) -> [(&'static str, &[BgpFilterRule]); 4] {
        [
            ("exportV4", &self.export_v4),
            ("importV4", &self.import_v4),
            ("exportV6", &self.export_v6),
            ("importV6", &self.import_v6),
        ]
    }
}
