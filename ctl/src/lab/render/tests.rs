//! The screens are golden, and none is wider than a terminal.

use std::{net::Ipv4Addr, time::Duration};

use super::*;

/// `pods` pods, two per node, `per_segment` nodes per segment; `bad` says what is lost.
fn proof(pods: usize, per_segment: usize, bad: impl Fn(usize, usize) -> Verdict) -> Proof {
    let provers = (0..pods)
        .map(|i| Prover {
            pod: format!("p{}-{}", i / 2 + 1, i % 2 + 1),
            node: format!("node{}", i / 2 + 1),
            segment: format!("seg{}", i / 2 / per_segment + 1),
            address: Ipv4Addr::LOCALHOST.into(),
            mtu: 1480,
            sends: true,
            answers: true,
        })
        .collect();
    let cells = (0..pods).map(|i| (0..pods).map(|j| (i != j).then(|| bad(i, j))).collect()).collect();
    Proof { provers, cells, took: Duration::from_millis(42) }
}

fn all_good(_: usize, _: usize) -> Verdict {
    Verdict::default()
}

fn checked(text: String) -> String {
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "wider than {WIDTH}: {line}");
        assert_eq!(line, line.trim_end());
    }
    text
}

#[test]
fn eight_pods_get_the_whole_matrix() {
    insta::assert_snapshot!(checked(matrix(&proof(8, 2, all_good), false)));
}

#[test]
fn what_is_lost_is_named_with_its_cause() {
    let p = proof(4, 1, |i, j| match (i, j) {
        (0, 2) => Verdict { small: Some("no answer".into()), full: Some("no answer".into()) },
        (3, 1) => {
            Verdict { small: None, full: Some("too big for the path: 10.77.1.254 takes 1400 bytes".into()) }
        }
        _ => Verdict::default(),
    });
    insta::assert_snapshot!(checked(matrix(&p, false)));
    assert!(!p.summary().ok);
}

#[test]
fn sixteen_pods_are_summed_by_node() {
    insta::assert_snapshot!(checked(matrix(&proof(16, 4, all_good), false)));
}

#[test]
fn a_hundred_pods_are_summed_by_segment() {
    let p = proof(100, 25, |i, _| Verdict { small: None, full: (i == 7).then(|| "no answer".into()) });
    insta::assert_snapshot!(checked(matrix(&p, false)));
}

#[test]
fn one_pod_has_nothing_to_prove() {
    assert_eq!(matrix(&proof(1, 1, all_good), false), "proof: nothing to prove: fewer than two pods\n");
}

#[test]
fn colours_wrap_words_without_moving_columns() {
    let (plain, painted) = (matrix(&proof(4, 1, all_good), false), matrix(&proof(4, 1, all_good), true));
    let stripped = painted.replace("\x1b[32m", "").replace("\x1b[0m", "");
    assert_eq!(plain, stripped);
}

#[test]
fn status_shows_one_line_per_node_and_every_problem_below() {
    let row = |n: usize, problems: &[&str]| NodeRow {
        node: format!("node{n}"),
        segment: "seg1".into(),
        address: format!("10.77.1.{n}"),
        agent: "brindle".into(),
        peers_up: 3 - problems.len(),
        peers: 3,
        blocks: vec![format!("192.168.{n}.0/26")],
        used: 2,
        encap: "carrier".into(),
        rss_kib: problems.is_empty().then_some(9 * 1024 + 512),
        routes: 5,
        problems: problems.iter().map(|p| Problem::new(*p, "brindlectl lab heal")).collect(),
    };
    let screen = StatusScreen {
        lab: "lab".into(),
        ok: false,
        nodes: vec![row(1, &[]), row(2, &["the agent is dead"])],
        breaks: vec!["kill node2".into()],
        problems: vec![Problem::plain(
            "a text that is so long that it does not fit into a line of eighty columns, so it is broken",
        )],
        undo: "brindlectl lab heal".into(),
    };
    insta::assert_snapshot!(checked(screen.render(false)));
}
