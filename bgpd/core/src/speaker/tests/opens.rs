//! OPENs, acceptable and not: RFC 4271 section 6.2, 5492, 6286, 6793, 7607.

use super::*;

/// What the speaker answers to an OPEN: the state it is in then, and the NOTIFICATION.
#[track_caller]
fn answer(cfg: PeerConfig, open: Open, state: StateKind, notification: Option<(u8, u8)>) -> Bench {
    let mut b = Bench::new(vec![cfg]);
    b.connect(2);
    b.message(2, Message::Open(open));
    assert_eq!(b.state(2), state);
    assert_eq!(b.notifications(), notification.into_iter().collect::<Vec<_>>());
    b
}

#[test]
fn the_wrong_as_and_as_zero_are_refused() {
    answer(neighbor(2, AS), open(2, AS + 1), StateKind::Idle, Some((2, 2)));
    answer(neighbor(2, AS), open(2, 0), StateKind::Idle, Some((2, 2)));
    answer(neighbor(2, 4_200_000_000), open(2, 4_200_000_000), StateKind::OpenConfirm, None);
}

#[test]
fn our_identifier_is_ours_inside_the_as_only_and_zero_is_nobodys() {
    let own = |asn| Open { router_id: [10, 0, 0, 1].into(), ..open(2, asn) };
    answer(neighbor(2, AS), own(AS), StateKind::Idle, Some((2, 3)));
    answer(neighbor(2, 65_000), own(65_000), StateKind::OpenConfirm, None);
    let zero = Open { router_id: [0, 0, 0, 0].into(), ..open(2, AS) };
    answer(neighbor(2, AS), zero, StateKind::Idle, Some((2, 3)));
}

#[test]
fn hold_times_of_one_and_two_seconds_are_refused_and_the_smaller_one_counts() {
    for (hold, state, n) in [
        (0, StateKind::OpenConfirm, None),
        (1, StateKind::Idle, Some((2, 6))),
        (2, StateKind::Idle, Some((2, 6))),
        (3, StateKind::OpenConfirm, None),
        (65_535, StateKind::OpenConfirm, None),
    ] {
        let b = answer(neighbor(2, AS), Open { hold_time: hold, ..open(2, AS) }, state, n);
        if n.is_none() {
            let session = b.s.peers().next().unwrap().session.unwrap();
            assert_eq!(session.hold_time, hold.min(240));
        }
    }
}

#[test]
fn without_capabilities_a_session_carries_ipv4() {
    let bare = Open { capabilities: vec![], ..open(2, AS) };
    let b = answer(neighbor(2, AS), bare, StateKind::OpenConfirm, None);
    let session = b.s.peers().next().unwrap().session.unwrap();
    assert_eq!(session.families.0, [true, false]);
    assert_eq!(session.restart, None);
}

#[test]
fn no_common_family_is_refused_with_what_is_missing() {
    let six = Open { capabilities: vec![Capability::MultiProtocol { afi: 2, safi: 1 }], ..open(2, AS) };
    let b = answer(neighbor(2, AS), six, StateKind::Idle, Some((2, 7)));
    let data = b.out.iter().find_map(|o| match o {
        Output::Send { message: Message::Notification(n), .. } => Some(n.data.clone()),
        _ => None,
    });
    assert_eq!(data.unwrap(), [1, 4, 0, 1, 0, 1]);
}

#[test]
fn odd_capabilities_do_no_harm() {
    let mut odd = open(2, AS);
    odd.capabilities.extend([
        Capability::Unknown { code: 250, value: vec![1; 200] },
        Capability::MultiProtocol { afi: 25, safi: 65 },
        Capability::MultiProtocol { afi: 1, safi: 1 },
        Capability::AddPath(vec![(1, 1, 3)]),
        Capability::LongLivedGracefulRestart(vec![]),
        Capability::EnhancedRouteRefresh,
    ]);
    answer(neighbor(2, AS), odd, StateKind::OpenConfirm, None);
}

#[test]
fn what_we_announce() {
    let mut cfg = neighbor(2, AS);
    cfg.families = Family::ALL.to_vec();
    cfg.local_asn = Some(4_200_000_001);
    let mut b = Bench::new(vec![cfg]);
    b.connect(2);
    let sent = b.out.iter().find_map(|o| match o {
        Output::Send { message: Message::Open(o), .. } => Some(o.clone()),
        _ => None,
    });
    let sent = sent.unwrap();
    assert_eq!((sent.asn, sent.hold_time), (4_200_000_001, 240));
    assert_eq!(
        sent.capabilities[..5],
        [
            Capability::MultiProtocol { afi: 1, safi: 1 },
            Capability::MultiProtocol { afi: 2, safi: 1 },
            Capability::RouteRefresh,
            Capability::EnhancedRouteRefresh,
            Capability::ExtendedMessage,
        ]
    );
    assert!(matches!(
        &sent.capabilities[5],
        Capability::GracefulRestart { restarting: true, notification: false, restart_time: 120, families }
            if families.len() == 2 && families.iter().all(|f| !f.forwarding_preserved)
    ));
    assert_eq!(sent.capabilities[6..], [Capability::FourOctetAs(4_200_000_001)]);
}

#[test]
fn extended_messages_only_if_both_want_them() {
    let b = answer(neighbor(2, AS), open(2, AS), StateKind::OpenConfirm, None);
    assert!(b.out.iter().any(|o| matches!(o, Output::Negotiated { write, .. } if write.max_len() == 4_096)));
    let mut extended = open(2, AS);
    extended.capabilities.push(Capability::ExtendedMessage);
    let b = answer(neighbor(2, AS), extended, StateKind::OpenConfirm, None);
    assert!(b.out.iter().any(|o| matches!(o, Output::Negotiated { read, .. } if read.max_len() == 65_535)));
}

#[test]
fn the_answer_to_an_open_is_negotiated_then_keepalive() {
    let mut b = Bench::new(vec![neighbor(2, AS)]);
    b.connect(2);
    b.out.clear();
    b.message(2, Message::Open(open(2, AS)));
    assert!(matches!(b.out.pop_front(), Some(Output::Negotiated { .. })));
    assert!(matches!(b.out.pop_front(), Some(Output::Send { message: Message::Keepalive, .. })));
}

#[test]
fn a_silent_peer_is_given_up_after_its_hold_time_and_not_before() {
    let mut b = Bench::new(vec![neighbor(2, AS)]);
    b.establish(2, Open { hold_time: 3, ..open(2, AS) });
    b.wait(2_999);
    assert_eq!(b.state(2), StateKind::Established);
    b.wait(1);
    assert_eq!(b.notifications(), [(4, 0)]);
    let keepalives =
        b.out.iter().filter(|o| matches!(o, Output::Send { message: Message::Keepalive, .. })).count();
    assert!((3..=5).contains(&keepalives), "{keepalives}");
}
