//! The binaries under test: those that cargo built beside the running executable, so that a test never meets an
//! older or an installed one.

use std::path::{Path, PathBuf};

/// The folder that holds `name`: the running executable's, or for tests (`target/debug/deps/…`) the one above.
fn dirs() -> Vec<PathBuf> {
    let exe = std::env::current_exe().expect("a process knows its own executable");
    exe.ancestors().skip(1).take(2).map(Path::to_owned).collect()
}

/// The path of one of our binaries. Panics, with what to do, when it was not built.
pub fn bin(name: &str) -> PathBuf {
    let tried = dirs();
    tried.iter().map(|d| d.join(name)).find(|p| p.is_file()).unwrap_or_else(|| {
        let tried: Vec<_> = tried.iter().map(|d| d.display().to_string()).collect();
        panic!("{name} is in none of {}; build it first: cargo build --workspace", tried.join(", "))
    })
}

/// The folder of the binaries.
pub fn dir() -> PathBuf {
    bin("brindlectl").parent().expect("a file has a folder").to_owned()
}
