//! Tiers, policies, network sets, host endpoints, profiles: the rules of Calico's schemas and validator.
//!
//! The parsers of protocols, ports and nets are public: the calculation graph reads with the same ones what was
//! checked with them here.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Errors, Invalid, names};
use crate::{
    Kind, Selector,
    convert::{Converted, built_in_tier},
    policy::{
        EntityRule, HostEndpointSpec, IcmpFields, IntOrString, PolicySpec, ProfileSpec, Rule, SetSpec,
        TierSpec,
    },
    policy_names,
};

/// Most nets in one list of a rule.
pub const MAX_NETS: usize = 256;
/// Most ports in one list of a rule.
pub const MAX_PORTS: usize = 50;
/// Most rules of one direction.
pub const MAX_RULES: usize = 1024;

/// Names of protocols, as written; numbers are 1 to 255.
pub const PROTOCOLS: [(&str, u8); 6] =
    [("TCP", 6), ("UDP", 17), ("ICMP", 1), ("ICMPv6", 58), ("SCTP", 132), ("UDPLite", 136)];

/// The number of a protocol.
pub fn protocol(p: &IntOrString) -> Result<u8, String> {
    let number = match p {
        IntOrString::Int(n) => Some(*n),
        IntOrString::Text(t) => match PROTOCOLS.iter().find(|(name, _)| name.eq_ignore_ascii_case(t)) {
            Some((_, n)) => Some(i64::from(*n)),
            None => t.parse().ok(),
        },
    };
    number.and_then(|n| u8::try_from(n).ok()).filter(|n| *n > 0).ok_or_else(|| {
        let names = PROTOCOLS.map(|(name, _)| name).join(", ");
        format!("expected {names} or a number from 1 to 255")
    })
}

/// A port of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    Range(u16, u16),
    Named(String),
}

/// Reads `80`, `8080:8090`, `http`.
pub fn port(p: &IntOrString) -> Result<Port, String> {
    let number = |n: i64| u16::try_from(n).map_err(|_| format!("port {n}: expected 0 to 65535"));
    let text = match p {
        IntOrString::Int(n) => return number(*n).map(|n| Port::Range(n, n)),
        IntOrString::Text(t) => t,
    };
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    let parse =
        |t: &str| t.parse::<i64>().map_err(|_| format!("port {t}: expected 0 to 65535")).and_then(number);
    if digits(text) {
        return parse(text).map(|n| Port::Range(n, n));
    }
    if let Some((first, last)) = text.split_once(':') {
        if !digits(first) || !digits(last) {
            return Err("expected FIRST:LAST, two numbers".into());
        }
        let (a, b) = (parse(first)?, parse(last)?);
        if a > b {
            return Err(format!("the range ends before it begins; write {b}:{a}"));
        }
        return Ok(Port::Range(a, b));
    }
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 128 || !text.chars().all(ok) {
        return Err(
            "expected a number, FIRST:LAST, or the name of a port (letters, digits, -, _ and .)".into()
        );
    }
    Ok(Port::Named(text.clone()))
}

/// Reads a CIDR or an address; host bits are cleared.
pub fn net(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map(|n| n.trunc()).map_err(|_| "expected a CIDR such as 10.0.0.0/16, or an IP address".into())
}

pub(super) fn check_tier(name: &str, t: &TierSpec, errors: &mut Errors) {
    errors.one_of("spec.defaultAction", t.default_action.as_ref(), &["Deny", "Pass"]);
    // Whoever could move these would decide about policies of others.
    if let Some((order, pass)) = built_in_tier(name) {
        if let Some(other) = t.order.filter(|o| *o != order) {
            errors.add("spec.order", other, format!("the order of tier {name} is {order}"));
        }
        let action = if pass { "Pass" } else { "Deny" };
        if let Some(other) =
            t.default_action.as_deref().filter(|a| ["Pass", "Deny"].contains(a) && *a != action)
        {
            errors.add("spec.defaultAction", other, format!("the default action of tier {name} is {action}"));
        }
    }
    check_order(t.order, errors);
}

/// The tier a policy names is not there.
pub fn no_tier(name: &str) -> Invalid {
    let mut errors = Errors::default();
    errors.add("spec.tier", name, "there is no such tier; create it first, or in the same input");
    Invalid(errors.0)
}

