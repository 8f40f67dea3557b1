//! Every command of `brindlectl` that needs a datastore, over the real binary, on each kind of datastore: what a person
//! sees must be the same to the letter, and is written down once. Needs Debian's etcd-server.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use brindle_integration::{bins::bin, kube::ApiServer, process::Running, wait::until};

/// A datastore to try, removed at the end.
struct Backend {
    dir: PathBuf,
    url: String,
    _server: Option<Running>,
    _kube: Option<ApiServer>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self._server.take();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn folder(tag: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("brindle-cli-{tag}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn sqlite(tag: &str) -> Backend {
    let dir = folder(tag);
    let url = format!("sqlite:{}", dir.join("t.db").display());
    // An empty one, as the servers have it.
    drop(brindle_config::open(&url).unwrap());
    Backend { url, dir, _server: None, _kube: None }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn etcd(tag: &str) -> Backend {
    assert!(Path::new("/usr/bin/etcd").exists(), "etcd is missing: apt-get install etcd-server");
    let dir = folder(tag);
    let (client, peer) = (free_port(), free_port());
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let log = fs::File::create(dir.join("etcd.log")).unwrap();
    let mut command = Command::new("/usr/bin/etcd");
    command
        .arg(format!("--data-dir={}", dir.join("data").display()))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    let server = Running::start(&mut command);
    let backend = Backend { url: format!("etcd:{client}"), dir, _server: Some(server), _kube: None };
    until("etcd answers", Duration::from_secs(60), || {
        let out = backend.command(&["get", "nodes"]).output().unwrap();
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    backend
}

/// A cluster with Calico's definitions and the namespaces the resources are in.
fn kubernetes(tag: &str) -> Backend {
    let dir = folder(tag);
    let server = ApiServer::new();
    let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    for entry in fs::read_dir(&crds).unwrap() {
        let file = entry.unwrap().path();
        if !file.ends_with("kustomization.yaml") {
            server.load(&file).unwrap();
        }
    }
    let namespaces = dir.join("namespaces.yaml");
    let namespace = |n: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {n}}}\n---\n");
    fs::write(&namespaces, namespace("shop") + &namespace("default")).unwrap();
    server.load(&namespaces).unwrap();
    let config = dir.join("kubeconfig");
    server.write_kubeconfig(&config, server.admin_token());
    Backend { url: format!("kubernetes:{}", config.display()), dir, _server: None, _kube: Some(server) }
}

impl Backend {
    fn command(&self, args: &[&str]) -> Command {
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
    fn run(&self, line: &str) -> String {
        let (words, input) = line.split_once(" < ").map_or((line, None), |(l, i)| (l, Some(i)));
        let words = split(words);
        let args: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut child = self
            .command(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(input.unwrap_or_default().as_bytes());
        let out = child.wait_with_output().unwrap();
        let text = format!(
            "$ brindlectl {line}\n{}{}[{}]\n",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
            out.status.code().unwrap_or(-1)
        );
        self.plain(&text)
    }

    /// Without what differs from store to store and from run to run.
    fn plain(&self, text: &str) -> String {
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

/// Words as a shell would have them.
fn split(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words
}

const RESOURCES: &str = r#"
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: blue, labels: {zone: a}, annotations: {kubernetes.io/note: kept}}
spec: {cidr: 10.1.0.0/16, ipipMode: Always, natOutgoing: true, blockSize: 26}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: green}
spec: {cidr: 10.2.0.0/16}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor}
spec: {peerIP: 192.0.2.1, asNumber: 64601, nodeSelector: all()}
---
apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: few}
spec:
  exportV4: [{action: Accept, matchOperator: In, cidr: 10.1.0.0/16}]
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: security}
spec: {order: 100}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: quarantine}
spec: {tier: security, selector: app == "spy", egress: [{action: Deny}]}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {selector: app == "web", ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: bad, labels: {kind: bad}}
spec: {nets: [198.51.100.0/24]}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: node1-eth0, labels: {host: "yes"}}
spec: {node: node1, interfaceName: eth0, expectedIPs: [192.0.2.7]}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {logSeverityScreen: Info}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {asNumber: 64512, nodeToNodeMeshEnabled: true, logSeverityScreen: Info}
---
apiVersion: projectcalico.org/v3
kind: IPReservation
metadata: {name: first}
spec: {reservedCIDRs: [10.1.0.0/30]}
"#;

