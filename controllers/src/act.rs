//! Does what a plan says. Every write is conditional on what the plan saw (a revision, or a handle and a sequence
//! number), or goes through the compare-and-swap protocols of `ipam`; what has changed meanwhile is left for the next
//! plan. No decision is made here.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, anyhow, bail};
use brindle_config_core::{
    Key, policy_names,
    pool::AllowedUse,
    store::{Expect, Revision, Store, StoreError, StoreExt as _},
    time::Now,
};
use brindle_ipam::{
    Allocator as _, AssignRequest, BlockAllocator, Owner, Pause, View, Wanted as Count, names::LOAD_BALANCER,
};
use serde_json::{Value, json};

use crate::plan::{Action, Wanted};

/// Whose name this process's own changes of blocks have: nobody's.
const NOBODY: &str = "";

/// The wall clock, as plans and records want it.
pub fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Waits longer after each conflict; who collided does not collide again, for the process id is part of it.
struct Backoff;

impl Pause for Backoff {
    fn pause(&self, attempt: u32) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let most = 1_u64 << attempt.min(6);
        let spread = u64::from(std::process::id()) % 8;
        Box::pin(tokio::time::sleep(Duration::from_millis(most + spread)))
    }
}

/// What became of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The world had changed.
    Outdated,
}

/// Whoever does things.
pub struct Actor {
    store: Arc<dyn Store>,
}

