//! What a lab writes into its datastore before the first agent starts: the pool, the BGP configuration, and the
//! nodes and peers that are not ours and so cannot announce themselves.

use anyhow::{Context as _, Result};
use brindle_config_core::{
    Resource, Spec,
    bgp::{AsNumber, BgpConfigurationSpec, BgpPeerSpec},
    key::Key,
    meta::ObjectMeta,
    node::{NodeAddress, NodeBgpSpec, NodeSpec},
    pool::{EncapMode, IpPoolSpec},
    store::{Expect, Store},
};
use ipnet::IpNet;
use serde_json::Value;

use super::{
    plan::{LabPlan, NodePlan, pool6},
    state::LabDir,
    topology::{AgentKind, RouterKind},
};

/// Name of the lab's pool, as Calico names its first one.
pub(crate) const POOL: &str = "default-ipv4-ippool";

/// The same for IPv6.
const POOL6: &str = "default-ipv6-ippool";

fn entry<S: Spec>(name: &str, spec: S) -> Result<(Key, Value)> {
    let resource = Resource::new(ObjectMeta::named(name), spec);
    Ok((resource.key(), serde_json::to_value(&resource)?))
}

/// Everything a new lab's store begins with. Pure.
pub(crate) fn resources(plan: &LabPlan) -> Result<Vec<(Key, Value)>> {
    let mut all = Vec::new();
    if plan.families.v4() {
        let pool = IpPoolSpec {
            ipip_mode: plan.pool.ipip,
            block_size_raw: Some(plan.pool.block_size),
            ..IpPoolSpec::new(IpNet::V4(plan.pool.cidr))
        };
        all.push(entry(POOL, pool)?);
    }
    if plan.families.v6() {
        all.push(entry(POOL6, IpPoolSpec::new(IpNet::V6(pool6())))?);
    }
    all.push(entry(
        "default",
        BgpConfigurationSpec {
            as_number: Some(AsNumber(plan.as_number)),
            node_to_node_mesh_enabled: Some(true),
            ..BgpConfigurationSpec::default()
        },
    )?);
    for node in &plan.nodes {
        all.extend(node_resources(plan, node)?);
    }
    Ok(all)
}

/// What one node needs: a BIRD node its Node and a pool for its block; each node of a lab with an FRR router a peer.
pub(crate) fn node_resources(plan: &LabPlan, node: &NodePlan) -> Result<Vec<(Key, Value)>> {
    let mut all = Vec::new();
    if node.agent == AgentKind::Bird {
        let bgp = NodeBgpSpec {
            as_number: Some(AsNumber(node.as_number)),
            ipv4_address: Some(NodeAddress(node.address)),
            ..NodeBgpSpec::default()
        };
        all.push(entry(&node.name, NodeSpec { bgp: Some(bgp), ..NodeSpec::default() })?);
        if let Some(block) = node.block {
            // Nobody takes addresses from it; it says that routes into it are never encapsulated.
            let pool = IpPoolSpec {
                disabled: true,
                ipip_mode: EncapMode::Never,
                block_size_raw: Some(block.prefix_len()),
                ..IpPoolSpec::new(IpNet::V4(block))
            };
            all.push(entry(&format!("bird-{}", node.name), pool)?);
        }
    }
    if plan.router.kind == RouterKind::Frr
        && node.agent == AgentKind::Brindle
        && let Some(segment) = plan.segment(&node.segment)
    {
        // The agent adds its address and keeps the rest.
        let bgp = NodeBgpSpec { as_number: Some(AsNumber(node.as_number)), ..NodeBgpSpec::default() };
        all.push(entry(&node.name, NodeSpec { bgp: Some(bgp), ..NodeSpec::default() })?);
        let peer = BgpPeerSpec {
            node: node.name.clone(),
            peer_ip: segment.gateway.addr().to_string(),
            as_number: Some(AsNumber(plan.router.as_number)),
            ..BgpPeerSpec::default()
        };
        all.push(entry(&format!("router-{}", node.name), peer)?);
    }
    Ok(all)
}

/// Writes resources into the lab's store, which is made when missing.
pub(crate) fn write(dir: &LabDir, resources: Vec<(Key, Value)>) -> Result<()> {
    block_on(async {
        let store = open(dir)?;
        for (key, value) in resources {
            store.put(&key, value, Expect::Any).await.with_context(|| format!("cannot write {key}"))?;
        }
        Ok(())
    })
}

/// Makes the token of the lab's agents, for root alone.
pub(crate) fn write_token(dir: &LabDir) -> Result<()> {
    use std::{
        io::{Read as _, Write as _},
        os::unix::fs::OpenOptionsExt as _,
    };
    let path = dir.admin_token();
    let mut random = [0; 32];
    let source = "/dev/urandom";
    let read = std::fs::File::open(source).and_then(|mut f| f.read_exact(&mut random));
    read.with_context(|| format!("cannot read {source}"))?;
    let text: String = random.iter().map(|b| format!("{b:02x}")).collect();
    let open = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
    open.and_then(|mut f| writeln!(f, "{text}")).with_context(|| format!("cannot write {}", path.display()))
}

fn open(dir: &LabDir) -> Result<std::sync::Arc<dyn Store>> {
    brindle_config::open(&dir.store_url()).with_context(|| format!("cannot open {}", dir.store_url()))
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::topology::Topology;

    #[test]
    fn the_store_of_a_mixed_lab_begins_with_its_strangers() {
        let mut t = Topology::regular(2, 1, 1);
        t.nodes[1].agent = AgentKind::Bird;
        t.router.kind = RouterKind::Frr;
        let plan = LabPlan::new("lab", &t).unwrap();
        let all: Vec<_> = resources(&plan).unwrap().into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        insta::assert_snapshot!(serde_json::to_string_pretty(&all).unwrap());
    }
}
