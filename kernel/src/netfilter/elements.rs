//! Members of nftables' sets and verdict maps by netlink, and whether a table is there. Before `nft` changes one member it reads those of every set there
//! is: with 550 of them that takes it some 60 ms, whatever the change. A batch here says what changes and nothing else,
//! and takes effect as a whole or not at all. Only changes of this one kind; everything else is nft's.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use nix::libc;

use super::IpVersion;
use crate::netlink::{
    NetlinkError,
    socket::{Frames, HEADER, Limit, NlSocket},
};

const NETLINK_NETFILTER: isize = 12;
/// Subsystem nftables.
const SUBSYSTEM: u8 = 10;
const GET_TABLE: u16 = ((SUBSYSTEM as u16) << 8) | 1;
const NEW_ELEMENT: u16 = ((SUBSYSTEM as u16) << 8) | 12;
const DELETE_ELEMENT: u16 = ((SUBSYSTEM as u16) << 8) | 14;
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const ANSWER: Duration = Duration::from_secs(10);
/// Marks the address behind the last one of an interval.
const INTERVAL_END: u32 = 1;
/// More members in one line are left to nft: the length of a message's list has 16 bits.
const MEMBERS: usize = 512;
/// More octets in all are left to nft. A network takes some 40, with IPv6 some 70: a million of them fit.
const OCTETS: usize = 80 << 20;

/// Go to a chain (`NFT_GOTO`).
const GOTO: i32 = -4;
/// Octets of a device's name as a key.
const DEVICE: usize = 16;

/// What a set holds.
#[derive(Debug, PartialEq, Eq)]
enum Member {
    Net(IpNet),
    /// Address, protocol, port.
    Port(IpAddr, u8, u16),
    /// A device; with the chain it leads to when it is added.
    Device(String, Option<String>),
}

/// A change of one set's members.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    add: bool,
    version: IpVersion,
    table: String,
    set: String,
    members: Vec<Member>,
}

/// The changes an input of nft consists of; `None`: it says anything else too.
pub(super) fn parse(input: &str) -> Option<Vec<Change>> {
    input.lines().map(line).collect()
}

/// How many members change.
pub(super) fn count(changes: &[Change]) -> usize {
    changes.iter().map(|c| c.members.len()).sum()
}

fn line(line: &str) -> Option<Change> {
    let (head, rest) = line.split_once(" { ")?;
    let words: Vec<&str> = head.split(' ').collect();
    let [verb, "element", family, table, set] = words[..] else { return None };
    let add = match verb {
        "add" => true,
        "delete" => false,
        _ => return None,
    };
    let version = match family {
        "ip" => IpVersion::V4,
        "ip6" => IpVersion::V6,
        _ => return None,
    };
    let ours = |v4: bool| v4 == (version == IpVersion::V4);
    let net = |text: &str| {
        let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
        ours(matches!(net, IpNet::V4(_))).then(|| Member::Net(net.trunc()))
    };
    let port = |text: &str| {
        let mut parts = text.split(" . ");
        let (ip, protocol, port) = (parts.next()?, parts.next()?, parts.next()?);
        let ip = ip.parse::<IpAddr>().ok().filter(|ip| ours(ip.is_ipv4()))?;
        parts.next().is_none().then_some(Member::Port(ip, protocol.parse().ok()?, port.parse().ok()?))
    };
    let device = |text: &str| {
        let (name, rest) = text.strip_prefix('"')?.split_once('"')?;
        let chain = match rest.strip_prefix(" : goto ") {
            Some(chain) if add => Some(chain.to_owned()),
            None if !add && rest.is_empty() => None,
            _ => return None,
        };
        (!name.is_empty() && name.len() < DEVICE).then(|| Member::Device(name.to_owned(), chain))
    };
    let member = |text: &str| match text {
        t if t.starts_with('"') => device(t),
        t if t.contains(" . ") => port(t),
        t => net(t),
    };
    let members: Vec<Member> = rest.strip_suffix(" }")?.split(", ").map(member).collect::<Option<_>>()?;
    (members.len() <= MEMBERS).then(|| Change { add, version, table: table.into(), set: set.into(), members })
}

/// A socket to nftables.
pub(super) struct Elements {
    sock: NlSocket,
}

