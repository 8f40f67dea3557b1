//! What goes with a resource that is deleted, as Calico's tools have it: the empty blocks of a pool, for one with another
//! block size can have its place then; and what a node leaves where nobody else takes it away: its endpoints, their
//! addresses and those of its tunnels, its blocks. Where Kubernetes has the nodes none is deleted here.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use brindle_config_core::{
    Kind,
    pool::IpPoolSpec,
    store::{Entry, Expect, Store, StoreError, decode},
    workload::WorkloadEndpointSpec,
};
use brindle_ipam::{Allocator as _, BlockAllocator, IpamError, NoPause, Now, Release, View, usage::Blocks};
use ipnet::IpNet;

use crate::out;

/// What is to be looked after once the resource is gone.
pub(super) enum Left {
    Pool(IpNet),
    Node(String),
}

/// Of a resource that is about to be deleted.
pub(super) fn of(entry: &Entry) -> Option<Left> {
    match entry.key.kind {
        Kind::IpPool => decode::<IpPoolSpec>(entry).ok().map(|p| Left::Pool(p.resource.spec.cidr)),
        Kind::Node => Some(Left::Node(entry.key.name.clone())),
        _ => None,
    }
}

fn now() -> Result<Now> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(Now(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)))
}

/// Takes it away.
pub(super) async fn clear(store: &Arc<dyn Store>, left: &Left) -> Result<()> {
    match left {
        Left::Pool(cidr) => {
            let mut allocator = BlockAllocator::new(Arc::clone(store), "brindlectl", Arc::new(NoPause));
            allocator.give_back_within(cidr, now()?).await?;
            Ok(())
        }
        Left::Node(name) => of_node(store, name).await,
    }
}

/// Endpoints first: an address is given back when nothing leads to it any more.
async fn of_node(store: &Arc<dyn Store>, name: &str) -> Result<()> {
    let entries = store.list(&[Kind::WorkloadEndpoint, Kind::IpamBlock]).await?.entries;
    let mut endpoints = 0_usize;
    for endpoint in entries.iter().filter(|e| e.key.kind == Kind::WorkloadEndpoint) {
        let its = decode::<WorkloadEndpointSpec>(endpoint).is_ok_and(|e| e.resource.spec.node == name);
        if !its {
            continue;
        }
        match store.delete(&endpoint.key, Expect::Revision(endpoint.revision)).await {
            Ok(_) => endpoints += 1,
            Err(StoreError::NotFound(_) | StoreError::Conflict(_)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let view = View::load(&**store, "").await?;
    let mut allocator = BlockAllocator::new(Arc::clone(store), name, Arc::new(NoPause));
    let mut addresses = 0_usize;
    let blocks = Blocks::read(&entries);
    for (_, a) in blocks.allocations() {
        if a.cooling() || a.attribute.secondary.get("node").is_none_or(|node| node != name) {
            continue;
        }
        let release = Release { ip: a.ip, handle: a.handle().map(str::to_owned), sequence: Some(a.sequence) };
        match allocator.release_ips(&[release], &view, now()?).await {
            Ok(done) => addresses += done.released.len(),
            // Given anew meanwhile.
            Err(IpamError::Stale(_)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let blocks = allocator.give_up().await?.len();
    if endpoints + addresses + blocks > 0 {
        out::note(&format!(
            "with node {name} went its endpoints ({endpoints}), addresses ({addresses}) and blocks ({blocks})"
        ));
    }
    Ok(())
}
