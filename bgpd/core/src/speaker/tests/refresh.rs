//! Route refresh with a beginning and an end (RFC 7313), as asked and as answered.

use super::*;
use crate::wire::{GrFamily, RouteRefresh, refresh};

fn enhanced(n: u8) -> Open {
    let mut o = open(n, AS);
    o.capabilities.push(Capability::EnhancedRouteRefresh);
    o
}

fn say(subtype: u8) -> Message {
    Message::RouteRefresh(RouteRefresh::of(Family::Ipv4Unicast, subtype))
}

fn eor() -> Message {
    Message::Update(Update { end_of_rib: Some(Family::Ipv4Unicast), ..Update::default() })
}

/// Neighbor 2 with two routes, and neighbor 3 that hears about them.
fn bench(open2: Open) -> Bench {
    let mut b = Bench::new(vec![neighbor(2, AS), PeerConfig { reflector_client: true, ..neighbor(3, AS) }]);
    b.establish(2, open2);
    b.establish(3, open(3, AS));
    b.message(2, announce(2, &["10.2.0.0/24", "10.2.1.0/24"], ibgp()));
    b.pull(3);
    b.out.clear();
    b
}

fn routes(b: &Bench) -> usize {
    b.s.rib(None).count()
}

/// The messages in the octets that wait for a neighbor: `R` and a subtype, or `U`.
fn stream(b: &mut Bench, n: u8) -> String {
    let mut buf = BytesMut::new();
    while b.s.next_update(conn(n), 4_096, &mut buf) {}
    let mut said = String::new();
    while let Some((_, len)) = next_frame(&buf, 4_096).unwrap() {
        let cx = WireCx { four_octet_as: true, ibgp: true, ..WireCx::default() };
        match Message::parse(&buf.split_to(len), &cx).unwrap() {
            Message::RouteRefresh(r) => said += &format!("R{}", r.subtype),
            Message::Update(_) => said.push('U'),
            other => panic!("{other:?}"),
        }
    }
    said
}

#[test]
fn the_answer_to_a_refresh_has_a_beginning_and_an_end_where_both_know_them() {
    for (asks, answer) in [(enhanced(3), "R1UR2"), (open(3, AS), "U")] {
        let mut b =
            Bench::new(vec![neighbor(2, AS), PeerConfig { reflector_client: true, ..neighbor(3, AS) }]);
        b.establish(2, open(2, AS));
        b.establish(3, asks);
        b.message(2, announce(2, &["10.2.0.0/24"], ibgp()));
        b.pull(3);
        b.out.clear();
        b.message(3, say(refresh::REQUEST));
        assert_eq!(stream(&mut b, 3), answer);
        // Once is enough.
        assert_eq!(stream(&mut b, 3), "");
        // What an operator has sent again begins and ends in the same way.
        let peer = b.s.peers().nth(1).unwrap().id;
        b.input(Input::Clear { peer, how: Clear::SoftOut });
        assert_eq!(stream(&mut b, 3), answer);
        assert_eq!(sent(&b), 0);
    }
}

/// Messages that do not wait until the neighbor reads.
fn sent(b: &Bench) -> usize {
    b.out.iter().filter(|o| matches!(o, Output::Send { .. })).count()
}

#[test]
fn a_flood_of_requests_is_answered_once_and_once_more() {
    for (asks, answer) in [(enhanced(3), "R1UR2R1UR2"), (open(3, AS), "UU")] {
        let mut b = bench(asks.clone());
        b.input(Input::Disconnected { conn: conn(3), reason: DownReason::Closed("reset".into()) });
        b.establish(3, asks);
        b.pull(3);
        b.out.clear();
        for _ in 0..10_000 {
            b.message(3, say(refresh::REQUEST));
        }
        assert_eq!(sent(&b), 0, "nothing heaps up while it does not read");
        let rings = b.out.iter().filter(|o| matches!(o, Output::Pending { .. })).count();
        assert_eq!((rings, stream(&mut b, 3)), (1, answer.into()));
        // When that is read a request is one like the first.
        b.message(3, say(refresh::REQUEST));
        assert_eq!(stream(&mut b, 3), answer[..answer.len() / 2]);
    }
}

#[test]
fn a_flood_of_beginnings_begins_once() {
    let mut o = enhanced(2);
    o.hold_time = 0;
    let mut b = bench(o);
    b.message(2, say(refresh::BEGIN));
    for _ in 0..100 {
        b.wait(3_000);
        b.message(2, say(refresh::BEGIN));
    }
    b.message(2, announce(2, &["10.2.0.0/24"], ibgp()));
    b.wait(59_000);
    assert_eq!(routes(&b), 2);
    b.wait(2_000);
    assert_eq!(routes(&b), 1, "the time for the end counts from the first");
    // Nor does one that says a little in between begin anew for ever.
    for _ in 0..100 {
        b.message(2, say(refresh::BEGIN));
        b.message(2, announce(2, &["10.2.9.0/24"], ibgp()));
        b.wait(10_000);
    }
    assert_eq!(b.s.rib(None).map(|p| p.prefix).collect::<Vec<_>>(), [net("10.2.9.0/24")]);
}

