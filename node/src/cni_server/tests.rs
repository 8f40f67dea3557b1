//! The server over its real socket, on a memory store, with a dataplane that is ready at once or as told.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream as StdStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use brindle_cni::{
    conf::ValidAttachment,
    error::code,
    journal::{self, Record},
    proto::{self, Attachment, Call, PodRef, Reply},
};
use brindle_config::MemoryStore;
use brindle_config_core::{
    Key, Kind, ObjectMeta, Resource, Spec,
    felix::ClusterInformationSpec,
    kube::NamespaceSpec,
    pool::IpPoolSpec,
    store::{Entry, Expect, Listing, Revision, Store, StoreError, StoreExt, StoreFuture, Watch},
    workload::WorkloadEndpointSpec,
};
use brindle_ipam::audit::audit;
use ipnet::IpNet;
use serde_json::Value;

use super::{
    CniServerSettings, Dataplane,
    dataplane::{Answer, Expected},
    spawn,
};

mod away;
mod gc;
mod handles;
mod late;
mod power;
mod room;
mod unfinished;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Ready unless told otherwise.
#[derive(Default)]
struct Stub {
    stuck: AtomicBool,
    /// Has not heard from the datastore.
    ignorant: AtomicBool,
    /// Panics when it is told of an endpoint.
    defective: AtomicBool,
    /// Cannot even deny.
    open: AtomicBool,
    /// What the kernel lacks of everybody's policy.
    lacking: std::sync::Mutex<Vec<String>>,
    prefixes: std::sync::Mutex<Vec<String>>,
    /// `+` and `-` with the endpoint's name, in order.
    announced: std::sync::Mutex<Vec<String>>,
    /// Of the endpoint it was told of last.
    addresses: std::sync::Mutex<Vec<IpNet>>,
}

impl Dataplane for Stub {
    fn mtu(&self, _: Duration) -> Answer<'_, u32> {
        Box::pin(async { Ok(1480) })
    }

    fn pod_prefixes(&self) -> Vec<String> {
        self.prefixes.lock().unwrap().clone()
    }

    fn announce(&self, endpoint: Entry) -> Answer<'_, ()> {
        assert!(!self.defective.load(Ordering::Relaxed), "a defect");
        self.announced.lock().unwrap().push(format!("+{}", endpoint.key.name));
        let networks = endpoint.value.pointer("/spec/ipNetworks").cloned().unwrap_or_default();
        *self.addresses.lock().unwrap() = serde_json::from_value(networks).unwrap();
        Box::pin(async { Ok(()) })
    }

    fn withdraw(&self, endpoint: Key) -> Answer<'_, ()> {
        self.announced.lock().unwrap().push(format!("-{}", endpoint.name));
        Box::pin(async { Ok(()) })
    }

    fn knows_cluster(&self) -> bool {
        !self.ignorant.load(Ordering::Relaxed)
    }

    fn stuck(&self) -> Option<String> {
        self.stuck.load(Ordering::Relaxed).then(|| "ipset is not installed".to_owned())
    }

    fn guard(&self, _: Duration) -> Answer<'_, ()> {
        let open = self.open.load(Ordering::Relaxed);
        Box::pin(async move { if open { Err("ipset is not installed".into()) } else { Ok(()) } })
    }

    fn verify(&self, _: Key, _: Duration) -> Answer<'_, Vec<String>> {
        Box::pin(async { Ok(self.lacking.lock().unwrap().clone()) })
    }

    fn ready(&self, endpoint: Expected, _: Duration) -> Answer<'_, ()> {
        Box::pin(async move {
            if self.stuck.load(Ordering::Relaxed) {
                return Err(format!("{} is not in the kernel", endpoint.key));
            }
            Ok(())
        })
    }
}

/// A memory store that can be switched off.
struct Switch {
    inner: MemoryStore,
    off: AtomicBool,
    /// Can be read and not written, as on a full disk.
    full: AtomicBool,
}

impl Switch {
    fn gate<'a, T: Send + 'a>(&'a self, call: StoreFuture<'a, T>) -> StoreFuture<'a, T> {
        if self.off.load(Ordering::Relaxed) {
            return Box::pin(async { Err(StoreError::Unavailable("switched off".into())) });
        }
        call
    }
}

