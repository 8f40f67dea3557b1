//! The power goes, at any moment. A run of ADDs and DELs is recorded: after every write to the datastore, and around it, the
//! files are taken as they are. From each of these moments, and from what a disk may make of it, a node starts anew:
//! - the last write torn, or cut off;
//! - everything lost that nobody synced: the database's log since its last checkpoint, files written, renamed, removed;
//! - of a checkpoint only half the pages written.
//!
//! What was running comes again, in its old sandbox or a new one, beside pods that are new. No address may then be two
//! pods', none that is used may be free, and what is left at the end without a container, endpoint or address, must be found
//! by the collector.
//!
//! What must hold of a disk: what was synced before a write was begun is there if the write is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Mutex,
};

use brindle_config_core::node::NodeSpec;
use brindle_ipam::{Allocator as _, leak::Collector};

use super::*;
use crate::cni_server::{
    attached::{FOLDER as ATTACHED, Kept},
    claims::Caller,
    leaks::Mode,
    service::Service,
};

const DB: &str = "brindle.db";
const WAL: &str = "brindle.db-wal";
/// Octets of the log's header, which is synced when the log begins anew.
const WAL_HEADER: usize = 32;
const PAGE: usize = 4096;
/// Pods of the run; enough for a checkpoint in its middle.
const PODS: usize = 28;

/// Files by name below the state folder.
type Files = BTreeMap<String, Vec<u8>>;

fn read_files(folder: &Path) -> Files {
    let mut all = Files::new();
    for name in [DB, WAL] {
        all.extend(fs::read(folder.join(name)).ok().map(|bytes| (name.to_owned(), bytes)));
    }
    for sub in [ATTACHED, journal::FOLDER] {
        for entry in fs::read_dir(folder.join(sub)).into_iter().flatten().flatten() {
            let name = format!("{sub}/{}", entry.file_name().to_string_lossy());
            // One that has just gone is not there.
            all.extend(fs::read(entry.path()).ok().map(|bytes| (name, bytes)));
        }
    }
    all
}

fn write_files(folder: &Path, files: &Files) {
    for sub in [ATTACHED, journal::FOLDER] {
        fs::create_dir_all(folder.join(sub)).unwrap();
    }
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
    }
}

fn below<'a>(files: &'a Files, sub: &'a str) -> impl Iterator<Item = (&'a String, &'a Vec<u8>)> {
    files.iter().filter(move |(name, _)| name.split('/').next() == Some(sub))
}

/// What the container runtime knows, which keeps its own books.
#[derive(Clone, Default)]
struct Truth {
    /// Its ADD has answered and its DEL has not been asked for.
    live: BTreeMap<String, Attachment>,
    /// Its DEL has not answered.
    known: BTreeMap<String, Attachment>,
}

/// The files at one moment.
#[derive(Clone)]
struct Shot {
    files: Files,
    truth: Truth,
}

/// A store that takes the files before and after every write.
struct Recorder {
    inner: Arc<dyn Store>,
    off: AtomicBool,
    folder: PathBuf,
    truth: Mutex<Truth>,
    shots: Option<Mutex<Vec<Shot>>>,
}

impl Recorder {
    fn open(folder: &Path, record: bool) -> Arc<Self> {
        let inner = brindle_config::open(&format!("sqlite:{}", folder.join(DB).display())).unwrap();
        Arc::new(Self {
            inner,
            off: AtomicBool::new(false),
            folder: folder.to_owned(),
            truth: Mutex::default(),
            shots: record.then(Mutex::default),
        })
    }

    fn shoot(&self) {
        if let Some(shots) = &self.shots {
            let shot = Shot { files: read_files(&self.folder), truth: self.truth.lock().unwrap().clone() };
            shots.lock().unwrap().push(shot);
        }
    }

    fn gate(&self) -> Result<(), StoreError> {
        if self.off.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("switched off".into()));
        }
        Ok(())
    }
}

