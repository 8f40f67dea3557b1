//! `networking.k8s.io/v1` NetworkPolicy → NetworkPolicy in tier `default`. Its rules only allow, so one that cannot be
//! converted is left out and named.

use super::{
    Converted, NETWORK_POLICY_ORDER,
    ports::{ByProtocol, One, joined, range},
    selector,
};
use crate::{
    kube::{KubePeer, KubePort, KubeRules, KubernetesNetworkPolicySpec, LabelSelector},
    policy::{DEFAULT_TIER, EntityRule, IntOrString, PolicySpec, Rule, StagedKubernetesNetworkPolicySpec},
};

/// Converts; an error when the pods it is about cannot be told.
pub fn kubernetes_policy(k: &KubernetesNetworkPolicySpec) -> Result<Converted, (String, String)> {
    convert(&k.pod_selector, &k.rules)
}

/// The same for the staged form.
pub fn staged_kubernetes_policy(
    k: &StagedKubernetesNetworkPolicySpec,
) -> Result<Converted, (String, String)> {
    let mut out = convert(&k.pod_selector, &k.rules)?;
    out.spec.staged_action.clone_from(&k.staged_action);
    Ok(out)
}

fn convert(pods: &LabelSelector, rules: &KubeRules) -> Result<Converted, (String, String)> {
    let selector = selector::pods(pods).map_err(|e| ("spec.podSelector".to_owned(), e))?;
    let ingress = rules.ingress.as_deref().unwrap_or_default();
    let egress = rules.egress.as_deref().unwrap_or_default();
    let mut types = rules.policy_types.clone();
    if types.is_empty() {
        types.push("Ingress".into());
        if !egress.is_empty() {
            types.push("Egress".into());
        }
    }
    let mut out = Converted {
        spec: PolicySpec {
            tier: DEFAULT_TIER.into(),
            order: Some(NETWORK_POLICY_ORDER),
            selector,
            types,
            ..PolicySpec::default()
        },
        ..Converted::default()
    };
    for (i, t) in rules.policy_types.iter().enumerate() {
        if !matches!(t.as_str(), "Ingress" | "Egress") {
            let meant = crate::suggest::closest(t, ["Ingress", "Egress"]);
            let hint = meant.map(|m| format!("; did you mean {m}?")).unwrap_or_default();
            let reason = format!("expected Ingress or Egress, found {t:?}{hint}");
            out.problems.push((format!("spec.policyTypes[{i}]"), reason));
            out.broken = true;
        }
    }
    for (i, r) in (0u32..).zip(ingress) {
        match rule(&r.from, &r.ports, false) {
            Ok(made) => {
                out.ingress_from.extend(made.iter().map(|_| i));
                out.spec.ingress.extend(made);
            }
            Err((field, reason)) => {
                let field = field.replace("peers", "from");
                out.problems.push((format!("spec.ingress[{i}].{field}"), reason));
            }
        }
    }
    for (i, r) in (0u32..).zip(egress) {
        match rule(&r.to, &r.ports, true) {
            Ok(made) => {
                out.egress_from.extend(made.iter().map(|_| i));
                out.spec.egress.extend(made);
            }
            Err((field, reason)) => {
                let field = field.replace("peers", "to");
                out.problems.push((format!("spec.egress[{i}].{field}"), reason));
            }
        }
    }
    Ok(out)
}

/// One rule per protocol and peer.
fn rule(peers: &[KubePeer], ports: &[KubePort], egress: bool) -> Result<Vec<Rule>, (String, String)> {
    let mut entities = Vec::new();
    for (i, p) in peers.iter().enumerate() {
        entities.push(peer(p).map_err(|e| (format!("peers[{i}]"), e))?);
    }
    if peers.is_empty() {
        entities.push(EntityRule::default());
    }
    let mut by_protocol = ByProtocol::new();
    for (i, p) in ports.iter().enumerate() {
        let (protocol, one) = port(p).map_err(|e| (format!("ports[{i}]"), e))?;
        by_protocol.entry(Some(protocol)).or_default().push(one);
    }
    let protocols: Vec<(Option<String>, Vec<IntOrString>)> = match ports {
        [] => vec![(None, Vec::new())],
        _ => by_protocol.into_iter().map(|(protocol, ports)| (protocol, joined(&ports))).collect(),
    };
    let mut out = Vec::new();
    for (protocol, ports) in &protocols {
        for peer in &entities {
            let (mut source, mut destination) = match egress {
                false => (peer.clone(), EntityRule::default()),
                true => (EntityRule::default(), peer.clone()),
            };
            source.ports.clear();
            destination.ports.clone_from(ports);
            out.push(Rule {
                action: "Allow".into(),
                protocol: protocol.clone().map(IntOrString::Text),
                source,
                destination,
                ..Rule::default()
            });
        }
    }
    Ok(out)
}

fn peer(p: &KubePeer) -> Result<EntityRule, String> {
    match (p, &p.ip_block) {
        (KubePeer { pod_selector: None, namespace_selector: None, .. }, Some(block)) => {
            let net = |s: &str| s.parse::<ipnet::IpNet>().map_err(|_| format!("{s:?}: expected a CIDR"));
            let whole = net(&block.cidr)?;
            for except in &block.except {
                if !whole.contains(&net(except)?) {
                    return Err(format!("except {except}: lies outside of cidr {}", block.cidr));
                }
            }
            Ok(EntityRule {
                nets: vec![block.cidr.clone()],
                not_nets: block.except.clone(),
                ..EntityRule::default()
            })
        }
        (_, Some(_)) => Err("ipBlock stands alone, without podSelector and namespaceSelector".into()),
        (KubePeer { pod_selector: None, namespace_selector: None, .. }, None) => {
            Err("expected podSelector, namespaceSelector or ipBlock".into())
        }
        _ => Ok(EntityRule {
            selector: selector::pods(p.pod_selector.as_ref().unwrap_or(&LabelSelector::default()))?,
            namespace_selector: match &p.namespace_selector {
                Some(ns) => selector::namespaces(ns)?,
                None => String::new(),
            },
            ..EntityRule::default()
        }),
    }
}

fn port(p: &KubePort) -> Result<(String, One), String> {
    let protocol = match p.protocol.as_deref() {
        None | Some("") => "TCP",
        Some(known @ ("TCP" | "UDP" | "SCTP")) => known,
        Some(other) => return Err(format!("protocol {other:?}: expected TCP, UDP or SCTP")),
    };
    let number = |n: i64| range(n, p.end_port.unwrap_or(n));
    let one = match &p.port {
        None if p.end_port.is_some() => return Err("endPort needs port".into()),
        None => One::All,
        Some(IntOrString::Int(n)) => number(*n)?,
        Some(IntOrString::Text(t)) => match t.parse::<i64>() {
            Ok(n) => number(n)?,
            Err(_) if p.end_port.is_some() => return Err("endPort needs a number as port".into()),
            Err(_) if t.is_empty() => return Err("the name of a port is empty".into()),
            Err(_) => One::Named(t.clone()),
        },
    };
    Ok((protocol.to_owned(), one))
}
