//! What makes a resource acceptable beyond its types: Calico's rules, all violations at once, in the shape of its
//! client errors.
//!
//! [`resource`] looks at one resource alone, [`written`] at one that is about to be written. What needs others is a function of its own that takes them:
//! [`pool::against`], [`pool::update`], [`node::conflicts`].

mod bgp;
mod controllers;
mod felix;
mod filter;
mod ipam;
pub mod names;
pub mod node;
mod node_status;
pub mod policy;
pub mod pool;
mod service;
mod workload;

#[cfg(test)]
mod tests;

pub use felix::{logged, nat_port_range};
pub use workload::is_plain as workload_is_plain;

use std::fmt;

use crate::{
    AnyResource, Kind, Selector,
    bgp::BgpFilterSpec,
    convert::{self, ClusterKind},
    duration,
};

/// One field with an unacceptable value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path from the top of the resource: `spec.cidr`, `spec.exportV4[0].action`.
    pub field: String,
    /// The value as written, shortened when long, or how much there is.
    pub value: String,
    /// It is how much there is, which nobody has written: it is shown without quotes.
    pub counted: bool,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.counted { "" } else { "'" };
        write!(f, "{} = {quote}{}{quote} ({})", self.field, self.value, self.reason)
    }
}

/// Every violation found; never empty when it is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub Vec<FieldError>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "error with field {one}"),
            all => {
                f.write_str("error with the following fields:")?;
                all.iter().try_for_each(|e| write!(f, "\n-  {e}"))
            }
        }
    }
}

impl std::error::Error for Invalid {}

/// Checks one resource that somebody writes: as [`resource`], and whether it may have its name. Agents take what has
/// another one; leaving out a policy because of it would help nobody.
pub fn written(r: &AnyResource) -> Result<(), Invalid> {
    let mut errors = Errors::default();
    policy::check_name(r.kind(), &r.metadata().name, &mut errors);
    if let Err(others) = resource(r) {
        errors.0.extend(others.0);
    }
    errors.done()
}

/// Checks the rules of a BGPFilter, which may also stand where there is no resource.
pub fn bgp_filter(spec: &BgpFilterSpec) -> Result<(), Invalid> {
    let mut errors = Errors::default();
    filter::check(spec, &mut errors);
    errors.done()
}

/// Checks one resource by itself.
pub fn resource(r: &AnyResource) -> Result<(), Invalid> {
    let mut errors = Errors::default();
    metadata(r, &mut errors);
    match r {
        AnyResource::IpPool(r) => pool::check(&r.spec, &mut errors),
        AnyResource::IpReservation(r) => pool::check_reservation(&r.spec, &mut errors),
        AnyResource::IpamConfiguration(r) => ipam::check_config(&r.spec, &mut errors),
        AnyResource::IpamBlock(r) => ipam::check_block(&r.metadata.name, &r.spec, &mut errors),
        AnyResource::IpamHandle(r) => ipam::check_handle(&r.metadata.name, &r.spec, &mut errors),
        AnyResource::BlockAffinity(r) => ipam::check_affinity(&r.metadata.name, &r.spec, &mut errors),
        AnyResource::Node(r) => node::check(&r.spec, &mut errors),
        AnyResource::BgpConfiguration(r) => bgp::check_configuration(&r.metadata.name, &r.spec, &mut errors),
        AnyResource::BgpPeer(r) => bgp::check_peer(&r.spec, &mut errors),
        AnyResource::BgpFilter(r) => filter::check(&r.spec, &mut errors),
        AnyResource::FelixConfiguration(r) => felix::check(&r.metadata.name, &r.spec, &mut errors),
        AnyResource::ClusterInformation(_) => {}
        AnyResource::KubeControllersConfiguration(r) => controllers::check(&r.spec, &mut errors),
        AnyResource::CalicoNodeStatus(r) => node_status::check(&r.spec, &mut errors),
        AnyResource::WorkloadEndpoint(r) => workload::check(&r.spec, &mut errors),
        AnyResource::Tier(r) => policy::check_tier(&r.metadata.name, &r.spec, &mut errors),
        AnyResource::GlobalNetworkPolicy(r) => policy::check(&r.spec.0, true, &mut errors),
        AnyResource::NetworkPolicy(r) => policy::check(&r.spec.0, false, &mut errors),
        AnyResource::StagedGlobalNetworkPolicy(r) => policy::check(&r.spec.0, true, &mut errors),
        AnyResource::StagedNetworkPolicy(r) => policy::check(&r.spec.0, false, &mut errors),
        AnyResource::StagedKubernetesNetworkPolicy(r) => {
            policy::converted(convert::staged_kubernetes_policy(&r.spec), &mut errors);
        }
        AnyResource::NetworkSet(r) => policy::check_set(&r.spec.0, &mut errors),
        AnyResource::GlobalNetworkSet(r) => policy::check_set(&r.spec.0, &mut errors),
        AnyResource::HostEndpoint(r) => policy::check_host_endpoint(&r.spec, &mut errors),
        AnyResource::Profile(r) => policy::check_profile(&r.spec, &mut errors),
        AnyResource::KubernetesNetworkPolicy(r) => {
            policy::converted(convert::kubernetes_policy(&r.spec), &mut errors);
        }
        AnyResource::ClusterNetworkPolicy(r) => {
            policy::converted(convert::cluster_policy(ClusterKind::Cluster, &r.spec.0), &mut errors);
        }
        AnyResource::AdminNetworkPolicy(r) => {
            policy::converted(convert::cluster_policy(ClusterKind::Admin, &r.spec.0), &mut errors);
        }
        AnyResource::BaselineAdminNetworkPolicy(r) => {
            policy::converted(convert::cluster_policy(ClusterKind::Baseline, &r.spec.0), &mut errors);
        }
        AnyResource::Namespace(_) | AnyResource::ServiceAccount(_) | AnyResource::Lease(_) => {}
        AnyResource::EndpointSlice(r) => {
            if let Err(reason) = crate::kube::EndpointSlice::of(&r.extra) {
                errors.add("endpoints", "", reason);
            }
        }
        AnyResource::Service(r) => service::check(&r.spec, &r.extra, &mut errors),
    }
    errors.done()
}

