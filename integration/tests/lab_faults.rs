//! Bad input and faults: each gives one clear line (what, where, what to do), the right exit code, and loses nothing.

use std::{
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use brindle_config_core::{
    ObjectMeta, Resource,
    bgp::{AsNumber, BgpPeerSpec},
    store::{Expect, StoreExt as _},
};
use brindle_integration::{
    bins,
    lab::{Lab, command, ctl},
    netns::TestNs,
    process::Running,
    wait,
};
use brindle_kernel::netlink::{Route, RouteFilter, Rtnl};

/// Writes a topology into the test's own temporary file.
fn topology(tag: &str, text: &str) -> PathBuf {
    let file = std::env::temp_dir().join(format!("bt-{}-{tag}.yaml", std::process::id()));
    std::fs::write(&file, text).expect("the temporary folder is writable");
    file
}

/// `lab up --topology` with this text; nothing may be made of it.
fn refused(tag: &str, text: &str) -> String {
    let file = topology(tag, text);
    let lab = Lab::named(tag);
    let up = lab.build(&["--topology", file.to_str().expect("text")]).expect(2);
    lab.assert_gone();
    std::fs::remove_file(&file).expect("it was written above");
    let error = up.error().to_owned();
    assert!(error.contains(file.to_str().expect("text")), "the file is named: {error}");
    error
}

#[test]
fn a_bad_topology_is_refused_with_file_line_and_field() {
    let nodes = "nodes: [{name: node1, segment: seg1}]\n";
    for (tag, text, expected) in [
        ("y1", "segments: [{name: seg1}\n".to_owned(), vec!["1:"]),
        ("y2", format!("segments: [{{name: seg1}}]\n{nodes}colour: red\n"), vec!["colour", "3:"]),
        ("y3", format!("segments: [{{name: seg1, cidr: 10.0.0.0/99}}]\n{nodes}"), vec!["1:", "cidr"]),
        (
            "y4",
            format!("segments: [{{name: rack}}]\n{nodes}"),
            vec!["nodes[0].segment", "no segment \"seg1\""],
        ),
        ("y5", format!("segments: [{{name: seg1}}]\nmtu: 12\n{nodes}"), vec!["mtu: 12 is outside"]),
        ("y6", "segments: [{name: seg1}]\n".to_owned(), vec!["nodes"]),
        (
            "y7",
            format!("pool: {{cidr: 10.77.0.0/16}}\nsegments: [{{name: seg1}}]\n{nodes}"),
            vec!["overlaps the pool"],
        ),
        (
            "y8",
            "segments: [{name: seg1}]\nnodes:\n- {name: a, segment: seg1, address: 10.77.1.9}\n\
             - {name: b, segment: seg1, address: 10.77.1.9}\n"
                .to_owned(),
            vec!["nodes[1].address", "already a's"],
        ),
    ] {
        let error = refused(tag, &text);
        for word in expected {
            assert!(error.contains(word), "{tag}: {word:?} is not in {error:?}");
        }
        assert_eq!(error.lines().next().map(|l| l.contains("panicked")), Some(false));
    }
    let up = Lab::named("y9").build(&["--topology", "/nonexistent/lab.yaml"]).expect(2);
    assert!(up.error().contains("/nonexistent/lab.yaml"), "{up:#?}");
}

#[test]
fn bad_arguments_are_refused_with_code_2() {
    for args in [
        ["lab", "up", "--nodes", "0"].as_slice(),
        &["lab", "up", "--nodes", "many"],
        &["lab", "up", "--ipip", "perhaps"],
        &["lab", "up", "--name", "Not_Good"],
        &["lab", "up", "--name", "../../etc"],
        &["lab", "break", "fry", "node1"],
        &["lab", "exec", "node1"],
        &["lab"],
        &["frobnicate"],
        &["status", "--admin-socket", "/nonexistent/admin.sock"],
    ] {
        let answer = ctl(args);
        assert_eq!(answer.code, 2, "{args:?}: {answer:#?}");
        let said = format!("{}{}", answer.error(), answer.stderr);
        assert!(!said.is_empty() && !said.contains("panicked"), "{args:?}: {said}");
    }
}

#[test]
fn without_root_nothing_is_tried() {
    let lab = Lab::named("nobody");
    for args in [["up"].as_slice(), &["down"], &["heal"], &["ping"]] {
        let mut up = command(&[&["lab", "--name", lab.name()], args].concat());
        // The build folder may be closed to others: the program is entered by descriptor, then root is dropped.
        let out = up.uid(65534).gid(65534).output().expect("brindlectl can be started by nobody");
        assert_eq!(out.status.code(), Some(2), "{out:?}");
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(text.contains("needs root") && text.contains("sudo"), "{text}");
    }
    lab.assert_gone();
}

#[test]
fn a_missing_agent_is_named_before_anything_is_made() {
    let lab = Lab::named("nobin");
    let mut up = command(&["lab", "up", "--name", lab.name()]);
    let out = up.env("BRINDLE_BIN_DIR", "/var/empty/bin").output().expect("brindlectl starts");
    assert_eq!(out.status.code(), Some(2));
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        text.contains("/var/empty/bin/brindle-node is missing") && text.contains("cargo build"),
        "{text}"
    );
    lab.assert_gone();
}

