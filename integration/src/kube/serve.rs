//! The server as tests hold it: listening, stopping and starting again with its state, kubeconfigs, objects put in and
//! taken out without HTTP, and the hooks for troubles.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs, io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::watch};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};

use super::{
    delete,
    faults::{Faults, Refusal},
    kinds::Kind,
    rbac::{Access, Identity},
    server::{self, Recorded, Settings, Shared, Traffic},
    state::{Id, State},
    status::Status,
    write::{self, PatchKind, Target},
};

/// How the listening socket is made: a test in a namespace enters it here.
pub type Bind = Arc<dyn Fn(SocketAddr) -> io::Result<TcpListener> + Send + Sync>;

/// How to start.
#[derive(Clone)]
pub struct Options {
    pub tls: bool,
    /// Calls without a token are `system:anonymous` (403), as by default in Kubernetes; otherwise 401.
    pub anonymous: bool,
    pub address: SocketAddr,
    /// First and last year of its certificate's validity; otherwise it is valid now.
    pub certificate_years: Option<(i32, i32)>,
    pub bind: Bind,
    /// How long a watch lives that asks for no timeout.
    pub watch_timeout: Duration,
    pub bookmark_every: Duration,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Options {{ tls: {}, address: {} }}", self.tls, self.address)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tls: false,
            anonymous: true,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            certificate_years: None,
            bind: Arc::new(|a: SocketAddr| TcpListener::bind(a)),
            watch_timeout: Duration::from_secs(1800),
            bookmark_every: Duration::from_secs(60),
        }
    }
}

struct Tls {
    ca: String,
    acceptor: TlsAcceptor,
}

/// The server; gone when dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    options: Options,
    address: SocketAddr,
    tls: Option<Tls>,
    admin: String,
    runtime: Option<Runtime>,
    running: Mutex<Option<(watch::Sender<bool>, mpsc::Receiver<()>)>>,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiServer {{ {} }}", self.url())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
        if let Some(r) = self.runtime.take() {
            r.shutdown_background();
        }
    }
}

fn certificates(address: SocketAddr, years: Option<(i32, i32)>) -> Tls {
    let names =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "127.0.0.1", "::1"];
    let mut names: Vec<_> = names.map(str::to_owned).to_vec();
    let own = address.ip().to_string();
    if !address.ip().is_unspecified() && !names.contains(&own) {
        names.push(own);
    }
    let ca_key = rcgen::KeyPair::generate().expect("the generator works");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names are wrong");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "test API server CA");
    let ca = params.self_signed(&ca_key).expect("the parameters are whole");
    let issuer = rcgen::Issuer::from_params(&params, &ca_key);
    let key = rcgen::KeyPair::generate().expect("the generator works");
    let mut leaf = rcgen::CertificateParams::new(names).expect("the names are good");
    if let Some((first, last)) = years {
        leaf.not_before = rcgen::date_time_ymd(first, 1, 1);
        leaf.not_after = rcgen::date_time_ymd(last, 12, 31);
    }
    let leaf = leaf.signed_by(&key, &issuer).expect("the parameters are whole");
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows the protocol's versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).expect("a generated key is PKCS #8"),
        )
        .expect("key and certificate belong together");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Tls { ca: ca.pem(), acceptor: TlsAcceptor::from(Arc::new(config)) }
}

impl ApiServer {
    /// Plain HTTP on a free port of 127.0.0.1.
    pub fn new() -> Self {
        Self::start(Options::default())
    }

    /// HTTPS on a free port of 127.0.0.1.
    pub fn with_tls() -> Self {
        Self::start(Options { tls: true, ..Options::default() })
    }

