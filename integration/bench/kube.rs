//! The kubernetes store against an API server in another process: compare-and-swap writes paired with a raw client's, and
//! the time and memory from nothing to in sync with a whole cluster. `bench-kube [NODES PODS POLICIES]`; the server is the
//! one of this package, so the figures are those of the client's side.

#![allow(clippy::print_stdout, reason = "the report is this program's product")]

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use brindle_config::{KubeStore, kubernetes::KubeSettings, sync};
use brindle_config_core::{
    Key, Kind,
    store::{Expect, Store, SyncEvent},
};
use brindle_integration::kube::ApiServer;
use http::{Method, Request};
use serde_json::{Value, json};

/// Pairs of rounds; the median of their ratios counts.
const PAIRS: usize = 7;
/// Writers side by side, each on a resource of its own.
const WRITERS: usize = 4;
/// Writes of each writer in a round.
const WRITES: usize = 150;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime can be made");
    if let [mode, kubeconfig] = args.as_slice()
        && mode == "follow"
    {
        return runtime.block_on(follow(kubeconfig));
    }
    let size = |i: usize, usual: usize| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(usual);
    let (nodes, pods, policies) = (size(0, 1_000), size(1, 20_000), size(2, 2_000));
    let server = ApiServer::new();
    let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    let files = std::fs::read_dir(&crds).unwrap_or_else(|e| panic!("{}: {e}", crds.display()));
    // The folder's list for kustomize is no object.
    for path in files.flatten().map(|f| f.path()).filter(|p| !p.ends_with("kustomization.yaml")) {
        server.load(&path).unwrap_or_else(|e| panic!("{e}"));
    }
    let kubeconfig = std::env::temp_dir().join(format!("bench-kube-{}", std::process::id()));
    server.write_kubeconfig(&kubeconfig, server.admin_token());
    let login = kubeconfig.display().to_string();
    runtime.block_on(writes(&login));
    fill(&server, nodes, pods, policies);
    println!("{nodes} nodes, {pods} pods, {policies} policies:");
    let me = std::env::current_exe().expect("a process knows its own executable");
    let mut child = Command::new(me)
        .args(["follow", &login])
        .stdin(Stdio::null())
        .spawn()
        .expect("this program can be run again");
    let ended = child.wait().expect("a child can be waited for");
    let _ = std::fs::remove_file(&kubeconfig);
    assert!(ended.success(), "the follower failed");
}

fn store(kubeconfig: &str) -> KubeStore {
    KubeStore::new(KubeSettings::parse(kubeconfig).unwrap_or_else(|e| panic!("{e}")))
}

fn value(name: &str, n: usize) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet", "metadata": {"name": name},
        "spec": {"nets": [format!("10.{}.{}.0/24", n / 256 % 256, n % 256)]}})
}

