//! Meshes and reflectors of simulated speakers: convergence, a node down, withdrawals, changes of configuration.

mod sim;

use brindle_bgpd_core::{
    speaker::{Event, Input, LocalRoute},
    time::Mono,
    wire::AttrSet,
};
use sim::{AS, Net, address, block, own};

#[test]
fn four_nodes_converge_and_are_in_sync_at_once() {
    let mut net = Net::mesh(4);
    net.start_all();
    let ms = net.wait(1_000, "routes everywhere", |n| n.all_reach(&[0, 1, 2, 3]));
    assert!(ms < 100, "{ms}");
    net.wait(1_000, "in sync", |n| n.nodes.iter().all(|n| n.in_sync.is_some()));
    assert!((0..4).all(|n| net.established(n) == 3));
    assert!(net.nodes.iter().all(|n| n.removals == 0));
}

#[test]
fn nodes_that_start_late_join_within_two_seconds() {
    let mut net = Net::mesh(4);
    for n in 0..4 {
        net.start(n);
        net.run_ms(3_000);
    }
    net.wait(2_000, "routes everywhere", |n| n.all_reach(&[0, 1, 2, 3]));
}

#[test]
fn fifty_nodes_converge() {
    let mut net = Net::mesh(50);
    net.start_all();
    let owners: Vec<usize> = (0..50).collect();
    net.wait(5_000, "routes everywhere", |n| n.all_reach(&owners));
    net.wait(1_000, "in sync", |n| n.nodes.iter().all(|n| n.in_sync.is_some()));
    assert_eq!((0..50).map(|n| net.established(n)).sum::<usize>(), 50 * 49);

    net.silence(7);
    net.run_ms(241_000);
    let left: Vec<usize> = (0..50).filter(|n| *n != 7).collect();
    assert!(net.all_reach(&left));
    assert!(left.iter().all(|n| net.established(*n) == 48));
}

#[test]
fn a_withdrawn_route_is_gone_everywhere_at_once() {
    let mut net = Net::mesh(4);
    net.start_all();
    net.run_ms(1_000);
    net.set_routes(2, vec![]);
    let ms = net.wait(100, "route gone", |n| n.all_reach(&[0, 1, 3]));
    assert!(ms <= 4, "{ms}");
    net.set_routes(2, vec![own(block(2)), own(block(2))]);
    net.wait(100, "route back", |n| n.all_reach(&[0, 1, 2, 3]));
}

#[test]
fn an_idle_mesh_does_next_to_nothing() {
    let mut net = Net::mesh(4);
    net.start_all();
    net.run_ms(10_000);
    let before = net.bytes;
    net.run_ms(3_600_000);
    // 12 sessions, a KEEPALIVE of 19 octets each 60 to 80 seconds.
    let keepalives = (net.bytes - before) / 19;
    assert!((12 * 45..=12 * 61).contains(&keepalives), "{keepalives}");
}

#[test]
fn garbage_and_floods_from_one_peer_leave_the_others_alone() {
    let mut net = Net::mesh(4);
    net.start_all();
    net.run_ms(1_000);
    let marks: Vec<usize> = net.nodes.iter().map(|n| n.events.len()).collect();
    // Node 1 announces more than node 0 accepts.
    net.nodes[0].peers[0].max_prefixes = 100;
    let peers = net.nodes[0].peers.clone();
    net.input(0, Input::SetPeers(peers));
    let flood =
        (0..500u32).map(|i| own(format!("10.250.{}.{}/32", i / 250, i % 250).parse().unwrap())).collect();
    net.set_routes(1, flood);
    net.run_ms(500);
    let of_zero = &net.nodes[0].events[marks[0]..];
    assert!(
        of_zero.iter().any(
            |(_, e)| matches!(e, Event::State { cause, .. } if cause.contains("more than 100 prefixes"))
        )
    );
    assert_eq!(net.nodes[0].fib.len(), 2, "{:?}", net.nodes[0].fib);
    // Nobody but 0 and 1 has noticed anything.
    assert!((2..4).all(|n| net.nodes[n].events.len() == marks[n] && net.established(n) == 3));
    assert_eq!(net.nodes[2].fib.len(), 502);
    // It is tried again, less and less often.
    net.run_ms(600_000);
    let tries = net.nodes[0]
        .events
        .iter()
        .filter(|(_, e)| matches!(e, Event::State { new, .. } if new == "Established"));
    assert!((8..30).contains(&tries.count()));
    net.set_routes(1, vec![own(block(1))]);
    net.wait(120_000, "back to normal", |n| n.all_reach(&[0, 1, 2, 3]));
}

