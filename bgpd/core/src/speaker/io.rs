//! What goes into and comes out of a [`Speaker`](super::Speaker): configuration, inputs, outputs. Values only.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU8,
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::options::{DynamicPeers, RouteOptions, SessionOptions};
use crate::{
    af::Family,
    policy::Policy,
    time::Mono,
    wire::{AttrSet, Message, NextHop, Notification, WireCx},
};

/// A configured neighbor; stable while the speaker lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerId(pub u32);

/// One TCP connection of a neighbor (there may be two while a collision is resolved).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConnId(pub u64);

/// The speaker's own identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpeakerConfig {
    pub asn: u32,
    pub router_id: Ipv4Addr,
    /// Set on a route reflector (RFC 4456). [`Input::SetRouting`] changes it.
    pub cluster_id: Option<Ipv4Addr>,
    /// Seed of timer jitter and of the hash tables; the driver draws it at random.
    pub seed: u64,
    /// LOCAL_PREF of own routes towards iBGP peers. Calico sends 2147483647 - 1024 for a route of normal priority.
    /// [`Input::SetRouting`] changes it.
    pub local_pref: u32,
    /// LOCAL_PREF of routes from eBGP peers (they carry none).
    pub ebgp_local_pref: u32,
    /// The LOCAL_PREF a classic speaker sends for a route of normal priority; the decision process takes it as equal
    /// to `local_pref`, and 101 as one better. `None`: LOCAL_PREF values are compared as they are.
    pub classic_local_pref: Option<u32>,
    /// Largest number of equal-cost paths of one prefix that are used at once ([`Input::SetMultipath`] changes it).
    pub multipath: Multipath,
    /// The forwarding state of an earlier run is still in the kernel: announce it (RFC 4724, R and F bits), and choose
    /// and advertise routes only when the peers have sent theirs.
    pub restarting: bool,
    /// Seconds after which peers that are not up are no longer waited for before [`Output::FibInSync`].
    pub sync_settle: u16,
    /// Seconds after which `FibInSync` comes in any case (RFC 4724 Selection_Deferral_Timer).
    pub sync_wait: u16,
    /// Ranges whose hosts become neighbors when they connect ([`Input::SetDynamic`] changes them).
    #[serde(default)]
    pub dynamic: Vec<DynamicPeers>,
    /// Paths of all peers together; the peer that exceeds it is dismissed (Cease 6/8, RFC 4486). 0: no limit.
    /// [`Input::SetRouting`] changes it.
    #[serde(default)]
    pub max_paths: usize,
}

impl SpeakerConfig {
    /// LOCAL_PREF of a Calico route of normal priority.
    pub const NORMAL_LOCAL_PREF: u32 = 2_147_483_647 - 1_024;

    /// A speaker with the usual settings.
    pub const fn new(asn: u32, router_id: Ipv4Addr) -> Self {
        Self {
            asn,
            router_id,
            cluster_id: None,
            seed: 0,
            local_pref: Self::NORMAL_LOCAL_PREF,
            ebgp_local_pref: 100,
            classic_local_pref: Some(100),
            multipath: Multipath::up_to(16),
            restarting: false,
            sync_settle: 10,
            sync_wait: 60,
            dynamic: Vec::new(),
            max_paths: 0,
        }
    }

    /// What of this is no part of who we are.
    pub const fn routing(&self) -> Routing {
        Routing { cluster_id: self.cluster_id, local_pref: self.local_pref, max_paths: self.max_paths }
    }

    /// Changes that.
    pub const fn set_routing(&mut self, routing: Routing) {
        let Routing { cluster_id, local_pref, max_paths } = routing;
        self.cluster_id = cluster_id;
        self.local_pref = local_pref;
        self.max_paths = max_paths;
    }
}

/// What a speaker does with routes without any peer having agreed to it: fields of [`SpeakerConfig`] that can change
/// while sessions go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routing {
    pub cluster_id: Option<Ipv4Addr>,
    pub local_pref: u32,
    pub max_paths: usize,
}

/// How many paths that are as good as the best are used beside it. The best and its equals are always of one kind:
/// external ones were preferred before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Multipath {
    /// Where the best path came from an external peer; 0 counts as 1.
    pub ebgp: u8,
    pub ibgp: u8,
    /// Equals must have the AS path of the best, not only one as long.
    pub same_as_path: bool,
}

/// As recordings have it; those of earlier versions have a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    One(u8),
    Each { ebgp: u8, ibgp: u8, same_as_path: bool },
}

