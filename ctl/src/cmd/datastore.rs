//! `brindlectl datastore migrate`: lock a datastore, carry everything into another one, unlock it there.
//!
//! The file has calicoctl's three sections, between lines of `===`: resources, ClusterInformation, records of IPAM. Ours
//! has a first and a last line besides, so that one that was cut off is told from a whole one.

use std::{fs, io, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use brindle_config::yaml;
use brindle_config_core::{
    Kind, ObjectMeta, Resource,
    felix::ClusterInformationSpec,
    names::old_policy_names,
    policy_defaults,
    policy_names::{self, Step},
    store::{Entry, Expect, Store, StoreError, StoreExt as _},
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::resource::{args::StoreArgs, block_on, open, open_to_change};
use crate::{
    Outcome,
    args::Format,
    out::{self, put, say},
};

#[derive(Debug, Args)]
pub(crate) struct DatastoreArgs {
    #[command(subcommand)]
    command: DatastoreCommand,
}

#[derive(Debug, Subcommand)]
enum DatastoreCommand {
    /// Carry everything from one datastore to another.
    Migrate(MigrateArgs),
    /// Give policies stored as `default.NAME`, by Calico before 3.32, their names.
    MigratePolicyNames(PolicyNamesArgs),
}

#[derive(Debug, Args)]
struct PolicyNamesArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Also while ClusterInformation speaks of a Calico before 3.32, which would not find the new names.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct MigrateArgs {
    #[command(subcommand)]
    command: MigrateCommand,
}

#[derive(Debug, Subcommand)]
enum MigrateCommand {
    /// Lock the datastore: pods neither come nor go while it is locked.
    Lock(StoreArgs),
    /// Unlock the datastore.
    Unlock(StoreArgs),
    /// Write everything in a locked datastore to standard output.
    Export(StoreArgs),
    /// Write what export has written into an empty datastore, and leave that locked.
    Import {
        #[command(flatten)]
        store: StoreArgs,
        /// The file export has written; - is standard input.
        #[arg(short = 'f', long, value_name = "FILE")]
        filename: PathBuf,
    },
}

/// Line between the sections.
const BETWEEN: &str = "===";
/// First line of what export writes.
const BEGIN: &str = "# brindlectl datastore migrate export";
/// How its last line begins; the number of resources follows.
const END: &str = "# end: ";
/// Records that only agents write.
const IPAM: [Kind; 3] = [Kind::BlockAffinity, Kind::IpamBlock, Kind::IpamHandle];
/// What belongs to Kubernetes and is not carried.
const FOREIGN: [Kind; 9] = [
    Kind::Namespace,
    Kind::ServiceAccount,
    Kind::EndpointSlice,
    Kind::Service,
    Kind::Lease,
    Kind::KubernetesNetworkPolicy,
    Kind::ClusterNetworkPolicy,
    Kind::AdminNetworkPolicy,
    Kind::BaselineAdminNetworkPolicy,
];

/// Carries a command out.
pub(crate) fn run(args: &DatastoreArgs, format: Format) -> Result<Outcome> {
    let migrate = match &args.command {
        DatastoreCommand::Migrate(migrate) => migrate,
        DatastoreCommand::MigratePolicyNames(names) => return policy_names(names, format),
    };
    match &migrate.command {
        MigrateCommand::Lock(store) => ready(store, false, format),
        MigrateCommand::Unlock(store) => ready(store, true, format),
        MigrateCommand::Export(store) => export(store),
        MigrateCommand::Import { store, filename } => import(store, filename, format),
    }
}

fn done(format: Format, what: &str, sentence: &str) -> Outcome {
    match format {
        Format::Json => out::json(&json!({ "result": what })),
        Format::Table => say!("{sentence}"),
    }
    Outcome::Ok
}

/// Locks or unlocks.
fn ready(args: &StoreArgs, ready: bool, format: Format) -> Result<Outcome> {
    let store = open_to_change(args, false)?;
    block_on(set_ready(&*store, ready))?;
    Ok(if ready {
        done(format, "unlocked", "Datastore unlocked.")
    } else {
        done(format, "locked", "Datastore locked.")
    })
}

async fn set_ready(store: &dyn Store, ready: bool) -> Result<()> {
    const ATTEMPTS: usize = 10;
    for _ in 0..ATTEMPTS {
        let (mut resource, expect) = match store.get_as::<ClusterInformationSpec>(None, "default").await {
            Ok(found) => (found.resource, Expect::Revision(found.revision)),
            Err(StoreError::NotFound(_)) => {
                let spec = ClusterInformationSpec::default();
                (Resource::new(ObjectMeta::named("default"), spec), Expect::Absent)
            }
            Err(e) => return Err(e).context("cannot read ClusterInformation(default)"),
        };
        resource.spec.datastore_ready = Some(ready);
        match store.put_as(&resource, expect).await {
            Ok(_) => return Ok(()),
            Err(StoreError::Conflict(_) | StoreError::Exists(_)) => {}
            Err(e) => return Err(e).context("cannot write ClusterInformation(default)"),
        }
    }
    bail!("ClusterInformation(default) is being changed all the time; try again")
}

/// Everything of some kinds as YAML documents, and how many they are.
async fn documents(store: &dyn Store, kinds: &[Kind]) -> Result<(String, usize)> {
    let entries = store.list(kinds).await.context("cannot read the datastore")?.entries;
    let mut values: Vec<Value> = entries.iter().map(|e| (*e.value).clone()).collect();
    for value in &mut values {
        if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.remove("resourceVersion");
        }
    }
    let text = if values.is_empty() { String::new() } else { yaml::to_yaml_documents(&values) };
    Ok((text, values.len()))
}

fn export(args: &StoreArgs) -> Result<Outcome> {
    let store = open(args)?;
    let text = block_on(async {
        match store.get_as::<ClusterInformationSpec>(None, "default").await {
            Ok(found) if found.resource.spec.datastore_ready == Some(false) => {}
            Ok(_) | Err(StoreError::NotFound(_)) => {
                bail!("the datastore is not locked; lock it first: brindlectl datastore migrate lock")
            }
            Err(e) => return Err(e).context("cannot read ClusterInformation(default)"),
        }
        let apart = |k: &Kind| IPAM.contains(k) || FOREIGN.contains(k) || *k == Kind::ClusterInformation;
        let rest: Vec<Kind> = Kind::ALL.into_iter().filter(|k| !apart(k)).collect();
        let (first, mut count) = documents(&*store, &rest).await?;
        let mut text = format!("{BEGIN}\n{first}");
        for kinds in [&[Kind::ClusterInformation][..], &IPAM] {
            let (section, more) = documents(&*store, kinds).await?;
            text += &format!("{BETWEEN}\n{section}");
            count += more;
        }
        text += &format!("{END}{count} resources\n");
        Ok(text)
    })?;
    put!("{text}");
    Ok(Outcome::Ok)
}

fn import(args: &StoreArgs, file: &std::path::Path, format: Format) -> Result<Outcome> {
    let (name, text) = match file.as_os_str() == "-" {
        true => ("standard input".to_owned(), io::read_to_string(io::stdin())),
        false => (file.display().to_string(), fs::read_to_string(file)),
    };
    let text = text.with_context(|| format!("cannot read {name}"))?;
    let mut loaded = Vec::new();
    let mut problems = 0;
    for section in sections(&text).with_context(|| name.clone())? {
        if section.trim().is_empty() {
            continue;
        }
        let loading = yaml::parse_str(&name, &section);
        for e in &loading.errors {
            problems += 1;
            out::remark(format_args!("error: {e}"));
        }
        loaded.extend(loading.resources);
    }
    if problems > 0 {
        bail!("{problems} problem{} in {name}; nothing was written", if problems == 1 { "" } else { "s" });
    }
    let count = loaded.len();
    whole(&text, count).with_context(|| format!("{name}: nothing was written"))?;
    let store = open_to_change(args, true)?;
    block_on(async {
        let all: Vec<Kind> = Kind::ALL.into_iter().filter(|k| !FOREIGN.contains(k)).collect();
        let there = store.list(&all).await.context("cannot read the datastore")?.entries;
        // Kubernetes knows its nodes before anybody carries anything there.
        if let Some(first) =
            there.iter().find(|e| ![Kind::Node, Kind::ClusterInformation].contains(&e.key.kind))
        {
            bail!(
                "the datastore is not empty: it has {} and {} more; import goes into an empty one",
                first.key,
                there.len().saturating_sub(1)
            );
        }
        set_ready(&*store, false).await?;
        for l in &loaded {
            let key = l.resource.key();
            if key.kind == Kind::ClusterInformation {
                continue;
            }
            let expect = if key.kind == Kind::Node { Expect::Any } else { Expect::Absent };
            let mut value = l.resource.to_value();
            policy_defaults::complete_value(key.kind, &mut value);
            store
                .put(&key, value, expect)
                .await
                .with_context(|| format!("cannot write {key}; what came before it is written"))?;
        }
        // Last, and locked: whoever finds it unlocked finds everything.
        for l in loaded.iter().filter(|l| l.resource.kind() == Kind::ClusterInformation) {
            let mut value = l.resource.to_value();
            if let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) {
                spec.insert("datastoreReady".into(), Value::Bool(false));
            }
            let key = l.resource.key();
            store.put(&key, value, Expect::Any).await.with_context(|| format!("cannot write {key}"))?;
        }
        Ok(())
    })?;
    Ok(match format {
        Format::Json => {
            out::json(&json!({ "result": "imported", "resources": count }));
            Outcome::Ok
        }
        Format::Table => {
            say!("Datastore information successfully imported: {count} resources.");
            say!("The datastore is locked; when all is well: brindlectl datastore migrate unlock");
            Outcome::Ok
        }
    })
}

