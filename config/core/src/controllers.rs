//! KubeControllersConfiguration: what `brindle-controllers` looks after, and how (Calico `kubecontrollersconfig.go`). Only
//! the object `default` counts. The fields this version acts on have types; the others are kept in `extra`: mirrors of
//! Kubernetes objects in etcd (`policy`, `namespace`, `serviceAccount`, `workloadEndpoint`), labels of nodes there
//! (`syncLabels`), compaction, profiling.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    key::Kind,
    meta::{Extra, Spec},
};

/// `Enabled` of a switch that has two states.
pub const ENABLED: &str = "Enabled";
/// The other one.
pub const DISABLED: &str = "Disabled";

/// KubeControllersConfiguration.spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeControllersConfigurationSpec {
    /// `None` (nothing), `Debug`, `Info`, `Warning`, `Error`, `Fatal`, `Panic`. Empty = Info.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log_severity_screen: String,
    /// `Enabled`, `Disabled`. Empty = Enabled.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub health_checks: String,
    /// 0 = no metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prometheus_metrics_port: Option<i64>,
    pub controllers: ControllersSpec,
    #[serde(flatten)]
    pub extra: Extra,
}

/// The controllers; one that is absent does not run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ControllersSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeControllerSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerControllerSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationControllerSpec>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// What nodes left, leaked addresses, host endpoints of nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeControllerSpec {
    /// Go duration, absent = `5m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconciler_period: Option<String>,
    /// Go duration, absent = `15m`; 0 = leaked addresses are not collected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leak_grace_period: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_endpoint: Option<AutoHostEndpointSpec>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Host endpoints that follow from nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AutoHostEndpointSpec {
    /// `Enabled`, `Disabled`. Empty = Disabled.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub auto_create: String,
    /// One for all interfaces of a node: `Enabled`, `Disabled`. Empty = Enabled.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub create_default_host_endpoint: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<HostEndpointTemplate>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl AutoHostEndpointSpec {
    /// Whether any are made.
    pub fn is_on(&self) -> bool {
        self.auto_create == ENABLED
    }

    /// Whether each node gets one for all its interfaces.
    pub fn makes_default(&self) -> bool {
        self.is_on() && self.create_default_host_endpoint != DISABLED
    }
}

/// Host endpoints for some addresses or interfaces of some nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostEndpointTemplate {
    /// Between the node's name and `auto-hep`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub generate_name: String,
    /// Empty = all nodes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_selector: String,
    /// Of a node's addresses those in here.
    #[serde(rename = "interfaceCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub interface_cidrs: Vec<String>,
    /// A regular expression: one host endpoint for each interface of the Node whose name has a match.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub interface_pattern: String,
    /// Win over the node's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Addresses of LoadBalancer services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadBalancerControllerSpec {
    /// `AllServices`, `RequestedServicesOnly`. Empty = AllServices.
    #[serde(rename = "assignIPs", skip_serializing_if = "String::is_empty")]
    pub assign_ips: String,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Names of policies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MigrationControllerSpec {
    /// `Enabled`, `Disabled`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy_name_migrator: String,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for KubeControllersConfigurationSpec {
    const KIND: Kind = Kind::KubeControllersConfiguration;

    fn extras(&self) -> Vec<(String, &Extra)> {
        let c = &self.controllers;
        let mut all = vec![(String::new(), &self.extra), ("controllers".to_owned(), &c.extra)];
        if let Some(node) = &c.node {
            all.push(("controllers.node".into(), &node.extra));
            if let Some(auto) = &node.host_endpoint {
                let at = "controllers.node.hostEndpoint";
                all.push((at.into(), &auto.extra));
                let templates = auto.templates.iter().enumerate();
                all.extend(templates.map(|(i, t)| (format!("{at}.templates[{i}]"), &t.extra)));
            }
        }
        all.extend(c.load_balancer.iter().map(|l| ("controllers.loadBalancer".to_owned(), &l.extra)));
        all.extend(c.migration.iter().map(|m| ("controllers.migration".to_owned(), &m.extra)));
        all
    }
}

/// KubeControllersConfiguration.status: what the process that acts runs with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeControllersConfigurationStatus {
    /// Settings of the process that win over the object, by the names of their variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment_vars: BTreeMap<String, String>,
    pub running_config: KubeControllersConfigurationSpec,
    /// What is asked for here and not done, with the reason. Not in Calico, whose definition drops it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}
