//! From inputs to the routes, tunnel and settings that should be there, each with its reason.
//!
//! One pass over everything: the set is small beside the kernel's cost of changing it, and a full answer cannot drift.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use brindle_config_core::{Key, pool::EncapMode, status::EncapPath};
use ipnet::{IpNet, Ipv4Net};

use crate::{
    host::{HostView, Reach},
    inputs::Inputs,
    owner::Ownership,
    route::{Hop, METRIC, PROTO_CLUSTER, PROTO_DEVICE, Route, RouteKey, Target},
    sysctl::{self, Setting},
};

/// Octets of an outer IPv4 header.
pub const IPIP_OVERHEAD: u32 = 20;
/// MTU assumed when no device carries the node's address (Calico's fallback).
const FALLBACK_MTU: u32 = 1460;

/// The tunnel device that should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Outer source: this node's address.
    pub local: Ipv4Addr,
    pub mtu: u32,
    /// The node's `ipv4IPIPTunnelAddr`, once allocated.
    pub address: Option<Ipv4Addr>,
    /// Outer sources to accept.
    pub sources: BTreeSet<Ipv4Addr>,
    /// Inner destination → node, for a carrier that cannot see the route's gateway.
    pub routes: BTreeMap<Ipv4Net, Ipv4Addr>,
}

/// A local pod interface and what makes it ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub dev: String,
    pub addresses: Vec<IpNet>,
    pub settings: Vec<Setting>,
}

/// Everything that should be in the kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    pub routes: BTreeMap<RouteKey, Route>,
    pub endpoints: BTreeMap<Key, Endpoint>,
    pub tunnel: Option<Tunnel>,
    pub host_settings: Vec<Setting>,
    /// MTU for new pods, octets.
    pub pod_mtu: u32,
    /// Remote prefixes: how they are reached and why.
    pub paths: Vec<EncapPath>,
    /// What cannot be done as asked, with what to do.
    pub problems: Vec<String>,
    pub own_blocks: Vec<IpNet>,
}

/// The ownership rule that goes with these inputs.
pub fn ownership(inputs: &Inputs) -> Ownership {
    let f = inputs.felix();
    Ownership {
        interface_prefix: f.interface_prefix.unwrap_or_else(|| "cali".into()),
        remove_external: f.remove_external_routes.unwrap_or(true),
        device_protocol: f.device_route_protocol.unwrap_or(PROTO_DEVICE),
    }
}

