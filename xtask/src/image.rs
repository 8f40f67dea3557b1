//! `cargo xtask image`: the container image, FROM scratch (deploy/image/Containerfile). Lays out the build folder: our
//! programs, linked statically with musl, and from this machine's Debian packages what the agent calls at run time
//! (iptables, ipset, nft) with the libraries these are linked with. `--debug` takes the programs as the tests have built
//! them, stripped; they find their libc among those libraries. Afterwards every program is run in the image.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{setup, steps};

/// Most the image may hold, MiB.
const LIMIT_MIB: u64 = 40;
const TARGET: &str = "x86_64-unknown-linux-musl";

/// Programs of ours, the packages they are in, and further names they are called by.
const PROGRAMS: [(&str, &str, &[&str]); 3] = [
    ("brindle-all", "brindle-all", &["brindle-node", "brindle-bgpd", "brindlectl", "brindle-controllers"]),
    ("brindle", "brindle-cni", &["brindle-ipam"]),
    ("brindle-ipip", "brindle-carrier", &[]),
];

/// Programs of Debian, with the names they are called by (the agent runs these).
const TOOLS: [(&str, &[&str]); 4] = [
    (
        "xtables-nft-multi",
        &[
            "iptables-nft-save",
            "iptables-nft-restore",
            "ip6tables-nft-save",
            "ip6tables-nft-restore",
            "iptables",
            "iptables-save",
            "iptables-restore",
            "ip6tables",
            "ip6tables-save",
            "ip6tables-restore",
        ],
    ),
    (
        "xtables-legacy-multi",
        &[
            "iptables-legacy-save",
            "iptables-legacy-restore",
            "ip6tables-legacy-save",
            "ip6tables-legacy-restore",
        ],
    ),
    ("ipset", &[]),
    ("nft", &[]),
];

/// Plugins of Debian that `install-cni` puts on nodes without them, from the folder it looks in: what the built-in conflist
/// calls. One has 2.5 MiB; what else a conflist may name is the node's to have. `loopback`, which runtimes call, is ours.
const PLUGINS: [&str; 1] = ["portmap"];
const PLUGIN_DIR: &str = "/usr/lib/cni";

/// Whose the node's folders are where `install-cni` is tried: not root's.
const OTHER_USER: u32 = 4242;

/// `cargo xtask image [--debug]`.
pub(crate) fn build(args: &[String]) -> Result<()> {
    let debug = match args {
        [] => false,
        [one] if one == "--debug" => true,
        other => bail!("cargo xtask image [--debug]; {other:?} is not understood"),
    };
    setup::install(&[&setup::LAB, &setup::IMAGE])?;
    let folder = steps::target()?.join("image");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    programs(&folder.join("bin"), debug)?;
    tools(&folder.join("root"), &folder.join("bin"))?;
    let podman = Podman::new(&folder)?;
    // The name in full that the manifests' short one stands for: a runtime that imports the archive knows it by that.
    let tag = format!("docker.io/library/brindle:{}", env!("CARGO_PKG_VERSION"));
    let recipe = "deploy/image/Containerfile";
    podman.run(&[
        "build",
        "-q",
        "--isolation",
        "chroot",
        "-t",
        &tag,
        "-f",
        recipe,
        &folder.to_string_lossy(),
    ])?;
    let size = size(&folder.join("bin"))? + size(&folder.join("root"))?;
    println!("image {tag}: {:.1} MiB", mib(size));
    if !debug {
        ensure!(size <= LIMIT_MIB << 20, "the image has {:.1} MiB; at most {LIMIT_MIB}", mib(size));
    }
    prove(&podman, &tag)?;
    let archive = folder.join(format!("brindle-{}.tar", env!("CARGO_PKG_VERSION")));
    podman.run(&["save", "-q", "-o", &archive.to_string_lossy(), &tag])?;
    println!("archive for `podman load`, `ctr images import` and `skopeo copy`: {}", archive.display());
    podman.forget()
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mib(octets: u64) -> f64 {
    octets as f64 / f64::from(1 << 20)
}

/// The plugin as the image has it.
pub(crate) fn plugin() -> Result<PathBuf> {
    build_static(["brindle-cni"])?;
    Ok(steps::target()?.join(TARGET).join("dist/brindle"))
}

/// Makes sure that programs can be linked statically.
pub(crate) fn target() -> Result<()> {
    let installed = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output()?;
    if !Path::new(String::from_utf8_lossy(&installed.stdout).trim()).exists() {
        steps::sh("rustup", &["target", "add", TARGET])
            .context("programs for a scratch image are linked statically with musl")?;
    }
    Ok(())
}

/// Builds the programs of packages the way they are shipped.
fn build_static<'a>(packages: impl IntoIterator<Item = &'a str>) -> Result<()> {
    target()?;
    let mut args = vec!["build", "--locked", "--profile", "dist", "--bins", "--target", TARGET];
    args.extend(packages.into_iter().flat_map(|p| ["-p", p]));
    steps::sh("cargo", &args)
}

