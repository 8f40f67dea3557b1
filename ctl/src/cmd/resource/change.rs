//! `patch`, `label`, `edit`: changes to one resource that exists.

use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _, process::Command};

use anyhow::{Context as _, Result, bail};
use brindle_config::yaml;
use brindle_config_core::{
    AnyResource, Key,
    store::Entry,
    validate::{self, names},
};
use serde_json::Value;

use super::{
    Did,
    args::{EditArgs, LabelArgs, OneArgs, PatchArgs, PatchType},
    block_on, get, old_names, open_to_change, report, select, shown, write,
};
use crate::{Outcome, args::Format, out};

impl OneArgs {
    fn key(&self) -> Result<Key> {
        let namespace = self.namespace.namespace.as_deref();
        let (kind, name) = match (self.kind.split_once('/'), &self.name) {
            (Some((kind, name)), None) => (kind, name),
            (Some((_, name)), Some(more)) => bail!("one resource at a time: {name} or {more}?"),
            (None, Some(name)) => (self.kind.as_str(), name.as_str()),
            (None, None) => {
                select::kind(&self.kind)?;
                bail!("which {}? Write its name after the kind", self.kind)
            }
        };
        select::key(select::kind(kind)?, namespace, name)
    }
}

/// Reads a changed value back into the model; it must still be the same resource and valid.
fn resource(key: &Key, value: &Value) -> Result<AnyResource> {
    let resource = AnyResource::from_value(key.kind, value).map_err(|e| {
        // The reader of files says the same with what would be right.
        let loading = yaml::parse_str("", &value.to_string());
        let told = loading.errors.first().map(|p| format!("{}: {}", p.field, p.message));
        anyhow::anyhow!("{key} would not be valid: {}", told.unwrap_or_else(|| e.to_string()))
    })?;
    if resource.key() != *key {
        bail!("{key} would become {}; kind, namespace and name of a resource cannot change", resource.key());
    }
    validate::resource(&resource).with_context(|| format!("{key} would not be valid"))?;
    Ok(resource)
}

/// `patch`.
pub(crate) fn patch(args: &PatchArgs, format: Format) -> Result<Outcome> {
    let key = args.one.key()?;
    if args.patch.trim().is_empty() {
        bail!("--patch is empty; expected an object such as {{\"spec\": {{..}}}}");
    }
    let change: Value = yaml::read_one("--patch", &args.patch)?;
    let operations: Option<json_patch::Patch> = match args.form {
        PatchType::Json => Some(serde_json::from_value(change.clone()).context(
            "--patch: expected a list of operations: [{\"op\": \"replace\", \"path\": .., \"value\": ..}]",
        )?),
        PatchType::Strategic | PatchType::Merge => {
            if !change.is_object() {
                bail!(
                    "--patch: expected an object such as {{\"spec\": {{..}}}}; for a list of operations add -t json"
                );
            }
            None
        }
    };
    let store = open_to_change(&args.one.store, false)?;
    block_on(async {
        let key = old_names::stored(&*store, key).await?;
        let mut idle = Vec::new();
        let did = write::update(&*store, &key, args.dry_run, |old: &Entry| {
            let mut value = (*old.value).clone();
            match &operations {
                Some(operations) => {
                    json_patch::patch(&mut value, operations).map_err(|e| misfit(&key, &e))?
                }
                None => json_patch::merge(&mut value, &change),
            }
            let new = resource(&key, &value)?;
            // What was there before is not the patch's doing.
            let had = AnyResource::from_value(key.kind, &old.value);
            let had = had.map(|r| yaml::idle_fields(&r)).unwrap_or_default();
            idle = yaml::idle_fields(&new);
            idle.retain(|f| !had.contains(f));
            Ok(new)
        })
        .await?;
        for (field, message) in &idle {
            out::remark(format_args!("warning: --patch: {field}: {message}"));
        }
        report("patched", &[(key.clone(), did)], args.dry_run, format);
        Ok(Outcome::Ok)
    })
}

/// An operation that cannot be carried out; they are counted from 1.
fn misfit(key: &Key, e: &json_patch::PatchError) -> anyhow::Error {
    anyhow::anyhow!("--patch does not fit {key}: operation {}, at {}: {}", e.operation + 1, e.path, e.kind)
}

/// One label to set or to remove.
struct Change<'a> {
    name: &'a str,
    value: &'a str,
    /// What it was before.
    was: Option<String>,
}

