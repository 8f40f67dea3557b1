//! UPDATE: meaning of sound messages, and the closed list of what resets a session. The table of attributes times
//! faults times positions is `tests/rfc7606.rs`.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::super::{AttrSet, Message, Nlri, Origin, Reaction, attr::flag};
use super::*;

const IBGP: WireCx =
    WireCx { four_octet_as: true, extended_message: false, add_path: [false; 2], ibgp: true };
const EBGP: WireCx = WireCx { ibgp: false, ..IBGP };

const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
const PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9];
const HOP: &[u8] = &[0x40, 3, 4, 10, 0, 0, 1];
const NET: &[u8] = &[26, 10, 1, 2, 64];

fn frame(withdrawn: &[u8], attrs: &[&[u8]], nlri: &[u8]) -> Vec<u8> {
    let attrs = attrs.concat();
    let mut v = vec![0xff; 16];
    let len = 23 + withdrawn.len() + attrs.len() + nlri.len();
    v.extend_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    v.push(2);
    for field in [withdrawn, &attrs] {
        v.extend_from_slice(&u16::try_from(field.len()).unwrap().to_be_bytes());
        v.extend_from_slice(field);
    }
    v.extend_from_slice(nlri);
    v
}

fn read(frame: &[u8], cx: &WireCx) -> Update {
    match Message::parse(frame, cx).unwrap() {
        Message::Update(u) => u,
        other => panic!("{other:?}"),
    }
}

fn refusal(frame: &[u8]) -> (u8, u8) {
    let e = Message::parse(frame, &EBGP).unwrap_err();
    (e.notification.code, e.notification.subcode)
}

fn v4(prefixes: &[&str]) -> Prefixes {
    Prefixes::V4(prefixes.iter().map(|p| Nlri { prefix: p.parse().unwrap(), path_id: 0 }).collect())
}

fn v6(prefixes: &[&str]) -> Prefixes {
    Prefixes::V6(prefixes.iter().map(|p| Nlri { prefix: p.parse().unwrap(), path_id: 0 }).collect())
}

/// MP_REACH for IPv6 with next hop 2001:db8::1.
fn mp_reach(nlri: &[u8]) -> Vec<u8> {
    let mut value = vec![0, 2, 1, 16];
    value.extend_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
    value.push(0);
    value.extend_from_slice(nlri);
    let mut v = vec![0x80, 14, u8::try_from(value.len()).unwrap()];
    v.extend(value);
    v
}

#[test]
fn an_announcement_has_its_next_hop_and_attributes() {
    let u = read(&frame(&[8, 20], &[ORIGIN, PATH, HOP, &[0x80, 4, 4, 0, 0, 0, 5]], NET), &EBGP);
    assert_eq!(u.withdrawn, [v4(&["20.0.0.0/8"])]);
    let next_hop = NextHop::V4(Ipv4Addr::new(10, 0, 0, 1));
    assert_eq!(u.reach, [Reach { next_hop, prefixes: v4(&["10.1.2.64/26"]) }]);
    let a = u.attributes.unwrap();
    assert_eq!((a.origin, a.med, a.as_path.to_string()), (Origin::Igp, Some(5), "65001".into()));
    assert!(u.faults.is_empty() && u.end_of_rib.is_none());
}

#[test]
fn ipv6_travels_in_mp_reach_beside_ipv4() {
    let mp = mp_reach(&[32, 0x20, 1, 0xd, 0xb8]);
    let u = read(&frame(&[], &[ORIGIN, PATH, HOP, &mp], NET), &EBGP);
    assert_eq!(u.reach[1].prefixes, v6(&["2001:db8::/32"]));
    assert_eq!(u.reach[0].prefixes, v4(&["10.1.2.64/26"]));
    // NEXT_HOP is neither needed nor looked at without IPv4 prefixes.
    let u = read(&frame(&[], &[ORIGIN, PATH, &mp, &[0x40, 3, 1, 9]], &[]), &EBGP);
    assert_eq!((u.reach.len(), u.faults.len(), u.faults[0].reaction), (1, 1, Reaction::Discard));
    let u = read(&frame(&[], &[&[0x80, 15, 8, 0, 2, 1, 32, 0x20, 1, 0xd, 0xb8]], &[]), &EBGP);
    assert_eq!((u.withdrawn, u.end_of_rib), (vec![v6(&["2001:db8::/32"])], None));
}

