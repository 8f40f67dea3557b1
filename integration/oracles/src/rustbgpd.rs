//! rustbgpd-wire: the only one with a verdict after RFC 7606. It has no confederation segments.

use std::net::IpAddr;

use brindle_bgpd_core::wire::{Reaction, WireCx};
use bytes::Bytes;
use rustbgpd_wire::{
    Afi, Safi,
    attribute::{AsPathSegment, PathAttribute},
    message::{Message, decode_message},
    nlri::{NlriEntry, Prefix},
    validate::{ErrorDisposition, validate_update_attributes},
};

use crate::{Meaning, Route, net};

/// What is announced and withdrawn, and the strongest reaction to an error.
pub fn read(frame: &[u8], cx: &WireCx) -> Result<(Meaning, Option<Reaction>), String> {
    let max = u16::try_from(cx.max_len()).map_err(|e| e.to_string())?;
    let message = decode_message(&mut Bytes::copy_from_slice(frame), max).map_err(|e| e.to_string())?;
    let Message::Update(update) = message else { return Err("no UPDATE".into()) };
    let families = [(Afi::Ipv4, Safi::Unicast), (Afi::Ipv6, Safi::Unicast)];
    let add_path: Vec<_> =
        families.into_iter().zip(cx.add_path).filter(|(_, on)| *on).map(|(f, _)| f).collect();
    let parsed = update
        .parse_revised(cx.four_octet_as, cx.ibgp, cx.add_path[0], &add_path)
        .map_err(|e| format!("reset: {e}"))?;

    let mut m = Meaning::default();
    let v4 =
        |n: &rustbgpd_wire::nlri::Ipv4NlriEntry| Ok((net(n.prefix.addr.into(), n.prefix.len)?, n.path_id));
    m.withdrawn = parsed.update.withdrawn.iter().map(v4).collect::<Result<_, String>>()?;
    let classic = parsed.update.announced.iter().map(v4).collect::<Result<Vec<Route>, String>>()?;
    let mut next_hop = None;
    let mut mp = Vec::new();
    for a in &parsed.update.attributes {
        match a {
            PathAttribute::Origin(o) => m.origin = Some(*o as u8),
            PathAttribute::AsPath(p) => {
                let segment = |s: &AsPathSegment| match s {
                    AsPathSegment::AsSet(v) => (1, v.clone()),
                    AsPathSegment::AsSequence(v) => (2, v.clone()),
                };
                m.path = Some(p.segments.iter().map(segment).collect());
            }
            PathAttribute::Aggregator(x) => m.aggregator = Some((x.asn, x.router_id)),
            PathAttribute::AtomicAggregate => m.atomic_aggregate = true,
            PathAttribute::NextHop(a) => next_hop = Some(IpAddr::V4(*a)),
            PathAttribute::LocalPref(n) => m.local_pref = Some(*n),
            PathAttribute::Med(n) => m.med = Some(*n),
            PathAttribute::Communities(v) | PathAttribute::CommunitiesPartial(v) => m.communities = v.clone(),
            PathAttribute::LargeCommunities(v) | PathAttribute::LargeCommunitiesPartial(v) => {
                m.large_communities =
                    v.iter().map(|c| (c.global_admin, c.local_data1, c.local_data2)).collect();
            }
            PathAttribute::OriginatorId(a) => m.originator_id = Some(*a),
            PathAttribute::ClusterList(v) => m.cluster_list = v.clone(),
            PathAttribute::MpReachNlri(r) if r.safi == Safi::Unicast => {
                for n in &r.announced {
                    mp.push((entry(n)?, r.next_hop));
                }
            }
            PathAttribute::MpUnreachNlri(r) if r.safi == Safi::Unicast => {
                for n in &r.withdrawn {
                    m.withdrawn.push(entry(n)?);
                }
            }
            _ => {}
        }
    }
    let (has_classic, has_any) = (!classic.is_empty(), !classic.is_empty() || !mp.is_empty());
    let of = |d| match d {
        ErrorDisposition::AttributeDiscard => Reaction::Discard,
        ErrorDisposition::TreatAsWithdraw => Reaction::TreatAsWithdraw,
        ErrorDisposition::SessionReset => Reaction::SessionReset,
    };
    let malformed = parsed.malformed.iter().map(|x| of(x.disposition));
    let semantic = validate_update_attributes(&parsed.update.attributes, has_any, has_classic, !cx.ibgp);
    let reaction = malformed.chain(semantic.err().map(|e| of(e.disposition))).max();
    if reaction.is_none_or(|r| r == Reaction::Discard) {
        m.announced = mp;
        if let Some(hop) = next_hop {
            m.announced.extend(classic.into_iter().map(|r| (r, hop)));
        }
    } else {
        m.withdrawn.extend(classic);
        m.withdrawn.extend(mp.into_iter().map(|(r, _)| r));
    }
    Ok((m.normal(), reaction))
}

fn entry(n: &NlriEntry) -> Result<Route, String> {
    let (addr, len) = match n.prefix {
        Prefix::V4(p) => (p.addr.into(), p.len),
        Prefix::V6(p) => (p.addr.into(), p.len),
    };
    Ok((net(addr, len)?, n.path_id))
}
