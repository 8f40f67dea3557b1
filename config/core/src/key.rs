//! Kinds and keys. The order of keys is the order of listing: kind, namespace, name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Every kind of resource the model knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    #[serde(rename = "IPPool")]
    IpPool,
    #[serde(rename = "IPReservation")]
    IpReservation,
    #[serde(rename = "IPAMConfiguration")]
    IpamConfiguration,
    #[serde(rename = "IPAMBlock")]
    IpamBlock,
    #[serde(rename = "IPAMHandle")]
    IpamHandle,
    BlockAffinity,
    Node,
    #[serde(rename = "BGPConfiguration")]
    BgpConfiguration,
    #[serde(rename = "BGPPeer")]
    BgpPeer,
    #[serde(rename = "BGPFilter")]
    BgpFilter,
    FelixConfiguration,
    ClusterInformation,
    KubeControllersConfiguration,
    CalicoNodeStatus,
    WorkloadEndpoint,
    Tier,
    GlobalNetworkPolicy,
    NetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    NetworkSet,
    GlobalNetworkSet,
    HostEndpoint,
    Profile,
    /// `NetworkPolicy` of `networking.k8s.io/v1`.
    KubernetesNetworkPolicy,
    ClusterNetworkPolicy,
    AdminNetworkPolicy,
    BaselineAdminNetworkPolicy,
    Namespace,
    ServiceAccount,
    EndpointSlice,
    Service,
    Lease,
}

impl Kind {
    /// The kinds of policies.
    pub const POLICIES: [Self; 9] = [
        Self::GlobalNetworkPolicy,
        Self::NetworkPolicy,
        Self::StagedGlobalNetworkPolicy,
        Self::StagedNetworkPolicy,
        Self::StagedKubernetesNetworkPolicy,
        Self::KubernetesNetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::AdminNetworkPolicy,
        Self::BaselineAdminNetworkPolicy,
    ];

    /// All kinds, in key order.
    pub const ALL: [Self; 34] = [
        Self::IpPool,
        Self::IpReservation,
        Self::IpamConfiguration,
        Self::IpamBlock,
        Self::IpamHandle,
        Self::BlockAffinity,
        Self::Node,
        Self::BgpConfiguration,
        Self::BgpPeer,
        Self::BgpFilter,
        Self::FelixConfiguration,
        Self::ClusterInformation,
        Self::KubeControllersConfiguration,
        Self::CalicoNodeStatus,
        Self::WorkloadEndpoint,
        Self::Tier,
        Self::GlobalNetworkPolicy,
        Self::NetworkPolicy,
        Self::StagedGlobalNetworkPolicy,
        Self::StagedNetworkPolicy,
        Self::StagedKubernetesNetworkPolicy,
        Self::NetworkSet,
        Self::GlobalNetworkSet,
        Self::HostEndpoint,
        Self::Profile,
        Self::KubernetesNetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::AdminNetworkPolicy,
        Self::BaselineAdminNetworkPolicy,
        Self::Namespace,
        Self::ServiceAccount,
        Self::EndpointSlice,
        Self::Service,
        Self::Lease,
    ];

