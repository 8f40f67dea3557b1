//! Bad input and missing means, as docs/faults.md lists them: a peer that speaks garbage, pools that overlap, a machine
//! without iptables, a disk without room. Each is said in a line; nothing is lost and nobody else is harmed. Needs root.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use brindle_config_core::{Key, Kind, ObjectMeta, pool::IpPoolSpec};
use brindle_integration::{
    bins::bin,
    cni::{CniNode, Container, ping},
    lab::{Lab, ctl},
    netns::TestNs,
    process::Running,
    wait::{until, until_true},
};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

/// What a peer may send: nothing at all, noise, a right beginning with noise behind it, a length that lies.
fn garbage() -> Vec<Vec<u8>> {
    let mut open = vec![0xff; 16];
    // An OPEN of 29 octets: version 4, AS 64512, hold time 180, an identifier, no options.
    open.extend([0, 29, 1, 4, 0xfc, 0x00, 0, 180, 10, 77, 1, 9, 0]);
    let mut open_then_noise = open.clone();
    open_then_noise.extend((0..65_536_u32).map(|i| u8::try_from((i * 167 + 13) % 251).unwrap_or(0)));
    let mut long = vec![0xff; 16];
    long.extend([0xff, 0xff, 2]);
    long.extend([0; 70_000]);
    vec![vec![], vec![0; 4096], b"GET / HTTP/1.1\r\n\r\n".to_vec(), open_then_noise, long]
}

#[test]
fn a_peer_that_speaks_garbage_harms_no_other_session_of_the_lab() {
    let (lab, _) = Lab::up("garbage", &["--nodes", "3", "--pods-per-node", "1"]);
    // Each session, and for how long it has been as it is.
    let sessions = || -> Vec<(String, u64)> {
        let of = |node: &str| {
            let status = lab.node_status(node);
            let peers = status["bgp"]["peers"].as_array().cloned().unwrap_or_default();
            let one = |p: &serde_json::Value| {
                (format!("{node} {} {}", p["address"], p["state"]), p["since_ms"].as_u64().unwrap_or(0))
            };
            peers.iter().map(one).collect::<Vec<_>>()
        };
        ["node1", "node2", "node3"].iter().flat_map(|n| of(n)).collect()
    };
    let before = sessions();
    assert!(before.len() == 6 && before.iter().all(|(s, _)| s.contains("Established")), "{before:?}");
    let target: SocketAddr = "10.77.1.1:179".parse().expect("the lab's first node");
    // From a neighbor's address (which has a session already), and from the node's own, which is no peer's.
    for from in ["node2", "node1"] {
        for bytes in garbage() {
            lab.ns(from)
                .run(|| {
                    let Ok(mut stream) = TcpStream::connect_timeout(&target, Duration::from_secs(5)) else {
                        return;
                    };
                    stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket option");
                    stream.set_write_timeout(Some(Duration::from_secs(2))).expect("a socket option");
                    // It may hang up in the middle, and should.
                    let _ = stream.write_all(&bytes);
                    let _ = stream.read_to_end(&mut Vec::new());
                })
                .expect("the namespace is alive");
        }
    }
    let after = sessions();
    let kept = before.iter().zip(&after).all(|((a, before), (b, after))| a == b && before <= after);
    assert!(kept && before.len() == after.len(), "no session was lost or made anew: {before:?} {after:?}");
    lab.ping_ok();
    lab.ctl(&["status"]).expect(0);
    lab.down();
}

