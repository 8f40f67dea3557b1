//! The address of a node's tunnel device. It comes from the pools like any other, under a handle of the node's own,
//! so that no pod is ever given it and every other agent can find whose it is.

use std::{collections::BTreeMap, net::IpAddr};

use brindle_config_core::pool::AllowedUse;

use crate::{
    allocator::{AssignRequest, BlockAllocator, Wanted},
    block::{Owner, Release, same_handle},
    error::IpamError,
    pools::View,
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

    const fn is_v6(self) -> bool {
        matches!(self, Self::VxlanV6)
    }
}

impl BlockAllocator {
    /// The tunnel address of this host, from one of the named pools (those with this encapsulation). The present one
    /// is kept while it is really ours and its pool still allowed; leftovers of the handle are given back.
    pub async fn ensure_tunnel_address(
        &mut self,
        kind: TunnelKind,
        pools: &[String],
        current: Option<IpAddr>,
        view: &View,
        now: Now,
    ) -> Result<IpAddr, IpamError> {
        let handle = kind.handle(&self.host);
        let held = self.addresses_of(&handle).await?;
        let allowed = |ip: &IpAddr| {
            let pool = view.pool_of(*ip);
            pool.is_some_and(|p| {
                p.spec.allows(AllowedUse::Tunnel)
                    && (pools.is_empty()
                        || pools.iter().any(|n| *n == p.name || *n == p.spec.cidr.to_string()))
            })
        };
        // Ours by the records, whatever the Node says; the one the Node names if there are several.
        let keep = current.filter(|c| held.contains(c) && allowed(c));
        let keep = keep.or_else(|| held.iter().copied().find(allowed));
        let surplus: Vec<Release> = held
            .iter()
            .filter(|ip| Some(**ip) != keep)
            .map(|ip| Release { ip: *ip, handle: Some(handle.clone()), sequence: None })
            .collect();
        if !surplus.is_empty() {
            self.free_addresses(&surplus, view, now).await?;
        }
        if let Some(ip) = keep {
            return Ok(ip);
        }
        let owner = Owner {
            handle,
            attributes: BTreeMap::from([
                ("node".to_owned(), self.host.clone()),
                ("type".to_owned(), kind.attribute().to_owned()),
            ]),
        };
        let wanted = Wanted { count: 1, pools: pools.to_vec() };
        let (v4, v6) = if kind.is_v6() { (Wanted::default(), wanted) } else { (wanted, Wanted::default()) };
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
                given.refusal().cloned().unwrap_or_else(|| Refusal::from(Reason::NoPools)),
            )),
        }
    }

    /// Gives the tunnel address back (the last pool with this encapsulation is gone).
    pub async fn release_tunnel_address(
        &mut self,
        kind: TunnelKind,
        view: &View,
        now: Now,
    ) -> Result<Vec<IpAddr>, IpamError> {
        let handle = kind.handle(&self.host);
        debug_assert!(same_handle(&handle, &kind.handle(&self.host)));
        self.free_handle(&handle, view, now).await
    }
}
