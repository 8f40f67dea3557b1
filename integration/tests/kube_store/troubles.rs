//! A server that is away, cuts connections, forgets history, denies, and is full. In-process only: a real one does none of
//! it on demand.

use std::time::{Duration, Instant};

use brindle_config::{KubeStore, kubernetes::KubeSettings};
use brindle_config_core::{
    Key, Kind,
    store::{Change, Expect, Revision, Store, StoreError, Watch},
};
use brindle_integration::kube::{Access, ApiServer, Options, Refusal, Rule};
use serde_json::{Value, json};

use super::target::{LONG, Target};

fn peer(n: u32) -> (Key, Value) {
    let key = Key::new(Kind::BgpPeer, None, &format!("p{n}"));
    let value = json!({"metadata": {"name": key.name}, "spec": {"peerIP": "192.0.2.1", "asNumber": n}});
    (key, value)
}

async fn put(store: &KubeStore, n: u32) {
    let (key, value) = peer(n);
    store.put(&key, value, Expect::Absent).await.unwrap();
}

async fn numbers(watch: &mut Box<dyn Watch>, n: usize) -> Vec<u64> {
    let mut all = Vec::new();
    while all.len() < n {
        for change in tokio::time::timeout(LONG, watch.next()).await.expect("changes come").unwrap() {
            match change {
                Change::Put(e) => all.push(e.value["spec"]["asNumber"].as_u64().unwrap()),
                Change::Delete { key, .. } => panic!("{key}"),
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_over_cuts_and_an_absent_server() {
    let target = Target::ours().await;
    let store = target.store();
    let from = store.list(&[Kind::BgpPeer]).await.unwrap().revision;
    let mut watch = store.watch(&[Kind::BgpPeer], from).await.unwrap();
    put(&store, 1).await;
    assert_eq!(numbers(&mut watch, 1).await, [1]);
    for n in 2..6 {
        target.server().drop_watches();
        put(&store, n).await;
        assert_eq!(numbers(&mut watch, 1).await, [u64::from(n)], "none is lost or repeated");
    }
    // Away: calls say so at once, the watch waits.
    target.server().stop();
    let e = store.get(&peer(1).0).await.unwrap_err();
    assert!(matches!(&e, StoreError::Unavailable(why) if why.contains("kubernetes https://127.99.")), "{e}");
    let patience = tokio::time::timeout(Duration::from_millis(300), watch.next()).await;
    assert!(patience.is_err(), "{patience:?}");
    target.server().resume();
    target.eventually("the server answers again", async || store.get(&peer(1).0).await.is_ok()).await;
    put(&store, 6).await;
    assert_eq!(numbers(&mut watch, 1).await, [6]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_that_is_gone_ends_a_watch() {
    let target = Target::ours().await;
    let store = target.store();
    let from = store.list(&[Kind::BgpPeer]).await.unwrap().revision;
    let mut watch = store.watch(&[Kind::BgpPeer], from).await.unwrap();
    put(&store, 1).await;
    assert_eq!(numbers(&mut watch, 1).await, [1]);
    target.server().stop();
    for n in 10..14 {
        let (key, value) = peer(n);
        let mut object = value;
        object["apiVersion"] = json!("crd.projectcalico.org/v1");
        object["kind"] = json!("BGPPeer");
        target.server().create(object).unwrap_or_else(|e| panic!("{key}: {e:?}"));
    }
    target.server().compact();
    target.server().resume();
    let e = tokio::time::timeout(LONG, watch.next()).await.expect("it ends").unwrap_err();
    assert_eq!(e, StoreError::Compacted(from));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_catches_up_after_an_hour_compressed_into_a_moment() {
    use brindle_config_core::store::SyncEvent;
    let target = Target::ours().await;
    let store = target.store();
    put(&store, 1).await;
    let mut events =
        brindle_config::sync::follow(std::sync::Arc::new(store.clone()), vec![Kind::BgpPeer, Kind::IpPool]);
    let mut next = async || tokio::time::timeout(LONG, events.recv()).await.expect("events come").unwrap();
    let first = next().await;
    assert!(matches!(first.as_slice(), [SyncEvent::Upsert(_), SyncEvent::InSync]), "{first:?}");
    target.server().stop();
    target.server().delete(("crd.projectcalico.org/v1", "BGPPeer"), ("", "p1")).unwrap();
    target
        .server()
        .create(
            json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "BGPPeer", "metadata": {"name": "p2"},
            "spec": {"peerIP": "192.0.2.1", "asNumber": 2}}),
        )
        .unwrap();
    target.server().compact();
    target.server().resume();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(next().await);
    }
    assert!(
        matches!(seen.as_slice(), [SyncEvent::Upsert(e), SyncEvent::Delete(k)] if e.key.name == "p2" && k.name == "p1"),
        "only what changed, and no second InSync: {seen:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_right_names_the_rule() {
    let target = Target::ours().await;
    let rule = |verbs: &[&str], groups: &[&str], resources: &[&str]| Rule {
        verbs: verbs.iter().map(|v| (*v).to_owned()).collect(),
        groups: groups.iter().map(|v| (*v).to_owned()).collect(),
        resources: resources.iter().map(|v| (*v).to_owned()).collect(),
        names: Vec::new(),
        urls: Vec::new(),
    };
    let rules = vec![rule(&["get", "list", "watch"], &["crd.projectcalico.org"], &["ippools"])];
    target.server().add_token("few", "somebody", Access::Rules(rules));
    let store = target.store_with("few");
    store.list(&[Kind::IpPool]).await.unwrap();
    let e = store.list(&[Kind::IpPool, Kind::BgpPeer]).await.unwrap_err().to_string();
    assert!(
        e.contains("no right to list bgppeers.crd.projectcalico.org for user \"somebody\"")
            && e.ends_with(r#"add to its ClusterRole: {apiGroups: ["crd.projectcalico.org"], resources: ["bgppeers"], verbs: ["get", "list", "watch"]}"#),
        "{e}"
    );
    let pool = Key::new(Kind::IpPool, None, "p");
    let value = json!({"metadata": {"name": "p"}, "spec": {"cidr": "10.0.0.0/16"}});
    let e = store.put(&pool, value, Expect::Absent).await.unwrap_err().to_string();
    assert!(e.contains(r#"resources: ["ippools"], verbs: ["get", "create"]"#), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_has_expired_says_so_and_a_new_one_is_taken() {
    let target = Target::ours().await;
    let token = target.server().service_account_token("kube-system", "agent");
    target.server().add_token("old", "agent", Access::All);
    let store = target.store_with("old");
    let from = store.list(&[Kind::BgpPeer]).await.unwrap().revision;
    let mut watch = store.watch(&[Kind::BgpPeer], from).await.unwrap();
    target.server().revoke_token("old");
    target.server().drop_watches();
    let e = store.list(&[Kind::BgpPeer]).await.unwrap_err();
    assert!(matches!(&e, StoreError::Broken(why) if why.contains("401 Unauthorized")), "{e}");
    // Somebody writes a new kubeconfig: no restart is needed.
    target.server().add_token(&token, "agent", Access::All);
    target.server().write_kubeconfig(&target.dir.join("kubeconfig-old"), &token);
    target.eventually("the new login is used", async || store.list(&[Kind::BgpPeer]).await.is_ok()).await;
    put(&store, 7).await;
    assert_eq!(numbers(&mut watch, 1).await, [7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_nobody_vouches_for_is_not_talked_to() {
    let target = Target::ours().await;
    let other = brindle_integration::kube::ApiServer::with_tls();
    let mut config: Value = serde_json::from_str(&other.kubeconfig("x")).unwrap();
    config["clusters"][0]["cluster"]["server"] = json!(target.server().url());
    let path = target.dir.join("wrong-ca");
    std::fs::write(&path, config.to_string()).unwrap();
    let store = KubeStore::new(KubeSettings::parse(path.to_str().unwrap()).unwrap());
    let e = store.list(&[Kind::IpPool]).await.unwrap_err();
    assert!(
        matches!(&e, StoreError::Broken(why) if why.contains("TLS") && why.contains("certificate-authority")),
        "{e}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_differ_too_much_for_a_certificate_are_to_be_compared() {
    for years in [(2001, 2002), (2980, 2999)] {
        let server =
            ApiServer::start(Options { tls: true, certificate_years: Some(years), ..Options::default() });
        let dir = std::env::temp_dir().join(format!("brindle-clock-{}-{}", years.0, std::process::id()));
        server.write_kubeconfig(&dir, server.admin_token());
        let store = KubeStore::new(KubeSettings::parse(dir.to_str().unwrap()).unwrap());
        let e = store.list(&[Kind::IpPool]).await.unwrap_err();
        std::fs::remove_file(&dir).unwrap();
        assert!(
            matches!(&e, StoreError::Broken(why) if why.contains("TLS") && why.contains("compare the clocks of both machines")),
            "{years:?}: {e}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_without_definitions_says_what_to_apply() {
    let target = Target::ours_bare().await;
    let store = target.store();
    let e = store.list(&[Kind::IpPool]).await.unwrap_err().to_string();
    assert!(e.contains("kubectl apply -k deploy/crds"), "{e}");
    let definition = super::target::definitions().remove(0);
    let plural = definition["spec"]["names"]["plural"].as_str().unwrap().to_owned();
    target.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    // One of them is not all of them.
    let missing = if plural == "ippools" { Kind::BgpPeer } else { Kind::IpPool };
    target
        .eventually("the missing one is named", async || {
            let e = store.list(&[missing]).await.err().map(|e| e.to_string()).unwrap_or_default();
            e.contains(&format!("the cluster has no {}.crd.projectcalico.org", missing.plural()))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_for_a_time_and_for_good_are_told_apart() {
    let target = Target::ours().await;
    let store = target.store();
    let refuse = |code| Refusal {
        verb: "create".into(),
        resource: "bgppeers".into(),
        code,
        retry_after: None,
        times: 1,
    };
    let (key, value) = peer(1);
    for code in [429, 500, 503, 504] {
        target.server().refuse(refuse(code));
        let e = store.put(&key, value.clone(), Expect::Absent).await.unwrap_err();
        assert!(matches!(&e, StoreError::Unavailable(why) if why.contains(&code.to_string())), "{e}");
        assert_eq!(store.get(&key).await, Err(StoreError::NotFound(key.clone())), "and nothing was written");
    }
    target.server().read_only(true);
    let e = store.put(&key, value.clone(), Expect::Absent).await.unwrap_err();
    assert!(matches!(&e, StoreError::Unavailable(why) if why.contains("database space exceeded")), "{e}");
    store.list(&[Kind::BgpPeer]).await.expect("reading goes on");
    target.server().read_only(false);

    let mut large = value.clone();
    large["metadata"]["annotations"] = json!({"x": "y".repeat(4 << 20)});
    let e = store.put(&key, large, Expect::Absent).await.unwrap_err();
    assert!(
        matches!(&e, StoreError::Refused { .. }) && e.to_string().contains("large"),
        "{}",
        &e.to_string()[..200]
    );
    let mut bad = value.clone();
    bad["spec"]["asNumber"] = json!({"no": "number"});
    let e = store.put(&key, bad, Expect::Absent).await.unwrap_err();
    assert!(matches!(&e, StoreError::Refused { .. }) && e.to_string().contains("spec.asNumber"), "{e}");
    let set = Key::new(Kind::NetworkSet, Some("nowhere"), "s");
    let e =
        store.put(&set, json!({"metadata": {"name": "s"}, "spec": {}}), Expect::Absent).await.unwrap_err();
    assert!(e.to_string().contains("create it first"), "{e}");
    assert_eq!(store.put(&key, value, Expect::Revision(Revision(1))).await, Err(StoreError::NotFound(key)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_to_come_again_later_is_kept_to_it() {
    const SECOND: Duration = Duration::from_secs(1);
    let target = Target::ours().await;
    let store = target.store();
    let refuse = |verb: &str, code, seconds, times| {
        let verb = verb.to_owned();
        let resource = "bgppeers".to_owned();
        target.server().refuse(Refusal { verb, resource, code, retry_after: Some(seconds), times });
    };
    // A write that was not done is done then.
    let begin = Instant::now();
    refuse("create", 429, 1, 2);
    put(&store, 1).await;
    assert!(begin.elapsed() >= 2 * SECOND, "{:?}", begin.elapsed());
    // One that may have been done is the caller's to look at.
    let (key, value) = peer(2);
    refuse("create", 503, 1, 1);
    let e = store.put(&key, value.clone(), Expect::Absent).await.unwrap_err();
    assert!(matches!(&e, StoreError::Unavailable(why) if why.contains("503")), "{e}");
    let begin = Instant::now();
    refuse("get", 503, 1, 1);
    assert_eq!(store.get(&key).await, Err(StoreError::NotFound(key.clone())));
    assert!(begin.elapsed() >= SECOND, "{:?}", begin.elapsed());
    // Later than a call may take: its caller hears that at once.
    let begin = Instant::now();
    refuse("create", 429, 3600, 1);
    let e = store.put(&key, value, Expect::Absent).await.unwrap_err();
    assert!(matches!(&e, StoreError::Unavailable(why) if why.contains("429")), "{e}");
    assert!(begin.elapsed() < 20 * SECOND, "{:?}", begin.elapsed());

    // Followers stay away as well, and ask for no pages because a stream was refused.
    let store = target.store();
    target.server().clear_calls();
    let begin = Instant::now();
    refuse("", 429, 1, 2);
    let mut all = store.subscribe(&[Kind::BgpPeer]).expect("a cluster is shared");
    tokio::time::timeout(LONG, all.next()).await.expect("it comes").unwrap();
    assert!(begin.elapsed() >= 2 * SECOND, "{:?}", begin.elapsed());
    let calls = target.server().calls();
    let lists = calls.iter().filter(|(c, _)| c.resource == "bgppeers" && c.verb == "list").count();
    assert_eq!(lists, 0, "{calls:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_come_in_pages_and_pods_of_other_nodes_do_not_come() {
    let target = Target::ours().await;
    target.namespace("many").await;
    for n in 0..1_203_u32 {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{n}"), "namespace": "many"},
            "spec": {"nodeName": format!("node-{}", n % 10), "automountServiceAccountToken": false,
                "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", n / 256, n % 256)}});
        target.server().apply(object).unwrap();
    }
    let pods = |resource: &str| {
        let calls = target.server().calls();
        let of =
            calls.into_iter().filter(|(r, _)| r.resource == resource && r.verb == "list").map(|(_, t)| t);
        of.fold((0, 0), |(requests, objects), t| (requests + t.requests, objects + t.objects))
    };
    let store = target.store();
    target.server().clear_calls();
    let all = store.list(&[Kind::WorkloadEndpoint]).await.unwrap().entries;
    assert_eq!(all.len(), 1_203);
    assert!(all.is_sorted_by(|a, b| a.key < b.key), "in key order");
    assert_eq!(pods("pods"), (3, 1_203), "pages of 500");
    target.server().clear_calls();
    let own = store.for_node("node-3").unwrap().list(&[Kind::WorkloadEndpoint]).await.unwrap().entries;
    assert_eq!(own.len(), 120);
    assert_eq!(pods("pods"), (1, 120), "the server left the others out");
}
