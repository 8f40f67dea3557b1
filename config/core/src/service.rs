//! Service (`v1`) of Kubernetes with the fields that matter to announcements and address assignment, and the facts of
//! an EndpointSlice about where backends are. No decisions: those are in `bgpd` and `controllers`.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    key::Kind,
    meta::{Extra, Spec},
    policy::IntOrString,
};

/// The label of an EndpointSlice that names its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Service.spec. Addresses stay text: Kubernetes writes `None` and the empty string where there is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP` (default), `NodePort`, `LoadBalancer`, `ExternalName`.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub service_type: String,
    /// `None` = headless.
    #[serde(rename = "clusterIP", skip_serializing_if = "String::is_empty")]
    pub cluster_ip: String,
    /// One for each family; the first is `clusterIP`.
    #[serde(rename = "clusterIPs", skip_serializing_if = "Vec::is_empty")]
    pub cluster_ips: Vec<String>,
    #[serde(rename = "externalIPs", skip_serializing_if = "Vec::is_empty")]
    pub external_ips: Vec<String>,
    /// The address asked for; deprecated by Kubernetes, still in use.
    #[serde(rename = "loadBalancerIP", skip_serializing_if = "String::is_empty")]
    pub load_balancer_ip: String,
    /// Whose business the service is; none = the cluster's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer_class: Option<String>,
    /// `Cluster` (default) or `Local`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub external_traffic_policy: String,
    /// `Cluster` (default) or `Local`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub internal_traffic_policy: String,
    /// `IPv4`, `IPv6`, in order of preference.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_families: Vec<String>,
    /// `SingleStack` (default), `PreferDualStack`, `RequireDualStack`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_family_policy: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePort>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// A port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Empty = TCP.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    pub port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<IntOrString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for ServiceSpec {
    const KIND: Kind = Kind::Service;
    fn extras(&self) -> Vec<(String, &Extra)> {
        let ports = self.ports.iter().enumerate().map(|(i, p)| (format!("ports[{i}]"), &p.extra));
        [(String::new(), &self.extra)].into_iter().chain(ports).collect()
    }
}

impl ServiceSpec {
    /// Whether packets for the service's addresses are spread over its endpoints: neither headless nor ExternalName.
    pub fn is_proxied(&self) -> bool {
        self.service_type != "ExternalName" && self.cluster_ip != "None"
    }

    /// Cluster addresses, without repeats; what is no address is left out.
    pub fn cluster_addresses(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = Vec::new();
        for ip in [&self.cluster_ip].into_iter().chain(&self.cluster_ips).filter_map(|t| t.parse().ok()) {
            if !all.contains(&ip) {
                all.push(ip);
            }
        }
        all
    }

    /// External addresses; what is no address is left out.
    pub fn external_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.external_ips.iter().filter_map(|t| t.parse().ok())
    }
}

/// Service.status, as far as it says which addresses a load balancer gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    pub load_balancer: LoadBalancerStatus,
    #[serde(flatten)]
    pub extra: Extra,
}

/// `status.loadBalancer`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<LoadBalancerIngress>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// One way in: an address, or the name of a host somewhere else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadBalancerIngress {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip: String,
    #[serde(flatten)]
    pub extra: Extra,
}

impl ServiceStatus {
    /// Reads the status that a resource keeps beside its spec; none = nothing assigned.
    pub fn of(fields: &Extra) -> Result<Self, String> {
        match fields.get("status") {
            None | Some(serde_json::Value::Null) => Ok(Self::default()),
            Some(v) => serde_path_to_error::deserialize(v).map_err(|e| format!("status.{e}")),
        }
    }

    /// The addresses given.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.load_balancer.ingress.iter().filter_map(|i| i.ip.parse().ok())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Resource;

    #[test]
    fn addresses_are_read_from_where_kubernetes_writes_them() {
        let r: Resource<ServiceSpec> = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
                "externalIPs": ["192.0.2.1", "junk"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1", "ipMode": "VIP"}, {"hostname": "a.b"}]}}}))
        .expect("a service");
        let ips = |list: &[&str]| list.iter().map(|t| t.parse().expect(t)).collect::<Vec<IpAddr>>();
        assert_eq!(r.spec.cluster_addresses(), ips(&["10.96.0.7", "fd00::7"]));
        assert_eq!(r.spec.external_addresses().collect::<Vec<_>>(), ips(&["192.0.2.1"]));
        let status = ServiceStatus::of(&r.extra).expect("a status");
        assert_eq!(status.addresses().collect::<Vec<_>>(), ips(&["198.51.100.1"]));
        assert_eq!(serde_json::to_value(&status).ok(), r.extra.get("status").cloned(), "nothing is lost");
        assert!(r.spec.is_proxied());
        assert!(ServiceStatus::of(&Extra::from([("status".into(), json!({"loadBalancer": 5}))])).is_err());
    }

    #[test]
    fn headless_and_external_names_are_not_proxied() {
        for spec in [json!({"clusterIP": "None"}), json!({"type": "ExternalName", "externalName": "x.y"})] {
            let spec: ServiceSpec = serde_json::from_value(spec).expect("a spec");
            assert!(!spec.is_proxied() && spec.cluster_addresses().is_empty(), "{spec:?}");
        }
    }
}