/// Ours.
fn programs(bin: &Path, debug: bool) -> Result<()> {
    fs::create_dir_all(bin)?;
    let from = if debug {
        steps::build()?;
        steps::target()?.join("debug")
    } else {
        build_static(PROGRAMS.iter().map(|p| p.1))?;
        steps::target()?.join(TARGET).join("dist")
    };
    for (program, _, names) in PROGRAMS {
        let to = bin.join(program);
        let source = from.join(program);
        if debug {
            // Their debug information is hundreds of MiB.
            steps::sh("strip", &["-o", &to.to_string_lossy(), &source.to_string_lossy()])?;
        } else {
            fs::copy(&source, &to).with_context(|| source.display().to_string())?;
        }
        for name in names {
            symlink(program, bin.join(name)).with_context(|| (*name).to_owned())?;
        }
    }
    Ok(())
}

/// Debian's, with extensions of iptables, licences, and the libraries of all programs.
fn tools(root: &Path, ours: &Path) -> Result<()> {
    let sbin = root.join("usr/sbin");
    fs::create_dir_all(&sbin)?;
    // Mount points, and where the lock of iptables is.
    for folder in [
        "run",
        "tmp",
        "dev/net",
        "var/lib/brindle",
        "var/lib/cni",
        "host/opt/cni/bin",
        "host/etc/cni/net.d",
        "host/proc/sys/net",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    let mut sources: BTreeSet<PathBuf> = BTreeSet::new();
    for (tool, names) in TOOLS {
        let source = setup::find(tool).with_context(|| format!("{tool} is missing"))?;
        copy(&source, &sbin.join(tool))?;
        for name in names {
            symlink(tool, sbin.join(name)).with_context(|| (*name).to_owned())?;
        }
        sources.insert(source);
    }
    for plugin in PLUGINS {
        let source = Path::new(PLUGIN_DIR).join(plugin);
        copy(&source, &root.join(source.strip_prefix("/")?))?;
        sources.insert(source);
    }
    symlink("/usr/bin/brindle", root.join(PLUGIN_DIR.trim_start_matches('/')).join("loopback"))?;
    let extensions = fs::read_dir("/usr/lib")?
        .filter_map(|e| Some(e.ok()?.path().join("xtables")))
        .find(|p| p.is_dir())
        .context("no folder /usr/lib/*/xtables: is iptables from another distribution?")?;
    for entry in fs::read_dir(&extensions)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Not those of ebtables and arptables.
        if ["libxt_", "libipt_", "libip6t_"].iter().any(|p| name.starts_with(p)) {
            copy(&path, &root.join(path.strip_prefix("/")?))?;
            sources.insert(path);
        }
    }
    let mut libraries = BTreeSet::new();
    for source in &sources {
        libraries.extend(linked(source)?);
    }
    // Ours have none when they are static.
    for entry in fs::read_dir(ours)? {
        libraries.extend(linked(&entry?.path())?);
    }
    for library in &libraries {
        copy(library, &root.join(library.strip_prefix("/")?))?;
    }
    sources.extend(libraries);
    licences(root, &sources)
}