/// `label`.
pub(crate) fn label(args: &LabelArgs, format: Format) -> Result<Outcome> {
    // What follows KIND/NAME is the first label already.
    let first = args.one.name.as_ref().filter(|_| args.one.kind.contains('/'));
    let one = OneArgs { name: args.one.name.clone().filter(|_| first.is_none()), ..args.one.clone() };
    let key = one.key()?;
    let mut changes = Vec::new();
    for label in first.into_iter().chain(&args.labels) {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        if args.remove && label.contains('=') {
            bail!("--remove takes the key of a label alone: {name}");
        }
        names::qualified(name).map_err(|reason| anyhow::anyhow!("label key {name:?}: {reason}"))?;
        names::label_value(value).map_err(|reason| anyhow::anyhow!("label value {value:?}: {reason}"))?;
        changes.push(Change { name, value, was: None });
    }
    if changes.is_empty() {
        bail!("which label of {key}? Write KEY=VALUE, or KEY with --remove");
    }
    let store = open_to_change(&args.one.store, false)?;
    block_on(async {
        let key = old_names::stored(&*store, key).await?;
        let did = write::update(&*store, &key, false, |old: &Entry| {
            let mut new = resource(&key, &old.value)?;
            let labels = &mut new.metadata_mut().labels;
            for Change { name, value, was } in &mut changes {
                *was = labels.get(*name).cloned();
                if args.remove {
                    if labels.remove(*name).is_none() {
                        bail!("{key} has no label {name}");
                    }
                } else {
                    if was.as_ref().is_some_and(|v| v != value) && !args.overwrite {
                        bail!("key {name} is already present. please use '--overwrite' to set a new value");
                    }
                    labels.insert((*name).to_owned(), (*value).to_owned());
                }
            }
            Ok(new)
        })
        .await?;
        match format {
            Format::Json => report("labelled", &[(key.clone(), did)], false, format),
            Format::Table => {
                for Change { name, was, .. } in &changes {
                    let word = match (args.remove, was) {
                        (true, _) => "removed",
                        (false, Some(_)) => "updated",
                        (false, None) => "set",
                    };
                    out::say!("Successfully {word} label {name} on '{}' resource '{}'", key.kind, key.name);
                }
            }
        }
        Ok(Outcome::Ok)
    })
}

/// `edit`.
pub(crate) fn edit(args: &EditArgs, format: Format) -> Result<Outcome> {
    let key = args.one.key()?;
    super::guard::writable(&key)?;
    let store = open_to_change(&args.one.store, false)?;
    block_on(async {
        let key = old_names::stored(&*store, key).await?;
        let entry = get::one(&*store, &key).await?;
        let before = get::yaml(&shown(&entry));
        let file = Draft::new(&before)?;
        // An empty one is none: the shell would run the draft.
        let mut given = ["VISUAL", "EDITOR"].into_iter().filter_map(|name| std::env::var(name).ok());
        let editor = given.find(|e| !e.trim().is_empty()).unwrap_or_else(|| "vi".into());
        let status = Command::new("sh")
            .args(["-c", &format!("{editor} \"$0\"")])
            .arg(&file.path)
            .status()
            .with_context(|| format!("cannot start the editor {editor:?}; set EDITOR"))?;
        if !status.success() {
            bail!("the editor {editor:?} ended with {status}; {key} is unchanged");
        }
        let after = std::fs::read_to_string(&file.path).context("cannot read the edited text back")?;
        if after == before {
            match format {
                Format::Json => report("edited", &[(key.clone(), Did::Unchanged)], false, format),
                Format::Table => out::say!("Edit cancelled: nothing was changed in {key}"),
            }
            return Ok(Outcome::Ok);
        }
        let loading = yaml::parse_str("the edited text", &after);
        for p in loading.warnings.iter().chain(&loading.errors) {
            out::remark(format_args!("{p}"));
        }
        let [loaded] = loading.resources.as_slice() else {
            let kept = file.keep();
            bail!("the edited text is not one valid resource; {key} is unchanged, the text is in {kept}");
        };
        let new = loaded.resource.clone();
        if new.key() != key {
            bail!("{key} would become {}; kind, namespace and name of a resource cannot change", new.key());
        }
        let written = write::update(&*store, &key, false, |now: &Entry| {
            if now.revision != entry.revision {
                bail!("update conflict: {key} was changed by somebody else while you edited it");
            }
            Ok(new.clone())
        })
        .await;
        match written {
            Ok(did) => {
                report("edited", &[(key.clone(), did)], false, format);
                Ok(Outcome::Ok)
            }
            Err(e) => {
                let kept = file.keep();
                Err(e.context(format!("the edited text is in {kept}")))
            }
        }
    })
}

/// The file a person edits: readable by nobody else, gone afterwards unless kept.
struct Draft {
    path: std::path::PathBuf,
    kept: std::cell::Cell<bool>,
}

impl Draft {
    fn new(text: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("brindlectl-edit-{}.yaml", std::process::id()));
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, kept: std::cell::Cell::new(false) })
    }

    fn keep(&self) -> String {
        self.kept.set(true);
        self.path.display().to_string()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept.get() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
