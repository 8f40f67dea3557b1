//! A node whose datastore is a real etcd: resources through brindlectl, pods through the plugin, and what goes on while
//! etcd is dead. Needs root and Debian's etcd-server.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use brindle_integration::{
    bins::bin,
    cni::{Container, Said, ping},
    netns::TestNs,
    process::Running,
    transcript,
    wait::{until, until_true},
};
use serde_json::{Value, json};
use std::io::Write as _;

const LONG: Duration = Duration::from_secs(90);
/// Everything is in one namespace, so the usual port is free.
const ETCD: &str = "http://127.0.0.1:2379";

struct Node {
    ns: TestNs,
    dir: PathBuf,
    etcd: Option<Running>,
    agent: Option<Running>,
}

/// A namespace with an uplink.
fn machine(tag: &str) -> TestNs {
    let ns = TestNs::new(tag);
    let mut rtnl = ns.rtnl();
    rtnl.add_bridge("eth0", None).unwrap();
    rtnl.set_up("eth0").unwrap();
    let index = rtnl.link_by_name("eth0").unwrap().unwrap().index;
    let address = "192.0.2.1/24".parse().unwrap();
    rtnl.add_addr(&brindle_kernel::netlink::Addr::new(index, address)).unwrap();
    ns
}

impl Node {
    fn new(tag: &str) -> Self {
        let ns = machine(tag);
        let dir = std::env::temp_dir().join(ns.name());
        fs::create_dir_all(&dir).unwrap();
        let mut node = Self { ns, dir, etcd: None, agent: None };
        node.start_etcd();
        node
    }

    fn log(&self, name: &str) -> (fs::File, fs::File) {
        let file = fs::File::options().create(true).append(true).open(self.dir.join(name)).unwrap();
        (file.try_clone().unwrap(), file)
    }

    fn start_etcd(&mut self) {
        let (_, server) = transcript::etcd(&self.dir, Some((self.ns.ns(), "127.0.0.1")));
        self.etcd = Some(server);
        until("etcd answers", LONG, || {
            let (code, said) = self.ctl(&["get", "nodes"], "");
            if code == 0 { Ok(()) } else { Err(said) }
        });
    }

    fn kill_etcd(&mut self) {
        self.etcd.take().unwrap().kill();
    }

    fn start_agent(&mut self) {
        self.start_agent_alone();
        until("the agent serves ADD", LONG, || {
            let said = self.plugin("STATUS", "-", "");
            let log = || fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
            if said.ok { Ok(()) } else { Err(format!("{said:?}\n{}", log())) }
        });
    }

    /// Without waiting until it serves.
    fn start_agent_alone(&mut self) {
        self.start_agent_with(&[]);
    }

    fn start_agent_with(&mut self, vars: &[(&str, &str)]) {
        let (out, err) = self.log("agent.log");
        let mut command = Command::new(bin("brindle-node"));
        command
            .args(["run", "--node-name", "n1", "--ip", "192.0.2.1/24"])
            .args(["--state-dir".as_ref(), self.dir.as_os_str()])
            .args(["--datastore", &format!("etcd:{ETCD}")])
            .env_remove("KUBERNETES_SERVICE_HOST")
            .envs(vars.iter().copied())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        self.agent = Some(Running::start_in(self.ns.ns(), &mut command));
    }