/// A copy of what a path leads to, under its own name.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}

/// The libraries a program is loaded with, as `ldd` says.
fn linked(program: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(program).output().context("ldd")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(!text.contains("not found"), "{}: a library is missing:\n{text}", program.display());
    let paths = text.lines().filter_map(|l| l.split_whitespace().find(|w| w.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

/// Which Debian packages the copies are of, and their licences.
fn licences(root: &Path, sources: &BTreeSet<PathBuf>) -> Result<()> {
    let mut packages = BTreeSet::new();
    for source in sources {
        // /lib is a link to /usr/lib, and dpkg knows either one or the other.
        let real = fs::canonicalize(source)?;
        let known =
            [source.clone(), real.clone(), Path::new("/").join(real.strip_prefix("/usr").unwrap_or(&real))];
        let owner = known.iter().find_map(|p| {
            let out = Command::new("dpkg-query").arg("-S").arg(p).output().ok()?;
            let line = String::from_utf8_lossy(&out.stdout).into_owned();
            Some(line.split(':').next().filter(|n| !n.is_empty())?.to_owned())
        });
        packages.insert(owner.with_context(|| format!("{}: of no Debian package", source.display()))?);
    }
    let doc = root.join("usr/share/doc/brindle");
    fs::create_dir_all(&doc)?;
    let mut list = String::new();
    for package in &packages {
        let version = Command::new("dpkg-query").args(["-W", "-f=${Version}", package]).output()?;
        list += &format!("{package} {}\n", String::from_utf8_lossy(&version.stdout));
        let licence = Path::new("/usr/share/doc").join(package).join("copyright");
        if licence.exists() {
            copy(&licence, &doc.join(format!("{package}.copyright")))?;
        }
    }
    fs::write(doc.join("packages"), list)?;
    copy(Path::new("LICENSE"), &doc.join("brindle.copyright"))
}

/// Octets of all files below a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        sum += if meta.is_dir() { size(&path)? } else { meta.len() };
    }
    Ok(sum)
}

/// Runs everything that is in the image, with what the manifests give it: a read-only root and no network.
fn prove(podman: &Podman, tag: &str) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let asked = [
        (vec!["brindle-node", "--version"], version),
        (vec!["brindle-bgpd", "--version"], version),
        (vec!["brindlectl", "version"], version),
        (vec!["brindle-controllers", "--version"], version),
        (vec!["brindle-ipip", "--version"], version),
        (vec!["brindle-node", "probe", "--help"], "--ready"),
        (vec!["iptables-restore", "--version"], "nf_tables"),
        (vec!["ip6tables-nft-save", "--version"], "nf_tables"),
        (vec!["iptables-legacy-restore", "--version"], "legacy"),
        (vec!["ipset", "--version"], "ipset v"),
        (vec!["nft", "--version"], "nftables v"),
        // Extensions are loaded when they are named.
        (vec!["iptables", "-m", "set", "--help"], "match-set"),
    ];
    for (command, expected) in &asked {
        let said = podman.inside(tag, command)?;
        ensure!(
            said.contains(expected),
            "{} in the image: expected {expected:?}, it said {said:?}",
            command.join(" ")
        );
        println!(
            "  {:<44} {}",
            command.join(" "),
            said.lines().find(|l| l.contains(expected)).unwrap_or_default().trim()
        );
    }
    // The plugin answers a call of its protocol.
    let said = podman.plugin_version(tag)?;
    ensure!(said.contains("1.0.0"), "the plugin in the image says {said:?}");
    println!("  {:<44} {}", "brindle (CNI_COMMAND=VERSION)", said.trim());
    println!("{} programs run in the image", asked.len() + 1);
    podman.installs(tag)?;
    Ok(())
}

/// The capabilities that the DaemonSet adds to one of its containers.
fn granted(container: &str) -> Result<Vec<String>> {
    let manifest = "deploy/base/node/daemonset.yaml";
    let text = fs::read_to_string(manifest).context(manifest)?;
    let name = format!("- name: {container}\n");
    let (_, rest) = text.split_once(&name).with_context(|| format!("{manifest} has no {container}"))?;
    // The next container's are not this one's.
    let own = rest.split("\n        - name: ").next().unwrap_or_default();
    let added = own.split_once("add: [").and_then(|(_, list)| list.split_once(']'));
    Ok(added.map(|(list, _)| list.split(", ").map(str::to_owned).collect()).unwrap_or_default())
}

