//! What is generated from the command line: the reference page must be the one of this program (`cargo xtask generate`
//! writes it), completion scripts and man pages must be usable.

use std::{path::Path, process::Command};

fn run(args: &[&str]) -> String {
    let mut c = Command::new(env!("CARGO_BIN_EXE_brindlectl"));
    let out = c.args(args).env_clear().env("PATH", "/usr/bin:/bin").output().unwrap();
    assert!(out.status.success(), "{args:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn the_reference_is_that_of_this_program() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/brindlectl.md");
    let text = run(&["reference"]);
    if std::env::var_os("BRINDLE_GENERATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let line = there.lines().zip(text.lines()).take_while(|(a, b)| a == b).count();
    assert!(
        there == text,
        "docs/reference/brindlectl.md is stale from line {}: expected {:?}; run: cargo xtask generate",
        line + 1,
        text.lines().nth(line)
    );
}

#[test]
fn completion_scripts_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completion", shell]);
        for word in ["status", "route", "datastore", "kernel-config"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let dir = std::env::temp_dir().join(format!("brindlectl-complete-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let script = dir.join("brindlectl.bash");
    std::fs::write(&script, run(&["completion", "bash"])).unwrap();
    // What a person gets who types `brindlectl rou` and the tab key.
    let ask = format!(
        "source {}; COMP_WORDS=(brindlectl rou); COMP_CWORD=1; _brindlectl brindlectl rou brindlectl; \
         echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let out = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "route", "{out:?}");
}

#[test]
fn every_command_has_a_man_page() {
    let page = run(&["man", "ipam", "show"]);
    assert!(page.contains(".TH brindlectl-ipam-show 1"), "{page}");
    assert!(page.contains("show\\-borrowed"), "{page}");
    let dir = std::env::temp_dir().join(format!("brindlectl-man-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    run(&["man", "--dir", dir.to_str().unwrap()]);
    let mut names: Vec<String> =
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    std::fs::remove_dir_all(&dir).unwrap();
    for name in ["brindlectl.1", "brindlectl-get.1", "brindlectl-datastore-migrate-lock.1"] {
        assert!(names.iter().any(|n| n == name), "{name}: {names:?}");
    }
    assert!(!names.iter().any(|n| n.contains("reference") || n.contains("help")), "{names:?}");
}
