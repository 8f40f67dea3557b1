//! The few BGP messages the generator needs, written and read here by hand: what judges the codec must not be the codec.
//! Also routes out of an MRT table dump (RFC 6396), for the replay.

use std::{collections::HashMap, io::Read, net::Ipv4Addr, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};

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

/// The IPv4 unicast routes of a table dump, one path each, as UPDATEs for an internal session; and the prefixes.
pub(crate) fn from_mrt(file: &Path) -> Result<(Vec<u8>, Vec<Prefix>)> {
    let data = unpacked(file)?;
    let mut sets: HashMap<Vec<u8>, Vec<Prefix>> = HashMap::new();
    let mut order: Vec<Vec<u8>> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let mut at = 0;
    while let Some(header) = data.get(at..at + 12) {
        let kind = (be16(header, 4), be16(header, 6));
        let len = be32(header, 8).and_then(|n| usize::try_from(n).ok()).context("a length")?;
        let body = data.get(at + 12..at + 12 + len).context("the dump ends inside a record")?;
        at += 12 + len;
        // TABLE_DUMP_V2, RIB_IPV4_UNICAST
        if kind != (Some(13), Some(2)) {
            continue;
        }
        if let Some((prefix, attrs)) = rib_entry(body)
            && seen.insert(prefix)
        {
            sets.entry(attrs)
                .or_insert_with_key(|k| {
                    order.push(k.clone());
                    Vec::new()
                })
                .push(prefix);
        }
    }
    ensure!(!seen.is_empty(), "{} has no IPv4 unicast routes of TABLE_DUMP_V2", file.display());
    let mut out = Vec::new();
    for attrs in &order {
        updates(Some(attrs), sets.get(attrs).map(Vec::as_slice).unwrap_or_default(), &mut out);
    }
    Ok((out, seen.into_iter().collect()))
}

/// Prefix and attributes of the first entry, with a LOCAL_PREF.
fn rib_entry(body: &[u8]) -> Option<(Prefix, Vec<u8>)> {
    let len = *body.get(4)?;
    let n = usize::from(len.div_ceil(8));
    let mut prefix = None;
    each_prefix(body.get(4..5 + n)?, |p| prefix = Some(p))?;
    let entries = be16(body, 5 + n)?;
    let entry = body.get(7 + n..).filter(|_| entries > 0)?;
    let attrs = entry.get(8..8 + be16(entry, 6)?)?;
    let (mut out, mut hop, mut origin, mut path) = (Vec::new(), false, false, false);
    let mut whole = attrs;
    each_attribute(attrs, |code, v| {
        let head = if whole.first().is_some_and(|f| f & 0x10 != 0) { 4 } else { 3 };
        let (this, rest) = whole.split_at((head + v.len()).min(whole.len()));
        whole = rest;
        hop |= code == 3;
        origin |= code == 1;
        path |= code == 2;
        // In code order; what is of the session the dump was made on is left out.
        if code > 5 && !out.is_empty() && !out.windows(7).any(|w| w == LOCAL_PREF) {
            out.extend_from_slice(&LOCAL_PREF);
        }
        if !matches!(code, 5 | 9 | 10 | 14 | 15) {
            out.extend_from_slice(this);
        }
    })?;
    if !out.windows(7).any(|w| w == LOCAL_PREF) {
        out.extend_from_slice(&LOCAL_PREF);
    }
    // As long as a message has room for it.
    (hop && origin && path && out.len() < 3_900).then_some((prefix?, out))
}

const LOCAL_PREF: [u8; 7] = [0x40, 5, 4, 0, 0, 0, 100];

fn unpacked(file: &Path) -> Result<Vec<u8>> {
    let tool = match file.extension().and_then(|e| e.to_str()) {
        Some("gz") => "gzip",
        Some("bz2") => "bzip2",
        _ => {
            let mut data = Vec::new();
            let mut f =
                std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
            f.read_to_end(&mut data)?;
            return Ok(data);
        }
    };
    let done =
        Command::new(tool).arg("-dc").arg(file).output().with_context(|| format!("cannot run {tool}"))?;
    if !done.status.success() {
        bail!("{tool} -dc {}: {}", file.display(), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(done.stdout)
}
