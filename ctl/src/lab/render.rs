//! The lab's screens as text: the reachability matrix and the status. Pure: values in, 80 columns out.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::{
    converge::Problem,
    progress::wrap,
    proof::{Failure, Proof, Prover, Verdict},
};
use crate::out::{Mood, Table, WIDTH, paint};

/// Failures listed one by one; more are counted.
const LISTED: usize = 10;

/// The proof as a matrix: pod by pod while that fits, else by node, else by segment.
pub(crate) fn matrix(proof: &Proof, colours: bool) -> String {
    let mut text = String::new();
    let s = proof.summary();
    if s.pairs == 0 {
        return "proof: nothing to prove: fewer than two pods\n".to_owned();
    }
    let labels: Vec<_> = proof.provers.iter().map(|p| p.pod.as_str()).collect();
    if fits(&labels, 4) {
        grid(&mut text, "from\\to", &labels, 4, |i, j| pod_cell(i, j, proof), colours);
    } else {
        let nodes = names(&proof.provers, |p| &p.node);
        let segments = names(&proof.provers, |p| &p.segment);
        let (by, labels): (fn(&Prover) -> &str, _) =
            if fits(&nodes, 7) { (|p| &p.node, nodes) } else { (|p| &p.segment, segments) };
        let counts = count(proof, by);
        let width = counts.values().map(|c| format!("{}/{}", c.0, c.1).len()).max().unwrap_or(0);
        if fits(&labels, width) {
            grid(&mut text, "from\\to", &labels, width, |i, j| sum_cell(&counts, &labels, i, j), colours);
        }
    }
    let verdict =
        if s.ok { paint("ok", Mood::Good, colours) } else { paint("INCOMPLETE", Mood::Bad, colours) };
    let _ = writeln!(
        text,
        "proof: {} pairs; small {}/{}, full-size DF {}/{}; {} ms: {verdict}",
        s.pairs, s.small, s.pairs, s.full, s.pairs, s.ms
    );
    failures(&mut text, &s.failures);
    text
}

fn fits(labels: &[&str], cell: usize) -> bool {
    let widest = labels.iter().map(|l| l.len()).max().unwrap_or(0);
    let column = widest.max(cell) + 1;
    widest.max("from\\to".len()) + labels.len() * column <= WIDTH
}

fn names(provers: &[Prover], by: fn(&Prover) -> &String) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for p in provers {
        if !names.contains(&by(p).as_str()) {
            names.push(by(p));
        }
    }
    names
}

/// Word and mood of one pair of pods.
fn pod_cell(i: usize, j: usize, proof: &Proof) -> (String, Mood) {
    let cell = proof.cells.get(i).and_then(|r| r.get(j)).and_then(Option::as_ref);
    let (word, mood) = match cell {
        None => (".", Mood::Plain),
        Some(Verdict { small: None, full: None }) => ("ok", Mood::Good),
        Some(Verdict { small: None, full: Some(_) }) => ("MTU", Mood::Bad),
        Some(Verdict { small: Some(_), .. }) => ("LOST", Mood::Bad),
    };
    (word.to_owned(), mood)
}

type Counts = BTreeMap<(String, String), (usize, usize)>;

/// Good and all pairs per pair of groups.
fn count(proof: &Proof, by: fn(&Prover) -> &str) -> Counts {
    let mut counts = Counts::new();
    for (from, row) in proof.provers.iter().zip(&proof.cells) {
        for (to, cell) in proof.provers.iter().zip(row) {
            let Some(verdict) = cell else { continue };
            let c = counts.entry((by(from).to_owned(), by(to).to_owned())).or_default();
            c.0 += usize::from(verdict.good());
            c.1 += 1;
        }
    }
    counts
}

fn sum_cell(counts: &Counts, labels: &[&str], i: usize, j: usize) -> (String, Mood) {
    let key = |k: usize| labels.get(k).copied().unwrap_or_default().to_owned();
    match counts.get(&(key(i), key(j))) {
        None => (".".to_owned(), Mood::Plain),
        Some((good, all)) => (format!("{good}/{all}"), if good == all { Mood::Good } else { Mood::Bad }),
    }
}

fn grid(
    text: &mut String,
    corner: &str,
    labels: &[&str],
    cell: usize,
    word: impl Fn(usize, usize) -> (String, Mood),
    colours: bool,
) {
    let widest = labels.iter().map(|l| l.len()).max().unwrap_or(0);
    let (head, column) = (widest.max(corner.len()), widest.max(cell));
    let mut line = format!("{corner:<head$}");
    for label in labels {
        let _ = write!(line, " {label:<column$}");
    }
    text.push_str(line.trim_end());
    text.push('\n');
    for (i, label) in labels.iter().enumerate() {
        let mut line = format!("{label:<head$}");
        for j in 0..labels.len() {
            let (word, mood) = word(i, j);
            let pad = if j + 1 == labels.len() { 0 } else { column.saturating_sub(word.len()) };
            let _ = write!(line, " {}{:pad$}", paint(&word, mood, colours), "");
        }
        text.push_str(&line);
        text.push('\n');
    }
}

