//! Which kinds the server knows: the table of built-in ones, and kinds made from CustomResourceDefinitions.

use serde_json::{Value, json};

use super::{
    names::Form,
    schema::Schema,
    status::{Answer, Cause, Status},
};

/// A kind and how its objects behave.
#[derive(Debug)]
pub(crate) struct Kind {
    pub group: String,
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub short: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub versions: Vec<Version>,
    pub custom: bool,
    /// PUT of a name that does not exist creates it.
    pub create_on_update: bool,
    /// PUT without resourceVersion is taken.
    pub unconditional: bool,
    /// `metadata.generation` counts changes of the specification.
    pub generation: bool,
    pub form: Form,
}

#[derive(Debug)]
pub(crate) struct Version {
    pub name: String,
    pub served: bool,
    pub storage: bool,
    pub schema: Option<Schema>,
    pub status: bool,
    /// Selectable fields besides name and namespace, without the leading dot.
    pub fields: Vec<String>,
}

impl Kind {
    pub(crate) fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|v| v.name == name && v.served)
    }

    pub(crate) fn group_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    pub(crate) fn storage_version(&self) -> &str {
        self.versions.iter().find(|v| v.storage).map_or("v1", |v| &v.name)
    }

    /// Verbs as discovery lists them.
    pub(crate) fn discovery(&self, version: &Version) -> Vec<Value> {
        let all = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        let mut main = json!({
            "name": self.plural, "singularName": self.singular, "namespaced": self.namespaced,
            "kind": self.kind, "verbs": all,
        });
        if !self.short.is_empty() {
            main["shortNames"] = self.short.clone().into();
        }
        if !self.categories.is_empty() {
            main["categories"] = self.categories.clone().into();
        }
        let mut out = vec![main];
        let sub = |name: &str, kind: &str, verbs: &[&str]| {
            json!({"name": format!("{}/{name}", self.plural), "singularName": "", "namespaced": self.namespaced,
                "kind": kind, "verbs": verbs})
        };
        if version.status {
            out.push(sub("status", &self.kind, &["get", "patch", "update"]));
        }
        if self.group.is_empty() && self.plural == "namespaces" {
            out.push(sub("finalize", "Namespace", &["update"]));
        }
        if self.group.is_empty() && self.plural == "serviceaccounts" {
            let mut t = sub("token", "TokenRequest", &["create"]);
            t["group"] = "authentication.k8s.io".into();
            t["version"] = "v1".into();
            out.push(t);
        }
        out
    }

    /// Refuses selectors on fields that are not selectable.
    pub(crate) fn check_fields<'a>(
        &self,
        version: &Version,
        mut paths: impl Iterator<Item = &'a str>,
    ) -> Answer<()> {
        let bad = paths.find(|p| {
            !matches!(*p, "metadata.name" | "metadata.namespace") && !version.fields.iter().any(|f| f == p)
        });
        match bad {
            None => Ok(()),
            Some(p) if self.custom || !version.fields.is_empty() => {
                Err(Status::bad_request(format!("field label not supported: {p}")))
            }
            Some(p) => Err(Status::bad_request(format!(
                "{p:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
            ))),
        }
    }
}

const NAMESPACED: u8 = 1;
const STATUS: u8 = 2;
const CREATE_ON_UPDATE: u8 = 4;
const CONDITIONAL: u8 = 8;
const GENERATION: u8 = 16;

type Row = (&'static str, &'static str, &'static str, &'static str, &'static [&'static str], u8);

#[rustfmt::skip]
const BUILT_IN: &[Row] = &[
    ("", "v1", "namespaces", "Namespace", &["ns"], STATUS),
    ("", "v1", "nodes", "Node", &["no"], STATUS),
    ("", "v1", "pods", "Pod", &["po"], NAMESPACED | STATUS | GENERATION),
    ("", "v1", "serviceaccounts", "ServiceAccount", &["sa"], NAMESPACED),
    ("", "v1", "services", "Service", &["svc"], NAMESPACED | STATUS | CREATE_ON_UPDATE),
    ("", "v1", "endpoints", "Endpoints", &["ep"], NAMESPACED | CREATE_ON_UPDATE),
    ("", "v1", "configmaps", "ConfigMap", &["cm"], NAMESPACED),
    ("", "v1", "secrets", "Secret", &[], NAMESPACED),
    ("", "v1", "events", "Event", &["ev"], NAMESPACED | CREATE_ON_UPDATE),
    ("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", &[], NAMESPACED | GENERATION),
    ("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", &["netpol"], NAMESPACED | GENERATION),
    ("coordination.k8s.io", "v1", "leases", "Lease", &[], NAMESPACED | CREATE_ON_UPDATE | CONDITIONAL),
    ("apps", "v1", "deployments", "Deployment", &["deploy"], NAMESPACED | STATUS | GENERATION),
    ("apps", "v1", "daemonsets", "DaemonSet", &["ds"], NAMESPACED | STATUS | GENERATION),
    ("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", &["pdb"], NAMESPACED | STATUS | GENERATION | CONDITIONAL),
    ("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", &[], CREATE_ON_UPDATE),
    ("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", &[], CREATE_ON_UPDATE),
    ("rbac.authorization.k8s.io", "v1", "roles", "Role", &[], NAMESPACED | CREATE_ON_UPDATE),
    ("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", &[], NAMESPACED | CREATE_ON_UPDATE),
    ("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", &["pc"], 0),
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", &["crd", "crds"], STATUS | GENERATION | CONDITIONAL),
];