#[test]
fn a_second_next_hop_counts_only_if_it_is_link_local() {
    for (second, want) in [("fe80::1", true), ("2001:db8::2", false), ("::", false)] {
        let mut value = vec![0, 2, 1, 32];
        for a in ["2001:db8::1", second] {
            value.extend_from_slice(&a.parse::<Ipv6Addr>().unwrap().octets());
        }
        value.extend_from_slice(&[0, 0]);
        let mut mp = vec![0x80, 14, u8::try_from(value.len()).unwrap()];
        mp.extend(value);
        let u = read(&frame(&[], &[ORIGIN, PATH, &mp], &[]), &EBGP);
        let NextHop::V6 { link_local, .. } = u.reach[0].next_hop else { panic!() };
        assert_eq!(link_local.is_some(), want);
    }
}

#[test]
fn a_next_hop_that_is_only_link_local_is_one_address_however_it_is_said() {
    let local: Ipv6Addr = "fe80::1".parse().unwrap();
    for (said, good) in [
        (&["fe80::1"][..], true),
        (&["::", "fe80::1"], true),
        (&["fe80::1", "fe80::1"], true),
        (&["::", "2001:db8::1"], false),
    ] {
        let mut value = vec![0, 2, 1, u8::try_from(said.len() * 16).unwrap()];
        for a in said {
            value.extend_from_slice(&a.parse::<Ipv6Addr>().unwrap().octets());
        }
        value.extend_from_slice(&[0, 0]);
        let mut mp = vec![0x80, 14, u8::try_from(value.len()).unwrap()];
        mp.extend(value);
        let u = read(&frame(&[], &[ORIGIN, PATH, &mp], &[]), &EBGP);
        let hops: Vec<NextHop> = u.reach.iter().map(|r| r.next_hop).collect();
        let want = NextHop::V6 { global: local, link_local: None };
        assert_eq!((hops == [want], u.faults.is_empty()), (good, good), "{said:?}: {u:?}");
    }
}

#[test]
fn end_of_rib_is_known_in_both_forms_and_only_alone() {
    assert_eq!(read(&frame(&[], &[], &[]), &EBGP).end_of_rib, Some(Family::Ipv4Unicast));
    let unreach = |afi| [0x80, 15, 3, 0, afi, 1];
    assert_eq!(read(&frame(&[], &[&unreach(2)], &[]), &EBGP).end_of_rib, Some(Family::Ipv6Unicast));
    assert_eq!(read(&frame(&[], &[&unreach(1)], &[]), &EBGP).end_of_rib, Some(Family::Ipv4Unicast));
    assert_eq!(read(&frame(&[8, 10], &[&unreach(2)], &[]), &EBGP).end_of_rib, None);
    assert_eq!(read(&frame(&[], &[&unreach(2), ORIGIN], &[]), &EBGP).end_of_rib, None);
    assert_eq!(read(&frame(&[], &[ORIGIN], &[]), &EBGP).end_of_rib, None);
    assert_eq!(read(&frame(&[8, 10], &[], &[]), &EBGP).end_of_rib, None);
}

#[test]
fn path_identifiers_are_read_where_negotiated() {
    let cx = WireCx { add_path: [true, false], ..EBGP };
    let u = read(&frame(&[0, 0, 0, 7, 8, 20], &[ORIGIN, PATH, HOP], &[0, 0, 0, 9, 8, 10]), &cx);
    let Prefixes::V4(gone) = &u.withdrawn[0] else { panic!() };
    let Prefixes::V4(new) = &u.reach[0].prefixes else { panic!() };
    assert_eq!((gone[0].path_id, new[0].path_id), (7, 9));
}

