//! GC: whatever belongs to the network on this node and not to a valid attachment goes. Runtimes do not ask for this
//! while they add or delete; an attachment with a call under way is spared all the same, by its turn.

use std::collections::BTreeMap;

use brindle_cni::{conf::ValidAttachment, proto::Attachment};
use brindle_config_core::{
    Kind,
    ipam::IpamBlockSpec,
    store::{Entry, decode},
    workload::WorkloadEndpointSpec,
};
use brindle_ipam::block::Block;

use super::{endpoint::NETWORK, refused::Refused, service::Service};

impl Service {
    pub(super) async fn collect(&self, network: &str, valid: &[ValidAttachment]) -> Result<(), Refused> {
        self.unlocked().await?;
        let is_valid = |container: &str, ifname: &str| {
            valid.iter().any(|v| v.container_id == container && v.ifname == ifname)
        };
        for stored in self.endpoints().await? {
            let spec = &stored.resource.spec;
            let of_network = stored.resource.metadata.annotations.get(NETWORK).is_some_and(|n| n == network);
            if spec.node == self.node && of_network && !is_valid(&spec.container_id, &spec.endpoint) {
                self.collect_endpoint(network, spec).await?;
            }
        }
        // Addresses whose endpoint was never written, or went without them.
        let keep: Vec<String> =
            valid.iter().map(|v| attachment(network, &v.container_id, &v.ifname).handle()).collect();
        for (handle, _) in self.handles_of(network).await? {
            if !keep.contains(&handle) {
                tracing::info!(%handle, cause = "GC: no valid attachment", "addresses collected");
                self.release_handle(&handle).await?;
            }
        }
        Ok(())
    }

    async fn collect_endpoint(&self, network: &str, spec: &WorkloadEndpointSpec) -> Result<(), Refused> {
        let mut a = attachment(network, &spec.container_id, &spec.endpoint);
        if !spec.pod.is_empty() {
            // Found by its container; the pod's name would lead to its next sandbox too.
            a.pod = None;
        }
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
