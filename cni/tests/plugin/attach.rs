//! ADD and CHECK: the pair as Calico makes it, repeated calls, and nothing left when something fails.

use brindle_cni::{
    error::code,
    proto::{Call, Reply},
};
use brindle_kernel::{
    netlink::{Addr, Mac, Route, RouteFilter, Veth, VethPeer},
    netns::NetNs,
};
use serde_json::json;

use crate::stage::{BRINDLE, BRINDLE_IPAM, Host, Ns, content};

fn host_device(id: &str) -> String {
    let attachment = brindle_cni::proto::Attachment {
        container_id: id.into(),
        ifname: "eth0".into(),
        netns: String::new(),
        netns_id: String::new(),
        network: "k8s-pod-network".into(),
        pod: Some(brindle_cni::proto::PodRef {
            namespace: "default".into(),
            name: format!("pod-{id}"),
            uid: String::new(),
        }),
    };
    attachment.host_ifname("cali")
}

#[test]
fn a_configuration_for_another_node_is_refused_and_a_del_is_not() {
    let (mut host, pod) = (Host::new("node"), Ns::new("nodepod"));
    host.version = "1.1.0";
    let agent = host.agent(content);
    let mut conf = host.conf();
    conf["nodename"] = json!("n2");
    for (program, command) in [(BRINDLE, "ADD"), (BRINDLE_IPAM, "ADD")] {
        let said = host.program(program, command, "c1", &pod.path(), &conf);
        assert_eq!(said.code(), u64::from(code::CONFIG), "{said:?}");
        assert_eq!(
            said.message(),
            "nodename: the configuration is for node \"n2\", the agent here is that of \"n1\""
        );
    }
    let said = host.plugin("STATUS", "-", "", &conf);
    assert_eq!(said.code(), u64::from(code::NOT_AVAILABLE), "{said:?}");
    assert!(said.message().contains("\"n2\""), "{said:?}");
    assert_eq!(agent.calls(), ["ping", "ping", "ping"], "nothing else was asked");
    conf["cni.dev/valid-attachments"] = json!([]);
    let said = host.plugin("GC", "-", "", &conf);
    assert_eq!(said.code(), u64::from(code::CONFIG), "{said:?}");
    assert_eq!(agent.calls().last(), Some(&"ping"), "not told what to collect");
    assert!(host.plugin("DEL", "c1", "", &conf).ok);
    conf["nodename"] = json!("n1");
    let said = host.plugin("ADD", "c1", &pod.path(), &conf);
    assert!(said.ok, "{said:?}");
}

