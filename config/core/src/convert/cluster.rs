//! ClusterNetworkPolicy, AdminNetworkPolicy, BaselineAdminNetworkPolicy → GlobalNetworkPolicy. A rule that cannot be
//! converted: one that denies or passes becomes deny all, one that accepts is left out.

use std::collections::BTreeMap;

use super::{
    Converted,
    ports::{ByProtocol, One, joined, range},
    selector,
};
use crate::{
    kube::{
        AdminPort, ClusterPeer, ClusterPolicySpec, ClusterPorts, ClusterProtocol, ClusterRule, LabelSelector,
    },
    policy::{EntityRule, IntOrString, PolicySpec, Rule, RuleMetadata},
};

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterKind {
    /// `policy.networking.k8s.io/v1alpha2`.
    Cluster,
    /// `v1alpha1`.
    Admin,
    /// `v1alpha1`, a single one named `default`.
    Baseline,
}

/// Converts; an error when tier or subject cannot be told.
pub fn cluster_policy(kind: ClusterKind, k: &ClusterPolicySpec) -> Result<Converted, (String, String)> {
    let tier = match (kind, k.tier.as_deref()) {
        (ClusterKind::Cluster, Some("Admin")) => "kube-admin",
        (ClusterKind::Cluster, Some("Baseline")) => "kube-baseline",
        (ClusterKind::Cluster, other) => {
            let found = other.unwrap_or_default();
            return Err(("spec.tier".into(), format!("expected Admin or Baseline, found {found:?}")));
        }
        (ClusterKind::Admin, _) => "adminnetworkpolicy",
        (ClusterKind::Baseline, _) => "baselineadminnetworkpolicy",
    };
    let order = match (kind, k.priority) {
        (ClusterKind::Baseline, _) => None,
        (_, Some(n @ 0..=1000)) => Some(n as f64),
        (_, other) => {
            let found = other.map_or_else(|| "nothing".into(), |n| n.to_string());
            return Err(("spec.priority".into(), format!("expected 0 to 1000, found {found}")));
        }
    };
    let subject = entity(&k.subject).and_then(|s| match s.selector.is_empty() {
        true => Err("expected namespaces or pods".into()),
        false => Ok(s),
    });
    let subject = subject.map_err(|e| ("spec.subject".to_owned(), e))?;
    let mut types = Vec::new();
    types.extend((!k.ingress.is_empty()).then(|| "Ingress".to_owned()));
    types.extend((!k.egress.is_empty()).then(|| "Egress".to_owned()));
    let mut out = Converted {
        spec: PolicySpec {
            tier: tier.into(),
            order,
            selector: subject.selector,
            namespace_selector: subject.namespace_selector,
            types,
            ..PolicySpec::default()
        },
        ..Converted::default()
    };
    for (name, rules, egress) in [("ingress", &k.ingress, false), ("egress", &k.egress, true)] {
        let (mut made, mut from) = (Vec::new(), Vec::new());
        for (i, r) in (0u32..).zip(rules) {
            let rules = convert(kind, r, egress).unwrap_or_else(|(field, reason)| {
                out.problems.push((format!("spec.{name}[{i}].{field}"), reason));
                let closed = || Rule { action: "Deny".into(), metadata: named(&r.name), ..Rule::default() };
                if accepts(&r.action) { Vec::new() } else { vec![closed()] }
            });
            from.extend(rules.iter().map(|_| i));
            made.extend(rules);
        }
        if egress {
            (out.spec.egress, out.egress_from) = (made, from);
        } else {
            (out.spec.ingress, out.ingress_from) = (made, from);
        }
    }
    Ok(out)
}

fn accepts(action: &str) -> bool {
    matches!(action, "Accept" | "Allow")
}

fn named(name: &str) -> Option<RuleMetadata> {
    let annotations = || BTreeMap::from([("name".to_owned(), name.to_owned())]);
    (!name.is_empty()).then(|| RuleMetadata { annotations: annotations(), ..RuleMetadata::default() })
}

