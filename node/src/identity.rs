//! The Node resource of this node: written with its address, refused when another node has the same one.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail};
use brindle_config_core::{
    ObjectMeta, Resource,
    bgp::AsNumber,
    node::{NodeAddress, NodeSpec, TypedAddress},
    status::ADMIN_ADDRESS,
    store::{Expect, Store, StoreError, StoreExt, Stored},
};
use ipnet::IpNet;
use serde_json::json;

/// Attempts against writers of the same object.
const ATTEMPTS: u32 = 20;

/// Changes this node's specification by compare-and-swap; makes the resource when it is not there. Returns what is
/// stored now. `edit` may run more than once.
pub(crate) async fn update(store: &dyn Store, name: &str, edit: impl Fn(&mut NodeSpec)) -> Result<NodeSpec> {
    update_whole(store, name, |node| edit(&mut node.spec)).await
}

/// The same with the whole resource.
async fn update_whole(
    store: &dyn Store,
    name: &str,
    edit: impl Fn(&mut Resource<NodeSpec>),
) -> Result<NodeSpec> {
    for attempt in 0..ATTEMPTS {
        let found: Option<Stored<NodeSpec>> = match store.get_as(None, name).await {
            Ok(s) => Some(s),
            Err(StoreError::NotFound(_)) => None,
            Err(e) => return Err(e).with_context(|| format!("cannot read Node({name})")),
        };
        let (mut resource, expect) = match found {
            Some(s) => (s.resource, Expect::Revision(s.revision)),
            None => (Resource::new(ObjectMeta::named(name), NodeSpec::default()), Expect::Absent),
        };
        let before = resource.clone();
        edit(&mut resource);
        if resource == before && !matches!(expect, Expect::Absent) {
            return Ok(before.spec);
        }
        match store.put_as(&resource, expect).await {
            Ok(_) => return Ok(resource.spec),
            Err(StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_)) => {
                tokio::time::sleep(Duration::from_millis(u64::from(attempt) * 3)).await;
            }
            Err(e) => return Err(e).with_context(|| format!("cannot write Node({name})")),
        }
    }
    bail!(
        "Node({name}) is being changed by somebody else all the time; is another agent using this node name?"
    )
}

/// What a node says of itself.
pub(crate) struct Own<'a> {
    pub(crate) addresses: &'a [IpNet],
    /// `None`: what stands in the Node stays.
    pub(crate) as_number: Option<AsNumber>,
    /// Which node of Kubernetes it is, where that is not the datastore; `None`: what stands in the Node stays.
    pub(crate) kubernetes: Option<&'a str>,
    /// Where its agent answers other machines, if it does.
    pub(crate) admin: Option<SocketAddr>,
}

/// Publishes what this node is. Another node with the same address is a configuration error: one of the two would draw the
/// other's traffic. `check`: whether that is looked for.
pub(crate) async fn publish(store: &dyn Store, name: &str, own: Own<'_>, check: bool) -> Result<NodeSpec> {
    let Own { addresses, as_number, kubernetes, admin } = own;
    let nodes = if check {
        store.list_as::<NodeSpec>().await.context("cannot list the nodes")?.0
    } else {
        Vec::new()
    };
    for address in addresses {
        let has = |n: &&Stored<NodeSpec>| n.resource.spec.ips().any(|ip| ip == address.addr());
        if let Some(other) = nodes.iter().filter(|n| n.resource.metadata.name != name).find(has) {
            bail!(
                "conflicting node detected: Node({}) has the address {} too; give this node its own with {}, or delete \
                 the stale Node",
                other.resource.metadata.name,
                address.addr(),
                if address.addr().is_ipv4() { "--ip" } else { "--ip6" },
            );
        }
    }
    update_whole(store, name, |node| {
        match admin {
            Some(a) => drop(node.metadata.annotations.insert(ADMIN_ADDRESS.into(), a.to_string())),
            None => drop(node.metadata.annotations.remove(ADMIN_ADDRESS)),
        }
        let spec = &mut node.spec;
        if let Some(name) = kubernetes {
            spec.extra.insert("orchRefs".into(), json!([{"nodeName": name, "orchestrator": "k8s"}]));
        }
        let bgp = spec.bgp.get_or_insert_default();
        // A family without an address is one the node does not speak.
        (bgp.ipv4_address, bgp.ipv6_address) = (None, None);
        bgp.as_number = as_number.or(bgp.as_number);
        spec.addresses.retain(|a| a.kind != "CalicoNodeIP");
        for (i, address) in addresses.iter().enumerate() {
            match *address {
                IpNet::V4(a) => bgp.ipv4_address = Some(NodeAddress(a)),
                IpNet::V6(a) => bgp.ipv6_address = Some(NodeAddress(a)),
            }
            let typed = TypedAddress {
                address: address.to_string(),
                kind: "CalicoNodeIP".into(),
                ..TypedAddress::default()
            };
            spec.addresses.insert(i, typed);
        }
    })
    .await
}
