//! The start of an agent on a Kubernetes cluster: without an API server it waits, and what an earlier agent left in the
//! kernel stays; with one it follows each collection by one stream. Needs root.

use std::{
    collections::BTreeMap, fs, os::unix::net::UnixListener, path::PathBuf, process::Command, time::Duration,
};

use brindle_integration::{
    bins::bin,
    cni::{Container, sh},
    kube::ApiServer,
    kube_node::{AGENT, KubeNode},
    netns::TestNs,
    process::Running,
    wait::{until, until_true},
};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(90);
const WAITS: &str = "waiting for the datastore";

fn node(tag: &str) -> KubeNode {
    let node = KubeNode::new(tag, "node-a", "10.0.0.1/16");
    node.register();
    let pool = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "pool"},
        "spec": {"cidr": "10.128.0.0/16", "blockSize": 26, "nodeSelector": "all()"}});
    node.server.create(pool).unwrap_or_else(|s| panic!("{}", s.message));
    node
}

fn log(node: &KubeNode) -> String {
    fs::read_to_string(node.dir.join("agent.log")).unwrap_or_default()
}

/// Routes and rules of the node, without counters.
fn kernel(node: &KubeNode) -> String {
    let run = |args: &[&str]| {
        let out = Command::new("ip").args(["netns", "exec", node.ns.name()]).args(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    // The kernel adds link-local addresses when it has found nobody else who has them.
    let routes = run(&["ip", "-4", "route", "show", "table", "all"]);
    routes + &run(&["nft", "-s", "list", "ruleset"])
}

#[test]
fn an_agent_that_starts_without_its_server_waits_and_touches_nothing() {
    let mut node = node("kaway");
    node.start_agent(&[]);
    node.wait_for_agent(LONG);
    until_true("policy is in force", LONG, || node.status().is_some_and(|s| s["policy"]["in_sync"] == true));
    node.stop_agent();
    let before = kernel(&node);
    assert!(before.contains("cali"), "there are rules to be kept:\n{before}");

    node.server.stop();
    node.start_agent(&[]);
    until("it says what it waits for", LONG, || {
        let text = log(&node);
        if text.contains(WAITS) { Ok(()) } else { Err(text) }
    });
    let text = log(&node);
    assert!(text.contains("127.0.0.1:6443"), "the cause names the server: {text}");
    assert!(fs::metadata(format!("/proc/{}/exe", node.pid())).is_ok(), "it runs");
    assert_eq!(kernel(&node), before, "nothing in the kernel was touched");
    // What kubelet asks of a pod whose API server is away.
    let (live, said) = node.probe("--live");
    assert!(live, "{said}");
    let (ready, said) = node.probe("--ready");
    assert!(!ready && said.contains("[-] datastore: waiting for kubernetes:"), "{said}");
    assert!(said.contains("127.0.0.1:6443"), "{said}");
    // Long enough for some attempts, each of which the client of the API server has an ERROR for.
    until("it has waited for a while", LONG, || {
        let (_, said) = node.probe("--ready");
        let seconds = said.split_once(" s: ").and_then(|(head, _)| head.rsplit_once(" for "));
        match seconds.and_then(|(_, n)| n.parse::<u64>().ok()) {
            Some(n) if n >= 3 => Ok(()),
            _ => Err(said),
        }
    });
    let errors = log(&node).lines().filter(|l| l.contains("ERROR") || l.contains("kube_client")).count();
    assert_eq!(errors, 0, "what is waited for is said once: {}", log(&node));
    let said = node.status().expect("somebody answers").to_string();
    assert!(said.contains("the agent has not started yet; waiting for kubernetes:"), "{said}");

    node.server.resume();
    node.wait_for_agent(LONG);
    let text = log(&node);
    assert_eq!(text.matches(WAITS).count(), 1, "said once: {text}");
    assert!(text.contains("the datastore answers"), "{text}");
    until_true("the whole agent answers", LONG, || node.status().is_some_and(|s| s["node"] == "node-a"));
    until("it is ready", LONG, || match node.probe("--ready") {
        (true, _) => Ok(()),
        (false, said) => Err(said),
    });
}

/// Two agents would undo each other's rules and routes. The sign is a socket at which nobody answers: what Calico's BIRD has.
#[test]
fn an_agent_beside_a_calico_touches_nothing_until_it_has_gone() {
    const LEFT: [&str; 6] = [
        "projectcalico.org/WireguardPublicKey",
        "projectcalico.org/WireguardPublicKeyV6",
        "projectcalico.org/IPv4VXLANTunnelAddr",
        "projectcalico.org/VXLANTunnelMACAddr",
        "projectcalico.org/IPv6VXLANTunnelAddr",
        "projectcalico.org/VXLANTunnelMACAddrV6",
    ];
    let mut node = node("kbeside");
    let values = ["key", "key", "10.128.0.1", "66:0a:0b:0c:0d:0e", "fd00::1", "66:0a:0b:0c:0d:0f"];
    let left: BTreeMap<&str, &str> = LEFT.into_iter().zip(values).collect();
    let object =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a", "annotations": left}});
    node.server.apply(object).unwrap_or_else(|s| panic!("{}", s.message));
    let stored = |node: &KubeNode| node.server.get(("v1", "Node"), ("", "node-a")).expect("it is registered");
    let registered = stored(&node);
    assert_eq!(registered["metadata"]["annotations"].as_object().map(serde_json::Map::len), Some(6));

    let folder = node.dir.join("calico");
    fs::create_dir_all(&folder).unwrap();
    let bind = || UnixListener::bind(folder.join("bird.ctl"));
    let calico = node.ns.ns().run(bind).unwrap().expect("a socket");
    let before = kernel(&node);
    for how in [&["--networking", "none"][..], &[]] {
        node.start_agent(how);
        let lines = || log(&node).matches("a Calico runs on this node").count();
        let wanted = if how.is_empty() { 2 } else { 1 };
        until("it says what it waits for", LONG, || if lines() == wanted { Ok(()) } else { Err(log(&node)) });
        let (live, said) = node.probe("--live");
        assert!(live, "{said}");
        let (ready, said) = node.probe("--ready");
        assert!(!ready && said.contains("[-] calico: waiting for "), "{said}");
        assert!(
            said.contains("calico/bird.ctl") && said.contains("keep calico-node off this node"),
            "{said}"
        );
        let said = node.status().expect("somebody answers").to_string();
        assert!(said.contains("the agent has not started yet"), "{said}");
        if !how.is_empty() {
            node.stop_agent();
        }
    }
    assert_eq!(kernel(&node), before, "nothing in the kernel was touched");
    assert_eq!(stored(&node), registered, "nor was the Node");

    // As a calico-node that was killed leaves it: the file is there, and nobody listens.
    drop(calico);
    assert!(folder.join("bird.ctl").exists());
    node.wait_for_agent(LONG);
    until("it is ready", LONG, || match node.probe("--ready") {
        (true, _) => Ok(()),
        (false, said) => Err(said),
    });
    assert_eq!(log(&node).matches("a Calico runs on this node").count(), 2, "said once each: {}", log(&node));
    let annotations = stored(&node)["metadata"]["annotations"].clone();
    assert_eq!(annotations["projectcalico.org/IPv4Address"], "10.0.0.1/16", "{annotations:#}");
    for name in LEFT {
        assert_eq!(
            annotations[name],
            Value::Null,
            "Calico's nodes would go on sending by {name}: {annotations:#}"
        );
    }

    // One that comes to an agent that runs.
    fs::remove_file(folder.join("bird.ctl")).unwrap();
    let calico = node.ns.ns().run(bind).unwrap().expect("a socket");
    until("it is named", LONG, || match node.probe("--ready") {
        (false, said) if said.contains("[-] calico: a Calico runs on this node too") => Ok(()),
        (_, said) => Err(said),
    });
    let reasons = node.status().map(|s| s["reasons"].to_string()).unwrap_or_default();
    assert!(reasons.contains("calico: a Calico runs on this node too"), "{reasons}");
    drop(calico);
    until("it is ready again", LONG, || match node.probe("--ready") {
        (true, _) => Ok(()),
        (false, said) => Err(said),
    });
}

/// A BIRD that peers with the node, on the node's segment.
struct Router {
    ns: TestNs,
    dir: PathBuf,
    _bird: Running,
}

impl Router {
    fn new(node: &KubeNode) -> Self {
        let ns = TestNs::new("krouter");
        sh(
            node.ns.ns(),
            &format!(
                "ip link add up0 type veth peer name eth0 netns {}; ip link set up0 master eth0 up",
                ns.name()
            ),
        );
        sh(ns.ns(), "ip link set eth0 up; ip addr add 10.0.0.2/16 dev eth0");
        let dir = node.dir.join("router");
        fs::create_dir_all(&dir).unwrap();
        let conf = "log stderr all;\nrouter id 10.0.0.2;\nprotocol device { }\nprotocol direct { ipv4; }\nprotocol bgp agent {\n\
                    local 10.0.0.2 as 64512; neighbor 10.0.0.1 as 64512; graceful restart on;\n\
                    ipv4 { import all; export all; };\n}\n";
        fs::write(dir.join("bird.conf"), conf).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut command = Command::new("bird");
        command.arg("-f");
        for (flag, file) in [("-c", "bird.conf"), ("-s", "ctl"), ("-P", "pid")] {
            command.arg(flag).arg(dir.join(file));
        }
        command.stderr(log);
        let bird = Running::start_in(ns.ns(), &mut command);
        Self { ns, dir, _bird: bird }
    }

    fn birdc(&self, words: &str) -> String {
        let mut command = Command::new("birdc");
        command.arg("-s").arg(self.dir.join("ctl")).args(words.split(' '));
        let out = self.ns.ns().run(|| command.output()).unwrap().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Waits for a session; when it began, in milliseconds of the day.
    fn established(&self, node: &KubeNode) -> u64 {
        until("BIRD has a session", LONG, || {
            let text = self.birdc("show protocols agent");
            let line = text.lines().find(|l| l.starts_with("agent") && l.contains("Established"));
            line.and_then(began).ok_or_else(|| format!("{text}\n{}", node.log()))
        })
    }

    /// Waits for a route of the node's pods that is not kept for a restart only.
    fn fresh(&self, node: &KubeNode) {
        until("BIRD has the node's block", LONG, || {
            let text = self.birdc("show route where net ~ 10.128.0.0/16 all");
            let there = text.contains("10.128.") && text.contains("via 10.0.0.1");
            // BIRD marks a stale route with a letter behind its preference.
            if there && !text.contains("100s)") { Ok(()) } else { Err(format!("{text}\n{}", node.log())) }
        });
    }
}

/// `agent BGP --- up 16:44:48.371 Established`.
fn began(line: &str) -> Option<u64> {
    let time = line.split_whitespace().nth(4)?;
    let mut all = 0;
    for (part, unit) in time.split([':', '.']).zip([3_600_000, 60_000, 1_000, 1]) {
        all += part.parse::<u64>().ok()? * unit;
    }
    Some(all)
}

/// Whether two sessions are the same one. BIRD counts from when it started and converts at each question, which makes a
/// millisecond more or less.
fn same(one: u64, other: u64) -> bool {
    one.abs_diff(other) < 50
}

#[test]
fn an_agent_that_starts_without_its_server_speaks_bgp_as_the_one_before_and_goes_on_without_a_reset() {
    let mut node = node("kmute");
    let peer = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "BGPPeer", "metadata": {"name": "tor"},
        "spec": {"peerIP": "10.0.0.2", "asNumber": 64512}});
    node.server.create(peer).unwrap_or_else(|s| panic!("{}", s.message));
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "default"},
        "spec": {"nodeName": "node-a", "containers": [{"name": "c", "image": "example.org/c:1"}]}});
    node.server.apply(pod).unwrap_or_else(|s| panic!("{}", s.message));
    let router = Router::new(&node);
    node.start_agent(&[]);
    node.wait_for_agent(LONG);
    let container = Container::new();
    let said = node.plugin("ADD", &container.id, &container.netns(), "a");
    assert!(said.ok, "{said:?}\n{}", node.log());
    router.established(&node);
    router.fresh(&node);
    until("it is kept what to say", LONG, || {
        let text = fs::read_to_string(node.dir.join("bgp.json")).map_err(|e| e.to_string())?;
        if text.contains("10.0.0.2") && text.contains("10.128.") { Ok(()) } else { Err(text) }
    });
    let before = router.established(&node);
    node.server.stop();
    until("the agent has noticed that its server is away", LONG, || match node.probe("--ready") {
        (_, said) if said.contains("127.0.0.1:6443") => Ok(()),
        (_, said) => {
            let text = log(&node);
            if text.contains("127.0.0.1:6443") { Ok(()) } else { Err(format!("{said}\n{text}")) }
        }
    });
    router.fresh(&node);
    assert!(same(router.established(&node), before), "an agent that runs goes on");
    node.stop_agent();
    until("the session is down", LONG, || {
        let text = router.birdc("show protocols agent");
        if text.contains("Established") { Err(text) } else { Ok(()) }
    });

    node.start_agent(&[]);
    let during = router.established(&node);
    router.fresh(&node);
    let (ready, said) = node.probe("--ready");
    assert!(!ready && said.contains("[-] datastore: waiting for kubernetes:"), "{said}");
    assert!(log(&node).contains("BGP as the datastore had it last"), "{}", log(&node));

    node.server.resume();
    until("it is ready", LONG, || match node.probe("--ready") {
        (true, _) => Ok(()),
        (false, said) => Err(format!("{said}\n{}", node.log())),
    });
    router.fresh(&node);
    assert!(same(router.established(&node), during), "the session is the same one");

    // An agent that waits can leave on purpose, too.
    node.stop_agent();
    node.server.stop();
    node.start_agent(&[]);
    router.established(&node);
    router.fresh(&node);
    let mut command = Command::new(bin("brindle-node"));
    let out = command.args(["drain", "--wait", "1", "--state-dir"]).arg(&node.dir).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    until("BIRD has no route of the node", LONG, || {
        let text = router.birdc("show route where net ~ 10.128.0.0/16 all");
        if text.contains("10.128.") { Err(text) } else { Ok(()) }
    });
    sh(node.ns.ns(), &format!("kill -TERM {}", node.pid()));
    assert_eq!(node.end_of_agent(LONG), Some(0), "{}", node.log());
    assert!(log(&node).contains("agent ends before it has started"), "{}", node.log());
}

