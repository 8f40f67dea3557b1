//! The state of the modelled namespace and the rules by which Linux changes it. Only what reconcilers depend on:
//! devices, addresses with their connected routes, routes of all tables, neighbours, parameters.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use nix::libc::{
    EADDRNOTAVAIL, EEXIST, EHOSTUNREACH, EINVAL, ENETDOWN, ENETUNREACH, ENODEV, ENOENT, EOPNOTSUPP, ESRCH,
};

use super::fault::Script;
use crate::netlink::{Addr, Event, Link, Neigh, Route, RouteChange, RouteKind, TABLE_MAIN, proto, scope};

/// The entry a route occupies: table, destination, tos, metric, and its number among several, which IPv6 has.
type Slot = (u32, IpNet, u8, u32, u32);

/// Errno, positive.
type Res = Result<(), i32>;

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) links: BTreeMap<u32, Link>,
    pub(super) addrs: BTreeSet<Addr>,
    routes: BTreeMap<Slot, Route>,
    pub(super) neighs: BTreeMap<(u32, IpAddr), Neigh>,
    sysctls: BTreeMap<String, String>,
    /// A kernel started without IPv6: its parameters are not there.
    pub(super) without_ipv6: bool,
    /// Device kinds `add_link` knows.
    pub(super) kinds: BTreeSet<String>,
    pub(super) script: Script,
    /// Route writes that took effect.
    pub(super) route_writes: u64,
    /// Dumps of routes that were asked for.
    pub(super) route_dumps: u64,
    next_index: u32,
    /// What happened since the events were last taken.
    pub(super) happened: Vec<Event>,
}

fn metric_of(r: &Route) -> u32 {
    // An IPv6 route without a metric gets 1024 (IP6_RT_PRIO_USER).
    if r.metric == 0 && r.dst.addr().is_ipv6() { 1024 } else { r.metric }
}

fn slot(r: &Route) -> Slot {
    (r.table, r.dst, r.tos, metric_of(r), 0)
}

fn nowhere(kind: RouteKind) -> bool {
    matches!(kind, RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit | RouteKind::Throw)
}

impl Model {
    pub(super) fn new() -> Self {
        let mut m = Self { next_index: 1, ..Self::default() };
        m.kinds = ["bridge", "dummy"].map(str::to_owned).into();
        m.insert_link("lo", None, 65536, true);
        m
    }

    // ---- devices -------------------------------------------------------------------------------------------------

    fn insert_link(&mut self, name: &str, kind: Option<&str>, mtu: u32, loopback: bool) -> u32 {
        let index = self.next_index;
        self.next_index += 1;
        let link = Link {
            index,
            name: name.to_owned(),
            mtu,
            kind: kind.map(str::to_owned),
            loopback,
            ..Link::default()
        };
        self.happened.push(Event::Link(link.clone()));
        self.links.insert(index, link);
        index
    }

