//! Floating addresses (annotation `cni.projectcalico.org/floatingIPs`) under real packets with each back end, in both
//! families: from outside, from the node and from the pod itself; what two pods ask for; off again. Needs root.

use std::{path::Path, process::Command, time::Duration};

use brindle_config_core::{Key, Kind, ObjectMeta, pool::IpPoolSpec, store::Expect};
use brindle_integration::{
    bins,
    cni::{CniNode, Container, Said, ping, sh},
    lab::Lab as NodeLab,
    netns::TestNs,
    policy::lab::{BackEnd, status},
    wait::until_true,
};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);
const FLOATING: [&str; 2] = ["198.51.100.8", "fd00:f::8"];

struct Lab {
    node: CniNode,
    outside: TestNs,
}

fn configuration() -> Key {
    Key::new(Kind::FelixConfiguration, None, "default")
}

impl Lab {
    fn new(back_end: BackEnd) -> Self {
        let mut node = CniNode::without_agent("fip", "10.160.0.0/24");
        node.put(ObjectMeta::named("pool6"), IpPoolSpec::new("fd00:160::/112".parse().expect("a CIDR")));
        let mut spec = back_end.configuration();
        spec["floatingIPs"] = "Enabled".into();
        let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
            "metadata": {"name": "default"}, "spec": spec});
        node.put_value(&configuration(), &value);
        let outside = TestNs::new("fipout");
        let wire = format!(
            "ip link add wireo type veth peer name toward netns {} && ip link set wireo master eth0 up && \
             ip -6 addr add fd00:1::1/64 dev eth0 nodad",
            outside.name()
        );
        sh(node.ns.ns(), &wire);
        sh(
            outside.ns(),
            "ip link set toward up && ip addr add 192.0.2.9/24 dev toward && ip -6 addr add fd00:1::9/64 dev toward nodad && \
             ip route add default via 192.0.2.1 && ip -6 route add default via fd00:1::1",
        );
        node.start_agent();
        Self { node, outside }
    }

    fn add(&self, floating: &Value, allowed: bool) -> (Container, Value, Said) {
        let mut conf = self.node.conf();
        conf["ipam"]["assign_ipv6"] = true.into();
        conf["feature_control"] = json!({"floating_ips": allowed});
        conf["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations":
            {"cni.projectcalico.org/floatingIPs": floating.to_string()}});
        let c = Container::new();
        let said = self.node.call("ADD", &c, &conf);
        (c, conf, said)
    }

    /// The device an address is routed to.
    fn device(&self, address: &str) -> Option<String> {
        let family = if address.contains(':') { "-6" } else { "-4" };
        let show = [family, "-j", "route", "show", address].map(str::to_owned);
        let out = self.node.ns.ns().run(|| Command::new("ip").args(&show).output());
        let out = out.expect("the namespace is alive").expect("iproute2 is installed");
        let routes: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap_or_default();
        routes.first().and_then(|r| r["dev"].as_str()).map(str::to_owned)
    }

    fn said(&self, text: &str) -> bool {
        status(&self.node)
            .is_some_and(|s| serde_json::to_string(&s).expect("it is plain data").contains(text))
    }

    fn host_device(&self, c: &Container) -> String {
        let all = self.node.endpoints();
        all.into_iter().find(|e| e.container_id == c.id).expect("it is recorded").interface_name
    }
}

