//! What Calico's client fills in whenever it writes a policy. Its agents count on it: for them a policy without `types`
//! is one of both directions, whatever rules it has.

use serde_json::{Map, Value, json};

use crate::{Kind, policy::DEFAULT_TIER, policy_names};

/// The label by which policies of a tier are found; those of the default tier need none.
const LABEL_TIER: &str = "projectcalico.org/tier";

/// Completes spec and metadata of a policy; of other kinds nothing.
pub fn complete(kind: Kind, spec: &mut Map<String, Value>, meta: &mut Map<String, Value>) {
    if !policy_names::KINDS.contains(&kind) {
        return;
    }
    let many = |list: &str| spec.get(list).and_then(Value::as_array).is_some_and(|l| !l.is_empty());
    // What is staged to be deleted has no directions.
    if !many("types") && spec.get("stagedAction").is_none_or(|a| a != "Delete") {
        let types = match (many("ingress"), many("egress")) {
            (_, false) => json!(["Ingress"]),
            (false, true) => json!(["Egress"]),
            (true, true) => json!(["Ingress", "Egress"]),
        };
        spec.insert("types".into(), types);
    }
    let tier = spec.get("tier").and_then(Value::as_str).filter(|t| !t.is_empty()).unwrap_or(DEFAULT_TIER);
    let labels = meta.get_mut("labels").and_then(Value::as_object_mut);
    match labels {
        // It was in another tier before.
        Some(labels) if tier == DEFAULT_TIER => {
            if labels.get(LABEL_TIER).is_some_and(|l| l != DEFAULT_TIER) {
                labels.remove(LABEL_TIER);
            }
            if labels.is_empty() {
                meta.remove("labels");
            }
        }
        None if tier == DEFAULT_TIER => {}
        Some(labels) => drop(labels.insert(LABEL_TIER.into(), json!(tier))),
        None => drop(meta.insert("labels".into(), json!({LABEL_TIER: tier}))),
    }
}

/// The same for a whole resource.
pub fn complete_value(kind: Kind, value: &mut Value) {
    let Some(members) = value.as_object_mut() else { return };
    let mut take = |member: &str| match members.remove(member) {
        Some(Value::Object(found)) => found,
        _ => Map::new(),
    };
    let (mut spec, mut meta) = (take("spec"), take("metadata"));
    complete(kind, &mut spec, &mut meta);
    members.insert("spec".into(), Value::Object(spec));
    members.insert("metadata".into(), Value::Object(meta));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(kind: Kind, spec: Value, labels: Value) -> (Value, Value) {
        let mut value =
            json!({"kind": kind.as_str(), "metadata": {"name": "p", "labels": labels}, "spec": spec});
        complete_value(kind, &mut value);
        let part = |at: &str| value.pointer(at).cloned().unwrap_or_default();
        (part("/spec/types"), part("/metadata/labels"))
    }

    #[test]
    fn directions_follow_from_the_rules_as_agents_read_them() {
        let rule = json!([{"action": "Allow"}]);
        for (spec, types) in [
            (json!({}), json!(["Ingress"])),
            (json!({"types": []}), json!(["Ingress"])),
            (json!({"ingress": rule, "egress": []}), json!(["Ingress"])),
            (json!({"egress": rule}), json!(["Egress"])),
            (json!({"ingress": rule, "egress": rule}), json!(["Ingress", "Egress"])),
            (json!({"ingress": rule, "types": ["Egress"]}), json!(["Egress"])),
            (json!({"stagedAction": "Delete"}), Value::Null),
            (json!({"stagedAction": "Set"}), json!(["Ingress"])),
        ] {
            for kind in policy_names::KINDS {
                assert_eq!(completed(kind, spec.clone(), json!({})).0, types, "{kind} {spec}");
            }
            let read: crate::policy::PolicySpec = serde_json::from_value(spec.clone()).unwrap();
            let has = |t: &str| types.as_array().is_none_or(|all| all.iter().any(|x| x == t));
            if types != Value::Null {
                assert_eq!(read.directions(), (has("Ingress"), has("Egress")), "{spec}");
            }
        }
        assert_eq!(completed(Kind::Tier, json!({}), json!({"a": "b"})), (Value::Null, json!({"a": "b"})));
    }

    #[test]
    fn the_label_names_the_tier() {
        let label =
            |tier: Value, labels: Value| completed(Kind::NetworkPolicy, json!({"tier": tier}), labels).1;
        assert_eq!(label(json!("low"), Value::Null), json!({"projectcalico.org/tier": "low"}));
        let was = json!({"a": "b", "projectcalico.org/tier": "high"});
        assert_eq!(label(json!("low"), was.clone()), json!({"a": "b", "projectcalico.org/tier": "low"}));
        for default in [Value::Null, json!(""), json!("default")] {
            assert_eq!(label(default.clone(), was.clone()), json!({"a": "b"}));
            let written = json!({"projectcalico.org/tier": "default"});
            assert_eq!(label(default, written.clone()), written, "newer Calico writes it, too");
        }
    }
}
