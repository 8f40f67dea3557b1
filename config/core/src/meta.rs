//! Resource envelope: `apiVersion`, `kind`, `metadata`, `spec`, as in `projectcalico.org/v3`.
//! Fields this version does not know are kept in `extra` and written back unchanged.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::key::{Key, Kind};

/// API version written on every resource.
pub const API_VERSION: &str = "projectcalico.org/v3";

/// Unknown fields, kept verbatim.
pub type Extra = BTreeMap<String, Value>;

/// Reads a prefix; a bare address is the prefix of that address alone, as Calico has it.
pub(crate) fn net_or_ip<'de, D: Deserializer<'de>>(d: D) -> Result<IpNet, D::Error> {
    struct V;
    impl serde::de::Visitor<'_> for V {
        type Value = IpNet;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a CIDR such as 10.0.0.0/16, or an IP address")
        }
        fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<IpNet, E> {
            let net = s.parse().or_else(|_| s.parse::<std::net::IpAddr>().map(IpNet::from));
            net.map_err(|_| E::invalid_value(serde::de::Unexpected::Str(s), &self))
        }
    }
    d.deserialize_str(V)
}

/// The same for one that may be left out.
pub(crate) fn net_or_ip_if_any<'de, D: Deserializer<'de>>(d: D) -> Result<Option<IpNet>, D::Error> {
    #[derive(Deserialize)]
    struct One(#[serde(deserialize_with = "net_or_ip")] IpNet);
    Ok(Option::<One>::deserialize(d)?.map(|one| one.0))
}

/// The same for a list.
pub(crate) fn nets_or_ips<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<IpNet>, D::Error> {
    #[derive(Deserialize)]
    struct One(#[serde(deserialize_with = "net_or_ip")] IpNet);
    Ok(Vec::<One>::deserialize(d)?.into_iter().map(|one| one.0).collect())
}

/// Object metadata (the subset of Kubernetes ObjectMeta that Calico uses; the rest is kept in `extra`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl ObjectMeta {
    /// Metadata with nothing but a name.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
}

/// The specification of one kind of resource.
pub trait Spec:
    Serialize + DeserializeOwned + Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static
{
    /// The kind this is the `spec` of.
    const KIND: Kind;

    /// Fields this version does not know, each with the path inside the spec of the object that holds it (empty for
    /// the spec itself).
    fn extras(&self) -> Vec<(String, &Extra)>;
}

/// A resource as stored and as printed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "S: Serialize", deserialize = "S: DeserializeOwned"), rename_all = "camelCase")]
pub struct Resource<S> {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: S,
    /// Anything else at the top level, e.g. `status`.
    #[serde(flatten)]
    pub extra: Extra,
}

impl<S: Spec> Resource<S> {
    /// A resource of this kind with the given metadata.
    pub fn new(metadata: ObjectMeta, spec: S) -> Self {
        Self {
            api_version: S::KIND.written().0.into(),
            kind: S::KIND.written().1.into(),
            metadata,
            spec,
            extra: Extra::new(),
        }
    }

    /// The same as [`Spec::extras`] from the top of the resource, with metadata.
    pub fn extras(&self) -> Vec<(String, &Extra)> {
        let inside = self.spec.extras().into_iter().map(|(at, extra)| match at.as_str() {
            "" => ("spec".to_owned(), extra),
            at => (format!("spec.{at}"), extra),
        });
        [(String::new(), &self.extra), ("metadata".to_owned(), &self.metadata.extra)]
            .into_iter()
            .chain(inside)
            .filter(|(_, extra)| !extra.is_empty())
            .collect()
    }

    /// The key under which the stores hold this resource.
    pub fn key(&self) -> Key {
        Key::new(S::KIND, self.metadata.namespace.as_deref(), &self.metadata.name)
    }
}
