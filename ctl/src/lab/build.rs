//! Namespaces and links of a lab. Everything is made inside the lab's own namespaces; the root namespace sees
//! nothing but the names in /run/netns.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, Result};
use brindle_kernel::{
    netlink::{Addr, Mac, Neigh, Op, Route, Rtnl, Veth, VethPeer, addr_flag},
    netns::NetNs,
    sysctl,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::plan::{LabPlan, NodePlan, SegmentPlan, UPLINK};

/// Creates namespaces, in order. The fabric comes first and goes last: while it exists, the lab exists.
pub(crate) fn namespaces<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<usize> {
    let mut made = 0;
    for name in names {
        NetNs::create(name).with_context(|| format!("cannot make network namespace {name}"))?;
        made += 1;
    }
    Ok(made)
}

/// Opens a namespace of the lab.
pub(crate) fn open(name: &str) -> Result<NetNs> {
    NetNs::named(name).with_context(|| format!("network namespace {name} cannot be opened"))
}

/// Locally administered, with the IPv4 address in it: readable in a capture.
fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([0x02, 0x00, a, b, c, d])
}

/// Bridges, the router with its legs, and the link of every node.
pub(crate) fn links(plan: &LabPlan) -> Result<()> {
    let fabric = open(&plan.fabric)?;
    let router = open(&plan.router.namespace)?;
    let mut rtnl = Rtnl::open_in(&fabric)?;
    fabric.run(|| match sysctl::set("net/ipv6/conf/default/disable_ipv6", "1") {
        // A kernel without IPv6.
        Err(e) if e.is_not_found() => Ok(()),
        done => done,
    })??;
    let mut ops = vec![Op::set_up("lo", true)];
    for s in &plan.segments {
        ops.push(Op::add_link(&s.bridge, "bridge", Some(plan.mtu), true));
        ops.push(Op::add_veth(&Veth {
            name: &s.router_port,
            mac: None,
            mtu: Some(plan.mtu),
            up: true,
            peer: VethPeer {
                name: &s.router_device,
                mac: Some(mac_of(s.gateway.addr())),
                netns: Some(&router),
            },
        }));
    }
    rtnl.run_all(&ops)?;
    let index = indices(&mut rtnl)?;
    let ports: Vec<_> = plan
        .segments
        .iter()
        .map(|s| Ok(Op::set_master(&s.router_port, Some(find(&index, &s.bridge)?))))
        .collect::<Result<_>>()?;
    rtnl.run_all(&ports)?;
    configure_router(plan, &router)?;
    for node in &plan.nodes {
        link_node(plan, node, &mut rtnl, &index)?;
    }
    static_neighbours(plan)
}

/// Entries that the kernel's neighbour table may hold, of all namespaces together. Only the first namespace shows it.
pub(crate) fn neighbour_limit() -> usize {
    const KERNEL_DEFAULT: usize = 1024;
    sysctl::get("net/ipv4/neigh/default/gc_thresh3")
        .ok()
        .and_then(|v| v.trim().parse().ok())
        .unwrap_or(KERNEL_DEFAULT)
}

/// Tells everybody on a segment who the others are, where the plan says so.
fn static_neighbours(plan: &LabPlan) -> Result<()> {
    if !plan.static_neighbours {
        return Ok(());
    }
    let entry = |device, address: Ipv4Addr| {
        Op::set_neigh(&Neigh::permanent(device, IpAddr::V4(address), mac_of(address)))
    };
    let mut router = Rtnl::open_in(&open(&plan.router.namespace)?)?;
    let legs = indices(&mut router)?;
    for s in &plan.segments {
        let members: Vec<&NodePlan> = plan.nodes.iter().filter(|n| n.segment == s.name).collect();
        let leg = find(&legs, &s.router_device)?;
        router.run_all(&members.iter().map(|n| entry(leg, n.address.addr())).collect::<Vec<_>>())?;
        for node in &members {
            let mut rtnl = Rtnl::open_in(&open(&node.namespace)?)?;
            let uplink = find(&indices(&mut rtnl)?, UPLINK)?;
            let others = members.iter().filter(|n| n.name != node.name).map(|n| n.address.addr());
            let ops: Vec<_> = others.chain([s.gateway.addr()]).map(|a| entry(uplink, a)).collect();
            rtnl.run_all(&ops)?;
        }
    }
    Ok(())
}

