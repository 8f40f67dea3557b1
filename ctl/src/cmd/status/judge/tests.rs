//! A cluster with everything that can be wrong, judged and drawn.

use std::{io, time::Duration};

use super::*;
use crate::{
    Outcome,
    cmd::status::gather::{PolicyCounts, PoolUse, Stored},
    out::WIDTH,
};

fn at(name: &str, address: &str) -> NodeAt {
    NodeAt { name: name.into(), addresses: vec![address.parse().unwrap()], ..NodeAt::default() }
}

fn well(node: &str, block: &str, peers: &[(&str, &str, &str)], paths: &[(&str, &str, &str)]) -> NodeStatus {
    let mut s =
        NodeStatus { node: node.into(), version: "0.1.0".into(), ready: true, ..NodeStatus::default() };
    s.blocks = vec![block.parse().unwrap()];
    s.bgp.peers = peers
        .iter()
        .map(|(name, address, state)| PeerStatus {
            address: address.parse().unwrap(),
            name: (*name).into(),
            kind: "mesh".into(),
            asn: 64512,
            state: (*state).into(),
            since_ms: 4_000,
            received: 1,
            advertised: 1,
            last_error: (*state != "Established").then(|| "connect failed: No route to host".to_owned()),
        })
        .collect();
    s.encap.device = "kernel".into();
    s.encap.paths = paths
        .iter()
        .map(|(to, via, mode)| brindle_config_core::status::EncapPath {
            destination: to.parse().unwrap(),
            via: via.parse().unwrap(),
            mode: (*mode).into(),
            why: "CrossSubnet".into(),
        })
        .collect();
    s.policy.in_sync = true;
    s.policy.back_end = "nftables".into();
    s
}

fn stored(used: u128) -> Stored {
    Stored {
        pools: vec![PoolUse {
            name: "default".into(),
            cidr: "10.1.0.0/24".into(),
            blocks: 3,
            total: 256,
            used,
        }],
        policies: PolicyCounts { global: 2, namespaced: 1, tiers: 2, ..PolicyCounts::default() },
    }
}

fn source() -> Source {
    Source::Store("etcd:http://10.0.0.9:2379".into())
}

#[test]
fn a_cluster_that_is_well() {
    let up = "Established";
    let seen = Seen {
        nodes: vec![
            (
                at("node1", "10.77.1.1/24"),
                Ok(well(
                    "node1",
                    "10.1.0.0/26",
                    &[("node2", "10.77.1.2", up), ("node3", "10.77.2.3", up)],
                    &[("10.1.0.64/26", "10.77.1.2", "direct"), ("10.1.0.128/26", "10.77.2.3", "ipip")],
                )),
            ),
            (
                NodeAt { reflector: true, ..at("node2", "10.77.1.2/24") },
                Ok(well("node2", "10.1.0.64/26", &[("node1", "10.77.1.1", up)], &[])),
            ),
        ],
        stored: Some(stored(9)),
        trouble: None,
    };
    let screen = judge(&seen, &source(), "0.1.0");
    assert_eq!(screen.outcome(), Outcome::Ok);
    insta::assert_snapshot!(screen.render(false));
    insta::assert_snapshot!(serde_json::to_string_pretty(&screen).unwrap());
}

