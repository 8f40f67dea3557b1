//! Values: resources are stored as they are; IPAM records as Calico's older model, without an envelope, and with only
//! what the path does not say already.

use brindle_config_core::{Key, Kind, meta::API_VERSION, names};
use serde_json::{Map, Value, json};

use super::keys::Affinity;

/// Renamed members of IPAMConfiguration, model and resource.
const CONFIG: [(&str, &str); 2] =
    [("strict_affinity", "strictAffinity"), ("auto_allocate_blocks", "autoAllocateBlocks")];

fn envelope(key: &Key, spec: Value, labels: Option<Value>) -> Value {
    let mut metadata = json!({"name": key.name});
    if let (Some(labels), Some(m)) = (labels, metadata.as_object_mut()) {
        m.insert("labels".into(), labels);
    }
    json!({"apiVersion": API_VERSION, "kind": key.kind.as_str(), "metadata": metadata, "spec": spec})
}

/// What is stored, as the resource the rest of the program knows.
pub(super) fn read(key: &Key, affinity: Option<&Affinity>, bytes: &[u8]) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("not JSON: {e}"))?;
    let Value::Object(mut members) = value else { return Err("not an object".into()) };
    Ok(match key.kind {
        Kind::IpamBlock => envelope(key, Value::Object(members), None),
        Kind::IpamHandle => {
            members.entry("handleID").or_insert_with(|| Value::String(key.name.clone()));
            envelope(key, Value::Object(members), None)
        }
        Kind::IpamConfiguration => {
            for (model, resource) in CONFIG {
                if let Some(v) = members.remove(model) {
                    members.insert(resource.into(), v);
                }
            }
            // A false that was left out is still a false.
            members.entry("autoAllocateBlocks").or_insert(Value::Bool(false));
            envelope(key, Value::Object(members), None)
        }
        Kind::BlockAffinity => {
            let a = affinity.ok_or("its path says neither host nor block")?;
            members.insert("node".into(), Value::String(a.host.clone()));
            members.insert("type".into(), Value::String(a.kind.clone()));
            members.insert("cidr".into(), Value::String(a.cidr.to_string()));
            let labels = names::affinity_labels(&a.host, &a.kind, &a.cidr);
            envelope(key, Value::Object(members), Some(json!(labels)))
        }
        _ => Value::Object(members),
    })
}

/// A resource as it is stored.
pub(super) fn write(key: &Key, value: &Value) -> Vec<u8> {
    let mut spec: Map<String, Value> =
        value.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
    let stored = match key.kind {
        Kind::IpamBlock => Value::Object(spec),
        Kind::IpamHandle => {
            // Calico reads the id from the path, which has it in lower case.
            if spec.get("handleID").and_then(Value::as_str) == Some(&key.name) {
                spec.remove("handleID");
            }
            Value::Object(spec)
        }
        Kind::IpamConfiguration => {
            for (model, resource) in CONFIG {
                if let Some(v) = spec.remove(resource) {
                    spec.insert(model.into(), v);
                }
            }
            Value::Object(spec)
        }
        Kind::BlockAffinity => {
            for member in ["node", "type", "cidr"] {
                spec.remove(member);
            }
            Value::Object(spec)
        }
        _ => value.clone(),
    };
    stored.to_string().into_bytes()
}

/// Where an affinity belongs, as its resource says.
pub(super) fn affinity_of(value: &Value) -> Option<Affinity> {
    let spec = value.get("spec")?;
    let text = |m: &str| spec.get(m).and_then(Value::as_str);
    Some(Affinity {
        kind: text("type").filter(|t| !t.is_empty()).unwrap_or("host").to_owned(),
        host: text("node")?.to_owned(),
        cidr: text("cidr")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use brindle_config_core::AnyResource;

    use super::*;

    /// What Calico's own client wrote, in its form.
    #[test]
    fn calicos_records_are_read_and_written_back_as_they_were() {
        let affinity =
            Affinity { kind: "host".into(), host: "n".into(), cidr: "10.0.0.0/30".parse().expect("a block") };
        for (kind, name, text) in [
            (
                Kind::IpamBlock,
                "10-0-0-0-30",
                r#"{"affinity":"host:n","allocations":[0,null,null,null],"attributes":[{"handle_id":"h","secondary":{"node":"n"}}],"cidr":"10.0.0.0/30","deleted":false,"sequenceNumber":3,"sequenceNumberForAllocation":{"0":3},"strictAffinity":false,"unallocated":[1,2,3]}"#,
            ),
            (Kind::IpamHandle, "h", r#"{"block":{"10.0.0.0/30":1},"deleted":false}"#),
            (Kind::BlockAffinity, "n-10-0-0-0-30", r#"{"deleted":false,"state":"confirmed"}"#),
            (
                Kind::IpamConfiguration,
                "default",
                r#"{"auto_allocate_blocks":true,"maxBlocksPerHost":4,"strict_affinity":true}"#,
            ),
        ] {
            let key = Key::new(kind, None, name);
            let value = read(&key, Some(&affinity), text.as_bytes()).expect(name);
            let typed = AnyResource::from_value(kind, &value).expect(name);
            assert_eq!(typed.key(), key);
            assert_eq!(String::from_utf8(write(&key, &typed.to_value())).expect("text"), text);
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let key = Key::new(Kind::IpPool, None, "p");
        for text in ["", "[]", "7", "{"] {
            read(&key, None, text.as_bytes()).expect_err(text);
        }
    }
}
