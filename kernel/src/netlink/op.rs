//! Single changes as values. [`super::Rtnl::run`] sends any number of them in one system call.

use std::os::fd::{AsRawFd, RawFd};

use ipnet::IpNet;
use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourMessage},
    route::RouteType,
};

use super::{
    decode::msg,
    encode,
    types::{Addr, Mac, Neigh, Route},
};
use crate::netns::NetNs;

/// A device by index or by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkRef<'a> {
    Index(u32),
    Name(&'a str),
}

impl From<u32> for LinkRef<'_> {
    fn from(i: u32) -> Self {
        Self::Index(i)
    }
}

impl<'a> From<&'a str> for LinkRef<'a> {
    fn from(n: &'a str) -> Self {
        Self::Name(n)
    }
}

impl<'a> From<&'a String> for LinkRef<'a> {
    fn from(n: &'a String) -> Self {
        Self::Name(n)
    }
}

impl std::fmt::Display for LinkRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index(i) => write!(f, "{i}"),
            Self::Name(n) => f.write_str(n),
        }
    }
}

/// The far end of a veth pair. It is born down: the kernel opens it before the pair is joined, and refuses that.
#[derive(Clone, Copy, Debug, Default)]
pub struct VethPeer<'a> {
    pub name: &'a str,
    pub mac: Option<Mac>,
    /// Where it is born; none = beside the near end.
    pub netns: Option<&'a NetNs>,
}

/// A veth pair, created whole in one message.
#[derive(Clone, Copy, Debug, Default)]
pub struct Veth<'a> {
    pub name: &'a str,
    pub mac: Option<Mac>,
    /// MTU of both ends; none = 1500.
    pub mtu: Option<u32>,
    /// Bring the near end up at once.
    pub up: bool,
    pub peer: VethPeer<'a>,
}

/// One change to the kernel, encoded. Refers to namespaces by descriptor: keep the [`NetNs`] open until it is sent.
#[derive(Clone, Debug)]
pub struct Op {
    pub(crate) what: String,
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) body: Vec<u8>,
}

fn op(what: String, kind: u16, flags: u16, body: &impl Emitable) -> Op {
    let mut bytes = vec![0; body.buffer_len()];
    body.emit(&mut bytes);
    Op { what, kind, flags: NLM_F_REQUEST | NLM_F_ACK | flags, body: bytes }
}

fn link(of: LinkRef<'_>) -> LinkMessage {
    let mut m = LinkMessage::default();
    match of {
        LinkRef::Index(i) => m.header.index = i,
        LinkRef::Name(n) => m.attributes.push(LinkAttribute::IfName(n.to_owned())),
    }
    m
}

fn end(name: &str, mac: Option<Mac>, mtu: Option<u32>, up: bool) -> LinkMessage {
    let mut m = link(LinkRef::Name(name));
    m.attributes.extend(mac.map(|m| LinkAttribute::Address(m.0.to_vec())));
    m.attributes.extend(mtu.map(LinkAttribute::Mtu));
    if up {
        m.header.flags = LinkFlags::Up;
        m.header.change_mask = LinkFlags::Up;
    }
    m
}

impl Op {
    /// What it attempts, as errors name it.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Creates a veth pair.
    pub fn add_veth(v: &Veth<'_>) -> Self {
        let mut peer = end(v.peer.name, v.peer.mac, v.mtu, false);
        let fd: Option<RawFd> = v.peer.netns.map(AsRawFd::as_raw_fd);
        peer.attributes.extend(fd.map(LinkAttribute::NetNsFd));
        let mut m = end(v.name, v.mac, v.mtu, v.up);
        m.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let what = format!("add veth {} with peer {}", v.name, v.peer.name);
        op(what, msg::NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &m)
    }

