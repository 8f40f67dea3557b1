//! Tests that documents name: every one is in the tree, and every row that promises one names one. A test by name is
//! at least three words joined by `_` between backquotes, or what a column called `test` or `shown by` has between them.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

/// Documents whose tables say which test shows what.
const DOCUMENTS: [&str; 2] = ["docs/rfc.md", "docs/interop.md"];

/// What is between backquotes in a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

fn is_name(word: &str) -> bool {
    word.matches('_').count() >= 2
        && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The cells of a row of a table.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

/// What is wrong with a document, each with its line. `known`: the names of all tests.
fn faults(name: &str, text: &str, known: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    // The column of the table that names tests.
    let mut column = None;
    for (at, line) in (1..).zip(text.lines()) {
        let mut fault = |what: String| faults.push(format!("{name}:{at}: {what}"));
        for word in quoted(line).filter(|w| is_name(w) && !known.contains(*w)) {
            fault(format!("there is no test {word}"));
        }
        let Some(row) = cells(line) else {
            column = None;
            continue;
        };
        let Some(shown) = column else {
            column = Some(row.iter().position(|c| matches!(*c, "shown by" | "test")));
            continue;
        };
        if row.iter().all(|c| c.bytes().all(|b| b == b'-')) {
            continue;
        }
        if let Some(cell) = shown.and_then(|n: usize| row.get(n))
            && !quoted(cell).any(|w| known.contains(w))
        {
            fault("the row names no test that is in the tree".into());
        }
    }
    faults
}

/// The names of all functions that are tests.
fn tests_of(source: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut marked = false;
    for line in source.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some(at) = line.find("fn ").filter(|_| marked) {
            let rest = line.get(at + 3..).unwrap_or_default();
            names.extend(rest.split(['(', '<']).next().map(str::to_owned));
            marked = false;
        }
    }
    names
}

/// Checks all documents of the tree at `root`.
pub(crate) fn check(root: &Path) -> Result<()> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root)
        .output()
        .context("git cannot be run")?;
    let mut known = BTreeSet::new();
    for file in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|f| !f.is_empty()) {
        // A file that was removed and not committed yet is listed, too.
        if let Ok(source) = fs::read_to_string(root.join(file)) {
            known.append(&mut tests_of(&source));
        }
    }
    let mut all = Vec::new();
    for name in DOCUMENTS {
        let text = fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))?;
        all.append(&mut faults(name, &text, &known));
    }
    if !all.is_empty() {
        bail!("tests that documents name:\n  {}", all.join("\n  "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_a_document_names_is_in_the_tree() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        check(root).unwrap();
    }

    #[test]
    fn a_name_that_is_gone_and_a_row_without_one_are_found() {
        // A text to be read, not tests: their bodies do not matter.
        let known = tests_of(
            "#[test]\nfn what_is_here() {}\n#[tokio::test(x)]\nasync fn local_pref() {}\nfn no_test_at_all() {}\n",
        );
        let head = "| rule | shown by |\n| --- | --- |\n";
        let of = |row: &str| faults("d.md", &format!("{head}{row}\n"), &known);
        assert!(of("| a | `what_is_here` |").is_empty());
        assert!(of("| a | one for each: `local_pref` |").is_empty());
        assert_eq!(of("| a | `file.rs` |"), ["d.md:3: the row names no test that is in the tree"]);
        assert_eq!(of("| a | `what_is_here`, `what_was_here` |"), ["d.md:3: there is no test what_was_here"]);
        assert_eq!(of("| a | `no_test_at_all` |").len(), 2);
        // Tables of other things are left alone.
        assert!(faults("d.md", "| a | b |\n| --- | --- |\n| x | y |\n", &known).is_empty());
    }
}
