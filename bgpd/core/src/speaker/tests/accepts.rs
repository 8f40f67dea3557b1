//! Whose a connection is that somebody makes to us, where an address alone does not say so.

use super::*;

fn at(address: &str, port: u16, passive: bool, interface: Option<&str>) -> PeerConfig {
    let name = format!("{address} {port} {}", interface.unwrap_or_default());
    let mut cfg = PeerConfig::new(name, address.parse().unwrap(), AS);
    (cfg.port, cfg.passive) = (port, passive);
    cfg.session.interface = interface.map(Into::into);
    cfg
}

fn names(b: &Bench) -> Vec<String> {
    b.s.peers().map(|p| p.name).collect()
}

#[test]
fn of_two_speakers_at_one_address_it_is_the_one_that_is_waited_for() {
    let b = Bench::new(vec![at("10.0.0.2", 179, false, None), at("10.0.0.2", 1179, true, None)]);
    let of = |remote: u8| b.s.settings_for(ip(1), ip(remote), None).map(|c| c.port);
    assert_eq!(of(2), Some(1_179));
    assert_eq!(of(3), None, "nobody's");
    // Nobody is waited for: the first.
    let b = Bench::new(vec![at("10.0.0.2", 2179, false, None), at("10.0.0.2", 179, false, None)]);
    assert_eq!(b.s.settings_for(ip(1), ip(2), None).map(|c| c.port), Some(2_179));
    // Both are peers, each with its own settings.
    assert_eq!(names(&b).len(), 2);
}

#[test]
fn a_peer_that_is_bound_to_an_address_of_ours_is_found_only_there() {
    let mut bound = at("10.0.0.2", 179, true, None);
    bound.local_address = Some(ip(9));
    let b = Bench::new(vec![bound]);
    assert!(b.s.settings_for(ip(9), ip(2), None).is_some());
    assert!(b.s.settings_for(ip(1), ip(2), None).is_none());
}

/// Somebody connects to an address of ours; whether that was let in.
fn comes(b: &mut Bench, number: u8, to: u8, from: u8) -> bool {
    b.out.clear();
    b.input(Input::Accepted {
        conn: conn(number),
        local: SocketAddr::new(ip(to), 179),
        remote: SocketAddr::new(ip(from), 40_000),
        interface: None,
    });
    !b.out.iter().any(|o| matches!(o, Output::Close { conn: c } if *c == conn(number)))
}

fn range(template: PeerConfig) -> Input {
    let range = DynamicPeers { name: "r".into(), range: net("10.0.0.0/24"), template, max: 3 };
    Input::SetDynamic(vec![range])
}

#[test]
fn who_is_listed_is_no_guest_at_another_address_of_ours() {
    let mut listed = at("10.0.0.2", 179, true, None);
    listed.local_address = Some(ip(77));
    listed.session.shutdown = Some("maintenance".into());
    let mut b = Bench::new(vec![listed]);
    b.input(range(at("10.0.0.9", 179, true, None)));
    assert!(b.s.settings_for(ip(1), ip(2), None).is_none());
    assert!(!comes(&mut b, 2, 1, 2));
    assert!(b.events()[0].contains("expected at another address of ours"), "{:?}", b.events());
    assert_eq!((names(&b).len(), b.notifications()), (1, vec![]), "as a stranger");
    // At its own it hears that it is down; others are welcome.
    assert!(!comes(&mut b, 2, 77, 2));
    assert_eq!(b.notifications(), [(6, 5)]);
    assert!(comes(&mut b, 3, 1, 3));
}

#[test]
fn a_guest_comes_to_the_address_of_ours_that_its_range_names_and_is_one() {
    let mut template = at("10.0.0.9", 179, true, None);
    template.local_address = Some(ip(77));
    let mut b = Bench::new(vec![]);
    b.input(range(template));
    for number in 2..6 {
        assert!(!comes(&mut b, number, 1, 2));
        assert!(b.events()[0].contains("its range is for another address of ours"), "{:?}", b.events());
        assert!(b.s.settings_for(ip(1), ip(2), None).is_none());
    }
    assert_eq!(names(&b), [""; 0]);
    assert!(comes(&mut b, 2, 77, 2));
    assert!(!comes(&mut b, 3, 1, 2));
    assert_eq!(names(&b), ["r-10.0.0.2"]);
}

#[test]
fn one_link_local_address_on_two_links_is_two_peers() {
    let two = vec![at("fe80::1", 179, true, Some("eth0")), at("fe80::1", 179, true, Some("eth1"))];
    let mut b = Bench::new(two.clone());
    assert_eq!(names(&b), ["fe80::1 179 eth0", "fe80::1 179 eth1"]);
    let (ours, theirs): (IpAddr, IpAddr) = ("fe80::2".parse().unwrap(), "fe80::1".parse().unwrap());
    for device in ["eth0", "eth1"] {
        let found = b.s.settings_for(ours, theirs, Some(device)).unwrap();
        assert_eq!(found.session.interface.as_deref(), Some(device));
    }
    assert!(b.s.settings_for(ours, theirs, Some("eth2")).is_none());
    assert!(b.s.settings_for(ours, theirs, None).is_none());
    // The connection goes to the one of its device, and only that one is put aside by a defect.
    b.input(Input::Accepted {
        conn: conn(2),
        local: SocketAddr::new(ours, 179),
        remote: SocketAddr::new(theirs, 40_000),
        interface: Some("eth1".into()),
    });
    let states = |b: &Bench| b.s.peers().map(|p| p.state).collect::<Vec<_>>();
    assert_eq!(states(&b), [StateKind::Active, StateKind::OpenSent]);
    b.input(Input::Defect {
        remote: SocketAddr::new(theirs, 179),
        interface: Some("eth0".into()),
        what: "a defect".into(),
        seconds: 60,
    });
    assert_eq!(states(&b), [StateKind::Idle, StateKind::OpenSent]);
    // One goes; the other one is the same as before.
    b.input(Input::SetPeers(two[1..].to_vec()));
    assert_eq!(states(&b), [StateKind::OpenSent]);
}

#[test]
fn a_recording_of_before_has_connections_without_a_device() {
    let text = r#"{"Accepted":{"conn":1,"local":"10.0.0.1:179","remote":"10.0.0.2:40000"}}"#;
    let input: Input = serde_json::from_str(text).unwrap();
    assert!(matches!(&input, Input::Accepted { interface: None, .. }));
    assert_eq!(serde_json::to_string(&input).unwrap(), text);
}
