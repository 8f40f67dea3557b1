//! Where each kind lives in a Kubernetes API: group, version, plural, and how its objects become resources. Calico's own
//! kinds are CRDs of `crd.projectcalico.org/v1`, or of `projectcalico.org/v3` where a cluster has those alone
//! (`libcalico-go/lib/backend/k8s`); the others are Kubernetes' objects.

use brindle_config_core::Kind;

/// Which of Calico's two API groups a cluster stores resources in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    /// `crd.projectcalico.org/v1`: metadata in an annotation.
    V1,
    /// `projectcalico.org/v3` as CRDs.
    V3,
}

/// How an object becomes a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One of Calico's CRDs.
    Calico(Api),
    /// Annotations of a Node.
    Node,
    /// Annotations and status of a Pod.
    Pod,
    /// The object itself, without what servers keep for themselves.
    Plain,
}

/// A collection of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) kind: Kind,
    /// Empty for the core group.
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) plural: &'static str,
    pub(super) shape: Shape,
}

/// Kinds whose CRDs a cluster may lack: then there are none of them.
const fn optional(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::ClusterNetworkPolicy
            | Kind::AdminNetworkPolicy
            | Kind::BaselineAdminNetworkPolicy
            | Kind::StagedGlobalNetworkPolicy
            | Kind::StagedNetworkPolicy
            | Kind::StagedKubernetesNetworkPolicy
            | Kind::Tier
            | Kind::IpReservation
            | Kind::BgpFilter
            | Kind::KubeControllersConfiguration
            | Kind::CalicoNodeStatus
    )
}

impl Place {
    /// The collection of a kind; `None` for kinds that are computed and stored nowhere.
    pub(super) const fn of(kind: Kind, api: Api) -> Option<Self> {
        let (group, version, plural, shape) = match kind {
            Kind::Profile => return None,
            Kind::Node => ("", "v1", "nodes", Shape::Node),
            Kind::WorkloadEndpoint => ("", "v1", "pods", Shape::Pod),
            Kind::Namespace => ("", "v1", "namespaces", Shape::Plain),
            Kind::ServiceAccount => ("", "v1", "serviceaccounts", Shape::Plain),
            Kind::Service => ("", "v1", "services", Shape::Plain),
            Kind::EndpointSlice => ("discovery.k8s.io", "v1", "endpointslices", Shape::Plain),
            Kind::Lease => ("coordination.k8s.io", "v1", "leases", Shape::Plain),
            Kind::KubernetesNetworkPolicy => ("networking.k8s.io", "v1", "networkpolicies", Shape::Plain),
            Kind::ClusterNetworkPolicy => {
                ("policy.networking.k8s.io", "v1alpha2", "clusternetworkpolicies", Shape::Plain)
            }
            Kind::AdminNetworkPolicy => {
                ("policy.networking.k8s.io", "v1alpha1", "adminnetworkpolicies", Shape::Plain)
            }
            Kind::BaselineAdminNetworkPolicy => {
                ("policy.networking.k8s.io", "v1alpha1", "baselineadminnetworkpolicies", Shape::Plain)
            }
            kind => match api {
                Api::V1 => {
                    let plural = match kind {
                        Kind::IpamConfiguration => "ipamconfigs",
                        kind => kind.plural(),
                    };
                    ("crd.projectcalico.org", "v1", plural, Shape::Calico(api))
                }
                Api::V3 => ("projectcalico.org", "v3", kind.plural(), Shape::Calico(api)),
            },
        };
        Some(Self { kind, group, version, plural, shape })
    }

    /// Whether a cluster without this collection simply has no such objects.
    pub(super) const fn optional(&self) -> bool {
        optional(self.kind)
    }

    /// Whether its objects have a status that we write, and that a write of the object leaves as it is.
    pub(super) const fn has_status(&self) -> bool {
        matches!(self.kind, Kind::KubeControllersConfiguration | Kind::CalicoNodeStatus)
    }

    /// Whether its objects are namespaced in the API.
    pub(super) const fn namespaced(&self) -> bool {
        self.kind.namespaced()
    }

    /// Path of the collection, over all namespaces or in one.
    pub(super) fn collection(&self, namespace: Option<&str>) -> String {
        let root = match self.group {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        match namespace {
            Some(ns) if self.namespaced() => format!("{root}/namespaces/{}/{}", escaped(ns), self.plural),
            _ => format!("{root}/{}", self.plural),
        }
    }

    /// Path of one object.
    pub(super) fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/{}", self.collection(Some(namespace)), escaped(name))
    }

    /// `apiVersion` of its objects.
    pub(super) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// What messages call it: `ippools.crd.projectcalico.org`.
    pub(super) fn resource(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// What to do when the cluster does not know the collection.
    pub(super) fn remedy(&self) -> String {
        match self.shape {
            Shape::Calico(_) => "apply Brindle's CRDs: kubectl apply -k deploy/crds".into(),
            _ => format!("the cluster's API server does not serve {}", self.api_version()),
        }
    }
}

/// A path segment or a query value, with everything but unreserved characters escaped (RFC 3986, section 2).
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(b)),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(kind: Kind, api: Api) -> Place {
        Place::of(kind, api).expect("stored")
    }

    #[test]
    fn paths_are_those_of_the_api() {
        for (kind, api, ns, path) in [
            (Kind::IpPool, Api::V1, "", "/apis/crd.projectcalico.org/v1/ippools/x"),
            (Kind::IpPool, Api::V3, "", "/apis/projectcalico.org/v3/ippools/x"),
            (Kind::IpamConfiguration, Api::V1, "", "/apis/crd.projectcalico.org/v1/ipamconfigs/x"),
            (Kind::IpamConfiguration, Api::V3, "", "/apis/projectcalico.org/v3/ipamconfigurations/x"),
            (
                Kind::NetworkPolicy,
                Api::V1,
                "a",
                "/apis/crd.projectcalico.org/v1/namespaces/a/networkpolicies/x",
            ),
            (
                Kind::KubernetesNetworkPolicy,
                Api::V1,
                "a",
                "/apis/networking.k8s.io/v1/namespaces/a/networkpolicies/x",
            ),
            (Kind::Node, Api::V1, "", "/api/v1/nodes/x"),
            (Kind::WorkloadEndpoint, Api::V1, "a", "/api/v1/namespaces/a/pods/x"),
            (Kind::Namespace, Api::V3, "", "/api/v1/namespaces/x"),
        ] {
            assert_eq!(place(kind, api).object(ns, "x"), path);
        }
        assert_eq!(place(Kind::WorkloadEndpoint, Api::V1).collection(None), "/api/v1/pods");
        assert_eq!(Place::of(Kind::Profile, Api::V1), None);
    }

    #[test]
    fn names_cannot_leave_their_place_in_a_path() {
        assert_eq!(escaped("../x?a=b%"), "..%2Fx%3Fa%3Db%25");
        assert_eq!(
            place(Kind::IpPool, Api::V1).object("", "a/b"),
            "/apis/crd.projectcalico.org/v1/ippools/a%2Fb"
        );
    }
}
