//! The datastore is away: who was here before is served, from the agent's memory, and nobody else; and what becomes of
//! it when the datastore is back.

use std::sync::atomic::Ordering;

use brindle_config_core::pool::AllowedUse;
use brindle_ipam::{Allocator, BlockAllocator, NoPause, Owner, View};

use super::*;
use crate::cni_server::attached;

impl Stage {
    /// The node goes down with its pods, and an agent starts that cannot reach the datastore.
    async fn reboot_without_datastore(&mut self) {
        self.server = None;
        self.store.off.store(true, Ordering::Relaxed);
        self.dataplane.ignorant.store(true, Ordering::Relaxed);
        self.start().await;
    }

    fn datastore_returns(&self) {
        self.dataplane.ignorant.store(false, Ordering::Relaxed);
        self.store.off.store(false, Ordering::Relaxed);
    }

    /// Until nothing is owed to the datastore.
    async fn until_recorded(&self) {
        let owed = || {
            let kept = attached::Attached::read(&self.folder);
            kept.owed().len()
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while owed() != 0 {
            assert!(Instant::now() < deadline, "still {} not recorded", owed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn view(&self) -> View {
        View::load(&*self.store, "n2").await.unwrap()
    }

    fn other_node(&self) -> BlockAllocator {
        BlockAllocator::new(self.store.clone(), "n2", Arc::new(NoPause))
    }
}

fn pod(id: &str, uid: &str) -> Attachment {
    let pod = Some(PodRef { namespace: "team".into(), name: "web-0".into(), uid: uid.into() });
    Attachment { pod, ..attachment(id) }
}

fn owner(handle: &str) -> Owner {
    Owner { handle: handle.into(), ..Owner::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_before_gets_its_addresses_again_and_a_new_one_is_told_why_not() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let a = attachment("c1");
    let before = s.attach(&a).await;
    s.reboot_without_datastore().await;
    // A reboot made it another namespace.
    let again = Attachment { netns_id: "4:9".into(), ..a.clone() };
    assert_eq!(s.attach(&again).await, before);
    let (code, msg) = refused(s.ask(add(&attachment("c2"))).await);
    assert_eq!(code, code::TRY_AGAIN);
    assert!(msg.contains("switched off") && msg.contains("a new pod gets an address only with"), "{msg}");
    s.datastore_returns();
    s.until_recorded().await;
    assert_eq!(s.in_use().await, 1);
    let endpoints = s.endpoints().await;
    assert_eq!(endpoints.len(), 1);
    assert_eq!(endpoints[0].spec.ip_networks, before);
    assert_eq!(endpoints[0].metadata.annotations["cni.brindle.dev/netns"], "4:9");
    // Nobody else can have been given it, and it goes as ever.
    let held = s
        .other_node()
        .assign_ip(before[0].addr(), &owner("x"), AllowedUse::Workload, &s.view().await, super::super::now())
        .await;
    assert!(held.unwrap_err().to_string().contains("net.c1"));
    assert_eq!(s.ask(del(&again)).await, Reply::Deleted);
    assert_eq!((s.in_use().await, s.endpoints().await.len()), (0, 0));
    assert!(attached::Attached::read(&s.folder).of(&a).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_and_made_anew_while_the_datastore_is_away_keeps_its_addresses() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let old = pod("c1", "uid-1");
    let before = s.attach(&old).await;
    s.reboot_without_datastore().await;
    // kubelet clears the old sandbox away and makes a new one.
    assert_eq!(s.ask(del(&old)).await, Reply::Deleted);
    let new = pod("c2", "uid-1");
    assert_eq!(s.attach(&new).await, before);
    // ... and clears away once more what it no longer knows.
    assert_eq!(s.ask(del(&old)).await, Reply::Deleted);
    // A pod of the same name with another uid is another pod.
    assert_eq!(refused(s.ask(add(&pod("c3", "uid-2"))).await).0, code::TRY_AGAIN);
    s.datastore_returns();
    s.until_recorded().await;
    s.until_in_use(1).await;
    let held = s.other_node().by_handle("net.c2").await.unwrap();
    assert_eq!(held.iter().map(|ip| IpNet::from(*ip)).collect::<Vec<_>>(), before);
    assert_eq!(s.endpoints().await[0].spec.container_id, "c2");
    s.start().await;
    assert_eq!((s.journal(), s.in_use().await), (0, 1), "the old DEL hits nobody");
    assert_eq!(s.ask(del(&new)).await, Reply::Deleted);
    assert_eq!(s.in_use().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_goes_before_the_datastore_is_back_leaves_nothing() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let (old, new) = (pod("c1", "uid-1"), pod("c2", "uid-1"));
    s.attach(&old).await;
    s.reboot_without_datastore().await;
    assert_eq!(s.ask(del(&old)).await, Reply::Deleted);
    s.attach(&new).await;
    assert_eq!(s.ask(del(&new)).await, Reply::Deleted);
    s.datastore_returns();
    s.start().await;
    s.until_in_use(0).await;
    assert_eq!((s.journal(), s.endpoints().await.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_went_to_another_node_meanwhile_is_not_used_twice() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let a = attachment("c1");
    let before = s.attach(&a).await;
    s.reboot_without_datastore().await;
    s.attach(&a).await;
    // Somebody took the node for dead, cleared it away and gave its address on.
    let (view, ip) = (View::load(&s.store.inner, "n2").await.unwrap(), before[0].addr());
    let inner: Arc<dyn Store> = Arc::new(s.store.inner.clone());
    let mut other = BlockAllocator::new(inner, "n2", Arc::new(NoPause));
    other.release_handle("net.c1", &view, super::super::now()).await.unwrap();
    other.assign_ip(ip, &owner("net.other"), AllowedUse::Workload, &view, super::super::now()).await.unwrap();
    s.datastore_returns();
    s.until_recorded().await;
    assert_eq!(other.by_handle("net.other").await.unwrap(), [ip]);
    assert_eq!((s.in_use().await, s.endpoints().await.len()), (1, 0), "it is cut off");
    let check = Call::Check { attachment: a.clone(), addresses: before, foreign: false };
    assert!(refused(s.ask(check).await).1.contains("is not recorded"));
    assert_eq!(s.ask(del(&a)).await, Reply::Deleted);
    assert_eq!(other.by_handle("net.other").await.unwrap(), [ip], "its DEL takes nothing of the other's");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_guard_in_the_kernel_nobody_is_let_in() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let a = attachment("c1");
    let addresses = s.attach(&a).await;
    s.reboot_without_datastore().await;
    s.dataplane.open.store(true, Ordering::Relaxed);
    assert!(matches!(s.ask(add(&a)).await, Reply::Added { again: true, .. }));
    let register = Call::Register {
        attachment: a.clone(),
        host_ifname: a.host_ifname("cali"),
        mac: "02:00:00:00:00:01".into(),
        addresses,
        floating: Vec::new(),
    };
    let (code, msg) = refused(s.ask(register).await);
    assert_eq!(code, code::NOT_READY);
    assert!(msg.contains("switched off") && msg.contains("ipset is not installed"), "{msg}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_keeps_its_addresses_over_a_reboot_that_sent_no_del() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let before = s.attach(&pod("c1", "uid-1")).await;
    s.server = None;
    s.start().await;
    assert_eq!(s.attach(&pod("c2", "uid-1")).await, before);
    assert_eq!((s.in_use().await, s.endpoints().await.len()), (1, 1));
    assert_eq!(s.ask(del(&pod("c1", "uid-1"))).await, Reply::Deleted);
    assert_eq!((s.in_use().await, s.endpoints().await.len()), (1, 1), "the old sandbox has nothing any more");
    assert_ne!(s.attach(&pod("c3", "uid-2")).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_names_its_address_has_it_again_after_a_reboot_that_sent_no_del() {
    let s = Stage::new("10.1.0.0/24").await;
    let ips = |last: &[u8]| last.iter().map(|n| std::net::IpAddr::from([10, 1, 0, *n])).collect::<Vec<_>>();
    let naming = async |id: &str, last: &[u8]| {
        let a = pod(id, "uid-1");
        s.attach_by(&a, handles::add_with(&a, &ips(last))).await
    };
    let before = naming("c1", &[7, 9]).await;
    // Another pod does not get what it names, nor does this one what it never had.
    let (mut other, view, now) = (s.other_node(), s.view().await, super::super::now());
    other.assign_ip(ips(&[11])[0], &owner("x"), AllowedUse::Workload, &view, now).await.unwrap();
    for (uid, last) in [("uid-2", &[7][..]), ("uid-1", &[7, 11])] {
        let (code, msg) = refused(s.ask(handles::add_with(&pod("c2", uid), &ips(last))).await);
        assert_eq!(code, code::DUPLICATE_ADDRESS, "{msg}");
    }
    assert_eq!(naming("c2", &[7, 9]).await, before);
    assert_eq!(s.ask(del(&pod("c1", "uid-1"))).await, Reply::Deleted);
    // Of those it had it names one alone now; the other goes with the sandbox that had it.
    assert_eq!(naming("c3", &[9]).await, before[1..]);
    assert_eq!(s.other_node().by_handle("net.c2").await.unwrap(), ips(&[7]));
    assert_eq!(s.ask(del(&pod("c2", "uid-1"))).await, Reply::Deleted);
    assert_eq!(s.other_node().by_handle("net.c3").await.unwrap(), ips(&[9]));
    assert!(s.other_node().by_handle("net.c2").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_memory_is_said_and_costs_only_its_own_pod() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let (a, b) = (attachment("c1"), attachment("c2"));
    let before = s.attach(&a).await;
    s.attach(&b).await;
    let damaged = s.folder.join(attached::FOLDER).join(format!("{}.json", journal::file_stem(&b)));
    std::fs::write(&damaged, b"brindle-cni-journal 1 5").unwrap();
    s.reboot_without_datastore().await;
    assert_eq!(s.attach(&a).await, before);
    assert_eq!(refused(s.ask(add(&b)).await).0, code::TRY_AGAIN);
    assert!(damaged.with_extension("bad").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_keeps_its_address_when_its_pool_is_disabled() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let before = s.attach(&pod("c1", "u1")).await;
    let disabled = IpPoolSpec { disabled: true, ..IpPoolSpec::new("10.1.0.0/24".parse().unwrap()) };
    s.put(ObjectMeta::named("pool"), disabled).await;
    // A reboot, with the datastore there.
    assert_eq!(s.attach(&pod("c2", "u1")).await, before);
    assert_eq!(s.ask(del(&pod("c1", "u1"))).await, Reply::Deleted);
    // And without.
    s.reboot_without_datastore().await;
    assert_eq!(s.attach(&pod("c3", "u1")).await, before);
    s.datastore_returns();
    s.until_recorded().await;
    assert_eq!((s.endpoints().await[0].spec.ip_networks.clone(), s.in_use().await), (before.clone(), 1));
    let check = Call::Check { attachment: pod("c3", "u1"), addresses: before, foreign: false };
    assert_eq!(s.ask(check).await, Reply::Checked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_next_sandbox_keeps_of_its_addresses_what_is_asked_for_still() {
    let s = Stage::new("10.1.0.0/24").await;
    s.put(ObjectMeta::named("six"), IpPoolSpec::new("fd00:1::/64".parse().unwrap())).await;
    s.put(ObjectMeta::named("other"), IpPoolSpec::new("10.2.0.0/24".parse().unwrap())).await;
    let asks = |id: &str, num: (u8, u8), pools: &[&str]| {
        let a = pod(id, "uid-1");
        let Call::Add { attachment, pools6, ips, given, ranges, pools_of_pod, .. } = add(&a) else {
            panic!()
        };
        let pools4 = pools.iter().map(|p| (*p).to_owned()).collect();
        let (num4, num6) = num;
        (a, Call::Add { attachment, pools4, pools6, num4, num6, ips, given, ranges, pools_of_pod })
    };
    let (a, asked) = asks("c1", (1, 1), &["pool"]);
    let first = s.attach_by(&a, asked).await;
    let (a, asked) = asks("c2", (0, 1), &[]);
    assert_eq!(s.attach_by(&a, asked).await, first[1..], "IPv6 alone");
    let (a, asked) = asks("c3", (1, 1), &["other"]);
    let third = s.attach_by(&a, asked).await;
    assert!(third[0].to_string().starts_with("10.2.0.") && third[1] == first[1], "{third:?}");
    for id in ["c1", "c2"] {
        assert_eq!(s.ask(del(&pod(id, "uid-1"))).await, Reply::Deleted);
    }
    assert_eq!(s.in_use().await, 1);
}