    pub fn start(options: Options) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("apiserver")
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let tls = options.tls.then(|| certificates(options.address, options.certificate_years));
        let ca = tls.as_ref().map(|t| t.ca.clone()).unwrap_or_default();
        let mut state = State::new(ca);
        state.furnish();
        let admin = format!("admin-{}", super::stamp::uid());
        let identity = Identity {
            user: "kubernetes-admin".into(),
            groups: vec!["system:masters".into(), "system:authenticated".into()],
            access: Access::All,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            tokens: Mutex::new(HashMap::from([(admin.clone(), identity)])),
            log: Mutex::default(),
            faults: Mutex::new(Faults::default()),
            drops: watch::channel(0).0,
            options: Settings {
                watch_timeout: options.watch_timeout,
                bookmark_every: options.bookmark_every,
                anonymous: options.anonymous,
            },
        });
        let address = options.address;
        let mut server =
            Self { shared, options, address, tls, admin, runtime: Some(runtime), running: Mutex::new(None) };
        server.address = server.listen();
        server
    }

    fn listen(&self) -> SocketAddr {
        let socket = (self.options.bind)(self.address)
            .unwrap_or_else(|e| panic!("the API server cannot listen on {}: {e}", self.address));
        socket.set_nonblocking(true).expect("a socket can be non-blocking");
        let address = socket.local_addr().expect("a bound socket has an address");
        let runtime = self.runtime.as_ref().expect("the runtime lives as long as the server");
        let guard = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(socket).expect("the socket is good");
        drop(guard);
        let (stop, stopped) = watch::channel(false);
        let (done, gone) = mpsc::channel();
        let acceptor = self.tls.as_ref().map(|t| t.acceptor.clone());
        runtime.spawn(accept(listener, acceptor, Arc::clone(&self.shared), stopped, done));
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some((stop, gone));
        address
    }

    /// The API server goes away: the port is closed and every connection is cut. The state stays.
    pub fn stop(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, gone)) = running {
            stop.send_replace(true);
            // The channel closes with the listener and the last connection.
            let _ = gone.recv();
        }
    }

    /// It comes back on the same port with the same state.
    pub fn resume(&self) {
        self.stop();
        self.listen();
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.address)
    }

    /// The CA's certificate, when the server speaks TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.tls.as_ref().map(|t| t.ca.as_str())
    }

    /// A token that may do everything.
    pub fn admin_token(&self) -> &str {
        &self.admin
    }

    /// Lets `token` stand for somebody.
    pub fn add_token(&self, token: &str, user: &str, access: Access) {
        let groups = vec!["system:authenticated".to_owned()];
        self.shared.tokens().insert(token.to_owned(), Identity { user: user.to_owned(), groups, access });
    }

    /// A new token of a service account; what it may do is what the stored roles and bindings say.
    pub fn service_account_token(&self, namespace: &str, name: &str) -> String {
        let token = format!("sa-{}", super::stamp::uid());
        self.shared.tokens().insert(token.clone(), Identity::service_account(namespace, name));
        token
    }

    /// The token expires: calls with it come to 401.
    pub fn revoke_token(&self, token: &str) {
        self.shared.tokens().remove(token);
    }

    /// A kubeconfig for a token (JSON, which is YAML).
    pub fn kubeconfig(&self, token: &str) -> String {
        let mut cluster = json!({"server": self.url()});
        if let Some(ca) = self.ca_pem() {
            cluster["certificate-authority-data"] = super::builtin::base64(ca.as_bytes()).into();
        }
        let v = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
        });
        serde_json::to_string_pretty(&v).expect("values can be written")
    }

    pub fn write_kubeconfig(&self, path: &Path, token: &str) {
        fs::write(path, self.kubeconfig(token)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// What was called so far, and how much was sent.
    pub fn calls(&self) -> BTreeMap<Recorded, Traffic> {
        self.shared.log().clone()
    }

    pub fn clear_calls(&self) {
        self.shared.log().clear();
    }

    /// Cuts the connections of all watches once.
    pub fn drop_watches(&self) {
        self.shared.drops.send_modify(|n| *n += 1);
    }

    /// Forgets history, as etcd's compaction: older watches and continuations come to 410.
    pub fn compact(&self) {
        self.shared.state().compact();
        // Watches that are behind hear of it at once.
        for c in self.shared.state().collections.values() {
            c.notify.send_modify(|_| ());
        }
    }

    /// Every request waits this long first.
    pub fn delay(&self, by: Option<Duration>) {
        self.shared.faults().delay = by;
    }

    /// Writes fail as they do when etcd's space is used up.
    pub fn read_only(&self, on: bool) {
        self.shared.faults().read_only = on;
    }

    /// Listings and watches that select by this field are refused, as by servers of before it could be selected by.
    pub fn does_not_select_by(&self, field: &str) {
        self.shared.faults().unselectable = Some(field.to_owned());
    }

    pub fn refuse(&self, refusal: Refusal) {
        self.shared.faults().refusals.push(refusal);
    }

    pub fn clear_refusals(&self) {
        self.shared.faults().refusals.clear();
    }

    /// The current resource version.
    pub fn resource_version(&self) -> u64 {
        self.shared.state().rv
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    fn target(state: &State, object: &Value) -> Result<Target, Status> {
        let api = object["apiVersion"].as_str().unwrap_or("");
        let (group, version) = api.split_once('/').unwrap_or(("", api));
        let kind = object["kind"].as_str().unwrap_or("");
        let found = state
            .collections
            .iter()
            .find(|(id, c)| id.0 == group && c.kind.kind == kind && c.kind.version(version).is_some());
        let (id, c): (&Id, Arc<Kind>) = match found {
            Some((id, c)) => (id, Arc::clone(&c.kind)),
            None => {
                return Err(*Status::bad_request(format!("no matches for kind {kind:?} in version {api:?}")));
            }
        };
        let text = |f: &str| object["metadata"][f].as_str().unwrap_or("").to_owned();
        let mut namespace = if c.namespaced { text("namespace") } else { String::new() };
        if c.namespaced && namespace.is_empty() {
            namespace = "default".into();
        }
        Ok(Target {
            id: id.clone(),
            kind: c,
            version: version.into(),
            namespace,
            name: text("name"),
            sub: String::new(),
        })
    }

    /// Creates an object (with apiVersion and kind) as an administrator, without HTTP.
    ///
    /// # Errors
    /// What the server would answer.
    pub fn create(&self, object: Value) -> Result<Value, Status> {
        let mut state = self.shared.state();
        let t = Self::target(&state, &object)?;
        let o = state
            .create(&t, object, &write::Options { manager: "test".into(), ..Default::default() })
            .map_err(|s| *s)?;
        Ok(t.shown(&o.value))
    }

    /// Creates or merges, as `kubectl apply` would; status included where the object has one.
    ///
    /// # Errors
    /// What the server would answer.
    pub fn apply(&self, object: Value) -> Result<Value, Status> {
        let mut state = self.shared.state();
        let mut t = Self::target(&state, &object)?;
        let options = write::Options { manager: "test".into(), force: true, dry_run: false };
        let (mut o, _) = state.patch(&t, PatchKind::Apply, &object, &options).map_err(|s| *s)?;
        if object.get("status").is_some() && t.version().is_ok_and(|v| v.status) {
            t.sub = "status".into();
            o = state
                .patch(&t, PatchKind::Merge, &json!({"status": object["status"]}), &options)
                .map_err(|s| *s)?
                .0;
        }
        Ok(t.shown(&o.value))
    }

    /// Merge patch on an object or its status (`sub`: "" or "status").
    ///
    /// # Errors
    /// What the server would answer.
    pub fn patch(
        &self,
        (api_version, kind): (&str, &str),
        (namespace, name): (&str, &str),
        sub: &str,
        patch: &Value,
    ) -> Result<Value, Status> {
        let mut state = self.shared.state();
        let mut t = Self::target(&state, &reference(api_version, kind, namespace, name))?;
        t.sub = sub.to_owned();
        let options = write::Options { manager: "test".into(), ..Default::default() };
        let (o, _) = state.patch(&t, PatchKind::Merge, patch, &options).map_err(|s| *s)?;
        Ok(t.shown(&o.value))
    }

    pub fn get(&self, (api_version, kind): (&str, &str), (namespace, name): (&str, &str)) -> Option<Value> {
        let state = self.shared.state();
        let t = Self::target(&state, &reference(api_version, kind, namespace, name)).ok()?;
        state.get(&t.id, &t.key()).map(|o| t.shown(&o.value))
    }

    /// All objects of a kind.
    pub fn list(&self, (api_version, kind): (&str, &str)) -> Vec<Value> {
        let state = self.shared.state();
        let Ok(t) = Self::target(&state, &reference(api_version, kind, "", "")) else { return Vec::new() };
        state
            .collections
            .get(&t.id)
            .into_iter()
            .flat_map(|c| c.objects.values())
            .map(|o| t.shown(&o.value))
            .collect()
    }

    /// Deletes at once: a pod gets no grace.
    ///
    /// # Errors
    /// What the server would answer.
    pub fn delete(
        &self,
        (api_version, kind): (&str, &str),
        (namespace, name): (&str, &str),
    ) -> Result<(), Status> {
        let mut state = self.shared.state();
        let t = Self::target(&state, &reference(api_version, kind, namespace, name))?;
        let options = delete::Options { grace: Some(0), ..Default::default() };
        state.delete(&t, &options).map(|_| ()).map_err(|s| *s)
    }

    /// Applies every object in a file or in all YAML and JSON files of a folder (deep), definitions and namespaces first.
    ///
    /// # Errors
    /// File and reason.
    pub fn load(&self, path: &Path) -> Result<usize, String> {
        let mut files = Vec::new();
        find(path, &mut files)?;
        let mut objects = Vec::new();
        for f in &files {
            let text = fs::read_to_string(f).map_err(|e| format!("{}: {e}", f.display()))?;
            let documents: Vec<Value> =
                serde_saphyr::from_multiple(&text).map_err(|e| format!("{}: {e}", f.display()))?;
            for d in documents.into_iter().filter(|d| d.is_object() && !for_kustomize(d)) {
                match d["items"].as_array() {
                    Some(items) if d["kind"].as_str().is_some_and(|k| k.ends_with("List")) => {
                        objects.extend(items.iter().map(|i| (f.clone(), i.clone())));
                    }
                    _ => objects.push((f.clone(), d)),
                }
            }
        }
        objects.sort_by_key(|(_, o)| match o["kind"].as_str() {
            Some("CustomResourceDefinition") => 0,
            Some("Namespace") => 1,
            _ => 2,
        });
        for (f, o) in &objects {
            self.apply(o.clone()).map_err(|s| {
                format!("{}: {} {}: {}", f.display(), o["kind"], o["metadata"]["name"], s.message)
            })?;
        }
        Ok(objects.len())
    }
}

impl Default for ApiServer {
    fn default() -> Self {
        Self::new()
    }
}

/// Files that say how to put others together are no objects.
fn for_kustomize(document: &Value) -> bool {
    document["apiVersion"].as_str().is_some_and(|v| v.starts_with("kustomize.config.k8s.io/"))
}

fn reference(api_version: &str, kind: &str, namespace: &str, name: &str) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"namespace": namespace, "name": name}})
}

