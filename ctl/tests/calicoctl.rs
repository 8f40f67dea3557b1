//! docs/calicoctl.md says what of calicoctl's command line is there; this holds it against the binary's help.

use std::process::Command;

fn help(command: &str) -> Option<String> {
    let mut c = Command::new(env!("CARGO_BIN_EXE_brindlectl"));
    let out = c.args(command.split(' ')).arg("--help").output().unwrap();
    out.status.success().then(|| String::from_utf8(out.stdout).unwrap())
}

#[test]
fn the_table_says_what_the_binary_does() {
    let table = include_str!("../../docs/calicoctl.md");
    let mut rows = 0;
    for line in table.lines().filter(|l| l.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [command, flags, status, _] = cells.as_slice() else { continue };
        if *command == "command" || command.starts_with('-') {
            continue;
        }
        rows += 1;
        let help = help(command);
        match *status {
            "yes" => {
                let help = help.unwrap_or_else(|| panic!("{command}: the table says yes, the binary no"));
                for flag in flags.split(',').map(str::trim).filter(|f| !f.is_empty()) {
                    assert!(help.contains(flag), "{command} {flag}: the table says yes, the help no");
                }
            }
            "no" => assert!(help.is_none(), "{command} exists, and the table says no"),
            other => panic!("{line}: {other:?} is neither yes nor no"),
        }
    }
    assert!(rows > 30, "{rows}");
}
