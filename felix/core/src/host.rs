//! What was read from this host's kernel and bears on decisions: links, addresses, routes of others.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use prefix_trie::PrefixMap;
use serde::{Deserialize, Serialize};

use crate::route::{Dev, Hop, Route, Target};

/// One network device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub up: bool,
    /// Octets.
    pub mtu: u32,
    /// A loopback or dummy: it may carry addresses of the host, but no packet leaves by it.
    pub inner: bool,
    /// Addresses with the prefix length of their subnet.
    pub addresses: Vec<IpNet>,
}

/// Devices by name, and the routes of the main table that are not ours.
#[derive(Clone, Debug, Default)]
pub struct HostView {
    links: BTreeMap<Dev, Link>,
    foreign4: PrefixMap<ipnet::Ipv4Net, Route>,
    foreign6: PrefixMap<ipnet::Ipv6Net, Route>,
}

/// How an address is reached without our help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// On a subnet of this device.
    Connected {
        dev: Dev,
    },
    /// Through gateways the host already routes to (at least one; several share the flows), by a route of this metric.
    Through {
        hops: Vec<Hop>,
        metric: u32,
    },
    Nowhere,
}

impl Reach {
    /// The distance, for a speaker that compares next hops (RFC 4271 section 9.1.2.2 e): 0 on a connected subnet, the
    /// metric of the host's route beyond; none out of reach.
    pub fn cost(&self) -> Option<u32> {
        match self {
            Self::Connected { .. } => Some(0),
            Self::Through { metric, .. } => Some(*metric),
            Self::Nowhere => None,
        }
    }

    /// The device packets leave by, of several the first.
    pub fn device(&self) -> Option<&str> {
        match self {
            Self::Connected { dev } => Some(dev),
            Self::Through { hops, .. } => hops.first().map(|h| &*h.dev),
            Self::Nowhere => None,
        }
    }
}

impl HostView {
    /// From what was read back. Of foreign routes with one destination the lowest metric counts.
    pub fn new(links: BTreeMap<Dev, Link>, foreign: impl IntoIterator<Item = Route>) -> Self {
        let mut view = Self { links, foreign4: PrefixMap::new(), foreign6: PrefixMap::new() };
        for r in foreign {
            let old = match r.dst {
                IpNet::V4(n) => view.foreign4.get(&n),
                IpNet::V6(n) => view.foreign6.get(&n),
            };
            if old.is_none_or(|o| r.metric < o.metric) {
                view.set_foreign(r.dst, Some(r));
            }
        }
        view
    }

    /// The same foreign routes with other devices.
    #[must_use]
    pub fn with_links(self, links: BTreeMap<Dev, Link>) -> Self {
        Self { links, ..self }
    }