impl Store for Recorder {
    fn get<'a>(&'a self, key: &'a Key) -> StoreFuture<'a, Entry> {
        Box::pin(async move {
            self.gate()?;
            self.inner.get(key).await
        })
    }
    fn list<'a>(&'a self, kinds: &'a [Kind]) -> StoreFuture<'a, Listing> {
        Box::pin(async move {
            self.gate()?;
            self.inner.list(kinds).await
        })
    }
    fn put<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Revision> {
        Box::pin(async move {
            self.gate()?;
            self.shoot();
            let done = self.inner.put(key, value, expect).await;
            self.shoot();
            done
        })
    }
    fn delete<'a>(&'a self, key: &'a Key, expect: Expect) -> StoreFuture<'a, Revision> {
        Box::pin(async move {
            self.gate()?;
            self.shoot();
            let done = self.inner.delete(key, expect).await;
            self.shoot();
            done
        })
    }
    fn watch<'a>(&'a self, kinds: &'a [Kind], from: Revision) -> StoreFuture<'a, Box<dyn Watch>> {
        self.inner.watch(kinds, from)
    }
}

/// A node of this folder, its agent's server without the socket.
struct Node {
    store: Arc<Recorder>,
    service: Service,
    leaks: super::super::LeakArgs,
    connections: u64,
}

impl Node {
    async fn start(folder: &Path, record: bool, away: bool) -> Self {
        let store = Recorder::open(folder, record);
        store.off.store(away, Ordering::Relaxed);
        let cache = folder.join("results");
        fs::create_dir_all(&cache).unwrap();
        let leaks = super::super::LeakArgs { ipam_gc: Mode::On, ipam_gc_grace: 0, cni_cache: cache };
        let dataplane = Stub::default();
        dataplane.ignorant.store(away, Ordering::Relaxed);
        let service = Service::new(&CniServerSettings {
            node: "n1".into(),
            socket: folder.join("cni.sock"),
            state_dir: folder.to_owned(),
            store: Arc::clone(&store) as Arc<dyn Store>,
            endpoints_are_pods: false,
            dataplane: Arc::new(dataplane),
            leaks: leaks.clone(),
        });
        service.replay().await;
        service.warm().await;
        Self { store, service, leaks, connections: 0 }
    }

    async fn attach(&mut self, a: &Attachment) -> Result<Vec<IpNet>, Reply> {
        self.connections += 1;
        let caller = |was_given| Caller { connection: self.connections, was_given };
        self.store.truth.lock().unwrap().known.insert(a.container_id.clone(), a.clone());
        let (addresses, host_ifname) = match self.service.call(add(a), caller(false)).await {
            Reply::Added { addresses, host_ifname, .. } => (addresses, host_ifname),
            other => return Err(other),
        };
        let mac = "02:00:00:00:00:01".into();
        let register = Call::Register {
            attachment: a.clone(),
            host_ifname,
            mac,
            addresses: addresses.clone(),
            floating: vec![],
        };
        match self.service.call(register, caller(true)).await {
            Reply::Registered => {}
            other => return Err(other),
        }
        self.service.claims.take(a, self.connections);
        self.store.truth.lock().unwrap().live.insert(a.container_id.clone(), a.clone());
        Ok(addresses)
    }

    async fn detach(&mut self, a: &Attachment) {
        self.connections += 1;
        self.store.truth.lock().unwrap().live.remove(&a.container_id);
        let caller = Caller { connection: self.connections, was_given: false };
        let reply = self.service.call(del(a), caller).await;
        assert_eq!(reply, Reply::Deleted);
        self.store.truth.lock().unwrap().known.remove(&a.container_id);
    }