/// Gives policies their names. What changed meanwhile is left for the next time, and said.
fn policy_names(args: &PolicyNamesArgs, format: Format) -> Result<Outcome> {
    let store = open_to_change(&args.store, false)?;
    let (done, mut left) = block_on(async {
        if !args.force {
            may_rename(&*store).await?;
        }
        let entries = store.list(&policy_names::KINDS).await.context("cannot read the policies")?.entries;
        let (steps, mut left) = policy_names::plan(&entries);
        let mut done = Vec::new();
        for step in steps {
            let (from, what) = match &step {
                Step::Rename { from, to, .. } => (from, format!("{from} is stored as {}", to.name)),
                Step::DropCopy { key, to, .. } => {
                    (key, format!("{key} is deleted: {} says the same", to.name))
                }
            };
            let entry = entries.iter().find(|e| e.key == *from);
            match entry {
                _ if args.dry_run => done.push(what),
                Some(entry) if carried_out(&*store, &step, entry).await? => done.push(what),
                _ => left.push(format!("{from} has changed meanwhile; type it again")),
            }
        }
        Ok((done, left))
    })?;
    left.sort();
    match format {
        Format::Json => out::json(&json!({ "dryRun": args.dry_run, "done": done, "left": left })),
        Format::Table => {
            done.iter().for_each(|d| say!("{d}"));
            left.iter().for_each(|l| say!("left: {l}"));
            match (args.dry_run, done.len()) {
                (true, n) => say!("Dry run: {n} policies would be migrated; nothing was written"),
                (false, n) => say!("Successfully migrated {n} policies"),
            }
        }
    }
    Ok(if left.is_empty() { Outcome::Ok } else { Outcome::Degraded })
}

