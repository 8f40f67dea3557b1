//! What networks, pods and namespaces may wish for: the node's pod CIDR from host-local, annotations the runtime hands
//! over, our addresses on interfaces of other plugins. The real agent and plugins; needs root and Debian's
//! containernetworking-plugins.

use std::path::Path;

use brindle_config_core::{Key, Kind, ObjectMeta, pool::IpPoolSpec};
use brindle_integration::{
    bins,
    cni::{CniNode, Container, Said, ping},
};
use serde_json::{Value, json};

#[test]
fn host_local_takes_the_pod_cidr_of_the_node() {
    let mut node = CniNode::new("podcidr", "10.151.0.0/24");
    let mut conf = node.conf();
    conf["ipam"] =
        json!({"type": "host-local", "dataDir": node.dir.join("host-local"), "subnet": "usePodCidr"});
    let c = Container::new();
    let early = node.call("ADD", &c, &conf);
    assert_eq!(early.code(), 11, "{early:?}");
    assert!(early.out.contains("this node has no pod CIDR"), "{early:?}");
    node.edit(&Key::new(Kind::Node, None, "n1"), |n| {
        n["status"] = json!({"podCIDRs": ["10.152.7.0/24", "fd00:152::/64"]});
    });
    let said = node.call("ADD", &c, &conf);
    assert!(said.address().starts_with("10.152.7."), "{said:?}");
    assert!(node.pings(&said.address()));
    let mut check = conf.clone();
    check["prevResult"] = said.json();
    assert!(node.call("CHECK", &c, &check).ok);
    // Its DEL needs no agent to know the subnet.
    node.kill_agent();
    let del = node.call("DEL", &c, &conf);
    assert!(del.ok, "{del:?}");
    node.start_agent();
    node.settled(&[]);
}

fn annotated(node: &CniNode, annotations: Value) -> Value {
    let mut conf = node.conf();
    conf["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": annotations});
    conf
}

#[test]
fn annotations_of_a_pod_choose_pools_addresses_and_mac() {
    let node = CniNode::new("wishes", "10.153.0.0/24");
    node.put(ObjectMeta::named("blue"), IpPoolSpec::new("10.154.0.0/24".parse().expect("a CIDR")));
    let add = |conf: &Value| -> (Container, Said) {
        let c = Container::new();
        let said = node.call("ADD", &c, conf);
        (c, said)
    };
    let (_a, said) = add(&annotated(&node, json!({"cni.projectcalico.org/ipv4pools": "[\"blue\"]"})));
    assert!(said.address().starts_with("10.154.0."), "{said:?}");
    let fixed = annotated(
        &node,
        json!({"cni.projectcalico.org/ipAddrs": "[\"10.154.0.77\"]", "cni.projectcalico.org/hwAddr": "02:11:22:33:44:55"}),
    );
    let (b, said) = add(&fixed);
    assert_eq!(said.address(), "10.154.0.77");
    assert!(said.out.contains("02:11:22:33:44:55"), "{said:?}");
    assert!(node.pings("10.154.0.77"));
    let (_c, taken) = add(&fixed);
    assert_eq!(taken.code(), 101, "{taken:?}");

    // Addresses nobody manages: only where the network allows them, and none is taken from a pool.
    let handles = node.handles().0.len();
    let mut own = annotated(&node, json!({"cni.projectcalico.org/ipAddrsNoIpam": "[\"198.51.100.7\"]"}));
    let (_d, refused) = add(&own);
    assert_eq!(refused.code(), 7, "{refused:?}");
    own["feature_control"] = json!({"ip_addrs_no_ipam": true});
    let (e, said) = add(&own);
    assert_eq!(said.address(), "198.51.100.7");
    assert!(node.pings("198.51.100.7"));
    assert_eq!(node.handles().0.len(), handles);
    let mut check = own.clone();
    check["prevResult"] = said.json();
    let checked = node.call("CHECK", &e, &check);
    assert!(checked.ok, "{checked:?}");
    assert!(node.call("DEL", &e, &own).ok && node.call("DEL", &b, &fixed).ok);
    let (_f, floating) =
        add(&annotated(&node, json!({"cni.projectcalico.org/floatingIPs": "[\"198.51.100.8\"]"})));
    assert_eq!(floating.code(), 2, "where the network does not allow them: {floating:?}");
}

