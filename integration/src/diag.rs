//! What to show when a test fails: everything a person would look at next.

use std::{fs, path::Path, process::Command};

use crate::netns;

/// Prints the tail of every log below a lab's directory, and the routes of its nodes.
pub fn lab(name: &str) {
    let dir = Path::new("/run/brindle-lab").join(name);
    eprintln!("---- lab {name} at the time of the failure");
    for node in fs::read_dir(dir.join("nodes")).into_iter().flatten().flatten() {
        let log = node.path().join("agent.log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        eprintln!("-- {} (last 15 of {} lines)", log.display(), lines.len());
        for line in lines.iter().skip(lines.len().saturating_sub(15)) {
            eprintln!("   {line}");
        }
    }
    for ns in netns::with_prefix(&format!("{name}-node")) {
        eprintln!("-- ip route in {ns}");
        let out = Command::new("ip").args(["netns", "exec", &ns, "ip", "route"]).output();
        if let Ok(out) = out {
            eprintln!("{}", String::from_utf8_lossy(&out.stdout));
        }
    }
}
