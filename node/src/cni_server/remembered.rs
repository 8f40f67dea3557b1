//! While the datastore is away: a pod that was attached before gets its addresses again, from the agent's memory
//! ([`super::attached`]); what it was given is recorded when the datastore is back. A new pod gets none. Even in a block
//! of this node's own an address can only be given by a write that others see: nodes that have no room borrow from any
//! block, and an agent that was away may have lost the block altogether.
//!
//! The pod's flows are policed by what the agent knows. One that has not heard from its datastore since it started knows
//! nothing: then new flows of the pod are denied by the kernel until it has, or judged by what an earlier agent left
//! there; without either the pod is refused. One that has heard goes by what it heard last, which is the pod's endpoint
//! of before: no record can have been removed since.

use std::time::Duration;

use brindle_cni::{
    error::code,
    journal,
    proto::{Attachment, Reply},
};
use brindle_config_core::store::Expect;
use brindle_ipam::{IpamError, Owner, Reason, View};
use ipnet::IpNet;

use super::{
    attached::{Kept, Unrecorded},
    dataplane::Expected,
    device,
    endpoint::{Made, READY},
    history::Event,
    now,
    refused::Refused,
    service::Service,
};

/// Whether the address is another's, or nobody's and not to be had any more. Any other refusal is none of the pod's: it has
/// the address, and whoever looks after the records will mend them.
fn is_lost(e: &IpamError) -> bool {
    match e {
        IpamError::Assigned { .. } | IpamError::Cooling { .. } => true,
        IpamError::Refused(why) => {
            why.reasons.iter().any(|r| matches!(r, Reason::OutsidePools | Reason::ForeignBlock { .. }))
        }
        _ => false,
    }
}

/// How long a pod waits to be guarded.
const GUARD: Duration = Duration::from_secs(20);

impl Service {
    /// Remembers what an attachment was given. A disk without room costs it only this.
    pub(super) async fn remember(&self, a: &Attachment, addresses: &[IpNet], given: bool, mtu: u32) {
        let have = self.attached.of(a);
        let (mac, floating) = have.as_ref().map(|k| (k.mac.clone(), k.floating.clone())).unwrap_or_default();
        let kept = Kept {
            attachment: a.clone(),
            addresses: addresses.to_vec(),
            given,
            handle: a.handle(),
            former: String::new(),
            mtu,
            unrecorded: None,
            mac,
            floating,
        };
        if have.is_some_and(|have| have == kept) {
            return;
        }
        if let Err(e) = self.attached.keep(kept).await {
            tracing::warn!(container = %a.container_id, "its addresses are not remembered on disk: {e}");
        }
    }

    /// What this attachment, or the pod it is for, had before; refused when that is still there.
    async fn before(&self, a: &Attachment, addresses_only: bool) -> Result<Option<Kept>, Refused> {
        if let Some(kept) = self.attached.of(a) {
            let moved = !a.netns_id.is_empty() && kept.attachment.netns_id != a.netns_id;
            if moved && !addresses_only && self.may_live(a).await {
                return Err(super::endpoint::elsewhere(a));
            }
            return Ok(Some(kept));
        }
        if addresses_only {
            // Whether the former sandbox is gone is known by its host device alone.
            return Ok(None);
        }
        match self.attached.of_pod(a) {
            Some(kept) if !self.may_live(a).await => Ok(Some(kept)),
            _ => Ok(None),
        }
    }

    /// The addresses an attachment had before, without the datastore; `why` it cannot be asked.
    pub(super) async fn add_remembered(
        &self,
        a: &Attachment,
        addresses_only: bool,
        why: Refused,
    ) -> Result<Reply, Refused> {
        let Some(former) = self.before(a, addresses_only).await? else {
            return Err(Refused {
                msg: format!("{}; a new pod gets an address only with the datastore", why.msg),
                details:
                    "bring the datastore back, the pod is then tried again; pods that were attached to this \
                          node before keep their addresses"
                        .into(),
                ..why
            });
        };
        // Deleted and back: what was promised to be taken back is in use again.
        self.unnote(a).await;
        self.unnote(&former.attachment).await;
        let mut kept = Kept { attachment: a.clone(), unrecorded: None, ..former.clone() };
        if !former.is_borrowed() && kept.is_borrowed() {
            kept.former.clone_from(&former.attachment.container_id);
        }
        let unwritable = |e: std::io::Error| {
            Refused::new(
                code::IO,
                format!("{}, and its memory cannot be written: {e}", why.msg),
                "make room on the disk",
            )
        };
        self.attached.keep(kept.clone()).await.map_err(unwritable)?;
        if former.attachment.container_id != a.container_id {
            self.attached.forget(&former.attachment).await;
        }
        tracing::warn!(container = %a.container_id, workload = a.workload(), addresses = ?kept.addresses, cause = %why.msg,
            "addresses of before given again");
        let host_ifname = if addresses_only { String::new() } else { a.host_ifname(&self.pod_prefix()) };
        // Never taken back by a plugin that dies: they were the pod's already.
        Ok(Reply::Added { addresses: kept.addresses, host_ifname, mtu: kept.mtu, again: true })
    }

