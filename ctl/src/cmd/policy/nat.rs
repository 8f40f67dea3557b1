//! natOutgoing: under which source a node sends on what leaves the pools. Policy beyond it sees no other.

use std::net::IpAddr;

use brindle_config_core::store::{Entry, SyncEvent};
use brindle_felix_core::{
    inputs::Inputs,
    rules::around::{self, KINDS},
};
use serde_json::{Value, json};

use super::way::Nodes;

/// A source that a node puts in the place of a pod's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Translated {
    pub(super) node: String,
    /// `None`: its Node tells no address of the family.
    pub(super) source: Option<IpAddr>,
    /// Only by this interface (`iptablesNATOutgoingInterfaceFilter`).
    pub(super) interface: Option<String>,
}

impl Translated {
    /// What becomes of a packet that leaves `node` for what is beyond it; `None`: it keeps its source.
    pub(super) fn of(entries: &[Entry], nodes: &Nodes, node: &str, src: IpAddr, dst: IpAddr) -> Option<Self> {
        let mut inputs = Inputs::new(node);
        for e in entries.iter().filter(|e| KINDS.contains(&e.key.kind)) {
            inputs.apply(&SyncEvent::Upsert(e.clone()));
        }
        let around = around::settings(&inputs).around;
        let from_nat_pool = around.pools.iter().any(|(cidr, nat)| *nat && cidr.contains(&src));
        let to_pool = around.pools.iter().any(|(cidr, _)| cidr.contains(&dst));
        let to_node = around.exclude_nodes && around.nodes.iter().any(|net| net.contains(&dst));
        if !from_nat_pool || to_pool || to_node {
            return None;
        }
        let fits = |a: &IpAddr| a.is_ipv4() == src.is_ipv4();
        let source = around.nat_address.filter(fits).or_else(|| nodes.addresses(node).into_iter().find(fits));
        Some(Self { node: node.to_owned(), source, interface: around.nat_interface })
    }

    /// A sentence for the screen.
    pub(super) fn sentence(&self) -> String {
        let by = self.interface.iter().map(|i| format!(" by {i} (by others it keeps its own)"));
        let by: String = by.collect();
        match self.source {
            Some(source) => format!("{} sends it on{by} with the source {source} (natOutgoing)", self.node),
            None => format!(
                "{0} sends it on{by} with an address of its own as source (natOutgoing), which Node {0} does not tell: \
                 what follows is about the pod's",
                self.node
            ),
        }
    }

    pub(super) fn json(&self) -> Value {
        json!({"node": self.node, "source": self.source, "interface": self.interface})
    }
}
