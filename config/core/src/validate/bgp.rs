//! BGPConfiguration and BGPPeer.

use std::{collections::BTreeSet, net::IpAddr};

use super::Errors;
use crate::{
    bgp::{BgpConfigurationSpec, BgpPeerSpec},
    bgp_values::{CommunityValue, PeerAddress},
    suggest,
};

const SEVERITIES: [&str; 6] = ["Trace", "Debug", "Info", "Warning", "Error", "Fatal"];

pub(super) fn check_configuration(name: &str, c: &BgpConfigurationSpec, errors: &mut Errors) {
    if name != "default" {
        if name.strip_prefix("node.").is_none_or(str::is_empty) {
            errors.add("metadata.name", name, "expected default, or node.NAME for a single node");
        }
        if let Some(mesh) = c.node_to_node_mesh_enabled {
            let reason = "can only be set in the BGPConfiguration named default";
            errors.add("spec.nodeToNodeMeshEnabled", mesh, reason);
        }
        if let Some(asn) = c.as_number {
            let reason =
                "can only be set in the BGPConfiguration named default; set spec.bgp.asNumber of the Node";
            errors.add("spec.asNumber", asn, reason);
        }
    }
    if !c.log_severity_screen.is_empty()
        && !SEVERITIES.iter().any(|s| s.eq_ignore_ascii_case(&c.log_severity_screen))
    {
        errors.one_of("spec.logSeverityScreen", Some(&c.log_severity_screen), &SEVERITIES);
    }
    errors.one_of(
        "spec.serviceLoadBalancerAggregation",
        c.service_load_balancer_aggregation.as_ref(),
        &["Enabled", "Disabled"],
    );
    if c.listen_port == Some(0) {
        errors.add("spec.listenPort", 0, "expected 1 to 65535");
    }
    errors.one_of("spec.bindMode", c.bind_mode.as_ref(), &["None", "NodeIP"]);
    errors.one_of(
        "spec.programClusterRoutes",
        c.program_cluster_routes.as_ref(),
        &["Enabled", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly"],
    );
    for (field, address, v4) in [
        ("spec.localWorkloadPeeringIPV4", &c.local_workload_peering_ipv4, true),
        ("spec.localWorkloadPeeringIPV6", &c.local_workload_peering_ipv6, false),
    ] {
        if let Some(text) =
            address.as_ref().filter(|t| t.parse::<IpAddr>().ok().is_none_or(|a| a.is_ipv4() != v4))
        {
            errors.add(field, text, if v4 { "expected an IPv4 address" } else { "expected an IPv6 address" });
        }
    }
    errors.route_priority("spec.ipv4NormalRoutePriority", c.ipv4_normal_route_priority);
    errors.route_priority("spec.ipv6NormalRoutePriority", c.ipv6_normal_route_priority);
    for (i, interface) in c.ignored_interfaces.iter().enumerate() {
        let field = format!("spec.ignoredInterfaces[{i}]");
        if interface == "*" {
            errors.add(&field, interface, "would ignore every interface");
        } else {
            errors.interface(&field, interface, true);
        }
    }
    if c.node_to_node_mesh_enabled == Some(false) {
        let reason = "has no meaning while nodeToNodeMeshEnabled is false";
        if c.node_mesh_password.is_some() {
            errors.add("spec.nodeMeshPassword", "set", reason);
        }
        if let Some(time) = &c.node_mesh_max_restart_time {
            errors.add("spec.nodeMeshMaxRestartTime", time, reason);
        }
    }
    errors.duration("spec.nodeMeshMaxRestartTime", c.node_mesh_max_restart_time.as_ref());
    communities(c, errors);
}

fn communities(c: &BgpConfigurationSpec, errors: &mut Errors) {
    errors.at_most("spec.communities", &c.communities, 500);
    errors.at_most("spec.prefixAdvertisements", &c.prefix_advertisements, 500);
    if !c.communities.is_empty() && c.prefix_advertisements.is_empty() {
        let reason = "communities are only used by prefixAdvertisements; add some";
        errors.count("spec.communities", &c.communities, reason);
    }
    let mut names = BTreeSet::new();
    for (i, community) in c.communities.iter().enumerate() {
        if community.name.is_empty() || community.name.parse::<CommunityValue>().is_ok() {
            let reason = "expected a name that is not itself a community value";
            errors.add(&format!("spec.communities[{i}].name"), &community.name, reason);
        } else if !names.insert(community.name.as_str()) {
            errors.add(&format!("spec.communities[{i}].name"), &community.name, "defined twice");
        }
        if let Err(reason) = community.value.parse::<CommunityValue>() {
            errors.add(&format!("spec.communities[{i}].value"), &community.value, reason);
        }
    }
    for (i, advertisement) in c.prefix_advertisements.iter().enumerate() {
        let field = format!("spec.prefixAdvertisements[{i}].communities");
        errors.at_most(&field, &advertisement.communities, 50);
        for (j, community) in advertisement.communities.iter().enumerate() {
            if !names.contains(community.as_str()) && community.parse::<CommunityValue>().is_err() {
                let hint = suggest::closest(community, names.iter().copied())
                    .map(|m| format!("; did you mean {m}?"))
                    .unwrap_or_default();
                let reason =
                    format!("expected the name of an entry of spec.communities, aa:nn or aa:nn:mm{hint}");
                errors.add(&format!("{field}[{j}]"), community, reason);
            }
        }
    }
}

pub(super) fn check_peer(p: &BgpPeerSpec, errors: &mut Errors) {
    let exclusive = |errors: &mut Errors, (field, value): (&str, &str), (other, set): (&str, bool)| {
        if !value.is_empty() && set {
            errors.add(field, value, format!("excludes {other}; remove one of them"));
        }
    };
    exclusive(errors, ("spec.nodeSelector", &p.node_selector), ("node", !p.node.is_empty()));
    exclusive(errors, ("spec.peerSelector", &p.peer_selector), ("peerIP", !p.peer_ip.is_empty()));
    exclusive(errors, ("spec.peerSelector", &p.peer_selector), ("asNumber", p.as_number.is_some()));
    let local = ("spec.localWorkloadSelector", p.local_workload_selector.as_str());
    exclusive(errors, local, ("peerIP", !p.peer_ip.is_empty()));
    exclusive(errors, local, ("peerSelector", !p.peer_selector.is_empty()));
    if !p.local_workload_selector.is_empty() && p.as_number.is_none() {
        errors.add(local.0, local.1, "needs asNumber, the AS of the workloads");
    }
    if p.peer_ip.is_empty() && p.peer_selector.is_empty() && p.local_workload_selector.is_empty() {
        errors.add(
            "spec.peerIP",
            "",
            "the peer is missing: set peerIP, peerSelector or localWorkloadSelector",
        );
    }
    errors.selector("spec.nodeSelector", &p.node_selector);
    errors.selector("spec.peerSelector", &p.peer_selector);
    errors.selector("spec.localWorkloadSelector", &p.local_workload_selector);
    let peer = p.peer_ip.parse::<PeerAddress>();
    if let (false, Err(reason)) = (p.peer_ip.is_empty(), &peer) {
        errors.add("spec.peerIP", &p.peer_ip, reason);
    }
    if !p.reachable_by.is_empty() {
        match (p.reachable_by.parse::<IpAddr>(), peer) {
            (Err(_), _) => {
                errors.add("spec.reachableBy", &p.reachable_by, "expected the IP address of a gateway")
            }
            (Ok(_), Err(_)) if p.peer_ip.is_empty() => {
                errors.add("spec.reachableBy", &p.reachable_by, "needs peerIP");
            }
            (Ok(gateway), Ok(peer)) if gateway.is_ipv4() != peer.ip.is_ipv4() => {
                errors.add("spec.reachableBy", gateway, "is of another address family than peerIP");
            }
            _ => {}
        }
    }
    if p.keep_original_next_hop && p.next_hop_mode.is_some() {
        let reason = "excludes nextHopMode; remove this field, it is deprecated";
        errors.add("spec.keepOriginalNextHop", true, reason);
    }
    if let Some(n) = p.num_allowed_local_as_numbers.filter(|n| *n < 0) {
        errors.add("spec.numAllowedLocalASNumbers", n, "may not be negative");
    }
    errors.duration("spec.maxRestartTime", p.max_restart_time.as_ref());
    errors.duration("spec.keepaliveTime", p.keepalive_time.as_ref());
    errors.one_of("spec.sourceAddress", p.source_address.as_ref(), &["UseNodeIP", "None"]);
    errors.one_of("spec.reversePeering", p.reverse_peering.as_ref(), &["Auto", "Manual"]);
    for (i, filter) in p.filters.iter().enumerate() {
        if let Err(reason) = super::names::subdomain(filter) {
            errors.add(&format!("spec.filters[{i}]"), filter, reason);
        }
    }
}
