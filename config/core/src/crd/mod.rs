//! The CustomResourceDefinitions of `crd.projectcalico.org/v1`, made from one table: kinds, fields, types, and what they
//! mean. Calico's names and scopes, so that either product's definitions serve the other's objects.
//!
//! Structural schemas (Kubernetes, "Custom Resources": structural schemas, pruning). Every object keeps the fields it
//! does not list, since the model keeps them too. What the API server does not check (patterns, rules over several
//! fields, defaults) `validate` does.

mod reference;
mod table;

pub use reference::{Page, pages};

use serde_json::{Map, Value, json};

use table::{Field, Kind, Table, Type};

/// API group of the definitions.
pub const GROUP: &str = "crd.projectcalico.org";

/// The version that is served and stored.
pub const VERSION: &str = "v1";

/// One definition.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Of the CRD: `PLURAL.crd.projectcalico.org`.
    pub name: String,
    pub kind: &'static str,
    pub plural: &'static str,
    pub namespaced: bool,
    /// Whether it has the status sub-resource.
    pub status: bool,
    /// The whole object, `apiextensions.k8s.io/v1`.
    pub value: Value,
}

/// All definitions, in the order of the table.
pub fn definitions() -> Vec<Definition> {
    let table = table::read();
    table.kinds.iter().map(|k| definition(&table, k)).collect()
}

/// Paths of the fields of a kind's `spec`, as in [`crate::fields`]: `a.b`, `a[].b`. Empty for an unknown kind.
pub fn field_paths(kind: &str) -> Vec<String> {
    let table = table::read();
    let mut paths = Vec::new();
    if let Some(k) = table.kinds.iter().find(|k| k.name == kind) {
        walk(&table, "", &k.fields, &mut paths);
    }
    paths.sort();
    paths
}

fn walk(table: &Table, prefix: &str, fields: &[Field], paths: &mut Vec<String>) {
    for f in fields {
        let path = format!("{prefix}{}", f.name);
        let (inner, step) = match &f.type_ {
            Type::List(inner) => (&**inner, "[]."),
            other => (other, "."),
        };
        if let Type::Object(name) = inner {
            walk(table, &format!("{path}{step}"), table.object(name), paths);
        }
        paths.push(path);
    }
}

fn definition(table: &Table, kind: &Kind) -> Definition {
    let name = format!("{}.{GROUP}", kind.plural);
    let mut properties = Map::new();
    let mut version = json!({"name": VERSION, "served": true, "storage": true});
    let text = |description: &str| json!({"type": "string", "description": description});
    properties.insert("apiVersion".into(), text("Version of the schema of this object."));
    properties.insert("kind".into(), text("Kind of this object."));
    properties.insert("metadata".into(), json!({"type": "object"}));
    properties.insert("spec".into(), object(table, &kind.fields));
    if let Some(status) = kind.status {
        properties.insert("status".into(), object(table, table.object(status)));
        version["subresources"] = json!({"status": {}});
    }
    version["schema"] = json!({"openAPIV3Schema": {
        "type": "object",
        "description": kind.about,
        "properties": properties,
    }});
    let value = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.name,
                "listKind": format!("{}List", kind.name),
                "plural": kind.plural,
                "singular": kind.name.to_lowercase(),
            },
            "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
            "versions": [version],
        },
    });
    Definition {
        name,
        kind: kind.name,
        plural: kind.plural,
        namespaced: kind.namespaced,
        status: kind.status.is_some(),
        value,
    }
}

fn object(table: &Table, fields: &[Field]) -> Value {
    let mut properties = Map::new();
    for f in fields {
        let mut schema = schema(table, &f.type_);
        if !f.about.is_empty() {
            schema["description"] = f.about.into();
        }
        properties.insert(f.name.into(), schema);
    }
    let required: Vec<&str> = fields.iter().filter(|f| f.required).map(|f| f.name).collect();
    let mut value = json!({
        "type": "object",
        "properties": properties,
        "x-kubernetes-preserve-unknown-fields": true,
    });
    if !required.is_empty() {
        value["required"] = json!(required);
    }
    value
}

fn schema(table: &Table, type_: &Type) -> Value {
    match type_ {
        Type::String => json!({"type": "string"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::Number => json!({"type": "number"}),
        Type::Time => json!({"type": "string", "format": "date-time"}),
        Type::IntOrString => json!({"x-kubernetes-int-or-string": true}),
        Type::Int(None) => json!({"type": "integer", "format": "int64"}),
        Type::Int(Some((min, max))) => {
            json!({"type": "integer", "format": "int64", "minimum": min, "maximum": max})
        }
        Type::OneOf(values) => json!({"type": "string", "enum": values}),
        Type::List(inner) => json!({"type": "array", "items": schema(table, inner)}),
        Type::Map(inner) => json!({"type": "object", "additionalProperties": schema(table, inner)}),
        Type::Nullable(inner) => {
            let mut value = schema(table, inner);
            value["nullable"] = true.into();
            value
        }
        Type::Object(name) => object(table, table.object(name)),
    }
}

#[cfg(test)]
mod tests;
