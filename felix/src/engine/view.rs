//! What is known of the kernel: read back as a whole, then kept up to date by events.
//!
//! Events are believed as they come. Where Linux changes something without saying so (IPv4 routes vanish with their
//! device), the view asks for that part to be read: an event may be older than the last reading, so that guessing from
//! it would make us forget what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use brindle_felix_core::{
    host::{HostView, Link as HostLink},
    owner::Ownership,
    route::{Dev, Route, RouteKey, Target},
};
use brindle_kernel::{
    api::Kernel,
    netlink::{Addr, Event, Link, NetlinkError, Route as KernelRoute, RouteFilter},
};
use ipnet::IpNet;

use crate::convert::{self, Names};

/// What an event means for decisions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// Entries of the main table that changed.
    pub(crate) keys: BTreeSet<RouteKey>,
    /// Those of them that somebody changed (the others vanished with their device).
    pub(crate) by_others: BTreeSet<RouteKey>,
    /// Devices that came, went or changed.
    pub(crate) devices: BTreeSet<Dev>,
    /// Devices (by index) that went down or, those that are no pods', came up: what their routes are has to be read.
    pub(crate) bounced: BTreeSet<u32>,
    /// Devices that are no pods', addresses, or foreign routes changed: next hops may be reached otherwise, or the MTU of the
    /// underlay be another.
    pub(crate) host: bool,
    /// The view cannot be kept up to date: read everything.
    pub(crate) resync: bool,
}

#[derive(Default)]
pub(crate) struct View {
    pub(crate) links: BTreeMap<u32, Link>,
    pub(crate) addrs: BTreeSet<Addr>,
    pub(crate) names: Names,
    /// The main table: of each key the entry that counts, which is ours where there is one of ours.
    pub(crate) actual: BTreeMap<RouteKey, Route>,
    /// The other entries of a key. IPv6 has several: a router advertisement's stands beside ours of the same metric.
    pub(crate) beside: BTreeMap<RouteKey, Vec<Route>>,
    pub(crate) host: HostView,
    /// When a device was first seen, by index.
    seen: BTreeMap<u32, Instant>,
}

/// Whether a device's addresses are none of this host: kube-proxy in IPVS mode puts the address of every service on
/// `kube-ipvs0` (Calico's interfaceExclude). There are thousands, and they come and go with services.
fn carries_services(device: &str) -> bool {
    device.starts_with("kube-ipvs")
}

fn global(net: &IpNet) -> bool {
    match net {
        IpNet::V4(_) => true,
        IpNet::V6(n) => n.addr().segments()[0] & 0xffc0 != 0xfe80,
    }
}

impl View {
    /// Reads devices and addresses.
    pub(crate) fn read_links(&mut self, kernel: &mut dyn Kernel, now: Instant) -> Result<(), NetlinkError> {
        let links = kernel.links()?;
        self.links = links.into_iter().map(|l| (l.index, l)).collect();
        let addrs = kernel.addrs()?;
        self.addrs = addrs.into_iter().filter(|a| !self.is_of_services(a.link)).collect();
        self.names = Names::default();
        self.seen.retain(|i, _| self.links.contains_key(i));
        let mut by_name = BTreeMap::new();
        for l in self.links.values() {
            self.names.set(l.index, &l.name);
            self.seen.entry(l.index).or_insert(now);
            by_name.insert(Dev::from(l.name.as_str()), self.host_link(l));
        }
        let foreign = std::mem::take(&mut self.host);
        self.host = foreign.with_links(by_name);
        Ok(())
    }

    /// Reads everything.
    pub(crate) fn read(
        &mut self,
        kernel: &mut dyn Kernel,
        owner: &Ownership,
        now: Instant,
    ) -> Result<(), NetlinkError> {
        self.read_links(kernel, now)?;
        let routes = kernel.routes(&RouteFilter::main())?;
        (self.actual, self.beside) = (BTreeMap::new(), BTreeMap::new());
        for r in &routes {
            if let Some(r) = self.route(r, owner) {
                self.put(r, owner);
            }
        }
        let all = self.actual.values().chain(self.beside.values().flatten());
        self.host.set_all_foreign(all.filter(|r| !owner.owns(r)));
        Ok(())
    }

    /// Takes one entry of a reading.
    fn put(&mut self, mut r: Route, owner: &Ownership) {
        let key = r.key();
        match self.actual.get_mut(&key) {
            None => drop(self.actual.insert(key, r)),
            Some(have) if *have == r => {}
            Some(have) => {
                if owner.owns(&r) && !owner.owns(have) {
                    std::mem::swap(have, &mut r);
                }
                self.beside.entry(key).or_default().push(r);
            }
        }
    }

    /// Every entry for a prefix.
    pub(crate) fn entries(&self, prefix: IpNet) -> impl Iterator<Item = &Route> {
        let range = (prefix, 0)..=(prefix, u32::MAX);
        let beside = self.beside.range(range.clone()).flat_map(|(_, all)| all);
        self.actual.range(range).map(|(_, r)| r).chain(beside)
    }