    /// Replaces the routes that are not ours.
    pub fn set_all_foreign<'r>(&mut self, foreign: impl Iterator<Item = &'r Route>) {
        *self = Self::new(std::mem::take(&mut self.links), foreign.cloned());
    }

    /// Of the routes that are not ours, the one that counts for this destination (lowest metric), or none.
    pub fn set_foreign(&mut self, dst: IpNet, best: Option<Route>) {
        match (dst, best) {
            (IpNet::V4(n), Some(r)) => drop(self.foreign4.insert(n, r)),
            (IpNet::V4(n), None) => drop(self.foreign4.remove(&n)),
            (IpNet::V6(n), Some(r)) => drop(self.foreign6.insert(n, r)),
            (IpNet::V6(n), None) => drop(self.foreign6.remove(&n)),
        }
    }

    /// A device appeared, changed, or went (none).
    pub fn set_link(&mut self, name: Dev, link: Option<Link>) {
        match link {
            Some(l) => drop(self.links.insert(name, l)),
            None => drop(self.links.remove(&name)),
        }
    }

    /// A device by name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.get(name)
    }

    /// All devices.
    pub fn links(&self) -> impl Iterator<Item = (&str, &Link)> {
        self.links.iter().map(|(n, l)| (&**n, l))
    }

    /// The device that carries this very address.
    pub fn carrier_of(&self, ip: IpAddr) -> Option<(&str, &Link)> {
        let with = |l: &Link| l.addresses.iter().any(|a| a.addr() == ip);
        // On a loopback, too: the other one says more.
        self.links().filter(|(_, l)| with(l)).min_by_key(|(_, l)| l.inner)
    }

    /// How `ip` is reached, by the longest prefix as the kernel itself would: a connected subnet, or a route of the host's
    /// own that is more specific than it.
    pub fn reach(&self, ip: IpAddr) -> Reach {
        let connected = self
            .links
            .iter()
            .filter(|(_, l)| l.up)
            .flat_map(|(n, l)| l.addresses.iter().map(move |a| (n, a)))
            .filter(|(_, a)| a.contains(&ip) && a.prefix_len() < a.max_prefix_len())
            .max_by_key(|(_, a)| a.prefix_len());
        let route = match ip {
            IpAddr::V4(a) => self.foreign4.get_lpm(&a.into()).map(|(_, r)| r),
            IpAddr::V6(a) => self.foreign6.get_lpm(&a.into()).map(|(_, r)| r),
        };
        if let Some((dev, subnet)) = connected
            && route.is_none_or(|r| r.dst.prefix_len() <= subnet.prefix_len())
        {
            return Reach::Connected { dev: Dev::clone(dev) };
        }
        let metric = route.map_or(0, |r| r.metric);
        match route.map(|r| &r.target) {
            Some(Target::Device(dev)) => Reach::Connected { dev: dev.clone() },
            Some(Target::Via(hops)) if !hops.is_empty() => Reach::Through { hops: hops.clone(), metric },
            Some(Target::Via(_) | Target::Blackhole | Target::Other(_)) | None => Reach::Nowhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(dst: &str, target: Target) -> Route {
        Route { dst: dst.parse().unwrap(), metric: 100, protocol: 4, target }
    }

    fn via(gateway: &str) -> Target {
        Target::Via(vec![Hop::new(gateway.parse().unwrap(), "eth0".into(), false)])
    }

    /// As the kernel has it: a route of the host's own inside its subnet is the way there, one for all of it or more is not.
    #[test]
    fn the_longest_prefix_says_how_an_address_is_reached() {
        let addresses = ["10.0.0.1/16", "fd00::1/48"].map(|a| a.parse().unwrap()).into();
        let eth0 = Link { up: true, mtu: 1500, inner: false, addresses };
        let view = HostView::new(
            BTreeMap::from([("eth0".into(), eth0)]),
            [
                route("0.0.0.0/0", via("10.0.0.254")),
                route("10.0.0.0/16", via("10.0.0.253")),
                route("10.0.9.0/24", via("10.0.0.252")),
                route("10.0.9.9/32", Target::Device("eth1".into())),
                route("10.0.10.0/24", Target::Blackhole),
                route("fd00:0:0:9::/64", via("fd00::252")),
            ],
        );
        let gateway = |ip: &str| match view.reach(ip.parse().unwrap()) {
            Reach::Connected { dev } => dev.to_string(),
            Reach::Through { hops, .. } => hops[0].via.to_string(),
            Reach::Nowhere => "nowhere".to_owned(),
        };
        for (ip, expected) in [
            ("10.0.1.7", "eth0"),
            ("10.0.9.7", "10.0.0.252"),
            ("10.0.9.9", "eth1"),
            ("10.0.10.7", "nowhere"),
            ("10.1.0.1", "10.0.0.254"),
            ("fd00::7", "eth0"),
            ("fd00:0:0:9::7", "fd00::252"),
            ("fd01::7", "nowhere"),
        ] {
            assert_eq!(gateway(ip), expected, "{ip}");
        }
    }
}
