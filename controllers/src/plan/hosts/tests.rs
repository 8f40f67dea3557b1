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

/// Carried out until nothing is left to do, with the lines of each look; at no time may two stand for one interface or two
/// without `interfaceName` be on one node.
fn to_the_end(planner: &mut Planner, mut entries: Vec<Entry>) -> (String, Vec<Entry>) {
    let mut shown = String::new();
    for round in 0..5 {
        let plan = planner.plan(&Facts::read(entries.clone()), Now::from_secs(round));
        if plan.actions.is_empty() {
            plan.problems.iter().for_each(|p| shown += &format!("! {p}\n"));
            return (shown, entries);
        }
        for planned in &plan.actions {
            shown += &format!("{}: {}\n", planned.action, planned.why);
            match &planned.action {
                Action::PutHostEndpoint { key, resource, .. } => {
                    entries.retain(|e| e.key != *key);
                    entries.push(entry(Kind::HostEndpoint, serde_json::to_value(resource).unwrap()));
                    let mut seen = BTreeSet::new();
                    let spec = |e: &Entry, field: &str| {
                        e.value["spec"][field].as_str().unwrap_or_default().to_owned()
                    };
                    for e in entries.iter().filter(|e| e.key.kind == Kind::HostEndpoint) {
                        let at = (spec(e, "node"), spec(e, "interfaceName"));
                        assert!(seen.insert(at.clone()), "{at:?} is contested after {key}");
                    }
                }
                Action::DropHostEndpoint { key, .. } => entries.retain(|e| e.key != *key),
                other => panic!("{other}"),
            }
        }
        shown += "--\n";
    }
    panic!("it never ends:\n{shown}")
}

fn by_cidrs(templates: &[(&str, &[&str])]) -> Option<AutoHostEndpointSpec> {
    let of = |(name, cidrs): &(&str, &[&str])| json!({"generateName": name, "interfaceCIDRs": cidrs});
    let templates: Vec<Value> = templates.iter().map(of).collect();
    Some(auto(
        json!({"autoCreate": "Enabled", "createDefaultHostEndpoint": "Disabled", "templates": templates}),
    ))
}

#[test]
fn templates_that_would_close_a_device_make_one_and_are_named() {
    let mut planner = planner(by_cidrs(&[
        ("v4", &["192.0.0.0/8"]),
        ("v6", &["2001:db8::/32"]),
        ("narrow", &["192.0.2.0/24"]),
    ]));
    let (shown, entries) = to_the_end(&mut planner, two_nodes());
    insta::assert_snapshot!(shown);
    let names: Vec<&str> = entries.iter().skip(2).map(|e| e.key.name.as_str()).collect();
    assert_eq!(names, ["a-narrow-auto-hep", "b-narrow-auto-hep"]);
}

#[test]
fn pairs_that_are_there_already_are_parted_and_a_renamed_template_closes_nothing() {
    let mut planner = planner(by_cidrs(&[("v4", &["192.0.2.0/24"]), ("v6", &["2001:db8::/32"])]));
    let (_, mut entries) = to_the_end(&mut planner, two_nodes());
    // As Calico's controllers leave it.
    let mut second = (*entries.iter().find(|e| e.key.name == "a-v4-auto-hep").unwrap().value).clone();
    second["metadata"]["name"] = "a-v6-auto-hep".into();
    second["spec"]["expectedIPs"] = json!(["2001:db8::1"]);
    entries.push(entry(Kind::HostEndpoint, second));
    let (parted, entries) = to_the_end(&mut planner, entries);
    planner.rule(Rules {
        host_endpoints: by_cidrs(&[("both", &["192.0.2.0/24", "2001:db8::/32"])]),
        ..planner.rules.clone()
    });
    let (renamed, entries) = to_the_end(&mut planner, entries);
    insta::assert_snapshot!(parted + "=====\n" + &renamed);
    let both = &entries.iter().find(|e| e.key.name == "a-both-auto-hep").unwrap().value;
    assert_eq!(both["spec"]["expectedIPs"], json!(["192.0.2.1", "2001:db8::1"]));
}

#[test]
fn what_somebody_wrote_for_an_interface_has_it_to_itself() {
    let theirs = |name: &str, spec: Value| {
        entry(
            Kind::HostEndpoint,
            json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint", "metadata": {"name": name}, "spec": spec}),
        )
    };
    let templates = json!([{"generateName": "nics", "interfacePattern": "^eth"},
        {"generateName": "again", "interfacePattern": "^eth0"}, {"generateName": "cidr", "interfaceCIDRs": ["192.0.2.0/24"]}]);
    let mut planner = planner(Some(auto(json!({"autoCreate": "Enabled", "templates": templates}))));
    let (first, mut entries) = to_the_end(&mut planner, two_nodes());
    entries.push(theirs("all-of-b", json!({"node": "b", "interfaceName": "*"})));
    // Unreadable, and yet closed by the agent.
    entries.push(theirs("eth1-of-a", json!({"node": "a", "interfaceName": "eth1", "expectedIPs": "none"})));
    entries.push(theirs("address-of-a", json!({"node": "a", "expectedIPs": ["192.0.2.1"]})));
    entries.push(theirs("elsewhere", json!({"node": "c", "interfaceName": "eth0"})));
    let (then, _) = to_the_end(&mut planner, entries);
    insta::assert_snapshot!(first + "=====\n" + &then);
}
