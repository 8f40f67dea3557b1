//! BGP messages out of MRT files (RFC 6396): archived updates of types BGP4MP and BGP4MP_ET as they are, and table dumps
//! of either version made into UPDATEs again, the first path of each prefix. Needs nothing but the standard library and
//! knows nothing of our codec, which is judged with it; integration/oracles includes this file.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    process::{Command, Stdio},
    thread,
};

/// A BGP message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archived {
    /// AS numbers in it have four octets.
    pub wide: bool,
    pub frame: Vec<u8>,
}

/// The octets of a file, unpacked if gzip or bzip2 made it.
pub fn read(file: &Path) -> io::Result<Vec<u8>> {
    let data = fs::read(file)?;
    let tool = match data.get(..3) {
        Some([0x1f, 0x8b, _]) => "gzip",
        Some(b"BZh") => "bzip2",
        _ => return Ok(data),
    };
    let mut child = Command::new(tool).arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let input = child.stdin.take();
    // Whoever writes all of it before reading waits for ever.
    let feed = thread::spawn(move || input.map_or(Ok(()), |mut i| i.write_all(&data)));
    let done = child.wait_with_output()?;
    let fed = feed.join().unwrap_or_else(|_| Err(io::Error::other("the thread that feeds it ended")));
    if !done.status.success() {
        return Err(io::Error::other(format!("{tool} -dc {}: {}", file.display(), done.status)));
    }
    fed.map(|()| done.stdout)
}

fn be16(b: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(b.get(at..at + 2)?.try_into().ok()?)))
}

/// The UPDATEs of a file, in its order. What is cut off at its end, add-path and other record types are left out.
pub fn updates(mut data: &[u8]) -> Vec<Archived> {
    let mut all = Vec::new();
    while let Some((head, rest)) = data.split_at_checked(12) {
        let (Some(kind), Some(subtype), Some(high), Some(low)) =
            (be16(head, 4), be16(head, 6), be16(head, 8), be16(head, 10))
        else {
            break;
        };
        let Some((record, more)) = rest.split_at_checked((high << 16) | low) else { break };
        data = more;
        let found = match kind {
            12 => table_dump(record, subtype),
            13 if matches!(subtype, 2 | 4) => table_dump_v2(record, subtype == 4),
            16 => message(record, subtype),
            17 => record.get(4..).and_then(|r| message(r, subtype)),
            _ => None,
        };
        all.extend(found.filter(|a| a.frame.get(18) == Some(&2)));
    }
    all
}

/// BGP4MP (section 4.4): two AS numbers, an interface, a family, two addresses, the message.
fn message(record: &[u8], subtype: usize) -> Option<Archived> {
    let wide = match subtype {
        1 => false,
        4 => true,
        _ => return None,
    };
    let asns = if wide { 8 } else { 4 };
    let address = match be16(record, asns + 2)? {
        1 => 4,
        2 => 16,
        _ => return None,
    };
    Some(Archived { wide, frame: record.get(asns + 4 + 2 * address..)?.to_vec() })
}

/// TABLE_DUMP (section 4.2): view, sequence, prefix, length, status, time, peer, AS, attributes.
fn table_dump(record: &[u8], afi: usize) -> Option<Archived> {
    let size = match afi {
        1 => 4,
        2 => 16,
        _ => return None,
    };
    let address = record.get(4..4 + size)?;
    let len = *record.get(4 + size)?;
    let at = 4 + size + 1 + 1 + 4 + size + 2;
    let attributes = record.get(at + 2..at + 2 + be16(record, at)?)?;
    let mut nlri = vec![len];
    nlri.extend_from_slice(address.get(..usize::from(len.div_ceil(8)))?);
    Some(Archived { wide: false, frame: update(attributes, &nlri, size == 16)? })
}

/// TABLE_DUMP_V2 (section 4.3): sequence, prefix, number of entries; of the first: peer, time, attributes.
fn table_dump_v2(record: &[u8], v6: bool) -> Option<Archived> {
    let octets = usize::from(record.get(4)?.div_ceil(8));
    let nlri = record.get(4..5 + octets)?;
    let at = 5 + octets;
    if be16(record, at)? == 0 {
        return None;
    }
    let attributes = record.get(at + 10..at + 10 + be16(record, at + 8)?)?;
    Some(Archived { wide: true, frame: update(attributes, nlri, v6)? })
}