#[test]
fn two_octet_peers_get_their_path_back_from_as4_path() {
    let cx = WireCx { four_octet_as: false, ..EBGP };
    let path = [0x40, 2, 8, 2, 3, 0xfd, 0xe9, 0x5b, 0xa0, 0, 20];
    let as4 = [0xc0, 17, 10, 2, 2, 0, 1, 0, 0, 0, 0, 0, 20];
    let u = read(&frame(&[], &[ORIGIN, &as4, &path, HOP], NET), &cx);
    assert_eq!(u.attributes.unwrap().as_path.to_string(), "65001 65536 20");
    let (agg, agg4) = ([0xc0, 7, 6, 0x5b, 0xa0, 1, 1, 1, 1], [0xc0, 18, 8, 0, 1, 0, 0, 2, 2, 2, 2]);
    let u = read(&frame(&[], &[ORIGIN, &path, HOP, &agg, &as4, &agg4], NET), &cx).attributes.unwrap();
    assert_eq!((u.aggregator.unwrap().asn, u.as_path.to_string()), (65_536, "65001 65536 20".into()));
    // An aggregator that is no AS_TRANS: the AS4 attributes are older than the aggregate.
    let agg = [0xc0, 7, 6, 0, 5, 1, 1, 1, 1];
    let u = read(&frame(&[], &[ORIGIN, &path, HOP, &agg, &as4, &agg4], NET), &cx).attributes.unwrap();
    assert_eq!((u.aggregator.unwrap().asn, u.as_path.to_string()), (5, "65001 23456 20".into()));
    // With nothing to contradict it, AS4_PATH counts: who aggregated has a number of two octets (seen at RIPE RIS in 2010).
    let u = read(&frame(&[], &[ORIGIN, &path, HOP, &agg, &as4], NET), &cx).attributes.unwrap();
    assert_eq!((u.aggregator.unwrap().asn, u.as_path.to_string()), (5, "65001 65536 20".into()));
    // Between 4-octet speakers they are discarded.
    let u = read(&frame(&[], &[ORIGIN, PATH, HOP, &as4, &agg4], NET), &EBGP);
    assert_eq!((u.faults.len(), u.attributes.unwrap().as_path.to_string()), (2, "65001".into()));
}

#[test]
fn communities_are_sorted_and_unique() {
    let c = [0xc0, 8, 12, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 9];
    let l = [[0xc0, 32, 24].as_slice(), &[9; 12], &[1; 12]].concat();
    let e = [[0xc0, 16, 16].as_slice(), &[9; 8], &[9; 8]].concat();
    let a = read(&frame(&[], &[ORIGIN, PATH, HOP, &c, &l, &e], NET), &EBGP).attributes.unwrap();
    assert_eq!(a.communities.as_slice(), [1, 9]);
    assert_eq!(a.ext_communities.as_slice(), [0x0909_0909_0909_0909]);
    assert_eq!(
        a.large_communities.as_slice(),
        [(0x0101_0101, 0x0101_0101, 0x0101_0101), (0x0909_0909, 0x0909_0909, 0x0909_0909)]
    );
}

#[test]
fn unknown_attributes_are_passed_on_with_partial_or_dropped() {
    let u = read(
        &frame(&[], &[&[0xd0, 214, 0, 1, 7], ORIGIN, PATH, HOP, &[0xc0, 213, 0], &[0x80, 99, 1, 1]], NET),
        &EBGP,
    );
    let unknown = u.attributes.unwrap().unknown;
    assert_eq!(
        unknown.iter().map(|a| (a.flags, a.code, a.value.as_slice())).collect::<Vec<_>>(),
        [(0xe0, 213, &[][..]), (0xe0, 214, &[7][..])]
    );
    assert!(u.faults.is_empty());
}

#[test]
fn what_is_understood_but_opaque_keeps_its_partial_bit_as_it_came() {
    for flags in [0xc0, 0xe0] {
        let otc = [flags, 35, 4, 0, 0, 0, 1];
        let a = read(&frame(&[], &[ORIGIN, PATH, HOP, &otc], NET), &EBGP).attributes.unwrap();
        assert_eq!((a.unknown[0].flags, a.unknown[0].value.len()), (flags, 4));
    }
}

#[test]
fn a_treated_as_withdrawn_update_withdraws_both_families() {
    let mp = mp_reach(&[32, 0x20, 1, 0xd, 0xb8]);
    let u = read(&frame(&[8, 20], &[&[0x40, 1, 1, 3], PATH, HOP, &mp], NET), &EBGP);
    assert_eq!(u.withdrawn, [v4(&["20.0.0.0/8", "10.1.2.64/26"]), v6(&["2001:db8::/32"])]);
    assert_eq!((u.attributes, u.reach, u.end_of_rib), (None, vec![], None));
    assert_eq!(u.faults[0].to_string(), "ORIGIN: value 3 is not 0, 1 or 2: treated as withdrawn");
}

#[test]
fn missing_mandatory_attributes_withdraw() {
    for keep in [&[PATH, HOP][..], &[ORIGIN, HOP], &[ORIGIN, PATH], &[], &[&[0xc0, 213, 0]]] {
        let u = read(&frame(&[], keep, NET), &EBGP);
        assert_eq!((u.withdrawn.len(), u.reach.len()), (1, 0), "{keep:?}");
        assert!(u.faults.iter().all(|f| f.what == "is missing"));
    }
}