/// One line per pair, or per packet where small and full-size ones met different fates.
fn failures(text: &mut String, failures: &[Failure]) {
    let mut lines: Vec<(String, &str, Vec<&str>)> = Vec::new();
    for f in failures {
        let pair = format!("{} -> {}", f.from, f.to);
        match lines.last_mut() {
            Some((p, cause, sizes)) if *p == pair && *cause == f.cause => sizes.push(f.size),
            _ => lines.push((pair, &f.cause, vec![f.size])),
        }
    }
    for (pair, cause, sizes) in lines.iter().take(LISTED) {
        let _ = writeln!(text, "  {pair} ({}): {cause}", sizes.join(", "));
    }
    if lines.len() > LISTED {
        let _ = writeln!(text, "  ... and {} more; all of them with -o json", lines.len() - LISTED);
    }
}

/// A problem of `place`: what, broken into lines, and the command on a line of its own.
pub(crate) fn problem(place: &str, p: &Problem) -> String {
    let mut text = String::new();
    for (i, line) in wrap(&format!("{place}: {}", p.what), WIDTH - 4).into_iter().enumerate() {
        let _ = writeln!(text, "{}{line}", if i == 0 { "" } else { "    " });
    }
    if let Some(next) = &p.next {
        let _ = writeln!(text, "  next: {next}");
    }
    text
}

/// One node in `lab status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct NodeRow {
    pub(crate) node: String,
    pub(crate) segment: String,
    pub(crate) address: String,
    /// `brindle`, `bird`.
    pub(crate) agent: String,
    pub(crate) peers_up: usize,
    pub(crate) peers: usize,
    pub(crate) blocks: Vec<String>,
    /// Pods with an address.
    pub(crate) used: usize,
    /// `none`, `kernel`, `carrier`, or `-` where it cannot be told.
    pub(crate) encap: String,
    pub(crate) rss_kib: Option<u64>,
    pub(crate) routes: usize,
    /// Empty = healthy.
    pub(crate) problems: Vec<Problem>,
}

/// `lab status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct StatusScreen {
    pub(crate) lab: String,
    pub(crate) ok: bool,
    pub(crate) nodes: Vec<NodeRow>,
    pub(crate) breaks: Vec<String>,
    /// About the lab as a whole.
    pub(crate) problems: Vec<Problem>,
    /// What undoes the breaks.
    pub(crate) undo: String,
}

impl StatusScreen {
    /// The screen as text.
    pub(crate) fn render(&self, colours: bool) -> String {
        let sum = |f: fn(&NodeRow) -> usize| self.nodes.iter().map(f).sum::<usize>();
        let healthy = self.nodes.iter().filter(|n| n.problems.is_empty()).count();
        let mut text = format!(
            "lab {:?}: nodes {healthy}/{}, sessions {}/{}, pods {}: ",
            self.lab,
            self.nodes.len(),
            sum(|n| n.peers_up),
            sum(|n| n.peers),
            sum(|n| n.used),
        );
        text +=
            &if self.ok { paint("ok", Mood::Good, colours) } else { paint("DEGRADED", Mood::Bad, colours) };
        text.push('\n');
        let mut table =
            Table::new(&["NODE", "ADDRESS", "PEERS", "POD-BLOCKS", "USED", "ENCAP", "RSS", "HEALTH"]);
        for n in &self.nodes {
            table.row([
                n.node.clone(),
                n.address.clone(),
                format!("{}/{}", n.peers_up, n.peers),
                blocks(&n.blocks),
                n.used.to_string(),
                n.encap.clone(),
                n.rss_kib.map_or_else(|| "-".to_owned(), mib),
                if n.problems.is_empty() { "ok".to_owned() } else { "DEGRADED".to_owned() },
            ]);
        }
        text += &table.render();
        for n in &self.nodes {
            for p in &n.problems {
                text += &problem(&n.node, p);
            }
        }
        for p in &self.problems {
            text += &problem("lab", p);
        }
        if !self.breaks.is_empty() {
            let _ = writeln!(text, "broken on purpose: {}\n  undo: {}", self.breaks.join(", "), self.undo);
        }
        text
    }
}

/// The first block and how many more.
fn blocks(blocks: &[String]) -> String {
    match blocks {
        [] => "-".to_owned(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} +{}", rest.len()),
    }
}

/// KiB as MiB with one digit.
pub(crate) fn mib(kib: u64) -> String {
    format!("{}.{}M", kib / 1024, kib % 1024 * 10 / 1024)
}

#[cfg(test)]
mod tests;
