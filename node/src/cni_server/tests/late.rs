//! Frames of plugins that were killed: read after somebody else's DEL or ADD of the same container.

use std::collections::BTreeMap;

use brindle_ipam::{Allocator, AssignRequest, BlockAllocator, NoPause, Owner, View, Wanted};

use super::*;

/// A connection that stays open.
pub(super) struct Plugin(Option<StdStream>);

impl Plugin {
    pub(super) fn of(s: &Stage) -> Self {
        Self(Some(StdStream::connect(s.folder.join("cni.sock")).unwrap()))
    }

    pub(super) async fn ask(&mut self, call: Call) -> Reply {
        let mut stream = self.0.take().unwrap();
        let work = move || (proto::ask(&mut stream, call).unwrap(), stream);
        let (reply, stream) = tokio::task::spawn_blocking(work).await.unwrap();
        self.0 = Some(stream);
        reply
    }

    pub(super) async fn added(&mut self, a: &Attachment) -> (Call, bool) {
        let Reply::Added { addresses, host_ifname, again, .. } = self.ask(add(a)).await else {
            panic!("not added")
        };
        let mac = "02:00:00:00:00:01".into();
        (Call::Register { attachment: a.clone(), host_ifname, mac, addresses, floating: vec![] }, again)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_comes_after_the_del_is_refused() {
    let s = Stage::new("10.1.0.0/24").await;
    let a = attachment("c1");
    let mut killed = Plugin::of(&s);
    let (register, _) = killed.added(&a).await;
    assert_eq!(s.ask(del(&a)).await, Reply::Deleted);
    let (code, msg) = refused(killed.ask(register).await);
    assert_eq!(code, code::TRY_AGAIN);
    assert!(msg.contains("container c1 was deleted before this ADD was done"), "{msg}");
    assert_eq!((s.endpoints().await.len(), s.in_use().await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_is_too_late_also_after_a_del_that_was_only_written_down() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let a = attachment("c1");
    let mut killed = Plugin::of(&s);
    let (register, _) = killed.added(&a).await;
    s.store.off.store(true, Ordering::Relaxed);
    assert_eq!(s.ask(del(&a)).await, Reply::Deleted);
    s.store.off.store(false, Ordering::Relaxed);
    let (_, msg) = refused(killed.ask(register).await);
    assert!(msg.contains("was deleted"), "{msg}");
    s.start().await;
    assert_eq!((s.endpoints().await.len(), s.in_use().await, s.journal()), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_add_takes_nothing_from_the_one_that_followed() {
    let s = Stage::new("10.1.0.0/24").await;
    let a = attachment("c1");
    let (mut killed, mut next) = (Plugin::of(&s), Plugin::of(&s));
    let (late, _) = killed.added(&a).await;
    let (register, again) = next.added(&a).await;
    assert!(again);
    let (_, msg) = refused(killed.ask(late).await);
    assert!(msg.contains("was added anew"), "{msg}");
    drop(killed);
    assert_eq!(next.ask(register).await, Reply::Registered);
    // The connection's end is noticed in its own time; until then the address must not go.
    let mut other = Plugin::of(&s);
    for i in 0..50 {
        assert!(matches!(other.ask(Call::Ping).await, Reply::Pong { .. }), "{i}");
        assert_eq!((s.endpoints().await.len(), s.in_use().await), (1, 1));
    }
}

/// An ADD with addresses of another plugin.
fn add_given(a: &Attachment, address: &str) -> Call {
    let Call::Add { attachment, pools4, pools6, num4, num6, ips, pools_of_pod, .. } = add(a) else {
        panic!()
    };
    let given = vec![address.parse().unwrap()];
    Call::Add { attachment, pools4, pools6, num4, num6, ips, given, pools_of_pod }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_another_plugin_gives_is_refused_while_an_endpoint_has_it() {
    let s = Stage::new("10.1.0.0/24").await;
    let there = s.attach(&attachment("c1")).await[0].addr().to_string();
    let before = s.announced().len();
    let (code, msg) = refused(s.ask(add_given(&attachment("c2"), &format!("{there}/32"))).await);
    assert_eq!(code, code::DUPLICATE_ADDRESS);
    assert!(msg.contains(&there) && msg.contains("n1-k8s-pod--c1-eth0"), "{msg}");
    assert_eq!(s.announced().len(), before, "policy is told nothing of it: both would be closed");
    let Reply::Added { .. } = s.ask(add_given(&attachment("c3"), "192.0.2.9/24")).await else { panic!() };
    // Its own address it may have again.
    let Reply::Added { .. } = s.ask(add_given(&attachment("c1"), &format!("{there}/32"))).await else {
        panic!()
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_is_told_of_an_address_before_it_is_recorded_and_told_again_when_another_host_was_first() {
    let s = Stage::new("10.1.0.0/26").await;
    s.attach(&attachment("c1")).await;
    let before = s.announced().len();
    let mut plugin = Plugin::of(&s);
    let (register, _) = plugin.added(&attachment("c2")).await;
    assert_eq!(s.announced()[before..], ["+n1-k8s-pod--c2-eth0"], "once, with what was given");
    let Call::Register { addresses, .. } = &register else { panic!() };
    assert_eq!(s.last_announced(), addresses[..]);
    assert_eq!(plugin.ask(register).await, Reply::Registered);

    // The only block is this node's; another host borrows the address that is next.
    let view = View::load(&*s.store, "n2").await.unwrap();
    let store: Arc<dyn Store> = s.store.clone();
    let mut other = BlockAllocator::new(store, "n2", Arc::new(NoPause));
    let owner = Owner { handle: "net.other".into(), attributes: BTreeMap::new() };
    let wish = AssignRequest::for_workload(owner, Wanted::any(1), Wanted::default());
    let taken = other.assign(&wish, &view, super::super::now()).await.unwrap().addresses[0].ip;

    let before = s.announced().len();
    let (register, _) = plugin.added(&attachment("c3")).await;
    let name = "n1-k8s-pod--c3-eth0";
    assert_eq!(s.announced()[before..], [format!("+{name}"), format!("-{name}"), format!("+{name}")]);
    let Call::Register { addresses, .. } = &register else { panic!() };
    assert_ne!(addresses[0].addr(), taken);
    assert_eq!(s.last_announced(), addresses[..]);
}
