//! Tests of the packet rules.
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::coalesce::{self, Coalescer};
use super::decap::{OuterFlaw, Verdict, decapsulate, merge_ecn};
use super::fragment::{Fragment, fragment};
use super::icmp::{self, Limiter};
use super::ipv4::{self, Flaw, Header};
use super::segment::{Kind, Transport, complete_checksum, segment, transport_state};
use super::table::{Choice, Table, TableError};
use super::*;

const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const B: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
const POD_A: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);
const POD_B: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 2);

fn net(text: &str) -> ipnet::Ipv4Net {
    text.parse().unwrap()
}

fn packet(protocol: u8, tos: u8, flags: u16, payload: &[u8]) -> Vec<u8> {
    let head = ipv4::build(POD_A, POD_B, protocol, tos, 63, flags, u16::try_from(payload.len()).unwrap());
    [head.as_slice(), payload].concat()
}

fn wrap(inner: &[u8], from: Ipv4Addr, tos: u8) -> Vec<u8> {
    let payload = u16::try_from(inner.len()).unwrap();
    let head = ipv4::build(from, B, PROTO_IPIP, tos, 64, ipv4::FLAG_DF, payload);
    [head.as_slice(), inner].concat()
}

fn table() -> Table {
    Table::new(B, [(net("192.168.1.0/26"), &[A][..])], [A.into()]).unwrap()
}

