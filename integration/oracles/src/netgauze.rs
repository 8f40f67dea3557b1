//! netgauze-bgp-pkt: byte-exact both ways. It has no confederation segments, does not merge the AS4 attributes, takes
//! multicast prefixes for an error, and does not clear host bits.

use std::{collections::HashMap, net::IpAddr};

use brindle_bgpd_core::wire::WireCx;
use netgauze_bgp_pkt::{
    BgpMessage,
    path_attribute::{Aggregator, AsPath, MpReach, MpUnreach, PathAttributeValue},
    wire::deserializer::BgpParsingContext,
};
use netgauze_iana::address_family::AddressType;
use netgauze_parse_utils::{WritablePdu, reader::SliceReader, traits::ParseFromWithOneInput};

use crate::Meaning;

/// What an UPDATE means, and the bytes it is written back to.
pub fn read(frame: &[u8], cx: &WireCx) -> Result<(Meaning, Vec<u8>), String> {
    let families = [AddressType::Ipv4Unicast, AddressType::Ipv6Unicast];
    let add_path: HashMap<_, _> = families.into_iter().zip(cx.add_path).collect();
    let mut context =
        BgpParsingContext::new(cx.four_octet_as, HashMap::new(), add_path, true, true, true, true);
    let message =
        BgpMessage::parse(&mut SliceReader::new(frame), &mut context).map_err(|e| format!("{e:?}"))?;
    let mut written = Vec::new();
    message.write(&mut written).map_err(|e| format!("{e:?}"))?;
    let BgpMessage::Update(update) = message else { return Err("no UPDATE".into()) };

    let mut m = Meaning::default();
    let id = |id: Option<u32>| id.unwrap_or(0);
    let mut next_hop = None;
    m.withdrawn = update
        .withdraw_routes()
        .iter()
        .map(|n| (n.network().address().trunc().into(), id(n.path_id())))
        .collect();
    for a in update.path_attributes() {
        match a.value() {
            PathAttributeValue::Origin(o) => m.origin = Some(*o as u8),
            PathAttributeValue::AsPath(AsPath::As4PathSegments(list)) => {
                m.path =
                    Some(list.iter().map(|s| (s.segment_type().into(), s.as_numbers().to_vec())).collect());
            }
            PathAttributeValue::AsPath(AsPath::As2PathSegments(list)) => {
                let wide = |v: &[u16]| v.iter().map(|n| u32::from(*n)).collect();
                m.path = Some(list.iter().map(|s| (s.segment_type().into(), wide(s.as_numbers()))).collect());
            }
            PathAttributeValue::NextHop(n) => next_hop = Some(IpAddr::V4(n.next_hop())),
            PathAttributeValue::MultiExitDiscriminator(n) => m.med = Some(n.metric()),
            PathAttributeValue::LocalPreference(n) => m.local_pref = Some(n.metric()),
            PathAttributeValue::AtomicAggregate(_) => m.atomic_aggregate = true,
            PathAttributeValue::Aggregator(Aggregator::As2Aggregator(x)) => {
                m.aggregator = Some(((*x.asn()).into(), x.origin()));
            }
            PathAttributeValue::Aggregator(Aggregator::As4Aggregator(x)) => {
                m.aggregator = Some((*x.asn(), x.origin()))
            }
            PathAttributeValue::Communities(c) => {
                m.communities = c.communities().iter().map(|c| c.value()).collect()
            }
            PathAttributeValue::LargeCommunities(c) => {
                let parts = |c: &netgauze_bgp_pkt::community::LargeCommunity| {
                    (c.global_admin(), c.local_data1(), c.local_data2())
                };
                m.large_communities = c.communities().iter().map(parts).collect();
            }
            PathAttributeValue::Originator(o) => m.originator_id = Some(o.id()),
            PathAttributeValue::ClusterList(l) => {
                m.cluster_list = l.cluster_list().iter().map(|c| c.id()).collect()
            }
            PathAttributeValue::MpReach(MpReach::Ipv4Unicast { next_hop, nlri, .. }) => {
                let routes = nlri.iter().map(|n| (n.network().address().trunc().into(), id(n.path_id())));
                m.announced.extend(routes.map(|r| (r, *next_hop)));
            }
            PathAttributeValue::MpReach(MpReach::Ipv6Unicast { next_hop_global, nlri, .. }) => {
                let routes = nlri.iter().map(|n| (n.network().address().trunc().into(), id(n.path_id())));
                m.announced.extend(routes.map(|r| (r, IpAddr::V6(*next_hop_global))));
            }
            PathAttributeValue::MpUnreach(MpUnreach::Ipv4Unicast { nlri }) => {
                m.withdrawn
                    .extend(nlri.iter().map(|n| (n.network().address().trunc().into(), id(n.path_id()))));
            }
            PathAttributeValue::MpUnreach(MpUnreach::Ipv6Unicast { nlri }) => {
                m.withdrawn
                    .extend(nlri.iter().map(|n| (n.network().address().trunc().into(), id(n.path_id()))));
            }
            _ => {}
        }
    }
    if let Some(hop) = next_hop {
        let routes = update.nlri().iter().map(|n| (n.network().address().trunc().into(), id(n.path_id())));
        m.announced.extend(routes.map(|r| (r, hop)));
    }
    Ok((m.normal(), written))
}