/// What the names of tiers and policies may be beyond the rules for all names: a dot stands between the two.
pub(super) fn check_name(kind: Kind, name: &str, errors: &mut Errors) {
    let dots = name.matches('.').count();
    if kind == Kind::Tier
        && let Err(reason) = names::label(name)
    {
        errors.add("metadata.name", name, format!("the name of a tier has no dots: {reason}"));
    } else if policy_names::KINDS.contains(&kind) && dots > 1 {
        errors.add(
            "metadata.name",
            name,
            format!("the name of a policy has at most one dot, this one has {dots}"),
        );
    }
}

fn check_order(order: Option<f64>, errors: &mut Errors) {
    if let Some(n) = order.filter(|n| !n.is_finite()) {
        errors.add("spec.order", n, "expected a number");
    }
}

pub(super) fn check(p: &PolicySpec, global: bool, errors: &mut Errors) {
    check_order(p.order, errors);
    errors.selector("spec.selector", &p.selector);
    errors.selector("spec.serviceAccountSelector", &p.service_account_selector);
    errors.selector("spec.namespaceSelector", &p.namespace_selector);
    for (i, t) in p.types.iter().enumerate() {
        errors.one_of(&format!("spec.types[{i}]"), Some(t), &["Ingress", "Egress"]);
    }
    errors.at_most("spec.types", &p.types, 2);
    for (i, t) in p.performance_hints.iter().enumerate() {
        errors.one_of(&format!("spec.performanceHints[{i}]"), Some(t), &["AssumeNeededOnEveryNode"]);
    }
    errors.one_of("spec.stagedAction", p.staged_action.as_ref(), &["Set", "Delete", "Learn", "Ignore"]);
    if !global {
        let only = "only a GlobalNetworkPolicy has this field";
        if !p.namespace_selector.is_empty() {
            errors.add("spec.namespaceSelector", &p.namespace_selector, only);
        }
        for (field, set) in [
            ("spec.doNotTrack", p.do_not_track),
            ("spec.preDNAT", p.pre_dnat),
            ("spec.applyOnForward", p.apply_on_forward),
        ] {
            if set {
                errors.add(field, true, only);
            }
        }
    }
    if p.pre_dnat && p.do_not_track {
        errors.add("spec.preDNAT", true, "preDNAT and doNotTrack exclude each other");
    }
    if p.pre_dnat && (!p.egress.is_empty() || p.types.iter().any(|t| t == "Egress")) {
        errors.add("spec.preDNAT", true, "a preDNAT policy has ingress rules only");
    }
    if (p.pre_dnat || p.do_not_track) && !p.apply_on_forward {
        errors.add("spec.applyOnForward", false, "preDNAT and doNotTrack need applyOnForward: true");
    }
    rules("spec.ingress", &p.ingress, true, errors);
    rules("spec.egress", &p.egress, false, errors);
    // Elsewhere the policy's own namespace is meant.
    if global {
        services_have_namespaces(p, errors);
    }
}

fn services_have_namespaces(p: &PolicySpec, errors: &mut Errors) {
    for (list, rules) in [("ingress", &p.ingress), ("egress", &p.egress)] {
        for (i, r) in rules.iter().enumerate() {
            for (end, e) in [("source", &r.source), ("destination", &r.destination)] {
                if e.services.as_ref().is_some_and(|s| s.namespace.is_empty()) {
                    let field = format!("spec.{list}[{i}].{end}.services.namespace");
                    errors.add(&field, "", "is required: a GlobalNetworkPolicy is in no namespace");
                }
            }
        }
    }
}

pub(super) fn check_profile(p: &ProfileSpec, errors: &mut Errors) {
    rules("spec.ingress", &p.ingress, true, errors);
    rules("spec.egress", &p.egress, false, errors);
}

fn rules(field: &str, rules: &[Rule], ingress: bool, errors: &mut Errors) {
    errors.at_most(field, rules, MAX_RULES);
    for (i, r) in rules.iter().enumerate() {
        rule(&format!("{field}[{i}]"), r, ingress, errors);
    }
}

