//! Addresses of another IPAM plugin: what it is asked, and that nothing stays with it.

use std::{
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use brindle_cni::{
    error::code,
    proto::{Call, Reply},
};
use serde_json::{Value, json};

use crate::stage::{Host, Ns, content};

/// A `host-local` that writes down how it is called. What it does for an ADD is given as a script.
fn played(host: &Host, add: &str) -> Value {
    let program = host.folder.0.join("host-local");
    let script = format!(
        "#!/bin/sh\necho $CNI_COMMAND >> {0}.calls\nif [ $CNI_COMMAND = ADD ]; then\n{add}\nfi\n",
        program.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut conf = host.conf();
    conf["ipam"] = json!({ "type": "host-local" });
    conf
}

fn calls(host: &Host) -> String {
    std::fs::read_to_string(host.folder.0.join("host-local.calls")).unwrap().replace('\n', " ")
}

#[test]
fn a_delegate_whose_add_failed_is_asked_to_give_back() {
    let full = r#"echo '{"code":999,"msg":"full"}'; exit 1"#;
    let none = r#"echo '{"cniVersion":"1.0.0","ips":[]}'"#;
    for (name, add, code) in [("delfull", full, 999), ("delnone", none, 110), ("delodd", "echo odd", 6)] {
        let (host, pod) = (Host::new(name), Ns::new(name));
        let conf = played(&host, add);
        let agent = host.agent(content);
        assert_eq!(host.plugin("ADD", "c1", &pod.path(), &conf).code(), code);
        assert_eq!(calls(&host), "ADD DEL ", "{name}");
        assert_eq!(agent.calls(), Vec::<&str>::new(), "nothing was asked of the agent");
    }
}

#[test]
fn a_repeated_add_gives_what_the_delegate_gave_and_takes_nothing_back() {
    let (host, pod) = (Host::new("delagain"), Ns::new("delagain"));
    // As host-local has it: the second time it is refused.
    let mark = host.folder.0.join("given");
    let add = format!(
        r#"if [ -e {0} ]; then echo '{{"code":999,"msg":"duplicate allocation"}}'; exit 1; fi
        echo > {0}; echo '{{"cniVersion":"1.0.0","ips":[{{"address":"10.7.0.2/24"}}]}}'"#,
        mark.display()
    );
    let conf = played(&host, &add);
    let refuse = Arc::new(AtomicBool::new(false));
    let refused = Arc::clone(&refuse);
    let agent = host.agent(move |call| match call {
        Call::Add { attachment, given, .. } => Some(Reply::Added {
            addresses: given.clone(),
            host_ifname: attachment.host_ifname("cali"),
            mtu: 0,
            again: false,
        }),
        Call::Register { .. } if refused.load(Ordering::Relaxed) => {
            Some(Reply::Error { code: code::NOT_READY, msg: "late".into(), details: String::new() })
        }
        other => content(other),
    });
    let first = host.plugin("ADD", "c1", &pod.path(), &conf);
    assert!(first.ok && first.out.contains("10.7.0.2/32"), "{first:?}");
    let second = host.plugin("ADD", "c1", &pod.path(), &conf);
    assert_eq!(second.out, first.out, "{second:?}");
    refuse.store(true, Ordering::Relaxed);
    assert_eq!(host.plugin("ADD", "c1", &pod.path(), &conf).code(), u64::from(code::NOT_READY));
    // The same container in another namespace is refused by the other plugin; the one that runs keeps its address.
    let elsewhere = Ns::new("delagain2");
    assert_eq!(host.plugin("ADD", "c1", &elsewhere.path(), &conf).code(), 999);
    assert_eq!(calls(&host), "ADD ADD ");
    assert!(!agent.calls().contains(&"del"), "{:?}", agent.calls());
    assert!(pod.link("eth0").is_some());
}

#[test]
fn a_delegate_of_before_1_1_is_spoken_to_in_what_it_speaks() {
    let (host, pod) = (Host::new("delold"), Ns::new("delold"));
    let mut conf = played(&host, "");
    let program = host.folder.0.join("host-local");
    // As the reference plugins before 1.2 have it.
    let script = format!(
        r#"#!/bin/sh
if [ $CNI_COMMAND = VERSION ]; then echo '{{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}}'; exit; fi
if grep -q '"cniVersion":"1.1.0"'; then echo '{{"code":1,"msg":"incompatible CNI versions"}}'; exit 1; fi
echo $CNI_COMMAND >> {}.calls
[ $CNI_COMMAND != ADD ] || echo '{{"cniVersion":"1.0.0","ips":[{{"address":"10.7.0.2/24"}}]}}'
"#,
        program.display()
    );
    std::fs::write(&program, script).unwrap();
    conf["cniVersion"] = "1.1.0".into();
    let _agent = host.agent(|call| match call {
        Call::Add { attachment, given, .. } => Some(Reply::Added {
            addresses: given.clone(),
            host_ifname: attachment.host_ifname("cali"),
            mtu: 0,
            again: false,
        }),
        other => content(other),
    });
    let added = host.plugin("ADD", "c1", &pod.path(), &conf);
    assert!(added.ok, "{added:?}");
    assert_eq!(added.json()["cniVersion"], "1.1.0", "to the runtime as it asked");
    conf["prevResult"] = added.json();
    let gone = host.plugin("DEL", "c1", &pod.path(), &conf);
    assert!(gone.ok, "{gone:?}");
    assert_eq!(calls(&host), "ADD DEL ");
}

/// Gives what it was given; everything else as [`content`].
fn handing_on(call: &Call) -> Option<Reply> {
    match call {
        Call::Add { attachment, given, .. } => Some(Reply::Added {
            addresses: given.clone(),
            host_ifname: attachment.host_ifname("cali"),
            mtu: 0,
            again: false,
        }),
        other => content(other),
    }
}

#[test]
fn what_the_delegate_says_of_routes_and_names_reaches_the_pod() {
    let (host, pod) = (Host::new("delroutes"), Ns::new("delroutes"));
    // Of IPv6 the pod has no address; a default route it has.
    let add = r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.7.0.2/24","gateway":"10.7.0.1"}],"routes":[{"dst":"0.0.0.0/0"},
        {"dst":"192.0.2.7/24","gw":"10.7.0.1"},{"dst":"fd00::/64"}],"dns":{"nameservers":["10.96.0.10"],"search":["a.b"]}}'"#;
    let mut conf = played(&host, add);
    let _agent = host.agent(handing_on);
    let added = host.plugin("ADD", "c1", &pod.path(), &conf);
    assert!(added.ok, "{added:?}");
    let answer = added.json();
    assert_eq!(answer["dns"], json!({"nameservers": ["10.96.0.10"], "search": ["a.b"]}));
    assert_eq!(answer["routes"], json!([{"dst": "192.0.2.0/24", "gw": "169.254.1.1"}]));
    let routes = || {
        let all = pod.rtnl().routes(&brindle_kernel::netlink::RouteFilter::main()).unwrap();
        all.iter().map(|r| r.dst.to_string()).filter(|d| d.starts_with("192.0.2.")).collect::<Vec<_>>()
    };
    assert_eq!(routes(), ["192.0.2.0/24"]);
    // A repeated ADD does not ask it again; its configuration says the same of routes.
    conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24"}]);
    let again = host.plugin("ADD", "c1", &pod.path(), &conf);
    assert_eq!(again.json()["routes"], answer["routes"]);
    // The configuration's own names come first.
    conf["dns"] = json!({"nameservers": ["192.0.2.53"]});
    assert!(host.plugin("DEL", "c1", &pod.path(), &conf).ok);
    let added = host.plugin("ADD", "c1", &pod.path(), &conf);
    assert_eq!(added.json()["dns"], conf["dns"]);
}

