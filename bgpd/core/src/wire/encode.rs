//! UPDATE messages out: many prefixes with the same attributes into as few messages as possible, and the `emit` of a
//! single [`Update`] value.
//!
//! Attributes are encoded once (`encode_attrs`) and copied into every message that announces with them. A message is
//! full when the next prefix would not fit into what the session allows (4,096 or 65,535 octets); the caller decides
//! which prefixes belong together. No queues, no policy.

use std::marker::PhantomData;

use bytes::{BufMut, BytesMut};
use ipnet::{Ipv4Net, Ipv6Net};

use super::{
    attr::{encode_attrs, flag, put_header, put_next_hop},
    cursor::patch,
    error::EmitError,
    frame::MsgType,
    iana::attr as code,
    message::begin,
    nlri::{SLOT, WirePrefix},
    types::{NextHop, Nlri, Prefixes, Reach, Update, WireCx},
};
use crate::af::Family;

/// Octets of an attribute header with the long length.
const LONG_HEADER: usize = 4;

/// What the prefixes of one message stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// NLRI field, attributes in front of it.
    Classic,
    /// MP_REACH, attributes after it.
    MpReach,
    /// Withdrawn routes field.
    Withdrawn,
    /// MP_UNREACH.
    MpUnreach,
}

/// One UPDATE under construction; prefixes are pushed until it is full.
///
/// ```
/// # use brindle_bgpd_core::wire::*;
/// # use bytes::BytesMut;
/// let (cx, mut out) = (WireCx::default(), BytesMut::new());
/// let mut message = UpdateBuilder::<ipnet::Ipv4Net>::withdraw(&cx, &mut out);
/// let prefix = Nlri { prefix: "10.0.0.0/26".parse().unwrap(), path_id: 0 };
/// assert!(message.push(&prefix));
/// assert_eq!(message.finish(), 1);
/// assert_eq!(out.len(), 23 + 5);
/// ```
#[derive(Debug)]
#[must_use = "a message is written by `finish`"]
pub struct UpdateBuilder<'o, 'b, P> {
    out: &'o mut BytesMut,
    /// Where the message begins.
    start: usize,
    /// Where the attribute that holds the prefixes begins.
    attr: usize,
    form: Form,
    add_path: bool,
    /// Octets left for prefixes.
    room: usize,
    /// Attributes to come after the prefixes.
    block: &'b [u8],
    count: usize,
    /// Prefixes on their way to `out`: the first `pending` octets. Asking `out` for room each time costs more than
    /// writing the prefix.
    chunk: [u8; CHUNK],
    pending: usize,
    prefix: PhantomData<P>,
}

/// Octets of prefixes that are put together before they go into the message: about a hundred of IPv4.
const CHUNK: usize = 512;

impl<'o, 'b> UpdateBuilder<'o, 'b, Ipv4Net> {
    /// Announces IPv4 prefixes in the classic form. `block` comes from [`encode_attrs`] with a next hop and an equal
    /// `cx`.
    pub fn announce(cx: &WireCx, block: &'b [u8], out: &'o mut BytesMut) -> Self {
        let [add_path, _] = cx.add_path;
        let start = begin(MsgType::Update, out);
        out.put_u16(0);
        // A block that is too long leaves no room for a prefix, so its length is never sent.
        out.put_u16(u16::try_from(block.len()).unwrap_or(u16::MAX));
        out.put_slice(block);
        Self::new(cx, Form::Classic, add_path, start, &[], out)
    }

    /// Withdraws IPv4 prefixes in the classic form.
    pub fn withdraw(cx: &WireCx, out: &'o mut BytesMut) -> Self {
        let [add_path, _] = cx.add_path;
        let start = begin(MsgType::Update, out);
        out.put_u16(0);
        let mut this = Self::new(cx, Form::Withdrawn, add_path, start, &[], out);
        // The length of no attributes follows the prefixes.
        this.room = this.room.saturating_sub(2);
        this
    }
}

