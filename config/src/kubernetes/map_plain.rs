//! Kubernetes' own objects that are resources as they are: Namespace, ServiceAccount, EndpointSlice, the policies of
//! Kubernetes. What servers and appliers keep for themselves is left out; what is written back (a Lease, the status of a
//! Service) is in `write`.

use brindle_config_core::Key;
use serde_json::{Map, Value, json};

use super::{
    kinds::Place,
    object::{Mapped, SERVERS_OWN, member, revision, text},
};

/// What `kubectl apply` keeps on objects: a second copy of them.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Makes a resource of an object.
pub(super) fn read(place: &Place, object: Value) -> Result<Mapped, String> {
    let Value::Object(mut object) = object else { return Err("expected an object".into()) };
    let mut meta = member(&mut object, "metadata");
    let at = revision(text(&meta, "resourceVersion"))?;
    let key = Key::new(place.kind, Some(text(&meta, "namespace")), text(&meta, "name"));
    for own in SERVERS_OWN {
        meta.remove(own);
    }
    if let Some(Value::Object(annotations)) = meta.get_mut("annotations") {
        annotations.remove(LAST_APPLIED);
    }
    let (api_version, kind) = place.kind.written();
    let mut value = Map::new();
    value.insert("apiVersion".into(), json!(api_version));
    value.insert("kind".into(), json!(kind));
    value.insert("metadata".into(), Value::Object(meta));
    // Some have no spec; for a resource that is an empty one.
    value.insert("spec".into(), Value::Object(member(&mut object, "spec")));
    object.remove("apiVersion");
    object.remove("kind");
    value.extend(object);
    Ok(Mapped::put(key, at, Value::Object(value)))
}

#[cfg(test)]
mod tests {
    use brindle_config_core::{AnyResource, Kind};

    use super::{super::kinds::Api, *};

    #[test]
    fn a_namespace_is_a_resource_without_what_others_keep_on_it() {
        let place = Place::of(Kind::Namespace, Api::V1).expect("stored");
        let object = json!({"metadata": {"name": "shop", "uid": "u", "resourceVersion": "7",
            "labels": {"team": "a"}, "managedFields": [{"manager": "kubectl"}],
            "annotations": {LAST_APPLIED: "{}", "note": "x"}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let Mapped::Put(entry) = read(&place, object).expect("reads") else { panic!("a resource") };
        assert_eq!((entry.key, entry.revision.0), (Key::new(Kind::Namespace, None, "shop"), 7));
        assert_eq!(
            entry.value["metadata"],
            json!({"name": "shop", "uid": "u", "labels": {"team": "a"}, "annotations": {"note": "x"}})
        );
        AnyResource::deserialize_kind(Kind::Namespace, &*entry.value).expect("decodes");
    }

    #[test]
    fn what_has_no_spec_decodes_as_well() {
        for (kind, object) in [
            (
                Kind::ServiceAccount,
                json!({"metadata": {"name": "a", "namespace": "n", "resourceVersion": "1"}}),
            ),
            (
                Kind::EndpointSlice,
                json!({"metadata": {"name": "a", "namespace": "n", "resourceVersion": "1"},
                    "addressType": "IPv4", "endpoints": null, "ports": null}),
            ),
        ] {
            let place = Place::of(kind, Api::V1).expect("stored");
            let Mapped::Put(entry) = read(&place, object).expect("reads") else { panic!("a resource") };
            AnyResource::deserialize_kind(kind, &*entry.value).expect("decodes");
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        let place = Place::of(Kind::Namespace, Api::V1).expect("stored");
        for bad in
            [json!(null), json!([]), json!({}), json!({"metadata": {"name": "x", "resourceVersion": "abc"}})]
        {
            read(&place, bad.clone()).expect_err(&bad.to_string());
        }
    }
}
