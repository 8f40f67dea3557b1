//! What the resources in the store contradict each other in. Writers refuse such resources; what is in the store all the
//! same (written by another tool, or by two writers at once) is named, and everything that can go on goes on: of
//! overlapping pools the most specific counts, of nodes with one address each is what it says.

use std::collections::BTreeMap;

use brindle_config_core::validate::pool::overlap;
use ipnet::IpNet;

use crate::{floating, inputs::Inputs};

/// Contradictions in a line each, in the order of the resources' names.
pub fn conflicts(inputs: &Inputs) -> Vec<String> {
    let mut all: Vec<String> = inputs.doubtful.values().cloned().collect();
    pools(inputs, &mut all);
    nodes(inputs, &mut all);
    blocks(inputs, &mut all);
    all.extend(floating::warnings(inputs));
    all
}

fn pools(inputs: &Inputs, all: &mut Vec<String>) {
    let pools: Vec<_> = inputs.pools.iter().collect();
    for (i, (a, pool)) in pools.iter().enumerate() {
        for (b, other) in pools.iter().skip(i + 1).filter(|(_, o)| overlap(&pool.cidr, &o.cidr)) {
            all.push(format!(
                "IPPool({a}) {} and IPPool({b}) {} overlap; the more specific one counts where they do; delete or \
                 shrink one of them",
                pool.cidr, other.cidr
            ));
        }
    }
}

fn nodes(inputs: &Inputs, all: &mut Vec<String>) {
    let mut owners = BTreeMap::new();
    for (name, node) in &inputs.nodes {
        let tunnel = node.bgp.as_ref().and_then(|b| b.ipv4_ipip_tunnel_addr);
        for ip in node.ips().chain(tunnel.map(Into::into)) {
            if let Some(first) = owners.insert(ip, name).filter(|first| *first != name) {
                all.push(format!(
                    "Node({first}) and Node({name}) both have the address {ip}; give each its own, or delete the \
                     stale Node"
                ));
            }
        }
    }
}

fn blocks(inputs: &Inputs, all: &mut Vec<String>) {
    // In order of address and length, a block inside others comes after them.
    let mut sorted: Vec<_> = inputs.blocks.values().map(|b| (b.cidr, b.host.as_deref())).collect();
    sorted.sort();
    let mut widest: Option<(IpNet, Option<&str>)> = None;
    for (cidr, host) in sorted {
        match widest {
            Some((outer, owner)) if outer.contains(&cidr) => all.push(format!(
                "the IPAMBlocks {outer} ({}) and {cidr} ({}) overlap; release one of them",
                owner.unwrap_or("no node's"),
                host.unwrap_or("no node's"),
            )),
            _ => widest = Some((cidr, host)),
        }
    }
}

#[cfg(test)]
mod tests {
    use brindle_config_core::{
        ObjectMeta, Resource, Spec,
        ipam::IpamBlockSpec,
        node::{NodeAddress, NodeBgpSpec, NodeSpec},
        pool::IpPoolSpec,
        store::{Entry, Revision, SyncEvent},
    };

    use super::*;

    fn give<S: Spec>(inputs: &mut Inputs, name: &str, spec: S) {
        let r = Resource::new(ObjectMeta::named(name), spec);
        let value = serde_json::to_value(&r).unwrap().into();
        inputs.apply(&SyncEvent::Upsert(Entry { key: r.key(), revision: Revision(1), value }));
    }

    fn node(ip: &str, tunnel: &str) -> NodeSpec {
        let bgp = NodeBgpSpec {
            ipv4_address: Some(NodeAddress(ip.parse().unwrap())),
            ipv4_ipip_tunnel_addr: Some(tunnel.parse().unwrap()),
            ..NodeBgpSpec::default()
        };
        NodeSpec { bgp: Some(bgp), ..NodeSpec::default() }
    }

    fn block(cidr: &str, host: &str) -> IpamBlockSpec {
        let spec = serde_json::json!({"cidr": cidr, "affinity": format!("host:{host}"), "allocations": [],
            "unallocated": [], "attributes": []});
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn every_contradiction_names_both_sides() {
        let mut i = Inputs::new("a");
        give(&mut i, "wide", IpPoolSpec::new("192.168.0.0/16".parse().unwrap()));
        give(&mut i, "narrow", IpPoolSpec::new("192.168.4.0/24".parse().unwrap()));
        give(&mut i, "apart", IpPoolSpec::new("10.9.0.0/16".parse().unwrap()));
        give(&mut i, "a", node("10.0.0.1/24", "192.168.0.1"));
        give(&mut i, "b", node("10.0.0.1/24", "192.168.0.2"));
        give(&mut i, "c", node("10.0.0.3/24", "192.168.0.2"));
        give(&mut i, "192-168-0-0-26", block("192.168.0.0/26", "a"));
        give(&mut i, "192-168-0-16-30", block("192.168.0.16/30", "b"));
        give(&mut i, "192-168-0-64-26", block("192.168.0.64/26", "b"));
        insta::assert_snapshot!(conflicts(&i).join("\n"), @r"
        IPPool(narrow) 192.168.4.0/24 and IPPool(wide) 192.168.0.0/16 overlap; the more specific one counts where they do; delete or shrink one of them
        Node(a) and Node(b) both have the address 10.0.0.1; give each its own, or delete the stale Node
        Node(b) and Node(c) both have the address 192.168.0.2; give each its own, or delete the stale Node
        the IPAMBlocks 192.168.0.0/26 (a) and 192.168.0.16/30 (b) overlap; release one of them
        ");
    }

    #[test]
    fn a_resource_that_writers_would_refuse_is_named_and_used() {
        let mut i = Inputs::new("a");
        give(&mut i, "p", IpPoolSpec::new("169.254.0.0/20".parse().unwrap()));
        let said = conflicts(&i);
        assert!(said[0].starts_with("IPPool(p): error with field spec.cidr"), "{said:?}");
        assert!(i.pool_of(&"169.254.1.0/24".parse().unwrap()).is_some());
        give(&mut i, "p", IpPoolSpec::new("10.9.0.0/20".parse().unwrap()));
        assert!(conflicts(&i).is_empty());
    }
}
