//! Every event in every state, against the literal table in `table.txt`.

use std::{fmt::Write as _, net::Ipv4Addr, sync::Arc};

use crate::{
    fsm::{
        Action, Actions, Cease, Conn, ConnIds, Endpoints, Env, Event, Identity, Jitter, Side, StateKind,
        negotiate,
    },
    speaker::{ConnId, PeerConfig},
    time::Mono,
    wire::{Capability, Message, Notification, Open, RouteRefresh, Update},
};

pub(super) fn me(n: u8) -> Identity {
    Identity { asn: 64512, router_id: Ipv4Addr::new(10, 0, 0, n), restarting: false, preserved: false }
}

pub(super) fn config(n: u8) -> PeerConfig {
    PeerConfig::new(format!("node{n}"), Ipv4Addr::new(10, 0, 0, n).into(), 64512)
}

pub(super) fn ends(initiator: Side) -> Endpoints {
    Endpoints { local: "10.0.0.1:179".parse().unwrap(), remote: "10.0.0.2:40000".parse().unwrap(), initiator }
}

fn events() -> Vec<(&'static str, Event)> {
    let n = || Notification { code: 6, subcode: 2, data: vec![] };
    let open = negotiate::our_open(&config(1), &me(2));
    vec![
        ("Start", Event::Start),
        ("Stop", Event::Stop(Cease::AdministrativeShutdown.into())),
        ("Collision", Event::Collision),
        ("ConnectRetryExpired", Event::ConnectRetryExpired),
        ("HoldExpired", Event::HoldExpired),
        ("KeepaliveExpired", Event::KeepaliveExpired),
        ("DelayOpenExpired", Event::DelayOpenExpired),
        ("IdleHoldExpired", Event::IdleHoldExpired),
        ("SendHoldExpired", Event::SendHoldExpired),
        ("Heard", Event::Heard),
        ("TransportUp", Event::TransportUp(ConnId(9), ends(Side::Them))),
        ("TransportDown", Event::TransportDown("reset".into())),
        ("Open", Event::Open(open.clone())),
        ("OpenBadAs", Event::Open(crate::wire::Open { asn: 65000, ..open.clone() })),
        ("OpenBadId", Event::Open(crate::wire::Open { router_id: me(1).router_id, ..open.clone() })),
        ("OpenBadHold", Event::Open(crate::wire::Open { hold_time: 2, ..open })),
        ("Bad", Event::Bad(Notification { code: 3, subcode: 1, data: vec![] }, "cut".into())),
        ("Notification", Event::Notification(n())),
        ("NotifyReset", Event::Notification(Notification { subcode: 4, ..n() })),
        ("Keepalive", Event::Keepalive),
        ("Update", Event::Update(Update::default())),
        ("RouteRefresh", Event::RouteRefresh(RouteRefresh { afi: 1, safi: 1, subtype: 0 })),
    ]
}

/// A connection brought into a state by legal events only.
fn in_state(state: StateKind) -> Conn {
    let mut ids = ConnIds::default();
    let mut env = Env { now: Mono(0), me: me(1), ids: &mut ids };
    let mut out = Actions::new();
    let mut c = Conn::new(Arc::new(config(2)), Jitter::new(1));
    let steps = [
        Event::Start,
        Event::TransportDown("refused".into()),
        Event::TransportUp(ConnId(7), ends(Side::Them)),
        Event::Open(negotiate::our_open(&config(1), &me(2))),
        Event::Keepalive,
    ];
    for step in steps {
        if c.state() == state {
            break;
        }
        c.handle(&mut env, step, &mut out);
    }
    assert_eq!(c.state(), state);
    c
}

/// A connection that waits for DelayOpenTimer: the transport is there, no OPEN has been sent.
fn delayed(initiator: Side) -> Conn {
    let mut ids = ConnIds::default();
    let mut env = Env { now: Mono(0), me: me(1), ids: &mut ids };
    let mut out = Actions::new();
    let mut cfg = config(2);
    cfg.session.delay_open = 10;
    cfg.passive = initiator == Side::Them;
    let mut c = Conn::new(Arc::new(cfg), Jitter::new(1));
    c.handle(&mut env, Event::Start, &mut out);
    out.clear();
    c.handle(&mut env, Event::TransportUp(ConnId(7), ends(initiator)), &mut out);
    assert!(out.is_empty() && c.awaits_open() && c.id() == Some(ConnId(7)));
    assert_eq!(c.deadline(), Some(Mono(10_000)), "DelayOpenTimer and no other");
    c
}

