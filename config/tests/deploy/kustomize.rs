//! A renderer of the part of kustomize that deploy/ uses: `resources` (files and folders) and `patches` by path, merged
//! strategically. Anything else is refused, so that the overlays stay within it. Where kubectl is installed, the
//! manifests' test holds its output against this one's.

use std::path::Path;

use serde_json::{Map, Value};

use crate::support::{documents, read};

/// Lists that are merged item by item, and the field that tells items apart (Kubernetes' `patchMergeKey`).
const KEYED: [(&str, &str); 6] = [
    ("containers", "name"),
    ("initContainers", "name"),
    ("volumes", "name"),
    ("env", "name"),
    ("volumeMounts", "mountPath"),
    ("ports", "containerPort"),
];

/// What a folder renders to, in order.
pub(crate) fn render(folder: &str) -> Vec<Value> {
    let path = format!("{folder}/kustomization.yaml");
    let [list] = documents(&path, &read(&path)).try_into().unwrap_or_else(|_| panic!("{path}: one document"));
    let list = list.as_object().unwrap_or_else(|| panic!("{path}: a mapping")).clone();
    let mut objects: Vec<Value> = Vec::new();
    for (key, value) in &list {
        match key.as_str() {
            "apiVersion" => assert_eq!(value, "kustomize.config.k8s.io/v1beta1", "{path}"),
            "kind" => assert_eq!(value, "Kustomization", "{path}"),
            "resources" | "patches" => {}
            other => panic!("{path}: {other} is not understood by this renderer"),
        }
    }
    for resource in items(&list, "resources") {
        let name = resource.as_str().unwrap_or_else(|| panic!("{path}: {resource}"));
        let at = join(folder, name);
        let more = if name.ends_with(".yaml") { documents(&at, &read(&at)) } else { render(&at) };
        for object in more {
            let twin = objects.iter().any(|o| identity(o) == identity(&object));
            assert!(!twin, "{path}: {:?} is there twice", identity(&object));
            objects.push(object);
        }
    }
    for patch in items(&list, "patches") {
        let at = join(folder, patch["path"].as_str().unwrap_or_else(|| panic!("{path}: {patch}")));
        assert_eq!(patch.as_object().map(Map::len), Some(1), "{path}: patches have a path only");
        let [patch] = documents(&at, &read(&at)).try_into().unwrap_or_else(|_| panic!("{at}: one patch"));
        let target = objects.iter_mut().find(|o| identity(o) == identity(&patch));
        merge(target.unwrap_or_else(|| panic!("{at} patches nothing")), &patch, "");
    }
    objects
}

fn items<'a>(list: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Value> {
    list.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn join(folder: &str, name: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').collect();
    for part in Path::new(name).iter().filter_map(|p| p.to_str()) {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

/// apiVersion, kind, namespace, name.
pub(crate) fn identity(object: &Value) -> [String; 4] {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let meta = &object["metadata"];
    [text(&object["apiVersion"]), text(&object["kind"]), text(&meta["namespace"]), text(&meta["name"])]
}

fn merge(into: &mut Value, patch: &Value, field: &str) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (name, value) in patch {
                assert!(!name.starts_with('$'), "{name} is not understood by this renderer");
                merge(into.entry(name).or_insert(Value::Null), value, name);
            }
        }
        (Value::Array(into), Value::Array(patch)) if key_of(field).is_some() => {
            let key = key_of(field).expect("looked at before");
            for item in patch {
                match into.iter_mut().find(|i| i[key] == item[key]) {
                    Some(there) => merge(there, item, ""),
                    None => into.push(item.clone()),
                }
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

fn key_of(field: &str) -> Option<&'static str> {
    KEYED.iter().find(|k| k.0 == field).map(|k| k.1)
}

/// The same object with keyed lists in the order of their keys: their order means nothing.
pub(crate) fn sorted(value: &Value, field: &str) -> Value {
    match value {
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), sorted(v, k))).collect(),
        Value::Array(list) => {
            let mut list: Vec<Value> = list.iter().map(|v| sorted(v, "")).collect();
            if let Some(key) = key_of(field) {
                list.sort_by_key(|v| v[key].to_string());
            }
            list.into()
        }
        other => other.clone(),
    }
}
