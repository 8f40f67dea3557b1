//! Fields inside of Kubernetes' policies that the model does not know, each with the path of the object that holds it: a
//! misspelt one makes a rule wider than it was meant.

use super::{
    AdminPort, ClusterPeer, ClusterPolicySpec, ClusterPorts, ClusterProtocol, KubePeer, KubePort, KubeRules,
    LabelSelector,
};
use crate::meta::Extra;

type Found<'a> = Vec<(String, &'a Extra)>;

/// Of a NetworkPolicy, plain or staged.
pub(crate) fn in_network_policy<'a>(pods: &'a LabelSelector, rules: &'a KubeRules) -> Found<'a> {
    let mut out = vec![(String::new(), &rules.extra)];
    selector("podSelector", pods, &mut out);
    for (i, r) in rules.ingress.iter().flatten().enumerate() {
        network_rule(&format!("ingress[{i}]"), ("from", &r.from), &r.ports, &r.extra, &mut out);
    }
    for (i, r) in rules.egress.iter().flatten().enumerate() {
        network_rule(&format!("egress[{i}]"), ("to", &r.to), &r.ports, &r.extra, &mut out);
    }
    out
}

fn selector<'a>(at: &str, s: &'a LabelSelector, out: &mut Found<'a>) {
    out.push((at.to_owned(), &s.extra));
    for (i, e) in s.match_expressions.iter().enumerate() {
        out.push((format!("{at}.matchExpressions[{i}]"), &e.extra));
    }
}

fn network_rule<'a>(
    at: &str,
    (list, peers): (&str, &'a [KubePeer]),
    ports: &'a [KubePort],
    extra: &'a Extra,
    out: &mut Found<'a>,
) {
    out.push((at.to_owned(), extra));
    for (i, p) in peers.iter().enumerate() {
        let at = format!("{at}.{list}[{i}]");
        for (name, s) in [("podSelector", &p.pod_selector), ("namespaceSelector", &p.namespace_selector)] {
            if let Some(s) = s {
                selector(&format!("{at}.{name}"), s, out);
            }
        }
        out.extend(p.ip_block.iter().map(|b| (format!("{at}.ipBlock"), &b.extra)));
        out.push((at, &p.extra));
    }
    out.extend(ports.iter().enumerate().map(|(i, p)| (format!("{at}.ports[{i}]"), &p.extra)));
}

/// Of a ClusterNetworkPolicy or one of its predecessors.
pub(crate) fn in_cluster_policy(spec: &ClusterPolicySpec) -> Found<'_> {
    let mut out = vec![(String::new(), &spec.extra)];
    cluster_peer("subject".into(), &spec.subject, &mut out);
    for (name, rules) in [("ingress", &spec.ingress), ("egress", &spec.egress)] {
        for (i, r) in rules.iter().enumerate() {
            let at = format!("{name}[{i}]");
            for (list, peers) in [("from", &r.from), ("to", &r.to)] {
                for (j, p) in peers.iter().enumerate() {
                    cluster_peer(format!("{at}.{list}[{j}]"), p, &mut out);
                }
            }
            for (j, p) in r.protocols.iter().enumerate() {
                cluster_protocol(format!("{at}.protocols[{j}]"), p, &mut out);
            }
            for (j, p) in r.ports.iter().enumerate() {
                admin_port(format!("{at}.ports[{j}]"), p, &mut out);
            }
            out.push((at, &r.extra));
        }
    }
    out
}

fn cluster_peer<'a>(at: String, p: &'a ClusterPeer, out: &mut Found<'a>) {
    if let Some(ns) = &p.namespaces {
        selector(&format!("{at}.namespaces"), ns, out);
    }
    if let Some(pods) = &p.pods {
        selector(&format!("{at}.pods.namespaceSelector"), &pods.namespace_selector, out);
        selector(&format!("{at}.pods.podSelector"), &pods.pod_selector, out);
        out.push((format!("{at}.pods"), &pods.extra));
    }
    out.push((at, &p.extra));
}

