//! The steps of `test`, `lab` and `bench`, each a command line a person could type.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Instant, SystemTime},
};

use anyhow::{Context, Result, bail};

use crate::{image, layers, named_tests, setup};

/// Where property tests begin: the same commit gives the same run. `test explore` begins elsewhere each time.
const SEED: &str = "4271";
const SEED_NAME: &str = "PROPTEST_RNG_SEED";

/// Runs a command line with inherited output; an error names it.
pub(crate) fn sh(program: &str, args: &[&str]) -> Result<()> {
    println!("+ {program} {}", args.join(" "));
    let mut command = Command::new(program);
    if std::env::var_os(SEED_NAME).is_none() {
        command.env(SEED_NAME, SEED);
    }
    let status = command.args(args).status().with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("`{program} {}` failed ({status})", args.join(" "));
    }
    Ok(())
}

fn cargo(args: &str) -> Result<()> {
    sh("cargo", &args.split_whitespace().collect::<Vec<_>>())
}

type Step = (&'static str, fn() -> Result<()>);

/// In the order in which a failure is cheapest to learn of.
const STEPS: [Step; 13] = [
    ("fmt", || cargo("fmt --all -- --check")),
    ("layers", layers::check),
    ("named", || named_tests::check(Path::new("."))),
    ("clippy", || {
        cargo("clippy --workspace --lib --bins -- -D warnings -D clippy::unwrap_used")?;
        cargo("clippy --workspace --all-targets -- -D warnings")
    }),
    ("unit", unit),
    ("integration", integration),
    ("policy", policy),
    ("image", image),
    ("oracles", oracles),
    ("doc", || cargo("test --workspace --doc")),
    ("deny", deny),
    // That they fit the code; whoever fuzzes builds them with instruments of their own.
    ("fuzz", || cargo("check --manifest-path fuzz/Cargo.toml")),
    // That they build, not how fast they are: the development profile has all they need already.
    ("bench", || cargo("bench --workspace --no-run --profile dev")),
];

/// Parts of the steps above, and what else runs only when it is named.
const PARTS: [Step; 4] = [
    ("explore", explore),
    ("cli", || {
        build()?;
        cargo(
            "test --package brindle-ctl --lib --test calicoctl --test generated --test ipam --test policy_trace --test resource",
        )?;
        cargo(
            "test --workspace --test cli_agents --test cli_cluster --test cli_goldens --test cli_stores --test cli_troubles -- \
             --test-threads=1",
        )
    }),
    ("kube", || {
        build()?;
        cargo("test --workspace --test deploy")?;
        // Which server each ran against is printed.
        cargo(
            "test --workspace --test kube_apiserver --test kube_manifests --test kube_node --test kube_rbac \
             --test kube_start --test kube_store --test controllers -- --test-threads=1 --nocapture",
        )
    }),
    ("etcd", || {
        build()?;
        cargo("test --workspace --test etcd --test etcd_node -- --test-threads=1 --nocapture")
    }),
];

/// `cargo xtask test [STEP..]`.
pub(crate) fn test(names: &[String]) -> Result<ExitCode> {
    for n in names {
        if !STEPS.iter().chain(&PARTS).any(|s| s.0 == n) {
            bail!(
                "no step {n:?}; there are: {} {}",
                STEPS.map(|s| s.0).join(" "),
                PARTS.map(|s| s.0).join(" ")
            );
        }
    }
    if !is_root() {
        bail!("the tests make network namespaces: run as root");
    }
    setup::install(&[&setup::LAB, &setup::TESTS, &setup::IMAGE])?;
    let mut failed = Vec::new();
    let mut table = Vec::new();
    for (part, (name, run)) in
        STEPS.into_iter().map(|s| (false, s)).chain(PARTS.into_iter().map(|s| (true, s)))
    {
        let named = names.iter().any(|n| n == name);
        if !named && (part || !names.is_empty()) {
            continue;
        }
        println!("\n== {name}");
        let start = Instant::now();
        let result = run();
        let verdict = match &result {
            Ok(()) => "ok".to_owned(),
            Err(e) => format!("FAILED: {e:#}"),
        };
        table.push(format!("{name:<12} {:>7.1} s  {verdict}", start.elapsed().as_secs_f64()));
        if result.is_err() {
            failed.push(name);
        }
    }
    println!("\n{}", table.join("\n"));
    println!("steps: {} passed, {} failed", table.len() - failed.len(), failed.len());
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything that tests and scenarios run, in one build: naming packages or leaving out tests would choose other
/// features of the dependencies and compile them again.
pub(crate) fn build() -> Result<()> {
    cargo("build --workspace --all-targets")
}

/// Test targets in `folder`, by name.
fn targets(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let main = if path.is_dir() { path.join("main.rs") } else { path.clone() };
        if let Some(stem) = path.file_stem().and_then(|s| s.to_str())
            && main.exists()
            && main.extension().is_some_and(|e| e == "rs")
        {
            names.insert(stem.to_owned());
        }
    }
    Ok(names)
}

/// All tests but those of integration/.
fn unit() -> Result<()> {
    build()?;
    let args = unit_tests()?;
    sh("cargo", &args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The property tests with sixteen times the cases, from a place that depends on the time and is printed.
fn explore() -> Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed = format!("{SEED_NAME}={}", now.as_secs());
    let args = unit_tests()?;
    let tests = args.iter().map(String::as_str);
    sh("env", &[seed.as_str(), "PROPTEST_CASES=4096", "cargo"].into_iter().chain(tests).collect::<Vec<_>>())
}

/// Arguments of `cargo` for all tests but those of integration/.
fn unit_tests() -> Result<Vec<String>> {
    let mut args = ["test", "--workspace", "--lib", "--bins", "--no-fail-fast"].map(str::to_owned).to_vec();
    let scenarios = targets(Path::new(SCENARIOS))?;
    for folder in packages()? {
        let tests = folder.join("tests");
        if tests.is_dir() && tests != Path::new(SCENARIOS) {
            let names = targets(&tests)?;
            if let Some(name) = names.intersection(&scenarios).next() {
                bail!("{}/{name} has the name of a scenario in {SCENARIOS}", tests.display());
            }
            args.extend(names.into_iter().flat_map(|n| ["--test".to_owned(), n]));
        }
    }
    Ok(args)
}

const SCENARIOS: &str = "integration/tests";

/// Scenario tests run the real binaries; one test at a time, as each brings up nodes.
fn integration() -> Result<()> {
    build()?;
    let mut args = ["test", "--workspace", "--no-fail-fast"].map(str::to_owned).to_vec();
    args.extend(targets(Path::new(SCENARIOS))?.into_iter().flat_map(|n| ["--test".to_owned(), n]));
    args.extend(["--", "--test-threads=1"].map(str::to_owned));
    sh("cargo", &args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// `cargo xtask generate`: the test that fails when one of these files is stale writes them instead.
pub(crate) fn generate() -> Result<ExitCode> {
    let test = "cargo test --workspace --test deploy --test generated -- --test-threads=1 --nocapture";
    sh("env", &["BRINDLE_GENERATE=1"].into_iter().chain(test.split_whitespace()).collect::<Vec<_>>())?;
    Ok(ExitCode::SUCCESS)
}

/// Network policy under real packets; a sample of the generated policy sets unless more are asked for. Somebody else
/// holds the lock of iptables longer here than among the other tests.
fn policy() -> Result<()> {
    build()?;
    let lock = "BRINDLE_LOCK_SECONDS=20 cargo test --workspace --test policy_contract a_held_lock";
    sh("env", &lock.split_whitespace().collect::<Vec<_>>())?;
    let bin = target()?.join("debug/policy-conformance");
    let bin = bin.to_string_lossy();
    sh(&bin, &["--check", "docs/conformance.md"])?;
    let sets = std::env::var("BRINDLE_POLICY_SETS").unwrap_or_else(|_| "40".into());
    sh(&bin, &["--generated", &sets])
}

/// Other people's BGP decoders beside ours: a workspace of its own, since one of them is GPL-3.0.
fn oracles() -> Result<()> {
    build()?;
    let target = target()?;
    let program = format!("BRINDLE_BGPD={}", target.join("debug/brindle-bgpd").display());
    let folder = target.join("oracles").display().to_string();
    let args = ["cargo", "test", "--locked", "--manifest-path", "integration/oracles/Cargo.toml"];
    sh("env", &[&[program.as_str()], &args[..], &["--target-dir", &folder]].concat())
}

fn deny() -> Result<()> {
    if !setup::have("cargo-deny") && !home_has("cargo-deny") {
        println!("cargo-deny is missing: licences, duplicate versions and sources are checked with it");
        cargo("install cargo-deny --version 0.20.2 --locked --quiet")?;
    }
    cargo("deny --all-features check licenses bans sources")
}

fn home_has(program: &str) -> bool {
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|h| format!("{h}/.cargo")));
    home.is_ok_and(|h| setup::have(&format!("{h}/bin/{program}")))
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

/// `cargo xtask lab [ARGS]`.
pub(crate) fn lab(args: &[String]) -> Result<ExitCode> {
    if !is_root() {
        bail!("the lab makes network namespaces: run as root");
    }
    setup::install(&[&setup::LAB])?;
    cargo(
        "build --release --workspace --bins --exclude brindle-integration --exclude xtask --exclude brindle-all",
    )?;
    let bin = target()?.join("release/brindlectl");
    println!("+ {} lab up {}", bin.display(), args.join(" "));
    let status = Command::new(&bin).args(["lab", "up"]).args(args).status()?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(2)).unwrap_or(2)))
}