fn find(path: &Path, out: &mut Vec<PathBuf>) -> Result<(), String> {
    let wrong = |e: io::Error| format!("{}: {e}", path.display());
    if path.is_dir() {
        let mut inside: Vec<_> = fs::read_dir(path)
            .map_err(wrong)?
            .map(|e| e.map(|e| e.path()))
            .collect::<Result<_, _>>()
            .map_err(wrong)?;
        inside.sort();
        for p in inside {
            let known = p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
            if p.is_dir() || known {
                find(&p, out)?;
            }
        }
    } else {
        out.push(path.to_owned());
    }
    Ok(())
}

async fn accept(
    listener: tokio::net::TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
    done: mpsc::Sender<()>,
) {
    loop {
        let stream = tokio::select! {
            s = listener.accept() => s,
            _ = stopped.changed() => {
                // Before `done`: who waits for that takes the port again.
                drop(listener);
                return;
            }
        };
        // Out of descriptors and the like: the next accept may succeed.
        let Ok((stream, _)) = stream else { continue };
        let _ = stream.set_nodelay(true);
        let (tls, shared, mut stopped, done) =
            (tls.clone(), Arc::clone(&shared), stopped.clone(), done.clone());
        tokio::spawn(async move {
            let _done = done;
            let service = service_fn(move |r| server::handle(Arc::clone(&shared), r));
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new());
            builder.http2().timer(TokioTimer::new()).max_concurrent_streams(250);
            let serve = async {
                // A client that goes away or speaks nonsense ends its own connection only.
                match tls {
                    Some(t) => {
                        if let Ok(s) = t.accept(stream).await {
                            let _ = builder.serve_connection(TokioIo::new(s), service).await;
                        }
                    }
                    None => {
                        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                    }
                }
            };
            tokio::select! {
                () = serve => {}
                _ = stopped.wait_for(|s| *s) => {}
            }
        });
    }
}
