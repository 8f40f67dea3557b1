//! Our own graceful restart (RFC 4724 section 4.1) where nobody can list who will come back.

use super::*;
use crate::wire::GrFamily;

/// A client that keeps our routes while we are away.
fn client(n: u8) -> Open {
    let mut o = open(n, AS);
    o.capabilities.push(Capability::GracefulRestart {
        restarting: false,
        notification: false,
        restart_time: 120,
        families: vec![GrFamily { afi: 1, safi: 1, forwarding_preserved: true }],
    });
    o
}

fn eor() -> Message {
    Message::Update(Update { end_of_rib: Some(Family::Ipv4Unicast), ..Update::default() })
}

/// A reflector with nothing but a range of clients.
fn reflector(restarting: bool) -> Bench {
    let mut cfg = SpeakerConfig::new(AS, [10, 0, 0, 1].into());
    cfg.restarting = restarting;
    let mut b = Bench { s: Speaker::new(cfg), now: Mono(1_000), out: VecDeque::new() };
    let template = PeerConfig { reflector_client: true, ..neighbor(9, AS) };
    b.input(Input::SetDynamic(vec![DynamicPeers {
        name: "clients".into(),
        range: net("10.0.0.0/24"),
        template,
        max: 10,
    }]));
    b.input(Input::SetLocalRoutes(vec![]));
    b.input(Input::SetPeers(vec![]));
    b
}

fn in_sync(b: &Bench) -> bool {
    b.out.iter().any(|o| matches!(o, Output::FibInSync))
}

/// Whether our OPEN had the R bit.
fn restarting(b: &Bench) -> bool {
    b.out.iter().any(|o| match o {
        Output::Send { message: Message::Open(o), .. } => {
            o.capabilities.iter().any(|c| matches!(c, Capability::GracefulRestart { restarting: true, .. }))
        }
        _ => false,
    })
}

#[test]
fn a_restarted_reflector_waits_for_clients_that_only_a_range_knows() {
    let mut b = reflector(true);
    b.wait(500);
    b.establish(2, client(2));
    assert!(restarting(&b) && !in_sync(&b) && b.s.deferred());
    b.message(2, announce(2, &["10.2.0.0/24"], ibgp()));
    b.message(2, eor());
    b.wait(5_500);
    b.establish(3, client(3));
    b.message(3, announce(3, &["10.3.0.0/24"], ibgp()));
    b.wait(3_999);
    b.message(3, eor());
    assert!(b.pull(2).is_empty() && b.pull(3).is_empty(), "who is told half of it drops the other half");
    b.wait(1);
    assert!(in_sync(&b));
    for (n, other) in [(2, "10.3.0.0/24"), (3, "10.2.0.0/24")] {
        let updates = b.pull(n);
        let [route, end] = &updates[..] else { panic!("{updates:?}") };
        assert_eq!((route.reach.len(), end.end_of_rib), (1, Some(Family::Ipv4Unicast)));
        assert_eq!(b.s.rib(Some(net(other))).count(), 1);
    }
}

#[test]
fn a_client_of_a_range_that_is_up_is_waited_for_as_one_that_is_listed() {
    let mut b = reflector(true);
    b.establish(2, client(2));
    b.wait(30_000);
    assert!(b.s.deferred(), "it has not said that it is done");
    b.message(2, eor());
    assert!(in_sync(&b) && !b.s.deferred());
    // Nor longer than for anybody.
    let mut b = reflector(true);
    b.establish(2, client(2));
    b.wait(60_000);
    assert!(in_sync(&b));
}

#[test]
fn a_reflector_that_kept_nothing_waits_for_nobody_that_may_not_exist() {
    assert!(in_sync(&reflector(false)));
}
