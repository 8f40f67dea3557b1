//! Calico's kinds and their CRDs (Calico `lib/backend/k8s/resources`). In `crd.projectcalico.org/v1` the metadata of a
//! resource is JSON in the annotation `projectcalico.org/metadata`, UIDs are changed bit by bit, affinities write
//! `deleted` as text, and policies of the default tier may carry the prefix `default.` (Calico up to 3.31). In
//! `projectcalico.org/v3` objects are the resources.

use brindle_config_core::{Key, Kind, names, policy_defaults};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::{
    kinds::{Api, Place},
    object::{Mapped, SERVERS_OWN, member, revision, text, without_nulls},
};

const METADATA: &str = "projectcalico.org/metadata";
/// Labels and annotations with one of these stay on the object, beside their copy in the annotation.
const STAYS: [&str; 2] = ["projectcalico.org/", "operator.tigera.io/"];
/// Before the name of a policy of the default tier, up to Calico 3.31.
const LEGACY: &str = "default.";
const V1: &str = "crd.projectcalico.org/v1";
const V3: &str = brindle_config_core::meta::API_VERSION;

/// Kinds whose objects may have a name with [`LEGACY`].
pub(super) const fn is_policy(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::NetworkPolicy
            | Kind::GlobalNetworkPolicy
            | Kind::StagedNetworkPolicy
            | Kind::StagedGlobalNetworkPolicy
    )
}

/// The names an object of this resource can have, the one of today first.
pub(super) fn names_of(key: &Key, api: Api) -> Vec<String> {
    match key.kind {
        Kind::IpamHandle => vec![names::handle_name(&key.name)],
        kind if api == Api::V1 && is_policy(kind) && !key.name.starts_with(LEGACY) => {
            vec![key.name.clone(), format!("{LEGACY}{}", key.name)]
        }
        _ => vec![key.name.clone()],
    }
}

/// A UID of one API group as it is in the other: each byte turned round, but for those that hold version and variant
/// (RFC 9562). Text that is no UID comes back as it is. Applied twice it does nothing.
fn turned(uid: &str) -> String {
    let hex: String = uid.chars().filter(|c| *c != '-').collect();
    let shape =
        uid.len() == 36 && uid.char_indices().all(|(i, c)| (c == '-') == matches!(i, 8 | 13 | 18 | 23));
    let Some(bits) = u128::from_str_radix(&hex, 16).ok().filter(|_| shape && hex.len() == 32) else {
        return uid.to_owned();
    };
    let mut bytes = bits.to_be_bytes();
    for (i, b) in bytes.iter_mut().enumerate() {
        if !matches!(i, 6 | 8) {
            *b = b.reverse_bits();
        }
    }
    let mut out = String::with_capacity(36);
    for (i, b) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        out.push_str(&format!("{b:02x}"));
    }
    out
}

/// Owners as the other API group names them.
fn owners(list: &mut Value, from: &str, to: &str) {
    for owner in list.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        if text(owner, "apiVersion") == from {
            let uid = turned(text(owner, "uid"));
            owner.insert("apiVersion".into(), json!(to));
            owner.insert("uid".into(), json!(uid));
        }
    }
}

/// Makes a resource of an object.
pub(super) fn read(place: &Place, api: Api, object: Value) -> Result<Mapped, String> {
    let Value::Object(mut object) = object else { return Err("expected an object".into()) };
    let mut meta = member(&mut object, "metadata");
    let at = revision(text(&meta, "resourceVersion"))?;
    for own in SERVERS_OWN {
        meta.remove(own);
    }
    let spec = object.entry("spec").or_insert_with(|| json!({}));
    if spec.is_null() {
        *spec = json!({});
    }
    let Some(fields) = spec.as_object_mut() else { return Err("spec is no object".into()) };
    if api == Api::V1 {
        meta = meta_of_v1(place.kind, meta, text(fields, "tier"));
        if place.kind == Kind::BlockAffinity {
            let deleted = fields.get("deleted").is_some_and(|d| d == &json!("true") || d == &json!(true));
            fields.insert("deleted".into(), json!(deleted));
        }
    }
    let key = Key::new(place.kind, Some(text(&meta, "namespace")), text(&meta, "name"));
    let (api_version, kind) = place.kind.written();
    object.insert("apiVersion".into(), json!(api_version));
    object.insert("kind".into(), json!(kind));
    object.insert("metadata".into(), Value::Object(meta));
    Ok(Mapped::put(key, at, Value::Object(object)))
}

