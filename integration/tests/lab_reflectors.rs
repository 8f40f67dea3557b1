//! From a full mesh to route reflectors and back while pods talk: nothing may be lost, and it is counted. Three nodes of a
//! lab, and two reflectors that are `brindle-bgpd` and know the cluster from the datastore alone.

use std::{
    net::IpAddr,
    process::{Command, Stdio},
    time::Duration,
};

use brindle_integration::{
    bins::bin,
    lab::{Lab, ctl},
    meter::Meter,
    netns::TestNs,
    process::Running,
    wait,
};
use brindle_kernel::netns::NetNs;

const LIMIT: Duration = Duration::from_secs(90);

/// A reflector on the lab's first segment: namespace and process.
struct Reflector {
    _process: Running,
    _ns: TestNs,
}

fn ip(args: &str) {
    let done = Command::new("ip").args(args.split(' ')).status().expect("ip(8) is installed");
    assert!(done.success(), "ip {args}");
}

impl Reflector {
    fn start(lab: &Lab, n: u8) -> Self {
        let ns = TestNs::new(&format!("rr{n}"));
        let (fabric, name) = (format!("{}-fabric", lab.name()), ns.name().to_owned());
        ip(&format!("-n {fabric} link add rr{n} type veth peer name eth0 netns {name}"));
        ip(&format!("-n {fabric} link set rr{n} master br1 up"));
        ip(&format!("-n {name} address add 10.77.1.{}/24 dev eth0", 100 + n));
        ip(&format!("-n {name} link set eth0 up"));
        let socket = lab.dir().join(format!("rr{n}.sock"));
        let log = std::fs::File::create(lab.dir().join(format!("rr{n}.log"))).expect("the lab has a folder");
        let mut command = Command::new(bin("brindle-bgpd"));
        command.args(["--datastore", &lab.store_url(), "--node", &format!("rr{n}"), "--admin-socket"]);
        command
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        Self { _process: Running::start_in(ns.ns(), &mut command), _ns: ns }
    }
}

fn apply(lab: &Lab, text: &str) {
    let file = std::env::temp_dir().join(format!("{}.yaml", lab.name()));
    std::fs::write(&file, text).expect("the temporary folder is writable");
    ctl(&["apply", "--lab", lab.name(), "-f", file.to_str().expect("text")]).expect(0);
    std::fs::remove_file(&file).expect("it was written above");
}

fn mesh(lab: &Lab, on: bool) {
    apply(
        lab,
        &format!(
            "apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {{name: default}}
spec: {{nodeToNodeMeshEnabled: {on}, asNumber: 64512}}
"
        ),
    );
}

fn pod_address(lab: &Lab, pod: &str) -> IpAddr {
    let text = lab.exec(pod, &["ip", "-4", "-o", "address", "show", "eth0"]);
    let word = text.split_whitespace().nth(3).expect("an address");
    word.split('/').next().and_then(|a| a.parse().ok()).unwrap_or_else(|| panic!("{text}"))
}

/// Traffic between the pods of all three nodes, counted.
fn metered(lab: &Lab) -> Meter {
    let names = ["p1-1", "p2-1", "p3-1"];
    let spaces: Vec<NetNs> = names.iter().map(|p| lab.ns(p)).collect();
    let addresses: Vec<IpAddr> = names.iter().map(|p| pod_address(lab, p)).collect();
    let places: Vec<(&str, &NetNs, IpAddr)> =
        names.iter().zip(&spaces).zip(&addresses).map(|((n, s), a)| (*n, s, *a)).collect();
    Meter::start(&places)
}

/// What the traffic came to: nothing was lost.
fn nothing_lost(meter: Meter) {
    let counts = meter.stop();
    assert!(counts.len() == 6 && counts.iter().all(|c| c.sent > 500), "{counts:#?}");
    assert!(counts.iter().all(|c| c.lost == 0), "{counts:#?}");
}

/// Waits until every node has exactly these sessions, all established.
fn sessions(lab: &Lab, what: &str, wanted: &[&str]) {
    for node in ["node1", "node2", "node3"] {
        wait::until(&format!("{node} has {what}"), LIMIT, || {
            let status = lab.node_status(node);
            let peers = status["bgp"]["peers"].as_array().cloned().unwrap_or_default();
            let up = |a: &str| peers.iter().any(|p| p["address"] == a && p["state"] == "Established");
            let own = format!("10.77.1.{}", node.trim_start_matches("node"));
            let wanted: Vec<&&str> = wanted.iter().filter(|a| ***a != own).collect();
            if peers.len() == wanted.len() && wanted.iter().all(|a| up(a)) {
                Ok(())
            } else {
                Err(format!("{peers:#?}"))
            }
        });
    }
}

const NODES: [&str; 3] = ["10.77.1.1", "10.77.1.2", "10.77.1.3"];
const REFLECTORS: [&str; 2] = ["10.77.1.101", "10.77.1.102"];

