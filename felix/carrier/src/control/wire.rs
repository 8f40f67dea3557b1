//! The messages on the control socket. Fields may be added within a version; what is unknown is
//! ignored on reading, what is missing counts as zero or unset.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Version of the protocol. `hello` and `shutdown` keep their form in every version, so that an
/// agent can replace a carrier it cannot talk to.
pub const VERSION: u32 = 2;

/// What the agent asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// Who are you?
    Hello {
        /// The protocol version the agent speaks.
        version: u32,
    },
    /// Replace routes, sources and MTU as a whole, at once.
    SetConfig {
        /// The new set.
        config: Config,
    },
    /// Read the counters.
    GetStats,
    /// End.
    Shutdown {
        /// Leave the device, its addresses and routes in place for the next carrier.
        #[serde(default)]
        keep_device: bool,
    },
}

/// Everything the carrier needs to know beyond its command line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// MTU of the device: the longest inner packet, in bytes. The agent sets it on the device
    /// itself, as it does with kernel ipip.
    pub mtu: u16,
    /// The routes the kernel has through the device, with their next hops.
    pub routes: Vec<Route>,
    /// Outer sources packets are taken from: the addresses of all known nodes, and ranges.
    pub sources: Vec<Ipv4Net>,
}

/// A destination and the nodes that carry it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// Inner destinations.
    pub dst: Ipv4Net,
    /// Outer destinations. Flows are spread over them; one that is given twice gets twice as many.
    pub via: Vec<Ipv4Addr>,
}

/// What the carrier answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// To `hello`.
    Hello(Hello),
    /// To `set-config`.
    Configured(Configured),
    /// To `get-stats`.
    Stats(Box<Stats>),
    /// To `shutdown`; the connection closes behind it.
    Bye,
    /// The request was not carried out; nothing changed.
    Error {
        /// What, where, what to do.
        message: String,
    },
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol version the carrier speaks.
    pub version: u32,
    /// Version of the program.
    #[serde(default)]
    pub release: String,
    /// Its process.
    #[serde(default)]
    pub pid: u32,
    /// Its device.
    pub device: String,
    /// Outer source address.
    pub local: Ipv4Addr,
    /// Whether it has a configuration; without one it moves no packet.
    #[serde(default)]
    pub configured: bool,
    /// Milliseconds since its start.
    #[serde(default)]
    pub uptime_ms: u64,
    /// The process that starts it again when it dies; none if that has died itself.
    #[serde(default)]
    pub keeper: Option<u32>,
}

/// What became of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// False when the carrier had exactly this configuration already.
    pub changed: bool,
    /// Routes now in force.
    pub routes: usize,
    /// Sources now accepted.
    pub sources: usize,
}

/// Counters since the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// From the device to other nodes.
    pub outbound: OutboundStats,
    /// From other nodes into the device.
    pub inbound: InboundStats,
}

/// Device → wire. Packets are counted as they are on the wire, bytes without outer headers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OutboundStats {
    /// Packets sent.
    pub packets: u64,
    /// Inner bytes sent.
    pub bytes: u64,
    /// Frames read from the device; one may stand for many packets.
    pub frames: u64,
    /// Dropped: no IPv4 packet (IPv6 noise on the device, say).
    pub dropped_not_ipv4: u64,
    /// Dropped: no route in the configuration. The sender got "host unreachable".
    pub dropped_no_route: u64,
    /// Dropped: our own outer packets, routed back into the device.
    pub dropped_loop: u64,
    /// Dropped: longer than the path, with DF. The sender got "fragmentation needed".
    pub dropped_too_big: u64,
    /// Dropped: a frame that cannot be finished or cut.
    pub dropped_malformed: u64,
    /// Dropped: the kernel would not send (no route to the node, queue full).
    pub dropped_unsent: u64,
    /// Packets fragmented because the path is narrower than the device.
    pub fragmented: u64,
    /// ICMP errors written back into the device.
    pub icmp_sent: u64,
    /// ICMP errors not sent: rate limit.
    pub icmp_suppressed: u64,
    /// Times a path was found narrower than thought.
    pub path_mtu_changes: u64,
    /// Errors reported earlier by ICMP and ignored (a peer that is not up).
    pub ignored_errors: u64,
}

/// Wire → device. Packets are counted as they came, bytes without outer headers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InboundStats {
    /// Packets delivered.
    pub packets: u64,
    /// Inner bytes delivered.
    pub bytes: u64,
    /// Frames written to the device; one may stand for many packets.
    pub frames: u64,
    /// Dropped: the outer source is no known node.
    pub dropped_unknown_source: u64,
    /// The last such source.
    pub last_unknown_source: Option<Ipv4Addr>,
    /// Dropped: the outer header is not what a tunnel end sends.
    pub dropped_outer_malformed: u64,
    /// Dropped: the inner packet is no whole IPv4 packet.
    pub dropped_inner_malformed: u64,
    /// Dropped: congestion marked on a packet whose ends do not speak ECN (RFC 6040).
    pub dropped_ecn: u64,
    /// Dropped: a frame of several UDP datagrams whose length is not known any more.
    pub dropped_superframe: u64,
    /// Dropped: the device refused (it is down, or memory is short).
    pub dropped_device: u64,
    /// Errors reported by ICMP and ignored.
    pub ignored_errors: u64,
}