/// Everything that reads or writes resources.
const LINES: &[&str] = &[
    "get ippools",
    "apply --dry-run -f all.yaml",
    "create -f all.yaml",
    "create -f all.yaml",
    "create --skip-exists -f all.yaml",
    "apply -f all.yaml",
    "get ippools",
    "get ippools -o wide",
    "get bgppeers,bgpfilter,tiers",
    "get gnp,np -A -o wide",
    "get np -n shop",
    "get gns,hep -o wide",
    "get felixconfig,bgpconfig,reservation",
    "get ipp,tier -o name",
    "get ippool blue -o yaml",
    "get ippool blue -o json --export",
    r#"get ippools -l 'zone == "a"' -o name"#,
    "get ippools -o custom-columns=NAME,CIDR",
    r"get ippools -o custom-columns=N:.metadata.name,NOTE:.metadata.annotations.kubernetes\.io/note",
    r#"get ippools -o 'jsonpath={range .items[*]}{.metadata.name}={.spec.cidr}{"\n"}{end}'"#,
    r#"get ippools -o 'jsonpath={.items[?(@.spec.ipipMode=="Always")].metadata.name}'"#,
    "get -f all.yaml -o name",
    "get ippol",
    "get ippool bleu",
    "get np web",
    "diff -f all.yaml",
    "diff -f changed.yaml",
    "apply -f changed.yaml",
    "replace -f all.yaml",
    r#"patch ippool blue -p '{"spec": {"disabled": true}}'"#,
    r#"patch ippool blue -t json -p '[{"op": "remove", "path": "/spec/disabled"}]'"#,
    r#"patch ippool blue -p '{"spec": {"cidr": "10.9.0.0/16"}}'"#,
    "label ippool blue zone=b",
    "label ippool blue zone=b --overwrite",
    "label ippool blue zone --remove",
    "edit ippool blue",
    "get ippool blue -o custom-columns=NAME,IPIPMODE",
    "validate -f all.yaml",
    "apply -f folder",
    "get ippool red -o name",
    "apply --continue -f folder",
    "get ippool red -o name",
    "apply -f - < apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: x}\nspec: {cidr: 10.3.0.0/16, ipipmode: Always}\n",
    "ipam show",
    "ipam show --show-configuration",
    "ipam configure --strictaffinity=true",
    "ipam show --ip 10.1.0.9",
    "ipam check",
    "policy trace 192.0.2.9 node1-eth0:22",
    "datastore migrate export",
    "datastore migrate lock",
    "get clusterinfo default -o custom-columns=NAME,DATASTOREREADY",
    "datastore migrate unlock",
    "delete ippool red x green --dry-run",
    "delete ippool nothing",
    "delete -f all.yaml --skip-not-exists",
    "get ipp,np,gnp,tier,bgppeer -A -o name",
    "version",
    "version --all",
    "status",
    "route a b",
];

fn transcript(backend: &Backend) -> String {
    fs::write(backend.dir.join("all.yaml"), RESOURCES).unwrap();
    let changed =
        RESOURCES.replace("natOutgoing: true", "natOutgoing: false").replace("order: 100", "order: 50");
    fs::write(backend.dir.join("changed.yaml"), changed).unwrap();
    let folder = backend.dir.join("folder");
    fs::create_dir(&folder).unwrap();
    let pool = |name: &str, cidr: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: {cidr}}}\n"
        )
    };
    fs::write(folder.join("a.yaml"), pool("red", "10.4.0.0/16")).unwrap();
    fs::write(folder.join("b.yaml"), pool("x", "10.5.0.0/99")).unwrap();
    LINES.iter().map(|line| backend.run(line) + "\n").collect()
}

#[test]
fn every_command_says_the_same_on_sqlite() {
    insta::assert_snapshot!("commands", transcript(&sqlite("sqlite")));
}

#[test]
fn every_command_says_the_same_on_etcd() {
    insta::assert_snapshot!("commands", transcript(&etcd("etcd")));
}

#[test]
fn every_command_says_the_same_on_kubernetes() {
    insta::assert_snapshot!("commands", transcript(&kubernetes("kube")));
}

#[test]
fn everything_moves_from_one_datastore_to_another_and_back() {
    let (from, to, back) = (sqlite("from"), etcd("to"), sqlite("back"));
    fs::write(from.dir.join("all.yaml"), RESOURCES).unwrap();
    from.run("apply -f all.yaml");
    let all = "get ipp,bgppeer,bgpfilter,tier,gnp,np,gns,hep,felixconfig,bgpconfig,reservation,clusterinfo -A -o json --export";
    let carry = |a: &Backend, b: &Backend| {
        assert!(a.run("datastore migrate lock").contains("Datastore locked."));
        let out = a.command(&["datastore", "migrate", "export"]).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        fs::write(b.dir.join("export.yaml"), &out.stdout).unwrap();
        let said = b.run("datastore migrate import -f export.yaml");
        assert!(said.contains("successfully imported") && said.contains("[0]"), "{said}");
        let again = b.run("datastore migrate import -f export.yaml");
        assert!(again.contains("not empty") && again.contains("[2]"), "{again}");
        assert_eq!(a.run(all), b.run(all));
    };
    carry(&from, &to);
    carry(&to, &back);
    assert!(back.run("datastore migrate unlock").contains("Datastore unlocked."));
    let wrong = back.run("datastore migrate import -f all.yaml");
    assert!(wrong.contains("[2]"), "{wrong}");
    fs::write(back.dir.join("torn.yaml"), "===\n").unwrap();
    let torn = back.run("datastore migrate import -f torn.yaml");
    assert!(torn.contains("expected three sections"), "{torn}");
}
