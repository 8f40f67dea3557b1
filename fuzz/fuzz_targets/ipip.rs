//! Packets on both sides of the IPIP carrier: out of the tunnel, and what the host hands in to be wrapped.
//!
//! Held to: nothing is read or described outside the packet; fragments and segments carry every byte once, have right
//! checksums and keep to the size; ICMP errors are sound packets; groups hold every packet once.
#![no_main]

use std::net::Ipv4Addr;

use brindle_felix_core::ipip::{
    OUTER_TTL, PROTO_IPIP,
    checksum::checksum,
    coalesce::{Coalescer, MAX_HEAD, frame_head},
    decap::{Verdict, decapsulate},
    encap::{is_loop, outer_tos},
    fragment::fragment,
    icmp::{self, error},
    ipv4::{FLAG_DF, Header, build, set_ecn},
    segment::{Kind, complete_checksum, segment, transport_state},
    table::Table,
};
use libfuzzer_sys::fuzz_target;

const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fuzz_target!(|data: &[u8]| {
    let [how, a, b, packet @ ..] = data else { return };
    let (size, mut packet) = (u16::from_be_bytes([*a, *b]), packet.to_vec());
    if how & 0x80 != 0 {
        repair(&mut packet);
    }
    match how & 7 {
        0 => outwards(&packet),
        // Behind a sound outer header, so that the inner packet is reached.
        1 => {
            let Ok(inner) = Header::parse(&packet) else { return };
            let payload = u16::try_from(inner.total_len).unwrap_or(u16::MAX);
            let tos = outer_tos(inner.tos);
            let outer = build(REMOTE, LOCAL, PROTO_IPIP, tos, OUTER_TTL, FLAG_DF, payload);
            let whole = [&outer[..], &packet].concat();
            outwards(&whole);
        }
        2 => fragments(&packet, size),
        3 => segments(&packet, size, Kind::Tcp),
        4 => segments(&packet, size, Kind::Udp),
        5 => errors(&packet, size),
        6 => groups(&packet, usize::from(*a)),
        _ => {
            let _ = complete_checksum(&mut packet, u16::from(*a), u16::from(*b));
            if let Ok(header) = Header::parse(&packet) {
                let (_, _) = (transport_state(&packet, &header), is_loop(LOCAL, &header));
                set_ecn(&mut packet, *a);
                Header::parse(&packet).expect("ECN changes no length");
            }
        }
    }
});

/// Makes version, lengths and checksum of a header right.
fn repair(packet: &mut [u8]) {
    let len = u16::try_from(packet.len()).unwrap_or(u16::MAX).to_be_bytes();
    if let [vi, _, l0, l1, _, _, _, _, _, _, c0, c1, ..] = packet {
        *vi = 0x40 | (*vi & 15).clamp(5, 6);
        [*l0, *l1] = len;
        [*c0, *c1] = [0, 0];
        let header = usize::from(*vi & 15) * 4;
        let Some(value) = packet.get(..header).map(checksum) else { return };
        packet[10..12].copy_from_slice(&value.to_be_bytes());
    }
}

fn outwards(packet: &[u8]) {
    let table = Table::new(LOCAL, [], [REMOTE.into()]).expect("a sound table");
    if let Verdict::Deliver(d) = decapsulate(packet, &table) {
        let inner = &packet[d.inner.clone()];
        assert_eq!(Header::parse_checked(inner), Ok(d.header));
        assert_eq!(inner.len(), d.header.total_len);
    }
}

fn fragments(packet: &[u8], mtu: u16) {
    let Ok(header) = Header::parse(packet) else { return };
    let mut heads = Vec::new();
    let list = fragment(packet, &header, mtu, &mut heads);
    let mut at = header.header_len;
    for (i, f) in list.iter().enumerate() {
        let whole = [&heads[f.head.clone()], &packet[f.body.clone()]].concat();
        assert!(whole.len() <= usize::from(mtu));
        let h = Header::parse_checked(&whole).expect("a fragment is a packet");
        assert_eq!((f.body.start, h.total_len), (at, whole.len()));
        assert!(h.more_fragments || i + 1 == list.len());
        at = f.body.end;
    }
    assert!(list.is_empty() || at == header.total_len);
}

fn segments(packet: &[u8], size: u16, kind: Kind) {
    let Ok(header) = Header::parse(packet) else { return };
    let (mut heads, mut list) = (Vec::new(), Vec::new());
    if segment(packet, &header, kind, size, &mut heads, &mut list).is_err() {
        return;
    }
    let mut at = None;
    for s in &list {
        assert!(s.body.len() <= usize::from(size));
        assert!(at.is_none_or(|at| at == s.body.start));
        let whole = [&heads[s.head.clone()], &packet[s.body.clone()]].concat();
        Header::parse_checked(&whole).expect("a segment is a packet");
        at = Some(s.body.end);
    }
    assert_eq!(at, Some(header.total_len));
}

fn errors(packet: &[u8], mtu: u16) {
    let Ok(header) = Header::parse(packet) else { return };
    for what in [icmp::Error::FragmentationNeeded { mtu }, icmp::Error::HostUnreachable] {
        let Some(bytes) = error(packet, &header, what) else { continue };
        let h = Header::parse_checked(&bytes).expect("an error is a packet");
        assert_eq!((h.total_len, h.protocol, h.dst), (bytes.len(), 1, header.src));
        assert!(bytes.len() <= 576);
        assert_eq!(checksum(&bytes[h.header_len..]), 0);
    }
}

/// The bytes cut into packets of about `step` octets, each with a repaired header.
fn groups(bytes: &[u8], step: usize) {
    let mut coalescer = Coalescer::default();
    let mut packets: Vec<Vec<u8>> = bytes.chunks(step.max(40)).map(<[u8]>::to_vec).collect();
    packets.iter_mut().for_each(|p| repair(p));
    packets.retain(|p| Header::parse(p).is_ok());
    for (i, packet) in packets.iter().enumerate() {
        let header = Header::parse(packet).expect("kept above");
        assert_eq!(coalescer.push(packet, &header, i % 7 == 6), i);
    }
    let mut seen = vec![false; packets.len()];
    for group in coalescer.groups() {
        let members: Vec<usize> = coalescer.members(group).collect();
        assert_eq!((members.len(), members.first()), (group.count(), Some(&group.first())));
        for m in &members {
            assert!(!std::mem::replace(&mut seen[*m], true), "packet {m} is in two groups");
        }
        if group.count() > 1 {
            let mut head = [0; MAX_HEAD];
            let len = frame_head(&packets[group.first()], group, &mut head).expect("its own first packet");
            let payload: usize = members.iter().map(|m| packets[*m].len() - len).sum();
            let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
            assert_eq!((total, checksum(&head[..20])), (len + payload, 0));
        }
    }
    assert!(seen.iter().all(|s| *s));
}