impl From<Written> for Multipath {
    fn from(w: Written) -> Self {
        match w {
            Written::One(n) => Self::up_to(n),
            Written::Each { ebgp, ibgp, same_as_path } => Self { ebgp, ibgp, same_as_path },
        }
    }
}

impl Multipath {
    /// So many of either kind.
    pub const fn up_to(n: u8) -> Self {
        Self { ebgp: n, ibgp: n, same_as_path: false }
    }

    /// Most paths, the best one included.
    pub fn limit(&self, ebgp: bool) -> usize {
        usize::from(if ebgp { self.ebgp } else { self.ibgp }.max(1))
    }
}

/// How next hops are set towards a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NextHopPolicy {
    /// iBGP keeps it, eBGP sets our own address (RFC 4271 section 5.1.3).
    #[default]
    Auto,
    SelfAddress,
    Keep,
}

/// Several paths to a prefix on one session (RFC 7911), in each direction as far as the neighbor agrees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddPath {
    pub receive: bool,
    pub send: Option<AddPathSend>,
}

/// Which paths a neighbor with add-path is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AddPathSend {
    /// All that may be used.
    All,
    /// The best, the best of the rest, and so on.
    Best(NonZeroU8),
    /// Only the best, under identifier 0, at the cost of a neighbor without add-path. It is agreed on all the same, so
    /// that the neighbor can be told more later without a new session.
    Single,
}

/// A neighbor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerConfig {
    /// For logs and status, e.g. the node's name.
    pub name: String,
    /// `mesh`, `global`, `node`, `workload`, `static`.
    pub kind: String,
    pub address: IpAddr,
    pub port: u16,
    /// Source address of outgoing connections and our next hop towards this peer.
    pub local_address: Option<IpAddr>,
    pub asn: u32,
    /// AS to present instead of the speaker's own.
    pub local_asn: Option<u32>,
    pub passive: bool,
    pub families: Vec<Family>,
    /// Seconds; Calico's BIRD uses 240.
    pub hold_time: u16,
    /// Seconds between KEEPALIVEs; `None`: a third of the negotiated hold time (Calico: keepaliveTime).
    pub keepalive: Option<u16>,
    /// Seconds between attempts (BIRD: 5).
    pub connect_retry: u16,
    /// Announced in the graceful restart capability; seconds, 0 = not announced.
    pub restart_time: u16,
    pub reflector_client: bool,
    /// How often our own AS may stand in a received AS_PATH (Calico: numAllowedLocalASNumbers).
    pub allow_own_as: u8,
    /// More prefixes of one family than this end the session (Cease, RFC 4486 subcode 1). Bounds memory.
    pub max_prefixes: u32,
    pub next_hop: NextHopPolicy,
    /// Calico's ttlSecurity: GTSM (RFC 5082), the peer is at most this many hops away. Carried for the driver.
    pub ttl: Option<u8>,
    /// TCP-MD5 password, carried for the driver. Never written into a recording.
    #[serde(default, skip_serializing)]
    pub password: Option<String>,
    /// In a recording: which password it was, by a number for each, so that another one is seen as a change there, too.
    /// 0 elsewhere.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub password_number: u32,
    #[serde(default)]
    pub add_path: AddPath,
    /// Export policy: peers with an equal one share work. Accept = advertise what the speaker may advertise.
    pub export: ExportPolicy,
    /// How the session is run, beyond the above.
    #[serde(default)]
    pub session: SessionOptions,
    /// What is done to attributes.
    #[serde(default)]
    pub attributes: RouteOptions,
    /// Rules for what the peer sends. What they reject is kept, with the rule, and not used.
    #[serde(default)]
    pub import: Policy,
}

/// For serde, which passes a reference.
const fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl PeerConfig {
    /// A neighbor with the usual settings: port 179, the family of its address, Calico's timers.
    pub fn new(name: impl Into<String>, address: IpAddr, asn: u32) -> Self {
        Self {
            name: name.into(),
            kind: "static".into(),
            address,
            port: 179,
            local_address: None,
            asn,
            local_asn: None,
            passive: false,
            families: vec![if address.is_ipv4() { Family::Ipv4Unicast } else { Family::Ipv6Unicast }],
            hold_time: 240,
            keepalive: None,
            connect_retry: 5,
            restart_time: 120,
            reflector_client: false,
            allow_own_as: 0,
            max_prefixes: 1_000_000,
            next_hop: NextHopPolicy::Auto,
            ttl: None,
            password: None,
            password_number: 0,
            add_path: AddPath::default(),
            export: ExportPolicy::default(),
            session: SessionOptions::default(),
            attributes: RouteOptions::default(),
            import: Policy::default(),
        }
    }
}

