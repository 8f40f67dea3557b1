//! GC: whatever belongs to the network on this node and not to a valid attachment goes. Runtimes do not ask for this
//! while they add or delete; all the same what was seen in the listing is looked at once more in its container's turn, and
//! what an ADD was given that is not registered yet is spared.

use std::collections::{BTreeMap, BTreeSet};

use brindle_cni::{
    conf::ValidAttachment,
    error::code,
    fail,
    proto::{Attachment, handle},
};
use brindle_config_core::{
    Kind,
    ipam::IpamBlockSpec,
    store::{Entry, decode},
    workload::WorkloadEndpointSpec,
};
use brindle_ipam::{Allocator as _, IpamError, Release, View, block::Block, leak::FOREIGN};

use super::{
    endpoint::{Endpoint, NETWORK, host_device},
    history::Event,
    leaks::handles_of,
    now,
    refused::Refused,
    service::Service,
};

/// Live pods an empty list may take away without being asked twice.
const FEW: usize = 2;

impl Service {
    pub(super) async fn collect(
        &self,
        network: &str,
        valid: &[ValidAttachment],
        dry_run: bool,
    ) -> Result<(), Refused> {
        self.unlocked().await?;
        let is_valid = |container: &str, ifname: &str| {
            valid.iter().any(|v| v.container_id == container && v.ifname == ifname)
        };
        let mut going = Vec::new();
        let mut networks: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for stored in self.own_endpoints().await? {
            let spec = &stored.resource.spec;
            let Some(its) = stored.resource.metadata.annotations.get(NETWORK) else { continue };
            for handle in handles_of(its, &spec.container_id, &spec.endpoint) {
                networks.entry(handle).or_default().insert(its.clone());
            }
            if spec.node == self.node && its == network && !is_valid(&spec.container_id, &spec.endpoint) {
                going.push(stored);
            }
        }
        // Addresses whose endpoint was never written, or went without them.
        let keep: Vec<String> =
            valid.iter().flat_map(|v| handles_of(network, &v.container_id, &v.ifname)).collect();
        let mut handles = self.handles_on(network, &networks).await?;
        handles.retain(|handle, _| !keep.contains(handle));
        for spec in going.iter().map(|e| &e.resource.spec) {
            tracing::info!(container = %spec.container_id, ifname = %spec.endpoint, dry_run, "GC: would go");
        }
        for handle in handles.keys() {
            tracing::info!(%handle, dry_run, "GC: addresses without a valid attachment");
        }
        if dry_run {
            return Ok(());
        }
        if valid.is_empty() {
            self.refuse_to_empty(network, &going, &handles).await?;
        }
        fail::point("agent.gc.listed");
        let mut failed = None;
        for stored in &going {
            match self.collect_endpoint(network, stored).await {
                Ok(()) => {}
                Err(away) if away.datastore => return Err(away),
                // The others need not wait for it; its own addresses must.
                Err(stays) => {
                    let spec = &stored.resource.spec;
                    tracing::warn!(container = %spec.container_id, ifname = %spec.endpoint, "not collected: {}", stays.msg);
                    for handle in handles_of(network, &spec.container_id, &spec.endpoint) {
                        handles.remove(&handle);
                    }
                    failed.get_or_insert(stays);
                }
            }
            fail::point("agent.gc.endpoint");
        }
        for (handle, holding) in &handles {
            self.collect_handle(handle, &holding.releases).await?;
        }
        for a in self.attached.recorded_on(network) {
            if !is_valid(&a.container_id, &a.ifname) {
                self.collect_remains(&a).await?;
            }
        }
        fail::point("agent.gc.done");
        failed.map_or(Ok(()), Err)
    }

