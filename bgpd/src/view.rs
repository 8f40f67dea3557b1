//! What a speaker looks like from outside: status and routes as plain values.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use brindle_bgpd_core::{
    rib::PathView,
    speaker::{PeerId, Speaker},
    time::Mono,
    wire::{AsPath, AttrSet, Origin, SegmentKind},
};
use brindle_config_core::status::{BgpStatus, PeerStatus};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::peers::leave::Coverage;

/// Label of mesh sessions.
pub(crate) const MESH: &str = "mesh";
const ESTABLISHED: &str = "Established";

/// One path to a prefix, in the answer to `rib`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RibPath {
    pub prefix: IpNet,
    /// Name of the peer; `None`: our own route.
    pub peer: Option<String>,
    pub next_hop: Option<IpAddr>,
    pub best: bool,
    /// Among the equal-cost paths used for forwarding.
    pub multipath: bool,
    /// Kept over a graceful restart of the peer, not confirmed yet.
    pub stale: bool,
    /// `best`, or the step of the decision at which it lost.
    pub why: String,
    pub origin: String,
    /// As routers print it: sets in braces, confederation segments in parentheses.
    pub as_path: String,
    pub local_pref: Option<u32>,
    pub med: Option<u32>,
    pub communities: Vec<String>,
    pub large_communities: Vec<String>,
}

/// `trouble`: why peers are not up, from the driver's point of view.
pub(crate) fn status(
    speaker: &Speaker,
    now: Mono,
    listen: String,
    trouble: &HashMap<PeerId, String>,
) -> BgpStatus {
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
                last_error: trouble.get(&p.id).cloned().or(p.note).or(p.last_error),
                name: p.name,
                kind: p.kind,
            })
            .collect(),
        loc_rib: speaker.rib(None).filter(|p| p.best).count(),
    }
}

/// How far the sessions outside the mesh have come in replacing it.
pub(crate) fn coverage(speaker: &Speaker) -> Coverage {
    let mut coverage = Coverage::default();
    let mut mesh = HashSet::new();
    for p in speaker.peers() {
        if p.kind == MESH {
            mesh.insert(p.id);
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

pub(crate) fn rib(speaker: &Speaker, prefix: Option<IpNet>) -> Vec<RibPath> {
    let names: HashMap<PeerId, String> = speaker.peers().map(|p| (p.id, p.name)).collect();
    speaker
        .rib(prefix)
        .map(|p| RibPath {
            prefix: p.prefix,
            peer: p.from.map(|id| names.get(&id).cloned().unwrap_or_else(|| "removed peer".into())),
            next_hop: p.next_hop,
            best: p.best,
            multipath: p.multipath,
            stale: p.stale,
            why: p.why(),
            ..attributes(p.prefix, &p.attributes)
        })
        .collect()
}

fn attributes(prefix: IpNet, a: &AttrSet) -> RibPath {
    RibPath {
        prefix,
        peer: None,
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
        large_communities: a.large_communities.iter().map(|(x, y, z)| format!("{x}:{y}:{z}")).collect(),
    }
}

fn as_path(path: &AsPath) -> String {
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
