//! What is attached to this node, as the agent itself remembers it: a file per attachment below the state folder, written
//! when its addresses are given and removed when they are taken back. With it a pod that was here before a reboot gets
//! its addresses again, also while the datastore is away. It is a memory, not a record: who may have an address is
//! decided by the blocks in the datastore, where a given address stays recorded until somebody releases it; only that one which
//! a pod of this node has, by this and by the kernel, is nobody else's ([`super::lost`]).
//!
//! Files are not synced, except of what the datastore is not told of yet, so a power cut may undo what was done to them
//! last. One that is missing or torn costs its pod the address while the datastore is away, nothing else. One that is back
//! although its address was taken back may say that an address is one pod's which by now is another's. When files of two
//! pods claim an address, neither is believed ([`doubtful`]). When only the old one is there, its pod must still be made
//! anew, with the same uid, before the datastore is back to be given that address again; the kernel then denies its new
//! flows, no peer hears of the address, and when the datastore is back the pod is cut off as one that lost it. Syncing
//! every file would cost each ADD and DEL a write to the disk to spare that pod its second start.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use brindle_cni::{journal, proto::Attachment};
use brindle_kernel::netlink::Rtnl;
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
    /// What only its registration said, should the datastore lose it. The MAC is no more than in memory unless it is written
    /// for something else: without it the kernel asks the pod.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) mac: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) floating: Vec<IpAddr>,
}

/// What the plugin made while the datastore was away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unrecorded {
    pub(super) device: String,
    pub(super) mac: String,
    #[serde(default)]
    pub(super) floating: Vec<IpAddr>,
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

/// Addresses that more than one pod claims to have of the datastore. Two sandboxes of one pod may both have it: one hands it
/// over to the other.
fn doubtful<'a>(all: impl Iterator<Item = &'a Kept>) -> BTreeSet<IpAddr> {
    let whose = |a: &'a Attachment| match &a.pod {
        Some(pod) => (&*pod.namespace, &*pod.name, &*pod.uid),
        None => ("", "", &*a.container_id),
    };
    let mut first = BTreeMap::new();
    let mut twice = BTreeSet::new();
    for kept in all.filter(|k| !k.given) {
        for net in &kept.addresses {
            let owner = whose(&kept.attachment);
            if *first.entry(net.addr()).or_insert(owner) != owner {
                twice.insert(net.addr());
            }
        }
    }
    twice
}