#[test]
fn every_red_line_has_its_cause_and_the_next_command() {
    let mut ill = well(
        "node1",
        "10.1.0.0/26",
        &[
            ("node2", "10.77.1.2", "Active"),
            ("node3", "10.77.2.3", "Active"),
            ("tor-1", "10.77.1.254", "OpenSent"),
        ],
        &[],
    );
    ill.ready = false;
    ill.version = "0.0.9".into();
    ill.encap.refused = 3;
    ill.routes.failed = vec!["10.1.0.64/26 via 10.77.1.2: network is unreachable".into()];
    ill.reasons = ill.routes.failed.clone();
    ill.policy.problems = vec!["iptables-restore is not installed; apt install iptables".into()];
    ill.policy.resources =
        vec!["GlobalNetworkPolicy(lost): tier nowhere does not exist: not enforced".into()];
    ill.reasons.extend(ill.policy.problems.clone());
    // The sessions are told one by one.
    ill.reasons.push(
        "bgp: 0 of 3 sessions established; not: node2 Active; waiting until 30 s after the start".into(),
    );
    ill.pods = vec![brindle_config_core::status::PodStatus {
        namespace: "shop".into(),
        name: "web".into(),
        container_id: "c".into(),
        addresses: vec!["10.1.0.1/32".parse().unwrap()],
        interface: "cali1".into(),
        ready: false,
    }];
    let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    let seen = Seen {
        nodes: vec![
            (at("node1", "10.77.1.1/24"), Ok(ill)),
            (
                at("node2", "10.77.1.2/24"),
                Err(Silence::Deadline { at: "10.77.1.2:9180".into(), limit: Duration::from_secs(3) }),
            ),
            (at("node3", "10.77.2.3/24"), Err(Silence::Absent { at: "10.77.2.3:9180".into(), why: refused })),
            (
                at("a-node-with-a-name-that-is-too-long", "10.77.2.4/24"),
                Err(Silence::Token { at: "10.77.2.4:9180".into(), why: "peer closed".into() }),
            ),
            (
                at("node5", "10.77.2.5/24"),
                Err(Silence::Unreachable(
                    "its agent does not answer other machines".into(),
                    Some("ask there".into()),
                )),
            ),
        ],
        stored: Some(stored(240)),
        trouble: Some("datastore unavailable: no endpoint answers".into()),
    };
    let screen = judge(&seen, &source(), "0.1.0");
    assert_eq!(screen.outcome(), Outcome::Degraded);
    let text = screen.render(false);
    let problems = text.lines().filter(|l| l.starts_with("  next: ")).count();
    assert_eq!(problems, screen.problems.len());
    let fits = |l: &&str| l.chars().count() > WIDTH && !l.starts_with("  next: ");
    assert_eq!(text.lines().find(fits), None);
    insta::assert_snapshot!(text);
}

#[test]
fn nobody_answers() {
    let dead = |at: &str| Silence::Deadline { at: at.into(), limit: Duration::from_millis(1500) };
    let seen = Seen {
        nodes: vec![(at("node1", "10.77.1.1/24"), Err(dead("10.77.1.1:9180")))],
        stored: None,
        trouble: None,
    };
    let screen = judge(&seen, &Source::Lab("x".into()), "0.1.0");
    assert_eq!(screen.outcome(), Outcome::Code(2));
    insta::assert_snapshot!(screen.render(false));
}

#[test]
fn the_log_of_an_agent_is_where_its_cluster_keeps_it() {
    let dead = Silence::Deadline { at: "10.0.0.1:9180".into(), limit: Duration::from_secs(1) };
    let name = "worker-0123456789.example.org";
    let seen = Seen { nodes: vec![(at(name, "10.0.0.1/24"), Err(dead))], stored: None, trouble: None };
    let next = |source: &Source| judge(&seen, source, "0.1.0").problems[0].next.clone();
    assert_eq!(next(&source()), format!("on {name}: journalctl -u brindle-node -n 20"));
    let kubernetes = Source::Store("kubernetes:/etc/kubeconfig".into());
    assert_eq!(
        next(&kubernetes),
        format!(
            "kubectl -n kube-system logs --tail 20 $(kubectl -n kube-system get pod -o name -l k8s-app=brindle-node \
             --field-selector spec.nodeName={name})"
        )
    );
    // To be copied as it stands: what does not fit goes on as a shell has it.
    let text = judge(&seen, &kubernetes, "0.1.0").render(false);
    let (_, shown) = text.split_once("  next: ").unwrap();
    assert_eq!(shown.trim_end().replace(" \\\n        ", " "), next(&kubernetes));
    assert_eq!(text.lines().find(|l| l.chars().count() > WIDTH), None, "{text}");
}

#[test]
fn colours_only_where_asked_for() {
    let seen = Seen {
        nodes: vec![(at("n", "10.0.0.1/24"), Ok(well("n", "10.1.0.0/26", &[], &[])))],
        stored: None,
        trouble: None,
    };
    let screen = judge(&seen, &source(), "0.1.0");
    assert!(!screen.render(false).contains('\x1b'));
    assert!(screen.render(true).contains("\x1b[32mok\x1b[0m"));
}
