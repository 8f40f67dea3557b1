//! Packing: nothing lost, nothing longer than allowed, no message more than needed.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;

use super::super::{AsPath, AttrSet, Message, next_frame};
use super::*;

const CX: WireCx = WireCx { four_octet_as: true, extended_message: false, add_path: [false; 2], ibgp: true };

fn attrs() -> AttrSet {
    AttrSet { as_path: AsPath::sequence([65_001]), local_pref: Some(100), ..AttrSet::default() }
}

fn hop4() -> NextHop {
    NextHop::V4(Ipv4Addr::new(10, 0, 0, 1))
}

fn hop6() -> NextHop {
    NextHop::V6 { global: "2001:db8::1".parse().unwrap(), link_local: Some("fe80::1".parse().unwrap()) }
}

fn slash32(n: u32) -> Prefixes {
    let net = |i| Nlri { prefix: Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + i), 32).unwrap(), path_id: i };
    Prefixes::V4((0..n).map(net).collect())
}

fn slash128(n: u128) -> Prefixes {
    let net = |i| {
        let prefix = ipnet::Ipv6Net::new(Ipv6Addr::from((0x2001_0db8 << 96) + i), 128).unwrap();
        Nlri { prefix, path_id: 7 }
    };
    Prefixes::V6((0..n).map(net).collect())
}

fn read_all(mut bytes: &[u8], cx: &WireCx) -> Vec<Update> {
    let mut list = Vec::new();
    while !bytes.is_empty() {
        let (_, len) = next_frame(bytes, cx.max_len()).unwrap().unwrap();
        match Message::parse(&bytes[..len], cx).unwrap() {
            Message::Update(u) => list.push(u),
            other => panic!("{other:?}"),
        }
        bytes = &bytes[len..];
    }
    list
}

#[test]
fn many_prefixes_fill_messages_and_none_is_lost() {
    for add_path in [false, true] {
        for extended_message in [false, true] {
            let cx = WireCx { add_path: [add_path; 2], extended_message, ..CX };
            let per_message = |prefix: usize, rest: usize| (cx.max_len() - rest) / prefix;
            for (list, hop, next_hop) in
                [(slash32(30_000), hop4(), Some(Ipv4Addr::new(10, 0, 0, 1))), (slash128(9_000), hop6(), None)]
            {
                let (mut block, mut out) = (BytesMut::new(), BytesMut::new());
                encode_attrs(&attrs(), next_hop, &cx, &mut block).unwrap();
                let messages = announce(&cx, &hop, &list, &block, &mut out).unwrap();
                let wire = if add_path { 4 } else { 0 } + if next_hop.is_some() { 5 } else { 17 };
                let head = 23 + block.len() + if next_hop.is_some() { 0 } else { 4 + 5 + 32 };
                assert_eq!(messages, list.len().div_ceil(per_message(wire, head)));
                let updates = read_all(&out, &cx);
                assert_eq!(updates.len(), messages);
                let mut got = Vec::new();
                for u in updates {
                    assert_eq!((u.attributes.as_ref(), u.faults.len()), (Some(&attrs()), 0));
                    assert_eq!(u.reach[0].next_hop, hop);
                    got.push(u.reach[0].prefixes.clone());
                }
                assert_eq!(flat(&got, add_path), flat(std::slice::from_ref(&list), add_path));

                let mut out = BytesMut::new();
                let messages = withdraw(&cx, &list, &mut out);
                let head = if next_hop.is_some() { 23 } else { 23 + 4 + 3 };
                assert_eq!(messages, list.len().div_ceil(per_message(wire, head)));
                let got: Vec<Prefixes> = read_all(&out, &cx).iter().map(|u| u.withdrawn[0].clone()).collect();
                assert_eq!(flat(&got, add_path), flat(&[list], add_path));
            }
        }
    }
}

fn flat(lists: &[Prefixes], ids: bool) -> Vec<(String, u32)> {
    let id = |n| if ids { n } else { 0 };
    lists
        .iter()
        .flat_map(|p| -> Vec<(String, u32)> {
            match p {
                Prefixes::V4(l) => l.iter().map(|n| (n.prefix.to_string(), id(n.path_id))).collect(),
                Prefixes::V6(l) => l.iter().map(|n| (n.prefix.to_string(), id(n.path_id))).collect(),
            }
        })
        .collect()
}

