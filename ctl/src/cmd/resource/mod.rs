//! `get`, `apply`, `create`, `replace`, `delete`, `patch`, `label`, `edit`, `diff`, `validate`: resources in and out of
//! the datastore, with calicoctl's words.

pub(crate) mod args;
mod change;
mod columns;
pub(crate) mod form;
mod get;
mod gotemplate;
mod guard;
mod jsonpath;
mod load;
mod print;
mod select;
mod write;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use anyhow::{Context as _, Result};
use brindle_config_core::store::{Entry, Store};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use self::{
    args::{DeleteArgs, EditArgs, GetArgs, LabelArgs, PatchArgs, StoreArgs, ValidateArgs, WriteArgs},
    form::Form,
};
use crate::{Outcome, args::Format, lab::state::LabDir, out};

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

/// Opens the datastore a command is about. Reading must not make an empty one where there was none; the first
/// resources may come before the first agent.
pub(super) fn open(args: &StoreArgs) -> Result<Arc<dyn Store>> {
    open_with(args, false)
}

fn open_with(args: &StoreArgs, create: bool) -> Result<Arc<dyn Store>> {
    open_url(&url_of(args)?, create)
}

/// The datastore a command is about, by its name.
pub(crate) fn url_of(args: &StoreArgs) -> Result<String> {
    match &args.lab {
        Some(lab) => {
            let dir = LabDir::of(lab)?;
            anyhow::ensure!(dir.exists(), "there is no lab {lab:?}; see `brindlectl lab list`");
            Ok(dir.store_url())
        }
        None => {
            let url = match args.config.clone().or_else(|| default_file(args)) {
                Some(file) => format!("{CALICO}{}", file.display()),
                None if args.datastore == brindle_config::DEFAULT_URL => {
                    let kind = std::env::var("DATASTORE_TYPE").unwrap_or_default();
                    calico_url(&kind)?.unwrap_or(brindle_config::DEFAULT_URL).to_owned()
                }
                None => args.datastore.clone(),
            };
            with_context(url, args.context.as_deref())
        }
    }
}

/// Before the path of a configuration file of calicoctl in the name of a datastore; `?context=NAME` may follow.
pub(crate) const CALICO: &str = "calicoctl:";

/// The file calicoctl reads when nobody says anything.
fn default_file(args: &StoreArgs) -> Option<PathBuf> {
    let path = Path::new(brindle_config::apiconfig::DEFAULT_FILE);
    (args.datastore == brindle_config::DEFAULT_URL && path.exists()).then(|| path.to_owned())
}

fn with_context(url: String, context: Option<&str>) -> Result<String> {
    match context {
        None => Ok(url),
        Some(context) if url.starts_with("kubernetes:") || url.starts_with(CALICO) => {
            Ok(format!("{url}?context={context}"))
        }
        Some(context) => {
            anyhow::bail!("--context {context}: the datastore {url} has none; it is not Kubernetes")
        }
    }
}

/// The datastore calicoctl's `DATASTORE_TYPE` names; where it is, ETCD_ENDPOINTS, KUBECONFIG and their like say.
fn calico_url(kind: &str) -> Result<Option<&'static str>> {
    match kind {
        "" => Ok(None),
        "kubernetes" => Ok(Some("kubernetes:")),
        "etcdv3" => Ok(Some("etcd:")),
        other => anyhow::bail!("DATASTORE_TYPE={other}: expected kubernetes or etcdv3"),
    }
}

/// Opens a datastore; makes an empty one only if `create`.
pub(crate) fn open_url(url: &str, create: bool) -> Result<Arc<dyn Store>> {
    if let Some(file) = url.strip_prefix(CALICO) {
        let (file, context) = match file.rsplit_once("?context=") {
            Some((file, context)) => (file, Some(context)),
            None => (file, None),
        };
        return Ok(brindle_config::apiconfig::open(file.as_ref(), context)?);
    }
    let store: Result<Arc<dyn Store>, _> = match url.strip_prefix("sqlite:") {
        Some(path) if !path.is_empty() && !create => {
            brindle_config::SqliteStore::open_existing(path.as_ref()).map(|s| Arc::new(s) as Arc<dyn Store>)
        }
        _ => brindle_config::open(url),
    };
    store.with_context(|| {
        format!("cannot open the datastore {url}; name another with --datastore or BRINDLE_DATASTORE, or a lab with --lab")
    })
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
                out::say!("Dry run: {counted} {what}resource(s) would be {verb}; nothing was written");
            } else {
                out::say!("Successfully {verb} {counted} {what}resource(s)");
            }
        }
    }
}
