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
use brindle_config_core::{Kind, store::SyncEvent};
use brindle_integration::{kube::ApiServer, paired};
use http::{Method, Request};
use serde_json::{Value, json};

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

/// Paired rounds of the store and of the bare client on the same objects.
async fn writes(kubeconfig: &str) {
    let config = kube::config::Kubeconfig::read_from(kubeconfig).expect("it was just written");
    let config =
        kube::Config::from_custom_kubeconfig(config, &Default::default()).await.expect("a kubeconfig");
    let raw = kube::Client::try_from(config).expect("plain HTTP needs nothing");
    paired::compare(Arc::new(store(kubeconfig)), |writer| write(raw.clone(), writer)).await;
}

async fn write(client: kube::Client, writer: usize) {
    let path = format!("/apis/crd.projectcalico.org/v1/globalnetworksets/{}", paired::name(writer));
    let request = |method: Method, body: Vec<u8>| {
        let r = Request::builder().method(method).uri(&path).header("content-type", "application/json");
        r.body(body).expect("a request")
    };
    let mut object: Value =
        client.request(request(Method::GET, Vec::new())).await.unwrap_or_else(|e| panic!("{e}"));
    for n in 0..paired::WRITES {
        object["spec"] = paired::value(writer, n)["spec"].take();
        let body = object.to_string().into_bytes();
        object = client.request(request(Method::PUT, body)).await.unwrap_or_else(|e| panic!("{e}"));
    }
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