#[test]
fn a_lab_needs_no_programs_of_the_system() {
    // No iproute2, no iptables, no ipset on PATH: the kernel is spoken to directly.
    let lab = Lab::named("bare");
    let mut up = command(&["lab", "up", "--name", lab.name(), "--nodes", "2"]);
    let out = up.env("PATH", "/var/empty").output().expect("brindlectl starts");
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stdout));
    lab.down();
}

/// `brindle-node run` in a namespace with an address, not part of any lab.
struct Agent<'a> {
    ns: &'a TestNs,
    state: PathBuf,
    args: Vec<String>,
}

impl Agent<'_> {
    /// Its end, which must come by itself: exit code and log.
    fn ends(&self) -> (i32, String) {
        let mut command = self.command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running::start_in(self.ns.ns(), &mut command);
        let status = running.wait(Duration::from_secs(60));
        let mut said = String::new();
        for pipe in [
            running.child().stdout.take().map(|p| Box::new(p) as Box<dyn std::io::Read>),
            running.child().stderr.take().map(|p| Box::new(p) as Box<dyn std::io::Read>),
        ] {
            let _ = pipe.expect("piped").read_to_string(&mut said);
        }
        (status.code().unwrap_or(-1), said)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(bins::bin("brindle-node"));
        command.arg("run").arg("--state-dir").arg(&self.state).args(&self.args).stdin(Stdio::null());
        command
    }
}

/// A folder of the test, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(tag: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bt-{}-{tag}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary folder is writable");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn an_agent_names_a_corrupt_store_file_and_leaves_it_alone() {
    let ns = TestNs::new("corrupt");
    let folder = Folder::new("corrupt");
    let store = folder.0.join("brindle.db");
    let garbage = b"this is no database, and it is longer than the header of one would be".repeat(40);
    std::fs::write(&store, &garbage).expect("writable");
    let agent = Agent {
        ns: &ns,
        state: folder.0.join("state"),
        args: [
            "--node-name",
            "n1",
            "--ip",
            "10.0.0.1/24",
            "--datastore",
            &format!("sqlite:{}", store.display()),
        ]
        .map(str::to_owned)
        .to_vec(),
    };
    let (code, said) = agent.ends();
    assert_eq!(code, 2, "{said}");
    assert!(said.contains(store.to_str().expect("text")), "the file is named: {said}");
    assert_eq!(std::fs::read(&store).expect("still there"), garbage, "it is evidence, not ours to overwrite");
}

