//! Host endpoints of nodes: what is made, changed, deleted, and left alone.

use std::{sync::Arc, time::Duration};

use brindle_config_core::{store::Revision, time::Now};
use serde_json::json;

use super::*;
use crate::plan::{AssignIps, Graces, Planner};

fn entry(kind: Kind, value: Value) -> Entry {
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    Entry { key: Key::new(kind, None, &name), revision: Revision(7), value: Arc::new(value) }
}

fn node(name: &str, labels: Value, spec: Value) -> Entry {
    entry(
        Kind::Node,
        json!({"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": name, "labels": labels},
            "spec": spec}),
    )
}

fn two_nodes() -> Vec<Entry> {
    vec![
        node(
            "a",
            json!({"role": "front"}),
            json!({"bgp": {"ipv4Address": "192.0.2.1/24", "ipv6Address": "2001:db8::1/64",
                "ipv4IPIPTunnelAddr": "10.0.0.1"}, "ipv4VXLANTunnelAddr": "10.0.1.1",
                "addresses": [{"address": "192.0.2.1/24", "type": "CalicoNodeIP"},
                    {"address": "192.0.2.1", "type": "InternalIP"}, {"address": "198.51.100.1", "type": "InternalIP"},
                    {"address": "203.0.113.1", "type": "ExternalIP"}],
                "wireguard": {"interfaceIPv4Address": "10.0.2.1"},
                "interfaces": [{"name": "eth0", "addresses": ["192.0.2.1"]},
                    {"name": "eth1", "addresses": ["198.51.100.9"]}, {"name": "lo", "addresses": []}]}),
        ),
        node("b", json!({}), json!({"bgp": {"ipv4Address": "192.0.2.2/24"}})),
    ]
}

fn auto(value: Value) -> AutoHostEndpointSpec {
    serde_json::from_value(value).unwrap()
}

fn planner(auto: Option<AutoHostEndpointSpec>) -> Planner {
    let minute = Duration::from_secs(60);
    Planner::new(Rules {
        controllers: [Controller::HostEndpoint].into(),
        graces: Graces { leak: minute, node: minute, repair: minute },
        assign_ips: AssignIps::All,
        drop_endpoints: true,
        host_endpoints: auto,
        careful_with_names: true,
    })
}

/// What a plan does, in lines; and the listing after it.
fn carried_out(planner: &mut Planner, mut entries: Vec<Entry>, now: u64) -> (String, Vec<Entry>) {
    let plan = planner.plan(&Facts::read(entries.clone()), Now::from_secs(now));
    let mut shown = String::new();
    for problem in &plan.problems {
        shown += &format!("! {problem}\n");
    }
    for (_, what, _) in &plan.waiting {
        shown += &format!("waits: {what}\n");
    }
    for planned in &plan.actions {
        shown += &format!("{}: {}\n", planned.action, planned.why);
        match &planned.action {
            Action::PutHostEndpoint { key, resource, .. } => {
                brindle_config_core::validate::resource(&resource.clone().into()).unwrap();
                let value = serde_json::to_value(resource).unwrap();
                shown += &format!("  {} {}\n", value["metadata"], value["spec"]);
                entries.retain(|e| e.key != *key);
                entries.push(entry(Kind::HostEndpoint, value));
            }
            Action::DropHostEndpoint { key, .. } => entries.retain(|e| e.key != *key),
            other => panic!("{other}"),
        }
    }
    (shown, entries)
}

fn on() -> AutoHostEndpointSpec {
    auto(json!({"autoCreate": "Enabled"}))
}

#[test]
fn each_node_gets_one_for_all_its_interfaces() {
    let mut planner = planner(Some(on()));
    let (made, entries) = carried_out(&mut planner, two_nodes(), 0);
    insta::assert_snapshot!(made);
    assert_eq!(carried_out(&mut planner, entries, 1).0, "", "a second look finds nothing to do");
}