/// podman with a storage of its own, as it must be on machines without much.
struct Podman {
    folder: PathBuf,
}

impl Podman {
    fn new(folder: &Path) -> Result<Self> {
        let me = Self { folder: folder.join("storage") };
        fs::create_dir_all(&me.folder)?;
        // Without the right to raise limits podman's defaults cannot be set; crun refuses mixed cgroups.
        let conf = "[containers]\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\n\
                    [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
        fs::write(me.folder.join("containers.conf"), conf)?;
        Ok(me)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(self.folder.join("root"))
            .arg("--runroot")
            .arg(self.folder.join("run"))
            .args(["--storage-driver", "vfs"])
            .args(args)
            .env("CONTAINERS_CONF", self.folder.join("containers.conf"));
        command
    }

    /// Its standard output.
    fn run(&self, args: &[&str]) -> Result<String> {
        let out = self.command(args).output().context("podman")?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "podman {}: {said}", args.join(" "));
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    fn inside(&self, tag: &str, command: &[&str]) -> Result<String> {
        // As the manifest has it; ipset asks the kernel even for its version.
        let mut args =
            vec!["run", "--rm", "--network", "none", "--read-only", "--cap-add", "NET_ADMIN,NET_RAW"];
        args.extend(["--entrypoint", command[0], tag]);
        args.extend(&command[1..]);
        self.run(&args)
    }

    /// What the init container does, with what the manifest grants it, in a folder of another user: plugins on the node,
    /// each a file of its own that knows its name.
    fn installs(&self, tag: &str) -> Result<()> {
        let node = self.folder.join("node");
        fs::create_dir_all(&node)?;
        chown(&node, Some(OTHER_USER), Some(OTHER_USER))?;
        let mount = format!("{}:/host/opt/cni/bin", node.display());
        let install = ["install-cni", "--plugins-only", "--bin-dir", "/host/opt/cni/bin"];
        let capabilities = granted("install-cni")?;
        let mut run = vec!["run", "--rm", "--network", "none", "--read-only", "--cap-drop", "all"];
        run.extend(capabilities.iter().flat_map(|c| ["--cap-add", c.as_str()]));
        run.extend(["-v", mount.as_str(), tag]);
        self.run(&[&run[..], &install[..]].concat())?;
        for name in ["brindle", "brindle-ipam", "loopback"] {
            let out = Command::new(node.join(name)).arg("--version").output().context(name)?;
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            ensure!(said.starts_with(&format!("{name} ")), "{name} on the node says {said:?}");
        }
        ensure!(fs::symlink_metadata(node.join("portmap"))?.is_file(), "portmap is not on the node");
        println!("  install-cni puts brindle, brindle-ipam, loopback and portmap on a node");
        Ok(())
    }

    fn plugin_version(&self, tag: &str) -> Result<String> {
        use std::{io::Write as _, process::Stdio};
        let args = ["run", "--rm", "-i", "--network", "none", "--read-only", "--env", "CNI_COMMAND=VERSION"];
        let mut child = self
            .command(&args)
            .args(["--entrypoint", "brindle", tag])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(br#"{"cniVersion":"1.0.0"}"#)?;
        }
        let out = child.wait_with_output()?;
        ensure!(out.status.success(), "the plugin in the image: {}", out.status);
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// The image is in the archive; the storage is large.
    fn forget(&self) -> Result<()> {
        fs::remove_dir_all(&self.folder).with_context(|| self.folder.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_manifest() {
        std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
        assert_eq!(granted("install-cni").unwrap(), ["DAC_OVERRIDE"]);
        assert!(granted("brindle-node").unwrap().contains(&"NET_ADMIN".to_owned()));
        assert!(granted("nobody").is_err());
    }
}
