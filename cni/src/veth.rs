//! The pair of devices between a pod and its host, as Calico makes it: host end `cali…` with MAC ee:ee:ee:ee:ee:ee, in
//! the pod a /32, a link-scope route to 169.254.1.1 and the default route through it. Routes and settings of the host
//! end are the agent's.
//!
//! Calico's pods find that gateway by proxy ARP, which the kernel answers only on hosts that have a default route. The
//! host end's MAC is always the same, so here the pod is told: the first packet needs no question, and no default route.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use brindle_kernel::{
    netlink::{
        Addr, Link, Mac, Neigh, NetlinkError, Op, Route, RouteFilter, Rtnl, Veth, VethPeer, addr_flag,
        neigh_state,
    },
    netns::NetNs,
    sysctl,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    error::{CniError, code},
    names::HOST_MAC,
};

/// Next hop of every pod.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Link-local address the kernel makes of [`HOST_MAC`] (EUI-64).
pub(crate) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);
/// Whether this is the next hop of a pod.
pub(crate) fn is_gateway(ip: IpAddr) -> bool {
    ip == IpAddr::V4(GATEWAY) || ip == IpAddr::V6(GATEWAY6)
}

/// The interface whose default route counts.
const FIRST: &str = "eth0";
/// Metrics of the routes of other interfaces; the kernel's own are 0 and 1024.
const SECOND4: u32 = 1000;
const SECOND6: u32 = 2048;
/// How often a device in the way is removed before giving up.
const ATTEMPTS: u32 = 3;

/// The pair that is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Wiring {
    pub host_ifname: String,
    pub ifname: String,
    pub mac: Mac,
    /// None: the kernel's default.
    pub mtu: Option<u32>,
    pub addresses: Vec<IpNet>,
    /// Beside the default route, and through the same gateway.
    pub routes: Vec<IpNet>,
    pub forwarding: bool,
}

/// What the result of an ADD says of one end; none where it says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Said {
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
}

/// What [`Wiring::create`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Created {
    New,
    /// A repeated ADD: the pair was there already.
    Same,
}

/// A device in a pod and its end on the host.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub container: Link,
    pub host: Link,
}

/// The pair behind the pod's device; none if there is no such device. A device that is no pair with its other end in
/// this namespace is an error: it is somebody else's.
pub(crate) fn find(host: &mut Rtnl, pod: &NetNs, ifname: &str) -> Result<Option<Pair>, CniError> {
    let Some(container) = Rtnl::open_in(pod)?.link_by_name(ifname)? else { return Ok(None) };
    let foreign = || {
        CniError::new(code::ATTACHED, format!("{ifname} in {pod} is not a device of this plugin"))
            .hint("another plugin or person made it; remove it or use another CNI_IFNAME")
    };
    let peer = container.link.filter(|_| container.kind.as_deref() == Some("veth")).ok_or_else(foreign)?;
    let peer = host.link_by_index(peer)?.ok_or_else(foreign)?;
    if peer.kind.as_deref() != Some("veth") || peer.link != Some(container.index) {
        return Err(foreign());
    }
    Ok(Some(Pair { container, host: peer }))
}

impl Wiring {
    /// Creates the pair, the host end up. An old pair of the same pod (its former sandbox's) makes way; the very pair
    /// that is wanted stays.
    pub(crate) fn create(&self, host: &mut Rtnl, pod: &NetNs) -> Result<Created, CniError> {
        let veth = Veth {
            name: &self.host_ifname,
            mac: Some(HOST_MAC),
            mtu: self.mtu,
            up: true,
            peer: VethPeer { name: &self.ifname, mac: Some(self.mac), netns: Some(pod) },
        };
        for _ in 0..ATTEMPTS {
            match host.add_veth(&veth) {
                Ok(()) => return Ok(Created::New),
                Err(e) if e.is_exists() => {}
                Err(e) => return Err(e.into()),
            }
            // One of the two names is taken; which one decides what this is.
            if let Some(pair) = find(host, pod, &self.ifname)? {
                if pair.host.name == self.host_ifname && pair.container.mac == Some(self.mac) {
                    if !pair.host.up {
                        host.set_up(pair.host.index)?;
                    }
                    return Ok(Created::Same);
                }
                let what = format!("{} exists already in {pod}, for another container", self.ifname);
                return Err(CniError::new(code::ATTACHED, what).hint("DEL the other attachment first"));
            }
            remove(host, &self.host_ifname)?;
        }
        Err(CniError::new(code::TRY_AGAIN, format!("{} is made again by somebody else", self.host_ifname)))
    }

