//! What an API server's refusals mean for a caller of the store, each in one line that says what to do.

use brindle_config_core::{Key, store::StoreError};

use super::{
    client::Failure,
    kinds::{Place, Shape},
    object::Status,
};

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Delete,
    /// Of `pods/status` or `nodes/status`.
    PatchStatus,
    /// Of the status of one of Calico's kinds.
    UpdateStatus,
}

impl Verb {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update | Self::UpdateStatus => "update",
            Self::Delete => "delete",
            Self::PatchStatus => "patch",
        }
    }

    /// The rule of RBAC that allows it, ready to paste.
    fn rule(self, place: &Place) -> String {
        let verbs = match self {
            Self::Get => r#""get""#,
            Self::List | Self::Watch => r#""get", "list", "watch""#,
            Self::Create => r#""get", "create""#,
            Self::Update => r#""get", "update""#,
            Self::Delete => r#""get", "delete""#,
            Self::PatchStatus => r#""patch""#,
            Self::UpdateStatus => r#""update""#,
        };
        let part = if matches!(self, Self::PatchStatus | Self::UpdateStatus) { "/status" } else { "" };
        format!(
            r#"{{apiGroups: ["{}"], resources: ["{}{part}"], verbs: [{verbs}]}}"#,
            place.group, place.plural
        )
    }
}

/// Whether a refusal says that the whole collection is unknown to the server: it names no object.
pub(super) fn unknown_collection(status: &Status) -> bool {
    status.code == 404 && status.details.name.is_empty()
}

/// Whether the server has forgotten a revision.
pub(super) fn gone(status: &Status) -> bool {
    status.code == 410 || matches!(status.reason.as_str(), "Expired" | "Gone")
}

/// A failed call as the error of the store. `server` is its name in messages; `key` what the call was about, if one
/// resource.
pub(super) fn explain(
    server: &str,
    verb: Verb,
    place: &Place,
    key: Option<&Key>,
    failure: Failure,
) -> StoreError {
    let status = match failure {
        Failure::Transport(e) => return e,
        Failure::Api(status) => status,
    };
    let resource = place.resource();
    let said = one_line(&status.message);
    let broken = |text: String| StoreError::Broken(format!("{server}: {text}"));
    let invalid = |reason: String| match key {
        Some(key) => StoreError::Refused { key: key.clone(), reason },
        None => broken(format!("cannot {} {resource}: {reason}", verb.as_str())),
    };
    match (status.code, key) {
        (401, _) => broken(
            "401 Unauthorized: the token or certificate is wrong or has expired; renew the kubeconfig, or restart the pod"
                .into(),
        ),
        (403, _) => match denied(&said) {
            Some(user) => broken(format!(
                "no right to {} {resource} for user {user:?} ({said}); add to its ClusterRole: {}",
                verb.as_str(),
                verb.rule(place)
            )),
            None if said.is_empty() => invalid("refused by the cluster, which does not say why (403)".into()),
            None => invalid(format!("refused by the cluster: {said}")),
        },
        (404, _) if unknown_collection(&status) => {
            broken(format!("the cluster has no {resource}; {}", place.remedy()))
        }
        (404, Some(key)) if verb != Verb::Create => StoreError::NotFound(key.clone()),
        // The namespace of a new object.
        (404, _) => invalid(format!("{said}; create it first")),
        (409, Some(key)) if status.reason == "AlreadyExists" => StoreError::Exists(key.clone()),
        (409, Some(key)) => StoreError::Conflict(key.clone()),
        (410, _) => StoreError::Unavailable(format!("{server}: {resource}: {said}")),
        (413, _) => invalid(too_large(&said)),
        (500 | 400, _) if said.contains("too large") || said.contains("larger than max") => {
            invalid(too_large(&said))
        }
        (422, _) => invalid(if said.is_empty() { "the API server refuses it".into() } else { mistakes(&said) }),
        (429 | 500..=599, _) => {
            StoreError::Unavailable(format!("{server}: {} {resource}: {} {said}", verb.as_str(), status.code))
        }
        (code @ (405 | 415), _) => {
            let hint = match place.shape {
                Shape::Calico(_) => "is something else serving this API?",
                _ => "the API server is older than Brindle needs (1.21)",
            };
            broken(format!("{code} for {} of {resource}: {said}; {hint}", verb.as_str()))
        }
        (_, _) => invalid(format!("{} {said}", status.code)),
    }
}