fn tcp(seq: u32, flags: u8, payload: &[u8], complete: bool) -> Vec<u8> {
    let mut t = Vec::from([0x1f, 0x90, 0x9c, 0x40]);
    t.extend(seq.to_be_bytes());
    t.extend([0, 0, 0, 7]);
    t.extend([0x80, flags, 0x01, 0xf6, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    // data offset 8 words: 20 fixed bytes, 12 of options
    assert_eq!(t.len(), 32);
    t.extend(payload);
    let mut sum = checksum::Sum::pseudo(POD_A, POD_B, 6, u16::try_from(t.len()).unwrap());
    let partial = sum.fold();
    sum.add(&t);
    let value = if complete { sum.finish() } else { partial };
    t[16..18].copy_from_slice(&value.to_be_bytes());
    packet(6, 0, ipv4::FLAG_DF, &t)
}

fn tcp_sum_is_right(packet: &[u8]) -> bool {
    let h = Header::parse_checked(packet).unwrap();
    let t = &packet[h.header_len..h.total_len];
    let mut sum = checksum::Sum::pseudo(h.src, h.dst, h.protocol, u16::try_from(t.len()).unwrap());
    sum.add(t);
    sum.finish() == 0
}

fn joined(packet: &[u8], heads: &[u8], pieces: &[Fragment]) -> Vec<Vec<u8>> {
    pieces.iter().map(|f| [&heads[f.head.clone()], &packet[f.body.clone()]].concat()).collect()
}

// --- checksum and header ---

#[test]
fn the_checksum_of_rfc_1071_section_3() {
    assert_eq!(checksum::checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
}

#[test]
fn a_header_with_wrong_lengths_is_named() {
    let good = packet(17, 0, 0, &[0; 8]);
    assert_eq!(Header::parse(&good[..19]), Err(Flaw::Short));
    for (at, value, flaw) in
        [(0, 0x65, Flaw::Version), (0, 0x44, Flaw::HeaderLength), (0, 0x4f, Flaw::HeaderLength)]
    {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(Header::parse(&bad), Err(flaw));
    }
    for length in [0u16, 19, 29] {
        let mut bad = good.clone();
        bad[2..4].copy_from_slice(&length.to_be_bytes());
        assert_eq!(Header::parse(&bad), Err(Flaw::TotalLength), "{length}");
    }
    let mut bad = good;
    bad[8] ^= 1;
    assert_eq!(Header::parse_checked(&bad), Err(Flaw::Checksum));
}

// --- table ---

#[test]
fn the_longest_route_wins_and_a_host_route_beats_its_block() {
    let c = Ipv4Addr::new(10, 3, 0, 2);
    let t = Table::new(B, [(net("192.168.1.0/26"), &[A][..]), (net("192.168.1.7/32"), &[c])], []).unwrap();
    assert_eq!(t.via(Ipv4Addr::new(192, 168, 1, 6)), Some(Choice::One(A)));
    assert_eq!(t.via(Ipv4Addr::new(192, 168, 1, 7)), Some(Choice::One(c)));
    assert_eq!(t.via(Ipv4Addr::new(192, 168, 1, 64)), None);
}

#[test]
fn a_set_with_one_bad_entry_is_refused_whole() {
    let refused = |routes: &[(&str, Ipv4Addr)], sources: &[Ipv4Addr]| {
        Table::new(
            B,
            routes.iter().map(|(p, v)| (net(p), std::slice::from_ref(v))),
            sources.iter().map(|s| (*s).into()),
        )
        .unwrap_err()
    };
    assert_eq!(refused(&[("10.0.0.1/24", A)], &[]), TableError::HostBits(net("10.0.0.1/24")));
    assert_eq!(refused(&[("10.0.0.0/24", B)], &[]), TableError::ToSelf(net("10.0.0.0/24")));
    let any = Ipv4Addr::UNSPECIFIED;
    assert_eq!(refused(&[("10.0.0.0/24", any)], &[]), TableError::NotANode(any));
    assert_eq!(
        refused(&[], &[Ipv4Addr::new(224, 0, 0, 1)]),
        TableError::NotANode(Ipv4Addr::new(224, 0, 0, 1))
    );
    assert!(matches!(refused(&[("10.0.0.0/24", A), ("10.0.0.0/24", POD_A)], &[]), TableError::Twice { .. }));
    let none = Table::new(B, [(net("10.0.0.0/24"), &[][..])], []).unwrap_err();
    assert_eq!(none, TableError::NoEnd(net("10.0.0.0/24")));
}

#[test]
fn sources_are_addresses_and_ranges() {
    let t = Table::new(B, [], [net("10.1.0.0/16"), A.into()]).unwrap();
    assert!(t.accepts(A) && t.accepts(Ipv4Addr::new(10, 1, 7, 7)));
    assert!(!t.accepts(Ipv4Addr::new(10, 2, 0, 1)));
    assert_eq!(t.sources(), 2);
}

// --- decapsulation ---

#[test]
fn a_packet_of_a_known_node_is_delivered_without_its_padding() {
    let inner = packet(17, 0, 0, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let mut padded = inner.clone();
    padded.extend([0xaa; 5]);
    let outer = wrap(&padded, A, 0);
    let Verdict::Deliver(d) = decapsulate(&outer, &table()) else { panic!("not delivered") };
    assert_eq!(&outer[d.inner], &inner);
    assert_eq!(d.set_ecn, None);
}

#[test]
fn a_stranger_is_refused_before_its_packet_is_looked_into() {
    let outer = wrap(&[0xff; 3], POD_A, 0);
    assert_eq!(decapsulate(&outer, &table()), Verdict::UnknownSource(POD_A));
}

#[test]
fn bad_outer_and_inner_packets_are_told_apart() {
    let t = table();
    let inner = packet(17, 0, 0, &[0; 8]);
    let good = wrap(&inner, A, 0);
    assert_eq!(decapsulate(&good[..10], &t), Verdict::Outer(OuterFlaw::Header(Flaw::Short)));
    assert_eq!(decapsulate(&good[..30], &t), Verdict::Outer(OuterFlaw::Header(Flaw::TotalLength)));
    let mut other = good.clone();
    other[9] = 47;
    assert_eq!(decapsulate(&other, &t), Verdict::Outer(OuterFlaw::Protocol(47)));
    let mut piece = good.clone();
    piece[6] |= 0x20;
    assert_eq!(decapsulate(&piece, &t), Verdict::Outer(OuterFlaw::Fragment));
    assert_eq!(decapsulate(&wrap(&[], A, 0), &t), Verdict::Inner(Flaw::Short));
    assert_eq!(decapsulate(&wrap(&[0x60; 40], A, 0), &t), Verdict::Inner(Flaw::Version));
    assert_eq!(decapsulate(&wrap(&inner[..24], A, 0), &t), Verdict::Inner(Flaw::TotalLength));
    let mut corrupt = good;
    corrupt[20 + 8] ^= 0x40;
    assert_eq!(decapsulate(&corrupt, &t), Verdict::Inner(Flaw::Checksum));
}

#[test]
fn outer_options_are_skipped() {
    let inner = packet(17, 0, 0, &[0; 8]);
    let mut head = ipv4::build(A, B, 4, 0, 64, 0, 0).to_vec();
    head[0] = 0x46;
    head.extend([1, 1, 1, 0]);
    let total = u16::try_from(head.len() + inner.len()).unwrap();
    ipv4::rewrite(&mut head, total, 0, 0);
    let outer = [head, inner].concat();
    assert!(matches!(decapsulate(&outer, &table()), Verdict::Deliver(d) if d.inner == (24..52)));
}

#[test]
fn ecn_fields_merge_as_rfc_6040_figure_4_says() {
    const DROP: Option<u8> = None;
    // rows: inner not-ECT, ECT(1), ECT(0), CE; columns: outer not-ECT, ECT(1), ECT(0), CE
    let expected = [
        (0, [Some(0), Some(0), Some(0), DROP]),
        (1, [Some(1), Some(1), Some(1), Some(3)]),
        (2, [Some(2), Some(1), Some(2), Some(3)]),
        (3, [Some(3), Some(3), Some(3), Some(3)]),
    ];
    for (inner, row) in expected {
        for (outer, want) in row.into_iter().enumerate() {
            assert_eq!(merge_ecn(u8::try_from(outer).unwrap(), inner), want, "inner {inner} outer {outer}");
        }
    }
    let outer = wrap(&packet(17, 0xb8, 0, &[0; 8]), A, 3);
    assert_eq!(decapsulate(&outer, &table()), Verdict::EcnDrop);
}

#[test]
fn congestion_marked_on_the_way_reaches_the_inner_header() {
    let mut inner = packet(17, 0xba, 0, &[0; 8]);
    let outer = wrap(&inner, A, 3);
    let Verdict::Deliver(d) = decapsulate(&outer, &table()) else { panic!("not delivered") };
    ipv4::set_ecn(&mut inner, d.set_ecn.unwrap());
    let h = Header::parse_checked(&inner).unwrap();
    assert_eq!(h.tos, 0xbb, "DSCP untouched, CE set");
}

#[test]
fn the_outer_header_copies_ecn_but_not_dscp() {
    assert_eq!([0xb8, 0xb9, 0xba, 0xbb].map(encap::outer_tos), [0, 1, 2, 3]);
}

#[test]
fn our_own_outer_packet_is_a_loop_and_a_pods_tunnel_is_not() {
    let own = wrap(&packet(17, 0, 0, &[0; 8]), B, 0);
    assert!(encap::is_loop(B, &Header::parse(&own).unwrap()));
    assert!(!encap::is_loop(B, &Header::parse(&packet(4, 0, 0, &[0; 8])).unwrap()));
}

// --- ICMP ---

#[test]
fn fragmentation_needed_names_the_mtu_and_quotes_the_packet() {
    let big = packet(6, 0, ipv4::FLAG_DF, &[7; 1400]);
    let h = Header::parse(&big).unwrap();
    let error = icmp::error(&big, &h, icmp::Error::FragmentationNeeded { mtu: 1380 }).unwrap();
    let eh = Header::parse_checked(&error).unwrap();
    assert_eq!((eh.src, eh.dst, eh.protocol, eh.tos), (POD_B, POD_A, 1, 0xc0));
    assert_eq!(error.len(), 576);
    assert_eq!(eh.total_len, error.len());
    assert_eq!(&error[20..22], &[3, 4]);
    assert_eq!(&error[24..28], &[0, 0, 0x05, 0x64]);
    assert_eq!(&error[28..], &big[..548]);
    assert_eq!(checksum::checksum(&error[20..]), 0);
}

#[test]
fn no_error_about_errors_fragments_or_groups() {
    let told = |p: &[u8]| icmp::error(p, &Header::parse(p).unwrap(), icmp::Error::HostUnreachable).is_some();
    assert!(told(&packet(1, 0, 0, &[8, 0, 0, 0, 0, 0, 0, 0])), "echo request");
    assert!(!told(&packet(1, 0, 0, &[3, 4, 0, 0, 0, 0, 0, 0])), "unreachable");
    assert!(!told(&packet(1, 0, 0, &[])), "empty ICMP");
    let mut second = packet(17, 0, 0, &[0; 8]);
    second[7] = 9;
    assert!(!told(&second), "second fragment");
    let mut group = packet(17, 0, 0, &[0; 8]);
    group[16] = 224;
    assert!(!told(&group), "multicast");
}

#[test]
fn errors_are_limited_and_the_limit_refills() {
    let mut limiter = Limiter::new(10, 0);
    assert_eq!((0..20).filter(|_| limiter.allow(5)).count(), 10);
    assert!(!limiter.allow(50));
    assert!(limiter.allow(205));
    assert_eq!((0..100).filter(|_| limiter.allow(1_000_000)).count(), 10, "never more than a burst");
    assert!(!limiter.allow(0), "a clock that goes back gives nothing");
}

// --- fragments ---

#[test]
fn fragments_fit_and_keep_only_copied_options() {
    // NOP, router alert (copied, 4 bytes), record route (not copied, 7 bytes), end
    let options = [1u8, 0x94, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0];
    let mut head = ipv4::build(POD_A, POD_B, 17, 0, 63, 0, 0).to_vec();
    head[0] = 0x48;
    head.extend(options);
    ipv4::rewrite(&mut head, 32 + 100, 77, 0);
    let big = [head, (0..100).collect()].concat();
    let h = Header::parse_checked(&big).unwrap();
    let mut heads = Vec::new();
    let pieces = fragment(&big, &h, 80, &mut heads);
    let whole = joined(&big, &heads, &pieces);
    assert_eq!(whole.len(), 3);
    for (i, p) in whole.iter().enumerate() {
        let f = Header::parse_checked(p).unwrap();
        assert!(p.len() <= 80 && f.id == 77);
        assert_eq!(f.more_fragments, i < 2);
        assert_eq!(f.fragment_offset, u32::try_from(i).unwrap() * 48);
    }
    assert_eq!(&whole[0][20..32], &options);
    assert_eq!(&whole[1][20..32], &[1, 0x94, 4, 0, 0, 1, 1, 1, 1, 1, 1, 1]);
    assert!(fragment(&big, &h, 39, &mut heads).is_empty(), "no room");
}

// --- segments ---

#[test]
fn a_tcp_frame_is_cut_into_whole_segments() {
    let payload: Vec<u8> = (0..=255).cycle().take(2500).collect();
    let frame = tcp(0xffff_ff00, 0x99, &payload, false);
    let h = Header::parse(&frame).unwrap();
    let (mut heads, mut out) = (Vec::new(), Vec::new());
    segment(&frame, &h, Kind::Tcp, 1000, &mut heads, &mut out).unwrap();
    let whole = joined(&frame, &heads, &out);
    assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [1052, 1052, 552]);
    for (i, p) in whole.iter().enumerate() {
        let s = Header::parse_checked(p).unwrap();
        assert_eq!(usize::from(s.id), usize::from(h.id) + i);
        assert!(s.dont_fragment && tcp_sum_is_right(p));
        let seq = u32::from_be_bytes(p[24..28].try_into().unwrap());
        assert_eq!(seq, 0xffff_ff00u32.wrapping_add(u32::try_from(i * 1000).unwrap()));
    }
    // CWR|ACK|PSH|FIN: CWR first, PSH and FIN last
    assert_eq!(whole.iter().map(|p| p[33]).collect::<Vec<_>>(), [0x90, 0x10, 0x19]);
    assert_eq!(whole.iter().flat_map(|p| p[52..].to_vec()).collect::<Vec<_>>(), payload);
}

#[test]
fn a_udp_frame_is_cut_into_datagrams() {
    let frame = packet(17, 0, 0, &[&[0x30, 0x39, 0, 53, 0, 0, 0, 0][..], &[9; 250]].concat());
    let h = Header::parse(&frame).unwrap();
    let (mut heads, mut out) = (Vec::new(), Vec::new());
    segment(&frame, &h, Kind::Udp, 100, &mut heads, &mut out).unwrap();
    let whole = joined(&frame, &heads, &out);
    assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [128, 128, 78]);
    assert!(whole.iter().all(|p| tcp_sum_is_right(p)));
    assert_eq!(&whole[2][24..26], &[0, 58]);
}

#[test]
fn an_unfinished_checksum_is_found_and_finished() {
    let mut p = tcp(1, 0x10, b"some payload", false);
    let h = Header::parse(&p).unwrap();
    assert_eq!(transport_state(&p, &h), Transport::Partial { start: 20, offset: 16, kind: Kind::Tcp });
    complete_checksum(&mut p, 20, 16).unwrap();
    assert!(tcp_sum_is_right(&p));
    assert_eq!(p, tcp(1, 0x10, b"some payload", true));
    assert_eq!(transport_state(&p, &h), Transport::AsIs);
}

// --- coalescing ---

fn grouped(packets: &[Vec<u8>]) -> (Coalescer, Vec<usize>) {
    let mut c = Coalescer::default();
    for p in packets {
        c.push(p, &Header::parse(p).unwrap(), false);
    }
    let counts = c.groups().iter().map(coalesce::Group::count).collect();
    (c, counts)
}

#[test]
fn consecutive_segments_become_one_frame_that_can_be_cut_again() {
    let parts =
        [tcp(100, 0x10, &[1; 50], true), tcp(150, 0x10, &[2; 50], true), tcp(200, 0x18, &[3; 20], true)];
    let (c, counts) = grouped(&parts);
    assert_eq!(counts, [3]);
    let group = &c.groups()[0];
    assert_eq!(c.members(group).collect::<Vec<_>>(), [0, 1, 2]);
    let mut head = [0; coalesce::MAX_HEAD];
    let n = coalesce::frame_head(&parts[0], group, &mut head).unwrap();
    let mut frame = head[..n].to_vec();
    for i in c.members(group) {
        frame.extend(&parts[i][n..]);
    }
    let h = Header::parse_checked(&frame).unwrap();
    let (mut heads, mut out) = (Vec::new(), Vec::new());
    segment(&frame, &h, Kind::Tcp, group.size(), &mut heads, &mut out).unwrap();
    let again = joined(&frame, &heads, &out);
    for (got, sent) in again.iter().zip(&parts) {
        assert_eq!(&got[28..], &sent[28..], "all but identification is as it came");
        assert_eq!(&got[20..28], &sent[20..28]);
    }
}

#[test]
fn what_differs_is_not_put_together_and_order_is_kept() {
    let base = || tcp(100, 0x10, &[1; 50], true);
    let mut corrupt = tcp(150, 0x10, &[2; 50], true);
    *corrupt.last_mut().unwrap() ^= 1;
    let mut marked = tcp(150, 0x10, &[2; 50], true);
    ipv4::set_ecn(&mut marked, 3);
    for (why, second) in [
        ("a gap", tcp(151, 0x10, &[2; 50], true)),
        ("a longer payload", tcp(150, 0x10, &[2; 51], true)),
        ("FIN", tcp(150, 0x11, &[2; 50], true)),
        ("no payload", tcp(150, 0x10, &[], true)),
        ("a wrong checksum", corrupt),
        ("an unfinished checksum", tcp(150, 0x10, &[2; 50], false)),
        ("a congestion mark", marked),
    ] {
        assert_eq!(grouped(&[base(), second]).1, [1, 1], "{why}");
    }
    // an acknowledgement between two segments of one connection stays between them
    let (_, counts) = grouped(&[base(), tcp(150, 0x10, &[], true), tcp(150, 0x10, &[2; 50], true)]);
    assert_eq!(counts, [1, 1, 1]);
}

#[test]
fn a_frame_never_outgrows_a_packet() {
    let parts: Vec<_> = (0..50u32).map(|i| tcp(i * 1400, 0x10, &[5; 1400], true)).collect();
    let (_, counts) = grouped(&parts);
    assert_eq!(counts, [46, 4]);
}

// --- any bytes ---

proptest! {
    #[test]
    fn any_bytes_give_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..200), mtu in 0u16..200) {
        let t = table();
        let _ = decapsulate(&bytes, &t);
        let _ = decapsulate(&wrap(&bytes, A, bytes.first().copied().unwrap_or(0)), &t);
        let mut copy = bytes.clone();
        let _ = complete_checksum(&mut copy, mtu, mtu);
        ipv4::set_ecn(&mut copy, 3);
        // the same with a header whose lengths are right, so that the transport is reached
        let protocol = bytes.first().map_or(6, |b| [1, 6, 17, 4][usize::from(b % 4)]);
        let flags = bytes.get(1).map_or(0, |b| u16::from(*b) << 8);
        let framed = packet(protocol, 0, flags, &bytes);
        for p in [&bytes, &framed] {
            let Ok(h) = Header::parse(p) else { continue };
            let _ = transport_state(p, &h);
            let _ = icmp::error(p, &h, icmp::Error::FragmentationNeeded { mtu });
            let (mut heads, mut out) = (Vec::new(), Vec::new());
            for f in fragment(p, &h, mtu, &mut heads) {
                prop_assert!(heads.get(f.head).is_some() && p.get(f.body).is_some());
            }
            for kind in [Kind::Tcp, Kind::Udp] {
                let _ = segment(p, &h, kind, mtu, &mut heads, &mut out);
            }
            let mut c = Coalescer::default();
            c.push(p, &h, false);
            c.push(p, &h, false);
            let mut head = [0; coalesce::MAX_HEAD];
            for g in c.groups() {
                let _ = coalesce::frame_head(p, g, &mut head);
            }
        }
    }

    #[test]
    fn fragments_put_together_give_the_packet(
        payload in proptest::collection::vec(any::<u8>(), 1..3000), mtu in 28u16..1500,
    ) {
        let big = packet(17, 0, 0, &payload);
        let h = Header::parse(&big).unwrap();
        let mut heads = Vec::new();
        let pieces = fragment(&big, &h, mtu, &mut heads);
        let mut back: Vec<u8> = Vec::new();
        for p in joined(&big, &heads, &pieces) {
            prop_assert!(p.len() <= usize::from(mtu));
            let f = Header::parse_checked(&p).unwrap();
            prop_assert_eq!(f.fragment_offset as usize, back.len());
            back.extend(&p[20..]);
        }
        prop_assert_eq!(back, payload);
    }

    #[test]
    fn cutting_and_putting_together_give_the_frame(
        payload in proptest::collection::vec(any::<u8>(), 1..6000), size in 200u16..1400, seq: u32,
    ) {
        let frame = tcp(seq, 0x18, &payload, false);
        let h = Header::parse(&frame).unwrap();
        let (mut heads, mut out) = (Vec::new(), Vec::new());
        segment(&frame, &h, Kind::Tcp, size, &mut heads, &mut out).unwrap();
        let parts = joined(&frame, &heads, &out);
        let (c, counts) = grouped(&parts);
        prop_assert_eq!(counts, vec![parts.len()]);
        if parts.len() > 1 {
            let mut head = [0; coalesce::MAX_HEAD];
            let n = coalesce::frame_head(&parts[0], &c.groups()[0], &mut head).unwrap();
            prop_assert_eq!(&head[..n], &frame[..n]);
        }
    }

    #[test]
    fn an_updated_checksum_equals_a_new_one(mut words in proptest::collection::vec(any::<u8>(), 20..21), ecn in 0u8..4) {
        words[0] = 0x45;
        ipv4::rewrite(&mut words, 20, 9, 0);
        ipv4::set_ecn(&mut words, ecn);
        prop_assert_eq!(checksum::checksum(&words), 0);
        prop_assert_eq!(words[1] & 3, ecn);
    }

    #[test]
    fn the_sum_does_not_depend_on_how_it_is_split(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..300) {
        let at = at.min(bytes.len()) & !1;
        let mut sum = checksum::Sum::default();
        sum.add(&bytes[..at]);
        sum.add(&bytes[at..]);
        let mut plain = 0u32;
        for pair in bytes.chunks(2) {
            plain += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while plain > 0xffff { plain = (plain & 0xffff) + (plain >> 16); }
        prop_assert_eq!(sum.finish(), !u16::try_from(plain).unwrap());
    }
}