    /// Sets up the pod's end. Safe to repeat. Returns what could not be done but does not matter.
    pub(crate) fn configure(&self, pod: &NetNs) -> Result<Vec<String>, CniError> {
        pod.run(|| self.configure_here()).map_err(|e| CniError::new(code::IO, e.to_string()))?
    }

    fn configure_here(&self) -> Result<Vec<String>, CniError> {
        let mut warnings = Vec::new();
        let v6 = self.addresses.iter().any(|a| a.addr().is_ipv6());
        if v6 {
            self.enable_ipv6()?;
        }
        let forwarding = if self.forwarding { "1" } else { "0" };
        for key in
            [Some("net/ipv4/ip_forward"), v6.then_some("net/ipv6/conf/all/forwarding")].into_iter().flatten()
        {
            if let Err(e) = sysctl::ensure(key, forwarding) {
                warnings.push(e.to_string());
            }
        }
        let mut pod = Rtnl::open()?;
        let link = pod.link_by_name(&self.ifname)?.ok_or_else(|| vanished(&self.ifname))?;
        let mut ops = vec![Op::set_up("lo", true), Op::set_up(link.index, true)];
        ops.extend(self.addresses.iter().map(|a| {
            let flags = if a.addr().is_ipv6() { addr_flag::NODAD } else { 0 };
            Op::add_addr(&Addr { flags, ..Addr::new(link.index, *a) })
        }));
        ops.extend(self.routes(link.index).iter().map(Op::replace_route));
        ops.extend(self.gateways().map(|g| Op::set_neigh(&Neigh::permanent(link.index, g, HOST_MAC))));
        for result in pod.run(&ops) {
            match result {
                Err(e) if !e.is_exists() => return Err(e.into()),
                _ => {}
            }
        }
        Ok(warnings)
    }

    fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        let has = |v4: bool| self.addresses.iter().any(|a| a.addr().is_ipv4() == v4);
        let v4 = has(true).then_some(IpAddr::V4(GATEWAY));
        v4.into_iter().chain(has(false).then_some(IpAddr::V6(GATEWAY6)))
    }

    /// Routes of the pod, in the order in which they can be added.
    fn routes(&self, dev: u32) -> Vec<Route> {
        let mut routes = Vec::new();
        // A second interface must not take the default route from the first.
        let (metric4, metric6) = if self.ifname == FIRST { (0, 0) } else { (SECOND4, SECOND6) };
        if self.addresses.iter().any(|a| a.addr().is_ipv4()) {
            routes.push(Route::new(IpNet::from(IpAddr::V4(GATEWAY))).dev(dev).with_metric(metric4));
            let default = Route::new(IpNet::V4(Ipv4Net::default())).with_metric(metric4);
            routes.push(default.via(GATEWAY.into(), Some(dev), false));
        }
        if self.addresses.iter().any(|a| a.addr().is_ipv6()) {
            let default = Route::new(IpNet::V6(Ipv6Net::default())).with_metric(metric6);
            routes.push(default.via(GATEWAY6.into(), Some(dev), false));
        }
        routes.extend(self.further().map(|(dst, gateway)| {
            let metric = if gateway.is_ipv4() { metric4 } else { metric6 };
            Route::new(dst).with_metric(metric).via(gateway, Some(dev), false)
        }));
        routes
    }

    /// Routes beside the default ones, with their gateway. There is none where the pod has no address of the family.
    pub(crate) fn further(&self) -> impl Iterator<Item = (IpNet, IpAddr)> {
        let wanted = self.routes.iter().filter(|n| n.prefix_len() > 0).copied();
        wanted.filter_map(|n| {
            let gateway = self.gateways().find(|g| g.is_ipv4() == n.addr().is_ipv4())?;
            Some((n, gateway))
        })
    }

    /// Some runtimes switch IPv6 off in new namespaces.
    fn enable_ipv6(&self) -> Result<(), CniError> {
        let conf = |who: &str, what: &str| format!("net/ipv6/conf/{who}/{what}");
        let set = |key: String, value: &str| {
            sysctl::ensure(&key, value).map(drop).map_err(|e| {
                let hint = match e.is_not_found() {
                    true if self.mtu.is_some_and(|mtu| mtu < 1280) => {
                        "IPv6 needs an MTU of 1280 at least: correct mtu"
                    }
                    true => "this kernel has no IPv6",
                    false => "is /proc/sys read-only?",
                };
                CniError::new(code::IO, e.to_string()).hint(hint)
            })
        };
        for who in ["all", "default", "lo", &self.ifname] {
            set(conf(who, "disable_ipv6"), "0")?;
        }
        set(conf(&self.ifname, "accept_dad"), "0")
    }

    /// What differs from how it should be, and from what was said of the pod's end and the host's; nothing if all is well.
    pub(crate) fn differences(
        &self,
        said: [Said; 2],
        host: &mut Rtnl,
        pod: &NetNs,
    ) -> Result<Vec<String>, CniError> {
        let mut wrong = Vec::new();
        let Some(pair) = find(host, pod, &self.ifname)? else {
            return Ok(vec![format!("{} does not exist in {pod}", self.ifname)]);
        };
        if pair.host.name != self.host_ifname {
            wrong.push(format!("the host end is {}, not {}", pair.host.name, self.host_ifname));
        }
        let ends = [(&pair.container, "in the pod"), (&pair.host, "on the host")];
        for ((link, place), said) in ends.into_iter().zip(said) {
            if !link.up {
                wrong.push(format!("{} {place} is down", link.name));
            }
            if let Some(mac) = said.mac.filter(|m| link.mac != Some(*m)) {
                wrong.push(format!("{} {place} has the MAC {}, not {mac}", link.name, shown(link.mac)));
            }
            if let Some(mtu) = said.mtu.filter(|m| link.mtu != *m) {
                wrong.push(format!("{} {place} has the MTU {}, not {mtu}", link.name, link.mtu));
            }
        }
        let inside = pod.run(|| -> Result<_, NetlinkError> {
            let mut pod = Rtnl::open()?;
            // In whichever table: a later plugin of the list (sbr) moves them.
            let of_it = RouteFilter { dev: Some(pair.container.index), ..RouteFilter::default() };
            let index = Some(pair.container.index);
            Ok((pod.addrs(index)?, pod.routes(&of_it)?, pod.neighs(index)?))
        });
        let (addrs, routes, neighs) = inside.map_err(|e| CniError::new(code::IO, e.to_string()))??;
        for want in &self.addresses {
            if !addrs.iter().any(|a| a.net == *want) {
                wrong.push(format!("{} lacks the address {want}", self.ifname));
            }
        }
        for want in self.routes(pair.container.index) {
            let there = routes.iter().any(|r| r.dst == want.dst && r.hops == want.hops);
            if !there {
                wrong.push(format!("the pod lacks the route {want}"));
            }
        }
        for gateway in self.gateways() {
            // One that was learned may be forgotten, and nobody may answer then.
            let told = neighs.iter().find(|n| n.addr == gateway && n.state & neigh_state::PERMANENT != 0);
            match told {
                None => wrong.push(format!("the pod lacks the permanent neighbour {gateway}")),
                Some(n) if n.mac != pair.host.mac => wrong.push(format!(
                    "the pod sends to {gateway} at {}, but {} has the MAC {}",
                    shown(n.mac),
                    pair.host.name,
                    shown(pair.host.mac)
                )),
                Some(_) => {}
            }
        }
        let on_host = host.routes(&RouteFilter { dev: Some(pair.host.index), ..RouteFilter::main() })?;
        for want in &self.addresses {
            if !on_host.iter().any(|r| r.dst == want.trunc()) {
                wrong.push(format!("the host has no route to {want} through {}", pair.host.name));
            }
        }
        Ok(wrong)
    }
}

/// Deletes a device by name; none is fine. Waits until the kernel has torn it down.
pub(crate) fn remove(host: &mut Rtnl, name: &str) -> Result<(), CniError> {
    match host.del_link(name) {
        Err(e) if !e.is_not_found() => Err(e.into()),
        _ => Ok(()),
    }
}

fn shown(mac: Option<Mac>) -> String {
    mac.map_or_else(|| "none".to_owned(), |m| m.to_string())
}

fn vanished(ifname: &str) -> CniError {
    CniError::new(code::CONTAINER, format!("{ifname} vanished while it was being set up"))
        .hint("the container was deleted meanwhile")
}
