//! `create`, `apply`, `replace`, `delete`, `validate`, `diff`. First everything is read and checked, then written;
//! a document that is wrong keeps all the others out unless `--continue`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use brindle_config::yaml::Loaded;
use brindle_config_core::{
    AnyResource, Key, Kind, policy_defaults, policy_names,
    store::{Entry, Expect, Revision, Store, StoreError},
};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::Value;
use similar::TextDiff;

use super::{
    Did, aftermath,
    args::{DeleteArgs, ValidateArgs, WriteArgs},
    block_on,
    get::{export, missing, yaml},
    guard::{self, Others},
    load::{self, How, Input},
    old_names::{self, Names, existing},
    open_to_change, report,
    select::{self, Selection},
};
use crate::{Outcome, args::Format, out};

/// How a file meets what exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// It must not exist.
    Create,
    /// It may exist.
    Apply,
    /// It must exist.
    Replace,
}

impl Verb {
    const fn done(self) -> &'static str {
        match self {
            Self::Create => "created",
            Self::Apply => "applied",
            Self::Replace => "replaced",
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Apply => "apply",
            Self::Replace => "replace",
        }
    }
}

/// Questions to the datastore under way at the same time.
const ABREAST: usize = 16;
/// How often a write that lost a race is tried again.
const RACES: usize = 10;

/// One write that is to happen.
struct Step {
    key: Key,
    value: Value,
    /// What the datastore will make of the value.
    kept: Value,
    did: Did,
    expect: Expect,
    /// It has a revision, so it was read from a datastore, and is not there.
    gone: bool,
}

/// `create`, `apply`, `replace`.
pub(crate) fn write(verb: Verb, args: &WriteArgs, format: Format) -> Result<Outcome> {
    let input = read(args)?;
    let store = open_to_change(&args.store, verb != Verb::Replace && !args.dry_run)?;
    block_on(async {
        let (steps, wrong) = plan(&*store, verb, args, &input).await?;
        let wrong = wrong + input.wrong;
        if wrong > 0 && !args.files.go_on {
            bail!("{}; nothing was written", problems(wrong));
        }
        tell_gone(verb, &steps);
        let mut done: Vec<(Key, Did)> = Vec::new();
        for step in &steps {
            if !args.dry_run && matches!(step.did, Did::Created | Did::Configured) {
                put(&*store, step).await.map_err(|e| partial(verb, &done, steps.len(), e))?;
            }
            done.push((step.key.clone(), step.did));
        }
        report(verb.done(), &done, args.dry_run, format);
        Ok(if wrong > 0 { Outcome::Degraded } else { Outcome::Ok })
    })
}

/// What was read from a datastore and is not there was deleted meanwhile, or comes from another one. A backup is put back
/// like this, so that it is done, but not in silence.
fn tell_gone(verb: Verb, steps: &[Step]) {
    let mut gone = steps.iter().filter(|s| s.gone && verb == Verb::Apply);
    let Some(first) = gone.next() else { return };
    let (more, are) = match gone.count() {
        0 => (String::new(), "is"),
        n => (format!(" and {n} more"), "are"),
    };
    out::remark(format_args!(
        "warning: {}{more}, by metadata.resourceVersion read from a datastore, {are} not in this one (deleted meanwhile?) \
         and {are} made anew",
        first.key
    ));
}

fn problems(n: usize) -> String {
    if n == 1 { "1 problem in the input".into() } else { format!("{n} problems in the input") }
}

/// Says how far it came when a write failed in the middle.
fn partial(verb: Verb, done: &[(Key, Did)], all: usize, e: anyhow::Error) -> anyhow::Error {
    if done.is_empty() {
        return e.context(format!("failed to {} any resources", verb.word()));
    }
    let n = done.len();
    e.context(format!("Partial success: {} the first {n} out of {all} resources", verb.done()))
}

fn read(args: &WriteArgs) -> Result<Input> {
    let namespace = args.namespace.namespace.as_deref();
    let f = &args.files;
    load::files(&f.files, How { recursive: f.recursive, skip_empty: f.skip_empty, namespace, go_on: f.go_on })
}

/// What is wrong with each document, by its position in the input.
type Complaints = BTreeMap<usize, Vec<String>>;

/// What has to be written, and how many resources may not. Says why not in the order of the documents, also where the
/// datastore fails in the middle of its answers.
async fn plan(store: &dyn Store, verb: Verb, args: &WriteArgs, input: &Input) -> Result<(Vec<Step>, usize)> {
    let mut complaints = Complaints::new();
    let steps = steps(store, verb, args, input, &mut complaints).await;
    for complaint in complaints.values().flatten() {
        out::remark(format_args!("error: {complaint}"));
    }
    Ok((steps?, complaints.len()))
}

