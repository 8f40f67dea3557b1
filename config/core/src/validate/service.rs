//! Service.

use std::net::IpAddr;

use super::Errors;
use crate::{
    meta::Extra,
    service::{ServiceSpec, ServiceStatus},
};

pub(super) fn check(s: &ServiceSpec, beside: &Extra, errors: &mut Errors) {
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    let types = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
    errors.one_of("spec.type", given(&s.service_type).as_ref(), &types);
    for (field, value) in [
        ("spec.externalTrafficPolicy", &s.external_traffic_policy),
        ("spec.internalTrafficPolicy", &s.internal_traffic_policy),
    ] {
        errors.one_of(field, given(value).as_ref(), &["Cluster", "Local"]);
    }
    let mut address = |field: &str, text: &str, headless: bool| {
        if !(text.parse::<IpAddr>().is_ok() || headless && text == "None") {
            errors.add(field, text, "expected an IP address");
        }
    };
    if !s.cluster_ip.is_empty() {
        address("spec.clusterIP", &s.cluster_ip, true);
    }
    for (i, ip) in s.cluster_ips.iter().enumerate() {
        address(&format!("spec.clusterIPs[{i}]"), ip, true);
    }
    for (i, ip) in s.external_ips.iter().enumerate() {
        address(&format!("spec.externalIPs[{i}]"), ip, false);
    }
    if !s.load_balancer_ip.is_empty() {
        address("spec.loadBalancerIP", &s.load_balancer_ip, false);
    }
    if let Err(reason) = ServiceStatus::of(beside) {
        errors.add("status", "", reason);
    }
}
