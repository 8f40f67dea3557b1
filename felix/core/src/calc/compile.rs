//! One policy or profile as written → rules with ids of IP sets, and the definitions of those sets. Pure and without
//! any other resource: what a selector selects is for the sets to find out.

use std::collections::BTreeMap;

use brindle_config_core::{
    Selector,
    convert::{LABEL_NAMESPACE, LABEL_SERVICE_ACCOUNT, PREFIX_NAMESPACE, PREFIX_SERVICE_ACCOUNT},
    policy::{self as config, EntityRule, PolicySpec},
    validate::policy as read,
};
use sha2::{Digest, Sha224};

use crate::policy::active::{
    Action, Icmp, IpSetId, IpSetKind, IpVersion, PolicyId, PortRange, Protocol, Rule, Side, Why,
};

/// What the members of an IP set are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SetDef {
    /// Addresses of endpoints and prefixes of network sets that match.
    Selected(Selector),
    /// Ports of this name, of this protocol when given, of endpoints that match.
    NamedPort(Selector, Option<Protocol>, String),
    /// Backends of a service, namespace and name; with or without their ports.
    Service(String, String, bool),
}

impl SetDef {
    pub(crate) const fn kind(&self) -> IpSetKind {
        match self {
            Self::Selected(_) | Self::Service(_, _, false) => IpSetKind::Net,
            Self::NamedPort(..) | Self::Service(_, _, true) => IpSetKind::IpPort,
        }
    }
}

/// Definitions by id.
pub(crate) type Sets = BTreeMap<IpSetId, SetDef>;

/// A policy ready to be matched with endpoints.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compiled {
    pub(crate) id: PolicyId,
    pub(crate) order: Option<f64>,
    /// Over effective labels, with namespace and service account conditions in it.
    pub(crate) selector: Selector,
    pub(crate) ingress: bool,
    pub(crate) egress: bool,
    pub(crate) untracked: bool,
    pub(crate) pre_dnat: bool,
    pub(crate) forward: bool,
    /// `AssumeNeededOnEveryNode`.
    pub(crate) always: bool,
    pub(crate) inbound: Vec<Rule>,
    pub(crate) outbound: Vec<Rule>,
    pub(crate) sets: Sets,
}

/// What was wrong, where.
pub(crate) type Bad = (String, String);

/// `prefix:` and Calico's hash of `prefix:text`.
fn hashed(prefix: &str, text: &str) -> IpSetId {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let hash = Sha224::digest(format!("{prefix}:{text}"));
    let mut out = format!("{prefix}:");
    let (mut held, mut bits) = (0u32, 0u32);
    let mut push = |n: u32| out.push(ALPHABET.get((n & 63) as usize).map_or('?', |b| char::from(*b)));
    for byte in hash {
        held = held << 8 & 0xffff | u32::from(byte);
        bits += 8;
        while bits >= 6 {
            bits -= 6;
            push(held >> bits);
        }
    }
    if bits > 0 {
        push(held << (6 - bits));
    }
    IpSetId(out.into())
}

/// Compiles a policy. `from` tells for each rule the index of the one it was written as.
pub(crate) fn policy(
    id: PolicyId,
    spec: &PolicySpec,
    from: Option<(&[u32], &[u32])>,
) -> Result<Compiled, Bad> {
    let namespace = Some(id.namespace.as_str()).filter(|n| !n.is_empty());
    let selector = subject(namespace, spec)?;
    let (ingress, egress) = spec.directions();
    let mut sets = Sets::new();
    let inbound = rules(namespace, "spec.ingress", &spec.ingress, from.map(|f| f.0), &mut sets)?;
    let outbound = rules(namespace, "spec.egress", &spec.egress, from.map(|f| f.1), &mut sets)?;
    let mut done = Compiled {
        id,
        order: spec.order,
        selector,
        ingress,
        egress: egress && !spec.pre_dnat,
        untracked: spec.do_not_track,
        pre_dnat: spec.pre_dnat,
        forward: spec.apply_on_forward,
        always: spec.performance_hints.iter().any(|h| h == "AssumeNeededOnEveryNode"),
        inbound: if ingress { inbound } else { Vec::new() },
        outbound: if egress && !spec.pre_dnat { outbound } else { Vec::new() },
        sets,
    };
    let used: std::collections::BTreeSet<IpSetId> =
        done.inbound.iter().chain(&done.outbound).flat_map(Rule::ip_sets).cloned().collect();
    done.sets.retain(|id, _| used.contains(id));
    Ok(done)
}

