//! Files to resources: folders within folders, namespaces from the command line, problems on stderr.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use brindle_config::yaml::{self, Loaded, Loading, Problem};
use brindle_config_core::Key;

use crate::out;

/// How files are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How<'a> {
    pub(crate) recursive: bool,
    pub(crate) skip_empty: bool,
    pub(crate) namespace: Option<&'a str>,
    /// Use what is right although something else is wrong.
    pub(crate) go_on: bool,
}

/// What was read.
pub(crate) struct Input {
    pub(crate) resources: Vec<Loaded>,
    /// How many problems were left behind (`--continue`).
    pub(crate) wrong: usize,
}

/// Folders within each other; more is a loop of links.
const DEEPEST: usize = 32;

fn read(paths: &[PathBuf], how: How<'_>) -> Result<Loading> {
    let paths = if how.recursive { expand(paths)? } else { paths.to_vec() };
    Ok(yaml::read_paths_in(&paths, how.namespace))
}

fn problems(errors: &[Problem]) -> anyhow::Error {
    let n = errors.len();
    anyhow::anyhow!("{n} problem{} in the input; nothing was done", if n == 1 { "" } else { "s" })
}

/// Reads files. Every problem is printed with its place; any of them fails the command unless `go_on`.
pub(crate) fn files(paths: &[PathBuf], how: How<'_>) -> Result<Input> {
    let Loading { resources, warnings, mut errors, .. } = read(paths, how)?;
    if how.skip_empty {
        errors.retain(|p| p.message != yaml::EMPTY_FILE && p.message != yaml::EMPTY_FOLDER);
    }
    for w in &warnings {
        out::remark(format_args!("warning: {w}"));
    }
    for e in &errors {
        out::remark(format_args!("error: {e}"));
    }
    if !errors.is_empty() && !how.go_on {
        return Err(problems(&errors));
    }
    if resources.is_empty() && errors.is_empty() && !how.skip_empty {
        bail!("No resources specified");
    }
    Ok(Input { resources, wrong: errors.len() })
}

/// Reads which resources files name, whatever else they say of them. A problem with that fails the command.
pub(crate) fn keys(paths: &[PathBuf], how: How<'_>) -> Result<Vec<Key>> {
    let loading = read(paths, how)?;
    for w in &loading.warnings {
        out::remark(format_args!("warning: {w}"));
    }
    let (keys, errors) = loading.keys(how.namespace);
    for e in &errors {
        out::remark(format_args!("error: {e}"));
    }
    if !errors.is_empty() {
        return Err(problems(&errors));
    }
    if keys.is_empty() {
        bail!("No resources specified");
    }
    Ok(keys)
}

/// Every file of resources under the folders named.
fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        walk(path, 0, &mut all)?;
    }
    Ok(all)
}

fn walk(path: &Path, depth: usize, all: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        all.push(path.to_owned());
        return Ok(());
    }
    if depth > DEEPEST {
        bail!("{}: folders are nested more than {DEEPEST} deep; a loop of links?", path.display());
    }
    let mut inside = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        inside.push(entry.with_context(|| format!("cannot read {}", path.display()))?.path());
    }
    inside.sort();
    for path in inside {
        let named = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if path.is_dir() || named {
            walk(&path, depth + 1, all)?;
        }
    }
    Ok(())
}
