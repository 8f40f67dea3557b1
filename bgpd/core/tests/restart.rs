//! Graceful restart (RFC 4724): what stays in the kernels when agents die and come back.

mod sim;

use brindle_bgpd_core::{
    speaker::{Event, Input},
    time::Mono,
};
use sim::{AS, Net, address, block, own};

fn up(n: usize) -> Net {
    let mut net = Net::mesh(n);
    net.start_all();
    let all: Vec<usize> = (0..n).collect();
    net.wait(2_000, "routes everywhere", |net| net.all_reach(&all));
    net.wait(2_000, "in sync", |net| net.nodes.iter().all(|n| n.in_sync.is_some()));
    net.run_ms(10_000);
    net
}

fn restart(net: &mut Net, n: usize) {
    net.nodes[n].cfg.restarting = true;
    net.start(n);
}

fn removals(net: &Net) -> Vec<usize> {
    net.nodes.iter().map(|n| n.removals).collect()
}

#[test]
fn an_agent_that_is_killed_and_comes_back_costs_no_route_anywhere() {
    let mut net = up(4);
    net.kill(1);
    net.run_ms(5_000);
    assert!(net.nodes[0].fib.contains_key(&block(1)), "kept by the neighbor");
    assert!(net.nodes[1].fib.contains_key(&block(0)), "kept by the kernel");
    restart(&mut net, 1);
    let ms = net.wait(15_000, "in sync again", |n| n.nodes[1].in_sync.is_some());
    assert!(ms <= 8_000, "{ms}");
    net.run_ms(200_000);
    assert!(net.all_reach(&[0, 1, 2, 3]));
    assert_eq!(removals(&net), [0; 4]);
    let told: Vec<&Event> =
        net.nodes[0].events.iter().map(|(_, e)| e).filter(|e| matches!(e, Event::Restart { .. })).collect();
    assert_eq!(told.len(), 2, "{told:?}");
}

#[test]
fn all_agents_killed_at_once_cost_no_route_either() {
    let mut net = up(6);
    for n in 0..6 {
        net.kill(n);
    }
    net.run_ms(2_000);
    for n in 0..6 {
        restart(&mut net, n);
        net.run_ms(100);
    }
    net.wait(15_000, "in sync again", |n| n.nodes.iter().all(|n| n.in_sync.is_some()));
    net.run_ms(200_000);
    assert!(net.all_reach(&[0, 1, 2, 3, 4, 5]));
    assert_eq!(removals(&net), [0; 6]);
}

#[test]
fn an_agent_that_stays_away_loses_its_routes_when_the_restart_time_is_over() {
    let mut net = up(3);
    net.kill(1);
    let start = net.now;
    net.wait(200_000, "routes gone", |n| !n.nodes[0].fib.contains_key(&block(1)));
    let s = net.now.since_ms(start) / 1_000;
    assert_eq!(s, 120);
    net.run_ms(1_000);
    assert!(net.all_reach(&[0, 2]));
}

#[test]
fn without_graceful_restart_routes_go_with_the_session() {
    let mut net = Net::mesh(3);
    for node in &mut net.nodes {
        for p in &mut node.peers {
            p.restart_time = 0;
        }
    }
    net.start_all();
    net.run_ms(5_000);
    net.kill(1);
    net.wait(20, "routes gone", |n| n.all_reach(&[0, 2]));
}

#[test]
fn a_neighbor_that_lost_its_forwarding_state_is_not_trusted_with_traffic() {
    let mut net = up(3);
    net.kill(1);
    net.run_ms(1_000);
    // A reboot: the kernel is empty, too.
    net.nodes[1].fib.clear();
    net.nodes[1].cfg.restarting = false;
    net.start(1);
    net.run_ms(10_000);
    assert!(net.all_reach(&[0, 1, 2]));
    assert_eq!(removals(&net), [1, 0, 1]);
    assert!(net.nodes[0].events.iter().any(
        |(_, e)| matches!(e, Event::Restart { what, routes: 1, .. } if what.contains("did not preserve"))
    ));
}

#[test]
fn what_a_restarted_neighbor_no_longer_has_goes_at_its_end_of_rib() {
    let mut net = up(3);
    let extra = "10.99.0.0/26".parse().unwrap();
    net.set_routes(1, vec![own(block(1)), own(extra)]);
    net.run_ms(100);
    net.kill(1);
    net.run_ms(1_000);
    net.nodes[1].routes = vec![own(block(1))];
    restart(&mut net, 1);
    net.run_ms(10_000);
    assert!(net.all_reach(&[0, 1, 2]));
    assert_eq!(removals(&net), [1, 0, 1]);
}