fn rule(field: &str, r: &Rule, ingress: bool, errors: &mut Errors) {
    let action = Some(&r.action);
    errors.one_of(&format!("{field}.action"), action, &["Allow", "Deny", "Log", "Pass"]);
    if let Some(v) = r.ip_version.filter(|v| !matches!(v, 4 | 6)) {
        errors.add(&format!("{field}.ipVersion"), v, "expected 4 or 6");
    }
    let mut number = |name: &str, p: &Option<IntOrString>| {
        let p = p.as_ref()?;
        match protocol(p) {
            Ok(n) => {
                let family = match n {
                    1 => Some(4),
                    58 => Some(6),
                    _ => None,
                };
                if let (Some(family), Some(v @ (4 | 6))) = (family, r.ip_version)
                    && family != v
                {
                    errors.add(&format!("{field}.{name}"), p, format!("needs ipVersion {family}"));
                }
                Some(n)
            }
            Err(reason) => {
                errors.add(&format!("{field}.{name}"), p, reason);
                None
            }
        }
    };
    let proto = number("protocol", &r.protocol);
    number("notProtocol", &r.not_protocol);
    for (name, fields) in [("icmp", &r.icmp), ("notICMP", &r.not_icmp)] {
        icmp(&format!("{field}.{name}"), fields, proto, errors);
    }
    entity(&format!("{field}.source"), &r.source, proto, r, errors);
    entity(&format!("{field}.destination"), &r.destination, proto, r, errors);
    one_family(field, r, errors);
    let misplaced = if ingress { (&r.destination, "destination") } else { (&r.source, "source") };
    if misplaced.0.services.is_some() {
        let reason = "services stands in the source of ingress rules and the destination of egress rules";
        errors.add(&format!("{field}.{}.services", misplaced.1), "", reason);
    }
    if r.extra.get("http").is_some_and(|http| !http.is_null()) {
        errors.add(
            &format!("{field}.http"),
            "",
            "HTTP matches are not enforced by this version; remove the rule",
        );
    }
}

/// A packet is of one family: what a rule says of networks of the other one is never true of it.
fn one_family(field: &str, r: &Rule, errors: &mut Errors) {
    let lists = [
        ("source.nets", &r.source.nets),
        ("source.notNets", &r.source.not_nets),
        ("destination.nets", &r.destination.nets),
        ("destination.notNets", &r.destination.not_nets),
    ];
    let mut first: Option<(IpNet, String)> = None;
    for (name, list) in lists {
        for (i, text) in list.iter().take(MAX_NETS).enumerate() {
            let at = format!("{field}.{name}[{i}]");
            // One that cannot be read is named elsewhere.
            match (net(text), &first) {
                (Ok(IpNet::V4(_)), Some((IpNet::V6(_), other)))
                | (Ok(IpNet::V6(_)), Some((IpNet::V4(_), other))) => {
                    let reason = format!("is not of the family of {other}; write a rule for each family");
                    return errors.add(&at, text, reason);
                }
                (Ok(found), None) => first = Some((found, at)),
                _ => {}
            }
        }
    }
}

fn icmp(field: &str, fields: &Option<IcmpFields>, proto: Option<u8>, errors: &mut Errors) {
    let Some(fields) = fields else { return };
    if !matches!(proto, Some(1 | 58)) {
        errors.add(field, "", "needs protocol ICMP or ICMPv6");
    }
    if let Some(t) = fields.r#type.filter(|t| !(0..=254).contains(t)) {
        errors.add(&format!("{field}.type"), t, "expected 0 to 254");
    }
    if let Some(c) = fields.code {
        if fields.r#type.is_none() {
            errors.add(&format!("{field}.code"), c, "a code needs a type");
        } else if !(0..=255).contains(&c) {
            errors.add(&format!("{field}.code"), c, "expected 0 to 255");
        }
    }
}

