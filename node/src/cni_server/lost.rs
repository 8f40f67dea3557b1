//! What the datastore knows no more: a backup was put in its place, or its server was set back to a snapshot of before. Pods
//! that were attached since run on, on addresses that are free by the records. The agent remembers them ([`super::attached`])
//! and the kernel has their devices: no ADD is given an address of theirs, and they are recorded again.
//!
//! Memory alone is asked with each ADD; the kernel and the datastore only when it speaks against an address. Everybody is
//! looked for then, when the agent starts, and when a watch finds the datastore's history broken off.

use std::{os::unix::fs::MetadataExt as _, sync::Arc, time::Duration};

use brindle_cni::{
    error::code,
    journal,
    proto::{Attachment, HostDevice},
};
use brindle_config_core::{
    Kind,
    store::{Expect, StoreError},
};
use brindle_ipam::{Owner, View, leak::FOREIGN, usage::Blocks};
use ipnet::IpNet;

use super::{
    address::{Given, Wish, whose},
    attached::Kept,
    device,
    endpoint::{Endpoint, Made},
    history::Event,
    leaks::handles_of,
    now,
    refused::Refused,
    service::Service,
};

/// How long until a datastore that could not be asked is asked again.
const PAUSE: Duration = Duration::from_secs(5);
/// A kind that hardly ever changes; its watch ends with the datastore's history like every other.
const WATCHED: [Kind; 1] = [Kind::IpamConfiguration];

/// Whether an attachment is still there.
enum Life {
    /// With this host device; an interface of another plugin's has none.
    Lives(Option<HostDevice>),
    Gone,
}

impl Service {
    /// Addresses for an ADD, none of which is another attachment's that lives, whatever the datastore says.
    pub(super) async fn assign_unheld(
        &self,
        a: &Attachment,
        wish: Wish,
        announce: bool,
    ) -> Result<Given, Refused> {
        let given = self.assign(a, wish.clone(), announce).await?;
        let Some((net, holder)) = self.held_by_another(a, &given).await else { return Ok(given) };
        let why = taken(net, &holder);
        tracing::error!(container = %a.container_id, workload = a.workload(), "{}: {}", why.msg, why.details);
        if given.again {
            return Err(why);
        }
        self.give_back(a, &given).await;
        self.record_lost().await?;
        let given = self.assign(a, wish, announce).await?;
        match self.held_by_another(a, &given).await {
            None => Ok(given),
            Some((net, holder)) => {
                self.give_back(a, &given).await;
                Err(taken(net, &holder))
            }
        }
    }

    async fn held_by_another(&self, a: &Attachment, given: &Given) -> Option<(IpNet, Kept)> {
        for net in &given.addresses {
            for holder in self.attached.holders(net.addr(), a) {
                // Not being able to tell is no reason to have two pods with one address.
                if !matches!(self.life(&holder).await, Ok(Life::Gone)) {
                    return Some((*net, holder));
                }
            }
        }
        None
    }

    /// The device is named after the pod: of several sandboxes of one, that one lives which the datastore's endpoint is of.
    async fn life(&self, kept: &Kept) -> Result<Life, Refused> {
        let a = &kept.attachment;
        let names = self.known_prefixes();
        let names = names.iter().flat_map(|p| [Some(a.host_ifname(p)), a.former_host_ifname(p)]).flatten();
        let names: Vec<String> = names.collect();
        let mut there = None;
        for name in names {
            there = device::find(name.clone()).await;
            if there.is_some() {
                break;
            }
            if device::exists(name).await {
                return Ok(Life::Lives(None));
            }
        }
        let Some(there) = there else {
            let id = std::fs::metadata(&a.netns).map(|m| format!("{}:{}", m.dev(), m.ino()));
            let lives = kept.mtu == 0 && id.is_ok_and(|id| id == a.netns_id);
            return Ok(if lives { Life::Lives(None) } else { Life::Gone });
        };
        if !self.attached.which(|other| other.is_interface_of(a) && !other.is_same(a)).is_empty()
            && let Some(e) = self.endpoint(&self.endpoint_key(a)).await?
            && e.resource.spec.container_id != a.container_id
        {
            return Ok(Life::Gone);
        }
        Ok(Life::Lives(Some(there)))
    }

