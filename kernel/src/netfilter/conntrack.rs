//! Tracked flows by netlink (nfnetlink, subsystem ctnetlink): dump, mark and delete. No child process per flow, and a flow
//! is named by the very tuple the kernel gave, so that none beside it is hit.

use std::{net::IpAddr, time::Duration};

use nix::libc;

use super::IpVersion;
use crate::netlink::{
    NetlinkError,
    socket::{Frames, HEADER, Limit, NlSocket},
};

const NETLINK_NETFILTER: isize = 12;
/// Subsystem ctnetlink, messages get and delete.
const GET: u16 = (1 << 8) | 1;
const NEW: u16 = 1 << 8;
const DELETE: u16 = (1 << 8) | 2;
const ERROR: u16 = 2;
/// CTA_MARK, CTA_MARK_MASK
const MARK: u16 = 8;
const MARK_MASK: u16 = 21;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const ANSWER: Duration = Duration::from_secs(10);
/// `nfgenmsg`.
const GENERIC: usize = 4;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// Ports; for ICMP the type and code of the request are in `icmp`.
    pub sport: u16,
    pub dport: u16,
    pub icmp: Option<(u8, u8)>,
}

/// A tracked flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub version: IpVersion,
    pub protocol: u8,
    /// As its first packet was sent.
    pub original: Tuple,
    /// As its answers come: tells what addresses were translated to.
    pub reply: Tuple,
    /// Its connection mark.
    pub mark: u32,
    /// The attributes that name it to the kernel.
    name: Vec<u8>,
}

impl Flow {
    /// For models: a flow that is not the kernel's.
    pub fn invented(version: IpVersion, protocol: u8, original: Tuple, reply: Tuple) -> Self {
        Self { version, protocol, original, reply, mark: 0, name: Vec::new() }
    }
}

/// A socket to ctnetlink.
pub struct Conntrack {
    sock: NlSocket,
}

