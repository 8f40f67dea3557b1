//! The lab as a person uses it, with the real agent, plugin and carrier: built, proved, broken, healed, grown,
//! removed; two at once; killed at every stage.

use std::time::Duration;

use brindle_integration::{
    lab::{Lab, ctl, kill_up},
    netns, wait,
};
use serde_json::Value;

/// Every stage of `lab up`, in order.
const STAGES: [&str; 9] =
    ["namespaces", "links", "store", "agents", "sessions", "pods", "routes", "encap", "proof"];

fn failures(answer: &Value) -> Vec<(String, String)> {
    let text = |f: &Value, key: &str| f[key].as_str().unwrap_or_default().to_owned();
    answer["failures"].as_array().into_iter().flatten().map(|f| (text(f, "from"), text(f, "to"))).collect()
}

#[test]
fn the_default_lab_is_proved_and_leaves_nothing() {
    let before = netns::root_snapshot();
    let (lab, up) = Lab::up("def", &[]);
    assert_eq!(up.stages(), STAGES);
    let result = up.last();
    assert_eq!(result["event"], "result");
    assert_eq!(result["ok"], true);
    assert_eq!(result["proof"]["pairs"], 56);
    assert_eq!(result["proof"]["small"], 56);
    assert_eq!(result["proof"]["full"], 56);

    let status = lab.ctl(&["status"]).expect(0);
    let nodes = status.last()["nodes"].as_array().expect("nodes").clone();
    assert_eq!(nodes.len(), 4);
    for node in &nodes {
        assert_eq!(node["peers_up"], 3, "{node:#}");
        assert_eq!(node["used"], 2, "{node:#}");
        assert_eq!(node["problems"].as_array().map(Vec::len), Some(0), "{node:#}");
    }
    lab.ping_ok();

    let list = ctl(&["lab", "list"]);
    let ours: Vec<_> =
        list.last().as_array().into_iter().flatten().filter(|l| l["lab"] == lab.name()).collect();
    assert_eq!(ours.len(), 1, "{list:#?}");
    assert_eq!(ours[0]["state"], "up");

    // The router knows nothing of pod addresses.
    assert!(!lab.exec("router", &["ip", "route"]).contains("192.168."));
    // exec passes the exit code on.
    assert_eq!(lab.ctl(&["exec", "p1-1", "--", "sh", "-c", "exit 7"]).code, 7);

    lab.down();
    assert_eq!(netns::root_snapshot(), before, "the root namespace is as it was");
}

#[test]
fn crosssubnet_tunnels_between_segments_only_and_always_everywhere() {
    let encap = |lab: &Lab, node: &str| {
        let status = lab.node_status(node);
        let paths = status["encap"]["paths"].as_array().cloned().unwrap_or_default();
        let count = |mode: &str| paths.iter().filter(|p| p["mode"] == mode).count();
        (count("direct"), count("ipip"))
    };
    let (lab, _) = Lab::up("cross", &["--nodes", "3"]);
    assert_eq!(encap(&lab, "node1"), (1, 1));
    assert_eq!(encap(&lab, "node3"), (0, 2));
    lab.down();
    let (lab, _) = Lab::up("always", &["--nodes", "2", "--segments", "1", "--ipip", "always"]);
    assert_eq!(encap(&lab, "node1"), (0, 1));
    lab.down();
    let (lab, _) = Lab::up("never", &["--nodes", "2", "--segments", "1", "--ipip", "never"]);
    assert_eq!(encap(&lab, "node1"), (1, 0));
    let mtu = lab.exec("p1-1", &["cat", "/proc/sys/net/ipv6/conf/eth0/mtu"]);
    assert_eq!(mtu.trim(), "1500", "without a tunnel nothing is taken from the MTU");
    lab.down();
}