    /// A route as felix-core sees it; none for other tables.
    fn route(&self, r: &KernelRoute, owner: &Ownership) -> Option<Route> {
        let all = convert::from_kernel(r, &self.names)?;
        match owner.owns(&all) {
            true => Some(all),
            false => convert::live(r, &self.names),
        }
    }

    fn is_of_services(&self, link: u32) -> bool {
        self.links.get(&link).is_some_and(|l| carries_services(&l.name))
    }

    fn host_link(&self, l: &Link) -> HostLink {
        let addresses = self.addrs_of(l.index).map(|a| a.net).collect();
        let inner = l.loopback || l.kind.as_deref() == Some("dummy");
        HostLink { up: l.up, mtu: l.mtu, inner, addresses }
    }

    fn refresh_host_link(&mut self, index: u32) {
        if let Some(l) = self.links.get(&index) {
            let link = self.host_link(l);
            self.host.set_link(Dev::from(l.name.as_str()), Some(link));
        }
    }

    /// Addresses of a device.
    pub(crate) fn addrs_of(&self, index: u32) -> impl Iterator<Item = &Addr> {
        self.addrs.range(Addr { link: index, ..LOWEST }..).take_while(move |a| a.link == index)
    }

    /// An address as it is by our own write.
    pub(crate) fn set_addr(&mut self, addr: &Addr, there: bool) {
        if there {
            self.addrs.insert(addr.clone());
        } else {
            self.addrs.remove(addr);
        }
        self.refresh_host_link(addr.link);
    }

    /// When the device was first seen.
    pub(crate) fn first_seen(&self, dev: &str) -> Option<Instant> {
        self.names.index(dev).and_then(|i| self.seen.get(&i)).copied()
    }

    /// The device, if it is there.
    pub(crate) fn link_named(&self, dev: &str) -> Option<&Link> {
        self.names.index(dev).and_then(|i| self.links.get(&i))
    }

    /// Whether every device a route uses is there and up.
    pub(crate) fn all_up(&self, r: &Route) -> bool {
        r.devices().all(|d| self.link_named(d).is_some_and(|l| l.up))
    }

    /// Takes an event in.
    pub(crate) fn take(&mut self, event: &Event, owner: &Ownership, now: Instant, news: &mut News) {
        match event {
            Event::Link(l) => self.link(l, owner, now, news),
            Event::LinkGone(l) => self.link_gone(l, owner, news),
            Event::Addr(a) => {
                let known = self.links.get(&a.link).is_some_and(|l| !carries_services(&l.name));
                if known && self.addrs.insert(a.clone()) {
                    self.refresh_host_link(a.link);
                    news.host |= global(&a.net);
                }
            }
            Event::AddrGone(a) => {
                if self.addrs.remove(a) {
                    self.refresh_host_link(a.link);
                    // With its last address a device loses its IPv4 routes, and nobody is told.
                    news.resync |= global(&a.net);
                }
            }
            Event::Route(r) => {
                if let Some(r) = self.route(r, owner) {
                    self.appeared(r, owner, news);
                }
            }
            Event::RouteGone(r) => {
                let Some(r) = self.route(r, owner) else { return };
                let taken = self.actual.contains_key(&r.key());
                if self.remove_route(&r, owner, news) {
                    news.by_others.insert(r.key());
                } else {
                    // The end of something that is not what we believe to be there.
                    news.resync |= taken;
                }
            }
        }
    }

    /// An entry somebody made.
    fn appeared(&mut self, r: Route, owner: &Ownership, news: &mut News) {
        let key = r.key();
        if self.found(r, owner, news) {
            news.by_others.insert(key);
        }
    }

    /// An entry that is there: in the place of what was there or, in IPv6, beside it, which no event says. Where one of ours
    /// is concerned all is read again. True: the entry as it is known now was changed.
    fn found(&mut self, r: Route, owner: &Ownership, news: &mut News) -> bool {
        let key = r.key();
        let Some(have) = self.actual.get(&key).filter(|have| **have != r && key.0.addr().is_ipv6()) else {
            self.set_route(r, owner, news);
            return true;
        };
        if self.beside.get(&key).is_some_and(|all| all.contains(&r)) {
            return false;
        }
        match (owner.owns(have), owner.owns(&r)) {
            (false, false) => {
                // Every device has a connected route to fe80::/64.
                let devices = (&have.target, &r.target);
                if matches!(devices, (Target::Device(a), Target::Device(b)) if a != b) {
                    self.put(r, owner);
                    self.foreign_changed(key.0, owner, news);
                    return false;
                }
            }
            (true, true) => news.resync = true,
            _ => {
                news.resync = true;
                return false;
            }
        }
        self.set_route(r, owner, news);
        true
    }

