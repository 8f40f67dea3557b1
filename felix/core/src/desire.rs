//! From inputs to the routes, tunnel and settings that should be there, each with its reason.
//!
//! [`desire`] computes everything. [`Desired::refresh_base`] and [`Desired::refresh_fib`] bring one part up to date and
//! say which entries they touched; the result is the same as computing everything anew (a property test holds them to
//! it), so that one pod or one prefix does not cost a pass over 100,000 routes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use brindle_config_core::{Key, status::EncapPath, validate};
use ipnet::{IpNet, Ipv4Net};
use regex_lite::Regex;

use crate::{
    conflicts::conflicts,
    floating,
    host::{HostView, Link},
    inputs::Inputs,
    ipip::table::Ends,
    owner::Ownership,
    path::{NoWay, Paths, Way},
    route::{Dev, Hop, METRIC, PROTO_CLUSTER, PROTO_DEVICE, Route, RouteKey, Target, even, route_key},
    sysctl::{self, Setting},
};

/// Octets of an outer IPv4 header.
pub const IPIP_OVERHEAD: u32 = 20;
/// MTU assumed when no device shows that of the underlay (Calico's fallback).
const FALLBACK_MTU: u32 = 1460;
/// Calico's default of mtuIfacePattern.
const UNDERLAY: &str = "^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)";

/// The tunnel device that should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Outer source: this node's address.
    pub local: Ipv4Addr,
    pub mtu: u32,
    /// The node's `ipv4IPIPTunnelAddr`, once allocated.
    pub address: Option<Ipv4Addr>,
    /// Outer sources to accept.
    pub sources: BTreeSet<Ipv4Net>,
    /// Inner destination → nodes, for a carrier that cannot see the route's gateway. Shared with whoever was told.
    pub routes: Arc<BTreeMap<Ipv4Net, Ends>>,
}

/// Default of FelixConfiguration.interfacePrefix.
pub const POD_PREFIX: &str = "cali";

/// The prefixes of pod devices out of FelixConfiguration.interfacePrefix, a list with commas. Never empty; what no device
/// can begin with is left out.
pub fn pod_prefixes(setting: Option<&str>) -> Vec<String> {
    let listed = setting.unwrap_or_default().split(',').map(str::trim).filter(|p| validate::device_name(p));
    let mut all: Vec<String> = listed.map(str::to_owned).collect();
    if all.is_empty() {
        all.push(POD_PREFIX.to_owned());
    }
    all
}

/// A local pod interface and what makes it ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub dev: Dev,
    pub addresses: Vec<IpNet>,
    /// MAC inside the pod: the host's neighbour entry for its addresses, so that the host never has to ask.
    pub mac: String,
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
    pub own_blocks: Vec<IpNet>,
    /// Of routes that want the same entry, a pod's counts before a learned one, that before a blackhole.
    pods: BTreeMap<RouteKey, Route>,
    blackholes: BTreeMap<RouteKey, Route>,
    problems: Vec<String>,
    /// Contradictions among the resources: named, and everything goes on.
    pub warnings: Vec<String>,
    fib_problems: BTreeMap<IpNet, String>,
}

/// The ownership rule that goes with these inputs.
pub fn ownership(inputs: &Inputs) -> Ownership {
    let f = inputs.felix();
    Ownership {
        interface_prefixes: pod_prefixes(f.interface_prefix.as_deref()),
        remove_external: f.remove_external_routes.unwrap_or(true),
        device_protocol: f.device_route_protocol.unwrap_or(PROTO_DEVICE),
    }
}

/// Computes what should be there. `tunnel_device` is the name the IPIP device has or will have.
pub fn desire(inputs: &Inputs, host: &HostView, tunnel_device: &Dev) -> Desired {
    let mut out = Desired::default();
    out.refresh_base(inputs, host, tunnel_device);
    out.refresh_fib(inputs, host, tunnel_device, inputs.fib.keys().copied());
    out
}

/// How each remote prefix is reached and why.
pub fn paths(inputs: &Inputs, host: &HostView) -> Vec<EncapPath> {
    let paths = Paths::new(inputs, host);
    let mut all = Vec::new();
    for (prefix, next_hops) in &inputs.fib {
        for nh in next_hops {
            if let Ok((way, why)) = paths.path(prefix, *nh) {
                let mode = if matches!(way, Way::Ipip(_)) { "ipip" } else { "direct" };
                all.push(EncapPath {
                    destination: *prefix,
                    via: *nh,
                    mode: mode.into(),
                    why: why.to_string(),
                });
            }
        }
    }
    all
}

fn metric(inputs: &Inputs) -> u32 {
    inputs.felix().ipv4_normal_route_priority.unwrap_or(METRIC)
}

/// The smallest MTU of devices with such names by which packets leave.
fn smallest_mtu(host: &HostView, names: &Regex, counts: impl Fn(&Link) -> bool) -> Option<u32> {
    let all = host.links().filter(|(n, l)| names.is_match(n) && !l.inner && counts(l));
    all.map(|(_, l)| l.mtu).min()
}

