//! `brindle-node install-cni`: puts the plugins and the conflist where container runtimes look. A runtime takes a node for
//! ready when the conflist is there, so that comes last, after the agent's socket answers and the binaries are in place.
//! Every file is written beside its place, synced, and renamed: nobody ever sees half of one. The conflist holds no
//! secret: the plugin talks to the agent, which has the datastore.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::{fs::OpenOptionsExt, net::UnixStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use brindle_cni::proto::{self, Call, Reply};
use clap::{Args, Parser};
use serde_json::{Value, json};

/// The plugins.
const BINARIES: [&str; 2] = ["brindle", "brindle-ipam"];

/// Plugins of others that runtimes and the built-in conflist call (loopback: containerd before 2.0, for every pod), or that
/// are often chained. As Calico's installer has it, a node needs no other package for them.
const OTHERS: [&str; 5] = ["loopback", "portmap", "bandwidth", "tuning", "host-local"];

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    /// Where runtimes look for plugins
    #[arg(long, env = "CNI_BIN_DIR", value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// Where runtimes look for network configurations
    #[arg(long, env = "CNI_NET_DIR", value_name = "DIR", default_value = "/etc/cni/net.d")]
    net_dir: PathBuf,
    /// Name of the conflist's file
    #[arg(long, env = "CNI_CONF_NAME", value_name = "FILE", default_value = "10-brindle.conflist")]
    conf_name: String,
    /// Name of the network; the same as Calico's, so that addresses keep their owner
    #[arg(long, env = "CNI_NETWORK_NAME", value_name = "NAME", default_value = "k8s-pod-network")]
    network: String,
    /// The conflist itself, instead of the built-in one
    #[arg(long, env = "CNI_NETWORK_CONFIG", value_name = "JSON")]
    conflist: Option<String>,
    /// Where the plugins are now [default: the folder of this program]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Where plugins of others are, installed if the node has none of the name
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/cni")]
    others: PathBuf,
    /// The agent's socket
    #[arg(long, value_name = "PATH", default_value = "/var/lib/brindle/cni.sock")]
    cni_socket: PathBuf,
    /// Seconds to wait for the agent to be ready; without it no conflist is written
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    wait: u64,
    /// Only the plugins; the agent writes the conflist itself (`brindle-node run --install-cni`)
    #[arg(long, conflicts_with = "remove")]
    plugins_only: bool,
    /// Take the conflist and the plugins away again (the conflist first)
    #[arg(long)]
    remove: bool,
}

/// Installs, refreshes or removes; says what it did.
pub(crate) fn run(args: &InstallArgs) -> Result<Vec<String>> {
    ensure!(
        !args.conf_name.contains('/') && args.conf_name.ends_with(".conflist"),
        "--conf-name {:?}: expected a file name that ends in .conflist",
        args.conf_name
    );
    let conflist = args.net_dir.join(&args.conf_name);
    if args.remove {
        return remove(args, &conflist);
    }
    let text = conflist_text(args)?;
    let mut done = plugins(args)?;
    if args.plugins_only {
        return Ok(done);
    }
    wait_for_agent(&args.cni_socket, &text, Duration::from_secs(args.wait))?;
    write_conflist(args, &conflist, &text, &mut done)?;
    Ok(done)
}

/// For an agent that is ready itself: only the conflist.
pub(crate) fn conflist_for(cni_socket: &Path) -> Result<Vec<String>> {
    #[derive(Parser)]
    struct FromEnvironment {
        #[command(flatten)]
        args: InstallArgs,
    }
    let mut args = FromEnvironment::try_parse_from(["brindle-node"])?.args;
    cni_socket.clone_into(&mut args.cni_socket);
    let conflist = args.net_dir.join(&args.conf_name);
    let text = conflist_text(&args)?;
    wait_for_agent(cni_socket, &text, Duration::from_secs(args.wait))?;
    let mut done = Vec::new();
    write_conflist(&args, &conflist, &text, &mut done)?;
    Ok(done)
}

fn write_conflist(args: &InstallArgs, conflist: &Path, text: &str, done: &mut Vec<String>) -> Result<()> {
    fs::create_dir_all(&args.net_dir).with_context(|| args.net_dir.display().to_string())?;
    put(conflist, text.as_bytes(), 0o644, done)
}

