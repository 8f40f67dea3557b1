//! What `brindlectl` says about a datastore of each kind, in a form that must be the same to the letter on all of them: the
//! datastores, on this machine or on a host of a segment, and transcripts of lines typed.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use brindle_kernel::netns::NetNs;

use crate::{
    bins::bin,
    kube::{ApiServer, Options},
    peer::Segment,
    process::Running,
    wait::until,
};

/// The kinds of datastores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    /// Debian's etcd-server.
    Etcd,
    /// The tests' API server.
    Kubernetes,
}

/// A datastore to try, removed at the end.
pub struct Backend {
    pub dir: PathBuf,
    /// As its administrator names it.
    pub url: String,
    /// As an agent does.
    pub agent_url: String,
    pub kube: Option<ApiServer>,
    server: Option<Running>,
    place: Option<NetNs>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.server.take();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// A port nobody has, and that was not given before.
fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let free = || {
        let any = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        any.expect("there is a free port").port()
    };
    let new = |port: &u16| GIVEN.lock().expect("nobody panics with it").insert(*port);
    std::iter::repeat_with(free).find(new).expect("it goes on until there is one")
}

/// Starts Debian's etcd-server with its files in `dir`; its URL. `place`: a namespace and an address there.
pub fn etcd(dir: &Path, place: Option<(&NetNs, &str)>) -> (String, Running) {
    let program = Path::new("/usr/bin/etcd");
    assert!(program.exists(), "etcd is missing: apt-get install etcd-server");
    let (client, peer) = match place {
        Some((_, host)) => (format!("http://{host}:2379"), format!("http://{host}:2380")),
        None => (format!("http://127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{}", free_port())),
    };
    let log = fs::File::create(dir.join("etcd.log")).expect("a log file");
    let mut command = Command::new(program);
    command
        .arg(format!("--data-dir={}", dir.join("etcd").display()))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log);
    let server = match place {
        Some((ns, _)) => Running::start_in(ns, &mut command),
        None => Running::start(&mut command),
    };
    (format!("etcd:{client}"), server)
}

impl Backend {
    /// On this machine.
    pub fn new(kind: Kind, tag: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("brindle-cli-{tag}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder for this datastore");
        Self::make(kind, dir, None)
    }

    /// On a host of a segment, where its brindlectl runs, too.
    pub fn on(kind: Kind, segment: &Segment, host: u8) -> Self {
        let ns = NetNs::named(&segment.netns(host)).expect("the namespace is there");
        Self::make(kind, segment.dir(host), Some((ns, Segment::v4(host))))
    }

    fn make(kind: Kind, dir: PathBuf, place: Option<(NetNs, std::net::IpAddr)>) -> Self {
        let mut backend = Self {
            url: format!("sqlite:{}", dir.join("t.db").display()),
            agent_url: String::new(),
            kube: None,
            server: None,
            dir,
            place: None,
        };
        match kind {
            // An empty one, as the servers have it.
            Kind::Sqlite => drop(brindle_config::open(&backend.url).expect("an empty datastore")),
            Kind::Etcd => {
                let host = place.as_ref().map(|(ns, ip)| (ns, ip.to_string()));
                let host = host.as_ref().map(|(ns, ip)| (*ns, ip.as_str()));
                let (url, server) = etcd(&backend.dir, host);
                backend.url = url;
                backend.server = Some(server);
            }
            Kind::Kubernetes => {
                let server = match &place {
                    Some((ns, ip)) => api_server(ns, *ip),
                    None => ApiServer::new(),
                };
                backend.fill(&server);
                backend.kube = Some(server);
            }
        }
        if backend.agent_url.is_empty() {
            backend.agent_url.clone_from(&backend.url);
        }
        backend.place = place.map(|(ns, _)| ns);
        until("the datastore answers", Duration::from_secs(60), || {
            let said = backend.run("get nodes -o name");
            if said.ends_with("[0]\n") { Ok(()) } else { Err(said) }
        });
        backend
    }

