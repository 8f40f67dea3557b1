//! Requests as bytes: header plus a netlink-packet-route message.

use std::net::IpAddr;

use netlink_packet_core::Emitable;
use netlink_packet_route::{
    AddressFamily,
    route::{
        RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags, RouteVia,
    },
};

use super::{
    socket::HEADER,
    types::{NextHop, Route},
};

pub(crate) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Appends one message to `out`.
pub(crate) fn message(out: &mut Vec<u8>, kind: u16, flags: u16, seq: u32, body: &impl Emitable) {
    let start = out.len();
    let len = HEADER + body.buffer_len();
    out.resize(start + len.next_multiple_of(4), 0);
    if let Some(slot) = out.get_mut(start + HEADER..start + len) {
        body.emit(slot);
    }
    let head = header(len, kind, flags, seq);
    if let Some(slot) = out.get_mut(start..start + HEADER) {
        slot.copy_from_slice(&head);
    }
}

/// `struct nlmsghdr`; the port is filled in by the kernel.
fn header(len: usize, kind: u16, flags: u16, seq: u32) -> [u8; HEADER] {
    let mut h = [0; HEADER];
    h[0..4].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    h[4..6].copy_from_slice(&kind.to_ne_bytes());
    h[6..8].copy_from_slice(&flags.to_ne_bytes());
    h[8..12].copy_from_slice(&seq.to_ne_bytes());
    h
}

fn gateway(dst: IpAddr, gw: IpAddr) -> RouteAttribute {
    match (dst, gw) {
        // RFC 5549: an IPv4 destination through an IPv6 neighbour travels in RTA_VIA.
        (IpAddr::V4(_), IpAddr::V6(six)) => RouteAttribute::Via(RouteVia::Inet6(six)),
        (_, gw) => RouteAttribute::Gateway(gw.into()),
    }
}

fn hop(dst: IpAddr, h: &NextHop) -> RouteNextHop {
    let mut nh = RouteNextHop::default();
    nh.interface_index = h.dev.unwrap_or(0);
    nh.hops = u8::try_from(h.weight.saturating_sub(1)).unwrap_or(u8::MAX);
    if h.onlink {
        nh.flags = RouteNextHopFlags::Onlink;
    }
    nh.attributes.extend(h.gateway.map(|g| gateway(dst, g)));
    nh
}

/// The body of a NEWROUTE.
pub(crate) fn route(r: &Route) -> RouteMessage {
    let dst = r.dst.addr();
    let mut m = RouteMessage::default();
    m.header.address_family = family(dst);
    m.header.destination_prefix_length = r.dst.prefix_len();
    m.header.tos = r.tos;
    m.header.protocol = r.protocol.into();
    m.header.scope = r.scope.into();
    m.header.kind = u8::from(r.kind).into();
    match u8::try_from(r.table) {
        Ok(t) => m.header.table = t,
        Err(_) => m.attributes.push(RouteAttribute::Table(r.table)),
    }
    if r.dst.prefix_len() > 0 {
        m.attributes.push(RouteAttribute::Destination(dst.into()));
    }
    if r.metric != 0 {
        m.attributes.push(RouteAttribute::Priority(r.metric));
    }
    m.attributes.extend(r.src.map(|s| RouteAttribute::PrefSource(s.into())));
    m.attributes.extend(r.mtu.map(|n| RouteAttribute::Metrics(vec![RouteMetric::Mtu(n)])));
    match r.hops.as_slice() {
        [] => {}
        [one] => {
            if one.onlink {
                m.header.flags = RouteFlags::Onlink;
            }
            m.attributes.extend(one.dev.map(RouteAttribute::Oif));
            m.attributes.extend(one.gateway.map(|g| gateway(dst, g)));
        }
        many => m.attributes.push(RouteAttribute::MultiPath(many.iter().map(|h| hop(dst, h)).collect())),
    }
    m
}

/// The body of a DELROUTE: table, destination, metric, kind, protocol and next hops must match, so that a foreign
/// route to the same destination is never hit. The scope is left open (the kernel fills in its own).
pub(crate) fn route_del(r: &Route) -> RouteMessage {
    let mut m = route(&Route { src: None, mtu: None, ..r.clone() });
    m.header.scope = super::types::scope::NOWHERE.into();
    m
}
