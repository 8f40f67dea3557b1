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
