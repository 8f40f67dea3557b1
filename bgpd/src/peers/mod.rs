//! Resources to peers: which sessions this node runs, with which settings, and what it announces.
//!
//! Pure: a [`ClusterState`] (fed by the store's sync stream) goes in, a [`Plan`] comes out; nothing here opens a
//! socket or reads a clock. The same function answers the running agent, `brindle-bgpd check` and the tests.
//! Rules are those of Calico's confd (`bgp_processor.go`, `bird.cfg.template`); where its result depends on map
//! order, ours depends on names.

mod bgp_peers;
pub(crate) mod filters;
pub mod leave;
#[cfg(test)]
mod policy_tests;
mod routes;
pub mod services;
mod sessions;
mod state;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use brindle_bgpd_core::speaker::{LocalRoute, PeerConfig, SpeakerConfig};
use brindle_config_core::key::Key;

use crate::import::Imports;

pub use self::sessions::hashed_router_id;
pub use self::{
    sessions::translate,
    state::{ClusterState, KINDS, SERVICE_KINDS},
};

/// Which addresses are to be on which devices of pods.
pub type Peering = BTreeMap<String, Vec<IpAddr>>;

/// What a node's speaker should be, as of one state of the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// `None`: the node is not registered or has no address, so there is nothing to speak for; or its configuration could
    /// not be read since the start.
    pub speaker: Option<SpeakerConfig>,
    /// Where to listen. Unspecified addresses listen on everything of that family.
    pub listen: Vec<SocketAddr>,
    /// In address order.
    pub peers: Vec<PeerConfig>,
    /// In prefix order.
    pub routes: Vec<LocalRoute>,
    /// Whether the configuration wants the node-to-node mesh, and this node in it.
    pub mesh: bool,
    /// Peers that are reached through a gateway: their address, and the gateway. In address order.
    pub statics: Vec<(IpAddr, IpAddr)>,
    /// Addresses of this node that pods here peer with (localWorkloadPeeringIPV4/IPV6), by the pod's device.
    pub peering: Peering,
    /// Routes of the kernel that are announced, too.
    pub imports: Imports,
    /// What becomes of the addresses of services, sorted.
    pub services: Arc<[services::Verdict]>,
    /// What could not be done as written, in key order.
    pub problems: Vec<Problem>,
}

/// Something in the configuration that cannot be done as written: which resource, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub about: Key,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.about, self.what)
    }
}
