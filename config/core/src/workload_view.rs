//! A WorkloadEndpoint read without copying: of the endpoints of other nodes, tens of thousands, an agent keeps little.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::{validate, workload::IpNat};

/// A named port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortView<'a> {
    #[serde(default)]
    pub name: &'a str,
    #[serde(default)]
    pub protocol: &'a str,
    pub port: u16,
    /// Only for its type.
    #[serde(default)]
    pub host_port: Option<u16>,
}

/// Its metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetadataView<'a> {
    pub name: &'a str,
    pub namespace: Option<&'a str>,
    #[serde(borrow)]
    pub labels: BTreeMap<&'a str, &'a str>,
    #[serde(borrow)]
    pub annotations: BTreeMap<&'a str, &'a str>,
    /// This one and those below only for their types.
    pub resource_version: Option<&'a str>,
    pub uid: Option<&'a str>,
    pub creation_timestamp: Option<&'a str>,
}

/// `WorkloadEndpointSpec`, field for field.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SpecView<'a> {
    pub orchestrator: &'a str,
    pub workload: &'a str,
    pub node: &'a str,
    #[serde(rename = "containerID")]
    pub container_id: &'a str,
    pub pod: &'a str,
    pub endpoint: &'a str,
    pub service_account_name: &'a str,
    #[serde(rename = "ipNetworks")]
    pub ip_networks: Vec<IpNet>,
    #[serde(rename = "ipNATs")]
    pub ip_nats: Vec<IpNat>,
    #[serde(rename = "ipv4Gateway")]
    pub ipv4_gateway: Option<IpAddr>,
    #[serde(rename = "ipv6Gateway")]
    pub ipv6_gateway: Option<IpAddr>,
    #[serde(borrow)]
    pub profiles: Vec<&'a str>,
    pub interface_name: &'a str,
    pub mac: &'a str,
    #[serde(borrow)]
    pub ports: Vec<PortView<'a>>,
}

/// The whole resource.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadView<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    #[serde(borrow)]
    pub metadata: MetadataView<'a>,
    #[serde(borrow)]
    pub spec: SpecView<'a>,
}

impl<'a> WorkloadView<'a> {
    /// `None` where a resource of this value could not be read or would not be valid: what is wrong is said by reading it
    /// in full.
    pub fn of(value: &'a Value) -> Option<Self> {
        // A list is no object, though it could be read as the fields in their order.
        let object = |at: &str| value.get(at).is_some_and(Value::is_object);
        let ports = value.get("spec").and_then(|s| s.get("ports")).and_then(Value::as_array);
        let lists = ports.is_some_and(|all| !all.iter().all(Value::is_object));
        if !value.is_object() || !object("metadata") || !object("spec") || lists {
            return None;
        }
        let view = Self::deserialize(value).ok()?;
        validate::workload_is_plain(&view).then_some(view)
    }
}
