//! The etcd store against Debian's etcd: the contract, TLS and users, Calico's layout as etcdctl sees it, a server that
//! goes away and comes back.
#![cfg(feature = "etcd")]

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use brindle_config::{
    contract::{self, Subject},
    etcd::{EtcdSettings, EtcdStore},
};
use brindle_config_core::{
    Key, Kind, Resource,
    ipam::{AffinityState, BlockAffinitySpec},
    meta::ObjectMeta,
    names,
    store::{Change, Expect, Store, StoreError, StoreExt as _},
};
use serde_json::json;

/// One etcd on loopback, with its folder; both gone at the end.
struct Server {
    child: Child,
    dir: PathBuf,
    port: u16,
    args: Vec<String>,
}

/// A port nobody has, and that was not given before.
fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let free = || TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).unwrap().port();
    std::iter::repeat_with(free).find(|p| GIVEN.lock().unwrap().insert(*p)).unwrap()
}

impl Server {
    /// Starts etcd; `extra` may name files of the folder.
    fn start(name: &str, tls: bool, extra: &dyn Fn(&std::path::Path) -> Vec<String>) -> Self {
        let etcd = ["/usr/bin/etcd", "/usr/local/bin/etcd"].into_iter().find(|p| fs::metadata(p).is_ok());
        let etcd = etcd.expect("etcd is missing: apt-get install etcd-server (cargo xtask setup does)");
        let dir = std::env::temp_dir().join(format!("brindle-etcd-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let (port, peer) = (free_port(), free_port());
        let scheme = if tls { "https" } else { "http" };
        let mut args = vec![
            etcd.to_owned(),
            format!("--data-dir={}", dir.join("data").display()),
            format!("--listen-client-urls={scheme}://127.0.0.1:{port}"),
            format!("--advertise-client-urls={scheme}://127.0.0.1:{port}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-cluster=default=http://127.0.0.1:{peer}"),
            "--unsafe-no-fsync".to_owned(),
        ];
        args.extend(extra(&dir));
        let child = Self::spawn(&dir, &args);
        Self { child, dir, port, args }
    }

    fn spawn(dir: &std::path::Path, args: &[String]) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
        // 3.4 refuses flags it does not know; it may not know this one.
        let known = Command::new(&args[0]).arg("--help").output().unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&known.stdout), String::from_utf8_lossy(&known.stderr));
        let usable = args.iter().filter(|a| *a != "--unsafe-no-fsync" || text.contains("unsafe-no-fsync"));
        Command::new(&args[0])
            .args(usable.skip(1))
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn restart(&mut self) {
        self.stop();
        self.child = Self::spawn(&self.dir, &self.args);
    }

    fn store(&self, options: &str) -> EtcdStore {
        EtcdStore::new(self.settings("http", options))
    }

    fn settings(&self, scheme: &str, options: &str) -> EtcdSettings {
        EtcdSettings::parse(&format!("{scheme}://127.0.0.1:{}?{options}", self.port), |_| None).unwrap()
    }