fn entity(field: &str, e: &EntityRule, proto: Option<u8>, r: &Rule, errors: &mut Errors) {
    errors.selector(&format!("{field}.selector"), &e.selector);
    errors.selector(&format!("{field}.notSelector"), &e.not_selector);
    let ns = format!("{field}.namespaceSelector");
    match Selector::parse(&e.namespace_selector) {
        Ok(s) if s.is_global() => {}
        _ => errors.selector(&ns, &e.namespace_selector),
    }
    for (name, list, positive) in [("nets", &e.nets, true), ("notNets", &e.not_nets, false)] {
        let field = format!("{field}.{name}");
        errors.at_most(&field, list, MAX_NETS);
        for (i, text) in list.iter().take(MAX_NETS).enumerate() {
            let field = format!("{field}[{i}]");
            match net(text) {
                Err(reason) => errors.add(&field, text, reason),
                Ok(n) if !positive && n.prefix_len() == 0 => {
                    errors.add(&field, text, "excludes every address of its family");
                }
                Ok(n) => {
                    let family = if matches!(n, IpNet::V4(_)) { 4 } else { 6 };
                    if let Some(v @ (4 | 6)) = r.ip_version.filter(|v| *v != family) {
                        errors.add(&field, text, format!("is no network of ipVersion {v}"));
                    }
                }
            }
        }
    }
    for (name, list) in [("ports", &e.ports), ("notPorts", &e.not_ports)] {
        let field = format!("{field}.{name}");
        errors.at_most(&field, list, MAX_PORTS);
        let mut numbers = false;
        for (i, p) in list.iter().take(MAX_PORTS).enumerate() {
            match port(p) {
                Err(reason) => errors.add(&format!("{field}[{i}]"), p, reason),
                Ok(found) => numbers |= matches!(found, Port::Range(..)),
            }
        }
        let fits = matches!(proto, Some(6 | 17 | 132)) || proto.is_none() && r.protocol.is_none() && !numbers;
        if !list.is_empty() && !fits {
            errors.count(&field, list, "ports need protocol TCP, UDP or SCTP");
        }
    }
    if let Some(accounts) = &e.service_accounts {
        errors.selector(&format!("{field}.serviceAccounts.selector"), &accounts.selector);
    }
    if let Some(service) = &e.services {
        let field = format!("{field}.services");
        if service.name.is_empty() {
            errors.add(&format!("{field}.name"), "", "is required");
        }
        let others = !e.nets.is_empty()
            || !e.not_nets.is_empty()
            || !e.selector.is_empty()
            || !e.not_selector.is_empty()
            || !e.namespace_selector.is_empty()
            || e.service_accounts.is_some()
            || !e.ports.is_empty()
            || !e.not_ports.is_empty();
        if others {
            errors.add(
                &field,
                &service.name,
                "stands alone: no nets, selectors, serviceAccounts or ports beside it",
            );
        }
    }
}

pub(super) fn check_set(s: &SetSpec, errors: &mut Errors) {
    for (i, text) in s.nets.iter().enumerate() {
        if let Err(reason) = net(text) {
            errors.add(&format!("spec.nets[{i}]"), text, reason);
        }
    }
}

pub(super) fn check_host_endpoint(h: &HostEndpointSpec, errors: &mut Errors) {
    if h.node.is_empty() {
        errors.add("spec.node", "", "is required");
    }
    if h.interface_name.is_empty() && h.expected_ips.is_empty() {
        errors.add("spec.interfaceName", "", "interfaceName or expectedIPs is required");
    }
    if !h.interface_name.is_empty() && h.interface_name != "*" {
        errors.interface("spec.interfaceName", &h.interface_name, false);
    }
    for (i, ip) in h.expected_ips.iter().enumerate() {
        if ip.parse::<IpAddr>().is_err() {
            errors.add(&format!("spec.expectedIPs[{i}]"), ip, "expected an IP address");
        }
    }
    for (i, p) in h.ports.iter().enumerate().filter(|(_, p)| !p.protocol.is_empty()) {
        if !matches!(protocol(&p.protocol.as_str().into()), Ok(6 | 17 | 132)) {
            let reason = "expected TCP, UDP or SCTP: no rule can name a port of another protocol";
            errors.add(&format!("spec.ports[{i}].protocol"), &p.protocol, reason);
        }
    }
}