#[test]
fn a_route_that_is_none_is_the_delegates_mistake() {
    let (host, pod) = (Host::new("delnoroute"), Ns::new("delnoroute"));
    let conf = played(
        &host,
        r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.7.0.2/24"}],"routes":[{"dst":"all"}]}'"#,
    );
    let _agent = host.agent(handing_on);
    let said = host.plugin("ADD", "c1", &pod.path(), &conf);
    assert_eq!(said.code(), 6, "{said:?}");
    assert!(said.message().contains(r#"{"dst":"all"}, which is no route"#), "{said:?}");
    assert_eq!(calls(&host), "ADD DEL ");
}

/// As [`played`], in a version that has STATUS and GC.
fn new_enough(host: &Host) -> Value {
    let mut conf = played(host, "");
    let program = host.folder.0.join("host-local");
    let script = format!(
        "#!/bin/sh\n[ $CNI_COMMAND != VERSION ] || exec echo '{{\"supportedVersions\":[\"1.1.0\"]}}'\necho $CNI_COMMAND >> {}.calls\n",
        program.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::write(host.folder.0.join("host-local.calls"), "").unwrap();
    conf["cniVersion"] = "1.1.0".into();
    conf
}

#[test]
fn a_node_without_the_pod_cidr_that_every_add_takes_is_not_ready() {
    let host = Host::new("delstatus");
    let mut conf = new_enough(&host);
    let known = Arc::new(AtomicBool::new(false));
    let knows = Arc::clone(&known);
    let _agent = host.agent(move |call| match call {
        Call::PodCidrs if !knows.load(Ordering::Relaxed) => Some(Reply::PodCidrs { cidrs: vec![] }),
        other => content(other),
    });
    assert!(host.plugin("STATUS", "", "", &conf).ok, "it takes none");
    conf["ipam"]["subnet"] = "usePodCidr".into();
    let said = host.plugin("STATUS", "", "", &conf);
    assert_eq!(said.code(), 50, "{said:?}");
    assert!(said.message().contains("no pod CIDR of that family yet"), "{said:?}");
    known.store(true, Ordering::Relaxed);
    assert!(host.plugin("STATUS", "", "", &conf).ok);
    assert_eq!(calls(&host), "STATUS STATUS ");
}

#[test]
fn gc_reaches_the_delegate_though_the_agents_failed() {
    let host = Host::new("delgc");
    let mut conf = new_enough(&host);
    let some = json!([{ "containerID": "c1", "ifname": "eth0" }]);
    // Without an agent.
    conf["cni.dev/valid-attachments"] = some.clone();
    let said = host.plugin("GC", "", "", &conf);
    assert_eq!((said.code(), &*calls(&host)), (11, "GC "), "the first error is told: {said:?}");
    // Whose list this is, and whether an empty one is right, only the agent can say.
    conf["nodename"] = "n1".into();
    assert!(!host.plugin("GC", "", "", &conf).ok);
    conf.as_object_mut().unwrap().remove("nodename");
    conf["cni.dev/valid-attachments"] = json!([]);
    assert!(!host.plugin("GC", "", "", &conf).ok);
    assert_eq!(calls(&host), "GC ");
    // One endpoint that is not collected.
    let _agent = host.agent(|call| match call {
        Call::Gc { .. } => Some(Reply::Error { code: 11, msg: "stuck".into(), details: String::new() }),
        other => content(other),
    });
    assert_eq!((host.plugin("GC", "", "", &conf).code(), &*calls(&host)), (11, "GC "), "an empty list");
    conf["cni.dev/valid-attachments"] = some;
    assert_eq!((host.plugin("GC", "", "", &conf).message(), calls(&host)), ("stuck".into(), "GC GC ".into()));
    conf["nodename"] = "n2".into();
    assert_eq!(
        (host.plugin("GC", "", "", &conf).code(), &*calls(&host)),
        (7, "GC GC "),
        "another node's list"
    );
    conf["nodename"] = "n1".into();
    conf["gc_dry_run"] = true.into();
    assert!(!host.plugin("GC", "", "", &conf).ok);
    assert_eq!(calls(&host), "GC GC ");
}
