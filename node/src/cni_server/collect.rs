//! GC: whatever belongs to the network on this node and not to a valid attachment goes. Runtimes do not ask for this
//! while they add or delete; an attachment with a call under way is spared all the same, by its turn.

use std::collections::BTreeMap;

use brindle_cni::{conf::ValidAttachment, error::code, proto::Attachment};
use brindle_config_core::{
    Kind,
    ipam::IpamBlockSpec,
    store::{Entry, decode},
    workload::WorkloadEndpointSpec,
};
use brindle_ipam::block::Block;

use super::{endpoint::NETWORK, leaks::handles_of, refused::Refused, service::Service};

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
        for stored in self.own_endpoints().await? {
            let spec = &stored.resource.spec;
            let of_network = stored.resource.metadata.annotations.get(NETWORK).is_some_and(|n| n == network);
            if spec.node == self.node && of_network && !is_valid(&spec.container_id, &spec.endpoint) {
                going.push(stored.resource.spec);
            }
        }
        // Addresses whose endpoint was never written, or went without them.
        let keep: Vec<String> =
            valid.iter().flat_map(|v| handles_of(network, &v.container_id, &v.ifname)).collect();
        let mut handles = self.handles_of(network).await?;
        handles.retain(|handle, _| !keep.contains(handle));
        for spec in &going {
            tracing::info!(container = %spec.container_id, ifname = %spec.endpoint, dry_run, "GC: would go");
        }
        for handle in handles.keys() {
            tracing::info!(%handle, dry_run, "GC: addresses without a valid attachment");
        }
        if dry_run {
            return Ok(());
        }
        if valid.is_empty() {
            self.refuse_to_empty(network, &going).await?;
        }
        for spec in &going {
            self.collect_endpoint(network, spec).await?;
        }
        for handle in handles.keys() {
            tracing::info!(%handle, cause = "GC: no valid attachment", "addresses collected");
            self.release_handle(handle, "").await?;
        }
        Ok(())
    }

    /// A runtime that lost its memory names no attachment at all. It is not believed against the kernel.
    async fn refuse_to_empty(&self, network: &str, going: &[WorkloadEndpointSpec]) -> Result<(), Refused> {
        let mut live = 0_usize;
        for spec in going {
            live += usize::from(super::device::exists(spec.interface_name.clone()).await);
        }
        if live <= FEW {
            return Ok(());
        }
        Err(Refused::new(
            code::FAILED,
            format!(
                "GC names no valid attachment of {network}, but {live} have a device in the kernel; nothing was collected"
            ),
            "if they are really gone DEL them one by one, or name one attachment in cni.dev/valid-attachments",
        ))
    }

    async fn collect_endpoint(&self, network: &str, spec: &WorkloadEndpointSpec) -> Result<(), Refused> {
        let a = of_endpoint(network, spec);
        let _turn = self.turn(&a).await;
        tracing::info!(container = %a.container_id, cause = "GC: no valid attachment", "attachment collected");
        self.forget(&a, false, None).await
    }

    /// Handles of the network with addresses given by this node.
    async fn handles_of(&self, network: &str) -> Result<BTreeMap<String, usize>, Refused> {
        let listing = self.store.list(&[Kind::IpamBlock]).await?;
        let prefix = format!("{network}.");
        let mut handles = BTreeMap::new();
        let block =
            |e: &Entry| decode::<IpamBlockSpec>(e).ok().and_then(|b| Block::from_spec(b.resource.spec).ok());
        for block in listing.entries.iter().filter_map(block) {
            for allocation in block.allocations() {
                let ours = allocation.attribute.secondary.get("node").is_some_and(|n| *n == self.node);
                match allocation.handle() {
                    Some(handle) if ours && handle.starts_with(&prefix) => {
                        *handles.entry(handle.to_owned()).or_default() += 1;
                    }
                    _ => {}
                }
            }
        }
        Ok(handles)
    }
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
