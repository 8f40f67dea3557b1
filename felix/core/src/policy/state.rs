//! What the dataplane of a node was told, as a value: deltas in, lookups out. The dataplane's model in tests, and what
//! [`super::verdict`] decides from.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use brindle_config_core::validate::device_name;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::active::{
    ActivePolicy, ActiveProfile, EndpointId, EndpointPolicy, Interface, IpSetId, IpSetMember, PolicyDelta,
    PolicyId, PolicySettings, Protocol, Rule,
};

/// Everything active on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyState {
    pub in_sync: bool,
    pub settings: PolicySettings,
    pub sets: BTreeMap<IpSetId, BTreeSet<IpSetMember>>,
    pub policies: BTreeMap<PolicyId, Arc<ActivePolicy>>,
    pub profiles: BTreeMap<String, Arc<ActiveProfile>>,
    pub endpoints: BTreeMap<EndpointId, Arc<EndpointPolicy>>,
    /// Host endpoints that drop everything though nothing of their own says so, with the reason: [`Self::look`] found them.
    #[serde(skip)]
    pub contested: BTreeMap<EndpointId, String>,
}

impl PolicyState {
    /// Applies one delta. An error is a breach of the contract of [`super::active`]: a reference to something that was
    /// not sent, a removal of something in use or unknown, a member added twice.
    pub fn apply(&mut self, delta: &PolicyDelta) -> Result<(), String> {
        match delta {
            PolicyDelta::Settings(s) => self.settings = s.clone(),
            PolicyDelta::IpSet(s) => {
                if s.id.kind().is_some_and(|k| k != s.kind) {
                    return Err(format!("IP set {} is said to hold {:?}", s.id, s.kind));
                }
                if self.sets.insert(s.id.clone(), s.members.clone()).is_some() {
                    return Err(format!("IP set {} was there", s.id));
                }
            }
            PolicyDelta::IpSetDelta(d) => {
                let set = self.sets.get_mut(&d.id).ok_or_else(|| format!("no IP set {}", d.id))?;
                for m in &d.removed {
                    if !set.remove(m) {
                        return Err(format!("{m} was not in IP set {}", d.id));
                    }
                }
                for m in &d.added {
                    if !set.insert(*m) {
                        return Err(format!("{m} was in IP set {}", d.id));
                    }
                }
            }
            PolicyDelta::Policy(p) => {
                self.known(p.inbound.iter().chain(&p.outbound))?;
                self.policies.insert(p.id.clone(), p.clone());
            }
            PolicyDelta::Profile(p) => {
                self.known(p.inbound.iter().chain(&p.outbound))?;
                self.profiles.insert(p.name.clone(), p.clone());
            }
            PolicyDelta::Endpoint(e) => {
                if let Some(p) = policies_of(e).find(|p| !self.policies.contains_key(*p)) {
                    return Err(format!("{} refers to {p}, which was not sent", e.id));
                }
                if let Some(p) = e.profiles.iter().find(|p| !self.profiles.contains_key(*p)) {
                    return Err(format!("{} refers to profile {p}, which was not sent", e.id));
                }
                self.endpoints.insert(e.id.clone(), e.clone());
            }
            PolicyDelta::EndpointRemove(id) => {
                self.endpoints.remove(id).ok_or_else(|| format!("no {id}"))?;
            }
            PolicyDelta::ProfileRemove(name) => {
                if self.endpoints.values().any(|e| e.profiles.contains(name)) {
                    return Err(format!("profile {name} is in use"));
                }
                self.profiles.remove(name).ok_or_else(|| format!("no profile {name}"))?;
            }
            PolicyDelta::PolicyRemove(id) => {
                if self.endpoints.values().any(|e| policies_of(e).any(|p| p == id)) {
                    return Err(format!("{id} is in use"));
                }
                self.policies.remove(id).ok_or_else(|| format!("no {id}"))?;
            }
            PolicyDelta::IpSetRemove(id) => {
                let policies = self.policies.values().flat_map(|p| p.inbound.iter().chain(&p.outbound));
                let profiles = self.profiles.values().flat_map(|p| p.inbound.iter().chain(&p.outbound));
                if policies.chain(profiles).flat_map(Rule::ip_sets).any(|s| s == id) {
                    return Err(format!("IP set {id} is in use"));
                }
                self.sets.remove(id).ok_or_else(|| format!("no IP set {id}"))?;
            }
            PolicyDelta::InSync => self.in_sync = true,
        }
        Ok(())
    }