#[test]
fn add_makes_the_pair_and_says_so() {
    let (host, pod) = (Host::new("add"), Ns::new("addpod"));
    let agent = host.agent(content);
    let said = host.add("c1", &pod);
    assert!(said.ok, "{said:?}");
    let result = said.out.replace(&pod.path(), "NETNS").replace(&host_device("c1"), "HOSTDEV");
    insta::assert_snapshot!(result, @r#"
    {
      "cniVersion": "1.0.0",
      "dns": {},
      "interfaces": [
        {
          "mac": "ee:ee:ee:ee:ee:ee",
          "name": "HOSTDEV"
        },
        {
          "mac": "02:04:6e:d4:3e:92",
          "name": "eth0",
          "sandbox": "NETNS"
        }
      ],
      "ips": [
        {
          "address": "10.9.0.1/32",
          "gateway": "169.254.1.1",
          "interface": 1
        }
      ]
    }
    "#);
    assert_eq!(agent.calls(), ["add", "register"]);
    let Call::Add { attachment, .. } = agent.call(0) else { panic!() };
    assert_eq!(attachment.netns_id, format!("{}:{}", pod.ns.id().dev, pod.ns.id().inode));

    let outer = host.ns.link(&host_device("c1")).unwrap();
    assert!(outer.up && outer.carrier);
    assert_eq!((outer.mac, outer.mtu), (Some(Mac([0xee; 6])), 1480));
    let inner = pod.link("eth0").unwrap();
    assert!(inner.up);
    assert_eq!(inner.mtu, 1480);
    assert!(pod.link("lo").unwrap().up);
    let addrs = pod.rtnl().addrs(Some(inner.index)).unwrap();
    assert!(addrs.iter().any(|a| a.net.to_string() == "10.9.0.1/32"));
    let routes: Vec<String> = pod
        .rtnl()
        .routes(&RouteFilter::main())
        .unwrap()
        .iter()
        .filter(|r| r.dst.addr().is_ipv4())
        .map(|r| r.to_string().replace(&format!("dev {}", inner.index), "dev eth0"))
        .collect();
    assert_eq!(
        routes,
        ["0.0.0.0/0 via 169.254.1.1 dev eth0 proto 3", "169.254.1.1/32 dev eth0 proto 3 scope link"]
    );
    let neighs = pod.rtnl().neighs(Some(inner.index)).unwrap();
    assert!(
        neighs.iter().any(|n| n.addr.to_string() == "169.254.1.1" && n.mac == Some(Mac([0xee; 6]))),
        "{neighs:?}"
    );
    let forward = pod.ns.run(|| brindle_kernel::sysctl::get("net/ipv4/ip_forward").unwrap()).unwrap();
    assert_eq!(forward, "0");
}

#[test]
fn both_families_work_where_the_runtime_switched_ipv6_off() {
    let (host, pod) = (Host::new("add6"), Ns::new("add6pod"));
    pod.ns
        .run(|| {
            for who in ["all", "default", "lo"] {
                brindle_kernel::sysctl::set(&format!("net/ipv6/conf/{who}/disable_ipv6"), "1").unwrap();
            }
        })
        .unwrap();
    let _agent = host.agent(|call| match call {
        Call::Add { attachment, num6: 1, .. } => Some(Reply::Added {
            addresses: vec!["10.9.0.1/32".parse().unwrap(), "fd00:9::1/128".parse().unwrap()],
            host_ifname: attachment.host_ifname("cali"),
            mtu: 0,
            again: false,
        }),
        other => content(other),
    });
    let mut conf = host.conf();
    conf["ipam"] = json!({ "type": "brindle-ipam", "assign_ipv6": "true" });
    let said = host.plugin("ADD", "c1", &pod.path(), &conf);
    assert!(said.ok, "{said:?}");
    let index = pod.link("eth0").unwrap().index;
    let addrs = pod.rtnl().addrs(Some(index)).unwrap();
    assert!(addrs.iter().any(|a| a.net.to_string() == "fd00:9::1/128"), "{addrs:?}");
    let routes = pod.rtnl().routes(&RouteFilter::main()).unwrap();
    assert!(
        routes.iter().any(|r| r.to_string().starts_with("::/0 via fe80::ecee:eeff:feee:eeee")),
        "{routes:?}"
    );
}

#[test]
fn a_repeated_add_changes_nothing_and_mends_what_was_broken() {
    let (host, pod) = (Host::new("again"), Ns::new("againpod"));
    let _agent = host.agent(content);
    let first = host.add("c1", &pod);
    let index = pod.link("eth0").unwrap().index;
    let addr = "10.9.0.1/32".parse().unwrap();
    pod.rtnl().del_addr(index, addr).unwrap();
    host.ns.rtnl().set_down(&host_device("c1")).unwrap();
    let second = host.add("c1", &pod);
    assert!(second.ok, "{second:?}");
    assert_eq!(first.out, second.out);
    assert_eq!(pod.link("eth0").unwrap().index, index, "the same device");
    assert!(pod.rtnl().addrs(Some(index)).unwrap().iter().any(|a| a.net == addr));
    assert!(host.ns.link(&host_device("c1")).unwrap().up);
    assert!(pod.rtnl().routes(&RouteFilter::main()).unwrap().iter().any(|r| r.dst.prefix_len() == 0));
}

#[test]
fn a_foreign_eth0_is_left_alone_and_the_addresses_go_back() {
    let (host, pod) = (Host::new("foreign"), Ns::new("foreignpod"));
    pod.rtnl().add_bridge("eth0", None).unwrap();
    let agent = host.agent(content);
    let said = host.add("c1", &pod);
    assert_eq!(said.code(), u64::from(code::ATTACHED), "{said:?}");
    assert!(said.message().contains("is not a device of this plugin"), "{said:?}");
    assert_eq!(agent.calls(), ["add", "del"]);
    assert_eq!(host.ns.devices(), Vec::<String>::new());
    assert_eq!(pod.devices(), ["eth0"]);
}

#[test]
fn another_container_in_the_same_namespace_is_refused_without_harm() {
    let (host, pod) = (Host::new("other"), Ns::new("otherpod"));
    let agent = host.agent(content);
    assert!(host.add("c1", &pod).ok);
    let said = host.add("c2", &pod);
    assert_eq!(said.code(), u64::from(code::ATTACHED), "{said:?}");
    assert_eq!(agent.calls(), ["add", "register", "add", "del"]);
    assert_eq!(host.ns.devices(), [host_device("c1")]);
    assert!(pod.link("eth0").is_some());
}

#[test]
fn the_pair_of_a_former_sandbox_makes_way() {
    let (host, old, new) = (Host::new("replace"), Ns::new("oldpod"), Ns::new("newpod"));
    let _agent = host.agent(content);
    // An old sandbox of the same pod still holds the host device.
    host.ns
        .rtnl()
        .add_veth(&Veth {
            name: &host_device("c1"),
            peer: VethPeer { name: "eth0", mac: None, netns: Some(&old.ns) },
            ..Veth::default()
        })
        .unwrap();
    let said = host.add("c1", &new);
    assert!(said.ok, "{said:?}");
    assert!(old.link("eth0").is_none());
    assert!(new.link("eth0").is_some());
}

#[test]
fn what_the_agent_refuses_is_passed_on_word_for_word() {
    let (host, pod) = (Host::new("full"), Ns::new("fullpod"));
    let agent = host.agent(|_| {
        Some(Reply::Error {
            code: code::POOL_EXHAUSTED,
            msg: "no address: no free block in pool p (2 in all)".into(),
            details: "add an IPPool".into(),
        })
    });
    let said = host.add("c1", &pod);
    assert_eq!(said.code(), 100);
    assert_eq!(said.json()["msg"], "no address: no free block in pool p (2 in all)");
    assert_eq!(said.json()["details"], "add an IPPool");
    assert_eq!(agent.calls(), ["add"], "nothing was given, nothing to return");
    assert_eq!(pod.devices(), Vec::<String>::new());
}

#[test]
fn a_failed_registration_leaves_no_device_and_no_address() {
    let (host, pod) = (Host::new("unreg"), Ns::new("unregpod"));
    let agent = host.agent(|call| match call {
        Call::Register { .. } => Some(Reply::Error {
            code: code::NOT_READY,
            msg: "the route did not come into force within 10s".into(),
            details: String::new(),
        }),
        other => content(other),
    });
    let said = host.add("c1", &pod);
    assert_eq!(said.code(), u64::from(code::NOT_READY));
    assert_eq!(agent.calls(), ["add", "register", "del"]);
    assert_eq!((host.ns.devices().len(), pod.devices().len()), (0, 0));
}

#[test]
fn an_agent_that_dies_in_the_middle_leaves_no_device() {
    let (host, pod) = (Host::new("dies"), Ns::new("diespod"));
    let _agent = host.agent(|call| match call {
        Call::Register { .. } => None,
        other => content(other),
    });
    let said = host.add("c1", &pod);
    assert_eq!(said.code(), 11, "{said:?}");
    assert!(said.json()["details"].as_str().unwrap().contains("not taken back yet: addresses"), "{said:?}");
    assert_eq!((host.ns.devices().len(), pod.devices().len()), (0, 0));
}

#[test]
fn a_namespace_that_vanishes_during_add_is_said_and_nothing_is_left() {
    let (host, pod) = (Host::new("vanish"), Ns::new("vanishpod"));
    let name = pod.name.clone();
    let agent = host.agent(move |call| {
        if matches!(call, Call::Register { .. }) {
            NetNs::delete(&name).unwrap();
        }
        content(call)
    });
    let said = host.add("c1", &pod);
    assert_eq!(said.code(), 3, "{said:?}");
    assert!(said.message().contains("was deleted while the interface was being made"), "{said:?}");
    assert_eq!(agent.calls(), ["add", "register", "del"]);
    assert_eq!(host.ns.devices().len(), 0);
}

#[test]
fn a_namespace_of_another_kind_is_refused_before_anything_is_done() {
    let host = Host::new("kind");
    let agent = host.agent(content);
    let said = host.plugin("ADD", "c1", "/proc/self/ns/mnt", &host.conf());
    assert_eq!(said.code(), u64::from(code::ENVIRONMENT), "{said:?}");
    assert!(said.message().contains("of another kind, not a network namespace"), "{said:?}");
    assert_eq!(agent.calls(), Vec::<&str>::new());
    assert_eq!(host.ns.devices().len(), 0);
    assert!(host.del("c1", "/proc/self/ns/mnt").ok, "and it can be deleted");
}

#[test]
fn check_agrees_after_add_and_names_each_difference() {
    let (host, pod) = (Host::new("check"), Ns::new("checkpod"));
    let _agent = host.agent(content);
    let result = host.add("c1", &pod).json();
    let said = host.check("c1", &pod, result.clone());
    assert!(said.message().contains("the host has no route to 10.9.0.1/32"), "{said:?}");

    // The agent's part.
    let outer = host.ns.link(&host_device("c1")).unwrap();
    let addr: ipnet::IpNet = "10.9.0.1/32".parse().unwrap();
    host.ns.rtnl().add_route(&Route::new(addr).dev(outer.index)).unwrap();
    let said = host.check("c1", &pod, result.clone());
    assert!(said.ok && said.out.is_empty(), "{said:?}");

    let inner = pod.link("eth0").unwrap().index;
    pod.rtnl().add_addr(&Addr::new(inner, "10.9.0.2/32".parse().unwrap())).unwrap();
    assert!(host.check("c1", &pod, result.clone()).ok, "what others add is their affair");
    pod.rtnl().del_addr(inner, addr).unwrap();
    let said = host.check("c1", &pod, result.clone());
    assert_eq!(said.code(), u64::from(code::FAILED));
    assert!(said.message().contains("eth0 lacks the address 10.9.0.1/32"), "{said:?}");
    pod.rtnl().set_down(inner).unwrap();
    let said = host.check("c1", &pod, result.clone());
    assert!(said.message().contains("eth0 in the pod is down; "), "{said:?}");
    assert!(said.message().contains("the pod lacks the route 0.0.0.0/0 via 169.254.1.1"), "{said:?}");
    pod.rtnl().del_link("eth0").unwrap();
    let said = host.check("c1", &pod, result);
    assert!(said.message().contains("eth0 does not exist in"), "{said:?}");
}

#[test]
fn check_sees_what_cuts_a_pod_off() {
    let (host, pod) = (Host { version: "1.1.0", ..Host::new("checkmac") }, Ns::new("checkmacpod"));
    let _agent = host.agent(content);
    let result = host.add("c1", &pod).json();
    let (outer, inner) = (host.ns.link(&host_device("c1")).unwrap(), pod.link("eth0").unwrap());
    let addr: ipnet::IpNet = "10.9.0.1/32".parse().unwrap();
    host.ns.rtnl().add_route(&Route::new(addr).dev(outer.index)).unwrap();
    assert!(host.check("c1", &pod, result.clone()).ok);
    let finds = |want: &str| {
        let said = host.check("c1", &pod, result.clone());
        assert_eq!(said.code(), u64::from(code::FAILED), "{want}");
        assert!(said.message().contains(want), "{want}: {said:?}");
    };

    let other = Mac([2, 0, 0, 0, 0, 9]);
    host.ns.rtnl().set_mac(outer.index, other).unwrap();
    finds("on the host has the MAC 02:00:00:00:00:09, not ee:ee:ee:ee:ee:ee");
    finds(&format!("at ee:ee:ee:ee:ee:ee, but {} has the MAC 02:00:00:00:00:09", outer.name));
    host.ns.rtnl().set_mac(outer.index, Mac([0xee; 6])).unwrap();

    pod.rtnl().set_mac(inner.index, other).unwrap();
    finds("eth0 in the pod has the MAC 02:00:00:00:00:09, not ");
    pod.rtnl().set_mac(inner.index, inner.mac.unwrap()).unwrap();
    // The kernel forgets neighbours with the MAC; an ADD again mends that.
    finds("the pod lacks the permanent neighbour 169.254.1.1");
    assert!(host.add("c1", &pod).ok);

    pod.rtnl().set_mtu(inner.index, 1300).unwrap();
    finds("eth0 in the pod has the MTU 1300, not 1480");
    pod.rtnl().set_mtu(inner.index, 1480).unwrap();
    let said = host.check("c1", &pod, result.clone());
    assert!(said.ok, "as it was: {said:?}");

    pod.rtnl().del_neigh(inner.index, "169.254.1.1".parse().unwrap()).unwrap();
    finds("the pod lacks the permanent neighbour 169.254.1.1");
}

#[test]
fn an_mtu_and_mac_of_the_configuration_win() {
    let (host, pod) = (Host::new("mtu"), Ns::new("mtupod"));
    let _agent = host.agent(content);
    let mut conf = host.conf();
    conf["cniVersion"] = json!("1.1.0");
    conf["mtu"] = json!(1400);
    conf["runtimeConfig"] = json!({ "mac": "02:00:00:00:00:77" });
    let said = host.plugin("ADD", "c1", &pod.path(), &conf);
    assert_eq!(said.json()["interfaces"][1]["mtu"], 1400);
    let inner = pod.link("eth0").unwrap();
    assert_eq!((inner.mtu, inner.mac), (1400, Some(Mac([2, 0, 0, 0, 0, 0x77]))));
}

#[test]
fn many_at_once_do_not_hinder_each_other() {
    let host = Host::new("many");
    let _agent = host.agent(content);
    let pods: Vec<Ns> = (0..20).map(|_| Ns::new("manypod")).collect();
    std::thread::scope(|s| {
        for (i, pod) in pods.iter().enumerate() {
            let host = &host;
            s.spawn(move || {
                let said = host.add(&format!("c{i}"), pod);
                assert!(said.ok, "{said:?}");
            });
        }
    });
    assert_eq!(host.ns.devices().len(), 20);
    std::thread::scope(|s| {
        for (i, pod) in pods.iter().enumerate() {
            let host = &host;
            s.spawn(move || assert!(host.del(&format!("c{i}"), &pod.path()).ok));
        }
    });
    assert_eq!(host.ns.devices().len(), 0);
}