fn cluster_protocol<'a>(at: String, p: &'a ClusterProtocol, out: &mut Found<'a>) {
    let mut ports = |name: &str, ports: &'a ClusterPorts| {
        let at = format!("{at}.{name}");
        if let Some(port) = &ports.destination_port {
            out.extend(port.range.iter().map(|r| (format!("{at}.destinationPort.range"), &r.extra)));
            out.push((format!("{at}.destinationPort"), &port.extra));
        }
        out.push((at, &ports.extra));
    };
    for (name, of) in [("tcp", &p.tcp), ("udp", &p.udp), ("sctp", &p.sctp)] {
        if let Some(of) = of {
            ports(name, of);
        }
    }
    out.push((at, &p.extra));
}

fn admin_port<'a>(at: String, p: &'a AdminPort, out: &mut Found<'a>) {
    out.extend(p.port_number.iter().map(|n| (format!("{at}.portNumber"), &n.extra)));
    out.extend(p.port_range.iter().map(|r| (format!("{at}.portRange"), &r.extra)));
    out.push((at, &p.extra));
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{AnyResource, Kind, fields};

    /// Unknown fields, and what was meant.
    fn unknown(kind: Kind, spec: Value) -> Vec<(String, Option<String>)> {
        let (api, written) = kind.written();
        let value = json!({"apiVersion": api, "kind": written, "metadata": {"name": "p", "namespace": "n"}, "spec": spec});
        let resource = AnyResource::from_value(kind, &value).expect("the types are right");
        let extras = resource.extras();
        let all = extras.iter().flat_map(|(at, extra)| extra.keys().map(move |k| format!("{at}.{k}")));
        all.map(|path| match fields::lookup(kind, &path) {
            fields::Known::No { meant } => (path, meant),
            fields::Known::Yes => (path, None),
        })
        .collect()
    }

    #[track_caller]
    fn meant(kind: Kind, spec: Value, path: &str, name: Option<&str>) {
        assert_eq!(unknown(kind, spec), [(path.to_owned(), name.map(str::to_owned))]);
    }

    #[test]
    fn misspelt_fields_are_found_wherever_they_are() {
        let k = Kind::KubernetesNetworkPolicy;
        let from = |peer: Value| json!({"podSelector": {}, "ingress": [{}, {"from": [peer]}]});
        meant(k, json!({"podSelector": {}, "ingress": [{"form": []}]}), "spec.ingress[0].form", Some("from"));
        meant(
            k,
            json!({"podSelector": {"matchLabel": {}}}),
            "spec.podSelector.matchLabel",
            Some("matchLabels"),
        );
        meant(
            k,
            json!({"podSelector": {}, "egress": [{"ports": [{"prot": "UDP"}]}]}),
            "spec.egress[0].ports[0].prot",
            Some("port"),
        );
        meant(
            k,
            from(json!({"ipBlock": {"cidr": "10.0.0.0/8", "exept": []}})),
            "spec.ingress[1].from[0].ipBlock.exept",
            Some("except"),
        );
        meant(
            k,
            from(
                json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "value": []}]}}),
            ),
            "spec.ingress[1].from[0].namespaceSelector.matchExpressions[0].value",
            Some("values"),
        );
        let c = Kind::ClusterNetworkPolicy;
        let rule = |rule: Value| json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": [rule]});
        meant(
            c,
            rule(json!({"action": "Deny", "protocol": []})),
            "spec.ingress[0].protocol",
            Some("protocols"),
        );
        meant(
            c,
            rule(json!({"action": "Deny", "protocols": [{"tcp": {"destinationPorts": {}}}]})),
            "spec.ingress[0].protocols[0].tcp.destinationPorts",
            Some("destinationPort"),
        );
        meant(
            c,
            json!({"tier": "Admin", "priority": 1, "subject": {"pods": {"podSelectr": {}}}}),
            "spec.subject.pods.podSelectr",
            Some("podSelector"),
        );
        meant(
            Kind::AdminNetworkPolicy,
            json!({"priority": 1, "subject": {"namespaces": {}},
                "egress": [{"action": "Deny", "ports": [{"portNumber": {"prot": "UDP", "port": 53}}]}]}),
            "spec.egress[0].ports[0].portNumber.prot",
            Some("port"),
        );
        meant(
            Kind::StagedKubernetesNetworkPolicy,
            json!({"podSelector": {}, "egress": [{"too": []}]}),
            "spec.egress[0].too",
            Some("to"),
        );
    }
}