#[test]
fn a_request_before_our_end_of_rib_begins_nothing_before_it() {
    let mut b = Bench::new(vec![neighbor(2, AS), PeerConfig { reflector_client: true, ..neighbor(3, AS) }]);
    b.establish(2, open(2, AS));
    b.message(2, announce(2, &["10.2.0.0/24", "10.2.1.0/24"], ibgp()));
    b.establish(3, enhanced(3));
    b.message(3, say(refresh::REQUEST));
    assert_eq!(stream(&mut b, 3), "UU", "the first table, and its end, is the answer");
    // Where some of it was told, it may be asked for again, after End-of-RIB.
    b.input(Input::Disconnected { conn: conn(3), reason: DownReason::Closed("reset".into()) });
    b.establish(3, enhanced(3));
    let mut buf = BytesMut::new();
    assert!(b.s.next_update(conn(3), 1, &mut buf));
    b.message(3, say(refresh::REQUEST));
    assert_eq!(stream(&mut b, 3), "UUR1UR2");
}

/// A speaker that waits for neighbor 5, which is away, before it chooses.
pub(super) fn waiting(peers: Vec<PeerConfig>) -> Bench {
    let mut cfg = SpeakerConfig::new(AS, [10, 0, 0, 1].into());
    cfg.restarting = true;
    let mut b = Bench { s: Speaker::new(cfg), now: Mono(1_000), out: VecDeque::new() };
    b.input(Input::SetPeers(peers.into_iter().chain([neighbor(5, AS)]).collect()));
    b.input(Input::SetLocalRoutes(vec![]));
    b
}

#[test]
fn nothing_is_said_while_selection_is_put_off_whoever_asks_for_it() {
    let client = PeerConfig { reflector_client: true, ..neighbor(3, AS) };
    let add_path = AddPath { receive: false, send: Some(AddPathSend::All) };
    let several = PeerConfig { add_path, address: ip(4), ..client.clone() };
    let mut b = waiting(vec![neighbor(2, AS), client, several]);
    b.establish(2, open(2, AS));
    b.message(2, announce(2, &["10.2.0.0/24"], ibgp()));
    b.establish(3, enhanced(3));
    let mut asks = enhanced(4);
    asks.capabilities.push(Capability::AddPath(vec![(1, 1, 1)]));
    b.establish(4, asks);
    b.message(2, announce(2, &["10.2.1.0/24"], ibgp()));
    for n in [3, 4] {
        assert!(b.pull(n).is_empty());
        b.message(n, say(refresh::REQUEST));
        assert!(b.pull(n).is_empty());
    }
    b.out.clear();
    b.wait(61_000);
    for n in [3, 4] {
        assert!(b.out.iter().any(|o| matches!(o, Output::Pending { conn: c } if *c == conn(n))));
        assert_eq!(b.told(n).len(), 2);
    }
}

#[test]
fn an_end_of_refresh_survives_a_change_of_policy_on_its_way() {
    let mut b = Bench::new(vec![neighbor(2, AS)]);
    b.establish(2, enhanced(2));
    b.pull(2);
    b.message(2, say(refresh::REQUEST));
    b.input(Input::SetPeers(vec![PeerConfig { next_hop: NextHopPolicy::SelfAddress, ..neighbor(2, AS) }]));
    assert_eq!(stream(&mut b, 2), "R1R2");
}

