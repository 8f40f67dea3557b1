//! Service ranges of BGPConfiguration: which prefixes a node announces for them. Pure.
//!
//! | what | announced |
//! |---|---|
//! | serviceClusterIPs | each range, by every node |
//! | serviceExternalIPs, serviceLoadBalancerIPs, larger than one address, aggregation Enabled | each range, by every node |
//! | the same as a single address, or aggregation Disabled | an address once a service with a ready endpoint uses it |
//! | a service with externalTrafficPolicy Local | its addresses inside the ranges, by nodes with a ready endpoint of it |
//! | node label node.kubernetes.io/exclude-from-external-load-balancers=true | nothing for single services |

use std::net::IpAddr;

use brindle_config_core::bgp::{BgpConfigurationSpec, ServiceBlock};
use ipnet::IpNet;

/// A service, reduced to what its announcement depends on. Headless and ExternalName services have no place here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceFacts {
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    /// externalTrafficPolicy: Local.
    pub local: bool,
    /// A ready endpoint exists on this node / anywhere.
    pub ready_here: bool,
    pub ready_anywhere: bool,
}

/// The label that keeps a node out of announcing single services.
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Prefixes to announce, sorted, without repeats. `excluded`: the node carries [`EXCLUDE_LABEL`] = true.
pub fn announced<'a>(
    config: &BgpConfigurationSpec,
    services: impl IntoIterator<Item = &'a ServiceFacts>,
    excluded: bool,
) -> Vec<IpNet> {
    let aggregate = config.service_load_balancer_aggregation.as_deref() != Some("Disabled");
    let whole = |b: &&ServiceBlock| aggregate && b.cidr.prefix_len() < b.cidr.max_prefix_len();
    let outside = || config.service_external_ips.iter().chain(&config.service_load_balancer_ips);
    let mut all: Vec<IpNet> =
        config.service_cluster_ips.iter().chain(outside().filter(whole)).map(|b| b.cidr.trunc()).collect();
    let within = |blocks: &[ServiceBlock], ip: &IpAddr| blocks.iter().any(|b| b.cidr.contains(ip));
    for s in services {
        if excluded || !(if s.local { s.ready_here } else { s.ready_anywhere }) {
            continue;
        }
        let cluster = s.cluster_ips.iter().filter(|ip| s.local && within(&config.service_cluster_ips, ip));
        let external = s.external_ips.iter().filter(|ip| within(&config.service_external_ips, ip));
        let balanced = s.load_balancer_ips.iter().filter(|ip| within(&config.service_load_balancer_ips, ip));
        let covered = |ip: &&IpAddr| !s.local && outside().filter(whole).any(|b| b.cidr.contains(*ip));
        all.extend(
            cluster.chain(external).chain(balanced).filter(|ip| !covered(ip)).map(|ip| IpNet::from(*ip)),
        );
    }
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(aggregation: &str) -> BgpConfigurationSpec {
        serde_json::from_value(json!({
            "serviceClusterIPs": [{"cidr": "10.96.0.0/16"}],
            "serviceExternalIPs": [{"cidr": "192.0.2.7/32"}],
            "serviceLoadBalancerIPs": [{"cidr": "198.51.100.0/24"}],
            "serviceLoadBalancerAggregation": aggregation,
        }))
        .unwrap()
    }

    fn service(local: bool, ready_here: bool) -> ServiceFacts {
        ServiceFacts {
            cluster_ips: vec!["10.96.0.5".parse().unwrap()],
            external_ips: vec!["192.0.2.7".parse().unwrap(), "203.0.113.1".parse().unwrap()],
            load_balancer_ips: vec!["198.51.100.9".parse().unwrap()],
            local,
            ready_here,
            ready_anywhere: true,
        }
    }

    fn texts(config: &BgpConfigurationSpec, services: &[ServiceFacts], excluded: bool) -> Vec<String> {
        announced(config, services, excluded).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_and_single_services_follow_policy_and_aggregation() {
        let ranges = ["10.96.0.0/16", "198.51.100.0/24"];
        assert_eq!(texts(&config("Enabled"), &[], false), ranges);
        assert_eq!(texts(&config("Disabled"), &[], false), ["10.96.0.0/16"]);
        let here = ["10.96.0.0/16", "10.96.0.5/32", "192.0.2.7/32", "198.51.100.0/24", "198.51.100.9/32"];
        for (aggregation, service, excluded, want) in [
            (
                "Enabled",
                service(false, false),
                false,
                &["10.96.0.0/16", "192.0.2.7/32", "198.51.100.0/24"][..],
            ),
            ("Disabled", service(false, false), false, &["10.96.0.0/16", "192.0.2.7/32", "198.51.100.9/32"]),
            ("Enabled", service(true, true), false, &here),
            ("Enabled", service(true, false), false, &ranges),
            ("Enabled", service(true, true), true, &ranges),
        ] {
            assert_eq!(
                texts(&config(aggregation), std::slice::from_ref(&service), excluded),
                want,
                "{aggregation} {service:?}"
            );
        }
    }
}
