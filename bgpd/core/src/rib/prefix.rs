//! The two prefix types as one: what the tables need to know of a family.

use std::{
    fmt,
    hash::Hash,
    net::{IpAddr, Ipv4Addr},
};

use bytes::BytesMut;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    af::Family,
    wire::{EmitError, NextHop, UpdateBuilder, WireCx, WirePrefix},
};

/// A prefix of one family.
/// The default value is the prefix of everything.
pub(super) trait Prefix: WirePrefix + Copy + Default + Eq + Ord + Hash + fmt::Debug {
    const FAMILY: Family;
    /// As a prefix of either family.
    fn net(self) -> IpNet;
    /// Starts a message that announces. `block` was encoded with [`classic`](Self::classic) as next hop.
    fn announce<'o, 'b>(
        cx: &WireCx,
        next_hop: &NextHop,
        block: &'b [u8],
        out: &'o mut BytesMut,
    ) -> Result<UpdateBuilder<'o, 'b, Self>, EmitError>;
    /// Starts a message that withdraws.
    fn withdraw<'o>(cx: &WireCx, out: &'o mut BytesMut) -> UpdateBuilder<'o, 'static, Self>;
    /// The next hop as the NEXT_HOP attribute, where the family has it there.
    fn classic(next_hop: &NextHop) -> Option<Ipv4Addr>;
    /// The bits, for the hash table.
    fn key(self) -> u128;
    /// Our address as a next hop of this family.
    fn own_next_hop(address: IpAddr) -> Option<NextHop>;
    /// Whether a next hop can stand in an UPDATE of this family without RFC 8950.
    fn fits(next_hop: &NextHop) -> bool;
}

impl Prefix for Ipv4Net {
    const FAMILY: Family = Family::Ipv4Unicast;
    fn net(self) -> IpNet {
        IpNet::V4(self)
    }
    fn announce<'o, 'b>(
        cx: &WireCx,
        next_hop: &NextHop,
        block: &'b [u8],
        out: &'o mut BytesMut,
    ) -> Result<UpdateBuilder<'o, 'b, Self>, EmitError> {
        if Self::fits(next_hop) {
            Ok(UpdateBuilder::<Self>::announce(cx, block, out))
        } else {
            Err(EmitError::NextHopFamily)
        }
    }
    fn withdraw<'o>(cx: &WireCx, out: &'o mut BytesMut) -> UpdateBuilder<'o, 'static, Self> {
        UpdateBuilder::<Self>::withdraw(cx, out)
    }
    fn classic(next_hop: &NextHop) -> Option<Ipv4Addr> {
        match next_hop {
            NextHop::V4(a) => Some(*a),
            NextHop::V6 { .. } => None,
        }
    }
    fn key(self) -> u128 {
        u128::from(self.addr().to_bits()) << 8 | u128::from(self.prefix_len())
    }
    fn own_next_hop(address: IpAddr) -> Option<NextHop> {
        match address {
            IpAddr::V4(a) => Some(NextHop::V4(a)),
            IpAddr::V6(_) => None,
        }
    }
    fn fits(next_hop: &NextHop) -> bool {
        matches!(next_hop, NextHop::V4(_))
    }
}

impl Prefix for Ipv6Net {
    const FAMILY: Family = Family::Ipv6Unicast;
    fn net(self) -> IpNet {
        IpNet::V6(self)
    }
    fn announce<'o, 'b>(
        cx: &WireCx,
        next_hop: &NextHop,
        block: &'b [u8],
        out: &'o mut BytesMut,
    ) -> Result<UpdateBuilder<'o, 'b, Self>, EmitError> {
        UpdateBuilder::<Self>::announce(cx, next_hop, block, out)
    }
    fn withdraw<'o>(cx: &WireCx, out: &'o mut BytesMut) -> UpdateBuilder<'o, 'static, Self> {
        UpdateBuilder::<Self>::withdraw(cx, out)
    }
    fn classic(_: &NextHop) -> Option<Ipv4Addr> {
        None
    }
    fn key(self) -> u128 {
        // The length goes where a network of that length has host bits, which are zero, or is 128.
        self.addr().to_bits().rotate_left(64) ^ u128::from(self.prefix_len())
    }
    fn own_next_hop(address: IpAddr) -> Option<NextHop> {
        match address {
            IpAddr::V6(a) => Some(NextHop::V6 { global: a, link_local: None }),
            IpAddr::V4(_) => None,
        }
    }
    fn fits(next_hop: &NextHop) -> bool {
        matches!(next_hop, NextHop::V6 { .. })
    }
}
