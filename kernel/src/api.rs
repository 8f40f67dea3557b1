//! What a program that reconciles the kernel needs of it, as traits: the real thing here ([`Linux`]), a model with
//! fault injection in `fake`. One contract suite (tests/contract.rs) runs on both.

use std::time::Duration;

use ipnet::IpNet;

use crate::{
    netlink::{
        Addr, BatchReport, Event, Group, Link, Monitor, Neigh, NetlinkError, Op, Route, RouteBatcher,
        RouteChange, RouteFilter, Rtnl, Waker,
    },
    sysctl::{self, SysctlError},
};

/// One network namespace, read and written. Blocking.
pub trait Kernel: Send {
    /// All devices.
    fn links(&mut self) -> Result<Vec<Link>, NetlinkError>;
    /// Addresses of all devices.
    fn addrs(&mut self) -> Result<Vec<Addr>, NetlinkError>;
    /// Routes that match.
    fn routes(&mut self, filter: &RouteFilter) -> Result<Vec<Route>, NetlinkError>;
    /// Neighbour entries of all devices.
    fn neighs(&mut self) -> Result<Vec<Neigh>, NetlinkError>;

    /// Applies route changes in order; a refused one does not stop the others.
    fn write_routes(&mut self, changes: &[RouteChange]) -> BatchReport;
    /// Creates a device without parameters. `is_unsupported()` when the kernel does not know the kind.
    fn add_link(&mut self, name: &str, kind: &str, mtu: Option<u32>) -> Result<(), NetlinkError>;
    fn del_link(&mut self, index: u32) -> Result<(), NetlinkError>;
    fn set_link_up(&mut self, index: u32, up: bool) -> Result<(), NetlinkError>;
    fn set_link_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError>;
    fn add_addr(&mut self, addr: &Addr) -> Result<(), NetlinkError>;
    fn del_addr(&mut self, link: u32, net: IpNet) -> Result<(), NetlinkError>;
    /// Adds a neighbour entry or overwrites it.
    fn set_neigh(&mut self, neigh: &Neigh) -> Result<(), NetlinkError>;

    /// Reads a parameter, `net/ipv4/ip_forward`.
    fn sysctl(&mut self, key: &str) -> Result<String, SysctlError>;
    /// Writes a parameter unless it has the value; true if it was written.
    fn ensure_sysctl(&mut self, key: &str, value: &str) -> Result<bool, SysctlError>;
}

/// Changes made by others, as they happen. (The caller's own route writes are not reported; what else is, may be an
/// echo.)
pub trait Events: Send {
    /// Waits for events; an empty answer means woken or out of time. `Overrun`: some were lost, read everything again.
    fn next(&mut self, limit: Option<Duration>) -> Result<Vec<Event>, NetlinkError>;
    /// Ends a `next` from another thread.
    fn waker(&self) -> Waker;
}

/// The kernel of this machine, in the network namespace of the thread that opened it. Only that thread's (or another
/// of the same namespace) may call the sysctl functions: the kernel resolves them by thread.
pub struct Linux {
    rtnl: Rtnl,
    batcher: RouteBatcher,
}

impl Linux {
    /// Opens the sockets and a monitor of devices, addresses and routes, which hears everything from now on.
    pub fn open() -> Result<(Self, Monitor), NetlinkError> {
        let mut monitor =
            Monitor::open(&[Group::Links, Group::AddrsV4, Group::AddrsV6, Group::RoutesV4, Group::RoutesV6])?;
        let linux = Self { rtnl: Rtnl::open()?, batcher: RouteBatcher::open()? };
        monitor.ignore(&[linux.rtnl.port(), linux.batcher.port()]);
        Ok((linux, monitor))
    }
}

impl Kernel for Linux {
    fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        self.rtnl.links()
    }

    fn addrs(&mut self) -> Result<Vec<Addr>, NetlinkError> {
        self.rtnl.addrs(None)
    }

    fn routes(&mut self, filter: &RouteFilter) -> Result<Vec<Route>, NetlinkError> {
        self.rtnl.routes(filter)
    }

    fn neighs(&mut self) -> Result<Vec<Neigh>, NetlinkError> {
        self.rtnl.neighs(None)
    }

    fn write_routes(&mut self, changes: &[RouteChange]) -> BatchReport {
        self.batcher.apply(changes)
    }

    fn add_link(&mut self, name: &str, kind: &str, mtu: Option<u32>) -> Result<(), NetlinkError> {
        self.rtnl.add_link_generic(name, kind, mtu)
    }

    fn del_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.rtnl.del_link(index)
    }

    fn set_link_up(&mut self, index: u32, up: bool) -> Result<(), NetlinkError> {
        self.rtnl.run_all(&[Op::set_up(index, up)])
    }

    fn set_link_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        self.rtnl.set_mtu(index, mtu)
    }

    fn add_addr(&mut self, addr: &Addr) -> Result<(), NetlinkError> {
        self.rtnl.add_addr(addr)
    }

    fn del_addr(&mut self, link: u32, net: IpNet) -> Result<(), NetlinkError> {
        self.rtnl.del_addr(link, net)
    }

    fn set_neigh(&mut self, neigh: &Neigh) -> Result<(), NetlinkError> {
        self.rtnl.set_neigh(neigh)
    }

    fn sysctl(&mut self, key: &str) -> Result<String, SysctlError> {
        sysctl::get(key)
    }

    fn ensure_sysctl(&mut self, key: &str, value: &str) -> Result<bool, SysctlError> {
        sysctl::ensure(key, value)
    }
}

impl Events for Monitor {
    fn next(&mut self, limit: Option<Duration>) -> Result<Vec<Event>, NetlinkError> {
        Self::next(self, limit)
    }

    fn waker(&self) -> Waker {
        Self::waker(self)
    }
}