impl<'o, 'b> UpdateBuilder<'o, 'b, Ipv6Net> {
    /// Announces IPv6 prefixes in MP_REACH. `block` comes from [`encode_attrs`] without a next hop and with an equal
    /// `cx`.
    ///
    /// # Errors
    /// [`EmitError::NextHopFamily`] if the next hop is an IPv4 one.
    pub fn announce(
        cx: &WireCx,
        next_hop: &NextHop,
        block: &'b [u8],
        out: &'o mut BytesMut,
    ) -> Result<Self, EmitError> {
        if !matches!(next_hop, NextHop::V6 { .. }) {
            return Err(EmitError::NextHopFamily);
        }
        let [_, add_path] = cx.add_path;
        let mut this = Self::mp(cx, Form::MpReach, add_path, block, out);
        put_next_hop(this.out, next_hop);
        this.out.put_u8(0);
        this.room = room(cx, this.start, block.len(), this.out);
        Ok(this)
    }

    /// Withdraws IPv6 prefixes in MP_UNREACH.
    pub fn withdraw(cx: &WireCx, out: &'o mut BytesMut) -> Self {
        let [_, add_path] = cx.add_path;
        Self::mp(cx, Form::MpUnreach, add_path, &[], out)
    }

    fn mp(cx: &WireCx, form: Form, add_path: bool, block: &'b [u8], out: &'o mut BytesMut) -> Self {
        let start = begin(MsgType::Update, out);
        out.put_u32(0);
        let attr = out.len();
        let code = if form == Form::MpReach { code::MP_REACH } else { code::MP_UNREACH };
        // The long form, until the length is known.
        out.put_slice(&[flag::OPTIONAL | flag::EXTENDED_LENGTH, code, 0, 0]);
        put_family(out, Family::Ipv6Unicast);
        let mut this = Self::new(cx, form, add_path, start, block, out);
        this.attr = attr;
        this
    }
}

impl<'o, 'b, P: WirePrefix> UpdateBuilder<'o, 'b, P> {
    fn new(
        cx: &WireCx,
        form: Form,
        add_path: bool,
        start: usize,
        block: &'b [u8],
        out: &'o mut BytesMut,
    ) -> Self {
        let room = room(cx, start, block.len(), out);
        let (chunk, pending) = ([0; CHUNK], 0);
        Self {
            attr: start,
            out,
            start,
            form,
            add_path,
            room,
            block,
            count: 0,
            chunk,
            pending,
            prefix: PhantomData,
        }
    }

    /// Adds a prefix; false (and nothing added) if it does not fit. A message that refuses its first prefix means
    /// that the attributes leave no room for any: the route cannot be sent to this peer.
    #[must_use]
    #[inline]
    pub fn push(&mut self, nlri: &Nlri<P>) -> bool {
        let Some(room) = self.room.checked_sub(nlri.wire_len(self.add_path)) else { return false };
        let slot = self.chunk.get_mut(self.pending..).and_then(<[u8]>::first_chunk_mut::<SLOT>);
        let taken = match slot {
            Some(slot) => nlri.fill(self.add_path, slot),
            None => {
                self.flush();
                let Some(slot) = self.chunk.first_chunk_mut::<SLOT>() else { return false };
                nlri.fill(self.add_path, slot)
            }
        };
        self.pending = self.pending.saturating_add(taken);
        self.room = room;
        self.count = self.count.saturating_add(1);
        true
    }

    /// Moves the prefixes into the message.
    fn flush(&mut self) {
        self.out.put_slice(self.chunk.get(..self.pending).unwrap_or_default());
        self.pending = 0;
    }

    /// Completes the message; returns how many prefixes are in it. With none nothing is written: an empty UPDATE
    /// would mean End-of-RIB.
    pub fn finish(mut self) -> usize {
        self.flush();
        if self.count == 0 {
            self.out.truncate(self.start);
            return 0;
        }
        let body = self.start.saturating_add(super::frame::HEADER_LEN);
        match self.form {
            Form::Classic => {}
            Form::Withdrawn => {
                let len = self.out.len().saturating_sub(body).saturating_sub(2);
                patch(self.out, body, length(len));
                self.out.put_u16(0);
            }
            Form::MpReach | Form::MpUnreach => {
                let len = self.out.len().saturating_sub(self.attr).saturating_sub(LONG_HEADER);
                close_attribute(self.out, self.attr, len);
                self.out.put_slice(self.block);
                let attrs = self.out.len().saturating_sub(body).saturating_sub(4);
                patch(self.out, body.saturating_add(2), length(attrs));
            }
        }
        let total = self.out.len().saturating_sub(self.start);
        patch(self.out, self.start.saturating_add(16), length(total));
        self.count
    }
}