fn run(back_end: BackEnd) {
    let lab = Lab::new(back_end);
    let (_refused, _, said) = lab.add(&json!(FLOATING), false);
    assert_eq!(said.code(), 2, "{said:?}");
    let (_refused, _, said) = lab.add(&json!(["ten"]), true);
    assert!(said.code() == 7 && said.out.contains("no address"), "{said:?}");

    let (a, conf, said) = lab.add(&json!(FLOATING), true);
    assert!(said.ok, "{said:?}\n{}", lab.node.log());
    let own = said.address();
    for address in FLOATING {
        assert_eq!(lab.device(address), Some(lab.host_device(&a)), "{back_end:?}: when ADD answers");
        until_true("the host outside reaches it", LONG, || ping(lab.outside.ns(), address));
        assert!(ping(a.ns.ns(), address), "{back_end:?}: the pod reaches itself by {address}");
        assert!(lab.node.pings(address), "{back_end:?}: the node reaches {address}");
    }
    assert!(ping(lab.outside.ns(), &own) && ping(a.ns.ns(), "192.0.2.9"), "its own address is as before");

    // Another pod asks for the same, and for the first one's own address.
    let (b, conf_b, said) = lab.add(&json!([FLOATING[0], own]), true);
    assert!(said.ok, "{said:?}");
    let name = |c: &Container| format!("{}-eth0", c.id);
    let first = lab.host_device(if name(&a) < name(&b) { &a } else { &b });
    until_true("it is said", LONG, || {
        lab.said("which asks for it too") && lab.said("is a pod's own address")
    });
    assert_eq!(lab.device(&own), Some(lab.host_device(&a)));
    until_true("the first by name has it", LONG, || lab.device(FLOATING[0]).as_ref() == Some(&first));
    assert!(ping(lab.outside.ns(), FLOATING[0]));
    assert!(lab.node.call("DEL", &a, &conf).ok);
    let left = lab.host_device(&b);
    until_true("it leads to the one that is left", LONG, || lab.device(FLOATING[0]).as_ref() == Some(&left));
    until_true("packets do too", LONG, || ping(lab.outside.ns(), FLOATING[0]));
    until_true("the other is gone", LONG, || lab.device(FLOATING[1]).is_none());

    // Off and on.
    let set = |text: &str| lab.node.edit(&configuration(), |c| c["spec"]["floatingIPs"] = text.into());
    set("Disabled");
    until_true("it leads nowhere", LONG, || lab.device(FLOATING[0]).is_none() && lab.said("leads nowhere"));
    until_true("nor do packets", LONG, || !ping(lab.outside.ns(), FLOATING[0]));
    set("Enabled");
    until_true("it leads there again", LONG, || ping(lab.outside.ns(), FLOATING[0]));
    assert!(lab.node.call("DEL", &b, &conf_b).ok);
    until_true("nothing is left of it", LONG, || lab.device(FLOATING[0]).is_none());
    assert!(!ping(lab.outside.ns(), FLOATING[0]));
}

#[test]
fn floating_addresses_with_iptables_legacy() {
    run(BackEnd::Legacy);
}

#[test]
fn floating_addresses_with_iptables_nft() {
    run(BackEnd::Nft);
}

#[test]
fn floating_addresses_with_nftables() {
    run(BackEnd::Nftables);
}

#[test]
fn other_nodes_learn_a_floating_address_of_a_pool() {
    let (lab, _) = NodeLab::up("fipbgp", &["--nodes", "2", "--segments", "1", "--pods-per-node", "1"]);
    let store = brindle_config::open(&lab.store_url()).expect("the lab's store opens");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
            "metadata": {"name": "default"}, "spec": {"floatingIPs": "Enabled"}});
        store.put(&configuration(), value, Expect::Absent).await.expect("there is none yet");
    });
    let floating = "192.168.200.200";
    let home = lab.dir().join("nodes/node1");
    let conf = json!({"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "brindle",
        "agent_socket": home.join("cni.sock"), "nodename": "node1",
        "state_dir": home, "ipam": {"type": "brindle-ipam"},
        "feature_control": {"floating_ips": true},
        "runtimeConfig": {"io.kubernetes.cri.pod-annotations":
            {"cni.projectcalico.org/floatingIPs": json!([floating]).to_string()}}});
    let pod = TestNs::new("fipbgp-pod");
    let plugin = bins::bin("brindle");
    let call = |command: &str| {
        let words = format!(
            "CNI_COMMAND={command} CNI_CONTAINERID=fip CNI_NETNS={} CNI_IFNAME=eth0 CNI_PATH={} {} <<'E'\n{conf}\nE",
            Path::new("/run/netns").join(pod.name()).display(),
            plugin.parent().expect("it is in a folder").display(),
            plugin.display(),
        );
        lab.exec("node1", &["sh", "-c", &words])
    };
    call("ADD");
    let reaches = || lab.ctl(&["exec", "p2-1", "--", "ping", "-c1", "-W1", floating]).code == 0;
    until_true("a pod of the other node reaches it", LONG, reaches);
    let learned = || lab.exec("node2", &["ip", "route", "show", floating]);
    assert!(learned().contains("proto 80"), "{}", learned());
    call("DEL");
    until_true("the other node forgets it", LONG, || learned().trim().is_empty());
    drop(pod);
    lab.down();
}
