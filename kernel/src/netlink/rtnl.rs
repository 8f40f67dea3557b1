//! The request socket: dumps, look-ups and changes, each with a deadline. Blocking.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_packet_route::{
    address::AddressMessage,
    link::{LinkAttribute, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourMessage},
    route::{RouteAttribute, RouteMessage},
};
use nix::libc;

use super::{
    decode::{self, msg},
    encode,
    error::NetlinkError,
    op::{LinkRef, Op, Veth},
    socket::{Frame, Frames, Limit, NlSocket},
    types::{Addr, Family, Link, Mac, Neigh, Route, RouteFilter},
};
use crate::netns::{NetNs, NetNsError};

/// Felix's `netlinkTimeout`.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a dump is repeated when the table changes under it.
const DUMP_ATTEMPTS: u32 = 20;
/// Messages in one `sendmsg`; 16 already reach the knee, and 128 acknowledgements fit in any receive buffer.
const CHUNK: usize = 128;
const RCVBUF: usize = 1 << 20;

/// A route netlink socket of one network namespace.
pub struct Rtnl {
    sock: NlSocket,
    timeout: Duration,
}

impl Rtnl {
    /// In the namespace of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { sock: NlSocket::open(RCVBUF)?, timeout: TIMEOUT })
    }

    /// In another namespace; the socket stays there whichever thread uses it.
    pub fn open_in(ns: &NetNs) -> Result<Self, NetlinkError> {
        inside(ns, Self::open)
    }

    /// The socket's port: what [`super::Monitor::ignore`] takes.
    pub fn port(&self) -> u32 {
        self.sock.port()
    }

    /// Limits every call from now on (10 s at first).
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    // ---- changes -------------------------------------------------------------------------------------------------

    /// Sends all changes, in order, in as few system calls as possible; the kernel carries out each of them whatever
    /// becomes of the others. One result per change.
    pub fn run(&mut self, ops: &[Op]) -> Vec<Result<(), NetlinkError>> {
        let mut results = Vec::with_capacity(ops.len());
        for chunk in ops.chunks(CHUNK) {
            self.run_chunk(chunk, &mut results);
        }
        results
    }

    /// Like [`Self::run`]; the first failure is the answer.
    pub fn run_all(&mut self, ops: &[Op]) -> Result<(), NetlinkError> {
        self.run(ops).into_iter().collect()
    }

    fn run_chunk(&mut self, ops: &[Op], results: &mut Vec<Result<(), NetlinkError>>) {
        let mut bytes = Vec::with_capacity(ops.iter().map(|o| o.body.len() + 20).sum());
        let mut slots: Vec<(u32, Option<Result<(), NetlinkError>>)> = Vec::with_capacity(ops.len());
        for (i, op) in ops.iter().enumerate() {
            let seq = self.sock.next_seq();
            // Refusals are sent in any case, and before the last one's acknowledgement, which so settles all of them.
            let flags = if i + 1 == ops.len() { op.flags } else { op.flags & !NLM_F_ACK };
            encode::message(&mut bytes, op.kind, flags, seq, &Raw(&op.body));
            slots.push((seq, None));
        }
        let first = ops.first().map_or("nothing", |o| o.what.as_str()).to_owned();
        let mut failed = self.sock.send(&bytes, &first).err();
        let limit = Limit::after(self.timeout);
        while failed.is_none() && slots.last().is_some_and(|(_, r)| r.is_none()) {
            let datagram = match self.sock.recv(Some(limit), None, &first) {
                Ok(d) => d.unwrap_or_default(),
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            };
            for frame in Frames(datagram) {
                let answer = frame.and_then(|f| match f.kind {
                    msg::ERROR => decode::error(f.payload, f.flags).map(|e| Some((f.seq, e))),
                    _ => Ok(None),
                });
                match answer {
                    Ok(None) => {}
                    Ok(Some((seq, (errno, ext)))) => {
                        if let Some(i) = slots.iter().position(|(s, r)| *s == seq && r.is_none()) {
                            let what = ops.get(i).map_or("", |o| o.what.as_str());
                            slots[i].1 = Some(refused(what, errno, ext));
                        }
                    }
                    Err(reason) => failed = Some(NetlinkError::Garbled { what: first.clone(), reason }),
                }
            }
        }
        let unsaid = failed.map_or(Ok(()), Err);
        results.extend(slots.into_iter().map(|(_, r)| r.unwrap_or_else(|| unsaid.clone())));
    }

    fn one(&mut self, op: Op) -> Result<(), NetlinkError> {
        self.run_all(std::slice::from_ref(&op))
    }

    pub fn add_veth(&mut self, v: &Veth<'_>) -> Result<(), NetlinkError> {
        self.one(Op::add_veth(v))
    }

    pub fn add_bridge(&mut self, name: &str, mtu: Option<u32>) -> Result<(), NetlinkError> {
        self.one(Op::add_link(name, "bridge", mtu, false))
    }

    /// A device without parameters: `ipip`, `dummy`, `ifb`. `is_unsupported()` when the kernel has no such kind.
    pub fn add_link_generic(&mut self, name: &str, kind: &str, mtu: Option<u32>) -> Result<(), NetlinkError> {
        self.one(Op::add_link(name, kind, mtu, false))
    }

    pub fn set_up<'a>(&mut self, of: impl Into<LinkRef<'a>>) -> Result<(), NetlinkError> {
        self.one(Op::set_up(of, true))
    }

    pub fn set_down<'a>(&mut self, of: impl Into<LinkRef<'a>>) -> Result<(), NetlinkError> {
        self.one(Op::set_up(of, false))
    }

    pub fn set_mtu<'a>(&mut self, of: impl Into<LinkRef<'a>>, mtu: u32) -> Result<(), NetlinkError> {
        self.one(Op::set_mtu(of, mtu))
    }

    pub fn set_mac<'a>(&mut self, of: impl Into<LinkRef<'a>>, mac: Mac) -> Result<(), NetlinkError> {
        self.one(Op::set_mac(of, mac))
    }

    pub fn set_master<'a>(
        &mut self,
        of: impl Into<LinkRef<'a>>,
        master: Option<u32>,
    ) -> Result<(), NetlinkError> {
        self.one(Op::set_master(of, master))
    }

    pub fn set_netns<'a>(&mut self, of: impl Into<LinkRef<'a>>, ns: &NetNs) -> Result<(), NetlinkError> {
        self.one(Op::set_netns(of, ns))
    }

    pub fn rename(&mut self, index: u32, name: &str) -> Result<(), NetlinkError> {
        self.one(Op::rename(index, name))
    }

    pub fn del_link<'a>(&mut self, of: impl Into<LinkRef<'a>>) -> Result<(), NetlinkError> {
        self.one(Op::del_link(of))
    }

    pub fn add_addr(&mut self, a: &Addr) -> Result<(), NetlinkError> {
        self.one(Op::add_addr(a))
    }

    pub fn del_addr(&mut self, link: u32, net: IpNet) -> Result<(), NetlinkError> {
        self.one(Op::del_addr(link, net))
    }

    pub fn add_route(&mut self, r: &Route) -> Result<(), NetlinkError> {
        self.one(Op::add_route(r))
    }

    pub fn replace_route(&mut self, r: &Route) -> Result<(), NetlinkError> {
        self.one(Op::replace_route(r))
    }

    pub fn del_route(&mut self, r: &Route) -> Result<(), NetlinkError> {
        self.one(Op::del_route(r))
    }

    pub fn set_neigh(&mut self, n: &Neigh) -> Result<(), NetlinkError> {
        self.one(Op::set_neigh(n))
    }

    pub fn del_neigh(&mut self, link: u32, addr: IpAddr) -> Result<(), NetlinkError> {
        self.one(Op::del_neigh(link, addr))
    }

    // ---- reading -------------------------------------------------------------------------------------------------

    /// All devices.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let body = LinkMessage::default();
        self.dump("list devices", msg::GETLINK, &body, |f| match f.kind {
            msg::NEWLINK => decode::link(f.payload).map(Some),
            _ => Ok(None),
        })
    }

    /// One device by name; none if there is no such device.
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut body = LinkMessage::default();
        body.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.get_link(format!("look up device {name}"), &body)
    }

    /// One device by index; none if there is no such device.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut body = LinkMessage::default();
        body.header.index = index;
        self.get_link(format!("look up device {index}"), &body)
    }

    fn get_link(&mut self, what: String, body: &LinkMessage) -> Result<Option<Link>, NetlinkError> {
        let got = self.get(&what, msg::GETLINK, 0, body, |f| match f.kind {
            msg::NEWLINK => decode::link(f.payload).map(Some),
            _ => Ok(None),
        });
        match got {
            Ok(l) => Ok(l),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Addresses of all devices, or of one.
    pub fn addrs(&mut self, link: Option<u32>) -> Result<Vec<Addr>, NetlinkError> {
        let mut body = AddressMessage::default();
        body.header.index = link.unwrap_or(0);
        let mut all = self.dump("list addresses", msg::GETADDR, &body, |f| match f.kind {
            msg::NEWADDR => decode::addr(f.payload),
            _ => Ok(None),
        })?;
        all.retain(|a| link.is_none_or(|l| l == a.link));
        Ok(all)
    }

    /// Routes, filtered by the kernel where it can and again here.
    pub fn routes(&mut self, filter: &RouteFilter) -> Result<Vec<Route>, NetlinkError> {
        let mut all = Vec::new();
        for family in [Family::V4, Family::V6] {
            if filter.family.is_some_and(|f| f != family) {
                continue;
            }
            let mut body = RouteMessage::default();
            body.header.address_family = encode::family(family.any());
            body.header.protocol = filter.protocol.unwrap_or(0).into();
            if let Some(t) = filter.table {
                body.header.table = u8::try_from(t).unwrap_or(0);
                body.attributes.push(RouteAttribute::Table(t));
            }
            body.attributes.extend(filter.dev.map(RouteAttribute::Oif));
            let got = self.dump("list routes", msg::GETROUTE, &body, |f| match f.kind {
                msg::NEWROUTE => decode::route(f.payload).map(|r| r.filter(|r| filter.matches(r))),
                _ => Ok(None),
            });
            match got {
                Ok(mut some) if all.is_empty() => all = std::mem::take(&mut some),
                Ok(some) => all.extend(some),
                // A table nobody has created yet, and a kernel without IPv6.
                Err(e) if e.is_not_found() || (e.is_unsupported() && family == Family::V6) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    /// The route the kernel would take to `to`; none if it has none.
    pub fn route_to(&mut self, to: IpAddr) -> Result<Option<Route>, NetlinkError> {
        let mut body = RouteMessage::default();
        body.header.address_family = encode::family(to);
        body.header.destination_prefix_length = IpNet::from(to).max_prefix_len();
        body.attributes.push(RouteAttribute::Destination(to.into()));
        // RTM_F_FIB_MATCH: the entry of the table, not the cached clone for this destination.
        body.header.flags = netlink_packet_route::route::RouteFlags::FibMatch;
        let got =
            self.get(&format!("look up the route to {to}"), msg::GETROUTE, 0, &body, |f| match f.kind {
                msg::NEWROUTE => decode::route(f.payload),
                _ => Ok(None),
            });
        match got {
            Ok(r) => Ok(r),
            Err(e)
                if e.is_not_found()
                    || matches!(e.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL)) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Neighbour entries of all devices, or of one.
    pub fn neighs(&mut self, link: Option<u32>) -> Result<Vec<Neigh>, NetlinkError> {
        let mut body = NeighbourMessage::default();
        body.attributes.extend(link.map(NeighbourAttribute::IfIndex));
        let mut all = self.dump("list neighbours", msg::GETNEIGH, &body, |f| match f.kind {
            msg::NEWNEIGH => decode::neigh(f.payload),
            _ => Ok(None),
        })?;
        all.retain(|n| link.is_none_or(|l| l == n.link));
        Ok(all)
    }

    fn dump<T>(
        &mut self,
        what: &str,
        kind: u16,
        body: &impl Emitable,
        mut take: impl FnMut(&Frame<'_>) -> Result<Option<T>, String>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut all = Vec::new();
            let mut each = |f: &Frame<'_>| take(f).map(|t| all.extend(t));
            match self.ask(what, kind, NLM_F_DUMP, body, &mut each) {
                Ok(false) => return Ok(all),
                // The table changed while it was read, or a signal cut the dump short.
                Ok(true) => {}
                Err(e) if e.errno() == Some(libc::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
        Err(NetlinkError::Unstable { what: what.to_owned(), attempts: DUMP_ATTEMPTS })
    }

    fn get<T>(
        &mut self,
        what: &str,
        kind: u16,
        flags: u16,
        body: &impl Emitable,
        mut take: impl FnMut(&Frame<'_>) -> Result<Option<T>, String>,
    ) -> Result<Option<T>, NetlinkError> {
        let mut got = None;
        self.ask(what, kind, flags, body, &mut |f| {
            if let Some(t) = take(f)? {
                got = Some(t);
            }
            Ok(())
        })?;
        Ok(got)
    }

    /// One request and all its answers. True when a dump was inconsistent.
    fn ask(
        &mut self,
        what: &str,
        kind: u16,
        flags: u16,
        body: &impl Emitable,
        each: &mut dyn FnMut(&Frame<'_>) -> Result<(), String>,
    ) -> Result<bool, NetlinkError> {
        let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let seq = self.sock.next_seq();
        let mut bytes = Vec::with_capacity(64);
        encode::message(&mut bytes, kind, NLM_F_REQUEST | flags, seq, body);
        self.sock.send(&bytes, what)?;
        let limit = Limit::after(self.timeout);
        let mut intr = false;
        loop {
            let datagram = self.sock.recv(Some(limit), None, what)?.unwrap_or_default();
            for frame in Frames(datagram) {
                let garbled = |reason| NetlinkError::Garbled { what: what.to_owned(), reason };
                let f = frame.map_err(garbled)?;
                // Answers to an earlier request that ran out of time.
                if f.seq != seq {
                    continue;
                }
                intr |= f.flags & NLM_F_DUMP_INTR != 0;
                match f.kind {
                    msg::NOOP => {}
                    msg::OVERRUN => return Err(NetlinkError::Overrun { what: what.to_owned() }),
                    msg::ERROR => {
                        let (errno, ext) = decode::error(f.payload, f.flags).map_err(garbled)?;
                        refused(what, errno, ext)?;
                        return Ok(intr);
                    }
                    msg::DONE => {
                        refused(what, decode::done(f.payload), None)?;
                        return Ok(intr);
                    }
                    _ => {
                        each(&f).map_err(garbled)?;
                        if !dump {
                            return Ok(false);
                        }
                    }
                }
            }
        }
    }
}

pub(crate) fn refused(what: &str, errno: i32, ext: Option<String>) -> Result<(), NetlinkError> {
    if errno == 0 { Ok(()) } else { Err(NetlinkError::Refused { what: what.to_owned(), errno, ext }) }
}

pub(crate) fn inside<T: Send>(
    ns: &NetNs,
    open: impl FnOnce() -> Result<T, NetlinkError> + Send,
) -> Result<T, NetlinkError> {
    ns.run(open).unwrap_or_else(|e: NetNsError| {
        Err(NetlinkError::Socket { what: format!("open netlink socket in {ns}: {e}"), errno: e.errno() })
    })
}

/// Bytes encoded earlier.
struct Raw<'a>(&'a [u8]);

impl Emitable for Raw<'_> {
    fn buffer_len(&self) -> usize {
        self.0.len()
    }

    fn emit(&self, out: &mut [u8]) {
        out.copy_from_slice(self.0);
    }
}
