//! Strategies for messages in the form `parse` yields: what is generated here must survive the wire unchanged.

use std::net::{Ipv4Addr, Ipv6Addr};

use brindle_bgpd_core::{af::Family, wire::*};
use proptest::{collection::vec, option, prelude::*};

pub(crate) fn cx() -> impl Strategy<Value = WireCx> {
    (any::<bool>(), any::<bool>(), any::<[bool; 2]>(), any::<bool>()).prop_map(
        |(four_octet_as, extended_message, add_path, ibgp)| WireCx {
            four_octet_as,
            extended_message,
            add_path,
            ibgp,
        },
    )
}

pub(crate) fn message(cx: WireCx) -> impl Strategy<Value = Message> {
    prop_oneof![
        1 => open().prop_map(Message::Open),
        6 => update(cx).prop_map(Message::Update),
        1 => (any::<u8>(), any::<u8>(), vec(any::<u8>(), 0..300))
            .prop_map(|(code, subcode, data)| Message::Notification(Notification { code, subcode, data })),
        1 => Just(Message::Keepalive),
        1 => (any::<u16>(), any::<u8>(), any::<u8>())
            .prop_map(|(afi, safi, subtype)| Message::RouteRefresh(RouteRefresh { afi, safi, subtype })),
    ]
}

pub(crate) fn open() -> impl Strategy<Value = Open> {
    let hold = prop_oneof![Just(0), 3..=u16::MAX];
    (1..=u16::MAX, option::of(1..=u32::MAX), hold, 1..=u32::MAX, vec(capability(), 0..12)).prop_map(
        |(my_as, four, hold_time, id, mut capabilities)| {
            // The 4-octet capability, if there is one, is where the number comes from.
            let asn = four.unwrap_or(u32::from(my_as));
            if four.is_some() {
                capabilities.push(Capability::FourOctetAs(asn));
            }
            Open { asn, hold_time, router_id: Ipv4Addr::from(id), capabilities }
        },
    )
}

fn capability() -> impl Strategy<Value = Capability> {
    let gr_family = (any::<u16>(), any::<u8>(), any::<bool>())
        .prop_map(|(afi, safi, forwarding_preserved)| GrFamily { afi, safi, forwarding_preserved });
    prop_oneof![
        (any::<u16>(), any::<u8>()).prop_map(|(afi, safi)| Capability::MultiProtocol { afi, safi }),
        Just(Capability::RouteRefresh),
        Just(Capability::ExtendedMessage),
        Just(Capability::EnhancedRouteRefresh),
        (any::<bool>(), any::<bool>(), 0..=4_095u16, vec(gr_family, 0..5)).prop_map(
            |(restarting, notification, restart_time, families)| Capability::GracefulRestart {
                restarting,
                notification,
                restart_time,
                families,
            }
        ),
        vec((any::<u16>(), any::<u8>(), 1..=3u8), 0..5).prop_map(Capability::AddPath),
        vec((any::<u16>(), any::<u8>(), any::<u8>(), 0..1u32 << 24), 0..5)
            .prop_map(Capability::LongLivedGracefulRestart),
        ("[a-zä]{0,20}", "[a-z.]{0,20}").prop_map(|(host, domain)| Capability::Fqdn { host, domain }),
        (80..=255u8, vec(any::<u8>(), 0..=255)).prop_map(|(code, value)| Capability::Unknown { code, value }),
    ]
}

pub(crate) fn update(cx: WireCx) -> impl Strategy<Value = Update> {
    let [add_v4, add_v6] = cx.add_path;
    prop_oneof![
        1 => prop_oneof![Just(Family::Ipv4Unicast), Just(Family::Ipv6Unicast)]
            .prop_map(|f| Update { end_of_rib: Some(f), ..Update::default() }),
        9 => (vec(v4(add_v4), 0..20), vec(v6(add_v6), 0..9), vec(v4(add_v4), 0..20), vec(v6(add_v6), 0..9),
              host4(), hop6(), attributes(cx))
            .prop_filter("not empty", |(a, b, c, d, ..)| !(a.is_empty() && b.is_empty() && c.is_empty() && d.is_empty()))
            .prop_map(|(gone4, gone6, new4, new6, hop4, hop6, set)| {
                let mut u = Update::default();
                for p in [Prefixes::V4(gone4), Prefixes::V6(gone6)] {
                    if !p.is_empty() {
                        u.withdrawn.push(p);
                    }
                }
                if !new4.is_empty() {
                    u.reach.push(Reach { next_hop: NextHop::V4(hop4), prefixes: Prefixes::V4(new4) });
                }
                if !new6.is_empty() {
                    u.reach.push(Reach { next_hop: hop6, prefixes: Prefixes::V6(new6) });
                }
                if !u.reach.is_empty() {
                    u.attributes = Some(set);
                }
                u
            }),
    ]
}

fn v4(add_path: bool) -> impl Strategy<Value = Nlri<ipnet::Ipv4Net>> {
    (any::<u32>(), 0..=32u8, any::<u32>()).prop_map(move |(a, len, id)| Nlri {
        prefix: ipnet::Ipv4Net::new(Ipv4Addr::from(a), len).unwrap().trunc(),
        path_id: if add_path { id } else { 0 },
    })
}

