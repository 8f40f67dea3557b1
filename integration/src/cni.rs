//! A node for CNI: a namespace with an uplink, a store with one pool, the real agent, and the real plugins called as a
//! runtime calls them.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use brindle_config_core::{
    Key, Kind, ObjectMeta, Resource, Spec,
    pool::IpPoolSpec,
    store::{Expect, Store, StoreError, StoreExt},
    workload::WorkloadEndpointSpec,
};
use brindle_ipam::audit::{Finding, audit};
use brindle_kernel::netns::NetNs;
use serde_json::{Value, json};

use crate::{bins::bin, netns::TestNs, process::Running, wait::until};

/// How long an agent may take to be ready on a busy machine.
const START: Duration = Duration::from_secs(90);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// What a plugin said.
#[derive(Clone, Debug)]
pub struct Said {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Its standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The code of its error.
    #[track_caller]
    pub fn code(&self) -> u64 {
        assert!(!self.ok, "{self:?}");
        self.json()["code"].as_u64().unwrap_or_else(|| panic!("no code: {self:?}"))
    }

    /// The first address of its result.
    #[track_caller]
    pub fn address(&self) -> String {
        assert!(self.ok, "{self:?}");
        let net = self.json()["ips"][0]["address"].as_str().map(str::to_owned).unwrap_or_default();
        net.split('/').next().map(str::to_owned).unwrap_or_default()
    }
}

/// Calls the plugin as a runtime on a node does: `dir` is the agent's, the pod is in the namespace `default`.
pub fn call_plugin(ns: &NetNs, dir: &Path, verb: &str, id: &str, netns: &str, pod: &str) -> Said {
    call_plugin_with(ns, &cluster_conf(dir), verb, id, netns, pod)
}

/// The same with this configuration.
pub fn call_plugin_with(ns: &NetNs, conf: &Value, verb: &str, id: &str, netns: &str, pod: &str) -> Said {
    called(ns, &mut plugin(&bin("brindle"), verb, id, netns, pod), conf)
}

/// [`call_plugin`] as kubelet's runtime calls it, which names the pod's uid.
pub fn call_plugin_for(ns: &NetNs, dir: &Path, verb: &str, c: &Container, pod: &str, uid: &str) -> Said {
    let mut command = plugin(&bin("brindle"), verb, &c.id, &c.netns(), pod);
    let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};K8S_POD_UID={uid}");
    called(ns, command.env("CNI_ARGS", args), &cluster_conf(dir))
}

fn cluster_conf(dir: &Path) -> Value {
    json!({"cniVersion": "1.1.0", "name": "k8s-pod-network", "type": "brindle",
        "agent_socket": dir.join("cni.sock"), "state_dir": dir, "ipam": {"type": "brindle-ipam"}})
}

/// A plugin's command line and environment.
fn plugin(program: &Path, verb: &str, id: &str, netns: &str, pod: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}"))
        .env("CNI_PATH", "/usr/lib/cni")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs a prepared command in a namespace.
