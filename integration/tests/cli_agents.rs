//! Every command of `brindlectl` that asks agents, over the real binaries: two nodes with pods, their datastore and the
//! operator on a third machine. What a person sees is the same to the letter on each kind of datastore and written down
//! once; a node that is dead is a row with a name. Needs root and Debian's etcd-server.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use brindle_integration::{
    bins::bin,
    cni::{Container, call_plugin},
    peer::Segment,
    process::Running,
    transcript::{Backend, Kind},
    wait::until,
};
use brindle_kernel::netns::NetNs;
use regex_lite::Regex;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(90);
/// The machine with the datastore, where brindlectl runs.
const OPERATOR: u8 = 1;
const NODES: [u8; 2] = [2, 3];

const POOL: &str =
    "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: pool}\nspec: {cidr: 10.92.0.0/16}\n";

/// What is typed once all is well.
const WELL: &[&str] = &[
    "status",
    "status --node n2",
    "version --all",
    "bgp --all summary",
    "bgp --node n2 neighbor n3",
    "bgp --node n2 rib",
    "bgp --node n2 received n3",
    "bgp --node n2 advertised n3",
    "bgp --node n2 explain CLIENT-BLOCK",
    "bgp --node n2 services",
    "bgp --node n2 clear n3 soft in",
    "bgp --node n9 summary",
    "bgp --node n2 neighbor n33",
    "bgp --node n2 explain CLIENT-BLOCK to n33",
    "bgp --node n2 advertised router",
    "route default/web default/client",
    "route default/web 192.0.2.99",
    "route default/web default/klient",
    "policy trace default/client default/web:80",
    "policy trace client web:80 -o json",
    "get nodes -o wide",
    "get weps -A",
    "ipam show --show-blocks",
    "ipam show --ip WEB",
    "ipam why WEB",
    "ipam check",
    "status -o json",
    "status --node n2 -o json",
    "bgp --node n2 summary -o json",
    "bgp --all summary -o json",
    "bgp --node n2 neighbor n3 -o json",
    "bgp --node n2 rib -o json",
    "bgp --node n2 explain CLIENT-BLOCK -o json",
    "ipam show --show-blocks -o json",
    "ipam show --ip WEB -o json",
    "ipam why WEB -o json",
    "route default/web default/client -o json",
    "policy trace default/client default/web:80 -o json",
];

/// On a node, with the socket of its agent.
const ON_THE_NODE: &[&str] = &[
    "node status --admin-socket NODE/admin.sock",
    "status --admin-socket NODE/admin.sock",
    "node status --admin-socket NODE/admin.sock -o json",
];

/// After the agent of n3 was killed.
const ILL: &[&str] = &[
    "status",
    "status -o json",
    "route default/web default/client -o json",
    "version --all",
    "bgp --all summary",
    "bgp --node n3 summary",
    "route default/web default/client",
];

/// While n3 runs an agent of another version.
const SKEW: &[&str] = &["version --all", "version --all -o json", "status", "status --node n3"];

struct Cluster {
    agents: Vec<Running>,
    pods: Vec<Container>,
    backend: Backend,
    segment: Segment,
    token: PathBuf,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.agents.clear();
    }
}