    /// Records again whom the datastore has lost.
    pub(super) async fn record_lost(&self) -> Result<(), Refused> {
        let recorded = self.attached.recorded();
        if recorded.is_empty() {
            return Ok(());
        }
        self.unlocked().await?;
        let blocks = Blocks::read(&self.store.list(&[Kind::IpamBlock]).await?.entries);
        let endpoints = self.own_endpoints().await?;
        for kept in recorded {
            let a = &kept.attachment;
            // On Kubernetes a Pod that is finished has no endpoint, and its sandbox may be there still.
            let with_endpoint = kept.mtu != 0 && !self.endpoints_are_pods;
            if has_addresses(&kept, &blocks)
                && (!with_endpoint || endpoints.iter().any(|e| is_endpoint_of(&kept, e)))
            {
                continue;
            }
            let Life::Lives(device) = self.life(&kept).await? else { continue };
            // Memory of another plugin's interface knows no MTU.
            if kept.mtu != 0 && device.is_none() {
                continue;
            }
            // Who has a call under way is being seen to, and might wait for the call that asks here.
            let Some(_turn) = self.turn_now(a) else { continue };
            let (folder, asked) = (self.journal.clone(), a.clone());
            let goes = tokio::task::spawn_blocking(move || journal::find(&folder, &asked).is_some()).await;
            if self.attached.of(a).as_ref() != Some(&kept)
                || self.claims.hold(&a.handle())
                || goes.unwrap_or(true)
                || self.is_recorded(&kept, with_endpoint).await?
            {
                continue;
            }
            match self.record_again(&kept, device, &blocks, &endpoints).await {
                Ok(()) => {
                    tracing::warn!(container = %a.container_id, workload = a.workload(), addresses = ?kept.addresses,
                        cause = "the datastore had lost it, as after an older backup was put in its place", "recorded again");
                }
                Err(e) if e.datastore => return Err(e),
                Err(e) => {
                    tracing::error!(container = %a.container_id, workload = a.workload(), addresses = ?kept.addresses,
                    "the datastore has lost this pod, which is here, and it cannot be recorded again: {}; delete the pod, it \
                     will be made anew", e.msg)
                }
            }
        }
        Ok(())
    }

    /// Whether it is by now: it may have been attached since all was listed.
    async fn is_recorded(&self, kept: &Kept, with_endpoint: bool) -> Result<bool, Refused> {
        let have = self.addresses(&kept.attachment).await?;
        if !kept.addresses.iter().all(|n| have.contains(&n.addr())) {
            return Ok(false);
        }
        if !with_endpoint {
            return Ok(true);
        }
        let there = self.endpoint(&self.endpoint_key(&kept.attachment)).await?;
        Ok(there.is_some_and(|e| is_endpoint_of(kept, &e)))
    }

