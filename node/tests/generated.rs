//! docs/reference/brindle-node.md holds the agent's own help; `cargo xtask generate` writes it.

use std::{path::Path, process::Command};

fn help(args: &[&str]) -> String {
    let mut c = Command::new(env!("CARGO_BIN_EXE_brindle-node"));
    // Values of the environment would stand in the help.
    let out = c.args(args).arg("--help").env_clear().env("COLUMNS", "100").output().unwrap();
    assert!(out.status.success(), "{args:?}: {out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines().map(|l| l.trim_end().to_owned() + "\n").collect::<String>()
}

#[test]
fn the_reference_is_that_of_this_program() {
    let mut text = String::from(
        "<!-- Generated from the program's help by `cargo xtask generate`; do not edit. -->\n# brindle-node\n",
    );
    for command in ["run", "install-cni", "remove"] {
        text += &format!("\n## brindle-node {command}\n\n```\n{}```\n", help(&[command]));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/brindle-node.md");
    if std::env::var_os("BRINDLE_GENERATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let line = there.lines().zip(text.lines()).take_while(|(a, b)| a == b).count();
    assert!(
        there == text,
        "docs/reference/brindle-node.md is stale from line {}: expected {:?}; run: cargo xtask generate",
        line + 1,
        text.lines().nth(line)
    );
}