/// What stands in for a policy that cannot be read: it denies everything in the directions it would have had, for
/// those it would have selected.
pub(crate) fn closed(id: PolicyId, spec: &PolicySpec) -> Option<Compiled> {
    let namespace = Some(id.namespace.as_str()).filter(|n| !n.is_empty());
    let selector = match (subject(namespace, spec), namespace) {
        (Ok(s), _) => s,
        (Err(_), Some(ns)) => Selector::equal(LABEL_NAMESPACE, ns),
        // A cluster-wide policy of which nobody knows whom it selects would close the cluster.
        (Err(_), None) => return None,
    };
    // A type nobody knows may have been meant for either direction.
    let known = |t: &String| matches!(t.as_str(), "Ingress" | "Egress");
    let (ingress, egress) = match spec.directions() {
        both if spec.types.iter().all(known) && both != (false, false) => both,
        _ => (true, true),
    };
    let deny = |yes: bool| {
        let why = Why { index: 0, annotations: vec![("invalid".into(), "the policy cannot be read".into())] };
        if yes { vec![Rule::any(Action::Deny, why)] } else { Vec::new() }
    };
    Some(Compiled {
        id,
        order: spec.order.filter(|o| o.is_finite()),
        selector,
        ingress,
        egress,
        untracked: false,
        pre_dnat: false,
        forward: spec.apply_on_forward,
        always: false,
        inbound: deny(ingress),
        outbound: deny(egress),
        sets: Sets::new(),
    })
}

/// The rules of a profile.
pub(crate) fn profile(spec: &config::ProfileSpec) -> Result<(Vec<Rule>, Vec<Rule>, Sets), Bad> {
    let mut sets = Sets::new();
    let inbound = rules(None, "spec.ingress", &spec.ingress, None, &mut sets)?;
    let outbound = rules(None, "spec.egress", &spec.egress, None, &mut sets)?;
    Ok((inbound, outbound, sets))
}

fn selector(field: &str, text: &str) -> Result<Selector, Bad> {
    Selector::parse(text).map_err(|e| {
        (field.to_owned(), format!("column {}: expected {}, found {}", e.column, e.expected, e.found))
    })
}

/// A condition on the labels of the namespace. What is in none is never meant, not even by `!=` and `!has`, which an
/// absent label satisfies.
fn on_namespace(s: &Selector) -> Selector {
    inherited(s, LABEL_NAMESPACE, PREFIX_NAMESPACE)
}

/// The same for the service account.
fn on_account(s: &Selector) -> Selector {
    inherited(s, LABEL_SERVICE_ACCOUNT, PREFIX_SERVICE_ACCOUNT)
}

fn inherited(s: &Selector, label: &str, prefix: &str) -> Selector {
    match (s.is_all(), s.anchor().is_some()) {
        (true, _) => Selector::has(label),
        (false, true) => s.prefixed(prefix),
        (false, false) => Selector::all_of([s.prefixed(prefix), Selector::has(label)]),
    }
}

/// Whom the policy selects.
fn subject(namespace: Option<&str>, spec: &PolicySpec) -> Result<Selector, Bad> {
    let mut parts = vec![selector("spec.selector", &spec.selector)?];
    if let Some(ns) = namespace {
        parts.push(Selector::equal(LABEL_NAMESPACE, ns));
    }
    if !spec.namespace_selector.is_empty() {
        parts.push(on_namespace(&selector("spec.namespaceSelector", &spec.namespace_selector)?));
    }
    if !spec.service_account_selector.is_empty() {
        parts.push(on_account(&selector("spec.serviceAccountSelector", &spec.service_account_selector)?));
    }
    Ok(Selector::all_of(parts))
}

fn rules(
    namespace: Option<&str>,
    field: &str,
    list: &[config::Rule],
    from: Option<&[u32]>,
    sets: &mut Sets,
) -> Result<Vec<Rule>, Bad> {
    let mut out = Vec::with_capacity(list.len());
    for (i, r) in (0u32..).zip(list) {
        let index = from.and_then(|f| f.get(i as usize).copied()).unwrap_or(i);
        let mut asked = Sets::new();
        let rule = rule(namespace, &format!("{field}[{i}]"), index, r, &mut asked)?;
        if let Some(rule) = one_protocol(rule) {
            sets.append(&mut asked);
            out.push(rule);
        }
    }
    Ok(out)
}

/// A rule that asks for one protocol and not for another: the first says it all, and iptables takes one of the two.
/// `None`: it asks for one and for all others, so that no packet fits.
fn one_protocol(mut rule: Rule) -> Option<Rule> {
    if rule.protocol.is_some() && rule.protocol == rule.not_protocol {
        return None;
    }
    rule.not_protocol = rule.not_protocol.filter(|_| rule.protocol.is_none());
    Some(rule)
}