/// Octets left for prefixes after what is written and `reserved` more.
fn room(cx: &WireCx, start: usize, reserved: usize, out: &BytesMut) -> usize {
    let used = out.len().saturating_sub(start).saturating_add(reserved);
    cx.max_len().saturating_sub(used)
}

/// A length that `room` has kept within the message.
fn length(n: usize) -> [u8; 2] {
    u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes()
}

/// Fills in the length of the attribute written last, whose header of the long form begins at `at`; the short form
/// takes its place where it will do.
fn close_attribute(out: &mut BytesMut, at: usize, len: usize) {
    if let Ok(short) = u8::try_from(len) {
        if let Some([flags, _, field, value @ ..]) = out.get_mut(at..) {
            *flags &= !flag::EXTENDED_LENGTH;
            *field = short;
            // Over the second octet of the length.
            value.copy_within(1.., 0);
        }
        out.truncate(out.len().saturating_sub(1));
    } else {
        patch(out, at.saturating_add(2), length(len));
    }
}

fn put_family(out: &mut BytesMut, family: Family) {
    let (afi, safi) = family.code();
    out.put_u16(afi);
    out.put_u8(safi);
}

/// Announces all prefixes of one family with one set of attributes, in as few messages as they need; returns how
/// many. `block` comes from [`encode_attrs`], with a next hop for IPv4 and without one for IPv6.
///
/// # Errors
/// [`EmitError::TooLong`] if the attributes leave no room for a prefix: withdraw the prefixes from this peer.
pub fn announce(
    cx: &WireCx,
    next_hop: &NextHop,
    prefixes: &Prefixes,
    block: &[u8],
    out: &mut BytesMut,
) -> Result<usize, EmitError> {
    let too_long = EmitError::TooLong {
        what: "path attributes",
        len: block.len(),
        max: cx.max_len().saturating_sub(23),
    };
    match prefixes {
        Prefixes::V4(list) => {
            if !matches!(next_hop, NextHop::V4(_)) {
                return Err(EmitError::NextHopFamily);
            }
            fill(list, out, |out| Ok(UpdateBuilder::<Ipv4Net>::announce(cx, block, out)), too_long)
        }
        Prefixes::V6(list) => {
            fill(list, out, |out| UpdateBuilder::<Ipv6Net>::announce(cx, next_hop, block, out), too_long)
        }
    }
}

/// Withdraws all prefixes of one family, in as few messages as they need; returns how many.
pub fn withdraw(cx: &WireCx, prefixes: &Prefixes, out: &mut BytesMut) -> usize {
    // A message without attributes has room for any prefix.
    let full = EmitError::TooLong { what: "prefix", len: 0, max: 0 };
    match prefixes {
        Prefixes::V4(list) => {
            fill(list, out, |out| Ok(UpdateBuilder::<Ipv4Net>::withdraw(cx, out)), full).unwrap_or(0)
        }
        Prefixes::V6(list) => {
            fill(list, out, |out| Ok(UpdateBuilder::<Ipv6Net>::withdraw(cx, out)), full).unwrap_or(0)
        }
    }
}

fn fill<'b, P: WirePrefix>(
    list: &[Nlri<P>],
    out: &mut BytesMut,
    begin: impl for<'o> Fn(&'o mut BytesMut) -> Result<UpdateBuilder<'o, 'b, P>, EmitError>,
    full: EmitError,
) -> Result<usize, EmitError> {
    let start = out.len();
    let mut rest = list;
    let mut messages: usize = 0;
    while !rest.is_empty() {
        let mut message = begin(out)?;
        while let Some((first, more)) = rest.split_first()
            && message.push(first)
        {
            rest = more;
        }
        if message.finish() == 0 {
            out.truncate(start);
            return Err(full);
        }
        messages = messages.saturating_add(1);
    }
    Ok(messages)
}

/// Appends the End-of-RIB marker of a family (RFC 4724 section 2).
pub fn end_of_rib(family: Family, out: &mut BytesMut) {
    let start = begin(MsgType::Update, out);
    out.put_u16(0);
    match family {
        Family::Ipv4Unicast => out.put_u16(0),
        Family::Ipv6Unicast => {
            out.put_slice(&[0, 6, flag::OPTIONAL, code::MP_UNREACH, 3]);
            put_family(out, family);
        }
    }
    let total = out.len().saturating_sub(start);
    patch(out, start.saturating_add(16), length(total));
}