    fn known<'a>(&self, mut rules: impl Iterator<Item = &'a Rule>) -> Result<(), String> {
        match rules.find_map(|r| r.ip_sets().find(|s| !self.sets.contains_key(*s))) {
            Some(id) => Err(format!("IP set {id} was not sent")),
            None => Ok(()),
        }
    }

    /// Whether a set of nets or addresses covers an address.
    pub(crate) fn covers(&self, id: &IpSetId, address: IpAddr) -> bool {
        let Some(set) = self.sets.get(id) else { return false };
        let bits = IpNet::from(address).prefix_len();
        set.contains(&IpSetMember::Ip(address))
            || (0..=bits)
                .any(|len| IpNet::new(address, len).is_ok_and(|n| set.contains(&IpSetMember::Net(n.trunc()))))
    }

    /// Whether a set of ports has this one.
    pub(crate) fn has_port(&self, id: &IpSetId, address: IpAddr, protocol: Protocol, port: u16) -> bool {
        self.sets.get(id).is_some_and(|s| s.contains(&IpSetMember::IpPort { address, protocol, port }))
    }

    /// Takes notice of the addresses of this host, with their devices.
    pub fn look(&mut self, addresses: &BTreeMap<IpAddr, String>) {
        self.contested = contested(self.endpoints.values(), addresses);
    }

    /// Why an endpoint drops everything, if it does.
    pub fn closed<'a>(&'a self, e: &'a EndpointPolicy) -> Option<&'a String> {
        e.closed.as_ref().or_else(|| self.contested.get(&e.id))
    }

    /// The host endpoint that stands for a device: one that names it, else one that has an address of it, else the one for
    /// all. `addresses`: of this host, with their devices.
    pub fn host_endpoint_at(
        &self,
        device: &str,
        addresses: &BTreeMap<IpAddr, String>,
    ) -> Option<&EndpointId> {
        let find = |fits: &dyn Fn(&EndpointPolicy) -> bool| {
            self.endpoints.values().find(|e| e.host.is_some() && fits(e)).map(|e| &e.id)
        };
        let has = |e: &EndpointPolicy| {
            e.interface == Interface::WithAddress && devices_of(e, addresses).any(|d| d == device)
        };
        find(&|e| matches!(&e.interface, Interface::Name(n) if n == device))
            .or_else(|| find(&has))
            .or_else(|| find(&|e| e.interface == Interface::Any && device != "lo"))
    }

    /// The workload that has an address.
    pub fn workload_at(&self, address: IpAddr) -> Option<&EndpointId> {
        let net = IpNet::from(address);
        let mut found = self.endpoints.values().filter(|e| e.host.is_none() && e.addresses.contains(&net));
        found.next().map(|e| &e.id)
    }
}

/// The devices that have an address of a host endpoint known by addresses. None of them is `lo`: what comes for an address
/// there comes through another device, and what the host says to itself is nobody's to deny. Nor is one whose name means
/// something else to the tools of the kernel.
pub(crate) fn devices_of<'a>(
    e: &'a EndpointPolicy,
    addresses: &'a BTreeMap<IpAddr, String>,
) -> impl Iterator<Item = &'a String> {
    let all = e.addresses.iter().filter_map(|n| addresses.get(&n.addr()));
    all.filter(|device| *device != "lo" && device_name(device))
}

/// Of the host endpoints known by addresses, in order of their names, those that come first at a device another of them has
/// an address of, too. Which of them is meant nobody can tell, so it drops everything, for the reason given. A device that
/// an endpoint names is that one's.
pub(crate) fn contested<'a>(
    endpoints: impl Iterator<Item = &'a Arc<EndpointPolicy>> + Clone,
    addresses: &BTreeMap<IpAddr, String>,
) -> BTreeMap<EndpointId, String> {
    let mut at: BTreeMap<&String, Vec<&EndpointPolicy>> = BTreeMap::new();
    for e in endpoints.clone().filter(|e| e.host.is_some() && e.interface == Interface::WithAddress) {
        let devices: BTreeSet<&String> = devices_of(e, addresses).collect();
        for device in devices {
            at.entry(device).or_default().push(e);
        }
    }
    at.retain(|device, all| {
        let mut others = endpoints.clone();
        all.len() > 1 && !others.any(|e| matches!(&e.interface, Interface::Name(n) if n == *device))
    });
    let reason = |(device, all): (&String, Vec<&EndpointPolicy>)| {
        let (first, others) = all.split_first()?;
        let others: Vec<String> = others.iter().map(|o| o.id.to_string()).collect();
        let verb = if others.len() > 1 { "have" } else { "has" };
        let why = format!("{} {verb} an address of {device}, too; delete one of them", others.join(", "));
        Some((first.id.clone(), why))
    };
    at.into_iter().filter_map(reason).collect()
}

fn policies_of(e: &EndpointPolicy) -> impl Iterator<Item = &PolicyId> {
    let host = e.host.iter().flat_map(|h| [&h.untracked, &h.pre_dnat, &h.forward]);
    std::iter::once(&e.tiers).chain(host).flatten().flat_map(|t| t.ingress.iter().chain(&t.egress))
}
