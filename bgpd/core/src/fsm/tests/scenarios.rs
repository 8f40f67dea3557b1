//! What two neighbors do together; and what they never do, whatever happens.

use proptest::prelude::*;

use super::pair::Pair;
use crate::{
    fsm::{Cause, Cease, PeerInput, Side, StateKind, survivor},
    speaker::PeerConfig,
    time::Mono,
    wire::{Message, RouteRefresh, Update},
};

const UP: [StateKind; 2] = [StateKind::Established; 2];

#[test]
fn an_active_and_a_passive_neighbor_come_up_in_three_round_trips() {
    let mut p = Pair::new(1, 10, |n, c| c.passive = n == 1);
    p.start();
    p.run_ms(60);
    assert_eq!(p.states(), UP);
    assert!(p.converged());
}

#[test]
fn crossed_opens_leave_one_session_and_it_is_that_of_the_higher_identifier() {
    for latency in [1, 10, 100, 1_000] {
        let mut p = Pair::new(latency, latency, |_, _| {});
        p.start();
        p.run_ms(20 * latency);
        assert_eq!(p.states(), UP, "latency {latency}");
        assert!(p.converged());
        assert_eq!(p.nodes[0].ups, 1);
        // 10.0.0.2 is node 1: it made the connection that survives.
        let session = p.nodes[0].peer.session().unwrap();
        assert_eq!(session.ends.initiator, Side::Them);
        assert_eq!(p.nodes[1].peer.session().unwrap().ends.initiator, Side::Us);
    }
}

#[test]
fn a_second_dial_that_comes_late_does_not_disturb_the_session() {
    let mut p = Pair::new(3, 5, |_, _| {});
    p.nodes[1].listening = false;
    p.input(0, PeerInput::Start);
    p.run_ms(2_000);
    p.nodes[1].listening = true;
    p.input(1, PeerInput::Start);
    p.run_ms(10_000);
    assert!(p.converged());
    assert_eq!((p.nodes[0].ups, p.nodes[1].ups), (1, 1));
}

#[test]
fn sessions_live_on_keepalives_alone() {
    let mut p = Pair::new(4, 20, |_, c| c.hold_time = 9);
    p.start();
    p.run_ms(3_600_000);
    assert!(p.converged());
    assert_eq!((p.nodes[0].ups, p.nodes[0].downs.len()), (1, 0));
}

#[test]
fn a_silent_network_ends_the_session_after_the_hold_time_and_it_comes_back() {
    let mut p = Pair::new(5, 20, |_, c| c.hold_time = 9);
    p.start();
    p.run_ms(5_000);
    p.black_hole = true;
    p.run_ms(9_100);
    assert_eq!(p.nodes[0].downs, [(Cause::HoldExpired, false)]);
    p.black_hole = false;
    p.run_ms(15_000);
    assert!(p.converged());
}

#[test]
fn a_broken_transport_is_reported_as_such_and_repaired_within_a_second() {
    let mut p = Pair::new(6, 5, |n, c| c.passive = n == 1);
    p.start();
    p.run_ms(1_000);
    p.cut();
    assert!(matches!(p.nodes[0].downs[..], [(Cause::TransportLost(_), true)]));
    p.run_ms(1_000);
    assert!(p.converged());
}

#[test]
fn garbage_costs_one_session_and_only_for_a_second() {
    let mut p = Pair::new(7, 5, |n, c| c.passive = n == 1);
    p.start();
    p.run_ms(1_000);
    p.garbage(0);
    p.run_ms(3_000);
    assert!(p.converged());
    assert!(matches!(&p.nodes[0].downs[..], [(Cause::Sent(n, _), false)] if n.code == 1));
    assert!(matches!(&p.nodes[1].downs[..], [(Cause::Received(n), false)] if n.code == 1));
}

#[test]
fn a_stopped_neighbor_stays_down_until_started() {
    let mut p = Pair::new(8, 5, |_, _| {});
    p.start();
    p.run_ms(1_000);
    p.input(0, PeerInput::Stop(Cease::AdministrativeShutdown.into()));
    p.run_ms(600_000);
    assert_eq!(p.states()[0], StateKind::Idle);
    assert_ne!(p.states()[1], StateKind::Established);
    assert!(matches!(&p.nodes[1].downs[..], [(Cause::Received(n), false)] if (n.code, n.subcode) == (6, 2)));
    p.input(0, PeerInput::Start);
    p.run_ms(70_000);
    assert!(p.converged());
}

#[test]
fn updates_and_refreshes_reach_the_other_side() {
    let mut p = Pair::new(9, 5, |_, _| {});
    p.start();
    p.run_ms(1_000);
    p.say(0, Message::Update(Update::default()));
    p.say(0, Message::RouteRefresh(RouteRefresh { afi: 1, safi: 1, subtype: 0 }));
    p.run_ms(100);
    assert_eq!(p.nodes[1].received.len(), 1);
    assert!(p.converged());
}