#[test]
fn an_agent_that_is_not_let_in_waits_where_one_ran_before_and_ends_elsewhere() {
    let mut node = node("kdoor");
    let kubeconfig = node.dir.join("agent.kubeconfig");
    let good = fs::read_to_string(&kubeconfig).unwrap();
    let (kind, name) = (("rbac.authorization.k8s.io/v1", "ClusterRole"), ("", "brindle-node"));
    let rules = node.server.get(kind, name).expect("it was loaded")["rules"].clone();
    let allow = |server: &ApiServer, rules: &Value| {
        let patch = json!({"rules": rules});
        server.patch(kind, name, "", &patch).unwrap_or_else(|s| panic!("{}", s.message));
    };

    // A first agent has nothing to go by.
    node.server.write_kubeconfig(&kubeconfig, "not-a-token");
    node.start_agent(&[]);
    assert_eq!(node.end_of_agent(LONG), Some(2));
    assert!(log(&node).contains("401 Unauthorized"), "{}", log(&node));

    fs::write(&kubeconfig, &good).unwrap();
    node.start_agent(&[]);
    node.wait_for_agent(LONG);
    node.stop_agent();
    fs::remove_file(node.dir.join("agent.log")).unwrap();

    node.server.write_kubeconfig(&kubeconfig, "not-a-token");
    node.start_agent(&[]);
    let waits_for = |what: &str| {
        until(what, LONG, || match node.probe("--ready") {
            (false, said) if said.contains("[-] datastore: ") && said.contains(what) => Ok(()),
            (_, said) => Err(format!("{said}\n{}", node.log())),
        });
        let (live, said) = node.probe("--live");
        assert!(live, "{said}");
    };
    waits_for("401 Unauthorized");
    allow(&node.server, &json!([]));
    fs::write(&kubeconfig, &good).unwrap();
    waits_for("no right to ");
    allow(&node.server, &rules);
    until("it is ready", LONG, || match node.probe("--ready") {
        (true, _) => Ok(()),
        (false, said) => Err(format!("{said}\n{}", node.log())),
    });
    assert_eq!(log(&node).matches(WAITS).count(), 2, "each reason is said once: {}", log(&node));
}

