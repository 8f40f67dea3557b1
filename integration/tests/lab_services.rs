//! Services between real agents and an FRR router as top-of-rack switch: the router sees exactly the nodes that have a
//! ready endpoint, no kernel has a route of ours for a service, and what kube-proxy does goes on beside policy. Needs
//! root.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    time::Duration,
};

use brindle_integration::{
    lab::{Lab, ctl},
    wait,
};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(90);
/// A withdrawal is promised within a second. On a busy machine nobody can hold it to that, but this is no timer's doing any
/// more.
const WITHDRAWN: Duration = Duration::from_secs(10);

const NODES: [&str; 3] = ["node1", "node2", "node3"];

fn file(tag: &str, text: &str) -> PathBuf {
    let file = std::env::temp_dir().join(format!("bt-{}-{tag}.yaml", std::process::id()));
    std::fs::write(&file, text).expect("the temporary folder is writable");
    file
}

/// Three nodes of one segment, each with one pod, and an FRR router.
fn lab(tag: &str) -> Lab {
    let nodes: String = NODES.iter().map(|n| format!("- {{name: {n}, segment: seg1, pods: 1}}\n")).collect();
    let text = format!(
        "pool: {{ipipMode: Never}}\nrouter: {{kind: frr}}\nsegments: [{{name: seg1}}]\nnodes:\n{nodes}"
    );
    let topology = file(tag, &text);
    let (lab, _) = Lab::up(tag, &["--topology", topology.to_str().expect("text")]);
    std::fs::remove_file(topology).expect("it was written above");
    lab
}

fn apply(lab: &Lab, resources: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": resources});
    let text = file(lab.name(), &list.to_string());
    ctl(&["apply", "--lab", lab.name(), "-f", text.to_str().expect("text")]).expect(0);
    std::fs::remove_file(text).expect("it was written above");
}

fn configuration() -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": "BGPConfiguration", "metadata": {"name": "default"},
        "spec": {"asNumber": 64512, "nodeToNodeMeshEnabled": true,
            "serviceClusterIPs": [{"cidr": "10.96.0.0/16"}],
            "serviceLoadBalancerIPs": [{"cidr": "198.51.100.0/24"}],
            "communities": [{"name": "services", "value": "64512:80"}],
            "prefixAdvertisements": [{"cidr": "198.51.100.0/24", "communities": ["services"]}]}})
}

fn service(external: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "externalTrafficPolicy": external, "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}]}}})
}

