//! Addresses of services: which prefixes a node announces for them, and why the others not. Pure; the facts are kept
//! in [`table`].
//!
//! | what | announced |
//! |---|---|
//! | serviceClusterIPs | each range, by every node |
//! | serviceExternalIPs, serviceLoadBalancerIPs, larger than one address, aggregation Enabled | each range, by every node |
//! | the same as a single address, or aggregation Disabled, or the service is selected | an address once a service with a usable endpoint has it |
//! | external and load balancer addresses under externalTrafficPolicy Local | singly, by nodes with a usable endpoint of the service |
//! | cluster addresses under externalTrafficPolicy or internalTrafficPolicy Local | the same, beside the range |
//! | node label node.kubernetes.io/exclude-from-external-load-balancers=true | nothing for single services |
//! | an address outside the configured ranges | never |
//!
//! An endpoint is usable when it is ready. If none is ready in the whole cluster, those that still answer while they
//! terminate are (as kube-proxy has it), so that the last one drains; while another node has a ready one, a node with
//! only terminating ones withdraws at once. Families are looked at apart: an IPv6 address needs IPv6 endpoints.
//!
//! The ranges are those of Calico's BGPConfiguration. Calico has no way to announce some services singly and the rest
//! as a range; here the annotation [`SELECTOR_ANNOTATION`] of BGPConfiguration `default` does it.

mod table;
#[cfg(test)]
mod tests;

use std::{fmt, net::IpAddr};

use brindle_config_core::{
    Selector,
    bgp::{BgpConfigurationSpec, ServiceBlock},
    key::Key,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use self::table::{Backends, ServiceFacts, ServiceTable};

/// The label that keeps a node out of announcing single services.
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// On BGPConfiguration `default`: a selector over the labels of services that are announced singly in any case.
pub const SELECTOR_ANNOTATION: &str = "bgp.brindle.dev/single-services";

/// Which list of a service an address comes from, and which list of BGPConfiguration it must be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Source {
    ClusterIp,
    ExternalIp,
    LoadBalancerIp,
}

impl Source {
    /// The field of BGPConfiguration.
    pub const fn field(self) -> &'static str {
        match self {
            Self::ClusterIp => "serviceClusterIPs",
            Self::ExternalIp => "serviceExternalIPs",
            Self::LoadBalancerIp => "serviceLoadBalancerIPs",
        }
    }

    /// The ranges configured for it.
    pub fn ranges(self, config: &BgpConfigurationSpec) -> &[ServiceBlock] {
        match self {
            Self::ClusterIp => &config.service_cluster_ips,
            Self::ExternalIp => &config.service_external_ips,
            Self::LoadBalancerIp => &config.service_load_balancer_ips,
        }
    }

    const ALL: [Self; 3] = [Self::ClusterIp, Self::ExternalIp, Self::LoadBalancerIp];
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "cluster address",
            Self::ExternalIp => "external address",
            Self::LoadBalancerIp => "load balancer address",
        })
    }
}

/// Why a range or an address is, or is not, announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Why {
    /// The range, by every node.
    Range,
    /// Not the range: aggregation is Disabled.
    NotAggregated,
    /// Not by itself: a range of a single address waits for a service that has it.
    SingleAddress,
    /// Policy Local, and a ready endpoint is here.
    ReadyHere,
    /// Policy Local; none is ready anywhere, one here still answers.
    DrainingHere,
    /// Policy Local, nothing usable here; is there something elsewhere?
    NothingHere { elsewhere: bool },
    /// Announced by every node, since some node has a ready endpoint.
    ReadySomewhere,
    /// By every node; none is ready, some still answer.
    DrainingSomewhere,
    /// No endpoint that could answer.
    NoEndpoint,
    /// Inside a range that is announced as a whole.
    InRange(IpNet),
    /// In no configured range.
    Outside,
    /// This node carries [`EXCLUDE_LABEL`].
    Excluded,
}

impl Why {
    /// Whether it is a reason to announce.
    pub const fn announces(self) -> bool {
        matches!(
            self,
            Self::Range
                | Self::ReadyHere
                | Self::DrainingHere
                | Self::ReadySomewhere
                | Self::DrainingSomewhere
        )
    }
}

/// What becomes of one range or one address of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Verdict {
    pub prefix: IpNet,
    pub source: Source,
    /// `None`: a configured range.
    pub service: Option<Key>,
    pub why: Why,
}

impl Verdict {
    /// Whether this is a configured range, and the prefix lies in it.
    pub fn covers(&self, prefix: &IpNet) -> bool {
        self.service.is_none() && self.prefix.contains(prefix)
    }
}

