//! The collector at work: hears the three witnesses (store, container runtime, kernel), lets
//! [`brindle_ipam::leak`] decide, and releases what is left of containers that are gone. What it found, and what it
//! would do, is kept in a file that `brindlectl ipam check` shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use brindle_cni::proto::handle;
use brindle_config_core::{
    Kind,
    store::{Entry, decode},
    workload::WorkloadEndpointSpec,
};
use brindle_ipam::{
    Allocator as _, View,
    idle::Idle,
    leak::{Collector, Evidence, Findings, Leak},
    usage::Blocks,
};
use brindle_kernel::{
    files,
    netlink::{RouteFilter, Rtnl},
};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{endpoint::NETWORK, ghosts::Known, history::Event, now, refused::Refused, service::Service};

/// Name of the report below the state folder.
const REPORT: &str = "ipam-leaks.json";
/// Longest file of a runtime's cache that is read.
const MAX_CACHED: u64 = 1 << 20;

/// Seconds until it is read beside what others read.
const PATIENCE: u32 = 60;

/// Whether leaks are collected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    #[default]
    On,
    /// Only reported.
    DryRun,
    Off,
}

/// The collector's arguments.
#[derive(Clone, Debug, Args)]
pub(crate) struct LeakArgs {
    /// Collect addresses of containers that are gone; leave it to Calico's kube-controllers where they run
    #[arg(long, env = "BRINDLE_IPAM_GC", value_enum, default_value_t = Mode::On)]
    pub(crate) ipam_gc: Mode,
    /// Seconds an address must have been without a container before it is collected
    #[arg(long, env = "BRINDLE_IPAM_GC_GRACE", value_name = "SECONDS", default_value_t = 900)]
    pub(crate) ipam_gc_grace: u64,
    /// Where container runtimes (libcni) remember their attachments
    #[arg(long, env = "BRINDLE_CNI_CACHE", value_name = "DIR", default_value = "/var/lib/cni/results")]
    pub(crate) cni_cache: PathBuf,
}

impl Default for LeakArgs {
    fn default() -> Self {
        Self { ipam_gc: Mode::On, ipam_gc_grace: 900, cni_cache: "/var/lib/cni/results".into() }
    }
}

