//! GC: what it may take, and what it must not.

use super::{late::Plugin, *};

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

#[tokio::test(flavor = "multi_thread")]
async fn an_add_under_way_keeps_its_addresses() {
    let s = Stage::new("10.1.0.0/24").await;
    s.attach(&attachment("c1")).await;
    for id in ["c2", "c3"] {
        let a = attachment(id);
        let mut plugin = Plugin::of(&s);
        let (register, _) = plugin.added(&a).await;
        assert_eq!(s.ask(gc("net", &["c1"])).await, Reply::Deleted);
        let Call::Register { addresses, .. } = &register else { panic!() };
        let check = Call::Check { attachment: a.clone(), addresses: addresses.clone(), foreign: false };
        assert_eq!(plugin.ask(register).await, Reply::Registered);
        assert_eq!(plugin.ask(check).await, Reply::Checked, "{id}");
    }
    assert_eq!(s.ask(gc("net", &["c1"])).await, Reply::Deleted);
    assert_eq!((s.endpoints().await.len(), s.in_use().await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_add_whose_addresses_were_taken_back_is_not_registered() {
    let s = Stage::new("10.1.0.0/24").await;
    let a = attachment("c1");
    let mut plugin = Plugin::of(&s);
    let (register, _) = plugin.added(&a).await;
    // As a DEL of its addresses alone does it.
    assert_eq!(s.ask(Call::IpamDel { attachment: a.clone() }).await, Reply::Deleted);
    let (code, msg) = refused(plugin.ask(register).await);
    assert_eq!(code, code::TRY_AGAIN);
    assert!(msg.ends_with("was taken back from container c1 before this ADD was done"), "{msg}");
    drop(plugin);
    s.until_in_use(0).await;
    assert_eq!(s.endpoints().await.len(), 0);
}
