//! Restarts of a neighbor as its helper sees them: RFC 4724, 8538 and 9494 by the letter of the OPEN.

use super::*;
use crate::wire::GrFamily;

/// A neighbor with restart time 60, N bit and long-lived stale time 600 s where asked for.
fn restartable(n: u8, asn: u32, notification: bool, long: u32) -> Open {
    let mut o = open(n, asn);
    o.capabilities.push(Capability::GracefulRestart {
        restarting: false,
        notification,
        restart_time: 60,
        families: vec![GrFamily { afi: 1, safi: 1, forwarding_preserved: true }],
    });
    if long > 0 {
        o.capabilities.push(Capability::LongLivedGracefulRestart(vec![(1, 1, 0x80, long)]));
    }
    o
}

/// Neighbor 2 (external, restarts) and neighbor 3 (internal, hears about it).
fn bench(change: impl Fn(&mut PeerConfig), open2: Open) -> Bench {
    let mut two = neighbor(2, 65_002);
    change(&mut two);
    let mut b = Bench::new(vec![two, neighbor(3, AS)]);
    b.establish(2, open2);
    b.establish(3, open(3, AS));
    b.message(2, announce(2, &["10.2.0.0/24", "10.2.1.0/24"], via(&[65_002])));
    assert_eq!(b.fib().len(), 2);
    b.pull(3);
    b
}

fn lose(b: &mut Bench) {
    b.input(Input::Disconnected { conn: conn(2), reason: DownReason::Closed("reset".into()) });
}

fn notify(b: &mut Bench, code: u8, subcode: u8) {
    b.message(2, Message::Notification(Notification::new(code, subcode)));
}

fn routes(b: &Bench) -> usize {
    b.s.rib(None).count()
}

fn eor() -> Message {
    Message::Update(Update { end_of_rib: Some(Family::Ipv4Unicast), ..Update::default() })
}

#[test]
fn a_notification_keeps_routes_only_with_the_n_bit_on_both_sides() {
    for (ours, theirs, kept) in [(true, true, 2), (true, false, 0), (false, true, 0), (false, false, 0)] {
        let mut b = bench(|c| c.session.notification_restart = ours, restartable(2, 65_002, theirs, 0));
        notify(&mut b, 3, 1);
        assert_eq!(routes(&b), kept, "{ours} {theirs}");
        b.wait(60_000);
        assert_eq!(routes(&b), 0, "restart time over");
    }
}

#[test]
fn a_hard_reset_and_our_own_goodbye_never_keep_routes() {
    let both = |c: &mut PeerConfig| c.session.notification_restart = true;
    let mut b = bench(both, restartable(2, 65_002, true, 600));
    notify(&mut b, 6, 9);
    assert_eq!(routes(&b), 0);

    let mut b = bench(both, restartable(2, 65_002, true, 600));
    let peer = b.s.peers().find(|p| p.address == ip(2)).unwrap().id;
    b.out.clear();
    b.input(Input::Reset { peer, text: "new cable".into() });
    assert_eq!(routes(&b), 0);
    let Some(Output::Send { message: Message::Notification(n), .. }) = b.out.front() else {
        panic!("{:?}", b.out)
    };
    assert_eq!(n.to_string(), "6/9 cease: hard reset of 6/4 cease: administrative reset \"new cable\"");
}

#[test]
fn our_own_notification_of_an_error_keeps_routes_with_the_n_bit() {
    let both = |c: &mut PeerConfig| c.session.notification_restart = true;
    let mut b = bench(both, restartable(2, 65_002, true, 0));
    b.input(Input::BadMessage { conn: conn(2), notification: Notification::new(3, 1), what: "cut".into() });
    assert!(b.notifications().contains(&(3, 1)));
    assert_eq!(routes(&b), 2);
    // An expired hold timer counts the same.
    let mut b = bench(both, restartable(2, 65_002, true, 0));
    b.wait(90_000);
    assert!(b.notifications().contains(&(4, 0)));
    assert_eq!(routes(&b), 2);
}

#[test]
fn too_many_prefixes_are_a_hard_reset_with_the_n_bit() {
    let limit = |c: &mut PeerConfig| {
        c.session.notification_restart = true;
        c.max_prefixes = 2;
    };
    let mut b = bench(limit, restartable(2, 65_002, true, 0));
    b.message(2, announce(2, &["10.2.2.0/24"], via(&[65_002])));
    assert_eq!(b.notifications().last(), Some(&(6, 9)));
    assert_eq!(routes(&b), 0);
}