/// What is advertised beside what the protocol allows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExportPolicy {
    /// Prefixes (and all longer ones) never advertised, e.g. pools with disableBGPExport.
    pub deny: Vec<IpNet>,
    /// Learnt routes are re-advertised only inside one of these (a Calico node: the IP pools). `None`: all are.
    /// Own routes need no entry.
    pub allow: Option<Vec<IpNet>>,
    /// Rules that come before the lists above: a rule that accepts or rejects has the last word.
    pub filters: Policy,
    /// Communities by prefix, own routes and learnt ones alike; not where a rule let the route out.
    pub tags: Tags,
}

/// Cheap to clone: all peers of a speaker mostly have the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<PrefixTags>", into = "Vec<PrefixTags>")]
pub struct Tags(Arc<[PrefixTags]>);

impl From<Vec<PrefixTags>> for Tags {
    fn from(list: Vec<PrefixTags>) -> Self {
        Self(list.into())
    }
}

impl From<Tags> for Vec<PrefixTags> {
    fn from(tags: Tags) -> Self {
        tags.0.to_vec()
    }
}

/// Communities for a prefix and all longer ones (Calico: prefixAdvertisements). Sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixTags {
    pub prefix: IpNet,
    pub communities: Vec<u32>,
    pub large_communities: Vec<(u32, u32, u32)>,
}

/// Which of the tags of a policy are for a route.
pub(crate) type TagNumbers = SmallVec<[u16; 4]>;

impl ExportPolicy {
    /// Whether the policy lets `prefix` out; `local` = it is a route of our own.
    pub fn permits(&self, prefix: &IpNet, local: bool) -> bool {
        !self.deny.iter().any(|d| d.contains(prefix))
            && (local || self.allow.as_ref().is_none_or(|a| a.iter().any(|n| n.contains(prefix))))
    }
}

impl Tags {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those for a prefix.
    pub(crate) fn of(&self, prefix: &IpNet) -> TagNumbers {
        (0_u16..).zip(&*self.0).filter(|(_, t)| t.prefix.contains(prefix)).map(|(n, _)| n).collect()
    }

    /// Adds the communities of some of them.
    pub(crate) fn apply(&self, which: &TagNumbers, set: &mut AttrSet) {
        for tag in which.iter().filter_map(|n| self.0.get(usize::from(*n))) {
            for c in &tag.communities {
                if let Err(at) = set.communities.binary_search(c) {
                    set.communities.insert(at, *c);
                }
            }
            for c in &tag.large_communities {
                if let Err(at) = set.large_communities.binary_search(c) {
                    set.large_communities.insert(at, *c);
                }
            }
        }
    }
}

/// A route of our own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalRoute {
    pub prefix: IpNet,
    /// `None`: our address towards each peer.
    pub next_hop: Option<NextHop>,
    pub attributes: AttrSet,
}

/// Why a connection ended, from the driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownReason {
    /// Could not connect, with the system's words.
    ConnectFailed(String),
    /// The peer closed, or the transport failed.
    Closed(String),
}