#[test]
fn attributes_too_long_for_a_prefix_are_an_error_and_write_nothing() {
    let big = AttrSet { communities: (0..1_013).collect(), ..AttrSet::default() };
    let (mut block, mut out) = (BytesMut::new(), BytesMut::from(&b"x"[..]));
    encode_attrs(&big, Some(Ipv4Addr::new(1, 1, 1, 1)), &CX, &mut block).unwrap();
    assert_eq!(block.len(), 4_070);
    // 4,096 - 23 - 4,070 octets are left: room for a /16, not for a /24.
    let short = Prefixes::V4(vec![Nlri { prefix: "10.0.0.0/16".parse().unwrap(), path_id: 0 }]);
    assert_eq!(announce(&CX, &hop4(), &short, &block, &mut out), Ok(1));
    assert_eq!(out.len(), 1 + 4_096);
    let before = out.clone();
    let err = announce(&CX, &hop4(), &slash32(1), &block, &mut out).unwrap_err();
    assert!(matches!(err, EmitError::TooLong { what: "path attributes", len: 4_070, max: 4_073 }));
    assert_eq!(out, before);
    let huge = AttrSet { communities: (0..20_000).collect(), ..AttrSet::default() };
    let mut block = BytesMut::new();
    assert!(encode_attrs(&huge, None, &CX, &mut block).is_err());
    assert!(block.is_empty());
}

#[test]
fn next_hops_of_the_wrong_family_are_refused() {
    let mut out = BytesMut::new();
    assert_eq!(announce(&CX, &hop6(), &slash32(1), &[], &mut out), Err(EmitError::NextHopFamily));
    assert_eq!(announce(&CX, &hop4(), &slash128(1), &[], &mut out), Err(EmitError::NextHopFamily));
    assert!(out.is_empty());
}

#[test]
fn a_builder_without_prefixes_writes_nothing() {
    let mut out = BytesMut::from(&b"x"[..]);
    assert_eq!(UpdateBuilder::<Ipv4Net>::withdraw(&CX, &mut out).finish(), 0);
    assert_eq!(UpdateBuilder::<Ipv6Net>::announce(&CX, &hop6(), &[1, 2], &mut out).unwrap().finish(), 0);
    assert_eq!(&out[..], b"x");
}

#[test]
fn end_of_rib_is_read_back() {
    for family in Family::ALL {
        let (mut out, mut same) = (BytesMut::new(), BytesMut::new());
        end_of_rib(family, &mut out);
        let u = Update { end_of_rib: Some(family), ..Update::default() };
        assert_eq!(read_all(&out, &CX), std::slice::from_ref(&u));
        Message::Update(u).emit(&CX, &mut same).unwrap();
        assert_eq!(out, same);
    }
}

#[test]
fn the_long_length_is_used_only_where_needed() {
    for (prefixes, communities, flag) in [(1, 1, 0), (12, 63, 0), (13, 64, 0x10)] {
        let mut out = BytesMut::new();
        announce(&CX, &hop6(), &slash128(prefixes), &[], &mut out).unwrap();
        assert_eq!(out[23], 0x80 | flag, "{prefixes}");
        let mut out = BytesMut::new();
        encode_attrs(
            &AttrSet { communities: (0..communities).collect(), ..AttrSet::default() },
            None,
            &CX,
            &mut out,
        )
        .unwrap();
        assert_eq!(out[7..9], [0xc0 | flag, 8]);
    }
}