    /// Runs etcdctl, which must succeed; `how` is beside the address.
    fn etcdctl(&self, scheme: &str, how: &[String], args: &[&str]) {
        let out = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={scheme}://127.0.0.1:{}", self.port))
            .args(how)
            .args(args)
            .output()
            .expect("etcdctl is missing: apt-get install etcd-client (cargo xtask setup does)");
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Waits until the store answers.
async fn ready(server: &Server, store: &EtcdStore) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match store.list(&[]).await {
            Ok(_) => return,
            Err(e) if Instant::now() > end => panic!("etcd does not answer: {e}\n{}", server.log()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn affinity(host: &str, cidr: &str) -> Resource<BlockAffinitySpec> {
    let cidr = cidr.parse().unwrap();
    Resource::new(
        ObjectMeta::named(names::affinity_name(host, &cidr)),
        BlockAffinitySpec {
            state: AffinityState::Confirmed,
            node: host.into(),
            affinity_type: "host".into(),
            cidr,
            deleted: false,
            extra: Default::default(),
        },
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_keeps_the_contract() {
    let server = Server::start("contract", false, &|_| Vec::new());
    ready(&server, &server.store("")).await;
    let trees = AtomicU32::new(0);
    contract::run(|| {
        let n = trees.fetch_add(1, Ordering::Relaxed);
        let settings = server.settings("http", &format!("prefix=/tree{n}"));
        let compactor = EtcdStore::new(settings.clone());
        Subject {
            handle: Box::new(move || Arc::new(EtcdStore::new(settings.clone()))),
            compact: Some(Box::new(move || {
                let store = compactor.clone();
                Box::pin(async move { store.compact().await.unwrap() })
            })),
        }
    })
    .await;
}

#[tokio::test]
async fn affinities_are_found_by_name_and_lie_where_calico_looks() {
    let server = Server::start("ipam", false, &|_| Vec::new());
    let store = server.store("");
    ready(&server, &store).await;
    let long = "n".repeat(245);
    let all = [
        affinity("node", "fd00:1::/122"),
        affinity("node-1", "fd00:2::/122"),
        affinity("node-1", "10.0.0.0/26"),
        affinity(&long, "10.0.0.64/26"),
    ];
    for a in &all {
        store.put_as(a, Expect::Absent).await.unwrap();
    }
    for a in &all {
        let got = store.get_as::<BlockAffinitySpec>(None, &a.metadata.name).await.unwrap();
        assert_eq!(got.resource.spec, a.spec);
        assert!(got.resource.metadata.labels.contains_key(names::LABEL_HOSTNAME_HASH));
    }
    let raw = EtcdStore::new(server.settings("http", "prefix=/calico"));
    let listed = raw.list(&[Kind::BlockAffinity]).await.unwrap();
    assert_eq!(listed.entries.len(), all.len());
    for a in &all {
        let key = Key::new(Kind::BlockAffinity, None, &a.metadata.name);
        store.delete(&key, Expect::Any).await.unwrap();
        assert_eq!(store.get(&key).await, Err(StoreError::NotFound(key)));
    }
}

#[tokio::test]
async fn a_large_listing_comes_in_pages_and_whole() {
    let server = Server::start("pages", false, &|_| Vec::new());
    let store = server.store("");
    ready(&server, &store).await;
    const N: usize = 4_500;
    let mut tasks = tokio::task::JoinSet::new();
    for part in 0..16 {
        let store = store.clone();
        tasks.spawn(async move {
            for n in (0..N).filter(|n| n % 16 == part) {
                let key = Key::new(Kind::BgpPeer, None, &format!("p{n}"));
                let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "BGPPeer",
                    "metadata": {"name": key.name}, "spec": {"peerIP": "192.0.2.1", "asNumber": 64512}});
                store.put(&key, value, Expect::Absent).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let listing = store.list(&[Kind::BgpPeer, Kind::IpPool]).await.unwrap();
    assert_eq!(listing.entries.len(), N);
    assert!(listing.entries.is_sorted_by(|a, b| a.key < b.key));
}

#[tokio::test]
async fn a_watch_outlives_a_restart_of_the_server() {
    let mut server = Server::start("restart", false, &|_| Vec::new());
    let store = server.store("");
    ready(&server, &store).await;
    let from = store.list(&[Kind::IpPool]).await.unwrap().revision;
    let mut watch = store.watch(&[Kind::IpPool], from).await.unwrap();
    server.restart();
    ready(&server, &server.store("")).await;
    let key = Key::new(Kind::IpPool, None, "after");
    let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "after"},
        "spec": {"cidr": "10.0.0.0/16"}});
    server.store("").put(&key, value, Expect::Absent).await.unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let changes = loop {
        // While the server is away the watch says so; asked again, it goes on where it was.
        match tokio::time::timeout(Duration::from_secs(30), watch.next()).await.expect("an answer") {
            Ok(changes) => break changes,
            Err(StoreError::Unavailable(_)) if Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(e) => panic!("{e}"),
        }
    };
    assert!(matches!(&changes[..], [Change::Put(e)] if e.key == key), "{changes:?}");
}

/// Calico's client changes no object without these two.
#[tokio::test]
async fn every_resource_has_a_uid_and_the_time_it_was_made() {
    let server = Server::start("identity", false, &|_| Vec::new());
    let store = server.store("");
    ready(&server, &store).await;
    let (key, value) = pool("p");
    let identity = async || {
        let metadata = store.get(&key).await.unwrap().value["metadata"].clone();
        let text = |name: &str| metadata[name].as_str().unwrap_or_default().to_owned();
        (text("uid"), text("creationTimestamp"))
    };
    let revision = store.put(&key, value.clone(), Expect::Absent).await.unwrap();
    let made = identity().await;
    assert!(made.0.len() == 36 && made.0.split('-').nth(2).unwrap().starts_with('4'), "{made:?}");
    assert!(made.1.len() == "2026-11-21T02:23:27Z".len() && made.1.ends_with('Z'), "{made:?}");

    // A change by who did not look at the old one keeps it.
    store.put(&key, value.clone(), Expect::Revision(revision)).await.unwrap();
    assert_eq!(identity().await, made);
    store.put(&key, value.clone(), Expect::Any).await.unwrap();
    assert_eq!(identity().await, made);
    let old = store.put(&key, value.clone(), Expect::Revision(revision)).await;
    assert_eq!(old, Err(StoreError::Conflict(key.clone())));
    store.delete(&key, Expect::Any).await.unwrap();
    let gone = store.put(&key, value.clone(), Expect::Revision(revision)).await;
    assert_eq!(gone, Err(StoreError::NotFound(key.clone())));
    store.put(&key, value.clone(), Expect::Any).await.unwrap();
    assert_ne!(identity().await.0, made.0, "it is another one");

    // One that lacks both gets them with its next change; what is half there stays.
    let path = "/calico/resources/v3/projectcalico.org/ippools/p";
    server.etcdctl("http", &[], &["put", path, &value.to_string()]);
    assert_eq!(identity().await, (String::new(), String::new()));
    let bare = store.get(&key).await.unwrap();
    store.put(&key, (*bare.value).clone(), Expect::Revision(bare.revision)).await.unwrap();
    let healed = identity().await;
    assert!(!healed.0.is_empty() && !healed.1.is_empty(), "{healed:?}");
    let mut half = value.clone();
    half["metadata"]["uid"] = json!("u");
    server.etcdctl("http", &[], &["put", path, &half.to_string()]);
    store.put(&key, value, Expect::Any).await.unwrap();
    let (uid, time) = identity().await;
    assert!(uid == "u" && !time.is_empty(), "{uid} {time}");
}

#[tokio::test]
async fn nobody_there_is_said_with_the_address() {
    let settings = EtcdSettings::parse(&format!("http://127.0.0.1:{}", free_port()), |_| None).unwrap();
    let e = EtcdStore::new(settings.clone()).list(&[Kind::Node]).await.unwrap_err();
    assert!(matches!(&e, StoreError::Unavailable(why) if why.contains(&settings.endpoints[0])), "{e}");
    assert!(e.to_string().contains("refused"), "{e}");
}

/// Three servers that are one cluster.
fn cluster(name: &str) -> [Server; 3] {
    let peers: [String; 3] = std::array::from_fn(|_| format!("http://127.0.0.1:{}", free_port()));
    let all: Vec<String> = peers.iter().enumerate().map(|(n, p)| format!("m{n}={p}")).collect();
    std::array::from_fn(|n| {
        let own = &peers[n];
        // The last of a flag counts.
        Server::start(&format!("{name}{n}"), false, &|_| {
            vec![
                format!("--name=m{n}"),
                format!("--listen-peer-urls={own}"),
                format!("--initial-advertise-peer-urls={own}"),
                format!("--initial-cluster={}", all.join(",")),
                // A busy machine lets a leader wait for longer than the usual second.
                "--heartbeat-interval=500".to_owned(),
                "--election-timeout=5000".to_owned(),
            ]
        })
    })
}

/// A store that knows these servers, in this order.
fn store_of(servers: &[&Server]) -> EtcdStore {
    let all: Vec<String> = servers.iter().map(|s| format!("http://127.0.0.1:{}", s.port)).collect();
    EtcdStore::new(EtcdSettings::parse(&all.join(","), |_| None).unwrap())
}

fn pool(name: &str) -> (Key, serde_json::Value) {
    let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": name},
        "spec": {"cidr": "10.0.0.0/16"}});
    (Key::new(Kind::IpPool, None, name), value)
}

#[tokio::test]
async fn one_dead_member_of_three_costs_no_call() {
    let mut servers = cluster("dead");
    for server in &servers {
        ready(server, &store_of(&[server])).await;
    }
    let (key, value) = pool("p");
    let [a, b, c] = &servers;
    let before = store_of(&[a, b, c]);
    before.put(&key, value.clone(), Expect::Absent).await.unwrap();
    let from = before.list(&[Kind::IpPool]).await.unwrap().revision;
    servers[0].stop();
    let [dead, b, c] = &servers;
    ready(b, &store_of(&[b])).await;
    ready(c, &store_of(&[c])).await;
    for order in [[dead, b, c], [b, dead, c], [b, c, dead]] {
        let store = store_of(&order);
        for n in 0..50 {
            store.get(&key).await.unwrap_or_else(|e| panic!("get {n}: {e}"));
            store.put(&key, value.clone(), Expect::Any).await.unwrap_or_else(|e| panic!("put {n}: {e}"));
        }
        // Where each begins is left to chance, so that sooner or later it is the dead one, with each kind of call.
        for n in 0..20 {
            let writes = store_of(&order).put(&key, value.clone(), Expect::Any).await;
            writes.unwrap_or_else(|e| panic!("first put {n}: {e}"));
            if let Err(e) = store_of(&order).watch(&[Kind::IpPool], from).await {
                panic!("first watch {n}: {e}");
            }
        }
    }
    before.get(&key).await.expect("a store that knew the dead one alive goes on");
}

#[tokio::test]
async fn where_nobody_answers_each_is_told_with_its_reason() {
    let ports = [free_port(), free_port()];
    let all: Vec<String> = ports.iter().map(|p| format!("http://127.0.0.1:{p}")).collect();
    let store = EtcdStore::new(EtcdSettings::parse(&all.join(","), |_| None).unwrap());
    let (key, value) = pool("p");
    for e in [store.list(&[]).await.unwrap_err(), store.put(&key, value, Expect::Any).await.unwrap_err()] {
        assert!(matches!(e, StoreError::Unavailable(_)), "{e}");
        let text = e.to_string();
        for place in &all {
            let said =
                text.split("; ").any(|part| part.contains(&format!("{place}: ")) && part.contains("refused"));
            assert!(said, "{place}: {text}");
        }
    }
}

#[tokio::test]
async fn tls_and_users_let_in_whom_they_should() {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    };
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, ca_key);
    let mut leaf = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let leaf_key = KeyPair::generate().unwrap();
    let leaf_pem = leaf.signed_by(&leaf_key, &issuer).unwrap().pem();
    let server = Server::start("tls", true, &|dir| {
        fs::write(dir.join("ca.pem"), &ca_pem).unwrap();
        fs::write(dir.join("cert.pem"), &leaf_pem).unwrap();
        fs::write(dir.join("key.pem"), leaf_key.serialize_pem()).unwrap();
        vec![
            format!("--cert-file={}", dir.join("cert.pem").display()),
            format!("--key-file={}", dir.join("key.pem").display()),
            format!("--trusted-ca-file={}", dir.join("ca.pem").display()),
            "--client-cert-auth".to_owned(),
        ]
    });
    let file = |name: &str| server.dir.join(name).display().to_string();
    let full = format!("ca={}&cert={}&key={}", file("ca.pem"), file("cert.pem"), file("key.pem"));
    let store = EtcdStore::new(server.settings("https", &full));
    ready(&server, &store).await;
    let key = Key::new(Kind::IpPool, None, "p");
    let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "p"},
        "spec": {"cidr": "10.0.0.0/16"}});
    store.put(&key, value.clone(), Expect::Absent).await.unwrap();

    let no_cert = EtcdStore::new(server.settings("https", &format!("ca={}", file("ca.pem"))));
    assert!(matches!(no_cert.get(&key).await, Err(StoreError::Unavailable(_))), "no certificate, no entry");
    let plain = EtcdStore::new(server.settings("http", ""));
    let e = plain.get(&key).await.unwrap_err();
    assert!(matches!(&e, StoreError::Broken(why) if why.contains("write https://127.0.0.1:")), "{e}");
    let no_ca = EtcdStore::new(server.settings("https", ""));
    let e = no_ca.get(&key).await.unwrap_err().to_string();
    assert!(e.contains("ETCD_CA_CERT_FILE"), "{e}");
    let gone = EtcdStore::new(server.settings("https", "ca=/nonexistent/ca.pem"));
    let e = gone.get(&key).await.unwrap_err().to_string();
    assert!(e.contains("/nonexistent/ca.pem"), "{e}");

    // One that ran out, and is renewed in place: the store that failed with it goes on by itself.
    let mut late = leaf.clone();
    late.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let late_key = KeyPair::generate().unwrap();
    fs::write(server.dir.join("mine.pem"), late.signed_by(&late_key, &issuer).unwrap().pem()).unwrap();
    fs::write(server.dir.join("mine.key"), late_key.serialize_pem()).unwrap();
    let mine = format!("ca={}&cert={}&key={}", file("ca.pem"), file("mine.pem"), file("mine.key"));
    let renewed = EtcdStore::new(server.settings("https", &mine));
    assert!(matches!(renewed.get(&key).await, Err(StoreError::Unavailable(_))), "it ran out in 2020");
    fs::write(server.dir.join("mine.pem"), &leaf_pem).unwrap();
    fs::write(server.dir.join("mine.key"), leaf_key.serialize_pem()).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(e) = renewed.get(&key).await {
        assert!(Instant::now() < end, "{e}");
    }

    // Users: root switches authentication on; `reader` may read only.
    let tls = [("cacert", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem")];
    let tls = tls.map(|(option, name)| format!("--{option}={}", file(name)));
    let ctl = |args: &[&str]| server.etcdctl("https", &tls, args);
    ctl(&["user", "add", "root:secret"]);
    ctl(&["user", "grant-role", "root", "root"]);
    ctl(&["user", "add", "reader:hello"]);
    ctl(&["role", "add", "reads"]);
    ctl(&["role", "grant-permission", "reads", "--prefix=true", "read", "/calico/"]);
    ctl(&["user", "grant-role", "reader", "reads"]);
    ctl(&["auth", "enable"]);
    let login = |user: &str, password: &str| {
        fs::write(server.dir.join("password"), format!("{password}\n")).unwrap();
        let options = format!("{full}&user={user}&password-file={}", file("password"));
        EtcdStore::new(server.settings("https", &options))
    };
    let reader = login("reader", "hello");
    reader.get(&key).await.unwrap();
    let e = reader.put(&key, value.clone(), Expect::Any).await.unwrap_err();
    assert!(
        matches!(&e, StoreError::Broken(why) if why.contains("write access to the keys under /calico")),
        "{e}"
    );
    let e = login("reader", "wrong").get(&key).await.unwrap_err();
    assert!(matches!(&e, StoreError::Broken(why) if why.contains("check user and password")), "{e}");
    let root = login("root", "secret");
    root.put(&key, value, Expect::Any).await.unwrap();
    let from = root.list(&[Kind::IpPool]).await.unwrap().revision;
    let mut watch = root.watch(&[Kind::IpPool], from).await.unwrap();
    root.delete(&key, Expect::Any).await.unwrap();
    assert!(matches!(&watch.next().await.unwrap()[..], [Change::Delete { .. }]));
}

/// A token that carries its own claims (JWT) is refused after any change of users and roles; the store logs in anew.
#[tokio::test]
async fn a_change_of_users_locks_nobody_out() {
    let server = Server::start("jwt", false, &|dir| {
        fs::write(dir.join("jwt.key"), "a key of this test, long enough for HS256").unwrap();
        let key = dir.join("jwt.key");
        vec![format!("--auth-token=jwt,sign-method=HS256,ttl=1h,priv-key={}", key.display())]
    });
    ready(&server, &server.store("")).await;
    let ctl = |args: &[&str]| server.etcdctl("http", &[], args);
    ctl(&["user", "add", "root:secret"]);
    ctl(&["user", "grant-role", "root", "root"]);
    ctl(&["user", "add", "brindle:hello"]);
    ctl(&["role", "add", "calico"]);
    ctl(&["role", "grant-permission", "calico", "--prefix=true", "readwrite", "/calico/"]);
    ctl(&["user", "grant-role", "brindle", "calico"]);
    ctl(&["auth", "enable"]);
    let changes = AtomicU32::new(0);
    let change = || {
        let name = format!("u{}:x", changes.fetch_add(1, Ordering::Relaxed));
        ctl(&["--user=root:secret", "user", "add", &name]);
    };
    fs::write(server.dir.join("password"), "hello\n").unwrap();
    let password = server.dir.join("password");
    let store = server.store(&format!("user=brindle&password-file={}", password.display()));
    let key = Key::new(Kind::IpPool, None, "p");
    let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "p"},
        "spec": {"cidr": "10.0.0.0/16"}});
    store.put(&key, value.clone(), Expect::Absent).await.unwrap();
    change();
    store.get(&key).await.unwrap();
    change();
    store.put(&key, value, Expect::Any).await.unwrap();
    change();
    let from = store.list(&[Kind::IpPool]).await.unwrap().revision;
    change();
    let mut watch = store.watch(&[Kind::IpPool], from).await.unwrap();
    change();
    store.delete(&key, Expect::Any).await.unwrap();
    assert!(matches!(&watch.next().await.unwrap()[..], [Change::Delete { .. }]));

    // What nobody may is still refused.
    ctl(&["--user=root:secret", "user", "revoke-role", "brindle", "calico"]);
    let e = store.watch(&[Kind::IpPool], from).await.err().expect("no right to it");
    assert!(matches!(&e, StoreError::Broken(why) if why.contains("permission denied")), "{e}");
}

