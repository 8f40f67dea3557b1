//! What the tests play on: namespaces of a host and its pods, an agent that answers as told, the programs themselves.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
};

use brindle_cni::proto::{self, Call, Reply, Request};
use brindle_kernel::{
    netlink::{Link, Rtnl},
    netns::NetNs,
};
use serde_json::{Value, json};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A name no other test uses.
pub(crate) fn unique(tag: &str) -> String {
    format!("bt-{}-{}-{tag}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A namespace that goes with the test.
pub(crate) struct Ns {
    pub(crate) name: String,
    pub(crate) ns: NetNs,
}

impl Ns {
    pub(crate) fn new(tag: &str) -> Self {
        let name = unique(tag);
        let ns = NetNs::create(&name).unwrap();
        Self { name, ns }
    }

    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    pub(crate) fn rtnl(&self) -> Rtnl {
        Rtnl::open_in(&self.ns).unwrap()
    }

    pub(crate) fn link(&self, name: &str) -> Option<Link> {
        self.rtnl().link_by_name(name).unwrap()
    }

    /// Names of all devices but those the kernel makes by itself.
    pub(crate) fn devices(&self) -> Vec<String> {
        let links = self.rtnl().links().unwrap();
        let names = links
            .into_iter()
            .filter(|l| l.kind.as_deref() == Some("veth") || l.kind.as_deref() == Some("bridge"));
        names.map(|l| l.name).collect()
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.name);
    }
}

/// A folder that goes with the test.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(tag: &str) -> Self {
        let path = std::env::temp_dir().join(unique(tag));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the played agent says; none hangs up.
pub(crate) type Script = Box<dyn Fn(&Call) -> Option<Reply> + Send + Sync>;

/// An agent that answers as told and remembers what it was asked.
pub(crate) struct PlayedAgent {
    path: PathBuf,
    calls: Arc<Mutex<Vec<Call>>>,
    thread: Option<JoinHandle<()>>,
}

impl PlayedAgent {
    pub(crate) fn new(folder: &Folder, script: Script) -> Self {
        let path = folder.0.join("cni.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (seen, script) = (Arc::clone(&calls), Arc::new(script));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                // One connection that sends nothing ends the play.
                let mut head = [0; 4];
                let mut first = stream.try_clone().unwrap();
                if first.read_exact(&mut head).is_err() {
                    return;
                }
                std::thread::spawn(move || serve(stream, head, &seen, &script));
            }
        });
        Self { path, calls, thread: Some(thread) }
    }

    /// Names of the calls so far.
    pub(crate) fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().iter().map(name).collect()
    }

    pub(crate) fn call(&self, n: usize) -> Call {
        self.calls.lock().unwrap()[n].clone()
    }
}

fn name(call: &Call) -> &'static str {
    match call {
        Call::Ping => "ping",
        Call::Status { .. } => "status",
        Call::PodCidrs => "pod-cidrs",
        Call::Families => "families",
        Call::Add { .. } => "add",
        Call::Register { .. } => "register",
        Call::Del { .. } => "del",
        Call::Check { .. } => "check",
        Call::IpamAdd { .. } => "ipam-add",
        Call::IpamDel { .. } => "ipam-del",
        Call::IpamCheck { .. } => "ipam-check",
        Call::Gc { .. } => "gc",
    }
}

fn serve(mut stream: UnixStream, mut head: [u8; 4], seen: &Mutex<Vec<Call>>, script: &Script) {
    loop {
        let mut body = vec![0; proto::body_len(head).unwrap()];
        stream.read_exact(&mut body).unwrap();
        let request: Request = proto::decode(&body).unwrap();
        assert_eq!(request.version, proto::VERSION);
        seen.lock().unwrap().push(request.call.clone());
        let Some(reply) = script(&request.call) else {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        };
        if stream.write_all(&proto::encode(&reply).unwrap()).is_err() || stream.read_exact(&mut head).is_err()
        {
            return;
        }
    }
}

