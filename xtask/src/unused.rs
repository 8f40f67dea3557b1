//! Dependencies that a package lists and none of its sources mentions: each makes the package wait for another to be
//! compiled, and the layers look more entangled than they are. Read from the text, so a dependency that only a macro of
//! another names, or that is listed for its features, has to be told here.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Listed for what the sources of the package do not show, with the package that does.
const NEEDED: [(&str, &str); 2] = [
    // kube does not compile until somebody has chosen the version of Kubernetes.
    ("brindle-config", "k8s-openapi"),
    // Scenarios take the renderer of the chart from the tests of config.
    ("brindle-integration", "sha2"),
];

/// A package as its Cargo.toml has it.
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    /// By the names its sources use, of all kinds.
    pub(crate) dependencies: Vec<String>,
}

/// What is wrong with a package.
pub(crate) fn faults(package: &Package) -> Result<Vec<String>> {
    let mut sources = Vec::new();
    read(&package.folder, &mut sources)?;
    let unused = package.dependencies.iter().filter(|d| {
        !NEEDED.contains(&(package.name.as_str(), d.as_str()))
            && !sources.iter().any(|source| mentions(source, d))
    });
    let manifest = package.folder.join("Cargo.toml");
    Ok(unused
        .map(|d| format!("{} uses {d} nowhere: remove it from {}", package.name, manifest.display()))
        .collect())
}

/// The sources in a folder, but those of packages inside it.
fn read(folder: &Path, into: &mut Vec<String>) -> Result<()> {
    let context = || format!("cannot read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.is_dir() {
            if !path.join("Cargo.toml").exists() {
                read(&path, into)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
    }
    Ok(())
}

/// Whether a source has a path that begins with the dependency, outside of comments.
fn mentions(source: &str, dependency: &str) -> bool {
    let name = dependency.replace('-', "_");
    let part_of_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    source.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| {
        line.match_indices(&name).any(|(at, _)| {
            let (before, after) = (&line[..at], &line[at + name.len()..]);
            let whole = after.starts_with("::")
                || (before.ends_with("use ")
                    && !after.starts_with(|c: char| c.is_alphanumeric() || c == '_'));
            whole && !before.ends_with(part_of_path)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_a_derive_and_an_import_are_mentions() {
        for source in [
            "use a_b::C;",
            "use a_b as other;",
            "use a_b;",
            "    #[derive(Debug, a_b::Error)]",
            "let x = (a_b::c(), 1);",
            "pub use {x::y, a_b::{c, d}};",
        ] {
            assert!(mentions(source, "a-b"), "{source}");
        }
    }

    #[test]
    fn a_longer_name_a_module_and_a_comment_are_none() {
        for source in [
            "use a_b_c::D;",
            "use x_a_b::D;",
            "use crate::a_b::C;",
            "//! see a_b::C",
            "let a_b = 1;",
            "mod a_b;",
            "use a_bc;",
        ] {
            assert!(!mentions(source, "a-b"), "{source}");
        }
    }

    #[test]
    fn a_dependency_nobody_uses_is_told_with_the_file_to_change() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).to_owned();
        let of = |dependencies: &[&str]| {
            let dependencies = dependencies.iter().map(|d| (*d).to_owned()).collect();
            faults(&Package { name: "xtask".into(), folder: folder.clone(), dependencies }).unwrap()
        };
        assert!(of(&["anyhow", "serde_json"]).is_empty());
        let told = of(&["anyhow", "no-such-thing"]);
        assert!(
            matches!(&told[..], [one] if one.starts_with("xtask uses no-such-thing nowhere: ")),
            "{told:?}"
        );
        assert!(told.iter().all(|t| t.ends_with("xtask/Cargo.toml")), "{told:?}");
    }
}