    /// Calico's definitions, the namespaces that resources are in, the agents' account.
    fn fill(&mut self, server: &ApiServer) {
        let definitions = fs::read_dir(deploy("crds")).expect("deploy/crds");
        let definitions = definitions.map(|f| f.expect("a file").path());
        // The folder's list for kustomize is no object.
        let definitions = definitions.filter(|p| !p.ends_with("kustomization.yaml"));
        for path in definitions.chain(["base/node/account.yaml", "base/node-roles/roles.yaml"].map(deploy)) {
            server.load(&path).unwrap_or_else(|e| panic!("{e}"));
        }
        let namespaces = self.dir.join("namespaces.yaml");
        let namespace = |n: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {n}}}\n---\n");
        fs::write(&namespaces, namespace("shop") + &namespace("default")).expect("it can be written");
        server.load(&namespaces).unwrap_or_else(|e| panic!("{e}"));
        let (admin, agent) = (self.dir.join("kubeconfig"), self.dir.join("agent.kubeconfig"));
        server.write_kubeconfig(&admin, server.admin_token());
        server.write_kubeconfig(&agent, &server.service_account_token("kube-system", "brindle-node"));
        self.url = format!("kubernetes:{}", admin.display());
        self.agent_url = format!("kubernetes:{}", agent.display());
    }

    /// brindlectl about this datastore.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(bin("brindlectl"));
        c.args(args)
            .current_dir(&self.dir)
            .env("BRINDLE_DATASTORE", &self.url)
            .env("EDITOR", "sed -i s/Always/Never/")
            .env_remove("VISUAL")
            .env_remove("BRINDLE_ADMIN_SOCKET")
            .env_remove("BRINDLE_ADMIN_TOKEN_FILE");
        c
    }

    /// Runs a line (its words in `'…'` stay together; `< text` is standard input) and tells what came of it.
    pub fn run(&self, line: &str) -> String {
        self.run_in(self.place.as_ref(), line)
    }

    /// The same in another namespace.
    pub fn run_in(&self, place: Option<&NetNs>, line: &str) -> String {
        let (words, input) = line.split_once(" < ").map_or((line, None), |(l, i)| (l, Some(i)));
        let words = split(words);
        let args: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = self.command(&args);
        // Not what an agent of this machine left.
        command.env("BRINDLE_STATE_DIR", self.dir.join("state"));
        let input = input.unwrap_or_default();
        let mut work = || {
            let mut child = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("brindlectl can be started");
            let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
            child.wait_with_output().expect("it ends")
        };
        let out = match place {
            Some(ns) => ns.run(work).expect("the namespace is alive"),
            None => work(),
        };
        let text = format!(
            "$ brindlectl {line}\n{}{}[{}]\n",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
            out.status.code().unwrap_or(-1)
        );
        self.plain(&text)
    }

    /// Without what differs from store to store and from run to run.
    pub fn plain(&self, text: &str) -> String {
        let text = text.replace(&self.url, "STORE").replace(&self.dir.display().to_string(), "DIR");
        let mut out = String::new();
        for line in text.lines() {
            let field = line.trim_start().trim_start_matches('"');
            if ["uid", "creationTimestamp", "generation"].iter().any(|f| field.starts_with(f)) {
                continue;
            }
            let mut line = line.to_owned();
            for key in ["resourceVersion: ", "\"resourceVersion\": ", "since revision "] {
                if let Some(at) = line.find(key) {
                    let (head, tail) = line.split_at(at + key.len());
                    let kept = tail.trim_start_matches(|c: char| c.is_ascii_digit() || c == '"');
                    line = format!("{head}N{}", kept.trim_end_matches(','));
                }
            }
            if let Some(at) = line.find("(it is ").filter(|_| line.contains("update conflict")) {
                line.truncate(at);
                line.push_str("(it is N now); read it again");
            }
            out.push_str(&line);
            out.push('\n');
        }
        out
    }
}

/// An API server in a namespace, with TLS, as nodes reach it.
pub fn api_server(ns: &NetNs, address: std::net::IpAddr) -> ApiServer {
    let ns = NetNs::open(ns.path()).expect("the namespace is there");
    let bind = Arc::new(move |a| ns.run(|| TcpListener::bind(a)).map_err(std::io::Error::other)?);
    ApiServer::start(Options { tls: true, address: (address, 6443).into(), bind, ..Options::default() })
}

/// Words as a shell would have them.
fn split(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().expect("there is one").push(c),
        }
    }
    words
}
