//! `brindle-node`: the agent of one node, as a program that `src/main.rs` and the image's one program begin. This file
//! only turns arguments into [`settings::Settings`] and a result into an exit code: 0 ended as asked, 1 failed while
//! running, 2 could not start as configured.
#![deny(clippy::print_stderr, reason = "it ends the program where nobody reads; aside::say does not")]

mod addresses;
mod admin;
mod admin_tcp;
mod autodetect;
mod beside;
mod calico;
mod calico_status;
mod cluster;
mod cni_server;
mod condition;
mod defaults;
mod drain;
mod felix_env;
mod health;
mod identity;
mod install_cni;
mod local_socket;
mod lock;
mod metrics;
mod path;
mod policy;
mod probe;
mod remove;
mod run;
mod settings;
mod speaker;
mod state_files;
mod tasks;
mod tunnel_address;
mod waiting;

use std::process::ExitCode;

use brindle_admin::{arguments, aside};

/// The whole program: arguments, environment and standard output are the process's.
#[must_use]
pub fn main() -> ExitCode {
    let cli = arguments::parse::<settings::Cli>();
    let settings = match cli.command {
        settings::Command::InstallCni(args) => {
            return match install_cni::run(&args) {
                Ok(done) => {
                    done.iter().for_each(|line| aside::say(format_args!("brindle-node: {line}")));
                    ExitCode::SUCCESS
                }
                Err(e) => {
                    aside::say(format_args!("brindle-node: {e:#}"));
                    ExitCode::from(2)
                }
            };
        }
        settings::Command::Remove(args) => {
            return match remove::run(&args, |line| print(&format!("{line}\n"))) {
                Ok(all) => ExitCode::from(u8::from(!all)),
                Err(e) => {
                    aside::say(format_args!("brindle-node: {e:#}"));
                    ExitCode::from(2)
                }
            };
        }
        settings::Command::Probe(args) => {
            let (good, text) = probe::probe(&args);
            print(&text);
            return ExitCode::from(u8::from(!good));
        }
        settings::Command::Drain(args) => {
            return match probe::drain(&args) {
                Ok(done) => {
                    print(&format!("{done}\n"));
                    ExitCode::SUCCESS
                }
                Err(e) => {
                    aside::say(format_args!("brindle-node: {e:#}"));
                    ExitCode::from(1)
                }
            };
        }
        settings::Command::Run(args) => match settings::Settings::from_args(*args) {
            Ok(s) => s,
            Err(e) => {
                aside::say(format_args!("brindle-node: {e}"));
                return ExitCode::from(2);
            }
        },
    };
    let _flush = match settings.init_log() {
        Ok(flush) => flush,
        Err(e) => {
            aside::say(format_args!("brindle-node: {e}"));
            return ExitCode::from(2);
        }
    };
    match run::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(run::Failure::Setup(e)) => {
            tracing::error!("cannot start: {e:#}");
            ExitCode::from(2)
        }
        Err(run::Failure::Running(e)) => {
            tracing::error!("stopped: {e:#}");
            ExitCode::from(1)
        }
    }
}

/// To standard output; a reader that has gone is no failure.
fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
