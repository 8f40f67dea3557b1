//! Death at every step of ADD and DEL, of the plugin and of the agent, one step at a time; and the tricks a hostile or
//! confused caller plays with paths. Whatever dies, DEL afterwards leaves nothing. Needs root.

use std::time::Duration;

use brindle_cni::fail::{AGENT_ADD, AGENT_DEL, AGENT_GC, PLUGIN_ADD, PLUGIN_DEL};
use brindle_config_core::{Key, Kind, workload::endpoint_name};
use brindle_integration::{
    bins::bin,
    cni::{CniNode, Container, Said, sh},
    wait::until_true,
};
use serde_json::json;

/// A GC for a runtime that knows of these containers.
fn gc(node: &CniNode, known: &[Container]) -> Said {
    let mut conf = node.conf();
    conf["cniVersion"] = json!("1.1.0");
    let known = known.iter().map(|c| json!({"containerID": c.id, "ifname": "eth0"}));
    conf["cni.dev/valid-attachments"] = known.collect();
    node.run(&mut node.command(&bin("brindle"), "GC", "-", ""), &conf)
}

/// On a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn dying(node: &CniNode, verb: &str, c: &Container, point: &str) -> Said {
    let mut command = node.command(&bin("brindle"), verb, &c.id, &c.netns());
    command.env("BRINDLE_FAILPOINT", point);
    node.run(&mut command, &node.conf())
}

#[test]
fn a_plugin_that_dies_at_any_step_leaves_nothing_after_its_del() {
    let node = CniNode::new("failp", "10.120.0.0/24");
    for point in PLUGIN_ADD {
        let c = Container::new();
        let said = dying(&node, "ADD", &c, point);
        assert!(!said.ok && said.out.is_empty(), "{point}: it died and said nothing: {said:?}");
        assert!(node.del(&c).ok, "{point}");
        node.settled(&[]);
        // And without the DEL in between: the runtime tries again.
        let said = dying(&node, "ADD", &c, point);
        assert!(!said.ok, "{point}: {said:?}");
        let said = node.add(&c);
        assert!(said.ok, "{point}: {said:?}");
        assert!(node.pings(&said.address()), "{point}");
        assert!(node.del(&c).ok, "{point}");
        node.settled(&[]);
    }
    for point in PLUGIN_DEL {
        let c = Container::new();
        assert!(node.add(&c).ok);
        let said = dying(&node, "DEL", &c, point);
        assert!(!said.ok, "{point}: {said:?}");
        assert!(node.del(&c).ok, "{point}");
        node.settled(&[]);
    }
}

#[test]
fn an_agent_that_dies_at_any_step_leaves_nothing_after_the_del() {
    let mut node = CniNode::new("faila", "10.121.0.0/24");
    for point in AGENT_ADD {
        node.kill_agent();
        node.start_agent_dying_at(Some(point));
        let c = Container::new();
        let said = node.add(&c);
        assert!(!said.ok, "{point}: {said:?}");
        assert!(node.devices().is_empty(), "{point}: half a pair is left: {:?}", node.devices());
        node.kill_agent();
        node.start_agent();
        assert!(node.del(&c).ok, "{point}");
        node.settled(&[]);
    }
    for point in AGENT_DEL {
        node.kill_agent();
        node.start_agent();
        let c = Container::new();
        assert!(node.add(&c).ok, "{point}");
        node.kill_agent();
        node.start_agent_dying_at(Some(point));
        let said = node.del(&c);
        assert!(said.ok, "{point}: the plugin writes the DEL down: {said:?}");
        assert!(node.devices().is_empty(), "{point}");
        node.kill_agent();
        node.start_agent();
        node.settled(&[]);
    }
}

#[test]
fn an_agent_that_dies_at_any_step_of_a_gc_leaves_what_the_next_one_collects() {
    let mut node = CniNode::new("failg", "10.134.0.0/24");
    let live = Container::new();
    let said = node.add(&live);
    for point in AGENT_GC {
        // One whose container is gone, and addresses without an attachment.
        let (gone, bare) = (Container::new(), Container::new());
        assert!(node.add(&gone).ok, "{point}");
        let mut command = node.command(&bin("brindle-ipam"), "ADD", &bare.id, &bare.netns());
        assert!(node.run(&mut command, &node.conf()).ok, "{point}");
        node.kill_agent();
        node.start_agent_dying_at(Some(point));
        let refused = gc(&node, std::slice::from_ref(&live));
        assert!(!refused.ok, "{point}: {refused:?}");
        node.kill_agent();
        node.start_agent();
        let said = gc(&node, std::slice::from_ref(&live));
        assert!(said.ok, "{point}: {said:?}");
        node.settled(&[&live]);
    }
    assert!(node.pings(&said.address()));
    assert!(node.del(&live).ok);
    node.settled(&[]);
}