async fn may_rename(store: &dyn Store) -> Result<()> {
    let version = match store.get_as::<ClusterInformationSpec>(None, "default").await {
        Ok(found) => found.resource.spec.calico_version,
        Err(StoreError::NotFound(_)) => return Ok(()),
        Err(e) => return Err(e).context("cannot read ClusterInformation(default)"),
    };
    if old_policy_names(&version) {
        bail!(
            "ClusterInformation(default) says that Calico {version} uses this datastore, which would not find policies \
             under their new names; upgrade it first, or use --force"
        );
    }
    Ok(())
}

/// The new one first: whatever interrupts this, the policy is there. `false`: somebody else was faster.
async fn carried_out(store: &dyn Store, step: &Step, entry: &Entry) -> Result<bool> {
    let raced = |e: &StoreError| {
        matches!(e, StoreError::Exists(_) | StoreError::Conflict(_) | StoreError::NotFound(_))
    };
    if let Step::Rename { to, .. } = step {
        match store.put(to, policy_names::renamed(&entry.value, to), Expect::Absent).await {
            Ok(_) => {}
            Err(e) if raced(&e) => return Ok(false),
            Err(e) => return Err(e).with_context(|| format!("cannot write {to}")),
        }
    }
    match store.delete(&entry.key, Expect::Revision(entry.revision)).await {
        Ok(_) => Ok(true),
        Err(e) if raced(&e) => Ok(false),
        Err(e) => Err(e).with_context(|| format!("cannot delete {}", entry.key)),
    }
}

/// What our export has written must be there to its last line. Files of calicoctl have no such lines.
fn whole(text: &str, found: usize) -> Result<()> {
    if text.lines().next() != Some(BEGIN) {
        return Ok(());
    }
    let Some(end) = text.lines().last().and_then(|line| line.strip_prefix(END)) else {
        bail!("the file is cut off: its last line would begin with {END:?}; export again");
    };
    if !text.ends_with('\n') || end != format!("{found} resources") {
        bail!("its last line speaks of {end}, and {found} are there; export again");
    }
    Ok(())
}

/// The three sections, each with empty lines for what is before it.
fn sections(text: &str) -> Result<Vec<String>> {
    let mut all = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        if line.trim_end() == BETWEEN {
            // So that lines count from the top of the file.
            all.push("\n".repeat(number + 1));
        } else if let Some(last) = all.last_mut() {
            if line != BEGIN && !line.starts_with(END) {
                last.push_str(line);
            }
            last.push('\n');
        }
    }
    if all.len() != 3 {
        bail!(
            "expected three sections with lines of {BETWEEN} between them, found {}; was it written by export?",
            all.len()
        );
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_cut_off_is_no_export() {
        let text = format!("{BEGIN}\na\n===\n===\nb\n{END}2 resources\n");
        whole(&text, 2).unwrap();
        for cut in BEGIN.len()..text.len() {
            let e = whole(&text[..cut], 2).unwrap_err().to_string();
            assert!(e.contains("export again"), "{cut}: {e}");
        }
        let e = whole(&text, 1).unwrap_err().to_string();
        assert!(e.contains("2 resources, and 1 are there"), "{e}");
        whole("a\n===\n===\nb\n", 2).unwrap();
    }
}
