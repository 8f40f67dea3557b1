//! Links, addresses, routes and neighbours as this package shows them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The main routing table.
pub const TABLE_MAIN: u32 = 254;

/// Route protocols (`rtm_protocol`, /etc/iproute2/rt_protos).
pub mod proto {
    pub const KERNEL: u8 = 2;
    pub const BOOT: u8 = 3;
    pub const STATIC: u8 = 4;
    pub const BIRD: u8 = 12;
}

/// Route and address scopes.
pub mod scope {
    pub const UNIVERSE: u8 = 0;
    pub const LINK: u8 = 253;
    pub const HOST: u8 = 254;
    pub const NOWHERE: u8 = 255;
}

/// `IFA_F_*`.
pub mod addr_flag {
    pub const NODAD: u32 = 0x02;
    pub const PERMANENT: u32 = 0x80;
}

/// `NUD_*`.
pub mod neigh_state {
    pub const STALE: u16 = 0x04;
    pub const FAILED: u16 = 0x20;
    pub const PERMANENT: u16 = 0x80;
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// 0.0.0.0 or ::.
    pub const fn any(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not six hexadecimal bytes with colons.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address like 02:00:00:00:00:01")]
pub struct ParseMacError(String);

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(s: &str) -> Result<Self, ParseMacError> {
        let bad = || ParseMacError(s.to_owned());
        let mut out = [0; 6];
        let mut parts = s.split(':');
        for slot in &mut out {
            let part = parts.next().filter(|p| (1..=2).contains(&p.len())).ok_or_else(bad)?;
            *slot = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(out)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = ParseMacError;

    fn try_from(s: String) -> Result<Self, ParseMacError> {
        s.parse()
    }
}

impl From<Mac> for String {
    fn from(m: Mac) -> Self {
        m.to_string()
    }
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    /// None for devices without an Ethernet address (tunnels).
    pub mac: Option<Mac>,
    /// `veth`, `bridge`, `ipip`, `tun`, …; none for physical devices and lo.
    pub kind: Option<String>,
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// Carrier present (IFF_LOWER_UP).
    pub carrier: bool,
    pub loopback: bool,
    /// Index of the bridge or bond this is a port of.
    pub master: Option<u32>,
    /// Index of the device below or of the veth peer (in `peer_netns` if that is set).
    pub link: Option<u32>,
    /// Id, in our namespace, of the namespace `link` lives in.
    pub peer_netns: Option<i32>,
}

/// An address on a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr {
    /// Device index.
    pub link: u32,
    /// The address with its prefix length; host bits are kept.
    pub net: IpNet,
    pub scope: u8,
    /// [`addr_flag`] bits.
    pub flags: u32,
    /// Far end of a point-to-point address.
    pub peer: Option<IpAddr>,
}

impl Addr {
    /// A permanent address of universe scope (host scope in 127.0.0.0/8).
    pub fn new(link: u32, net: IpNet) -> Self {
        let scope = if net.addr().is_loopback() { scope::HOST } else { scope::UNIVERSE };
        Self { link, net, scope, flags: 0, peer: None }
    }
}

/// A neighbour (ARP, ND) entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neigh {
    /// Device index.
    pub link: u32,
    pub addr: IpAddr,
    pub mac: Option<Mac>,
    /// [`neigh_state`] bits.
    pub state: u16,
}

impl Neigh {
    /// A permanent entry.
    pub fn permanent(link: u32, addr: IpAddr, mac: Mac) -> Self {
        Self { link, addr, mac: Some(mac), state: neigh_state::PERMANENT }
    }
}

/// `rtm_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    Unicast,
    Local,
    Broadcast,
    Anycast,
    Multicast,
    Blackhole,
    Unreachable,
    Prohibit,
    Throw,
    Other(u8),
}

impl From<u8> for RouteKind {
    fn from(n: u8) -> Self {
        match n {
            1 => Self::Unicast,
            2 => Self::Local,
            3 => Self::Broadcast,
            4 => Self::Anycast,
            5 => Self::Multicast,
            6 => Self::Blackhole,
            7 => Self::Unreachable,
            8 => Self::Prohibit,
            9 => Self::Throw,
            n => Self::Other(n),
        }
    }
}

impl From<RouteKind> for u8 {
    fn from(k: RouteKind) -> Self {
        match k {
            RouteKind::Unicast => 1,
            RouteKind::Local => 2,
            RouteKind::Broadcast => 3,
            RouteKind::Anycast => 4,
            RouteKind::Multicast => 5,
            RouteKind::Blackhole => 6,
            RouteKind::Unreachable => 7,
            RouteKind::Prohibit => 8,
            RouteKind::Throw => 9,
            RouteKind::Other(n) => n,
        }
    }
}

/// One way out of a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// Device index; none lets the kernel find it from the gateway (always set in what is read back).
    pub dev: Option<u32>,
    pub gateway: Option<IpAddr>,
    /// Take the gateway for a neighbour on `dev` although no subnet says so.
    pub onlink: bool,
    /// Share of a multipath route, 1 to 256.
    pub weight: u16,
    /// Read back only: its device is down, and the kernel sends nothing this way.
    pub dead: bool,
}

