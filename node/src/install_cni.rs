//! `brindle-node install-cni`: puts the plugins and the conflist where container runtimes look. A runtime takes a node for
//! ready when the conflist is there, so that comes last, after the agent's socket answers and the binaries are in place.
//! Every file is written beside its place, synced, and renamed: nobody ever sees half of one. The conflist holds no
//! secret: the plugin talks to the agent, which has the datastore.

mod calico;
mod conflist;
mod kept;
mod place;

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use brindle_admin::arguments::boolean;
use brindle_cni::{
    plugin::lacks_pod_cidr,
    proto::{self, Call, Reply},
};
use clap::{ArgAction, Args, Parser};
use conflist::{Families, called, conflist_text, given, of_another_node, ours, question};
pub(crate) use kept::Kept;
use place::{plugins, put, remove, remove_file};

/// The plugins.
const BINARIES: [&str; 2] = ["brindle", "brindle-ipam"];

/// Plugins of others that runtimes and the built-in conflist call (loopback: containerd before 2.0, for every pod), or that
/// are often chained. As Calico's installer has it, a node needs no other package for them.
const OTHERS: [&str; 5] = ["loopback", "portmap", "bandwidth", "tuning", "host-local"];

/// Those of them that the image has. Without one of the others nothing is amiss, unless the conflist calls it.
const SHIPPED: [&str; 2] = ["loopback", "portmap"];

/// Where everything goes.
#[derive(Debug, Args)]
pub(crate) struct Places {
    /// Where runtimes look for plugins
    #[arg(long, env = "CNI_BIN_DIR", value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// Where runtimes look for network configurations
    #[arg(long, env = "CNI_NET_DIR", value_name = "DIR", default_value = "/etc/cni/net.d")]
    net_dir: PathBuf,
    /// Name of the conflist's file
    #[arg(long, env = "CNI_CONF_NAME", value_name = "FILE", default_value = "10-brindle.conflist")]
    conf_name: String,
}

impl Places {
    fn conflist(&self) -> PathBuf {
        self.net_dir.join(&self.conf_name)
    }

    fn check(&self) -> Result<()> {
        ensure!(
            !self.conf_name.contains('/') && self.conf_name.ends_with(".conflist"),
            "--conf-name {:?}: expected a file name that ends in .conflist",
            self.conf_name
        );
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    places: Places,
    /// Name of the network; the same as Calico's, so that addresses keep their owner
    #[arg(long, env = "CNI_NETWORK_NAME", value_name = "NAME", default_value = "k8s-pod-network")]
    network: String,
    /// The conflist itself, instead of the built-in one
    #[arg(long, env = "CNI_NETWORK_CONFIG", value_name = "JSON")]
    conflist: Option<String>,
    /// A file with the conflist; it wins over --conflist
    #[arg(long, env = "CNI_NETWORK_CONFIG_FILE", value_name = "FILE")]
    conflist_file: Option<String>,
    /// MTU of pods' devices: in the built-in conflist, and for __CNI_MTU__ in a given one; 0 = what the agent finds out
    #[arg(long, env = "CNI_MTU", value_name = "OCTETS", default_value = "0")]
    mtu: String,
    /// A conflist of an earlier installation under another name, which goes once this one is there
    #[arg(long, env = "CNI_OLD_CONF_NAME", value_name = "FILE")]
    old_conf_name: Option<String>,
    /// Whether plugins that are there already are brought up to date; of others those that were installed here and are
    /// as they were then
    #[arg(long, env = "UPDATE_CNI_BINARIES", value_name = "BOOL", default_value = "true", value_parser = boolean,
        action = ArgAction::Set)]
    update_binaries: bool,
    /// Plugins not to install, by name, with commas
    #[arg(long, env = "SKIP_CNI_BINARIES", value_name = "NAME,..", value_delimiter = ',')]
    skip_binaries: Vec<String>,
    /// On a node that ran Calico: also take the place of its plugins `calico` and `calico-ipam`, which are kept and put back
    /// by a removal. CRI-O calls them to delete the pods that Calico attached
    #[arg(long, env = "BRINDLE_TAKE_OVER", value_parser = boolean)]
    take_over: bool,
    /// Where the plugins are now [default: the folder of this program]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Where plugins of others are, installed if the node has none of the name
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/cni")]
    others: PathBuf,
    /// The agent's socket
    #[arg(long, value_name = "PATH", default_value = "/var/lib/brindle/cni.sock")]
    cni_socket: PathBuf,
    /// Folder of the agent's own files [default: that of its socket]
    #[arg(long, env = "BRINDLE_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Seconds to wait for the agent to be ready; without it no conflist is written
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    wait: u64,
    /// Only the plugins; the agent writes the conflist itself (`brindle-node run --install-cni`)
    #[arg(long, conflicts_with = "remove")]
    plugins_only: bool,
    /// Take the conflist and the plugins away again (the conflist first), those of others as far as they were installed here
    #[arg(long)]
    remove: bool,
}

