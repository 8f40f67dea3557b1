//! Attachments whose names could be taken for each other's, and handles that earlier agents wrote.

use brindle_config_core::{ipam::IpamConfigSpec, pool::AllowedUse};
use brindle_ipam::{Allocator, AssignRequest, BlockAllocator, NoPause, Owner, View, Wanted, block::Block};

use super::*;

fn named(network: &str, container: &str, ifname: &str, pod: &str) -> Attachment {
    let pod = Some(PodRef { namespace: "team".into(), name: pod.into(), uid: String::new() });
    Attachment { network: network.into(), ifname: ifname.into(), pod, ..attachment(container) }
}

impl Stage {
    /// As an earlier agent of the node left it.
    pub(super) async fn given_under(&self, handle: &str, attributes: &[(&str, &str)]) -> IpNet {
        let mut allocator = BlockAllocator::new(self.store.clone(), "n1", Arc::new(NoPause));
        let attributes = attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let owner = Owner { handle: handle.into(), attributes };
        let request = AssignRequest::for_workload(owner, Wanted::any(1), Wanted::default());
        let view = View::load(&*self.store, "n1").await.unwrap();
        allocator.assign(&request, &view, super::super::now()).await.unwrap().addresses[0].ip.into()
    }
}

/// An ADD that asks for these very addresses.
pub(super) fn add_with(a: &Attachment, ips: &[std::net::IpAddr]) -> Call {
    Call::Add {
        attachment: a.clone(),
        pools4: vec![],
        pools6: vec![],
        num4: 1,
        num6: 0,
        ips: ips.to_vec(),
        given: vec![],
        ranges: vec![],
        pools_of_pod: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attachments_with_look_alike_names_have_an_address_each() {
    let s = Stage::new("10.1.0.0/24").await;
    let pairs = [
        [named("net", "x", "net1", "a"), named("net.x", "net1", "eth0", "b")],
        [named("net", "ABC", "eth0", "c"), named("net", "abc", "eth0", "d")],
    ];
    for [one, other] in &pairs {
        assert_ne!(s.attach(one).await, s.attach(other).await);
    }
    assert_eq!(s.in_use().await, 4);
    for [one, other] in &pairs {
        assert_eq!(s.ask(del(other)).await, Reply::Deleted);
        let check = Call::Check { attachment: one.clone(), addresses: s.attach(one).await, foreign: false };
        assert_eq!(s.ask(check).await, Reply::Checked, "the other's DEL took nothing of it");
    }
    assert_eq!(s.in_use().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_of_an_earlier_agent_is_found_and_released_and_nobody_elses() {
    let s = Stage::new("10.1.0.0/24").await;
    let of = |pod| [("node", "n1"), ("namespace", "team"), ("pod", pod)];
    let a = named("net", "ABC", "eth0", "a");
    let before = s.given_under("net.ABC", &of("a")).await;
    assert_eq!(s.attach(&a).await, [before], "an ADD repeated after the agent was replaced");
    assert_eq!(s.ask(del(&a)).await, Reply::Deleted);
    assert_eq!(s.in_use().await, 0);
    // Read as another attachment's, `net.x.net1` is somebody else's.
    s.given_under("net.x.net1", &of("b")).await;
    assert_eq!(s.ask(del(&named("net.x", "net1", "eth0", "c"))).await, Reply::Deleted);
    assert_eq!(s.in_use().await, 1);
    assert_eq!(s.ask(del(&named("net", "x", "net1", "b"))).await, Reply::Deleted);
    assert_eq!(s.in_use().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_add_is_given_the_family_it_lacks() {
    let s = Stage::new("10.1.0.0/24").await;
    s.put(ObjectMeta::named("six"), IpPoolSpec::new("fd00::/122".parse().unwrap())).await;
    let a = attachment("c1");
    // The agent was killed between the families.
    let four = s.given_under("net.c1", &[("node", "n1"), ("namespace", "team"), ("pod", "pod-c1")]).await;
    let both = |num6| Call::Add {
        attachment: a.clone(),
        pools4: vec![],
        pools6: vec![],
        num4: 1,
        num6,
        ips: vec![],
        given: vec![],
        ranges: vec![],
        pools_of_pod: false,
    };
    let Reply::Added { addresses, again, .. } = s.ask(both(1)).await else { panic!() };
    assert_eq!((addresses.len(), addresses[0], again), (2, four, true));
    assert!(addresses[1].addr().is_ipv6());
    let Reply::Added { addresses: repeated, .. } = s.ask(both(1)).await else { panic!() };
    assert_eq!(repeated, addresses);
    // What cannot be had takes nothing from what is.
    let (code, _) = refused(s.ask(both(200)).await);
    assert_eq!(code, code::POOL_EXHAUSTED);
    let Reply::Added { addresses: still, .. } = s.ask(both(1)).await else { panic!() };
    assert_eq!(still, addresses);
    assert_eq!(s.ask(del(&a)).await, Reply::Deleted);
    assert_eq!(s.in_use().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_that_can_never_be_fulfilled_is_an_error_of_configuration() {
    let s = Stage::new("10.1.0.0/24").await;
    let tunnels = IpPoolSpec {
        allowed_uses: vec![AllowedUse::Tunnel],
        ..IpPoolSpec::new("10.2.0.0/24".parse().unwrap())
    };
    s.put(ObjectMeta::named("tunnels"), tunnels).await;
    let strict = IpamConfigSpec { strict_affinity: true, ..IpamConfigSpec::default() };
    s.put(ObjectMeta::named("default"), strict).await;
    let block = Block::new("10.1.0.64/26".parse().unwrap(), "n2", super::super::now()).unwrap();
    s.put(ObjectMeta::named("10-1-0-64-26"), block.spec().clone()).await;
    for (ip, said) in [
        ("192.0.2.1", "not in a configured pool"),
        ("10.2.0.1", "is not for Workload addresses"),
        ("10.1.0.65", "belongs to node n2"),
    ] {
        let (code, msg) = refused(s.ask(add_with(&attachment("c1"), &[ip.parse().unwrap()])).await);
        assert_eq!(code, code::CONFIG, "{msg}");
        assert!(msg.contains(said), "{msg}");
    }
    let twice = "10.1.0.1".parse().unwrap();
    let (code, msg) = refused(s.ask(add_with(&attachment("c1"), &[twice, twice])).await);
    assert_eq!((code, msg.as_str()), (code::CONFIG, "10.1.0.1 is asked for twice"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_old_calico_gave_a_pod_under_its_name_goes_with_it() {
    let s = Stage::new("10.1.0.0/24").await;
    let of = |node, pod| [("node", node), ("namespace", "team"), ("pod", pod)];
    s.given_under("team.pod-c1", &of("n1", "pod-c1")).await;
    // By its name this could be the pod's, by what is recorded it is another node's.
    s.given_under("team.pod-c2", &of("n2", "pod-c2")).await;
    // A new sandbox of the pod has an address of its own; the old one's goes when nobody uses it.
    let next = attachment("c1");
    s.attach(&next).await;
    for container in ["c1-old", "c2"] {
        let pod = attachment(if container == "c2" { "c2" } else { "c1" }).pod;
        let a = Attachment { pod, ..attachment(container) };
        assert_eq!(s.ask(del(&a)).await, Reply::Deleted);
    }
    assert_eq!(s.in_use().await, 2, "the new sandbox's and the other node's");
    assert_eq!(s.ask(del(&next)).await, Reply::Deleted);
    assert_eq!(s.in_use().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_attached_under_another_name_of_the_node_goes_whole() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let a = attachment("c1");
    s.attach(&a).await;
    (s.server, s.node) = (None, "n9");
    s.start().await;
    assert_eq!(s.ask(del(&a)).await, Reply::Deleted);
    assert_eq!((s.endpoints().await.len(), s.in_use().await), (0, 0));
}