    /// Takes an endpoint without the datastore; `why` it cannot be told.
    pub(super) async fn register_remembered(
        &self,
        a: &Attachment,
        made: &Made,
        why: Refused,
    ) -> Result<(), Refused> {
        let Some(mut kept) = self.attached.of(a) else { return Err(why) };
        kept.unrecorded = Some(Unrecorded {
            device: made.device.clone(),
            mac: made.mac.clone(),
            floating: made.floating.clone(),
        });
        self.attached.keep(kept).await.map_err(|e| {
            Refused::new(
                code::IO,
                format!("{}, and its memory cannot be written: {e}", why.msg),
                "make room on the disk",
            )
        })?;
        let not_ready = |code: u32, e: String| {
            Refused::new(code, format!("{}, and {e}", why.msg), "see the agent's log; it is tried again")
        };
        if self.dataplane.knows_cluster() {
            // The datastore still has the endpoint of before, and so have routes and policy: a DEL needs it too.
            let key = self.endpoint_key(a);
            let expected = Expected { key, device: made.device.clone(), addresses: made.addresses.clone() };
            return self.dataplane.ready(expected, READY).await.map_err(|e| not_ready(code::TRY_AGAIN, e));
        }
        self.dataplane.guard(GUARD).await.map_err(|e| not_ready(code::NOT_READY, e))?;
        tracing::warn!(container = %a.container_id, workload = a.workload(), cause = %why.msg,
            "attached; its new flows are denied until the datastore is back");
        Ok(())
    }

    /// Tells the datastore what was given without it.
    pub(super) async fn record_owed(&self) {
        for kept in self.attached.owed() {
            let a = kept.attachment;
            let _turn = self.turn(&a).await;
            // It may be gone, or recorded, or about to go.
            let (folder, asked) = (self.journal.clone(), a.clone());
            let goes = tokio::task::spawn_blocking(move || journal::find(&folder, &asked).is_some()).await;
            let Some(kept) = self.attached.of(&a).filter(|k| k.owes() && !goes.unwrap_or(true)) else {
                continue;
            };
            match self.record(&kept).await {
                Ok(()) => {}
                Err(e) if e.datastore => return tracing::debug!("not recorded yet: {}", e.msg),
                Err(e) => {
                    tracing::warn!(container = %a.container_id, "cannot be recorded: {}; {}", e.msg, e.details)
                }
            }
        }
    }

    /// Hands the addresses over to the attachment's own handle and writes its endpoint.
    pub(super) async fn record(&self, kept: &Kept) -> Result<(), Refused> {
        self.unlocked().await?;
        let a = &kept.attachment;
        if !kept.given {
            let have = self.addresses(a).await?;
            let missing = kept.addresses.iter().map(IpNet::addr).filter(|ip| !have.contains(ip));
            let missing: Vec<_> = missing.collect();
            if !missing.is_empty() {
                let view = View::load(&*self.store, &self.node).await?;
                let mut allocator = self.allocator.lock().await;
                for ip in missing {
                    let now = now();
                    let owner =
                        Owner { handle: a.handle(), attributes: self.attributes(a, &now.attribute(), false) };
                    match allocator.keep(ip, &kept.handle, &owner, &view, now).await {
                        Ok(()) => {
                            self.history.note(
                                Event::Kept,
                                &[ip],
                                &a.handle(),
                                &super::address::whose(a),
                                &self.node,
                            );
                        }
                        Err(e) if is_lost(&e) => {
                            drop(allocator);
                            return self.lose(kept, &e).await;
                        }
                        Err(e) => return Err(e.into()),
                    }
                }
            }
        }
        if let Some(Unrecorded { device, mac, floating }) = &kept.unrecorded {
            let made = Made {
                device: device.clone(),
                mac: mac.clone(),
                addresses: kept.addresses.clone(),
                floating: floating.clone(),
            };
            let index = device::find(device.clone()).await.map(|d| d.index);
            self.write_endpoint(a, &self.endpoint_key(a), &made, index).await?;
        }
        let recorded = Kept { handle: a.handle(), former: String::new(), unrecorded: None, ..kept.clone() };
        if let Err(e) = self.attached.keep(recorded).await {
            tracing::warn!(container = %a.container_id, "that it is recorded is not remembered on disk: {e}");
        }
        tracing::info!(container = %a.container_id, workload = a.workload(), addresses = ?kept.addresses,
            cause = "the datastore answers again", "recorded what was given without it");
        Ok(())
    }

    /// Somebody else was given an address meanwhile: the pod must not use it. With no endpoint in the records nothing
    /// leads to it and its flows are denied.
    async fn lose(&self, kept: &Kept, why: &IpamError) -> Result<(), Refused> {
        let a = &kept.attachment;
        let key = self.endpoint_key(a);
        if let Some(stored) = self.endpoint(&key).await? {
            self.store.delete(&key, Expect::Revision(stored.revision)).await?;
        }
        self.attached.forget(a).await;
        tracing::error!(container = %a.container_id, workload = a.workload(), cause = %why,
            "the pod has lost its address while the datastore was away and is cut off: delete it, it will be made anew");
        Ok(())
    }
}
