//! The address of this node's tunnel device, kept in step with the pools: allocated while a pool with IPIP serves this
//! node, published on the Node resource, given back when the last such pool goes.

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::Result;
use brindle_config_core::{
    Kind,
    node::NodeSpec,
    pool::EncapMode,
    store::{Store, StoreExt, SyncEvent},
};
use brindle_ipam::{BlockAllocator, TunnelKind, View};

use crate::{
    cni_server::{Jitter, now},
    identity,
};

const RETRY: Duration = Duration::from_secs(5);

/// Runs as long as the agent.
pub(crate) async fn keep(store: Arc<dyn Store>, node: String) {
    let mut events = brindle_config::sync::follow(store.clone(), vec![Kind::IpPool]);
    let mut in_sync = false;
    while let Some(batch) = events.recv().await {
        in_sync |= batch.iter().any(|e| matches!(e, SyncEvent::InSync));
        if !in_sync {
            continue;
        }
        while let Err(e) = ensure(&store, &node).await {
            tracing::warn!("tunnel address: {e:#}; trying again");
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn ensure(store: &Arc<dyn Store>, node: &str) -> Result<()> {
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
    let bgp = store.get_as::<NodeSpec>(None, node).await?.resource.spec.bgp.unwrap_or_default();
    let current = bgp.ipv4_ipip_tunnel_addr;
    let mut allocator = BlockAllocator::new(store.clone(), node, Arc::new(Jitter));
    // An IPv6-only node has no end of a tunnel.
    if pools.is_empty() || bgp.ipv4_address.is_none() {
        if current.is_some() {
            identity::update(&**store, node, |n| n.bgp.get_or_insert_default().ipv4_ipip_tunnel_addr = None)
                .await?;
        }
        allocator.release_tunnel_address(TunnelKind::Ipip, &view, now()).await?;
        return Ok(());
    }
    let ip = allocator
        .ensure_tunnel_address(TunnelKind::Ipip, &pools, current.map(IpAddr::V4), &view, now())
        .await?;
    if let IpAddr::V4(ip) = ip
        && current != Some(ip)
    {
        identity::update(&**store, node, |n| n.bgp.get_or_insert_default().ipv4_ipip_tunnel_addr = Some(ip))
            .await?;
        tracing::info!(old = ?current, new = %ip, cause = "an IPIP pool serves this node", "tunnel address");
    }
    Ok(())
}
