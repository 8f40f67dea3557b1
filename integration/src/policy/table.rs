//! The table of cases and back ends, on a screen and kept in docs/conformance.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{
    lab::BackEnd,
    sample::Sampled,
    suite::{Case, Outcome},
};

/// Outcomes of all cases with each back end, in the same order.
#[derive(Debug)]
pub struct Table<'a> {
    pub cases: &'a [Case],
    pub columns: &'a [(BackEnd, Vec<Outcome>)],
    /// Those of the columns.
    pub back_ends: &'a [BackEnd],
    /// A sample of the differential test with each back end, or none.
    pub sampled: &'a [Sampled],
    pub seed: u64,
}

/// What this kernel can of SCTP, said aloud.
pub fn sctp() -> String {
    let stream = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::STREAM,
        Some(socket2::Protocol::from(132)),
    );
    match stream {
        Ok(_) => "SCTP: this kernel has sockets of it; the suite sends INIT chunks by raw sockets".into(),
        Err(_) => "SCTP: THIS KERNEL HAS NO SOCKETS OF IT; the suite sends INIT chunks by raw sockets, which connection \
                   tracking and filters judge as any other"
            .into(),
    }
}

struct Row {
    group: String,
    name: String,
    cells: Vec<&'static str>,
    allowed: usize,
    denied: usize,
}

impl Table<'_> {
    fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        let mut sets = 0;
        for (i, case) in self.cases.iter().enumerate() {
            let outcomes: Vec<&Outcome> = self.columns.iter().filter_map(|(_, o)| o.get(i)).collect();
            let cells: Vec<&str> =
                outcomes.iter().map(|o| if o.wrong.is_empty() { "yes" } else { "NO" }).collect();
            let (allowed, denied) = outcomes.first().map_or((0, 0), |o| (o.allowed, o.denied));
            if case.group != "generated" {
                rows.push(Row { group: case.group.into(), name: case.name.clone(), cells, allowed, denied });
                continue;
            }
            // Those of the generator share a row.
            sets += 1;
            let name = format!("{sets} policy sets, seed {}", self.seed);
            match rows.last_mut().filter(|r| r.group == "generated") {
                None => rows.push(Row { group: "generated".into(), name, cells, allowed, denied }),
                Some(r) => {
                    r.name = name;
                    (r.allowed, r.denied) = (r.allowed + allowed, r.denied + denied);
                    for (all, this) in r.cells.iter_mut().zip(cells) {
                        if this != "yes" {
                            *all = this;
                        }
                    }
                }
            }
        }
        if let Some(first) = self.sampled.first() {
            let yes = |s: &Sampled| if s.wrong.is_empty() { "yes" } else { "NO" };
            rows.push(Row {
                group: SAMPLED.into(),
                name: format!("{} pairs of {} policy sets, seed {}", first.pairs, first.sets, self.seed),
                cells: self.sampled.iter().map(yes).collect(),
                allowed: first.allowed,
                denied: first.pairs - first.allowed,
            });
        }
        rows
    }

    /// For a screen.
    pub fn text(&self) -> String {
        let rows = self.rows();
        let names: Vec<&str> = self.back_ends.iter().map(|b| b.name()).collect();
        let wide = rows.iter().map(|r| r.name.chars().count()).max().unwrap_or(0);
        let mut out = format!("{:<22} {:<wide$} {}  allowed  denied\n", "", "", names.join("  "));
        for r in &rows {
            let cells: Vec<String> =
                r.cells.iter().zip(&names).map(|(c, n)| format!("{c:<w$}", w = n.len())).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "{:<22} {:<wide$} {}  {:>7} {:>7}",
                r.group,
                r.name,
                cells.join("  "),
                r.allowed,
                r.denied
            );
        }
        out
    }

    /// The whole of docs/conformance.md.
    pub fn markdown(&self) -> String {
        let names: Vec<&str> = self.back_ends.iter().map(|b| b.name()).collect();
        let mut out = format!("{HEAD}\n| | case | {} | allowed | denied |\n", names.join(" | "));
        let _ = writeln!(out, "| --- | --- |{} ---: | ---: |", " --- |".repeat(names.len()));
        for r in self.rows() {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} |",
                r.group,
                r.name,
                r.cells.join(" | "),
                r.allowed,
                r.denied
            );
        }
        out
    }
}

/// Group of the row of the sample.
pub const SAMPLED: &str = "sampled";

const HEAD: &str = "\
# Conformance of network policy

Written by `target/debug/policy-conformance --generated 220 --write docs/conformance.md`; do not edit. `cargo xtask test
policy` prints the same with fewer sets of the generator (`BRINDLE_POLICY_SETS`, 40) and fails when the cases written by
hand, or what is expected of them, are not what stands here.