impl Store for Switch {
    fn get<'a>(&'a self, key: &'a Key) -> StoreFuture<'a, Entry> {
        self.gate(self.inner.get(key))
    }
    fn list<'a>(&'a self, kinds: &'a [Kind]) -> StoreFuture<'a, Listing> {
        self.gate(self.inner.list(kinds))
    }
    fn put<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Revision> {
        if self.full.load(Ordering::Relaxed) {
            return Box::pin(async { Err(StoreError::Broken("the disk is full; free some space".into())) });
        }
        self.gate(self.inner.put(key, value, expect))
    }
    fn delete<'a>(&'a self, key: &'a Key, expect: Expect) -> StoreFuture<'a, Revision> {
        self.gate(self.inner.delete(key, expect))
    }
    fn watch<'a>(&'a self, kinds: &'a [Kind], from: Revision) -> StoreFuture<'a, Box<dyn Watch>> {
        self.gate(self.inner.watch(kinds, from))
    }
}

struct Stage {
    folder: PathBuf,
    store: Arc<Switch>,
    dataplane: Arc<Stub>,
    server: Option<super::Server>,
    node: &'static str,
}

impl Stage {
    async fn new(pool: &str) -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("bt-{}-cni-{n}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let store = Arc::new(Switch {
            inner: MemoryStore::new(),
            off: AtomicBool::new(false),
            full: AtomicBool::new(false),
        });
        let mut stage = Self { folder, store, dataplane: Arc::default(), server: None, node: "n1" };
        stage.put(ObjectMeta::named("pool"), IpPoolSpec::new(pool.parse().unwrap())).await;
        stage.start().await;
        stage
    }

    async fn start(&mut self) {
        let settings = CniServerSettings {
            node: self.node.into(),
            socket: self.folder.join("cni.sock"),
            state_dir: self.folder.clone(),
            store: self.store.clone(),
            endpoints_are_pods: false,
            dataplane: self.dataplane.clone(),
            leaks: super::LeakArgs { ipam_gc: super::leaks::Mode::Off, ..super::LeakArgs::default() },
        };
        self.server = Some(spawn(settings).await.unwrap());
    }

    async fn put<S: Spec>(&self, meta: ObjectMeta, spec: S) {
        self.store.put_as(&Resource::new(meta, spec), Expect::Any).await.unwrap();
    }

    /// One call on a connection of its own.
    async fn ask(&self, call: Call) -> Reply {
        let socket = self.folder.join("cni.sock");
        tokio::task::spawn_blocking(move || {
            proto::ask(&mut StdStream::connect(socket).unwrap(), call).unwrap()
        })
        .await
        .unwrap()
    }

    /// ADD and registration on one connection, as the plugin does.
    async fn attach(&self, a: &Attachment) -> Vec<IpNet> {
        self.attach_by(a, add(a)).await
    }

    async fn attach_by(&self, a: &Attachment, asked: Call) -> Vec<IpNet> {
        let (socket, a) = (self.folder.join("cni.sock"), a.clone());
        let work = move || {
            let mut stream = StdStream::connect(socket).unwrap();
            let Reply::Added { addresses, host_ifname, .. } = proto::ask(&mut stream, asked).unwrap() else {
                panic!("not added")
            };
            let register = Call::Register {
                attachment: a,
                host_ifname,
                mac: "02:00:00:00:00:01".into(),
                addresses: addresses.clone(),
                floating: Vec::new(),
            };
            assert_eq!(proto::ask(&mut stream, register).unwrap(), Reply::Registered);
            addresses
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    async fn lock(&self, ready: bool) {
        let spec =
            ClusterInformationSpec { datastore_ready: Some(ready), ..ClusterInformationSpec::default() };
        self.put(ObjectMeta::named("default"), spec).await;
    }

    async fn endpoints(&self) -> Vec<Resource<WorkloadEndpointSpec>> {
        let (all, _) = self.store.list_as::<WorkloadEndpointSpec>().await.unwrap();
        all.into_iter().map(|e| e.resource).collect()
    }

    /// Addresses in use, and nothing untidy.
    async fn in_use(&self) -> usize {
        let kinds = [Kind::IpamBlock, Kind::BlockAffinity, Kind::IpamHandle];
        let listing = self.store.list(&kinds).await.unwrap();
        assert_eq!(audit(&listing.entries), []);
        listing.entries.iter().filter(|e| e.key.kind == Kind::IpamHandle).count()
    }

    async fn until_in_use(&self, n: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.in_use().await != n {
            assert!(Instant::now() < deadline, "still {} addresses", self.in_use().await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn last_announced(&self) -> Vec<IpNet> {
        self.dataplane.addresses.lock().unwrap().clone()
    }

    fn announced(&self) -> Vec<String> {
        self.dataplane.announced.lock().unwrap().clone()
    }

    fn journal(&self) -> usize {
        journal::read(&self.folder.join(journal::FOLDER)).unwrap().entries.len()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn attachment(id: &str) -> Attachment {
    Attachment {
        container_id: id.into(),
        ifname: "eth0".into(),
        netns: "/run/netns/x".into(),
        netns_id: "4:1".into(),
        network: "net".into(),
        pod: Some(PodRef { namespace: "team".into(), name: format!("pod-{id}"), uid: String::new() }),
    }
}

fn add(a: &Attachment) -> Call {
    Call::Add {
        attachment: a.clone(),
        pools4: vec![],
        pools6: vec![],
        num4: 1,
        num6: 0,
        ips: vec![],
        given: vec![],
        ranges: vec![],
        pools_of_pod: false,
    }
}

fn del(a: &Attachment) -> Call {
    Call::Del { attachment: a.clone(), device: None }
}

fn refused(reply: Reply) -> (u32, String) {
    match reply {
        Reply::Error { code, msg, .. } => (code, msg),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_is_recorded_as_calico_records_it_and_goes_whole() {
    let s = Stage::new("10.1.0.0/24").await;
    let a = attachment("c1");
    let addresses = s.attach(&a).await;
    let all = s.endpoints().await;
    let e = &all[0];
    assert_eq!(e.metadata.name, "n1-k8s-pod--c1-eth0");
    assert_eq!(e.metadata.namespace.as_deref(), Some("team"));
    assert_eq!(e.metadata.labels["projectcalico.org/orchestrator"], "k8s");
    assert_eq!(e.spec.ip_networks, addresses);
    assert_eq!(e.spec.profiles, ["kns.team"]);
    assert_eq!(e.spec.interface_name, a.host_ifname("cali"));
    assert_eq!(s.in_use().await, 1);
    for _ in 0..2 {
        assert_eq!(s.ask(del(&a)).await, Reply::Deleted);
        assert_eq!((s.endpoints().await.len(), s.in_use().await), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_add_gives_the_same_addresses() {
    let s = Stage::new("10.1.0.0/24").await;
    let a = attachment("c1");
    let first = s.attach(&a).await;
    let Reply::Added { addresses, again, mtu, .. } = s.ask(add(&a)).await else { panic!() };
    assert_eq!((addresses, again, mtu), (first, true, 1480));
    // The connection of the repeated ADD ends without a registration: what the first one made stays.
    assert_eq!((s.endpoints().await.len(), s.in_use().await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_named_by_the_configured_prefix() {
    let s = Stage::new("10.1.0.0/24").await;
    *s.dataplane.prefixes.lock().unwrap() = vec!["pod".into(), "tap".into()];
    let Reply::Added { host_ifname, .. } = s.ask(add(&attachment("c1"))).await else { panic!() };
    assert_eq!(host_ifname, attachment("c1").host_ifname("pod"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_add_whose_plugin_dies_is_taken_back() {
    let s = Stage::new("10.1.0.0/24").await;
    let Reply::Added { again: false, .. } = s.ask(add(&attachment("c1"))).await else { panic!() };
    s.until_in_use(0).await;
    assert_eq!(s.announced(), ["+n1-k8s-pod--c1-eth0", "-n1-k8s-pod--c1-eth0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_is_told_of_an_endpoint_before_it_is_stored_and_not_of_its_former_sandbox() {
    let s = Stage::new("10.1.0.0/24").await;
    let (old, new) = (attachment("c1"), Attachment { container_id: "c2".into(), ..attachment("c1") });
    s.attach(&old).await;
    // Before its device is made, and as it was stored.
    let told = ["+n1-k8s-pod--c1-eth0", "+n1-k8s-pod--c1-eth0"];
    assert_eq!(s.announced(), told);
    // The endpoint of the former sandbox is in force until it is replaced.
    let Reply::Added { again: false, .. } = s.ask(add(&new)).await else { panic!() };
    s.until_in_use(1).await;
    assert_eq!(s.ask(del(&old)).await, Reply::Deleted);
    assert_eq!(s.announced(), told, "what was stored is the store's to say");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_cannot_be_programmed_is_refused() {
    let s = Stage::new("10.1.0.0/24").await;
    s.dataplane.stuck.store(true, Ordering::Relaxed);
    let a = attachment("c1");
    let register = Call::Register {
        attachment: a.clone(),
        host_ifname: "cali1".into(),
        mac: String::new(),
        addresses: vec![],
        floating: vec![],
    };
    let (code, msg) = refused(s.ask(register).await);
    assert_eq!(code, code::TRY_AGAIN);
    assert!(msg.contains("is not in the kernel"), "{msg}");
    let (code, msg) = refused(s.ask(Call::status()).await);
    assert_eq!(code, code::NOT_AVAILABLE);
    assert_eq!(msg, "a new pod's policy could not be written: ipset is not installed");
    s.dataplane.stuck.store(false, Ordering::Relaxed);
    assert!(matches!(s.ask(Call::status()).await, Reply::Pong { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_at_once_get_two_hundred_addresses() {
    let s = Arc::new(Stage::new("10.1.0.0/24").await);
    let all: Vec<_> = (0..200)
        .map(|i| {
            let s = Arc::clone(&s);
            tokio::spawn(async move { s.attach(&attachment(&format!("c{i}"))).await })
        })
        .collect();
    let mut given = std::collections::BTreeSet::new();
    for task in all {
        given.extend(task.await.unwrap());
    }
    assert_eq!(given.len(), 200);
    assert_eq!((s.endpoints().await.len(), s.in_use().await), (200, 200));
    let all: Vec<_> = (0..200)
        .map(|i| {
            let s = Arc::clone(&s);
            tokio::spawn(async move { s.ask(del(&attachment(&format!("c{i}")))).await })
        })
        .collect();
    for task in all {
        assert_eq!(task.await.unwrap(), Reply::Deleted);
    }
    assert_eq!((s.endpoints().await.len(), s.in_use().await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_says_so_with_its_own_code() {
    let s = Stage::new("10.1.0.0/26").await;
    s.put(
        ObjectMeta::named("pool"),
        IpPoolSpec { block_size_raw: Some(32), ..IpPoolSpec::new("10.1.0.0/32".parse().unwrap()) },
    )
    .await;
    s.attach(&attachment("c1")).await;
    let (code, msg) = refused(s.ask(add(&attachment("c2"))).await);
    assert_eq!(code, code::POOL_EXHAUSTED);
    assert!(
        msg.starts_with("no address for pod-c2: the node's 1 blocks are full; no free block in pool"),
        "{msg}"
    );
    assert_eq!(s.in_use().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_refused_with_its_holder() {
    let s = Stage::new("10.1.0.0/24").await;
    let given = s.attach(&attachment("c1")).await[0].addr();
    let (code, msg) = refused(s.ask(handles::add_with(&attachment("c2"), &[given])).await);
    assert_eq!(code, code::DUPLICATE_ADDRESS);
    assert_eq!(msg, format!("{given} is already assigned to handle net.c1"));
    assert_eq!(s.in_use().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_cluster_refuses_add_and_puts_del_off() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let a = attachment("c1");
    s.attach(&a).await;
    s.lock(false).await;
    let (code, msg) = refused(s.ask(add(&attachment("c2"))).await);
    assert_eq!((code, msg.as_str()), (11, "Calico is currently not ready to process requests"));
    assert_eq!(refused(s.ask(Call::status()).await).0, code::NOT_AVAILABLE);
    assert_eq!(s.ask(del(&a)).await, Reply::Deleted);
    assert_eq!((s.in_use().await, s.journal()), (1, 1));
    s.lock(true).await;
    s.start().await;
    assert_eq!((s.endpoints().await.len(), s.in_use().await, s.journal()), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_go_while_the_datastore_is_away_and_their_addresses_return_with_it() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let (a, b) = (attachment("c1"), attachment("c2"));
    s.attach(&a).await;
    s.attach(&b).await;
    s.store.off.store(true, Ordering::Relaxed);
    assert_eq!(refused(s.ask(add(&attachment("c3"))).await).0, code::TRY_AGAIN);
    assert_eq!(s.ask(del(&a)).await, Reply::Deleted);
    assert_eq!(s.ask(del(&b)).await, Reply::Deleted);
    assert_eq!(s.journal(), 2);
    s.store.off.store(false, Ordering::Relaxed);
    // The same container may be added before the journal's turn: its old DEL comes first.
    s.attach(&a).await;
    assert_eq!((s.journal(), s.in_use().await), (1, 2));
    s.start().await;
    assert_eq!((s.journal(), s.in_use().await), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_del_written_down_without_an_agent_is_carried_out_at_its_start() {
    let mut s = Stage::new("10.1.0.0/24").await;
    let a = attachment("c1");
    s.attach(&a).await;
    s.server = None;
    let folder = s.folder.join(journal::FOLDER);
    journal::write(&folder, &Record { attachment: a.clone(), addresses_only: false }).unwrap();
    std::fs::write(folder.join("torn.del"), b"brindle-cni-journal 1 99 abc\n{").unwrap();
    s.start().await;
    assert_eq!((s.endpoints().await.len(), s.in_use().await, s.journal()), (0, 0, 0));
    assert!(folder.join("torn.bad").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_del_of_an_old_sandbox_spares_the_new_one() {
    let s = Stage::new("10.1.0.0/24").await;
    let (old, new) = (attachment("c1"), Attachment { container_id: "c2".into(), ..attachment("c1") });
    s.attach(&old).await;
    let given = s.attach(&new).await;
    assert_eq!(s.in_use().await, 2);
    assert_eq!(s.ask(del(&old)).await, Reply::Deleted);
    assert_eq!(s.in_use().await, 1);
    assert_eq!(s.endpoints().await[0].spec.ip_networks, given);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_what_is_missing_in_the_records() {
    let s = Stage::new("10.1.0.0/24").await;
    let a = attachment("c1");
    let addresses = s.attach(&a).await;
    let check = |addresses| Call::Check { attachment: a.clone(), addresses, foreign: false };
    assert_eq!(s.ask(check(addresses.clone())).await, Reply::Checked);
    let (code, msg) = refused(s.ask(check(vec!["10.1.0.200/32".parse().unwrap()])).await);
    assert_eq!((code, msg.as_str()), (code::FAILED, "10.1.0.200 is not recorded for net.c1"));
    s.dataplane.lacking.lock().unwrap().push("chain brindle-fw-x of table filter is missing".into());
    let (code, msg) = refused(s.ask(check(addresses.clone())).await);
    assert_eq!(
        (code, msg.as_str()),
        (code::FAILED, "policy in the kernel: chain brindle-fw-x of table filter is missing")
    );
    let key = s.endpoints().await[0].key();
    s.store.delete(&key, Expect::Any).await.unwrap();
    let (_, msg) = refused(s.ask(check(addresses)).await);
    assert!(msg.ends_with("does not exist"), "{msg}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_keeps_valid_attachments_and_other_networks() {
    let s = Stage::new("10.1.0.0/24").await;
    let (keep, gone) = (attachment("c1"), attachment("c2"));
    let other = Attachment { network: "other".into(), ..attachment("c3") };
    for a in [&keep, &gone, &other] {
        s.attach(a).await;
    }
    // An address without an endpoint.
    let Reply::Added { .. } = s
        .ask(Call::IpamAdd {
            attachment: attachment("c4"),
            pools4: vec![],
            pools6: vec![],
            num4: 1,
            num6: 0,
            ips: vec![],
            pools_of_pod: false,
        })
        .await
    else {
        panic!()
    };
    assert_eq!(s.in_use().await, 4);
    let valid = vec![ValidAttachment { container_id: "c1".into(), ifname: "eth0".into() }];
    let gc = |dry_run| Call::Gc { network: "net".into(), valid: valid.clone(), dry_run };
    assert_eq!(s.ask(gc(true)).await, Reply::Deleted);
    assert_eq!(s.in_use().await, 4, "a dry run only talks");
    assert_eq!(s.ask(gc(false)).await, Reply::Deleted);
    let left: Vec<String> = s.endpoints().await.into_iter().map(|e| e.spec.container_id).collect();
    assert_eq!((left.len(), s.in_use().await), (2, 2));
    assert!(!left.contains(&"c2".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_answered_and_the_server_lives_on() {
    let s = Stage::new("10.1.0.0/24").await;
    let socket = s.folder.join("cni.sock");
    let talk = |bytes: Vec<u8>| {
        let socket = socket.clone();
        tokio::task::spawn_blocking(move || {
            let mut stream = StdStream::connect(socket).unwrap();
            stream.write_all(&bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            // The rest of what was sent is not read: that may end in a reset behind the answer.
            let _ = stream.read_to_end(&mut answer);
            answer
        })
    };
    let framed = |body: &[u8]| [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat();
    for (bytes, want) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "is the most"),
        (framed(b"{}"), "not valid"),
        (framed(br#"{"version":99,"call":"ping"}"#), "version 99"),
        (framed(br#"{"version":1,"call":"dance"}"#), "not valid"),
        (framed(b""), "not valid"),
        (vec![0, 0], ""),
    ] {
        let answer = talk(bytes.clone()).await.unwrap();
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(text.contains(want), "{bytes:?}: {text}");
    }
    assert!(matches!(s.ask(Call::Ping).await, Reply::Pong { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_a_lock_from_a_datastore_that_is_away() {
    let s = Stage::new("10.1.0.0/24").await;
    assert!(matches!(s.ask(Call::status()).await, Reply::Pong { .. }));
    s.store.off.store(true, Ordering::Relaxed);
    assert_eq!(refused(s.ask(Call::status()).await).0, code::LIMITED);
    s.store.off.store(false, Ordering::Relaxed);
    s.put(
        ObjectMeta::named("default"),
        ClusterInformationSpec { datastore_ready: Some(false), ..ClusterInformationSpec::default() },
    )
    .await;
    assert_eq!(refused(s.ask(Call::status()).await).0, code::NOT_AVAILABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_remembers_a_disk_without_room_until_something_is_written() {
    let s = Stage::new("10.1.0.0/24").await;
    s.attach(&attachment("c1")).await;
    s.store.full.store(true, Ordering::Relaxed);
    let (_, msg) = refused(s.ask(add(&attachment("c2"))).await);
    assert!(msg.contains("the disk is full"), "{msg}");
    let still = || async {
        let (code, msg) = refused(s.ask(Call::status()).await);
        assert_eq!(code, code::NOT_AVAILABLE);
        assert!(
            msg.starts_with("the last pod could not be recorded: ") && msg.contains("disk is full"),
            "{msg}"
        );
    };
    still().await;
    // What is refused for another reason says nothing of the disk.
    let wrong = handles::add_with(&attachment("c3"), &["192.0.2.1".parse().unwrap()]);
    assert_eq!(refused(s.ask(wrong).await).0, code::CONFIG);
    still().await;
    // Nor does what is answered without a write: an ADD repeated, addresses of another plugin.
    assert!(matches!(s.ask(add(&attachment("c1"))).await, Reply::Added { again: true, .. }));
    assert!(matches!(s.ask(late::add_given(&attachment("c4"), "192.0.2.9/32")).await, Reply::Added { .. }));
    still().await;
    s.store.full.store(false, Ordering::Relaxed);
    s.attach(&attachment("c2")).await;
    assert!(matches!(s.ask(Call::status()).await, Reply::Pong { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_to_an_address_is_kept() {
    let s = Stage::new("10.1.0.0/24").await;
    let a = attachment("c1");
    s.attach(&a).await;
    assert_eq!(s.ask(del(&a)).await, Reply::Deleted);
    let text = std::fs::read_to_string(s.folder.join(super::history::FILE)).unwrap();
    let events: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let said: Vec<&str> = events.iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!(said, ["given", "returned"]);
    assert_eq!((&events[0]["ip"], &events[0]["handle"]), (&events[1]["ip"], &Value::from("net.c1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_names_its_pools_and_a_pod_of_its_own_comes_first() {
    let s = Stage::new("10.1.0.0/24").await;
    for (name, cidr) in [("blue", "10.2.0.0/24"), ("green", "10.3.0.0/24")] {
        s.put(ObjectMeta::named(name), IpPoolSpec::new(cidr.parse().unwrap())).await;
    }
    let namespace = |pools: &str| ObjectMeta {
        annotations: [("cni.projectcalico.org/ipv4pools".to_owned(), pools.to_owned())].into(),
        ..ObjectMeta::named("team")
    };
    s.put(namespace(r#"["blue"]"#), NamespaceSpec::default()).await;
    let given = s.attach(&attachment("c1")).await;
    assert!(given[0].to_string().starts_with("10.2.0."), "{given:?}");
    let own = Call::Add {
        attachment: attachment("c2"),
        pools4: vec!["10.3.0.0/24".into()],
        pools6: vec![],
        num4: 1,
        num6: 0,
        ips: vec![],
        given: vec![],
        ranges: vec![],
        pools_of_pod: true,
    };
    let Reply::Added { addresses, .. } = s.ask(own).await else { panic!() };
    assert!(addresses[0].to_string().starts_with("10.3.0."), "{addresses:?}");
    s.put(namespace("blue"), NamespaceSpec::default()).await;
    let (code, msg) = refused(s.ask(add(&attachment("c3"))).await);
    assert_eq!(code, code::CONFIG);
    assert!(msg.contains("ipv4pools of namespace team"), "{msg}");
}
