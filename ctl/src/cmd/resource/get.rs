//! `get`: resources as tables, YAML, JSON, names, columns of one's own, templates.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use brindle_config_core::{
    Key, Kind, Selector,
    bgp::BgpConfigurationSpec,
    store::{Entry, Store, StoreError, StoreExt as _},
};
use serde_json::{Value, json};

use super::{
    args::GetArgs,
    block_on, columns,
    columns::Facts,
    form::{Column, Form},
    load, open,
    select::{self, Selection},
    shown,
};
use crate::{
    Outcome,
    out::{self, Table},
};

/// Members of a resource that mean something only in this cluster.
const CLUSTER_ONLY: [&str; 4] = ["uid", "resourceVersion", "creationTimestamp", "generation"];

/// `brindlectl get`.
pub(crate) fn get(args: &GetArgs, form: &Form) -> Result<Outcome> {
    ensure!(
        !(args.all_namespaces && args.namespace.namespace.is_some()),
        "cannot use both --namespace and --all-namespaces flags at the same time"
    );
    let selector = args
        .selector
        .as_deref()
        .map(|s| Selector::parse(s).map_err(|e| anyhow::anyhow!("--selector {s:?}: {e}")))
        .transpose()?;
    let namespace = args.namespace.namespace.as_deref();
    let selection = if args.files.is_empty() {
        select::selection(&args.what, namespace)?
    } else {
        let how = load::How { recursive: args.recursive, skip_empty: false, namespace, go_on: false };
        Selection::Named(
            load::files(&args.files, how)?.resources.into_iter().map(|l| l.resource.key()).collect(),
        )
    };
    let store = open(&args.store)?;
    block_on(async {
        let entries = read(&*store, &selection, namespace, args.all_namespaces).await?;
        let wanted = |e: &Entry| selector.as_ref().is_none_or(|s| s.matches(&labels(&e.value)));
        let mut entries: Vec<Entry> = entries.into_iter().filter(wanted).collect();
        sort_tiers(&mut entries);
        let single = matches!(&selection, Selection::Named(keys) if keys.len() == 1);
        let values: Vec<Value> = entries
            .iter()
            .map(|e| {
                let mut value = shown(e);
                if args.export {
                    export(&mut value);
                }
                value
            })
            .collect();
        match form {
            Form::Json if single => out::say!("{}", pretty(values.first().unwrap_or(&Value::Null))),
            Form::Json => out::say!("{}", pretty(&list(values, &selection))),
            Form::Yaml if single => {
                out::put!("{}", brindle_config::yaml::to_yaml(values.first().unwrap_or(&Value::Null)));
            }
            Form::Yaml => out::put!("{}", brindle_config::yaml::to_yaml(&list(values, &selection))),
            Form::Name => {
                for e in &entries {
                    out::say!("{}/{}", e.key.kind.as_str().to_lowercase(), e.key.name);
                }
            }
            Form::Template(t) => {
                let value = if single {
                    values.into_iter().next().unwrap_or_default()
                } else {
                    list(values, &selection)
                };
                out::say!("{}", t.render(&value).trim_end_matches('\n'));
            }
            Form::Table | Form::Wide | Form::Columns(_) => {
                let facts = facts(&*store, &entries).await?;
                out::put!("{}", tables(&entries, &values, form, args.all_namespaces, &facts)?);
            }
        }
        Ok(Outcome::Ok)
    })
}

/// The entries asked for, in key order; a named one that is missing is an error.
async fn read(
    store: &dyn Store,
    selection: &Selection,
    namespace: Option<&str>,
    everywhere: bool,
) -> Result<Vec<Entry>> {
    match selection {
        Selection::Kinds(kinds) => {
            let listing = store.list(kinds).await?;
            let namespace = namespace.unwrap_or("default");
            let here = |k: &Key| everywhere || !k.kind.namespaced() || k.namespace == namespace;
            Ok(listing.entries.into_iter().filter(|e| here(&e.key)).collect())
        }
        Selection::Named(keys) => {
            let mut entries = Vec::new();
            for key in keys {
                match store.get(key).await {
                    Ok(e) => entries.push(e),
                    Err(StoreError::NotFound(key)) => return Err(missing(store, &key).await),
                    Err(e) => return Err(e.into()),
                }
            }
            Ok(entries)
        }
    }
}

/// "Does not exist", with the name that was perhaps meant.
pub(super) async fn missing(store: &dyn Store, key: &Key) -> anyhow::Error {
    let names: Vec<Key> = match store.list(&[key.kind]).await {
        Ok(listing) => listing.entries.into_iter().map(|e| e.key).collect(),
        Err(_) => Vec::new(),
    };
    if let Some(elsewhere) = names.iter().find(|k| k.name == key.name && k.namespace != key.namespace) {
        return anyhow::anyhow!(
            "resource does not exist: {key}; there is one in the namespace {}: add -n {}",
            elsewhere.namespace,
            elsewhere.namespace
        );
    }
    match brindle_config_core::suggest::closest(&key.name, names.iter().map(|k| k.name.as_str())) {
        Some(meant) => anyhow::anyhow!("resource does not exist: {key}; did you mean {meant}?"),
        None => anyhow::anyhow!("resource does not exist: {key}"),
    }
}