A node with the real agent, nine pods of three namespaces made by the real plugin, a host behind an uplink with a host
endpoint and one behind an uplink without. In each case all of them try to reach each other at once: TCP 22, 80 and 81
(whole handshakes), UDP 53 and 80, SCTP 80 (an INIT chunk by a raw socket), ICMP echo and timestamp, IPv4 and IPv6.
`allowed` and `denied` are the first packets that have to arrive and those that must not. What is expected comes from an
oracle that reads the API documents literally and shares no code with Brindle (felix/core/tests/policy/oracle); where a
case has a point a person can state, the person's word is compared with the oracle's. A repair of rules nobody had
touched fails the case, too.

Cases of updates have several steps and count the packets of all. The cases follow Kubernetes' own tests (test/e2e/network/netpol),
Cyclonus, the conformance profile of network-policy-api, and what Calico adds. Traffic of a pod to itself never leaves
the pod and is not shown.

The last row is a sample of the pairs of random policy set and packet on which felix/core/tests/policy/differential.rs
compares `verdict` with the oracle (10,000 of them, the same seed): single packets with the ports they are told, of TCP,
UDP, SCTP, ICMP, GRE and IPIP, by raw sockets. Pairs nobody in this lab can send are passed over: from or to an address
that is not here, to oneself, a second packet of one flow, errors of ICMP (they belong to no flow).
";

/// The command that writes the table anew.
pub const WRITE: &str = "target/debug/policy-conformance --generated 220 --write docs/conformance.md";

/// What is not true of a kept table any more: its text, its list of cases, their numbers of packets. `count`: how many of a
/// case are allowed and denied.
pub fn stale(kept: &str, cases: &[Case], count: impl Fn(&Case) -> (usize, usize)) -> Vec<String> {
    let rows: BTreeMap<(&str, &str), (&str, &str)> = kept
        .lines()
        .filter_map(|l| {
            let cells: Vec<&str> = l.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect();
            let [group, name, .., allowed, denied] = cells.as_slice() else { return None };
            Some(((*group, *name), (*allowed, *denied)))
        })
        .filter(|((group, _), _)| !["", "---", "generated", SAMPLED, "| case"].contains(group))
        .collect();
    let mut out = Vec::new();
    if !kept.starts_with(HEAD) {
        out.push("the text above the table is not the one there is".to_owned());
    }
    for case in cases {
        let Some((allowed, denied)) = rows.get(&(case.group, case.name.as_str())) else {
            out.push(format!("lacks {}: {}", case.group, case.name));
            continue;
        };
        let (a, d) = count(case);
        if (a.to_string().as_str(), d.to_string().as_str()) != (*allowed, *denied) {
            let (group, name) = (case.group, &case.name);
            out.push(format!(
                "says {allowed} and {denied} of {group}: {name}; it is {a} allowed and {d} denied"
            ));
        }
    }
    let wanted: BTreeSet<(&str, &str)> = cases.iter().map(|c| (c.group, c.name.as_str())).collect();
    let extra = rows.keys().filter(|row| !wanted.contains(*row));
    out.extend(extra.map(|(g, n)| format!("has {g}: {n}, which is no case any more")));
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_table_is_current_for_its_own_cases_and_stale_for_others() {
        let cases = crate::policy::cases::all();
        let outcome = Outcome { allowed: 3, denied: 4, wrong: Vec::new(), took: Duration::ZERO };
        let columns: Vec<_> = BackEnd::ALL.map(|b| (b, vec![outcome.clone(); cases.len()])).into();
        let text =
            Table { cases: &cases, columns: &columns, back_ends: &BackEnd::ALL, sampled: &[], seed: 1 }
                .markdown();
        let three_of_seven = |_: &Case| (3, 4);
        assert_eq!(stale(&text, &cases, three_of_seven), Vec::<String>::new());
        let fewer = cases.get(1..).unwrap_or_default();
        assert_eq!(
            stale(&text, fewer, three_of_seven),
            ["has default: no policy, which is no case any more"]
        );
        let without = text.replace("| default | deny ingress |", "| default | deny |");
        assert_eq!(stale(&without, &cases, three_of_seven).len(), 2);
        let more = |c: &Case| if c.name == "no policy" { (4, 3) } else { (3, 4) };
        assert_eq!(
            stale(&text, &cases, more),
            ["says 3 and 4 of default: no policy; it is 4 allowed and 3 denied"]
        );
        assert_eq!(stale(&text.replace("Cyclonus", "Others"), &cases, three_of_seven).len(), 1);
    }
}
