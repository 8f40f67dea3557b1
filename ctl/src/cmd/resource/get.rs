//! `get`: resources as tables, YAML, JSON, names, columns of one's own, templates.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use brindle_config_core::{
    Key, Kind, Selector,
    bgp::BgpConfigurationSpec,
    store::{Entry, Store, StoreError, StoreExt as _, SyncEvent},
};
use serde_json::Value;

use super::{
    args::GetArgs,
    block_on, columns,
    columns::Facts,
    form::Form,
    load, old_names, open,
    print::{self, Shape},
    select::{self, Selection},
};
use crate::{Outcome, out};

/// Members of a resource that mean something only in this cluster.
const CLUSTER_ONLY: [&str; 4] = ["uid", "resourceVersion", "creationTimestamp", "generation"];

/// What `get` was asked for.
struct Wanted<'a> {
    selection: Selection,
    namespace: Option<&'a str>,
    everywhere: bool,
    selector: Option<Selector>,
}

impl Wanted<'_> {
    fn takes(&self, entry: &Entry) -> bool {
        let key = &entry.key;
        let asked = match &self.selection {
            Selection::Kinds(_) => {
                let namespace = self.namespace.unwrap_or("default");
                self.everywhere || !key.kind.namespaced() || key.namespace == namespace
            }
            Selection::Named(keys) => keys.contains(key),
        };
        asked && self.selector.as_ref().is_none_or(|s| s.matches(&labels(&entry.value)))
    }

    fn kinds(&self) -> Vec<Kind> {
        let mut kinds = match &self.selection {
            Selection::Kinds(kinds) => kinds.clone(),
            Selection::Named(keys) => keys.iter().map(|k| k.kind).collect(),
        };
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }
}

/// `brindlectl get`.
pub(crate) fn get(args: &GetArgs, form: &Form) -> Result<Outcome> {
    ensure!(
        !(args.all_namespaces && args.namespace.namespace.is_some()),
        "cannot use both --namespace and --all-namespaces flags at the same time"
    );
    let selector = args.selector.as_deref().map(selector_of).transpose()?;
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
        let selection = match selection {
            Selection::Named(keys) => Selection::Named(old_names::all_stored(&*store, keys).await?),
            kinds => kinds,
        };
        let wanted = Wanted { selection, namespace, everywhere: args.all_namespaces, selector };
        let shape = Shape {
            form,
            everywhere: args.all_namespaces,
            export: args.export,
            facts: facts(&*store, &wanted.kinds(), form).await?,
        };
        if args.watch || args.watch_only {
            return follow(store, &wanted, &shape, args).await;
        }
        let (mut entries, missing) = read(&*store, &wanted).await?;
        sort_tiers(&mut entries);
        // A program takes a list for all that was asked for.
        let for_people = matches!(form, Form::Table | Form::Wide | Form::Name | Form::Columns(_));
        if missing.is_none() || (for_people && !entries.is_empty()) {
            print::all(entries, &wanted.selection, &shape)?;
        }
        missing.map_or(Ok(Outcome::Ok), Err)
    })
}

/// The entries asked for, in key order, and the sentence about named ones that are missing.
async fn read(store: &dyn Store, wanted: &Wanted<'_>) -> Result<(Vec<Entry>, Option<anyhow::Error>)> {
    let mut absent = Vec::new();
    let mut entries = match &wanted.selection {
        Selection::Kinds(kinds) => store.list(kinds).await?.entries,
        Selection::Named(keys) => {
            let mut entries = Vec::new();
            for key in keys {
                match store.get(key).await {
                    Ok(e) => entries.push(e),
                    Err(StoreError::NotFound(key)) => absent.push(missing(store, &key).await.to_string()),
                    Err(e) => return Err(e).with_context(|| format!("cannot read {key}")),
                }
            }
            entries
        }
    };
    entries.retain(|e| wanted.takes(e));
    Ok((entries, (!absent.is_empty()).then(|| anyhow::anyhow!(absent.join("; ")))))
}