impl Elements {
    /// In the namespace of the calling thread.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        Ok(Self { sock: NlSocket::open_protocol(NETLINK_NETFILTER, 1 << 20)? })
    }

    /// Whether there is a table of this name: an answer without a process, for the many starts at which there is none.
    pub(super) fn has_table(&mut self, version: IpVersion, table: &str) -> Result<bool, NetlinkError> {
        let what = "look for a table of nftables";
        let (mut out, mut name) = (Vec::new(), Vec::new());
        attr(&mut name, 1, &[table.as_bytes(), b"\0"].concat());
        let seq = self.sock.next_seq();
        message(&mut out, GET_TABLE, REQUEST, seq, [family(version), 0, 0, 0], &name);
        self.sock.send(&out, what)?;
        let limit = Limit::after(ANSWER);
        loop {
            let Some(datagram) = self.sock.recv(Some(limit), None, what)? else { continue };
            for frame in Frames(datagram) {
                let frame = frame.map_err(|reason| super::conntrack::garbled(what, reason))?;
                if frame.seq != seq {
                    continue;
                }
                if frame.kind != ERROR {
                    return Ok(true);
                }
                return match super::conntrack::refused(frame.payload, what) {
                    Err(e) if e.is_not_found() => Ok(false),
                    other => other.map(|()| true),
                };
            }
        }
    }

    /// Carries out all changes or none. `false`: too many for one batch, nothing was tried. The kernel takes 70,000 networks out
    /// of a set in a tenth of a second.
    pub(super) fn change(&mut self, changes: &[Change]) -> Result<bool, NetlinkError> {
        let what = "change members of nftables sets";
        let mut out = Vec::new();
        let mut asked = Vec::with_capacity(changes.len());
        message(&mut out, BEGIN, REQUEST, self.sock.next_seq(), [0, 0, 0, SUBSYSTEM], &[]);
        for (i, c) in changes.iter().enumerate() {
            let (kind, create) = if c.add { (NEW_ELEMENT, CREATE) } else { (DELETE_ELEMENT, 0) };
            // Refusals are always told; the last message's answer comes behind all of them.
            let ack = if i + 1 == changes.len() { ACK } else { 0 };
            let seq = self.sock.next_seq();
            message(&mut out, kind, REQUEST | create | ack, seq, [family(c.version), 0, 0, 0], &body(c));
            asked.push(seq);
        }
        message(&mut out, END, REQUEST, self.sock.next_seq(), [0, 0, 0, SUBSYSTEM], &[]);
        if out.len() > OCTETS || !self.sock.has_room(out.len()) {
            return Ok(false);
        }
        let Some(last) = asked.last().copied() else { return Ok(true) };
        self.sock.send(&out, what)?;
        let limit = Limit::after(ANSWER);
        loop {
            let Some(datagram) = self.sock.recv(Some(limit), None, what)? else { continue };
            for frame in Frames(datagram) {
                let frame = frame.map_err(|reason| super::conntrack::garbled(what, reason))?;
                if frame.kind == ERROR && asked.contains(&frame.seq) {
                    super::conntrack::refused(frame.payload, what)?;
                    if frame.seq == last {
                        return Ok(true);
                    }
                }
            }
        }
    }
}

fn family(version: IpVersion) -> u8 {
    let family = match version {
        IpVersion::V4 => libc::AF_INET,
        IpVersion::V6 => libc::AF_INET6,
    };
    u8::try_from(family).unwrap_or(0)
}

fn message(out: &mut Vec<u8>, kind: u16, flags: u16, seq: u32, generic: [u8; 4], attrs: &[u8]) {
    let len = HEADER + generic.len() + attrs.len();
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(&generic);
    out.extend_from_slice(attrs);
}

