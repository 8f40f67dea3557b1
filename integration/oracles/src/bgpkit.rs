//! bgpkit-parser: made for archives. It takes one answer for path identifiers of all families, does not merge the AS4
//! attributes, and warns where RFC 7606 has a reaction.

use std::net::IpAddr;

use bgpkit_parser::{
    models::{
        AsPath, AsPathSegment, AsnLength, AttributeValue, BgpMessage, Community, NetworkPrefix,
        NextHopAddress, Safi,
    },
    parser::bgp::parse_bgp_message,
};
use brindle_bgpd_core::wire::WireCx;
use bytes::Bytes;

use crate::{Meaning, Path, Route};

/// What an UPDATE means, and how many warnings there were.
pub fn read(frame: &[u8], cx: &WireCx) -> Result<(Meaning, usize), String> {
    if cx.add_path[0] != cx.add_path[1] {
        return Err("one answer for both families".into());
    }
    let width = if cx.four_octet_as { AsnLength::Bits32 } else { AsnLength::Bits16 };
    let message = parse_bgp_message(&mut Bytes::copy_from_slice(frame), cx.add_path[0], &width)
        .map_err(|e| e.to_string())?;
    let BgpMessage::Update(update) = message else { return Err("no UPDATE".into()) };

    let route = |n: &NetworkPrefix| -> Route { (n.prefix.trunc(), n.path_id.unwrap_or(0)) };
    let mut m =
        Meaning { withdrawn: update.withdrawn_prefixes.iter().map(route).collect(), ..Meaning::default() };
    let warnings = update.attributes.validation_warnings().len();
    let mut next_hop = None;
    for value in update.attributes {
        match value {
            AttributeValue::Origin(o) => m.origin = Some(o as u8),
            AttributeValue::AsPath(p) => m.path = Some(path(&p)),
            AttributeValue::NextHop(a) => next_hop = Some(a),
            AttributeValue::MultiExitDiscriminator(n) => m.med = Some(n),
            AttributeValue::LocalPreference(n) => m.local_pref = Some(n),
            AttributeValue::AtomicAggregate => m.atomic_aggregate = true,
            AttributeValue::Aggregator { asn, id } => m.aggregator = Some((asn.to_u32(), id)),
            AttributeValue::Communities(list) => m.communities = list.iter().map(community).collect(),
            AttributeValue::LargeCommunities(list) => {
                let parts = |c: &bgpkit_parser::models::LargeCommunity| {
                    (c.global_admin, c.local_data[0], c.local_data[1])
                };
                m.large_communities = list.iter().map(parts).collect();
            }
            AttributeValue::OriginatorId(a) => m.originator_id = Some(a),
            AttributeValue::Clusters(list) => m.cluster_list = list.into_iter().map(Into::into).collect(),
            AttributeValue::MpReachNlri(n) if n.safi == Safi::Unicast => {
                let hop = match n.next_hop {
                    Some(NextHopAddress::Ipv4(a)) => IpAddr::V4(a),
                    Some(NextHopAddress::Ipv6(a) | NextHopAddress::Ipv6LinkLocal(a, _)) => IpAddr::V6(a),
                    other => return Err(format!("next hop {other:?}")),
                };
                m.announced.extend(n.prefixes.iter().map(|p| (route(p), hop)));
            }
            AttributeValue::MpUnreachNlri(n) if n.safi == Safi::Unicast => {
                m.withdrawn.extend(n.prefixes.iter().map(route));
            }
            _ => {}
        }
    }
    if let Some(hop) = next_hop {
        m.announced.extend(update.announced_prefixes.iter().map(|p| (route(p), hop)));
    }
    Ok((m.normal(), warnings))
}

fn path(p: &AsPath) -> Path {
    let segment = |s: &AsPathSegment| {
        let (kind, list) = match s {
            AsPathSegment::AsSet(v) => (1, v),
            AsPathSegment::AsSequence(v) => (2, v),
            AsPathSegment::ConfedSequence(v) => (3, v),
            AsPathSegment::ConfedSet(v) => (4, v),
        };
        (kind, list.iter().map(|a| a.to_u32()).collect())
    };
    p.segments.iter().map(segment).collect()
}

fn community(c: &Community) -> u32 {
    match c {
        Community::NoExport => 0xffff_ff01,
        Community::NoAdvertise => 0xffff_ff02,
        Community::NoExportSubConfed => 0xffff_ff03,
        Community::Custom(asn, n) => (asn.to_u32() << 16) | u32::from(*n),
    }
}