fn convert(kind: ClusterKind, r: &ClusterRule, egress: bool) -> Result<Vec<Rule>, (String, String)> {
    let action = match (kind, r.action.as_str()) {
        (ClusterKind::Cluster, "Accept") | (ClusterKind::Admin | ClusterKind::Baseline, "Allow") => "Allow",
        (_, "Deny") => "Deny",
        (ClusterKind::Cluster | ClusterKind::Admin, "Pass") => "Pass",
        (_, other) => return Err(("action".into(), format!("unknown action {other:?}"))),
    };
    let (list, peers) = if egress { ("to", &r.to) } else { ("from", &r.from) };
    if peers.is_empty() {
        return Err((list.into(), "at least one peer is required".into()));
    }
    let mut entities = Vec::new();
    for (i, p) in peers.iter().enumerate() {
        let field = || format!("{list}[{i}]");
        let e = entity(p).map_err(|e| (field(), e))?;
        if !egress && !e.nets.is_empty() {
            return Err((field(), "networks are for egress only".into()));
        }
        entities.push(e);
    }
    let protocols = match kind {
        ClusterKind::Cluster => cluster_ports(&r.protocols)?,
        ClusterKind::Admin | ClusterKind::Baseline => admin_ports(&r.ports)?,
    };
    let mut out = Vec::new();
    for (protocol, ports) in &protocols {
        for peer in &entities {
            let (source, mut destination) = match egress {
                false => (peer.clone(), EntityRule::default()),
                true => (EntityRule::default(), peer.clone()),
            };
            destination.ports.clone_from(ports);
            out.push(Rule {
                action: action.into(),
                protocol: protocol.clone().map(IntOrString::Text),
                source,
                destination,
                metadata: named(&r.name),
                ..Rule::default()
            });
        }
    }
    Ok(out)
}

type Protocols = Vec<(Option<String>, Vec<IntOrString>)>;

fn grouped(by: ByProtocol) -> Protocols {
    if by.is_empty() {
        return vec![(None, Vec::new())];
    }
    by.into_iter().map(|(protocol, ports)| (protocol, joined(&ports))).collect()
}

fn cluster_ports(list: &[ClusterProtocol]) -> Result<Protocols, (String, String)> {
    let mut by = ByProtocol::new();
    for (i, p) in list.iter().enumerate() {
        let at = |e: String| (format!("protocols[{i}]"), e);
        let ports = |ports: &ClusterPorts| -> Result<One, String> {
            match &ports.destination_port {
                None => Ok(One::All),
                Some(port) => match (port.number, &port.range) {
                    (Some(n), None) => range(n, n),
                    (None, Some(r)) => range(r.start, r.end),
                    _ => Err("destinationPort: expected number or range".into()),
                },
            }
        };
        let (protocol, one) = match (&p.tcp, &p.udp, &p.sctp, &p.destination_named_port) {
            (Some(tcp), None, None, None) => (Some("TCP"), ports(tcp).map_err(at)?),
            (None, Some(udp), None, None) => (Some("UDP"), ports(udp).map_err(at)?),
            (None, None, Some(sctp), None) => (Some("SCTP"), ports(sctp).map_err(at)?),
            (None, None, None, Some(name)) if !name.is_empty() => (None, One::Named(name.clone())),
            _ => return Err(at("expected one of tcp, udp, sctp and destinationNamedPort".into())),
        };
        by.entry(protocol.map(str::to_owned)).or_default().push(one);
    }
    Ok(grouped(by))
}

fn admin_ports(list: &[AdminPort]) -> Result<Protocols, (String, String)> {
    let mut by = ByProtocol::new();
    let protocol = |p: &str| match p {
        "" => Ok(Some("TCP".to_owned())),
        "TCP" | "UDP" | "SCTP" => Ok(Some(p.to_owned())),
        other => Err(format!("protocol {other:?}: expected TCP, UDP or SCTP")),
    };
    for (i, p) in list.iter().enumerate() {
        let at = |e: String| (format!("ports[{i}]"), e);
        let (protocol, one) = match (&p.port_number, &p.port_range, &p.named_port) {
            (Some(n), None, None) => (protocol(&n.protocol).map_err(at)?, range(n.port, n.port).map_err(at)?),
            (None, Some(r), None) => (protocol(&r.protocol).map_err(at)?, range(r.start, r.end).map_err(at)?),
            (None, None, Some(name)) if !name.is_empty() => (None, One::Named(name.clone())),
            _ => return Err(at("expected one of portNumber, portRange and namedPort".into())),
        };
        by.entry(protocol).or_default().push(one);
    }
    Ok(grouped(by))
}

fn entity(p: &ClusterPeer) -> Result<EntityRule, String> {
    if let Some((field, _)) = p.extra.iter().next() {
        return Err(format!("{field} is not supported"));
    }
    let everything = LabelSelector::default();
    let (namespaces, pods) = match (&p.namespaces, &p.pods, p.networks.as_slice()) {
        (Some(ns), None, []) => (ns, &everything),
        (None, Some(pods), []) => (&pods.namespace_selector, &pods.pod_selector),
        (None, None, nets @ [_, ..]) => {
            for n in nets {
                n.parse::<ipnet::IpNet>().map_err(|_| format!("{n:?}: expected a CIDR"))?;
            }
            return Ok(EntityRule { nets: nets.to_vec(), ..EntityRule::default() });
        }
        _ => return Err("expected one of namespaces, pods and networks".into()),
    };
    Ok(EntityRule {
        selector: selector::pods(pods)?,
        namespace_selector: selector::namespaces(namespaces)?,
        ..EntityRule::default()
    })
}
