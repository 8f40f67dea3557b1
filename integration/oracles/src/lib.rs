//! Independent readers of BGP UPDATEs, each brought to one form: what the message means.
//!
//! Every oracle is a function `read(frame, session) -> Result<Meaning, String>`. What an oracle cannot express (see the
//! first lines of its module) is left out of the comparison by the tests, by name.

use std::net::{IpAddr, Ipv4Addr};

use brindle_bgpd_core::wire::{AttrSet, Message, Prefixes, SegmentKind, Update, WireCx};
use ipnet::IpNet;

pub mod bgp_rs;
pub mod bgpkit;
pub mod netgauze;
pub mod rustbgpd;
pub mod sample;

/// A prefix and its path identifier.
pub type Route = (IpNet, u32);
/// Kind of segment (1 to 4) and numbers; neighbouring sequences are one.
pub type Path = Vec<(u8, Vec<u32>)>;

/// What an UPDATE says, in an order that does not depend on how it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meaning {
    pub withdrawn: Vec<Route>,
    pub announced: Vec<(Route, IpAddr)>,
    pub origin: Option<u8>,
    pub path: Option<Path>,
    pub med: Option<u32>,
    pub local_pref: Option<u32>,
    pub atomic_aggregate: bool,
    pub aggregator: Option<(u32, Ipv4Addr)>,
    pub communities: Vec<u32>,
    pub large_communities: Vec<(u32, u32, u32)>,
    pub originator_id: Option<Ipv4Addr>,
    pub cluster_list: Vec<Ipv4Addr>,
}

impl Meaning {
    /// Sorts what has no order, drops repetitions and joins sequences.
    pub fn normal(mut self) -> Self {
        self.withdrawn.sort();
        self.announced.sort();
        self.communities.sort_unstable();
        self.communities.dedup();
        self.large_communities.sort_unstable();
        self.large_communities.dedup();
        if let Some(path) = self.path.take() {
            let mut joined: Path = Vec::new();
            for (kind, asns) in path {
                match joined.last_mut() {
                    Some((last, list)) if *last == kind && kind == 2 => list.extend(asns),
                    _ => joined.push((kind, asns)),
                }
            }
            self.path = Some(joined);
        }
        // Attributes without a route describe nothing.
        if self.announced.is_empty() { Self { withdrawn: self.withdrawn, ..Self::default() } } else { self }
    }
}

/// The network of a prefix, host bits cleared.
pub fn net(addr: IpAddr, len: u8) -> Result<IpNet, String> {
    IpNet::new(addr, len).map(|n| n.trunc()).map_err(|e| e.to_string())
}

/// What our own parser makes of a frame; with the faults it found.
pub fn ours(frame: &[u8], cx: &WireCx) -> Result<(Meaning, Update), String> {
    match Message::parse(frame, cx) {
        Ok(Message::Update(u)) => Ok((meaning(&u), u)),
        Ok(other) => Err(format!("no UPDATE: {other:?}")),
        Err(e) => Err(e.to_string()),
    }
}

fn meaning(u: &Update) -> Meaning {
    let mut m = Meaning::default();
    for p in &u.withdrawn {
        m.withdrawn.extend(routes(p));
    }
    for r in &u.reach {
        m.announced.extend(routes(&r.prefixes).map(|n| (n, r.next_hop.ip())));
    }
    if let Some(a) = &u.attributes {
        let AttrSet { as_path, .. } = a;
        m.origin = Some(a.origin as u8);
        let kind = |k| match k {
            SegmentKind::Set => 1,
            SegmentKind::Sequence => 2,
            SegmentKind::ConfedSequence => 3,
            SegmentKind::ConfedSet => 4,
        };
        m.path = Some(as_path.0.iter().map(|s| (kind(s.kind), s.asns.to_vec())).collect());
        m.med = a.med;
        m.local_pref = a.local_pref;
        m.atomic_aggregate = a.atomic_aggregate;
        m.aggregator = a.aggregator.map(|x| (x.asn, x.address));
        m.communities = a.communities.to_vec();
        m.large_communities = a.large_communities.to_vec();
        m.originator_id = a.originator_id;
        m.cluster_list = a.cluster_list.to_vec();
    }
    m.normal()
}

fn routes(p: &Prefixes) -> Box<dyn Iterator<Item = Route> + '_> {
    match p {
        Prefixes::V4(v) => Box::new(v.iter().map(|n| (IpNet::V4(n.prefix), n.path_id))),
        Prefixes::V6(v) => Box::new(v.iter().map(|n| (IpNet::V6(n.prefix), n.path_id))),
    }
}
