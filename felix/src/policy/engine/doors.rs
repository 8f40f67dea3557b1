//! What policy says of a tracked flow now.

use std::{collections::BTreeMap, net::IpAddr};

use brindle_felix_core::policy::{
    active::{EndpointId, Protocol},
    state::PolicyState,
    verdict::{Packet, Place, verdict_translated},
};
use brindle_kernel::{
    netfilter::Flow,
    netlink::{RouteKind, Rtnl},
};

/// Judges flows. By which interface a flow came in is not known any more: it is taken to be the one that leads there.
pub(super) struct Doors<'a> {
    state: &'a PolicyState,
    /// Addresses of this host, and their devices.
    host: &'a BTreeMap<IpAddr, String>,
    /// Whether there are host endpoints at all.
    any: bool,
    kernel: Option<(Rtnl, BTreeMap<u32, String>)>,
    known: BTreeMap<IpAddr, Way>,
    workloads: BTreeMap<IpAddr, &'a EndpointId>,
}

/// How an address is reached.
#[derive(Clone)]
struct Way {
    /// The host endpoints on the way, one for each device that leads there.
    doors: Vec<Option<EndpointId>>,
    /// It is the broadcast address of a subnet of this host.
    broadcast: bool,
}

impl<'a> Doors<'a> {
    pub(super) fn new(state: &'a PolicyState, host: &'a BTreeMap<IpAddr, String>) -> Self {
        let any = state.endpoints.values().any(|e| e.host.is_some());
        let mut workloads = BTreeMap::new();
        for e in state.endpoints.values().filter(|e| e.host.is_none()) {
            for net in e.addresses.iter().filter(|n| n.prefix_len() == n.max_prefix_len()) {
                workloads.entry(net.addr()).or_insert(&e.id);
            }
        }
        Self { state, host, any, kernel: None, known: BTreeMap::new(), workloads }
    }

    /// The devices that lead to an address, and whether it stands for a whole subnet.
    fn route(&mut self, to: IpAddr) -> Option<(Vec<String>, bool)> {
        if self.kernel.is_none() {
            let mut rtnl = Rtnl::open().ok()?;
            let names = rtnl.links().ok()?.into_iter().map(|l| (l.index, l.name)).collect();
            self.kernel = Some((rtnl, names));
        }
        let (rtnl, names) = self.kernel.as_mut()?;
        let route = rtnl.route_to(to).ok()??;
        let devices = route.hops.iter().map(|h| names.get(&h.dev?).cloned()).collect::<Option<_>>()?;
        Some((devices, route.kind == RouteKind::Broadcast))
    }

    fn way(&mut self, peer: IpAddr) -> Way {
        if !self.any {
            return Way { doors: vec![None], broadcast: false };
        }
        if let Some(known) = self.known.get(&peer) {
            return known.clone();
        }
        let (devices, broadcast) = self.route(peer).unwrap_or_default();
        let mut doors: Vec<_> =
            devices.iter().map(|d| self.state.host_endpoint_at(d, self.host).cloned()).collect();
        if doors.is_empty() {
            // Not known: nothing is denied there.
            doors.push(None);
        }
        let way = Way { doors, broadcast };
        self.known.insert(peer, way.clone());
        way
    }

    /// Whether policy would refuse the first packet of a flow now, by whichever interface it comes and goes.
    pub(super) fn denied(&mut self, flow: &Flow) -> bool {
        let asked = Packet {
            src: flow.original.src,
            dst: flow.original.dst,
            protocol: Protocol(flow.protocol),
            src_port: flow.original.sport,
            dst_port: flow.original.dport,
            icmp: flow.original.icmp,
        };
        // Whom it reached: answers come from there.
        let packet = Packet { dst: flow.reply.src, dst_port: flow.reply.sport, ..asked };
        let own = |a: &IpAddr| self.host.contains_key(a);
        let (from_host, to_host) = (own(&packet.src), own(&packet.dst));
        if from_host && to_host {
            return false;
        }
        let workload = |a: IpAddr| self.workloads.get(&a).map(|id| Place::Workload((*id).clone()));
        let (from, to) = (workload(packet.src), workload(packet.dst));
        let to_host = to_host || !from_host && to.is_none() && self.hears(packet.dst);
        let (from, to) = (from.filter(|_| !from_host), to.filter(|_| !to_host));
        // Tunnels between nodes are the host's own affair.
        if (from_host || to_host) && packet.protocol == Protocol::IPIP {
            return false;
        }
        let none = || vec![None];
        let arrives = if from.is_some() || from_host { none() } else { self.way(packet.src).doors };
        let leaves = if to.is_some() || to_host { none() } else { self.way(packet.dst).doors };
        arrives.iter().all(|a| {
            leaves.iter().all(|b| {
                let from = from.clone().unwrap_or_else(|| match from_host {
                    true => Place::Host(b.clone()),
                    false => Place::Outside(a.clone()),
                });
                let to = to.clone().unwrap_or_else(|| match to_host {
                    true => Place::Host(a.clone()),
                    false => Place::Outside(b.clone()),
                });
                !verdict_translated(self.state, &asked, &packet, &from, &to).allowed()
            })
        })
    }

    /// Whether the host is among those who hear a packet for many.
    fn hears(&mut self, to: IpAddr) -> bool {
        match to {
            IpAddr::V4(a) if a.is_broadcast() => true,
            _ if to.is_multicast() => true,
            // Of a subnet's broadcast only the kernel knows.
            IpAddr::V4(_) => self.way(to).broadcast,
            IpAddr::V6(_) => false,
        }
    }
}
