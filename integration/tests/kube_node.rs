//! Two nodes of a Kubernetes cluster by the real programs: Nodes, Pods and NetworkPolicies are objects of an API server, the
//! agents log in as the service account of the manifests with its roles, and they go on while the server is away. Needs
//! root.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use brindle_integration::{
    bins::bin,
    cni::{Container, Said, call_plugin, call_plugin_for, ping},
    kube::ApiServer,
    peer::Segment,
    process::Running,
    transcript,
    wait::{until, until_true},
};
use brindle_kernel::netns::NetNs;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(90);
/// The API server's host; the nodes are those behind it.
const SERVER: u8 = 1;

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

struct Cluster {
    agents: Vec<Running>,
    server: ApiServer,
    segment: Segment,
    admin: PathBuf,
    account: PathBuf,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in [2, 3] {
                let log = self.segment.dir(host).join("agent.log");
                let text = fs::read_to_string(log).unwrap_or_default();
                let last: Vec<&str> = text.lines().rev().take(40).collect();
                eprintln!("---- agent n{host} said last:");
                last.into_iter().rev().for_each(|l| eprintln!("{l}"));
            }
        }
        self.agents.clear();
    }
}

impl Cluster {
    fn new() -> Self {
        let segment = Segment::new(3);
        let ns = NetNs::named(&segment.netns(SERVER)).unwrap();
        let server = transcript::api_server(&ns, Segment::v4(SERVER));
        let definitions = fs::read_dir(deploy("crds")).unwrap().map(|f| f.unwrap().path());
        // The folder's list for kustomize is no object.
        for path in definitions.filter(|p| !p.ends_with("kustomization.yaml")) {
            server.load(&path).unwrap();
        }
        for path in ["base/node/account.yaml", "base/node-roles/roles.yaml"] {
            server.load(&deploy(path)).unwrap();
        }
        let admin = segment.dir(SERVER).join("admin.kubeconfig");
        server.write_kubeconfig(&admin, server.admin_token());
        let account = segment.dir(SERVER).join("agent.kubeconfig");
        server.write_kubeconfig(&account, &server.service_account_token("kube-system", "brindle-node"));
        for host in [2, 3] {
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{host}")},
                "status": {"addresses": [{"type": "InternalIP", "address": Segment::v4(host).to_string()}]}});
            server.apply(node).unwrap();
        }
        Self { agents: Vec::new(), server, segment, admin, account }
    }

    fn ns(&self, host: u8) -> NetNs {
        NetNs::named(&self.segment.netns(host)).unwrap()
    }

    fn start_agents(&mut self) {
        for host in [2, 3] {
            let dir = self.segment.dir(host);
            let log = fs::File::options().create(true).append(true).open(dir.join("agent.log")).unwrap();
            let mut command = Command::new(bin("brindle-node"));
            command
                .args(["run", "--node-name", &format!("n{host}")])
                .args(["--ip", &format!("{}/24", Segment::v4(host))])
                .args(["--state-dir".as_ref(), dir.as_os_str()])
                .args(["--datastore", &format!("kubernetes:{}", self.account.display())])
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log);
            self.agents.push(Running::start_in(&self.ns(host), &mut command));
        }
        for host in [2, 3] {
            until("the agent serves ADD", LONG, || {
                let said = self.plugin(host, "STATUS", "-", "", "-");
                if said.ok { Ok(()) } else { Err(format!("{said:?}")) }
            });
        }
    }

    fn piped(&self, host: u8, command: &mut Command, input: &[u8]) -> std::process::Output {
        let work = || {
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let _ = child.stdin.take().unwrap().write_all(input);
            child.wait_with_output().unwrap()
        };
        self.ns(host).run(work).unwrap()
    }

    /// brindlectl as the cluster's administrator.
    fn ctl(&self, args: &[&str], input: &str) -> (i32, String) {
        let mut command = Command::new(bin("brindlectl"));
        command.args(args).args(["--datastore", &format!("kubernetes:{}", self.admin.display())]);
        let out = self.piped(SERVER, &mut command, input.as_bytes());
        let text =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        (out.status.code().unwrap_or(-1), text)
    }

    fn plugin(&self, host: u8, verb: &str, id: &str, netns: &str, pod: &str) -> Said {
        call_plugin(&self.ns(host), &self.segment.dir(host), verb, id, netns, pod)
    }

    /// What scheduler, kubelet and runtime do for a pod: the object, the sandbox, ADD.
    fn run_pod(&self, name: &str, host: u8) -> (Container, Said) {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
            "spec": {"nodeName": format!("n{host}"), "containers": [{"name": "c", "image": "example.org/c:1"}]}});
        self.server.apply(pod).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let container = Container::new();
        let said = self.plugin(host, "ADD", &container.id, &container.netns(), name);
        assert!(said.ok, "{name}: {said:?}");
        (container, said)
    }

    fn annotation(&self, pod: &str, name: &str) -> Value {
        let pod = self.server.get(("v1", "Pod"), ("default", pod)).expect("the pod is there");
        pod["metadata"]["annotations"][name].clone()
    }
}

