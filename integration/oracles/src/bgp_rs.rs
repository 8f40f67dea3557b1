//! bgp-rs 0.6 (2020). It guesses the width of AS numbers and whether there are path identifiers, drops malformed and
//! unknown attributes in silence, and panics on some families: a curiosity to compare with, not an authority.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bgp_rs::{Message, NLRIEncoding, PathAttribute, Reader, Segment};

use crate::{Meaning, Route, net};

/// What it makes of an UPDATE. May panic: call it behind `catch_unwind`.
pub fn read(frame: &[u8]) -> Result<Meaning, String> {
    let (_, message) = Reader::new(frame).read().map_err(|e| e.to_string())?;
    let Message::Update(update) = message else { return Err("no UPDATE".into()) };
    let withdrawn = update.withdrawn_routes.iter().map(route).collect::<Result<_, _>>()?;
    let mut m = Meaning { withdrawn, ..Meaning::default() };
    let mut next_hop = None;
    for a in &update.attributes {
        match a {
            PathAttribute::ORIGIN(o) => m.origin = Some(o.clone() as u8),
            PathAttribute::AS_PATH(p) => {
                let segment = |s: &Segment| match s {
                    Segment::AS_SET(v) => (1, v.clone()),
                    Segment::AS_SEQUENCE(v) => (2, v.clone()),
                };
                m.path = Some(p.segments.iter().map(segment).collect());
            }
            PathAttribute::NEXT_HOP(a) => next_hop = Some(*a),
            PathAttribute::MULTI_EXIT_DISC(n) => m.med = Some(*n),
            PathAttribute::LOCAL_PREF(n) => m.local_pref = Some(*n),
            PathAttribute::ATOMIC_AGGREGATOR => m.atomic_aggregate = true,
            PathAttribute::AGGREGATOR((asn, a)) => m.aggregator = Some((*asn, *a)),
            PathAttribute::COMMUNITY(v) => m.communities = v.clone(),
            PathAttribute::LARGE_COMMUNITY(v) => m.large_communities = v.clone(),
            PathAttribute::ORIGINATOR_ID(n) => m.originator_id = Some(Ipv4Addr::from(*n)),
            PathAttribute::CLUSTER_LIST(v) => m.cluster_list = v.iter().map(|n| Ipv4Addr::from(*n)).collect(),
            PathAttribute::MP_REACH_NLRI(r) => {
                let hop = match (r.next_hop.first_chunk::<16>(), r.next_hop.first_chunk::<4>()) {
                    (Some(o), _) => IpAddr::V6(Ipv6Addr::from(*o)),
                    (None, Some(o)) => IpAddr::V4(Ipv4Addr::from(*o)),
                    (None, None) => return Err("no next hop".into()),
                };
                for n in &r.announced_routes {
                    m.announced.push((route(n)?, hop));
                }
            }
            PathAttribute::MP_UNREACH_NLRI(r) => {
                for n in &r.withdrawn_routes {
                    m.withdrawn.push(route(n)?);
                }
            }
            _ => {}
        }
    }
    if let Some(hop) = next_hop {
        for n in &update.announced_routes {
            m.announced.push((route(n)?, hop));
        }
    }
    Ok(m.normal())
}

fn route(n: &NLRIEncoding) -> Result<Route, String> {
    match n {
        NLRIEncoding::IP(p) => Ok((net(p.into(), p.length)?, 0)),
        NLRIEncoding::IP_WITH_PATH_ID((p, id)) => Ok((net(p.into(), p.length)?, *id)),
        other => Err(format!("{other:?}")),
    }
}