#[test]
fn a_device_that_cannot_be_deleted_keeps_its_endpoint_for_the_next_gc() {
    let mut node = CniNode::new("stuckg", "10.136.0.0/24");
    let (live, gone) = (Container::new(), Container::new());
    let (said, its) = (node.add(&live), node.add(&gone));
    assert!(said.ok && its.ok, "{said:?} {its:?}");
    node.kill_agent();
    node.start_agent_dying_at(Some("device.remove"));
    let refused = gc(&node, std::slice::from_ref(&live));
    assert_eq!(refused.code(), 11, "{refused:?}");
    assert!(refused.out.contains("cannot delete device"), "{refused:?}");
    // Whole as it was: its addresses may not go while it can send from them.
    node.settled(&[&live, &gone]);
    node.kill_agent();
    node.start_agent();
    let done = gc(&node, std::slice::from_ref(&live));
    assert!(done.ok, "{done:?}");
    node.settled(&[&live]);
    assert!(node.pings(&said.address()));
    assert!(node.del(&live).ok);
    node.settled(&[]);
}

#[test]
fn a_disk_without_room_refuses_new_pods_lets_old_ones_go_and_loses_nothing() {
    let node = CniNode::on_small_disk("fulld", "10.135.0.0/24", "16m");
    let (stays, goes) = (Container::new(), Container::new());
    let (first, second) = (node.add(&stays), node.add(&goes));
    assert!(first.ok && second.ok, "{first:?} {second:?}");
    node.fill_disk();
    let refused: Vec<Container> = (0..3).map(|_| Container::new()).collect();
    for c in &refused {
        let said = node.add(c);
        assert_eq!(said.code(), 11, "{said:?}");
        assert!(said.out.contains("the disk is full; free some space"), "{said:?}");
        assert!(c.ns.rtnl().link_by_name("eth0").unwrap().is_none(), "half a pair is left");
    }
    assert_eq!(node.devices().len(), 2);
    let said = node.status();
    assert_eq!(said.code(), 50, "{said:?}");
    assert!(
        said.out.contains("the last pod could not be recorded") && said.out.contains("disk is full"),
        "{said:?}"
    );
    // What frees a disk is pods that go.
    assert!(node.pings(&first.address()), "forwarding goes on");
    let del = node.del(&goes);
    assert!(del.ok, "promised where room was kept for it: {del:?}");
    assert_eq!(node.devices().len(), 1);
    assert!(!node.pings(&second.address()));
    for c in &refused[..2] {
        assert!(node.del(c).ok, "after a refused ADD");
    }
    assert!(node.check(&stays, &first).ok);
    node.free_disk();
    let late = Container::new();
    let said = node.add(&late);
    assert!(node.pings(&said.address()), "{said:?}");
    let status = node.status();
    assert!(status.ok, "{status:?}");
    // What was promised is carried out at the agent's next look at its journal.
    until_true("promises are kept", LONG, || node.journal() == 0);
    node.settled(&[&stays, &late]);
    for c in [&stays, &late] {
        assert!(node.del(c).ok);
    }
    node.settled(&[]);
}

#[test]
fn a_conflist_that_somebody_removes_comes_back() {
    let mut node = CniNode::without_agent("confl", "10.136.0.0/24");
    let folder = node.dir.join("net.d");
    node.vars.push(("CNI_NET_DIR".into(), folder.display().to_string()));
    node.start_agent_with(&["--install-cni"]);
    let file = folder.join("10-brindle.conflist");
    let text = || std::fs::read_to_string(&file).unwrap_or_default();
    until_true("it is written", LONG, || !text().is_empty());
    let before = text();
    std::fs::remove_dir_all(&folder).unwrap();
    until_true("it is back", LONG, || text() == before);
}

