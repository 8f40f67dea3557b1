//! Followers that share what is followed: none of them hangs when a definition or a right is missing, when the server is
//! away or forgets, or when another follower stands still or goes. In-process only: a real server makes no trouble on demand.

use std::sync::Arc;

use brindle_config::KubeStore;
use brindle_config_core::{
    Kind,
    store::{Store, Subscription, SyncEvent},
};
use brindle_integration::kube::{Access, Rule};
use serde_json::{Value, json};

use super::target::{LONG, Target, definitions};

const CALICO: &str = "crd.projectcalico.org";

fn peer(name: &str, number: u32) -> Value {
    json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "BGPPeer", "metadata": {"name": name},
        "spec": {"peerIP": "192.0.2.1", "asNumber": number}})
}

/// Events up to the given number of them, as `+name`, `-name` and `sync`.
async fn told(of: &mut Box<dyn Subscription>, n: usize) -> Vec<String> {
    let mut all = Vec::new();
    while all.len() < n {
        let batch = tokio::time::timeout(LONG, of.next()).await;
        for event in batch.unwrap_or_else(|_| panic!("events come after {all:?}")).unwrap() {
            all.push(match event {
                SyncEvent::Upsert(e) => format!("+{}", e.key.name),
                SyncEvent::Delete(key) => format!("-{}", key.name),
                SyncEvent::InSync => "sync".into(),
            });
        }
    }
    all
}

fn subscribe(store: &KubeStore, kinds: &[Kind]) -> Box<dyn Subscription> {
    store.subscribe(kinds).expect("a cluster is shared")
}