/// Everything that happens to a speaker. Serialisable, so that a run can be recorded and replayed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// The complete desired set of peers; unchanged ones are not disturbed.
    SetPeers(Vec<PeerConfig>),
    /// The complete desired set of own routes.
    SetLocalRoutes(Vec<LocalRoute>),
    /// The driver's answer to [`Output::Dial`].
    Connected {
        conn: ConnId,
        local: SocketAddr,
        remote: SocketAddr,
    },
    /// Somebody connected to us; the speaker accepts or answers with [`Output::Close`]. `conn` is chosen by the
    /// driver (odd numbers; the speaker uses even ones for dials).
    Accepted {
        conn: ConnId,
        local: SocketAddr,
        remote: SocketAddr,
        /// The device it came in by, where the address means nothing without it (IPv6 link-local).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interface: Option<String>,
    },
    Disconnected {
        conn: ConnId,
        reason: DownReason,
    },
    Message {
        conn: ConnId,
        message: Message,
    },
    /// The bytes did not decode; the notification to send is in the error.
    BadMessage {
        conn: ConnId,
        notification: Notification,
        what: String,
    },
    /// The peer has not read anything for longer than the send hold time (RFC 9687): max(8 minutes, 2 x hold time).
    SendStalled {
        conn: ConnId,
    },
    /// Messages of the peer wait for their turn behind those of others: its hold timer must not run out meanwhile.
    Heard {
        conn: ConnId,
    },
    /// Whether an address can be reached by what the kernel knows, and at what cost. Addresses never mentioned are
    /// taken as reachable at cost 0.
    NextHop {
        address: IpAddr,
        /// `None`: unreachable.
        cost: Option<u32>,
    },
    /// The devices towards next hops, all that are known; rules may look at them.
    SetDevices(BTreeMap<IpAddr, String>),
    /// An operator's `clear`.
    Clear {
        peer: PeerId,
        how: Clear,
    },
    /// `Clear::Reset` with a text for the other operator (RFC 9003).
    Reset {
        peer: PeerId,
        text: String,
    },
    /// The complete desired set of dynamic ranges. Neighbors of a range that is gone, or has another template, end.
    SetDynamic(Vec<DynamicPeers>),
    /// Other bounds for equal-cost paths.
    SetMultipath(Multipath),
    /// Another cluster, LOCAL_PREF or limit of paths. Own routes get the new LOCAL_PREF when they are said again
    /// ([`Self::SetLocalRoutes`]).
    SetRouting(Routing),
    /// The speaker panicked while it served this neighbor ([`Work`](super::Work)): it ends as it stands, whatever its state
    /// machine has become, loses its routes, and starts again by itself after so many seconds, or when an operator clears it.
    Defect {
        remote: SocketAddr,
        /// As in [`Self::Accepted`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interface: Option<String>,
        what: String,
        seconds: u32,
    },
    /// We are about to leave: everything is advertised again with GRACEFUL_SHUTDOWN, to internal peers with
    /// LOCAL_PREF 0 (RFC 8326). Some time later comes `Shutdown`.
    Drain,
    /// Stop every session with Cease / Administrative Shutdown.
    Shutdown,
}

/// One line of a recorded run: what came in, and when. A file of these and a [`SpeakerConfig`] repeat the run exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    pub at: Mono,
    pub input: Input,
}

/// What an operator wants of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Clear {
    /// Close it (Cease / Administrative Reset) and start again.
    Reset,
    /// Send everything again.
    SoftOut,
    /// Ask the peer to send everything again (RFC 2918).
    SoftIn,
}

/// What the driver must do, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Output {
    Dial {
        conn: ConnId,
        peer: PeerId,
        to: SocketAddr,
        from: Option<IpAddr>,
        ttl: Option<u8>,
        #[serde(default, skip_serializing)]
        password: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interface: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hops: Option<u8>,
    },
    /// Encode with the connection's [`WireCx`] and send.
    Send {
        conn: ConnId,
        message: Message,
    },
    /// From here on, messages of this connection are read and written with this. Comes in answer to the peer's OPEN,
    /// before anything else is sent: the reader must not decode what follows an OPEN until it has this (or `Close`).
    Negotiated {
        conn: ConnId,
        read: WireCx,
        write: WireCx,
    },
    /// There are updates to pull with `Speaker::next_update` when the socket has room. Not repeated until
    /// `next_update` has returned false.
    Pending {
        conn: ConnId,
    },
    /// Send what is queued, then close.
    Close {
        conn: ConnId,
    },
    Fib(FibChange),
    /// The device towards this next hop is wanted ([`Input::SetDevices`]), also of routes that are not used. Not repeated.
    Locate(IpAddr),
    /// Once: the peers' routes are complete (or were waited for long enough), every `Fib` of them is out, and routes of
    /// an earlier run that were not confirmed by then may be swept.
    FibInSync,
    Event(Event),
}

/// A change of the best path of a prefix, for whoever programs routes. Own routes are not reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FibChange {
    pub prefix: IpNet,
    /// Empty: withdrawn. More than one: equal cost; sorted. One that stands n times is to have n parts of the flows.
    pub next_hops: SmallVec<[IpAddr; 1]>,
    /// Peer the best path came from.
    pub from: Option<PeerId>,
}

/// A change of state worth one line in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    State {
        peer: PeerId,
        name: String,
        old: String,
        new: String,
        cause: String,
    },
    /// An UPDATE with faults, as RFC 7606 dealt with it.
    Fault {
        peer: PeerId,
        what: String,
    },
    /// A graceful restart of the peer: its routes are kept, swept or dropped.
    Restart {
        peer: PeerId,
        name: String,
        what: String,
        routes: usize,
    },
    /// Something an operator should know although the session goes on.
    Warning {
        peer: PeerId,
        name: String,
        what: String,
    },
    /// A setting that cannot be used.
    Config {
        name: String,
        what: String,
    },
    /// Connection refused by the speaker.
    Refused {
        remote: SocketAddr,
        why: String,
    },
}
