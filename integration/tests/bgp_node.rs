//! BGP of whole agents, with the kernel under them: filters that look at the device of a route, and pods that peer with
//! their node. Needs root, and Debian's bird2 for the pod's speaker.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::Duration,
};

use brindle_config_core::{Key, Kind};
use brindle_integration::{
    bins::bin,
    cni::{CniNode, Container},
    process::Running,
    wait::until,
};
use brindle_kernel::netns::NetNs;
use serde_json::{Value, json};

/// On a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn put(node: &CniNode, kind: Kind, name: &str, spec: &Value) {
    let value = json!({"apiVersion": "projectcalico.org/v3", "kind": kind.as_str(), "metadata": {"name": name},
        "spec": spec});
    node.put_value(&Key::new(kind, None, name), &value);
}

/// What ip(8) says in a namespace.
fn ip(ns: &NetNs, args: &str) -> String {
    let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
    let out = ns.run(|| Command::new("ip").args(&args).output()).expect("alive").expect("ip is installed");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[track_caller]
fn until_says(ns: &NetNs, args: &str, text: &str, there: bool) {
    until(&format!("`ip {args}` says {text:?}: {there}"), LONG, || {
        let said = ip(ns, args);
        if said.contains(text) == there { Ok(()) } else { Err(said) }
    });
}

#[test]
fn rules_for_import_go_by_the_device_towards_the_next_hop() {
    let mut one = CniNode::without_agent("byif", "10.121.0.0/24");
    let mut two = one.neighbour("byif");
    put(&one, Kind::BgpConfiguration, "default", &json!({"nodeToNodeMeshEnabled": false}));
    let filter = |node: &CniNode, device: &str| {
        let rules = json!({"importV4": [{"interface": device, "action": "Accept"}, {"action": "Reject"}]});
        put(node, Kind::BgpFilter, "by-device", &rules);
    };
    filter(&one, "eth*");
    put(&one, Kind::BgpPeer, "all", &json!({"peerSelector": "all()", "filters": ["by-device"]}));
    for node in [&mut one, &mut two] {
        node.networking = "bgp";
        node.start_agent();
    }
    let (here, there) = (Container::new(), Container::new());
    let (a, b) = (one.add(&here), two.add(&there));
    let (a, b) = (a.address(), b.address());
    let net: ipnet::Ipv4Net = format!("{b}/26").parse().expect("an address");
    let route = format!("route show {}", net.trunc());
    let way = "via 192.0.2.2 dev eth0 proto 80";
    until_says(one.ns.ns(), &route, way, true);
    until("pods reach each other", LONG, || {
        if one.pings(&b) && two.pings(&a) { Ok(()) } else { Err(one.log()) }
    });

    // Another device, and back: the routes are judged again.
    filter(&one, "wire*");
    until_says(one.ns.ns(), &route, way, false);
    filter(&one, "eth0");
    until_says(one.ns.ns(), &route, way, true);
    assert!(one.pings(&b));
    assert!(one.del(&here).ok && two.del(&there).ok);
}

/// `brindle-bgpd replay` of a file, with more arguments.
fn replay(file: &Path, more: &[&str]) -> Result<String, String> {
    let out = Command::new(bin("brindle-bgpd")).arg("replay").arg(file).args(more).output();
    let out = out.expect("brindle-bgpd can be run");
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

#[test]
fn what_an_agent_recorded_ends_the_same_when_it_is_run_again() {
    let mut one = CniNode::without_agent("rec", "10.124.0.0/24");
    let mut two = one.neighbour("rec");
    let file = one.dir.join("bgp.jsonl");
    let record = file.display().to_string();
    for (node, more) in [(&mut one, &["--record", &record][..]), (&mut two, &[])] {
        node.networking = "bgp";
        node.start_agent_with(more);
    }
    let there = Container::new();
    let net: ipnet::Ipv4Net = format!("{}/26", two.add(&there).address()).parse().expect("an address");
    let block = net.trunc().to_string();
    let route = format!("route show {block}");
    until_says(one.ns.ns(), &route, "via 192.0.2.2 dev eth0", true);
    // An end without a goodbye, and a second run beside the first one's file.
    one.kill_agent();
    let first = replay(&file, &[]).expect("it can be run again");
    assert!(first.contains("n2: Established"), "{first}");
    let told = first.lines().find(|l| l.contains(&block)).unwrap_or_else(|| panic!("no {block}: {first}"));
    assert!(told.contains("192.0.2.2"), "{told}");
    assert_eq!(replay(&file, &[]).as_ref(), Ok(&first), "the same every time");
    let trace = replay(&file, &["--trace"]).expect("it can be run again");
    assert!(trace.lines().all(|l| serde_json::from_str::<Value>(l).is_ok()), "{trace}");
    let before = fs::read(&file).expect("it is there");
    one.start_agent_with(&["--record", &record]);
    until("the second run records beside it", LONG, || {
        let text = replay(&one.dir.join("bgp.jsonl.1"), &[])?;
        if text.contains("n2: Established") { Ok(()) } else { Err(text) }
    });
    one.kill_agent();
    assert_eq!(fs::read(&file).expect("it is there"), before, "the first one is kept as it was");
    let mode = fs::metadata(&file).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "its owner's alone");
    // A file that cannot be written is a mistake of who typed it.
    let mut agent = Command::new(bin("brindle-node"));
    agent.args(["run", "--node-name", "n1", "--ip", "192.0.2.1/24", "--record", "/proc/none/r"]);
    agent.args(["--datastore", &format!("sqlite:{}", one.dir.join("brindle.db").display())]);
    agent.arg("--state-dir").arg(&one.dir);
    let out = one.ns.ns().run(|| agent.output()).expect("alive").expect("it can be run");
    assert_eq!(out.status.code(), Some(2), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("--record: cannot write /proc/none/r"), "{out:?}");
}

#[test]
fn a_pod_peers_with_the_address_that_is_the_same_on_every_node() {
    const ADDRESS: &str = "169.254.1.2";
    let mut node = CniNode::without_agent("podbgp", "10.122.0.0/24");
    node.networking = "bgp";
    node.vars.push(("FELIX_DEFAULTENDPOINTTOHOSTACTION".into(), "ACCEPT".into()));
    let config = |node: &CniNode, address: &str| {
        put(node, Kind::BgpConfiguration, "default", &json!({"localWorkloadPeeringIPV4": address}));
    };
    config(&node, ADDRESS);
    let peer = json!({"localWorkloadSelector": "projectcalico.org/orchestrator == 'k8s'", "asNumber": 65010});
    put(&node, Kind::BgpPeer, "pods", &peer);
    node.start_agent();
    let pod = Container::new();
    let said = node.add(&pod);
    let device = said.json()["interfaces"][0]["name"].as_str().expect("a name").to_owned();
    let shown = format!("-4 address show dev {device}");
    until_says(node.ns.ns(), &shown, &format!("{ADDRESS}/32 scope link"), true);

    let conf = node.dir.join("bird.conf");
    let text = format!(
        "log stderr all;\nrouter id 10.122.0.200;\nprotocol device {{ }}
protocol static {{ ipv4; route 10.123.0.0/26 blackhole; }}
protocol bgp node {{ local as 65010; neighbor {ADDRESS} as 64512; multihop; connect delay time 1; connect retry time 1;
  error wait time 1, 2; ipv4 {{ import all; export where source = RTS_STATIC; }}; }}\n"
    );
    fs::write(&conf, text).expect("the configuration can be written");
    let socket = node.dir.join("bird.ctl");
    let mut bird = Command::new("bird");
    bird.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").arg("-f").arg("-c").arg(&conf).arg("-s").arg(&socket);
    let _bird = Running::start_in(pod.ns.ns(), &mut bird);
    let ask = |command: &str| {
        let mut birdc = Command::new("birdc");
        birdc.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").arg("-s").arg(&socket).args(command.split(' '));
        birdc.output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
    };
    until("the pod's session is up", LONG, || {
        let said = ask("show protocols node");
        if said.contains("Established") { Ok(()) } else { Err(format!("{said}\n{}", node.log())) }
    });
    // What the pod announces is routed to it.
    until_says(node.ns.ns(), "route show 10.123.0.0/26", &format!("via {}", said.address()), true);

    // Another address takes the first one's place, and the pod keeps its route.
    config(&node, "169.254.1.3");
    until_says(node.ns.ns(), &shown, "169.254.1.3/32", true);
    until_says(node.ns.ns(), &shown, ADDRESS, false);
    until("the pod is reached", LONG, || if node.pings(&said.address()) { Ok(()) } else { Err(node.log()) });
    let checked = node.check(&pod, &said);
    assert!(checked.ok, "{checked:?}");
    // None any more.
    node.remove(&Key::new(Kind::BgpPeer, None, "pods"));
    until_says(node.ns.ns(), &shown, "inet ", false);
    until("the pod is reached", LONG, || if node.pings(&said.address()) { Ok(()) } else { Err(node.log()) });
    assert!(node.del(&pod).ok);
}

/// The defect is put in: who announces 203.0.113.0/24 makes the agent's speaker panic in its tables.
#[test]
fn routes_stay_in_the_kernel_when_a_defect_of_the_speaker_begins_its_tables_anew() {
    const ADDRESS: &str = "169.254.1.2";
    let mut one = CniNode::without_agent("defect", "10.125.0.0/24");
    let mut two = one.neighbour("defect");
    put(&one, Kind::BgpConfiguration, "default", &json!({"localWorkloadPeeringIPV4": ADDRESS}));
    let peer = json!({"node": "n1", "localWorkloadSelector": "projectcalico.org/orchestrator == 'k8s'",
        "asNumber": 65010});
    put(&one, Kind::BgpPeer, "pods", &peer);
    one.vars.push(("FELIX_DEFAULTENDPOINTTOHOSTACTION".into(), "ACCEPT".into()));
    one.vars.push(("BRINDLE_FAILPOINT".into(), "bgp.tables".into()));
    for node in [&mut one, &mut two] {
        node.networking = "bgp";
        node.start_agent();
    }
    let (pod, there) = (Container::new(), Container::new());
    one.add(&pod);
    let far = two.add(&there).address();
    let net: ipnet::Ipv4Net = format!("{far}/26").parse().expect("an address");
    let block = net.trunc().to_string();
    let route = format!("route show {block}");
    until_says(one.ns.ns(), &route, "via 192.0.2.2 dev eth0", true);
    let conf = one.dir.join("bird.conf");
    let text = format!(
        "log stderr all;\nrouter id 10.125.0.200;\nprotocol device {{ }}
protocol static good {{ ipv4; route 10.126.0.0/26 blackhole; }}
protocol static bad {{ disabled; ipv4; route 203.0.113.0/24 blackhole; }}
protocol bgp node {{ local as 65010; neighbor {ADDRESS} as 64512; multihop; connect delay time 1; connect retry time 1;
  error wait time 1, 2; ipv4 {{ import all; export where source = RTS_STATIC; }}; }}\n"
    );
    fs::write(&conf, text).expect("the configuration can be written");
    let socket = one.dir.join("bird.ctl");
    let program = |name: &str| {
        let mut command = Command::new(name);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").arg("-s").arg(&socket);
        command
    };
    let _bird = Running::start_in(pod.ns.ns(), program("bird").arg("-f").arg("-c").arg(&conf));
    until_says(one.ns.ns(), "route show 10.126.0.0/26", "via", true);

    let seen = one.dir.join("monitor");
    let out = fs::File::create(&seen).expect("a file can be made");
    let _monitor = Running::start_in(one.ns.ns(), Command::new("ip").args(["monitor", "route"]).stdout(out));
    let told = program("birdc").args(["enable", "bad"]).output().expect("birdc can be run");
    assert!(told.status.success(), "{told:?}");
    let log = || fs::read_to_string(one.dir.join("agent.log")).unwrap_or_default();
    until("the defect is met", LONG, || {
        let log = log();
        let met = log.contains("met by this session") && log.contains("all sessions start again");
        if met { Ok(()) } else { Err(one.log()) }
    });
    // Everything is there again: what the pod had announced is swept, and that alone.
    until_says(one.ns.ns(), "route show 10.126.0.0/26", "via", false);
    assert!(ip(one.ns.ns(), &route).contains("via 192.0.2.2 dev eth0"));
    let seen = until("the monitor sees it", LONG, || {
        let seen = fs::read_to_string(&seen).map_err(|e| e.to_string())?;
        if seen.contains("Deleted 10.126.0.0/26") { Ok(seen) } else { Err(seen) }
    });
    assert!(!seen.contains(&format!("Deleted {block}")), "{seen}");
    assert!(one.pings(&far), "{}", one.log());
    assert!(one.del(&pod).ok && two.del(&there).ok);
}

/// `brindle-node probe --ready`: whether it is, and what it says.
fn ready(node: &CniNode) -> (bool, String) {
    let mut command = Command::new(bin("brindle-node"));
    let out = command.args(["probe", "--ready", "--state-dir"]).arg(&node.dir).output();
    let out = out.expect("brindle-node can be run");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), text)
}

#[test]
fn an_agent_whose_port_another_daemon_has_is_not_ready_and_says_what_to_look_for() {
    let mut node = CniNode::without_agent("port", "10.126.0.0/24");
    let held = node.ns.ns().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 179)));
    let held = held.expect("the namespace is alive").expect("nobody has the port");
    node.networking = "bgp";
    node.start_agent();
    let wanted = "bgp: cannot listen on 0.0.0.0:179";
    until("the port is named", LONG, || match ready(&node) {
        (false, text) if text.contains(wanted) && text.contains("ss -ltnp sport = :179") => Ok(()),
        (_, text) => Err(text),
    });
    drop(held);
    until("it has the port", LONG, || match ready(&node) {
        (true, _) => Ok(()),
        (false, text) => Err(text),
    });
}