impl fmt::Display for Verdict {
    /// The reason, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.source.field();
        match self.why {
            Why::Range => write!(f, "range of {field}; every node announces it"),
            Why::NotAggregated => {
                write!(f, "range of {field}; serviceLoadBalancerAggregation is Disabled: single addresses instead")
            }
            Why::SingleAddress => write!(f, "single address of {field}; announced when a service has it"),
            Why::ReadyHere => f.write_str("traffic policy Local; a ready endpoint is on this node"),
            Why::DrainingHere => f.write_str(
                "traffic policy Local; no endpoint is ready anywhere, one on this node still answers while it ends",
            ),
            Why::NothingHere { elsewhere: true } => {
                f.write_str("traffic policy Local; no ready endpoint on this node, other nodes have some")
            }
            Why::NothingHere { elsewhere: false } => {
                f.write_str("traffic policy Local; no ready endpoint on any node")
            }
            Why::ReadySomewhere => f.write_str("announced singly by every node; a ready endpoint exists"),
            Why::DrainingSomewhere => {
                f.write_str("announced singly by every node; no endpoint is ready, some still answer while they end")
            }
            Why::NoEndpoint => f.write_str("no ready endpoint on any node"),
            Why::InRange(net) => write!(f, "part of {net}, which is announced as a whole"),
            Why::Outside => write!(f, "outside {field} of BGPConfiguration default"),
            Why::Excluded => write!(f, "this node has the label {EXCLUDE_LABEL}=true"),
        }
    }
}

/// How this node announces services.
#[derive(Clone, Debug, Default)]
pub struct Rules<'a> {
    /// The BGPConfiguration of the cluster.
    pub config: Option<&'a BgpConfigurationSpec>,
    /// The node carries [`EXCLUDE_LABEL`] = true.
    pub excluded: bool,
    /// Services to announce singly in any case.
    pub single: Option<Selector>,
}

impl Rules<'_> {
    fn aggregate(&self) -> bool {
        self.config.and_then(|c| c.service_load_balancer_aggregation.as_deref()) != Some("Disabled")
    }

    /// The range around an address that is announced as a whole.
    fn whole_range(&self, ip: IpAddr) -> Option<IpNet> {
        let of = |source: Source| self.config.into_iter().flat_map(move |c| source.ranges(c));
        let cluster = of(Source::ClusterIp);
        let outside = of(Source::ExternalIp)
            .chain(of(Source::LoadBalancerIp))
            .filter(|b| self.aggregate() && !is_single(&b.cidr));
        cluster.chain(outside).map(|b| b.cidr.trunc()).find(|net| net.contains(&ip))
    }

    fn in_ranges(&self, source: Source, ip: IpAddr) -> bool {
        self.config.is_some_and(|c| source.ranges(c).iter().any(|b| b.cidr.contains(&ip)))
    }

    fn ranges(&self) -> impl Iterator<Item = Verdict> {
        let of = |source: Source| {
            self.config.into_iter().flat_map(move |c| source.ranges(c)).map(move |b| (source, b))
        };
        Source::ALL.into_iter().flat_map(of).map(|(source, b)| {
            let why = match source {
                Source::ClusterIp => Why::Range,
                _ if is_single(&b.cidr) => Why::SingleAddress,
                _ if self.aggregate() => Why::Range,
                _ => Why::NotAggregated,
            };
            Verdict { prefix: b.cidr.trunc(), source, service: None, why }
        })
    }

    fn address(&self, source: Source, ip: IpAddr, facts: &ServiceFacts, backends: Backends) -> Why {
        if !self.in_ranges(source, ip) {
            return Why::Outside;
        }
        let local = facts.external_local || source == Source::ClusterIp && facts.internal_local;
        let selected = self.single.as_ref().is_some_and(|s| s.matches(&facts.labels));
        if let (false, false, Some(net)) = (local, selected, self.whole_range(ip)) {
            return Why::InRange(net);
        }
        if self.excluded {
            return Why::Excluded;
        }
        match (local, backends) {
            (true, Backends { ready_here: true, .. }) => Why::ReadyHere,
            (true, Backends { ready_anywhere: false, draining_here: true, .. }) => Why::DrainingHere,
            (true, b) => Why::NothingHere { elsewhere: b.ready_anywhere || b.draining_anywhere },
            (false, Backends { ready_anywhere: true, .. }) => Why::ReadySomewhere,
            (false, Backends { draining_anywhere: true, .. }) => Why::DrainingSomewhere,
            (false, _) => Why::NoEndpoint,
        }
    }
}

/// What becomes of every configured range and every address of every service, sorted, without repeats.
pub fn verdicts(rules: &Rules<'_>, services: &ServiceTable) -> Vec<Verdict> {
    let mut all: Vec<Verdict> = rules.ranges().collect();
    if rules.config.is_some_and(has_ranges) {
        for (key, facts) in services.services() {
            for (source, list) in [
                (Source::ClusterIp, &facts.cluster_ips),
                (Source::ExternalIp, &facts.external_ips),
                (Source::LoadBalancerIp, &facts.load_balancer_ips),
            ] {
                all.extend(list.iter().map(|ip| Verdict {
                    prefix: IpNet::from(*ip),
                    source,
                    service: Some(key.clone()),
                    why: rules.address(source, *ip, facts, services.backends(key, ip.is_ipv6())),
                }));
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Whether services are of any interest.
pub fn has_ranges(config: &BgpConfigurationSpec) -> bool {
    Source::ALL.into_iter().any(|s| !s.ranges(config).is_empty())
}

fn is_single(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}