impl Drop for PlayedAgent {
    fn drop(&mut self) {
        drop(UnixStream::connect(&self.path));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Gives 10.9.0.1 and is content with everything.
pub(crate) fn content(call: &Call) -> Option<Reply> {
    Some(match call {
        Call::Ping | Call::Status { .. } => Reply::Pong { node: "n1".into(), version: "0".into() },
        Call::Add { attachment, .. } | Call::IpamAdd { attachment, .. } => Reply::Added {
            addresses: vec!["10.9.0.1/32".parse().unwrap()],
            host_ifname: attachment.host_ifname("cali"),
            mtu: 1480,
            again: false,
        },
        Call::PodCidrs => Reply::PodCidrs { cidrs: vec!["10.9.0.0/24".parse().unwrap()] },
        Call::Families => Reply::Families { v4: true, v6: false },
        Call::Register { .. } => Reply::Registered,
        Call::Del { .. } | Call::IpamDel { .. } | Call::Gc { .. } => Reply::Deleted,
        Call::Check { .. } | Call::IpamCheck { .. } => Reply::Checked,
    })
}

/// What a program said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub(crate) fn code(&self) -> u64 {
        assert!(!self.ok, "{self:?}");
        self.json()["code"].as_u64().unwrap()
    }

    pub(crate) fn message(&self) -> String {
        self.json()["msg"].as_str().unwrap().to_owned()
    }
}

pub(crate) const BRINDLE: &str = env!("CARGO_BIN_EXE_brindle");
pub(crate) const BRINDLE_IPAM: &str = env!("CARGO_BIN_EXE_brindle-ipam");

/// Runs a program with exactly these variables.
pub(crate) fn start(
    program: &str,
    vars: &[(&str, &str)],
    input: &[u8],
    change: impl FnOnce(&mut Command),
) -> Said {
    let mut command = Command::new(program);
    command.env_clear().envs(vars.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    change(&mut command);
    let mut child = command.spawn().unwrap();
    // A program that refuses before it reads closes its end.
    let _ = child.stdin.take().unwrap().write_all(input);
    let out = child.wait_with_output().unwrap();
    Said {
        ok: out.status.success(),
        out: String::from_utf8(out.stdout).unwrap(),
        err: String::from_utf8(out.stderr).unwrap(),
    }
}

/// One host, its folder, and how its plugin is called.
pub(crate) struct Host {
    pub(crate) ns: Ns,
    pub(crate) folder: Folder,
    pub(crate) version: &'static str,
}

impl Host {
    pub(crate) fn new(tag: &str) -> Self {
        Self { ns: Ns::new(tag), folder: Folder::new(tag), version: "1.0.0" }
    }

    pub(crate) fn agent(
        &self,
        script: impl Fn(&Call) -> Option<Reply> + Send + Sync + 'static,
    ) -> PlayedAgent {
        PlayedAgent::new(&self.folder, Box::new(script))
    }

    pub(crate) fn conf(&self) -> Value {
        json!({
            "cniVersion": self.version,
            "name": "k8s-pod-network",
            "type": "brindle",
            "agent_socket": self.folder.0.join("cni.sock"),
            "state_dir": self.folder.0,
            "ipam": { "type": "brindle-ipam" },
        })
    }

    /// Runs the plugin on the host for this container.
    pub(crate) fn plugin(&self, command: &str, id: &str, netns: &str, conf: &Value) -> Said {
        self.program(BRINDLE, command, id, netns, conf)
    }

    pub(crate) fn program(&self, program: &str, command: &str, id: &str, netns: &str, conf: &Value) -> Said {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{id}");
        let path = format!("{}:/opt/cni/bin", self.folder.0.display());
        let vars = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", id),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", netns),
            ("CNI_ARGS", &args),
            ("CNI_PATH", &path),
        ];
        let input = serde_json::to_vec(conf).unwrap();
        self.ns.ns.run(|| start(program, &vars, &input, |_| {})).unwrap()
    }

    pub(crate) fn add(&self, id: &str, pod: &Ns) -> Said {
        self.plugin("ADD", id, &pod.path(), &self.conf())
    }

    pub(crate) fn del(&self, id: &str, netns: &str) -> Said {
        self.plugin("DEL", id, netns, &self.conf())
    }

    pub(crate) fn check(&self, id: &str, pod: &Ns, result: Value) -> Said {
        let mut conf = self.conf();
        conf["prevResult"] = result;
        self.plugin("CHECK", id, &pod.path(), &conf)
    }

    pub(crate) fn journal(&self) -> brindle_cni::journal::Contents {
        brindle_cni::journal::read(&journal_folder(&self.folder.0)).unwrap()
    }
}

pub(crate) fn journal_folder(state: &Path) -> PathBuf {
    state.join(brindle_cni::journal::FOLDER)
}
