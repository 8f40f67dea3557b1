//! Whole daemons on 127.0.0.0/8: routes go both ways, sessions end as they should, and peers that speak garbage get
//! the right NOTIFICATION and harm nobody.

mod support;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use brindle_bgpd::{Desired, spawn};
use brindle_bgpd_core::{
    speaker::{PeerConfig, SpeakerConfig},
    wire::{Capability, Message, Open},
};
use ipnet::IpNet;
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep, timeout},
};

use self::support::{Hand, Node, PATIENCE, PORT, address, bytes, peer, route};

/// Two iBGP neighbors with a route each.
async fn pair() -> (Node, Node) {
    let (a, b) = (address(), address());
    let left = Node::start(a, 64512, vec![peer(a, b, 64512)], &["10.1.0.0/26"]).await;
    let right = Node::start(b, 64512, vec![peer(b, a, 64512)], &["10.2.0.0/26"]).await;
    left.established(b).await;
    right.established(a).await;
    (left, right)
}

#[tokio::test]
async fn two_daemons_exchange_and_withdraw_routes() {
    let (mut a, mut b) = pair().await;
    a.knows(&["10.1.0.0/26", "10.2.0.0/26"]).await;
    b.knows(&["10.1.0.0/26", "10.2.0.0/26"]).await;
    let rib = b.running.handle.rib(Some("10.1.0.0/26".parse().unwrap())).await.unwrap();
    assert_eq!(rib[0].next_hop, Some(a.address.into()));

    a.change(|d| d.routes = vec![route("10.1.1.0/26"), route("10.1.2.3/32")]).await;
    b.knows(&["10.1.1.0/26", "10.1.2.3/32", "10.2.0.0/26"]).await;
    b.change(|d| d.routes.clear()).await;
    a.knows(&["10.1.1.0/26", "10.1.2.3/32"]).await;
}

/// Nobody is told of these in an OPEN.
#[tokio::test]
async fn cluster_local_pref_and_limits_change_while_sessions_go_on() {
    let (mut a, b) = pair().await;
    b.knows(&["10.1.0.0/26", "10.2.0.0/26"]).await;
    for n in 1..4 {
        a.change(|d| {
            let speaker = d.speaker.as_mut().unwrap();
            speaker.cluster_id = Some(Ipv4Addr::new(9, 9, 9, n));
            speaker.local_pref = 100 + u32::from(n);
            speaker.max_paths = 1_000 + usize::from(n);
        })
        .await;
        b.until("the new LOCAL_PREF", async || {
            let rib = b.running.handle.rib(Some("10.1.0.0/26".parse().unwrap())).await.unwrap();
            let pref = rib.first().and_then(|p| p.local_pref);
            (pref == Some(100 + u32::from(n))).then_some(()).ok_or(format!("{rib:?}"))
        })
        .await;
    }
    let after = b.peer(a.address).await;
    assert_eq!((after.state.as_str(), after.last_error), ("Established", None));
}

#[tokio::test]
async fn the_fib_stream_has_what_others_announce_and_says_when_it_is_complete() {
    let (mut a, b) = pair().await;
    let hop: IpAddr = b.address.into();
    let prefix: IpNet = "10.2.0.0/26".parse().unwrap();
    let (mut there, mut in_sync) = (false, false);
    while !(there && in_sync) {
        let batch = timeout(PATIENCE, a.fib.next()).await.unwrap().unwrap();
        there |= batch.changes.iter().any(|c| c.prefix == prefix && c.next_hops.as_slice() == [hop]);
        assert!(
            batch.changes.iter().all(|c| c.prefix == prefix),
            "own routes are not for the kernel: {batch:?}"
        );
        in_sync |= batch.in_sync;
    }
    b.running.shutdown().await;
    let batch = timeout(PATIENCE, a.fib.next()).await.unwrap().unwrap();
    assert!(batch.changes[0].next_hops.is_empty(), "{batch:?}");
}

#[tokio::test]
async fn a_speaker_without_peers_is_complete_at_once() {
    let mut a = Node::start(address(), 64512, vec![], &[]).await;
    let batch = timeout(PATIENCE, a.fib.next()).await.unwrap().unwrap();
    assert!(batch.in_sync && batch.changes.is_empty(), "{batch:?}");
}

