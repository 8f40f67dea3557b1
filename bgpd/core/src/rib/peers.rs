//! What the RIB knows of a neighbor: what the decision process and the export rules ask. Outlives the session while
//! its routes are kept as stale.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use crate::speaker::PeerId;

/// Next hops the driver is asked about at most.
const ASKED: usize = 10_000;

/// The device towards a next hop is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

/// The source of our own routes.
pub const LOCAL: PeerId = PeerId(u32::MAX);

/// A neighbor as the source of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    pub ibgp: bool,
    /// A client of ours (RFC 4456).
    pub client: bool,
    pub router_id: Ipv4Addr,
    pub address: IpAddr,
}

/// Sources by neighbor.
#[derive(Debug)]
pub struct Sources {
    by_peer: Vec<Option<Source>>,
    unknown: Source,
}

impl Sources {
    /// Only ourselves.
    pub const fn new(router_id: Ipv4Addr) -> Self {
        let unknown =
            Source { ibgp: true, client: true, router_id, address: IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        Self { by_peer: Vec::new(), unknown }
    }

    /// A session came up, or its settings changed.
    pub fn set(&mut self, peer: PeerId, source: Source) {
        let n = peer.0 as usize;
        if n >= self.by_peer.len() {
            self.by_peer.resize(n + 1, None);
        }
        self.by_peer[n] = Some(source);
    }

    /// The neighbor, if it has had a session.
    pub fn known(&self, peer: PeerId) -> Option<&Source> {
        self.by_peer.get(peer.0 as usize)?.as_ref()
    }

    /// It is gone for good; another may get its number.
    pub fn forget(&mut self, peer: PeerId) {
        if let Some(source) = self.by_peer.get_mut(peer.0 as usize) {
            *source = None;
        }
    }

    /// The neighbor; ourselves for own routes.
    pub fn get(&self, peer: PeerId) -> &Source {
        self.known(peer).unwrap_or(&self.unknown)
    }
}

/// Reachability of next hops as the driver reported it. What was never mentioned is reachable at cost 0.
#[derive(Debug, Default)]
pub struct NextHops {
    known: BTreeMap<IpAddr, Option<u32>>,
    /// Devices towards them, where the driver said so; `None`: it knows of no devices.
    devices: Option<BTreeMap<IpAddr, String>>,
    /// Those the driver was asked about, because a rule looks at the device.
    asked: BTreeSet<IpAddr>,
    /// ... and is to be asked about.
    ask: Vec<IpAddr>,
    own: BTreeMap<IpAddr, u32>,
    /// Addresses of ours that a neighbor has too, and in how many sessions.
    beside: BTreeMap<IpAddr, u32>,
}

impl NextHops {
    /// Whether nothing was ever reported.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Cost to reach; `None`: unreachable.
    pub fn cost(&self, address: IpAddr) -> Option<u32> {
        self.known.get(&address).copied().unwrap_or(Some(0))
    }

    /// A report; whether it changes anything.
    pub fn set(&mut self, address: IpAddr, cost: Option<u32>) -> bool {
        let old = self.cost(address);
        if cost == Some(0) {
            self.known.remove(&address);
        } else {
            self.known.insert(address, cost);
        }
        old != cost
    }

    /// The device towards an address, where it is known.
    pub fn device(&self, address: IpAddr) -> Option<&str> {
        self.devices.as_ref()?.get(&address).map(String::as_str)
    }

    /// All devices; those next hops whose device is another than before. `None`: nothing differs.
    pub fn set_devices(&mut self, devices: BTreeMap<IpAddr, String>) -> Option<BTreeSet<IpAddr>> {
        let old = self.devices.replace(devices);
        let new = self.devices.as_ref()?;
        let Some(old) = old else { return Some(new.keys().copied().collect()) };
        let gone = old.keys().filter(|a| !new.contains_key(*a));
        let other = new.iter().filter(|(a, d)| old.get(*a) != Some(*d)).map(|(a, _)| a);
        let differ: BTreeSet<IpAddr> = gone.chain(other).copied().collect();
        (!differ.is_empty()).then_some(differ)
    }

    /// The device towards the next hop of a route that is to be judged by it; `Err`: it is not known yet, and the driver
    /// is asked. Of a driver that knows of no devices none is expected.
    pub fn device_for_import(&mut self, address: IpAddr) -> Result<Option<String>, Unknown> {
        let Some(devices) = &self.devices else { return Ok(None) };
        if let Some(device) = devices.get(&address) {
            return Ok(Some(device.clone()));
        }
        if self.asked.len() < ASKED && self.asked.insert(address) {
            self.ask.push(address);
        }
        Err(Unknown)
    }

    /// Next hops the driver is to be asked about, each once.
    pub fn take_ask(&mut self) -> std::vec::Drain<'_, IpAddr> {
        self.ask.drain(..)
    }

    /// Whether the driver was asked about a next hop and has said nothing yet, not even that it is out of reach.
    pub fn waits(&self) -> bool {
        let Some(devices) = &self.devices else { return false };
        self.asked.iter().any(|a| !devices.contains_key(a) && self.cost(*a).is_some())
    }

    /// A session uses this address of ours. `beside`: so does its neighbor, a speaker on this machine.
    pub fn add_own(&mut self, address: IpAddr, beside: bool) {
        let set = if beside { &mut self.beside } else { &mut self.own };
        *set.entry(address).or_default() += 1;
    }

    /// It no longer does.
    pub fn remove_own(&mut self, address: IpAddr, beside: bool) {
        let set = if beside { &mut self.beside } else { &mut self.own };
        if let Some(n) = set.get_mut(&address) {
            *n -= 1;
            if *n == 0 {
                set.remove(&address);
            }
        }
    }

    /// Whether it is one of ours: a route may not lead to ourselves. An address shared with a neighbor is where that
    /// neighbor's routes lead: the agent of the node whose address a reflector has.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains_key(&address) && !self.beside.contains_key(&address)
    }
}
