//! A panic in the middle of an input, caught as the driver does: who is to blame, and what is left when that neighbor is put
//! aside.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

const BAD: &str = "203.0.113.0/24";

/// Neighbors 2 and 3 (external) and 4 (internal), with routes of 2 and 3 told to 4; 3 has just met the fault.
fn struck(in_tables: bool) -> Bench {
    let mut b = Bench::new(vec![neighbor(2, 65_002), neighbor(3, 65_003), neighbor(4, AS)]);
    for (n, asn) in [(2, 65_002), (3, 65_003), (4, AS)] {
        b.establish(n, open(n, asn));
    }
    b.message(2, announce(2, &["10.2.0.0/24"], via(&[65_002])));
    b.message(3, announce(3, &["10.3.0.0/24"], via(&[65_003])));
    assert_eq!(b.told(4).len(), 2);
    b.out.clear();
    b.s.set_fault(Fault { in_tables, prefix: BAD.parse().unwrap() });
    let message = announce(3, &[BAD], via(&[65_003]));
    let panicked = catch_unwind(AssertUnwindSafe(|| b.message(3, message)));
    assert!(panicked.is_err());
    b
}

fn put_aside(b: &mut Bench, n: u8, seconds: u32) {
    b.input(Input::Defect {
        remote: SocketAddr::new(ip(n), 179),
        interface: None,
        what: "a defect".into(),
        seconds,
    });
}

#[test]
fn the_neighbor_being_served_is_named_and_where() {
    for in_tables in [false, true] {
        let b = struck(in_tables);
        let three = b.s.peers().find(|p| p.address == ip(3)).unwrap().id;
        let want = if in_tables { Work::Tables(three) } else { Work::Machine(three) };
        assert_eq!(b.s.at_work(), want);
    }
    let mut b = Bench::new(vec![neighbor(2, AS)]);
    b.establish(2, open(2, AS));
    assert_eq!(b.s.at_work(), Work::Nobody, "nobody, when all went well");
}

#[test]
fn who_met_a_defect_loses_its_routes_and_nobody_else_does() {
    let mut b = struck(false);
    put_aside(&mut b, 3, 60);
    assert_eq!(b.state(3), StateKind::Idle);
    assert_eq!(b.notifications(), [(6, 4)], "it is told");
    assert!(b.out.iter().any(|o| matches!(o, Output::Close { conn: c } if *c == conn(3))));
    assert!(
        b.events().iter().any(|e| e.contains("a defect; the session is down for 60 s")),
        "{:?}",
        b.events()
    );
    assert_eq!([b.state(2), b.state(4)], [StateKind::Established; 2]);
    assert_eq!(b.fib(), [(net("10.3.0.0/24"), vec![])]);
    let gone: Vec<_> = b.pull(4).into_iter().flat_map(|u| u.withdrawn).collect();
    assert_eq!(gone.len(), 1);
    assert!(b.why(BAD).is_empty());
    let status = b.s.peers().find(|p| p.address == ip(3)).unwrap();
    assert_eq!(status.last_error.as_deref(), Some("a defect"));
    assert!(status.ended.is_some() && status.start_at.is_some());

    // It is turned away until its time is over, and welcome then; or as soon as an operator says so.
    b.connect(3);
    assert_eq!(b.state(3), StateKind::Idle);
    b.wait(59_000);
    assert_eq!(b.state(3), StateKind::Idle);
    b.wait(2_000);
    b.establish(3, open(3, 65_003));
    put_aside(&mut b, 3, 600);
    let three = b.s.peers().find(|p| p.address == ip(3)).unwrap().id;
    b.input(Input::Clear { peer: three, how: Clear::Reset });
    b.establish(3, open(3, 65_003));
}

#[test]
fn a_new_speaker_puts_a_guest_of_a_range_aside_before_it_has_met_it() {
    let mut b = Bench::new(vec![]);
    let range = DynamicPeers {
        name: "racks".into(),
        range: net("10.0.0.0/24"),
        template: PeerConfig { asn: 0, ..neighbor(0, 1) },
        max: 10,
    };
    b.input(Input::SetDynamic(vec![range]));
    put_aside(&mut b, 7, 60);
    assert_eq!(b.state(7), StateKind::Idle);
    b.connect(7);
    assert_eq!(b.state(7), StateKind::Idle, "turned away");
    b.connect(8);
    assert_ne!(b.state(8), StateKind::Idle);
    b.wait(61_000);
    b.establish(7, open(7, 65_007));
    // An address of no range and no list is nobody.
    b.out.clear();
    b.input(Input::Defect {
        remote: "192.0.2.1:179".parse().unwrap(),
        interface: None,
        what: String::new(),
        seconds: 1,
    });
    assert!(b.out.is_empty(), "{:?}", b.out);
}