/// What is wrong with an object, without the server's note that it did not look further.
fn mistakes(said: &str) -> String {
    let note = ", <nil>: Invalid value: null: some validation rules were not checked";
    let Some((text, _)) = said.split_once(note) else { return said.to_owned() };
    match text.split_once(" is invalid: [") {
        // With the note gone it may be one; where it is more, each names its field and none needs the bracket.
        Some((what, list)) => format!("{what} is invalid: {list}"),
        None => text.to_owned(),
    }
}

fn too_large(said: &str) -> String {
    format!("too large for the API server ({said}); split it: an object may have about 1.5 MiB")
}

/// Whom RBAC denied it: its words name user, verb and resource. Admission (webhooks, plugins of the server) has words of
/// its own, which may have a `cannot` as well.
fn denied(said: &str) -> Option<&str> {
    let (user, rest) = said.split_once("User \"")?.1.split_once('"')?;
    let (_verb, rest) = rest.strip_prefix(" cannot ")?.split_once(' ')?;
    rest.starts_with("resource ").then_some(user)
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use brindle_config_core::Kind;
    use serde_json::{Value, json};

    use super::{super::kinds::Api, *};

    fn said(verb: Verb, kind: Kind, name: Option<&str>, status: Value) -> StoreError {
        let place = Place::of(kind, Api::V1).expect("stored");
        let key = name.map(|n| Key::new(kind, Some("ns"), n));
        let status = serde_json::from_value(status).expect("a status");
        explain("kubernetes https://h:6443", verb, &place, key.as_ref(), Failure::Api(status))
    }

    #[test]
    fn what_a_schema_refuses_names_fields_and_no_note() {
        let refused = |text: &str| {
            let status = json!({"code": 422, "reason": "Invalid", "message": text});
            said(Verb::Update, Kind::FelixConfiguration, Some("default"), status).to_string()
        };
        let one = refused(
            "FelixConfiguration.projectcalico.org \"default\" is invalid: [spec.floatingIPs: Unsupported value: \"Maybe\": \
             supported values: \"Enabled\", \"Disabled\", <nil>: Invalid value: null: some validation rules were not checked \
             because the object was invalid; correct the existing errors to complete validation]",
        );
        assert!(one.ends_with(r#"supported values: "Enabled", "Disabled""#) && !one.contains('['), "{one}");
        let plain = refused("X \"y\" is invalid: [spec.a: Required value, spec.b: Required value]");
        assert!(plain.ends_with("[spec.a: Required value, spec.b: Required value]"), "{plain}");
    }

    #[test]
    fn a_missing_right_comes_with_the_rule_that_gives_it() {
        let e = said(
            Verb::List,
            Kind::IpPool,
            None,
            json!({"code": 403, "reason": "Forbidden", "message": "ippools.crd.projectcalico.org is forbidden: User \
                \"system:serviceaccount:kube-system:brindle-node\" cannot list resource \"ippools\" in API group \
                \"crd.projectcalico.org\" at the cluster scope"}),
        );
        insta::assert_snapshot!(e, @r#"datastore failure: kubernetes https://h:6443: no right to list ippools.crd.projectcalico.org for user "system:serviceaccount:kube-system:brindle-node" (ippools.crd.projectcalico.org is forbidden: User "system:serviceaccount:kube-system:brindle-node" cannot list resource "ippools" in API group "crd.projectcalico.org" at the cluster scope); add to its ClusterRole: {apiGroups: ["crd.projectcalico.org"], resources: ["ippools"], verbs: ["get", "list", "watch"]}"#);
        let e = said(
            Verb::PatchStatus,
            Kind::WorkloadEndpoint,
            Some("x"),
            json!({"code": 403, "message": "pods \"p\" is forbidden: User \"u\" cannot patch resource \"pods/status\""}),
        );
        insta::assert_snapshot!(e, @r#"datastore failure: kubernetes https://h:6443: no right to patch pods for user "u" (pods "p" is forbidden: User "u" cannot patch resource "pods/status"); add to its ClusterRole: {apiGroups: [""], resources: ["pods/status"], verbs: ["patch"]}"#);
    }

    /// Words in the forms of admission and of webhooks.
    #[test]
    fn what_admission_refuses_is_no_missing_right() {
        let refused = |verb, name, text: &str| {
            let status = json!({"code": 403, "reason": "Forbidden", "message": text});
            said(verb, Kind::IpPool, name, status)
        };
        for text in [
            "ippools.crd.projectcalico.org \"p\" is forbidden: cannot set blockOwnerDeletion if an ownerReference refers \
             to a resource you can't set finalizers on: , <nil>",
            "ippools.crd.projectcalico.org \"p\" is forbidden: cannot set an ownerRef on a resource you can't delete: , <nil>",
            "admission webhook \"validate.kyverno.svc-fail\" denied the request: pools cannot be larger than /16",
            "admission webhook \"w.example.com\" denied the request: User \"u\" cannot do this on a Friday",
            "ippools.crd.projectcalico.org \"p\" is forbidden: ValidatingAdmissionPolicy 'x' with binding 'y' denied request: \
             cannot be changed",
        ] {
            let e = refused(Verb::Update, Some("p"), text);
            assert!(matches!(&e, StoreError::Refused { .. }), "{e:?}");
            assert!(e.to_string().ends_with(&format!("refused by the cluster: {text}")), "{e}");
        }
        let e = refused(Verb::Create, Some("p"), "");
        assert!(matches!(&e, StoreError::Refused { .. }) && e.to_string().contains("403"), "{e}");
        let e = refused(Verb::List, None, "").to_string();
        assert!(e.contains("cannot list ippools.crd.projectcalico.org") && !e.contains("ClusterRole"), "{e}");
    }

    #[test]
    fn refusals_of_one_object_keep_its_name() {
        let key = |kind, name| Key::new(kind, Some("ns"), name);
        let not_found = json!({"code": 404, "reason": "NotFound", "message": "ippools.crd.projectcalico.org \"p\" not found",
            "details": {"name": "p", "group": "crd.projectcalico.org", "kind": "ippools"}});
        assert_eq!(
            said(Verb::Get, Kind::IpPool, Some("p"), not_found),
            StoreError::NotFound(key(Kind::IpPool, "p"))
        );
        assert_eq!(
            said(Verb::Create, Kind::IpPool, Some("p"), json!({"code": 409, "reason": "AlreadyExists"})),
            StoreError::Exists(key(Kind::IpPool, "p"))
        );
        assert_eq!(
            said(Verb::Update, Kind::IpPool, Some("p"), json!({"code": 409, "reason": "Conflict"})),
            StoreError::Conflict(key(Kind::IpPool, "p"))
        );
        let lines: Vec<String> = [
            (Verb::Update, json!({"code": 422, "reason": "Invalid", "message": "spec.cidr: Invalid value"})),
            (Verb::Update, json!({"code": 413, "message": "Request entity too large: limit is 3145728"})),
            (Verb::Update, json!({"code": 500, "message": "etcdserver: request is too large"})),
            (Verb::Create, json!({"code": 403, "reason": "Forbidden", "message": "unable to create new content in namespace ns because it is being terminated"})),
        ]
        .into_iter()
        .map(|(verb, status)| said(verb, Kind::IpPool, Some("p"), status).to_string())
        .collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        IPPool(p): spec.cidr: Invalid value
        IPPool(p): too large for the API server (Request entity too large: limit is 3145728); split it: an object may have about 1.5 MiB
        IPPool(p): too large for the API server (etcdserver: request is too large); split it: an object may have about 1.5 MiB
        IPPool(p): refused by the cluster: unable to create new content in namespace ns because it is being terminated
        ");
        let e = said(
            Verb::Create,
            Kind::NetworkSet,
            Some("s"),
            json!({"code": 404, "reason": "NotFound", "message": "namespaces \"ns\" not found",
                "details": {"name": "ns", "kind": "namespaces"}}),
        );
        assert_eq!(e.to_string(), "NetworkSet(ns/s): namespaces \"ns\" not found; create it first");
    }

    #[test]
    fn an_unknown_collection_says_what_to_apply() {
        for status in [
            json!({"code": 404, "message": "404 page not found"}),
            json!({"code": 404, "reason": "NotFound", "message": "the server could not find the requested resource", "details": {}}),
        ] {
            for name in [None, Some("p")] {
                let e = said(Verb::Get, Kind::IpPool, name, status.clone()).to_string();
                assert!(
                    e.contains(
                        "no ippools.crd.projectcalico.org; apply Brindle's CRDs: kubectl apply -k deploy/crds"
                    ),
                    "{e}"
                );
            }
        }
    }

    #[test]
    fn what_passes_by_itself_is_unavailable() {
        for code in [429, 500, 503, 504] {
            let e = said(Verb::List, Kind::Node, None, json!({"code": code, "message": "later"}));
            assert!(matches!(e, StoreError::Unavailable(_)), "{e}");
        }
        let e = said(Verb::List, Kind::Node, None, json!({"code": 401, "message": "Unauthorized"}));
        assert!(matches!(e, StoreError::Broken(_)), "{e}");
    }
}
