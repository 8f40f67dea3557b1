//! `get`: resources as tables, YAML, JSON, names, columns of one's own, templates.

use std::collections::BTreeMap;

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

/// Rows shown at a time.
const PIECE: usize = 1000;

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
        let value = |e: &Entry| {
            let mut value = shown(e);
            if args.export {
                export(&mut value);
            }
            value
        };
        match form {
            Form::Json if single => out::say!("{}", pretty(&entries.first().map(value).unwrap_or_default())),
            Form::Json => stream_list(entries, value, &selection),
            Form::Yaml if single => {
                let value = entries.first().map(value).unwrap_or_default();
                out::put!("{}", brindle_config::yaml::to_yaml(&value));
            }
            Form::Yaml => {
                let values = entries.iter().map(value).collect();
                out::put!("{}", brindle_config::yaml::to_yaml(&list(values, &selection)));
            }
            Form::Name => {
                for piece in entries.chunks(PIECE) {
                    let line = |e: &Entry| format!("{}/{}\n", e.key.kind.as_str().to_lowercase(), e.key.name);
                    out::put!("{}", piece.iter().map(line).collect::<String>());
                }
            }
            Form::Template(t) => {
                let value = if single {
                    entries.first().map(value).unwrap_or_default()
                } else {
                    list(entries.iter().map(value).collect(), &selection)
                };
                out::say!("{}", t.render(&value).trim_end_matches('\n'));
            }
            Form::Table | Form::Wide | Form::Columns(_) => {
                let facts = facts(&*store, &entries).await?;
                tables(entries, &value, form, args.all_namespaces, &facts)?;
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

/// Prints a table for each kind, some rows at a time: columns are as wide as these want them, and what is printed is
/// forgotten.
fn tables(
    mut entries: Vec<Entry>,
    value: &dyn Fn(&Entry) -> Value,
    form: &Form,
    everywhere: bool,
    facts: &Facts,
) -> Result<()> {
    // Those of a kind lie together; sorting keeps the order among them.
    entries.sort_by_key(|e| e.key.kind);
    let mut first = true;
    for of_kind in entries.chunk_by(|a, b| a.key.kind == b.key.kind) {
        let Some(kind) = of_kind.first().map(|e| e.key.kind) else { continue };
        if !first {
            out::put!("\n");
        }
        first = false;
        let columns = Columns::new(kind, form, everywhere)?;
        for (n, piece) in of_kind.chunks(PIECE).enumerate() {
            let mut table = if n == 0 { Table::new(&columns.headings()) } else { Table::without_headings() };
            for e in piece {
                table.row(columns.row(e, &value(e), facts));
            }
            out::put!("{}", table.render());
        }
    }
    Ok(())
}

/// The columns of one kind.
struct Columns<'a> {
    namespaced: bool,
    cells: Vec<Cell<'a>>,
}

enum Cell<'a> {
    Known(&'a columns::Col),
    Path(&'a str, &'a super::jsonpath::Path),
}

impl<'a> Columns<'a> {
    fn new(kind: Kind, form: &'a Form, everywhere: bool) -> Result<Self> {
        let all = columns::of(kind.as_str());
        let cells = match form {
            Form::Columns(columns) => columns
                .iter()
                .map(|c| match c {
                    Column::Path(heading, path) => Ok(Cell::Path(heading, path)),
                    Column::Heading(h) => match all.iter().find(|c| c.heading == h) {
                        Some(col) => Ok(Cell::Known(col)),
                        None => {
                            let known: Vec<_> = all.iter().map(|c| c.heading).collect();
                            bail!(
                                "{kind} has no column {h:?}; it has {}, or write HEADING:.path",
                                known.join(", ")
                            )
                        }
                    },
                })
                .collect::<Result<_>>()?,
            _ => {
                let wide = matches!(form, Form::Wide);
                all.iter().filter(|c| if wide { !c.narrow } else { !c.wide }).map(Cell::Known).collect()
            }
        };
        Ok(Self { namespaced: everywhere && kind.namespaced(), cells })
    }

    fn headings(&self) -> Vec<&str> {
        let namespace = self.namespaced.then_some("NAMESPACE");
        let rest = self.cells.iter().map(|c| match c {
            Cell::Known(col) => col.heading,
            Cell::Path(heading, _) => heading,
        });
        namespace.into_iter().chain(rest).collect()
    }

    fn row(&self, entry: &Entry, value: &Value, facts: &Facts) -> Vec<String> {
        let namespace = self.namespaced.then(|| entry.key.namespace.clone());
        let rest = self.cells.iter().map(|c| match c {
            Cell::Known(col) => (col.cell)(value, facts),
            Cell::Path(_, path) => Column::cell(path, value),
        });
        namespace.into_iter().chain(rest).collect()
    }
}

/// Prints a list document item by item.
fn stream_list(entries: Vec<Entry>, value: impl Fn(&Entry) -> Value, selection: &Selection) {
    let frame = pretty(&list(Vec::new(), selection));
    let Some((head, tail)) = frame.split_once("[]").filter(|_| !entries.is_empty()) else {
        return out::say!("{frame}");
    };
    out::put!("{head}[");
    let mut text = String::new();
    let last = entries.len() - 1;
    for (n, e) in entries.into_iter().enumerate() {
        // No string of JSON holds a line break.
        text += &format!("\n    {}", pretty(&value(&e)).replace('\n', "\n    "));
        if n < last {
            text.push(',');
        }
        if text.len() > 1 << 16 || n == last {
            out::put!("{text}");
            text.clear();
        }
    }
    out::say!("\n  ]{tail}");
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
