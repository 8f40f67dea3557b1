//! The reference of all kinds as Markdown, from the table the definitions are made of and from what the model acts on.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::table::{self, Field, Kind, Table, Type};
use crate::{AnyResource, fields, key, meta::API_VERSION};

/// One page.
#[derive(Clone, Debug)]
pub struct Page {
    /// `ippool.md`.
    pub file: String,
    pub text: String,
}

const HEAD: &str =
    "<!-- Generated from config/core/src/crd/table.txt by `cargo xtask generate`; do not edit. -->\n";

/// A page for each kind, and `README.md` that lists them.
pub fn pages() -> Vec<Page> {
    let table = table::read();
    let mut index = format!(
        "{HEAD}# Reference\n\nCommands: [brindlectl](brindlectl.md). The agent: [brindle-node](brindle-node.md). \
         Resources, `apiVersion: {API_VERSION}`:\n\n| kind | short names | what it is |\n|---|---|---|\n"
    );
    let mut pages = Vec::new();
    for kind in &table.kinds {
        let file = format!("{}.md", kind.name.to_lowercase());
        let known = key::Kind::parse(kind.name);
        let names = known.map(short_names).unwrap_or_default();
        let _ = writeln!(index, "| [{}]({file}) | {names} | {} |", kind.name, kind.about);
        pages.push(Page { text: page(&table, kind, known), file });
    }
    pages.insert(0, Page { file: "README.md".into(), text: index });
    pages
}

fn short_names(kind: key::Kind) -> String {
    let mut names = vec![kind.plural()];
    names.extend(kind.aliases());
    names.join(", ")
}

fn page(table: &Table, kind: &Kind, known: Option<key::Kind>) -> String {
    let scope = if kind.namespaced { "In a namespace" } else { "For the whole cluster" };
    let mut text = format!("{HEAD}# {}\n\n{}\n\n{scope}.", kind.name, kind.about);
    match known {
        Some(k) => {
            let _ = writeln!(text, " On the command line: {}.\n", short_names(k));
        }
        None => {
            text +=
                " This version has its definition, so that Calico's objects stay; it does not read them.\n\n"
        }
    }
    text += "| field of `spec` | type | meaning |\n|---|---|---|\n";
    for field in &kind.fields {
        let acts = known.is_none_or(|k| is_modelled(k, field.name) || fields::acts(k, field.name));
        rows(table, field, "", acts, &mut text);
    }
    text
}

fn rows(table: &Table, field: &Field, above: &str, acts: bool, text: &mut String) {
    let path = format!("{above}{}", field.name);
    let required = if field.required { " (required)" } else { "" };
    let about = match (acts, field.about) {
        (true, about) => about.to_owned(),
        (false, "") => "Kept; no effect in this version.".to_owned(),
        (false, about) => format!("{about} Kept; no effect in this version."),
    };
    let _ =
        writeln!(text, "| `{path}`{required} | {} | {} |", spell(&field.type_), about.replace('|', "\\|"));
    let (inner, step) = match &field.type_ {
        Type::List(inner) => (&**inner, "[]."),
        other => (other, "."),
    };
    if let Type::Object(name) = inner {
        for f in table.object(name) {
            rows(table, f, &format!("{path}{step}"), acts, text);
        }
    }
}

/// A type as a person calls it.
fn spell(type_: &Type) -> String {
    match type_ {
        Type::String => "text".into(),
        Type::Bool => "true, false".into(),
        Type::Number => "number".into(),
        Type::Time => "time".into(),
        Type::IntOrString => "number or text".into(),
        Type::Int(None) => "whole number".into(),
        Type::Int(Some((min, max))) => format!("{min} to {max}"),
        Type::OneOf(values) => values.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(", "),
        Type::List(inner) => format!("list: {}", spell(inner)),
        Type::Map(inner) => format!("map: {}", spell(inner)),
        Type::Nullable(inner) => spell(inner),
        Type::Object(_) => "object".into(),
    }
}

/// Specifications of which at least one every kind can be read from.
fn bases() -> [Value; 5] {
    [
        json!({}),
        json!({"handleID": "h"}),
        json!({"cidr": "10.0.0.0/26"}),
        json!({"cidr": "10.0.0.0/26", "allocations": [], "unallocated": [], "attributes": [], "strictAffinity": false}),
        json!({"cidr": "10.0.0.0/26", "node": "n", "state": "confirmed", "deleted": "false", "handleID": "h", "block": {},
            "strictAffinity": false, "autoAllocateBlocks": true}),
    ]
}

/// Whether the model has this field of a kind's `spec`: one it has not is kept among the others.
fn is_modelled(kind: key::Kind, field: &str) -> bool {
    let read = |spec: &Value| {
        let value = json!({"apiVersion": API_VERSION, "kind": kind.as_str(), "metadata": {"name": "x"}, "spec": spec});
        AnyResource::from_value(kind, &value)
    };
    let Some(mut spec) = bases().into_iter().find(|b| read(b).is_ok()) else { return true };
    // No value fits every field; one that does not fit is an error only where the field is known.
    spec[field] = json!({"\u{0}": []});
    match read(&spec) {
        Ok(resource) => {
            !resource.extras().iter().any(|(at, extra)| at == "spec" && extra.contains_key(field))
        }
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_model_acts_on_is_told_from_what_it_keeps() {
        assert!(is_modelled(key::Kind::IpPool, "ipipMode"));
        assert!(is_modelled(key::Kind::IpamBlock, "allocations"));
        assert!(is_modelled(key::Kind::BgpPeer, "peerIP"));
        assert!(!is_modelled(key::Kind::FelixConfiguration, "bpfEnabled"));
        assert!(!is_modelled(key::Kind::IpPool, "noSuchField"));
    }

    #[test]
    fn every_kind_of_the_table_that_the_model_has_can_be_probed() {
        for kind in &table::read().kinds {
            let Some(known) = key::Kind::parse(kind.name) else { continue };
            assert!(!is_modelled(known, "noSuchField"), "{}: no base fits", kind.name);
        }
    }

    #[test]
    fn pages_have_rows_for_nested_fields() {
        let all = pages();
        assert_eq!(all[0].file, "README.md");
        let page = |file: &str| &all.iter().find(|p| p.file == file).unwrap().text;
        assert!(page("bgpfilter.md").contains("| `exportV4[].cidr` |"), "{}", page("bgpfilter.md"));
        assert!(page("ippool.md").contains("| `cidr` (required) | text |"));
        let felix = page("felixconfiguration.md");
        let row = |field: &str| felix.lines().find(|l| l.starts_with(&format!("| `{field}`"))).expect(field);
        for idle in ["bpfEnabled", "healthTimeoutOverrides[].name", "nftablesFlowTableOffload"] {
            assert!(row(idle).contains("no effect in this version"), "{}", row(idle));
        }
        for acting in
            ["nftablesMode", "failsafeInboundHostPorts", "failsafeOutboundHostPorts[].net", "ipipMTU"]
        {
            assert!(!row(acting).contains("no effect") && !row(acting).ends_with("|  |"), "{}", row(acting));
        }
    }
}
