//! What is attached to this node, as the agent itself remembers it: a file per attachment below the state folder, written
//! when its addresses are given and removed when they are taken back. With it a pod that was here before a reboot gets
//! its addresses again, also while the datastore is away. It is a memory, not a record: who may have an address is
//! decided by the blocks in the datastore, where a given address stays recorded until somebody releases it.
//!
//! Files are not synced: after a power cut a missing or torn one costs its pod the address, nothing else.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use brindle_cni::{journal, proto::Attachment};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// Folder below the state folder.
pub(super) const FOLDER: &str = "cni-attached";
const SUFFIX: &str = "json";

/// One attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) attachment: Attachment,
    pub(super) addresses: Vec<IpNet>,
    /// Another IPAM plugin's addresses: the datastore knows nothing of them.
    #[serde(default)]
    pub(super) given: bool,
    /// The handle that holds the addresses in the datastore: that of the pod's former sandbox until it is handed over.
    pub(super) handle: String,
    /// The container of that sandbox, which the datastore's endpoint names; empty when it is this one.
    #[serde(default)]
    pub(super) former: String,
    /// Octets; 0: the kernel's default.
    #[serde(default)]
    pub(super) mtu: u32,
    /// The endpoint, while the datastore has not been told of it.
    #[serde(default)]
    pub(super) unrecorded: Option<Unrecorded>,
}

/// What the plugin made while the datastore was away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unrecorded {
    pub(super) device: String,
    pub(super) mac: String,
}

impl Kept {
    /// Whether the datastore does not say yet what this says.
    pub(super) fn owes(&self) -> bool {
        self.unrecorded.is_some() || self.is_borrowed()
    }

    /// Whether another handle still holds the addresses.
    pub(super) fn is_borrowed(&self) -> bool {
        self.handle != self.attachment.handle()
    }
}

/// All attachments.
pub(super) struct Attached {
    folder: PathBuf,
    all: Mutex<BTreeMap<String, Kept>>,
    /// Somebody owes the datastore something.
    pub(super) owing: Notify,
}

impl Attached {
    /// Reads what earlier agents kept.
    pub(super) fn read(state_dir: &Path) -> Self {
        let folder = state_dir.join(FOLDER);
        let (sound, damaged) = journal::read_all::<Kept>(&folder, SUFFIX).unwrap_or_else(|e| {
            let lost = "pods will not get their addresses of before while the datastore is away";
            tracing::warn!("cannot read {}: {e}; {lost}", folder.display());
            (Vec::new(), Vec::new())
        });
        for (path, why) in damaged {
            let lost = "its pod is a new one while the datastore is away";
            tracing::warn!("{}: {why}; set aside as .bad: {lost}", path.display());
        }
        let all = sound.into_iter().map(|(_, kept)| (journal::file_stem(&kept.attachment), kept)).collect();
        Self { folder, all: Mutex::new(all), owing: Notify::new() }
    }

    /// Poisoned only if inserting into the map panicked, which leaves the map usable.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, a: &Attachment) -> Option<Kept> {
        self.lock().get(&journal::file_stem(a)).cloned()
    }

    /// The same interface of the same pod, in another sandbox. A pod made anew under its old name is another pod: its uid
    /// tells; without one nothing does.
    pub(super) fn of_pod(&self, a: &Attachment) -> Option<Kept> {
        let pod = a.pod.as_ref().filter(|p| !p.uid.is_empty())?;
        let same = |k: &&Kept| {
            let other = &k.attachment;
            other.pod.as_ref() == Some(pod)
                && (&other.network, &other.ifname) == (&a.network, &a.ifname)
                && other.container_id != a.container_id
        };
        self.lock().values().find(same).cloned()
    }

    /// Those the datastore is to be told of.
    pub(super) fn owed(&self) -> Vec<Kept> {
        self.lock().values().filter(|k| k.owes()).cloned().collect()
    }

    /// The attachment that was promised the addresses of this handle, which is not its own.
    pub(super) fn promised(&self, handle: &str) -> Option<Kept> {
        self.lock().values().find(|k| k.is_borrowed() && k.handle == handle).cloned()
    }

    /// Remembers, for the agents after this one too.
    pub(super) async fn keep(&self, kept: Kept) -> io::Result<()> {
        let stem = journal::file_stem(&kept.attachment);
        let owes = kept.owes();
        let (folder, name, bytes) = (self.folder.clone(), format!("{stem}.{SUFFIX}"), journal::encode(&kept));
        self.lock().insert(stem, kept);
        // What is owed must not be forgotten by a power cut: the pod runs on it.
        let write = move || journal::save(&folder, &name, &bytes, owes).map(drop);
        tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??;
        if owes {
            self.owing.notify_one();
        }
        Ok(())
    }

    /// Forgets an attachment.
    pub(super) async fn forget(&self, a: &Attachment) {
        let stem = journal::file_stem(a);
        if self.lock().remove(&stem).is_some() {
            self.unlink(vec![stem]).await;
        }
    }

    /// Forgets whoever this handle is the own one of: its addresses were taken back.
    pub(super) async fn forget_handle(&self, handle: &str) {
        let mut stems = Vec::new();
        self.lock().retain(|stem, k| {
            let stays = k.attachment.handle() != handle;
            if !stays {
                stems.push(stem.clone());
            }
            stays
        });
        self.unlink(stems).await;
    }

    async fn unlink(&self, stems: Vec<String>) {
        if stems.is_empty() {
            return;
        }
        let folder = self.folder.clone();
        let remove = move || {
            for stem in stems {
                let path = folder.join(format!("{stem}.{SUFFIX}"));
                match std::fs::remove_file(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!("cannot remove {}: {e}", path.display());
                    }
                    _ => {}
                }
            }
        };
        // Fails only when the runtime ends; the next agent learns from the datastore that it is gone.
        drop(tokio::task::spawn_blocking(remove).await);
    }
}
