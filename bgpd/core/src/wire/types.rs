//! Message types shared by the codec, the state machine and the RIB.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::af::Family;

/// A BGP message (RFC 4271 section 4.1).
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every message is an UPDATE; a box would cost an allocation each"
)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    Open(Open),
    Update(Update),
    Notification(Notification),
    Keepalive,
    RouteRefresh(RouteRefresh),
}

/// OPEN (RFC 4271 section 4.2, RFC 5492).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The real AS number: from the 4-octet capability when present, else My Autonomous System.
    pub asn: u32,
    /// Seconds; 0 or >= 3.
    pub hold_time: u16,
    pub router_id: Ipv4Addr,
    pub capabilities: Vec<Capability>,
}

/// One capability (RFC 5492). Those we do not know are kept as they came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Capability {
    /// 1: AFI, SAFI; families we do not route are kept as numbers.
    MultiProtocol {
        afi: u16,
        safi: u8,
    },
    /// 2
    RouteRefresh,
    /// 6
    ExtendedMessage,
    /// 64 (RFC 4724)
    GracefulRestart {
        restarting: bool,
        notification: bool,
        restart_time: u16,
        families: Vec<GrFamily>,
    },
    /// 65
    FourOctetAs(u32),
    /// 69 (RFC 7911): (afi, safi, 1 receive | 2 send | 3 both)
    AddPath(Vec<(u16, u8, u8)>),
    /// 70
    EnhancedRouteRefresh,
    /// 71 (RFC 9494): afi, safi, flags, stale time in seconds
    LongLivedGracefulRestart(Vec<(u16, u8, u8, u32)>),
    /// 73: host and domain name
    Fqdn {
        host: String,
        domain: String,
    },
    Unknown {
        code: u8,
        value: Vec<u8>,
    },
}

/// One family in the graceful restart capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrFamily {
    pub afi: u16,
    pub safi: u8,
    pub forwarding_preserved: bool,
}

/// NOTIFICATION (RFC 4271 section 4.5; subcodes in `wire::iana`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    pub code: u8,
    pub subcode: u8,
    pub data: Vec<u8>,
}

/// ROUTE-REFRESH (RFC 2918; subtype of RFC 7313: 0 request, 1 BoRR, 2 EoRR).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRefresh {
    pub afi: u16,
    pub safi: u8,
    pub subtype: u8,
}

/// A prefix and its path identifier (0 where add-path was not negotiated).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Nlri<P> {
    pub prefix: P,
    pub path_id: u32,
}

/// Prefixes of one family. Host bits are always zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prefixes {
    V4(Vec<Nlri<Ipv4Net>>),
    V6(Vec<Nlri<Ipv6Net>>),
}

impl Prefixes {
    /// The family these belong to.
    pub const fn family(&self) -> Family {
        match self {
            Self::V4(_) => Family::Ipv4Unicast,
            Self::V6(_) => Family::Ipv6Unicast,
        }
    }

    /// How many prefixes.
    pub fn len(&self) -> usize {
        match self {
            Self::V4(v) => v.len(),
            Self::V6(v) => v.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Next hop of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NextHop {
    V4(Ipv4Addr),
    V6 { global: Ipv6Addr, link_local: Option<Ipv6Addr> },
}

impl NextHop {
    /// The global address.
    pub const fn ip(&self) -> IpAddr {
        match self {
            Self::V4(a) => IpAddr::V4(*a),
            Self::V6 { global, .. } => IpAddr::V6(*global),
        }
    }
}

/// Announced prefixes with their next hop. IPv4 NLRI of the classic form and of MP_REACH arrive alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    pub next_hop: NextHop,
    pub prefixes: Prefixes,
}

/// A decoded UPDATE, after the reactions of RFC 7606: what was malformed is already withdrawn or discarded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    pub withdrawn: Vec<Prefixes>,
    /// Attributes of everything in `reach`; `None` when nothing is announced.
    pub attributes: Option<AttrSet>,
    pub reach: Vec<Reach>,
    /// End-of-RIB markers (RFC 4724 section 2).
    pub end_of_rib: Option<Family>,
    /// What RFC 7606 made of bad attributes, for the log and counters.
    pub faults: Vec<AttrFault>,
}

impl Update {
    /// A prefix it is about.
    pub fn first_prefix(&self) -> Option<IpNet> {
        let mut all = self.reach.iter().map(|r| &r.prefixes).chain(&self.withdrawn);
        all.find_map(|list| match list {
            Prefixes::V4(l) => l.first().map(|n| n.prefix.into()),
            Prefixes::V6(l) => l.first().map(|n| n.prefix.into()),
        })
    }
}

/// An attribute that was wrong, and the reaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttrFault {
    pub code: u8,
    pub reaction: Reaction,
    pub what: String,
}

