//! What the speaker of a node was last told by its datastore, in a file below the state folder: an agent that starts while
//! the datastore is away speaks as the one before it did, so that its neighbors keep the routes to pods that run.
//!
//! Passwords are not in it: it says which secret has them, and the secret's file is read again. And it is only good as long
//! as the machine runs: after its next start the kernel has nothing of what was announced, neither pods nor the rules of
//! services, so that neighbors are better off without this node until the datastore answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    handle::Desired,
    peers::{ClusterState, translate},
    secrets::Secrets,
};

/// What this version writes; another one is not read.
const VERSION: u32 = 1;
/// How long changes are waited for before they are written: services may change many times a second.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    /// Whose it is: state folders are copied with the images of machines.
    node: String,
    /// The start of the machine it is of.
    boot: String,
    desired: Desired,
    /// Secret and key with the password of a neighbor, by its place among the peers.
    passwords: BTreeMap<usize, (String, String)>,
}

/// The kernel's name for the machine's last start; empty where it has none.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Keeps the file up to date.
pub(crate) struct Memory {
    path: PathBuf,
    node: String,
    boot: String,
    due: Option<Instant>,
    /// Of what is in the file.
    written: Option<u64>,
    failed: bool,
}

impl Memory {
    pub(crate) fn new(path: &Path, node: &str) -> Self {
        let (path, node) = (path.to_owned(), node.to_owned());
        Self { path, node, boot: boot(), due: None, written: None, failed: false }
    }

    /// What the speaker is told may have changed.
    pub(crate) fn changed(&mut self) {
        if self.due.is_none() {
            self.due = Some(Instant::now() + PAUSE);
        }
    }

    /// When to [`Self::keep`].
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Writes what the state says, if it is due and another than what is written.
    pub(crate) async fn keep(&mut self, state: &ClusterState) {
        if self.due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.due = None;
        let text = match serde_json::to_string(&written(&self.node, &self.boot, state)) {
            Ok(text) => text,
            Err(e) => {
                return warn!("the BGP configuration is not kept for a start without the datastore: {e}");
            }
        };
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = hasher.finish();
        if self.written == Some(hash) {
            return;
        }
        let path = self.path.clone();
        let done = tokio::task::spawn_blocking(move || save(&path, &text)).await;
        match done.map_err(io::Error::other).flatten() {
            Ok(()) => {
                self.written = Some(hash);
                self.failed = false;
            }
            Err(e) => {
                if !std::mem::replace(&mut self.failed, true) {
                    let lost = "an agent that starts while the datastore is away will not speak BGP";
                    warn!("cannot write {}: {e}; {lost}", self.path.display());
                }
            }
        }
    }
}

fn written(node: &str, boot: &str, state: &ClusterState) -> Written {
    let desired = Desired::from(translate(state));
    let known: Vec<(String, String)> = state.wanted_secrets().into_iter().collect();
    let whose = |password: &str| known.iter().find(|(n, k)| state.secret(n, k) == Some(password)).cloned();
    let passwords = desired.peers.iter().enumerate().filter_map(|(i, p)| {
        let password = p.password.as_deref()?;
        // Translated from the same state: there is one.
        Some((i, whose(password).unwrap_or_default()))
    });
    let passwords = passwords.collect();
    Written { version: VERSION, node: node.to_owned(), boot: boot.to_owned(), passwords, desired }
}

/// Whole or not at all, and for root alone.
fn save(path: &Path, text: &str) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&part, path)
}

/// What the speaker of `node` was last told, by the file `path`; `None` when there is no file. Neighbors whose password
/// is not in the folder `secrets` any more are left out and named.
///
/// # Errors
/// A sentence: the file cannot be read, is damaged, another node's, another version's, or of before the machine's last start.
pub fn recall(path: &Path, node: &str, secrets: &Path) -> Result<Option<Desired>, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let mut of: Written = serde_json::from_str(&text).map_err(|e| format!("it is damaged: {e}"))?;
    if of.version != VERSION {
        return Err(format!("it has version {}; this agent reads {VERSION}", of.version));
    }
    if of.node != node {
        return Err(format!("it is of node {}", of.node));
    }
    if of.boot != boot() {
        return Err(
            "it is of before the machine's last start, and nothing it announces is here any more".into()
        );
    }
    let secrets = Secrets(secrets.to_owned());
    // By their places: two may have one address.
    let mut lost: BTreeSet<usize> = BTreeSet::new();
    for (at, (name, key)) in &of.passwords {
        let Some(peer) = of.desired.peers.get_mut(*at) else { continue };
        peer.password = secrets.value(name, key);
        if peer.password.is_none() {
            warn!(peer = %peer.address, secret = name, key, "its password cannot be read; no session until the datastore answers");
            lost.insert(*at);
        }
    }
    let peers = std::mem::take(&mut of.desired.peers).into_iter().enumerate();
    of.desired.peers = peers.filter(|(at, _)| !lost.contains(at)).map(|(_, peer)| peer).collect();
    Ok(Some(of.desired))
}

#[cfg(test)]
mod tests {
    use brindle_config_core::Kind;
    use serde_json::json;

