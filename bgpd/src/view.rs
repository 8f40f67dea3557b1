//! What a speaker looks like from outside: status and routes as plain values.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use brindle_bgpd_core::{
    af::Family,
    rib::PathView,
    speaker::{PeerId, Speaker},
    time::Mono,
    wire::{AsPath, AttrSet, Origin, SegmentKind},
};
pub use brindle_config_core::status::bgp::BgpPath as RibPath;
use brindle_config_core::status::{BgpStatus, PeerStatus, bgp::ServiceRoute};
use ipnet::IpNet;

use crate::peers::{leave::Coverage, services::Verdict};

/// Label of mesh sessions.
pub(crate) const MESH: &str = "mesh";
const ESTABLISHED: &str = "Established";

/// What the admin socket tells of the speaker.
pub(crate) fn status(speaker: &Speaker, now: Mono, listen: String) -> BgpStatus {
    let config = speaker.config();
    BgpStatus {
        asn: config.asn,
        router_id: config.router_id.to_string(),
        listen,
        peers: speaker
            .peers()
            .map(|p| PeerStatus {
                address: p.address,
                asn: p.asn,
                state: p.state.to_string(),
                since_ms: now.since_ms(p.since),
                received: p.routes.iter().map(|(_, r)| r.received).sum(),
                advertised: p.routes.iter().map(|(_, r)| r.advertised).sum(),
                last_error: p.note.or(p.last_error),
                name: p.name,
                kind: p.kind,
            })
            .collect(),
        loc_rib: Family::ALL.into_iter().map(|f| speaker.prefixes(f)).sum(),
    }
}

/// What becomes of a service's address.
pub(crate) fn service(v: &Verdict) -> ServiceRoute {
    ServiceRoute {
        prefix: v.prefix,
        service: v.service.as_ref().map(|k| format!("{}/{}", k.namespace, k.name)),
        source: v.source.field().to_owned(),
        announced: v.why.announces(),
        why: v.to_string(),
    }
}

/// How far the sessions outside the mesh have come in replacing it.
pub(crate) fn coverage(speaker: &Speaker, leaving: &BTreeSet<IpAddr>) -> Coverage {
    let mut coverage = Coverage::default();
    let mut mesh = HashSet::new();
    for p in speaker.peers() {
        if leaving.contains(&p.address) {
            mesh.insert(p.id);
            continue;
        }
        if p.kind == MESH {
            // It stays, and nobody waits for it.
            continue;
        }
        let who = format!("{} ({})", p.name, p.address);
        let waiting: usize = p.routes.iter().map(|(_, r)| r.waiting).sum();
        match p.session.filter(|_| p.state.to_string() == ESTABLISHED) {
            None => coverage.not_ready.push(format!("{who}: {}", p.state)),
            // Who does not know graceful restart need not send End-of-RIB (RFC 4724 section 2).
            Some(s)
                if s.restart.is_some()
                    && s.families.iter().any(|(family, on)| *on && !s.end_of_rib[family]) =>
            {
                coverage.not_ready.push(format!("{who}: its routes are not complete (no End-of-RIB yet)"));
            }
            Some(_) if waiting > 0 => {
                coverage.not_ready.push(format!("{who}: {waiting} of our changes are still to be sent"));
            }
            Some(_) => {}
        }
    }
    // Sorted by prefix: paths of one prefix stand together.
    let mut paths = speaker.rib(None).peekable();
    while let Some(first) = paths.next() {
        let prefix = first.prefix;
        let (mut only_mesh, mut other) = (false, false);
        let mut look = |p: &PathView| {
            if p.invalid.is_none() {
                match p.from {
                    Some(id) if mesh.contains(&id) => only_mesh = true,
                    Some(_) if p.stale => {}
                    Some(_) | None => other = true,
                }
            }
        };
        look(&first);
        while let Some(p) = paths.next_if(|p| p.prefix == prefix) {
            look(&p);
        }
        if only_mesh && !other {
            coverage.uncovered += 1;
            coverage.example.get_or_insert(prefix);
        }
    }
    coverage
}

/// Names of the neighbors.
pub(crate) fn names(speaker: &Speaker) -> HashMap<PeerId, String> {
    let all = speaker.peer_ids();
    all.filter_map(|id| Some((id, speaker.peer_config(id)?.name.clone()))).collect()
}

pub(crate) fn rib(speaker: &Speaker, prefix: Option<IpNet>) -> Vec<RibPath> {
    let names = names(speaker);
    speaker.rib(prefix).map(|p| path(&p, &names)).collect()
}

/// One path with its standing.
pub(crate) fn path(p: &PathView, names: &HashMap<PeerId, String>) -> RibPath {
    RibPath {
        peer: p.from.map(|id| names.get(&id).cloned().unwrap_or_else(|| "removed peer".into())),
        path_id: p.path_id,
        next_hop: p.next_hop,
        best: p.best,
        multipath: p.multipath,
        stale: p.stale,
        why: p.why(),
        ..attributes(p.prefix, &p.attributes)
    }
}

/// Attributes alone.
pub(crate) fn attributes(prefix: IpNet, a: &AttrSet) -> RibPath {
    RibPath {
        prefix,
        peer: None,
        path_id: 0,
        next_hop: None,
        best: false,
        multipath: false,
        stale: false,
        why: String::new(),
        origin: match a.origin {
            Origin::Igp => "igp",
            Origin::Egp => "egp",
            Origin::Incomplete => "incomplete",
        }
        .into(),
        as_path: as_path(&a.as_path),
        local_pref: a.local_pref,
        med: a.med,
        communities: a.communities.iter().map(|c| format!("{}:{}", c >> 16, c & 0xffff)).collect(),
        ext_communities: a.ext_communities.iter().map(|c| format!("0x{c:016x}")).collect(),
        large_communities: a.large_communities.iter().map(|(x, y, z)| format!("{x}:{y}:{z}")).collect(),
        originator_id: a.originator_id.map(|id| id.to_string()),
        cluster_list: a.cluster_list.iter().map(ToString::to_string).collect(),
    }
}

/// Milliseconds since 1970; 0 on a clock before that.
pub(crate) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn as_path(path: &AsPath) -> String {
    let segments = path.0.iter().map(|s| {
        let join = |by: &str| s.asns.iter().map(u32::to_string).collect::<Vec<_>>().join(by);
        match s.kind {
            SegmentKind::Sequence => join(" "),
            SegmentKind::Set => format!("{{{}}}", join(",")),
            SegmentKind::ConfedSequence => format!("({})", join(" ")),
            SegmentKind::ConfedSet => format!("[{}]", join(",")),
        }
    });
    segments.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use brindle_bgpd_core::wire::Segment;

    use super::*;

    #[test]
    fn as_paths_read_as_routers_print_them() {
        let segment = |kind, asns: &[u32]| Segment { kind, asns: asns.iter().copied().collect() };
        let path = AsPath(
            [
                segment(SegmentKind::ConfedSequence, &[65000]),
                segment(SegmentKind::Sequence, &[1, 2]),
                segment(SegmentKind::Set, &[3, 4]),
            ]
            .into_iter()
            .collect(),
        );
        assert_eq!(as_path(&path), "(65000) 1 2 {3,4}");
    }
}