/// Field selectors of the built-in kinds that have more than name and namespace.
fn selectable(kind: &str) -> &'static [&'static str] {
    match kind {
        "Pod" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        "Node" => &["spec.unschedulable"],
        "Namespace" => &["status.phase"],
        "Secret" => &["type"],
        "Service" => &["spec.clusterIP", "spec.type"],
        "Event" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        _ => &[],
    }
}

/// The kinds there are without any definition.
pub(crate) fn built_in() -> Vec<Kind> {
    let own = |s: &[&str]| s.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    BUILT_IN
        .iter()
        .map(|&(group, version, plural, kind, short, flags)| {
            let on = |f: u8| flags & f != 0;
            Kind {
                group: group.into(),
                plural: plural.into(),
                singular: kind.to_lowercase(),
                kind: kind.into(),
                short: own(short),
                categories: if matches!(plural, "pods" | "services" | "deployments" | "daemonsets") {
                    own(&["all"])
                } else {
                    Vec::new()
                },
                namespaced: on(NAMESPACED),
                versions: vec![Version {
                    name: version.into(),
                    served: true,
                    storage: true,
                    schema: None,
                    status: on(STATUS),
                    fields: own(selectable(kind)),
                }],
                custom: false,
                create_on_update: on(CREATE_ON_UPDATE),
                unconditional: !on(CONDITIONAL),
                generation: on(GENERATION),
                form: match (group, kind) {
                    (_, "Namespace") => Form::Label,
                    (_, "Service") => Form::Dns1035,
                    ("rbac.authorization.k8s.io", _) => Form::Segment,
                    _ => Form::Subdomain,
                },
            }
        })
        .collect()
}

fn text(v: &Value) -> String {
    v.as_str().unwrap_or("").to_owned()
}

fn texts(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().map(text).collect()
}

/// Makes a kind of a definition, which is checked: a refusal is the 422 of the real server.
pub(crate) fn from_definition(crd: &Value) -> Answer<Kind> {
    let name = text(&crd["metadata"]["name"]);
    let spec = &crd["spec"];
    let (group, names) = (text(&spec["group"]), &spec["names"]);
    let mut causes = Vec::new();
    for (v, field) in [
        (&spec["group"], "spec.group"),
        (&names["plural"], "spec.names.plural"),
        (&names["kind"], "spec.names.kind"),
        (&spec["scope"], "spec.scope"),
    ] {
        if text(v).is_empty() {
            causes.push(Cause::required(field, ""));
        }
    }
    let plural = text(&names["plural"]);
    if name != format!("{plural}.{group}") {
        causes.push(Cause::invalid(
            "metadata.name",
            &name.as_str().into(),
            r#"must be spec.names.plural+"."+spec.group"#,
        ));
    }
    if !matches!(text(&spec["scope"]).as_str(), "Namespaced" | "Cluster" | "") {
        causes.push(Cause::unsupported(
            "spec.scope",
            &spec["scope"],
            &["Cluster".into(), "Namespaced".into()],
        ));
    }
    let protected = group.ends_with(".k8s.io") || group == "k8s.io" || group.ends_with(".kubernetes.io");
    if protected && crd["metadata"]["annotations"]["api-approved.kubernetes.io"].is_null() {
        causes.push(Cause::required(
            "metadata.annotations[api-approved.kubernetes.io]",
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
        ));
    }
    let mut versions = Vec::new();
    for (i, v) in spec["versions"].as_array().into_iter().flatten().enumerate() {
        let at = format!("spec.versions[{i}].schema");
        let schema = match v["schema"].get("openAPIV3Schema") {
            None => {
                causes.push(Cause::required(format!("{at}.openAPIV3Schema"), "schemas are required"));
                None
            }
            Some(s) => match Schema::compile(s) {
                Ok(s) => Some(s),
                Err(e) => {
                    let (place, what) = e.split_once(": ").unwrap_or((&e, "invalid"));
                    causes.push(Cause {
                        reason: "FieldValueInvalid",
                        message: what.into(),
                        field: format!("{at}.{place}"),
                    });
                    None
                }
            },
        };
        versions.push(Version {
            name: text(&v["name"]),
            served: v["served"].as_bool().unwrap_or(false),
            storage: v["storage"].as_bool().unwrap_or(false),
            schema,
            status: v["subresources"]["status"].is_object(),
            fields: v["selectableFields"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|f| text(&f["jsonPath"]).trim_start_matches('.').to_owned())
                .collect(),
        });
    }
    if versions.iter().filter(|v| v.storage).count() != 1 {
        causes.push(Cause::invalid(
            "spec.versions",
            &spec["versions"],
            "must have exactly one version marked as storage version",
        ));
    }
    if !causes.is_empty() {
        return Err(Status::invalid("apiextensions.k8s.io", "CustomResourceDefinition", &name, &causes));
    }
    let kind = text(&names["kind"]);
    let singular = text(&names["singular"]);
    Ok(Kind {
        singular: if singular.is_empty() { kind.to_lowercase() } else { singular },
        group,
        plural,
        kind,
        short: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        namespaced: text(&spec["scope"]) == "Namespaced",
        versions,
        custom: true,
        create_on_update: false,
        unconditional: false,
        generation: true,
        form: Form::Subdomain,
    })
}
