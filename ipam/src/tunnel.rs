//! The address of a node's tunnel device. It comes from the pools like any other, under a handle of the node's own,
//! so that no pod is ever given it and every other agent can find whose it is. Which address that should be is decided
//! here ([`wish`]); an old one is given back by [`BlockAllocator::release_tunnel_addresses`] only, when the caller knows
//! that nothing uses it any more.

use std::{collections::BTreeMap, net::IpAddr};

use brindle_config_core::pool::{AllowedUse, EncapMode, IpPoolSpec};

use crate::{
    allocator::{AssignRequest, BlockAllocator, Wanted},
    block::{Owner, Release},
    error::IpamError,
    pools::{Family, Pool, View},
    refusal::{Reason, Refusal},
    time::Now,
};

/// Kinds of tunnel device that carry an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelKind {
    Ipip,
    Vxlan,
    VxlanV6,
}

impl TunnelKind {
    /// `ipip-tunnel-addr-<node>`.
    pub fn handle(self, node: &str) -> String {
        let prefix = match self {
            Self::Ipip => "ipip-tunnel-addr",
            Self::Vxlan => "vxlan-tunnel-addr",
            Self::VxlanV6 => "vxlan-v6-tunnel-addr",
        };
        format!("{prefix}-{node}")
    }

    /// Value of the `type` attribute.
    const fn attribute(self) -> &'static str {
        match self {
            Self::Ipip => "ipipTunnelAddress",
            Self::Vxlan => "vxlanTunnelAddress",
            Self::VxlanV6 => "vxlanV6TunnelAddress",
        }
    }

    const fn family(self) -> Family {
        match self {
            Self::Ipip | Self::Vxlan => Family::V4,
            Self::VxlanV6 => Family::V6,
        }
    }

    /// Whether packets of the pool travel in tunnels of this kind.
    fn carries(self, pool: &IpPoolSpec) -> bool {
        let mode = match self {
            Self::Ipip => pool.ipip_mode,
            Self::Vxlan | Self::VxlanV6 => pool.vxlan_mode,
        };
        mode != EncapMode::Never && Family::of(&pool.cidr) == self.family()
    }
}

/// Which address a tunnel device should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TunnelWish {
    /// None: no pool has this encapsulation.
    Nothing,
    /// This one, which the node holds and which is allowed.
    Keep(IpAddr),
    /// A new one from one of these pools. `instead` is held and no longer allowed: it stays in use until then, and where
    /// these pools have none to give.
    Take { pools: Vec<String>, instead: Option<IpAddr> },
    /// This one, though it is no longer allowed: there is no pool another could come from.
    Hold(IpAddr, Refusal),
    /// There is none, and no pool one could come from.
    Lack(Refusal),
}

/// Decides about the tunnel address of a node that holds `held` by the records and whose Node names `current`. Pools count
/// that have this encapsulation; of them one gives addresses that is enabled, selects the node (by the labels of the
/// view) and is for tunnels. Where addresses may be held but not taken, a device in use is not left without one.
pub fn wish(
    kind: TunnelKind,
    node: &str,
    view: &View,
    held: &[IpAddr],
    current: Option<IpAddr>,
) -> TunnelWish {
    let carrying: Vec<&Pool> =
        view.pools.iter().filter(|p| !p.terminating && kind.carries(&p.spec)).collect();
    let mut refusal = Refusal::default();
    let mut giving: Vec<&Pool> = Vec::new();
    for pool in &carrying {
        match view.tunnel_reason(pool, node) {
            None => giving.push(pool),
            Some(reason) => refusal.push(reason),
        }
    }
    view.unreadable.iter().for_each(|text| refusal.push(Reason::Unreadable(text.clone())));
    // Ours by the records, whatever the Node says; the one the Node names if there are several.
    let named = current.filter(|c| held.contains(c));
    let allowed = |ip: &IpAddr| giving.iter().any(|p| p.spec.cidr.contains(ip));
    let mut ours = named.into_iter().chain(held.iter().copied());
    if let Some(ip) = ours.clone().find(allowed) {
        return TunnelWish::Keep(ip);
    }
    let instead = ours.next();
    if carrying.is_empty() && view.unreadable.is_empty() {
        return TunnelWish::Nothing;
    }
    // A pool that does not read may well be the one that allows it.
    let doubtful =
        |ip: &IpAddr| !view.unreadable.is_empty() && !view.pools.iter().any(|p| p.spec.cidr.contains(ip));
    match instead {
        Some(ip) if giving.is_empty() || doubtful(&ip) => TunnelWish::Hold(ip, refusal),
        None if giving.is_empty() => TunnelWish::Lack(refusal),
        instead => TunnelWish::Take { pools: giving.iter().map(|p| p.name.clone()).collect(), instead },
    }
}

