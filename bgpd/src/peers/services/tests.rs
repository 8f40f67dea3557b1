//! The rules as a table, and that what is kept step by step is what a fresh look would find.

use brindle_config_core::{
    key::Kind,
    store::{Entry, Revision, SyncEvent},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::peers::{ClusterState, translate};

const ME: &str = "a";

fn entry(kind: Kind, name: &str, value: Value) -> Entry {
    let namespace = kind.namespaced().then_some("shop");
    Entry { key: Key::new(kind, namespace, name), revision: Revision(1), value: value.into() }
}

fn config(aggregation: &str, annotation: Option<&str>) -> Entry {
    let mut value = json!({"apiVersion": "projectcalico.org/v3", "kind": "BGPConfiguration",
    "metadata": {"name": "default"}, "spec": {
        "serviceClusterIPs": [{"cidr": "10.96.0.0/16"}, {"cidr": "fd00:96::/112"}],
        "serviceExternalIPs": [{"cidr": "192.0.2.7/32"}],
        "serviceLoadBalancerIPs": [{"cidr": "198.51.100.0/24"}, {"cidr": "2001:db8:100::/64"}],
        "serviceLoadBalancerAggregation": aggregation}});
    if let Some(selector) = annotation {
        value["metadata"]["annotations"] = json!({SELECTOR_ANNOTATION: selector});
    }
    entry(Kind::BgpConfiguration, "default", value)
}

fn node(labels: Value) -> Entry {
    let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "Node",
        "metadata": {"name": ME, "labels": labels}, "spec": {"bgp": {"ipv4Address": "10.0.0.1/24"}}});
    entry(Kind::Node, ME, value)
}

fn service(name: &str, n: u8, external: &str, internal: &str) -> Entry {
    let value = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "labels": {"tier": name}},
        "spec": {"type": "LoadBalancer", "clusterIP": format!("10.96.0.{n}"),
            "clusterIPs": [format!("10.96.0.{n}"), format!("fd00:96::{n}")],
            "externalIPs": ["192.0.2.7", "203.0.113.1"],
            "externalTrafficPolicy": external, "internalTrafficPolicy": internal},
        "status": {"loadBalancer": {"ingress": [{"ip": format!("198.51.100.{n}")}]}}});
    entry(Kind::Service, name, value)
}

/// `endpoints`: node, ready, serving, terminating.
fn slice(name: &str, service: &str, family: &str, endpoints: &[(&str, bool, bool, bool)]) -> Entry {
    let address = if family == "IPv4" { "10.1.0.1" } else { "fd00:1::1" };
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(node, ready, serving, terminating)| {
            json!({"addresses": [address], "nodeName": node,
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
        })
        .collect();
    let value = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "spec": {},
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
        "addressType": family, "endpoints": endpoints});
    entry(Kind::EndpointSlice, name, value)
}

fn cluster(entries: impl IntoIterator<Item = Entry>) -> ClusterState {
    let mut state = ClusterState::new(ME);
    for e in entries {
        state.apply(&SyncEvent::Upsert(e));
    }
    state
}

fn announced(state: &ClusterState) -> Vec<String> {
    let plan = translate(state);
    let routes: Vec<String> = plan.routes.iter().map(|r| r.prefix.to_string()).collect();
    let mut said: Vec<String> =
        plan.services.iter().filter(|v| v.why.announces()).map(|v| v.prefix.to_string()).collect();
    said.dedup();
    assert_eq!(routes, said, "what is announced and what is said about it");
    routes
}

const RANGES: [&str; 4] = ["10.96.0.0/16", "198.51.100.0/24", "2001:db8:100::/64", "fd00:96::/112"];

fn ranges_and(more: &[&str]) -> Vec<String> {
    let mut all: Vec<IpNet> = RANGES.iter().chain(more).map(|t| t.parse().expect(t)).collect();
    all.sort();
    all.iter().map(ToString::to_string).collect()
}