#[test]
fn a_change_of_one_peer_disturbs_no_other_and_a_soft_one_not_even_that() {
    let mut net = Net::mesh(4);
    net.start_all();
    net.run_ms(1_000);
    let quiet = |net: &Net| net.nodes.iter().map(|n| n.events.len()).collect::<Vec<_>>();
    let before = quiet(&net);

    // An export policy: no new session.
    net.nodes[0].peers[0].export.deny = vec![block(0)];
    let peers = net.nodes[0].peers.clone();
    net.input(0, Input::SetPeers(peers));
    net.wait(100, "held back", |n| !n.nodes[1].fib.contains_key(&block(0)));
    assert!(net.nodes[2].fib.contains_key(&block(0)));
    net.nodes[0].peers[0].export.deny = vec![];
    let peers = net.nodes[0].peers.clone();
    net.input(0, Input::SetPeers(peers));
    net.wait(100, "told again", |n| n.all_reach(&[0, 1, 2, 3]));
    assert_eq!(quiet(&net), before);

    // Another hold time: a new session with that peer only.
    net.nodes[0].peers[0].hold_time = 90;
    let peers = net.nodes[0].peers.clone();
    net.input(0, Input::SetPeers(peers));
    net.wait(3_000, "back", |n| n.all_reach(&[0, 1, 2, 3]));
    assert_eq!(quiet(&net)[2..], before[2..]);
    assert_eq!(net.speaker(0).peers().next().unwrap().session.unwrap().hold_time, 90);

    // A peer goes; the others stay.
    net.nodes[0].peers.remove(0);
    let peers = net.nodes[0].peers.clone();
    net.input(0, Input::SetPeers(peers));
    net.run_ms(100);
    assert!(!net.nodes[0].fib.contains_key(&block(1)));
    assert!(net.nodes[0].fib.contains_key(&block(2)));
    assert_eq!(quiet(&net)[2..], before[2..]);
}

#[test]
fn a_change_while_establishing_resets_nobody_else() {
    for at in 0..20 {
        let mut net = Net::mesh(5);
        net.start_all();
        net.run_until(Mono(at));
        net.nodes[0].peers.remove(2);
        net.nodes[0].peers[0].reflector_client = true;
        let peers = net.nodes[0].peers.clone();
        net.input(0, Input::SetPeers(peers));
        net.run_ms(5_000);
        assert_eq!(net.established(0), 3);
        for n in [1, 2, 4] {
            let ups = net.nodes[n]
                .events
                .iter()
                .filter(|(_, e)| matches!(e, Event::State { new, .. } if new == "Established"));
            assert_eq!(ups.count(), 4, "node {n}, change at {at} ms");
        }
    }
}

/// Nodes 0 and 1 reflect for 2.. .
fn reflectors(n: usize) -> Net {
    let mut net = Net::new(n);
    for rr in 0..2 {
        net.nodes[rr].cfg.cluster_id = Some(address(rr));
    }
    net.link(0, 1, |_, _| {});
    for client in 2..n {
        for rr in 0..2 {
            net.link(rr, client, |of, cfg| cfg.reflector_client = of == rr);
        }
    }
    net
}

