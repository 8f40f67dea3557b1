//! The plan of the default lab is golden; each refusal names its field.

use super::*;
use crate::lab::topology::SegmentTopology;

fn regular() -> Topology {
    Topology::regular(4, 2, 2)
}

fn refused(topology: &Topology) -> String {
    LabPlan::new("lab", topology).expect_err("must be refused").to_string()
}

#[test]
fn default_topology_gets_readable_names_and_addresses() {
    let plan = LabPlan::new("lab", &regular()).unwrap();
    insta::assert_snapshot!(serde_json::to_string_pretty(&plan).unwrap());
    assert_eq!(plan.namespaces().len(), 2 + 4 + 8);
}

#[test]
fn segments_never_outnumber_nodes_and_nodes_are_spread_evenly() {
    let t = Topology::regular(3, 9, 0);
    assert_eq!(t.segments.len(), 3);
    let t = Topology::regular(50, 3, 0);
    let count = |s: &str| t.nodes.iter().filter(|n| n.segment == s).count();
    assert_eq!((count("seg1"), count("seg2"), count("seg3")), (17, 17, 16));
}

#[test]
fn a_plan_survives_its_own_file_format() {
    let plan = LabPlan::new("lab", &regular()).unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<LabPlan>(&text).unwrap(), plan);
}

#[test]
fn every_refusal_names_the_field() {
    let mut t = regular();
    t.nodes[1].address = Some(Ipv4Addr::new(10, 77, 1, 1));
    assert_eq!(refused(&t), "nodes[1].address: 10.77.1.1 is already node1's");
    let mut t = regular();
    t.nodes[2].segment = "rack".into();
    assert_eq!(refused(&t), "nodes[2].segment: there is no segment \"rack\"; there are: seg1 seg2");
    let mut t = regular();
    t.nodes[0].address = Some(Ipv4Addr::new(10, 77, 1, 254));
    assert_eq!(refused(&t), "nodes[0].address: 10.77.1.254 is the router's");
    let mut t = regular();
    t.nodes[0].address = Some(Ipv4Addr::new(10, 99, 1, 1));
    assert!(refused(&t).starts_with("nodes[0].address: 10.99.1.1 is no host address of segment seg1"));
    let mut t = regular();
    t.nodes[3].name = "node1".into();
    assert_eq!(refused(&t), "nodes[3].name: \"node1\" is already there");
    let mut t = regular();
    t.nodes[3].name = "Node_9".into();
    assert!(refused(&t).starts_with("nodes[3].name: \"Node_9\" is no good name"));
    let mut t = regular();
    t.nodes[3].name = "router".into();
    assert_eq!(refused(&t), "nodes[3].name: \"router\" is taken by the lab itself");
    let mut t = regular();
    t.segments[1].cidr = Some("10.77.0.0/16".parse().unwrap());
    assert!(refused(&t).starts_with("segments[1].cidr: 10.77.0.0/16 overlaps segment seg1"));
    let mut t = regular();
    t.pool.cidr = "10.77.2.128/25".parse().unwrap();
    assert!(refused(&t).starts_with("segments[1].cidr: 10.77.2.0/24 overlaps the pool"));
    let mut t = regular();
    t.pool.block_size = 12;
    assert!(refused(&t).starts_with("pool.blockSize: 12"));
    let mut t = regular();
    t.mtu = 100;
    assert_eq!(refused(&t), "mtu: 100 is outside 1280..9000");
    let mut t = regular();
    t.nodes[0].block = Some("10.78.1.0/26".parse().unwrap());
    assert!(refused(&t).starts_with("nodes[0].block: only a bird node has a fixed block"));
    assert!(refused(&Topology::regular(100, 2, 50)).starts_with("nodes: 5000 pods are more than"));
    let t = Topology { segments: vec![], ..regular() };
    assert_eq!(refused(&t), "segments: a lab needs at least one");
    assert!(LabPlan::new("Lab!", &regular()).unwrap_err().to_string().starts_with("name: \"Lab!\""));
}

#[test]
fn a_bird_node_has_its_block_and_its_pods_addresses_beforehand() {
    let mut t = regular();
    t.nodes[1].agent = AgentKind::Bird;
    let plan = LabPlan::new("lab", &t).unwrap();
    let bird = plan.node("node2").unwrap();
    assert_eq!(bird.block, Some("10.78.2.0/26".parse().unwrap()));
    assert_eq!(bird.pods[1].address, Some(Ipv4Addr::new(10, 78, 2, 2)));
    t.nodes[1].block = Some("192.168.4.0/26".parse().unwrap());
    assert_eq!(refused(&t), "nodes[1].block: 192.168.4.0/26 overlaps the pool (192.168.0.0/16)");
    t.nodes[1].block = Some("10.90.0.0/31".parse().unwrap());
    assert_eq!(refused(&t), "nodes[1].block: 10.90.0.0/31 has no room for 2 pods");
}

#[test]
fn a_node_too_many_for_its_segment_is_refused() {
    let mut t = regular();
    t.segments = vec![SegmentTopology { name: "seg1".into(), cidr: Some("10.0.0.0/29".parse().unwrap()) }];
    t.nodes = (1..=7)
        .map(|n| NodeTopology { name: format!("n{n}"), segment: "seg1".into(), ..t.nodes[0].clone() })
        .collect();
    assert_eq!(refused(&t), "nodes[5].address: 10.0.0.6 is the router's");
}

#[test]
fn an_frr_router_is_a_peer_of_every_node() {
    let mut t = regular();
    assert_eq!(LabPlan::new("lab", &t).unwrap().peers_of("node1").len(), 3);
    t.router.kind = RouterKind::Frr;
    let peers = LabPlan::new("lab", &t).unwrap().peers_of("node3");
    assert_eq!(peers.get(&"10.77.2.254".parse().unwrap()).map(String::as_str), Some("router"));
    assert_eq!(peers.len(), 4);
}

#[test]
fn a_lab_that_would_overflow_the_neighbour_table_resolves_nothing_or_is_refused() {
    let plan =
        |nodes, segments, pods| LabPlan::new("lab", &Topology::regular(nodes, segments, pods)).unwrap();
    let mut small = plan(4, 2, 2);
    small.fit_neighbours(1024).unwrap();
    assert!(!small.static_neighbours);
    let mut big = plan(50, 2, 2);
    big.fit_neighbours(1024).unwrap();
    assert!(big.static_neighbours, "25 * 26 * 2 + 200 entries are more than half of 1024");
    let mut spread = plan(50, 25, 2);
    spread.fit_neighbours(1024).unwrap();
    assert!(!spread.static_neighbours);
    let error = plan(50, 2, 10).fit_neighbours(1024).unwrap_err().to_string();
    assert!(error.contains("500 pods need 1000") && error.contains("gc_thresh3=2048"), "{error}");
}
