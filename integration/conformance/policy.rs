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
    lab::{self, BackEnd},
    sample::{self, Sampled},
    suite::{self, Case, Foretold, Outcome},
    table,
};

const HELP: &str = "\
policy-conformance [OPTION..]

  --generated N   so many policy sets of the generator beside the cases written by hand (40)
  --sampled N     so many pairs of the differential test's policy sets and packets (500)
  --seed S        where the generator starts (1)
  --back-end B    iptables-legacy, iptables-nft or nftables; may be repeated (all)
  --case TEXT     only cases whose group or name contains it
  --write FILE    keep the table in FILE
  --check FILE    only compare the cases in FILE, and the packets expected of those written by hand, with what
                  there is; no root needed";

struct Args {
    generated: u64,
    sampled: usize,
    seed: u64,
    back_ends: Vec<BackEnd>,
    only: Option<String>,
    write: Option<PathBuf>,
    check: Option<PathBuf>,
}

fn args() -> Result<Option<Args>> {
    let mut a = Args {
        generated: 40,
        sampled: 500,
        seed: 1,
        back_ends: Vec::new(),
        only: None,
        write: None,
        check: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--generated" => a.generated = value()?.parse().context("--generated: expected a number")?,
            "--sampled" => a.sampled = value()?.parse().context("--sampled: expected a number")?,
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
    let Some(mut args) = args()? else {
        println!("{HELP}");
        return Ok(true);
    };
    let mut all = cases::all();
    if let Some(file) = &args.check {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let sites = lab::sites();
        let attempts = lab::attempts(&sites);
        let differences = table::stale(&text, &all, |case| suite::count(case, &sites, &attempts));
        differences.iter().for_each(|d| println!("{}: {d}", file.display()));
        if !differences.is_empty() {
            println!("{} is stale; as root: {}", file.display(), table::WRITE);
        }
        return Ok(differences.is_empty());
    }
    all.extend(suite::generated(args.seed, args.generated));
    if let Some(only) = &args.only {
        all.retain(|c| c.group.contains(only) || c.name.contains(only));
        if !table::SAMPLED.contains(only) {
            args.sampled = 0;
        }
        ensure!(!all.is_empty() || args.sampled > 0, "no case contains {only:?}");
    }
    ensure!(
        args.write.is_none() || args.only.is_none() && args.back_ends == BackEnd::ALL,
        "--write keeps a whole table: leave out --case and --back-end"
    );
    println!("{}", table::sctp());
    let start = Instant::now();
    let columns = if all.is_empty() { Vec::new() } else { everywhere(&args.back_ends, &all) };
    let sampled = if args.sampled > 0 { samples(&args) } else { Vec::new() };
    let table = table::Table {
        cases: &all,
        columns: &columns,
        back_ends: &args.back_ends,
        sampled: &sampled,
        seed: args.seed,
    };
    print!("{}", table.text());
    println!("{} cases with {} back ends in {:.0?}", all.len(), args.back_ends.len(), start.elapsed());
    let good = columns.iter().flat_map(|(_, o)| o).all(|o| o.wrong.is_empty())
        && sampled.iter().all(|s| s.wrong.is_empty());
    if let (Some(file), true) = (&args.write, good) {
        std::fs::write(file, table.markdown()).with_context(|| file.display().to_string())?;
        println!("{} written", file.display());
    }
    Ok(good)
}

/// The sample with each back end, by one thread each.
fn samples(args: &Args) -> Vec<Sampled> {
    std::thread::scope(|s| {
        let one = |b: BackEnd| move || (b, sample::run(b, args.seed, args.sampled));
        let threads: Vec<_> = args.back_ends.iter().map(|b| s.spawn(one(*b))).collect();
        let told = |(b, sampled): (BackEnd, Sampled)| {
            let Sampled { pairs, sets, allowed, wrong, took } = &sampled;
            println!("{}: {pairs} pairs of {sets} policy sets, {allowed} allowed, in {took:.0?}", b.name());
            wrong.iter().take(10).for_each(|w| println!("{}: {w}", b.name()));
            sampled
        };
        threads.into_iter().map(|t| told(t.join().expect("a lab does not panic"))).collect()
    })
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