    /// Releases what the handle was seen to hold, unless it is given to an ADD under way, or anew since.
    async fn collect_handle(&self, handle: &str, seen: &[Release]) -> Result<(), Refused> {
        let _turns = self.turns_of_handle(handle).await;
        if self.claims.hold(handle) {
            tracing::info!(%handle, cause = "an ADD under way", "GC: spared");
            return Ok(());
        }
        // The pod's next sandbox was promised these addresses while the datastore was away.
        if let Some(next) = self.attached.promised(handle) {
            self.record(&next).await?;
        }
        let view = View::load(&*self.store, &self.node).await?;
        match self.allocator.lock().await.release_ips(seen, &view, now()).await {
            Ok(report) if report.released.is_empty() => {}
            Ok(report) => {
                self.history.note(Event::Collected, &report.released, handle, "", &self.node);
                tracing::info!(%handle, addresses = ?report.released, cause = "GC: no valid attachment", "addresses collected");
            }
            Err(e @ IpamError::Stale(_)) => {
                tracing::info!(%handle, cause = %e, "GC: spared");
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        }
        fail::point("agent.gc.released");
        self.attached.forget_handle(handle).await;
        Ok(())
    }

    /// What an agent left that died while it released: the record of a handle that holds nothing any more. Only its memory
    /// tells of it.
    async fn collect_remains(&self, a: &Attachment) -> Result<(), Refused> {
        let _turn = self.turn(a).await;
        let there = self.endpoint(&self.endpoint_key(a)).await?;
        if self.claims.hold(&a.handle())
            || there.is_some_and(|e| e.resource.spec.container_id == a.container_id)
            || !self.addresses(a).await?.is_empty()
        {
            return Ok(());
        }
        tracing::info!(container = %a.container_id, cause = "GC: no valid attachment", "remains collected");
        self.release_handle(&a.handle(), "").await.map(drop)
    }

    /// A runtime that lost its memory names no attachment at all. It is not believed against the kernel.
    /// Of another plugin's interface the kernel tells nothing here: there each handle with addresses counts.
    async fn refuse_to_empty(
        &self,
        network: &str,
        going: &[Endpoint],
        handles: &BTreeMap<String, Holding>,
    ) -> Result<(), Refused> {
        let mut live = 0_usize;
        for e in going {
            live += usize::from(super::device::exists(e.resource.spec.interface_name.clone()).await);
        }
        let foreign = handles.values().filter(|h| h.foreign).count();
        let why = if live > FEW {
            format!("{live} have a device in the kernel")
        } else if foreign > FEW {
            format!("{foreign} of other plugins' interfaces have addresses")
        } else {
            return Ok(());
        };
        Err(Refused::new(
            code::FAILED,
            format!("GC names no valid attachment of {network}, but {why}; nothing was collected"),
            "if they are really gone DEL them one by one, or name one attachment in cni.dev/valid-attachments",
        ))
    }

    async fn collect_endpoint(&self, network: &str, seen: &Endpoint) -> Result<(), Refused> {
        let spec = &seen.resource.spec;
        let a = of_endpoint(network, spec);
        let _turn = self.turn(&a).await;
        let now = self.endpoint(&seen.resource.key()).await?;
        let same = |e: Endpoint| {
            e.resource.spec.container_id == spec.container_id
                && e.resource.spec.ip_networks == spec.ip_networks
        };
        if self.claims.hold(&a.handle()) || !now.is_some_and(same) {
            tracing::info!(container = %a.container_id, cause = "added or deleted just now", "GC: spared");
            return Ok(());
        }
        tracing::info!(container = %a.container_id, cause = "GC: no valid attachment", "attachment collected");
        // Before its endpoint, which alone tells of it: no DEL will come that does.
        let device = host_device(&seen.resource);
        if let Some(device) = device.clone() {
            super::device::remove(device).await?;
        }
        self.forget(&a, false, device.as_ref()).await
    }

    /// Handles of the network with addresses given by this node. Whose a handle is, endpoints (`networks`) and the agent's
    /// memory say; where nobody does, its own text, if it can be read in one way only.
    async fn handles_on(
        &self,
        network: &str,
        networks: &BTreeMap<String, BTreeSet<String>>,
    ) -> Result<BTreeMap<String, Holding>, Refused> {
        let listing = self.store.list(&[Kind::IpamBlock]).await?;
        let written = handle::part(network);
        let of_network = |handle: &str| {
            let mut recorded = networks.get(handle).cloned().unwrap_or_default();
            recorded.extend(self.attached.owners(handle).into_iter().map(|a| a.network));
            if recorded.is_empty() {
                return handle::parts(handle).is_some_and(|(its, _)| its == written);
            }
            recorded.iter().all(|its| its == network)
        };
        let mut handles: BTreeMap<String, Holding> = BTreeMap::new();
        let block =
            |e: &Entry| decode::<IpamBlockSpec>(e).ok().and_then(|b| Block::from_spec(b.resource.spec).ok());
        for block in listing.entries.iter().filter_map(block) {
            for allocation in block.allocations() {
                let ours = allocation.attribute.secondary.get("node").is_some_and(|n| *n == self.node);
                match allocation.handle() {
                    Some(handle) if ours && of_network(handle) => {
                        let holding = handles.entry(handle.to_owned()).or_default();
                        holding.foreign |= allocation.attribute.secondary.contains_key(FOREIGN);
                        holding.releases.push(Release {
                            ip: allocation.ip,
                            handle: Some(handle.to_owned()),
                            sequence: Some(allocation.sequence),
                        });
                    }
                    _ => {}
                }
            }
        }
        Ok(handles)
    }
}

/// What a handle holds.
#[derive(Debug, Default)]
struct Holding {
    /// For another plugin's interface.
    foreign: bool,
    /// To be released if nothing has changed since.
    releases: Vec<Release>,
}

/// The attachment an endpoint is of: found by its container, for the pod's name would lead to its next sandbox too.
pub(super) fn of_endpoint(network: &str, spec: &WorkloadEndpointSpec) -> Attachment {
    attachment(network, &spec.container_id, &spec.endpoint)
}

fn attachment(network: &str, container_id: &str, ifname: &str) -> Attachment {
    Attachment {
        container_id: container_id.into(),
        ifname: ifname.into(),
        netns: String::new(),
        netns_id: String::new(),
        network: network.into(),
        pod: None,
    }
}