#[test]
fn what_is_kept_over_a_restart_does_not_count_beside_what_takes_its_place() {
    let limit = |c: &mut PeerConfig| c.max_prefixes = 2;
    let mut b = bench(limit, restartable(2, 65_002, false, 0));
    lose(&mut b);
    b.out.clear();
    b.establish(2, restartable(2, 65_002, false, 0));
    b.message(2, announce(2, &["10.2.8.0/24", "10.2.9.0/24"], via(&[65_002])));
    assert_eq!((b.notifications(), routes(&b)), (vec![], 4));
    b.message(2, eor());
    assert_eq!((b.notifications(), routes(&b)), (vec![], 2));
    // Beyond that the limit holds, before End-of-RIB, too.
    lose(&mut b);
    b.establish(2, restartable(2, 65_002, false, 0));
    b.message(2, announce(2, &["10.2.1.0/24", "10.2.2.0/24", "10.2.3.0/24"], via(&[65_002])));
    assert_eq!(b.notifications().last(), Some(&(6, 1)));
}

#[test]
fn nor_does_it_count_twice_among_the_paths_of_all_neighbors() {
    let mut b = bench(|_| {}, restartable(2, 65_002, false, 0));
    b.message(3, announce(3, &["10.3.0.0/24"], ibgp()));
    b.s.cfg.max_paths = 3;
    lose(&mut b);
    b.out.clear();
    b.establish(2, restartable(2, 65_002, false, 0));
    b.message(2, announce(2, &["10.2.8.0/24", "10.2.9.0/24"], via(&[65_002])));
    b.message(3, announce(3, &["10.3.0.0/24"], AttrSet { med: Some(1), ..ibgp() }));
    assert_eq!((b.notifications(), routes(&b)), (vec![], 5));
    b.message(2, announce(2, &["10.2.7.0/24"], via(&[65_002])));
    assert_eq!(b.notifications(), [(6, 8)]);
}

#[test]
fn restarts_in_a_row_do_not_add_up_beyond_the_limit() {
    let limit = |c: &mut PeerConfig| {
        c.max_prefixes = 2;
        c.session.long_lived = 300;
    };
    let mut b = bench(limit, restartable(2, 65_002, false, 600));
    for n in 1..9 {
        lose(&mut b);
        b.establish(2, restartable(2, 65_002, false, 600));
        b.message(
            2,
            announce(
                2,
                &[&format!("10.2.{}.0/24", 2 * n), &format!("10.2.{}.0/24", 2 * n + 1)],
                via(&[65_002]),
            ),
        );
        if b.state(2) != StateKind::Established {
            assert_eq!((n, b.notifications().last()), (2, Some(&(6, 1))));
            return;
        }
    }
    panic!("{} routes of one that may have 2", routes(&b));
}

#[test]
fn the_restart_time_of_the_peer_is_bounded_by_ours() {
    let mut b = bench(|c| c.session.restart_limit = 10, restartable(2, 65_002, false, 0));
    lose(&mut b);
    b.wait(9_999);
    assert_eq!(routes(&b), 2);
    b.wait(1);
    assert_eq!(routes(&b), 0);
}

#[test]
fn a_second_loss_before_the_end_of_rib_drops_what_was_stale_already() {
    let mut b = bench(|_| {}, restartable(2, 65_002, false, 0));
    lose(&mut b);
    b.wait(1_000);
    b.establish(2, restartable(2, 65_002, false, 0));
    b.message(2, announce(2, &["10.2.0.0/24"], via(&[65_002])));
    lose(&mut b);
    assert_eq!(b.s.rib(None).map(|p| p.prefix).collect::<Vec<_>>(), [net("10.2.0.0/24")]);
}

#[test]
fn a_peer_that_is_back_without_end_of_rib_has_the_stale_time() {
    let mut b = bench(|c| c.session.stale_time = 30, restartable(2, 65_002, false, 0));
    lose(&mut b);
    b.establish(2, restartable(2, 65_002, false, 0));
    b.wait(29_999);
    assert_eq!(routes(&b), 2);
    b.wait(1);
    assert_eq!(routes(&b), 0);
}

#[test]
fn long_lived_stale_routes_are_the_last_resort_and_end_with_their_time() {
    let mut b = bench(|c| c.session.long_lived = 300, restartable(2, 65_002, false, 600));
    lose(&mut b);
    b.wait(59_999);
    assert!(b.s.rib(None).all(|p| p.stale && !p.attributes.communities.contains(&LLGR_STALE)));
    b.wait(1);
    assert!(b.s.rib(None).all(|p| p.stale && p.best && p.attributes.communities.contains(&LLGR_STALE)));
    // Neighbor 3 does not know about such routes: inside the AS it is told so that it does not prefer them.
    let told: Vec<AttrSet> = b.pull(3).into_iter().filter_map(|u| u.attributes).collect();
    assert!(!told.is_empty());
    for set in told {
        assert_eq!(set.local_pref, Some(0));
        assert_eq!(set.communities[..], [LLGR_STALE, 0xFFFF_FF01]);
    }
    // Any other path is better, even with a longer AS_PATH.
    b.message(3, announce(3, &["10.2.0.0/24"], AttrSet { local_pref: Some(1), ..via(&[1, 2, 3, 4]) }));
    assert_eq!(b.why("10.2.0.0/24"), ["long-lived stale", "best"]);
    b.wait(299_999);
    // (The hold time of neighbor 3 is over by then.)
    assert_eq!(routes(&b), 2, "the smaller of both times counts");
    b.wait(1);
    assert_eq!(routes(&b), 0);
}

