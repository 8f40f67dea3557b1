//! `lab exec`: a command in the network namespace of a node, a pod, the router or the fabric.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::{build, state::LabDir};
use crate::{Outcome, args::Format, out};

/// Runs `argv` in the namespace of `target` and passes on its exit code. With `-o json` its output is captured.
pub(crate) fn exec(name: &str, target: &str, argv: &[String], format: Format) -> Result<Outcome> {
    super::need_root()?;
    let dir = LabDir::of(name)?;
    let state = dir.load_existing()?;
    let Some(namespace) = state.plan.namespace_of(target) else {
        bail!(
            "there is no node and no pod {target:?} in lab {name:?}; see: brindlectl lab status --name {name}"
        );
    };
    let (program, args) = argv.split_first().context("no command given")?;
    let mut command = Command::new(program);
    command.args(args);
    if state.plan.node(target).is_some() {
        // So that `brindlectl status` inside asks this node's agent.
        command.env("BRINDLE_ADMIN_SOCKET", dir.admin_socket(target));
        command.env("NODENAME", target);
        // So that it finds the others, too.
        command.env("BRINDLE_DATASTORE", dir.store_url());
        command.env("BRINDLE_ADMIN_TOKEN_FILE", dir.admin_token());
    }
    let start = |e: &std::io::Error| format!("cannot run {program:?} in {target}: {e}");
    let ns = build::open(namespace)?;
    let status = match format {
        Format::Table => ns.run(move || command.status())?.map_err(|e| anyhow::anyhow!(start(&e)))?,
        Format::Json => {
            let out = ns
                .run(move || command.stdin(Stdio::null()).output())?
                .map_err(|e| anyhow::anyhow!(start(&e)))?;
            out::json(&json!({
                "target": target,
                "code": out.status.code(),
                "stdout": String::from_utf8_lossy(&out.stdout),
                "stderr": String::from_utf8_lossy(&out.stderr),
            }));
            out.status
        }
    };
    Ok(Outcome::Code(code(status)))
}

/// As a shell has it: a signal is 128 and its number.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s));
    code.and_then(|c| u8::try_from(c).ok()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_told_as_a_shell_tells_it() {
        let run = |script: &str| code(Command::new("sh").args(["-c", script]).status().expect("sh starts"));
        assert_eq!((run("exit 7"), run("kill -9 $$"), run("kill -15 $$")), (7, 137, 143));
    }
}
