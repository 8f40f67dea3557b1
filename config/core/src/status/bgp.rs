//! Questions about BGP and their answers: what `brindlectl bgp` asks a speaker over the admin socket.
//!
//! `{"cmd":"bgp","ask":"routes",…}` is answered by any number of lines, one JSON object each, and a last one that is
//! an [`End`]: `{"end":{"count":N}}` or `{"error":"…"}`. So a table of any size passes through without being held.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A question to the speaker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum BgpRequest {
    /// Who speaks: one [`SpeakerFacts`].
    Speaker,
    /// Each neighbor, or the one with this name or address: lines of [`Neighbor`].
    Neighbors {
        #[serde(default)]
        peer: Option<String>,
    },
    /// Lines of [`BgpPath`], sorted by prefix.
    Routes {
        #[serde(default)]
        table: RouteTable,
        /// Needed for `received` and `advertised`.
        #[serde(default)]
        peer: Option<String>,
        #[serde(default)]
        prefix: Option<IpNet>,
    },
    /// Why a prefix is or is not received, used, installed, advertised: lines of [`Finding`].
    Explain {
        prefix: IpNet,
        /// Only towards this neighbor.
        #[serde(default)]
        peer: Option<String>,
    },
    /// Lines of [`ServiceRoute`]: what becomes of each configured range and each address of a service.
    Services,
    /// Lines of [`BgpEvent`] as things happen, until the asker hangs up.
    Monitor,
    /// Lines of [`Cleared`], one for each neighbor concerned.
    Clear {
        /// `None`: all.
        #[serde(default)]
        peer: Option<String>,
        how: ClearHow,
        /// Only with `soft`; `None`: both.
        #[serde(default)]
        direction: Option<Direction>,
    },
    /// Writes the RIB into an MRT file (TABLE_DUMP_V2, RFC 6396) on the speaker's machine: one [`Dumped`].
    MrtDump { file: String },
    /// Prometheus text: one [`MetricsText`].
    Metrics,
}

/// Which routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteTable {
    /// Every path, with what the decision process made of it.
    #[default]
    Rib,
    /// What a neighbor sent (Adj-RIB-In).
    Received,
    /// What a neighbor was told (Adj-RIB-Out).
    Advertised,
}

/// How a session is cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClearHow {
    /// The session ends and starts again.
    Hard,
    /// Routes are sent, or asked for, again (RFC 2918).
    Soft,
}

/// Seen from us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    In,
    Out,
}

/// The last line of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    End {
        /// Lines before this one.
        count: usize,
    },
    Error(String),
}

/// The speaker itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SpeakerFacts {
    pub version: String,
    /// 0: no identity yet.
    pub asn: u32,
    pub router_id: String,
    pub cluster_id: Option<String>,
    pub listen: String,
    pub peers: usize,
    pub established: usize,
    /// In the RIB.
    pub prefixes: usize,
}

/// One neighbor in full.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Neighbor {
    pub address: Option<IpAddr>,
    pub port: u16,
    pub name: String,
    /// `mesh`, `global`, `node`, `static`.
    pub kind: String,
    pub asn: u32,
    pub state: String,
    /// Milliseconds in this state.
    pub since_ms: u64,
    /// What brought it into this state.
    pub cause: String,
    pub last_error: Option<String>,
    /// The end of the last session.
    pub last_reset: Option<LastReset>,
    /// Milliseconds until it may start again by itself, where it has to stay down so long.
    pub held_down_ms: Option<u64>,
    /// Milliseconds for which stale routes of the last session are kept on, unless they are confirmed.
    pub stale_for_ms: Option<u64>,
    /// What to know of a session that is up: that it carries nothing for want of a policy (RFC 8212).
    pub note: Option<String>,
    /// Sessions that were established since the start.
    pub sessions: u32,
    pub received: usize,
    /// Received and usable: not rejected by a loop check, a filter or for its next hop.
    pub accepted: usize,
    pub advertised: usize,
    /// Changes that wait for room in the socket.
    pub waiting: usize,
    pub families: Vec<FamilyState>,
    /// What either side announces.
    pub capabilities: Vec<CapabilityState>,
    pub messages_received: Messages,
    pub messages_sent: Messages,
    /// UPDATEs received with faults (RFC 7606).
    pub faulty_updates: u64,
    pub settings: NeighborSettings,
    /// From OpenConfirm on.
    pub session: Option<SessionFacts>,
}

/// How a session ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LastReset {
    /// Milliseconds ago.
    pub ago_ms: u64,
    pub why: String,
}

/// A capability, as either side announces it. Empty texts: it says nothing beside its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CapabilityState {
    pub name: String,
    /// What we say; `None`: we do not announce it.
    pub ours: Option<String>,
    /// What the peer said; `None`: it did not announce it, or there is no session.
    pub theirs: Option<String>,
    /// It is in force on this session.
    pub agreed: bool,
}

/// Counts of one family, and what was agreed on about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FamilyState {
    /// `ipv4`, `ipv6`.
    pub family: String,
    /// Configured: we announce it.
    pub asked: bool,
    pub negotiated: bool,
    /// Several paths come, several paths go (RFC 7911).
    pub add_path_in: bool,
    pub add_path_out: bool,
    /// More prefixes than these are too many.
    pub max_prefixes: u32,
    /// Whether the peer says its forwarding outlived its restart (RFC 4724 F bit); `None`: it does not restart this family
    /// gracefully.
    pub forwarding_kept: Option<bool>,
    /// Seconds for which routes may be kept as long-lived stale (RFC 9494), if both sides want that.
    pub long_lived_time: Option<u32>,
    /// Milliseconds for which they still are.
    pub long_lived_for_ms: Option<u64>,
    pub received: usize,
    pub accepted: usize,
    pub stale: usize,
    pub advertised: usize,
    pub waiting: usize,
    /// End-of-RIB has come.
    pub end_of_rib: bool,
}