/// What would have to go by VXLAN is not routed as if nothing were, and where WireGuard is asked for nobody is left to believe that
/// it encrypts.
#[test]
fn what_is_asked_for_in_vain_makes_no_node_ready_and_is_named_everywhere() {
    const LIMIT: Duration = Duration::from_secs(30);
    let (lab, _) = Lab::up("vain", &["--nodes", "3", "--pods-per-node", "1"]);
    let store = lab.store_url();
    let patch = |kind: &str, name: &str, spec: &str| {
        let spec = format!("{{\"spec\": {spec}}}");
        ctl(&["patch", kind, name, "-p", &spec, "--datastore", &store]).expect(0).stderr
    };
    let named = |what: &str| {
        wait::until("every node names it", LIMIT, || {
            let status = lab.ctl(&["status"]);
            let rows = status.last()["nodes"].as_array().cloned().unwrap_or_default();
            let all = rows.len() == 3 && rows.iter().all(|r| r["problems"].to_string().contains(what));
            if status.code == 1 && all { Ok(()) } else { Err(format!("{status:#?}")) }
        });
        for node in ["node1", "node2", "node3"] {
            let status = lab.node_status(node);
            assert_eq!(status["ready"], false, "{status:#}");
        }
    };
    let pool = "default-ipv4-ippool";
    let said = patch("ippool", pool, r#"{"ipipMode": "Never", "vxlanMode": "CrossSubnet"}"#);
    assert!(said.contains("spec.vxlanMode: is CrossSubnet, and there is no VXLAN in this version"), "{said}");
    named(&format!("IPPool({pool}): vxlanMode is CrossSubnet, and there is no VXLAN in this version"));
    let paths = lab.node_status("node1")["encap"]["paths"].clone();
    assert_eq!(paths.as_array().map(Vec::len), Some(1), "within the segment it is direct: {paths:#}");
    let ping = lab.ctl(&["ping"]).expect(1);
    let lost = failures(ping.last());
    assert_eq!(lost.len(), 2 * 4, "small and full, to the other segment and back: {lost:?}");
    assert!(lost.iter().all(|(from, to)| (from == "p3-1") != (to == "p3-1")), "{lost:?}");
    patch("ippool", pool, r#"{"ipipMode": "CrossSubnet", "vxlanMode": "Never"}"#);
    lab.wait_healthy(LIMIT);
    lab.ping_ok();

    let file = lab.dir().join("felix.yaml");
    let text = "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\n\
                spec: {wireguardEnabled: true}\n";
    std::fs::write(&file, text).expect("it can be written");
    let file = file.to_str().expect("the path is text");
    let said = ctl(&["apply", "-f", file, "--datastore", &store]).expect(0).stderr;
    assert!(said.contains("there is no WireGuard in this version"), "{said}");
    named("FelixConfiguration: wireguardEnabled is true, and there is no WireGuard in this version");
    lab.ping_ok();
    patch("felixconfig", "default", r#"{"wireguardEnabled": false}"#);
    lab.wait_healthy(LIMIT);
    lab.down();
}

#[test]
fn pods_of_a_dead_agent_are_reachable_and_the_next_agent_writes_no_route() {
    let (lab, _) = Lab::up("kill", &[]);
    lab.ctl(&["break", "kill", "node2"]).expect(0);
    lab.ping_ok();
    let status = lab.ctl(&["status"]).expect(1);
    let node2 = status.last()["nodes"][1].clone();
    assert_eq!(node2["node"], "node2");
    let problem = &node2["problems"][0];
    assert_eq!(problem["what"], "the agent was killed on purpose", "{node2:#}");
    assert_eq!(problem["next"], format!("brindlectl lab heal --name {}", lab.name()));
    // The peers have noticed by now, and still nothing is lost.
    lab.ping_ok();
    lab.ctl(&["heal"]).expect(0);
    lab.wait_healthy(Duration::from_secs(60));
    let node2 = lab.node_status("node2");
    assert_eq!(node2["routes"]["writes"], 0, "a restart with everything in place writes nothing: {node2:#}");
    lab.down();
}

#[test]
fn a_cut_link_loses_one_node_and_a_partition_one_segment() {
    let (lab, _) = Lab::up("cut", &[]);
    lab.ctl(&["break", "link", "node2"]).expect(0);
    let ping = lab.ctl(&["ping"]).expect(1);
    let lost = failures(ping.last());
    assert!(!lost.is_empty());
    for (from, to) in &lost {
        assert!(from.starts_with("p2-") != to.starts_with("p2-"), "{from} -> {to}");
    }
    lab.ctl(&["heal"]).expect(0);

    lab.ctl(&["break", "partition", "seg2"]).expect(0);
    let ping = lab.ctl(&["ping"]).expect(1);
    let lost = failures(ping.last());
    assert_eq!(lost.len(), 2 * 4 * 4 * 2, "small and full, both ways, four pods to four");
    let second = |pod: &str| pod.starts_with("p3-") || pod.starts_with("p4-");
    assert!(lost.iter().all(|(from, to)| second(from) != second(to)));
    lab.ctl(&["heal"]).expect(0);
    lab.ping_ok();
    lab.down();
}

#[test]
fn a_running_lab_grows() {
    let (lab, _) = Lab::up("grow", &["--nodes", "2", "--pods-per-node", "1"]);
    let add = lab.ctl(&["add", "node", "--pods", "2"]).expect(0);
    assert_eq!(add.last()["proof"]["pairs"], 4 * 3);
    let status = lab.ctl(&["status"]).expect(0);
    assert_eq!(status.last()["nodes"].as_array().map(Vec::len), Some(3));
    let twice = lab.ctl(&["add", "node", "node3"]).expect(2);
    assert!(twice.error().contains("\"node3\" is already there"), "{twice:#?}");
    lab.down();
}

#[test]
fn two_labs_live_side_by_side() {
    let (one, two) = std::thread::scope(|s| {
        let one = s.spawn(|| Lab::up("one", &["--nodes", "2"]).0);
        let two = s.spawn(|| Lab::up("two", &["--nodes", "2"]).0);
        (one.join().expect("the first lab comes up"), two.join().expect("the second lab comes up"))
    });
    one.ping_ok();
    two.ping_ok();
    one.down();
    two.ping_ok();
    two.down();
}

#[test]
fn names_that_are_prefixes_of_each_other_do_not_touch() {
    let (short, _) = Lab::up("p", &["--nodes", "1"]);
    let (long, _) = Lab::up("p-node1", &["--nodes", "1"]);
    short.down_only();
    long.ping_alive();
    long.down();
}

/// Parts of the test above that look at one lab while another with a longer name lives.
trait Neighbours {
    fn down_only(self);
    fn ping_alive(&self);
}

impl Neighbours for Lab {
    fn down_only(self) {
        // Not `down`: the other lab's names begin with ours.
        self.ctl(&["down"]).expect(0);
        assert!(!self.dir().exists());
        std::mem::forget(self);
    }

    fn ping_alive(&self) {
        self.ctl(&["status"]).expect(0);
        self.exec("p1-1", &["true"]);
    }
}

#[test]
fn down_is_idempotent_and_up_refuses_what_is_there() {
    let (lab, _) = Lab::up("idem", &["--nodes", "1"]);
    let again = lab.build(&["--nodes", "1"]).expect(2);
    assert!(again.error().contains("is there already"), "{again:#?}");
    assert!(again.error().contains(&format!("brindlectl lab down --name {}", lab.name())), "{again:#?}");
    let first = lab.ctl(&["down"]).expect(0);
    assert_eq!(first.last()["namespaces"], 2 + 1 + 2);
    let second = lab.ctl(&["down"]).expect(0);
    assert_eq!(second.last()["namespaces"], 0);
    lab.assert_gone();
    for args in [["status"].as_slice(), &["ping"], &["heal"], &["break", "kill", "node1"]] {
        let gone = lab.ctl(args).expect(2);
        assert!(gone.error().contains("there is no lab"), "{args:?}: {gone:#?}");
    }
}

#[test]
fn down_without_a_state_file_goes_by_names() {
    let (lab, _) = Lab::up("blind", &["--nodes", "2"]);
    std::fs::write(lab.dir().join("lab.json"), b"{ torn").expect("the state file can be overwritten");
    let status = lab.ctl(&["status"]).expect(2);
    assert!(status.error().contains("lab.json is not a lab's state"), "{status:#?}");
    lab.ctl(&["down"]).expect(0);
    lab.assert_gone();
    let (lab, _) = Lab::up("blind", &["--nodes", "2"]);
    // Out of sight; it cannot be removed while agents write into it.
    let aside = std::env::temp_dir().join(lab.name());
    std::process::Command::new("mv").arg(lab.dir()).arg(&aside).status().expect("mv runs");
    lab.ctl(&["down"]).expect(0);
    lab.assert_gone();
    std::fs::remove_dir_all(aside).expect("nobody writes there any more");
}

/// kill -9 of `lab up` when a stage begins and when it ends, for every stage; then `lab down`, and nothing is left.
#[test]
fn a_killed_up_leaves_nothing_after_down_at_every_stage() {
    let before = netns::root_snapshot();
    for event in ["begin", "stage"] {
        for stage in STAGES {
            let lab = Lab::named("die");
            let killed = kill_up(&lab, &[], |v| v["event"] == event && v["stage"] == stage);
            assert!(killed, "stage {stage} was never reached");
            lab.ctl(&["down"]).expect(0);
            lab.assert_gone();
        }
    }
    assert_eq!(netns::root_snapshot(), before, "the root namespace is as it was");
}

/// The same at arbitrary instants, between the lines.
#[test]
fn a_killed_up_leaves_nothing_after_down_at_any_instant() {
    for step in 0..12u64 {
        let lab = Lab::named("any");
        let mut running = {
            let mut up = brindle_integration::lab::command(&["lab", "up", "--name", lab.name()]);
            up.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            brindle_integration::process::Running::start(&mut up)
        };
        let start = std::time::Instant::now();
        // Not waiting for anything: the instant itself is what is tested.
        wait::until_true("the instant", Duration::from_secs(5), || {
            start.elapsed() >= Duration::from_millis(7 * step * step)
        });
        running.kill();
        lab.ctl(&["down"]).expect(0);
        lab.assert_gone();
    }
}