#[test]
fn a_second_agent_on_a_node_and_a_duplicate_address_are_refused() {
    let (lab, _) = Lab::up("second", &["--nodes", "2", "--pods-per-node", "1"]);
    let agent = bins::bin("brindle-node");
    let agent = agent.to_str().expect("text");
    let state = lab.dir().join("nodes/node1");
    let store = lab.store_url();
    let state = state.to_str().expect("text");
    let argv =
        ["timeout", "20", agent, "run", "--state-dir", state, "--node-name", "node1", "--datastore", &store];
    let second = lab.ctl(&[&["exec", "node1", "--"], argv.as_slice()].concat());
    assert_eq!(second.code, 2, "{second:#?}");
    let pid = lab.node_status("node1")["pid"].to_string();
    let said = format!("{}{}", second.last()["stdout"], second.last()["stderr"]);
    assert!(said.contains(&pid), "the pid of the first agent ({pid}) is named: {said}");

    // Elsewhere, with the address of node2.
    let ns = TestNs::new("dup");
    let folder = Folder::new("dup");
    let other = Agent {
        ns: &ns,
        state: folder.0.join("state"),
        args: ["--node-name", "other", "--ip", "10.77.2.2/24", "--datastore", &store]
            .map(str::to_owned)
            .to_vec(),
    };
    let (code, said) = other.ends();
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("10.77.2.2") && said.contains("node2"), "address and its owner are named: {said}");
    lab.ping_ok();
    lab.ctl(&["status"]).expect(0);
    lab.down();
}

#[test]
fn a_wrong_as_number_is_named_by_status() {
    let file = topology(
        "wrongas",
        "router: {kind: frr, asNumber: 65001}\n\
         segments: [{name: seg1}]\n\
         nodes: [{name: node1, segment: seg1}]\n",
    );
    let (lab, _) = Lab::up("wrongas", &["--topology", file.to_str().expect("text")]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = brindle_config::open(&lab.store_url()).expect("the lab's store opens");
        let stored = store.get_as::<BgpPeerSpec>(None, "router-node1").await.expect("the lab made it");
        let mut peer = stored.resource;
        peer.spec.as_number = Some(AsNumber(65002));
        store.put_as(&peer, Expect::Revision(stored.revision)).await.expect("nobody else writes it");
    });
    let problem = wait::until("the wrong AS is named", Duration::from_secs(30), || {
        let status = lab.ctl(&["status"]);
        let what = status.last()["nodes"][0]["problems"][0]["what"].as_str().unwrap_or_default().to_owned();
        if status.code == 1 && what.contains("AS") { Ok(what) } else { Err(format!("{status:?}")) }
    });
    assert!(problem.starts_with("session with router (10.77.1.254) is "), "{problem}");
    assert!(problem.contains("it says AS 65001, configured is 65002"), "{problem}");
    lab.down();
    std::fs::remove_file(file).expect("it was written above");
}

#[test]
fn what_a_ready_agent_complains_of_is_shown_too() {
    let (lab, _) = Lab::up("reasons", &["--nodes", "2", "--pods-per-node", "1"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = brindle_config::open(&lab.store_url()).expect("the lab's store opens");
        let spec = BgpPeerSpec {
            node: "node1".into(),
            peer_ip: "10.77.1.77".into(),
            as_number: Some(AsNumber(65_001)),
            filters: vec!["nowhere".into()],
            ..BgpPeerSpec::default()
        };
        let peer = Resource::new(ObjectMeta::named("tor"), spec);
        store.put_as(&peer, Expect::Absent).await.expect("there is none of this name");
    });
    let problems = wait::until("the missing filter is named", Duration::from_secs(30), || {
        let status = lab.ctl(&["status"]);
        let text = status.last()["nodes"][0]["problems"].to_string();
        if status.code == 1 && text.contains("nowhere") { Ok(text) } else { Err(format!("{status:?}")) }
    });
    assert!(problems.contains("BGPPeer(tor)"), "{problems}");
    assert_eq!(lab.ctl(&["ping"]).code, 0, "what is right goes on");
    lab.down();
}

#[test]
fn a_full_pool_is_said_and_the_pods_that_fit_live() {
    let file = topology(
        "full",
        "pool: {cidr: 192.168.0.0/29, blockSize: 29}\n\
         segments: [{name: seg1}]\n\
         nodes: [{name: node1, segment: seg1, pods: 9}]\n",
    );
    let lab = Lab::named("full");
    let up = lab.build(&["--topology", file.to_str().expect("text")]).expect(1);
    let missing: Vec<_> = up.lines.iter().filter(|l| l["event"] == "missing").collect();
    assert!(!missing.is_empty(), "{up:#?}");
    for m in &missing {
        let what = m["what"].as_str().unwrap_or_default();
        assert!(what.contains("CNI ADD of p1-") && what.contains("pool"), "{m:#}");
    }
    // Those that have an address reach each other.
    let summary = &up.last()["proof"];
    assert_eq!(summary["pairs"], summary["full"], "{summary:#}");
    lab.down();
    std::fs::remove_file(file).expect("it was written above");
}

