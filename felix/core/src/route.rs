//! A kernel route as felix thinks of it: devices by name, one metric, one owner mark.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Route protocol of everything felix programs but pod routes (Calico `DefaultRouteProto`).
pub const PROTO_CLUSTER: u8 = 80;
/// Route protocol of pod routes (boot; FelixConfiguration.deviceRouteProtocol).
pub const PROTO_DEVICE: u8 = 3;
/// Route protocol of what the kernel makes itself: connected subnets, link-local.
pub const PROTO_KERNEL: u8 = 2;
/// Route protocol of BIRD.
pub const PROTO_BIRD: u8 = 12;
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
    /// Share among equal-cost hops, 1 to 256; 1 where there is only one.
    pub weight: u16,
}

impl Hop {
    /// A hop of weight 1.
    pub fn new(via: IpAddr, dev: Dev, onlink: bool) -> Self {
        Self { via, dev, onlink, weight: 1 }
    }
}

/// Largest weight of a hop in the kernel (one octet, 0 stands for 1).
const MAX_WEIGHT: u16 = 256;

fn gcd(a: u16, b: u16) -> u16 {
    match b {
        0 => a,
        _ => gcd(b, a.checked_rem(b).unwrap_or(0)),
    }
}

/// Ways that are to have equal parts of the flows, each of one hop or several that share its part by their weights.
pub fn even(mut ways: Vec<Vec<Hop>>) -> Vec<Hop> {
    let total = |way: &Vec<Hop>| way.iter().map(|h| u32::from(h.weight)).sum::<u32>().max(1);
    let part = ways.iter().map(total).fold(1u32, |l, t| {
        let common = u32::from(gcd(u16::try_from(l).unwrap_or(1), u16::try_from(t).unwrap_or(1)));
        l.saturating_mul(t.checked_div(common).unwrap_or(t))
    });
    // Beyond what a weight can say the parts are as near as it gets.
    let part = part.min(u32::from(MAX_WEIGHT));
    for way in &mut ways {
        let of = total(way);
        for h in way.iter_mut() {
            let weight = u32::from(h.weight).saturating_mul(part).saturating_add(of / 2).checked_div(of);
            h.weight = weight.and_then(|w| u16::try_from(w).ok()).unwrap_or(1).clamp(1, MAX_WEIGHT);
        }
    }
    ways.into_iter().flatten().collect()
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
    /// Equal-cost hops in the one form they have: sorted, each once with a weight for how often it was given, the
    /// weights without a common factor. None without hops.
    pub fn via(mut hops: Vec<Hop>) -> Option<Self> {
        hops.sort();
        let mut merged: Vec<Hop> = Vec::with_capacity(hops.len());
        for h in hops {
            match merged.last_mut() {
                Some(last) if (last.via, &last.dev, last.onlink) == (h.via, &h.dev, h.onlink) => {
                    last.weight = last.weight.saturating_add(h.weight).min(MAX_WEIGHT);
                }
                _ => merged.push(h),
            }
        }
        let common = merged.iter().fold(0, |g, h| gcd(g, h.weight)).max(1);
        merged.iter_mut().for_each(|h| h.weight = h.weight.checked_div(common).unwrap_or(1).max(1));
        Self::Via(merged).some()
    }

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
                    write!(f, " via {} dev {}", h.via, h.dev)?;
                    if h.weight != 1 {
                        write!(f, " weight {}", h.weight)?;
                    }
                    write!(f, "{}", if h.onlink { " onlink" } else { "" })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn way(hops: &[(u8, u16)]) -> Vec<Hop> {
        let hop = |(n, weight): &(u8, u16)| Hop {
            weight: *weight,
            ..Hop::new([10, 0, 0, *n].into(), "eth0".into(), false)
        };
        hops.iter().map(hop).collect()
    }

    #[test]
    fn each_way_has_the_same_part_and_its_hops_share_it() {
        let weights = |ways: &[&[(u8, u16)]]| {
            let all = even(ways.iter().map(|w| way(w)).collect());
            all.iter().map(|h| h.weight).collect::<Vec<_>>()
        };
        assert_eq!(weights(&[&[(1, 1)], &[(2, 1)]]), [1, 1]);
        assert_eq!(weights(&[&[(1, 1), (2, 1)], &[(3, 1)]]), [1, 1, 2]);
        assert_eq!(weights(&[&[(1, 3), (2, 1)], &[(3, 1), (4, 2)]]), [9, 3, 4, 8]);
        assert_eq!(weights(&[&[(1, 256), (2, 255)], &[(3, 1)]]), [128, 128, 256], "as near as it gets");
        assert_eq!(even(vec![]), []);
    }
}