#[test]
fn macvlan_takes_our_addresses_and_gives_them_back() {
    let node = CniNode::new("macvlan", "10.155.0.0/24");
    let (a, b) = (Container::new(), Container::new());
    let conf = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "macvlan", "master": "eth0", "mode": "bridge",
        "ipam": {"type": "brindle-ipam", "agent_socket": node.dir.join("cni.sock"), "state_dir": node.dir,
            "routes": [{"dst": "10.155.0.0/24"}]},
    });
    let call = |verb: &str, c: &Container, conf: &Value| {
        let mut command = node.command(Path::new("/usr/lib/cni/macvlan"), verb, &c.id, &c.netns());
        command.env("CNI_PATH", format!("{}:/usr/lib/cni", bins::dir().display()));
        node.run(&mut command, conf)
    };
    let (first, second) = (call("ADD", &a, &conf), call("ADD", &b, &conf));
    assert!(first.address().starts_with("10.155.0.") && first.address() != second.address(), "{second:?}");
    // One wire: their addresses stand alone, so the configuration says where the others are.
    assert!(ping(a.ns.ns(), &second.address()));
    // CHECK of the address plugin alone: macvlan's own looks for a route to the address's network, which /32 has not.
    let mut check = conf.clone();
    check["prevResult"] = first.json();
    let checked = node.run(&mut node.command(&bins::bin("brindle-ipam"), "CHECK", &a.id, &a.netns()), &check);
    assert!(checked.ok, "{checked:?}");
    for _ in 0..2 {
        for c in [&a, &b] {
            let del = call("DEL", c, &conf);
            assert!(del.ok, "{del:?}");
        }
    }
    node.settled(&[]);
}

#[test]
fn names_of_any_length_are_served_and_given_back() {
    let mut node = CniNode::new("names", "10.156.0.0/24");
    let long = |n: usize, with: &str| {
        format!("a{}z", with.repeat(n.saturating_sub(2)).get(..n - 2).unwrap_or_default())
    };
    // (container, namespace, pod): the shortest, kubelet's, the longest.
    let cases = [
        ("a".to_owned(), "b".to_owned(), "c".to_owned()),
        (long(64, "0f"), long(63, "n-"), long(253, "p.")),
        (long(253, "x."), long(63, "1"), long(253, "9-")),
    ];
    for (id, namespace, pod) in &cases {
        let c = Container { id: id.clone(), ..Container::new() };
        let call = |node: &CniNode, verb: &str, conf: &Value| {
            let mut command = node.command(&bins::bin("brindle"), verb, &c.id, &c.netns());
            command
                .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod}"));
            node.run(&mut command, conf)
        };
        let conf = node.conf();
        let said = call(&node, "ADD", &conf);
        assert!(node.pings(&said.address()), "{said:?}");
        let mut check = conf.clone();
        check["prevResult"] = said.json();
        let checked = call(&node, "CHECK", &check);
        assert!(checked.ok, "{checked:?}");
        // Promised on disk, under a name that fits there.
        node.kill_agent();
        let del = call(&node, "DEL", &conf);
        assert!(del.ok, "{del:?}");
        assert_eq!(node.journal(), 1);
        node.start_agent();
        node.settled(&[]);
    }
    let c = Container { id: long(300, "x"), ..Container::new() };
    let refused = node.add(&c);
    assert_eq!(refused.code(), 4, "{refused:?}");
    assert!(refused.out.contains("253 at most"), "{refused:?}");
}