impl Cluster {
    fn new(kind: Kind) -> Self {
        let segment = Segment::new(3);
        let backend = Backend::on(kind, &segment, OPERATOR);
        let token = segment.dir(OPERATOR).join("admin-token");
        fs::write(&token, "of the tests, and as long as tokens must be\n").unwrap();
        let mut cluster = Self { agents: Vec::new(), pods: Vec::new(), backend, segment, token };
        if let Some(server) = &cluster.backend.kube {
            for host in NODES {
                let address = Segment::v4(host).to_string();
                let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{host}")},
                    "status": {"addresses": [{"type": "InternalIP", "address": address}]}});
                server.apply(node).unwrap();
            }
        }
        let said = cluster.run(&format!("apply -f - < {POOL}"));
        assert!(said.ends_with("[0]\n"), "{said}");
        for host in NODES {
            cluster.start(host);
        }
        for (host, name) in [(2, "web"), (3, "client")] {
            cluster.attach(host, name);
        }
        cluster
    }

    fn ns(&self, host: u8) -> NetNs {
        NetNs::named(&self.segment.netns(host)).unwrap()
    }

    fn start(&mut self, host: u8) {
        self.start_of(host, &bin("brindle-node"));
    }

    fn start_of(&mut self, host: u8, program: &Path) {
        let dir = self.segment.dir(host);
        let log = fs::File::create(dir.join("agent.log")).unwrap();
        let mut command = Command::new(program);
        command
            .args(["run", "--node-name", &format!("n{host}"), "--ip", &format!("{}/24", Segment::v4(host))])
            .args(["--state-dir".as_ref(), dir.as_os_str()])
            .args(["--datastore", &self.backend.agent_url, "--admin-listen", "0.0.0.0:9180"])
            .args(["--admin-token-file".as_ref(), self.token.as_os_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.agents.push(Running::start_in(&self.ns(host), &mut command));
        until("the agent serves ADD", LONG, || {
            let said = call_plugin(&self.ns(host), &dir, "STATUS", "-", "", "-");
            let log = || fs::read_to_string(dir.join("agent.log")).unwrap_or_default();
            if said.ok { Ok(()) } else { Err(format!("{said:?}\n{}", log())) }
        });
    }

    /// A pod, with what its kubelet has told the API server before.
    fn attach(&mut self, host: u8, name: &str) {
        if let Some(server) = &self.backend.kube {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
                "spec": {"nodeName": format!("n{host}"), "containers": [{"name": "c", "image": "example.org/c:1"}]}});
            server.apply(pod).unwrap();
        }
        // An id that is the same in each run.
        let pod = Container { id: name.to_owned(), ..Container::new() };
        let said = call_plugin(&self.ns(host), &self.segment.dir(host), "ADD", &pod.id, &pod.netns(), name);
        assert!(said.ok, "{name}: {said:?}");
        self.pods.push(pod);
    }

    /// Waits until n2 is ready again: a neighbor that is away counts while an agent starts.
    fn ready_alone(&self) {
        until("n2 is ready without n3", LONG, || {
            let said = self.run("status --node n2 -o json");
            let ready = |v: Value| v["ready"] == true;
            match said.lines().any(|l| serde_json::from_str(l).is_ok_and(ready)) {
                true => Ok(()),
                false => Err(said),
            }
        });
    }

    fn address(&self, pod: &str) -> String {
        let line = format!(
            "get wep -n default -o 'jsonpath={{.items[?(@.spec.pod==\"{pod}\")].spec.ipNetworks[0]}}'"
        );
        let said = self.run(&line);
        let net = said.lines().nth(1).unwrap_or_default();
        net.strip_suffix("/32").unwrap_or_else(|| panic!("{said}")).to_owned()
    }

    fn run(&self, line: &str) -> String {
        self.run_at(OPERATOR, line)
    }

    fn run_at(&self, host: u8, line: &str) -> String {
        let token = format!(" --admin-token-file {}", self.token.display());
        let asks = ["status", "version", "bgp", "route"].iter().any(|c| line.starts_with(c));
        let typed = if asks && host == OPERATOR { format!("{line}{token}") } else { line.to_owned() };
        self.backend.run_in(Some(&self.ns(host)), &typed).replace(" --admin-token-file DIR/admin-token", "")
    }
}

/// Without times, process ids and sizes; columns as narrow as that makes them. What programs read is laid out.
fn settled(text: &str) -> String {
    let (mut out, mut plain) = (String::new(), String::new());
    for line in text.lines() {
        match serde_json::from_str::<Value>(line) {
            Ok(mut value) if value.is_object() => {
                still(&mut value);
                out += &settled_text(&std::mem::take(&mut plain));
                out += &serde_json::to_string_pretty(&value).unwrap();
                out.push('\n');
            }
            _ => plain += &format!("{line}\n"),
        }
    }
    out + &settled_text(&plain)
}

/// Numbers that are others in each run; that they are there is kept.
const MOVING: [&str; 13] = [
    "flows_cut",
    "nft_writes",
    "pid",
    "revision",
    "rssKib",
    "rss_kib",
    "set_writes",
    "sinceMs",
    "since_ms",
    "table_writes",
    "tiers",
    "uptime_ms",
    "writes",
];