/// Entries that are in one map and not, or differently, in the other.
fn changed(old: &BTreeMap<RouteKey, Route>, new: &BTreeMap<RouteKey, Route>) -> BTreeSet<RouteKey> {
    let gone = old.keys().filter(|k| !new.contains_key(k));
    gone.chain(new.iter().filter(|(k, r)| old.get(k) != Some(r)).map(|(k, _)| k)).copied().collect()
}

impl Desired {
    /// What cannot be done as asked, with what to do.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        // Many prefixes may be without a way for one reason, that of their pool.
        let learned: BTreeSet<&String> = self.fib_problems.values().collect();
        self.problems.iter().chain(learned).map(String::as_str)
    }

    /// Recomputes everything but the ways of learned routes. Returns the entries that may have changed.
    pub fn refresh_base(
        &mut self,
        inputs: &Inputs,
        host: &HostView,
        tunnel_device: &Dev,
    ) -> BTreeSet<RouteKey> {
        self.problems = inputs.bad.values().cloned().collect();
        self.problems.extend(inputs.unserved());
        self.warnings = conflicts(inputs);
        self.host_settings = sysctl::host(inputs.pools.values().any(|p| p.cidr.addr().is_ipv6()));
        self.refresh_tunnel(inputs, host);
        let metric = metric(inputs);
        let pods = self.refresh_endpoints(inputs, metric);
        let mut blackholes = BTreeMap::new();
        self.own_blocks.clear();
        for block in inputs.own_blocks() {
            self.own_blocks.push(block.cidr);
            // The blackhole of a one-address block would take the place of its pod's route.
            if block.cidr.prefix_len() < block.cidr.max_prefix_len() {
                let dst = block.cidr.trunc();
                let route = Route { dst, metric, protocol: PROTO_CLUSTER, target: Target::Blackhole };
                blackholes.insert(route.key(), route);
            }
        }
        let mut touched = changed(&self.pods, &pods);
        touched.extend(changed(&self.blackholes, &blackholes));
        self.pods = pods;
        self.blackholes = blackholes;
        let paths = Paths::new(inputs, host);
        for key in &touched {
            let learned = self.learned(&paths, inputs, tunnel_device, key.0, metric);
            self.merge(*key, learned);
        }
        touched
    }

    /// Recomputes the ways of learned prefixes. Returns the entries that may have changed.
    pub fn refresh_fib(
        &mut self,
        inputs: &Inputs,
        host: &HostView,
        tunnel_device: &Dev,
        prefixes: impl IntoIterator<Item = IpNet>,
    ) -> BTreeSet<RouteKey> {
        let metric = metric(inputs);
        let paths = Paths::new(inputs, host);
        let mut touched = BTreeSet::new();
        for prefix in prefixes {
            let learned = self.learned(&paths, inputs, tunnel_device, prefix, metric);
            let key = route_key(prefix, metric);
            self.merge(key, learned);
            touched.insert(key);
        }
        touched
    }

    fn refresh_tunnel(&mut self, inputs: &Inputs, host: &HostView) {
        let felix = inputs.felix();
        let me = inputs.nodes.get(&inputs.node);
        let my_ip = me.and_then(|n| n.ipv4());
        let parent_mtu = self.parent_mtu(inputs, host);
        let tunnel_mtu = match felix.ipip_mtu {
            Some(mtu) if mtu > 0 => mtu,
            Some(_) | None => parent_mtu.saturating_sub(IPIP_OVERHEAD),
        };
        let ipip = inputs.ipip_wanted();
        self.pod_mtu = if ipip { tunnel_mtu } else { parent_mtu };
        let routes = self.tunnel.take().map(|t| t.routes).unwrap_or_default();
        self.tunnel = match (ipip, my_ip) {
            (true, Some(local)) => Some(Tunnel {
                routes,
                local,
                mtu: tunnel_mtu,
                address: me.and_then(|n| n.bgp.as_ref()?.ipv4_ipip_tunnel_addr),
                sources: inputs.known_sources(),
            }),
            (true, None) => {
                let node = &inputs.node;
                let why = format!(
                    "an IPIP pool exists, but Node({node}) has no IPv4 address: its pods get none of it"
                );
                self.warnings.push(why);
                None
            }
            (false, _) => None,
        };
    }

    /// MTU of the underlay: of the devices mtuIfacePattern matches the smallest (as Calico), else of the device with the
    /// node's address. Where that is on `lo`, as in routed fabrics, the smallest of the devices that are up and named like
    /// network cards.
    fn parent_mtu(&mut self, inputs: &Inputs, host: &HostView) -> u32 {
        if let Some(pattern) = inputs.felix().mtu_iface_pattern.filter(|p| !p.is_empty()) {
            match Regex::new(&pattern) {
                Ok(re) => match smallest_mtu(host, &re, |_| true) {
                    Some(mtu) => return mtu,
                    None => self.warnings.push(format!(
                        "FelixConfiguration mtuIfacePattern {pattern:?} matches no interface; the MTU is that of the \
                         interface with the node's address"
                    )),
                },
                Err(e) => self.warnings.push(format!(
                    "FelixConfiguration mtuIfacePattern {pattern:?} is no regular expression ({e}); the MTU is that \
                     of the interface with the node's address"
                )),
            }
        }
        let me = inputs.nodes.get(&inputs.node);
        let mine = me.into_iter().flat_map(brindle_config_core::node::NodeSpec::ips);
        let carriers = mine.filter_map(|ip| host.carrier_of(ip)).map(|(_, l)| l).filter(|l| !l.inner);
        let cards = || smallest_mtu(host, &Regex::new(UNDERLAY).ok()?, |l| l.up);
        carriers.map(|l| l.mtu).min().or_else(cards).unwrap_or(FALLBACK_MTU)
    }

    /// Endpoints, and the routes to their addresses.
    fn refresh_endpoints(&mut self, inputs: &Inputs, metric: u32) -> BTreeMap<RouteKey, Route> {
        let felix = inputs.felix();
        let protocol = felix.device_route_protocol.unwrap_or(PROTO_DEVICE);
        let spoofing = felix.source_spoofing();
        let mut pods = BTreeMap::new();
        self.endpoints.clear();
        for (key, w) in &inputs.endpoints {
            if w.interface_name.is_empty() {
                self.problems.push(format!("{key}: has no interfaceName"));
                continue;
            }
            let dev: Dev = w.interface_name.as_str().into();
            for net in &w.ip_networks {
                let target = Target::Device(Dev::clone(&dev));
                let route = Route { dst: net.trunc(), metric, protocol, target };
                match pods.get(&route.key()) {
                    None => drop(pods.insert(route.key(), route)),
                    Some(first) => self.problems.push(format!(
                        "{key}: {net} is already routed to another endpoint's device ({first}); delete one of the two"
                    )),
                }
            }
            let settings = sysctl::device(&dev, &w.ip_networks, spoofing && inputs.spoofers.contains(key));
            let endpoint = Endpoint { dev, addresses: w.ip_networks.clone(), mac: w.mac.clone(), settings };
            self.endpoints.insert(key.clone(), endpoint);
        }
        // Last: they never take a pod's own address.
        for (external, (key, _)) in floating::leads(inputs) {
            let Some(endpoint) = self.endpoints.get(key) else { continue };
            let target = Target::Device(Dev::clone(&endpoint.dev));
            let route = Route { dst: external.into(), metric, protocol, target };
            pods.entry(route.key()).or_insert(route);
        }
        pods
    }

    /// The route to a learned prefix, if there is one; keeps problems and the carrier's table up to date.
    fn learned(
        &mut self,
        paths: &Paths<'_>,
        inputs: &Inputs,
        tunnel_device: &Dev,
        prefix: IpNet,
        metric: u32,
    ) -> Option<Route> {
        self.fib_problems.remove(&prefix);
        let (mut ways, mut nodes) = (Vec::new(), Ends::new());
        for nh in inputs.fib.get(&prefix).into_iter().flatten() {
            match paths.path(&prefix, *nh) {
                Ok((Way::Direct(hops), _)) => ways.push(hops),
                Ok((Way::Ipip(via), _)) => {
                    nodes.push(via);
                    ways.push(vec![Hop::new(via.into(), Dev::clone(tunnel_device), true)]);
                }
                Err(NoWay::Self_ | NoWay::Service(_)) => {}
                Err(why @ NoWay::Vxlan { .. }) => drop(self.fib_problems.insert(prefix, why.to_string())),
                Err(why) => drop(self.fib_problems.insert(prefix, format!("{prefix} via {nh}: {why}"))),
            }
        }
        nodes.sort_unstable();
        self.carry(prefix, nodes);
        // Two next hops may resolve to one gateway: it gets the share of both.
        let target = Target::via(even(ways))?;
        Some(Route { dst: prefix, metric, protocol: PROTO_CLUSTER, target })
    }

    /// Keeps the carrier's table.
    fn carry(&mut self, prefix: IpNet, nodes: Ends) {
        if let (IpNet::V4(p), Some(t)) = (prefix, &mut self.tunnel)
            && t.routes.get(&p).map_or(&[][..], |e| e.as_slice()) != nodes.as_slice()
        {
            let routes = Arc::make_mut(&mut t.routes);
            match nodes.is_empty() {
                false => drop(routes.insert(p, nodes)),
                true => drop(routes.remove(&p)),
            }
        }
    }

    fn merge(&mut self, key: RouteKey, learned: Option<Route>) {
        let best = self.pods.get(&key).cloned().or(learned).or_else(|| self.blackholes.get(&key).cloned());
        match best {
            Some(r) => drop(self.routes.insert(key, r)),
            None => drop(self.routes.remove(&key)),
        }
    }
}