#[test]
fn two_reflectors_give_every_client_every_route_with_its_own_next_hop() {
    let mut net = reflectors(12);
    net.start_all();
    let all: Vec<usize> = (0..12).collect();
    net.wait(2_000, "routes everywhere", |n| n.all_reach(&all));
    net.wait(2_000, "in sync", |n| n.nodes.iter().all(|n| n.in_sync.is_some()));
    // A client has the route of another one twice, reflected, and knows why one is better.
    let paths: Vec<_> = net.speaker(5).rib(Some(block(9))).collect();
    assert_eq!(paths.len(), 2);
    assert!(
        paths
            .iter()
            .all(|p| p.attributes.originator_id == Some(address(9)) && p.attributes.cluster_list.len() == 1)
    );
    assert_eq!(paths.iter().filter(|p| p.best).count(), 1);
    assert_eq!(paths.iter().find(|p| !p.best).unwrap().why(), "higher peer address");
    // It does not get its own route back from a reflector.
    assert_eq!(net.speaker(5).rib(Some(block(5))).count(), 1);

    net.kill(0);
    net.run_ms(130_000);
    let left: Vec<usize> = (1..12).collect();
    assert!(net.all_reach(&left));
    let path = net.speaker(5).rib(Some(block(9))).next().unwrap();
    assert_eq!(path.attributes.cluster_list[..], [address(1)]);
}

#[test]
fn external_peers_learn_and_teach() {
    // 0 and 1 in one AS, 2 a router of another, which knows a default route.
    let mut net = Net::new(3);
    net.nodes[2].cfg.asn = 65_000;
    net.nodes[2].routes = vec![own("0.0.0.0/0".parse().unwrap())];
    net.link(0, 1, |_, _| {});
    net.link(0, 2, |_, _| {});
    net.link(1, 2, |_, _| {});
    net.start_all();
    net.run_ms(1_000);
    // Both are in the neighboring AS: equally near for the router.
    assert_eq!(net.nodes[2].fib[&block(0)], [address(0), address(1)]);
    assert_eq!(net.nodes[2].fib[&block(1)], [address(0), address(1)]);
    let default = "0.0.0.0/0".parse().unwrap();
    assert_eq!(net.nodes[0].fib[&default], [address(2)]);
    let paths: Vec<_> = net.speaker(0).rib(Some(default)).collect();
    assert_eq!(paths.len(), 2);
    let (best, other) = if paths[0].best { (&paths[0], &paths[1]) } else { (&paths[1], &paths[0]) };
    assert_eq!(best.attributes.as_path.hops(), 1);
    assert_eq!(other.why(), "an external path is preferred");
    // What the router gives back has our AS in its path.
    assert!(
        net.speaker(1).rib(Some(block(0))).all(|p| p.attributes.as_path.hops() == 0 || p.invalid.is_some())
    );
}

#[test]
fn equal_routes_of_two_nodes_are_used_together() {
    let mut net = Net::mesh(4);
    let service = "10.96.0.10/32".parse().unwrap();
    for n in [1, 2] {
        net.nodes[n].routes.push(own(service));
    }
    net.start_all();
    net.run_ms(1_000);
    assert_eq!(net.nodes[0].fib[&service], [address(1), address(2)]);
    assert!(!net.nodes[1].fib.contains_key(&service), "an own route needs no other");
    net.set_routes(1, vec![own(block(1))]);
    net.run_ms(100);
    assert_eq!(net.nodes[0].fib[&service], [address(2)]);
    assert_eq!(net.nodes[1].fib[&service], [address(2)]);
    // Elevated priority beats the rest, even an own route (a machine that has moved).
    let attributes = AttrSet { local_pref: Some(2_147_483_647 - 512), ..AttrSet::default() };
    net.set_routes(3, vec![own(block(3)), LocalRoute { prefix: service, next_hop: None, attributes }]);
    net.run_ms(100);
    assert!((0..3).all(|n| net.nodes[n].fib[&service] == [address(3)]));
}

#[test]
fn strangers_and_wrong_ases_are_refused_with_a_reason() {
    let mut net = Net::mesh(3);
    net.nodes[0].peers.remove(0);
    net.nodes[0].peers[0].asn = AS + 1;
    net.start_all();
    net.run_ms(5_000);
    let of_zero: Vec<String> = net.nodes[0].events.iter().map(|(_, e)| format!("{e:?}")).collect();
    assert!(
        of_zero.iter().any(|e| e.contains("Refused") && e.contains("not a configured neighbor")),
        "{of_zero:?}"
    );
    let why = format!("bad peer AS: it says AS {AS}, configured is {}", AS + 1);
    assert!(of_zero.iter().any(|e| e.contains(&why)), "{of_zero:?}");
    assert_eq!(net.established(0), 0);
    assert_eq!(net.established(1), 1);
}
