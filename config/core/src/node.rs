//! Node: addresses, AS number, reflector cluster id, tunnel addresses (Calico `internalapi/node.go`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{
    key::Kind,
    meta::{Extra, Spec},
};

/// An interface's address with the prefix length of its subnet; host bits are kept (`10.0.0.5/24`).
/// A bare address is read as /32 (/128).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct NodeAddress<N>(pub N);

impl<'de> Deserialize<'de> for NodeAddress<Ipv4Net> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = String::deserialize(d)?;
        s.parse::<Ipv4Net>()
            .or_else(|e| s.parse::<Ipv4Addr>().map(Ipv4Net::from).map_err(|_| e))
            .map(Self)
            .map_err(|_| serde::de::Error::custom(format!("expected an IPv4 address or CIDR, found {s:?}")))
    }
}

impl<'de> Deserialize<'de> for NodeAddress<Ipv6Net> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = String::deserialize(d)?;
        s.parse::<Ipv6Net>()
            .or_else(|e| s.parse::<Ipv6Addr>().map(Ipv6Net::from).map_err(|_| e))
            .map(Self)
            .map_err(|_| serde::de::Error::custom(format!("expected an IPv6 address or CIDR, found {s:?}")))
    }
}

/// Node.spec.bgp.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeBgpSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_number: Option<super::bgp::AsNumber>,
    #[serde(rename = "ipv4Address", skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<NodeAddress<Ipv4Net>>,
    #[serde(rename = "ipv6Address", skip_serializing_if = "Option::is_none")]
    pub ipv6_address: Option<NodeAddress<Ipv6Net>>,
    #[serde(rename = "ipv4IPIPTunnelAddr", skip_serializing_if = "Option::is_none")]
    pub ipv4_ipip_tunnel_addr: Option<Ipv4Addr>,
    #[serde(rename = "routeReflectorClusterID", skip_serializing_if = "Option::is_none")]
    pub route_reflector_cluster_id: Option<Ipv4Addr>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// One address of a node and where it comes from (`CalicoNodeIP`, `InternalIP`, `ExternalIP`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypedAddress {
    pub address: String,
    #[serde(rename = "type", default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Node.spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bgp: Option<NodeBgpSpec>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<TypedAddress>,
    #[serde(rename = "ipv4VXLANTunnelAddr", skip_serializing_if = "Option::is_none")]
    pub ipv4_vxlan_tunnel_addr: Option<Ipv4Addr>,
    #[serde(rename = "vxlanTunnelMACAddr", skip_serializing_if = "Option::is_none")]
    pub vxlan_tunnel_mac_addr: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl NodeSpec {
    /// The BGP IPv4 address without its prefix length.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.bgp.as_ref()?.ipv4_address.map(|a| a.0.addr())
    }

    /// The BGP IPv6 address without its prefix length.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.bgp.as_ref()?.ipv6_address.map(|a| a.0.addr())
    }

    /// Every BGP address of the node.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4().map(IpAddr::V4).into_iter().chain(self.ipv6().map(IpAddr::V6))
    }
}

impl Spec for NodeSpec {
    const KIND: Kind = Kind::Node;

    fn extras(&self) -> Vec<(String, &Extra)> {
        let mut all = vec![(String::new(), &self.extra)];
        all.extend(self.bgp.iter().map(|b| ("bgp".to_owned(), &b.extra)));
        all.extend(self.addresses.iter().enumerate().map(|(i, a)| (format!("addresses[{i}]"), &a.extra)));
        all
    }
}
