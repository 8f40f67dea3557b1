//! What the speaker of a node was last told by its datastore, in a file below the state folder: an agent that starts while
//! the datastore is away speaks as the one before it did, so that its neighbors keep the routes to pods that run.
//!
//! Passwords are not in it: it says which secret has them, and the secret's file is read again. And it is only good as long
//! as the machine runs: after its next start the kernel has nothing of what was announced, neither pods nor the rules of
//! services, so that neighbors are better off without this node until the datastore answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use brindle_kernel::files;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    handle::Desired,
    peers::{ClusterState, Plan},
    secrets::Secrets,
};

/// What this version writes; another one is not read.
const VERSION: u32 = 1;
/// How long changes are waited for before they are written: services may change many times a second.
const PAUSE: Duration = Duration::from_secs(2);
/// After how long it is tried again what could not be written.
const AGAIN: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Written {
    version: u32,
    /// Whose it is: state folders are copied with the images of machines.
    node: String,
    /// The start of the machine it is of.
    boot: String,
    desired: Desired,
    passwords: Passwords,
}

/// The same, on its way into the file.
#[derive(Serialize)]
struct Writing<'a> {
    version: u32,
    node: &'a str,
    boot: &'a str,
    desired: &'a Desired,
    passwords: &'a Passwords,
}

/// Secret and key with the password of a neighbor, by its place among the peers.
type Passwords = BTreeMap<usize, (String, String)>;

/// The kernel's name for the machine's last start; empty where it has none.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Keeps the file up to date.
pub(crate) struct Memory {
    path: PathBuf,
    node: String,
    boot: String,
    /// What the speaker was told last, and where its passwords are from.
    told: Option<(Desired, Passwords)>,
    /// When it is to be written, if it is another than what is in the file.
    due: Option<Instant>,
    /// Of what is in the file.
    written: Option<u64>,
    failed: bool,
}

impl Memory {
    pub(crate) fn new(path: &Path, node: &str) -> Self {
        let (path, node) = (path.to_owned(), node.to_owned());
        Self { path, node, boot: boot(), told: None, due: None, written: None, failed: false }
    }

    /// What the speaker is told, by this state. Most changes of a datastore change nothing of it: then nothing is done.
    pub(crate) fn told(&mut self, plan: &Plan, state: &ClusterState) {
        let passwords = passwords(plan, state);
        if self.told.as_ref().is_some_and(|(desired, of)| is_same(desired, plan) && *of == passwords) {
            return;
        }
        self.told = Some((Desired::from(plan.clone()), passwords));
        self.due.get_or_insert_with(|| Instant::now() + PAUSE);
    }

    /// When to [`Self::keep`].
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Writes it, if it is due and another than what is written.
    pub(crate) async fn keep(&mut self) {
        if self.due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.due = None;
        let Some((desired, passwords)) = &self.told else { return };
        let (node, boot) = (self.node.as_str(), self.boot.as_str());
        let text = match serde_json::to_string(&Writing { version: VERSION, node, boot, desired, passwords })
        {
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
                self.due = Some(Instant::now() + AGAIN);
                if !std::mem::replace(&mut self.failed, true) {
                    let lost = "an agent that starts while the datastore is away will not speak BGP";
                    warn!("cannot write {}: {e}; {lost}", self.path.display());
                }
            }
        }
    }
}

/// Whether a plan says what the speaker was told.
fn is_same(told: &Desired, plan: &Plan) -> bool {
    let Desired { speaker, listen, peers, routes, statics, imports, services } = told;
    *speaker == plan.speaker
        && *listen == plan.listen
        && *peers == plan.peers
        && *routes == plan.routes
        && *statics == plan.statics
        && *imports == plan.imports
        && *services == plan.services
}

fn passwords(plan: &Plan, state: &ClusterState) -> Passwords {
    let known: Vec<(String, String)> = state.wanted_secrets().into_iter().collect();
    let whose = |password: &str| known.iter().find(|(n, k)| state.secret(n, k) == Some(password)).cloned();
    let passwords = plan.peers.iter().enumerate().filter_map(|(i, p)| {
        let password = p.password.as_deref()?;
        // Translated from the same state: there is one.
        Some((i, whose(password).unwrap_or_default()))
    });
    passwords.collect()
}

/// Whole or not at all, and for root alone.
fn save(path: &Path, text: &str) -> io::Result<()> {
    files::replace(path, text.as_bytes(), 0o600, true)
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
    use crate::peers::{tests::three, translate};

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
        memory.keep().await;
        assert!(!file.exists(), "nothing is due");
        memory.told(&translate(&c.0), &c.0);
        tokio::time::sleep_until(memory.due().unwrap()).await;
        memory.keep().await;
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

    fn text(node: &str, version: u32, boot: &str, state: &ClusterState) -> String {
        let plan = translate(state);
        let (passwords, desired) = (&passwords(&plan, state), &Desired::from(plan));
        serde_json::to_string(&Writing { version, node, boot, desired, passwords }).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_the_same_is_not_written_and_what_could_not_be_is_tried_again() {
        let dir = folder("same");
        let file = dir.0.join("missing/bgp.json");
        let (one, plan) = (three(), translate(&three().0));
        let mut memory = Memory::new(&file, "a");
        memory.told(&plan, &one.0);
        let due = memory.due().unwrap();
        memory.told(&plan, &one.0);
        assert_eq!(memory.due(), Some(due), "nothing puts it off");
        tokio::time::sleep_until(due).await;
        memory.keep().await;
        // The folder is not there: again later, though nothing changes.
        let again = memory.due().unwrap();
        std::fs::create_dir_all(dir.0.join("missing")).unwrap();
        tokio::time::sleep_until(again).await;
        memory.keep().await;
        assert!(file.exists() && memory.due().is_none());
        memory.told(&plan, &one.0);
        assert_eq!(memory.due(), None, "it is in the file");
        let other = one.peer("p", json!({"peerIP": "192.0.2.1", "asNumber": 65000}));
        memory.told(&translate(&other.0), &other.0);
        assert!(memory.due().is_some());
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
        save(&file, &text("a", VERSION, &boot(), &c.0)).unwrap();
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
        let of = |node: &str, version, boot: &str| text(node, version, boot, &three().0);
        let whole = of("a", VERSION, &boot());
        save(&file, &whole).unwrap();
        assert!(recall().unwrap().is_some());
        save(&file, &whole[..whole.len() / 2]).unwrap();
        assert!(recall().unwrap_err().starts_with("it is damaged: "));
        save(&file, &of("b", VERSION, &boot())).unwrap();
        assert_eq!(recall().unwrap_err(), "it is of node b");
        save(&file, &of("a", 9, &boot())).unwrap();
        assert_eq!(recall().unwrap_err(), "it has version 9; this agent reads 1");
        save(&file, &of("a", VERSION, "another")).unwrap();
        assert!(recall().unwrap_err().starts_with("it is of before the machine's last start"));
    }
}