pub(super) fn converted(result: Result<Converted, (String, String)>, errors: &mut Errors) {
    match result {
        Err((field, reason)) => errors.add(&field, "", reason),
        Ok(done) => done.problems.into_iter().for_each(|(field, reason)| errors.add(&field, "", reason)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{AnyResource, Kind, validate};

    fn said(kind: Kind, name: &str, spec: Value) -> Vec<String> {
        let value = json!({"apiVersion": "projectcalico.org/v3", "kind": kind.as_str(),
            "metadata": {"name": name}, "spec": spec});
        let read = AnyResource::from_value(kind, &value).expect("it has the right types");
        let errors = validate::resource(&read).err().map(|e| e.0).unwrap_or_default();
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn built_in_tiers_stay_where_they_are() {
        let tier = |name: &str, spec: Value| said(Kind::Tier, name, spec);
        for (name, order, action) in [
            ("default", 1_000_000.0, "Deny"),
            ("kube-admin", 1000.0, "Pass"),
            ("kube-baseline", 10_000_000.0, "Pass"),
        ] {
            assert_eq!(tier(name, json!({"order": order, "defaultAction": action})), Vec::<String>::new());
            assert_eq!(tier(name, json!({})), Vec::<String>::new());
            let other = if action == "Deny" { "Pass" } else { "Deny" };
            let found = tier(name, json!({"order": 5.0, "defaultAction": other}));
            let wanted = [
                format!("spec.order = '5' (the order of tier {name} is {order})"),
                format!("spec.defaultAction = '{other}' (the default action of tier {name} is {action})"),
            ];
            assert_eq!(found, wanted);
        }
        assert_eq!(tier("mine", json!({"order": 5.0, "defaultAction": "Pass"})), Vec::<String>::new());
    }

    #[test]
    fn a_host_endpoint_names_ports_of_protocols_that_have_some() {
        let of = |protocol: &str| {
            let ports = json!([{"name": "echo", "protocol": protocol, "port": 8}]);
            said(Kind::HostEndpoint, "h", json!({"node": "n1", "interfaceName": "eth0", "ports": ports}))
        };
        for good in ["", "TCP", "udp", "SCTP"] {
            assert_eq!(of(good), Vec::<String>::new(), "{good}");
        }
        for bad in ["ICMP", "UDPLite", "47", "nothing"] {
            let wanted = format!(
                "spec.ports[0].protocol = '{bad}' (expected TCP, UDP or SCTP: no rule can name a port of another \
                 protocol)"
            );
            assert_eq!(of(bad), [wanted]);
        }
    }

    #[test]
    fn a_service_of_a_global_policy_needs_a_namespace() {
        let of = |kind, service: Value| {
            let rule = json!({"action": "Allow", "destination": {"services": service}});
            let spec = json!({"egress": [rule]});
            let value = json!({"apiVersion": "projectcalico.org/v3", "kind": Kind::as_str(kind),
                "metadata": {"name": "p", "namespace": (kind == Kind::NetworkPolicy).then_some("ns")}, "spec": spec});
            let read = AnyResource::from_value(kind, &value).expect("it has the right types");
            validate::resource(&read).err().map(|e| e.to_string())
        };
        let (bare, full) = (json!({"name": "web"}), json!({"name": "web", "namespace": "shop"}));
        assert_eq!(
            of(Kind::GlobalNetworkPolicy, bare.clone()).as_deref(),
            Some(
                "error with field spec.egress[0].destination.services.namespace = '' (is required: a \
                 GlobalNetworkPolicy is in no namespace)"
            )
        );
        assert_eq!(of(Kind::GlobalNetworkPolicy, full), None);
        assert_eq!(of(Kind::NetworkPolicy, bare), None, "its own namespace is meant");
    }

    #[test]
    fn networks_of_a_rule_are_of_one_family() {
        let of = |source: Value, destination: Value| {
            let rule = json!({"action": "Allow", "source": source, "destination": destination});
            said(Kind::GlobalNetworkPolicy, "g", json!({"ingress": [rule]}))
        };
        let (v4, v6) = (json!(["10.0.0.0/8"]), json!(["fd00::/8", "fd01::1"]));
        for side in ["nets", "notNets"] {
            for other in ["nets", "notNets"] {
                assert_eq!(of(json!({side: v4}), json!({other: v4})), Vec::<String>::new());
                let found = of(json!({side: v4}), json!({other: v6}));
                let wanted = format!(
                    "spec.ingress[0].destination.{other}[0] = 'fd00::/8' (is not of the family of \
                     spec.ingress[0].source.{side}[0]; write a rule for each family)"
                );
                assert_eq!(found, [wanted]);
            }
        }
        assert_eq!(of(json!({"nets": ["fd00::/8", "10.0.0.1"]}), json!({})).len(), 1);
    }
}
