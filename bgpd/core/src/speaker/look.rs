//! Looking at routes in bounded steps, for answers of any size that hold nobody up. Nothing here changes anything.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;

use super::{PeerId, Speaker};
use crate::{
    af::Family,
    rib::{Export, Scan},
    wire::AttrSet,
};

impl Speaker {
    /// Prefixes of a family, a piece at a time ([`Rib::scan`](crate::rib::Rib::scan)).
    pub fn scan(
        &self,
        family: Family,
        from: u32,
        limit: u32,
        which: Scan,
        found: &mut Vec<IpNet>,
    ) -> Option<u32> {
        self.rib.scan(family, from, limit, which, found)
    }

    /// Paths that were received and may not be used, by neighbor, a piece at a time.
    pub fn scan_unusable(
        &self,
        family: Family,
        from: u32,
        limit: u32,
        counts: &mut BTreeMap<PeerId, usize>,
    ) -> Option<u32> {
        self.rib.scan_unusable(family, from, limit, counts)
    }

    /// What a neighbor was told about one prefix: path identifier (0 without add-path), attributes, next hop.
    pub fn told(&self, peer: PeerId, prefix: IpNet) -> Vec<(u32, AttrSet, Option<IpAddr>)> {
        self.rib.told(peer, prefix)
    }

    /// Whose path that is; `None`: our own.
    pub fn told_from(&self, peer: PeerId, prefix: IpNet, id: u32) -> Option<PeerId> {
        self.rib.told_from(peer, prefix, id)
    }

    /// Whether a neighbor knows of a prefix, and if not, why; `None` without a session.
    pub fn export(&self, peer: PeerId, prefix: IpNet) -> Option<Export> {
        let up = self.peers.get(&peer)?.up.as_ref()?;
        Some(self.rib.export(&up.rib, prefix))
    }

    /// Shorter prefixes that contain this one, longest first, with the neighbor of their best path (`None`: ours).
    pub fn covering(&self, prefix: IpNet) -> Vec<(IpNet, Option<PeerId>)> {
        self.rib.covering(prefix)
    }

    /// All neighbors, in the order they were configured.
    pub fn peer_ids(&self) -> impl Iterator<Item = PeerId> {
        self.peers.keys().copied()
    }

    /// Whether a neighbor that has routes here is internal, and its identifier; also while it is away and they are kept.
    pub fn source(&self, peer: PeerId) -> Option<(bool, Ipv4Addr)> {
        self.rib.source(peer)
    }

    /// Destinations in the RIB.
    pub fn prefixes(&self, family: Family) -> usize {
        self.rib.prefixes(family)
    }

    /// Whether selection is put off (RFC 4724 section 4.1).
    pub const fn deferred(&self) -> bool {
        self.rib.deferred()
    }
}