#[test]
fn a_deleted_route_comes_back_and_foreign_routes_survive() {
    let (lab, _) = Lab::up("routes", &["--nodes", "2"]);
    let block = lab.node_status("node2")["blocks"][0].as_str().expect("node2 has a block").to_owned();
    let mut rtnl = Rtnl::open_in(&lab.ns("node1")).expect("netlink opens");
    let find = |rtnl: &mut Rtnl, dst: &str| -> Option<Route> {
        let all = rtnl.routes(&RouteFilter::main()).expect("routes can be listed");
        all.into_iter().find(|r| r.dst.to_string() == dst)
    };
    let foreign = ["203.0.113.0/24", "198.51.100.0/24", "192.168.250.0/26"];
    for (dst, protocol) in foreign.into_iter().zip(["static", "bird", "static"]) {
        lab.exec("node1", &["ip", "route", "add", dst, "via", "10.77.1.254", "proto", protocol]);
    }

    let ours = find(&mut rtnl, &block).expect("the route to node2's block");
    rtnl.del_route(&ours).expect("it can be deleted");
    wait::until_true("our route is back", Duration::from_secs(30), || {
        find(&mut rtnl, &block).is_some_and(|r| r.hops == ours.hops)
    });
    assert!(lab.node_status("node1")["routes"]["repairs"].as_u64() >= Some(1));

    // A pod's own route, too.
    let pod = lab.exec("p1-1", &["sh", "-c", "ip -4 -o addr show dev eth0"]);
    let pod =
        pod.split_ascii_whitespace().find(|w| w.ends_with("/32")).expect("the pod's address").to_owned();
    let local = find(&mut rtnl, &pod).expect("the pod's route");
    rtnl.del_route(&local).expect("it can be deleted");
    wait::until_true("the pod's route is back", Duration::from_secs(30), || find(&mut rtnl, &pod).is_some());

    // Neither repairs nor a restart of the agent touch what is not ours, but for what a BIRD has left in a pool: with no
    // BIRD on the node nobody takes its routes back, and they come before ours.
    lab.ctl(&["break", "kill", "node1"]).expect(0);
    let left = [block.as_str(), "192.168.251.0/26"];
    for dst in left {
        lab.exec("node1", &["ip", "route", "add", dst, "via", "10.77.1.254", "proto", "bird"]);
    }
    lab.ctl(&["heal"]).expect(0);
    lab.wait_healthy(Duration::from_secs(60));
    let birds = |rtnl: &mut Rtnl| {
        let all = rtnl.routes(&RouteFilter::main()).expect("routes can be listed");
        all.into_iter().filter(|r| r.protocol == 12).map(|r| r.dst.to_string()).collect::<Vec<_>>()
    };
    wait::until_true("what a BIRD has left is gone", Duration::from_secs(60), || {
        birds(&mut rtnl) == [foreign[1]]
    });
    for dst in foreign {
        assert!(find(&mut rtnl, dst).is_some(), "{dst} is gone");
    }
    assert_eq!(find(&mut rtnl, &block).map(|r| r.hops), Some(ours.hops));
    lab.ping_ok();
    lab.down();
}

#[test]
fn the_log_of_a_dead_agent_is_quoted() {
    let (lab, _) = Lab::up("quote", &["--nodes", "2", "--pods-per-node", "1"]);
    let pid = lab.node_status("node1")["pid"].to_string();
    lab.exec("node1", &["sh", "-c", &format!("kill -KILL {pid}")]);
    let problem = wait::until("the death is noticed", Duration::from_secs(30), || {
        let status = lab.ctl(&["status"]);
        let problem = status.last()["nodes"][0]["problems"][0].clone();
        let what = problem["what"].as_str().unwrap_or_default();
        let dead = what.starts_with("the agent is dead; its last words: ");
        if status.code == 1 && dead { Ok(problem) } else { Err(format!("{status:?}")) }
    });
    assert!(problem["next"].as_str().unwrap_or_default().starts_with("brindlectl lab heal"));
    lab.down();
}