#[tokio::test]
async fn a_goodbye_withdraws_at_once_and_an_abandoned_session_keeps_routes() {
    let (a, b) = pair().await;
    a.knows(&["10.1.0.0/26", "10.2.0.0/26"]).await;
    let (left, right) = (a.address, b.address);
    b.running.shutdown().await;
    a.knows(&["10.1.0.0/26"]).await;
    let error = a.peer(right).await.last_error.unwrap();
    assert!(error.to_lowercase().contains("shutdown"), "{error}");

    let b = Node::start(right, 64512, vec![peer(right, left, 64512)], &["10.2.0.0/26"]).await;
    a.knows(&["10.1.0.0/26", "10.2.0.0/26"]).await;
    b.established(left).await;
    b.running.abandon();
    a.until("loss of the session", async || {
        let p = a.peer(right).await;
        (p.state != "Established").then_some(()).ok_or(p.state)
    })
    .await;
    assert!(a.prefixes().await.contains("10.2.0.0/26"), "graceful restart keeps it");
}

#[tokio::test]
async fn changing_one_peer_does_not_disturb_another() {
    let (mut a, b) = pair().await;
    let before = a.peer(b.address).await.since_ms;
    let other = address();
    let from = a.address;
    a.change(|d| d.peers.push(peer(from, other, 64999))).await;
    a.change(|d| d.peers.retain(|p| p.address != IpAddr::V4(other))).await;
    let after = a.peer(b.address).await;
    assert!(after.state == "Established" && after.since_ms >= before, "{after:?}");
    a.change(|d| d.peers.clear()).await;
    a.knows(&["10.1.0.0/26"]).await;
    b.knows(&["10.2.0.0/26"]).await;
}

#[tokio::test]
async fn another_identity_restarts_the_sessions() {
    let (mut a, mut b) = pair().await;
    let (left, right) = (a.address, b.address);
    a.change(|d| d.speaker = Some(SpeakerConfig::new(65001, left))).await;
    b.change(|d| d.peers = vec![peer(right, left, 65001)]).await;
    b.knows(&["10.1.0.0/26", "10.2.0.0/26"]).await;
    let rib = b.running.handle.rib(Some("10.1.0.0/26".parse().unwrap())).await.unwrap();
    assert_eq!(rib[0].as_path, "65001");
    let mut reset = false;
    while !reset {
        reset = timeout(PATIENCE, a.fib.next()).await.unwrap().unwrap().reset;
    }
}

fn open(asn: u32, hold_time: u16, id: Ipv4Addr) -> Vec<u8> {
    let capabilities = vec![Capability::MultiProtocol { afi: 1, safi: 1 }, Capability::FourOctetAs(asn)];
    bytes(&Message::Open(Open { asn, hold_time, router_id: id, capabilities }))
}