/// A route. Build with [`Route::new`] and the `with_` methods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Destination, host bits zero.
    pub dst: IpNet,
    pub table: u32,
    pub kind: RouteKind,
    /// [`proto`], or 80 for cluster routes.
    pub protocol: u8,
    pub scope: u8,
    /// 0 = none (an IPv6 route always has one: 1024 unless told).
    pub metric: u32,
    pub tos: u8,
    /// Preferred source address.
    pub src: Option<IpAddr>,
    /// Path MTU metric.
    pub mtu: Option<u32>,
    /// One for a plain route, several for multipath, none for blackholes.
    pub hops: Vec<NextHop>,
}

impl Route {
    /// A unicast route of the main table without next hop, protocol boot, scope universe.
    pub fn new(dst: IpNet) -> Self {
        Self {
            dst: dst.trunc(),
            table: TABLE_MAIN,
            kind: RouteKind::Unicast,
            protocol: proto::BOOT,
            scope: scope::UNIVERSE,
            metric: 0,
            tos: 0,
            src: None,
            mtu: None,
            hops: Vec::new(),
        }
    }

    /// A blackhole of the main table.
    pub fn blackhole(dst: IpNet) -> Self {
        Self { kind: RouteKind::Blackhole, ..Self::new(dst) }
    }

    /// Straight out of a device, scope link.
    #[must_use]
    pub fn dev(mut self, index: u32) -> Self {
        self.hops.push(NextHop { dev: Some(index), gateway: None, onlink: false, weight: 1, dead: false });
        if self.dst.addr().is_ipv4() {
            self.scope = scope::LINK;
        }
        self
    }

    /// Through a gateway; `dev` none lets the kernel find the device.
    #[must_use]
    pub fn via(mut self, gateway: IpAddr, dev: Option<u32>, onlink: bool) -> Self {
        self.hops.push(NextHop { dev, gateway: Some(gateway), onlink, weight: 1, dead: false });
        self.scope = scope::UNIVERSE;
        self
    }

    #[must_use]
    pub fn with_protocol(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }

    #[must_use]
    pub fn with_metric(mut self, metric: u32) -> Self {
        self.metric = metric;
        self
    }

    #[must_use]
    pub fn with_scope(mut self, scope: u8) -> Self {
        self.scope = scope;
        self
    }

    #[must_use]
    pub fn with_table(mut self, table: u32) -> Self {
        self.table = table;
        self
    }

    #[must_use]
    pub fn with_src(mut self, src: IpAddr) -> Self {
        self.src = Some(src);
        self
    }

    #[must_use]
    pub fn with_mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// Device of a route with exactly one next hop.
    pub fn only_dev(&self) -> Option<u32> {
        match self.hops.as_slice() {
            [one] => one.dev,
            _ => None,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => {}
            k => write!(f, "{} ", format!("{k:?}").to_lowercase())?,
        }
        write!(f, "{}", self.dst)?;
        for hop in &self.hops {
            if self.hops.len() > 1 {
                write!(f, " nexthop")?;
            }
            if let Some(g) = hop.gateway {
                write!(f, " via {g}")?;
            }
            if let Some(d) = hop.dev {
                write!(f, " dev {d}")?;
            }
            if hop.onlink {
                write!(f, " onlink")?;
            }
        }
        if self.table != TABLE_MAIN {
            write!(f, " table {}", self.table)?;
        }
        write!(f, " proto {}", self.protocol)?;
        match self.scope {
            scope::UNIVERSE => {}
            scope::LINK => write!(f, " scope link")?,
            scope::HOST => write!(f, " scope host")?,
            other => write!(f, " scope {other}")?,
        }
        if let Some(s) = self.src {
            write!(f, " src {s}")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        if let Some(m) = self.mtu {
            write!(f, " mtu {m}")?;
        }
        Ok(())
    }
}

/// Which routes to list; none = all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteFilter {
    pub family: Option<Family>,
    pub table: Option<u32>,
    pub protocol: Option<u8>,
    pub dev: Option<u32>,
}

impl RouteFilter {
    /// Routes of the main table.
    pub fn main() -> Self {
        Self { table: Some(TABLE_MAIN), ..Self::default() }
    }

    pub(crate) fn matches(&self, r: &Route) -> bool {
        self.family.is_none_or(|f| f == Family::of(r.dst.addr()))
            && self.table.is_none_or(|t| t == r.table)
            && self.protocol.is_none_or(|p| p == r.protocol)
            && self.dev.is_none_or(|d| r.hops.iter().any(|h| h.dev == Some(d)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_survives_text_and_nonsense_is_refused() {
        let m: Mac = "ee:ee:ee:ee:ee:0a".parse().unwrap();
        assert_eq!(m.to_string(), "ee:ee:ee:ee:ee:0a");
        for bad in
            ["", "ee:ee", "ee:ee:ee:ee:ee:ee:ee", "zz:00:00:00:00:00", "ee:ee:ee:ee:ee:", "0ee:0:0:0:0:0"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_route_reads_like_ip_route() {
        let r = Route::new("10.0.0.5/32".parse().unwrap()).dev(7).with_metric(1024);
        assert_eq!(r.to_string(), "10.0.0.5/32 dev 7 proto 3 scope link metric 1024");
        let r = Route::new("10.0.1.64/26".parse().unwrap())
            .via("192.0.2.1".parse().unwrap(), Some(3), true)
            .with_protocol(80)
            .with_mtu(1480);
        assert_eq!(r.to_string(), "10.0.1.64/26 via 192.0.2.1 dev 3 onlink proto 80 mtu 1480");
        let b = Route::blackhole("10.0.2.0/26".parse().unwrap()).with_protocol(80);
        assert_eq!(b.to_string(), "blackhole 10.0.2.0/26 proto 80");
    }
}
