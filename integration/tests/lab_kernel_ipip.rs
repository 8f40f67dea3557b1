//! The lab in a kernel that has ipip (User-Mode Linux): the same proof with the kernel's tunnel instead of the
//! carrier, and one lab where both kinds of node talk to each other.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use brindle_integration::bins;
use serde_json::Value;

/// Runs a shell script in the guest, with `$CTL` as brindlectl; gives the JSON lines it printed.
fn in_guest(script: &str, files: &[&Path]) -> Vec<Value> {
    let runner = Path::new(env!("CARGO_MANIFEST_DIR")).join("uml/run");
    let mut command = Command::new(&runner);
    // User code is slow in there, and there is one CPU.
    command.args(["-t", "300", "-m", "1500M", "--", "bash", "-euc", script]);
    command.env("CTL", bins::bin("brindlectl")).env("BRINDLE_BIN_DIR", bins::dir()).stdin(Stdio::null());
    for (i, file) in files.iter().enumerate() {
        command.env(format!("FILE{i}"), file);
    }
    let out = command.output().unwrap_or_else(|e| panic!("{}: {e}", runner.display()));
    let stdout = String::from_utf8_lossy(&out.stdout);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}\n{stdout}\n{stderr}", out.status);
    stdout.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

fn result(lines: &[Value]) -> &Value {
    lines.iter().find(|l| l["event"] == "result").unwrap_or_else(|| panic!("no result in {lines:#?}"))
}

/// What each node says carries its tunnel, in order of the nodes.
fn devices(lines: &[Value]) -> Vec<String> {
    let status = lines.iter().find(|l| l["nodes"].is_array()).expect("lab status was printed");
    let nodes = status["nodes"].as_array().expect("checked").iter();
    nodes.map(|n| n["encap"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn the_lab_is_proved_with_the_kernels_own_tunnel() {
    let lines = in_guest(
        "\"$CTL\" -o json lab up --nodes 3 --pods-per-node 1\n\
         \"$CTL\" -o json lab status\n\
         \"$CTL\" -o json lab down\n",
        &[],
    );
    assert_eq!(result(&lines)["ok"], true, "{lines:#?}");
    assert_eq!(result(&lines)["proof"]["full"], 6);
    assert_eq!(devices(&lines), ["kernel", "kernel", "kernel"]);
}

#[test]
fn a_kernel_tunnel_and_the_carrier_talk_to_each_other() {
    let file: PathBuf = std::env::temp_dir().join(format!("bt-{}-both.yaml", std::process::id()));
    std::fs::write(
        &file,
        "pool: {ipipMode: Always}\n\
         segments: [{name: seg1}]\n\
         nodes:\n\
         - {name: node1, segment: seg1, pods: 1, ipipCarrier: kernel}\n\
         - {name: node2, segment: seg1, pods: 1, ipipCarrier: user}\n",
    )
    .expect("the temporary folder is writable");
    let lines =
        in_guest("\"$CTL\" -o json lab up --topology \"$FILE0\"\n\"$CTL\" -o json lab status\n", &[&file]);
    std::fs::remove_file(&file).expect("it was written above");
    assert_eq!(result(&lines)["ok"], true, "{lines:#?}");
    assert_eq!(devices(&lines), ["kernel", "carrier"]);
}

#[test]
fn the_scenario_script_passes() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("uml/lab-scenario");
    let out = Command::new(&script).arg(bins::dir()).stdin(Stdio::null()).output();
    let out = out.unwrap_or_else(|e| panic!("{}: {e}", script.display()));
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(
        out.status.success() && stdout.contains("lab scenario passed"),
        "{}\n{stdout}\n{stderr}",
        out.status
    );
}