#[test]
fn every_path_is_repeated_before_the_end_of_refresh_whatever_policy_becomes_on_its_way() {
    let add_path = AddPath { receive: false, send: Some(AddPathSend::All) };
    let client = PeerConfig { reflector_client: true, add_path, ..neighbor(3, AS) };
    let mut b = Bench::new(vec![neighbor(2, AS), client.clone()]);
    b.establish(2, open(2, AS));
    let mut asks = enhanced(3);
    asks.capabilities.push(Capability::AddPath(vec![(1, 1, 1)]));
    b.establish(3, asks);
    let prefixes: Vec<String> = (0..200).map(|n| format!("10.2.{n}.0/24")).collect();
    for (n, prefix) in (0..).zip(&prefixes) {
        b.message(2, announce(2, &[prefix], AttrSet { med: Some(n), ..ibgp() }));
    }
    assert_eq!(b.told(3).len(), 200);
    b.message(3, say(refresh::REQUEST));
    // Some of the answer is read; then one prefix is kept back.
    let mut buf = BytesMut::new();
    assert!(b.s.next_update(conn(3), 500, &mut buf));
    let export = ExportPolicy { deny: vec![net("10.2.150.0/24")], ..ExportPolicy::default() };
    b.input(Input::SetPeers(vec![neighbor(2, AS), PeerConfig { export, ..client }]));
    while b.s.next_update(conn(3), 4_096, &mut buf) {}
    let cx = WireCx { four_octet_as: true, ibgp: true, add_path: [true, false], ..WireCx::default() };
    let (mut markers, mut repeated) = (vec![], BTreeMap::new());
    while let Some((_, len)) = next_frame(&buf, 4_096).unwrap() {
        match Message::parse(&buf.split_to(len), &cx).unwrap() {
            Message::RouteRefresh(r) => markers.push((r.subtype, repeated.len())),
            Message::Update(u) => {
                for prefixes in u.reach.into_iter().map(|r| r.prefixes) {
                    let Prefixes::V4(list) = prefixes else { panic!("IPv4") };
                    repeated.extend(list.into_iter().map(|n| (n.prefix.to_string(), n.path_id)));
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(markers, [(refresh::BEGIN, 0), (refresh::END, 199)]);
}

#[test]
fn what_a_peer_does_not_repeat_in_a_refresh_goes_at_its_end() {
    let mut b = bench(enhanced(2));
    b.message(2, say(refresh::BEGIN));
    b.message(2, announce(2, &["10.2.0.0/24"], ibgp()));
    b.message(2, announce(2, &["10.2.9.0/24"], ibgp()));
    assert_eq!(routes(&b), 3, "nothing goes before the end");
    b.message(2, say(refresh::END));
    assert_eq!(routes(&b), 2);
    assert!(b.why("10.2.1.0/24").is_empty());
    assert!(
        b.events().iter().any(|e| e.contains("1 routes it did not repeat are dropped")),
        "{:?}",
        b.events()
    );
    // An end without a beginning says nothing.
    b.message(2, say(refresh::END));
    assert_eq!(routes(&b), 2);
    // A beginning in the middle begins anew.
    b.message(2, say(refresh::BEGIN));
    b.message(2, announce(2, &["10.2.0.0/24"], ibgp()));
    b.message(2, say(refresh::BEGIN));
    b.message(2, announce(2, &["10.2.9.0/24"], ibgp()));
    b.message(2, say(refresh::END));
    assert_eq!(b.s.rib(None).map(|p| p.prefix).collect::<Vec<_>>(), [net("10.2.9.0/24")]);
}

#[test]
fn markers_mean_nothing_where_they_were_not_agreed_on() {
    let mut b = bench(open(2, AS));
    b.message(2, say(refresh::BEGIN));
    b.message(2, say(refresh::END));
    b.message(2, say(99));
    assert_eq!(routes(&b), 2);
    b.wait(3_600_000 / 4);
    assert_ne!(b.state(2), StateKind::Established, "only the hold timer ends this");
}

#[test]
fn an_end_that_does_not_come_is_waited_for_so_long() {
    let mut o = enhanced(2);
    o.hold_time = 0;
    let mut b = bench(o);
    b.message(2, say(refresh::BEGIN));
    b.message(2, announce(2, &["10.2.0.0/24"], ibgp()));
    b.wait(359_000);
    assert_eq!(routes(&b), 2);
    b.wait(2_000);
    assert_eq!(routes(&b), 1);
    assert_eq!(b.state(2), StateKind::Established);
}

#[test]
fn routes_kept_over_a_restart_wait_for_end_of_rib_and_not_for_a_refresh() {
    let mut o = enhanced(2);
    o.capabilities.push(Capability::GracefulRestart {
        restarting: false,
        notification: false,
        restart_time: 60,
        families: vec![GrFamily { afi: 1, safi: 1, forwarding_preserved: true }],
    });
    let mut b = bench(o.clone());
    b.input(Input::Disconnected { conn: conn(2), reason: DownReason::Closed("reset".into()) });
    b.establish(2, o);
    b.message(2, announce(2, &["10.2.0.0/24"], ibgp()));
    // Before End-of-RIB a refresh says nothing about what it has (RFC 7313 section 4.2).
    b.message(2, say(refresh::BEGIN));
    b.message(2, say(refresh::END));
    assert_eq!(routes(&b), 2);
    b.message(2, eor());
    assert_eq!(routes(&b), 1);
    b.message(2, say(refresh::BEGIN));
    b.message(2, say(refresh::END));
    assert_eq!(routes(&b), 0);
}

#[test]
fn a_session_lost_during_a_refresh_keeps_what_a_restart_keeps() {
    let mut o = enhanced(2);
    o.capabilities.push(Capability::GracefulRestart {
        restarting: false,
        notification: false,
        restart_time: 60,
        families: vec![GrFamily { afi: 1, safi: 1, forwarding_preserved: true }],
    });
    let mut b = bench(o);
    b.message(2, eor());
    b.message(2, say(refresh::BEGIN));
    b.message(2, announce(2, &["10.2.0.0/24"], ibgp()));
    b.input(Input::Disconnected { conn: conn(2), reason: DownReason::Closed("reset".into()) });
    assert_eq!(routes(&b), 2, "both were good until now");
    assert_eq!(b.s.rib(None).filter(|p| p.stale).count(), 2);
}