#[test]
fn pools_that_overlap_are_named_and_no_address_is_given_twice() {
    let node = CniNode::new("overlap", "10.141.0.0/24");
    node.put(ObjectMeta::named("wide"), IpPoolSpec::new("10.141.0.0/16".parse().expect("a CIDR")));
    let said = until("both pools are named", LONG, || {
        let out = Command::new(bin("brindlectl"))
            .arg("status")
            .arg("--admin-socket")
            .arg(node.dir.join("admin.sock"))
            .output()
            .expect("brindlectl can be started");
        let screen = String::from_utf8_lossy(&out.stdout).into_owned();
        let line = screen.lines().find(|l| l.contains("overlap")).map(str::to_owned);
        line.ok_or(screen)
    });
    let parts = ["IPPool(pool) 10.141.0.0/24", "IPPool(wide) 10.141.0.0/16", "delete or shrink"];
    assert!(parts.iter().all(|p| said.contains(p)), "{said}");
    let pods: Vec<Container> = (0..70).map(|_| Container::new()).collect();
    let mut all: Vec<String> = pods.iter().map(|c| node.add(c).address()).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), pods.len(), "each has an address of its own");
    node.settled(&pods.iter().collect::<Vec<_>>());
}

#[test]
fn without_iptables_the_agent_says_so_and_lets_no_pod_in_unprotected() {
    let mut node = CniNode::without_agent("notools", "10.142.0.0/24");
    // All tools of the filter are there: an empty folder in its place, for this agent alone.
    node.start_agent_through(&[
        "unshare",
        "-m",
        "sh",
        "-c",
        "mount -t tmpfs none /usr/sbin && exec \"$0\" \"$@\"",
    ]);
    let c = Container::new();
    let said = node.add(&c);
    assert_eq!(said.code(), 11, "{said:?}");
    for word in ["policy", "is not installed", "install the package"] {
        assert!(said.out.contains(word), "{word}: {said:?}");
    }
    let said = node.status();
    assert!(said.code() == 50 && said.out.contains("is not installed"), "{said:?}");
    let log = std::fs::read_to_string(node.dir.join("agent.log")).expect("the agent's log");
    assert!(
        log.lines().any(|l| l.contains("policy could not be written") && l.contains("not installed")),
        "{log}"
    );
    node.settled(&[]);
    // With them it goes on as if nothing had been.
    node.kill_agent();
    node.start_agent();
    let said = node.add(&c);
    assert!(node.pings(&said.address()), "{said:?}");
}

#[test]
fn policies_nobody_can_enforce_are_named_in_log_and_status_and_close_only_whom_they_select() {
    let node = CniNode::new("badpol", "10.143.0.0/24");
    let (other, closed) = (Container::new(), Container::new());
    let (from, to) = (node.add(&other), {
        // A pod of the namespace that the bad policies are for.
        let mut command = node.command(&bin("brindle"), "ADD", &closed.id, &closed.netns());
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=blue;K8S_POD_NAME=pod-{}", closed.id);
        node.run(command.env("CNI_ARGS", args), &node.conf())
    });
    let (open, shut) = (from.address(), to.address());
    until_true("without policy pods talk", LONG, || ping(other.ns.ns(), &shut));

    let key = |kind, name: &str| Key::new(kind, matches!(kind, Kind::NetworkPolicy).then_some("blue"), name);
    let policy_of = |name: &str, spec: &Value| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "blue"}, "spec": spec})
    };
    let put = |kind: Kind, name: &str, spec: Value| {
        node.put_value(&key(kind, name), &policy_of(name, &spec));
    };
    let allow = |more: Value| {
        let mut rule = json!({"action": "Allow"});
        rule.as_object_mut().expect("a map").extend(more.as_object().cloned().unwrap_or_default());
        json!({"ingress": [rule]})
    };
    let nets: Vec<String> = (0..5000).map(|i| format!("10.{}.{}.0/24", i / 256, i % 256)).collect();
    let long = "x".repeat(300);
    for (name, spec, words) in [
        ("action", json!({"ingress": [{"action": "Alow"}]}), "did you mean Allow?"),
        ("ports", allow(json!({"protocol": "TCP", "destination": {"ports": ["90:80"]}})), "write 80:90"),
        ("selector", json!({"selector": "app = 'x'", "ingress": [{"action": "Allow"}]}), "column 5"),
        ("nets", allow(json!({"source": {"nets": nets}})), "at most 256 entries"),
        (long.as_str(), allow(json!({})), "at most 253 characters"),
        ("tier", json!({"tier": "nowhere"}), "tier nowhere does not exist"),
    ] {
        // The command takes none of them; other tools may take anything.
        let said = apply(&node, &policy_of(name, &spec));
        let why = if name == "tier" { "there is no such tier" } else { words };
        assert!(said.0 == 2 && said.1.contains(why), "{name}: {said:?}");
        put(Kind::NetworkPolicy, name, spec);
        until_true(&format!("{words}: the pod it selects is closed"), LONG, || !ping(other.ns.ns(), &shut));
        assert!(node.pings(&open), "{words}: others go on");
        named(&node, &name[..name.len().min(40)], words);
        node.remove(&key(Kind::NetworkPolicy, name));
        until_true(&format!("{words}: open again without it"), LONG, || ping(other.ns.ns(), &shut));
    }
    let log = std::fs::read_to_string(node.dir.join("agent.log")).expect("the agent's log");
    assert!(log.contains("no longer so"), "{log}");
}

