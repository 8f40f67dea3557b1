//! What policy says of a tracked flow now.

use std::{collections::BTreeMap, net::IpAddr};

use brindle_felix_core::policy::{
    active::{EndpointId, Protocol},
    state::PolicyState,
    verdict::{Packet, Place, Verdict, verdict},
};
use brindle_kernel::{netfilter::Flow, netlink::Rtnl};

/// Judges flows. By which interface a flow came in is not known any more: it is taken to be the one that leads there.
pub(super) struct Doors<'a> {
    state: &'a PolicyState,
    /// Addresses of this host, and their devices.
    host: &'a BTreeMap<IpAddr, String>,
    /// Whether there are host endpoints at all.
    any: bool,
    kernel: Option<(Rtnl, BTreeMap<u32, String>)>,
    /// The host endpoints on the way to an address, one for each device that leads there.
    known: BTreeMap<IpAddr, Vec<Option<EndpointId>>>,
}

impl<'a> Doors<'a> {
    pub(super) fn new(state: &'a PolicyState, host: &'a BTreeMap<IpAddr, String>) -> Self {
        let any = state.endpoints.values().any(|e| e.host.is_some());
        Self { state, host, any, kernel: None, known: BTreeMap::new() }
    }

    fn devices(&mut self, to: IpAddr) -> Option<Vec<String>> {
        if self.kernel.is_none() {
            let mut rtnl = Rtnl::open().ok()?;
            let names = rtnl.links().ok()?.into_iter().map(|l| (l.index, l.name)).collect();
            self.kernel = Some((rtnl, names));
        }
        let (rtnl, names) = self.kernel.as_mut()?;
        let route = rtnl.route_to(to).ok()??;
        route.hops.iter().map(|h| names.get(&h.dev?).cloned()).collect()
    }

    fn to(&mut self, peer: IpAddr) -> Vec<Option<EndpointId>> {
        if !self.any {
            return vec![None];
        }
        if let Some(known) = self.known.get(&peer) {
            return known.clone();
        }
        let devices = self.devices(peer).unwrap_or_default();
        let mut found: Vec<_> =
            devices.iter().map(|d| self.state.host_endpoint_at(d, self.host).cloned()).collect();
        if found.is_empty() {
            // Not known: nothing is denied there.
            found.push(None);
        }
        self.known.insert(peer, found.clone());
        found
    }

    /// Whether policy would refuse the first packet of a flow now, with the destination it had after translation.
    pub(super) fn denied(&mut self, flow: &Flow) -> bool {
        let packet = Packet {
            src: flow.original.src,
            dst: flow.reply.src,
            protocol: Protocol(flow.protocol),
            src_port: flow.original.sport,
            dst_port: flow.reply.sport,
            icmp: flow.original.icmp,
        };
        let asked = Packet { dst: flow.original.dst, dst_port: flow.original.dport, ..packet };
        // A host endpoint may have allowed or denied what was asked for before translation; a workload never saw that.
        self.refused(&packet, |v| {
            matches!(v.steps.last().and_then(|s| s.endpoint.as_ref()), Some(EndpointId::Workload { .. }))
        }) || self.refused(&packet, |_| true) && (asked == packet || self.refused(&asked, |_| true))
    }

    /// Whether a packet is denied by whichever interface it comes and goes, by verdicts that count.
    fn refused(&mut self, packet: &Packet, counts: impl Fn(&Verdict) -> bool) -> bool {
        let own = |a: &IpAddr| self.host.contains_key(a);
        let (from_host, to_host) = (own(&packet.src), own(&packet.dst));
        let workload = |a| self.state.workload_at(a).map(|id| Place::Workload(id.clone()));
        let (from, to) = match (from_host, to_host) {
            (true, true) => return false,
            (true, false) => (None, workload(packet.dst)),
            (false, true) => (workload(packet.src), None),
            (false, false) => (workload(packet.src), workload(packet.dst)),
        };
        // Tunnels between nodes are the host's own affair.
        if (from_host || to_host) && packet.protocol == Protocol::IPIP {
            return false;
        }
        let none = || vec![None];
        let arrives = if from.is_some() || from_host { none() } else { self.to(packet.src) };
        let leaves = if to.is_some() || to_host { none() } else { self.to(packet.dst) };
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
                let said = verdict(self.state, packet, &from, &to);
                !said.allowed() && counts(&said)
            })
        })
    }
}
