//! Reference plugins at work behind ours in a list, as a runtime calls them: a port of the node that leads to the pod, a
//! limit on what it may send and receive, a setting of its kernel. Real packets; needs root, Debian's
//! containernetworking-plugins, and a kernel with sch_tbf and ifb.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use brindle_integration::{
    bins,
    cni::{CniNode, Container, Said, sh},
    netns::TestNs,
    wait::until_true,
};
use brindle_kernel::netns::NetNs;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);
const GREETING: &[u8] = b"hello from the pod";

/// What a command says in a namespace.
fn tell(ns: &NetNs, line: &str) -> String {
    let out = ns.run(|| Command::new("sh").args(["-c", line]).output());
    let out = out.expect("the namespace is alive").expect("there is a shell");
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// The list, each with what the runtime adds for its capabilities.
fn list(node: &CniNode) -> Vec<Value> {
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let ours = node.conf();
    let chained = |kind: &str, more: Value| {
        let mut conf = json!({"cniVersion": ours["cniVersion"], "name": ours["name"], "type": kind});
        let members = more.as_object().expect("an object").clone();
        conf.as_object_mut().expect("an object").extend(members);
        conf
    };
    vec![
        ours.clone(),
        chained("portmap", json!({"snat": true, "runtimeConfig": {"portMappings": ports}})),
        chained(
            "bandwidth",
            json!({"runtimeConfig": {"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000,
                "egressRate": 4_000_000, "egressBurst": 400_000}}}),
        ),
        chained(
            "tuning",
            json!({"sysctl": {"net.core.somaxconn": "512", "net.ipv4.conf.all.arp_notify": "1"}}),
        ),
    ]
}

fn program(conf: &Value) -> PathBuf {
    match conf["type"].as_str() {
        Some("brindle") => bins::bin("brindle"),
        Some(kind) => {
            let path = Path::new("/usr/lib/cni").join(kind);
            assert!(path.exists(), "{kind} is missing: apt-get install containernetworking-plugins");
            path
        }
        None => panic!("no type: {conf}"),
    }
}

fn call(node: &CniNode, verb: &str, c: &Container, conf: &Value, before: Option<&Value>) -> Said {
    let mut conf = conf.clone();
    if let Some(before) = before {
        conf["prevResult"] = before.clone();
    }
    node.run(&mut node.command(&program(&conf), verb, &c.id, &c.netns()), &conf)
}

/// Says hello to whoever connects to the pod's port 80, for as long as the pod's namespace is there.
fn serve(c: &Container) {
    let listener =
        c.ns.ns().run(|| TcpListener::bind("0.0.0.0:80")).expect("it is alive").expect("port 80 is free");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(GREETING);
        }
    });
}

fn greeted(from: &NetNs, address: &str) -> bool {
    let ask = || -> std::io::Result<Vec<u8>> {
        let address = address.parse().expect("an address with its port");
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut said = Vec::new();
        stream.read_to_end(&mut said)?;
        Ok(said)
    };
    from.run(ask).expect("the namespace is alive").is_ok_and(|said| said == GREETING)
}

#[test]
fn portmap_bandwidth_and_tuning_do_their_work_behind_our_plugin() {
    let probe = TestNs::new("probe");
    let said = tell(
        probe.ns(),
        "ip link add v0 type veth peer name v1 && tc qdisc add dev v0 root tbf rate 1mbit burst 10k latency 25ms && \
         ip link add i0 type ifb && echo possible",
    );
    assert!(
        said.contains("possible"),
        "THIS KERNEL LACKS sch_tbf OR ifb, so bandwidth cannot be tried: {said}"
    );

    let node = CniNode::new("chainw", "10.157.0.0/24");
    let outside = TestNs::new("chainout");
    let wire = format!(
        "ip link add wireo type veth peer name toward netns {} && ip link set wireo master eth0 up",
        outside.name()
    );
    sh(node.ns.ns(), &wire);
    sh(
        outside.ns(),
        "ip link set toward up && ip addr add 192.0.2.9/24 dev toward && ip route add default via 192.0.2.1",
    );

    let c = Container::new();
    let confs = list(&node);
    let mut results: Vec<Value> = Vec::new();
    for conf in &confs {
        let said = call(&node, "ADD", &c, conf, results.last());
        assert!(said.ok, "{}: {said:?}", conf["type"]);
        results.push(said.json());
    }
    let (first, last) = (&results[0], &results[results.len() - 1]);
    assert_eq!(last["ips"], first["ips"], "what follows keeps our addresses");
    let address = first["ips"][0]["address"].as_str().unwrap().trim_end_matches("/32").to_owned();
    let host = first["interfaces"][0]["name"].as_str().unwrap().to_owned();

    serve(&c);
    until_true("the pod is reached at its own address", LONG, || {
        greeted(outside.ns(), &format!("{address}:80"))
    });
    until_true("the node's port leads to the pod", LONG, || greeted(outside.ns(), "192.0.2.1:8080"));
    assert!(greeted(node.ns.ns(), "192.0.2.1:8080"), "from the node itself, too");
    assert!(!greeted(outside.ns(), "192.0.2.1:8081"), "and no other port");

    let qdiscs = || tell(node.ns.ns(), "tc qdisc show");
    let limited = |rate: &str| qdiscs().lines().any(|l| l.contains("tbf") && l.contains(rate));
    assert!(limited("rate 8Mbit") && limited("rate 4Mbit"), "{}", qdiscs());
    let tbf = qdiscs().lines().any(|l| l.contains("tbf") && l.contains(&format!("dev {host} ")));
    assert!(tbf, "on the host end {host}: {}", qdiscs());
    let settings = tell(c.ns.ns(), "sysctl -n net.core.somaxconn net.ipv4.conf.all.arp_notify");
    assert_eq!(settings.split_whitespace().collect::<Vec<_>>(), ["512", "1"]);

    // CHECK of the whole list, with the result of its end; but for portmap, which in Debian's version looks for the ports of a
    // pod without IPv6 among the rules of IPv6, too, and never finds them.
    for conf in confs.iter().filter(|c| c["type"] != "portmap") {
        let said = call(&node, "CHECK", &c, conf, Some(last));
        assert!(said.ok, "{}: {said:?}", conf["type"]);
    }
    // The agent writes its rules anew beside those of portmap.
    let other = Container::new();
    assert!(node.add(&other).ok);
    assert!(greeted(outside.ns(), "192.0.2.1:8080"));
    assert!(node.del(&other).ok);

    for _ in 0..2 {
        for conf in confs.iter().rev() {
            let said = call(&node, "DEL", &c, conf, Some(last));
            assert!(said.ok, "{}: {said:?}", conf["type"]);
        }
    }
    assert!(!greeted(outside.ns(), "192.0.2.1:8080"));
    let left =
        tell(node.ns.ns(), "iptables-save -t nat; iptables-nft-save -t nat; iptables-legacy-save -t nat");
    assert!(!left.contains(&address) && !left.contains("dport 8080"), "{left}");
    assert!(!qdiscs().contains("tbf"), "{}", qdiscs());
    node.settled(&[]);
}
