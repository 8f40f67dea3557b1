//! GC: what it may take, and what it must not.

use super::*;

pub(super) fn ipam_add(a: &Attachment) -> Call {
    Call::IpamAdd {
        attachment: a.clone(),
        pools4: vec![],
        pools6: vec![],
        num4: 1,
        num6: 0,
        ips: vec![],
        pools_of_pod: false,
    }
}

fn gc(network: &str, valid: &[&str]) -> Call {
    let valid = valid.iter().map(|c| ValidAttachment { container_id: (*c).into(), ifname: "eth0".into() });
    Call::Gc { network: network.into(), valid: valid.collect(), dry_run: false }
}

fn on(network: &str, id: &str) -> Attachment {
    Attachment { network: network.into(), ..attachment(id) }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_leaves_a_network_alone_whose_name_only_begins_like_its_own() {
    let s = Stage::new("10.1.0.0/24").await;
    let dotted = on("net.v2", "c1");
    s.attach(&dotted).await;
    s.attach(&on("net", "c2")).await;
    // Without an endpoint, and one an earlier agent gave.
    let Reply::Added { .. } = s.ask(ipam_add(&on("net.v2", "c3"))).await else { panic!() };
    let id = "0f3c9d".repeat(10);
    s.given_under(&format!("net.v2.{id}"), &[("node", "n1")]).await;
    assert_eq!(s.in_use().await, 4);
    assert_eq!(s.ask(gc("net", &["c2"])).await, Reply::Deleted);
    assert_eq!(s.in_use().await, 4);
    assert_eq!(s.ask(gc("net.v2", &["c1"])).await, Reply::Deleted);
    assert_eq!(s.in_use().await, 3, "c3 went, and what only guessing would call its own stays");
    assert_eq!(s.endpoints().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_list_is_not_believed_against_addresses_of_other_plugins_interfaces() {
    let s = Stage::new("10.1.0.0/24").await;
    for id in ["c1", "c2", "c3"] {
        let Reply::Added { .. } = s.ask(ipam_add(&attachment(id))).await else { panic!() };
    }
    let (code, msg) = refused(s.ask(gc("net", &[])).await);
    assert_eq!(
        (code, msg.as_str()),
        (
            code::FAILED,
            "GC names no valid attachment of net, but 3 of other plugins' interfaces have addresses; nothing was collected"
        )
    );
    assert_eq!(s.in_use().await, 3);
    assert_eq!(s.ask(gc("net", &["c1"])).await, Reply::Deleted);
    assert_eq!(s.in_use().await, 1);
    assert_eq!(s.ask(gc("net", &[])).await, Reply::Deleted, "a few go at a word");
    assert_eq!(s.in_use().await, 0);
}
