//! `brindlectl`: the operator's command, and the lab. Arguments are read in two stages (style of a compiler front
//! end): `args` is what was typed, `meaning` is what it asks for; `cmd` and `lab` do it and answer with an
//! [`Outcome`], which decides the exit code: 0 all is well, 1 it works but something is degraded, 2 error.
#![deny(clippy::print_stderr, reason = "it ends the program where nobody reads; out::remark does not")]

mod args;
mod cluster;
mod cmd;
mod early;
mod lab;
mod meaning;
mod out;

use std::{ffi::OsString, process::ExitCode};

/// How a command ended; an `Err` beside it is exit code 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Ok,
    Degraded,
    /// The exit code of the command that `lab exec` ran.
    Code(u8),
}

/// Whether the whole line is `brindlectl version`, what scripts ask most. Answered before clap has built the tree of all
/// commands, which is most of what such a start costs.
fn asks_version(mut typed: impl Iterator<Item = OsString>) -> bool {
    typed.next().is_some_and(|w| w == "version" || w == "--version" || w == "-V") && typed.next().is_none()
}

/// The whole program: arguments, environment and standard output are the process's.
#[must_use]
pub fn main() -> ExitCode {
    if asks_version(std::env::args_os().skip(1)) {
        cmd::version::ours(args::Format::Table);
        return written(ExitCode::SUCCESS);
    }
    let typed = early::arrange(std::env::args_os().collect());
    let args = match brindle_admin::arguments::try_parse_from::<args::Args>(typed) {
        Ok(args) => args,
        Err(mut error) => {
            early::explain(&mut error);
            error.exit()
        }
    };
    let output =
        if args.output == cmd::resource::form::Form::Json { args::Format::Json } else { args::Format::Table };
    let code = written(match meaning::understand(args).and_then(cmd::run) {
        Ok(Outcome::Ok) => ExitCode::SUCCESS,
        Ok(Outcome::Degraded) => ExitCode::from(1),
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        Err(error) => {
            out::error(output, &error);
            ExitCode::from(2)
        }
    });
    brindle_config::SqliteStore::close_all();
    code
}

/// An answer that is cut off must not pass for a whole one, such as a backup on a full disk.
fn written(code: ExitCode) -> ExitCode {
    match out::unwritten() {
        None => code,
        Some(e) => {
            out::note(&format!("cannot write the answer: {e}; what is there is not all of it"));
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bare_question_is_answered_early() {
        let asks = |line: &str| asks_version(line.split_whitespace().map(OsString::from));
        for line in ["version", "--version", "-V"] {
            assert!(asks(line), "{line}");
        }
        for line in ["", "version --all", "version -o json", "version --help", "-o json version", "status"] {
            assert!(!asks(line), "{line}");
        }
    }
}
