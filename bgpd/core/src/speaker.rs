//! The speaker: all peers and the RIB behind one `handle`. The driver owns sockets and the clock.
//!
//! ```text
//! socket -> reader (frames) -> Input::Message -> Speaker -> Output::{Send, Dial, Close, Fib, ..} -> driver
//! ```
//! The driver's loop is: wait for input | `deadline()` | room in an output queue; call `handle`, `on_time` or
//! `next_update`; drain `Output`s in order.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    af::Family,
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
    /// Set on a route reflector (RFC 4456).
    pub cluster_id: Option<Ipv4Addr>,
    /// Seed of timer jitter.
    pub seed: u64,
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

/// A neighbor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerConfig {
    /// For logs and status, e.g. the node's name.
    pub name: String,
    /// `mesh`, `global`, `node`, `static`.
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
    /// Seconds between attempts (BIRD: 5).
    pub connect_retry: u16,
    /// Announced in the graceful restart capability; seconds, 0 = not announced.
    pub restart_time: u16,
    pub reflector_client: bool,
    pub next_hop: NextHopPolicy,
    /// Calico's ttlSecurity: GTSM (RFC 5082), the peer is at most this many hops away. Carried for the driver.
    pub ttl: Option<u8>,
    /// TCP-MD5 password, carried for the driver.
    pub password: Option<String>,
    /// Export policy: peers with an equal one share work. Accept = advertise what the speaker may advertise.
    pub export: ExportPolicy,
}

/// What is advertised beside what the protocol allows. Issue-sized policy (BGPFilter) grows here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExportPolicy {
    /// Prefixes (and all longer ones) never advertised, e.g. pools with disableBGPExport.
    pub deny: Vec<IpNet>,
    /// Learnt routes are re-advertised only inside one of these (a Calico node: the IP pools). `None`: all are.
    /// Own routes need no entry.
    pub allow: Option<Vec<IpNet>>,
}

impl ExportPolicy {
    /// Whether the policy lets `prefix` out; `local` = it is a route of our own.
    pub fn permits(&self, prefix: &IpNet, local: bool) -> bool {
        !self.deny.iter().any(|d| d.contains(prefix))
            && (local || self.allow.as_ref().is_none_or(|a| a.iter().any(|n| n.contains(prefix))))
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
    /// Stop every session with Cease / Administrative Shutdown.
    Shutdown,
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
        password: Option<String>,
    },
    /// Encode with the connection's [`WireCx`] and send.
    Send {
        conn: ConnId,
        message: Message,
    },
    /// From here on, messages of this connection are read and written with this.
    Negotiated {
        conn: ConnId,
        read: WireCx,
        write: WireCx,
    },
    /// There are updates to pull with `Speaker::next_update` when the socket has room.
    Pending {
        conn: ConnId,
    },
    /// Send what is queued, then close.
    Close {
        conn: ConnId,
    },
    Fib(FibChange),
    Event(Event),
}

/// A change of the best path of a prefix, for whoever programs routes. Own routes are not reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FibChange {
    pub prefix: IpNet,
    /// Empty: withdrawn. More than one: equal cost.
    pub next_hops: Vec<IpAddr>,
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
    /// Connection refused by the speaker.
    Refused {
        remote: SocketAddr,
        why: String,
    },
}