fn rule(
    namespace: Option<&str>,
    field: &str,
    index: u32,
    r: &config::Rule,
    sets: &mut Sets,
) -> Result<Rule, Bad> {
    let bad = |name: &str, reason: String| (format!("{field}.{name}"), reason);
    let action = match r.action.as_str() {
        "Allow" => Action::Allow,
        "Deny" => Action::Deny,
        "Log" => Action::Log,
        "Pass" => Action::Pass,
        other => return Err(bad("action", format!("unknown action {other:?}"))),
    };
    let annotations = r.metadata.iter().flat_map(|m| m.annotations.clone()).collect();
    let mut out = Rule::any(action, Why { index, annotations });
    out.ip_version = match r.ip_version {
        None => None,
        Some(4) => Some(IpVersion::V4),
        Some(6) => Some(IpVersion::V6),
        Some(v) => return Err(bad("ipVersion", format!("expected 4 or 6, found {v}"))),
    };
    let number = |name: &str, p: &Option<config::IntOrString>| match p {
        None => Ok(None),
        Some(p) => read::protocol(p).map(|n| Some(Protocol(n))).map_err(|e| bad(name, e)),
    };
    out.protocol = number("protocol", &r.protocol)?;
    out.not_protocol = number("notProtocol", &r.not_protocol)?;
    let icmp = |name: &str, f: &Option<config::IcmpFields>| -> Result<Option<Icmp>, Bad> {
        let Some(kind) = f.as_ref().and_then(|f| f.r#type) else { return Ok(None) };
        let octet = |n: i64| u8::try_from(n).map_err(|_| bad(name, format!("{n}: expected 0 to 255")));
        let code = f.as_ref().and_then(|f| f.code).map(octet).transpose()?;
        Ok(Some(Icmp { kind: octet(kind)?, code }))
    };
    out.icmp = icmp("icmp", &r.icmp)?;
    out.not_icmp = icmp("notICMP", &r.not_icmp)?;
    out.src = side(namespace, &format!("{field}.source"), &r.source, out.protocol, sets)?;
    out.dst = side(namespace, &format!("{field}.destination"), &r.destination, out.protocol, sets)?;
    Ok(out)
}

/// Enters a set and gives its id.
fn set(sets: &mut Sets, def: SetDef) -> IpSetId {
    let id = match &def {
        SetDef::Selected(s) => IpSetId(s.unique_id().into()),
        SetDef::NamedPort(s, protocol, name) => {
            let protocol = protocol.map(|p| p.to_string()).unwrap_or_default();
            hashed("n", &format!("{},{protocol},{name}", s.unique_id()))
        }
        SetDef::Service(ns, name, true) => hashed("svc", &format!("{ns}/{name}")),
        SetDef::Service(ns, name, false) => hashed("svcnoport", &format!("{ns}/{name}")),
    };
    sets.insert(id.clone(), def);
    id
}

fn side(
    namespace: Option<&str>,
    field: &str,
    e: &EntityRule,
    protocol: Option<Protocol>,
    sets: &mut Sets,
) -> Result<Side, Bad> {
    let mut out = Side::default();
    let nets = |name: &str, list: &[String]| {
        let parse = |(i, t): (usize, &String)| {
            read::net(t).map_err(|reason| (format!("{field}.{name}[{i}]"), format!("{t:?}: {reason}")))
        };
        list.iter().enumerate().map(parse).collect::<Result<Vec<_>, Bad>>()
    };
    out.nets = nets("nets", &e.nets)?;
    out.not_nets = nets("notNets", &e.not_nets)?;

    if let Some(s) = &e.services {
        let ns = if s.namespace.is_empty() { namespace.unwrap_or_default() } else { &s.namespace };
        let with_ports = field.ends_with("destination");
        let id = set(sets, SetDef::Service(ns.to_owned(), s.name.clone(), with_ports));
        if with_ports {
            out.ip_port_sets.push(id);
        } else {
            out.sets.push(id);
        }
    }

    let positive = selected(namespace, field, e)?;
    let negative = match e.not_selector.as_str() {
        "" => None,
        text => Some(selector(&format!("{field}.notSelector"), text)?),
    };
    let (positive, negative) = match (positive, negative) {
        (Some(p), Some(n)) => (Some(Selector::all_of([p, n.negated()])), None),
        other => other,
    };
    let (ports, names) = ports(&format!("{field}.ports"), &e.ports)?;
    let (not_ports, not_names) = self::ports(&format!("{field}.notPorts"), &e.not_ports)?;
    let whom = positive.clone().unwrap_or_else(Selector::all);
    let mut named = |names: Vec<String>| -> Vec<IpSetId> {
        names.into_iter().map(|n| set(sets, SetDef::NamedPort(whom.clone(), protocol, n))).collect()
    };
    out.named_ports = named(names);
    out.not_named_ports = named(not_names);
    (out.ports, out.not_ports) = (ports, not_ports);
    // Named ports alone: their sets hold nothing but what the selector selects.
    let implied = !out.named_ports.is_empty() && out.ports.is_empty();
    if let Some(p) = positive.filter(|_| !implied) {
        out.sets.push(set(sets, SetDef::Selected(p)));
    }
    if let Some(n) = negative {
        out.not_sets.push(set(sets, SetDef::Selected(n)));
    }
    Ok(out)
}

/// The positive part of an entity: selector, namespace and service account conditions. `None` = any address at all.
fn selected(namespace: Option<&str>, field: &str, e: &EntityRule) -> Result<Option<Selector>, Bad> {
    let mut parts = Vec::new();
    if !e.selector.is_empty() {
        parts.push(selector(&format!("{field}.selector"), &e.selector)?);
    }
    let accounts = e.service_accounts.as_ref();
    if let Some(a) = accounts {
        if !a.names.is_empty() {
            parts.push(Selector::one_of(LABEL_SERVICE_ACCOUNT, a.names.iter().cloned()));
        }
        if !a.selector.is_empty() {
            parts.push(on_account(&selector(&format!("{field}.serviceAccounts.selector"), &a.selector)?));
        }
    }
    let asks = !parts.is_empty() || !e.not_selector.is_empty();
    if !e.namespace_selector.is_empty() {
        let s = selector(&format!("{field}.namespaceSelector"), &e.namespace_selector)?;
        parts.push(match s.is_global() {
            true => Selector::has(LABEL_NAMESPACE).negated(),
            false => on_namespace(&s),
        });
    } else if let Some(ns) = namespace.filter(|_| asks) {
        parts.push(Selector::equal(LABEL_NAMESPACE, ns));
    }
    Ok((!parts.is_empty()).then(|| Selector::all_of(parts)))
}

/// Numbers joined, names apart.
fn ports(field: &str, list: &[config::IntOrString]) -> Result<(Vec<PortRange>, Vec<String>), Bad> {
    let (mut ranges, mut names) = (Vec::new(), Vec::new());
    for (i, p) in list.iter().enumerate() {
        match read::port(p).map_err(|e| (format!("{field}[{i}]"), format!("{p}: {e}")))? {
            read::Port::Range(first, last) => ranges.push(PortRange { first, last }),
            read::Port::Named(n) => names.push(n),
        }
    }
    Ok((ranges, names))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_protocol_and_not_protocol_one_is_left() {
        let spec: PolicySpec = serde_json::from_value(json!({"ingress": [
            {"action": "Allow", "protocol": "TCP", "notProtocol": "UDP"},
            {"action": "Allow", "protocol": "TCP", "notProtocol": 6, "source": {"selector": "has(a)"}},
            {"action": "Deny", "protocol": "ICMP", "notProtocol": "TCP", "icmp": {"type": 8}},
            {"action": "Deny", "notProtocol": "UDP"}]}))
        .expect("it has the right types");
        let id = PolicyId {
            tier: "default".into(),
            kind: crate::policy::active::PolicyKind::NetworkPolicy,
            namespace: "a".into(),
            name: "p".into(),
        };
        let done = policy(id, &spec, None).expect("it can be enforced");
        let left: Vec<_> = done.inbound.iter().map(|r| (r.why.index, r.protocol, r.not_protocol)).collect();
        let (tcp, udp, icmp) = (Some(Protocol::TCP), Some(Protocol::UDP), Some(Protocol::ICMP));
        assert_eq!(left, [(0, tcp, None), (2, icmp, None), (3, None, udp)]);
        assert!(done.sets.is_empty(), "what no rule asks for is not made: {:?}", done.sets);
        let spec = serde_json::from_value(json!({"egress": [
            {"action": "Allow", "protocol": "TCP", "notProtocol": 6, "source": {"selector": "has(a)"}}]}))
        .expect("it has the right types");
        let (inbound, outbound, sets) = profile(&spec).expect("it can be enforced");
        assert!(inbound.is_empty() && outbound.is_empty() && sets.is_empty(), "{outbound:?} {sets:?}");
    }
}
