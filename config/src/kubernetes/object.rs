//! What all objects of the API have in common, with the fields that are read here and no others: much of a Pod or Node is
//! skipped while it is parsed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use brindle_config_core::{
    Key,
    store::{Entry, Revision},
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{
    kinds::{Place, Shape},
    map_crd, map_node, map_plain, map_pod,
};

/// Go writes `null` for what it leaves out.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    d: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// `metadata`, narrowed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) creation_timestamp: Option<String>,
    pub(super) deletion_timestamp: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Meta {
    pub(super) fn revision(&self) -> Result<Revision, String> {
        revision(&self.resource_version)
    }
}

/// An object of which only its revision matters.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stub {
    pub(super) metadata: Meta,
}

/// One page of a list.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
pub(super) struct Page<T> {
    #[serde(default)]
    pub(super) metadata: PageMeta,
    #[serde(default = "Vec::new", deserialize_with = "null_is_empty")]
    pub(super) items: Vec<T>,
}

fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// `metadata` of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PageMeta {
    pub(super) resource_version: String,
    #[serde(rename = "continue")]
    pub(super) next: String,
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Event<T> {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) object: T,
}

/// `meta/v1 Status`: why a call failed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) details: Details,
    /// When the server asks to come again, as its header says.
    #[serde(skip)]
    pub(super) retry_after: Option<Duration>,
}

/// What a [`Status`] is about.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Details {
    pub(super) name: String,
    pub(super) kind: String,
}

/// An object as a resource.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Mapped {
    Put(Entry),
    /// An object that is no resource now: a pod without an address.
    Nothing {
        key: Key,
        revision: Revision,
    },
}

impl Mapped {
    pub(super) fn put(key: Key, revision: Revision, value: Value) -> Self {
        Self::Put(Entry { key, revision, value: Arc::new(value) })
    }

    pub(super) const fn key(&self) -> &Key {
        match self {
            Self::Put(e) => &e.key,
            Self::Nothing { key, .. } => key,
        }
    }

    pub(super) const fn revision(&self) -> Revision {
        match self {
            Self::Put(e) => e.revision,
            Self::Nothing { revision, .. } => *revision,
        }
    }
}

/// Position of a `resourceVersion`: a decimal number (Kubernetes promises so since 1.35, and etcd has made it one always).
pub(super) fn revision(text: &str) -> Result<Revision, String> {
    text.parse().map(Revision).map_err(|_| format!("metadata.resourceVersion {text:?} is no number"))
}

/// Reads one object.
pub(super) fn read(place: &Place, text: &[u8]) -> Result<Mapped, String> {
    fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
        serde_json::from_slice(text).map_err(|e| e.to_string())
    }
    match place.shape {
        Shape::Calico(api) => map_crd::read(place, api, parse(text)?),
        Shape::Plain => map_plain::read(place, parse(text)?),
        Shape::Node => map_node::read(&parse(text)?),
        Shape::Pod => map_pod::read(&parse(text)?),
    }
}

/// Reads the object of a line of a watch.
pub(super) fn read_event(place: &Place, line: &[u8]) -> Result<Mapped, String> {
    fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
        serde_json::from_slice::<Event<T>>(line).map(|e| e.object).map_err(|e| e.to_string())
    }
    match place.shape {
        Shape::Calico(api) => map_crd::read(place, api, parse(line)?),
        Shape::Plain => map_plain::read(place, parse(line)?),
        Shape::Node => map_node::read(&parse(line)?),
        Shape::Pod => map_pod::read(&parse(line)?),
    }
}

/// The objects of a page, what is wrong with the others, and the page's metadata.
type Read = (Vec<Mapped>, Vec<String>, PageMeta);

/// Reads a page.
pub(super) fn read_page(place: &Place, text: &[u8]) -> Result<Read, String> {
    fn page<T: DeserializeOwned>(
        text: &[u8],
        mut one: impl FnMut(T) -> Result<Mapped, String>,
    ) -> Result<Read, serde_json::Error> {
        let page: Page<T> = serde_json::from_slice(text)?;
        let (mut good, mut bad) = (Vec::with_capacity(page.items.len()), Vec::new());
        for item in page.items {
            match one(item) {
                Ok(mapped) => good.push(mapped),
                Err(why) => bad.push(why),
            }
        }
        Ok((good, bad, page.metadata))
    }
    let typed = match place.shape {
        Shape::Calico(api) => page(text, |v| map_crd::read(place, api, v)),
        Shape::Plain => page(text, |v| map_plain::read(place, v)),
        Shape::Node => page(text, |n| map_node::read(&n)),
        Shape::Pod => page(text, |p| map_pod::read(&p)),
    };
    // One object that is not as it should be must not hide the others of its page.
    typed.or_else(|_| page(text, |v: Value| read(place, v.to_string().as_bytes()))).map_err(|e| e.to_string())
}

/// Members of an object that a server keeps for itself, or that [`Entry`] has elsewhere.
pub(super) const SERVERS_OWN: [&str; 4] = ["resourceVersion", "managedFields", "selfLink", "generation"];

/// The value without members that are `null`: CRD schemas refuse them. Elements of lists stay.
pub(super) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => Value::Object(
            members.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// A member of an object that is an object of its own.
pub(super) fn member(object: &mut Map<String, Value>, name: &str) -> Map<String, Value> {
    match object.remove(name) {
        Some(Value::Object(m)) => m,
        _ => Map::new(),
    }
}

/// A member that is text.
pub(super) fn text<'a>(object: &'a Map<String, Value>, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or("")
}