/// Streams opened so far of a collection of Calico's.
fn watches(target: &Target, resource: &str) -> u64 {
    let calls = target.server().calls();
    let of_it = calls.iter().filter(|(c, _)| c.verb == "watch" && c.resource == resource);
    of_it.map(|(_, traffic)| traffic.requests).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_stands_still_and_one_that_goes_hold_up_no_other() {
    let target = Target::ours().await;
    let store = target.store();
    for n in 0..200 {
        target.server().create(peer(&format!("p{n:03}"), n + 1)).unwrap();
    }
    let kinds = [Kind::BgpPeer];
    let mut reads = subscribe(&store, &kinds);
    let mut stands = subscribe(&store, &kinds);
    let goes = subscribe(&store, &kinds);
    assert_eq!(told(&mut reads, 201).await.last().unwrap(), "sync");
    drop(goes);
    for round in 0..20 {
        target.server().apply(peer("p000", 1000 + round)).unwrap();
        assert_eq!(told(&mut reads, 1).await, ["+p000"], "round {round}");
    }
    target.server().delete(("crd.projectcalico.org/v1", "BGPPeer"), ("", "p001")).unwrap();
    assert_eq!(told(&mut reads, 1).await, ["-p001"]);
    let late = told(&mut stands, 200).await;
    assert!(!late.contains(&"+p001".into()) && late[198] == "+p000" && late[199] == "sync", "{late:?}");
    assert_eq!(watches(&target, "bgppeers"), 1, "all by one stream");
    // With the last of them the stream ends; the next one begins anew.
    drop((reads, stands));
    assert_eq!(store.follows(&kinds), Some(false));
    let mut again = subscribe(&store, &kinds);
    assert_eq!(told(&mut again, 200).await[199], "sync");
    assert_eq!(watches(&target, "bgppeers"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_server_and_forgotten_history_are_waited_out() {
    let target = Target::ours().await;
    let store = target.store();
    target.server().create(peer("p1", 1)).unwrap();
    target.server().stop();
    let kinds = [Kind::BgpPeer, Kind::IpPool];
    let mut first = subscribe(&store, &kinds);
    assert_eq!(store.follows(&kinds), Some(false));
    assert!(nothing_comes(&mut first).await, "nothing is known yet");
    target.server().resume();
    assert_eq!(told(&mut first, 2).await, ["+p1", "sync"]);
    for round in 0..3 {
        let (old, new) = (format!("p{}", round + 1), format!("p{}", round + 2));
        target.server().stop();
        target.server().delete(("crd.projectcalico.org/v1", "BGPPeer"), ("", &old)).unwrap();
        target.server().create(peer(&new, 7)).unwrap();
        target.server().compact();
        assert_eq!(store.follows(&kinds), Some(true), "what was known is known");
        target.server().resume();
        assert_eq!(told(&mut first, 2).await, [format!("+{new}"), format!("-{old}")]);
        let mut second = subscribe(&store, &kinds);
        assert_eq!(
            told(&mut second, 2).await,
            [format!("+{new}"), "sync".into()],
            "who comes now sees what is"
        );
    }
}

/// Whether nothing comes at once, with the reading given up.
async fn nothing_comes(of: &mut Box<dyn Subscription>) -> bool {
    tokio::select! {
        biased;
        _ = of.next() => false,
        () = tokio::task::yield_now() => true,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_definition_holds_up_its_kind_alone_until_it_is_applied() {
    let target = Target::ours_bare().await;
    let all = definitions();
    let of = |plural: &str| {
        let name = format!("{plural}.{CALICO}");
        all.iter().find(|d| d["metadata"]["name"] == *name).unwrap_or_else(|| panic!("{name}")).clone()
    };
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    target.create(crds, of("bgppeers")).await;
    target.create(crds, of("ippools")).await;
    let peers = "/apis/crd.projectcalico.org/v1/bgppeers";
    target
        .eventually("peers are served", async || target.call(http::Method::GET, peers, None).await.is_ok())
        .await;
    target.server().create(peer("p1", 1)).unwrap();
    let store = target.store().looking_for_missing_every(std::time::Duration::from_millis(50));
    // Tiers may be absent, networksets may not.
    let mut some = subscribe(&store, &[Kind::BgpPeer, Kind::Tier]);
    let mut wants = subscribe(&store, &[Kind::GlobalNetworkSet]);
    assert_eq!(told(&mut some, 2).await, ["+p1", "sync"], "a kind that may be absent is empty");
    assert!(nothing_comes(&mut wants).await && store.follows(&[Kind::GlobalNetworkSet]) == Some(false));
    target.create(crds, of("globalnetworksets")).await;
    assert_eq!(told(&mut wants, 1).await, ["sync"]);
    target.create(crds, of("tiers")).await;
    let tiers = "/apis/crd.projectcalico.org/v1/tiers";
    target
        .eventually("tiers are served", async || target.call(http::Method::GET, tiers, None).await.is_ok())
        .await;
    let tier = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "Tier", "metadata": {"name": "t"},
        "spec": {"order": 1}});
    target.server().create(tier).unwrap();
    assert_eq!(told(&mut some, 1).await, ["+t"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_right_holds_up_its_kind_alone_until_it_is_given() {
    let target = Target::ours().await;
    target.server().create(peer("p1", 1)).unwrap();
    let rules =
        |resources: &[&str]| Access::Rules(vec![Rule::new(&["get", "list", "watch"], CALICO, resources)]);
    target.server().add_token("few", "somebody", rules(&["ippools"]));
    let store = target.store_with("few");
    let mut pools = subscribe(&store, &[Kind::IpPool]);
    let mut both = subscribe(&store, &[Kind::IpPool, Kind::BgpPeer]);
    assert_eq!(told(&mut pools, 1).await, ["sync"]);
    assert!(nothing_comes(&mut both).await);
    assert_eq!((store.follows(&[Kind::IpPool]), store.follows(&[Kind::BgpPeer])), (Some(true), Some(false)));
    target.server().add_token("few", "somebody", rules(&["ippools", "bgppeers"]));
    assert_eq!(told(&mut both, 2).await, ["+p1", "sync"]);
    // Taken away again: what is known stays, and nothing is lost when it is given back.
    target.server().add_token("few", "somebody", rules(&["ippools"]));
    target.server().drop_watches();
    target.server().create(peer("p2", 2)).unwrap();
    assert_eq!(store.follows(&[Kind::BgpPeer]), Some(true));
    target.server().add_token("few", "somebody", rules(&["ippools", "bgppeers"]));
    assert_eq!(told(&mut both, 1).await, ["+p2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_that_goes_takes_its_resources_with_it() {
    let target = Target::ours().await;
    let store: Arc<KubeStore> =
        Arc::new(target.store().looking_for_missing_every(std::time::Duration::from_millis(50)));
    let tier = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "Tier", "metadata": {"name": "t"},
        "spec": {"order": 1}});
    target.server().create(tier.clone()).unwrap();
    let mut tiers = subscribe(&store, &[Kind::Tier]);
    assert_eq!(told(&mut tiers, 2).await, ["+t", "sync"]);
    let crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/tiers.crd.projectcalico.org";
    target.call(http::Method::DELETE, crd, None).await.unwrap();
    assert_eq!(told(&mut tiers, 1).await, ["-t"]);
    let definition =
        definitions().into_iter().find(|d| d["metadata"]["name"] == "tiers.crd.projectcalico.org");
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let path = "/apis/crd.projectcalico.org/v1/tiers";
    target
        .eventually("the old one is gone", async || target.call(http::Method::GET, path, None).await.is_err())
        .await;
    target.create(crds, definition.unwrap()).await;
    target
        .eventually("tiers are served", async || target.call(http::Method::GET, path, None).await.is_ok())
        .await;
    target.server().create(tier).unwrap();
    assert_eq!(told(&mut tiers, 1).await, ["+t"]);
}
