//! Tables: Kubernetes objects in, Calico's form out.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

fn knp(spec: Value) -> Converted {
    kubernetes_policy(&serde_json::from_value(spec).expect("a spec")).expect("converts")
}

fn shown(c: &Converted) -> String {
    let spec = serde_json::to_value(&c.spec).expect("plain data");
    let mut out = String::new();
    for (list, from) in [("ingress", &c.ingress_from), ("egress", &c.egress_from)] {
        let rules = spec.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
        assert_eq!(rules.len(), from.len());
        for (r, from) in rules.iter().zip(from) {
            out.push_str(&format!("{list}[{from}] {r}\n"));
        }
    }
    let head = &c.spec;
    let problems: Vec<String> = c.problems.iter().map(|(f, r)| format!("! {f}: {r}\n")).collect();
    format!(
        "{} {:?} {} | {} {:?}\n{out}{}",
        head.tier,
        head.order,
        head.selector,
        head.namespace_selector,
        head.types,
        problems.concat()
    )
}

#[test]
fn kubernetes_network_policies() {
    let mut out = String::new();
    for spec in [
        json!({"podSelector": {}}),
        json!({"podSelector": {"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["x", "y"]}, {"key": "d", "operator": "DoesNotExist"}]},
            "policyTypes": ["Egress"]}),
        json!({"podSelector": {}, "ingress": [{}]}),
        json!({"podSelector": {}, "egress": [{"to": [{"namespaceSelector": {}}]}]}),
        json!({"podSelector": {}, "ingress": [{"from": [
            {"podSelector": {"matchLabels": {"app": "web"}}},
            {"namespaceSelector": {"matchLabels": {"team": "a"}}, "podSelector": {}},
            {"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.0/28"]}}],
            "ports": [{"port": 80}, {"port": 81}, {"port": 85, "endPort": 90}, {"port": "http"},
                      {"protocol": "SCTP"}]}]}),
        json!({"podSelector": {}, "ingress": [
            {"ports": [{"port": 90, "endPort": 80}]}, {"ports": [{"port": 70_000}]},
            {"ports": [{"protocol": "ICMP"}]}, {"from": [{}]}, {"ports": [{"port": "x", "endPort": 5}]},
            {"from": [{"ipBlock": {"cidr": "nonsense"}}]}, {"from": [{"podSelector": {}}]}]}),
    ] {
        out.push_str(&shown(&knp(spec)));
        out.push('\n');
    }
    insta::assert_snapshot!(out);
}

#[test]
fn cluster_wide_policies() {
    let mut out = String::new();
    for (kind, spec) in [
        (
            ClusterKind::Cluster,
            json!({"tier": "Admin", "priority": 5, "subject": {"namespaces": {}}, "ingress": [
            {"name": "from monitoring", "action": "Accept", "from": [
                {"namespaces": {"matchLabels": {"role": "mon"}}},
                {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": "b"}}}}],
             "protocols": [{"tcp": {"destinationPort": {"number": 80}}}, {"udp": {}},
                           {"destinationNamedPort": "web"},
                           {"tcp": {"destinationPort": {"range": {"start": 81, "end": 90}}}}]},
            {"action": "Pass", "from": [{"namespaces": {}}]}]}),
        ),
        (
            ClusterKind::Cluster,
            json!({"tier": "Baseline", "priority": 7, "subject": {"pods": {
            "podSelector": {"matchLabels": {"x": "y"}}}}, "egress": [
            {"action": "Deny", "to": [{"networks": ["10.0.0.0/8", "fd00::/8"]}]},
            {"action": "Deny", "to": [{"nodes": {}}]},
            {"action": "Accept", "to": [{"domainNames": ["example.org"]}]},
            {"action": "Drop", "to": [{"networks": ["10.0.0.0/8"]}]}]}),
        ),
        (
            ClusterKind::Admin,
            json!({"priority": 3, "subject": {"namespaces": {}}, "ingress": [
            {"action": "Allow", "from": [{"namespaces": {}}], "ports": [
                {"portNumber": {"protocol": "UDP", "port": 53}}, {"portRange": {"start": 5, "end": 9}}]}]}),
        ),
        (
            ClusterKind::Baseline,
            json!({"subject": {"namespaces": {}}, "ingress": [
            {"action": "Pass", "from": [{"namespaces": {}}]}]}),
        ),
    ] {
        let spec = serde_json::from_value(spec).expect("a spec");
        out.push_str(&shown(&cluster_policy(kind, &spec).expect("converts")));
        out.push('\n');
    }
    insta::assert_snapshot!(out);
    let bad = serde_json::from_value(json!({"tier": "Other", "priority": 1, "subject": {"namespaces": {}}}));
    let e = cluster_policy(ClusterKind::Cluster, &bad.expect("a spec")).expect_err("no tier");
    assert_eq!(e.0, "spec.tier");
}

#[test]
fn namespaces_and_accounts_become_profiles() {
    let own = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
    let ns = namespace_profile("shop", &own);
    assert_eq!(ns.labels_to_apply["pcns.team"], "a");
    assert_eq!(ns.labels_to_apply["pcns.projectcalico.org/name"], "shop");
    assert_eq!(ns.labels_to_apply["pcns.kubernetes.io/metadata.name"], "shop");
    assert_eq!((ns.ingress.len(), ns.egress.len()), (1, 1));
    let account = service_account_profile("robot", &own);
    assert_eq!(account.labels_to_apply["pcsa.team"], "a");
    assert!(account.ingress.is_empty() && account.egress.is_empty());
    assert_eq!(namespace_profile_name("shop"), "kns.shop");
    assert_eq!(service_account_profile_name("shop", "robot"), "ksa.shop.robot");
}
