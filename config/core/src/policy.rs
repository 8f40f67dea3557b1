//! Network policy resources with Calico's fields (`api/pkg/apis/projectcalico/v3`): tiers, policies and their staged
//! forms, network sets, host endpoints, profiles. Text stays text here; `validate` and the calculation graph parse it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    key::Kind,
    kube::LabelSelector,
    meta::{Extra, Spec},
    workload::WorkloadPort,
};

/// Name of the tier a policy without one belongs to.
pub const DEFAULT_TIER: &str = "default";
/// `order` of the tier `default`.
pub const DEFAULT_TIER_ORDER: f64 = 1_000_000.0;

/// A number or a text, as Kubernetes has it for ports and protocols.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IntOrString {
    Int(i64),
    Text(String),
}

impl Default for IntOrString {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl fmt::Display for IntOrString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(n) => n.fmt(f),
            Self::Text(t) => f.write_str(t),
        }
    }
}

impl From<&str> for IntOrString {
    fn from(s: &str) -> Self {
        Self::Text(s.to_owned())
    }
}

impl From<u16> for IntOrString {
    fn from(n: u16) -> Self {
        Self::Int(n.into())
    }
}

impl Serialize for IntOrString {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Int(n) => s.serialize_i64(*n),
            Self::Text(t) => s.serialize_str(t),
        }
    }
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl serde::de::Visitor<'_> for V {
            type Value = IntOrString;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a text")
            }
            fn visit_i64<E>(self, n: i64) -> Result<IntOrString, E> {
                Ok(IntOrString::Int(n))
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<IntOrString, E> {
                i64::try_from(n).map(IntOrString::Int).map_err(|_| E::custom("the number is too large"))
            }
            fn visit_str<E>(self, s: &str) -> Result<IntOrString, E> {
                Ok(IntOrString::Text(s.to_owned()))
            }
        }
        d.deserialize_any(V)
    }
}

/// An order as people and Calico's tools write it: a whole number has no fraction.
fn as_written<S: serde::Serializer>(order: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
    /// Beyond, not every whole number is one of these.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match order {
        None => to.serialize_none(),
        #[allow(clippy::cast_possible_truncation, reason = "it is whole, and within what both types hold")]
        Some(n) if n.fract() == 0.0 && n.abs() <= EXACT => to.serialize_i64(*n as i64),
        Some(n) => to.serialize_f64(*n),
    }
}

/// Tier.spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TierSpec {
    /// Lower goes first; absent = after all others.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_written")]
    pub order: Option<f64>,
    /// `Deny` (when absent) or `Pass`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_action: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for TierSpec {
    const KIND: Kind = Kind::Tier;
    fn extras(&self) -> Vec<(String, &Extra)> {
        vec![(String::new(), &self.extra)]
    }
}

/// What all policy kinds have in common; the cluster-wide fields are refused by validation in namespaced kinds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicySpec {
    /// Empty = `default`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tier: String,
    /// Lower goes first; absent = after all others.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_written")]
    pub order: Option<f64>,
    /// Empty = everything in reach.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selector: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace_selector: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_account_selector: String,
    /// `Ingress`, `Egress`. Absent: see [`PolicySpec::directions`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<Rule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<Rule>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub do_not_track: bool,
    #[serde(rename = "preDNAT", skip_serializing_if = "std::ops::Not::not")]
    pub pre_dnat: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub apply_on_forward: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub performance_hints: Vec<String>,
    /// Staged kinds only: `Set` (when absent), `Delete`, `Learn`, `Ignore`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staged_action: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl PolicySpec {
    /// The name of its tier.
    pub fn tier(&self) -> &str {
        if self.tier.is_empty() { DEFAULT_TIER } else { &self.tier }
    }

    /// Whether it applies to ingress and to egress. Without `types`: no egress rules → ingress; only egress rules →
    /// egress; both → both.
    pub fn directions(&self) -> (bool, bool) {
        if self.types.is_empty() {
            return (self.egress.is_empty() || !self.ingress.is_empty(), !self.egress.is_empty());
        }
        let has = |t: &str| self.types.iter().any(|x| x == t);
        (has("Ingress"), has("Egress"))
    }

    fn extras(&self) -> Vec<(String, &Extra)> {
        let rules = [("ingress", &self.ingress), ("egress", &self.egress)];
        let inside = rules.into_iter().flat_map(|(list, rules)| {
            rules.iter().enumerate().flat_map(move |(i, r)| {
                [("", &r.extra), (".source", &r.source.extra), (".destination", &r.destination.extra)]
                    .map(|(at, extra)| (format!("{list}[{i}]{at}"), extra))
            })
        });
        std::iter::once((String::new(), &self.extra)).chain(inside).collect()
    }
}