#[test]
fn tricks_with_paths_and_names_are_refused() {
    let node = CniNode::new("trick", "10.122.0.0/24");
    let c = Container::new();
    let link = node.dir.join("netns-link");
    std::os::unix::fs::symlink(c.netns(), &link).unwrap();
    let file = node.dir.join("plain");
    std::fs::write(&file, "no namespace").unwrap();
    let netns = c.netns();
    let long = "x".repeat(300);
    let tricks: [(&str, &str, u64); 12] = [
        ("CNI_NETNS", link.to_str().unwrap(), 4),
        // What is left of a bind mount after its namespace is gone.
        ("CNI_NETNS", file.to_str().unwrap(), 3),
        ("CNI_NETNS", "/proc/self/ns/net", 4),
        ("CNI_NETNS", "/run/netns/../netns/x", 4),
        ("CNI_NETNS", "netns/x", 4),
        ("CNI_NETNS", "/run/netns/is-not-there", 3),
        ("CNI_CONTAINERID", "../../etc/passwd", 4),
        ("CNI_CONTAINERID", "-rf", 4),
        ("CNI_CONTAINERID", &long, 4),
        ("CNI_IFNAME", "../eth0", 4),
        ("CNI_IFNAME", "a-name-of-sixteen", 4),
        ("CNI_IFNAME", "..", 4),
    ];
    for (variable, value, code) in tricks {
        let mut command = node.command(&bin("brindle"), "ADD", &c.id, &netns);
        command.env(variable, value);
        let said = node.run(&mut command, &node.conf());
        assert_eq!(said.code(), code, "{variable}={value}: {said:?}");
        assert!(said.out.contains(variable), "{variable}={value}: {said:?}");
    }
    node.settled(&[]);
}

#[test]
fn gc_does_not_believe_a_runtime_that_forgot_everything() {
    let node = CniNode::new("forget", "10.123.0.0/24");
    let pods: Vec<Container> = (0..4).map(|_| Container::new()).collect();
    let said: Vec<Said> = pods.iter().map(|c| node.add(c)).collect();
    let refused = gc(&node, &[]);
    assert_eq!(refused.code(), 110, "{refused:?}");
    assert!(refused.out.contains("4 have a device"), "{refused:?}");
    assert!(said.iter().all(|s| node.pings(&s.address())));
    assert!(gc(&node, &pods[..3]).ok);
    node.settled(&pods[..3].iter().collect::<Vec<_>>());
    for c in &pods {
        assert!(node.del(c).ok);
    }
    node.settled(&[]);
}

#[test]
fn a_full_disk_fails_no_running_pod_and_a_del_says_what_it_needs() {
    let mut node = CniNode::new("disk", "10.124.0.0/24");
    let c = Container::new();
    let said = node.add(&c);
    node.kill_agent();
    // No agent, and the journal's place is no folder: the promise cannot be written down.
    let journal = node.dir.join("cni-journal");
    let _ = std::fs::remove_dir_all(&journal);
    std::fs::write(&journal, "in the way").unwrap();
    let del = node.del(&c);
    assert_eq!(del.code(), 5, "{del:?}");
    assert!(del.out.contains("no address is lost"), "{del:?}");
    std::fs::remove_file(&journal).unwrap();
    assert!(node.del(&c).ok, "{:?}", node.del(&c));
    node.start_agent();
    node.settled(&[]);
    assert!(!node.pings(&said.address()));
}