const HERE: (&str, bool, bool, bool) = ("a", true, true, false);
const THERE: (&str, bool, bool, bool) = ("b", true, true, false);

#[test]
fn ranges_and_single_addresses_follow_policy_aggregation_and_endpoints() {
    let single = ["10.96.0.5/32", "192.0.2.7/32", "198.51.100.5/32"];
    let dead = ("a", false, false, true);
    let ends = ("a", false, true, true);
    let starts = ("a", false, false, false);
    for (case, external, internal, endpoints, want) in [
        ("cluster policy: only what no range covers", "Cluster", "Cluster", &[THERE][..], &single[1..2]),
        ("cluster policy, nobody there", "Cluster", "Cluster", &[], &[]),
        ("local policy, one here", "Local", "Cluster", &[HERE, THERE], &single),
        ("local policy, one elsewhere", "Local", "Cluster", &[THERE], &[]),
        ("local for cluster addresses alone", "Cluster", "Local", &[HERE], &single[..2]),
        ("not ready yet", "Local", "Cluster", &[starts], &[]),
        ("ends and answers, nobody else", "Local", "Cluster", &[ends], &single),
        ("ends and answers, another is ready", "Local", "Cluster", &[ends, THERE], &[]),
        ("ends and does not answer", "Local", "Cluster", &[dead], &[]),
    ] {
        let state = cluster([
            config("Enabled", None),
            node(json!({})),
            service("web", 5, external, internal),
            slice("web-1", "web", "IPv4", endpoints),
        ]);
        assert_eq!(announced(&state), ranges_and(want), "{case}");
    }
}

#[test]
fn without_aggregation_each_service_stands_for_itself() {
    let of = |aggregation, annotation, labels, endpoints: &[_]| {
        announced(&cluster([
            config(aggregation, annotation),
            node(labels),
            service("web", 5, "Cluster", "Cluster"),
            slice("web-1", "web", "IPv4", endpoints),
        ]))
    };
    let singly = ["10.96.0.0/16", "192.0.2.7/32", "198.51.100.5/32", "fd00:96::/112"];
    assert_eq!(of("Disabled", None, json!({}), &[THERE]), singly);
    assert_eq!(of("Disabled", None, json!({}), &[]), ["10.96.0.0/16", "fd00:96::/112"]);
    let chosen = ["10.96.0.5/32", "192.0.2.7/32", "198.51.100.5/32"];
    assert_eq!(of("Enabled", Some("tier == 'web'"), json!({}), &[THERE]), ranges_and(&chosen));
    assert_eq!(of("Enabled", Some("tier == 'db'"), json!({}), &[THERE]), ranges_and(&chosen[1..2]));
    assert_eq!(of("Enabled", None, json!({EXCLUDE_LABEL: "true"}), &[HERE]), ranges_and(&[]));
}

#[test]
fn families_need_endpoints_of_their_own() {
    let state = cluster([
        config("Enabled", None),
        node(json!({})),
        service("web", 5, "Local", "Local"),
        slice("web-6", "web", "IPv6", &[HERE]),
        slice("web-4", "web", "IPv4", &[THERE]),
    ]);
    assert_eq!(announced(&state), ranges_and(&["fd00:96::5/128"]));
}

#[test]
fn every_address_has_its_reason() {
    let state = cluster([
        config("Enabled", Some("oops ==")),
        node(json!({})),
        service("api", 6, "Cluster", "Cluster"),
        service("web", 5, "Local", "Cluster"),
        slice("web-1", "web", "IPv4", &[("b", true, true, false)]),
    ]);
    let plan = translate(&state);
    let said: String = plan
        .services
        .iter()
        .map(|v| {
            let whose = v.service.as_ref().map_or_else(|| "-".into(), ToString::to_string);
            let mark = if v.why.announces() { '+' } else { '-' };
            format!("{mark} {} {} {whose}: {v}\n", v.prefix, v.source)
        })
        .collect();
    insta::assert_snapshot!(said);
    assert_eq!(plan.problems.len(), 1, "{:?}", plan.problems);
    assert!(plan.problems[0].what.contains(SELECTOR_ANNOTATION), "{:?}", plan.problems);
}

