//! The Node resource of this node: written with its address, refused when another node has the same one.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use brindle_config_core::{
    ObjectMeta, Resource,
    bgp::AsNumber,
    node::{NodeAddress, NodeSpec, TypedAddress},
    status::ADMIN_ADDRESS,
    store::{Expect, Store, StoreError, StoreExt, Stored},
};
use ipnet::IpNet;
use serde_json::{Value, json};

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
    /// Whether the addresses of a family, IPv4 and IPv6, are taken from the Node when another node has the one found:
    /// what is stored is then neither ours any more nor anybody's wish, and may be what the other node waits for.
    pub(crate) gives_up: [bool; 2],
}

/// Publishes what this node is. Another node with the same address is a configuration error: one of the two would draw the
/// other's traffic. `check`: whether that is looked for.
pub(crate) async fn publish(store: &dyn Store, name: &str, own: Own<'_>, check: bool) -> Result<NodeSpec> {
    let Own { addresses, as_number, kubernetes, admin, gives_up } = own;
    if check && let Some((ip, other)) = conflict(store, name, addresses).await? {
        if gives_up[usize::from(ip.is_ipv6())] {
            give_up(store, name, ip.is_ipv6()).await?;
        }
        bail!(
            "conflicting node detected: Node({other}) has the address {ip} too; give this node its own with {}, or delete \
             the stale Node",
            if ip.is_ipv4() { "--ip" } else { "--ip6" },
        );
    }
    update_whole(store, name, |node| {
        match admin {
            Some(a) => drop(node.metadata.annotations.insert(ADMIN_ADDRESS.into(), a.to_string())),
            None => drop(node.metadata.annotations.remove(ADMIN_ADDRESS)),
        }
        forget_tunnels(node);
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

/// Takes from the Node what a Calico that ran here has left of its tunnels: with a public key of WireGuard, or the address of a
/// VXLAN device, Calico's nodes would go on sending what nobody here opens.
fn forget_tunnels(node: &mut Resource<NodeSpec>) {
    let spec = &mut node.spec;
    (spec.ipv4_vxlan_tunnel_addr, spec.vxlan_tunnel_mac_addr) = (None, None);
    for field in ["ipv6VXLANTunnelAddr", "vxlanTunnelMACAddrV6", "wireguard"] {
        spec.extra.remove(field);
    }
    if let Some(status) = node.extra.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("wireguardPublicKey");
        status.remove("wireguardPublicKeyV6");
    }
}

/// An address another node has, and which. The one this node was published with is not doubted: who comes later yields.
async fn conflict(store: &dyn Store, name: &str, addresses: &[IpNet]) -> Result<Option<(IpAddr, String)>> {
    let own = match store.get_as::<NodeSpec>(None, name).await {
        Ok(found) => found.resource.spec,
        Err(StoreError::NotFound(_)) => NodeSpec::default(),
        Err(e) => return Err(e).with_context(|| format!("cannot read Node({name})")),
    };
    let new: Vec<IpAddr> =
        addresses.iter().map(IpNet::addr).filter(|ip| !own.ips().any(|o| o == *ip)).collect();
    if new.is_empty() {
        return Ok(None);
    }
    let nodes = store.list_as::<NodeSpec>().await.context("cannot list the nodes")?.0;
    let others = nodes.into_iter().map(|n| n.resource).filter(|n| n.metadata.name != name);
    let has = |node: Resource<NodeSpec>| {
        let ip = node.spec.ips().find(|ip| new.contains(ip))?;
        Some((ip, node.metadata.name))
    };
    Ok(others.into_iter().find_map(has))
}

/// Takes the address of a family from the own Node, if it has one.
async fn give_up(store: &dyn Store, name: &str, v6: bool) -> Result<()> {
    let stale = match store.get_as::<NodeSpec>(None, name).await {
        Ok(found) => found.resource.spec.ips().find(|ip| ip.is_ipv6() == v6),
        Err(StoreError::NotFound(_)) => None,
        Err(e) => return Err(e).with_context(|| format!("cannot read Node({name})")),
    };
    let Some(stale) = stale else { return Ok(()) };
    update(store, name, |spec| {
        if let Some(bgp) = &mut spec.bgp {
            if v6 {
                bgp.ipv6_address = None;
            } else {
                bgp.ipv4_address = None;
            }
        }
        let of_family = |a: &TypedAddress| a.address.contains(':') == v6;
        spec.addresses.retain(|a| a.kind != "CalicoNodeIP" || !of_family(a));
    })
    .await?;
    tracing::warn!(node = name, old = %stale, "this node's address is taken from its Node: it has another now");
    Ok(())
}