fn labels(value: &Value) -> BTreeMap<String, String> {
    let of = columns::at(value, "metadata.labels").and_then(Value::as_object);
    let pair = |(k, v): (&String, &Value)| Some((k.clone(), v.as_str()?.to_owned()));
    of.into_iter().flatten().filter_map(pair).collect()
}

/// Tiers are read in the order in which they act.
fn sort_tiers(entries: &mut [Entry]) {
    if entries.iter().all(|e| e.key.kind.as_str() == "Tier") {
        let order =
            |e: &Entry| columns::at(&e.value, "spec.order").and_then(Value::as_f64).unwrap_or(f64::INFINITY);
        entries.sort_by(|a, b| order(a).total_cmp(&order(b)).then_with(|| a.key.cmp(&b.key)));
    }
}

/// Takes away what belongs to this cluster.
pub(super) fn export(value: &mut Value) {
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        for member in CLUSTER_ONLY {
            meta.remove(member);
        }
    }
    if let Some(all) = value.as_object_mut() {
        all.remove("status");
    }
}

fn pretty(value: &Value) -> String {
    // Values read from a store are trees of strings and numbers, which always serialise.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// A list document, which `apply -f` takes again.
fn list(items: Vec<Value>, selection: &Selection) -> Value {
    let kind = match selection {
        Selection::Kinds(kinds) if kinds.len() == 1 => kinds.first().map(|k| format!("{k}List")),
        _ => None,
    };
    let kind = kind.unwrap_or_else(|| "List".to_owned());
    let version =
        if kind == "List" { "v1".to_owned() } else { brindle_config_core::meta::API_VERSION.to_owned() };
    json!({"apiVersion": version, "kind": kind, "items": items})
}

async fn facts(store: &dyn Store, entries: &[Entry]) -> Result<Facts> {
    if !entries.iter().any(|e| e.key.kind == Kind::Node) {
        return Ok(Facts::default());
    }
    let asn = match store.get_as::<BgpConfigurationSpec>(None, "default").await {
        Ok(c) => c.resource.spec.as_number.map(|a| a.to_string()),
        Err(_) => None,
    };
    Ok(Facts { asn: asn.unwrap_or_else(|| "64512".into()) })
}

/// A table for each kind.
fn tables(
    entries: &[Entry],
    values: &[Value],
    form: &Form,
    everywhere: bool,
    facts: &Facts,
) -> Result<String> {
    let kinds: BTreeSet<Kind> = entries.iter().map(|e| e.key.kind).collect();
    let mut texts = Vec::new();
    for kind in &kinds {
        let all = columns::of(kind.as_str());
        let namespaced = everywhere && kind.namespaced();
        let mut headings: Vec<&str> = if namespaced { vec!["NAMESPACE"] } else { Vec::new() };
        let wide = matches!(form, Form::Wide);
        let chosen: Vec<&columns::Col> =
            all.iter().filter(|c| if wide { !c.narrow } else { !c.wide }).collect();
        match form {
            Form::Columns(columns) => headings.extend(columns.iter().map(|c| match c {
                Column::Heading(h) | Column::Path(h, _) => h.as_str(),
            })),
            _ => headings.extend(chosen.iter().map(|c| c.heading)),
        }
        let mut table = Table::new(&headings);
        for (entry, value) in entries.iter().zip(values).filter(|(e, _)| e.key.kind == *kind) {
            let mut row = if namespaced { vec![entry.key.namespace.clone()] } else { Vec::new() };
            match form {
                Form::Columns(columns) => {
                    for c in columns {
                        row.push(match c {
                            Column::Path(_, path) => Column::cell(path, value),
                            Column::Heading(h) => {
                                let Some(col) = all.iter().find(|c| c.heading == h) else {
                                    let known: Vec<_> = all.iter().map(|c| c.heading).collect();
                                    bail!(
                                        "{kind} has no column {h:?}; it has {}, or write HEADING:.path",
                                        known.join(", ")
                                    );
                                };
                                (col.cell)(value, facts)
                            }
                        });
                    }
                }
                _ => row.extend(chosen.iter().map(|c| (c.cell)(value, facts))),
            }
            table.row(row);
        }
        texts.push(table.render());
    }
    Ok(texts.join("\n"))
}

/// The resource as YAML, for `edit` and `diff`.
pub(super) fn yaml(value: &Value) -> String {
    brindle_config::yaml::to_yaml(value)
}

/// One entry by key, or the sentence that it is missing.
pub(super) async fn one(store: &dyn Store, key: &Key) -> Result<Entry> {
    match store.get(key).await {
        Ok(e) => Ok(e),
        Err(StoreError::NotFound(key)) => Err(missing(store, &key).await),
        Err(e) => Err(e).with_context(|| format!("cannot read {key}")),
    }
}
