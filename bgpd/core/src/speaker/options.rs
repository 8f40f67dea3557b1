//! Per-neighbor settings beyond the usual ones: how the session is run, and what is done to attributes on its way.
//! Values only. RFC 4724, 8538, 9494 (restarts), 4486 and 9003 (shutdown), 8326, 8212; dynamic neighbors.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::PeerConfig;
use crate::af::{Family, PerFamily};

/// GRACEFUL_SHUTDOWN (RFC 8326).
pub const GRACEFUL_SHUTDOWN: u32 = 0xFFFF_0000;
/// LLGR_STALE (RFC 9494).
pub const LLGR_STALE: u32 = 0xFFFF_0006;
/// NO_LLGR (RFC 9494).
pub const NO_LLGR: u32 = 0xFFFF_0007;
/// Longest stale time of RFC 9494, seconds (24 bits).
pub const LONG_LIVED_MAX: u32 = 0xFF_FFFF;

/// How a session is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionOptions {
    /// Device the connection is bound to (SO_BINDTODEVICE); gives link-local addresses their scope. Carried for the
    /// driver.
    pub interface: Option<String>,
    /// TTL of what we send: how many hops away the peer may be. `None`: the system's default. Carried for the driver.
    pub hops: Option<u8>,
    /// Seconds a peer may take nothing from us (RFC 9687); `None`: eight minutes, or twice the hold time if that is
    /// longer. Carried for the driver.
    pub send_hold: Option<u16>,
    /// Seconds for which our OPEN waits for the peer's on a new connection (RFC 4271 DelayOpenTime); 0: not at all.
    pub delay_open: u16,
    /// Administratively down, and what the peer's operator is told about it (RFC 9003).
    pub shutdown: Option<String>,
    /// Text of other goodbyes: administrative shutdown and reset.
    pub farewell: String,
    /// Seconds for which the peer may keep our routes as long-lived stale (RFC 9494), and the longest we keep its;
    /// 0: neither. At most [`LONG_LIVED_MAX`].
    pub long_lived: u32,
    /// Graceful restart also after a NOTIFICATION (RFC 8538 N bit), if both sides say so.
    pub notification_restart: bool,
    /// Longest time the routes of a peer that is away are kept, seconds, whatever it asks for.
    pub restart_limit: u16,
    /// Seconds a peer that is back may take until End-of-RIB.
    pub stale_time: u16,
    pub prefixes: PrefixLimits,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            interface: None,
            hops: None,
            send_hold: None,
            delay_open: 0,
            shutdown: None,
            farewell: String::new(),
            long_lived: 0,
            notification_restart: false,
            restart_limit: 4_095,
            stale_time: 360,
            prefixes: PrefixLimits::default(),
        }
    }
}

/// The guard against too many prefixes, beside `PeerConfig::max_prefixes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefixLimits {
    /// Limits of single families; `None`: `max_prefixes`.
    pub family: PerFamily<Option<u32>>,
    /// Per cent of the limit at which a warning is given; 0: none.
    pub warn_at: u8,
    pub action: PrefixAction,
}

impl PrefixLimits {
    /// The limit of a family.
    pub fn of(&self, family: Family, otherwise: u32) -> u32 {
        self.family[family].unwrap_or(otherwise)
    }
}

/// What happens to a session with too many prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrefixAction {
    /// It goes on, with a warning.
    Warn,
    /// It ends (Cease 6/1) and starts again after so many seconds; 0: after the usual back-off.
    Restart(u32),
    /// It ends and stays down until an operator's `clear` or a change of its settings.
    StayDown,
}

impl Default for PrefixAction {
    fn default() -> Self {
        Self::Restart(0)
    }
}

/// What is done to routes on their way in and out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteOptions {
    /// The peer's AS in the paths we send it is replaced by ours, so that sites of one AS can reach each other.
    pub as_override: bool,
    /// Private AS numbers (RFC 6996) are removed from what an external peer is sent.
    pub remove_private: bool,
    /// With a local AS: it is put in front of paths this peer sends, too.
    pub local_as_prepend: bool,
    /// With a local AS: the speaker's own AS stays visible behind it.
    pub local_as_show_own: bool,
    /// Routes with GRACEFUL_SHUTDOWN get LOCAL_PREF 0 (RFC 8326). `None`: those of external peers.
    pub honour_shutdown: Option<bool>,
    /// A default route is originated towards this peer, whatever the RIB holds.
    pub default_route: bool,
    /// The first AS in what an external peer sends must be its own.
    pub enforce_first_as: bool,
    /// An external peer needs a policy, else nothing is accepted from it and nothing sent to it (RFC 8212).
    pub require_policy: bool,
    /// Our address as the next hop of a family's routes; `None`: that of the session, if it is of the family.
    pub own_next_hop: PerFamily<Option<IpAddr>>,
}

impl RouteOptions {
    /// Whether routes that are already here would be others under `new`.
    pub(crate) fn changes_import(&self, new: &Self) -> bool {
        self.local_as_prepend != new.local_as_prepend
            || self.honour_shutdown != new.honour_shutdown
            || self.enforce_first_as != new.enforce_first_as
            || self.require_policy != new.require_policy
    }
}

/// Neighbors nobody lists: whoever connects from a range becomes one, and is forgotten when it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DynamicPeers {
    /// For logs; its neighbors are called `NAME-ADDRESS`.
    pub name: String,
    pub range: IpNet,
    /// Settings of its neighbors; address, port and passive do not count. AS 0: any.
    pub template: PeerConfig,
    /// Most neighbors at a time.
    pub max: u32,
}

/// The kind of neighbors made on accept.
pub const DYNAMIC: &str = "dynamic";

impl DynamicPeers {
    /// The range an address falls into: the longest of those that hold it.
    pub fn of(list: &[Self], address: IpAddr) -> Option<&Self> {
        let address = address.to_canonical();
        list.iter().filter(|d| d.range.contains(&address)).max_by_key(|d| d.range.prefix_len())
    }

    /// The neighbor at an address.
    pub fn peer(&self, address: IpAddr) -> PeerConfig {
        PeerConfig {
            name: format!("{}-{address}", self.name),
            kind: DYNAMIC.into(),
            address: address.to_canonical(),
            passive: true,
            ..self.template.clone()
        }
    }
}