/// An UPDATE with one prefix. For IPv6 the dump has the next hop alone in MP_REACH_NLRI, with its length in front.
fn update(attributes: &[u8], nlri: &[u8], v6: bool) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = attributes;
    while let Some(a) = next_attribute(&mut rest)? {
        match a.code {
            14 if v6 => {
                let hop = match a.value {
                    // The short form, or the whole attribute as careless writers have it.
                    [n, hop @ ..] if hop.len() == usize::from(*n) => hop,
                    [0, 2, 1, n, more @ ..] => more.get(..usize::from(*n))?,
                    _ => return None,
                };
                let mut value = vec![0, 2, 1, u8::try_from(hop.len()).ok()?];
                value.extend_from_slice(hop);
                value.push(0);
                value.extend_from_slice(nlri);
                put_attribute(&mut out, 0x80, 14, &value)?;
            }
            14 | 15 => {}
            code => put_attribute(&mut out, a.flags, code, a.value)?,
        }
    }
    let mut body = vec![0, 0];
    body.extend_from_slice(&u16::try_from(out.len()).ok()?.to_be_bytes());
    body.append(&mut out);
    if !v6 {
        body.extend_from_slice(nlri);
    }
    frame(2, &body)
}

/// A message of this type.
pub fn frame(kind: u8, body: &[u8]) -> Option<Vec<u8>> {
    let mut m = vec![0xff; 16];
    m.extend_from_slice(&u16::try_from(19 + body.len()).ok()?.to_be_bytes());
    m.push(kind);
    m.extend_from_slice(body);
    Some(m)
}

/// One path attribute.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'a> {
    pub flags: u8,
    pub code: u8,
    pub value: &'a [u8],
}

/// Takes an attribute off the front: `Some(None)` at the end, `None` if what is there is none.
pub fn next_attribute<'a>(rest: &mut &'a [u8]) -> Option<Option<Attribute<'a>>> {
    let [flags, code, more @ ..] = rest else { return rest.is_empty().then_some(None) };
    let (len, head) = if flags & 0x10 == 0 { (usize::from(*more.first()?), 1) } else { (be16(more, 0)?, 2) };
    let value = more.get(head..head + len)?;
    *rest = more.get(head + len..)?;
    Some(Some(Attribute { flags: *flags, code: *code, value }))
}

/// Appends an attribute, with the long form of its length where that is needed.
pub fn put_attribute(out: &mut Vec<u8>, flags: u8, code: u8, value: &[u8]) -> Option<()> {
    let len = u16::try_from(value.len()).ok()?;
    match u8::try_from(len) {
        Ok(short) => out.extend_from_slice(&[flags & !0x10, code, short]),
        Err(_) => {
            out.extend_from_slice(&[flags | 0x10, code]);
            out.extend_from_slice(&len.to_be_bytes());
        }
    }
    out.extend_from_slice(value);
    Some(())
}

/// Withdrawn prefixes, attributes and announced prefixes of an UPDATE, each as they are on the wire.
pub fn fields(frame: &[u8]) -> Option<[&[u8]; 3]> {
    let body = frame.get(19..)?;
    let w = be16(body, 0)?;
    let a = be16(body, 2 + w)?;
    Some([body.get(2..2 + w)?, body.get(4 + w..4 + w + a)?, body.get(4 + w + a..)?])
}

/// Prefixes as they are on the wire, each with its length in front and without bits beyond it.
pub fn prefixes(mut list: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    while let Some(len) = list.first() {
        let (this, rest) = list.split_at_checked(1 + usize::from(len.div_ceil(8)))?;
        let mut prefix = this.to_vec();
        if len % 8 != 0
            && let Some(last) = prefix.last_mut()
        {
            *last &= 0xff << (8 - len % 8);
        }
        all.push(prefix);
        list = rest;
    }
    Some(all)
}

/// AS_PATH or AS4_PATH as kind of segment and numbers.
pub fn as_path(mut value: &[u8], wide: bool) -> Option<Vec<(u8, Vec<u32>)>> {
    let size = if wide { 4 } else { 2 };
    let mut segments = Vec::new();
    while let [kind, count, rest @ ..] = value {
        let (list, more) = rest.split_at_checked(usize::from(*count) * size)?;
        let number = |n: &[u8]| n.iter().fold(0, |sum, octet| (sum << 8) | u32::from(*octet));
        segments.push((*kind, list.chunks(size).map(number).collect()));
        value = more;
    }
    value.is_empty().then_some(segments)
}