/// One rule. All conditions given must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// `Allow`, `Deny`, `Log`, `Pass`.
    pub action: String,
    /// 4 or 6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_version: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<IntOrString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_protocol: Option<IntOrString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpFields>,
    #[serde(rename = "notICMP", skip_serializing_if = "Option::is_none")]
    pub not_icmp: Option<IcmpFields>,
    #[serde(skip_serializing_if = "EntityRule::is_any")]
    pub source: EntityRule,
    #[serde(skip_serializing_if = "EntityRule::is_any")]
    pub destination: EntityRule,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<RuleMetadata>,
    /// `http` and what this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `icmp`, `notICMP`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IcmpFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i64>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Annotations of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuleMetadata {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// One end of a rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntityRule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_nets: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selector: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub not_selector: String,
    /// `global()` = endpoints and sets outside any namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace_selector: String,
    /// Numbers, `first:last`, names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<IntOrString>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<IntOrString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<ServiceAccountMatch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<ServiceMatch>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl EntityRule {
    /// Whether it asks nothing.
    pub fn is_any(&self) -> bool {
        *self == Self::default()
    }
}

/// `serviceAccounts`: both conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceAccountMatch {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selector: String,
    #[serde(flatten)]
    pub extra: Extra,
}

/// `services`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceMatch {
    pub name: String,
    /// Empty = the policy's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(flatten)]
    pub extra: Extra,
}

/// NetworkSet.spec and GlobalNetworkSet.spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SetSpec {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl SetSpec {
    fn extras(&self) -> Vec<(String, &Extra)> {
        vec![(String::new(), &self.extra)]
    }
}

/// HostEndpoint.spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostEndpointSpec {
    pub node: String,
    /// A name or `*`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub interface_name: String,
    #[serde(rename = "expectedIPs", skip_serializing_if = "Vec::is_empty")]
    pub expected_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<WorkloadPort>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for HostEndpointSpec {
    const KIND: Kind = Kind::HostEndpoint;
    fn extras(&self) -> Vec<(String, &Extra)> {
        let ports = self.ports.iter().enumerate();
        std::iter::once((String::new(), &self.extra))
            .chain(ports.map(|(i, p)| (format!("ports[{i}]"), &p.extra)))
            .collect()
    }
}

/// Profile.spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProfileSpec {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<Rule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<Rule>,
    /// Labels that endpoints with this profile inherit.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels_to_apply: BTreeMap<String, String>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for ProfileSpec {
    const KIND: Kind = Kind::Profile;
    fn extras(&self) -> Vec<(String, &Extra)> {
        vec![(String::new(), &self.extra)]
    }
}

/// StagedKubernetesNetworkPolicy.spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StagedKubernetesNetworkPolicySpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staged_action: Option<String>,
    pub pod_selector: LabelSelector,
    #[serde(flatten)]
    pub rules: crate::kube::KubeRules,
}

impl Spec for StagedKubernetesNetworkPolicySpec {
    const KIND: Kind = Kind::StagedKubernetesNetworkPolicy;
    fn extras(&self) -> Vec<(String, &Extra)> {
        crate::kube::unknown::in_network_policy(&self.pod_selector, &self.rules)
    }
}

macro_rules! kinds_of {
    ($inner:ty: $($(#[$doc:meta])* $name:ident = $kind:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl Spec for $name {
            const KIND: Kind = Kind::$kind;
            fn extras(&self) -> Vec<(String, &Extra)> {
                self.0.extras()
            }
        }
    )*};
}

kinds_of! { PolicySpec:
    /// NetworkPolicy.spec of `projectcalico.org/v3`.
    NetworkPolicySpec = NetworkPolicy,
    /// GlobalNetworkPolicy.spec.
    GlobalNetworkPolicySpec = GlobalNetworkPolicy,
    /// StagedNetworkPolicy.spec.
    StagedNetworkPolicySpec = StagedNetworkPolicy,
    /// StagedGlobalNetworkPolicy.spec.
    StagedGlobalNetworkPolicySpec = StagedGlobalNetworkPolicy,
}

kinds_of! { SetSpec:
    /// NetworkSet.spec.
    NetworkSetSpec = NetworkSet,
    /// GlobalNetworkSet.spec.
    GlobalNetworkSetSpec = GlobalNetworkSet,
}
