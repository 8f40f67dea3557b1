//! WorkloadEndpoint: one interface of one pod (Calico `internalapi/workloadendpoint.go`).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    key::Kind,
    meta::{Extra, Spec},
};

/// A named port of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadPort {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub protocol: String,
    pub port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// A floating address: packets to it go to one of the endpoint's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpNat {
    #[serde(rename = "internalIP")]
    pub internal: IpAddr,
    #[serde(rename = "externalIP")]
    pub external: IpAddr,
}

/// WorkloadEndpoint.spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEndpointSpec {
    /// `k8s`, `cni`, …
    pub orchestrator: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workload: String,
    pub node: String,
    #[serde(rename = "containerID", skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Interface name inside the pod, `eth0`.
    pub endpoint: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_account_name: String,
    /// /32 and /128 addresses of the pod.
    #[serde(rename = "ipNetworks", skip_serializing_if = "Vec::is_empty")]
    pub ip_networks: Vec<IpNet>,
    #[serde(rename = "ipNATs", skip_serializing_if = "Vec::is_empty")]
    pub ip_nats: Vec<IpNat>,
    #[serde(rename = "ipv4Gateway", skip_serializing_if = "Option::is_none")]
    pub ipv4_gateway: Option<IpAddr>,
    #[serde(rename = "ipv6Gateway", skip_serializing_if = "Option::is_none")]
    pub ipv6_gateway: Option<IpAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
    /// Host side device, `cali` + 11 hex digits.
    pub interface_name: String,
    /// MAC inside the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<WorkloadPort>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl WorkloadEndpointSpec {
    /// Floating addresses that can lead somewhere: to an address of the endpoint itself.
    pub fn floating(&self) -> impl Iterator<Item = &IpNat> {
        let own = |n: &&IpNat| {
            n.internal.is_ipv4() == n.external.is_ipv4()
                && self.ip_networks.iter().any(|a| a.addr() == n.internal)
        };
        self.ip_nats.iter().filter(own)
    }

    /// A floating address with the address of its family among `addresses`; the family without one is the error.
    pub fn nats(addresses: &[IpNet], floating: &[IpAddr]) -> Result<Vec<IpNat>, IpAddr> {
        let pair = |external: &IpAddr| {
            let own = addresses.iter().find(|n| n.addr().is_ipv4() == external.is_ipv4());
            own.map(|n| IpNat { internal: n.addr(), external: *external }).ok_or(*external)
        };
        floating.iter().map(pair).collect()
    }
}

impl Spec for WorkloadEndpointSpec {
    const KIND: Kind = Kind::WorkloadEndpoint;

    fn extras(&self) -> Vec<(String, &Extra)> {
        let ports = self.ports.iter().enumerate();
        std::iter::once((String::new(), &self.extra))
            .chain(ports.map(|(i, p)| (format!("ports[{i}]"), &p.extra)))
            .collect()
    }
}

/// Name of a Kubernetes endpoint: parts joined by `-`, each `-` inside a part doubled.
pub fn endpoint_name(node: &str, orchestrator: &str, workload: &str, endpoint: &str) -> String {
    [node, orchestrator, workload, endpoint].map(|p| p.replace('-', "--")).join("-")
}

/// Annotation of a pod and its endpoint: prefixes it wants to send from beside its own addresses, as a list in JSON.
pub const ALLOWED_SOURCES: &str = "cni.projectcalico.org/allowedSourcePrefixes";

/// Reads [`ALLOWED_SOURCES`]; what cannot be read is left out, so that it allows nothing.
pub fn allowed_sources(annotation: &str) -> Vec<IpNet> {
    let texts: Vec<String> = serde_json::from_str(annotation).unwrap_or_default();
    texts.iter().filter_map(|t| crate::validate::policy::net(t).ok()).collect()
}