fn attr(out: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    // The limit of members keeps every length far below this.
    let len = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn nested(out: &mut Vec<u8>, kind: u16, inner: &[u8]) {
    attr(out, kind | 0x8000, inner);
}

/// `NFTA_SET_ELEM_LIST_TABLE`, `_SET`, `_ELEMENTS`.
fn body(c: &Change) -> Vec<u8> {
    let mut list = Vec::new();
    for member in &c.members {
        match member {
            Member::Net(net) => {
                let (first, behind) = bounds(net);
                element(&mut list, &first, 0, None);
                if let Some(behind) = behind {
                    element(&mut list, &behind, INTERVAL_END, None);
                }
            }
            // Each part begins at a multiple of four octets.
            Member::Port(ip, protocol, port) => {
                let mut key = match ip {
                    IpAddr::V4(a) => a.octets().to_vec(),
                    IpAddr::V6(a) => a.octets().to_vec(),
                };
                let [high, low] = port.to_be_bytes();
                key.extend([*protocol, 0, 0, 0, high, low, 0, 0]);
                element(&mut list, &key, 0, None);
            }
            Member::Device(name, chain) => {
                let mut key = name.as_bytes().to_vec();
                key.resize(DEVICE, 0);
                element(&mut list, &key, 0, chain.as_deref());
            }
        }
    }
    let mut out = Vec::new();
    for (kind, name) in [(1, &c.table), (2, &c.set)] {
        attr(&mut out, kind, &[name.as_bytes(), b"\0"].concat());
    }
    nested(&mut out, 3, &list);
    out
}

/// `NFTA_LIST_ELEM` with `NFTA_SET_ELEM_KEY`, `_FLAGS` and, in a verdict map, `_DATA`.
fn element(out: &mut Vec<u8>, key: &[u8], flags: u32, chain: Option<&str>) {
    let (mut value, mut inner) = (Vec::new(), Vec::new());
    attr(&mut value, 1, key);
    nested(&mut inner, 1, &value);
    if let Some(chain) = chain {
        let (mut verdict, mut data) = (Vec::new(), Vec::new());
        attr(&mut verdict, 1, &GOTO.to_be_bytes());
        attr(&mut verdict, 2, &[chain.as_bytes(), b"\0"].concat());
        nested(&mut data, 2, &verdict);
        nested(&mut inner, 2, &data);
    }
    if flags != 0 {
        attr(&mut inner, 3, &flags.to_be_bytes());
    }
    nested(out, 1, &inner);
}

/// The first address, and the one behind the last unless there is none.
fn bounds(net: &IpNet) -> (Vec<u8>, Option<Vec<u8>>) {
    match net {
        IpNet::V4(n) => {
            let behind = u32::from(n.broadcast()).checked_add(1);
            (n.network().octets().to_vec(), behind.map(|a| a.to_be_bytes().to_vec()))
        }
        IpNet::V6(n) => {
            let behind = u128::from(n.broadcast()).checked_add(1);
            (n.network().octets().to_vec(), behind.map(|a| a.to_be_bytes().to_vec()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_members_are_taken_from_nft() {
        let both =
            parse("add element ip t s { 10.0.0.1, 10.1.0.0/16 }\ndelete element ip6 t s6 { fd00::1 }\n");
        let both = both.unwrap();
        assert_eq!(
            both.iter().map(|c| (c.add, c.members.len())).collect::<Vec<_>>(),
            [(true, 2), (false, 1)]
        );
        let more = parse(
            "add element ip t p { 10.0.0.1 . 6 . 80 }\nadd element ip t m { \"cali1\" : goto x }\n\
             delete element ip t m { \"cali1\" }\n",
        );
        let more: Vec<Member> = more.unwrap().into_iter().flat_map(|c| c.members).collect();
        let device = |chain: Option<&str>| Member::Device("cali1".into(), chain.map(str::to_owned));
        let port = Member::Port("10.0.0.1".parse().unwrap(), 6, 80);
        assert_eq!(more, [port, device(Some("x")), device(None)]);
        for other in [
            "add element ip t s { 10.0.0.1 . tcp . 80 }",
            "add element ip t s { fd00::1 . 6 . 80 }",
            "add element ip t m { \"cali1\" : accept }",
            "add element ip t m { \"cali1\" }",
            "delete element ip t m { \"cali1\" : goto x }",
            "add element ip t m { \"a-name-of-16-long\" : goto x }",
            "add element ip t s { fd00::1 }",
            "add element inet t s { 10.0.0.1 }",
            "add rule ip t c accept",
            "add element ip t s { 10.0.0.1 }\nadd rule ip t c tcp dport { 1 } accept",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn an_interval_ends_behind_its_last_address() {
        let of = |text: &str| bounds(&text.parse().unwrap());
        assert_eq!(of("10.1.0.0/16"), (vec![10, 1, 0, 0], Some(vec![10, 2, 0, 0])));
        assert_eq!(of("255.255.255.255/32"), (vec![255; 4], None));
        assert_eq!(of("ffff::/16").1, None);
    }
}