/// Waits until log and status of the agent name a resource with these words.
fn named(node: &CniNode, resource: &str, words: &str) {
    until(&format!("the log names {resource}: {words}"), LONG, || {
        let log = std::fs::read_to_string(node.dir.join("agent.log")).unwrap_or_default();
        let said = |l: &str| l.contains("cannot be enforced") && l.contains(resource) && l.contains(words);
        if log.lines().any(said) { Ok(()) } else { Err(log) }
    });
    until(&format!("the status names {resource}: {words}"), LONG, || {
        let status = status(node);
        let lines = status["policy"]["resources"].as_array().cloned().unwrap_or_default();
        let names = |l: &Value| l.as_str().is_some_and(|l| l.contains(resource) && l.contains(words));
        if lines.iter().any(names) { Ok(()) } else { Err(format!("{status:#}")) }
    });
}

/// What `brindlectl apply` says to a resource: exit code and text.
fn apply(node: &CniNode, resource: &Value) -> (i32, String) {
    let file = node.dir.join("applied.json");
    std::fs::write(&file, resource.to_string()).expect("the folder of the test can be written");
    let store = format!("sqlite:{}", node.dir.join("brindle.db").display());
    let out = Command::new(bin("brindlectl"))
        .args(["apply", "--datastore", &store, "-f"])
        .arg(&file)
        .output()
        .expect("brindlectl can be started");
    let text = [out.stdout, out.stderr].concat();
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn endpoints_nobody_can_have_or_two_claim_are_named_and_closed_and_all_else_is_enforced() {
    let node = CniNode::new("badend", "10.145.0.0/24");
    let (a, b, c) = (Container::new(), Container::new(), Container::new());
    let [_, of_b, of_c] = [&a, &b, &c].map(|pod| node.add(pod).address());
    let from_a = |to: &str| ping(a.ns.ns(), to);
    until_true("without policy pods talk", LONG, || from_a(&of_b) && from_a(&of_c));
    let key = |name: &str| Key::new(Kind::WorkloadEndpoint, Some("default"), name);
    let own = node.value(&key(&format!("n1-k8s-pod--{}-eth0", b.id)));
    let device = own["spec"]["interfaceName"].as_str().expect("a name").to_owned();
    let ghost = |interface: &str, address: &str| {
        let mut value = own.clone();
        value["metadata"] = json!({"name": "ghost", "namespace": "default"});
        value["spec"]["pod"] = "ghost".into();
        value["spec"]["interfaceName"] = interface.into();
        value["spec"]["ipNetworks"] = json!([format!("{address}/32")]);
        value
    };
    let deny = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "closed"}, "spec": {"selector": "all()", "types": ["Ingress"]}});
    let closed = Key::new(Kind::GlobalNetworkPolicy, None, "closed");

    // No kernel has such devices. Written into a rule as they stand, they would keep all rules from being written.
    for odd in ["cali0123456789abcdef", "cali\"x", "cali0\n-A INPUT"] {
        let value = ghost(odd, "10.145.0.201");
        let said = apply(&node, &value);
        assert!(said.0 == 2 && said.1.contains("expected an interface name"), "{said:?}");
        node.put_value(&key("ghost"), &value);
        named(&node, "WorkloadEndpoint(default/ghost)", "expected an interface name");
        node.put_value(&closed, &deny);
        until_true("policy is enforced beside it", LONG, || !from_a(&of_b) && !from_a(&of_c));
        node.remove(&closed);
        until_true("and taken away", LONG, || from_a(&of_b) && from_a(&of_c));
        node.remove(&key("ghost"));
    }

    // Two pods that claim one address, or one device: neither is believed.
    for (interface, address, words) in
        [("calighost", &*of_b, "has the same address"), (&*device, "10.145.0.201", "has the same interface")]
    {
        node.put_value(&key("ghost"), &ghost(interface, address));
        until_true("the pod that is claimed twice is closed", LONG, || !from_a(&of_b));
        named(&node, "WorkloadEndpoint(default/ghost)", words);
        assert!(from_a(&of_c), "{words}: others go on");
        node.remove(&key("ghost"));
        until_true("open again", LONG, || from_a(&of_b));
    }

    // Host endpoints: two for one interface, and one that cannot be read.
    let outside = node.neighbour("badhost");
    let hep = |name: &str, more: Value| {
        let mut value = json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
            "metadata": {"name": name}, "spec": {"node": "n1", "interfaceName": "eth0"}});
        let spec = value["spec"].as_object_mut().expect("a map");
        spec.extend(more.as_object().cloned().unwrap_or_default());
        (Key::new(Kind::HostEndpoint, None, name), value)
    };
    // Nobody listens: whoever is let through is refused, whoever is not waits in vain.
    let reaches = |port: u16| {
        let to = SocketAddr::from(([192, 0, 2, 1], port));
        let tried = outside.ns.ns().run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)));
        tried
            .expect("the namespace is alive")
            .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    let allow = json!({"profiles": ["projectcalico-default-allow"]});
    let (one, good) = hep("one", allow.clone());
    node.put_value(&one, &good);
    until_true("its profile allows", LONG, || reaches(80) && reaches(22));
    let (two, rival) = hep("two", allow.clone());
    assert_eq!(apply(&node, &rival).0, 0, "one resource cannot tell");
    until_true("a contested interface is closed", LONG, || !reaches(80));
    assert!(reaches(22), "but for failsafe ports");
    named(&node, "HostEndpoint(one)", "HostEndpoint two stands for the same interface");
    node.remove(&two);
    until_true("open again", LONG, || reaches(80));
    let (_, broken) =
        hep("one", json!({"expectedIPs": ["192.0.2.300"], "profiles": ["projectcalico-default-allow"]}));
    let said = apply(&node, &broken);
    assert!(said.0 == 2 && said.1.contains("spec.expectedIPs[0]"), "{said:?}");
    node.put_value(&one, &broken);
    until_true("one that cannot be read is closed", LONG, || !reaches(80));
    assert!(reaches(22) && from_a(&of_b), "but for failsafe ports, and nobody else");
    named(&node, "HostEndpoint(one)", "drops everything but for failsafe ports");
    node.put_value(&one, &good);
    until_true("open again", LONG, || reaches(80));
}

