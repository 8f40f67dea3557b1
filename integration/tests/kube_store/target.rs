//! The API server under test, and calls to it that do not go through the store.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU8, AtomicU32, Ordering},
    time::Duration,
};

use brindle_config::kubernetes::{KubeSettings, KubeStore};
use brindle_integration::kube::{ApiServer, Options};
use http::{Method, Request};
use serde_json::{Value, json};

pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Where the definitions of Calico's kinds are.
pub(crate) fn crds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds")
}

/// A real server is slow to start, and a given one is shared: one test at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

enum Server {
    /// Of this package.
    Ours(Box<ApiServer>),
    /// Named by KUBECONFIG.
    Given,
    /// Started from KUBEBUILDER_ASSETS.
    Assets { children: Vec<Child> },
}

/// A server with a kubeconfig of somebody who may do everything.
pub(crate) struct Target {
    server: Server,
    pub(crate) dir: PathBuf,
    kubeconfig: PathBuf,
    client: kube::Client,
    alone: Option<tokio::sync::MutexGuard<'static, ()>>,
}

impl Drop for Target {
    fn drop(&mut self) {
        // Its lock goes last, with the fields.
        if let Server::Assets { children } = &mut self.server {
            for child in children.iter_mut().rev() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Says something that is to be read even when the test passes: the harness keeps what macros print.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn folder() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("brindle-kube-{}-{n}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}

impl Target {
    /// The server the environment asks for, with Calico's definitions.
    pub(crate) async fn start() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        let mut alone = None;
        if set("KUBECONFIG").or_else(|| set("KUBEBUILDER_ASSETS")).is_some() {
            alone = Some(ALONE.lock().await);
        }
        let mut target = if let Some(path) = set("KUBECONFIG") {
            say(&format!("API server: the one of KUBECONFIG={}", path.display()));
            Self::with(Server::Given, folder(), path.into()).await
        } else if let Some(assets) = set("KUBEBUILDER_ASSETS") {
            say(&format!("API server: kube-apiserver of KUBEBUILDER_ASSETS={}", assets.display()));
            Self::from_assets(Path::new(&assets)).await
        } else {
            say(
                "API server: the in-process one of brindle-integration (set KUBECONFIG or KUBEBUILDER_ASSETS for a real one)",
            );
            Self::ours_bare().await
        };
        target.alone = alone;
        target.define().await;
        target
    }

    /// The server of this package, with Calico's definitions: for what a real one cannot be told to do.
    pub(crate) async fn ours() -> Self {
        say("API server: the in-process one of brindle-integration (this test makes trouble on purpose)");
        let target = Self::ours_bare().await;
        target.define().await;
        target
    }

    /// ... without definitions.
    pub(crate) async fn ours_bare() -> Self {
        let dir = folder();
        // An address of its own: a server that stops and comes back must find its port free, whatever other tests and
        // clients take from 127.0.0.1 meanwhile.
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let process = u8::try_from(std::process::id() % 250).unwrap_or(0);
        let address = [127, 99, process, NEXT.fetch_add(1, Ordering::Relaxed)];
        let server =
            ApiServer::start(Options { tls: true, address: (address, 0).into(), ..Options::default() });
        let path = dir.join("kubeconfig");
        server.write_kubeconfig(&path, server.admin_token());
        Self::with(Server::Ours(Box::new(server)), dir, path).await
    }

    async fn with(server: Server, dir: PathBuf, kubeconfig: PathBuf) -> Self {
        let config = kube::config::Kubeconfig::read_from(&kubeconfig).unwrap();
        let config =
            kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default()).await;
        let client = kube::Client::try_from(config.unwrap()).unwrap();
        Self { server, dir, kubeconfig, client, alone: None }
    }

    async fn from_assets(assets: &Path) -> Self {
        let dir = folder();
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (client, peer, port) = (free(), free(), free());
        let start = |program: &str, args: Vec<String>| {
            let log = fs::File::create(dir.join(format!("{program}.log"))).unwrap();
            let mut command = Command::new(assets.join(program));
            command.args(args).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            command.spawn().unwrap_or_else(|e| panic!("{}/{program}: {e}", assets.display()))
        };
        let etcd = start(
            "etcd",
            vec![
                format!("--data-dir={}", dir.join("etcd").display()),
                format!("--listen-client-urls=http://127.0.0.1:{client}"),
                format!("--advertise-client-urls=http://127.0.0.1:{client}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                "--unsafe-no-fsync".into(),
            ],
        );
        let key = rcgen::KeyPair::generate().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        // A server reads the public half of an ECDSA key only from a file that holds just that.
        let account = file("account.key", &key.serialize_pem());
        let public = file("account.pub", &key.public_key_pem());
        let tokens = file("tokens.csv", "t0ken,admin,1,system:masters\n");
        let server = start(
            "kube-apiserver",
            vec![
                format!("--etcd-servers=http://127.0.0.1:{client}"),
                format!("--cert-dir={}", dir.join("certs").display()),
                format!("--secure-port={port}"),
                "--bind-address=127.0.0.1".into(),
                "--authorization-mode=RBAC".into(),
                "--service-cluster-ip-range=10.96.0.0/16".into(),
                "--disable-admission-plugins=ServiceAccount".into(),
                format!("--token-auth-file={tokens}"),
                format!("--service-account-key-file={public}"),
                format!("--service-account-signing-key-file={account}"),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
            ],
        );
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "t",
            "clusters": [{"name": "t", "cluster": {"server": format!("https://127.0.0.1:{port}"), "insecure-skip-tls-verify": true}}],
            "users": [{"name": "t", "user": {"token": "t0ken"}}],
            "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}]});
        let path = PathBuf::from(file("kubeconfig", &config.to_string()));
        let mut target = Self::with(Server::Assets { children: vec![etcd, server] }, dir, path).await;
        let end = tokio::time::Instant::now() + LONG;
        while let Err(why) = target.call(Method::GET, "/readyz", None).await {
            let late = tokio::time::Instant::now() >= end;
            if let Some(program) = target.dead().or_else(|| late.then_some("kube-apiserver")) {
                let log = fs::read_to_string(target.dir.join(format!("{program}.log"))).unwrap_or_default();
                let skip = log.lines().count().saturating_sub(10);
                let end: Vec<&str> = log.lines().skip(skip).collect();
                panic!("{program} of {} does not serve: {why}\n{}", assets.display(), end.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        target
    }

    /// A program of a real server that has ended.
    fn dead(&mut self) -> Option<&'static str> {
        let Server::Assets { children } = &mut self.server else { return None };
        let mut named = children.iter_mut().zip(["etcd", "kube-apiserver"]);
        named.find_map(|(child, name)| child.try_wait().ok().flatten().map(|_| name))
    }

    /// Waits without blocking the runtime.
    pub(crate) async fn eventually(&self, what: &str, mut ask: impl AsyncFnMut() -> bool) {
        let end = tokio::time::Instant::now() + LONG;
        while !ask().await {
            assert!(tokio::time::Instant::now() < end, "{what}: not within {LONG:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The server as one that can be told to make trouble.
    pub(crate) fn server(&self) -> &ApiServer {
        match &self.server {
            Server::Ours(server) => server,
            _ => panic!("a real server makes no trouble on demand"),
        }
    }

    /// Whether history can be forgotten on demand.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.server, Server::Ours(_))
    }

    /// Applies Calico's definitions, and waits until each is served: a real server takes its time, one by one.
    async fn define(&self) {
        let all = definitions();
        for definition in &all {
            let kinds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
            self.create(kinds, definition.clone()).await;
        }
        for definition in &all {
            let of = |path: &str| definition.pointer(path).and_then(Value::as_str).unwrap_or_default();
            let group = of("/spec/group");
            let path = format!("/apis/{group}/{}/{}", of("/spec/versions/0/name"), of("/spec/names/plural"));
            self.eventually(&format!("{path} is served"), async || {
                self.call(Method::GET, &path, None).await.is_ok()
            })
            .await;
        }
    }

    pub(crate) fn settings(&self) -> KubeSettings {
        KubeSettings::parse(self.kubeconfig.to_str().unwrap()).unwrap()
    }

    pub(crate) fn store(&self) -> KubeStore {
        KubeStore::new(self.settings())
    }

    /// A store that logs in with `token`.
    pub(crate) fn store_with(&self, token: &str) -> KubeStore {
        let path = self.dir.join(format!("kubeconfig-{token}"));
        self.server().write_kubeconfig(&path, token);
        KubeStore::new(KubeSettings::parse(path.to_str().unwrap()).unwrap())
    }

    /// One call; the body of the answer, or code and message.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Value)>,
    ) -> Result<Value, String> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some((kind, _)) = &body {
            request = request.header("content-type", *kind);
        }
        let bytes = body.map(|(_, v)| v.to_string().into_bytes()).unwrap_or_default();
        let text = self.client.request_text(request.body(bytes).unwrap()).await.map_err(|e| match e {
            kube::Error::Api(s) => format!("{} {}", s.code, s.message),
            other => other.to_string(),
        })?;
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Creates an object, or leaves the one that is there.
    pub(crate) async fn create(&self, collection: &str, object: Value) {
        let name = object["metadata"]["name"].clone();
        match self.call(Method::POST, collection, Some(("application/json", object))).await {
            Err(e) if !e.starts_with("409") => panic!("cannot create {name} in {collection}: {e}"),
            _ => {}
        }
    }

    pub(crate) async fn merge(&self, path: &str, patch: Value) -> Value {
        let done = self.call(Method::PATCH, path, Some(("application/merge-patch+json", patch))).await;
        done.unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    pub(crate) async fn namespace(&self, name: &str) {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.create("/api/v1/namespaces", object).await;
    }

    pub(crate) async fn node(&self, name: &str) {
        let object =
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"rack": "a"}}});
        self.create("/api/v1/nodes", object).await;
    }

    /// A pod on a node, as the scheduler leaves it.
    pub(crate) async fn pod(&self, namespace: &str, name: &str, node: &str) {
        let object = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": "web"}},
            "spec": {"nodeName": node, "automountServiceAccountToken": false, "containers": [
                {"name": "c", "image": "example.org/web:1", "ports": [{"name": "http", "containerPort": 80}]}]}});
        self.create(&format!("/api/v1/namespaces/{namespace}/pods"), object).await;
    }
}

/// The definitions of the folder as JSON.
pub(crate) fn definitions() -> Vec<Value> {
    let mut all = Vec::new();
    for file in fs::read_dir(crds()).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let value: Value =
            serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if value["kind"] == "CustomResourceDefinition" {
            all.push(value);
        }
    }
    assert!(all.len() > 20, "deploy/crds holds the definitions");
    all
}
