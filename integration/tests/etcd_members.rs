//! A cluster of three etcd on machines of their own, one of which is cut off from the others and not from its clients: what
//! it does not hear of is heard from another one. Needs root and Debian's etcd-server.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use brindle_config::etcd::{EtcdSettings, EtcdStore};
use brindle_config_core::{
    Key, Kind,
    store::{Change, Expect, Revision, Store as _, StoreError},
};
use brindle_integration::{cni::sh, netns::TestNs, process::Running};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(90);

/// The client's machine, to which a network of all members leads; they have another one among themselves.
struct Cluster {
    client: TestNs,
    members: Vec<(TestNs, Running)>,
    dir: PathBuf,
}

impl Cluster {
    fn new(tag: &str) -> Self {
        let client = TestNs::new(tag);
        let dir = std::env::temp_dir().join(client.name());
        fs::create_dir_all(&dir).unwrap();
        sh(
            client.ns(),
            "ip link add clients type bridge; ip link set clients up; ip addr add 10.0.1.9/24 dev clients",
        );
        sh(client.ns(), "ip link add peers type bridge; ip link set peers up");
        let all: Vec<String> = (1..=3).map(|n| format!("m{n}=http://10.0.2.{n}:2380")).collect();
        let members = (1..=3).map(|n| {
            let ns = TestNs::new(&format!("{tag}{n}"));
            for (network, third) in [("clients", 1), ("peers", 2)] {
                let (name, short) = (ns.name(), &network[..1]);
                let wire = format!(
                    "ip link add {short}{n} type veth peer name {network} netns {name}; ip link set {short}{n} master {network} up"
                );
                sh(client.ns(), &wire);
                sh(ns.ns(), &format!("ip link set {network} up; ip addr add 10.0.{third}.{n}/24 dev {network}"));
            }
            let log = fs::File::create(dir.join(format!("etcd{n}.log"))).unwrap();
            let mut command = Command::new("/usr/bin/etcd");
            command
                .args([format!("--name=m{n}"), format!("--data-dir={}", dir.join(format!("data{n}")).display())])
                .args(["client", "peer"].map(|what| {
                    let (third, port) = if what == "client" { (1, 2379) } else { (2, 2380) };
                    format!("--listen-{what}-urls=http://10.0.{third}.{n}:{port}")
                }))
                .args([
                    format!("--advertise-client-urls=http://10.0.1.{n}:2379"),
                    format!("--initial-advertise-peer-urls=http://10.0.2.{n}:2380"),
                    format!("--initial-cluster={}", all.join(",")),
                ])
                .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log);
            let server = Running::start_in(ns.ns(), &mut command);
            (ns, server)
        });
        let members = members.collect();
        Self { client, members, dir }
    }

    fn store(members: &[usize]) -> EtcdStore {
        let all: Vec<String> = members.iter().map(|n| format!("http://10.0.1.{n}:2379")).collect();
        EtcdStore::new(EtcdSettings::parse(&all.join(","), |_| None).unwrap())
    }

    /// A member's way to the others (`peers`), or to the client.
    fn link(&self, member: usize, network: &str, state: &str) {
        sh(self.members[member - 1].0.ns(), &format!("ip link set {network} {state}"));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.members.clear();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn pool(name: &str) -> (Key, Value) {
    let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": name},
        "spec": {"cidr": "10.0.0.0/16"}});
    (Key::new(Kind::IpPool, None, name), value)
}

/// Writes, until it was.
async fn write(store: &EtcdStore, name: &str) {
    let (key, value) = pool(name);
    let end = Instant::now() + LONG;
    while let Err(e) = store.put(&key, value.clone(), Expect::Any).await {
        assert!(Instant::now() < end, "{name} cannot be written: {e}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The revision of the store, once it answers.
async fn revision(store: &EtcdStore) -> Revision {
    let end = Instant::now() + LONG;
    loop {
        match store.list(&[Kind::IpPool]).await {
            Ok(listing) => return listing.revision,
            Err(e) => assert!(Instant::now() < end, "it cannot be listed: {e}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_watch_leaves_a_member_that_is_cut_off_from_the_others() {
    let cluster = Cluster::new("etcdcut");
    let all = async || {
        for cut in 1..=3 {
            let others: Vec<usize> = (1..=3).filter(|n| *n != cut).collect();
            let writer = Cluster::store(&others);
            write(&writer, "before").await;
            let from = revision(&writer).await;
            // Of the two it knows one alone is there when it begins.
            cluster.link(others[0], "clients", "down");
            let mut watch = Cluster::store(&[cut, others[0]]).watch(&[Kind::IpPool], from).await.unwrap();
            cluster.link(others[0], "clients", "up");
            cluster.link(cut, "peers", "down");
            let name = format!("meanwhile-{cut}");
            write(&writer, &name).await;
            let written = Instant::now();
            let seen = loop {
                let next = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
                match next.expect("it does not stay silent") {
                    Ok(changes) => break changes,
                    Err(StoreError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
                    Err(e) => panic!("{e}"),
                }
            };
            assert!(matches!(&seen[..], [Change::Put(e)] if e.key.name == name), "{seen:?}");
            assert!(written.elapsed() < Duration::from_secs(20), "{:?}", written.elapsed());
            cluster.link(cut, "peers", "up");
            write(&Cluster::store(&[cut]), "after").await;
        }
    };
    let run = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(all());
    cluster.client.ns().run(run).unwrap();
}
