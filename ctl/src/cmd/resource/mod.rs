//! `get`, `apply`, `create`, `replace`, `delete`, `patch`, `label`, `edit`, `diff`, `validate`: resources in and out of
//! the datastore, with calicoctl's words.

mod aftermath;
pub(crate) mod args;
mod change;
mod columns;
pub(crate) mod form;
mod get;
mod gotemplate;
mod guard;
mod jsonpath;
mod load;
mod old_names;
pub(crate) mod place;
mod print;
mod select;
mod write;

use std::sync::{Arc, OnceLock};

use anyhow::Result;
use brindle_config_core::store::{Entry, Store};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use self::{
    args::{DeleteArgs, EditArgs, GetArgs, LabelArgs, PatchArgs, StoreArgs, ValidateArgs, WriteArgs},
    form::Form,
};
use crate::{Outcome, args::Format, out};

/// One of the commands.
#[derive(Debug)]
pub(crate) enum Request {
    Get(GetArgs, Form),
    Write(write::Verb, WriteArgs),
    Validate(ValidateArgs),
    Diff(WriteArgs),
    Delete(DeleteArgs),
    Patch(PatchArgs),
    Label(LabelArgs),
    Edit(EditArgs),
}

pub(crate) use write::Verb;

/// Carries a command out.
pub(crate) fn run(request: Request, format: Format) -> Result<Outcome> {
    match request {
        Request::Get(args, form) => get::get(&args, &form),
        Request::Write(verb, args) => write::write(verb, &args, format),
        Request::Validate(args) => write::validate(&args, format),
        Request::Diff(args) => write::diff(&args, format),
        Request::Delete(args) => write::delete(&args, format),
        Request::Patch(args) => change::patch(&args, format),
        Request::Label(args) => change::label(&args, format),
        Request::Edit(args) => change::edit(&args, format),
    }
}

/// Opens the datastore a command is about, to read it: that must not make an empty one where there was none.
pub(super) fn open(args: &StoreArgs) -> Result<Arc<dyn Store>> {
    place::place(args)?.open(false)
}

/// Opens it to change what it holds. The first resources may come before the first agent: makes an empty one if `create`.
pub(super) fn open_to_change(args: &StoreArgs, create: bool) -> Result<Arc<dyn Store>> {
    let place = place::place(args)?;
    let store = place.open(create)?;
    if let Some(note) = place.unasked() {
        out::note(&note);
    }
    Ok(store)
}

/// Runs store calls to their end. One runtime for the whole command: connections of a store live in the one they were
/// made in.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = match RUNTIME.get() {
        Some(runtime) => runtime,
        None => {
            let made = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            RUNTIME.get_or_init(|| made)
        }
    };
    runtime.block_on(work)
}

/// A stored resource as it is shown: with the revision that `replace` and `apply` compare.
fn shown(entry: &Entry) -> Value {
    into_shown(entry.clone())
}

/// The same without a copy, where nobody else has the entry.
fn into_shown(entry: Entry) -> Value {
    let mut value = Arc::unwrap_or_clone(entry.value);
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert("resourceVersion".into(), Value::String(entry.revision.0.to_string()));
    }
    value
}

/// What became of one resource, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Did {
    Created,
    Configured,
    Unchanged,
    Deleted,
    Skipped,
}

impl Did {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
            Self::Skipped => "skipped",
        }
    }
}

/// Says what was done, in calicoctl's sentence.
fn report(verb: &str, done: &[(brindle_config_core::Key, Did)], dry_run: bool, format: Format) {
    match format {
        Format::Json => {
            let all: Vec<Value> = done
                .iter()
                .map(|(key, did)| {
                    json!({"kind": key.kind.as_str(), "namespace": key.namespace, "name": key.name,
                        "result": did.as_str()})
                })
                .collect();
            out::json(&json!({ "dryRun": dry_run, "resources": all }));
        }
        Format::Table => {
            let counted = done.iter().filter(|(_, did)| *did != Did::Skipped).count();
            let first = done.first().map(|(key, _)| key.kind);
            let one_kind = first.filter(|k| done.iter().all(|(key, _)| key.kind == *k));
            let what = one_kind.map(|k| format!("'{k}' ")).unwrap_or_default();
            if dry_run {
                for (key, did) in done {
                    out::say!("would be {}: {key}", did.as_str());
                }
                out::sentence(&format!(
                    "Dry run: {counted} {what}resource(s) would be {verb}; nothing was written"
                ));
            } else {
                out::say!("Successfully {verb} {counted} {what}resource(s)");
            }
        }
    }
}
