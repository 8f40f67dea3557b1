//! The few BGP messages the generator needs, written and read here by hand: what judges the codec must not be the codec.
//! Also the routes of an MRT file (RFC 6396), for the replay.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashSet},
    net::Ipv4Addr,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use brindle_integration::mrt;

use super::scenario::AS;

pub(crate) const OPEN: u8 = 1;
pub(crate) const UPDATE: u8 = 2;
pub(crate) const NOTIFICATION: u8 = 3;
pub(crate) const KEEPALIVE: u8 = 4;

/// Address and length.
pub(crate) type Prefix = (u32, u8);

pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(19 + body.len()).unwrap_or(u16::MAX);
    let mut m = vec![0xff; 16];
    m.extend_from_slice(&len.to_be_bytes());
    m.push(kind);
    m.extend_from_slice(body);
    m
}

/// OPEN with IPv4 unicast, route refresh and 4-octet AS numbers.
pub(crate) fn open(asn: u32, hold: u16, id: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![4];
    body.extend_from_slice(&u16::try_from(asn).unwrap_or(23_456).to_be_bytes());
    body.extend_from_slice(&hold.to_be_bytes());
    body.extend_from_slice(&id.octets());
    let mut caps = vec![1, 4, 0, 1, 0, 1, 2, 0, 65, 4];
    caps.extend_from_slice(&asn.to_be_bytes());
    let len = u8::try_from(caps.len()).unwrap_or(0);
    body.extend_from_slice(&[len + 2, 2, len]);
    body.extend_from_slice(&caps);
    message(OPEN, &body)
}

/// Attributes of a route.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attrs {
    pub(crate) path: Vec<u32>,
    pub(crate) next_hop: u32,
    pub(crate) local_pref: bool,
    pub(crate) communities: Vec<u32>,
}

impl Attrs {
    pub(crate) fn octets(&self) -> Vec<u8> {
        let mut a = vec![0x40, 1, 1, 0];
        let hops = u8::try_from(self.path.len()).unwrap_or(u8::MAX);
        if hops == 0 {
            a.extend_from_slice(&[0x40, 2, 0]);
        } else {
            a.extend_from_slice(&[0x40, 2, 2 + 4 * hops, 2, hops]);
            self.path.iter().for_each(|asn| a.extend_from_slice(&asn.to_be_bytes()));
        }
        a.extend_from_slice(&[0x40, 3, 4]);
        a.extend_from_slice(&self.next_hop.to_be_bytes());
        if self.local_pref {
            a.extend_from_slice(&[0x40, 5, 4, 0, 0, 0, 100]);
        }
        if !self.communities.is_empty() {
            a.extend_from_slice(&[0xc0, 8, u8::try_from(4 * self.communities.len()).unwrap_or(0)]);
            self.communities.iter().for_each(|c| a.extend_from_slice(&c.to_be_bytes()));
        }
        a
    }
}

fn put_prefix(out: &mut Vec<u8>, (address, len): Prefix) {
    out.push(len);
    out.extend_from_slice(address.to_be_bytes().get(..usize::from(len.div_ceil(8))).unwrap_or_default());
}

/// UPDATEs of at most 4,096 octets: announcements with `attrs`, or withdrawals without.
pub(crate) fn updates(attrs: Option<&[u8]>, prefixes: &[Prefix], out: &mut Vec<u8>) {
    let attrs = attrs.unwrap_or_default();
    let room = 4_096usize.saturating_sub(19 + 4 + attrs.len());
    let mut rest = prefixes;
    while !rest.is_empty() {
        let (mut list, mut taken) = (Vec::new(), 0);
        while let Some(p) = rest.get(taken)
            && list.len() + 5 <= room
        {
            put_prefix(&mut list, *p);
            taken += 1;
        }
        if taken == 0 {
            return;
        }
        let len = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
        let mut body = Vec::with_capacity(4 + attrs.len() + list.len());
        if attrs.is_empty() {
            body.extend_from_slice(&len(list.len()));
            body.extend_from_slice(&list);
            body.extend_from_slice(&[0, 0]);
        } else {
            body.extend_from_slice(&[0, 0]);
            body.extend_from_slice(&len(attrs.len()));
            body.extend_from_slice(attrs);
            body.extend_from_slice(&list);
        }
        out.extend_from_slice(&message(UPDATE, &body));
        rest = rest.get(taken..).unwrap_or_default();
    }
}

/// What an UPDATE says.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) next_hop: Option<u32>,
    pub(crate) first_as: Option<u32>,
}

fn be16(b: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(b.get(at..at + 2)?.try_into().ok()?)))
}

fn be32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

