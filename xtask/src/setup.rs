//! What the machine must have: which program each step needs, the Debian package that brings it, and why.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// One thing a machine must have.
pub(crate) struct Need {
    /// A path, or a program looked up in PATH and the sbin folders.
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const fn need(program: &'static str, package: &'static str, why: &'static str) -> Need {
    Need { program, package, why }
}

/// What the lab uses.
pub(crate) const LAB: [Need; 6] = [
    need("ip", "iproute2", "namespaces and routes are looked at with it"),
    need("iptables", "iptables", "pod traffic rules"),
    need("ipset", "ipset", "sets of addresses for the rules"),
    need("conntrack", "conntrack", "flows of removed pods are cut with it"),
    need("ping", "iputils-ping", "`lab exec POD -- ping` is the first thing people type"),
    need("cc", "gcc", "SQLite is compiled into the binaries"),
];

/// What the tests and benchmarks use beside that: real peers, real clients, the reference plugins.
pub(crate) const TESTS: [Need; 16] = [
    need("c++", "g++", "the run-time of the fuzz targets is C++"),
    need("bird", "bird2", "interop: BIRD as a node and as a peer"),
    need("/usr/lib/frr/bgpd", "frr", "interop: FRR as top-of-rack router and as a peer"),
    need("gobgpd", "gobgpd", "interop: GoBGP as a peer"),
    need("/usr/sbin/bgpd", "openbgpd", "interop: OpenBGPD as a peer"),
    need("exabgp", "exabgp", "interop: ExaBGP as a peer"),
    need(
        "/usr/lib/cni/ptp",
        "containernetworking-plugins",
        "the reference plugins the CNI figures are paired with",
    ),
    need("podman", "podman", "a real CNI client (libcni) for the plugin"),
    need("ctr", "containerd", "a real CNI client (go-cni) for the plugin"),
    need("runc", "runc", "what these clients start containers with"),
    need("busybox", "busybox-static", "the containers they start hold nothing else"),
    need("etcd", "etcd-server", "the etcd store is tested against it"),
    need("etcdctl", "etcd-client", "users and roles of that etcd"),
    need("linux.uml", "user-mode-linux", "a kernel with ipip for the tunnel tests"),
    need("modprobe", "kmod", "modules inside that kernel"),
    need("ipvsadm", "ipvsadm", "services as a kube-proxy in IPVS mode makes them, inside that kernel"),
];

/// What the image is made with and holds.
pub(crate) const IMAGE: [Need; 7] = [
    need("podman", "podman", "builds the image and runs what is in it"),
    need("runc", "runc", "what podman starts containers with"),
    need("musl-gcc", "musl-tools", "programs for a scratch image are linked statically"),
    need("strip", "binutils", "debug information has no place in an image"),
    need("iptables-nft-restore", "iptables", "goes into the image: the agent calls it"),
    need("nft", "nftables", "goes into the image: the agent calls it"),
    need(
        "/usr/lib/cni/portmap",
        "containernetworking-plugins",
        "goes into the image: runtimes call it on the nodes",
    ),
];

/// The workspace root: the nearest folder upwards with a Cargo.lock.
pub(crate) fn root() -> Result<PathBuf> {
    let here = std::env::current_dir()?;
    here.ancestors()
        .find(|d| d.join("Cargo.lock").exists() && d.join("xtask").is_dir())
        .map(Path::to_path_buf)
        .context("not inside a clone of Brindle")
}

/// Whether a program is on this machine.
pub(crate) fn have(program: &str) -> bool {
    find(program).is_some()
}

/// Where a program is: a path, or a name looked up in PATH and the sbin folders.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|p| p.exists());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"])
        .map(|d| Path::new(d).join(program))
        .find(|p| p.exists())
}

/// Installs what is missing with apt, saying what and why; elsewhere prints the list and stops.
pub(crate) fn install(needs: &[&[Need]]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().copied().flatten().filter(|n| !have(n.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("missing on this machine:");
    for n in &missing {
        println!("  {:<28} {}", n.package, n.why);
    }
    let packages: Vec<&str> = missing.iter().map(|n| n.package).collect();
    if !have("apt-get") {
        bail!(
            "install these with this distribution's package manager (Debian names): {}",
            packages.join(" ")
        );
    }
    println!("+ apt-get install -y {}", packages.join(" "));
    let apt = |args: &[&str]| -> Result<bool> {
        let mut c = Command::new("apt-get");
        c.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(std::process::Stdio::null());
        Ok(c.status().context("cannot run apt-get")?.success())
    };
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(&packages);
    if !apt(&install)? {
        // A fresh image has no package lists.
        apt(&["update", "-qq"])?;
        if !apt(&install)? {
            bail!("apt-get could not install {} (run as root? network?)", packages.join(" "));
        }
    }
    Ok(())
}