#[test]
fn an_agent_follows_each_collection_by_one_stream() {
    let mut node = node("kstream");
    node.start_agent(&[]);
    node.wait_for_agent(LONG);
    until_true("policy is in force", LONG, || node.status().is_some_and(|s| s["policy"]["in_sync"] == true));
    let mut streams = BTreeMap::new();
    for (call, traffic) in node.server.calls() {
        if call.user == AGENT && call.verb == "watch" {
            *streams.entry((call.group, call.resource)).or_insert(0) += traffic.requests;
        }
    }
    assert!(streams.len() > 15, "{streams:?}");
    for ((group, resource), n) in streams {
        // Of pods there are those of this node, and those of the cluster for policy.
        let most = if resource == "pods" { 2 } else { 1 };
        assert!(n <= most, "{n} streams of {resource}.{group}");
    }
}

#[test]
fn an_add_that_waits_for_a_collection_names_it_with_the_reason() {
    let mut node = node("kdenied");
    let (kind, name) = (("rbac.authorization.k8s.io/v1", "ClusterRole"), ("", "brindle-node"));
    let mut role = node.server.get(kind, name).expect("it was loaded");
    for rule in role["rules"].as_array_mut().expect("it has rules") {
        let resources = rule["resources"].as_array_mut().expect("they name resources");
        resources.retain(|r| r != "networksets");
    }
    let patch = json!({"rules": role["rules"]});
    node.server.patch(kind, name, "", &patch).unwrap_or_else(|s| panic!("{}", s.message));
    node.start_agent(&[]);
    node.wait_for_agent(LONG);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "default"},
        "spec": {"nodeName": "node-a", "containers": [{"name": "c", "image": "example.org/c:1"}]}});
    node.server.apply(pod).unwrap_or_else(|s| panic!("{}", s.message));
    let container = Container::new();
    let said = node.plugin("ADD", &container.id, &container.netns(), "a");
    assert!(!said.ok, "{said:?}");
    let text = format!("{said:?}");
    assert!(
        text.contains("waited for from the datastore kubernetes:") && text.contains("networksets ("),
        "{text}"
    );
    assert!(text.contains("no right to list networksets") && !text.contains("no problem is known"), "{text}");
    assert!(!text.contains("globalnetworkpolicies ("), "what is there is not named: {text}");
}
