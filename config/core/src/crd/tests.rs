//! The definitions against the model: every field the model knows is there and the other way round, and what the model
//! writes is what the schemas accept.

use std::collections::BTreeSet;

use super::*;
use crate::{Kind, fields};

#[test]
fn definitions_and_the_model_know_the_same_fields() {
    let mut met = 0;
    for d in definitions() {
        let Some(kind) = Kind::parse(d.kind) else { continue };
        met += 1;
        let model: BTreeSet<String> = fields::of(kind).map(str::to_owned).collect();
        let schema: BTreeSet<String> = field_paths(d.kind).into_iter().collect();
        let lacking: Vec<_> = model.difference(&schema).collect();
        let extra: Vec<_> = schema.difference(&model).collect();
        assert!(lacking.is_empty() && extra.is_empty(), "{kind}: lacks {lacking:?}, has besides {extra:?}");
        assert_eq!(d.namespaced, kind.namespaced(), "{kind}");
        if kind != Kind::IpamConfiguration {
            assert_eq!(d.plural, kind.plural());
        }
    }
    assert!(met >= 20, "{met} kinds");
}

#[test]
fn names_follow_the_rules_of_the_api_server() {
    for d in definitions() {
        let names = &d.value["spec"]["names"];
        assert_eq!(d.name, format!("{}.{GROUP}", d.plural));
        assert_eq!(d.value["metadata"]["name"], d.name.as_str());
        assert_eq!(names["singular"], d.kind.to_lowercase().as_str());
        assert_eq!(d.plural, d.plural.to_lowercase());
    }
}

/// What Kubernetes demands of a structural schema: a type at every node but int-or-string, nothing beside
/// `additionalProperties`, required fields that exist.
fn structural(path: &str, schema: &Value) {
    if schema["x-kubernetes-int-or-string"] == true {
        assert!(schema["type"].is_null(), "{path}");
        return;
    }
    let type_ = schema["type"].as_str().unwrap_or_else(|| panic!("{path} has no type"));
    if let Some(properties) = schema["properties"].as_object() {
        assert_eq!(type_, "object", "{path}");
        assert!(schema["additionalProperties"].is_null(), "{path}");
        for name in schema["required"].as_array().into_iter().flatten() {
            assert!(properties.contains_key(name.as_str().unwrap()), "{path}: {name}");
        }
        for (name, inner) in properties {
            structural(&format!("{path}.{name}"), inner);
        }
    }
    if type_ == "array" {
        structural(&format!("{path}[]"), &schema["items"]);
    }
    if let Some(inner) = schema.get("additionalProperties") {
        structural(&format!("{path}{{}}"), inner);
    }
}

#[test]
fn schemas_are_structural_and_keep_unknown_fields() {
    for d in definitions() {
        let schema = &d.value["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        structural(d.kind, schema);
        assert_eq!(schema["properties"]["spec"]["x-kubernetes-preserve-unknown-fields"], true, "{}", d.kind);
        assert!(schema["description"].as_str().is_some_and(|t| t.ends_with('.')), "{}", d.kind);
    }
}

#[test]
fn types_are_read_as_written() {
    let pools = definitions().into_iter().find(|d| d.plural == "ippools").unwrap();
    assert!(pools.status && !pools.namespaced);
    let spec = &pools.value["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    assert_eq!(spec["required"], json!(["cidr"]));
    assert_eq!(spec["properties"]["ipipMode"]["enum"], json!(["Never", "Always", "CrossSubnet"]));
    assert_eq!(spec["properties"]["blockSize"]["maximum"], 128);
    assert_eq!(
        spec["properties"]["allowedUses"]["items"]["enum"],
        json!(["Workload", "Tunnel", "LoadBalancer"])
    );
}