#[tokio::test]
async fn garbage_gets_the_right_notification_and_harms_nobody() {
    let (mut a, b) = pair().await;
    let us = a.address;
    let good = open(64666, 90, Ipv4Addr::LOCALHOST);
    let header = |len: u16, kind: u8| [&[0xff; 16][..], &len.to_be_bytes(), &[kind]].concat();
    let mut old_version = good.clone();
    old_version[19] = 3;
    let mut short_hold = good.clone();
    short_hold[22..24].copy_from_slice(&1u16.to_be_bytes());
    let keepalive = bytes(&Message::Keepalive);
    let noise: Vec<u8> = (0..4000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (what, input, code, subcode) in [
        ("noise", noise, 1, 1),
        ("another protocol", b"GET / HTTP/1.0\r\n\r\n".to_vec(), 1, 1),
        ("a length below the header's", header(18, 4), 1, 2),
        ("a length above the maximum", header(4097, 2), 1, 2),
        ("an unknown type", header(19, 9), 1, 3),
        ("an old version", old_version, 2, 1),
        ("a wrong AS", open(64667, 90, Ipv4Addr::LOCALHOST), 2, 2),
        ("AS 0", open(0, 90, Ipv4Addr::LOCALHOST), 2, 2),
        ("no identifier", open(64666, 90, Ipv4Addr::UNSPECIFIED), 2, 3),
        ("a hold time of one second", short_hold, 2, 6),
        ("KEEPALIVE before OPEN", keepalive.clone(), 5, 1),
        ("UPDATE before KEEPALIVE", [good.clone(), header(23, 2), vec![0; 4]].concat(), 5, 2),
        ("OPEN twice", [good.clone(), keepalive, good.clone()].concat(), 5, 3),
    ] {
        // A neighbor each: who was just refused has to wait a moment before it is listened to again.
        let bad = address();
        a.change(|d| d.peers.push(PeerConfig { passive: true, ..peer(us, bad, 64666) })).await;
        let mut hand = Hand::connect(bad, us).await;
        hand.send(&input).await;
        let n = hand.notification().await;
        assert_eq!((n.code, n.subcode), (code, subcode), "{what}: {n:?}");
    }
    let p = a.peer(b.address).await;
    assert_eq!(p.state, "Established");
    assert_eq!(a.prefixes().await.len(), 2);
}

#[tokio::test]
async fn connections_that_say_nothing_or_stop_half_way_disturb_nobody() {
    let (mut a, b) = pair().await;
    let (silent, stranger, us) = (address(), address(), a.address);
    a.change(|d| d.peers.push(PeerConfig { passive: true, ..peer(us, silent, 64666) })).await;
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut hand = Hand::connect(silent, us).await;
        hand.send(&[0xff; 5]).await;
        held.push(hand);
    }
    assert!(Hand::connect(stranger, us).await.next().await.is_none(), "a stranger is closed without a word");
    a.change(|d| d.routes.push(route("10.1.9.0/26"))).await;
    b.knows(&["10.1.0.0/26", "10.1.9.0/26", "10.2.0.0/26"]).await;
    assert_eq!(a.peer(b.address).await.state, "Established");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flooding_peer_does_not_keep_others_from_being_heard() {
    let (mut a, mut b) = pair().await;
    let (loud, us) = (address(), a.address);
    a.change(|d| d.peers.push(PeerConfig { passive: true, ..peer(us, loud, 64666) })).await;
    let mut hand = Hand::connect(loud, us).await;
    hand.send(&open(64666, 90, loud)).await;
    hand.send(&bytes(&Message::Keepalive)).await;
    let (mut read, mut write) = hand.stream.into_split();
    let drain = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
    let flood = tokio::spawn(async move {
        let many: Vec<u8> = std::iter::repeat_n(bytes(&Message::Keepalive), 10_000).flatten().collect();
        while write.write_all(&many).await.is_ok() {}
    });
    for i in 0..5 {
        b.change(|d| d.routes = vec![route(&format!("10.2.{i}.0/26"))]).await;
        a.knows(&["10.1.0.0/26", &format!("10.2.{i}.0/26")]).await;
    }
    flood.abort();
    drain.abort();
}

#[tokio::test]
async fn passwords_and_hop_limits_decide_who_gets_through() {
    let (a, b, c) = (address(), address(), address());
    let with = |of, to, password: &str, ttl| PeerConfig {
        password: Some(password.into()),
        ttl,
        ..peer(of, to, 64512)
    };
    let left = Node::start(
        a,
        64512,
        vec![with(a, b, "right", Some(1)), with(a, c, "right", None)],
        &["10.1.0.0/26"],
    )
    .await;
    let right = Node::start(b, 64512, vec![with(b, a, "right", Some(1))], &[]).await;
    let wrong = Node::start(c, 64512, vec![with(c, a, "wrong", None)], &[]).await;
    left.established(b).await;
    right.knows(&["10.1.0.0/26"]).await;
    assert_ne!(left.peer(c).await.state, "Established");
    assert_ne!(wrong.peer(a).await.state, "Established");
}

#[tokio::test]
async fn an_address_in_use_is_named_and_taken_as_soon_as_it_is_free() {
    let a = address();
    let at = SocketAddr::new(a.into(), PORT);
    let taken = std::net::TcpListener::bind(at).unwrap();
    let (running, _fib) = spawn(false);
    let desired =
        Desired { speaker: Some(SpeakerConfig::new(64512, a)), listen: vec![at], ..Desired::default() };
    let errors = running.handle.apply(desired).await.unwrap();
    assert_eq!(errors[0].address, at);
    assert!(errors[0].to_string().contains("in use"), "{}", errors[0]);
    drop(taken);
    let start = Instant::now();
    while running.handle.status().await.unwrap().listen.contains("failed") {
        assert!(start.elapsed() < PATIENCE);
        sleep(Duration::from_millis(50)).await;
    }
}