/// A selector of Calico, or what kubectl takes for one: `zone=a,tier!=db,!old`.
fn selector_of(text: &str) -> Result<Selector> {
    let trouble = match Selector::parse(text) {
        Ok(selector) => return Ok(selector),
        Err(e) => anyhow::anyhow!("--selector: {e}"),
    };
    let term = |term: &str| {
        let plain = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
        let (key, value, calico) = match (term.split_once("!="), term.split_once('='), term.strip_prefix('!'))
        {
            (Some((key, value)), ..) => (key, value, format!("{key} != {value:?}")),
            (None, Some((key, value)), _) => {
                let value = value.strip_prefix('=').unwrap_or(value);
                (key, value, format!("{key} == {value:?}"))
            }
            (None, None, Some(key)) => (key, "", format!("!has({key})")),
            (None, None, None) => (term, "", format!("has({term})")),
        };
        (!key.is_empty() && plain(key) && plain(value)).then_some(calico)
    };
    let terms: Option<Vec<String>> = text.split(',').map(|t| term(t.trim())).collect();
    terms.and_then(|t| Selector::parse(&t.join(" && ")).ok()).ok_or(trouble)
}

/// What is there, then what becomes of it, until somebody ends it. What was shown is kept, to show it once more when it
/// goes.
async fn follow(
    store: Arc<dyn Store>,
    wanted: &Wanted<'_>,
    shape: &Shape<'_>,
    args: &GetArgs,
) -> Result<Outcome> {
    // Trouble of the datastore is told while it is waited for.
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .log_internal_errors(false)
        .try_init();
    let kinds = wanted.kinds();
    let mut listing = store.list(&kinds).await?;
    if let Selection::Named(keys) = &wanted.selection {
        for key in keys {
            if !listing.entries.iter().any(|e| e.key == *key) {
                return Err(missing(&*store, key).await);
            }
        }
    }
    let mut changes = brindle_config::sync::follow_from(store, kinds, &listing);
    listing.entries.retain(|e| wanted.takes(e));
    sort_tiers(&mut listing.entries);
    let mut stream = print::Stream::new(shape, args.output_watch_events);
    if !args.watch_only {
        for entry in &listing.entries {
            stream.show(print::Event::Added, entry)?;
        }
        stream.flush();
    }
    let mut shown: BTreeMap<Key, Entry> = listing.entries.into_iter().map(|e| (e.key.clone(), e)).collect();
    while let Some(batch) = changes.recv().await {
        for change in batch {
            match change {
                SyncEvent::Upsert(e) if wanted.takes(&e) => {
                    let before = shown.insert(e.key.clone(), e.clone());
                    let event = if before.is_some() { print::Event::Modified } else { print::Event::Added };
                    stream.show(event, &e)?;
                }
                // What no longer has the labels asked for is gone from here.
                SyncEvent::Upsert(Entry { key, .. }) | SyncEvent::Delete(key) => {
                    if let Some(last) = shown.remove(&key) {
                        stream.show(print::Event::Deleted, &last)?;
                    }
                }
                SyncEvent::InSync => {}
            }
        }
        stream.flush();
        if !out::open() {
            break;
        }
    }
    Ok(Outcome::Ok)
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

async fn facts(store: &dyn Store, kinds: &[Kind], form: &Form) -> Result<Facts> {
    let template = match form {
        Form::Go(t) if t.asks_asn() => Some(t),
        _ => None,
    };
    if !kinds.contains(&Kind::Node) && template.is_none() {
        return Ok(Facts::default());
    }
    let asn = match store.get_as::<BgpConfigurationSpec>(None, "default").await {
        Ok(c) => c.resource.spec.as_number.map(|a| a.to_string()),
        Err(_) => None,
    };
    let asn = asn.unwrap_or_else(|| "64512".into());
    if let Some(template) = template {
        template.knows_asn(&asn);
    }
    Ok(Facts { asn })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_those_of_calico_and_of_kubectl() {
        let labels: BTreeMap<String, String> =
            [("zone", "a"), ("example.org/tier", "web")].map(|(k, v)| (k.into(), v.into())).into();
        for (text, takes) in [
            (r#"zone == "a""#, true),
            ("zone=a", true),
            ("zone==a", true),
            ("zone=b", false),
            ("zone!=a", false),
            ("zone", true),
            ("!zone", false),
            ("zone=a,example.org/tier=web", true),
            ("zone=a,!example.org/tier", false),
            ("all()", true),
        ] {
            assert_eq!(selector_of(text).unwrap().matches(&labels), takes, "{text}");
        }
        for text in ["zone =", "a b", "=x", "zone=a&&", "x == y"] {
            let e = selector_of(text).expect_err(text).to_string();
            assert!(e.starts_with("--selector: column") && e.matches(text).count() == 1, "{text}: {e}");
        }
    }
}
