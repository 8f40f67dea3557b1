//! `lab down`: processes, namespaces, files; of a finished lab, of a half-made one, of what is left when the state
//! file is gone. Links, routes and rules are all inside namespaces and go with them.

use std::{collections::BTreeSet, fs, io, time::Duration};

use anyhow::{Context as _, Result, bail};
use brindle_kernel::{
    netns::{NetNs, NetNsId},
    process::{self, Tell},
};
use serde_json::json;

use super::{
    state::{self, LabDir, LabState},
    wait::{parallel, until},
};
use crate::{Outcome, args::Format, out};

/// How long killed processes may take to go.
const PATIENCE: Duration = Duration::from_secs(10);

/// `lab down`.
pub(crate) fn down(name: &str, format: Format) -> Result<Outcome> {
    super::need_root()?;
    let dir = LabDir::of(name)?;
    let lock = dir.lock()?;
    let (state, notice) = match dir.load() {
        Ok(state) => (state, None),
        Err(e) => (None, Some(format!("{e:#}: going by names"))),
    };
    let names = namespaces_of(name, state.as_ref(), lock.is_some())?;
    let processes = end_processes(state.as_ref(), &names)?;
    // The fabric last: while it exists, a second `down` knows that something is left.
    let (fabric, others): (Vec<_>, Vec<_>) = names.iter().partition(|n| **n == format!("{name}-fabric"));
    for result in parallel(&others, 4, |n| delete(n)) {
        result?;
    }
    for n in fabric {
        delete(n)?;
    }
    let files = remove_files(&dir)?;
    match format {
        Format::Json => out::json(&json!({
            "lab": name, "processes": processes, "namespaces": names.len(), "files": files, "notice": notice,
        })),
        Format::Table => {
            if let Some(notice) = notice {
                crate::out::sentence(&notice);
            }
            if processes + names.len() + files == 0 {
                crate::out::say!("lab {name:?}: there is nothing to remove");
            } else {
                crate::out::sentence(&format!(
                    "lab {name:?}: removed {processes} processes, {} namespaces with all links and routes in them, \
                     {files} files",
                    names.len()
                ));
            }
        }
    }
    Ok(Outcome::Ok)
}

/// Namespaces of the lab that exist: those of its plan, and, when the lab has a directory or a fabric, all that
/// have its name in front and are in no other lab's plan.
fn namespaces_of(name: &str, state: Option<&LabState>, has_dir: bool) -> Result<Vec<String>> {
    let existing = NetNs::list()?;
    let planned: BTreeSet<&str> =
        state.map(|s| s.plan.namespaces().into_iter().collect()).unwrap_or_default();
    let by_name = state.is_none() && (has_dir || existing.contains(&format!("{name}-fabric")));
    let foreign: BTreeSet<String> = if by_name { other_labs(name)? } else { BTreeSet::new() };
    let prefix = format!("{name}-");
    Ok(existing
        .into_iter()
        .filter(|n| {
            planned.contains(n.as_str()) || (by_name && n.starts_with(&prefix) && !foreign.contains(n))
        })
        .collect())
}

/// Namespaces of all labs but this one.
fn other_labs(name: &str) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for lab in state::all()?.iter().filter(|l| l.name() != name) {
        if let Ok(Some(state)) = lab.load() {
            names.extend(state.plan.namespaces().into_iter().map(str::to_owned));
        }
    }
    Ok(names)
}

/// Kills everything that lives in the namespaces, and what the state file knows, until nothing is left.
fn end_processes(state: Option<&LabState>, names: &[String]) -> Result<usize> {
    // A name without a namespace behind it holds nobody.
    let ids: BTreeSet<NetNsId> =
        names.iter().filter_map(|n| NetNs::named(n).ok()).map(|ns| ns.id()).collect();
    let own = std::process::id();
    let mut killed = BTreeSet::new();
    let mut failure = None;
    let gone = until(PATIENCE, || {
        let recorded = state
            .into_iter()
            .flat_map(|s| &s.processes)
            .filter(|p| super::agents::alive(p))
            .map(|p| (p.pid, p.start_time));
        let found = match process::in_namespaces(&ids) {
            Ok(found) => found,
            Err(e) => {
                failure = Some(e);
                return true;
            }
        };
        let found = found.into_iter().filter_map(|f| Some((f.pid, process::start_time(f.pid)?)));
        let alive: BTreeSet<(u32, u64)> = recorded.chain(found).filter(|(pid, _)| *pid != own).collect();
        for (pid, start) in &alive {
            match process::tell(*pid, *start, Tell::Kill) {
                Ok(_) => drop(killed.insert((*pid, *start))),
                Err(e) => failure = Some(e),
            }
        }
        alive.is_empty()
    });
    if let Some(e) = failure {
        return Err(e).context("cannot end the lab's processes");
    }
    if !gone {
        bail!("processes of the lab do not end after SIGKILL; see `ps`, and run `brindlectl lab down` again");
    }
    Ok(killed.len())
}

fn delete(name: &str) -> Result<()> {
    match NetNs::delete(name) {
        Ok(()) => Ok(()),
        Err(e) if e.is_not_found() => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Removes the lab's directory, and the root of all labs with the last one.
fn remove_files(dir: &LabDir) -> Result<usize> {
    fn count(path: &std::path::Path) -> usize {
        let Ok(entries) = fs::read_dir(path) else { return 0 };
        entries
            .filter_map(Result::ok)
            .map(|e| if e.file_type().is_ok_and(|t| t.is_dir()) { count(&e.path()) } else { 1 })
            .sum()
    }
    let files = count(dir.path());
    match fs::remove_dir_all(dir.path()) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("cannot remove {}", dir.path().display())),
    }
    // Fails while there are other labs, as it should.
    let _ = fs::remove_dir(state::ROOT);
    Ok(files)
}