impl Service {
    /// Looks now and then for as long as the agent runs.
    pub(super) async fn keep_collecting(self: Arc<Self>, args: LeakArgs) {
        if args.ipam_gc == Mode::Off {
            return std::future::pending().await;
        }
        if !args.cni_cache.is_dir() {
            tracing::info!(
                folder = %args.cni_cache.display(),
                "the container runtime's record of attachments is not there; leaked addresses of this node are collected once it is"
            );
        }
        let (mut collector, mut idle) = (Collector::default(), Idle::default());
        let every = Duration::from_secs((args.ipam_gc_grace / 3).clamp(1, 300));
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Err(refused) = self.look_for_leaks(&mut collector, &args).await {
                tracing::warn!("cannot look for leaked addresses: {}", refused.msg);
            }
            if let Err(refused) = self.look_for_idle_blocks(&mut idle, &args).await {
                tracing::warn!("cannot look for unused blocks: {}", refused.msg);
            }
        }
    }

    pub(super) async fn look_for_leaks(
        &self,
        collector: &mut Collector,
        args: &LeakArgs,
    ) -> Result<(), Refused> {
        self.unlocked().await?;
        self.until_followed().await;
        if args.ipam_gc != Mode::DryRun {
            self.finish_collecting().await;
        }
        let evidence = self.evidence(&args.cni_cache, Sight::Followed).await?;
        let known = evidence.attachments.clone().zip(evidence.kernel.clone());
        let known = known.map(|(attachments, kernel)| Known { attachments, kernel });
        self.look_for_ghosts(known, args).await?;
        let blocks = self.blocks().await?;
        let found = collector.look(&blocks, &evidence, args.ipam_gc_grace, now());
        for leak in &found.leaks {
            let (handle, whose) = (&leak.handle, &leak.allocated_to);
            if args.ipam_gc == Mode::DryRun {
                tracing::info!(%handle, %whose, cause = leak.why, "leaked addresses; not collected: dry run");
            } else if let Err(refused) = self.collect_leak(leak, collector, &args.cni_cache).await {
                tracing::warn!(%handle, %whose, "leaked addresses stay for now: {}", refused.msg);
            }
        }
        let text = report(&found, args).to_string();
        let file = self.state_dir.join(REPORT);
        match tokio::task::spawn_blocking(move || files::replace(&file, text.as_bytes(), 0o644, false)).await
        {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::debug!("{REPORT}: {e}"),
            Err(e) => tracing::debug!("{REPORT}: {e}"),
        }
        Ok(())
    }

    /// Asks the witnesses once more, with calls about the container held off, and releases.
    async fn collect_leak(&self, leak: &Leak, collector: &Collector, cache: &Path) -> Result<(), Refused> {
        let _turns = self.turns_of_handle(&leak.handle).await;
        let evidence = self.evidence(cache, Sight::Now).await?;
        let blocks = Blocks::read(&self.store.list(&[Kind::IpamBlock]).await?.entries);
        let still = collector.again().look(&blocks, &evidence, 0, now());
        if !still.leaks.iter().any(|l| l.handle == leak.handle && l.releases == leak.releases) {
            return Ok(());
        }
        let view = View::load(&*self.store, &self.node).await?;
        let begun = std::slice::from_ref(&leak.handle);
        self.begin_collecting(begun).await;
        let mut allocator = self.allocator.lock().await;
        let ips = if leak.twice {
            allocator.release_handle(&leak.handle, &view, now()).await?
        } else {
            allocator.release_ips(&leak.releases, &view, now()).await?.released
        };
        drop(allocator);
        self.end_collecting(begun).await;
        self.attached.forget_handle(&leak.handle).await;
        self.history.note(Event::Collected, &ips, &leak.handle, &leak.allocated_to, &self.node);
        tracing::info!(handle = %leak.handle, addresses = ?ips, cause = leak.why, "leaked addresses collected");
        Ok(())
    }

    /// Hears the witnesses.
    async fn evidence(&self, cache: &Path, sight: Sight) -> Result<Evidence, Refused> {
        let mut nodes: BTreeSet<String> = BTreeSet::new();
        let mut endpoints: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        let mut pods = BTreeSet::new();
        let mut each = |entry: Entry| match entry.key.kind {
            Kind::Node => drop(nodes.insert(entry.key.name)),
            _ => witness(&entry, &mut endpoints, &mut pods),
        };
        let kinds = [Kind::Node, Kind::WorkloadEndpoint];
        if sight == Sight::Now || !self.store.visit_followed(&kinds, &mut each) {
            self.store.list(&kinds).await?.entries.into_iter().for_each(each);
        }
        let (attachments, kernel) = self.heard(cache).await;
        Ok(Evidence {
            node: self.node.clone(),
            cluster: false,
            // An agent whose own Node is not to be seen does not see the others either.
            nodes: nodes.contains(&self.node).then_some(nodes),
            endpoints: Some(endpoints),
            pods,
            attachments,
            kernel,
        })
    }

    /// What runtime and kernel know now; `None` for who cannot be heard.
    async fn heard(&self, cache: &Path) -> (Option<BTreeSet<String>>, Option<BTreeSet<IpAddr>>) {
        let (cache, prefixes) = (cache.to_owned(), self.known_prefixes());
        let heard = tokio::task::spawn_blocking(move || (attachments(&cache), routes(&prefixes))).await;
        heard.unwrap_or((None, None))
    }

    /// The same, if both are heard.
    pub(super) async fn known(&self, cache: &Path) -> Option<Known> {
        let (attachments, kernel) = self.heard(cache).await;
        Some(Known { attachments: attachments?, kernel: kernel? })
    }

    /// At its start an agent reads everything anyway; there is no hurry to read it once more beside that.
    async fn until_followed(&self) {
        let kinds = [Kind::Node, Kind::WorkloadEndpoint, Kind::IpamBlock];
        for _ in 0..PATIENCE {
            if self.store.follows(&kinds) != Some(false) {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The blocks, for a look after which everything is asked again.
    pub(super) async fn blocks(&self) -> Result<Blocks, Refused> {
        let mut blocks = Blocks::default();
        let kinds = [Kind::IpamBlock];
        if !self.store.visit_followed(&kinds, &mut |entry| blocks.add(&entry)) {
            blocks = Blocks::read(&self.store.list(&kinds).await?.entries);
        }
        Ok(blocks)
    }
}

/// How fresh evidence has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    /// What the agent follows anyway will do: who is suspected is asked again.
    Followed,
    Now,
}

/// Takes an endpoint's word for its addresses. One that does not decode is left out.
fn witness(
    entry: &Entry,
    endpoints: &mut BTreeMap<IpAddr, BTreeSet<String>>,
    pods: &mut BTreeSet<(String, String, String)>,
) {
    let Ok(endpoint) = decode::<WorkloadEndpointSpec>(entry) else { return };
    let spec = &endpoint.resource.spec;
    let network = endpoint.resource.metadata.annotations.get(NETWORK);
    if !spec.pod.is_empty() {
        pods.insert((spec.node.clone(), entry.key.namespace.clone(), spec.pod.clone()));
    }
    for net in &spec.ip_networks {
        let handles = endpoints.entry(net.addr()).or_default();
        handles.extend(network.into_iter().flat_map(|n| handles_of(n, &spec.container_id, &spec.endpoint)));
    }
}

/// The handle of an attachment, and that of earlier agents.
pub(super) fn handles_of(network: &str, container_id: &str, ifname: &str) -> impl Iterator<Item = String> {
    [handle::handle(network, container_id, ifname)].into_iter().chain(handle::former(
        network,
        container_id,
        ifname,
    ))
}

/// Handles of the attachments libcni remembers: it writes a file at ADD and removes it at DEL. What a file does not say
/// (it is written in place, and empty after a power cut), its name does; one whose name does not either could be
/// anybody's, so then nothing is known.
fn attachments(cache: &Path) -> Option<BTreeSet<String>> {
    let mut handles = BTreeSet::new();
    for file in fs::read_dir(cache).ok()? {
        let path = file.ok()?.path();
        let text = match fs::metadata(&path) {
            Ok(m) if m.is_file() && m.len() <= MAX_CACHED => fs::read(&path),
            Ok(m) if m.is_dir() => continue,
            Ok(_) => return None,
            Err(e) => Err(e),
        };
        let text = match text {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => return None,
        };
        let value: Value = serde_json::from_slice(&text).unwrap_or_default();
        let field = |name: &str| value.get(name).and_then(Value::as_str);
        match (field("networkName"), field("containerId"), field("ifName")) {
            (Some(network), Some(container), Some(ifname)) => {
                handles.extend(handles_of(network, container, ifname));
            }
            // It is cut off, or of the time before libcni wrote names into it: `network-container-ifname`.
            _ => {
                let name = path.file_name()?.to_str()?.to_owned();
                let (rest, ifname) = name.rsplit_once('-')?;
                let (network, container) = rest.rsplit_once('-')?;
                handles.extend(handles_of(network, container, ifname));
            }
        }
    }
    Some(handles)
}

/// Addresses with a route through a pod's device, which its name tells. A device the route of which is still to come counts
/// for none: an ADD under way holds its container's turn.
fn routes(prefixes: &[String]) -> Option<BTreeSet<IpAddr>> {
    let mut kernel = Rtnl::open().ok()?;
    let is_pods = |name: &str| prefixes.iter().any(|p| name.starts_with(p.as_str()));
    let pods: BTreeSet<u32> =
        kernel.links().ok()?.into_iter().filter(|l| is_pods(&l.name)).map(|l| l.index).collect();
    let all = kernel.routes(&RouteFilter::main()).ok()?;
    let host = |n: &ipnet::IpNet| n.prefix_len() == n.max_prefix_len();
    let of_pods = all.iter().filter(|r| host(&r.dst) && r.only_dev().is_some_and(|d| pods.contains(&d)));
    Some(of_pods.map(|r| r.dst.addr()).collect())
}

fn report(found: &Findings, args: &LeakArgs) -> Value {
    let leak = |l: &Leak| {
        json!({"handle": l.handle, "node": l.node, "allocatedTo": l.allocated_to, "why": l.why,
            "since": l.since.rfc3339(), "ips": l.releases.iter().map(|r| r.ip).collect::<Vec<_>>()})
    };
    json!({
        "time": now().rfc3339(),
        "mode": match args.ipam_gc { Mode::On => "on", Mode::DryRun => "dry-run", Mode::Off => "off" },
        "graceSeconds": args.ipam_gc_grace,
        "leaks": found.leaks.iter().map(leak).collect::<Vec<_>>(),
        "waiting": found.waiting.iter().map(leak).collect::<Vec<_>>(),
        "unknown": found.unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_libcni_that_is_cut_off_stands_for_its_attachment() {
        let folder = std::env::temp_dir().join(format!("bt-{}-results", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let whole = r#"{"networkName": "k8s-pod-network", "containerId": "aa", "ifName": "eth0"}"#;
        fs::write(folder.join("k8s-pod-network-aa-eth0"), whole).unwrap();
        fs::write(folder.join("k8s-pod-network-bb-eth0"), "").unwrap();
        fs::write(folder.join("k8s-pod-network-cc-net1"), &whole[..40]).unwrap();
        let heard = attachments(&folder).unwrap();
        for (container, ifname) in [("aa", "eth0"), ("bb", "eth0"), ("cc", "net1")] {
            let handle = handle::handle("k8s-pod-network", container, ifname);
            assert!(heard.contains(&handle), "{handle}: {heard:?}");
        }
        fs::write(folder.join("nonsense"), "").unwrap();
        assert_eq!(attachments(&folder), None, "it may be anybody's");
        fs::remove_dir_all(&folder).unwrap();
    }
}