/// A simple token ends in the index at which it was given out. A cluster that is put back to before that lets calls with it
/// wait until it gets there again.
#[tokio::test]
async fn a_restored_backup_locks_nobody_out() {
    let mut server = Server::start("backup", false, &|_| Vec::new());
    ready(&server, &server.store("")).await;
    for args in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "brindle:hello"],
        &["role", "add", "calico"],
        &["role", "grant-permission", "calico", "--prefix=true", "readwrite", "/calico/"],
        &["user", "grant-role", "brindle", "calico"],
        &["auth", "enable"],
    ] {
        server.etcdctl("http", &[], args);
    }
    fs::write(server.dir.join("password"), "hello\n").unwrap();
    let options = format!("user=brindle&password-file={}", server.dir.join("password").display());
    let store = || server.store(&options);
    let (early, sees_it_stop, sees_nothing) = (store(), store(), store());
    let (key, value) = pool("p");
    early.put(&key, value.clone(), Expect::Any).await.unwrap();

    server.stop();
    let (data, backup) = (server.dir.join("data"), server.dir.join("backup"));
    let copied = Command::new("cp").arg("-r").args([&data, &backup]).status().unwrap();
    assert!(copied.success());
    server.restart();
    let answers = async |store: &EtcdStore| {
        let end = Instant::now() + Duration::from_secs(90);
        while let Err(e) = store.get(&key).await {
            assert!(Instant::now() < end, "{e}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    answers(&early).await;
    for _ in 0..60 {
        early.put(&key, value.clone(), Expect::Any).await.unwrap();
    }
    for store in [&sees_it_stop, &sees_nothing] {
        store.get(&key).await.unwrap();
    }
    server.stop();
    sees_it_stop.get(&key).await.unwrap_err();
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&backup, &data).unwrap();
    server.restart();
    for store in [&sees_it_stop, &sees_nothing] {
        answers(store).await;
    }
}