    /// Address and owner of everything in use, by the blocks.
    async fn in_use(&self) -> Vec<(String, String)> {
        let kinds = [Kind::IpamBlock, Kind::BlockAffinity, Kind::IpamHandle];
        let listing = self.store.list(&kinds).await.unwrap();
        let serious: Vec<_> = audit(&listing.entries).into_iter().filter(|f| f.serious()).collect();
        assert_eq!(serious, []);
        let mut all = Vec::new();
        for block in listing.entries.iter().filter(|e| e.key.kind == Kind::IpamBlock) {
            let spec = &block.value["spec"];
            let owners = spec["attributes"].as_array().unwrap();
            for (n, slot) in spec["allocations"].as_array().unwrap().iter().enumerate() {
                let Some(owner) = slot.as_u64() else { continue };
                let handle = owners[owner as usize]["handle_id"].as_str().unwrap_or_default();
                all.push((format!("{} {n}", block.key.name), handle.to_owned()));
            }
        }
        all
    }

    /// Every endpoint has addresses of its own, recorded for it.
    async fn sound(&self) -> usize {
        let (all, _) = self.store.list_as::<WorkloadEndpointSpec>().await.unwrap();
        let mut seen = BTreeSet::new();
        for e in &all {
            let spec = &e.resource.spec;
            let held = self.service.reader.by_handle(&format!("net.{}", spec.container_id)).await.unwrap();
            for net in &spec.ip_networks {
                assert!(seen.insert(net.addr()), "{net} is two pods': {all:#?}");
                assert!(held.contains(&net.addr()), "{net} of {} is not recorded for it", spec.container_id);
            }
        }
        all.len()
    }
}

fn pod(n: usize, sandbox: &str) -> Attachment {
    let uid = if n.is_multiple_of(3) { String::new() } else { format!("uid-{n}") };
    let pod = PodRef { namespace: "team".into(), name: format!("web-{n}"), uid };
    Attachment { pod: Some(pod), ..attachment(&format!("{sandbox}{n}")) }
}

/// The run that is recorded.
async fn record(folder: &Path) -> Vec<Shot> {
    {
        let store = Recorder::open(folder, false);
        let pool = IpPoolSpec::new("10.1.0.0/24".parse().unwrap());
        store.put_as(&Resource::new(ObjectMeta::named("pool"), pool), Expect::Any).await.unwrap();
        store
            .put_as(&Resource::new(ObjectMeta::named("n1"), NodeSpec::default()), Expect::Any)
            .await
            .unwrap();
    }
    // Closed for good, so that pool and node are in the database itself. Whoever closes last takes the log away, but
    // of two connections that close at once each may find the other still there and leave it: a third one comes after
    // them.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        drop(rusqlite::Connection::open(folder.join(DB)).unwrap().query_row(
            "PRAGMA wal_checkpoint(TRUNCATE)",
            [],
            |row| row.get::<_, i64>(0),
        ));
        if !folder.join(WAL).exists() {
            break;
        }
        assert!(Instant::now() < deadline, "the database is still open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut node = Node::start(folder, true, false).await;
    for n in 0..PODS {
        node.attach(&pod(n, "c")).await.unwrap();
        if n >= 4 && n % 5 != 0 {
            node.detach(&pod(n - 4, "c")).await;
        }
        if n == PODS / 2 {
            // The datastore is away: one comes again in a new sandbox, one goes, promised to the journal.
            node.store.off.store(true, Ordering::Relaxed);
            node.detach(&pod(n, "c")).await;
            node.store.shoot();
            node.detach(&pod(n - 1, "c")).await;
            node.store.shoot();
            let again = pod(n - 1, "d");
            let known = node.attach(&again).await;
            assert!(known.is_ok() || again.pod.is_some_and(|p| p.uid.is_empty()), "{known:?}");
            node.store.shoot();
            node.store.off.store(false, Ordering::Relaxed);
            node.service.replay().await;
        }
    }
    node.store.shoot();
    node.store.shots.as_ref().unwrap().lock().unwrap().clone()
}