#[test]
fn templates_make_one_for_addresses_or_for_interfaces() {
    let mut planner = planner(Some(auto(
        json!({"autoCreate": "Enabled", "createDefaultHostEndpoint": "Disabled",
        "templates": [
            {"generateName": "public", "interfaceCIDRs": ["198.51.100.0/24"], "labels": {"role": "edge", "zone": "z"},
                "annotations": {"note": "n"}},
            {"generateName": "nics", "nodeSelector": "role == 'front'", "interfacePattern": "^eth",
                "interfaceCIDRs": ["10.0.0.0/16"]},
            {"generateName": "nobody", "nodeSelector": "role == 'back'", "interfacePattern": ".*"}]}),
    )));
    let (made, entries) = carried_out(&mut planner, two_nodes(), 0);
    insta::assert_snapshot!(made);
    assert_eq!(carried_out(&mut planner, entries, 1).0, "");
}

#[test]
fn they_follow_their_node_and_go_with_it() {
    let mut planner = planner(Some(on()));
    let (_, mut entries) = carried_out(&mut planner, two_nodes(), 0);
    // One without profiles and with a label too many, and one a person wrote.
    for e in entries.iter_mut().filter(|e| e.key.name == "b-auto-hep") {
        let mut value = (*e.value).clone();
        value["metadata"]["labels"]["other"] = "x".into();
        value["metadata"]["annotations"] = json!({"kept": "yes"});
        value["spec"]["profiles"] = json!([]);
        e.value = Arc::new(value);
    }
    entries.push(entry(
        Kind::HostEndpoint,
        json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint", "metadata": {"name": "mine"},
            "spec": {"node": "gone", "interfaceName": "eth0"}}),
    ));
    entries.retain(|e| e.key != Key::new(Kind::Node, None, "a"));
    let (first, entries) = carried_out(&mut planner, entries, 10);
    let (then, entries) = carried_out(&mut planner, entries, 100);
    assert!(entries.iter().any(|e| e.key.name == "mine"));
    insta::assert_snapshot!(first + "---\n" + &then);
}

#[test]
fn they_go_when_switched_off_and_stay_while_nobody_has_said() {
    let (_, entries) = carried_out(&mut planner(Some(on())), two_nodes(), 0);
    assert_eq!(carried_out(&mut planner(None), entries.clone(), 1).0, "");
    let (off, entries) = carried_out(&mut planner(Some(auto(json!({})))), entries, 2);
    insta::assert_snapshot!(off);
    assert!(!entries.iter().any(|e| e.key.kind == Kind::HostEndpoint));
}

#[test]
fn what_cannot_be_read_takes_nothing_away() {
    let with = |pattern: &str| {
        auto(json!({"autoCreate": "Enabled", "createDefaultHostEndpoint": "Disabled",
            "templates": [{"generateName": "nics", "interfacePattern": pattern}]}))
    };
    let (_, mut entries) = carried_out(&mut planner(Some(with("eth0"))), two_nodes(), 0);
    let (said, _) = carried_out(&mut planner(Some(with("eth(0"))), entries.clone(), 1);
    assert!(
        said.starts_with("! ") && said.contains("interfacePattern") && said.lines().count() == 1,
        "{said}"
    );
    entries.iter_mut().filter(|e| e.key.kind == Kind::Node).for_each(|e| {
        e.value = Arc::new(json!({"metadata": {"name": e.key.name}, "spec": {"bgp": 7}}));
    });
    let (said, _) = carried_out(&mut planner(Some(with("eth0"))), entries, 2);
    assert!(said.lines().all(|l| l.starts_with("! ")) && said.contains("stay as they are"), "{said}");
}

#[test]
fn a_persons_one_of_that_name_is_left_alone() {
    let mut entries = two_nodes();
    entries.push(entry(
        Kind::HostEndpoint,
        json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint", "metadata": {"name": "b-auto-hep"},
            "spec": {"node": "b", "interfaceName": "eth0"}}),
    ));
    let (said, _) = carried_out(&mut planner(Some(on())), entries, 0);
    assert!(said.contains("! HostEndpoint(b-auto-hep) has the name of a node's"), "{said}");
    assert!(!said.contains("change HostEndpoint(b-auto-hep)"), "{said}");
}