/// RFC 7606 section 2, strongest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reaction {
    Discard,
    TreatAsWithdraw,
    SessionReset,
}

/// ORIGIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Origin {
    Igp,
    Egp,
    Incomplete,
}

/// AS_PATH segment kinds (RFC 4271, RFC 5065).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SegmentKind {
    Set,
    Sequence,
    ConfedSequence,
    ConfedSet,
}

/// One AS_PATH segment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Segment {
    pub kind: SegmentKind,
    pub asns: SmallVec<[u32; 4]>,
}

/// AS_PATH, always with 4-octet AS numbers (AS4_PATH already merged in).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AsPath(pub SmallVec<[Segment; 1]>);

/// AGGREGATOR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Aggregator {
    pub asn: u32,
    pub address: Ipv4Addr,
}

/// An optional transitive attribute we do not know: forwarded verbatim, Partial bit set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnknownAttr {
    pub flags: u8,
    pub code: u8,
    pub value: Vec<u8>,
}

/// Path attributes, normalised: communities sorted and unique, unknown ones sorted by code. NEXT_HOP and the MP
/// attributes are not here: the next hop travels with [`Reach`] and is part of a path beside its `AttrSet`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttrSet {
    pub origin: Origin,
    pub as_path: AsPath,
    pub med: Option<u32>,
    pub local_pref: Option<u32>,
    pub atomic_aggregate: bool,
    pub aggregator: Option<Aggregator>,
    /// RFC 1997.
    pub communities: SmallVec<[u32; 4]>,
    /// RFC 4456.
    pub originator_id: Option<Ipv4Addr>,
    pub cluster_list: SmallVec<[Ipv4Addr; 2]>,
    /// RFC 4360, 8 octets each, big endian.
    pub ext_communities: SmallVec<[u64; 1]>,
    /// RFC 8092.
    pub large_communities: SmallVec<[(u32, u32, u32); 1]>,
    pub unknown: Vec<UnknownAttr>,
}

impl Default for AttrSet {
    fn default() -> Self {
        Self {
            origin: Origin::Igp,
            as_path: AsPath::default(),
            med: None,
            local_pref: None,
            atomic_aggregate: false,
            aggregator: None,
            communities: SmallVec::new(),
            originator_id: None,
            cluster_list: SmallVec::new(),
            ext_communities: SmallVec::new(),
            large_communities: SmallVec::new(),
            unknown: Vec::new(),
        }
    }
}

/// What both sides agreed on that changes how bytes are read or written. The default is a session without
/// capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireCx {
    /// RFC 6793: AS_PATH and AGGREGATOR carry 4-octet numbers.
    pub four_octet_as: bool,
    /// RFC 8654: messages up to 65,535 octets.
    pub extended_message: bool,
    /// RFC 7911 per family, this direction: IPv4, IPv6.
    pub add_path: [bool; 2],
    /// The session is iBGP (RFC 7606: LOCAL_PREF, ORIGINATOR_ID and CLUSTER_LIST from eBGP are discarded).
    pub ibgp: bool,
}

impl WireCx {
    /// Whether prefixes of a family carry a path identifier.
    pub const fn add_path(&self, family: Family) -> bool {
        let [v4, v6] = self.add_path;
        match family {
            Family::Ipv4Unicast => v4,
            Family::Ipv6Unicast => v6,
        }
    }

    /// Largest message allowed, octets.
    pub const fn max_len(&self) -> usize {
        if self.extended_message { 65_535 } else { 4_096 }
    }
}
