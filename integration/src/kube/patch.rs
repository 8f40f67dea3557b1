//! The three classic patches: JSON (RFC 6902), merge (RFC 7386) and strategic merge, whose lists of built-in types
//! merge by key. Server-side apply is in `apply`.

use serde_json::{Map, Value};

use super::status::{Answer, Status};

/// RFC 6902.
pub(crate) fn json(doc: &mut Value, patch: &Value) -> Answer<()> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    if patch.0.len() > 10_000 {
        let n = patch.0.len();
        let text = format!("The allowed maximum operations in a JSON patch is 10000, got {n}");
        return Err(Status::new(413, "RequestEntityTooLarge", text));
    }
    json_patch::patch(doc, &patch).map_err(|e| {
        Status::new(422, "Invalid", "the server rejected our request due to an error in our request")
            .with(serde_json::json!({"causes": [{"message": e.to_string()}]}))
    })
}

/// RFC 7386.
pub(crate) fn merge(doc: &mut Value, patch: &Value) {
    json_patch::merge(doc, patch);
}

/// How a list of a built-in type merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merge {
    Replace,
    /// A list of plain values as a set.
    Set,
    Key(&'static str),
}

/// `patchStrategy` and `patchMergeKey` of the built-in types' lists.
pub(crate) fn list_merge(kind: &str, field: &str) -> Merge {
    match field {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "secrets" => Merge::Key("name"),
        "conditions" | "addresses" if kind != "EndpointSlice" => Merge::Key("type"),
        "volumeMounts" => Merge::Key("mountPath"),
        "volumeDevices" => Merge::Key("devicePath"),
        "hostAliases" | "podIPs" | "hostIPs" => Merge::Key("ip"),
        "ownerReferences" => Merge::Key("uid"),
        "topologySpreadConstraints" => Merge::Key("topologyKey"),
        "ports" if kind == "Service" => Merge::Key("port"),
        "ports" if matches!(kind, "Pod" | "Deployment" | "DaemonSet") => Merge::Key("containerPort"),
        "finalizers" | "podCIDRs" => Merge::Set,
        _ => Merge::Replace,
    }
}

/// Strategic merge of `patch` into an object of a built-in kind.
pub(crate) fn strategic(kind: &str, doc: &mut Value, patch: &Value) -> Answer<()> {
    match (doc, patch) {
        (Value::Object(d), Value::Object(p)) => map(kind, d, p),
        _ => Err(Status::bad_request("the strategic merge patch must be an object")),
    }
}

fn map(kind: &str, doc: &mut Map<String, Value>, patch: &Map<String, Value>) -> Answer<()> {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            *doc =
                patch.iter().filter(|(k, _)| *k != "$patch").map(|(k, v)| (k.clone(), v.clone())).collect();
            return Ok(());
        }
        Some("delete") => {
            doc.clear();
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(Status::bad_request(format!("Unknown patch type found: {other}"))),
    }
    if let Some(keep) = patch.get("$retainKeys").and_then(Value::as_array) {
        doc.retain(|k, _| keep.iter().any(|v| v.as_str() == Some(k)));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(have)), Value::Array(gone)) = (doc.get_mut(field), value) {
                have.retain(|v| !gone.contains(v));
            }
            continue;
        }
        // Directives about order: the merged order is kept, which every reader of these lists must bear anyway.
        if key.starts_with('$') {
            continue;
        }
        match (doc.get_mut(key), value) {
            (_, Value::Null) => {
                doc.remove(key);
            }
            (Some(Value::Object(d)), Value::Object(p)) => map(kind, d, p)?,
            (Some(Value::Array(d)), Value::Array(p)) => list(kind, key, d, p)?,
            (_, Value::Object(p)) => {
                let mut fresh = Map::new();
                map(kind, &mut fresh, p)?;
                doc.insert(key.clone(), Value::Object(fresh));
            }
            (_, Value::Array(p)) => {
                let mut fresh = Vec::new();
                list(kind, key, &mut fresh, p)?;
                doc.insert(key.clone(), Value::Array(fresh));
            }
            (_, other) => {
                doc.insert(key.clone(), other.clone());
            }
        }
    }
    Ok(())
}

fn list(kind: &str, field: &str, doc: &mut Vec<Value>, patch: &[Value]) -> Answer<()> {
    match list_merge(kind, field) {
        Merge::Replace => doc.clone_from(&patch.to_vec()),
        Merge::Set => {
            for v in patch {
                if !doc.contains(v) {
                    doc.push(v.clone());
                }
            }
        }
        Merge::Key(name) => {
            if patch.iter().any(|v| v["$patch"] == "replace") {
                *doc = patch.iter().filter(|v| v.get("$patch").is_none()).cloned().collect();
                return Ok(());
            }
            for v in patch {
                let Some(Value::Object(p)) = Some(v) else {
                    return Err(Status::bad_request(format!("{field}: elements must be objects")));
                };
                let Some(id) = p.get(name) else {
                    return Err(Status::plain_error(format!(
                        "map: {v} does not contain declared merge key: {name}"
                    )));
                };
                let found = doc.iter().position(|d| d.get(name) == Some(id));
                if p.get("$patch").and_then(Value::as_str) == Some("delete") {
                    found.map(|i| doc.remove(i));
                    continue;
                }
                match found.map(|i| &mut doc[i]) {
                    Some(Value::Object(d)) => map(kind, d, p)?,
                    _ => {
                        let mut fresh = Map::new();
                        map(kind, &mut fresh, p)?;
                        doc.push(Value::Object(fresh));
                    }
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_merge_by_key_and_by_directive() {
        let mut node = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "1"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}, "spec": {"taints": [{"key": "a"}]}});
        let patch = json!({"status": {"conditions": [{"type": "NetworkUnavailable", "status": "False"},
            {"type": "Ready", "status": "False"}, {"$patch": "delete", "type": "X"}]}, "spec": {"taints": [{"key": "b"}]}});
        strategic("Node", &mut node, &patch).unwrap();
        assert_eq!(
            node,
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"},
                {"type": "NetworkUnavailable", "status": "False"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}, "spec": {"taints": [{"key": "b"}]}})
        );
    }

    #[test]
    fn maps_merge_null_deletes_and_sets_grow() {
        let mut o = json!({"metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x", "y"]}});
        let patch = json!({"metadata": {"labels": {"a": null, "c": "3"}, "finalizers": ["z"],
            "$deleteFromPrimitiveList/finalizers": ["x"]}});
        strategic("Pod", &mut o, &patch).unwrap();
        assert_eq!(o, json!({"metadata": {"labels": {"b": "2", "c": "3"}, "finalizers": ["y", "z"]}}));
        let e =
            strategic("Pod", &mut json!({}), &json!({"spec": {"containers": [{"image": "x"}]}})).unwrap_err();
        assert!(e.message.contains("does not contain declared merge key: name"), "{}", e.message);
    }

    #[test]
    fn json_patches_fail_with_422_and_decode_with_400() {
        let mut o = json!({"a": 1});
        json(
            &mut o,
            &json!([{"op": "test", "path": "/a", "value": 1}, {"op": "add", "path": "/b", "value": 2}]),
        )
        .unwrap();
        assert_eq!(o, json!({"a": 1, "b": 2}));
        assert_eq!(json(&mut o, &json!([{"op": "test", "path": "/a", "value": 2}])).unwrap_err().code, 422);
        assert_eq!(json(&mut o, &json!([{"op": "frob"}])).unwrap_err().code, 400);
    }
}
