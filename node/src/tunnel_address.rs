//! The address of this node's tunnel device, kept in step with the pools: allocated while a pool with IPIP serves this
//! node, published on the Node resource (again, when that has lost it), given back when the last such pool goes.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use brindle_config_core::{
    Key, Kind,
    node::NodeSpec,
    pool::EncapMode,
    store::{Store, StoreError, StoreExt, SyncEvent, decode},
};
use brindle_ipam::{BlockAllocator, TunnelKind, View};

use crate::{
    cni_server::{Jitter, now},
    identity,
};

const RETRY: Duration = Duration::from_secs(5);

/// What the own Node says that matters here: the address itself. `None`: there is no Node.
type Said = Option<Option<Ipv4Addr>>;

/// Runs as long as the agent. `v4`: whether this node has an IPv4 address; an IPv6-only node has no end of a tunnel.
pub(crate) async fn keep(store: Arc<dyn Store>, node: String, v4: bool) {
    let mut events = brindle_config::sync::follow(store.clone(), vec![Kind::IpPool, Kind::Node]);
    let key = Key::new(Kind::Node, None, &node);
    let mut in_sync = false;
    let (mut said, mut left) = (None, None);
    while let Some(batch) = events.recv().await {
        let first = batch.iter().any(|e| matches!(e, SyncEvent::InSync));
        in_sync |= first;
        let pools = batch.iter().any(of_pool);
        note(&mut said, &batch, &key);
        // Nodes change all the time; this one counts when it says something else than what was left.
        if !in_sync || !(first || pools || said != left) {
            continue;
        }
        left = loop {
            match ensure(&store, &node, v4).await {
                Ok(left) => break left,
                Err(e) => tracing::warn!("tunnel address: {e:#}; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        };
    }
}

const fn of_pool(event: &SyncEvent) -> bool {
    match event {
        SyncEvent::Upsert(entry) => matches!(entry.key.kind, Kind::IpPool),
        SyncEvent::Delete(key) => matches!(key.kind, Kind::IpPool),
        SyncEvent::InSync => false,
    }
}

/// Takes what a batch says of the own Node.
fn note(said: &mut Said, batch: &[SyncEvent], key: &Key) {
    for event in batch {
        match event {
            SyncEvent::Upsert(entry) if entry.key == *key => {
                // One that does not decode is the speaker's to complain of.
                if let Ok(found) = decode::<NodeSpec>(entry) {
                    *said = Some(found.resource.spec.bgp.and_then(|b| b.ipv4_ipip_tunnel_addr));
                }
            }
            SyncEvent::Delete(gone) if gone == key => *said = None,
            _ => {}
        }
    }
}

/// What the Node says afterwards.
async fn ensure(store: &Arc<dyn Store>, node: &str, v4: bool) -> Result<Said> {
    let view = View::load(&**store, node).await?;
    let pools: Vec<String> = view
        .pools
        .iter()
        .filter(|p| {
            p.spec.ipip_mode != EncapMode::Never
                && !p.spec.disabled
                && !p.terminating
                && p.spec.cidr.addr().is_ipv4()
        })
        .map(|p| p.name.clone())
        .collect();
    let current = match store.get_as::<NodeSpec>(None, node).await {
        Ok(found) => found.resource.spec.bgp.unwrap_or_default().ipv4_ipip_tunnel_addr,
        // It is followed: when it is made again, it says nothing of an address.
        Err(StoreError::NotFound(_)) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let mut allocator = BlockAllocator::new(store.clone(), node, Arc::new(Jitter));
    if pools.is_empty() || !v4 {
        if current.is_some() {
            identity::update(&**store, node, |n| n.bgp.get_or_insert_default().ipv4_ipip_tunnel_addr = None)
                .await?;
        }
        allocator.release_tunnel_address(TunnelKind::Ipip, &view, now()).await?;
        return Ok(Some(None));
    }
    let ip = allocator
        .ensure_tunnel_address(TunnelKind::Ipip, &pools, current.map(IpAddr::V4), &view, now())
        .await?;
    let IpAddr::V4(ip) = ip else { return Ok(Some(current)) };
    if current != Some(ip) {
        identity::update(&**store, node, |n| n.bgp.get_or_insert_default().ipv4_ipip_tunnel_addr = Some(ip))
            .await?;
        tracing::info!(old = ?current, new = %ip, cause = "an IPIP pool serves this node", "tunnel address");
    }
    Ok(Some(Some(ip)))
}