fn configure_router(plan: &LabPlan, router: &NetNs) -> Result<()> {
    router.run(|| sysctl::set("net/ipv4/ip_forward", "1"))??;
    if plan.families.v6() {
        router.run(|| sysctl::set("net/ipv6/conf/all/forwarding", "1"))??;
    }
    let mut rtnl = Rtnl::open_in(router)?;
    let index = indices(&mut rtnl)?;
    let mut ops = vec![Op::set_up("lo", true)];
    for s in &plan.segments {
        let device = find(&index, &s.router_device)?;
        ops.push(Op::set_up(device, true));
        if plan.families.v4() {
            ops.push(Op::add_addr(&Addr::new(device, IpNet::V4(s.gateway))));
        }
        ops.extend(s.gateway6.map(|g| add_addr6(device, g)));
    }
    rtnl.run_all(&ops)?;
    Ok(())
}

/// Links one more node to a running fabric.
pub(crate) fn link_one(plan: &LabPlan, node: &NodePlan) -> Result<()> {
    let mut rtnl = Rtnl::open_in(&open(&plan.fabric)?)?;
    let index = indices(&mut rtnl)?;
    link_node(plan, node, &mut rtnl, &index)?;
    static_neighbours(plan)
}

fn link_node(
    plan: &LabPlan,
    node: &NodePlan,
    fabric: &mut Rtnl,
    bridges: &HashMap<String, u32>,
) -> Result<()> {
    let segment = segment(plan, node)?;
    let namespace = open(&node.namespace)?;
    fabric.run_all(&[
        Op::add_veth(&Veth {
            name: &node.port,
            mac: None,
            mtu: Some(plan.mtu),
            up: true,
            peer: VethPeer { name: UPLINK, mac: Some(mac_of(node.address.addr())), netns: Some(&namespace) },
        }),
        Op::set_master(&node.port, Some(find(bridges, &segment.bridge)?)),
    ])?;
    let mut rtnl = Rtnl::open_in(&namespace)?;
    let uplink = find(&indices(&mut rtnl)?, UPLINK)?;
    let mut ops = vec![Op::set_up("lo", true), Op::set_up(uplink, true)];
    if plan.families.v4() {
        let gateway = IpAddr::V4(segment.gateway.addr());
        let everything = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
        ops.push(Op::add_addr(&Addr::new(uplink, IpNet::V4(node.address))));
        ops.push(Op::add_route(&Route::new(everything).via(gateway, Some(uplink), false)));
    }
    if let (Some(own), Some(gateway)) = (node.address6, segment.gateway6) {
        let everything = IpNet::V6(Ipv6Net::default());
        ops.push(add_addr6(uplink, own));
        ops.push(Op::add_route(&Route::new(everything).via(gateway.addr().into(), Some(uplink), false)));
    }
    rtnl.run_all(&ops)?;
    Ok(())
}

/// Usable at once: nobody else is on the segment who could have it.
fn add_addr6(device: u32, net: Ipv6Net) -> Op {
    Op::add_addr(&Addr { flags: addr_flag::NODAD, ..Addr::new(device, IpNet::V6(net)) })
}

pub(crate) fn segment<'a>(plan: &'a LabPlan, node: &NodePlan) -> Result<&'a SegmentPlan> {
    plan.segment(&node.segment).with_context(|| format!("{} is on no segment of the lab", node.name))
}

/// Device names and their indices.
pub(crate) fn indices(rtnl: &mut Rtnl) -> Result<HashMap<String, u32>> {
    Ok(rtnl.links()?.into_iter().map(|l| (l.name, l.index)).collect())
}

pub(crate) fn find(index: &HashMap<String, u32>, name: &str) -> Result<u32> {
    index.get(name).copied().with_context(|| format!("device {name} is missing"))
}

/// Puts ports of the fabric up or down: pulls cables and plugs them in.
pub(crate) fn set_ports(plan: &LabPlan, ports: &[&str], up: bool) -> Result<()> {
    let mut rtnl = Rtnl::open_in(&open(&plan.fabric)?)?;
    let ops: Vec<_> = ports.iter().map(|p| Op::set_up(*p, up)).collect();
    rtnl.run_all(&ops)?;
    Ok(())
}
