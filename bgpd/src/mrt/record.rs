//! MRT records as bytes: the common header (RFC 6396 section 2), the peer index, RIB entries, BGP4MP_ET.

use std::net::{IpAddr, Ipv4Addr};

use brindle_bgpd_core::wire::{AttrSet, EmitError, Message, NextHop, WireCx, encode_attrs};
use bytes::{BufMut, BytesMut};
use ipnet::IpNet;

const TABLE_DUMP_V2: u16 = 13;
const BGP4MP_ET: u16 = 17;

/// A neighbor in the peer index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) id: Ipv4Addr,
    pub(super) address: IpAddr,
    pub(super) asn: u32,
}

/// A path in a RIB entry.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) peer: u16,
    /// Seconds since 1970.
    pub(super) since: u32,
    pub(super) path_id: u32,
    pub(super) attributes: &'a AttrSet,
    pub(super) next_hop: Option<NextHop>,
    /// LOCAL_PREF of an external peer's route is ours and not in what it sent.
    pub(super) ibgp: bool,
}

/// Both ends of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) peer_asn: u32,
    pub(super) local_asn: u32,
    pub(super) peer: IpAddr,
    pub(super) local: IpAddr,
}

/// Fills in the length of a record when its body is written.
fn record(out: &mut BytesMut, seconds: u32, kind: u16, subtype: u16, body: impl FnOnce(&mut BytesMut)) {
    out.put_u32(seconds);
    out.put_u16(kind);
    out.put_u16(subtype);
    let at = out.len();
    out.put_u32(0);
    body(out);
    // A record holds one message or the paths of one prefix: far below 4 GiB.
    let len = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(at..at + 4) {
        field.copy_from_slice(&len.to_be_bytes());
    }
}

fn put_address(out: &mut BytesMut, address: IpAddr) {
    match address {
        IpAddr::V4(a) => out.put_slice(&a.octets()),
        IpAddr::V6(a) => out.put_slice(&a.octets()),
    }
}

/// PEER_INDEX_TABLE (section 4.3.1), with 4-octet AS numbers throughout.
pub(super) fn peer_index(out: &mut BytesMut, seconds: u32, router_id: Ipv4Addr, peers: &[Peer]) {
    record(out, seconds, TABLE_DUMP_V2, 1, |out| {
        out.put_slice(&router_id.octets());
        out.put_u16(0);
        out.put_u16(u16::try_from(peers.len()).unwrap_or(u16::MAX));
        for p in peers {
            out.put_u8(0b10 | u8::from(p.address.is_ipv6()));
            out.put_slice(&p.id.octets());
            put_address(out, p.address);
            out.put_u32(p.asn);
        }
    });
}