fn plugins(args: &InstallArgs) -> Result<Vec<String>> {
    let from = match &args.from {
        Some(dir) => dir.clone(),
        None => {
            let own = std::env::current_exe().context("cannot find this program's own folder")?;
            own.parent().context("this program has no folder")?.to_owned()
        }
    };
    let mut done = Vec::new();
    fs::create_dir_all(&args.bin_dir).with_context(|| args.bin_dir.display().to_string())?;
    for name in BINARIES {
        let source = from.join(name);
        let bytes =
            fs::read(&source).with_context(|| format!("cannot read the plugin {}", source.display()))?;
        put(&args.bin_dir.join(name), &bytes, 0o755, &mut done)?;
    }
    others(args, &mut done)?;
    Ok(done)
}

/// Plugins of others: what a node has already is the node's own affair, newer or older.
fn others(args: &InstallArgs, done: &mut Vec<String>) -> Result<()> {
    for name in OTHERS {
        let place = args.bin_dir.join(name);
        if fs::symlink_metadata(&place).is_ok() {
            done.push(format!("{}: there already, left alone", place.display()));
            continue;
        }
        match fs::read(args.others.join(name)) {
            Ok(bytes) => put(&place, &bytes, 0o755, done)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => done.push(format!(
                "{}: missing, and {} has none; install the CNI reference plugins if something calls it",
                place.display(),
                args.others.display()
            )),
            Err(e) => return Err(e).with_context(|| args.others.join(name).display().to_string()),
        }
    }
    Ok(())
}