impl View {
    /// Why a pool gives this node no tunnel address. `assignmentMode` does not matter: what it is about are pods.
    fn tunnel_reason(&self, pool: &Pool, node: &str) -> Option<Reason> {
        let name = || pool.name.clone();
        if pool.spec.disabled {
            return Some(Reason::PoolDisabled(name()));
        }
        if let Some(reason) = self.node_reason(pool, node) {
            return Some(reason);
        }
        if !pool.spec.allows(AllowedUse::Tunnel) {
            return Some(Reason::UseNotAllowed { pool: name(), wanted: AllowedUse::Tunnel });
        }
        (!pool.divisible()).then(|| Reason::BadBlockSize { pool: name(), block_size: pool.spec.block_size() })
    }
}

impl BlockAllocator {
    /// What this host holds for its tunnel device.
    pub async fn tunnel_addresses(&self, kind: TunnelKind) -> Result<Vec<IpAddr>, IpamError> {
        self.addresses_of(&kind.handle(&self.host)).await
    }

    /// Takes one address more for the tunnel device, from one of the named pools.
    pub async fn take_tunnel_address(
        &mut self,
        kind: TunnelKind,
        pools: &[String],
        view: &View,
        now: Now,
    ) -> Result<IpAddr, IpamError> {
        let owner = Owner {
            handle: kind.handle(&self.host),
            attributes: BTreeMap::from([
                ("node".to_owned(), self.host.clone()),
                ("type".to_owned(), kind.attribute().to_owned()),
            ]),
        };
        let wanted = Wanted { count: 1, pools: pools.to_vec() };
        let (v4, v6) = match kind.family() {
            Family::V4 => (wanted, Wanted::default()),
            Family::V6 => (Wanted::default(), wanted),
        };
        let request = AssignRequest {
            owner,
            v4,
            v6,
            intended_use: AllowedUse::Tunnel,
            namespace_labels: None,
            max_blocks: 0,
        };
        let given = self.assign_both(&request, view, now).await?;
        match given.addresses.first() {
            Some(a) => Ok(a.ip),
            None => Err(IpamError::Refused(
                given.refusal().cloned().unwrap_or_else(|| Refusal::from(Reason::NoPools(None))),
            )),
        }
    }

    /// Gives addresses of the tunnel device back.
    pub async fn release_tunnel_addresses(
        &mut self,
        kind: TunnelKind,
        addresses: &[IpAddr],
        view: &View,
        now: Now,
    ) -> Result<Vec<IpAddr>, IpamError> {
        let handle = kind.handle(&self.host);
        let release = |ip: &IpAddr| Release { ip: *ip, handle: Some(handle.clone()), sequence: None };
        let releases: Vec<Release> = addresses.iter().map(release).collect();
        Ok(self.free_addresses(&releases, view, now).await?.released)
    }

    /// Gives all of them back, and the handle with them (the last pool with this encapsulation is gone).
    pub async fn release_tunnel_handle(
        &mut self,
        kind: TunnelKind,
        view: &View,
        now: Now,
    ) -> Result<Vec<IpAddr>, IpamError> {
        self.free_handle(&kind.handle(&self.host), view, now).await
    }
}