    fn link(&mut self, l: &Link, owner: &Ownership, now: Instant, news: &mut News) {
        let old = self.links.insert(l.index, l.clone());
        self.seen.entry(l.index).or_insert(now);
        if self.names.set(l.index, &l.name).is_some() {
            // Renamed: every route that names it reads differently now.
            news.resync = true;
            return;
        }
        let (was_up, old_mtu) = old.as_ref().map_or((false, 0), |o| (o.up, o.mtu));
        if old.is_some() && (was_up, old_mtu) == (l.up, l.mtu) {
            return;
        }
        self.refresh_host_link(l.index);
        // Going down takes routes along, or kills their hops; coming up brings hops to life, and nobody is told.
        if was_up != l.up && old.is_some() && (was_up || !owner.is_pod(&l.name)) {
            news.bounced.insert(l.index);
        }
        news.devices.insert(l.name.as_str().into());
        // The MTU of the underlay may be that of a device without addresses.
        news.host |= self.has_addresses(l.index) || !owner.is_pod(&l.name);
    }

    fn link_gone(&mut self, l: &Link, owner: &Ownership, news: &mut News) {
        // A bridge reports the loss of a port in the same words; the port is still there.
        if self.names.name(l.index).is_none() {
            return;
        }
        news.host |= self.has_addresses(l.index) || !owner.is_pod(&l.name);
        self.vanish(&l.name, owner, news);
        self.addrs.retain(|a| a.link != l.index);
        self.links.remove(&l.index);
        self.seen.remove(&l.index);
        self.names.remove(l.index);
        let dev = Dev::from(l.name.as_str());
        self.host.set_link(Dev::clone(&dev), None);
        news.devices.insert(dev);
    }

    fn has_addresses(&self, index: u32) -> bool {
        self.addrs.iter().any(|a| a.link == index && global(&a.net))
    }

    /// A device is gone for good, and its routes with it. Of a route with several ways others may be left.
    fn vanish(&mut self, name: &str, owner: &Ownership, news: &mut News) {
        for r in self.through(name) {
            match &r.target {
                Target::Via(hops) if hops.len() > 1 => news.resync = true,
                _ => drop(self.remove_route(&r, owner, news)),
            }
        }
    }

    fn through(&self, name: &str) -> Vec<Route> {
        let all = self.actual.values().chain(self.beside.values().flatten());
        all.filter(|r| r.devices().any(|d| d == name)).cloned().collect()
    }

    /// Reads which routes go through a device.
    pub(crate) fn read_device(
        &mut self,
        kernel: &mut dyn Kernel,
        index: u32,
        owner: &Ownership,
        news: &mut News,
    ) -> Result<(), NetlinkError> {
        let Some(name) = self.names.name(index).cloned() else { return Ok(()) };
        let there = kernel.routes(&RouteFilter { dev: Some(index), ..RouteFilter::main() })?;
        let there: BTreeSet<Route> = there.iter().filter_map(|r| self.route(r, owner)).collect();
        for r in self.through(&name) {
            if !there.contains(&r) {
                self.remove_route(&r, owner, news);
            }
        }
        for r in there {
            self.found(r, owner, news);
        }
        Ok(())
    }

    /// An entry as it is now, by event or by our own write.
    pub(crate) fn set_route(&mut self, r: Route, owner: &Ownership, news: &mut News) {
        let (key, foreign) = (r.key(), !owner.owns(&r));
        let old = self.actual.insert(key, r);
        if old.as_ref() == self.actual.get(&key) {
            return;
        }
        news.keys.insert(key);
        if foreign || old.is_some_and(|o| !owner.owns(&o)) {
            self.foreign_changed(key.0, owner, news);
        }
    }

    /// An entry that is gone; whether it was known.
    pub(crate) fn remove_route(&mut self, gone: &Route, owner: &Ownership, news: &mut News) -> bool {
        let key = gone.key();
        let same = |r: &Route| r.target == gone.target && r.protocol == gone.protocol;
        let beside = self.beside.remove(&key).unwrap_or_default();
        let mut all: Vec<Route> = self.actual.remove(&key).into_iter().chain(beside).collect();
        let at = all.iter().position(same);
        let known = at.map(|i| all.remove(i));
        for r in all {
            self.put(r, owner);
        }
        if let Some(old) = &known {
            news.keys.insert(key);
            if !owner.owns(old) {
                self.foreign_changed(key.0, owner, news);
            }
        }
        known.is_some()
    }

    fn foreign_changed(&mut self, dst: IpNet, owner: &Ownership, news: &mut News) {
        let best = self.entries(dst).filter(|r| !owner.owns(r)).min_by_key(|r| r.metric);
        self.host.set_foreign(dst, best.cloned());
        news.host = true;
    }
}

/// Sorts before every address of its device.
const LOWEST: Addr = Addr {
    link: 0,
    net: IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0)),
    scope: 0,
    flags: 0,
    peer: None,
};