/// Node 1 loses its memory and connects again; node 0 has not noticed. With R bit or not, under its old identifier or
/// another, with graceful restart or without.
fn reborn(restarting: bool, same_id: bool, graceful: bool) -> Pair {
    let change = |n: usize, c: &mut PeerConfig| {
        c.passive = n == 0;
        c.restart_time = if graceful { 120 } else { 0 };
    };
    let mut p = Pair::new(10, 5, change);
    p.start();
    p.run_ms(10_000);
    assert!(p.converged());
    let [_, mut reborn] = Pair::new(77, 5, change).nodes;
    reborn.me.restarting = restarting;
    if !same_id {
        reborn.me.router_id = [10, 0, 0, 77].into();
    }
    p.replace(1, reborn);
    p.input(1, PeerInput::Start);
    p.run_ms(1_000);
    p
}

#[test]
fn a_restarted_peer_takes_over_its_old_session() {
    for (restarting, same_id) in [(true, true), (false, true), (true, false)] {
        let p = reborn(restarting, same_id, true);
        assert!(p.converged(), "{restarting} {same_id}");
        assert!(matches!(p.nodes[0].downs[..], [(Cause::Replaced, true)]));
    }
}

#[test]
fn another_speaker_at_its_address_or_a_peer_without_graceful_restart_does_not_end_a_session() {
    for (same_id, graceful) in [(false, true), (true, false)] {
        let p = reborn(false, same_id, graceful);
        assert_eq!(
            (p.states()[0], p.nodes[0].downs.len()),
            (StateKind::Established, 0),
            "{same_id} {graceful}"
        );
        assert_ne!(p.states()[1], StateKind::Established);
    }
}

#[test]
fn identifiers_decide_collisions_and_the_as_breaks_ties() {
    let id = |n| std::net::Ipv4Addr::new(10, 0, 0, n);
    assert_eq!(survivor(id(2), 1, id(1), 9), Side::Us);
    assert_eq!(survivor(id(1), 9, id(2), 1), Side::Them);
    assert_eq!(survivor(id(1), 9, id(1), 1), Side::Us);
    assert_eq!(survivor(id(1), 1, id(1), 9), Side::Them);
}

#[derive(Clone, Debug)]
enum Op {
    Wait(u64),
    Cut,
    Hole(u64),
    Stop(usize),
    Start(usize),
    Garbage(usize),
    Deaf(usize, bool),
    Say(usize, bool),
    Latency(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u64..3_000).prop_map(Op::Wait),
        1 => (3_000u64..400_000).prop_map(Op::Wait),
        1 => Just(Op::Cut),
        1 => (0u64..20_000).prop_map(Op::Hole),
        1 => (0usize..2).prop_map(Op::Stop),
        2 => (0usize..2).prop_map(Op::Start),
        1 => (0usize..2).prop_map(Op::Garbage),
        1 => (0usize..2, any::<bool>()).prop_map(|(n, b)| Op::Deaf(n, b)),
        1 => (0usize..2, any::<bool>()).prop_map(|(n, b)| Op::Say(n, b)),
        1 => (0u64..500).prop_map(Op::Latency),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// `Pair` checks at each step: at most one established, up and down alternate, no deadline in the past.
    #[test]
    fn whatever_happens_two_neighbors_end_with_one_session(
        ops in proptest::collection::vec(op(), 0..40),
        seed: u64,
        passive in 0usize..3,
        delays in prop_oneof![2 => Just([0, 0]), 1 => [0u16..15, 0u16..15]],
    ) {
        let mut p = Pair::new(seed, 10, |n, c| {
            c.hold_time = 9;
            c.passive = n == passive;
            c.session.delay_open = delays[n];
        });
        for op in ops {
            match op {
                Op::Wait(ms) => p.run_ms(ms),
                Op::Cut => p.cut(),
                Op::Hole(ms) => {
                    p.black_hole = true;
                    p.run_ms(ms);
                    p.black_hole = false;
                }
                Op::Stop(n) => p.input(n, PeerInput::Stop(Cease::AdministrativeReset.into())),
                Op::Start(n) => p.input(n, PeerInput::Start),
                Op::Garbage(n) => p.garbage(n),
                Op::Deaf(n, deaf) => p.nodes[n].listening = !deaf,
                Op::Say(n, legal) => p.say(n, if legal {
                    Message::Update(Update::default())
                } else {
                    Message::Open(crate::fsm::negotiate::our_open(&super::table::config(1), &super::table::me(9)))
                }),
                Op::Latency(ms) => p.latency = ms,
            }
        }
        p.latency = 10;
        p.nodes[0].listening = true;
        p.nodes[1].listening = true;
        p.start();
        // The longest that anything can last: an OPEN hold timer of 240 s, then a back-off of 60 s; and once more.
        p.run_until(Mono(p.now.0 + 700_000));
        prop_assert!(p.converged(), "{:?} {:?} {:?}", p.states(), p.nodes[0].peer.cause(), p.nodes[1].peer.cause());
    }
}