#[test]
fn what_the_tools_would_refuse_holds_back_no_policy() {
    let node = CniNode::new("refused", "10.149.0.0/24");
    let (a, b) = (Container::new(), Container::new());
    let [_, of_b] = [&a, &b].map(|pod| node.add(pod).address());
    let from_a = || ping(a.ns.ns(), &of_b);
    until_true("without policy pods talk", LONG, from_a);
    let put = |kind: Kind, name: &str, spec: Value| {
        let value = json!({"apiVersion": "projectcalico.org/v3", "kind": kind.as_str(), "metadata": {"name": name}, "spec": spec});
        node.put_value(&Key::new(kind, None, name), &value);
        value
    };
    let closed = Key::new(Kind::GlobalNetworkPolicy, None, "closed");
    for mode in ["Disabled", "Enabled"] {
        // A variable of nft; two protocols of which iptables takes one; a port and an address that ipset does not take.
        let felix =
            put(Kind::FelixConfiguration, "default", json!({"nftablesMode": mode, "logPrefix": "cost$a"}));
        let far = json!({"node": "n9", "interfaceName": "eth0", "expectedIPs": ["192.0.2.9", "0.0.0.0"],
            "ports": [{"name": "echo", "protocol": "ICMP", "port": 8}, {"name": "echo", "protocol": "TCP", "port": 80}]});
        let far = put(Kind::HostEndpoint, "far", far);
        let echo = json!({"namespaceSelector": "global()", "ports": ["echo"]});
        let odd = json!({"selector": "all()", "order": 10, "types": ["Ingress", "Egress"],
            "ingress": [{"action": "Log"}, {"action": "Deny", "protocol": "ICMP", "notProtocol": 1},
                {"action": "Allow", "protocol": "TCP", "notProtocol": "UDP"}, {"action": "Allow", "protocol": "ICMP"}],
            "egress": [{"action": "Deny", "destination": echo}, {"action": "Allow"}]});
        put(Kind::GlobalNetworkPolicy, "odd", odd);
        for (value, words) in [(&felix, "printable ASCII"), (&far, "no rule can name a port")] {
            let said = apply(&node, value);
            assert!(said.0 == 2 && said.1.contains(words), "{mode}: {said:?}");
        }
        named(&node, "FelixConfiguration(default)", "printable ASCII");
        named(&node, "HostEndpoint(far)", "no rule can name a port");
        put(
            Kind::GlobalNetworkPolicy,
            "closed",
            json!({"selector": "all()", "order": 1, "ingress": [{"action": "Deny"}]}),
        );
        until_true(&format!("{mode}: what is denied later is denied"), LONG, || !from_a());
        node.remove(&closed);
        until_true(&format!("{mode}: and allowed again"), LONG, from_a);
        let policy = status(&node)["policy"].clone();
        assert_eq!(policy["back_end"] == "nftables", mode == "Enabled", "{policy:#}");
        assert!(!policy.to_string().contains("refused"), "{policy:#}");
        let log = std::fs::read_to_string(node.dir.join("agent.log")).expect("the agent's log");
        assert!(!log.contains("policy could not be written"), "{log}");
    }
}