/// Installs, refreshes or removes; says what it did.
pub(crate) fn run(args: &InstallArgs) -> Result<Vec<String>> {
    args.places.check()?;
    let old = args.old_conf_name.as_deref().unwrap_or_default();
    ensure!(!old.contains('/'), "--old-conf-name {old:?}: expected a file name without a folder");
    let conflist = args.places.conflist();
    if args.remove {
        return remove_files(&args.places, false, false);
    }
    let text = conflist_text(args, Families::default())?;
    let mut done = plugins(args, &called(&text))?;
    if args.plugins_only {
        return Ok(done);
    }
    let text = when_ready(args, &text)?;
    write_conflist(args, &conflist, &text, &mut done)?;
    Ok(done)
}

/// Takes conflist and plugins away again, and puts Calico's back; `dry_run`: only says what would go.
pub(crate) fn remove_files(places: &Places, keep_plugins: bool, dry_run: bool) -> Result<Vec<String>> {
    places.check()?;
    remove(places, keep_plugins, dry_run)
}

/// For an agent that is ready itself: only the conflist. What was done, and what is to be looked after.
pub(crate) fn conflist_for(cni_socket: &Path, state_dir: &Path) -> Result<(Vec<String>, Kept)> {
    #[derive(Parser)]
    struct FromEnvironment {
        #[command(flatten)]
        args: InstallArgs,
    }
    let mut args = FromEnvironment::try_parse_from(["brindle-node"])?.args;
    cni_socket.clone_into(&mut args.cni_socket);
    args.state_dir = Some(state_dir.to_owned());
    let conflist = args.places.conflist();
    let text = conflist_text(&args, Families::default())?;
    let text = when_ready(&args, &text)?;
    let mut done = Vec::new();
    write_conflist(&args, &conflist, &text, &mut done)?;
    Ok((done, Kept::new(conflist, text)))
}

fn write_conflist(args: &InstallArgs, conflist: &Path, text: &str, done: &mut Vec<String>) -> Result<()> {
    fs::create_dir_all(&args.places.net_dir).with_context(|| args.places.net_dir.display().to_string())?;
    put(conflist, text.as_bytes(), 0o644, done)?;
    match args.old_conf_name.as_deref() {
        // Two conflists: runtimes take the first by name.
        Some(old) if !old.is_empty() && !old.contains('/') && old != args.places.conf_name => {
            remove_file(&args.places.net_dir.join(old), done)
        }
        _ => Ok(()),
    }
}

/// Waits for the agent. The conflist: the built-in one asks for addresses of the families that any pod of this node can have.
fn when_ready(args: &InstallArgs, text: &str) -> Result<String> {
    let limit = Duration::from_secs(args.wait);
    if given(args)?.is_some() {
        wait_for_agent(limit, || {
            let node = ask(&args.cni_socket, question(text))?;
            if let Some(why) = of_another_node(text, &node) {
                return Err(why);
            }
            pod_cidrs(&args.cni_socket, text)
        })?;
        return Ok(text.to_owned());
    }
    // One family is enough to know that there are pools; which there are is asked then.
    wait_for_agent(limit, || ask(&args.cni_socket, Call::status()).map(drop))?;
    let families = match exchange(&args.cni_socket, Call::Families) {
        Ok(Reply::Families { v4, v6 }) if v4 || v6 => Families { v4, v6 },
        // An agent before this one does not know the question.
        _ => Families::default(),
    };
    conflist_text(args, families)
}

/// Where the conflist has another IPAM plugin give addresses of the node's pod CIDRs, the node must have them.
fn pod_cidrs(socket: &Path, conflist: &str) -> Result<(), String> {
    let ours = ours(conflist);
    if lacks_pod_cidr(&ours, &[]).is_none() {
        return Ok(());
    }
    match exchange(socket, Call::PodCidrs)? {
        Reply::PodCidrs { cidrs } => lacks_pod_cidr(&ours, &cidrs).map_or(Ok(()), Err),
        Reply::Error { msg, .. } => Err(msg),
        other => Err(format!("it answers {other:?}")),
    }
}