/// What a disk may hold after a cut at this moment, with a word for each.
fn cuts(shots: &[Shot], k: usize) -> Vec<(&'static str, Files)> {
    let now = &shots[k].files;
    let mut all = vec![("as written", now.clone())];
    let changed = |change: &dyn Fn(&mut Files)| {
        let mut files = now.clone();
        change(&mut files);
        files
    };
    let wal = now.get(WAL).map_or(0, Vec::len);
    if wal > WAL_HEADER {
        all.push(("the log lost", changed(&|f| f.get_mut(WAL).unwrap().truncate(WAL_HEADER))));
    }
    let before = k.checked_sub(1).map(|b| &shots[b].files);
    if let Some(before) = before {
        let nothing = Vec::new();
        let (old, new) = (before.get(WAL).unwrap_or(&nothing), now.get(WAL).unwrap_or(&nothing));
        // The same log, as its header says; otherwise it was begun anew.
        let same_log = old.len() > WAL_HEADER && new.starts_with(&old[..WAL_HEADER]);
        let start = old.iter().zip(new).position(|(a, b)| a != b).unwrap_or(old.len());
        if same_log && start < new.len() {
            let tail = old.iter().rev().zip(new.iter().rev()).position(|(a, b)| a != b).unwrap_or(0);
            let end = if new.len() > old.len() { new.len() } else { new.len() - tail };
            let half = start + (end - start) / 2;
            all.push(("the last write torn", changed(&|f| f.get_mut(WAL).unwrap()[half..end].fill(0))));
            if new.len() > old.len() {
                all.push(("the last write cut off", changed(&|f| f.get_mut(WAL).unwrap().truncate(half))));
            }
        }
        if same_log && before[DB] != now[DB] {
            // The log it was made of was synced before, and is there until somebody writes again.
            let mixed = |f: &mut Files| {
                let db = f.get_mut(DB).unwrap();
                for (n, page) in db.chunks_mut(PAGE).enumerate().filter(|(n, _)| n % 2 == 1) {
                    if let Some(old) = before[DB].get(n * PAGE..(n + 1) * PAGE) {
                        page.copy_from_slice(old);
                    }
                }
            };
            all.push(("half a checkpoint", changed(&mixed)));
        }
        let newest = below(now, ATTACHED).find(|(name, bytes)| before.get(*name) != Some(*bytes));
        if let Some((name, bytes)) = newest.filter(|(_, bytes)| !owes(bytes)) {
            let half = |f: &mut Files| drop(f.insert(name.clone(), bytes[..bytes.len() / 2].to_vec()));
            all.push(("a file torn", changed(&half)));
        }
    }
    let past = &shots[k.saturating_sub(12)].files;
    let undone = |f: &mut Files| {
        f.retain(|name, bytes| !name.starts_with(ATTACHED) || owes(bytes));
        for (name, bytes) in below(past, ATTACHED) {
            f.entry(name.clone()).or_insert_with(|| bytes.clone());
        }
    };
    all.push(("files as before", changed(&undone)));
    let promised = |f: &mut Files| {
        for shot in &shots[..k] {
            let journal = below(&shot.files, journal::FOLDER).filter(|(name, _)| !name.ends_with(".tmp"));
            f.extend(journal.map(|(name, bytes)| (name.clone(), bytes.clone())));
        }
    };
    all.push(("removals from the journal undone", changed(&promised)));
    all
}

/// Whether the datastore is not told yet of what the file says: it was synced then.
fn owes(bytes: &[u8]) -> bool {
    journal::decode::<Kept>(bytes).is_ok_and(|k| k.owes())
}