#[test]
fn what_vanished_while_an_agent_was_dead_goes_when_it_is_in_sync() {
    let mut net = up(4);
    net.kill(1);
    net.run_ms(500);
    net.set_routes(2, vec![]);
    net.run_ms(500);
    assert!(net.nodes[1].fib.contains_key(&block(2)), "nobody could remove it");
    restart(&mut net, 1);
    net.wait(15_000, "in sync again", |n| n.nodes[1].in_sync.is_some());
    assert!(net.all_reach(&[0, 1, 3]));
}

#[test]
fn while_selection_is_put_off_nothing_is_advertised_but_nothing_is_lost() {
    let mut net = up(3);
    // One peer is away for good, so that node 0 waits for it.
    net.kill(2);
    net.kill(0);
    net.run_ms(100);
    restart(&mut net, 0);
    net.run_ms(3_000);
    assert!(net.speaker(0).peers().any(|p| p.state == brindle_bgpd_core::fsm::StateKind::Established));
    assert!(!net.speaker(0).converged());
    assert_eq!(net.speaker(0).advertised(net.speaker(0).peers().next().unwrap().id).count(), 0);
    assert_eq!(net.speaker(0).rib(Some(block(1))).next().unwrap().why(), "selection is put off");
    assert!(net.nodes[0].fib.contains_key(&block(1)));
    // After the settling time the absent one is no longer waited for.
    net.wait(10_000, "in sync", |n| n.speaker(0).converged());
    net.run_ms(100);
    assert!(net.nodes[1].fib.contains_key(&block(0)));
    assert_eq!(net.nodes[1].removals, 0);
}

#[test]
fn a_second_death_before_the_end_of_rib_drops_what_was_stale() {
    let mut net = up(2);
    net.kill(1);
    net.run_ms(1_000);
    // It comes back, but never knows its routes: no End-of-RIB. Then it dies again.
    net.nodes[1].cfg.restarting = true;
    net.start_without_routes(1);
    net.wait(5_000, "established", |n| n.established(0) == 1);
    assert!(net.nodes[0].fib.contains_key(&block(1)));
    net.kill(1);
    net.run_ms(100);
    assert!(!net.nodes[0].fib.contains_key(&block(1)));
}

#[test]
fn a_goodbye_and_a_silent_peer_lose_their_routes_at_once() {
    let mut net = up(3);
    net.input(1, Input::Shutdown);
    net.run_ms(20);
    assert!(!net.nodes[0].fib.contains_key(&block(1)));

    let mut net = up(3);
    net.silence(1);
    let start = net.now;
    net.wait(250_000, "routes gone", |n| !n.nodes[0].fib.contains_key(&block(1)));
    assert!(net.now.since_ms(start) <= 240_000);
}

#[test]
fn a_node_that_loses_power_and_reboots_takes_its_old_session_over() {
    let mut net = up(3);
    net.silence(1);
    net.run_ms(30_000);
    net.forget_links(1);
    net.nodes[1].fib.clear();
    net.start(1);
    // Node 0 is dialled and sees it at once; node 2 dials, and sees it when its next KEEPALIVE is answered by a reset.
    net.wait(10_000, "node 0 has taken over", |n| {
        n.nodes[0].events.iter().any(|(_, e)| format!("{e:?}").contains("peer restarted"))
    });
    net.run_ms(90_000);
    assert!(net.all_reach(&[0, 1, 2]));
    // Node 0 met it without forwarding state and sent nothing there until it had routes again; node 2 came later.
    assert_eq!(removals(&net), [1, 0, 0]);
}

#[test]
fn external_routes_survive_a_restart_too() {
    let mut net = Net::new(2);
    net.nodes[1].cfg.asn = AS + 1;
    net.nodes[1].routes = vec![own("0.0.0.0/0".parse().unwrap())];
    net.link(0, 1, |_, _| {});
    net.start_all();
    net.run_ms(5_000);
    assert_eq!(net.nodes[0].fib[&"0.0.0.0/0".parse().unwrap()], [address(1)]);
    net.kill(0);
    net.run_until(Mono(net.now.0 + 3_000));
    restart(&mut net, 0);
    net.run_ms(15_000);
    assert_eq!(net.nodes[0].removals + net.nodes[1].removals, 0);
    assert_eq!(net.nodes[1].fib[&block(0)], [address(0)]);
}