/// The pods that agents of this state folder attached and whose host device is there; none where that cannot be said.
pub(crate) fn pods_here(state_dir: &Path) -> Vec<String> {
    let kept = journal::read_all::<Kept>(&state_dir.join(FOLDER), SUFFIX).map(|(sound, _)| sound);
    let Some(kept) = kept.ok().filter(|all| !all.is_empty()) else { return Vec::new() };
    let Ok(links) = Rtnl::open().and_then(|mut kernel| kernel.links()) else { return Vec::new() };
    // What pod devices begin with is a setting, which is not read yet.
    let ends = |end: &str| links.iter().any(|l| l.name.ends_with(end));
    let there = kept.into_iter().map(|(_, k)| k.attachment).filter(|a| ends(&a.host_ifname("")));
    there.map(|a| super::address::whose(&a)).collect()
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
        let mut all: BTreeMap<String, Kept> =
            sound.into_iter().map(|(_, kept)| (journal::file_stem(&kept.attachment), kept)).collect();
        let doubtful = doubtful(all.values());
        all.retain(|stem, k| {
            let believed = k.owes() || k.given || !k.addresses.iter().any(|n| doubtful.contains(&n.addr()));
            if !believed {
                let cause = "another attachment claims the same address, as after a power cut";
                tracing::warn!(container = %k.attachment.container_id, workload = k.attachment.workload(),
                    addresses = ?k.addresses, cause, "not remembered: it is a new one while the datastore is away");
                if let Err(e) = std::fs::remove_file(folder.join(format!("{stem}.{SUFFIX}"))) {
                    tracing::warn!("cannot remove {stem}.{SUFFIX} below {}: {e}", folder.display());
                }
            }
            believed
        });
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

    /// Another attachment that another IPAM plugin gave this address to.
    pub(super) fn foreign_holder(&self, ip: IpAddr, a: &Attachment) -> Option<Attachment> {
        let has =
            |k: &&Kept| k.given && !k.attachment.is_same(a) && k.addresses.iter().any(|n| n.addr() == ip);
        self.lock().values().find(has).map(|k| k.attachment.clone())
    }

    /// Others that the datastore has given this address to, as far as this agent knows; not other sandboxes of the same pod,
    /// which hand it on.
    pub(super) fn holders(&self, ip: IpAddr, a: &Attachment) -> Vec<Kept> {
        let has = |k: &&Kept| {
            !k.given
                && k.addresses.iter().any(|n| n.addr() == ip)
                && !k.attachment.is_same(a)
                && !k.attachment.is_interface_of(a)
        };
        self.lock().values().filter(has).cloned().collect()
    }

    /// All whom the datastore has given addresses, under their own handle, as far as this agent knows.
    pub(super) fn recorded(&self) -> Vec<Kept> {
        self.lock().values().filter(|k| !k.given && !k.owes()).cloned().collect()
    }

    /// What the registration said.
    pub(super) async fn registered(&self, a: &Attachment, mac: &str, floating: &[IpAddr]) {
        let written = {
            let mut all = self.lock();
            let Some(kept) = all.get_mut(&journal::file_stem(a)) else { return };
            mac.clone_into(&mut kept.mac);
            if kept.floating == floating {
                return;
            }
            kept.floating = floating.to_vec();
            kept.clone()
        };
        if let Err(e) = self.keep(written).await {
            tracing::warn!(container = %a.container_id, "its floating addresses are not remembered on disk: {e}");
        }
    }

    /// The attachments of which this is true.
    pub(super) fn which(&self, is_it: impl Fn(&Attachment) -> bool) -> Vec<Attachment> {
        self.lock().values().map(|k| &k.attachment).filter(|a| is_it(a)).cloned().collect()
    }

    /// Those the datastore is to be told of.
    pub(super) fn owed(&self) -> Vec<Kept> {
        self.lock().values().filter(|k| k.owes()).cloned().collect()
    }

    /// Those of a network whose addresses the datastore has under their own handle.
    pub(super) fn recorded_on(&self, network: &str) -> Vec<Attachment> {
        let all = self.lock();
        let of_it = all.values().filter(|k| !k.given && !k.owes() && k.attachment.network == network);
        of_it.map(|k| k.attachment.clone()).collect()
    }

    /// The attachment that was promised the addresses of this handle, which is not its own.
    pub(super) fn promised(&self, handle: &str) -> Option<Kept> {
        self.lock().values().find(|k| k.is_borrowed() && k.handle == handle).cloned()
    }

    /// Whose handle this is: their own, or one that holds their addresses still.
    pub(super) fn owners(&self, handle: &str) -> Vec<Attachment> {
        let of_it = |k: &&Kept| {
            k.handle.eq_ignore_ascii_case(handle) || k.attachment.handle().eq_ignore_ascii_case(handle)
        };
        self.lock().values().filter(of_it).map(|k| k.attachment.clone()).collect()
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

#[cfg(test)]
mod tests {
    use brindle_cni::proto::PodRef;

    use super::*;

    fn kept(pod: &str, container: &str, address: &str) -> Kept {
        let attachment = Attachment {
            container_id: container.into(),
            ifname: "eth0".into(),
            netns: String::new(),
            netns_id: String::new(),
            network: "net".into(),
            pod: Some(PodRef { namespace: "default".into(), name: pod.into(), uid: format!("uid-{pod}") }),
        };
        let addresses = vec![address.parse().unwrap()];
        let handle = attachment.handle();
        let (former, mac) = (String::new(), String::new());
        let floating = Vec::new();
        Kept { attachment, addresses, given: false, handle, former, mtu: 0, unrecorded: None, mac, floating }
    }

    #[tokio::test]
    async fn an_address_two_pods_claim_after_a_power_cut_is_neither_ones() {
        let dir = std::env::temp_dir().join(format!("bt-{}-attached", std::process::id()));
        let before = Attached::read(&dir);
        // The old owner's file is back: the power cut undid its removal.
        let (old, new, sound) =
            (kept("a", "c1", "10.0.0.1/32"), kept("b", "c2", "10.0.0.1/32"), kept("c", "c3", "10.0.0.3/32"));
        // One pod's address on its way from sandbox to sandbox.
        let (from, to) = (kept("d", "c4", "10.0.0.4/32"), kept("d", "c5", "10.0.0.4/32"));
        let to = Kept { handle: from.handle.clone(), former: "c4".into(), ..to };
        // Written while the datastore was away: synced, and the datastore decides.
        let owed = Kept {
            unrecorded: Some(Unrecorded { device: "cali1".into(), mac: String::new(), floating: Vec::new() }),
            ..kept("e", "c6", "10.0.0.3/32")
        };
        // Another IPAM plugin's network may have the same addresses.
        let foreign = Kept { given: true, ..kept("f", "c7", "10.0.0.4/32") };
        let all = [&old, &new, &from, &to, &foreign];
        for k in all {
            before.keep(k.clone()).await.unwrap();
        }
        let after = Attached::read(&dir);
        assert_eq!(all.map(|k| after.of(&k.attachment).is_some()), [false, false, true, true, true]);
        for k in [&sound, &owed] {
            after.keep(k.clone()).await.unwrap();
        }
        let again = Attached::read(&dir);
        assert_eq!([&sound, &owed, &old].map(|k| again.of(&k.attachment).is_some()), [false, true, false]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
