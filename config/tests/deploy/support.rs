//! Files of the repository: read, compared, written when asked to.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// A path from the top of the repository.
pub(crate) fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("config/ is inside the repository").join(path)
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(repo(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A generated file: must hold this text; with `BRINDLE_GENERATE=1` it is made to.
#[track_caller]
pub(crate) fn generated(path: &str, text: &str) {
    let there = fs::read_to_string(repo(path)).unwrap_or_default();
    if there == text {
        return;
    }
    if std::env::var_os("BRINDLE_GENERATE").is_some() {
        let file = repo(path);
        fs::create_dir_all(file.parent().expect("a file has a folder")).expect("folder");
        fs::write(file, text).unwrap_or_else(|e| panic!("{path}: {e}"));
        println!("written: {path}");
        return;
    }
    let line = there.lines().zip(text.lines()).take_while(|(a, b)| a == b).count();
    panic!(
        "{path} is stale from line {}: found {:?}, expected {:?}; run: cargo xtask generate",
        line + 1,
        there.lines().nth(line),
        text.lines().nth(line)
    );
}

/// The documents of a YAML text.
#[track_caller]
pub(crate) fn documents(name: &str, text: &str) -> Vec<Value> {
    text.split("\n---\n")
        .map(|part| part.trim_start_matches("---\n"))
        .filter(|part| part.lines().any(|l| !l.trim_start().starts_with('#') && !l.trim().is_empty()))
        .map(|part| serde_saphyr::from_str(part).unwrap_or_else(|e| panic!("{name}: {e}\n{part}")))
        .collect()
}

/// Files of a folder with this ending, sorted, as paths from the top of the repository.
pub(crate) fn files(folder: &str, ending: &str) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(repo(folder)).unwrap_or_else(|e| panic!("{folder}: {e}")) {
        let name = entry.expect("entry").file_name().to_string_lossy().into_owned();
        if name.ends_with(ending) {
            all.push(format!("{folder}/{name}"));
        }
    }
    all.sort();
    all
}
