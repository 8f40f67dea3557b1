//! A kernel route as felix thinks of it: devices by name, one metric, one owner mark.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Route protocol of everything felix programs but pod routes (Calico `DefaultRouteProto`).
pub const PROTO_CLUSTER: u8 = 80;
/// Route protocol of pod routes (boot; FelixConfiguration.deviceRouteProtocol).
pub const PROTO_DEVICE: u8 = 3;
/// Metric of our routes (Calico since 3.32: `ipv4NormalRoutePriority`, 1024). Not 0: the kernel keeps one route per
/// destination and metric, so that a route somebody else put there without a metric stays beside ours, and is
/// preferred, instead of being overwritten; and IPv6 has no metric 0, so that both families read back alike.
pub const METRIC: u32 = 1024;

/// A device name; shared, since thousands of routes name the same few devices.
pub type Dev = Arc<str>;

/// One next hop.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hop {
    pub via: IpAddr,
    pub dev: Dev,
    /// The gateway need not be covered by an address of the device.
    pub onlink: bool,
}

/// Where matching packets go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// Directly on a device, scope link.
    Device(Dev),
    /// One or more gateways, sorted; more than one is equal cost.
    Via(Vec<Hop>),
    Blackhole,
    /// A kind felix never makes (unreachable, prohibit, ...), read back from the kernel.
    Other(String),
}

impl Target {
    /// Itself, unless it has no way out.
    pub fn some(self) -> Option<Self> {
        match self {
            Self::Via(hops) if hops.is_empty() => None,
            other => Some(other),
        }
    }
}

/// One route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    pub dst: IpNet,
    /// Priority; the kernel keeps one route per destination and metric. 0 in IPv6 means 1024.
    pub metric: u32,
    pub protocol: u8,
    pub target: Target,
}

/// What makes two routes the same entry of the table.
pub type RouteKey = (IpNet, u32);

/// The entry a route to `dst` with this metric occupies. The kernel gives IPv6 routes without a metric 1024.
pub fn route_key(dst: IpNet, metric: u32) -> RouteKey {
    const IP6_RT_PRIO_USER: u32 = 1024;
    (dst, if metric == 0 && matches!(dst, IpNet::V6(_)) { IP6_RT_PRIO_USER } else { metric })
}

impl Route {
    /// The entry this route occupies.
    pub fn key(&self) -> RouteKey {
        route_key(self.dst, self.metric)
    }

    /// Devices the route uses.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        let (one, many) = match &self.target {
            Target::Device(d) => (Some(&**d), &[][..]),
            Target::Via(hops) => (None, hops.as_slice()),
            Target::Blackhole | Target::Other(_) => (None, &[][..]),
        };
        one.into_iter().chain(many.iter().map(|h| &*h.dev))
    }
}

impl fmt::Display for Route {
    /// As `ip route` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Device(d) => write!(f, "{} dev {d} scope link", self.dst)?,
            Target::Via(hops) => {
                write!(f, "{}", self.dst)?;
                for h in hops {
                    if hops.len() > 1 {
                        write!(f, " nexthop")?;
                    }
                    write!(f, " via {} dev {}{}", h.via, h.dev, if h.onlink { " onlink" } else { "" })?;
                }
            }
            Target::Blackhole => write!(f, "blackhole {}", self.dst)?,
            Target::Other(kind) => write!(f, "{kind} {}", self.dst)?,
        }
        write!(f, " proto {}", self.protocol)?;
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}