fn metadata(r: &AnyResource, errors: &mut Errors) {
    let meta = r.metadata();
    let name = meta.name.as_str();
    let only_default = matches!(
        r.kind(),
        Kind::IpamConfiguration
            | Kind::ClusterInformation
            | Kind::KubeControllersConfiguration
            | Kind::BaselineAdminNetworkPolicy
    );
    if name.is_empty() {
        errors.add("metadata.name", name, "a name is required");
    } else if only_default && name != "default" {
        errors.add("metadata.name", name, format!("the only {} is named default", r.kind()));
    } else if let Err(reason) = names::subdomain(name) {
        errors.add("metadata.name", name, reason);
    }
    match (&meta.namespace, r.kind().namespaced()) {
        (Some(ns), true) => {
            if let Err(reason) = names::label(ns) {
                errors.add("metadata.namespace", ns, reason);
            }
        }
        (Some(ns), false) if !ns.is_empty() => {
            errors.add("metadata.namespace", ns, format!("{} has no namespaces; remove the field", r.kind()));
        }
        _ => {}
    }
    for (key, value) in &meta.labels {
        for (text, checked) in [(key, names::qualified(key)), (value, names::label_value(value))] {
            if let Err(reason) = checked {
                errors.add(&format!("metadata.labels.{key}"), text, reason);
            }
        }
    }
    for key in meta.annotations.keys() {
        if let Err(reason) = names::qualified(key) {
            errors.add(&format!("metadata.annotations.{key}"), key, reason);
        }
    }
}

/// Collects violations.
#[derive(Default)]
pub(crate) struct Errors(Vec<FieldError>);

impl Errors {
    fn add(&mut self, field: &str, value: impl fmt::Display, reason: impl Into<String>) {
        const LONGEST: usize = 80;
        let mut value = value.to_string();
        if value.chars().count() > LONGEST {
            value = value.chars().take(LONGEST).chain(['…']).collect();
        }
        self.0.push(FieldError { field: field.to_owned(), value, counted: false, reason: reason.into() });
    }

    fn done(self) -> Result<(), Invalid> {
        if self.0.is_empty() { Ok(()) } else { Err(Invalid(self.0)) }
    }

    /// A selector that is empty or parses, without `global()`.
    fn selector(&mut self, field: &str, text: &str) {
        const LONGEST: usize = 1024;
        if text.chars().count() > LONGEST {
            self.add(field, text, format!("at most {LONGEST} characters"));
        }
        match Selector::parse(text) {
            Err(e) => {
                self.add(
                    field,
                    text,
                    format!("column {}: expected {}, found {}", e.column, e.expected, e.found),
                );
            }
            Ok(s) if s.uses_global() => {
                self.add(
                    field,
                    text,
                    "global() is only meaningful in the namespaceSelector of a policy rule",
                );
            }
            Ok(_) => {}
        }
    }

    fn duration(&mut self, field: &str, text: Option<&String>) {
        if let Some(Err(e)) = text.map(|t| duration::parse(t)) {
            self.add(field, &e.text, e.expected());
        }
    }

    /// A text that must be one of a few.
    fn one_of(&mut self, field: &str, text: Option<&String>, allowed: &[&str]) {
        if let Some(text) = text.filter(|t| !allowed.contains(&t.as_str())) {
            let meant = crate::suggest::closest(text, allowed.iter().copied());
            let hint = meant.map(|m| format!("; did you mean {m}?")).unwrap_or_default();
            self.add(field, text, format!("expected one of {}{hint}", allowed.join(", ")));
        }
    }

    /// There are too many, or any at all.
    fn count<T>(&mut self, field: &str, list: &[T], reason: impl Into<String>) {
        let value = if list.len() == 1 { "1 entry".to_owned() } else { format!("{} entries", list.len()) };
        self.0.push(FieldError { field: field.to_owned(), value, counted: true, reason: reason.into() });
    }

    fn at_most<T>(&mut self, field: &str, list: &[T], most: usize) {
        if list.len() > most {
            self.count(field, list, format!("at most {most} entries"));
        }
    }

    fn route_priority(&mut self, field: &str, value: Option<u32>) {
        const LARGEST: u32 = 2_147_483_646;
        if let Some(n) = value.filter(|n| !(1..=LARGEST).contains(n)) {
            self.add(field, n, format!("expected 1 to {LARGEST}"));
        }
    }

    /// The name of a network interface, or with `wildcards` a pattern of one.
    fn interface(&mut self, field: &str, name: &str, wildcards: bool) {
        let ok = match wildcards {
            false => device_name(name),
            true => {
                let ok = |c: char| c.is_ascii_graphic() && c != '/';
                !name.is_empty() && name.len() <= LONGEST_DEVICE && name.chars().all(ok)
            }
        };
        if !ok {
            let of = if wildcards { "characters" } else { "letters, digits, -, _ and ." };
            self.add(field, name, format!("expected an interface name of 1 to {LONGEST_DEVICE} {of}"));
        }
    }
}

/// Longest name of a network device, octets.
const LONGEST_DEVICE: usize = 15;

/// Whether the kernel and its tools take this for the name of one device. They would take more; what would mean something
/// else to one of them is not among it.
pub fn device_name(name: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=LONGEST_DEVICE).contains(&name.len()) && name.chars().all(ok) && !matches!(name, "." | "..")
}
