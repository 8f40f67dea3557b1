//! `brindle-controllers`: arguments in, exit code out. 0 ended as asked; 1 something could not be done (`--once`) or the
//! run failed; 2 could not start as configured.

use std::process::ExitCode;

use brindle_controllers::{cli::Cli, run};
use clap::Parser as _;

fn main() -> ExitCode {
    let settings = match Cli::parse().settings() {
        Ok(settings) => settings,
        Err(e) => {
            eprintln!("brindle-controllers: {e:#}");
            return ExitCode::from(2);
        }
    };
    match run::main(settings) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            tracing::error!("cannot start: {e:#}");
            ExitCode::from(2)
        }
    }
}