fn each_prefix(mut list: &[u8], mut say: impl FnMut(Prefix)) -> Option<()> {
    while let Some((len, rest)) = list.split_first() {
        let n = usize::from(len.div_ceil(8));
        let octets = rest.get(..n).filter(|_| *len <= 32)?;
        let mut address = [0u8; 4];
        address.get_mut(..n)?.copy_from_slice(octets);
        say((u32::from_be_bytes(address), *len));
        list = rest.get(n..)?;
    }
    Some(())
}

/// Code and value of each attribute.
fn each_attribute(mut a: &[u8], mut say: impl FnMut(u8, &[u8])) -> Option<()> {
    while let [flags, code, rest @ ..] = a {
        let (len, head) =
            if flags & 0x10 == 0 { (usize::from(*rest.first()?), 1) } else { (be16(rest, 0)?, 2) };
        say(*code, rest.get(head..head + len)?);
        a = rest.get(head + len..)?;
    }
    a.is_empty().then_some(())
}

/// Reads the body of an UPDATE; `None` if it is malformed.
pub(crate) fn read_update(
    body: &[u8],
    mut withdrawn: impl FnMut(Prefix),
    mut announced: impl FnMut(Prefix, &Said),
) -> Option<()> {
    let w = be16(body, 0)?;
    each_prefix(body.get(2..2 + w)?, &mut withdrawn)?;
    let a = be16(body, 2 + w)?;
    let attrs = body.get(4 + w..4 + w + a)?;
    let mut said = Said::default();
    each_attribute(attrs, |code, v| match code {
        2 => said.first_as = be32(v, 2),
        3 => said.next_hop = be32(v, 0),
        _ => {}
    })?;
    each_prefix(body.get(4 + w + a..)?, |p| announced(p, &said))
}

/// The IPv4 unicast routes of an archive as UPDATEs for an internal session with 4-octet AS numbers, in its order and
/// packing; and the prefixes that are there at the end.
pub(crate) fn from_mrt(file: &Path) -> Result<(Vec<u8>, Vec<Prefix>)> {
    let data = mrt::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let (mut out, mut there) = (Vec::new(), HashSet::new());
    for archived in mrt::updates(&data) {
        // What nobody could read is not sent.
        let Some(body) = internal(&archived) else { continue };
        let known = RefCell::new(&mut there);
        let good = read_update(
            &body,
            |p| {
                known.borrow_mut().remove(&p);
            },
            |p, _| {
                known.borrow_mut().insert(p);
            },
        );
        if good.is_some() && body.len() > 4 {
            out.extend_from_slice(&message(UPDATE, &body));
        }
    }
    ensure!(!there.is_empty(), "{} has no IPv4 unicast routes that MRT readers find", file.display());
    Ok((out, there.into_iter().collect()))
}

/// The body of an UPDATE without what belongs to the session it was heard on, and without IPv6. `None` if it is nothing
/// a daemon must take: AS 0 or the daemon's own in a path, a mandatory attribute missing, too long with AS numbers of four octets.
fn internal(archived: &mrt::Archived) -> Option<Vec<u8>> {
    let [withdrawn, mut rest, announced] = mrt::fields(&archived.frame)?;
    let mut attributes: BTreeMap<u8, (u8, Vec<u8>)> = BTreeMap::new();
    while let Some(a) = mrt::next_attribute(&mut rest)? {
        let value = match a.code {
            2 => {
                let path = mrt::as_path(a.value, archived.wide)?;
                if path.iter().any(|(_, list)| list.contains(&0) || list.contains(&AS)) {
                    return None;
                }
                let octets = path.iter().flat_map(|(kind, list)| {
                    let head = [*kind, u8::try_from(list.len()).unwrap_or(u8::MAX)];
                    head.into_iter().chain(list.iter().flat_map(|n| n.to_be_bytes()))
                });
                octets.collect()
            }
            7 if !archived.wide => [&[0, 0], a.value].concat(),
            // Of the session, of the other family, or of AS numbers with two octets.
            5 | 9 | 10 | 14 | 15 | 17 | 18 => continue,
            _ => a.value.to_vec(),
        };
        attributes.entry(a.code).or_insert((a.flags, value));
    }
    attributes.insert(5, (0x40, vec![0, 0, 0, 100]));
    let mut list = Vec::new();
    if !announced.is_empty() {
        if ![1, 2, 3].iter().all(|code| attributes.contains_key(code)) {
            return None;
        }
        for (code, (flags, value)) in &attributes {
            mrt::put_attribute(&mut list, *flags, *code, value)?;
        }
    }
    let len = |n: usize| u16::try_from(n).ok().map(u16::to_be_bytes);
    let body = [&len(withdrawn.len())?, withdrawn, &len(list.len())?, &list, announced].concat();
    (body.len() <= 4_096 - 19).then_some(body)
}
