//! Reading links, addresses, routes, neighbours and errors out of message payloads.
//!
//! Attributes that are not asked for are skipped by length, so a newer kernel can add what it likes. A header or an
//! attribute that is too short is an error text, never a panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_CAPPED, NlasIterator};

use super::{
    socket::HEADER,
    types::{Addr, Link, Mac, Neigh, NextHop, Route, RouteKind},
};

/// `RTM_*` and `NLMSG_*` numbers used on both directions.
pub(crate) mod msg {
    pub(crate) const NOOP: u16 = 1;
    pub(crate) const ERROR: u16 = 2;
    pub(crate) const DONE: u16 = 3;
    pub(crate) const OVERRUN: u16 = 4;
    pub(crate) const NEWLINK: u16 = 16;
    pub(crate) const DELLINK: u16 = 17;
    pub(crate) const GETLINK: u16 = 18;
    pub(crate) const SETLINK: u16 = 19;
    pub(crate) const NEWADDR: u16 = 20;
    pub(crate) const DELADDR: u16 = 21;
    pub(crate) const GETADDR: u16 = 22;
    pub(crate) const NEWROUTE: u16 = 24;
    pub(crate) const DELROUTE: u16 = 25;
    pub(crate) const GETROUTE: u16 = 26;
    pub(crate) const NEWNEIGH: u16 = 28;
    pub(crate) const DELNEIGH: u16 = 29;
    pub(crate) const GETNEIGH: u16 = 30;
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 1 << 3;
const IFF_LOWER_UP: u32 = 1 << 16;
const RTNH_F_DEAD: u32 = 1;
const RTNH_F_ONLINK: u32 = 4;

type Attr<'a> = (u16, &'a [u8]);

/// Splits a payload into its fixed header and its attributes.
fn split(
    payload: &[u8],
    header: usize,
) -> Result<(&[u8], impl Iterator<Item = Result<Attr<'_>, String>>), String> {
    let (head, rest) = payload
        .split_at_checked(header)
        .ok_or_else(|| format!("{} bytes where a header has {header}", payload.len()))?;
    Ok((head, attrs(rest)))
}

fn attrs(bytes: &[u8]) -> impl Iterator<Item = Result<Attr<'_>, String>> {
    let mut at = 0;
    NlasIterator::new(bytes).map(move |a| {
        let a = a.map_err(|e| e.to_string())?;
        let len = usize::from(a.length());
        let value = bytes.get(at + 4..at + len).ok_or("attribute beyond the end")?;
        at += len.next_multiple_of(4);
        Ok((a.kind(), value))
    })
}

fn u8_at(b: &[u8], at: usize) -> u8 {
    b.get(at).copied().unwrap_or(0)
}

fn u16_of(b: &[u8]) -> Result<u16, String> {
    b.get(..2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes).ok_or_else(|| short(b, 2))
}

fn u32_of(b: &[u8]) -> Result<u32, String> {
    b.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes).ok_or_else(|| short(b, 4))
}

fn u32_at(b: &[u8], at: usize) -> Result<u32, String> {
    u32_of(b.get(at..).unwrap_or_default())
}

fn short(b: &[u8], want: usize) -> String {
    format!("attribute of {} bytes where {want} are needed", b.len())
}

fn text(b: &[u8]) -> String {
    String::from_utf8_lossy(b.split(|c| *c == 0).next().unwrap_or_default()).into_owned()
}

fn ip(b: &[u8]) -> Result<IpAddr, String> {
    if let Ok(four) = <[u8; 4]>::try_from(b) {
        Ok(Ipv4Addr::from(four).into())
    } else if let Ok(sixteen) = <[u8; 16]>::try_from(b) {
        Ok(Ipv6Addr::from(sixteen).into())
    } else {
        Err(format!("address of {} bytes", b.len()))
    }
}

/// `struct rtvia`: family, address.
fn via(b: &[u8]) -> Result<IpAddr, String> {
    ip(b.get(2..).unwrap_or_default())
}

