//! Kubernetes' objects as Calico's resources (Calico `libcalico-go/lib/backend/k8s/conversion`): policies become
//! policy specs with selectors, namespaces and service accounts become profiles whose labels endpoints inherit.

mod cluster;
mod network_policy;
mod ports;
mod profile;
mod selector;

#[cfg(test)]
mod tests;

pub use cluster::{ClusterKind, cluster_policy};
pub use network_policy::{kubernetes_policy, staged_kubernetes_policy};
pub use profile::{
    DEFAULT_ALLOW, namespace_profile, namespace_profile_name, service_account_profile,
    service_account_profile_name,
};

use crate::policy::PolicySpec;

/// `order` of every converted Kubernetes NetworkPolicy.
pub const NETWORK_POLICY_ORDER: f64 = 1000.0;

/// Label of every endpoint of a pod: the namespace.
pub const LABEL_NAMESPACE: &str = "projectcalico.org/namespace";
/// Label of every endpoint of a pod: `k8s`.
pub const LABEL_ORCHESTRATOR: &str = "projectcalico.org/orchestrator";
/// Label of every endpoint of a pod with a service account of fewer than 63 characters.
pub const LABEL_SERVICE_ACCOUNT: &str = "projectcalico.org/serviceaccount";
/// Before the labels that come from the namespace.
pub const PREFIX_NAMESPACE: &str = "pcns.";
/// Before the labels that come from the service account.
pub const PREFIX_SERVICE_ACCOUNT: &str = "pcsa.";

/// Whether a label is of those that are inherited from a namespace or a service account. Nobody has them as his own: who may
/// label a pod would make it a member of another namespace.
pub fn is_inherited(label: &str) -> bool {
    label.starts_with(PREFIX_NAMESPACE) || label.starts_with(PREFIX_SERVICE_ACCOUNT)
}

/// Tiers that exist without a resource: name, order, whether the default action is Pass. A Tier of the same name says the
/// same.
pub const BUILT_IN_TIERS: [(&str, f64, bool); 5] = [
    ("default", crate::policy::DEFAULT_TIER_ORDER, false),
    ("kube-admin", 1000.0, true),
    ("kube-baseline", 10_000_000.0, true),
    ("adminnetworkpolicy", 1000.0, true),
    ("baselineadminnetworkpolicy", 10_000_000.0, true),
];

/// The order of a built-in tier, and whether its default action is Pass.
pub fn built_in_tier(name: &str) -> Option<(f64, bool)> {
    BUILT_IN_TIERS.into_iter().find(|t| t.0 == name).map(|(_, order, pass)| (order, pass))
}

/// A policy in Calico's form.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Converted {
    pub spec: PolicySpec,
    /// For each of `spec.ingress` the index of the rule it was made from.
    pub ingress_from: Vec<u32>,
    /// The same for `spec.egress`.
    pub egress_from: Vec<u32>,
    /// What could not be converted: field and reason. What allows was left out, what denies or passes denies all.
    pub problems: Vec<(String, String)>,
    /// Not even the directions it is about can be told: whoever is selected is to be closed.
    pub broken: bool,
}