/// Paired rounds of the store and of the bare client on the same objects.
async fn writes(kubeconfig: &str) {
    let ours = store(kubeconfig);
    let config = kube::config::Kubeconfig::read_from(kubeconfig).expect("it was just written");
    let config =
        kube::Config::from_custom_kubeconfig(config, &Default::default()).await.expect("a kubeconfig");
    let raw = kube::Client::try_from(config).expect("plain HTTP needs nothing");
    for w in 0..WRITERS {
        let name = format!("w{w}");
        let key = Key::new(Kind::GlobalNetworkSet, None, &name);
        ours.put(&key, value(&name, 0), Expect::Absent).await.unwrap_or_else(|e| panic!("{e}"));
    }
    let mut ratios = Vec::new();
    for pair in 0..=PAIRS {
        // Who goes first changes, so that neither profits from a warm server.
        let (by_store, by_raw) = if pair % 2 == 0 {
            let a = round_of_store(&ours).await;
            (a, round_of_raw(&raw).await)
        } else {
            let b = round_of_raw(&raw).await;
            (round_of_store(&ours).await, b)
        };
        // The first pair only warms up.
        if pair > 0 {
            ratios.push(by_store / by_raw);
            println!("writes/s: store {by_store:.0}, raw client {by_raw:.0}, ratio {:.2}", by_store / by_raw);
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "compare-and-swap writes, store : raw client, median of {PAIRS} pairs: {:.2}",
        ratios[PAIRS / 2]
    );
}

fn rate(since: Instant) -> f64 {
    (WRITERS * WRITES) as f64 / since.elapsed().as_secs_f64()
}

async fn round_of_store(store: &KubeStore) -> f64 {
    let since = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for w in 0..WRITERS {
        let store = store.clone();
        tasks.spawn(async move {
            let name = format!("w{w}");
            let key = Key::new(Kind::GlobalNetworkSet, None, &name);
            let mut at = store.get(&key).await.unwrap_or_else(|e| panic!("{e}")).revision;
            for n in 0..WRITES {
                let put = store.put(&key, value(&name, n), Expect::Revision(at)).await;
                at = put.unwrap_or_else(|e| panic!("{e}"));
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a writer ends well");
    }
    rate(since)
}

async fn round_of_raw(client: &kube::Client) -> f64 {
    let since = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for w in 0..WRITERS {
        let client = client.clone();
        tasks.spawn(async move {
            let path = format!("/apis/crd.projectcalico.org/v1/globalnetworksets/w{w}");
            let request = |method: Method, body: Vec<u8>| {
                let r =
                    Request::builder().method(method).uri(&path).header("content-type", "application/json");
                r.body(body).expect("a request")
            };
            let mut object: Value =
                client.request(request(Method::GET, Vec::new())).await.unwrap_or_else(|e| panic!("{e}"));
            for n in 0..WRITES {
                object["spec"] = value("", n)["spec"].clone();
                let body = object.to_string().into_bytes();
                object = client.request(request(Method::PUT, body)).await.unwrap_or_else(|e| panic!("{e}"));
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a writer ends well");
    }
    rate(since)
}

/// A cluster as it is after a while: every pod runs and has its annotations.
fn fill(server: &ApiServer, nodes: usize, pods: usize, policies: usize) {
    let put = |object: Value| {
        let name = object["metadata"]["name"].clone();
        server.create(object).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    };
    for n in 0..nodes {
        put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{n}"),
            "labels": {"kubernetes.io/hostname": format!("node-{n}"), "kubernetes.io/os": "linux"},
            "annotations": {"projectcalico.org/IPv4Address": format!("172.16.{}.{}/16", n / 256, n % 256)}},
            "spec": {"podCIDR": "10.0.0.0/24"}}));
    }
    for n in 0..pods {
        let ip = format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
        put(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("pod-{n}"), "namespace": "default",
            "labels": {"app": format!("app-{}", n % 200), "pod-template-hash": format!("{:x}", n % 977)},
            "annotations": {"cni.projectcalico.org/podIP": format!("{ip}/32"),
                "cni.projectcalico.org/podIPs": format!("{ip}/32"),
                "cni.projectcalico.org/containerID": format!("{n:064x}")}},
            "spec": {"nodeName": format!("node-{}", n % nodes.max(1)), "serviceAccountName": "default", "containers": [
                {"name": "main", "image": "registry.example.org/team/app:1.2.3",
                    "ports": [{"name": "http", "containerPort": 8080}],
                    "env": [{"name": "A", "value": "b"}, {"name": "C", "value": "d"}],
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                    "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10}}]}}),
        );
    }
    for n in 0..policies {
        put(json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("policy-{n}"), "namespace": "default"},
            "spec": {"podSelector": {"matchLabels": {"app": format!("app-{}", n % 200)}}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": format!("app-{}", (n + 1) % 200)}}}],
                    "ports": [{"port": 8080}]}]}}));
    }
}

/// The child: follows everything until in sync and says what it took.
async fn follow(kubeconfig: &str) {
    let since = Instant::now();
    let mut events = sync::follow(Arc::new(store(kubeconfig)), Kind::ALL.to_vec());
    let mut seen = 0usize;
    let limit = tokio::time::sleep(Duration::from_secs(300));
    tokio::pin!(limit);
    loop {
        let batch = tokio::select! {
            batch = events.recv() => batch.expect("the follower lives"),
            () = &mut limit => panic!("not in sync within 300 s"),
        };
        seen += batch.len();
        if batch.iter().any(|e| matches!(e, SyncEvent::InSync)) {
            break;
        }
    }
    let took = since.elapsed();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        status.lines().find_map(|l| l.strip_prefix(name)).map(|l| l.trim().to_owned()).unwrap_or_default()
    };
    println!(
        "from nothing to in sync: {:.2} s, {} resources, RSS {} (most {})",
        took.as_secs_f64(),
        seen - 1,
        field("VmRSS:"),
        field("VmHWM:")
    );
}
