//! Kubernetes' own kinds that bear on policy, with the fields that do: NetworkPolicy (`networking.k8s.io/v1`),
//! ClusterNetworkPolicy (`policy.networking.k8s.io/v1alpha2`) and its predecessors AdminNetworkPolicy and
//! BaselineAdminNetworkPolicy (`v1alpha1`), Namespace, ServiceAccount, EndpointSlice. `convert` makes Calico's
//! resources of them.

pub(crate) mod unknown;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    key::Kind,
    meta::{Extra, Spec},
    policy::IntOrString,
};

/// `metav1.LabelSelector`; empty selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelExpression>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// One requirement of a [`LabelSelector`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LabelExpression {
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`.
    pub operator: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// The rules of a Kubernetes NetworkPolicy, plain or staged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeRules {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policy_types: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<KubeIngress>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<KubeEgress>>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// NetworkPolicy.spec of `networking.k8s.io/v1`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubernetesNetworkPolicySpec {
    pub pod_selector: LabelSelector,
    #[serde(flatten)]
    pub rules: KubeRules,
}

impl Spec for KubernetesNetworkPolicySpec {
    const KIND: Kind = Kind::KubernetesNetworkPolicy;
    fn extras(&self) -> Vec<(String, &Extra)> {
        unknown::in_network_policy(&self.pod_selector, &self.rules)
    }
}

/// One ingress rule; no `from` = from anywhere, no `ports` = every port and protocol.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KubeIngress {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<KubePeer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<KubePort>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// One egress rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KubeEgress {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<KubePeer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<KubePort>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// A peer: pods, or an `ipBlock` alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubePeer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// `ipBlock`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpBlock {
    pub cidr: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// A port; no protocol = TCP, no port = all of the protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubePort {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<IntOrString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_port: Option<i64>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Spec of the cluster-wide policies, old and new; which fields count depends on the kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterPolicySpec {
    /// ClusterNetworkPolicy: `Admin`, `Baseline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// Lower goes first; none in BaselineAdminNetworkPolicy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    pub subject: ClusterPeer,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<ClusterRule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<ClusterRule>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// A rule of a cluster-wide policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterRule {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `Accept` (v1alpha1: `Allow`), `Deny`, `Pass`.
    pub action: String,
    /// Ingress.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<ClusterPeer>,
    /// Egress.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<ClusterPeer>,
    /// v1alpha2.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<ClusterProtocol>,
    /// v1alpha1.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<AdminPort>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// A peer or the subject: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterPeer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPods>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// `nodes`, `domainNames`: known to the API, not convertible.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Pods by namespace and label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespacedPods {
    pub namespace_selector: LabelSelector,
    pub pod_selector: LabelSelector,
    #[serde(flatten)]
    pub extra: Extra,
}

/// v1alpha2: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterProtocol {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<ClusterPorts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<ClusterPorts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sctp: Option<ClusterPorts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_named_port: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Ports of one protocol; absent = all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterPorts {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<ClusterPort>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// A number or a range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterPort {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<ClusterRange>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// `start..=end`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterRange {
    pub start: i64,
    pub end: i64,
    #[serde(flatten)]
    pub extra: Extra,
}

/// v1alpha1: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AdminPort {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_number: Option<AdminPortNumber>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_range: Option<AdminPortRange>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named_port: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// `portNumber`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdminPortNumber {
    /// Empty = TCP.
    pub protocol: String,
    pub port: i64,
    #[serde(flatten)]
    pub extra: Extra,
}

/// `portRange`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdminPortRange {
    /// Empty = TCP.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    pub start: i64,
    pub end: i64,
    #[serde(flatten)]
    pub extra: Extra,
}

macro_rules! cluster_kinds {
    ($($(#[$doc:meta])* $name:ident = $kind:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub ClusterPolicySpec);

        impl Spec for $name {
            const KIND: Kind = Kind::$kind;
            fn extras(&self) -> Vec<(String, &Extra)> {
                unknown::in_cluster_policy(&self.0)
            }
        }
    )*};
}

cluster_kinds! {
    /// ClusterNetworkPolicy.spec.
    ClusterNetworkPolicySpec = ClusterNetworkPolicy,
    /// AdminNetworkPolicy.spec.
    AdminNetworkPolicySpec = AdminNetworkPolicy,
    /// BaselineAdminNetworkPolicy.spec.
    BaselineAdminNetworkPolicySpec = BaselineAdminNetworkPolicy,
}

macro_rules! no_spec {
    ($($(#[$doc:meta])* $name:ident = $kind:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $name {
            #[serde(flatten)]
            pub extra: Extra,
        }

        impl Spec for $name {
            const KIND: Kind = Kind::$kind;
            // Kubernetes' own fields are none of ours.
            fn extras(&self) -> Vec<(String, &Extra)> {
                Vec::new()
            }
        }
    )*};
}

no_spec! {
    /// Namespace: only its labels count.
    NamespaceSpec = Namespace,
    /// ServiceAccount: only its labels count.
    ServiceAccountSpec = ServiceAccount,
    /// EndpointSlice has no `spec`: its fields are at the top, see [`EndpointSlice`].
    EndpointSliceSpec = EndpointSlice,
}

/// The fields of an EndpointSlice (`discovery.k8s.io/v1`), at the top of the object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// `IPv4`, `IPv6`, `FQDN`.
    pub address_type: String,
    pub endpoints: Vec<SliceEndpoint>,
    pub ports: Vec<SlicePort>,
}

/// A backend. Policy does not look at its conditions (what is not ready is a backend all the same); announcements do.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    pub addresses: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub conditions: SliceConditions,
    pub node_name: Option<String>,
    pub zone: Option<String>,
}

/// Conditions of a backend; unknown (`None`) counts as ready and serving, and as not terminating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SliceConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

fn null_is_default<'de, D: Deserializer<'de>>(d: D) -> Result<SliceConditions, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

impl SliceConditions {
    /// Takes new connections.
    pub fn is_ready(self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// About to end, but still answering; taken when nothing is ready.
    pub fn is_serving_and_terminating(self) -> bool {
        self.terminating.unwrap_or(false) && self.serving.unwrap_or(true)
    }
}

/// A port of all endpoints of the slice; no port contributes nothing, no protocol = TCP.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SlicePort {
    pub protocol: Option<String>,
    pub port: Option<u16>,
}

impl EndpointSlice {
    /// Reads the fields that a resource keeps beside its (absent) spec.
    pub fn of(fields: &Extra) -> Result<Self, String> {
        let kept = ["addressType", "endpoints", "ports"];
        let picked = fields.iter().filter(|(k, v)| kept.contains(&k.as_str()) && !v.is_null());
        let map: serde_json::Map<_, _> = picked.map(|(k, v)| (k.clone(), v.clone())).collect();
        serde_path_to_error::deserialize(serde_json::Value::Object(map)).map_err(|e| e.to_string())
    }
}