/// Messages by type, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Messages {
    pub open: u64,
    pub update: u64,
    pub notification: u64,
    pub keepalive: u64,
    pub route_refresh: u64,
}

impl Messages {
    /// All of them.
    pub const fn total(&self) -> u64 {
        self.open
            .saturating_add(self.update)
            .saturating_add(self.notification)
            .saturating_add(self.keepalive)
            .saturating_add(self.route_refresh)
    }
}

/// What was configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NeighborSettings {
    pub local_asn: Option<u32>,
    /// Where connections come from.
    pub local_address: Option<IpAddr>,
    /// The device they are bound to.
    pub interface: Option<String>,
    /// How many hops away the peer may be, by the TTL of what we send.
    pub multihop: Option<u8>,
    pub passive: bool,
    pub hold_time: u16,
    /// `None`: a third of the hold time.
    pub keepalive: Option<u16>,
    pub connect_retry: u16,
    pub delay_open: u16,
    /// `None`: eight minutes, or twice the hold time.
    pub send_hold: Option<u16>,
    pub restart_time: u16,
    /// Longest time its routes are kept, whatever it asks for.
    pub restart_limit: u16,
    /// Seconds until End-of-RIB when it is back.
    pub stale_time: u16,
    pub long_lived_time: u32,
    pub notification_restart: bool,
    pub max_prefixes: u32,
    /// Per cent of the limit at which a warning is given; 0: none.
    pub prefix_warning: u8,
    /// What too many prefixes do: `warn`, `restart`, `restart after N s`, `stay down`.
    pub prefix_action: String,
    pub add_path_receive: bool,
    /// `all`, `best N`, `one`; `None`: not offered.
    pub add_path_send: Option<String>,
    /// Filters by name, in order.
    pub import_filters: Vec<String>,
    pub export_filters: Vec<String>,
    /// How often our own AS may stand in a path it sends.
    pub allow_own_as: u8,
    /// What is done to attributes, by the names of the settings.
    pub route_options: Vec<String>,
    /// Administratively down, and what the peer is told.
    pub shutdown: Option<String>,
    pub reflector_client: bool,
    /// `auto`, `self`, `keep`.
    pub next_hop: String,
    pub ttl_security: Option<u8>,
    pub password: bool,
}

/// What both sides agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionFacts {
    pub local: String,
    pub remote: String,
    pub remote_id: String,
    pub ibgp: bool,
    pub hold_time: u16,
    pub keepalive: u16,
    /// Names of what the peer announced.
    pub capabilities: Vec<String>,
    /// Seconds for which its routes are kept when it restarts.
    pub restart_time: Option<u16>,
    /// It had restarted when this session began (RFC 4724 R bit).
    pub restarting: bool,
    /// Routes are kept over a NOTIFICATION, too (RFC 8538).
    pub notification_restart: bool,
}

/// A path to a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPath {
    pub prefix: IpNet,
    /// Name of the peer; `None`: our own route.
    pub peer: Option<String>,
    /// RFC 7911; 0 without.
    #[serde(default)]
    pub path_id: u32,
    pub next_hop: Option<IpAddr>,
    pub best: bool,
    /// Among the equal-cost paths used for forwarding.
    pub multipath: bool,
    /// Kept over a graceful restart of the peer, not confirmed yet.
    pub stale: bool,
    /// `best`, or the step of the decision at which it lost, or why it is not usable.
    pub why: String,
    pub origin: String,
    /// As routers print it: sets in braces, confederation segments in parentheses.
    pub as_path: String,
    pub local_pref: Option<u32>,
    pub med: Option<u32>,
    pub communities: Vec<String>,
    #[serde(default)]
    pub ext_communities: Vec<String>,
    pub large_communities: Vec<String>,
    #[serde(default)]
    pub originator_id: Option<String>,
    #[serde(default)]
    pub cluster_list: Vec<String>,
}

/// One step of the answer to `explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// `received`, `service`, `chosen`, `installed`, `kernel`, `advertised`.
    pub topic: Topic,
    /// The neighbor, where it is about one.
    pub peer: Option<String>,
    /// Whether it is as the topic says.
    pub yes: bool,
    pub why: String,
}

/// What a [`Finding`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topic {
    Received,
    /// Whether we announce it as the address of a service.
    Service,
    Chosen,
    /// Handed to whoever programs routes.
    Installed,
    /// What became of it in the kernel of the node.
    Kernel,
    Advertised,
}

/// A range or an address of a service, and whether this node announces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRoute {
    pub prefix: IpNet,
    /// `NAMESPACE/NAME`; `None`: a configured range.
    #[serde(default)]
    pub service: Option<String>,
    /// The field of BGPConfiguration it is held against.
    pub source: String,
    pub announced: bool,
    pub why: String,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpEvent {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// `session`, `route`, `fault`, `restart`, `config`, `refused`, `defect`, `lost`.
    pub kind: String,
    /// Neighbor or prefix.
    pub subject: String,
    pub what: String,
}

/// Answer to [`BgpRequest::Clear`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cleared {
    pub peer: String,
    pub done: bool,
    pub what: String,
}

/// Answer to [`BgpRequest::MrtDump`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dumped {
    pub file: String,
    pub prefixes: usize,
    pub paths: usize,
}

/// Answer to [`BgpRequest::Metrics`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsText {
    pub text: String,
}
