//! Profiles of namespaces and service accounts: how their labels reach the endpoints of pods, and what allows traffic
//! that no policy decides about.

use std::collections::BTreeMap;

use super::{PREFIX_NAMESPACE, PREFIX_SERVICE_ACCOUNT};
use crate::policy::{ProfileSpec, Rule};

/// A profile that always exists and allows everything.
pub const DEFAULT_ALLOW: &str = "projectcalico-default-allow";

/// Label with the name, behind the prefix.
const LABEL_NAME: &str = "projectcalico.org/name";

/// The API server puts it on every namespace.
const LABEL_METADATA_NAME: &str = "kubernetes.io/metadata.name";

/// `kns.NAMESPACE`.
pub fn namespace_profile_name(namespace: &str) -> String {
    format!("kns.{namespace}")
}

/// `ksa.NAMESPACE.ACCOUNT`.
pub fn service_account_profile_name(namespace: &str, account: &str) -> String {
    format!("ksa.{namespace}.{account}")
}

fn labels(prefix: &str, name: &str, own: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    own.iter()
        .map(|(k, v)| (format!("{prefix}{k}"), v.clone()))
        .chain([(format!("{prefix}{LABEL_NAME}"), name.to_owned())])
        .collect()
}

fn allow() -> Vec<Rule> {
    vec![Rule { action: "Allow".into(), ..Rule::default() }]
}

/// The profile of a namespace: its labels, and everything allowed both ways. The label that Kubernetes gives every
/// namespace is there even when `own` lacks it, so that a namespace without a resource has a profile too.
pub fn namespace_profile(name: &str, own: &BTreeMap<String, String>) -> ProfileSpec {
    let mut applied = labels(PREFIX_NAMESPACE, name, own);
    let always = format!("{PREFIX_NAMESPACE}{LABEL_METADATA_NAME}");
    applied.entry(always).or_insert_with(|| name.to_owned());
    ProfileSpec { ingress: allow(), egress: allow(), labels_to_apply: applied, ..ProfileSpec::default() }
}

/// The profile of a service account: labels only.
pub fn service_account_profile(name: &str, own: &BTreeMap<String, String>) -> ProfileSpec {
    ProfileSpec { labels_to_apply: labels(PREFIX_SERVICE_ACCOUNT, name, own), ..ProfileSpec::default() }
}