#[test]
fn two_nodes_of_a_cluster_serve_pods_and_policy() {
    let mut cluster = Cluster::new();
    let pool = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: pool}\nspec: {cidr: 10.92.0.0/16}\n";
    let (code, said) = cluster.ctl(&["apply", "-f", "-"], pool);
    assert_eq!(code, 0, "{said}");
    cluster.start_agents();

    // The agents told their addresses as Calico's do.
    let node = cluster.server.get(("v1", "Node"), ("", "n2")).unwrap();
    assert_eq!(node["metadata"]["annotations"]["projectcalico.org/IPv4Address"], "10.99.0.2/24");

    let (a, first) = cluster.run_pod("web", 2);
    let (b, second) = cluster.run_pod("client", 3);
    let (web, client) = (first.address(), second.address());
    for (pod, container, address) in [("web", &a, &web), ("client", &b, &client)] {
        assert_eq!(cluster.annotation(pod, "cni.projectcalico.org/podIP"), format!("{address}/32"));
        assert_eq!(cluster.annotation(pod, "cni.projectcalico.org/containerID"), json!(container.id));
    }
    until_true("pods of both nodes talk", LONG, || ping(b.ns.ns(), &web));

    for (kind, words) in [
        ("nodes", vec!["n2", "n3"]),
        ("ippools", vec!["pool", "10.92.0.0/16"]),
        ("weps", vec!["web", "client"]),
        ("namespaces", vec!["default"]),
    ] {
        let (code, said) = cluster.ctl(&["get", kind, "-o", "wide"], "");
        assert!(code == 0 && words.iter().all(|w| said.contains(w)), "{kind}: {said}");
    }

    // A NetworkPolicy is in force, and what it allows passes.
    let policy = |ingress: Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": ingress}})
    };
    cluster.server.apply(policy(json!([]))).unwrap();
    until_true("the policy is in force", LONG, || !ping(b.ns.ns(), &web));
    assert!(ping(a.ns.ns(), &client), "the other way is not restricted");
    cluster
        .server
        .apply(policy(json!([{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}])))
        .unwrap();
    until_true("what the policy allows passes", LONG, || ping(b.ns.ns(), &web));
    let (c, third) = cluster.run_pod("stranger", 3);
    assert!(!ping(c.ns.ns(), &web) && ping(c.ns.ns(), &client), "{third:?}");

    // Without API server everything goes on, and a DEL is taken.
    cluster.server.stop();
    assert!(ping(b.ns.ns(), &web) && !ping(c.ns.ns(), &web), "forwarding and policy go on");
    let said = cluster.plugin(3, "DEL", &c.id, &c.netns(), "stranger");
    assert!(said.ok, "{said:?}");
    let handle = format!("k8s-pod-network.{}", c.id);
    let handles = || cluster.server.list(("crd.projectcalico.org/v1", "IPAMHandle"));
    let held = || handles().iter().any(|h| h["spec"]["handleID"] == json!(handle));
    assert!(held(), "its address is recorded still");
    cluster.server.delete(("networking.k8s.io/v1", "NetworkPolicy"), ("default", "web")).unwrap();
    cluster.server.resume();
    until_true("what was deleted meanwhile is released", LONG, || !held());
    assert_eq!(
        cluster.annotation("stranger", "cni.projectcalico.org/podIP"),
        "",
        "given back on the pod too"
    );
    let (d, _) = cluster.run_pod("late", 3);
    until_true("the policy that went meanwhile is gone", LONG, || ping(d.ns.ns(), &web));

    // A container that is no pod of Kubernetes is refused with the reason.
    let lone = Container::new();
    let mut command = Command::new(bin("brindle"));
    command
        .env_clear()
        .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", lone.id.as_str()), ("CNI_IFNAME", "eth0")])
        .envs([("CNI_NETNS", lone.netns()), ("CNI_PATH", "/usr/lib/cni".into())])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let dir = cluster.segment.dir(2);
    let conf = json!({"cniVersion": "1.1.0", "name": "k8s-pod-network", "type": "brindle",
        "agent_socket": dir.join("cni.sock"), "state_dir": dir, "ipam": {"type": "brindle-ipam"}});
    let out = cluster.piped(2, &mut command, &serde_json::to_vec(&conf).unwrap());
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(!out.status.success() && text.contains("eth0 of a Pod"), "{text}");

    // A sandbox of a pod that went comes late: it does not get the device of the pod that has its name now.
    let uid = cluster.server.get(("v1", "Pod"), ("default", "web")).unwrap()["metadata"]["uid"].clone();
    let static_pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "mirror", "namespace": "default",
            "annotations": {"kubernetes.io/config.hash": "0123456789abcdef0123456789abcdef"}},
        "spec": {"nodeName": "n2", "containers": [{"name": "c", "image": "example.org/c:1"}]}});
    cluster.server.apply(static_pod).unwrap();
    let add = |c: &Container, pod: &str, uid: &str| {
        call_plugin_for(&cluster.ns(2), &cluster.segment.dir(2), "ADD", c, pod, uid)
    };
    let [first, second, again, late] = std::array::from_fn(|_| Container::new());
    let said = add(&late, "web", "11111111-1111-1111-1111-111111111111");
    assert!(!said.ok && format!("{said:?}").contains("former pod default/web"), "{said:?}");
    assert!(ping(b.ns.ns(), &web), "the pod that is there keeps its device");
    // The same pod in a new sandbox, and one that kubelet knows by a uid the Pod does not have.
    let said = add(&again, "web", uid.as_str().unwrap());
    assert!(said.ok, "{said:?}");
    for c in [&first, &second] {
        let said = add(c, "mirror", "0123456789abcdef0123456789abcdef");
        assert!(said.ok, "{said:?}");
    }
    for (c, pod) in [(&late, "web"), (&again, "web"), (&first, "mirror"), (&second, "mirror")] {
        let said = cluster.plugin(2, "DEL", &c.id, &c.netns(), pod);
        assert!(said.ok, "{said:?}");
    }

    for (host, name, c) in [(2, "web", &a), (3, "client", &b), (3, "late", &d)] {
        let said = cluster.plugin(host, "DEL", &c.id, &c.netns(), name);
        assert!(said.ok, "{said:?}");
    }
    until_true("no pod's handle is left", LONG, || {
        !handles()
            .iter()
            .any(|h| h["spec"]["handleID"].as_str().is_some_and(|id| id.starts_with("k8s-pod-network.")))
    });
}