fn called(ns: &NetNs, command: &mut Command, conf: &Value) -> Said {
    let input = serde_json::to_vec(conf).expect("JSON");
    let work = || {
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        // A program that refuses early closes its end.
        let _ = child.stdin.take().expect("it is piped").write_all(&input);
        child.wait_with_output().expect("a child can be waited for")
    };
    let out = ns.run(work).expect("the namespace is alive");
    Said {
        ok: out.status.success(),
        out: String::from_utf8_lossy(&out.stdout).into_owned(),
        err: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

/// A container: an id and a namespace.
#[derive(Debug)]
pub struct Container {
    pub id: String,
    pub ns: TestNs,
}

impl Container {
    /// A new one.
    pub fn new() -> Self {
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        Self { id: format!("c{n}"), ns: TestNs::new(&format!("pod{n}")) }
    }

    /// The path a runtime would give.
    pub fn netns(&self) -> String {
        format!("/run/netns/{}", self.ns.name())
    }
}

impl Default for Container {
    fn default() -> Self {
        Self::new()
    }
}

/// The node.
pub struct CniNode {
    pub ns: TestNs,
    pub dir: PathBuf,
    /// Its name, and its address on `eth0`.
    pub name: String,
    address: String,
    datastore: String,
    /// What the agent does about routes between nodes.
    pub networking: &'static str,
    /// Variables of the agent's environment.
    pub vars: Vec<(String, String)>,
    runtime: tokio::runtime::Runtime,
    store: Arc<dyn Store>,
    agent: Option<Running>,
    /// Its folder is a file system of its own.
    small: bool,
}

impl CniNode {
    /// A node with this pool, its agent running.
    pub fn new(tag: &str, pool: &str) -> Self {
        let mut node = Self::without_agent(tag, pool);
        node.start_agent();
        node
    }

    /// The same before its agent is started.
    pub fn without_agent(tag: &str, pool: &str) -> Self {
        let node = Self::alone(tag, "n1", "192.0.2.1/24", None, None);
        node.put(ObjectMeta::named("pool"), IpPoolSpec::new(pool.parse().expect("a CIDR")));
        node
    }

    /// [`Self::new`] with all its files, the datastore among them, on a disk of this size (as tmpfs has it).
    pub fn on_small_disk(tag: &str, pool: &str, size: &str) -> Self {
        let mut node = Self::alone(tag, "n1", "192.0.2.1/24", None, Some(size));
        node.put(ObjectMeta::named("pool"), IpPoolSpec::new(pool.parse().expect("a CIDR")));
        node.start_agent();
        node
    }

    /// Takes all the room there is on its disk.
    pub fn fill_disk(&self) {
        assert!(self.small, "not the machine's own disk");
        let mut file = fs::File::create(self.dir.join("filler")).expect("there is room for a name");
        for part in [65536, 512] {
            while file.write_all(&vec![0x5a; part]).is_ok() {}
        }
    }

    /// Gives it back.
    pub fn free_disk(&self) {
        fs::remove_file(self.dir.join("filler")).expect("it was filled");
    }

    /// A second node of the same cluster, `n2`, its `eth0` on one segment with the other's; no agent yet.
    pub fn neighbour(&self, tag: &str) -> Self {
        let node = Self::alone(tag, "n2", "192.0.2.2/24", Some(&self.datastore), None);
        let wire = format!(
            "ip link add wire2 type veth peer name wire1 netns {} && ip link set wire2 master eth0 up",
            node.ns.name()
        );
        sh(self.ns.ns(), &wire);
        sh(node.ns.ns(), "ip link set wire1 master eth0 up");
        node
    }

    fn alone(tag: &str, name: &str, address: &str, datastore: Option<&str>, disk: Option<&str>) -> Self {
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let ns = TestNs::new(&format!("{tag}{n}"));
        let mut rtnl = ns.rtnl();
        // Any device with an address will do as the uplink.
        rtnl.add_bridge("eth0", None).expect("a bridge can be made");
        rtnl.set_up("eth0").expect("it comes up");
        let index = rtnl.link_by_name("eth0").ok().flatten().expect("it was made").index;
        let net = address.parse().expect("a literal");
        rtnl.add_addr(&brindle_kernel::netlink::Addr::new(index, net)).expect("an address can be added");
        let dir = std::env::temp_dir().join(ns.name());
        fs::create_dir_all(&dir).expect("a folder for this node");
        if let Some(size) = disk {
            let mount = Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"])
                .arg(&dir)
                .status();
            assert!(mount.is_ok_and(|s| s.success()), "a file system can be mounted on {}", dir.display());
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let url =
            datastore.map_or_else(|| format!("sqlite:{}", dir.join("brindle.db").display()), str::to_owned);
        let store = {
            let _inside = runtime.enter();
            brindle_config::open(&url).unwrap_or_else(|e| panic!("{e}"))
        };
        let (name, address) = (name.to_owned(), address.to_owned());
        let networking = "none";
        Self {
            ns,
            dir,
            name,
            address,
            datastore: url,
            networking,
            vars: Vec::new(),
            runtime,
            store,
            agent: None,
            small: disk.is_some(),
        }
    }

    /// Writes a resource.
    pub fn put<S: Spec>(&self, meta: ObjectMeta, spec: S) {
        let resource = Resource::new(meta, spec);
        self.runtime.block_on(self.store.put_as(&resource, Expect::Any)).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Changes a resource that is there, in its stored form, whoever else writes it.
    pub fn edit(&self, key: &Key, change: impl Fn(&mut Value)) {
        for _ in 0..100 {
            let stored = self.runtime.block_on(self.store.get(key)).unwrap_or_else(|e| panic!("{e}"));
            let mut value = (*stored.value).clone();
            change(&mut value);
            match self.runtime.block_on(self.store.put(key, value, Expect::Revision(stored.revision))) {
                Ok(_) => return,
                Err(StoreError::Conflict(_)) => {}
                Err(e) => panic!("{e}"),
            }
        }
        panic!("{key} is changed by somebody else all the time");
    }

    /// Writes a resource as it is; gives its revision.
    pub fn put_value(&self, key: &Key, value: &Value) -> u64 {
        let put = self.store.put(key, value.clone(), Expect::Any);
        self.runtime.block_on(put).unwrap_or_else(|e| panic!("{key}: {e}")).0
    }

    /// A resource as it is.
    pub fn value(&self, key: &Key) -> Value {
        let entry = self.runtime.block_on(self.store.get(key)).unwrap_or_else(|e| panic!("{key}: {e}"));
        (*entry.value).clone()
    }

    /// Deletes a resource.
    pub fn remove(&self, key: &Key) {
        self.runtime.block_on(self.store.delete(key, Expect::Any)).unwrap_or_else(|e| panic!("{key}: {e}"));
    }

    /// Starts the agent and waits until it can serve an ADD.
    pub fn start_agent(&mut self) {
        self.start_agent_dying_at(None);
    }

    /// [`Self::start_agent`], which dies when it passes this point (`brindle_cni::fail`).
    pub fn start_agent_dying_at(&mut self, point: Option<&str>) {
        self.start(point, &[], &[]);
    }

    /// [`Self::start_agent`] by a program that becomes it: `WRAPPER.. brindle-node run ..`.
    pub fn start_agent_through(&mut self, wrapper: &[&str]) {
        self.start(None, &[], wrapper);
    }

    /// [`Self::start_agent`] with more arguments.
    pub fn start_agent_with(&mut self, args: &[&str]) {
        self.start(None, args, &[]);
    }

    fn start(&mut self, point: Option<&str>, args: &[&str], wrapper: &[&str]) {
        let log = fs::File::options().create(true).append(true).open(self.dir.join("agent.log"));
        let log = log.expect("a log file");
        let out = log.try_clone().expect("a second handle");
        let mut command = match wrapper {
            [] => Command::new(bin("brindle-node")),
            [program, rest @ ..] => {
                let mut command = Command::new(program);
                command.args(rest).arg(bin("brindle-node"));
                command
            }
        };
        command
            .args(["run", "--node-name", &self.name, "--ip", &self.address, "--networking", self.networking])
            .args(["--state-dir".as_ref(), self.dir.as_os_str()])
            .args(["--datastore", &self.datastore])
            .args(args)
            .envs(self.vars.iter().map(|(k, v)| (k, v)))
            .envs(point.map(|p| ("BRINDLE_FAILPOINT", p)))
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(log);
        self.agent = Some(Running::start_in(self.ns.ns(), &mut command));
        until("the agent serves ADD", START, || {
            let said = self.status();
            if said.ok { Ok(()) } else { Err(format!("{said:?}\n{}", self.log())) }
        });
    }

    /// SIGTERM, and its end.
    pub fn stop_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let told = Command::new("kill").arg(agent.pid().to_string()).status();
            assert!(told.is_ok_and(|s| s.success()), "the agent is there");
            assert!(agent.wait(START).success(), "{}", self.log());
        }
    }

    /// kill -9.
    pub fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill();
        }
    }

    /// The agent's log, its end.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
        let skip = text.lines().count().saturating_sub(30);
        text.lines().skip(skip).collect::<Vec<_>>().join("\n")
    }

    /// The network configuration of this node.
    pub fn conf(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "net",
            "type": "brindle",
            "agent_socket": self.dir.join("cni.sock"),
            "state_dir": self.dir,
            "ipam": { "type": "brindle-ipam" },
        })
    }

    /// STATUS.
    pub fn status(&self) -> Said {
        let mut conf = self.conf();
        conf["cniVersion"] = json!("1.1.0");
        self.run(&mut self.command(&bin("brindle"), "STATUS", "-", ""), &conf)
    }

    pub fn add(&self, c: &Container) -> Said {
        self.call("ADD", c, &self.conf())
    }

    pub fn del(&self, c: &Container) -> Said {
        self.call("DEL", c, &self.conf())
    }

    pub fn check(&self, c: &Container, result: &Said) -> Said {
        let mut conf = self.conf();
        conf["prevResult"] = result.json();
        self.call("CHECK", c, &conf)
    }

    pub fn call(&self, command: &str, c: &Container, conf: &Value) -> Said {
        self.run(&mut self.command(&bin("brindle"), command, &c.id, &c.netns()), conf)
    }

    /// The plugin's command line and environment.
    pub fn command(&self, program: &Path, verb: &str, id: &str, netns: &str) -> Command {
        plugin(program, verb, id, netns, &format!("pod-{id}"))
    }

    /// Runs a prepared command in the node's namespace.
    pub fn run(&self, command: &mut Command, conf: &Value) -> Said {
        called(self.ns.ns(), command, conf)
    }

    /// Names of the host devices of pods.
    pub fn devices(&self) -> Vec<String> {
        let links = self.ns.rtnl().links().expect("links can be listed");
        links.into_iter().map(|l| l.name).filter(|n| n.starts_with("cali")).collect()
    }

    /// Endpoints in the store.
    pub fn endpoints(&self) -> Vec<WorkloadEndpointSpec> {
        let all = self.runtime.block_on(self.store.list_as::<WorkloadEndpointSpec>());
        all.unwrap_or_else(|e| panic!("{e}")).0.into_iter().map(|e| e.resource.spec).collect()
    }

    /// Handles of containers in the store, and what is wrong with the records.
    pub fn handles(&self) -> (Vec<String>, Vec<Finding>) {
        let kinds = [Kind::IpamBlock, Kind::BlockAffinity, Kind::IpamHandle];
        let listing = self.runtime.block_on(self.store.list(&kinds)).unwrap_or_else(|e| panic!("{e}"));
        let handles = listing.entries.iter().filter(|e| e.key.kind == Kind::IpamHandle);
        let handles = handles.map(|e| e.key.name.clone()).filter(|n| n.starts_with("net.")).collect();
        (handles, audit(&listing.entries))
    }

    /// Files in the journal.
    pub fn journal(&self) -> usize {
        fs::read_dir(self.dir.join("cni-journal")).map_or(0, |d| d.flatten().count())
    }

    /// Waits until exactly these containers have a device, an endpoint and an address, and nothing else is left.
    #[track_caller]
    pub fn settled(&self, live: &[&Container]) {
        let mut want: Vec<String> = live.iter().map(|c| format!("net.{}", c.id)).collect();
        want.sort();
        until("the node is tidy", START, || {
            let (mut handles, findings) = self.handles();
            handles.sort();
            let counts = (self.devices().len(), self.endpoints().len(), self.journal());
            if handles == want && counts == (live.len(), live.len(), 0) && findings.is_empty() {
                return Ok(());
            }
            Err(format!(
                "handles {handles:?} for {want:?}; devices, endpoints, journal {counts:?}; {findings:?}"
            ))
        });
    }

    /// One ping from the node.
    pub fn pings(&self, address: &str) -> bool {
        ping(self.ns.ns(), address)
    }
}

/// Runs a line of shell in a namespace; it must succeed.
#[track_caller]
pub fn sh(ns: &NetNs, line: &str) {
    let out = ns.run(|| Command::new("sh").args(["-ec", line]).output());
    let out = out.expect("the namespace is alive").expect("there is a shell");
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
}

/// One ping from a namespace.
pub fn ping(ns: &NetNs, address: &str) -> bool {
    let out = ns.run(|| Command::new("ping").args(["-n", "-c1", "-W2", address]).output());
    out.expect("the namespace is alive")
        .expect("ping is installed: apt-get install iputils-ping")
        .status
        .success()
}

impl Drop for CniNode {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the agent said last:\n{}\n----", self.log());
        }
        self.kill_agent();
        if self.small {
            // Lazily: this process has the datastore open.
            let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        }
        // `BRINDLE_KEEP` leaves store and log for a look.
        if std::env::var_os("BRINDLE_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