fn conflist_text(args: &InstallArgs) -> Result<String> {
    let value: Value = match &args.conflist {
        Some(text) => serde_json::from_str(text).context("--conflist (CNI_NETWORK_CONFIG) is no JSON")?,
        None => json!({
            "cniVersion": "1.0.0",
            "name": args.network,
            "plugins": [
                {"type": "brindle", "agent_socket": args.cni_socket, "ipam": {"type": "brindle-ipam"},
                    "capabilities": {"io.kubernetes.cri.pod-annotations": true}},
                {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
            ],
        }),
    };
    let list = value.get("plugins").and_then(Value::as_array).filter(|l| !l.is_empty());
    ensure!(list.is_some(), "the conflist has no plugins");
    ensure!(
        value.get("name").and_then(Value::as_str).is_some_and(|n| !n.is_empty()),
        "the conflist has no name"
    );
    if let Some(secret) = secret(&value) {
        bail!(
            "the conflist has a member {secret:?}; every user of the node can read it: the plugin needs no credentials"
        );
    }
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}

/// A member that by its name holds a credential.
fn secret(value: &Value) -> Option<String> {
    const WORDS: [&str; 5] = ["token", "password", "secret", "private_key", "client-key"];
    match value {
        Value::Object(members) => members.iter().find_map(|(name, v)| {
            let lower = name.to_ascii_lowercase();
            if WORDS.iter().any(|w| lower.contains(w)) { Some(name.clone()) } else { secret(v) }
        }),
        Value::Array(items) => items.iter().find_map(secret),
        _ => None,
    }
}

/// Puts a file in place, unless it is there already.
fn put(path: &Path, bytes: &[u8], mode: u32, done: &mut Vec<String>) -> Result<()> {
    let shown = path.display();
    if fs::read(path).is_ok_and(|there| there == bytes) {
        done.push(format!("{shown}: unchanged"));
        return Ok(());
    }
    replace(path, bytes, mode)
        .with_context(|| format!("cannot write {shown}; the former file, if any, is untouched"))?;
    done.push(format!("{shown}: written"));
    Ok(())
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    // Runtimes read `*.conf`, `*.conflist` and `*.json` only.
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn remove(args: &InstallArgs, conflist: &Path) -> Result<Vec<String>> {
    let mut done = Vec::new();
    let binaries = BINARIES.iter().map(|b| args.bin_dir.join(b));
    for path in std::iter::once(conflist.to_owned()).chain(binaries) {
        match fs::remove_file(&path) {
            Ok(()) => done.push(format!("{}: removed", path.display())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("cannot remove {}", path.display())),
        }
    }
    Ok(done)
}

/// What is asked of the agent: where the conflist has another IPAM plugin, pools do not matter.
fn question(conflist: &str) -> Call {
    let value: Value = serde_json::from_str(conflist).unwrap_or_default();
    let plugins = value.get("plugins").and_then(Value::as_array).into_iter().flatten();
    let kind = |p: &Value| p.pointer("/ipam/type").and_then(Value::as_str).map(str::to_owned);
    let mut ours = plugins.filter(|p| p.get("type").is_some_and(|t| t == BINARIES[0])).filter_map(kind);
    let given = ours.next().is_some_and(|kind| matches!(&*kind, "host-local" | "static"));
    Call::Status { given, pools4: Vec::new(), pools6: Vec::new(), num4: 0, num6: 0 }
}

/// Waits until the agent says that it could serve an ADD of this conflist.
fn wait_for_agent(socket: &Path, conflist: &str, limit: Duration) -> Result<()> {
    let asked = question(conflist);
    let deadline = Instant::now() + limit;
    loop {
        let why = match ask(socket, asked.clone()) {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        if Instant::now() >= deadline {
            bail!(
                "the agent is not ready after {limit:?}: {why}; no conflist was written, so runtimes wait for it"
            );
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn ask(socket: &Path, asked: Call) -> Result<(), String> {
    let mut stream = UnixStream::connect(socket).map_err(|e| format!("{}: {e}", socket.display()))?;
    let patience = Some(Duration::from_secs(5));
    stream
        .set_read_timeout(patience)
        .and_then(|()| stream.set_write_timeout(patience))
        .map_err(|e| e.to_string())?;
    match proto::ask(&mut stream, asked).map_err(|e| e.to_string())? {
        Reply::Pong { .. } => Ok(()),
        Reply::Error { msg, .. } => Err(msg),
        other => Err(format!("it answers {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{fs::PermissionsExt, net::UnixListener},
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;

    static NEXT: AtomicU32 = AtomicU32::new(0);

    fn stage() -> (PathBuf, InstallArgs) {
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
            bin_dir: dir.join("bin"),
            net_dir: dir.join("net.d"),
            conf_name: "10-brindle.conflist".into(),
            network: "k8s-pod-network".into(),
            conflist: None,
            from: Some(dir.join("from")),
            others: dir.join("others"),
            cni_socket: dir.join("cni.sock"),
            wait: 0,
            plugins_only: false,
            remove: false,
        };
        (dir, args)
    }

    /// An agent that is ready, or says what is missing.
    fn agent(socket: &Path, reply: Reply) {
        let listener = UnixListener::bind(socket).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = [0; 4];
                io::Read::read_exact(&mut stream, &mut head).unwrap();
                let mut body = vec![0; proto::body_len(head).unwrap()];
                io::Read::read_exact(&mut stream, &mut body).unwrap();
                stream.write_all(&proto::encode(&reply).unwrap()).unwrap();
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
    fn plugins_of_others_come_where_there_are_none_and_are_never_replaced() {
        let (dir, mut args) = stage();
        args.plugins_only = true;
        fs::create_dir_all(&args.bin_dir).unwrap();
        fs::write(args.bin_dir.join("portmap"), "the node's own").unwrap();
        fs::remove_file(args.others.join("tuning")).unwrap();
        let done = run(&args).unwrap().join("\n");
        assert_eq!(fs::read_to_string(args.bin_dir.join("loopback")).unwrap(), "plugin loopback");
        assert_eq!(fs::read_to_string(args.bin_dir.join("portmap")).unwrap(), "the node's own");
        assert!(done.contains("portmap: there already") && done.contains("tuning: missing, and "), "{done}");
        args.remove = true;
        assert_eq!(run(&args).unwrap().len(), BINARIES.len());
        assert!(args.bin_dir.join("loopback").exists(), "others may use it");
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
        assert_eq!(run(&args).unwrap().len(), 3);
        assert!(!conflist.exists() && run(&args).unwrap().is_empty());
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
}
