//! `cargo xtask TASK`: what a person types in a clone. `lab` brings up a living cluster, `test` does all that CI
//! checks, `layers` proves the architecture's dependency rules, `bench` prints the measured figures.
#![expect(clippy::print_stdout, reason = "a task runner's product is its output")]

mod image;
mod layers;
mod named_tests;
mod setup;
mod steps;
mod unused;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
cargo xtask TASK

  lab [ARGS]     install what is missing, build in release, then `brindlectl lab up ARGS`
  test [STEP..]  everything CI checks; with names, only those steps:
                 fmt layers named clippy unit integration policy image oracles doc deny fuzz bench; cli, kube and
                 etcd are parts of unit and integration; explore is the property tests with many more cases, another
                 way each time
  layers         the dependency rules of ARCHITECTURE.md, that no dependency is listed in vain, and that the bans of the
                 pure packages bite
  bench [NAME..] build in release and run the paired benchmarks: ipam routes cni carrier policy lab bgp etcd kube cli
  image [--debug] build the container image FROM scratch and run every program in it; --debug: as the tests built them
  generate       write the files that are made from the model and the programs: definitions, chart, docs/reference
  bench mrt FILE the routes of an archive through brindle-bgpd and BIRD, in turn
  setup          only install what is missing";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode> {
    let root = setup::root()?;
    std::env::set_current_dir(&root)?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((task, rest)) = args.split_first() else {
        println!("{HELP}");
        return Ok(ExitCode::from(2));
    };
    match task.as_str() {
        "lab" => steps::lab(rest),
        "test" => steps::test(rest),
        "bench" => steps::bench(rest),
        "image" => image::build(rest).map(|()| ExitCode::SUCCESS),
        "generate" => steps::generate(),
        "layers" => layers::check().map(|()| ExitCode::SUCCESS),
        "setup" => setup::install(&[&setup::LAB, &setup::TESTS]).map(|()| ExitCode::SUCCESS),
        "help" | "-h" | "--help" => {
            println!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("unknown task {other:?}\n{HELP}"),
    }
}