/// A NEWLINK or DELLINK payload.
pub(crate) fn link(payload: &[u8]) -> Result<Link, String> {
    let (head, attrs) = split(payload, 16)?;
    let flags = u32_at(head, 8)?;
    let mut l = Link {
        index: u32_at(head, 4)?,
        up: flags & IFF_UP != 0,
        carrier: flags & IFF_LOWER_UP != 0,
        loopback: flags & IFF_LOOPBACK != 0,
        ..Link::default()
    };
    for a in attrs {
        match a? {
            (1, v) => l.mac = <[u8; 6]>::try_from(v).ok().map(Mac),
            (3, v) => l.name = text(v),
            (4, v) => l.mtu = u32_of(v)?,
            (5, v) => l.link = Some(u32_of(v)?),
            (10, v) => l.master = Some(u32_of(v)?).filter(|m| *m != 0),
            (18, v) => {
                for info in self::attrs(v) {
                    if let (1, v) = info? {
                        l.kind = Some(text(v));
                    }
                }
            }
            (37, v) => l.peer_netns = Some(u32_of(v)?.cast_signed()),
            _ => {}
        }
    }
    Ok(l)
}

/// A NEWADDR or DELADDR payload; none for families other than IPv4 and IPv6.
pub(crate) fn addr(payload: &[u8]) -> Result<Option<Addr>, String> {
    let (head, attrs) = split(payload, 8)?;
    if !matches!(u8_at(head, 0), AF_INET | AF_INET6) {
        return Ok(None);
    }
    let prefix = u8_at(head, 1);
    let (mut address, mut local) = (None, None);
    let mut flags = u32::from(u8_at(head, 2));
    for a in attrs {
        match a? {
            (1, v) => address = Some(ip(v)?),
            (2, v) => local = Some(ip(v)?),
            (8, v) => flags = u32_of(v)?,
            _ => {}
        }
    }
    // On a point-to-point device IFA_ADDRESS is the far end and IFA_LOCAL ours; elsewhere they are equal.
    let own = local.or(address).ok_or("address message without an address")?;
    let net = IpNet::new(own, prefix).map_err(|_| format!("prefix length {prefix} of {own}"))?;
    let peer = address.filter(|a| local.is_some_and(|l| l != *a));
    Ok(Some(Addr { link: u32_at(head, 4)?, net, scope: u8_at(head, 3), flags, peer }))
}

/// A NEWROUTE or DELROUTE payload; none for families other than IPv4 and IPv6 and for cached entries.
pub(crate) fn route(payload: &[u8]) -> Result<Option<Route>, String> {
    const RTM_F_CLONED: u32 = 0x200;
    let (head, attrs) = split(payload, 12)?;
    let family = u8_at(head, 0);
    let flags = u32_at(head, 8)?;
    let mut dst: IpAddr = match family {
        AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return Ok(None),
    };
    if flags & RTM_F_CLONED != 0 {
        return Ok(None);
    }
    let prefix = u8_at(head, 1);
    let mut single = NextHop {
        dev: None,
        gateway: None,
        onlink: flags & RTNH_F_ONLINK != 0,
        weight: 1,
        dead: flags & RTNH_F_DEAD != 0,
    };
    let mut r = Route {
        table: u8_at(head, 4).into(),
        protocol: u8_at(head, 5),
        scope: u8_at(head, 6),
        kind: RouteKind::from(u8_at(head, 7)),
        metric: 0,
        tos: u8_at(head, 3),
        src: None,
        mtu: None,
        hops: Vec::new(),
        dst: IpNet::from(dst),
    };
    for a in attrs {
        match a? {
            (1, v) => dst = ip(v)?,
            (4, v) => single.dev = Some(u32_of(v)?),
            (5, v) => single.gateway = Some(ip(v)?),
            (6, v) => r.metric = u32_of(v)?,
            (7, v) => r.src = Some(ip(v)?),
            (8, v) => {
                for metric in self::attrs(v) {
                    if let (2, v) = metric? {
                        r.mtu = Some(u32_of(v)?);
                    }
                }
            }
            (9, v) => r.hops = hops(v)?,
            (15, v) => r.table = u32_of(v)?,
            (18, v) => single.gateway = via(v).ok(),
            _ => {}
        }
    }
    r.dst = IpNet::new(dst, prefix).map_err(|_| format!("prefix length {prefix} of {dst}"))?;
    // The kernel attaches lo to IPv6 blackholes; a route that sends nothing has no way out.
    let nowhere = matches!(
        r.kind,
        RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit | RouteKind::Throw
    );
    if r.hops.is_empty() && !nowhere && (single.dev.is_some() || single.gateway.is_some()) {
        r.hops = vec![single];
    }
    Ok(Some(r))
}