/// What the agent says of itself.
fn status(node: &CniNode) -> Value {
    let socket = node.dir.join("admin.sock");
    let socket = socket.to_str().expect("the path is text");
    ctl(&["status", "--admin-socket", socket]).last().clone()
}

/// A folder with little room, until dropped.
struct Small(PathBuf);

impl Small {
    fn new(at: &Path) -> Self {
        Self::of_size(at, "64k")
    }

    fn of_size(at: &Path, size: &str) -> Self {
        std::fs::create_dir_all(at).expect("a folder");
        let small = Self(at.to_owned());
        small.mount(&format!("size={size}"));
        small
    }

    /// Mounts it, or changes how it is mounted.
    fn mount(&self, options: &str) {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(&self.0).status();
        assert!(status.is_ok_and(|s| s.success()), "{options} on {}", self.0.display());
    }

    /// Takes all the room there is.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).expect("there is room for a name");
        while file.write_all(&[0; 512]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).expect("it was written");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_without_room_fails_a_del_that_must_be_promised_and_loses_nothing() {
    let mut node = CniNode::new("fulldisk", "10.143.0.0/24");
    let journal = Small::new(&node.dir.join("cni-journal"));
    let c = Container::new();
    let address = node.add(&c).address();
    journal.fill();
    // The agent needs no promise: what it does is in the store.
    let d = Container::new();
    assert!(node.add(&d).ok);
    assert!(node.del(&d).ok);
    node.kill_agent();
    let del = node.del(&c);
    assert_eq!(del.code(), 5, "{del:?}");
    assert!(del.out.contains("No space left") && del.out.contains("no address is lost"), "{del:?}");
    journal.free();
    assert!(node.del(&c).ok);
    assert_eq!(node.journal(), 1, "promised");
    node.start_agent();
    node.settled(&[]);
    assert!(!node.pings(&address));
}

#[test]
fn a_first_start_without_its_datastore_says_what_to_do() {
    let node = CniNode::without_agent("nostore", "10.144.0.0/24");
    let state = node.dir.join("first");
    std::fs::create_dir_all(&state).expect("the folder of the test can be written");
    let start = |state: &Path| {
        let mut command = Command::new(bin("brindle-node"));
        command.args([
            "run",
            "--node-name",
            "n1",
            "--ip",
            "192.0.2.1/24",
            "--datastore",
            "etcd:http://127.0.0.1:1",
        ]);
        command.arg("--state-dir").arg(state);
        command
    };
    let out =
        node.ns.ns().run(|| start(&state).output()).expect("the namespace is alive").expect("it starts");
    assert_eq!(out.status.code(), Some(2));
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let line = said.lines().find(|l| l.contains("cannot start")).unwrap_or_default();
    for part in ["etcd http://127.0.0.1:1", "Connection refused", "start it, or correct --datastore"] {
        assert!(line.contains(part), "{part} is missing in {said}");
    }
    assert_eq!(said.lines().filter(|l| l.contains("ERROR")).count(), 1, "{said}");
}

/// A backup on a medium, and a disk without room: it is said which it is, and read what can be read.
#[test]
fn a_medium_nobody_can_write_is_read_and_a_full_one_is_named() {
    let dir = std::env::temp_dir().join(format!("brindle-medium-{}", std::process::id()));
    let disk = Small::of_size(&dir.join("disk"), "1m");
    let file = disk.0.join("x.db");
    let pool = dir.join("pool.yaml");
    let text =
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: kept}\nspec: {cidr: 10.1.0.0/16}\n";
    std::fs::write(&pool, text).expect("the folder of the test can be written");
    let (url, pool) = (format!("sqlite:{}", file.display()), pool.display().to_string());
    ctl(&["apply", "-f", &pool, "--datastore", &url]).expect(0);
    // Whoever ends last takes the log in.
    let log = disk.0.join("x.db-wal");
    drop(brindle_config::open(&url).expect("it was made"));
    until_true("the log is gone", LONG, || !log.exists());
    disk.mount("remount,ro");
    let told = |args: &[&str], words: &str| {
        let answer = ctl(args).expect(2);
        let said = format!("{:?}{}", answer.lines, answer.stderr);
        assert!(said.contains(words), "{said}");
    };
    ctl(&["get", "ippool", "kept", "--datastore", &url]).expect(0);
    let change = ["label", "ippool", "kept", "a=b", "--datastore", &url];
    told(&change, "the file system is read-only");
    disk.mount("remount,rw");
    disk.fill();
    told(&["get", "ippools", "--datastore", &url], "the disk is full; free some space");
    disk.free();
    ctl(&change).expect(0);
    drop(disk);
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn an_agent_waits_for_a_datastore_that_somebody_keeps_locked() {
    let node = CniNode::without_agent("locked", "10.145.0.0/24");
    let (file, state, log) = (node.dir.join("l.db"), node.dir.join("first"), node.dir.join("first.log"));
    std::fs::create_dir_all(&state).expect("the folder of the test can be written");
    let url = format!("sqlite:{}", file.display());
    drop(brindle_config::open(&url).expect("it can be made"));
    let lock = std::fs::File::options().write(true).open(node.dir.join("l.db.lock")).expect("it is there");
    lock.lock().expect("it can be locked");
    let mut command = Command::new(bin("brindle-node"));
    command.args(["run", "--node-name", "n1", "--ip", "192.0.2.1/24", "--networking", "none"]);
    command.args(["--datastore", &url, "--state-dir"]).arg(&state);
    command.arg("--admin-socket").arg(state.join("a.sock")).arg("--cni-socket").arg(state.join("c.sock"));
    command.stderr(std::fs::File::create(&log).expect("the folder of the test can be written"));
    let mut agent = Running::start_in(node.ns.ns(), &mut command);
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    until("it says that it waits", LONG, || {
        let said = said();
        if said.contains("waiting for the datastore") && said.contains("l.db.lock") {
            Ok(())
        } else {
            Err(said)
        }
    });
    drop(lock);
    until("it starts", LONG, || if said().contains("agent started") { Ok(()) } else { Err(said()) });
    agent.kill();
}

/// A switch that is neither on nor off is refused with its variable, and so is a pool nobody could use, before anything is
/// written.
#[test]
fn a_mistyped_variable_ends_an_agent_with_its_name() {
    let ns = TestNs::new("mistyped");
    for (name, value) in [
        ("CALICO_IPV4POOL_DISABLE_BGP_EXPORT", "perhaps"),
        ("NO_DEFAULT_POOLS", "maybe"),
        ("CALICO_IPV4POOL_NAT_OUTGOING", "maybe"),
        ("FELIX_HEALTHENABLED", "tru"),
        ("BRINDLE_DRAIN", "soon"),
    ] {
        let mut command = Command::new(bin("brindle-node"));
        command.args(["run", "--node-name", "n1", "--state-dir", "/dev/null/state"]).env(name, value);
        let out = ns.ns().run(|| command.output()).expect("the namespace is alive").expect("it starts");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{name}: {said}");
        assert!(said.contains(&format!("the variable {name}")), "{name}: {said}");
    }
    let mut command = Command::new(bin("brindle-node"));
    command.args(["run", "--node-name", "n1", "--state-dir", "/dev/null/state"]);
    command.env("CALICO_IPV4POOL_CIDR", "10.0.0.0/28");
    let out = ns.ns().run(|| command.output()).expect("the namespace is alive").expect("it starts");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(
        said.contains("--ipv4pool-cidr 10.0.0.0/28") && said.contains("smaller than one block"),
        "{said}"
    );
}

/// A variable of a manifest that is left empty is one that is not set: each program goes as far as without it.
#[test]
fn empty_variables_are_no_settings() {
    let variables = |program: &str, command: &[&str]| -> Vec<String> {
        let help = Command::new(bin(program)).args(command).arg("--help").output().expect("it starts").stdout;
        let help = String::from_utf8_lossy(&help).into_owned();
        let names = help.split("[env: ").skip(1).filter_map(|rest| rest.split('=').next());
        names.map(str::to_owned).collect()
    };
    // Where nothing can be made: no program gets as far as doing something.
    let away = ["--datastore", "sqlite:/dev/null/x.db"];
    let ns = TestNs::new("empty");
    for (program, command, least) in [
        ("brindle-node", &["run", "--node-name", "n1", "--state-dir", "/dev/null/state"][..], 40),
        ("brindle-controllers", &["run", "--once"], 10),
        ("brindle-bgpd", &["--node", "n1"], 1),
    ] {
        let mut names = variables(program, &command[..usize::from(command[0] == "run")]);
        assert!(names.len() >= least, "{program}: {names:?}");
        // Those without a line in the help.
        names.extend(
            ["FELIX_HEALTHPORT", "FELIX_PROMETHEUSMETRICSPORT", "FELIX_IPINIPMTU"].map(str::to_owned),
        );
        let run = |empty: &[String]| {
            let mut with = Command::new(bin(program));
            with.args(command).args(away).envs(empty.iter().map(|name| (name, "")));
            let out = ns.ns().run(|| with.output()).expect("the namespace is alive").expect("it starts");
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            // Without the moment at the beginning of a line of a log.
            let said = said.trim().rsplit_once(" ERROR ").map_or(said.clone(), |(_, what)| what.to_owned());
            (out.status.code(), said)
        };
        let plain = run(&[]);
        assert!(plain.0 != Some(0) && plain.1.contains("/dev/null/"), "{program}: {plain:?}");
        assert_eq!(run(&names), plain, "{program}");
    }
}