#[test]
fn next_hops_that_are_no_host_withdraw() {
    for a in [[0, 0, 0, 0], [0, 1, 2, 3], [224, 0, 0, 1], [240, 0, 0, 1], [255; 4]] {
        let hop = [&[0x40, 3, 4][..], &a].concat();
        assert_eq!(read(&frame(&[], &[ORIGIN, PATH, &hop], NET), &EBGP).reach, []);
    }
    let hop = [0x40, 3, 4, 127, 0, 0, 2];
    assert_eq!(read(&frame(&[], &[ORIGIN, PATH, &hop], NET), &EBGP).reach.len(), 1);
    let mut mp = mp_reach(&[32, 0x20, 1, 0xd, 0xb8]);
    mp[7..23].fill(0);
    assert_eq!(read(&frame(&[], &[ORIGIN, PATH, &mp], &[]), &EBGP).withdrawn, [v6(&["2001:db8::/32"])]);
}

#[test]
fn field_lengths_beyond_the_message_reset() {
    let mut f = frame(&[], &[ORIGIN, PATH, HOP], NET);
    f[19..21].copy_from_slice(&500u16.to_be_bytes());
    assert_eq!(refusal(&f), (3, 1));
    let mut f = frame(&[], &[ORIGIN, PATH, HOP], NET);
    f[21..23].copy_from_slice(&1000u16.to_be_bytes());
    assert_eq!(refusal(&f), (3, 1));
}

#[test]
fn unreadable_prefixes_reset() {
    for bad in [&[33, 1, 2, 3, 4, 5][..], &[24, 1, 2]] {
        assert_eq!(refusal(&frame(bad, &[], &[])), (3, 10));
        assert_eq!(refusal(&frame(&[], &[ORIGIN, PATH, HOP], bad)), (3, 10));
        // Even when the attributes would only withdraw.
        assert_eq!(refusal(&frame(&[], &[&[0x40, 1, 1, 3], PATH, HOP], bad)), (3, 10));
    }
}

#[test]
fn malformed_or_repeated_mp_attributes_reset() {
    let good = mp_reach(&[32, 0x20, 1, 0xd, 0xb8]);
    assert_eq!(refusal(&frame(&[], &[ORIGIN, PATH, &good, &good], &[])), (3, 1));
    let un = [0x80, 15, 3, 0, 2, 1];
    assert_eq!(refusal(&frame(&[], &[&un, &un], &[])), (3, 1));
    let mut bads = vec![
        mp_reach(&[129, 1]),
        mp_reach(&[64, 1, 2]),
        vec![0x80, 14, 4, 0, 2, 1, 0],
        vec![0x80, 14, 10, 0, 2, 1, 5, 1, 2, 3, 4, 5, 0],
        vec![0x80, 14, 6, 0, 2, 1, 200, 0, 0],
        vec![0x80, 14, 8, 0, 1, 1, 3, 1, 2, 3, 0],
        vec![0x80, 14, 40, 0],
        vec![0x80, 14],
        vec![0x80, 15, 2, 0, 2],
        vec![0x80, 15, 5, 0, 2, 1, 129, 1],
        vec![0x80, 15, 9, 0, 2, 1],
    ];
    for flags in [0x00, 0x40, 0xc0] {
        let mut wrong = good.clone();
        wrong[0] = flags;
        bads.push(wrong);
    }
    for bad in bads {
        assert_eq!(refusal(&frame(&[], &[ORIGIN, PATH, &bad], &[])), (3, 9), "{bad:?}");
    }
}

#[test]
fn an_error_without_announced_prefixes_resets_unless_it_only_discards() {
    assert_eq!(refusal(&frame(&[], &[&[0x40, 1, 1, 3], PATH, HOP], &[])), (3, 6));
    assert_eq!(refusal(&frame(&[8, 10], &[&[0x40, 2, 2, 9, 9]], &[])), (3, 11));
    assert_eq!(refusal(&frame(&[], &[HOP, &[0x40, 3]], &[])), (3, 1));
    assert_eq!(refusal(&frame(&[], &[&[0x40, 3, 1, 9]], &[])), (3, 5));
    let un = [0x80, 15, 8, 0, 2, 1, 32, 0x20, 1, 0xd, 0xb8];
    assert_eq!(refusal(&frame(&[], &[&un, &[0x80, 4, 1, 0]], &[])), (3, 5));
    let u = read(&frame(&[], &[&un, &[0xc0, 7, 1, 0]], &[]), &EBGP);
    assert_eq!((u.withdrawn.len(), u.faults.len()), (1, 1));
    // A family we do not route is announced: there is something to withdraw, if not for us.
    let other = [0x80, 14, 14, 0, 25, 65, 4, 1, 1, 1, 1, 0, 0, 3, 1, 2, 3];
    let u = read(&frame(&[], &[&[0x40, 1, 1, 3], PATH, &other], &[]), &EBGP);
    assert_eq!((u.withdrawn.len(), u.faults.len()), (0, 2));
}