#[test]
fn long_lived_without_either_side_or_without_graceful_restart_is_nothing() {
    let without_restart = |n, asn| {
        let mut o = restartable(n, asn, false, 600);
        o.capabilities.retain(|c| !matches!(c, Capability::GracefulRestart { .. }));
        o
    };
    for (ours, open2, at_once) in [
        (0, restartable(2, 65_002, false, 600), false),
        (300, restartable(2, 65_002, false, 0), false),
        (300, without_restart(2, 65_002), true),
    ] {
        let mut b = bench(|c| c.session.long_lived = ours, open2);
        lose(&mut b);
        assert_eq!(routes(&b) == 0, at_once);
        b.wait(60_000);
        assert_eq!(routes(&b), 0);
    }
}

#[test]
fn no_llgr_routes_go_when_the_long_time_begins() {
    let mut b = bench(|c| c.session.long_lived = 300, restartable(2, 65_002, false, 600));
    let marked = AttrSet { communities: smallvec::smallvec![NO_LLGR], ..via(&[65_002]) };
    b.message(2, announce(2, &["10.2.1.0/24"], marked));
    lose(&mut b);
    b.wait(60_000);
    assert_eq!(b.s.rib(None).map(|p| p.prefix).collect::<Vec<_>>(), [net("10.2.0.0/24")]);
}

#[test]
fn a_peer_back_in_the_long_time_confirms_what_it_has_and_loses_the_rest() {
    let mut b = bench(|c| c.session.long_lived = 300, restartable(2, 65_002, false, 600));
    lose(&mut b);
    b.wait(100_000);
    b.establish(2, restartable(2, 65_002, false, 600));
    assert_eq!(routes(&b), 2, "F bit set: kept until End-of-RIB");
    b.message(2, announce(2, &["10.2.0.0/24"], via(&[65_002])));
    // Lost again before End-of-RIB: long-lived routes are not dropped for being stale (RFC 9494).
    lose(&mut b);
    assert_eq!(routes(&b), 2);
    b.establish(2, restartable(2, 65_002, false, 600));
    b.message(2, announce(2, &["10.2.0.0/24"], via(&[65_002])));
    b.message(2, eor());
    let left: Vec<_> = b.s.rib(None).map(|p| (p.prefix, p.stale, p.attributes.communities.len())).collect();
    assert_eq!(left, [(net("10.2.0.0/24"), false, 0)]);
    // And without the F bit they go at once.
    lose(&mut b);
    b.wait(100_000);
    let mut lost = restartable(2, 65_002, false, 0);
    lost.capabilities.push(Capability::LongLivedGracefulRestart(vec![(1, 1, 0, 600)]));
    b.establish(2, lost);
    assert_eq!(routes(&b), 0);
}

#[test]
fn external_peers_hear_of_long_lived_routes_only_if_they_know_them() {
    for knows in [true, false] {
        let mut two = neighbor(2, 65_002);
        two.session.long_lived = 300;
        let mut b = Bench::new(vec![two, neighbor(3, 65_003)]);
        b.establish(2, restartable(2, 65_002, false, 600));
        b.establish(3, restartable(3, 65_003, false, if knows { 1 } else { 0 }));
        b.message(2, announce(2, &["10.2.0.0/24"], via(&[65_002])));
        assert_eq!(b.told(3), [net("10.2.0.0/24")]);
        lose(&mut b);
        b.wait(60_000);
        let updates = b.pull(3);
        if knows {
            assert_eq!(updates[0].attributes.as_ref().unwrap().communities[..], [LLGR_STALE]);
        } else {
            assert_eq!(updates[0].withdrawn.len(), 1);
        }
    }
}

#[test]
fn what_we_announce_about_restarts_follows_the_settings() {
    let mut two = neighbor(2, AS);
    two.session.long_lived = 99_999_999;
    two.session.notification_restart = true;
    let mut b = Bench::new(vec![two]);
    b.connect(2);
    let sent = b.out.iter().find_map(|o| match o {
        Output::Send { message: Message::Open(o), .. } => Some(o.clone()),
        _ => None,
    });
    let capabilities = sent.unwrap().capabilities;
    assert!(capabilities.contains(&Capability::LongLivedGracefulRestart(vec![(1, 1, 0, 0xFF_FFFF)])));
    assert!(capabilities.iter().any(|c| matches!(c, Capability::GracefulRestart { notification: true, .. })));
}