/// The steps of a plan. Whatever one resource needs of the datastore does not wait for the answers about those before it:
/// a folder is asked about many at a time.
async fn steps(
    store: &dyn Store,
    verb: Verb,
    args: &WriteArgs,
    input: &Input,
    complaints: &mut Complaints,
) -> Result<Vec<Step>> {
    let mut others = Others::read(store).await?;
    let names = Names::of(store).await?;
    let keys: Vec<Key> = input.resources.iter().map(|l| l.resource.key()).collect();
    let olds = futures::stream::iter(&keys).map(|key| existing(store, key)).buffered(ABREAST);
    let olds: Vec<Option<Entry>> = olds.try_collect().await?;
    let mut steps: Vec<(Step, usize)> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut order: Vec<_> = input.resources.iter().zip(keys).enumerate().collect();
    // A policy is never there without its tier, wherever in the input that stands.
    if let Some(first) = order.iter().position(|(_, (_, key))| policy_names::KINDS.contains(&key.kind)) {
        order.sort_by_key(|(at, (_, key))| match key.kind {
            Kind::Tier if *at > first => (first, 0),
            _ => (*at, 1),
        });
    }
    for (at, (loaded, key)) in order {
        let old = olds.get(at).and_then(Option::as_ref);
        let key = old.map_or(key, |old| old.key.clone());
        let refusal = match (verb, old) {
            (Verb::Create, Some(_)) if args.skip_exists => {
                let (value, kept) = (Value::Null, Value::Null);
                steps.push((
                    Step { key, value, kept, did: Did::Skipped, expect: Expect::Any, gone: false },
                    at,
                ));
                continue;
            }
            (Verb::Create, Some(_)) => Some(format!("resource already exists: {key}; use apply or replace")),
            (Verb::Replace, None) => Some(missing(store, &key).await.to_string()),
            _ => None,
        };
        let checked = match refusal {
            Some(refusal) => Err(vec![loaded.origin.problem("metadata.name", refusal).to_string()]),
            None => step(loaded, old, &others, names),
        };
        let mut step = match checked {
            Ok(step) => step,
            Err(wrong) => {
                complaints.insert(at, wrong);
                continue;
            }
        };
        // A policy has an old and a new name: two documents may mean the same one.
        if !seen.insert(step.key.clone()) {
            let twice = loaded.origin.problem("metadata.name", format!("{} was given before", step.key));
            complaints.insert(at, vec![twice.to_string()]);
            continue;
        }
        // The next ones are held against it: it is asked about at once.
        if Others::holds(step.key.kind)
            && let Some(refused) = asked(store, loaded, old, &mut step).await?
        {
            complaints.insert(at, vec![refused]);
            continue;
        }
        others.admit(&loaded.resource);
        steps.push((step, at));
    }
    let mut answers = futures::stream::iter(steps)
        .map(|(mut step, at)| {
            let (loaded, old) = (input.resources.get(at), olds.get(at).and_then(Option::as_ref));
            async move {
                let refused = match loaded {
                    Some(l) if !Others::holds(step.key.kind) => asked(store, l, old, &mut step).await?,
                    _ => None,
                };
                anyhow::Ok((step, at, refused))
            }
        })
        .buffered(ABREAST);
    let mut steps = Vec::new();
    while let Some((step, at, refused)) = answers.try_next().await? {
        match refused {
            Some(refused) => {
                complaints.insert(at, vec![refused]);
            }
            None => steps.push(step),
        }
    }
    Ok(steps)
}

/// Asks the datastore what it would make of a step that changes something; gives why it refuses. What it would keep as it
/// is changes nothing.
async fn asked(
    store: &dyn Store,
    loaded: &Loaded,
    old: Option<&Entry>,
    step: &mut Step,
) -> Result<Option<String>> {
    if !matches!(step.did, Did::Created | Did::Configured) {
        return Ok(None);
    }
    match store.would_hold(&step.key, step.value.clone(), step.expect).await {
        Ok(value) => {
            if old.is_some_and(|old| *old.value == value) {
                step.did = Did::Unchanged;
            }
            step.kept = value;
            Ok(None)
        }
        Err(StoreError::Refused { reason, .. }) => {
            let (field, reason) = told(&reason);
            Ok(Some(loaded.origin.problem(field, format!("{}: {reason}", step.key)).to_string()))
        }
        Err(StoreError::Conflict(key) | StoreError::Exists(key)) => bail!("{}", meanwhile(&key)),
        Err(e) => Err(e).with_context(|| format!("{} cannot be written", step.key)),
    }
}

/// The field an API server's refusal is about, where it names one: `KIND "NAME" is invalid: FIELD: WHY`.
fn told(reason: &str) -> (&str, &str) {
    let named = reason.split_once(" is invalid: ").and_then(|(_, rest)| rest.split_once(": "));
    match named {
        Some((field, why)) if field.starts_with("spec.") && !field.contains(' ') => (field, why),
        _ => ("kind", reason),
    }
}

