//! A resource of any kind: what a file holds and what a table prints.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::{
    Key, Kind, ObjectMeta, Resource,
    bgp::{BgpConfigurationSpec, BgpFilterSpec, BgpPeerSpec},
    controllers::KubeControllersConfigurationSpec,
    felix::{ClusterInformationSpec, FelixConfigurationSpec},
    ipam::{BlockAffinitySpec, IpamBlockSpec, IpamConfigSpec, IpamHandleSpec},
    kube::{
        AdminNetworkPolicySpec, BaselineAdminNetworkPolicySpec, ClusterNetworkPolicySpec, EndpointSliceSpec,
        KubernetesNetworkPolicySpec, NamespaceSpec, ServiceAccountSpec,
    },
    lease::LeaseSpec,
    meta::Extra,
    node::NodeSpec,
    node_status::CalicoNodeStatusSpec,
    policy::{
        GlobalNetworkPolicySpec, GlobalNetworkSetSpec, HostEndpointSpec, NetworkPolicySpec, NetworkSetSpec,
        ProfileSpec, StagedGlobalNetworkPolicySpec, StagedKubernetesNetworkPolicySpec,
        StagedNetworkPolicySpec, TierSpec,
    },
    pool::{IpPoolSpec, IpReservationSpec},
    service::ServiceSpec,
    store::without_nulls,
    workload::WorkloadEndpointSpec,
};

macro_rules! any_resource {
    ($($kind:ident($spec:ty)),* $(,)?) => {
        /// A typed resource of one of the kinds.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(clippy::large_enum_variant, reason = "handled one at a time, by files and tables, never in bulk")]
        pub enum AnyResource {
            $($kind(Resource<$spec>),)*
        }

        impl AnyResource {
            /// The kind of the resource.
            pub const fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            /// The key under which the stores hold it.
            pub fn key(&self) -> Key {
                match self { $(Self::$kind(r) => r.key(),)* }
            }

            /// Its metadata.
            pub const fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$kind(r) => &r.metadata,)* }
            }

            /// Its metadata, to change.
            pub const fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Self::$kind(r) => &mut r.metadata,)* }
            }

            /// Fields this version does not know, each with the path of the object that holds it (empty at the top).
            pub fn extras(&self) -> Vec<(String, &Extra)> {
                match self { $(Self::$kind(r) => r.extras(),)* }
            }

            /// Reads a resource that is known to be of `kind`.
            pub fn deserialize_kind<'de, D: Deserializer<'de>>(kind: Kind, d: D) -> Result<Self, D::Error> {
                match kind { $(Kind::$kind => Resource::<$spec>::deserialize(d).map(Self::$kind),)* }
            }
        }

        impl Serialize for AnyResource {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                match self { $(Self::$kind(r) => r.serialize(s),)* }
            }
        }

        $(impl From<Resource<$spec>> for AnyResource {
            fn from(r: Resource<$spec>) -> Self {
                Self::$kind(r)
            }
        })*
    };
}

any_resource! {
    IpPool(IpPoolSpec),
    IpReservation(IpReservationSpec),
    IpamConfiguration(IpamConfigSpec),
    IpamBlock(IpamBlockSpec),
    IpamHandle(IpamHandleSpec),
    BlockAffinity(BlockAffinitySpec),
    Node(NodeSpec),
    BgpConfiguration(BgpConfigurationSpec),
    BgpPeer(BgpPeerSpec),
    BgpFilter(BgpFilterSpec),
    FelixConfiguration(FelixConfigurationSpec),
    ClusterInformation(ClusterInformationSpec),
    KubeControllersConfiguration(KubeControllersConfigurationSpec),
    CalicoNodeStatus(CalicoNodeStatusSpec),
    WorkloadEndpoint(WorkloadEndpointSpec),
    Tier(TierSpec),
    GlobalNetworkPolicy(GlobalNetworkPolicySpec),
    NetworkPolicy(NetworkPolicySpec),
    StagedGlobalNetworkPolicy(StagedGlobalNetworkPolicySpec),
    StagedNetworkPolicy(StagedNetworkPolicySpec),
    StagedKubernetesNetworkPolicy(StagedKubernetesNetworkPolicySpec),
    NetworkSet(NetworkSetSpec),
    GlobalNetworkSet(GlobalNetworkSetSpec),
    HostEndpoint(HostEndpointSpec),
    Profile(ProfileSpec),
    KubernetesNetworkPolicy(KubernetesNetworkPolicySpec),
    ClusterNetworkPolicy(ClusterNetworkPolicySpec),
    AdminNetworkPolicy(AdminNetworkPolicySpec),
    BaselineAdminNetworkPolicy(BaselineAdminNetworkPolicySpec),
    Namespace(NamespaceSpec),
    ServiceAccount(ServiceAccountSpec),
    EndpointSlice(EndpointSliceSpec),
    Service(ServiceSpec),
    Lease(LeaseSpec),
}

impl AnyResource {
    /// Reads a stored value, as [`decode`](crate::store::decode) does for one type. The error names the field.
    pub fn from_value(kind: Kind, value: &Value) -> Result<Self, String> {
        // Keeping account of the path costs more than reading: only for what does not read.
        if let Ok(read) = Self::deserialize_kind(kind, value) {
            return Ok(read);
        }
        let mut track = serde_path_to_error::Track::new();
        let d = serde_path_to_error::Deserializer::new(value, &mut track);
        let error = match Self::deserialize_kind(kind, d) {
            Ok(read) => return Ok(read),
            Err(e) => e,
        };
        Self::deserialize_kind(kind, without_nulls(value)).map_err(|_| format!("{}: {error}", track.path()))
    }

    /// The form in which stores keep it.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("resources have string keys and finite numbers")
    }
}

#[cfg(test)]
mod tests;
