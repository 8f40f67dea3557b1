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
pub(super) fn add_given(a: &Attachment, address: &str) -> Call {
    let mut call = add(a);
    if let Call::Add { given, .. } = &mut call {
        *given = vec![address.parse().unwrap()];
    }
    call
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
async fn of_two_adds_at_once_for_an_address_of_another_plugin_one_gets_it() {
    let s = Stage::new("10.1.0.0/24").await;
    let [a, b, c] = ["c1", "c2", "c3"].map(attachment);
    let mut first = Plugin::of(&s);
    let given = |a: &Attachment| add_given(a, "192.0.2.9/24");
    let Reply::Added { addresses, host_ifname, .. } = first.ask(given(&a)).await else { panic!() };
    // Neither has an endpoint yet.
    let (code, msg) = refused(s.ask(given(&b)).await);
    assert_eq!(
        (code, msg.as_str()),
        (code::DUPLICATE_ADDRESS, "192.0.2.9 is being given to container c1 at this moment")
    );
    let mac = "02:00:00:00:00:01".into();
    let register = Call::Register { attachment: a.clone(), host_ifname, mac, addresses, floating: vec![] };
    assert_eq!(first.ask(register).await, Reply::Registered);
    let (_, msg) = refused(s.ask(given(&b)).await);
    assert!(msg.contains("n1-k8s-pod--c1-eth0"), "{msg}");
    assert_eq!(s.ask(del(&a)).await, Reply::Deleted);
    // Given up by a plugin that dies: the next one may have it.
    let mut dying = Plugin::of(&s);
    assert!(matches!(dying.ask(given(&b)).await, Reply::Added { .. }));
    drop(dying);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !matches!(s.ask(given(&c)).await, Reply::Added { .. }) {
        assert!(Instant::now() < deadline, "the address is kept for a dead plugin");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_of_a_pool_that_another_plugin_gave_is_not_given_again() {
    let s = Stage::new("10.1.0.0/24").await;
    s.put(
        ObjectMeta::named("pool"),
        IpPoolSpec { block_size_raw: Some(30), ..IpPoolSpec::new("10.1.0.0/30".parse().unwrap()) },
    )
    .await;
    let [theirs, other, ours] = ["c1", "c2", "c3"].map(attachment);
    // Under way, and then attached: each time the pod is refused, its address goes back, and it is tried with another.
    let mut plugin = Plugin::of(&s);
    let given = add_given(&theirs, "10.1.0.0/32");
    let Reply::Added { addresses, host_ifname, .. } = plugin.ask(given).await else { panic!() };
    let (code, msg) = refused(s.ask(add(&other)).await);
    assert_eq!(code, code::DUPLICATE_ADDRESS);
    assert!(msg.starts_with("10.1.0.0 is being given to container c1"), "{msg}");
    assert_eq!(s.in_use().await, 0);
    let mac = "02:00:00:00:00:01".into();
    let register =
        Call::Register { attachment: theirs.clone(), host_ifname, mac, addresses, floating: vec![] };
    assert_eq!(plugin.ask(register).await, Reply::Registered);
    let mut refusals = 0;
    for n in 0..4 {
        match s.ask(add(&ours)).await {
            Reply::Added { addresses, .. } => assert_ne!(addresses[0].addr().to_string(), "10.1.0.0", "{n}"),
            other => {
                let (code, msg) = refused(other);
                assert_eq!(code, code::DUPLICATE_ADDRESS, "{msg}");
                assert!(msg.starts_with("10.1.0.0 is of a pool") && msg.ends_with("container c1"), "{msg}");
                refusals += 1;
            }
        }
        // The plugin's end gives the address back, which goes to the end of the queue.
        s.until_in_use(0).await;
    }
    assert_eq!(refusals, 1);
    assert_eq!(s.endpoints().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_another_plugin_inside_a_pool_is_told_and_taken_back_when_it_is_mended() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let file = s.folder.join("ipam-foreign.json");
    let told = || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let all: Value = serde_json::from_str(&text).unwrap_or_default();
        all["ranges"].as_array().map_or(0, Vec::len)
    };
    let from = |id: &str, address: &str, range: [&str; 2]| {
        let mut call = add_given(&attachment(id), address);
        if let Call::Add { ranges, .. } = &mut call {
            *ranges = vec![(range[0].parse().unwrap(), range[1].parse().unwrap())];
        }
        call
    };
    s.ask(from("c1", "192.0.2.9/32", ["192.0.2.0", "192.0.2.255"])).await;
    assert_eq!(told(), 0);
    // Where another plugin's addresses should be: reserved, or of a pool that gives none.
    let reserved = brindle_config_core::pool::IpReservationSpec {
        reserved_cidrs: vec!["10.1.0.128/25".parse().unwrap()],
        ..Default::default()
    };
    s.put(ObjectMeta::named("theirs"), reserved).await;
    s.put(
        ObjectMeta::named("off"),
        IpPoolSpec { disabled: true, ..IpPoolSpec::new("10.2.0.0/24".parse().unwrap()) },
    )
    .await;
    s.ask(from("c2", "10.1.0.200/32", ["10.1.0.128", "10.1.1.255"])).await;
    s.ask(from("c3", "10.2.0.1/32", ["10.2.0.0", "10.2.0.255"])).await;
    assert_eq!(told(), 0);
    for _ in 0..2 {
        s.ask(from("c4", "10.1.1.7/32", ["10.1.0.127", "10.1.1.255"])).await;
        assert_eq!(told(), 1);
    }
    s.ask(add_given(&attachment("c5"), "10.1.0.77/32")).await;
    assert_eq!(told(), 2, "an address alone");
    // The plugin is given another range.
    s.ask(from("c6", "192.0.2.10/32", ["192.0.2.0", "192.0.2.255"])).await;
    assert_eq!(told(), 1, "the address, which has nothing to do with it");
    s.start().await;
    assert!(!file.exists(), "a new agent begins anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_add_that_meets_a_defect_keeps_no_address_for_itself() {
    let s = Stage::new("10.1.0.0/24").await;
    let [a, b] = ["c1", "c2"].map(attachment);
    s.dataplane.defective.store(true, Ordering::Relaxed);
    let (code, msg) = refused(s.ask(add_given(&a, "192.0.2.9/32")).await);
    assert_eq!(code, code::FAILED, "{msg}");
    s.dataplane.defective.store(false, Ordering::Relaxed);
    let Reply::Added { .. } = s.ask(add_given(&b, "192.0.2.9/32")).await else {
        panic!("the address stays with an ADD that is no more")
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