#[test]
fn families_and_second_interfaces_go_their_own_way() {
    let node = CniNode::new("family", "10.125.0.0/24");
    let six = brindle_config_core::pool::IpPoolSpec::new("fd00:125::/64".parse().unwrap());
    node.put(brindle_config_core::ObjectMeta::named("six"), six);
    let mut dual = node.conf();
    dual["ipam"]["assign_ipv6"] = json!(true);
    let mut only6 = dual.clone();
    only6["ipam"]["assign_ipv4"] = json!(false);
    let (a, b) = (Container::new(), Container::new());
    // A host that is hardened, for devices that are made from now on.
    node.ns
        .ns()
        .run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"))
        .unwrap()
        .unwrap();
    only6["container_settings"] = json!({"allow_ip_forwarding": true});
    // A namespace where somebody switched IPv6 off.
    a.ns.ns().run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")).unwrap().unwrap();
    let said = node.call("ADD", &a, &dual);
    assert!(said.ok, "{said:?}");
    let ips: Vec<String> = said.json()["ips"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["address"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ips.len(), 2, "{said:?}");
    assert!(ips[0].ends_with("/32") && ips[1].ends_with("/128"), "{ips:?}");
    for ip in &ips {
        // The node has no IPv6 address but its link-local ones, which the kernel tries out for a second.
        until_true(ip, LONG, || node.pings(ip.split('/').next().unwrap()));
    }
    let said = node.call("ADD", &b, &only6);
    assert!(said.address().starts_with("fd00:125:"), "{said:?}");
    until_true("IPv6 alone", LONG, || node.pings(&said.address()));
    let forwards = b.ns.ns().run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding"));
    assert_eq!(forwards.unwrap().unwrap().trim(), "1", "as allow_ip_forwarding says");

    // The second network of a meta-plugin: another name, another interface of the same container.
    let mut second = node.conf();
    second["name"] = json!("second");
    let net1 = |verb: &str| {
        let mut command = node.command(&bin("brindle"), verb, &a.id, &a.netns());
        command.env("CNI_IFNAME", "net1");
        node.run(&mut command, &second)
    };
    let said = net1("ADD");
    assert!(said.ok, "{said:?}");
    assert!(a.ns.rtnl().link_by_name("net1").unwrap().is_some());
    assert_eq!(node.devices().len(), 3);
    assert!(net1("DEL").ok);
    assert!(a.ns.rtnl().link_by_name("eth0").unwrap().is_some(), "the first interface stays");
    assert!(ips.iter().all(|i| node.pings(i.split('/').next().unwrap())));
    assert!(node.call("DEL", &a, &dual).ok && node.call("DEL", &b, &only6).ok);
    node.settled(&[]);
}

#[test]
fn a_pod_named_like_anothers_interface_does_not_take_its_device() {
    let node = CniNode::new("names", "10.134.0.0/24");
    let (a, b) = (Container::new(), Container::new());
    let call = |verb: &str, c: &Container, pod: &str, ifname: &str| {
        let mut command = node.command(&bin("brindle"), verb, &c.id, &c.netns());
        command.env("CNI_IFNAME", ifname);
        command.env("CNI_ARGS", format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}"));
        node.run(&mut command, &node.conf())
    };
    let device = |said: &Said| said.json()["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let second = call("ADD", &a, "web", "net1");
    assert!(second.ok, "{second:?}");
    let first = call("ADD", &b, "web.net1", "eth0");
    assert!(first.ok, "{first:?}");
    assert!(a.ns.rtnl().link_by_name("net1").unwrap().is_some(), "it is still there");
    assert!(call("DEL", &a, "web", "net1").ok && call("DEL", &b, "web.net1", "eth0").ok);
    // One that an earlier version made has the name that the other's would have; a repeated ADD leaves it.
    let (old, new) = (device(&first), device(&second));
    assert!(call("ADD", &a, "web", "net1").ok);
    sh(
        node.ns.ns(),
        &format!("ip link set {new} down && ip link set {new} name {old} && ip link set {old} up"),
    );
    let key = Key::new(Kind::WorkloadEndpoint, Some("default"), &endpoint_name("n1", "k8s", "web", "net1"));
    node.edit(&key, |value| value["spec"]["interfaceName"] = json!(old));
    let refused = call("ADD", &b, "web.net1", "eth0");
    assert_eq!(refused.code(), 104, "{refused:?}");
    assert!(a.ns.rtnl().link_by_name("net1").unwrap().is_some(), "it is still there");
    let again = call("ADD", &a, "web", "net1");
    assert_eq!(device(&again), old);
    assert!(call("DEL", &a, "web", "net1").ok);
    let first = call("ADD", &b, "web.net1", "eth0");
    assert!(first.ok, "{first:?}");
    assert!(call("DEL", &b, "web.net1", "eth0").ok);
    node.settled(&[]);
}

#[test]
fn an_agent_that_dies_between_the_families_gives_both_to_the_add_that_is_repeated() {
    let mut node = CniNode::new("half", "10.133.0.0/24");
    let six = brindle_config_core::pool::IpPoolSpec::new("fd00:133::/64".parse().unwrap());
    node.put(brindle_config_core::ObjectMeta::named("six"), six);
    let mut dual = node.conf();
    dual["ipam"]["assign_ipv6"] = json!(true);
    node.kill_agent();
    node.start_agent_dying_at(Some("agent.add.half"));
    let c = Container::new();
    assert!(!node.call("ADD", &c, &dual).ok);
    node.kill_agent();
    node.start_agent();
    let said = node.call("ADD", &c, &dual);
    assert!(said.ok, "{said:?}");
    assert_eq!(said.json()["ips"].as_array().unwrap().len(), 2, "{said:?}");
    assert!(node.call("DEL", &c, &dual).ok);
    node.settled(&[]);
}

#[test]
fn a_container_that_comes_back_after_a_reboot_has_its_address_again() {
    let mut node = CniNode::new("reboot", "10.126.0.0/24");
    let pods: Vec<Container> = (0..3).map(|_| Container::new()).collect();
    let before: Vec<String> = pods.iter().map(|c| node.add(c).address()).collect();
    // Power off: no DEL, devices and namespaces are gone, the datastore is not.
    node.kill_agent();
    let ids: Vec<String> = pods.iter().map(|c| c.id.clone()).collect();
    drop(pods);
    until_true("the kernel has taken the devices away", LONG, || node.devices().is_empty());
    node.start_agent();
    let pods: Vec<Container> = ids.into_iter().map(|id| Container { id, ..Container::new() }).collect();
    for (c, was) in pods.iter().zip(&before) {
        let said = node.add(c);
        assert_eq!(said.address(), *was);
        assert!(node.pings(was));
    }
    for c in &pods {
        assert!(node.del(c).ok);
    }
    node.settled(&[]);
}

#[test]
fn other_plugins_of_a_list_follow_and_others_take_our_addresses() {
    let node = CniNode::new("chain", "10.127.0.0/24");
    let c = Container::new();
    let first = node.add(&c);
    for plugin in ["tuning", "bandwidth", "portmap", "sbr"] {
        let path = std::path::Path::new("/usr/lib/cni").join(plugin);
        assert!(path.exists(), "{plugin} is missing: apt-get install containernetworking-plugins");
        let conf = json!({"cniVersion": "1.0.0", "name": "net", "type": plugin, "prevResult": first.json()});
        let said = node.run(&mut node.command(&path, "ADD", &c.id, &c.netns()), &conf);
        assert!(said.ok, "{plugin}: {said:?}");
        assert_eq!(said.json()["ips"], first.json()["ips"], "{plugin}");
        let state = || {
            let look = "ip addr show eth0; ip rule; ip route show table all; ip neigh";
            let out = c.ns.ns().run(|| std::process::Command::new("sh").args(["-c", look]).output());
            String::from_utf8_lossy(&out.unwrap().unwrap().stdout).into_owned()
        };
        assert!(node.pings(&first.address()), "{plugin}: {}", state());
        let check = node.check(&c, &first);
        assert!(check.ok, "{plugin}: {check:?} {}", state());
    }
    assert!(node.del(&c).ok);

    // Debian's bridge with our addresses: it finds `brindle-ipam` in CNI_PATH.
    let d = Container::new();
    let conf = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "br0",
        "ipam": {"type": "brindle-ipam", "agent_socket": node.dir.join("cni.sock"), "state_dir": node.dir},
    });
    let call = |verb: &str| {
        let mut command = node.command(std::path::Path::new("/usr/lib/cni/bridge"), verb, &d.id, &d.netns());
        command.env("CNI_PATH", format!("{}:/usr/lib/cni", brindle_integration::bins::dir().display()));
        node.run(&mut command, &conf)
    };
    let said = call("ADD");
    assert!(said.address().starts_with("10.127.0."), "{said:?}");
    assert_eq!(node.handles().0, [format!("net.{}", d.id)]);
    assert!(call("DEL").ok);
    node.settled(&[]);
}