fn words(out: &Actions) -> String {
    let mut s = String::new();
    for (_, a) in out {
        let _ = match a {
            Action::Dial => write!(s, " dial"),
            Action::Close => write!(s, " close"),
            Action::Send(Message::Open(_)) => write!(s, " OPEN"),
            Action::Send(Message::Keepalive) => write!(s, " KEEPALIVE"),
            Action::Send(Message::Notification(n)) => write!(s, " NOTIFICATION({}/{})", n.code, n.subcode),
            Action::Send(Message::Update(_) | Message::RouteRefresh(_)) => write!(s, " ?"),
            Action::Negotiated(_) => write!(s, " negotiated"),
            Action::Up(_) => write!(s, " up"),
            Action::Down(d) if d.transport_lost => write!(s, " down(transport)"),
            Action::Down(_) => write!(s, " down"),
            Action::Deliver(_) => write!(s, " deliver"),
            Action::Refresh(_) => write!(s, " refresh"),
        };
    }
    s
}

#[test]
fn every_event_in_every_state_does_what_the_table_says() {
    let mut actual = String::new();
    type Make<'a> = &'a dyn Fn() -> Conn;
    let plain = StateKind::ALL.map(|s| (s.to_string(), move || in_state(s)));
    let mut rows: Vec<(String, Make<'_>)> =
        plain.iter().map(|(s, make)| (s.clone(), make as Make<'_>)).collect();
    let (dialled, accepted) = (|| delayed(Side::Us), || delayed(Side::Them));
    rows.push(("Connect+open".into(), &dialled));
    rows.push(("Active+open".into(), &accepted));
    for (state, make) in rows {
        for (name, event) in events() {
            let mut c = make();
            let mut ids = ConnIds::default();
            let mut env = Env { now: Mono(100_000), me: me(1), ids: &mut ids };
            let mut out = Actions::new();
            c.handle(&mut env, event, &mut out);
            let line = format!("{state:<12} {name:<20} {:<12}{}", c.state().to_string(), words(&out));
            actual.push_str(line.trim_end());
            actual.push('\n');
        }
        actual.push('\n');
    }
    let expected: String =
        include_str!("table.txt").lines().filter(|l| !l.starts_with('#')).flat_map(|l| [l, "\n"]).collect();
    assert!(actual == expected, "the table differs; it is now:\n{actual}");
}

#[test]
fn after_an_error_the_back_off_doubles_and_a_stable_session_forgives() {
    let mut ids = ConnIds::default();
    let mut out = Actions::new();
    let mut c = in_state(StateKind::OpenSent);
    let mut now = Mono(0);
    let mut waits = vec![];
    for _ in 0..9 {
        let mut env = Env { now, me: me(1), ids: &mut ids };
        c.handle(&mut env, Event::Keepalive, &mut out);
        assert_eq!(c.state(), StateKind::Idle);
        let at = c.deadline().unwrap();
        waits.push(at.since_ms(now));
        now = at;
        let mut env = Env { now, me: me(1), ids: &mut ids };
        c.on_time(&mut env, &mut out);
        assert_eq!(c.state(), StateKind::Connect);
        c.handle(&mut env, Event::TransportUp(ConnId(3), ends(Side::Us)), &mut out);
    }
    assert!(waits[0] <= 1_000, "{waits:?}");
    assert!(waits.iter().all(|w| *w <= 60_000) && waits[8] >= 45_000, "{waits:?}");
    for w in waits.windows(2).take(5) {
        assert!(w[1] > w[0], "{waits:?}");
    }

    let mut env = Env { now, me: me(1), ids: &mut ids };
    c.handle(&mut env, Event::Open(negotiate::our_open(&config(1), &me(2))), &mut out);
    c.handle(&mut env, Event::Keepalive, &mut out);
    let now = now.plus_ms(60_000);
    let mut env = Env { now, me: me(1), ids: &mut ids };
    c.handle(&mut env, Event::Open(negotiate::our_open(&config(1), &me(2))), &mut out);
    assert!(c.deadline().unwrap().since_ms(now) <= 1_000);
}

#[test]
fn refused_dials_are_repeated_soon_and_then_every_connect_retry_time() {
    let mut ids = ConnIds::default();
    let mut out = Actions::new();
    let mut c = Conn::new(Arc::new(config(2)), Jitter::new(5));
    let mut now = Mono(0);
    c.handle(&mut Env { now, me: me(1), ids: &mut ids }, Event::Start, &mut out);
    let mut waits = vec![];
    for _ in 0..8 {
        c.handle(
            &mut Env { now, me: me(1), ids: &mut ids },
            Event::TransportDown("refused".into()),
            &mut out,
        );
        let at = c.deadline().unwrap();
        waits.push(at.since_ms(now));
        now = at;
        c.on_time(&mut Env { now, me: me(1), ids: &mut ids }, &mut out);
    }
    assert!(waits[0] <= 500 && waits[7] >= 3_750 && waits[7] <= 5_000, "{waits:?}");
    let dials = out.iter().filter(|(_, a)| *a == Action::Dial).count();
    assert_eq!(dials, 9);
}

#[test]
fn hold_time_zero_means_no_timers_and_keepalives_stay_under_a_third_otherwise() {
    for (hold, keepalive, expected) in
        [(0, None, None), (9, None, Some(3)), (9, Some(60), Some(3)), (90, Some(10), Some(10))]
    {
        let mut cfg = config(2);
        cfg.hold_time = hold;
        cfg.keepalive = keepalive;
        let mut ids = ConnIds::default();
        let mut env = Env { now: Mono(0), me: me(1), ids: &mut ids };
        let mut out = Actions::new();
        let mut c = Conn::new(Arc::new(cfg), Jitter::new(1));
        c.handle(&mut env, Event::Start, &mut out);
        c.handle(&mut env, Event::TransportUp(ConnId(2), ends(Side::Us)), &mut out);
        c.handle(&mut env, Event::Open(negotiate::our_open(&config(1), &me(2))), &mut out);
        c.handle(&mut env, Event::Keepalive, &mut out);
        match expected {
            None => assert_eq!(c.deadline(), None),
            Some(s) => {
                let ms = c.deadline().unwrap().0;
                assert!((s * 750..=s * 1_000).contains(&ms), "{ms}");
            }
        }
    }
}

#[test]
fn an_open_may_wait_for_the_peers() {
    let mut ids = ConnIds::default();
    let mut out = Actions::new();
    let mut c = delayed(Side::Us);
    let now = Mono(4_000);
    c.handle(
        &mut Env { now, me: me(1), ids: &mut ids },
        Event::Open(negotiate::our_open(&config(1), &me(2))),
        &mut out,
    );
    assert_eq!((c.state(), words(&out).as_str()), (StateKind::OpenConfirm, " OPEN negotiated KEEPALIVE"));
    assert!(c.deadline() > Some(Mono(14_000)), "DelayOpenTimer is stopped");

    // A silent peer is told who we are when the time is over, and not before.
    let (mut c, mut out) = (delayed(Side::Us), Actions::new());
    c.on_time(&mut Env { now: Mono(9_999), me: me(1), ids: &mut ids }, &mut out);
    assert_eq!((c.state(), out.len()), (StateKind::Connect, 0));
    c.on_time(&mut Env { now: Mono(10_000), me: me(1), ids: &mut ids }, &mut out);
    assert_eq!((c.state(), words(&out).as_str()), (StateKind::OpenSent, " OPEN"));
}

#[test]
fn a_refusal_says_what_to_mend() {
    let good = negotiate::our_open(&config(1), &me(2));
    let judge = |open: &Open| negotiate::negotiate(&config(1), &me(1), ends(Side::Us), open);
    assert!(judge(&good).is_ok());
    let refused = |change: &dyn Fn(&mut Open)| {
        let mut open = good.clone();
        change(&mut open);
        let (n, what) = judge(&open).unwrap_err();
        format!("{n}: {what}")
    };
    let all = [
        refused(&|o| o.asn = 65_099),
        refused(&|o| o.router_id = me(1).router_id),
        refused(&|o| o.router_id = Ipv4Addr::UNSPECIFIED),
        refused(&|o| o.hold_time = 2),
        refused(&|o| o.capabilities = vec![Capability::MultiProtocol { afi: 1, safi: 128 }]),
    ];
    insta::assert_snapshot!(all.join("\n"), @r"
    2/2 OPEN message error: bad peer AS: it says AS 65099, configured is 64512
    2/3 OPEN message error: bad BGP identifier: its identifier 10.0.0.1 is ours, in the same AS
    2/3 OPEN message error: bad BGP identifier: its identifier is 0.0.0.0
    2/6 OPEN message error: unacceptable hold time: it wants a hold time of 2 s; 0, or 3 and more, are allowed
    2/7 OPEN message error: unsupported capability: it announced no address family of ours (IPv4 unicast)
    ");
}
