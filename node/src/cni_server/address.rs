//! Addresses of attachments: asked of the allocator, which one call at a time uses.

use std::{collections::BTreeMap, net::IpAddr};

use brindle_cni::{error::code, proto::Attachment};
use brindle_config_core::pool::AllowedUse;
use brindle_ipam::{Allocator, AssignRequest, BlockAllocator, Owner, View, Wanted};
use ipnet::IpNet;

use super::{history::Event, now, refused::Refused, service::Service};

/// What a plugin wishes for.
#[derive(Clone, Debug, Default)]
pub(super) struct Wish {
    pub(super) pools4: Vec<String>,
    pub(super) pools6: Vec<String>,
    pub(super) num4: u8,
    pub(super) num6: u8,
    /// These very addresses.
    pub(super) ips: Vec<IpAddr>,
}

/// What an attachment has now.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) addresses: Vec<IpNet>,
    /// It had them before.
    pub(super) again: bool,
}

impl Service {
    /// The attachment's addresses: those it has, else new ones.
    pub(super) async fn assign(&self, a: &Attachment, wish: Wish) -> Result<Given, Refused> {
        let have = self.addresses(a).await?;
        if !have.is_empty() {
            return Ok(Given { addresses: have.into_iter().map(IpNet::from).collect(), again: true });
        }
        let view = View::load(&*self.store, &self.node).await?;
        let mut allocator = self.allocator.lock().await;
        match self.allocate(&mut allocator, a, wish, &view).await {
            Ok(ips) => {
                self.history.note(Event::Given, &ips, &a.handle(), &whose(a), &self.node);
                tracing::info!(container = %a.container_id, workload = a.workload(), addresses = ?ips, "addresses given");
                Ok(Given { addresses: ips.into_iter().map(IpNet::from).collect(), again: false })
            }
            Err(refused) => {
                // One family may have been given before the other was refused.
                if let Err(e) = allocator.release_handle(&a.handle(), &view, now()).await {
                    tracing::warn!(handle = %a.handle(), "addresses of a refused request are not back yet: {e}");
                    drop(allocator);
                    self.note_release(a).await;
                }
                Err(refused)
            }
        }
    }

    async fn allocate(
        &self,
        allocator: &mut BlockAllocator,
        a: &Attachment,
        wish: Wish,
        view: &View,
    ) -> Result<Vec<IpAddr>, Refused> {
        let now = now();
        let owner = Owner { handle: a.handle(), attributes: self.attributes(a, &now.attribute()) };
        if !wish.ips.is_empty() {
            let mut all = Vec::new();
            for ip in wish.ips {
                all.push(allocator.assign_ip(ip, &owner, AllowedUse::Workload, view, now).await?.ip);
            }
            return Ok(all);
        }
        let request = AssignRequest {
            owner,
            v4: Wanted { count: wish.num4.into(), pools: wish.pools4 },
            v6: Wanted { count: wish.num6.into(), pools: wish.pools6 },
            intended_use: AllowedUse::Workload,
            namespace_labels: a.pod.as_ref().map(|p| namespace_labels(&p.namespace)),
            max_blocks: 0,
        };
        let assignment = allocator.assign(&request, view, now).await?;
        match assignment.refusal() {
            None => Ok(assignment.addresses.into_iter().map(|a| a.ip).collect()),
            Some(why) => Err(Refused::new(
                if why.exhausted() { code::POOL_EXHAUSTED } else { code::CONFIG },
                format!("no address for {}: {why}", a.workload()),
                "add an IPPool that serves this node, or free addresses",
            )),
        }
    }

    fn attributes(&self, a: &Attachment, timestamp: &str) -> BTreeMap<String, String> {
        let mut attributes = BTreeMap::from([
            ("node".to_owned(), self.node.clone()),
            ("timestamp".to_owned(), timestamp.to_owned()),
        ]);
        if let Some(pod) = &a.pod {
            attributes.insert("namespace".into(), pod.namespace.clone());
            attributes.insert("pod".into(), pod.name.clone());
        }
        attributes
    }

    /// The addresses the attachment has, by the records.
    pub(super) async fn addresses(&self, a: &Attachment) -> Result<Vec<IpAddr>, Refused> {
        Ok(self.reader.by_handle(&a.handle()).await?)
    }

    /// Gives all addresses of the attachment back.
    pub(super) async fn release(&self, a: &Attachment) -> Result<(), Refused> {
        self.release_handle(&a.handle(), &whose(a)).await
    }

    pub(super) async fn release_handle(&self, handle: &str, whose: &str) -> Result<(), Refused> {
        let view = View::load(&*self.store, &self.node).await?;
        let back = self.allocator.lock().await.release_handle(handle, &view, now()).await?;
        if !back.is_empty() {
            self.history.note(Event::Returned, &back, handle, whose, &self.node);
            tracing::info!(%handle, addresses = ?back, "addresses returned");
        }
        Ok(())
    }
}

/// Whom the addresses are for, as a person would say.
fn whose(a: &Attachment) -> String {
    match &a.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => a.container_id.clone(),
    }
}

/// Labels every namespace has.
fn namespace_labels(namespace: &str) -> BTreeMap<String, String> {
    ["projectcalico.org/name", "kubernetes.io/metadata.name"]
        .map(|key| (key.to_owned(), namespace.to_owned()))
        .into()
}