/// The node starts anew from these files.
async fn survives(files: &Files, truth: &Truth, away: bool) {
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("bt-{}-cut-{n}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    write_files(&folder, files);
    let mut node = Node::start(&folder, false, away).await;
    let mut all: Vec<Attachment> = truth.known.values().cloned().collect();
    let mut new = Vec::new();
    for (i, old) in truth.live.values().enumerate() {
        let again = if i.is_multiple_of(2) {
            Attachment { netns_id: "4:2".into(), ..old.clone() }
        } else {
            Attachment { container_id: format!("again-{}", old.container_id), ..old.clone() }
        };
        new.push(again);
    }
    if !away {
        new.extend([pod(900, "new"), pod(901, "new")]);
    }
    let mut given = Vec::new();
    for a in &new {
        match node.attach(a).await {
            Ok(addresses) => given.extend(addresses),
            // Whom this node does not remember needs the datastore.
            Err(Reply::Error { code: code::TRY_AGAIN, .. }) if away => {}
            Err(other) => panic!("{}: {other:?}", a.container_id),
        }
    }
    let different: BTreeSet<_> = given.iter().collect();
    assert_eq!(different.len(), given.len(), "given twice: {given:?}");
    // The runtime clears away what it no longer runs.
    for old in truth.known.values().filter(|o| new.iter().all(|n| n.container_id != o.container_id)) {
        node.detach(old).await;
    }
    if away {
        node.store.off.store(false, Ordering::Relaxed);
        node.service.replay().await;
    }
    node.sound().await;
    // An endpoint may be back although its DEL was answered, and speaks for its address: nobody will ask for a second DEL.
    // What the runtime runs is in its cache.
    for a in &new {
        let cached =
            serde_json::json!({"networkName": "net", "containerId": a.container_id, "ifName": a.ifname});
        fs::write(node.leaks.cni_cache.join(format!("net-{}-eth0", a.container_id)), cached.to_string())
            .unwrap();
    }
    let mut collector = Collector::default();
    node.service.look_for_leaks(&mut collector, &node.leaks).await.unwrap();
    let recorded = node.sound().await;
    if !away {
        assert_eq!(recorded, new.len(), "each has its endpoint");
    }
    // The collector frees nothing of theirs.
    for _ in 0..2 {
        node.service.look_for_leaks(&mut collector, &node.leaks).await.unwrap();
    }
    assert_eq!(node.sound().await, recorded);
    // ... and leaves nothing else.
    let live: BTreeSet<String> = new.iter().map(|a| format!("net.{}", a.container_id)).collect();
    let leaked: Vec<_> = node.in_use().await.into_iter().filter(|(_, h)| !live.contains(h)).collect();
    assert_eq!(leaked, [], "in use without a container");
    all.extend(new);
    for a in &all {
        node.detach(a).await;
    }
    node.service.replay().await;
    node.service.look_for_leaks(&mut collector, &node.leaks).await.unwrap();
    assert_eq!(node.in_use().await, []);
    assert_eq!(journal::read(&folder.join(journal::FOLDER)).unwrap().entries.len(), 0);
    drop(node);
    let _ = fs::remove_dir_all(&folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_at_any_write_gives_no_address_twice_frees_no_live_one_and_hides_no_leak() {
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("bt-{}-power-{n}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let shots = record(&folder).await;
    let checkpoint = (1..shots.len()).find(|k| shots[*k].files[DB] != shots[k - 1].files[DB]);
    let checkpoint = checkpoint.expect("the log is long enough for a checkpoint");
    let away = shots.iter().position(|s| below(&s.files, journal::FOLDER).next().is_some());
    let away = away.expect("a DEL was promised to the journal");
    // Every write of the first two pods, around the checkpoint, and while the datastore was away; of the rest a sample.
    let near = |k: usize, of: usize, n: usize| k + 2 >= of && k < of + n;
    let chosen =
        (0..shots.len()).filter(|k| *k < 12 || near(*k, checkpoint, 3) || near(*k, away, 12) || k % 20 == 0);
    let mut tried = 0;
    for k in chosen {
        for (what, files) in cuts(&shots, k) {
            for away in [false, true] {
                let (files, truth) = (files.clone(), shots[k].truth.clone());
                // A task of its own, so that a failure can be told with its place.
                let outcome = tokio::spawn(async move { survives(&files, &truth, away).await });
                if let Err(e) = outcome.await {
                    panic!("cut after write {k} of {}, {what}, datastore away: {away}: {e}", shots.len());
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 200, "{tried}");
    fs::remove_dir_all(&folder).unwrap();
}
