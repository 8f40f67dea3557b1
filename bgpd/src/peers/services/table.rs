//! Services and their endpoints, reduced to what announcements depend on and kept up to date one object at a time.
//!
//! Of an endpoint slice four bits stay: a cluster has many pods, and most of what happens to them changes none of the
//! four. The sums over the slices of a service depend on the slices there are, never on the order they came in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use brindle_config_core::{
    Resource,
    key::{Key, Kind},
    kube::EndpointSlice,
    meta::Extra,
    service::{SERVICE_NAME_LABEL, ServiceSpec, ServiceStatus},
};

/// A service, reduced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceFacts {
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    /// externalTrafficPolicy: Local.
    pub external_local: bool,
    /// internalTrafficPolicy: Local.
    pub internal_local: bool,
    pub labels: BTreeMap<String, String>,
}

impl ServiceFacts {
    /// `None`: a headless or ExternalName service, which has nothing to announce.
    ///
    /// # Errors
    /// The status does not decode: where.
    pub fn of(service: &Resource<ServiceSpec>) -> Result<Option<Self>, String> {
        let spec = &service.spec;
        if !spec.is_proxied() {
            return Ok(None);
        }
        let status = ServiceStatus::of(&service.extra)?;
        let balanced = spec.service_type == "LoadBalancer";
        Ok(Some(Self {
            cluster_ips: spec.cluster_addresses(),
            external_ips: spec.external_addresses().collect(),
            // What was given back to somebody else stays in the status of a service that changed its type.
            load_balancer_ips: status.addresses().filter(|_| balanced).collect(),
            external_local: spec.external_traffic_policy == "Local",
            internal_local: spec.internal_traffic_policy == "Local",
            labels: service.metadata.labels.clone(),
        }))
    }
}

/// Endpoints of one family, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "two by two, and named")]
pub struct Backends {
    pub ready_here: bool,
    pub ready_anywhere: bool,
    /// Not ready, terminating, and still serving.
    pub draining_here: bool,
    pub draining_anywhere: bool,
}

impl Backends {
    const fn or(self, other: Self) -> Self {
        Self {
            ready_here: self.ready_here || other.ready_here,
            ready_anywhere: self.ready_anywhere || other.ready_anywhere,
            draining_here: self.draining_here || other.draining_here,
            draining_anywhere: self.draining_anywhere || other.draining_anywhere,
        }
    }
}

/// What one slice adds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SliceFacts {
    service: Key,
    v6: bool,
    backends: Backends,
}

/// All services and slices, as seen from one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTable {
    services: BTreeMap<Key, ServiceFacts>,
    slices: BTreeMap<Key, SliceFacts>,
    /// Which slices a service has, and their sums: IPv4, IPv6.
    sums: BTreeMap<Key, (BTreeSet<Key>, [Backends; 2])>,
}

impl ServiceTable {
    /// The services, by key.
    pub fn services(&self) -> impl Iterator<Item = (&Key, &ServiceFacts)> {
        self.services.iter()
    }

    /// Endpoints of a service in one family.
    pub fn backends(&self, service: &Key, v6: bool) -> Backends {
        self.sums.get(service).map(|(_, [four, six])| if v6 { *six } else { *four }).unwrap_or_default()
    }

    /// Takes a service; `true` if announcements may change by it.
    ///
    /// # Errors
    /// What does not decode.
    pub fn put_service(&mut self, key: &Key, service: &Resource<ServiceSpec>) -> Result<bool, String> {
        Ok(match ServiceFacts::of(service)? {
            None => self.services.remove(key).is_some(),
            Some(facts) if self.services.get(key) == Some(&facts) => false,
            Some(facts) => {
                self.services.insert(key.clone(), facts);
                true
            }
        })
    }

    /// Takes an endpoint slice as seen from the node called `me`; `true` if announcements may change by it.
    ///
    /// # Errors
    /// What does not decode.
    pub fn put_slice(
        &mut self,
        key: &Key,
        labels: &BTreeMap<String, String>,
        fields: &Extra,
        me: &str,
    ) -> Result<bool, String> {
        let slice = EndpointSlice::of(fields)?;
        let v6 = match slice.address_type.as_str() {
            "IPv4" => false,
            "IPv6" => true,
            // FQDN: nothing that packets could be sent to.
            _ => return Ok(self.remove_slice(key)),
        };
        let Some(service) = labels.get(SERVICE_NAME_LABEL) else { return Ok(self.remove_slice(key)) };
        let mut backends = Backends::default();
        for e in slice.endpoints.iter().filter(|e| !e.addresses.is_empty()) {
            let here = e.node_name.as_deref() == Some(me);
            let (ready, draining) = (e.conditions.is_ready(), e.conditions.is_serving_and_terminating());
            backends = backends.or(Backends {
                ready_here: here && ready,
                ready_anywhere: ready,
                draining_here: here && !ready && draining,
                draining_anywhere: !ready && draining,
            });
        }
        let service = Key::new(Kind::Service, Some(&key.namespace), service);
        let facts = SliceFacts { service, v6, backends };
        if self.slices.get(key) == Some(&facts) {
            return Ok(false);
        }
        let service = facts.service.clone();
        let moved = self.slices.get(key).is_some_and(|old| old.service != service) && self.remove_slice(key);
        self.sums.entry(service.clone()).or_default().0.insert(key.clone());
        self.slices.insert(key.clone(), facts);
        Ok(self.sum(&service) | moved)
    }

    /// Whether a service or slice is known.
    pub(in crate::peers) fn has(&self, key: &Key) -> bool {
        self.services.contains_key(key) || self.slices.contains_key(key)
    }

    /// Forgets a service; whether it was known.
    pub fn remove_service(&mut self, key: &Key) -> bool {
        self.services.remove(key).is_some()
    }

    /// Forgets a slice; `true` if announcements may change by it.
    pub fn remove_slice(&mut self, key: &Key) -> bool {
        let Some(old) = self.slices.remove(key) else { return false };
        if let Some((slices, _)) = self.sums.get_mut(&old.service) {
            slices.remove(key);
        }
        self.sum(&old.service)
    }

    /// Adds up again what the slices of a service say; whether it is something else than before.
    fn sum(&mut self, service: &Key) -> bool {
        let Some((slices, sums)) = self.sums.get_mut(service) else { return false };
        let mut new = [Backends::default(); 2];
        for facts in slices.iter().filter_map(|s| self.slices.get(s)) {
            let [four, six] = &mut new;
            let family = if facts.v6 { six } else { four };
            *family = family.or(facts.backends);
        }
        let changed = *sums != new;
        *sums = new;
        let gone = slices.is_empty();
        if gone {
            self.sums.remove(service);
        }
        changed
    }

    /// Forgets everything; whether there was something.
    pub fn clear(&mut self) -> bool {
        let had = !self.services.is_empty() || !self.slices.is_empty();
        *self = Self::default();
        had
    }
}
