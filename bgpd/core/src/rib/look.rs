//! Looking into the RIB in bounded steps, and why a route is not told to a neighbor. Nothing here changes anything.
//!
//! The verdict is always that of the code that decides (`export`); what is here only names it afterwards, so that an
//! explanation cannot disagree with what happens.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    LOCAL,
    afi::Afi,
    base::{Rib, RibPeer},
    bits::Bits,
    export::{Candidate, GroupKey, NO_ADVERTISE, NO_EXPORT, NO_EXPORT_SUBCONFED, device},
    import::Reading,
    peers::{NextHops, Sources},
    prefix::Prefix,
    table::Dest,
};
use crate::{
    af::Family,
    policy::{Decision, Facts},
    speaker::{PeerId, TagNumbers},
    wire::AttrSet,
};

/// Which destinations a scan is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// With any path.
    All,
    /// With a path of this neighbor (`LOCAL`: of our own).
    From(PeerId),
    /// That this neighbor was told.
    Told(PeerId),
}

/// Why a neighbor is not told about a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// Nobody announced it.
    NoPath,
    /// There are paths, but none that may be used.
    NoBest,
    /// Selection waits for the peers after our restart (RFC 4724).
    Deferred,
    /// The family is not part of the session.
    NotNegotiated,
    /// The best path came from this neighbor.
    SplitHorizon,
    /// The export policy denies this prefix and what is inside.
    Denied(IpNet),
    /// An export filter rejects it: filter and rule.
    Filtered(String),
    /// A learnt route outside of what the export policy lets through.
    NotAllowed,
    /// RFC 1997.
    NoAdvertise,
    /// RFC 1997: not beyond our AS.
    NoExport,
    /// RFC 4456: from an internal non-client to an internal non-client.
    NotReflected,
    /// The next hop cannot stand in a message of this family.
    NextHopFamily,
    /// RFC 8212.
    NoPolicy,
    /// RFC 9494: an external neighbor that does not know long-lived stale routes.
    LongLived,
    /// It is to get a default route of ours instead of any in the RIB, and we have no address for its next hop.
    NoAddress,
    /// Another setting of the neighbor.
    Settings,
    /// Its attributes leave no room for a prefix in a message of this session.
    TooLong,
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::NoPath => "nobody announced it",
            Self::NoBest => "none of its paths may be used",
            Self::Deferred => "selection waits for the other peers after our restart",
            Self::NotNegotiated => "the address family is not part of this session",
            Self::SplitHorizon => "the best path came from this peer (split horizon)",
            Self::Denied(net) => return write!(f, "export policy: deny {net}"),
            Self::Filtered(rule) => return write!(f, "rejected by filter {rule}"),
            Self::NotAllowed => "export policy: learnt, and outside of every allowed prefix",
            Self::NoAdvertise => "it carries the community no-advertise",
            Self::NoExport => "it carries the community no-export, and the peer is in another AS",
            Self::NotReflected => "iBGP to iBGP, and neither side is a reflector client of ours",
            Self::NextHopFamily => "its next hop is of the other address family",
            Self::NoPolicy => {
                "no policy for this external peer (RFC 8212): give it filters or an export, or set acceptAll"
            }
            Self::LongLived => {
                "it is kept long after its peer went away, and this peer does not know such routes (RFC 9494)"
            }
            Self::NoAddress => {
                "defaultOriginate: the session has no address of ours that could be the next hop of this family"
            }
            Self::Settings => "a setting of this peer keeps it back",
            Self::TooLong => "its attributes do not fit into one message",
        };
        f.write_str(text)
    }
}

/// What a neighbor with a session knows of a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Export {
    /// It was told, with these attributes and this next hop; with add-path the first of several.
    Told(Box<AttrSet>, Option<IpAddr>),
    /// It is to be told when its socket has room.
    Waiting,
    Withheld(Withheld),
}

impl Rib {
    /// Whether a neighbor is internal, and its identifier, by its last session.
    pub fn source(&self, peer: PeerId) -> Option<(bool, Ipv4Addr)> {
        self.sources().known(peer).map(|s| (s.ibgp, s.router_id))
    }

    /// Prefixes of a family, from destination number `from` on, looking at no more than `limit` destinations; they
    /// are added to `found` in no particular order. Returns where to go on, `None` at the end.
    pub fn scan(
        &self,
        family: Family,
        from: u32,
        limit: u32,
        which: Scan,
        found: &mut Vec<IpNet>,
    ) -> Option<u32> {
        match family {
            Family::Ipv4Unicast => scan(self.v4(), from, limit, which, found),
            Family::Ipv6Unicast => scan(self.v6(), from, limit, which, found),
        }
    }