#[test]
fn the_mp_attribute_comes_first_and_the_others_ascend() {
    let mut set = attrs();
    set.med = Some(1);
    set.communities.push(7);
    set.large_communities.push((1, 2, 3));
    set.unknown = vec![
        super::super::UnknownAttr { flags: 0xe0, code: 11, value: vec![1] },
        super::super::UnknownAttr { flags: 0xc0, code: 35, value: vec![0, 0, 0, 1] },
        super::super::UnknownAttr { flags: 0xe0, code: 200, value: vec![] },
    ];
    let update = Update {
        withdrawn: vec![slash128(1)],
        attributes: Some(set),
        reach: vec![
            Reach { next_hop: hop4(), prefixes: slash32(1) },
            Reach { next_hop: hop6(), prefixes: slash128(2) },
        ],
        ..Update::default()
    };
    let mut out = BytesMut::new();
    Message::Update(update.clone()).emit(&CX, &mut out).unwrap();
    let raw = super::super::RawUpdate::split(&out[19..]).unwrap().attributes;
    let (mut codes, mut at) = (Vec::new(), 0);
    while at < raw.len() {
        codes.push(raw[at + 1]);
        at += 3 + usize::from(raw[at + 2]);
    }
    assert_eq!(codes, [14, 15, 1, 2, 3, 4, 5, 8, 11, 32, 35, 200]);
}

#[test]
fn an_external_session_is_never_told_what_is_internal() {
    let set = AttrSet {
        originator_id: Some(Ipv4Addr::new(1, 1, 1, 1)),
        cluster_list: [Ipv4Addr::new(2, 2, 2, 2)].into_iter().collect(),
        ..attrs()
    };
    let (mut inside, mut outside) = (BytesMut::new(), BytesMut::new());
    encode_attrs(&set, None, &CX, &mut inside).unwrap();
    encode_attrs(&set, None, &WireCx { ibgp: false, ..CX }, &mut outside).unwrap();
    assert_eq!(inside.len() - outside.len(), 7 * 3);
    assert_eq!(&outside[..], [0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9]);
}

#[test]
fn a_two_octet_peer_gets_as_trans_and_the_as4_attributes() {
    let cx = WireCx { four_octet_as: false, ibgp: false, ..CX };
    let set = AttrSet {
        as_path: AsPath::sequence([65_001, 70_000]),
        aggregator: Some(super::super::Aggregator { asn: 70_000, address: Ipv4Addr::new(1, 1, 1, 1) }),
        ..AttrSet::default()
    };
    let mut out = BytesMut::new();
    encode_attrs(&set, None, &cx, &mut out).unwrap();
    assert_eq!(
        &out[..],
        [
            &[0x40, 1, 1, 0][..],
            &[0x40, 2, 6, 2, 2, 0xfd, 0xe9, 0x5b, 0xa0],
            &[0xc0, 7, 6, 0x5b, 0xa0, 1, 1, 1, 1],
            &[0xc0, 17, 10, 2, 2, 0, 0, 0xfd, 0xe9, 0, 1, 0x11, 0x70],
            &[0xc0, 18, 8, 0, 1, 0x11, 0x70, 1, 1, 1, 1],
        ]
        .concat()
    );
    // Nothing to add when two octets say it all.
    out.clear();
    encode_attrs(&attrs(), None, &cx, &mut out).unwrap();
    assert_eq!(out.len(), 4 + 3 + 4);
}

#[test]
fn what_is_not_one_message_is_refused() {
    let reach = |next_hop, prefixes| Reach { next_hop, prefixes };
    let emit = |u: Update| Message::Update(u).emit(&CX, &mut BytesMut::new());
    let with = |reach| Update { attributes: Some(attrs()), reach, ..Update::default() };
    assert_eq!(emit(Update::default()), Err(EmitError::Empty));
    assert_eq!(emit(with(vec![reach(hop4(), slash32(0))])), Err(EmitError::Empty));
    let two = vec![reach(hop4(), slash32(1)), reach(NextHop::V4(Ipv4Addr::LOCALHOST), slash32(1))];
    assert_eq!(emit(with(two)), Err(EmitError::NotOneMessage));
    assert_eq!(emit(with(vec![reach(hop6(), slash32(1))])), Err(EmitError::NextHopFamily));
    assert!(matches!(emit(with(vec![reach(hop4(), slash32(900))])), Err(EmitError::TooLong { .. })));
    let bare = Update { attributes: None, ..with(vec![reach(hop4(), slash32(1))]) };
    assert_eq!(emit(bare), Err(EmitError::NoAttributes));
    let eor =
        Update { end_of_rib: Some(Family::Ipv4Unicast), withdrawn: vec![slash32(1)], ..Update::default() };
    assert_eq!(emit(eor), Err(EmitError::NotOneMessage));
}
