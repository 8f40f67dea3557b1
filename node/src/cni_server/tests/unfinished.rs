//! What the collector began and did not finish.

use std::{collections::BTreeMap, path::Path};

use brindle_config_core::ipam::IpamHandleSpec;
use brindle_ipam::leak::Collector;

use super::*;
use crate::cni_server::{
    claims::Caller,
    leaks::{LeakArgs, Mode},
    service::Service,
};

const BLOCK: &str = "10.1.0.0/26";

/// A service without its socket, on a store with a block, and with these lines in its file.
async fn service(lines: &str) -> (Service, Arc<Switch>, PathBuf) {
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("bt-{}-unfinished-{n}", std::process::id()));
    std::fs::create_dir_all(folder.join("results")).unwrap();
    std::fs::write(folder.join("ipam-collecting"), lines).unwrap();
    let store = Arc::new(Switch {
        inner: MemoryStore::new(),
        off: AtomicBool::new(false),
        full: AtomicBool::new(false),
    });
    let pool = Resource::new(ObjectMeta::named("pool"), IpPoolSpec::new("10.1.0.0/24".parse().unwrap()));
    store.put_as(&pool, Expect::Any).await.unwrap();
    let service = Service::new(&CniServerSettings {
        node: "n1".into(),
        socket: folder.join("cni.sock"),
        state_dir: folder.clone(),
        store: store.clone(),
        endpoints_are_pods: false,
        dataplane: Arc::new(Stub::default()),
        leaks: LeakArgs::default(),
    });
    (service, store, folder)
}

fn args(folder: &Path, ipam_gc: Mode) -> LeakArgs {
    LeakArgs { ipam_gc, ipam_gc_grace: 0, cni_cache: folder.join("results") }
}

/// A record that counts addresses of a block.
async fn orphan(store: &Switch, handle: &str, block: &str) {
    let spec = IpamHandleSpec {
        handle_id: handle.into(),
        block: BTreeMap::from([(block.to_owned(), 1)]),
        ..IpamHandleSpec::default()
    };
    store.put_as(&Resource::new(ObjectMeta::named(handle), spec), Expect::Any).await.unwrap();
}

async fn handles(store: &Switch) -> Vec<String> {
    let listing = store.list(&[Kind::IpamHandle]).await.unwrap();
    listing.entries.into_iter().map(|e| e.key.name).collect()
}

fn lines(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("ipam-collecting")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// ADD that is not registered.
async fn begin(service: &Service, container: &str) {
    let caller = Caller { connection: 1, was_given: false };
    let reply = service.call(add(&attachment(container)), caller).await;
    assert!(matches!(reply, Reply::Added { .. }), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_handle_that_cannot_be_finished_stops_neither_the_others_nor_the_collector() {
    let (service, store, folder) = service("net.bad\nnet.c1\nnet.gone\nnet.orphan").await;
    // A block that does not read, and one under way.
    let broken = Key::new(Kind::IpamBlock, None, "10-9-0-0-26");
    let value = serde_json::json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMBlock",
        "metadata": {"name": "10-9-0-0-26"}, "spec": {"cidr": "10.9.0.0/26", "allocations": "none"}});
    store.put(&broken, value, Expect::Any).await.unwrap();
    orphan(&store, "net.bad", "10.9.0.0/26").await;
    orphan(&store, "net.orphan", BLOCK).await;
    begin(&service, "c1").await;
    service.look_for_leaks(&mut Collector::default(), &args(&folder, Mode::On)).await.unwrap();
    assert_eq!(handles(&store).await, ["net.bad", "net.c1"]);
    assert_eq!(lines(&folder), ["net.bad", "net.c1"]);
    // What holds addresses is no longer of what is to be finished: when they leak, they are found.
    service.claims.end(&attachment("c1"));
    service.finish_collecting().await;
    assert_eq!(lines(&folder), ["net.bad"]);
    // The block is mended.
    store.delete(&broken, Expect::Any).await.unwrap();
    service.finish_collecting().await;
    assert_eq!(handles(&store).await, ["net.c1"]);
    assert_eq!(lines(&folder), Vec::<String>::new());
    let _ = std::fs::remove_dir_all(&folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_release_left_outlives_the_next() {
    let (service, store, folder) = service("").await;
    service.begin_collecting(&["net.failed".into()]).await;
    orphan(&store, "net.failed", BLOCK).await;
    service.begin_collecting(&["net.next".into()]).await;
    service.end_collecting(&["net.next".into()]).await;
    assert_eq!(lines(&folder), ["net.failed"]);
    store.off.store(true, Ordering::Relaxed);
    service.finish_collecting().await;
    assert_eq!(lines(&folder), ["net.failed"]);
    store.off.store(false, Ordering::Relaxed);
    service.finish_collecting().await;
    assert_eq!((handles(&store).await, lines(&folder)), (vec![], vec![]));
    let _ = std::fs::remove_dir_all(&folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_finishes_nothing() {
    let (service, store, folder) = service("net.orphan\n").await;
    orphan(&store, "net.orphan", BLOCK).await;
    service.look_for_leaks(&mut Collector::default(), &args(&folder, Mode::DryRun)).await.unwrap();
    assert_eq!(handles(&store).await, ["net.orphan"]);
    assert_eq!(lines(&folder), ["net.orphan"]);
    let _ = std::fs::remove_dir_all(&folder);
}
