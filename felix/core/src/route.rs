//! A kernel route as felix thinks of it: devices by name, one metric, one owner mark.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Route protocol of everything felix programs but pod routes (Calico `DefaultRouteProto`).
pub const PROTO_CLUSTER: u8 = 80;
/// Route protocol of pod routes (boot; FelixConfiguration.deviceRouteProtocol).
pub const PROTO_DEVICE: u8 = 3;
/// Metric of our routes (Calico since 3.32: `ipv4NormalRoutePriority`). Not 0, so that a route somebody else put there
/// without a metric is neither replaced nor hidden.
pub const METRIC: u32 = 1024;

/// One next hop.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hop {
    pub via: IpAddr,
    pub dev: String,
    /// The gateway need not be covered by an address of the device.
    pub onlink: bool,
}

/// Where matching packets go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// Directly on a device, scope link.
    Device(String),
    /// One or more gateways, sorted; more than one is equal cost.
    Via(Vec<Hop>),
    Blackhole,
    /// A kind felix never makes (unreachable, prohibit, ...), read back from the kernel.
    Other(String),
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

impl Route {
    /// The entry this route occupies.
    pub fn key(&self) -> RouteKey {
        let metric = if self.metric == 0 && matches!(self.dst, IpNet::V6(_)) { METRIC } else { self.metric };
        (self.dst, metric)
    }

    /// Devices the route uses.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        let (one, many) = match &self.target {
            Target::Device(d) => (Some(d.as_str()), &[][..]),
            Target::Via(hops) => (None, hops.as_slice()),
            Target::Blackhole | Target::Other(_) => (None, &[][..]),
        };
        one.into_iter().chain(many.iter().map(|h| h.dev.as_str()))
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
