//! Questions about sessions that share a name or an address: each gets its own answer, and a `clear` is of what was named.

mod support;

use std::future::pending;

use brindle_bgpd::ask;
use brindle_bgpd_core::{af::Family, speaker::PeerConfig};
use brindle_config_core::status::bgp::{BgpRequest, ClearHow, RouteTable};
use serde_json::Value;

use self::support::{Node, address, peer};

/// The lines of an answer, without its end.
async fn asked(node: &Node, request: BgpRequest) -> Vec<Value> {
    let mut text = Vec::new();
    ask::answer(&node.running.handle, request, &mut text, pending()).await.unwrap();
    let mut lines: Vec<Value> =
        String::from_utf8(text).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let end = lines.pop().unwrap();
    assert_eq!(end["end"]["count"], lines.len(), "{end}");
    lines
}

fn hard(peer: &str) -> BgpRequest {
    BgpRequest::Clear { peer: Some(peer.into()), how: ClearHow::Hard, direction: None }
}

fn names(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|l| l["peer"].as_str().unwrap_or_default()).collect()
}

#[tokio::test]
async fn a_node_with_a_session_for_each_family_is_asked_about_the_right_one() {
    let (a, b) = (address(), address());
    let session = |family, to: std::net::IpAddr| PeerConfig {
        name: "node-b".into(),
        address: to,
        local_address: None,
        passive: true,
        families: vec![family],
        ..peer(a, b, 64512)
    };
    let v6 = session(Family::Ipv6Unicast, "fd00::2".parse().unwrap());
    let node =
        Node::start(a, 64512, vec![session(Family::Ipv4Unicast, b.into()), v6], &["10.1.0.0/26"]).await;
    for (prefix, n) in [("10.1.0.0/26", 1), ("fd00:1::/112", 1)] {
        let request = BgpRequest::Explain { prefix: prefix.parse().unwrap(), peer: Some("node-b".into()) };
        let found = asked(&node, request).await;
        let told: Vec<&Value> = found.iter().filter(|f| f["topic"] == "advertised").collect();
        assert_eq!(told.len(), n, "{prefix}: {found:?}");
        assert!(told[0]["why"].as_str().unwrap().starts_with("peer down"), "{told:?}");
    }
    // Both, and told apart.
    let cleared = asked(&node, hard("node-b")).await;
    assert_eq!(names(&cleared), [format!("node-b {b}").as_str(), "node-b fd00::2"]);
    let cleared = asked(&node, hard("fd00::2")).await;
    assert_eq!(names(&cleared), ["node-b fd00::2"]);
}

#[tokio::test]
async fn of_two_speakers_at_one_address_the_named_one_is_cleared_and_both_are_listed() {
    let (a, b) = (address(), address());
    let first = PeerConfig { name: "a".into(), ..peer(a, b, 64512) };
    // Nobody is at its port.
    let other = PeerConfig { name: "b".into(), port: 1, ..peer(a, b, 64512) };
    let node = Node::start(a, 64512, vec![first, other], &["10.1.0.0/26"]).await;
    let them = Node::start(b, 64512, vec![peer(b, a, 64512)], &["10.2.0.0/26"]).await;
    node.established(b).await;
    node.knows(&["10.1.0.0/26", "10.2.0.0/26"]).await;
    let sessions = async || {
        let all = asked(&node, BgpRequest::Neighbors { peer: None }).await;
        all.iter().map(|n| n["sessions"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(sessions().await, [1, 0]);
    let cleared = asked(&node, hard("b")).await;
    assert_eq!(names(&cleared), ["b"]);
    // An answer is later than what was done for it.
    let status = node.peer(b).await;
    assert_eq!((status.name.as_str(), status.state.as_str()), ("a", "Established"), "{status:?}");
    // By the address both are meant.
    let received =
        BgpRequest::Routes { table: RouteTable::Received, peer: Some(b.to_string()), prefix: None };
    let routes = asked(&node, received).await;
    assert_eq!(routes.len(), 1, "{routes:?}");
    let cleared = asked(&node, hard(&b.to_string())).await;
    assert_eq!(names(&cleared), ["a", "b"]);
    node.until("another session", async || {
        let now = sessions().await;
        (now == [2, 0]).then_some(()).ok_or(format!("{now:?}"))
    })
    .await;
    drop(them);
}