fn v6(add_path: bool) -> impl Strategy<Value = Nlri<ipnet::Ipv6Net>> {
    (any::<u128>(), 0..=128u8, any::<u32>()).prop_map(move |(a, len, id)| Nlri {
        prefix: ipnet::Ipv6Net::new(Ipv6Addr::from(a), len).unwrap().trunc(),
        path_id: if add_path { id } else { 0 },
    })
}

fn host4() -> impl Strategy<Value = Ipv4Addr> {
    (0x0100_0000..0xe000_0000u32).prop_map(Ipv4Addr::from)
}

fn hop6() -> impl Strategy<Value = NextHop> {
    (1..0xffu128 << 120, option::of(any::<u64>())).prop_map(|(global, local)| NextHop::V6 {
        global: Ipv6Addr::from(global),
        link_local: local.map(|l| Ipv6Addr::from((0xfe80 << 112) | u128::from(l))),
    })
}

fn as_path(cx: WireCx) -> impl Strategy<Value = AsPath> {
    let kinds = prop_oneof![
        4 => Just(SegmentKind::Sequence),
        1 => Just(SegmentKind::Set),
        1 => Just(SegmentKind::ConfedSequence),
        1 => Just(SegmentKind::ConfedSet),
    ];
    let asn = prop_oneof![1..=65_535u32, 65_536..=u32::MAX];
    // AS_TRANS itself and 4-octet numbers in confederations cannot be told apart by a 2-octet peer.
    let asns = prop_oneof![10 => vec(asn.clone(), 1..8), 1 => vec(asn, 200..300)];
    vec((kinds, asns), 0..4).prop_map(move |list| {
        let mut path = AsPath::default();
        for (kind, mut asns) in list {
            if kind.is_confed() {
                if !cx.ibgp {
                    continue;
                }
                asns.iter_mut().for_each(|a| *a = (*a & 0xffff).max(1));
            }
            let sequence = matches!(kind, SegmentKind::Sequence | SegmentKind::ConfedSequence);
            if !sequence {
                asns.truncate(255);
            }
            match path.0.last_mut() {
                Some(last) if last.kind == kind && sequence => last.asns.extend(asns),
                _ => path.0.push(Segment { kind, asns: asns.into() }),
            }
        }
        // RFC 6793 loses confederation segments that are not in front.
        if !cx.four_octet_as {
            let first = path.0.iter().position(|s| !s.kind.is_confed()).unwrap_or(path.0.len());
            let mut at = 0;
            path.0.retain(|s| {
                at += 1;
                at <= first || !s.kind.is_confed()
            });
            let mut merged = AsPath::default();
            for s in path.0 {
                match merged.0.last_mut() {
                    Some(last) if last.kind == s.kind && s.kind == SegmentKind::Sequence => {
                        last.asns.extend_from_slice(&s.asns);
                    }
                    _ => merged.0.push(s),
                }
            }
            path = merged;
        }
        path
    })
}

pub(crate) fn attributes(cx: WireCx) -> impl Strategy<Value = AttrSet> {
    let unknown = prop_oneof![
        (prop_oneof![20..=24u8, 36..=255u8], vec(any::<u8>(), 0..20), Just(0xe0u8)),
        (Just(35u8), vec(any::<u8>(), 4..=4), prop_oneof![Just(0xc0u8), Just(0xe0)]),
        (Just(25u8), vec(any::<u8>(), 20..=20), prop_oneof![Just(0xc0u8), Just(0xe0)]),
    ]
    .prop_map(|(code, value, flags)| UnknownAttr { flags, code, value });
    let first = (
        prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)],
        as_path(cx),
        option::of(any::<u32>()),
        option::of(any::<u32>()),
        any::<bool>(),
        option::of((prop_oneof![1..=65_535u32, 65_536..=u32::MAX], any::<u32>())),
    );
    let second = (
        vec(any::<u32>(), 0..9),
        option::of(any::<u32>()),
        vec(any::<u32>(), 0..4),
        vec(any::<u64>(), 0..4),
        vec(any::<(u32, u32, u32)>(), 0..4),
        vec(unknown, 0..3),
    );
    (first, second).prop_map(move |((origin, as_path, med, local_pref, atomic, aggregator), rest)| {
        let (mut communities, originator, clusters, mut ext, mut large, mut unknown) = rest;
        communities.sort_unstable();
        communities.dedup();
        ext.sort_unstable();
        ext.dedup();
        large.sort_unstable();
        large.dedup();
        unknown.sort_by_key(|a| a.code);
        unknown.dedup_by_key(|a| a.code);
        // To a 2-octet peer, a small aggregator beside an AS4_PATH means that the latter is out of date.
        let wide = as_path.0.iter().any(|s| !s.kind.is_confed() && s.asns.iter().any(|a| *a > 65_535));
        let aggregator = aggregator
            .map(|(asn, a)| Aggregator { asn, address: Ipv4Addr::from(a) })
            .filter(|a| cx.four_octet_as || !wide || a.asn > 65_535);
        AttrSet {
            origin,
            as_path,
            med,
            local_pref: local_pref.filter(|_| cx.ibgp),
            atomic_aggregate: atomic,
            aggregator,
            communities: communities.into(),
            originator_id: originator.filter(|_| cx.ibgp).map(Ipv4Addr::from),
            cluster_list: clusters.into_iter().filter(|_| cx.ibgp).map(Ipv4Addr::from).collect(),
            ext_communities: ext.into(),
            large_communities: large.into(),
            unknown,
        }
    })
}