    async fn record_again(
        &self,
        kept: &Kept,
        device: Option<HostDevice>,
        blocks: &Blocks,
        endpoints: &[Endpoint],
    ) -> Result<(), Refused> {
        let a = &kept.attachment;
        let view = View::load(&*self.store, &self.node).await?;
        let mut allocator = self.allocator.lock().await;
        for net in &kept.addresses {
            let now = now();
            let former = self.may_be_taken_from(kept, blocks, net);
            let attributes = self.attributes(a, &now.attribute(), device.is_none());
            let owner = Owner { handle: kept.handle.clone(), attributes };
            allocator.keep(net.addr(), &former, &owner, &view, now).await?;
        }
        drop(allocator);
        let ips: Vec<_> = kept.addresses.iter().map(IpNet::addr).collect();
        self.history.note(Event::Kept, &ips, &kept.handle, &whose(a), &self.node);
        let Some(device) = device.filter(|_| !self.endpoints_are_pods) else { return Ok(()) };
        let key = self.endpoint_key(a);
        for old in endpoints {
            let (spec, its) = (&old.resource.spec, old.resource.key());
            let others = spec.node == self.node
                && its != key
                && spec.ip_networks.iter().any(|n| ips.contains(&n.addr()))
                && self.attached.which(|other| other.container_id == spec.container_id).is_empty();
            if others && !device::exists(spec.interface_name.clone()).await {
                match self.store.delete(&its, Expect::Revision(old.revision)).await {
                    Ok(_) | Err(StoreError::NotFound(_) | StoreError::Conflict(_)) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        let made = Made {
            device: device.name,
            mac: kept.mac.clone(),
            addresses: kept.addresses.clone(),
            floating: kept.floating.clone(),
        };
        self.write_endpoint(a, &key, &made, Some(device.index)).await
    }

    /// The handle that may have the address and is to have it no more: its own, or that of a pod of before, of whose end the
    /// datastore was told and has forgotten.
    fn may_be_taken_from(&self, kept: &Kept, blocks: &Blocks, net: &IpNet) -> String {
        let left = holder(blocks, net).filter(|(handle, node, foreign)| {
            is_its(kept, handle)
                || (node.as_ref() == Some(&self.node)
                    && !foreign
                    && self.attached.owners(handle).is_empty()
                    && !self.claims.hold(handle))
        });
        left.map_or_else(|| kept.handle.clone(), |(handle, ..)| handle)
    }

    /// Looks whenever the datastore may have been replaced, for as long as the agent runs.
    pub(super) async fn keep_recorded(self: Arc<Self>) {
        loop {
            match self.record_lost().await {
                Ok(()) => self.until_history_breaks().await,
                Err(e) => tracing::debug!("not looked for pods that the datastore has lost: {}", e.msg),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn until_history_breaks(&self) {
        if self.store.follows(&View::KINDS).is_some() {
            // Kubernetes: a stream more for each node would cost its server more than it tells; an endpoint is its Pod there.
            return std::future::pending().await;
        }
        let Ok(listing) = self.store.list(&WATCHED).await else { return };
        let Ok(mut watch) = self.store.watch(&WATCHED, listing.revision).await else { return };
        while watch.next().await.is_ok() {}
    }
}

/// Who has the address by the records: the handle, its node, and whether it is another plugin's interface.
fn holder(blocks: &Blocks, net: &IpNet) -> Option<(String, Option<String>, bool)> {
    let block = blocks.iter().find(|b| b.cidr().contains(&net.addr()))?;
    let allocation = block.allocation(net.addr())?;
    let secondary = &allocation.attribute.secondary;
    let foreign = secondary.contains_key(FOREIGN);
    Some((allocation.handle()?.to_owned(), secondary.get("node").cloned(), foreign))
}

fn has_addresses(kept: &Kept, blocks: &Blocks) -> bool {
    kept.addresses.iter().all(|n| holder(blocks, n).is_some_and(|(handle, ..)| is_its(kept, &handle)))
}

fn is_endpoint_of(kept: &Kept, endpoint: &Endpoint) -> bool {
    let (a, spec) = (&kept.attachment, &endpoint.resource.spec);
    spec.container_id == a.container_id
        && spec.endpoint == a.ifname
        && kept.addresses.iter().all(|n| spec.ip_networks.contains(n))
}

fn is_its(kept: &Kept, handle: &str) -> bool {
    let a = &kept.attachment;
    handles_of(&a.network, &a.container_id, &a.ifname)
        .chain([kept.handle.clone()])
        .any(|h| h.eq_ignore_ascii_case(handle))
}

fn taken(net: IpNet, holder: &Kept) -> Refused {
    let a = &holder.attachment;
    Refused::new(
        code::DUPLICATE_ADDRESS,
        format!(
            "{} is free by the datastore's records, and container {} ({}) of this node has it",
            net.addr(),
            a.container_id,
            whose(a)
        ),
        "records were lost, as when an older backup is restored or an address released by force: they are written again \
         while the pod is there; see the agent's log",
    )
}