#[test]
fn what_matters_not_makes_no_new_plan() {
    let mut state =
        cluster([config("Enabled", None), node(json!({})), service("web", 5, "Local", "Cluster")]);
    let mut tell = |e: Entry| state.apply(&SyncEvent::Upsert(e));
    assert!(tell(slice("web-1", "web", "IPv4", &[HERE])));
    assert!(!tell(slice("web-1", "web", "IPv4", &[HERE, HERE])), "one more of the same");
    assert!(!tell(slice("web-2", "web", "IPv4", &[THERE])), "ready anywhere is known already");
    assert!(!tell(slice("web-1", "web", "IPv4", &[HERE])));
    assert!(tell(slice("web-1", "web", "IPv4", &[THERE])), "the last one here is gone");
    let headless = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "h", "namespace": "shop"},
        "spec": {"clusterIP": "None"}});
    assert!(!tell(entry(Kind::Service, "h", headless)));
}

#[test]
fn what_does_not_decode_is_named_and_the_last_good_text_stays() {
    let mut state = cluster([
        config("Enabled", None),
        node(json!({})),
        service("web", 5, "Local", "Cluster"),
        slice("web-1", "web", "IPv4", &[HERE]),
    ]);
    let before = announced(&state);
    let mut bad = slice("web-1", "web", "IPv4", &[HERE]);
    let mut value = (*bad.value).clone();
    value["endpoints"] = json!([{"addresses": 5}]);
    bad.value = value.into();
    assert!(state.apply(&SyncEvent::Upsert(bad)));
    assert_eq!(announced(&state), before);
    let problems = translate(&state).problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].to_string().starts_with("EndpointSlice(shop/web-1): "), "{problems:?}");
    assert!(state.forget_services());
    assert_eq!(translate(&state).problems, []);
}

fn arb_entry() -> impl Strategy<Value = Entry> {
    let policy = prop::sample::select(vec!["Cluster", "Local"]);
    let endpoint = (prop::sample::select(vec!["a", "b"]), any::<bool>(), any::<bool>(), any::<bool>());
    prop_oneof![
        2 => (prop::sample::select(vec!["web", "api"]), 1u8..4, policy.clone(), policy)
            .prop_map(|(name, n, e, i)| service(name, n, e, i)),
        5 => (
            prop::sample::select(vec!["s1", "s2", "s3"]),
            prop::sample::select(vec!["web", "api", "other"]),
            prop::sample::select(vec!["IPv4", "IPv6", "FQDN"]),
            prop::collection::vec(endpoint, 0..3),
        )
            .prop_map(|(name, service, family, ends)| slice(name, service, family, &ends)),
        1 => (prop::sample::select(vec!["Enabled", "Disabled"]), prop::option::of(Just("tier == 'web'")))
            .prop_map(|(aggregation, annotation)| config(aggregation, annotation)),
        1 => any::<bool>().prop_map(|out| node(json!({EXCLUDE_LABEL: out.to_string()}))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Events in any order lead to the state that the last object of each key makes alone, and an event that is said
    /// to change nothing changes nothing.
    #[test]
    fn kept_step_by_step_is_the_same_as_from_scratch(
        events in prop::collection::vec((arb_entry(), prop::bool::weighted(0.2)), 1..40),
    ) {
        let mut kept = ClusterState::new(ME);
        let mut last = std::collections::BTreeMap::new();
        for (e, gone) in events {
            let before = translate(&kept);
            let changed = if gone {
                last.remove(&e.key);
                kept.apply(&SyncEvent::Delete(e.key))
            } else {
                last.insert(e.key.clone(), e.clone());
                kept.apply(&SyncEvent::Upsert(e))
            };
            let now = translate(&kept);
            prop_assert!(changed || now == before, "a change without a word");
            prop_assert_eq!(&now, &translate(&cluster(last.values().cloned())));
        }
    }
}