/// Checks one resource, or says what is wrong with it.
fn step(loaded: &Loaded, old: Option<&Entry>, others: &Others, names: Names) -> Result<Step, Vec<String>> {
    let key = old.map_or_else(|| names.key(&loaded.resource), |old| old.key.clone());
    let wrong = |field: &str, why: String| vec![loaded.origin.problem(field, why).to_string()];
    guard::writable(&key).map_err(|e| wrong("kind", e.to_string()))?;
    others.check(&loaded.resource, old).map_err(|invalid| {
        let each = invalid.0.iter().flat_map(|e| wrong(&e.field, format!("{}: {}", e.value, e.reason)));
        each.collect::<Vec<_>>()
    })?;
    let given = match loaded.resource.metadata().resource_version.as_deref() {
        None | Some("") => None,
        Some(text) => match text.parse() {
            Ok(n) => Some(Revision(n)),
            Err(_) => {
                return Err(wrong("metadata.resourceVersion", format!("expected a number, found {text:?}")));
            }
        },
    };
    if let (Some(given), Some(old)) = (given, old)
        && given != old.revision
    {
        let message = format!(
            "update conflict: {key} was changed since revision {} (it is {} now); read it again",
            given.0, old.revision.0
        );
        return Err(wrong("metadata.resourceVersion", message));
    }
    let value = stored_form(&loaded.resource, &key, old);
    let (did, expect) = match old {
        None => (Did::Created, Expect::Absent),
        Some(old) if *old.value == value => (Did::Unchanged, Expect::Any),
        Some(old) => (Did::Configured, Expect::Revision(old.revision)),
    };
    let gone = given.is_some() && old.is_none();
    Ok(Step { key, kept: value.clone(), value, did, expect, gone })
}

/// What the store will hold: the revision is the store's own; what the cluster gave the old one stays; a policy says what
/// Calico's agents do not work out for themselves, and has the name it is stored under.
pub(super) fn stored_form(new: &AnyResource, key: &Key, old: Option<&Entry>) -> Value {
    let mut new = new.clone();
    let meta = new.metadata_mut();
    meta.resource_version = None;
    meta.name.clone_from(&key.name);
    let mut value = new.to_value();
    policy_defaults::complete_value(new.kind(), &mut value);
    let Some(old) = old else { return value };
    for member in ["uid", "creationTimestamp"] {
        let kept = old.value.get("metadata").and_then(|m| m.get(member)).cloned();
        if let (Some(kept), Some(meta)) = (kept, value.get_mut("metadata").and_then(Value::as_object_mut)) {
            meta.entry(member).or_insert(kept);
        }
    }
    if let (Some(status), Some(all)) = (old.value.get("status").cloned(), value.as_object_mut()) {
        all.entry("status").or_insert(status);
    }
    value
}

async fn put(store: &dyn Store, step: &Step) -> Result<()> {
    match store.put(&step.key, step.value.clone(), step.expect).await {
        Ok(_) => Ok(()),
        Err(StoreError::Conflict(key) | StoreError::Exists(key)) => {
            bail!("{}", meanwhile(&key))
        }
        Err(e) => Err(failed("write", &step.key, e)),
    }
}

fn meanwhile(key: &Key) -> String {
    format!("update conflict: {key} was changed by somebody else meanwhile; try again")
}

/// What the store said, with the resource's name once.
fn failed(what: &str, key: &Key, e: StoreError) -> anyhow::Error {
    match e {
        StoreError::NotFound(_)
        | StoreError::Exists(_)
        | StoreError::Conflict(_)
        | StoreError::Invalid { .. }
        | StoreError::Refused { .. } => e.into(),
        e => anyhow::Error::from(e).context(format!("cannot {what} {key}")),
    }
}

/// Writes a changed resource if nobody else wrote it meanwhile; `change` is asked again when somebody did.
pub(super) async fn update(
    store: &dyn Store,
    key: &Key,
    dry_run: bool,
    mut change: impl FnMut(&Entry) -> Result<AnyResource>,
) -> Result<Did> {
    guard::writable(key)?;
    for _ in 0..RACES {
        let old = super::get::one(store, key).await?;
        let new = change(&old)?;
        let others = Others::read(store).await?;
        others.check(&new, Some(&old)).with_context(|| format!("{key} cannot be written"))?;
        let value = stored_form(&new, key, Some(&old));
        if *old.value == value {
            return Ok(Did::Unchanged);
        }
        if dry_run {
            let expect = Expect::Revision(old.revision);
            return match store.would_hold(key, value, expect).await {
                Ok(kept) if kept == *old.value => Ok(Did::Unchanged),
                Ok(_) => Ok(Did::Configured),
                Err(StoreError::Conflict(_)) => continue,
                Err(e) => Err(failed("write", key, e)),
            };
        }
        match store.put(key, value, Expect::Revision(old.revision)).await {
            Ok(_) => return Ok(Did::Configured),
            Err(StoreError::Conflict(_)) => {}
            Err(e) => return Err(failed("write", key, e)),
        }
    }
    bail!("update conflict: {key} is being changed all the time; tried {RACES} times")
}