#[test]
fn host_local_and_static_give_addresses_to_our_interface() {
    let node = CniNode::new("foreign", "10.128.0.0/24");
    let host_local = json!({"type": "host-local", "dataDir": node.dir.join("host-local"),
        "ranges": [[{"subnet": "10.129.0.0/24"}]]});
    let fixed = json!({"type": "static", "addresses": [{"address": "10.129.1.7/24"}]});
    for (ipam, prefix) in [(host_local, "10.129.0."), (fixed, "10.129.1.7")] {
        let mut conf = node.conf();
        conf["ipam"] = ipam;
        let c = Container::new();
        let said = node.call("ADD", &c, &conf);
        assert!(said.address().starts_with(prefix), "{said:?}");
        assert!(said.out.contains("/32"), "{said:?}");
        assert!(node.pings(&said.address()));
        let again = node.call("ADD", &c, &conf);
        assert_eq!(again.out, said.out, "the same answer again: {again:?}");
        assert_eq!(node.handles().0, Vec::<String>::new(), "nothing is taken from the pools");
        let mut check = conf.clone();
        check["prevResult"] = said.json();
        let checked = node.call("CHECK", &c, &check);
        assert!(checked.ok, "{checked:?}");
        for _ in 0..2 {
            let del = node.call("DEL", &c, &conf);
            assert!(del.ok, "{del:?}");
        }
        node.settled(&[]);
    }
    // What cannot be had leaves nothing at the other plugin either.
    let mut conf = node.conf();
    conf["ipam"] = json!({"type": "host-local", "dataDir": node.dir.join("host-local"), "ranges": [[{"subnet": "10.129.0.0/24"}]]});
    let c = Container::new();
    c.ns.rtnl().add_bridge("eth0", None).unwrap();
    assert_eq!(node.call("ADD", &c, &conf).code(), 104);
    let kept: Vec<String> = std::fs::read_dir(node.dir.join("host-local/net"))
        .unwrap()
        .flatten()
        .map(|f| f.file_name().to_string_lossy().into_owned())
        .filter(|n| n.starts_with("10."))
        .collect();
    assert_eq!(kept, Vec::<String>::new());
    node.settled(&[]);
}

