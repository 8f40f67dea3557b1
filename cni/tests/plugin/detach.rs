//! DEL: repeated, too late, without its namespace, without an agent; and the address plugin.

use brindle_cni::{
    error::code,
    proto::{Call, Reply},
};
use brindle_kernel::netlink::{Veth, VethPeer};
use serde_json::json;

use crate::stage::{BRINDLE, BRINDLE_IPAM, Host, Ns, content, journal_folder};

#[test]
fn del_removes_the_pair_and_may_be_repeated() {
    let (host, pod) = (Host::new("del"), Ns::new("delpod"));
    let agent = host.agent(content);
    assert!(host.add("c1", &pod).ok);
    let index =
        host.ns.rtnl().links().unwrap().into_iter().find(|l| l.name.starts_with("cali")).unwrap().index;
    for _ in 0..3 {
        let said = host.del("c1", &pod.path());
        assert!(said.ok && said.out.is_empty(), "{said:?}");
        assert_eq!((host.ns.devices().len(), pod.devices().len()), (0, 0));
    }
    let Call::Del { device: Some(device), .. } = agent.call(2) else { panic!("{:?}", agent.calls()) };
    assert_eq!(device.index, index);
    let Call::Del { device: None, .. } = agent.call(3) else { panic!("{:?}", agent.calls()) };
}

#[test]
fn the_agent_may_delete_the_device_and_is_waited_for() {
    let (host, pod) = (Host::new("delbg"), Ns::new("delbgpod"));
    let namespace = host.ns.name.clone();
    let _agent = host.agent(move |call| {
        if let Call::Del { device: Some(device), .. } = call {
            let (namespace, index) = (namespace.clone(), device.index);
            std::thread::spawn(move || {
                let ns = brindle_kernel::netns::NetNs::named(&namespace).unwrap();
                brindle_kernel::netlink::Rtnl::open_in(&ns).unwrap().del_link(index).unwrap();
            });
        }
        content(call)
    });
    assert!(host.add("c1", &pod).ok);
    assert!(host.del("c1", &pod.path()).ok);
    assert_eq!(host.ns.devices().len(), 0);
}

#[test]
fn del_needs_neither_namespace_nor_an_earlier_add() {
    let host = Host::new("delnone");
    let agent = host.agent(content);
    for netns in ["", "/run/netns/bt-none-such"] {
        let said = host.del("never", netns);
        assert!(said.ok, "{said:?}");
    }
    assert_eq!(agent.calls(), ["del", "del"]);
}

#[test]
fn del_succeeds_whatever_its_add_was_refused_for() {
    let (host, pod) = (Host::new("delwish"), Ns::new("delwishpod"));
    let agent = host.agent(content);
    let annotated = |name: &str, value: &str| {
        let mut conf = host.conf();
        let key = format!("cni.projectcalico.org/{name}");
        conf["runtimeConfig"] = json!({ "io.kubernetes.cri.pod-annotations": { key: value } });
        conf
    };
    let mut ips = host.conf();
    ips["runtimeConfig"] = json!({ "ips": ["x"] });
    for conf in [annotated("ipAddrs", "garbage"), annotated("ipAddrsNoIpam", "[\"192.0.2.7\"]"), ips] {
        for program in [BRINDLE, BRINDLE_IPAM] {
            assert_eq!(host.program(program, "ADD", "c1", &pod.path(), &conf).code(), 7, "{conf}");
            let said = host.program(program, "DEL", "c1", &pod.path(), &conf);
            assert!(said.ok, "{conf}: {said:?}");
        }
    }
    assert_eq!(agent.calls(), ["del", "ipam-del", "del", "ipam-del", "del", "ipam-del"]);
    for netns in ["/proc/self/ns/net", "/dev/null", "/run/netns/../x"] {
        let said = host.del("c1", netns);
        assert!(said.ok, "{netns}: {said:?}");
    }
}

#[test]
fn del_leaves_a_foreign_interface_alone() {
    let (host, pod) = (Host::new("delforeign"), Ns::new("delforeignpod"));
    pod.rtnl().add_bridge("eth0", None).unwrap();
    let _agent = host.agent(content);
    let said = host.del("c1", &pod.path());
    assert!(said.ok && said.err.contains("left alone"), "{said:?}");
    assert!(pod.link("eth0").is_some());
}

#[test]
fn del_leaves_the_pair_of_another_plugin_or_attachment_alone() {
    let (host, pod) = (Host::new("delptp"), Ns::new("delptppod"));
    let mine = VethPeer { name: "eth0", mac: None, netns: Some(&pod.ns) };
    host.ns.rtnl().add_veth(&Veth { name: "veth0a1b2c3d", peer: mine, ..Veth::default() }).unwrap();
    let agent = host.agent(content);
    assert_eq!(host.add("c1", &pod).code(), u64::from(code::ATTACHED));
    let said = host.del("c1", &pod.path());
    assert!(said.ok && said.err.contains("behind veth0a1b2c3d is not of this attachment"), "{said:?}");
    let Call::Del { device: None, .. } = agent.call(2) else { panic!("{:?}", agent.calls()) };
    assert_eq!((host.ns.devices().len(), pod.devices().len()), (1, 1));
    drop(agent);
    assert!(host.del("c1", &pod.path()).ok);
    assert_eq!((host.ns.devices().len(), pod.devices().len()), (1, 1), "nor without an agent");
}