    /// The name in `kind:`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IpPool => "IPPool",
            Self::IpReservation => "IPReservation",
            Self::IpamConfiguration => "IPAMConfiguration",
            Self::IpamBlock => "IPAMBlock",
            Self::IpamHandle => "IPAMHandle",
            Self::BlockAffinity => "BlockAffinity",
            Self::Node => "Node",
            Self::BgpConfiguration => "BGPConfiguration",
            Self::BgpPeer => "BGPPeer",
            Self::BgpFilter => "BGPFilter",
            Self::FelixConfiguration => "FelixConfiguration",
            Self::ClusterInformation => "ClusterInformation",
            Self::KubeControllersConfiguration => "KubeControllersConfiguration",
            Self::CalicoNodeStatus => "CalicoNodeStatus",
            Self::WorkloadEndpoint => "WorkloadEndpoint",
            Self::Tier => "Tier",
            Self::GlobalNetworkPolicy => "GlobalNetworkPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::StagedGlobalNetworkPolicy => "StagedGlobalNetworkPolicy",
            Self::StagedNetworkPolicy => "StagedNetworkPolicy",
            Self::StagedKubernetesNetworkPolicy => "StagedKubernetesNetworkPolicy",
            Self::NetworkSet => "NetworkSet",
            Self::GlobalNetworkSet => "GlobalNetworkSet",
            Self::HostEndpoint => "HostEndpoint",
            Self::Profile => "Profile",
            Self::KubernetesNetworkPolicy => "KubernetesNetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::EndpointSlice => "EndpointSlice",
            Self::Service => "Service",
            Self::Lease => "Lease",
        }
    }

    /// The kind named by a `kind:` field, exact spelling (`IPAMConfig` is accepted for `IPAMConfiguration`).
    pub fn parse(s: &str) -> Option<Self> {
        if s == "IPAMConfig" {
            return Some(Self::IpamConfiguration);
        }
        Self::ALL.into_iter().find(|k| k.as_str() == s)
    }

    /// Plural in lower case: how Kubernetes and the command line name a collection (`ippools`).
    pub const fn plural(self) -> &'static str {
        match self {
            Self::IpPool => "ippools",
            Self::IpReservation => "ipreservations",
            Self::IpamConfiguration => "ipamconfigurations",
            Self::IpamBlock => "ipamblocks",
            Self::IpamHandle => "ipamhandles",
            Self::BlockAffinity => "blockaffinities",
            Self::Node => "nodes",
            Self::BgpConfiguration => "bgpconfigurations",
            Self::BgpPeer => "bgppeers",
            Self::BgpFilter => "bgpfilters",
            Self::FelixConfiguration => "felixconfigurations",
            Self::ClusterInformation => "clusterinformations",
            Self::KubeControllersConfiguration => "kubecontrollersconfigurations",
            Self::CalicoNodeStatus => "caliconodestatuses",
            Self::WorkloadEndpoint => "workloadendpoints",
            Self::Tier => "tiers",
            Self::GlobalNetworkPolicy => "globalnetworkpolicies",
            Self::NetworkPolicy => "networkpolicies",
            Self::StagedGlobalNetworkPolicy => "stagedglobalnetworkpolicies",
            Self::StagedNetworkPolicy => "stagednetworkpolicies",
            Self::StagedKubernetesNetworkPolicy => "stagedkubernetesnetworkpolicies",
            Self::NetworkSet => "networksets",
            Self::GlobalNetworkSet => "globalnetworksets",
            Self::HostEndpoint => "hostendpoints",
            Self::Profile => "profiles",
            Self::KubernetesNetworkPolicy => "kubernetesnetworkpolicies",
            Self::ClusterNetworkPolicy => "clusternetworkpolicies",
            Self::AdminNetworkPolicy => "adminnetworkpolicies",
            Self::BaselineAdminNetworkPolicy => "baselineadminnetworkpolicies",
            Self::Namespace => "namespaces",
            Self::ServiceAccount => "serviceaccounts",
            Self::EndpointSlice => "endpointslices",
            Self::Service => "services",
            Self::Lease => "leases",
        }
    }

    /// Short names on the command line, those of calicoctl and of the CRDs.
    pub const fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::IpPool => &["ipp", "ipps", "pool", "pools"],
            Self::IpReservation => &["reservation", "reservations"],
            Self::IpamConfiguration => &["ipamconfig", "ipamconfigs"],
            Self::IpamBlock => &["block", "blocks"],
            Self::IpamHandle => &["handle", "handles"],
            Self::BlockAffinity => &["affinity", "affinities"],
            Self::Node => &["no", "nos"],
            Self::BgpConfiguration => &["bgpconfig", "bgpconfigs"],
            Self::BgpPeer => &["bgpp", "bgpps", "bp", "bps"],
            Self::BgpFilter => &["bgpf", "bgpfs", "bf", "bfs"],
            Self::FelixConfiguration => &["felixconfig", "felixconfigs"],
            Self::ClusterInformation => &["clusterinfo", "clusterinfos"],
            Self::KubeControllersConfiguration => {
                &["kcc", "kccs", "kubecontrollersconfig", "kubecontrollersconfigs"]
            }
            Self::CalicoNodeStatus => &["nodestatus", "nodestatuses"],
            Self::WorkloadEndpoint => &["wep", "weps"],
            Self::Tier => &[],
            Self::GlobalNetworkPolicy => &["gnp", "gnps"],
            Self::NetworkPolicy => &["np", "nps", "policy", "policies", "pol", "pols"],
            Self::StagedGlobalNetworkPolicy => &["sgnp", "sgnps"],
            Self::StagedNetworkPolicy => &["snp", "snps"],
            Self::StagedKubernetesNetworkPolicy => &["sknp", "sknps"],
            Self::NetworkSet => &["netset", "netsets"],
            Self::GlobalNetworkSet => &["gns", "gnetset", "gnetsets"],
            Self::HostEndpoint => &["hep", "heps"],
            Self::Profile => &["pro", "pros"],
            Self::KubernetesNetworkPolicy => &["knp", "knps"],
            Self::ClusterNetworkPolicy => &["cnp", "cnps"],
            Self::AdminNetworkPolicy => &["anp", "anps"],
            Self::BaselineAdminNetworkPolicy => &["banp", "banps"],
            Self::Namespace => &["ns"],
            Self::ServiceAccount => &["sa"],
            Self::EndpointSlice => &["eps"],
            Self::Service => &["svc"],
            Self::Lease => &[],
        }
    }

    /// The kind a person means: any spelling of the kind, its plural or one of its aliases.
    pub fn find(word: &str) -> Option<Self> {
        let word = word.to_lowercase();
        Self::ALL.into_iter().find(|k| {
            k.as_str().to_lowercase() == word || k.plural() == word || k.aliases().contains(&word.as_str())
        })
    }

    /// The kind whose name comes closest to a misspelt one.
    pub fn closest(word: &str) -> Option<Self> {
        Self::find(word).or_else(|| {
            let names = Self::ALL.iter().map(|k| k.as_str());
            // Nearly every short word becomes another by one letter changed (pod, pol); a letter too many or too few
            // is a slip.
            let short = Self::ALL.iter().flat_map(|k| k.aliases()).copied();
            let short = short.filter(|a| a.len() > 2 && a.len() != word.len());
            crate::suggest::closest(word, names.chain(Self::ALL.iter().map(|k| k.plural())).chain(short))
                .and_then(Self::find)
        })
    }

    /// Whether resources of this kind live in a namespace.
    pub const fn namespaced(self) -> bool {
        matches!(
            self,
            Self::WorkloadEndpoint
                | Self::NetworkPolicy
                | Self::StagedNetworkPolicy
                | Self::StagedKubernetesNetworkPolicy
                | Self::NetworkSet
                | Self::KubernetesNetworkPolicy
                | Self::ServiceAccount
                | Self::EndpointSlice
                | Self::Service
                | Self::Lease
        )
    }

    /// `apiVersion` and `kind` as written in a resource. They differ from [`Kind::as_str`] for Kubernetes' own
    /// NetworkPolicy, which shares its name with Calico's.
    pub const fn written(self) -> (&'static str, &'static str) {
        match self {
            Self::KubernetesNetworkPolicy => ("networking.k8s.io/v1", "NetworkPolicy"),
            Self::ClusterNetworkPolicy => ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
            Self::AdminNetworkPolicy => ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
            Self::BaselineAdminNetworkPolicy => {
                ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy")
            }
            Self::Namespace | Self::ServiceAccount | Self::Service => ("v1", self.as_str()),
            Self::EndpointSlice => ("discovery.k8s.io/v1", "EndpointSlice"),
            Self::Lease => ("coordination.k8s.io/v1", "Lease"),
            _ => (crate::meta::API_VERSION, self.as_str()),
        }
    }

    /// The kind of a resource with this `apiVersion` and `kind`.
    pub fn parse_written(api_version: Option<&str>, kind: &str) -> Option<Self> {
        if kind == "NetworkPolicy" && api_version == Some("networking.k8s.io/v1") {
            return Some(Self::KubernetesNetworkPolicy);
        }
        Self::parse(kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Identity of a resource in a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub kind: Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    pub name: String,
}

impl Key {
    /// A key; `namespace` is ignored for cluster-scoped kinds.
    pub fn new(kind: Kind, namespace: Option<&str>, name: &str) -> Self {
        let namespace =
            if kind.namespaced() { namespace.unwrap_or("default").to_owned() } else { String::new() };
        Self { kind, namespace, name: name.to_owned() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}({})", self.kind, self.name)
        } else {
            write!(f, "{}({}/{})", self.kind, self.namespace, self.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_name_of_a_kind_leads_to_it_alone() {
        let mut seen = BTreeMap::new();
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.as_str()), Some(kind));
            assert_eq!(serde_json::to_value(kind).ok(), Some(kind.as_str().into()));
            for word in [kind.as_str(), kind.plural()].iter().chain(kind.aliases()) {
                assert_eq!(Kind::find(word), Some(kind), "{word}");
                assert_eq!(Kind::find(&word.to_uppercase()), Some(kind), "{word}");
                assert_eq!(seen.insert(word.to_lowercase(), kind), None, "{word} is used twice");
            }
        }
        assert_eq!(Kind::find("deployment"), None);
    }

    #[test]
    fn misspelt_kinds_are_recognised() {
        assert_eq!(Kind::closest("BGPPear"), Some(Kind::BgpPeer));
        assert_eq!(Kind::closest("ippol"), Some(Kind::IpPool));
        assert_eq!(Kind::closest("gnpp"), Some(Kind::GlobalNetworkPolicy));
        for other in ["Deployment", "Pod", "pods", "job"] {
            assert_eq!(Kind::closest(other), None, "{other}");
        }
    }

    #[test]
    fn keys_sort_by_kind_then_namespace_then_name() {
        let pool = Key::new(Kind::IpPool, Some("ignored"), "z");
        let a = Key::new(Kind::WorkloadEndpoint, Some("a"), "z");
        let b = Key::new(Kind::WorkloadEndpoint, Some("b"), "a");
        assert!(pool < a && a < b);
        assert_eq!(pool.to_string(), "IPPool(z)");
        assert_eq!(Key::new(Kind::WorkloadEndpoint, None, "w").to_string(), "WorkloadEndpoint(default/w)");
    }
}