impl Actor {
    /// An actor on this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    fn allocator(&self, owner: &str) -> BlockAllocator {
        BlockAllocator::new(Arc::clone(&self.store), owner, Arc::new(Backoff))
    }

    /// Does one thing.
    ///
    /// # Errors
    /// Why it could not be done: the store's words, or the refusal of the address pools.
    pub async fn perform(&self, action: &Action) -> Result<Outcome> {
        match action {
            Action::Collect(leak) => {
                let view = View::load(&*self.store, &leak.node).await?;
                let mut allocator = self.allocator(NOBODY);
                if leak.twice {
                    allocator.release_handle(&leak.handle, &view, now()).await?;
                    return Ok(Outcome::Done);
                }
                match allocator.release_ips(&leak.releases, &view, now()).await {
                    Ok(report) if report.released.is_empty() => Ok(Outcome::Outdated),
                    Ok(_) => Ok(Outcome::Done),
                    Err(brindle_ipam::IpamError::Stale(_)) => Ok(Outcome::Outdated),
                    Err(e) => Err(e.into()),
                }
            }
            Action::DropConfiguration { key, revision }
            | Action::DropNode { key, revision }
            | Action::DropEndpoint { key, revision, .. }
            | Action::DropCopy { key, revision }
            | Action::DropHostEndpoint { key, revision } => self.delete(key, *revision).await,
            Action::GiveUp { node } => {
                self.allocator(node).give_up().await?;
                Ok(Outcome::Done)
            }
            Action::Repair { owner } => {
                let view = View::load(&*self.store, owner).await?;
                self.allocator(owner).reload(&view).await?;
                Ok(Outcome::Done)
            }
            Action::DropHandle { handle } => {
                let gone = self.allocator(NOBODY).forget_empty_handle(handle).await?;
                Ok(if gone { Outcome::Done } else { Outcome::Outdated })
            }
            Action::Unbind { releases, .. } => {
                let view = View::load(&*self.store, NOBODY).await?;
                match self.allocator(LOAD_BALANCER).release_ips(releases, &view, now()).await {
                    Ok(_) => Ok(Outcome::Done),
                    Err(brindle_ipam::IpamError::Stale(_)) => Ok(Outcome::Outdated),
                    Err(e) => Err(e.into()),
                }
            }
            Action::UnbindAll { handle, .. } => {
                let view = View::load(&*self.store, NOBODY).await?;
                self.allocator(LOAD_BALANCER).release_handle(handle, &view, now()).await?;
                Ok(Outcome::Done)
            }
            Action::Bind { service, handle, wanted } => self.bind(service, handle, wanted).await,
            Action::Status { service, revision, ingress } => self.status(service, *revision, ingress).await,
            Action::Rename { from, to, revision } => self.rename(from, to, *revision).await,
            Action::PutHostEndpoint { revision, resource, .. } => {
                let expect = revision.map_or(Expect::Absent, Expect::Revision);
                match self.store.put_as(resource, expect).await {
                    Ok(_) => Ok(Outcome::Done),
                    Err(StoreError::Exists(_) | StoreError::Conflict(_) | StoreError::NotFound(_)) => {
                        Ok(Outcome::Outdated)
                    }
                    Err(e) => Err(e.into()),
                }
            }
        }
    }

    async fn bind(&self, service: &Key, handle: &str, wanted: &Wanted) -> Result<Outcome> {
        let view = View::load(&*self.store, NOBODY).await?;
        // Calico's attributes: by them, and by the handle, the address is found again.
        let attributes = [
            ("service", service.name.clone()),
            ("namespace", service.namespace.clone()),
            ("type", "LoadBalancer".to_owned()),
            ("timestamp", now().attribute()),
        ];
        let attributes: BTreeMap<String, String> =
            attributes.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let owner = Owner { handle: handle.to_owned(), attributes };
        let mut allocator = self.allocator(LOAD_BALANCER);
        let (v6, pools) = match wanted {
            Wanted::Address(ip) => {
                allocator.assign_ip(*ip, &owner, AllowedUse::LoadBalancer, &view, now()).await?;
                return Ok(Outcome::Done);
            }
            Wanted::Any { v6, pools } => (*v6, pools.clone()),
        };
        let one = Count { count: 1, pools };
        let (v4, v6) = if v6 { (Count::default(), one) } else { (one, Count::default()) };
        let request = AssignRequest {
            owner,
            v4,
            v6,
            intended_use: AllowedUse::LoadBalancer,
            namespace_labels: None,
            max_blocks: u32::MAX,
        };
        let given = allocator.assign(&request, &view, now()).await?;
        match given.refusal() {
            None => Ok(Outcome::Done),
            Some(refusal) => bail!("{refusal}"),
        }
    }

    async fn status(&self, service: &Key, revision: Revision, ingress: &[Value]) -> Result<Outcome> {
        let found = match self.store.get(service).await {
            Ok(found) if found.revision == revision => found,
            Ok(_) | Err(StoreError::NotFound(_)) => return Ok(Outcome::Outdated),
            Err(e) => return Err(e.into()),
        };
        let mut value = (*found.value).clone();
        let all = value.as_object_mut().ok_or_else(|| anyhow!("{service}: is no object"))?;
        let status = all.entry("status").or_insert_with(|| json!({}));
        if !status.is_object() {
            *status = json!({});
        }
        status["loadBalancer"] = if ingress.is_empty() { json!({}) } else { json!({ "ingress": ingress }) };
        match self.store.put(service, value, Expect::Revision(revision)).await {
            Ok(_) => Ok(Outcome::Done),
            Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => Ok(Outcome::Outdated),
            Err(e) => Err(e.into()),
        }
    }

    async fn delete(&self, key: &Key, revision: Revision) -> Result<Outcome> {
        match self.store.delete(key, Expect::Revision(revision)).await {
            Ok(_) => Ok(Outcome::Done),
            Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => Ok(Outcome::Outdated),
            Err(e) => Err(e.into()),
        }
    }

    /// The new one first: whatever interrupts this, the policy is there once at least, and the next plan finishes it.
    async fn rename(&self, from: &Key, to: &Key, revision: Revision) -> Result<Outcome> {
        let found = match self.store.get(from).await {
            Ok(found) if found.revision == revision => found,
            Ok(_) | Err(StoreError::NotFound(_)) => return Ok(Outcome::Outdated),
            Err(e) => return Err(e.into()),
        };
        match self.store.put(to, policy_names::renamed(&found.value, to), Expect::Absent).await {
            Ok(_) => self.delete(from, revision).await,
            Err(StoreError::Exists(_)) => Ok(Outcome::Outdated),
            Err(e) => Err(e.into()),
        }
    }
}