    /// Whether `brindle-node probe` is content, and what it says.
    fn probe(&self, what: &str) -> (bool, String) {
        let mut command = Command::new(bin("brindle-node"));
        let out = command.args(["probe", what, "--state-dir"]).arg(&self.dir).output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Starts the agent with a pool and adds two pods, which reach each other.
    fn two_pods(&mut self, cidr: &str) -> [(Container, Said); 2] {
        let pool = format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: pool}}\nspec: {{cidr: {cidr}}}\n"
        );
        let (code, said) = self.ctl(&["apply", "-f", "-"], &pool);
        assert_eq!(code, 0, "{said}");
        self.start_agent();
        let pods = [(); 2].map(|()| {
            let pod = Container::new();
            let said = self.plugin("ADD", &pod.id, &pod.netns());
            (pod, said)
        });
        let [(a, first), (_, second)] = &pods;
        assert!(ping(a.ns.ns(), &second.address()), "{first:?} {second:?}");
        pods
    }

    /// The machine goes down, with everything the kernel knew, and comes up without its datastore. Its disk stays.
    fn reboot(&mut self, tag: &str) {
        self.agent.take().unwrap().kill();
        self.kill_etcd();
        self.ns = machine(tag);
    }

    /// brindlectl on this datastore.
    fn ctl(&self, args: &[&str], input: &str) -> (i32, String) {
        let mut command = Command::new(bin("brindlectl"));
        command.args(args).env("BRINDLE_DATASTORE", format!("etcd:{ETCD}"));
        let out = self.piped(&mut command, input.as_bytes());
        let text =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        (out.status.code().unwrap_or(-1), text)
    }

    fn piped(&self, command: &mut Command, input: &[u8]) -> std::process::Output {
        let work = || {
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let _ = child.stdin.take().unwrap().write_all(input);
            child.wait_with_output().unwrap()
        };
        self.ns.ns().run(work).unwrap()
    }

    fn plugin(&self, verb: &str, id: &str, netns: &str) -> Said {
        self.plugin_for(&format!("pod-{id}"), verb, id, netns)
    }

    fn plugin_for(&self, pod: &str, verb: &str, id: &str, netns: &str) -> Said {
        let args =
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};K8S_POD_UID=uid-{pod}");
        let conf: Value = json!({"cniVersion": "1.1.0", "name": "net", "type": "brindle",
            "agent_socket": self.dir.join("cni.sock"), "state_dir": self.dir,
            "ipam": {"type": "brindle-ipam"}});
        let mut command = Command::new(bin("brindle"));
        command
            .env_clear()
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", id), ("CNI_NETNS", netns)])
            .envs([("CNI_IFNAME", "eth0"), ("CNI_PATH", "/usr/lib/cni")])
            .env("CNI_ARGS", args)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let out = self.piped(&mut command, &serde_json::to_vec(&conf).unwrap());
        Said {
            ok: out.status.success(),
            out: String::from_utf8_lossy(&out.stdout).into_owned(),
            err: String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }

    /// Calico's client refuses to change an object without uid or creationTimestamp: what an agent, the plugin,
    /// brindlectl and the controllers wrote has both.
    fn is_calicos_to_change(&self) {
        const RESOURCES: &str = "/calico/resources/v3/projectcalico.org/";
        let (out, err) = self.log("controllers.log");
        let mut command = Command::new(bin("brindle-controllers"));
        command
            .args(["run", "--datastore", &format!("etcd:{ETCD}")])
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        let mut controllers = Running::start_in(self.ns.ns(), &mut command);
        let all = until("the controllers wrote their configuration", LONG, || {
            let all = self.etcdctl(&["get", "--prefix", RESOURCES]);
            if all.contains("/kubecontrollersconfigurations/") {
                return Ok(all);
            }
            Err(fs::read_to_string(self.dir.join("controllers.log")).unwrap_or_default())
        });
        controllers.kill();
        let lines: Vec<&str> = all.lines().collect();
        for pair in lines.chunks(2) {
            let [key, value] = pair else { panic!("a key without a value: {all}") };
            let value: Value = serde_json::from_str(value).unwrap_or_else(|e| panic!("{key}: {e}"));
            for name in ["uid", "creationTimestamp"] {
                let text = value["metadata"][name].as_str().unwrap_or_default();
                assert!(!text.is_empty(), "{key} has no {name}: {value}");
            }
        }
        for kind in ["nodes", "ippools", "workloadendpoints"] {
            assert!(all.contains(&format!("{RESOURCES}{kind}/")), "no {kind} in {all}");
        }
    }

    fn etcdctl(&self, args: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.args(["--endpoints", ETCD]).args(args).env("ETCDCTL_API", "3");
        String::from_utf8(self.piped(&mut command, b"").stdout).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.agent.take());
        drop(self.etcd.take());
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

#[test]
fn pods_live_on_etcd_and_outlive_it() {
    let mut node = Node::new("etcd");
    let [(a, first), (b, second)] = node.two_pods("10.91.0.0/24");

    // Calico's tools find what they look for where they look.
    let keys = node.etcdctl(&["get", "--prefix", "--keys-only", "/calico/"]);
    for path in [
        "/calico/resources/v3/projectcalico.org/nodes/n1",
        "/calico/resources/v3/projectcalico.org/workloadendpoints/default/",
        "/calico/ipam/v2/assignment/ipv4/block/10.91.0.",
        "/calico/ipam/v2/host/n1/ipv4/block/10.91.0.",
        "/calico/ipam/v2/handle/",
    ] {
        assert!(keys.contains(path), "{path} is missing in\n{keys}");
    }
    let (code, said) = node.ctl(&["get", "weps", "-o", "wide"], "");
    assert!(code == 0 && said.contains(&first.address()), "{said}");
    node.is_calicos_to_change();

    // Without its datastore the node forwards, and a DEL is taken.
    node.kill_etcd();
    assert!(ping(a.ns.ns(), &second.address()), "forwarding goes on");
    let said = node.plugin("DEL", &a.id, &a.netns());
    assert!(said.ok, "{said:?}");
    assert!(ping(b.ns.ns(), "192.0.2.1"), "the other pod lives");
    node.start_etcd();
    until_true("what was deleted meanwhile is released", LONG, || {
        let (code, said) = node.ctl(&["get", "weps", "-o", "wide"], "");
        code == 0 && !said.contains(&first.address()) && said.contains(&second.address())
    });
    until_true("its handle is gone", LONG, || {
        !node.etcdctl(&["get", "--prefix", "--keys-only", "/calico/ipam/v2/handle/"]).contains(&a.id)
    });
    // And the next pod is served.
    let c = Container::new();
    until("an ADD is served again", LONG, || {
        let said = node.plugin("ADD", &c.id, &c.netns());
        if said.ok { Ok(()) } else { Err(format!("{said:?}")) }
    });
    for x in [&b, &c] {
        assert!(node.plugin("DEL", &x.id, &x.netns()).ok);
    }
}

