//! One bad peer cannot hurt another, on whole daemons: thousands of connects, half-open connections, octets one by one,
//! floods from a range. The session next to it stays the same one.

mod support;

use std::{net::Ipv4Addr, time::Duration};

use brindle_bgpd_core::{
    speaker::{DynamicPeers, PeerConfig},
    wire::{Capability, Message, Open},
};
use tokio::time::sleep;

use self::support::{Hand, Node, address, bytes, peer, route};

/// A daemon with a good neighbor, and a range in which everybody is welcome.
async fn victim(max: u32, password: Option<&str>) -> (Node, Node) {
    let (a, b) = (address(), address());
    let mut us = Node::start(a, 64512, vec![peer(a, b, 64512)], &["10.1.0.0/26"]).await;
    let good = Node::start(b, 64512, vec![peer(b, a, 64512)], &["10.2.0.0/26"]).await;
    us.established(b).await;
    let mut template = PeerConfig::new("guest", Ipv4Addr::UNSPECIFIED.into(), 0);
    template.password = password.map(Into::into);
    template.hold_time = 9;
    let range = DynamicPeers { name: "guests".into(), range: "127.0.0.0/8".parse().unwrap(), template, max };
    us.change(|d| {
        if let Some(s) = &mut d.speaker {
            s.dynamic = vec![range];
        }
    })
    .await;
    us.knows(&["10.1.0.0/26", "10.2.0.0/26"]).await;
    (us, good)
}

/// The good session is the one it was, and routes still move over it.
async fn unharmed(us: &mut Node, good: &mut Node) {
    let before = good.peer(us.address).await;
    assert_eq!(before.state, "Established");
    good.change(|d| d.routes = vec![route("10.2.0.0/26"), route("10.2.9.0/26")]).await;
    let address = good.address;
    us.until("the good neighbor's new route", async || {
        let found = us.prefixes().await;
        found.contains("10.2.9.0/26").then_some(()).ok_or(format!("{found:?}"))
    })
    .await;
    let status = us.peer(address).await;
    assert_eq!(status.state, "Established");
    // The first attempts may have met nobody; nothing since has ended the session.
    let ended = status.last_error.as_deref().is_some_and(|e| !e.starts_with("connect failed"));
    assert!(!ended, "{status:?}");
}

/// A guest is in.
async fn guest(us: &Node, of: Ipv4Addr) {
    us.until("session with the guest", async || {
        let status = us.running.handle.status().await.unwrap();
        let up = status.peers.iter().any(|p| p.address == of && p.state == "Established");
        up.then_some(()).ok_or(format!("{:?}", status.peers))
    })
    .await;
}

fn open(asn: u32, of: Ipv4Addr) -> Vec<u8> {
    bytes(&Message::Open(Open {
        asn,
        hold_time: 90,
        router_id: of,
        capabilities: vec![Capability::MultiProtocol { afi: 1, safi: 1 }, Capability::FourOctetAs(asn)],
    }))
}

fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn ten_thousand_connects_cost_nothing_and_nobody() {
    let (mut us, mut good) = victim(4, None).await;
    let from = address();
    let before = rss_kib();
    for n in 0..10_000_u32 {
        let mut hand = Hand::connect(from, us.address).await;
        // Some leave without a word, some talk rubbish first.
        if n % 3 == 0 {
            hand.send(b"GET / HTTP/1.1\r\n\r\n").await;
        }
    }
    assert!(rss_kib() < before + 64 * 1024, "{before} -> {}", rss_kib());
    unharmed(&mut us, &mut good).await;
}

#[tokio::test]
async fn half_open_guests_fill_their_range_and_nothing_else() {
    let (mut us, mut good) = victim(20, None).await;
    let mut held = vec![];
    for _ in 0..60 {
        held.push(Hand::connect(address(), us.address).await);
    }
    us.until("twenty guests", async || {
        let status = us.running.handle.status().await.unwrap();
        let guests = status.peers.iter().filter(|p| p.kind == "dynamic").count();
        (guests == 20).then_some(()).ok_or(format!("{guests}"))
    })
    .await;
    unharmed(&mut us, &mut good).await;
    drop(held);
    us.until("no guests", async || {
        let status = us.running.handle.status().await.unwrap();
        let guests = status.peers.iter().filter(|p| p.kind == "dynamic").count();
        (guests == 0).then_some(()).ok_or(format!("{guests}"))
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_writes_octet_by_octet_gets_its_session_and_delays_nobody() {
    let (mut us, mut good) = victim(4, None).await;
    let from = address();
    let mut hand = Hand::connect(from, us.address).await;
    for octet in open(64_999, from) {
        hand.send(&[octet]).await;
    }
    for octet in bytes(&Message::Keepalive) {
        hand.send(&[octet]).await;
        sleep(Duration::from_millis(1)).await;
    }
    guest(&us, from).await;
    unharmed(&mut us, &mut good).await;
}

#[tokio::test]
async fn a_guest_that_floods_with_garbage_ends_alone() {
    let (mut us, mut good) = victim(4, None).await;
    let from = address();
    let mut hand = Hand::connect(from, us.address).await;
    hand.send(&open(64_999, from)).await;
    hand.send(&bytes(&Message::Keepalive)).await;
    guest(&us, from).await;
    hand.send(&bytes(&Message::Keepalive).repeat(50_000)).await;
    hand.send(&vec![0; 1 << 20]).await;
    assert_eq!(hand.notification().await.code, 1);
    unharmed(&mut us, &mut good).await;
}

#[tokio::test]
async fn a_range_with_a_key_lets_only_those_in_who_have_it() {
    let (us, _good) = victim(4, Some("secret")).await;
    for (key, in_) in [(Some("other"), false), (Some("secret"), true)] {
        let at = address();
        let mut config = peer(at, us.address, 64512);
        config.password = key.map(Into::into);
        let node = Node::start(at, 64513, vec![config], &["10.3.0.0/26"]).await;
        if in_ {
            node.established(us.address).await;
            guest(&us, at).await;
        } else {
            node.until("a refused connection", async || {
                let p = node.peer(us.address).await;
                let tried = p.state == "Active" || p.state == "Connect";
                tried.then_some(()).ok_or(format!("{p:?}"))
            })
            .await;
            assert!(us.running.handle.status().await.unwrap().peers.iter().all(|p| p.address != at));
        }
    }
}