    /// As [`scan`](Self::scan), but counts the paths that were received and may not be used, by neighbor.
    pub fn scan_unusable(
        &self,
        family: Family,
        from: u32,
        limit: u32,
        counts: &mut BTreeMap<PeerId, usize>,
    ) -> Option<u32> {
        match family {
            Family::Ipv4Unicast => unusable(self.v4(), from, limit, counts),
            Family::Ipv6Unicast => unusable(self.v6(), from, limit, counts),
        }
    }

    /// What a neighbor with a session was told about a prefix: path identifier (0 without add-path), attributes, next
    /// hop.
    pub fn told(&self, peer: PeerId, prefix: IpNet) -> Vec<(u32, AttrSet, Option<IpAddr>)> {
        match prefix {
            IpNet::V4(p) => told(self.v4(), peer, p),
            IpNet::V6(p) => told(self.v6(), peer, p),
        }
    }

    /// Whose path a neighbor was told about a prefix under an identifier of [`told`](Self::told); `None`: our own.
    pub fn told_from(&self, peer: PeerId, prefix: IpNet, id: u32) -> Option<PeerId> {
        let from = match prefix {
            IpNet::V4(p) => told_from(self.v4(), peer, p, id),
            IpNet::V6(p) => told_from(self.v6(), peer, p, id),
        };
        from.filter(|peer| *peer != LOCAL)
    }

    /// Whether a neighbor with a session knows of a prefix, and if not, why.
    pub fn export(&self, peer: &RibPeer, prefix: IpNet) -> Export {
        if let Some((_, set, hop)) = self.told(peer.id, prefix).pop() {
            return Export::Told(Box::new(set), hop);
        }
        if !peer.families[family(&prefix)] {
            return Export::Withheld(Withheld::NotNegotiated);
        }
        if self.deferred() {
            return Export::Withheld(Withheld::Deferred);
        }
        match prefix {
            IpNet::V4(p) => export(self.v4(), (self.sources(), self.next_hops()), peer, p),
            IpNet::V6(p) => export(self.v6(), (self.sources(), self.next_hops()), peer, p),
        }
    }

    /// Shorter prefixes that contain this one and have a best path, longest first, with where that came from
    /// (`None`: our own).
    pub fn covering(&self, prefix: IpNet) -> Vec<(IpNet, Option<PeerId>)> {
        match prefix {
            IpNet::V4(p) => covering(self.v4(), std::iter::successors(p.supernet(), Ipv4Net::supernet)),
            IpNet::V6(p) => covering(self.v6(), std::iter::successors(p.supernet(), Ipv6Net::supernet)),
        }
    }

    /// Destinations with a path, by family.
    pub fn prefixes(&self, family: Family) -> usize {
        match family {
            Family::Ipv4Unicast => self.v4().prefixes(),
            Family::Ipv6Unicast => self.v6().prefixes(),
        }
    }
}

const fn family(prefix: &IpNet) -> Family {
    match prefix {
        IpNet::V4(_) => Family::Ipv4Unicast,
        IpNet::V6(_) => Family::Ipv6Unicast,
    }
}

/// Goes over a piece of a table; returns where the next one begins.
fn piece<P: Prefix>(afi: &Afi<P>, from: u32, limit: u32, mut each: impl FnMut(u32, &Dest<P>)) -> Option<u32> {
    let end = from.saturating_add(limit.max(1));
    for (n, dest) in afi.table.iter_from(from) {
        if n >= end {
            return Some(n);
        }
        each(n, dest);
    }
    None
}

fn scan<P: Prefix>(afi: &Afi<P>, from: u32, limit: u32, which: Scan, found: &mut Vec<IpNet>) -> Option<u32> {
    let late = match which {
        Scan::Told(peer) => afi.groups.late(peer),
        Scan::All | Scan::From(_) => Bits::default(),
    };
    piece(afi, from, limit, |n, dest| {
        let wanted = match which {
            Scan::All => !dest.paths.is_empty(),
            Scan::From(peer) => dest.paths.iter().any(|p| p.peer == peer),
            Scan::Told(peer) => afi.groups.knows(&afi.table, peer, n, &late),
        };
        if wanted {
            found.push(dest.prefix.net());
        }
    })
}

fn unusable<P: Prefix>(
    afi: &Afi<P>,
    from: u32,
    limit: u32,
    counts: &mut BTreeMap<PeerId, usize>,
) -> Option<u32> {
    piece(afi, from, limit, |_, dest| {
        for path in dest.paths.iter().filter(|p| p.bad.is_some()) {
            *counts.entry(path.peer).or_default() += 1;
        }
    })
}

