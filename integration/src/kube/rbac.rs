//! Who calls (bearer tokens), what they may do (RBAC rules, given with the token or read from stored roles and bindings),
//! and the record of calls that tests hold against manifests.

use serde_json::{Value, json};

use super::status::Status;

/// One RBAC rule (rbac.authorization.k8s.io/v1 PolicyRule).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    /// `pods`, `pods/status`, `*`, `*/status`.
    pub resources: Vec<String>,
    /// Empty: all names.
    pub names: Vec<String>,
    pub urls: Vec<String>,
}

fn texts(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Rule {
    /// `Rule::new(&["get", "list"], "", &["pods"])`.
    pub fn new(verbs: &[&str], group: &str, resources: &[&str]) -> Self {
        let own = |s: &[&str]| s.iter().map(|s| (*s).to_owned()).collect();
        Self {
            verbs: own(verbs),
            groups: vec![group.to_owned()],
            resources: own(resources),
            ..Self::default()
        }
    }

    /// The rules of a Role or ClusterRole.
    pub fn of(role: &Value) -> Vec<Self> {
        role["rules"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|r| Self {
                verbs: texts(&r["verbs"]),
                groups: texts(&r["apiGroups"]),
                resources: texts(&r["resources"]),
                names: texts(&r["resourceNames"]),
                urls: texts(&r["nonResourceURLs"]),
            })
            .collect()
    }

    /// Whether this rule grants the call.
    pub fn grants(&self, call: &Call) -> bool {
        let has = |list: &[String], x: &str| list.iter().any(|l| l == "*" || l == x);
        if !has(&self.verbs, &call.verb) {
            return false;
        }
        if let Some(path) = &call.path {
            return self.urls.iter().any(|u| {
                u == "*" || u == path || u.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
            });
        }
        let resource = self.resources.iter().any(|r| {
            r == "*"
                || *r == call.resource
                || r.strip_prefix("*/")
                    .is_some_and(|s| call.resource.split_once('/').is_some_and(|(_, sub)| sub == s))
        });
        has(&self.groups, &call.group)
            && resource
            && (self.names.is_empty() || (!call.name.is_empty() && self.names.contains(&call.name)))
    }
}

/// What a call asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// get, list, watch, create, update, patch, delete, deletecollection; for paths the HTTP method in lower case.
    pub verb: String,
    pub group: String,
    /// With the sub-resource: `pods/status`.
    pub resource: String,
    /// Empty: the whole cluster.
    pub namespace: String,
    pub name: String,
    /// Set when the call is for a path that is no resource (`/version`).
    pub path: Option<String>,
}

impl Call {
    pub(crate) fn forbidden(&self, user: &str) -> Box<Status> {
        if let Some(path) = &self.path {
            let text = format!("forbidden: User {user:?} cannot {} path {path:?}", self.verb);
            return Status::new(403, "Forbidden", text).with(json!({}));
        }
        let scope = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        let plural = self.resource.split('/').next().unwrap_or("");
        let why = format!(
            "User {user:?} cannot {} resource {:?} in API group {:?} {scope}",
            self.verb, self.resource, self.group
        );
        Status::forbidden(&self.group, plural, &self.name, &why)
    }
}

/// What a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
    pub access: Access,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    All,
    Rules(Vec<Rule>),
    /// By the roles and bindings stored in the server.
    Stored,
}

impl Identity {
    pub fn service_account(namespace: &str, name: &str) -> Self {
        Self {
            user: format!("system:serviceaccount:{namespace}:{name}"),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".into(),
            ],
            access: Access::Stored,
        }
    }

    pub(crate) fn anonymous() -> Self {
        Self {
            user: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            access: Access::Rules(Vec::new()),
        }
    }

    /// Whether a binding's subject is this identity.
    pub(crate) fn is(&self, subject: &Value, binding_namespace: &str) -> bool {
        let name = subject["name"].as_str().unwrap_or("");
        match subject["kind"].as_str() {
            Some("User") => name == self.user,
            Some("Group") => self.groups.iter().any(|g| g == name),
            Some("ServiceAccount") => {
                let ns = subject["namespace"].as_str().unwrap_or(binding_namespace);
                self.user == format!("system:serviceaccount:{ns}:{name}")
            }
            _ => false,
        }
    }
}

/// Paths everybody may read who has credentials (system:discovery), and those that need none (system:public-info-viewer).
pub(crate) fn open_path(path: &str, authenticated: bool) -> bool {
    let public = matches!(path, "/healthz" | "/livez" | "/readyz" | "/version" | "/version/");
    public
        || (authenticated
            && (path == "/api"
                || path == "/apis"
                || path.starts_with("/api/")
                || path.starts_with("/apis/")
                || path.starts_with("/openapi")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_grant_by_verb_group_resource_and_name() {
        let call = |verb: &str, resource: &str, name: &str| Call {
            verb: verb.into(),
            resource: resource.into(),
            name: name.into(),
            ..Call::default()
        };
        let rule = Rule::new(&["get", "list"], "", &["pods", "nodes/status"]);
        assert!(rule.grants(&call("get", "pods", "a")));
        assert!(!rule.grants(&call("get", "pods/status", "a")));
        assert!(rule.grants(&call("get", "nodes/status", "a")));
        assert!(!rule.grants(&call("watch", "pods", "")));
        let named = Rule { names: vec!["a".into()], ..rule };
        assert!(named.grants(&call("get", "pods", "a")) && !named.grants(&call("get", "pods", "b")));
        assert!(!named.grants(&call("list", "pods", "")));
    }

    #[test]
    fn refusals_read_like_the_real_ones() {
        let call = Call { verb: "list".into(), resource: "nodes".into(), ..Call::default() };
        assert_eq!(
            call.forbidden("x").message,
            r#"nodes is forbidden: User "x" cannot list resource "nodes" in API group "" at the cluster scope"#
        );
        let call = Call {
            verb: "patch".into(),
            group: "crd.projectcalico.org".into(),
            resource: "ippools/status".into(),
            namespace: "n".into(),
            name: "p".into(),
            path: None,
        };
        assert_eq!(
            call.forbidden("x").message,
            r#"ippools.crd.projectcalico.org "p" is forbidden: User "x" cannot patch resource "ippools/status" in API group "crd.projectcalico.org" in the namespace "n""#
        );
    }
}