/// The same for an answer to a program. Those of Kubernetes have tiers from the start.
fn still(value: &mut Value) {
    match value {
        Value::Object(members) => {
            // Of a session that is up, attempts before it: it may have been dialed before the other side listened.
            if members.get("state").is_some_and(|s| s == "Established") {
                for before in ["last_error", "lastError", "lastReset"] {
                    members.entry(before).and_modify(|m| *m = Value::Null);
                }
            }
            for (name, member) in members {
                let moving = MOVING.contains(&name.as_str());
                match member {
                    Value::Number(_) if moving => *member = "N".into(),
                    // Who was first, and how long it had been there.
                    Value::Bool(_) if ["restarting", "forwardingKept"].contains(&name.as_str()) => {
                        *member = "EITHER".into();
                    }
                    Value::Object(counts) if name.starts_with("messages") => {
                        counts
                            .values_mut()
                            .for_each(|n| *n = if n.is_number() { "N".into() } else { n.take() });
                    }
                    member => still(member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(still),
        Value::String(text) => *text = settled_text(text),
        _ => {}
    }
}

fn settled_text(text: &str) -> String {
    let rules = [
        (r"on (\w+): journalctl -u brindle-node -n 20", "LOG OF $1"),
        (r"kubectl -n kube-system logs [^)]*spec\.nodeName=(\w+)\)", "LOG OF $1"),
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( \+0000 UTC|Z)?", "TIME"),
        (r"\b\d{19} of \d{19}\b", "N of N"),
        (r"\b\d+(\.\d+)?(ms|us|s)\b", "T"),
        (r"\b\d+m(\d+s)?\b", "T"),
        (r"\b\d+(\.\d+)?[KM]\b", "SIZE"),
        (r"pid \d+", "pid N"),
        (r"\b\d+ KiB", "SIZE KiB"),
        (r"\b\d\d:\d\d:\d\d\b", "TIME"),
        (r"\b\d+ writes", "N writes"),
        (r"(received|sent)( +\d+){5}", "$1 COUNTS"),
        (r"\n +restarted +it had, before this session", ""),
        (r"it kept forwarding", "yes"),
        // The same, of a session that is up.
        (r"(Established +T( +\d+){3}) .*", "$1"),
        (r"\n +last (error|reset) .*", ""),
        // A session that is tried again, with whatever came of the last time.
        (r"(?:Idle|Connect|Active|OpenSent) +T .*", "DOWN"),
        // Those that every cluster of Kubernetes has.
        (r"\d+ tiers", "N tiers"),
        (r"port \d{4,5}\b", "port N"),
        (r":\d{5}\b", ":PORT"),
        (r"iptables-legacy|iptables-nft|nftables", "TABLES"),
        (r" {2,}", "  "),
        (r"-{3,}", "---"),
    ];
    rules.iter().fold(text.to_owned(), |text, (pattern, with)| {
        Regex::new(pattern).unwrap().replace_all(&text, *with).into_owned()
    })
}

fn transcript(kind: Kind) -> String {
    let mut cluster = Cluster::new(kind);
    until("all is well", LONG, || {
        let said = cluster.run("status");
        let route = cluster.run("route default/web default/client");
        if said.ends_with("[0]\n") && route.ends_with("[0]\n") { Ok(()) } else { Err(said + &route) }
    });
    let (web, client) = (cluster.address("web"), cluster.address("client"));
    let block = {
        let octets: std::net::Ipv4Addr = client.parse().unwrap();
        let start = u32::from(octets) & !63;
        format!("{}/26", std::net::Ipv4Addr::from(start))
    };
    let node = cluster.segment.dir(2);
    let typed = |line: &str| {
        line.replace("CLIENT-BLOCK", &block)
            .replace("WEB", &web)
            .replace("NODE/", &format!("{}/", node.display()))
    };
    // Where an agent's log is differs.
    let log =
        if kind == Kind::Kubernetes { "kubectl -n kube-system logs" } else { "journalctl -u brindle-node" };
    let mut text = String::new();
    for line in WELL {
        text += &cluster.run(&typed(line));
        text.push('\n');
    }
    for line in ON_THE_NODE {
        text += &cluster.run_at(2, &typed(line)).replace(&node.display().to_string(), "NODE");
        text.push('\n');
    }
    if kind == Kind::Kubernetes {
        // None of these definitions is applied: that is said once by each agent, and all is well nevertheless.
        for host in NODES {
            let log = fs::read_to_string(cluster.segment.dir(host).join("agent.log")).unwrap();
            for kind in ["clusternetworkpolicies", "adminnetworkpolicies", "baselineadminnetworkpolicies"] {
                let told = log.lines().filter(|l| l.contains("has no definition of this kind"));
                let told = told.filter(|l| l.contains(&format!("resource=\"{kind}."))).count();
                assert_eq!(told, 1, "{kind}: {log}");
            }
        }
    }
    cluster.agents.pop().unwrap().kill();
    until("the session with n3 is down", LONG, || {
        let said = cluster.run("bgp --node n2 summary");
        if said.contains("0 of 1 sessions") { Ok(()) } else { Err(said) }
    });
    cluster.ready_alone();
    text += "# the agent of n3 is killed\n\n";
    for line in ILL {
        let said = cluster.run(line);
        assert!(*line != "status" || said.contains(log), "{said}");
        text += &said;
        text.push('\n');
    }
    for (pod, host) in cluster.pods.iter().zip(NODES).take(1) {
        let dir: &Path = &cluster.segment.dir(host);
        assert!(call_plugin(&cluster.ns(host), dir, "DEL", &pod.id, &pod.netns(), &pod.id).ok);
    }
    settled(&text)
}

#[test]
fn agents_are_shown_the_same_on_sqlite() {
    insta::assert_snapshot!("agents", transcript(Kind::Sqlite));
}

#[test]
fn agents_are_shown_the_same_on_etcd() {
    insta::assert_snapshot!("agents", transcript(Kind::Etcd));
}

#[test]
fn agents_are_shown_the_same_on_kubernetes() {
    insta::assert_snapshot!("agents", transcript(Kind::Kubernetes));
}

/// An agent of another version: the program with another number wherever its own stands.
fn other_version(dir: &Path, version: &str) -> PathBuf {
    let ours = env!("CARGO_PKG_VERSION").as_bytes();
    let theirs = version.as_bytes();
    assert_eq!(ours.len(), theirs.len(), "the program keeps its layout");
    let mut program = fs::read(bin("brindle-node")).unwrap();
    let mut at = 0;
    while let Some(found) = program[at..].windows(ours.len()).position(|w| w == ours) {
        program[at + found..at + found + ours.len()].copy_from_slice(theirs);
        at += found + ours.len();
    }
    let path = dir.join(format!("brindle-node-{version}"));
    fs::write(&path, program).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// What is seen while one node of two is updated: the node that is behind by name, and what to do.
fn skewed(kind: Kind) -> String {
    let mut cluster = Cluster::new(kind);
    let dir = cluster.segment.dir(NODES[1]);
    cluster.agents.pop().unwrap().kill();
    cluster.start_of(NODES[1], &other_version(&dir, "0.0.9"));
    until("the session is back", LONG, || {
        let said = cluster.run("bgp --node n2 summary");
        let route = cluster.run("route default/web default/client");
        if said.contains("1 of 1 sessions") && route.ends_with("[0]\n") { Ok(()) } else { Err(said + &route) }
    });
    let text: String = SKEW.iter().map(|line| cluster.run(line) + "\n").collect();
    settled(&text)
}

#[test]
fn two_versions_are_told_apart_on_sqlite() {
    insta::assert_snapshot!("skew", skewed(Kind::Sqlite));
}

#[test]
fn two_versions_are_told_apart_on_etcd() {
    insta::assert_snapshot!("skew", skewed(Kind::Etcd));
}

#[test]
fn two_versions_are_told_apart_on_kubernetes() {
    insta::assert_snapshot!("skew", skewed(Kind::Kubernetes));
}

/// What is in the archive of the whole cluster, and what is said of a node that is dead.
fn bundled(kind: Kind) -> String {
    let mut cluster = Cluster::new(kind);
    let secret = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\n\
                  metadata: {name: s, annotations: {example.org/api-token: swordfish}}\nspec: {nets: []}\n";
    let said = cluster.run(&format!("apply -f - < {secret}"));
    assert!(said.ends_with("[0]\n"), "{said}");
    until("all is well", LONG, || {
        let said = cluster.run("status");
        if said.ends_with("[0]\n") { Ok(()) } else { Err(said) }
    });
    cluster.agents.pop().unwrap().kill();
    cluster.ready_alone();
    let token = cluster.token.display().to_string();
    let line =
        format!("cluster diags --focus-nodes n2 --max-logs 0 --output-dir . --admin-token-file {token}");
    let mut text = cluster.run(&line).replace(&token, "TOKEN").replace("DIR/admin-token", "TOKEN");
    let dir = &cluster.backend.dir;
    let archives: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.to_string_lossy().contains("brindle-diagnostics-"))
        .collect();
    let [archive] = archives.as_slice() else { panic!("one archive, and no folder: {archives:?}\n{text}") };
    let tar = |args: &[&str]| {
        let out = Command::new("tar").args(args).arg("-f").arg(archive).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let mut names: Vec<String> = tar(&["-tz"]).lines().map(str::to_owned).collect();
    names.sort();
    let whole = tar(&["-xzO"]);
    assert!(whole.contains("(blanked)") && !whole.contains("swordfish"), "a secret is in it");
    text += &names.join("\n");
    Regex::new(r"diagnostics-\d+").unwrap().replace_all(&settled(&text), "diagnostics-STAMP").into_owned()
}

#[test]
fn the_cluster_is_bundled_on_sqlite() {
    insta::assert_snapshot!(bundled(Kind::Sqlite));
}

#[test]
fn the_cluster_is_bundled_on_etcd() {
    insta::assert_snapshot!(bundled(Kind::Etcd));
}

#[test]
fn the_cluster_is_bundled_on_kubernetes() {
    insta::assert_snapshot!(bundled(Kind::Kubernetes));
}

/// An agent that is asked by a CalicoNodeStatus answers in its status, again and again.
fn answers_in_the_status(kind: Kind) {
    let cluster = Cluster::new(kind);
    let asks = "apiVersion: projectcalico.org/v3\nkind: CalicoNodeStatus\nmetadata: {name: asks}\n\
                spec: {node: n2, classes: [Agent, BGP, Routes], updatePeriodSeconds: 1}\n";
    let said = cluster.run(&format!("apply -f - < {asks}"));
    assert!(said.ends_with("[0]\n"), "{said}");
    let shown = |path: &str| {
        let said = cluster.run(&format!("get nodestatus asks -o 'jsonpath={path}'"));
        said.lines().nth(1).unwrap_or_default().to_owned()
    };
    let expect = |what: &str, path: &str, value: &str| {
        until(what, LONG, || match shown(path) {
            is if is == value => Ok(()),
            is => Err(format!("{is}\n{}", cluster.run("get nodestatus asks -o yaml"))),
        });
    };
    expect(
        "the session with n3",
        "{.status.bgp.numberEstablishedV4} {.status.bgp.peersV4[*].type}",
        "1 NodeMesh",
    );
    expect(
        "the speaker",
        "{.status.agent.birdV4.state} {.status.agent.birdV4.routerID}",
        &format!("Ready {}", Segment::v4(2)),
    );
    let learned = r#"{.status.routes.routesV4[?(@.learnedFrom.sourceType=="NodeMesh")].learnedFrom.peerIP}"#;
    expect("the block of n3", learned, &Segment::v4(3).to_string());
    let pod = r#"{.status.routes.routesV4[?(@.learnedFrom.sourceType=="Kernel")].destination}"#;
    expect("the pod's route", pod, &format!("{}/32", cluster.address("web")));
    let first = shown("{.status.lastUpdated}");
    until("it is written again", LONG, || match shown("{.status.lastUpdated}") {
        then if then != first => Ok(()),
        then => Err(then),
    });
}

#[test]
fn an_agent_answers_in_the_status_on_sqlite() {
    answers_in_the_status(Kind::Sqlite);
}

#[test]
fn an_agent_answers_in_the_status_on_kubernetes() {
    answers_in_the_status(Kind::Kubernetes);
}