impl Conntrack {
    /// In the namespace of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { sock: NlSocket::open_protocol(NETLINK_NETFILTER, 4 << 20)? })
    }

    fn message(&mut self, kind: u16, flags: u16, version: IpVersion, attrs: &[u8]) -> (u32, Vec<u8>) {
        let seq = self.sock.next_seq();
        let family = match version {
            IpVersion::V4 => libc::AF_INET,
            IpVersion::V6 => libc::AF_INET6,
        };
        let len = HEADER + GENERIC + attrs.len();
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
        out.extend_from_slice(&kind.to_ne_bytes());
        out.extend_from_slice(&flags.to_ne_bytes());
        out.extend_from_slice(&seq.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&[u8::try_from(family).unwrap_or(0), 0, 0, 0]);
        out.extend_from_slice(attrs);
        (seq, out)
    }

    /// All flows of a family.
    pub fn list(&mut self, version: IpVersion) -> Result<Vec<Flow>, NetlinkError> {
        let what = "list tracked flows";
        let (seq, bytes) = self.message(GET, REQUEST | DUMP, version, &[]);
        self.sock.send(&bytes, what)?;
        let limit = Limit::after(ANSWER);
        let mut out = Vec::new();
        loop {
            let Some(datagram) = self.sock.recv(Some(limit), None, what)? else { continue };
            for frame in Frames(datagram) {
                let frame = frame.map_err(|reason| garbled(what, reason))?;
                if frame.seq != seq {
                    continue;
                }
                match frame.kind {
                    DONE => return Ok(out),
                    ERROR => {
                        refused(frame.payload, what)?;
                        return Ok(out);
                    }
                    NEW => {
                        if let Some(flow) = decode(version, frame.payload) {
                            out.push(flow);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// Deletes flows by name; those that ended meanwhile do not count.
    pub fn forget(&mut self, flows: &[Flow]) -> Result<usize, NetlinkError> {
        self.each(flows, DELETE, &[], "delete a tracked flow")
    }

    /// Sets or clears bits of the connection marks of flows, and leaves their other bits; flows that ended meanwhile do not
    /// count.
    pub fn mark(&mut self, flows: &[Flow], bits: u32, set: bool) -> Result<usize, NetlinkError> {
        let value = if set { bits } else { 0 };
        // Never with the flag that makes a flow which is not there.
        self.each(flows, NEW, &[(MARK, value), (MARK_MASK, bits)], "mark a tracked flow")
    }

    fn each(
        &mut self,
        flows: &[Flow],
        kind: u16,
        more: &[(u16, u32)],
        what: &str,
    ) -> Result<usize, NetlinkError> {
        let mut done = 0;
        for flow in flows.iter().filter(|f| !f.name.is_empty()) {
            let mut attrs = flow.name.clone();
            for (kind, value) in more {
                attrs.extend_from_slice(&8u16.to_ne_bytes());
                attrs.extend_from_slice(&kind.to_ne_bytes());
                attrs.extend_from_slice(&value.to_be_bytes());
            }
            let (seq, bytes) = self.message(kind, REQUEST | ACK, flow.version, &attrs);
            self.sock.send(&bytes, what)?;
            match self.answer(seq, what) {
                Ok(()) => done += 1,
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn answer(&mut self, seq: u32, what: &str) -> Result<(), NetlinkError> {
        let limit = Limit::after(ANSWER);
        loop {
            let Some(datagram) = self.sock.recv(Some(limit), None, what)? else { continue };
            for frame in Frames(datagram) {
                let frame = frame.map_err(|reason| garbled(what, reason))?;
                if frame.seq == seq && frame.kind == ERROR {
                    return refused(frame.payload, what);
                }
            }
        }
    }
}

pub(super) fn garbled(what: &str, reason: impl ToString) -> NetlinkError {
    NetlinkError::Garbled { what: what.to_owned(), reason: reason.to_string() }
}

pub(super) fn refused(payload: &[u8], what: &str) -> Result<(), NetlinkError> {
    let code = payload.first_chunk::<4>().map(|b| i32::from_ne_bytes(*b));
    match code {
        Some(0) => Ok(()),
        Some(e) => Err(NetlinkError::Refused { what: what.to_owned(), errno: e.saturating_neg(), ext: None }),
        None => Err(garbled(what, "short error message")),
    }
}

/// Attributes: kind (without flags), payload, and the whole.
fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk::<2>()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk::<2>()?);
        let (whole, payload) = (bytes.get(..len)?, bytes.get(4..len)?);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & 0x3fff, payload, whole))
    })
}

/// A flow of the dump; one without addresses is skipped.
fn decode(version: IpVersion, payload: &[u8]) -> Option<Flow> {
    let body = payload.get(GENERIC..)?;
    let (mut original, mut reply, mut mark, mut name) = (None, None, 0, Vec::new());
    for (kind, inner, whole) in attrs(body) {
        match kind {
            // CTA_TUPLE_ORIG, CTA_TUPLE_REPLY
            1 => {
                original = tuple(inner);
                append(&mut name, whole);
            }
            2 => reply = tuple(inner),
            MARK => mark = inner.first_chunk::<4>().map_or(0, |b| u32::from_be_bytes(*b)),
            // CTA_ID, CTA_ZONE: with them the deletion can hit no other flow.
            12 | 18 => append(&mut name, whole),
            _ => {}
        }
    }
    let ((original, protocol), (reply, _)) = (original?, reply?);
    Some(Flow { version, protocol, original, reply, mark, name })
}

fn append(out: &mut Vec<u8>, attr: &[u8]) {
    out.extend_from_slice(attr);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn tuple(bytes: &[u8]) -> Option<(Tuple, u8)> {
    let (mut src, mut dst) = (None, None);
    let (mut protocol, mut sport, mut dport, mut icmp) = (0, 0, 0, None);
    let port = |b: &[u8]| b.first_chunk::<2>().map_or(0, |b| u16::from_be_bytes(*b));
    for (kind, inner, _) in attrs(bytes) {
        match kind {
            // CTA_TUPLE_IP
            1 => {
                for (kind, b, _) in attrs(inner) {
                    let ip = match b.len() {
                        4 => b.first_chunk::<4>().map(|b| IpAddr::from(*b)),
                        16 => b.first_chunk::<16>().map(|b| IpAddr::from(*b)),
                        _ => None,
                    };
                    match kind {
                        1 | 3 => src = ip,
                        2 | 4 => dst = ip,
                        _ => {}
                    }
                }
            }
            // CTA_TUPLE_PROTO: number, ports, then ICMP's and ICMPv6's id, type, code
            2 => {
                let (mut t, mut c) = (None, None);
                for (kind, b, _) in attrs(inner) {
                    match kind {
                        1 => protocol = b.first().copied().unwrap_or(0),
                        2 => sport = port(b),
                        3 => dport = port(b),
                        5 | 8 => t = b.first().copied(),
                        6 | 9 => c = b.first().copied(),
                        _ => {}
                    }
                }
                icmp = t.map(|t| (t, c.unwrap_or(0)));
            }
            _ => {}
        }
    }
    Some((Tuple { src: src?, dst: dst?, sport, dport, icmp }, protocol))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(b in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(IpVersion::V4, &b);
        }
    }

    fn attr(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = u16::try_from(payload.len() + 4).unwrap().to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(payload);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    #[test]
    fn a_flow_is_read_and_named_by_what_the_kernel_gave() {
        let one = |src: [u8; 4], dst: [u8; 4], sport: u16, dport: u16| {
            let ip = [attr(1, &src), attr(2, &dst)].concat();
            let proto =
                [attr(1, &[6]), attr(2, &sport.to_be_bytes()), attr(3, &dport.to_be_bytes())].concat();
            [attr(1 | 0x8000, &ip), attr(2 | 0x8000, &proto)].concat()
        };
        let orig = attr(1 | 0x8000, &one([10, 0, 0, 1], [10, 0, 0, 2], 1000, 80));
        let reply = attr(2 | 0x8000, &one([10, 0, 0, 2], [10, 0, 0, 1], 80, 1000));
        let id = attr(12, &7u32.to_be_bytes());
        let mark = attr(8, &0x0010_0002u32.to_be_bytes());
        let body = [vec![2, 0, 0, 0], orig.clone(), reply, mark, id.clone()].concat();
        let flow = decode(IpVersion::V4, &body).unwrap();
        assert_eq!(flow.mark, 0x0010_0002);
        assert_eq!((flow.protocol, flow.original.sport, flow.original.dport), (6, 1000, 80));
        assert_eq!(flow.original.src, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(flow.reply.src, IpAddr::from([10, 0, 0, 2]));
        assert_eq!(flow.name, [orig, id].concat());
    }
}
