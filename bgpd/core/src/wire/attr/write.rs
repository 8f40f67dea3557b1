//! Writing attributes, one function per row of the table.
//!
//! A function writes its attribute if the set has it, and nothing otherwise. Order, scope and unknown attributes are
//! the business of [`encode_attrs`].

use std::net::Ipv4Addr;

use bytes::{BufMut, BytesMut};

use super::{
    super::{
        error::EmitError,
        iana::{AS_TRANS, attr as code},
        types::{AsPath, AttrSet, NextHop, Origin, WireCx},
    },
    KIND, OPTIONAL, OPTIONAL_TRANSITIVE, Scope, TABLE, WELL_KNOWN, flag, row,
};

/// Where the rows write.
pub(in super::super) struct Out<'a> {
    set: &'a AttrSet,
    next_hop: Option<Ipv4Addr>,
    cx: &'a WireCx,
    buf: &'a mut BytesMut,
}

/// Appends the attributes of routes, without the MP attributes: ascending by code, each in its shortest form,
/// nothing that has no business on this kind of session (LOCAL_PREF on an external one). `next_hop` is NEXT_HOP, for
/// prefixes of the classic NLRI field.
///
/// The result depends on nothing but the arguments: peers with an equal [`WireCx`] share it.
///
/// # Errors
/// An attribute of more than 65,535 octets. Nothing is appended then.
pub fn encode_attrs(
    set: &AttrSet,
    next_hop: Option<Ipv4Addr>,
    cx: &WireCx,
    buf: &mut BytesMut,
) -> Result<(), EmitError> {
    let start = buf.len();
    let mut out = Out { set, next_hop, cx, buf };
    let result = out.all();
    if result.is_err() {
        buf.truncate(start);
    }
    result
}

impl Out<'_> {
    fn all(&mut self) -> Result<(), EmitError> {
        let set = self.set;
        let mut unknown =
            set.unknown.iter().filter(|a| row(a.code).is_none_or(|r| is_opaque(r.code))).peekable();
        for row in &TABLE {
            while let Some(a) = unknown.next_if(|a| a.code < row.code) {
                self.opaque(a)?;
            }
            let sent = match row.scope {
                Scope::Everywhere => true,
                Scope::Ibgp => self.cx.ibgp,
                Scope::TwoOctetPeers => !self.cx.four_octet_as,
            };
            if sent {
                (row.write)(self)?;
            }
        }
        unknown.try_for_each(|a| self.opaque(a))
    }

    fn opaque(&mut self, a: &super::super::types::UnknownAttr) -> Result<(), EmitError> {
        put_header(self.buf, a.flags & (KIND | flag::PARTIAL), a.code, a.value.len())?;
        self.buf.put_slice(&a.value);
        Ok(())
    }

    fn header(&mut self, flags: u8, code: u8, len: usize) -> Result<(), EmitError> {
        put_header(self.buf, flags, code, len)
    }

    fn number(&mut self, flags: u8, code: u8, value: Option<u32>) -> Result<(), EmitError> {
        if let Some(v) = value {
            self.header(flags, code, 4)?;
            self.buf.put_u32(v);
        }
        Ok(())
    }
}

/// Understood, but carried among the unknown ones.
const fn is_opaque(code: u8) -> bool {
    matches!(code, code::IPV6_EXT_COMMUNITIES | code::ONLY_TO_CUSTOMER)
}

/// Flags, code and length; the long form of the length only where it is needed.
pub(in super::super) fn put_header(
    buf: &mut BytesMut,
    flags: u8,
    code: u8,
    len: usize,
) -> Result<(), EmitError> {
    if let Ok(short) = u8::try_from(len) {
        buf.put_slice(&[flags, code, short]);
    } else {
        let what = row(code).map_or("attribute", |r| r.name);
        let long = u16::try_from(len).map_err(|_| EmitError::TooLong { what, len, max: 65_535 })?;
        buf.put_slice(&[flags | flag::EXTENDED_LENGTH, code]);
        buf.put_u16(long);
    }
    Ok(())
}

/// A next hop with its length, as MP_REACH wants it.
pub(in super::super) fn put_next_hop(buf: &mut BytesMut, next_hop: &NextHop) {
    match next_hop {
        NextHop::V4(a) => {
            buf.put_u8(4);
            buf.put_slice(&a.octets());
        }
        NextHop::V6 { global, link_local: None } => {
            buf.put_u8(16);
            buf.put_slice(&global.octets());
        }
        NextHop::V6 { global, link_local: Some(local) } => {
            buf.put_u8(32);
            buf.put_slice(&global.octets());
            buf.put_slice(&local.octets());
        }
    }
}

pub(super) fn origin(o: &mut Out<'_>) -> Result<(), EmitError> {
    o.header(WELL_KNOWN, code::ORIGIN, 1)?;
    o.buf.put_u8(match o.set.origin {
        Origin::Igp => 0,
        Origin::Egp => 1,
        Origin::Incomplete => 2,
    });
    Ok(())
}

fn put_path(o: &mut Out<'_>, flags: u8, code: u8, path: &AsPath, four_octets: bool) -> Result<(), EmitError> {
    o.header(flags, code, path.wire_len(four_octets))?;
    path.emit(four_octets, o.buf);
    Ok(())
}