/// `ready`: of the endpoint on each node, in order.
fn slice(ready: [bool; 3]) -> Value {
    let endpoints: Vec<Value> = NODES
        .iter()
        .zip(ready)
        .enumerate()
        .map(|(i, (node, ready))| {
            json!({"addresses": [format!("192.168.{i}.9")], "nodeName": node,
                "conditions": {"ready": ready, "serving": ready, "terminating": false}})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "spec": {},
        "metadata": {"name": "web-abcde", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": endpoints, "ports": [{"name": "http", "protocol": "TCP", "port": 8080}]})
}

/// Next hops of a prefix in the router's kernel, sorted.
fn at_router(lab: &Lab, prefix: &str) -> Vec<String> {
    let text = lab.exec("router", &["ip", "-j", "route", "show", prefix]);
    let routes: Value = serde_json::from_str(&text).unwrap_or_default();
    let of = |hop: &Value| hop["gateway"].as_str().map(str::to_owned);
    let one = routes[0].get("nexthops").map_or_else(
        || of(&routes[0]).into_iter().collect(),
        |hops| hops.as_array().into_iter().flatten().filter_map(of).collect::<Vec<_>>(),
    );
    let mut all: Vec<String> = one;
    all.sort();
    all
}

/// The address of each node.
fn addresses(lab: &Lab) -> [String; 3] {
    NODES.map(|n| {
        let text = lab.exec(n, &["sh", "-c", "ip -4 -o addr show dev eth0 | awk '{print $4}'"]);
        text.split('/').next().unwrap_or_default().to_owned()
    })
}

fn router_has(lab: &Lab, prefix: &str, hops: &[&String]) {
    router_has_within(LONG, lab, prefix, hops);
}

fn router_has_within(limit: Duration, lab: &Lab, prefix: &str, hops: &[&String]) {
    wait::until(&format!("the router has {prefix} from {hops:?}"), limit, || {
        let now = at_router(lab, prefix);
        if now.iter().collect::<Vec<_>>() == hops { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

#[test]
fn the_router_sees_exactly_the_nodes_with_a_ready_endpoint() {
    let lab = lab("svc");
    let at = addresses(&lab);
    apply(&lab, &[configuration(), service("Local"), slice([true, true, false])]);
    router_has(&lab, "10.96.0.0/16", &[&at[0], &at[1], &at[2]]);
    router_has(&lab, "198.51.100.0/24", &[&at[0], &at[1], &at[2]]);
    for address in ["198.51.100.7", "10.96.0.7"] {
        router_has(&lab, address, &[&at[0], &at[1]]);
    }

    // No kernel of a node has a route for it: neither of its own, which would swallow what kube-proxy forwards, nor
    // those of the others.
    for node in NODES {
        let routes = lab.exec(node, &["ip", "route", "show", "table", "all"]);
        assert!(!routes.contains("10.96.") && !routes.contains("198.51."), "{node}: {routes}");
    }

    // The reasons.
    let services = wait::until("node3 knows the service", LONG, || {
        let s = ctl(&["bgp", "--lab", lab.name(), "--node", "node3", "services"]).expect(0);
        let why = "traffic policy Local; no ready endpoint on this node, other nodes have some";
        if s.lines.iter().any(|l| l["why"] == why) { Ok(s) } else { Err(format!("{s:#?}")) }
    });
    let line = |prefix: &str| {
        let found = services.lines.iter().find(|l| l["prefix"] == prefix);
        found.unwrap_or_else(|| panic!("{prefix}: {services:#?}")).clone()
    };
    assert_eq!(line("10.96.0.0/16")["announced"], true);
    assert_eq!(line("198.51.100.7/32")["announced"], false);
    assert_eq!(
        line("198.51.100.7/32")["why"],
        "traffic policy Local; no ready endpoint on this node, other nodes have some"
    );
    assert_eq!(line("198.51.100.7/32")["service"], "shop/web");
    let explained =
        ctl(&["bgp", "--lab", lab.name(), "--node", "node3", "explain", "198.51.100.7/32"]).expect(0);
    let findings = explained.last()["findings"].as_array().expect("findings").clone();
    let of = |topic: &str| findings.iter().find(|f| f["topic"] == topic).cloned().unwrap_or_default();
    assert_eq!(of("service")["yes"], false, "{findings:#?}");
    assert_eq!(of("installed")["yes"], false, "{findings:#?}");
    assert!(of("installed")["why"].as_str().is_some_and(|w| w.contains("kube-proxy")), "{findings:#?}");
    let told = lab.exec(
        "router",
        &["vtysh", "--vty_socket", &router_dir(&lab), "-c", "show bgp ipv4 unicast 198.51.100.7/32"],
    );
    assert!(told.contains("64512:80"), "the community of prefixAdvertisements: {told}");

    // The last endpoint of a node goes.
    apply(&lab, &[slice([false, true, false])]);
    router_has_within(WITHDRAWN, &lab, "198.51.100.7", &[&at[1]]);
    apply(&lab, &[slice([false, false, false])]);
    router_has_within(WITHDRAWN, &lab, "198.51.100.7", &[]);
    router_has(&lab, "10.96.0.7", &[]);

    // An agent that starts again with the service unchanged never withdraws it.
    apply(&lab, &[slice([true, false, true])]);
    router_has(&lab, "198.51.100.7", &[&at[0], &at[2]]);
    lab.ctl(&["break", "kill", "node1"]).expect(0);
    lab.ctl(&["heal"]).expect(0);
    lab.wait_healthy(LONG);
    router_has(&lab, "198.51.100.7", &[&at[0], &at[2]]);

    // Without ranges nothing is announced.
    let mut plain = configuration();
    plain["spec"] = json!({"asNumber": 64512, "nodeToNodeMeshEnabled": true});
    apply(&lab, &[plain]);
    for prefix in ["198.51.100.7", "10.96.0.7", "10.96.0.0/16", "198.51.100.0/24"] {
        router_has(&lab, prefix, &[]);
    }
    lab.down();
}

/// Where FRR's sockets are.
fn router_dir(lab: &Lab) -> String {
    lab.dir().join("nodes/router").display().to_string()
}

/// Answers every connection with the address it came from.
fn serve(lab: &Lab, pod: &str, port: u16) {
    let at = SocketAddr::from(([0, 0, 0, 0], port));
    let listener = lab.ns(pod).run(|| TcpListener::bind(at)).expect("the namespace").expect("a free port");
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            let from = connection.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
            let _ = connection.write_all(from.as_bytes());
        }
    });
}

/// What the server at `to` answers to somebody in this place; an error when nobody answers.
fn ask(lab: &Lab, place: &str, to: &str) -> Result<String, String> {
    let to: SocketAddr = to.parse().expect("an address");
    lab.ns(place)
        .run(|| {
            let mut c = TcpStream::connect_timeout(&to, Duration::from_secs(2)).map_err(|e| e.to_string())?;
            c.set_read_timeout(Some(Duration::from_secs(2))).map_err(|e| e.to_string())?;
            let mut text = String::new();
            c.read_to_string(&mut text).map_err(|e| e.to_string())?;
            Ok(text)
        })
        .expect("the namespace")
}

/// The rules kube-proxy in iptables mode would write for the service with one endpoint, with its two marks.
fn kube_proxy(pod: &str, node: &str) -> String {
    format!(
        "set -e
iptables -t nat -N KUBE-MARK-MASQ
iptables -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
iptables -t nat -N KUBE-POSTROUTING
iptables -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
iptables -t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
iptables -t nat -A KUBE-POSTROUTING -j MASQUERADE
iptables -t nat -A POSTROUTING -j KUBE-POSTROUTING
iptables -t nat -N KUBE-SEP
iptables -t nat -A KUBE-SEP -p tcp -j DNAT --to-destination {pod}:8080
iptables -t nat -N KUBE-NODEPORTS
iptables -t nat -A KUBE-NODEPORTS -p tcp --dport 30080 -j KUBE-MARK-MASQ
iptables -t nat -A KUBE-NODEPORTS -p tcp --dport 30080 -j KUBE-SEP
iptables -t nat -N KUBE-SERVICES
iptables -t nat -A KUBE-SERVICES -d 10.96.0.7/32 -p tcp --dport 80 -j KUBE-SEP
iptables -t nat -A KUBE-SERVICES -d {node}/32 -j KUBE-NODEPORTS
iptables -t nat -A PREROUTING -j KUBE-SERVICES
iptables -t nat -A OUTPUT -j KUBE-SERVICES
iptables -N KUBE-FIREWALL
iptables -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
iptables -A INPUT -j KUBE-FIREWALL
iptables -A OUTPUT -j KUBE-FIREWALL
iptables -N KUBE-FORWARD
iptables -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
iptables -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A FORWARD -j KUBE-FORWARD
"
    )
}

#[test]
fn what_kube_proxy_translates_passes_policy_and_keeps_its_marks() {
    let lab = lab("kp");
    let [node1, ..] = addresses(&lab);
    let address = |pod: &str| {
        let text = lab.exec(pod, &["sh", "-c", "ip -4 -o addr show dev eth0 | awk '{print $4}'"]);
        text.split('/').next().unwrap_or_default().to_owned()
    };
    let (client, server) = (address("p1-1"), address("p2-1"));
    serve(&lab, "p2-1", 8080);
    lab.exec("node1", &["bash", "-c", &kube_proxy(&server, &node1)]);
    let from_pod = || ask(&lab, "p1-1", "10.96.0.7:80");
    let from_outside = || ask(&lab, "router", &format!("{node1}:30080"));
    assert_eq!(from_pod().as_deref(), Ok(&*client), "a pod's address is kept");
    assert_eq!(from_outside().as_deref(), Ok(&*node1), "SNAT of a NodePort");

    // Only what the policy names: the client pod, and the node for what it hands on from outside.
    let policy = |sources: &[&str]| {
        json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "metadata": {"name": "web"},
            "spec": {"selector": "all()", "types": ["Ingress"], "ingress": [{"action": "Allow", "protocol": "TCP",
                "source": {"nets": sources}, "destination": {"ports": [8080]}}]}})
    };
    let net = |ip: &str| format!("{ip}/32");
    apply(&lab, &[configuration(), service("Cluster"), policy(&[&net(&client), &net(&node1)])]);
    wait::until_true("policy is in force", LONG, || ask(&lab, "p3-1", &format!("{server}:8080")).is_err());
    assert_eq!(from_pod().as_deref(), Ok(&*client), "through the service, under policy");
    assert_eq!(from_outside().as_deref(), Ok(&*node1), "through the NodePort, under policy");

    // What is not named is denied behind the translation as well.
    apply(&lab, &[policy(&[&net(&node1)])]);
    wait::until_true("the pod is denied", LONG, || from_pod().is_err());
    assert_eq!(from_outside().as_deref(), Ok(&*node1));

    // No mark of ours is one of kube-proxy's, and its rules are as it wrote them.
    let rules = lab.exec("node1", &["bash", "-c", "iptables-save"]);
    for line in rules.lines().filter(|l| l.contains("cali") && l.contains("mark")) {
        for word in line.split_whitespace().filter_map(|w| w.split('/').next()) {
            let Some(hex) = word.strip_prefix("0x") else { continue };
            let mark = u32::from_str_radix(hex, 16).unwrap_or(0);
            assert_eq!(mark & 0xc000, 0, "{line}");
        }
    }
    assert!(rules.contains("-A KUBE-POSTROUTING -j MASQUERADE"), "{rules}");
    lab.down();
}