/// `validate`: files alone, no datastore.
pub(crate) fn validate(args: &ValidateArgs, format: Format) -> Result<Outcome> {
    let f = &args.files;
    let namespace = args.namespace.namespace.as_deref();
    let how = How { recursive: f.recursive, skip_empty: f.skip_empty, namespace, go_on: f.go_on };
    let input = load::files(&f.files, how)?;
    let done: Vec<(Key, Did)> = input.resources.iter().map(|l| (l.resource.key(), Did::Unchanged)).collect();
    report("validated", &done, false, format);
    Ok(if input.wrong > 0 { Outcome::Degraded } else { Outcome::Ok })
}

/// `diff`: what apply would change. Exit code 1 when anything would.
pub(crate) fn diff(args: &WriteArgs, format: Format) -> Result<Outcome> {
    let input = read(args)?;
    let store = super::open(&args.store)?;
    block_on(async {
        let (steps, wrong) = plan(&*store, Verb::Apply, args, &input).await?;
        if wrong + input.wrong > 0 && !args.files.go_on {
            bail!("{}", problems(wrong + input.wrong));
        }
        let mut changes = false;
        for step in &steps {
            let old = existing(&*store, &step.key).await?.map(|e| (*e.value).clone());
            let before = old.map_or_else(String::new, plain_yaml);
            let after = plain_yaml(step.kept.clone());
            if before == after {
                continue;
            }
            changes = true;
            match format {
                Format::Json => out::json(&serde_json::json!({"kind": step.key.kind.as_str(),
                    "namespace": step.key.namespace, "name": step.key.name, "result": step.did.as_str(),
                    "before": before, "after": after})),
                Format::Table => {
                    let diff = TextDiff::from_lines(&before, &after);
                    let (a, b) = (format!("stored {}", step.key), format!("file {}", step.key));
                    out::put!("{}", diff.unified_diff().context_radius(3).header(&a, &b));
                }
            }
        }
        Ok(if changes || wrong > 0 { Outcome::Degraded } else { Outcome::Ok })
    })
}

fn plain_yaml(mut value: Value) -> String {
    export(&mut value);
    yaml(&value)
}

/// `delete`.
pub(crate) fn delete(args: &DeleteArgs, format: Format) -> Result<Outcome> {
    let namespace = args.namespace.namespace.as_deref();
    let keys = if args.files.is_empty() {
        match select::selection(&args.what, namespace)? {
            Selection::Named(keys) => keys,
            Selection::Kinds(_) => {
                bail!("which? Write the names after the kind; all of a kind is never deleted at once")
            }
        }
    } else {
        let how = How { recursive: args.recursive, skip_empty: false, namespace, go_on: false };
        // What it says beside its name may be the reason why it is to go.
        load::keys(&args.files, how)?
    };
    let store = open_to_change(&args.store, false)?;
    block_on(async {
        let mut keys = old_names::all_stored(&*store, keys).await?;
        // Its policies before a tier: whatever interrupts this, none is left without one.
        keys.sort_by_key(|key| key.kind == Kind::Tier);
        guard::tiers_to_go(&*store, &keys).await?;
        let (mut done, mut left) = (Vec::new(), Vec::new());
        for key in &keys {
            guard::writable(key)?;
            let there = existing(&*store, key).await?;
            let did = match &there {
                None if args.skip_not_exists => Did::Skipped,
                None => return Err(missing(&*store, key).await),
                Some(_) => Did::Deleted,
            };
            done.push((key.clone(), did));
            left.push(there.as_ref().and_then(aftermath::of));
        }
        for ((key, did), left) in done.iter_mut().zip(left) {
            if args.dry_run || *did != Did::Deleted {
                continue;
            }
            match store.delete(key, Expect::Any).await {
                Ok(_) => {}
                Err(StoreError::NotFound(_)) => *did = Did::Skipped,
                Err(e) => return Err(failed("delete", key, e)),
            }
            if let Some(left) = left {
                let cleared = aftermath::clear(&store, &left).await;
                cleared.with_context(|| {
                    format!("{key} is deleted, but not all that it leaves; see `brindlectl ipam check`")
                })?;
            }
        }
        report("deleted", &done, args.dry_run, format);
        Ok(Outcome::Ok)
    })
}