#[test]
fn addresses_of_a_container_that_is_gone_are_collected_and_nothing_else() {
    let mut node = CniNode::without_agent("leak", "10.119.0.0/24");
    let cache = node.dir.join("results");
    std::fs::create_dir_all(&cache).unwrap();
    node.start_agent_with(&["--ipam-gc-grace", "1", "--cni-cache", cache.to_str().unwrap()]);
    let [pod, known, gone, silent] = [(); 4].map(|()| Container::new());
    let said = node.add(&pod);
    // What libcni leaves at ADD, and takes away at DEL; of one container it says nothing.
    let file = |c: &Container| cache.join(format!("net-{}-eth0", c.id));
    for c in [&known, &gone] {
        let text = json!({"kind": "cniCacheV1", "containerId": c.id, "ifName": "eth0", "networkName": "net"});
        std::fs::write(file(c), text.to_string()).unwrap();
    }
    for c in [&known, &gone, &silent] {
        let mut command = node.command(&bin("brindle-ipam"), "ADD", &c.id, &c.netns());
        assert!(node.run(&mut command, &node.conf()).ok);
    }
    until_true("it is looked at, and reported", LONG, || {
        let report = std::fs::read_to_string(node.dir.join("ipam-leaks.json")).unwrap_or_default();
        report.contains(&format!("net.{}", silent.id)) && report.contains("was never seen to know it")
    });
    std::fs::remove_file(file(&gone)).unwrap();
    // An interface of another plugin has no endpoint and no route: without the runtime's word it is never a leak.
    let mut want = [&pod, &known, &silent].map(|c| format!("net.{}", c.id));
    want.sort();
    until_true("the leak is collected", LONG, || {
        let mut handles = node.handles().0;
        handles.sort();
        handles == want
    });
    assert!(node.pings(&said.address()));
    let history = std::fs::read_to_string(node.dir.join("ipam-history.jsonl")).unwrap();
    assert!(history.lines().any(|l| l.contains("\"collected\"") && l.contains(&gone.id)), "{history}");
}