#[test]
fn del_of_a_refused_container_leaves_the_one_in_its_place_alone() {
    let (host, pod) = (Host::new("delother"), Ns::new("delotherpod"));
    let _agent = host.agent(content);
    assert!(host.add("c1", &pod).ok);
    assert_eq!(host.add("c2", &pod).code(), u64::from(code::ATTACHED));
    assert!(host.del("c2", &pod.path()).ok);
    assert_eq!((host.ns.devices().len(), pod.devices().len()), (1, 1));
    assert!(host.del("c1", &pod.path()).ok);
    assert_eq!((host.ns.devices().len(), pod.devices().len()), (0, 0));
}

#[test]
fn without_an_agent_the_device_goes_and_the_rest_is_written_down() {
    let (host, pod) = (Host::new("deldown"), Ns::new("deldownpod"));
    let agent = host.agent(content);
    assert!(host.add("c1", &pod).ok);
    drop(agent);
    for _ in 0..2 {
        let said = host.del("c1", &pod.path());
        assert!(said.ok, "{said:?}");
        assert!(said.err.contains("the agent will release the addresses"), "{said:?}");
    }
    assert_eq!((host.ns.devices().len(), pod.devices().len()), (0, 0));
    let entries = host.journal().entries;
    assert_eq!(entries.len(), 1, "a repeated DEL is one entry");
    assert_eq!(entries[0].record.attachment.container_id, "c1");
    assert_eq!(entries[0].record.attachment.pod.as_ref().unwrap().name, "pod-c1");
    assert!(!entries[0].record.addresses_only);
}

#[test]
fn an_agent_that_hangs_up_is_no_agent() {
    let (host, pod) = (Host::new("delhang"), Ns::new("delhangpod"));
    let _agent = host.agent(|call| if matches!(call, Call::Del { .. }) { None } else { content(call) });
    assert!(host.add("c1", &pod).ok);
    assert!(host.del("c1", &pod.path()).ok);
    assert_eq!(host.ns.devices().len(), 0);
    assert_eq!(host.journal().entries.len(), 1);
}

#[test]
fn a_del_that_can_be_told_to_nobody_fails_so_that_it_is_repeated() {
    let (host, pod) = (Host::new("delro"), Ns::new("delropod"));
    std::fs::write(journal_folder(&host.folder.0), b"in the way").unwrap();
    let said = host.del("c1", &pod.path());
    assert_eq!(said.code(), 5, "{said:?}");
    assert!(said.message().contains("cannot write to"), "{said:?}");
}

#[test]
fn a_refused_del_fails_so_that_it_is_repeated() {
    let (host, pod) = (Host::new("delref"), Ns::new("delrefpod"));
    let _agent = host.agent(|call| match call {
        Call::Del { .. } => {
            Some(Reply::Error { code: code::TRY_AGAIN, msg: "locked".into(), details: String::new() })
        }
        other => content(other),
    });
    assert!(host.add("c1", &pod).ok);
    let said = host.del("c1", &pod.path());
    assert_eq!(said.code(), 11);
    assert_eq!(host.ns.devices().len(), 0, "the device goes all the same");
    assert!(host.journal().entries.is_empty());
}

#[test]
fn the_address_plugin_gives_addresses_alone() {
    let (host, pod) = (Host::new("ipam"), Ns::new("ipampod"));
    let agent = host.agent(content);
    // As another plugin hands its whole configuration on.
    let conf = json!({
        "cniVersion": "0.4.0", "name": "lan", "type": "bridge", "bridge": "cni0",
        "ipam": {
            "type": "brindle-ipam",
            "agent_socket": host.folder.0.join("cni.sock"),
            "state_dir": host.folder.0,
            "ipv4_pools": ["10.9.0.0/16"],
        },
    });
    let said = host.program(BRINDLE_IPAM, "ADD", "c1", &pod.path(), &conf);
    insta::assert_snapshot!(said.out, @r#"
    {
      "cniVersion": "0.4.0",
      "dns": {},
      "ips": [
        {
          "address": "10.9.0.1/32",
          "version": "4"
        }
      ]
    }
    "#);
    let mut check = conf.clone();
    check["prevResult"] = said.json();
    assert!(host.program(BRINDLE_IPAM, "CHECK", "c1", &pod.path(), &check).ok);
    assert!(host.program(BRINDLE_IPAM, "DEL", "c1", &pod.path(), &conf).ok);
    assert_eq!(agent.calls(), ["ipam-add", "ipam-check", "ipam-del"]);
    assert_eq!(pod.devices().len(), 0);
    drop(agent);
    assert!(host.program(BRINDLE_IPAM, "DEL", "c1", &pod.path(), &conf).ok);
    assert!(host.journal().entries[0].record.addresses_only);
}

#[test]
fn status_and_gc_ask_the_agent() {
    let host = Host::new("gc");
    let agent = host.agent(content);
    let mut conf = host.conf();
    conf["cniVersion"] = json!("1.1.0");
    assert!(host.plugin("STATUS", "", "", &conf).ok);
    let said = host.plugin("GC", "", "", &conf);
    assert_eq!(said.code(), 7, "{said:?}");
    conf["cni.dev/valid-attachments"] = json!([{ "containerID": "c1", "ifname": "eth0" }]);
    assert!(host.plugin("GC", "", "", &conf).ok);
    assert_eq!(agent.calls(), ["status", "gc"]);
    let Call::Gc { network, valid, dry_run: false } = agent.call(1) else { panic!() };
    assert_eq!((network.as_str(), valid[0].container_id.as_str()), ("k8s-pod-network", "c1"));
    conf["gc_dry_run"] = json!(true);
    assert!(host.plugin("GC", "", "", &conf).ok);
    assert!(matches!(agent.call(2), Call::Gc { dry_run: true, .. }), "the agent only says what would go");
}