/// RTA_MULTIPATH: a list of `struct rtnexthop`.
fn hops(mut b: &[u8]) -> Result<Vec<NextHop>, String> {
    let mut all = Vec::new();
    while !b.is_empty() {
        let len = usize::from(u16_of(b)?);
        let hop = b.get(..len).filter(|_| len >= 8).ok_or_else(|| format!("next hop of {len} bytes"))?;
        let mut nh = NextHop {
            dev: Some(u32_at(hop, 4)?),
            gateway: None,
            onlink: u32::from(u8_at(hop, 2)) & RTNH_F_ONLINK != 0,
            weight: u16::from(u8_at(hop, 3)) + 1,
            dead: u32::from(u8_at(hop, 2)) & RTNH_F_DEAD != 0,
        };
        for a in attrs(hop.get(8..).unwrap_or_default()) {
            match a? {
                (5, v) => nh.gateway = Some(ip(v)?),
                (18, v) => nh.gateway = via(v).ok(),
                _ => {}
            }
        }
        all.push(nh);
        b = b.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(all)
}

/// A NEWNEIGH or DELNEIGH payload; none for bridge entries.
pub(crate) fn neigh(payload: &[u8]) -> Result<Option<Neigh>, String> {
    let (head, attrs) = split(payload, 12)?;
    if !matches!(u8_at(head, 0), AF_INET | AF_INET6) {
        return Ok(None);
    }
    let (mut addr, mut mac) = (None, None);
    for a in attrs {
        match a? {
            (1, v) => addr = Some(ip(v)?),
            (2, v) => mac = <[u8; 6]>::try_from(v).ok().map(Mac),
            _ => {}
        }
    }
    let state = u16_of(head.get(8..).unwrap_or_default())?;
    Ok(addr.map(|addr| Neigh { link: u32_at(head, 4).unwrap_or(0), addr, mac, state }))
}

/// An NLMSG_ERROR payload: positive errno (0 = acknowledgement) and the extended acknowledgement's text.
pub(crate) fn error(payload: &[u8], flags: u16) -> Result<(i32, Option<String>), String> {
    let code = u32_of(payload)?.cast_signed();
    let errno = code.checked_neg().unwrap_or(i32::MAX);
    if flags & NLM_F_ACK_TLVS == 0 {
        return Ok((errno, None));
    }
    // Behind the code: the header of the request and, unless capped, its body; then the attributes.
    let echoed =
        if flags & NLM_F_CAPPED != 0 { HEADER } else { u32_at(payload, 4).map_or(HEADER, |n| n as usize) };
    let tlvs = payload.get(4usize.saturating_add(echoed.next_multiple_of(4))..).unwrap_or_default();
    let words = attrs(tlvs).flatten().find(|(kind, _)| *kind == 1).map(|(_, v)| text(v));
    Ok((errno, words.filter(|w| !w.is_empty())))
}

/// An NLMSG_DONE payload: positive errno, 0 = complete.
pub(crate) fn done(payload: &[u8]) -> i32 {
    u32_of(payload).map_or(0, |c| c.cast_signed().checked_neg().unwrap_or(i32::MAX))
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