/// As it is shipped. Where its programs cannot be linked statically it is made of those the tests have built, which is said
/// aloud: then its size is not judged.
fn image() -> Result<()> {
    if let Err(why) = image::target() {
        println!("THE IMAGE IS NOT BUILT AS IT IS SHIPPED, but of the programs of the tests: {why:#}");
        return image::build(&["--debug".to_owned()]);
    }
    image::build(&[])
}

/// The benchmarks, each a binary of the integration package.
const BENCHES: [&str; 10] =
    ["ipam", "routes", "cni", "carrier", "policy", "lab", "bgp", "etcd", "kube", "cli"];

/// `cargo xtask bench [NAME..] [-- ARGUMENT..]`; the arguments go to the benchmarks named. `bench mrt FILE` is `bench bgp`
/// with the routes of a file, ours beside BIRD.
pub(crate) fn bench(words: &[String]) -> Result<ExitCode> {
    let mrt: Vec<String>;
    let words = match words {
        [name, file, more @ ..] if name == "mrt" => {
            let args = ["bgp", "--", "--mrt", file, "brindle", "bird"].map(str::to_owned);
            mrt = args.into_iter().chain(more.iter().filter(|w| *w != "--").cloned()).collect();
            &mrt[..]
        }
        [name] if name == "mrt" => bail!("bench mrt FILE: an MRT file, plain, gzip or bzip2"),
        other => other,
    };
    let mut parts = words.splitn(2, |w| w == "--");
    let (names, args) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if !is_root() {
        bail!("the benchmarks make network namespaces: run as root");
    }
    for n in names {
        if !BENCHES.contains(&n.as_str()) {
            bail!("no benchmark {n:?}; there are: {}", BENCHES.join(" "));
        }
    }
    setup::install(&[&setup::LAB, &setup::TESTS])?;
    cargo("build --release --workspace --bins --exclude brindle-all")?;
    for name in BENCHES {
        if names.is_empty() || names.iter().any(|n| n == name) {
            println!("\n== {name}");
            if name == "ipam" {
                ipam()?;
            }
            let bin = target()?.join(format!("release/bench-{name}"));
            let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
            let plugin =
                if name == "cni" { crate::image::plugin()?.display().to_string() } else { String::new() };
            if !plugin.is_empty() {
                args.extend(["--plugin", &plugin]);
            }
            sh(&bin.to_string_lossy(), &args)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// No peer to pair with: the algebra alone, then a million operations of fifty writers.
fn ipam() -> Result<()> {
    cargo("bench -p brindle-ipam --bench algebra")?;
    let args =
        ["BRINDLE_IPAM_OPS=1000000", "cargo", "test", "--release", "-p", "brindle-ipam", "--test", "model"];
    sh("env", &[&args[..], &["storm::", "--", "--nocapture"]].concat())
}

fn metadata() -> Result<serde_json::Value> {
    let out = Command::new("cargo").args(["metadata", "--no-deps", "--format-version", "1"]).output()?;
    serde_json::from_slice(&out.stdout).context("cargo metadata")
}

/// The folders of the workspace's packages, from its root.
fn packages() -> Result<Vec<PathBuf>> {
    let meta = metadata()?;
    let root = meta["workspace_root"].as_str().context("cargo metadata names no workspace_root")?;
    let manifests = meta["packages"].as_array().context("cargo metadata names no packages")?;
    let folder = |p: &serde_json::Value| {
        let manifest = Path::new(p["manifest_path"].as_str()?);
        Some(manifest.parent()?.strip_prefix(root).ok()?.to_owned())
    };
    Ok(manifests.iter().filter_map(folder).collect())
}

/// Cargo's target folder, wherever the user put it.
pub(crate) fn target() -> Result<PathBuf> {
    Ok(metadata()?["target_directory"].as_str().context("cargo metadata names no target_directory")?.into())
}
