//! A node that was taken over from Calico under CRI-O, which deletes a pod by the configuration the pod was made with: it
//! calls `calico` with Calico's list, and ours stands there. The real agent and plugins; needs root.

use std::{fs, path::Path, process::Command};

use brindle_integration::{
    bins::bin,
    cni::{CniNode, Container, Said},
};
use serde_json::{Value, json};

/// Calico's configuration as CRI-O remembers it: one plugin of the list, with what libcni puts in.
fn calicos(version: &str, result: Option<&Value>) -> Value {
    let mut conf = json!({
        "cniVersion": version, "name": "k8s-pod-network", "type": "calico",
        "log_level": "info", "log_file_path": "/var/log/calico/cni/cni.log",
        "datastore_type": "kubernetes", "nodename": "n1", "mtu": 0,
        "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "false"},
        "policy": {"type": "k8s"},
        "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"},
    });
    if let Some(result) = result {
        conf["prevResult"] = result.clone();
    }
    conf
}

/// Calls a plugin of the folder without a word where the agent is: in a mount namespace in which this node's folder is where
/// an agent's is.
fn call(node: &CniNode, name: &str, verb: &str, c: &Container, conf: &Value) -> Said {
    const INSIDE: &str = "mount -t tmpfs none /var/lib && mkdir /var/lib/brindle && \
        mount --bind \"$1\" /var/lib/brindle && exec \"$0\"";
    let mut command = node.command(Path::new("/usr/bin/unshare"), verb, &c.id, &c.netns());
    command.args(["-m", "sh", "-ec", INSIDE]).arg(node.dir.join("bin").join(name)).arg(&node.dir);
    node.run(&mut command, conf)
}

/// A pod that has the records Calico gives it: they are ours, too.
fn attach(node: &CniNode, c: &Container, address: Option<&str>) -> Said {
    let mut conf = node.conf();
    conf["name"] = "k8s-pod-network".into();
    if let Some(address) = address {
        conf["runtimeConfig"] = json!({"ips": [address]});
    }
    node.call("ADD", c, &conf)
}

fn taken_over(tag: &str, pool: &str) -> CniNode {
    let node = CniNode::new(tag, pool);
    let folder = node.dir.join("bin");
    fs::create_dir(&folder).expect("the node's folder is writable");
    for name in ["calico", "calico-ipam"] {
        fs::write(folder.join(name), "#!/bin/sh\necho its token has run out >&2\nexit 1\n")
            .expect("writable");
    }
    let install = Command::new(bin("brindle-node"))
        .args(["install-cni", "--plugins-only", "--take-over", "--bin-dir"])
        .arg(&folder)
        .output()
        .expect("it can be started");
    assert!(install.status.success(), "{install:?}");
    node
}

#[test]
fn pods_that_calico_attached_are_deleted_under_its_name() {
    let mut node = taken_over("takeover", "10.157.0.0/24");
    let result = |said: &Said| {
        json!({"cniVersion": "0.3.1", "interfaces": [{"name": "caliwhatever"}],
            "ips": [{"version": "4", "address": format!("{}/32", said.address())}], "dns": {}})
    };
    let (a, b) = (Container::new(), Container::new());
    let said = attach(&node, &a, None);
    let address = said.address();
    assert!(node.pings(&address), "{said:?}");
    for _ in 0..2 {
        let del = call(&node, "calico", "DEL", &a, &calicos("0.3.1", Some(&result(&said))));
        assert!(del.ok && del.out.is_empty(), "{del:?}");
    }
    assert_eq!((node.devices().len(), node.endpoints().len()), (0, 0));
    // The address is free again.
    let said = attach(&node, &b, Some(&address));
    assert_eq!(said.address(), address);

    // While the agent is away it is promised.
    node.kill_agent();
    let del = call(&node, "calico", "DEL", &b, &calicos("0.3.1", Some(&result(&said))));
    assert!(del.ok && node.devices().is_empty(), "{del:?}");
    assert_eq!(node.journal(), 1);
    node.start_agent();
    node.settled(&[]);
    let again = attach(&node, &a, Some(&address));
    assert_eq!(again.address(), address);

    // Addresses of other plugins' interfaces.
    let c = Container::new();
    let mut conf = node.conf();
    conf["name"] = "k8s-pod-network".into();
    let said = node.run(&mut node.command(&bin("brindle-ipam"), "ADD", &c.id, &c.netns()), &conf);
    let other = said.address();
    let del = call(&node, "calico-ipam", "DEL", &c, &calicos("0.3.1", None));
    assert!(del.ok, "{del:?}");
    assert_eq!(attach(&node, &b, Some(&other)).address(), other);
}

#[test]
fn nothing_is_attached_under_calicos_name() {
    let node = taken_over("refused", "10.158.0.0/24");
    let c = Container::new();
    for name in ["calico", "calico-ipam"] {
        let said = call(&node, name, "ADD", &c, &calicos("0.3.1", None));
        assert_eq!(said.code(), 7, "{said:?}");
        let why = said.json();
        assert!(why["msg"].as_str().is_some_and(|m| m.contains("taken over from Calico")), "{said:?}");
        assert!(why["details"].as_str().is_some_and(|d| d.contains("10-brindle.conflist")), "{said:?}");
        let said = call(&node, name, "VERSION", &c, &calicos("0.3.1", None));
        assert!(said.ok && said.out.contains("0.3.1"), "{said:?}");
        // As it cannot attach anything, it is not ready for it.
        assert_eq!(call(&node, name, "STATUS", &c, &calicos("1.1.0", None)).code(), 50);
    }
    assert!(node.devices().is_empty() && node.endpoints().is_empty());
    // A pod that runs: CHECK compares nothing, as Calico's does; GC leaves what is valid and collects the rest.
    let said = attach(&node, &c, None);
    let checked = call(&node, "calico", "CHECK", &c, &calicos("1.0.0", Some(&said.json())));
    assert!(checked.ok, "{checked:?}");
    let gone = Container::new();
    let left = attach(&node, &gone, None).address();
    let mut gc = calicos("1.1.0", None);
    gc["cni.dev/valid-attachments"] = json!([{"containerID": c.id, "ifname": "eth0"}]);
    let collected = call(&node, "calico", "GC", &c, &gc);
    assert!(collected.ok, "{collected:?}");
    assert!(node.pings(&said.address()) && node.devices().len() == 1 && !node.pings(&left));
}