#[test]
fn pods_of_before_a_reboot_have_their_addresses_while_etcd_is_dead() {
    let mut node = Node::new("etcdboot");
    let [(a, first), (b, second)] = node.two_pods("10.92.0.0/24");

    node.reboot("etcdboot2");
    let (id_a, id_b) = (a.id.clone(), b.id.clone());
    drop((a, b));
    node.start_agent_alone();
    // A runtime that knows the container still: the same one again.
    let a = Container { id: id_a, ..Container::new() };
    let again = until("the container is served", LONG, || {
        let said = node.plugin("ADD", &a.id, &a.netns());
        let log = || fs::read_to_string(node.dir.join("agent.log")).unwrap_or_default();
        if said.ok { Ok(said) } else { Err(format!("{said:?}\n{}", log())) }
    });
    assert_eq!(again.address(), first.address());
    // kubelet: the old sandbox is cleared away, the pod gets a new one.
    let pod_b = format!("pod-{id_b}");
    assert!(node.plugin_for(&pod_b, "DEL", &id_b, "").ok);
    let b = Container::new();
    let moved = node.plugin_for(&pod_b, "ADD", &b.id, &b.netns());
    assert_eq!(moved.address(), second.address(), "{moved:?}");
    // A pod nobody has seen before is told what it waits for.
    let c = Container::new();
    let refused = node.plugin("ADD", &c.id, &c.netns());
    assert_eq!(refused.code(), 11, "{refused:?}");
    assert!(refused.out.contains("a new pod gets an address only with the datastore"), "{refused:?}");
    assert_eq!(c.ns.rtnl().link_by_name("eth0").unwrap(), None, "nothing of it is left");
    assert_eq!(node.plugin("STATUS", "-", "").code(), 51);
    // What policy wants is not known: nobody gets through.
    assert!(!ping(a.ns.ns(), &moved.address()));

    node.start_etcd();
    until_true("the pods reach each other", LONG, || ping(a.ns.ns(), &moved.address()));
    until_true("they are recorded", LONG, || {
        let (code, said) = node.ctl(&["get", "weps", "-o", "wide"], "");
        let handles = node.etcdctl(&["get", "--prefix", "--keys-only", "/calico/ipam/v2/handle/"]);
        code == 0
            && said.contains(&first.address())
            && said.contains(&second.address())
            && handles.contains(&format!("net.{}", a.id))
            && handles.contains(&format!("net.{}", b.id))
            && !handles.contains(&format!("net.{id_b}"))
    });
    for (pod, x, added) in [(format!("pod-{}", a.id), &a, &again), (pod_b, &b, &moved)] {
        assert!(node.plugin_for(&pod, "STATUS", "-", "").ok);
        let late = until("a new pod is served", LONG, || {
            let said = node.plugin("ADD", &c.id, &c.netns());
            if said.ok { Ok(said) } else { Err(format!("{said:?}")) }
        });
        assert_ne!(late.address(), added.address());
        assert!(node.plugin_for(&pod, "DEL", &x.id, &x.netns()).ok);
    }
    assert!(node.plugin("DEL", &c.id, &c.netns()).ok);
    until_true("nothing is left", LONG, || {
        !node.etcdctl(&["get", "--prefix", "--keys-only", "/calico/ipam/v2/handle/"]).contains("net.")
    });
}

/// A new node of a cluster that starts: its agent may be there before etcd.
#[test]
fn a_pod_on_a_new_node_waits_for_etcd() {
    let mut node = Node::new("etcdlate");
    node.kill_etcd();
    node.start_agent_with(&[("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443")]);
    let log = |node: &Node| fs::read_to_string(node.dir.join("agent.log")).unwrap_or_default();
    until("it lives", LONG, || match node.probe("--live") {
        (true, _) => Ok(()),
        (false, said) => Err(format!("{said}\n{}", log(&node))),
    });
    until("it says what it waits for", LONG, || {
        let (ready, said) = node.probe("--ready");
        let waits = said.contains("[-] datastore: waiting for etcd:http://127.0.0.1:2379");
        if !ready && waits && said.contains("refused") { Ok(()) } else { Err(said) }
    });
    assert!(!log(&node).contains("kube-proxy"), "the address is no service's: {}", log(&node));
    node.start_etcd();
    until("it goes on", LONG, || match node.probe("--ready") {
        (true, _) => Ok(()),
        (false, said) => Err(format!("{said}\n{}", log(&node))),
    });
    assert!(log(&node).contains("agent started"), "{}", log(&node));

    // Whoever starts one by hand is told at once.
    node.agent.take().unwrap().kill();
    fs::remove_file(node.dir.join("nodename")).unwrap();
    node.kill_etcd();
    node.start_agent_alone();
    let status = node.agent.take().unwrap().wait(LONG);
    assert!(!status.success() && log(&node).contains("as a pod of the cluster"), "{status} {}", log(&node));
}
