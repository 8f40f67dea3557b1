//! `brindlectl`: the operator's command, and the lab. Arguments are read in two stages (style of a compiler front
//! end): `args` is what was typed, `meaning` is what it asks for; `cmd` and `lab` do it and answer with an
//! [`Outcome`], which decides the exit code: 0 all is well, 1 it works but something is degraded, 2 error.

mod args;
mod cluster;
mod cmd;
mod lab;
mod meaning;
mod out;

use std::process::ExitCode;

use clap::Parser as _;

/// How a command ended; an `Err` beside it is exit code 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Ok,
    Degraded,
    /// The exit code of the command that `lab exec` ran.
    Code(u8),
}

fn main() -> ExitCode {
    let args = args::Args::parse();
    let output =
        if args.output == cmd::resource::form::Form::Json { args::Format::Json } else { args::Format::Table };
    match meaning::understand(args).and_then(cmd::run) {
        Ok(Outcome::Ok) => ExitCode::SUCCESS,
        Ok(Outcome::Degraded) => ExitCode::from(1),
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        Err(error) => {
            out::error(output, &error);
            ExitCode::from(2)
        }
    }
}
