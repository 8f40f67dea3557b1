//! The veth pair of a pod: made in the host's namespace with its far end born in the pod's, addressed and routed from
//! inside. Calico's shape: host MAC ee:ee:ee:ee:ee:ee, gateway 169.254.1.1 answered by proxy ARP, /32 and /128
//! addresses. The host's route to the pod and the settings of the host device belong to felix.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use brindle_kernel::{
    netlink::{
        Addr, Family, LinkRef, Mac, NetlinkError, Op, Route, RouteFilter, Rtnl, Veth, VethPeer, addr_flag,
    },
    netns::{NetNs, NetNsError},
    sysctl,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// MAC of every host end.
pub const HOST_MAC: Mac = Mac([0xee; 6]);
/// Gateway of every pod; no device carries it.
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The host end's link-local address, which follows from its MAC (EUI-64): the pod's IPv6 gateway.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// What to make.
#[derive(Debug)]
pub struct Attach<'a> {
    pub host_ifname: &'a str,
    pub netns: &'a NetNs,
    pub ifname: &'a str,
    /// /32 and /128.
    pub addresses: &'a [IpNet],
    /// Octets; 0: the kernel's default.
    pub mtu: u32,
    /// MAC of the pod's end; none: the kernel chooses.
    pub mac: Option<Mac>,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub container_mac: String,
    /// Octets.
    pub mtu: u32,
}

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
pub enum VethError {
    #[error("the pod's network namespace: {0}")]
    NetNs(#[from] NetNsError),
    #[error("in the host's namespace: {0}")]
    Host(NetlinkError),
    #[error("in the pod's namespace: {0}")]
    Pod(NetlinkError),
    #[error("in the pod's namespace: {0}")]
    Setting(#[from] sysctl::SysctlError),
    #[error("{ifname} exists in the pod's namespace already")]
    Taken { ifname: String },
    /// CHECK: something is not as ADD left it.
    #[error("{0}")]
    Differs(String),
}

impl VethError {
    /// The namespace vanished: nothing can be done for this container any more.
    pub fn netns_gone(&self) -> bool {
        matches!(self, Self::NetNs(e) if e.is_not_found())
    }
}

/// Makes the pair. On failure nothing is left of it.
pub fn attach(want: &Attach<'_>) -> Result<Attached, VethError> {
    let mut host = Rtnl::open().map_err(VethError::Host)?;
    let mut pod = Rtnl::open_in(want.netns).map_err(VethError::Pod)?;
    if pod.link_by_name(want.ifname).map_err(VethError::Pod)?.is_some() {
        return Err(VethError::Taken { ifname: want.ifname.into() });
    }
    // Of an earlier sandbox of this pod, whose DEL has not come yet.
    if host.link_by_name(want.host_ifname).map_err(VethError::Host)?.is_some() {
        ignore_missing(host.del_link(want.host_ifname)).map_err(VethError::Host)?;
    }
    host.add_veth(&Veth {
        name: want.host_ifname,
        mac: Some(HOST_MAC),
        mtu: (want.mtu > 0).then_some(want.mtu),
        up: true,
        peer: VethPeer { name: want.ifname, mac: want.mac, netns: Some(want.netns) },
    })
    .map_err(VethError::Host)?;
    let result = dress(want, &mut pod);
    if result.is_err() {
        // The far end goes with it. A second failure would hide the first.
        let _ = host.del_link(want.host_ifname);
    }
    result
}

fn dress(want: &Attach<'_>, pod: &mut Rtnl) -> Result<Attached, VethError> {
    let v4 = want.addresses.iter().any(|a| a.addr().is_ipv4());
    let v6 = want.addresses.iter().any(|a| a.addr().is_ipv6());
    if v6 {
        // Runtimes may have switched IPv6 off in a new namespace.
        want.netns.run(|| {
            for key in ["all", "default", "lo", want.ifname] {
                sysctl::set(&format!("net/ipv6/conf/{key}/disable_ipv6"), "0")?;
            }
            sysctl::set(&format!("net/ipv6/conf/{}/accept_dad", want.ifname), "0")
        })??;
    }
    let link = pod.link_by_name(want.ifname).map_err(VethError::Pod)?.ok_or_else(|| {
        VethError::Differs(format!("{} vanished from the pod's namespace while it was set up", want.ifname))
    })?;
    let index = link.index;
    let mut ops = vec![Op::set_up(LinkRef::Name("lo"), true), Op::set_up(LinkRef::Index(index), true)];
    for net in want.addresses {
        let mut addr = Addr::new(index, *net);
        if net.addr().is_ipv6() {
            addr.flags |= addr_flag::NODAD;
        }
        ops.push(Op::add_addr(&addr));
    }
    if v4 {
        let gateway = IpNet::V4(Ipv4Net::from(GATEWAY4));
        ops.push(Op::add_route(&Route::new(gateway).dev(index)));
        let default = IpNet::V4(Ipv4Net::default());
        ops.push(Op::add_route(&Route::new(default).via(GATEWAY4.into(), Some(index), false)));
    }
    if v6 {
        let default = IpNet::V6(Ipv6Net::default());
        ops.push(Op::add_route(&Route::new(default).via(GATEWAY6.into(), Some(index), false)));
    }
    pod.run_all(&ops).map_err(VethError::Pod)?;
    let mac = link.mac.map(|m| m.to_string()).unwrap_or_default();
    Ok(Attached { container_mac: mac, mtu: link.mtu })
}

/// Removes the pair by whichever end is there. Nothing there is fine.
pub fn detach(host_ifname: &str, ifname: &str, netns: Option<&NetNs>) -> Result<(), VethError> {
    let mut host = Rtnl::open().map_err(VethError::Host)?;
    ignore_missing(host.del_link(host_ifname)).map_err(VethError::Host)?;
    if let Some(ns) = netns {
        let mut pod = Rtnl::open_in(ns).map_err(VethError::Pod)?;
        ignore_missing(pod.del_link(ifname)).map_err(VethError::Pod)?;
    }
    Ok(())
}

fn ignore_missing(r: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match r {
        Err(e) if e.is_not_found() => Ok(()),
        other => other,
    }
}

/// Compares both ends with what ADD made.
pub fn check(host_ifname: &str, netns: &NetNs, ifname: &str, addresses: &[IpNet]) -> Result<(), VethError> {
    let differs = |what: String| Err(VethError::Differs(what));
    let mut host = Rtnl::open().map_err(VethError::Host)?;
    match host.link_by_name(host_ifname).map_err(VethError::Host)? {
        None => return differs(format!("the host device {host_ifname} is gone")),
        Some(l) if !l.up => return differs(format!("the host device {host_ifname} is down")),
        Some(_) => {}
    }
    let mut pod = Rtnl::open_in(netns).map_err(VethError::Pod)?;
    let link = match pod.link_by_name(ifname).map_err(VethError::Pod)? {
        None => return differs(format!("{ifname} is gone from the pod's namespace")),
        Some(l) if !l.up => return differs(format!("{ifname} is down in the pod's namespace")),
        Some(l) => l,
    };
    let present = pod.addrs(Some(link.index)).map_err(VethError::Pod)?;
    for a in addresses {
        if !present.iter().any(|p| p.net == *a) {
            return differs(format!("{ifname} has lost its address {a}"));
        }
        let (family, gateway) = match a.addr() {
            IpAddr::V4(_) => (Family::V4, IpAddr::V4(GATEWAY4)),
            IpAddr::V6(_) => (Family::V6, IpAddr::V6(GATEWAY6)),
        };
        let filter = RouteFilter { family: Some(family), dev: Some(link.index), ..RouteFilter::main() };
        let routes = pod.routes(&filter).map_err(VethError::Pod)?;
        let default =
            |r: &Route| r.dst.prefix_len() == 0 && r.hops.iter().any(|h| h.gateway == Some(gateway));
        if !routes.iter().any(default) {
            return differs(format!("the pod has lost its default route via {gateway}"));
        }
    }
    Ok(())
}