pub(super) fn as_path(o: &mut Out<'_>) -> Result<(), EmitError> {
    let set = o.set;
    put_path(o, WELL_KNOWN, code::AS_PATH, &set.as_path, o.cx.four_octet_as)
}

/// RFC 6793 section 4.2.2: only when AS_PATH could not say it.
pub(super) fn as4_path(o: &mut Out<'_>) -> Result<(), EmitError> {
    if !o.set.as_path.needs_four_octets() {
        return Ok(());
    }
    let path = o.set.as_path.without_confeds();
    if path.needs_four_octets() {
        put_path(o, OPTIONAL_TRANSITIVE, code::AS4_PATH, &path, true)
    } else {
        Ok(())
    }
}

pub(super) fn next_hop(o: &mut Out<'_>) -> Result<(), EmitError> {
    let next_hop = o.next_hop.map(u32::from);
    o.number(WELL_KNOWN, code::NEXT_HOP, next_hop)
}

pub(super) fn med(o: &mut Out<'_>) -> Result<(), EmitError> {
    o.number(OPTIONAL, code::MED, o.set.med)
}

pub(super) fn local_pref(o: &mut Out<'_>) -> Result<(), EmitError> {
    o.number(WELL_KNOWN, code::LOCAL_PREF, o.set.local_pref)
}

pub(super) fn atomic_aggregate(o: &mut Out<'_>) -> Result<(), EmitError> {
    if o.set.atomic_aggregate { o.header(WELL_KNOWN, code::ATOMIC_AGGREGATE, 0) } else { Ok(()) }
}

pub(super) fn aggregator(o: &mut Out<'_>) -> Result<(), EmitError> {
    let Some(a) = o.set.aggregator else { return Ok(()) };
    if o.cx.four_octet_as {
        o.header(OPTIONAL_TRANSITIVE, code::AGGREGATOR, 8)?;
        o.buf.put_u32(a.asn);
    } else {
        o.header(OPTIONAL_TRANSITIVE, code::AGGREGATOR, 6)?;
        o.buf.put_u16(u16::try_from(a.asn).unwrap_or(AS_TRANS));
    }
    o.buf.put_slice(&a.address.octets());
    Ok(())
}

pub(super) fn as4_aggregator(o: &mut Out<'_>) -> Result<(), EmitError> {
    if let Some(a) = o.set.aggregator.filter(|a| a.asn > u32::from(u16::MAX)) {
        o.header(OPTIONAL_TRANSITIVE, code::AS4_AGGREGATOR, 8)?;
        o.buf.put_u32(a.asn);
        o.buf.put_slice(&a.address.octets());
    }
    Ok(())
}

pub(super) fn communities(o: &mut Out<'_>) -> Result<(), EmitError> {
    let list = &o.set.communities;
    if !list.is_empty() {
        o.header(OPTIONAL_TRANSITIVE, code::COMMUNITIES, list.len().saturating_mul(4))?;
        for c in list {
            o.buf.put_u32(*c);
        }
    }
    Ok(())
}

pub(super) fn ext_communities(o: &mut Out<'_>) -> Result<(), EmitError> {
    let list = &o.set.ext_communities;
    if !list.is_empty() {
        o.header(OPTIONAL_TRANSITIVE, code::EXT_COMMUNITIES, list.len().saturating_mul(8))?;
        for c in list {
            o.buf.put_u64(*c);
        }
    }
    Ok(())
}

pub(super) fn large_communities(o: &mut Out<'_>) -> Result<(), EmitError> {
    let list = &o.set.large_communities;
    if !list.is_empty() {
        o.header(OPTIONAL_TRANSITIVE, code::LARGE_COMMUNITIES, list.len().saturating_mul(12))?;
        for (global, one, two) in list {
            o.buf.put_u32(*global);
            o.buf.put_u32(*one);
            o.buf.put_u32(*two);
        }
    }
    Ok(())
}

pub(super) fn originator_id(o: &mut Out<'_>) -> Result<(), EmitError> {
    let id = o.set.originator_id.map(u32::from);
    o.number(OPTIONAL, code::ORIGINATOR_ID, id)
}

pub(super) fn cluster_list(o: &mut Out<'_>) -> Result<(), EmitError> {
    let list = &o.set.cluster_list;
    if !list.is_empty() {
        o.header(OPTIONAL, code::CLUSTER_LIST, list.len().saturating_mul(4))?;
        for id in list {
            o.buf.put_slice(&id.octets());
        }
    }
    Ok(())
}

/// In front of all others, written by whoever has the prefixes.
pub(super) fn mp_reach(_: &mut Out<'_>) -> Result<(), EmitError> {
    Ok(())
}

/// As [`mp_reach`].
pub(super) fn mp_unreach(_: &mut Out<'_>) -> Result<(), EmitError> {
    Ok(())
}

/// Carried among the unknown ones, which are merged in by code.
pub(super) fn ipv6_ext_communities(_: &mut Out<'_>) -> Result<(), EmitError> {
    Ok(())
}

/// As [`ipv6_ext_communities`].
pub(super) fn only_to_customer(_: &mut Out<'_>) -> Result<(), EmitError> {
    Ok(())
}