    /// Creates a device that needs no parameters: `bridge`, `dummy`, `ipip`, `ifb`, …
    pub fn add_link(name: &str, kind: &str, mtu: Option<u32>, up: bool) -> Self {
        let mut m = end(name, None, mtu, up);
        m.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Other(kind.to_owned()))]));
        op(format!("add {kind} device {name}"), msg::NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &m)
    }

    /// Brings a device up or down.
    pub fn set_up<'a>(of: impl Into<LinkRef<'a>>, up: bool) -> Self {
        let of = of.into();
        let mut m = link(of);
        m.header.change_mask = LinkFlags::Up;
        if up {
            m.header.flags = LinkFlags::Up;
        }
        op(format!("set device {of} {}", if up { "up" } else { "down" }), msg::SETLINK, 0, &m)
    }

    pub fn set_mtu<'a>(of: impl Into<LinkRef<'a>>, mtu: u32) -> Self {
        let of = of.into();
        Self::set_link(of, format!("set mtu of {of} to {mtu}"), LinkAttribute::Mtu(mtu))
    }

    pub fn set_mac<'a>(of: impl Into<LinkRef<'a>>, mac: Mac) -> Self {
        let of = of.into();
        Self::set_link(of, format!("set address of {of} to {mac}"), LinkAttribute::Address(mac.0.to_vec()))
    }

    /// Makes a device a port of a bridge (index), or frees it (none).
    pub fn set_master<'a>(of: impl Into<LinkRef<'a>>, master: Option<u32>) -> Self {
        let of = of.into();
        let master = master.unwrap_or(0);
        Self::set_link(of, format!("set master of {of} to {master}"), LinkAttribute::Controller(master))
    }

    /// Moves a device into another namespace.
    pub fn set_netns<'a>(of: impl Into<LinkRef<'a>>, ns: &NetNs) -> Self {
        let of = of.into();
        Self::set_link(of, format!("move {of} to {ns}"), LinkAttribute::NetNsFd(ns.as_raw_fd()))
    }

    /// Renames a device (by index).
    pub fn rename(index: u32, name: &str) -> Self {
        let what = format!("rename device {index} to {name}");
        Self::set_link(LinkRef::Index(index), what, LinkAttribute::IfName(name.to_owned()))
    }

    fn set_link(of: LinkRef<'_>, what: String, attribute: LinkAttribute) -> Self {
        let mut m = link(of);
        m.attributes.push(attribute);
        op(what, msg::SETLINK, 0, &m)
    }

    pub fn del_link<'a>(of: impl Into<LinkRef<'a>>) -> Self {
        let of = of.into();
        op(format!("delete device {of}"), msg::DELLINK, 0, &link(of))
    }

    /// Adds an address; EEXIST if it is there.
    pub fn add_addr(a: &Addr) -> Self {
        op(
            format!("add address {} to device {}", a.net, a.link),
            msg::NEWADDR,
            NLM_F_CREATE | NLM_F_EXCL,
            &address(a),
        )
    }

    pub fn del_addr(link: u32, net: IpNet) -> Self {
        op(
            format!("delete address {net} from device {link}"),
            msg::DELADDR,
            0,
            &address(&Addr::new(link, net)),
        )
    }

    /// Adds a route; EEXIST if one with the same destination and metric is there.
    pub fn add_route(r: &Route) -> Self {
        op(format!("add route {r}"), msg::NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &encode::route(r))
    }

    /// Adds a route or puts it in the place of one with the same destination and metric, without a gap.
    pub fn replace_route(r: &Route) -> Self {
        op(format!("replace route {r}"), msg::NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &encode::route(r))
    }

    pub fn del_route(r: &Route) -> Self {
        op(format!("delete route {r}"), msg::DELROUTE, 0, &encode::route_del(r))
    }

    /// Adds a neighbour entry or overwrites it.
    pub fn set_neigh(n: &Neigh) -> Self {
        let what = format!("set neighbour {} of device {}", n.addr, n.link);
        op(what, msg::NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &neighbour(n))
    }

    pub fn del_neigh(link: u32, addr: std::net::IpAddr) -> Self {
        let n = Neigh { link, addr, mac: None, state: 0 };
        op(format!("delete neighbour {addr} of device {link}"), msg::DELNEIGH, 0, &neighbour(&n))
    }
}

fn address(a: &Addr) -> AddressMessage {
    let mut m = AddressMessage::default();
    m.header.family = encode::family(a.net.addr());
    m.header.prefix_len = a.net.prefix_len();
    m.header.scope = a.scope.into();
    m.header.index = a.link;
    m.attributes.push(AddressAttribute::Local(a.net.addr()));
    m.attributes.push(AddressAttribute::Address(a.peer.unwrap_or(a.net.addr())));
    if a.flags != 0 {
        m.attributes.push(AddressAttribute::Flags(AddressFlags::from_bits_retain(a.flags)));
    }
    m
}

fn neighbour(n: &Neigh) -> NeighbourMessage {
    let mut m = NeighbourMessage::default();
    m.header.family = encode::family(n.addr);
    m.header.ifindex = n.link;
    m.header.state = n.state.into();
    m.header.kind = RouteType::Unspec;
    m.attributes.push(NeighbourAttribute::Destination(n.addr.into()));
    m.attributes.extend(n.mac.map(|m| NeighbourAttribute::LinkLayerAddress(m.0.to_vec())));
    m
}