    use super::*;
    use crate::peers::tests::three;

    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn folder(tag: &str) -> Folder {
        let dir = std::env::temp_dir().join(format!("bgpd-{tag}-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("secrets/bgp")).unwrap();
        Folder(dir)
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_written_is_what_was_told_without_the_passwords() {
        let dir = folder("told");
        let (file, secrets) = (dir.0.join("bgp.json"), dir.0.join("secrets"));
        let secret = json!({"secretKeyRef": {"name": "bgp", "key": "tor"}});
        let filter = json!({"exportV4": [{"action": "Reject", "matchOperator": "In", "cidr": "10.0.0.0/8"}]});
        let claim = json!({"node": "a", "cidr": "10.1.0.0/26", "state": "confirmed", "deleted": "false"});
        let cluster = three().with(Kind::IpPool, "pool", json!({"cidr": "10.1.0.0/16"}));
        let cluster = cluster.with(Kind::BlockAffinity, "a-10-1-0-0-26", claim);
        let mut c = cluster.with(Kind::BgpFilter, "f", filter).peer(
            "p",
            json!({"peerIP": "192.0.2.1", "asNumber": 65000, "password": secret, "filters": ["f"]}),
        );
        c.0.set_secret("bgp", "tor", "s3cret");
        let told = Desired::from(translate(&c.0));
        assert!(told.peers.len() > 2 && !told.routes.is_empty(), "{told:?}");

        let mut memory = Memory::new(&file, "a");
        memory.keep(&c.0).await;
        assert!(!file.exists(), "nothing is due");
        memory.changed();
        tokio::time::sleep_until(memory.due().unwrap()).await;
        memory.keep(&c.0).await;
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains("s3cret"), "{text}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);

        let with_password = |d: &Desired| d.peers.iter().filter(|p| p.password.is_some()).count();
        let without = recall(&file, "a", &secrets).unwrap().unwrap();
        assert_eq!((with_password(&without), without.peers.len()), (0, told.peers.len() - 1));
        std::fs::write(secrets.join("bgp/tor"), "s3cret\n").unwrap();
        assert_eq!(recall(&file, "a", &secrets), Ok(Some(told)));
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_peers_at_one_address_the_one_without_its_password_goes() {
        let dir = folder("ports");
        let (file, secrets) = (dir.0.join("bgp.json"), dir.0.join("secrets"));
        let peer = |at: &str, key: &str| {
            let secret = json!({"secretKeyRef": {"name": "bgp", "key": key}});
            json!({"peerIP": at, "asNumber": 65000, "password": secret})
        };
        let mut c = three().peer("p", peer("192.0.2.1:1179", "p")).peer("q", peer("192.0.2.1:2179", "q"));
        for key in ["p", "q"] {
            c.0.set_secret("bgp", key, key);
        }
        save(&file, &serde_json::to_string(&written("a", &boot(), &c.0)).unwrap()).unwrap();
        std::fs::write(secrets.join("bgp/q"), "q").unwrap();
        let told = recall(&file, "a", &secrets).unwrap().unwrap();
        let there: Vec<_> = told.peers.iter().filter(|p| p.address.to_string() == "192.0.2.1").collect();
        assert_eq!(
            there.iter().map(|p| (p.port, p.password.as_deref())).collect::<Vec<_>>(),
            [(2179, Some("q"))]
        );
    }

    /// A field that came later would make every older file a damaged one, unless it has a default.
    #[test]
    fn a_file_of_the_first_form_is_understood() {
        let dir = folder("first");
        let file = dir.0.join("bgp.json");
        let text = include_str!("remembered/first.json").replacen("BOOT", &boot(), 1);
        std::fs::write(&file, text).unwrap();
        std::fs::write(dir.0.join("secrets/bgp/tor"), "s3cret").unwrap();
        let told = recall(&file, "a", &dir.0.join("secrets")).unwrap().unwrap();
        assert!(
            told.speaker.is_some() && !told.imports.rules.is_empty() && !told.routes.is_empty(),
            "{told:?}"
        );
        assert!(told.peers.iter().any(|p| !p.export.filters.is_empty()), "{told:?}");
        let least = json!({"version": 1, "node": "a", "boot": boot(), "desired": {}, "passwords": {}});
        std::fs::write(&file, least.to_string()).unwrap();
        assert_eq!(recall(&file, "a", &dir.0), Ok(Some(Desired::default())));
    }

    #[test]
    fn a_file_of_somebody_else_or_torn_is_refused_with_the_reason() {
        let dir = folder("torn");
        let file = dir.0.join("bgp.json");
        let recall = || recall(&file, "a", &dir.0);
        assert_eq!(recall(), Ok(None));
        let mut of = written("a", &boot(), &three().0);
        save(&file, &serde_json::to_string(&of).unwrap()).unwrap();
        assert!(recall().unwrap().is_some());
        let text = std::fs::read_to_string(&file).unwrap();
        save(&file, &text[..text.len() / 2]).unwrap();
        assert!(recall().unwrap_err().starts_with("it is damaged: "));
        of.node = "b".into();
        save(&file, &serde_json::to_string(&of).unwrap()).unwrap();
        assert_eq!(recall().unwrap_err(), "it is of node b");
        (of.node, of.version) = ("a".into(), 9);
        save(&file, &serde_json::to_string(&of).unwrap()).unwrap();
        assert_eq!(recall().unwrap_err(), "it has version 9; this agent reads 1");
        (of.version, of.boot) = (VERSION, "another".into());
        save(&file, &serde_json::to_string(&of).unwrap()).unwrap();
        assert!(recall().unwrap_err().starts_with("it is of before the machine's last start"));
    }
}