/// The metadata of the resource behind an object of `crd.projectcalico.org/v1`.
fn meta_of_v1(kind: Kind, mut object: Map<String, Value>, tier: &str) -> Map<String, Value> {
    let mut annotations = member(&mut object, "annotations");
    let kept = annotations.remove(METADATA);
    // An object that somebody wrote without the annotation is read as it is.
    let mut meta = match kept.as_ref().and_then(Value::as_str).map(serde_json::from_str) {
        Some(Ok(Value::Object(meta))) => meta,
        _ => Map::new(),
    };
    let mut name = text(&object, "name").to_owned();
    if is_policy(kind)
        && let Some(short) = name.strip_prefix(LEGACY)
    {
        let recorded = text(&meta, "name");
        let by_tier = recorded.is_empty() && matches!(tier, "" | "default");
        if recorded == short || by_tier {
            name = short.to_owned();
        }
    }
    meta.insert("name".into(), json!(name));
    for (field, mut on_object) in [("labels", member(&mut object, "labels")), ("annotations", annotations)] {
        on_object.extend(member(&mut meta, field));
        if !on_object.is_empty() {
            meta.insert(field.into(), Value::Object(on_object));
        }
    }
    for field in ["finalizers", "ownerReferences"] {
        if let (false, Some(mut list)) = (meta.contains_key(field), object.remove(field)) {
            owners(&mut list, V1, V3);
            meta.insert(field.into(), list);
        }
    }
    let uid = turned(text(&object, "uid"));
    for field in ["namespace", "creationTimestamp", "deletionTimestamp"] {
        match object.remove(field) {
            Some(v) => meta.insert(field.into(), v),
            None => meta.remove(field),
        };
    }
    if !uid.is_empty() {
        meta.insert("uid".into(), json!(uid));
    }
    for own in SERVERS_OWN {
        meta.remove(own);
    }
    meta
}

/// Makes the object of a resource. `name` is the object's; `at` the revision that must be the last.
pub(super) fn write(place: &Place, api: Api, key: &Key, name: &str, value: &Value, at: Option<u64>) -> Value {
    let mut object = match value {
        Value::Object(o) => o.clone(),
        _ => Map::new(),
    };
    let mut meta = member(&mut object, "metadata");
    for own in SERVERS_OWN {
        meta.remove(own);
    }
    meta.remove("deletionTimestamp");
    meta.remove("deletionGracePeriodSeconds");
    let mut spec = without_nulls(object.remove("spec").unwrap_or_else(|| json!({})));
    complete(place.kind, &mut spec, &mut meta);
    let mut meta = match api {
        Api::V3 => meta,
        Api::V1 => {
            if let (Kind::BlockAffinity, Some(fields)) = (place.kind, spec.as_object_mut()) {
                let deleted = fields.get("deleted").and_then(Value::as_bool).unwrap_or(false);
                fields.insert("deleted".into(), json!(deleted.to_string()));
            }
            meta_to_v1(key, meta)
        }
    };
    meta.insert("name".into(), json!(name));
    if place.namespaced() {
        meta.insert("namespace".into(), json!(key.namespace));
    }
    if let Some(at) = at {
        meta.insert("resourceVersion".into(), json!(at.to_string()));
    }
    let kind = match (api, place.kind) {
        (Api::V1, Kind::IpamConfiguration) => "IPAMConfig",
        (_, kind) => kind.as_str(),
    };
    object.insert("apiVersion".into(), json!(place.api_version()));
    object.insert("kind".into(), json!(kind));
    object.insert("metadata".into(), Value::Object(meta));
    object.insert("spec".into(), spec);
    Value::Object(object)
}

/// Adds what the schemas require and Calico looks for.
fn complete(kind: Kind, spec: &mut Value, meta: &mut Map<String, Value>) {
    let Some(fields) = spec.as_object_mut() else { return };
    match kind {
        Kind::IpamBlock => {
            for list in ["allocations", "attributes", "unallocated"] {
                fields.entry(list).or_insert_with(|| json!([]));
            }
            fields.entry("strictAffinity").or_insert(json!(false));
        }
        Kind::IpamHandle => {
            fields.entry("block").or_insert_with(|| json!({}));
        }
        Kind::BlockAffinity => {
            // Newer Calico finds affinities by these labels alone.
            let affinity_type = match text(fields, "type") {
                "" => "host",
                other => other,
            };
            if let Ok(cidr) = text(fields, "cidr").parse::<IpNet>() {
                let mut labels = member(meta, "labels");
                for (k, v) in names::affinity_labels(text(fields, "node"), affinity_type, &cidr) {
                    labels.insert(k, json!(v));
                }
                meta.insert("labels".into(), Value::Object(labels));
            }
        }
        kind => policy_defaults::complete(kind, fields, meta),
    }
}

/// The metadata of an object of `crd.projectcalico.org/v1`: the resource's in an annotation, and what stays outside.
fn meta_to_v1(key: &Key, mut meta: Map<String, Value>) -> Map<String, Value> {
    let mut object = Map::new();
    let stays = |k: &str| k != METADATA && STAYS.iter().any(|s| k.contains(s));
    let outside = |from: Option<&Value>| -> Map<String, Value> {
        let all = from.and_then(Value::as_object).into_iter().flatten();
        all.filter(|(k, _)| stays(k)).map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    let labels = outside(meta.get("labels"));
    let mut annotations = outside(meta.get("annotations"));
    if let Some(Value::Object(a)) = meta.get_mut("annotations") {
        a.remove(METADATA);
    }
    for field in ["finalizers", "ownerReferences"] {
        if let Some(list) = meta.get(field) {
            let mut list = list.clone();
            owners(&mut list, V3, V1);
            object.insert(field.into(), list);
        }
    }
    for field in ["namespace", "uid"] {
        meta.remove(field);
    }
    if is_policy(key.kind) {
        meta.insert("name".into(), json!(key.name));
    } else {
        meta.remove("name");
    }
    meta.entry("creationTimestamp").or_insert(Value::Null);
    annotations.insert(METADATA.into(), json!(Value::Object(meta).to_string()));
    object.insert("annotations".into(), Value::Object(annotations));
    if !labels.is_empty() {
        object.insert("labels".into(), Value::Object(labels));
    }
    object
}

#[cfg(test)]
mod tests;