    pub(super) fn by_name(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|l| l.name == name)
    }

    pub(super) fn add_link(&mut self, name: &str, kind: &str, mtu: Option<u32>) -> Res {
        if name.is_empty() || name.len() > 15 || name.contains(['/', ' ']) {
            return Err(EINVAL);
        }
        if !self.kinds.contains(kind) {
            return Err(EOPNOTSUPP);
        }
        if self.by_name(name).is_some() {
            return Err(EEXIST);
        }
        self.insert_link(name, Some(kind), mtu.unwrap_or(1500), false);
        Ok(())
    }

    pub(super) fn del_link(&mut self, index: u32) -> Res {
        self.links.get(&index).ok_or(ENODEV)?;
        self.flush(index);
        self.addrs.retain(|a| a.link != index);
        self.neighs.retain(|(l, _), _| *l != index);
        if let Some(l) = self.links.remove(&index) {
            let of = |k: &str| {
                ["ipv4/conf", "ipv4/neigh", "ipv6/conf"]
                    .iter()
                    .any(|p| k.starts_with(&format!("net/{p}/{}/", l.name)))
            };
            self.sysctls.retain(|k, _| !of(k));
            self.happened.push(Event::LinkGone(l));
        }
        Ok(())
    }

    pub(super) fn set_up(&mut self, index: u32, up: bool) -> Res {
        let link = self.links.get_mut(&index).ok_or(ENODEV)?;
        if link.up == up {
            return Ok(());
        }
        link.up = up;
        link.carrier = up;
        let event = Event::Link(link.clone());
        self.happened.push(event);
        if up {
            let of_this: Vec<_> = self.addrs.iter().filter(|a| a.link == index).cloned().collect();
            for a in of_this {
                self.connect(&a);
            }
        } else {
            self.flush(index);
        }
        Ok(())
    }

    pub(super) fn set_mtu(&mut self, index: u32, mtu: u32) -> Res {
        let link = self.links.get_mut(&index).ok_or(ENODEV)?;
        link.mtu = mtu;
        let event = Event::Link(link.clone());
        self.happened.push(event);
        Ok(())
    }

    /// Routes through a device that went down or away vanish; for IPv4 without a notification.
    fn flush(&mut self, index: u32) {
        let through = |r: &Route| r.hops.iter().any(|h| h.dev == Some(index));
        let gone: Vec<_> = self.routes.iter().filter(|(_, r)| through(r)).map(|(k, _)| *k).collect();
        for k in gone {
            if let Some(r) = self.routes.remove(&k)
                && r.dst.addr().is_ipv6()
            {
                self.happened.push(Event::RouteGone(r));
            }
        }
    }

    // ---- addresses -----------------------------------------------------------------------------------------------

    fn connect(&mut self, a: &Addr) {
        if a.net.prefix_len() == a.net.max_prefix_len() {
            return;
        }
        let mut r = Route::new(a.net).dev(a.link).with_protocol(proto::KERNEL);
        if a.net.addr().is_ipv4() {
            r = r.with_src(a.net.addr()).with_scope(scope::LINK);
        } else {
            r = r.with_metric(256);
        }
        self.happened.push(Event::Route(r.clone()));
        self.routes.entry(slot(&r)).or_insert(r);
    }

    pub(super) fn add_addr(&mut self, a: &Addr) -> Res {
        let link = self.links.get(&a.link).ok_or(ENODEV)?;
        let up = link.up;
        if self.addrs.iter().any(|b| b.link == a.link && b.net == a.net) {
            return Err(EEXIST);
        }
        self.addrs.insert(a.clone());
        self.happened.push(Event::Addr(a.clone()));
        if up {
            self.connect(a);
        }
        Ok(())
    }

    pub(super) fn del_addr(&mut self, link: u32, net: IpNet) -> Res {
        self.links.get(&link).ok_or(ENODEV)?;
        let found =
            self.addrs.iter().find(|a| a.link == link && a.net == net).cloned().ok_or(EADDRNOTAVAIL)?;
        self.addrs.remove(&found);
        self.happened.push(Event::AddrGone(found));
        let own =
            |r: &Route| r.protocol == proto::KERNEL && r.dst == net.trunc() && r.only_dev() == Some(link);
        let gone: Vec<_> = self.routes.iter().filter(|(_, r)| own(r)).map(|(k, _)| *k).collect();
        for k in gone {
            if let Some(r) = self.routes.remove(&k) {
                self.happened.push(Event::RouteGone(r));
            }
        }
        Ok(())
    }

    // ---- routes --------------------------------------------------------------------------------------------------

    pub(super) fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values()
    }

    pub(super) fn change(&mut self, change: &RouteChange) -> Res {
        match change {
            RouteChange::Add(r) => {
                if self.first(r).is_some() {
                    return Err(EEXIST);
                }
                self.put(r)
            }
            RouteChange::Replace(r) => self.put(r),
            RouteChange::Delete(r) => self.remove(r),
        }?;
        self.route_writes += 1;
        Ok(())
    }

    /// The first entry in the place of a route.
    fn first(&self, r: &Route) -> Option<Slot> {
        let first = slot(r);
        self.routes.range(first..=(first.0, first.1, first.2, first.3, u32::MAX)).next().map(|(k, _)| *k)
    }

    /// The kernel itself puts an IPv6 route beside what is there (a router advertisement).
    pub(super) fn advertise(&mut self, r: &Route) {
        let mut at = slot(r);
        while self.routes.contains_key(&at) {
            at.4 += 1;
        }
        self.happened.push(Event::Route(r.clone()));
        self.routes.insert(at, r.clone());
    }

    fn put(&mut self, r: &Route) -> Res {
        let mut r = Route { metric: metric_of(r), ..r.clone() };
        if nowhere(r.kind) {
            r.hops.clear();
        } else {
            if r.hops.is_empty() {
                return Err(ENODEV);
            }
            let unreachable = if r.dst.addr().is_ipv4() { ENETUNREACH } else { EHOSTUNREACH };
            for hop in &mut r.hops {
                if hop.dev.is_none() {
                    hop.dev = hop
                        .gateway
                        .and_then(|g| self.routes.values().find(|c| connected(c, g)))
                        .and_then(Route::only_dev);
                }
                let dev = hop.dev.ok_or(unreachable)?;
                let link = self.links.get(&dev).ok_or(ENODEV)?;
                if !link.up {
                    return Err(ENETDOWN);
                }
                if let Some(g) = hop.gateway
                    && !hop.onlink
                    && !self.routes.values().any(|c| connected(c, g) && c.only_dev() == Some(dev))
                {
                    return Err(unreachable);
                }
            }
        }
        self.happened.push(Event::Route(r.clone()));
        self.routes.insert(self.first(&r).unwrap_or_else(|| slot(&r)), r);
        Ok(())
    }

    /// Table, destination, protocol and next hop must match; metric 0 stands for any.
    fn remove(&mut self, r: &Route) -> Res {
        let hop = |have: &Route| {
            r.hops.iter().all(|h| {
                have.hops.iter().any(|x| {
                    h.dev.is_none_or(|d| x.dev == Some(d)) && h.gateway.is_none_or(|g| x.gateway == Some(g))
                })
            })
        };
        let found = self
            .routes
            .iter()
            .find(|(k, have)| {
                (k.0, k.1, k.2) == (r.table, r.dst, r.tos)
                    && (r.metric == 0 || k.3 == r.metric)
                    && (r.protocol == 0 || have.protocol == r.protocol)
                    && have.kind == r.kind
                    && hop(have)
            })
            .map(|(k, _)| *k)
            .ok_or(ESRCH)?;
        if let Some(r) = self.routes.remove(&found) {
            self.happened.push(Event::RouteGone(r));
        }
        Ok(())
    }

    // ---- the rest ------------------------------------------------------------------------------------------------

    pub(super) fn set_neigh(&mut self, n: &Neigh) -> Res {
        self.links.get(&n.link).ok_or(ENODEV)?;
        self.neighs.insert((n.link, n.addr), n.clone());
        Ok(())
    }

    /// A parameter; those of a device exist while the device does.
    pub(super) fn sysctl(&self, key: &str) -> Result<String, i32> {
        let mut parts = key.splitn(5, '/');
        let (net, family, group, dev) = (parts.next(), parts.next(), parts.next(), parts.next());
        if net != Some("net") || family.is_none() || (family == Some("ipv6") && self.without_ipv6) {
            return Err(ENOENT);
        }
        if let (Some("conf" | "neigh"), Some(dev)) = (group, dev)
            && !matches!(dev, "all" | "default")
            && self.by_name(dev).is_none()
        {
            return Err(ENOENT);
        }
        Ok(self.sysctls.get(key).cloned().unwrap_or_else(|| "0".into()))
    }

    pub(super) fn set_sysctl(&mut self, key: &str, value: &str) -> Result<bool, i32> {
        let changed = self.sysctl(key)? != value;
        self.sysctls.insert(key.to_owned(), value.to_owned());
        Ok(changed)
    }
}

fn connected(r: &Route, gateway: IpAddr) -> bool {
    r.table == TABLE_MAIN
        && r.kind == RouteKind::Unicast
        && r.dst.contains(&gateway)
        && matches!(r.hops.as_slice(), [h] if h.gateway.is_none())
}