#[test]
fn families_we_do_not_route_are_ignored() {
    let other = [0x80, 14, 14, 0, 25, 65, 4, 1, 1, 1, 1, 0, 0, 3, 1, 2, 3];
    let u = read(&frame(&[], &[ORIGIN, PATH, HOP, &other, &[0x80, 15, 4, 64, 4, 71, 9]], NET), &EBGP);
    assert_eq!((u.reach.len(), u.withdrawn.len(), u.faults.len()), (1, 0, 2));
    assert_eq!(
        u.faults[1].to_string(),
        "MP_UNREACH_NLRI: AFI 16388 SAFI 71 is not routed here: attribute discarded"
    );
}

#[test]
fn an_unknown_well_known_attribute_resets_with_the_attribute() {
    let e = Message::parse(&frame(&[], &[ORIGIN, PATH, HOP, &[0x40, 200, 2, 1, 2]], NET), &EBGP).unwrap_err();
    assert_eq!((e.notification.code, e.notification.subcode), (3, 2));
    assert_eq!(e.notification.data, [0x40, 200, 2, 1, 2]);
}

#[test]
fn lower_flag_bits_and_needless_long_lengths_mean_nothing() {
    let path = [&[0x6f][..], &PATH[1..]].concat();
    let u = read(&frame(&[], &[&[0x5f, 1, 0, 1, 2], &path, HOP], NET), &EBGP);
    assert_eq!(u.attributes.map(|a| a.origin), Some(Origin::Incomplete));
}

#[test]
fn a_flood_of_faults_lists_a_few_and_the_reason_of_the_withdrawal() {
    let mut attrs = vec![ORIGIN; 100];
    attrs.extend([PATH, HOP, &[0x80, 4, 0]]);
    let u = read(&frame(&[], &attrs, NET), &EBGP);
    assert_eq!((u.faults.len(), u.reach.len()), (16, 0));
    assert_eq!(u.faults[15].reaction, Reaction::TreatAsWithdraw);
}

#[test]
fn an_external_peer_cannot_set_what_is_internal() {
    let attrs: [&[u8]; 6] = [
        ORIGIN,
        PATH,
        HOP,
        &[0x40, 5, 4, 0, 0, 1, 244],
        &[0x80, 9, 4, 1, 1, 1, 1],
        &[0x80, 10, 4, 2, 2, 2, 2],
    ];
    let u = read(&frame(&[], &attrs, NET), &EBGP);
    let a = u.attributes.unwrap();
    assert_eq!((a.local_pref, a.originator_id, a.cluster_list.len(), u.faults.len()), (None, None, 0, 3));
    let a = read(&frame(&[], &attrs, NET), &IBGP).attributes.unwrap();
    assert_eq!((a.local_pref, a.cluster_list.len()), (Some(500), 1));
    assert_eq!(a.originator_id, Some(Ipv4Addr::new(1, 1, 1, 1)));
}

#[test]
fn confederation_segments_are_for_insiders() {
    let path = [0x40, 2, 6, 3, 1, 0, 0, 0xfd, 0xe9];
    assert_eq!(read(&frame(&[], &[ORIGIN, &path, HOP], NET), &EBGP).reach.len(), 0);
    assert_eq!(read(&frame(&[], &[ORIGIN, &path, HOP], NET), &IBGP).reach.len(), 1);
}

#[test]
fn the_default_set_is_what_an_empty_path_reads_to() {
    let u = read(&frame(&[], &[ORIGIN, &[0x40, 2, 0], HOP], NET), &IBGP);
    assert_eq!(u.attributes, Some(AttrSet::default()));
    assert_eq!(flag::OPTIONAL | flag::TRANSITIVE | flag::PARTIAL | flag::EXTENDED_LENGTH, 0xf0);
}
