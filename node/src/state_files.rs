//! Files below the state folder for whoever comes later or looks from outside: `nodename`, by which the next agent knows
//! what this node is called, and `mtu`. Each is there as a whole: an empty name would make the node another one.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use brindle_kernel::files;
use tokio::sync::watch;

/// The file that says which node an agent served here.
pub(crate) const NODENAME: &str = "nodename";
/// The file with the MTU of new pods.
const MTU: &str = "mtu";

/// The name in the file; none where there is no file, or an empty one.
pub(crate) fn node_name(state_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(state_dir.join(NODENAME)).ok()?;
    Some(text.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Says which node is served here, unless it is said already.
pub(crate) async fn leave_node_name(state_dir: &Path, name: &str) -> anyhow::Result<()> {
    let (folder, name) = (state_dir.to_owned(), name.to_owned());
    let path = folder.join(NODENAME);
    let write = move || match node_name(&folder) {
        Some(there) if there == name => Ok(()),
        _ => files::replace(&folder.join(NODENAME), format!("{name}\n").as_bytes(), 0o644, true),
    };
    written(write).await.with_context(|| format!("cannot write {}", path.display()))
}

/// Refuses another name while pods are here that were attached under the one of before: their endpoints are that node's, and
/// an agent of another one takes their routes away. `pods`: those whose device is here.
pub(crate) fn same_name(
    state_dir: &Path,
    name: &str,
    pods: impl FnOnce() -> Vec<String>,
) -> anyhow::Result<()> {
    let Some(former) = node_name(state_dir).filter(|former| former != name) else { return Ok(()) };
    let pods = pods();
    let Some(first) = pods.first() else { return Ok(()) };
    anyhow::bail!(
        "{} was node {former}'s, and {} of its pods are here (such as {first}), which node {name} would cut off: start the agent \
         with --node-name {former}, or delete these pods first",
        state_dir.display(),
        pods.len()
    )
}

/// STATE/mtu: what other tools and the CNI plugin give new pods.
pub(crate) async fn keep_mtu(state_dir: PathBuf, mut report: watch::Receiver<brindle_felix::Report>) {
    let path = state_dir.join(MTU);
    let mut last = 0;
    loop {
        let mtu = report.borrow_and_update().pod_mtu;
        if mtu != 0 && mtu != last {
            let file = path.clone();
            let write = move || files::replace(&file, format!("{mtu}\n").as_bytes(), 0o644, true);
            match written(write).await {
                Ok(()) => {
                    tracing::info!(old = last, new = mtu, "MTU for new pods");
                    last = mtu;
                }
                Err(e) => tracing::warn!("cannot write {}: {e}", path.display()),
            }
        }
        if report.changed().await.is_err() {
            return;
        }
    }
}

/// A disk may take its time, and must not take a worker's.
async fn written(write: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, time::Duration};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("brindle-state-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        folder
    }

    #[tokio::test]
    async fn another_name_is_refused_while_pods_of_the_one_before_are_here() {
        let folder = folder("renamed");
        let pods = || vec!["default/web-0".to_owned()];
        same_name(&folder, "n9", pods).unwrap();
        leave_node_name(&folder, "n1").await.unwrap();
        same_name(&folder, "n1", pods).unwrap();
        same_name(&folder, "n9", Vec::new).unwrap();
        let refused = same_name(&folder, "n9", pods).unwrap_err().to_string();
        assert!(refused.contains("--node-name n1") && refused.contains("default/web-0"), "{refused}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[tokio::test]
    async fn the_nodes_name_is_written_when_it_is_another_and_as_a_whole() {
        let folder = folder("name");
        let file = folder.join(NODENAME);
        assert_eq!(node_name(&folder), None);
        leave_node_name(&folder, "n1").await.unwrap();
        let inode = |file: &Path| std::fs::metadata(file).unwrap().ino();
        let (first, hard) = (inode(&file), folder.join("as it was"));
        std::fs::hard_link(&file, &hard).unwrap();
        leave_node_name(&folder, "n1").await.unwrap();
        assert_eq!(inode(&file), first, "nothing is written");
        leave_node_name(&folder, "n2").await.unwrap();
        assert_eq!(node_name(&folder).as_deref(), Some("n2"));
        assert_eq!(std::fs::read_to_string(&hard).unwrap(), "n1\n", "it is not truncated in place");
        std::fs::write(&file, "").unwrap();
        assert_eq!(node_name(&folder), None);
        leave_node_name(&folder, "n2").await.unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "n2\n");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[tokio::test]
    async fn the_mtu_is_written_as_a_whole() {
        let folder = folder("mtu");
        let (file, hard) = (folder.join(MTU), folder.join("as it was"));
        std::fs::write(&file, "1400\n").unwrap();
        std::fs::hard_link(&file, &hard).unwrap();
        let (tx, report) = watch::channel(brindle_felix::Report { pod_mtu: 1440, ..Default::default() });
        let kept = tokio::spawn(keep_mtu(folder.clone(), report));
        drop(tx);
        tokio::time::timeout(Duration::from_secs(10), kept).await.unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "1440\n");
        assert_eq!(std::fs::read_to_string(&hard).unwrap(), "1400\n", "it is not truncated in place");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
