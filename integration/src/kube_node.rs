//! One node of a Kubernetes cluster in a namespace: the API server and the real agent, which logs in as the service
//! account of the shipped manifests and has its rights only.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    bins::bin,
    cni::{self, Said},
    kube::ApiServer,
    netns::TestNs,
    process::{self, Running},
    transcript,
    wait::until,
};

/// Who the agent is.
pub const AGENT: &str = "system:serviceaccount:kube-system:brindle-node";

/// The node, its API server and its agent; all gone when dropped.
pub struct KubeNode {
    agent: Option<Running>,
    pub server: ApiServer,
    pub ns: TestNs,
    pub dir: PathBuf,
    pub name: String,
    /// Variables of the agent's environment.
    pub vars: Vec<(String, String)>,
    address: String,
}

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

impl KubeNode {
    /// A node `name` with `address` (with its prefix length) on its uplink, and a cluster with the shipped manifests.
    pub fn new(tag: &str, name: &str, address: &str) -> Self {
        let ns = TestNs::new(tag);
        let mut rtnl = ns.rtnl();
        rtnl.add_bridge("eth0", None).expect("a bridge can be made");
        rtnl.set_up("eth0").expect("it comes up");
        let index = rtnl.link_by_name("eth0").ok().flatten().expect("it was made").index;
        let prefix = address.parse().expect("an address with a prefix length");
        rtnl.add_addr(&brindle_kernel::netlink::Addr::new(index, prefix)).expect("an address can be added");
        let dir = std::env::temp_dir().join(ns.name());
        fs::create_dir_all(&dir).expect("a folder for this node");
        let server = transcript::api_server(ns.ns(), [127, 0, 0, 1].into());
        for path in ["crds", "base/node/account.yaml", "base/node-roles/roles.yaml"] {
            server.load(&deploy(path)).unwrap_or_else(|e| panic!("{e}"));
        }
        let token = server.service_account_token("kube-system", "brindle-node");
        server.write_kubeconfig(&dir.join("agent.kubeconfig"), &token);
        server.write_kubeconfig(&dir.join("admin.kubeconfig"), server.admin_token());
        Self { agent: None, server, ns, dir, name: name.into(), vars: Vec::new(), address: address.into() }
    }

    /// The Node object, as a kubelet registers it.
    pub fn register(&self) {
        let ip = self.address.split('/').next().unwrap_or("");
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name},
            "status": {"addresses": [{"type": "InternalIP", "address": ip}]}});
        self.server.apply(node).unwrap_or_else(|s| panic!("{}", s.message));
    }

    /// Starts the agent; does not wait.
    pub fn start_agent(&mut self, args: &[&str]) {
        let log = fs::File::options().create(true).append(true).open(self.dir.join("agent.log"));
        let log = log.expect("a log file");
        let out = log.try_clone().expect("a second handle");
        let mut command = Command::new(bin("brindle-node"));
        command
            .args(["run", "--node-name", &self.name, "--ip", &self.address])
            .args(["--state-dir".as_ref(), self.dir.as_os_str()])
            .args(["--datastore", &format!("kubernetes:{}", self.dir.join("agent.kubeconfig").display())])
            .args(args)
            .envs(self.vars.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(log);
        self.agent = Some(Running::start_in(self.ns.ns(), &mut command));
    }

    /// Waits until ADD is served.
    pub fn wait_for_agent(&self, limit: Duration) {
        until("the agent serves ADD", limit, || {
            let said = self.plugin("STATUS", "-", "-", "-");
            if said.ok { Ok(()) } else { Err(format!("{said:?}\n{}", self.log())) }
        });
    }

    /// The agent's process.
    pub fn pid(&self) -> u32 {
        self.agent.as_ref().expect("the agent was started").pid()
    }

    /// Waits for the agent to end by itself; its exit code.
    pub fn end_of_agent(&mut self, limit: Duration) -> Option<i32> {
        self.agent.take().expect("the agent was started").wait(limit).code()
    }

    pub fn stop_agent(&mut self) {
        self.agent = None;
    }

    /// The end of the agent's log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
        let skip = text.lines().count().saturating_sub(30);
        text.lines().skip(skip).collect::<Vec<_>>().join("\n")
    }

    /// Whether `brindle-node probe` is content (`what`: `--live` or `--ready`), and what it says.
    pub fn probe(&self, what: &str) -> (bool, String) {
        let mut command = Command::new(bin("brindle-node"));
        let out = command.args(["probe", what, "--state-dir"]).arg(&self.dir).output();
        let out = out.expect("the program starts");
        (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// What the agent says of itself over its admin socket; None while nobody listens.
    pub fn status(&self) -> Option<Value> {
        let mut c = UnixStream::connect(self.dir.join("admin.sock")).ok()?;
        c.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        c.write_all(b"{\"cmd\":\"status\"}\n").ok()?;
        let mut line = String::new();
        BufReader::new(c).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    /// Calls the plugin for a pod of the namespace `default`.
    pub fn plugin(&self, verb: &str, id: &str, netns: &str, pod: &str) -> Said {
        cni::call_plugin(self.ns.ns(), &self.dir, verb, id, netns, pod)
    }
}

impl Drop for KubeNode {
    fn drop(&mut self) {
        self.agent = None;
        // The carrier of tunnels outlives its agent on purpose.
        for (pid, line) in process::naming(&self.dir.to_string_lossy()) {
            if line.contains("brindle-ipip") {
                let _ = Command::new("kill").arg(pid.to_string()).status();
            }
        }
        if std::thread::panicking() {
            eprintln!("---- the agent said last:\n{}", self.log());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