#[test]
fn an_agent_that_dies_while_it_collects_leaves_nothing_to_the_next_one() {
    let mut node = CniNode::without_agent("failc", "10.138.0.0/24");
    let cache = node.dir.join("results");
    std::fs::create_dir_all(&cache).unwrap();
    let args = ["--ipam-gc-grace", "1", "--cni-cache", cache.to_str().unwrap()];
    let report = node.dir.join("ipam-leaks.json");
    for point in ["ipam.release.written", "ipam.release.forgotten"] {
        for has_endpoint in [false, true] {
            let what = format!("{point}, with an endpoint: {has_endpoint}");
            node.vars = vec![("BRINDLE_FAILPOINT".into(), point.into())];
            node.start_agent_with(&args);
            let gone = Container::new();
            let file = cache.join(format!("net-{}-eth0", gone.id));
            let text =
                json!({"kind": "cniCacheV1", "containerId": gone.id, "ifName": "eth0", "networkName": "net"});
            std::fs::write(&file, text.to_string()).unwrap();
            if has_endpoint {
                let said = node.add(&gone);
                let device = said.json()["interfaces"][0]["name"].as_str().unwrap().to_owned();
                sh(node.ns.ns(), &format!("ip link del {device}"));
            } else {
                let mut command = node.command(&bin("brindle-ipam"), "ADD", &gone.id, &gone.netns());
                assert!(node.run(&mut command, &node.conf()).ok, "{what}");
            }
            // The first change may be of a look that began before all this.
            for look in 1..=2 {
                let before = std::fs::read(&report).ok();
                until_true(&format!("look {look}"), LONG, || std::fs::read(&report).ok() != before);
            }
            std::fs::remove_file(&file).unwrap();
            until_true(&format!("{what}: the agent dies"), LONG, || !node.status().ok);
            node.kill_agent();
            node.vars.clear();
            node.start_agent_with(&args);
            until_true(&what, LONG, || node.handles().0.is_empty() && node.endpoints().is_empty());
            node.settled(&[]);
            assert!(!node.dir.join("ipam-collecting").exists(), "{what}");
            node.kill_agent();
        }
    }
}

#[test]
fn leaks_are_told_from_live_pods_whatever_their_devices_are_called() {
    // By the resource, and by the agent's environment, which stands above it.
    for (resource, variable, prefix) in [(Some("pod"), None, "pod"), (Some("pod"), Some("tap,veth"), "tap")] {
        let mut node = CniNode::without_agent("prefix", "10.120.0.0/24");
        if let Some(value) = resource {
            let key = Key::new(Kind::FelixConfiguration, None, "default");
            node.put_value(
                &key,
                &json!({"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration",
                    "metadata": {"name": "default"}, "spec": {"interfacePrefix": value}}),
            );
        }
        node.vars.extend(variable.map(|v| ("FELIX_INTERFACEPREFIX".to_owned(), v.to_owned())));
        let cache = node.dir.join("results");
        std::fs::create_dir_all(&cache).unwrap();
        node.start_agent_with(&["--ipam-gc-grace", "1", "--cni-cache", cache.to_str().unwrap()]);
        let (live, gone) = (Container::new(), Container::new());
        let (said, other) = (node.add(&live), node.add(&gone));
        let device = other.json()["interfaces"][0]["name"].as_str().unwrap().to_owned();
        assert!(device.starts_with(prefix), "{device}");

        // Neither datastore nor runtime know it any more; a route through a pod's device is word enough.
        sh(node.ns.ns(), &format!("ip route add {}/32 dev {device} proto static metric 7", other.address()));
        let name = endpoint_name("n1", "k8s", &format!("pod-{}", gone.id), "eth0");
        node.remove(&Key::new(Kind::WorkloadEndpoint, Some("default"), &name));
        let report = || std::fs::read_to_string(node.dir.join("ipam-leaks.json")).unwrap_or_default();
        for look in 1..=4 {
            let before = report();
            until_true(&format!("look {look}"), LONG, || report() != before);
        }
        let mut both = [&live, &gone].map(|c| format!("net.{}", c.id));
        both.sort();
        let mut handles = node.handles().0;
        handles.sort();
        assert_eq!(handles, both, "{}", report());

        sh(node.ns.ns(), &format!("ip link del {device}"));
        until_true("the leak is collected", LONG, || node.handles().0 == [format!("net.{}", live.id)]);
        assert!(node.pings(&said.address()));
        let checked = node.check(&live, &said);
        assert!(checked.ok, "{checked:?}");
        assert!(node.del(&live).ok);
        until_true("nothing is left", LONG, || node.handles().0.is_empty());
    }
}