/// Computes what should be there. `tunnel_device` is the name the IPIP device has or will have.
pub fn desire(inputs: &Inputs, host: &HostView, tunnel_device: &str) -> Desired {
    let felix = inputs.felix();
    let metric = felix.ipv4_normal_route_priority.unwrap_or(METRIC);
    let mut out = Desired { problems: inputs.bad.values().cloned().collect(), ..Desired::default() };
    let me = inputs.nodes.get(&inputs.node);
    let my_ip = me.and_then(|n| n.ipv4());
    let parent = my_ip.and_then(|ip| host.carrier_of(ip.into()));
    let parent_mtu = parent.map_or(FALLBACK_MTU, |(_, l)| l.mtu);
    let tunnel_mtu = match felix.ipip_mtu {
        Some(mtu) if mtu > 0 => mtu,
        Some(_) | None => parent_mtu.saturating_sub(IPIP_OVERHEAD),
    };
    let ipip = inputs.ipip_wanted();
    out.pod_mtu = if ipip { tunnel_mtu } else { parent_mtu };

    // Lowest class first: a later one does not displace an earlier one.
    let put = |out: &mut Desired, r: Route| {
        out.routes.entry(r.key()).or_insert(r);
    };
    let device_protocol = felix.device_route_protocol.unwrap_or(PROTO_DEVICE);
    for (key, w) in &inputs.endpoints {
        if w.interface_name.is_empty() {
            out.problems.push(format!("{key}: has no interfaceName"));
            continue;
        }
        for net in &w.ip_networks {
            let dst = net.trunc();
            put(
                &mut out,
                Route {
                    dst,
                    metric,
                    protocol: device_protocol,
                    target: Target::Device(w.interface_name.clone()),
                },
            );
        }
        out.endpoints.insert(
            key.clone(),
            Endpoint {
                dev: w.interface_name.clone(),
                addresses: w.ip_networks.clone(),
                settings: sysctl::device(&w.interface_name, &w.ip_networks),
            },
        );
    }

    let cx = PathCx {
        inputs,
        host,
        my_net: me.and_then(|n| n.bgp.as_ref()?.ipv4_address.map(|a| a.0)),
        my_ip,
        ipip,
    };
    let mut tunnel_routes = BTreeMap::new();
    for (prefix, next_hops) in &inputs.fib {
        let mut hops = Vec::new();
        for nh in next_hops {
            match cx.path(prefix, *nh) {
                Ok((way, why)) => {
                    let (mode, hop) = match way {
                        Way::Direct { via, dev, onlink } => ("direct", Hop { via, dev, onlink }),
                        Way::Ipip(via) => {
                            if let IpNet::V4(p) = prefix {
                                tunnel_routes.entry(*p).or_insert(via);
                            }
                            ("ipip", Hop { via: via.into(), dev: tunnel_device.to_owned(), onlink: true })
                        }
                    };
                    out.paths.push(EncapPath { destination: *prefix, via: *nh, mode: mode.into(), why });
                    hops.push(hop);
                }
                Err(why) => out.problems.push(format!("{prefix} via {nh}: {why}")),
            }
        }
        if !hops.is_empty() {
            hops.sort();
            put(&mut out, Route { dst: *prefix, metric, protocol: PROTO_CLUSTER, target: Target::Via(hops) });
        }
    }

    for block in inputs.own_blocks() {
        out.own_blocks.push(block.cidr);
        let single = block.cidr.prefix_len() == block.cidr.max_prefix_len();
        if !single {
            put(
                &mut out,
                Route { dst: block.cidr.trunc(), metric, protocol: PROTO_CLUSTER, target: Target::Blackhole },
            );
        }
    }

    out.tunnel = match (ipip, my_ip) {
        (true, Some(local)) => Some(Tunnel {
            local,
            mtu: tunnel_mtu,
            address: me.and_then(|n| n.bgp.as_ref()?.ipv4_ipip_tunnel_addr),
            sources: inputs.known_sources(),
            routes: tunnel_routes,
        }),
        (true, None) => {
            out.problems.push(format!("an IPIP pool exists, but Node({}) has no IPv4 address", inputs.node));
            None
        }
        (false, _) => None,
    };
    let v6 = inputs.pools.values().any(|p| p.cidr.addr().is_ipv6());
    out.host_settings = sysctl::host(v6);
    out
}

enum Way {
    Direct { via: IpAddr, dev: String, onlink: bool },
    Ipip(Ipv4Addr),
}

struct PathCx<'a> {
    inputs: &'a Inputs,
    host: &'a HostView,
    my_net: Option<Ipv4Net>,
    my_ip: Option<Ipv4Addr>,
    ipip: bool,
}

impl PathCx<'_> {
    /// How a prefix behind a next hop is reached, and why.
    fn path(&self, prefix: &IpNet, next_hop: IpAddr) -> Result<(Way, String), String> {
        if Some(next_hop) == self.my_ip.map(IpAddr::V4) {
            return Err("the next hop is this node".into());
        }
        let mode = self.inputs.pool_of(prefix).map(|p| p.ipip_mode);
        let same_subnet = match (next_hop, self.my_net) {
            (IpAddr::V4(nh), Some(net)) => net.contains(&nh),
            _ => false,
        };
        match (mode, next_hop) {
            (Some(EncapMode::Always), IpAddr::V4(nh)) if self.ipip => {
                Ok((Way::Ipip(nh), "the pool's ipipMode is Always".into()))
            }
            (Some(EncapMode::CrossSubnet), IpAddr::V4(nh)) if self.ipip && !same_subnet => {
                let net =
                    self.my_net.map_or_else(|| "this node's subnet".to_owned(), |n| n.trunc().to_string());
                Ok((Way::Ipip(nh), format!("CrossSubnet, and {nh} is outside {net}")))
            }
            (Some(EncapMode::CrossSubnet), _) if same_subnet => {
                self.direct(next_hop, "CrossSubnet, same segment")
            }
            (Some(_), _) => self.direct(next_hop, "the pool's ipipMode is Never"),
            (None, _) => self.direct(next_hop, "outside all pools"),
        }
    }

    fn direct(&self, next_hop: IpAddr, why: &str) -> Result<(Way, String), String> {
        match self.host.reach(next_hop) {
            Reach::Connected { dev } => {
                Ok((Way::Direct { via: next_hop, dev, onlink: true }, format!("{why}; next hop connected")))
            }
            Reach::Through { via, dev } => {
                Ok((Way::Direct { via, dev, onlink: false }, format!("{why}; next hop behind {via}")))
            }
            Reach::Nowhere => Err(format!("no route to the next hop ({why}); is its segment reachable?")),
        }
    }
}