#[test]
fn from_the_mesh_to_reflectors_and_back_without_a_lost_packet() {
    let (lab, _) = Lab::up("rr", &["--nodes", "3", "--segments", "1", "--pods-per-node", "1"]);
    sessions(&lab, "a full mesh", &NODES);
    let meter = metered(&lab);

    // The reflectors join: nodes of the cluster with a label and a cluster id each.
    for n in [1, 2] {
        apply(
            &lab,
            &format!(
                "apiVersion: projectcalico.org/v3
kind: Node
metadata: {{name: rr{n}, labels: {{reflector: \"true\"}}}}
spec: {{bgp: {{ipv4Address: 10.77.1.{}/24, routeReflectorClusterID: 244.0.0.{n}}}}}
",
                100 + n
            ),
        );
    }
    let reflectors = [Reflector::start(&lab, 1), Reflector::start(&lab, 2)];

    // All at once, as an operator would do it.
    let peer = |name: &str, from: &str| {
        format!(
            "apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {{name: {name}}}
spec: {{nodeSelector: \"{from}\", peerSelector: \"has(reflector)\"}}
"
        )
    };
    apply(
        &lab,
        &format!("{}---\n{}", peer("to-reflectors", "!has(reflector)"), peer("between", "has(reflector)")),
    );
    mesh(&lab, false);
    sessions(&lab, "nothing but the reflectors", &REFLECTORS);
    lab.ping_ok();

    // And back: the mesh first, then the reflectors go.
    mesh(&lab, true);
    sessions(&lab, "the mesh and the reflectors", &[&NODES[..], &REFLECTORS].concat());
    for name in ["to-reflectors", "between"] {
        ctl(&["delete", "--lab", lab.name(), "BGPPeer", name]).expect(0);
    }
    for n in [1, 2] {
        ctl(&["delete", "--lab", lab.name(), "Node", &format!("rr{n}")]).expect(0);
    }
    sessions(&lab, "a full mesh again", &NODES);
    lab.ping_ok();

    nothing_lost(meter);
    drop(reflectors);
    lab.down();
}

/// The reflectors of `deploy/`: in the network of two of the nodes, beside the agents, at another port.
#[test]
fn reflectors_at_the_addresses_of_nodes_take_over_from_the_mesh_without_a_lost_packet() {
    let (lab, _) = Lab::up("rrh", &["--nodes", "3", "--segments", "1", "--pods-per-node", "1"]);
    sessions(&lab, "a full mesh", &NODES);
    let meter = metered(&lab);

    let recipe =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/reflectors/config.yaml"));
    let recipe: serde_json::Value = serde_saphyr::from_str(&recipe.expect("it is shipped")).expect("YAML");
    // The Secret, where the pods and the agents have it mounted.
    let key = lab.dir().join("reflectors");
    std::fs::write(&key, "a password of the cluster").expect("the lab has a folder");
    for node in ["node1", "node2", "node3"] {
        let mounted = lab.dir().join("nodes").join(node).join("secrets/bgp-secrets");
        std::fs::create_dir_all(&mounted).expect("the node has a folder");
        std::fs::copy(&key, mounted.join("reflectors")).expect("it can be written");
    }
    let mut reflectors = Vec::new();
    for n in [1, 2] {
        let socket = lab.dir().join(format!("rr{n}.sock"));
        let text = recipe["data"]["brindle-bgpd.yaml"].as_str().expect("the file");
        let text = text.replace("/run/brindle/bgpd.sock", socket.to_str().expect("text"));
        let text = text.replace("/etc/brindle-secret/reflectors", key.to_str().expect("text"));
        let file = lab.dir().join(format!("rr{n}.yaml"));
        std::fs::write(&file, text).expect("the lab has a folder");
        let log = std::fs::File::create(lab.dir().join(format!("rr{n}.log"))).expect("the lab has a folder");
        let mut command = Command::new(bin("brindle-bgpd"));
        command.arg("--config").arg(file).args(["--router-id", &format!("hash:rr-node{n}")]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        reflectors.push(Running::start_in(&lab.ns(&format!("node{n}")), &mut command));
    }
    let peer = |n: u8| {
        format!(
            "apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {{name: rr-node{n}}}
spec:
  peerIP: '10.77.1.{n}:1790'
  asNumber: 64512
  password: {{secretKeyRef: {{name: bgp-secrets, key: reflectors}}}}
"
        )
    };
    apply(&lab, &format!("{}---\n{}", peer(1), peer(2)));
    let both = |lab: &Lab, node: &str| {
        let status = lab.node_status(node);
        let peers = status["bgp"]["peers"].as_array().cloned().unwrap_or_default();
        let up = |p: &&serde_json::Value| p["state"] == "Established";
        (
            peers.len(),
            peers.iter().filter(up).filter(|p| p["kind"] == "global").count(),
            format!("{peers:#?}"),
        )
    };
    for (node, all) in [("node1", 4), ("node2", 4), ("node3", 4)] {
        wait::until(&format!("{node} has the mesh and both reflectors"), LIMIT, || match both(&lab, node) {
            (n, 2, _) if n == all => Ok(()),
            (_, _, peers) => Err(peers),
        });
    }
    mesh(&lab, false);
    for node in ["node1", "node2", "node3"] {
        wait::until(&format!("{node} has both reflectors alone"), LIMIT, || match both(&lab, node) {
            (2, 2, _) => Ok(()),
            (_, _, peers) => Err(peers),
        });
    }
    lab.ping_ok();
    nothing_lost(meter);
    drop(reflectors);
    lab.down();
}
