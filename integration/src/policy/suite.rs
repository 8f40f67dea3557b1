//! Runs cases: what the oracle foretells must be what packets do.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    lab::{BackEnd, PolicyLab, Site},
    oracle::{self, Flow, Spot, generate::Random},
    probe::Attempt,
    world::World,
};

/// Rounds a step may take: first packets may be lost while neighbours are looked up.
const ROUNDS: usize = 3;

/// One case: states of the store, one after the other.
#[derive(Clone, Debug)]
pub struct Case {
    pub group: &'static str,
    pub name: String,
    pub steps: Vec<World>,
    /// What a person says of the last step: from, to, probe, allowed. The oracle has to agree.
    pub said: Vec<(&'static str, &'static str, super::probe::Probe, bool)>,
}

/// What became of a case with one back end.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// First packets that were to arrive, and those that were not.
    pub allowed: usize,
    pub denied: usize,
    /// What went otherwise.
    pub wrong: Vec<String>,
    pub took: Duration,
}

/// What the oracle says of each attempt. `None`: not asked, since answers are a matter of other policy than the
/// question (untracked policy judges each packet by itself).
pub fn foretell(resources: &[Value], sites: &[Site], attempts: &[Attempt]) -> Vec<Option<bool>> {
    let threads = 2;
    let size = attempts.len().div_ceil(threads).max(1);
    let untracked = resources.iter().any(|r| r["spec"]["doNotTrack"] == true);
    let one = |a: &Attempt| {
        let flow = flow(sites, a);
        let answers = flow.protocol == 6;
        let outside = [&flow.from, &flow.to].iter().any(|s| matches!(s, Spot::Outside(true)));
        (!(untracked && answers && outside)).then(|| oracle::allowed(resources, &flow))
    };
    std::thread::scope(|s| {
        let parts: Vec<_> = attempts
            .chunks(size)
            .map(|part| s.spawn(move || part.iter().map(one).collect::<Vec<_>>()))
            .collect();
        parts.into_iter().flat_map(|p| p.join().expect("the oracle answers")).collect()
    })
}

/// How many first packets of a case are to arrive and how many not, as [`run`] counts them: no lab is needed.
pub fn count(case: &Case, sites: &[Site], attempts: &[Attempt]) -> (usize, usize) {
    let said: Vec<bool> = case.steps.iter().flat_map(|r| foretell(r, sites, attempts)).flatten().collect();
    let allowed = said.iter().filter(|s| **s).count();
    (allowed, said.len() - allowed)
}

/// The packet of an attempt as the oracle wants it.
fn flow(sites: &[Site], a: &Attempt) -> Flow {
    let (protocol, dst_port, icmp) = a.probe.header(a.dst.is_ipv6());
    let spot = |own: usize, other: usize| match sites[own].spot {
        // Which uplink is used is a matter of who is there.
        Spot::Host(_) => Spot::Host(matches!(sites[other].spot, Spot::Outside(true))),
        ref spot => spot.clone(),
    };
    Flow {
        src: a.src,
        dst: a.dst,
        protocol,
        src_port: if icmp.is_none() { 10_000 } else { 0 },
        dst_port,
        icmp,
        from: spot(a.from, a.to),
        to: spot(a.to, a.from),
    }
}

/// What was foretold, kept between back ends.
pub type Foretold = BTreeMap<(String, usize), Arc<Vec<Option<bool>>>>;

/// Runs one case.
pub fn run(lab: &mut PolicyLab, case: &Case, foretold: &Mutex<Foretold>) -> Outcome {
    let start = Instant::now();
    let all = lab.attempts();
    let mut out = Outcome { allowed: 0, denied: 0, wrong: Vec::new(), took: Duration::ZERO };
    for (n, resources) in case.steps.iter().enumerate() {
        let key = (format!("{}/{}", case.group, case.name), n);
        let known = foretold.lock().expect("nobody panics with it").get(&key).cloned();
        let said = known.unwrap_or_else(|| {
            let new = Arc::new(foretell(resources, &lab.sites, &all));
            foretold.lock().expect("nobody panics with it").insert(key, Arc::clone(&new));
            new
        });
        if n + 1 == case.steps.len() {
            for (from, to, probe, allowed) in &case.said {
                let ends = (lab.site(from), lab.site(to), *probe);
                let at = all.iter().position(|a| (a.from, a.to, a.probe) == ends);
                let at = at.expect("it is tried");
                if said[at] != Some(*allowed) {
                    let line = format!(
                        "{from} to {to}, {probe:?}: the oracle says {:?}, a person {allowed}",
                        said[at]
                    );
                    out.wrong.push(line);
                }
            }
        }
        let (attempts, wanted): (Vec<Attempt>, Vec<bool>) =
            all.iter().zip(said.iter()).filter_map(|(a, s)| Some((*a, (*s)?))).unzip();
        lab.set(resources);
        let mut wrong = Vec::new();
        for _ in 0..ROUNDS {
            let got = match lab.prober.round(&attempts, &wanted) {
                Ok(got) => got,
                Err(e) => {
                    wrong = vec![format!("packets cannot be sent: {e}")];
                    continue;
                }
            };
            wrong = attempts
                .iter()
                .zip(wanted.iter().zip(&got))
                .filter(|(_, (w, g))| w != g)
                .map(|(a, (w, _))| complain(&lab.sites, a, *w, n))
                .collect();
            if wrong.is_empty() {
                break;
            }
        }
        out.allowed += wanted.iter().filter(|w| **w).count();
        out.denied += wanted.iter().filter(|w| !**w).count();
        out.wrong.extend(wrong);
    }
    let repairs = lab.policy().repairs;
    if repairs > lab.repairs {
        // Nobody else is here: what was read back is not what was written.
        out.wrong.push(format!("{} repairs of what nobody had touched", repairs - lab.repairs));
        lab.repairs = repairs;
    }
    out.took = start.elapsed();
    out
}

fn complain(sites: &[Site], a: &Attempt, wanted: bool, step: usize) -> String {
    let (from, to) = (&sites[a.from].name, &sites[a.to].name);
    let must = if wanted { "must arrive and does not" } else { "arrives and must not" };
    format!("step {step}: {from} ({}) to {to} ({}), {:?}: {must}", a.src, a.dst, a.probe)
}

/// Policy sets of the generator of the differential test, as cases.
pub fn generated(seed: u64, count: u64) -> Vec<Case> {
    let one = |n: u64| Case {
        group: "generated",
        name: format!("seed {seed}, set {n}"),
        steps: vec![Random::new(seed.wrapping_mul(1_000_003).wrapping_add(n)).resources()],
        said: Vec::new(),
    };
    (0..count).map(one).collect()
}

/// Runs cases with one back end, telling about each as it is done.
pub fn run_all(
    back_end: BackEnd,
    cases: &[Case],
    foretold: &Mutex<Foretold>,
    mut tell: impl FnMut(&Case, &Outcome),
) -> Vec<Outcome> {
    let mut lab = PolicyLab::new(back_end);
    let first = lab.policy();
    assert_eq!(first.back_end, back_end.name(), "{first:?}");
    cases
        .iter()
        .map(|case| {
            let outcome = run(&mut lab, case, foretold);
            tell(case, &outcome);
            outcome
        })
        .collect()
}
