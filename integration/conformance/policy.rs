//! `policy-conformance`: network policy under real packets, a row per case, a column per back end. Needs root.
#![allow(clippy::print_stdout, reason = "the table is the product")]

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use brindle_integration::policy::{
    cases,
    lab::BackEnd,
    suite::{self, Case, Foretold, Outcome},
    table,
};

const HELP: &str = "\
policy-conformance [OPTION..]

  --generated N   so many policy sets of the generator beside the cases written by hand (40)
  --seed S        where the generator starts (1)
  --back-end B    iptables-legacy, iptables-nft or nftables; may be repeated (all)
  --case TEXT     only cases whose group or name contains it
  --write FILE    keep the table in FILE
  --check FILE    only compare the list of cases in FILE with the cases there are; no root needed";

struct Args {
    generated: u64,
    seed: u64,
    back_ends: Vec<BackEnd>,
    only: Option<String>,
    write: Option<PathBuf>,
    check: Option<PathBuf>,
}

fn args() -> Result<Option<Args>> {
    let mut a = Args { generated: 40, seed: 1, back_ends: Vec::new(), only: None, write: None, check: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--generated" => a.generated = value()?.parse().context("--generated: expected a number")?,
            "--seed" => a.seed = value()?.parse().context("--seed: expected a number")?,
            "--back-end" => {
                let name = value()?;
                let b = BackEnd::ALL.into_iter().find(|b| b.name() == name);
                a.back_ends.push(b.with_context(|| format!("no back end {name:?}"))?);
            }
            "--case" => a.only = Some(value()?),
            "--write" => a.write = Some(value()?.into()),
            "--check" => a.check = Some(value()?.into()),
            "--help" | "-h" => return Ok(None),
            _ => bail!("unknown argument {word}\n{HELP}"),
        }
    }
    if a.back_ends.is_empty() {
        a.back_ends = BackEnd::ALL.into();
    }
    Ok(Some(a))
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("policy-conformance: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let Some(args) = args()? else {
        println!("{HELP}");
        return Ok(true);
    };
    let mut all = cases::all();
    if let Some(file) = &args.check {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let differences = table::stale(&text, &all);
        differences.iter().for_each(|d| println!("{}: {d}", file.display()));
        return Ok(differences.is_empty());
    }
    all.extend(suite::generated(args.seed, args.generated));
    if let Some(only) = &args.only {
        all.retain(|c| c.group.contains(only) || c.name.contains(only));
        ensure!(!all.is_empty(), "no case contains {only:?}");
    }
    ensure!(
        args.write.is_none() || args.only.is_none() && args.back_ends == BackEnd::ALL,
        "--write keeps a whole table: leave out --case and --back-end"
    );
    println!("{}", table::sctp());
    let start = Instant::now();
    let columns = everywhere(&args.back_ends, &all);
    let table = table::Table { cases: &all, columns: &columns, seed: args.seed };
    print!("{}", table.text());
    println!("{} cases with {} back ends in {:.0?}", all.len(), columns.len(), start.elapsed());
    let good = columns.iter().flat_map(|(_, o)| o).all(|o| o.wrong.is_empty());
    if let (Some(file), true) = (&args.write, good) {
        std::fs::write(file, table.markdown()).with_context(|| file.display().to_string())?;
        println!("{} written", file.display());
    }
    Ok(good)
}

/// One thread per back end: each spends most of its time waiting for packets that must not come.
fn everywhere(back_ends: &[BackEnd], cases: &[Case]) -> Vec<(BackEnd, Vec<Outcome>)> {
    let foretold = Mutex::new(Foretold::new());
    std::thread::scope(|s| {
        let threads: Vec<_> = back_ends
            .iter()
            .map(|&b| {
                let foretold = &foretold;
                s.spawn(move || {
                    let tell = |c: &Case, o: &Outcome| {
                        if o.took > Duration::from_secs(30) {
                            println!("{}: {}/{} took {:.0?}", b.name(), c.group, c.name, o.took);
                        }
                        for w in o.wrong.iter().take(10) {
                            println!("{}: {}/{}: {w}", b.name(), c.group, c.name);
                        }
                        if o.wrong.len() > 10 {
                            println!("{}: {}/{}: and {} more", b.name(), c.group, c.name, o.wrong.len() - 10);
                        }
                    };
                    (b, suite::run_all(b, cases, foretold, tell))
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("a lab does not panic")).collect()
    })
}