impl Update {
    /// Writes the body of the one message this value is; the header is the caller's.
    pub(super) fn emit(&self, cx: &WireCx, out: &mut BytesMut) -> Result<(), EmitError> {
        if let Some(family) = self.end_of_rib {
            if !self.withdrawn.is_empty() || !self.reach.is_empty() {
                return Err(EmitError::NotOneMessage);
            }
            let mut message = BytesMut::new();
            end_of_rib(family, &mut message);
            out.put_slice(message.get(super::frame::HEADER_LEN..).unwrap_or_default());
            return Ok(());
        }
        if self.withdrawn.iter().all(Prefixes::is_empty) && self.reach.iter().all(|r| r.prefixes.is_empty()) {
            return Err(EmitError::Empty);
        }
        let [add_v4, add_v6] = cx.add_path;

        let at = out.len();
        out.put_u16(0);
        for p in &self.withdrawn {
            if let Prefixes::V4(list) = p {
                list.iter().for_each(|n| n.emit(add_v4, out));
            }
        }
        close_field("withdrawn routes", at, out)?;

        let (v4, v6) = one_each(&self.reach)?;
        let at = out.len();
        out.put_u16(0);
        if let Some((next_hop, list)) = v6 {
            let hop_len: usize =
                if matches!(next_hop, NextHop::V6 { link_local: Some(_), .. }) { 32 } else { 16 };
            let len = list
                .iter()
                .map(|n| n.wire_len(add_v6))
                .fold(hop_len.saturating_add(5), usize::saturating_add);
            put_header(out, flag::OPTIONAL, code::MP_REACH, len)?;
            put_family(out, Family::Ipv6Unicast);
            put_next_hop(out, next_hop);
            out.put_u8(0);
            list.iter().for_each(|n| n.emit(add_v6, out));
        }
        let gone = || {
            self.withdrawn.iter().flat_map(|p| match p {
                Prefixes::V6(list) => list.as_slice(),
                Prefixes::V4(_) => &[],
            })
        };
        if gone().next().is_some() {
            let len = gone().map(|n| n.wire_len(add_v6)).fold(3, usize::saturating_add);
            put_header(out, flag::OPTIONAL, code::MP_UNREACH, len)?;
            put_family(out, Family::Ipv6Unicast);
            gone().for_each(|n| n.emit(add_v6, out));
        }
        if v4.is_some() || v6.is_some() {
            let attributes = self.attributes.as_ref().ok_or(EmitError::NoAttributes)?;
            let next_hop = v4.map(|(next_hop, _)| next_hop);
            encode_attrs(attributes, next_hop, cx, out)?;
        }
        close_field("path attributes", at, out)?;
        if let Some((_, list)) = v4 {
            list.iter().for_each(|n| n.emit(add_v4, out));
        }
        Ok(())
    }
}

type OneV4<'a> = Option<(std::net::Ipv4Addr, &'a [Nlri<Ipv4Net>])>;
type OneV6<'a> = Option<(&'a NextHop, &'a [Nlri<Ipv6Net>])>;

/// At most one announcement of each family, with a next hop of that family.
fn one_each(reach: &[Reach]) -> Result<(OneV4<'_>, OneV6<'_>), EmitError> {
    let (mut v4, mut v6) = (None, None);
    for r in reach {
        match (&r.prefixes, &r.next_hop) {
            (p, _) if p.is_empty() => {}
            (Prefixes::V4(list), NextHop::V4(a)) if v4.is_none() => v4 = Some((*a, list.as_slice())),
            (Prefixes::V6(list), hop @ NextHop::V6 { .. }) if v6.is_none() => {
                v6 = Some((hop, list.as_slice()))
            }
            (Prefixes::V4(_), NextHop::V4(_)) | (Prefixes::V6(_), NextHop::V6 { .. }) => {
                return Err(EmitError::NotOneMessage);
            }
            (Prefixes::V4(_), NextHop::V6 { .. }) | (Prefixes::V6(_), NextHop::V4(_)) => {
                return Err(EmitError::NextHopFamily);
            }
        }
    }
    Ok((v4, v6))
}

/// Fills in the two-octet length at `at` of what was written after it.
fn close_field(what: &'static str, at: usize, out: &mut BytesMut) -> Result<(), EmitError> {
    let len = out.len().saturating_sub(at).saturating_sub(2);
    let field = u16::try_from(len).map_err(|_| EmitError::TooLong { what, len, max: 65_535 })?;
    patch(out, at, field.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests;
