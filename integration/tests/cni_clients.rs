//! Real callers of CNI from Debian's packages run containers on our plugin: podman with its CNI back end (libcni) and
//! containerd with `ctr run --cni` (go-cni). Needs root and the packages `cargo xtask setup` installs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use brindle_integration::{bins, cni::CniNode, process::Running, wait::until};
use serde_json::json;

const TAG: &str = "localhost/brindle-pause:1";

fn need(program: &str, package: &str) -> PathBuf {
    let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .map(|d| Path::new(d).join(program))
        .find(|p| p.exists());
    found.unwrap_or_else(|| panic!("{program} is missing: apt-get install {package}"))
}

struct Client {
    node: CniNode,
    podman_conf: PathBuf,
}

impl Client {
    fn new(tag: &str, pool: &str) -> Self {
        for (program, package) in [("podman", "podman"), ("runc", "runc"), ("busybox", "busybox-static")] {
            need(program, package);
        }
        let node = CniNode::new(tag, pool);
        let dir = &node.dir;
        let mut plugin = node.conf();
        let plugin = plugin.as_object_mut().unwrap();
        plugin.retain(|k, _| k != "cniVersion" && k != "name");
        let list = json!({"cniVersion": "0.4.0", "name": "net", "plugins": [plugin]});
        for folder in ["net.d", "img", "tmp"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        fs::write(dir.join("net.d/10-net.conflist"), list.to_string()).unwrap();
        let podman_conf = dir.join("containers.conf");
        let text = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{}\", \"/usr/lib/cni\"]\n\
             network_config_dir = \"{}\"\n\
             [containers]\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n",
            bins::dir().display(),
            dir.join("net.d").display()
        );
        fs::write(&podman_conf, text).unwrap();
        fs::copy(need("busybox", "busybox-static"), dir.join("img/busybox")).unwrap();
        let recipe = "FROM scratch\nCOPY busybox /bin/busybox\nENTRYPOINT [\"/bin/busybox\"]\nCMD [\"sleep\", \"600\"]\n";
        fs::write(dir.join("img/Containerfile"), recipe).unwrap();
        let client = Self { node, podman_conf };
        let img = client.node.dir.join("img").display().to_string();
        client.podman(&["build", "-q", "--isolation", "chroot", "-t", TAG, &img]);
        client
    }

    fn try_podman(&self, args: &[&str]) -> Output {
        let dir = &self.node.dir;
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(dir.join("root"))
            .arg("--runroot")
            .arg(dir.join("runroot"))
            .args(["--storage-driver", "vfs"])
            .args(args)
            .env("CONTAINERS_CONF", &self.podman_conf)
            .env("TMPDIR", dir.join("tmp"))
            .stdin(Stdio::null());
        self.node.ns.ns().run(|| command.output()).unwrap().unwrap()
    }

    #[track_caller]
    fn podman(&self, args: &[&str]) -> String {
        let out = self.try_podman(args);
        assert!(out.status.success(), "podman {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }
}

#[test]
fn podman_runs_containers_on_it() {
    let c = Client::new("podman", "10.140.0.0/24");
    let said =
        c.podman(&["run", "--rm", "--network", "net", TAG, "sh", "-c", "ip -4 addr show eth0; ip route"]);
    assert!(said.contains("10.140.0.") && said.contains("default via 169.254.1.1"), "{said}");
    c.node.settled(&[]);
    c.podman(&["run", "-d", "--name", "a", "--network", "net", TAG, "sleep", "600"]);
    let address = c.podman(&["inspect", "a", "--format", "{{.NetworkSettings.Networks.net.IPAddress}}"]);
    assert!(c.node.pings(&address), "{address}");
    let ping = c.podman(&["run", "--rm", "--network", "net", TAG, "ping", "-c1", "-W5", &address]);
    assert!(ping.contains("1 packets received"), "{ping}");
    c.podman(&["restart", "-t", "0", "a"]);
    let again = c.podman(&["inspect", "a", "--format", "{{.NetworkSettings.Networks.net.IPAddress}}"]);
    assert!(c.node.pings(&again), "{again} after {address}");
    c.podman(&["rm", "-f", "-t", "0", "a"]);
    c.node.settled(&[]);
}

#[test]
fn containerd_runs_containers_on_it() {
    for (program, package) in [("containerd", "containerd"), ("ctr", "containerd")] {
        need(program, package);
    }
    let c = Client::new("ctr", "10.141.0.0/24");
    let dir = &c.node.dir;
    let tar = dir.join("pause.tar").display().to_string();
    c.podman(&["save", "-q", "--format", "docker-archive", "-o", &tar, TAG]);
    let sock = dir.join("containerd.sock");
    let conf = format!(
        "version = 2\nroot = \"{0}/c-root\"\nstate = \"{0}/c-state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\n  address = \"{1}\"\n",
        dir.display(),
        sock.display()
    );
    fs::write(dir.join("containerd.toml"), conf).unwrap();
    // go-cni reads two fixed folders: they are ours in a mount namespace of its own.
    let inside = |line: &str| {
        let script = format!(
            "mkdir -p /etc/cni/net.d /opt/cni/bin && mount --bind {0}/net.d /etc/cni/net.d && \
             mount --bind {1} /opt/cni/bin && exec {line}",
            dir.display(),
            bins::dir().display()
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", &script]).stdin(Stdio::null());
        command
    };
    let log = fs::File::create(dir.join("containerd.log")).unwrap();
    let mut daemon = inside(&format!("containerd -c {}", dir.join("containerd.toml").display()));
    daemon.stdout(Stdio::null()).stderr(log);
    let _daemon = Running::start_in(c.node.ns.ns(), &mut daemon);
    let ctr = |args: &str| {
        let mut command = inside(&format!("ctr -a {} {args}", sock.display()));
        c.node.ns.ns().run(|| command.output()).unwrap().unwrap()
    };
    until("containerd answers", Duration::from_secs(60), || {
        let out = ctr("version");
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    let out = ctr(&format!("image import {tar}"));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let out = ctr(&format!("run --rm --cni {TAG} t1 /bin/busybox ip -4 addr show eth0"));
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success() && said.contains("10.141.0."),
        "{said} {}",
        String::from_utf8_lossy(&out.stderr)
    );
    c.node.settled(&[]);
}