/// Waits until the agent could serve an ADD.
fn wait_for_agent(limit: Duration, ready: impl Fn() -> Result<(), String>) -> Result<()> {
    // None: later than a clock can say.
    let deadline = Instant::now().checked_add(limit);
    loop {
        let why = match ready() {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        if deadline.is_some_and(|end| Instant::now() >= end) {
            bail!(
                "the agent is not ready after {limit:?}: {why}; no conflist was written, so runtimes wait for it"
            );
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Whose agent it is, where it is ready.
fn ask(socket: &Path, asked: Call) -> Result<String, String> {
    match exchange(socket, asked)? {
        Reply::Pong { node, .. } => Ok(node),
        Reply::Error { msg, .. } => Err(msg),
        other => Err(format!("it answers {other:?}")),
    }
}

fn exchange(socket: &Path, asked: Call) -> Result<Reply, String> {
    let mut stream = UnixStream::connect(socket).map_err(|e| format!("{}: {e}", socket.display()))?;
    let patience = Some(Duration::from_secs(5));
    stream
        .set_read_timeout(patience)
        .and_then(|()| stream.set_write_timeout(patience))
        .map_err(|e| e.to_string())?;
    proto::ask(&mut stream, asked).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{self, Write as _},
        os::unix::{fs::PermissionsExt, net::UnixListener},
        sync::atomic::{AtomicU32, Ordering},
    };

    use serde_json::{Value, json};

    use super::*;

    static NEXT: AtomicU32 = AtomicU32::new(0);

    pub(super) fn stage() -> (PathBuf, InstallArgs) {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("bt-{}-install-{n}", std::process::id()));
        fs::create_dir_all(dir.join("from")).unwrap();
        for b in BINARIES {
            fs::write(dir.join("from").join(b), format!("program {b}")).unwrap();
        }
        fs::create_dir_all(dir.join("others")).unwrap();
        for b in OTHERS {
            fs::write(dir.join("others").join(b), format!("plugin {b}")).unwrap();
        }
        let args = InstallArgs {
            places: Places {
                bin_dir: dir.join("bin"),
                net_dir: dir.join("net.d"),
                conf_name: "10-brindle.conflist".into(),
            },
            network: "k8s-pod-network".into(),
            conflist: None,
            conflist_file: None,
            mtu: "0".into(),
            old_conf_name: None,
            update_binaries: true,
            skip_binaries: Vec::new(),
            take_over: false,
            from: Some(dir.join("from")),
            others: dir.join("others"),
            cni_socket: dir.join("cni.sock"),
            state_dir: None,
            wait: 0,
            plugins_only: false,
            remove: false,
        };
        (dir, args)
    }

    /// An agent that is ready, or says what is missing; its node has pools of IPv4, or as said.
    fn agent(socket: &Path, reply: Reply) {
        agent_of(socket, reply, Families { v4: true, v6: false });
    }

    fn agent_of(socket: &Path, reply: Reply, Families { v4, v6 }: Families) {
        let listener = UnixListener::bind(socket).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = [0; 4];
                io::Read::read_exact(&mut stream, &mut head).unwrap();
                let mut body = vec![0; proto::body_len(head).unwrap()];
                io::Read::read_exact(&mut stream, &mut body).unwrap();
                let asked: proto::Request = proto::decode(&body).unwrap();
                let families = Reply::Families { v4, v6 };
                let reply = if asked.call == Call::Families { &families } else { &reply };
                stream.write_all(&proto::encode(reply).unwrap()).unwrap();
            }
        });
    }

    #[test]
    fn an_agent_need_have_no_pool_where_another_plugin_gives_addresses() {
        for (ipam, want) in [("host-local", true), ("brindle-ipam", false)] {
            let text =
                json!({"name": "n", "plugins": [{"type": "brindle", "ipam": {"type": ipam}}]}).to_string();
            assert!(matches!(question(&text), Call::Status { given, .. } if given == want), "{ipam}");
        }
    }

    #[test]
    fn one_may_wait_longer_than_a_clock_goes() {
        assert_eq!(
            wait_for_agent(Duration::from_secs(u64::MAX), || Ok(())).map_err(|e| e.to_string()),
            Ok(())
        );
    }

    #[test]
    fn a_conflist_that_takes_pod_cidrs_waits_for_them() {
        let (dir, mut args) = stage();
        let conflist = |ipam: Value| {
            Some(
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "brindle", "ipam": ipam}]})
                    .to_string(),
            )
        };
        agent(&args.cni_socket, Reply::PodCidrs { cidrs: vec!["10.1.0.0/24".parse().unwrap()] });
        let check = |args: &InstallArgs| pod_cidrs(&args.cni_socket, args.conflist.as_deref().unwrap());
        for (subnet, lacks) in
            [("usePodCidr", ""), ("usePodCidrIPv6", "this node has no pod CIDR of that family yet")]
        {
            args.conflist = conflist(json!({"type": "host-local", "ranges": [[{"subnet": subnet}]]}));
            let said = check(&args).err().unwrap_or_default();
            assert!(said.is_empty() == lacks.is_empty() && said.contains(lacks), "{subnet}: {said}");
        }
        // Nobody is asked for what is not taken.
        args.cni_socket = dir.join("nobody");
        args.conflist = conflist(json!({"type": "host-local", "subnet": "10.9.0.0/24"}));
        assert_eq!(check(&args), Ok(()));
        args.conflist = conflist(json!({"type": "host-local", "subnet": "usePodCidr"}));
        assert!(check(&args).is_err());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_conflist_asks_for_the_families_that_have_pools() {
        let both = [("true", "true", true, true), ("false", "true", false, true), ("", "", true, false)];
        for (want4, want6, v4, v6) in both {
            let (dir, args) = stage();
            let pong = Reply::Pong { node: "n".into(), version: "1".into() };
            agent_of(&args.cni_socket, pong, Families { v4, v6 });
            run(&args).unwrap();
            let text = fs::read_to_string(args.places.net_dir.join(&args.places.conf_name)).unwrap();
            let list: Value = serde_json::from_str(&text).unwrap();
            let ipam = &list["plugins"][0]["ipam"];
            let word = |name: &str| ipam[name].as_str().unwrap_or_default().to_owned();
            assert_eq!((&*word("assign_ipv4"), &*word("assign_ipv6")), (want4, want6), "{text}");
            let asked = question(&text);
            let wanted = (u8::from(v4), u8::from(v6));
            assert!(matches!(asked, Call::Status { num4, num6, .. } if (num4, num6) == wanted), "{asked:?}");
            fs::remove_dir_all(dir).unwrap();
        }
    }

    #[test]
    fn what_a_killed_run_left_halfway_is_no_obstacle() {
        let (dir, args) = stage();
        fs::create_dir_all(&args.places.net_dir).unwrap();
        for (folder, name) in
            [(&args.places.bin_dir, "brindle"), (&args.places.net_dir, &*args.places.conf_name)]
        {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join(format!(".{name}.{}.tmp", std::process::id())), "half").unwrap();
        }
        agent(&args.cni_socket, Reply::Pong { node: "n".into(), version: "1".into() });
        run(&args).unwrap();
        let hidden = |folder: &Path| {
            let all = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
            all.filter(|n| n.to_string_lossy().ends_with(".tmp")).count()
        };
        assert_eq!((hidden(&args.places.bin_dir), hidden(&args.places.net_dir)), (0, 0));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn without_a_ready_agent_there_is_no_conflist() {
        let (dir, args) = stage();
        let e = run(&args).unwrap_err().to_string();
        assert!(e.contains("no conflist was written"), "{e}");
        assert!(dir.join("bin/brindle").exists() && !dir.join("net.d").exists());
        agent(
            &args.cni_socket,
            Reply::Error { code: 50, msg: "no IP pool is enabled".into(), details: String::new() },
        );
        let e = run(&args).unwrap_err().to_string();
        assert!(e.contains("no IP pool is enabled"), "{e}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_plugins_alone_need_no_agent() {
        let (dir, mut args) = stage();
        args.plugins_only = true;
        assert_eq!(run(&args).unwrap().len(), BINARIES.len() + OTHERS.len());
        assert!(dir.join("bin/brindle-ipam").exists() && !dir.join("net.d").exists());
        fs::remove_dir_all(dir).unwrap();
    }

    /// Seen on a node without the package of the reference plugins: containerd 1.6 makes no pod without loopback.
    #[test]
    fn plugins_of_others_come_where_there_are_none_and_replace_none_of_the_nodes() {
        let (dir, mut args) = stage();
        args.plugins_only = true;
        fs::create_dir_all(&args.places.bin_dir).unwrap();
        fs::write(args.places.bin_dir.join("portmap"), "the node's own").unwrap();
        for name in ["bandwidth", "tuning", "loopback"] {
            fs::remove_file(args.others.join(name)).unwrap();
        }
        args.conflist = Some(
            json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "brindle"}, {"type": "tuning"}]})
                .to_string(),
        );
        // Not shipped, and called by nobody.
        let done = run(&args).unwrap().join("\n");
        assert!(!done.contains("bandwidth"), "{done}");
        for name in ["loopback", "tuning"] {
            assert!(done.contains(&format!("{name}: missing, and ")), "{done}");
        }
        for name in ["bandwidth", "loopback"] {
            fs::write(args.others.join(name), format!("plugin {name}")).unwrap();
        }
        let done = run(&args).unwrap().join("\n");
        assert_eq!(fs::read_to_string(args.places.bin_dir.join("loopback")).unwrap(), "plugin loopback");
        assert_eq!(fs::read_to_string(args.places.bin_dir.join("portmap")).unwrap(), "the node's own");
        assert!(done.contains("portmap: there already") && done.contains("tuning: missing, and "), "{done}");
        // Somebody has one of his own by now.
        fs::write(args.places.bin_dir.join("bandwidth"), "a package's").unwrap();
        args.remove = true;
        args.plugins_only = false;
        let done = run(&args).unwrap().join("\n");
        assert!(done.contains("bandwidth: changed since it was installed, left alone"), "{done}");
        let mut left: Vec<_> = fs::read_dir(&args.places.bin_dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["bandwidth", "portmap"], "{done}");
        assert!(run(&args).unwrap().is_empty());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn plugins_of_others_that_were_installed_here_are_brought_up_to_date_unless_changed() {
        let (dir, mut args) = stage();
        args.plugins_only = true;
        run(&args).unwrap();
        let read =
            |args: &InstallArgs, name: &str| fs::read_to_string(args.places.bin_dir.join(name)).unwrap();
        for name in ["loopback", "portmap", "tuning"] {
            fs::write(args.others.join(name), format!("newer {name}")).unwrap();
        }
        fs::write(args.places.bin_dir.join("portmap"), "a package's").unwrap();
        args.update_binaries = false;
        let done = run(&args).unwrap().join("\n");
        assert_eq!(read(&args, "loopback"), "plugin loopback", "{done}");
        assert!(done.contains("loopback: not to be updated, left alone"), "{done}");

        args.update_binaries = true;
        // It may be running at this moment.
        let old = File::open(args.places.bin_dir.join("loopback")).unwrap();
        let done = run(&args).unwrap().join("\n");
        assert_eq!(io::read_to_string(old).unwrap(), "plugin loopback");
        assert_eq!(
            (read(&args, "loopback"), read(&args, "tuning")),
            ("newer loopback".into(), "newer tuning".into())
        );
        assert_eq!(read(&args, "portmap"), "a package's");
        assert!(done.contains("loopback: written") && done.contains("bandwidth: unchanged"), "{done}");
        assert!(done.contains("portmap: changed since it was installed, left alone"), "{done}");

        // The image has it no more, then has it again; and an update that ended between the record and the file.
        fs::remove_file(args.others.join("tuning")).unwrap();
        let done = run(&args).unwrap().join("\n");
        assert!(done.contains("tuning: ") && done.contains("has no newer one, left alone"), "{done}");
        let record = args.places.bin_dir.join(".brindle-plugins");
        let marks = fs::read_to_string(&record).unwrap();
        fs::write(&record, format!("{marks}loopback 7 0123456789abcdef\n")).unwrap();
        fs::write(args.others.join("loopback"), "newest").unwrap();
        run(&args).unwrap();
        assert_eq!(read(&args, "loopback"), "newest");
        assert_eq!(fs::read_to_string(&record).unwrap().lines().count(), OTHERS.len(), "one mark of each");

        (args.plugins_only, args.remove) = (false, true);
        let done = run(&args).unwrap().join("\n");
        assert!(
            !args.places.bin_dir.join("loopback").exists() && !args.places.bin_dir.join("tuning").exists(),
            "{done}"
        );
        assert_eq!(read(&args, "portmap"), "a package's");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn it_installs_refreshes_and_removes() {
        let (dir, mut args) = stage();
        agent(&args.cni_socket, Reply::Pong { node: "n".into(), version: "1".into() });
        let done = run(&args).unwrap();
        assert_eq!(
            done.iter().filter(|d| d.ends_with("written")).count(),
            BINARIES.len() + OTHERS.len() + 1,
            "{done:?}"
        );
        let conflist = dir.join("net.d/10-brindle.conflist");
        let value: Value = serde_json::from_str(&fs::read_to_string(&conflist).unwrap()).unwrap();
        assert_eq!(value["plugins"][0]["type"], "brindle");
        assert_eq!(fs::metadata(dir.join("bin/brindle")).unwrap().permissions().mode() & 0o777, 0o755);
        let done = run(&args).unwrap();
        assert!(done.iter().all(|d| d.ends_with("unchanged") || d.ends_with("left alone")), "{done:?}");
        // A new version; the old one may be running at this moment, so it must not be written into.
        let old = File::open(dir.join("bin/brindle")).unwrap();
        fs::write(dir.join("from/brindle"), "program of the next version").unwrap();
        run(&args).unwrap();
        assert_eq!(io::read_to_string(old).unwrap(), "program brindle");
        assert_eq!(fs::read_to_string(dir.join("bin/brindle")).unwrap(), "program of the next version");
        let left: Vec<_> = fs::read_dir(dir.join("net.d")).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing half-written: {left:?}");
        args.remove = true;
        assert_eq!(run(&args).unwrap().len(), 3 + OTHERS.len());
        assert!(!conflist.exists() && run(&args).unwrap().is_empty());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn plugins_may_be_skipped_or_left_as_they_are_and_are_made_executable() {
        let (dir, mut args) = stage();
        args.plugins_only = true;
        args.skip_binaries = vec!["tuning".into(), "brindle-ipam".into()];
        run(&args).unwrap();
        assert!(
            !args.places.bin_dir.join("tuning").exists()
                && !args.places.bin_dir.join("brindle-ipam").exists()
        );

        for name in ["brindle", "loopback"] {
            fs::set_permissions(args.places.bin_dir.join(name), fs::Permissions::from_mode(0o644)).unwrap();
        }
        fs::write(dir.join("from/brindle"), "program of the next version").unwrap();
        args.update_binaries = false;
        let done = run(&args).unwrap().join("\n");
        assert_eq!(
            fs::read_to_string(args.places.bin_dir.join("brindle")).unwrap(),
            "program brindle",
            "{done}"
        );
        args.update_binaries = true;
        fs::write(dir.join("from/brindle"), "program brindle").unwrap();
        fs::set_permissions(args.places.bin_dir.join("brindle"), fs::Permissions::from_mode(0o600)).unwrap();
        let again = run(&args).unwrap().join("\n");
        for name in ["brindle", "loopback"] {
            let mode = fs::metadata(args.places.bin_dir.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o111, 0o111, "{name}: {done}\n{again}");
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_conflist_may_be_a_file_with_an_mtu_and_takes_the_place_of_an_old_one() {
        let (dir, mut args) = stage();
        agent(&args.cni_socket, Reply::Pong { node: "n".into(), version: "1".into() });
        args.mtu = "1400".into();
        let read = |args: &InstallArgs| -> Value {
            run(args).unwrap();
            serde_json::from_str(
                &fs::read_to_string(args.places.net_dir.join(&args.places.conf_name)).unwrap(),
            )
            .unwrap()
        };
        assert_eq!(read(&args)["plugins"][0]["mtu"], 1400);

        let file = dir.join("template");
        fs::write(
            &file,
            r#"{"cniVersion":"1.0.0","name":"mine","plugins":[{"type":"brindle","mtu":__CNI_MTU__}]}"#,
        )
        .unwrap();
        args.conflist = Some("{".into());
        args.conflist_file = Some(file.to_str().unwrap().into());
        args.old_conf_name = Some("10-brindle.conflist".into());
        args.places.conf_name = "05-mine.conflist".into();
        let value = read(&args);
        assert_eq!(value["name"], "mine");
        assert_eq!(value["plugins"][0]["mtu"], 1400);
        assert!(!args.places.net_dir.join("10-brindle.conflist").exists());
        // Its own name is not an old one.
        args.old_conf_name = Some("05-mine.conflist".into());
        read(&args);

        fs::write(&file, r#"{"name":"n","plugins":[{"kubeconfig":"__KUBECONFIG_FILEPATH__"}]}"#).unwrap();
        let e = run(&args).unwrap_err().to_string();
        assert!(e.contains("__KUBECONFIG_FILEPATH__, which stands for nothing here"), "{e}");
        args.conflist_file = Some("/nonexistent".into());
        assert!(format!("{:#}", run(&args).unwrap_err()).contains("CNI_NETWORK_CONFIG_FILE"));
        args.mtu = "12".into();
        assert!(run(&args).unwrap_err().to_string().contains("CNI_MTU"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_conflist_with_a_credential_or_without_plugins_is_refused() {
        let (dir, mut args) = stage();
        for (text, want) in [
            ("{", "is no JSON"),
            (r#"{"name":"n","plugins":[]}"#, "has no plugins"),
            (r#"{"plugins":[{"type":"x"}]}"#, "has no name"),
            (r#"{"name":"n","plugins":[{"type":"x","k8s":{"auth_token":"abc"}}]}"#, "auth_token"),
        ] {
            args.conflist = Some(text.into());
            let e = format!("{:#}", run(&args).unwrap_err());
            assert!(e.contains(want), "{text}: {e}");
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_conflist_whose_every_add_would_be_refused_is_not_written() {
        let (dir, mut args) = stage();
        agent(&args.cni_socket, Reply::Pong { node: "n1".into(), version: "1".into() });
        let list = |version: &str, name: &str, plugin: &str| {
            format!(r#"{{"cniVersion": "{version}", "name": "{name}", "plugins": [{plugin}]}}"#)
        };
        let ours = r#"{"type": "brindle"}"#;
        for (text, want) in [
            (format!(r#"{{"name": "n", "plugins": [{ours}]}}"#), "cniVersion is missing"),
            (list("0.2.0", "n", ours), "0.2.0"),
            (list("1.0.0", "my net", ours), "my net"),
            (list("1.0.0", "n", r#"{"type": "brindle", "ipam": {"type": "calico-ipam"}}"#), "calico-ipam"),
            (list("1.0.0", "n", r#"{"type": "macvlan"}"#), "calls neither brindle nor"),
            (list("1.0.0", "n", r#"{"type": "brindle", "nodename": "n2"}"#), "the nodename \"n2\""),
        ] {
            args.conflist = Some(text.clone());
            let e = format!("{:#}", run(&args).unwrap_err());
            assert!(e.contains(want), "{text}: {e}");
            assert!(!args.places.net_dir.join(&args.places.conf_name).exists(), "{text}");
        }
        for plugin in [
            r#"{"type": "macvlan", "ipam": {"type": "brindle-ipam"}}"#,
            r#"{"type": "brindle", "nodename": "n1", "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}}"#,
        ] {
            args.conflist = Some(list("1.0.0", "n", plugin));
            run(&args).unwrap();
        }
        let asked = question(&list("1.0.0", "n", r#"{"type": "brindle", "ipam": {"ipv4_pools": ["red"]}}"#));
        assert!(matches!(asked, Call::Status { pools4, .. } if pools4 == ["red"]));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_built_in_conflist_names_the_state_folder_and_calls_bandwidth_where_it_is() {
        let (dir, mut args) = stage();
        let list = |args: &InstallArgs| -> Value {
            serde_json::from_str(&conflist_text(args, Families::default()).unwrap()).unwrap()
        };
        assert_eq!(list(&args)["plugins"][0]["state_dir"], json!(dir), "that of the socket");
        args.state_dir = Some("/var/lib/brindle".into());
        assert_eq!(list(&args)["plugins"][0].get("state_dir"), None, "as the plugin has it");
        assert_eq!(list(&args)["plugins"].as_array().map(Vec::len), Some(2));
        fs::create_dir_all(&args.places.bin_dir).unwrap();
        let bandwidth = args.places.bin_dir.join("bandwidth");
        fs::write(&bandwidth, "x").unwrap();
        fs::set_permissions(&bandwidth, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(list(&args)["plugins"].as_array().map(Vec::len), Some(2), "nobody can call it");
        fs::set_permissions(&bandwidth, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(
            list(&args)["plugins"][2],
            json!({"type": "bandwidth", "capabilities": {"bandwidth": true}})
        );
        fs::remove_dir_all(dir).unwrap();
    }
}