/// The paths of one prefix (section 4.3.2; RFC 8050 where path identifiers are in use). An entry whose attributes have
/// no form on the wire is left out.
pub(super) fn rib(out: &mut BytesMut, seconds: u32, sequence: u32, prefix: IpNet, entries: &[Entry<'_>]) {
    let add_path = entries.iter().any(|e| e.path_id != 0);
    let subtype = match (prefix, add_path) {
        (IpNet::V4(_), false) => 2,
        (IpNet::V6(_), false) => 4,
        (IpNet::V4(_), true) => 8,
        (IpNet::V6(_), true) => 10,
    };
    record(out, seconds, TABLE_DUMP_V2, subtype, |out| {
        out.put_u32(sequence);
        put_prefix(out, prefix);
        let (at, mut count) = (out.len(), 0u16);
        out.put_u16(0);
        for e in entries {
            let start = out.len();
            out.put_u16(e.peer);
            out.put_u32(e.since);
            if add_path {
                out.put_u32(e.path_id);
            }
            let length = out.len();
            out.put_u16(0);
            let done = attributes(out, e);
            match u16::try_from(out.len() - length - 2) {
                Ok(len) if done.is_ok() => {
                    if let Some(field) = out.get_mut(length..length + 2) {
                        field.copy_from_slice(&len.to_be_bytes());
                    }
                    count += 1;
                }
                _ => out.truncate(start),
            }
        }
        if let Some(field) = out.get_mut(at..at + 2) {
            field.copy_from_slice(&count.to_be_bytes());
        }
    });
}

fn put_prefix(out: &mut BytesMut, prefix: IpNet) {
    let octets = usize::from(prefix.prefix_len()).div_ceil(8);
    out.put_u8(prefix.prefix_len());
    match prefix.addr() {
        IpAddr::V4(a) => out.put_slice(a.octets().get(..octets).unwrap_or_default()),
        IpAddr::V6(a) => out.put_slice(a.octets().get(..octets).unwrap_or_default()),
    }
}

/// 4-octet AS numbers, whatever the session has (section 4.3.4); MP_REACH_NLRI is the next hop only.
fn attributes(out: &mut BytesMut, e: &Entry<'_>) -> Result<(), EmitError> {
    let cx = WireCx { four_octet_as: true, extended_message: true, ibgp: e.ibgp, ..WireCx::default() };
    let (classic, mp) = match e.next_hop {
        Some(NextHop::V4(a)) => (Some(a), None),
        Some(NextHop::V6 { global, link_local }) => (None, Some((global, link_local))),
        None => (Some(Ipv4Addr::UNSPECIFIED), None),
    };
    encode_attrs(e.attributes, classic, &cx, out)?;
    if let Some((global, link_local)) = mp {
        let len: u8 = if link_local.is_some() { 32 } else { 16 };
        out.put_slice(&[0x80, 14, len + 1, len]);
        out.put_slice(&global.octets());
        if let Some(l) = link_local {
            out.put_slice(&l.octets());
        }
    }
    Ok(())
}

/// Head of a BGP4MP_ET record (section 4.4 and 3): microseconds, both ends.
fn head(out: &mut BytesMut, micros: u32, e: &Ends) {
    out.put_u32(micros);
    out.put_u32(e.peer_asn);
    out.put_u32(e.local_asn);
    out.put_u16(0);
    out.put_u16(if e.peer.is_ipv4() { 1 } else { 2 });
    put_address(out, e.peer);
    // The same family, as the format wants it.
    match (e.peer.is_ipv4(), e.local.is_ipv4()) {
        (true, false) => out.put_u32(0),
        (false, true) => out.put_u128(0),
        _ => put_address(out, e.local),
    }
}

/// A message as BGP4MP_MESSAGE_AS4; with path identifiers the ADDPATH form (RFC 8050).
pub(super) fn message(out: &mut BytesMut, at_ms: u64, ends: &Ends, cx: &WireCx, message: &Message) {
    let cx = WireCx { four_octet_as: true, extended_message: true, ..*cx };
    let subtype = if matches!(message, Message::Update(_)) && cx.add_path != [false; 2] { 9 } else { 4 };
    let start = out.len();
    let mut whole = true;
    record(out, seconds(at_ms), BGP4MP_ET, subtype, |out| {
        head(out, micros(at_ms), ends);
        whole = message.emit(&cx, out).is_ok();
    });
    if !whole {
        out.truncate(start);
    }
}

/// A change of state as BGP4MP_STATE_CHANGE_AS4.
pub(super) fn state_change(out: &mut BytesMut, at_ms: u64, ends: &Ends, old: &str, new: &str) {
    record(out, seconds(at_ms), BGP4MP_ET, 5, |out| {
        head(out, micros(at_ms), ends);
        out.put_u16(state(old));
        out.put_u16(state(new));
    });
}

/// Numbers of section 4.4.1.
fn state(name: &str) -> u16 {
    match name {
        "Connect" => 2,
        "Active" => 3,
        "OpenSent" => 4,
        "OpenConfirm" => 5,
        "Established" => 6,
        _ => 1,
    }
}

/// Seconds of a record; the format ends in 2106.
pub(super) fn seconds(ms: u64) -> u32 {
    u32::try_from(ms / 1_000).unwrap_or(u32::MAX)
}

fn micros(ms: u64) -> u32 {
    u32::try_from(ms % 1_000 * 1_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_what_the_rfc_says() {
        let ends = Ends {
            peer_asn: 65_001,
            local_asn: 4_200_000_000,
            peer: "192.0.2.1".parse().unwrap(),
            local: "192.0.2.2".parse().unwrap(),
        };
        let mut out = BytesMut::new();
        state_change(&mut out, 1_000_000_123_456, &ends, "OpenConfirm", "Established");
        let mut expected = vec![0x3b, 0x9a, 0xca, 0x7b, 0, 17, 0, 5, 0, 0, 0, 28];
        expected.extend([0, 6, 0xf5, 0x40, 0, 0, 0xfd, 0xe9, 0xfa, 0x56, 0xea, 0]);
        expected.extend([0, 0, 0, 1, 192, 0, 2, 1, 192, 0, 2, 2, 0, 5, 0, 6]);
        assert_eq!(out[..], expected);
        let mut out = BytesMut::new();
        message(&mut out, 0, &ends, &WireCx::default(), &Message::Keepalive);
        assert_eq!(out.len(), 12 + 24 + 19);
        assert_eq!(out[8..12], 43u32.to_be_bytes());
    }

    #[test]
    fn an_entry_too_long_for_the_format_is_left_out() {
        let huge = AttrSet { communities: (0..20_000).collect(), ..AttrSet::default() };
        let small = AttrSet::default();
        let entry = |attributes| Entry {
            peer: 1,
            since: 0,
            path_id: 0,
            attributes,
            next_hop: Some(NextHop::V4(Ipv4Addr::LOCALHOST)),
            ibgp: true,
        };
        let mut out = BytesMut::new();
        rib(&mut out, 0, 0, "10.0.0.0/8".parse().unwrap(), &[entry(&huge), entry(&small)]);
        assert_eq!(out[18..20], [0, 1], "one entry: {out:?}");
    }
}