fn told<P: Prefix>(afi: &Afi<P>, peer: PeerId, prefix: P) -> Vec<(u32, AttrSet, Option<IpAddr>)> {
    let Some(n) = afi.table.get(prefix) else { return Vec::new() };
    let all = afi.groups.told_of(&afi.table, peer, n);
    all.into_iter().map(|(id, a)| (id, a.set(), a.next_hop().map(|h| h.ip()))).collect()
}

fn told_from<P: Prefix>(afi: &Afi<P>, peer: PeerId, prefix: P, id: u32) -> Option<PeerId> {
    if id != 0 {
        return afi.groups.owner(id);
    }
    afi.groups.owner_for(peer, afi.table.dest(afi.table.get(prefix)?))
}

fn export<P: Prefix>(
    afi: &Afi<P>,
    (sources, next_hops): (&Sources, &NextHops),
    peer: &RibPeer,
    prefix: P,
) -> Export {
    let withheld = Export::Withheld;
    let key = peer.group(P::FAMILY);
    let Some(n) = afi.table.get(prefix) else { return withheld(Withheld::NoPath) };
    let dest = afi.table.dest(n);
    if key.originates(prefix).is_some() {
        let late = afi.groups.late(peer.id).contains(n);
        return if late { Export::Waiting } else { withheld(Withheld::NoAddress) };
    }
    if dest.paths.is_empty() {
        return withheld(Withheld::NoPath);
    }
    let Some(best) = dest.best() else { return withheld(Withheld::NoBest) };
    if best.peer == peer.id {
        return withheld(Withheld::SplitHorizon);
    }
    let candidate =
        Candidate { attrs: &best.attrs, peer: best.peer, source: sources.get(best.peer), next_hops };
    let rule = match key.rule(prefix.net(), &candidate, &mut Reading::default()) {
        Some(rule) => rule,
        None => return withheld(refused(&key, prefix, &candidate)),
    };
    if let Some(why) = key.refusal::<P>(&candidate, rule) {
        return withheld(why);
    }
    if afi.groups.late(peer.id).contains(n) { Export::Waiting } else { withheld(Withheld::TooLong) }
}

/// What of the policy keeps a route back.
fn refused<P: Prefix>(key: &GroupKey, prefix: P, c: &Candidate<'_>) -> Withheld {
    let policy = &*key.policy;
    let set = c.attrs.set();
    let facts = Facts {
        prefix: prefix.net(),
        attributes: &set,
        priority: c.attrs.rank.priority(),
        ibgp: key.ibgp,
        learnt: c.peer != LOCAL,
        interface: device(&policy.filters, c.next_hops, c.attrs),
    };
    if let Decision::Reject(rule) = policy.filters.decide(&facts) {
        let name = policy.filters.rule(P::FAMILY, rule).map(|r| r.to_string());
        return Withheld::Filtered(name.unwrap_or_else(|| "that is gone".into()));
    }
    match policy.deny.iter().find(|d| d.contains(&prefix.net())) {
        Some(net) => Withheld::Denied(*net),
        None => Withheld::NotAllowed,
    }
}

impl GroupKey {
    /// Why [`attributes`](Self::attributes) refuses a path; `None` if it does not.
    fn refusal<P: Prefix>(&self, c: &Candidate<'_>, rule: Option<u16>) -> Option<Withheld> {
        // Tags keep nothing back.
        if self.attributes::<P>(c, rule, &TagNumbers::new()).is_some() {
            return None;
        }
        let communities = c.attrs.set().communities;
        let internal = c.peer != LOCAL && c.source.ibgp && self.ibgp;
        Some(if self.rewrite.closed {
            Withheld::NoPolicy
        } else if communities.contains(&NO_ADVERTISE) {
            Withheld::NoAdvertise
        } else if !self.ibgp
            && (communities.contains(&NO_EXPORT) || communities.contains(&NO_EXPORT_SUBCONFED))
        {
            Withheld::NoExport
        } else if !self.rewrite.permits(&c.attrs.set(), self.ibgp) {
            Withheld::LongLived
        } else if internal && !(c.source.client || self.client) {
            Withheld::NotReflected
        } else if c.attrs.next_hop().is_some_and(|h| !P::fits(&h))
            || P::own_next_hop(self.local_address).is_none()
        {
            Withheld::NextHopFamily
        } else {
            Withheld::Settings
        })
    }
}

fn covering<P: Prefix>(afi: &Afi<P>, shorter: impl Iterator<Item = P>) -> Vec<(IpNet, Option<PeerId>)> {
    shorter
        .filter_map(|p| {
            let best = afi.table.dest(afi.table.get(p)?).best()?;
            Some((p.net(), (best.peer != LOCAL).then_some(best.peer)))
        })
        .collect()
}
